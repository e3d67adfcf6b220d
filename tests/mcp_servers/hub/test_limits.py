"""Limits over two hubs: never more than allowed, whatever is leased where, and what a dead hub held comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

import pytest

from body_broker.calls import Caller
from body_broker.errors import RateLimited, TooBusy, Unavailable
from body_broker.storage.redis import Redis, open_redis
from mcp_servers.hub.limits import LEASE_S, Limits, open_limits
from tests.mcp_servers.hub.clocks import Clock
from tests.mcp_servers.hub.wires import wire_to_redis

ANNA = Caller(("person:anna",), {}, "ses_anna-1234")
SILVER_FOR_ANNA = Caller(("person:anna", "tier:silver"), {}, "cnv_anna-1234", conversation_of=ANNA.session)
SILVER = Caller(("tier:silver",), {}, "ses_silver-12")
A_DAY = 1 / 86400  # a rate at which nothing comes back during a test
KEY = "limit:person:anna"

OpenHub = Callable[..., AbstractAsyncContextManager[Limits]]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_hub(redis: Redis, clock: Clock) -> OpenHub:
    def make(rate_per_s: float = 100_000, concurrency_max: int = 1000) -> AbstractAsyncContextManager[Limits]:
        return open_limits(redis, rate_per_s=rate_per_s, concurrency_max=concurrency_max, monotonic=clock)

    return make


async def two(stack: AsyncExitStack, open_hub: OpenHub, **limits: float) -> tuple[Limits, Limits]:
    return await stack.enter_async_context(open_hub(**limits)), await stack.enter_async_context(open_hub(**limits))


@pytest.fixture
async def stack() -> AsyncGenerator[AsyncExitStack]:
    async with AsyncExitStack() as found:
        yield found


async def admitted(*attempts: tuple[Limits, Caller]) -> list[BaseException | None]:
    """What came of calls entering at once, None for those let in."""
    return list(await asyncio.gather(*[hub.enter(who) for hub, who in attempts], return_exceptions=True))


async def now_us(redis: Redis) -> int:
    seconds, microseconds = await redis.time()  # pyright: ignore[reportUnknownMemberType]  # redis-py's hints
    return seconds * 1_000_000 + microseconds


async def freeze(redis: Redis, tokens: float) -> None:
    """The bucket holds so many tokens and, at the rates of these tests, gains none."""
    await redis.hset(KEY, mapping={"level": str(tokens), "at": str(await now_us(redis))})


async def test_two_hubs_under_load_admit_exactly_what_the_bucket_holds(
    open_hub: OpenHub, redis: Redis, stack: AsyncExitStack
) -> None:
    hubs = await two(stack, open_hub, rate_per_s=A_DAY)
    await freeze(redis, 1)

    found = await admitted(*[(hubs[n % 2], ANNA) for n in range(40)])

    assert found.count(None) == 1
    assert {type(f) for f in found if f} == {RateLimited}


@pytest.mark.parametrize("limit", [7, 64, 200])
async def test_a_burst_over_two_hubs_never_exceeds_the_rate(
    open_hub: OpenHub, redis: Redis, stack: AsyncExitStack, limit: int
) -> None:
    hubs = await two(stack, open_hub, rate_per_s=limit)
    began_us = await now_us(redis)
    let_in = 0
    for _ in range(6):
        found = await admitted(*[(hubs[n % 2], ANNA) for n in range(limit)])
        let_in += found.count(None)
        for n, outcome in enumerate(found):
            if outcome is None:
                hubs[n % 2].leave(ANNA)
    elapsed_s = (await now_us(redis) - began_us) / 1e6

    assert let_in <= limit + limit * elapsed_s
    assert let_in >= limit - 2 * max(1, limit // 10), "at most a chunk lies unused in each hub"


async def test_a_lease_kept_for_later_does_not_add_to_a_full_bucket(
    open_hub: OpenHub, redis: Redis, stack: AsyncExitStack
) -> None:
    """One hub leases, time fills the bucket, then both spend: together still one burst."""
    hubs = await two(stack, open_hub, rate_per_s=100)
    await hubs[0].enter(ANNA)
    hubs[0].leave(ANNA)
    await redis.hset(KEY, "at", str(await now_us(redis) - 3_600_000_000))

    began_us = await now_us(redis)
    found = await admitted(*[(hubs[n % 2], ANNA) for n in range(300)])
    elapsed_s = (await now_us(redis) - began_us) / 1e6

    assert found.count(None) <= 100 + 100 * elapsed_s


async def test_a_refusal_says_when_the_next_call_may_come(open_hub: OpenHub, stack: AsyncExitStack) -> None:
    hub = await stack.enter_async_context(open_hub(rate_per_s=0.1))
    await hub.enter(ANNA)

    with pytest.raises(RateLimited) as refused:
        await hub.enter(ANNA)

    assert refused.value.retry_after_s == pytest.approx(10, abs=1)
    assert refused.value.details == {"limit_per_s": 0.1}


async def test_tokens_come_back_with_time(open_hub: OpenHub, redis: Redis, stack: AsyncExitStack, clock: Clock) -> None:
    hub = await stack.enter_async_context(open_hub(rate_per_s=0.1))
    await hub.enter(ANNA)
    with pytest.raises(RateLimited):
        await hub.enter(ANNA)
    await redis.hset(KEY, "at", str(await now_us(redis) - 10_000_000))
    clock.pass_s(10)

    await hub.enter(ANNA)


async def test_a_principal_over_its_rate_is_refused_without_asking_redis(
    open_hub: OpenHub, redis: Redis, stack: AsyncExitStack
) -> None:
    hub = await stack.enter_async_context(open_hub(rate_per_s=A_DAY))
    await hub.enter(ANNA)
    with pytest.raises(RateLimited):
        await hub.enter(ANNA)
    before = await _scripts_run(redis)

    found = await admitted(*[(hub, ANNA)] * 100)

    assert {type(f) for f in found} == {RateLimited}
    assert await _scripts_run(redis) == before


async def test_most_calls_cost_no_round_trip(open_hub: OpenHub, redis: Redis, stack: AsyncExitStack) -> None:
    hub = await stack.enter_async_context(open_hub(rate_per_s=1000, concurrency_max=64))
    before = await _scripts_run(redis)

    for _ in range(500):
        await hub.enter(ANNA)
        hub.leave(ANNA)

    assert await _scripts_run(redis) - before <= 500 / 25


async def test_one_principal_s_limit_is_not_another_s_and_a_tier_s_work_counts_against_its_asker_s_rate(
    open_hub: OpenHub, stack: AsyncExitStack
) -> None:
    hubs = await two(stack, open_hub, rate_per_s=A_DAY)
    await hubs[0].enter(SILVER_FOR_ANNA)

    with pytest.raises(RateLimited):
        await hubs[1].enter(ANNA)
    await hubs[1].enter(SILVER)


@pytest.mark.parametrize("limit", [1, 4, 64])
async def test_two_hubs_never_have_more_calls_open_than_allowed(
    open_hub: OpenHub, stack: AsyncExitStack, limit: int
) -> None:
    hubs = await two(stack, open_hub, concurrency_max=limit)

    found = await admitted(*[(hubs[n % 2], ANNA) for n in range(limit + 20)])

    assert found.count(None) == limit
    assert {type(f) for f in found if f} == {TooBusy}


@pytest.mark.parametrize("limit", [1, 2, 5, 16])
async def test_the_number_of_open_calls_holds_at_every_moment_of_a_storm(
    open_hub: OpenHub, stack: AsyncExitStack, limit: int
) -> None:
    hubs = await two(stack, open_hub, concurrency_max=limit)
    open_now = most = done = 0

    async def call(n: int) -> None:
        nonlocal open_now, most, done
        hub = hubs[n % 2]
        try:
            await hub.enter(ANNA)
        except TooBusy:
            return
        open_now += 1
        most = max(most, open_now)
        for _ in range(n % 7):
            await asyncio.sleep(0)
        open_now -= 1
        hub.leave(ANNA)
        done += 1

    await asyncio.gather(*[call(n) for n in range(600)])

    assert limit / 2 <= most <= limit
    assert done >= limit


async def test_one_call_at_a_time_alternating_between_hubs_is_never_refused(
    open_hub: OpenHub, stack: AsyncExitStack
) -> None:
    hubs = await two(stack, open_hub, concurrency_max=1)

    for n in range(60):
        await hubs[n % 2].enter(ANNA)
        hubs[n % 2].leave(ANNA)


async def test_a_slot_freed_in_one_hub_is_had_in_the_other(open_hub: OpenHub, stack: AsyncExitStack) -> None:
    one, two_ = await two(stack, open_hub, concurrency_max=2)
    await one.enter(ANNA)
    await one.enter(ANNA)
    with pytest.raises(TooBusy) as refused:
        await two_.enter(ANNA)
    assert refused.value.details == {"limit": 2}

    one.leave(ANNA)
    await two_.enter(ANNA)

    with pytest.raises(TooBusy):
        await one.enter(ANNA)


async def test_a_waiting_call_is_let_in_when_one_here_ends(open_hub: OpenHub, stack: AsyncExitStack) -> None:
    hub = await stack.enter_async_context(open_hub(concurrency_max=1))
    await hub.enter(ANNA)
    waiting = asyncio.create_task(hub.enter(ANNA))
    await asyncio.sleep(0)
    hub.leave(ANNA)

    await waiting


async def test_a_call_given_up_while_it_waits_holds_nothing(open_hub: OpenHub, stack: AsyncExitStack) -> None:
    hub = await stack.enter_async_context(open_hub(concurrency_max=1))
    await hub.enter(ANNA)
    waiting = asyncio.create_task(hub.enter(ANNA))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    hub.leave(ANNA)

    await hub.enter(ANNA)
    with pytest.raises(TooBusy):
        await hub.enter(ANNA)


async def test_what_a_killed_hub_held_comes_back_when_its_lease_ends(
    open_hub: OpenHub, redis: Redis, stack: AsyncExitStack, clock: Clock
) -> None:
    # Never opened, so nobody renews or gives back: as after kill -9.
    dead = Limits(redis, rate_per_s=100_000, concurrency_max=4, monotonic=clock)
    for _ in range(4):
        await dead.enter(ANNA)
    hub = await stack.enter_async_context(open_hub(concurrency_max=4))
    with pytest.raises(TooBusy):
        await hub.enter(ANNA)

    await _let_leases_end(redis)

    for _ in range(4):
        await hub.enter(ANNA)
    with pytest.raises(TooBusy):
        await hub.enter(ANNA)
    clock.pass_s(LEASE_S)
    with pytest.raises(TooBusy):
        await dead.enter(ANNA)


async def test_open_calls_keep_their_slots_for_as_long_as_the_hub_renews_them(
    open_hub: OpenHub, redis: Redis, stack: AsyncExitStack, clock: Clock
) -> None:
    one, two_ = await two(stack, open_hub, concurrency_max=2)
    await one.enter(ANNA)
    await one.enter(ANNA)
    until = await _lease_ends_us(redis)
    for _ in range(3):
        clock.pass_s(LEASE_S / 2)
        await one.tidy()

    assert await _lease_ends_us(redis) > until
    with pytest.raises(TooBusy):
        await two_.enter(ANNA)


async def test_slots_on_their_way_back_are_not_used_meanwhile(
    open_hub: OpenHub, stack: AsyncExitStack, clock: Clock
) -> None:
    one, two_ = await two(stack, open_hub, concurrency_max=16)
    await one.enter(ANNA)  # holds two slots to spare
    let_in = 1 + (await admitted(*[(two_, ANNA)] * 13)).count(None)
    clock.pass_s(2)
    renewing = asyncio.create_task(one.tidy())  # there is no room to spare any more: it asks for one slot
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    let_in += (await admitted(*[(one, ANNA)] * 2)).count(None)
    await renewing
    let_in += (await admitted(*[(two_, ANNA)] * 5)).count(None)

    assert let_in == 16


async def test_an_idle_principal_s_leases_go_back_and_it_is_forgotten(
    open_hub: OpenHub, stack: AsyncExitStack, clock: Clock
) -> None:
    one, two_ = await two(stack, open_hub, rate_per_s=A_DAY * 20, concurrency_max=64)
    await one.enter(ANNA)
    one.leave(ANNA)
    clock.pass_s(2)
    await one.tidy()

    assert one._leases == {}  # pyright: ignore[reportPrivateUsage]  # that memory is bounded is the point
    found = await admitted(*[(two_, ANNA)] * 64)
    assert found.count(None) == 0
    assert {type(f) for f in found} == {RateLimited}


async def test_every_slot_is_free_again_after_a_hub_has_closed(open_hub: OpenHub, stack: AsyncExitStack) -> None:
    async with open_hub(concurrency_max=3) as hub:
        await hub.enter(ANNA)
        hub.leave(ANNA)
    other = await stack.enter_async_context(open_hub(concurrency_max=3))

    assert (await admitted(*[(other, ANNA)] * 3)).count(None) == 3


async def test_a_question_that_arrives_after_a_later_one_is_not_answered(
    open_hub: OpenHub, redis: Redis, stack: AsyncExitStack
) -> None:
    hub = await stack.enter_async_context(open_hub(concurrency_max=4))
    for _ in range(3):
        await hub.enter(ANNA)
    before = await redis.hgetall(KEY)

    # The hub's first question, held up on the way: it knew of no open call yet.
    late = await hub._script([KEY], [hub._hub, 1, 100_000, 100_000, 0, 0, 4, 0, 0, 5_000_000])  # pyright: ignore[reportPrivateUsage]

    assert late is None
    assert await redis.hgetall(KEY) == before


async def test_redis_away_is_unavailable_once_what_was_leased_is_used_up(redis_url: str, clock: Clock) -> None:
    async with (
        wire_to_redis(redis_url) as (wire, url),
        open_redis(url) as redis,
        open_limits(redis, rate_per_s=100, concurrency_max=64, monotonic=clock) as hub,
    ):
        await hub.enter(ANNA)
        hub.leave(ANNA)
        wire.cut()

        outcomes: list[BaseException | None] = []
        while not outcomes or outcomes[-1] is None:
            outcomes += await admitted((hub, ANNA))
        refused = outcomes.pop()
        assert 0 < len(outcomes) <= 9, "what was left of a chunk of ten"
        assert isinstance(refused, Unavailable)
        assert refused.details == {"component": "redis"}

        wire.mend()
        await hub.enter(ANNA)


async def test_a_lease_is_worth_nothing_once_it_has_ended(redis_url: str, clock: Clock) -> None:
    async with (
        wire_to_redis(redis_url) as (wire, url),
        open_redis(url) as redis,
        open_limits(redis, rate_per_s=1000, concurrency_max=64, monotonic=clock) as hub,
    ):
        await hub.enter(ANNA)
        hub.leave(ANNA)
        wire.cut()
        clock.pass_s(LEASE_S)

        with pytest.raises(Unavailable):
            await hub.enter(ANNA)


async def test_a_hub_that_stood_still_reads_what_came_before_it_gives_redis_up(
    open_hub: OpenHub, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = await stack.enter_async_context(open_hub())
    monkeypatch.setattr("mcp_servers.hub.limits._TIMEOUT_S", 0.0)  # all of Redis' time went by while nobody looked
    monkeypatch.setattr("mcp_servers.hub.limits._READ_S", 30.0)

    assert await admitted((hub, ANNA)) == [None]


async def test_redis_forgets_a_principal_whose_bucket_is_full_again(
    open_hub: OpenHub, redis: Redis, stack: AsyncExitStack
) -> None:
    hub = await stack.enter_async_context(open_hub(rate_per_s=100))
    await hub.enter(ANNA)

    assert 0 < await redis.pttl(KEY) <= 1000 + 2 * LEASE_S * 1000


async def _scripts_run(redis: Redis) -> int:
    stats = await redis.info("commandstats")  # pyright: ignore[reportUnknownMemberType]  # redis-py's hints
    return int(stats.get("cmdstat_evalsha", {}).get("calls", 0))


async def leases(redis: Redis) -> dict[str, list[str]]:
    """What each hub holds: tokens, slots, until when, and the number of its question."""
    found: dict[Any, Any] = await redis.hgetall(KEY)
    return {k.decode(): v.decode().split() for k, v in found.items() if k.startswith(b"hub:")}


async def _lease_ends_us(redis: Redis) -> int:
    (lease,) = (await leases(redis)).values()
    return int(lease[2])


async def _let_leases_end(redis: Redis) -> None:
    for name, (tokens, slots, _, question) in (await leases(redis)).items():
        await redis.hset(KEY, name, f"{tokens} {slots} 1 {question}")
