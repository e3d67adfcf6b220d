"""Owns what the admin server's tools need: which role each principal assumes, and AWS itself, asked in threads of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from body_broker.calls import Call, Caller, Json
from body_broker.errors import Denied, NotConfigured
from body_broker.storage.postgres import Pool
from body_broker.storage.redis import Redis
from body_broker.threads import Threads
from mcp_servers.admin import reporting
from mcp_servers.admin.changes.making import Changes
from mcp_servers.admin.keeping import Keeping
from mcp_servers.admin.query import SECONDS_MAX, Answer, Deadline, Identity, Query, Who
from mcp_servers.admin.roles import SETTING, Grant, Roles
from tiers.bronze.jobs import Jobs
from tiers.bronze.model import Shape

if TYPE_CHECKING:
    from mcp_servers.admin.aws import Aws

Budget = Callable[[Caller], Awaitable[frozenset[str]]]
_THREADS = 8


class Services:
    """The studio's AWS account, read only, the changes that people approve, and reports.

    Args:
        roles: Which IAM role each principal assumes; None where AWS is not set up.
        region: Asked where a call names none.
        endpoint_url: Another endpoint for every service.
        redis: Keeps what costs money to ask, and AWS' long page tokens.
        changes: Makes changes; None where only AWS is asked.
        pool: Where the hub's own records are; like the next two None where only AWS is asked.
        jobs: Where experts' jobs are asked for.
        budget: `async (caller) -> facts`: whether an expert's job may still be asked for, as rules read it.
        clock: Unix seconds.
    """

    def __init__(
        self,
        *,
        roles: Roles | None,
        region: str | None,
        endpoint_url: str | None,
        redis: Redis,
        changes: Changes | None = None,
        pool: Pool | None = None,
        jobs: Jobs | None = None,
        budget: Budget | None = None,
        clock: Callable[[], float] = time.time,  # noqa: TID251 - the parameter's default
    ) -> None:
        self._changes, self._pool, self._jobs, self._budget = changes, pool, jobs, budget
        self._roles, self._region, self._endpoint_url, self._clock = roles, region, endpoint_url, clock
        self._keeping = Keeping(redis)
        self._paying = asyncio.Lock()
        self._opening = asyncio.Lock()
        self._asking: tuple[Aws, Any] | None = None
        # Its own threads: a cloud that hangs takes none of those that the hub reads files with.
        self._threads = Threads(_THREADS)

    @classmethod
    def load(
        cls,
        roles: Path | None,
        *,
        region: str | None,
        endpoint_url: str | None,
        redis: Redis,
        changes: Changes | None = None,
        pool: Pool | None = None,
        jobs: Jobs | None = None,
        budget: Budget | None = None,
    ) -> Services:
        """The services over a roles file, which is read here.

        Raises:
            StartError: The file is not understood; every fault of it is named.
        """
        return cls(
            roles=roles and Roles.load(roles),
            region=region,
            endpoint_url=endpoint_url,
            redis=redis,
            changes=changes,
            pool=pool,
            jobs=jobs,
            budget=budget,
        )

    @property
    def changes(self) -> Changes:
        """What makes changes."""
        assert self._changes is not None, "the hub opens the services with it"
        return self._changes

    @property
    def pool(self) -> Pool:
        """The hub's own records."""
        assert self._pool is not None, "the hub opens the services with it"
        return self._pool

    @property
    def jobs(self) -> Jobs:
        """Where experts' jobs are asked for."""
        assert self._jobs is not None, "the hub opens the services with it"
        return self._jobs

    @property
    def budget(self) -> Budget:
        """Says whether an expert's job may still be asked for."""
        assert self._budget is not None, "the hub opens the services with it"
        return self._budget

    def shapes(self) -> Mapping[str, Shape]:
        """What makes results of experts' answers, by the kind of job."""
        return {reporting.REPORT: reporting.shape}

    def close(self) -> None:
        """Ask AWS nothing more; who still asks is not waited for."""
        self._threads.close()

    def today(self) -> date:
        """The day, in UTC."""
        return datetime.fromtimestamp(self._clock(), UTC).date()

    async def query(self, query: Query, call: Call, *, cursor: Json) -> Answer:
        """A page of things. Each role of the caller's chain is asked; the answer is that of who acts.

        Raises:
            NotConfigured: Somebody of the chain has no role, or the hub has no credentials.
            Denied: A role may not read that, or not each thing of the page.
            BadInput: The region, the identifier or the cursor is none.
            NotFound: Nothing is called so.
            RateLimited: AWS takes no more for now.
            Unavailable: AWS cannot be reached, or is too slow.
        """
        *others, acting = self._grants(call)
        who = Who(call.caller.chain, call.operation.name)
        query = replace(query, start=await self._keeping.position(query.bound(), cursor))
        deadline = _deadline()
        for grant in others:
            await self._ask(query.least(), grant, who, deadline)  # may they read it, too?
        answer = await self._ask(query, acting, who, deadline)
        if answer.items and answer.names:
            for grant in others:
                await self._describe_too(query.of(answer.names), grant, who, deadline, count=len(answer.items))
        return answer

    async def cursor(self, query: Query, answer: Answer) -> Json:
        """What a cursor to the next page holds; None where that was all."""
        return None if answer.after is None else await self._keeping.state(query.bound(), answer.after)

    async def identity(self, call: Call) -> Identity:
        """Who the caller's queries are to AWS, as AWS itself says.

        Raises:
            NotConfigured: Somebody of the chain has no role, or the hub has no credentials.
            Unavailable: AWS cannot be reached.
        """
        grant = self._grants(call)[-1]
        aws, asking = await self._open()
        who = Who(call.caller.chain, call.operation.name)
        return await self._threads.run(asking.identify, aws, grant, who, _deadline())

    def _grants(self, call: Call) -> tuple[Grant, ...]:
        if self._roles is None:
            raise NotConfigured(
                "AWS is not set up on this hub.",
                next_step=f"Ask the people who run it to set {SETTING} (docs/aws.md) and restart it.",
                details={"setting": SETTING},
            )
        return self._roles.grants(call.caller)

    async def _describe_too(self, query: Query, grant: Grant, who: Who, deadline: Deadline, *, count: int) -> None:
        """IAM decides on each thing that is described by itself, so another role must find them all."""
        seen = await self._ask(query, grant, who, deadline)
        if len(seen.items) < count:
            raise Denied(
                f"The AWS role of {grant.principal} does not find each thing of this page.",
                next_step="Ask for one thing by its identifier, or have the role allowed to describe them all (docs/aws.md).",
                details={"principal": grant.principal},
            )

    async def _ask(self, query: Query, grant: Grant, who: Who, deadline: Deadline) -> Answer:
        aws, asking = await self._open()
        if not query.row.kept_s:
            return await self._threads.run(asking.ask, aws, query, grant, who, deadline)
        name = query.kept_as(grant)
        async with self._paying:  # nobody pays for what another is asking just now
            kept = await self._keeping.answer(name)
            if kept is None:
                kept = await self._threads.run(asking.ask, aws, query, grant, who, deadline)
                await self._keeping.keep(name, kept, at=self._clock(), for_s=query.row.kept_s)
            return kept

    async def _open(self) -> tuple[Aws, Any]:
        async with self._opening:
            opened = self._asking or await self._threads.run(self._import)
            self._asking = opened
            return opened

    def _import(self) -> tuple[Aws, Any]:
        from mcp_servers.admin import asking  # noqa: PLC0415 - imports boto3, 0.4 s and 30 MB

        return asking.Aws(region=self._region, endpoint_url=self._endpoint_url, clock=self._clock), asking


def _deadline() -> Deadline:
    return Deadline(time.monotonic() + SECONDS_MAX)
