"""Owns what is asked of an engine and what comes back, whatever it speaks: Ask, Piece, Completion, and the Dialect protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from body_broker.calls import Json
from tiers.faults import EngineFault
from tiers.model import Finish, Message, ToolCall, ToolOffer, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request to one engine, to be answered in pieces.

    Attributes:
        model: As the engine calls it; an adapter's name where one is used.
        max_tokens: The most it may write.
        tool_choice: auto, none, required, or one tool's name.
        schema: JSON Schema that the answer obeys.
        choices: The answer is exactly one of these.
        regex: The answer matches this.
        urgency: 0 (whenever) to 1 (now); each dialect has its own sign and scale for it.
        cache_salt: Prefixes are shared only among requests with the same one.
    """

    model: str
    messages: tuple[Message, ...]
    max_tokens: int
    offers: tuple[ToolOffer, ...] = ()
    tool_choice: str = "auto"
    temperature: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    schema: Mapping[str, Json] | None = None
    choices: tuple[str, ...] = ()
    regex: str | None = None
    urgency: float = 0.5
    cache_salt: str | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request on the wire, without the engine's address and key."""

    path: str
    body: bytes


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A part of a tool call: its place among the calls, and what has come of it."""

    place: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one event of a stream says. `finish` and `usage` come once, in whatever event the dialect has them.

    Attributes:
        thinks: It holds a token that is no part of the answer: a sign of life.
    """

    text: str = ""
    calls: tuple[CallPiece, ...] = ()
    finish: Finish | None = None
    usage: Usage | None = None
    thinks: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer of one engine.

    Attributes:
        calls: Tool calls it wants made; their arguments are not checked yet.
        usage: As the engine counted; what it did not count is estimated from the pieces and `counted` is False.
        ttft_s: To the first piece.
    """

    text: str
    finish: Finish
    calls: tuple[ToolCall, ...] = ()
    usage: Usage = field(default_factory=Usage)
    counted: bool = True
    ttft_s: float = 0.0
    seconds: float = 0.0


class Reader(Protocol):
    """Reads one answer of one dialect, event by event."""

    def event(self, name: str, data: bytes) -> Piece | None:
        """What one server-sent event says; None for those that say nothing.

        Raises:
            EngineFault: It is malformed, or tells of an error.
        """
        ...

    def whole(self, body: bytes) -> Piece:
        """What an answer says that did not come as a stream, though it was asked for as one: so do some that stand between.

        Raises:
            EngineFault: As above.
        """
        ...

    @property
    def ended(self) -> bool:
        """Whether the dialect's own end of the stream has come: without it a stream was cut."""
        ...


class Dialect(Protocol):
    """How one kind of engine is spoken to."""

    def ask(self, ask: Ask) -> Prepared:
        """The request on the wire; fields that this engine refuses or ignores are never sent.

        Raises:
            EngineFault: `cannot`, where it lacks what the request needs.
        """
        ...

    def authorised(self, key: str | None) -> Mapping[str, str]:
        """The headers that carry a key."""
        ...

    def reader(self) -> Reader:
        """Reads one answer."""
        ...

    def fault(self, status: int, headers: Mapping[str, str], body: bytes) -> EngineFault:
        """What an answer other than 200 means: its status, `retry-after`, and the dialect's own error codes."""
        ...

    @property
    def health_path(self) -> str:
        """A GET that says whether it serves."""
        ...

    @property
    def models_path(self) -> str:
        """A GET that lists its models."""
        ...
