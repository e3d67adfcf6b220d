"""Owns the proof that a job's call is one call however often it is made: its token names it, its effect happens once, its approval is one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from body_broker.calls import Arguments, Call, Caller, Json, Result, Room
from body_broker.settings import Settings
from body_broker.storage.postgres import Pool
from body_broker.text import new_id
from body_broker.work import keyed
from body_broker.work.model import Origin
from mcp_servers.hub.requests import Request
from mcp_servers.hub.rooms import ROOMS
from mcp_servers.hub.runtime import Runtime, open_runtime
from tests.mcp_servers.hub.conftest import Hub, error_of
from tests.mcp_servers.hub.conversing import CONVERSATION, inner_tools, signed_in
from tests.mcp_servers.hub.deeds import APPROVERS, Deeds, Studio, do, laboring, say, settles
from tests.mcp_servers.hub.fixture_room import row
from tests.mcp_servers.hub.test_gate import audited
from tiers.deadline import Deadline
from tiers.hubtools import Called, HubTools
from tiers.model import Asker, Tier

KEY = f"{new_id('job')} 3.1"


@dataclass
class Keeper:
    """Where the tool of the tests has its effect."""

    pool: Pool | None = None


class Keep(Arguments):
    what: str = ""


class Kept(Result):
    number: int
    under: str | None
    approval: str | None
    origin: Json


async def keep(arguments: Keep, call: Call, keeper: Keeper) -> Kept:
    """Puts something away; how many there are then."""
    assert keeper.pool is not None
    async with keeper.pool.acquire() as connection, connection.transaction():

        async def effect() -> Json:
            await connection.execute("INSERT INTO kept VALUES ($1)", arguments.what)
            return await connection.fetchval("SELECT count(*) FROM kept")

        number = await keyed.once(connection, call.key, effect)
    return Kept(number=number, under=call.key, approval=call.approval, origin=Origin.of(call).body())


KEEPS = Room(
    name="keeps",
    title="Keeps",
    description="What is kept by the tests.",
    tools=(row("kx_keep", keep, "draft", effect="repeatable"),),
)


@dataclass
class House:
    """A hub, its tools as tiers have them, and anna."""

    runtime: Runtime
    tools: HubTools
    asker: Asker

    async def call(self, key: str | None, tier: Tier = Tier.BRONZE) -> dict[str, Any]:
        called: Called = await self.tools.call(
            self.asker, tier, "kx_keep", {"what": "lamp"}, deadline=Deadline.after(60), key=key
        )
        assert called.outcome == "ok", called.text
        return dict(called.structured)

    async def run(self, caller: Caller, depth: int = 0) -> Kept:
        request = Request(name="kx_keep", kind="tool", arguments={"what": "lamp"}, caller=caller, depth=depth)
        answer = await self.runtime.gate.run(request)
        assert isinstance(answer.result, Kept)
        return answer.result

    async def caller(self, key: str | None) -> Caller:
        """Who a token of bronze's stands for."""
        token = await self.runtime.tokens.mint(self.asker.caller, "tier:bronze", CONVERSATION, 60, key=key)
        return await self.runtime.identities.authenticate(token)


@asynccontextmanager
async def open_house(settings: Settings) -> AsyncGenerator[House]:
    keeper = Keeper()
    async with (
        open_runtime(settings, (*ROOMS, KEEPS), extra_services={"keeps": keeper}) as runtime,
        inner_tools(runtime) as tools,
    ):
        keeper.pool = runtime.stores.pool
        await keeper.pool.execute("CREATE TABLE kept (what text)")
        anna = await signed_in(runtime, "person:anna", "engineer")
        yield House(runtime, tools, Asker(caller=anna, conversation=CONVERSATION))


@pytest.fixture
async def house(settings_for: Callable[..., Settings], redis: object) -> AsyncIterator[House]:
    _ = redis  # flushed before the test
    async with open_house(settings_for()) as found:
        yield found


async def test_a_call_that_is_made_again_under_its_key_is_the_same_call(house: House) -> None:
    first = await house.call(KEY)
    assert (first["number"], first["under"], first["approval"]) == (1, KEY, None)
    assert (await house.call(KEY))["number"] == 1
    assert (await house.call(f"{KEY}0"))["number"] == 2
    assert [(await house.call(None))["number"] for _ in range(2)] == [3, 4]


async def test_only_the_call_that_its_token_was_minted_for_has_the_key(house: House) -> None:
    keyed_caller, other = await house.caller(KEY), await house.caller(None)
    assert (keyed_caller.call_key, other.call_key) == (KEY, None)
    assert (await house.run(keyed_caller)).under == KEY
    assert (await house.run(other)).under is None
    # What a call makes on its way is another call, though its caller is the same.
    assert (await house.run(keyed_caller, depth=keyed_caller.depth + 1)).under is None
    inner = await house.runtime.tokens.mint(keyed_caller, "tier:silver", "cnv_12345678", 60)
    assert (await house.runtime.identities.authenticate(inner)).call_key is None


async def test_work_that_a_call_asks_for_knows_its_sessions_and_tokens(house: House) -> None:
    caller = await house.caller(KEY)
    origin = (await house.run(caller)).origin
    assert origin["sessions"] == [CONVERSATION, house.asker.caller.session]
    assert origin["tokens"] == [caller.token_id, house.asker.caller.token_id]


async def test_the_key_stands_on_the_audit(house: House) -> None:
    await house.call(KEY)
    await house.call(None)
    hub: Any = house  # what is read of it is its runtime
    records = [each for each in await audited(hub, "kx_keep") if each["kind"] == "decision"]
    assert [record.get("details") for record in records] == [{"key": KEY}, None]


@pytest.fixture
async def studio(
    settings_for: Callable[..., Settings], tmp_path: Path, redis: object
) -> AsyncIterator[tuple[Hub, Deeds]]:
    """A hub in which people are asked."""
    _ = redis  # flushed before the test
    approvers = tmp_path / "approvers.toml"
    approvers.write_text(APPROVERS, encoding="utf-8")
    deeds = Deeds()
    async with Studio(settings_for, approvers, deeds).hub(works=False) as hub:
        yield hub, deeds


async def test_where_people_are_asked_the_key_is_their_approval_s_and_who_asks_again_asks_for_the_same(
    studio: tuple[Hub, Deeds],
) -> None:
    hub, deeds = studio
    anna = await signed_in(hub.runtime, "person:anna", "engineer")
    asked: set[str] = set()
    for _ in range(2):
        token = await hub.runtime.tokens.mint(anna, "tier:bronze", CONVERSATION, 600, key=KEY)
        async with hub.client_with(token) as client:
            asked.add(error_of(await do(client, "deed_keep"))["approval"])
    (approval_id,) = asked
    await say(hub.runtime.approvals.desk, approval_id)
    async with laboring(hub.runtime):
        await settles(hub.runtime.approvals.desk, approval_id, "done")
    assert deeds.done == [("deed_keep", "lamp", approval_id)]
