"""Owns how an approval looks on a page: the same card as in Slack and the terminal, all of it, inert."""

from __future__ import annotations

from datetime import datetime

from approvals.cards import Card, Rule, Shown
from approvals.model import Standing
from approvals.page.markup import Html, tag
from approvals.page.shell import note

_STATES: dict[Standing, tuple[str, str]] = {
    "pending": ("wait", "Waiting"),
    "approved": ("yes", "Approved"),
    "executing": ("yes", "Running"),
    "done": ("yes", "Done"),
    "failed": ("no", "Failed"),
    "unknown": ("no", "Outcome unknown"),
    "denied": ("no", "Denied"),
    "expired": ("", "Expired"),
    "cancelled": ("", "Cancelled"),
}


def badge(standing: Standing) -> Html:
    """How it stands, in a word."""
    kind, text = _STATES[standing]
    return tag("span", text, class_=f"badge {kind}".strip())


def moment(at: datetime) -> Html:
    """A time, which the script turns into the reader's own."""
    text = at.strftime("%Y-%m-%d %H:%M:%S UTC")
    return tag("time", text, datetime=at.isoformat(), data_moment=True)


def countdown(at: datetime, now: datetime) -> Html:
    """How long is left; the script counts it down."""
    left = max(0, int((at - now).total_seconds()))
    return tag("time", _span(left), datetime=at.isoformat(), data_left=left)


def _span(left_s: int) -> str:
    hours, minutes, seconds = left_s // 3600, left_s // 60 % 60, left_s % 60
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def card_view(card: Card, now: datetime) -> Html:
    """The card as a page shows it; nothing of it is left out."""
    head = tag(
        "div",
        badge(card.standing),
        tag("span", "expires in ", countdown(card.expires_at, now), class_="soft small") if card.is_open else None,
        class_="state",
    )
    return tag(
        "section",
        head,
        tag("h1", card.headline),
        note(card.record, _STATES[card.standing][0], role="status") if card.record else None,
        tag("p", "Reason given: ", tag("q", card.why)) if card.why else None,
        note(card.error, "no") if card.error else None,
        [note(warning, "wait") for warning in card.warnings],
        _facts(card),
        _text("It would change", "change", card.preview, is_diff=True),
        _text("Arguments, all of them", "arguments", card.arguments),
        _votes(card),
        class_="box card",
    )


def _facts(card: Card) -> Html:
    who = tag("strong", card.requester)
    asked = [who, *(tag("span", f", for {name}") for name in card.on_behalf_of)]
    rows: list[tuple[str, Html | list[Html] | None]] = [
        ("Asked by", asked),
        ("Its reason", _reason(card.reason)),
        ("Tool", tag("code", card.tool)),
        ("Asked at", moment(card.created_at)),
        ("Rule" if len(card.rules) == 1 else "Rules", [_rule(rule) for rule in card.rules]),
        ("A yes means", tag("span", card.effect)),
        ("Expires", moment(card.expires_at)),
        ("Fingerprint", tag("span", card.fingerprint, class_="print")),
    ]
    found = [[tag("dt", name), tag("dd", value)] for name, value in rows if value]
    return tag("dl", *(part for row in found for part in row), class_="facts")


def _reason(reason: Shown | None) -> list[Html] | None:
    if reason is None:
        return None
    return [
        tag("blockquote", reason.text),
        tag("span", "the caller's own words, checked by nobody", class_="soft small"),
    ]


def _rule(rule: Rule) -> Html:
    return tag("p", rule.text, " ", tag("span", "✓ met", class_="badge yes") if rule.met else None)


def _text(title: str, name: str, shown: Shown | None, *, is_diff: bool = False) -> Html | None:
    if shown is None:
        return None
    lines = shown.text.split("\n")
    body = [_diff_line(line) for line in lines] if is_diff else shown.text
    much = f" ({len(lines)} lines, {len(shown.text)} characters)"
    return tag(
        "div",
        tag("h2", title, tag("span", much, class_="soft small"), id=f"title-{name}"),
        # As long as it is: what stands in a box of its own to scroll may be approved unread.
        tag("pre", body, id=name),
    )


def _diff_line(line: str) -> Html:
    kind = {"+": "add", "-": "cut"}.get(line[:1])
    return tag("span", line + "\n", class_=kind)


def _votes(card: Card) -> Html | None:
    if not card.votes:
        return None
    lines = [tag("li", vote.text, f" - {vote.reason}" if vote.reason else None) for vote in card.votes]
    return tag("div", tag("h2", "Votes"), tag("ul", lines, class_="votes"))
