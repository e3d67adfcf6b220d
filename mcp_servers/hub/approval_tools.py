"""The hub's own tools about approvals: what people were asked for me, how it stands, what came of it, and taking it back."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Protocol

import orjson
from pydantic import Field

from approvals.desk import Desk
from approvals.model import FINAL, WORK_KIND, Approval, Standing
from approvals.waiting import waits_for
from body_broker.calls import Arguments, Call, Json, Result, Tool
from body_broker.errors import on_the_wire
from body_broker.work.model import State
from mcp_servers.hub.endings import ended, found_by

ApprovalId = Annotated[str, Field(min_length=5, max_length=90)]


class HasDesk(Protocol):
    """What these tools need."""

    @property
    def desk(self) -> Desk:
        """The approvals of this hub."""
        ...


class ApprovalQuery(Arguments):
    """One approval."""

    id: ApprovalId


class ApprovalsQuery(Arguments):
    """A page of approvals."""

    standing: Annotated[Standing | None, Field(description="Only these.")] = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    cursor: Annotated[str | None, Field(max_length=1024)] = None


class ApprovalSummary(Result):
    """An approval without what the call gave."""

    id: str
    standing: Standing
    tool: str
    headline: str
    said: str = Field(description="How it stands, in words.")
    asked_at: str
    expires_at: str
    ended_at: str | None = None
    from_outside: bool = Field(description="Whether text from outside had been read, or is in the result.")

    def outside(self) -> bool:
        """What a tainted session asked for carries its taint."""
        return self.from_outside


class ApprovalView(ApprovalSummary):
    """An approval as its requester sees it; `result` and `error` are what the call itself gave, for a day."""

    decided_by: str | None = None
    reason: str | None = Field(default=None, description="Why a person refused it, or why it was taken back.")
    approve_at: str | None = Field(default=None, description="Where people decide it.")
    result: Json = None
    error: Json = None

    def text(self) -> str:
        """One line, then what there is to read."""
        line = f"{self.id}: {self.said}"
        if self.standing == "done":
            return f"{line} {orjson.dumps(self.result).decode()}"
        if self.error:
            return f"{line} {self.error.get('next_step', '')}".rstrip()
        return line + (f" People decide at {self.approve_at}." if self.approve_at else "")


class ApprovalsPage(Result):
    """A page of approvals, newest first."""

    items: list[ApprovalSummary]
    next_cursor: str | None = None

    def outside(self) -> bool:
        """Outside where any of them is."""
        return any(each.from_outside for each in self.items)


async def get_approval(arguments: ApprovalQuery, call: Call, services: HasDesk) -> ApprovalView:
    """One approval of the caller's; how it ended is read here as often as asked, for a day."""
    approval = await services.desk.find(arguments.id, caller=call.caller)
    # Told to whoever asked for it: the same call is asked for anew after that. A person who looks at what a tier asked for them
    # does not take it from the tier.
    if approval.standing in FINAL and call.caller.requester == approval.requester:
        await services.desk.take(approval.id)
    return _view(approval, services.desk)


async def list_my_approvals(arguments: ApprovalsQuery, call: Call, services: HasDesk) -> ApprovalsPage:
    """The caller's approvals, newest first."""
    found = await services.desk.list_mine(
        call.caller,
        limit=arguments.limit,
        before=call.open_cursor(arguments.cursor),
        standings=(arguments.standing,) if arguments.standing else (),
    )
    more = found[-1].ordinal if len(found) == arguments.limit else None
    return ApprovalsPage(items=[ApprovalSummary(**_facts(each)) for each in found], next_cursor=call.seal_cursor(more))


async def cancel_approval(arguments: ApprovalQuery, call: Call, services: HasDesk) -> ApprovalView:
    """Take a request back, before or after people have decided it, as long as its call has not begun."""
    return _view(await services.desk.cancel(arguments.id, caller=call.caller), services.desk)


def _facts(approval: Approval) -> dict[str, Any]:  # the fields of ApprovalSummary
    result: Json = approval.result
    told = approval.standing == "done" or approval.standing not in FINAL | {"unknown"}
    return {
        "id": approval.id,
        "standing": approval.standing,
        "tool": approval.tool,
        "headline": approval.headline,
        "said": _said(approval) if told else ended(approval).message,
        "asked_at": _text(approval.created_at),
        "expires_at": _text(approval.expires_at),
        "ended_at": approval.ended_at and _text(approval.ended_at),
        "from_outside": approval.tainted or bool(result and result.get("outside")),
    }


def _view(approval: Approval, desk: Desk) -> ApprovalView:
    result: Json = approval.result
    error: Json = approval.error
    if approval.standing == "unknown" or (approval.standing in FINAL and approval.standing not in {"done", "failed"}):
        error = on_the_wire(ended(approval)).body()
    return ApprovalView(
        **_facts(approval),
        decided_by=approval.decided_by,
        reason=approval.why,
        approve_at=desk.approve_at(approval.id) if approval.standing == "pending" else None,
        result=result and result.get("result"),
        error=error,
    )


def _said(approval: Approval) -> str:
    if approval.standing == "done":
        kept = "" if approval.result is not None else " No result of it is there: one is kept for a day."
        return f"It was approved and carried out{found_by(approval)}.{kept}"
    return f"{waits_for(approval).capitalize()}."


def _text(moment: datetime) -> str:
    return moment.isoformat()


def job_facts(approval: Approval) -> dict[str, Any]:
    """An approval in a job's words: the fields of own.Job."""
    states: dict[Standing, State] = {
        "pending": "waiting",
        "approved": "queued",
        "executing": "running",
        "done": "succeeded",
        "denied": "failed",
    }
    result: Json = approval.result
    ended_badly = approval.standing in FINAL | {"unknown"} and approval.standing != "done"
    return {
        "id": approval.id,
        "kind": WORK_KIND,
        "state": states.get(approval.standing, approval.standing),
        "progress": None if approval.standing in FINAL else {"message": waits_for(approval)},
        "error": on_the_wire(ended(approval)).body() if ended_badly else None,
        "created_at": _text(approval.created_at),
        "finished_at": approval.ended_at and _text(approval.ended_at),
        "from_outside": approval.tainted or bool(result and result.get("outside")),
        "result": result and result.get("result"),
    }


TOOLS = (
    Tool(
        name="get_approval",
        group="own",
        run=get_approval,
        title="Get an approval",
        description="How a request to people stands, and its result.",
        output="as_marked",
    ),
    Tool(
        name="cancel_approval",
        group="own",
        run=cancel_approval,
        title="Cancel an approval",
        description="Take back a request to people whose call has not begun.",
        effect="repeatable",
        output="as_marked",
    ),
    Tool(
        name="list_my_approvals",
        group="own",
        run=list_my_approvals,
        title="List my approvals",
        description="Your requests to people, newest first.",
        output="as_marked",
    ),
)
