"""Owns a dumb balancer: each HTTP request goes to the next hub, whatever it says and whoever sends it; no sticky sessions.

It may add a token, for clients that cannot send one; Host, Origin and everything else pass unchanged.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

_HEAD_END = b"\r\n\r\n"
# One request a connection: the hub then ends its answer by closing, and nothing has to be parsed but the head.
_CONNECTION = re.compile(rb"\r\nconnection:[^\r]*", re.IGNORECASE)


class RoundRobin:
    """A balancer over hubs; made by `round_robin`.

    Attributes:
        url: Its MCP URL.
        served: Requests by hub.
    """

    def __init__(self, upstreams: Sequence[str], token: str | None = None) -> None:
        self.url = ""
        identity = b"" if token is None else b"\r\nauthorization: Bearer " + token.encode()
        self._added = identity + b"\r\nconnection: close" + _HEAD_END
        self.served: Counter[str] = Counter()
        self._next = itertools.cycle(upstreams)

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: one request there, its answer back; who leaves on one side is gone on the other."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = _CONNECTION.sub(b"", await reader.readuntil(_HEAD_END))
            upstream = next(self._next)
            self.served[upstream] += 1
            parts = urlsplit(upstream)
            answer, question = await asyncio.open_connection(parts.hostname, parts.port)
            question.write(head.removesuffix(_HEAD_END) + self._added)
            asking = asyncio.create_task(_pump(reader, question))
            answering = asyncio.create_task(_pump(answer, writer))
            await asyncio.wait({asking, answering}, return_when=asyncio.FIRST_COMPLETED)
            for direction in (asking, answering):
                direction.cancel()
            await asyncio.gather(asking, answering, return_exceptions=True)
            question.close()
        writer.close()


@asynccontextmanager
async def round_robin(*upstreams: str, token: str | None = None) -> AsyncGenerator[RoundRobin]:
    """A balancer on a free port over the MCP URLs of hubs, which adds the token to every request where one is given."""
    balancer = RoundRobin(upstreams, token)
    server = await asyncio.start_server(balancer.forward, "127.0.0.1", 0)
    balancer.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"
    try:
        yield balancer
    finally:
        server.close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
