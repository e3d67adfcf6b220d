"""Owns killing whatever takes, runs, asks for and keeps experts' jobs: steps, an endpoint that bills, and what must hold of every job."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from tests.counterparts import aws
from tests.counterparts.sagemaker import Container, Endpoint, SageMakerAsyncEmulator, container, emulator, said
from tests.kill.harness import PATIENCE_S, Harness, Step, Victim
from tests.kill.holding import holding
from tests.kill.product import Answer, Product
from tests.waiting import wait_until

BRONZE = "tier:bronze"
_ENDPOINT, _BUCKET = "experts", "studio-experts"
_WORKERS = {"hub", "worker"}
_TAKING = f"SELECT pg_advisory_xact_lock(hashtextextended('open experts {BRONZE}', 0))"
_CLAIMING = "SELECT pg_advisory_xact_lock(hashtext('work_claim'))"
_QUESTIONS = "LOCK TABLE expert_call IN SHARE MODE"
_STEPS = "LOCK TABLE work_step IN SHARE MODE"
_RESULTS = "LOCK TABLE expert_result IN SHARE MODE"
_ENDS = "LOCK TABLE work IN SHARE MODE"
_OF_TITLE = """
SELECT w.id, w.state, w.waits_for, w.error::text AS error, (SELECT count(*) FROM expert_result r WHERE r.job = w.id) AS results,
    (SELECT object FROM expert_result r WHERE r.job = w.id) AS object,
    (SELECT count(*) FROM expert_call c WHERE c.job = w.id AND c.state = 'invoked') AS invoked
FROM work w WHERE w.input ->> 'title' = $1
"""
_ANSWERED = "SELECT count(*) AS n FROM work_step WHERE work = ANY ($1) AND name LIKE 'answer %'"
_KEPT = "SELECT count(*) AS n FROM expert_result WHERE job = ANY ($1)"
# What was never sent is asked again once it could have been run in full; nobody waits that long here.
_LET_BE_DUE = """
UPDATE expert_call SET due_at = clock_timestamp() WHERE state = 'invoking' AND job || '-' || turn || '-' || attempt <> ALL ($1)
    AND job NOT IN (SELECT id FROM work WHERE state = 'running')
"""
_LET_LAPSE = (
    "UPDATE work SET lease_until = clock_timestamp() WHERE state = 'running' AND split_part(worker, ':', 2) = $1"
)
_TOLD = """
SELECT w.id, w.state, w.result::text AS result, r.sha256, r.created_at, (SELECT count(*) FROM work_step s WHERE s.work = w.id) AS steps
FROM work w JOIN expert_result r ON r.job = w.id WHERE w.id = ANY ($1) ORDER BY w.id
"""
_WAKE = "SELECT work_wake('expert:' || id) FROM work WHERE state = 'waiting'"
_PATIENCE_S = 3 * PATIENCE_S


class Echo(Container):
    """The endpoint's model: it calls whoami for those whose title says so, and says the title back to everybody."""

    async def invocations(self, request: web.Request) -> web.StreamResponse:
        messages: list[dict[str, Any]] = (await request.json())["messages"]
        title = next(word for each in messages for word in str(each["content"]).split() if word.startswith("title-"))
        await self.gate.wait()
        if "-calls" in title and not any(each["role"] == "tool" for each in messages):
            call = {"id": "call_1", "type": "function", "function": {"name": "whoami", "arguments": "{}"}}
            return web.json_response(said("", finish="tool_calls", tool_calls=[call]))
        return web.json_response(said(f"This is {title}."))


@dataclass
class Wanted:
    """One job that somebody asks for until they are told its id."""

    title: str
    client: asyncio.Task[str]


@dataclass
class Studio:
    """The product, the endpoint that it asks, and everybody who wants jobs."""

    product: Product
    endpoint: SageMakerAsyncEmulator
    model: Echo
    made: list[Wanted] = field(default_factory=list[Wanted])
    open: list[Wanted] = field(default_factory=list[Wanted])
    told: Counter[str] = field(default_factory=Counter[str])

    def ask(self, *, calls: bool = False) -> Wanted:
        """Somebody wants a job."""
        title = f"title-{len(self.made)}{'-calls' if calls else ''}"
        wanted = Wanted(title, asyncio.create_task(self._submit(title)))
        self.made.append(wanted)
        self.open.append(wanted)
        return wanted

    async def _submit(self, title: str) -> str:
        given = {"prompt": f"Say {title} back.", "title": title, "tools": ["whoami"], "idempotency_key": title}
        while True:
            answer = await self.product.call(BRONZE, "submit_job", given)
            code = "broken" if answer is None else answer.code
            self.told[code or "its job"] += 1
            if answer is not None and code is None:
                return str(answer.result["job_id"])
            assert code in {"broken", "unavailable"}, answer
            await self.product.serves()

    async def row(self, wanted: Wanted) -> Any:  # a row
        """Its job, once it is there."""
        return (await wait_until(lambda: self.rows(wanted), f"{wanted.title} is a job", PATIENCE_S))[0]

    async def rows(self, wanted: Wanted) -> list[Any]:  # rows
        return await self.product.sql(_OF_TITLE, wanted.title)

    async def two(self, *, calls: bool = False) -> list[Wanted]:
        """One for the hub and one for the worker: each of them runs one at a time."""
        return [self.ask(calls=calls) for _ in _WORKERS]

    async def parked(self, wanted: Wanted) -> None:
        """Return once the endpoint has its question and the job holds no worker."""

        async def is_parked() -> bool:
            rows = await self.rows(wanted)
            return bool(rows) and rows[0]["state"] == "waiting" and rows[0]["invoked"] > 0

        await wait_until(is_parked, f"{wanted.title} waits for the endpoint", PATIENCE_S)

    async def wake(self) -> None:
        """Every job looks now whether its answer is there, as a notice would make it."""
        await self.product.sql(_WAKE)

    @contextmanager
    def held(self) -> Generator[None]:
        """The model answers nothing."""
        self.model.gate.clear()
        try:
            yield
        finally:
            self.model.gate.set()

    async def come_to_an_end(self) -> None:
        """Everything open ends, and nothing was lost, done twice or billed twice."""
        for wanted in self.open:
            await asyncio.wait_for(wanted.client, 2 * PATIENCE_S)

        async def ended() -> bool:
            sent = [asked.inference_id for asked in self.endpoint.ledger]
            await self.product.sql(_LET_BE_DUE, sent)
            await self.wake()
            rows = [(await self.row(wanted)) for wanted in self.open]
            failed = [dict(row) for row in rows if row["state"] in {"failed", "unknown", "expired", "cancelled"}]
            assert not failed, failed
            return all(row["state"] == "succeeded" for row in rows)

        await wait_until(ended, "every job ends", _PATIENCE_S)
        for wanted in self.open:
            await self._require(wanted)
        self.open.clear()

    async def _require(self, wanted: Wanted) -> None:
        rows = await self.rows(wanted)
        assert len(rows) == 1, f"{wanted.title} became {len(rows)} jobs"
        row = rows[0]
        assert row["id"] == wanted.client.result(), "its client was told another job"
        assert row["results"] == 1, dict(row)

        async def read() -> Answer | None:
            found = await self.product.call(BRONZE, "get_job", {"id": row["id"]})
            assert found is None or found.code in {None, "unavailable"}, found
            return found if found is not None and found.code is None else None

        answer = await wait_until(read, "its job is read", PATIENCE_S)
        assert answer is not None
        assert f"This is {wanted.title}." in orjson.dumps(answer.result).decode(), answer.result
        billed = Counter[str]()
        for asked in self.endpoint.ledger:
            job, turn, _attempt = asked.inference_id.rsplit("-", 2)
            if job == row["id"]:
                billed[turn] += asked.ran
        turns = 2 if wanted.title.endswith("-calls") else 1
        assert billed == {str(turn + 1): 1 for turn in range(turns)}, f"{wanted.title} was billed {dict(billed)}"

    @asynccontextmanager
    async def both_answered(self, *, calls: bool = False) -> AsyncGenerator[list[str]]:
        """Two parked jobs, one for the hub and one for the worker, whose answers are written and that nobody has looked for yet."""
        with self.held():
            two = await self.two(calls=calls)
            for wanted in two:
                await self.parked(wanted)
            async with holding(self.url, _CLAIMING) as claims:
                self.model.gate.set()
                await self.all_ran()
                ids = [(await self.row(wanted))["id"] for wanted in two]
                claims.let_go()
        yield ids

    async def all_ran(self) -> None:
        """Return once the endpoint has nothing more to do."""

        def ran() -> bool:
            return all(asked.ended.is_set() for asked in self.endpoint.ledger)

        await wait_until(ran, "the endpoint has answered", PATIENCE_S)

    @property
    def url(self) -> str:
        return self.product.database_url


class ExpertSteps:
    """The steps over one studio."""

    def __init__(self, studio: Studio, chance: random.Random) -> None:
        self._studio, self._chance = studio, chance

    def all(self) -> list[Step]:
        """Every step; those of a run have one job in the hub and one in the worker."""
        return [
            Step("submit: about to be taken", self._before_taken),
            Step("submit: taken, nobody has claimed it", self._before_claimed),
            Step("question: about to be noted", self._before_noted),
            Step("question: sent, and nothing taken", lambda v: self._sending(v, "hangs")),
            Step("question: taken, and the line breaks", lambda v: self._sending(v, "swallowed")),
            Step("question: the endpoint works, the job is parked", self._parked),
            Step("answer: there, nobody has looked", self._before_looked),
            Step("answer: read, not yet recorded", self._before_recorded),
            Step("tool: called, its outcome not yet recorded", self._before_outcome),
            Step("result: kept as an object, not yet published", self._before_published),
            Step("result: published, the end not yet written", self._before_end),
        ]

    def _calls(self) -> bool:
        return self._chance.random() < 0.3

    @asynccontextmanager
    async def _before_taken(self, _victim: Victim) -> AsyncGenerator[str]:
        async with holding(self._studio.url, _TAKING) as held:
            wanted = self._studio.ask(calls=self._calls())
            await held.has_stopped("hub")
            assert not await self._studio.rows(wanted), "it is there before it was committed"
            yield "the job waits to be taken"
            held.let_go()

    @asynccontextmanager
    async def _before_claimed(self, _victim: Victim) -> AsyncGenerator[str]:
        async with holding(self._studio.url, _CLAIMING) as held:
            wanted = self._studio.ask(calls=self._calls())
            row = await self._studio.row(wanted)
            assert row["state"] == "queued", dict(row)
            yield "it is queued"
            held.let_go()

    @asynccontextmanager
    async def _before_noted(self, _victim: Victim) -> AsyncGenerator[str]:
        before = len(self._studio.endpoint.ledger)
        async with holding(self._studio.url, _QUESTIONS) as held:
            await self._studio.two(calls=self._calls())
            await held.has_stopped(*_WORKERS)
            assert len(self._studio.endpoint.ledger) == before, "a question left that nobody has noted"
            yield "both questions wait to be noted"
            held.let_go()

    @asynccontextmanager
    async def _sending(self, _victim: Victim, trick: Any) -> AsyncGenerator[str]:
        studio = self._studio
        before = studio.endpoint.seen
        studio.endpoint.tricks.extend([trick, trick])
        await studio.two(calls=self._calls())
        await wait_until(lambda: studio.endpoint.seen >= before + len(_WORKERS), "both are sent", PATIENCE_S)
        yield "the endpoint has heard of both"

    @asynccontextmanager
    async def _parked(self, _victim: Victim) -> AsyncGenerator[str]:
        with self._studio.held():
            wanted = self._studio.ask(calls=self._calls())
            await self._studio.parked(wanted)
            yield "it is parked"

    @asynccontextmanager
    async def _before_looked(self, _victim: Victim) -> AsyncGenerator[str]:
        studio = self._studio
        with studio.held():
            wanted = studio.ask(calls=self._calls())
            await studio.parked(wanted)
        async with holding(studio.url, _CLAIMING) as held:
            await studio.all_ran()
            await studio.wake()
            yield "its answer is written, nobody can claim it"
            held.let_go()

    @asynccontextmanager
    async def _before_recorded(self, _victim: Victim) -> AsyncGenerator[str]:
        studio = self._studio
        async with studio.both_answered() as ids, holding(studio.url, _STEPS) as held:
            await studio.wake()
            await held.has_stopped(*_WORKERS)
            assert (await studio.product.sql(_ANSWERED, ids))[0]["n"] == 0
            yield "both have read their answers"
            held.let_go()

    @asynccontextmanager
    async def _before_outcome(self, _victim: Victim) -> AsyncGenerator[str]:
        studio = self._studio
        async with studio.both_answered(calls=True) as ids, AsyncExitStack() as stack:
            first = await stack.enter_async_context(holding(studio.url, _STEPS))
            await studio.wake()
            await first.has_stopped(*_WORKERS)
            first.let_go()

            async def recorded() -> bool:
                return (await studio.product.sql(_ANSWERED, ids))[0]["n"] == len(ids)

            await wait_until(recorded, "both answers are recorded", PATIENCE_S)
            yield "both models want a tool called"

    @asynccontextmanager
    async def _before_published(self, _victim: Victim) -> AsyncGenerator[str]:
        studio = self._studio
        async with studio.both_answered() as ids, holding(studio.url, _RESULTS) as held:
            await studio.wake()
            await held.has_stopped(*_WORKERS)
            assert (await studio.product.sql(_KEPT, ids))[0]["n"] == 0
            yield "both results wait to be published"
            held.let_go()

    @asynccontextmanager
    async def _before_end(self, _victim: Victim) -> AsyncGenerator[str]:
        studio = self._studio
        async with studio.both_answered() as ids, AsyncExitStack() as stack:
            publishing = await stack.enter_async_context(holding(studio.url, _RESULTS))
            await studio.wake()
            await publishing.has_stopped(*_WORKERS)
            # A transaction that publishes locks rows of this table and changes none, so this lock is not in its way.
            ending = await stack.enter_async_context(holding(studio.url, _ENDS))
            publishing.let_go()
            await ending.has_stopped(*_WORKERS)
            assert (await studio.product.sql(_KEPT, ids))[0]["n"] == len(ids)
            yield "both are published, no end is written"
            ending.let_go()


@asynccontextmanager
async def endpoint_of(model: Echo) -> AsyncGenerator[tuple[SageMakerAsyncEmulator, dict[str, str]]]:
    """An endpoint with that model, and the settings of a product that asks it."""
    async with AsyncExitStack() as stack:
        cloud = await asyncio.to_thread(stack.enter_context, aws.running())
        await asyncio.to_thread(cloud.client("s3").create_bucket, Bucket=_BUCKET, **_in_region())
        await stack.enter_async_context(container(model))
        endpoint = await stack.enter_async_context(emulator(cloud))
        endpoint.add(
            _ENDPOINT, Endpoint(model.url, f"s3://{_BUCKET}/outputs", f"s3://{_BUCKET}/failures", concurrency=8)
        )
        yield endpoint, _settings(cloud, endpoint)


@asynccontextmanager
async def opened(folder: Path) -> AsyncGenerator[Studio]:
    """The product on a data directory of its own, with an endpoint that it asks; at the end the audit is intact."""
    data_dir, model = folder / "data", Echo()
    await asyncio.to_thread(data_dir.mkdir)
    async with endpoint_of(model) as (endpoint, settings):
        product = Product(data_dir, folder, settings)
        async with product.open(BRONZE):
            yield Studio(product, endpoint, model)
            await product.stop()
            told = await product.run("audit", "verify")
            assert told.splitlines()[-1].startswith("intact"), told


async def survive(folder: Path, *, seed: int, rounds: int) -> Harness:
    """The harness after so many rounds in which no job was lost, done twice or billed twice; fails at the first that was."""
    chance = random.Random(seed)  # noqa: S311  # repeatable, nothing secret
    async with opened(folder) as studio:

        async def ready() -> None:
            await studio.product.ready()
            await studio.come_to_an_end()

        harness = Harness(studio.product.victims()[:2], ExpertSteps(studio, chance).all(), ready, seed)
        for _ in range(rounds):
            await harness.round()
    billed = sum(asked.ran for asked in studio.endpoint.ledger)
    print(f"{len(studio.made)} jobs done once, {billed} answers billed; clients were told {dict(studio.told)}")
    return harness


async def sleep_through(folder: Path) -> None:
    """The worker is stopped with an answer in its hands until others have done its job, and woken: it changes nothing."""
    async with opened(folder) as studio:
        product, before = studio.product, len(studio.endpoint.ledger)
        async with studio.both_answered() as ids, holding(studio.url, _STEPS) as held:
            await studio.wake()
            await held.has_stopped(*_WORKERS)
            pid = product.pid("worker")
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            held.let_go()
        try:
            await product.sql(_LET_LAPSE, str(pid))
            made = list(studio.open)
            await studio.come_to_an_end()
            kept = await product.sql(_TOLD, ids)
        finally:
            os.kill(pid, signal.SIGCONT)
        awake = [studio.ask() for _ in _WORKERS]  # each of the two has one
        await studio.come_to_an_end()
        assert await product.sql(_TOLD, ids) == kept, "it was changed by a worker that was replaced"
        assert len(studio.endpoint.ledger) == before + len(made) + len(awake), "something was asked again"


def _in_region() -> dict[str, Any]:
    return {"CreateBucketConfiguration": {"LocationConstraint": aws.REGION}}


def _settings(cloud: aws.Cloud, endpoint: SageMakerAsyncEmulator) -> dict[str, str]:
    return {
        "BODY_BROKER_SAGEMAKER_ENDPOINT": _ENDPOINT,
        "BODY_BROKER_SAGEMAKER_OUTPUT": f"s3://{_BUCKET}/outputs",
        "BODY_BROKER_SAGEMAKER_FAILURES": f"s3://{_BUCKET}/failures",
        "BODY_BROKER_SAGEMAKER_POLL_S": "1",
        "BODY_BROKER_AWS_REGION": aws.REGION,
        "BODY_BROKER_BRONZE_OPEN_MAX": "1000",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_ENDPOINT_URL_S3": cloud.url,
        "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": endpoint.url,
    }
