"""Owns what finding entities means: which fit, in which order, and where a page goes on. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from body_broker.calls import Json
from body_broker.errors import BadInput
from body_broker.text import clean
from body_broker.world.kinds import value_of
from body_broker.world.model import Entity
from mcp_servers.game_state.models import FindEntities
from mcp_servers.game_state.showing import check_fields, check_where, holds

Ranked = tuple[float, str, Entity]
"""How far it is, its id, and itself; everything is 0 far where nothing is near to anything."""


def check_find(wanted: FindEntities) -> None:
    """Raises BadInput where what is looked for makes no sense."""
    check_fields(wanted.fields, wanted.kind)
    if wanted.where:
        check_where(wanted.where)
    if wanted.radius is not None and wanted.near is None:
        raise BadInput("radius says how far from `near`, which is missing.")


def find(wanted: FindEntities, entities: Mapping[str, Entity], among: Iterable[Entity]) -> list[Ranked]:
    """The entities that fit, the nearest first, then by id.

    Near is what is in the same region, as the crow flies.

    Args:
        wanted: What must hold.
        entities: What they may be near to, and the places that they may be in.
        among: At least those that may fit.

    Raises:
        BadInput: `near` is nothing that has a position.
    """
    ids = None if wanted.ids is None else frozenset(wanted.ids)
    fitting = (each for each in among if (ids is None or each.id in ids) and _fits(each, wanted))
    if wanted.near is None:
        return sorted(((0.0, each.id, each) for each in fitting), key=lambda ranked: ranked[:2])
    centre = entities.get(wanted.near)
    at = None if centre is None or centre.removed else position_of(centre, entities)
    if centre is None or at is None:
        raise BadInput(
            f"{clean(wanted.near, limit=80)!r} is nowhere that is known.", next_step="Name an entity with a position."
        )
    most = math.inf if wanted.radius is None else wanted.radius
    ranked = (
        (math.dist(at, there), each.id, each)
        for each in fitting
        if each.region == centre.region and each.id != centre.id and (there := position_of(each, entities)) is not None
    )
    return sorted((one for one in ranked if one[0] <= most), key=lambda one: one[:2])


def position_of(entity: Entity, entities: Mapping[str, Entity]) -> Sequence[float] | None:
    """Where it stands; else where who holds it does; else where the place is that it is in."""
    own: Sequence[float] | None = value_of(entity, "position")
    if own is not None:
        return own
    holder = entities.get(value_of(entity, "holder") or "")
    if holder is not None:
        return position_of(holder, entities) if holder.kind != "item" else None
    place = entities.get(value_of(entity, "place") or "")
    return None if place is None else value_of(place, "position")


def page_after(ranked: Sequence[Ranked], after: Json, limit: int) -> tuple[list[Entity], Json]:
    """A page, and what stands in the cursor to the next one; None where there is none."""
    left = ranked if after is None else [one for one in ranked if (one[0], one[1]) > (after[0], after[1])]
    shown = left[:limit]
    return [one[2] for one in shown], [*shown[-1][:2]] if len(left) > limit else None


def _fits(entity: Entity, wanted: FindEntities) -> bool:
    return (
        not entity.removed
        and (wanted.kind is None or entity.kind == wanted.kind)
        and (wanted.region is None or wanted.region in {entity.region, entity.id})
        and (wanted.where is None or holds(entity, wanted.where))
    )
