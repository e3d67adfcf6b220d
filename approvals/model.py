"""Owns the words of approvals: what people are asked, who says what by which way, how it stands, and the digest that binds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Literal

import orjson
from pydantic import TypeAdapter

from body_broker.calls import Effect, Json, Receipt
from body_broker.text import canonical_json, digest
from policies.decision import Approval as Given
from policies.decision import Requirement

Decided = Literal["pending", "approved", "denied", "expired", "cancelled"]
Standing = Literal["pending", "approved", "executing", "done", "failed", "unknown", "denied", "expired", "cancelled"]
Verdict = Literal["approve", "deny"]
Via = Literal["slack", "mfa", "local"]
Factor = Literal["totp", "passkey"]

FINAL: frozenset[Standing] = frozenset({"done", "failed", "denied", "expired", "cancelled"})
"""What nothing leaves. `unknown` is not among them: a person settles it."""
WORK_KIND = "approved_call"
NOTICE_KIND = "approval_notice"
CHANNEL = "approval"
"""The NOTIFY channel; the payload is an approval's id."""
READABLE_S = 24 * 3600
"""How long a result stays readable for its requester."""
REASON_MAX = 500
_DIGEST_OF = "hub.approval.v1"
_REQUIREMENTS: TypeAdapter[tuple[Requirement, ...]] = TypeAdapter(tuple[Requirement, ...])


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One call that people are to be asked about, as the gate met it.

    Attributes:
        tool: The tool's name.
        server: The room it belongs to.
        definition: Digest of its definition: name, description, schema, annotations.
        arguments: The normalised arguments; the very dict that was decided and will be run.
        chain: Principals, the asker first.
        sessions: The call's session, then those above it.
        tainted: Whether the session had read text from outside.
        tainted_by: The operations that gave it, the newest first, a few at most; in no digest.
        depth: How many calls deep.
        history: Granting groups the session had used.
        requirements: One for each rule that fired.
        effect: Of the tool.
        destructive: Whether it takes something away: whoever approves is asked twice.
        headline: Verb and target in words.
        preview: What it would do; None where the arguments say it all.
        basis: What the preview was made of.
        reason: The agent's own words, in no digest.
        roles: Roles of the chain's people as the gate knows them; votes are decided with these, the execution with live ones.
        facts: What the hub has found out about the call; likewise.
        tokens: Ids of the tokens that the call came with.
    """

    tool: str
    server: str
    definition: str
    arguments: Mapping[str, Json]
    chain: tuple[str, ...]
    sessions: tuple[str, ...]
    tainted: bool
    depth: int
    history: frozenset[str]
    requirements: tuple[Requirement, ...]
    effect: Effect
    destructive: bool
    headline: str
    preview: str | None = None
    basis: str | None = None
    reason: str | None = None
    roles: Mapping[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])
    facts: frozenset[str] = frozenset()
    tokens: tuple[str, ...] = ()
    tainted_by: tuple[str, ...] = ()

    @property
    def requester(self) -> str:
        """The chain as text, without its session."""
        return ">".join(self.chain)

    @property
    def digest(self) -> str:
        """What the yes binds: tool, definition, arguments, requester and the rules that fired; an unrelated edit changes nothing."""
        return digest(
            {
                "of": _DIGEST_OF,
                "tool": self.tool,
                "definition": self.definition,
                "arguments": self.arguments,
                "requester": list(self.chain),
                "rules": {each.rule: each.rule_digest for each in self.requirements},
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Voter:
    """Who says yes or no, as the channel has proved it.

    Attributes:
        person: `person:anna`; who that is was decided by Slack's signature, a login or a second factor, never by a link.
        via: The channel.
        factor: The second factor that was given; Slack has none.
        evidence: What proves it: a Slack message, or a passkey's signature over the digest. No secret.
    """

    person: str
    via: Via
    factor: Factor | None = None
    evidence: Mapping[str, Json] = field(default_factory=dict[str, Json])


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """A vote that was counted."""

    voter: str
    verdict: Verdict
    via: Via
    factor: Factor | None
    groups: frozenset[str]
    reason: str | None
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """One request to people and what became of it; times are the database's, in UTC.

    Attributes:
        arguments: Canonical JSON text, replayed to the byte.
        requirements: What each rule that fired wants.
        standing: Where it is; of a decided yes what became of its work.
        decided_by: Who decided last, or `service:body-broker`.
        why: A denial's reason, or why it was cancelled.
        state: What people made of it, whatever came of a yes.
        finding: Who settled it last, and what they found, where it had been unknown.
        votes: In the order they came; as long as it has not ended with the groups that each voter still belongs to.
        result: What the call gave (a JSON object with `result` and `outside`), as long as it is readable.
        error: The wire body of what went wrong.
    """

    id: str
    ordinal: int
    digest: str
    tool: str
    server: str
    definition: str
    arguments: str
    chain: tuple[str, ...]
    sessions: tuple[str, ...]
    tainted: bool
    depth: int
    history: frozenset[str]
    requirements: tuple[Requirement, ...]
    effect: Effect
    destructive: bool
    headline: str
    preview: str | None
    basis: str | None
    reason: str | None
    earlier: str | None
    standing: Standing
    decided_by: str | None
    why: str | None
    receipt: Receipt
    created_at: datetime
    expires_at: datetime
    decided_at: datetime | None
    ended_at: datetime | None
    delivered_at: datetime | None
    votes: tuple[Vote, ...] = ()
    result: Json = None
    error: Json = None
    roles: Mapping[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])
    facts: frozenset[str] = frozenset()
    tokens: tuple[str, ...] = ()
    state: Decided = "pending"
    finding: Json = None
    tainted_by: tuple[str, ...] = ()

    @property
    def asker(self) -> str:
        """Who asked first; owns it."""
        return self.chain[0]

    @property
    def requester(self) -> str:
        """The chain as text."""
        return ">".join(self.chain)

    @property
    def fingerprint(self) -> str:
        """The first 16 digits of the digest: what people compare."""
        return self.digest[:16]

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules that asked."""
        return tuple(each.rule for each in self.requirements)

    @property
    def alone(self) -> bool:
        """Whether a person asked for themselves, so that their own second factor may count."""
        return len(self.chain) == 1 and self.asker.startswith("person:")

    @property
    def own_asker(self) -> str | None:
        """The person whose own second factor may count for this approval; None where somebody else must say yes."""
        return self.asker if self.alone else None

    def values(self) -> dict[str, Json]:
        """The arguments."""
        return orjson.loads(self.arguments)


def arguments_text(values: Mapping[str, Json]) -> str:
    """The text under which arguments are kept and replayed."""
    return canonical_json(dict(values)).decode()


def requirements_json(requirements: Sequence[Requirement]) -> str:
    """Requirements as they are kept."""
    return orjson.dumps([asdict(each) for each in requirements]).decode()


def parse_requirements(text: str) -> tuple[Requirement, ...]:
    """Requirements as they were kept."""
    return _REQUIREMENTS.validate_json(text)


def given_by(votes: Sequence[Vote], *, asker: str | None) -> Given:
    """The approval that these votes give, as the policies read it.

    Args:
        votes: Counted votes.
        asker: The person whose own second factor may count; None where somebody else must say yes.
    """
    yes = [vote for vote in votes if vote.verdict == "approve"]
    others = [vote for vote in yes if vote.voter != asker]
    return Given(
        via=frozenset(vote.via for vote in others),
        count=len(others),
        groups=frozenset(group for vote in others for group in vote.groups),
        own=any(vote.voter == asker and vote.factor is not None for vote in yes),
    )


def met(requirement: Requirement, votes: Sequence[Vote], *, asker: str | None) -> bool:
    """Whether these votes give one rule what it wants; each rule is counted for itself.

    Args:
        requirement: Of one rule.
        votes: Counted votes.
        asker: As in `given_by`.
    """
    yes = [vote for vote in votes if vote.verdict == "approve"]
    if requirement.own and any(v.voter == asker and v.factor is not None and v.via in requirement.via for v in yes):
        return True
    return counted(requirement, votes, asker=asker) >= requirement.quorum


def counted(requirement: Requirement, votes: Sequence[Vote], *, asker: str | None) -> int:
    """How many yeses of others count for one rule: by a way that it takes, of somebody in its groups who did not ask."""
    return sum(
        vote.verdict == "approve"
        and vote.voter != asker
        and vote.via in requirement.via
        and not vote.groups.isdisjoint(requirement.approvers)
        for vote in votes
    )
