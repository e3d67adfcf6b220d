"""The cybersecurity server: scans of repositories and their findings. Owns the tools' wording."""

from __future__ import annotations

import asyncio

from body_broker.calls import Call, Caller, Room, Tool
from body_broker.errors import NotFound
from body_broker.work import keyed
from body_broker.work.model import Origin
from mcp_servers.cybersecurity import auditing, jobs, semgrep, store
from mcp_servers.cybersecurity.findings import CORE, SCANNERS, SecurityReport
from mcp_servers.cybersecurity.foreseeing import foresee_scan
from mcp_servers.cybersecurity.models import (
    AuditStarted,
    AuditWithAi,
    FindingBrief,
    FindingDetail,
    Findings,
    FromCode,
    GetFinding,
    GetScan,
    InstalledScanner,
    ListFindings,
    ListRepositories,
    NoArguments,
    Repositories,
    RepositoryBrief,
    ScanCodebase,
    Scanners,
)
from mcp_servers.cybersecurity.paths import target_of
from mcp_servers.cybersecurity.programs import isolation
from mcp_servers.cybersecurity.prompts import PROMPTS
from mcp_servers.cybersecurity.secrets import detect_secrets_version, find_gitleaks
from mcp_servers.cybersecurity.services import Services

_BRONZE = "BODY_BROKER_BRONZE_URL"


async def scan_codebase(arguments: ScanCodebase, call: Call, services: Services) -> SecurityReport:
    """The report of a scan, or the job that will have it (seed: CybersecurityMCP)."""
    job_id: str | None = await keyed.recall(services.pool, call.key)  # begun before, whatever is registered since
    if job_id is None:
        target = target_of(arguments.repo_path, await store.repositories(services.pool))
        job_id = await jobs.submit(services.pool, target, arguments.scanners, Origin.of(call), key=call.key)
    wait_s = services.wait_s if arguments.wait_s is None else min(arguments.wait_s, services.wait_s)
    return await jobs.follow(services.pool, job_id, call.caller.asker, wait_s)


async def is_registered(arguments: ScanCodebase, _caller: Caller, services: Services) -> frozenset[str]:
    """`registered_repository` where exactly a registered repository is meant, not a folder of one."""
    try:
        target = target_of(arguments.repo_path, await store.repositories(services.pool))
    except NotFound:
        return frozenset()
    return frozenset() if target.path else frozenset({"registered_repository"})


async def get_scan(arguments: GetScan, _call: Call, services: Services) -> SecurityReport:
    """A scan's report."""
    return await store.report_of(services.pool, arguments.scan_id)


async def list_findings(arguments: ListFindings, call: Call, services: Services) -> Findings:
    """A page of a scan's findings. A cursor goes on in the scan that it began in, whatever was scanned meanwhile."""
    after = call.open_cursor(arguments.cursor)
    scan_id, ordinal = after or (await store.scan_named(services.pool, arguments.scan_id), -1)
    where = store.Where(
        severity=arguments.severity,
        category=arguments.category,
        path_prefix=arguments.path_prefix,
        status=arguments.status,
    )
    rows = await store.list_findings(services.pool, scan_id, where, after=ordinal, limit=arguments.limit + 1)
    shown = rows[: arguments.limit]
    more = [scan_id, shown[-1][0]] if len(rows) > arguments.limit else None
    return Findings(items=[_brief(kept) for _, kept in shown], next_cursor=call.seal_cursor(more))


async def get_finding(arguments: GetFinding, _call: Call, services: Services) -> FindingDetail:
    """One finding, whole."""
    kept = await store.finding(services.pool, arguments.finding_id)
    found = kept.finding
    return FindingDetail(
        id=kept.id,
        scan_id=kept.scan_id,
        rules=found.rules,
        title=found.title,
        severity=found.severity,
        category=found.category,
        status=found.status,
        scanners=[*found.scanners],
        cwe=found.cwe,
        line=found.location.start,
        fix=found.fix,
        references=found.references,
        fingerprint=found.fingerprint,
        from_code=FromCode(path=found.location.path, snippet=found.snippet, message=found.message),
    )


async def list_repositories(arguments: ListRepositories, call: Call, services: Services) -> Repositories:
    """Which repositories may be scanned, each with its latest scan."""
    after = call.open_cursor(arguments.cursor)
    rows = await store.registered(services.pool, after=after or "", limit=arguments.limit + 1)
    shown = rows[: arguments.limit]
    return Repositories(
        items=[
            RepositoryBrief.model_validate(
                {"name": r.repository.name, "scan_id": r.scan_id, "verdict": r.verdict, "scanned_at": r.at}
            )
            for r in shown
        ],
        next_cursor=call.seal_cursor(shown[-1].repository.name if len(rows) > arguments.limit else None),
    )


async def scanner_status(_arguments: NoArguments, _call: Call, services: Services) -> Scanners:
    """Which scanners the machine that answers has; another worker may have others, and a report says what it had."""
    scanning = await services.scanning()
    there = {
        "semgrep": scanning.engine is not None,
        "detect-secrets": await asyncio.to_thread(detect_secrets_version) is not None,
        "gitleaks": await asyncio.to_thread(find_gitleaks, services.gitleaks) is not None,
    }
    rules = await asyncio.to_thread(semgrep.rule_files, services.rules_dir)
    return Scanners(
        scanners=[
            InstalledScanner(name=name, status="ok" if there[name] else "not_installed", core=name in CORE)
            for name in SCANNERS
        ],
        rule_files=len(rules),
        isolation=await asyncio.to_thread(isolation),
    )


async def audit_with_ai(arguments: AuditWithAi, call: Call, services: Services) -> AuditStarted:
    """The job of an audit by an expert (seed: CybersecurityMCP); its result is an AuditReport."""
    assignment = await auditing.assignment_of(arguments, services.pool)
    return AuditStarted(job_id=await services.jobs.submit(assignment, Origin.of(call), key=call.key))


async def has_budget(_arguments: AuditWithAi, caller: Caller, services: Services) -> frozenset[str]:
    """`within_budget` where an expert may still be asked on the caller's account."""
    return await services.budget(caller)


def _brief(kept: store.Kept) -> FindingBrief:
    found = kept.finding
    return FindingBrief(
        id=kept.id,
        severity=found.severity,
        category=found.category,
        status=found.status,
        rule=found.rule,
        path=found.location.path,
        line=found.location.start,
    )


ROOM = Room(
    name="cybersecurity",
    title="Cybersecurity",
    description="Scans of registered repositories, and what they found.",
    tools=(
        Tool(
            name="scan_codebase",
            group="security_scan",
            modifiers=frozenset({"long_running"}),
            run=scan_codebase,
            foresees=foresee_scan,
            establishes=is_registered,
            title="Scan a repository",
            description=(
                "Scan a registered repository's code for faults and secrets. Answers a report, or a job for get_job where it"
                " takes longer. To read what a scan found, use list_findings."
            ),
            effect="repeatable",  # the job is begun once under an approval
            work=jobs.SCAN,
        ),
        Tool(
            name="list_findings",
            group="security_read",
            run=list_findings,
            title="List findings",
            description="What a scan found, the gravest first, page by page. Scans nothing: its report says how complete it was.",
            output="as_marked",  # paths are the scanned repository's words
        ),
        Tool(
            name="get_finding",
            group="security_read",
            run=get_finding,
            title="Get a finding",
            description="One finding with its code, what it means and how to mend it. Secrets are never shown.",
            output="outside",
        ),
        Tool(
            name="get_scan",
            group="security_read",
            run=get_scan,
            title="Get a scan's report",
            description="The report of a scan: verdict, counts, how each scanner did. For single findings use list_findings.",
            profile="all",
        ),
        Tool(
            name="list_repositories",
            group="security_read",
            run=list_repositories,
            title="List repositories",
            description="Repositories that can be scanned, each with its latest scan.",
            profile="all",
        ),
        Tool(
            name="scanner_status",
            group="security_read",
            run=scanner_status,
            title="Scanner status",
            description="Which scanners this machine has. A report says itself what it was made with.",
            profile="all",
        ),
        Tool(
            name="audit_with_ai",
            group="security_read",
            modifiers=frozenset({"spend", "long_running"}),
            run=audit_with_ai,
            establishes=has_budget,
            title="Audit findings with AI",
            description="Have the bronze tier judge a scan's findings. Answers with a job. To read findings, use list_findings.",
            effect="repeatable",  # the job is begun once under a key
            needs=_BRONZE,
            open_world=True,
            work=auditing.AUDIT,
        ),
    ),
    prompts=PROMPTS,
)
