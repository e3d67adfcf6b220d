"""Owns whether an engine's words fit the world as the record has it: versions, kinds, references, batches. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, cast

from body_broker.errors import BadInput
from body_broker.text import clean
from body_broker.world.engine.messages import NUMBER_MAX, EffectPart, OutcomePart
from body_broker.world.files.naming import KINDS_OF_FIELD
from body_broker.world.kinds import check, references, text_in, value_of
from body_broker.world.model import Change, Effect, Entity, Kind, Verdict
from body_broker.world.operation import ACTORS, from_outside
from body_broker.world.patching import affected, merged

TICKS_AHEAD_MAX = 1_000_000_000
"""How far one message may take the world's tick on: no slip of an engine's uses up the numbers that there are."""
GRACE_S = 5.0
"""How long after a change has expired its outcome may still come."""


class Unfit(Exception):
    """What an engine said does not fit the record: its world is another one than ours. Its text is for the engine's people."""


class World:
    """The entities that a message touches, as its effects leave them one after another.

    Args:
        entities: As the record has them, by id; all that effects and references name and that is in or held by what effects
            remove, where they exist.
        tick: Of the message.
    """

    def __init__(self, entities: Mapping[str, Entity], tick: int) -> None:
        self._before, self._entities, self._tick = dict(entities), dict(entities), tick

    def begin(self) -> None:
        """The next message begins: what came before it is the world now."""
        self._before = dict(self._entities)

    def verdict(self, change: Change, said: OutcomePart, *, at: datetime, grace_s: float = GRACE_S) -> Verdict:
        """The verdict that an outcome is.

        Args:
            change: What it is of.
            said: The outcome.
            at: When the engine said it, on the record's clock.
            grace_s: How much later than the change's expiry that may be, and how much earlier for one that says expired.

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
            if change.expires_at + timedelta(seconds=grace_s) < at:
                raise Unfit(f"{change.id} was applied, though it had expired")
        else:
            self._check_refusal(change, said, version)
            if said.state == "expired" and at + timedelta(seconds=grace_s) < change.expires_at:
                raise Unfit(f"{change.id} has not expired")
        return Verdict(
            change_id=change.id,
            state=said.state,
            rule=said.rule,
            current_version=said.current_version if said.state == "conflict" else None,
            effects=self.effects(said.effects, outside=from_outside(change)),
        )

    def effects(self, parts: Sequence[EffectPart], *, outside: bool = False) -> tuple[Effect, ...]:
        """The effects, each over what those before it left.

        Args:
            parts: As the engine names them.
            outside: Free text in them came from outside, whatever the engine says of it.

        Raises:
            Unfit: One is not of the next version, or leaves what is no entity; or something is left in what is gone.
        """
        found = tuple(self._effect(part, outside=outside) for part in parts)
        self._check_gone({part.entity_id for part in parts if part.removed})
        return found

    def _check_refusal(self, change: Change, said: OutcomePart, version: int) -> None:
        if said.effects:
            raise Unfit(f"{change.id} was not applied, and has effects")
        if said.state == "rejected" and said.rule is None:
            raise Unfit(f"{change.id} was rejected by no rule")
        if said.state == "conflict" and (said.current_version != version or change.expect_version == version):
            raise Unfit(f"{change.id} is no conflict: the version is {version}")

    def _effect(self, part: EffectPart, *, outside: bool) -> Effect:
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
        patch = plain(part.patch)
        kind = entity.kind if entity else part.kind
        assert kind is not None, "who is new has one"
        effect = Effect(
            entity_id=part.entity_id,
            type=part.type,
            patch=patch,
            kind=None if entity else part.kind,
            region=part.region,
            removed=part.removed,
            outside=part.outside or (outside and bool(text_in(kind, patch))),
        )
        left = affected(entity, effect, self._tick)
        self._entities[part.entity_id] = left
        self._check(entity, left, effect)
        return effect

    def _check(self, before: Entity | None, left: Entity, effect: Effect) -> None:
        if effect.region is not None and self._present(effect.region, ("region",)) is None:
            raise Unfit(f"{left.id} cannot be in {effect.region}: that is no region")
        if left.removed and not effect.patch:
            return
        try:
            check(left.kind, left.data)
        except BadInput as error:
            raise Unfit(f"{left.id}: {error.message}") from error
        # Of the patch alone, and what it adds: what an operator or time left there is not this engine's fault.
        for name, value in merged({}, effect.patch).items():
            had: set[str] = set() if before is None else references(left.kind, {name: before.data.get(name)})
            for named in sorted(references(left.kind, {name: value}) - had):
                if self._present(named, KINDS_OF_FIELD.get(name, ())) is None:
                    raise Unfit(f"{left.id} names {named} as its {name}, which is not there or of another kind")

    def _present(self, entity_id: str, allowed: Sequence[Kind]) -> Entity | None:
        found = self._entities.get(entity_id)
        return None if found is None or found.removed or (allowed and found.kind not in allowed) else found

    def _check_gone(self, gone: set[str]) -> None:
        for each in self._entities.values() if gone else ():
            if each.id in gone:
                if each.kind in ACTORS and value_of(each, "inventory"):
                    raise Unfit(f"{each.id} is removed, and still holds something")
            elif not each.removed and (
                used := gone & {each.region, value_of(each, "place"), value_of(each, "holder")} - {None}
            ):
                raise Unfit(f"{min(used)} is removed, and {each.id} is still in it or held by it")


def check_tick(tick: int, recorded: int) -> None:
    """A message's tick goes on from the record's.

    Raises:
        Unfit: It is an earlier one, or too far ahead.
    """
    # A record at the end of the numbers stays there, and an engine that is told so too.
    if tick < min(recorded, NUMBER_MAX):
        raise Unfit(f"Tick {tick} is over: the record is at {recorded}")
    if tick > recorded + TICKS_AHEAD_MAX:
        raise Unfit(f"Tick {tick} is too far ahead: the record is at {recorded}")


def removed_by(parts: Iterable[EffectPart]) -> set[str]:
    """The ids of what effects remove: `World` must be given what is in it or held by it."""
    return {part.entity_id for part in parts if part.removed}


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
    """A value as the record keeps it: text without control characters, 5.0 as 5.

    Raises:
        Unfit: A whole number is beyond what a double holds exactly.
    """
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, int | float) and float(value).is_integer():
        if abs(value) > NUMBER_MAX:
            raise Unfit("A number is beyond 2^53 - 1")
        return value if isinstance(value, int) else int(value)
    if isinstance(value, dict):
        return {clean(name): plain(each) for name, each in cast("dict[str, Any]", value).items()}
    return [plain(each) for each in cast("list[Any]", value)] if isinstance(value, list) else value
