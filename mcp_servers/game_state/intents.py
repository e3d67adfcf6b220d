"""Owns the game_state server's intents: what who drives an NPC wants of it for the next moments, and what is known of that."""

from __future__ import annotations

from body_broker.calls import Call, Caller
from body_broker.world import intents
from body_broker.world.kinds import value_of
from body_broker.world.model import Entity, Reading
from mcp_servers.game_state.models import GetIntent
from mcp_servers.game_state.proposals import IntentState, SubmitIntent, WantedIntent
from mcp_servers.game_state.reads import is_there, loaded, look_up, missing, stamp
from mcp_servers.game_state.services import Services

OWN_NPC = "own_npc"


async def owns_npc(arguments: SubmitIntent, caller: Caller, services: Services) -> frozenset[str]:
    """Whether who acts in the chain drives the NPC, as the world says: what submit_intent is decided by."""
    npc = (await loaded(services)).get(arguments.npc_id)
    drives = is_there(npc, "npc") and value_of(npc, "driver") == caller.chain[-1]
    return frozenset({OWN_NPC}) if drives else frozenset()


async def submit_intent(arguments: SubmitIntent, _call: Call, services: Services) -> IntentState:
    """Keep an intent for an NPC; one that saw an older NPC is refused."""
    world = await loaded(services)
    wanted = intents.check(
        arguments.intent.model_dump(mode="json") | {"version": arguments.observed_version, "ttl_ms": arguments.ttl_ms},
    )
    npc = world.get(arguments.npc_id)
    await intents.submit(services.redis, npc, wanted)
    assert npc is not None, "who is not there is refused"
    return await _state(npc, world.reading(), services)


async def get_intent(arguments: GetIntent, _call: Call, services: Services) -> IntentState:
    """What an NPC is about to do."""
    found, as_of = await look_up([arguments.npc_id], services, fresh=arguments.fresh)
    npc = found.get(arguments.npc_id)
    if not is_there(npc, "npc"):
        raise missing(npc, arguments.npc_id, "npc")
    return await _state(npc, as_of, services)


async def _state(npc: Entity, as_of: Reading, services: Services) -> IntentState:
    held = await intents.get(services.redis, npc.id)
    if held is None:
        return IntentState(
            npc_id=npc.id,
            state="none",
            intent=None,
            observed_version=None,
            expires_in_ms=0,
            **stamp(as_of, npc.version),
        )
    intent = held.intent
    is_behind = held.state == "fresh" and intent.version < npc.version
    return IntentState(
        npc_id=npc.id,
        state="stale" if is_behind else held.state,
        intent=WantedIntent(kind=intent.kind, target=intent.target, params=intent.params, confidence=intent.confidence),
        observed_version=intent.version,
        expires_in_ms=max(0, intent.ttl_ms - held.age_ms),
        **stamp(as_of, npc.version),
    )
