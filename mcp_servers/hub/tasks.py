"""Owns MCP's tasks (SEP-2663): an approval or a job under its own id, told as a task to clients that declared the extension."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, cast

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import MCP_NAME_HEADER, decode_header_value
from mcp_types.jsonrpc import HEADER_MISMATCH, METHOD_NOT_FOUND, MISSING_REQUIRED_CLIENT_CAPABILITY
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import Field, ValidationError

from approvals.model import READABLE_S, Approval
from approvals.store import SERVICE
from approvals.waiting import is_settled, waits_for
from body_broker.calls import Caller, Json, Tool
from body_broker.errors import BodyBrokerError, Conflict, NotFound, OutcomeUnknown, Relayed
from body_broker.work.worker import RETENTION_S
from mcp_servers.hub.endings import ended, found_by
from mcp_servers.hub.faults import STORES_LOST, stores_away
from mcp_servers.hub.gate import Gate
from mcp_servers.hub.job_tools import Job
from mcp_servers.hub.reaching import missing
from mcp_servers.hub.requests import Answer, Request
from mcp_servers.hub.rooms import ROOMS
from mcp_servers.hub.wire import tool_error, tool_result
from tiers.bronze.model import KINDS

EXTENSION = "io.modelcontextprotocol/tasks"
METHODS = frozenset({"tasks/get", "tasks/update", "tasks/cancel"})
_MISSING: Json = {"requiredCapabilities": {"extensions": {EXTENSION: {}}}}
_APPROVAL = "apr_"
_PERSON_POLL_MS, _WORK_POLL_MS = 2_000, 500
"""How often a client should ask: people and experts take minutes, other work that runs may be done at once."""

Context = ServerRequestContext[Any, Any]
Status = Literal["working", "completed", "cancelled"]


class TaskParams(types.RequestParams):
    """Which task."""

    task_id: Annotated[str, Field(min_length=1, max_length=80)]


class UpdateParams(TaskParams):
    """Answers to what a task asks its client for."""

    input_responses: dict[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """An approval or a job in MCP's form; times are the database's."""

    id: str
    status: Status
    message: str
    created_at: datetime
    updated_at: datetime
    ttl_ms: int | None
    poll_ms: int
    result: dict[str, Any] | None = None

    def created(self) -> dict[str, Any]:
        """The answer to the call that became this task."""
        return self._facts() | {"resultType": "task"}

    def shown(self) -> dict[str, Any]:
        """The answer to tasks/get."""
        found = self._facts() | {"resultType": "complete"}
        return found if self.result is None else found | {"result": self.result}

    def _facts(self) -> dict[str, Any]:
        return {
            "taskId": self.id,
            "status": self.status,
            "statusMessage": self.message,
            "createdAt": self.created_at.isoformat(),
            "lastUpdatedAt": self.updated_at.isoformat(),
            "ttlMs": self.ttl_ms,
            "pollIntervalMs": self.poll_ms,
        }


def has_tasks(ctx: Context) -> bool:
    """Whether this very request may be answered with a task: older revisions have none, whatever they declare."""
    if ctx.protocol_version not in MODERN_PROTOCOL_VERSIONS:
        return False
    declared = ctx.session.client_capabilities
    return declared is not None and EXTENSION in (declared.extensions or {})


def undeclared(what: str) -> MCPError:
    """What a client is told that did not declare the extension and uses it."""
    return MCPError(
        code=MISSING_REQUIRED_CLIENT_CAPABILITY,
        message=f"bad_input: {what} is for clients that declare {EXTENSION}. Use get_approval and get_job instead.",
        data=_MISSING,
    )


def _check(ctx: Context, task_id: str) -> None:
    """What every request of these methods must bring.

    Raises:
        MCPError: An older revision, a client that did not declare the extension, or a routing header for another task.
    """
    if ctx.protocol_version not in MODERN_PROTOCOL_VERSIONS:
        raise MCPError(code=METHOD_NOT_FOUND, message="Method not found", data=ctx.method)
    if not has_tasks(ctx):
        raise undeclared(ctx.method)
    named = ctx.request.headers.get(MCP_NAME_HEADER) if ctx.request is not None else None
    if named is not None and decode_header_value(named) != task_id:
        raise MCPError(
            code=HEADER_MISMATCH, message=f"bad_input: The {MCP_NAME_HEADER} header does not match the taskId."
        )


class Tasks:
    """The tasks of one hub process. They live in PostgreSQL: any hub answers for any of them.

    Args:
        gate: Every look at a task passes it, and every cancel, as the tool of ours that does the same.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        # Text that is from outside in any case is read through the gate as the job that it is: get_job marks it.
        self._by_work = {t.work: t for t in self._tools.values() if t.work is not None and t.output != "outside"}

    @property
    def _tools(self) -> dict[str, Tool]:
        """Whatever is served here now, and all of ours: a task may have begun on another hub."""
        return {tool.name: tool for room in (*ROOMS, *self._gate.rooms) for tool in room.tools}

    def serve(self, server: Server[Any], caller_of: Callable[[Context], Awaitable[Caller]]) -> None:
        """Advertise the extension and answer its methods, each under the identity that `caller_of` finds."""
        answers = {"tasks/get": self.get, "tasks/update": self.update, "tasks/cancel": self.cancel}

        async def answer(ctx: Context, params: TaskParams) -> dict[str, Any]:
            _check(ctx, params.task_id)
            return await answers[ctx.method](params.task_id, await caller_of(ctx))

        server.extensions[EXTENSION] = {}
        for method in METHODS:
            server.add_request_handler(method, UpdateParams if method == "tasks/update" else TaskParams, answer)

    async def get(self, task_id: str, caller: Caller) -> dict[str, Any]:
        """How it stands, and what came of it.

        Raises:
            NotFound: This caller has no such task, or not any more.
        """
        with _stores():
            return (await self._find(task_id, caller)).shown()

    async def created(self, task_id: str, caller: Caller) -> dict[str, Any]:
        """The answer to the call that became this task.

        Raises:
            NotFound: This caller has no such task.
        """
        if not task_id.startswith(_APPROVAL):
            return (await self._job(task_id, caller)).created()
        approvals = self._gate.asking.approvals
        with _stores():
            approval = await approvals.desk.find(task_id, caller=caller)
            lacking = await missing(approvals, approval) if approval.standing == "pending" else None
        return _waiting(approval, lacking and lacking.what, approvals.desk.approve_at(task_id)).created()

    async def update(self, task_id: str, caller: Caller) -> dict[str, Any]:
        """Nothing: no task of ours asks its client for anything, so that no client can say yes for a person.

        Raises:
            NotFound: This caller has no such task.
        """
        await self._run("get_approval" if task_id.startswith(_APPROVAL) else "get_job", task_id, caller)
        return {"resultType": "complete"}

    async def cancel(self, task_id: str, caller: Caller) -> dict[str, Any]:
        """Ask it to stop; one that has ended stays as it ended.

        Raises:
            NotFound: This caller has no such task.
        """
        name = "cancel_approval" if task_id.startswith(_APPROVAL) else "cancel_job"
        with contextlib.suppress(Conflict):
            await self._run(name, task_id, caller)
        return {"resultType": "complete"}

    async def _run(self, name: str, task_id: str, caller: Caller) -> Answer:
        return await self._gate.run(Request(name=name, kind="tool", arguments={"id": task_id}, caller=caller))

    async def _find(self, task_id: str, caller: Caller) -> Task:
        if not task_id.startswith(_APPROVAL):
            return await self._job(task_id, caller)
        # As the tool: decided, on the audit, and text from outside behind it taints whoever looks.
        await self._run("get_approval", task_id, caller)
        approvals = self._gate.asking.approvals
        approval = await approvals.desk.find(task_id, caller=caller)
        if not is_settled(approval):
            return _waiting(approval, None, approvals.desk.approve_at(task_id))
        return await self._settled(approval, caller)

    async def _settled(self, approval: Approval, caller: Caller) -> Task:
        """What came of it, in the form that the call itself would have had; its text from outside counts as read."""
        if approval.standing == "cancelled" and approval.decided_by != SERVICE:  # which says why, as an error
            if caller.requester == approval.requester:
                await self._gate.asking.approvals.desk.take(approval.id)
            return _task(approval, "cancelled", ended(approval).message)
        operation = self._tools.get(approval.tool)
        # What a person found done never had a result; every other one that is missing has been forgotten.
        forgotten = approval.standing == "done" and approval.result is None and not found_by(approval)
        if operation is None or forgotten:
            raise NotFound(
                "What this task gave is not kept any more.",
                next_step="Results are readable for a day: make the call again if it is still wanted.",
            )
        try:
            answer = await self._gate.asking.collect(approval, caller, approval.id, operation)
        except BodyBrokerError as error:
            return _task(approval, "completed", error.message, tool_error(error))
        return _task(approval, "completed", f"{approval.tool} was approved and done", tool_result(answer))

    async def _job(self, task_id: str, caller: Caller) -> Task:
        answer = await self._run("get_job", task_id, caller)
        job = cast("Job", answer.result)
        match job.state:
            case "waiting" | "queued" | "running":
                return _job_task(job, "working", _stands(job))
            case "cancelled":
                return _job_task(job, "cancelled", " ".join(filter(None, ("The job was cancelled.", job.note))))
            case "succeeded":
                return _job_task(job, "completed", f"{job.kind} is done", tool_result(self._as_called(job, answer)))
            case "failed":
                error: BodyBrokerError = Relayed(job.error)
            case "unknown":
                error = OutcomeUnknown(f"Whether the job {job.id} did it is not known: a person must settle it.")
            case "expired":
                error = Conflict(f"The job {job.id} was not begun in time.", next_step="Start it again.")
        return _job_task(job, "completed", error.message, tool_error(error))

    def _as_called(self, job: Job, answer: Answer) -> Answer:
        """What the tool would have answered that the job was begun by; where no tool answers with such jobs, the job."""
        tool = self._by_work.get(job.kind)
        if tool is None:
            return answer
        told: Json = job.result
        if job.kind in KINDS:  # whose tools answer with the job, and so with what came of it only here
            told = {"job_id": job.id, "status": job.state, "result": job.result}
        try:
            result = tool.result.model_validate(told)
        except ValidationError:
            return answer  # of an older version: it is still there to be read
        outside = answer.outside or (tool.output == "as_marked" and result.outside())
        return replace(answer, operation=tool, result=result, outside=outside)


@contextlib.contextmanager
def _stores() -> Generator[None]:
    """What reads approvals beside the gate: a store that is away is told as the gate tells it."""
    try:
        yield
    except STORES_LOST as error:
        raise stores_away(error, operation="tasks") from error


def _waiting(approval: Approval, lacking: str | None, approve_at: str | None) -> Task:
    told = waits_for(approval)
    if approval.standing == "pending":
        told += f" (nobody can say yes yet: {lacking})" if lacking else f", at {approve_at}" if approve_at else ""
    return _task(approval, "working", told)


def _task(approval: Approval, status: Status, message: str, result: dict[str, Any] | None = None) -> Task:
    ends = approval.ended_at or approval.expires_at
    moved = (approval.created_at, approval.decided_at, approval.ended_at, *(vote.at for vote in approval.votes))
    return Task(
        id=approval.id,
        status=status,
        message=message,
        created_at=approval.created_at,
        updated_at=max(at for at in moved if at is not None),
        ttl_ms=_ms(ends - approval.created_at) + READABLE_S * 1000,
        poll_ms=_PERSON_POLL_MS if approval.standing == "pending" else _WORK_POLL_MS,
        result=result,
    )


def _stands(job: Job) -> str:
    """A job that has not ended, in a line."""
    told = cast("dict[str, Json]", job.progress or {}).get("message")
    if job.waits_for is not None:
        return f"waiting for {job.waits_for}"
    if job.state == "queued" and job.queue_position:
        return f"queued, {job.queue_position} before it"
    return told or job.state


def _job_task(job: Job, status: Status, message: str, result: dict[str, Any] | None = None) -> Task:
    created = datetime.fromisoformat(job.created_at)
    ended_at = datetime.fromisoformat(job.finished_at) if job.finished_at else None
    return Task(
        id=job.id,
        status=status,
        message=message,
        created_at=created,
        updated_at=ended_at or created,
        ttl_ms=_ms(ended_at - created) + RETENTION_S * 1000 if ended_at else None,
        poll_ms=_PERSON_POLL_MS if job.kind in KINDS else _WORK_POLL_MS,
        result=result,
    )


def _ms(time: timedelta) -> int:
    return round(time.total_seconds() * 1000)
