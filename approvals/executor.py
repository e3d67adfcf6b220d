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
    BodyBrokerError,
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
# What an operation answers when it has done nothing: such an answer of a `once` effect leaves nothing in doubt.
_REFUSALS = (BadInput, Conflict, Denied, NotConfigured, NotFound)

Standing = Callable[[Sequence[str], Sequence[str], datetime], Awaitable[Caller]]
"""`async (chain, sessions, since) -> Caller` with the roles of now; raises where a login of the chain was ended."""
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

    async def begin(self, connection: Connection, approval_id: str, /) -> None:
        """Notes in the run's own transaction that its effect begins: it no longer expires."""
        ...

    def given(self, approval: Approval, /) -> Given:
        """The yeses it got, as the policies read them."""
        ...


class Authorise(Protocol):
    """The gate's side: everything a call passes before its operation runs, and the decision durable on the audit."""

    async def __call__(self, approval: Approval, caller: Caller, given: Given, /) -> Perform:
        """What runs the call; raises what refuses it now."""
        ...


class Executor:
    """Carries out approved calls, each claimed by one worker.

    Args:
        approvals: Where they are read.
        standing: Says who the requester is now.
        authorise: Decides the call anew with the real approval.
    """

    def __init__(self, approvals: Approvals, standing: Standing, authorise: Authorise) -> None:
        self._approvals, self._standing, self._authorise = approvals, standing, authorise

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
        await self._approvals.still_stands(approval)
        caller = await self._standing(approval.chain, approval.sessions, approval.created_at)
        perform = await self._authorise(approval, caller, self._approvals.given(approval))
        async with run.fenced() as connection:
            await self._approvals.begin(connection, run.id)

        known: list[Json] = []

        async def effect() -> Json:
            if not known:
                known.append(await _outcome(run, approval, perform))
            return known[0]

        try:
            return await self._step(run, approval, effect)
        except asyncio.CancelledError:
            # Its requester took it back while it was being done: what has happened is told as it happened.
            if run.interrupted != "cancelled" or not known or run.open_effect is not None:
                raise
            _go_on()
            return known[0] if approval.effect == "once" else await self._step(run, approval, effect)

    async def _step(self, run: Run, approval: Approval, effect: Callable[[], Awaitable[Json]]) -> Json:
        return await (run.once if approval.effect == "once" else run.step)(STEP, effect)


async def _outcome(run: Run, approval: Approval, perform: Perform) -> Json:
    match approval.effect:
        case "once":
            try:
                return _kept(await perform(run.progress))
            except LeaseLost:
                raise
            except _REFUSALS as error:
                return {"error": on_the_wire(error).body()}
        case "repeatable":
            return _kept(await _to_its_end(run, perform(run.progress)))
        case "none":
            return _kept(await perform(run.progress))


async def _to_its_end(run: Run, body: Awaitable[Json]) -> Json:
    """An effect that has begun is not cut off by its requester's cancel: it would be told as cancelled, and might have happened.

    A worker that stops does cut it off; the next one repeats it under the same key.
    """
    effect = asyncio.ensure_future(body)
    try:
        return await asyncio.shield(effect)
    except asyncio.CancelledError:
        if run.interrupted == "cancelled" and not effect.cancelled():
            _go_on()
            return await effect
        effect.cancel()
        await asyncio.wait({effect})
        raise


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


def told(error: Json) -> BodyBrokerError:
    """The error that a stored wire body stands for."""
    return Relayed(cast("dict[str, Any]", error) if isinstance(error, dict) else {})
