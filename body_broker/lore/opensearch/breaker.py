"""Owns not waiting for an OpenSearch that is down or slow: one query pays for finding out, the next ones do not. Pure."""

from __future__ import annotations

import time
from collections.abc import Callable

from body_broker.lore.opensearch.faults import CopyAway

FAILURES_MAX = 3
PAUSE_S, PAUSE_MAX_S = 2.0, 16.0


class Breaker:
    """Closed while searches succeed; open, it lets one through per pause, and each that fails doubles the pause.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._pause_s = PAUSE_S
        self._closed_again_at: float | None = None

    def admit(self) -> None:
        """Let a search go on.

        Raises:
            CopyAway: OpenSearch failed lately, and it is not time to try it again.
        """
        if self._closed_again_at is None:
            return
        now = self._clock()
        if now < self._closed_again_at:
            raise CopyAway("OpenSearch failed lately; it is tried again in a while.")
        self._closed_again_at = now + self._pause_s  # this one tries it; the others go on without

    def succeeded(self) -> None:
        """It answered, whatever it said."""
        self._failures, self._pause_s, self._closed_again_at = 0, PAUSE_S, None

    def failed(self, *, slow: bool) -> None:
        """It did not; one that was slow is not waited for a second time."""
        self._failures += 1
        still_down = self._closed_again_at is not None
        if still_down:
            self._pause_s = min(2 * self._pause_s, PAUSE_MAX_S)
        if still_down or slow or self._failures >= FAILURES_MAX:
            self._closed_again_at = self._clock() + self._pause_s
