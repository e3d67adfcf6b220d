"""Owns what is said to Slack's Web API: one session with a timeout, answers that are checked, and failures as errors of ours."""

from __future__ import annotations

import asyncio
import html
import logging
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import aiohttp
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.web.async_client import AsyncWebClient
from slack_sdk.web.async_slack_response import AsyncSlackResponse

from approvals.slack.blocks import Block
from approvals.slack.words import Bot, Place, SlackRefused, refused

TIMEOUT_S = 10
_LOGGER = logging.getLogger("approvals.slack.web")
_LOGGER.setLevel(logging.INFO)  # at debug the SDK logs whole messages


class SlackApi:
    """The few methods of the Web API that are used.

    Args:
        web: slack_sdk's client.
    """

    def __init__(self, web: AsyncWebClient) -> None:
        self._web: Any = web  # slack_sdk's hints leave out what its keyword arguments are
        self._bot: Bot | None = None
        self._asking = asyncio.Lock()

    async def bot(self) -> Bot:
        """Who we are; asked once, and again until Slack has answered.

        Raises:
            SlackRefused: The token does not hold, or Slack cannot be reached.
        """
        async with self._asking:
            if self._bot is None:
                answer = await _asked(self._web.auth_test())
                scopes = _headers(cast("Any", answer).headers).get("x-oauth-scopes", "")
                self._bot = Bot(
                    team=_text(answer, "team_id"),
                    team_name=str(answer.get("team", "")),
                    user=_text(answer, "user_id"),
                    scopes=frozenset(each.strip() for each in scopes.split(",") if each.strip()),
                )
            return self._bot

    async def post(self, channel: str, text: str, blocks: Sequence[Block], *, thread: str | None = None) -> Place:
        """A new message; where thread is given, in the thread of that message.

        Raises:
            SlackRefused: It was not posted, or Slack does not say where it is; `thread_gone` where the thread's message is
                gone: Slack then posts what was meant for it into the channel.
        """
        team = (await self.bot()).team
        answer = await _asked(
            self._web.chat_postMessage(
                channel=channel,
                text=text,
                blocks=blocks,
                thread_ts=thread,
                unfurl_links=False,
                unfurl_media=False,
                mrkdwn=False,
                parse="none",
                link_names=False,
            )
        )
        place = Place(team, _text(answer, "channel"), _text(answer, "ts"))
        said: Any = answer.get("message")
        if thread is not None and (
            not isinstance(said, dict) or cast("dict[str, Any]", said).get("thread_ts") != thread
        ):
            raise refused("thread_gone")
        return place

    async def update(self, place: Place, text: str, blocks: Sequence[Block]) -> None:
        """Change a message of ours.

        Raises:
            SlackRefused: It was not changed; with a word of GONE it never can be.
        """
        await _asked(
            self._web.chat_update(
                channel=place.channel, ts=place.ts, text=text, blocks=blocks, parse="none", link_names=False
            )
        )

    async def tell(self, channel: str, user: str, text: str) -> None:
        """Say something to one person, in a channel, where nobody else sees it.

        Raises:
            SlackRefused: It was not said.
        """
        safe = html.escape(text, quote=False)
        await _asked(
            self._web.chat_postEphemeral(channel=channel, user=user, text=safe, parse="none", link_names=False)
        )

    async def open_modal(self, trigger: str, view: Block) -> None:
        """Open a modal for whoever has just clicked.

        Raises:
            SlackRefused: It was not opened; a trigger holds for three seconds.
        """
        await _asked(self._web.views_open(trigger_id=trigger, view=view))

    async def channel(self, channel: str) -> dict[str, Any]:
        """What Slack says of a channel.

        Raises:
            SlackRefused: It does not know it, or does not say.
        """
        answer = await _asked(self._web.conversations_info(channel=channel))
        return cast("dict[str, Any]", answer["channel"])

    async def members(self, channel: str) -> frozenset[str]:
        """Everybody in a channel.

        Raises:
            SlackRefused: Slack does not say.
        """
        found: set[str] = set()
        cursor: str | None = None
        while True:
            answer = await _asked(self._web.conversations_members(channel=channel, limit=1000, cursor=cursor))
            found |= set(cast("list[str]", answer["members"]))
            cursor = cast("dict[str, str]", answer.get("response_metadata") or {}).get("next_cursor")
            if not cursor:
                return frozenset(found)

    async def member(self, user: str) -> dict[str, Any]:
        """What Slack says of somebody.

        Raises:
            SlackRefused: It does not know them, or does not say.
        """
        return cast("dict[str, Any]", (await _asked(self._web.users_info(user=user)))["user"])

    async def group_ids(self) -> frozenset[str]:
        """Every user group that can be called.

        Raises:
            SlackRefused: Slack does not say.
        """
        groups = cast("list[dict[str, Any]]", (await _asked(self._web.usergroups_list()))["usergroups"])
        return frozenset(str(each["id"]) for each in groups)

    async def open_socket(self, app_token: str) -> str:
        """The URL of a Socket Mode connection, good once and soon; it is a secret.

        Raises:
            SlackRefused: The app-level token does not hold, or Socket Mode is off.
        """
        return _text(await _asked(self._web.apps_connections_open(app_token=app_token)), "url")

    @property
    def proxy(self) -> str | None:
        """The proxy on the way to Slack."""
        return self._web.proxy


@asynccontextmanager
async def open_api(token: str, base_url: str) -> AsyncGenerator[SlackApi]:
    """The Web API under a bot's token; nothing is asked yet."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        yield SlackApi(web_client(token, base_url, session))


def web_client(token: str, base_url: str, session: aiohttp.ClientSession) -> AsyncWebClient:
    """slack_sdk's client over a session; it retries nothing itself, the work floor does."""
    return AsyncWebClient(
        token=token, base_url=base_url, timeout=TIMEOUT_S, session=session, logger=_LOGGER, retry_handlers=[]
    )


async def _asked(asking: Awaitable[AsyncSlackResponse]) -> AsyncSlackResponse:
    """Slack's answer, where it is a good one."""
    try:
        return await asking
    except SlackApiError as error:
        raise _refusal(cast("Any", error.response)) from error
    except (SlackClientError, aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        raise refused("unreachable") from error


def _refusal(response: Any) -> SlackRefused:  # Slack's answer, or aiohttp's where it was no JSON
    data = getattr(response, "data", None)
    wait = _headers(response.headers).get("retry-after", "")
    status = getattr(response, "status_code", None) or getattr(response, "status", 0)
    word = cast("dict[str, object]", data).get("error") if isinstance(data, dict) else None
    if not isinstance(word, str) or not word.replace("_", "").isalnum():
        word = f"http_{status}"
    return refused(word[:60], float(wait) if wait.isascii() and wait.isdigit() else None)


def _headers(found: Any) -> dict[str, str]:  # a mapping of either library
    return {str(name).lower(): str(value) for name, value in found.items()}


def _text(answer: AsyncSlackResponse, name: str) -> str:
    found = answer.get(name)
    if not isinstance(found, str) or not found:
        raise refused(f"no_{name}")
    return found
