"""The demo's talk where no engine is configured: it shows the whole chain, and says that a fixed text is one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import httpcore2  # noqa: F401  # pyright: ignore[reportUnusedImport]  # else loaded, from disk, when the demo makes its first client
import pytest

from body_broker.world.files.checking import STARTER, open_world
from mcp_servers.hub.cli.context import record
from mcp_servers.hub.cli.demo_round import DemoFailed
from mcp_servers.hub.cli.demo_talk import SAID, answered_by, go_talk
from mcp_servers.hub.cli.world import load_world
from mcp_servers.hub.engine import arbitrating
from mcp_servers.hub.worker import working
from tests.mcp_servers.hub.conftest import Hub, OpenHub
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio


@pytest.fixture
async def stage(open_hub: OpenHub, redis: object) -> AsyncGenerator[Hub]:
    """A hub with the starter world and no engine."""
    _ = redis  # flushed before the test
    async with open_hub() as hub, working(hub.runtime), arbitrating(hub.runtime):
        receipt = await record(hub.runtime, "world load")
        await load_world(hub.runtime, await asyncio.to_thread(open_world, STARTER), by="operator:ann", receipt=receipt)
        await wait_until(lambda: hub.runtime.services.world.get("osric_vane") is not None, "the hub's map follows")
        yield hub


async def test_without_an_engine_the_chain_is_shown_down_to_the_template(
    stage: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    await go_talk(stage.url, stage.runtime.tokens)
    player, talks = capsys.readouterr().out.splitlines()
    assert SAID in player
    assert talks.count("without an address: silver, silver-small") == 1
    assert "so a template: " in talks
    assert "BODY_BROKER_SILVER_URL" in talks


async def test_a_world_without_its_npc_fails_the_demo(hub: Hub) -> None:
    with pytest.raises(BaseException) as failed:  # noqa: PT011  # the SDK's client wraps it in groups
        await go_talk(hub.url, hub.runtime.tokens)
    assert failed.group_contains(DemoFailed) or failed.errisinstance(DemoFailed)


def test_words_that_come_by_chance_are_said_to() -> None:
    told: dict[str, Any] = {"engine": "silver", "seconds": 1.25, "ttft_s": 0.5, "cost_usd": 0.0}

    tests_own, own = answered_by(told | {"model": "tiny"}), answered_by(told | {"model": "tiny-llama"})

    assert tests_own.startswith("tiny (the tests' model: words by chance) at silver: ")
    assert own == "tiny-llama at silver: 1.2 s, first word after 0.50 s, 0.0000 US dollars"
