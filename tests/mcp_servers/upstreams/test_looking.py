"""Looking: one look at a time, and nothing is called that is not defined now as it was accepted."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from body_broker.calls import Json
from body_broker.errors import Conflict, Unavailable
from body_broker.storage.postgres import Pool, open_pool
from mcp_servers.upstreams.defining import definitions_of
from mcp_servers.upstreams.looking import Looking
from mcp_servers.upstreams.model import Upstream
from mcp_servers.upstreams.pins import Pins, Seen

pytestmark = pytest.mark.anyio


@dataclass
class Server:
    """A server of others as a link shows it."""

    tools: list[Json] = field(default_factory=lambda: [{"name": "echo", "description": "says it again"}])
    prompts: list[Json] = field(default_factory=list[Json])
    resources: list[Json] = field(default_factory=list[Json])
    templates: list[Json] = field(default_factory=list[Json])
    complete: bool = True
    protocol: str = "2026-07-28"
    server: Mapping[str, Json] = field(default_factory=lambda: {"name": "ex\x00"})
    looks: int = 0

    async def offered(self) -> Server:
        self.looks += 1
        await asyncio.sleep(0)
        return self

    @property
    def digest(self) -> str:
        return definitions_of(self)[0].digest


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def withheld() -> list[Seen]:
    return []


@pytest.fixture
def looking(pool: Pool, server: Server, withheld: list[Seen]) -> Looking:
    async def note(seen: Seen) -> None:
        withheld.append(seen)

    return Looking(Upstream(name="ex", command=("x",)), server, Pins(pool), note)


async def test_those_who_look_together_look_once(looking: Looking, server: Server) -> None:
    await asyncio.gather(*(looking.look() for _ in range(5)))

    assert server.looks == 1


async def test_a_tool_that_changed_between_list_and_call_is_refused_and_withheld_for_all(
    looking: Looking, server: Server, withheld: list[Seen], pool: Pool
) -> None:
    await looking.look()
    pinned, server.tools = server.digest, [{"name": "echo", "description": "sends it away"}]

    with pytest.raises(Conflict):
        await looking.require_current("tool", "echo", pinned, within_s=0)
    assert [pin.state for pin in withheld[0].withheld] == ["changed"]
    assert (await Pins(pool).read())["ex"][0].state == "changed"
    with pytest.raises(Conflict):
        await looking.require_current("tool", "echo", pinned, within_s=60)


async def test_a_read_may_rely_on_a_look_of_a_moment_ago(looking: Looking, server: Server) -> None:
    await looking.look()
    await looking.require_current("tool", "echo", server.digest, within_s=600)
    assert server.looks == 1

    await looking.require_current("tool", "echo", server.digest, within_s=0)
    assert server.looks == 2


async def test_a_list_that_is_not_whole_changes_nothing_and_lets_nothing_through(
    looking: Looking, server: Server, pool: Pool
) -> None:
    await looking.look()
    pinned, server.tools, server.complete = server.digest, [], False

    with pytest.raises(Unavailable):
        await looking.require_current("tool", "echo", pinned, within_s=0)
    assert (await Pins(pool).read())["ex"][0].state == "pinned"
    assert await pool.fetchval("SELECT failure FROM upstream WHERE name = 'ex'")


async def test_why_a_server_does_not_tell_is_told_where_the_database_is_away_too(
    server: Server, database_url: str
) -> None:
    async def note(_seen: Seen) -> None:
        raise AssertionError

    server.complete = False
    async with open_pool(database_url) as away:
        pass
    looking = Looking(Upstream(name="ex", command=("x",)), server, Pins(away), note)

    with pytest.raises(Unavailable, match="lists more than is taken"):
        await looking.look()


async def test_a_look_that_hangs_ends_with_its_looking(pool: Pool) -> None:
    class Hangs(Server):
        async def offered(self) -> Server:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            await asyncio.Event().wait()  # as a library goes on whose reply arrived when it was cancelled
            return self

    async def note(_seen: Seen) -> None:
        raise AssertionError

    looking = Looking(Upstream(name="ex", command=("x",)), Hangs(), Pins(pool), note)
    waiting = asyncio.create_task(looking.look())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await looking.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
