"""Owns how much a principal may call, over all hubs: a rate and a number of open calls, leased in chunks, never exceeded."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from body_broker.background import running
from body_broker.calls import Caller
from body_broker.errors import RateLimited, TooBusy, Unavailable
from body_broker.storage.redis import LOST, Redis
from body_broker.telemetry import get_logger

log = get_logger(__name__)

LEASE_S = 5.0
_RENEW_S = 1.0
_TIMEOUT_S = 1.0
# A process that stood still all that time has not read yet what came meanwhile: it does before it gives Redis up.
_READ_S = 0.1
# A slot that another hub is just giving back is worth a moment: so long, and so many times.
_PATIENCE_S = 0.01
_PATIENCE = 8

# One hash for each lease's name: the bucket (`level`, `at`) and a field per hub, "tokens slots until sequence". Tokens that hubs hold
# count as if they were still in the bucket, so that level + leased never exceeds the burst: whatever hubs do with their
# leases, no window of T seconds admits more than burst + rate * T. Times are Redis' own, in microseconds.
# ARGV: hub, sequence, rate, burst, tokens kept, tokens wanted, slots in all, slots needed, slots to spare, lease.
_SETTLE = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local hub, sequence = 'hub:' .. ARGV[1], tonumber(ARGV[2])
local rate, burst, kept, want = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local most, need, spare, lease = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local level, at, tokens, slots = burst, now, 0, 0
local state = redis.call('HGETALL', KEYS[1])
for i = 1, #state, 2 do
  local name, value = state[i], state[i + 1]
  if name == 'level' then level = tonumber(value)
  elseif name == 'at' then at = tonumber(value)
  else
    local t, s, till, last = string.match(value, '^(%d+) (%d+) (%d+) (%d+)$')
    if name == hub then
      if tonumber(last) >= sequence then return false end
    elseif tonumber(till) <= now then redis.call('HDEL', KEYS[1], name)
    else tokens = tokens + tonumber(t) slots = slots + tonumber(s) end
  end
end
level = math.max(0, math.min(level + math.max(0, now - at) * rate / 1000000, burst - tokens - kept))
local got = math.max(0, math.min(want, math.floor(level)))
level = level - got
local free = math.max(0, most - slots)
local roomy = free - need >= most / 2
if roomy then need = need + spare end
local held = math.min(need, free)
redis.call('HSET', KEYS[1], 'level', string.format('%.6f', level), 'at', string.format('%.0f', now),
  hub, string.format('%.0f %.0f %.0f %.0f', kept + got, held, now + lease, sequence))
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.min(2592000000, math.ceil(burst / rate * 1000) + lease / 500)))
return {got, held, roomy and 1 or 0, math.ceil(math.min(2592000000000, math.max(0, 1 - level) / rate * 1000000))}
"""


class _Lease:
    """What this hub holds under one name: tokens and slots of a principal, or slots alone of the work in somebody's name.

    Times are monotonic seconds.
    """

    __slots__ = (
        "begun",
        "busy",
        "empty_until",
        "freed",
        "held",
        "left",
        "name",
        "rated",
        "roomy",
        "settled_at",
        "settling",
        "thirsty",
        "until",
        "used_at",
        "waiting",
    )

    def __init__(self, name: str, *, rated: bool) -> None:
        self.name, self.rated = name, rated
        self.left = 0  # tokens
        self.held = 0  # slots, of which
        self.busy = 0  # are in use
        self.thirsty = self.waiting = 0  # calls that wait for a token, and for a slot
        self.roomy = True  # plenty of slots are free over all hubs, so that unused ones may wait here for the next call
        self.until = self.used_at = self.settled_at = self.empty_until = float("-inf")
        self.settling: asyncio.Task[None] | None = None
        self.begun = 0  # how often it was settled, the one under way included
        self.freed = asyncio.Event()

    def unused(self) -> bool:
        """Whether slots lie here that nobody here needs."""
        return self.held > self.busy + self.waiting


class Limits:
    """The limits of every principal, as one hub sees them; made by `open_limits`.

    A call counts for its asker alone: a tier that works for somebody uses up that person's allowance, never the tier's own, so
    that no asker can starve another's conversations. Its rate is the asker's own. Its open calls have as many places as the
    asker's, of their own for each chain: whoever has every place of theirs in a talk with a tier must not keep out the tools of
    those very talks.

    A hub leases tokens and slots in chunks, so that a call usually costs no round trip; at most one chunk lies unused in each.
    What a killed hub held comes back after `LEASE_S`. The one exception to the bound on open calls: those that go on running in
    a hub that has lost Redis for longer than its lease are no longer counted; it admits no further ones.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        rate_per_s: float,
        concurrency_max: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate_per_s, self._burst, self._slots_max = rate_per_s, max(1.0, rate_per_s), concurrency_max
        self._chunk, self._spare = max(1, int(self._burst) // 10), concurrency_max // 8
        self._script, self._monotonic = redis.register_script(_SETTLE), monotonic
        self._hub, self._sequence = secrets.token_hex(8), 0
        self._leases: dict[str, _Lease] = {}

    async def enter(self, caller: Caller) -> None:
        """Count one call in; `leave` must follow if and only if this returns.

        Raises:
            RateLimited: The principal's rate is used up; `retry_after_s` says until when.
            TooBusy: The principal has as many calls open as it may.
            Unavailable: Redis is down and what this hub had leased is used up.
        """
        rated = self._lease(caller.asker, rated=True)
        places = rated if (name := _places_of(caller)) == caller.asker else self._lease(name, rated=False)
        now = self._monotonic()
        if self._take(rated, places, now):
            if rated.left * 2 <= self._chunk and rated.settling is None and now >= rated.empty_until:
                self._begin(rated)
            return
        rated.thirsty += 1
        places.waiting += 1
        try:
            await self._wait(rated, places)
        finally:
            rated.thirsty -= 1
            places.waiting -= 1

    def leave(self, caller: Caller) -> None:
        """The call that entered has ended."""
        places = self._leases[_places_of(caller)]
        places.busy -= 1
        if places.waiting:
            places.freed.set()
        if not places.roomy and places.settling is None and places.unused():
            self._begin(places)

    async def keep(self) -> None:
        """Renew what is in use and give back what is not, until cancelled."""
        while True:
            await asyncio.sleep(_RENEW_S)
            await self.tidy()

    async def tidy(self) -> None:
        """One round of `keep`: leases of open calls are renewed, idle ones given back and forgotten."""
        now = self._monotonic()
        begun: list[asyncio.Task[None]] = []
        for name, lease in list(self._leases.items()):
            used = lease.busy or lease.waiting or lease.thirsty
            idle = not used and now - lease.used_at >= _RENEW_S
            if lease.settling is not None:
                continue
            if not idle:
                if now - lease.settled_at >= _RENEW_S:
                    begun.append(self._begin(lease))
                continue
            del self._leases[name]
            if now < lease.until and (lease.left or lease.held):
                begun.append(self._begin(lease, give_back=True))
        await asyncio.gather(*begun, return_exceptions=True)

    async def give_all_back(self) -> None:
        """Return every lease; called once, when no call is left."""
        while begun := [lease.settling for lease in self._leases.values() if lease.settling]:
            await asyncio.gather(*begun, return_exceptions=True)
        begun = [self._begin(lease, give_back=True) for lease in self._leases.values()]
        await asyncio.gather(*begun, return_exceptions=True)

    def _lease(self, name: str, *, rated: bool) -> _Lease:
        lease = self._leases.get(name)
        if lease is None:
            lease = self._leases[name] = _Lease(name, rated=rated)
        return lease

    def _take(self, rated: _Lease, places: _Lease, now: float) -> bool:
        """Take a token and a slot, or neither."""
        if now >= rated.until or rated.left < 1 or now >= places.until or places.busy >= places.held:
            return False
        rated.left -= 1
        places.busy += 1
        rated.used_at = places.used_at = now
        return True

    async def _wait(self, rated: _Lease, places: _Lease) -> None:
        patience, answered = _PATIENCE, places.begun
        while not self._take(rated, places, now := self._monotonic()):
            if now < rated.until and rated.left < 1 and now < rated.empty_until:
                raise RateLimited(
                    f"More than {self._rate_per_s:g} calls per second.",
                    retry_after_s=rated.empty_until - now,
                    details={"limit_per_s": self._rate_per_s},
                )
            lacking = rated if now >= rated.until or rated.left < 1 else places
            settling = lacking.settling or self._begin(lacking)
            question = lacking.begun
            await asyncio.shield(settling)
            if lacking is not places or question <= answered or rated.left < 1 or places.busy < places.held:
                continue  # it was asked before we came, or there is something to take, or the reason is at the top
            answered = question
            patience -= 1
            if not patience:
                raise TooBusy(f"{self._slots_max} calls are open already.", details={"limit": self._slots_max})
            places.freed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE_S):
                    await places.freed.wait()

    def _begin(self, lease: _Lease, *, give_back: bool = False) -> asyncio.Task[None]:
        lease.begun += 1
        lease.settling = task = asyncio.create_task(self._settle(lease, give_back=give_back))
        task.add_done_callback(
            lambda t: t.cancelled() or t.exception()
        )  # nobody may be waiting: it is logged where it is raised
        return task

    async def _settle(self, lease: _Lease, *, give_back: bool) -> None:
        try:
            await self._ask(lease, give_back=give_back)
        finally:
            lease.settling = None  # here, not in a callback: who finds it must be able to wait for it
        if not give_back and not lease.roomy and lease.unused():
            self._begin(lease)

    async def _ask(self, lease: _Lease, *, give_back: bool) -> None:
        """Tell Redis what is kept and needed, and take what it grants."""
        began = self._monotonic()
        if began >= lease.until or give_back:
            lease.left = lease.held = 0
        kept, need = lease.left, lease.busy + lease.waiting
        # Until Redis has answered, only what it cannot refuse is ours.
        lease.held = min(lease.held, need)
        want = max(self._chunk, lease.thirsty) - kept if lease.rated and not give_back else 0
        spare = 0 if give_back else self._spare
        self._sequence += 1
        numbers = (self._sequence, self._rate_per_s, self._burst, kept, max(0, want), self._slots_max, need, spare)
        question = self._script([f"limit:{lease.name}"], [self._hub, *numbers, int(LEASE_S * 1_000_000)])
        try:
            granted = await _answer_to(question)
        except LOST as error:
            log.warning("limits_not_reached", error=type(error).__name__)
            raise Unavailable("Redis cannot be asked what is left.", details={"component": "redis"}) from error
        if granted is None:  # a later question of ours was answered before this one
            return
        got, lease.held, roomy, wait_us = granted
        lease.left += got
        lease.roomy = bool(roomy)
        lease.settled_at, lease.until = began, began + LEASE_S
        if want > 0 and not got:
            lease.empty_until = self._monotonic() + wait_us / 1_000_000


async def _answer_to(question: Awaitable[Any]) -> Any:  # what the script returns
    """The answer.

    Raises:
        TimeoutError: There is none in time.
    """
    asking = asyncio.ensure_future(question)
    try:
        for within_s in (_TIMEOUT_S, _READ_S):
            if (await asyncio.wait({asking}, timeout=within_s))[0]:
                return asking.result()
        raise TimeoutError
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)  # nobody goes on before its connection is given back


def _places_of(caller: Caller) -> str:
    """Under which name a call's place is leased: the asker's, or in a conversation the whole chain's."""
    return caller.asker if caller.conversation_of is None else caller.requester


@asynccontextmanager
async def open_limits(
    redis: Redis,
    *,
    rate_per_s: float,
    concurrency_max: int,
    monotonic: Callable[[], float] = time.monotonic,
) -> AsyncGenerator[Limits]:
    """Limits that are kept until the way out, when everything leased goes back.

    Args:
        redis: Where all hubs meet.
        rate_per_s: Calls per second of one principal; as many may come at once.
        concurrency_max: Calls one principal may have open, and as many again each chain of tiers that works for them.
        monotonic: Seconds.
    """
    limits = Limits(redis, rate_per_s=rate_per_s, concurrency_max=concurrency_max, monotonic=monotonic)
    try:
        async with running(limits.keep(), name="limits-keeper"):
            yield limits
    finally:
        await limits.give_all_back()
