"""Owns the processes of engines that are not ours: started, spoken to, paused, killed."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from body_broker.storage.embedded.children import before_exec
from tests.components import PROJECT

COUNTERPART = PROJECT / "tests" / "counterparts" / "engine.py"


@dataclass(frozen=True, slots=True)
class Outside:
    """A running engine."""

    process: asyncio.subprocess.Process

    async def walk(self, entity_id: str, place_id: str) -> None:
        """A player's step in its game."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"walk {entity_id} {place_id}\n".encode())
        await self.process.stdin.drain()

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def outside(redis_url: str, name: str = "counterpart") -> AsyncGenerator[Outside]:
    """The engine of tests/counterparts, a process of its own that knows a URL of Redis and nothing else."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        str(COUNTERPART),
        redis_url,
        name,
        stdin=asyncio.subprocess.PIPE,
        preexec_fn=before_exec(signal.SIGKILL, leave_root=False),
        cwd="/",
    )
    found = Outside(process)
    try:
        yield found
    finally:
        if process.returncode is None:
            await found.kill()
