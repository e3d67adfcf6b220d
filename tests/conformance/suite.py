"""Owns running the official conformance suite against a URL, and reading what it found, check by check."""

from __future__ import annotations

import asyncio
import json
import re
import tomllib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.npm_modules import NpmModules

REVISIONS = ("2026-07-28", "2025-11-25")
EXCEPTIONS = Path(__file__).with_name("exceptions.toml")

_FOLDER = re.compile(r"server-(?P<scenario>.+?)-\d{4}-\d\d-\d\dT.*")
_SEVERITY = ("SUCCESS", "INFO", "SKIPPED", "WARNING", "FAILURE")
_TIMEOUT_S = 300


@dataclass(frozen=True)
class Found:
    """What one run of the suite found.

    Attributes:
        exit_code: 0 where every required scenario passed.
        required: The scenarios that the revision requires of a server.
        statuses: The worst status of each check, by scenario.
    """

    exit_code: int
    required: frozenset[str]
    statuses: dict[str, dict[str, str]]

    def open_checks(self) -> dict[str, set[str]]:
        """The checks that failed, warned or were skipped, by scenario; those that only inform too, where nothing was shown."""
        found: dict[str, set[str]] = {}
        for scenario, statuses in self.statuses.items():
            shown = {c for c, status in statuses.items() if status == "SUCCESS" and not c.startswith("wire-schema")}
            fine = {"SUCCESS", "INFO"} if shown else {"SUCCESS"}
            if checks := {c for c, status in statuses.items() if status not in fine}:
                found[scenario] = checks
        return found


async def run_suite(modules: NpmModules, url: str, revision: str, folder: Path) -> Found:
    """Run every scenario of a revision, those it does not score too."""
    code, said = await _run(modules, "server", "--url", url, "--requirements", revision, "-o", str(folder))
    _, listed = await _run(modules, "list", "--requirements", revision)
    statuses = _statuses(folder)
    assert statuses, said
    servers = listed.split("Server scenarios", 1)[1].split("Client scenarios", 1)[0]
    return Found(code, frozenset(re.findall(r"^\s+- (\S+)$", servers, re.MULTILINE)), statuses)


def reviewed(revision: str) -> dict[str, set[str]]:
    """The checks that are known to be open, by scenario; each entry of the file says why."""
    entries: list[dict[str, Any]] = tomllib.loads(EXCEPTIONS.read_text("utf-8"))[revision]
    found = {entry["scenario"]: set(entry["checks"]) for entry in entries}
    assert len(found) == len(entries), "a scenario stands twice in exceptions.toml"
    assert all(entry["reason"].strip() for entry in entries), "an exception without a reason"
    return found


def _statuses(folder: Path) -> dict[str, dict[str, str]]:
    statuses: dict[str, dict[str, str]] = defaultdict(dict)
    for file in folder.glob("*/checks.json"):
        scenario = _FOLDER.fullmatch(file.parent.name)
        assert scenario, file.parent.name
        of_scenario = statuses[scenario["scenario"]]
        checks: list[dict[str, Any]] = json.loads(file.read_text("utf-8"))
        for check in checks:
            present = of_scenario.get(check["id"], "SUCCESS")
            of_scenario[check["id"]] = max(present, check["status"], key=_SEVERITY.index)
    return dict(statuses)


async def _run(modules: NpmModules, *arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        modules.node,
        modules.conformance,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            out, _ = await process.communicate()
    except BaseException:
        process.kill()
        raise
    assert process.returncode is not None
    return process.returncode, out.decode(errors="replace")
