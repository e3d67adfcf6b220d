"""Owns carrying out what was approved: authorised anew, replayed to the byte, once; what became of it is the work's outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol, cast

from approvals.model import WORK_KIND, Approval
from body_broker.calls import Caller, Json, Progress
from body_broker.errors import (
    BadInput,
    Conflict,
    Denied,
    NotConfigured,
    NotFound,
    Relayed,
    on_the_wire,
)
from body_broker.storage.postgres import Connection
from body_broker.telemetry import get_logger
from body_broker.work.model import LeaseLost, encode
from body_broker.work.run import Handler, Run
from policies.decision import Approval as Given

log = get_logger(__name__)

STEP = "call"
"""The recorded step, or `once` effect, in which the approved call runs."""
# What an operation answers when it has done nothing: such an answer leaves nothing in doubt. Under its key a repeatable effect that has
# happened answers what it gave, whatever refuses it since.
_REFUSALS = (BadInput, Conflict, Denied, NotConfigured, NotFound)

Standing = Callable[[Sequence[str], Sequence[str], datetime, Sequence[str]], Awaitable[Caller]]
"""`async (chain, sessions, since, tokens) -> Caller` with the roles of now; raises where a login or a token of it was ended."""
Perform = Callable[[Progress], Awaitable[Json]]
"""Runs a call that has passed the gate; gives `{"result": ..., "outside": ...}`."""


class Approvals(Protocol):
    """What is asked of the desk (approvals/desk.py)."""

    async def get(self, approval_id: str, /) -> Approval:
        """The approval with its votes."""
        ...

    async def still_stands(self, approval: Approval, /) -> None:
        """Raises where the tool's definition or a rule that fired is no longer what people saw."""
        ...

    async def begin(self, connection: Connection, approval_id: str, effect: str, /) -> bool:
        """Notes in the run's own transaction that its effect begins, and is brought to its end; false where it was taken back."""
        ...

    def given(self, approval: Approval, /) -> Given:
        """The yeses it got, as the policies read them."""
        ...


class Authorise(Protocol):
    """The gate's side: everything a call passes before its operation runs, and the decision durable on the audit."""

    async def __call__(self, approval: Approval, caller: Caller, given: Given, /) -> Perform:
        """What runs the call; raises what refuses it now."""
        ...


class Resume(Protocol):
    """The gate's side of a call that an earlier attempt has begun: nothing is decided again, for it may have happened already."""

    async def __call__(self, approval: Approval, /) -> Perform:
        """What runs the call under its key; raises where it cannot be run here any more."""
        ...


class Executor:
    """Carries out approved calls, each claimed by one worker.

    Args:
        approvals: Where they are read.
        standing: Says who the requester is now.
        authorise: Decides the call anew with the real approval.
        resume: Takes up a call that has begun.
    """

    def __init__(self, approvals: Approvals, standing: Standing, authorise: Authorise, resume: Resume) -> None:
        self._approvals, self._standing, self._authorise, self._resume = approvals, standing, authorise, resume

    def handlers(self) -> Mapping[str, Handler]:
        """What a worker needs to run approved calls."""
        return {WORK_KIND: self._run}

    async def _run(self, run: Run) -> Json:
        """One attempt. What was recorded by an earlier one is told, not decided again: it has happened."""
        outcome = run.work.steps.get(STEP) or await self._carry_out(run)
        if (refused := cast("dict[str, Any]", outcome).get("error")) is not None:
            raise Relayed(refused)
        return outcome

    async def _carry_out(self, run: Run) -> Json:
        approval = await self._approvals.get(run.id)
        # What has begun may have happened. A login that has ended since, an edited rule or a new definition would be told as a
        # failure, and the call made again and done twice; so the first attempt's decision, which is on the audit, stands.
        perform = await (self._resume(approval) if run.work.begun else self._begin(run, approval))
        known: list[Json] = []

        async def effect() -> Json:
            if not known:
                known.append(await _outcome(run, approval, perform))
            return known[0]

        try:
            return await self._step(run, approval, effect)
        except asyncio.CancelledError:
            # A `once` effect or a read: its requester took it back while it was being done: what has happened is told as it happened.
            if run.interrupted != "cancelled" or not known or run.open_effect is not None:
                raise
            _go_on()
            return known[0] if approval.effect == "once" else await self._step(run, approval, effect)

    async def _begin(self, run: Run, approval: Approval) -> Perform:
        """What runs the call, decided now; from here on an effect that may be repeated is brought to its end."""
        await self._approvals.still_stands(approval)
        caller = await self._standing(approval.chain, approval.sessions, approval.created_at, approval.tokens)
        perform = await self._authorise(approval, caller, self._approvals.given(approval))
        if approval.effect == "repeatable":  # of a `once` effect the run itself keeps what has begun
            async with run.fenced() as connection:
                begun = await self._approvals.begin(connection, run.id, STEP)
            if not begun:
                run.interrupt("cancelled")
                await asyncio.sleep(0)  # where it is told
                raise asyncio.CancelledError
        return perform

    async def _step(self, run: Run, approval: Approval, effect: Callable[[], Awaitable[Json]]) -> Json:
        return await (run.once if approval.effect == "once" else run.step)(STEP, effect)


async def _outcome(run: Run, approval: Approval, perform: Perform) -> Json:
    match approval.effect:
        case "once" | "repeatable":
            try:
                return _kept(await perform(run.progress))
            except LeaseLost:
                raise
            except _REFUSALS as error:
                return {"error": on_the_wire(error).body()}
        case "none":
            return _kept(await perform(run.progress))


def _go_on() -> None:
    """The cancellation that was just caught is dealt with."""
    task = asyncio.current_task()
    assert task is not None
    if task.cancelling():
        task.uncancel()


def _kept(outcome: Json) -> Json:
    """The outcome, or that it cannot be kept: what was done is not told as a failure because its result is too long."""
    try:
        encode(outcome, "result")
    except BadInput as error:
        log.warning("approved_result_not_kept", error=type(error).__name__)
        return {"result": None, "outside": bool(outcome.get("outside")), "lost": error.message}
    return outcome
