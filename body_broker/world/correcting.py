"""Owns an operator's edits of entities: fields set as they are meant, held to the world, written at once under an epoch of their own.

Not a change for the engine: it corrects what no operation owns, also while the engine is paused, and it is all there, or not, when its
transaction ends. Whoever arbitrates begins anew on the world as it then is, as after a load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import ValidationError

from body_broker.errors import BadInput, Conflict, NotFound
from body_broker.storage.postgres import Connection
from body_broker.text import quoted
from body_broker.world import epochs, recorder
from body_broker.world.engine import fitting
from body_broker.world.engine.messages import EffectPart
from body_broker.world.engine.recording import entities_of
from body_broker.world.files.loading import difference
from body_broker.world.kinds import KINDS, problems_of_fields, references
from body_broker.world.model import CORRECTED, Effect, Entity, Event
from body_broker.world.patching import merged

# Whatever has the id somewhere in its text: what it is there, the kinds know.
_NAMING = """
SELECT id, kind, data::text FROM world_entity e WHERE NOT removed AND id <> ALL ($1::text[])
  AND EXISTS (SELECT FROM unnest($1::text[]) AS gone WHERE strpos(e.data::text, gone) > 0) ORDER BY id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """What one entity is to be.

    Attributes:
        fields: Whole values by their names; None takes a field back to its default.
        region: Where it is from then on; None leaves it.
        removed: It is gone for ever.
    """

    entity_id: str
    fields: Mapping[str, Any]
    region: str | None = None
    removed: bool = False


@dataclass(frozen=True, slots=True)
class Correction:
    """Edits that fit the world as it is: the entities before, and the effect of each edit."""

    before: Mapping[str, Entity]
    effects: Sequence[Effect]

    @property
    def versions(self) -> dict[str, int]:
        """The versions that the edited entities have, by id."""
        return {each.entity_id: self.before[each.entity_id].version for each in self.effects}


async def fit(connection: Connection, edits: Sequence[Edit], *, outside: bool = False) -> Correction:
    """The edits as effects over the world of this moment; edits that change nothing are left out.

    Args:
        connection: In a transaction: what is looked at stays as it is until its end.
        edits: Each of another entity.
        outside: Free text in them may come from outside.

    Raises:
        NotFound: There is no such entity, or it was removed.
        BadInput: A field is none of its kind or does not fit, or names what is not there.
        Conflict: All of it is so already.
    """
    there = await entities_of(connection, [EffectPart(entity_id=e.entity_id, version=1, type=CORRECTED) for e in edits])
    parts = [part for edit in edits if (part := _part(edit, there.get(edit.entity_id))) is not None]
    if not parts:
        raise Conflict("The world is so already.", next_step="Nothing is to be changed.")
    before = await entities_of(connection, parts)
    tick = max(each.tick for each in before.values())
    try:
        found = Correction(before, fitting.World(before, tick).effects(parts, outside=outside))
    except fitting.Unfit as unfit:
        raise _unfit(str(unfit)) from unfit
    await _check_named(connection, found)
    return found


async def _check_named(connection: Connection, found: Correction) -> None:
    """Nothing that stays may name what goes: an inventory, a quest, a faction."""
    gone = {each.entity_id for each in found.effects if each.removed}
    patches = {each.entity_id: each.patch for each in found.effects}
    for row in await connection.fetch(_NAMING, sorted(gone)) if gone else ():
        left = merged(orjson.loads(row["data"]), patches.get(row["id"], {}))
        if named := gone & references(row["kind"], left):
            raise _unfit(f"{min(named)} is removed, and {row['id']} still names it")


def _unfit(why: str) -> BadInput:
    return BadInput(f"That does not fit the world: {why}.", next_step="Correct the patch and ask again.")


async def correct(
    connection: Connection, edits: Sequence[Edit], *, versions: Mapping[str, int], outside: bool = False
) -> list[Event]:
    """The events of edits that were made, in the caller's transaction.

    Args:
        connection: In a transaction.
        edits: As in `fit`.
        versions: Of the entities as they were when this was decided on.
        outside: Free text in the edits may come from outside.

    Raises:
        Conflict: One has another version by now, or as in `fit`.
        NotFound: As in `fit`.
        BadInput: As in `fit`.
    """
    held = await epochs.begin_anew(connection)  # locks the world: nobody decides beside this
    found = await fit(connection, edits, outside=outside)
    if found.versions != versions:
        raise Conflict("Somebody changed one of these entities meanwhile.")
    return await recorder.append(connection, found.effects, found.before, held)


def _part(edit: Edit, now: Entity | None) -> EffectPart | None:
    """What the edit does; None where it is so."""
    if now is None:
        raise NotFound(f"There is no entity {quoted(edit.entity_id)}.", next_step="Look it up with find_entities.")
    if now.removed:
        raise NotFound(
            f"{quoted(edit.entity_id)} was removed from the world.", next_step="What is gone stays gone; load another."
        )
    known = KINDS[now.kind].model_fields
    # None takes a field back; of a field that there is not, it is a fault too.
    problems = problems_of_fields(now.kind, {n: v for n, v in edit.fields.items() if v is not None or n not in known})
    if problems:
        raise BadInput(
            f"{quoted(edit.entity_id)} does not take that: {problems[0]}"
            + (f" and {len(problems) - 1} more." if problems[1:] else "."),
            next_step="docs/world.md says which fields each kind has.",
            details={"problems": problems},
        )
    patch = difference(now.data, edit.fields)
    region = edit.region if edit.region != now.region else None
    if not patch and region is None and not edit.removed:
        return None
    try:
        return EffectPart(
            entity_id=now.id,
            version=now.version + 1,
            type="removed" if edit.removed else CORRECTED,
            patch=patch,
            region=region,
            removed=edit.removed,
        )
    except ValidationError as error:
        raise BadInput(f"The patch of {quoted(edit.entity_id)} is none.") from error
