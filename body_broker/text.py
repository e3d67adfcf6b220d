"""Owns what is done to text before it is stored, shown or decided on: canonical JSON, digests, control characters, bounds."""

from __future__ import annotations

import hashlib
import secrets
import unicodedata
from typing import Any

import orjson

# Cc: control, Cf: format (bidi overrides, zero-width), Cs: lone surrogates, Co: private use, Zl and Zp: odd line ends.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
_KEPT = frozenset("\n\t")


def canonical_json(value: Any) -> bytes:  # any JSON value
    """The one byte form of a JSON value: sorted keys, no blanks, UTF-8; what digests and MACs are taken over.

    Raises:
        orjson.JSONEncodeError: The value is not JSON (a NaN becomes null, so check numbers before).
    """
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def digest(value: Any) -> str:  # any JSON value
    """SHA-256 of the canonical JSON form, 64 hex digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def new_id(prefix: str) -> str:
    """An unguessable id of 144 random bits, such as `job_3q2x...`; the prefix says what it names (DESIGN.md §2)."""
    return f"{prefix}_{secrets.token_urlsafe(18)}"


def is_clean(text: str) -> bool:
    """Whether the text holds no invisible, control or direction-changing character (newline and tab are fine)."""
    return (text.isascii() and text.isprintable()) or all(
        c in _KEPT or unicodedata.category(c) not in _UNSEEN for c in text
    )


def clean(text: str, *, limit: int | None = None) -> str:
    """The text without invisible and control characters, cut to `limit` characters with an ellipsis where it was longer."""
    kept = text if is_clean(text) else "".join(c for c in text if c in _KEPT or unicodedata.category(c) not in _UNSEEN)
    return kept if limit is None or len(kept) <= limit else kept[: limit - 1] + "…"


def quoted(text: str, *, limit: int = 80) -> str:
    """Somebody's words on one line between marks that they cannot close, without invisible characters and cut to `limit`."""
    inert = clean(" ".join(text.split()), limit=limit).replace("\u201c", '"').replace("\u201d", '"')
    return f"\u201c{inert}\u201d"


def shortened(text: str, limit: int) -> str:
    """The text where it has at most `limit` characters; else its beginning, and how many are left out."""
    return text if len(text) <= limit else f"{text[:limit]}\n[{len(text) - limit} more characters are not shown]"
