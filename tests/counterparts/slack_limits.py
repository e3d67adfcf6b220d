"""Owns what Slack refuses of blocks and views: the limits of its reference, each with the word that Slack says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

Json = dict[str, Any]

BLOCKS_MAX = 50
VIEW_BLOCKS_MAX = 100
MESSAGE_MAX = 13_200
"""What Slack's servers take of all blocks together; not in its reference, seen by many (`msg_blocks_too_long`)."""
TEXT_MAX = 40_000
_SECTION_MAX, _FIELD_MAX, _HEADER_MAX, _BUTTON_MAX, _VALUE_MAX = 3000, 2000, 150, 75, 2000
_STYLES = {None, "primary", "danger"}
_SECTION_PARTS = {"text", "link", "emoji", "user", "usergroup", "channel", "date", "broadcast", "color"}


class Refused(Exception):
    """What Slack would not take, and its word for it."""

    def __init__(self, word: str, why: str) -> None:
        super().__init__(f"{word}: {why}")
        self.word, self.why = word, why


def check_message(text: str | None, blocks: list[Json]) -> None:
    """Raise Refused where Slack would refuse the message."""
    if not text and not blocks:
        raise Refused("no_text", "neither text nor blocks")
    if len(text or "") > TEXT_MAX:
        raise Refused("msg_too_long", f"{len(text or '')} characters of text")
    check_blocks(blocks, BLOCKS_MAX, _MESSAGE_BLOCKS)
    size = len(json.dumps(escaped(blocks), ensure_ascii=False, separators=(",", ":")))
    if size > MESSAGE_MAX:
        raise Refused("msg_blocks_too_long", f"{size} characters of blocks")


def escaped(value: Any) -> Any:
    """Texts as Slack keeps them and gives them back."""
    if isinstance(value, str):
        return value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    if isinstance(value, list):
        return [escaped(each) for each in value]  # pyright: ignore[reportUnknownVariableType]  # JSON
    if isinstance(value, dict):
        return {name: escaped(each) for name, each in value.items()}  # pyright: ignore[reportUnknownVariableType]  # JSON
    return value


def check_view(view: Json) -> None:
    """Raise Refused where Slack would refuse the modal."""
    _need(view.get("type") == "modal", "type")
    for name in ("title", "submit", "close"):
        if name in view or name == "title":
            _text(view.get(name), 24, kinds=("plain_text",))
    _need(len(view.get("private_metadata", "")) <= 3000, "private_metadata")
    _need(len(view.get("callback_id", "")) <= 255, "callback_id")
    check_blocks(view.get("blocks", []), VIEW_BLOCKS_MAX, _MESSAGE_BLOCKS | {"input": _input})
    if any(block["type"] == "input" for block in view["blocks"]):
        _need("submit" in view, "submit, which inputs need")


def check_blocks(blocks: list[Json], most: int, kinds: dict[str, Callable[[Json], None]]) -> None:
    _need(len(blocks) <= most, f"{len(blocks)} blocks")
    ids = [block["block_id"] for block in blocks if "block_id" in block]
    _need(len(ids) == len(set(ids)), "two blocks of one block_id")
    for block in blocks:
        check = kinds.get(block.get("type", ""))
        if check is None:
            raise Refused("invalid_blocks", f"a block of type {block.get('type')}")
        _need(len(block.get("block_id", "")) <= 255, "block_id")
        check(block)


def texts_of(value: object) -> Iterator[Json]:
    """Every text object and rich text element of a message."""
    if isinstance(value, dict):
        found: Json = value  # pyright: ignore[reportUnknownVariableType]  # JSON
        if found.get("type") in {"plain_text", "mrkdwn", "text", "link", "date", "usergroup", "user"}:
            yield found
        for item in found.values():
            yield from texts_of(item)
    elif isinstance(value, list):
        for item in value:  # pyright: ignore[reportUnknownVariableType]  # JSON
            yield from texts_of(item)  # pyright: ignore[reportUnknownArgumentType]  # JSON


def _need(holds: bool, what: str) -> None:  # noqa: FBT001  # a condition
    if not holds:
        raise Refused("invalid_blocks", f"{what} does not fit")


def _text(text: Json | None, most: int, *, kinds: tuple[str, ...] = ("plain_text", "mrkdwn")) -> None:
    _need(text is not None and text.get("type") in kinds, f"a text of {kinds}")
    assert text is not None
    _need(1 <= len(text.get("text", "")) <= most, f"a text of 1 to {most} characters, not {len(text.get('text', ''))}")
    _need("emoji" not in text or text["type"] == "plain_text", "emoji in mrkdwn")


def _section(block: Json) -> None:
    _need("text" in block or "fields" in block, "a section without text")
    if "text" in block:
        _text(block["text"], _SECTION_MAX)
    fields = block.get("fields", [])
    _need(len(fields) <= 10, "fields")
    for field in fields:
        _text(field, _FIELD_MAX)


def _header(block: Json) -> None:
    _text(block["text"], _HEADER_MAX, kinds=("plain_text",))


def _context(block: Json) -> None:
    _need(1 <= len(block["elements"]) <= 10, "context elements")
    for element in block["elements"]:
        _text(element, _SECTION_MAX)


def _rich_text(block: Json) -> None:
    _need(bool(block["elements"]), "rich text without elements")
    for element in block["elements"]:
        _need(element["type"] in {"rich_text_section", "rich_text_preformatted", "rich_text_quote"}, element["type"])
        _need(bool(element["elements"]), "an empty rich text element")
        for part in element["elements"]:
            _need(part["type"] in _SECTION_PARTS, part["type"])
            if part["type"] == "text":
                _need(len(part["text"]) >= 1, "an empty rich text")
                _need(len(part["text"]) <= _SECTION_MAX, f"a rich text of {len(part['text'])} characters")
            if element["type"] == "rich_text_preformatted":
                _need(part["type"] in {"text", "link"}, f"{part['type']} in preformatted text")


def _actions(block: Json) -> None:
    _need(1 <= len(block["elements"]) <= 25, "actions")
    names = [element.get("action_id") for element in block["elements"]]
    _need(len(names) == len(set(names)), "two actions of one action_id")
    for element in block["elements"]:
        _need(element["type"] == "button", f"an element of type {element['type']}")
        _button(element)


def _button(button: Json) -> None:
    _text(button["text"], _BUTTON_MAX, kinds=("plain_text",))
    _need(1 <= len(button.get("action_id", "")) <= 255, "action_id")
    _need(len(button.get("value", "x")) <= _VALUE_MAX, "value")
    _need(button.get("style") in _STYLES, "style")
    url = button.get("url", "https://x")
    _need(len(url) <= 3000 and url.startswith(("http://", "https://")), "url")
    if confirm := button.get("confirm"):
        _text(confirm["title"], 100, kinds=("plain_text",))
        _text(confirm["text"], 300)
        _text(confirm["confirm"], 30, kinds=("plain_text",))
        _text(confirm["deny"], 30, kinds=("plain_text",))
        _need(confirm.get("style") in _STYLES, "confirm style")


def _input(block: Json) -> None:
    _text(block["label"], 2000, kinds=("plain_text",))
    element = block["element"]
    _need(element["type"] == "plain_text_input", f"an input of type {element['type']}")
    _need(1 <= len(element.get("action_id", "")) <= 255, "action_id")
    _need(0 < element.get("max_length", 1) <= 3000, "max_length")


_MESSAGE_BLOCKS: dict[str, Callable[[Json], None]] = {
    "section": _section,
    "header": _header,
    "context": _context,
    "rich_text": _rich_text,
    "actions": _actions,
    "divider": lambda _block: None,
}
