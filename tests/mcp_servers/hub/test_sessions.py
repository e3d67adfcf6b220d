"""Sessions: taint holds across tokens, hubs, conversations, restarts and lost stores; what cannot be proved clean is tainted."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from body_broker.calls import Caller
from body_broker.errors import Conflict, NotFound, Unavailable
from body_broker.storage import embedded
from body_broker.storage.postgres import Pool, open_pool
from body_broker.storage.redis import Redis, open_redis
from mcp_servers.hub.session_store import CONVERSATION_EXPIRY_S, FORGET_CONVERSATIONS, LOGIN_EXPIRY_S, Found
from mcp_servers.hub.sessions import REMEMBERED_S, Sessions, SessionState, open_sessions
from tests.body_broker.audit.wire import wire_to
from tests.components import scratch_dir
from tests.mcp_servers.hub.clocks import Clock
from tests.mcp_servers.hub.wires import wire_to_redis
from tests.waiting import wait_until, wait_until_sync

ANNA = Caller(("person:anna",), {}, "ses_anna-1234", token_id="tok_one")
ANNA_S_OTHER_TOKEN = Caller(("person:anna",), {}, "ses_anna-1234", token_id="tok_two")
BEN = Caller(("person:ben",), {}, "ses_ben-12345")
SILVER_FOR_ANNA = Caller(("person:anna", "tier:silver"), {}, "cnv_anna-1234", conversation_of=ANNA.session)
BRONZE_FOR_BOTH = Caller(
    ("person:anna", "tier:silver", "tier:bronze"),
    {},
    "cnv_inner-123",
    conversation_of=SILVER_FOR_ANNA.session,
    ancestors=(ANNA.session,),
)
GAME = Caller(("service:game",), {}, "ses_game-1234")
SILVER_FOR_GAME = Caller(("service:game", "tier:silver"), {}, "cnv_game-1234", conversation_of=GAME.session)
BRONZE_FOR_GAME = Caller(
    ("service:game", "tier:silver", "tier:bronze"),
    {},
    "cnv_game-5678",
    conversation_of=SILVER_FOR_GAME.session,
    ancestors=(GAME.session,),
)
WITNESSES = "SELECT count(*) FROM session_witness WHERE session = $1"
CLEAN = SessionState(tainted=False, history=frozenset())

OpenHub = Callable[[], AbstractAsyncContextManager[Sessions]]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_hub(redis: Redis, pool: Pool, clock: Clock) -> OpenHub:
    return lambda: open_sessions(redis, pool, clock)


@pytest.fixture
async def hub(open_hub: OpenHub) -> AsyncGenerator[Sessions]:
    async with open_hub() as found:
        yield found


@pytest.fixture
async def other(open_hub: OpenHub) -> AsyncGenerator[Sessions]:
    async with open_hub() as found:
        yield found


async def tainted(hub: Sessions, caller: Caller, *, fresh: bool = True) -> bool:
    return (await hub.enter(caller, fresh=fresh)).tainted


async def test_a_session_begins_clean_with_one_row_as_its_witness(hub: Sessions, other: Sessions, pool: Pool) -> None:
    found = await asyncio.gather(*[h.enter(ANNA, fresh=fresh) for h in (hub, other) for fresh in (True, False)])

    assert found == [CLEAN] * 4
    assert await pool.fetchval("SELECT count(*) FROM session_witness") == 1


async def test_taint_holds_for_every_token_and_in_every_hub_at_once(hub: Sessions, other: Sessions) -> None:
    assert not await tainted(other, ANNA)
    await hub.taint(ANNA, "search_lore")

    assert await tainted(hub, ANNA_S_OTHER_TOKEN, fresh=False)
    assert await tainted(other, ANNA_S_OTHER_TOKEN)
    assert not await tainted(other, BEN)


async def test_what_is_remembered_as_clean_is_read_again_after_a_second(
    hub: Sessions, other: Sessions, clock: Clock
) -> None:
    await hub.enter(ANNA, fresh=False)
    await other.taint(ANNA, "search_lore")
    assert not await tainted(hub, ANNA, fresh=False)

    clock.pass_s(REMEMBERED_S + 0.001)

    assert await tainted(hub, ANNA, fresh=False)


async def test_the_first_call_of_a_session_in_a_hub_reads_what_others_stored(hub: Sessions, other: Sessions) -> None:
    await hub.enter(ANNA, fresh=False)
    await hub.taint(ANNA, "search_lore")

    assert await tainted(other, ANNA, fresh=False)


async def test_taint_survives_the_hub(open_hub: OpenHub) -> None:
    async with open_hub() as hub:
        await hub.enter(ANNA, fresh=False)
        await hub.taint(ANNA, "search_lore")
    async with open_hub() as hub:
        assert await tainted(hub, ANNA, fresh=False)


async def test_taint_of_a_session_that_never_entered_is_stored_too(hub: Sessions, other: Sessions) -> None:
    await hub.taint(ANNA, "search_lore")

    assert await tainted(other, ANNA)


async def test_tainting_again_costs_no_store(redis: Redis, pool: Pool, clock: Clock, database_url: str) -> None:
    async with wire_to(database_url) as (wire, url), open_pool(url) as away, open_sessions(redis, away, clock) as hub:
        await hub.enter(ANNA, fresh=False)
        await hub.taint(ANNA, "search_lore")
        first = await pool.fetchrow("SELECT * FROM session_witness")
        wire.cut()

        await hub.taint(ANNA, "get_document")

        assert await pool.fetchrow("SELECT * FROM session_witness") == first
        assert first is not None
        assert first["tainted_by"] == "search_lore"


async def test_a_conversation_sees_its_asker_s_taint_live(hub: Sessions, other: Sessions) -> None:
    assert await hub.enter(SILVER_FOR_ANNA, fresh=True) == CLEAN
    await other.taint(ANNA, "search_lore")

    assert await tainted(hub, SILVER_FOR_ANNA)


@pytest.mark.parametrize("taints", [False, True])
async def test_a_long_conversation_in_use_is_never_begun_anew_as_a_clean_one(
    hub: Sessions, open_hub: OpenHub, pool: Pool, redis: Redis, clock: Clock, *, taints: bool
) -> None:
    await hub.enter(SILVER_FOR_ANNA, fresh=True)
    if taints:
        await hub.taint(SILVER_FOR_ANNA, "search_lore")
    await pool.execute(
        "UPDATE session_witness SET began_at = now() - interval '40 days', tainted_at = tainted_at - interval '40 days'"
    )
    clock.pass_s(REMEMBERED_S + 0.001)

    assert await tainted(hub, SILVER_FOR_ANNA, fresh=False) is taints
    sql, values = FORGET_CONVERSATIONS
    await pool.execute(sql, *values)
    assert await pool.fetchval(WITNESSES, SILVER_FOR_ANNA.session) == 1
    await redis.delete(f"session:{SILVER_FOR_ANNA.session}")
    async with open_hub() as later:
        assert await tainted(later, SILVER_FOR_ANNA), "what cannot be proved clean is tainted"


async def test_a_conversation_that_nobody_went_on_with_begins_anew(
    hub: Sessions, open_hub: OpenHub, pool: Pool, redis: Redis
) -> None:
    await hub.enter(SILVER_FOR_ANNA, fresh=True)
    await pool.execute("UPDATE session_witness SET began_at = now() - interval '32 days'")
    await redis.delete(f"session:{SILVER_FOR_ANNA.session}")  # as it has expired
    sql, values = FORGET_CONVERSATIONS

    await pool.execute(sql, *values)

    assert await pool.fetchval(WITNESSES, SILVER_FOR_ANNA.session) == 0
    assert await pool.fetchval(WITNESSES, ANNA.session) == 1, "a login has no end of its own"
    async with open_hub() as later:
        assert not (await later.enter(SILVER_FOR_ANNA, fresh=True)).tainted


async def test_a_conversation_s_own_taint_stays_its_own(hub: Sessions) -> None:
    await hub.taint(SILVER_FOR_ANNA, "search_lore")

    assert await tainted(hub, SILVER_FOR_ANNA)
    assert not await tainted(hub, ANNA)


async def test_a_conversation_within_a_conversation_sees_both_above_it(hub: Sessions, other: Sessions) -> None:
    assert await hub.enter(BRONZE_FOR_BOTH, fresh=True) == CLEAN

    await other.taint(ANNA, "search_lore")
    assert await tainted(hub, BRONZE_FOR_BOTH)


async def test_a_conversation_within_a_conversation_sees_the_one_between(hub: Sessions, other: Sessions) -> None:
    await other.taint(SILVER_FOR_ANNA, "search_lore")

    assert await tainted(hub, BRONZE_FOR_BOTH)
    assert not await tainted(hub, ANNA)


async def test_a_service_by_itself_is_never_tainted_and_its_conversations_are(
    hub: Sessions, redis: Redis, pool: Pool
) -> None:
    await hub.enter(GAME, fresh=True)
    await hub.taint(GAME, "search_lore")
    assert not await tainted(hub, GAME)
    assert await pool.fetchval("SELECT tainted_at FROM session_witness") is None

    await hub.taint(SILVER_FOR_GAME, "search_lore")
    assert await tainted(hub, SILVER_FOR_GAME)
    assert await tainted(hub, BRONZE_FOR_GAME)
    assert not await tainted(hub, GAME)

    await redis.delete(f"session:{GAME.session}")
    assert not await tainted(hub, GAME)


async def test_a_conversation_is_not_tainted_by_the_lost_state_of_its_service(hub: Sessions, redis: Redis) -> None:
    await hub.enter(GAME, fresh=True)
    await hub.enter(SILVER_FOR_GAME, fresh=True)
    await redis.delete(f"session:{GAME.session}")

    assert not await tainted(hub, SILVER_FOR_GAME)


async def test_state_that_is_missing_though_the_witness_exists_counts_as_tainted_for_good(
    hub: Sessions, other: Sessions, redis: Redis
) -> None:
    await hub.enter(ANNA, fresh=True)
    await redis.flushall()  # pyright: ignore[reportUnknownMemberType]  # redis-py's hints

    assert await tainted(hub, ANNA)
    assert await tainted(other, ANNA)
    assert await tainted(other, ANNA)
    assert not await tainted(other, BEN), "a session that begins after the loss is clean"


async def test_a_redis_that_lost_its_last_second_does_not_make_a_session_clean(
    hub: Sessions, other: Sessions, redis: Redis
) -> None:
    await hub.enter(ANNA, fresh=True)
    await hub.taint(ANNA, "search_lore")
    await redis.hdel(f"session:{ANNA.session}", "tainted")  # what a file without its tail would restore

    assert await tainted(other, ANNA)


async def test_a_database_that_lost_its_last_commit_does_not_make_a_session_clean(
    hub: Sessions, other: Sessions, pool: Pool
) -> None:
    await hub.enter(ANNA, fresh=True)
    await hub.taint(ANNA, "search_lore")
    await pool.execute("UPDATE session_witness SET tainted_at = NULL")  # a replica that took over a moment too early

    assert await tainted(other, ANNA)


@pytest.fixture
async def valkey() -> AsyncGenerator[tuple[Path, str]]:
    """A Valkey of the test's own, to be killed."""
    data = Path(tempfile.mkdtemp(prefix="body-broker-kill-", dir=scratch_dir()))
    urls = await asyncio.to_thread(embedded.start, data, postgres=False)
    yield data, urls.redis_url
    await asyncio.to_thread(_end, data)


def _end(data: Path) -> None:
    embedded.release(data)
    wait_until_sync(lambda: embedded.status(data).keeper_pid is None, "the keeper ends")
    shutil.rmtree(data)


async def test_taint_and_cleanness_both_survive_a_valkey_that_is_killed(
    valkey: tuple[Path, str], pool: Pool, clock: Clock
) -> None:
    data, url = valkey
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(open_redis(url))
        hub, other = [await stack.enter_async_context(open_sessions(redis, pool, clock)) for _ in range(2)]
        for caller in (ANNA, BEN):
            await hub.enter(caller, fresh=True)
        await hub.taint(ANNA, "search_lore")

        killed = (await asyncio.to_thread(embedded.status, data)).valkey_pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)

        async def back() -> bool:
            pid = (await asyncio.to_thread(embedded.status, data)).valkey_pid
            return pid not in {None, killed} and not await tainted(other, BEN)

        assert await tainted(other, ANNA)
        await wait_until(back, "Valkey is back, and who was clean is clean")
        assert await tainted(hub, ANNA)
        assert await tainted(other, ANNA)


@asynccontextmanager
async def _with_store_away(store: str, database_url: str, redis_url: str, clock: Clock) -> AsyncGenerator[Sessions]:
    """A hub that has met Anna, then lost a store."""
    async with (
        wire_to(database_url) as (to_postgres, through_postgres),
        wire_to_redis(redis_url) as (to_redis, through_redis),
        open_pool(through_postgres) as pool,
        open_redis(through_redis) as redis,
        open_sessions(redis, pool, clock) as hub,
    ):
        await hub.enter(ANNA, fresh=True)
        (to_postgres if store == "postgres" else to_redis).cut()
        yield hub


@pytest.mark.parametrize("store", ["postgres", "redis"])
async def test_state_that_cannot_be_read_counts_as_tainted(
    store: str, database_url: str, redis_url: str, clock: Clock
) -> None:
    async with _with_store_away(store, database_url, redis_url, clock) as hub:
        assert await tainted(hub, ANNA)
        assert await tainted(hub, BEN)
        assert not await tainted(hub, GAME)


async def test_an_answer_is_withheld_when_its_taint_cannot_be_stored(
    database_url: str, redis_url: str, clock: Clock
) -> None:
    async with _with_store_away("postgres", database_url, redis_url, clock) as hub:
        with pytest.raises(Unavailable, match="withheld"):
            await hub.taint(ANNA, "search_lore")


async def test_taint_is_stored_while_redis_is_away(
    database_url: str, redis_url: str, clock: Clock, other: Sessions
) -> None:
    async with _with_store_away("redis", database_url, redis_url, clock) as hub:
        await hub.taint(ANNA, "search_lore")

    assert await tainted(other, ANNA)


async def test_a_reading_that_was_asked_for_before_a_taint_and_answered_after_it_does_not_wash_it_off(
    hub: Sessions, clock: Clock
) -> None:
    await hub.enter(ANNA, fresh=True)
    asked_at = clock.now
    clock.pass_s(0.1)
    await hub.taint(ANNA, "search_lore")

    entry = hub._entries[ANNA.session]  # pyright: ignore[reportPrivateUsage]  # this order of answers cannot be had from outside
    entry.take(Found(tainted=False, stored=False, did=frozenset()), asked_at)

    assert await tainted(hub, ANNA, fresh=False)


async def test_of_two_readings_the_one_asked_for_later_counts(hub: Sessions, clock: Clock) -> None:
    await hub.enter(ANNA, fresh=True)
    entry = hub._entries[ANNA.session]  # pyright: ignore[reportPrivateUsage]  # this order of answers cannot be had from outside
    entry.take(Found(tainted=True, stored=True, did=frozenset()), clock.now + 0.2)
    entry.take(Found(tainted=False, stored=False, did=frozenset()), clock.now + 0.1)

    assert await tainted(hub, ANNA, fresh=False)


async def test_history_is_seen_at_once_here_and_soon_everywhere(hub: Sessions, other: Sessions) -> None:
    await hub.enter(ANNA, fresh=False)
    hub.record(ANNA, "retrieval")
    hub.record(ANNA, "draft")
    hub.record(ANNA, "draft")

    assert (await hub.enter(ANNA, fresh=False)).history == {"retrieval", "draft"}
    assert (await hub.enter(ANNA, fresh=True)).history == {"retrieval", "draft"}

    async def arrived() -> bool:
        return (await other.enter(ANNA, fresh=True)).history == frozenset({"retrieval", "draft"})

    await wait_until(arrived, "the other hub sees it")
    assert (await other.enter(SILVER_FOR_ANNA, fresh=True)).history == {"retrieval", "draft"}
    assert not (await other.enter(BEN, fresh=True)).history


async def test_history_is_stored_before_the_hub_has_closed_and_survives_the_loss_of_redis(
    open_hub: OpenHub, redis: Redis
) -> None:
    async with open_hub() as hub:
        await hub.enter(ANNA, fresh=False)
        hub.record(ANNA, "retrieval")
    await redis.flushall()  # pyright: ignore[reportUnknownMemberType]  # redis-py's hints
    async with open_hub() as hub:
        assert await hub.enter(ANNA, fresh=True) == SessionState(tainted=True, history=frozenset({"retrieval"}))


async def test_history_noted_while_a_store_was_down_is_stored_once_it_is_back_and_taints_nobody(
    pool: Pool, redis: Redis, clock: Clock, database_url: str, other: Sessions
) -> None:
    async with wire_to(database_url) as (wire, url), open_pool(url) as away, open_sessions(redis, away, clock) as hub:
        wire.cut()
        await hub.enter(BEN, fresh=False)
        hub.record(BEN, "retrieval")
        wire.mend()

        async def stored() -> bool:
            return await pool.fetchval("SELECT did FROM session_witness") == ["retrieval"]

        await wait_until(stored, "the history is stored")
    assert await other.enter(BEN, fresh=True) == SessionState(tainted=False, history=frozenset({"retrieval"}))


async def test_what_is_remembered_is_bounded_and_forgetting_loses_nothing(
    hub: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcp_servers.hub.sessions.REMEMBERED_MAX", 3)
    await hub.taint(ANNA, "search_lore")
    for n in range(10):
        await hub.enter(Caller(("person:ben",), {}, f"ses_{n:08}"), fresh=False)

    assert len(hub._entries) == 3  # pyright: ignore[reportPrivateUsage]  # the bound is the point
    assert await tainted(hub, ANNA, fresh=False)


async def test_redis_keeps_a_login_for_longer_than_any_token_and_a_conversation_for_a_month(
    hub: Sessions, redis: Redis
) -> None:
    await hub.enter(SILVER_FOR_ANNA, fresh=True)
    for session in (ANNA.session, SILVER_FOR_ANNA.session):
        await redis.expire(f"session:{session}", 10)
    await hub.enter(SILVER_FOR_ANNA, fresh=True)

    assert await redis.ttl(f"session:{ANNA.session}") > LOGIN_EXPIRY_S - 10
    assert CONVERSATION_EXPIRY_S - 10 < await redis.ttl(f"session:{SILVER_FOR_ANNA.session}") <= CONVERSATION_EXPIRY_S


async def test_an_operator_clears_a_taint_in_every_hub_and_the_history_stays(
    hub: Sessions, other: Sessions, clock: Clock, pool: Pool
) -> None:
    await hub.enter(ANNA, fresh=True)
    hub.record(ANNA, "retrieval")
    await hub.taint(ANNA, "search_lore")
    assert await tainted(other, ANNA)

    await hub.clear(ANNA.session, by="operator:ops")

    clock.pass_s(REMEMBERED_S + 0.001)
    for h in (hub, other):
        assert await h.enter(ANNA, fresh=False) == SessionState(tainted=False, history=frozenset({"retrieval"}))
    assert await pool.fetchval("SELECT cleared_by FROM session_witness") == "operator:ops"
    await other.taint(ANNA, "search_lore")
    assert await tainted(hub, ANNA)


async def test_a_lost_state_can_be_cleared(hub: Sessions, redis: Redis) -> None:
    await hub.enter(ANNA, fresh=True)
    await redis.flushall()  # pyright: ignore[reportUnknownMemberType]  # redis-py's hints
    assert await tainted(hub, ANNA)

    await hub.clear(ANNA.session, by="operator:ops")

    assert not await tainted(hub, ANNA)


async def test_a_text_read_while_a_taint_is_being_cleared_wins(
    hub: Sessions, other: Sessions, clock: Clock, pool: Pool
) -> None:
    await hub.taint(ANNA, "search_lore")
    clearing = asyncio.create_task(hub.clear(ANNA.session, by="operator:ops"))

    async def marked() -> bool:
        return await pool.fetchval("SELECT clearing IS NOT NULL FROM session_witness")

    await wait_until(marked, "clearing has begun")
    clock.pass_s(REMEMBERED_S + 0.001)
    assert await tainted(other, ANNA)
    await other.taint(ANNA, "get_document")

    with pytest.raises(Conflict):
        await clearing
    assert await tainted(hub, ANNA)


async def test_clearing_what_is_not_there_says_so(hub: Sessions) -> None:
    with pytest.raises(NotFound):
        await hub.clear("ses_nobody-123", by="operator:ops")
