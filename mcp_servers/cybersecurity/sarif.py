"""Owns the SARIF 2.1.0 form of a scan, as code hosts and editors read it."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from body_broker.calls import Json
from mcp_servers.cybersecurity.findings import Finding, Scan, ScannerRun, Severity
from mcp_servers.cybersecurity.reporting import told

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVEL: dict[Severity, str] = {
    "critical": "error",
    "high": "error",
    "medium": "warning",
    "low": "note",
    "info": "note",
    "unknown": "warning",
}
# What GitHub sorts by; the middle of the CVSS range that each word stands for.
_SCORE: dict[Severity, str] = {
    "critical": "9.5",
    "high": "8.0",
    "medium": "5.5",
    "low": "2.0",
    "info": "0.0",
    "unknown": "5.5",
}
_ROOT = "SRCROOT"


def sarif(scan: Scan, version: str) -> Json:
    """One run of the tool `body-broker`; a scanner that did not settle stands there as a notification.

    Args:
        scan: What was found.
        version: Of this program.
    """
    rules: dict[str, Finding] = {}
    for finding in scan.findings:
        rules.setdefault(finding.rule, finding)
    places = {rule: index for index, rule in enumerate(rules)}
    return {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "body-broker",
                        "semanticVersion": version,
                        "rules": [_rule(rule, first) for rule, first in rules.items()],
                    }
                },
                "columnKind": "unicodeCodePoints",
                "originalUriBaseIds": {_ROOT: {"description": {"text": "The root of what was scanned."}}},
                "invocations": [
                    {
                        "executionSuccessful": scan.complete,
                        "toolExecutionNotifications": [_notice(run) for run in scan.runs if not run.settled],
                    }
                ],
                "properties": {"verdict": scan.verdict, "revision": scan.revision, "skipped": scan.skipped},
                "results": [_result(finding, places[finding.rule]) for finding in scan.findings],
            }
        ],
    }


def _rule(rule: str, first: Finding) -> dict[str, Any]:
    return {
        "id": rule,
        "shortDescription": {"text": first.title},
        "help": {"text": first.fix or first.title},
        "defaultConfiguration": {"level": _LEVEL[first.severity]},
        "properties": {"security-severity": _SCORE[first.severity], "tags": ["security", *map(_tag, first.cwe)]},
    }


def _tag(cwe: str) -> str:
    return f"external/cwe/{cwe.lower()}"


def _notice(run: ScannerRun) -> dict[str, Any]:
    return {"level": "error", "message": {"text": f"{told(run)}."}, "descriptor": {"id": f"{run.name}/{run.status}"}}


def _result(finding: Finding, index: int) -> dict[str, Any]:
    where = finding.location
    region: dict[str, Any] = {"startLine": max(where.start, 1), "endLine": max(where.end, where.start, 1)}
    if finding.snippet:
        region["snippet"] = {"text": finding.snippet}
    artifact = {"uri": quote(where.path), "uriBaseId": _ROOT}
    return {
        "ruleId": finding.rule,
        "ruleIndex": index,
        "level": _LEVEL[finding.severity],
        "message": {"text": finding.message or finding.title},
        "locations": [{"physicalLocation": {"artifactLocation": artifact, "region": region}}],
        "partialFingerprints": {"bodyBroker/v1": finding.fingerprint},
        "properties": {"category": finding.category, "scanners": finding.scanners, "severity": finding.severity},
    }
