"""What a hub tells of approvals by itself, and what its worker does about those that nobody comes back to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx2
import mcp_types as types
import pytest
from prometheus_client.parser import text_string_to_metric_families

from body_broker.settings import Settings
from mcp_servers.hub.worker import working
from tests.mcp_servers.hub.conftest import Hub, error_of
from tests.mcp_servers.hub.deeds import APPROVERS, Deeds, Studio, do, pending, say
from tests.waiting import wait_until

BRONZE, ANNA = "tier:bronze", "person:anna"


@pytest.fixture
def studio(settings_for: Callable[..., Settings], tmp_path: Path, redis: object) -> Studio:
    _ = redis  # flushed before the test
    approvers = tmp_path / "approvers.toml"
    approvers.write_text(APPROVERS, encoding="utf-8")
    return Studio(settings_for, approvers, Deeds())


async def by_resource(hub: Hub) -> str:
    async with hub.client(ANNA, "sre") as client:
        (content,) = (await client.read_resource("hub://metrics")).contents
    assert isinstance(content, types.TextResourceContents)
    return content.text


async def by_page(hub: Hub) -> str:
    headers = {"authorization": f"Bearer {await hub.token(ANNA, 'sre')}"}
    async with httpx2.AsyncClient(headers=headers, timeout=60) as http:
        answer = await http.get(f"{hub.base}/metrics")
    assert answer.status_code == 200, answer.text
    return answer.text


def of_approvals(text: str) -> tuple[float | None, float | None]:
    """How many wait for people, and how many decisions of people were timed."""
    found = {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}
    return found.get("body_broker_approvals_pending"), found.get("body_broker_approval_decision_seconds_count")


@pytest.mark.parametrize("read", [by_resource, by_page])
async def test_who_may_read_the_metrics_sees_what_waits_for_people_and_that_they_decided(
    studio: Studio, read: Callable[[Hub], Awaitable[str]]
) -> None:
    async with studio.hub(works=False) as hub, hub.client(BRONZE) as client:
        seen = [of_approvals(await read(hub))]
        assert error_of(await do(client, "deed_once"))["code"] == "approval_pending"
        seen.append(of_approvals(await read(hub)))
        approval_id, _ = await pending(hub.runtime.stores.pool, "deed_once")
        await say(hub.runtime.approvals.desk, approval_id)
        seen.append(of_approvals(await read(hub)))
    assert seen == [(0, 0), (1, 0), (0, 1)]


async def test_a_request_that_nobody_comes_back_to_is_ended_by_the_worker_once_its_time_is_over(studio: Studio) -> None:
    async with studio.hub(works=False) as hub:
        pool = hub.runtime.stores.pool
        async with hub.client(BRONZE) as client:
            late, kept = [error_of(await do(client, tool))["approval"] for tool in ("deed_once", "deed_destroy")]
        await pool.execute("UPDATE approval SET expires_at = clock_timestamp() - interval '1 s' WHERE id = $1", late)

        async def state(approval_id: str) -> str:
            return await pool.fetchval("SELECT state FROM approval WHERE id = $1", approval_id)

        async def ended() -> bool:
            return await state(late) == "expired"

        assert await state(late) == "pending"  # nobody has read it
        async with working(hub.runtime):
            await wait_until(ended, "the worker ends what is past its time")
        assert await state(kept) == "pending"


async def test_the_worker_forgets_conversations_that_are_long_over(studio: Studio) -> None:
    async with studio.runtime() as runtime:
        pool = runtime.stores.pool
        await pool.executemany(
            """
            INSERT INTO session_witness (session, requester, nonce, began_at, tainted_at)
            VALUES ($1, 'person:anna', 'n', now() - make_interval(days => $2::integer), now() - make_interval(days => $3::integer))
            """,
            [
                ("cnv_over", 40, None),
                ("cnv_over_tainted", 40, 35),
                ("cnv_new", 1, None),
                ("cnv_tainted_lately", 40, 1),
                ("ses_anna", 400, None),
            ],
        )

        async def kept() -> set[str]:
            return {row["session"] for row in await pool.fetch("SELECT session FROM session_witness")}

        async def forgotten() -> bool:
            return "cnv_over" not in await kept()

        async with working(runtime):
            await wait_until(forgotten, "the worker forgets what is over")
        assert await kept() == {"cnv_new", "cnv_tainted_lately", "ses_anna"}


async def test_the_worker_forgets_logins_to_the_pages_that_are_over(studio: Studio) -> None:
    async with studio.runtime() as runtime:
        pool = runtime.stores.pool
        await pool.execute(
            """
            INSERT INTO page_login (id, person, how, expires_at)
            VALUES ('over', 'person:otto', 'oidc', clock_timestamp() - interval '1 s'),
                   ('open', 'person:otto', 'oidc', clock_timestamp() + interval '1 hour')
            """
        )

        async def forgotten() -> bool:
            return [row["id"] for row in await pool.fetch("SELECT id FROM page_login")] == [b"open"]

        async with working(runtime):
            await wait_until(forgotten, "the worker forgets what is over")
