"""Owns how semgrep's native engine is run over a staged copy, and what its answer means."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mcp_servers.cybersecurity.copying import Stage
from mcp_servers.cybersecurity.findings import BEYOND, FINDINGS_SEEN_MAX, ScannerRun, ScannerStatus, Seen, Severity
from mcp_servers.cybersecurity.programs import Command, run

OUR_RULES = Path(__file__).parent / "rules"
_FILE_TIMEOUT_S = 5
_MEMORY_MIB = 2_000
_FATAL = 2
_OF_RULES = "Rule parse error"
_NO_RULES = "files of code in languages without rules"
_WORD = re.compile(r"[A-Za-z][A-Za-z ]{0,39}")
_HARD_CODED = "CWE-798"
_CWE = re.compile(r"CWE-\d{1,5}")
_RULE = re.compile(r"^\s*-\s+id:", re.MULTILINE)
_SEVERITY: Mapping[str, Severity] = {
    "CRITICAL": "critical",
    "ERROR": "high",
    "HIGH": "high",
    "WARNING": "medium",
    "MEDIUM": "medium",
    "INFO": "low",
    "LOW": "low",
    "INVENTORY": "info",
    "EXPERIMENT": "info",
}
# No network, no git, no orders from the repository. Values of callers are nowhere among them.
_FLAGS = (
    *("--metrics", "off", "--json", "--quiet", "--jobs", "1", "--no-rewrite-rule-ids", "--no-secrets-validation"),
    *("--no-git-ignore", "--disable-nosem", "--x-ignore-semgrepignore-files"),
    *("--timeout", str(_FILE_TIMEOUT_S), "--timeout-threshold", "3"),
    *("--max-target-bytes", "0", "--max-memory", str(_MEMORY_MIB)),
)
_ENVIRONMENT = (("SEMGREP_SEND_METRICS", "off"), ("SEMGREP_ENABLE_VERSION_CHECK", "0"))


def rule_files(studio: Path | None, ours: Path = OUR_RULES) -> list[Path]:
    """The files of rules: ours, then the studio's. Blocks."""
    found = sorted(ours.glob("*.yaml"))
    if studio is not None:
        found += sorted(file for ending in ("*.yaml", "*.yml") for file in studio.rglob(ending))
    return found


async def scan(
    engine: Path | None, stage: Stage, rules: Sequence[Path], timeout_s: float
) -> tuple[ScannerRun, list[Seen]]:
    """How the engine did, and what it saw; it never raises for what the engine makes of a repository."""
    if engine is None:
        return ScannerRun(name="semgrep", status="not_installed"), []
    if not rules:
        return ScannerRun(name="semgrep", status="failed", errors={"no rules": 1}), []
    command = Command(
        words=[str(engine), "scan", "--experimental", *_configs(rules), *_FLAGS, "--", str(stage.source)],
        source=stage.source,
        work=stage.work,
        needs=[engine, *rules],
        timeout_s=timeout_s,
        environment=_ENVIRONMENT,
    )
    try:
        ended = await run(command)
    except OSError:
        return ScannerRun(name="semgrep", status="failed", errors={"could not be started": 1}), []
    loaded = await asyncio.to_thread(_count_rules, rules)
    if ended.why is not None:
        status: ScannerStatus = "timed_out" if ended.why == "timed out" else "failed"
        errors = {ended.why: 1}
        return ScannerRun(
            name="semgrep", status=status, duration_ms=ended.duration_ms, errors=errors, rules_loaded=loaded
        ), []
    return await asyncio.to_thread(_understood, ended.output, ended.code, ended.duration_ms, loaded, stage)


def _configs(rules: Sequence[Path]) -> list[str]:
    return [word for rule in rules for word in ("--config", str(rule))]


def _count_rules(rules: Sequence[Path]) -> int:
    return sum(len(_RULE.findall(rule.read_text("utf-8", "replace"))) for rule in rules)


def _understood(output: bytes, code: int, duration_ms: int, loaded: int, stage: Stage) -> tuple[ScannerRun, list[Seen]]:
    try:
        answer: dict[str, Any] = json.loads(output)
        results: list[dict[str, Any]] = answer["results"]
        seen = [_seen(result, stage) for result in results[:FINDINGS_SEEN_MAX]]
        scanned = len(answer["paths"]["scanned"])
        errors = Counter(_error(error) for error in answer["errors"])
        failed = len({error.get("rule_id") for error in answer["errors"] if _error(error) == _OF_RULES})
        version = str(answer["version"])[:20]
        if len(results) > len(seen):
            errors[BEYOND] = len(results) - len(seen)
        if scanned == 0 and stage.code:
            errors[_NO_RULES] = stage.code
    except (ValueError, KeyError, TypeError, AttributeError):
        errors = {f"exit code {code}": 1}
        return ScannerRun(
            name="semgrep", status="failed", duration_ms=duration_ms, errors=errors, rules_loaded=loaded
        ), []
    status: ScannerStatus = "ok"
    if errors or code not in {0, 1}:
        status = "failed" if code >= _FATAL and not scanned and not errors else "partial"
    elif scanned == 0:
        status = "not_applicable"
    run_ = ScannerRun(
        name="semgrep",
        status=status,
        version=version,
        duration_ms=duration_ms,
        files_scanned=scanned,
        errors=dict(errors),
        rules_loaded=loaded - failed,
        rules_failed=failed,
    )
    return run_, seen


def _error(error: Mapping[str, Any]) -> str:
    """The kind of an error, by the engine's own word; never its text, which quotes code."""
    kind = error["type"]
    word = str(kind[0] if isinstance(kind, list) else kind)  # pyright: ignore[reportUnknownArgumentType] - JSON
    return word if _WORD.fullmatch(word) else "error"


def _seen(result: Mapping[str, Any], stage: Stage) -> Seen:
    extra = result["extra"]
    known: dict[str, Any] = extra.get("metadata") or {}
    rule = str(result["check_id"]).rpartition("/")[2][:200]
    cwe = tuple(dict.fromkeys(_CWE.findall(json.dumps(known.get("cwe", "")))))
    copied = str(result["path"]).removeprefix(f"{stage.source}/")
    secret = _HARD_CODED in cwe
    return Seen(
        scanner="semgrep",
        rule=rule,
        group="secret" if secret else cwe[0] if cwe else rule,
        category="secret" if secret else "sast",
        severity=_SEVERITY.get(str(extra["severity"]).upper(), "unknown"),
        title=_title(rule, known),
        message=str(extra["message"]),
        path=stage.original(copied),
        line=int(result["start"]["line"]),
        end_line=int(result["end"]["line"]),
        cwe=cwe,
        references=_texts(known.get("references")),
        fix=str(known.get("fix", ""))[:500],
    )


def _title(rule: str, known: Mapping[str, Any]) -> str:
    """What the rule says of itself, or its id in words: a message may quote code, a title may not."""
    title = known.get("title") or known.get("shortDescription")
    return str(title)[:120] if title else rule.rpartition(".")[2].replace("-", " ").replace("_", " ")


def _texts(value: Any) -> tuple[str, ...]:  # JSON of a rule file
    values: list[Any] = [*value] if isinstance(value, list) else [value]
    return tuple(text[:300] for text in values if isinstance(text, str))[:5]
