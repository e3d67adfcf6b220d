"""Owns what can be done with an approval: ask, read, vote, cancel, expire, settle, take; each move on the audit first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from approvals import store, voting
from approvals.asking import join_or_open
from approvals.model import (
    REASON_MAX,
    Approval,
    Decided,
    Standing,
    Subject,
    Verdict,
    Voter,
    given_by,
)
from approvals.people import People
from approvals.recording import Counts, Recorder, Uncounted
from approvals.store import SERVICE, Kept
from approvals.voting import Ballot, Void
from body_broker.audit.auditor import Auditor
from body_broker.calls import Caller
from body_broker.errors import BadInput, BodyBrokerError, Conflict, Denied, Detail, NotFound
from body_broker.storage.postgres import Connection, Executor, Pool
from body_broker.text import clean, digest
from body_broker.work import queue
from body_broker.work.model import Verdict as Finding
from policies.decision import Approval as Given
from policies.engine import Policy

_AT_ONCE = 3  # connections that one process spends on moving approvals: a burst must not keep reads from theirs


@dataclass(frozen=True, slots=True)
class Ticket:
    """What asking gave: the approval, and whether an earlier call had already opened it."""

    approval: Approval
    joined: bool


class Desk:
    """The approvals of one installation, as one process sees them; the only way to move one.

    While a row is locked nothing but PostgreSQL is waited for; the audit is PostgreSQL too, on a connection of its own.

    Args:
        pool: The database.
        auditor: Takes each move before it is committed.
        policy: Decides whether votes are enough.
        people: Who belongs to which approver group.
        definitions: By tool the digest of its present definition.
        notify: Whether notices go out (Slack).
        open_max: Requests that one requester may have pending, those counted that were refused or taken back within their time.
        pages: The base URL of the hub's pages; None where it has none.
        counts: Metrics.
    """

    def __init__(
        self,
        *,
        pool: Pool,
        auditor: Auditor,
        policy: Policy,
        people: People,
        definitions: Mapping[str, str],
        notify: bool,
        open_max: int,
        pages: Callable[[], str | None],
        counts: Counts | None = None,
    ) -> None:
        self.pool, self.policy, self.people, self.recorder = pool, policy, people, Recorder(auditor)
        self._definitions, self._notify, self._open_max = definitions, notify, open_max
        self._pages, self._counts = pages, counts or Uncounted()
        self._few = asyncio.Semaphore(max(1, min(_AT_ONCE, pool.get_max_size() - 2)))

    def approve_at(self, approval_id: str) -> str | None:
        """Where people decide it; None where the hub has no pages."""
        base = self._pages()
        return base and f"{base.rstrip('/')}/approve/{approval_id}"

    async def ask(self, subject: Subject, *, call: str | None = None) -> Ticket:
        """The approval for this very call: the one whose end its requester has not been told, else a new one.

        A new one is on the audit as `asked` before it is committed, together with the work that waits for the yes.

        Args:
            subject: The call.
            call: The call's id, for the audit.

        Raises:
            RateLimited: This requester asks people for as much as they may.
            Unavailable: The audit does not take it.
        """
        assert subject.requirements, "somebody must be asked for something"
        if (ticket := await self.join(subject)) is not None:
            return ticket
        async with self._few, store.moving(self.pool) as connection:
            found, joined = await join_or_open(
                connection, self.recorder, subject, call=call, notify=self._notify, open_max=self._open_max
            )
        kept = await _found(self.pool, found)
        self._counts.approval_asked(joined=joined)
        return Ticket(await self._noticed(kept), joined)

    async def join(self, subject: Subject) -> Ticket | None:
        """The approval that this very call opened before; None where there is none, and nobody is asked."""
        kept = await store.undelivered(self.pool, subject.digest)
        if kept is None or kept.stale:
            return None
        self._counts.approval_asked(joined=True)
        return Ticket(await self._noticed(kept), joined=True)

    async def get(self, approval_id: str) -> Approval:
        """One approval, whoever it belongs to; one that is past its time is ended by whoever reads it.

        Raises:
            NotFound: There is none.
        """
        return await self._noticed(await _found(self.pool, approval_id))

    async def find(self, approval_id: str, *, caller: Caller) -> Approval:
        """One approval of this requester; the asker alone also finds what was asked for on their behalf.

        Raises:
            NotFound: There is none, or it is somebody else's; nobody learns which.
        """
        kept = await store.load(self.pool, approval_id)
        if kept is None or not _owns(caller, kept.approval):
            raise _not_found()
        return await self._noticed(kept)

    async def list_mine(
        self, caller: Caller, *, limit: int = 20, before: int | None = None, standings: Collection[Standing] = ()
    ) -> list[Approval]:
        """The caller's approvals, newest first; `before` is the ordinal of the last one of the page before."""
        found = await store.newest(
            self.pool,
            asker=caller.asker,
            requester=None if len(caller.chain) == 1 else caller.requester,
            before=before,
            standings=standings,
            limit=limit,
        )
        return [self._as_now(each) for each in found]

    async def waiting_for(self, person: str) -> list[Approval]:
        """What waits and this person could still say yes to, the most urgent first."""
        groups = self.people.groups_of(person)
        pending = await store.pending_without(self.pool, person)
        return [each for each in map(self._as_now, pending) if voting.could_help(each, person, groups)]

    async def everything(self, *, limit: int = 50, standings: Collection[Standing] = ()) -> list[Approval]:
        """Everybody's approvals, newest first; for operators."""
        return [self._as_now(each) for each in await store.newest(self.pool, limit=limit, standings=standings)]

    async def count_pending(self) -> int:
        """How many wait for people."""
        return await store.count_pending(self.pool)

    async def vote(
        self,
        approval_id: str,
        *,
        digest: str,
        voter: Voter,
        verdict: Verdict,
        reason: str | None = None,
    ) -> Approval:
        """The approval after this vote; the vote and all that it leads to are one transaction.

        Args:
            approval_id: Which.
            digest: Of what the voter was shown.
            voter: Who, as the channel has proved it; nothing of it may come from what somebody typed.
            verdict: What they say; one deny ends it.
            reason: Why; a denial's reaches the agent.

        Raises:
            NotFound: There is no such approval.
            Conflict: It is another call, is decided, past its time or void, or this person has had their say.
            Denied: This person may not decide it, or not by this way, or the policy now refuses the call.
            Unavailable: The audit does not take it; nothing was counted.
        """
        ballot = Ballot(digest, voter, verdict, (clean(reason, limit=REASON_MAX).strip() or None) if reason else None)
        refused: BodyBrokerError | None = None
        before: Approval | None = None
        try:
            async with self._locked(approval_id) as (connection, kept):
                before = kept.approval
                try:
                    await self._count(connection, before, ballot)
                except (Conflict, Denied, Void) as error:
                    refused = await self._end_if_over(connection, kept, error)
                approval = self._as_now((await _found(connection, approval_id)).approval)
        except NotFound as error:
            await self._refused(None, approval_id, ballot, error)
            raise
        self._counted(before, approval)
        if refused is not None:
            await self._refused(before, approval_id, ballot, refused)
            raise refused
        return approval

    async def cancel(self, approval_id: str, *, caller: Caller) -> Approval:
        """The approval after its requester took it back: what has not begun never will; an effect that has begun is brought to its end.

        Raises:
            NotFound: There is none, or it is somebody else's.
            Conflict: It has ended.
        """
        await self.find(approval_id, caller=caller)
        async with self._locked(approval_id) as (connection, kept):
            before = kept.approval
            if before.standing == "pending":
                await self._end(connection, before, "cancelled", by=caller.requester, why="Its requester took it back.")
        if before.standing in {"approved", "executing"}:  # its row is not locked: the work tells it
            await self.recorder.moved(before, "cancel", by=caller.requester)
            await queue.cancel(self.pool, approval_id, owner=before.asker)
        elif before.standing != "pending":
            raise Conflict(
                f"It can no longer be taken back: it is {before.standing}.",
                next_step="get_approval says what became of it.",
            )
        if caller.requester == before.requester:  # who took it back need not be told so: the same call asks anew
            await self.take(approval_id)
        approval = await self.get(approval_id)
        self._counted(before, approval)
        return approval

    async def take(self, approval_id: str) -> bool:
        """Note that its requester was told how it ended; true for the one that noted it. The next same call asks anew."""
        return await store.take(self.pool, approval_id)

    async def expire(self, approval_id: str) -> Approval:
        """The approval; ended first if it is past its time, which is on the audit once, whoever notices.

        Raises:
            NotFound: There is none.
        """
        async with self._locked(approval_id) as (connection, kept):
            before = kept.approval
            if kept.approval.state == "pending" and before.standing == "expired":
                await self._end(connection, before, "expired")
        if before.standing == "expired" and kept.approval.state == "approved":
            await store.expire_work(self.pool, approval_id)
        approval = (await _found(self.pool, approval_id)).approval
        if kept.approval.state == "pending":
            self._counted(before, approval)
        return approval

    async def settle(self, approval_id: str, *, by: str, verdict: Finding, note: str) -> Approval:
        """The approval after a person said what became of an effect that was killed inside.

        Args:
            approval_id: Which.
            by: An approver of it, as a second factor proved it, or an operator.
            verdict: `succeeded` or `failed` ends it so; `again` runs it once more.
            note: What they found.

        Raises:
            NotFound: There is none.
            Denied: This person has no say in it.
            Conflict: Nothing about it is unknown.
            BadInput: There is no note.
            Unavailable: The audit does not take it; nothing was settled.
        """
        approval: Approval | None = None
        try:
            async with self._locked(approval_id) as (connection, kept):
                approval = kept.approval
                voting.check_settler(approval, by, self.people.groups_of(by), again=verdict == "again")
                # No worker has work whose outcome is unknown, so nobody waits here for the row that we hold.
                await queue.settle(connection, approval_id, by=by, verdict=verdict, note=note)
                await self.recorder.moved(approval, "settled", by=by, said=note, details={"finding": verdict})
                await store.unrecord(connection, approval_id)
        except (NotFound, Conflict, Denied, BadInput) as error:
            await self.recorder.refused(approval, approval_id, error, by=by, details={"finding": verdict})
            raise
        return await self.get(approval_id)

    async def still_stands(self, approval: Approval) -> None:
        """Return where its tool and each rule that fired are what they were when people were asked.

        Raises:
            Void: They are not; an unrelated edit of the policies changes nothing.
        """
        voting.check_standing(approval, self.policy, self._definitions)

    async def begin(self, connection: Connection, approval_id: str, effect: str) -> bool:
        """Note, on the connection of `run.fenced()`, that its effect begins now, which may be repeated under its key; false where it may not.

        From here on it is brought to its end, for it may have happened: it is not taken back, does not expire, is not decided again.
        """
        return await store.begin(connection, approval_id, effect)

    def given(self, approval: Approval) -> Given:
        """The approval that its votes give, as the policies read it."""
        return given_by(approval.votes, asker=approval.own_asker)

    async def _count(self, connection: Connection, approval: Approval, ballot: Ballot) -> None:
        """Check everything, then write: whatever raises leaves nothing written but what the same transaction ends."""
        approval, voter, verdict = self._as_now(approval), ballot.voter, ballot.verdict
        groups = self.people.groups_of(voter.person)
        voting.check_shown(approval, ballot.shown)
        voting.check_voter(approval, voter, verdict, groups)
        state: Decided = "denied"
        if verdict == "approve":
            voting.check_standing(approval, self.policy, self._definitions)
            votes = voting.with_vote(approval, ballot, groups=groups, at=datetime.now(UTC))
            state = "approved" if voting.is_enough(approval, votes, self.policy) else "pending"
        if state == "approved" and not await queue.release(connection, approval.id):
            raise voting.too_late()  # its work was a moment quicker
        details: dict[str, Detail] = {
            "via": voter.via,
            "factor": voter.factor,
            "groups": sorted(groups),
            "evidence": digest(dict(voter.evidence)),
        }
        told = "voted" if state == "pending" else state
        receipt = await self.recorder.moved(approval, told, by=voter.person, said=ballot.reason, details=details)
        await store.add_vote(connection, approval.id, ballot, groups=groups, receipt=receipt)
        if state == "pending":
            await store.tell(connection, approval.id)
            return
        why = ballot.reason if state == "denied" else None
        await store.decide(connection, approval.id, state, by=voter.person, why=why)
        if state == "denied":
            await store.drop_work(connection, approval.id)

    async def _end(
        self, connection: Connection, approval: Approval, state: Decided, *, by: str = SERVICE, why: str | None = None
    ) -> None:
        """End a pending approval without a decision of people; its work with it."""
        await self.recorder.moved(approval, state, by=by, details={"why": why} if why else None)
        await store.decide(connection, approval.id, state, by=by, why=why)
        await store.drop_work(connection, approval.id)

    async def _end_if_over(self, connection: Connection, kept: Kept, error: BodyBrokerError) -> BodyBrokerError:
        """What the voter is told; what can never be approved any more is ended with it."""
        if isinstance(error, Void):
            await self._end(connection, kept.approval, "cancelled", why=error.message)
            return Conflict(
                f"{error.message} The request is cancelled.", next_step="Whoever still wants it makes the call again."
            )
        present = (await _found(connection, kept.approval.id)).approval
        if kept.approval.state == "pending" and present.standing == "expired":
            await self._end(connection, present, "expired")
        return error

    @asynccontextmanager
    async def _locked(self, approval_id: str) -> AsyncGenerator[tuple[Connection, Kept]]:
        async with self._few, store.moving(self.pool) as connection:
            kept = await store.lock(connection, approval_id)
            if kept is None:
                raise _not_found()
            yield connection, kept

    async def _noticed(self, kept: Kept) -> Approval:
        """The approval; if it is past its time and nobody has written that down, it is now."""
        if kept.approval.ended_at is None and kept.approval.standing == "expired":
            return await self.expire(kept.approval.id)
        return self._as_now(kept.approval)

    def _as_now(self, approval: Approval) -> Approval:
        return voting.as_now(approval, self.people)

    def _counted(self, before: Approval, after: Approval) -> None:
        if before.decided_at is None and after.decided_at is not None:
            self._counts.approval_ended(
                "approved" if after.standing not in {"denied", "expired", "cancelled"} else after.standing,
                (after.decided_at - after.created_at).total_seconds(),
            )

    async def _refused(
        self, approval: Approval | None, approval_id: str, ballot: Ballot, error: BodyBrokerError
    ) -> None:
        details: dict[str, Detail] = {"said": ballot.verdict, "via": ballot.voter.via}
        await self.recorder.refused(approval, approval_id, error, by=ballot.voter.person, details=details)


async def _found(executor: Executor, approval_id: str) -> Kept:
    kept = await store.load(executor, approval_id)
    if kept is None:
        raise _not_found()
    return kept


def _owns(caller: Caller, approval: Approval) -> bool:
    return caller.requester == approval.requester or caller.chain == (approval.asker,)


def _not_found() -> NotFound:
    return NotFound("You have no approval by that id.", next_step="list_my_approvals names yours.")
