"""Owns Socket Mode: one connection of this process to Slack, kept open, through which clicks come without a port of ours."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast

import aiohttp
from slack_sdk.socket_mode.aiohttp import SocketModeClient
from slack_sdk.socket_mode.async_client import AsyncBaseSocketModeClient
from slack_sdk.socket_mode.request import SocketModeRequest
from slack_sdk.socket_mode.response import SocketModeResponse

from approvals.slack.clicks import Clicks
from approvals.slack.client import TIMEOUT_S, web_client
from body_broker.background import running
from body_broker.telemetry import get_logger

logger = get_logger(__name__)
_LOGGER = logging.getLogger("approvals.slack.socket")
_LOGGER.setLevel(logging.WARNING)  # at debug the SDK logs whole messages

PING_S = 5.0


@asynccontextmanager
async def listening(
    app_token: str, base_url: str, clicks: Clicks, *, ping_s: float = PING_S
) -> AsyncGenerator[SocketModeClient]:
    """A connection for as long as it is used; it is opened, and opened again, beside the caller.

    Args:
        app_token: The app-level token, with connections:write.
        base_url: Where the Web API is.
        clicks: What is done with what people clicked.
        ping_s: How often the connection is tried, and the pause before a lost one is opened again.
    """

    async def heard(client: AsyncBaseSocketModeClient, request: SocketModeRequest) -> None:
        said: Any = None
        if request.type == "interactive":
            taken, said = await clicks.in_time(cast("Any", request).payload)
            if not taken:
                return  # Slack tells whoever clicked that something went wrong
        await client.send_socket_mode_response(SocketModeResponse(envelope_id=request.envelope_id, payload=said))

    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        client = SocketModeClient(
            app_token=app_token,
            logger=_LOGGER,
            web_client=web_client(app_token, base_url, session),
            ping_interval=ping_s,
        )
        client.socket_mode_request_listeners.append(heard)
        try:
            async with running(_connect(client), name="slack-socket"):
                yield client
        finally:
            await clicks.drain()
            await client.close()


async def _connect(client: SocketModeClient) -> None:
    # It tries until it is connected; from then on the SDK itself opens lost connections again.
    untyped: Any = client
    await untyped.connect()
    logger.info("slack_socket_connected")
