"""Owns how detect-secrets and gitleaks are run over a staged copy, and what their answers mean. No secret comes back from either."""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcp_servers.cybersecurity.copying import Stage
from mcp_servers.cybersecurity.findings import (
    BEYOND,
    FINDINGS_SEEN_MAX,
    ScannerName,
    ScannerRun,
    ScannerStatus,
    Seen,
    Severity,
)
from mcp_servers.cybersecurity.programs import Command, Ended, run

_CHILD = Path(__file__).with_name("secrets_child.py")
_GITLEAKS_CONFIG = Path(__file__).with_name("gitleaks.toml")
_PYTHON = sorted({Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parent.parent})
_CHILD_MEMORY_BYTES = 4 * 1024**3
_VERSION = re.compile(r"\d+(?:\.\d+){1,3}")
_RULE = re.compile(r"[a-z0-9-]{1,80}")
_VERSION_S = 10
_GUESSES: Mapping[str, Severity] = {
    "Secret Keyword": "medium",
    "Basic Auth Credentials": "medium",
    "Base64 High Entropy String": "low",
    "Hex High Entropy String": "low",
    "generic-api-key": "medium",
}
"""What is found by how random it looks or what it is called, not by its form."""
_FIX = "Withdraw the secret where it was issued, then take it out of the code and its history."


async def detect_secrets(stage: Stage, timeout_s: float) -> tuple[ScannerRun, list[Seen]]:
    """How detect-secrets did, and what it saw; what it had found when its time was over counts."""
    version = await asyncio.to_thread(detect_secrets_version)
    if version is None:
        return ScannerRun(name="detect-secrets", status="not_installed"), []
    words = [sys.executable, "-I", "-X", "utf8", str(_CHILD), str(stage.source), str(stage.work)]
    command = Command(
        words=words,
        source=stage.source,
        work=stage.work,
        needs=[*_PYTHON, _CHILD.parent],
        timeout_s=timeout_s,
        memory_bytes=_CHILD_MEMORY_BYTES,
    )
    try:
        ended = await run(command)
    except OSError:
        return _not_started("detect-secrets"), []
    return await asyncio.to_thread(_told, ended, version, stage)


async def gitleaks(program: Path | None, stage: Stage, timeout_s: float) -> tuple[ScannerRun, list[Seen]]:
    """How gitleaks did, and what it saw; under our configuration alone."""
    found = await asyncio.to_thread(find_gitleaks, program)
    if found is None:
        return ScannerRun(name="gitleaks", status="not_installed"), []
    words = [str(found), "dir", "--config", str(_GITLEAKS_CONFIG), "--report-format", "json", "--report-path", "-"]
    words += ["--no-banner", "--no-color", "--log-level", "fatal", "--redact=100", "--ignore-gitleaks-allow"]
    words += ["--gitleaks-ignore-path", str(stage.work), "--exit-code", "0", "--", str(stage.source)]
    needs = [found, _GITLEAKS_CONFIG]
    try:
        version = await run(
            Command(
                words=[str(found), "version"], source=stage.work, work=stage.work, needs=needs, timeout_s=_VERSION_S
            )
        )
        ended = await run(Command(words=words, source=stage.source, work=stage.work, needs=needs, timeout_s=timeout_s))
    except OSError:
        return _not_started("gitleaks"), []
    said = _VERSION.search(version.output[:200].decode("utf-8", "replace"))
    return await asyncio.to_thread(_leaks, ended, said[0] if said else "", stage)


def detect_secrets_version() -> str | None:
    """The version that is installed beside us; it is never imported here. Blocks."""
    if importlib.util.find_spec("detect_secrets") is None:
        return None
    return importlib.metadata.version("detect-secrets")


def find_gitleaks(program: Path | None) -> Path | None:
    """The program that was set, else the one on PATH. Blocks."""
    if program is not None:
        return program if program.is_file() else None
    found = shutil.which("gitleaks")
    return Path(found) if found else None


def _not_started(name: ScannerName) -> ScannerRun:
    return ScannerRun(name=name, status="failed", errors={"could not be started": 1})


def _told(ended: Ended, version: str, stage: Stage) -> tuple[ScannerRun, list[Seen]]:
    seen: list[Seen] = []
    errors: Counter[str] = Counter()
    scanned: int | None = None
    for line in ended.output.splitlines():
        try:
            told: dict[str, Any] = json.loads(line)
        except ValueError:
            continue  # cut off
        if "scanned" in told:
            scanned = int(told["scanned"])
        elif "error" in told:
            errors["files not understood"] += 1
        elif len(seen) >= FINDINGS_SEEN_MAX:
            errors[BEYOND] += 1
        else:
            seen.append(_secret("detect-secrets", str(told["type"]), str(told["path"]), int(told["line"]), stage))
    status = _status(ended, done=scanned is not None, errors=errors)
    if status == "ok" and scanned == 0:
        status = "not_applicable"
    return ScannerRun(
        name="detect-secrets",
        status=status,
        version=version,
        duration_ms=ended.duration_ms,
        files_scanned=scanned or 0,
        errors=dict(errors),
    ), seen


def _leaks(ended: Ended, version: str, stage: Stage) -> tuple[ScannerRun, list[Seen]]:
    errors: Counter[str] = Counter()
    seen: list[Seen] = []
    try:
        found: list[dict[str, Any]] = json.loads(ended.output or b"null")
        if len(found) > FINDINGS_SEEN_MAX:
            errors[BEYOND] = len(found) - FINDINGS_SEEN_MAX
        for leak in found[:FINDINGS_SEEN_MAX]:
            copied = str(leak["File"]).removeprefix(f"{stage.source}/")
            rule = str(leak["RuleID"]) if _RULE.fullmatch(str(leak["RuleID"])) else "secret"
            seen.append(_secret("gitleaks", rule, copied, int(leak["StartLine"]), stage))
        done = True
    except (ValueError, KeyError, TypeError):
        done = False
    status = _status(ended, done=done, errors=errors)
    return ScannerRun(
        name="gitleaks",
        status=status,
        version=version,
        duration_ms=ended.duration_ms,
        files_scanned=stage.files if status == "ok" else 0,
        errors=dict(errors),
    ), seen


def _status(ended: Ended, *, done: bool, errors: Counter[str]) -> ScannerStatus:
    if ended.why is not None:
        errors[ended.why] += 1
        return "timed_out" if ended.why == "timed out" else "failed"
    if not done or ended.code != 0:
        errors[f"exit code {ended.code}"] += 1
        return "failed"
    return "partial" if errors else "ok"


def _secret(scanner: ScannerName, kind: str, copied: str, line: int, stage: Stage) -> Seen:
    words = kind.replace("-", " ")
    return Seen(
        scanner=scanner,
        rule=f"{scanner}.{kind.lower().replace(' ', '-')}",
        group="secret",
        category="secret",
        severity=_GUESSES.get(kind, "high"),
        title=f"Secret in the code: {words}",
        message=f"The line holds what looks like a secret ({words}).",
        path=stage.original(copied),
        line=line,
        end_line=line,
        cwe=("CWE-798",),
        fix=_FIX,
    )
