"""Owns what the game_state server's tools need: the map of the world, its queue, its intents."""

from __future__ import annotations

from dataclasses import dataclass

from body_broker.storage.postgres import Pool
from body_broker.storage.redis import Redis
from body_broker.world.map import WorldMap


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The world as one process sees it."""

    pool: Pool
    redis: Redis
    world: WorldMap
    open_changes_max: int
