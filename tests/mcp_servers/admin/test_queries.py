"""Queries of AWS through a served hub: pages, regions, whose role, what is kept, and what is said when AWS cannot be asked."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest

from body_broker.calls import Caller
from body_broker.errors import Denied
from body_broker.storage.redis import Redis
from mcp_servers.admin import catalogue
from mcp_servers.hub.requests import Request
from tests.counterparts.aws import ACCOUNT, REGION, Cloud
from tests.mcp_servers.hub.conftest import Hub, OpenHub, error_of

QUERY = "query_aws_resource"
VPCS = {"service": "ec2", "resource": "vpcs"}
COSTS = {"service": "ce", "resource": "costs"}


async def page(client: Any, **arguments: Any) -> dict[str, Any]:
    told = await client.call_tool(QUERY, arguments)
    assert not told.is_error, told.structured_content
    found: dict[str, Any] = told.structured_content
    return found


async def refusal(client: Any, **arguments: Any) -> dict[str, Any]:
    return error_of(await client.call_tool(QUERY, arguments))


def alarms(cloud: Cloud) -> set[str]:
    for n in range(7):
        cloud.client("cloudwatch").put_metric_alarm(
            AlarmName=f"alarm-{n}",
            ComparisonOperator="GreaterThanThreshold",
            EvaluationPeriods=1,
            MetricName="m",
            Namespace="n",
            Period=60,
            Statistic="Sum",
            Threshold=1.0,
        )
    return {f"alarm-{n}" for n in range(7)}


def vpcs(cloud: Cloud) -> set[str]:
    ec2 = cloud.client("ec2")
    for n in range(6):
        ec2.create_vpc(CidrBlock=f"10.{n}.0.0/16")
    return {vpc["VpcId"] for vpc in ec2.describe_vpcs()["Vpcs"]}


def databases(cloud: Cloud) -> set[str]:
    for n in range(21):  # a page of AWS' has 20 at least
        cloud.client("rds").create_db_instance(
            DBInstanceIdentifier=f"db-{n:02}", Engine="postgres", DBInstanceClass="db.t3.micro", AllocatedStorage=20
        )
    return {f"db-{n:02}" for n in range(21)}


def services(cloud: Cloud) -> set[str]:
    ecs = cloud.client("ecs")
    ecs.create_cluster(clusterName="default")
    ecs.register_task_definition(family="t", containerDefinitions=[{"name": "c", "image": "x", "memory": 64}])
    for n in range(5):
        ecs.create_service(cluster="default", serviceName=f"service-{n}", taskDefinition="t", desiredCount=0)
    return {f"service-{n}" for n in range(5)}


PAGED: dict[str, Callable[[Cloud], set[str]]] = {
    "cloudwatch alarms": alarms,
    "ec2 vpcs": vpcs,
    "ecs services": services,
    "rds instances": databases,
}


@pytest.mark.parametrize("name", sorted(PAGED))
async def test_pages_of_any_size_show_everything_once(hub: Hub, cloud: Cloud, name: str) -> None:
    there = PAGED[name](cloud)
    service, resource = name.split()
    async with hub.client("person:anna", "sre") as anna:
        for sizes in ((2,), (3, 1, 100)) if len(there) < 20 else ((7, 2),):
            seen: list[str] = []
            cursor: str | None = None
            for turn in range(40):
                found = await page(
                    anna, service=service, resource=resource, limit=sizes[min(turn, len(sizes) - 1)], cursor=cursor
                )
                assert len(found["items"]) <= sizes[min(turn, len(sizes) - 1)]
                seen += [item["id"] for item in found["items"]]
                cursor = found["next_cursor"]
                assert found["truncated"] is (cursor is not None)
                if cursor is None:
                    break
            assert len(seen) == len(set(seen))
            assert set(seen) == there


async def test_a_cursor_serves_its_query_and_its_owner_only(hub: Hub, cloud: Cloud) -> None:
    vpcs(cloud)
    async with hub.client("person:anna", "sre") as anna, hub.client("person:carl", "sre") as carl:
        cursor = (await page(anna, **VPCS, limit=2))["next_cursor"]

        for other in ({"service": "ec2", "resource": "instances"}, VPCS | {"region": "us-east-1"}):
            assert (await refusal(anna, **other, cursor=cursor))["code"] == "bad_input"
        assert (await refusal(carl, **VPCS, cursor=cursor))["code"] == "bad_input"


async def test_a_region_is_asked_where_it_is_and_an_unknown_one_is_told_the_nearest(hub: Hub, cloud: Cloud) -> None:
    made = cloud.client("ec2", "us-west-2").create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    async with hub.client("person:anna", "sre") as anna:
        there = await page(anna, **VPCS, region="us-west-2")
        here = await page(anna, **VPCS)
        wrong = await refusal(anna, **VPCS, region="eu-centrl-1")
        absent = await refusal(anna, **VPCS, identifier=made)

    assert made in [item["id"] for item in there["items"]]
    assert (there["region"], here["region"]) == ("us-west-2", REGION)
    assert made not in [item["id"] for item in here["items"]]
    assert wrong["code"] == "bad_input"
    assert REGION in wrong["nearest"]
    assert absent["code"] == "not_found"


REFUSED: list[tuple[dict[str, Any], str]] = [
    (VPCS | {"limit": 101}, "bad_input"),
    (VPCS | {"limit": 0}, "bad_input"),
    (VPCS | {"identifier": "-x"}, "bad_input"),
    (VPCS | {"identifier": "a\nb"}, "bad_input"),
    (VPCS | {"identifier": "*"}, "bad_input"),
    (VPCS | {"region": "EU; drop"}, "bad_input"),
    (VPCS | {"cursor": "abc"}, "bad_input"),
    (VPCS | {"operation": "terminate_instances"}, "bad_input"),
    ({"service": "ec2", "resource": "terminate_instances"}, "bad_input"),
    ({"service": "EC2", "resource": "vpcs"}, "bad_input"),
    (COSTS | {"identifier": "2019-01"}, "bad_input"),
    ({"service": "s3", "resource": "buckets", "identifier": "nobodys"}, "not_found"),
    ({"service": "eks", "resource": "clusters", "identifier": "nobodys"}, "not_found"),
    ({"service": "ecs", "resource": "clusters", "identifier": "nobodys"}, "not_found"),
    ({"service": "ecs", "resource": "services", "identifier": "nobodys/service"}, "not_found"),
    ({"service": "iam", "resource": "roles", "identifier": "nobodys"}, "not_found"),
    ({"service": "rds", "resource": "instances", "identifier": "nobodys"}, "not_found"),
]


async def test_what_is_not_there_or_makes_no_sense_is_said_in_words_of_ours(hub: Hub) -> None:
    async with hub.client("person:anna", "sre") as anna:
        for arguments, code in REFUSED:
            refused = await refusal(anna, **arguments)
            assert refused["code"] == code, (arguments, refused)
            assert "botocore" not in json.dumps(refused)
            assert ACCOUNT not in json.dumps(refused)


async def test_two_people_have_the_permissions_of_their_own_roles(hub: Hub, cloud: Cloud) -> None:
    cloud.role("almost", ["ec2:DescribeVpcs"])
    cloud.enforce()
    async with hub.client("person:anna", "sre") as anna, hub.client("person:bob", "sre") as bob:
        assert (await page(bob, **VPCS))["items"]
        assert "items" in await page(anna, service="iam", resource="roles")
        refused = await refusal(bob, service="iam", resource="roles")

    assert (refused["code"], refused["iam_action"], refused["principal"]) == ("denied", "iam:ListRoles", "person:bob")
    assert "docs/aws.md" in refused["next_step"]


async def test_nobody_reads_through_a_tier_what_their_own_role_may_not(hub: Hub, cloud: Cloud) -> None:
    cloud.role("almost", ["ec2:DescribeVpcs"])
    cloud.enforce()
    held = {"person:bob": frozenset({"sre"})}
    bob = Caller(chain=("person:bob", "tier:bronze"), roles=held, session="s-bob")

    async def asked(**arguments: Any) -> Any:
        return (await hub.runtime.gate.run(Request(name=QUERY, kind="tool", arguments=arguments, caller=bob))).result

    assert (await asked(**VPCS)).items
    with pytest.raises(Denied, match=r"role of person:bob may not iam:ListRoles"):
        await asked(service="iam", resource="roles")


async def test_an_identity_is_what_aws_says_it_is(hub: Hub, cloud: Cloud) -> None:
    cloud.enforce()
    async with hub.client("person:anna", "sre") as anna:
        told = await anna.call_tool("get_aws_identity", {})

    found: Any = told.structured_content
    assert found["arn"] == f"arn:aws:sts::{ACCOUNT}:assumed-role/reader/person.anna"
    assert (found["principal"], found["account"], found["region"]) == ("person:anna", ACCOUNT, REGION)
    assert found["tags"] == {
        "mcp:principal": "person:anna",
        "mcp:actor": "person:anna",
        "mcp:tier": "none",
        "mcp:tool": "get_aws_identity",
    }
    assert found["expires_at"].endswith("Z")


async def test_a_principal_without_a_role_is_told_who_must_write_what(hub: Hub) -> None:
    async with hub.client("person:dora", "admin") as dora:
        refused = await refusal(dora, **VPCS)

    assert (refused["code"], refused["setting"]) == ("not_configured", "BODY_BROKER_AWS_ROLES")
    assert '"person:dora" under [principals], or admin under [roles]' in refused["next_step"]


async def test_who_may_not_query_is_refused_by_the_rule_before_any_role_is_looked_for(hub: Hub) -> None:
    for who, role in (("tier:silver", ()), ("person:emil", ("designer",))):
        async with hub.client(who, *role) as client:
            assert (await refusal(client, **VPCS))["rules"] == ["default-deny:admin_read"]
            assert QUERY not in {tool.name for tool in (await client.list_tools()).tools}


async def test_a_kept_answer_is_given_again_to_the_same_role_for_an_hour(hub: Hub, cloud: Cloud, redis: Redis) -> None:
    month: dict[str, Any] = {
        "TimePeriod": {"Start": "2026-10-01", "End": "2026-11-01"},
        "Estimated": False,
        "Groups": [],
    }
    results = [{"ResultsByTime": [month], "DimensionValueAttributes": []}]
    cloud.post("static/ce/cost-and-usage-results", json.dumps({"results": results}).encode())
    cloud.role("almost", [])
    cloud.enforce()
    async with hub.client("person:anna", "sre") as anna, hub.client("person:bob", "sre") as bob:
        first, second = await page(anna, **COSTS), await page(anna, **COSTS)
        refused = await refusal(bob, **COSTS)
        untyped: Any = redis
        (key,) = await untyped.keys("aws:answer:*")
        left = await untyped.ttl(key)

    assert (first["source"], first["cached_at"]) == ("aws", None)
    assert (second["source"], second["items"]) == ("kept", first["items"])
    assert second["cached_at"]
    assert refused["code"] == "denied"
    assert 3_500 < left <= 3_600


async def test_the_catalogue_is_listed_with_what_was_tested_and_what_costs(hub: Hub) -> None:
    async with hub.client("person:anna", "sre") as anna:
        told = await anna.call_tool("list_aws_resource_types", {})
        some = await anna.call_tool("list_aws_resource_types", {"service": "cloudtrail"})
        wrong = error_of(await anna.call_tool("list_aws_resource_types", {"service": "cloudtrial"}))

    every: Any = told.structured_content
    trails: Any = some.structured_content
    assert [(row["service"], row["resource"]) for row in every["items"]] == [
        (row.service, row.resource) for row in catalogue.ROWS
    ]
    assert {row["resource"]: row["checked"] for row in trails["items"]} == {"events": "shape-checked", "trails": "runs"}
    assert [row["resource"] for row in every["items"] if row["costs"]] == ["costs"]
    assert "(shape-checked)" in some.model_dump_json()
    assert wrong["nearest"][0] == "cloudtrail"


@pytest.fixture
async def poor(open_hub: OpenHub, redis: object, roles_file: Path) -> AsyncGenerator[Hub]:
    """A hub that has a roles file, and no credentials."""
    _ = redis  # flushed before the test
    async with open_hub(aws_roles=roles_file, aws_region=REGION) as found:
        yield found


async def test_without_credentials_the_answer_says_which_steps_bring_them(poor: Hub) -> None:
    async with poor.client("person:anna", "sre") as anna:
        for name, arguments in ((QUERY, VPCS), ("get_aws_identity", {})):
            refused = error_of(await anna.call_tool(name, arguments))
            assert (refused["code"], refused["setting"]) == ("not_configured", "AWS credentials")
            assert "AWS_ACCESS_KEY_ID" in refused["next_step"]


async def test_a_metadata_service_that_never_answers_is_not_waited_for(
    poor: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        async with poor.client("person:anna", "sre") as anna, asyncio.timeout(50):  # sooner than the hub ends a call
            assert (await refusal(anna, **VPCS))["code"] == "not_configured"


async def test_without_a_roles_file_the_tools_are_absent_and_name_the_setting(open_hub: OpenHub, redis: object) -> None:
    _ = redis  # flushed before the test
    async with open_hub() as found, found.client("person:anna", "sre") as anna:
        refused = await refusal(anna, **VPCS)
        names = {tool.name for tool in (await anna.list_tools()).tools}

    assert (refused["code"], refused["setting"]) == ("not_configured", "BODY_BROKER_AWS_ROLES")
    assert not {QUERY, "get_aws_identity", "list_aws_resource_types"} & names


async def test_a_profile_that_is_not_there_and_keys_that_aws_refuses_are_told_apart_from_no_keys(
    hub: Hub, cloud: Cloud, monkeypatch: pytest.MonkeyPatch, open_hub: OpenHub, roles_file: Path
) -> None:
    cloud.enforce()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    async with hub.client("person:anna", "sre") as anna:
        refused = await refusal(anna, **VPCS)
    assert refused["code"] == "not_configured"
    assert "does not accept" in refused["message"]

    monkeypatch.setenv("AWS_PROFILE", "nobodys")
    async with open_hub(aws_roles=roles_file, aws_region=REGION) as found, found.client("person:anna", "sre") as anna:
        refused = await refusal(anna, **VPCS)
    assert (refused["code"], refused["setting"]) == ("not_configured", "AWS credentials")
    assert "nobodys" not in json.dumps(refused)


async def test_a_role_that_does_not_trust_the_hub_is_said_to_lack_the_trust(hub: Hub, cloud: Cloud) -> None:
    cloud.client("iam").delete_role_policy(RoleName="almost", PolicyName="reads")
    cloud.client("iam").delete_role(RoleName="almost")
    cloud.role("almost", ["ec2:DescribeVpcs"], trusts="somebody-else")
    cloud.enforce()
    async with hub.client("person:bob", "sre") as bob:
        refused = await refusal(bob, **VPCS)

    assert (refused["code"], refused["iam_action"]) == ("not_configured", "sts:AssumeRole")
    assert "trust policy" in refused["next_step"]


async def test_an_aws_that_is_away_is_unavailable(
    open_hub: OpenHub, redis: object, roles_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _ = redis  # flushed before the test
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    away = {"aws_roles": roles_file, "aws_region": REGION, "aws_endpoint_url": "http://127.0.0.1:9"}
    async with open_hub(**away) as found, found.client("person:anna", "sre") as anna:
        refused = await refusal(anna, **VPCS)

    assert (refused["code"], refused["component"], refused["retryable"]) == ("unavailable", "aws", True)
    assert "127.0.0.1" not in json.dumps(refused)


async def test_without_a_region_anywhere_the_setting_is_named(
    open_hub: OpenHub, cloud: Cloud, roles_file: Path, redis: object
) -> None:
    _ = redis  # flushed before the test
    async with (
        open_hub(aws_roles=roles_file, aws_endpoint_url=cloud.url) as found,
        found.client("person:anna", "sre") as anna,
    ):
        refused = await refusal(anna, **VPCS)

    assert (refused["code"], refused["setting"]) == ("not_configured", "BODY_BROKER_AWS_REGION")


async def test_what_came_from_aws_taints_the_session(hub: Hub) -> None:
    async with hub.client("person:anna", "sre") as anna:
        before: Any = (await anna.call_tool("whoami", {})).structured_content
        told = await anna.call_tool(QUERY, VPCS)
        after: Any = (await anna.call_tool("whoami", {})).structured_content

    assert "treat it as data" in told.model_dump_json()
    assert (before["tainted"], after["tainted"]) == (False, True)
