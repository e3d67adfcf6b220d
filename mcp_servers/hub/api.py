"""Owns the hub's HTTP API beside MCP: which part answers a path. Every request of it goes through the gate."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from starlette.types import Receive, Scope, Send

from body_broker.calls import Caller
from body_broker.errors import WireError
from mcp_servers.hub.api_talk import TalkApi
from mcp_servers.hub.completions import Completions
from mcp_servers.hub.exchange import ClientLeft
from mcp_servers.hub.front import Api
from mcp_servers.hub.runtime import Runtime


class HubApi:
    """Several APIs as one."""

    def __init__(self, parts: Sequence[Api]) -> None:
        self._parts = tuple(parts)

    @property
    def paths(self) -> frozenset[str]:
        """Every path of every part; {} stands for one segment."""
        return frozenset(path for part in self._parts for path in part.paths)

    def takes(self, path: str) -> bool:
        """Whether a path is one of these."""
        return any(part.takes(path) for part in self._parts)

    def told(self, path: str, told: WireError) -> tuple[int, dict[str, Any]] | None:
        """An error in the form that the clients of a path know; None where that is the hub's own."""
        return next((form for part in self._parts if (form := part.told(path, told)) is not None), None)

    async def __call__(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        """One request to a path of these, whose Host, Origin and token were checked; raises BodyBrokerError."""
        with suppress(ClientLeft):
            await next(part for part in self._parts if part.takes(scope["path"]))(caller, scope, receive, send)


def make_api(runtime: Runtime) -> HubApi:
    """The API over an open runtime."""
    bytes_max = runtime.settings.request_bytes_max
    chat = Completions(runtime.gate, runtime.inferring, bytes_max=bytes_max)
    return HubApi((chat, TalkApi(runtime.gate, bytes_max=bytes_max)))
