"""Approvals (DESIGN.md §8): from asking to the result where somebody says yes at once, and what a thousand that wait cost a read."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx2

from approvals.model import CHANNEL, Voter
from body_broker.settings import load_settings
from mcp_servers.hub.rooms import ROOMS
from mcp_servers.hub.runtime import Runtime, open_runtime
from mcp_servers.hub.tasks import EXTENSION
from tests.bench.load import Cell, Shot, fire, once, served
from tests.bench.rows import GATED

PENDING = 1_000
_CALLS = 100
_APPROVERS = '[people.sam]\ngroups = ["sre"]\n'
_AT_ONCE = 8
_TOOL = "bench_gated"
_VOTER = Voter(person="person:sam", via="mfa", factor="totp")  # as a channel would have proved it: that is not measured


def measure(data_dir: Path, rounds: int, seconds: float) -> str:
    """The tables as Markdown."""
    folders = (data_dir / "idle", data_dir / "full")
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "approvers.toml").write_text(_APPROVERS)
    with (
        served("nobody waits", "asking", str(folders[0])) as idle,
        served(f"{PENDING} approvals wait", "asking", str(folders[1])) as full,
    ):
        # Both have been up for a while, and the filling is over, before reads are compared.
        asyncio.run(_fill(full))
        waits, polls = asyncio.run(_answered(idle, folders[0], _CALLS * rounds))
        shots = reads(idle, full, rounds, seconds)
    return "\n".join(
        [
            "From the call to its result over HTTP, a worker beside the hub, a yes from another process as soon as it hears of it:",
            "",
            "| client | p50 ms | p99 | calls |",
            "| --- | --- | --- | --- |",
            _times("waits for its answer", waits),
            _times("follows a task, asking every 20 ms", polls),
            "",
            *reads_table(idle, full, shots),
        ]
    )


def reads_table(idle: Cell, full: Cell, shots: dict[str, list[tuple[Shot, Shot]]]) -> list[str]:
    """Two hubs' reads side by side, and the ratio between them, as lines of Markdown."""
    return [
        "| a read that has nothing to do with them | p50 µs at 1 | p99 | CPU µs at 1 / 16 |",
        "| --- | --- | --- | --- |",
        *(_line(cell, shots[cell.name]) for cell in (idle, full)),
        "",
        (
            f"p50 ratio, the median of {len(shots[idle.name])} pairs: {_ratio(shots[idle.name], shots[full.name]):.3f}; "
            f"of the quietest shots: {_quietest(shots[full.name]) / _quietest(shots[idle.name]):.3f}."
        ),
    ]


def _times(what: str, took_s: list[float]) -> str:
    cuts = statistics.quantiles(took_s, n=100)
    return f"| {what} | {cuts[49] * 1e3:.1f} | {cuts[98] * 1e3:.1f} | {len(took_s)} |"


def _line(cell: Cell, pairs: list[tuple[Shot, Shot]]) -> str:
    def middle(name: str, at: int) -> float:
        return statistics.median(getattr(pair[at], name) for pair in pairs)

    return f"| {cell.name} | {middle('p50_us', 0):.0f} | {middle('p99_us', 0):.0f} | {middle('cpu_us', 0):.0f} / {middle('cpu_us', 1):.0f} |"


def _ratio(idle: list[tuple[Shot, Shot]], full: list[tuple[Shot, Shot]]) -> float:
    return statistics.median(b.p50_us / a.p50_us for (a, _), (b, _) in zip(idle, full, strict=True))


def _quietest(pairs: list[tuple[Shot, Shot]]) -> float:
    return min(one.p50_us for one, _ in pairs)


def reads(idle: Cell, full: Cell, rounds: int, seconds: float) -> dict[str, list[tuple[Shot, Shot]]]:
    """Pairs of shots, the one first and then the other: what the machine does meanwhile falls on both."""
    shots: dict[str, list[tuple[Shot, Shot]]] = {idle.name: [], full.name: []}
    for turn in range(4 * rounds):
        for cell in (idle, full) if turn % 2 else (full, idle):
            once(cell, "read")
            shots[cell.name].append((fire(cell, "read", 1, seconds), fire(cell, "read", 16, seconds)))
    return shots


async def _answered(cell: Cell, data_dir: Path, calls: int) -> tuple[list[float], list[float]]:
    """Seconds that calls took which somebody says yes to at once: of a client that waits, and of one that follows a task."""
    settings = load_settings({}, data_dir=data_dir)
    waits: list[float] = []
    polls: list[float] = []
    async with (
        open_runtime(settings, (*ROOMS, GATED), name="cli") as runtime,
        _saying_yes(runtime),
        httpx2.AsyncClient(timeout=60) as http,
    ):
        for number in range(calls):
            began = time.perf_counter()
            await _call(http, cell, number, tasks=False)
            waits.append(time.perf_counter() - began)
            began = time.perf_counter()
            await _follow(http, cell, await _call(http, cell, calls + number, tasks=True))
            polls.append(time.perf_counter() - began)
    return waits, polls


@asynccontextmanager
async def _saying_yes(runtime: Runtime) -> AsyncGenerator[None]:
    """Somebody who says yes to whatever is asked, as soon as the database tells of it."""
    asked: asyncio.Queue[str] = asyncio.Queue()
    desk = runtime.approvals.desk

    async def vote() -> None:
        while True:
            approval = await desk.get(await asked.get())
            if approval.standing == "pending":
                await desk.vote(approval.id, digest=approval.digest, voter=_VOTER, verdict="approve")

    def heard(_connection: object, _pid: int, _channel: str, payload: object) -> None:
        asked.put_nowait(str(payload))

    connection = await asyncpg.connect(runtime.stores.database_url)
    await connection.add_listener(CHANNEL, heard)
    voting = asyncio.create_task(vote())
    try:
        yield
    finally:
        voting.cancel()
        await connection.close()


async def _follow(http: httpx2.AsyncClient, cell: Cell, task: dict[str, Any]) -> None:
    while task["status"] == "working":
        await asyncio.sleep(0.02)
        task = await _say(http, cell, "tasks/get", task["taskId"], {"taskId": task["taskId"]}, tasks=True)
    if task["status"] != "completed" or "isError" in task["result"]:
        raise SystemExit(f"the task did not end well: {task}")


async def _call(
    http: httpx2.AsyncClient, cell: Cell, number: int, *, tasks: bool, wait_s: float = 30
) -> dict[str, Any]:
    arguments = {"kind": "weather", "target": f"zone:{number}", "payload": {"rain": 0.5}, "key": "abcdefgh1"}
    params: dict[str, Any] = {"name": _TOOL, "arguments": arguments}
    found = await _say(http, cell, "tools/call", _TOOL, params, tasks=tasks, wait_s=wait_s)
    if tasks != (found["resultType"] == "task") or (wait_s and "isError" in found):
        raise SystemExit(f"{cell.name} answered {found}")
    return found


async def called(http: httpx2.AsyncClient, cell: Cell, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The structured result of one call as bronze; ends the program where it is refused."""
    params: dict[str, Any] = {"name": tool, "arguments": arguments}
    found = await _say(http, cell, "tools/call", tool, params, tasks=False)
    if found.get("isError"):
        raise SystemExit(f"{cell.name} refused {tool}: {found}")
    result: dict[str, Any] = found["structuredContent"]
    return result


async def _say(
    http: httpx2.AsyncClient,
    cell: Cell,
    method: str,
    name: str,
    params: dict[str, Any],
    *,
    tasks: bool,
    wait_s: float = 30,
) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {"extensions": {EXTENSION: {}}} if tasks else {},
    }
    if wait_s == 0:
        meta["body-broker/wait_s"] = 0
    headers = {
        "authorization": f"Bearer {cell.tokens['bronze']}",
        "accept": "application/json, text/event-stream",
        "mcp-protocol-version": "2026-07-28",
        "mcp-method": method,
        "mcp-name": name,
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}
    answer = (await http.post(cell.url, headers=headers, json=body)).json()
    if "result" not in answer:
        raise SystemExit(f"{cell.name} refused {method}: {answer}")
    result: dict[str, Any] = answer["result"]
    return result


async def _fill(cell: Cell) -> None:
    """Approvals that nobody decides, each by a call of its own."""
    numbers = iter(range(PENDING))

    async def ask(http: httpx2.AsyncClient) -> None:
        for number in numbers:
            await _call(http, cell, number, tasks=False, wait_s=0)

    async with httpx2.AsyncClient(timeout=60) as http:
        await asyncio.gather(*(ask(http) for _ in range(_AT_ONCE)))
