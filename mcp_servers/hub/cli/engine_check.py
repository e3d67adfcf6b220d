"""The commands for who writes an engine: `engine check` tests any engine against the protocol, `engine wire` runs our rules behind it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import click

from body_broker.background import running
from body_broker.errors import BadInput, StoreStartError
from body_broker.storage.embedded.binaries import valkey_program
from body_broker.storage.embedded.children import before_exec
from body_broker.storage.redis import Redis, open_redis
from body_broker.world.engine.checks import CHECKS, START_S, run_checks
from body_broker.world.engine.client import EngineClient
from body_broker.world.engine.messages import READ_KEY
from body_broker.world.engine.own import OwnArbiter
from body_broker.world.mirror import EPOCH_KEY
from mcp_servers.hub.cli.context import run, settings_of

_START_S = 10.0
_AGAIN_S = 0.05
_PLACEHOLDER = "{redis_url}"


@click.command()
@click.option(
    "--redis",
    "redis_url",
    default=None,
    metavar="URL",
    help="A Redis that nothing else uses (default: one of its own).",
)
@click.option("--engine-id", default=None, metavar="ID", help="Hear only the engine that says hello as this one.")
@click.option(
    "--command", default=None, metavar="COMMAND", help="Start the engine by this; {redis_url} is replaced by the URL."
)
@click.option("--patience", "patience_s", default=5.0, show_default=True, help="Seconds an answer may take.")
@click.option("--start", "start_s", default=START_S, show_default=True, help="Seconds until the engine's first hello.")
def check(redis_url: str | None, engine_id: str | None, command: str | None, patience_s: float, start_s: float) -> None:
    """Test an engine against docs/engine-protocol.md: exit code 1 where it breaks a promise."""
    settings_of(None)
    if run(_check(redis_url, command, engine=engine_id, patience_s=patience_s, start_s=start_s)):
        sys.exit(1)


async def _check(
    redis_url: str | None, command: str | None, *, engine: str | None, patience_s: float, start_s: float
) -> int:
    """How many checks did not pass; each is told as soon as it is known."""
    width = max(len(each.name) for each in CHECKS)
    passed = failed = 0
    async with AsyncExitStack() as stack:
        url = redis_url or await stack.enter_async_context(scratch_redis())
        redis = await _opened(stack, url)
        if await redis.exists(READ_KEY, EPOCH_KEY):
            raise BadInput(
                "A hub keeps its world in this Redis, and the check would speak to its engines.",
                next_step="Leave --redis out, or give it one that nothing else uses.",
            )
        if command is None:
            click.echo(f"Start your engine on {url}")
        else:
            await stack.enter_async_context(_started(command, url))
        async for found in run_checks(redis, engine=engine, patience_s=patience_s, start_s=start_s):
            said = found.check.promise if found.fault is None else found.fault
            click.echo(f"{'ok  ' if found.fault is None else 'FAIL'}  {found.check.name:<{width}}  {said}")
            passed, failed = passed + (found.fault is None), failed + (found.fault is not None)
    left = len(CHECKS) - passed - failed
    click.echo(f"{passed} passed, {failed} failed" + (f", {left} not played" if left else ""))
    return failed + left


async def _opened(stack: AsyncExitStack, url: str) -> Redis:
    try:
        return await stack.enter_async_context(open_redis(url))
    except StoreStartError as error:
        raise StoreStartError(
            "No Redis answers at this URL.", next_step="Give --redis one that is up, such as redis://127.0.0.1:6379."
        ) from error


@asynccontextmanager
async def scratch_redis() -> AsyncGenerator[str]:
    """A Valkey on a free port of loopback, for as long as it is used: engines speak TCP."""
    folder = await asyncio.to_thread(tempfile.mkdtemp, prefix="body-broker-check-")
    try:
        port = _free_port()
        settings = {"port": str(port), "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": folder}
        process = await asyncio.create_subprocess_exec(
            str(await asyncio.to_thread(valkey_program)),
            *(part for name, value in settings.items() for part in (f"--{name}", value)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            preexec_fn=before_exec(signal.SIGKILL, leave_root=False),
        )
        try:
            url = f"redis://127.0.0.1:{port}"
            await _answers(url)
            yield url
        finally:
            process.kill()
            await process.wait()
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def _answers(url: str) -> None:
    async with asyncio.timeout(_START_S):
        while True:
            try:
                async with open_redis(url):
                    return
            except StoreStartError:
                await asyncio.sleep(_AGAIN_S)


@asynccontextmanager
async def _started(command: str, url: str) -> AsyncGenerator[None]:
    """The engine, started by a shell; ended with everything that it started. What it says on stderr is seen."""
    process = await asyncio.create_subprocess_shell(
        command.replace(_PLACEHOLDER, url),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        if process.returncode is not None:
            click.echo(f"The engine ended by itself, with exit code {process.returncode}.")
        # Also where the shell has ended: what it left in the background is in its group still.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


@click.command()
@click.option("--redis", "redis_url", required=True, metavar="URL", help="The Redis that the hub uses.")
@click.option("--engine-id", default="own-rules", show_default=True, metavar="ID", help="As it says hello.")
def wire(redis_url: str, engine_id: str) -> None:
    """Run our rules as an engine that has Redis and nothing else, until SIGTERM."""
    run(_wire(redis_url, engine_id, settings_of(None).engine_tick_hz))


async def _wire(redis_url: str, engine_id: str, tick_hz: int) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, stopped.set)
    async with AsyncExitStack() as stack:
        redis = await _opened(stack, redis_url)
        client = EngineClient(redis, OwnArbiter(tick_hz=tick_hz), engine=engine_id, tick_hz=tick_hz)
        async with running(client.run(), name="engine-wire"):
            await stopped.wait()
