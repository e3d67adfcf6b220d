"""Trajectories: a session reads text from outside, and whatever it then tries, a person is asked, who is told of the taint."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from mcp import Client

from approvals.cards import Card
from tests.counterparts.faultwall.wall import FaultWall, Reply, Tool
from tests.mcp_servers.hub.conftest import error_of
from tests.mcp_servers.hub.conversing import Scene, asker_of
from tests.trajectories.conftest import SINKS, SOURCES, Sink, tell
from tests.waiting import wait_until
from tiers.deadline import Deadline
from tiers.model import Tier

TAINT = "tainted-needs-approval"
WARNING = "had read text from outside"
EFFECTS = "SELECT (SELECT count(*) FROM world_change) + (SELECT count(*) FROM work WHERE kind LIKE '%scan%')"


async def effects(scene: Scene) -> tuple[int, list[str]]:
    """What has been done so far: changes queued, scans begun, and the fixture tools that ran."""
    ran = [name for name in scene.hub.seen.calls if name in {"fx_write", "fx_external"}]
    return await scene.runtime.stores.pool.fetchval(EFFECTS), ran


async def told(client: Client, sink: Sink) -> Mapping[str, Any]:
    """What the session is told of the sink: an error, or nothing where it went through."""
    answer = await client.call_tool(sink.tool, dict(sink.arguments))
    return error_of(answer) if answer.is_error else {}


async def asked_people(scene: Scene, sink: Sink, approval_id: str, source: str) -> None:
    """The request waits for people, for the taint among others, and its card says so, and what it was."""
    runtime = scene.runtime
    approval = await runtime.approvals.desk.get(approval_id)
    assert (approval.standing, approval.tool) == ("pending", sink.tool)
    assert TAINT in approval.rules
    card = Card.of(approval, runtime.approvals.people, None, datetime.now(UTC)).text()
    assert TAINT in card
    (warning,) = [line for line in card.splitlines() if WARNING in line]
    assert f"'s {SOURCES[source].tool}" in warning, warning


async def latest(scene: Scene, sink: Sink) -> str | None:
    """The latest request of this tool by the tier of experts; None where there is none."""
    sql = "SELECT id FROM approval WHERE tool = $1 AND chain[2] = 'tier:bronze' ORDER BY ordinal DESC LIMIT 1"
    found: str | None = await scene.runtime.stores.pool.fetchval(sql, sink.tool)
    return found


async def test_a_clean_session_goes_as_far_as_the_policy_lets_it(scene: Scene) -> None:
    """The control: without it, everything below could be refused for another reason."""
    async with scene.hub.client("person:clean", "admin", "security") as client:
        for sink in SINKS.values():
            error = await told(client, sink)
            assert (error["rules"] if error else ["ok"]) == [sink.clean], (sink, error)
    count, ran = await effects(scene)
    assert count == 1, "the scan alone was begun"
    assert ran == ["fx_external"]


@pytest.mark.parametrize("source", SOURCES)
async def test_a_tainted_session_needs_a_person_whichever_way_it_goes(scene: Scene, source: str) -> None:
    who, given = ("person:anna", "admin", "security"), SOURCES[source]
    async with scene.hub.client(*who) as client:
        await tell(client, given.tool, given.arguments)
        assert (await tell(client, "whoami", {}))["tainted"], source
        before = await effects(scene)
        async with scene.hub.client(*who) as second, scene.hub.client(*who, mode="legacy") as labelled:
            ways = {"itself": client, "a second token": second, "another session label": labelled}
            for way, by in ways.items():
                for name, sink in SINKS.items():
                    error = await told(by, sink)
                    assert error.get("code") == "approval_pending", (way, name, error)
                    assert TAINT in error["rules"], (way, name)
                    await asked_people(scene, sink, error["approval"], source)
    assert await effects(scene) == before


@pytest.mark.parametrize("source", SOURCES)
async def test_a_nested_call_inherits_the_taint_and_other_tiers_may_not_at_all(scene: Scene, source: str) -> None:
    who, given = ("person:anna", "admin", "security"), SOURCES[source]
    async with scene.hub.client(*who) as client:
        await tell(client, given.tool, given.arguments)
    before, asker = await effects(scene), await asker_of(scene.runtime, *who)
    for name, sink in SINKS.items():
        called = await scene.tools.call(asker, Tier.BRONZE, sink.tool, sink.arguments, deadline=Deadline.after(20))
        assert called.outcome == "approval_pending", (name, called)
        await asked_people(scene, sink, str(await latest(scene, sink)), source)
        for tier in (Tier.GOLD, Tier.SILVER):
            called = await scene.tools.call(asker, tier, sink.tool, sink.arguments, deadline=Deadline.after(20))
            # Silver may carry data out while it is clean; of the rest neither tier has any.
            expected = "approval_pending" if (tier, name) == (Tier.SILVER, "send out") else "denied"
            assert called.outcome == expected, (tier, name, called)
    assert await effects(scene) == before


@pytest.mark.parametrize("source", SOURCES)
async def test_a_job_of_a_tainted_session_needs_a_person(scene: Scene, wall: FaultWall, source: str) -> None:
    def expert(messages: list[dict[str, Any]]) -> Reply:
        (asked,) = [name for name in SINKS if f"Try: {name}." in str(messages)]
        if messages[-1]["role"] == "tool":
            return Reply(text="Done.")
        return Reply(calls=(Tool(SINKS[asked].tool, dict(SINKS[asked].arguments)),))

    wall.answers["vllm"] = lambda seen: expert(seen.body["messages"])
    given = SOURCES[source]
    async with scene.hub.client("person:anna", "admin", "security") as client:
        await tell(client, given.tool, given.arguments)
        before = await effects(scene)
        for name, sink in SINKS.items():
            await tell(client, "submit_job", {"prompt": f"Try: {name}.", "tools": [sink.tool]})
        for name, sink in SINKS.items():
            approval = await wait_until(lambda sink=sink: latest(scene, sink), f"people are asked for {name}")
            await asked_people(scene, sink, str(approval), source)
    assert await effects(scene) == before
