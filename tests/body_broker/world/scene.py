"""Owns the small world that these tests play in, and how they put it there."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from body_broker.storage.postgres import Pool
from body_broker.work.model import Origin
from body_broker.world import epochs, recorder
from body_broker.world.kinds import check
from body_broker.world.model import Change, Effect, Entity, Kind, Proposal, Verdict
from body_broker.world.rules import decide

NOW = datetime(2026, 11, 21, tzinfo=UTC)
GAME = Origin(chain=("service:game",), session="s_game")

_THINGS: tuple[tuple[str, Kind, str | None, Mapping[str, Any]], ...] = (
    ("harbour", "region", None, {"name": "The harbour", "weather": "fog"}),
    ("hills", "region", None, {"name": "The hills"}),
    ("brokers", "faction", None, {"name": "The brokers", "stance": {}}),
    ("morgue", "place", "harbour", {"name": "The morgue", "exits": ["alley"], "position": [0, 0]}),
    ("alley", "place", "harbour", {"name": "The alley", "exits": ["morgue", "vault", "chapel"]}),
    ("vault", "place", "harbour", {"name": "The vault", "exits": ["alley"], "locked": True, "key": "brass-key"}),
    ("chapel", "place", "hills", {"name": "The chapel", "exits": ["alley"]}),
    (
        "mara",
        "npc",
        "harbour",
        {
            "name": "Mara",
            "place": "morgue",
            "position": [1, 0],
            "faction": "brokers",
            "inventory": ["brass-key"],
            "driver": "tier:gold",
        },
    ),
    ("ben", "npc", "harbour", {"name": "Ben", "place": "alley", "position": [40, 0]}),
    ("olga", "npc", "harbour", {"name": "Olga", "place": "morgue", "alive": False, "health": 0, "inventory": ["ring"]}),
    ("anna", "player", "harbour", {"name": "Anna", "place": "morgue", "position": [2, 0]}),
    ("brass-key", "item", "harbour", {"name": "A brass key", "holder": "mara"}),
    ("ring", "item", "harbour", {"name": "A ring", "holder": "olga"}),
    ("scalpel", "item", "harbour", {"name": "A scalpel", "place": "morgue"}),
    ("slab", "item", "harbour", {"name": "A slab", "place": "morgue", "portable": False}),
    ("shards", "item", "harbour", {"name": "Shards", "place": "morgue", "destroyed": True}),
    ("bell-rung", "flag", None, {"value": False}),
    (
        "ledger",
        "quest",
        None,
        {
            "title": "The ledger",
            "giver": "mara",
            "stages": ["find", "read", "burn"],
            "requires": [{"entity": "bell-rung", "field": "value", "equals": True}],
        },
    ),
)


def entities() -> dict[str, Entity]:
    """The world, every entity in its first version."""
    return dict(_made())


@cache
def _made() -> dict[str, Entity]:
    return {
        each: Entity(id=each, kind=kind, region=region, version=1, tick=1, data=check(kind, data))
        for each, kind, region, data in _THINGS
    }


def change(entity_id: str, op: str, payload: Mapping[str, Any] | None = None, **fields: Any) -> Change:
    """A change as an engine sees it; what is not named is as plain as can be."""
    seq = fields.pop("seq", 1)
    plain: dict[str, Any] = {
        "id": f"sch_{seq}",
        "actor": "service:game",
        "batch": None,
        "expect_version": 1,
        "rank": 1,
        "priority": 0,
        "causation": None,
        "depth": 0,
        "tainted": False,
        "expires_at": NOW + timedelta(minutes=1),
    }
    return Change(seq=seq, entity_id=entity_id, op=op, payload=payload or {}, **(plain | fields))


def judged(found: Change, world: Mapping[str, Entity] | None = None) -> Verdict:
    """What becomes of one change in the world."""
    return decide([found], entities() if world is None else world, 7, now=NOW)[0]


def proposal(entity_id: str, op: str, payload: Mapping[str, Any] | None = None, **fields: Any) -> Proposal:
    """A proposal under a key of its own."""
    plain: dict[str, Any] = {"key": f"{entity_id} {op} {payload} {sorted(fields.items())}"[:200]}
    return Proposal(entity_id=entity_id, op=op, payload=payload or {}, **(plain | fields))


async def populate(pool: Pool) -> None:
    """Put the world into a database, as an operator does."""
    effects = [
        Effect(
            entity_id=e.id,
            type="loaded",
            patch={k: v for k, v in e.data.items() if v is not None},
            kind=e.kind,
            region=e.region,
        )
        for e in entities().values()
    ]
    async with pool.acquire() as connection, connection.transaction():
        await recorder.append(connection, effects, {}, await epochs.begin_anew(connection))
