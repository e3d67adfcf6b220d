"""The sixteen faults, in every dialect: each is known for what it is, none is told as an answer, and the next engine is asked.

Down a chain of two engines: the first one fails, the second one answers. Time is virtual: no fault is waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from body_broker.errors import BadInput, Unavailable
from body_broker.storage.postgres import Pool
from tests.counterparts.faultwall.replies import DIALECTS, TEXT
from tests.counterparts.faultwall.wall import DialectName, Fault, Reply, Tool
from tests.tiers.asking import LORE, MOOD, Asking, ask
from tests.tiers.clock import Clock, settle
from tests.waiting import wait_until
from tiers.accepting import accepting
from tiers.catalogue import Caps
from tiers.chain import Candidate, Chain, Course, Exhausted, Interrupted, Outcome
from tiers.cost import CostLedger
from tiers.counts import Counts
from tiers.deadline import Deadline
from tiers.engine import Engine
from tiers.faults import Reason
from tiers.model import Fallback, InferenceRequest, Tier, Told
from tiers.unanswered import NotTaken, unanswered
from tiers.wire.base import Ask

LIMIT_S, DEADLINE_S = 60.0, 600.0


@dataclass(frozen=True)
class Case:
    """One fault: what it is told as, how much the engine's breaker moves, and how long it takes to be known.

    `opens` is what the one failure does to a breaker of five: nothing, one of five, or all of it at once.
    """

    name: str
    reason: Reason
    opens: str = "counts"
    takes_s: float = 0.0
    fault: Fault | None = None
    wants: str = "text"
    told: bool = False


CASES = (
    Case("refused", "refused"),
    Case("reset", "reset", fault="reset"),
    Case("429", "rate_limited", fault="rate_limited"),
    Case("429 with Retry-After", "rate_limited", "opens", fault="rate_limited_for"),
    Case("500", "failed", fault="failed"),
    Case("persistent 503", "overloaded", fault="unavailable"),
    Case("silent", "silent", takes_s=LIMIT_S, fault="silent"),
    Case("slow first token", "silent", takes_s=LIMIT_S, fault="slow_first"),
    Case("stall in the middle", "stalled", takes_s=LIMIT_S, fault="stall", told=True),
    Case("cut stream", "cut", fault="cut", told=True),
    Case("malformed chunk", "malformed", fault="malformed", told=True),
    Case("missing end", "cut", fault="no_end", told=True),
    Case("missing end after its finish", "cut", fault="no_done", told=True),
    Case("empty answer", "empty", "nothing", fault="empty"),
    Case("wrong schema", "schema", "nothing", fault="wrong_schema", wants="schema", told=True),
    Case("invalid tool arguments", "arguments", "nothing", fault="bad_arguments", wants="tool"),
    Case("budget exhausted", "budget", "opens", fault="budget"),
    Case("filtered", "withheld", "nothing", fault="filtered", told=True),
    Case("slow drip", "deadline", "nothing", takes_s=DEADLINE_S, fault="slow_drip", told=True),
)
WANTED: dict[str, dict[str, Any]] = {
    "text": {},
    "schema": {"schema": MOOD},
    "tool": {"offers": (LORE,), "tool_choice": "required"},
}
TOLD = [pytest.param(case, dialect, id=f"{case.name}-{dialect}") for case in CASES if case.told for dialect in DIALECTS]
EACH = [pytest.param(case, dialect, id=f"{case.name}-{dialect}") for case in CASES for dialect in DIALECTS]


class Listening:
    """Hears an answer, and takes pieces back where it may."""

    def __init__(self, *, restarts: bool = True) -> None:
        self.restarts, self.text, self.taken_back = restarts, "", 0

    async def __call__(self, told: Told) -> None:
        if told.kind == "text":
            self.text += told.text
        elif told.kind == "restart":
            self.text, self.taken_back = "", self.taken_back + 1


def other_than(dialect: DialectName) -> DialectName:
    return "vllm" if dialect != "vllm" else "trtllm"


@dataclass
class Failing:
    """Two engines, of which the first one fails."""

    asking: Asking
    ledger: CostLedger
    clock: Clock

    def pair(self, dialect: DialectName) -> tuple[Engine, Engine]:
        limits: dict[str, Any] = {"ttft_s": LIMIT_S, "stall_s": LIMIT_S}
        return (
            self.asking.engine(dialect, self.clock, **limits),
            self.asking.engine(other_than(dialect), self.clock, name="second", **limits),
        )

    def begin(self, case: Case, engines: tuple[Engine, ...], listener: Listening | None) -> asyncio.Task[Outcome]:
        request = InferenceRequest(prompt="?", **{k: v for k, v in WANTED[case.wants].items() if k != "tool_choice"})

        def make(_engine: Engine, model: str) -> Ask:
            return ask(model=model, **WANTED[case.wants])

        course = Course(
            make=make,
            tenant="person:anna",
            deadline=Deadline.after(DEADLINE_S),
            listener=listener,
            accept=accepting(request),
        )
        candidates = [Candidate(engine, Tier.SILVER) for engine in engines]
        return asyncio.create_task(Chain(self.ledger, Counts()).run(candidates, course))

    async def meet(self, case: Case, dialect: DialectName) -> None:
        """The first engine has this fault from now on."""
        if case.fault is None:
            await self.asking.wall.refuse(dialect)
        else:
            self.asking.wall.fault(dialect, case.fault, **({"gap_s": 9.0} if case.fault == "slow_drip" else {}))

    async def pass_time(self, case: Case, dialect: DialectName, done: Callable[[], bool]) -> None:
        """As much as the fault takes, and not before the engine was asked; until a moment before, nothing is decided."""
        if not case.takes_s:
            return
        await wait_until(lambda: self.asking.wall.inside[dialect] == 1, "it was asked")
        await settle()
        await self.clock.pass_by(case.takes_s - 6)
        assert not done(), "it was given up too early"
        await self.clock.pass_by(8)


@pytest.fixture
async def failing(asking: Asking, clock: Clock, pool: Pool) -> AsyncIterator[Failing]:
    async with CostLedger.opened(pool, Caps({}, {}, {}), Counts()) as ledger:
        yield Failing(asking, ledger, clock)


def test_the_cases_are_the_sixteen_faults_of_the_issue_and_one_more() -> None:
    # Two of them have two forms: 429 with and without Retry-After, and an end that is missing in part or whole.
    assert len(CASES) == 16 + 2 + 1, "and an answer that its own filter withheld"


@pytest.mark.parametrize(("case", "dialect"), EACH)
async def test_each_fault_is_known_in_each_dialect_and_the_next_engine_answers(
    failing: Failing, case: Case, dialect: DialectName
) -> None:
    first, second = failing.pair(dialect)
    await failing.meet(case, dialect)
    heard = Listening()
    task = failing.begin(case, (first, second), heard)
    await failing.pass_time(case, dialect, task.done)

    if case.reason == "deadline":  # all the time there was is over: nobody else can be asked
        with pytest.raises(Exhausted) as ended:
            await task
        assert ended.value.fallbacks == (Fallback(dialect, "deadline"),)
    else:
        outcome = await task
        assert outcome.fallbacks == (Fallback(dialect, case.reason),)
        assert outcome.candidate.engine is second
        assert_whole(case, outcome, heard)
    assert heard.taken_back == int(case.told)
    assert second.breaker.state == "closed"
    assert (first.in_flight, second.in_flight) == (0, 0)
    await wait_until(lambda: failing.asking.wall.inside[dialect] == 0, "the counterpart is free")


def assert_whole(case: Case, outcome: Outcome, heard: Listening) -> None:
    """The second engine's answer, all of it, and nothing else was left with who listened."""
    match case.wants:
        case "text":
            assert outcome.completion.text == heard.text == TEXT
        case "schema":
            assert outcome.completion.text == heard.text == '{"mood": "calm"}'
        case _:
            assert outcome.completion.calls[0].arguments == '{"query": "x"}'


@pytest.mark.parametrize(("case", "dialect"), EACH)
async def test_alone_each_fault_ends_without_an_answer_and_moves_its_breaker_as_far_as_it_should(
    failing: Failing, case: Case, dialect: DialectName
) -> None:
    first, _ = failing.pair(dialect)
    await failing.meet(case, dialect)
    times = 1 if case.reason == "deadline" else 5
    for number in range(1, times + 1):
        if first.breaker.state == "open":
            break
        task = failing.begin(case, (first,), None)
        await failing.pass_time(case, dialect, task.done)
        with pytest.raises(Exhausted) as ended:
            await task
        assert ended.value.fallbacks == (Fallback(dialect, case.reason),)
        opened = case.opens == "opens" or (case.opens == "counts" and number == 5)
        assert first.breaker.state == ("open" if opened else "closed")


@pytest.mark.parametrize(("case", "dialect"), TOLD)
async def test_who_cannot_take_pieces_back_is_told_that_the_answer_broke_off(
    failing: Failing, case: Case, dialect: DialectName
) -> None:
    first, second = failing.pair(dialect)
    await failing.meet(case, dialect)
    heard = Listening(restarts=False)
    task = failing.begin(case, (first, second), heard)
    await failing.pass_time(case, dialect, task.done)

    with pytest.raises(Interrupted):
        await task
    assert heard.text
    assert failing.asking.wall.asked(other_than(dialect)) == []


def test_what_every_engine_withholds_is_told_as_the_request_s_own_fault() -> None:
    assert isinstance(unanswered(["not_configured", "withheld"], "No model answered."), NotTaken)
    assert isinstance(unanswered(["overloaded", "withheld"], "No model answered."), Unavailable)


def test_an_answer_that_max_tokens_cut_is_the_request_s_own_fault() -> None:
    refused = unanswered(["open", "too_short"], "No model answered.")
    assert isinstance(refused, BadInput)
    assert refused.next_step == "Ask for more max_tokens."


def test_when_to_ask_again_is_told_only_where_rest_is_all_that_is_waited_for() -> None:
    assert unanswered(["open", "not_configured"], "No model answered.", retry_after_s=12.5).retry_after_s == 12.5
    assert unanswered(["open", "overloaded"], "No model answered.", retry_after_s=12.5).retry_after_s is None


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_fault_that_passes_leaves_an_engine_as_good_as_new(failing: Failing, dialect: DialectName) -> None:
    first, second = failing.pair(dialect)
    case = CASES[4]
    for _ in range(4):
        await failing.meet(case, dialect)
        assert (await failing.begin(case, (first, second), None)).fallbacks
    failing.asking.wall.fault(dialect, None)
    failing.asking.wall.say(dialect, Reply(text="Aye", calls=(Tool("search_lore", {"query": "x"}),)))

    outcome = await failing.begin(case, (first, second), None)

    assert (outcome.completion.text, outcome.fallbacks) == ("Aye", ())
    for _ in range(4):
        await failing.meet(case, dialect)
        await failing.begin(case, (first, second), None)
    assert first.breaker.state == "closed", "four failures, a success and four failures are no five in a row"
