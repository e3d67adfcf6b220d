"""Owns what is kept for a while of what was read or answered: bound to who asked, never told to anybody else."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from tiers.counts import Counts
from tiers.model import Asker

LORE_KEPT_S = 300.0
ANSWERS_KEPT_S = 900.0
ENTRIES_MAX = 1_000

_T = TypeVar("_T")


class Kept(Generic[_T]):
    """The latest values of this process, for a time; the one that was used longest ago goes first.

    Args:
        name: As it is counted.
        kept_s: How long each is kept.
        counts: Takes measurements.
        entries_max: How many.
        clock: Seconds.
    """

    def __init__(
        self,
        name: str,
        kept_s: float,
        counts: Counts,
        *,
        entries_max: int = ENTRIES_MAX,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._kept_s, self._counts = name, kept_s, counts
        self._entries_max, self._clock = entries_max, clock
        self._found: OrderedDict[Hashable, tuple[float, _T]] = OrderedDict()

    def get(self, key: Hashable) -> _T | None:
        """The value, where it is there and not too old."""
        entry = self._found.get(key)
        fresh = entry is not None and self._clock() - entry[0] <= self._kept_s
        self._counts.cached(self._name, hit=fresh)
        if entry is None or not fresh:
            self._found.pop(key, None)
            return None
        self._found.move_to_end(key)
        return entry[1]

    def put(self, key: Hashable, value: _T) -> None:
        """Keep it from now."""
        self._found[key] = (self._clock(), value)
        self._found.move_to_end(key)
        if len(self._found) > self._entries_max:
            self._found.popitem(last=False)


def requester_of(asker: Asker) -> Hashable:
    """Who may be told again what was told: the same chain of identities with the same roles."""
    caller = asker.caller
    return caller.chain, tuple(sorted((name, tuple(sorted(held))) for name, held in caller.roles.items()))
