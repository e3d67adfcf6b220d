"""Owns what a client hears while its call runs: progress where it gave a token, and the same as lines of its log where it wants one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp_types import LOG_LEVEL_META_KEY
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from body_broker.calls import Caller, Progress
from mcp_servers.hub.events import EventBus
from mcp_servers.hub.requests import no_progress

_HEARD_AT = frozenset({"debug", "info"})


def progress_of(ctx: ServerRequestContext[Any, Any], caller: Caller, bus: EventBus) -> Progress:
    """Progress in the forms its client asked for; a no-op where it asked for none.

    The log is asked for by each request since 2026-07-28, before that once for all: its level is kept for the login, on every hub.
    """
    meta = cast("Mapping[str, Any]", ctx.meta or {})
    numbered = meta.get("progress_token") is not None
    modern = ctx.protocol_version in MODERN_PROTOCOL_VERSIONS
    if modern and not numbered and LOG_LEVEL_META_KEY not in meta:
        return no_progress

    async def report(done: float, total: float | None = None, message: str | None = None) -> None:
        if numbered:
            await ctx.session.report_progress(done, total, message)
        if message is not None:
            level = meta.get(LOG_LEVEL_META_KEY) if modern else await bus.log_level(caller.session)
            if isinstance(level, str) and level in _HEARD_AT:
                line = types.LoggingMessageNotificationParams(level="info", logger="body-broker", data=message)
                await ctx.session.send_notification(types.LoggingMessageNotification(params=line), ctx.request_id)

    return report
