"""Owns which error says that no model answered: what asking again cannot mend is never told as if it could."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from body_broker.errors import BadInput, BodyBrokerError, Denied, Detail, NotConfigured, TooLarge, Unavailable
from tiers.faults import IN_WORDS
from tiers.model import Fallback, InferenceResult
from tiers.steps import is_absent

if TYPE_CHECKING:
    from tiers.engine import Engine

LEFT_ASIDE: frozenset[str] = frozenset({"not_configured", "cannot", "no_background", "only_background"})
"""Reasons of engines that were never meant for the request."""
_MONEY = frozenset({"budget", "ceiling", "unwanted"})
"""Reasons of engines that only money kept from being asked: a day's, and the request's own bounds."""

_SET_UP = "No engine is configured: BODY_BROKER_SILVER_URL, or a cloud provider's key, names one (docs/tiers.md)."


class Step(Protocol):
    """A step down: a `Fallback`, or what is told of one."""

    @property
    def engine(self) -> str:
        """Whose."""
        ...

    @property
    def reason(self) -> str:
        """Why."""
        ...


class NoEngine(NotConfigured):
    """No model answered, and none that could is configured: asking again helps nobody."""

    http_status = 503
    advice = "The resource hub://models says what is configured; docs/tiers.md how to add an engine."


class OverBudget(Denied):
    """Money is all that kept every engine from being asked."""

    advice = (
        "Ask for fewer max_tokens or send less, or ask an engine without a price, such as model=silver where one is configured. A day's"
        " money is in models.toml ([caps]) and begins anew at 00:00 UTC; `cost_ceiling` and `cost_sensitivity` are the request's own."
    )

    def with_money(self, words: str) -> OverBudget:
        """The same, with how the asker stands."""
        return OverBudget(" ".join(filter(None, (self.message, words))), details=self.details)


class NotTaken(BadInput):
    """Every engine that was asked refused the request as it is."""

    advice = "Correct the messages, tools or schema. Where every request ends so, `body-broker validate` says what is wrong with the engine."


def kept_by_money(found: InferenceResult) -> bool:
    """Whether no model answered now, and money kept one from it."""
    return found.source not in {"model", "smaller"} and any(step.reason == "budget" for step in found.fallbacks)


def with_standing(found: InferenceResult, words: str) -> InferenceResult:
    """The same, with how the asker stands in its note."""
    return replace(found, note=" ".join(filter(None, (found.note, words))) or None)


def told_reasons(reasons: Iterable[str]) -> frozenset[str]:
    """Those of engines that were meant for the request."""
    return frozenset(reasons) - LEFT_ASIDE


def told_steps(fallbacks: Iterable[Fallback]) -> str:
    """Who failed or was not asked, in words; how to set one up where that is all there is to it."""
    met = [f"{step.engine}: {IN_WORDS.get(step.reason, step.reason)}" for step in fallbacks if not is_absent(step)]
    return f"{'; '.join(dict.fromkeys(met))}." if met else _SET_UP


def steps_of(fallbacks: Iterable[Fallback]) -> list[str]:
    """Each step down, as a program may know of it."""
    return [f"{step.engine}: {step.reason.replace('_', ' ')}" for step in fallbacks]


def rest_s(steps: Iterable[Step], engines: Mapping[str, Engine]) -> float | None:
    """How long until the first of the steps whose breaker is open is tried again; None where none of them is such an engine's."""
    resting = [
        engines[step.engine].breaker.rest_s for step in steps if step.reason == "open" and step.engine in engines
    ]
    return min(resting, default=None)


def unanswered(
    reasons: Iterable[str],
    said: str,
    *,
    details: Mapping[str, Detail] | None = None,
    retry_after_s: float | None = None,
) -> BodyBrokerError:
    """The error for a request that no model answered.

    Args:
        reasons: Of each step down, one word.
        said: What happened, in words.
        details: What a program may know of it.
        retry_after_s: When an engine is tried again, as `rest_s` has it; told where nothing else kept one from answering.
    """
    met = frozenset(reasons)
    why = told_reasons(met)
    if met and not why:
        return NoEngine(said, details=details)
    if why and why <= _MONEY:
        kind = OverBudget if "budget" in why else Denied
        return kind(said, next_step=OverBudget.advice, details=details)
    if "too_short" in why:
        problems = ["max_tokens: too small for an answer that must be whole"]
        return BadInput(said, next_step="Ask for more max_tokens.", details={"problems": problems, **(details or {})})
    match sorted(why):
        case ["rejected"] | ["withheld"]:
            return NotTaken(said, details=details)
        case ["too_long"]:
            step = "Send fewer or shorter messages, or ask for fewer tokens."
            return TooLarge(said, next_step=step, details=details)
        case _:
            step = "Ask again later; `body-broker validate` says which engines are up."
            again_s = retry_after_s if why == frozenset({"open"}) else None
            told = {"component": "tiers", **(details or {})}
            return Unavailable(said, next_step=step, details=told, retry_after_s=again_s)
