"""Owns trying out what expert jobs need beside engines: the place for results, and an asynchronous endpoint without asking it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from uuid import uuid4

from body_broker.errors import BodyBrokerError
from body_broker.storage.objects.model import Objects, check
from tiers.bronze.sagemaker.backend import SageMakerEndpoint
from tiers.bronze.sagemaker.client import SageMakerClient
from tiers.bronze.sagemaker.places import Place
from tiers.faults import IN_WORDS, EngineFault
from tiers.validating import Check

_ENGINE = "sagemaker"
_S3 = "Give this hub's role s3:GetObject and s3:ListBucket there, s3:PutObject for the input: docs/sagemaker.md has the policy."
_SQS = "Give this hub's role sqs:ReceiveMessage and sqs:DeleteMessage for the queue: docs/sagemaker.md has the policy."
_NOT_ASKED = "not asked: a question costs and takes minutes; `body-broker jobs submit --wait` asks one"


async def try_results(objects: Objects, where: str) -> Check:
    """Whether results can be put, read and taken away again where the settings say.

    Args:
        objects: The place.
        where: It in words, for people.
    """
    try:
        await check(objects)
    except BodyBrokerError as error:
        return Check("results", "writable", "failed", error.message, error.next_step)
    return Check("results", "writable", "ok", f"written, read and removed in {where}")


async def try_endpoint(
    client: SageMakerClient, endpoint: SageMakerEndpoint, queue_url: str | None
) -> AsyncGenerator[Check]:
    """Each check of an endpoint as soon as it is known; it is not asked anything, for that costs.

    Args:
        client: Talks to AWS.
        endpoint: Where its answers come.
        queue_url: Where its notices come; None where there are none.
    """
    name = f"validate-{uuid4().hex}"

    async def look(place: Place) -> str:
        await client.is_there(place.under(name))
        return f"{place} can be looked into"

    async def write(place: Place) -> str:
        probe = place.under("validate.json")
        await client.put(probe, b"{}")
        return f"{probe} was written"

    async def hear(url: str) -> str:
        held = len(await client.receive(url, wait_s=0))  # what was received is received again, by whoever works
        return f"the queue can be read; it held {held or 'no'} notices"

    steps: Sequence[tuple[str, Callable[[], Awaitable[str]] | None, str, str]] = (
        ("answers", lambda: look(endpoint.output), _S3, ""),
        _step("failures", endpoint.failures, look, "BODY_BROKER_SAGEMAKER_FAILURES"),
        _step("input", endpoint.input, write, "BODY_BROKER_SAGEMAKER_INPUT"),
        (
            "notices",
            None if queue_url is None else lambda: hear(queue_url),
            _SQS,
            "BODY_BROKER_SAGEMAKER_QUEUE_URL is not set: answers are looked for now and then",
        ),
    )
    for what, step, advice, why_not in steps:
        yield await _tried(what, step, advice, why_not)
    yield Check(_ENGINE, "answer", "left out", _NOT_ASKED)


def _step(
    what: str, place: Place | None, tried: Callable[[Place], Awaitable[str]], setting: str
) -> tuple[str, Callable[[], Awaitable[str]] | None, str, str]:
    return what, None if place is None else lambda: tried(place), _S3, f"{setting} is not set"


async def _tried(what: str, step: Callable[[], Awaitable[str]] | None, advice: str, why_not: str) -> Check:
    if step is None:
        return Check(_ENGINE, what, "left out", why_not)
    try:
        return Check(_ENGINE, what, "ok", await step())
    except EngineFault as fault:
        return Check(_ENGINE, what, "failed", IN_WORDS[fault.reason], advice)
