"""generate_admin_report from the call to the report: a served hub, its worker, and an engine nobody of the product wrote."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from body_broker.storage.postgres import Pool
from mcp_servers.admin.models import AdminReport
from tests.counterparts.aws import REGION, Cloud
from tests.counterparts.faultwall.wall import FaultWall, fault_wall
from tests.mcp_servers.admin.records import SECRET, keep_records
from tests.mcp_servers.hub.conftest import OpenHub, error_of
from tests.mcp_servers.hub.expert_hub import ended, expert_hub, says

SAID = {
    "summary": "1 job failed, 42 did not.",
    "sections": [{"heading": "Work", "text": "Up 99.9%.", "facts": ["work.failed", "given.uptime", "made.up"]}],
    "recommendations": [],
}


@pytest.fixture
async def wall() -> AsyncIterator[FaultWall]:
    async with fault_wall("vllm") as found:
        yield found


async def test_a_report_is_asked_for_as_a_job_with_the_facts_of_that_moment(
    open_hub: OpenHub, wall: FaultWall, pool: Pool, redis: object
) -> None:
    _ = redis  # flushed before the test
    await keep_records(pool)
    wall.say("vllm", says(SAID))
    async with expert_hub(open_hub, wall) as hub, hub.client("person:sasha", "sre") as sasha:
        given = {"metrics": {"uptime": 99.9}, "report": "incidents", "period": "day"}
        started: Any = (await sasha.call_tool("generate_admin_report", given)).structured_content
        assert started["status"] == "queued"
        job = await ended(sasha, started["job_id"])

    assert (job["kind"], job["state"]) == ("admin_report", "succeeded"), job
    job["result"].pop("made")
    report = AdminReport.model_validate(job["result"])
    assert (report.report, report.period, report.unknown_facts) == ("incidents", "day", ["made.up"])
    assert [each.partition(":")[0] for each in report.unverified_numbers] == ["42"]
    assert report.sections[0].facts == ["work.failed", "given.uptime"]
    facts = {each.key: each for each in report.facts}
    assert facts["given.uptime"].source == "given by the asker, not measured"
    assert facts["approvals.asked"].value == 3
    assert SECRET not in str(wall.asked("vllm")[0].body)


@pytest.fixture
def aws(cloud: Cloud, roles_file: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of a hub that may ask AWS, where a month has cost something."""
    key, secret = cloud.hub
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    group = {"Keys": ["Amazon EC2"], "Metrics": {"UnblendedCost": {"Amount": "12.5", "Unit": "USD"}}}
    month = {"TimePeriod": {"Start": "2026-10-01", "End": "2026-11-01"}, "Estimated": False, "Groups": [group]}
    results = [{"ResultsByTime": [month], "DimensionValueAttributes": []} for _ in range(3)]
    cloud.post("static/ce/cost-and-usage-results", json.dumps({"results": results}).encode())
    return {"aws_roles": roles_file, "aws_region": REGION, "aws_endpoint_url": cloud.url}


async def test_a_report_on_costs_asks_aws_as_the_caller(
    open_hub: OpenHub, wall: FaultWall, redis: object, aws: dict[str, Any]
) -> None:
    _ = redis  # flushed before the test
    wall.always["vllm"] = says(SAID | {"summary": "$12.50 in October 2026."})
    given = {"report": "costs", "metrics": {"uptime": 99.9}}
    async with expert_hub(open_hub, wall, **aws) as hub:
        async with hub.client("person:sasha", "sre") as sasha:
            started: Any = (await sasha.call_tool("generate_admin_report", given)).structured_content
            mine = await ended(sasha, started["job_id"])
        async with hub.client("person:ada", "admin") as ada:  # who has no role in AWS
            started = (await ada.call_tool("generate_admin_report", given)).structured_content
            without = await ended(ada, started["job_id"])

    facts = {each["key"]: each for each in mine["result"]["facts"]}
    assert (facts["aws.2026-10.Amazon_EC2"]["value"], facts["aws.2026-10.Amazon_EC2"]["unit"]) == (12.5, "USD")
    assert mine["result"]["unverified_numbers"] == []
    assert mine["result"]["made"]["outside"]
    assert not any(each["key"].startswith("aws.") for each in without["result"]["facts"])
    assert (without["result"]["status"], len(without["result"]["unverified_numbers"])) == ("partial", 1)
    assert without["result"]["not_collected"][0].startswith("AWS costs: ")


async def test_who_may_not_read_operations_gets_no_report_of_them(
    open_hub: OpenHub, wall: FaultWall, pool: Pool, redis: object
) -> None:
    _ = redis  # flushed before the test
    async with expert_hub(open_hub, wall) as hub:
        for who in (("tier:silver",), ("person:emil", "designer"), ("person:sam", "security")):
            async with hub.client(*who) as client:
                assert error_of(await client.call_tool("generate_admin_report", {}))["code"] == "denied"
    assert await pool.fetchval("SELECT count(*) FROM work WHERE kind = 'admin_report'") == 0
