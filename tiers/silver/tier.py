"""Owns how the silver tier answers: its engines with the hub's tools, then an earlier answer, then a fixed text that says so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Protocol

import orjson

from body_broker.calls import Json
from body_broker.errors import Unavailable
from tiers.accepting import Accept, prepared
from tiers.chain import Course, Exhausted, Interrupted
from tiers.counts import Counts
from tiers.deadline import Deadline
from tiers.engine import Engine
from tiers.model import (
    Asker,
    Fallback,
    InferenceRequest,
    InferenceResult,
    Listener,
    Source,
    Tier,
    ToolUse,
    request_bytes,
)
from tiers.prompting import in_persona, last_words
from tiers.router import Decision
from tiers.silver.context import lore_as_known
from tiers.silver.keeping import ANSWERS_KEPT_S, Kept, requester_of
from tiers.silver.personas import NPC, PLAIN, Persona, persona_named
from tiers.steps import is_absent
from tiers.toolloop import LoopOutcome, ToolLoop
from tiers.unanswered import steps_of, told_steps, unanswered
from tiers.wire.base import Ask

_URGENCY = {"normal": 0.5, "background": 0.1}
_KEPT_CHARACTERS_MAX, _KEPT_REQUEST_BYTES_MAX = 8_000, 65_536
_NOTHING_GOES_ON = " Nothing goes on with it."


class Job(Protocol):
    """A job that was asked for."""

    @property
    def id(self) -> str:
        """Its id."""
        ...


Instead = Callable[[InferenceRequest, Asker], Awaitable[Job | None]]
"""`async (request, asker) -> job`: a job that goes on with what no model answered; None where there is to be none."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What was answered once."""

    text: str
    engine: str | None
    model: str | None
    outside: bool


@dataclass(frozen=True, slots=True)
class _Asked:
    """One request on its way."""

    request: InferenceRequest
    decision: Decision
    asker: Asker
    listener: Listener | None
    persona: Persona | None
    key: Hashable
    began: float

    def result(
        self, text: str, source: Source, fallbacks: tuple[Fallback, ...], **more: Any
    ) -> InferenceResult:  # its fields
        """A result of this request, with how long it took."""
        return InferenceResult(
            text=text,
            source=source,
            reason=self.decision.reason,
            fallbacks=fallbacks,
            seconds=asyncio.get_running_loop().time() - self.began,
            **more,
        )


class SilverTier:
    """The tier of dialogue (seed `silver_tier`).

    Args:
        loop: Runs the tools that a model wants.
        counts: Takes measurements.
        instead: Begins a job where no model answered.
    """

    def __init__(self, loop: ToolLoop, counts: Counts, instead: Instead | None = None) -> None:
        self._loop, self._counts, self._instead = loop, counts, instead
        self._answers = Kept[_Answer]("response", ANSWERS_KEPT_S, counts)

    async def execute_with_tools(
        self,
        request: InferenceRequest,
        decision: Decision,
        *,
        asker: Asker,
        deadline: Deadline,
        listener: Listener | None = None,
    ) -> InferenceResult:
        """An answer of the decision's engines in order; else one that this asker got before to the same; else a fixed text.

        A persona that the request names is put before its messages here. The result's `source` and `note` say what it is.

        Raises:
            BadInput: There is no such persona, or a schema of the request's is none.
            Unavailable: No engine answered a request that no fixed text can answer, or one broke off after its listener had
                heard some of it.
        """
        began = asyncio.get_running_loop().time()
        persona = None if request.persona is None else await persona_named(request.persona)
        asked = _Asked(request, decision, asker, listener, persona, _key(request, asker), began)
        accept = await prepared(request)
        try:
            done = await self._ask(asked, accept, deadline)
        except Interrupted as broken:
            raise Unavailable(
                "The answer broke off after it had begun.",
                next_step="Ask again; what came of it so far is no answer.",
                details={"engines": steps_of(broken.fallbacks), "tools": _outcomes(broken.tools)},
            ) from broken
        except Exhausted as ended:
            result = await self._without_model(asked, ended)
        else:
            result = self._of_model(asked, done)
        self._counts.answered(decision.tier, result.source, result.seconds)
        return result

    execute = execute_with_tools  # by the name that every tier has

    async def _ask(self, asked: _Asked, accept: Accept, deadline: Deadline) -> LoopOutcome:
        request, decision = asked.request, asked.decision
        if not decision.candidates:
            raise Exhausted(())
        return await self._loop.run(
            decision.candidates,
            Course(
                make=_make(request, asked.persona),
                tenant=asked.asker.tenant,
                deadline=deadline,
                listener=asked.listener,
                accept=accept,
                partial=request.schema is None and not request.choices,
            ),
            asker=asked.asker,
            tier=Tier.SILVER,
            request=request,
            fixed=_as_it_knows(request),
        )

    def _of_model(self, asked: _Asked, done: LoopOutcome) -> InferenceResult:
        outcome = done.outcome
        completion, spec, model = outcome.completion, outcome.candidate.engine.spec, outcome.model
        fallbacks = asked.decision.steps(outcome.fallbacks, spec)
        named = asked.request.model == spec.name
        stepped_down = not all(is_absent(step) for step in fallbacks)
        whole = completion.finish in {"stop", "grammar"} and not completion.calls
        if whole and asked.key is not None and len(completion.text) <= _KEPT_CHARACTERS_MAX:
            self._answers.put(asked.key, _Answer(completion.text, spec.name, model, done.outside))
        return asked.result(
            completion.text,
            "smaller" if not named and (spec.smaller or stepped_down) else "model",
            fallbacks,
            tier=outcome.candidate.tier,
            engine=spec.name,
            model=model,
            finish=completion.finish,
            outside=done.outside,
            tools=done.tools,
            tool_calls=completion.calls,
            usage=completion.usage,
            cost_usd=outcome.cost_usd,
            ttft_s=completion.ttft_s,
            note=_note_of(done),
        )

    async def _without_model(self, asked: _Asked, ended: Exhausted) -> InferenceResult:
        """What stands in for an answer: an earlier one, or a fixed text; never for what must obey a schema.

        No listener hears it: what is streamed is a model's, and whoever streams tells the rest by its `source`.
        """
        request, fallbacks = asked.request, asked.decision.steps(ended.fallbacks)
        told = told_steps(fallbacks)
        if request.schema is not None or request.choices or request.offers:
            raise unanswered(
                [step.reason for step in fallbacks],
                f"No model answered, and no fixed text could obey what was asked for. {told}",
                details={"engines": steps_of(fallbacks), "tools": _outcomes(ended.tools)},
                retry_after_s=asked.decision.rest_s(fallbacks),
            )
        earlier = None if asked.key is None else self._answers.get(asked.key)
        persona = asked.persona or await persona_named(PLAIN)
        text, outside = (persona.template, False) if earlier is None else (earlier.text, earlier.outside)
        what = "a fixed text" if earlier is None else "what was answered to the same before"
        job = await self._go_on(asked) if earlier is None and not persona.outside else None
        return asked.result(
            text,
            "template" if earlier is None else "cached",
            fallbacks,
            tier=Tier.SILVER,
            engine=earlier and earlier.engine,
            model=earlier and earlier.model,
            outside=outside,
            tools=ended.tools,
            usage=ended.usage,
            cost_usd=ended.cost_usd,
            job=None if job is None else job.id,
            note=f"No model answered: this is {what}. {told}{_NOTHING_GOES_ON if job is None else _goes_on(job)}",
        )

    async def _go_on(self, asked: _Asked) -> Job | None:
        return None if self._instead is None else await self._instead(asked.request, asked.asker)


def _goes_on(job: Job) -> str:
    return f" The job {job.id} goes on with it: get_job(id={job.id}) will have an expert's answer."


def _make(request: InferenceRequest, persona: Persona | None) -> Callable[[Engine, str], Ask]:
    messages = request.conversation()
    if persona is not None:
        messages = in_persona(messages, persona)
    temperature = request.temperature
    if temperature is None and persona is not None:
        temperature = persona.temperature

    def make(_engine: Engine, model: str) -> Ask:
        return Ask(
            model=model,
            messages=messages,
            max_tokens=request.max_tokens,
            offers=request.offers,
            tool_choice=request.tool_choice,
            temperature=temperature,
            seed=request.seed,
            stop=request.stop,
            schema=request.schema,
            choices=request.choices,
            urgency=_URGENCY[request.priority],
            cache_salt=request.npc_id,
        )

    return make


def _as_it_knows(request: InferenceRequest) -> Mapping[str, Mapping[str, Json]]:
    """An NPC's model looks up what that NPC knows, whatever it was talked into asking for."""
    if request.persona != NPC or not request.npc_id:
        return {}
    return {"retrieve_lore": lore_as_known(request.npc_id, request.npc_lore)}


def _key(request: InferenceRequest, asker: Asker) -> Hashable | None:
    """What an answer is kept under: the requester; of a talk its conversation and the words alone, else all that was asked.

    None for what is too long to be asked twice in the same words.
    """
    if request.persona == NPC:
        return requester_of(asker), asker.conversation, request.npc_id, last_words(request.conversation())
    if request_bytes(request) > _KEPT_REQUEST_BYTES_MAX:
        return None
    said = replace(request, latency_budget_ms=None, cost_sensitivity="normal", cost_ceiling=None, priority="normal")
    return requester_of(asker), sha256(orjson.dumps(said)).digest()


def _note_of(done: LoopOutcome) -> str | None:
    withheld = ", ".join(done.withheld)
    notes = (
        withheld and f"Not offered, because you or silver may not call them, or there are none: {withheld}.",
        ""
        if done.outcome.completion.counted
        else "The tokens are about as many as told: the engine did not count them.",
    )
    return " ".join(filter(None, notes)) or None


def _outcomes(tools: tuple[ToolUse, ...]) -> list[str]:
    return [f"{use.name}: {use.outcome}" for use in tools]
