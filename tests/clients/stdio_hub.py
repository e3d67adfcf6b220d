"""A hub over stdio with the clients' rows beside the product's: `python -m tests.clients.stdio_hub DATA_DIR WHO`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from body_broker.telemetry import configure_logging
from mcp_servers.hub.rooms import ROOMS
from mcp_servers.hub.runtime import open_runtime
from mcp_servers.hub.serve import serve_stdio
from tests.clients.doors import settings_of
from tests.clients.rows import ROOM


async def serve(data_dir: Path, who: str) -> None:
    """Serve one client, as `body-broker serve --stdio --as` does."""
    async with open_runtime(settings_of(data_dir), (*ROOMS, ROOM)) as runtime:
        await serve_stdio(runtime, lambda: runtime.identities.local(who))


if __name__ == "__main__":
    configure_logging("warning")
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2]))
