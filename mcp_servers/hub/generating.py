"""The hub's tool `generate` and the resource hub://models: a model's answer by whichever tier fits, with how it came about."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Annotated, Any, Literal, Protocol, Self

import orjson
from pydantic import Field, model_validator

from body_broker.calls import Arguments, Call, Caller, Json, Result, Tool
from mcp_servers.hub.hearing import CallListener
from mcp_servers.hub.inferring import Inferring
from tiers.faults import IN_WORDS
from tiers.model import (
    Asker,
    Finish,
    InferenceRequest,
    InferenceResult,
    Message,
    Sensitivity,
    Sla,
    Source,
    Tier,
    ToolCall,
    ToolOffer,
)
from tiers.requests import BUDGET_MS_MAX
from tiers.silver.personas import personas

TEXT_MAX = 1_000_000
TOKENS_UNLESS_SAID, TOKENS_OF_A_JOB = 128, 2_000
_AGES_S = 3_600.0
"""So that time keeps no engine from being asked where money is the question."""
_WITHIN = frozenset({"within_budget"})
Name = Annotated[str, Field(min_length=1, max_length=100)]
Short = Annotated[str, Field(min_length=1, max_length=200)]
Tokens = Annotated[int, Field(ge=1, le=131_072)]


class HasInferring(Protocol):
    """What these rows need."""

    @property
    def inferring(self) -> Inferring:
        """The tiers of this process."""
        ...


class WantedCall(Arguments):
    """A call that a model wanted made in an earlier turn; its arguments as the model wrote them."""

    id: Name
    name: Name
    arguments: Annotated[str, Field(max_length=TEXT_MAX)]


class Turn(Arguments):
    """One message of the conversation so far."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Annotated[str, Field(max_length=TEXT_MAX)] = ""
    tool_calls: Annotated[list[WantedCall], Field(default_factory=list[WantedCall], max_length=64)]
    tool_call_id: Name | None = None

    @model_validator(mode="after")
    def _answers_a_call(self) -> Self:
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("a message of role tool has a tool_call_id, and no other has")
        return self


def _no_parameters() -> dict[str, Json]:
    return {"type": "object", "properties": {}}


class OwnTool(Arguments):
    """A tool that the caller runs itself."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: Annotated[str, Field(max_length=10_000)] = ""
    parameters: Annotated[dict[str, Json], Field(default_factory=_no_parameters)]


class Generate(Arguments):
    """What is wanted of a model."""

    prompt: Annotated[str | None, Field(min_length=1, max_length=TEXT_MAX, description="Or `messages`.")] = None
    messages: Annotated[list[Turn], Field(default_factory=list[Turn], max_length=1_000)]
    model: Annotated[Name | None, Field(description="auto, a tier, or an engine of hub://models.")] = None
    sla: Sla = "interactive"
    max_tokens: Annotated[Tokens | None, Field(description="Default 128; 2000 in a job.")] = None
    latency_budget_ms: Annotated[float | None, Field(gt=0, le=BUDGET_MS_MAX, description="To the whole answer.")] = None
    tools: Annotated[
        list[Name] | None, Field(max_length=64, description="Tools of this hub, or groups of them, that it may call.")
    ] = None
    own_tools: Annotated[
        list[OwnTool],
        Field(
            default_factory=list[OwnTool],
            max_length=128,
            description="Tools you run yourself: the answer ends with their calls.",
        ),
    ]
    tool_choice: Annotated[Name, Field(description="auto, none, required, or one name.")] = "auto"
    persona: Name | None = None
    npc_id: Name | None = None
    role: Annotated[Name | None, Field(description="Of models.toml.")] = None
    requires_expert_reasoning: bool = False
    cost_sensitivity: Sensitivity = "normal"
    cost_ceiling: Annotated[float | None, Field(ge=0, le=1_000, description="US dollars.")] = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    seed: Annotated[int | None, Field(ge=0, le=2**32 - 1)] = None
    stop: Annotated[list[Short], Field(default_factory=list[str], max_length=4)]
    response_schema: Annotated[dict[str, Json] | None, Field(description="JSON Schema of the answer.")] = None
    choices: Annotated[list[Short], Field(default_factory=list[str], max_length=64, description="It is one of these.")]
    background: Annotated[bool, Field(description="Let others go first.")] = False

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if (self.prompt is None) == (not self.messages):
            raise ValueError("give either prompt or messages")
        if self.response_schema is not None and self.choices:
            raise ValueError("give either response_schema or choices")
        return self

    def request(self) -> InferenceRequest:
        """The same in the tiers' words."""
        return InferenceRequest(
            prompt=self.prompt,
            messages=tuple(message_of(turn) for turn in self.messages),
            sla=self.sla,
            max_tokens=TOKENS_UNLESS_SAID if self.max_tokens is None else self.max_tokens,
            latency_budget_ms=self.latency_budget_ms,
            tools=None if self.tools is None else tuple(self.tools),
            offers=tuple(ToolOffer(t.name, t.description, t.parameters) for t in self.own_tools),
            tool_choice=self.tool_choice,
            temperature=self.temperature,
            seed=self.seed,
            stop=tuple(self.stop),
            persona=self.persona,
            npc_id=self.npc_id,
            requires_expert_reasoning=self.requires_expert_reasoning,
            cost_sensitivity=self.cost_sensitivity,
            cost_ceiling=self.cost_ceiling,
            model=self.model,
            role=self.role,
            schema=self.response_schema,
            choices=tuple(self.choices),
            priority="background" if self.background else "normal",
        )

    async def brings_outside(self) -> bool:
        """Whether it carries a player's words, or what tools of the caller's gave: nobody here knows where that is from."""
        if any(turn.role == "tool" for turn in self.messages):
            return True
        persona = None if self.persona is None else (await personas()).get(self.persona)
        return persona is not None and persona.outside


def message_of(turn: Turn) -> Message:
    """The same in the tiers' words."""
    return Message(
        role=turn.role,
        content=turn.content,
        tool_calls=tuple(ToolCall(c.id, c.name, c.arguments) for c in turn.tool_calls),
        tool_call_id=turn.tool_call_id,
    )


class Used(Result):
    """A tool of the hub that was called on the way."""

    name: str
    outcome: str
    seconds: float


class Wanted(Result):
    """A call of your own tools that the model wants made."""

    id: str
    name: str
    arguments: str


class Down(Result):
    """A step down: who was not asked or failed, and why."""

    engine: str
    reason: str

    def words(self) -> str:
        """The same for people."""
        return f"{self.engine}: {IN_WORDS.get(self.reason, self.reason)}"


class Answered(Result):
    """How an answer came about."""

    source: Source = Field(
        description=(
            "What it came from; `policy` and `template` are no model's words, `cached` is what the same got before, `job` will "
            "have it."
        )
    )
    finish: Finish = Field(description="`length` and `deadline`: it was cut.")
    degraded: bool
    tier: Tier
    engine: str | None
    model: str | None
    tools: list[Used]
    fallbacks: list[Down]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    cost_usd: float | None
    ttft_s: float | None
    seconds: float
    note: str | None
    from_outside: bool

    def outside(self) -> bool:
        """As the tier found."""
        return self.from_outside


class Generated(Answered):
    """An answer, and how it came about."""

    content: str
    reason: str
    tool_calls: list[Wanted]
    job: str | None = Field(description="Goes on with it, or does it: get_job has its answer.")

    def text(self) -> str:
        """The answer; where it is less than was asked for, that first."""
        said = self.content or orjson.dumps([call.model_dump() for call in self.tool_calls]).decode()
        if not self.degraded:
            return said
        steps = "; ".join(f"{down.engine} {down.reason}" for down in self.fallbacks)
        return f"[{self.source}, {self.finish}{': ' if steps else ''}{steps}]\n{said}"

    @classmethod
    def of(cls, result: InferenceResult) -> Generated:
        """A tier's result."""
        return cls(
            content=result.text,
            reason=result.reason,
            tool_calls=[Wanted(id=c.id, name=c.name, arguments=c.arguments) for c in result.tool_calls],
            job=result.job,
            **facts_of(result),
        )


def facts_of(result: InferenceResult) -> dict[str, Any]:
    """The fields of `Answered`."""
    return {
        "source": result.source,
        "finish": result.finish,
        "degraded": result.degraded,
        "tier": result.tier,
        "engine": result.engine,
        "model": result.model,
        "tools": [Used(name=t.name, outcome=t.outcome, seconds=round(t.seconds, 4)) for t in result.tools],
        "fallbacks": [Down(engine=f.engine, reason=f.reason) for f in result.fallbacks],
        "prompt_tokens": result.usage.prompt,
        "completion_tokens": result.usage.completion,
        "cached_tokens": result.usage.cached,
        "cost_usd": result.cost_usd,
        "ttft_s": None if result.ttft_s is None else round(result.ttft_s, 4),
        "seconds": round(result.seconds, 4),
        "note": result.note,
        "from_outside": result.outside,
    }


async def generate(arguments: Generate, call: Call, services: HasInferring) -> Generated:
    """An answer by the tier that fits, or the job that does it; each call is a conversation of its own."""
    began, inferring = asyncio.get_running_loop().time(), services.inferring
    outside = await arguments.brings_outside()
    tiers = await inferring.tiers()
    request = tiers.router.with_role(arguments.request())
    if tiers.router.tier_of(request) is Tier.BRONZE:
        if arguments.max_tokens is None:
            request = replace(request, max_tokens=TOKENS_OF_A_JOB)
        asker = Asker(caller=replace(call.caller, depth=call.depth), conversation="", tainted=call.tainted or outside)
        return Generated.of(await tiers.router.execute(request, asker=asker, listener=CallListener(call)))
    conversation = inferring.conversation(call.caller, "generate", call.id)
    if request.tools:
        heard = "generate" if outside else None
        asker = await inferring.begin(call, conversation, heard_outside=heard)
    else:  # nobody acts for the asker, so there is no session beside theirs to keep
        caller = replace(call.caller, depth=call.depth)
        asker = Asker(caller=caller, conversation=conversation, tainted=call.tainted or outside)
    budget_ms = inferring.budget_ms(arguments.sla, arguments.latency_budget_ms, began=began)
    request = replace(request, latency_budget_ms=budget_ms)
    return Generated.of(await tiers.router.execute(request, asker=asker, listener=CallListener(call)))


async def generate_facts(arguments: Generate, caller: Caller, services: HasInferring) -> frozenset[str]:
    """Whether the caller's budget has room for it."""
    return await budget_facts(arguments.request(), caller, services.inferring)


async def budget_facts(request: InferenceRequest, caller: Caller, inferring: Inferring) -> frozenset[str]:
    """The fact `within_budget`: false only where money is all that keeps every engine from being asked.

    Who has spent a day's budget is still answered by engines that cost nothing.

    Args:
        request: What is wanted.
        caller: Who wants it; their asker pays.
        inferring: The tiers.

    Raises:
        BadInput: The request names a model that there is not.
    """
    tiers = await inferring.tiers()
    await tiers.ledger.look(caller.asker)
    if not (spent_out := tiers.ledger.spent_out(caller.asker)):
        return _WITHIN
    may = tiers.router.decide(request, remaining_s=_AGES_S, spent_out=spent_out)
    could = tiers.router.decide(request, remaining_s=_AGES_S)
    return _WITHIN if may.candidates or not could.candidates else frozenset()


async def explain_budget(_arguments: Arguments, caller: Caller, services: HasInferring) -> str:
    """How the caller's asker stands, for them alone: right after `budget_facts` has looked."""
    return (await services.inferring.tiers()).ledger.words(caller.asker)


TOOLS = (
    Tool(
        name="generate",
        group="draft",
        modifiers=frozenset({"spend"}),
        run=generate,
        title="Ask a model",
        description=(
            "An answer by a language model: the router picks the tier by sla, max_tokens and tools; the result says which engine "
            "answered, what it cost and every fallback. Not for players' words to an NPC (talk_to_npc), nor for facts that "
            "search_lore has."
        ),
        output="as_marked",
        open_world=True,
        reports_progress=True,
        establishes=generate_facts,
        explains=explain_budget,
    ),
)
