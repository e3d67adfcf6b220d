"""Owns the changes that pause the engine and let it go on: nothing is decided between them, and nothing that waits is lost."""

from __future__ import annotations

from dataclasses import dataclass

from body_broker.calls import Json
from body_broker.errors import BadInput
from body_broker.storage.postgres import Connection
from body_broker.world import epochs, pausing, queue
from body_broker.world.epochs import EngineStatus
from mcp_servers.admin.changes.kind import Foreseen, Found, Kind, Maker, NoParams, Plan, Reach

TARGET = "engine"
_READS = "get_engine_status"


@dataclass(frozen=True, slots=True)
class _Pausing:
    """The engine, which is not paused."""

    foreseen: Foreseen

    async def write(self, connection: Connection, maker: Maker) -> Json:
        """Pause it."""
        paused = await pausing.pause(connection, by=maker.requester)
        assert paused.paused_at is not None, "it was just paused"
        return {"paused": True, "at": paused.paused_at.isoformat(), "epoch": paused.epoch}


@dataclass(frozen=True, slots=True)
class _Resuming:
    """The engine, which is paused."""

    since: str
    foreseen: Foreseen

    async def write(self, connection: Connection, _maker: Maker) -> Json:
        """Let it go on, where it is the same pause that was foreseen."""
        before = await pausing.locked(connection)
        if before.paused_at is None or before.paused_at.isoformat() != self.since:
            raise pausing.not_paused() if before.paused_at is None else pausing.already_paused(before)
        after = await pausing.resume(connection)
        return {"paused": False, "epoch": after.epoch}


async def _plan_pause(reach: Reach, target: str, _params: NoParams) -> Plan:
    status = await _status(reach, target)
    if status.paused_at is not None:
        raise pausing.already_paused(status)
    waits = (await queue.pressure(reach.pool)).queue_depth
    who = f"{status.engine} arbitrates" if status.engine and status.live else "nobody arbitrates"
    diff = (
        f"- {who}: what is queued is decided\n+ paused: nothing is decided until somebody resumes it\n"
        f"{waits} changes are queued now. They wait, in their order, and expire when they would."
    )
    return _Pausing(Foreseen(headline="Pause the engine", diff=diff, basis="not paused"))


async def _plan_resume(reach: Reach, target: str, _params: NoParams) -> Plan:
    status = await _status(reach, target)
    if status.paused_at is None:
        raise pausing.not_paused()
    waits = (await queue.pressure(reach.pool)).queue_depth
    since = status.paused_at.isoformat()
    diff = (
        f"- paused since {status.paused_at.isoformat(timespec='seconds')} by {status.paused_by}\n"
        f"+ the next engine that asks arbitrates\n{waits} changes are queued now and will be decided, in their order."
    )
    return _Resuming(since, Foreseen(headline="Resume the engine", diff=diff, basis=f"paused {since}"))


async def _status(reach: Reach, target: str) -> EngineStatus:
    if target != TARGET:
        raise BadInput(
            f"There is one engine to pause or resume: the target is {TARGET!r}.",
            details={"problems": [f"target: must be {TARGET}"]},
        )
    return await epochs.status(reach.pool)


async def _read_back(reach: Reach, _target: str, remembered: Json) -> Found:
    status = await epochs.status(reach.pool)
    if remembered["paused"]:
        if status.paused_at is not None and status.paused_at.isoformat() == remembered["at"]:
            text = f"The engine is paused since {remembered['at']}: no lease holds, and no epoch can be had."
            return Found(state="done", text=text)
        return Found(state="done", text=f"The engine was paused at {remembered['at']}; that pause is over since.")
    if status.paused_at is None:
        who = f"{status.engine} arbitrates" if status.live else "the next engine that asks arbitrates"
        return Found(state="done", text=f"The engine is not paused: {who}.")
    text = f"The engine was resumed; it is paused again since {status.paused_at.isoformat(timespec='seconds')}."
    return Found(state="done", text=text)


PAUSE = Kind(
    name="pause",
    reads=_READS,
    params=NoParams,
    takes="target: engine; no params",
    plan=_plan_pause,
    read_back=_read_back,
)
RESUME = Kind(
    name="resume",
    reads=_READS,
    params=NoParams,
    takes="target: engine; no params",
    plan=_plan_resume,
    read_back=_read_back,
)
