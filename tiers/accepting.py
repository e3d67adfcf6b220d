"""Owns whether an engine's answer holds: not empty, one of the choices, obeying the schema, its calls ones that can be made."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, cast

import orjson

from body_broker.calls import Json
from body_broker.errors import BadInput, TooLarge
from tiers.faults import EngineFault
from tiers.model import InferenceRequest, ToolOffer
from tiers.schemas import Schema, TooCostly, is_schema
from tiers.wire.base import Completion

Accept = Callable[[Completion], None]
SCHEMA_BYTES_MAX = 16_384
_WHOLE = frozenset({"stop", "grammar"})
_NO_JSON = object()


async def prepared(request: InferenceRequest) -> Accept:
    """The same as `accepting`, off the loop where there are schemas to be read."""
    is_quick = request.schema is None and not request.offers
    return accepting(request) if is_quick else await asyncio.to_thread(accepting, request)


def accepting(request: InferenceRequest) -> Accept:
    """What raises EngineFault for an answer of this request's that does not hold; what it raises it for is known in milliseconds.

    Raises:
        BadInput: The request's schema is none.
        TooLarge: It is too long; one that is not may still take half a second to read.
    """
    obeys = None if request.schema is None else fitting(request.schema, "response_schema")
    offered = {offer.name: _callable(offer) for offer in request.offers}
    choices = frozenset(choice.strip() for choice in request.choices)

    def accept(completion: Completion) -> None:
        for call in completion.calls:
            if call.name in offered and not offered[call.name](_parsed(call.arguments)):
                raise EngineFault("arguments")
        if completion.calls:
            return
        if not completion.text.strip():
            raise EngineFault("empty")
        if completion.finish not in _WHOLE and (choices or obeys is not None):
            # What was cut may fit by chance.
            raise EngineFault("too_short" if completion.finish == "length" else "schema")
        if choices and completion.text.strip() not in choices:
            raise EngineFault("schema")
        if obeys is not None and not obeys(_parsed(completion.text)):
            raise EngineFault("schema")

    return accept


def fitting(schema: Mapping[str, Json], what: str) -> Callable[[Json], bool]:
    """Whether a value obeys a JSON Schema.

    Args:
        schema: Somebody's.
        what: Whose, as people are told.

    Raises:
        BadInput: It is none.
        TooLarge: It is too long.
    """
    if _is_long(schema):
        raise TooLarge(
            f"The schema of {what} is larger than {SCHEMA_BYTES_MAX} bytes.", details={"limit": SCHEMA_BYTES_MAX}
        )
    if not is_schema(schema):
        raise BadInput(f"The schema of {what} is no JSON Schema.", details={"problems": [f"{what}: no JSON Schema"]})
    checks = Schema(schema)

    def fits(value: Json) -> bool:
        try:
            return value is not _NO_JSON and not checks.problems(value, 1)
        except TooCostly:
            return False

    return fits


def _callable(offer: ToolOffer) -> Callable[[Any], bool]:  # any JSON
    """Whether a client's own tool can be called so; where its schema is none, or too long for us to read, with any object."""
    checks = Schema(offer.schema) if not _is_long(offer.schema) and is_schema(offer.schema) else None

    def fits(given: Any) -> bool:  # any JSON
        try:
            return isinstance(given, dict) and (checks is None or not checks.problems(cast("Json", given), 1))
        except TooCostly:
            return True

    return fits


def _is_long(schema: Mapping[str, Json]) -> bool:
    try:
        return len(orjson.dumps(schema)) > SCHEMA_BYTES_MAX
    except orjson.JSONEncodeError:  # a hundred levels deep
        return True


def _parsed(text: str) -> Any:  # any JSON, or what no schema takes
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return _NO_JSON
