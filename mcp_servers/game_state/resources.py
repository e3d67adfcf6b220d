"""Owns the game_state server's resources: an NPC, a region, its latest events, the operations; and how their ids complete."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from body_broker.calls import SUGGESTIONS_MAX, Call, Json, ResourceText, Result, Suggestions
from body_broker.world import reading
from body_broker.world.kinds import name_of
from body_broker.world.model import Kind
from mcp_servers.game_state.models import EntityUri, EventPage, GetNpcState, Nothing, RegionUri
from mcp_servers.game_state.ops import table
from mcp_servers.game_state.reads import get_npc_state, loaded, missing, region_state, stamp
from mcp_servers.game_state.services import Services
from mcp_servers.game_state.showing import told

_EVENTS = 50
_ENTITIES_MAX = 500


async def read_npc(arguments: EntityUri, call: Call, services: Services) -> ResourceText:
    """An NPC without words from outside."""
    return _json(await get_npc_state(GetNpcState(npc_id=arguments.id), call, services))


async def read_region(arguments: EntityUri, _call: Call, services: Services) -> ResourceText:
    """A region with what is in it, in short."""
    region, last = await region_state(arguments.id, services, limit=_ENTITIES_MAX)
    return _json(region, cut_after=last)


async def read_events(arguments: RegionUri, _call: Call, services: Services) -> ResourceText:
    """The latest events of a region, without words from outside."""
    region = (await loaded(services)).get(arguments.region)
    if region is None or region.kind != "region":
        raise missing(region, arguments.region, "region")
    as_of = await reading.head(services.pool)
    found = await reading.latest(services.pool, arguments.region, limit=_EVENTS)
    page = EventPage(
        items=[told(each, None) for each in found],
        next=max([as_of.pos, *(each.pos for each in found)]),
        more=False,
        **stamp(as_of),
    )
    return _json(page)


async def read_operations(_arguments: Nothing, _call: Call, _services: Services) -> ResourceText:
    """Every operation, in short."""
    return ResourceText(content=orjson.dumps(table(), option=orjson.OPT_INDENT_2).decode(), from_outside=False)


async def complete_npc(value: str, _given: Mapping[str, str], _call: Call, services: Services) -> Suggestions:
    """Ids of NPCs by the start of an id or a part of a name; an id holds no text from anywhere."""
    return _ids(value, "npc", services)


async def complete_region(value: str, _given: Mapping[str, str], _call: Call, services: Services) -> Suggestions:
    """Ids of regions by the start of an id or a part of a name."""
    return _ids(value, "region", services)


def _ids(value: str, kind: Kind, services: Services) -> Suggestions:
    wanted = value.casefold()
    found = sorted(
        (not entity.id.startswith(wanted), entity.id)
        for entity in services.world.entities.values()
        if entity.kind == kind
        and not entity.removed
        and (entity.id.startswith(wanted) or wanted in name_of(entity).casefold())
    )
    return Suggestions(values=[entity_id for _, entity_id in found[: SUGGESTIONS_MAX + 1]], from_outside=False)


def _json(result: Result, **more: Json) -> ResourceText:
    body = result.model_dump(mode="json", exclude={"next_cursor"}) | more
    return ResourceText(content=orjson.dumps(body).decode(), from_outside=result.outside())
