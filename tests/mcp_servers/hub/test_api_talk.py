"""POST /npcs/{npc_id}/talk over a served hub: events as they come, one JSON answer, and every way it can go wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from body_broker.storage.postgres import Pool
from tests.counterparts.faultwall.wall import MODEL, FaultWall, Reply, Tool, fault_wall
from tests.mcp_servers.hub.conftest import Hub, OpenHub
from tests.mcp_servers.hub.talks import talking_hub, with_small
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio

Event = tuple[str, dict[str, Any]]


@pytest.fixture
async def wall() -> AsyncIterator[FaultWall]:
    async with fault_wall("vllm") as found:
        yield found


@pytest.fixture
async def hub(pool: Pool, open_hub: OpenHub, wall: FaultWall, redis: object) -> AsyncIterator[Hub]:
    _ = redis  # flushed before the test
    async with talking_hub(pool, open_hub, silver_url=wall.url["vllm"]) as found:
        yield found


@asynccontextmanager
async def posted(
    hub: Hub, npc_id: str, body: object, *, who: str = "service:game", accept: str = "*/*", verb: str = "POST"
) -> AsyncGenerator[aiohttp.ClientResponse]:
    headers = {"authorization": f"Bearer {await hub.token(who)}", "accept": accept}
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    async with (
        aiohttp.ClientSession() as session,
        session.request(verb, f"{hub.base}/npcs/{npc_id}/talk", data=data, headers=headers) as response,
    ):
        yield response


async def events_of(response: aiohttp.ClientResponse) -> list[Event]:
    assert response.content_type == "text/event-stream"
    found: list[Event] = []
    for block in (await response.text()).strip().split("\n\n"):
        name, data = block.split("\n", 1)
        found.append((name.removeprefix("event: "), orjson.loads(data.removeprefix("data: "))))
    return found


def text_of(events: list[Event]) -> str:
    """What a reader has before it at the end."""
    text = ""
    for name, data in events:
        text = "" if name == "restart" else text + data["text"] if name == "text" else text
    return text


async def test_an_answer_is_told_as_it_comes_and_then_whole(hub: Hub, wall: FaultWall) -> None:
    wall.say("vllm", Reply(calls=(Tool("get_world_state", {"region": "fen"}),)), Reply(text="Fog, and more fog."))
    async with posted(hub, "mara", {"message": "How is the weather?", "player": "ben"}) as response:
        events = await events_of(response)
    names = [name for name, _ in events]
    assert {"tool", "tool_done", "routed", "text", "done"} == set(names)
    assert names.count("text") > 1
    assert events[0] == ("routed", {"tier": "silver", "reason": "interactive, with tools"})
    assert [event for event in events if event[0] in {"tool", "tool_done"}] == [
        each
        for name in ("get_npc_state", "retrieve_lore", "get_world_state")
        for each in (("tool", {"name": name}), ("tool_done", {"name": name, "outcome": "ok"}))
    ]
    assert names.index("text") > names.index("tool_done")
    assert (names.count("routed"), names[-1]) == (1, "done")
    done = events[-1][1]
    assert text_of(events) == done["says"] == "Fog, and more fog."
    assert (done["npc_id"], done["source"], done["engine"]) == ("mara", "model", "silver")
    assert done["ttft_s"] == round(done["ttft_s"], 4)
    assert done["seconds"] >= done["ttft_s"] >= sum(used["seconds"] for used in done["tools"]), "they came before"
    assert (done["prompt_tokens"] > 0, done["completion_tokens"] > 0, done["cached_tokens"]) == (True, True, 0)


async def test_what_broke_off_is_taken_back_before_another_model_speaks(
    pool: Pool, open_hub: OpenHub, wall: FaultWall, tmp_path: Path, redis: object
) -> None:
    _ = redis
    url, models = wall.url["vllm"], with_small(tmp_path, wall)
    async with (
        talking_hub(pool, open_hub, silver_url=url, silver_model=f"{MODEL}-cut", models=models) as hub,
        posted(hub, "mara", {"message": "Hello", "look_up": "never"}) as response,
    ):
        events = await events_of(response)
    assert ("restart", {"reason": "cut"}) in events
    assert ("fallback", {"engine": "silver", "reason": "cut"}) in events
    done = events[-1][1]
    assert text_of(events) == done["says"]
    assert (done["source"], done["engine"]) == ("smaller", "silver-small")


async def test_where_nobody_else_can_answer_what_broke_off_gives_way_to_a_fixed_text(hub: Hub, wall: FaultWall) -> None:
    wall.fault("vllm", "cut")
    async with posted(hub, "mara", {"message": "Hello", "look_up": "never"}) as response:
        events = await events_of(response)
    assert "restart" in [name for name, _ in events]
    assert text_of(events) == events[-1][1]["says"] == "(There is no answer just now.)"
    assert events[-1][1]["source"] == "template"


async def test_whoever_accepts_json_alone_gets_the_result_alone(hub: Hub, wall: FaultWall) -> None:
    wall.say("vllm", Reply(text="Aye."))
    async with posted(hub, "mara", {"message": "Hello"}, accept="application/json") as response:
        assert response.content_type == "application/json"
        found = await response.json()
    assert (response.status, found["says"], found["source"]) == (200, "Aye.", "model")


@pytest.mark.parametrize("accept", ["*/*", "application/json"])
async def test_what_is_refused_is_no_stream_but_a_status_and_a_reason(hub: Hub, wall: FaultWall, accept: str) -> None:
    for npc_id, body, status, code in (
        ("nobody", {"message": "Hello"}, 404, "not_found"),
        ("osric", {"message": "Hello"}, 409, "conflict"),
        ("mara", {}, 400, "bad_input"),
        ("mara", {"message": "Hello", "mood": "angry"}, 400, "bad_input"),
        ("mara", {"message": "Hello", "npc_id": "ivo"}, 400, "bad_input"),
        ("mara", b"{", 400, "bad_input"),
        ("mara", b"[]", 400, "bad_input"),
    ):
        async with posted(hub, npc_id, body, accept=accept) as response:
            told = await response.json()
            assert (response.status, told["error"]["code"]) == (status, code), body
    async with posted(hub, "mara", {"message": "Hello"}, who="tier:silver", accept=accept) as response:
        assert response.status == 403
    async with posted(hub, "mara", b"", verb="GET", accept=accept) as response:
        assert (response.status, response.headers["allow"]) == (405, "POST")
    assert wall.asked("vllm") == []


async def test_a_fixed_text_taints_nobody_and_the_first_piece_of_a_models_does(hub: Hub, wall: FaultWall) -> None:
    token = await hub.token("person:anna", "designer")
    headers = {"authorization": f"Bearer {token}"}

    async def talk() -> tuple[list[Event], bool]:
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.post(f"{hub.base}/npcs/mara/talk", json={"message": "Hello", "look_up": "never"}) as response,
        ):
            events = await events_of(response)
        async with hub.client_with(token) as client:
            found: Any = (await client.call_tool("whoami", {})).structured_content
        return events, found["tainted"]

    wall.fault("vllm", "unavailable")
    events, tainted = await talk()
    assert (events[-1][1]["source"], tainted) == ("template", False)
    wall.fault("vllm", None)
    events, tainted = await talk()
    assert (events[-1][1]["source"], tainted) == ("model", True)


async def test_a_piece_leaves_only_after_its_reader_s_session_has_the_taint(hub: Hub, wall: FaultWall) -> None:
    wall.fault("vllm", "slow_drip")
    token = await hub.token("person:anna", "designer")
    async with (
        aiohttp.ClientSession(headers={"authorization": f"Bearer {token}"}) as session,
        session.post(f"{hub.base}/npcs/mara/talk", json={"message": "Hello", "look_up": "never"}) as response,
    ):
        async for line in response.content:
            if line == b"event: text\n":
                break
        assert wall.inside["vllm"] == 1, "there is more to come"
        async with hub.client_with(token) as client:
            found: Any = (await client.call_tool("whoami", {})).structured_content
    assert found["tainted"] is True


async def test_without_a_token_nobody_talks(hub: Hub, wall: FaultWall) -> None:
    async with aiohttp.ClientSession() as session, session.post(f"{hub.base}/npcs/mara/talk", json={}) as response:
        assert response.status == 401
    assert wall.asked("vllm") == []


@pytest.mark.parametrize("accept", ["*/*", "application/json"])
async def test_a_player_who_leaves_frees_the_engine(hub: Hub, wall: FaultWall, accept: str) -> None:
    wall.fault("vllm", "slow_drip")
    headers = {"authorization": f"Bearer {await hub.token('service:game')}", "accept": accept}
    async with aiohttp.ClientSession() as session:
        body = {"message": "Hello", "look_up": "never"}
        asking = asyncio.create_task(_read(session, f"{hub.base}/npcs/mara/talk", body, headers))
        await wait_until(lambda: wall.inside["vllm"] == 1, "the engine is asked")
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await wait_until(lambda: wall.left["vllm"] == 1 and wall.inside["vllm"] == 0, "the engine is free")
    engine = (await hub.runtime.inferring.tiers()).engines["silver"]
    await wait_until(lambda: engine.in_flight == 0, "its slot is free")


async def _read(session: aiohttp.ClientSession, url: str, body: dict[str, Any], headers: dict[str, str]) -> bytes:
    async with session.post(url, json=body, headers=headers) as response:
        return await response.read()
