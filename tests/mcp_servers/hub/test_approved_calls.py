"""What was approved is authorised anew when it runs: whatever has changed since people saw it refuses it, and says which rule."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from approvals.desk import Desk
from approvals.model import Approval
from body_broker.settings import Settings
from body_broker.storage.postgres import Pool
from tests.mcp_servers.hub.conftest import Hub, error_of
from tests.mcp_servers.hub.deeds import APPROVERS, Deeds, Studio, do, laboring, say, settles
from tests.mcp_servers.hub.test_gate import audited
from tests.waiting import wait_until

BRONZE = "tier:bronze"


@pytest.fixture
def studio(settings_for: Callable[..., Settings], tmp_path: Path, redis: object) -> Studio:
    _ = redis  # flushed before the test
    approvers = tmp_path / "approvers.toml"
    approvers.write_text(APPROVERS, encoding="utf-8")
    return Studio(settings_for, approvers, Deeds())


@pytest.fixture
async def hub(studio: Studio) -> AsyncIterator[Hub]:
    """A hub that serves and does not work: what is approved waits for the test."""
    async with studio.hub(works=False) as found:
        yield found


async def approved(hub: Hub, tool: str, who: str = BRONZE, *roles: str, **arguments: Any) -> Approval:
    """A call that people have said yes to, and that nothing has begun."""
    async with hub.client(who, *roles) as client:
        approval_id = error_of(await do(client, tool, arguments=arguments))["approval"]
    return await say(hub.runtime.approvals.desk, approval_id)


async def run(hub: Hub, approval: Approval, standing: str) -> Approval:
    async with laboring(hub.runtime):
        return await settles(hub.runtime.approvals.desk, approval.id, standing)


async def told(hub: Hub, tool: str, who: str = BRONZE) -> dict[str, Any]:
    async with hub.client(who) as client:
        return error_of(await do(client, tool))


async def test_what_nothing_has_changed_runs_as_it_was_when_it_was_asked_for(hub: Hub, studio: Studio) -> None:
    async with hub.client(BRONZE) as client:
        await client.call_tool("deed_hear", {"name": "x"})  # taints the session
    approval = await approved(hub, "deed_once")
    assert set(approval.rules) == {"writes-need-approval", "tainted-needs-approval"}
    assert (approval.tainted, approval.standing) == (True, "approved")
    done = await run(hub, approval, "done")
    assert done.result == {"result": {"did": "lamp", "under": approval.id, "tainted": True}, "outside": False}
    records = await audited(hub, "deed_once")
    decision = next(record for record in records if record["kind"] == "decision")
    outcome = next(record for record in records if record["call"] == decision["call"] and record["kind"] == "outcome")
    assert (decision["details"], decision["tainted"]) == ({"approval": approval.id}, True)
    assert outcome["refers_to"] is not None
    assert len(studio.deeds.done) == 1


async def _a_role_is_taken_away(hub: Hub) -> None:
    await hub.runtime.tokens.set_roles("person:anna", ("sre",), by="operator")
    await hub.runtime.tokens.set_roles("person:anna", (), by="operator")


async def _the_login_is_ended(hub: Hub) -> None:
    await hub.runtime.tokens.revoke(principal="person:anna")


async def _long_ago(hub: Hub) -> None:
    await hub.runtime.tokens.revoke(principal="person:anna")
    pool = hub.runtime.stores.pool
    await pool.execute("UPDATE login_token SET expires_at = now() - interval '9 days'")
    await pool.execute("UPDATE login SET ended_at = now() - interval '9 days' WHERE ended_at IS NOT NULL")


async def _the_tool_is_defined_otherwise(hub: Hub) -> None:
    await hub.runtime.stores.pool.execute("UPDATE approval SET definition = repeat('0', 64)")


async def _the_rule_is_changed(hub: Hub) -> None:
    await hub.runtime.stores.pool.execute(
        "UPDATE approval SET requirements = jsonb_set(requirements, '{0,rule_digest}', '\"other\"')"
    )


async def _the_rule_is_gone(hub: Hub) -> None:
    await hub.runtime.stores.pool.execute(
        "UPDATE approval SET requirements = jsonb_set(requirements, '{0,rule}', '\"no-such-rule\"')"
    )


async def _the_arguments_read_otherwise(hub: Hub) -> None:
    await hub.runtime.stores.pool.execute("""UPDATE approval SET arguments = '{"name":"lamp"}'""")


async def _the_arguments_do_not_fit_any_more(hub: Hub) -> None:
    await hub.runtime.stores.pool.execute("""UPDATE approval SET arguments = '{"name":"lamp","more":1}'""")


async def _a_yes_is_gone(hub: Hub) -> None:
    await hub.runtime.stores.pool.execute("DELETE FROM approval_vote")


async def _a_vote_came_by_a_way_the_rule_does_not_name(hub: Hub) -> None:
    await hub.runtime.stores.pool.execute("UPDATE approval_vote SET groups = '{art}'")


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (_a_role_is_taken_away, "denied", "not allowed now by rule default-deny:write"),
        (_the_login_is_ended, "unauthenticated", "revoked"),
        (_long_ago, "unauthenticated", "revoked"),
        (_the_tool_is_defined_otherwise, "approval_cancelled", "defined otherwise"),
        (_the_rule_is_changed, "approval_cancelled", "was changed"),
        (_the_rule_is_gone, "approval_cancelled", "is gone"),
        (_the_arguments_read_otherwise, "conflict", "read otherwise"),
        (_the_arguments_do_not_fit_any_more, "bad_input", "do not fit"),
        (_a_yes_is_gone, "denied", "not allowed now by rule writes-need-approval"),
        (_a_vote_came_by_a_way_the_rule_does_not_name, "denied", "not allowed now by rule writes-need-approval"),
    ],
)
async def test_whatever_has_changed_since_refuses_it_and_nothing_runs(
    hub: Hub, studio: Studio, change: Callable[[Hub], Awaitable[None]], code: str, said: str
) -> None:
    approval = await approved(hub, "deed_once", "person:anna", "engineer")
    await change(hub)
    failed = await run(hub, approval, "failed")
    assert failed.error["code"] == code
    assert said in failed.error["message"]
    assert studio.deeds.done == []


async def test_a_tier_whose_login_was_ended_meanwhile_acts_no_more(hub: Hub, studio: Studio) -> None:
    approval = await approved(hub, "deed_once")
    await hub.runtime.tokens.revoke(principal=BRONZE)
    failed = await run(hub, approval, "failed")
    assert failed.error["code"] == "unauthenticated"
    assert studio.deeds.done == []


@pytest.mark.parametrize("ended", ["tier:bronze", "person:anna"])
async def test_a_conversation_ends_with_its_asker_s_login_and_with_its_tier_s(
    hub: Hub, studio: Studio, ended: str
) -> None:
    tokens = hub.runtime.tokens
    anna = await hub.runtime.identities.authenticate(await hub.token("person:anna", "engineer"))
    await hub.token(BRONZE)
    async with hub.client_with(await tokens.mint(anna, BRONZE, "cnv_of_the_tests", 600)) as client:
        approval_id = error_of(await do(client, "deed_once"))["approval"]
    approval = await say(hub.runtime.approvals.desk, approval_id)
    assert approval.requester == "person:anna>tier:bronze"
    await tokens.revoke(principal=ended)
    failed = await run(hub, approval, "failed")
    assert failed.error["code"] == "unauthenticated"
    assert studio.deeds.done == []


async def test_the_facts_are_those_of_the_moment_it_runs(hub: Hub, studio: Studio) -> None:
    async with hub.client("person:anna", "engineer") as client:
        await client.call_tool("deed_hear", {"name": "x"})
    approval = await approved(hub, "deed_scan", "person:anna", "engineer")
    approval = await hub.runtime.approvals.desk.get(approval.id)
    assert approval.standing == "approved"
    studio.deeds.registered = False
    failed = await run(hub, approval, "failed")
    assert failed.error["rules"] == ["default-deny:security_scan"]
    assert studio.deeds.done == []


async def test_what_was_found_out_for_people_must_still_be_so(hub: Hub, studio: Studio) -> None:
    approval = await approved(hub, "deed_keep")
    studio.deeds.kept["apr_other"] = "moth"
    failed = await run(hub, approval, "failed")
    assert (failed.error["code"], failed.error["message"]) == ("conflict", "Something else was kept meanwhile.")


async def test_a_refusal_at_execution_is_on_the_audit_and_told_to_the_requester(hub: Hub) -> None:
    approval = await approved(hub, "deed_once")
    await _the_arguments_read_otherwise(hub)
    await run(hub, approval, "failed")
    refusal = next(r for r in await audited(hub, "deed_once") if r["kind"] == "refusal")
    assert (refusal["verdict"], refusal["details"]) == ("conflict", {"approval": approval.id})
    assert (await told(hub, "deed_once"))["code"] == "conflict"


async def test_eight_workers_at_once_run_it_once(hub: Hub, studio: Studio) -> None:
    approval = await approved(hub, "deed_once")
    async with asyncio.TaskGroup() as group:
        over = asyncio.Event()

        async def labor() -> None:
            async with laboring(hub.runtime):
                await over.wait()

        for _ in range(8):
            group.create_task(labor())
        await settles(hub.runtime.approvals.desk, approval.id, "done")
        over.set()
    assert len(studio.deeds.done) == 1


async def test_a_worker_that_stops_hands_back_what_may_be_repeated(hub: Hub, studio: Studio) -> None:
    approval = await approved(hub, "deed_stick_again")
    async with laboring(hub.runtime):
        await studio.deeds.begun.wait()
    assert (await hub.runtime.approvals.desk.get(approval.id)).standing == "executing"
    studio.deeds.release.set()
    await run(hub, approval, "done")
    assert studio.deeds.done == [("deed_stick_again", "lamp", approval.id)]


async def test_taking_it_back_does_not_cut_off_an_effect_that_has_begun(hub: Hub, studio: Studio) -> None:
    for tool in ("deed_stick_again", "deed_stick"):
        studio.deeds.begun.clear()
        studio.deeds.release.clear()
        approval = await approved(hub, tool)
        async with laboring(hub.runtime), hub.client(BRONZE) as client:
            await studio.deeds.begun.wait()
            assert (await client.call_tool("cancel_approval", {"id": approval.id})).structured_content["standing"] == (
                "executing"
            )
            if tool == "deed_stick":
                await wait_until(_asked_to_stop(hub.runtime.stores.pool, approval.id), "its work is asked to stop")
            studio.deeds.release.set()
            await settles(hub.runtime.approvals.desk, approval.id, "done")
    assert len(studio.deeds.done) == 2


def _asked_to_stop(pool: Pool, approval_id: str) -> Callable[[], Awaitable[bool]]:
    async def find() -> bool:
        return await pool.fetchval("SELECT cancel_requested FROM work WHERE id = $1", approval_id)

    return find


async def test_what_is_approved_while_nothing_works_runs_later_and_what_expires_first_never(
    hub: Hub, studio: Studio
) -> None:
    desk: Desk = hub.runtime.approvals.desk
    kept, late = await approved(hub, "deed_keep"), await approved(hub, "deed_once")
    await hub.runtime.stores.pool.execute(
        "UPDATE work SET expires_at = clock_timestamp() - interval '1 s' WHERE id = $1", late.id
    )
    async with laboring(hub.runtime):
        await settles(desk, kept.id, "done")
        await settles(desk, late.id, "expired")
    expired = await told(hub, "deed_once")
    assert expired["code"] == "approval_expired"
    assert "approved, but nothing ran it in time" in expired["message"]
    assert len(studio.deeds.done) == 1


async def test_two_people_are_needed_where_an_agent_destroys(hub: Hub, studio: Studio) -> None:
    approval = await approved(hub, "deed_destroy")
    assert approval.standing == "pending"
    assert (await say(hub.runtime.approvals.desk, approval.id, who="person:vera")).standing == "approved"
    await run(hub, approval, "done")
    assert len(studio.deeds.done) == 1
