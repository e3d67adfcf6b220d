"""Owns the words of the tiers: what is asked for, who asks, what an answer is made of, and what is told while it comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, Protocol

from body_broker.calls import Caller, Json

Sla = Literal["real-time", "interactive", "async"]
Sensitivity = Literal["low", "normal", "high"]
Role = Literal["system", "user", "assistant", "tool"]
Source = Literal["model", "smaller", "cached", "policy", "template", "job"]
"""What an answer came from: the model that was meant, a smaller or another one, an earlier answer, a rule, a fixed text; or which job
will have it."""
Finish = Literal["stop", "length", "tools", "grammar", "deadline"]
"""Why it ends: by itself, at max_tokens, to call tools of the client's, when the grammar was satisfied, when time ran out."""

_FRAME_BYTES = 16
"""What a chat template puts around one message, at the most in ordinary ones."""
BUDGET_S: Mapping[Sla, float] = {"real-time": 0.3, "interactive": 15.0, "async": 600.0}
"""What a request gets that names no latency_budget_ms."""
BYTES_A_TOKEN = 3.5
"""Of ordinary prose: what a prompt's length in tokens is guessed by. Money is never guessed by it."""
GOLD_TOKENS_MAX = 8
NEEDS_SILVER_S = 0.25
"""A real-time request goes on to silver only while this much of its time is left."""


class Tier(StrEnum):
    """Where a request may be answered."""

    GOLD = "gold"
    SILVER = "silver"
    BRONZE = "bronze"
    CLOUD = "cloud"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model wants made; `arguments` is JSON as it wrote it, not yet checked."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolOffer:
    """A tool that a model is offered: its name, when to use it, and the JSON Schema of its arguments."""

    name: str
    description: str
    schema: Mapping[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a conversation. A `tool` message answers the call `tool_call_id`."""

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one or several requests to engines."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0

    def plus(self, other: Usage) -> Usage:
        """Both together."""
        return Usage(self.prompt + other.prompt, self.completion + other.completion, self.cached + other.cached)


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceRequest:
    """What somebody wants of a model (seed `InferenceRequest`, DESIGN.md §6).

    Attributes:
        prompt: Text alone; or `messages` instead.
        sla: real-time, interactive or async.
        max_tokens: The most the answer may have.
        latency_budget_ms: From now to the whole answer; None leaves it to what its sla usually gets.
        tools: Names of the hub's tools, or of tool groups of models.toml, that the model may call; None: those of its `role`.
        offers: Tools of the client's own, which we never run: the answer ends with the calls.
        tool_choice: auto, none, required, or the name of one tool.
        persona: In whose words, by its name in personas.toml; may be an NPC's.
        npc_id: For which NPC: its prefix cache and its intent are kept apart.
        npc_lore: The persona in whose own lore that NPC's model may look, beside what all may know.
        requires_expert_reasoning: Only the large models do.
        cost_sensitivity: high never goes to an engine that costs money by the token.
        cost_ceiling: US dollars that it may cost.
        model: A tier's or an engine's name; None or `auto` leaves it to the router.
        role: A role of models.toml, such as deepseek-v3-storyteller.
        schema: JSON Schema that the answer obeys.
        choices: The answer is exactly one of these.
        priority: background waits for all others.
    """

    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    sla: Sla = "interactive"
    max_tokens: int = 128
    latency_budget_ms: float | None = None
    tools: tuple[str, ...] | None = None
    offers: tuple[ToolOffer, ...] = ()
    tool_choice: str = "auto"
    temperature: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    persona: str | None = None
    npc_id: str | None = None
    npc_lore: str | None = None
    requires_expert_reasoning: bool = False
    cost_sensitivity: Sensitivity = "normal"
    cost_ceiling: float | None = None
    model: str | None = None
    role: str | None = None
    schema: Mapping[str, Json] | None = None
    choices: tuple[str, ...] = ()
    priority: Literal["normal", "background"] = "normal"

    @property
    def needs_tools(self) -> bool:
        """Whether any tool is asked for (the seed's name)."""
        return bool(self.tools or self.offers)

    def conversation(self) -> tuple[Message, ...]:
        """Its messages; the prompt as one."""
        return self.messages or (Message(role="user", content=self.prompt or ""),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """For whom a tier works: the caller the gate knows, and the conversation in which it happens.

    Attributes:
        caller: Who asked, as the gate let them in; the tier's calls are made with a token minted for them.
        conversation: Id and session of this conversation: history and taint hang on it.
        tainted: Whether what the conversation has read, or the asker's session, holds text from outside already.
    """

    caller: Caller
    conversation: str
    tainted: bool = False

    @property
    def tenant(self) -> str:
        """Who pays: whoever asked first."""
        return self.caller.asker


@dataclass(frozen=True, slots=True)
class Fallback:
    """A step down: which engine (or step) was not used or failed, and why, in a word of `faults.Reason` or the router's."""

    engine: str
    reason: str


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A tool that was called on the way: how it ended and how long it took. `outcome` is `ok` or an error code."""

    name: str
    outcome: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceResult:
    """An answer, and all that is known of how it came about.

    Attributes:
        tier: Where it was made.
        engine: The engine's name; None where no model made it.
        source: What it came from.
        finish: Why it ends; `deadline` says that it was cut, and `length` that it reached max_tokens.
        outside: Whether text from outside went into it: who reads it is tainted.
        reason: The router's, in words.
        fallbacks: Every step down, in order.
        cost_usd: What it cost; None where the price is not known.
        ttft_s: To the first text; None where no model spoke.
        job: The id of the job that does it, or goes on with it; None where there is none.
        note: What a person should know of it, such as that nothing was configured.
    """

    text: str
    tier: Tier
    engine: str | None
    model: str | None
    source: Source
    finish: Finish = "stop"
    outside: bool = False
    reason: str = ""
    tools: tuple[ToolUse, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    fallbacks: tuple[Fallback, ...] = ()
    usage: Usage = field(default_factory=Usage)
    cost_usd: float | None = 0.0
    ttft_s: float | None = None
    seconds: float = 0.0
    job: str | None = None
    note: str | None = None

    @property
    def degraded(self) -> bool:
        """Whether it is less than was asked for; what was answered to the very same request before, and nothing failed now, is not."""
        is_meant = self.source in {"model", "job"} or (self.source == "cached" and not self.fallbacks)
        return not is_meant or self.finish == "deadline"


@dataclass(frozen=True, slots=True)
class Told:
    """Something that happens while an answer comes.

    Attributes:
        kind: `text` is a piece of the answer; `restart` takes back every piece so far; `routed`, `tool` (about to be called),
            `tool_done` and `fallback` tell how it goes.
        text: The piece, the tool's name, the tier and engine, or the reason.
        outside: Whether text from outside went into it.
    """

    kind: Literal["text", "restart", "routed", "tool", "tool_done", "fallback"]
    text: str = ""
    outside: bool = False


class Listener(Protocol):
    """Hears an answer as it comes.

    `restarts` says whether its client can take pieces back: without it, an engine that dies after the first piece ends the answer
    with an error, never with half of it as if it were whole.
    `text` is what models say. What stands in for one (an earlier answer, a rule, a template) is in the result and is never told as it
    comes: whoever must not take it for a model's words could not take it back.
    """

    @property
    def restarts(self) -> bool:
        """Whether pieces may be taken back."""
        ...

    async def __call__(self, told: Told) -> None:
        """Hear one thing; text from outside is told only after the asker's session has its taint."""
        ...


def prompt_bytes(
    messages: Sequence[Message],
    offers: Sequence[ToolOffer] = (),
    schema: Mapping[str, Json] | None = None,
    choices: Sequence[str] = (),
) -> int:
    """Bytes of text that go to an engine: no byte-level tokenizer makes more tokens of it."""
    said = 0
    for message in messages:
        content = message.content
        said += (len(content) if content.isascii() else _bytes(content)) + _FRAME_BYTES  # each call counts here
        for call in message.tool_calls:
            said += _bytes(call.arguments) + _bytes(call.name) + _FRAME_BYTES
    for offer in offers:
        said += _bytes(str(offer.schema)) + _bytes(offer.description) + _bytes(offer.name) + 2 * _FRAME_BYTES
    if schema is not None:
        said += _bytes(str(schema)) + _FRAME_BYTES
    for choice in choices:
        said += _bytes(choice) + _FRAME_BYTES
    return said


def request_bytes(request: InferenceRequest) -> int:
    """The same of a request, before any prompt is built around it."""
    if request.messages or request.offers or request.schema is not None or request.choices:
        return prompt_bytes(request.conversation(), request.offers, request.schema, request.choices)
    return _bytes(request.prompt or "") + _FRAME_BYTES


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="replace"))
