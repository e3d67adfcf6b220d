"""Owns what the tiers count: nothing here, for programs without metrics; the hub's metrics take its place."""

from __future__ import annotations

from collections.abc import Callable

from tiers.model import Usage


class Counts:
    """Takes measurements, and drops them. Labels are names of tiers, engines and reasons: few, and all of our own making."""

    def first_token(self, tier: str, engine: str, seconds: float) -> None:
        """An engine's first token came so long after it was asked."""

    def token_gap(self, tier: str, engine: str, seconds: float) -> None:
        """So long between two pieces of one answer."""

    def answered(self, tier: str, source: str, seconds: float) -> None:
        """A request was answered, from this source, so long after it came."""

    def tokens(self, tier: str, engine: str, usage: Usage) -> None:
        """What an engine read and wrote."""

    def asked(self, operation: str, provider: str, model: str, seconds: float, usage: Usage, *, fault: str) -> None:
        """A request to an engine ended after so long, in OpenTelemetry's words for it; `fault` is "" where it was answered."""

    def fell_back(self, tier: str, reason: str) -> None:
        """One step down."""

    def cached(self, cache: str, *, hit: bool) -> None:
        """A cache was asked."""

    def waiting(self, queue: str, change: int) -> None:
        """So many more (or fewer) wait in a queue."""

    def breaker(self, engine: str, state: Callable[[], str]) -> None:
        """An engine has a breaker, which says its state whenever it is asked."""

    def spent(self, tier: str, usd: float) -> None:
        """Money was spent."""

    def tool_used(self, tier: str, tool: str, outcome: str, seconds: float) -> None:
        """A tier called a tool of the hub."""
