"""Owns what the cybersecurity server's tools need: repositories, scanners, and the work that runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from body_broker.storage.postgres import Pool
from body_broker.work.run import Handler


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Repositories, scans and findings.

    Attributes:
        staging_dir: Where copies of repositories lie while they are scanned.
        find_semgrep: Where semgrep's engine is; None where it is not installed.
        gitleaks: The program; None takes the one on PATH.
        rules_dir: A studio's own rules, used beside ours.
        wait_s: How long a call waits for its scan.
        timeout_s: How long one scanner may run.
    """

    pool: Pool
    staging_dir: Path
    find_semgrep: Callable[[], Path | None]
    gitleaks: Path | None
    rules_dir: Path | None
    wait_s: float
    timeout_s: float

    def handlers(self) -> Mapping[str, Handler]:
        """What a worker needs to scan."""
        return {}
