"""A streamed answer of eight pieces (DESIGN.md §8): what our engine and chain add to a bare aiohttp read of the very same bytes.

The server is a bare socket in a process of its own, `python -m tests.bench.stream`: it prints its address and looks at nothing.
"""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import cast

import aiohttp
import uvloop

from body_broker.storage import embedded
from body_broker.storage.migrations import migrate
from body_broker.storage.postgres import Pool, open_pool
from tests.bench.load import ROOT
from tests.bench.tiers import Times
from tests.counterparts.faultwall.answers import events
from tests.counterparts.faultwall.replies import Reply
from tiers.catalogue import Caps, EngineSpec
from tiers.chain import Candidate, Chain, Course
from tiers.cost import CostLedger
from tiers.counts import Counts
from tiers.deadline import Deadline
from tiers.engine import Engine
from tiers.model import Message, Tier, Told
from tiers.wire.base import Ask
from tiers.wire.vllm import Vllm

PIECES = tuple(f" piece-{number}" for number in range(8))
BARE = "bare aiohttp"
_MODEL = "bench"
_TIMES = 1_000
_WARM = 100
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
_ASK = Ask(model=_MODEL, messages=(Message(role="user", content="Who rows the ferry of Ashmere?"),), max_tokens=16)

Way = Callable[[], Awaitable[None]]


def measure(data_dir: Path, rounds: int) -> str:
    """The table as Markdown: medians over the rounds."""
    each = uvloop.run(_measured(data_dir, rounds))  # as the hub runs

    def middle(name: str, share: float) -> float:
        return statistics.median(times[name].at(share) for times in each)

    def cpu(name: str) -> float:
        return statistics.median(times[name].cpu_us for times in each)

    lines = ["| eight pieces, by | p50 µs | p95 µs | CPU µs | added p50 | added CPU |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for name in each[0]:
        figures = [middle(name, 0.5), middle(name, 0.95), cpu(name), middle(name, 0.5) - middle(BARE, 0.5)]
        lines.append(f"| {name} | {' | '.join(f'{f:.0f}' for f in (*figures, cpu(name) - cpu(BARE)))} |")
    return "\n".join(lines)


async def _measured(data_dir: Path, rounds: int) -> list[dict[str, Times]]:
    urls = await asyncio.to_thread(embedded.start, data_dir)
    try:
        with _serving_process() as url:
            async with open_pool(urls.database_url) as pool:
                await migrate(pool)
                return [await compare(pool, url) for _ in range(rounds)]
    finally:
        await asyncio.to_thread(embedded.release, data_dir)


async def compare(pool: Pool, url: str, times: int = _TIMES) -> dict[str, Times]:
    """The ways in turn, one request after another."""
    async with _ways(pool, url) as ways:
        took: dict[str, list[float]] = {name: [] for name in ways}
        worked = dict.fromkeys(ways, 0)
        gc.collect()
        for turn in range(-_WARM if times > _WARM else 0, times):
            for name, way in ways.items():
                began, worked_ns = time.perf_counter_ns(), time.process_time_ns()
                await way()
                if turn >= 0:
                    took[name].append((time.perf_counter_ns() - began) / 1e3)
                    worked[name] += time.process_time_ns() - worked_ns
    return {name: Times(seen, worked[name] / times / 1e3) for name, seen in took.items()}


class _Listens:
    """A client that hears pieces."""

    restarts = True

    async def __call__(self, told: Told) -> None:
        """Hear one."""


@asynccontextmanager
async def _ways(pool: Pool, url: str) -> AsyncGenerator[Mapping[str, Way]]:
    spec = EngineSpec(name="silver", tier=Tier.SILVER, dialect="vllm", url=url, model=_MODEL)
    engine, prepared = Engine(spec, Counts()), Vllm().ask(_ASK)
    headers = {"content-type": "application/json"}
    async with aiohttp.ClientSession() as session, CostLedger.opened(pool, Caps({}, {}, {}), Counts()) as ledger:
        chain, candidates = Chain(ledger, Counts()), [Candidate(engine, Tier.SILVER)]

        async def bare() -> None:
            size = 0
            async with session.post(url + prepared.path, data=prepared.body, headers=headers) as response:
                async for data in response.content.iter_any():
                    size += len(data)
            assert size, "an answer came"

        async def by_engine() -> None:
            found = await engine.run(_ASK, Deadline.after(15))
            assert found.text == "".join(PIECES)

        async def by_chain() -> None:
            course = Course(make=lambda _e, _m: _ASK, tenant="person:bench", deadline=Deadline.after(15))
            assert (await chain.run(candidates, course)).completion.text == "".join(PIECES)

        async def told() -> None:
            deadline = Deadline.after(15)
            course = Course(make=lambda _e, _m: _ASK, tenant="person:bench", deadline=deadline, listener=_Listens())
            assert (await chain.run(candidates, course)).completion.text == "".join(PIECES)

        yield {BARE: bare, "the engine": by_engine, "the chain": by_chain, "the chain, told as it comes": told}
        await engine.close()


class _Server(asyncio.Protocol):
    """Answers whatever is posted with the same eight pieces, each in a write of its own."""

    def __init__(self) -> None:
        self._parts = [_chunk(event.written()) for event in events("vllm", Reply(pieces=PIECES), {"model": _MODEL})]
        self._parts[-1] += b"0\r\n\r\n"
        self._data, self._transport = b"", None

    _transport: asyncio.Transport | None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class has no such parent

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
        if found and len(body) >= length:
            self._data = b""
            self._write(0)

    def _write(self, place: int) -> None:
        assert self._transport is not None
        self._transport.write((_HEAD if place == 0 else b"") + self._parts[place])
        if place + 1 < len(self._parts):
            asyncio.get_running_loop().call_soon(self._write, place + 1)


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


@asynccontextmanager
async def serving() -> AsyncGenerator[str]:
    """The server on this loop: its address."""
    server = await asyncio.get_running_loop().create_server(_Server, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@contextmanager
def _serving_process() -> Generator[str]:
    command = [sys.executable, "-m", "tests.bench.stream"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield str(json.loads(process.stdout.readline()))
        finally:
            process.terminate()


async def _serve() -> None:
    async with serving() as url:
        print(json.dumps(url), flush=True)
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    uvloop.run(_serve())
