"""Owns a terminal for tests: a command with a person in front of it, who reads, and types what is not shown."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.mcp_servers.hub.test_clients import HUB


@dataclass
class Terminal:
    """What was written so far, and where to type."""

    process: asyncio.subprocess.Process
    file: int
    said: str = ""

    async def sees(self, text: str) -> str:
        """Everything said so far, once this text is in it."""
        async with asyncio.timeout(240):
            while text not in self.said and await self._more():
                pass
        assert text in self.said, self.said
        return self.said

    def types(self, line: str) -> None:
        os.write(self.file, f"{line}\n".encode())

    def interrupts(self) -> None:
        """What Ctrl-C sends."""
        self.process.send_signal(signal.SIGINT)

    async def ends(self) -> int:
        """The exit code, when everything was read."""
        async with asyncio.timeout(240):
            while await self._more():
                pass
            return await self.process.wait()

    async def _more(self) -> bool:
        found = await asyncio.to_thread(_read, self.file)
        self.said += found.replace("\r\n", "\n")
        return found != ""


def _read(file: int) -> str:
    try:
        return os.read(file, 65536).decode("utf-8", "replace")
    except OSError:  # Linux says so when the other end is closed
        return ""


@asynccontextmanager
async def at_terminal(*command: str, **env: str) -> AsyncGenerator[Terminal]:
    """A command of ours at a terminal of its own."""
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(HUB, *command),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, **env},  # noqa: TID251 - a child's environment
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(ours)
