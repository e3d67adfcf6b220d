"""`poe bench`: measures the bars of docs/benchmarks.md and prints its tables; nothing here gates a test."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests.bench import decisions, door, starting


def main() -> int:
    """Run the named tables, or all."""
    tables = {
        "door": lambda folder, args: door.measure(folder / "door", args.rounds, args.seconds),
        "decisions": lambda _folder, _args: decisions.measure(),
        "starting": lambda folder, args: starting.measure(folder / "start", args.rounds),
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", choices=[*tables, []], help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2)
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        print("wrk is missing: apt-get install wrk", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        for name in args.tables or tables:
            print(f"\n## {name}\n\n{tables[name](Path(folder), args)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
