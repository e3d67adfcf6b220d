"""What a hub tells in OpenTelemetry's conventions: one trace from the client to the stores and the worker, durations, and nobody's words."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from aiohttp import web
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, TraceIdRatioBased
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from body_broker.settings import Settings
from body_broker.storage.objects import open_objects
from body_broker.storage.traced import request, summary
from body_broker.tracing import carry, ids, installed, joined, span, store
from mcp_servers.hub import exporting
from mcp_servers.hub.conventions import CHAT, INSTRUMENTS, OPERATION, SESSION, TOKENS
from mcp_servers.hub.metrics import Metrics
from mcp_servers.hub.tier_metrics import TierCounts
from mcp_servers.hub.watching import Watching
from tests.counterparts.faultwall.wall import MODEL, FaultWall, Reply
from tests.mcp_servers.hub.conftest import Hub, OpenHub, error_of
from tests.mcp_servers.hub.deeds import APPROVERS, Deeds, Studio, do, say, settles
from tests.mcp_servers.hub.test_traces import CLIENTS, TRACE, Traced, in_the_clients_trace, traced, wall
from tests.waiting import wait_until
from tiers.model import Usage

__all__ = ["traced", "wall"]
SECRET = "hunter2-do-not-tell"
PAGE = Path(__file__).parents[3] / "docs" / "observability.md"


@pytest.fixture
async def hub(traced: Traced, open_hub: OpenHub, redis: object) -> AsyncGenerator[Hub]:
    """A hub that was started where spans are recorded, so that its stores tell theirs."""
    _ = redis  # flushed before the test
    async with open_hub() as found:
        traced.clear()
        yield found


def about(found: ReadableSpan) -> dict[str, Any]:
    return dict(found.attributes or {})


def of_the_client(traced: Traced) -> list[ReadableSpan]:
    return [each for each in traced.get_finished_spans() if each.context and each.context.trace_id == TRACE]


def above(spans: list[ReadableSpan], found: ReadableSpan) -> list[str]:
    """The names of the spans that one is below, the nearest first."""
    by_id = {each.context.span_id: each for each in spans if each.context}
    names: list[str] = []
    while found.parent is not None and (up := by_id.get(found.parent.span_id)) is not None:
        names.append(up.name)
        found = up
    return names


def series(text: str, name: str) -> dict[frozenset[str], float]:
    """The counts of a histogram by its labels that are not empty."""
    return {
        frozenset(value for value in sample.labels.values() if value): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"{name}_count"
    }


async def test_one_trace_goes_from_the_client_through_gate_and_tool_to_the_stores(hub: Hub, traced: Traced) -> None:
    async with hub.client("service:game") as client:
        with in_the_clients_trace():
            result = await client.call_tool("search_lore", {"query": "the ninth bell"})

    assert not result.is_error
    spans = of_the_client(traced)
    (server,) = [each for each in spans if each.kind.name == "SERVER" and each.name != "tools/list"]
    assert server.name == "tools/call search_lore"
    assert server.parent is not None
    assert server.parent.span_id == CLIENTS
    told = about(server)
    assert told.pop("jsonrpc.request.id")
    assert told == {
        "mcp.method.name": "tools/call", "gen_ai.tool.name": "search_lore", "gen_ai.operation.name": "execute_tool",
        "mcp.protocol.version": "2026-07-28", "network.transport": "tcp", "network.protocol.name": "http",
    }  # fmt: skip
    stores = [each for each in spans if "db.system.name" in about(each)]
    assert {about(each)["db.system.name"] for each in stores} == {"postgresql", "redis"}
    assert {each.kind.name for each in stores} == {"CLIENT"}
    tools = [each for each in stores if above(spans, each)[0] == "hub.run"]
    assert ["hub.run", "hub.call", "tools/call search_lore"] in [above(spans, each) for each in tools]
    assert any(about(each).get("db.collection.name", "").startswith("lore") for each in tools)
    assert {name for each in stores for name in about(each)} - {"error.type"} == {
        "db.system.name", "db.operation.name", "db.collection.name",
    }  # fmt: skip
    assert [word for word in ("ninth", "bell", "$1", "session:") if word in traced.words()] == [], traced.words()


async def test_what_a_tool_and_a_method_refuse_is_told_in_the_conventions_words(hub: Hub, traced: Traced) -> None:
    async with hub.client("service:game") as client:
        code = error_of(await client.call_tool("search_lore", {"query": ""}))["code"]
        with pytest.raises(Exception, match="cursor"):
            await client.list_prompts(cursor=SECRET)

    (call,) = traced.named("tools/call search_lore")
    assert (about(call)["error.type"], call.status.is_ok) == ("tool_error", False)
    (gate,) = traced.named("hub.call")
    assert about(gate)["error.type"] == code
    (refused,) = traced.named("prompts/list")
    assert (about(refused)["error.type"], about(refused)["rpc.response.status_code"]) == ("-32602", "-32602")
    assert SECRET not in traced.words()


async def test_an_approved_call_goes_on_in_the_trace_of_whoever_asked_for_it(
    traced: Traced, settings_for: Callable[..., Settings], tmp_path: Path, redis: object
) -> None:
    _ = redis  # flushed before the test
    approvers = tmp_path / "approvers.toml"
    approvers.write_text(APPROVERS, encoding="utf-8")
    async with Studio(settings_for, approvers, Deeds()).hub() as hub, hub.client("tier:bronze") as bronze:
        with in_the_clients_trace():
            approval_id = error_of(await do(bronze, "deed_once"))["approval"]
        await say(hub.runtime.approvals.desk, approval_id)
        await settles(hub.runtime.approvals.desk, approval_id, "done")
        await wait_until(lambda: _named(traced, "process "), "the worker is done")

    spans = of_the_client(traced)
    (work,) = [each for each in spans if each.kind.name == "CONSUMER"]
    assert above(spans, work)[-1] == "tools/call deed_once"
    assert about(work)["messaging.message.id"] == approval_id
    assert work.name == f"process {about(work)['messaging.destination.name']}"
    (run,) = traced.named("hub.run")
    assert above(spans, run)[0] == work.name
    assert "hub.record" in {each.name for each in spans}


def _named(traced: Traced, beginning: str) -> list[ReadableSpan]:
    return [each for each in traced.get_finished_spans() if each.name.startswith(beginning)]


async def test_a_request_to_a_model_is_told_in_the_words_for_genai(
    traced: Traced, open_hub: OpenHub, wall: FaultWall, redis: object
) -> None:
    _ = redis  # flushed before the test
    wall.say("vllm", Reply(text="The Tallyman.", usage=(12, 5, 0)))
    async with open_hub(silver_url=wall.url["vllm"], silver_model=MODEL) as hub:
        async with hub.client("service:game") as client:
            await client.call_tool("generate", {"prompt": SECRET})
            wall.fault("vllm", "unavailable")
            await client.call_tool("generate", {"prompt": f"{SECRET} again"})
        text = hub.runtime.gate.metrics.text()

    good, *bad = traced.named(f"chat {MODEL}")
    told = about(good)
    assert told.pop("gen_ai.response.time_to_first_chunk") > 0
    assert told.pop("gen_ai.request.max_tokens") > 0
    assert told == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "vllm", "gen_ai.request.model": MODEL,
        "gen_ai.usage.input_tokens": 12, "gen_ai.usage.output_tokens": 5, "gen_ai.response.finish_reasons": ("stop",),
    }  # fmt: skip
    assert good.kind.name == "CLIENT"
    assert {about(each)["error.type"] for each in bad} == {"overloaded"}
    found = series(text, CHAT.prometheus)
    assert found[frozenset({"chat", "vllm", MODEL})] == 1
    assert found[frozenset({"chat", "vllm", MODEL, "overloaded"})] == len(bad)
    tokens = [line for line in text.splitlines() if line.startswith(f"{TOKENS.prometheus}_sum")]
    assert sorted(float(line.rsplit(" ", 1)[1]) for line in tokens) == [5, 12]
    assert SECRET not in traced.words() + text


async def test_nothing_secret_is_in_spans_metrics_or_logs_and_names_of_clients_are_no_labels(
    hub: Hub, traced: Traced, caplog: pytest.LogCaptureFixture
) -> None:
    token = await hub.token("service:game")
    headers = {
        "authorization": f"Bearer {token}", "accept": "application/json, text/event-stream", "user-agent": SECRET,
        "mcp-protocol-version": "2026-07-28", "x-api-key": SECRET, "cookie": SECRET, "baggage": f"k={SECRET}",
    }  # fmt: skip
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": SECRET, "version": SECRET},
    }
    asked: list[tuple[str, dict[str, Any]]] = [
        ("tools/call", {"name": "fx_echo", "arguments": {"text": SECRET}}),
        ("tools/call", {"name": "fx_fail", "arguments": {"text": SECRET}}),
        ("tools/call", {"name": "fx_echo", "arguments": {SECRET: SECRET}}),
        *(("tools/call", {"name": f"{SECRET} {n}", "arguments": {}}) for n in range(20)),
        ("prompts/get", {"name": SECRET, "arguments": {}}),
        ("resources/read", {"uri": f"fx://{SECRET}"}),
        (f"{SECRET}/method", {}),
        ("tools/list", {}),
    ]
    async with httpx2.AsyncClient(headers=headers, timeout=60) as http:
        for method, params in asked:
            body = {"jsonrpc": "2.0", "id": f"{SECRET} !", "method": method, "params": params | {"_meta": meta}}
            named = {"mcp-name": str(params.get("name", params.get("uri", "")))} if len(params) else {}
            await http.post(hub.url, json=body, headers={"mcp-method": method} | named)
    text = hub.runtime.gate.metrics.text()

    servers = {each.name for each in traced.get_finished_spans() if each.kind.name == "SERVER"}
    assert {"tools/call fx_echo", "tools/call fx_fail", "tools/call", "tools/list"} <= servers
    assert caplog.records, "nothing was logged"
    everything = traced.words() + text + caplog.text
    assert SECRET not in everything
    assert token not in everything
    assert all(not each.events and not each.status.description for each in traced.get_finished_spans())
    found = series(text, OPERATION.prometheus)
    unknown = frozenset({"tools/call", "execute_tool", "tool_error", "2026-07-28", "tcp"})
    assert found[unknown] == 20, found


async def test_durations_of_messages_are_on_the_metrics_whichever_way_they_came(
    open_hub: OpenHub, redis: object
) -> None:
    _ = redis  # flushed before the test
    async with open_hub() as hub:
        for mode in ("auto", "legacy"):
            async with hub.client("service:game", mode=mode) as client:
                await client.call_tool("whoami", {})
        found = series(hub.runtime.gate.metrics.text(), OPERATION.prometheus)

    for version in ("2026-07-28", "2025-11-25"):
        assert found[frozenset({"tools/call", "execute_tool", "whoami", version, "tcp"})] == 1
    assert found[frozenset({"initialize", "2025-11-25", "tcp"})] == 1, found


def test_a_session_over_stdio_is_as_long_as_its_client_is_there() -> None:
    metrics = Metrics()
    with Watching(metrics, tuple).session():
        assert series(metrics.text(), SESSION.prometheus) == {}

    assert series(metrics.text(), SESSION.prometheus) == {frozenset({"pipe"}): 1}


@pytest.mark.parametrize("rate", [None, 0.0])
def test_a_trace_that_is_not_sampled_has_ids_for_logs_and_for_whoever_is_asked_further_on(rate: float | None) -> None:
    sampler = ParentBased(TraceIdRatioBased(0.0)) if rate is None else ParentBased(ALWAYS_ON)
    exporter, provider = Traced(), TracerProvider(sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    headers: dict[str, str] = {}
    with installed(provider.get_tracer("tests"), rate=rate):
        with span("first"):
            first = ids()
            with span("second"), store("postgresql", "SELECT", "entity"):
                second = ids()
                carry(headers)
        outside = ids()

    assert first is not None
    assert second is not None
    assert (first[0], outside) == (second[0], None)
    version, trace_id, span_id, flags = headers["traceparent"].split("-")
    assert (version, trace_id, span_id) == ("00", *second)
    assert int(flags, 16) & 1 == 0
    assert exporter.get_finished_spans() == ()


def test_a_client_s_own_decision_holds_whatever_share_is_sampled_here(traced: Traced) -> None:
    provider = TracerProvider(sampler=ParentBased(ALWAYS_ON), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(traced))
    for rate, flags, kept in ((0.0, "01", 1), (1.0, "00", 0), (0.0, "00", 0), (1.0, "01", 1)):
        traced.clear()
        place = f"00-{TRACE:032x}-{CLIENTS:016x}-{flags}"
        with installed(provider.get_tracer("tests"), rate=rate), joined(place), span("first"):
            found = ids()

        assert found is not None
        assert found[0] == f"{TRACE:032x}"
        assert len(traced.get_finished_spans()) == kept, (rate, flags)


@pytest.mark.parametrize(
    ("sampler", "rate"), [("parentbased_traceidratio", 0.25), ("traceidratio", None), ("always_on", None)]
)
def test_the_share_is_what_opentelemetry_s_own_variables_say(
    monkeypatch: pytest.MonkeyPatch, sampler: str, rate: float | None
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.25")
    exporter = exporting.Exporter("http://127.0.0.1:1", "0")
    exporter.close()

    assert exporter.rate == rate


async def test_stores_beside_postgresql_and_valkey_tell_what_was_asked_of_them(traced: Traced, tmp_path: Path) -> None:
    async with open_objects(tmp_path / "results") as objects:
        with span("hub.run"):
            await objects.put("narrative/secret.json", b"{}")
            await objects.get("narrative/secret.json")
            for method, path in (("POST", "/lore-1/_search"), ("POST", "/lore-1/_bulk"), ("PUT", "/lore-1")):
                with request(method, path):
                    pass
        await objects.head("narrative/secret.json")

    told = [(each.name, about(each)["db.system.name"]) for each in traced.get_finished_spans() if each.parent]
    assert told == [
        ("put", "directory"), ("get", "directory"),
        ("search lore-1", "opensearch"), ("bulk lore-1", "opensearch"), ("create lore-1", "opensearch"),
    ]  # fmt: skip
    assert "secret" not in traced.words()


def test_a_statement_is_told_by_its_verb_and_table() -> None:
    said = {
        "SELECT a FROM entity WHERE b = $1": ("SELECT", "entity"),
        "\nWITH moved AS (UPDATE work SET state = 'x' WHERE id = $1 RETURNING kind) SELECT kind FROM moved": ("UPDATE", "work"),
        "INSERT INTO work_step (work) VALUES ($1) ON CONFLICT DO UPDATE SET x = 1": ("INSERT", "work_step"),
        "WITH a AS (SELECT id FROM work FOR UPDATE SKIP LOCKED) SELECT id FROM a": ("SELECT", "work"),
        "SELECT 1": ("SELECT", ""),
        "BEGIN;": ("BEGIN", ""),
        "-- a note": ("OTHER", ""),
    }  # fmt: skip
    assert {statement: summary(statement) for statement in said} == said


class MetricsCollector:
    """Takes metrics as an OpenTelemetry collector does, and spans without a look."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[ExportMetricsServiceRequest] = []

    async def take(self, request: web.Request) -> web.Response:
        self.requests.append(ExportMetricsServiceRequest.FromString(await request.read()))
        return web.Response(content_type="application/x-protobuf")

    async def drop(self, _request: web.Request) -> web.Response:
        return web.Response(content_type="application/x-protobuf")

    def last(self) -> dict[str, Metric]:
        (resource,) = self.requests[-1].resource_metrics
        (scope,) = resource.scope_metrics
        return {each.name: each for each in scope.metrics}


@pytest.fixture
async def collector() -> AsyncGenerator[MetricsCollector]:
    found, app = MetricsCollector(), web.Application()
    app.router.add_post("/v1/metrics", found.take)
    app.router.add_post("/v1/traces", found.drop)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield found
    await runner.cleanup()


@pytest.mark.parametrize("ending", ["", "/v1/traces"])
async def test_a_collector_is_sent_the_very_figures_that_are_on_the_metrics(
    open_hub: OpenHub, collector: MetricsCollector, monkeypatch: pytest.MonkeyPatch, redis: object, ending: str
) -> None:
    _ = redis  # flushed before the test
    monkeypatch.setattr("mcp_servers.hub.tracing.METRICS_EVERY_S", 0.05)
    async with open_hub(otlp_url=collector.url + ending) as hub, hub.client("service:game") as client:
        for _ in range(3):
            await client.call_tool("whoami", {})
        sent = len(collector.requests)
        await wait_until(lambda: len(collector.requests) > sent + 1, "they are sent again and again")
        text = hub.runtime.gate.metrics.text()
    told = collector.last()

    operation = told["mcp.server.operation.duration"]
    assert (operation.unit, operation.histogram.aggregation_temporality) == ("s", 2)
    points = {
        frozenset((each.key, each.value.string_value) for each in point.attributes): point
        for point in operation.histogram.data_points
    }
    mine = frozenset(
        {
            ("mcp.method.name", "tools/call"), ("gen_ai.operation.name", "execute_tool"), ("gen_ai.tool.name", "whoami"),
            ("mcp.protocol.version", "2026-07-28"), ("network.transport", "tcp"),
        }
    )  # fmt: skip
    point = points[mine]
    assert point.count == 3 == sum(point.bucket_counts)
    assert list(point.explicit_bounds) == list(OPERATION.bounds)
    assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
    assert 0 < point.start_time_unix_nano < point.time_unix_nano
    wanted = next(
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith(f"{OPERATION.prometheus}_sum") and "whoami" in line
    )
    assert point.sum == pytest.approx(wanted)
    calls = told["body_broker_calls"].sum
    assert calls.is_monotonic
    assert 3 in {each.as_double for each in calls.data_points}
    assert told["body_broker_open_calls"].gauge.data_points[0].as_double == 0
    (resource,) = collector.requests[-1].resource_metrics
    named = {each.key for each in resource.resource.attributes}
    assert named == {"service.name", "service.version", "service.instance.id"}


async def test_a_collector_that_is_away_harms_no_call_and_is_told_once(
    open_hub: OpenHub, monkeypatch: pytest.MonkeyPatch, redis: object, caplog: pytest.LogCaptureFixture
) -> None:
    _ = redis  # flushed before the test
    monkeypatch.setattr("mcp_servers.hub.tracing.METRICS_EVERY_S", 0.01)
    monkeypatch.setattr(exporting, "_TIMEOUT_S", 0.05)
    async with open_hub(otlp_url="http://127.0.0.1:1") as hub, hub.client("service:game") as client:
        await wait_until(lambda: "metrics_not_sent" in caplog.text, "it is told")
        result = await client.call_tool("whoami", {})

    assert not result.is_error
    assert caplog.text.count("metrics_not_sent") == 1
    assert [record.name for record in caplog.records if record.name.startswith(("opentelemetry", "urllib3"))] == []


def test_label_sets_are_bounded_whatever_engines_call_their_models() -> None:
    counts = TierCounts(CollectorRegistry())
    for n in range(5_000):
        counts.asked("chat", "vllm", f"model {n}", 0.1, Usage(1, 1), fault="")

    found = series(generate_latest(counts.registry).decode(), CHAT.prometheus)
    assert len(found) == 4_001
    assert found[frozenset({"_OTHER"})] == 1_000


def test_the_page_names_every_metric_of_the_conventions_with_its_attributes() -> None:
    page = PAGE.read_text("utf-8")
    for each in INSTRUMENTS:
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{each.name}` |")]
        assert f"`{each.prometheus}`" in row
        assert [name for name in each.attributes if f"`{name}`" not in row] == []


def test_the_page_names_every_metric_of_a_hub() -> None:
    page = PAGE.read_text("utf-8")
    registry = Metrics().registry
    TierCounts(registry)
    names = {each.name for each in registry.collect() if not each.name.startswith(("mcp_", "gen_ai_"))}
    assert sorted(name for name in names if f"`{name}" not in page) == []
