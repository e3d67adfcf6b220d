"""An engine's slot after a client left (DESIGN.md §8): from the client's close until the engine sees its own connection closed.

The hub is a process of its own, `python -m tests.bench.slot DATA_DIR ENGINE_URL`; client and engine share this one, and so a clock.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from body_broker.settings import load_settings
from mcp_servers.hub.rooms import ROOMS
from mcp_servers.hub.runtime import open_runtime
from mcp_servers.hub.serve import Address, freeze_start_up, listening
from tests.bench.load import ROOT
from tests.bench.served import say
from tests.counterparts.faultwall.wall import KEY, MODEL, FaultWall, Reply, fault_wall
from tests.waiting import wait_until

STRAIGHT, THROUGH = "straight from the engine", "through the hub, /v1/chat/completions"
_TIMES = 30
_WARM = 5
_PIECE = b"drip"
_DRIP = Reply(pieces=("drip ",) * 3_000, gap_s=0.02)
_MESSAGES = [{"role": "user", "content": "Who rows?"}]
_PATIENT = {"latency_budget_ms": 55_000}


def measure(data_dir: Path, rounds: int) -> str:
    """The table as Markdown: of all rounds together."""
    times = uvloop.run(_measured(data_dir, _TIMES * rounds))
    lines = [
        "| a client leaves a stream | until the engine sees it: p50 ms | max ms | of |",
        "| --- | --- | --- | --- |",
    ]
    for name, took in times.items():
        lines.append(f"| {name} | {statistics.median(took) * 1e3:.2f} | {max(took) * 1e3:.2f} | {len(took)} |")
    return "\n".join(lines)


async def _measured(data_dir: Path, times: int) -> dict[str, list[float]]:
    async with fault_wall("vllm") as wall:
        with _hub_process(data_dir, wall.url["vllm"]) as (url, token):
            await leave(wall, url, token, times=_WARM)
            return await leave(wall, url, token, times=times)


async def leave(wall: FaultWall, hub_url: str, token: str, *, times: int) -> dict[str, list[float]]:
    """Seconds from each close of a client until the engine sees it, in turn: a client of the engine itself, and one of a hub before it."""
    wall.always["vllm"] = _DRIP
    asked = {"messages": _MESSAGES, "stream": True, "max_tokens": 4_000}
    ways = {
        STRAIGHT: _request(wall.url["vllm"], KEY, {**asked, "model": MODEL}),
        THROUGH: _request(hub_url, token, {**asked, "model": "silver", "body_broker": _PATIENT}),
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(times):
        for name, (address, request) in ways.items():
            took[name].append(await _left(wall, address, request))
    return took


async def _left(wall: FaultWall, address: tuple[str, int], request: bytes) -> float:
    reader, writer = await asyncio.open_connection(*address)
    before = len(wall.left_at)
    writer.write(request)
    await reader.readuntil(_PIECE)
    closed_at = time.perf_counter()
    writer.close()
    await wait_until(lambda: len(wall.left_at) > before, "the engine sees it")
    return wall.left_at[-1] - closed_at


def _request(url: str, token: str, body: Mapping[str, object]) -> tuple[tuple[str, int], bytes]:
    parts, sent = urlsplit(url), json.dumps(body).encode()
    head: Sequence[str] = (
        "POST /v1/chat/completions HTTP/1.1",
        f"Host: {parts.netloc}",
        f"Authorization: Bearer {token}",
        "Content-Type: application/json",
        f"Content-Length: {len(sent)}",
    )
    assert parts.hostname is not None, "an address of a server"
    assert parts.port is not None, "as above"
    return (parts.hostname, parts.port), "\r\n".join((*head, "", "")).encode() + sent


@contextmanager
def _hub_process(data_dir: Path, engine_url: str) -> Generator[tuple[str, str]]:
    command = [sys.executable, "-m", "tests.bench.slot", str(data_dir), engine_url]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None, "it is a pipe"
            told = json.loads(process.stdout.readline())
            yield told["url"], told["token"]
        finally:
            process.terminate()


async def _serve(data_dir: Path, engine_url: str) -> None:
    settings = load_settings({}, data_dir=data_dir, rate_per_s=50_000, embeddings="off", silver_url=engine_url)
    async with open_runtime(settings, ROOMS) as runtime, listening(runtime, Address("127.0.0.1", 0)) as served:
        freeze_start_up()
        issued = await runtime.tokens.issue("service:chat", ttl_s=7200)
        say(url=served.url.removesuffix("/mcp"), token=issued.token)
        await served.serving


if __name__ == "__main__":
    uvloop.run(_serve(Path(sys.argv[1]), sys.argv[2]))
