"""The admin server: read-only queries of the studio's AWS account, and changes that people approve. Owns the tools' wording."""

from __future__ import annotations

from body_broker.calls import Call, Caller, Preview, Room, Tool
from body_broker.work.model import Origin
from mcp_servers.admin import catalogue, reporting
from mcp_servers.admin.changes.making import maker_of
from mcp_servers.admin.changes.store import Requested
from mcp_servers.admin.keeping import iso
from mcp_servers.admin.models import (
    ApproveChange,
    AwsIdentity,
    AwsPage,
    AwsResourceType,
    AwsResourceTypes,
    ChangeDraft,
    ChangeRequest,
    ChangeState,
    GenerateAdminReport,
    ListAwsResourceTypes,
    Nothing,
    ProposeChange,
    QueryAwsResource,
    ReportJob,
)
from mcp_servers.admin.query import Query
from mcp_servers.admin.roles import SETTING
from mcp_servers.admin.services import Services

_BRONZE = "BODY_BROKER_BRONZE_URL"


async def query_aws_resource(arguments: QueryAwsResource, call: Call, services: Services) -> AwsPage:
    """Things of one kind in AWS (seed 001, Admin MCP)."""
    row = catalogue.row_of(arguments.service, arguments.resource)
    query = Query(
        row=row,
        plan=row.plan(arguments.identifier, services.today()),
        region=arguments.region,
        limit=arguments.limit,
    )
    answer = await services.query(query, call, cursor=call.open_cursor(arguments.cursor))
    cursor = call.seal_cursor(await services.cursor(query, answer))
    return AwsPage(
        items=answer.items,
        truncated=cursor is not None,
        next_cursor=cursor,
        account=answer.account,
        region=answer.region,
        source=answer.source,
        cached_at=answer.cached_at,
    )


async def get_aws_identity(_arguments: Nothing, call: Call, services: Services) -> AwsIdentity:
    """Who the caller is to AWS."""
    found = await services.identity(call)
    return AwsIdentity(
        principal=found.grant.principal,
        account=found.account,
        arn=found.arn,
        role=found.grant.arn,
        tags=found.tags,
        source_identity=found.source_identity,
        region=found.region,
        expires_at=iso(found.expires_at),
    )


async def list_aws_resource_types(
    arguments: ListAwsResourceTypes, _call: Call, _services: Services
) -> AwsResourceTypes:
    """What the catalogue has."""
    rows = catalogue.rows_of(arguments.service)
    return AwsResourceTypes(
        items=[
            AwsResourceType(
                service=row.service,
                resource=row.resource,
                about=row.about,
                identifier=row.identifier,
                fields=[*row.fields, *(["tags"] if row.tags else [])],
                checked=row.checked,
                costs=row.costs or None,
            )
            for row in rows
        ]
    )


async def propose_change(arguments: ProposeChange, call: Call, services: Services) -> ChangeDraft:
    """What a change would do, without doing it."""
    drafted = await services.changes.draft(_requested(arguments.change_request), call.caller)
    return ChangeDraft(
        change_id=drafted.id,
        state="draft",
        diff=drafted.foreseen.diff,
        expires_at=drafted.expires_at.isoformat(timespec="seconds"),
        repeats_outside=drafted.foreseen.outside,
    )


async def approve_change(arguments: ApproveChange, call: Call, services: Services) -> ChangeState:
    """Make a change that people have said yes to, once, and read it back (seed 001, Admin MCP)."""
    change_id, found = await services.changes.make(_requested(arguments.change_request), maker_of(call), call.basis)
    return ChangeState(approved=True, state=found.state, change_id=change_id, verified=found.text)


async def foresee_change(arguments: ApproveChange, _caller: Caller, services: Services) -> Preview:
    """The diff that people are shown, so that nobody is asked for a change that could only fail."""
    foreseen = await services.changes.foresee(_requested(arguments.change_request))
    return Preview(headline=foreseen.headline, text=foreseen.diff, basis=foreseen.basis)


def _requested(request: ChangeRequest) -> Requested:
    return Requested(request.kind, request.target, request.params)


async def generate_admin_report(arguments: GenerateAdminReport, call: Call, services: Services) -> ReportJob:
    """The job of a report by an expert (seed 001, Admin MCP); its result is an AdminReport."""
    cloud = await reporting.cloud_of(call, services) if arguments.report == "costs" else None  # AWS charges for it
    assignment = await reporting.assignment_of(arguments, services.pool, cloud)
    return ReportJob(job_id=await services.jobs.submit(assignment, Origin.of(call), key=call.key))


async def has_budget(_arguments: GenerateAdminReport, caller: Caller, services: Services) -> frozenset[str]:
    """`within_budget` where an expert may still be asked on the caller's account."""
    return await services.budget(caller)


ROOM = Room(
    name="admin",
    title="Administration",
    description="Read-only look at the studio's cloud, reports, and changes that people approve.",
    tools=(
        Tool(
            name="query_aws_resource",
            group="admin_read",
            run=query_aws_resource,
            title="Query AWS",
            description=(
                "Look at the studio's AWS account, read-only: instances, databases, clusters, alarms, costs. Costs are an hour old"
                " at most. Not for logs or data in buckets."
            ),
            output="outside",  # whoever may name a thing in the account writes these texts
            needs=SETTING,
            open_world=True,
        ),
        Tool(
            name="get_aws_identity",
            group="admin_read",
            run=get_aws_identity,
            title="Get AWS identity",
            description="Which AWS role your queries run as, until when. Use it when a query is refused.",
            needs=SETTING,
            open_world=True,
        ),
        Tool(
            name="list_aws_resource_types",
            group="admin_read",
            run=list_aws_resource_types,
            title="List AWS resource types",
            description="What query_aws_resource can be asked, what identifies one, what a call costs.",
            needs=SETTING,
            profile="all",
        ),
        Tool(
            name="generate_admin_report",
            group="admin_read",
            modifiers=frozenset({"spend", "long_running"}),
            run=generate_admin_report,
            establishes=has_budget,
            title="Generate a report",
            description="Have a report of the studio's operations written. Answers with a job. For one figure, query it.",
            effect="repeatable",  # the job is begun once under a key
            needs=_BRONZE,
            open_world=True,
            work=reporting.REPORT,
        ),
        Tool(
            name="propose_change",
            group="draft",
            run=propose_change,
            title="Propose a change",
            description="See what a change would do, as a diff, without asking anybody. To have it made, use approve_change.",
            effect="repeatable",
            output="as_marked",  # a diff repeats what it would take away
        ),
        Tool(
            name="approve_change",
            group="admin_change",
            run=approve_change,
            foresees=foresee_change,
            title="Ask for a change",
            description="Ask people to approve a change; it is made once after their yes, and read back. To see its diff first, use propose_change.",
            effect="repeatable",
        ),
    ),
)
