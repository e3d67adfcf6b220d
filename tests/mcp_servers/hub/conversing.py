"""Owns a served hub in which a tool begins conversations: what a test has it do there it does as a tier, for whoever called."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from body_broker.calls import Arguments, Call, Caller, Result, Room
from body_broker.settings import Settings
from mcp_servers.hub.inner_door import InnerDoor
from mcp_servers.hub.protocol import Protocol
from mcp_servers.hub.rooms import ROOMS
from mcp_servers.hub.runtime import Runtime, open_runtime
from mcp_servers.hub.serve import Address, listening
from tests.mcp_servers.hub.conftest import Hub
from tests.mcp_servers.hub.fixture_room import ROOM, Seen, row
from tiers.counts import Counts
from tiers.deadline import Deadline
from tiers.hubtools import Called, HubTools
from tiers.model import Asker, Tier

HUGE = 10 * 1024 * 1024
CONVERSATION = "cnv_of_the_tests"


class Converse(Arguments):
    about: str = ""


class Conversed(Result):
    said: Any = None
    from_outside: bool = False

    def outside(self) -> bool:
        return self.from_outside


class Letter(Result):
    text_of_it: str

    def text(self) -> str | None:
        return self.text_of_it


@dataclass
class Plan:
    """What happens in a conversation, and what happened in its tools.

    Attributes:
        together: Who meets here goes on only once as many are in as the barrier has places.
    """

    do: Callable[[Converse, Call], Awaitable[Conversed]] | None = None
    together: asyncio.Barrier = field(default_factory=lambda: asyncio.Barrier(2))
    log: list[str] = field(default_factory=list[str])


async def converse(arguments: Converse, call: Call, plan: Plan) -> Conversed:
    assert plan.do is not None
    return await plan.do(arguments, call)


async def huge(_arguments: Converse, _call: Call, _plan: Plan) -> Letter:
    return Letter(text_of_it="x" * HUGE)


async def long(arguments: Converse, _call: Call, _plan: Plan) -> Letter:
    return Letter(text_of_it=(arguments.about or "long") * 10_000)


async def meet(arguments: Converse, _call: Call, plan: Plan) -> Letter:
    await plan.together.wait()
    return Letter(text_of_it=arguments.about)


async def take_turns(arguments: Converse, _call: Call, plan: Plan) -> Letter:
    plan.log.append(f"{arguments.about} begins")
    await asyncio.sleep(0)
    plan.log.append(f"{arguments.about} ends")
    return Letter(text_of_it=arguments.about)


async def deep(_arguments: Converse, call: Call, _plan: Plan) -> Letter:
    return Letter(text_of_it=f"{call.depth} deep, as {call.caller.requester}")


TALKS = Room(
    name="talks",
    title="Talks",
    description="Conversations of the tests.",
    tools=(
        row("tx_converse", converse, "draft", output="as_marked"),
        row("tx_huge", huge, "retrieval"),
        row("tx_deep", deep, "own"),
        row("tx_state", deep, "state_read"),
        row("tx_long", long, "retrieval"),
        row("tx_meet", meet, "retrieval"),
        row("tx_turn", take_turns, "draft", effect="once"),
    ),
)


@dataclass
class Scene:
    """A served hub with its inner door."""

    hub: Hub
    tools: HubTools
    plan: Plan

    @property
    def runtime(self) -> Runtime:
        return self.hub.runtime

    def as_silver(
        self, name: str, arguments: Mapping[str, Any] | None = None, *, heard: str | None = None, talk: str = "talk"
    ) -> None:
        """From now on a conversation is one call of this tool by silver; its outcome is told, and marked as it was."""

        async def do(_given: Converse, call: Call) -> Conversed:
            asker = await self.begin(call, talk, heard=heard)
            called = await self.tools.call(asker, Tier.SILVER, name, arguments or {}, deadline=Deadline.after(20))
            outside = asker.tainted or called.outside
            return Conversed(said={"outcome": called.outcome, "text": called.text[:2_000]}, from_outside=outside)

        self.plan.do = do

    async def begin(self, call: Call, talk: str = "talk", *, heard: str | None = None) -> Asker:
        inferring = self.runtime.inferring
        return await inferring.begin(call, inferring.conversation(call.caller, talk), heard_outside=heard)

    async def converse(self, client: Any) -> dict[str, Any]:
        """What came of one conversation that this client began."""
        result = await client.call_tool("tx_converse", {})
        assert not result.is_error, result.content
        said: dict[str, Any] = result.structured_content["said"]
        return said


OpenScene = Callable[..., Any]


@pytest.fixture
def open_scene(settings_for: Callable[..., Settings], redis: object) -> OpenScene:
    _ = redis  # flushed before the test

    @asynccontextmanager
    async def make(rooms: tuple[Room, ...] = (*ROOMS, ROOM, TALKS), **overrides: Any) -> AsyncGenerator[Scene]:
        seen, plan = Seen(), Plan()
        extra: dict[str, object] = {"fixture": seen, "talks": plan}
        async with (
            open_runtime(settings_for(**overrides), rooms, extra_services=extra) as runtime,
            listening(runtime, Address("127.0.0.1", 0)) as served,
            inner_tools(runtime) as tools,
        ):
            yield Scene(Hub(served.url, runtime, seen, served.front), tools, plan)

    return make


@pytest.fixture
async def scene(open_scene: OpenScene) -> AsyncGenerator[Scene]:
    async with open_scene() as found:
        yield found


@asynccontextmanager
async def inner_tools(runtime: Runtime, counts: Any = None) -> AsyncGenerator[HubTools]:
    """The tools of a runtime as its tiers have them."""
    protocol = Protocol(runtime.gate, runtime.listings, runtime.limits, runtime.bus)
    door = InnerDoor(protocol, runtime.identities, runtime.settings)
    async with (
        door.serving(),
        HubTools.opened(door.client, runtime.tokens.mint, counts or Counts(), door.post) as tools,
    ):
        yield tools


async def signed_in(runtime: Runtime, principal: str, *roles: str) -> Caller:
    """Who a new token stands for."""
    issued = await runtime.tokens.issue(principal, roles=roles, ttl_s=600)
    return await runtime.identities.authenticate(issued.token)


async def asker_of(runtime: Runtime, principal: str, *roles: str) -> Asker:
    """Somebody for whom tiers work, in a conversation of the tests."""
    return Asker(caller=await signed_in(runtime, principal, *roles), conversation=CONVERSATION)


__all__ = ["Called", "Scene", "asker_of", "inner_tools", "open_scene", "scene", "signed_in"]
