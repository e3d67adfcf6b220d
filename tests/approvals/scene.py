"""A small studio: its tools, its people, and calls of which people are asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from approvals.desk import Desk
from approvals.model import Approval, Subject, Verdict, Via, Voter
from body_broker.audit.record import Record
from body_broker.audit.trail import tail
from body_broker.calls import Arguments, Call, Caller, Effect, Json, Result, Room, Tool
from body_broker.storage.postgres import Pool
from policies.decision import Ask, Identity, Question
from policies.engine import Policy

APPROVERS = """
[people.anna]
name = "Anna"
groups = ["sre"]
slack = "U0ANNA00"

[people.ben]
groups = ["sre"]
slack = "U0BEN000"

[people.cleo]
groups = ["admin"]
slack = "U0CLEO00"

[people.sam]
groups = ["security"]
slack = "U0SAM000"

[people.eve]
groups = ["art"]
slack = "U0EVE000"

[people.nora]
"""

BRONZE = ("tier:bronze",)
ANNA = ("person:anna",)
ROLES: Mapping[str, frozenset[str]] = {
    "person:anna": frozenset({"sre"}),
    "person:ben": frozenset({"sre"}),
    "person:dora": frozenset({"designer"}),
}


class Target(Arguments):
    name: str
    count: int = 1


class Done(Result):
    done: str


async def _run(arguments: Target, call: Call, services: object) -> Done:
    raise AssertionError("the desk runs nothing", arguments, call, services)


def tool(name: str, group: str, *modifiers: str, effect: Effect = "repeatable") -> Tool:
    return Tool(
        name=name,
        run=_run,
        title=name,
        description=name,
        group=group,
        modifiers=frozenset(modifiers),
        effect=effect,
    )


ROOM = Room(
    name="studio",
    title="Studio",
    description="Studio",
    tools=(
        tool("ingest", "write"),
        tool("reindex", "write"),
        tool("publish", "write", effect="once"),
        tool("remove", "write", "destructive", effect="once"),
        tool("scan", "security_scan", effect="none"),
        tool("carry_out", "draft", "external", effect="once"),
    ),
)
DEFINITIONS: Mapping[str, str] = {each.name: f"definition of {each.name}" for each in ROOM.tools}


@dataclass
class Counted:
    """What was counted."""

    asked: list[bool] = field(default_factory=list[bool])
    ended: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])

    def approval_asked(self, *, joined: bool) -> None:
        self.asked.append(joined)

    def approval_ended(self, outcome: str, waited_s: float) -> None:
        self.ended.append((outcome, waited_s))


def question(tool_name: str, chain: Sequence[str], values: Mapping[str, Json], *, tainted: bool = False) -> Question:
    return Question(
        action=tool_name,
        identities=tuple(Identity(p, ROLES.get(p, frozenset())) for p in chain),
        arguments=values,
        tainted=tainted,
        depth=0,
        history=frozenset(),
    )


def subject(
    policy: Policy,
    tool_name: str = "ingest",
    chain: tuple[str, ...] = BRONZE,
    *,
    tainted: bool = False,
    reason: str | None = None,
    definition: str | None = None,
    **values: Json,
) -> Subject:
    """A call of one of the tools, with what the policy really asks for it."""
    normalised = Target(name="lore", **values).model_dump(mode="json") if "name" not in values else values
    decision = policy.decide(question(tool_name, chain, normalised, tainted=tainted))
    assert isinstance(decision, Ask), decision
    row = next(each for each in ROOM.tools if each.name == tool_name)
    return Subject(
        tool=tool_name,
        server=ROOM.name,
        definition=definition or DEFINITIONS[tool_name],
        arguments=normalised,
        chain=chain,
        sessions=(f"session of {chain[0]}",),
        tainted=tainted,
        depth=0,
        history=frozenset(),
        requirements=decision.requirements,
        effect=row.effect,
        destructive="destructive" in row.modifiers,
        headline=f"{tool_name} {normalised['name']}",
        reason=reason,
        roles={p: ROLES[p] for p in chain if p in ROLES},
    )


def caller(chain: tuple[str, ...]) -> Caller:
    return Caller(
        chain=chain,
        roles={p: ROLES[p] for p in chain if p in ROLES},
        session=f"session of {chain[0]}",
    )


def voter(name: str, via: Via = "slack") -> Voter:
    """A person as a channel has proved them: Slack by its signature, the others with a second factor."""
    evidence: dict[str, Json] = {"message": "1.0"} if via == "slack" else {"step": 1}
    return Voter(person=f"person:{name}", via=via, factor=None if via == "slack" else "totp", evidence=evidence)


async def vote(
    desk: Desk, approval: Approval, name: str, verdict: Verdict, *, via: Via = "slack", reason: str | None = None
) -> Approval:
    return await desk.vote(approval.id, digest=approval.digest, voter=voter(name, via), verdict=verdict, reason=reason)


async def yes(desk: Desk, approval: Approval, name: str = "anna", via: Via = "slack") -> Approval:
    return await vote(desk, approval, name, "approve", via=via)


async def no(desk: Desk, approval: Approval, name: str = "anna", reason: str | None = None) -> Approval:
    return await vote(desk, approval, name, "deny", reason=reason)


async def records(pool: Pool, approval_id: str) -> list[Record]:
    """What the audit holds of one approval, the oldest first."""
    found = [entry.record for entry in await tail(pool, 10_000)]
    return [each for each in reversed(found) if each.details.get("approval") == approval_id]


async def verdicts(pool: Pool, approval_id: str) -> list[str | None]:
    return [each.verdict for each in await records(pool, approval_id)]


async def past_its_time(pool: Pool, approval_id: str) -> None:
    """Let its time run out: nobody waits in a test."""
    await pool.execute(
        "UPDATE approval SET expires_at = clock_timestamp() - interval '1 second' WHERE id = $1", approval_id
    )
    await pool.execute(
        "UPDATE work SET expires_at = clock_timestamp() - interval '1 second' WHERE id = $1", approval_id
    )
