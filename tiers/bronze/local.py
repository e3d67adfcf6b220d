"""Owns asking an engine that answers at once for a job: its row before it, money set aside for it, patience for long answers."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime

import asyncpg

from body_broker.storage.postgres import LOST
from body_broker.telemetry import get_logger
from body_broker.tracing import span
from body_broker.work.model import LeaseLost
from body_broker.work.run import Run
from tiers.bronze.calls import CallRow, CallStore
from tiers.bronze.model import Question
from tiers.chain import bound_of
from tiers.cost import CostLedger
from tiers.deadline import Deadline
from tiers.engine import Debt, Engine
from tiers.faults import EngineFault, Reason
from tiers.wire.base import Ask, Completion

log = get_logger(__name__)

LONGEST_S = 3_600.0
"""The longest that one answer may take: an engine that is at it for longer has lost it."""
_KEPT_MONEY_S = 600.0
"""How much longer money is set aside than the answer may take: whoever takes a dead worker's job over books it."""
_MARK_S = 5.0


@dataclass(frozen=True, slots=True)
class Asked:
    """An answer that came, and the row of its asking, which is still open: it ends together with the record of the answer."""

    completion: Completion
    row: CallRow


class LocalWorkerBackend:
    """Asks engines from the worker's own process: the run waits for the answer.

    Args:
        calls: What was asked.
        ledger: The money.
    """

    def __init__(self, calls: CallStore, ledger: CostLedger) -> None:
        self._calls, self._ledger = calls, ledger

    def deadline_of(self, question: Question) -> Deadline:
        """When an answer must be there.

        Raises:
            EngineFault: `deadline`: the job's time is over.
        """
        left_s = (question.until - datetime.now(UTC)).total_seconds()
        if left_s <= 0:
            raise EngineFault("deadline")
        return Deadline.after(min(left_s, LONGEST_S))

    async def answer(self, run: Run, question: Question, engine: Engine, ask: Ask, attempt: int) -> Asked:
        """One answer of one engine.

        A run that is stopped meanwhile marks the asking as lost: nobody will hear its answer.

        Args:
            run: The job's run.
            question: What is asked, for whom, until when.
            engine: Who is asked.
            ask: As it is asked.
            attempt: The how manieth asking of the question.

        Raises:
            EngineFault: It gave none; the row says so.
            LeaseLost: The run no longer owns its work.
        """
        deadline = self.deadline_of(question)
        row = await self._begin(run, question, engine, ask, attempt=attempt, due_in_s=deadline.remaining())
        debt = Debt()
        try:
            with span("tier.engine", engine=engine.spec.name, tier=engine.spec.tier) as part:
                completion = await engine.run(ask, deadline, debt=debt)
                part.note(finish=completion.finish, ttft_s=completion.ttft_s)
        except EngineFault as fault:
            async with run.fenced() as connection:
                may_cost = debt.owed and row.reservation is not None
                await self._calls.failed(connection, row, fault.reason, maybe_spent=may_cost)
            raise
        except asyncio.CancelledError:
            await self._leave(run, row, sent=debt.owed)
            raise
        return Asked(completion, row)

    async def lose(self, run: Run, row: CallRow, reason: Reason = "reset") -> None:
        """An earlier run asked, and ended before it heard: no answer of that asking will come.

        Raises:
            LeaseLost: The run no longer owns its work.
        """
        log.warning("expert_answer_lost", job=row.job, turn=row.turn, attempt=row.attempt, engine=row.engine)
        async with run.fenced() as connection:
            await self._calls.lost(connection, row, reason)

    async def _begin(
        self, run: Run, question: Question, engine: Engine, ask: Ask, *, attempt: int, due_in_s: float
    ) -> CallRow:
        spec = engine.spec
        reservation = await self._ledger.reserve(
            spec.tier, question.tenant, spec, ask, bound_of(ask, spec), ttl_s=due_in_s + _KEPT_MONEY_S
        )
        row: CallRow | None = None
        try:
            async with run.fenced() as connection:
                row = await self._calls.begin(
                    connection,
                    question.job,
                    question.turn,
                    attempt,
                    engine=spec.name,
                    model=ask.model,
                    due_in_s=due_in_s,
                    reservation=None if reservation is None else reservation.id,
                )
        except BaseException:
            if row is None:  # nothing is there; of a commit whose answer was lost nobody knows, and its money is swept
                self._ledger.release(reservation)
            raise
        return row

    async def _leave(self, run: Run, row: CallRow, *, sent: bool) -> None:
        """Mark what a stopped run leaves; where that fails, whoever goes on finds the row open and marks it."""
        with contextlib.suppress(LeaseLost, TimeoutError, asyncpg.PostgresError, *LOST):
            async with asyncio.timeout(_MARK_S), run.fenced() as connection:
                if sent:
                    await self._calls.lost(connection, row, "reset")
                else:
                    await self._calls.failed(connection, row, "deadline")
