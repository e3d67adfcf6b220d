"""Owns our own rules behind the engine protocol: what `body-broker engine` decides, decided by an engine that has no database."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from body_broker.world.engine.messages import ChangePart, EffectPart, EntityPart, OutcomePart
from body_broker.world.model import Change, Effect, Entity, Verdict
from body_broker.world.rules import Overlay, decide


class OwnArbiter:
    """The world in memory, and our rules over it.

    Args:
        tick_hz: Ticks a second.
        clock: Seconds that only grow.
    """

    def __init__(self, *, tick_hz: float = 30, clock: Callable[[], float] = time.monotonic) -> None:
        self._tick_hz, self._clock = tick_hz, clock
        self._begun, self._first_tick = clock(), 0
        self._entities: dict[str, Entity] = {}

    @property
    def tick(self) -> int:
        """The tick of this moment."""
        return self._first_tick + int((self._clock() - self._begun) * self._tick_hz)

    @property
    def entities(self) -> dict[str, Entity]:
        """The world as it is here."""
        return self._entities

    def reload(self, entities: Sequence[EntityPart], tick: int) -> None:
        """Take the world as it is from now on."""
        self._begun, self._first_tick = self._clock(), tick
        self._entities = {
            part.id: Entity(
                id=part.id,
                kind=part.kind,
                region=part.region,
                version=part.version,
                tick=tick,
                data=part.data,
                removed=part.removed,
            )
            for part in entities
        }

    def decide(self, changes: Sequence[ChangePart], *, atomic: bool) -> Sequence[OutcomePart]:
        """Decide by our rules, and let what is applied have happened."""
        now, tick = datetime.now(UTC), self.tick
        asked = [_change_of(part, number, now, atomic=atomic) for number, part in enumerate(changes)]
        verdicts = {verdict.change_id: verdict for verdict in decide(asked, self._entities, tick, now=now)}
        return [self._outcome(verdicts[part.change_id]) for part in changes]

    def happen(self, effect: Effect) -> EffectPart:
        """Let an effect have happened; it with the version that it led to."""
        overlay = Overlay(self._entities)
        overlay.apply([effect], self.tick)
        self._entities |= overlay.changed
        return EffectPart(
            entity_id=effect.entity_id,
            version=self._entities[effect.entity_id].version,
            type=effect.type,
            patch=dict(effect.patch),
            kind=effect.kind,
            region=effect.region,
            removed=effect.removed,
            outside=effect.outside,
        )

    def _outcome(self, verdict: Verdict) -> OutcomePart:
        assert verdict.state != "queued", "an engine decides"
        assert verdict.state != "cancelled", "only who asked takes back"
        return OutcomePart(
            change_id=verdict.change_id,
            state=verdict.state,
            rule=verdict.rule,
            current_version=verdict.current_version,
            effects=tuple(map(self.happen, verdict.effects)),
        )


def _change_of(part: ChangePart, number: int, now: datetime, *, atomic: bool) -> Change:
    return Change(
        seq=number,
        id=part.change_id,
        actor=part.actor,
        batch="batch" if atomic else None,
        entity_id=part.entity_id,
        op=part.op,
        payload=part.payload,
        expect_version=part.expect_version,
        # The order within a message is the order of deciding.
        rank=part.rank,
        priority=part.priority,
        causation=part.causation,
        depth=part.depth,
        tainted=part.tainted,
        expires_at=now + timedelta(milliseconds=part.expires_in_ms),
    )
