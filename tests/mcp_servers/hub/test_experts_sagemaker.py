"""A job over a real hub whose expert is behind a SageMaker asynchronous endpoint: parked until its notice, its result kept in S3."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from body_broker.storage.redis import Redis
from mcp_servers.hub.worker import working
from tests.counterparts.aws import REGION, Cloud, running
from tests.counterparts.sagemaker import Container, Endpoint, SageMakerAsyncEmulator, container, emulator
from tests.mcp_servers.hub.conftest import Hub, OpenHub
from tests.mcp_servers.hub.expert_hub import ended
from tests.waiting import wait_until

BUCKET, NAME = "studio-experts", "experts"


@pytest.fixture(scope="module")
def aws_server() -> Iterator[Cloud]:
    with running() as found:
        yield found


@pytest.fixture
def cloud(aws_server: Cloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cloud:
    """An AWS account of the test's own, found as boto3 finds one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")
    aws_server.begin()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", aws_server.root[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", aws_server.root[1])
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws_server.url)
    return aws_server


@pytest.fixture
async def model() -> AsyncGenerator[Container]:
    async with container() as found:
        yield found


@pytest.fixture
async def sagemaker(
    cloud: Cloud, model: Container, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[SageMakerAsyncEmulator]:
    async with emulator(cloud) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", found.url)
        topic = await asyncio.to_thread(_made, cloud)
        found.add(NAME, Endpoint(model.url, f"s3://{BUCKET}/outputs", f"s3://{BUCKET}/failures", topic))
        yield found


def _made(cloud: Cloud) -> str:
    """The bucket, and the topic whose notices go to the queue."""
    cloud.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    topic: str = cloud.client("sns").create_topic(Name="answers")["TopicArn"]
    sqs = cloud.client("sqs")
    url: str = sqs.create_queue(QueueName="answers")["QueueUrl"]
    arn: str = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    cloud.client("sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
    return topic


@pytest.fixture
async def hub(open_hub: OpenHub, cloud: Cloud, sagemaker: SageMakerAsyncEmulator, redis: Redis) -> AsyncGenerator[Hub]:
    """A hub whose only expert is the endpoint; it is looked at every hour, so that only notices can be quick."""
    _ = redis, sagemaker
    queue_url: str = cloud.client("sqs").get_queue_url(QueueName="answers")["QueueUrl"]
    settings: dict[str, Any] = {
        "aws_region": REGION,
        "sagemaker_endpoint": NAME,
        "sagemaker_output": f"s3://{BUCKET}/outputs",
        "sagemaker_failures": f"s3://{BUCKET}/failures",
        "sagemaker_queue_url": queue_url,
        "sagemaker_poll_s": 3_600,
        "results": f"s3://{BUCKET}/results",
        "tools": "all",
    }
    async with open_hub(**settings) as found:
        yield found


async def test_a_job_is_parked_while_the_endpoint_is_at_it_and_woken_by_its_notice(
    hub: Hub, sagemaker: SageMakerAsyncEmulator, model: Container
) -> None:
    model.gate.clear()
    async with hub.client("person:anna", "designer") as client, working(hub.runtime):
        submitted = (await client.call_tool("submit_job", {"prompt": "Who is Kaya?"})).structured_content
        assert submitted is not None
        job_id = submitted["job_id"]
        await wait_until(lambda: len(model.asked) == 1, "the endpoint is at it")

        async def waits() -> dict[str, Any] | None:
            found = (await client.call_tool("get_job", {"id": job_id})).structured_content
            return found if found is not None and found["state"] == "waiting" else None

        waiting = await wait_until(waits, "the job is parked")
        assert waiting is not None
        assert waiting["waits_for"] == "the answer of sagemaker"
        model.gate.set()
        job = await ended(client, job_id)
    assert job["state"] == "succeeded", job
    assert job["result"]["content"] == "Kaya stands at the well."
    assert job["result"]["made"]["engines"] == ["sagemaker"]
    assert list(sagemaker.runs.values()) == [1]
    kept = await asyncio.to_thread(sagemaker.read, f"s3://{BUCKET}/results/expert/{job_id}.json")
    assert orjson.loads(kept)["body"]["content"] == "Kaya stands at the well."
