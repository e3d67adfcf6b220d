"""Texts and stories by an expert, from the call to what came of it: a served hub, its worker, and an engine nobody of the product wrote."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, get_args

import orjson
import pytest
from mcp import Client

from body_broker.errors import NotFound
from body_broker.storage.postgres import Pool
from body_broker.text import new_id
from body_broker.work import queue
from body_broker.work.model import FINAL, Origin, State
from mcp_servers.storyteller import arcs
from mcp_servers.storyteller.drafts import GenerateStoryArc, StoryArc
from mcp_servers.storyteller.writing import arc_of
from tests.counterparts.faultwall.wall import FaultWall, Reply, Tool, fault_wall
from tests.mcp_servers.hub.conftest import Hub, OpenHub, error_of
from tests.mcp_servers.hub.conversing import CONVERSATION, signed_in
from tests.mcp_servers.hub.expert_hub import ended, expert_hub
from tests.mcp_servers.storyteller.conftest import bring, put_world
from tests.mcp_servers.storyteller.test_tools import is_tainted, tell
from tests.waiting import wait_until
from tiers.bronze.kept import Kept
from tiers.bronze.model import Answer
from tiers.model import Tier, ToolCall

ANNA = ("person:anna", "designer")
WRONG = "Mara Thorne is thirty-six years old."


@pytest.fixture
async def wall() -> AsyncIterator[FaultWall]:
    async with fault_wall("vllm") as found:
        yield found


@pytest.fixture
async def studio(pool: Pool, open_hub: OpenHub, wall: FaultWall, redis: object) -> AsyncIterator[Hub]:
    """The small world's hub, with an expert."""
    _ = redis  # flushed before the test
    await put_world(pool)
    async with expert_hub(open_hub, wall) as found:
        await bring(found, "The Mill", "Coldharbour Mill grinds bone by night.")
        yield found


def asked_of(wall: FaultWall) -> list[list[dict[str, Any]]]:
    """The messages of each question."""
    return [seen.body["messages"] for seen in wall.asked("vllm")]


async def arc_at(client: Client, job_id: str, parts: int, status: State = "running") -> dict[str, Any]:
    """The story once it has so many parts and stands so."""

    async def look() -> dict[str, Any] | None:
        found = await tell(client, "get_story_arc", job_id=job_id)
        return found if (len(found["parts"]), found["status"]) == (parts, status) else None

    found = await wait_until(look, f"{job_id} is {status} with {parts} parts")
    assert found is not None
    return found


async def arc_at_end(hub: Hub, job_id: str) -> None:
    """Returns once the job has succeeded, without anybody's session reading it."""
    pool = hub.runtime.stores.pool

    async def look() -> bool:
        return await pool.fetchval("SELECT state = 'succeeded' FROM work WHERE id = $1", job_id)

    await wait_until(look, f"{job_id} succeeds")


async def test_a_text_is_written_as_a_job_and_held_against_canon(studio: Hub, wall: FaultWall) -> None:
    wall.say("vllm", Reply(calls=(Tool("retrieve_lore", {"topic": "the mill"}),)), Reply(text=WRONG))
    async with studio.client(*ANNA) as anna:
        assert {"generate_narrative", "generate_story_arc", "get_story_arc"} <= {
            tool.name for tool in (await anna.list_tools()).tools
        }
        begun = await tell(anna, "generate_narrative", prompt="A night at the mill", constraints=["No dragons"])
        assert begun["status"] == "queued"
        job = await ended(anna, begun["job_id"])
        kept = await tell(anna, "search_lore", query="thirty-six years old", persona="expert-results")
        shared = await tell(anna, "search_lore", query="thirty-six years old")
        tainted = await is_tainted(anna)

    assert (job["kind"], job["state"], job["title"]) == (
        "narrative",
        "succeeded",
        "Scene: “A night at the mill”",
    ), job
    result = job["result"]
    assert (result["text"], result["kind"], result["consistent"]) == (WRONG, "scene", False)
    assert [v["conflicts_with"]["text"] for v in result["violations"]] == ["Mara Thorne: age = 34"]
    assert (result["constraints"], result["omitted"]) == (["No dragons"], 0)
    assert [(use["name"], use["outcome"]) for use in result["made"]["tools"]] == [("retrieve_lore", "ok")]
    assert not result["made"]["outside"]
    first, second = wall.asked("vllm")
    assert {tool["function"]["name"] for tool in first.body["tools"]} == {
        "retrieve_lore",
        "check_consistency",
        "search_lore",
    }
    assert first.body["max_tokens"] == 2_000
    said = first.body["messages"]
    assert [message["role"] for message in said] == ["system", "user"]
    assert "dragons" not in said[0]["content"]
    assert "grinds bone" in str(second.body["messages"])
    # It is found where results are looked for, and never as canon.
    assert any(WRONG in item["content"] for item in kept["items"])
    assert all(WRONG not in item["content"] for item in shared["items"])
    assert tainted  # what experts wrote is no canon: whoever finds it in the lore is told so


async def test_a_story_is_read_part_by_part_while_it_is_written(studio: Hub, wall: FaultWall) -> None:
    wall.say(
        "vllm",
        Reply(text="1. Owed\n2. Paid"),
        Reply(calls=(Tool("search_lore", {"query": "the mill"}),)),
        Reply(text="\u200b"),
        Reply(text="Owed\n\nMara opened the door."),
        Reply(fault="silent"),
    )
    async with studio.client(*ANNA) as anna:
        job_id = (await tell(anna, "generate_story_arc", theme="debt", length=2))["job_id"]
        running = await arc_at(anna, job_id, 1)
        await wait_until(lambda: len(wall.asked("vllm")) == 5, "the second part is asked for")
        await tell(anna, "cancel_job", id=job_id)
        stopped = await arc_at(anna, job_id, 1, "cancelled")

    assert running["parts"] == stopped["parts"] == [{"title": "Owed", "text": "Mara opened the door."}]
    assert (running["of"], running["consistent"], running["from_outside"]) == (2, None, False)
    assert asked_of(wall)[4][-1]["content"].startswith("Write part 2 of 2")


async def test_a_whole_story_outlives_its_job_and_is_its_owner_s_alone(
    studio: Hub, wall: FaultWall, pool: Pool
) -> None:
    wall.say("vllm", Reply(text="1. Owed\n2. Paid"), Reply(text=f"Owed\n\n{WRONG}"), Reply(text="\u200b"))
    wall.say("vllm", Reply(text="Paid\n\nMara opened the door."))
    async with studio.client(*ANNA) as anna, studio.client("person:ben", "designer") as ben:
        job_id = (await tell(anna, "generate_story_arc", theme="debt", length=2))["job_id"]
        job = await ended(anna, job_id)
        whole = await tell(anna, "get_story_arc", job_id=job_id)
        second = await tell(anna, "get_story_arc", job_id=job_id, start=2)
        beyond = await tell(anna, "get_story_arc", job_id=job_id, start=9)
        strangers = [error_of(await ben.call_tool("get_story_arc", {"job_id": job_id}))]
        await pool.execute("DELETE FROM work WHERE id = $1", job_id)
        later = await tell(anna, "get_story_arc", job_id=job_id)
        strangers.append(error_of(await ben.call_tool("get_story_arc", {"job_id": job_id})))
        strangers.append(error_of(await ben.call_tool("get_story_arc", {"job_id": "job_unknown"})))

    assert job["state"] == "succeeded", job
    assert "There is no text in the answer." in asked_of(wall)[-1][-1]["content"]
    assert [part["title"] for part in whole["parts"]] == ["Owed", "Paid"]
    assert (whole["status"], whole["of"], whole["consistent"]) == ("succeeded", 2, False)
    assert [v["part"] for v in job["result"]["violations"]] == [1]
    assert (second, beyond) == (whole | {"parts": whole["parts"][1:]}, whole | {"parts": []})
    assert whole["written"] == 2
    assert later == whole
    assert {(error["code"], error["next_step"]) for error in strangers} == {("not_found", "list_jobs lists your jobs.")}


async def test_only_a_story_is_read_as_one(studio: Hub, wall: FaultWall, pool: Pool) -> None:
    wall.say("vllm", Reply(text="Mara opened the door."))
    async with studio.client(*ANNA) as anna:
        job_id = (await tell(anna, "generate_narrative", prompt="A door"))["job_id"]
        await ended(anna, job_id)
        errors = [error_of(await anna.call_tool("get_story_arc", {"job_id": job_id}))]
        await pool.execute("DELETE FROM work WHERE id = $1", job_id)
        errors.append(error_of(await anna.call_tool("get_story_arc", {"job_id": job_id})))
        errors.append(error_of(await anna.call_tool("get_story_arc", {"job_id": "job_unknown"})))
    told = [{name: error[name] for name in ("code", "message", "next_step")} for error in errors]
    assert told[0] == told[1] == told[2]
    assert told[0]["code"] == "not_found"


async def test_what_outside_text_went_into_taints_whoever_reads_it(studio: Hub, wall: FaultWall) -> None:
    await bring(studio, "Rumour", "They whisper that the heron pays in teeth.", canon=False)
    wall.say("vllm", Reply(calls=(Tool("retrieve_lore", {"topic": "heron"}),)), Reply(text="1. Teeth"))
    wall.say("vllm", Reply(text="Teeth\n\nThe heron pays."))
    async with studio.client(*ANNA) as anna:
        job_id = (await tell(anna, "generate_story_arc", theme="the heron", length=1))["job_id"]
        await arc_at_end(studio, job_id)
        assert not await is_tainted(anna)
        assert (await tell(anna, "get_story_arc", job_id=job_id))["from_outside"]
        assert await is_tainted(anna)


async def test_what_is_asked_for_after_reading_outside_text_is_from_outside(studio: Hub, wall: FaultWall) -> None:
    await bring(studio, "Rumour", "They whisper that the heron pays in teeth.", canon=False)
    wall.always["vllm"] = Reply(text="Mara opened the door.")
    async with studio.client(*ANNA) as anna:
        clean = await ended(anna, (await tell(anna, "generate_narrative", prompt="A door"))["job_id"])
        await tell(anna, "retrieve_lore", topic="heron")
        told = await ended(anna, (await tell(anna, "generate_narrative", prompt="A heron"))["job_id"])
    assert (clean["result"]["made"]["outside"], told["result"]["made"]["outside"]) == (False, True)


async def test_a_call_of_a_job_that_is_made_again_begins_no_second_job(studio: Hub) -> None:
    anna = await signed_in(studio.runtime, *ANNA)
    key, found = f"{new_id('job')} 3.1", set[str]()
    for _ in range(2):
        token = await studio.runtime.tokens.mint(anna, "tier:bronze", CONVERSATION, 600, key=key)
        async with studio.client_with(token) as bronze:
            found.add((await tell(bronze, "generate_story_arc", theme="debt", length=1))["job_id"])
    assert len(found) == 1


async def test_who_has_too_many_jobs_open_is_told_so(
    pool: Pool, open_hub: OpenHub, wall: FaultWall, redis: object
) -> None:
    _ = redis  # flushed before the test
    wall.always["vllm"] = Reply(fault="silent")
    async with expert_hub(open_hub, wall, bronze_open_max=1) as hub, hub.client(*ANNA) as anna:
        job_id = (await tell(anna, "generate_narrative", prompt="A door"))["job_id"]
        assert error_of(await anna.call_tool("generate_narrative", {"prompt": "A door"}))["code"] == "rate_limited"
        await tell(anna, "cancel_job", id=job_id)
        await tell(anna, "generate_narrative", prompt="A door")
    assert await pool.fetchval("SELECT count(*) FROM work WHERE kind = 'narrative'") == 2


@pytest.mark.parametrize("who", [("tier:gold",), ("tier:silver",), ("service:game",)])
async def test_who_may_not_spend_has_nothing_written(studio: Hub, pool: Pool, who: tuple[str, ...]) -> None:
    async with studio.client(*who) as client:
        for name, given in (
            ("generate_narrative", {"prompt": "A door"}),
            ("generate_story_arc", {"theme": "debt", "length": 1}),
        ):
            assert error_of(await client.call_tool(name, given))["code"] == "denied"
    assert await pool.fetchval("SELECT count(*) FROM work WHERE kind IN ('narrative', 'story_arc')") == 0


def answer(text: str, *, calls: tuple[ToolCall, ...] = (), finish: Any = "stop") -> str:
    return orjson.dumps(
        Answer(text=text, finish=finish, engine="bronze", tier=Tier.BRONZE, model=None, calls=calls).body()
    ).decode()


async def begun(pool: Pool, **steps: str) -> str:
    """A story of anna's in three parts with these steps recorded; `_` stands for the blank in their names."""
    assignment = arc_of(GenerateStoryArc(theme="debt", length=3), outside=False)
    origin = Origin(chain=("person:anna",), session="s")
    job_id = await queue.enqueue(pool, "story_arc", assignment.body(), origin=origin)
    for name, outcome in steps.items():
        await pool.execute(
            "INSERT INTO work_step (work, name, outcome) VALUES ($1, $2, $3::text::jsonb)",
            job_id,
            name.replace("_", " "),
            outcome,
        )
    return job_id


async def read(pool: Pool, job_id: str, owner: str = "person:anna") -> StoryArc:
    async def kept(_job: str, _owner: str) -> Kept | None:
        return None

    return await arcs.read(job_id, owner, pool=pool, kept=kept)


@pytest.mark.parametrize("state", get_args(State))
async def test_a_story_is_read_in_every_state_of_its_job(pool: Pool, state: State) -> None:
    job_id = await begun(pool, answer_1=answer("The plan"), answer_2=answer("Owed\n\nIvo owes."))
    await pool.execute(
        "UPDATE work SET state = $2::text, finished_at = CASE WHEN $3::boolean THEN clock_timestamp() END,"
        ' error = \'{"code": "unavailable", "message": "Nobody answered."}\','
        " open_effect = CASE WHEN $2::text = 'unknown' THEN 'tool 1.1' END,"
        " lease_until = CASE WHEN $2::text = 'running' THEN clock_timestamp() + interval '1 h' END WHERE id = $1",
        job_id,
        state,
        state in FINAL,
    )
    found = await read(pool, job_id)
    assert (found.status, [part.title for part in found.parts], found.of) == (state, ["Owed"], 3)
    assert found.reason == "Nobody answered."
    assert StoryArc.model_validate_json(found.model_dump_json()) == found


async def test_parts_are_the_answers_without_calls_in_their_order(pool: Pool) -> None:
    call = ToolCall("c", "retrieve_lore", "{}")
    texts = {f"answer_{n}": answer(f"Title {n}\n\nText {n}.") for n in (9, 10, 3)}
    job_id = await begun(
        pool, answer_1=answer("The plan"), answer_2=answer("Let me see.", calls=(call,)), tool_2="7", **texts
    )
    assert [part.title for part in (await read(pool, job_id)).parts] == ["Title 3", "Title 9", "Title 10"]


async def test_a_story_says_what_was_cut_and_where_it_came_from(pool: Pool) -> None:
    clean_, outside = ('{"outside": false}', '{"outside": true}')
    plain = await begun(pool, **{"answer_1": answer("The plan"), "tool_1.1": clean_})
    assert not (await read(pool, plain)).from_outside
    for steps in ({"tool_1.1": outside}, {"came_1.1": outside}, {"tool_1.1": "7"}, {"tool_1.1": "{}"}):
        assert (await read(pool, await begun(pool, **steps))).from_outside
    cut = await read(pool, await begun(pool, answer_1=answer("p"), answer_2=answer("a\n\nb", finish="length")))
    assert cut.truncated
    assert cut.text().startswith("1 of 3 parts, queued.\n\n## a\n\nb")


async def test_a_stored_story_is_nobody_else_s(pool: Pool) -> None:
    job_id = await begun(pool, answer_1=answer("The plan"))
    for owner, wanted in (("person:ben", job_id), ("person:anna", "job_unknown")):
        with pytest.raises(NotFound, match="no story arc of this id"):
            await read(pool, wanted, owner)
