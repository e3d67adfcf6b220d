"""Owns the money: what a request may cost is set aside before it is sent, what it cost is booked after it, under caps of a UTC day."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import date, timedelta
from decimal import Decimal
from math import inf
from typing import Any, NamedTuple

import asyncpg

from body_broker.storage.postgres import LOST, Pool
from body_broker.telemetry import get_logger
from body_broker.text import new_id
from tiers.catalogue import Caps, EngineSpec
from tiers.counts import Counts
from tiers.faults import EngineFault
from tiers.model import Tier, Usage
from tiers.money import A_DOLLAR, Figure, Reservation, Standing, cap_of, cost_of, tokens_of
from tiers.requests import BUDGET_MS_MAX
from tiers.wire.base import Ask

log = get_logger(__name__)

EVERYBODY = "*"
"""The asker under which a tier's sum stands."""
RESERVED_S = BUDGET_MS_MAX / 1_000 + 300.0
"""After how long whoever reserved counts as dead, and all of it as spent: no request lives as long; what does says so itself."""
BELIEVED_S = 5.0
"""How long a cap that was found used up is taken for it without asking: money that is given back is seen within this time."""
_NOTED_EVERY_S = 10.0
_PATIENCE_S = 1.0
"""How long a request waits for the database with the money, before it is sent."""
_LAST_S = 5.0
_KNOWN_MAX = 500
_FAILED: tuple[type[BaseException], ...] = (*LOST, asyncpg.PostgresError)

_RESERVE = """
SELECT * FROM spend_reserve($1, $2, $3, $4, $5::bigint, $6::bigint, $7::bigint, make_interval(secs => $8::float8))
"""
_SETTLE = "SELECT spend_settle($1, $2::bigint, $3::bigint, $4::bigint, $5::bigint)"
_NOTE = "SELECT spend_note($1, $2, $3::bigint, $4::bigint, $5::bigint)"
_LOOK = """
SELECT tier, asker, reserved + spent AS taken, day + interval '1 day' - (clock_timestamp() AT TIME ZONE 'UTC') AS day_left
FROM spend_day WHERE day = (clock_timestamp() AT TIME ZONE 'UTC')::date AND asker IN ('*', $1)
"""
_FIGURES = """
SELECT * FROM spend_day WHERE day = coalesce($1::date, (clock_timestamp() AT TIME ZONE 'UTC')::date)
ORDER BY tier, asker = '*' DESC, spent DESC, asker
"""


class _Left(NamedTuple):
    """What was left of a cap, until when that is believed, and when its day ends."""

    amount: int
    until: float
    ends: float


class CostLedger:
    """The money of one process's requests, kept in PostgreSQL for all of them; made by `opened`.

    Args:
        pool: Of the database.
        caps: What a day may cost.
        counts: Told what was spent.
        engines: Those that can be asked; None where nobody knows.
        clock: Seconds, for what is believed; the database decides which day it is.
    """

    def __init__(
        self,
        pool: Pool,
        caps: Caps,
        counts: Counts,
        *,
        engines: Iterable[EngineSpec] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool, self._counts, self._clock = pool, counts, clock
        self._tier_caps = {tier: cap_of(caps.tier_day.get(tier)) for tier in Tier}
        self._asker_caps = {tier: cap_of(caps.asker_day.get(tier)) for tier in Tier}
        self._single_caps: Mapping[str, int] = {asker: cap_of(dollars) for asker, dollars in caps.askers.items()}
        # Where nothing costs, nothing is spent out.
        self._tiers = tuple(Tier if engines is None else dict.fromkeys(e.tier for e in engines if e.price is not None))
        self._left: dict[tuple[Tier, str], _Left] = {}
        self._noted: dict[tuple[Tier, str], tuple[int, Usage]] = {}
        self._begun: set[asyncio.Task[Any]] = set()

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, pool: Pool, caps: Caps, counts: Counts, *, engines: Iterable[EngineSpec] | None = None
    ) -> AsyncGenerator[CostLedger]:
        """A ledger; on the way out everything begun is booked and everything noted written, if the database answers."""
        ledger = cls(pool, caps, counts, engines=engines)
        writing = asyncio.create_task(ledger._write_now_and_then(), name="spend-notes")
        try:
            yield ledger
        finally:
            writing.cancel()
            with suppress(asyncio.CancelledError):
                await writing
            with suppress(TimeoutError):  # what is not booked now is swept
                async with asyncio.timeout(_LAST_S):
                    await ledger.settled()
                    await ledger.write()

    def _caps(self, tier: Tier, tenant: str) -> tuple[int, int]:
        """Everybody's in this tier, and this asker's."""
        return self._tier_caps[tier], self._single_caps.get(tenant, self._asker_caps[tier])

    async def reserve(
        self,
        tier: Tier,
        tenant: str,
        spec: EngineSpec,
        ask: Ask,
        bound: int,
        *,
        ttl_s: float = RESERVED_S,
    ) -> Reservation | None:
        """Money for the most that a request can cost; None where the engine's tokens cost nothing.

        Args:
            tier: Whose cap.
            tenant: Who pays.
            spec: Who is to be asked.
            ask: What it is to be asked.
            bound: The most tokens that its prompt can have.
            ttl_s: After how long whoever reserved counts as dead: longer than the answer can take.

        Raises:
            EngineFault: `budget`: a cap has no room for it, or nobody can say whether it has.
        """
        price = spec.price
        if price is None:
            return None
        caps = self._caps(tier, tenant)
        amount = cost_of(price, Usage(bound, ask.max_tokens))
        if amount > min(caps) or min(caps) == 0:
            raise EngineFault("budget")
        reservation = Reservation(new_id("spd"), tier, tenant, price, amount)
        about = (reservation.id, tier, tenant, spec.name, amount, *caps, ttl_s)
        asked = self._begin(self._pool.fetchrow(_RESERVE, *about))
        try:
            async with asyncio.timeout(_PATIENCE_S):
                row = await asyncio.shield(asked)
        except BaseException as error:
            self._begin(self._undo(asked, reservation))  # it may be there, or come to be
            if not isinstance(error, _FAILED):
                raise
            log.warning("spend_not_reserved", tier=tier, error=type(error).__name__)
            raise EngineFault("budget") from error
        assert row is not None, "a function with results returns a row"
        self._believe(tier, tenant, row["tier_left"], row["asker_left"], row["day_left"])
        if not row["granted"]:
            raise EngineFault("budget")
        return reservation

    def settle(
        self, reservation: Reservation | None, tier: Tier, tenant: str, usage: Usage, *, maybe: bool = False
    ) -> float | None:
        """Book what it cost, soon, and give the rest back; what that is in US dollars.

        Args:
            reservation: As `reserve` gave it.
            tier: Whose tokens these are.
            tenant: Who asked.
            usage: As the engine counted.
            maybe: It did not say: all that was set aside counts as spent, and what it cost nobody knows.
        """
        if reservation is None:
            self.note(tier, tenant, usage)
            return 0.0
        cost = reservation.amount if maybe else cost_of(reservation.price, usage)
        self._counts.spent(tier, cost / A_DOLLAR)
        self._begin(self._book(reservation, cost, 1, usage))
        return None if maybe else cost / A_DOLLAR

    def release(self, reservation: Reservation | None) -> None:
        """Give all of it back, soon: nothing was generated."""
        if reservation is not None:
            self._begin(self._book(reservation, 0, 0, Usage()))

    def forfeit(self, reservation: Reservation | None) -> None:
        """Count all of it as spent, soon: it may have been."""
        if reservation is not None:
            self._counts.spent(reservation.tier, reservation.amount / A_DOLLAR)
            self._begin(self._book(reservation, reservation.amount, 1, Usage()))

    def note(self, tier: Tier, tenant: str, usage: Usage) -> None:
        """Count a request that cost nothing; written together with others within seconds, and lost with the process."""
        requests, before = self._noted.get((tier, tenant), (0, Usage()))
        self._noted[tier, tenant] = (requests + 1, before.plus(usage))

    def spent_out(self, tenant: str) -> frozenset[Tier]:
        """The tiers in which nothing is left for this asker, as far as this process knows without asking."""
        return frozenset(tier for tier in self._tiers if self._is_out(tier, tenant))

    async def look(self, tenant: str) -> None:
        """Ask the database how this asker stands, where this process does not know: for `spent_out`, right after.

        Where the database does not say, as much is known as before.
        """
        asked = [tier for tier in self._tiers if min(self._caps(tier, tenant)) > 0]
        now = self._clock()
        if all((left := self._left.get((tier, tenant))) is not None and left.until > now for tier in asked):
            return
        try:
            async with asyncio.timeout(_PATIENCE_S):
                rows = await self._pool.fetch(_LOOK, tenant)
        except _FAILED as error:
            log.warning("spend_not_looked_up", error=type(error).__name__)
            return
        taken = {(row["tier"], row["asker"]): row for row in rows}
        for tier in asked:
            caps = self._caps(tier, tenant)
            found = [taken.get((tier, whose)) for whose in (EVERYBODY, tenant)]
            tier_left, asker_left = (cap - (row["taken"] if row else 0) for cap, row in zip(caps, found, strict=True))
            day_left = found[0]["day_left"] if found[0] else timedelta.max
            self._believe(tier, tenant, tier_left, asker_left, day_left)

    def words(self, tenant: str) -> str:
        """How this asker stands in each tier that costs money, for them alone, as far as this process knows without asking."""
        stands = [self._standing(tier, tenant) for tier in self._tiers]
        return " ".join(stand.words() for stand in [each for each in stands if each.is_out] or stands)

    def _is_out(self, tier: Tier, tenant: str) -> bool:
        return self._standing(tier, tenant).is_out

    def _standing(self, tier: Tier, tenant: str) -> Standing:
        now = self._clock()
        known = [self._left.get((tier, whose)) for whose in (EVERYBODY, tenant)]
        everybody, asker = (left if left is not None and left.until > now else None for left in known)
        return Standing(
            tier,
            tenant,
            *self._caps(tier, tenant),
            everybody_left=None if everybody is None else everybody.amount,
            asker_left=None if asker is None else asker.amount,
            day_left=None if asker is None or asker.ends == inf else timedelta(seconds=asker.ends - now),
        )

    def _believe(self, tier: Tier, tenant: str, tier_left: int, asker_left: int, day_left: timedelta) -> None:
        asked = self._clock()
        until = asked + min(BELIEVED_S, day_left.total_seconds())  # a new day has new money
        ends = inf if day_left == timedelta.max else asked + day_left.total_seconds()
        if len(self._left) > _KNOWN_MAX:
            now = self._clock()
            self._left = {key: left for key, left in self._left.items() if left.until > now}
        self._left[tier, EVERYBODY] = _Left(tier_left, until, ends)
        self._left[tier, tenant] = _Left(asker_left, until, ends)

    async def figures(self, day: date | None = None) -> tuple[Figure, ...]:
        """What was taken in a UTC day, today's unless told; everybody's sum first in each tier.

        Raises:
            OSError: The database is away (any of `storage.postgres.LOST`).
        """
        return tuple(
            Figure(
                row["tier"],
                row["asker"],
                Decimal(row["reserved"]) / A_DOLLAR,
                Decimal(row["spent"]) / A_DOLLAR,
                row["requests"],
                row["prompt_tokens"],
                row["completion_tokens"],
            )
            for row in await self._pool.fetch(_FIGURES, day)
        )

    async def settled(self) -> None:
        """Return once everything that was begun is booked, or has failed to be."""
        while self._begun:
            await asyncio.wait(self._begun)

    async def write(self) -> None:
        """Write what was noted; what cannot be written now waits for the next time."""
        for tier, tenant in tuple(self._noted):
            if (noted := self._noted.pop((tier, tenant), None)) is not None:
                # Whoever is cancelled here leaves one to `settled` and the rest noted.
                await asyncio.shield(self._begin(self._write_note(tier, tenant, *noted)))

    async def _write_note(self, tier: Tier, tenant: str, requests: int, usage: Usage) -> None:
        try:
            tokens = (tokens_of(usage.prompt), tokens_of(usage.completion))
            await self._pool.execute(_NOTE, tier, tenant, requests, *tokens)
        except _FAILED as error:
            log.warning("spend_not_noted", tier=tier, error=type(error).__name__)
            more, since = self._noted.get((tier, tenant), (0, Usage()))
            self._noted[tier, tenant] = (requests + more, usage.plus(since))

    async def _write_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(_NOTED_EVERY_S)
            await self.write()

    def _begin(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._begun.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._begun.discard(task)
        if not task.cancelled():
            task.exception()  # seen: whoever waited for it was told

    async def _undo(self, asked: asyncio.Task[Any], reservation: Reservation) -> None:
        await asyncio.wait((asked,))
        await self._book(reservation, 0, 0, Usage())

    async def _book(self, reservation: Reservation, cost: int, requests: int, usage: Usage) -> None:
        """What cannot be booked stays reserved, and is swept as spent."""
        try:
            tokens = (tokens_of(usage.prompt), tokens_of(usage.completion))
            await self._pool.fetchval(_SETTLE, reservation.id, cost, requests, *tokens)
        except _FAILED as error:
            log.warning("spend_not_booked", tier=reservation.tier, error=type(error).__name__)
