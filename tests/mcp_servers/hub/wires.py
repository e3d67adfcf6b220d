"""Owns a wire to the real Valkey that a test can cut; the one to PostgreSQL is the audit's."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.body_broker.audit.wire import Wire


@asynccontextmanager
async def wire_to_redis(redis_url: str) -> AsyncGenerator[tuple[Wire, str]]:
    """A wire to Valkey, and the URL through it."""
    here = Path(tempfile.mkdtemp(prefix="wire-"))
    wire = Wire(Path(unquote(urlsplit(redis_url).path)))
    server = await asyncio.start_unix_server(wire.carry, here / "valkey.sock")
    try:
        yield wire, f"unix://{here}/valkey.sock"
    finally:
        server.close()
        wire.cut_streams()
        await asyncio.sleep(0)
        shutil.rmtree(here)
