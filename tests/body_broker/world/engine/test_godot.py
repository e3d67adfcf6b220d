"""The example in GDScript, run by the real Godot without a screen: it keeps every promise, and arbitrates a hub's world."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from body_broker.background import running
from body_broker.storage.embedded.children import before_exec
from body_broker.storage.postgres import Pool
from body_broker.storage.redis import open_redis
from body_broker.world.engine.checks import CHECKS, run_checks
from mcp_servers.hub.cli.engine_check import scratch_redis
from tests.body_broker.world.engine.scene import ask, decided, is_sound, load, relay_of
from tests.components import PROJECT

EXAMPLE = PROJECT / "examples" / "engine" / "godot"

pytestmark = pytest.mark.requires("godot")


@pytest.fixture
async def tcp_url() -> AsyncIterator[str]:
    async with scratch_redis() as url:
        yield url


@pytest.fixture
async def _godot(tcp_url: str, tmp_path: Path) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        "godot3-server",
        "--path",
        str(EXAMPLE),
        env={"REDIS_URL": tcp_url, "HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "LANG": "en_US.UTF-8"},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        preexec_fn=before_exec(signal.SIGKILL, leave_root=False),
    )
    yield
    process.kill()
    await process.wait()


@pytest.mark.usefixtures("_godot")
async def test_the_example_in_gdscript_passes_every_check(tcp_url: str) -> None:
    async with open_redis(tcp_url) as redis:
        found = [finding async for finding in run_checks(redis, patience_s=30.0)]

    assert {f.check.name: f.fault for f in found} == {check.name: None for check in CHECKS}


@pytest.mark.usefixtures("_godot")
async def test_godot_arbitrates_a_world(tcp_url: str, pool: Pool, database_url: str) -> None:
    await load(pool)
    async with open_redis(tcp_url) as redis, running(relay_of(pool, redis, database_url).run(), name="relay"):
        (hurt,) = await ask(pool, ("ada", "hurt", {"by": 5}))
        (dead,) = await ask(pool, ("ben", "hurt", {"by": 5}))
        whole = await ask(pool, ("ada", "hurt", {"by": 5}), ("ada", "heal", {"by": 1}), atomic=True)

        assert await decided(pool, hurt) == ("applied", None)
        assert await decided(pool, dead) == ("rejected", "dead_actor")
        assert [await decided(pool, each) for each in whole] == [("applied", None)] * 2
    await is_sound(pool)
