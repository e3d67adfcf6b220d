"""Limits of whoever talks with a tier: its tools have places of their own, and one rate holds for all that is done in somebody's name."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from body_broker.calls import Caller
from body_broker.errors import RateLimited, TooBusy
from body_broker.storage.redis import Redis
from mcp_servers.hub.limits import LEASE_S
from tests.mcp_servers.hub.clocks import Clock
from tests.mcp_servers.hub.test_limits import (
    A_DAY,
    ANNA,
    KEY,
    SILVER_FOR_ANNA,
    OpenHub,
    admitted,
    clock,
    freeze,
    leases,
    now_us,
    open_hub,
    stack,
    two,
)
from tests.waiting import wait_until

__all__ = ["clock", "open_hub", "stack"]

SILVER_FOR_SILVER_FOR_ANNA = Caller(
    ("person:anna", "tier:silver", "tier:silver"), {}, "cnv_anna-5678", conversation_of=SILVER_FOR_ANNA.session
)


async def test_whoever_has_every_call_open_in_a_talk_has_the_tools_of_those_talks_still(
    open_hub: OpenHub, stack: AsyncExitStack
) -> None:
    hub, other = await two(stack, open_hub, concurrency_max=64)
    assert set(await admitted(*[(hub, ANNA)] * 64)) == {None}

    found = await admitted(*[(hub, SILVER_FOR_ANNA)] * 64)
    further = await admitted(*[(each, who) for each in (hub, other) for who in (ANNA, SILVER_FOR_ANNA)])

    assert set(found) == {None}
    assert {type(f) for f in further} == {TooBusy}, "a talk's tools are bounded too"
    for _ in range(64):
        hub.leave(SILVER_FOR_ANNA)
    assert set(await admitted(*[(other, SILVER_FOR_ANNA)] * 32)) == {None}
    assert {type(f) for f in await admitted((other, ANNA))} == {TooBusy}


async def test_a_talk_within_a_talk_has_places_of_its_own(open_hub: OpenHub, stack: AsyncExitStack) -> None:
    hub = await stack.enter_async_context(open_hub(concurrency_max=2))

    for who in (ANNA, SILVER_FOR_ANNA, SILVER_FOR_SILVER_FOR_ANNA):
        assert set(await admitted((hub, who), (hub, who))) == {None}
    found = await admitted(*[(hub, who) for who in (ANNA, SILVER_FOR_ANNA, SILVER_FOR_SILVER_FOR_ANNA)])

    assert {type(f) for f in found} == {TooBusy}


async def test_calls_of_talks_and_the_asker_s_own_never_exceed_one_rate(
    open_hub: OpenHub, redis: Redis, stack: AsyncExitStack
) -> None:
    hubs = await two(stack, open_hub, rate_per_s=A_DAY)
    await freeze(redis, 1)

    found = await admitted(*[(hubs[n % 2], (ANNA, SILVER_FOR_ANNA)[n // 2 % 2]) for n in range(40)])

    assert found.count(None) == 1
    assert {type(f) for f in found if f} == {RateLimited}


async def test_a_refused_call_of_a_talk_holds_no_place(
    open_hub: OpenHub, redis: Redis, stack: AsyncExitStack, clock: Clock
) -> None:
    hub = await stack.enter_async_context(open_hub(rate_per_s=0.1, concurrency_max=1))
    await hub.enter(ANNA)
    with pytest.raises(RateLimited):
        await hub.enter(SILVER_FOR_ANNA)
    await redis.hset(KEY, "at", str(await now_us(redis) - 10_000_000))
    clock.pass_s(10)

    await hub.enter(SILVER_FOR_ANNA)


async def test_what_is_held_for_talks_is_kept_while_they_last_and_given_back_after(
    open_hub: OpenHub, stack: AsyncExitStack, clock: Clock
) -> None:
    one, two_ = await two(stack, open_hub, concurrency_max=1)
    await one.enter(SILVER_FOR_ANNA)
    for _ in range(3):
        clock.pass_s(LEASE_S / 2)
        await one.tidy()
    with pytest.raises(TooBusy):
        await two_.enter(SILVER_FOR_ANNA)

    one.leave(SILVER_FOR_ANNA)
    clock.pass_s(2)

    async def forgotten() -> bool:
        await one.tidy()
        return one._leases == {}  # pyright: ignore[reportPrivateUsage]  # that memory is bounded is the point

    await wait_until(forgotten, "nothing is kept of it")
    await two_.enter(SILVER_FOR_ANNA)


async def test_the_tokens_of_an_asker_are_kept_while_a_call_of_its_talk_waits_for_a_place(
    open_hub: OpenHub, redis: Redis, stack: AsyncExitStack, clock: Clock
) -> None:
    hub = await stack.enter_async_context(open_hub(rate_per_s=100, concurrency_max=1))
    await hub.enter(SILVER_FOR_ANNA)
    ((before, *_),) = (await leases(redis)).values()
    clock.pass_s(2)  # nobody has used the asker's own lease for so long
    waiting = asyncio.create_task(hub.enter(SILVER_FOR_ANNA))
    await asyncio.sleep(0)

    await hub.tidy()

    ((tokens, *_),) = (await leases(redis)).values()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert (before, tokens) == ("10", "10")
