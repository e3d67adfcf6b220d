"""What tiers count stands on /metrics, with labels of our own making however many names there are."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import httpx2
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from body_broker.storage.postgres import Pool
from mcp_servers.hub.cli.status import models_line
from mcp_servers.hub.tier_metrics import TierCounts
from tests.mcp_servers.hub.conftest import Hub
from tiers import sweeping
from tiers.catalogue import Caps, EngineSpec, Given
from tiers.cost import CostLedger
from tiers.counts import Counts
from tiers.engine import Engine
from tiers.model import Tier, Usage
from tiers.reading import read_catalogue
from tiers.wire.base import Ask


def samples(text: str) -> dict[str, float]:
    found = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {
        f"{s.name.removeprefix('body_broker_tier_')}{sorted(s.labels.values())}": s.value
        for s in found
        if s.name.startswith("body_broker_tier_") and not s.name.endswith("_created")
    }


@pytest.fixture
def counts() -> TierCounts:
    return TierCounts(CollectorRegistry())


def read(counts: TierCounts) -> dict[str, float]:
    return samples(generate_latest(counts.registry).decode())


def count_everything(counts: Counts) -> None:
    counts.first_token("silver", "silver", 0.2)
    counts.first_token("silver", "silver", 0.3)
    for seconds in (0.015, 0.017, 0.4):
        counts.token_gap("gold", "gold", seconds)
    counts.answered("silver", "template", 1.5)
    counts.tokens("cloud", "openai", Usage(100, 20, cached=60))
    counts.fell_back("gold", "silent")
    counts.fell_back("gold", "silent")
    counts.cached("cloud", hit=True)
    counts.cached("cloud", hit=False)
    counts.waiting("gold-background", 1)
    counts.waiting("gold-background", 1)
    counts.waiting("gold-background", -1)
    counts.breaker("silver", lambda: "half-open")
    counts.spent("cloud", 0.25)
    counts.tool_used("silver", "search_lore", "ok", 0.02)


async def test_everything_that_is_counted_is_on_the_hubs_metrics(hub: Hub) -> None:
    count_everything(hub.runtime.inferring.counts)
    headers = {"authorization": f"Bearer {await hub.token('person:anna', 'sre')}"}
    async with httpx2.AsyncClient(headers=headers, timeout=60) as http:
        found = samples((await http.get(f"{hub.base}/metrics")).text)

    wanted = {
        "first_token_seconds_count['silver', 'silver']": 2,
        "first_token_seconds_bucket['0.25', 'silver', 'silver']": 1,
        "token_gap_seconds_bucket['0.016', 'gold', 'gold']": 1,
        "token_gap_seconds_count['gold', 'gold']": 3,
        "answer_seconds_count['silver', 'template']": 1,
        "tokens_total['cloud', 'openai', 'prompt']": 100,
        "tokens_total['cached', 'cloud', 'openai']": 60,
        "tokens_total['cloud', 'completion', 'openai']": 20,
        "fallbacks_total['gold', 'silent']": 2,
        "cache_asked_total['cloud', 'hit']": 1,
        "cache_asked_total['cloud', 'miss']": 1,
        "waiting['gold-background']": 1,
        "breaker['open', 'silver']": 0,
        "breaker['half-open', 'silver']": 1,
        "breaker['closed', 'silver']": 0,
        "spent_usd_total['cloud']": 0.25,
        "tool_calls_total['ok', 'search_lore', 'silver']": 1,
        "tool_seconds_count['silver']": 1,
    }
    assert {name: found.get(name) for name in wanted} == wanted


async def test_a_breakers_state_is_on_the_metrics_before_it_changes_and_changes_with_time_alone(
    counts: TierCounts,
) -> None:
    now = 0.0
    spec = EngineSpec(name="silver", tier=Tier.SILVER, dialect="vllm", url="http://127.0.0.1:9", failure_threshold=1)
    breaker = Engine(spec, counts, clock=lambda: now).breaker

    def shown() -> str:
        states = {name: n for name, n in read(counts).items() if name.startswith("breaker")}
        (state,) = (name for name, number in states.items() if number == 1)
        assert len(states) == 3
        return state

    assert shown() == "breaker['closed', 'silver']"
    entry = breaker.enter()
    assert entry is not None
    breaker.failed(entry)
    assert shown() == "breaker['open', 'silver']"
    now = 61.0
    assert shown() == "breaker['half-open', 'silver']"


def test_an_engine_that_lies_about_its_tokens_stops_no_counting(counts: TierCounts) -> None:
    counts.tokens("cloud", "openai", Usage(-1, 5, -3))
    counts.spent("cloud", -1.0)

    assert read(counts)["tokens_total['cloud', 'completion', 'openai']"] == 5
    assert read(counts)["spent_usd_total['cloud']"] == 0


async def test_workers_of_a_hub_book_what_dead_processes_left(hub: Hub) -> None:
    services = hub.runtime.services

    assert sweeping.SWEEP in services.handlers()
    assert sweeping.SWEEP in {schedule.kind for schedule in services.schedules()}


async def test_status_tells_which_engines_there_are_and_what_today_has_cost(pool: Pool) -> None:
    assert await models_line(pool, await asyncio.to_thread(read_catalogue, Given())) == "none configured: docs/tiers.md"
    catalogue = await asyncio.to_thread(read_catalogue, Given(urls={"silver": "http://s", "openai": "http://o"}))
    ledger = CostLedger(pool, catalogue.caps, Counts())
    ask = Ask(model="m", messages=(), max_tokens=1_000)
    paid = catalogue.engines["openai"]
    for _ in range(2):
        reservation = await ledger.reserve(Tier.CLOUD, "service:game", paid, ask, 1_000)
        ledger.settle(reservation, Tier.CLOUD, "service:game", Usage(1_000, 1_000))
    await ledger.settled()

    told = "silver, openai, openai-large; cloud 0.0045 of 10.00 US dollars today"
    assert await models_line(pool, catalogue) == told
    uncapped = replace(catalogue, caps=Caps({}, {}, {}))
    told = "silver, openai, openai-large; cloud has no cap for money, so nothing that costs is asked: set caps.tier_day in models.toml"
    assert await models_line(pool, uncapped) == told
