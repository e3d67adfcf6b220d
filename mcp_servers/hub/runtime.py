"""Owns the composition of one hub process: stores, keys, audit, policy, gate and every room's services, opened and closed in order."""

from __future__ import annotations

import asyncio
from collections import ChainMap
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from approvals.desk import Desk
from approvals.executor import Executor
from approvals.model import CHANNEL
from body_broker.audit.auditor import Auditor, open_auditor
from body_broker.calls import Room
from body_broker.settings import Settings
from body_broker.storage.stores import Stores, open_stores
from body_broker.work.moves import Moves
from mcp_servers.hub import own, submitting
from mcp_servers.hub.approving import Approvals, open_approvals
from mcp_servers.hub.asking import Asking
from mcp_servers.hub.cursors import CursorSeals
from mcp_servers.hub.events import EventBus
from mcp_servers.hub.experts import ExpertWork, Standing, budget_of
from mcp_servers.hub.gate import Gate
from mcp_servers.hub.identity import Identities, open_identities
from mcp_servers.hub.inferring import Inferring, open_inferring
from mcp_servers.hub.inner_door import InnerDoor
from mcp_servers.hub.limits import Limits, open_limits
from mcp_servers.hub.listing import Listings
from mcp_servers.hub.metrics import Metrics
from mcp_servers.hub.nested import NestedCalls
from mcp_servers.hub.objects_later import LaterObjects
from mcp_servers.hub.protocol import Protocol
from mcp_servers.hub.rooms import ROOMS
from mcp_servers.hub.rounds import Rounds
from mcp_servers.hub.secrets import Secrets
from mcp_servers.hub.services import Expertise, RoomServices, open_services
from mcp_servers.hub.sessions import Sessions, open_sessions
from mcp_servers.hub.swapping import Swap
from mcp_servers.hub.tier_metrics import TierCounts
from mcp_servers.hub.tokens import Tokens
from mcp_servers.hub.tracing import open_tracing, sending
from mcp_servers.hub.upstream_tools import ask_people
from mcp_servers.hub.upstreaming import Upstreams, open_upstreams
from mcp_servers.upstreams.pins import CHANNEL as UPSTREAMS_CHANNEL
from policies.catalogue import Catalogue
from policies.engine import Policy
from tiers.bronze.jobs import Jobs
from tiers.bronze.results import Results
from tiers.catalogue import Catalogue as Models
from tiers.model import Tier

_OURS = frozenset(room.name for room in ROOMS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """Everything a serving process or a worker holds open."""

    settings: Settings
    rooms: tuple[Room, ...]
    stores: Stores
    secrets: Secrets
    auditor: Auditor
    tokens: Tokens
    identities: Identities
    sessions: Sessions
    limits: Limits
    bus: EventBus
    moves: Moves
    gate: Gate
    listings: Listings
    services: RoomServices
    approvals: Approvals
    executor: Executor
    inferring: Inferring
    experts: ExpertWork
    upstreams: Upstreams


def profiled(rooms: tuple[Room, ...], profile: str) -> tuple[Room, ...]:
    """The rooms with only the rows of a catalogue profile: `core`, or `all`."""
    if profile == "all":
        return rooms
    return tuple(
        Room(
            name=room.name,
            title=room.title,
            description=room.description,
            tools=tuple(t for t in room.tools if t.profile == "core"),
            resources=tuple(r for r in room.resources if r.profile == "core"),
            prompts=tuple(p for p in room.prompts if p.profile == "core"),
        )
        for room in rooms
    )


def load_policy(settings: Settings, rooms: tuple[Room, ...] = ROOMS) -> Policy:
    """The policy over every row there is, served or not: policies name operations, and an unknown name stops the start.

    Raises:
        PolicyError: A file is not understood or does not fit the schema.
    """
    return Policy.load(Catalogue.of(_every(rooms)), settings.policies_dir)


def _every(rooms: tuple[Room, ...]) -> tuple[Room, ...]:
    """Ours, served here or not, and those that are served and are not ours."""
    return (*ROOMS, *(room for room in rooms if room.name not in _OURS))


@asynccontextmanager
async def open_runtime(
    settings: Settings,
    rooms: tuple[Room, ...] = ROOMS,
    *,
    name: str = "hub",
    extra_services: dict[str, object] | None = None,
) -> AsyncGenerator[Runtime]:
    """A hub's parts, opened; on the way out effects that have begun end first and the audit closes its chain.

    Args:
        settings: Loaded once by the entry point.
        rooms: The servers to serve.
        name: What this process is, for pg_stat_activity.
        extra_services: Services of rooms that are not ours (tests, benchmarks), by server name.

    Raises:
        StartError: A store, a key or a policy is not usable; nothing is served then.
    """
    every, rooms, lasting = _every(rooms), profiled(rooms, settings.tools), name != "cli"
    async with AsyncExitStack() as stack:
        ground = await _open_ground(stack, settings, name)
        stores, upstreams = ground.stores, await _open_upstreams(stack, ground, rooms, every)
        policy = await asyncio.to_thread(load_policy, settings, (*every, *upstreams.rooms))
        moves = Moves(stores.database_url, also=(CHANNEL, UPSTREAMS_CHANNEL))
        stack.push_async_callback(moves.close)
        bus = EventBus(stores.redis, moves)
        tokens, inferring = await _open_tiers(stack, settings, ground)
        expertise = _expertise_of(settings, stores, inferring)
        opening = open_services(settings, stores, bus, policy, expertise, lasting=lasting)
        services = await stack.enter_async_context(opening)
        experts = ExpertWork(settings, stores, expertise.objects, services, Standing(ground.identities, inferring))
        stack.push_async_callback(experts.close)
        approvals = await _open_approvals(stack, ground, policy, (*every, *upstreams.rooms), lasting=lasting)
        ours = _own_services(ground, approvals.desk, inferring, (expertise.jobs, services.results), upstreams)
        gate = _make_gate(
            ground,
            policy,
            rooms=upstreams.beside(rooms, every),
            services=ChainMap(services.by_room(), {own.ROOM.name: ours}, extra_services or {}, upstreams.services),
            approvals=approvals,
            there=configured(settings, inferring.catalogue) | upstreams.configured,
        )
        stack.push_async_callback(gate.drain)
        listings = Listings(gate.rooms, policy, gate.configured)
        swap = Swap(gate, listings, approvals.definitions, bus, policies_dir=settings.policies_dir)
        _let_change(upstreams, swap, (rooms, every), gate, approvals)
        _let_in(inferring, gate, listings, ground, bus)
        stack.push_async_callback(inferring.close)
        yield Runtime(
            settings=settings,
            rooms=gate.rooms,
            stores=stores,
            secrets=ground.secrets,
            auditor=ground.auditor,
            tokens=tokens,
            identities=ground.identities,
            sessions=ground.sessions,
            limits=ground.limits,
            bus=bus,
            moves=moves,
            gate=gate,
            listings=listings,
            services=services,
            approvals=approvals,
            executor=Executor(approvals.desk, ground.identities.standing, gate.authorise, gate.resume),
            inferring=inferring,
            experts=experts,
            upstreams=upstreams,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ground:
    """What everything else stands on: stores, keys and audit; who calls, what they have read, and how much they may."""

    settings: Settings
    stores: Stores
    secrets: Secrets
    auditor: Auditor
    identities: Identities
    sessions: Sessions
    limits: Limits
    metrics: Metrics


def _own_services(
    ground: _Ground, desk: Desk, inferring: Inferring, kept: tuple[Jobs, Results], upstreams: Upstreams
) -> own.HubServices:
    """What the hub's own tools are given; `kept` are the experts' jobs and their results."""
    return own.HubServices(ground.stores.pool, ground.metrics, desk, inferring, *kept, upstreams)


def _let_change(
    upstreams: Upstreams, swap: Swap, ours: tuple[Sequence[Room], Sequence[Room]], gate: Gate, approvals: Approvals
) -> None:
    """Servers of others may be served anew from now on, and people asked about them."""
    upstreams.swapped_by(swap, *ours)
    if upstreams.pins is not None:
        upstreams.asked_by(partial(ask_people, gate.run, approvals.desk, upstreams.pins))


def _let_in(inferring: Inferring, gate: Gate, listings: Listings, ground: _Ground, bus: EventBus) -> None:
    """Tiers reach this very hub from now on, as MCP clients and by nested calls."""
    inferring.reaches(
        lambda: InnerDoor(Protocol(gate, listings, ground.limits, bus), ground.identities, ground.settings),
        NestedCalls(gate, listings),
    )


async def _open_ground(stack: AsyncExitStack, settings: Settings, name: str) -> _Ground:
    """Traces first, which end last; commands end too soon to send metrics."""
    await stack.enter_async_context(open_tracing(settings.otlp_url))
    stores, metrics = await stack.enter_async_context(open_stores(settings, name=name)), Metrics()
    await stack.enter_async_context(sending(settings.otlp_url if name != "cli" else None, metrics, stores.pool))
    secrets = await asyncio.to_thread(Secrets.load, settings)
    limiting = open_limits(stores.redis, rate_per_s=settings.rate_per_s, concurrency_max=settings.concurrency_max)
    return _Ground(
        settings=settings,
        stores=stores,
        secrets=secrets,
        auditor=await stack.enter_async_context(open_auditor(stores.pool, secrets.derive("audit"))),
        identities=await stack.enter_async_context(open_identities(stores.pool, settings)),
        sessions=await stack.enter_async_context(open_sessions(stores.redis, stores.pool)),
        limits=await stack.enter_async_context(limiting),
        metrics=metrics,
    )


async def _open_upstreams(
    stack: AsyncExitStack, ground: _Ground, rooms: Sequence[Room], every: Sequence[Room]
) -> Upstreams:
    """The servers of others, served where all of ours are."""
    whole = {room.name for room in rooms} >= _OURS
    opening = open_upstreams(ground.settings, ground.stores, ground.secrets, ours=every, whole=whole)
    return await stack.enter_async_context(opening)


async def _open_approvals(
    stack: AsyncExitStack, ground: _Ground, policy: Policy, rooms: Sequence[Room], *, lasting: bool
) -> Approvals:
    opening = open_approvals(
        ground.settings,
        ground.stores,
        ground.secrets,
        ground.auditor,
        policy=policy,
        rooms=rooms,
        lasting=lasting,
        counts=ground.metrics,
    )
    return await stack.enter_async_context(opening)


async def _open_tiers(stack: AsyncExitStack, settings: Settings, ground: _Ground) -> tuple[Tokens, Inferring]:
    """Who answers, and how tokens are minted for them."""
    tokens, counts = Tokens(ground.stores.pool, settings, ground.secrets), TierCounts(ground.metrics.registry)
    tiers = open_inferring(
        settings, ground.stores, ground.secrets, tokens=tokens, sessions=ground.sessions, counts=counts
    )
    return tokens, await stack.enter_async_context(tiers)


def _expertise_of(settings: Settings, stores: Stores, inferring: Inferring) -> Expertise:
    jobs = Jobs(stores.pool, open_max=settings.bronze_open_max, concurrency=settings.bronze_concurrency)
    return Expertise(jobs, budget_of(inferring), LaterObjects(settings))


def _make_gate(
    ground: _Ground,
    policy: Policy,
    *,
    rooms: tuple[Sequence[Room], Sequence[Room]],
    services: Mapping[str, object],
    approvals: Approvals,
    there: frozenset[str],
) -> Gate:
    """The gate over the rooms that are served here, and over every room, whose approved calls run here."""
    return Gate(
        rooms=rooms[0],
        approved=rooms[1],
        policy=policy,
        services=services,
        auditor=ground.auditor,
        sessions=ground.sessions,
        limits=ground.limits,
        cursors=CursorSeals(ground.secrets.derive("cursors")),
        rounds=Rounds(ground.secrets.derive("request-states")),
        asking=_asking(ground, approvals, policy),
        metrics=ground.metrics,
        configured=there,
        call_timeout_s=ground.settings.call_timeout_s,
    )


def _asking(ground: _Ground, approvals: Approvals, policy: Policy) -> Asking:
    wait_s = ground.settings.approval_wait_s
    return Asking(approvals, ground.sessions, policy, wait_s=wait_s, still=ground.identities.still)


def configured(settings: Settings, catalogue: Models) -> frozenset[str]:
    """The names of the settings that have a value, as rows name them in `needs`.

    What experts need counts as set wherever one of their chain has an address: SageMaker's, a studio's own, or a cloud key's.
    """
    found = {f"BODY_BROKER_{name.upper()}" for name, value in settings if value is not None}
    if Tier.BRONZE in catalogue.answering():
        found.add(submitting.NEEDS)
    return frozenset(found)
