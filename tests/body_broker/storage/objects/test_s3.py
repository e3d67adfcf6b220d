"""S3 tells in words what is wrong: a bucket that is denied, missing or away, and credentials that are none, wrong or old."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from body_broker.errors import Draining, NotConfigured, NotFound, TooLarge, Unavailable
from body_broker.storage.objects import Objects, check, open_objects
from body_broker.storage.objects.model import OBJECT_BYTES_MAX
from tests.body_broker.storage.objects.conftest import in_bucket
from tests.counterparts import aws
from tests.counterparts.s3 import KEY, SECRET, Bucket, saying
from tests.ports import free_port

SETTING = "BODY_BROKER_RESULTS"


def place(url: str, where: str = "s3://bucket/results"):  # noqa: ANN201 - as open_objects
    return open_objects(where, endpoint_url=url)


async def refused(objects: Objects) -> NotConfigured:
    """What is said of a put, which is the same as of a check."""
    with pytest.raises(NotConfigured) as checked:
        await check(objects)
    with pytest.raises(NotConfigured) as caught:
        await objects.put("a/b", b"x")
    assert caught.value.message == checked.value.message
    assert SETTING in caught.value.message
    assert caught.value.details == {"setting": SETTING}
    return caught.value


async def test_keys_lie_under_the_prefix_with_their_type(bucket: Bucket) -> None:
    async with in_bucket(bucket, "/team/results/") as objects:
        await objects.put("kind/job.json", b"{}")
    async with in_bucket(bucket, "") as whole:
        await whole.put("kind/job.json", b"{}", content_type="text/plain")

        assert await whole.get("team/results/kind/job.json") == b"{}"

    assert bucket.keys() == ["kind/job.json", "team/results/kind/job.json"]
    found = bucket.client().head_object(Bucket=bucket.name, Key="team/results/kind/job.json")
    assert found["ContentType"] == "application/json"


async def test_a_check_leaves_nothing_behind(bucket: Bucket) -> None:
    async with in_bucket(bucket) as objects:
        await check(objects)

    assert bucket.keys() == []


async def test_a_bucket_that_is_not_there_is_said(real_s3: str) -> None:
    async with place(real_s3, "s3://no-such-bucket/x") as objects:
        said = await refused(objects)
        with pytest.raises(NotConfigured, match="not there"):
            await objects.get("a")

    assert said.message == "The bucket of BODY_BROKER_RESULTS is not there."


async def test_a_wrong_secret_is_said(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")

    async with in_bucket(bucket) as objects:
        said = await refused(objects)

    assert said.message == "The secret key for the bucket of BODY_BROKER_RESULTS is another one."
    assert "AWS_SECRET_ACCESS_KEY" in said.next_step


async def test_a_key_that_nobody_knows_is_said(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stranger")

    async with in_bucket(bucket) as objects:
        said = await refused(objects)

    assert "nobody knows them" in said.message


async def test_no_credentials_are_said_and_found_as_soon_as_there_are_some(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    async with in_bucket(bucket) as objects:
        said = await refused(objects)
        assert said.message == "This hub has no AWS credentials for the bucket of BODY_BROKER_RESULTS."

        (tmp_path / ".aws").mkdir()
        file = tmp_path / ".aws" / "credentials"
        file.write_text(f"[default]\naws_access_key_id = {KEY}\naws_secret_access_key = old\n")
        assert "secret key" in (await refused(objects)).message

        file.write_text(f"[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
        await check(objects)


@pytest.fixture
def account(moto: aws.Cloud) -> Iterator[aws.Cloud]:
    """An account that checks permissions; its bucket is `bucket`, its user `hub` may assume roles and nothing else."""
    moto.begin()
    moto.client("s3").create_bucket(Bucket="bucket", CreateBucketConfiguration={"LocationConstraint": aws.REGION})
    moto.client("s3").put_object(Bucket="bucket", Key="results/a/b", Body=b"x")
    moto.enforce()
    yield moto
    moto.relax()


async def test_a_bucket_that_denies_says_which_permission_lacks(
    account: aws.Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", account.hub[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", account.hub[1])

    async with place(account.url) as objects:
        said = await refused(objects)
        with pytest.raises(NotConfigured, match="s3:GetObject"):
            await objects.get("a/b")
        with pytest.raises(NotConfigured, match="s3:GetObject"):
            await objects.head("a/b")
        with pytest.raises(NotConfigured, match="s3:DeleteObject"):
            await objects.drop("a/b")

    assert said.message == "The bucket of BODY_BROKER_RESULTS does not let this hub use s3:PutObject."
    assert all(name in said.next_step for name in ("s3:PutObject", "s3:ListBucket", "kms:GenerateDataKey"))


async def test_the_permissions_that_are_named_are_enough(account: aws.Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = [
        {"Effect": "Allow", "Action": ["s3:PutObject", "s3:GetObject", "s3:DeleteObject"], "Resource": "*"},
        {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "*"},
    ]
    policy = json.dumps({"Version": "2012-10-17", "Statement": allowed})
    account.client("iam").put_user_policy(UserName=aws.HUB_USER, PolicyName="results", PolicyDocument=policy)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", account.hub[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", account.hub[1])

    async with place(account.url) as objects:
        await check(objects)
        with pytest.raises(NotFound):
            await objects.get("never")


async def test_a_server_that_is_away_is_said() -> None:
    async with place(f"http://127.0.0.1:{free_port()}") as objects:
        with pytest.raises(Unavailable) as caught:
            await objects.put("a", b"x")

    assert caught.value.message == "The bucket of BODY_BROKER_RESULTS cannot be reached, or did not answer in time."
    assert "BODY_BROKER_RESULTS_ENDPOINT_URL" in caught.value.next_step
    assert caught.value.details == {"component": "objects"}


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (400, "ExpiredToken", NotConfigured, "have expired"),
        (403, "RequestTimeTooSkewed", Unavailable, "clock"),
        (301, "PermanentRedirect", NotConfigured, "another region"),
        (400, "AuthorizationHeaderMalformed", NotConfigured, "another region"),
        (403, "AllAccessDisabled", NotConfigured, "s3:GetObject"),
        (400, "KMS.DisabledException", NotConfigured, "s3:GetObject"),
        (403, "InvalidObjectState", NotConfigured, "archive"),
        (400, "InvalidRequest", NotConfigured, "refused the request"),
        (409, "OperationAborted", Unavailable, "in the way"),
        (503, "SlowDown", Unavailable, "no more requests"),
        (500, "InternalError", Unavailable, "failed while answering"),
        (404, "NoSuchBucket", NotConfigured, "not there"),
        (404, "NoSuchKey", NotFound, "no object"),
    ],
)
async def test_what_s3_answers_is_told_in_our_words(status: int, code: str, kind: type[Exception], words: str) -> None:
    with saying(status=status, code=code) as server:
        async with place(server.url) as objects:
            with pytest.raises(kind, match=words) as caught:
                await objects.get("a/b")

    assert "secret words" not in str(caught.value)


async def test_a_put_that_others_were_in_the_way_of_is_done_again() -> None:
    with saying(status=409, code="ExistingObjectIsDirectory", times=2) as server:
        async with place(server.url) as objects:
            await objects.put("a/b", b"x")

    assert server.asked == ["PUT /bucket/results/a/b"] * 3


async def test_a_put_that_others_are_always_in_the_way_of_ends() -> None:
    with saying(status=409, code="OperationAborted") as server:
        async with place(server.url) as objects:
            with pytest.raises(Unavailable, match="in the way"):
                await objects.put("a/b", b"x")

    assert len(server.asked or []) == 3


async def test_an_answer_that_breaks_off_is_no_object() -> None:
    with saying(cut=True) as server:
        async with place(server.url) as objects:
            with pytest.raises(Unavailable):
                await objects.get("a/b")


async def test_an_address_that_is_none_is_said() -> None:
    async with place("http://[not-an-address") as objects:
        said = await refused(objects)

    assert "BODY_BROKER_RESULTS_ENDPOINT_URL" in said.next_step


async def test_what_somebody_else_put_there_is_not_read_when_it_is_too_large(bucket: Bucket) -> None:
    bucket.client().put_object(Bucket=bucket.name, Key="results/large", Body=bytes(OBJECT_BYTES_MAX + 1))

    async with in_bucket(bucket) as objects:
        with pytest.raises(TooLarge):
            await objects.get("large")


async def test_a_place_that_is_closed_asks_nothing_more(bucket: Bucket) -> None:
    async with in_bucket(bucket) as objects:
        pass

    with pytest.raises(Draining):
        await objects.put("a", b"x")
