"""Going down a chain: who is asked next, what is taken back, what is paid, and when it stops; engines that fail for real, money in PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from decimal import Decimal

import pytest

from body_broker.calls import Json
from body_broker.storage.postgres import Pool
from tests.counterparts.faultwall.wall import KEY, MODEL, DialectName, FaultWall, Reply, fault_wall
from tests.tiers.clock import Clock, settle
from tests.waiting import wait_until
from tiers.catalogue import Caps, EngineSpec, Price
from tiers.chain import Candidate, Chain, Course, Exhausted, Interrupted, Outcome, most_usd
from tiers.cost import CostLedger
from tiers.counts import Counts
from tiers.deadline import Deadline
from tiers.engine import Engine
from tiers.faults import EngineFault
from tiers.model import Fallback, Message, Tier, Told, ToolOffer
from tiers.wire.base import Ask, Completion

# A million dollars for a million tokens is a dollar a token: figures that can be read.
DOLLAR_A_TOKEN = Price(Decimal(1_000_000), Decimal(1_000_000), Decimal(1_000_000), "a test", "today")
CAPS = Caps({Tier.CLOUD: Decimal(100_000)}, {Tier.CLOUD: Decimal(100_000)}, {"person:poor": Decimal(3)})
ANNA, POOR = "person:anna", "person:poor"
MESSAGES = (Message(role="user", content="Who rows?"),)
TOKENS = 20
BOUND = len("Who rows?") + 16 + TOKENS
"""The most that a request can have, in tokens, so in dollars."""
AYE = Reply(text="Aye, at dusk.", usage=(7, 4, 0))


class Heard:
    def __init__(self, *, restarts: bool = True) -> None:
        self.restarts, self.told = restarts, list[Told]()

    async def __call__(self, told: Told) -> None:
        self.told.append(told)

    def kinds(self) -> list[str]:
        """Each kind once in a row."""
        kinds = [told.kind for told in self.told]
        return [kind for place, kind in enumerate(kinds) if place == 0 or kinds[place - 1] != kind]


def make(_engine: Engine, model: str) -> Ask:
    return Ask(model=model, messages=MESSAGES, max_tokens=TOKENS)


@dataclass
class Down:
    """A chain, the engines it goes down, and the money."""

    wall: FaultWall
    ledger: CostLedger
    engines: dict[str, Engine]

    async def run(
        self,
        *names: DialectName,
        tenant: str = ANNA,
        within_s: float = 60,
        needs_s: float = 0,
        listener: Heard | None = None,
        accept: Callable[[Completion], None] | None = None,
        cost_ceiling: float | None = None,
        outside: bool = False,
    ) -> Outcome:
        """Down these engines; the last is the one that needs time."""
        candidates = [Candidate(self.engines[name], self.engines[name].spec.tier) for name in names]
        candidates[-1] = replace(candidates[-1], needs_s=needs_s)
        course = Course(
            make=make,
            tenant=tenant,
            deadline=Deadline.after(within_s),
            listener=listener,
            accept=accept,
            cost_ceiling=cost_ceiling,
            outside=outside,
        )
        return await Chain(self.ledger, Counts()).run(candidates, course)

    async def asking(self, name: DialectName, ask: Ask) -> Outcome:
        """This, of one engine."""
        course = Course(make=lambda _engine, _model: ask, tenant=ANNA, deadline=Deadline.after(60))
        return await Chain(self.ledger, Counts()).run([Candidate(self.engines[name], Tier.CLOUD)], course)

    async def booked(self) -> tuple[Decimal, Decimal]:
        """What is reserved and what is spent, in dollars."""
        await self.ledger.settled()
        figures = await self.ledger.figures()
        return next(((f.reserved_usd, f.spent_usd) for f in figures if f.asker == "*"), (Decimal(0), Decimal(0)))


@pytest.fixture
async def down(pool: Pool) -> AsyncIterator[Down]:
    """vllm and trtllm cost nothing; openai and anthropic cost a dollar a token."""
    async with AsyncExitStack() as stack:
        wall = await stack.enter_async_context(fault_wall("vllm", "trtllm", "openai", "anthropic"))
        spec = EngineSpec(name="", tier=Tier.SILVER, dialect="vllm", key=KEY, model=MODEL, ttft_s=120, stall_s=120)
        engines = {
            name: Engine(
                replace(
                    spec,
                    name=name,
                    dialect=name,
                    url=url,
                    tier=Tier.CLOUD if name in {"openai", "anthropic"} else Tier.SILVER,
                    price=DOLLAR_A_TOKEN if name in {"openai", "anthropic"} else None,
                ),
                Counts(),
            )
            for name, url in wall.url.items()
        }
        for engine in engines.values():
            stack.push_async_callback(engine.close)
        ledger = await stack.enter_async_context(CostLedger.opened(pool, CAPS, Counts()))
        yield Down(wall, ledger, {str(name): engine for name, engine in engines.items()})


def refuse(_completion: Completion) -> None:
    raise EngineFault("schema")


async def test_the_first_engine_that_answers_is_the_last_that_is_asked(down: Down) -> None:
    down.wall.say("vllm", AYE)

    outcome = await down.run("vllm", "trtllm")

    assert outcome.completion.text == "Aye, at dusk."
    assert outcome.candidate.engine.spec.name == "vllm"
    assert (outcome.fallbacks, outcome.cost_usd) == ((), 0.0)
    assert down.wall.asked("trtllm") == []


async def test_each_step_down_is_told_with_its_reason(down: Down) -> None:
    await down.wall.refuse("vllm")
    down.wall.fault("trtllm", "unavailable")
    heard = Heard()

    outcome = await down.run("vllm", "trtllm", "openai", listener=heard)

    assert outcome.fallbacks == (Fallback("vllm", "refused"), Fallback("trtllm", "overloaded"))
    assert [t.text for t in heard.told if t.kind == "fallback"] == ["vllm: refused", "trtllm: overloaded"]
    assert "".join(t.text for t in heard.told if t.kind == "text") == outcome.completion.text


async def test_where_none_answers_each_one_is_named(down: Down) -> None:
    down.wall.fault("vllm", "failed")
    down.wall.fault("trtllm", "reset")

    with pytest.raises(Exhausted) as ended:
        await down.run("vllm", "trtllm")

    assert ended.value.fallbacks == (Fallback("vllm", "failed"), Fallback("trtllm", "reset"))
    assert not isinstance(ended.value, Interrupted)


@pytest.mark.parametrize("outside", [True, False])
async def test_pieces_that_were_told_are_taken_back_from_whoever_can_give_them(
    down: Down,
    outside: bool,  # noqa: FBT001  # pytest's
) -> None:
    down.wall.fault("vllm", "cut")
    heard = Heard()

    outcome = await down.run("vllm", "trtllm", listener=heard, outside=outside)

    assert heard.kinds() == ["text", "restart", "fallback", "text"]
    assert {told.outside for told in heard.told if told.kind in {"text", "restart"}} == {outside}
    restart = next(place for place, told in enumerate(heard.told) if told.kind == "restart")
    assert "".join(t.text for t in heard.told[restart:] if t.kind == "text") == outcome.completion.text
    assert outcome.fallbacks == (Fallback("vllm", "cut"),)


async def test_who_cannot_give_pieces_back_gets_no_second_answer_behind_the_first_half(down: Down) -> None:
    down.wall.fault("vllm", "cut")
    heard = Heard(restarts=False)

    with pytest.raises(Interrupted) as ended:
        await down.run("vllm", "trtllm", listener=heard)

    assert ended.value.fallbacks == (Fallback("vllm", "cut"),)
    assert heard.kinds() == ["text"]
    assert down.wall.asked("trtllm") == []


async def test_before_the_first_piece_nothing_needs_to_be_taken_back(down: Down) -> None:
    down.wall.fault("vllm", "unavailable")
    heard = Heard(restarts=False)

    await down.run("vllm", "trtllm", listener=heard)

    assert heard.kinds() == ["fallback", "text"]


async def test_an_answer_that_does_not_hold_is_none_and_is_paid_all_the_same(down: Down) -> None:
    down.wall.say("openai", AYE)
    down.wall.say("anthropic", AYE)

    with pytest.raises(Exhausted) as ended:
        await down.run("openai", "anthropic", accept=refuse)

    assert ended.value.fallbacks == (Fallback("openai", "schema"), Fallback("anthropic", "schema"))
    assert ended.value.cost_usd == 22.0
    assert await down.booked() == (0, 22)


async def test_when_the_time_is_over_nobody_else_is_asked(down: Down, clock: Clock) -> None:
    down.wall.fault("vllm", "silent")
    running = asyncio.create_task(down.run("vllm", "trtllm", within_s=60))
    await wait_until(lambda: down.wall.inside["vllm"], "the engine is asked")

    clock.move(61)

    with pytest.raises(Exhausted) as ended:
        await running
    assert ended.value.fallbacks == (Fallback("vllm", "deadline"),)
    assert down.wall.asked("trtllm") == []


async def test_a_silent_engine_is_left_at_its_limit_and_the_next_one_answers(down: Down, clock: Clock) -> None:
    down.wall.fault("vllm", "silent")
    running = asyncio.create_task(down.run("vllm", "trtllm", within_s=600))
    await wait_until(lambda: down.wall.inside["vllm"], "the engine is asked")
    clock.move(119)
    await settle()
    assert not running.done()

    clock.move(2)

    assert (await running).fallbacks == (Fallback("vllm", "silent"),)
    await wait_until(lambda: not down.wall.inside["vllm"], "the silent engine is rid of the request")


async def test_an_engine_that_needs_more_time_than_is_left_is_not_asked(down: Down) -> None:
    down.wall.fault("vllm", "failed")

    with pytest.raises(Exhausted) as ended:
        await down.run("vllm", "trtllm", within_s=60, needs_s=61)

    assert ended.value.fallbacks == (Fallback("vllm", "failed"), Fallback("trtllm", "too_slow"))
    assert down.wall.asked("trtllm") == []


async def test_what_was_used_is_paid_and_the_rest_of_the_reservation_given_back(down: Down) -> None:
    down.wall.say("openai", AYE)

    outcome = await down.run("openai")

    assert outcome.cost_usd == 11.0
    assert await down.booked() == (0, 11)


async def test_an_engine_that_did_not_count_costs_all_that_was_set_aside_and_nobody_says_how_much(down: Down) -> None:
    down.wall.say("openai", replace(AYE, counted=False))

    outcome = await down.run("openai")

    assert outcome.cost_usd is None
    assert await down.booked() == (0, BOUND)


@pytest.mark.parametrize("more", ["schema", "offers"])
async def test_a_schema_and_tools_are_set_aside_for_too_with_what_the_provider_adds_for_them(
    down: Down, more: str
) -> None:
    description = "x" * 500
    schema: dict[str, Json] = {
        "type": "object",
        "description": description,
        "properties": {},
        "additionalProperties": False,
    }
    offer = ToolOffer("row", description, {"type": "object", "properties": {}})
    ask = Ask(model=MODEL, messages=MESSAGES, max_tokens=TOKENS)
    down.wall.say("openai", replace(AYE, counted=False))

    await down.asking("openai", replace(ask, schema=schema) if more == "schema" else replace(ask, offers=(offer,)))

    _, spent = await down.booked()
    assert spent >= BOUND + len(description) + down.engines["openai"].spec.preamble_tokens


@pytest.mark.parametrize(
    ("fault", "spent"),
    [
        *((refused, 0) for refused in ("unavailable", "rate_limited", "unauthorised", "too_long")),
        *((sent, BOUND) for sent in ("failed", "reset", "cut", "empty", "error_inside")),
    ],
)
async def test_a_fault_is_paid_only_where_something_may_have_been_generated(down: Down, fault: str, spent: int) -> None:
    down.wall.always["openai"] = Reply(fault=fault)  # pyright: ignore[reportArgumentType]  # of the list above

    outcome = await down.run("openai", "vllm")

    assert outcome.candidate.engine.spec.name == "vllm"
    assert outcome.cost_usd == (None if spent else 0.0)
    assert await down.booked() == (0, spent)


async def test_a_client_that_leaves_has_spent_what_was_set_aside_and_frees_the_engine(down: Down) -> None:
    down.wall.fault("openai", "stall")
    running = asyncio.create_task(down.run("openai", "vllm", listener=Heard()))
    await wait_until(lambda: down.wall.inside["openai"], "the engine is asked")

    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running
    await wait_until(lambda: not down.wall.inside["openai"], "the engine's place is free")
    assert down.engines["openai"].in_flight == 0
    assert await down.booked() == (0, BOUND)


@pytest.mark.parametrize("name", ["openai", "anthropic"])
async def test_an_error_in_the_middle_of_an_answer_is_paid_whatever_it_says(down: Down, name: DialectName) -> None:
    """`overloaded` before an answer costs nothing; what was generated before it does."""
    down.wall.fault(name, "error_inside")

    outcome = await down.run(name, "vllm", listener=Heard())

    assert outcome.fallbacks[0].reason in {"overloaded", "failed", "rate_limited"}
    assert outcome.cost_usd is None
    assert await down.booked() == (0, BOUND)


async def test_a_client_that_leaves_while_it_waits_for_an_engine_has_spent_nothing(down: Down) -> None:
    engine = down.engines["openai"] = Engine(replace(down.engines["openai"].spec, concurrency=1), Counts())
    down.wall.fault("openai", "stall")
    ahead = asyncio.create_task(down.run("openai"))
    await wait_until(lambda: down.wall.inside["openai"], "the engine is busy")
    waiting = asyncio.create_task(down.run("openai"))
    await wait_until(lambda: engine.lane.waiting, "the next one waits")

    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)

    assert await down.booked() == (BOUND, 0), "that of the one ahead"
    ahead.cancel()
    await asyncio.gather(ahead, return_exceptions=True)
    await engine.close()


async def test_an_outcome_has_the_model_that_was_asked_whatever_the_engine_serves_by_then(down: Down) -> None:
    engine = down.engines["vllm"] = Engine(replace(down.engines["vllm"].spec, model=None), Counts())

    def gone(_completion: Completion) -> None:
        down.wall.models = ()

    outcome = await down.run("vllm", accept=gone)
    await engine.close()

    assert outcome.model == MODEL


async def test_beyond_a_cap_nothing_that_costs_is_asked_and_what_is_free_still_answers(down: Down) -> None:
    outcome = await down.run("openai", "vllm", tenant=POOR)

    assert outcome.fallbacks == (Fallback("openai", "budget"),)
    assert outcome.cost_usd == 0.0
    assert down.wall.asked("openai") == []
    assert await down.booked() == (0, 0)


async def test_a_ceiling_holds_over_all_the_engines_of_one_request(down: Down) -> None:
    down.wall.say("openai", AYE)
    # Room for the first request's bound, and for no second one beside the 11 dollars that the first came to.
    ceiling = BOUND + 10.0

    with pytest.raises(Exhausted) as ended:
        await down.run("openai", "anthropic", accept=refuse, cost_ceiling=ceiling)

    assert ended.value.fallbacks == (Fallback("openai", "schema"), Fallback("anthropic", "ceiling"))
    assert ended.value.cost_usd == 11.0
    assert down.wall.asked("anthropic") == []


async def test_a_ceiling_allows_nothing_more_once_nobody_knows_what_was_spent(down: Down) -> None:
    down.wall.fault("openai", "cut")

    outcome = await down.run("openai", "anthropic", "vllm", cost_ceiling=10_000)

    assert outcome.fallbacks == (Fallback("openai", "cut"), Fallback("anthropic", "ceiling"))
    assert outcome.cost_usd is None


def test_the_most_that_a_request_can_cost_takes_each_byte_for_a_token() -> None:
    price = Price(Decimal("0.25"), Decimal("2.00"), Decimal("0.025"), "", "")

    assert most_usd(price, 4_000, 500) == pytest.approx(0.002)


async def test_an_engine_that_alone_knows_its_model_is_asked_for_it_once(down: Down) -> None:
    engine = down.engines["vllm"] = Engine(replace(down.engines["vllm"].spec, model=None), Counts())

    for _ in range(2):
        await down.run("vllm")
    await engine.close()

    assert [seen.body["model"] for seen in down.wall.asked("vllm")] == [MODEL, MODEL]


async def test_an_engine_with_several_models_is_not_asked_for_any_without_a_name(down: Down) -> None:
    down.wall.models = (MODEL, "another")
    engine = down.engines["vllm"] = Engine(replace(down.engines["vllm"].spec, model=None), Counts())

    outcome = await down.run("vllm", "trtllm")
    await engine.close()

    assert outcome.fallbacks == (Fallback("vllm", "rejected"),)
    assert down.wall.asked("vllm") == []


async def test_an_engine_that_does_not_even_say_its_model_opens_its_breaker(down: Down) -> None:
    await down.wall.refuse("vllm")
    spec = replace(down.engines["vllm"].spec, model=None, failure_threshold=2)
    engine = down.engines["vllm"] = Engine(spec, Counts())

    reasons = [(await down.run("vllm", "trtllm")).fallbacks[0].reason for _ in range(3)]
    await engine.close()

    assert reasons == ["refused", "refused", "open"]


async def test_no_candidates_is_the_end_at_once(down: Down) -> None:
    with pytest.raises(Exhausted) as ended:
        await Chain(down.ledger, Counts()).run((), Course(make=make, tenant=ANNA, deadline=Deadline.after(1)))

    assert (ended.value.fallbacks, ended.value.cost_usd) == ((), 0.0)
