"""Clients nobody here wrote: the official SDK over HTTP in both revisions and over stdio, fastmcp's command line."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters

from tests.mcp_servers.hub.conftest import Hub, error_of

HUB = str(Path(sys.executable).with_name("body-broker"))
FASTMCP = str(Path(sys.executable).with_name("fastmcp"))


@pytest.mark.parametrize(("mode", "version"), [("auto", "2026-07-28"), ("legacy", "2025-11-25")])
async def test_the_official_client_works_over_http_in_both_revisions(hub: Hub, mode: str, version: str) -> None:
    async with hub.client("person:anna", "engineer", mode=mode) as client:
        assert client.protocol_version == version
        assert client.instructions
        tools = {t.name: t for t in (await client.list_tools()).tools}
        who = await client.call_tool("whoami", {})
        note = await client.read_resource("fx://note/7")
        prompt = await client.get_prompt("fx_greet", {"id": "Osric"})
        templates = [t.uri_template for t in (await client.list_resource_templates()).resource_templates]
    assert who.structured_content is not None
    assert who.structured_content["chain"] == ["person:anna"]
    assert note.contents[0].text == "note 7"  # type: ignore[union-attr]
    assert prompt.messages[0].content.text == "Greet Osric."  # type: ignore[union-attr]
    assert "fx://note/{id}" in templates
    annotations = tools["fx_echo"].annotations
    assert annotations is not None
    assert None not in (
        annotations.read_only_hint,
        annotations.destructive_hint,
        annotations.idempotent_hint,
        annotations.open_world_hint,
    )


async def test_instructions_cost_a_model_little(hub: Hub) -> None:
    async with hub.client("tier:silver") as client:
        assert client.instructions is not None
        assert len(client.instructions) / 4 <= 300  # about four characters a token in English


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_progress_reaches_the_client_that_asks_for_it(hub: Hub, mode: str) -> None:
    heard: list[tuple[float, float | None, str | None]] = []

    async def listen(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, total, message))
        hub.seen.release.set()

    async with hub.client("tier:silver", mode=mode) as client:
        result = await client.call_tool("fx_wait", {}, progress_callback=listen)
    assert not result.is_error
    assert heard == [(1, 2, "begun")]


async def test_a_cancelled_call_of_the_official_client_stops_the_read(hub: Hub) -> None:
    # A 2025-11-25 client cancels by a notification of its own, which stateless HTTP cannot tie to the call.
    async with hub.client("tier:silver") as client:
        calling = asyncio.create_task(client.call_tool("fx_wait", {}))
        async with asyncio.timeout(60):
            await hub.seen.started.wait()
            calling.cancel()
            await hub.seen.cancelled.wait()
        await asyncio.wait([calling])


@asynccontextmanager
async def stdio_client(data_dir: Path, *args: str, mode: str = "auto", **env: str) -> AsyncGenerator[Client]:
    server = StdioServerParameters(
        command=HUB,
        args=["serve", "--stdio", "--data-dir", str(data_dir), *args],
        env={"PATH": os.environ["PATH"], "HOME": str(data_dir), **env},  # noqa: TID251 - a child's environment
    )
    async with Client(server, mode=mode) as client:
        yield client


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_the_official_client_works_over_stdio_as_a_person(tmp_path: Path, mode: str) -> None:
    async with stdio_client(tmp_path, "--as", "person:anna", mode=mode) as client:
        who = await client.call_tool("whoami", {})
        refused = error_of(await client.call_tool("search_lore", {"query": "x"}))
    assert who.structured_content is not None
    assert who.structured_content["chain"] == ["person:anna"]
    assert refused["rules"] == ["default-deny:retrieval"]  # a person without a role


async def test_a_single_server_is_served_alone_through_the_same_gate(tmp_path: Path) -> None:
    code, token, err = await run(HUB, "token", "issue", "--tier", "silver", "--data-dir", str(tmp_path))
    assert code == 0, err
    async with stdio_client(tmp_path, "rag", BODY_BROKER_TOKEN=token.strip()) as client:
        names = {t.name for t in (await client.list_tools()).tools}
    assert {"whoami", "search_lore"} <= names
    code, _, err = await run(HUB, "serve", "no-such-server", "--stdio", "--as", "person:a", "--data-dir", str(tmp_path))
    assert code == 1
    assert "There is no server called no-such-server." in err


async def run(*command: str, typed: str | None = None, **env: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL if typed is None else asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **env},  # noqa: TID251 - a child's environment
    )
    out, err = await process.communicate(None if typed is None else f"{typed}\n".encode())
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_stdio_without_identity_is_refused_before_a_client_is_served(tmp_path: Path) -> None:
    code, out, err = await run(HUB, "serve", "--stdio", "--data-dir", str(tmp_path))
    assert (code, out) == (1, "")
    assert "--as person:NAME" in err


async def test_fastmcp_s_command_line_lists_and_calls(hub: Hub) -> None:
    token = await hub.token("person:anna", "engineer")
    quiet = {"FASTMCP_CHECK_FOR_UPDATES": "off"}
    code, listed, err = await run(FASTMCP, "list", hub.url, "--auth", token, "--json", **quiet)
    assert code == 0, err
    assert "fx_echo" in listed
    code, called, err = await run(FASTMCP, "call", hub.url, "fx_echo", "text=hello", "--auth", token, "--json", **quiet)
    assert code == 0, err
    assert json.loads(called)["structured_content"]["said"] == "hello"


async def test_the_example_agent_runs_to_its_end_and_reads_its_refusals(hub: Hub) -> None:
    example = Path(__file__).parents[3] / "examples" / "agent.py"
    token = await hub.token("tier:silver")
    code, out, err = await run(sys.executable, str(example), hub.url, token, "Who rows the ferry?")
    assert code == 0, err
    assert "refused: ingest_documents is not allowed here by rule default-deny:write." in out
    assert "You are tier:silver" in out


async def test_an_old_client_s_get_does_not_hang_the_hub(hub: Hub) -> None:
    token = await hub.token("tier:silver")
    headers = {"authorization": f"Bearer {token}", "accept": "text/event-stream", "mcp-protocol-version": "2025-11-25"}
    async with httpx2.AsyncClient(timeout=60) as http, http.stream("GET", hub.url, headers=headers) as answer:
        assert answer.status_code in {200, 405}
