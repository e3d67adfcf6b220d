"""Gold answers by its deadline whatever its engines do, and says what answered."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace

import pytest

from body_broker.errors import BodyBrokerError, TooLarge, Unavailable
from body_broker.storage.redis import Redis
from body_broker.world import intents
from body_broker.world.model import Entity
from tests.counterparts.faultwall.wall import Fault, Reply
from tests.tiers.clock import Clock, settle
from tests.tiers.gold.conftest import SCENE, Gold, Heard, asker_of
from tests.waiting import wait_until
from tiers.catalogue import Given
from tiers.counts import Counts
from tiers.deadline import Deadline
from tiers.engine import Engine
from tiers.faults import Reason
from tiers.gold.intents import Scene, options_of
from tiers.gold.tier import GoldTier
from tiers.model import Fallback, InferenceRequest, Tier
from tiers.reading import read_catalogue
from tiers.router import Decision, ModelRouter
from tiers.unanswered import NoEngine, OverBudget

NPC = InferenceRequest(prompt="A bell rings.", sla="real-time", max_tokens=8, npc_id="ferryman")
CHOICE = InferenceRequest(prompt="Left or right?", sla="real-time", max_tokens=8, choices=("left", "right"))
FREE = InferenceRequest(prompt="Say something.", sla="real-time", max_tokens=8)
FERRYMAN = Entity(id="ferryman", kind="npc", region="harbour", version=7, tick=1, data={"name": "The Ferryman"})


def slowed(engine: Engine) -> None:
    """It was measured a moment ago: a second to its first token, ten between two."""
    engine.ttft_s, engine.gap_s, engine.measured_at = 1.0, 10.0, asyncio.get_running_loop().time()


async def test_an_npc_s_intent_is_a_line_of_its_grammar_with_the_target_s_id(gold: Gold) -> None:
    gold.wall.say("trtllm", Reply(text="greet 1"))
    heard = Heard()
    found = await gold.ask(NPC, listener=heard)
    assert (found.text, found.source, found.tier, found.engine) == ("greet player-anna", "model", Tier.GOLD, "gold")
    assert heard.texts == ["greet player-anna"]
    body = gold.wall.asked("trtllm")[0].body
    assert body["max_completion_tokens"] <= 8
    assert body["response_format"]["type"] == "regex"
    pattern = re.compile(body["response_format"]["regex"])
    assert all(map(pattern.fullmatch, options_of(SCENE).lines))
    assert pattern.fullmatch("greet player-anna") is None


async def test_an_engine_is_let_go_as_soon_as_only_one_line_can_follow(gold: Gold) -> None:
    gold.wall.say("trtllm", Reply(pieces=("fol", "low", " 1"), gap_s=50))
    asking = asyncio.create_task(gold.ask(NPC))
    await wait_until(asking.done, "the first piece decides it, long before the second comes")
    found = await asking
    assert (found.text, found.finish, found.degraded) == ("follow player-anna", "grammar", False)
    await wait_until(lambda: gold.wall.left["trtllm"] == 1, "the engine's request ends")


async def test_prefixes_are_shared_by_an_npc_s_requests_and_by_no_others(gold: Gold) -> None:
    for npc, tenant in (
        ("ferryman", "service:game"),
        ("ferryman", "service:game"),
        ("miller", "service:game"),
        ("ferryman", "service:other"),
    ):
        asked = InferenceRequest(prompt="?", sla="real-time", max_tokens=8, npc_id=npc)
        await gold.ask(asked, "gold", asker=asker_of(tenant))
    first, again, other_npc, other_tenant = (seen.body["cache_salt"] for seen in gold.wall.asked("trtllm"))
    assert first == again
    assert len({first, other_npc, other_tenant}) == 3


async def test_background_requests_say_that_they_can_wait(gold: Gold) -> None:
    asked = InferenceRequest(prompt="?", sla="real-time", max_tokens=8, choices=("a", "b"), priority="background")
    await gold.ask(asked, "gold")
    await gold.ask(CHOICE, "gold")
    later, now = (seen.body["priority"] for seen in gold.wall.asked("trtllm"))
    assert later < 0.3 < now
    assert gold.engines["gold"].background.service_s is not None


@pytest.mark.parametrize("fault", ["reset", "failed", "unavailable", "cut", "malformed", "empty", "wrong_schema"])
async def test_the_smaller_model_answers_where_the_target_does_not(gold: Gold, fault: Fault) -> None:
    gold.wall.say("trtllm", Reply(fault=fault))
    gold.wall.say("vllm", Reply(text="right"))
    found = await gold.ask(CHOICE)
    assert (found.text, found.source, found.engine, found.tier) == ("right", "smaller", "gold-small", Tier.GOLD)
    assert [step.engine for step in found.fallbacks] == ["gold"]


async def test_silver_answers_while_a_quarter_of_a_second_is_left_and_is_given_the_choices_as_json(gold: Gold) -> None:
    await gold.wall.refuse("trtllm")
    await gold.wall.refuse("vllm")
    gold.wall.say("openai", Reply(text='{"choice": "right"}'))
    found = await gold.ask(CHOICE)
    assert (found.text, found.tier, found.source) == ("right", Tier.SILVER, "model"), "it is no smaller one"
    assert found.model
    assert [step.engine for step in found.fallbacks][:1] == ["gold"]


async def test_silver_is_not_asked_once_less_is_left(gold: Gold, clock: Clock) -> None:
    gold.wall.fault("trtllm", "silent")
    asking = asyncio.create_task(gold.ask(CHOICE, "gold", "silver", within_s=120.2))
    await wait_until(lambda: gold.wall.inside["trtllm"], "the engine is asked")
    clock.move(120.05)
    found = await asking
    assert found.fallbacks == (Fallback("gold", "silent"), Fallback("silver", "too_slow"))
    assert gold.wall.asked("openai") == []
    assert found.source == "policy"


async def test_silver_is_asked_when_just_enough_is_left(gold: Gold, clock: Clock) -> None:
    gold.wall.fault("trtllm", "silent")
    asking = asyncio.create_task(gold.ask(CHOICE, "gold", "silver", within_s=180))
    await wait_until(lambda: gold.wall.inside["trtllm"], "the engine is asked")
    clock.move(120.05)
    found = await asking
    assert (found.tier, len(gold.wall.asked("openai"))) == (Tier.SILVER, 1)


async def test_the_deterministic_policy_answers_at_the_deadline_when_every_engine_is_silent(
    gold: Gold, clock: Clock
) -> None:
    gold.wall.fault("trtllm", "silent")
    began = asyncio.get_running_loop().time()
    asking = asyncio.create_task(gold.ask(NPC))
    await wait_until(lambda: gold.wall.inside["trtllm"], "the engine is asked")
    clock.move(60)
    found = await asking
    assert (found.text, found.source, found.engine) == ("greet player-anna", "policy", None)
    assert "meets_friends" in (found.note or "")
    assert found.seconds <= asyncio.get_running_loop().time() - began
    assert found.degraded


async def test_without_any_engine_the_policy_answers_by_the_npc_s_state_and_says_what_is_missing(gold: Gold) -> None:
    catalogue = await asyncio.to_thread(read_catalogue, Given())
    router = ModelRouter(catalogue, {}, {Tier.GOLD: gold.tier})
    heard = Heard()
    asked = replace(NPC, latency_budget_ms=60_000)
    found = await router.execute(asked, asker=gold.asker, listener=heard)
    assert (found.text, found.source, found.cost_usd) == ("greet player-anna", "policy", 0.0)
    assert "BODY_BROKER_GOLD_URL" in (found.note or "")
    assert {step.reason for step in found.fallbacks} == {"not_configured"}
    assert heard.texts == [], "only what a model says is told on the way"


@pytest.mark.parametrize(
    ("there", "answers", "told"),
    [
        ("gold silver", "gold", []),
        ("gold silver", "silver", [("gold", "refused"), ("gold-small", "not_configured")]),
        ("gold gold-small", "gold-small", [("gold", "refused")]),
        ("silver", "silver", [("gold", "not_configured"), ("gold-small", "not_configured")]),
    ],
    ids=["first", "silver-after-gold", "smaller", "silver-alone"],
)
async def test_only_what_led_to_the_engine_that_answered_is_told(
    gold: Gold, there: str, answers: str, told: list[tuple[str, str]]
) -> None:
    catalogue = await asyncio.to_thread(read_catalogue, Given())
    engines = {name: gold.engines[name] for name in there.split()}
    router = ModelRouter(catalogue, engines, {Tier.GOLD: gold.tier})
    if answers != "gold":
        await gold.wall.refuse("trtllm")
    gold.wall.say("trtllm", Reply(text="right"))
    gold.wall.say("vllm", Reply(text="right"))
    gold.wall.say("openai", Reply(text='{"choice": "right"}'))

    found = await router.execute(replace(CHOICE, latency_budget_ms=60_000), asker=gold.asker)

    assert found.engine == answers
    assert [(step.engine, step.reason) for step in found.fallbacks] == told


async def test_who_may_not_see_an_npc_gets_nothing_of_its_state(gold: Gold, redis: Redis) -> None:
    await intents.submit(redis, FERRYMAN, intents.Intent(kind="approach", target="player-anna", version=7))
    found = await gold.ask(NPC, "silver", within_s=0.1, asker=asker_of("person:mallory"))
    assert (found.text, found.source) == ("wait", "policy")
    assert "nothing_known" in (found.note or "")


async def test_the_npc_s_intent_stands_in_while_it_holds(gold: Gold, redis: Redis) -> None:
    await intents.submit(
        redis, FERRYMAN, intents.Intent(kind="follow", target="player-anna", version=7, ttl_ms=intents.TTL_MS_MAX)
    )
    await gold.wall.refuse("trtllm")
    found = await gold.ask(NPC, "gold")
    assert (found.text, found.source, found.engine) == ("follow player-anna", "cached", None)


async def test_an_intent_that_has_expired_does_not_stand_in(gold: Gold, redis: Redis) -> None:
    await intents.submit(redis, FERRYMAN, intents.Intent(kind="follow", target="player-anna", version=7, ttl_ms=100))
    await gold.wall.refuse("trtllm")

    async def has_expired() -> bool:
        held = await intents.get(redis, "ferryman")
        return held is None or held.state == "expired"

    await wait_until(has_expired, "the intent has expired")
    found = await gold.ask(NPC, "gold")
    assert (found.text, found.source) == ("greet player-anna", "policy")


@pytest.mark.parametrize(
    ("intent", "why"),
    [
        (intents.Intent(kind="follow", target="player-anna", version=6), "the NPC has changed since"),
        (intents.Intent(kind="follow", target="player-bert", version=7), "the target is not there"),
    ],
    ids=["stale", "gone"],
)
async def test_an_intent_that_no_longer_fits_does_not_stand_in(
    gold: Gold, redis: Redis, intent: intents.Intent, why: str
) -> None:
    npc = Entity(id="ferryman", kind="npc", region="harbour", version=intent.version, tick=1, data={"name": "x"})
    await intents.submit(redis, npc, intent)
    found = await gold.ask(NPC, "silver", within_s=0.2)
    assert found.source == "policy", why


async def test_the_last_good_answer_stands_in_for_its_own_requester_alone(gold: Gold) -> None:
    gold.wall.say("trtllm", Reply(text="follow 1"))
    await gold.ask(NPC, "gold")
    await gold.wall.refuse("trtllm")
    again = await gold.ask(NPC, "gold")
    other = await gold.ask(NPC, "gold", asker=asker_of("service:game", "tier:bronze"))
    assert (again.text, again.source) == ("follow player-anna", "cached")
    assert other.source == "policy"


async def test_the_last_good_answer_is_dropped_once_the_npc_has_changed(gold: Gold) -> None:
    gold.wall.say("trtllm", Reply(text="follow 1"))
    await gold.ask(NPC, "gold")
    await gold.wall.refuse("trtllm")
    gold.scenes["ferryman"] = SCENE.__class__(version=8, mood="scared")
    found = await gold.ask(NPC, "gold")
    assert (found.text, found.source) == ("hide", "policy")


async def test_free_text_is_cut_at_the_deadline_and_says_so(gold: Gold, clock: Clock) -> None:
    gold.wall.say("trtllm", Reply(pieces=("Who", " goes", " there"), gap_s=50))
    heard = Heard()
    asking = asyncio.create_task(gold.ask(FREE, "gold", listener=heard))
    await wait_until(lambda: heard.texts == ["Who"], "the first piece is told")
    clock.move(51)
    await wait_until(lambda: heard.texts == ["Who", " goes"], "the second piece is told")
    clock.move(9)
    found = await asking
    assert (found.text, found.finish, found.source, found.degraded) == ("Who goes", "deadline", "model", True)


async def test_a_choice_that_time_cuts_before_it_is_clear_is_no_answer(gold: Gold, clock: Clock) -> None:
    asked = InferenceRequest(prompt="?", sla="real-time", max_tokens=8, choices=("stay calm", "stay alert"))
    gold.wall.say("trtllm", Reply(pieces=("stay", " calm"), gap_s=100))
    asking = asyncio.create_task(gold.ask(asked, "gold"))
    await wait_until(lambda: gold.wall.inside["trtllm"], "the engine is asked")
    await settle()
    clock.move(60)
    found = await asking
    assert found.source == "policy"
    assert found.text in asked.choices


async def test_free_text_shrinks_to_what_there_is_time_for(gold: Gold) -> None:
    slowed(gold.engines["gold"])
    gold.wall.say("trtllm", Reply(text="one two three", finish="length"))
    found = await gold.ask(FREE, "gold", within_s=30)
    assert gold.wall.asked("trtllm")[0].body["max_completion_tokens"] == 3
    assert found.finish == "deadline", "who asked for eight tokens and got three is told that time cut it"


async def test_how_fast_an_engine_was_long_ago_shrinks_nothing(gold: Gold, clock: Clock) -> None:
    slowed(gold.engines["gold"])
    clock.move(60)
    await gold.ask(FREE, "gold", within_s=30)
    assert gold.wall.asked("trtllm")[0].body["max_completion_tokens"] == 8


async def test_a_choice_is_never_shrunk(gold: Gold) -> None:
    slowed(gold.engines["gold"])
    await gold.ask(CHOICE, "gold", within_s=30)
    assert gold.wall.asked("trtllm")[0].body["max_completion_tokens"] == 8


async def test_what_must_obey_a_schema_is_not_answered_by_a_rule(gold: Gold) -> None:
    await gold.wall.refuse("trtllm")
    asked = InferenceRequest(prompt="?", sla="real-time", max_tokens=8, schema={"type": "object"}, npc_id="ferryman")
    with pytest.raises(Unavailable) as refused:
        await gold.ask(asked, "gold")
    assert refused.value.details["engines"] == ["gold: refused"]
    assert "nothing listens at its address" in refused.value.message
    assert "choices" in refused.value.next_step


async def test_free_text_is_not_answered_by_a_rule(gold: Gold) -> None:
    await gold.wall.refuse("trtllm")
    heard = Heard()
    with pytest.raises(Unavailable):
        await gold.ask(FREE, "gold", listener=heard)
    assert heard.texts == []


@pytest.mark.parametrize(
    ("reason", "kind", "words"),
    [
        ("not_configured", NoEngine, "No engine is configured"),
        ("budget", OverBudget, "it would cost more than may be spent"),
        ("too_long", TooLarge, "do not fit its context"),
    ],
)
async def test_what_asking_again_does_not_help_is_not_told_as_if_it_did(
    gold: Gold, reason: Reason, kind: type[BodyBrokerError], words: str
) -> None:
    decision = Decision(Tier.GOLD, (), "real-time", (Fallback("gold", reason),))
    with pytest.raises(kind, match=words) as refused:
        await gold.tier.execute(FREE, decision, asker=gold.asker, deadline=Deadline.after(60))
    assert not refused.value.retryable
    assert "choices" not in refused.value.next_step


async def test_what_was_made_of_words_from_outside_is_from_outside_and_stays_so(gold: Gold) -> None:
    gold.scenes["ferryman"] = replace(SCENE, outside=True)
    gold.wall.say("trtllm", Reply(text="follow 1"))
    heard = Heard()
    found = await gold.ask(NPC, "gold", listener=heard)
    await gold.wall.refuse("trtllm")
    gold.scenes["ferryman"] = SCENE
    again = await gold.ask(NPC, "gold")
    other = asker_of("service:game", "tier:bronze")
    clean = await gold.ask(NPC, "gold", asker=other)
    gold.scenes["ferryman"] = replace(SCENE, outside=True)
    ruled = await gold.ask(NPC, "gold", asker=other)

    assert (found.text, found.outside, [told.outside for told in heard.told if told.kind == "text"]) == (
        "follow player-anna",
        True,
        [True],
    )
    assert (again.text, again.source, again.outside) == (found.text, "cached", True)
    assert [(each.source, each.outside) for each in (clean, ruled)] == [("policy", False), ("policy", True)]


async def test_an_answer_in_a_tainted_conversation_is_from_outside(gold: Gold) -> None:
    heard = Heard()
    found = await gold.ask(NPC, "gold", listener=heard, asker=asker_of("service:game", tainted=True))
    assert found.outside
    assert all(told.outside for told in heard.told if told.kind == "text")


async def test_a_sight_that_does_not_come_in_time_holds_nobody_up(gold: Gold, redis: Redis, clock: Clock) -> None:
    async def blind(*_: object) -> None:
        await asyncio.get_running_loop().create_future()

    gold.tier = GoldTier(gold.chain, redis, Counts(), sight=blind)
    await gold.wall.refuse("trtllm")
    asking = asyncio.create_task(gold.ask(NPC, "gold"))
    await clock.pass_by(61, step_s=5)
    found = await asking
    assert (found.text, found.source) == ("wait", "policy")


async def test_a_quarter_of_the_time_is_given_to_looking_before_a_model_is_asked(
    gold: Gold, redis: Redis, clock: Clock
) -> None:
    seen: asyncio.Future[Scene] = asyncio.get_running_loop().create_future()

    async def slow(*_: object) -> Scene:
        return await seen

    gold.tier = GoldTier(gold.chain, redis, Counts(), sight=slow)
    gold.wall.fault("trtllm", "silent")
    asking = asyncio.create_task(gold.ask(NPC, "gold", within_s=100))
    await settle()
    await clock.pass_by(24)
    assert gold.wall.seen == []
    await clock.pass_by(2)
    await wait_until(lambda: gold.wall.inside["trtllm"], "the engine is asked")
    seen.set_result(SCENE)
    await clock.pass_by(75)
    found = await asking
    assert (found.text, found.source) == ("greet player-anna", "policy"), "what came later serves the rules"


async def test_without_redis_an_npc_is_seen_all_the_same(gold: Gold) -> None:
    async def sight(*_: object) -> Scene:
        return SCENE

    await gold.wall.refuse("trtllm")
    async with Redis(port=1) as nobody:
        gold.tier = GoldTier(gold.chain, nobody, Counts(), sight=sight)
        found = await gold.ask(NPC, "gold")
    assert (found.text, found.source) == ("greet player-anna", "policy")


async def test_an_answer_needs_no_redis(gold: Gold) -> None:
    async with Redis(port=1) as nobody:
        gold.tier = GoldTier(gold.chain, nobody, Counts())
        found = await gold.ask(CHOICE, "gold")
        await gold.wall.refuse("trtllm")
        fallen = await gold.ask(NPC, "gold")
    assert (found.source, fallen.source, fallen.text) == ("model", "policy", "wait")
