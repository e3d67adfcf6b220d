"""Owns engines that break one promise each: our own, with one thing done wrong."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence
from typing import Any

import orjson

from body_broker.world.engine.client import EngineClient, Over, Session
from body_broker.world.engine.coding import read_order
from body_broker.world.engine.messages import (
    Change,
    ChangePart,
    EntityPart,
    Outcome,
    OutcomePart,
    Refusal,
    Taken,
    Welcome,
)
from body_broker.world.engine.own import OwnArbiter

Decided = Sequence[OutcomePart]


class SkipsAVersion(OwnArbiter):
    def decide(self, changes: Sequence[ChangePart], *, atomic: bool) -> Decided:
        return [
            said.model_copy(
                update={"effects": tuple(e.model_copy(update={"version": e.version + 1}) for e in said.effects)}
            )
            for said in super().decide(changes, atomic=atomic)
        ]


class ManglesText(OwnArbiter):
    def decide(self, changes: Sequence[ChangePart], *, atomic: bool) -> Decided:
        changed = [c.model_copy(update={"payload": orjson.loads(ascii_only(c.payload))}) for c in changes]
        return super().decide(changed, atomic=atomic)


def ascii_only(value: Any) -> bytes:  # any JSON value
    return orjson.dumps(value).decode().encode("ascii", "replace")


class OverwritesInSilence(OwnArbiter):
    def decide(self, changes: Sequence[ChangePart], *, atomic: bool) -> Decided:
        current = [
            c.model_copy(update={"expect_version": self.entities[c.entity_id].version if c.expect_version else None})
            for c in changes
        ]
        return super().decide(current, atomic=atomic)


class SaysAppliedToAll(OwnArbiter):
    def decide(self, changes: Sequence[ChangePart], *, atomic: bool) -> Decided:
        return [said.model_copy(update={"state": "applied"}) for said in super().decide(changes, atomic=atomic)]


class GivesNoReason(OwnArbiter):
    def decide(self, changes: Sequence[ChangePart], *, atomic: bool) -> Decided:
        return [said.model_copy(update={"rule": None}) for said in super().decide(changes, atomic=atomic)]


class LetsTheDeadAct(OwnArbiter):
    def reload(self, entities: Sequence[EntityPart], tick: int) -> None:
        super().reload([e.model_copy(update={"data": {**e.data, "alive": True, "health": 9}}) for e in entities], tick)


class AppliesBatchesInPart(OwnArbiter):
    def decide(self, changes: Sequence[ChangePart], *, atomic: bool) -> Decided:  # noqa: ARG002 - the fault
        return super().decide(changes, atomic=False)


class KnowsNoTime(OwnArbiter):
    def decide(self, changes: Sequence[ChangePart], *, atomic: bool) -> Decided:
        return super().decide([c.model_copy(update={"expires_in_ms": 1_000}) for c in changes], atomic=atomic)


class KeepsTheOldWorld(OwnArbiter):
    def reload(self, entities: Sequence[EntityPart], tick: int) -> None:
        if not self.entities:
            super().reload(entities, tick)


class NeverBeats(EngineClient):
    async def _beat(self) -> None:
        pass


class ForgetsWhoItIs(EngineClient):
    async def _join(self, after: str) -> str:
        self._instance = secrets.token_hex(4)
        return await super()._join(after)

    def _mine(self, order: Welcome | Taken) -> bool:
        if isinstance(order, Taken):
            raise Over
        return super()._mine(order)


class RemembersNothing(EngineClient):
    async def _answer(self, session: Session, order: Change) -> None:
        session.answers.clear()
        await super()._answer(session, order)


class AnswersOneByOne(EngineClient):
    async def _answer(self, session: Session, order: Change) -> None:
        for said in self._arbiter.decide(order.changes, atomic=order.atomic):
            await self._reports.add(
                Outcome(epoch=order.epoch, n=session.next_n(), tick=self._arbiter.tick, outcomes=(said,))
            )


class AnswersTheLatestFirst(EngineClient):
    _waiting: Change | None = None

    async def _answer(self, session: Session, order: Change) -> None:
        if self._waiting is None:
            self._waiting = order
            return
        waiting, self._waiting = self._waiting, None
        await super()._answer(session, order)
        await super()._answer(session, waiting)


class KnowsNoEpoch(EngineClient):
    async def _hear(self, raw: bytes) -> None:
        order = read_order(raw)
        if isinstance(order, Change):
            await self._answer(self._held(), order)
        else:
            await super()._hear(raw)


class IgnoresTheEnd(EngineClient):
    async def _hear(self, raw: bytes) -> None:
        if b'"ended"' not in raw:
            await super()._hear(raw)


class IgnoresGaps(EngineClient):
    async def _hear(self, raw: bytes) -> None:
        order = read_order(raw)
        if self._session is not None and isinstance(order, Change):
            self._session.heard = order.n - 1
        await super()._hear(raw)


class DiesOfNonsense(EngineClient):
    async def _hear(self, raw: bytes) -> None:
        orjson.loads(raw)["type"]
        await super()._hear(raw)


class IgnoresRefusals(EngineClient):
    def _refused(self, order: Refusal) -> None:
        pass


class WantsKnownFields(EngineClient):
    async def _hear(self, raw: bytes) -> None:
        if b'"later"' not in raw:
            await super()._hear(raw)


class NeverLetsGo(EngineClient):
    async def _hear(self, raw: bytes) -> None:
        await super()._hear(raw)
        self._held().heard_at = float("inf")


@dataclasses.dataclass(frozen=True)
class Broken:
    """An engine, the check that finds it, and what that says."""

    check: str
    says: str
    arbiter: type[OwnArbiter] = OwnArbiter
    client: type[EngineClient] = EngineClient


BROKEN = (
    Broken("taken", "as another instance", client=ForgetsWhoItIs),
    Broken("heartbeat", "waited", client=NeverBeats),
    Broken("applies", "has version 3, not 2", SkipsAVersion),
    Broken("text", "description is", ManglesText),
    Broken("conflict", "it was applied, not conflict", OverwritesInSilence),
    Broken("unknown-entity", "it was applied, not rejected", SaysAppliedToAll),
    Broken("unknown-operation", "no rule is named", GivesNoReason),
    Broken("bad-payload", "it was applied, not rejected", SaysAppliedToAll),
    Broken("removed-entity", "no rule is named", GivesNoReason),
    Broken("dead-actor", "it was applied, not rejected", LetsTheDeadAct),
    Broken("duplicate", "another outcome", client=RemembersNothing),
    Broken("batch-applied", "came in several", client=AnswersOneByOne),
    Broken("batch-refused", "it was applied, not rejected", AppliesBatchesInPart),
    Broken("order", "not in the order", client=AnswersTheLatestFirst),
    Broken("expired", "it was applied, not expired", KnowsNoTime),
    Broken("old-epoch", "has version 3, not 2", client=KnowsNoEpoch),
    Broken("reload", "has version", KeepsTheOldWorld),
    Broken("ended", "waited", client=IgnoresTheEnd),
    Broken("gap", "waited", client=IgnoresGaps),
    Broken("nonsense", "waited", client=DiesOfNonsense),
    Broken("refusal", "waited", client=IgnoresRefusals),
    Broken("new-fields", "waited", client=WantsKnownFields),
    Broken("lease", "waited", client=NeverLetsGo),
)
