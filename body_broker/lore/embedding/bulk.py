"""Owns the parent's side of the process that makes vectors in bulk: started when there is work, ended when there is none for a while."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path

import orjson

from body_broker.background import end
from body_broker.lore.embedding.words import BadVectors, ModelAway, Numbers, Text

_CHILD = (
    "import sys; sys.path[:] = sys.argv.pop(1).split(':'); from body_broker.lore.embedding.child import main; main()"
)
IDLE_S = 30.0


class Bulk:
    """Makes vectors of passages by MiniLM in a process of its own, so that neither the event loop nor a query waits for it.

    Args:
        folder: The model's.
        idle_s: How long the process is kept without work.
    """

    def __init__(self, folder: Path, idle_s: float = IDLE_S) -> None:
        self._folder, self._idle_s = folder, idle_s
        self._lock = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._retiring: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The process, while there is one."""
        return self._process and self._process.pid

    async def passages(self, texts: Sequence[Text]) -> list[Sequence[Numbers]]:
        """The vectors of each passage.

        Raises:
            ModelAway: The process ended, or refuses the weights.
        """
        async with self._lock:
            await self._stay()
            try:
                found = await self._ask(self._process or await self._start(), texts)
            except BaseException:
                # Whatever it still says belongs to this question, not to the next.
                await asyncio.shield(asyncio.ensure_future(self._end()))
                raise
            self._retiring = asyncio.create_task(self._retire(), name="bulk vectors idle")
            return found

    async def close(self) -> None:
        """End the process."""
        await self._stay()
        async with self._lock:
            await self._end()

    async def _start(self) -> asyncio.subprocess.Process:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-IS",
            "-c",
            _CHILD,
            ":".join(sys.path),
            str(self._folder),
            str(os.getpid()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={
                "OPENBLAS_NUM_THREADS": "1",
                "TOKENIZERS_PARALLELISM": "false",
            },  # it makes batches side by side instead
        )
        return self._process

    async def _ask(self, process: asyncio.subprocess.Process, texts: Sequence[Text]) -> list[Sequence[Numbers]]:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None, "it was started with pipes"
        assert stdout is not None, "it was started with pipes"
        request = orjson.dumps([[text.title, text.heading, text.content] for text in texts])
        try:
            stdin.write(len(request).to_bytes(4, "big") + request)
            await stdin.drain()
            said = orjson.loads(await _message(stdout))
            if "refused" in said:
                raise ModelAway(said["refused"], next_step=said["next_step"])
            numbers = array("f", await _message(stdout))
        except (EOFError, ConnectionError) as error:
            # One of the texts may be why: whoever asked tries fewer.
            raise BadVectors("The process that makes vectors ended in the middle of its work.") from error
        return list(_regrouped(numbers, said["parts"]))

    async def _retire(self) -> None:
        await asyncio.sleep(self._idle_s)
        async with self._lock:
            await self._end()

    async def _stay(self) -> None:
        if self._retiring is not None:
            retiring, self._retiring = self._retiring, None
            await end(retiring)

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _message(pipe: asyncio.StreamReader) -> bytes:
    return await pipe.readexactly(int.from_bytes(await pipe.readexactly(4), "big"))


def _regrouped(numbers: Numbers, parts: Sequence[int]) -> Sequence[Sequence[Numbers]]:
    total = sum(parts)
    width = len(numbers) // total if total else 0
    vectors = iter([numbers[at * width : (at + 1) * width] for at in range(total)])
    return [[next(vectors) for _ in range(count)] for count in parts]
