"""Owns what people are told of a queued change before they say yes: what it is of, how that stands now, what our rules would do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from body_broker.calls import Caller, Preview
from body_broker.errors import Conflict
from body_broker.text import new_id, quoted, shortened
from body_broker.work.model import Origin
from body_broker.world import queue
from body_broker.world.kinds import name_of
from body_broker.world.model import FINAL, Entity, Proposal, Verdict
from mcp_servers.game_state.proposals import BatchedChange, CancelStateChange, QueueStateChange, QueueStateChanges
from mcp_servers.game_state.queueing import alone, is_game_server, proposals_of
from mcp_servers.game_state.reads import loaded
from mcp_servers.game_state.services import Services
from mcp_servers.game_state.showing import in_full

_TEXT_MAX = 20_000
_STATE_MAX = 2_000
_SHOWN_IDS = 5
_WOULD: Mapping[str, str] = {
    "applied": "By the rules of our own engine it would be applied now",
    "conflict": "It would be a conflict now",
    "rejected": "By the rules of our own engine it would be refused now",
    "expired": "It would expire",
}


async def foresee_change(arguments: QueueStateChange, caller: Caller, services: Services) -> Preview:
    """One change: its entity as it is, and what our rules would do with it.

    Raises:
        BadInput: It does not fit.
        Conflict: It is for a version that is over.
    """
    change = alone(arguments)
    (proposal,) = await proposals_of([change], arguments.player_id, caller, services, own_key=new_id("try"))
    text = await _change(change, proposal, caller, services)
    tried = "Try, without effect, the change" if arguments.dry_run else "Queue the change"
    return Preview(headline=f"{tried} {change.op} of {quoted(change.entity_id)}", text=shortened(text, _TEXT_MAX))


async def foresee_changes(arguments: QueueStateChanges, caller: Caller, services: Services) -> Preview:
    """Several changes, each by itself: what the earlier ones leave for the later ones only the engine knows.

    Raises:
        BadInput: One does not fit.
        Conflict: One is for a version that is over.
    """
    changes = arguments.changes
    proposals = await proposals_of(changes, arguments.player_id, caller, services, own_key=new_id("try"))
    texts = [await _change(c, p, caller, services) for c, p in zip(changes, proposals, strict=True)]
    how = "decided together, all or none" if arguments.atomic else "each decided by itself"
    numbered = "\n\n".join(f"{number}. {text}" for number, text in enumerate(texts, start=1))
    return Preview(
        headline=f"Queue {len(changes)} changes of {_named(changes)}, {how}", text=shortened(numbered, _TEXT_MAX)
    )


async def foresee_cancel(arguments: CancelStateChange, caller: Caller, services: Services) -> Preview:
    """A change that would be taken back.

    Raises:
        NotFound: The caller has no such change.
        Conflict: It is decided already.
    """
    found = await queue.standing(services.pool, arguments.change_id, caller.requester)
    if found.state in FINAL:
        raise Conflict(f"This change is {found.state} already.", next_step="Queue another change that takes it back.")
    text = f"Queued at {found.queued_at.isoformat(timespec='seconds')}, expires at {found.expires_at.isoformat(timespec='seconds')}."
    return Preview(headline=f"Take back the change {found.op} of {quoted(found.entity_id)}", text=text)


async def _change(change: BatchedChange, proposal: Proposal, caller: Caller, services: Services) -> str:
    entity = (await loaded(services)).get(change.entity_id)
    if change.expect_version is not None and entity is not None and entity.version > change.expect_version:
        raise Conflict(
            f"{quoted(change.entity_id)} has version {entity.version}, not {change.expect_version}.",
            next_step="Read it again and decide again: nobody was asked.",
            details={"version": entity.version},
        )
    verdict = await queue.rehearse(
        services.pool,
        services.world.entities,
        proposal,
        origin=Origin(chain=caller.chain, session=caller.session),
        requester=caller.requester,
        rank=int(is_game_server(caller)),
        tick=services.world.reading().tick,
    )
    return "\n".join([_now(change.entity_id, entity), f"Asked: {change.op} {_json(change.payload)}", *_would(verdict)])


def _now(entity_id: str, entity: Entity | None) -> str:
    if entity is None:
        return f"{quoted(entity_id)} is not there yet."
    state = shortened(_json(in_full(entity, None)), _STATE_MAX)
    return f"{quoted(entity_id)}, {entity.kind} {quoted(name_of(entity))}, has version {entity.version} now:\n{state}"


def _would(verdict: Verdict) -> list[str]:
    rule = f": {verdict.rule}" if verdict.rule else ""
    effects = [f"  {each.entity_id} {each.type}: {_json(each.patch)}" for each in verdict.effects]
    return [f"{_WOULD.get(verdict.state, verdict.state)}{rule}.", *effects]


def _named(changes: Sequence[BatchedChange]) -> str:
    ids = list(dict.fromkeys(change.entity_id for change in changes))
    more = f" and {len(ids) - _SHOWN_IDS} more" if len(ids) > _SHOWN_IDS else ""
    return ", ".join(quoted(each) for each in ids[:_SHOWN_IDS]) + more


def _json(value: Mapping[str, Any]) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
