"""Owns which tier answers a request: the source documents' truth table, then what can, may and is up, in microseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from body_broker.errors import BadInput, NotConfigured
from body_broker.tracing import span
from tiers.catalogue import Catalogue, EngineSpec, Price
from tiers.chain import Candidate, most_usd
from tiers.cloud.worth import by_worth
from tiers.contexts import learned, too_large
from tiers.counts import Counts
from tiers.deadline import Deadline
from tiers.engine import Engine
from tiers.faults import Reason
from tiers.model import (
    BUDGET_S,
    BYTES_A_TOKEN,
    GOLD_TOKENS_MAX,
    NEEDS_SILVER_S,
    Asker,
    Fallback,
    InferenceRequest,
    InferenceResult,
    Listener,
    Tier,
    Told,
    request_bytes,
)
from tiers.requests import check
from tiers.steps import is_absent, steps_down
from tiers.unanswered import LEFT_ASIDE, OverBudget, kept_by_money, rest_s, with_standing

_NAMED_MAX = 20
_OF_THE_REQUEST = LEFT_ASIDE | {"too_long"}
"""Why an engine is not asked that will be the same the next time."""
_TOOLS, _SCHEMA, _SOON, _WHENEVER = 1, 2, 4, 8
"""What a request needs of an engine: tools, a grammar, the real-time lane, the background lane."""
_NONE: frozenset[Tier] = frozenset()


class Serves(Protocol):
    """A tier that can be asked."""

    async def execute(
        self,
        request: InferenceRequest,
        decision: Decision,
        *,
        asker: Asker,
        deadline: Deadline,
        listener: Listener | None,
    ) -> InferenceResult:
        """An answer, or what stands in for it."""
        ...


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a request goes.

    Attributes:
        tier: Whose answer it is meant to be.
        candidates: Who is asked, in order.
        reason: Why this tier, in words.
        skipped: Who is not asked, and why.
        chain: All of them, in the order of falling back.
    """

    tier: Tier
    candidates: tuple[Candidate, ...]
    reason: str
    skipped: tuple[Fallback, ...]
    chain: tuple[_Step, ...] = ()

    def steps(self, met: Sequence[Fallback], answered: EngineSpec | None = None) -> tuple[Fallback, ...]:
        """Every step down to an answer, after `met`: who was asked and failed, in that order.

        Where the tier that was meant answered, an engine without an address was not missed.
        """
        by = None if answered is None else answered.name
        told = steps_down([step.name for step in self.chain], self.skipped, met, answered=by)
        if answered is None or answered.smaller or answered.tier is not self.tier:
            return told
        return tuple(step for step in told if not is_absent(step))

    def rest_s(self, steps: Iterable[Fallback]) -> float | None:
        """How long until the first of the steps whose breaker is open is tried again."""
        return rest_s(steps, {step.name: step.engine for step in self.chain if step.engine is not None})


class _Step:
    """An engine of a chain, with all that deciding looks at close at hand."""

    __slots__ = ("candidate", "engine", "lacks", "missing", "name", "needs_s", "preamble", "price", "tier")

    def __init__(self, spec: EngineSpec, engine: Engine | None, needs_s: float) -> None:
        self.name, self.tier, self.price = spec.name, spec.tier, spec.price
        self.engine, self.needs_s, self.preamble = engine, needs_s, spec.preamble_tokens
        self.candidate = Candidate(engine, spec.tier, needs_s) if engine is not None else None
        # Who has an address and is no engine here answers later than any caller waits for.
        self.missing = Fallback(spec.name, "not_configured" if spec.url is None else "answers_later")
        self.lacks = (
            (0 if spec.can_tools else _TOOLS)
            | (0 if spec.can_schema else _SCHEMA)
            | (0 if spec.concurrency else _SOON)
            | (0 if spec.background else _WHENEVER)
        )


class _Wish:
    """What deciding needs to know of a request, worked out once."""

    __slots__ = ("bytes_", "max_tokens", "needs", "remaining_s", "request", "spent_out", "tokens")

    def __init__(self, request: InferenceRequest, remaining_s: float, spent_out: frozenset[Tier]) -> None:
        self.request, self.remaining_s, self.spent_out = request, remaining_s, spent_out
        self.bytes_ = size = request_bytes(request)
        self.max_tokens = request.max_tokens
        self.tokens = size / BYTES_A_TOKEN + request.max_tokens
        self.needs = _WHENEVER if request.priority == "background" else _SOON
        if request.tools or request.offers:
            self.needs |= _TOOLS
        if request.schema is not None:
            self.needs |= _SCHEMA


_Aim = tuple[Tier, tuple[_Step, ...], str]


class ModelRouter:
    """Routes requests (the seed's class).

    Args:
        catalogue: Engines, roles, and where each tier goes on.
        engines: Those that have an address, by name.
        tiers: Who executes; a tier that is missing is told as not there yet.
        spent_out: The tiers in which money is used up, for everybody or for this tenant; `CostLedger.spent_out`.
        money: How a tenant stands, in words for them; `CostLedger.words`.
        counts: Told of engines that were not asked.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        engines: Mapping[str, Engine],
        tiers: Mapping[Tier, Serves],
        *,
        spent_out: Callable[[str], frozenset[Tier]] | None = None,
        money: Callable[[str], str] | None = None,
        counts: Counts | None = None,
    ) -> None:
        self._serving, self._spent_out, self._money, self._counts = tiers, spent_out, money, counts or Counts()
        specs = catalogue.engines.values()
        self._answering = catalogue.answering()

        def steps(chosen: Iterable[EngineSpec], needs_s: float = 0.0) -> tuple[_Step, ...]:
            return tuple(_Step(spec, engines.get(spec.name), needs_s) for spec in chosen)

        self._chains = {
            tier: steps(catalogue.of_tier(tier))
            + tuple(
                step
                for later in catalogue.after(tier)
                for step in steps(catalogue.of_tier(later), NEEDS_SILVER_S if tier is Tier.GOLD else 0.0)
            )
            for tier in Tier
        }
        self._named: dict[str, _Aim] = {
            spec.name: (spec.tier, steps([spec]), f"the request names {spec.name}") for spec in specs
        }
        self._named |= {tier.value: (tier, self._chains[tier], f"the request names {tier}") for tier in Tier}
        self._role_tools = {role.name: role.tools for role in catalogue.roles.values()}
        self._roles: dict[str, _Aim] = {
            role.name: (
                role.tier,
                steps(catalogue.of_role(role)),
                f"the role {role.name} is {role.tier}'s",
            )
            for role in catalogue.roles.values()
        }

    def with_role(self, request: InferenceRequest) -> InferenceRequest:
        """The same request with the tools of its role, where it says nothing of tools."""
        tools = self._role_tools.get(request.role or "") if request.tools is None else None
        return replace(request, tools=tools) if tools else request

    def route(self, request: InferenceRequest) -> Tier:
        """The tier that the source documents give it to."""
        return _routed(request)[0]

    def tier_of(self, request: InferenceRequest) -> Tier:
        """The tier that it is for, by the model or role that it names too.

        Raises:
            BadInput: There is no such model or role.
        """
        return self._aim(request)[0]

    def decide(self, request: InferenceRequest, *, remaining_s: float, spent_out: frozenset[Tier] = _NONE) -> Decision:
        """Who is asked, in which order, and why; nothing is asked and nothing is changed.

        Args:
            request: What is wanted.
            remaining_s: How much time there is.
            spent_out: Tiers in which this asker's money, or everybody's, is used up.

        Raises:
            BadInput: It names a model or a role that there is not.
        """
        request = self.with_role(request)
        tier, chain, reason = self._aim(request)
        wish = _Wish(request, remaining_s, spent_out)
        candidates: list[Candidate] = []
        late: list[Candidate] = []
        skipped: list[Fallback] = []
        for step in chain:
            if step.candidate is None:
                skipped.append(step.missing)
            elif (why := _why_not(step, wish)) is None:
                candidates.append(step.candidate)
            elif why == "late":
                late.append(step.candidate)
            else:
                skipped.append(Fallback(step.name, why))
        if late:
            # The whole of max_tokens would come too late, but few answers are that long: better tried than given up.
            if not candidates:
                candidates = late
            else:
                skipped += [Fallback(each.engine.spec.name, "too_slow") for each in late]
        return Decision(tier, tuple(candidates), reason, tuple(skipped), chain)

    def _aim(self, request: InferenceRequest) -> _Aim:
        name = request.model
        if name is not None and name != "auto":
            return self._named.get(name) or _unknown("model", self._answering)
        if request.role is not None:
            return self._roles.get(request.role) or _unknown("role", self._roles)
        tier, reason = _routed(request)
        return tier, self._chains[tier], reason

    async def execute(
        self, request: InferenceRequest, *, asker: Asker, listener: Listener | None = None
    ) -> InferenceResult:
        """An answer by the tier that fits, or what that tier has in its place.

        Raises:
            NotConfigured: The tier is not there.
            TooLarge: No engine takes so long a prompt.
            BadInput: A number cannot be, or it names a model or role that there is not.
        """
        check(request)
        request = self.with_role(request)
        deadline = Deadline.after(budget_s(request))
        spent_out = self._spent_out(asker.tenant) if self._spent_out is not None else _NONE
        decision = self.decide(request, remaining_s=deadline.remaining(), spent_out=spent_out)
        if (full := _full(decision)) and await learned(full, deadline):
            decision = self.decide(request, remaining_s=deadline.remaining(), spent_out=spent_out)
        decision = replace(
            decision, candidates=by_worth(decision.candidates, request, remaining_s=deadline.remaining())
        )
        tier = self._serving.get(_served_by(decision))
        if tier is None:
            raise NotConfigured(
                f"The {decision.tier} tier is not there yet, and this is for it: {decision.reason}.",
                next_step="Ask with sla interactive and without expert reasoning or a role, or wait for it.",
                details={"tier": decision.tier},
            )
        self.check_fits(request, decision)
        if listener is not None:
            await listener(Told("routed", f"{decision.tier}: {decision.reason}"))
        with span("tier.route", sla=request.sla, tier=decision.tier, reason=decision.reason) as part:
            missed: Iterable[Fallback] = decision.skipped
            try:
                found = await tier.execute(request, decision, asker=asker, deadline=deadline, listener=listener)
                missed = found.fallbacks
            except OverBudget as error:
                raise error.with_money(self._standing(request, asker)) from error
            finally:
                self._count(decision, frozenset(missed))
            part.note(source=found.source, engine=found.engine or "none", finish=found.finish)
            return with_standing(found, self._standing(request, asker)) if kept_by_money(found) else found

    def _standing(self, request: InferenceRequest, asker: Asker) -> str:
        """How the asker stands; nothing where the request itself is not to cost anything."""
        return self._money(asker.tenant) if self._money is not None and request.cost_sensitivity != "high" else ""

    def _count(self, decision: Decision, missed: frozenset[Fallback]) -> None:
        """Who was not asked and would have been; those who were asked and failed, the chain has counted."""
        for skip in decision.skipped:
            if not is_absent(skip) and skip in missed:
                self._counts.fell_back(decision.tier, skip.reason)

    def check_fits(self, request: InferenceRequest, decision: Decision) -> None:
        """Refuse what will fit nowhere the next time either; what is only down for a while has its tier's last resorts.

        Args:
            request: What is wanted.
            decision: What was decided of it.

        Raises:
            TooLarge: No engine that could be asked takes so long a prompt.
        """
        reasons = {skip.reason for skip in decision.skipped}
        if decision.candidates or "too_long" not in reasons or not reasons <= _OF_THE_REQUEST:
            return
        raise too_large(request, _full(decision))


def _full(decision: Decision) -> list[Engine]:
    """The engines that seem to hold too little for it."""
    names = {skip.engine for skip in decision.skipped if skip.reason == "too_long"}
    return [step.engine for step in decision.chain if step.engine is not None and step.name in names] if names else []


def _served_by(decision: Decision) -> Tier:
    """The cloud tier, with its cache of answers, serves what only paid engines can be asked for; gold's last resorts are its own."""
    is_paid = bool(decision.candidates) and all(each.tier is Tier.CLOUD for each in decision.candidates)
    return Tier.CLOUD if is_paid and decision.tier is Tier.SILVER else decision.tier


def budget_s(request: InferenceRequest) -> float:
    """How long the whole answer may take."""
    given_ms = request.latency_budget_ms
    return BUDGET_S[request.sla] if given_ms is None else given_ms / 1_000


def _routed(request: InferenceRequest) -> tuple[Tier, str]:
    """The source documents' truth table, in their order, and which of its lines it was."""
    sla = request.sla
    if sla == "real-time" and request.max_tokens <= GOLD_TOKENS_MAX:
        return Tier.GOLD, f"real-time, at most {GOLD_TOKENS_MAX} tokens"
    if sla == "interactive" and request.needs_tools:
        return Tier.SILVER, "interactive, with tools"
    if sla == "async":
        return Tier.BRONZE, "async"
    if request.requires_expert_reasoning:
        return Tier.BRONZE, "expert reasoning"
    return Tier.SILVER, "interactive" if sla == "interactive" else f"real-time, but more than {GOLD_TOKENS_MAX} tokens"


def _why_not(step: _Step, wish: _Wish) -> Reason | Literal["late"] | None:
    """Why this engine is not asked; `late` where only an answer of full length would be too late."""
    if lacks := wish.needs & step.lacks:
        return "cannot" if lacks & (_TOOLS | _SCHEMA) else "no_background" if lacks & _WHENEVER else "only_background"
    engine = step.engine
    assert engine is not None, "only what has an address is looked at"
    if wish.tokens > engine.context_tokens:
        return "too_long"
    if step.price is not None and (why := _too_dear(step, step.price, wish)) is not None:
        return why
    if not engine.breaker.allows():
        return "open"
    lane = engine.lane if wish.needs & _SOON else engine.background
    waits_s = lane.wait_s() if lane.busy else 0.0
    begins_s = waits_s + (engine.ttft_s or 0.0)
    ends_s = begins_s + (engine.gap_s or 0.0) * wish.max_tokens
    if ends_s <= wish.remaining_s >= step.needs_s:
        return None
    return _too_late(step, engine, wish, waits_s, begins_s)


def _too_late(
    step: _Step, engine: Engine, wish: _Wish, waits_s: float, begins_s: float
) -> Reason | Literal["late"] | None:
    remaining_s = wish.remaining_s
    if waits_s > remaining_s or step.needs_s > remaining_s:
        return "too_slow"
    if not engine.is_known():
        return None
    return "too_slow" if begins_s > remaining_s else "late"


def _too_dear(step: _Step, price: Price, wish: _Wish) -> Reason | None:
    request = wish.request
    if request.cost_sensitivity == "high":
        return "unwanted"
    if step.tier in wish.spent_out:
        return "budget"
    if (ceiling := request.cost_ceiling) is None:
        return None
    bound = wish.bytes_ + (step.preamble if wish.needs & (_TOOLS | _SCHEMA) else 0)
    return "ceiling" if most_usd(price, bound, request.max_tokens) > ceiling else None


def _unknown(what: str, known: Iterable[str]) -> _Aim:
    raise BadInput(
        f"There is no {what} of that name.",
        next_step=f"Use one of: {', '.join([*known][:_NAMED_MAX])}.",
        details={"problems": [f"{what}: unknown"]},
    )
