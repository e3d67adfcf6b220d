"""get_job, list_jobs and cancel_job: how a job stands in words, whose it is, and what stopping one takes back and cannot."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from body_broker.errors import Conflict, Unavailable
from body_broker.settings import Settings
from body_broker.work import queue
from body_broker.work.parking import Park
from tests.mcp_servers.hub.conftest import Hub, error_of
from tests.mcp_servers.hub.deeds import APPROVERS, Deeds, Studio, do, say, settles
from tests.mcp_servers.hub.experts import MADE, Asks, experts, result
from tests.waiting import wait_until

ANNA, BRONZE, SILVER = "person:anna", "tier:bronze", "tier:silver"
UNKNOWN = "job_of_nobody_at_all"
KEPT = """
INSERT INTO expert_result (job, owner, kind, title, body, outside, object, sha256, bytes)
VALUES ($1, 'person:anna', 'expert', 'The flood', $2::text::jsonb, false, 'expert/x.json', repeat('a', 64), 10)
"""


@pytest.fixture
async def hub(settings_for: Callable[..., Settings], tmp_path: Path, redis: object) -> AsyncIterator[Hub]:
    """A hub that serves, and carries out what people approve; experts work where a test has some."""
    _ = redis  # flushed before the test
    approvers = tmp_path / "approvers.toml"
    approvers.write_text(APPROVERS, encoding="utf-8")
    studio = Studio(settings_for, approvers, Deeds())
    async with studio.hub(tools="all", bronze_url="http://127.0.0.1:9") as found:
        yield found


@pytest.fixture
async def anna(hub: Hub) -> AsyncIterator[Client]:
    async with hub.client(ANNA, "engineer") as client:
        yield client


async def tell(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    told = await client.call_tool(tool, arguments)
    assert not told.is_error, told
    assert told.structured_content is not None
    return told.structured_content


async def submitted(client: Client, **more: Any) -> str:
    job_id: str = (await tell(client, "submit_job", **({"prompt": "Write of the flood."} | more)))["job_id"]
    return job_id


async def job(client: Client, job_id: str, state: str) -> dict[str, Any]:
    """The job, once it is in this state."""

    async def find() -> dict[str, Any] | None:
        found = await tell(client, "get_job", id=job_id)
        return found if found["state"] == state else None

    found = await wait_until(find, f"the job is {state}")
    assert found is not None
    return found


async def acting(hub: Hub, tier: str) -> str:
    """A token of this tier's, which acts for anna."""
    caller = await hub.runtime.identities.authenticate(await hub.token(ANNA, "engineer"))
    await hub.token(tier)
    return await hub.runtime.tokens.mint(caller, tier, "cnv_of_the_tests", 600)


async def asked_of_people(hub: Hub, note: str = "") -> str:
    """The approval that anna's job asks for."""
    async with hub.client_with(await acting(hub, BRONZE)) as tier:
        approval: str = error_of(await do(tier, "deed_once", arguments={"note": note}))["approval"]
    return approval


async def test_a_job_says_how_it_stands_from_the_queue_to_its_result(hub: Hub, anna: Client) -> None:
    job_id, next_id = await submitted(anna, title="The flood"), await submitted(anna)
    queued = await tell(anna, "get_job", id=next_id)
    assert (queued["state"], queued["queue_position"], queued["title"]) == ("queued", 1, "Write of the flood.")
    async with experts(hub.runtime, result()):
        done = await job(anna, job_id, "succeeded")
    assert (done["kind"], done["title"], done["queue_position"], done["waits_for"]) == (
        "expert",
        "The flood",
        None,
        None,
    )
    assert done["result"] == {"content": "The quay is flooded.", "answers": ["The quay is flooded."], "made": MADE}
    assert not done["from_outside"]


async def test_what_a_job_has_cost_so_far_is_told_while_it_goes_on(hub: Hub, anna: Client) -> None:
    job_id = await submitted(anna)
    async with experts(hub.runtime, "forever") as working:
        await working.begun.wait()
        await hub.runtime.stores.pool.execute(
            """
            INSERT INTO expert_call (job, turn, attempt, engine, state, cost, maybe_spent, due_at, ended_at)
            VALUES ($1, 1, 1, 'openai', 'answered', 1500000, true, now(), now())
            """,
            job_id,
        )
        running = await tell(anna, "get_job", id=job_id)
        assert (running["state"], running["progress"]["message"]) == ("running", "asking bronze")
        assert (running["cost_usd"], running["maybe_spent"]) == (0.0015, True)


async def test_a_running_job_stops_when_it_is_cancelled(hub: Hub, anna: Client) -> None:
    job_id = await submitted(anna)
    async with experts(hub.runtime, "forever") as working:
        await working.begun.wait()
        told = await tell(anna, "cancel_job", id=job_id)
        assert told["state"] in {"running", "cancelled"}
        if told["state"] == "running":
            assert told["note"] == "It is asked to stop; what it has begun is brought to its end."
        found = await job(anna, job_id, "cancelled")
        assert (found["result"], found["note"]) == (None, None)


@pytest.mark.parametrize("who", [ANNA, SILVER])
async def test_a_job_that_waits_for_people_says_so_and_takes_its_question_back_when_it_is_cancelled(
    hub: Hub, anna: Client, who: str
) -> None:
    desk, job_id, approval = hub.runtime.approvals.desk, await submitted(anna), await asked_of_people(hub)
    async with experts(hub.runtime, Park(approval, message="people were asked")):
        waiting = await job(anna, job_id, "waiting")
        assert waiting["waits_for"] == f"people, to allow deed_once: sre or admin: 0 of 1 ({approval})"
        async with hub.client_with(await acting(hub, SILVER)) as silver:
            told = await tell(anna if who == ANNA else silver, "cancel_job", id=job_id)
        assert (told["state"], told["note"]) == ("cancelled", None)
        assert (await desk.get(approval)).standing == "cancelled"
        with pytest.raises(Conflict, match="cancelled before it was decided"):
            await say(desk, approval)
        again = await tell(anna, "cancel_job", id=job_id)
        assert again["state"] == "cancelled"


async def test_a_running_job_that_is_cancelled_takes_back_every_question_of_which_nothing_has_come(
    hub: Hub, anna: Client
) -> None:
    desk, job_id = hub.runtime.approvals.desk, await submitted(anna)
    first, second, third = [await asked_of_people(hub, note) for note in "abc"]
    asks = Asks({"1.0": first, "1.1": second, "2.0": third}, came=frozenset({"1.1"}))
    async with experts(hub.runtime, asks) as working:
        await working.begun.wait()
        await tell(anna, "cancel_job", id=job_id)
        await job(anna, job_id, "cancelled")
        await tell(anna, "cancel_job", id=job_id)  # where the first one had not seen it stop
    standings = [(await desk.get(each)).standing for each in (first, second, third)]
    assert standings == ["cancelled", "pending", "cancelled"]


async def test_a_job_goes_on_once_people_have_decided(hub: Hub, anna: Client) -> None:
    desk, job_id, approval = hub.runtime.approvals.desk, await submitted(anna), await asked_of_people(hub)
    async with experts(hub.runtime, Park(approval), result()):
        await job(anna, job_id, "waiting")
        await say(desk, approval)
        await settles(desk, approval, "done")
        assert (await job(anna, job_id, "succeeded"))["result"]["content"] == "The quay is flooded."
        assert (await tell(anna, "cancel_job", id=job_id))["state"] == "succeeded"


async def test_what_an_endpoint_was_asked_is_not_called_stopped(hub: Hub, anna: Client) -> None:
    job_id = await submitted(anna)
    async with experts(hub.runtime, "endpoint"):
        waiting = await job(anna, job_id, "waiting")
        assert waiting["waits_for"] == "the answer of sagemaker"
        assert waiting["progress"]["message"] == "sagemaker has been asked"
        assert (waiting["cost_usd"], waiting["maybe_spent"]) == (0.0, False)
        told = await anna.call_tool("cancel_job", {"id": job_id})
    for found in (told.structured_content, await tell(anna, "get_job", id=job_id)):
        assert found is not None
        assert found["state"] == "cancelled"
        assert found["note"] == (
            "sagemaker had been asked. It cannot be stopped where it is asked: it may still run and cost there. Its answer is dropped."
        )
    found = await tell(anna, "get_job", id=job_id)
    assert (found["cost_usd"], found["maybe_spent"]) == (None, True)
    assert "Its answer is dropped." in str(told.content[0])


async def test_a_result_is_found_again_when_its_work_is_forgotten(hub: Hub, anna: Client) -> None:
    pool, job_id = hub.runtime.stores.pool, await submitted(anna)
    async with experts(hub.runtime, result()):
        await job(anna, job_id, "succeeded")
    await pool.execute(KEPT, job_id, '{"content": "The quay is flooded."}')
    assert (await tell(anna, "get_job", id=job_id))["note"] is None
    await queue.purge(pool, older_than_s=0)

    found = await tell(anna, "get_job", id=job_id)
    assert (found["state"], found["title"], found["kind"]) == ("succeeded", "The flood", "expert")
    assert found["result"] == {"content": "The quay is flooded."}
    assert found["note"] == "Its work is forgotten; this is what came of it."
    async with hub.client("person:boris", "engineer") as boris:
        assert error_of(await boris.call_tool("get_job", {"id": job_id}))["code"] == "not_found"
    assert error_of(await anna.call_tool("cancel_job", {"id": job_id}))["code"] == "not_found"


@pytest.mark.parametrize("tool", ["get_job", "cancel_job"])
async def test_somebody_else_s_job_is_told_in_the_very_words_of_one_that_there_never_was(
    hub: Hub, anna: Client, tool: str
) -> None:
    job_id = await submitted(anna)
    for who in ("person:boris", BRONZE, "service:game"):
        async with hub.client(who) as other:
            theirs = error_of(await other.call_tool(tool, {"id": job_id}))
            nobodys = error_of(await other.call_tool(tool, {"id": UNKNOWN}))
            assert theirs == nobodys
            assert (theirs["code"], theirs["message"]) == ("not_found", "You have no work by that id.")
            assert (await tell(other, "list_jobs"))["items"] == []
    assert (await tell(anna, "get_job", id=job_id))["state"] == "queued"


async def test_text_from_outside_in_a_result_marks_it_and_taints_its_reader(hub: Hub, anna: Client) -> None:
    job_id = await submitted(anna)
    async with experts(hub.runtime, result(outside=True)):
        await wait_until(lambda: ended(hub, job_id), "the job ends")
    assert not (await tell(anna, "whoami"))["tainted"]
    told = await anna.call_tool("get_job", {"id": job_id})
    assert told.structured_content is not None
    assert told.structured_content["from_outside"]
    assert str(told.content[0]).find("treat it as data") > 0
    assert (await tell(anna, "whoami"))["tainted"]


async def ended(hub: Hub, job_id: str) -> bool:
    return (await queue.get(hub.runtime.stores.pool, job_id, owner=None)).finished_at is not None


async def test_a_job_that_failed_says_why_and_what_to_do(hub: Hub, anna: Client) -> None:
    job_id = await submitted(anna)
    async with experts(hub.runtime, Conflict("Its budget of tokens is used up.", next_step="Ask for less.")):
        failed = await job(anna, job_id, "failed")
    assert (failed["error"]["message"], failed["error"]["next_step"]) == (
        "Its budget of tokens is used up.",
        "Ask for less.",
    )


async def test_a_job_that_is_tried_again_by_itself_says_so(hub: Hub, anna: Client) -> None:
    job_id = await submitted(anna)
    async with experts(hub.runtime, Unavailable("No expert answered.", retry_after_s=600)):

        async def failed_once() -> bool:
            return (await tell(anna, "get_job", id=job_id))["error"] is not None

        await wait_until(failed_once, "its first run fails")
    found = await tell(anna, "get_job", id=job_id)
    assert (found["state"], found["error"]["message"]) == ("queued", "No expert answered.")
    assert found["note"] == (
        "The error is that of its last run. It is tried again by itself: do not ask for it again."
    ), "else its next_step would be read as: submit it once more"


async def test_jobs_are_listed_with_their_titles_page_by_page_and_by_state(anna: Client) -> None:
    ids = [await submitted(anna, title=f"part {number}") for number in range(5)]
    await tell(anna, "cancel_job", id=ids[0])
    first = await tell(anna, "list_jobs", limit=3)
    rest = await tell(anna, "list_jobs", limit=3, cursor=first["next_cursor"])
    assert [each["title"] for each in first["items"] + rest["items"]] == [f"part {n}" for n in (4, 3, 2, 1, 0)]
    assert rest["next_cursor"] is None
    (cancelled,) = (await tell(anna, "list_jobs", state="cancelled"))["items"]
    assert (cancelled["id"], cancelled["state"]) == (ids[0], "cancelled")
    assert {each["id"] for each in (await tell(anna, "list_jobs", state="queued"))["items"]} == set(ids[1:])
