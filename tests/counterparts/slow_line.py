"""Owns a line between a client and a server that can be held: answers wait on it until it is let go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

_METHODS = (b"POST ", b"PUT ", b"GET ", b"DELETE ")


class SlowLine:
    """Made by `slow_line`.

    Attributes:
        url: Where the client connects.
        begun: Requests that came over it.
        held: Requests whose answers wait, or waited.
    """

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._part: bytes | None = None
        self._free = asyncio.Event()
        self.url = ""
        self.begun = self.held = 0

    def hold(self, part: str = "") -> None:
        """Let no answer through to a request with this in its first line, nor what comes after it on its connection."""
        self._free.clear()
        self._part = part.encode()

    def let_go(self) -> None:
        """Let answers through again."""
        self._part = None
        self._free.set()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a client."""
        try:
            far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.close()
            return
        free = asyncio.Event()
        free.set()
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._ask(reader, far_writer, free))
                both.create_task(self._answer(far_reader, writer, free))
        finally:
            writer.close()
            far_writer.close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, free: asyncio.Event) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if data.startswith(_METHODS):
                    self.begun += 1
                    if self._part is not None and self._part in data.partition(b"\r\n")[0]:
                        self.held += 1
                        free.clear()
                    else:
                        free.set()
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, free: asyncio.Event) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if not free.is_set():
                    await self._free.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def slow_line(target: str) -> AsyncGenerator[SlowLine]:
    """A line to a server."""
    line = SlowLine(target)
    connections: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        with suppress(asyncio.CancelledError):
            await line.carry(reader, writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    line.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield line
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
