"""Owns the words of the experts' jobs: what is wanted, one question on the way, its answer, and what came of all of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal, cast

from body_broker.calls import Json
from tiers.model import Fallback, Finish, Message, Sensitivity, Tier, ToolCall, ToolOffer, ToolUse, Usage

JobKind = Literal["expert", "narrative", "story_arc", "audit", "admin_report"]
"""Kinds of durable work that experts do; the same runner runs all of them."""
KINDS: tuple[JobKind, ...] = ("expert", "narrative", "story_arc", "audit", "admin_report")
Priority = Literal["low", "normal", "high"]
PRIORITIES: Mapping[Priority, int] = {"low": -10, "normal": 0, "high": 10}
SECONDS_MAX = 7 * 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What one job may use at most.

    Attributes:
        tokens: Of prompts and answers, over all its questions.
        calls: Calls of tools.
        usd: US dollars; None leaves it to the caps of models.toml.
        seconds: From its submission to its end, with all waiting in between.
    """

    tokens: int = 400_000
    calls: int = 32
    usd: float | None = None
    seconds: float = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What an expert is to do: the input of its work.

    Attributes:
        kind: Which of the hub's jobs it is; says who makes a result of the answers.
        title: In a few words, for lists and for people.
        messages: The conversation that the first answer continues.
        follow_ups: Said after each answer that calls no tools, one by one; each gets an answer of its own.
        role: Of models.toml: which models in which order, and which tools where `tools` is None.
        model: One engine by its name; None leaves it to the role, then to the order of models.toml.
        max_tokens: Of each answer.
        tools: Names of the hub's tools or of tool groups that may be called; None: those of the role.
        schema: JSON Schema that each answer obeys.
        outside: Whether text from outside is in it already.
        about: What whoever makes the result needs to know, such as the scan that is audited.
    """

    kind: JobKind
    title: str
    messages: tuple[Message, ...]
    follow_ups: tuple[str, ...] = ()
    role: str | None = None
    model: str | None = None
    max_tokens: int = 2_000
    tools: tuple[str, ...] | None = None
    schema: Mapping[str, Json] | None = None
    temperature: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    cost_sensitivity: Sensitivity = "normal"
    budget: Budget = field(default_factory=Budget)
    outside: bool = False
    about: Mapping[str, Json] = field(default_factory=dict[str, Json])

    def body(self) -> Json:
        """The JSON form."""
        return asdict(self)

    @classmethod
    def parse(cls, given: Json) -> Assignment:
        """The assignment from its stored JSON."""
        found: dict[str, Any] = dict(given)
        found["messages"] = tuple(message_of(each) for each in found["messages"])
        for name in ("follow_ups", "stop"):
            found[name] = tuple(found[name])
        found["tools"] = None if found["tools"] is None else tuple(found["tools"])
        found["budget"] = Budget(**found["budget"])
        return cls(**found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question of a job to a model.

    Attributes:
        turn: The how manieth of the job, from 1; the same after a restart.
        messages: The whole conversation so far.
        tenant: Who pays.
        urgency: As `wire.base.Ask` has it.
        tokens_left, usd_left: What is left of the job's budget; None is without a limit of its own.
        until: When the job's time is over, UTC.
    """

    job: str
    turn: int
    assignment: Assignment
    messages: tuple[Message, ...]
    offers: tuple[ToolOffer, ...]
    tool_choice: str
    tenant: str
    outside: bool
    tokens_left: int
    usd_left: float | None
    until: datetime
    urgency: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model answered, and how that came about: a recorded step of the job.

    Attributes:
        cost_usd: What this question cost with all its askings; None where nobody knows.
        maybe_spent: Whether something was asked of which nobody can say whether it was run.
        fallbacks: Who was asked before, or passed over, and why.
    """

    text: str
    finish: Finish
    engine: str
    tier: Tier
    model: str | None
    calls: tuple[ToolCall, ...] = ()
    usage: Usage = field(default_factory=Usage)
    counted: bool = True
    cost_usd: float | None = 0.0
    maybe_spent: bool = False
    fallbacks: tuple[Fallback, ...] = ()
    seconds: float = 0.0

    def body(self) -> Json:
        """The JSON form."""
        return asdict(self)

    @classmethod
    def parse(cls, given: Json) -> Answer:
        """The answer from its stored JSON."""
        found: dict[str, Any] = dict(given)
        found["tier"] = Tier(found["tier"])
        found["calls"] = tuple(ToolCall(**each) for each in found["calls"])
        found["usage"] = Usage(**found["usage"])
        found["fallbacks"] = tuple(Fallback(**each) for each in found["fallbacks"])
        return cls(**found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """All answers of a job, before a result is made of them.

    Attributes:
        answers: The texts without calls of tools: one for the messages, one for each follow-up.
        engines: Who answered, in order, each once.
        outside: Whether text from outside went into it.
    """

    job: str
    owner: str
    assignment: Assignment
    answers: tuple[str, ...]
    engines: tuple[str, ...]
    models: tuple[str, ...]
    tools: tuple[ToolUse, ...]
    fallbacks: tuple[Fallback, ...]
    usage: Usage
    cost_usd: float | None
    maybe_spent: bool
    outside: bool
    truncated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaped:
    """What a kind of job makes of its answers.

    Attributes:
        body: The fields of its result; how it came about is added beside them.
        text: The same for people, as Markdown; what is searched where `searched`.
        searched: Whether it becomes a document of the lore, outside canon; only what all who look up lore may read.
    """

    body: Mapping[str, Json]
    text: str
    searched: bool = False


class Unfit(Exception):  # what it is, not what went wrong
    """Answers of which no result can be made; `why` is told to the model, which may answer once more."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


Shape = Callable[[Finished], Awaitable[Shaped]]
"""Makes a kind's result of the answers; raises `Unfit`. Has no effects: it is run again after a crash."""


def message_of(given: Json) -> Message:
    """A message from its stored JSON."""
    found = cast("dict[str, Any]", given)
    return Message(
        role=found["role"],
        content=found["content"],
        tool_calls=tuple(ToolCall(**call) for call in found["tool_calls"]),
        tool_call_id=found["tool_call_id"],
    )
