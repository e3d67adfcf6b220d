"""Paid engines: who is asked, that the same request is paid for once, and the mode in which there is nothing else."""

from __future__ import annotations

import asyncio

import pytest

from body_broker.errors import Unavailable
from tests.counterparts.faultwall.wall import DialectName, Fault, Reply
from tests.tiers.cloud.conftest import Paid
from tests.tiers.gold.conftest import Heard
from tests.waiting import wait_until
from tiers.engine import Engine
from tiers.model import InferenceRequest, Tier

ASK = InferenceRequest(prompt="Who keeps the lantern?", max_tokens=50)


def fail(engine: Engine) -> None:
    """Its breaker opens."""
    for _ in range(engine.spec.failure_threshold):
        entry = engine.breaker.enter()
        assert entry is not None
        engine.breaker.failed(entry)


async def test_an_interactive_request_is_answered_by_the_cheapest_provider_and_paid_for(paid: Paid) -> None:
    paid.wall.say("openai", Reply(text="The ferryman.", usage=(1_000, 100, 0)))
    found = await paid.ask(ASK)
    assert (found.text, found.tier, found.engine) == ("The ferryman.", Tier.CLOUD, "openai")
    assert found.cost_usd == pytest.approx(1_000 * 0.25e-6 + 100 * 2e-6)
    await paid.ledger.settled()
    booked = {figure.asker: float(figure.spent_usd) for figure in await paid.ledger.figures()}
    assert booked["person:anna"] == pytest.approx(found.cost_usd)


@pytest.mark.parametrize(
    "fault", ["unavailable", "rate_limited", "failed", "budget", "unauthorised", "cut", "empty", "reset"]
)
async def test_the_next_provider_answers_where_one_does_not(paid: Paid, fault: Fault) -> None:
    paid.wall.fault("openai", fault)
    paid.wall.say("anthropic", Reply(text="The ferryman."))
    found = await paid.ask(ASK)
    assert (found.text, found.engine, found.source) == ("The ferryman.", "anthropic", "smaller")
    assert found.fallbacks[0].engine.startswith("openai")


async def test_expert_reasoning_asked_of_the_cloud_goes_to_an_expert(paid: Paid) -> None:
    found = await paid.ask(InferenceRequest(prompt="?", model="cloud", requires_expert_reasoning=True))
    assert found.engine is not None
    assert "expert" in paid.catalogue.engines[found.engine].roles


async def test_the_same_request_is_paid_for_once(paid: Paid) -> None:
    first = await paid.ask(ASK)
    again = await paid.ask(ASK)
    assert (again.text, again.source, again.cost_usd) == (first.text, "cached", 0.0)
    assert len(paid.wall.seen) == 1


@pytest.mark.parametrize(
    "other",
    [
        InferenceRequest(prompt="Who keeps the lantern? ", max_tokens=50),
        InferenceRequest(prompt="Who keeps the lantern?", max_tokens=51),
        InferenceRequest(prompt="Who keeps the lantern?", max_tokens=50, temperature=0.1),
        InferenceRequest(prompt="Who keeps the lantern?", max_tokens=50, persona="support"),
        InferenceRequest(prompt="Who keeps the lantern?", max_tokens=50, model="anthropic"),
    ],
    ids=["text", "tokens", "temperature", "persona", "model"],
)
async def test_what_differs_in_anything_is_asked_anew(paid: Paid, other: InferenceRequest) -> None:
    await paid.ask(ASK)
    assert (await paid.ask(other)).source != "cached"


async def test_an_answer_to_the_very_same_request_is_no_less_than_was_asked_for(paid: Paid) -> None:
    await paid.ask(ASK)
    assert (await paid.ask(ASK)).degraded is False


async def test_what_an_npc_says_to_one_player_is_not_what_it_says_to_all(paid: Paid) -> None:
    asked = InferenceRequest(prompt="Hello", persona="npc", npc_id="ferryman")
    paid.wall.say("openai", Reply(text="Aye, Ben."), Reply(text="Aye, Cleo."))
    found = [await paid.ask(asked, conversation=talk) for talk in ("cnv_ben", "cnv_cleo")]
    assert [(each.text, each.source) for each in found] == [("Aye, Ben.", "model"), ("Aye, Cleo.", "model")]


async def test_an_answer_is_given_again_while_its_provider_is_down(paid: Paid) -> None:
    first = await paid.ask(ASK)
    breaker = paid.engines["openai"].breaker
    while (entry := breaker.enter()) is not None:
        breaker.failed(entry)
    again = await paid.ask(ASK)
    assert (again.text, again.source, again.engine) == (first.text, "cached", "openai")
    assert len(paid.wall.seen) == 1


async def test_nobody_is_answered_what_somebody_else_was(paid: Paid) -> None:
    await paid.ask(ASK)
    found = await paid.ask(ASK, asker="person:bert")
    assert found.source == "model"
    assert len(paid.wall.seen) == 2


async def test_many_who_ask_the_same_at_once_cost_one_request(paid: Paid) -> None:
    paid.wall.always["openai"] = Reply(text="Aye.", first_after_s=0.05)
    found = await asyncio.gather(*(paid.ask(ASK) for _ in range(8)))
    assert {each.text for each in found} == {"Aye."}
    assert [each.source for each in found].count("model") == 1
    assert len(paid.wall.seen) == 1


async def test_an_answer_given_again_in_a_tainted_conversation_is_from_outside(paid: Paid) -> None:
    await paid.ask(ASK)
    found = await paid.ask(ASK, tainted=True)
    assert (found.source, found.outside) == ("cached", True)


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "azure"])
async def test_choices_are_held_by_a_schema_and_told_as_they_were_given(paid: Paid, dialect: DialectName) -> None:
    paid.wall.say(dialect, Reply(text='{"choice": "the left door"}'))
    heard = Heard()
    asked = InferenceRequest(prompt="?", model=dialect, max_tokens=8, choices=("the left door", "the right door"))
    found = await paid.ask(asked, listener=heard)
    assert (found.text, heard.texts) == ("the left door", ["the left door"])
    assert paid.wall.refused == []


async def test_who_has_no_money_left_gets_a_fixed_text_that_says_so(paid: Paid) -> None:
    found = await paid.ask(ASK, asker="person:broke")
    assert (found.source, found.engine, found.tier) == ("template", None, Tier.SILVER)
    assert {step.reason for step in found.fallbacks if step.engine in paid.engines} == {"budget"}
    assert paid.wall.seen == []


async def test_a_request_that_must_cost_nothing_reaches_no_provider(paid: Paid) -> None:
    asked = InferenceRequest(prompt="?", cost_sensitivity="high")
    assert (await paid.ask(asked)).source == "template"
    assert paid.wall.seen == []


async def test_no_template_is_kept_as_an_answer(paid: Paid) -> None:
    for dialect in ("openai", "anthropic", "azure"):
        paid.wall.say(dialect, *[Reply(fault="failed")] * 3)
    assert (await paid.ask(ASK)).source == "template"
    assert (await paid.ask(ASK)).source in {"model", "smaller"}


async def test_a_fixed_text_in_place_of_the_cloud_s_answer_says_that_it_stands_there(paid: Paid) -> None:
    for dialect in ("openai", "anthropic", "azure"):
        paid.wall.fault(dialect, "failed")
    found = await paid.ask(InferenceRequest(prompt="?", model="cloud"))
    assert (found.source, found.tier) == ("template", Tier.CLOUD)


async def test_what_was_never_needed_is_no_step_down(paid: Paid) -> None:
    fail(paid.engines["azure"])
    found = await paid.ask(ASK)
    assert (found.engine, found.source, found.degraded) == ("openai", "model", False)
    assert {step.reason for step in found.fallbacks} == {"not_configured"}
    fail(paid.engines["openai"])
    found = await paid.ask(ASK, asker="person:bert")
    assert (found.engine, found.source) == ("anthropic", "smaller")
    assert [step.engine for step in found.fallbacks if step.reason == "open"] == ["openai", "azure"]


async def test_a_choice_that_no_provider_makes_is_an_error(paid: Paid) -> None:
    for dialect in ("openai", "anthropic", "azure"):
        paid.wall.fault(dialect, "failed")
    with pytest.raises(Unavailable):
        await paid.ask(InferenceRequest(prompt="?", model="cloud", choices=("a", "b")))


async def test_with_nothing_but_keys_an_npc_s_intent_comes_from_a_provider_while_there_is_time(paid: Paid) -> None:
    asked = InferenceRequest(
        prompt="A bell.", sla="real-time", max_tokens=8, npc_id="ferryman", latency_budget_ms=20_000
    )
    paid.wall.say("openai", Reply(text='{"choice": "hide"}'))
    found = await paid.ask(asked)
    assert (found.text, found.tier, found.source) == ("hide", Tier.CLOUD, "model"), "it is no smaller one"
    late = InferenceRequest(prompt="A bell.", sla="real-time", max_tokens=8, npc_id="ferryman", latency_budget_ms=200)
    assert (await paid.ask(late)).engine is None
    assert len(paid.wall.seen) == 1


async def test_a_client_that_leaves_lets_the_next_one_ask(paid: Paid) -> None:
    paid.wall.say("openai", Reply(fault="silent"))
    leaving = asyncio.create_task(paid.ask(ASK))
    await wait_until(lambda: paid.wall.inside["openai"], "the provider is asked")
    leaving.cancel()
    assert (await paid.ask(ASK)).source == "model"
