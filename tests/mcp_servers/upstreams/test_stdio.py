"""An upstream that is a program: what it is given, what is taken of it, and that nothing of it is left."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from body_broker.calls import Effect
from body_broker.errors import NotConfigured, OutcomeUnknown, Unavailable
from body_broker.storage.postgres import Pool
from mcp_servers.upstreams.auth import Credentials, variable
from mcp_servers.upstreams.later import Answer, LaterLink
from mcp_servers.upstreams.model import Upstream
from tests.counterparts.upstream import Saying, noted, program, tool
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio

ERAS = pytest.mark.parametrize("legacy", [False, True], ids=["2026-07-28", "2025-11-25"])
PATH = "/usr/local/bin:/usr/bin:/bin"


async def quiet(done: float, total: float | None = None, message: str | None = None) -> None:
    del done, total, message


async def called(link: LaterLink, name: str, effect: Effect = "none", **arguments: Any) -> Answer:
    return await link.call(name, arguments, progress=quiet, meta={}, effect=effect)


def text_of(answer: Answer) -> str:
    return answer.blocks[0]["text"]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def credentials(pool: Pool) -> Credentials:
    return Credentials(pool, bytes(32), "ex")


@pytest.fixture
def say(tmp_path: Path) -> Path:
    file = tmp_path / "say.json"
    Saying().write(file)
    return file


@asynccontextmanager
async def linked(
    credentials: Credentials, say: Path, command: tuple[str, ...], **more: Any
) -> AsyncGenerator[LaterLink]:
    link = LaterLink(Upstream(name="ex", command=command, **more), credentials, say.parent / "home", path=PATH)
    try:
        yield link
    finally:
        await link.close()


@ERAS
async def test_what_it_lists_comes_with_every_key_it_has(credentials: Credentials, say: Path, *, legacy: bool) -> None:
    extra = {"x-unknown": {"deep": [1, None, 1.0, "ü"]}, "annotations": {"readOnlyHint": True, "x-new": "hint"}}
    Saying(tools=[tool("t"), tool("u", title="")], extra={"t": extra}).write(say)

    async with linked(credentials, say, program(say, legacy=legacy)) as link:
        offer = await link.offered()

    assert offer.tools == [tool("t") | extra, tool("u", title="")]
    assert offer.protocol == ("2025-11-25" if legacy else "2026-07-28")


BY_HAND = """
import json, sys
told = {
    "initialize": '{"protocolVersion":"2025-06-18","capabilities":{"tools":{}},"serverInfo":{"name":"n","version":"1"}}',
    "tools/list": '{"tools":[{"name":"t","inputSchema":{"type":"object","x":%s}}]}',
}
for line in sys.stdin:
    asked = json.loads(line)
    if "id" in asked:
        found = told.get(asked["method"])
        said = f'"result":{found}' if found else '"error":{"code":-32601,"message":"unknown"}'
        print('{"jsonrpc":"2.0","id":%%d,%%s}' %% (asked["id"], said), flush=True)
"""


UNSOUND = ("NaN", "-Infinity", "1e999", str(2**64), str(-(2**63) - 1), "[" * 70 + "]" * 70)


@pytest.mark.parametrize("value", [1.5, 2**64 - 1, -(2**63), [[[[None]]]]])
async def test_what_json_of_ours_can_hold_comes_as_it_is(credentials: Credentials, say: Path, value: object) -> None:
    async with linked(credentials, say, (sys.executable, "-c", BY_HAND % json.dumps(value))) as link:
        assert (await link.offered()).tools[0]["inputSchema"] == {"type": "object", "x": value}


@pytest.mark.parametrize("value", UNSOUND, ids=[each[:12] for each in UNSOUND])
async def test_what_it_cannot_hold_is_not_taken(credentials: Credentials, say: Path, value: str) -> None:
    async with linked(credentials, say, (sys.executable, "-c", BY_HAND % value)) as link:
        with pytest.raises(Unavailable, match="cannot be passed on"):
            await link.offered()


@pytest.mark.parametrize("value", ["[" * 5_000 + "]" * 5_000, "{", "\\ud800"], ids=["deep", "open", "none"])
async def test_what_nobody_can_read_ends_the_connection(credentials: Credentials, say: Path, value: str) -> None:
    async with linked(credentials, say, (sys.executable, "-c", BY_HAND % value)) as link:
        with pytest.raises(Unavailable, match="was lost"):
            await link.offered()


@ERAS
async def test_a_tool_whose_headers_nobody_may_send_is_left_out_where_the_revision_says_so(
    credentials: Credentials, say: Path, *, legacy: bool
) -> None:
    fit = {"type": "object", "properties": {"a": {"type": "string", "x-mcp-header": "A"}}}
    unfit = {"type": "object", "properties": {"a": {"type": "string", "x-mcp-header": "A B"}}}
    tools = [tool("t", inputSchema=unfit), tool("u", inputSchema=fit), tool("v", inputSchema=unfit)]
    Saying(tools=tools).write(say)

    async with linked(credentials, say, program(say, legacy=legacy)) as link:
        assert (await link.offered()).tools == (tools if legacy else tools[1:2])


async def test_a_program_that_reads_nothing_holds_nobody(credentials: Credentials, say: Path) -> None:
    deaf = BY_HAND.replace(
        "for line in sys.stdin:", "for line in sys.stdin:\n    if 'tools/call' in line[:200]: break"
    ) + ("import time; time.sleep(600)")
    async with linked(credentials, say, (sys.executable, "-c", deaf % "1"), timeout_s=2.0) as link:
        await link.offered()
        with pytest.raises(OutcomeUnknown, match="in time"):
            await asyncio.gather(*(called(link, "t", "once", text="x" * 500_000) for _ in range(3)))
        assert (await link.offered()).complete  # a new one


async def test_a_banner_is_passed_over(credentials: Credentials, say: Path) -> None:
    async with linked(credentials, say, (sys.executable, "-c", "print('Welcome!')\n" + BY_HAND % "1")) as link:
        assert (await link.offered()).complete


async def test_changes_are_seen_by_the_next_look(credentials: Credentials, say: Path) -> None:
    async with linked(credentials, say, program(say)) as link:
        before = await link.offered()
        Saying(tools=[tool("echo", "Now something else."), tool("new")]).write(say)
        after = await link.offered()

    assert [each["name"] for each in before.tools] == ["echo", "lie"]
    assert [each["description"] for each in after.tools] == ["Now something else.", "Does it."]
    assert noted(say).count("began") == 1


async def test_it_has_an_environment_and_a_group_of_its_own(
    credentials: Credentials, say: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BODY_BROKER_SECRET_KEY", "the hub's own")
    await credentials.put(variable("API_KEY"), "k-1")

    async with linked(credentials, say, program(say), env={"MODE": "x"}, secret_env=("API_KEY",)) as link:
        found = json.loads(text_of(await called(link, "surroundings")))

    home = str(say.parent / "home")
    wanted = {"PATH": PATH, "HOME": home, "LANG": "C.UTF-8", "MODE": "x", "API_KEY": "k-1"}
    assert {name: value for name, value in found["env"].items() if name != "LC_CTYPE"} == wanted
    assert found["cwd"] == home
    assert found["group"] == found["pid"] != os.getpgid(0)


async def test_without_its_secret_or_its_program_it_is_not_started(credentials: Credentials, say: Path) -> None:
    async with linked(credentials, say, program(say), secret_env=("API_KEY",)) as link:
        with pytest.raises(NotConfigured) as found:
            await called(link, "echo", "once")
    assert "upstream token ex --env API_KEY" in found.value.next_step
    assert noted(say) == []

    async with linked(credentials, say, ("no-such-program; touch /tmp/x",)) as link:
        with pytest.raises(Unavailable, match="is not there"):
            await called(link, "echo", "once")


async def test_one_that_dies_is_started_anew(credentials: Credentials, say: Path) -> None:
    async with linked(credentials, say, program(say)) as link:
        with pytest.raises(OutcomeUnknown):
            await called(link, "die", "once")
        assert text_of(await called(link, "echo", "once")) == "{}"
        with pytest.raises(Unavailable):
            await called(link, "die")  # done twice: a read is asked again, once
        assert (await link.offered()).complete

    assert noted(say).count("dies") == 3
    assert noted(say).count("began") == 4


async def test_one_that_hangs_at_its_lists_is_started_anew(credentials: Credentials, say: Path) -> None:
    async with linked(credentials, say, program(say), timeout_s=3.0) as link:
        Saying(hang_at="tools").write(say)
        with pytest.raises(Unavailable, match="in time"):
            await link.offered()
        Saying().write(say)
        assert (await link.offered()).complete

    assert noted(say).count("began") == 2


@ERAS
async def test_who_leaves_is_told_to_it(credentials: Credentials, say: Path, *, legacy: bool) -> None:
    async with linked(credentials, say, program(say, legacy=legacy)) as link:
        call = asyncio.create_task(called(link, "hang", "once"))
        await wait_until(lambda: "hangs" in noted(say), "it hangs")
        call.cancel()
        await wait_until(lambda: "cancelled" in noted(say), "it is told")
        assert text_of(await called(link, "echo")) == "{}"

    assert noted(say).count("began") == 1


async def test_it_is_ended_with_all_that_it_started(credentials: Credentials, say: Path) -> None:
    async with linked(credentials, say, program(say)) as link:
        pids = [
            json.loads(text_of(await called(link, "surroundings")))["pid"],
            int(text_of(await called(link, "spawn"))),
        ]
        assert all(map(is_running, pids))

    assert not any(map(is_running, pids))


async def test_an_answer_that_is_too_large_is_refused_and_harms_no_other(credentials: Credentials, say: Path) -> None:
    async with linked(credentials, say, program(say)) as link:
        hanging = asyncio.create_task(called(link, "hang", "once"))
        await wait_until(lambda: "hangs" in noted(say), "another is under way")
        assert len(text_of(await called(link, "large", bytes=3_000_000))) == 3_000_000
        with pytest.raises(Unavailable):
            await called(link, "large", bytes=9_000_000)
        with pytest.raises(OutcomeUnknown):
            await called(link, "large", "once", bytes=9_000_000)
        assert text_of(await called(link, "echo")) == "{}"
        assert not hanging.done()
        hanging.cancel()

    assert noted(say).count("began") == 1


async def test_what_it_writes_beside_is_bounded_and_holds_no_secret(
    credentials: Credentials, say: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    await credentials.put(variable("API_KEY"), "k-very-secret")
    async with linked(credentials, say, program(say), secret_env=("API_KEY",)) as link:
        await called(link, "shout", lines=20_000, text="k-very-secret")
        await wait_until(lambda: "hunter2" in link.complaints(), "it was heard")

    assert len(link.complaints()) <= 4_096
    assert "k-very-secret" not in link.complaints()
    assert "\x1b" not in link.complaints()
    assert "hunter2" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "script",
    ["print('hello'); import time; time.sleep(600)", "raise SystemExit(1)", "import time; time.sleep(600)"],
    ids=["no protocol", "ends", "silent"],
)
async def test_what_does_not_speak_the_protocol_is_unavailable(
    credentials: Credentials, say: Path, script: str
) -> None:
    async with linked(credentials, say, (sys.executable, "-c", script), timeout_s=2.0) as link:
        with pytest.raises(Unavailable):
            await called(link, "echo", "once")
