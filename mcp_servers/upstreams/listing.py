"""Owns reading all that an upstream lists, page by page, as it came and within bounds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import cast

import mcp_types as t
import orjson
from mcp.shared.exceptions import MCPError

from body_broker.calls import Json
from mcp_servers.upstreams.later import Offer
from mcp_servers.upstreams.session import Session

ROWS_MAX = 500
BYTES_MAX = 2 * 1024 * 1024
_PAGES_MAX = 100

_Page = Callable[[str | None], Awaitable[dict[str, Json]]]


class _Reading:
    """One reading of everything; what is beyond its bounds makes it incomplete."""

    def __init__(self) -> None:
        self.complete = True
        self._rows = self._bytes = self._pages = 0

    async def rows(self, page: _Page, key: str) -> list[Json]:
        """The rows of all pages of one kind."""
        found: list[Json] = []
        cursor: str | None = None
        while True:
            try:
                raw = await page(cursor)
            except MCPError as error:
                if error.error.code == t.METHOD_NOT_FOUND and cursor is None:
                    return found  # it has none, whatever it said it can
                raise
            rows = cast("list[Json]", raw[key])
            self._pages, self._rows = self._pages + 1, self._rows + len(rows)
            self._bytes += len(orjson.dumps(rows))
            after = raw.get("nextCursor")
            if self._rows > ROWS_MAX or self._bytes > BYTES_MAX:
                self.complete = False
                return found
            found += rows
            if not isinstance(after, str):
                return found
            if after == cursor or self._pages >= _PAGES_MAX:
                self.complete = False
                return found
            cursor = after


async def listed(session: Session) -> Offer:
    """Everything that it says it has.

    Raises:
        Exception: The library's.
    """
    known = session.server_capabilities or t.ServerCapabilities()
    reading = _Reading()

    async def prompts(cursor: str | None) -> dict[str, Json]:
        return await session.raw(t.ListPromptsRequest(params=t.PaginatedRequestParams(cursor=cursor)))

    async def resources(cursor: str | None) -> dict[str, Json]:
        return await session.raw(t.ListResourcesRequest(params=t.PaginatedRequestParams(cursor=cursor)))

    async def templates(cursor: str | None) -> dict[str, Json]:
        return await session.raw(t.ListResourceTemplatesRequest(params=t.PaginatedRequestParams(cursor=cursor)))

    tools = await reading.rows(session.raw_tools, "tools") if known.tools else []
    prompted = await reading.rows(prompts, "prompts") if known.prompts else []
    held = await reading.rows(resources, "resources") if known.resources else []
    formed = await reading.rows(templates, "resourceTemplates") if known.resources else []
    info = session.server_info
    return Offer(
        tools=tools,
        prompts=prompted,
        resources=held,
        templates=formed,
        complete=reading.complete,
        protocol=session.protocol_version or "",
        server=info.model_dump(by_alias=True, mode="json", exclude_none=True) if info is not None else {},
    )
