"""A client of a hub calls what a server of others offers: its answer is text from outside, its errors and its death are told in our words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from mcp_types import TextContent

from body_broker.settings import Settings
from mcp_servers.hub.wire import OUTSIDE_MARK, OUTSIDE_META
from tests.counterparts.upstream import HOSTILE, Saying, noted, program, serving, tool
from tests.mcp_servers.hub.conftest import Hub, error_of
from tests.mcp_servers.hub.deeds import APPROVERS, Deeds, Studio, pending, say, settles
from tests.ports import free_port
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio

ERAS = pytest.mark.parametrize("legacy", [False, True], ids=["2026-07-28", "2025-11-25"])
ANNA = ("person:anna", "engineer")
READS = ("echo", "fail", "raise", "lie", "die", "progress", "hang")
LIES = tool("lie", outputSchema={"type": "object", "properties": {"n": {"type": "integer"}}})
TOOLS = [*(tool(name) for name in READS if name != "lie"), LIES, tool("spawn")]
Open = Callable[..., AbstractAsyncContextManager[Hub]]


@pytest.fixture
def open_joined(settings_for: Callable[..., Settings], tmp_path: Path, redis: object) -> Open:
    """A hub that has joined one server, given by the lines that say where it is."""
    _ = redis  # flushed before the test
    approvers = tmp_path / "approvers.toml"
    approvers.write_text(APPROVERS, encoding="utf-8")

    def make(where: str, *, reads: tuple[str, ...] = READS, works: bool = False) -> AbstractAsyncContextManager[Hub]:
        file = tmp_path / "upstreams.toml"
        rows = "".join(f'[ex.tools.{name}]\ngroup = "retrieval"\n' for name in reads)
        rest = '[ex.prompts.p]\ngroup = "retrieval"\n[ex.resources."ex://r"]\ngroup = "retrieval"\n'
        file.write_text(f"[ex]\n{where}\nwatch_s = 1\n{rows}{rest}", encoding="utf-8")
        return Studio(settings_for, approvers, Deeds()).hub(works=works, upstreams=file)

    return make


def child(say: Path, *, legacy: bool = False) -> str:
    return f"command = {json.dumps(list(program(say, legacy=legacy)))}"


async def lists(hub: Hub, name: str) -> None:
    async def find() -> bool:
        async with hub.client(*ANNA) as client:
            return name in {each.name for each in (await client.list_tools()).tools}

    await wait_until(find, f"the hub lists {name}")


async def call(hub: Hub, name: str, **arguments: Any) -> Any:
    async with hub.client(*ANNA) as client:
        return await client.call_tool(name, arguments)


def whole(result: Any) -> str:
    return json.dumps(result.model_dump(mode="json"))


@ERAS
async def test_what_it_answers_is_marked_as_from_outside(open_joined: Open, *, legacy: bool) -> None:
    saying = Saying(tools=TOOLS, prompts=[{"name": "p"}], resources=[{"uri": "ex://r", "name": "r"}])
    async with (
        serving(saying, legacy=legacy) as served,
        open_joined(f'url = "{served.url}"') as hub,
    ):
        await lists(hub, "ex_echo")
        async with hub.client(*ANNA) as client:
            answer = await client.call_tool("ex_echo", {"text": "one\u202e"})
            prompt = await client.get_prompt("ex_p", {})
            resource = await client.read_resource("ex+ex://r")

    assert not answer.is_error
    assert answer.structured_content == {"said": {"text": "one"}}
    for found in (answer, prompt, resource):
        assert (found.meta or {})[OUTSIDE_META] is True
    assert isinstance(answer.content[0], TextContent)
    assert answer.content[0].text.startswith(OUTSIDE_MARK)
    assert "what ex://r holds" in whole(resource)


@ERAS
async def test_its_errors_are_data_and_ours_say_what_happened(open_joined: Open, *, legacy: bool) -> None:
    async with (
        serving(Saying(tools=TOOLS), legacy=legacy) as served,
        open_joined(f'url = "{served.url}"') as hub,
    ):
        await lists(hub, "ex_echo")
        said = await call(hub, "ex_fail")
        raised = await call(hub, "ex_raise")
        lied = await call(hub, "ex_lie")
        after = await call(hub, "ex_echo")

    assert error_of(said)["code"] == "upstream_failed"
    assert HOSTILE not in json.dumps(said.structured_content)
    assert HOSTILE in whole(said)
    assert said.meta[OUTSIDE_META] is True
    assert (error_of(raised)["code"], error_of(raised)["retryable"]) == ("unavailable", True)
    assert HOSTILE not in whole(raised)
    assert error_of(lied)["code"] == "upstream_failed"
    assert "seven" not in whole(lied)
    assert not after.is_error


@ERAS
async def test_a_program_that_dies_is_a_clear_error_and_the_next_call_has_a_new_one(
    open_joined: Open, tmp_path: Path, *, legacy: bool
) -> None:
    file = tmp_path / "say.json"
    Saying(tools=TOOLS).write(file)
    async with open_joined(child(file, legacy=legacy)) as hub:
        await lists(hub, "ex_die")
        died = error_of(await call(hub, "ex_die"))
        assert (died["code"], died["retryable"]) == ("unavailable", True)
        assert "upstream server ex" in died["message"]
        assert not (await call(hub, "ex_echo")).is_error
    assert (noted(file).count("dies"), noted(file).count("began")) == (2, 3)  # a read is asked again, once


@ERAS
async def test_a_server_that_is_away_is_a_clear_error_and_used_again_once_it_is_back(
    open_joined: Open, *, legacy: bool
) -> None:
    port = free_port()
    async with open_joined(f'url = "http://127.0.0.1:{port}/mcp"') as hub:
        async with serving(Saying(tools=TOOLS), port=port, legacy=legacy):
            await lists(hub, "ex_echo")
        away = error_of(await call(hub, "ex_echo"))
        assert (away["code"], away["retryable"]) == ("unavailable", True)
        async with serving(Saying(tools=TOOLS), port=port, legacy=legacy):

            async def works() -> bool:
                return not (await call(hub, "ex_echo")).is_error

            await wait_until(works, "the hub uses it again")


async def test_an_effect_that_it_died_over_is_an_unknown_outcome(open_joined: Open, tmp_path: Path) -> None:
    file = tmp_path / "say.json"
    Saying(tools=TOOLS).write(file)
    async with open_joined(child(file), reads=("echo",), works=True) as hub:
        await lists(hub, "ex_die")
        async with hub.client(*ANNA) as client:
            assert error_of(await client.call_tool("ex_die", {}))["code"] == "approval_pending"
            approval, _ = await pending(hub.runtime.stores.pool, "ex_die")
            await say(hub.runtime.approvals.desk, approval)
            ended = await settles(hub.runtime.approvals.desk, approval, "unknown")
            assert (ended.error or {})["code"] == "outcome_unknown"
        assert not (await call(hub, "ex_echo")).is_error
    assert noted(file).count("dies") == 1


@ERAS
async def test_its_progress_is_passed_on_and_who_leaves_is_told_to_it(open_joined: Open, *, legacy: bool) -> None:
    heard: list[tuple[float, float | None, str | None]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, total, message))

    saying = Saying(tools=TOOLS)
    async with serving(saying, legacy=legacy) as served, open_joined(f'url = "{served.url}"') as hub:
        await lists(hub, "ex_progress")
        async with hub.client(*ANNA) as client:
            await client.call_tool("ex_progress", {}, progress_callback=hear)
            left = asyncio.create_task(client.call_tool("ex_hang", {}))
            await wait_until(lambda: "hangs" in saying.notes, "it hangs")
            left.cancel()
            await wait_until(lambda: "cancelled" in saying.notes, "it is told")

    assert [(done, total) for done, total, _ in heard][-1:] == [(3, 3)]
    assert not [message for _, _, message in heard if message and HOSTILE in message]
