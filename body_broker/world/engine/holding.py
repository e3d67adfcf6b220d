"""Owns what the hub knows of the engine that arbitrates: its epoch, how far both sides have counted, what it has been sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from body_broker.text import canonical_json
from body_broker.world.model import Entity

WINDOW = 256
"""Changes that an engine may have undecided: the rest waits in the queue, where priority still counts."""


@dataclass(slots=True, kw_only=True)
class Holding:
    """One epoch of one engine.

    Attributes:
        said: The number of our latest message.
        heard: The number of the engine's latest.
        heard_at: When its latest heartbeat came, on the relay's clock.
        open: Ids of the changes it was sent and has not decided.
        world: Every entity as the record has it.
    """

    epoch: int
    engine: str
    instance: str
    heard_at: float
    world: dict[str, Entity]
    said: int = 0
    heard: int = 0
    open: set[str] = field(default_factory=set[str])

    def next_n(self) -> int:
        """The number of the message that is written next."""
        self.said += 1
        return self.said


@dataclass(frozen=True, slots=True)
class Read:
    """How far the reports were read, as it lies beside them in Redis: what loses the one loses the other.

    Attributes:
        entry: The id of the last one.
        server: Which run of Redis that was.
        epoch: Of the engine that held the world; 0 where none did.
        heard: The number of its latest message.
    """

    entry: str
    server: str = ""
    epoch: int = 0
    engine: str = ""
    instance: str = ""
    heard: int = 0

    def as_json(self) -> bytes:
        """Its stored form."""
        return canonical_json([self.entry, self.server, self.epoch, self.engine, self.instance, self.heard])

    @classmethod
    def of(cls, raw: bytes | str | None) -> Read | None:
        """From its stored form; None where there is none."""
        if raw is None:
            return None
        found: list[Any] = orjson.loads(raw)
        return cls(*found)
