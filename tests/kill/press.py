"""A server of the tests' own, and the product with it: tools whose effects are lines in a file, which no kill takes back.

Started as the product is: `python -m tests.kill.press serve ...`. Its folder is named by PRESS_DIR.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path

from body_broker.calls import Arguments, Call, Result, Room, Tool
from mcp_servers.hub import rooms

FOLDER = "PRESS_DIR"
BEGUN, PRINTED, BEFORE, AFTER = "begun", "printed", "before", "after"
"""Files: who is inside, what was printed, and the two places at which whoever holds the lock keeps a printer."""


class Print(Arguments):
    title: str


class Printed(Result):
    title: str


async def print_once(arguments: Print, call: Call, _services: object) -> Printed:
    """A line for each time it runs."""
    await asyncio.to_thread(_print, call.key or "", keyed=False)
    return Printed(title=arguments.title)


async def print_again(arguments: Print, call: Call, _services: object) -> Printed:
    """A line for each key, however often it runs."""
    await asyncio.to_thread(_print, call.key or "", keyed=True)
    return Printed(title=arguments.title)


def _print(key: str, *, keyed: bool) -> None:
    folder = Path(os.environ[FOLDER])  # noqa: TID251 - the tests' own
    _append(folder / BEGUN, f"{key} {os.getpid()}")
    _pass(folder / BEFORE)
    with (folder / PRINTED).open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        if not keyed or key not in file.read().splitlines():
            file.write(f"{key}\n")
            file.flush()
            os.fsync(file.fileno())
    _append(folder / BEGUN, f"{key} {os.getpid()} printed")
    _pass(folder / AFTER)


def _append(file: Path, line: str) -> None:
    with file.open("a", encoding="utf-8") as open_file:
        open_file.write(f"{line}\n")


def _pass(gate: Path) -> None:
    with gate.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_SH)


PRESS = Room(
    name="press",
    title="Press",
    description="Prints.",
    tools=(
        Tool(
            name="print_once",
            run=print_once,
            title="Print once",
            description="Print a line, each time.",
            group="write",
            effect="once",
            output="ours",
        ),
        Tool(
            name="print_again",
            run=print_again,
            title="Print again",
            description="Print a line, once for each key.",
            group="write",
            effect="repeatable",
            output="ours",
        ),
    ),
)

if __name__ == "__main__":
    rooms.ROOMS = (*rooms.ROOMS, PRESS)
    from mcp_servers.hub.cli import main  # after the room is there: whoever imports the rooms takes them as they are

    main()
