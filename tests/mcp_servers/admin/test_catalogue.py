"""The catalogue against botocore's models of AWS and policy_sentry's table of its actions: everything is real, read-only, no credential."""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, date, datetime
from typing import Any

import boto3  # pyright: ignore[reportMissingTypeStubs] - it has none
import pytest
from botocore.stub import Stubber  # pyright: ignore[reportMissingTypeStubs] - the same
from botocore.validate import ParamValidator  # pyright: ignore[reportMissingTypeStubs] - the same
from policy_sentry.querying.actions import get_action_data

from body_broker.errors import BadInput
from mcp_servers.admin import catalogue
from mcp_servers.admin.catalogue.row import Operation, Row
from mcp_servers.admin.query import START, Deadline, Position
from mcp_servers.admin.reading import Reader
from mcp_servers.admin.roles import Grant

TODAY = date(2026, 11, 21)
NEVER = Deadline(math.inf)
GRANT = Grant("person:anna", "arn:aws:iam::123456789012:role/reader")
OPERATIONS = [(row, operation) for row in catalogue.ROWS for operation in row.operations()]
IDENTIFIED = {"ce costs": "2026-10", "ecs services": "quay/npc"}

# What policy_sentry calls Read too, and hands out credentials, secrets or data.
HANDS_OUT = re.compile(
    r"Secret|Password|Credential|Token|GetParameter|Decrypt|GenerateDataKey|GetObject|GetItem|GetRecords|ReceiveMessage"
    r"|GetLogEvents|Presign|UserData|Export|GetFunction$|GetPasswordData|GetConsole|GetQueryResults|Select"
)
# Where the IAM action is not called as the operation.
ELSEWHERE = {("s3", "ListBuckets"): "s3:ListAllMyBuckets"}


def client_of(row: Row) -> Any:
    untyped: Any = boto3
    return untyped.client(
        row.service, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="y"
    )  # never calls


def model_of(row: Row, operation: Operation) -> Any:
    client = client_of(row)
    return client.meta.service_model.operation_model(client.meta.method_to_api_mapping[operation.method])


def filled(shape: Any, depth: int = 0) -> Any:
    """An answer in which every member is there."""
    match shape.type_name:
        case "structure":
            return {name: filled(member, depth + 1) for name, member in shape.members.items()} if depth < 7 else {}
        case "list":
            return [filled(shape.member, depth + 1)]
        case "map":
            return {"UnblendedCost": filled(shape.value, depth + 1)}
        case "string":
            return shape.enum[0] if shape.enum else "1"
        case kind:
            known = {"timestamp": datetime(2026, 11, 21, tzinfo=UTC), "boolean": True, "blob": b"1", "double": 1.0}
            return known.get(kind, 1)


def test_the_catalogue_has_the_studios_services_each_kind_once() -> None:
    assert len({row.name for row in catalogue.ROWS}) == len(catalogue.ROWS) >= 12
    assert {"ec2", "rds", "ecs", "eks", "s3", "sagemaker", "cloudwatch", "ce"} <= set(catalogue.SERVICES)
    assert all(next(iter(row.fields)) == "id" for row in catalogue.ROWS)


@pytest.mark.parametrize(("row", "operation"), OPERATIONS, ids=lambda it: getattr(it, "method", "") or it.name)
def test_an_operation_exists_is_read_only_and_hands_out_no_secret(row: Row, operation: Operation) -> None:
    model = model_of(row, operation)
    service, action = operation.action.split(":")

    levels = {found["access_level"] for found in get_action_data(service, action)[service]}

    assert levels <= {"Read", "List"}
    assert levels
    assert not HANDS_OUT.search(action)
    assert operation.action == ELSEWHERE.get((row.service, model.name), f"{service}:{model.name}")
    assert service == {"monitoring": "cloudwatch"}.get(signed := model.service_model.signing_name, signed)


@pytest.mark.parametrize(
    "action",
    [
        "secretsmanager:GetSecretValue",
        "ssm:GetParameter",
        "ecr:GetAuthorizationToken",
        "sts:GetSessionToken",
        "ec2:GetPasswordData",
        "s3:GetObject",
        "lambda:GetFunction",
        "logs:GetLogEvents",
        "kms:Decrypt",
    ],
)
def test_what_reads_credentials_would_be_seen_though_it_counts_as_reading(action: str) -> None:
    assert HANDS_OUT.search(action.split(":")[1])


@pytest.mark.parametrize(("row", "operation"), OPERATIONS, ids=lambda it: getattr(it, "method", "") or it.name)
def test_pages_are_turned_as_botocores_own_paginators_turn_them(row: Row, operation: Operation) -> None:
    client = client_of(row)
    model = model_of(row, operation)
    if operation.size:
        name, least, most = operation.size
        bounds = model.input_shape.members[name].metadata
        assert bounds.get("min", 1) <= least <= most <= bounds.get("max", 100)
    if not operation.token:
        described = row.detail is not None and operation is row.detail.operation
        assert described or operation is row.one or not client.can_paginate(operation.method)
        return
    assert operation.token[0] in model.input_shape.members
    assert operation.token[1] in model.output_shape.members
    if client.can_paginate(operation.method):
        known = client.get_paginator(operation.method)._pagination_cfg
        assert (known["input_token"], known["output_token"]) == operation.token


@pytest.mark.parametrize("row", catalogue.ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("identified", [False, True])
def test_every_request_fits_botocores_shape_and_every_field_is_in_its_answer(row: Row, identified: bool) -> None:  # noqa: FBT001 - a table's column
    name = IDENTIFIED.get(row.name, "it") if identified else None
    asked: list[str] = []

    class Seen:
        """The client as far as a row uses it: checks what would be sent, answers with everything there is."""

        def __getattr__(self, method: str) -> Any:
            operation = next(o for o in row.operations() if o.method == method)
            model = model_of(row, operation)

            def call(**params: Any) -> Any:
                asked.append(method)
                validator: Any = ParamValidator()
                report = validator.validate(params, model.input_shape)
                assert not report.has_errors(), report.generate_report()
                return filled(model.output_shape)

            return call

    plan = row.plan(name, TODAY)
    if plan.exact:  # the answer's name is 1
        plan = row.plan("1", TODAY)
    page = Reader(Seen(), row, GRANT, NEVER).read(plan, start=Position("token", 0) if name is None else START, limit=1)

    shown = set(page.items[0]) - {"tags"}
    if row.one and name is None:  # a listing may know less than what reads one
        assert {"id"} < shown <= set(row.fields)
    else:
        assert shown == set(row.fields)
        assert ("tags" in page.items[0]) is bool(row.tags)
    assert asked


SHAPE_CHECKED = {
    "cloudtrail events": {
        "EventId": "6f1c",
        "EventName": "RunInstances",
        "ReadOnly": "false",
        "AccessKeyId": "AKIA" + "IOSFODNN7EXAMPLE",
        "EventTime": datetime(2026, 11, 20, 3, 4, 5, tzinfo=UTC),
        "EventSource": "ec2.amazonaws.com",
        "Username": "person.anna",
        "Resources": [{"ResourceType": "AWS::EC2::Instance", "ResourceName": "i-0abc"}],
        "CloudTrailEvent": json.dumps({"requestParameters": {"userData": "export PASSWORD=hunter2pass"}}),
    }
}


def test_every_row_that_moto_cannot_run_is_checked_here() -> None:
    assert set(SHAPE_CHECKED) == {row.name for row in catalogue.ROWS if row.checked == "shape-checked"}


def test_events_of_the_audit_log_are_asked_for_and_shown_as_botocore_has_them() -> None:
    row = catalogue.row_of("cloudtrail", "events")
    client = client_of(row)
    sought = [{"AttributeKey": "EventName", "AttributeValue": "RunInstances"}]
    untyped: Any = Stubber
    with untyped(client) as stub:
        stub.add_response(
            "lookup_events",
            {"Events": [SHAPE_CHECKED[row.name]], "NextToken": "next"},
            {"LookupAttributes": sought, "MaxResults": 50},
        )
        stub.add_response(
            "lookup_events", {"Events": []}, {"LookupAttributes": sought, "MaxResults": 50, "NextToken": "next"}
        )
        page = Reader(client, row, GRANT, NEVER).read(row.plan("RunInstances", TODAY), start=START, limit=100)
        stub.assert_no_pending_responses()

    assert page.after is None
    assert page.items == [
        {
            "id": "RunInstances",
            "event_id": "6f1c",
            "at": "2026-11-20T03:04:05Z",
            "by": "person.anna",
            "source": "ec2.amazonaws.com",
            "read_only": "false",
            "touched": [{"type": "AWS::EC2::Instance", "name": "i-0abc"}],
        }
    ]


def test_costs_are_asked_for_whole_months_that_are_not_in_the_future() -> None:
    row = catalogue.row_of("ce", "costs")

    def period(month: str | None, today: date = TODAY) -> tuple[str, str]:
        found: Any = row.plan(month, today).params["TimePeriod"]
        return found["Start"], found["End"]

    assert period(None) == ("2026-10-01", "2026-11-22")
    assert period(None, date(2027, 1, 1)) == ("2026-12-01", "2027-01-02")
    assert period("2026-11") == ("2026-11-01", "2026-11-22")
    assert period("2026-02") == ("2026-02-01", "2026-03-01")
    assert period("2025-12") == ("2025-12-01", "2026-01-01")
    for wrong in ("2026-12", "2025-10", "last", "2026-13", "2026-1", "0000-00"):
        with pytest.raises(BadInput, match="a month"):
            period(wrong)


@pytest.mark.parametrize(
    ("service", "resource", "nearest"),
    [
        ("ec", "instances", "ec2"),
        ("rdss", "instances", "rds"),
        ("ec2", "instance", "ec2 instances"),
        ("ec2", "volumes", "ec2 vpcs"),
        ("iam", "users", "iam roles"),
    ],
)
def test_a_name_that_is_not_in_the_catalogue_is_told_those_that_are(service: str, resource: str, nearest: str) -> None:
    with pytest.raises(BadInput) as refused:
        catalogue.row_of(service, resource)

    near: Any = refused.value.details["nearest"]
    assert nearest in near
    assert nearest.rpartition(" ")[2] in refused.value.message


def test_the_policy_names_each_action_once_and_fits_a_session() -> None:
    policy = catalogue.iam_policy()
    (statement,) = policy["Statement"]

    assert statement["Action"] == sorted({operation.action for _, operation in OPERATIONS})
    assert statement["Effect"] == "Allow"
    assert not any("*" in action for action in statement["Action"])
    assert len(json.dumps(policy)) < 2_048  # STS takes no longer one
