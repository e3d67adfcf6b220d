"""Owns what goes into the gate and what comes out of it: a request by a caller, an answer by an operation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from approvals.waiting import WAIT_MAX_S
from body_broker.calls import WAIT_META, Caller, Hear, Json, Operation, Progress, Result
from body_broker.errors import BadInput


async def no_progress(done: float, total: float | None = None, message: str | None = None) -> None:
    """Progress for a client that did not ask for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How a client waits for people.

    Attributes:
        task: It gets a task instead of waiting.
        wait_s: Seconds its call may wait; None leaves it to the hub.
    """

    task: bool = False
    wait_s: float | None = None


def patience_of(sent: Mapping[str, Json] | None, *, task: bool = False) -> Patience:
    """The patience that the parameters of a request state.

    Raises:
        BadInput: Its seconds are no number from 0 to 300.
    """
    meta = sent.get("_meta") if sent else None
    wait_s = cast("dict[str, Json]", meta).get(WAIT_META) if isinstance(meta, dict) else None
    if wait_s is None:
        return Patience(task=task)
    if isinstance(wait_s, bool) or not isinstance(wait_s, int | float) or not 0 <= wait_s <= WAIT_MAX_S:
        raise BadInput(f"_meta {WAIT_META} must be a number of seconds from 0 to {WAIT_MAX_S:g}.")
    return Patience(task=task, wait_s=float(wait_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What somebody wants done: a name, raw arguments, and who wants it.

    With `completing` it is not to be run: suggestions for that argument are wanted, and `arguments` holds what is there so far.
    `sent` are all parameters as they came, where the client can be asked for input; only rows with `asks`, and those that people
    may be asked for, have them read.
    `patience` says how the client waits where people are asked. `hear` hears what the operation says on the way,
    and `restarts` says whether it can take that back.
    """

    name: str
    kind: Literal["tool", "resource", "prompt"]
    arguments: Json
    caller: Caller | None
    progress: Progress = no_progress
    depth: int = 0
    completing: str | None = None
    sent: Mapping[str, Json] | None = None
    patience: Patience = Patience()
    hear: Hear | None = None
    restarts: bool = False


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
