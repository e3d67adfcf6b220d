"""Owns engines of ours before a FaultWall, for tests: one wall, any number of engines on it, and what they are asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.counterparts.faultwall.wall import KEY, MODEL, DialectName, FaultWall, fault_wall
from tests.tiers.clock import Clock
from tiers.catalogue import EngineSpec
from tiers.counts import Counts
from tiers.engine import Engine
from tiers.model import Message, Tier, ToolOffer
from tiers.wire.base import Ask, Piece

LONG_S = 60.0
"""A limit that no test reaches in real time: virtual time passes it."""
LORE = ToolOffer(
    "search_lore",
    "Search the lore.",
    {
        "type": "object",
        "properties": {"query": {"type": "string"}},
        "required": ["query"],
        "additionalProperties": False,
    },
)
MOOD: dict[str, Any] = {
    "type": "object",
    "properties": {"mood": {"enum": ["calm", "angry"]}},
    "required": ["mood"],
    "additionalProperties": False,
}


class Tally(Counts):
    """Counts what engines tell of."""

    def __init__(self) -> None:
        self.gaps, self.firsts = Counter[str](), Counter[str]()
        self.queued, self.queued_most = 0, 0

    def first_token(self, tier: str, engine: str, seconds: float) -> None:
        del tier, seconds
        self.firsts[engine] += 1

    def token_gap(self, tier: str, engine: str, seconds: float) -> None:
        del tier, seconds
        self.gaps[engine] += 1

    def waiting(self, queue: str, change: int) -> None:
        del queue
        self.queued += change
        self.queued_most = max(self.queued_most, self.queued)


class Asking:
    """Engines on one wall."""

    def __init__(self, wall: FaultWall, stack: AsyncExitStack) -> None:
        self.wall, self.counts, self._stack = wall, Tally(), stack

    def engine(self, dialect: DialectName, clock: Clock | None = None, **more: Any) -> Engine:
        """One of this dialect; fields of its spec may differ."""
        known: dict[str, Any] = {
            "name": dialect,
            "tier": Tier.SILVER,
            "dialect": dialect,
            "url": self.wall.url[dialect],
            "key": KEY,
            "model": MODEL,
            "ttft_s": LONG_S,
            "stall_s": LONG_S,
        }
        spec = EngineSpec(**known | more)
        engine = Engine(spec, self.counts) if clock is None else Engine(spec, self.counts, clock=clock)
        self._stack.push_async_callback(engine.close)
        return engine


class Ear:
    """Hears pieces."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []

    async def __call__(self, piece: Piece) -> None:
        self.pieces.append(piece)

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


def ask(text: str = "When does the ferry leave?", **more: Any) -> Ask:
    """A question."""
    known: dict[str, Any] = {"model": MODEL, "messages": (Message(role="user", content=text),), "max_tokens": 64}
    return Ask(**known | more)


@pytest.fixture
async def asking() -> AsyncIterator[Asking]:
    """A wall of every dialect, and engines on it."""
    async with fault_wall() as wall, AsyncExitStack() as stack:
        yield Asking(wall, stack)
