"""Numbers of a report: those that stand in a fact pass, all others are named, and what is no number is left alone."""

from __future__ import annotations

import pytest

from mcp_servers.admin.models import ReportFact
from mcp_servers.admin.numbers import unverified

FACTS = [
    ReportFact(key=key, value=value, unit=unit, source="s")
    for key, value, unit in (
        ("jobs", 1_234, "jobs"),
        ("share", 12.345, "percent"),
        ("spent", 4_512.6, "USD"),
        ("tokens", 3_456_789, "tokens"),
        ("given.uptime", 99.9, ""),
        ("given.note", "44 players of 80", ""),
        ("period.since", "2026-11-15T00:00:00+00:00", "UTC"),
    )
]


def written(text: str) -> list[str]:
    return [each.partition(":")[0] for each in unverified([text], FACTS)]


@pytest.mark.parametrize(
    "text",
    [
        "1234 jobs, or 1,234 jobs.",
        "12.345 percent, 12.3%, 12 %",
        "$4,512.60 or 4,513 USD, about $4.5k, 4.5 thousand dollars",
        "3.5 million tokens, 3.46M, 3,456,789",
        "99.9% up, with 44 players of 80",
        "From 2026-11-15 to 2026-11-22T17:00:00Z, at 17:00 on 22 November 2026, November 22, 2026, in Nov 2026.",
        "The 3rd and the 21st.\n1. First.\n  2) Second.",
        "p95 of gpt-4.1 on EC2, x86_64, spend.cloud.usd, v2.3.1",
        "No number, nor four.",
        "",
    ],
)
def test_numbers_of_facts_and_what_is_no_number_pass(text: str) -> None:
    assert written(text) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1235 jobs", ["1235"]),
        ("13% failed", ["13%"]),
        ("1234% more", ["1234%"]),  # a count is no percentage
        ("12.345 failed; $1,234 was spent", ["$1,234"]),  # nor money
        ("€4,512.60", ["€4,512.60"]),
        ("12.34 percent and 12.36 percent", ["12.36 percent"]),
        ("from 3-5 to 7", ["3", "5", "7"]),
        ("5 million", ["5 million"]),
        ("2026 jobs in Q4", ["2026"]),
        ("(42)", ["42"]),
        ("44e6 requests, 8.0e1 were lost", ["44e6"]),
        ("44'000 or 44_000; 1.234e3 jobs", ["44'000", "44_000"]),
        (".75 of it", [".75"]),
        ("9" * 400, ["9" * 400]),
    ],
)
def test_numbers_that_stand_in_no_fact_are_named(text: str, found: list[str]) -> None:
    assert written(text) == found


def test_each_is_told_once_with_the_words_around_it() -> None:
    said = "Twice: it grew by 42% over the week."
    assert unverified([said, said], FACTS) == ["42%: “Twice: it grew by 42% over the week.”"]


def test_a_text_of_numbers_is_read_in_a_moment_and_told_in_part() -> None:
    told = unverified([" ".join(str(n) for n in range(20_000, 24_000))], FACTS)
    assert len(told) == 101
    assert told[-1] == "and 3900 more"
