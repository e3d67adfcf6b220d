"""Owns going down a chain of engines under one deadline: money first, then the engine, then whether its answer holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from body_broker.tracing import span
from tiers.catalogue import EngineSpec, Price
from tiers.cost import CostLedger
from tiers.counts import Counts
from tiers.deadline import Deadline
from tiers.engine import Debt, Engine
from tiers.faults import EngineFault
from tiers.model import Fallback, Listener, Tier, Told, ToolUse, Usage, prompt_bytes
from tiers.money import Reservation
from tiers.wire.base import Ask, Completion, Piece

_MILLION = 1_000_000
NO_USAGE = Usage()


@dataclass(frozen=True, slots=True)
class Candidate:
    """An engine to be tried, for which tier, and how much time must be left."""

    engine: Engine
    tier: Tier
    needs_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a chain came to.

    Attributes:
        model: As that engine was asked for it.
        cost_usd: With what was paid for answers that did not hold; None where something was asked whose cost is not known.
    """

    completion: Completion
    candidate: Candidate
    fallbacks: tuple[Fallback, ...]
    cost_usd: float | None
    model: str


class Exhausted(Exception):  # what it is, not what went wrong
    """No candidate answered; `fallbacks` says of each why, `cost_usd`, `tools` and `usage` what was paid and done all the same."""

    def __init__(
        self,
        fallbacks: tuple[Fallback, ...],
        cost_usd: float | None = 0.0,
        *,
        tools: tuple[ToolUse, ...] = (),
        usage: Usage = NO_USAGE,
    ) -> None:
        super().__init__()
        self.fallbacks, self.cost_usd, self.tools, self.usage = fallbacks, cost_usd, tools, usage


class Interrupted(Exhausted):
    """An engine died after pieces were told to somebody who cannot take them back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How one request goes down the chain.

    Attributes:
        make: What each engine is asked, given what it calls its model.
        tenant: Who pays.
        deadline: Of the whole.
        listener: Hears the text; None where nobody does.
        told: Whether the listener has passed any of it on; None where it passes everything on.
        outside: Whether text from outside is in what is asked, so in what is told.
        accept: Raises EngineFault where an answer does not hold (its schema, its arguments).
        enough, partial: As `Engine.run` has them.
        cost_ceiling: US dollars that may still be spent; None leaves it to the caps.
    """

    make: Callable[[Engine, str], Ask]
    tenant: str
    deadline: Deadline
    listener: Listener | None = None
    told: Callable[[], bool] | None = None
    outside: bool = False
    accept: Callable[[Completion], None] | None = None
    enough: Callable[[str], bool] | None = None
    partial: bool = False
    cost_ceiling: float | None = None


class Chain:
    """Tries candidates in order."""

    def __init__(self, ledger: CostLedger, counts: Counts) -> None:
        self._ledger, self._counts = ledger, counts

    async def run(self, candidates: Sequence[Candidate], course: Course) -> Outcome:
        """The first answer that holds.

        Raises:
            Exhausted: There is none.
            Interrupted: One broke off that was already being told.
        """
        fallbacks: list[Fallback] = []
        bill = _Bill(course.cost_ceiling)
        for candidate in candidates:
            told = _Telling(course)
            try:
                completion, model = await self._try(candidate, course, told, bill)
            except EngineFault as fault:
                fallbacks.append(Fallback(candidate.engine.spec.name, fault.reason))
                self._counts.fell_back(candidate.tier, fault.reason)
                if told.began:
                    if course.listener is None or not course.listener.restarts:
                        raise Interrupted(tuple(fallbacks), bill.usd) from fault
                    await course.listener(Told("restart", fault.reason, course.outside))
                if course.deadline.passed:
                    break
                if course.listener is not None:
                    await course.listener(Told("fallback", f"{candidate.engine.spec.name}: {fault.reason}"))
                continue
            return Outcome(completion, candidate, tuple(fallbacks), bill.usd, model)
        raise Exhausted(tuple(fallbacks), bill.usd)

    async def _try(self, candidate: Candidate, course: Course, told: _Telling, bill: _Bill) -> tuple[Completion, str]:
        with span("tier.engine", engine=candidate.engine.spec.name, tier=candidate.tier) as part:
            try:
                found, model = await self._ask(candidate, course, told, bill)
            except EngineFault as fault:
                part.fault(fault.reason)
                raise
            used = found.usage
            part.note(
                finish=found.finish, ttft_s=found.ttft_s, prompt_tokens=used.prompt, completion_tokens=used.completion
            )
            return found, model

    async def _ask(self, candidate: Candidate, course: Course, told: _Telling, bill: _Bill) -> tuple[Completion, str]:
        engine, deadline = candidate.engine, course.deadline
        left_s = deadline.remaining()
        if left_s <= 0:
            raise EngineFault("deadline")
        if left_s < candidate.needs_s:
            raise EngineFault("too_slow")
        ask = course.make(engine, await engine.model(deadline))
        bound = bound_of(ask, engine.spec)
        bill.allow(engine.spec.price, bound, ask.max_tokens)
        reservation, debt = await self._reserve(candidate, course, ask, bound), Debt()
        try:
            completion = await engine.run(
                ask,
                deadline,
                told.hear if course.listener is not None else None,
                enough=course.enough,
                partial=course.partial,
                debt=debt,
            )
        except BaseException:
            if debt.owed:
                self._ledger.forfeit(reservation)
                bill.lost(reservation)
            else:
                self._ledger.release(reservation)
            raise
        maybe = not completion.counted
        bill.add(self._ledger.settle(reservation, candidate.tier, course.tenant, completion.usage, maybe=maybe))
        if course.accept is not None:
            course.accept(completion)
        return completion, ask.model

    async def _reserve(self, candidate: Candidate, course: Course, ask: Ask, bound: int) -> Reservation | None:
        try:
            async with course.deadline.scope():
                return await self._ledger.reserve(candidate.tier, course.tenant, candidate.engine.spec, ask, bound)
        except TimeoutError as error:
            raise EngineFault("deadline") from error


def bound_of(ask: Ask, spec: EngineSpec) -> int:
    """The most tokens that a prompt can have: a token is never less than a byte."""
    preamble = spec.preamble_tokens if ask.offers or ask.schema is not None else 0
    return prompt_bytes(ask.messages, ask.offers, ask.schema, ask.choices) + preamble


def most_usd(price: Price, bound: int, max_tokens: int) -> float:
    """The most that a request can cost, with so many tokens at most in its prompt."""
    return (float(price.prompt) * bound + float(price.completion) * max_tokens) / _MILLION


class _Bill:
    """What one request has cost so far, and whether it may cost more."""

    def __init__(self, ceiling: float | None) -> None:
        self._ceiling, self.usd = ceiling, 0.0

    usd: float | None

    def allow(self, price: Price | None, bound: int, max_tokens: int) -> None:
        """Raise EngineFault where the next request could pass the ceiling."""
        if price is None or self._ceiling is None:
            return
        if self.usd is None or self.usd + most_usd(price, bound, max_tokens) > self._ceiling:
            raise EngineFault("ceiling")

    def add(self, usd: float | None) -> None:
        """So much was paid; None: nobody knows how much."""
        self.usd = None if usd is None or self.usd is None else self.usd + usd

    def lost(self, reservation: Reservation | None) -> None:
        """An answer that costs broke off: what the provider counts of it is not known."""
        if reservation is not None:
            self.usd = None


class _Telling:
    """Tells pieces of one engine's answer, and knows whether any was told."""

    def __init__(self, course: Course) -> None:
        self._course, self._spoke = course, False

    @property
    def began(self) -> bool:
        told = self._course.told
        return self._spoke and (told is None or told())

    async def hear(self, piece: Piece) -> None:
        if piece.text and self._course.listener is not None:
            self._spoke = True
            await self._course.listener(Told("text", piece.text, self._course.outside))
