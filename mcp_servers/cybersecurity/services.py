"""Owns what the cybersecurity server's tools need: repositories, scanners, and the work that runs them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from body_broker.calls import Caller
from body_broker.storage.postgres import Pool
from body_broker.work.run import Handler
from mcp_servers.cybersecurity import auditing, jobs, staging
from mcp_servers.cybersecurity.scanning import Scanning
from tiers.bronze.jobs import Jobs
from tiers.bronze.model import Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Repositories, scans and findings.

    Attributes:
        staging_dir: Where copies of repositories lie while they are scanned, in the hub's data dir, which is never scanned.
        find_semgrep: Where semgrep's engine is; None where it is not installed.
        gitleaks: The program; None takes the one on PATH.
        rules_dir: A studio's own rules, used beside ours.
        wait_s: How long a call waits for its scan.
        timeout_s: How long one scanner may run.
        jobs: Where experts' jobs are asked for.
        budget: `async (caller) -> facts`: whether an expert's job may still be asked for, as rules read it.
        turn: Scans of one process take turns.
    """

    pool: Pool
    staging_dir: Path
    find_semgrep: Callable[[], Path | None]
    gitleaks: Path | None
    rules_dir: Path | None
    wait_s: float
    timeout_s: float
    jobs: Jobs
    budget: Callable[[Caller], Awaitable[frozenset[str]]]
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def handlers(self) -> Mapping[str, Handler]:
        """What a worker needs to scan."""
        return {jobs.SCAN: partial(jobs.perform, pool=self.pool, scanning=self.scanning)}

    def shapes(self) -> Mapping[str, Shape]:
        """What makes results of experts' answers, by the kind of job."""
        return {auditing.AUDIT: partial(auditing.shape, pool=self.pool)}

    async def scanning(self) -> Scanning:
        """What scans here, with what is installed now."""
        return Scanning(
            staging_dir=self.staging_dir,
            engine=await asyncio.to_thread(self.find_semgrep),
            gitleaks=self.gitleaks,
            rules_dir=self.rules_dir,
            timeout_s=self.timeout_s,
            own_dir=self.staging_dir.parent,
            turn=self.turn,
        )

    async def sweep(self) -> int:
        """How many copies were removed that killed processes left behind."""
        return await asyncio.to_thread(staging.sweep, self.staging_dir)
