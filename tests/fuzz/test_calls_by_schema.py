"""Calls drawn from every tool's own schema, by every kind of caller: whatever comes out is what the independent table says."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import httpx2

from mcp_servers.hub.listing import tool_definition
from mcp_servers.hub.rooms import ROOMS
from tests.fuzz.calls import told
from tests.fuzz.drawing import Drawing
from tests.fuzz.studio import CAME_UP, NEEDED, fuzzed
from tests.fuzz.table import LATER, TOOLS
from tests.mcp_servers.hub.conftest import OpenHub
from tests.mcp_servers.hub.test_gate import modern, request

CALLS = 5_000
HTTP_CALLS = 100


def seed_here() -> int:
    """BODY_BROKER_TEST_SEED, else the one that has been in the tree."""
    return int(os.environ.get("BODY_BROKER_TEST_SEED", "9"))  # noqa: TID251  # tests' own


def test_the_table_has_every_tool() -> None:
    assert {tool.name for room in ROOMS for tool in room.tools} - LATER == set(TOOLS)


async def test_drawn_calls_are_decided_as_the_table_says_and_answered_as_promised(
    open_hub: OpenHub, redis: object, tmp_path: Path
) -> None:
    _ = redis  # flushed before the test
    async with fuzzed(open_hub, tmp_path) as (fuzz, _hub):
        assert fuzz.things.kinds() >= NEEDED
        tally = await fuzz.run(CALLS, seed=seed_here())
    assert not tally.faults, "\n".join([told(tally, TOOLS), *tally.faults[:20]])
    assert tally.reached * 2 >= tally.calls >= CALLS, told(tally, TOOLS)
    assert fuzz.things.kinds() >= CAME_UP
    assert set(tally.tools) == set(TOOLS)
    assert set(tally.verdicts) == {"Allow", "Ask", "Deny"}
    assert not tally.limits, told(tally, TOOLS)


async def test_drawn_calls_over_http_are_answered_without_an_internal_error(
    open_hub: OpenHub, redis: object, tmp_path: Path
) -> None:
    _ = redis  # flushed before the test
    chance = random.Random(seed_here())  # noqa: S311 - a fuzzer's
    async with fuzzed(open_hub, tmp_path) as (fuzz, hub), httpx2.AsyncClient(timeout=60) as http:
        drawing = Drawing(fuzz.things, chance)
        for _ in range(HTTP_CALLS):
            tool = chance.choice([t for room in ROOMS for t in room.tools if t.name in TOOLS])
            arguments = drawing.arguments(tool.name, tool_definition(tool).input_schema)
            body = json.dumps(request("tools/call", {"name": tool.name, "arguments": arguments}))
            headers = modern(fuzz.whos[chance.randrange(len(fuzz.whos))].token, "tools/call", tool.name)
            answer = await http.post(hub.url, headers=headers, content=body)
            assert answer.status_code == 200, (tool.name, arguments, answer.text)
            assert '"internal"' not in answer.text, (tool.name, arguments)
