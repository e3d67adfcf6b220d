"""Owns the words of a decision: who asks what in which circumstances, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from body_broker.calls import Caller, Json

# What the hub itself may have established about one call; never an argument, which would be the caller's own claim.
# A fact that is not stated is false.
FACTS = ("own_npc", "registered_repository", "within_budget")


# This and Question are tuples: a remembered decision costs a microsecond, and a frozen dataclass as much to build.
class Identity(NamedTuple):
    """One principal of a chain (`tier:silver`, `person:anna`, `service:game`) and its roles, which only people have."""

    principal: str
    roles: frozenset[str] = frozenset()

    @property
    def is_person(self) -> bool:
        """Whether a person stands here, not a tier or a service."""
        return self.principal.startswith("person:")


def chain_of(caller: Caller) -> tuple[Identity, ...]:
    """The caller's chain as the policies see it; keep it beside the caller, it is the same for all of its calls."""
    return tuple(Identity(principal, caller.roles.get(principal, frozenset())) for principal in caller.chain)


@dataclass(frozen=True, slots=True)
class Approval:
    """The yeses a call has got.

    Attributes:
        via: Channels they came through: slack, mfa, local.
        count: How many people other than the asker said yes.
        groups: The approver groups those people belong to.
        own: The asker's own second factor is among them; the engine believes it only of a person who calls alone.
    """

    via: frozenset[str]
    count: int
    groups: frozenset[str]
    own: bool = False


class Question(NamedTuple):
    """One call to be decided.

    Attributes:
        action: The operation's name.
        identities: The identity chain; every one of it must be allowed.
        arguments: The normalised arguments: validated, defaults filled; the very dict that will run.
        tainted: Whether the session has read text from outside.
        depth: How many calls deep this one was caused by others.
        history: Granting groups the session has used.
        facts: Those of FACTS that the hub has established.
        approval: The real yeses, when a call that was asked for is about to run.
    """

    action: str
    identities: tuple[Identity, ...]
    arguments: Mapping[str, Json]
    tainted: bool
    depth: int
    history: frozenset[str]
    facts: frozenset[str] = frozenset()
    approval: Approval | None = None


@dataclass(frozen=True, slots=True)
class Requirement:
    """What one rule wants before it lets a call pass; several requirements must all be met.

    Attributes:
        rule: The rule's @id.
        via: Channels an approver may use; one is enough.
        approvers: Groups an approver may belong to; one is enough.
        quorum: How many people other than the asker must say yes.
        ttl_s: Seconds the request stays open.
        own: Whether the asker's own second factor meets it: mfa, no @quorum, and a person who calls alone.
        rule_digest: SHA-256 of the rule, to which an approval is bound.
    """

    rule: str
    via: tuple[str, ...]
    approvers: tuple[str, ...]
    quorum: int
    ttl_s: int
    own: bool
    rule_digest: str


@dataclass(frozen=True, slots=True)
class Allow:
    """The call may run; `rules` are the permits that say so."""

    rules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Deny:
    """The call may not run, and no approval would change that; `rules` are why."""

    rules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """The call may run once every requirement is met."""

    requirements: tuple[Requirement, ...]

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules that ask."""
        return tuple(requirement.rule for requirement in self.requirements)


Decision = Allow | Deny | Ask
