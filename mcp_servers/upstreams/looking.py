"""Owns looking at one upstream: one look at a time, and that nothing is called whose definition is not the pinned one now."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import asyncpg

from body_broker.background import end
from body_broker.calls import Json
from body_broker.errors import BodyBrokerError, Conflict, Unavailable
from body_broker.storage.postgres import LOST
from body_broker.telemetry import get_logger
from body_broker.text import clean
from mcp_servers.upstreams.defining import Offered, definitions_of
from mcp_servers.upstreams.model import Kind, Upstream
from mcp_servers.upstreams.pins import Pins, Seen

log = get_logger(__name__)


class Offer(Offered, Protocol):
    """All that a link brings of a look."""

    @property
    def complete(self) -> bool:
        """Whether every page was read."""
        ...

    @property
    def protocol(self) -> str:
        """The revision that was agreed on."""
        ...

    @property
    def server(self) -> Mapping[str, Json]:
        """What it calls itself."""
        ...


class Lists(Protocol):
    """The way to an upstream, as looks use it."""

    async def offered(self) -> Offer:
        """Everything it lists."""
        ...


class Looking:
    """Looks at one upstream for one process.

    Args:
        upstream: As the file joins it.
        link: The way to it.
        pins: Where what was seen is compared and kept.
        on_withheld: Told of each look after which something is not served; it takes note and returns.
    """

    def __init__(
        self, upstream: Upstream, link: Lists, pins: Pins, on_withheld: Callable[[Seen], Awaitable[None]]
    ) -> None:
        self._upstream, self._link, self._pins, self._on_withheld = upstream, link, pins, on_withheld
        self._look: asyncio.Task[Seen] | None = None
        self._now: Mapping[tuple[Kind, str], str] = {}
        self._began_at: float | None = None

    async def look(self) -> Seen:
        """Have it tell what it offers and record that; whoever asks while a look runs gets the same one.

        Raises:
            BodyBrokerError: It does not tell, or not in a way that can be understood.
        """
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._looked(), name=f"look-{self._upstream.name}")
        return await asyncio.shield(self._look)  # others wait for it too

    async def require_current(self, kind: Kind, name: str, digest: str, *, within_s: float) -> None:
        """Return where it says now what is pinned, as a look found that began at most so long ago.

        Raises:
            Conflict: It says otherwise; from now on it is withheld here.
            BodyBrokerError: It does not tell.
        """
        asked_at = time.monotonic()
        while self._began_at is None or self._began_at < asked_at - within_s:
            await self.look()  # one that had begun before is too old where an effect waits: then the next one counts
        if self._now.get((kind, name)) != digest:
            raise Conflict(
                f"The upstream server {self._upstream.name} does not define this any more as people accepted it.",
                next_step="Wait until people accept what it says now, or do without it.",
                details={"upstream": self._upstream.name},
            )

    async def close(self) -> None:
        """End a look that runs."""
        if self._look is not None and not self._look.done():
            await end(self._look)

    async def _looked(self) -> Seen:
        began_at = time.monotonic()
        try:
            offer = await self._link.offered()
            if not offer.complete:  # half a list would make the other half gone
                raise Unavailable(f"The upstream server {self._upstream.name} lists more than is taken.")
            definitions = definitions_of(offer)
        except BodyBrokerError as error:
            await self._note_failure(error)
            raise
        # Known here before it is recorded: a call that waits is refused even where PostgreSQL is away.
        self._now, self._began_at = {(each.kind, each.name): each.digest for each in definitions}, began_at
        seen = await self._pins.saw(self._upstream.name, definitions, _told(offer))
        if seen.withheld:
            await self._on_withheld(seen)
        return seen

    async def _note_failure(self, error: BodyBrokerError) -> None:
        """Record it, if that can be; why the upstream failed is told either way."""
        try:
            await self._pins.failed(self._upstream.name, error.message)
        except (*LOST, asyncpg.PostgresError):
            log.warning("upstream_failure_not_recorded", upstream=self._upstream.name, failure=error.code)


def _told(offer: Offer) -> dict[str, Json]:
    named = {key: clean(str(offer.server[key]), limit=100) for key in ("name", "version") if key in offer.server}
    return {"protocol": clean(offer.protocol, limit=40), "server": named}
