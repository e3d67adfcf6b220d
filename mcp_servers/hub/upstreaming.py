"""Owns the servers of others as one process has them: read from file and pins, opened and closed, served anew when people accept."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import asyncpg

from body_broker.background import running
from body_broker.calls import Room
from body_broker.errors import BodyBrokerError, PolicyError
from body_broker.settings import Settings
from body_broker.storage.postgres import LOST
from body_broker.storage.stores import Stores
from body_broker.telemetry import get_logger
from body_broker.work.moves import Moves
from mcp_servers.hub.secrets import Secrets
from mcp_servers.upstreams.auth import Credentials
from mcp_servers.upstreams.calling import Services
from mcp_servers.upstreams.later import LaterLink
from mcp_servers.upstreams.looking import Looking
from mcp_servers.upstreams.model import Pin, Upstream
from mcp_servers.upstreams.pins import CHANNEL, Pins, Seen
from mcp_servers.upstreams.reading import upstreams_of
from mcp_servers.upstreams.rows import room_of
from mcp_servers.upstreams.schemas import prepare

if TYPE_CHECKING:
    from mcp_servers.hub.swapping import Swap

log = get_logger(__name__)

SETTING = "BODY_BROKER_UPSTREAMS"
_AGAIN_S = 1.0
_STORM_S = 0.5
"""So long after a look the next one begins, however often a server says that its lists have changed."""
_FAILURES = (BodyBrokerError, *LOST, asyncpg.PostgresError)


@dataclass(frozen=True, slots=True)
class _Joined:
    """One server, as this process has it; `changed` is set when it says that its lists have."""

    upstream: Upstream
    link: LaterLink
    looking: Looking
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Upstreams:
    """The servers of others, as this process serves them.

    Attributes:
        rooms: One for each, with every row that was ever pinned.
        services: What each room's functions are given, by the room's name; changes with the file.
        whole: Whether they are served here.
        pins: What is pinned of them; None where none is joined.
    """

    def __init__(self, *, whole: bool, pins: Pins | None = None) -> None:
        self.rooms: tuple[Room, ...] = ()
        self.services: dict[str, object] = {}
        self.whole, self.pins = whole, pins
        self._joined: dict[str, _Joined] = {}
        self._made: dict[str, tuple[tuple[Pin, ...], Room]] = {}
        self._swap: Swap | None = None
        self._ours: tuple[Sequence[Room], Sequence[Room]] = ((), ())
        self._one_swap = asyncio.Lock()
        self._ask: Callable[[str], Awaitable[None]] | None = None
        self._withheld: set[str] = set()
        self._to_ask = asyncio.Event()

    @property
    def configured(self) -> frozenset[str]:
        """The setting, where a file of servers is there, whether or not it is named; tools need it."""
        return frozenset({SETTING} if self._joined else ())

    def beside(self, served: Sequence[Room], every: Sequence[Room]) -> tuple[tuple[Room, ...], tuple[Room, ...]]:
        """Our rooms that are served, and all of ours, each with those of others."""
        return (*served, *(self.rooms if self.whole else ())), (*every, *self.rooms)

    def swapped_by(self, swap: Swap, served: Sequence[Room], every: Sequence[Room]) -> None:
        """What serves them anew, beside our rooms; nothing is swapped before."""
        self._swap, self._ours = swap, (served, every)

    def asked_by(self, ask: Callable[[str], Awaitable[None]]) -> None:
        """What asks people about what of a server is withheld."""
        self._ask = ask

    def served(self) -> frozenset[str]:
        """The names of all tools that are served now, ours among them."""
        return self._swap.tools() if self._swap else frozenset()

    def joined(self, name: str) -> Upstream | None:
        """A server as the file joins it; None where it does not."""
        found = self._joined.get(name)
        return None if found is None else found.upstream

    def join(self, upstream: Upstream, link: LaterLink) -> None:
        """Have this server too; what it offers is served by the next `renew`."""
        assert self.pins is not None

        async def withheld(_seen: Seen) -> None:
            self._withheld.add(upstream.name)
            self._to_ask.set()

        looking = Looking(upstream, link, self.pins, withheld)
        found = self._joined[upstream.name] = _Joined(upstream, link, looking)
        link.on_changed = found.changed.set
        self.services[upstream.name] = Services(upstream, link, looking)

    async def renew(self) -> None:
        """Serve what is pinned now. Whoever comes while another does reads the pins after it, so the newest stay.

        Raises:
            PolicyError: The studio's policies do not fit what is pinned now; everything stays as it was.
        """
        assert self.pins is not None
        async with self._one_swap:
            pins = await self.pins.read()
            made = await asyncio.to_thread(self._make, pins)
            if made == self._made:
                return
            kept = self.rooms
            self.rooms = tuple(room for _, room in made.values())
            try:
                if self._swap is not None:
                    await self._swap.to(*self.beside(*self._ours))
            except BaseException:
                self.rooms = kept
                raise
            self._made = made

    @asynccontextmanager
    async def watching(self, moves: Moves, *, looks: bool = True) -> AsyncGenerator[None]:
        """While open what is accepted anywhere is served here; with `looks` the servers are looked at and people asked."""
        async with AsyncExitStack() as stack:
            if self._joined:
                await stack.enter_async_context(running(self._follow(moves), name="upstreams"))
            if self._joined and looks:
                await stack.enter_async_context(running(self._ask_for_ever(), name="upstreams-asking"))
                for each in self._joined.values():
                    watch = self._watch(each)
                    await stack.enter_async_context(running(watch, name=f"watch-{each.upstream.name}"))
            yield

    async def close(self) -> None:
        """End every look and every connection."""
        for each in self._joined.values():
            await each.looking.close()
            await each.link.close()

    def _make(self, pins: Mapping[str, tuple[Pin, ...]]) -> dict[str, tuple[tuple[Pin, ...], Room]]:
        """A room for each; where its pins are what they were, the one it has. Blocking, as are the imports that its calls need."""
        prepare()
        found: dict[str, tuple[tuple[Pin, ...], Room]] = {}
        for name, each in self._joined.items():
            known, present = self._made.get(name), pins.get(name, ())
            same = known is not None and known[0] == present
            found[name] = known if known is not None and same else (present, room_of(each.upstream, present))
        return found

    async def _follow(self, moves: Moves) -> None:
        """Serve anew whenever pins move, here or elsewhere; after a lost connection too, for nobody knows what was said meanwhile."""
        while True:
            try:
                async with moves.following((CHANNEL,)) as follower:
                    await self.renew()
                    while True:
                        await follower.moved()
                        await self.renew()
            except PolicyError as error:
                log.error("upstreams_not_served_anew", error=error.message)  # noqa: TRY400 - our own words say it all
            except _FAILURES:
                log.warning("upstreams_not_followed", exc_info=True)
            await asyncio.sleep(_AGAIN_S)

    async def _watch(self, each: _Joined) -> None:
        while True:
            each.changed.clear()
            began = time.monotonic()
            try:
                await each.looking.look()
            except BodyBrokerError as error:
                log.warning("upstream_not_seen", upstream=each.upstream.name, error=error.code)
            except Exception:
                log.exception("upstream_look_failed", upstream=each.upstream.name)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(each.upstream.watch_s):
                    await each.changed.wait()
            await asyncio.sleep(max(0.0, began + _STORM_S - time.monotonic()))

    async def _ask_for_ever(self) -> None:
        while True:
            await self._to_ask.wait()
            self._to_ask.clear()
            while self._withheld:
                name = self._withheld.pop()
                try:
                    if self._ask is not None:
                        await self._ask(name)
                except BodyBrokerError as error:  # the next look asks again
                    log.warning("upstream_not_asked_about", upstream=name, error=error.code)
                except Exception:
                    log.exception("upstream_not_asked_about", upstream=name)


@asynccontextmanager
async def open_upstreams(
    settings: Settings, stores: Stores, secrets: Secrets, *, ours: Sequence[Room], whole: bool
) -> AsyncGenerator[Upstreams]:
    """The servers of others of one process.

    Args:
        settings: Name their file.
        stores: Keep what is pinned.
        secrets: Tokens are sealed under a key derived from these.
        ours: Every room of ours: no upstream and none of its rows has a name of these.
        whole: Whether all of ours are served here: then those of others are too.

    Raises:
        SettingsError: The file does not fit.
    """
    taken = {room.name for room in ours} | {operation.name for room in ours for operation in room.operations()}
    found = await asyncio.to_thread(upstreams_of, settings, taken=taken)
    if not found:
        yield Upstreams(whole=whole)
        return
    path = os.environ.get("PATH", os.defpath)  # noqa: TID251 - where this machine's programs are, not a setting
    upstreams, key = Upstreams(whole=whole, pins=Pins(stores.pool)), secrets.derive("upstreams")
    try:
        for each in found:
            credentials = Credentials(stores.pool, key, each.name)
            folder = settings.data_dir / "upstreams" / each.name
            upstreams.join(each, LaterLink(each, credentials, folder, path=path))
        await upstreams.renew()
        yield upstreams
    finally:
        await upstreams.close()
