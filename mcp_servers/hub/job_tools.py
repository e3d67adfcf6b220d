"""The hub's own tools about jobs: mine, how they stand, what came of them, stopping one, and asking experts for new ones."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import datetime
from typing import Annotated, Any, Protocol, cast

import orjson
from pydantic import Field

from approvals.desk import Desk
from approvals.model import WORK_KIND, Approval
from approvals.waiting import waits_for
from body_broker.calls import Arguments, Call, Caller, Json, Result, Tool
from body_broker.errors import Conflict, NotFound
from body_broker.storage.postgres import Pool
from body_broker.work import queue
from body_broker.work.model import FINAL, State, WorkItem, WorkSummary
from mcp_servers.hub.approval_tools import job_facts
from mcp_servers.hub.passage import caller_of
from tiers.bronze.jobs import Jobs, Standing
from tiers.bronze.model import KINDS
from tiers.bronze.results import STORE_AWAY, Results

_APPROVAL, _ENDPOINT = "apr_", "expert:"
_GOES_ON = "It cannot be stopped where it is asked: it may still run and cost there. Its answer is dropped."
_GOES_ON_BY_ITSELF: frozenset[State] = frozenset({"queued", "running", "waiting"})
_EXPERTS = frozenset(KINDS)
_STOPS_WITHIN_S, _LOOK_EVERY_S = 1.0, 0.05
JobId = Annotated[str, Field(min_length=5, max_length=80)]


class HasJobs(Protocol):
    """What these tools need."""

    @property
    def pool(self) -> Pool:
        """The stores."""
        ...

    @property
    def desk(self) -> Desk:
        """The approvals of this hub."""
        ...

    @property
    def jobs(self) -> Jobs:
        """The experts' jobs."""
        ...

    @property
    def results(self) -> Results:
        """What came of them, longer than their work is kept."""
        ...


class JobQuery(Arguments):
    """One job."""

    id: JobId


class JobsQuery(Arguments):
    """A page of jobs."""

    state: Annotated[State | None, Field(description="Only jobs in this state.")] = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    cursor: Annotated[str | None, Field(max_length=1024, description="next_cursor of the page before.")] = None


class JobSummary(Result):
    """A job without its result."""

    id: str
    kind: str
    state: State
    title: str | None = None
    progress: Json = None
    error: Json = Field(default=None, description="What went wrong: code, message, retryable, next_step.")
    created_at: str
    finished_at: str | None = None
    from_outside: bool = Field(description="Whether text from outside went into it.")

    def outside(self) -> bool:
        """What a tainted session caused carries its taint (DESIGN.md §2)."""
        return self.from_outside


class Job(JobSummary):
    """A job as its owner sees it."""

    queue_position: int | None = Field(default=None, description="Jobs that begin before it.")
    waits_for: str | None = None
    cost_usd: float | None = Field(default=None, description="So far; null where nobody knows.")
    maybe_spent: bool = Field(default=False, description="More may have been spent: nobody can say.")
    note: str | None = None
    result: Json = None

    def text(self) -> str:
        """One line, then what there is to read."""
        seen = self.result if self.result is not None else self.error or self.progress
        line = f"{self.id} ({self.kind}) is {self.state}" + "".join(f", {each}" for each in self._more())
        line += f": {orjson.dumps(seen).decode()}" if seen else "."
        return f"{line} {self.note}" if self.note else line

    def _more(self) -> list[str]:
        before = self.queue_position
        found = [] if before is None else ["next to begin" if before == 0 else f"{before} before it"]
        return [*found, *([f"waits for {self.waits_for}"] if self.waits_for else [])]


class Stopped(JobSummary):
    """A job of which somebody wants no more; how it stands beyond that, get_job has."""

    note: str | None = None

    def text(self) -> str:
        """One line."""
        return " ".join(filter(None, (f"{self.id} ({self.kind}) is {self.state}.", self.note)))


class Page(Result):
    """A page of jobs, newest first."""

    items: list[JobSummary]
    next_cursor: str | None = None

    def outside(self) -> bool:
        """Outside where any of its jobs is."""
        return any(job.from_outside for job in self.items)


async def get_job(arguments: JobQuery, call: Call, services: HasJobs) -> Job:
    """One job of the caller's, or a request to people; somebody else's is not found.

    The result of a job whose work is forgotten is still there.
    """
    owner = call.caller.asker
    if arguments.id.startswith(_APPROVAL):
        return Job(**job_facts(await services.desk.find(arguments.id, caller=call.caller)))
    try:
        item = await queue.get(services.pool, arguments.id, owner=owner)
    except NotFound:
        if (kept := await _kept(services, arguments.id, owner)) is None:
            raise
        return kept
    return await _job(item, services)


async def list_jobs(arguments: JobsQuery, call: Call, services: HasJobs) -> Page:
    """The caller's jobs, newest first."""
    page = await queue.list_newest(
        services.pool,
        owner=call.caller.asker,
        states=(arguments.state,) if arguments.state else (),
        without=(WORK_KIND,),  # whose requester is more than its asker: list_my_approvals has them
        before=call.open_cursor(arguments.cursor),
        limit=arguments.limit,
    )
    titles = await services.jobs.titles([item.id for item in page.items if item.kind in _EXPERTS])
    items = [JobSummary(**_facts(item), title=titles.get(item.id)) for item in page.items]
    return Page(items=items, next_cursor=call.seal_cursor(page.before))


async def cancel_job(arguments: JobQuery, call: Call, services: HasJobs) -> Stopped:
    """Ask a job to stop; one that has not begun, or waits, is cancelled at once, and people are not asked for it any more."""
    if arguments.id.startswith(_APPROVAL):
        return _stopped(Job(**job_facts(await services.desk.cancel(arguments.id, caller=call.caller))))
    owner = call.caller.asker
    await services.jobs.cancel(arguments.id, owner=owner)
    item = await _after_stopping(services.pool, arguments.id, owner)
    if item.state == "cancelled":
        waited = [item.waits_for] if item.waits_for and item.waits_for.startswith(_APPROVAL) else []
        for approval_id in dict.fromkeys([*waited, *await services.jobs.asked_of_people(item.id)]):
            await _take_back(approval_id, call.caller, services.desk)
    return _stopped(await _job(item, services))


async def _after_stopping(pool: Pool, job_id: str, owner: str) -> WorkItem:
    """The job once whoever runs it has let go of it, or after a second."""
    loop = asyncio.get_running_loop()
    until = loop.time() + _STOPS_WITHIN_S
    while True:
        item = await queue.get(pool, job_id, owner=owner)
        if item.state != "running" or loop.time() >= until:
            return item
        await asyncio.sleep(_LOOK_EVERY_S)


def _stopped(job: Job) -> Stopped:
    return Stopped(**job.model_dump(include=set(Stopped.model_fields)))


async def _take_back(approval_id: str, caller: Caller, desk: Desk) -> None:
    """What people were asked for the job is asked no more; one that has ended stays as it ended."""
    with contextlib.suppress(Conflict, NotFound):
        approval = await desk.get(approval_id)
        # It belongs to the job's own chain, which acts for whoever may cancel the job.
        alone = len(caller.chain) == 1
        await desk.cancel(approval_id, caller=caller if alone else caller_of(approval))


async def _kept(services: HasJobs, job_id: str, owner: str) -> Job | None:
    kept = await services.results.read(job_id, owner)
    if kept is None:
        return None
    return Job(
        id=job_id,
        kind=kept.kind,
        state="succeeded",
        title=kept.title,
        created_at=kept.created_at.isoformat(),
        finished_at=kept.created_at.isoformat(),
        from_outside=kept.outside,
        note="Its work is forgotten; this is what came of it.",
        result=kept.body,
    )


async def _job(item: WorkItem, services: HasJobs) -> Job:
    facts: dict[str, Any] = {**_facts(item), "result": item.result, "note": _note(item)}
    if item.kind not in _EXPERTS:
        position = await queue.position(services.pool, item.id) if item.state == "queued" else None
        return Job(**facts, queue_position=position)
    standing = await services.jobs.standing(item.id)
    facts["from_outside"] |= bool(item.input["outside"]) or _has_outside(item.result)
    if item.state == "cancelled" and standing.dropped is not None:
        facts["note"] = f"{standing.dropped} had been asked. {_GOES_ON}"
    return Job(
        **facts,
        title=item.input["title"],
        queue_position=standing.position,
        waits_for=await _waits_for(item, standing, services.desk),
        cost_usd=None if standing.unpriced else standing.cost_usd,
        maybe_spent=standing.maybe_spent,
    )


def _has_outside(result: Json) -> bool:
    return bool(cast("dict[str, Any]", result or {}).get("made", {}).get("outside"))


def _note(item: WorkSummary) -> str | None:
    if item.cancel_requested and item.state not in FINAL:
        return "It is asked to stop; what it has begun is brought to its end."
    if item.error is not None and item.state in _GOES_ON_BY_ITSELF:
        return "The error is that of its last run. It is tried again by itself: do not ask for it again."
    return None


async def _waits_for(item: WorkSummary, standing: Standing, desk: Desk) -> str | None:
    """What a job waits for that holds no worker, in words."""
    if item.state != "waiting" or item.waits_for is None:
        return None
    if item.waits_for.startswith(_ENDPOINT):
        return f"the answer of {standing.engine or 'an endpoint'}"
    if item.waits_for == STORE_AWAY:
        return "the place where results are kept, which takes nothing now"
    if not item.waits_for.startswith(_APPROVAL):
        return item.waits_for
    try:
        return _people(await desk.get(item.waits_for))
    except NotFound:
        return f"people ({item.waits_for})"


def _people(approval: Approval) -> str:
    if approval.standing == "pending":
        return f"people, to allow {approval.tool}: {waits_for(approval).removeprefix('waiting for ')} ({approval.id})"
    return f"{approval.tool}, which is {waits_for(approval)} ({approval.id})"


def _facts(item: WorkSummary) -> dict[str, Any]:  # the fields of JobSummary
    return {
        "id": item.id,
        "kind": item.kind,
        "state": item.state,
        "progress": item.progress,
        "error": item.error,
        "created_at": _text(item.created_at),
        "finished_at": item.finished_at and _text(item.finished_at),
        "from_outside": item.origin.tainted,
    }


def _text(moment: datetime) -> str:
    return moment.isoformat()


TOOLS = (
    Tool(
        name="get_job",
        group="own",
        run=get_job,
        title="Get a job",
        description="State, progress and result of one of your jobs. Poll it after a tool answered with a job id.",
        output="as_marked",
    ),
    Tool(
        name="list_jobs",
        group="own",
        run=list_jobs,
        title="List my jobs",
        description="Your jobs, newest first. Use get_job for the result of one you know.",
        output="as_marked",
        profile="all",
    ),
    Tool(
        name="cancel_job",
        group="own",
        run=cancel_job,
        title="Cancel a job",
        description="Stop one of your jobs. What it has already done stays done.",
        effect="repeatable",
        output="as_marked",
    ),
)
