"""Owns cursors' outer form: sealed for one binding, safe in a URL, at most 1 KiB, worthless to anybody else."""

from __future__ import annotations

import base64
import hashlib
import hmac

import orjson

from body_broker.calls import Json
from body_broker.errors import BadInput, InternalError
from body_broker.text import canonical_json

CHARACTERS_MAX = 1024
_MAC_BYTES = 16


class CursorSeals:
    """Seals cursors with a key all hubs share; implements `body_broker.calls.CursorSeal`.

    Args:
        key: 32 bytes, derived for this purpose alone.
    """

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        self._key = key

    def seal(self, bound_to: str, state: Json) -> str:
        """The cursor's text, at most 1,024 characters of the URL-safe alphabet.

        Raises:
            InternalError: The state of a listing is too long for a cursor; rooms keep theirs short.
        """
        payload = canonical_json(state)
        cursor = _text(self._mac(bound_to, payload) + payload)
        if len(cursor) > CHARACTERS_MAX:
            raise InternalError("A cursor of this listing would be too long.")
        return cursor

    def open(self, bound_to: str, cursor: str) -> Json:
        """What was sealed for exactly this binding.

        Raises:
            BadInput: The cursor was changed, or sealed for somebody or something else.
        """
        if len(cursor) > CHARACTERS_MAX:
            raise _foreign()
        try:
            raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        except ValueError as error:
            raise _foreign() from error
        # Decoding skips what is not of the alphabet: only the one spelling that `seal` writes is a cursor.
        if not hmac.compare_digest(_text(raw).encode(), cursor.encode()):
            raise _foreign()
        payload = raw[_MAC_BYTES:]
        if not hmac.compare_digest(raw[:_MAC_BYTES], self._mac(bound_to, payload)):
            raise _foreign()
        return orjson.loads(payload)

    def _mac(self, bound_to: str, payload: bytes) -> bytes:
        # The binding is hashed to a fixed length, so that no binding and payload read as another pair.
        binding = hashlib.sha256(bound_to.encode()).digest()
        return hmac.digest(self._key, binding + payload, "sha256")[:_MAC_BYTES]


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _foreign() -> BadInput:
    return BadInput(
        "The cursor does not belong to this listing.",
        next_step="Leave the cursor out to begin again; a cursor serves only who got it, for the same tool.",
    )
