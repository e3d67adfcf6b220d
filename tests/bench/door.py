"""The door's rows of DESIGN.md §8: our hub with everything on beside FastMCP without checks, interleaved in one run."""

from __future__ import annotations

import asyncio
import statistics
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from body_broker.storage import embedded
from tests.bench.load import Cell, Shot, fire, once, pss_mb, served

KINDS = (("read", False), ("read SSE", True), ("write", False), ("list", False))


@dataclass(frozen=True)
class Row:
    """One measured line."""

    what: str
    cell: str
    one: Shot
    sixteen: Shot


def measure(data_dir: Path, rounds: int, seconds: float) -> str:
    """The table as Markdown. Every bar is a ratio inside this run, or CPU of the hub's process."""
    with ExitStack() as stack:
        baseline = stack.enter_context(served("FastMCP + lookup + JWT, no checks", "fastmcp"))
        hub = stack.enter_context(served("hub, everything on", "hub", str(data_dir)))
        shots: dict[tuple[str, str], list[tuple[Shot, Shot]]] = {}
        counted = _count(data_dir)
        sent = 0
        for _ in range(rounds):
            for what, stream in KINDS:
                for cell in (baseline, hub):
                    if cell is baseline and what != "read":
                        continue
                    pair = _fire_pair(cell, what.split()[0], seconds, stream=stream)
                    shots.setdefault((what, cell.name), []).append(pair)
                    if cell is hub and what != "list":
                        sent += pair[0].requests + pair[1].requests
        once(hub, "write")  # its record is durable, and so is every one before it
        recorded = _count(data_dir) - counted
        memory = {cell.name: pss_mb(cell.pid) for cell in (baseline, hub)}
    rows = [
        Row(what, cell, _median([a for a, _ in pairs]), _median([b for _, b in pairs]))
        for (what, cell), pairs in shots.items()
    ]
    return (
        _table(rows, memory) + f"\n\nAudit: {sent} calls sent by the load, {recorded} records found (a write has two)."
    )


def _fire_pair(cell: Cell, kind: str, seconds: float, *, stream: bool) -> tuple[Shot, Shot]:
    once(cell, kind, stream=stream)
    return fire(cell, kind, 1, seconds, stream=stream), fire(cell, kind, 16, seconds, stream=stream)


def _median(shots: list[Shot]) -> Shot:
    return Shot(
        requests=sum(s.requests for s in shots),
        p50_us=statistics.median(s.p50_us for s in shots),
        p99_us=statistics.median(s.p99_us for s in shots),
        per_s=statistics.median(s.per_s for s in shots),
        cpu_us=statistics.median(s.cpu_us for s in shots),
    )


def _table(rows: list[Row], memory: dict[str, float]) -> str:
    base = next(r for r in rows if r.cell.startswith("FastMCP"))
    lines = [
        "| what | served by | p50 µs at 1 | p99 | CPU µs at 1 / 16 | requests/s at 16 | p50 ratio | PSS MB after |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(rows, key=lambda r: (r.what, r.cell)):
        ratio = f"{row.one.p50_us / base.one.p50_us:.2f}x" if row.what == "read" else ""
        lines.append(
            f"| {row.what} | {row.cell} | {row.one.p50_us:.0f} | {row.one.p99_us:.0f} "
            f"| {row.one.cpu_us:.0f} / {row.sixteen.cpu_us:.0f} | {row.sixteen.per_s:.0f} | {ratio} | {memory[row.cell]:.0f} |"
        )
    return "\n".join(lines)


def _count(data_dir: Path) -> int:
    """Records on the audit, asked of the database itself and not of the hub."""
    urls = embedded.start(data_dir)
    try:
        return int(_psql(urls.database_url, "select count(*) from audit_record"))
    finally:
        embedded.release(data_dir)


def _psql(url: str, statement: str) -> str:
    async def ask() -> object:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return str(asyncio.run(ask()))
