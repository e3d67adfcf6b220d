"""Cold start to the first answered call, and memory at rest: fresh data dirs and warm ones, the hub as shipped."""

from __future__ import annotations

import statistics
from pathlib import Path

from tests.bench.load import pss_mb, served


def measure(folder: Path, rounds: int) -> str:
    """The table as Markdown; seconds from starting the process to its first answered tools/call over HTTP."""
    first = [_start(folder / f"first-{i}") for i in range(rounds)]
    with served("keeps the stores up", "hub", str(folder / "warm")):
        warm = [_start(folder / "warm") for _ in range(rounds)]
    return "\n".join(
        [
            "| what | seconds, median of each start | PSS MB of the hub process at rest |",
            "| --- | --- | --- |",
            f"| first ever start: empty data dir, stores created | {statistics.median(s for s, _ in first):.2f} | {statistics.median(m for _, m in first):.0f} |",
            f"| embedded stores already up | {statistics.median(s for s, _ in warm):.2f} | {statistics.median(m for _, m in warm):.0f} |",
        ]
    )


def _start(data_dir: Path) -> tuple[float, float]:
    with served("hub", "hub", str(data_dir)) as cell:
        return cell.start_s, pss_mb(cell.pid)
