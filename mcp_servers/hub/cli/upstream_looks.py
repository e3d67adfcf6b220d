"""Owns a look at a server of others from the terminal: it is connected, what it offers is held against its pins, and people read what came of it."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from body_broker.errors import BodyBrokerError, Unavailable
from body_broker.text import clean, quoted
from mcp_servers.hub.cli.context import search_path
from mcp_servers.hub.runtime import Runtime
from mcp_servers.upstreams.auth import Credentials
from mcp_servers.upstreams.later import LaterLink, Offer
from mcp_servers.upstreams.looking import Looking
from mcp_servers.upstreams.model import Kind, Pin, Upstream
from mcp_servers.upstreams.pins import Pins, Seen
from mcp_servers.upstreams.rows import left_out, names_of

_KINDS: tuple[Kind, ...] = ("tool", "prompt", "resource", "template")
_SHOWN_MAX = 12
_COMPLAINTS_MAX = 5
_WHY = {
    "changed": "it says otherwise now than what was accepted",
    "new": "it was not there at first sight, and nobody has accepted it",
    "gone": "the server does not offer it any more",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and what to do about it."""

    what: str
    next_step: str


@dataclass(frozen=True, slots=True)
class Look:
    """What came of one look; lines for people.

    Attributes:
        reached: Whether the server told what it offers.
        lines: What it is and offers.
        problems: What keeps something of it from being served.
    """

    reached: bool
    lines: tuple[str, ...]
    problems: tuple[Problem, ...]

    def text(self) -> str:
        """All of it."""
        told = [f"problem  {each.what}\n         {each.next_step}" for each in self.problems]
        return "\n".join([*self.lines, *told])


class _Remembering:
    """The way to a server that keeps what it listed last, and how long that took."""

    def __init__(self, link: LaterLink) -> None:
        self._link = link
        self.offer: Offer | None = None
        self.took_ms = 0.0

    async def offered(self) -> Offer:
        """As the link."""
        began = time.perf_counter()
        self.offer = await self._link.offered()
        self.took_ms = (time.perf_counter() - began) * 1000
        return self.offer


def credentials_of(runtime: Runtime, name: str) -> Credentials:
    """The secrets of one server, as every hub has them."""
    return Credentials(runtime.stores.pool, runtime.secrets.derive("upstreams"), name)


@asynccontextmanager
async def _connected(runtime: Runtime, upstream: Upstream) -> AsyncGenerator[LaterLink]:
    """A connection of this command's own: a hub that is up keeps its own."""
    folder = runtime.settings.data_dir / "upstreams" / upstream.name
    link = LaterLink(upstream, credentials_of(runtime, upstream.name), folder, path=search_path())
    try:
        yield link
    finally:
        await link.close()


async def look_at(runtime: Runtime, upstream: Upstream, *, twice: bool = False) -> Look:
    """Connect, list, record it as a hub's look would, and say what came of it.

    Args:
        runtime: Open stores.
        upstream: As the file joins it.
        twice: List once more over the same connection: how long that takes is the round trip.
    """

    async def noted(_seen: Seen) -> None:
        """A hub that is up asks people about it after its own next look."""

    pins = Pins(runtime.stores.pool)
    async with _connected(runtime, upstream) as link:
        listed = _Remembering(link)
        looking = Looking(upstream, listed, pins, noted)
        try:
            seen = await looking.look()
            first_ms = listed.took_ms
            if twice:
                await listed.offered()
        except BodyBrokerError as error:
            return _failed(upstream, error, link.complaints())
        finally:
            await looking.close()
    assert listed.offer is not None, "a look that succeeded has listed"
    known = (await pins.read()).get(upstream.name, ())
    times = f"connected and listed in {first_ms:.0f} ms"
    times += f", listed again over the same connection in {listed.took_ms:.0f} ms" if twice else ""
    lines = [
        f"server   {_called(listed.offer)}, speaks {clean(listed.offer.protocol, limit=40) or 'no revision it names'}",
        f"time     {times}",
        f"offers   {_counted(pin.kind for pin in known if pin.state != 'gone')}",
        f"pins     {_pinned(seen, known)}",
        *_unclassified(upstream, known),
        *(
            f"left     {_named(left.pin)}: {clean(left.why, limit=200)}"
            for left in left_out(upstream, known)[:_SHOWN_MAX]
        ),
    ]
    return Look(reached=True, lines=tuple(lines), problems=(*withheld(known), *_misnamed(upstream, known)))


def withheld(pins: Iterable[Pin]) -> tuple[Problem, ...]:
    """What of a server is not served, and how a person changes that."""
    return tuple(
        Problem(f"{_named(pin)} is withheld: {_WHY[pin.state]}.", _step(pin)) for pin in pins if pin.state != "pinned"
    )


def _step(pin: Pin) -> str:
    if pin.seen is None:
        return "Nothing to do: back as it was, it is served again."
    item = shlex.quote(clean(pin.name, limit=200))
    return (
        f"See the difference and decide: body-broker upstream accept {pin.upstream} {pin.kind} {item} --as person:NAME"
    )


def _failed(upstream: Upstream, error: BodyBrokerError, complaints: str) -> Look:
    said = complaints.strip().splitlines()[-_COMPLAINTS_MAX:]
    lines = (
        ["Its program wrote, in its own words:", *(f"  | {clean(line, limit=200)}" for line in said)] if said else []
    )
    step = error.next_step if not isinstance(error, Unavailable) else _checked_by_hand(upstream)
    return Look(reached=False, lines=tuple(lines), problems=(Problem(error.message, step),))


def _checked_by_hand(upstream: Upstream) -> str:
    """What an operator can look at where a caller could only wait."""
    if upstream.url is not None:
        return (
            f"Look whether an MCP server answers at {upstream.url} from this machine, and that its certificate is good."
        )
    return f"Run it by hand and see what it writes: {shlex.join(upstream.command)}"


def _called(offer: Offer) -> str:
    name, version = (str(offer.server.get(key, "")) for key in ("name", "version"))
    return quoted(f"{name} {version}".strip(), limit=100) if name else "without a name"


def _counted(kinds: Iterable[Kind]) -> str:
    counts = Counter(kinds)
    return (
        ", ".join(f"{counts[kind]} {kind}{'' if counts[kind] == 1 else 's'}" for kind in _KINDS if counts[kind])
        or "nothing"
    )


def _pinned(seen: Seen, known: Sequence[Pin]) -> str:
    if seen.first:
        return f"this was the first sight: all {len(known)} are pinned as they are now"
    held = len(seen.withheld)
    same = sum(pin.state == "pinned" for pin in known)
    return f"{same} say what was accepted" + (f", {held} withheld" if held else "")


def _unclassified(upstream: Upstream, known: Sequence[Pin]) -> list[str]:
    """Whatever the file says nothing of, by the names under which it is called here."""
    names = names_of(upstream, known)
    loose = [pin for pin in known if upstream.classified(pin.kind, pin.name).group is None and pin.state != "gone"]
    if not loose:
        return []
    tools = [names[pin.kind, pin.name] for pin in loose if pin.kind == "tool"]
    more = f" and {len(tools) - _SHOWN_MAX} more tools" if len(tools) > _SHOWN_MAX else ""
    head = f"class    {_counted(pin.kind for pin in loose)} unclassified: these write, destroy and reach outside, for all we know"
    return [head, *([f"         {', '.join(tools[:_SHOWN_MAX])}{more}"] if tools else [])]


def _misnamed(upstream: Upstream, known: Sequence[Pin]) -> list[Problem]:
    """What the file classifies and the server does not have: most often a name written wrong."""
    there = {("resource" if pin.kind == "template" else pin.kind, pin.name) for pin in known}
    said = {("resource" if kind == "template" else kind, name) for kind, name in upstream.operations}
    return [
        Problem(
            f"upstreams.toml says what the {kind} {quoted(name, limit=100)} is, and the server has none of that name.",
            f"Correct the name in [{upstream.name}.{kind}s], or take it out.",
        )
        for kind, name in sorted(said - there)
    ]


def _named(pin: Pin) -> str:
    return f"{pin.kind} {quoted(pin.name, limit=200)}"
