"""Owns one scan from a folder to findings: the copy, the scanners one after another, what they saw together. No store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from body_broker.calls import Progress
from body_broker.errors import Unavailable
from mcp_servers.cybersecurity import secrets, semgrep
from mcp_servers.cybersecurity.copying import Stage
from mcp_servers.cybersecurity.findings import SCANNERS, Scan, ScannerName, ScannerRun, Seen
from mcp_servers.cybersecurity.merging import lines_of, merge
from mcp_servers.cybersecurity.programs import isolation
from mcp_servers.cybersecurity.staging import staged

_HIDES: ScannerName = "detect-secrets"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanning:
    """What scans in this process; one at a time.

    Attributes:
        staging_dir: Where copies lie.
        engine: semgrep's; None where it is not installed.
        gitleaks: The program that was set.
        rules_dir: A studio's own rules.
        timeout_s: How long one scanner may run.
        own_dir: The hub's data dir, which is never scanned.
    """

    staging_dir: Path
    engine: Path | None
    gitleaks: Path | None
    rules_dir: Path | None
    timeout_s: float
    own_dir: Path | None = None
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
        async with self.turn, _stage(root, path, self, skips) as stage:
            runs: list[ScannerRun] = []
            seen: list[Seen] = []
            hides = False
            for number, name in enumerate(SCANNERS):
                run = ScannerRun(name=name, status="disabled")
                # What it sees hides code that others show, asked for or not.
                if name in scanners or name == _HIDES:
                    if progress is not None:
                        await progress(number, len(SCANNERS), f"{name} over {stage.files} files")
                    run, found = await self._run(name, stage)
                    hides = hides or (name == _HIDES and run.settled)
                    seen += found
                runs.append(run if name in scanners else ScannerRun(name=name, status="disabled"))
            copied = {named: copy for copy, named in stage.renamed.items()}
            merging = partial(merge, seen, lines_of(stage.source, copied), told=scanners, quoting=hides)
            findings = await asyncio.to_thread(merging)
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
async def _stage(root: Path, path: str, scanning: Scanning, skips: Collection[str]) -> AsyncGenerator[Stage]:
    """The staged copy, made and removed off the event loop; a scan that is cancelled meanwhile leaves nothing behind."""
    stop = threading.Event()
    copying = staged(root, path, scanning.staging_dir, skips=skips, own=scanning.own_dir, stopped=stop.is_set)
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
