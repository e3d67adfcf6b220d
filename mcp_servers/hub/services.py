"""Owns what each room's functions are given: opened over one process's stores, closed in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from body_broker.calls import Caller
from body_broker.errors import Denied
from body_broker.lore.embedding import Embedding, open_embedding
from body_broker.lore.opensearch import Copy, Ledger, open_copy
from body_broker.settings import Settings
from body_broker.storage.postgres import Pool
from body_broker.storage.stores import Stores
from body_broker.work.run import Handler
from body_broker.work.schedule import Schedule
from body_broker.world import purging
from body_broker.world.map import WorldMap
from body_broker.world.model import Event
from mcp_servers.admin.changes.kind import Reach
from mcp_servers.admin.changes.making import Changes
from mcp_servers.admin.services import Services as Admin
from mcp_servers.cybersecurity.services import Services as Cybersecurity
from mcp_servers.game_state.services import Services as GameState
from mcp_servers.hub.events import EventBus
from mcp_servers.hub.objects_later import LaterObjects
from mcp_servers.hub.scanners import find_semgrep, link_semgrep
from mcp_servers.rag.services import Services as Rag
from mcp_servers.storyteller.services import Services as Storyteller
from policies.decision import Allow, Question, chain_of
from policies.engine import Policy
from tiers import sweeping
from tiers.bronze.documents import Documents
from tiers.bronze.jobs import Jobs
from tiers.bronze.model import Shape
from tiers.bronze.results import Results


@dataclass(frozen=True, slots=True)
class Expertise:
    """How servers ask experts.

    Attributes:
        jobs: Where jobs are asked for.
        budget: `async (caller) -> facts`: whether one may still be asked for on the caller's account.
        objects: Where results lie.
    """

    jobs: Jobs
    budget: Callable[[Caller], Awaitable[frozenset[str]]]
    objects: LaterObjects


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomServices:
    """The services of every server, and what stands behind several of them."""

    rag: Rag
    game_state: GameState
    storyteller: Storyteller
    cybersecurity: Cybersecurity
    admin: Admin
    world: WorldMap
    embedding: Embedding
    copy: Copy | None
    results: Results

    def by_room(self) -> dict[str, object]:
        """Each server's services, by its name."""
        return {
            "rag": self.rag,
            "game_state": self.game_state,
            "storyteller": self.storyteller,
            "cybersecurity": self.cybersecurity,
            "admin": self.admin,
        }

    def handlers(self) -> Mapping[str, Handler]:
        """What a worker needs to do the work of every server."""
        pool = self.game_state.pool
        behind = {**purging.handlers(pool), **sweeping.handlers(pool)}
        return {**self.rag.handlers(), **self.cybersecurity.handlers(), **behind}

    def shapes(self) -> Mapping[str, Shape]:
        """What makes a result of experts' answers, by the kind of job."""
        return {**self.storyteller.shapes(), **self.cybersecurity.shapes(), **self.admin.shapes()}

    def schedules(self) -> tuple[Schedule, ...]:
        """The work that comes round by itself."""
        return (*purging.schedules(), *sweeping.schedules(), *(self.copy.schedules() if self.copy else ()))


@asynccontextmanager
async def open_services(
    settings: Settings,
    stores: Stores,
    bus: EventBus,
    policy: Policy,
    expertise: Expertise,
    *,
    lasting: bool,
) -> AsyncGenerator[RoomServices]:
    """The services of every server over these stores.

    Args:
        settings: Loaded once by the entry point.
        stores: Open.
        bus: Tells listeners what changed.
        policy: Says who may read what a draft of a change shows.
        expertise: How experts are asked.
        lasting: Whether the process stays: a command that comes and goes neither follows the world nor decides which model the
            studio uses.
    """
    regions: dict[str, str | None] = {}  # where each entity was before its next event: it may leave a region

    async def announce(event: Event) -> None:
        left = regions.get(event.entity_id)
        regions[event.entity_id] = event.region
        for uri in _uris(event, left):
            await bus.heard_here(uri)

    async with AsyncExitStack() as stack:
        rag, embedding, copy = await stack.enter_async_context(_open_lore(settings, stores.pool, bus, lasting=lasting))
        world = WorldMap(stores.pool, stores.redis, announce)
        if lasting:
            await stack.enter_async_context(world.following())
            regions.update({each.id: each.region for each in world.entities.values()})
        reach = Reach(pool=stores.pool, lore=rag.lore, tuning=rag.tuning, world=world)
        admin = await asyncio.to_thread(_load_admin, settings, stores, policy, expertise, reach)
        stack.callback(admin.close)
        cybersecurity = Cybersecurity(
            pool=stores.pool,
            staging_dir=settings.data_dir / "staging",
            find_semgrep=partial(_semgrep, settings.data_dir),
            gitleaks=settings.gitleaks,
            rules_dir=settings.scan_rules_dir,
            wait_s=min(settings.scan_wait_s, settings.call_timeout_s / 2),  # a call must not end before it answers
            timeout_s=settings.scan_timeout_s,
            jobs=expertise.jobs,
            budget=expertise.budget,
        )
        if lasting:
            await cybersecurity.sweep()
        results = Results(
            stores.pool, stores.redis, expertise.objects, Documents(rag.lore), kept_days=settings.results_kept_days
        )
        yield RoomServices(
            rag=rag,
            game_state=GameState(
                pool=stores.pool, redis=stores.redis, world=world, open_changes_max=settings.world_open_changes_max
            ),
            storyteller=_storyteller_of(stores, expertise, rag, world, results),
            cybersecurity=cybersecurity,
            admin=admin,
            world=world,
            embedding=embedding,
            copy=copy,
            results=results,
        )


def _storyteller_of(stores: Stores, expertise: Expertise, rag: Rag, world: WorldMap, results: Results) -> Storyteller:
    return Storyteller(
        pool=stores.pool,
        lore=rag.lore,
        world=world,
        jobs=expertise.jobs,
        budget=expertise.budget,
        kept=results.read,
    )


def _load_admin(settings: Settings, stores: Stores, policy: Policy, expertise: Expertise, reach: Reach) -> Admin:
    return Admin.load(
        settings.aws_roles,
        region=settings.aws_region,
        endpoint_url=settings.aws_endpoint_url,
        redis=stores.redis,
        pool=stores.pool,
        jobs=expertise.jobs,
        budget=expertise.budget,
        changes=Changes(reach, partial(_require_read, policy)),
    )


def _require_read(policy: Policy, caller: Caller, operation: str) -> None:
    question = Question(
        action=operation,
        identities=chain_of(caller),
        arguments={"fresh": False},  # of those that have it: the question is what may be seen, not what it costs
        tainted=True,
        depth=0,
        history=frozenset(),
    )
    decision = policy.decide(question)
    if isinstance(decision, Allow):
        return
    rules = list(decision.rules)
    raise Denied(
        f"This would show what {operation} shows, which is not allowed here by rule {', '.join(rules)}.",
        next_step="Ask people for the change by approve_change: they are shown it.",
        details={"rules": rules},
    )


def _semgrep(data_dir: Path) -> Path | None:
    engine = find_semgrep(data_dir)
    return engine and link_semgrep(engine, data_dir)


def _uris(event: Event, left: str | None) -> list[str]:
    """The resources that an event changes, of an entity that was in the region `left`."""
    found = [f"game://npc/{event.entity_id}"] if event.kind == "npc" else []
    if left is not None and left != event.region:
        found.append(f"game://region/{left}")
    region = event.entity_id if event.kind == "region" else event.region
    return found if region is None else [*found, f"game://region/{region}", f"game://events/{region}"]


@asynccontextmanager
async def _open_lore(
    settings: Settings, pool: Pool, bus: EventBus, *, lasting: bool
) -> AsyncGenerator[tuple[Rag, Embedding, Copy | None]]:
    """Lore with what follows it: vectors, and the copy in OpenSearch where there is one."""
    async with AsyncExitStack() as stack:
        copy = None
        if settings.opensearch_url is not None:
            copy = await stack.enter_async_context(open_copy(pool, settings))
        # Even a process without an OpenSearch notes what it changes, for those that have one.
        follower = copy or Ledger()
        embedding = await stack.enter_async_context(open_embedding(pool, settings, (follower,), replace=lasting))
        services = Rag.build(
            pool,
            announce=bus.resource_updated,
            embed=embedding.embed,
            copy=copy and copy.index,
            followers=(embedding, follower),
            following={**embedding.handlers(), **(copy.handlers() if copy else {})},
        )
        yield services, embedding, copy
