"""Owns the words of a query: what is asked, where its page begins, what came back. Knows no AWS library."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from body_broker.calls import Json
from body_broker.text import digest
from mcp_servers.admin.catalogue.row import Plan, Row
from mcp_servers.admin.roles import Grant


class Position(NamedTuple):
    """Where a page begins: AWS' token, and how many of AWS' page have been shown."""

    token: str | None = None
    skip: int = 0


START = Position()

SECONDS_MAX = 20.0
"""After how long one call of ours begins no further call of AWS, whatever is still to be asked."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """Until when AWS is called for one call of ours.

    Attributes:
        at: By the clock.
        clock: Seconds.
    """

    at: float
    clock: Callable[[], float] = time.monotonic

    def passed(self) -> bool:
        """Whether AWS may be called no more."""
        return self.clock() >= self.at


@dataclass(frozen=True, slots=True)
class Who:
    """On whose behalf AWS is asked.

    Attributes:
        chain: The identity chain.
        tool: The tool that asks.
    """

    chain: tuple[str, ...]
    tool: str

    def tags(self) -> dict[str, str]:
        """The session's tags, which CloudTrail keeps and IAM policies may read."""
        tier = next((p.partition(":")[2] for p in reversed(self.chain) if p.startswith("tier:")), "none")
        return {"mcp:principal": self.chain[0], "mcp:actor": self.chain[-1], "mcp:tier": tier, "mcp:tool": self.tool}


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What is asked.

    Attributes:
        row: Of which kind of thing.
        plan: By which operations.
        region: Where, as the caller said.
        limit: How many things at most.
        start: Where the page begins.
    """

    row: Row
    plan: Plan
    region: str | None
    limit: int
    start: Position = START

    def least(self) -> Query:
        """The least that another role must be able to ask: one thing, and of things that AWS only names no description."""
        row = self.row if self.plan.operation is None else replace(self.row, detail=None)
        return replace(self, row=row, start=START, limit=1)

    def of(self, names: tuple[str, ...]) -> Query:
        """The descriptions of these things and no others."""
        return replace(
            self, plan=Plan(operation=None, names=names, around=self.plan.around), start=START, limit=len(names)
        )

    def bound(self) -> str:
        """What a cursor of this query belongs to: everything but the page."""
        return digest([self.row.name, self.region, repr(self.plan)])[:16]

    def kept_as(self, grant: Grant) -> str:
        """What its answer is kept under: it is one role's."""
        return digest([grant.arn, self.bound(), self.limit, *self.start])


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What AWS answered.

    Attributes:
        items: What is shown of each thing.
        after: Where the next page begins; None where that was all.
        account: The account asked.
        region: The region asked; `global` where the service knows none.
        names: What a listing named and was then described, where IAM decides on each of them.
        cached_at: When AWS said so, where it is a kept answer.
    """

    items: list[dict[str, Json]]
    after: Position | None
    account: str
    region: str
    names: tuple[str, ...] = ()
    cached_at: str | None = None

    @property
    def source(self) -> Literal["aws", "kept"]:
        """Whether AWS was asked for it now."""
        return "aws" if self.cached_at is None else "kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who somebody's queries are to AWS, as AWS itself said.

    Attributes:
        grant: The role.
        account: Its account.
        arn: The session's.
        tags: The session's.
        source_identity: Whom CloudTrail names as the source.
        region: Asked by default.
        expires_at: Unix seconds.
    """

    grant: Grant
    account: str
    arn: str
    tags: dict[str, str]
    source_identity: str
    region: str
    expires_at: float
