"""What of a call costs what: the stacks of a served hub under load, sampled from outside it by py-spy; `poe bench costs`."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests.bench.load import Cell, fire, once, served

CLIENTS = 16
_PER_S = 400
_KINDS = (("list", False), ("read", False), ("read SSE", True), ("write", False))
_IDLE = "concurrent/futures/thread.py"
_FILE = re.compile(r"\((.+?)(?::\d+)?\)$")

PARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("the tool itself", ("rows.py",)),
    ("who asks: JWT, revocation", ("mcp_servers/hub/identity.py", "mcp_servers/hub/tokens.py")),
    (
        "session, taint, limits (Valkey, PostgreSQL)",
        (
            "mcp_servers/hub/session",
            "mcp_servers/hub/limits.py",
            "body_broker/storage/",
            "redis/",
            "asyncio/streams.py",
        ),
    ),
    ("audit: record, MAC, commit", ("body_broker/audit/", "mcp_servers/hub/recording.py", "asyncpg/")),
    (
        "gate and decision (Cedar)",
        ("mcp_servers/hub/gate.py", "mcp_servers/hub/calling.py", "mcp_servers/hub/guard.py", "policies/"),
    ),
    (
        "telemetry",
        (
            "mcp_servers/hub/watching.py",
            "mcp_servers/hub/conventions.py",
            "mcp_servers/hub/metrics.py",
            "mcp_servers/hub/tracing.py",
            "body_broker/tracing.py",
        ),
    ),
    (
        "MCP's form: the SDK's server and ours",
        ("mcp/", "anyio/", "mcp_servers/hub/protocol.py", "mcp_servers/hub/wire.py"),
    ),
    ("the door: host, origin, head, body, limits", ("mcp_servers/hub/", "body_broker/")),
    ("HTTP and its socket (uvicorn, uvloop, the kernel)", ("uvicorn/",)),
)
REST = "the event loop, and the rest"


def part_of(stack: Iterable[str]) -> str:
    """Whose a sampled stack is: the innermost frame that anybody owns."""
    for frame in reversed(list(stack)):
        found = _FILE.search(frame)
        place = found[1] if found else ""
        for name, owned in PARTS:
            if place.startswith(owned):
                return name
    return REST


def measure(data_dir: Path, seconds: float) -> str:
    """The table as Markdown: microseconds of the hub's CPU a call, by part, with 16 clients."""
    if shutil.which("py-spy") is None:
        raise SystemExit("py-spy is not there: uv run --with py-spy poe bench costs")
    found: dict[str, tuple[Counter[str], float]] = {}
    with served("hub", "hub", str(data_dir)) as cell:
        for kind, stream in _KINDS:
            once(cell, kind.split()[0], stream=stream)
            fire(cell, kind.split()[0], CLIENTS, seconds, stream=stream)
            cpu_us = fire(cell, kind.split()[0], CLIENTS, seconds, stream=stream).cpu_us
            found[kind] = _sampled(cell, kind.split()[0], data_dir / "stacks", seconds, stream=stream), cpu_us
    return _table(found)


def _sampled(cell: Cell, kind: str, out: Path, seconds: float, *, stream: bool) -> Counter[str]:
    command = ["py-spy", "record", "-r", str(_PER_S), "-d", f"{seconds:.0f}", "-f", "raw", "-o", str(out)]
    spying = subprocess.Popen([*command, "-p", str(cell.pid)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    fire(cell, kind, CLIENTS, seconds + 2, stream=stream)
    if spying.wait(60):
        raise SystemExit("py-spy cannot look into another process here")
    parts: Counter[str] = Counter()
    for line in out.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        if _IDLE not in stack.rpartition(";")[2]:
            parts[part_of(stack.split(";"))] += int(count)
    return parts


def _table(found: dict[str, tuple[Counter[str], float]]) -> str:
    lines = [f"| CPU µs a call, {CLIENTS} clients | {' | '.join(found)} |", "| --- |" + " --- |" * len(found)]
    for name in (*(name for name, _ in PARTS), REST):
        shares = [parts[name] / parts.total() * cpu_us for parts, cpu_us in found.values()]
        lines.append(f"| {name} | {' | '.join(f'{each:.0f}' for each in shares)} |")
    lines.append(f"| all | {' | '.join(f'{cpu_us:.0f}' for _, cpu_us in found.values())} |")
    return "\n".join(lines)
