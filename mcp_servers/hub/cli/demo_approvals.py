"""Owns the demo's gated call: an agent asks, waits, a person says yes with a second factor, it runs once, and all of it is on the audit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import click
from mcp_types import CallToolResult

from approvals.cards import Card
from approvals.desk import Desk
from approvals.factors import Factors
from approvals.factors.totp import code_at, uri_of
from approvals.model import Approval
from approvals.people import People, Person
from body_broker.audit.trail import tail
from body_broker.errors import BodyBrokerError
from mcp_servers.hub.cli.approvals import decide
from mcp_servers.hub.cli.context import operator
from mcp_servers.hub.cli.demo_round import DemoFailed, Seat, say, seated
from mcp_servers.hub.cli.mfa import draw_code
from mcp_servers.hub.cli.proving import prove
from mcp_servers.hub.requests import WAIT_META
from mcp_servers.hub.runtime import Runtime

ADA = "person:demo-ada"
# Into a shelf of its own, which no search of the demo looks at: what an agent brings is text from outside.
_CALL = {
    "documents": [{"title": "A note of the demo", "text": "The lantern of the ferry is out of oil."}],
    "persona": "demo-notes",
    "reason": "The writers asked for it.",
}
_TTL_S, _WAIT_S, _LOOK_EVERY_S, _TRIES = 600, 300, 0.05, 3


@dataclass(frozen=True, slots=True)
class _Ada:
    """An approver of this process alone: known to its desk and to no other hub, with a factor that ends by itself."""

    desk: Desk
    factors: Factors
    secret: str


async def go_ask(runtime: Runtime, url: str, *, at_terminal: bool, in_slack: bool) -> None:
    """The gated call from asking to the audit.

    Args:
        runtime: The demo's.
        url: Where its hub is.
        at_terminal: A person is there who types the code; else it is computed.
        in_slack: This machine is set up for Slack, which the demo leaves alone.

    Raises:
        DemoFailed: A step did not go as said.
    """
    async with seated(url, runtime.tokens, "tier:bronze") as bronze:
        if await runtime.approvals.factors.begun():
            await _leave_it_to_them(runtime, bronze)
            return
        async with _ada(runtime) as ada:
            await _ask(runtime, bronze, ada, at_terminal=at_terminal)
    if in_slack:
        say("slack", "is set up on this machine: `body-broker serve` asks there too, the demo does not")


async def _ask(runtime: Runtime, bronze: Seat, ada: _Ada, *, at_terminal: bool) -> None:
    calling, shown = await _pending(runtime, bronze)
    try:
        _show(runtime, shown)
        if at_terminal:
            click.echo("\nYou are the approver now. Scan this with an authenticator app; it ends with the demo:\n")
            draw_code(uri_of(ada.secret, ADA))
            click.echo(f"\nOr type this into the app: {ada.secret}\n")
        else:
            say("approver", f"{ADA}, thrown away after this step; nobody types, so the demo computes its code itself")
        decided = await _yes(ada, shown, at_terminal=at_terminal)
        say("says yes", f"{ADA} with a code, by the path of `body-broker approvals approve {shown.id[:8]}…`")
        result = await calling
    finally:
        calling.cancel()
        await asyncio.wait([calling])  # the client fails to close where an answer still comes
    if decided.standing != "approved" or result.is_error:
        raise DemoFailed(f"the approved call did not run: {decided.standing}, {result.structured_content}")
    content: Any = result.structured_content
    say("runs", f"once, with exactly those arguments: {content['documents'][0]['status']}")
    await _recorded(runtime, shown)


async def _pending(runtime: Runtime, bronze: Seat) -> tuple[asyncio.Task[CallToolResult], Approval]:
    """The call that waits, and what people are asked."""
    for _ in range(2):  # an earlier demo that was killed may have left its answer to be taken first
        told: list[str] = []
        calling = asyncio.create_task(_call(bronze, told))
        while not calling.done():
            for each in await runtime.approvals.desk.everything(limit=5, standings=("pending",)):
                if told and each.requester == bronze.who and each.tool == "ingest_documents":
                    say("asks", f"{bronze.who} calls ingest_documents: {told[0]}")
                    return calling, each
            await asyncio.sleep(_LOOK_EVERY_S)
    raise DemoFailed(f"nobody was asked for a write of {bronze.who}")


async def _call(bronze: Seat, told: list[str]) -> CallToolResult:
    async def hear(progress: float, total: float | None, message: str | None) -> None:  # noqa: ARG001 - the client's form
        told.append(message or "")

    return await bronze.client.call_tool("ingest_documents", _CALL, progress_callback=hear, meta={WAIT_META: _WAIT_S})


def _show(runtime: Runtime, approval: Approval) -> None:
    card = Card.of(approval, runtime.approvals.people, None, datetime.now(UTC))
    say("card", card.headline, "yellow")
    say("", f"asked by {card.requester}, fingerprint {card.fingerprint}; {card.rules[0].text}", "yellow")


async def _yes(ada: _Ada, shown: Approval, *, at_terminal: bool) -> Approval:
    for left in range(_TRIES - 1, -1, -1):
        code = None if at_terminal else code_at(ada.secret, time.time())  # noqa: TID251 - the factors read the same clock
        try:
            return await decide(ada.desk, shown, await prove(ada.factors, ADA, code), "approve")
        except BodyBrokerError as error:
            if not left:
                raise DemoFailed(f"the yes did not count: {error.message}") from error
            click.echo(f"  {error.message} {error.next_step}")
    raise AssertionError("the last try returns or raises")


async def _leave_it_to_them(runtime: Runtime, bronze: Seat) -> None:
    """Where people are enrolled, the demo makes no approver beside them: it shows the request and takes it back."""
    calling, shown = await _pending(runtime, bronze)
    try:
        _show(runtime, shown)
        taken_back = await bronze.ask("cancel_approval", {"id": shown.id})
    finally:
        calling.cancel()
        await asyncio.wait([calling])  # the client fails to close where an answer still comes
    say("enrolled", "people are enrolled here, so the demo makes no approver of its own: they would decide, with")
    say("", "`body-broker approvals approve ID --as person:NAME`, on the hub's page, or in Slack")
    say("taken", f"back by {bronze.who}: {taken_back['standing']}")


async def _recorded(runtime: Runtime, approval: Approval) -> None:
    records = [entry.record for entry in await tail(runtime.stores.pool, 200, action=approval.tool)]
    mine = [
        each for each in reversed(records) if each.details.get("approval") == approval.id and each.kind != "outcome"
    ]
    words = {"asked": "asked by", "decision": "run for"}
    steps = [f"{words.get(each.kind, f'{each.verdict} by')} {each.requester}" for each in mine]
    if not any(step == f"approved by {ADA}" for step in steps):
        raise DemoFailed(f"the yes is not on the audit: {steps}")
    say("recorded", ", ".join(steps))


@asynccontextmanager
async def _ada(runtime: Runtime) -> AsyncGenerator[_Ada]:
    approvals, pool = runtime.approvals, runtime.stores.pool
    people = People({**approvals.people.persons, ADA: Person(groups=frozenset({"sre"}))}, {}, {})
    factors = Factors(
        pool=pool,
        auditor=runtime.auditor,
        key=runtime.secrets.derive("factors"),
        people=people,
        rp=approvals.relying_party,
        throw_aways=True,
    )
    desk = Desk(
        pool=pool,
        auditor=runtime.auditor,
        policy=runtime.gate.policy,
        people=people,
        definitions=approvals.definitions,
        notify=False,
        open_max=runtime.settings.approvals_open_max,
        pages=lambda: None,
    )
    info, secret = await factors.throw_away(ADA, ttl_s=_TTL_S, by=operator())
    # Whoever runs it asks again who the voters are now; no channel but the demo's own takes this factor.
    known, approvals.desk.people = approvals.desk.people, people
    try:
        yield _Ada(desk, factors, secret)
    finally:
        approvals.desk.people = known
        await factors.revoke(info.id, by=operator())
