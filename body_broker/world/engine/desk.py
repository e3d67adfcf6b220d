"""Owns what the hub answers an engine: who is welcome, what is recorded, what is refused, when an epoch is over."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import asyncpg

from body_broker.storage.postgres import LOST as DATABASE_LOST
from body_broker.storage.postgres import Pool
from body_broker.storage.redis import LOST, Redis
from body_broker.telemetry import get_logger
from body_broker.world import epochs, reading
from body_broker.world.engine import outbox, recording
from body_broker.world.engine.coding import Unreadable, read_order, read_report
from body_broker.world.engine.fitting import GRACE_S, Unfit
from body_broker.world.engine.holding import WINDOW, Holding, Read
from body_broker.world.engine.messages import (
    NUMBER_MAX,
    READ_KEY,
    TO_ENGINE,
    Bye,
    Change,
    Ended,
    EndReason,
    Heartbeat,
    Hello,
    Lease,
    Numbered,
    Observation,
    Outcome,
    Recorded,
    Refusal,
    RefusalCode,
    Snapshot,
    Taken,
    Welcome,
)
from body_broker.world.engine.recording import BAD_OUTCOME
from body_broker.world.engine.streams import FIRST, Stream, clock_ms, written_ms
from body_broker.world.engine.telling import Teller
from body_broker.world.model import Event

log = get_logger(__name__)

_RESUME_MAX = 2_000
_REFUSALS_EACH_S = 1.0
_STRANGERS_MAX = 1_000
PASSING = (
    *LOST,
    *DATABASE_LOST,
    asyncpg.TransactionRollbackError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.InvalidTransactionStateError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.PostgresSystemError,
)
"""Of the stores and of this moment: the same again may go well. Anything else is of the message, and would fail for ever."""


class Desk:
    """The hub's side of the conversation, for as long as one process leads; used by one task at a time.

    Args:
        pool: The database.
        redis: Where the streams are.
        lease_s: How long an engine may be silent.
        clock: Seconds that only grow.
        grace_s: How long after a change has expired its outcome may come.
    """

    def __init__(
        self, pool: Pool, redis: Redis, *, lease_s: float, clock: Callable[[], float], grace_s: float = GRACE_S
    ) -> None:
        self._pool, self._redis = pool, redis
        self._lease_s, self._clock, self._grace_s = lease_s, clock, grace_s
        self._lease_ms = int(lease_s * 1000)
        self._orders = Stream(redis, TO_ENGINE)
        self._holding: Holding | None = None
        self._pos: int | None = None
        self._outcomes: list[tuple[str, Outcome]] = []
        self._server = self._begun = ""
        self._since_ms = 0
        self._refused_at: dict[int | None, float] = {}
        self._teller = Teller(pool, redis, lease_s=lease_s, clock=clock)

    async def resume(self) -> str:
        """Go on where the last relay stopped; the id of the last report that was read."""
        self._server = await self._run_of_redis()
        self._since_ms = await clock_ms(self._redis) - self._lease_ms
        read = Read.of(await self._redis.get(READ_KEY))
        status = await epochs.status(self._pool)
        if (
            read is not None
            and read.server == self._server
            and (read.epoch, read.engine) == (status.epoch, status.engine)
        ):
            await outbox.send_again(self._pool, read.epoch)
            found = await reading.world(self._pool)
            await self._teller.make_whole(found, read.epoch)
            self._holding = Holding(
                epoch=read.epoch,
                engine=read.engine,
                instance=read.instance,
                heard_at=self._clock(),
                heard=read.heard,
                said=await self._said(read.epoch),
                world=found.entities,
            )
        elif status.external:
            # What this epoch's engine and we said to each other is lost.
            await epochs.release(self._pool, status.epoch)
            await outbox.forget_sent(self._pool)
            await self._orders.add(Ended(epoch=max(status.epoch, 1), reason="lost"))
        return read.entry if read is not None else FIRST

    async def hear(self, entry: str, raw: bytes) -> None:
        """Take one report; what is wrong with it is told, and nothing an engine says stops the relay.

        Raises:
            OSError, RedisError, asyncpg.PostgresError: A store is lost; the report is to be read again.
        """
        try:
            await self._hear(entry, raw)
        except (*PASSING, epochs.Superseded):
            raise
        except Exception:
            # Read again it would fail again, and no other engine could begin.
            log.exception("engine_message_failed")
            held = self._holding
            await self._refuse(entry, "unfit", "The hub failed at it.", held and held.epoch)
            if held is not None:
                await self._give_up(held)

    async def _hear(self, entry: str, raw: bytes) -> None:
        report = read_report(raw)
        held = self._holding
        if (
            held is not None
            and isinstance(report, Outcome)
            and (report.epoch, report.n) == (held.epoch, held.heard + 1)
        ):
            if self._outcomes and self._outcomes[-1][1].tick != report.tick:
                await self._write_outcomes()
            self._outcomes.append((entry, report))
            held.heard += 1
            return
        await self._write_outcomes()
        if isinstance(report, Hello):
            # One from before this relay was here has been given up or said again.
            if written_ms(entry) >= self._since_ms:
                await self._greet(report)
            return
        held = self._holding
        if held is None or report.epoch != held.epoch:
            await self._refuse_stranger(entry, report)
        elif report.n is None:
            assert isinstance(report, Unreadable), "what is readable has its number"
            await self._refuse(entry, report.code, report.message, held.epoch)
        elif report.n > held.heard + 1:
            await self._end("lost")
        elif report.n == held.heard + 1:
            held.heard = report.n
            await self._take(held, entry, report)

    async def settle(self, entry: str) -> None:
        """Write what was heard, say what is recorded, and remember that everything up to this entry was read."""
        await self._write_outcomes()
        held = self._holding
        if held is not None and self._teller.stale:
            await self._keep_copy(held)
            held = self._holding
        if held is not None and self._pos is not None:
            await self._orders.add(Recorded(epoch=held.epoch, n=held.next_n(), upto=held.heard, pos=self._pos))
        self._pos = None
        read = Read(entry, self._server)
        if held is not None:
            read = Read(entry, self._server, held.epoch, held.engine, held.instance, held.heard)
        await self._redis.set(READ_KEY, read.as_json())

    async def look(self) -> None:
        """End an epoch that is over: its engine has been silent for too long, or somebody else has written the world."""
        held = self._holding
        if held is None:
            return
        if (await epochs.status(self._pool)).epoch != held.epoch:
            await self._end("reload")
        elif self._clock() - held.heard_at > self._lease_s:
            await self._end("lapsed")
        else:
            await self._keep_copy(held)

    async def expire(self, behind_s: float) -> None:
        """End changes that have expired, and the epoch of an engine that never answered one.

        Args:
            behind_s: Everything that was said up to so long ago has been heard.
        """
        held = self._holding
        if held is not None and await outbox.overdue(self._pool, held.epoch, self._grace_s + behind_s):
            await self._give_up(held)
        if decided := await outbox.expire(self._pool):
            await self._tell(decided=decided)

    async def send(self) -> bool:
        """Tell the engine of what is queued; whether there may be more."""
        held = self._holding
        room = 0 if held is None else WINDOW - len(held.open)
        if held is None or room <= 0:
            return False
        try:
            taken = await outbox.take_changes(self._pool, held.epoch, room)
        except epochs.Superseded:
            await self._end("reload")
            return False
        await self._tell(decided=taken.decided)
        for parcel in taken.parcels:
            await self._orders.add(
                Change(epoch=held.epoch, n=held.next_n(), atomic=parcel.atomic, changes=parcel.changes)
            )
            held.open |= {change.change_id for change in parcel.changes}
        return bool(taken.parcels)

    async def _greet(self, hello: Hello) -> None:
        held = self._holding
        if held is not None and (held.engine, held.instance) == (hello.engine, hello.instance):
            # It begins anew: what it was sent and what it told us is as the record has it.
            await epochs.release(self._pool, held.epoch)
            await self._end("replaced")
        taken = await epochs.acquire(
            self._pool, name=hello.engine, lease_s=self._lease_s, tick_hz=hello.tick_hz, external=True
        )
        if taken is None:
            retry_ms = int(await epochs.free_in_s(self._pool) * 1000) + 1
            await self._orders.add(Taken(engine=hello.engine, instance=hello.instance, retry_ms=retry_ms))
            return
        if self._holding is not None:
            await self._end("lapsed")
        await outbox.forget_sent(self._pool)
        found = await reading.world(self._pool)
        await self._teller.make_whole(found, taken.number)
        pages = outbox.pages_of(found.entities.values())
        held = self._holding = Holding(
            epoch=taken.number,
            engine=hello.engine,
            instance=hello.instance,
            heard_at=self._clock(),
            world=found.entities,
        )
        entry = await self._orders.add(
            Welcome(
                engine=hello.engine,
                instance=hello.instance,
                epoch=taken.number,
                n=held.next_n(),
                lease_ms=self._lease_ms,
                tick=min(taken.tick, NUMBER_MAX),
                entities=sum(map(len, pages)),
                snapshots=len(pages),
            )
        )
        for page in pages:
            await self._orders.add(Snapshot(epoch=held.epoch, n=held.next_n(), entities=tuple(page)))
        # What is older than the last epoch is worth nothing to anybody.
        await self._orders.forget_before(self._begun or entry)
        self._begun = entry
        log.warning("engine_welcome", engine=hello.engine, epoch=taken.number)

    async def _take(self, held: Holding, entry: str, report: Numbered | Unreadable) -> None:
        match report:
            case Heartbeat():
                await self._renew(held)
            case Outcome() | Observation():
                await self._record_one(held, entry, report)
            case Bye():
                await epochs.release(self._pool, held.epoch)
                await self._end("bye")
            case Unreadable():
                await self._refuse(entry, report.code, report.message, held.epoch)
                if report.type in {Outcome.model_fields["type"].default, Observation.model_fields["type"].default}:
                    # Something happened over there that we shall never know.
                    await self._give_up(held)

    async def _renew(self, held: Holding) -> None:
        try:
            await epochs.renew(self._pool, held.epoch, self._lease_s)
        except epochs.Superseded:
            await self._end("reload")
            return
        held.heard_at = self._clock()
        await self._orders.add(Lease(epoch=held.epoch, n=held.next_n(), lease_ms=self._lease_ms))

    async def _write_outcomes(self) -> None:
        """Record the outcomes that were heard one after another in one tick: together, or one by one where one does not fit."""
        outcomes, self._outcomes = self._outcomes, []
        held = self._holding
        if not outcomes or held is None:
            return
        try:
            made = await self._record(held, [outcome for _, outcome in outcomes], outcomes[0][0])
        except PASSING:
            raise
        except Exception:  # noqa: BLE001 - one by one it is known whose fault it is, and told
            for entry, outcome in outcomes:
                if self._holding is held:
                    await self._record_one(held, entry, outcome)
                else:
                    await self._refuse_stranger(entry, outcome)
        else:
            await self._tell(made.events, made.decided)

    async def _record_one(self, held: Holding, entry: str, report: Outcome | Observation) -> None:
        try:
            made = await self._record(held, [report] if isinstance(report, Outcome) else report, entry)
        except PASSING:
            raise
        except epochs.Superseded:
            await self._refuse_stranger(entry, report)
            await self._end("reload")
        except Exception as fault:
            why = f"{fault}." if isinstance(fault, Unfit) else "The record does not take it."
            if not isinstance(fault, Unfit):
                log.exception("engine_message_failed")
            if isinstance(report, Outcome):
                await recording.reject(
                    self._pool, held.epoch, {part.change_id for part in report.outcomes}, BAD_OUTCOME
                )
            await self._refuse(entry, "unfit", why, held.epoch)
            await self._give_up(held)
        else:
            await self._tell(made.events, made.decided)

    async def _record(self, held: Holding, said: Observation | list[Outcome], entry: str) -> recording.Made:
        if isinstance(said, Observation):
            made = await recording.record_observation(self._pool, held.epoch, held.engine, said)
        else:
            ago_s = max(0, await clock_ms(self._redis) - written_ms(entry)) / 1000
            made = await recording.record_outcomes(self._pool, held.epoch, said, ago_s=ago_s, grace_s=self._grace_s)
            held.open -= {part.change_id for outcome in said for part in outcome.outcomes}
        self._pos = made.pos
        held.world.update(made.entities)
        return made

    async def _tell(self, events: Sequence[Event] = (), decided: Sequence[str] = ()) -> None:
        held = self._holding
        if held is None:
            await self._teller.tell_decided(decided)
        else:
            await self._teller.tell(held.epoch, held.world, events, decided)

    async def _keep_copy(self, held: Holding) -> None:
        try:
            await self._teller.keep(held.epoch)
        except epochs.Superseded:
            await self._end("reload")

    async def _give_up(self, held: Holding) -> None:
        """Let the engine begin anew at once: its world is another one than ours."""
        await epochs.release(self._pool, held.epoch)
        await self._end("out_of_step")

    async def _refuse_stranger(self, entry: str, report: Numbered | Unreadable) -> None:
        """Told once a second: who goes on talking under an epoch that is over must not fill the stream of who holds one."""
        now = self._clock()
        if now - self._refused_at.get(report.epoch, -_REFUSALS_EACH_S) < _REFUSALS_EACH_S:
            return
        if len(self._refused_at) >= _STRANGERS_MAX:
            self._refused_at.clear()
        self._refused_at[report.epoch] = now
        if isinstance(report, Unreadable) and report.epoch is None:
            await self._refuse(entry, report.code, report.message, None)
        else:
            await self._refuse(entry, "old_epoch", "This epoch is not in force: say hello.", report.epoch)

    async def _refuse(self, entry: str, code: RefusalCode, message: str, epoch: int | None) -> None:
        log.warning("engine_message_refused", code=code, why=message)
        await self._orders.add(Refusal(of=entry, code=code, message=message, epoch=epoch))

    async def _end(self, reason: EndReason) -> None:
        held, self._holding, self._pos = self._holding, None, None
        if held is not None:
            log.warning("engine_epoch_ended", epoch=held.epoch, engine=held.engine, reason=reason)
            await self._orders.add(Ended(epoch=held.epoch, reason=reason))
            await outbox.forget_sent(self._pool)

    async def _run_of_redis(self) -> str:
        """Which run of the server this is: one that began anew may have lost the latest of its streams."""
        found = await self._redis.info("server")  # pyright: ignore[reportUnknownMemberType]  # redis-py's hints
        return str(found.get("run_id", ""))

    async def _said(self, epoch: int) -> int:
        """The number of the latest message to the engine of this epoch."""
        for _, raw in await self._orders.latest(_RESUME_MAX):
            order = read_order(raw)
            if not isinstance(order, (Unreadable, Taken, Refusal, Ended)) and order.epoch == epoch:
                return order.n
        return 0
