"""Owns deadlines: one absolute moment on the event loop's clock that a request and everything it causes must meet."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment of the running loop's clock.

    Attributes:
        at: Seconds of `loop.time()`.
    """

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """So many seconds from now."""
        return cls(asyncio.get_running_loop().time() + seconds)

    def remaining(self) -> float:
        """Seconds left; negative once it has passed."""
        return self.at - asyncio.get_running_loop().time()

    @property
    def passed(self) -> bool:
        """Whether nothing is left."""
        return self.remaining() <= 0

    def within(self, seconds: float) -> Deadline:
        """The earlier of this one and so many seconds from now."""
        return Deadline(min(self.at, asyncio.get_running_loop().time() + seconds))

    def share(self, fraction: float) -> Deadline:
        """The moment when this share of what is left is used up."""
        now = asyncio.get_running_loop().time()
        return Deadline(now + max(0.0, self.at - now) * fraction)

    def scope(self) -> asyncio.Timeout:
        """`async with` that raises TimeoutError when the moment comes."""
        return asyncio.timeout_at(self.at)
