"""Experts' jobs (DESIGN.md §6): what asking for one takes, in process and over HTTP, and what a thousand that wait cost a read."""

from __future__ import annotations

import asyncio
import itertools
import socket
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from body_broker.settings import load_settings
from body_broker.work.model import Origin
from mcp_servers.hub.runtime import open_runtime
from tests.bench.approvals import called, reads, reads_table
from tests.bench.load import Cell, served
from tiers.bronze.jobs import Jobs
from tiers.bronze.model import Assignment
from tiers.model import Message

QUEUED = 1_000
_CALLS = 200
_AT_ONCE = 8
_TIER, _OPEN_MAX = "tier:bronze", 1_000_000


def measure(data_dir: Path, rounds: int, seconds: float) -> str:
    """The tables as Markdown."""
    folders = (data_dir / "idle", data_dir / "full")
    for folder in folders:
        folder.mkdir(parents=True)
    with (
        silent() as engine,
        served("no job waits", "experts", str(folders[0]), engine) as idle,
        served(f"{QUEUED} jobs wait", "experts", str(folders[1]), engine) as full,
    ):
        asyncio.run(_fill(full))
        in_process = asyncio.run(_submitted(folders[0], _CALLS * rounds))
        submitted, looked = asyncio.run(_over_http(idle, _CALLS * rounds))
        _, beside = asyncio.run(_over_http(full, _CALLS * rounds))
        shots = reads(idle, full, rounds, seconds)
    return "\n".join(
        [
            "Two hubs, each with its worker and with an engine that says nothing, so that jobs stay where they are:",
            "",
            "| what | p50 ms | p99 | times |",
            "| --- | --- | --- | --- |",
            _times("`Jobs.submit`, one transaction", in_process),
            _times("`submit_job` over HTTP, durably audited", submitted),
            _times("`get_job` over HTTP", looked),
            _times(f"`get_job` over HTTP, {QUEUED} jobs wait", beside),
            "",
            *reads_table(idle, full, shots),
        ]
    )


def _times(what: str, took_s: list[float]) -> str:
    cuts = statistics.quantiles(took_s, n=100)
    return f"| {what} | {cuts[49] * 1e3:.2f} | {cuts[98] * 1e3:.2f} | {len(took_s)} |"


async def _submitted(data_dir: Path, times: int) -> list[float]:
    async with open_runtime(load_settings({}, data_dir=data_dir), name="cli") as runtime:
        jobs = Jobs(runtime.stores.pool, open_max=_OPEN_MAX, concurrency=4)
        origin = Origin(chain=("person:bench",), session="ses_bench")

        async def submit() -> object:
            message = Message(role="user", content="Write nothing.")
            return await jobs.submit(Assignment(kind="expert", title="bench", messages=(message,)), origin)

        return await _timed(submit, times)


async def _over_http(cell: Cell, times: int) -> tuple[list[float], list[float]]:
    """Seconds of submit_job and of get_job, one after another by one client."""
    async with httpx2.AsyncClient(timeout=60) as http:
        first = await _submit(http, cell)
        return (
            await _timed(lambda: _submit(http, cell), times),
            await _timed(lambda: called(http, cell, "get_job", {"id": first}), times),
        )


async def _submit(http: httpx2.AsyncClient, cell: Cell) -> str:
    found = await called(http, cell, "submit_job", {"prompt": "Write nothing.", "title": "bench", "tools": []})
    return str(found["job_id"])


async def _timed(once: Callable[[], Awaitable[object]], times: int) -> list[float]:
    took: list[float] = []
    await once()
    for _ in range(times):
        began = time.perf_counter()
        await once()
        took.append(time.perf_counter() - began)
    return took


async def _fill(cell: Cell) -> None:
    numbers = itertools.count()

    async def ask(http: httpx2.AsyncClient) -> None:
        while next(numbers) < QUEUED:
            await _submit(http, cell)

    async with httpx2.AsyncClient(timeout=60) as http:
        await asyncio.gather(*(ask(http) for _ in range(_AT_ONCE)))


@contextmanager
def silent() -> Generator[str]:
    """The address of an engine that takes every question and answers none."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            for each in taken:
                each.close()
