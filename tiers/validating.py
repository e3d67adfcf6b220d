"""Owns trying an engine out: up, its model, answers that obey, fast enough for its tier, and a tool called and an answer after it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import orjson

from body_broker.calls import Json
from body_broker.text import clean
from tiers.accepting import fitting
from tiers.catalogue import DialectName, EngineSpec
from tiers.chain import Candidate, Chain, Course, Exhausted
from tiers.choosing import GRAMMARS, options_among
from tiers.deadline import Deadline
from tiers.engine import Engine
from tiers.faults import IN_WORDS, EngineFault, Reason
from tiers.model import GOLD_TOKENS_MAX, Listener, Message, Tier, Told, ToolOffer
from tiers.wire.base import Ask, Completion

Verdict = Literal["ok", "failed", "left out"]

REQUESTS = 10
"""How many requests latency is measured by, one after the other."""
_ANSWER_S = 60.0
_TOKENS = 64
_FORM_TOKENS = 256
"""Of an answer that must obey a form: room for any tokenizer, for half of a form is no answer."""
_NAME_MAX, _NAMES_MAX = 100, 3
_SCHEMA: Mapping[str, Json] = {
    "type": "object",
    "properties": {"mood": {"enum": ["calm", "angry", "afraid"]}, "level": {"type": "integer", "enum": [1, 2, 3]}},
    "required": ["mood", "level"],
    "additionalProperties": False,
}
_CHOICES = ("approach", "flee", "hide")
_TOOL = ToolOffer(
    "read_lantern",
    "Says what colour the lantern has. Call it when you are asked about the lantern.",
    {
        "type": "object",
        "properties": {"lantern": {"type": "string", "enum": ["quay", "mill"]}},
        "required": ["lantern"],
        "additionalProperties": False,
    },
)
_COLOUR = "green"
_RESULT = f'{{"colour": "{_COLOUR}"}}'
_NOT_TRIED: Mapping[str, str] = {
    "reachable": "not tried: the engine does not answer",
    "model": "not tried: the model failed",
}
"""What is said of every check behind one without which there is nothing to try."""
_OWN: frozenset[DialectName] = frozenset({"vllm", "trtllm"})
"""Dialects of servers that list all that they serve; providers have more names for a model than they list."""
_NEXT: Mapping[Reason, str] = {
    "refused": "Start the server, or correct the address",
    "unreachable": "Correct the name in the address; look at the network, the proxy and the certificate on the way",
    "silent": "See whether the server is loading its model still, or overloaded",
    "unauthorised": "Correct the API key",
    "rejected": "Set what it speaks: `dialect` in models.toml, BODY_BROKER_SILVER_DIALECT for silver; and check that the address is the API's own",
    "budget": "Raise the caps in models.toml, or top up the provider's account",
    "malformed": "Check that the address is the engine's own and `dialect` is what it speaks",
    "schema": "Start it with its grammar backend on, or set can_schema = false for it in models.toml",
    "arguments": "Start it with its tool parser on, or set can_tools = false for it in models.toml",
    "cannot": "Set can_schema or can_tools to what it can in models.toml",
}
_NAME_IT = "Name a model that it serves: BODY_BROKER_SILVER_MODEL, or `model` in models.toml"


@dataclass(frozen=True, slots=True)
class Target:
    """How fast a tier's engine must be.

    Attributes:
        first_s: To the first token, 95 of 100.
        gap_s: Between tokens, 95 of 100; None where only the first counts.
    """

    first_s: float
    gap_s: float | None = None


TARGETS: Mapping[Tier, Target] = {
    Tier.GOLD: Target(0.1, 0.016),
    Tier.SILVER: Target(0.25),
    Tier.BRONZE: Target(30.0),
    Tier.CLOUD: Target(0.8),
}
"""Of the source documents: gold under 16 ms a token, silver 80 to 250 ms, cloud under 800 ms, bronze seconds. Gold's first token and bronze's seconds are our own bounds."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried.

    Attributes:
        found: What was seen, or what is wrong, in words.
        next_step: What to do where it failed.
    """

    engine: str
    name: str
    verdict: Verdict
    found: str
    next_step: str = ""


class _Failed(Exception):  # what it is, not what went wrong
    """A check did not hold."""

    def __init__(self, found: str, next_step: str) -> None:
        super().__init__(found)
        self.found, self.next_step = found, next_step


class _Pace:
    """Hears how long it is from one piece of an answer to the next."""

    restarts = True

    def __init__(self) -> None:
        self.gaps = list[float]()
        self._last: float | None = None

    def a_token(self, tokens: int) -> Sequence[float]:
        """The same from token to token: a piece may hold several."""
        share = min(1.0, (len(self.gaps) + 1) / max(tokens, 1))
        return [gap * share for gap in self.gaps]

    async def __call__(self, told: Told) -> None:
        """Hear one thing."""
        if told.kind != "text":
            return
        now = asyncio.get_running_loop().time()
        if self._last is not None:
            self.gaps.append(now - self._last)
        self._last = now


class Validation:
    """Tries one engine.

    Args:
        engine: The one.
        chain: Asks it, and books what that costs.
        tenant: Who pays.
        requests: How many requests latency is measured by.
        target: How fast it must be; None: what its tier is held to.
    """

    def __init__(
        self, engine: Engine, chain: Chain, *, tenant: str, requests: int = REQUESTS, target: Target | None = None
    ) -> None:
        self._engine, self._chain, self._tenant, self._requests = engine, chain, tenant, requests
        self._target = target or TARGETS[engine.spec.tier]
        self._is_gold = engine.spec.tier is Tier.GOLD

    async def run(self) -> AsyncGenerator[Check]:
        """Each check as soon as it is known. What needs one that failed is left out."""
        spec = self._engine.spec
        steps: Sequence[tuple[str, Callable[[], Awaitable[str]], str]] = (
            ("reachable", self._reach, ""),
            ("model", self._name, ""),
            ("schema", self._obey, "" if spec.can_schema else "can_schema is false"),
            ("latency", self._time, ""),
            ("tools", self._call, self._why_no_tools()),
        )
        why = ""
        for name, step, left_out in steps:
            if why or left_out:
                yield Check(spec.name, name, "left out", left_out or why)
                continue
            check = await self._tried(name, step)
            if check.verdict == "failed":
                why = _NOT_TRIED.get(name, "")
            yield check

    def _why_no_tools(self) -> str:
        if self._is_gold:
            return "gold calls no tools"
        return "" if self._engine.spec.can_tools else "can_tools is false"

    async def _tried(self, name: str, step: Callable[[], Awaitable[str]]) -> Check:
        spec = self._engine.spec
        try:
            return Check(spec.name, name, "ok", await step())
        except _Failed as failed:
            return Check(spec.name, name, "failed", failed.found, failed.next_step)
        except EngineFault as fault:
            return Check(spec.name, name, "failed", _in_words(fault.reason), _advice(fault.reason, spec))
        except Exhausted as none:
            reason = none.fallbacks[-1].reason if none.fallbacks else "not_configured"
            return Check(spec.name, name, "failed", _in_words(reason), _advice(reason, spec))

    async def _reach(self) -> str:
        health = await self._engine.probe()
        if not health.up:
            raise _Failed(_in_words(health.detail), _advice(health.detail, self._engine.spec))
        return f"answers in {_ms(health.seconds)}"

    async def _name(self) -> str:
        spec = self._engine.spec
        listed = await self._engine.models(Deadline.after(_ANSWER_S))
        if spec.adapter is None and spec.model is None and len(listed) != 1:
            raise _Failed(f"it serves {_shown(listed)}, and no model is named", _advise(_NAME_IT, spec))
        model = await self._engine.model()
        unknown = _Failed(
            f"it does not know the model {_short(model)}: it serves {_shown(listed)}", _advise(_NAME_IT, spec)
        )
        if model not in listed and spec.dialect in _OWN:
            raise unknown
        try:
            completion = await self._ask("Say one word.", max_tokens=GOLD_TOKENS_MAX if self._is_gold else _TOKENS)
        except Exhausted as none:
            if model not in listed and none.fallbacks and none.fallbacks[-1].reason == "rejected":
                raise unknown from none
            raise
        told = f"{_short(model)}, {completion.usage.completion} tokens"
        return told if model in listed else f"{told}; not by this name in its list of models"

    async def _obey(self) -> str:
        if self._is_gold and self._engine.spec.dialect in GRAMMARS:
            options = options_among(_CHOICES)
            said = await self._ask("A wolf comes. What do you do?", choices=_CHOICES, max_tokens=GOLD_TOKENS_MAX)
            if options.chosen(said.text, said.finish) is None:
                raise _Failed("the answer is none of the choices", _advice("schema", self._engine.spec))
            return f"one of {len(_CHOICES)} choices, {said.usage.completion} tokens"
        said = await self._ask(
            "How does the ferryman feel, and how much? Answer as JSON.", schema=_SCHEMA, max_tokens=_FORM_TOKENS
        )
        if said.finish != "stop" or not _obeys(said.text, _SCHEMA):
            raise _Failed(_in_words("schema"), _advice("schema", self._engine.spec))
        return f"obeyed, {said.usage.completion} tokens"

    async def _time(self) -> str:
        target, firsts, gaps = self._target, list[float](), list[float]()
        for number in range(self._requests):
            pace = _Pace()
            asked = f"Count on from {number}."
            said = await self._ask(asked, max_tokens=GOLD_TOKENS_MAX if self._is_gold else _TOKENS, listener=pace)
            firsts.append(said.ttft_s)
            gaps += pace.a_token(said.usage.completion)
        first_s, gap_s = _p95(firsts), _p95(gaps)
        told = f"first token p95 {_ms(first_s)} (target {_ms(target.first_s)}), "
        told += f"then {_ms(gap_s)} a token" if gaps else "then not measured"
        told += f" (target {_ms(target.gap_s)})" if target.gap_s is not None else ""
        told += f"; {self._requests} requests, one at a time"
        if target.gap_s is not None and not gaps:
            raise _Failed(told, "Let it stream token by token, and let no proxy before it hold pieces back")
        if first_s > target.first_s or (target.gap_s is not None and gap_s > target.gap_s):
            raise _Failed(
                told,
                f"`body-broker engine-profile {self._engine.spec.tier}` shows the settings of the source documents; "
                "a smaller or quantised model, or a server nearer by, is faster",
            )
        return told

    async def _call(self) -> str:
        asked = Message(role="user", content="What colour has the lantern at the quay? Look it up.")
        first = await self._ask_with((asked,), offers=(_TOOL,), tool_choice="required")
        call = first.calls[0] if first.calls else None
        if call is None or call.name != _TOOL.name or not _obeys(call.arguments, _TOOL.schema):
            raise _Failed(
                "it called no tool" if call is None else _in_words("arguments"),
                _advice("arguments", self._engine.spec),
            )
        messages = (
            asked,
            Message(role="assistant", content=first.text, tool_calls=(call,)),
            Message(role="tool", content=_RESULT, tool_call_id=call.id),
        )
        said = await self._ask_with(messages, offers=(_TOOL,), tool_choice="none")
        if not said.text.strip():
            raise _Failed("it said nothing once it had the result", _advice("arguments", self._engine.spec))
        how = "with" if _COLOUR in said.text.lower() else "without"
        return f"called {call.name} and answered after it, {how} the word that it had found"

    async def _ask(
        self,
        text: str,
        *,
        schema: Mapping[str, Json] | None = None,
        choices: tuple[str, ...] = (),
        max_tokens: int = _TOKENS,
        listener: Listener | None = None,
    ) -> Completion:
        ask = Ask(
            model="",
            messages=(Message(role="user", content=text),),
            max_tokens=max_tokens,
            schema=schema,
            choices=choices,
        )
        return await self._run(ask, listener)

    async def _ask_with(
        self, messages: tuple[Message, ...], *, offers: tuple[ToolOffer, ...], tool_choice: str
    ) -> Completion:
        return await self._run(
            Ask(model="", messages=messages, max_tokens=_FORM_TOKENS, offers=offers, tool_choice=tool_choice)
        )

    async def _run(self, ask: Ask, listener: Listener | None = None) -> Completion:
        course = Course(
            make=lambda _engine, model: replace(ask, model=model),
            tenant=self._tenant,
            deadline=Deadline.after(_ANSWER_S),
            listener=listener,
        )
        outcome = await self._chain.run([Candidate(self._engine, self._engine.spec.tier)], course)
        return outcome.completion


def _short(name: str) -> str:
    """What an engine calls a model."""
    return " ".join(clean(name).split())[:_NAME_MAX]


def _obeys(text: str, schema: Mapping[str, Json]) -> bool:
    try:
        return fitting(schema, "the check")(orjson.loads(text))
    except orjson.JSONDecodeError:
        return False


def _shown(names: Sequence[str]) -> str:
    return ", ".join(map(_short, names[:_NAMES_MAX])) or "nothing"


def _in_words(reason: str) -> str:
    return next((words for known, words in IN_WORDS.items() if known == reason), reason)


def _advice(reason: str, spec: EngineSpec) -> str:
    advice = next((words for known, words in _NEXT.items() if known == reason), "See the log of the server")
    return _advise(advice, spec)


def _advise(advice: str, spec: EngineSpec) -> str:
    return f"{advice} (engine {spec.name} of models.toml)."


def _p95(found: Sequence[float]) -> float:
    """The value that 95 of 100 do not pass; of few the highest."""
    return sorted(found)[math.ceil(len(found) * 0.95) - 1] if found else 0.0


def _ms(seconds: float) -> str:
    return f"{seconds * 1_000:.1f} ms"
