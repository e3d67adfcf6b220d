"""Owns other processes that use embedded stores, as root and as an ordinary user, and how a test asks the stores."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from body_broker.storage import embedded
from body_broker.storage.embedded.processes import birth
from body_broker.storage.redis import open_redis
from tests.components import PROJECT, missing
from tests.waiting import wait_until_sync

ORDINARY_UID = 65534
_USE = """
import json, signal, sys
from pathlib import Path
from body_broker.errors import StoreStartError
from body_broker.storage import embedded
signal.signal(signal.SIGINT, signal.SIG_DFL)  # a test run in the background has it ignored
try:
    urls = embedded.start(Path(sys.argv[1]), **json.loads(sys.argv[2]))
    print(json.dumps({"urls": [urls.database_url, urls.redis_url], "keeper": embedded.status(Path(sys.argv[1])).keeper_pid}), flush=True)
    sys.stdin.read()
except StoreStartError as error:
    print(json.dumps({"error": error.message, "next_step": error.next_step}), flush=True)
"""


@dataclass(frozen=True)
class Account:
    """Who a process runs as, with a home that nobody else may enter."""

    uid: int
    home: Path
    prefix: tuple[str, ...] = ()


class User:
    """A process that uses the stores of a data directory until it is told to stop, or killed."""

    def __init__(self, account: Account, data_dir: Path, **wanted: bool) -> None:
        self.process = subprocess.Popen(
            [*account.prefix, sys.executable, "-c", _USE, str(data_dir), json.dumps(wanted)],
            cwd=PROJECT,
            env={"HOME": str(account.home), "PATH": os.defpath},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def said(self) -> dict[str, Any]:  # JSON of our own
        """The line it printed, which it waits with until the stores answer."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, "the user ended without a word"
        return json.loads(line)

    def urls(self) -> embedded.StoreUrls:
        """Where the stores are."""
        said = self.said()
        assert "urls" in said, said
        return embedded.StoreUrls(*said["urls"])

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Send it a signal and wait."""
        self.process.send_signal(how)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()


Use = Callable[..., User]
as_root_and_as_ordinary = pytest.mark.parametrize("account", ["root", "ordinary"], indirect=True)


def sql(urls: embedded.StoreUrls, statement: str) -> Any:  # whatever the first column holds
    """The first value of the statement's answer, over a connection of its own."""

    async def ask() -> Any:  # the same
        connection = await asyncpg.connect(urls.database_url)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(ask())


def redis(urls: embedded.StoreUrls, *command: str) -> Any:  # whatever the server answers
    """What Valkey answers."""

    async def ask() -> Any:  # the same
        async with open_redis(urls.redis_url) as client:
            return await client.execute_command(*command)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # redis-py's hints

    return asyncio.run(ask())


def wait_gone(status: embedded.EmbeddedStatus) -> None:
    """Until no process of that status lives."""
    born = {pid: birth(pid) for pid in (status.keeper_pid, status.postgres_pid, status.valkey_pid) if pid}
    wait_until_sync(lambda: not any(began and birth(pid) == began for pid, began in born.items()), f"{status} is gone")


def end(data_dir: Path) -> None:
    """Give up this process's own hold, the last one, and wait until all is over."""
    before = embedded.status(data_dir)
    embedded.release(data_dir)
    wait_gone(before)


def leave_nothing(home: Path) -> None:
    """Wait for the stores below, which nobody uses any more, and remove everything."""
    for written in home.glob("**/stores/keeper.json"):
        wait_gone(embedded.status(written.parents[1]))
    shutil.rmtree(home)


def become_ordinary() -> tuple[str, ...]:
    """A command that runs another as an ordinary user; it may read past closed directories where ours lie behind one."""
    if (setpriv := shutil.which("setpriv")) is None:
        missing("setpriv", "util-linux has the command that drops root")
    ours = [Path(sys.executable).resolve(), Path(sys.executable).absolute(), PROJECT]
    closed = any(not parent.stat().st_mode & 0o001 for path in ours for parent in path.parents)
    reading = ("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search") if closed else ()
    return (setpriv, f"--reuid={ORDINARY_UID}", f"--regid={ORDINARY_UID}", "--clear-groups", *reading)
