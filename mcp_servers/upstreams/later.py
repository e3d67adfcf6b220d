"""Owns the way to an upstream as the hub holds it: nothing is imported, started or connected before it is first needed."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from body_broker.calls import Effect, Json, Progress
from body_broker.errors import Draining
from mcp_servers.upstreams.auth import Credentials
from mcp_servers.upstreams.model import Upstream

if TYPE_CHECKING:
    from mcp_servers.upstreams.link import Link


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Everything that an upstream lists, as it came.

    Attributes:
        complete: Whether every page was read; more than the bounds is not.
        protocol: The revision that was agreed on.
        server: What it calls itself.
    """

    tools: Sequence[Json]
    prompts: Sequence[Json]
    resources: Sequence[Json]
    templates: Sequence[Json]
    complete: bool
    protocol: str
    server: Mapping[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer of a tool, as it came.

    Attributes:
        blocks: MCP's content blocks.
        structured: The structured content; None without one.
        is_error: Whether it says that it failed.
    """

    blocks: Sequence[Json]
    structured: Json
    is_error: bool


class LaterLink:
    """The way to one upstream for one process: one connection, made when it is first needed, and again where it broke.

    Args:
        upstream: As the file joins it.
        credentials: Its secrets.
        folder: The program's own: it runs there unless the file says otherwise, and has it as HOME. Made where it is not.
        path: Where programs are looked for, as PATH has it; the program's own PATH too.
        clock: Seconds, for the breaker.

    Attributes:
        on_changed: Called, at most a few times a second, when the upstream says that its lists changed.
    """

    def __init__(
        self,
        upstream: Upstream,
        credentials: Credentials,
        folder: Path,
        *,
        path: str = os.defpath,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._upstream, self._credentials, self._folder = upstream, credentials, folder
        self._path, self._clock = path, clock
        self._link: Link | None = None
        self._making = asyncio.Lock()
        self._closed = False
        self.on_changed: Callable[[], None] = _nothing

    async def offered(self) -> Offer:
        """Everything it lists, asked for now.

        Raises:
            BodyBrokerError: It does not tell: `Unavailable`, or `NotConfigured` where a secret is missing or refused.
        """
        return await (await self._made()).offered()

    async def call(
        self,
        name: str,
        arguments: Mapping[str, Json],
        *,
        progress: Progress,
        meta: Mapping[str, Json],
        effect: Effect = "once",
    ) -> Answer:
        """The answer of a tool; cancelled, the upstream is told.

        Args:
            name: As the upstream has it.
            arguments: Go out as they are.
            progress: Told the upstream's numbers, never its words.
            meta: `_meta` of the request; where the trace is comes along.
            effect: What is lost where no answer comes.

        Raises:
            OutcomeUnknown: It was sent and has an effect, and no answer that can be understood came.
            BodyBrokerError: It was not done: `Unavailable`, `NotConfigured`, or `BadInput` where the upstream refuses the call.
        """
        return await (await self._made()).call(name, arguments, progress=progress, meta=meta, effect=effect)

    async def read(self, uri: str) -> Sequence[Json]:
        """The contents of a resource, as they came.

        Raises:
            BodyBrokerError: As `offered`.
        """
        return await (await self._made()).read(uri)

    async def prompt(self, name: str, arguments: Mapping[str, str]) -> Sequence[Json]:
        """The messages of a prompt, as they came.

        Raises:
            BodyBrokerError: As `offered`.
        """
        return await (await self._made()).prompt(name, arguments)

    def complaints(self) -> str:
        """The end of what its program wrote to stderr, for the eyes of operators: its own words, cleaned, its secrets left out."""
        return self._link.complaints() if self._link is not None else ""

    async def close(self) -> None:
        """End the connection, and the program with all that it started; nothing is connected any more."""
        self._closed = True
        async with self._making:
            if self._link is not None:
                await self._link.close()

    def _changed(self) -> None:
        self.on_changed()  # whoever it is by then

    async def _made(self) -> Link:
        if self._link is None:
            async with self._making:
                if self._link is None and not self._closed:
                    link_class = await asyncio.to_thread(_link_class)  # a second of imports
                    self._link = link_class(
                        self._upstream,
                        self._credentials,
                        self._folder,
                        path=self._path,
                        clock=self._clock,
                        changed=self._changed,
                    )
        if self._link is None or self._closed:
            raise Draining("This hub is stopping and asks servers of others nothing more.")
        return self._link


def _link_class() -> type[Link]:
    from mcp_servers.upstreams.link import Link  # noqa: PLC0415 - fastmcp

    return Link


def _nothing() -> None:
    """Nobody listens."""
