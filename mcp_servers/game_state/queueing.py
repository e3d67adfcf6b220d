"""Owns the game_state server's proposals: queued, tried, looked up, waited for and taken back. The engine decides, never this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from body_broker.calls import Call, Caller
from body_broker.errors import BadInput
from body_broker.work.model import Origin
from body_broker.world import epochs, queue
from body_broker.world.model import Proposal, Queued, Standing, State
from mcp_servers.game_state.models import Nothing
from mcp_servers.game_state.ops import check_op
from mcp_servers.game_state.proposals import (
    BatchedChange,
    CancelStateChange,
    ChangeQueued,
    ChangesQueued,
    ChangeStatus,
    Engine,
    EngineStatus,
    GetChangeStatus,
    QueueStateChange,
    QueueStateChanges,
    WaitForChange,
)
from mcp_servers.game_state.reads import loaded
from mcp_servers.game_state.services import Services

_WOULD: Mapping[State, str] = {
    "applied": "would_apply",
    "conflict": "would_conflict",
    "rejected": "would_be_rejected",
    "expired": "would_expire",
}


async def queue_state_change(arguments: QueueStateChange, call: Call, services: Services) -> ChangeQueued:
    """One change, queued or tried (seed 001, queue_state_change)."""
    asked = alone(arguments)
    if found := await _queued_before([asked], call, services):
        return found[0]
    proposals = await proposals_of([asked], arguments.player_id, call.caller, services, own_key=_own_key(call))
    if arguments.dry_run:
        return await _tried(proposals[0], call, services)
    return (await _queued(proposals, call, services, atomic=False))[0]


async def queue_state_changes(arguments: QueueStateChanges, call: Call, services: Services) -> ChangesQueued:
    """Several changes, all of them queued or none; `atomic` says whether they are decided together as well."""
    if found := await _queued_before(arguments.changes, call, services):
        return ChangesQueued(changes=found)
    proposals = await proposals_of(
        arguments.changes, arguments.player_id, call.caller, services, own_key=_own_key(call)
    )
    return ChangesQueued(changes=await _queued(proposals, call, services, atomic=arguments.atomic))


async def get_change_status(arguments: GetChangeStatus, call: Call, services: Services) -> ChangeStatus:
    """How a change of the caller's stands; somebody else's is not found."""
    given = [ref for ref in (arguments.change_id, arguments.idempotency_key) if ref is not None]
    if len(given) != 1:
        raise BadInput("A change is asked for by change_id or by idempotency_key, one of them.")
    return await _status(await queue.standing(services.pool, given[0], call.caller.requester), services)


async def wait_for_change(arguments: WaitForChange, call: Call, services: Services) -> ChangeStatus:
    """How a change of the caller's stands once it is decided, or after a while."""
    found = await queue.wait(
        services.pool,
        services.world,
        arguments.change_id,
        call.caller.requester,
        timeout_s=arguments.timeout_ms / 1_000,
    )
    return await _status(found, services)


async def cancel_state_change(arguments: CancelStateChange, call: Call, services: Services) -> ChangeStatus:
    """A change of the caller's, taken back with its whole batch."""
    return await _status(await queue.cancel(services.pool, arguments.change_id, call.caller.requester), services)


def alone(arguments: QueueStateChange) -> BatchedChange:
    """One change as one of several."""
    change = arguments.change
    return BatchedChange(
        entity_id=change.entity_id,
        op=change.op,
        payload=change.payload,
        idempotency_key=arguments.idempotency_key,
        expect_version=arguments.expect_version,
        causation_id=arguments.causation_id,
        priority=arguments.priority,
        expires_in_ms=arguments.expires_in_ms,
    )


async def proposals_of(
    changes: Sequence[BatchedChange], player_id: str | None, caller: Caller, services: Services, *, own_key: str
) -> list[Proposal]:
    """What the engine would be asked for; `own_key` makes the keys of changes that have none.

    Raises:
        BadInput: An op is none, or not for that entity; or somebody but a game server reports a player's input.
    """
    if player_id is not None and not is_game_server(caller):
        raise BadInput(
            "player_id reports a player's input, which only a game server does.", next_step="Leave player_id out."
        )
    world = await loaded(services)
    for change in changes:
        entity = world.get(change.entity_id)
        check_op(change.op, None if entity is None else entity.kind)
    return [
        Proposal(
            entity_id=change.entity_id,
            op=change.op,
            payload=change.payload,
            key=change.idempotency_key or _key(own_key, n),
            expect_version=change.expect_version,
            causation=change.causation_id,
            priority=change.priority,
            expires_in_ms=change.expires_in_ms,
            player=player_id,
        )
        for n, change in enumerate(changes)
    ]


def _own_key(call: Call) -> str:
    """What is done again under the same approval, or for the same call, is the same change."""
    return call.key or call.id


def _key(own: str, number: int) -> str:
    return own if number == 0 else f"{own}.{number}"


async def _queued_before(changes: Sequence[BatchedChange], call: Call, services: Services) -> list[ChangeQueued]:
    """What was queued under this very approval already, whatever has become of the entities since; nothing where nothing was."""
    if call.key is None or any(change.idempotency_key for change in changes):
        return []
    keys = [_key(call.key, number) for number in range(len(changes))]
    found = await queue.former(services.pool, keys, call.caller.requester)
    if found is None:
        return []
    world = await loaded(services)
    return [
        ChangeQueued(
            change_id=one.change_id,
            status=one.state,
            duplicate=False,
            current_version=None if (entity := world.get(change.entity_id)) is None else entity.version,
            idempotency_key=key,
        )
        for change, key, one in zip(changes, keys, found, strict=True)
    ]


async def _queued(proposals: Sequence[Proposal], call: Call, services: Services, *, atomic: bool) -> list[ChangeQueued]:
    requester = call.caller.requester
    taken = await queue.submit(
        services.pool,
        proposals,
        origin=Origin.of(call),
        requester=requester,
        rank=int(is_game_server(call.caller)),
        open_changes_max=services.open_changes_max,
        atomic=atomic,
    )
    return [
        ChangeQueued(
            change_id=one.change_id,
            status=one.state,
            duplicate=one.duplicate,
            current_version=one.current_version,
            idempotency_key=proposal.key,
            rule=await _rule(one, requester, services),
        )
        for one, proposal in zip(taken, proposals, strict=True)
    ]


async def _rule(one: Queued, requester: str, services: Services) -> str | None:
    """Why a change that had been asked for before was not applied."""
    if not one.duplicate or one.state in {"queued", "applied"}:
        return None
    return (await queue.standing(services.pool, one.change_id, requester)).rule


async def _tried(proposal: Proposal, call: Call, services: Services) -> ChangeQueued:
    """What the rules of our own engine would do with it now; another engine may have others."""
    entities = services.world.entities
    verdict = await queue.rehearse(
        services.pool,
        entities,
        proposal,
        origin=Origin.of(call),
        requester=call.caller.requester,
        rank=int(is_game_server(call.caller)),
        tick=services.world.reading().tick,
    )
    entity = entities.get(proposal.entity_id)
    return ChangeQueued(
        change_id=None,
        status=_WOULD[verdict.state],
        duplicate=False,
        current_version=None if entity is None else entity.version,
        idempotency_key=proposal.key,
        rule=verdict.rule,
    )


def is_game_server(caller: Caller) -> bool:
    """Whether a service calls by itself."""
    chain = caller.chain
    return len(chain) == 1 and chain[0].startswith("service:")


async def _status(found: Standing, services: Services) -> ChangeStatus:
    return ChangeStatus(
        version=await _version(found, services),
        as_of_tick=(await loaded(services)).reading().tick if found.tick is None else found.tick,
        age_ms=0,
        source="database",
        change_id=found.change_id,
        entity_id=found.entity_id,
        op=found.op,
        status=found.state,
        rule=found.rule,
        current_version=found.current_version,
        observed=found.observed,
        queued_at=found.queued_at.isoformat(),
        expires_at=found.expires_at.isoformat(),
        decided_at=None if found.decided_at is None else found.decided_at.isoformat(),
    )


async def _version(found: Standing, services: Services) -> int:
    """The entity's version as the engine left it; where it left it alone, as the map has it."""
    observed: dict[str, list[dict[str, Any]]] = {} if found.observed is None else found.observed
    left: list[int] = [each["version"] for each in observed.get("events", ()) if each["entity_id"] == found.entity_id]
    entity = (await loaded(services)).get(found.entity_id)
    return max([*left, found.current_version or 0, 0 if entity is None else entity.version])


async def get_engine_status(_arguments: Nothing, _call: Call, services: Services) -> EngineStatus:
    """Who decides changes, and how much waits."""
    engine = await epochs.status(services.pool)
    pressure = await queue.pressure(services.pool)
    known = (
        [
            Engine(
                id=engine.engine,
                epoch=engine.epoch,
                external=engine.external,
                live=engine.live,
                lag_ms=pressure.oldest_ms,
                tick=engine.tick,
                tick_hz=engine.tick_hz,
            )
        ]
        if engine.engine is not None
        else []
    )
    return EngineStatus(
        engines=known,
        paused_since=engine.paused_at and engine.paused_at.isoformat(),
        paused_by=engine.paused_by,
        queue_depth=pressure.queue_depth,
        oldest_ms=pressure.oldest_ms,
        version=engine.last_pos,
        as_of_tick=engine.tick,
        age_ms=0,
        source="database",
    )
