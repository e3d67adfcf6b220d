"""Owns what an engine decides: the order of changes, conflicts, refusals, batches. Pure: the same input, the same verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from body_broker.telemetry import get_logger
from body_broker.text import digest
from body_broker.world.kinds import text_in
from body_broker.world.model import DEPTH_MAX, Change, Effect, Entity, Verdict
from body_broker.world.operation import Op, Outcome, Refused, Scene, from_outside, is_dead
from body_broker.world.operations import OPERATIONS
from body_broker.world.overlay import Overlay

log = get_logger(__name__)


def signature(entity_id: str, op: str, payload: Mapping[str, Any]) -> str:
    """What a change wants of which entity, as one word: the same again among its own causes is a loop."""
    return digest([entity_id, op, payload])[:32]


def decide(changes: Sequence[Change], entities: Mapping[str, Entity], tick: int, *, now: datetime) -> list[Verdict]:
    """What becomes of each change, in the order in which they are decided.

    Players' input goes first, then the game server's, then everybody else's; among equals the higher priority, then the
    earlier. Changes of one batch are decided where its first one stands, all or nothing: where one is not applied the others
    are rejected as `batch`. Within a batch `expect_version` is the version before the batch.

    Args:
        changes: What is queued; a batch must be whole.
        entities: The world, or at least what the changes touch and what their rules look at.
        tick: When.
        now: What has expired by then is not applied.
    """
    world = Overlay(entities)
    verdicts: list[Verdict] = []
    for group in _groups(changes):
        trial = Overlay(world)
        found = [_judge(change, trial, world, tick, now) for change in group]
        if all(verdict.state == "applied" for verdict in found):
            world.changed.update(trial.changed)
        elif len(found) > 1:
            found = [_fallen(verdict) for verdict in found]
        verdicts += found
    return verdicts


def _groups(changes: Sequence[Change]) -> list[list[Change]]:
    groups: dict[str, list[Change]] = {}
    for change in sorted(changes, key=lambda c: (-c.rank, -c.priority, c.seq)):
        groups.setdefault(change.batch or f"{change.id} alone", []).append(change)
    return list(groups.values())


def _fallen(verdict: Verdict) -> Verdict:
    return (
        Verdict(change_id=verdict.change_id, state="rejected", rule="batch") if verdict.state == "applied" else verdict
    )


def _judge(change: Change, trial: Overlay, before: Overlay, tick: int, now: datetime) -> Verdict:
    refused = _refused_by_itself(change, now) or _refused_by_its_entity(change, trial, before)
    if refused is not None:
        return refused
    outcome = _outcome(OPERATIONS[change.op], change, trial, tick)
    if isinstance(outcome, Refused):
        return _rejected(change, outcome.rule)
    effects = tuple(_marked(effect, change, trial) for effect in outcome)
    trial.apply(effects, tick)
    return Verdict(change_id=change.id, state="applied", effects=effects)


def _marked(effect: Effect, change: Change, world: Overlay) -> Effect:
    """The effect, marked where it brings free text from outside: here for every operation."""
    kind = effect.kind or world[effect.entity_id].kind
    return replace(effect, outside=effect.outside or (from_outside(change) and bool(text_in(kind, effect.patch))))


def _refused_by_itself(change: Change, now: datetime) -> Verdict | None:
    if change.expires_at <= now:
        return Verdict(change_id=change.id, state="expired")
    if change.op not in OPERATIONS:
        return _rejected(change, "unknown_operation")
    if change.depth > DEPTH_MAX:
        return _rejected(change, "depth")
    if change.ancestry and signature(change.entity_id, change.op, change.payload) in change.ancestry:
        return _rejected(change, "same_cause")
    return None


def _refused_by_its_entity(change: Change, trial: Overlay, before: Overlay) -> Verdict | None:
    op, entity = OPERATIONS[change.op], trial.get(change.entity_id)
    if op.make is not None:
        return None if entity is None else _rejected(change, "entity_exists")
    if entity is None:
        return _rejected(change, "unknown_entity")
    if entity.removed:
        return _rejected(change, "removed_entity")
    version = before.get(change.entity_id, entity).version
    if change.expect_version != version and (change.expect_version is not None or op.needs_version):
        return Verdict(change_id=change.id, state="conflict", current_version=version)
    unfit = "wrong_kind" if entity.kind not in op.kinds else "dead_actor"
    fits = entity.kind in op.kinds and (op.on_the_dead or not is_dead(entity))
    return None if fits else _rejected(change, unfit)


def _outcome(op: Op, change: Change, trial: Overlay, tick: int) -> Outcome:
    try:
        payload = op.parse(change.payload)
    except ValidationError:
        return Refused("bad_payload")
    scene = Scene(trial, change, tick)
    try:
        if op.make is not None:
            return op.make(payload, scene)
        assert op.apply is not None, "an operation makes or applies"
        return op.apply(trial[change.entity_id], payload, scene)
    except Exception:  # an operation's fault: it must not stop the world, which would meet the same change for ever
        log.exception("operation_failed", op=op.name, change=change.id)
        return Refused("fault")


def _rejected(change: Change, rule: str) -> Verdict:
    return Verdict(change_id=change.id, state="rejected", rule=rule)
