"""Owns what can go wrong with an engine, in one word each; never with a word of the engine's own text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Reason = Literal[
    "not_configured",  # it has no address
    "open",  # its breaker is open
    "busy",  # its queue is full, or too long for the deadline
    "budget",  # it would cost more than may be spent, or the provider says that nothing is left
    "ceiling",  # it would cost more than the request's own cost_ceiling
    "unwanted",  # it costs money, and the request's cost_sensitivity is high
    "too_long",  # the prompt does not fit its context
    "too_slow",  # it cannot answer in the time that is left
    "cannot",  # it lacks what the request needs: tools, a grammar
    "no_background",  # its background lane has no width
    "only_background",  # its other lane has none
    "answers_later",  # an asynchronous endpoint: only jobs ask it
    "refused",  # nothing listens there
    "unreachable",  # its name does not resolve, or no way leads to it
    "reset",  # the connection broke before an answer
    "rate_limited",  # HTTP 429
    "overloaded",  # HTTP 503, 529
    "failed",  # HTTP 500 and other faults of its own
    "rejected",  # HTTP 400, 404, 422: it does not take what we send
    "unauthorised",  # HTTP 401, 403
    "silent",  # no first token in its time
    "stalled",  # no next token in its time
    "cut",  # the stream ended without its end
    "malformed",  # what it sent is not its dialect
    "empty",  # an answer with nothing in it
    "withheld",  # its own filter, or the model itself, refused to answer this
    "schema",  # the answer does not obey the schema that was asked for
    "too_short",  # max_tokens cut an answer that must be whole to obey
    "arguments",  # a tool call whose arguments are no JSON or do not fit
    "deadline",  # the request's own time was over
]

IN_WORDS: Mapping[str, str] = {
    "not_configured": "it has no address",
    "open": "it has failed too often a moment ago",
    "busy": "too many wait for it",
    "budget": "it would cost more than may be spent",
    "ceiling": "dearer than your cost_ceiling",
    "unwanted": "you asked for nothing that costs money",
    "too_long": "the prompt and max_tokens do not fit its context",
    "too_slow": "it cannot answer in the time that is left",
    "cannot": "it lacks what the request needs",
    "no_background": "it takes no background work",
    "only_background": "it takes nothing but background work",
    "answers_later": "it answers later: only jobs ask it",
    "refused": "nothing listens at its address",
    "unreachable": "it cannot be reached: its name, the network, a proxy or a certificate",
    "reset": "the connection broke",
    "rate_limited": "it takes no more requests for now",
    "overloaded": "it says that it is overloaded",
    "failed": "it failed inside",
    "rejected": "it does not take the request",
    "unauthorised": "it does not take our key",
    "silent": "it did not begin to answer in time",
    "stalled": "it stopped in the middle",
    "cut": "its answer broke off",
    "malformed": "what it sent is not its protocol",
    "empty": "its answer was empty",
    "withheld": "it refused to answer this",
    "schema": "its answer does not obey the schema",
    "too_short": "max_tokens is too small for its answer",
    "arguments": "the arguments of its tool call do not fit",
    "deadline": "the time was over",
}
"""What a person is told of each."""

TRANSIENT: frozenset[Reason] = frozenset(
    {
        "refused",
        "unreachable",
        "reset",
        "rate_limited",
        "overloaded",
        "failed",
        "silent",
        "stalled",
        "cut",
        "malformed",
        "unauthorised",
    }
)
"""What counts against an engine's breaker: whoever comes next would meet it too."""


class EngineFault(Exception):
    """An engine did not do what was asked. Falling back is decided by `reason`; people are told it in words by the chain.

    Args:
        reason: In one word.
        retry_after_s: How long it asks to be left alone.
    """

    def __init__(self, reason: Reason, *, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason: Reason = reason
        self.retry_after_s = retry_after_s
