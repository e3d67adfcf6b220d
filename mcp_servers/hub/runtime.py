"""Owns the composition of one hub process: stores, keys, audit, policy, gate and every room's services, opened and closed in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from approvals.executor import Executor
from body_broker.audit.auditor import Auditor, open_auditor
from body_broker.calls import Room
from body_broker.settings import Settings
from body_broker.storage.stores import Stores, open_stores
from mcp_servers.hub import own
from mcp_servers.hub.approving import Approvals, open_approvals
from mcp_servers.hub.asking import Asking
from mcp_servers.hub.cursors import CursorSeals
from mcp_servers.hub.events import EventBus
from mcp_servers.hub.gate import Gate
from mcp_servers.hub.identity import Identities, open_identities
from mcp_servers.hub.inferring import Inferring, open_inferring
from mcp_servers.hub.inner_door import InnerDoor
from mcp_servers.hub.limits import Limits, open_limits
from mcp_servers.hub.listing import Listings
from mcp_servers.hub.metrics import Metrics
from mcp_servers.hub.protocol import Protocol
from mcp_servers.hub.rooms import ROOMS
from mcp_servers.hub.rounds import Rounds
from mcp_servers.hub.secrets import Secrets
from mcp_servers.hub.services import RoomServices, open_services
from mcp_servers.hub.sessions import Sessions, open_sessions
from mcp_servers.hub.tier_metrics import TierCounts
from mcp_servers.hub.tokens import Tokens
from mcp_servers.hub.tracing import open_tracing
from policies.catalogue import Catalogue
from policies.engine import Policy

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
    gate: Gate
    listings: Listings
    services: RoomServices
    approvals: Approvals
    executor: Executor
    inferring: Inferring


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
    policy = await asyncio.to_thread(load_policy, settings, rooms)
    every, rooms, lasting = _every(rooms), profiled(rooms, settings.tools), name != "cli"
    async with AsyncExitStack() as stack:
        stores, secrets, auditor = await _open_ground(stack, settings, name)
        identities, sessions, limits = await _open_callers(stack, settings, stores)
        bus, metrics = EventBus(stores.redis), Metrics()
        services = await stack.enter_async_context(open_services(settings, stores, bus, policy, lasting=lasting))
        opening = open_approvals(
            settings, stores, secrets, auditor, policy=policy, rooms=every, lasting=lasting, counts=metrics
        )
        approvals = await stack.enter_async_context(opening)
        tokens, counts = Tokens(stores.pool, settings, secrets), TierCounts(metrics.registry)
        tiers = open_inferring(settings, stores, secrets, tokens=tokens, sessions=sessions, counts=counts)
        inferring = await stack.enter_async_context(tiers)
        ours = {own.ROOM.name: own.HubServices(stores.pool, metrics, approvals.desk, inferring)}
        gate = Gate(
            rooms=rooms,
            approved=every,
            policy=policy,
            services={**services.by_room(), **ours, **(extra_services or {})},
            auditor=auditor,
            sessions=sessions,
            limits=limits,
            cursors=CursorSeals(secrets.derive("cursors")),
            rounds=Rounds(secrets.derive("request-states")),
            asking=_asking(settings, approvals, sessions, policy, identities),
            metrics=metrics,
            configured=configured(settings),
            call_timeout_s=settings.call_timeout_s,
        )
        stack.push_async_callback(gate.drain)
        listings = Listings(rooms, policy, configured(settings))
        inferring.reaches(lambda: InnerDoor(Protocol(gate, listings, limits, bus), identities, settings))
        stack.push_async_callback(inferring.close)
        yield Runtime(
            settings=settings,
            rooms=rooms,
            stores=stores,
            secrets=secrets,
            auditor=auditor,
            tokens=tokens,
            identities=identities,
            sessions=sessions,
            limits=limits,
            bus=bus,
            gate=gate,
            listings=listings,
            services=services,
            approvals=approvals,
            executor=Executor(approvals.desk, identities.standing, gate.authorise, gate.resume),
            inferring=inferring,
        )


async def _open_ground(stack: AsyncExitStack, settings: Settings, name: str) -> tuple[Stores, Secrets, Auditor]:
    """What everything else stands on; traces first, which end last."""
    await stack.enter_async_context(open_tracing(settings.otlp_url))
    stores = await stack.enter_async_context(open_stores(settings, name=name))
    secrets = await asyncio.to_thread(Secrets.load, settings)
    return stores, secrets, await stack.enter_async_context(open_auditor(stores.pool, secrets.derive("audit")))


async def _open_callers(
    stack: AsyncExitStack, settings: Settings, stores: Stores
) -> tuple[Identities, Sessions, Limits]:
    """Who calls, what they have read, and how much they may."""
    limiting = open_limits(stores.redis, rate_per_s=settings.rate_per_s, concurrency_max=settings.concurrency_max)
    return (
        await stack.enter_async_context(open_identities(stores.pool, settings)),
        await stack.enter_async_context(open_sessions(stores.redis, stores.pool)),
        await stack.enter_async_context(limiting),
    )


def _asking(
    settings: Settings, approvals: Approvals, sessions: Sessions, policy: Policy, identities: Identities
) -> Asking:
    return Asking(approvals, sessions, policy.catalogue, wait_s=settings.approval_wait_s, still=identities.still)


def configured(settings: Settings) -> frozenset[str]:
    """The names of the settings that have a value, as rows name them in `needs`."""
    return frozenset(f"BODY_BROKER_{name.upper()}" for name, value in settings if value is not None)
