"""An NPC of the starter world answers a player: a served hub, its policy and audit, our silver tier, and a real vLLM process.

The model is one of our own that knows nothing: it writes the calls that the test gave it, or what a grammar forces it to, and its
words are noise. What is shown is that real tool calls reach lore and game state, under both identities, and come back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpcore2  # noqa: F401  # pyright: ignore[reportUnusedImport]  # else loaded, from disk, when the demo makes its first client
import httpx2
import orjson
import pytest

from body_broker.audit.trail import tail
from body_broker.world.files.checking import STARTER, open_world
from mcp_servers.hub.cli.context import record
from mcp_servers.hub.cli.demo_talk import go_talk
from mcp_servers.hub.cli.world import load_world
from mcp_servers.hub.engine import arbitrating
from mcp_servers.hub.worker import working
from tests.mcp_servers.hub.conftest import Hub, OpenHub, open_hub, settings_for
from tests.mcp_servers.hub.test_traces import Traced, traced
from tests.tools.trace_picture import draw, span_rows
from tests.vllm.server import CALLS, gauge
from tests.waiting import wait_until

__all__ = ["open_hub", "settings_for", "traced"]  # fixtures

pytestmark = [pytest.mark.anyio, pytest.mark.requires("vllm"), pytest.mark.timeout(400)]

FERRYMAN = "osric_vane"
QUESTION = "For whom do you keep the lanterns on your ferry?"
TALK = {"npc_id": FERRYMAN, "message": QUESTION, "player": "wren", "latency_budget_ms": 120_000}
OUR_READS = ["get_npc_state", "retrieve_lore"]
"""What the tier reads before it asks a model."""
PATIENT = """
[engines.silver]
ttft_s = 60
stall_s = 60
context_tokens = 32768
"""


@pytest.fixture
async def hub(open_hub: OpenHub, redis: object, vllm_url: str, tmp_path: Path) -> AsyncGenerator[Hub]:
    """A hub with the starter world whose silver engine is the real vLLM."""
    _ = redis  # flushed before the test
    models = tmp_path / "models.toml"
    models.write_text(PATIENT, "utf-8")
    async with (
        open_hub(silver_url=f"{vllm_url}/v1", models=models) as found,
        working(found.runtime),
        arbitrating(found.runtime),
    ):
        receipt = await record(found.runtime, "world load")
        world = await asyncio.to_thread(open_world, STARTER)
        await load_world(found.runtime, world, by="operator:ann", receipt=receipt)
        await wait_until(lambda: found.runtime.services.world.get(FERRYMAN) is not None, "the hub's map follows")
        yield found


async def test_an_npc_answers_with_tool_calls_to_lore_and_game_state(hub: Hub) -> None:
    async with hub.client("service:game") as game:
        said: Any = (await game.call_tool("talk_to_npc", TALK)).structured_content
    assert (said["source"], said["engine"], said["model"]) == ("model", "silver", "tiny"), said["fallbacks"]
    assert said["says"].strip()
    called = [(each["name"], each["outcome"]) for each in said["tools"]]
    assert called == [(name, "ok") for name in [*OUR_READS, *(call.name for call in CALLS)]]
    assert said["from_outside"]


async def test_each_of_those_calls_is_on_the_audit_under_both_identities(hub: Hub) -> None:
    async with hub.client("service:game") as game:
        await game.call_tool("talk_to_npc", TALK)
    seen = [entry.record for entry in await tail(hub.runtime.stores.pool, 200, action="get_world_state")]
    assert {each.requester for each in seen} == {"service:game>tier:silver"}


async def test_a_call_that_must_be_made_is_forced_by_the_tools_own_schema(hub: Hub) -> None:
    async with hub.client("service:game") as game:
        said: Any = (await game.call_tool("talk_to_npc", {**TALK, "look_up": "always"})).structured_content
    assert said["source"] == "model", said["fallbacks"]
    assert [each["outcome"] for each in said["tools"][len(OUR_READS) :]][:1] == ["ok"], said


async def test_an_npc_that_may_not_look_things_up_only_talks(hub: Hub) -> None:
    async with hub.client("service:game") as game:
        said: Any = (await game.call_tool("talk_to_npc", {**TALK, "look_up": "never"})).structured_content
    assert (said["source"], [each["name"] for each in said["tools"]]) == ("model", OUR_READS)


async def test_over_http_the_answer_is_told_as_it_comes(hub: Hub) -> None:
    headers = {"authorization": f"Bearer {await hub.token('service:game')}"}
    events: list[tuple[str, Any]] = []
    async with (
        httpx2.AsyncClient(headers=headers, timeout=120) as http,
        http.stream("POST", f"{hub.base}/npcs/{FERRYMAN}/talk", json=TALK) as answer,
    ):
        assert answer.status_code == httpx2.codes.OK
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                events.append((line.removeprefix("event: "), None))
            elif line.startswith("data: "):
                events[-1] = (events[-1][0], orjson.loads(line.removeprefix("data: ")))
    kinds = [kind for kind, _ in events]
    assert kinds[-1] == "done"
    assert {"routed", "tool", "text"} <= set(kinds)
    assert "".join(data["text"] for kind, data in events if kind == "text") == events[-1][1]["says"]


async def test_a_player_who_leaves_frees_the_engines_slot(hub: Hub, vllm_url: str) -> None:
    headers = {"authorization": f"Bearer {await hub.token('service:game')}"}
    before = await gauge(vllm_url, "vllm:num_requests_running")
    async with (
        httpx2.AsyncClient(headers=headers, timeout=120) as http,
        http.stream("POST", f"{hub.base}/npcs/{FERRYMAN}/talk", json=TALK) as answer,
    ):
        async for line in answer.aiter_lines():
            if "event: text" in line:
                break

    async def idle() -> bool:
        return await gauge(vllm_url, "vllm:num_requests_running") == 0

    assert before == 0
    await wait_until(idle, "vLLM works for nobody", 60)


async def test_the_demo_shows_who_answered_and_what_was_called(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    await go_talk(hub.url, hub.runtime.tokens)
    shown = capsys.readouterr().out
    assert f"talks    {FERRYMAN}: " in shown
    assert f"{CALLS[0].name} ok, {CALLS[1].name} ok, each as service:game>tier:silver" in shown
    assert "tiny (the tests' model: words by chance) at silver" in shown


async def test_the_whole_talk_is_one_trace_and_its_picture_shows_it(hub: Hub, traced: Traced, tmp_path: Path) -> None:
    """Its picture, trace.svg in the test's folder, is docs/pictures/npc-trace.svg."""
    async with hub.client("service:game") as game:
        traced.clear()
        await game.call_tool("talk_to_npc", TALK)
    spans = [each for each in traced.get_finished_spans() if each.context]
    (talk,) = [each for each in traced.named("hub.call") if (each.attributes or {}).get("operation") == "talk_to_npc"]
    assert talk.context
    mine = [each for each in spans if each.context and each.context.trace_id == talk.context.trace_id]
    tools = [(each.attributes or {}).get("tool") for each in mine if each.name == "tier.tool"]
    assert sorted(map(str, tools)) == sorted([*OUR_READS, *(call.name for call in CALLS)])
    assert [each.name for each in mine].count("tier.engine") == 2
    picture = draw(
        span_rows(mine),
        "A player asks an NPC: the hub, the silver tier, a real vLLM, and four calls of the hub's tools",
    )
    (tmp_path / "trace.svg").write_text(picture, "utf-8")
    assert picture.count("tier.tool") == len(tools)
