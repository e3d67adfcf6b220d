"""Owns the one path of every call: who, what, guard, may it, ask, record, do, tell. Nothing runs an operation but this."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

from approvals.executor import Perform
from approvals.model import Approval
from approvals.voting import check_given
from body_broker.audit.auditor import Auditor
from body_broker.calls import Call, Caller, CursorSeal, Issuer, Json, Operation, Progress, Result, Room
from body_broker.errors import BodyBrokerError, Unauthenticated, UnknownTool
from body_broker.inputs import AskClient
from body_broker.telemetry import get_logger
from body_broker.text import new_id
from body_broker.tracing import span
from mcp_servers.hub.asking import Asking
from mcp_servers.hub.faults import NEEDS_BUDGET, denied, mapped, not_known, require_there
from mcp_servers.hub.hearing import guarded
from mcp_servers.hub.limits import Limits
from mcp_servers.hub.listing import takes_reason
from mcp_servers.hub.metrics import Metrics
from mcp_servers.hub.passage import Passage, Row, caller_of
from mcp_servers.hub.recording import Recorder
from mcp_servers.hub.requests import Answer, Request, kind_of
from mcp_servers.hub.rounds import Rounds
from mcp_servers.hub.sessions import Sessions
from policies.decision import FACTS, Allow, Ask, Deny, Question, chain_of
from policies.decision import Approval as Given
from policies.engine import Policy

log = get_logger(__name__)

# Groups and modifiers whose rules read taint: there the session is read from the store, not from memory (DESIGN.md §4).
_TAINT_GATED_GROUPS = frozenset({"queued", "security_scan", "write", "admin_change"})
_TAINT_GATED_MODIFIERS = frozenset({"external", "destructive"})


class _Asked(NamedTuple):
    """That people must be asked, and what was found out of the call on the way."""

    ask: Ask
    facts: frozenset[str]


class Gate:
    """The gate of one process.

    Args:
        rooms: The servers served here; a row that is not in them is unknown.
        approved: Every server whose approved calls run here, whatever is served.
        policy: Decides, over the catalogue of every row there is.
        services: What each room's functions get as their third argument, by server name.
        auditor: Takes the decision before any effect.
        sessions: Taint and history.
        limits: Rate and concurrency.
        cursors: Seals cursors.
        rounds: Reads and seals what clients are asked in the middle of a call.
        asking: Asks people.
        metrics: Counts.
        configured: The settings that are set, for rows with `needs`.
        call_timeout_s: How long one operation may run.
    """

    def __init__(
        self,
        *,
        rooms: Sequence[Room],
        approved: Sequence[Room],
        policy: Policy,
        services: Mapping[str, object],
        auditor: Auditor,
        sessions: Sessions,
        limits: Limits,
        cursors: CursorSeal,
        rounds: Rounds,
        asking: Asking,
        metrics: Metrics,
        configured: frozenset[str] = frozenset(),
        call_timeout_s: float = 60,
    ) -> None:
        self.policy, self.metrics, self.configured = policy, metrics, configured
        self.serve(rooms, approved)
        self._services, self._records, self.asking = services, Recorder(auditor), asking
        self._sessions, self._limits, self._cursors = sessions, limits, cursors
        self._rounds, self._timeout_s = rounds, call_timeout_s
        self._issuer = Issuer("gate")
        self._effects: set[asyncio.Task[Result]] = set()

    def serve(self, rooms: Sequence[Room], approved: Sequence[Room]) -> None:
        """Serve these rooms from now on, as in the constructor; what has begun goes on with the row it began with."""
        self.rooms = tuple(rooms)
        self._rows = {(o.kind, o.name): self._row(o, room.name) for room in rooms for o in room.operations()}
        self._approved = {tool.name: (tool, room.name) for room in approved for tool in room.tools}

    def _row(self, operation: Operation, server: str) -> Row:
        entry = self.policy.catalogue.entries[operation.name]
        gated = (
            operation.effect != "none"
            or entry.group in _TAINT_GATED_GROUPS
            or not entry.modifiers.isdisjoint(_TAINT_GATED_MODIFIERS)
        )
        asked = operation.kind == "tool" and self.policy.askable(operation.name)
        return Row(operation, server, entry.group, gated, takes_reason(operation, self.policy), asked)

    async def run(self, request: Request) -> Answer:
        """The answer to one request, or the error that refused it; the same path for tools, resources, prompts and nested calls.

        Raises:
            BodyBrokerError: Whatever refused or failed; anything else is mapped before it leaves the gate.
        """
        caller = request.caller
        if caller is None:
            self.metrics.refused("no_identity")
            raise Unauthenticated("The call carries no identity.")
        began = time.perf_counter()
        if caller.depth > request.depth:
            request = replace(request, depth=caller.depth)
        row = self._rows.get((request.kind, request.name))
        if row is None:
            return await self._unknown(request, caller, began)
        passage = Passage(request, new_id("call"), began, caller, row)
        await self._enter(passage)
        self.metrics.open_calls.inc()

        def end(outcome: str) -> None:
            self.metrics.open_calls.dec()
            self._leave(passage)
            self.metrics.called(passage.operation.name, kind_of(passage.caller), outcome, time.perf_counter() - began)

        about = {"operation": row.operation.name, "caller": kind_of(caller), "call": passage.id}
        with span("hub.call", about), self._ending(passage, end):
            return await self._pass(passage)

    @contextmanager
    def _ending(self, passage: Passage, end: Callable[[str], None]) -> Generator[None]:
        """What happens inside ends in one word, which is told to `end`; an exception is mapped on its way out."""
        outcome = "ok"
        try:
            yield
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except Exception as error:
            told = self._mapped(error, passage)
            outcome = told.code
            if told is error:
                raise
            raise told from error
        finally:
            end(outcome)

    @contextmanager
    def _refusing(self, passage: Passage) -> Generator[None]:
        """What refuses the call inside is mapped, and on the audit."""
        try:
            yield
        except Exception as error:
            told = self._mapped(error, passage)
            self._records.refused(passage, told)
            if told is error:
                raise
            raise told from error

    async def _enter(self, passage: Passage) -> None:
        """Step 4's limits come first of all: what they refuse costs nothing more, and is on the chain like any refusal."""
        try:
            await self._limits.enter(passage.caller)
        except BodyBrokerError as error:
            self._records.refused(passage, error)
            self.metrics.called(
                passage.operation.name, kind_of(passage.caller), error.code, time.perf_counter() - passage.began
            )
            raise

    def _leave(self, passage: Passage) -> None:
        if passage.counted:
            passage.counted = False
            self._limits.leave(passage.caller)

    async def drain(self) -> None:
        """Wait for every effect that has begun; called once no new call can enter."""
        while self._effects:
            await asyncio.wait(self._effects)

    async def _pass(self, passage: Passage) -> Answer:
        approval: Approval | None = None
        with self._refusing(passage):
            passage.check(self._rounds)
            asked = await self._decide(passage)
            require_there(passage.operation, self.configured)  # nobody is asked about what could not be done
            if asked is None:
                await self._records.decided(passage, durable=passage.operation.effect != "none")
            else:
                async with asyncio.timeout(self._timeout_s):
                    services = self._services.get(passage.row.server)
                    approval = await self.asking.open(passage, asked.ask, asked.facts, services)
        if approval is not None:
            return await self._await_people(passage, approval)
        return await self._tell(passage, await self._do(passage))

    async def _await_people(self, passage: Passage, approval: Approval) -> Answer:
        """Step 5: what people decide, and what came of it. A disconnect ends the waiting and nothing else."""
        passage.receipt = approval.receipt
        self._leave(passage)  # who waits for people keeps none of the asker's other calls out
        with self._ending(passage, lambda outcome: self._records.ended(passage, outcome, words=True)):
            return await self.asking.answer(passage, approval)

    async def authorise(self, approval: Approval, caller: Caller, given: Given) -> Perform:
        """What runs an approved call, once it has passed every step anew; its decision is durable when this returns.

        The real approval must make the policy allow it. What its session had read and done is as it was when it was asked for;
        roles and facts are those of now.

        Args:
            approval: Approved, and claimed by whoever calls this.
            caller: Its requester, as they stand now.
            given: The yeses it got.

        Raises:
            BodyBrokerError: What refuses it now.
        """
        passage = self._replayed(approval, caller)
        with self._refusing(passage):
            passage.check(self._rounds)
            passage.check_replayed(approval)
            await self._decide_approved(passage, approval, given)
            require_there(passage.operation, self.configured)
            await self._records.decided(passage, durable=True)
        return self._performing(passage)

    async def resume(self, approval: Approval) -> Perform:
        """What runs an approved call that an earlier attempt began, under the same key.

        Nothing is decided again: the decision of the attempt that began it is on the audit, and the effect may have happened under
        it. It is recorded once more, for what the effect writes to refer to.

        Raises:
            BodyBrokerError: It cannot be run here any more; whether it was done nobody knows.
        """
        passage = self._replayed(approval, caller_of(approval))
        passage.check(self._rounds)
        passage.check_replayed(approval)
        await self._records.decided(passage, durable=True, again=True)
        return self._performing(passage)

    def _replayed(self, approval: Approval, caller: Caller) -> Passage:
        found = self._approved.get(approval.tool)
        if found is None:
            raise UnknownTool(f"There is no tool {approval.tool} where the approved call was to run.")
        return Passage.replayed(approval, caller, self._row(*found))

    def _performing(self, passage: Passage) -> Perform:
        async def perform(progress: Progress) -> Json:
            passage.request = replace(passage.request, progress=progress)
            return await self._perform(passage)

        return perform

    async def _perform(self, passage: Passage) -> Json:
        outcome = "unfinished"
        try:
            result = await self._run(passage, self._call(passage))
            outcome = "ok"
        except BodyBrokerError as error:
            outcome = error.code
            raise
        finally:
            name, seconds = passage.operation.name, time.perf_counter() - passage.began
            self.metrics.called(name, kind_of(passage.caller), outcome, seconds)
        return {"result": result.model_dump(mode="json"), "outside": _has_outside(passage.operation, result)}

    async def _decide_approved(self, passage: Passage, approval: Approval, given: Given) -> None:
        """Step 4 at execution: the whole policy decides again, with the approval that was really given.

        Each rule that asks now is also counted for itself, among those that people were asked by.
        """
        question = self._question(passage)
        facts = await self._facts(passage, question._replace(approval=given))
        check_given(approval, self.policy, question._replace(facts=facts), given)
        self._sessions.record(passage.caller, passage.row.group)

    async def _decide(self, passage: Passage) -> _Asked | None:
        """Step 4: what the session has read, what the rules say, and who would have to be asked."""
        operation, caller = passage.operation, passage.caller
        passage.session = await self._sessions.enter(caller, fresh=passage.row.taint_gated)
        question = self._question(passage)
        facts = await self._facts(passage, question)
        decision = self.policy.decide(question._replace(facts=facts))
        if isinstance(decision, Allow):
            self._sessions.record(caller, passage.row.group)
            return None
        if isinstance(decision, Deny):
            raise denied(decision.rules, operation.name, caller.asker, why=await self._why(passage, decision))
        if not passage.session.known:
            raise not_known()
        return _Asked(decision, facts)

    async def _why(self, passage: Passage, decision: Deny) -> str | None:
        """Why the fact that is all a call is refused for does not hold."""
        explains = passage.operation.explains
        if explains is None or tuple(decision.rules) != (NEEDS_BUDGET,):
            return None
        return await explains(passage.arguments, passage.caller, self._services.get(passage.row.server))

    def _question(self, passage: Passage) -> Question:
        assert passage.session is not None, "the session is read before anything is decided"
        return Question(
            action=passage.operation.name,
            identities=chain_of(passage.caller),
            arguments=passage.values,
            tainted=passage.session.tainted,
            depth=passage.request.depth,
            history=passage.session.history,
        )

    async def _facts(self, passage: Passage, question: Question) -> frozenset[str]:
        """What the hub itself knows of this call: what its row finds out, and that a backend that is not there costs nothing."""
        operation = passage.operation
        facts: frozenset[str] = frozenset()
        if operation.needs and operation.needs not in self.configured:
            facts = frozenset({"within_budget"})
        if operation.establishes is None:
            return facts
        # Who is denied with every fact and with none is not looked up for, and told what no fact would change.
        if all(isinstance(self.policy.decide(question._replace(facts=f)), Deny) for f in (frozenset(FACTS), facts)):
            return frozenset(FACTS)
        services = self._services.get(passage.row.server)
        return facts | await operation.establishes(passage.arguments, passage.caller, services)

    async def _do(self, passage: Passage) -> Result:
        """Step 7: the operation itself. A disconnect cancels a read, never an effect once begun."""
        body = self._run(passage, self._call(passage))
        if passage.operation.effect == "none":
            return await body
        task = asyncio.get_running_loop().create_task(body)
        self._effects.add(task)
        task.add_done_callback(self._effects.discard)
        return await asyncio.shield(task)

    def _call(self, passage: Passage) -> Call:
        return Call(
            issuer=self._issuer,
            id=passage.id,
            operation=passage.operation,
            caller=passage.caller,
            cursors=self._cursors,
            progress=passage.request.progress,
            receipt=passage.receipt,
            tainted=passage.session.tainted if passage.session else True,
            depth=passage.request.depth,
            inputs=passage.inputs,
            key=passage.key,
            approval=passage.approval.id if passage.approval else None,
            basis=passage.approval.basis if passage.approval else None,
            hear=guarded(passage.request.hear, self._sessions, passage.caller, passage.operation.name),
            restarts=passage.request.restarts,
        )

    async def _run(self, passage: Passage, call: Call) -> Result:
        """The operation under its deadline; whatever goes wrong is recorded as the outcome of its decision."""

        def end(outcome: str) -> None:
            if outcome != "ok" or passage.operation.effect != "none" or passage.approval is not None:
                self._records.ended(passage, outcome)

        with span("hub.run", operation=passage.operation.name), self._ending(passage, end):
            async with asyncio.timeout(self._timeout_s):
                return await passage.operation.run(passage.arguments, call, self._services.get(passage.row.server))

    def _mapped(self, error: Exception, passage: Passage) -> BodyBrokerError:
        """What is told of an exception; what a client is asked in the middle of a call is sealed here."""
        if isinstance(error, AskClient) and error.state is not None:
            error.sealed = self._rounds.seal(passage.bound_to, error.state)
        return mapped(error, passage.operation.name, passage.id, self._timeout_s)

    async def _tell(self, passage: Passage, result: Result) -> Answer:
        """Step 8: what the session now has read is stored before the answer leaves."""
        outside = _has_outside(passage.operation, result)
        if outside:
            await self._sessions.taint(passage.caller, passage.operation.name)
        return Answer(call_id=passage.id, operation=passage.operation, result=result, outside=outside)

    async def _unknown(self, request: Request, caller: Caller, began: float) -> Answer:
        await self._limits.enter(caller)
        try:
            self._records.unknown(caller)
            self.metrics.called("unknown", kind_of(caller), UnknownTool.code, time.perf_counter() - began)
            raise UnknownTool(f"There is no {request.kind} of that name here.")
        finally:
            self._limits.leave(caller)


def _has_outside(operation: Operation, result: Result) -> bool:
    return operation.output == "outside" or (operation.output == "as_marked" and result.outside())
