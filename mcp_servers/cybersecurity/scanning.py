"""Owns one scan from a folder to findings: the copy, the scanners one after another, what they saw together. No store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from body_broker.calls import Progress
from body_broker.errors import Unavailable
from mcp_servers.cybersecurity import secrets, semgrep
from mcp_servers.cybersecurity.findings import SCANNERS, Scan, ScannerName, ScannerRun, Seen
from mcp_servers.cybersecurity.merging import lines_of, merge
from mcp_servers.cybersecurity.programs import isolation
from mcp_servers.cybersecurity.staging import Stage, staged


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanning:
    """What scans in this process; one at a time.

    Attributes:
        staging_dir: Where copies lie.
        engine: semgrep's; None where it is not installed.
        gitleaks: The program that was set.
        rules_dir: A studio's own rules.
        timeout_s: How long one scanner may run.
    """

    staging_dir: Path
    engine: Path | None
    gitleaks: Path | None
    rules_dir: Path | None
    timeout_s: float
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def scan(
        self,
        root: Path,
        path: str,
        *,
        skips: Collection[str] = (),
        scanners: Collection[ScannerName] = SCANNERS,
        progress: Progress | None = None,
    ) -> Scan:
        """What the scanners found in a folder.

        Args:
            root: A resolved folder.
            path: Below it; empty is all.
            skips: Names of folders to leave out.
            scanners: The others are `disabled`.
            progress: Told each step.

        Raises:
            Unavailable: The folder cannot be copied.
        """
        async with self.turn, _stage(root, path, self.staging_dir, skips) as stage:
            runs: list[ScannerRun] = []
            seen: list[Seen] = []
            for number, name in enumerate(SCANNERS):
                if progress is not None:
                    await progress(number, len(SCANNERS), f"{name} over {stage.files} files")
                if name in scanners:
                    run, found = await self._run(name, stage)
                else:
                    run, found = ScannerRun(name=name, status="disabled"), []
                runs.append(run)
                seen += found
            copied = {named: copy for copy, named in stage.renamed.items()}
            findings = await asyncio.to_thread(merge, seen, lines_of(stage.source, copied))
            return Scan(
                runs=tuple(runs),
                findings=tuple(findings),
                revision=stage.revision,
                files=stage.files,
                skipped=dict(sorted(stage.skipped.items())),
                cut=stage.cut,
                isolation=await asyncio.to_thread(isolation),
            )

    async def _run(self, name: ScannerName, stage: Stage) -> tuple[ScannerRun, list[Seen]]:
        if stage.files == 0:
            return ScannerRun(name=name, status="not_applicable"), []
        match name:
            case "semgrep":
                rules = await asyncio.to_thread(semgrep.rule_files, self.rules_dir)
                return await semgrep.scan(self.engine, stage, rules, self.timeout_s)
            case "detect-secrets":
                return await secrets.detect_secrets(stage, self.timeout_s)
            case "gitleaks":
                return await secrets.gitleaks(self.gitleaks, stage, self.timeout_s)


@asynccontextmanager
async def _stage(root: Path, path: str, staging_dir: Path, skips: Collection[str]) -> AsyncGenerator[Stage]:
    """The staged copy, made and removed off the event loop; a scan that is cancelled meanwhile leaves nothing behind."""
    stop = threading.Event()
    copying = staged(root, path, staging_dir, skips=skips, stopped=stop.is_set)
    entering = asyncio.create_task(asyncio.to_thread(copying.__enter__))
    try:
        stage = await asyncio.shield(entering)
    except asyncio.CancelledError:
        stop.set()
        with suppress(InterruptedError, Unavailable):
            await entering
            await asyncio.to_thread(copying.__exit__, None, None, None)
        raise
    try:
        yield stage
    finally:
        await asyncio.shield(asyncio.to_thread(copying.__exit__, None, None, None))
