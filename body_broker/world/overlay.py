"""Owns the world while changes are decided: entities as those before leave them, over others that stay as they are. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from body_broker.world.model import Effect, Entity
from body_broker.world.patching import affected


class Overlay(Mapping[str, Entity]):
    """Entities as changes leave them, over others that stay as they are."""

    def __init__(self, base: Mapping[str, Entity]) -> None:
        self._base = base
        self._inside: dict[str, list[str]] | None = None
        self.changed: dict[str, Entity] = {}

    def __getitem__(self, entity_id: str) -> Entity:
        found = self.changed.get(entity_id)
        return self._base[entity_id] if found is None else found

    def __iter__(self) -> Iterator[str]:
        yield from self.changed
        yield from (each for each in self._base if each not in self.changed)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def apply(self, effects: Iterable[Effect], tick: int) -> None:
        """Let these effects have happened."""
        for effect in effects:
            self.changed[effect.entity_id] = affected(self.get(effect.entity_id), effect, tick)

    def inside(self, entity_id: str) -> Iterator[str]:
        """The ids of what is in a place or a region; the whole world is looked through once, however often this is asked."""
        yield from (each.id for each in self.changed.values() if entity_id in _whereabouts(each))
        yield from (each for each in self._inside_below(entity_id) if each not in self.changed)

    def _inside_below(self, entity_id: str) -> Iterable[str]:
        if isinstance(self._base, Overlay):
            return self._base.inside(entity_id)
        if self._inside is None:
            self._inside = {}
            for each in self._base.values():
                for place in _whereabouts(each):
                    self._inside.setdefault(place, []).append(each.id)
        return self._inside.get(entity_id, ())


def _whereabouts(entity: Entity) -> set[str]:
    return set() if entity.removed else {each for each in (entity.region, entity.data.get("place")) if each is not None}
