"""The same over an S3 that checks signatures, which moto's does not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.counterparts import s3
from tests.tiers.bronze.sagemaker.studio import BUCKET, Studio
from tiers.bronze.sagemaker.client import INLINE_BYTES_MAX, SageMakerClient

pytestmark = pytest.mark.requires("s3")


@pytest.fixture
async def signed(experts: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Studio]:
    """The studio, its objects in a real S3, and its key where boto3 finds it."""
    (tmp_path / "s3").mkdir()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.SECRET)
    with s3.running(tmp_path / "s3") as url:
        bucket = s3.Bucket(url, BUCKET).make()
        experts.sagemaker.s3 = bucket.client
        urls = {"endpoint_url": experts.cloud.url, "runtime_url": experts.sagemaker.url, "s3_url": url}
        experts.client = SageMakerClient(region=s3.REGION, **urls)
        yield experts


async def test_long_questions_and_answers_go_through_it(signed: Studio) -> None:
    async with signed.worker():
        found = await signed.ends(await signed.submit("x" * INLINE_BYTES_MAX))
    assert found["text"] == "Kaya stands at the well."
    assert signed.sagemaker.ledger[0].input is not None


async def test_a_failure_is_read_from_it(signed: Studio) -> None:
    signed.model.status = 500
    async with signed.worker():
        assert await signed.ends(await signed.submit()) == {"fault": "failed"}


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "unauthorised"),
        ("AWS_ACCESS_KEY_ID", "nobody", "rejected"),  # a 404 with a word of this server's own
    ],
)
async def test_a_wrong_key_is_seen_before_anything_is_asked(
    signed: Studio, monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(name, value)
    async with signed.worker():
        job = await signed.submit()
        assert await signed.ends(job) == {"fault": reason}
    assert (await signed.rows(job), signed.sagemaker.seen) == ([], 0)
