"""`poe bench`: measures the bars of docs/benchmarks.md and prints its tables; nothing here gates a test."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.bench import (
    approvals,
    bronze,
    costs,
    decisions,
    door,
    overload,
    retrieval,
    slot,
    starting,
    stream,
    tiers,
    tool_loop,
    tracing,
    world,
)


class Wanted(argparse.Namespace):
    """The command line."""

    tables: list[str]
    rounds: int
    seconds: float
    opensearch: bool


TABLES: dict[str, Callable[[Path, Wanted], str]] = {
    "door": lambda folder, wanted: door.measure(folder / "door", wanted.rounds, wanted.seconds),
    "tracing": lambda folder, wanted: tracing.measure(folder / "tracing", wanted.rounds, wanted.seconds),
    "costs": lambda folder, wanted: costs.measure(folder / "costs", 3 * wanted.seconds),
    "decisions": lambda _folder, _wanted: decisions.measure(),
    "starting": lambda folder, wanted: starting.measure(folder / "start", wanted.rounds),
    "world": lambda folder, wanted: world.measure(folder / "world", wanted.rounds, wanted.seconds),
    "approvals": lambda folder, wanted: approvals.measure(folder / "approvals", wanted.rounds, wanted.seconds),
    "bronze": lambda folder, wanted: bronze.measure(folder / "bronze", wanted.rounds, wanted.seconds),
    "tiers": lambda folder, wanted: tiers.measure(folder / "tiers", wanted.rounds),
    "stream": lambda folder, wanted: stream.measure(folder / "stream", wanted.rounds),
    "slot": lambda folder, wanted: slot.measure(folder / "slot", wanted.rounds),
    "overload": lambda folder, wanted: overload.measure(folder / "overload", 30 * wanted.seconds),
    "tool_loop": lambda folder, wanted: tool_loop.measure(folder / "tool_loop", wanted.rounds),
    "retrieval": lambda folder, wanted: retrieval.measure(folder / "lore", opensearch=wanted.opensearch),
}


def main() -> int:
    """Run the named tables, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []], help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--opensearch", action="store_true", help="retrieval: on a real node too (needs Java)")
    args = parser.parse_args(namespace=Wanted())
    if {"costs", "door", "tracing", "world", "approvals", "bronze"}.intersection(
        args.tables or TABLES
    ) and shutil.which("wrk") is None:
        print("wrk is missing: apt-get install wrk", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        for name in args.tables or TABLES:
            print(f"\n## {name}\n\n{TABLES[name](Path(folder), args)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
