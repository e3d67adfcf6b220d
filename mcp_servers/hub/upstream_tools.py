"""The hub's own tool about servers of others: a person accepts what one says now; and asking people for that, as the hub itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, ClassVar, Protocol

from pydantic import Field

from approvals.desk import Desk
from body_broker.calls import Arguments, Call, Caller, Preview, Result, Tool
from body_broker.errors import (
    ApprovalPending,
    BodyBrokerError,
    Conflict,
    NotConfigured,
    NotFound,
    RateLimited,
    Unavailable,
)
from body_broker.telemetry import get_logger
from body_broker.text import quoted
from mcp_servers.hub.requests import Answer, Patience, Request
from mcp_servers.hub.upstreaming import SETTING, Upstreams
from mcp_servers.upstreams.defining import difference
from mcp_servers.upstreams.model import NAME, Classified, Kind, Pin
from mcp_servers.upstreams.pins import Pins

log = get_logger(__name__)

ACCEPT = "accept_upstream_definition"
HUB = Caller(("service:hub",), {}, "hub_upstreams")
"""Who asks people about what servers of others say: the same in every hub, so that they ask once."""
OPEN_MAX = 10
"""Requests about one server that wait for people at a time: a server that changes again and again wears nobody down."""
AGAIN_S = 3_600.0
"""How long after a request that nobody answered people are asked again."""


class HasUpstreams(Protocol):
    """What this tool needs."""

    @property
    def upstreams(self) -> Upstreams:
        """The servers of others."""
        ...


class Accept(Arguments):
    """Which definition is accepted."""

    exact: ClassVar[frozenset[str]] = frozenset({"upstream", "name", "digest"})

    upstream: Annotated[str, Field(pattern=f"^{NAME}$")]
    kind: Kind
    name: Annotated[str, Field(min_length=1, max_length=2_000, description="As the server has it.")]
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="Of what it says now.")]


class Accepted(Result):
    """It is served, a moment from now on every hub."""

    upstream: str
    kind: Kind
    digest: str

    def text(self) -> str:
        """One line."""
        return f"What {self.upstream} says of that {self.kind} is accepted, and served from now on."


async def accept(arguments: Accept, call: Call, services: HasUpstreams) -> Accepted:
    """Serve what was accepted; under the same approval again it is the same."""
    by = call.approval or call.caller.requester
    await _pins(services).accept(arguments.upstream, arguments.kind, arguments.name, arguments.digest, by)
    return Accepted(upstream=arguments.upstream, kind=arguments.kind, digest=arguments.digest)


async def foresee(arguments: Accept, _caller: Caller, services: HasUpstreams) -> Preview:
    """What would be served in place of what was."""
    pins, upstream = _pins(services), services.upstreams.joined(arguments.upstream)
    pin = await pins.find(arguments.upstream, arguments.kind, arguments.name)
    if upstream is None or pin is None:
        raise NotFound("No such operation of a joined server is known.", next_step="Look at what it lists now.")
    if pin.seen is None or pin.seen.digest != arguments.digest:
        raise Conflict(
            "The upstream server does not say now what was to be accepted.",
            next_step="Decide on what it says now: the hub asks people for that by itself.",
            details={"upstream": arguments.upstream, "kind": arguments.kind},
        )
    was = "changed what it says of" if pin.accepted is not None else "offers what it did not before:"
    head = (
        f"The server {upstream.name}, which others run, {was} its {pin.kind} {quoted(pin.name, limit=200)}.\n"
        f"Accepted, it is served as {_as(upstream.classified(pin.kind, pin.name))}.\n"
        "What follows are that server's words, as data: what was accepted (-) and what it says now (+).\n\n"
    )
    return Preview(
        headline=f"Accept what {upstream.name} says of its {pin.kind} {quoted(pin.name)}",
        text=head + difference(pin.accepted, pin.seen),
        basis=pin.seen.digest,
    )


async def ask_people(
    run: Callable[[Request], Awaitable[Answer]], desk: Desk, pins: Pins, upstream: str, *, again_s: float = AGAIN_S
) -> None:
    """Open a request for each definition of this server that is withheld and that nobody was asked about, within bounds.

    Args:
        run: The gate's own.
        desk: Where requests are ended that nobody answered.
        pins: Know what is withheld, and what was asked and refused.
        upstream: Whose.
        again_s: After how long what nobody answered is asked again.

    Raises:
        RateLimited: Enough is asked for now; a later look goes on.
        Unavailable: It cannot be asked now.
    """
    due = await pins.to_ask(upstream, again_s=again_s)
    left = OPEN_MAX - await pins.count_asked(upstream) if due else 0
    if len(due) > left:
        log.info("upstream_asks_wait", upstream=upstream, waiting=len(due) - max(left, 0))
    for each in due[: max(left, 0)]:
        assert each.pin.seen is not None, "what is to be asked about was seen"
        if each.before is not None:
            await _told(desk, each.before)
        pin, digest = each.pin, each.pin.seen.digest
        await pins.asked(pin.upstream, pin.kind, pin.name, digest, await _asked(run, pin, digest))


async def _asked(run: Callable[[Request], Awaitable[Answer]], pin: Pin, digest: str) -> str | None:
    """The approval that asks people; None where nobody can be asked."""
    arguments = {"upstream": pin.upstream, "kind": pin.kind, "name": pin.name, "digest": digest}
    try:
        await run(Request(name=ACCEPT, kind="tool", arguments=arguments, caller=HUB, patience=Patience(wait_s=0)))
    except (RateLimited, Unavailable):
        raise
    except ApprovalPending as pending:
        return str(pending.details["approval"])
    except BodyBrokerError as error:
        log.warning("upstream_not_asked_about", upstream=pin.upstream, kind=pin.kind, error=error.code)
        found = error.details.get("approval")
        return None if found is None else str(found)
    return None


async def _told(desk: Desk, approval: str) -> None:
    """The end of an earlier request is known here: the same call opens another one."""
    try:
        await desk.get(approval)  # whoever reads it notices that its time is up
    except NotFound:
        return
    await desk.take(approval)


def _as(said: Classified) -> str:
    if said.group is None:
        return "unclassified: it writes, destroys and reaches outside"
    return " + ".join([said.group, *sorted(said.modifiers)])


def _pins(services: HasUpstreams) -> Pins:
    pins = services.upstreams.pins
    if pins is None:
        raise NotConfigured("No server of others is joined here.", details={"setting": SETTING})
    return pins


TOOLS = (
    Tool(
        name=ACCEPT,
        group="admin_change",
        run=accept,
        title="Accept a definition",
        description=(
            "Serve what a joined server of others says now of one of its operations, in place of what was accepted before. "
            "The hub asks for it by itself; a person who was asked and said no may come back to it here."
        ),
        effect="repeatable",
        needs=SETTING,
        foresees=foresee,
    ),
)
