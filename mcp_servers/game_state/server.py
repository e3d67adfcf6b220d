"""The game_state server: reads of the world and changes queued for its engine. Owns the tools' wording; the work is body_broker.world's."""

from __future__ import annotations

from body_broker.calls import Resource, Room, Tool
from mcp_servers.game_state.foreseeing import foresee_cancel, foresee_change, foresee_changes
from mcp_servers.game_state.intents import get_intent, owns_npc, submit_intent
from mcp_servers.game_state.queueing import (
    cancel_state_change,
    get_change_status,
    get_engine_status,
    queue_state_change,
    queue_state_changes,
    wait_for_change,
)
from mcp_servers.game_state.reads import (
    find_entities,
    get_entity_history,
    get_events,
    get_npc_state,
    get_npc_states,
    get_player_state,
    get_predictions,
    get_world_state,
)
from mcp_servers.game_state.resources import (
    complete_npc,
    complete_region,
    read_events,
    read_npc,
    read_operations,
    read_region,
)

_READS = (
    Tool(
        name="get_npc_state",
        group="state_read",
        run=get_npc_state,
        title="Get an NPC's state",
        description="How an NPC is now: where, mood, health, what it carries. Its version is what a change may expect.",
        output="as_marked",
    ),
    Tool(
        name="get_world_state",
        group="state_read",
        run=get_world_state,
        title="Get a region's state",
        description="A region and, in short, everything in it. For one NPC in full use get_npc_state.",
        output="as_marked",
    ),
    Tool(
        name="find_entities",
        group="state_read",
        run=find_entities,
        title="Find entities",
        description="Entities by id, kind, region, nearness or field values, in short. For all of a region use get_world_state.",
        output="as_marked",
    ),
    Tool(
        name="get_npc_states",
        group="state_read",
        run=get_npc_states,
        title="Get several NPCs' states",
        description="The same as get_npc_state for up to 256 NPCs at one moment.",
        output="as_marked",
        profile="all",
    ),
    Tool(
        name="get_player_state",
        group="state_read",
        run=get_player_state,
        title="Get a player's state",
        description="How a player's character is now. Not what the player may do next: that is get_predictions.",
        output="as_marked",
        profile="all",
    ),
    Tool(
        name="get_events",
        group="state_read",
        run=get_events,
        title="Get events",
        description="What happened after a position, in order; ask again with `next`. To be told at once listen to game://events/{region}.",
        output="as_marked",
        profile="all",
    ),
    Tool(
        name="get_entity_history",
        group="state_read",
        run=get_entity_history,
        title="Get an entity's history",
        description="Every step of one entity by its versions, even after it was removed. For many use get_events.",
        output="as_marked",
        profile="all",
    ),
    Tool(
        name="get_intent",
        group="state_read",
        run=get_intent,
        title="Get an NPC's intent",
        description="What an NPC is about to do and how fresh that is. For what it is now use get_npc_state.",
        output="as_marked",
        profile="all",
    ),
    Tool(
        name="get_predictions",
        group="state_read",
        run=get_predictions,
        title="Get predictions",
        description="What a player may do next, with the answers that are ready for it. Guesses, never facts.",
        needs="BODY_BROKER_PREDICTION",
        profile="all",
    ),
    Tool(
        name="get_engine_status",
        group="state_read",
        run=get_engine_status,
        title="Get the engine's status",
        description="Whether changes are being decided, by whom, and how many wait. Use it where a change stays queued.",
        profile="all",
    ),
)
_CHANGES = (
    Tool(
        name="queue_state_change",
        group="queued",
        run=queue_state_change,
        foresees=foresee_change,
        title="Queue a state change",
        description=(
            "Propose a change; the engine decides it, so queued is not applied: get_change_status says."
            " game://operations lists ops and payloads; dry_run tries one."
        ),
        effect="repeatable",
    ),
    Tool(
        name="get_change_status",
        group="state_read",
        run=get_change_status,
        title="Get a change's status",
        description="What the engine decided of a change of yours, by change_id or idempotency_key.",
    ),
    Tool(
        name="wait_for_change",
        group="state_read",
        run=wait_for_change,
        title="Wait for a change",
        description="A change of yours once it is decided, or as it stands after timeout_ms.",
        profile="all",
    ),
    Tool(
        name="queue_state_changes",
        group="queued",
        run=queue_state_changes,
        foresees=foresee_changes,
        title="Queue several state changes",
        description="Propose up to 64 changes, decided together or one by one. For one use queue_state_change.",
        effect="repeatable",
        profile="all",
    ),
    Tool(
        name="cancel_state_change",
        group="queued",
        run=cancel_state_change,
        foresees=foresee_cancel,
        title="Cancel a state change",
        description="Take back a change of yours that is not decided yet. An applied one needs a change of its own.",
        effect="repeatable",
        profile="all",
    ),
    Tool(
        name="submit_intent",
        group="intent",
        run=submit_intent,
        title="Submit an intent",
        description="Say what an NPC that you drive is about to do. It expires by itself and changes no state.",
        effect="repeatable",
        establishes=owns_npc,
        output="as_marked",
        profile="all",
    ),
)
_RESOURCES = (
    Resource(
        name="npc_state",
        group="state_read",
        run=read_npc,
        title="NPC",
        description="An NPC's state; listeners hear of each change.",
        uri="game://npc/{id}",
        mime_type="application/json",
        output="as_marked",
        completes={"id": complete_npc},
    ),
    Resource(
        name="region_state",
        group="state_read",
        run=read_region,
        title="Region",
        description="A region with what is in it, in short; listeners hear of each change.",
        uri="game://region/{id}",
        mime_type="application/json",
        output="as_marked",
        completes={"id": complete_region},
    ),
    Resource(
        name="region_events",
        group="state_read",
        run=read_events,
        title="Events of a region",
        description="The latest events of a region; listeners hear of each.",
        uri="game://events/{region}",
        mime_type="application/json",
        output="as_marked",
        completes={"region": complete_region},
    ),
    Resource(
        name="world_operations",
        group="state_read",
        run=read_operations,
        title="Operations",
        description="Every op of queue_state_change: for which kinds, its payload, and whether it needs expect_version.",
        uri="game://operations",
        mime_type="application/json",
    ),
)

ROOM = Room(
    name="game_state",
    title="Game state",
    description="The living world: what is where, and changes to it that the game's engine decides.",
    tools=(*_READS, *_CHANGES),
    resources=_RESOURCES,
)
