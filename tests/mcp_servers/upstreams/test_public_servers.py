"""Two public servers that nobody here wrote, joined for real: `server-everything` over stdio, the SDK's example over HTTP with its OAuth."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from mcp_types import CallToolResult, TextContent

from body_broker.settings import Settings
from mcp_servers.hub.wire import OUTSIDE_META
from mcp_servers.upstreams.auth import GRANT, Credentials
from mcp_servers.upstreams.login import login
from mcp_servers.upstreams.pins import Pins
from tests.mcp_servers.hub.conftest import Hub
from tests.mcp_servers.hub.deeds import APPROVERS, Deeds, Studio
from tests.mcp_servers.upstreams.browser import opened
from tests.npm_modules import npm_modules
from tests.ports import free_port
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio

ANNA = ("person:anna", "engineer")


@pytest.fixture
def studio(settings_for: Callable[..., Settings], tmp_path: Path, redis: object) -> Studio:
    _ = redis  # flushed before the test
    approvers = tmp_path / "approvers.toml"
    approvers.write_text(APPROVERS, encoding="utf-8")
    return Studio(settings_for, approvers, Deeds())


@pytest.fixture
async def sdk_url() -> AsyncGenerator[str]:
    """The SDK's example, with its own authorization server beside it."""
    modules, port, auth_port = npm_modules(), free_port(), free_port()
    process = await asyncio.create_subprocess_exec(
        modules.node,
        modules.sdk_server,
        "--oauth",
        env={"MCP_PORT": str(port), "MCP_AUTH_PORT": str(auth_port), "PATH": os.defpath},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )

    def listen() -> bool:
        return all(map(answers, (port, auth_port)))

    try:
        await wait_until(listen, "the public server listens")
        yield f"http://localhost:{port}/mcp"
    finally:
        process.kill()
        await process.wait()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def text_of(result: CallToolResult) -> str:
    return "\n".join(block.text for block in result.content if isinstance(block, TextContent))


@asynccontextmanager
async def joined(studio: Studio, tmp_path: Path, text: str) -> AsyncGenerator[Hub]:
    file = tmp_path / "upstreams.toml"
    file.write_text(text, encoding="utf-8")
    async with studio.hub(works=False, upstreams=file) as hub:
        yield hub


async def lists(hub: Hub, name: str) -> None:
    async def find() -> bool:
        async with hub.client(*ANNA) as client:
            return name in {each.name for each in (await client.list_tools()).tools}

    await wait_until(find, f"the hub lists {name}")


async def test_everything_over_stdio(studio: Studio, tmp_path: Path) -> None:
    modules = npm_modules()
    command = json.dumps([modules.node, modules.everything, "stdio"])
    text = f'[everything]\ncommand = {command}\n[everything.tools.echo]\ngroup = "retrieval"\n'
    async with joined(studio, tmp_path, text) as hub:
        await lists(hub, "everything_echo")
        async with hub.client(*ANNA) as client:
            found = await client.call_tool("everything_echo", {"message": "hello"})
            refused = await client.call_tool("everything_echo", {"message": 7})
            resources = [each.uri for each in (await client.list_resources()).resources]
            prompts = [each.name for each in (await client.list_prompts()).prompts]
        pins = (await Pins(hub.runtime.stores.pool).read())["everything"]

    assert not found.is_error
    assert "Echo: hello" in text_of(found)
    assert (found.meta or {})[OUTSIDE_META] is True
    assert refused.is_error
    assert [str(uri) for uri in resources if str(uri).startswith("everything+")]
    assert [name for name in prompts if name.startswith("everything_")]
    assert {each.state for each in pins} == {"pinned"}
    assert {each.kind for each in pins} == {"tool", "prompt", "resource", "template"}


async def test_the_sdks_example_over_http_with_its_oauth(studio: Studio, tmp_path: Path, sdk_url: str) -> None:
    text = f'[sdk]\nurl = "{sdk_url}"\nauth = "oauth"\nwatch_s = 1\n[sdk.tools.greet]\ngroup = "retrieval"\n'
    pages: list[str] = []
    async with joined(studio, tmp_path, text) as hub:
        upstream = hub.runtime.upstreams.joined("sdk")
        assert upstream is not None
        pool = hub.runtime.stores.pool
        credentials = Credentials(pool, hub.runtime.secrets.derive("upstreams"), "sdk")
        assert await credentials.names() == frozenset()
        await login(upstream, credentials, show=opened(pages))
        await lists(hub, "sdk_greet")
        async with hub.client(*ANNA) as client:
            found = await client.call_tool("sdk_greet", {"name": "Ida"})
        pins = (await Pins(pool).read())["sdk"]
        assert await credentials.names() == {GRANT}

    assert pages
    assert not found.is_error
    assert "Ida" in text_of(found)
    assert (found.meta or {})[OUTSIDE_META] is True
    assert {each.state for each in pins} == {"pinned"}
