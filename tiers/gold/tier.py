"""Owns the gold tier: a few tokens by a deadline, and never nothing: smaller model, silver, cached intent, deterministic policy."""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass

from body_broker.errors import BodyBrokerError, Detail, Unavailable
from body_broker.storage.redis import Redis
from tiers.accepting import prepared
from tiers.chain import Chain, Course, Exhausted, Interrupted, Outcome
from tiers.choosing import GRAMMARS, Options, Quiet, options_among
from tiers.counts import Counts
from tiers.deadline import Deadline
from tiers.engine import Engine
from tiers.faults import EngineFault
from tiers.gold import policy
from tiers.gold.intents import messages_of, options_of
from tiers.gold.looking import Line, Look, Looking, digest
from tiers.gold.sight import Sight
from tiers.model import (
    GOLD_TOKENS_MAX,
    Asker,
    Fallback,
    Finish,
    InferenceRequest,
    InferenceResult,
    Listener,
    Message,
    Source,
    Tier,
    Told,
)
from tiers.router import Decision
from tiers.steps import is_absent
from tiers.unanswered import steps_of, told_steps, unanswered
from tiers.wire.base import Ask, Completion

_SEEING = 0.25
"""The share of the time in which an NPC is looked at before a model is asked."""
_LAST = 0.5
"""The share of what is left then in which it is looked at when no model has answered."""
_NOW, _WHENEVER = 1.0, 0.1


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is asked of a model: by which messages, among which options, and whether text from outside is in it."""

    request: InferenceRequest
    messages: tuple[Message, ...]
    options: Options | None
    deadline: Deadline
    salt: str
    outside: bool

    @property
    def tokens(self) -> int:
        """The most that an answer may have."""
        return min(GOLD_TOKENS_MAX, self.request.max_tokens)

    def make(self, engine: Engine, model: str) -> Ask:
        """One engine's request."""
        asked, options, has_grammar = self.request, self.options, engine.spec.dialect in GRAMMARS
        as_json = options is not None and not has_grammar
        return Ask(
            model=model,
            messages=self.messages,
            max_tokens=options.json_tokens() if options is not None and as_json else self._fitting(engine),
            temperature=0.0 if options is not None and has_grammar else asked.temperature,
            seed=asked.seed,
            stop=asked.stop,
            choices=tuple(options.lines) if options is not None and has_grammar else (),
            schema=options.schema() if options is not None and as_json else asked.schema,
            urgency=_WHENEVER if asked.priority == "background" else _NOW,
            cache_salt=self.salt,
        )

    def _fitting(self, engine: Engine) -> int:
        """Free text shrinks to what the engine can write in the time that is left, as fast as it was lately; a choice does not."""
        if self.options is not None or self.request.schema is not None or not engine.gap_s or not engine.is_known():
            return self.tokens
        left_s = self.deadline.remaining() - (engine.ttft_s or 0.0)
        return max(1, min(self.tokens, 1 + int(left_s / engine.gap_s)))

    def accept(self, completion: Completion) -> None:
        """Raise EngineFault where the text stands for none of the options."""
        assert self.options is not None, "free text is accepted by what its request says"
        if self.options.chosen(completion.text, completion.finish) is None:
            raise EngineFault("schema")


class GoldTier:
    """Answers real-time requests.

    Args:
        chain: Tries engines.
        redis: Where intents are.
        counts: Takes measurements.
        sight: Sees NPCs for an asker; None: nobody sees any.
    """

    def __init__(self, chain: Chain, redis: Redis, counts: Counts, *, sight: Sight | None = None) -> None:
        self._chain, self._counts, self._looking = chain, counts, Looking(redis, sight)

    async def execute_with_fallback(
        self,
        request: InferenceRequest,
        decision: Decision,
        *,
        asker: Asker,
        deadline: Deadline,
        listener: Listener | None = None,
    ) -> InferenceResult:
        """An answer by the deadline, whatever the engines do (the seed's method).

        Args:
            request: With `choices` the answer is one of them; with an `npc_id` alone it is an intent, such as `flee player-anna`;
                else free text.
            decision: Who is asked.
            asker: For whom.
            deadline: When it must be there.
            listener: Hears a model's free text as it comes, and its choice once it is made; what stands in for one is not told.

        Raises:
            BadInput: Its schema is none.
            Unavailable: The answer broke off after it had begun to be told, or no model answered what a rule cannot (as
                `unanswered` has it: another error where asking again does not help).
        """
        began = asyncio.get_running_loop().time()
        async with self._looking.at(request, asker, deadline) as look:
            plan = await _planned(request, asker, deadline, look)
            try:
                outcome = await self._chain.run(decision.candidates, await _course(plan, asker, listener))
            except Interrupted as error:
                raise Unavailable("The answer broke off after it had begun.") from error
            except Exhausted as none:
                found = await self._without_model(plan, decision, asker, look, none)
            else:
                found = _of_model(plan, decision, outcome)
                if plan.options is not None:
                    await self._looking.keep(look, request, asker, Line(found.text, found.outside), deadline)
        if listener is not None and plan.options is not None and found.engine is not None:
            await listener(Told("text", found.text, found.outside))
        seconds = asyncio.get_running_loop().time() - began
        self._counts.answered(Tier.GOLD, found.source, seconds)
        return dataclasses.replace(found, seconds=seconds)

    execute = execute_with_fallback  # by the name that every tier has

    async def _without_model(
        self, plan: _Plan, decision: Decision, asker: Asker, look: Look, none: Exhausted
    ) -> InferenceResult:
        request, steps = plan.request, decision.steps(none.fallbacks)
        if plan.options is None:
            raise _unruled(steps, decision.rest_s(steps))
        await look.until(plan.deadline.share(_LAST))
        cached = _cached(plan, look)
        if request.npc_id is not None:
            self._counts.cached("intent", hit=cached is not None)
        source: Source = "cached"
        note = "No model answered: this is the NPC's latest intent, which still holds."
        if cached is None:
            text, rule = policy.decide(look.scene, request.choices)
            cached = Line(text)
            source, note = "policy", f"No model answered: the deterministic policy decided, by its rule {rule}."
        return InferenceResult(
            text=cached.text,
            tier=Tier.GOLD,
            engine=None,
            model=None,
            source=source,
            outside=asker.tainted or look.outside or cached.outside,
            reason=decision.reason,
            fallbacks=steps,
            cost_usd=none.cost_usd,
            note=note + _unconfigured(steps),
        )


async def _planned(request: InferenceRequest, asker: Asker, deadline: Deadline, look: Look) -> _Plan:
    said, options, outside = request.conversation(), None, asker.tainted
    if request.choices:
        options = options_among(request.choices)
    elif request.npc_id is not None and request.schema is None:
        await look.until(deadline.share(_SEEING))
        options = options_of(look.scene)
        said, outside = messages_of(look.scene, options, said), outside or look.outside
    return _Plan(request, said, options, deadline, digest(asker.tenant, request.npc_id or ""), outside)


async def _course(plan: _Plan, asker: Asker, listener: Listener | None) -> Course:
    has_options = plan.options is not None
    return Course(
        make=plan.make,
        tenant=asker.tenant,
        deadline=plan.deadline,
        listener=Quiet(listener) if has_options and listener is not None else listener,
        outside=plan.outside,
        accept=plan.accept if has_options else await prepared(plan.request),
        enough=plan.options.decided if plan.options is not None else None,
        partial=has_options or plan.request.schema is None,
        cost_ceiling=plan.request.cost_ceiling,
    )


def _of_model(plan: _Plan, decision: Decision, outcome: Outcome) -> InferenceResult:
    done, candidate = outcome.completion, outcome.candidate
    spec = candidate.engine.spec
    finish: Finish = done.finish
    text = done.text
    if plan.options is not None:
        chosen = plan.options.chosen(text, finish)
        assert chosen is not None, "what stands for nothing is not accepted"
        text, finish = chosen, "stop" if finish == "stop" else "grammar"
    elif finish == "length" and done.usage.completion < plan.tokens:
        finish = "deadline"  # shortened to what there was time for
    steps = decision.steps(outcome.fallbacks, spec)
    stepped_down = not all(is_absent(step) for step in steps)
    is_another = candidate.tier is Tier.GOLD and stepped_down  # silver's are larger
    is_meant = plan.request.model == spec.name or not (spec.smaller or is_another)
    return InferenceResult(
        text=text,
        tier=candidate.tier,
        engine=spec.name,
        model=outcome.model,
        source="model" if is_meant else "smaller",
        finish=finish,
        outside=plan.outside,
        reason=decision.reason,
        fallbacks=steps,
        usage=done.usage,
        cost_usd=outcome.cost_usd,
        ttft_s=done.ttft_s,
    )


def _unruled(steps: tuple[Fallback, ...], rest_s: float | None) -> BodyBrokerError:
    """The error for what no rule answers; where a model may answer it later, how a rule could answer now."""
    said = f"No model answered, and a rule answers neither in free text nor by a schema. {told_steps(steps)}"
    details: dict[str, Detail] = {"engines": steps_of(steps)}
    error = unanswered([step.reason for step in steps], said, details=details, retry_after_s=rest_s)
    if error.retryable:
        error.next_step += " With choices, or with an npc_id and no schema, a rule decides where no model does."
    return error


def _cached(plan: _Plan, look: Look) -> Line | None:
    """The latest intent that still fits: what its driver submitted, else what this asker was answered last."""
    fitting = plan.request.choices or tuple(options_of(look.scene).lines.values())
    for line in (look.intent, look.last):
        if line is not None and (found := policy.among(line.text, fitting)) is not None:
            return Line(found, line.outside)
    return None


def _unconfigured(steps: tuple[Fallback, ...]) -> str:
    is_empty = bool(steps) and all(is_absent(each) for each in steps)
    return " No engine is configured: set BODY_BROKER_GOLD_URL." if is_empty else ""
