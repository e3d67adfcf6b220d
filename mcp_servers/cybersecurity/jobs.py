"""Owns scans as durable work: asked for once, run by whoever has a worker, kept exactly once, answered or handed over as a job."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from body_broker.calls import Json
from body_broker.errors import Conflict, InternalError, NotFound, RateLimited
from body_broker.storage.postgres import Connection, Pool
from body_broker.text import new_id
from body_broker.work import keyed, queue
from body_broker.work.model import FINAL, Origin, WorkItem
from body_broker.work.run import Run
from mcp_servers.cybersecurity import store
from mcp_servers.cybersecurity.findings import SCANNERS, Finding, Scan, ScannerName, SecurityReport
from mcp_servers.cybersecurity.merging import compare
from mcp_servers.cybersecurity.paths import Target, locate, unknown
from mcp_servers.cybersecurity.reporting import report
from mcp_servers.cybersecurity.scanning import Scanning

SCAN = "scan"
OPEN_MAX = 4
"""Scans that one principal may have open."""
_RETRY_S = 30.0
_ONE_BY_ONE = "SELECT pg_advisory_xact_lock(hashtextextended('scan ' || $1, 0))"
_LOOK_EVERY_S = 0.1
_GOES_ON = "The scan {stands} as a job: get_job(id={job_id}) has its report once it has succeeded."


async def submit(
    pool: Pool, target: Target, scanners: list[ScannerName] | None, origin: Origin, *, key: str | None = None
) -> str:
    """The job that scans it: the one that the asker has open for the same already, or got under this key, else a new one.

    One scan runs at a time, over all workers; whoever has fewer open comes first.

    Raises:
        RateLimited: The asker has too many scans open.
    """
    chosen = list(SCANNERS) if scanners is None else [name for name in SCANNERS if name in scanners]
    given: Json = {"repository": target.repository.name, "path": target.path, "scanners": chosen}
    async with pool.acquire() as connection, connection.transaction():
        return await keyed.once(connection, key, lambda: _begin(connection, given, origin))


async def _begin(connection: Connection, given: Json, origin: Origin) -> str:
    await connection.execute(_ONE_BY_ONE, origin.asker)
    open_ = await queue.unfinished(connection, SCAN, owner=origin.asker)
    for job_id, asked in open_:
        if asked == given:
            return job_id
    if len(open_) >= OPEN_MAX:
        raise RateLimited(
            f"You have {len(open_)} scans open, and may have {OPEN_MAX}.",
            next_step="Wait for one to end (get_job), or cancel one (cancel_job), then scan.",
            retry_after_s=_RETRY_S,
        )
    return await queue.enqueue(connection, SCAN, given, origin=origin, limit_key=SCAN, priority=-len(open_))


async def follow(pool: Pool, job_id: str, owner: str, wait_s: float) -> SecurityReport:
    """The job's report where it comes within `wait_s`, else the job.

    Raises:
        InternalError: The job failed; why is said.
        Conflict: Somebody cancelled it.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + wait_s
    while True:
        job = await queue.get(pool, job_id, owner=owner)
        if job.state in FINAL:
            return _ended(job)
        if loop.time() >= until:
            stands = "waits for its turn and a worker" if job.state == "queued" else "goes on"
            return SecurityReport(
                status="running", job_id=job_id, summary=_GOES_ON.format(stands=stands, job_id=job_id)
            )
        await asyncio.sleep(min(_LOOK_EVERY_S, max(until - loop.time(), 0)))


def _ended(job: WorkItem) -> SecurityReport:
    if job.state == "succeeded":
        return SecurityReport.model_validate(job.result)
    if job.state != "failed":
        raise Conflict(f"The scan {job.id} was {job.state}.", next_step="Scan again.")
    told = f"The scan {job.id} failed: {job.error['message']}"
    if job.error["code"] == NotFound.code:
        raise NotFound(told, next_step=job.error["next_step"])
    raise InternalError(told, next_step=job.error["next_step"])


async def perform(run: Run, pool: Pool, scanning: Callable[[], Awaitable[Scanning]]) -> Json:
    """Scan and keep what came of it; a run that dies is begun again, and only one is ever kept."""
    target = await _target(pool, run.input)
    folder = await asyncio.to_thread(locate, target)
    assert folder.is_relative_to(target.repository.root), "a target lies in its repository"
    found = await (await scanning()).scan(
        target.repository.root,
        target.path,
        skips=target.repository.skips,
        scanners=run.input["scanners"],
        progress=run.progress,
    )
    before = await store.findings_before(pool, target.repository.name, target.path)
    told, rows = await asyncio.to_thread(_reckoned, found, before, target, run.id)

    async def keep(connection: Connection) -> Json:
        await store.add_scan(connection, told, target.path, ">".join(run.origin.chain), rows)
        return told.model_dump(mode="json")

    return await run.commit("keep", keep)


def _reckoned(found: Scan, before: Mapping[str, Finding], target: Target, job_id: str) -> tuple[SecurityReport, str]:
    """The report, and the rows of the findings: slow where there are many, so made before any transaction."""
    settled: list[ScannerName] = [run.name for run in found.runs if run.settled]
    compared = compare(found.findings, before, complete=found.complete, settled=settled)
    scan_id = new_id("scn")
    kept = store.keep([*compared.findings, *compared.fixed], scan_id)
    return report(found, compared, kept, target=target, scan_id=scan_id, job_id=job_id), store.rows_of(kept)


async def _target(pool: Pool, given: Json) -> Target:
    known = {repository.name: repository for repository in await store.repositories(pool)}
    if given["repository"] not in known:
        raise unknown()
    return Target(known[given["repository"]], given["path"])
