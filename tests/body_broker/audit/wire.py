"""Owns a wire between a pool and the real PostgreSQL that a test can cut, or let carry requests but no replies."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

_SOCKET = ".s.PGSQL.5432"


class Wire:
    """A proxy on a Unix socket of its own."""

    def __init__(self, behind: Path) -> None:
        self._behind = behind
        self._streams: set[asyncio.StreamWriter] = set()
        self._connected = True
        self.replies_lost = 0
        self._lose_replies = False
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._connected:
            writer.close()
            return
        back_reader, back_writer = await asyncio.open_unix_connection(str(self._behind))
        self._streams |= {writer, back_writer}
        with suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(
                self._pump(reader, back_writer, replies=False), self._pump(back_reader, writer, replies=True)
            )
        self._streams -= {writer, back_writer}
        for stream in (writer, back_writer):
            stream.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool) -> None:
        while data := await reader.read(65536):
            if replies and self._lose_replies:
                self.replies_lost += 1
                self._lose_replies = False
                self.cut_streams()
                return
            await self._flowing.wait()
            writer.write(data)
            await writer.drain()
        writer.close()

    def cut_streams(self) -> None:
        """Every connection breaks; new ones work."""
        for stream in self._streams:
            stream.transport.abort()

    def cut(self) -> None:
        """The database is away."""
        self._connected = False
        self.cut_streams()

    def mend(self) -> None:
        """The database is back."""
        self._connected = True

    def hang(self) -> None:
        """Nothing breaks and nothing arrives."""
        self._flowing.clear()

    def flow(self) -> None:
        """What hung goes on."""
        self._flowing.set()

    def lose_next_reply(self) -> None:
        """The next request reaches the database, and its connection breaks instead of the answer arriving."""
        self._lose_replies = True


@asynccontextmanager
async def wire_to(database_url: str) -> AsyncGenerator[tuple[Wire, str]]:
    """A wire to the database, and the URL through it."""
    folder = Path(parse_qs(urlsplit(database_url).query)["host"][0])
    here = Path(tempfile.mkdtemp(prefix="wire-"))
    wire = Wire(folder / _SOCKET)
    server = await asyncio.start_unix_server(wire.carry, here / _SOCKET)
    try:
        yield wire, database_url.replace(quote(str(folder), safe=""), quote(str(here), safe=""))
    finally:
        server.close()
        wire.cut_streams()
        await asyncio.sleep(0)
        shutil.rmtree(here)
