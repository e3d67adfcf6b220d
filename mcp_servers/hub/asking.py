"""Owns step 5 of the gate: people are asked for a call, its client waits as it can, and is told what became of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import cast

from pydantic import ValidationError

from approvals import store
from approvals.model import Approval, Subject
from approvals.waiting import WAIT_MAX_S, is_settled, waits_for
from body_broker.calls import Caller, Json, Operation, Preview
from body_broker.errors import (
    ApprovalPending,
    ApprovalRequired,
    BodyBrokerError,
    NotFound,
)
from body_broker.inputs import AskClient, Link
from mcp_servers.hub.approving import Approvals
from mcp_servers.hub.endings import ended, found_by
from mcp_servers.hub.passage import Passage
from mcp_servers.hub.reaching import missing
from mcp_servers.hub.requests import Answer
from mcp_servers.hub.sessions import Sessions
from policies.decision import Ask
from policies.engine import Policy

WAITING_MAX = 64
"""Calls of one asker that wait for people in one hub at a time."""
_VALUE_MAX = 120
_PAGE = "approve"
"""The name of the question that shows a client where its person decides."""


class Asking:
    """Asks people for the calls of one hub process.

    Args:
        approvals: Everything about approvals in this process.
        sessions: Receive the taint of results.
        policy: Its catalogue says what is destructive.
        wait_s: How long a call waits where its client does not say.
        still: Raises where what a caller came with was revoked: who waited is told nothing on old knowledge.
        clock: Unix seconds: nobody waits past the end of their token.
    """

    def __init__(
        self,
        approvals: Approvals,
        sessions: Sessions,
        policy: Policy,
        *,
        wait_s: float,
        still: Callable[[Caller], Awaitable[None]],
        clock: Callable[[], float] = time.time,  # noqa: TID251 - the parameter's default
    ) -> None:
        self.approvals = approvals
        self._sessions, self._policy, self._wait_s, self._clock = sessions, policy, wait_s, clock
        self.still, self._waiting = still, Counter[str]()

    async def open(self, passage: Passage, ask: Ask, facts: frozenset[str], services: object) -> Approval:
        """The approval for this call, which people are asked for now, or were by the same call before.

        Raises:
            ApprovalRequired: It is no tool.
            BodyBrokerError: The call could only fail, or its requester has too many requests open.
        """
        operation = passage.operation
        if operation.kind != "tool":
            rules, groups = list(ask.rules), sorted({g for r in ask.requirements for g in r.approvers})
            raise ApprovalRequired(
                f"{operation.name} needs an approval by {' or '.join(groups)} (rule {', '.join(rules)}), "
                f"and people are asked for tools only, not for a {operation.kind}.",
                next_step="Use a tool that does the same.",
                details={"rules": rules, "approvers": groups},
            )
        desk = self.approvals.desk
        subject = self._subject(passage, ask, facts, Preview(headline=headline(operation, passage.values)))
        if operation.foresees is not None:
            # What has been done already cannot be foreseen any more; what has not been foreseen opens nothing.
            if (joined := await desk.join(subject)) is not None:
                return joined.approval
            try:
                preview = await operation.foresees(passage.arguments, passage.caller, services)
            except BodyBrokerError as error:
                # Who repeats what was done is told that, and not only that it could not be done again.
                if (earlier := await store.latest(desk.pool, subject.digest)) is not None:
                    error.details["earlier"] = earlier
                    error.next_step += (
                        f" You asked for this very call before: get_approval {earlier} says what came of it."
                    )
                raise
            subject = self._subject(passage, ask, facts, preview)
        return (await desk.ask(subject, call=passage.id)).approval

    async def answer(self, passage: Passage, approval: Approval) -> Answer:
        """What became of it, if it comes while the client is patient.

        Raises:
            ApprovalPending: It is still open: the client gets a task, or comes again.
            Unauthenticated: What the call came with was revoked while it waited.
            BodyBrokerError: It was denied, expired, was taken back, or failed.
        """
        patience = passage.request.patience
        if not is_settled(approval) and not patience.task:
            self._offer_page(passage, approval)
            approval = await self._wait(passage, approval)
        if not is_settled(approval):
            raise await self.pending(approval)
        return await self.collect(approval, passage.caller, passage.id, passage.operation)

    async def _wait(self, passage: Passage, approval: Approval) -> Approval:
        """The approval after waiting; of one asker only so many wait here at a time, the others come again."""
        asker, waiters = passage.caller.asker, self.approvals.waiters
        timeout_s = self._patience_s(passage) if self._waiting[asker] < WAITING_MAX else 0.0
        self._waiting[asker] += 1
        try:
            found = await waiters.wait(approval.id, timeout_s=timeout_s, progress=passage.request.progress)
        finally:
            self._waiting[asker] -= 1
            if not self._waiting[asker]:
                del self._waiting[asker]
        await self.still(passage.caller)
        return found

    async def collect(self, approval: Approval, caller: Caller, call_id: str, operation: Operation) -> Answer:
        """How a settled approval ended, told to its requester: noted as told, and its text from outside as read.

        Raises:
            BodyBrokerError: It ended otherwise than done.
        """
        if approval.standing != "done":
            if approval.standing != "unknown":  # which is told until a person has settled it
                await self._told(approval, caller)
            raise ended(approval)
        result = cast("dict[str, Json]", approval.result or {})
        try:
            found = operation.result.model_validate(result.get("result"))
        except ValidationError as error:
            await self._told(approval, caller)
            why = f" {result['lost']}" if "lost" in result else ""
            raise NotFound(
                f"{operation.name} was approved and done{found_by(approval)}, but no result of it is kept.{why}",
                next_step="Do not repeat it: look at what it changed.",
                details={"approval": approval.id},
            ) from error
        outside = result.get("outside") is not False
        if outside:
            await self._sessions.taint(caller, operation.name)
        await self._told(approval, caller)
        return Answer(call_id=call_id, operation=operation, result=found, outside=outside)

    async def _told(self, approval: Approval, caller: Caller) -> None:
        """Note that its requester knows; a person who looks at what a tier asked for them does not take it from the tier."""
        if caller.requester == approval.requester:
            await self.approvals.desk.take(approval.id)

    async def pending(self, approval: Approval) -> ApprovalPending:
        """What a client is told that goes away with the request still open."""
        desk = self.approvals.desk
        approve_at = desk.approve_at(approval.id)
        lacking = await missing(self.approvals, approval) if approval.standing == "pending" else None
        details = {
            "approval": approval.id,
            "standing": approval.standing,
            "rules": list(approval.rules),
            "expires_at": approval.expires_at.isoformat(),
            "approve_at": approve_at,
        }
        earlier = ""
        if approval.earlier is not None:
            details["earlier"] = approval.earlier
            earlier = f" What became of the same call before: get_approval {approval.earlier}."
        if lacking is not None:
            details["missing"] = lacking.what
            return ApprovalPending(
                f"People were asked for {approval.tool}, but nobody can say yes here yet: {lacking.what}{earlier}",
                next_step=f"{lacking.mend} Then repeat the very same call: it joins the same request.",
                details=details,
            )
        until = "" if approval.standing == "executing" else f", until {approval.expires_at:%H:%M} UTC"
        where = f" They decide at {approve_at}." if approve_at and approval.standing == "pending" else ""
        return ApprovalPending(
            f"{approval.tool} is {waits_for(approval)}{until}.{where}{earlier}", details=details, retry_after_s=None
        )

    def _offer_page(self, passage: Passage, approval: Approval) -> None:
        """Ask the client once to open the page where its own person may confirm the call; what it answers decides nothing.

        Raises:
            AskClient: It can be asked, and this person's own second factor may count.
        """
        url = self.approvals.desk.approve_at(approval.id)
        own = approval.alone and any(each.own for each in approval.requirements)
        shown = _PAGE in passage.inputs.answers or passage.request.patience.wait_s == 0
        if url and own and not shown and approval.standing == "pending" and Link in passage.inputs.askable:
            raise AskClient({_PAGE: Link(f"{approval.headline} - confirm it with your passkey or code.", url)})

    def close(self) -> None:
        """Whoever waits goes away with what there is."""
        self.approvals.waiters.close()

    def _patience_s(self, passage: Passage) -> float:
        wished = passage.request.patience.wait_s
        wait_s = self._wait_s if wished is None else wished
        ends = passage.caller.expires_at
        return min(wait_s, WAIT_MAX_S, WAIT_MAX_S if ends is None else max(0.0, ends - self._clock()))

    def _subject(self, passage: Passage, ask: Ask, facts: frozenset[str], preview: Preview) -> Subject:
        operation, caller, session = passage.operation, passage.caller, passage.session
        assert session is not None, "the session is read before anything is decided"
        return Subject(
            tool=operation.name,
            server=passage.row.server,
            definition=self.approvals.definitions[operation.name],
            arguments=passage.values,
            chain=caller.chain,
            sessions=caller.sessions,
            tokens=tuple(each for each in (caller.token_id, caller.asker_token_id) if each is not None),
            tainted=session.tainted,
            tainted_by=tuple(map(self._named, session.sources)),
            depth=passage.request.depth,
            history=session.history,
            requirements=ask.requirements,
            effect=operation.effect,
            destructive="destructive" in self._policy.catalogue.entries[operation.name].modifiers,
            headline=preview.headline,
            preview=preview.text,
            basis=preview.basis,
            reason=passage.reason,
            roles=caller.roles,
            facts=facts,
        )

    def _named(self, source: str) -> str:
        """An operation as people know it: with whose it is."""
        entry = self._policy.catalogue.entries.get(source)
        return source if entry is None else f"{entry.server}'s {source}"


def headline(operation: Operation, values: Mapping[str, Json]) -> str:
    """The call in words, where its row has none of its own: its title and what it is about."""
    fields = operation.arguments.model_fields
    names = [*(n for n, f in fields.items() if f.is_required()), *(n for n, f in fields.items() if not f.is_required())]
    for name in names:
        value = values.get(name)
        if isinstance(value, str) and value:
            return f"{operation.title}: {value if len(value) <= _VALUE_MAX else value[:_VALUE_MAX] + '…'}"
        if isinstance(value, list) and value:
            return f"{operation.title}: {len(cast('list[Json]', value))} {name.replace('_', ' ')}"
        if isinstance(value, dict) and value and fields[name].is_required():
            parts = [str(v) for v in cast("dict[str, Json]", value).values() if isinstance(v, str | int | float)]
            return f"{operation.title}: {' '.join(parts)[:_VALUE_MAX]}"
    return operation.title
