"""Owns what the storyteller's tools need: the lore, the world's names, facts and plots."""

from __future__ import annotations

from dataclasses import dataclass

from body_broker.lore import Lore
from body_broker.storage.postgres import Pool
from body_broker.world.map import WorldMap


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Lore, world, facts and plots."""

    pool: Pool
    lore: Lore
    world: WorldMap
