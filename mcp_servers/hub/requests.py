"""Owns what goes into the gate and what comes out of it: a request by a caller, an answer by an operation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from body_broker.calls import Caller, Json, Operation, Progress, Result


async def no_progress(done: float, total: float | None = None, message: str | None = None) -> None:
    """Progress for a client that did not ask for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What somebody wants done: a name, raw arguments, and who wants it."""

    name: str
    kind: Literal["tool", "resource", "prompt"]
    arguments: Json
    caller: Caller | None
    progress: Progress = no_progress
    depth: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of it: the result and whether text from outside is in it."""

    call_id: str
    operation: Operation
    result: Result
    outside: bool


def kind_of(caller: Caller) -> str:
    """A caller as a metric's label: `tier:silver` stays, people and services are `person` and `service`."""
    last = caller.chain[-1]
    return last if last.startswith("tier:") else last.partition(":")[0]
