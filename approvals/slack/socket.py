"""Owns Socket Mode: one connection of an installation to Slack, kept open, through which clicks come without a port of ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol, cast

import aiohttp
import orjson
from aiohttp import ClientWebSocketResponse, WSMsgType

from approvals.slack.client import TIMEOUT_S, SlackApi, web_client
from approvals.slack.listener import Told, alone
from approvals.slack.words import SlackRefused
from body_broker.background import running
from body_broker.calls import Json
from body_broker.storage.postgres import Pool
from body_broker.telemetry import get_logger

logger = get_logger(__name__)

PING_S = 5.0
_AGAIN_MAX_S = 60.0
_DRAIN_S = 3.0


class Taker(Protocol):
    """What is done with what people clicked."""

    async def in_time(self, payload: Json) -> tuple[bool, Json]:
        """Whether it was taken, and what Slack is told."""
        ...

    async def drain(self) -> None:
        """Return once every click has ended."""
        ...


@asynccontextmanager
async def listening(
    app_token: str,
    base_url: str,
    clicks: Taker,
    *,
    ping_s: float = PING_S,
    pool: Pool | None = None,
    database_url: str | None = None,
) -> AsyncGenerator[None]:
    """A connection for as long as it is used; it is opened, and opened again, beside the caller.

    Args:
        app_token: The app-level token, with connections:write.
        base_url: Where the Web API is.
        clicks: What is done with what people clicked.
        ping_s: How often the connection is tried, and the first pause before a lost one is opened again.
        pool: With database_url: one process of this database listens, and another takes over when it ends.
        database_url: See pool; never logged.
    """
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        line = _Line(SlackApi(web_client(app_token, base_url, session)), app_token, session, clicks, ping_s)
        if pool is not None and database_url is not None:
            work = alone(pool, database_url, app_token, line.keep, again_s=ping_s)
        else:
            work = line.keep(_nobody)
        try:
            async with running(work, name="slack-socket"):
                yield
        finally:
            await clicks.drain()
            await line.close()


async def _nobody(*, connected: bool) -> None:
    pass


class _Line:
    """The WebSocket, and the URLs of it, each of which is good once.

    slack_sdk's client tries the URL of a failed handshake for ever, and logs it; so the loop is our own.
    """

    def __init__(
        self, api: SlackApi, app_token: str, session: aiohttp.ClientSession, clicks: Taker, ping_s: float
    ) -> None:
        self._api, self._app_token, self._session = api, app_token, session
        self._clicks, self._ping_s = clicks, ping_s
        self._ending: set[asyncio.Task[None]] = set()

    async def keep(self, told: Told) -> None:
        """Connected, for ever; `told` hears whether it is."""
        failures = 0
        while True:
            word = "closed"
            try:
                async with AsyncExitStack() as stack:
                    socket = await self._open(stack)
                    if failures:
                        logger.info("slack_socket_recovered", failures=failures)
                    failures = 0
                    await told(connected=True)
                    is_asked_to_come_again = await self._hear(socket, stack)
                if is_asked_to_come_again:
                    continue
            except SlackRefused as error:
                word = error.word
            except (aiohttp.ClientError, OSError, TimeoutError) as error:  # its text holds the URL
                word = type(error).__name__
            finally:
                await told(connected=False)
            failures += 1
            wait_s = min(_AGAIN_MAX_S, self._ping_s * 2 ** min(failures - 1, 10))
            logger.warning("slack_socket_lost", slack=word, failures=failures, again_s=wait_s)
            await asyncio.sleep(wait_s)

    async def _open(self, stack: AsyncExitStack) -> ClientWebSocketResponse:
        url = await self._api.open_socket(self._app_token)
        opening = self._session.ws_connect(url, heartbeat=self._ping_s, proxy=self._api.proxy, max_msg_size=16 << 20)
        socket = await asyncio.wait_for(opening, TIMEOUT_S)
        stack.push_async_callback(socket.close)
        return socket

    async def _hear(self, socket: ClientWebSocketResponse, stack: AsyncExitStack) -> bool:
        """Take what comes until the connection ends; whether Slack wants another in its place."""
        answering: set[asyncio.Task[None]] = set()
        while (message := await socket.receive()).type is WSMsgType.TEXT:
            said = _read(message.data)
            if said.get("type") == "disconnect":
                # What was clicked here is answered here, beside the next connection.
                task = asyncio.create_task(_retire(stack.pop_all(), answering), name="slack old socket")
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)
                return said.get("reason") in {"warning", "refresh_requested"}
            if isinstance(said.get("envelope_id"), str):
                task = asyncio.create_task(self._answer(socket, said), name="slack envelope")
                answering.add(task)
                task.add_done_callback(answering.discard)
        return False

    async def _answer(self, socket: ClientWebSocketResponse, said: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"envelope_id": said["envelope_id"]}
        if said.get("type") == "interactive":
            taken, shown = await self._clicks.in_time(said.get("payload"))
            if not taken:
                return  # Slack tells whoever clicked that something went wrong
            answer |= {} if shown is None else {"payload": shown}
        try:
            await socket.send_str(orjson.dumps(answer).decode())
        except (aiohttp.ClientError, OSError) as error:
            logger.warning("slack_click_not_acknowledged", slack=type(error).__name__)

    async def close(self) -> None:
        """Return once replaced connections have ended."""
        if self._ending:
            await asyncio.wait(self._ending, timeout=_DRAIN_S)


async def _retire(stack: AsyncExitStack, answering: set[asyncio.Task[None]]) -> None:
    async with stack:
        if answering:
            await asyncio.wait(answering, timeout=_DRAIN_S)


def _read(data: str) -> dict[str, Any]:
    try:
        said = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return cast("dict[str, Any]", said) if isinstance(said, dict) else {}
