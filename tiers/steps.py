"""Owns which steps down an answer tells: what explains why it came from where it came, in the order in which it happened."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from tiers.model import Fallback


def steps_down(
    chain: Sequence[str], skipped: Sequence[Fallback], met: Sequence[Fallback], *, answered: str | None
) -> tuple[Fallback, ...]:
    """Down the chain, whoever was passed over or failed; engines without an address last, and nobody behind the one that answered.

    Args:
        chain: Engines by name, in the order of falling back.
        skipped: Who was not asked, and why.
        met: Who was asked and did not answer, in that order.
        answered: Who did; None where nobody has.
    """
    places = {name: place for place, name in enumerate(chain)}
    end = len(places)

    def place_of(step: Fallback) -> int:
        return places.get(step.engine, end)

    skips = deque(sorted(skipped, key=place_of))
    if answered in places:
        skips = deque(skip for skip in skips if place_of(skip) < places[answered])
    told: list[Fallback] = []
    for fallback in met:
        while skips and place_of(skips[0]) < place_of(fallback):
            told.append(skips.popleft())
        told.append(fallback)
    told += skips
    return tuple(sorted(told, key=is_absent))


def is_absent(step: Fallback) -> bool:
    """Whether it says only that an engine has no address."""
    return step.reason == "not_configured"
