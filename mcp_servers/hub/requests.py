"""Owns what goes into the gate and what comes out of it: a request by a caller, an answer by an operation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from body_broker.calls import Caller, Json, Operation, Progress, Result


async def no_progress(done: float, total: float | None = None, message: str | None = None) -> None:
    """Progress for a client that did not ask for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What somebody wants done: a name, raw arguments, and who wants it.

    With `completing` it is not to be run: suggestions for that argument are wanted, and `arguments` holds what is there so far.
    `sent` are all parameters as they came, where the client can be asked for input; only rows with `asks` have them read.
    """

    name: str
    kind: Literal["tool", "resource", "prompt"]
    arguments: Json
    caller: Caller | None
    progress: Progress = no_progress
    depth: int = 0
    completing: str | None = None
    sent: Mapping[str, Json] | None = None


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
