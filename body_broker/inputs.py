"""Owns what an operation may ask its client in the middle of a call, and what comes back. No protocol, and never a gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from body_broker.errors import InputRequired, InternalError
from body_broker.text import canonical_json

STATE_BYTES_MAX = 8_192


@dataclass(frozen=True, slots=True)
class Form:
    """A few flat fields for the person at the client, each a JSON Schema. Answered with an object, or None: they would not."""

    message: str
    fields: Mapping[str, Any]
    required: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Link:
    """A page that the person at the client is to open. Answered with {} where they agreed to open it, else None."""

    message: str
    url: str


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of the client's own model. Answered with its text."""

    prompt: str
    tokens_max: int


@dataclass(frozen=True, slots=True)
class Roots:
    """The folders that the client works in. Answered with a list of URIs."""


Question = Form | Link | Turn | Roots


class AskClient(InputRequired):
    """Raised by an operation whose row has `asks`, before it does anything: the client answers and makes the same call again.

    An agent may answer for its person and may repeat a round, so an answer permits nothing: what rules must read is an
    argument, who must agree is asked by an approval, and what may happen only once has a key of its own.

    Args:
        questions: By names of the operation's choice, under which the answers come back.
        state: Any JSON value that comes back with the answers, readable and changeable by nobody in between; worth nothing
            after ten minutes, with other arguments or from anybody else.

    Raises:
        InternalError: The state's JSON is longer than `STATE_BYTES_MAX`.
    """

    def __init__(
        self,
        questions: Mapping[str, Question],
        *,
        state: Any = None,  # any JSON value
    ) -> None:
        super().__init__(
            "The call needs input from its client, and this client cannot be asked for it.",
            details={"needs": sorted({type(q).__name__.lower() for q in questions.values()})},
        )
        if len(canonical_json(state)) > STATE_BYTES_MAX:
            raise InternalError("What this call would have its client carry is too long.")
        self.questions, self.state = questions, state
        self.sealed: str | None = None  # the state as it leaves; the gate's


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What came with a call beside its arguments.

    Attributes:
        answers: Answers by their question's name, in the forms the questions say; unchecked words of the client.
        state: What the `AskClient` of the round before carried; None where the client brought none.
        askable: The kinds of question that this client can be asked.
    """

    answers: Mapping[str, Any] = field(default_factory=dict[str, Any])
    state: Any = None
    askable: frozenset[type[Question]] = frozenset()


NO_INPUTS = Inputs()
