"""Owns how an entity becomes its next version: JSON merge patches (RFC 7396), and events over entities. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from body_broker.world.kinds import marked_outside
from body_broker.world.model import CORRECTED, Effect, Entity, Event


def merged(target: Any, patch: Any) -> Any:  # any JSON values
    """The target with a merge patch over it; neither is changed."""
    if not isinstance(patch, Mapping):
        return patch
    found: dict[str, Any] = dict(cast("Mapping[str, Any]", target)) if isinstance(target, Mapping) else {}
    for name, value in cast("Mapping[str, Any]", patch).items():
        if value is None:
            found.pop(name, None)
        else:
            found[name] = merged(found.get(name), value)
    return found


def affected(entity: Entity | None, effect: Effect, tick: int) -> Entity:
    """The entity as an effect leaves it, one version on.

    Raises:
        ValueError: The entity is not there, and the effect does not say what kind it makes.
    """
    if entity is None:
        if effect.kind is None:
            raise ValueError("an effect that makes an entity says of which kind")
        return Entity(
            id=effect.entity_id,
            kind=effect.kind,
            region=effect.region,
            version=1,
            tick=tick,
            data=merged({}, effect.patch),
            removed=effect.removed,
            outside=marked_outside(frozenset(), effect.kind, effect.patch, outside=effect.outside),
        )
    return Entity(
        id=entity.id,
        kind=entity.kind,
        region=entity.region if effect.region is None else effect.region,
        version=entity.version + 1,
        tick=tick,
        data=merged(entity.data, effect.patch),
        removed=entity.removed or effect.removed,
        outside=marked_outside(entity.outside, entity.kind, effect.patch, outside=effect.outside),
    )


def after(entity: Entity | None, event: Event) -> Entity:
    """The entity as an event leaves it; the event says its version, region and whether it is gone."""
    return Entity(
        id=event.entity_id,
        kind=event.kind,
        region=event.region,
        version=event.version,
        tick=event.tick,
        data=merged({} if entity is None else entity.data, event.patch),
        removed=event.removed,
        outside=marked_outside(
            frozenset() if entity is None else entity.outside,
            event.kind,
            event.patch,
            # What an operator loads is theirs: only what was said may be others' words there.
            outside=event.outside and (event.change_id is not None or event.type == CORRECTED),
        ),
    )
