"""Owns the tests of cards: nothing hidden, nothing left out, and one sentence for however it ended."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from approvals.cards import Card
from approvals.model import Approval, Standing, Verdict, Via, Vote
from approvals.people import People, Person
from approvals.shown import Shown, visible
from body_broker.calls import Json, Receipt
from policies.decision import Requirement

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
PEOPLE = People({"person:anna": Person(groups=frozenset({"sre"}), name="Anna Ash")}, {}, {})
RULE = Requirement(
    rule="writes-need-approval",
    via=("slack", "mfa"),
    approvers=("sre", "admin"),
    quorum=1,
    ttl_s=900,
    own=False,
    rule_digest="d" * 64,
)
YES = Vote(
    voter="person:anna", verdict="approve", via="slack", factor=None, groups=frozenset({"sre"}), reason=None, at=NOW
)


def approval(values: Json | None = None, **changes: object) -> Approval:
    found = Approval(
        id="apr_0123456789012345678901",
        ordinal=1,
        digest="0123456789abcdef" * 4,
        tool="ingest_documents",
        server="rag",
        definition="x",
        arguments=json.dumps({"name": "lore"} if values is None else values),
        chain=("tier:bronze",),
        sessions=("s",),
        tainted=False,
        depth=0,
        history=frozenset(),
        requirements=(RULE,),
        effect="repeatable",
        destructive=False,
        headline="Ingest lore",
        preview=None,
        basis=None,
        reason=None,
        earlier=None,
        standing="pending",
        decided_by=None,
        why=None,
        receipt=Receipt("w", 1),
        created_at=NOW,
        expires_at=NOW + timedelta(minutes=15),
        decided_at=None,
        ended_at=None,
        delivered_at=None,
    )
    return replace(found, **changes)


def card(values: Json | None = None, **changes: object) -> Card:
    return Card.of(approval(values, **changes), PEOPLE, "https://hub.example/", NOW)


def vote(name: str, verdict: Verdict = "approve", via: Via = "slack", group: str = "sre") -> Vote:
    return replace(YES, voter=f"person:{name}", verdict=verdict, via=via, groups=frozenset({group}))


@pytest.mark.parametrize(
    ("text", "shown", "hidden"),
    [
        ("plain", "plain", 0),
        ("grüße, 世界, 🎲", "grüße, 世界, 🎲", 0),
        ("two\nlines\tand a tab", "two\nlines\tand a tab", 0),
        ("pay\u202etxt.exe", "pay\\u202etxt.exe", 1),
        ("zero\u200bwidth\u2060", "zero\\u200bwidth\\u2060", 2),
        ("no\u00a0break\u3000wide", "no\\u00a0break\\u3000wide", 2),
        ("\u2028\u2029\x00\x1b\x7f", "\\u2028\\u2029\\u0000\\u001b\\u007f", 5),
        ("\u3164\u115f\u2800\uffa0\ufe0f\u034f", "\\u3164\\u115f\\u2800\\uffa0\\ufe0f\\u034f", 6),
        ("\U000e0041\U000e007f", "\\udb40\\udc41\\udb40\\udc7f", 2),
        ("\ud800", "\\ud800", 1),
        ("a" + " " * 16 + "b", "a" + "\\u0020" * 16 + "b", 16),
        ("  " * 20 + "indented", "  " * 20 + "indented", 0),
        ("a\n\n\n\nb", "a" + "\\u000a" * 4 + "b", 4),
    ],
)
def test_what_cannot_be_seen_is_written_out_and_counted(text: str, shown: str, hidden: int) -> None:
    assert visible(text) == Shown(shown, hidden)


@given(st.text())
def test_whatever_is_shown_can_be_seen(text: str) -> None:
    again = visible(visible(text).text)
    assert again.hidden == 0
    assert again.text == visible(text).text


@given(st.text(max_size=400), st.integers(min_value=8, max_value=60))
def test_parts_are_the_whole_text_and_none_is_too_long(text: str, size: int) -> None:
    parts = visible(text).parts(size)
    assert "".join(parts) == visible(text).text
    assert all(len(part.encode("utf-16-le")) // 2 <= size for part in parts)


def test_every_argument_is_shown_whole() -> None:
    values = {"deep": {"list": [1, "x" * 50_000, None]}, "name": "lore", "on": True, "tail": "the end"}
    assert json.loads(card(values).arguments.text) == values


def test_hidden_characters_of_arguments_names_preview_and_reason_are_counted_together() -> None:
    found = card({"na\u200bme": ["\x07", "x\u202e"]}, preview="- a\u00a0\n+ b", reason="plea\u200bse")
    assert '"na\\u200bme"' in found.arguments.text
    assert "\\u0007" in found.arguments.text
    assert found.warnings == (
        r"5 hidden, direction-changing or odd blank characters are written out as \u and their code.",
    )


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("ok" + "\n\n\n " * 300 + "evil", 1200),
        ("ok\n" + " " * 2000 + "evil", 2000),
        ("d\u0336e\u20d2", 2),
        ("a" + "\u0301" * 200, 197),
        ("a" + "\U0001d159\U00016fe4" * 50, 100),
    ],
    ids=["blank lines", "indentation", "struck out", "stacked marks", "blank glyphs"],
)
def test_what_pushes_others_away_or_strikes_them_out_is_written_out_too(text: str, hidden: int) -> None:
    assert visible(text).hidden == hidden
    assert visible(visible(text).text).hidden == 0


FORGED = (
    "tidy up\nTool          search_lore\nFingerprint   0000\nYes: person:boss, by Slack\n" + "x" * 90 + "Effect  none"
)


def test_no_line_of_a_terminal_is_a_caller_s_but_behind_a_bar() -> None:
    told = {"decided_by": "person:anna", "decided_at": NOW, "ended_at": NOW}
    no = replace(YES, verdict="deny", reason=FORGED)
    found = card(reason=FORGED, preview=FORGED, headline=FORGED, why=FORGED, votes=(no,), standing="denied", **told)
    lines = found.text().split("\n")
    foreign = [line for line in lines if any(each in line for each in ("search_lore", "0000", "boss", "xxx", "none"))]
    assert len(foreign) > 10
    assert all(re.match(r"  [|:] ", line) and len(line) <= 76 for line in foreign)
    assert lines.index("Its reason, in the caller's own words:") > next(
        at for at, line in enumerate(lines) if line.startswith("Fingerprint")
    )


def test_a_written_escape_is_told_from_a_hidden_character() -> None:
    assert card({"a": "\\u202e"}).arguments.text == '{\n  "a": "\\\\u202e"\n}'
    assert card({"a": "\u202e"}).arguments.text == '{\n  "a": "\\u202e"\n}'


def test_who_asks_stands_beside_on_whose_behalf() -> None:
    found = card(chain=("person:anna", "tier:silver", "service:game"))
    assert found.requester == "service:game"
    assert found.on_behalf_of == ("tier:silver", "Anna Ash (person:anna)")
    assert card().on_behalf_of == ()


def test_a_rule_says_how_far_it_is_who_may_and_by_which_way() -> None:
    two = replace(RULE, quorum=2)
    found = card(requirements=(two,), votes=(vote("anna"), vote("ben", "deny"), vote("sam", group="security")))
    assert found.rules[0].text == "writes-need-approval: 1 of 2 from sre or admin, by Slack or the approval page"
    own = card(requirements=(replace(RULE, own=True, via=("mfa",)),)).rules[0].text
    assert own.endswith("by the approval page; the asker's own second factor counts too")


def test_the_channels_of_a_card_are_those_of_rules_that_want_more() -> None:
    page = replace(RULE, rule="strict", via=("mfa",))
    assert card(requirements=(RULE, page)).channels == {"slack", "mfa"}
    assert card(requirements=(RULE, page), votes=(YES,)).channels == {"mfa"}


def test_the_asker_own_vote_is_not_among_those_that_count() -> None:
    found = card(chain=("person:anna", "tier:bronze"), votes=(YES,))
    assert found.rules[0].has == 0


def test_taint_depth_and_an_earlier_request_are_warned_of() -> None:
    found = card(tainted=True, depth=2, earlier="apr_before")
    assert [warning.split()[0:3] for warning in found.warnings] == [
        ["The", "caller", "had"],
        ["The", "call", "was"],
        ["The", "very", "same"],
    ]


def test_the_effect_says_what_cannot_be_undone_and_what_a_crash_leaves() -> None:
    assert card().effect == (
        "After the last yes it runs once, at once. If the hub dies in the middle, it is finished without happening twice."
    )
    worst = card(destructive=True, effect="once").effect
    assert "cannot bring it back" in worst
    assert "a person must find out" in worst
    assert "changes nothing itself" in card(effect="none").effect


RECORDS: list[tuple[Standing, dict[str, object], str]] = [
    ("approved", {}, "Approved by Anna Ash (person:anna) at 2026-11-22 12:00:00 UTC. It runs next."),
    ("executing", {}, "Approved by Anna Ash (person:anna) at 2026-11-22 12:00:00 UTC. It is running."),
    (
        "done",
        {"ended_at": NOW + timedelta(seconds=2.14)},
        "Approved by Anna Ash (person:anna) at 2026-11-22 12:00:00 UTC. Done at 2026-11-22 12:00:02 UTC, 2.1 s after the decision.",
    ),
    (
        "failed",
        {"ended_at": NOW + timedelta(seconds=61)},
        "Approved by Anna Ash (person:anna) at 2026-11-22 12:00:00 UTC. It failed at 2026-11-22 12:01:01 UTC, 1 min 1 s after the decision.",
    ),
    (
        "unknown",
        {},
        "Approved by Anna Ash (person:anna) at 2026-11-22 12:00:00 UTC. Whether it happened is not known: look, then run `body-broker approvals resolve apr_0123456789012345678901`.",
    ),
    (
        "expired",
        {},
        "Approved by Anna Ash (person:anna) at 2026-11-22 12:00:00 UTC. But nothing ran it before it expired.",
    ),
    (
        "cancelled",
        {"ended_at": NOW},
        "Approved by Anna Ash (person:anna) at 2026-11-22 12:00:00 UTC. But it was cancelled at 2026-11-22 12:00:00 UTC before it ran.",
    ),
]


@pytest.mark.parametrize(("standing", "changes", "record"), RECORDS, ids=[standing for standing, _, _ in RECORDS])
def test_a_yes_is_recorded_with_who_when_and_what_became_of_it(
    standing: Standing, changes: dict[str, object], record: str
) -> None:
    given: dict[str, object] = {"votes": (YES,), "decided_by": "person:anna", "decided_at": NOW} | changes
    assert card(standing=standing, **given).record == record


def test_a_no_an_expiry_and_a_cancellation_are_told_apart() -> None:
    told = {"decided_at": NOW, "ended_at": NOW}
    denied = card(standing="denied", decided_by="person:anna", why="no\u202e", **told)
    assert denied.record == "Denied by Anna Ash (person:anna) at 2026-11-22 12:00:00 UTC."
    assert denied.why == "no\\u202e"
    expired = card(standing="expired", decided_by="service:body-broker", **told).record
    assert expired == "Expired: nobody decided in time. That is not a refusal. 2026-11-22 12:00:00 UTC"
    cancelled = card(standing="cancelled", decided_by="tier:bronze", **told).record
    assert cancelled == "Cancelled by tier:bronze. 2026-11-22 12:00:00 UTC"


def test_what_went_wrong_is_told_in_the_hub_s_words_and_bounded() -> None:
    found = card(standing="failed", error={"code": "conflict", "message": "Some\u200bbody changed it." + "x" * 1000})
    assert found.error is not None
    assert found.error.startswith("Some\\u200bbody changed it.")
    assert len(found.error) == 500


def test_only_what_is_pending_and_in_time_is_open() -> None:
    assert card().is_open
    assert not card(standing="denied", decided_at=NOW, ended_at=NOW).is_open
    assert not Card.of(approval(), PEOPLE, None, NOW + timedelta(minutes=15)).is_open


def test_the_link_leads_to_the_page_where_pages_are_served() -> None:
    assert card().link == "https://hub.example/approve/apr_0123456789012345678901"
    assert Card.of(approval(), PEOPLE, None, NOW).link is None


def test_the_terminal_gets_the_same_card_in_lines() -> None:
    text = card(
        {"name": "lore", "count": 2},
        preview="- old\n+ new",
        reason="we need it",
        chain=("person:anna", "tier:bronze"),
        votes=(vote("ben"),),
    ).text()
    for words in (
        "Ingest lore",
        "tier:bronze",
        "Anna Ash",
        "\n  | we need it",
        "\n  | - old",
        '"count": 2',
        "0123456789abcdef",
    ):
        assert words in text
    assert re.search(r"Yes: person:ben, by Slack, 2026-11-22 12:00:00 UTC", text)


def test_the_card_names_what_the_caller_had_read_and_hides_nothing_in_it() -> None:
    found = card({}, tainted=True, tainted_by=("rag's search_lore", "evil\u202eup"))
    assert found.warnings == (
        r"The caller had read text from outside, by rag's search_lore, evil\u202eup: this may be somebody else's idea.",
    )
    assert f"! {found.warnings[0]}" in found.text()
    assert card({}, tainted=True).warnings == (
        "The caller had read text from outside: this may be somebody else's idea.",
    )
