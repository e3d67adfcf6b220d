"""Owns the door of the change queue: what a proposal must be before it is taken, and what is known of its cause."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from body_broker.calls import Json
from body_broker.errors import BadInput, TooLarge
from body_broker.storage.postgres import Executor
from body_broker.text import clean, digest, is_clean
from body_broker.work.model import Origin
from body_broker.world.kinds import NUMBER_MAX
from body_broker.world.model import (
    BATCH_MAX,
    DEPTH_MAX,
    ENTITY_ID,
    EXPIRES_IN_MS_MAX,
    PLAYER_RANK,
    PRIORITY_MAX,
    Change,
    Kind,
    Proposal,
)
from body_broker.world.operation import Op
from body_broker.world.operations import check_payload, operation
from body_broker.world.rules import signature

KEY_MAX = 200
_CHANGE_ID = re.compile(r"sch_[A-Za-z0-9_-]{1,60}")
_KNOWN = "SELECT id, kind, version, removed FROM world_entity WHERE id = ANY ($1::text[])"
_CAUSES = """
SELECT named.cause, c.depth, c.signature,
    c.tainted OR (c.state = 'queued' AND c.rank >= $2::smallint)
        OR EXISTS (SELECT FROM world_event x WHERE x.change_id = c.id AND x.outside) AS tainted,
    c.ancestry, c.id IS NOT NULL AS by_change, e.outside
FROM unnest($1::text[]) AS named (cause)
LEFT JOIN world_event e ON e.pos = CASE WHEN named.cause LIKE 'event:%' THEN substr(named.cause, 7)::bigint END
LEFT JOIN world_change c ON c.id = CASE WHEN e.pos IS NULL THEN named.cause ELSE e.change_id END
WHERE c.id IS NOT NULL OR e.pos IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of an entity at the door."""

    kind: Kind
    version: int


@dataclass(frozen=True, slots=True)
class Cause:
    """What made somebody want a change."""

    depth: int = 0
    tainted: bool = False
    ancestry: tuple[str, ...] = ()


NO_CAUSE = Cause()
_FORGOTTEN = Cause(tainted=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A proposal that may be taken.

    Attributes:
        digest: Of all that was asked: the same key with another digest is another change.
        rank: See `Change.rank`.
        version: The entity's, as the door saw it; None where it is not there yet.
    """

    proposal: Proposal
    payload: Mapping[str, Json]
    digest: str
    signature: str
    rank: int
    depth: int
    tainted: bool
    ancestry: tuple[str, ...]
    version: int | None

    def as_change(self, change_id: str, *, actor: str, seq: int = 0) -> Change:
        """As an engine would see it."""
        return Change(
            seq=seq,
            id=change_id,
            actor=actor,
            batch=None,
            entity_id=self.proposal.entity_id,
            op=self.proposal.op,
            payload=self.payload,
            expect_version=self.proposal.expect_version,
            rank=self.rank,
            priority=self.proposal.priority,
            causation=self.proposal.causation,
            depth=self.depth,
            tainted=self.tainted,
            expires_at=datetime.now(UTC) + timedelta(milliseconds=self.proposal.expires_in_ms),
            ancestry=frozenset(self.ancestry),
        )


async def ask(
    connection: Executor, proposals: Sequence[Proposal], *, origin: Origin, rank: int, taken: Collection[str] = ()
) -> list[Asked]:
    """The proposals, checked against the table of operations, the world and what caused them.

    Args:
        connection: Where the world lies.
        proposals: What is wanted.
        origin: Who asks and how: a change inherits taint and depth.
        rank: 1 for the game server, 0 for everybody else; a proposal that reports a player's input has 2, from the game
            server alone.
        taken: Keys that stand for changes already: what caused those was judged then, and may be forgotten.

    Raises:
        BadInput: A proposal does not fit; the message names which and why.
        TooLarge: There are too many, or a payload is too long.
    """
    if not 1 <= len(proposals) <= BATCH_MAX:
        raise TooLarge(f"{len(proposals)} changes at once; 1 to {BATCH_MAX} are possible.")
    keys = [proposal.key for proposal in proposals]
    if len(set(keys)) < len(keys):
        raise BadInput("Two of these changes have the same idempotency key.")
    for proposal in proposals:
        _check_bounds(proposal)
    known = await _known(connection, {proposal.entity_id for proposal in proposals})
    causes = await _causes(connection, {p.causation for p in proposals if p.causation is not None})
    causes |= {
        p.causation: _FORGOTTEN for p in proposals if p.key in taken and p.causation and p.causation not in causes
    }
    born: dict[str, Known] = {}
    asked: list[Asked] = []
    for proposal in proposals:
        one = _asked(proposal, {**born, **known}, causes, origin=origin, rank=rank)
        if operation(proposal.op).make is not None:
            born[proposal.entity_id] = Known(one.payload["kind"], 0)
        asked.append(one)
    return asked


def _check_bounds(proposal: Proposal) -> None:
    if not ENTITY_ID.fullmatch(proposal.entity_id):
        raise BadInput(f"{clean(proposal.entity_id, limit=80)!r} cannot be the id of an entity.")
    if not 1 <= len(proposal.key) <= KEY_MAX or not is_clean(proposal.key):
        raise BadInput(f"An idempotency key has 1 to {KEY_MAX} visible characters.")
    bounds = {
        "priority": (proposal.priority, 0, PRIORITY_MAX),
        "expires_in_ms": (proposal.expires_in_ms, 1, EXPIRES_IN_MS_MAX),
        "expect_version": (1 if proposal.expect_version is None else proposal.expect_version, 1, NUMBER_MAX),
    }
    for name, (value, least, most) in bounds.items():
        if not least <= value <= most:
            raise BadInput(f"`{name}` is {value}; it goes from {least} to {most}.")


async def _known(connection: Executor, ids: Collection[str]) -> dict[str, Known]:
    rows = await connection.fetch(_KNOWN, list(ids))
    return {row["id"]: Known(row["kind"], row["version"]) for row in rows}


async def _causes(connection: Executor, named: Collection[str]) -> dict[str, Cause]:
    if not named:
        return {}
    if any(not _is_reference(each) for each in named):
        raise BadInput("A causation is a change's id, or event:POS with an event's position.")
    rows: list[asyncpg.Record] = await connection.fetch(_CAUSES, list(named), PLAYER_RANK)
    return {row["cause"]: _cause(row) for row in rows}


def _is_reference(cause: str) -> bool:
    if not cause.startswith("event:"):
        return _CHANGE_ID.fullmatch(cause) is not None
    digits = cause.removeprefix("event:")
    return digits.isascii() and digits.isdigit() and len(digits) <= len(str(NUMBER_MAX))


def _cause(row: asyncpg.Record) -> Cause:
    if not row["by_change"]:  # an operator's load, or a change that was forgotten
        return Cause(tainted=row["outside"])
    # Whoever saw an event whose text is from outside is moved by that text, even where its change was clean.
    return Cause(row["depth"], row["tainted"] or bool(row["outside"]), (*row["ancestry"], row["signature"]))


def _asked(
    proposal: Proposal, known: Mapping[str, Known], causes: Mapping[str, Cause], *, origin: Origin, rank: int
) -> Asked:
    op = operation(proposal.op)
    entity = known.get(proposal.entity_id)
    if op.make is None:
        _check_entity(proposal, op, entity)
    cause = NO_CAUSE
    if proposal.causation is not None:
        if proposal.causation not in causes:
            raise BadInput(
                "There is no change or event of that causation.",
                next_step="Name a change_id, or event:POS of an event; what is older than a week is forgotten.",
            )
        cause = causes[proposal.causation]
    depth = max(origin.depth, cause.depth + 1 if proposal.causation is not None else 0)
    if depth > DEPTH_MAX:
        raise BadInput(
            f"This change is caused by changes that were caused by others, {depth} deep; {DEPTH_MAX} is the limit.",
            next_step="Stop here: agents are answering each other.",
        )
    payload = check_payload(op, None if entity is None else entity.kind, proposal.payload)
    return Asked(
        proposal=proposal,
        payload=payload,
        digest=_digest(proposal, payload),
        signature=signature(proposal.entity_id, op.name, payload),
        rank=PLAYER_RANK if proposal.player is not None and rank > 0 else rank,
        depth=depth,
        tainted=origin.tainted or cause.tainted,
        ancestry=cause.ancestry[-DEPTH_MAX:],
        version=None if entity is None else entity.version,
    )


def _check_entity(proposal: Proposal, op: Op, entity: Known | None) -> None:
    if entity is None:
        raise BadInput(
            f"There is no entity {proposal.entity_id!r}.", next_step="Look it up with find_entities, or spawn it."
        )
    if entity.kind not in op.kinds:
        raise BadInput(
            f"{op.name} is not for a {entity.kind}, which {proposal.entity_id!r} is.",
            next_step=f"It is for {', '.join(sorted(op.kinds))}.",
        )
    if op.needs_version and proposal.expect_version is None:
        raise BadInput(
            f"{op.name} does not commute, so it needs `expect_version`.",
            next_step=f"Read {proposal.entity_id!r} and decide again; it has version {entity.version} now.",
            details={"current_version": entity.version},
        )


def _digest(proposal: Proposal, payload: Mapping[str, Any]) -> str:
    return digest(
        [
            proposal.entity_id,
            proposal.op,
            payload,
            proposal.expect_version,
            proposal.causation,
            proposal.priority,
            proposal.expires_in_ms,
            proposal.player,
        ]
    )
