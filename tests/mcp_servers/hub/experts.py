"""Experts of the tests: a worker whose runs of jobs do what a test says, turn by turn, without any model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from body_broker.calls import Json
from body_broker.errors import BodyBrokerError
from body_broker.work.parking import Park
from body_broker.work.run import Run
from body_broker.work.worker import Worker
from mcp_servers.hub.runtime import Runtime
from tiers.bronze.transcript import Made

MADE: Json = {
    "engines": ["bronze"],
    "models": ["large-1"],
    "tools": [{"name": "whoami", "outcome": "ok"}],
    "prompt_tokens": 120,
    "completion_tokens": 30,
    "cost_usd": 0.25,
    "maybe_spent": False,
    "fallbacks": [{"engine": "sagemaker", "reason": "silent"}],
    "truncated": False,
    "outside": False,
}
_ASKED = """
INSERT INTO expert_call (job, turn, attempt, engine, state, output, due_at)
VALUES ($1, 1, 1, 'sagemaker', 'invoked', 's3://studio/out', clock_timestamp() + interval '1 h')
"""


@dataclass(frozen=True)
class Asks:
    """A run whose calls people were asked for, by the place of the call; of those in `came` it knows what came. Then it goes on and on."""

    approvals: Mapping[str, str]
    came: frozenset[str] = frozenset()

    async def record(self, run: Run) -> None:
        """As a run records calls."""
        for place, approval in self.approvals.items():
            await run.step(
                f"tool {place}", _value(Made(outcome="approval_pending", text="", characters=0, approval=approval))
            )
            if place in self.came:
                await run.step(f"came {place}", _value(Made(outcome="ok", text="done", characters=4)))


def _value(made: Made) -> Callable[[], Awaitable[Json]]:
    async def value() -> Json:
        return made.body()

    return value


def result(content: str = "The quay is flooded.", *, outside: bool = False) -> Json:
    """What a job comes to."""
    return {"content": content, "answers": [content], "made": MADE | {"outside": outside}}


class Experts:
    """What the next runs do: each takes one of `does`, and the last one goes on being done.

    Attributes:
        does: A result; an error or a `Park` to raise; `endpoint` asks one and lies down; `forever` works until it is stopped.
        begun: Set once a run works forever.
    """

    def __init__(self, *does: Json) -> None:
        self.does: list[Json] = list(does)
        self.begun = asyncio.Event()

    async def __call__(self, run: Run) -> Json:
        doing = self.does.pop(0) if len(self.does) > 1 else self.does[0]
        await run.progress(1, 3, "asking bronze")
        if doing == "endpoint":
            async with run.fenced() as connection:
                await connection.execute(_ASKED, run.id)
            raise Park(f"expert:{run.id}", wake_in_s=600, message="sagemaker has been asked")
        if isinstance(doing, Asks):
            await doing.record(run)
            doing = "forever"
        if doing == "forever":
            self.begun.set()
            await asyncio.Event().wait()
        if isinstance(doing, Park | BodyBrokerError):
            raise doing
        return doing


@asynccontextmanager
async def experts(runtime: Runtime, *does: Json) -> AsyncGenerator[Experts]:
    """A worker for experts' jobs that does so, until the way out."""
    found = Experts(*does)
    worker = Worker(
        runtime.stores.pool,
        {"expert": found, "narrative": found},
        database_url=runtime.stores.database_url,
        backoff_s=0.01,
        grace_s=0.05,
    )
    task = asyncio.create_task(worker.run())
    try:
        yield found
    finally:
        worker.stop()
        await task
