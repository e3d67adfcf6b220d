"""Owns time in these tests: a clock that only the test moves."""

from __future__ import annotations

from datetime import UTC, datetime


class Clock:
    """Seconds since whenever the test says."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def pass_s(self, seconds: float) -> None:
        self.now += seconds


def wall_clock() -> Clock:
    """One that starts where the database's clock stands, which decides what is still remembered."""
    return Clock(datetime.now(UTC).timestamp())
