"""Owns the operations on the plot: flags, quests, and the air of a region."""

from __future__ import annotations

from collections.abc import Mapping

from body_broker.world.kinds import QuestState, Ref, Scalar, Slug, TimeOfDay, Weather, value_of
from body_broker.world.model import Effect, Entity, Kind
from body_broker.world.operation import ACTORS, Op, Outcome, Payload, Refused, Scene, is_dead

_PLAYERS_MAX = 100
_NEXT: Mapping[str, frozenset[str]] = {
    "locked": frozenset({"available", "failed"}),
    "available": frozenset({"active", "locked", "failed"}),
    "active": frozenset({"active", "done", "failed"}),
    "done": frozenset(),
    "failed": frozenset({"available"}),
}


class SetFlag(Payload):
    """The flag's new value."""

    value: Scalar


class SetWeather(Payload):
    """The region's weather."""

    weather: Weather


class SetTime(Payload):
    """The region's time of day."""

    time_of_day: TimeOfDay


class AdvanceQuest(Payload):
    """The quest's new state, or its next stage while it is active."""

    state: QuestState | None = None
    stage: Slug | None = None


class JoinQuest(Payload):
    """Who takes it on."""

    player: Ref


def set_flag(flag: Entity, payload: SetFlag, _scene: Scene) -> Outcome:
    """Another value."""
    return [Effect(entity_id=flag.id, type="flag_set", patch={"value": payload.value})]


def set_weather(region: Entity, payload: SetWeather, _scene: Scene) -> Outcome:
    """Other weather."""
    return [Effect(entity_id=region.id, type="weather_set", patch={"weather": payload.weather})]


def set_time(region: Entity, payload: SetTime, _scene: Scene) -> Outcome:
    """Another time of day."""
    return [Effect(entity_id=region.id, type="time_set", patch={"time_of_day": payload.time_of_day})]


def advance_quest(quest: Entity, payload: AdvanceQuest, scene: Scene) -> Outcome:
    """To a state that follows the present one, or to a later stage."""
    now = value_of(quest, "state")
    to = payload.state or now
    if (payload.state is None and payload.stage is None) or to not in _NEXT[now]:
        return Refused("quest_order")
    if to in {"available", "active"} and now != "active":
        if not all(
            _holds(each["entity"], each["field"], each["equals"], scene) for each in value_of(quest, "requires")
        ):
            return Refused("quest_precondition")
        giver = scene.present(value_of(quest, "giver"))
        if giver is not None and is_dead(giver):
            return Refused("dead_actor")
    patch: dict[str, object] = {"state": to}
    if payload.stage is not None:
        refused = _stage_refused(quest, payload.stage, to)
        if refused is not None:
            return refused
        patch["stage"] = payload.stage
    return [Effect(entity_id=quest.id, type="quest_advanced", patch=patch)]


def join_quest(quest: Entity, payload: JoinQuest, scene: Scene) -> Outcome:
    """One more player on a quest that is to be had."""
    player = scene.present(payload.player, *ACTORS)
    if player is None:
        return Refused("unknown_reference")
    if is_dead(player):
        return Refused("dead_actor")
    players = value_of(quest, "players")
    if value_of(quest, "state") not in {"available", "active"}:
        return Refused("quest_order")
    if player.id not in players and len(players) >= _PLAYERS_MAX:
        return Refused("inventory_full")
    joined = [*(each for each in players if each != player.id), player.id]
    return [Effect(entity_id=quest.id, type="quest_joined", patch={"players": joined})]


def _holds(entity_id: str, field: str, equals: object, scene: Scene) -> bool:
    entity = scene.present(entity_id)
    found = None if entity is None else value_of(entity, field)
    return type(found) is type(equals) and found == equals  # True is 1 to Python, and a flag's 1 is no True


def _stage_refused(quest: Entity, stage: str, state: str) -> Refused | None:
    stages, present = value_of(quest, "stages"), value_of(quest, "stage")
    if stage not in stages:
        return Refused("unknown_stage")
    if state != "active":
        return Refused("quest_order")
    if present in stages and stages.index(stage) < stages.index(present):
        return Refused("stage_regression")
    return None


def _kind(kind: Kind) -> frozenset[Kind]:
    return frozenset({kind})


OPS = (
    Op(name="set_flag", does="Set a flag of the plot.", kinds=_kind("flag"), payload=SetFlag, apply=set_flag),
    Op(
        name="set_weather",
        does="Change a region's weather.",
        kinds=_kind("region"),
        payload=SetWeather,
        apply=set_weather,
    ),
    Op(name="set_time", does="Change a region's time of day.", kinds=_kind("region"), payload=SetTime, apply=set_time),
    Op(
        name="advance_quest",
        does="Bring a quest to its next state or a later stage.",
        kinds=_kind("quest"),
        payload=AdvanceQuest,
        apply=advance_quest,
    ),
    Op(
        name="join_quest",
        does="Put a player on a quest.",
        kinds=_kind("quest"),
        payload=JoinQuest,
        apply=join_quest,
        commutative=True,
    ),
)
