"""Owns a served hub between two lines to its stores, and whoever asks it what the page about degradation says."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from body_broker.storage.postgres import Pool
from tests.counterparts.line import Line
from tests.mcp_servers.game_state.conftest import OpenHub, open_hub, settings_for, world
from tests.mcp_servers.game_state.test_changing import HURT
from tests.tools.project import ROOT
from tests.waiting import wait_until

__all__ = ["open_hub", "settings_for", "world"]  # fixtures

_PATIENCE_S = 180.0
"""A call that takes longer hangs: a question to a silent PostgreSQL is given up after 35 s, one to Redis after 5, and a call asks a few."""
DRAFTS = [{"title": "A note", "text": "The ferry never sank."}]
CALLS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "`whoami`": ("tier:silver", "whoami", {}),
    "`tools/list`": ("tier:silver", "", {}),
    "`get_npc_state` from the map (gold)": ("tier:gold", "get_npc_state", {"npc_id": "osric", "fresh": False}),
    "`get_npc_state` with `fresh`": ("tier:silver", "get_npc_state", {"npc_id": "osric", "fresh": True}),
    "`search_lore`": ("tier:silver", "search_lore", {"query": "ferry"}),
    "`queue_state_change`": ("service:game", "queue_state_change", {"change": HURT}),
    "`list_jobs`": ("tier:bronze", "list_jobs", {}),
    "`ingest_documents`, which people are asked for": ("tier:bronze", "ingest_documents", {"documents": DRAFTS}),
}
USUAL = {"`ingest_documents`, which people are asked for": "approval_pending"}
_READY = re.compile(r"(\d+), `(\w+)`")


def table() -> list[list[str]]:
    """The page's table: its rows' cells."""
    lines = (ROOT / "docs/degradation.md").read_text("utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if line.startswith("| ")][2:]


@dataclass
class Asked:
    """A served hub between two lines, and who asks it."""

    http: httpx2.AsyncClient
    url: str
    tokens: dict[str, str]

    async def call(self, row: str) -> str:
        """How a row's call ends: `answered`, or its error's code."""
        principal, tool, arguments = CALLS[row]
        method = "tools/call" if tool else "tools/list"
        meta: dict[str, Any] = {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        params: dict[str, Any] = ({"name": tool, "arguments": arguments} if tool else {}) | {"_meta": meta}
        headers = {
            "authorization": f"Bearer {self.tokens[principal]}",
            "accept": "application/json, text/event-stream",
            "mcp-protocol-version": "2026-07-28",
            "mcp-method": method,
            **({"mcp-name": tool} if tool else {}),
        }
        body: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        answer = await self.http.post(self.url, headers=headers, json=body)
        told = answer.json()
        result = told.get("result", {})
        if "tools" in result or ("structuredContent" in result and not result.get("isError")):
            return "answered"
        error = result.get("structuredContent", {}).get("error") or told.get("error", {}).get("data", {}).get("error")
        error = error or told["error"].get("data") or told["error"]
        assert error["next_step"], told
        assert error["retryable"] == (error["code"] in {"unavailable", "approval_pending", "deadline_exceeded"}), told
        return str(error["code"])

    async def ready(self) -> str:
        """What `/readyz` says, as the page writes it."""
        answer = await self.http.get(self.url.removesuffix("mcp") + "readyz")
        return f"{answer.status_code}" + "".join(f", `{part}`" for part in answer.json()["down"])

    async def require(self, column: int) -> None:
        """Everything is as this column of the page's table says."""
        for row, *cells in table():
            if row == "`/readyz`":
                found = _READY.match(await self.ready())
                assert found is not None, row
                assert found[0] == cells[column], row
            else:
                assert await self.call(row) == cells[column], row

    async def is_whole(self) -> bool:
        """Whether everything is answered as usual."""
        answers = [await self.call(row) for row in CALLS]
        return await self.ready() == "200" and answers == [USUAL.get(row, "answered") for row in CALLS]

    async def is_as(self, column: int) -> bool:
        """Whether every call is as this column says."""
        return [await self.call(row) for row in CALLS] == [cells[column] for row, *cells in table() if row in CALLS]


@pytest.fixture
async def lines(database_url: str, redis_url: str) -> AsyncGenerator[tuple[Line, Line]]:
    """To PostgreSQL and to Redis."""
    async with Line(database_url).carrying() as postgres, Line(redis_url).carrying() as redis:
        yield postgres, redis


@pytest.fixture
async def asked(open_hub: OpenHub, world: Pool, redis: object, lines: tuple[Line, Line]) -> AsyncGenerator[Asked]:
    """A hub whose stores lie behind the lines."""
    _ = world, redis
    urls = {"database_url": lines[0].url, "redis_url": lines[1].url}
    async with (
        open_hub(**urls, tools="all", approval_wait_s=0.05, approvals_open_max=10_000) as hub,
        httpx2.AsyncClient(timeout=_PATIENCE_S) as http,
    ):
        who = {principal for principal, _, _ in CALLS.values()}
        found = Asked(http, hub.url, {each: await hub.token(each) for each in who})
        await wait_until(found.is_whole, "everything is answered")
        yield found
