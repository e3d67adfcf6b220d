"""Owns Slack as one process has it: the Web API, notices as work, and clicks by the transport that is set up."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from approvals.model import NOTICE_KIND
from approvals.notices import POST_EVERY_S, Notices
from approvals.people import People
from approvals.slack.clicks import Clicks, Votes
from approvals.slack.client import SlackApi, open_api
from approvals.slack.http import SlackHttp
from approvals.slack.socket import listening
from body_broker.settings import Settings
from body_broker.storage.postgres import Pool
from body_broker.work.run import Handler


@dataclass(frozen=True, slots=True)
class Slack:
    """What a process has of Slack.

    Attributes:
        api: The Web API.
        handlers: The work that shows notices.
        http: What answers Slack's signed requests at /slack/interactions; None where no signing secret is set.
    """

    api: SlackApi
    handlers: Mapping[str, Handler]
    http: Callable[[bytes, Mapping[str, str]], Awaitable[tuple[int, bytes]]] | None


@asynccontextmanager
async def open_slack(
    settings: Settings,
    *,
    pool: Pool,
    desk: Votes,
    people: People,
    pages: Callable[[], str | None],
    failed: Callable[[], None],
    listen: bool,
    post_every_s: float = POST_EVERY_S,
    database_url: str | None = None,
) -> AsyncGenerator[Slack | None]:
    """Slack, where a bot token is set; None where it is not. Nothing waits for Slack here: it may be down when a hub starts.

    Args:
        settings: The process's.
        pool: The database.
        desk: Where votes are counted.
        people: Who may vote.
        pages: The base URL of the hub's pages.
        failed: Counts notices that could not be shown.
        listen: Whether clicks are taken over Socket Mode: in every process that serves or works, in no command.
        post_every_s: The pace of new messages in one channel.
        database_url: With it one process of this database listens for all.
    """
    if settings.slack_bot_token is None:
        yield None
        return
    async with AsyncExitStack() as stack:
        base_url = settings.slack_api_url
        api = await stack.enter_async_context(open_api(settings.slack_bot_token.get_secret_value(), base_url))
        clicks = Clicks(pool=pool, desk=desk, people=people, slack=api, now=_now)
        stack.push_async_callback(clicks.drain)
        if listen and settings.slack_app_token is not None:
            app_token = settings.slack_app_token.get_secret_value()
            hearing = listening(app_token, base_url, clicks, pool=pool, database_url=database_url)
            await stack.enter_async_context(hearing)
        notices = Notices(
            pool=pool,
            find=desk.get,
            poster=api,
            people=people,
            channel=settings.slack_channel,
            pages=pages,
            failed=failed,
            now=_now,
            post_every_s=post_every_s,
        )
        secret = settings.slack_signing_secret
        http = None if secret is None else SlackHttp(secret.get_secret_value(), clicks)
        yield Slack(api, {NOTICE_KIND: notices.handle}, http)


def _now() -> datetime:
    return datetime.now(UTC)
