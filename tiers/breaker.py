"""Owns the circuit breaker of one engine: closed, open for a while after failures, then one trial."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Literal, ParamSpec, TypeVar

from body_broker.errors import Unavailable

State = Literal["closed", "open", "half-open"]
_T = TypeVar("_T")
_P = ParamSpec("_P")


class CircuitBreakerOpen(Unavailable):
    """The engine has failed too often a moment ago to be asked now (the seed's name)."""


class Entry:
    """Of one request, as `TierCircuitBreaker.enter` gave it: what is told of the request is told with it."""

    __slots__ = ()


_ORDINARY = Entry()


class TierCircuitBreaker:
    """Counts failures in a row; the seed's name and defaults, but its count resets on success.

    Args:
        failure_threshold: Failures in a row after which it opens.
        timeout: Seconds it stays open before one trial is let through.
        clock: Seconds.
    """

    __slots__ = ("_clock", "_failures", "_opened_until", "_threshold", "_timeout", "_trial")

    def __init__(
        self, failure_threshold: int = 5, timeout: float = 60, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._threshold, self._timeout, self._clock = failure_threshold, timeout, clock
        self._failures, self._opened_until = 0, 0.0
        self._trial: Entry | None = None

    @property
    def state(self) -> State:
        """closed, open or half-open."""
        if self._failures < self._threshold:
            return "closed"
        return "half-open" if self._clock() >= self._opened_until else "open"

    @property
    def rest_s(self) -> float:
        """How long it stays open from now; 0 where it is not."""
        return max(0.0, self._opened_until - self._clock()) if self.state == "open" else 0.0

    def allows(self) -> bool:
        """Whether a request may be tried now; says nothing of who is the one trial. For deciding, which must not change it."""
        return self._failures < self._threshold or (self._trial is None and self._clock() >= self._opened_until)

    def enter(self) -> Entry | None:
        """Begin a request; None where it is open, or its one trial is under way. Whoever enters must report how it went."""
        if self._failures < self._threshold:
            return _ORDINARY
        if self._trial is not None or self._clock() < self._opened_until:
            return None
        self._trial = Entry()
        return self._trial

    def succeeded(self, entry: Entry) -> None:
        """The engine answered. While it is open, only its trial closes it: an answer that was begun before says nothing of now."""
        if entry is self._trial or self._failures < self._threshold:
            self._failures = 0
        self.left(entry)

    def failed(self, entry: Entry, *, for_s: float | None = None) -> None:
        """It did not. With `for_s` it opens at once for so long: it said when to come again, or that its budget is used up."""
        self.left(entry)
        self._failures = max(self._failures + 1, self._threshold if for_s is not None else 0)
        if self._failures >= self._threshold:
            rest_s = self._timeout if for_s is None else for_s
            self._opened_until = max(self._opened_until, self._clock() + rest_s)  # a late failure does not shorten it

    def left(self, entry: Entry) -> None:
        """The request ended without saying anything of the engine, such as a client that left."""
        if entry is self._trial:
            self._trial = None

    async def call(self, run: Callable[_P, Awaitable[_T]], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """What `run` returns (the seed's method).

        Args:
            run: Does it.
            *args: For `run`.
            **kwargs: For `run`.

        Raises:
            CircuitBreakerOpen: It is open.
        """
        entry = self.enter()
        if entry is None:
            raise CircuitBreakerOpen("The tier is unavailable: it has just failed too often.")
        try:
            found = await run(*args, **kwargs)
        except Exception:
            self.failed(entry)
            raise
        except BaseException:
            self.left(entry)
            raise
        self.succeeded(entry)
        return found
