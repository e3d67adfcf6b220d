"""Owns the shapes of the admin server's tools: what each takes and answers, and how an answer reads as text."""

from __future__ import annotations

from typing import Annotated, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from body_broker.calls import Arguments, Json, Result
from body_broker.work.model import State
from mcp_servers.admin.catalogue import SERVICES
from mcp_servers.admin.catalogue.row import Checked
from policies.probes import OTHER_KINDS, WRITE_KINDS

Cursor = Annotated[str | None, Field(max_length=1_024, description="A next_cursor.")]
ReportName = Literal["weekly", "costs", "capacity", "incidents"]
PeriodName = Literal["day", "week", "month"]
KINDS = (*WRITE_KINDS, *OTHER_KINDS)


class QueryAwsResource(Arguments):
    """What is asked of AWS."""

    service: Annotated[str, Field(max_length=40, description=f"One of {', '.join(SERVICES)}.")]
    resource: Annotated[str, Field(max_length=40, description="Such as instances; a wrong one names the right ones.")]
    identifier: Annotated[
        str | None,
        Field(
            min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_.:/=+@][A-Za-z0-9_.:/=+@ -]*$", description="One by id."
        ),
    ] = None
    region: Annotated[str | None, Field(min_length=1, max_length=30, pattern=r"^[a-z0-9-]+$")] = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    cursor: Cursor = None


class AwsPage(Result):
    """Things in AWS, secrets redacted."""

    items: list[dict[str, Json]]
    truncated: bool
    next_cursor: str | None = None
    account: str
    region: str = Field(description="`global` where the service knows none.")
    source: Literal["aws", "kept"]
    cached_at: str | None = Field(default=None, description="When a kept answer was AWS'.")

    def text(self) -> str:
        """One line each."""
        of = f"account {self.account}, {self.region}" + (f", as of {self.cached_at}" if self.cached_at else "")
        more = ["More with next_cursor."] if self.truncated else []
        return "\n".join([f"{len(self.items)} in {of}.", *(orjson.dumps(one).decode() for one in self.items), *more])


class Nothing(Arguments):
    """No arguments."""


class AwsIdentity(Result):
    """Who the caller's queries are to AWS."""

    principal: str
    account: str
    arn: str
    role: str
    tags: dict[str, str]
    source_identity: str
    region: str
    expires_at: str


class ListAwsResourceTypes(Arguments):
    """A service, or all."""

    service: Annotated[str | None, Field(max_length=40)] = None


class AwsResourceType(BaseModel):
    """A row of the catalogue."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    service: str
    resource: str
    about: str
    identifier: str
    fields: list[str]
    checked: Checked
    costs: str | None = None


class AwsResourceTypes(Result):
    """What can be queried."""

    items: list[AwsResourceType]

    def text(self) -> str:
        """One line each."""
        return "\n".join(
            f"{row.service} {row.resource}: {row.about}; by {row.identifier}"
            + (f"; {row.costs}" if row.costs else "")
            + ("" if row.checked == "runs" else f" ({row.checked})")
            for row in self.items
        )


_PARAMS = (
    "config: value, schema; ingest: documents [{title, text}], none to approve a document by its id; world_patch: fields,"
    " region, also; world_remove: remove, also; others: none. deploy and redeploy have no backend here."
)


class ChangeRequest(BaseModel):
    """A change of the studio's systems; each kind's params are in docs/changes.md, and in the error of who gets them wrong.

    An unknown kind is refused by the policy, by its rule, so the schema only names the known ones.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    kind: Annotated[str, Field(min_length=1, max_length=40, json_schema_extra={"enum": list(KINDS)})]
    target: Annotated[
        str, Field(min_length=1, max_length=200, description="What is changed: a key, an id, an index, engine.")
    ]
    params: Annotated[dict[str, Json], Field(max_length=32, description=_PARAMS)] = Field(default={})


class ProposeChange(Arguments):
    """A change that somebody considers."""

    change_request: ChangeRequest


class ChangeDraft(Result):
    """What a change would do; nothing has happened."""

    change_id: str
    state: Literal["draft"]
    diff: str
    expires_at: str
    repeats_outside: bool = Field(default=False, exclude=True)

    def outside(self) -> bool:
        """Whether the diff repeats text from outside."""
        return self.repeats_outside

    def text(self) -> str:
        """The diff."""
        return f"Draft {self.change_id}, without effect, until {self.expires_at}:\n{self.diff}"


class ApproveChange(Arguments):
    """A change that people are asked for."""

    change_request: ChangeRequest


class ChangeState(Result):
    """How far a change is, and what reading it back found."""

    approved: bool
    state: Literal["pending", "approved", "executing", "done", "failed", "unknown", "denied", "expired", "cancelled"]
    change_id: str
    verified: str

    def text(self) -> str:
        """One line."""
        return f"Approved and {self.state} ({self.change_id}): {self.verified}"


class GenerateAdminReport(Arguments):
    """A report, and what its author knows already."""

    metrics: Annotated[dict[str, Json], Field(max_length=100, description="Joined to what the hub collects.")] = Field(
        default={}
    )
    report: ReportName = "weekly"
    period: PeriodName = "week"


class ReportJob(Result):
    """The job whose result is an AdminReport; `result` is there where it is told as a task."""

    job_id: str
    status: State = "queued"
    result: Json = None

    def handle(self) -> str | None:
        """The job."""
        return None if self.result is not None else self.job_id

    def text(self) -> str:
        """One line."""
        if self.result is not None:
            return orjson.dumps(self.result).decode()
        return f"The report is queued as {self.job_id}: get_job has it once it has succeeded."


class ReportFact(BaseModel):
    """One figure: what a text cites it by, its unit, and which records it was counted in or who gave it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    value: int | float | str
    unit: str
    source: str


class ReportSection(BaseModel):
    """A part of a report, with the keys of the facts it rests on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    heading: str
    text: str
    facts: list[str]


class AdminReport(BaseModel):
    """What a report comes to: the result of its job. Its words are a model's, its facts are not.

    Attributes:
        status: `partial` where something was not collected or not shown, or the answer was cut.
        facts: All that were collected as it was asked for, then those that the asker gave.
        not_collected: What ought to be among the facts and is not, and why.
        unverified_numbers: Numbers of the text that stand in no fact: computed, looked up or made up.
        unknown_facts: What was cited and is no fact's key.
        cost: As the tiers that answered reckoned it, `usd`, and whether more was `maybe_spent`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    status: Literal["succeeded", "partial"]
    report: ReportName
    period: PeriodName
    since: str
    until: str
    summary: str
    sections: list[ReportSection]
    recommendations: list[str]
    facts: list[ReportFact]
    not_collected: list[str]
    unverified_numbers: list[str]
    unknown_facts: list[str]
    model: str
    cost: Json = None
