"""Owns opening an approval: one request for one call, with the work that waits for its yes, in one transaction."""

from __future__ import annotations

from approvals import store
from approvals.model import WORK_KIND, Subject
from approvals.recording import Recorder
from approvals.store import Kept
from body_broker.errors import RateLimited
from body_broker.storage.postgres import Connection
from body_broker.text import new_id
from body_broker.work import queue
from body_broker.work.model import Origin

ATTEMPTS = 8
"""Runs of an approved call that was killed before its effect began, or may be repeated."""
_PRIORITY = 10  # above what nobody waits for


async def join_or_open(
    connection: Connection, recorder: Recorder, subject: Subject, *, call: str | None, notify: bool, open_max: int
) -> tuple[str, bool]:
    """The id of the approval for this call, and whether an earlier call had opened it.

    Whatever one requester asks for at the same time comes here one after the other: there is one for each call, and no more
    than may be.

    Args:
        connection: In a transaction of the caller's.
        recorder: Has it as `asked` before it is committed.
        subject: The call.
        call: The call's id, for the audit.
        notify: Whether notices go out.
        open_max: Requests that one requester may have pending, those counted that were refused or taken back within their time.

    Raises:
        RateLimited: This requester asks people for as much as they may.
        Unavailable: The audit does not take it.
    """
    await store.lock_requester(connection, subject.requester)
    kept: Kept | None = await store.undelivered(connection, subject.digest)
    if kept is not None and not kept.stale:
        return kept.approval.id, True
    burden, first_s = await store.burden_of(connection, subject.requester)
    if burden >= open_max:
        raise RateLimited(
            f"{burden} requests of yours wait for people, or were refused or taken back a short while ago; no more may come now.",
            next_step="Wait until some are decided, and do not ask for what was refused. list_my_approvals names them.",
            retry_after_s=first_s,
            details={"limit": open_max},
        )
    if kept is not None:
        await store.give_up(connection, kept.approval.id)
    approval_id = new_id("apr")
    receipt = await recorder.asked(subject, approval_id, call)
    ttl_s = float(min(each.ttl_s for each in subject.requirements))
    await store.insert(connection, approval_id, subject, receipt=receipt, notify=notify, ttl_s=ttl_s)
    origin = Origin(
        chain=subject.chain,
        session=subject.sessions[0],
        tainted=subject.tainted,
        depth=subject.depth,
        receipt=receipt,
    )
    await queue.enqueue(
        connection,
        WORK_KIND,
        {"approval": approval_id},
        origin=origin,
        work_id=approval_id,
        waiting=True,
        priority=_PRIORITY,
        expires_in_s=ttl_s,
        attempts_max=ATTEMPTS,
    )
    return approval_id, False
