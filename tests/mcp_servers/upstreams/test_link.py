"""The link to an upstream over HTTP: what it lists as it came, its answers, and what each way of failing is told as."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from body_broker.calls import Effect
from body_broker.errors import BadInput, BodyBrokerError, OutcomeUnknown, Unavailable, on_the_wire
from body_broker.storage.postgres import Pool
from body_broker.tracing import installed, span
from mcp_servers.upstreams.auth import Credentials
from mcp_servers.upstreams.later import Answer, LaterLink
from mcp_servers.upstreams.model import Upstream
from tests.counterparts.upstream import HOSTILE, Saying, serving, tool
from tests.ports import free_port
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio

ERAS = pytest.mark.parametrize("legacy", [False, True], ids=["2026-07-28", "2025-11-25"])
KEY = bytes(32)


async def quiet(done: float, total: float | None = None, message: str | None = None) -> None:
    del done, total, message


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def credentials(pool: Pool) -> Credentials:
    return Credentials(pool, KEY, "ex")


@asynccontextmanager
async def linked(
    credentials: Credentials, url: str, tmp_path: Path, *, clock: Clock | None = None, **more: Any
) -> AsyncGenerator[LaterLink]:
    upstream = Upstream(name="ex", url=url, **more)
    link = LaterLink(upstream, credentials, tmp_path, clock=clock or time.monotonic)
    try:
        yield link
    finally:
        await link.close()


async def called(link: LaterLink, name: str, effect: Effect = "none", **arguments: Any) -> Answer:
    return await link.call(name, arguments, progress=quiet, meta={}, effect=effect)


def text_of(answer: Answer) -> str:
    return answer.blocks[0]["text"]


def told(error: BodyBrokerError) -> str:
    return json.dumps(on_the_wire(error).body())


@ERAS
async def test_everything_it_lists_comes_page_by_page(
    credentials: Credentials, tmp_path: Path, *, legacy: bool
) -> None:
    tools = [tool(f"t{n}", title="T", annotations={"readOnlyHint": True}) for n in range(7)]
    prompt = {"name": "p", "arguments": [{"name": "a", "required": True}]}
    resource = {"uri": "ex://r", "name": "r", "size": 3}
    template = {"uriTemplate": "ex://{id}", "name": "t"}
    saying = Saying(tools=tools, prompts=[prompt], resources=[resource], templates=[template], page=2)

    async with serving(saying, legacy=legacy) as served, linked(credentials, served.url, tmp_path) as link:
        offer = await link.offered()

    assert (offer.tools, offer.prompts, offer.resources, offer.templates) == (tools, [prompt], [resource], [template])
    assert offer.complete
    assert offer.protocol == ("2025-11-25" if legacy else "2026-07-28")
    assert offer.server["name"] == "counterpart"


@pytest.mark.parametrize(
    "saying",
    [
        Saying(tools=[tool(f"t{n}") for n in range(501)], page=100),
        Saying(tools=[tool(f"t{n}", "x" * 300_000) for n in range(8)], page=1),
        Saying(tools=[tool("t")], page=1, endless=True),
    ],
    ids=["rows", "bytes", "pages"],
)
async def test_a_list_without_end_is_not_complete(saying: Saying, credentials: Credentials, tmp_path: Path) -> None:
    async with serving(saying, as_json=True) as served, linked(credentials, served.url, tmp_path) as link:
        offer = await link.offered()

    assert not offer.complete
    assert len(offer.tools) <= 500


@ERAS
async def test_calls_reads_and_prompts_are_answered_as_it_answered(
    credentials: Credentials, tmp_path: Path, *, legacy: bool
) -> None:
    saying = Saying(prompts=[{"name": "p"}], resources=[{"uri": "ex://r", "name": "r"}])
    async with serving(saying, legacy=legacy) as served, linked(credentials, served.url, tmp_path) as link:
        echoed = await called(link, "echo", text=None, list=[1, {"a": None}])
        failed = await called(link, "fail", "once")
        lied = await called(link, "lie")
        messages = await link.prompt("p", {"a": "b"})
        contents = await link.read("ex://r")

    assert json.loads(text_of(echoed)) == {"text": None, "list": [1, {"a": None}]}
    assert echoed.structured == {"said": {"text": None, "list": [1, {"a": None}]}}
    assert failed.is_error
    assert (lied.structured, lied.is_error) == ({"n": "seven"}, False)
    assert messages[0]["content"]["text"] == 'p {"a": "b"}'
    assert contents[0]["text"] == "what ex://r holds"


@ERAS
async def test_many_calls_share_one_connection_and_a_few_places(
    credentials: Credentials, tmp_path: Path, *, legacy: bool
) -> None:
    saying = Saying()
    async with (
        serving(saying, legacy=legacy) as served,
        linked(credentials, served.url, tmp_path, concurrency=3) as link,
    ):
        calls = [asyncio.create_task(called(link, "held")) for _ in range(5)]
        await wait_until(lambda: saying.notes.count("held") == 3, "three are under way")
        await link.offered()  # a look has a place of its own
        assert saying.notes.count("held") == 3
        saying.go.set()
        answers = await asyncio.gather(*calls)

    assert [text_of(each) for each in answers] == ["at last"] * 5


@ERAS
async def test_who_leaves_is_told_to_the_upstream(credentials: Credentials, tmp_path: Path, *, legacy: bool) -> None:
    saying = Saying()
    async with serving(saying, legacy=legacy) as served, linked(credentials, served.url, tmp_path) as link:
        call = asyncio.create_task(called(link, "hang", "once"))
        await wait_until(lambda: "hangs" in saying.notes, "it hangs")
        call.cancel()
        await wait_until(lambda: "cancelled" in saying.notes, "the upstream ends it")
        with pytest.raises(asyncio.CancelledError):
            await call
        assert text_of(await called(link, "echo")) == "{}"


@pytest.mark.parametrize(
    ("effect", "error"), [("none", Unavailable), ("repeatable", OutcomeUnknown), ("once", OutcomeUnknown)]
)
@ERAS
async def test_what_does_not_answer_in_time_is_given_up(
    credentials: Credentials, tmp_path: Path, effect: Effect, error: type[BodyBrokerError], *, legacy: bool
) -> None:
    saying = Saying()
    async with (
        serving(saying, legacy=legacy) as served,
        linked(credentials, served.url, tmp_path, timeout_s=1.0) as link,
    ):
        with pytest.raises(error):
            await called(link, "hang", effect)
        await wait_until(lambda: "cancelled" in saying.notes, "the upstream is told")


@pytest.mark.parametrize(
    ("code", "effect", "error"),
    [
        (-32603, "none", Unavailable),
        (-32603, "once", OutcomeUnknown),
        (-32602, "once", BadInput),
        (-32601, "none", BadInput),
        (-1, "once", OutcomeUnknown),
    ],
)
async def test_its_errors_are_told_in_our_words(
    credentials: Credentials, tmp_path: Path, code: int, effect: Effect, error: type[BodyBrokerError]
) -> None:
    async with serving(Saying()) as served, linked(credentials, served.url, tmp_path) as link:
        with pytest.raises(error) as found:
            await called(link, "raise", effect, code=code)

    assert HOSTILE not in told(found.value)


@ERAS
async def test_it_is_answered_nothing_that_it_asks(credentials: Credentials, tmp_path: Path, *, legacy: bool) -> None:
    saying = Saying()
    async with serving(saying, legacy=legacy) as served, linked(credentials, served.url, tmp_path) as link:
        if legacy:
            await called(link, "elicit")
            await called(link, "sample")
        else:
            with pytest.raises(OutcomeUnknown):
                await called(link, "elicit", "once")
            with pytest.raises(Unavailable):
                await called(link, "elicit")

    assert not [note for note in saying.notes if note.startswith(("was told", "sampled"))]
    assert not legacy or len([note for note in saying.notes if note.startswith("refused")]) == 2


@ERAS
@pytest.mark.parametrize("as_json", [False, True], ids=["events", "json"])
async def test_an_answer_that_is_too_large_is_refused_and_harms_no_other(
    credentials: Credentials, tmp_path: Path, *, legacy: bool, as_json: bool
) -> None:
    saying = Saying()
    async with (
        serving(saying, legacy=legacy, as_json=as_json) as served,
        linked(credentials, served.url, tmp_path) as link,
    ):
        held = asyncio.create_task(called(link, "held", "once"))
        await wait_until(lambda: "held" in saying.notes, "another is under way")
        assert len(text_of(await called(link, "large", bytes=3_000_000))) == 3_000_000
        with pytest.raises(Unavailable):
            await called(link, "large", bytes=4_300_000)
        with pytest.raises(OutcomeUnknown):
            await called(link, "large", "once", bytes=4_300_000)
        saying.go.set()
        assert text_of(await held) == "at last"


async def test_progress_has_its_numbers_and_none_of_its_words(credentials: Credentials, tmp_path: Path) -> None:
    heard: list[tuple[float, float | None, str | None]] = []

    async def hear(done: float, total: float | None = None, message: str | None = None) -> None:
        heard.append((done, total, message))

    async with serving(Saying()) as served, linked(credentials, served.url, tmp_path) as link:
        await link.call("progress", {}, progress=hear, meta={}, effect="none")

    assert heard
    assert heard[-1] == (3, 3, None)
    assert all(message is None for _, _, message in heard)


@ERAS
async def test_it_tells_that_its_lists_changed(credentials: Credentials, tmp_path: Path, *, legacy: bool) -> None:
    saying = Saying()
    async with serving(saying, legacy=legacy) as served, linked(credentials, served.url, tmp_path) as link:
        changes: list[bool] = []
        link.on_changed = lambda: changes.append(True)
        await link.offered()

        async def changed() -> bool:
            await called(link, "change")  # a modern one listens a moment after it connected
            return bool(changes)

        await wait_until(changed, "the change is told")


async def test_where_the_trace_is_goes_along_with_what_the_caller_says(
    credentials: Credentials, tmp_path: Path
) -> None:
    tracer = TracerProvider().get_tracer("test")
    async with serving(Saying()) as served, linked(credentials, served.url, tmp_path) as link:
        with installed(tracer), span("call"):
            answer = await link.call("meta", {}, progress=quiet, meta={"body-broker/key": "k"}, effect="none")

    meta = json.loads(text_of(answer))
    assert meta["body-broker/key"] == "k"
    assert meta["traceparent"].startswith("00-")


async def test_an_upstream_that_is_away_is_said_so_and_not_asked_for_a_while(
    credentials: Credentials, tmp_path: Path
) -> None:
    port, clock, saying = free_port(), Clock(), Saying()
    async with linked(credentials, f"http://127.0.0.1:{port}/mcp", tmp_path, clock=clock) as link:
        for _ in range(5):
            with pytest.raises(Unavailable, match="cannot be reached"):
                await called(link, "echo", "once")  # it certainly was not done
        async with serving(saying, port=port):
            with pytest.raises(Unavailable, match="too often") as found:
                await link.offered()
            assert found.value.retry_after_s == 5.0
            clock.now += 5.1
            assert text_of(await called(link, "echo")) == "{}"


@ERAS
async def test_one_that_was_started_anew_is_used_at_once(
    credentials: Credentials, tmp_path: Path, *, legacy: bool
) -> None:
    port = free_port()
    async with linked(credentials, f"http://127.0.0.1:{port}/mcp", tmp_path) as link:
        async with serving(Saying(), port=port, legacy=legacy):
            await link.offered()
        saying = Saying()
        async with serving(saying, port=port, legacy=legacy):
            assert (await link.offered()).tools == saying.tools
            assert text_of(await called(link, "echo", "once")) == "{}"


@ERAS
async def test_one_that_dies_on_the_way_leaves_the_outcome_unknown(
    credentials: Credentials, tmp_path: Path, *, legacy: bool
) -> None:
    port, saying = free_port(), Saying()
    async with linked(credentials, f"http://127.0.0.1:{port}/mcp", tmp_path) as link:
        async with serving(saying, port=port, legacy=legacy):
            effect = asyncio.create_task(called(link, "hang", "once"))
            read = asyncio.create_task(called(link, "hang"))
            await wait_until(lambda: saying.notes.count("hangs") == 2, "they hang")
        with pytest.raises(OutcomeUnknown):
            await effect
        with pytest.raises(Unavailable):
            await read


async def test_nothing_of_its_words_is_logged(
    credentials: Credentials, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving(Saying()) as served, linked(credentials, served.url, tmp_path) as link:
        caplog.clear()
        with pytest.raises(Unavailable):
            await called(link, "raise")
        await called(link, "progress")

    assert HOSTILE not in caplog.text


async def test_a_closed_link_asks_nothing_more(credentials: Credentials, tmp_path: Path) -> None:
    async with serving(Saying()) as served, linked(credentials, served.url, tmp_path) as link:
        await link.offered()
        await link.close()
        with pytest.raises(Unavailable):
            await link.offered()
