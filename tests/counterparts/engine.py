"""Owns an engine that nobody of the product wrote: a small game in memory, built from docs/engine-protocol.md alone.

It imports nothing of ours. `python tests/counterparts/engine.py REDIS_URL [NAME]` runs it; `walk ENTITY PLACE` on its standard input is a player's step.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import random
import sys
import time
from typing import Any, cast

import redis.asyncio
from redis.exceptions import RedisError

Json = dict[str, Any]
ORDERS, REPORTS = "state-change", "engine-report"
LIVING = {"hurt", "heal", "say", "move", "die"}


class Over(Exception):
    """Begin anew."""


class Game:
    """Entities and rules."""

    def __init__(self) -> None:
        self.entities: dict[str, Json] = {}
        self.tick = 0

    def load(self, entities: list[Json]) -> None:
        self.entities = {e["id"]: copy.deepcopy(e) for e in entities}

    def decide_all(self, changes: list[Json], *, atomic: bool) -> list[Json]:
        before = copy.deepcopy(self.entities)
        versions = {key: e["version"] for key, e in before.items()}
        outcomes = [self.decide(c, versions.get(c["entity_id"], 0)) for c in changes]
        if atomic and any(o["state"] != "applied" for o in outcomes):
            self.entities = before
            outcomes = [
                {"change_id": o["change_id"], "state": "rejected", "rule": "batch"} if o["state"] == "applied" else o
                for o in outcomes
            ]
        return outcomes

    def decide(self, change: Json, version: int) -> Json:
        entity = self.entities.get(change["entity_id"])
        said: Json = {"change_id": change["change_id"]} | self.refusal(change, entity, version)
        if "state" in said:
            return said
        found = OPERATIONS[change["op"]](self, entity, change["payload"])
        if isinstance(found, str):
            return said | {"state": "rejected", "rule": found}
        return said | {"state": "applied", "effects": [found]}

    @staticmethod
    def refusal(change: Json, entity: Json | None, version: int) -> Json:
        rule = None
        if change["expires_in_ms"] <= 0:
            return {"state": "expired"}
        if change["op"] not in OPERATIONS:
            rule = "unknown_operation"
        elif entity is None:
            rule = "unknown_entity"
        elif entity["removed"]:
            rule = "removed_entity"
        elif change["expect_version"] not in {None, version}:
            return {"state": "conflict", "current_version": version}
        elif change["op"] in LIVING and entity["data"].get("alive") is False:
            rule = "dead_actor"
        return {"state": "rejected", "rule": rule} if rule else {}

    def effect(self, entity: Json, name: str, patch: Json, region: str | None = None) -> Json:
        entity["version"] += 1
        for field, value in patch.items():
            if value is None:
                entity["data"].pop(field, None)
            else:
                entity["data"][field] = value
        made: Json = {"entity_id": entity["id"], "version": entity["version"], "type": name, "patch": patch}
        if region is not None:
            entity["region"] = region
            made["region"] = region
        return made

    def hurt(self, entity: Json, payload: Json) -> Json | str:
        by = payload.get("by")
        if not isinstance(by, int):
            return "bad_payload"
        health = max(0, entity["data"].get("health", 100) - by)
        return self.effect(entity, "hurt", {"health": health} | ({} if health else {"alive": False}))

    def heal(self, entity: Json, payload: Json) -> Json | str:
        if not isinstance(payload.get("by"), int):
            return "bad_payload"
        return self.effect(entity, "healed", {"health": min(100, entity["data"].get("health", 100) + payload["by"])})

    def set(self, entity: Json, payload: Json) -> Json | str:
        if not isinstance(payload.get("fields"), dict):
            return "bad_payload"
        return self.effect(entity, "set", payload["fields"])

    def move(self, entity: Json, payload: Json) -> Json | str:
        to = self.entities.get(payload.get("to", ""))
        if to is None or to["kind"] != "place":
            return "unknown_place"
        here = self.entities.get(entity["data"].get("place", ""))
        if here is not None and to["id"] not in here["data"].get("exits", []):
            return "not_reachable"
        return self.effect(entity, "moved", {"place": to["id"]}, to["region"])


OPERATIONS: dict[str, Any] = {"hurt": Game.hurt, "heal": Game.heal, "set": Game.set, "move": Game.move}


class Session:
    """The conversation with the hub."""

    def __init__(self, url: str, name: str) -> None:
        # Any: redis-py has no types for what it reads.
        self.redis: Any = redis.asyncio.from_url(url, socket_timeout=60, protocol=2)
        self.name, self.instance = name, f"{random.getrandbits(48):x}"
        self.game = Game()
        self.after: str = "0-0"
        self.welcome: Json | None = None
        self.steps = 0

    async def run(self) -> None:
        while True:
            try:
                await self.join()
                await self.serve()
            except Over:
                continue
            except (RedisError, OSError):
                await asyncio.sleep(0.2)

    async def write(self, message: Json) -> None:
        await self.redis.xadd(REPORTS, {"json": json.dumps({"v": 1, **message})})

    async def read(self, block_s: float) -> list[Json]:
        reply: Any = await self.redis.xread({ORDERS: self.after}, count=10, block=max(1, int(block_s * 1000)))
        found: list[Json] = []
        for _, entries in cast("list[Any]", reply or []):
            for entry, fields in entries:
                self.after = entry.decode()
                try:
                    message = json.loads(cast("dict[bytes, bytes]", fields or {}).get(b"json", b""))
                except ValueError:
                    continue
                if isinstance(message, dict):
                    found.append(cast("Json", message))
        return found

    async def join(self) -> None:
        last = await self.redis.xrevrange(ORDERS, count=1)
        self.after = last[0][0].decode() if last else "0-0"
        self.welcome = None
        self.pending: list[Json] = []
        again = 0.0
        while self.welcome is None:
            if time.monotonic() >= again:
                await self.write({"type": "hello", "engine": self.name, "instance": self.instance})
                again = time.monotonic() + 2
            for message in await self.read(max(0.001, again - time.monotonic())):
                mine = (message.get("engine"), message.get("instance")) == (self.name, self.instance)
                if mine and message.get("type") == "taken":
                    again = time.monotonic() + message["retry_ms"] / 1000
                elif mine and message.get("type") == "welcome":
                    self.begin(message)
                elif self.welcome is not None:
                    self.pending.append(message)

    def begin(self, welcome: Json) -> None:
        self.welcome = welcome
        self.n, self.heard = 0, 1
        self.parts: list[Json] = []
        self.missing = welcome["snapshots"]
        self.answers: dict[str, Json] = {}
        self.game.tick = welcome["tick"]
        self.leased = time.monotonic()
        self.beat = 0.0

    async def say(self, message: Json) -> None:
        assert self.welcome is not None
        self.n += 1
        self.game.tick += 1
        body = {"epoch": self.welcome["epoch"], "n": self.n, **message}
        await self.write(body if message["type"] == "bye" else body | {"tick": self.game.tick})

    async def serve(self) -> None:
        for message in self.pending:
            await self.hear(message)
        while True:
            assert self.welcome is not None
            lease_s = self.welcome["lease_ms"] / 1000
            if time.monotonic() - self.leased > lease_s:
                raise Over
            if time.monotonic() >= self.beat:
                await self.say({"type": "heartbeat"})
                self.beat = time.monotonic() + lease_s / 3
            for message in await self.read(max(0.001, self.beat - time.monotonic())):
                if time.monotonic() - self.leased > lease_s and message.get("type") == "change":
                    raise Over
                await self.hear(message)

    async def hear(self, message: Json) -> None:
        assert self.welcome is not None
        kind = message.get("type")
        if kind == "welcome" and (message["engine"], message["instance"]) == (self.name, self.instance):
            self.begin(message)
        if message.get("epoch") != self.welcome["epoch"]:
            return
        if kind == "ended" or (kind == "refusal" and message["code"] == "old_epoch"):
            raise Over
        n = message.get("n")
        if not isinstance(n, int) or n <= self.heard:
            return
        if n != self.heard + 1:
            raise Over
        self.heard = n
        if kind == "snapshot":
            self.parts += message["entities"]
            self.missing -= 1
            if not self.missing:
                self.game.load(self.parts)
        elif kind == "lease":
            self.leased = time.monotonic()
        elif kind == "change":
            await self.answer(message)

    async def answer(self, message: Json) -> None:
        new = [c for c in message["changes"] if c["change_id"] not in self.answers]
        for outcome in self.game.decide_all(new, atomic=message["atomic"]):
            self.answers[outcome["change_id"]] = outcome
        await self.say({"type": "outcome", "outcomes": [self.answers[c["change_id"]] for c in message["changes"]]})

    async def walk(self, entity_id: str, place_id: str) -> None:
        """A player's step, which nobody asked for."""
        entity, place = self.game.entities[entity_id], self.game.entities[place_id]
        effect = self.game.effect(entity, "moved", {"place": place_id}, place["region"])
        self.steps += 1
        await self.say({"type": "observation", "key": f"{self.instance}-{self.steps}", "effects": [effect]})


async def _main(url: str, name: str) -> None:
    session = Session(url, name)
    loop = asyncio.get_running_loop()
    steps: asyncio.Queue[list[str]] = asyncio.Queue()
    with contextlib.suppress(PermissionError):  # /dev/null has nothing to wait for
        loop.add_reader(sys.stdin, lambda: steps.put_nowait(sys.stdin.readline().split()))
    playing = asyncio.create_task(session.run())
    while not playing.done():
        words = await steps.get()
        if words[:1] == ["walk"]:
            await session.walk(*words[1:])
        elif not words:
            loop.remove_reader(sys.stdin)
    playing.result()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "counterpart"))
