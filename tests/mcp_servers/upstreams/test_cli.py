"""The command `upstream` as an operator meets it: a server joined, shown and taken out again, and what is refused on the way."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from body_broker.storage import embedded
from tests.components import scratch_dir
from tests.mcp_servers.hub.test_clients import HUB, run
from tests.waiting import wait_until_sync


@pytest.fixture
def data_dir() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="body-broker-cli-", dir=scratch_dir()))
    embedded.start(folder)
    yield folder
    embedded.release(folder)
    wait_until_sync(lambda: embedded.status(folder).keeper_pid is None, "the keeper ends")
    shutil.rmtree(folder)


async def typed(data_dir: Path, *words: str) -> tuple[int, str, str]:
    end = words.index("--") if "--" in words else len(words)
    found = (*words[:end], "--data-dir", str(data_dir), *words[end:])
    return await run(HUB, "upstream", *found)


async def test_a_server_is_joined_shown_and_taken_out(data_dir: Path) -> None:
    assert "No server of others is joined" in (await typed(data_dir, "list"))[1]

    code, out, err = await typed(data_dir, "add", "everything", "--env", "LEVEL=quiet", "--", "npx", "-y", "a server")
    assert code == 0, err
    assert '[everything.tools."NAME OF A TOOL THAT ONLY READS"]' in out
    assert 'command = ["npx", "-y", "a server"]' in (data_dir / "upstreams.toml").read_text("utf-8")
    code, out, _ = await typed(data_dir, "list")
    assert code == 0
    assert out.split()[:3] == ["everything", "never", "seen:"]

    assert (await typed(data_dir, "remove", "everything"))[0] == 0
    assert "No server of others is joined" in (await typed(data_dir, "list"))[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("add", "Ever", "--url", "https://x.example/"), "no name for a server"),
        (("add", "search", "--url", "https://x.example/"), "names of its own that begin so"),
        (("add", "far", "--url", "http://x.example/"), "plain http is for this machine alone"),
        (("add", "none"), "say either command or url"),
        (("add", "key", "--env", "API_KEY=s3cr3t", "--", "x"), "looks like a secret"),
        (("remove", "nobody"), "No server of the name nobody"),
    ],
)
async def test_what_does_not_fit_is_one_line_and_writes_nothing(
    data_dir: Path, words: tuple[str, ...], said: str
) -> None:
    code, _, err = await typed(data_dir, *words)

    assert code != 0
    assert said in err
    assert "s3cr3t" not in err
    assert not (data_dir / "upstreams.toml").exists()
