"""What telemetry costs a call: hubs with tracing off, at 1 % and whole, in turn in one run; `poe bench tracing`.

The collector is a process of its own, `python -m tests.bench.tracing`: it takes what it is sent and counts the spans.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.request import urlopen

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.bench.load import ROOT, Cell, Shot, fire, once, served

OFF, SAMPLED, WHOLE = "off", "1 %", "100 %"
KINDS = (("read", False), ("read SSE", True), ("write", False))
_BYTES_MAX = 64 * 1024 * 1024


def measure(data_dir: Path, rounds: int, seconds: float) -> str:
    """The table as Markdown; each ratio is the median over the rounds of two shots that followed one another."""
    with ExitStack() as stack:
        url = stack.enter_context(_collector())
        cells = {OFF: stack.enter_context(served(OFF, "hub", str(data_dir / "off")))}
        for name, ratio in ((SAMPLED, "0.01"), (WHOLE, "1.0")):
            with _sampling(ratio):
                folder = str(data_dir / f"at {ratio}")
                cells[name] = stack.enter_context(served(name, "traced", folder, url))
        shots: dict[tuple[str, str], list[tuple[Shot, Shot]]] = {}
        for turn in range(rounds):
            names = list(cells) if turn % 2 == 0 else list(reversed(cells))
            for kind, stream in KINDS:
                for name in names:
                    pair = _pair(cells[name], kind.split()[0], seconds, stream=stream)
                    shots.setdefault((kind, name), []).append(pair)
        spans = _counted(url)
    calls = {
        name: sum(a.requests + b.requests for (_, of), pairs in shots.items() if of == name for a, b in pairs)
        for name in cells
    }
    if not spans:
        raise SystemExit("no span has reached the collector: nothing was measured")
    told = f"{calls[SAMPLED]} calls at 1 %, {calls[WHOLE]} at 100 %; {spans} spans had reached the collector, whose queue drops what is too much."
    return f"{_table(shots)}\n\n{told}"


def _pair(cell: Cell, kind: str, seconds: float, *, stream: bool) -> tuple[Shot, Shot]:
    once(cell, kind, stream=stream)
    return fire(cell, kind, 1, seconds, stream=stream), fire(cell, kind, 16, seconds, stream=stream)


def _table(shots: dict[tuple[str, str], list[tuple[Shot, Shot]]]) -> str:
    lines = [
        "| what | tracing | p50 µs at 1 | CPU µs at 1 / 16 | p50 ratio | CPU ratio at 1 / 16 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for (kind, name), pairs in shots.items():
        off = shots[kind, OFF]
        ratios = [
            statistics.median(part(mine) / part(theirs) for mine, theirs in zip(pairs, off, strict=True))
            for part in (_p50, _cpu_one, _cpu_sixteen)
        ]
        p50, one, sixteen = (statistics.median(map(part, pairs)) for part in (_p50, _cpu_one, _cpu_sixteen))
        said = f"{ratios[0]:.3f} | {ratios[1]:.3f} / {ratios[2]:.3f}" if name != OFF else " | "
        lines.append(f"| {kind} | {name} | {p50:.0f} | {one:.0f} / {sixteen:.0f} | {said} |")
    return "\n".join(lines)


def _p50(pair: tuple[Shot, Shot]) -> float:
    return pair[0].p50_us


def _cpu_one(pair: tuple[Shot, Shot]) -> float:
    return pair[0].cpu_us


def _cpu_sixteen(pair: tuple[Shot, Shot]) -> float:
    return pair[1].cpu_us


@contextmanager
def _sampling(ratio: str) -> Generator[None]:
    """Processes that are begun inside sample so: by OpenTelemetry's own variables, as an operator would."""
    said = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": ratio}
    os.environ.update(said)  # noqa: TID251 - another library's switch
    try:
        yield
    finally:
        for name in said:
            del os.environ[name]  # noqa: TID251 - the same


@contextmanager
def _collector() -> Generator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.tracing"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.terminate()
        process.wait(30)


def _counted(url: str) -> int:
    with urlopen(f"{url}/count", timeout=10) as answer:  # noqa: S310 - loopback
        return int(answer.read())


async def collect() -> None:
    """Take spans and metrics until the process is ended."""
    spans = 0

    async def take(request: web.Request) -> web.Response:
        nonlocal spans
        found = ExportTraceServiceRequest.FromString(await request.read())
        spans += sum(len(scope.spans) for each in found.resource_spans for scope in each.scope_spans)
        return web.Response(content_type="application/x-protobuf")

    async def drop(_request: web.Request) -> web.Response:
        return web.Response(content_type="application/x-protobuf")

    async def count(_request: web.Request) -> web.Response:
        return web.Response(text=str(spans))

    app = web.Application(client_max_size=_BYTES_MAX)
    app.add_routes([web.post("/v1/traces", take), web.post("/v1/metrics", drop), web.get("/count", count)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(json.dumps({"url": f"http://127.0.0.1:{runner.addresses[0][1]}"}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(collect())
