"""Owns one job of an expert from begin to end: questions, tools, follow-ups and the result, each recorded, so that a crash repeats none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

import orjson

from body_broker.calls import Json
from body_broker.errors import BadInput, NotConfigured
from body_broker.work.run import Run
from tiers.accepting import fitting
from tiers.bronze.acting import Hands, Stands
from tiers.bronze.asking import Experts
from tiers.bronze.budgets import left_of, until_of
from tiers.bronze.model import Answer, Assignment, Finished, Question, Shape, Shaped, Unfit
from tiers.bronze.results import is_made
from tiers.bronze.transcript import ReadCall, Transcript
from tiers.hubtools import HubTools
from tiers.model import prompt_bytes

UNFIT_MAX = 2
"""How often an answer is asked for again of which no result could be made."""
URGENCY = 0.3
"""Of a job's questions: before what is only background, after everybody who waits for an answer."""


_NO_TEXT = "There is no text in the answer."
_AS_JSON = "Now give the result itself: one JSON value as it was asked for, and nothing else."


class Publishes(Protocol):
    """Keeps what came of jobs."""

    async def publish(self, run: Run, finished: Finished, shaped: Shaped | None) -> Json:
        """The result as it is told; None for `shaped` where an earlier run made it."""
        ...


class AnswersUnfit(BadInput):
    """No result could be made of what the models answered, however often they were told why."""

    advice = "Submit the job again with clearer words, more max_tokens, or another model."


class Runner:
    """The handler of experts' jobs, of every kind.

    Every answer, every reading of calls and every outcome of a call is recorded before the next thing happens. A worker that takes a
    job over goes through it from the start, and finds all of that again: nothing recorded is asked or done twice.

    Args:
        experts: Answer questions.
        results: Keeps what came of it.
        tools: Gives the hub's tools.
        stands: Says for whom a job works, and refuses where their login was ended.
        shapes: By kind what makes a result of the answers.
    """

    def __init__(
        self,
        *,
        experts: Experts,
        results: Publishes,
        tools: Callable[[], HubTools],
        stands: Stands,
        shapes: Mapping[str, Shape],
    ) -> None:
        self._experts, self._results, self._tools, self._stands, self._shapes = experts, results, tools, stands, shapes

    async def __call__(self, run: Run) -> Json:
        """The result of the job.

        Raises:
            Park: It waits for people, for an endpoint or for money.
            LeaseLost: The run no longer owns its work.
            BodyBrokerError: What keeps it from being done.
        """
        assignment = Assignment.parse(run.input)
        shape = self._shapes.get(assignment.kind)
        if shape is None:
            raise NotConfigured(f"This hub does not run jobs of the kind {assignment.kind}.")
        job = _Job(run, assignment, self._experts, self._tools, self._stands)
        await job.answers()
        while True:
            why = job.known_unfit()
            if why is None and is_made(run):
                return await self._results.publish(run, await job.finished(), None)
            if why is None:
                finished = await job.finished()
                try:
                    shaped = await shape(finished)
                except Unfit as unfit:
                    why = unfit.why
                else:
                    await job.tell("The result is stored.")
                    return await self._results.publish(run, finished, shaped)
            await job.once_more(why)


class _Job:
    """One run of one job."""

    def __init__(
        self, run: Run, assignment: Assignment, experts: Experts, tools: Callable[[], HubTools], stands: Stands
    ) -> None:
        self._run, self._assignment, self._experts = run, assignment, experts
        self._until = until_of(run, assignment.budget)
        self._names = experts.tools_of(assignment)
        self._hands = Hands(run, tools, stands, names=self._names, budget=assignment.budget, until=self._until)
        outside = assignment.outside or run.origin.tainted
        self._said = Transcript.begun(assignment, with_tools=bool(self._names), outside=outside)
        self._fits: Callable[[Json], bool] | None = None
        self._last = False
        self._turn = self._calls = self._unfit = 0

    async def answers(self) -> None:
        """One answer for the messages and one for each follow-up."""
        await self._part()
        for words in self._assignment.follow_ups:
            self._said.asks(words)
            await self._part()

    def known_unfit(self) -> str | None:
        """Why an earlier run could make no result of the answers so far."""
        known = self._run.work.steps.get(self._unfit_step)
        return None if known is None else known["why"]

    async def once_more(self, why: str) -> None:
        """Another last answer, in place of one that cannot be used.

        Raises:
            AnswersUnfit: There were enough of them.
        """
        if self._unfit >= UNFIT_MAX:
            raise AnswersUnfit(f"No result could be made of the answers. {why}")
        self._unfit += 1

        async def effect() -> Json:
            return {"why": why}

        await self._run.step(self._unfit_step, effect)
        self._said.takes_back(why)
        await self._part()

    async def finished(self) -> Finished:
        """All answers, with what they cost."""
        said, spent = self._said, await self._experts.calls.spent_of(self._run.id)
        return Finished(
            job=self._run.id,
            owner=self._run.origin.asker,
            assignment=self._assignment,
            answers=tuple(said.answers),
            engines=tuple(dict.fromkeys(answer.engine for answer in said.given)),
            models=tuple(dict.fromkeys(answer.model for answer in said.given if answer.model is not None)),
            tools=tuple(said.used),
            fallbacks=tuple(fallback for answer in said.given for fallback in answer.fallbacks),
            usage=spent.usage,
            cost_usd=None if spent.unpriced else spent.cost_usd,
            maybe_spent=spent.maybe_spent,
            outside=said.outside,
            truncated=said.truncated,
        )

    async def tell(self, words: str) -> None:
        """Say how far it is, in parts of what is asked for."""
        await self._run.progress(len(self._said.answers), 1 + len(self._assignment.follow_ups), words)

    @property
    def _unfit_step(self) -> str:
        return f"unfit {self._turn}"

    async def _part(self) -> None:
        """Questions and calls, until there is an answer without calls that is what was asked for."""
        self._last = False
        while not await self._is_whole(answer := await self._answer()):
            if answer.calls:
                await self._round(answer)
            elif not answer.text.strip():
                self._wants_text(answer)
            else:
                self._said.wants(answer, ())
                self._said.asks(_AS_JSON)
                self._last = True
        self._said.answered(answer)

    def _wants_text(self, answer: Answer) -> None:
        """Ask once more where nothing is left of an answer that its engine did not count as empty: it is no part of anything."""
        if self._unfit >= UNFIT_MAX:
            raise AnswersUnfit(f"No result could be made of the answers. {_NO_TEXT}")
        self._unfit += 1
        self._said.wants(answer, ())
        self._said.asks(f"{_NO_TEXT} Answer once more, whole.")

    async def _round(self, answer: Answer) -> None:
        """The calls of one answer, one after another."""
        calls = await self._hands.read(self._turn, answer)
        self._said.wants(answer, calls)
        for place, call in enumerate(calls, 1):
            await self._make(place, call)
        self._said.leaves_out(len(answer.calls) - len(calls))

    async def _is_whole(self, answer: Answer) -> bool:
        """Whether nothing more is to be done for it. Where tools may be called, no engine holds it to the schema: then it is looked at here."""
        schema = self._assignment.schema
        if answer.calls or not answer.text.strip():
            return False
        if schema is None or not self._names or self._last:
            return True
        if self._fits is None:
            self._fits = await asyncio.to_thread(fitting, schema, "the job")
        try:
            return self._fits(orjson.loads(answer.text))
        except orjson.JSONDecodeError:
            return False

    async def _make(self, place: int, call: ReadCall) -> None:
        self._calls += 1
        made = None
        if call.why is None and self._calls <= self._assignment.budget.calls:
            await self.tell(
                f"{call.counted_as} is called (call {self._calls}, at most {self._assignment.budget.calls})."
            )
            made = await self._hands.make(self._turn, place, call)
        self._said.tells(call, made)
        self._hands.outside = self._said.outside

    async def _answer(self) -> Answer:
        """The answer to the next question: the recorded one, or a new one within what is left of the budget."""
        self._turn += 1
        known = self._experts.recorded(self._run, self._turn)
        return known if known is not None else await self._ask()

    async def _ask(self) -> Answer:
        run, assignment, said = self._run, self._assignment, self._said
        self._hands.outside = said.outside
        asker = await self._hands.asker()
        offered = await self._hands.offered()
        left = left_of(
            assignment.budget,
            await self._experts.calls.spent_of(run.id),
            prompt_size=prompt_bytes(said.messages, offered, assignment.schema),
            max_tokens=assignment.max_tokens,
            until=self._until,
        )
        await self.tell(f"An expert is asked (question {self._turn}).")
        question = Question(
            job=run.id,
            turn=self._turn,
            assignment=assignment,
            messages=tuple(said.messages),
            offers=offered,
            tool_choice="none" if self._last or self._calls >= assignment.budget.calls else "auto",
            tenant=asker.tenant,
            outside=said.outside,
            tokens_left=left.tokens,
            usd_left=left.usd,
            until=self._until,
            urgency=URGENCY,
        )
        return await self._experts.answer(run, question)
