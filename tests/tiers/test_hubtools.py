from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx2
import pytest

from body_broker.calls import Caller
from body_broker.errors import BadInput, Unauthenticated, Unavailable
from body_broker.settings import Settings
from mcp_servers.hub.inner_door import InnerDoor
from mcp_servers.hub.protocol import Protocol
from mcp_servers.hub.runtime import Runtime, open_runtime
from tests.mcp_servers.hub.conftest import settings_for
from tests.mcp_servers.hub.conversing import TALKS, Plan, asker_of
from tests.mcp_servers.hub.fixture_room import ROOM, Seen
from tests.tiers.clock import Clock
from tests.tiers.looping import ToolCounts
from tests.waiting import wait_until
from tiers.deadline import Deadline
from tiers.hubtools import LISTED_S, TOKEN_S, Called, HubTools
from tiers.model import Asker, Tier

__all__ = ["settings_for"]


class Line(httpx2.AsyncBaseTransport):
    """What is between a client and the door: counts what goes through, and breaks or falls silent when told."""

    def __init__(self, inside: httpx2.AsyncClient) -> None:
        self._inside = inside
        self.sent: list[str] = []
        self.broken = self.silent = False
        self.opened = 0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.sent.append(request.headers["mcp-method"])
        if self.broken:
            raise httpx2.ConnectError("the line is cut")
        if self.silent:
            await asyncio.get_running_loop().create_future()
        return await self._inside.send(request, auth=None)

    def client(self, **given: Any) -> httpx2.AsyncClient:
        self.opened += 1
        return httpx2.AsyncClient(**given, transport=self)


@dataclass
class Bench:
    """The tools of a hub, at the far end of a line."""

    runtime: Runtime
    seen: Seen
    line: Line
    tools: HubTools
    counts: ToolCounts
    minted: list[tuple[str, ...]] = field(default_factory=list[tuple[str, ...]])

    async def asker(self, who: str = "anna", conversation: str = "cnv_of_the_tests", role: str = "engineer") -> Asker:
        found = await asker_of(self.runtime, f"person:{who}", role)
        return Asker(caller=found.caller, conversation=conversation)

    async def call(self, asker: Asker, name: str = "fx_echo", tier: Tier = Tier.SILVER, **arguments: Any) -> Called:
        return await self.tools.call(asker, tier, name, arguments, deadline=Deadline.after(60))


@pytest.fixture
async def bench(settings_for: Callable[..., Settings], redis: object) -> AsyncIterator[Bench]:
    _ = redis  # flushed before the test
    async with open_bench(settings_for()) as found:
        yield found


@asynccontextmanager
async def open_bench(settings: Settings) -> AsyncGenerator[Bench]:
    seen, counts, minted = Seen(), ToolCounts(), list[tuple[str, ...]]()
    extra: dict[str, object] = {"fixture": seen, "talks": Plan()}
    async with open_runtime(settings, (ROOM, TALKS), extra_services=extra) as runtime:
        protocol = Protocol(runtime.gate, runtime.listings, runtime.limits, runtime.bus)
        door = InnerDoor(protocol, runtime.identities, settings)

        async def mint(asker: Caller, actor: str, conversation: str, ttl_s: float, /, *, key: str | None = None) -> str:
            minted.append((actor, conversation) if key is None else (actor, conversation, key))
            return await runtime.tokens.mint(asker, actor, conversation, ttl_s, key=key)

        async with door.serving(), door.client() as inside:
            line = Line(inside)
            async with HubTools.opened(line.client, mint, counts) as tools:
                yield Bench(runtime, seen, line, tools, counts, minted)


async def test_a_tool_is_called_and_its_result_comes_as_text_and_as_data(bench: Bench) -> None:
    called = await bench.call(await bench.asker(), text="the ferry")

    assert (called.outcome, called.outside) == ("ok", False)
    assert called.structured == {"said": "the ferry", "count": 1, "tainted": False}
    assert '"said":"the ferry"' in called.text
    assert bench.counts.tools == [("fx_echo", "ok")]
    assert bench.line.sent == ["tools/call"]


async def test_text_from_outside_is_known_as_such(bench: Bench) -> None:
    assert (await bench.call(await bench.asker(), "fx_outside")).outside


@pytest.mark.parametrize(
    ("name", "arguments", "outcome"),
    [
        ("fx_admin_read", {}, "denied"),
        ("no_such_tool", {}, "unknown_tool"),
        ("fx_echo", {"count": 11}, "bad_input"),
        ("fx_fail", {}, "internal"),
        ("tx_huge", {}, "too_large"),
    ],
)
async def test_an_error_is_an_outcome_with_words_for_whoever_reads_it(
    bench: Bench, name: str, arguments: dict[str, Any], outcome: str
) -> None:
    called = await bench.call(await bench.asker(), name, **arguments)

    assert called.outcome == outcome
    assert called.text
    assert "hunter2" not in called.text
    assert bench.counts.tools == [(name, outcome)]


async def test_one_client_serves_every_conversation_with_a_token_of_its_own(bench: Bench) -> None:
    askers = [await bench.asker(who, f"cnv_of_{who}") for who in ("anna", "tom", "mira")]

    found = await asyncio.gather(*(bench.call(asker, "tx_deep") for asker in askers * 5))

    assert [called.text for called in found] == [
        f"1 deep, as person:{who}>tier:silver" for who in ("anna", "tom", "mira")
    ] * 5
    assert bench.line.opened == 1


async def test_a_token_is_minted_once_for_a_conversation_and_tier_and_anew_before_it_ends(
    clock: Clock, bench: Bench
) -> None:
    anna = await bench.asker()
    another = Asker(caller=anna.caller, conversation="cnv_another")
    for _ in range(3):
        await bench.call(anna)
    await bench.call(another)
    await bench.call(anna, tier=Tier.BRONZE)
    assert bench.minted == [
        ("tier:silver", "cnv_of_the_tests"),
        ("tier:silver", "cnv_another"),
        ("tier:bronze", "cnv_of_the_tests"),
    ]

    clock.move(TOKEN_S * 0.7)
    await bench.call(anna)
    assert len(bench.minted) == 3
    clock.move(TOKEN_S * 0.15)
    await bench.call(anna)
    assert len(bench.minted) == 4


async def test_a_call_under_a_key_has_a_token_of_its_own_which_no_other_call_gets(bench: Bench) -> None:
    anna, key, deadline = await bench.asker(), "job_of_the_tests 3.1", Deadline.after(60)
    conversation = ("tier:bronze", "cnv_of_the_tests")
    for given in (key, None, key, None):
        called = await bench.tools.call(anna, Tier.BRONZE, "tx_deep", {}, deadline=deadline, key=given)
        assert called.text == "1 deep, as person:anna>tier:bronze"
    assert bench.minted == [(*conversation, key), conversation, (*conversation, key)]

    with pytest.raises(BadInput):
        await bench.tools.call(anna, Tier.BRONZE, "tx_deep", {}, deadline=deadline, key="apr_of_the_tests")


async def test_which_tools_may_be_called_again_under_their_key_is_known(bench: Bench) -> None:
    offered = await bench.tools.offered(await bench.asker(), Tier.BRONZE, ("fx_echo", "fx_wait_effect", "fx_draft"))
    assert {tool.name: (tool.read_only, tool.repeatable) for tool in offered} == {
        "fx_echo": (True, True),
        "fx_wait_effect": (False, True),
        "fx_draft": (False, False),
    }


async def test_a_token_is_nobody_elses_even_in_a_conversation_of_the_same_name(bench: Bench) -> None:
    for who in ("anna", "tom"):
        called = await bench.call(await bench.asker(who), "tx_deep")
        assert called.text == f"1 deep, as person:{who}>tier:silver"


async def test_a_token_is_of_one_token_one_depth_and_the_sessions_that_it_was_minted_under(bench: Bench) -> None:
    anna = await bench.asker()
    again = await bench.asker()  # the same login, another token of it
    deeper = replace(anna, caller=replace(anna.caller, depth=3))
    inside = replace(anna, caller=replace(anna.caller, conversation_of="cnv_above-1234", ancestors=()))
    assert (again.caller.session, again.conversation) == (anna.caller.session, anna.conversation)
    assert again.caller.token_id != anna.caller.token_id

    said = [(await bench.call(asker, "tx_deep")).text for asker in (anna, again, deeper, inside, anna)]

    assert said == [f"{depth} deep, as person:anna>tier:silver" for depth in (1, 1, 4, 1, 1)]
    assert len(bench.minted) == 4
    await bench.runtime.tokens.revoke(jti=anna.caller.token_id)
    assert (await bench.call(again, "tx_deep")).outcome == "ok"


async def test_what_a_chain_is_shown_is_remembered_for_a_minute_and_for_that_chain_alone(
    clock: Clock, bench: Bench
) -> None:
    anna, sam = await bench.asker(), await bench.asker("sam", role="security")

    shown = await bench.tools.offered(anna, Tier.SILVER)
    assert await bench.tools.offered(anna, Tier.SILVER) == shown
    assert bench.line.sent == ["tools/list"]
    assert "tx_state" in {tool.name for tool in shown}
    assert "tx_state" not in {tool.name for tool in await bench.tools.offered(sam, Tier.SILVER)}
    assert {tool.name: tool.read_only for tool in await bench.tools.offered(anna, Tier.BRONZE)}["fx_draft"] is False
    assert bench.line.sent == ["tools/list"] * 3

    clock.move(LISTED_S + 1)
    await bench.tools.offered(anna, Tier.SILVER)
    assert bench.line.sent == ["tools/list"] * 4


async def test_of_the_names_that_are_wanted_those_are_offered_that_are_shown(bench: Bench) -> None:
    offered = await bench.tools.offered(await bench.asker(), Tier.SILVER, ("fx_admin_read", "fx_outside", "fx_echo"))

    assert [tool.name for tool in offered] == ["fx_echo", "fx_outside"]
    assert offered[0].read_only
    assert offered[0].description == "Fixture fx_echo."
    assert offered[0].schema["properties"]["text"] == {"type": "string"}


async def test_what_one_identity_was_listed_does_not_stand_in_the_way_of_anothers_call(bench: Bench) -> None:
    anna, sam = await bench.asker(), await bench.asker("sam", role="security")
    await bench.tools.offered(anna, Tier.SILVER)
    await bench.tools.offered(sam, Tier.SILVER)

    assert (await bench.call(anna, "tx_state")).outcome == "ok"
    # Nor is anything listed that nobody asked for.
    assert bench.line.sent == ["tools/list", "tools/list", "tools/call"]


async def test_a_line_that_breaks_is_an_outcome_and_the_next_call_has_a_new_one(bench: Bench) -> None:
    anna = await bench.asker()
    await bench.call(anna)
    bench.line.broken = True

    assert (await bench.call(anna)).outcome == "unavailable"
    with pytest.raises(Unavailable):
        await bench.tools.offered(anna, Tier.SILVER)
    bench.line.broken = False

    assert (await bench.call(anna)).outcome == "ok"
    assert bench.line.opened > 1


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>",
        b"[]",
        b'{"error":"secret"}',
        b'{"result":{"secret":1}}',
        b'{"result":{"resultType":"complete","content":["secret"]}}',
    ],
    ids=str,
)
async def test_an_answer_that_cannot_be_read_is_an_outcome_and_stands_in_the_log(
    bench: Bench, answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def post(_headers: Sequence[tuple[bytes, bytes]], _body: bytes) -> tuple[int, bytes]:
        return 200, answer

    async with HubTools.opened(bench.line.client, bench.runtime.tokens.mint, ToolCounts(), post) as tools:
        called = await tools.call(await bench.asker(), Tier.SILVER, "fx_echo", {}, deadline=Deadline.after(60))

    assert called.outcome == "unavailable"
    levels = [record.levelname for record in caplog.records if "hub_answer_not_read" in record.getMessage()]
    assert levels == ["WARNING"]
    assert "secret" not in caplog.text + called.text


async def test_a_silent_hub_costs_a_call_its_deadline_and_no_more(clock: Clock, bench: Bench) -> None:
    anna = await bench.asker()
    bench.line.silent = True
    calling = asyncio.create_task(bench.call(anna))
    listing = asyncio.create_task(bench.tools.offered(anna, Tier.SILVER))
    await wait_until(lambda: len(bench.line.sent) == 2, "both are on their way")

    clock.move(61)

    assert (await calling).outcome == "timeout"
    with pytest.raises(Unavailable):
        await listing
    bench.line.silent = False
    assert (await bench.call(anna)).outcome == "ok"


async def test_whoever_came_first_and_left_takes_the_client_from_nobody(bench: Bench) -> None:
    anna, tom = await bench.asker(), await bench.asker("tom")
    first = asyncio.create_task(bench.call(anna, "fx_wait_plain"))
    await wait_until(bench.seen.started.is_set, "it has begun")
    first.cancel()
    await asyncio.wait({first})

    assert (await bench.call(tom)).outcome == "ok"
    assert bench.line.opened == 1


async def test_an_asker_whose_token_was_revoked_is_answered_no_more(bench: Bench) -> None:
    anna = await bench.asker()
    await bench.call(anna)
    await bench.runtime.tokens.revoke(jti=anna.caller.token_id)

    async def over() -> bool:
        try:
            await bench.call(anna)
        except Unauthenticated:
            return True
        return False

    await wait_until(over, "nobody is known any more")
    with pytest.raises(Unauthenticated):
        await bench.tools.offered(anna, Tier.SILVER)


def test_its_library_is_loaded_by_who_uses_tiers_and_not_before() -> None:
    ask = "import sys, tiers.hubtools, tiers.toolloop; print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True, timeout=60)

    assert {"fastmcp", "mcp"}.isdisjoint(said.stdout.split())
