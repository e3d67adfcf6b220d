"""Owns a line to a store on a socket file: cut, nobody gets through and who was through is thrown out; silent, nothing comes back any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Literal
from urllib.parse import parse_qs, urlsplit

State = Literal["open", "cut", "silent"]


class Line:
    """A line to one store.

    Args:
        store_url: PostgreSQL's or Valkey's, on a socket file.

    Attributes:
        url: Where it is reached over this line.
    """

    def __init__(self, store_url: str) -> None:
        parts = urlsplit(store_url)
        self._path = parts.path
        if parts.scheme == "unix":
            self._far, self._form = parts.path, "redis://127.0.0.1:{port}/0"
        else:
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            self._far = f"{query['host']}/.s.PGSQL.{query['port']}"
            self._form = "postgresql://postgres@127.0.0.1:{port}{path}?sslmode=disable"
        self._ends: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._is_cut = False
        self.url = ""

    def become(self, state: State) -> None:
        """Cut the line, make it silent, or mend it."""
        self._is_cut = state == "cut"
        if state == "silent":
            self._flows.clear()
            return
        self._flows.set()
        if self._is_cut:
            for writer in list(self._ends):
                writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_unix_connection(self._far)
        ends = {writer, far_writer}
        self._ends |= ends
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        self._ends -= ends

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        writer.close()

    @asynccontextmanager
    async def carrying(self) -> AsyncGenerator[Line]:
        """The line, while it is used."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = self._form.format(port=server.sockets[0].getsockname()[1], path=self._path)
        try:
            yield self
        finally:
            self.become("cut")
            server.close()
