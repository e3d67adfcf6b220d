"""Owns load and its measurement: requests as a raw client sends them, wrk, CPU and memory from /proc, processes kept and ended."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.rows import CALLS

ROOT = Path(__file__).parents[2]
_UNITS_US = {"us": 1.0, "ms": 1e3, "s": 1e6}


@dataclass(frozen=True)
class Cell:
    """One served process under measurement."""

    name: str
    url: str
    tokens: dict[str, str]
    pid: int
    start_s: float


@dataclass(frozen=True)
class Shot:
    """One burst of load on one cell."""

    requests: int
    p50_us: float
    p99_us: float
    per_s: float
    cpu_us: float


def headers_and_body(cell: Cell, kind: str, *, stream: bool = False) -> tuple[dict[str, str], bytes]:
    """A modern-era request of a kind: read, write or list; `stream` asks for progress and so for SSE."""
    method = "tools/list" if kind == "list" else "tools/call"
    meta: dict[str, object] = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    if stream:
        meta["progressToken"] = 1
    params: dict[str, object] = {"_meta": meta}
    headers = {
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
        "mcp-protocol-version": "2026-07-28",
        "authorization": f"Bearer {cell.tokens['bronze' if kind == 'write' else 'silver']}",
        "mcp-method": method,
    }
    if kind != "list":
        params |= {"name": CALLS[kind][0], "arguments": CALLS[kind][1]}
        headers["mcp-name"] = CALLS[kind][0]
    return headers, json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()


def once(cell: Cell, kind: str, *, stream: bool = False) -> str:
    """One request; its answer as text, so that a bench never measures refusals."""
    headers, body = headers_and_body(cell, kind, stream=stream)
    with urllib.request.urlopen(urllib.request.Request(cell.url, body, headers), timeout=10) as answer:  # noqa: S310 - loopback
        text: str = answer.read().decode()
    wanted = '"tools":' if kind == "list" else '"structuredContent":'
    if wanted not in text or '"isError":true' in text:
        raise SystemExit(f"{cell.name} does not answer {kind}: {text[:400]}")
    return text


def fire(cell: Cell, kind: str, connections: int, seconds: float, *, stream: bool = False) -> Shot:
    """Load from another process by wrk, one thread."""
    headers, body = headers_and_body(cell, kind, stream=stream)
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        lines = ['wrk.method="POST"', f"wrk.body=[==[{body.decode()}]==]"]
        script.write("\n".join(lines + [f'wrk.headers["{k}"]=[==[{v}]==]' for k, v in headers.items()]))
        script.flush()
        before = cpu_s(cell.pid)
        said = subprocess.run(
            ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--latency", "-s", script.name, cell.url],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        spent = cpu_s(cell.pid) - before
    if "Non-2xx" in said or "Socket errors" in said:
        raise SystemExit(f"{cell.name} failed under {kind}: {said}")
    count = int(_found(r"(\d+) requests in", said)[0])
    return Shot(
        requests=count,
        p50_us=_micros(_found(r"50%\s+([\d.]+)(us|ms|s)", said)),
        p99_us=_micros(_found(r"99%\s+([\d.]+)(us|ms|s)", said)),
        per_s=float(_found(r"Requests/sec:\s+([\d.]+)", said)[0]),
        cpu_us=spent / count * 1e6,
    )


def _found(pattern: str, text: str) -> tuple[str, ...]:
    found = re.search(pattern, text)
    assert found, text
    return found.groups()


def _micros(parts: tuple[str, ...]) -> float:
    return float(parts[0]) * _UNITS_US[parts[1]]


def cpu_s(pid: int) -> float:
    """Seconds of CPU a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pss_mb(pid: int) -> float:
    """Proportional set size, in MB."""
    return _memory_mb(pid, ("Pss:",))


def uss_mb(pid: int) -> float:
    """Unique set size, in MB: what no other process shares, so that none that comes or goes changes it."""
    return _memory_mb(pid, ("Private_Clean:", "Private_Dirty:"))


def _memory_mb(pid: int, kinds: tuple[str, ...]) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(kinds)) / 1024


@contextmanager
def served(name: str, *args: str) -> Generator[Cell]:
    """A process of tests.bench.served, ready; ended on the way out."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.served", *args],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        facts = json.loads(process.stdout.readline())
        cell = Cell(name, facts["url"], facts["tokens"], facts["pid"], 0.0)
        once_ready(cell)
        yield Cell(name, facts["url"], facts["tokens"], facts["pid"], time.monotonic() - began)
    finally:
        process.terminate()
        process.wait(30)
        if process.stdout is not None:
            process.stdout.close()


def once_ready(cell: Cell) -> None:
    """The first answered call; a server whose socket is not accepting yet is asked again."""
    end = time.monotonic() + 30
    while True:
        try:
            once(cell, "read")
        except urllib.error.URLError:
            if time.monotonic() > end:
                raise
            time.sleep(0.005)
        else:
            return
