"""A room of deeds that people are asked for, and a studio of hubs in which they are: some serve, some work, over the same stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcp import Client

from approvals.desk import Desk
from approvals.model import Approval, Verdict, Voter
from body_broker.calls import Arguments, Call, Caller, Preview, Resource, ResourceText, Result, Room, Run, Tool
from body_broker.errors import Conflict, NotFound, Unavailable
from body_broker.settings import Settings
from body_broker.storage.postgres import Pool
from body_broker.work.worker import Worker
from mcp_servers.hub.requests import WAIT_META
from mcp_servers.hub.rooms import ROOMS
from mcp_servers.hub.runtime import Runtime, open_runtime
from mcp_servers.hub.serve import Address, listening
from tests.mcp_servers.hub.conftest import Hub
from tests.mcp_servers.hub.fixture_room import Seen
from tests.waiting import wait_until

APPROVERS = """
[people.otto]
groups = ["sre"]
slack = "U0OTTO000"

[people.vera]
groups = ["admin", "security"]
slack = "U0VERA000"

[people.zoe]
groups = ["art"]
"""


@dataclass
class Deeds:
    """What was done, what holds it back, and what happens while one is foreseen."""

    done: list[tuple[str, str, str | None]] = field(default_factory=list[tuple[str, str, str | None]])
    kept: dict[str, str] = field(default_factory=dict[str, str])
    failures: int = 0
    registered: bool = True
    foreseen: int = 0
    meanwhile: Callable[[], Awaitable[None]] | None = None
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)


class Deed(Arguments):
    name: str
    note: str = ""


class Did(Result):
    did: str
    under: str | None = None
    tainted: bool = False


async def _do(arguments: Deed, call: Call, deeds: Deeds) -> Did:
    deeds.done.append((call.operation.name, arguments.name, call.key))
    return Did(did=arguments.name, under=call.key, tainted=call.tainted)


async def _keep(arguments: Deed, call: Call, deeds: Deeds) -> Did:
    """The same under a key is the same."""
    if call.basis != str(len(deeds.kept)):
        raise Conflict("Something else was kept meanwhile.")
    assert call.key is not None
    deeds.kept[call.key] = arguments.name
    return await _do(arguments, call, deeds)


async def _foresee(arguments: Deed, caller: Caller, deeds: Deeds) -> Preview:
    deeds.foreseen += 1
    if deeds.meanwhile is not None:
        await deeds.meanwhile()
    if arguments.name == "nothing":
        raise NotFound("There is nothing of that name.")
    text = f"+ {arguments.name} by {caller.asker}"
    return Preview(headline=f"Keep {arguments.name} for good", text=text, basis=str(len(deeds.kept)))


async def _stick(arguments: Deed, call: Call, deeds: Deeds) -> Did:
    deeds.begun.set()
    await call.progress(1, 2, "half way")
    await deeds.release.wait()
    return await _do(arguments, call, deeds)


async def _stumble(arguments: Deed, call: Call, deeds: Deeds) -> Did:
    if deeds.failures > 0:
        deeds.failures -= 1
        raise Unavailable("The far side is away.")
    return await _do(arguments, call, deeds)


async def _break(_arguments: Deed, _call: Call, _deeds: Deeds) -> Did:
    raise RuntimeError("secret dsn=postgres://user:hunter2@db/prod")


async def _scannable(_arguments: Deed, _caller: Caller, deeds: Deeds) -> frozenset[str]:
    return frozenset({"registered_repository"}) if deeds.registered else frozenset[str]()


async def _hear(_arguments: Deed, _call: Call, _deeds: Deeds) -> Did:
    return Did(did="a rumour")


async def _read(arguments: Deed, _call: Call, _deeds: Deeds) -> ResourceText:
    return ResourceText(content=arguments.name, from_outside=False)


def _row(name: str, run: Run, group: str = "write", **more: Any) -> Tool:  # fields of Tool
    return Tool(name=name, run=run, group=group, title=f"Do {name}", description=f"Deed {name}.", **more)


ROOM = Room(
    name="deeds",
    title="Deeds",
    description="Deeds of the tests.",
    tools=(
        _row("deed_once", _do, effect="once"),
        _row("deed_keep", _keep, effect="repeatable", foresees=_foresee),
        _row("deed_stick", _stick, effect="once"),
        _row("deed_stick_again", _stick, effect="repeatable"),
        _row("deed_stumble", _stumble, effect="repeatable"),
        _row("deed_break", _break, effect="once"),
        _row("deed_refuse", _keep, effect="once"),
        _row("deed_outside", _do, effect="once", output="outside"),
        _row("deed_destroy", _do, effect="once", modifiers=frozenset({"destructive"})),
        _row("deed_scan", _do, "security_scan", effect="once", establishes=_scannable),
        _row("deed_hear", _hear, "retrieval", output="outside"),
        _row("deed_free", _do, "retrieval"),
    ),
    resources=(
        Resource(
            name="deed_note",
            run=_read,
            group="retrieval",
            modifiers=frozenset({"external"}),
            title="Note",
            description="A note.",
            uri="deed://{name}",
        ),
    ),
)


@dataclass
class Studio:
    """Processes over the same stores: their settings, and what was done in them."""

    settings: Callable[..., Settings]
    approvers: Path
    deeds: Deeds

    @asynccontextmanager
    async def runtime(self, **overrides: Any) -> AsyncGenerator[Runtime]:
        """A process that neither serves nor works."""
        name = overrides.pop("name", "hub")
        settings = self.settings(approvers=self.approvers, **overrides)
        extra: dict[str, object] = {"deeds": self.deeds}
        async with open_runtime(settings, (*ROOMS, ROOM), name=name, extra_services=extra) as runtime:
            yield runtime

    @asynccontextmanager
    async def hub(self, *, works: bool = True, **overrides: Any) -> AsyncGenerator[Hub]:
        """A process that serves, and works too if it is told so."""
        async with self.runtime(**overrides) as runtime, listening(runtime, Address("127.0.0.1", 0)) as served:
            found = Hub(served.url, runtime, Seen(), served.front)
            if not works:
                yield found
                return
            async with laboring(runtime):
                yield found


@asynccontextmanager
async def laboring(runtime: Runtime, *, backoff_s: float = 0.01) -> AsyncGenerator[Worker]:
    """A worker for approved calls alone, quick to try again."""
    worker = Worker(
        runtime.stores.pool,
        runtime.executor.handlers(),
        database_url=runtime.stores.database_url,
        backoff_s=backoff_s,
        grace_s=0.05,
    )
    task = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop()
        await task


async def pending(pool: Pool, tool: str) -> tuple[str, str]:
    """Id and digest of the request that waits for this tool, once it does."""

    async def find() -> Any:
        return await pool.fetchrow(
            "SELECT id, digest FROM approval WHERE tool = $1 AND state = 'pending' ORDER BY ordinal DESC LIMIT 1", tool
        )

    row = await wait_until(find, f"people are asked for {tool}")
    return row["id"], row["digest"]


async def say(
    desk: Desk, approval_id: str, verdict: Verdict = "approve", *, who: str = "person:otto", reason: str | None = None
) -> Approval:
    """Somebody's vote in Slack."""
    digest = (await desk.get(approval_id)).digest
    voter = Voter(person=who, via="slack", evidence={"message": "1.2"})
    return await desk.vote(approval_id, digest=digest, voter=voter, verdict=verdict, reason=reason)


async def settles(desk: Desk, approval_id: str, standing: str) -> Approval:
    """The approval once it stands so."""

    async def find() -> Approval | None:
        found = await desk.get(approval_id)
        return found if found.standing == standing else None

    found = await wait_until(find, f"{approval_id} is {standing}")
    assert found is not None
    return found


async def do(client: Client, tool: str, *, wait_s: float = 0, **more: Any) -> Any:
    """One call of a deed, as patient as it is told."""
    arguments: Mapping[str, Any] = {"name": "lamp", **more.pop("arguments", {})}
    return await client.call_tool(tool, dict(arguments), meta={WAIT_META: wait_s}, **more)
