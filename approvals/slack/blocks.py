"""Owns what a card looks like in Slack: plain and preformatted text only, so that nothing a caller wrote can be a link, a mention or bold."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from approvals.cards import Card, VoteLine
from approvals.shown import Shown, weight

APPROVE, DENY, PAGE, CHECK = "approve", "deny", "page", "check"
"""What the buttons are called in what Slack sends."""
DENIAL = "denial"
"""The callback id of the modal that asks why."""
REASON_BLOCK, REASON_FIELD = "reason", "text"

TEXT_MAX = 2800
"""Weight of one text; Slack takes 3,000 characters, and says nowhere whether it counts them escaped."""
SHOWN_MAX = 8000
"""Weight of preview and arguments that stand in the message itself; longer ones go into its thread, whole."""
MESSAGE_MAX = 11_000
"""Weight of all blocks together as JSON; Slack takes about 13,200, and there must be room for what was decided."""
_ROOM = 1500
PARTS_MAX = 20
"""Messages in a thread that a person can be asked to read; beyond them there is only the page."""
_PART_MAX = 9500
_HEADER_MAX = 150

Block = dict[str, Any]  # Slack's JSON
Form = Literal["inside", "thread", "page"]
"""Where the arguments are: in the message, in its thread, or on the page only."""
FORMS: tuple[Form, ...] = ("inside", "thread", "page")
"""Each for what the one before is too small for."""


@dataclass(frozen=True, slots=True)
class Message:
    """One approval as Slack gets it.

    Attributes:
        text: For notifications, in our own words.
        blocks: The message.
        parts: Each a message for its thread; empty where everything stands in the message.
        form: Where the arguments are.
    """

    text: str
    blocks: list[Block]
    parts: tuple[list[Block], ...]
    form: Form


def message(card: Card, *, posted: int = 0, mentions: Sequence[str] = (), form: Form | None = None) -> Message:
    """The message of a card.

    Args:
        card: What is shown.
        posted: Parts that are in its thread already: there are no buttons before all of them are.
        mentions: User groups that are called.
        form: What it has been since it was posted; None for the first that is large enough.
    """
    bodies = _bodies(card)
    if form is None:
        form = "inside" if sum(weight(body.text) for _, body in bodies) <= SHOWN_MAX else "thread"
        if form == "inside" and measure(_whole(card, bodies, mentions)) > MESSAGE_MAX - _ROOM:
            form = "thread"
    if form == "inside" and measure(whole := _whole(card, bodies, mentions)) <= MESSAGE_MAX:
        return Message(_fallback(card), whole, (), form)
    parts = () if form != "thread" else _parts(bodies)
    if form == "thread" and not parts:
        form = "page"
    hint = _hint(form, len(parts), posted, card)
    end = _end(card, buttons=form == "thread" and posted >= len(parts))
    blocks = [*_blocks(card, [], mentions), *_paragraph(hint), *end]
    if measure(blocks) > MESSAGE_MAX:  # of what people wrote nothing is cut: it is elsewhere
        hint = f"{hint} What people wrote is too long for Slack: it is on {_elsewhere(card)}."
        end, form, parts = (end, form, parts) if card.record else (_end(card, buttons=False), "page", ())
        blocks = [*_blocks(card, [], mentions, brief=True), *_paragraph(hint), *end]
    return Message(_fallback(card), blocks, parts, form)


def measure(blocks: object) -> int:
    """How long blocks are at most as Slack counts them."""
    return weight(orjson.dumps(blocks).decode())


def denial(card: Card, private: str) -> Block:
    """The modal that asks why; `private` comes back with the answer, and nobody but Slack can change it."""
    return {
        "type": "modal",
        "callback_id": DENIAL,
        "private_metadata": private,
        "title": plain("Deny this call"),
        "submit": plain("Deny"),
        "close": plain("Back"),
        "blocks": [
            *_paragraph(f"{card.headline}\nFingerprint {card.fingerprint}"),
            {
                "type": "input",
                "block_id": REASON_BLOCK,
                "optional": True,
                "label": plain("Why? The caller is told so"),
                "element": {
                    "type": "plain_text_input",
                    "action_id": REASON_FIELD,
                    "multiline": True,
                    "max_length": 500,
                },
            },
        ],
    }


def plain(text: str) -> Block:
    """Text that Slack does not read anything into."""
    return {"type": "plain_text", "text": text, "emoji": False}


def preformatted(text: str) -> Block:
    """A block of text as it is."""
    inner = {"type": "rich_text_preformatted", "elements": [{"type": "text", "text": text or " "}]}
    return {"type": "rich_text", "elements": [inner]}


def value_of(card: Card) -> str:
    """What a button carries: it is worth something on the one message that shows this card."""
    return orjson.dumps([card.id, card.digest]).decode()


def _whole(card: Card, bodies: list[tuple[str, Shown]], mentions: Sequence[str]) -> list[Block]:
    return [*_blocks(card, bodies, mentions), *_end(card, buttons=True)]


def _blocks(
    card: Card, bodies: list[tuple[str, Shown]], mentions: Sequence[str], *, brief: bool = False
) -> list[Block]:
    facts = [
        ("Asked by", card.requester),
        ("On behalf of", ", for ".join(card.on_behalf_of)),
        ("Tool", card.tool),
        ("Asked at", f"{card.created_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("Fingerprint", card.fingerprint),
    ]
    found = _heading("A call that needs people" if brief else card.headline)
    if card.record is not None:
        found += _paragraph(card.record)
        found += [] if brief else [*_box("Reason", card.why), *_box("It said", card.error)]
    found.append({"type": "section", "fields": [plain(f"{name}\n{value}") for name, value in facts if value]})
    if card.reason is not None and not brief:
        found += _box("Why, in the caller's own words", card.reason.text)
    for title, body in bodies:
        found += _box(title, body.text)
    found += _paragraph("\n".join(f"Rule {rule.text}" for rule in card.rules))
    found += _votes(card.votes, card.why, brief=brief)
    if card.record is None:
        found += _paragraph(card.effect)
        found.append(_expiry(card, mentions))
    return found


def _votes(votes: Sequence[VoteLine], why: str | None, *, brief: bool) -> list[Block]:
    """One line each in our words; what a voter wrote has a box of its own, where it can pass for no other line."""
    found: list[Block] = []
    for vote in votes:
        found += _paragraph(vote.text)
        if vote.reason != why and not brief:
            found += _box("Their reason", vote.reason)
    return found


def _box(title: str, text: str | None) -> list[Block]:
    return [*_paragraph(f"{title}:"), *_texts(Shown(text))] if text else []


def _bodies(card: Card) -> list[tuple[str, Shown]]:
    preview = [] if card.preview is None else [("What it would change", card.preview)]
    return [*preview, ("All arguments", card.arguments)]


def _heading(headline: str) -> list[Block]:
    if weight(headline) <= _HEADER_MAX:
        return [{"type": "header", "text": plain(headline)}]
    return [{"type": "header", "text": plain("A call that needs people")}, *_paragraph(headline)]


def _paragraph(text: str) -> list[Block]:
    return [{"type": "section", "text": plain(part)} for part in Shown(text).parts(TEXT_MAX)]


def _texts(shown: Shown) -> list[Block]:
    return [preformatted(part) for part in shown.parts(TEXT_MAX)]


def _parts(bodies: list[tuple[str, Shown]]) -> tuple[list[Block], ...]:
    """Everything there is to read, as messages of a thread; none where it is more than anybody reads there."""
    if sum(weight(body.text) for _, body in bodies) > PARTS_MAX * _PART_MAX:
        return ()
    groups: list[list[tuple[str, str]]] = []
    left = 0
    for piece in [(title, text) for title, body in bodies for text in body.parts(TEXT_MAX)]:
        size = measure(preformatted(piece[1])) + measure(_paragraph(piece[0]))
        if size > left:
            groups.append([])
            left = _PART_MAX
        groups[-1].append(piece)
        left -= size
    if len(groups) > PARTS_MAX:
        return ()
    return tuple(
        [*_paragraph(f"Part {number} of {len(groups)}. {group[0][0]}:"), *_group(group)]
        for number, group in enumerate(groups, 1)
    )


def _group(group: list[tuple[str, str]]) -> list[Block]:
    found: list[Block] = []
    title = group[0][0]
    for name, text in group:
        if name != title:
            found += _paragraph(f"{name}:")
            title = name
        found.append(preformatted(text))
    return found


def _elsewhere(card: Card) -> str:
    return "its page" if card.link else f"`body-broker approvals show {card.id}`"


def _hint(form: Form, parts: int, posted: int, card: Card) -> str:
    if form == "inside":
        return f"Its arguments stood here while it was open; now they are on {_elsewhere(card)}."
    if form == "page":
        what = "it can be read, and decided, on {} only" if card.is_open else "they are on {}"
        return f"Its arguments are too long for Slack: {what.format(_elsewhere(card))}."
    if posted < parts and card.is_open:
        return f"Its arguments are long: {parts} parts are being written into the thread; the buttons come after them."
    if posted < parts:
        return f"{posted} of {parts} parts of its arguments are in the thread; all of them are on {_elsewhere(card)}."
    if not card.is_open:
        return f"Its arguments are in the thread, in {parts} parts."
    return f"Its arguments are long. Read all {parts} parts in the thread before you decide."


def _end(card: Card, *, buttons: bool) -> list[Block]:
    found: list[Block] = []
    if card.warnings:
        found.append({"type": "context", "elements": [plain(warning) for warning in card.warnings]})
    elements: list[Block] = []
    if card.is_open and buttons and "slack" in card.channels:
        elements += [_approve(card), _deny(card)]
    elif card.is_open and buttons:
        found += _paragraph("The rule does not take a yes from Slack." + (" Decide on its page." if card.link else ""))
    if card.link is not None:
        elements.append({"type": "button", "action_id": PAGE, "text": plain("Open its page"), "url": card.link})
    if elements:
        found.append({"type": "actions", "elements": elements})
    return found


def _approve(card: Card) -> Block:
    strong = "It takes something away, and nobody can bring it back. " if card.destructive else ""
    confirm = {
        "title": plain("Approve something that cannot be undone?" if card.destructive else "Approve this call?"),
        "text": plain(f"{strong}It runs once, at once. Fingerprint {card.fingerprint}."),
        "confirm": plain("Yes, do it" if card.destructive else "Approve"),
        "deny": plain("Back"),
    } | ({"style": "danger"} if card.destructive else {})
    return {
        "type": "button",
        "action_id": APPROVE,
        "style": "primary",
        "text": plain("Approve"),
        "value": value_of(card),
        "confirm": confirm,
    }


def _deny(card: Card) -> Block:
    return {
        "type": "button",
        "action_id": DENY,
        "style": "danger",
        "text": plain("Deny…"),
        "value": value_of(card),
    }


def _expiry(card: Card, mentions: Sequence[str]) -> Block:
    # The only rich text that is not preformatted; every word of it is ours.
    date = {
        "type": "date",
        "timestamp": int(card.expires_at.timestamp()),
        "format": "{date_short_pretty} at {time_secs}",
        "fallback": f"{card.expires_at:%Y-%m-%d %H:%M:%S} UTC",
    }
    elements: list[Block] = [{"type": "text", "text": "Expires "}, date, {"type": "text", "text": "."}]
    for mention in mentions:
        elements += [{"type": "text", "text": " "}, {"type": "usergroup", "usergroup_id": mention}]
    return {"type": "rich_text", "elements": [{"type": "rich_text_section", "elements": elements}]}


def _fallback(card: Card) -> str:
    asked = f"Approval needed: {card.tool}, fingerprint {card.fingerprint}."
    text = (
        asked if card.record is None else f"Approval of {card.tool}, fingerprint {card.fingerprint}: {card.standing}."
    )
    return html.escape(text, quote=False)
