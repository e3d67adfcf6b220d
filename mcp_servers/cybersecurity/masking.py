"""Owns what is hidden of scanned text before it is shown, stored or hashed: whatever may be a secret, and what is unseen."""

from __future__ import annotations

import re

from body_broker.text import clean

SNIPPET_MAX = 200
MESSAGE_MAX = 500
HIDDEN = "***"

# Tokens by their shape: 16 or more characters of the kind that keys are made of, with a digit or of mixed case; and what
# stands between a scheme's `//` and its `@`. What is hidden too often costs a reader a glance at the file.
_KEY_MIN = 16
_DIGITS_MIN = 2
_LONG = re.compile(r"[A-Za-z0-9+/=_.~-]{16,}")
_LOGIN = re.compile(r"(?<=://)[^\s/@]+(?=@)")
_QUOTED = re.compile(r"""(["'`])(?:\\.|(?!\1).)*\1?""")
_COMMENT = re.compile(r"(?:#|//|/\*).*")
_NUMBERED = re.compile(r"\w*\d\w*")
_VALUE = re.compile(r"([:=])\s*\S.*")


def mask(text: str, limit: int) -> str:
    """The text with long tokens and logins hidden, unseen characters gone, cut to `limit`."""
    # Cut first, far beyond what is kept: a line may have megabytes.
    text = clean(text[: limit * 20]).replace("\n", " ").strip()
    text = _LOGIN.sub(HIDDEN, text)
    return clean(_LONG.sub(_token, text), limit=limit)


def mask_values(text: str) -> str:
    """What is left of a line that holds a secret, to know the line again by: names and signs, no value."""
    text = _VALUE.sub(rf"\1{HIDDEN}", _QUOTED.sub(HIDDEN, clean(text[:4_000])))
    return re.sub(r"[^\s:=*]{6,}", HIDDEN, text)


def words_of(line: str) -> str:
    """What a line of code is known again by: its words and signs, without quoted text, comments and words with digits."""
    text = _COMMENT.sub("", _QUOTED.sub(HIDDEN, clean(line[:4_000])))
    return " ".join(_NUMBERED.sub(HIDDEN, text).split())


def _token(found: re.Match[str]) -> str:
    text = found[0]
    # Dotted or dashed names of words stay readable: no part of them looks like a key.
    return HIDDEN if any(_is_key(part) for part in re.split(r"[._/-]", text)) or _is_key(text) else text


def _is_key(text: str) -> bool:
    if len(text) < _KEY_MIN:
        return False
    digits = sum(c.isdigit() for c in text)
    mixed = any(c.isupper() for c in text) and any(c.islower() for c in text)
    return digits >= _DIGITS_MIN or (mixed and text.isalnum())
