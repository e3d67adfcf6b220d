"""Owns what the cybersecurity server's tests share: served hubs with a worker and the real scanners, and repositories in them."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mcp_servers.cybersecurity import programs, store
from mcp_servers.cybersecurity.paths import Repository
from mcp_servers.hub.rooms import ROOMS
from mcp_servers.hub.worker import working
from tests.components import gitleaks
from tests.mcp_servers.cybersecurity.repositories import faulty, rules_in, write
from tests.mcp_servers.hub.conftest import Hub, OpenHub, open_hub, settings_for

__all__ = ["open_hub", "settings_for"]  # fixtures


@pytest.fixture(autouse=True)
def no_box(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A bwrap that does not work, first on PATH: tests look at the scanners' processes, which a box would hide."""
    folder = tmp_path_factory.mktemp("path")
    (folder / "bwrap").write_text("#!/bin/sh\nexit 1\n")
    (folder / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")  # noqa: TID251  # tests' own
    programs.find_bwrap.cache_clear()
    yield
    programs.find_bwrap.cache_clear()


@dataclass
class Guarded:
    """A served hub with a worker, and where its repositories lie."""

    hub: Hub
    roots: Path

    async def register(
        self, name: str, files: dict[str, str | bytes] | None = None, skips: tuple[str, ...] = ()
    ) -> Path:
        """A registered repository: the faulty one, or these files."""
        root = self.roots / name
        if files is None:
            faulty(root)
        else:
            write(root, files)
        await store.add_repository(self.pool, Repository(name, root, skips), by="operator:test")
        return root

    @property
    def pool(self) -> Any:  # the runtime's
        return self.hub.runtime.stores.pool

    async def call(self, tool: str, arguments: dict[str, Any], who: str = "person:sam", *roles: str) -> Any:
        """A call's result, as the official client gives it."""
        people = ("security",) if who.startswith("person:") else ()
        async with self.hub.client(who, *(roles or people)) as client:
            return await client.call_tool(tool, arguments)

    async def tell(self, tool: str, arguments: dict[str, Any], who: str = "person:sam", *roles: str) -> Any:
        """A call's structured result."""
        result = await self.call(tool, arguments, who, *roles)
        assert not result.is_error, result.content
        return result.structured_content


OpenGuarded = Callable[..., AbstractAsyncContextManager[Guarded]]


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    """Where repositories lie; no part of the path is a link."""
    return tmp_path.resolve() / "roots"


@pytest.fixture
def guarded_hub(open_hub: OpenHub, tmp_path: Path, roots: Path, redis: object) -> OpenGuarded:
    _ = redis  # flushed before the test
    rules_in(tmp_path / "rules")
    program = gitleaks() if gitleaks().is_file() else None

    @asynccontextmanager
    async def make(*, works: bool = True, **overrides: Any) -> AsyncGenerator[Guarded]:
        patience = {"scan_wait_s": 120, "call_timeout_s": 240}  # however slow the scanners are here
        settings = {"scan_rules_dir": tmp_path / "rules", "gitleaks": program, "tools": "all", **patience, **overrides}
        async with open_hub(ROOMS, **settings) as hub:
            if works:
                async with working(hub.runtime):
                    yield Guarded(hub, roots)
            else:
                yield Guarded(hub, roots)

    return make


@pytest.fixture
async def guarded(guarded_hub: OpenGuarded) -> AsyncGenerator[Guarded]:
    async with guarded_hub() as found:
        yield found


@pytest.fixture
def cue(tmp_path: Path) -> Path:
    """The file that `waiting_gitleaks` waits for."""
    return tmp_path / "cue"


@pytest.fixture
def waiting_gitleaks(tmp_path: Path, cue: Path) -> Path:
    """gitleaks, but a scan with it goes on only once the cue is given; until then its pid stands beside the cue."""
    program = tmp_path / "waiting-gitleaks"
    program.write_text(
        f"""#!/bin/sh
[ "$1" = version ] && exec {gitleaks()} version
echo $$ >> {cue}.pids
while [ ! -e {cue} ]; do sleep 0.02; done
exec {gitleaks()} "$@"
"""
    )
    program.chmod(0o755)
    return program
