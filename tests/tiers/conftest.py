"""Owns what the tests of the tiers share: virtual time, and engines before a FaultWall."""

from __future__ import annotations

from tests.tiers.asking import asking
from tests.tiers.clock import clock

__all__ = ["asking", "clock"]
