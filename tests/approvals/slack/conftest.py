"""Owns a studio that asks in Slack: a workspace, a desk that sends notices, a worker that shows them, and both transports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from aiohttp import web

from approvals.desk import Desk
from approvals.model import WORK_KIND, Approval
from approvals.people import People
from approvals.slack import clicks
from approvals.slack.opening import Slack, open_slack
from body_broker.background import end
from body_broker.calls import Json
from body_broker.settings import load_settings
from body_broker.storage.postgres import Pool
from body_broker.work.run import Run
from body_broker.work.worker import Worker
from policies.engine import Policy
from tests.approvals.conftest import MakeDesk
from tests.approvals.scene import subject
from tests.counterparts.slack import Message, Workspace, workspace
from tests.waiting import wait_until

CHANNEL, OTHER = "C0ASKED01", "C0OTHER01"
ANNA, BEN, CLEO, SAM, EVE = "U0ANNA00", "U0BEN000", "U0CLEO00", "U0SAM000", "U0EVE000"
STRANGER = "U0STRANGE"
POST_EVERY_S = 0.05
Http = Callable[[bytes, Mapping[str, str]], Awaitable[tuple[int, bytes]]]


@dataclass
class Studio:
    """Everything together, and what a test asks of it."""

    slack: Workspace
    desk: Desk
    policy: Policy
    pool: Pool
    database_url: str
    people: People
    app: Slack
    failed: list[str] = field(default_factory=list[str])
    effects: list[str] = field(default_factory=list[str])
    hold: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self, tool: str = "ingest", **more: Any) -> Approval:
        """A request, without its message."""
        changes = {name: more.pop(name) for name in ("preview", "headline") if name in more}
        asked = replace(subject(self.policy, tool, **more), **changes)
        return (await self.desk.ask(asked)).approval

    async def ask_and_see(self, tool: str = "ingest", **more: Any) -> tuple[Approval, Message]:
        """A request and its message, with the buttons that it has."""
        approval = await self.ask(tool, **more)
        return approval, await self.message(approval)

    async def message(self, approval: Approval) -> Message:
        """The message that counts for a request, once its present state is shown."""
        query = "SELECT message FROM approval_notice WHERE approval_id = $1 AND shown IS NOT NULL"
        ts = await wait_until(lambda: self.pool.fetchval(query, approval.id), "the request is in Slack")
        return next(message for message in self.slack.messages if message.ts == ts)

    async def becomes(self, message: Message, words: str) -> None:
        """Return once the message says this."""
        await wait_until(lambda: words in message.words(), f"the message says {words!r}")

    async def votes(self, approval: Approval) -> int:
        return await self.pool.fetchval("SELECT count(*) FROM approval_vote WHERE approval_id = $1", approval.id)

    async def settled(self) -> None:
        """Return once no notice is on its way."""
        query = "SELECT count(*) = 0 FROM work WHERE kind = 'approval_notice' AND state IN ('queued', 'running') AND run_at <= clock_timestamp() + interval '3 seconds'"
        await wait_until(lambda: self.pool.fetchval(query), "every notice is shown")


@pytest.fixture(autouse=True)
def patient_slack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slack and the hub wait for each other longer than three seconds: what is about those seconds sets its own."""
    monkeypatch.setattr(clicks, "ANSWER_S", 50.0)
    monkeypatch.setattr("tests.counterparts.slack.ACK_S", 60.0)
    monkeypatch.setattr("tests.counterparts.slack.TRIGGER_S", 60.0)
    monkeypatch.setattr("tests.counterparts.slack.TICKET_S", 600.0)


@pytest.fixture
async def slack() -> AsyncIterator[Workspace]:
    async with workspace() as found:
        members = [found.add_user(each) for each in (ANNA, BEN, CLEO, SAM, EVE, STRANGER)]
        found.add_channel(CHANNEL, *members)
        found.add_channel(OTHER, *members)
        yield found


@pytest.fixture(params=["http", "socket"])
def transport(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def settings_of_slack(slack: Workspace, transport: str) -> dict[str, Any]:
    """The settings of Slack; tests change them."""
    own = (
        {"slack_signing_secret": slack.signing_secret} if transport == "http" else {"slack_app_token": slack.app_token}
    )
    return {"slack_bot_token": slack.token, "slack_channel": CHANNEL, "slack_api_url": slack.url} | own


@pytest.fixture
def post_every_s(request: pytest.FixtureRequest) -> float:
    """The pace of new messages."""
    return getattr(request, "param", POST_EVERY_S)


@pytest.fixture
async def studio(
    slack: Workspace, make_desk: MakeDesk, database_url: str, settings_of_slack: dict[str, Any], post_every_s: float
) -> AsyncIterator[Studio]:
    failed: list[str] = []
    desk = make_desk(notify=True)
    pool, people = desk.pool, desk.people
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(
            open_slack(
                load_settings({}, **settings_of_slack),
                pool=pool,
                desk=desk,
                people=people,
                pages=lambda: "http://localhost:8484",
                failed=lambda: failed.append("x"),
                listen=True,
                post_every_s=post_every_s,
                database_url=database_url,
            )
        )
        assert app is not None
        found = Studio(slack, desk, desk.policy, pool, database_url, people, app, failed)
        found.hold.set()
        if app.http is not None:
            slack.request_url = await stack.enter_async_context(_served(app.http))
        else:
            await wait_until(lambda: slack.sockets, "the socket is open")
        worker = _worker(found)
        task = asyncio.create_task(worker.run())
        yield found
        found.hold.set()
        worker.stop()
        await task
        await end(task)


def _worker(studio: Studio) -> Worker:
    async def call(run: Run) -> Json:
        studio.effects.append(run.id)
        await studio.hold.wait()
        return {"result": {"done": "yes"}, "outside": False}

    return Worker(
        studio.pool,
        {WORK_KIND: call, **studio.app.handlers},
        database_url=studio.database_url,
        backoff_s=0.05,
        backoff_max_s=0.2,
        poll_s=0.2,
    )


@asynccontextmanager
async def _served(answer: Http) -> AsyncGenerator[str]:
    """The app's request URL, as the hub's front would call it."""

    async def interactions(request: web.Request) -> web.Response:
        status, body = await answer(await request.read(), dict(request.headers))
        kind = "application/json" if body.startswith(b"{") else "text/plain"
        return web.Response(status=status, body=body, content_type=kind)

    app = web.Application()
    app.router.add_post("/slack/interactions", interactions)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/slack/interactions"
    await runner.cleanup()
