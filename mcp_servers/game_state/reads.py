"""Owns the game_state server's reads: from this process's map of the world, or from PostgreSQL where a fresh one is wanted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypedDict, TypeGuard

from body_broker.calls import Call
from body_broker.errors import BadInput, NotConfigured, NotFound
from body_broker.text import clean
from body_broker.world import reading
from body_broker.world.map import WorldMap
from body_broker.world.model import Entity, Event, Kind, Reading, Source
from mcp_servers.game_state.finding import check_find, find, page_after
from mcp_servers.game_state.models import (
    EntityPage,
    EntityState,
    EntityStates,
    EventPage,
    FindEntities,
    GetEntityHistory,
    GetEvents,
    GetNpcState,
    GetNpcStates,
    GetPlayerState,
    GetPredictions,
    GetWorldState,
    Predictions,
    WorldState,
)
from mcp_servers.game_state.services import Services
from mcp_servers.game_state.showing import check_fields, in_full, in_short, item, told

PAGE = 50
_FRESH_MAX = 100_000


class Stamp(TypedDict):
    """What every read says of itself."""

    version: int
    as_of_tick: int
    age_ms: int
    source: Source


def stamp(as_of: Reading, version: int | None = None) -> Stamp:
    """What a reading says, and the version of what was asked for; of a listing its position."""
    return Stamp(
        version=as_of.pos if version is None else version,
        as_of_tick=as_of.tick,
        age_ms=as_of.age_ms,
        source=as_of.source,
    )


async def get_npc_state(arguments: GetNpcState, _call: Call, services: Services) -> EntityState:
    """One NPC (seed 001, get_npc_state)."""
    return await _state(arguments.npc_id, "npc", arguments.fields, services, fresh=arguments.fresh)


async def get_player_state(arguments: GetPlayerState, _call: Call, services: Services) -> EntityState:
    """One player's character."""
    return await _state(arguments.player_id, "player", arguments.fields, services, fresh=arguments.fresh)


async def get_npc_states(arguments: GetNpcStates, _call: Call, services: Services) -> EntityStates:
    """Several NPCs as they are at one moment; ids of no NPC are named."""
    check_fields(arguments.fields, "npc")
    ids = list(dict.fromkeys(arguments.npc_ids))
    found, as_of = await look_up(ids, services, fresh=arguments.fresh)
    npcs = [each for each in map(found.get, ids) if is_there(each, "npc")]
    present = {each.id for each in npcs}
    return EntityStates(
        items=[item(each, in_full(each, arguments.fields)) for each in npcs],
        missing=[each for each in ids if each not in present],
        **stamp(as_of),
    )


async def get_world_state(arguments: GetWorldState, call: Call, services: Services) -> WorldState:
    """A region with what is in it, page by page (seed 001, get_world_state)."""
    found, last = await region_state(
        arguments.region,
        services,
        limit=PAGE,
        include=arguments.include,
        after=call.open_cursor(arguments.cursor) or "",
        fresh=arguments.fresh,
    )
    return found.model_copy(update={"next_cursor": call.seal_cursor(last)})


async def region_state(
    region_id: str,
    services: Services,
    *,
    limit: int,
    include: Collection[Kind] | None = None,
    after: str = "",
    fresh: bool = False,
) -> tuple[WorldState, str | None]:
    """A region with what is in it after an id, by id; and the id to go on after, where there is more."""
    if fresh:
        (region, *found_there), as_of = await reading.region(services.pool, region_id, limit=_FRESH_MAX)
        inside = sorted(found_there, key=lambda each: each.id)  # a database may have an order of its own
    else:
        world = await loaded(services)
        found, as_of = world.get(region_id), world.reading()
        if not is_there(found, "region"):
            raise missing(found, region_id, "region")
        region, inside = found, world.in_region(region_id)
    left = [each for each in inside if each.id > after and (include is None or each.kind in include)]
    shown = left[:limit]
    state = WorldState(
        region=region_id,
        pos=as_of.pos,
        state=in_full(region, None),
        items=[item(each, in_short(each)) for each in shown],
        paused_since=as_of.paused_at and as_of.paused_at.isoformat(),
        paused_by=as_of.paused_by,
        **stamp(as_of, region.version),
    ).of(region)
    return state, shown[-1].id if len(left) > limit else None


async def find_entities(arguments: FindEntities, call: Call, services: Services) -> EntityPage:
    """Entities by what is said of them."""
    check_find(arguments)
    after = call.open_cursor(arguments.cursor)
    entities, as_of = await _everything(arguments, services)
    among = entities.values() if arguments.fresh else _among(arguments, services.world)
    shown, last = page_after(find(arguments, entities, among), after, arguments.limit)
    return EntityPage(
        items=[
            item(each, in_short(each) if arguments.fields is None else in_full(each, arguments.fields))
            for each in shown
        ],
        next_cursor=call.seal_cursor(last),
        **stamp(as_of),
    )


async def get_events(arguments: GetEvents, _call: Call, services: Services) -> EventPage:
    """What happened after a position; the record itself is asked."""
    check_fields(arguments.fields)
    as_of = await reading.head(services.pool)
    found = await reading.events(
        services.pool,
        after_pos=arguments.after_pos,
        entity_id=arguments.entity_id,
        types=arguments.types or (),
        region=arguments.region,
        limit=arguments.limit + 1,
    )
    shown = found[: arguments.limit]
    more = len(found) > len(shown)
    # Nothing that fits lies between the last one shown and what was the end before we looked.
    end = shown[-1].pos if more else max([arguments.after_pos, as_of.pos, *(e.pos for e in shown)])
    return _events(shown, arguments.fields, as_of, go_on=end, more=more)


async def get_entity_history(arguments: GetEntityHistory, _call: Call, services: Services) -> EventPage:
    """Every step of one entity by its versions."""
    check_fields(arguments.fields)
    as_of = await reading.head(services.pool)
    found = await reading.history(
        services.pool, arguments.entity_id, from_version=arguments.from_version, limit=arguments.limit + 1
    )
    if not found and not (await reading.entities(services.pool, [arguments.entity_id]))[0]:
        raise missing(None, arguments.entity_id, None)
    shown = found[: arguments.limit]
    go_on = shown[-1].version + 1 if shown else arguments.from_version
    return _events(shown, arguments.fields, as_of, go_on=go_on, more=len(found) > len(shown))


async def look_up(ids: Collection[str], services: Services, *, fresh: bool) -> tuple[Mapping[str, Entity], Reading]:
    """Those of these entities that there are or were, and how far that may be trusted."""
    if fresh:
        found, as_of = await reading.entities(services.pool, ids)
        return {each.id: each for each in found}, as_of
    world = await loaded(services)
    return {each: found for each in ids if (found := world.get(each)) is not None}, world.reading()


async def loaded(services: Services) -> WorldMap:
    """The map; a process that comes and goes loads it first."""
    await services.world.ensure()
    return services.world


def is_there(entity: Entity | None, kind: Kind) -> TypeGuard[Entity]:
    """Whether there is such an entity, of that kind, and it was not removed."""
    return entity is not None and entity.kind == kind and not entity.removed


async def _state(
    entity_id: str, kind: Kind, fields: Collection[str] | None, services: Services, *, fresh: bool
) -> EntityState:
    check_fields(fields, kind)
    if fresh:
        found, as_of = await look_up([entity_id], services, fresh=True)
        entity = found.get(entity_id)
    else:
        world = await loaded(services)
        entity, as_of = world.get(entity_id), world.reading()
    if not is_there(entity, kind):
        raise missing(entity, entity_id, kind)
    return EntityState(
        id=entity.id, region=entity.region, state=in_full(entity, fields), **stamp(as_of, entity.version)
    ).of(entity)


async def _everything(arguments: FindEntities, services: Services) -> tuple[Mapping[str, Entity], Reading]:
    """What is searched, and what that may be near to; of the database never the whole world."""
    if not arguments.fresh:
        world = await loaded(services)
        return world.entities, world.reading()
    region = arguments.region
    if arguments.near is not None:
        near, as_of = await look_up([arguments.near], services, fresh=True)
        if arguments.near not in near or near[arguments.near].region is None:
            return near, as_of
        region = near[arguments.near].region
    elif arguments.ids is not None:
        return await look_up(arguments.ids, services, fresh=True)
    if region is None:
        raise BadInput(
            "A fresh search of the whole world is too much.", next_step="Give ids, region or near, or leave fresh out."
        )
    found, as_of = await reading.region(services.pool, region, limit=_FRESH_MAX)
    return {each.id: each for each in found}, as_of


def _among(arguments: FindEntities, world: WorldMap) -> Collection[Entity]:
    """At least every entity of the map that fits, and not all of them where fewer can be told to be enough."""
    if arguments.ids is not None:
        return [found for each in dict.fromkeys(arguments.ids) if (found := world.get(each)) is not None]
    if arguments.region is not None:
        own = world.get(arguments.region)
        if not is_there(own, "region"):
            raise missing(own, arguments.region, "region")
        return [*world.in_region(own.id), own]
    return world.entities.values() if arguments.kind is None else world.of_kind(arguments.kind)


def _events(shown: list[Event], fields: Collection[str] | None, as_of: Reading, *, go_on: int, more: bool) -> EventPage:
    return EventPage(items=[told(each, fields) for each in shown], next=go_on, more=more, **stamp(as_of))


def missing(found: Entity | None, entity_id: str, kind: Kind | None) -> NotFound:
    """What is said of an entity that there is not, is gone, or is of another kind."""
    name = clean(entity_id, limit=80)
    look = "Look it up with find_entities."
    if found is None:
        return NotFound(f"There is no {kind or 'entity'} {name!r}.", next_step=look)
    if found.removed:
        return NotFound(f"{name!r} was removed from the world.", next_step="get_entity_history has what it was.")
    return NotFound(f"{name!r} is of kind {found.kind}, not {kind}.", next_step="find_entities shows any kind by ids.")


async def get_predictions(_arguments: GetPredictions, _call: Call, _services: Services) -> Predictions:
    """What a player may do next: nothing of this version predicts it."""
    raise NotConfigured("This version has no predictions of players.", details={"setting": "BODY_BROKER_PREDICTION"})
