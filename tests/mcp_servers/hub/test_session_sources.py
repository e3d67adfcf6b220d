"""What tainted a session is known by name to whoever is asked about its calls: in every hub, the newest first, a few at most."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from body_broker.storage.postgres import Pool
from body_broker.storage.redis import Redis
from mcp_servers.hub.sessions import Sessions, open_sessions
from tests.mcp_servers.hub.test_sessions import ANNA, SILVER_FOR_ANNA


@pytest.fixture
async def hub(redis: Redis, pool: Pool) -> AsyncGenerator[Sessions]:
    async with open_sessions(redis, pool) as found:
        yield found


@pytest.fixture
async def other(redis: Redis, pool: Pool) -> AsyncGenerator[Sessions]:
    async with open_sessions(redis, pool) as found:
        yield found


async def test_what_tainted_a_session_is_named_the_newest_first_and_a_few_at_most(
    hub: Sessions, other: Sessions
) -> None:
    for name in ("search_lore", "get_finding", "search_lore"):
        await hub.taint(ANNA, name)
    for h in (hub, other):
        assert (await h.enter(ANNA, fresh=True)).sources == ("get_finding", "search_lore")

    for n in range(9):
        await other.taint(ANNA, f"tool{n}")
    for h in (hub, other):
        assert (await h.enter(ANNA, fresh=True)).sources == ("tool8", "tool7", "tool6", "tool5", "tool4")

    await hub.taint(SILVER_FOR_ANNA, "talk_to_npc")
    assert (await other.enter(SILVER_FOR_ANNA, fresh=True)).sources == (
        "talk_to_npc",
        "tool8",
        "tool7",
        "tool6",
        "tool5",
    )
    await hub.clear(ANNA.session, by="operator:ops")
    assert (await other.enter(ANNA, fresh=True)).sources == ()
    assert (await other.enter(SILVER_FOR_ANNA, fresh=True)).sources == ("talk_to_npc",)
