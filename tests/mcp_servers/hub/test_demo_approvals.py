"""The demo's gated call: a person types the code, nobody does and it says so, and where people are enrolled it leaves it to them."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from body_broker.storage import embedded
from tests.components import scratch_dir
from tests.mcp_servers.hub.deciding import next_code
from tests.mcp_servers.hub.terminal import at_terminal
from tests.mcp_servers.hub.test_clients import HUB, run
from tests.mcp_servers.hub.test_mfa_command import enrol
from tests.waiting import wait_until_sync

pytestmark = pytest.mark.anyio


@pytest.fixture
def fresh() -> Iterator[Path]:
    """A data dir whose stores stay up between the commands of a test."""
    folder = Path(tempfile.mkdtemp(prefix="body-broker-cli-", dir=scratch_dir()))
    embedded.start(folder)
    yield folder
    embedded.release(folder)
    wait_until_sync(lambda: embedded.status(folder).keeper_pid is None, "the keeper ends")
    shutil.rmtree(folder)


async def test_the_demo_leaves_nobody_behind_who_could_approve_and_then_leaves_it_to_who_is_enrolled(
    fresh: Path,
) -> None:
    folder = {"BODY_BROKER_DATA_DIR": str(fresh), "BODY_BROKER_EMBEDDINGS": "off"}
    code, out, err = await run(HUB, "demo", "--once", "--data-dir", str(fresh), **folder)
    assert code == 0, (out, err)
    assert "asks     tier:bronze calls ingest_documents: waiting for sre or admin: 0 of 1" in out
    assert "nobody types, so the demo computes its code itself" in out
    assert "recorded asked by tier:bronze, approved by person:demo-ada, run for tier:bronze" in out
    _, listed, _ = await run(HUB, "mfa", "list", **folder)
    assert re.fullmatch(r"fac_\w+ +person:demo-ada +totp +throw-away .* revoked by operator:\w+\n", listed)
    assert not (fresh / "approvers.toml").exists()

    await enrol("dev", **folder)
    code, out, err = await run(HUB, "demo", "--once", "--data-dir", str(fresh), **folder)

    assert code == 0, (out, err)
    assert "people are enrolled here, so the demo makes no approver of its own" in out
    assert "taken    back by tier:bronze: cancelled" in out
    assert "demo-ada" not in out


async def test_whoever_sits_at_the_demo_types_the_code_themselves(fresh: Path) -> None:
    folder = {"BODY_BROKER_DATA_DIR": str(fresh), "BODY_BROKER_EMBEDDINGS": "off"}
    async with at_terminal("demo", "--data-dir", str(fresh), **folder) as terminal:
        said = await terminal.sees("Code for person:demo-ada: ")
        found = re.search(r"type this into the app: ([A-Z2-7]{32})", said)
        assert found is not None
        terminal.types("000000")
        await terminal.sees("That code is wrong.")
        await terminal.sees("app shows now")
        terminal.types(next_code(found[1]))
        await terminal.sees("run for tier:bronze")
        await terminal.sees("Ctrl-C stops it.")
        terminal.interrupts()
        await terminal.ends()
