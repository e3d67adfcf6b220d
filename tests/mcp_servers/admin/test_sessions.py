"""Sessions with AWS and what goes wrong in them: assumed once, renewed in time, narrowed and tagged; every fault in our own words."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from botocore import exceptions as botocore  # pyright: ignore[reportMissingTypeStubs] - it has none
from botocore.stub import Stubber  # pyright: ignore[reportMissingTypeStubs] - the same

from body_broker.errors import BadInput, BodyBrokerError, NotConfigured
from body_broker.storage.redis import Redis
from mcp_servers.admin import catalogue
from mcp_servers.admin.asking import ask, identify
from mcp_servers.admin.aws import RENEWED_BEFORE_S, SESSIONS_MAX, Aws, Session
from mcp_servers.admin.faults import told, told_of_assuming
from mcp_servers.admin.keeping import TOKEN_CHARACTERS_MAX, Keeping
from mcp_servers.admin.query import Answer, Deadline, Position, Query, Who
from mcp_servers.admin.roles import Grant
from tests.counterparts.aws import ACCOUNT, REGION, Cloud

GRANT = Grant("person:anna", f"arn:aws:iam::{ACCOUNT}:role/reader", external_id="studio-7")
ANNA = Who(("person:anna",), "query_aws_resource")
FOR_ANNA = Who(("person:anna", "tier:bronze"), "query_aws_resource")
ROW = catalogue.row_of("ec2", "vpcs")
NEVER = Deadline(math.inf)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        import time  # noqa: PLC0415 - STS' expiry is by the real clock, so ours starts there

        self.now = time.time()  # noqa: TID251 - as above

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def aws(cloud: Cloud, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Aws:
    key, secret = cloud.hub
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    cloud.enforce()
    return Aws(region=REGION, endpoint_url=cloud.url, clock=clock)


def key_of(session: Session) -> str:
    return session.credentials["aws_access_key_id"]


def test_a_session_is_used_again_until_shortly_before_it_expires(aws: Aws, clock: Clock) -> None:
    first = aws.session(GRANT, ANNA)
    clock.now = first.expires_at - RENEWED_BEFORE_S - 1
    again = aws.session(GRANT, ANNA)
    clock.now += 2
    renewed = aws.session(GRANT, ANNA)

    assert again is first
    assert aws.client(again, "ec2", REGION) is aws.client(first, "ec2", REGION)
    assert key_of(renewed) != key_of(first)
    assert aws.client(renewed, "ec2", REGION) is not aws.client(first, "ec2", REGION)
    assert aws.client(first, "ec2", "us-east-1") is not aws.client(first, "ec2", REGION)


def test_each_chain_and_tool_has_a_session_of_its_own(aws: Aws) -> None:
    keys = {key_of(aws.session(GRANT, who)) for who in (ANNA, FOR_ANNA, replace(ANNA, tool="get_aws_identity"))}

    assert len(keys) == 3


def test_no_more_sessions_are_kept_than_a_process_can_bear(aws: Aws) -> None:
    first = aws.session(GRANT, ANNA)
    for n in range(SESSIONS_MAX):
        aws.session(GRANT, Who((f"person:p{n}",), "t"))

    assert aws.session(GRANT, ANNA) is not first
    assert len(aws._sessions) == SESSIONS_MAX  # pyright: ignore[reportPrivateUsage] - its size is the point


def test_a_session_that_aws_no_longer_knows_is_assumed_anew_within_the_same_query(aws: Aws) -> None:
    stale = aws.session(GRANT, ANNA)
    stale.credentials["aws_session_token"] = "gone"
    query = Query(row=ROW, plan=ROW.plan(None, None), region=None, limit=5)  # type: ignore[arg-type]  # no costs: no date

    answer = ask(aws, query, GRANT, ANNA, NEVER)

    assert answer.items
    assert aws.session(GRANT, ANNA) is not stale

    aws.session(GRANT, ANNA).credentials["aws_session_token"] = "gone again"
    aws.session(GRANT, ANNA).clients.clear()
    assert identify(aws, GRANT, ANNA, NEVER).account == ACCOUNT


def test_a_session_is_named_tagged_and_narrowed_to_the_catalogue(aws: Aws) -> None:
    sts: Any = aws._own_sts(GRANT)  # pyright: ignore[reportPrivateUsage] - what is sent is the point
    sent: dict[str, Any] = {}

    def note(params: dict[str, Any], **_said: object) -> None:
        sent.update(params)

    sts.meta.events.register("provide-client-params.sts.AssumeRole", note)
    long = Who(("person:" + "a" * 63, "tier:bronze"), "query_aws_resource")

    session = aws.session(GRANT, long)

    tags = {tag["Key"]: tag["Value"] for tag in sent["Tags"]}
    assert tags == {
        "mcp:principal": "person:" + "a" * 63,
        "mcp:actor": "tier:bronze",
        "mcp:tier": "bronze",
        "mcp:tool": "query_aws_resource",
    }
    assert sent["RoleSessionName"].startswith("tier.bronze.person.aaa")
    assert sent["SourceIdentity"] == ("person." + "a" * 63)[:64]
    assert (sent["DurationSeconds"], sent["ExternalId"]) == (900, "studio-7")
    assert "ec2:DescribeVpcs" in sent["Policy"]
    assert "*" not in sent["Policy"].replace('"Resource":"*"', "")
    assert key_of(session) not in repr(session)


def test_a_partition_asks_its_own_regions(aws: Aws) -> None:
    assert aws.region("iam", None, everywhere=True, partition="aws") == "us-east-1"
    assert aws.region("iam", "eu-west-1", everywhere=True, partition="aws") == "us-east-1"
    assert aws.region("ec2", "cn-north-1", everywhere=False, partition="aws-cn") == "cn-north-1"
    with pytest.raises(BadInput):
        aws.region("ec2", "cn-north-1", everywhere=False, partition="aws")


FAULTS: list[tuple[str, int, str]] = [
    ("AccessDenied", 403, "denied"),
    ("AccessDeniedException", 400, "denied"),
    ("Client.UnauthorizedOperation", 403, "denied"),
    ("com.amazonaws.x#AccessDeniedException", 400, "denied"),
    ("AccessDeniedException:http://internal.amazon.com/", 400, "denied"),
    ("SomethingElseForbidden", 403, "denied"),
    ("ThrottlingException", 400, "rate_limited"),
    ("RequestLimitExceeded", 503, "rate_limited"),
    ("LimitExceededException", 400, "rate_limited"),
    ("ExpiredToken", 403, "unavailable"),
    ("UnrecognizedClientException", 400, "unavailable"),
    ("OptInRequired", 403, "bad_input"),
    ("InvalidInstanceID.NotFound", 400, "not_found"),
    ("DBInstanceNotFound", 404, "not_found"),
    ("NoSuchEntity", 404, "not_found"),
    ("InvalidInstanceID.Malformed", 400, "bad_input"),
    ("ValidationException", 400, "bad_input"),
    ("InternalFailure", 500, "unavailable"),
    ("ServiceUnavailable", 503, "unavailable"),
]
SECRET_WORDS = "arn:aws:iam::1:role/secret at 10.0.0.7"


@pytest.mark.parametrize(("code", "status", "ours"), FAULTS)
def test_a_fault_of_aws_is_told_in_our_words_alone(code: str, status: int, ours: str) -> None:
    untyped: Any = Stubber
    client: Any = _client()
    with untyped(client) as stub:
        stub.add_client_error("describe_vpcs", code, SECRET_WORDS, http_status_code=status)
        with pytest.raises(botocore.ClientError) as raised:
            client.describe_vpcs()

    found = told(raised.value, action="ec2:DescribeVpcs", grant=GRANT)

    assert found.code == ours
    assert not any(word in _whole(found) for word in ("secret", "10.0.0.7", "arn:", code))
    assert ("ec2:DescribeVpcs" in found.message) is (ours == "denied")
    assert (found.retry_after_s is not None) is (ours == "rate_limited")


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (botocore.NoCredentialsError(), "not_configured"),
        (botocore.PartialCredentialsError(provider="env", cred_var="secret"), "not_configured"),
        (botocore.CredentialRetrievalError(provider="p", error_msg=SECRET_WORDS), "not_configured"),
        (botocore.ProfileNotFound(profile="secret"), "not_configured"),
        (botocore.EndpointConnectionError(endpoint_url="http://10.0.0.7"), "unavailable"),
        (botocore.ConnectTimeoutError(endpoint_url="http://10.0.0.7"), "unavailable"),
        (botocore.ReadTimeoutError(endpoint_url="http://10.0.0.7"), "unavailable"),
        (botocore.SSLError(endpoint_url="http://10.0.0.7", error="secret"), "unavailable"),
        (botocore.ProxyConnectionError(proxy_url="http://10.0.0.7"), "unavailable"),
        (botocore.ParamValidationError(report=SECRET_WORDS), "bad_input"),
        (RuntimeError(SECRET_WORDS), "internal"),
    ],
)
def test_a_fault_on_the_way_to_aws_is_told_in_our_words_alone(error: Exception, ours: str) -> None:
    for found in (told(error, action="ec2:DescribeVpcs", grant=GRANT), told_of_assuming(error, GRANT)):
        assert found.code == ours
        assert not any(word in _whole(found) for word in ("secret", "10.0.0.7", "arn:"))


async def test_a_token_too_long_for_a_cursor_is_kept_for_the_next_page(redis: Redis) -> None:
    keeping = Keeping(redis)
    for token in (None, "short", "long" * TOKEN_CHARACTERS_MAX):
        state = await keeping.state("b", Position(token, 3))
        assert len(str(state)) < 700
        assert await keeping.position("b", state) == Position(token, 3)

    long = await keeping.state("b", Position("long" * TOKEN_CHARACTERS_MAX, 0))
    await redis.execute_command("FLUSHALL")  # pyright: ignore[reportUnknownMemberType] - redis-py's hints
    with pytest.raises(BadInput, match="too old"):
        await keeping.position("b", long)
    with pytest.raises(BadInput, match="another query"):
        await keeping.position("c", long)


async def test_a_kept_answer_comes_back_as_it_was_with_its_time(redis: Redis) -> None:
    keeping = Keeping(redis)
    answer = Answer(
        items=[{"id": "2026-10-01"}], after=Position("t", 2), account=ACCOUNT, region="global", names=("a",)
    )

    await keeping.keep("x", answer, at=1_763_700_000.0, for_s=60)

    assert await keeping.answer("x") == replace(answer, cached_at="2025-11-21T04:40:00Z")
    assert await keeping.answer("y") is None


def test_costs_are_kept_per_role_month_and_page() -> None:
    row = catalogue.row_of("ce", "costs")
    from datetime import date  # noqa: PLC0415 - here alone

    query = Query(row=row, plan=row.plan("2026-10", date(2026, 11, 21)), region=None, limit=20)
    other = replace(query, plan=row.plan("2026-09", date(2026, 11, 21)))
    grants = GRANT, replace(GRANT, arn=GRANT.arn + "2")

    names = {
        q.kept_as(g)
        for g in grants
        for q in (query, other, replace(query, limit=1), replace(query, start=Position("t", 0)))
    }

    assert len(names) == 8


def test_without_credentials_every_session_says_so_and_later_ones_work(
    cloud: Cloud, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws = Aws(region=REGION, endpoint_url=cloud.url, clock=clock)
    with pytest.raises(NotConfigured, match="no AWS credentials"):
        aws.session(GRANT, ANNA)

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", cloud.hub[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", cloud.hub[1])
    assert aws.session(GRANT, ANNA).account == ACCOUNT


def _client() -> Any:
    import boto3  # noqa: PLC0415 # pyright: ignore[reportMissingTypeStubs] - it has none

    untyped: Any = boto3
    return untyped.client("ec2", region_name=REGION, aws_access_key_id="x", aws_secret_access_key="y")


def _whole(error: BodyBrokerError) -> str:
    return f"{error.message} {error.next_step} {error.details}"
