"""The hub's own tools: who am I, my jobs, my approvals, and the metrics resource. Jobs themselves are durable work (body_broker.work)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from pydantic import Field

from approvals.desk import Desk
from approvals.model import WORK_KIND
from body_broker.calls import Arguments, Call, Json, Resource, ResourceText, Result, Room, Tool
from body_broker.storage.postgres import Pool
from body_broker.work import queue
from body_broker.work.model import State, WorkItem, WorkSummary
from mcp_servers.hub.approval_tools import TOOLS as APPROVAL_TOOLS
from mcp_servers.hub.approval_tools import job_facts
from mcp_servers.hub.generating import RESOURCES as GENERATING_RESOURCES
from mcp_servers.hub.generating import TOOLS as GENERATING_TOOLS
from mcp_servers.hub.inferring import Inferring
from mcp_servers.hub.metrics import Metrics
from mcp_servers.hub.talking import TOOLS as TALKING_TOOLS

_APPROVAL = "apr_"
JobId = Annotated[str, Field(min_length=5, max_length=80)]


@dataclass(frozen=True, slots=True)
class HubServices:
    """What the hub's own tools need."""

    pool: Pool
    metrics: Metrics
    desk: Desk
    inferring: Inferring


class Nothing(Arguments):
    """No arguments."""


class Identity(Result):
    """Who the hub takes the caller for."""

    chain: list[str] = Field(description="Who asked first, then who acts for them.")
    roles: dict[str, list[str]] = Field(description="Roles of the people in the chain.")
    tainted: bool = Field(description="Whether this session has read text from outside: some calls then need a person.")
    expires_at: float | None = Field(description="Unix seconds at which the token ends.")

    def text(self) -> str:
        """One line."""
        roles = ", ".join(r for names in self.roles.values() for r in names) or "no roles"
        return f"You are {' acting for '.join(reversed(self.chain))} ({roles}); this session is {'tainted' if self.tainted else 'clean'}."


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
    progress: Json = None
    error: Json = Field(default=None, description="What went wrong: code, message, retryable, next_step.")
    created_at: str
    finished_at: str | None = None
    from_outside: bool = Field(description="Whether a session that had read text from outside asked for it.")

    def outside(self) -> bool:
        """What a tainted session caused carries its taint (DESIGN.md §2)."""
        return self.from_outside


class Job(JobSummary):
    """A job as its owner sees it."""

    result: Json = None

    def text(self) -> str:
        """One line, then what there is to read."""
        seen = self.result if self.result is not None else self.error or self.progress
        return f"{self.id} ({self.kind}) is {self.state}" + (f": {orjson.dumps(seen).decode()}" if seen else ".")


class Jobs(Result):
    """A page of jobs, newest first."""

    items: list[JobSummary]
    next_cursor: str | None = None

    def outside(self) -> bool:
        """Outside where any of its jobs is."""
        return any(job.from_outside for job in self.items)


async def whoami(_arguments: Nothing, call: Call, _services: HubServices) -> Identity:
    """The caller as the gate sees it."""
    caller = call.caller
    return Identity(
        chain=list(caller.chain),
        roles={p: sorted(r) for p, r in caller.roles.items() if r},
        tainted=call.tainted,
        expires_at=caller.expires_at,
    )


async def get_job(arguments: JobQuery, call: Call, services: HubServices) -> Job:
    """One job of the caller's, or a request to people; somebody else's is not found."""
    if arguments.id.startswith(_APPROVAL):
        return Job(**job_facts(await services.desk.find(arguments.id, caller=call.caller)))
    return _job(await queue.get(services.pool, arguments.id, owner=call.caller.asker))


async def list_jobs(arguments: JobsQuery, call: Call, services: HubServices) -> Jobs:
    """The caller's jobs, newest first."""
    page = await queue.list_newest(
        services.pool,
        owner=call.caller.asker,
        states=(arguments.state,) if arguments.state else (),
        without=(WORK_KIND,),  # whose requester is more than its asker: list_my_approvals has them
        before=call.open_cursor(arguments.cursor),
        limit=arguments.limit,
    )
    return Jobs(items=[JobSummary(**_facts(item)) for item in page.items], next_cursor=call.seal_cursor(page.before))


async def cancel_job(arguments: JobQuery, call: Call, services: HubServices) -> Job:
    """Ask a job to stop; one that has not begun is cancelled at once."""
    if arguments.id.startswith(_APPROVAL):
        return Job(**job_facts(await services.desk.cancel(arguments.id, caller=call.caller)))
    await queue.cancel(services.pool, arguments.id, owner=call.caller.asker)
    return _job(await queue.get(services.pool, arguments.id, owner=call.caller.asker))


async def read_metrics(_arguments: Nothing, _call: Call, services: HubServices) -> ResourceText:
    """This hub's metrics in Prometheus' text form."""
    await services.metrics.read_approvals(services.pool)
    return ResourceText(content=services.metrics.text(), from_outside=False)


def _facts(item: WorkSummary) -> dict[str, Any]:  # the fields of JobSummary
    return {
        "id": item.id,
        "kind": item.kind,
        "state": item.state,
        "progress": item.progress,
        "error": item.error,
        "created_at": item.created_at.isoformat(),
        "finished_at": item.finished_at.isoformat() if item.finished_at else None,
        "from_outside": item.origin.tainted,
    }


def _job(item: WorkItem) -> Job:
    return Job(**_facts(item), result=item.result)


ROOM = Room(
    name="hub",
    title="Hub",
    description="Who you are to the hub, your jobs, and what people were asked for you.",
    tools=(
        Tool(
            name="whoami",
            group="own",
            run=whoami,
            title="Who am I",
            description="Who the hub takes you for: identity chain, roles, whether this session is tainted by text from outside.",
        ),
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
        *APPROVAL_TOOLS,
        *GENERATING_TOOLS,
        *TALKING_TOOLS,
    ),
    resources=(
        Resource(
            name="hub_metrics",
            group="admin_read",
            run=read_metrics,
            title="Hub metrics",
            description="This hub's metrics in Prometheus' text form; also served at /metrics.",
            uri="hub://metrics",
        ),
        *GENERATING_RESOURCES,
    ),
)
