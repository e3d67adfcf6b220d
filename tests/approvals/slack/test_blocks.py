"""Owns the tests of what a card looks like in Slack: inert, whole, and within every limit whatever a caller sends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from approvals.slack.blocks import Block, denial, message
from tests.approvals.test_cards import NOW, RULE, YES, card
from tests.counterparts.slack_limits import check_message, check_view, texts_of

EVIL = "<!channel> <@U0ANNA00> *bold* `code` <https://evil.example|here> :tada: & > quoted"
texts = st.text(max_size=3000) | st.text(alphabet=" \n", max_size=2000) | st.just(EVIL * 20)


def said(blocks: list[Block]) -> str:
    return "\n".join(str(text.get("text", "")) for text in texts_of(blocks))


def buttons(blocks: list[Block]) -> dict[str, Any]:
    rows = [block["elements"] for block in blocks if block["type"] == "actions"]
    return {button["action_id"]: button for row in rows for button in row}


def test_what_a_caller_wrote_is_plain_or_preformatted_and_never_read_as_markup() -> None:
    found = card({"a": EVIL, EVIL: 1}, headline=EVIL, preview=EVIL, reason=EVIL)
    drawn = message(found, mentions=("S0ONCALL",))
    assert "channel" not in drawn.text
    for text in texts_of(drawn.blocks):
        assert text["type"] in {"plain_text", "text", "date", "usergroup"}
        assert text.get("emoji", False) is False
    # The one piece of rich text that is not preformatted holds our own words.
    sections = [e for b in drawn.blocks if b["type"] == "rich_text" for e in b["elements"]]
    ours = [each for each in sections if each["type"] == "rich_text_section"]
    assert [said([each]) for each in ours] == ["Expires \n\n.\n \n"]
    assert all(each["type"] == "rich_text_preformatted" for each in sections if each not in ours)


def test_the_message_begins_with_verb_and_target_and_says_everything_that_is_decided() -> None:
    found = card(
        {"name": "lore"},
        reason="we need it",
        preview="- old",
        chain=("person:anna", "tier:bronze"),
        earlier="apr_before",
        tainted=True,
    )
    drawn = message(found)
    assert drawn.blocks[0] == {"type": "header", "text": {"type": "plain_text", "text": "Ingest lore", "emoji": False}}
    text = said(drawn.blocks)
    for words in (
        "Asked by\ntier:bronze",
        "On behalf of\nAnna Ash (person:anna)",
        "in the caller's own words",
        "we need it",
        "- old",
        '"name": "lore"',
        "writes-need-approval: 0 of 1",
        "runs once",
        found.fingerprint,
        "apr_before",
        "text from outside",
    ):
        assert words in text
    assert drawn.text == "Approval needed: ingest_documents, fingerprint 0123456789abcdef."


def test_both_buttons_carry_approval_and_digest_and_a_yes_is_confirmed() -> None:
    found = buttons(message(card()).blocks)
    assert (
        found["approve"]["value"]
        == found["deny"]["value"]
        == f'["apr_0123456789012345678901","{"0123456789abcdef" * 4}"]'
    )
    assert "runs once" in found["approve"]["confirm"]["text"]["text"]
    assert "style" not in found["approve"]["confirm"]
    strong = buttons(message(card(destructive=True)).blocks)["approve"]["confirm"]
    assert strong["style"] == "danger"
    assert "nobody can bring it back" in strong["text"]["text"]
    assert "cannot be undone" in strong["title"]["text"]


def test_a_rule_that_does_not_name_slack_gets_the_link_and_no_buttons() -> None:
    drawn = message(card(requirements=(replace(RULE, via=("mfa",)),)))
    assert set(buttons(drawn.blocks)) == {"page"}
    assert "does not take a yes from Slack. Decide on its page." in said(drawn.blocks)


def test_what_is_decided_has_its_record_and_no_buttons() -> None:
    found = card(standing="denied", decided_by="person:anna", decided_at=NOW, ended_at=NOW, why="not today")
    drawn = message(found)
    assert set(buttons(drawn.blocks)) == {"page"}
    assert "Denied by Anna Ash" in said(drawn.blocks)
    assert "Reason:\nnot today" in said(drawn.blocks)
    assert drawn.text.endswith(": denied.")
    failed = card(standing="failed", votes=(YES,), decided_at=NOW, ended_at=NOW, error={"message": "It broke."})
    assert "It said:\nIt broke." in said(message(failed).blocks)


def test_long_bodies_go_into_the_thread_whole() -> None:
    value = "x" * 8000 + "the tail"
    found = card({"value": value}, preview="p" * 3000)
    drawn = message(found)
    assert value not in said(drawn.blocks)
    assert "2 parts are being written" in said(drawn.blocks)
    assert set(buttons(drawn.blocks)) == {"page"}
    assert set(buttons(message(found, posted=2).blocks)) == {"approve", "deny", "page"}
    whole = "".join(text["text"] for part in drawn.parts for text in texts_of(part) if text["type"] == "text")
    assert whole == found.preview.text + found.arguments.text if found.preview else ""
    assert [part[0]["text"]["text"][:12] for part in drawn.parts] == ["Part 1 of 2.", "Part 2 of 2."]


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text(max_size=40), texts, max_size=4),
    texts,
    st.none() | texts,
    st.none() | st.text(max_size=500),
)
def test_slack_takes_every_card(values: dict[str, str], headline: str, preview: str | None, reason: str | None) -> None:
    found = card(values, headline=f"x{headline[:300]}", preview=preview, reason=reason, destructive=True)
    for posted in (0, 99):
        drawn = message(found, posted=posted, mentions=("S0ONCALL",))
        check_message(drawn.text, drawn.blocks)
        for part in drawn.parts:
            check_message("x", part)
    check_view(denial(found, "x"))


@pytest.mark.parametrize("size", [100, 9000, 20_000, 150_000])
@pytest.mark.parametrize("letter", ["x", "ü", "🎲", "\u202e", '"'])
def test_slack_takes_arguments_of_any_length_and_kind(size: int, letter: str) -> None:
    drawn = message(card({"value": letter * size}), posted=99)
    check_message(drawn.text, drawn.blocks)
    for part in drawn.parts:
        check_message("x", part)
