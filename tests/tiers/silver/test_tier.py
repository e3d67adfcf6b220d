"""The silver tier over engines of the FaultWall, without tools: personas, what stands in for an answer, and what is never told as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from body_broker.calls import Caller
from body_broker.errors import BadInput, Unavailable
from body_broker.storage.postgres import Pool
from tests.counterparts.faultwall.wall import MODEL, Fault, FaultWall, Reply, fault_wall
from tests.tiers.clock import Clock
from tests.waiting import wait_until
from tiers.catalogue import Caps, EngineSpec
from tiers.chain import Candidate, Chain
from tiers.cost import CostLedger
from tiers.counts import Counts
from tiers.deadline import Deadline
from tiers.engine import Engine
from tiers.hubtools import HubTools
from tiers.model import Asker, Fallback, InferenceRequest, InferenceResult, Message, Tier, Told
from tiers.router import Decision
from tiers.silver.tier import SilverTier
from tiers.toolloop import ToolLoop

pytestmark = pytest.mark.anyio

SCHEMA = {"type": "object", "properties": {"mood": {"type": "string"}}, "required": ["mood"]}
NOT_THERE = (Fallback("openai", "not_configured"),)


async def _nobody(*_: Any, **__: Any) -> str:  # whatever a mint is given
    raise AssertionError("nothing here calls tools")


class Heard:
    """Hears an answer as it comes."""

    def __init__(self, *, restarts: bool) -> None:
        self.restarts, self.told = restarts, list[Told]()

    async def __call__(self, told: Told) -> None:
        self.told.append(told)

    @property
    def text(self) -> str:
        return "".join(told.text for told in self.told if told.kind == "text")


@dataclass
class Silver:
    """A silver tier with a target and a smaller engine, both at the wall."""

    wall: FaultWall
    tier: SilverTier
    target: Engine
    small: Engine

    async def ask(
        self,
        request: InferenceRequest,
        *engines: Engine,
        who: str = "person:anna",
        listener: Heard | None = None,
        seconds: float = 60.0,
    ) -> InferenceResult:
        """An answer of these engines; of none where none is given."""
        asker = Asker(caller=Caller(chain=(who,), roles={}, session=who), conversation=f"cnv_{who}")
        candidates = tuple(Candidate(engine, Tier.SILVER) for engine in engines)
        decision = Decision(Tier.SILVER, candidates, "interactive", NOT_THERE)
        return await self.tier.execute(
            request, decision, asker=asker, deadline=Deadline.after(seconds), listener=listener
        )


@pytest.fixture
async def silver(pool: Pool) -> AsyncIterator[Silver]:
    async with AsyncExitStack() as stack:
        wall = await stack.enter_async_context(fault_wall("vllm"))
        engines = [
            Engine(
                EngineSpec(
                    name=name, tier=Tier.SILVER, dialect="vllm", smaller=smaller, url=wall.url["vllm"], model=MODEL
                ),
                Counts(),
            )
            for name, smaller in (("silver", False), ("silver-small", True))
        ]
        for engine in engines:
            stack.push_async_callback(engine.close)
        ledger = await stack.enter_async_context(CostLedger.opened(pool, Caps({}, {}, {}), Counts()))
        tools = await stack.enter_async_context(HubTools.opened(_nobody, _nobody, Counts()))
        tier = SilverTier(ToolLoop(Chain(ledger, Counts()), tools, Counts()), Counts())
        yield Silver(wall, tier, *engines)


async def test_a_persona_speaks_by_its_fixed_instructions_and_at_its_own_temperature(silver: Silver) -> None:
    asked = (Message(role="system", content="Mind the tide."), Message(role="user", content="Who rules here?"))
    await silver.ask(InferenceRequest(messages=asked, persona="storyteller"), silver.target)
    await silver.ask(InferenceRequest(messages=asked), silver.target)
    told, plain = (seen.body for seen in silver.wall.asked("vllm"))
    assert told["messages"][0]["content"].startswith("You tell the story of a game")
    assert told["messages"][0]["content"].endswith("\n\nMind the tide.")
    assert told["temperature"] == 0.8
    assert plain["messages"][0]["content"] == "Mind the tide."
    assert "temperature" not in plain


async def test_an_unknown_persona_is_refused_before_anybody_is_asked(silver: Silver) -> None:
    with pytest.raises(BadInput, match="no persona pirate"):
        await silver.ask(InferenceRequest(prompt="Hello", persona="pirate"), silver.target)
    assert silver.wall.asked("vllm") == []


async def test_the_smaller_model_answers_and_the_result_says_so(silver: Silver) -> None:
    silver.wall.say("vllm", Reply(fault="unavailable"), Reply(text="Aye."))
    found = await silver.ask(InferenceRequest(prompt="Hello"), silver.target, silver.small)
    assert (found.text, found.source, found.engine, found.degraded) == ("Aye.", "smaller", "silver-small", True)
    assert found.fallbacks == (Fallback("silver", "overloaded"), *NOT_THERE)


async def test_a_smaller_model_that_was_named_is_the_one_that_was_meant(silver: Silver) -> None:
    found = await silver.ask(InferenceRequest(prompt="Hello", model="silver-small"), silver.small)
    assert (found.source, found.degraded) == ("model", False)


async def test_an_earlier_answer_stands_in_for_the_same_request_of_the_same_requester_alone(silver: Silver) -> None:
    silver.wall.say("vllm", Reply(text="Aye."))
    asked = InferenceRequest(prompt="Hello", max_tokens=50)
    await silver.ask(asked, silver.target)
    again = await silver.ask(InferenceRequest(prompt="Hello", max_tokens=50, latency_budget_ms=900.0))
    assert (again.text, again.source, again.engine, again.degraded) == ("Aye.", "cached", "silver", True)
    for request, who in (
        (asked, "person:ben"),
        (InferenceRequest(prompt="Hello", max_tokens=51), "person:anna"),
        (InferenceRequest(prompt="hello", max_tokens=50), "person:anna"),
    ):
        assert (await silver.ask(request, who=who)).source == "template"


@pytest.mark.parametrize(
    "request_", [InferenceRequest(prompt="x", schema=SCHEMA), InferenceRequest(prompt="x", choices=("a", "b"))]
)
async def test_no_fixed_text_stands_in_for_what_must_obey_a_schema(silver: Silver, request_: InferenceRequest) -> None:
    silver.wall.fault("vllm", "wrong_schema")
    with pytest.raises(Unavailable) as caught:
        await silver.ask(request_, silver.target, silver.small)
    assert caught.value.details["engines"] == ["silver: schema", "silver-small: schema", "openai: not configured"]


FAULTS: tuple[Fault, ...] = ("cut", "no_end", "malformed", "error_inside", "empty")


@pytest.mark.parametrize("fault", FAULTS)
async def test_who_can_take_nothing_back_is_told_that_an_answer_broke_off_never_half_of_it_as_whole(
    silver: Silver, fault: Fault
) -> None:
    silver.wall.fault("vllm", fault)
    heard = Heard(restarts=False)
    if fault == "empty":  # nothing was told, so there is nothing to take back
        assert (await silver.ask(InferenceRequest(prompt="Hello"), silver.target, listener=heard)).source == "template"
        assert heard.text == ""
        return
    with pytest.raises(Unavailable, match="broke off"):
        await silver.ask(InferenceRequest(prompt="Hello"), silver.target, silver.small, listener=heard)


@pytest.mark.parametrize("fault", FAULTS)
async def test_who_can_take_back_hears_the_next_model_from_its_beginning(silver: Silver, fault: Fault) -> None:
    silver.wall.say("vllm", Reply(fault=fault), Reply(text="Whole again."))
    heard = Heard(restarts=True)
    found = await silver.ask(InferenceRequest(prompt="Hello"), silver.target, silver.small, listener=heard)
    assert found.text == "Whole again."
    kinds = [told.kind for told in heard.told]
    last = len(kinds) - kinds[::-1].index("restart") if "restart" in kinds else 0
    assert "".join(told.text for told in heard.told[last:] if told.kind == "text") == "Whole again."


async def test_what_was_said_when_time_was_over_is_told_as_cut(silver: Silver, clock: Clock) -> None:
    silver.wall.say("vllm", Reply(fault="slow_drip", gap_s=1.0))
    heard = Heard(restarts=True)
    asking = asyncio.create_task(
        silver.ask(InferenceRequest(prompt="Hello"), silver.target, listener=heard, seconds=6.5)
    )
    await wait_until(lambda: heard.text, "it begins to speak")
    while not asking.done():
        await clock.pass_by(0.5, step_s=0.5)
    found = await asking
    assert (found.finish, found.degraded) == ("deadline", True)
    assert found.text == heard.text
    assert found.text.strip()
    assert (await silver.ask(InferenceRequest(prompt="Hello"))).source == "template"  # half an answer is not kept
