"""Owns the ways to a hub: what a client must know to get in, and what a test does beside it on the same stores."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from body_broker.lore.intake import make_draft
from body_broker.settings import Settings
from body_broker.work.model import Origin
from mcp_servers.hub.runtime import Runtime, open_runtime
from mcp_servers.hub.worker import working
from tests.components import PROJECT
from tests.waiting import wait_until

ANNA, ROLE = "person:anna", "engineer"
HUB = str(Path(sys.executable).with_name("body-broker"))


@dataclass(frozen=True, kw_only=True)
class Door:
    """One way in, as anna: an URL with her token, or a command to start.

    Attributes:
        runtime: Of the hub itself, or of another process on the same stores.
        url: Where a hub is served over HTTP; "" over stdio.
        token: What a request over HTTP brings.
        command: What serves over stdio; empty over HTTP.
        env: What the command finds in its environment beside what every program needs.
    """

    runtime: Runtime
    url: str = ""
    token: str = ""
    command: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()

    def environment(self) -> dict[str, str]:
        """The environment of what is started."""
        path = os.environ["PATH"]  # noqa: TID251 - a child's environment
        return {
            "PATH": path,
            "HOME": str(PROJECT.parent),
            "BODY_BROKER_EMBEDDINGS": "off",
            "BODY_BROKER_APPROVAL_WAIT_S": "0.05",
            **dict(self.env),
        }

    async def bring(self, title: str, body: str) -> tuple[str, str | None]:
        """The document that anna's import made, and the job that did; None where it was there already."""
        taken = await self.runtime.services.rag.lore.importing.take(
            [make_draft(title, title, body)], index="shared", canon=True, origin=Origin(chain=(ANNA,), session="tests")
        )
        await self.runtime.services.rag.follow(taken)
        return taken.documents[0].doc_id, taken.job_id

    async def audited(self, action: str, kind: str, verdict: str) -> int:
        """How many such records are on the audit."""
        rows = await self.runtime.stores.pool.fetch("SELECT body FROM audit_record")
        wanted = {"action": action, "kind": kind, "verdict": verdict}.items()
        return sum(wanted <= json.loads(row["body"]).items() for row in rows)

    async def comes_on_the_audit(self, action: str, kind: str, verdict: str, *, than: int) -> None:
        """Return once there are more such records than so many."""

        async def more() -> bool:
            return await self.audited(action, kind, verdict) > than

        await wait_until(more, f"{action} has one more record {kind} {verdict} on the audit")


@dataclass(frozen=True)
class Studio:
    """A data directory with embedded stores that run, and anna's token."""

    data_dir: Path
    token: str

    @asynccontextmanager
    async def door(self, *, rows: bool = False, by_token: bool = False) -> AsyncGenerator[Door]:
        """The way in over stdio: the product's own command, or the one with the clients' rows."""
        async with open_runtime(settings_of(self.data_dir)) as runtime, working(runtime):
            if rows:
                yield Door(
                    runtime=runtime, command=(sys.executable, "-m", "tests.clients.stdio_hub", str(self.data_dir), ANNA)
                )
            elif by_token:
                command = (HUB, "serve", "--stdio", "--data-dir", str(self.data_dir))
                yield Door(runtime=runtime, command=command, env=(("BODY_BROKER_TOKEN", self.token),))
            else:
                yield Door(
                    runtime=runtime,
                    command=(HUB, "serve", "--stdio", "--as", ANNA, "--data-dir", str(self.data_dir)),
                )


def settings_of(data_dir: Path) -> Settings:
    """A studio's settings; what is about vectors is tested elsewhere."""
    return Settings.model_validate({"data_dir": data_dir, "embeddings": "off", "approval_wait_s": 0.05})


async def furnish(data_dir: Path) -> Studio:
    """Give anna her role and a token, on stores that run."""
    async with open_runtime(settings_of(data_dir)) as runtime:
        issued = await runtime.tokens.issue(ANNA, roles=(ROLE,), ttl_s=3600)
    return Studio(data_dir, issued.token)
