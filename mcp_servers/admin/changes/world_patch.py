"""Owns the changes that correct entities of the world directly, and that remove them: what no operation owns, under an epoch of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from body_broker.calls import Json
from body_broker.errors import BadInput
from body_broker.storage.postgres import Connection
from body_broker.text import digest, quoted, shortened
from body_broker.world import correcting, reading
from body_broker.world.correcting import Correction, Edit
from body_broker.world.model import ENTITY_ID, Effect, Entity
from body_broker.world.patching import merged
from mcp_servers.admin.changes.kind import TEXT_MAX, Foreseen, Found, Kind, Maker, Params, Plan, Reach
from mcp_servers.admin.changes.showing import brief

_VALUE_MAX = 1_000
_ALSO_MAX = 16
_REMOVAL = "world_remove"

Id = Annotated[str, Field(pattern=f"^(?:{ENTITY_ID.pattern})$")]


class Patch(Params):
    """What one entity is to be: whole values by field, null for a field's default."""

    fields: Annotated[dict[str, Json], Field(max_length=64, default_factory=dict)]
    region: Id | None = None
    remove: bool = False


class Other(Patch):
    """What another entity is to be, at the same moment."""

    entity_id: Id


class WorldPatch(Patch):
    """What the target is to be, and others with it: all of it or nothing."""

    also: Annotated[list[Other], Field(max_length=_ALSO_MAX, default_factory=list)]


@dataclass(frozen=True, slots=True)
class _Patching:
    """Edits over entities of these versions."""

    edits: Sequence[Edit]
    versions: Mapping[str, int]
    foreseen: Foreseen

    async def write(self, connection: Connection, maker: Maker, /) -> Json:
        """Make them, where the entities have those versions."""
        events = await correcting.correct(connection, self.edits, versions=self.versions, outside=maker.tainted)
        left = {each.entity_id: each.version for each in events}
        patches = {each.entity_id: digest(each.patch) for each in events}
        return {"pos": events[-1].pos, "epoch": events[-1].epoch, "versions": left, "patches": patches}


async def _plan_patch(reach: Reach, target: str, params: WorldPatch) -> Plan:
    edits = _edits(target, params)
    if any(edit.removed for edit in edits):
        raise BadInput(
            "A patch removes nothing: what goes for ever is a change of its own kind.",
            next_step=f"Ask for it with kind {_REMOVAL}, which takes the same params.",
            details={"problems": ["params.remove: only with kind " + _REMOVAL]},
        )
    return await _plan(reach, target, edits)


async def _plan_removal(reach: Reach, target: str, params: WorldPatch) -> Plan:
    edits = _edits(target, params)
    if not any(edit.removed for edit in edits):
        raise BadInput(
            "Nothing is said to go.",
            next_step="Say remove: true for what goes; to change entities ask with kind world_patch.",
            details={"problems": ["params.remove: true for at least one"]},
        )
    return await _plan(reach, target, edits)


async def _plan(reach: Reach, target: str, edits: Sequence[Edit]) -> Plan:
    async with reach.pool.acquire() as connection, connection.transaction():
        found = await correcting.fit(connection, edits)
    foreseen = Foreseen(
        headline=_headline(target, found.effects),
        diff=shortened("\n\n".join(_shown(found, effect) for effect in found.effects), TEXT_MAX),
        basis=digest(found.versions),
        outside=any(_tells_outside(found.before[each.entity_id], each) for each in found.effects),
    )
    return _Patching(edits, found.versions, foreseen)


def _headline(target: str, effects: Sequence[Effect]) -> str:
    """What goes for ever is named first, wherever in the patch it stands."""
    gone = [each.entity_id for each in effects if each.removed]
    if gone:
        named = ", ".join(quoted(each) for each in gone)
        others = f", and correct {len(effects) - len(gone)} more" if len(effects) > len(gone) else ""
        return f"Remove {named} from the world for ever{others}"
    others = f" and {len(effects) - 1} more" if len(effects) > 1 else ""
    return f"Correct {quoted(target)}{others} directly in the world"


def _edits(target: str, params: WorldPatch) -> list[Edit]:
    if not ENTITY_ID.fullmatch(target):
        raise BadInput(
            "The target is no entity's id.",
            next_step="Look it up with find_entities.",
            details={"problems": ["target: an entity's id"]},
        )
    patches: list[tuple[str, Patch]] = [(target, params), *((each.entity_id, each) for each in params.also)]
    if len({entity_id for entity_id, _ in patches}) < len(patches):
        raise BadInput("An entity is named twice.", details={"problems": ["params.also: each entity once"]})
    return [
        Edit(entity_id=entity_id, fields=patch.fields, region=patch.region, removed=patch.remove)
        for entity_id, patch in patches
    ]


def _shown(found: Correction, effect: Effect) -> str:
    now = found.before[effect.entity_id]
    lines = [f"{effect.entity_id}, {now.kind}, version {now.version}"]
    left = merged(now.data, effect.patch)
    for name in sorted(effect.patch):
        lines += [f"- {name}: {_value(now.data.get(name))}", f"+ {name}: {_value(left.get(name))}"]
    if effect.region is not None:
        lines += [f"- region: {now.region}", f"+ region: {effect.region}"]
    if effect.removed:
        lines += ["- it is in the world", "+ it is gone for ever"]
    return "\n".join(lines)


def _value(value: Json) -> str:
    return "its default" if value is None else brief(value, limit=_VALUE_MAX)


def _tells_outside(now: Entity, effect: Effect) -> bool:
    return not now.outside.isdisjoint(effect.patch)


async def _read_back(reach: Reach, _target: str, remembered: Json) -> Found:
    versions: dict[str, int] = remembered["versions"]
    await reach.world.ensure()
    await reach.world.reach(remembered["pos"])  # whoever asks this hub next sees it
    for entity_id, version in versions.items():
        (event,) = await reading.history(reach.pool, entity_id, from_version=version, limit=1) or [None]
        if (
            event is None
            or event.epoch != remembered["epoch"]
            or digest(event.patch) != remembered["patches"][entity_id]
        ):
            return Found(state="failed", text=f"{entity_id} did not become what was approved.")
    found, _ = await reading.entities(reach.pool, list(versions))
    if lost := sorted(each.id for each in found if each.version < versions[each.id]):
        return Found(state="failed", text=f"{', '.join(lost)} did not become what was approved.")
    since = [each.id for each in found if each.version > versions[each.id]]
    named = ", ".join(f"{entity_id} version {version}" for entity_id, version in sorted(versions.items()))
    changed = f" Changed since: {', '.join(sorted(since))}." if since else ""
    return Found(state="done", text=f"Recorded as {named}, at position {remembered['pos']}.{changed}")


KIND = Kind(
    name="world_patch",
    reads="get_npc_state",
    params=WorldPatch,
    takes=(
        "target: an entity's id; params: fields (whole values by name, null for the default), region, also (up to"
        f" {_ALSO_MAX} more, each with entity_id)"
    ),
    plan=_plan_patch,
    read_back=_read_back,
)
REMOVAL = Kind(
    name=_REMOVAL,
    reads="get_npc_state",
    params=WorldPatch,
    takes="target: an entity's id; params: remove (true), and for what goes or changes with it also, as world_patch has it",
    plan=_plan_removal,
    read_back=_read_back,
)
