"""Owns what a card looks like in Slack: plain and preformatted text only, so that nothing a caller wrote can be a link, a mention or bold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from approvals.cards import Card, Shown

APPROVE, DENY, PAGE, CHECK = "approve", "deny", "page", "check"
"""What the buttons are called in what Slack sends."""
DENIAL = "denial"
"""The callback id of the modal that asks why."""
REASON_BLOCK, REASON_FIELD = "reason", "text"

TEXT_MAX = 2800
"""UTF-16 units of one text; Slack takes 3,000."""
SHOWN_MAX = 9000
"""Characters of preview and arguments that stand in the message itself; longer ones go into its thread, whole."""
MESSAGE_MAX = 12_000
"""Characters of all blocks together as JSON; Slack takes about 13,200."""
PARTS_MAX = 20
"""Messages in a thread that a person can be asked to read; beyond them there is only the page."""
_PART_MAX = 10_000
_HEADER_MAX = 150

Block = dict[str, Any]  # Slack's JSON


@dataclass(frozen=True, slots=True)
class Message:
    """One approval as Slack gets it.

    Attributes:
        text: For notifications, in our own words.
        blocks: The message.
        parts: Each a message for its thread; empty where everything stands in the message.
    """

    text: str
    blocks: list[Block]
    parts: tuple[list[Block], ...]


def message(card: Card, *, posted: int = 0, mentions: Sequence[str] = ()) -> Message:
    """The message of a card.

    Args:
        card: What is shown.
        posted: Parts that are in its thread already: there are no buttons before all of them are.
        mentions: User groups that are called.
    """
    bodies = _bodies(card)
    inside = sum(len(body.text) for _, body in bodies) <= SHOWN_MAX
    blocks = _blocks(card, bodies if inside else [], mentions)
    if inside and _size(blocks) <= MESSAGE_MAX:
        return Message(_fallback(card), [*blocks, *_end(card, buttons=True)], ())
    parts = _parts(bodies)
    fits = len(parts) <= PARTS_MAX
    hint = _hint(len(parts), posted, fits=fits, card=card)
    blocks = [*_blocks(card, [], mentions), *_paragraph(hint), *_end(card, buttons=fits and posted >= len(parts))]
    return Message(_fallback(card), blocks, parts if fits else ())


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


def _blocks(card: Card, bodies: list[tuple[str, Shown]], mentions: Sequence[str]) -> list[Block]:
    facts = [
        ("Asked by", card.requester),
        ("On behalf of", ", for ".join(card.on_behalf_of)),
        ("Tool", card.tool),
        ("Asked at", f"{card.created_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("Fingerprint", card.fingerprint),
    ]
    found = _heading(card.headline)
    if card.record is not None:
        outcome = [card.record, card.why and f"Reason: {card.why}", card.error and f"It said: {card.error}"]
        found += _paragraph("\n".join(line for line in outcome if line))
    found.append({"type": "section", "fields": [plain(f"{name}\n{value}") for name, value in facts if value]})
    if card.reason is not None:
        found += [*_paragraph("Why, in the caller's own words:"), *_texts(card.reason)]
    for title, body in bodies:
        found += [*_paragraph(f"{title}:"), *_texts(body)]
    found += _paragraph("\n".join(f"Rule {rule.text}" for rule in card.rules))
    if card.votes:
        found += _paragraph("\n".join(_vote(vote.text, vote.reason) for vote in card.votes))
    if card.record is None:
        found += _paragraph(card.effect)
        found.append(_expiry(card, mentions))
    return found


def _vote(text: str, reason: str | None) -> str:
    return f"{text} ({reason})" if reason else text


def _bodies(card: Card) -> list[tuple[str, Shown]]:
    preview = [] if card.preview is None else [("What it would change", card.preview)]
    return [*preview, ("All arguments", card.arguments)]


def _heading(headline: str) -> list[Block]:
    if len(headline) <= _HEADER_MAX:
        return [{"type": "header", "text": plain(headline)}]
    return [{"type": "header", "text": plain("A call that needs people")}, *_paragraph(headline)]


def _paragraph(text: str) -> list[Block]:
    return [{"type": "section", "text": plain(part)} for part in Shown(text).parts(TEXT_MAX)]


def _texts(shown: Shown) -> list[Block]:
    return [preformatted(part) for part in shown.parts(TEXT_MAX)]


def _parts(bodies: list[tuple[str, Shown]]) -> tuple[list[Block], ...]:
    """Everything there is to read, as messages of a thread."""
    groups: list[list[tuple[str, str]]] = []
    left = 0
    for piece in [(title, text) for title, body in bodies for text in body.parts(TEXT_MAX)]:
        size = _size(piece)  # quotes and line ends count twice: they are sent as JSON
        if size > left:
            groups.append([])
            left = _PART_MAX
        groups[-1].append(piece)
        left -= size
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


def _hint(parts: int, posted: int, *, fits: bool, card: Card) -> str:
    if not fits:
        where = "its page" if card.link else f"`body-broker approvals show {card.id}`"
        return f"Its arguments are too long for Slack: it can be read, and decided, on {where} only."
    if posted < parts and card.is_open:
        return f"Its arguments are long: {parts} parts are being written into the thread; the buttons come after them."
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


def _size(value: object) -> int:
    return len(orjson.dumps(value).decode())


def _fallback(card: Card) -> str:
    asked = f"Approval needed: {card.tool}, fingerprint {card.fingerprint}."
    text = (
        asked if card.record is None else f"Approval of {card.tool}, fingerprint {card.fingerprint}: {card.standing}."
    )
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
