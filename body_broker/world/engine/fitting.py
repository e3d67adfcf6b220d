"""Owns whether an engine's words fit the world as the record has it: versions, kinds, references, batches. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from body_broker.errors import BadInput
from body_broker.text import clean
from body_broker.world.engine.messages import EffectPart, OutcomePart
from body_broker.world.kinds import check, references
from body_broker.world.model import Change, Effect, Entity, Verdict
from body_broker.world.patching import affected


class Unfit(Exception):
    """What an engine said does not fit the record: its world is another one than ours. Its text is for the engine's people."""


class World:
    """The entities that a message touches, as its effects leave them one after another.

    Args:
        entities: As the record has them, by id; all that effects and references name, where they exist.
        tick: Of the message.
    """

    def __init__(self, entities: Mapping[str, Entity], tick: int) -> None:
        self._before, self._entities, self._tick = dict(entities), dict(entities), tick

    def begin(self) -> None:
        """The next message begins: what came before it is the world now."""
        self._before = dict(self._entities)

    def verdict(self, change: Change, said: OutcomePart) -> Verdict:
        """The verdict that an outcome is.

        Raises:
            Unfit: It is none, or not in this world.
        """
        # Within a batch too it is the version before the message that counts.
        current = self._before.get(change.entity_id)
        version = current.version if current else 0
        if said.state == "applied":
            if not said.effects:
                raise Unfit(f"{change.id} was applied, and no effect is named")
            if change.expect_version not in {None, version}:
                raise Unfit(f"{change.id} was applied, though it is for another version than {version}")
        else:
            self._check_refusal(change, said, version)
        return Verdict(
            change_id=change.id,
            state=said.state,
            rule=said.rule,
            current_version=said.current_version,
            effects=self.effects(said.effects),
        )

    def effects(self, parts: Sequence[EffectPart]) -> tuple[Effect, ...]:
        """The effects, each over what those before it left.

        Raises:
            Unfit: One is not of the next version, or leaves what is no entity.
        """
        return tuple(self._effect(part) for part in parts)

    def _check_refusal(self, change: Change, said: OutcomePart, version: int) -> None:
        if said.effects:
            raise Unfit(f"{change.id} was not applied, and has effects")
        if said.state == "rejected" and said.rule is None:
            raise Unfit(f"{change.id} was rejected by no rule")
        if said.state == "conflict" and (said.current_version != version or change.expect_version == version):
            raise Unfit(f"{change.id} is no conflict: the version is {version}")

    def _effect(self, part: EffectPart) -> Effect:
        entity = self._entities.get(part.entity_id)
        if entity is not None and entity.removed:
            raise Unfit(f"{part.entity_id} is gone")
        version = entity.version if entity else 0
        if part.version != version + 1:
            raise Unfit(f"{part.entity_id} has version {version}, and the next is not {part.version}")
        if entity is None and part.kind is None:
            raise Unfit(f"{part.entity_id} is new, and its kind is not named")
        if entity is not None and part.kind not in {None, entity.kind}:
            raise Unfit(f"{part.entity_id} is no {part.kind}")
        effect = Effect(
            entity_id=part.entity_id,
            type=part.type,
            patch=plain(part.patch),
            kind=None if entity else part.kind,
            region=part.region,
            removed=part.removed,
            outside=part.outside,
        )
        left = affected(entity, effect, self._tick)
        self._entities[part.entity_id] = left
        self._check(left, effect)
        return effect

    def _check(self, left: Entity, effect: Effect) -> None:
        region = self._entities.get(effect.region or "")
        if effect.region is not None and (region is None or region.kind != "region"):
            raise Unfit(f"{left.id} cannot be in {effect.region}: that is no region")
        if left.removed:
            return
        try:
            data = check(left.kind, left.data)
        except BadInput as error:
            raise Unfit(f"{left.id}: {error.message}") from error
        named = references(left.kind, {name: data[name] for name in effect.patch if name in data})
        if unknown := sorted(named - self._entities.keys()):
            raise Unfit(f"{left.id} names {unknown[0]}, which is not there")


def named_by(parts: Sequence[EffectPart]) -> set[str]:
    """Every id that effects touch or may refer to: what `World` must be given, where it exists."""
    found: set[str] = set()
    for part in parts:
        found |= {part.entity_id, part.region or part.entity_id}
        found |= _texts(part.patch)
    return found


def _texts(value: Any) -> set[str]:  # any JSON value
    if isinstance(value, str):
        return {value} if len(value) <= 80 else set()  # noqa: PLR2004 - the longest id
    if isinstance(value, dict):
        each = cast("dict[str, Any]", value)
        return set(each).union(*map(_texts, each.values()))
    return set[str]().union(*map(_texts, cast("list[Any]", value))) if isinstance(value, list) else set()


def plain(value: Any) -> Any:  # any JSON value
    """A value as the record keeps it: text without control characters, 5.0 as 5."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {clean(name): plain(each) for name, each in cast("dict[str, Any]", value).items()}
    return [plain(each) for each in cast("list[Any]", value)] if isinstance(value, list) else value
