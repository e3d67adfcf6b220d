"""Owns asking experts behind a SageMaker asynchronous endpoint: at most one invocation at a time for a question, whatever crashes.

The row of an asking stands before it is sent, and says where its answer will be. Whoever finds a row looks there, and waits until
nothing can come any more before anything is asked again. A late answer is taken all the same.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NoReturn

from body_broker.telemetry import get_logger
from body_broker.work.parking import Park
from body_broker.work.run import Run
from tiers.bronze.calls import CallRow, CallStore
from tiers.bronze.model import Question
from tiers.bronze.sagemaker import messages
from tiers.bronze.sagemaker.client import BEGUN_WITHIN_S, INLINE_BYTES_MAX, SENT_WITHIN_S, SageMakerClient, Taken
from tiers.bronze.sagemaker.places import EXTENSION, Asking, Place
from tiers.catalogue import EngineSpec
from tiers.chain import bound_of
from tiers.cost import CostLedger
from tiers.faults import IN_WORDS, EngineFault, Reason
from tiers.wire.base import Ask, Completion

log = get_logger(__name__)

TTL_S_MIN = 60
"""The least that InvokeEndpointAsync takes as RequestTTLSeconds."""
MARGIN_S = 60.0
"""How much later than its two limits an answer may still be written: theirs is not our clock."""
_LOOKED_MAX_S = 60.0
_OLDER = 10
_KEPT_MONEY_S = 3_600.0
_LEFTOVERS_MAX = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SageMakerEndpoint:
    """An asynchronous endpoint, as the settings name it.

    Attributes:
        name: Its name.
        output: Its S3OutputPath.
        failures: Its S3FailurePath; None where it has none: then a failure is seen when nothing can come any more.
        input: Where questions are put that are too long to be sent inline; None: they are not asked here.
        ttl_s: How long a question may wait there, 60 to 21,600.
        timeout_s: How long it may work on one, 1 to 3,600.
        poll_s: How often its answer is looked for at first; less often the longer it takes.
    """

    name: str
    output: Place
    failures: Place | None = None
    input: Place | None = None
    ttl_s: int = 3_600
    timeout_s: int = 900
    poll_s: float = 5.0


class SageMakerAsyncBackend:
    """Asks the endpoint; runs that wait for an answer are parked and hold no worker.

    Args:
        endpoint: Which.
        client: Talks to AWS.
        calls: What was asked.
        ledger: The money.
    """

    def __init__(
        self, endpoint: SageMakerEndpoint, client: SageMakerClient, calls: CallStore, ledger: CostLedger
    ) -> None:
        self._endpoint, self._client, self._calls, self._ledger = endpoint, client, calls, ledger

    async def answer(self, run: Run, question: Question, spec: EngineSpec, ask: Ask) -> Completion:
        """The endpoint's answer to a question, where it is there by now; else it is asked, unless it may be at work on it.

        Args:
            run: The job's run.
            question: The same after a restart.
            spec: Who is asked; its price, where it has one.
            ask: What it is asked; without a model's name the container takes its own.

        Raises:
            Park: It may still answer: nothing else is to be asked meanwhile.
            EngineFault: It does not answer this.
            LeaseLost: The run no longer owns its work.
        """
        rows = await self._calls.rows_of(question.job, question.turn)
        found = await self._came_of(run, [row for row in rows if row.engine == spec.name], spec, ask)
        if found is not None:
            return found
        await self._ask(run, question, spec, ask, max((row.attempt for row in rows), default=0))
        raise AssertionError("an asking ends with an error")

    async def _came_of(self, run: Run, rows: list[CallRow], spec: EngineSpec, ask: Ask) -> Completion | None:
        """What came of earlier askings; None where nothing did and nothing more can."""
        came: Completion | None = None
        for row in rows:
            if came is not None:  # of two that were asked the earlier one answered late
                if row.open:
                    await self._lose(run, row, "silent")
            elif row.state in {"answered", "lost"} or row.open:
                came = await self._look(run, row, spec, ask)
        return came

    async def _look(self, run: Run, row: CallRow, spec: EngineSpec, ask: Ask) -> Completion | None:
        try:
            body = await self._read(row.output)
            failure = await self._read(row.failure) if body is None and row.open else None
        except EngineFault as fault:
            log.warning("expert_answer_not_looked_for", job=row.job, turn=row.turn, reason=fault.reason)
            return await self._without(run, row, fault.reason)
        if body is not None:
            return await self._take(run, row, spec, ask, body)
        if failure is not None:
            fault = messages.failure_of(failure)
            await self._fail(run, row, fault.reason, ran=fault.reason not in {"too_long", "rejected"})
            raise fault
        return await self._without(run, row, None)

    async def _without(self, run: Run, row: CallRow, unseen: Reason | None) -> None:
        """There is no answer, or it cannot be seen: wait while one may come, or is there and is only not to be seen now."""
        paid_for = row.state == "answered" and unseen is not None  # asking anew would be paid for twice
        if paid_for or (row.open and row.left_s > 0):
            self._park(run, row, unseen)
        if not row.open:
            return
        await self._lose(run, row, unseen or "silent")
        raise EngineFault(unseen or "silent")

    def _park(self, run: Run, row: CallRow, unseen: Reason | None = None) -> NoReturn:
        wait_s = min(max(self._endpoint.poll_s, row.age_s / _OLDER), max(self._endpoint.poll_s, _LOOKED_MAX_S))
        said = f"The endpoint {self._endpoint.name} is asked; an answer can come until {row.due_at:%H:%M} UTC."
        if row.state == "answered":
            said = f"The endpoint {self._endpoint.name} has answered."
        else:
            wait_s = min(wait_s, max(row.left_s, 0.0) + 1.0)
        if unseen is not None:
            said = f"{said} It cannot be looked for now: {IN_WORDS[unseen]}."
        elif row.state == "invoking":
            said = f"{said} Whether the endpoint took the question is not known."
        raise Park(key_of(row.job), wake_in_s=run.within_time(wait_s), message=said)

    async def _take(self, run: Run, row: CallRow, spec: EngineSpec, ask: Ask, body: bytes) -> Completion:
        try:
            completion = messages.completion_of(body, ask, row.age_s)
        except EngineFault as fault:
            if row.state != "answered":
                await self._fail(run, row, fault.reason, ran=True)
            raise
        if row.state != "answered":
            usage = completion.usage if completion.counted else None
            async with run.fenced() as connection:
                await self._calls.answered(connection, row, usage, spec.price)
        return completion

    async def _fail(self, run: Run, row: CallRow, reason: Reason, *, ran: bool) -> None:
        async with run.fenced() as connection:
            await self._calls.failed(connection, row, reason, maybe_spent=ran and row.reservation is not None)

    async def _lose(self, run: Run, row: CallRow, reason: Reason) -> None:
        log.warning("expert_answer_lost", job=row.job, turn=row.turn, attempt=row.attempt, reason=reason)
        async with run.fenced() as connection:
            await self._calls.lost(connection, row, reason)

    async def _ask(self, run: Run, question: Question, spec: EngineSpec, ask: Ask, attempt: int) -> NoReturn:
        ttl_s, timeout_s = self._limits(question)
        asking = await self._fresh(question, attempt)
        given = await self._given(asking, messages.question_of(ask))
        output, failure = self._places(asking)
        due_in_s = ttl_s + timeout_s + BEGUN_WITHIN_S + SENT_WITHIN_S + MARGIN_S
        begun_at = time.monotonic()
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
                    asking.attempt,
                    engine=spec.name,
                    model=ask.model or None,
                    due_in_s=due_in_s,
                    output=str(output),
                    failure=None if failure is None else str(failure),
                    reservation=None if reservation is None else reservation.id,
                )
        except BaseException:
            if row is None:  # nothing is there; of a commit whose answer was lost nobody knows, and its money is swept
                self._ledger.release(reservation)
            raise
        await self._invoke(run, row, asking, given, ttl_s=ttl_s, timeout_s=timeout_s, begun_at=begun_at)

    async def _invoke(
        self,
        run: Run,
        row: CallRow,
        asking: Asking,
        given: bytes | Place,
        *,
        ttl_s: int,
        timeout_s: int,
        begun_at: float,
    ) -> NoReturn:
        from tiers.bronze.sagemaker.faults import AwsFault  # noqa: PLC0415 - imports botocore, 0.4 s and 30 MB

        try:
            taken = await self._client.invoke(
                self._endpoint.name, asking, given, ttl_s=ttl_s, timeout_s=timeout_s, begun_at=begun_at
            )
        except AwsFault as fault:
            log.warning("expert_not_asked", job=row.job, turn=row.turn, reason=fault.reason, certain=fault.certain)
            if fault.certain:
                await self._fail(run, row, fault.reason, ran=False)
                raise
            self._park(run, row)
        async with run.fenced() as connection:
            row = await self._calls.invoked(connection, row, *self._told(row, taken))
        self._park(run, row)

    def _told(self, row: CallRow, taken: Taken) -> tuple[str | None, str | None]:
        """Where its answer will be in truth: AWS' word is better than ours."""
        places = [None if said is None else Place.parse(said) for said in (taken.output, taken.failure)]
        output, failure = (None if place is None else str(place) for place in places)
        if output is not None and output != row.output:
            log.error("expert_output_elsewhere", setting="sagemaker_output", expected=row.output, found=output)
        return output or row.output, failure or row.failure

    def _limits(self, question: Question) -> tuple[int, int]:
        """How long it may wait and work: no longer than the job, as far as AWS lets us say that."""
        left_s = int((question.until - datetime.now(UTC)).total_seconds())
        if left_s <= 0:
            raise EngineFault("deadline")
        return min(self._endpoint.ttl_s, max(left_s, TTL_S_MIN)), min(self._endpoint.timeout_s, left_s)

    async def _fresh(self, question: Question, attempt: int) -> Asking:
        """The next asking, of which no answer can be there: what lay there before was never an answer to it.

        Looking also shows that its answer could be read, before any money is spent on it.
        """
        for number in range(attempt + 1, attempt + 1 + _LEFTOVERS_MAX):
            asking = Asking(question.job, question.turn, number)
            if not await self._client.is_there(self._places(asking)[0]):
                return asking
        raise EngineFault("failed")

    async def _given(self, asking: Asking, body: bytes) -> bytes | Place:
        if len(body) <= INLINE_BYTES_MAX:
            return body
        if self._endpoint.input is None:
            raise EngineFault("too_long")
        place = self._endpoint.input.under(EXTENSION, f"{asking.filename}.json")
        await self._client.put(place, body)
        return place

    def _places(self, asking: Asking) -> tuple[Place, Place | None]:
        endpoint, names = self._endpoint, (EXTENSION, asking.filename)
        return endpoint.output.under(*names), None if endpoint.failures is None else endpoint.failures.under(*names)

    async def _read(self, location: str | None) -> bytes | None:
        place = None if location is None else Place.parse(location)
        return None if place is None else await self._client.read(place)


def key_of(job: str) -> str:
    """What a parked job waits for."""
    return f"expert:{job}"
