"""Owns who answers a job's question: candidates in order, each asking on record, and the answer recorded together with its cost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

import asyncpg

from body_broker.calls import Json
from body_broker.errors import BadInput, BodyBrokerError, NotConfigured, Unavailable
from body_broker.storage.postgres import LOST, Connection
from body_broker.text import clean
from body_broker.work.parking import Park
from body_broker.work.run import Run
from tiers.accepting import accepting
from tiers.bronze.budgets import still_left, too_dear
from tiers.bronze.calls import CallRow, CallStore
from tiers.bronze.local import LocalWorkerBackend
from tiers.bronze.model import Answer, Assignment, Question
from tiers.catalogue import Catalogue, EngineSpec
from tiers.chain import Candidate, bound_of, most_usd
from tiers.cloud.worth import by_worth
from tiers.counts import Counts
from tiers.engine import Engine
from tiers.faults import EngineFault
from tiers.model import BYTES_A_TOKEN, Fallback, InferenceRequest, Tier, ToolCall, Usage, prompt_bytes
from tiers.steps import is_absent
from tiers.unanswered import OverBudget, rest_s, steps_of, told_steps, unanswered
from tiers.wire.base import Ask, Completion

MONEY = "tomorrow's money"
"""What a job waits for that only a cap of the day keeps from being asked."""
_MONEY_AGAIN_S = 900.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 30.0, 300.0
_TRY_AGAIN_S = 0.2
_TIER_NAMES = frozenset({"auto", Tier.BRONZE.value})


class EndpointBackend(Protocol):
    """Asks an endpoint that answers later."""

    async def answer(self, run: Run, question: Question, spec: EngineSpec, ask: Ask) -> Completion:
        """Its answer, once it is there; the asking's row has ended then.

        Raises:
            Park: It may still come.
            EngineFault: None will.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Given:
    """An answer that holds, by whom, and the row that ends with its record; None where it has ended."""

    completion: Completion
    spec: EngineSpec
    model: str | None
    row: CallRow | None


class Experts:
    """Answers the questions of jobs.

    Args:
        catalogue: Engines, roles, and where the bronze tier goes on.
        engines: Those that have an address and answer at once, by name.
        calls: What was asked.
        local: Asks those.
        endpoint: Asks the engine of the dialect `sagemaker`; None where there is none.
        money: How a tenant stands, in words for them; `CostLedger.words`.
        counts: Takes measurements.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        engines: Mapping[str, Engine],
        *,
        calls: CallStore,
        local: LocalWorkerBackend,
        endpoint: EndpointBackend | None = None,
        money: Callable[[str], str] | None = None,
        counts: Counts | None = None,
    ) -> None:
        self._catalogue, self._engines, self._endpoint = catalogue, engines, endpoint
        self.calls, self._local, self._money, self._counts = calls, local, money, counts or Counts()

    def tools_of(self, assignment: Assignment) -> frozenset[str]:
        """The names of the hub's tools that a job may call, its role's where it names none; groups are told by their members."""
        names = assignment.tools
        if names is None:
            role = self._catalogue.roles.get(assignment.role or "")
            names = () if role is None else role.tools
        groups = self._catalogue.tool_groups
        return frozenset(member for name in names for member in groups.get(name, (name,)))

    def recorded(self, run: Run, turn: int) -> Answer | None:
        """The answer that an earlier run recorded."""
        known = run.work.steps.get(step_of(turn))
        return None if known is None else Answer.parse(known)

    async def answer(self, run: Run, question: Question) -> Answer:
        """An answer to a question: the recorded one, or a new one, recorded when this returns.

        Args:
            run: The job's run.
            question: The same after a restart; by its turn it is known.

        Raises:
            Park: An endpoint may still answer, or there is no money left today: nothing is to be done meanwhile.
            LeaseLost: The run no longer owns its work.
            BodyBrokerError: Nobody answered; `retryable` where somebody may later.
        """
        if (known := self.recorded(run, question.turn)) is not None:
            return known
        name = step_of(question.turn)
        await self._close_open(run, question)
        given, skipped = await self._go_down(run, question)
        return await self._recorded(run, name, question, given, skipped)

    async def _close_open(self, run: Run, question: Question) -> None:
        """What an earlier run asked of an engine that answers at once, nobody will hear."""
        for row in await self.calls.rows_of(question.job, question.turn):
            if row.open and row.output is None:
                await self._local.lose(run, row)

    async def _go_down(self, run: Run, question: Question) -> tuple[_Given, list[Fallback]]:
        """The first answer that holds, and who was passed over without being asked."""
        accept = await asyncio.to_thread(accepting, _as_request(question))
        skipped, met = list[Fallback](), list[Fallback]()
        rows = await self.calls.rows_of(question.job, question.turn)
        for spec in self._in_order(question, rows):
            try:
                return await self._of(run, question, spec, accept), skipped
            except EngineFault as fault:
                self._counts.fell_back(spec.tier, fault.reason)
                met.append(Fallback(spec.name, fault.reason))
                found = await self.calls.rows_of(question.job, question.turn)
                if len(_failed(found)) == len(_failed(rows)):
                    skipped.append(met[-1])
                else:  # what was asked in vain may have cost
                    question = still_left(question, await self.calls.spent_of(question.job))
                rows = found
        raise await self._nobody(question, run, [*_failed(rows), *skipped], met)

    def _in_order(self, question: Question, rows: Sequence[CallRow]) -> list[EngineSpec]:
        """Who is asked in which order: whoever may be at work on it first of all, whoever failed at it least often before the others."""
        chosen = self._chosen(question)
        # An endpoint's answer that was booked, and not recorded, is there too.
        open_ = {row.engine for row in rows if row.open or (row.output and row.state == "answered")}
        # What our own crash lost says nothing of the engine: it is no reason to go on to one that costs.
        failures = Counter(row.engine for row in rows if row.state == "failed" or (row.state == "lost" and row.output))
        return sorted(chosen, key=lambda spec: (spec.name not in open_, failures[spec.name]))

    def _chosen(self, question: Question) -> list[EngineSpec]:
        assignment, catalogue = question.assignment, self._catalogue
        if assignment.model is not None and assignment.model not in _TIER_NAMES:
            named = catalogue.engines.get(assignment.model)
            if named is None:
                raise BadInput(
                    "The engine that this job names is no longer in models.toml.",
                    next_step="Submit it again without `model`, or with one of hub://models.",
                    details={"problems": ["model: unknown"]},
                )
            return [named]
        role = catalogue.roles.get(assignment.role or "")
        tiers = (Tier.BRONZE, *catalogue.after(Tier.BRONZE))
        usual = [spec for tier in tiers for spec in catalogue.of_tier(tier)]
        chosen = usual if role is None else [*catalogue.of_role(role), *usual]
        once = {spec.name: spec for spec in chosen if spec.tier is not Tier.CLOUD}
        return [*once.values(), *self._paid(question, [spec for spec in usual if spec.tier is Tier.CLOUD])]

    def _paid(self, question: Question, specs: Sequence[EngineSpec]) -> list[EngineSpec]:
        """Those of the cloud, the most worth asking first; without an address last, for they are only told of."""
        there = [Candidate(self._engines[spec.name], spec.tier) for spec in specs if spec.name in self._engines]
        left_s = (question.until - datetime.now(UTC)).total_seconds()
        ordered = by_worth(there, _as_request(question), remaining_s=left_s)
        return [*(each.engine.spec for each in ordered), *(spec for spec in specs if spec.name not in self._engines)]

    async def _of(self, run: Run, question: Question, spec: EngineSpec, accept: Callable[[Completion], None]) -> _Given:
        if spec.dialect == "sagemaker":
            return await self._of_endpoint(run, question, spec, accept)
        engine = self._engines.get(spec.name)
        if spec.url is None or engine is None:
            raise EngineFault("not_configured")
        deadline = self._local.deadline_of(question)
        if engine.asks_context:
            await engine.learn_context(deadline)
        ask = _ask_of(question, await engine.model(deadline), engine.context_tokens)
        self._check(question, spec, ask)
        attempt = max((row.attempt for row in await self.calls.rows_of(question.job, question.turn)), default=0) + 1
        asked = await self._local.answer(run, question, engine, ask, attempt)
        try:
            completion = _held(question, asked.completion, accept)
        except EngineFault as fault:
            async with run.fenced() as connection:
                await self.calls.answered(connection, asked.row, _counted(asked.completion, spec), spec.price)
                await self.calls.spoiled(connection, asked.row, fault.reason)
            raise
        return _Given(completion, spec, ask.model, asked.row)

    async def _of_endpoint(
        self, run: Run, question: Question, spec: EngineSpec, accept: Callable[[Completion], None]
    ) -> _Given:
        if spec.url is None or self._endpoint is None:
            raise EngineFault("not_configured")
        ask = _ask_of(question, spec.adapter or spec.model or "", spec.context_tokens)
        rows = await self.calls.rows_of(question.job, question.turn)
        if not any(row.engine == spec.name and row.output for row in rows):
            self._check(question, spec, ask)
        completion = await self._endpoint.answer(run, question, spec, ask)
        try:
            held = _held(question, completion, accept)
        except EngineFault as fault:
            answered = [
                row
                for row in await self.calls.rows_of(question.job, question.turn)
                if row.engine == spec.name and row.state == "answered"
            ]
            async with run.fenced() as connection:
                for row in answered:
                    await self.calls.spoiled(connection, row, fault.reason)
            raise
        return _Given(held, spec, ask.model or None, None)

    def _check(self, question: Question, spec: EngineSpec, ask: Ask) -> None:
        """Raise EngineFault for who is not to be asked this."""
        if (ask.offers and not spec.can_tools) or (ask.schema is not None and not spec.can_schema):
            raise EngineFault("cannot")
        if spec.price is None:
            return
        if question.assignment.cost_sensitivity == "high":
            raise EngineFault("unwanted")
        most = most_usd(spec.price, bound_of(ask, spec), ask.max_tokens)
        if question.usd_left is not None and most > question.usd_left:
            raise EngineFault("ceiling")

    async def _recorded(
        self, run: Run, name: str, question: Question, given: _Given, skipped: Sequence[Fallback]
    ) -> Answer:
        """The answer, once it is recorded: with the end of its asking and what that cost, in one commit."""
        kept: list[Answer] = []

        async def effect(connection: Connection) -> Json:
            if given.row is not None:
                counted = _counted(given.completion, given.spec)
                await self.calls.answered(connection, given.row, counted, given.spec.price)
            spent = await self.calls.spent_of(question.job, question.turn, connection=connection)
            rows = await self.calls.rows_of(question.job, question.turn, connection=connection)
            answer = Answer(
                text=clean(given.completion.text),
                finish=given.completion.finish,
                engine=given.spec.name,
                tier=given.spec.tier,
                model=given.model,
                calls=tuple(_cleaned(call) for call in given.completion.calls),
                usage=given.completion.usage,
                counted=given.completion.counted,
                cost_usd=None if spent.unpriced else spent.cost_usd,
                maybe_spent=spent.maybe_spent,
                # Where somebody answered, an engine without an address was not missed.
                fallbacks=(*_failed(rows), *(each for each in skipped if not is_absent(each))),
                seconds=given.completion.seconds,
            )
            kept[:] = [answer]
            await run.gets_on(connection)
            return answer.body()

        await _committed(run, name, effect)
        return kept[0]

    async def _nobody(
        self, question: Question, run: Run, fallbacks: Sequence[Fallback], met: Sequence[Fallback]
    ) -> BodyBrokerError | Park:
        """What it means that nobody answered: judged by what was met this time, told with all that was before."""
        reasons = frozenset(fallback.reason for fallback in met)
        if (
            question.usd_left is not None
            and "ceiling" in reasons
            and reasons <= {"ceiling", "not_configured", "cannot"}
        ):
            spent = await self.calls.spent_of(question.job)
            return too_dear(question.assignment.budget, spent)
        if reasons <= {"not_configured"}:
            return NotConfigured(
                "No engine that this job may ask has an address.",
                next_step="Ask the people who run this hub to set BODY_BROKER_BRONZE_URL or BODY_BROKER_SAGEMAKER_ENDPOINT (docs/bronze.md).",
                details={"engines": steps_of(fallbacks)},
            )
        said = f"No expert answered. {told_steps(fallbacks)}"
        error = unanswered(reasons, said, details={"engines": steps_of(fallbacks)})
        if isinstance(error, OverBudget):
            standing = "" if self._money is None else self._money(question.tenant)
            return Park(MONEY, wake_in_s=_MONEY_AGAIN_S, message=f"It goes on once there is money for it. {standing}")
        if isinstance(error, Unavailable):
            pause_s = min(_FIRST_PAUSE_S * 2.0 ** min(run.work.attempt - 1, 10), _LONGEST_PAUSE_S)
            error.retry_after_s = max(pause_s, rest_s(met, self._engines) or 0.0)
        return error


def step_of(turn: int) -> str:
    """The step that keeps the answer to a job's question."""
    return f"answer {turn}"


def _as_request(question: Question) -> InferenceRequest:
    """The question as those see it who judge answers and engines."""
    assignment = question.assignment
    return InferenceRequest(
        messages=question.messages,
        max_tokens=assignment.max_tokens,
        schema=_schema_of(question),
        cost_sensitivity=assignment.cost_sensitivity,
        requires_expert_reasoning=True,
    )


def _schema_of(question: Question) -> Mapping[str, Json] | None:
    """What the answer is held to: nothing while tools may be called, for a grammar of the answer leaves an engine no way to call one."""
    return None if question.offers and question.tool_choice != "none" else question.assignment.schema


def _ask_of(question: Question, model: str, context_tokens: int) -> Ask:
    """The question as an engine is asked it: no longer than its context and what is left of the job's budget allow.

    Raises:
        EngineFault: `too_long`: it does not hold the prompt and an answer.
    """
    assignment, schema = question.assignment, _schema_of(question)
    guess = int(prompt_bytes(question.messages, question.offers, schema) / BYTES_A_TOKEN)
    if guess + assignment.max_tokens > context_tokens:
        raise EngineFault("too_long")
    return Ask(
        model=model,
        messages=question.messages,
        max_tokens=max(1, min(assignment.max_tokens, question.tokens_left - guess)),
        offers=question.offers,
        tool_choice=question.tool_choice if question.offers else "auto",
        temperature=assignment.temperature,
        seed=assignment.seed,
        stop=assignment.stop,
        schema=schema,
        urgency=question.urgency,
    )


def _held(question: Question, completion: Completion, accept: Callable[[Completion], None]) -> Completion:
    """The answer, where it holds. Calls of tools are read by whoever makes them; where none may be made, its text must do.

    Raises:
        EngineFault: It does not hold.
    """
    if completion.calls and question.offers and question.tool_choice != "none":
        return completion
    if completion.calls:
        if not completion.text.strip():
            raise EngineFault("arguments")
        completion = replace(completion, calls=(), finish="stop")
    accept(completion)
    return completion


def _counted(completion: Completion, spec: EngineSpec) -> Usage | None:
    """What is booked of an answer; None where it costs and its engine did not say how much it was."""
    return completion.usage if completion.counted or spec.price is None else None


def _cleaned(call: ToolCall) -> ToolCall:
    return ToolCall(clean(call.id), clean(call.name), clean(call.arguments))


def _failed(rows: Sequence[CallRow]) -> list[Fallback]:
    """Who was asked and did not answer, in that order."""
    return [Fallback(row.engine, row.reason or "failed") for row in rows if row.state in {"failed", "lost"}]


async def _committed(run: Run, name: str, effect: Callable[[Connection], Awaitable[Json]]) -> None:
    """Commit a step; a lost connection is tried again for one lease, for an answer is minutes of somebody's work."""
    clock = asyncio.get_running_loop()
    end, tried = clock.time() + run.fence.lease_s, False
    while True:
        try:
            await run.commit(name, effect)
        except asyncpg.UniqueViolationError:
            if not tried:
                raise
            return  # the try before was committed, and only its answer was lost
        except LOST:
            if clock.time() >= end or run.fence.pool.is_closing():
                raise
            tried = True
            await asyncio.sleep(_TRY_AGAIN_S)
        else:
            return
