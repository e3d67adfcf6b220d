"""Owns killing whatever decides the world, asks for changes of it or keeps it: the steps, the clients, and what must hold after."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from body_broker.storage.embedded.layout import Layout
from body_broker.storage.postgres import open_pool
from body_broker.storage.redis import LOST, Redis, open_redis
from body_broker.world import epochs, mirror, recorder
from body_broker.world.kinds import check
from body_broker.world.model import Effect, Kind
from tests.kill.harness import PATIENCE_S, Harness, Step, Victim
from tests.kill.holding import holding
from tests.kill.product import Product
from tests.waiting import end_all, wait_until

CLIENTS = tuple(f"service:game-{n}" for n in range(4))
_FLAGS = tuple(f"count-{n}" for n in range(6))
_NPCS = tuple(f"npc-{n}" for n in range(4))
_KEEP_MS = 3_600_000
_EVENTS = "LOCK TABLE world_event IN SHARE MODE"
_CHANGES = "LOCK TABLE world_change IN SHARE MODE"
_WAITING = "SELECT count(*) AS n FROM world_change WHERE state = 'queued'"
_HEAD = "SELECT last_pos, epoch FROM world_engine"
_ODD = "SELECT id FROM world_entity e WHERE version <> (SELECT count(*) FROM world_event v WHERE v.entity_id = e.id)"
_GAPLESS = """
SELECT count(*) AS n, coalesce(max(pos), 0) AS top, count(DISTINCT pos) AS distinct_pos,
    (SELECT last_pos FROM world_engine) AS last FROM world_event
"""
_ENDED = """
SELECT c.id, c.key, c.actor, c.entity_id, c.op, c.state, c.rule, (c.payload ->> 'by')::int AS by,
    (SELECT count(*) FROM world_event e WHERE e.change_id = c.id) AS events FROM world_change c
"""


@dataclass
class Ledger:
    """What the clients were told: the change of each key, by client."""

    changes: dict[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])
    codes: Counter[str] = field(default_factory=Counter[str])
    repeated: int = 0

    def note(self, client: str, key: str, change_id: str, *, duplicate: bool) -> None:
        """A change was acknowledged; a key that was acknowledged before must name the same one."""
        assert self.changes.setdefault((client, key), change_id) == change_id, f"{key} became another change"
        self.repeated += duplicate


class Players:
    """Four clients that go on asking for changes; what is not answered is asked again under its key until it is."""

    def __init__(self, product: Product, ledger: Ledger, chance: random.Random) -> None:
        self.answered = 0
        self._product, self._ledger, self._chance = product, ledger, chance
        self._turns = [asyncio.Lock() for _ in CLIENTS]
        self._number = 0
        self._playing: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def playing(self) -> AsyncGenerator[None]:
        """They ask until the way out, where each gets its last answer; a fault of theirs is raised there.

        Where a round failed nobody waits for answers, which may never come.
        """
        over = asyncio.Event()
        self._playing = clients = [
            asyncio.create_task(self._play(client, turn, over))
            for client, turn in zip(CLIENTS, self._turns, strict=True)
        ]
        try:
            yield
            over.set()
            await asyncio.gather(*clients)
        finally:
            await end_all(clients)

    def have_answered(self, count: int) -> bool:
        """Whether so many calls were; fails where a client gave up."""
        for client in self._playing:
            if client.done():
                client.result()
        return self.answered >= count

    @asynccontextmanager
    async def still(self) -> AsyncGenerator[None]:
        """No client has a call open."""
        async with contextlib.AsyncExitStack() as stack:
            for turn in self._turns:
                await stack.enter_async_context(turn)
            yield

    async def ask(self, client: str) -> None:
        """One call, with one to three changes, until it is acknowledged."""
        tool, arguments = self._wish(client)
        while True:
            answer = await self._product.call(client, tool, arguments)
            if answer is not None and answer.code is None:
                break
            if answer is not None:
                assert answer.code is not None
                self._ledger.codes[answer.code] += 1
                assert answer.code in {"unavailable", "rate_limited"}, answer
            await self._product.serves()
        self.answered += 1
        asked: list[dict[str, Any]] = arguments.get("changes") or [arguments]
        told: list[dict[str, Any]] = answer.result.get("changes") or [answer.result]
        for one, about in zip(asked, told, strict=True):
            self._ledger.note(client, one["idempotency_key"], about["change_id"], duplicate=about["duplicate"])

    async def _play(self, client: str, turn: asyncio.Lock, over: asyncio.Event) -> None:
        while not over.is_set():
            async with turn:
                await self.ask(client)
            await asyncio.sleep(0)  # so that whoever wants it still has a turn

    def _wish(self, client: str) -> tuple[str, dict[str, Any]]:
        """Mostly counting; now and then what only one version fits, or a batch, some of which fall."""
        kind = self._chance.random()
        if kind < 0.7:
            one = self._one(client, self._flag(), "add", {"field": "value", "by": 1})
            change = {name: one.pop(name) for name in ("entity_id", "op", "payload")}
            return "queue_state_change", {"change": change, **one}
        mood = {"fields": {"mood": self._chance.choice(("calm", "afraid", "cold"))}}
        changes = [
            self._one(client, self._flag(), "add", {"field": "value", "by": 1}),
            self._one(client, self._chance.choice(_NPCS), "set", mood)
            | {"expect_version": self._chance.randint(1, 40)},
            self._one(client, self._flag(), "add", {"field": "value", "by": 1}),
        ]
        return "queue_state_changes", {"changes": changes, "atomic": kind < 0.9}

    def _flag(self) -> str:
        return self._chance.choice(_FLAGS)

    def _one(self, client: str, entity_id: str, op: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        self._number += 1
        key = f"{client} {self._number}"
        wish = {"entity_id": entity_id, "op": op, "payload": dict(payload)}
        return {**wish, "idempotency_key": key, "expires_in_ms": _KEEP_MS}


class WorldSteps:
    """The steps over one product and its clients."""

    def __init__(self, product: Product, players: Players, chance: random.Random) -> None:
        self._product, self._players, self._chance = product, players, chance

    def all(self) -> list[Step]:
        """Every step."""
        return [
            Step("changes: nobody asks for any", self._idle),
            Step("changes: in full traffic", self._in_traffic),
            Step("changes: asked for, not yet taken", self._before_taken),
            Step("changes: decided, not yet committed", self._before_committed),
            Step("changes: committed, nobody told", self._before_told),
        ]

    @asynccontextmanager
    async def _idle(self, _victim: Victim) -> AsyncGenerator[str]:
        async with self._players.still():
            yield "no call open"

    @asynccontextmanager
    async def _in_traffic(self, _victim: Victim) -> AsyncGenerator[str]:
        before, wanted = self._players.answered, self._chance.randint(10, 80)
        await wait_until(
            lambda: self._players.have_answered(before + wanted), "calls are answered", timeout_s=PATIENCE_S
        )
        yield f"{self._players.answered - before} calls answered meanwhile"

    @asynccontextmanager
    async def _before_taken(self, _victim: Victim) -> AsyncGenerator[str]:
        async with holding(self._product.database_url, _CHANGES) as held:
            await held.has_stopped("hub")
            yield "a change waits to be taken"
            held.let_go()

    @asynccontextmanager
    async def _before_committed(self, _victim: Victim) -> AsyncGenerator[str]:
        async with holding(self._product.database_url, _EVENTS) as held:
            runs_it = await held.has_stopped_one()
            yield f"the engine {runs_it} has decided, nothing of it is recorded"
            held.let_go()

    @asynccontextmanager
    async def _before_told(self, _victim: Victim) -> AsyncGenerator[str]:
        async with contextlib.AsyncExitStack() as stack:
            held = await stack.enter_async_context(holding(self._product.database_url, _EVENTS))
            await held.has_stopped_one()
            await stack.enter_async_context(self._players.still())
            async with open_redis(await _redis_url(self._product)) as redis:
                await redis.execute_command("CLIENT", "PAUSE", "60000", "WRITE")  # pyright: ignore[reportUnknownMemberType]  # redis-py's hints
                try:
                    held.let_go()
                    untold = await wait_until(lambda: self._untold(redis), "the record is ahead", timeout_s=PATIENCE_S)
                    yield f"{untold} events are recorded, nobody was told of them"
                finally:
                    with contextlib.suppress(*LOST):
                        await redis.execute_command("CLIENT", "UNPAUSE")  # pyright: ignore[reportUnknownMemberType]  # redis-py's hints

    async def _untold(self, redis: Redis) -> int:
        if (await self._product.sql(_WAITING))[0]["n"]:
            return 0
        return (await self._product.sql(_HEAD))[0]["last_pos"] - await mirror.latest(redis)


async def survive(folder: Path, *, seed: int, rounds: int) -> Harness:
    """The harness after so many rounds in which no acknowledged change was lost or applied twice; fails at the first that was."""
    chance = random.Random(seed)  # noqa: S311  # repeatable, nothing secret
    settings = {"BODY_BROKER_ENGINE_LEASE_S": "1", "BODY_BROKER_TOOLS": "all"}
    product = Product(folder / "data", folder, settings, runs=("hub", "engine"))
    ledger = Ledger()
    players = Players(product, ledger, chance)
    harness = Harness(product.victims(), WorldSteps(product, players, chance).all(), product.ready, seed)
    async with product.open(*CLIENTS):
        await populate(product)
        async with players.playing():
            for _ in range(rounds):
                await harness.round()
                await require_sound(product)
        await require_kept(product, ledger)
        await require_told(product)
        await product.stop()
    print(
        f"{len(ledger.changes)} changes acknowledged and kept, {ledger.repeated} of them asked for again; "
        f"errors told: {dict(ledger.codes)}"
    )
    return harness


async def populate(product: Product) -> None:
    """The flags and NPCs that the clients change."""
    things: list[tuple[str, Kind, dict[str, Any]]] = [
        *((each, "flag", {"value": 0}) for each in _FLAGS),
        *((each, "npc", {"name": each}) for each in _NPCS),
    ]
    effects = [
        Effect(
            entity_id=each,
            type="loaded",
            kind=kind,
            patch={k: v for k, v in check(kind, data).items() if v is not None},
        )
        for each, kind, data in things
    ]
    async with open_pool(product.database_url) as pool, pool.acquire() as connection, connection.transaction():
        await recorder.append(connection, effects, {}, await epochs.begin_anew(connection))


async def require_sound(product: Product) -> None:
    """At any moment each version is the number of its events, and positions have no gap."""
    assert not await product.sql(_ODD)
    row = (await product.sql(_GAPLESS))[0]
    assert row["n"] == row["top"] == row["distinct_pos"] == row["last"], dict(row)


async def require_kept(product: Product, ledger: Ledger) -> None:
    """Everything acknowledged is there, decided and applied once or not at all, and what was counted is the sum."""

    async def all_decided() -> bool:
        return (await product.sql(_WAITING))[0]["n"] == 0

    await wait_until(all_decided, "everything that was taken is decided", timeout_s=PATIENCE_S)
    await require_sound(product)
    rows = {row["id"]: row for row in await product.sql(_ENDED)}
    for (client, key), change_id in ledger.changes.items():
        assert change_id in rows, f"{key} of {client} was acknowledged and is lost"
        assert rows[change_id]["key"] == key
    for row in rows.values():
        assert row["events"] == (1 if row["state"] == "applied" else 0), dict(row)
        assert row["state"] in {"applied", "conflict"} or row["rule"] == "batch", dict(row)
    counted = Counter(row["entity_id"] for row in rows.values() if row["op"] == "add" and row["state"] == "applied")
    found = await product.sql("SELECT id, (data ->> 'value')::int AS value FROM world_entity WHERE kind = 'flag'")
    assert {row["id"]: row["value"] for row in found} == {each: counted[each] for each in _FLAGS}
    assert sum(counted.values()) > len(_FLAGS)
    states = Counter(row["rule"] or row["state"] for row in rows.values())
    print(f"  {dict(states)}")


async def require_told(product: Product) -> None:
    """The copy in Redis and the hub's map are as the record is."""
    head = (await product.sql(_HEAD))[0]
    entities = {row["id"]: row["version"] for row in await product.sql("SELECT id, version FROM world_entity")}
    async with open_redis(await _redis_url(product)) as redis:

        async def whole() -> bool:
            keys = [orjson.loads(await redis.get(f"npc:{each}") or b"{}").get("version") for each in _NPCS]
            return await mirror.latest(redis) == head["last_pos"] and keys == [entities[each] for each in _NPCS]

        await wait_until(whole, "the copy in Redis is whole", timeout_s=PATIENCE_S)
    for each in _NPCS:

        async def read(npc: str = each) -> bool:
            answer = await product.call(CLIENTS[0], "get_npc_state", {"npc_id": npc})
            assert answer is not None
            assert answer.code is None, answer
            return answer.result["version"] == entities[npc]

        await wait_until(read, "the hub shows the NPC as it is recorded", timeout_s=PATIENCE_S)


async def _redis_url(product: Product) -> str:
    return (await asyncio.to_thread(Layout, product.data_dir)).urls.redis_url
