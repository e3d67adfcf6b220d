"""Owns a studio with an asynchronous endpoint, for tests: its buckets, topic and queue, and a worker whose jobs ask it one question."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from body_broker.calls import Json
from body_broker.storage.postgres import Pool
from body_broker.work import queue
from body_broker.work.model import Origin, State, WorkItem
from body_broker.work.run import Run
from body_broker.work.worker import Worker
from tests.counterparts.aws import REGION, Cloud
from tests.counterparts.sagemaker import Asked, Container, Endpoint, SageMakerAsyncEmulator
from tests.waiting import wait_until
from tiers.bronze.calls import CallRow, CallStore
from tiers.bronze.model import Assignment, Question
from tiers.bronze.sagemaker.backend import SageMakerAsyncBackend, SageMakerEndpoint
from tiers.bronze.sagemaker.client import SageMakerClient
from tiers.bronze.sagemaker.places import Place
from tiers.catalogue import Caps, EngineSpec, Price
from tiers.cost import CostLedger
from tiers.counts import Counts
from tiers.faults import EngineFault
from tiers.model import Message, Tier
from tiers.wire.base import Ask

ANNA = Origin(chain=("person:anna", "tier:bronze"), session="s-1")
BUCKET = "studio-experts"
NAME = "experts"
OUTPUT, FAILURES, INPUT = (Place(BUCKET, prefix) for prefix in ("outputs", "failures", "questions"))
POLL_S = 0.1
FREE = EngineSpec(name="sagemaker", tier=Tier.BRONZE, dialect="sagemaker", url=f"sagemaker://{NAME}")
PRICE = Price(Decimal(1000), Decimal(2000), Decimal(100), "a test", "2026-11")
"""A thousandth of a dollar for a token of the prompt, two for one of the answer."""
PAID = replace(FREE, price=PRICE)
CAPS = Caps({Tier.BRONZE: Decimal(1000)}, {Tier.BRONZE: Decimal(1000)}, {})


@dataclass
class Studio:
    """What a test does and sees.

    Attributes:
        spec: Whom jobs ask.
        endpoint: How its backend is told of it.
        topic, queue_url: Where its notices go.
        hours: How much time jobs have.
    """

    pool: Pool
    database_url: str
    cloud: Cloud
    sagemaker: SageMakerAsyncEmulator
    model: Container
    ledger: CostLedger
    topic: str
    queue_url: str
    client: SageMakerClient
    spec: EngineSpec = FREE
    hours: float = 24.0
    endpoint: SageMakerEndpoint = field(
        default_factory=lambda: SageMakerEndpoint(
            name=NAME, output=OUTPUT, failures=FAILURES, input=INPUT, poll_s=POLL_S
        )
    )

    def new_client(self, **urls: str) -> SageMakerClient:
        """A process' own."""
        chosen = {"endpoint_url": self.cloud.url, "runtime_url": self.sagemaker.url, **urls}
        return SageMakerClient(region=REGION, **chosen)

    async def handle(self, run: Run) -> Json:
        """Ask one question, as often as the input says; what came of it is the result."""
        backend = SageMakerAsyncBackend(self.endpoint, self.client, CallStore(self.pool), self.ledger)
        messages = (Message(role="user", content=run.input["prompt"]),)
        question = Question(
            job=run.id,
            turn=1,
            assignment=Assignment(kind="expert", title="A question", messages=messages),
            messages=messages,
            offers=(),
            tool_choice="auto",
            tenant="person:anna",
            outside=False,
            tokens_left=100_000,
            usd_left=None,
            until=datetime.now(UTC) + timedelta(hours=self.hours),
        )
        ask = Ask(model="expert", messages=messages, max_tokens=50)

        async def asked() -> Json:
            fault: EngineFault | None = None
            for _ in range(run.input["askings"]):
                try:
                    found = await backend.answer(run, question, self.spec, ask)
                except EngineFault as error:
                    fault = error
                else:
                    return {"text": found.text, "finish": found.finish, "completion": found.usage.completion}
            assert fault is not None
            return {"fault": fault.reason}

        return await run.step("answer 1", asked)

    async def submit(self, prompt: str = "Who is Kaya?", *, askings: int = 1) -> str:
        """A job that asks this."""
        given = {"prompt": prompt, "askings": askings}
        return await queue.enqueue(self.pool, "asks", given, origin=ANNA, attempts_max=3)

    @asynccontextmanager
    async def worker(self) -> AsyncGenerator[Worker]:
        """A worker; on the way out it hands back what it runs, wherever that stands."""
        handlers = {"asks": self.handle}
        worker = Worker(self.pool, handlers, database_url=self.database_url, poll_s=0.3, lease_s=30.0, grace_s=0.0)
        task = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            worker.stop()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def reaches(self, job: str, *states: State) -> WorkItem:
        async def there() -> WorkItem | None:
            item = await queue.get(self.pool, job, owner=None)
            return item if item.state in states else None

        found = await wait_until(there, f"{job} is {' or '.join(states)}")
        assert found is not None
        return found

    async def ends(self, job: str) -> Json:
        """Its result."""
        return (await self.reaches(job, "succeeded", "failed", "unknown")).result

    async def parks(self, job: str, *states: str) -> list[CallRow]:
        """Wait until it is parked while its newest asking is in one of these states."""

        async def there() -> list[CallRow]:
            item, rows = await queue.get(self.pool, job, owner=None), await self.rows(job)
            return rows if rows and item.state == "waiting" and rows[-1].state in states else []

        return await wait_until(there, f"{job} is parked, its question {states}")

    async def rows(self, job: str) -> list[CallRow]:
        return await CallStore(self.pool).rows_of(job, 1)

    async def taken(self, number: int = 1) -> Asked:
        """The how manieth question that the endpoint took, once it has."""
        await wait_until(lambda: len(self.sagemaker.ledger) >= number, f"the endpoint took {number}")
        return self.sagemaker.ledger[number - 1]

    async def pass_due(self, job: str) -> None:
        """From now on no answer of its askings is expected any more."""
        await self.pool.execute(
            "UPDATE expert_call SET due_at = clock_timestamp() - interval '1 s' WHERE job = $1", job
        )

    async def spent(self) -> tuple[Decimal, Decimal]:
        """What anna's questions have set aside and have spent, in dollars."""
        await self.ledger.settled()
        found = [each for each in await self.ledger.figures() if each.asker == "person:anna"]
        return (found[0].reserved_usd, found[0].spent_usd) if found else (Decimal(0), Decimal(0))

    async def put(self, place: str, body: bytes) -> None:
        bucket, _, key = place.removeprefix("s3://").partition("/")
        await asyncio.to_thread(self.cloud.client("s3").put_object, Bucket=bucket, Key=key, Body=body)

    async def send(self, body: Any) -> None:
        """Something in the queue of notices."""
        text = body if isinstance(body, str) else json.dumps(body)
        await asyncio.to_thread(self.cloud.client("sqs").send_message, QueueUrl=self.queue_url, MessageBody=text)

    async def queued(self) -> int:
        """Messages in the queue of notices, read or not."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        sqs = self.cloud.client("sqs")
        said: Any = await asyncio.to_thread(sqs.get_queue_attributes, QueueUrl=self.queue_url, AttributeNames=names)
        return sum(int(said["Attributes"][name]) for name in names)


@asynccontextmanager
async def studio(
    pool: Pool, database_url: str, cloud: Cloud, sagemaker: SageMakerAsyncEmulator, model: Container
) -> AsyncGenerator[Studio]:
    """A studio whose endpoint serves this model; without a worker."""
    topic, queue_url = await asyncio.to_thread(_made, cloud)
    sagemaker.add(NAME, Endpoint(model.url, str(OUTPUT), str(FAILURES), topic))
    async with AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(CostLedger.opened(pool, CAPS, Counts(), engines=(PAID,)))
        client = SageMakerClient(region=REGION, endpoint_url=cloud.url, runtime_url=sagemaker.url)
        yield Studio(pool, database_url, cloud, sagemaker, model, ledger, topic, queue_url, client)


def _made(cloud: Cloud) -> tuple[str, str]:
    cloud.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    topic: str = cloud.client("sns").create_topic(Name="answers")["TopicArn"]
    sqs = cloud.client("sqs")
    url: str = sqs.create_queue(QueueName="answers")["QueueUrl"]
    arn: str = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    cloud.client("sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
    return topic, url
