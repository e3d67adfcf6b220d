"""Owns which error says that no model answered: what asking again cannot mend is never told as if it could."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from body_broker.errors import BadInput, BodyBrokerError, Denied, Detail, TooLarge, Unavailable

_LEFT_ASIDE = frozenset({"not_configured", "cannot"})
"""Reasons of engines that were never meant for the request."""


class OverBudget(Denied):
    """Money is all that kept every engine from being asked."""

    advice = (
        "Ask for fewer max_tokens or send less, or ask an engine without a price, such as model=silver where one is configured. A day's"
        " money is in models.toml ([caps]) and begins anew at 00:00 UTC; `cost_ceiling` and `cost_sensitivity` are the request's own."
    )


class NotTaken(BadInput):
    """Every engine that was asked refused the request as it is."""

    advice = "Correct the messages, tools or schema. Where every request ends so, `body-broker validate` says what is wrong with the engine."


def told_reasons(reasons: Iterable[str]) -> frozenset[str]:
    """Those of engines that were meant for the request."""
    return frozenset(reasons) - _LEFT_ASIDE


def unanswered(reasons: Iterable[str], said: str, *, details: Mapping[str, Detail] | None = None) -> BodyBrokerError:
    """The error for a request that no model answered.

    Args:
        reasons: Of each step down, one word.
        said: What happened, in words.
        details: What a program may know of it.
    """
    match sorted(told_reasons(reasons)):
        case ["budget"]:
            return OverBudget(said, details=details)
        case ["rejected"] | ["withheld"]:
            return NotTaken(said, details=details)
        case ["too_long"]:
            step = "Send fewer or shorter messages, or ask for fewer tokens."
            return TooLarge(said, next_step=step, details=details)
        case _:
            step = "Ask again later; `body-broker validate` says which engines are up."
            return Unavailable(said, next_step=step, details={"component": "tiers", **(details or {})})
