"""Facts of a report: counted in the hub's own records, totals only, and honest about what could not be counted."""

from __future__ import annotations

from typing import Any

import pytest

from body_broker.storage.postgres import Pool
from mcp_servers.admin import facts
from mcp_servers.admin.facts import GROUPS, Collected, collect
from tests.mcp_servers.admin.records import PERSON, SECRET, keep_records


def values(collected: Collected) -> dict[str, Any]:
    return {each.key: each.value for each in collected.facts}


async def test_a_weeks_totals_are_those_of_the_records(pool: Pool) -> None:
    await keep_records(pool)

    collected = await collect(pool, "weekly", "week")

    found = values(collected)
    expected = {
        "period.days": 7,
        "work.total": 4,
        "work.failed": 1,
        "work.failed.share": 25.0,
        "work.scan.succeeded": 2,
        "work.scan.seconds.median": 15.0,
        "work.scan.seconds.p95": 19.5,
        "work.nobodys.queued": 1,
        "queue.now.queued": 1,
        "experts.bronze.asked": 3,
        "experts.bronze.answered": 1,
        "experts.bronze.lost": 1,
        "experts.bronze.maybe_spent": 1,
        "experts.bronze.usd": 0.25,
        "experts.bronze.seconds.median": 60.0,
        "spend.total.usd": 2.0,
        "spend.cloud.usd": 2.0,
        "spend.cloud.requests": 8,
        "spend.cloud.prompt_tokens": 1_200,
        "spend.bronze.prompt_tokens": 7,
        "approvals.asked": 3,
        "approvals.pending": 1,
        "approvals.denied": 1,
        "approvals.outcome.done": 1,
        "approvals.decided.seconds.median": 45.0,
        "audit.records": 3,
        "audit.decision.allow": 2,
        "audit.decision.deny": 1,
        "scans.made": 2,
        "scans.incomplete": 1,
        "repositories.registered": 2,
        "repositories.never_scanned": 1,
        "findings.open": 2,
        "findings.open.high": 1,
        "findings.open.low": 1,
        "changes.total": 2,
        "changes.config.failed": 1,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert "changes.config.draft" not in found
    assert (collected.until - collected.since).days == 7
    assert collected.missing == []
    assert all(each.source for each in collected.facts)


async def test_facts_are_totals_without_anybodys_words_or_names(pool: Pool) -> None:
    await keep_records(pool)
    for report in GROUPS:
        collected = await collect(pool, report, "month")
        told = " ".join(each.model_dump_json() for each in collected.facts)
        assert SECRET not in told
        assert "Ashmere" not in told
        assert PERSON not in told
        assert "/game" not in told


async def test_costs_are_told_day_by_day(pool: Pool) -> None:
    await keep_records(pool)

    found = values(await collect(pool, "costs", "month"))

    days = {key: value for key, value in found.items() if key.startswith("spend.cloud.2")}
    assert sorted(days.values()) == [0.5, 1.5, 9.0]
    assert found["spend.total.usd"] == 11.0
    assert "approvals.asked" not in found


async def test_a_month_says_that_ended_work_is_not_kept_so_long(pool: Pool) -> None:
    assert (await collect(pool, "capacity", "week")).missing == []
    (missing,) = (await collect(pool, "capacity", "month")).missing
    assert "7 days ago is not kept" in missing


async def test_what_takes_too_long_to_count_is_said_and_the_rest_is_there(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keep_records(pool)
    monkeypatch.setattr(facts, "GROUP_SECONDS_MAX", 1)
    async with pool.acquire() as other, other.transaction():
        await other.execute("LOCK TABLE scan IN ACCESS EXCLUSIVE MODE")
        collected = await collect(pool, "incidents", "week")

    assert collected.missing == ["security: counting it took longer than 1 s."]
    found = values(collected)
    assert (found["changes.total"], found["audit.records"]) == (2, 3)
    assert "scans.made" not in found


async def test_a_hub_without_records_has_a_report_too(pool: Pool) -> None:
    for report in GROUPS:
        found = values(await collect(pool, report, "day"))
        assert found["period.days"] == 1
        assert found.get("work.total", 0) == 0
        assert "work.failed.share" not in found  # of nothing
