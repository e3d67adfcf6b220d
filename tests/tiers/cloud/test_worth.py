"""Which paid engine is asked first: its role, whether it can be in time, its price and how slow it was lately."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from decimal import Decimal

import pytest

from tiers.catalogue import EngineSpec, Price
from tiers.chain import Candidate
from tiers.cloud.worth import by_worth, role_of
from tiers.counts import Counts
from tiers.deadline import Deadline
from tiers.engine import Engine
from tiers.model import InferenceRequest, Tier

ASK = InferenceRequest(prompt="Who keeps the lantern?", max_tokens=100)


def engine(name: str, usd: str, *, tier: Tier = Tier.CLOUD, roles: tuple[str, ...] = ("plain",)) -> Candidate:
    price = Price(Decimal(usd), Decimal(usd) * 4, Decimal(0), "a test", "2026-11")
    spec = EngineSpec(
        name=name, tier=tier, dialect="openai", url="http://127.0.0.1:1", price=price, roles=frozenset(roles)
    )
    return Candidate(Engine(spec, Counts()), tier)


def names(candidates: tuple[Candidate, ...]) -> list[str]:
    return [each.engine.spec.name for each in candidates]


def test_the_cheaper_one_is_asked_first_whatever_the_order() -> None:
    dear, cheap = engine("dear", "5"), engine("cheap", "1")
    assert names(by_worth((dear, cheap), ASK, remaining_s=15)) == ["cheap", "dear"]
    assert names(by_worth((cheap, dear), ASK, remaining_s=15)) == ["cheap", "dear"]


def test_one_that_is_slow_of_late_loses_its_place_the_sooner_the_less_cost_matters() -> None:
    dear, cheap = engine("dear", "2"), engine("cheap", "1")
    cheap.engine.ttft_s, dear.engine.ttft_s = 1.0, 0.2
    low = InferenceRequest(prompt=ASK.prompt, max_tokens=100, cost_sensitivity="low")
    assert names(by_worth((cheap, dear), low, remaining_s=15)) == ["dear", "cheap"]
    cheap.engine.ttft_s = 0.21
    assert names(by_worth((cheap, dear), low, remaining_s=15)) == ["cheap", "dear"]


def test_one_that_would_come_too_late_comes_last() -> None:
    dear, cheap = engine("dear", "5"), engine("cheap", "1")
    cheap.engine.ttft_s = 3.0
    assert names(by_worth((cheap, dear), ASK, remaining_s=2)) == ["dear", "cheap"]


async def test_what_may_wait_is_weighed_by_the_queue_that_it_waits_in() -> None:
    dear, cheap = engine("dear", "5"), engine("cheap", "1")
    async with AsyncExitStack() as stack:
        for lane in (cheap.engine.background, dear.engine.lane):
            lane.service_s = 100.0
            for _ in range(lane.width):
                await stack.enter_async_context(lane.entered(Deadline.after(60)))
        assert names(by_worth((cheap, dear), ASK, remaining_s=2)) == ["cheap", "dear"]
        whenever = replace(ASK, priority="background")
        assert names(by_worth((cheap, dear), whenever, remaining_s=2)) == ["dear", "cheap"]


@pytest.mark.parametrize(
    ("request_", "role"),
    [
        (ASK, "plain"),
        (InferenceRequest(prompt="?", persona="npc"), "dialogue"),
        (InferenceRequest(prompt="?", persona="support"), "support"),
        (InferenceRequest(prompt="?", persona="npc", requires_expert_reasoning=True), "expert"),
    ],
    ids=["plain", "npc", "support", "expert"],
)
def test_the_role_a_request_needs_comes_before_the_price(request_: InferenceRequest, role: str) -> None:
    assert role_of(request_) == role
    meant, cheap = engine("meant", "9", roles=(role,)), engine("cheap", "1", roles=("other",))
    assert names(by_worth((cheap, meant), request_, remaining_s=15)) == ["meant", "cheap"]


def test_engines_of_our_own_stay_before_all_that_is_paid_by_the_token() -> None:
    own, small = engine("own", "90", tier=Tier.SILVER), engine("small", "80", tier=Tier.SILVER)
    dear, cheap = engine("dear", "5"), engine("cheap", "1")
    assert names(by_worth((own, small, dear, cheap), ASK, remaining_s=15)) == ["own", "small", "cheap", "dear"]
