"""A deployment is tried out: each check passes on a good engine, and each fault is named with what to do about it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal

import pytest

from body_broker.storage.postgres import Pool
from tests.counterparts.faultwall.wall import (
    DIALECTS,
    KEY,
    MODEL,
    DialectName,
    Fault,
    FaultWall,
    Reply,
    Seen,
    fault_wall,
)
from tests.tiers.clock import Clock, settle
from tiers.catalogue import Caps, EngineSpec, Price
from tiers.chain import Chain
from tiers.cost import CostLedger
from tiers.counts import Counts
from tiers.engine import Engine
from tiers.model import Tier
from tiers.validating import Check, Target, Validation

SPEC = EngineSpec(name="silver", tier=Tier.SILVER, dialect="vllm", key=KEY, model=MODEL, ttft_s=20, stall_s=20)

PATIENT = Target(60, 60)
"""What any machine meets: what is tested is the comparison."""


@pytest.fixture
async def wall() -> AsyncIterator[FaultWall]:
    async with fault_wall() as found:
        yield found


async def tried(
    pool: Pool, spec: EngineSpec, *, caps: Caps | None = None, target: Target = PATIENT
) -> dict[str, Check]:
    engine = Engine(spec, Counts())
    try:
        async with CostLedger.opened(pool, caps or Caps({}, {}, {}), Counts()) as ledger:
            validation = Validation(engine, Chain(ledger, Counts()), tenant="operator:anna", requests=3, target=target)
            return {check.name: check async for check in validation.run()}
    finally:
        await engine.close()


def verdicts(checks: dict[str, Check]) -> dict[str, str]:
    return {name: check.verdict for name, check in checks.items()}


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_good_engine_of_any_dialect_passes_every_check(
    wall: FaultWall, pool: Pool, dialect: DialectName
) -> None:
    spec = replace(SPEC, dialect=dialect, url=wall.url[dialect])
    checks = await tried(pool, spec)
    assert verdicts(checks) == dict.fromkeys(("reachable", "model", "schema", "latency", "tools"), "ok")
    assert wall.refused == []
    assert not any(seen.ignored for seen in wall.seen)
    assert MODEL in checks["model"].found


async def test_gold_is_held_to_a_choice_of_eight_tokens_and_calls_no_tools(wall: FaultWall, pool: Pool) -> None:
    spec = replace(SPEC, name="gold", tier=Tier.GOLD, dialect="trtllm", url=wall.url["trtllm"])
    checks = await tried(pool, spec)
    assert verdicts(checks) == {"reachable": "ok", "model": "ok", "schema": "ok", "latency": "ok", "tools": "left out"}
    assert all(seen.body["max_completion_tokens"] <= 8 for seen in wall.seen)
    assert len([seen for seen in wall.seen if "Count on" in str(seen.body)]) == 3


async def test_nothing_is_asked_of_a_server_that_is_not_there(wall: FaultWall, pool: Pool) -> None:
    await wall.refuse("vllm")
    checks = await tried(pool, replace(SPEC, url=wall.url["vllm"]))
    assert verdicts(checks) == {"reachable": "failed"} | dict.fromkeys(
        ("model", "schema", "latency", "tools"), "left out"
    )
    assert checks["reachable"].found == "nothing listens at its address"
    assert "Start the server" in checks["reachable"].next_step
    assert checks["model"].found == "not tried: the engine does not answer"


async def test_an_address_that_no_way_leads_to_is_not_told_as_a_server_that_is_down(pool: Pool) -> None:
    checks = await tried(pool, replace(SPEC, url="http://255.255.255.255:9"))
    assert checks["reachable"].found.startswith("it cannot be reached: its name, the network, a proxy")
    assert "Start the server" not in checks["reachable"].next_step


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_model_that_is_not_served_is_named(wall: FaultWall, pool: Pool, dialect: DialectName) -> None:
    checks = await tried(pool, replace(SPEC, dialect=dialect, url=wall.url[dialect], model="somebody-else"))
    assert checks["model"].verdict == "failed"
    assert checks["model"].found == f"it does not know the model somebody-else: it serves {MODEL}"
    assert "Name a model" in checks["model"].next_step
    for later in ("schema", "latency", "tools"):
        assert (checks[later].verdict, checks[later].found) == ("left out", "not tried: the model failed")


async def test_several_models_of_which_none_is_named_are_shown(wall: FaultWall, pool: Pool) -> None:
    wall.models = ("one", "two")
    checks = await tried(pool, replace(SPEC, url=wall.url["vllm"], model=None))
    assert checks["model"].found == "it serves one, two, and no model is named"
    assert "Name a model" in checks["model"].next_step


async def test_a_strict_api_asked_as_if_it_were_vllm_is_told_its_dialect_and_not_another_model(
    wall: FaultWall, pool: Pool
) -> None:
    spec = replace(SPEC, url=wall.url["openai"], model=None)
    checks = await tried(pool, spec)
    assert checks["reachable"].verdict == "ok", "it has no /health, and lists its models"
    assert (checks["model"].verdict, checks["model"].found) == ("failed", "it does not take the request")
    assert "BODY_BROKER_SILVER_DIALECT" in checks["model"].next_step
    assert "Name a model" not in checks["model"].next_step
    assert set(verdicts(await tried(pool, replace(spec, dialect="openai"))).values()) == {"ok"}


async def test_an_address_where_nothing_is_served_is_not_told_to_name_a_model(wall: FaultWall, pool: Pool) -> None:
    checks = await tried(pool, replace(SPEC, url=f"{wall.url['vllm']}/elsewhere"))
    assert checks["reachable"].found == "it does not take the request"
    assert "Name a model" not in checks["reachable"].next_step
    assert "address" in checks["reachable"].next_step


@pytest.mark.parametrize("dialect", ["vllm", "trtllm"])
async def test_a_server_of_another_model_that_answers_by_any_name_is_found_out(
    wall: FaultWall, pool: Pool, dialect: DialectName
) -> None:
    wall.models = ("one", "tw\no", "three", "four")
    checks = await tried(pool, replace(SPEC, dialect=dialect, url=wall.url[dialect]))
    assert (checks["model"].verdict, checks["tools"].verdict) == ("failed", "left out")
    assert checks["model"].found == f"it does not know the model {MODEL}: it serves one, tw o, three"


async def test_a_provider_that_lists_its_model_by_another_name_passes_and_says_so(wall: FaultWall, pool: Pool) -> None:
    wall.models = (f"{MODEL}-20261001",)
    checks = await tried(pool, replace(SPEC, dialect="anthropic", url=wall.url["anthropic"]))
    assert checks["model"].verdict == "ok"
    assert "not by this name" in checks["model"].found


async def test_a_key_that_is_not_taken_is_named_and_not_shown(wall: FaultWall, pool: Pool) -> None:
    checks = await tried(pool, replace(SPEC, dialect="openai", url=wall.url["openai"], key="sk-wrong"))
    assert checks["reachable"].verdict == "failed"
    assert "Correct the API key" in checks["reachable"].next_step
    assert "sk-wrong" not in str(checks)


async def test_an_engine_that_ignores_the_schema_fails(wall: FaultWall, pool: Pool) -> None:
    wall.answers["vllm"] = lambda seen: Reply(text="I feel calm.") if "response_format" in seen.body else Reply()
    checks = await tried(pool, replace(SPEC, url=wall.url["vllm"]))
    assert checks["schema"].verdict == "failed"
    assert "grammar" in checks["schema"].next_step


async def test_a_form_that_was_cut_is_no_form_though_it_fits(wall: FaultWall, pool: Pool) -> None:
    cut = Reply(text='{"mood": "calm", "level": 1}', finish="length", usage=(9, 256, 0))
    wall.answers["vllm"] = lambda seen: cut if "response_format" in seen.body else Reply()
    checks = await tried(pool, replace(SPEC, url=wall.url["vllm"]))
    assert checks["schema"].verdict == "failed"


async def test_what_an_engine_is_said_not_to_do_is_left_out(wall: FaultWall, pool: Pool) -> None:
    checks = await tried(pool, replace(SPEC, url=wall.url["vllm"], can_schema=False, can_tools=False))
    assert (checks["schema"].verdict, checks["tools"].verdict) == ("left out", "left out")
    assert checks["tools"].found == "can_tools is false"


@pytest.mark.parametrize("fault", ["bad_arguments", "empty", "cut"])
async def test_tool_calls_that_do_not_hold_fail(wall: FaultWall, pool: Pool, fault: Fault) -> None:
    def answer(seen: Seen) -> Reply:
        return Reply(fault=fault) if seen.body.get("tools") else Reply()

    wall.answers["vllm"] = answer
    checks = await tried(pool, replace(SPEC, url=wall.url["vllm"]))
    assert checks["tools"].verdict == "failed"
    assert checks["tools"].next_step


async def test_an_engine_that_talks_instead_of_calling_fails(wall: FaultWall, pool: Pool) -> None:
    wall.answers["vllm"] = lambda seen: Reply(text="It is green, I guess.") if seen.body.get("tools") else Reply()
    checks = await tried(pool, replace(SPEC, url=wall.url["vllm"]))
    assert checks["tools"].found == "it called no tool"


async def test_an_engine_that_is_slower_than_its_tier_fails_with_what_was_measured(wall: FaultWall, pool: Pool) -> None:
    spec = replace(SPEC, url=wall.url["vllm"])
    checks = await tried(pool, spec, target=Target(0.0))
    assert checks["latency"].verdict == "failed"
    assert "p95" in checks["latency"].found
    assert "engine-profile silver" in checks["latency"].next_step
    assert checks["tools"].verdict == "ok", "a slow engine is tried to the end"


@pytest.mark.parametrize("pieces", [("one",), ("one two three four five six seven",)], ids=["a token", "in one piece"])
async def test_a_pace_that_cannot_be_measured_is_not_ok_where_a_tier_is_held_to_one(
    wall: FaultWall, pool: Pool, pieces: tuple[str, ...]
) -> None:
    answer = Reply(pieces=pieces, usage=(5, 8, 0))
    wall.answers["trtllm"] = lambda seen: answer if "Count on" in str(seen.body) else Reply()
    spec = replace(SPEC, tier=Tier.GOLD, dialect="trtllm", url=wall.url["trtllm"])
    held = await tried(pool, spec)
    free = await tried(pool, spec, target=Target(60))
    assert (held["latency"].verdict, free["latency"].verdict) == ("failed", "ok")
    assert "not measured" in held["latency"].found
    assert "not measured" in free["latency"].found


@pytest.mark.parametrize(("most_s", "verdict"), [(7, "ok"), (4, "failed")])
async def test_a_pace_is_that_of_its_pieces_by_the_tokens_they_hold(
    wall: FaultWall, pool: Pool, clock: Clock, most_s: float, verdict: str
) -> None:
    # Two tokens a piece every ten seconds are five seconds a token.
    answer = Reply(pieces=("one two", " three four"), gap_s=10, usage=(5, 4, 0))
    wall.answers["trtllm"] = lambda seen: answer if "Count on" in str(seen.body) else Reply()
    spec = replace(SPEC, tier=Tier.GOLD, dialect="trtllm", url=wall.url["trtllm"])
    trying = asyncio.create_task(tried(pool, spec, target=Target(60, most_s)))
    while not trying.done():
        await (clock.pass_by(1) if wall.inside["trtllm"] else settle())
    checks = await trying
    assert checks["latency"].verdict == verdict


@pytest.mark.parametrize(("said", "how"), [("It is GREEN.", "with"), ("I saw it.", "without")])
async def test_whether_an_answer_has_what_the_tool_found_is_said(
    wall: FaultWall, pool: Pool, said: str, how: str
) -> None:
    wall.answers["vllm"] = lambda seen: Reply(text=said if seen.body["messages"][-1]["role"] == "tool" else None)
    checks = await tried(pool, replace(SPEC, url=wall.url["vllm"]))
    assert checks["tools"].verdict == "ok"
    assert f", {how} the word" in checks["tools"].found


async def test_what_a_paid_engine_is_asked_is_booked_and_held_by_the_caps(
    wall: FaultWall, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tiers.cost._PATIENCE_S", 30.0)
    price = Price(Decimal(1), Decimal(5), Decimal(0), "a test", "2026-11")
    spec = replace(SPEC, name="openai", tier=Tier.CLOUD, dialect="openai", url=wall.url["openai"], price=price)
    rich = Caps({Tier.CLOUD: Decimal(1)}, {Tier.CLOUD: Decimal(1)}, {})
    assert (await tried(pool, spec, caps=rich))["model"].verdict == "ok"
    spent = await pool.fetchval("SELECT sum(spent) FROM spend_day WHERE asker = 'operator:anna'")
    assert spent > 0
    before = len(wall.seen)
    broke = await tried(pool, spec)
    assert broke["model"].found == "it would cost more than may be spent"
    assert "caps" in broke["model"].next_step
    assert len(wall.seen) == before
