"""Owns how messages become bytes and come back: canonical out, strict in, and a reason in plain words for what is not taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import orjson
from pydantic import BaseModel, ValidationError

from body_broker.text import canonical_json, is_clean
from body_broker.world.engine.messages import (
    DATA_DEPTH_MAX,
    MESSAGE_BYTES_MAX,
    NUMBER_MAX,
    ORDERS,
    REPORTS,
    VERSION,
    Order,
    RefusalCode,
    Report,
)

M = TypeVar("M", bound=BaseModel)
_PROBLEMS_MAX = 3
_NAMED_MAX = 40


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A message that is not taken.

    Attributes:
        code: What a refusal says.
        message: Why, in our own words and field names; nothing of the message's values.
        epoch: As it names it, where that could be read.
        n: As above.
        type: As above; one of ours.
    """

    code: RefusalCode
    message: str
    epoch: int | None = None
    n: int | None = None
    type: str | None = None


def encode(message: BaseModel) -> bytes:
    """The one byte form of a message: canonical JSON, UTF-8."""
    return canonical_json(message.model_dump(mode="json"))


class _Reader(Generic[M]):
    def __init__(self, kinds: tuple[type[M], ...]) -> None:
        self._kinds: dict[str, type[M]] = {kind.model_fields["type"].default: kind for kind in kinds}

    def read(self, raw: bytes) -> M | Unreadable:
        if len(raw) > MESSAGE_BYTES_MAX:
            return Unreadable("too_large", f"The message has more than {MESSAGE_BYTES_MAX} bytes.")
        try:
            found: Any = orjson.loads(raw)
        except orjson.JSONDecodeError:
            return Unreadable("bad_json", "The message is not JSON in UTF-8 (NaN and Infinity are not JSON either).")
        if not isinstance(found, dict):
            return Unreadable("bad_message", "The message is no JSON object.")
        return self._read(cast("dict[str, Any]", found))

    def _read(self, body: dict[str, Any]) -> M | Unreadable:
        kind = self._kinds.get(self._type_of(body) or "")
        if kind is None:
            code, problem = "unknown_type", f"`type` is none of {', '.join(self._kinds)}."
        elif isinstance(body.get("v"), bool) or body.get("v") != VERSION:
            code, problem = "bad_message", f"`v` is not {VERSION}."
        else:
            code, problem = "bad_message", fault_of(body)
        if kind is not None and problem is None:
            try:
                return kind.model_validate(body)
            except ValidationError as error:
                problem = _told(error)
        return Unreadable(code, problem or "", _number(body.get("epoch")), _number(body.get("n")), self._type_of(body))

    def _type_of(self, body: Mapping[str, Any]) -> str | None:
        found = body.get("type")
        return found if isinstance(found, str) and found in self._kinds else None


_reports = _Reader[Report](REPORTS)
_orders = _Reader[Order](ORDERS)


def read_report(raw: bytes) -> Report | Unreadable:
    """What an engine said, or why it cannot be taken."""
    return _reports.read(raw)


def read_order(raw: bytes) -> Order | Unreadable:
    """What the hub said, or why it cannot be understood."""
    return _orders.read(raw)


def fault_of(value: Any) -> str | None:  # any JSON value
    """Why JSON cannot be stored: nested too deeply, or a text with NUL; None where it can."""
    level: list[Any] = [value]
    for _ in range(DATA_DEPTH_MAX):
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                if "\0" in item:
                    return "A text holds the character NUL."
            elif isinstance(item, dict):
                below += cast("dict[str, Any]", item).keys()
                below += cast("dict[str, Any]", item).values()
            elif isinstance(item, list):
                below += cast("list[Any]", item)
        if not below:
            return None
        level = below
    return f"It is nested more than {DATA_DEPTH_MAX} levels deep."


def _number(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= NUMBER_MAX else None


def _told(error: ValidationError) -> str:
    # Field names of ours and pydantic's own words; a field that is not ours is named as far as it is harmless.
    problems = [f"{_place(e['loc'])}: {e['msg']}" for e in error.errors(include_input=False, include_url=False)]
    more = f" (and {len(problems) - _PROBLEMS_MAX} more)" if len(problems) > _PROBLEMS_MAX else ""
    return "; ".join(problems[:_PROBLEMS_MAX]) + more + "."


def _place(loc: tuple[int | str, ...]) -> str:
    return ".".join(p if is_clean(p) and len(p) <= _NAMED_MAX else "?" for p in map(str, loc)) or "message"
