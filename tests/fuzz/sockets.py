"""Owns a raw connection to a served hub: bytes as they are written, answers read by HTTP's own rules."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple
from urllib.parse import urlsplit

ANSWER_S = 20.0


class Answer(NamedTuple):
    """One HTTP answer."""

    status: int
    head: dict[str, str]
    body: bytes


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def say(self, data: bytes) -> None:
        """Write; a peer that has closed is found out by reading."""
        with suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()

    async def answer(self) -> Answer | None:
        """The next answer; None where the connection ended without one.

        Raises:
            TimeoutError: There is neither.
        """
        async with asyncio.timeout(ANSWER_S):
            try:
                head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            except (asyncio.IncompleteReadError, ConnectionError):
                return None
            line, *lines = head.rstrip("\r\n").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (text.partition(":") for text in lines)}
            status = int(line.split(" ", 2)[1])
            if status == 100:
                return await self.answer()
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                return Answer(status, headers, await self._body(headers))
            return None

    async def _body(self, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return await self.reader.readexactly(int(headers.get("content-length", "0")))
        found = b""
        while size := int(await self.reader.readline(), 16):
            found += await self.reader.readexactly(size)
            await self.reader.readexactly(2)
        await self.reader.readline()
        return found

    async def ended(self) -> bool:
        """Whether nothing more comes; whatever comes is thrown away."""
        async with asyncio.timeout(ANSWER_S):
            with suppress(ConnectionError):
                while await self.reader.read(65536):
                    pass
        return True


@asynccontextmanager
async def connected(url: str) -> AsyncGenerator[Wire]:
    """A connection to the hub at this URL."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()


def head_of(
    url: str, headers: Mapping[str, str] | Sequence[tuple[str, str]], line: str = "POST /mcp HTTP/1.1"
) -> bytes:
    """A request's head."""
    pairs = headers if isinstance(headers, Sequence) else [*headers.items()]
    lines = [line, f"host: {urlsplit(url).netloc}", *(f"{name}: {value}" for name, value in pairs)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def whole(url: str, headers: Mapping[str, str], body: bytes, line: str = "POST /mcp HTTP/1.1") -> bytes:
    """A request with its length."""
    return head_of(url, {**headers, "content-length": str(len(body))}, line) + body
