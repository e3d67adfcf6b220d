"""What is served changes while a hub serves: all at once, in the order of the pins, and those who listen are told."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from body_broker.errors import PolicyError
from body_broker.settings import Settings
from body_broker.storage.postgres import Pool
from mcp_servers.hub.runtime import Runtime
from mcp_servers.upstreams.model import Definition
from mcp_servers.upstreams.pins import Pins
from tests.counterparts.upstream import Saying, Served, serving, tool
from tests.mcp_servers.hub.conftest import error_of
from tests.mcp_servers.hub.deeds import APPROVERS, Deeds, Studio
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio

ECHO = Definition("tool", "echo", {"name": "echo", "inputSchema": {"type": "object"}})
MORE = Definition("tool", "more", {"name": "more", "inputSchema": {"type": "object"}})
GREET = Definition("prompt", "greet", {"name": "greet"})
SEA = Definition("resource", "demo://sea", {"name": "sea", "uri": "demo://sea"})


@pytest.fixture
def studio(settings_for: Callable[..., Settings], tmp_path: Path, redis: object) -> Studio:
    _ = redis  # flushed before the test
    approvers = tmp_path / "approvers.toml"
    approvers.write_text(APPROVERS, encoding="utf-8")
    return Studio(settings_for, approvers, Deeds())


@pytest.fixture
async def server() -> AsyncIterator[Served]:
    async with serving(Saying(tools=[tool("echo"), tool("held")])) as found:
        yield found


def joined(tmp_path: Path, url: str = "http://127.0.0.1:9/mcp", **more: object) -> Path:
    file = tmp_path / "upstreams.toml"
    keys = "".join(f"{name} = {value}\n" for name, value in {"watch_s": 1, **more}.items())
    reads = "".join(f'[ex.tools.{name}]\ngroup = "retrieval"\n' for name in ("echo", "held", "more"))
    file.write_text(f'[ex]\nurl = "{url}"\n{keys}{reads}[ex.prompts.greet]\ngroup = "retrieval"\n', encoding="utf-8")
    return file


def names(runtime: Runtime) -> set[str]:
    return {o.name for room in runtime.gate.rooms if room.name == "ex" for o in room.operations() if not o.withheld}


async def pin(pool: Pool, *definitions: Definition) -> None:
    """As if these had been seen first."""
    await pool.execute("DELETE FROM upstream WHERE name = 'ex'")
    await Pins(pool).saw("ex", definitions, {})


async def test_a_hub_without_servers_of_others_has_nothing_of_them(studio: Studio) -> None:
    async with studio.runtime() as runtime:
        assert runtime.upstreams.pins is None
        assert "BODY_BROKER_UPSTREAMS" not in runtime.gate.configured


async def test_a_call_in_flight_goes_on_while_what_is_served_changes(
    studio: Studio, server: Served, tmp_path: Path
) -> None:
    async with (
        studio.hub(works=False, upstreams=joined(tmp_path, server.url)) as hub,
        hub.client("person:anna", "engineer") as client,
    ):
        await wait_until(lambda: "ex_held" in names(hub.runtime), "what the server offers is served")
        call = asyncio.create_task(client.call_tool("ex_held", {}))
        await wait_until(lambda: "held" in server.saying.notes, "the call is there")
        server.saying.tools = [tool("echo")]
        await wait_until(lambda: names(hub.runtime) == {"ex_echo"}, "its tool is withheld")
        server.saying.go.set()
        found = await call

    assert not found.is_error
    assert "at last" in str(found.content)


async def test_of_two_swaps_at_once_the_newer_stays(studio: Studio, tmp_path: Path, pool: Pool) -> None:
    policies = tmp_path / "policies"
    policies.mkdir()
    file, pipe = policies / "ours.cedar", tmp_path / "pipe"
    text = '@id("ours")\nforbid (principal == Hub::Service::"nobody", action, resource);\n'
    file.write_text(text)
    await pin(pool, ECHO)
    async with studio.runtime(upstreams=joined(tmp_path), policies_dir=policies) as runtime:
        await pin(pool, ECHO, MORE)
        os.mkfifo(pipe)
        file.unlink()
        os.link(pipe, file)
        older = asyncio.create_task(runtime.upstreams.renew())
        writer = await wait_until(lambda: _opened(pipe), "the older swap reads the policies")
        file.unlink()
        file.write_text(text)
        await pin(pool, MORE)
        newer = asyncio.create_task(runtime.upstreams.renew())
        await asyncio.wait({newer}, timeout=0.5)  # it would have landed by then, if it did not wait for the older one
        assert writer is not None
        os.write(writer, text.encode())
        os.close(writer)
        await asyncio.gather(older, newer)

        assert names(runtime) == {"ex_more"}
        assert set(runtime.gate.policy.catalogue.entries) >= {"ex_more"}


def _opened(pipe: Path) -> int | None:
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None


async def test_those_who_listen_are_told_of_the_lists_that_changed_and_of_no_other(
    studio: Studio, tmp_path: Path, pool: Pool
) -> None:
    async def next_of(events: Any) -> str:
        async with asyncio.timeout(60):
            return type(await anext(aiter(events))).__name__

    await pin(pool, ECHO)
    async with (
        studio.hub(works=False, upstreams=joined(tmp_path, watch_s=3600)) as hub,
        hub.client("person:anna", "engineer") as client,
        client.listen(tools_list_changed=True, prompts_list_changed=True, resources_list_changed=True) as events,
    ):
        await Pins(pool).saw("ex", [ECHO, MORE], {})  # new, so withheld: nobody's list changes
        await Pins(pool).accept("ex", "tool", "more", MORE.digest, "person:otto")
        assert await next_of(events) == "ToolsListChanged"
        assert "ex_more" in {each.name for each in (await client.list_tools()).tools}

        await Pins(pool).saw("ex", [ECHO, MORE, GREET], {})
        await Pins(pool).accept("ex", "prompt", "greet", GREET.digest, "person:otto")
        assert await next_of(events) == "PromptsListChanged"
        assert "ex_greet" in {each.name for each in (await client.list_prompts()).prompts}

        await Pins(pool).saw("ex", [ECHO, MORE, GREET, SEA], {})
        await Pins(pool).accept("ex", "resource", "demo://sea", SEA.digest, "person:otto")
        assert await next_of(events) == "ResourcesListChanged"


async def test_a_studios_policy_names_a_tool_of_theirs_and_holds_after_every_swap(
    studio: Studio, server: Served, tmp_path: Path
) -> None:
    policies = tmp_path / "policies"
    policies.mkdir()
    rule = '@id("no-echo")\nforbid (principal, action == Hub::Action::"ex_echo", resource);\n'
    (policies / "ours.cedar").write_text(rule)
    settings: dict[str, object] = {"upstreams": joined(tmp_path, server.url), "policies_dir": policies}
    with pytest.raises(PolicyError):  # nobody has seen such a tool
        async with studio.runtime(**settings):
            pass
    async with studio.hub(works=False, upstreams=settings["upstreams"]) as hub:
        await wait_until(lambda: "ex_echo" in names(hub.runtime), "it has been seen")
    async with studio.hub(works=False, **settings) as hub, hub.client("person:anna", "engineer") as client:
        assert "no-echo" in error_of(await client.call_tool("ex_echo", {}))["message"]
        server.saying.tools = [tool("echo", "Changed."), tool("held")]
        await wait_until(lambda: names(hub.runtime) == {"ex_held"}, "it is withheld")
        assert "no-echo" in error_of(await client.call_tool("ex_echo", {}))["message"]
        server.saying.tools = [tool("echo"), tool("held")]
        await wait_until(lambda: names(hub.runtime) == {"ex_echo", "ex_held"}, "it is back")
        assert "no-echo" in error_of(await client.call_tool("ex_echo", {}))["message"]
        assert "called echo" not in server.saying.notes


async def test_a_worker_follows_what_is_pinned_and_looks_at_nothing(
    studio: Studio, server: Served, tmp_path: Path, pool: Pool
) -> None:
    await pin(pool, ECHO)
    async with (
        studio.runtime(name="worker", upstreams=joined(tmp_path, server.url)) as runtime,
        runtime.upstreams.watching(runtime.moves, looks=False),
    ):
        await Pins(pool).saw("ex", [ECHO, MORE], {})
        await Pins(pool).accept("ex", "tool", "more", MORE.digest, "person:otto")
        await wait_until(lambda: names(runtime) == {"ex_echo", "ex_more"}, "what was accepted elsewhere runs here")
    assert server.saying.headers == []
