"""Owns what has come of one answer of an engine, piece by piece, and whether it is a whole one: what was cut is never told as an answer."""

from __future__ import annotations

from tiers.faults import EngineFault
from tiers.model import Finish, Usage, prompt_bytes
from tiers.wire.base import Ask, CallPiece, Completion, Piece
from tiers.wire.openai import calls_of

_BYTES_COUNTED = 4
"""Of a token of English, about: what is told where an engine did not count. Nothing is decided by it, unlike by BYTES_A_TOKEN."""
_COUNT_SLACK = 2
"""Tokens by which an engine's own count of an answer that it cut at max_tokens may lie under them."""


class Answer:
    """What has come so far.

    Attributes:
        first_at: When its first token came, be it one of thinking; None before.
        said_at: When its first text or call came.
        ended: Whether its dialect's own end has come, or we ended it.
    """

    __slots__ = ("calls", "ended", "finish", "first_at", "last_at", "pieces", "said_at", "text", "usage")

    def __init__(self) -> None:
        self.text, self.calls, self.pieces, self.ended = list[str](), list[CallPiece](), 0, False
        self.finish: Finish | None = None
        self.usage: Usage | None = None
        self.first_at: float | None = None
        self.said_at: float | None = None
        self.last_at = 0.0

    def take(self, piece: Piece, at: float) -> bool:
        """Add a piece that came now; whether it holds a token."""
        self.finish = piece.finish or self.finish
        self.usage = piece.usage or self.usage
        speaks = bool(piece.text or piece.calls)
        if not speaks and not piece.thinks:
            return False
        if self.first_at is None:
            self.first_at = at
        self.last_at = at
        self.pieces += 1
        if speaks:
            self.said_at = at if self.said_at is None else self.said_at
            if piece.text:
                self.text.append(piece.text)
            self.calls.extend(piece.calls)
        return True

    def end(self, finish: Finish) -> None:
        """It ends here because we say so."""
        self.finish, self.ended, self.usage = finish, True, None

    @property
    def can_stand(self) -> bool:
        """Whether what is there may be told as far as it goes: text, and no call, whose arguments would be half of them."""
        return bool(self.text) and not self.calls

    @property
    def gap_s(self) -> float | None:
        """Between two tokens, on average; None where there were no two."""
        if self.first_at is None or self.pieces < 2:  # noqa: PLR2004  # a gap has two sides
            return None
        return (self.last_at - self.first_at) / (self.pieces - 1)

    def whole(self, ask: Ask, began: float, ended: float) -> Completion:
        """The answer.

        Raises:
            EngineFault: It is none: cut, empty, or not what its finish says.
        """
        if self.finish is None or not self.ended:
            raise EngineFault("cut")
        text, calls = "".join(self.text), calls_of(self.calls)
        if self.said_at is None or not (calls or text.strip()):
            raise EngineFault("empty")
        finish: Finish = "tools" if calls and self.finish == "stop" else self.finish
        if finish == "tools" and not calls:
            raise EngineFault("malformed")
        if finish == "length":
            if calls:
                raise EngineFault("arguments")  # half a call
            if self.usage is not None and self.usage.completion + _COUNT_SLACK < ask.max_tokens:
                raise EngineFault("too_long")  # its context was full before
        counted = self.usage is not None
        usage = self.usage or self._estimate(ask)
        return Completion(text, finish, calls, usage, counted, self.said_at - began, ended - began)

    def _estimate(self, ask: Ask) -> Usage:
        size = sum(len(text.encode()) for text in self.text) + sum(len(call.arguments.encode()) for call in self.calls)
        prompt = prompt_bytes(ask.messages, ask.offers, ask.schema, ask.choices) // _BYTES_COUNTED
        return Usage(prompt, max(self.pieces, size // _BYTES_COUNTED))
