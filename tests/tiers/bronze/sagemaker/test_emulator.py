"""The counterpart speaks as SageMaker does, as far as boto3's own client and its model of the service can tell."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from botocore.config import Config  # pyright: ignore[reportMissingTypeStubs] - it has none
from botocore.exceptions import (  # pyright: ignore[reportMissingTypeStubs] - the same
    ClientError,
    ConnectionClosedError,
)

from tests.counterparts.aws import REGION
from tests.counterparts.sagemaker import EXPIRED, said
from tests.tiers.bronze.sagemaker.studio import FAILURES, NAME, OUTPUT, Studio

BODY = json.dumps({"messages": [{"role": "user", "content": "Who is Kaya?"}]}).encode()


def runtime(studio: Studio, key: str = "x") -> Any:  # boto3 has no types
    import boto3  # noqa: PLC0415 # pyright: ignore[reportMissingTypeStubs] - a test's own

    untyped: Any = boto3
    return untyped.client(
        "sagemaker-runtime",
        region_name=REGION,
        endpoint_url=studio.sagemaker.url,
        aws_access_key_id=key,
        aws_secret_access_key="y",
        config=Config(retries={"total_max_attempts": 1}, read_timeout=10),
    )


async def invoke(studio: Studio, **more: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "EndpointName": NAME,
        "ContentType": "application/json",
        "InferenceId": "job-1-1",
        "S3OutputPathExtension": "jobs/",
        "Filename": "0" * 32,
        "Body": BODY,
    } | more
    client = runtime(studio)
    return await asyncio.to_thread(lambda: client.invoke_endpoint_async(**{k: v for k, v in asked.items() if v}))


def told_of(error: Any) -> tuple[str, str]:  # botocore has no types
    return error.response["Error"]["Code"], error.response["Error"]["Message"]


async def test_an_answer_is_told_of_by_its_places_and_lies_there_later(experts: Studio) -> None:
    told = await invoke(experts, RequestTTLSeconds=60, InvocationTimeoutSeconds=5)
    assert told["ResponseMetadata"]["HTTPStatusCode"] == 202
    assert told["InferenceId"] == "job-1-1"
    assert told["OutputLocation"] == f"{OUTPUT}/jobs/{'0' * 32}"
    assert told["FailureLocation"].startswith(f"{FAILURES}/jobs/")
    await (await experts.taken()).ended.wait()
    found = await asyncio.to_thread(experts.sagemaker.read, told["OutputLocation"])
    assert json.loads(found) == said("Kaya stands at the well.")
    assert experts.model.asked == [json.loads(BODY)]
    assert experts.sagemaker.runs == {told["OutputLocation"]: 1}


async def test_the_same_id_twice_is_run_twice(experts: Studio) -> None:
    """Nothing in AWS' words promises otherwise, so nothing of ours may count on it."""
    for number in (1, 2):
        told = await invoke(experts)
        await (await experts.taken(number)).ended.wait()
    assert experts.sagemaker.runs == {told["OutputLocation"]: 2}


async def test_a_question_from_s3_is_run_as_it_lies_there(experts: Studio) -> None:
    await experts.put(f"{OUTPUT}/questions/1.json", BODY)
    await invoke(experts, Body=None, InputLocation=f"{OUTPUT}/questions/1.json")
    await (await experts.taken()).ended.wait()
    assert experts.model.asked == [json.loads(BODY)]


@pytest.mark.parametrize(
    ("wrong", "said_of_it"),
    [
        ({"EndpointName": "nobody"}, "not found"),
        ({"Filename": "a.b.c"}, "Filename"),
        ({"S3OutputPathExtension": "s3:x"}, "S3OutputPathExtension"),
        ({"InputLocation": "s3://studio-experts/x"}, "Exactly one"),
        ({"Body": None}, "Exactly one"),
        ({"Body": b"x" * 128_001}, "128000"),
    ],
)
async def test_what_aws_would_not_take_is_refused_in_its_own_form(
    experts: Studio, wrong: dict[str, Any], said_of_it: str
) -> None:
    with pytest.raises(ClientError) as refused:
        await invoke(experts, **wrong)
    code, message = told_of(refused.value)
    assert code == "ValidationError"
    assert said_of_it in message
    assert experts.sagemaker.ledger == []


async def test_an_unknown_session_is_refused(experts: Studio) -> None:
    client = runtime(experts, EXPIRED)
    with pytest.raises(ClientError) as refused:
        await asyncio.to_thread(lambda: client.invoke_endpoint_async(EndpointName=NAME, Body=BODY))
    assert told_of(refused.value)[0] == "ExpiredTokenException"


@pytest.mark.parametrize(
    ("trick", "code"), [("throttled", "ThrottlingException"), ("unavailable", "ServiceUnavailable")]
)
async def test_it_refuses_when_told_to(experts: Studio, trick: Any, code: str) -> None:
    experts.sagemaker.tricks.append(trick)
    with pytest.raises(ClientError) as refused:
        await invoke(experts)
    assert told_of(refused.value)[0] == code
    assert experts.sagemaker.ledger == []


async def test_it_takes_a_question_and_says_nothing_when_told_to(experts: Studio) -> None:
    experts.sagemaker.tricks.append("swallowed")
    with pytest.raises(ConnectionClosedError):
        await invoke(experts)
    assert len(experts.sagemaker.ledger) == 1


async def test_a_failure_has_an_object_and_a_notice_without_an_output(experts: Studio) -> None:
    experts.model.status = 500
    told = await invoke(experts)
    await (await experts.taken()).ended.wait()
    why = (await asyncio.to_thread(experts.sagemaker.read, told["FailureLocation"])).decode()
    assert "Received server error (500)" in why
    received = await experts.client.receive(experts.queue_url, wait_s=1)
    envelope = json.loads(received[0].body)
    assert envelope["Type"] == "Notification"
    notice = json.loads(envelope["Message"])
    assert (notice["invocationStatus"], notice["inferenceId"]) == ("Failed", "job-1-1")
    assert "responseParameters" not in notice


async def test_a_container_that_takes_too_long_is_cut_off(experts: Studio) -> None:
    experts.model.gate.clear()
    told = await invoke(experts, InvocationTimeoutSeconds=1)
    await (await experts.taken()).ended.wait()
    assert b"timed out" in await asyncio.to_thread(experts.sagemaker.read, told["FailureLocation"])
