"""Owns what an engine's list of models says: their names, and how much the one that is asked for holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import orjson

from tiers.faults import EngineFault

_CONTEXT_MAX = 10_000_000


def names_in(body: bytes) -> tuple[str, ...]:
    """The names of the models.

    Raises:
        EngineFault: `malformed`, where it is no such list.
    """
    return tuple(name for name, _ in _rows(body))


def context_in(body: bytes, model: str | None) -> int | None:
    """The most tokens that prompt and answer may have together, as vLLM says it (`max_model_len`); None where nothing is said.

    Args:
        body: The list.
        model: The one that is asked for; None: the only one.

    Raises:
        EngineFault: `malformed`, where it is no such list.
    """
    rows = _rows(body)
    for name, row in rows:
        said = row.get("max_model_len")
        if (name == model or (model is None and len(rows) == 1)) and type(said) is int and 0 < said <= _CONTEXT_MAX:
            return said
    return None


def _rows(body: bytes) -> list[tuple[str, Mapping[str, Any]]]:
    try:
        return [(str(row["id"]), cast("Mapping[str, Any]", row)) for row in orjson.loads(body)["data"]]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise EngineFault("malformed") from error
