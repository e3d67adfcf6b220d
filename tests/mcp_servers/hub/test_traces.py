"""One trace from the client through the hub, the router, the engine, the tool and the hub again; not a word of anybody's in it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from xml.etree.ElementTree import fromstring

import httpx2
import pytest
from aiohttp import web
from opentelemetry import context, trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from body_broker.errors import StartError
from body_broker.storage.redis import Redis
from body_broker.tracing import carry, installed, joined, span
from mcp_servers.hub import exporting
from mcp_servers.hub.tracing import open_tracing
from tests.counterparts.faultwall.wall import MODEL, FaultWall, Reply, Tool, fault_wall
from tests.mcp_servers.hub.conftest import Hub, OpenHub, error_of
from tests.tools.trace_picture import draw, span_rows
from tests.waiting import wait_until

TRACE = 0x4BF92F3577B34DA6A3CE929D0E0E4736
CLIENTS = 0x00F067AA0BA902B7
PROMPT, ANSWER = "Who audits the Cemetery?", "The Tallyman's office audits it."


class Traced(InMemorySpanExporter):
    """The spans that ended."""

    def tree(self) -> list[str]:
        """Each span of the client's trace with what it is about, below its parent, in the order in which they began; no lists of tools."""
        spans = (each for each in self.get_finished_spans() if each.context and each.context.trace_id == TRACE)
        spans = (each for each in spans if each.name != "tools/list")
        found = sorted(spans, key=lambda each: each.start_time or 0)
        return list(_below(found, None if not found else _root(found)))

    def named(self, name: str) -> list[ReadableSpan]:
        return [each for each in self.get_finished_spans() if each.name == name]

    def words(self) -> str:
        """Everything that is told of them."""
        return "\n".join(each.to_json() for each in self.get_finished_spans())


def _root(spans: Sequence[ReadableSpan]) -> int | None:
    ids = {each.context.span_id for each in spans if each.context}
    parents = {each.parent.span_id if each.parent else None for each in spans}
    (outside,) = parents - ids
    return outside


def _below(spans: Sequence[ReadableSpan], parent: int | None, depth: int = 0) -> Iterator[str]:
    for each in spans:
        if (each.parent.span_id if each.parent else None) == parent and each.context:
            about = each.attributes or {}
            what = about.get("operation") or about.get(
                "engine" if each.name == "tier.engine" else "tier", each.kind.name
            )
            yield f"{'  ' * depth}{each.name} {about.get('tool', what)}"
            yield from _below(spans, each.context.span_id, depth + 1)


@pytest.fixture
def traced() -> Generator[Traced]:
    exporter, provider = Traced(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with installed(provider.get_tracer("tests")):
        yield exporter


@pytest.fixture
async def wall() -> AsyncGenerator[FaultWall]:
    async with fault_wall("vllm", "openai") as found:
        yield found


@pytest.fixture
async def served(open_hub: OpenHub, wall: FaultWall, redis: Redis) -> AsyncGenerator[Hub]:
    _ = redis  # flushed before the test
    async with open_hub(silver_url=wall.url["vllm"], silver_model=MODEL) as hub:
        yield hub


@contextmanager
def in_the_clients_trace() -> Generator[None]:
    """The test is a client with a span of its own, as the official SDK sends it along."""
    place = trace.SpanContext(TRACE, CLIENTS, is_remote=False, trace_flags=trace.TraceFlags(1))
    token = context.attach(trace.set_span_in_context(trace.NonRecordingSpan(place)))
    try:
        yield
    finally:
        context.detach(token)


async def test_one_trace_goes_from_the_client_through_router_engine_tool_and_hub(
    served: Hub, wall: FaultWall, traced: Traced
) -> None:
    wall.say("vllm", Reply(calls=(Tool("whoami"),)), Reply(text=ANSWER))
    async with served.client("service:game") as client:
        with in_the_clients_trace():
            result = await client.call_tool("generate", {"prompt": PROMPT, "tools": ["whoami"]})

    assert result.structured_content is not None
    assert result.structured_content["content"] == ANSWER
    assert traced.tree() == [
        "tools/call generate SERVER",
        "  hub.call generate",
        "    hub.run generate",
        "      tier.route silver",
        "        tier.engine silver",
        "          chat wall CLIENT",
        "        tier.tool whoami",
        "          tools/call whoami CLIENT",
        "            tools/call whoami SERVER",
        "              hub.call whoami",
        "                hub.run whoami",
        "        tier.engine silver",
        "          chat wall CLIENT",
    ]
    spans = [each for each in traced.get_finished_spans() if each.context and each.context.trace_id == TRACE]
    assert [each.parent.span_id for each in traced.named("tools/call generate") if each.parent] == [CLIENTS]
    engines = [each.context.span_id for each in traced.named(f"chat {MODEL}") if each.context]
    told = [seen.headers["traceparent"] for seen in wall.asked("vllm")]
    assert told == [f"00-{TRACE:032x}-{engine:016x}-01" for engine in engines]
    picture = fromstring(draw(span_rows(spans), "A <trace>"))  # noqa: S314  # made here
    assert len(picture.findall("{*}rect")) == 1 + len(spans)


async def test_not_a_word_of_a_prompt_an_answer_or_a_tool_is_in_a_trace(
    served: Hub, wall: FaultWall, traced: Traced
) -> None:
    wall.say("vllm", Reply(calls=(Tool("search_lore", {"query": "secret vault"}),)), Reply(text=ANSWER))
    async with served.client("service:game") as client:
        await client.call_tool("generate", {"prompt": PROMPT, "tools": ["search_lore"]})
        await client.call_tool("search_lore", {"query": "secret vault", "limit": "many"})
        await client.call_tool("no such tool: secret vault", {})

    assert len(traced.get_finished_spans()) >= 9
    assert all(word not in traced.words() for word in (PROMPT, "Tallyman", "secret", "vault", "many"))
    assert all(not each.events and not each.status.description for each in traced.get_finished_spans())


async def test_a_trace_tells_what_an_answer_was_and_what_it_took(served: Hub, wall: FaultWall, traced: Traced) -> None:
    wall.say("vllm", Reply(text=ANSWER, usage=(12, 5, 0)))
    async with served.client("service:game") as client:
        await client.call_tool("generate", {"prompt": PROMPT})

    (engine,), (route,) = traced.named("tier.engine"), traced.named("tier.route")
    about = dict(engine.attributes or {})
    assert about.pop("ttft_s")
    assert about == {
        "engine": "silver", "tier": "silver", "finish": "stop", "prompt_tokens": 12, "completion_tokens": 5,
    }  # fmt: skip
    assert dict(route.attributes or {}) == {
        "sla": "interactive", "tier": "silver", "reason": "interactive", "source": "model", "engine": "silver", "finish": "stop",
    }  # fmt: skip
    (call,) = traced.named("hub.call")
    assert (call.attributes or {})["caller"] == "service"
    assert str((call.attributes or {})["call"]).startswith("call_")


async def test_what_went_wrong_is_told_in_one_word(served: Hub, wall: FaultWall, traced: Traced) -> None:
    wall.fault("vllm", "unavailable")
    async with served.client("service:game") as client:
        await client.call_tool("generate", {"prompt": PROMPT})
    async with served.client("tier:silver") as client:
        denied = error_of(await client.call_tool("generate", {"prompt": PROMPT}))

    faults = [(each.attributes or {}).get("error.type") for each in traced.named("tier.engine")]
    assert faults == ["overloaded"]
    ended = {(each.attributes or {}).get("error.type"): each.status.is_ok for each in traced.named("hub.call")}
    assert ended == {None: True, denied["code"]: False}


async def test_a_trace_comes_in_by_the_http_header_too_and_a_malformed_one_is_as_none(
    served: Hub, traced: Traced
) -> None:
    token = await served.token("service:game")
    headers = {
        "authorization": f"Bearer {token}", "accept": "application/json, text/event-stream",
        "mcp-method": "tools/call", "mcp-name": "whoami", "mcp-protocol-version": "2026-07-28",
    }  # fmt: skip
    about: dict[str, Any] = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    good = f"00-{TRACE:032x}-{CLIENTS:016x}-01"
    for told, in_meta in ((good, {}), ("00-junk", {}), (good[:-3], {}), ("x" * 9_000, {}), (good, {"traceparent": 7})):
        params = {"name": "whoami", "arguments": {}, "_meta": about | in_meta}
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        async with httpx2.AsyncClient(headers=headers | {"traceparent": told}, timeout=60) as http:
            answer = await http.post(served.url, json=body)
        assert answer.status_code == 200, answer.text

    calls = [each.context.trace_id for each in traced.named("hub.call") if each.context]
    assert [found == TRACE for found in calls] == [True, False, False, False, True]
    assert len(set(calls)) == 4


async def test_nothing_is_told_to_an_engine_where_nothing_is_traced(served: Hub, wall: FaultWall) -> None:
    async with served.client("service:game") as client:
        with in_the_clients_trace():
            await client.call_tool("generate", {"prompt": PROMPT})

    assert "traceparent" not in wall.asked("vllm")[0].headers
    headers: dict[str, str] = {}
    with joined(f"00-{TRACE:032x}-{CLIENTS:016x}-01"), span("tier.engine", engine="silver") as nothing:
        nothing.note(finish="stop")
        nothing.fault("silent")
        carry(headers)
    assert headers == {}


@dataclass
class Collector:
    """Takes what the exporter sends, as an OpenTelemetry collector does."""

    url: str = ""
    requests: list[ExportTraceServiceRequest] = field(default_factory=list[ExportTraceServiceRequest])

    async def take(self, request: web.Request) -> web.Response:
        self.requests.append(ExportTraceServiceRequest.FromString(await request.read()))
        return web.Response(content_type="application/x-protobuf")

    def spans(self) -> list[str]:
        return [
            each.name
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for each in scope.spans
        ]


@pytest.fixture
async def collector() -> AsyncGenerator[Collector]:
    found, app = Collector(), web.Application()
    app.router.add_post("/v1/traces", found.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield found
    await runner.cleanup()


@pytest.mark.parametrize("ending", ["", "/", "/v1/traces"])
async def test_spans_of_a_hub_that_ends_have_reached_the_collector(
    open_hub: OpenHub, collector: Collector, redis: Redis, ending: str
) -> None:
    _ = redis
    async with open_hub(otlp_url=collector.url + ending) as hub, hub.client("service:game") as client:
        await client.call_tool("whoami", {})

    found = collector.spans()
    assert {"hub.call", "hub.run", "tools/call whoami"} <= set(found)
    (resource,) = {request.resource_spans[0].resource.SerializeToString() for request in collector.requests}
    assert b"body-broker" in resource
    assert sys.argv[0].encode() not in resource
    with span("hub.call") as after:
        after.note(operation="whoami")
    assert collector.spans() == found


async def test_a_collector_that_is_away_keeps_nobody(open_hub: OpenHub, redis: Redis) -> None:
    _ = redis
    async with open_hub(otlp_url="http://127.0.0.1:1") as hub, hub.client("service:game") as client:
        result = await client.call_tool("whoami", {})

    assert not result.is_error


async def test_a_collector_that_takes_spans_and_says_nothing_holds_up_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    gone, open_here = asyncio.Event(), list[asyncio.StreamWriter]()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_here.append(writer)
        await reader.read()
        gone.set()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with open_tracing(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"):
        with span("tier.route"):
            pass
        monkeypatch.setattr(sys.modules["mcp_servers.hub.exporting"], "LAST_S", 0.2)

    assert not gone.is_set(), "what was being sent had its own time, and nobody waits for that"
    for writer in open_here:
        writer.close()
    server.close()


async def test_a_collector_that_is_down_delays_no_end_and_its_library_says_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert exporting.LAST_S <= 0.5
    monkeypatch.setattr(exporting, "_TIMEOUT_S", 40.0)
    monkeypatch.setattr(exporting, "LAST_S", 40.0)

    async with asyncio.timeout(20):  # the library asks again for as long as it may
        async with open_tracing("http://127.0.0.1:1"):
            with span("tier.route"):
                pass

    assert [record.name for record in caplog.records if record.name.startswith(("opentelemetry", "urllib3"))] == []


async def test_a_collector_without_what_sends_to_it_stops_the_start_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "mcp_servers.hub.exporting", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)

    with pytest.raises(StartError) as refused:
        async with open_tracing("http://127.0.0.1:4318"):
            pass

    assert "BODY_BROKER_OTLP_URL" in refused.value.message
    assert "body-broker[traces]" in refused.value.next_step


async def test_a_client_that_leaves_ends_its_spans(served: Hub, wall: FaultWall, traced: Traced) -> None:
    wall.fault("vllm", "silent")
    headers = {"authorization": f"Bearer {await served.token('service:game')}"}
    body = {"model": "silver", "messages": [{"role": "user", "content": PROMPT}], "stream": True}
    async with httpx2.AsyncClient(headers=headers, timeout=60) as http:
        asking = asyncio.create_task(http.post(f"{served.base}/v1/chat/completions", json=body))
        await wait_until(lambda: wall.inside["vllm"], "the engine is asked")
        asking.cancel()
        await asyncio.wait([asking])

    await wait_until(lambda: traced.named("hub.call"), "the call ends")
    assert [(each.attributes or {}).get("cancelled") for each in traced.named("tier.engine")] == [True]
