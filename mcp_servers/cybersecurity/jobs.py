"""Owns scans as durable work: asked for once, run by whoever has a worker, kept exactly once, answered or handed over as a job."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from body_broker.calls import Json
from body_broker.errors import Conflict, InternalError, NotFound
from body_broker.storage.postgres import Connection, Pool
from body_broker.text import new_id
from body_broker.work import queue
from body_broker.work.model import FINAL, Origin, WorkItem
from body_broker.work.run import Run
from mcp_servers.cybersecurity import store
from mcp_servers.cybersecurity.findings import SCANNERS, Scan, ScannerName, SecurityReport
from mcp_servers.cybersecurity.merging import compare
from mcp_servers.cybersecurity.paths import Target, locate, unknown
from mcp_servers.cybersecurity.reporting import report
from mcp_servers.cybersecurity.scanning import Scanning

SCAN = "scan"
_LOOK_EVERY_S = 0.1
_GOES_ON = "The scan {stands} as a job: get_job({job_id}) has its report once it has succeeded."


async def submit(pool: Pool, target: Target, scanners: list[ScannerName] | None, origin: Origin) -> str:
    """The job that scans it; one repository is scanned once at a time, over all workers."""
    given = {
        "repository": target.repository.name,
        "path": target.path,
        "scanners": scanners if scanners is not None else list(SCANNERS),
    }
    return await queue.enqueue(pool, SCAN, given, origin=origin, limit_key=f"scan:{target.repository.name}")


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
    return await run.commit("keep", partial(_keep, run=run, target=target, found=found))


async def _keep(connection: Connection, *, run: Run, target: Target, found: Scan) -> Json:
    before = await store.findings_before(connection, target.repository.name, target.path)
    compared = compare(found.findings, before, complete=found.complete)
    scan_id = new_id("scn")
    kept = store.keep([*compared.findings, *compared.fixed], scan_id)
    told = report(found, compared, kept, target=target, scan_id=scan_id, job_id=run.id)
    await store.add_scan(connection, told, target.path, ">".join(run.origin.chain), kept)
    return told.model_dump(mode="json")


async def _target(pool: Pool, given: Json) -> Target:
    known = {repository.name: repository for repository in await store.repositories(pool)}
    if given["repository"] not in known:
        raise unknown()
    return Target(known[given["repository"]], given["path"])
