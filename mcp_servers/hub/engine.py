"""Owns the engine process: who arbitrates the world as configured, run until SIGTERM or as a task of the hub."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from body_broker.settings import Settings
from body_broker.storage.stores import Stores
from body_broker.telemetry import get_logger
from body_broker.world.arbiter import Arbiter
from mcp_servers.hub.runtime import Runtime

if TYPE_CHECKING:
    from body_broker.world.engine.relay import Relay

log = get_logger(__name__)


def make_engine(settings: Settings, stores: Stores) -> Arbiter | Relay | None:
    """Our own engine, the relay of another, or None where nobody is to arbitrate here."""
    match settings.engine:
        case "own":
            return Arbiter(
                stores.pool,
                stores.redis,
                database_url=stores.database_url,
                name=f"{socket.gethostname()}:{os.getpid()}",
                tick_hz=settings.engine_tick_hz,
                lease_s=settings.engine_lease_s,
            )
        case "external":
            # Every hub has this module, few have another engine: its messages cost the start a tenth of a second.
            from body_broker.world.engine.relay import Relay  # noqa: PLC0415

            return Relay(stores.pool, stores.redis, database_url=stores.database_url, lease_s=settings.engine_lease_s)
        case "off":
            return None


def halt(engine: Arbiter | Relay, task: asyncio.Task[None]) -> None:
    """Decide nothing more, and end the task that runs it: the next one may begin at once."""
    if isinstance(engine, Arbiter):
        engine.stop()
    else:
        task.cancel()


@asynccontextmanager
async def arbitrating(runtime: Runtime) -> AsyncGenerator[None]:
    """The engine beside the caller, where one is to arbitrate."""
    engine = make_engine(runtime.settings, runtime.stores)
    if engine is None:
        yield
        return
    task = asyncio.create_task(engine.run(), name="engine")
    task.add_done_callback(_log_death)
    try:
        yield
    finally:
        halt(engine, task)
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _log_death(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("engine_died", exc_info=task.exception())
