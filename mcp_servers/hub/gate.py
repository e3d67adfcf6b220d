"""Owns the one path of every call: who, what, guard, may it, ask, record, do, tell. Nothing runs an operation but this."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Literal

from body_broker.audit.auditor import Auditor
from body_broker.audit.record import Record
from body_broker.calls import (
    Call,
    Caller,
    CursorSeal,
    Issuer,
    Operation,
    Receipt,
    Result,
    Room,
)
from body_broker.errors import (
    ApprovalRequired,
    BodyBrokerError,
    DeadlineExceeded,
    Denied,
    InternalError,
    NotConfigured,
    Unauthenticated,
    Unavailable,
    UnknownTool,
)
from body_broker.inputs import AskClient
from body_broker.settings import PREFIX, Settings
from body_broker.storage.postgres import LOST as POSTGRES_LOST
from body_broker.storage.redis import LOST as REDIS_LOST
from body_broker.telemetry import get_logger
from body_broker.text import new_id
from mcp_servers.hub.limits import Limits
from mcp_servers.hub.metrics import Metrics
from mcp_servers.hub.passage import Passage, Row
from mcp_servers.hub.requests import Answer, Request, kind_of
from mcp_servers.hub.rounds import Rounds
from mcp_servers.hub.sessions import Sessions
from policies.decision import FACTS, Allow, Ask, Deny, Question, chain_of
from policies.engine import Policy

log = get_logger(__name__)

_STORES_LOST = (*POSTGRES_LOST, *REDIS_LOST)

# Groups and modifiers whose rules read taint: there the session is read from the store, not from memory (DESIGN.md §4).
_TAINT_GATED_GROUPS = frozenset({"queued", "security_scan", "write", "admin_change"})
_TAINT_GATED_MODIFIERS = frozenset({"external", "destructive"})


class Gate:
    """The gate of one process.

    Args:
        rooms: The servers served here; a row that is not in them is unknown.
        policy: Decides, over the catalogue of every row there is.
        services: What each room's functions get as their third argument, by server name.
        auditor: Takes the decision before any effect.
        sessions: Taint and history.
        limits: Rate and concurrency.
        cursors: Seals cursors.
        rounds: Reads and seals what clients are asked in the middle of a call.
        metrics: Counts.
        configured: The settings that are set, for rows with `needs`.
        call_timeout_s: How long one operation may run.
    """

    def __init__(
        self,
        *,
        rooms: Sequence[Room],
        policy: Policy,
        services: Mapping[str, object],
        auditor: Auditor,
        sessions: Sessions,
        limits: Limits,
        cursors: CursorSeal,
        rounds: Rounds,
        metrics: Metrics,
        configured: frozenset[str] = frozenset(),
        call_timeout_s: float = 60,
    ) -> None:
        self.rooms, self.policy, self.metrics, self.configured = tuple(rooms), policy, metrics, configured
        self._rows = {(o.kind, o.name): self._row(o, room.name) for room in rooms for o in room.operations()}
        self._services, self._auditor = services, auditor
        self._sessions, self._limits, self._cursors = sessions, limits, cursors
        self._rounds, self._timeout_s = rounds, call_timeout_s
        self._issuer = Issuer("gate")
        self._effects: set[asyncio.Task[Result]] = set()

    def _row(self, operation: Operation, server: str) -> Row:
        entry = self.policy.catalogue.entries[operation.name]
        gated = (
            operation.effect != "none"
            or entry.group in _TAINT_GATED_GROUPS
            or not entry.modifiers.isdisjoint(_TAINT_GATED_MODIFIERS)
        )
        return Row(operation, server, entry.group, gated)

    async def run(self, request: Request) -> Answer:
        """The answer to one request, or the error that refused it; the same path for tools, resources, prompts and nested calls.

        Raises:
            BodyBrokerError: Whatever refused or failed; anything else is mapped before it leaves the gate.
        """
        if request.caller is None:
            self.metrics.refused("no_identity")
            raise Unauthenticated("The call carries no identity.")
        began = time.perf_counter()
        row = self._rows.get((request.kind, request.name))
        if row is None:
            return await self._unknown(request, request.caller, began)
        passage = Passage(request, new_id("call"), began, request.caller, row)
        await self._enter(passage)
        self.metrics.open_calls.inc()
        outcome = "ok"
        try:
            return await self._pass(passage)
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
            self.metrics.open_calls.dec()
            self._limits.leave(passage.caller)
            self.metrics.called(passage.operation.name, kind_of(passage.caller), outcome, time.perf_counter() - began)

    async def _enter(self, passage: Passage) -> None:
        """Step 4's limits come first of all: what they refuse costs nothing more, and is on the chain like any refusal."""
        try:
            await self._limits.enter(passage.caller)
        except BodyBrokerError as error:
            self._refused(passage, error)
            self.metrics.called(
                passage.operation.name, kind_of(passage.caller), error.code, time.perf_counter() - passage.began
            )
            raise

    async def drain(self) -> None:
        """Wait for every effect that has begun; called once no new call can enter."""
        while self._effects:
            await asyncio.wait(self._effects)

    async def _pass(self, passage: Passage) -> Answer:
        try:
            passage.check(self._rounds)
            await self._decide(passage)
            self._require_configured(passage.operation.needs)
            await self._record(passage)
        except Exception as error:
            told = self._mapped(error, passage)
            self._refused(passage, told)
            if told is error:
                raise
            raise told from error
        return await self._tell(passage, await self._do(passage))

    async def _decide(self, passage: Passage) -> None:
        """Steps 4 and 5: what the session has read, what the rules say, and who would have to be asked."""
        operation, caller = passage.operation, passage.caller
        passage.session = await self._sessions.enter(caller, fresh=passage.row.taint_gated)
        question = Question(
            action=operation.name,
            identities=chain_of(caller),
            arguments=passage.values,
            tainted=passage.session.tainted,
            depth=passage.request.depth,
            history=passage.session.history,
        )
        decision = self.policy.decide(question._replace(facts=await self._facts(passage, question)))
        if isinstance(decision, Allow):
            self._sessions.record(caller, passage.row.group)
            return
        if isinstance(decision, Deny):
            rules = list(decision.rules)
            raise Denied(f"{operation.name} is not allowed here by rule {', '.join(rules)}.", details={"rules": rules})
        self._require_configured(operation.needs)  # nobody is asked about what could not be done
        raise _approval_required(operation.name, decision)

    async def _facts(self, passage: Passage, question: Question) -> frozenset[str]:
        """What the hub itself knows of this call: what its row finds out, and that a backend that is not there costs nothing."""
        operation = passage.operation
        facts: frozenset[str] = frozenset()
        if operation.needs and operation.needs not in self.configured:
            facts = frozenset({"within_budget"})
        if operation.establishes is None:
            return facts
        # Who is denied with every fact and with none is not looked up for.
        if all(isinstance(self.policy.decide(question._replace(facts=f)), Deny) for f in (frozenset(FACTS), facts)):
            return facts
        services = self._services.get(passage.row.server)
        return facts | await operation.establishes(passage.arguments, passage.caller, services)

    def _require_configured(self, setting: str | None) -> None:
        if setting and setting not in self.configured:
            raise _not_configured(setting)

    async def _record(self, passage: Passage) -> None:
        """Step 6: the decision is on the chain, and durable before an effect begins."""
        passage.receipt = self._add(passage, "decision", "allow", (), passage.body())
        if passage.operation.effect != "none":
            await self._auditor.durable(passage.receipt)

    async def _do(self, passage: Passage) -> Result:
        """Step 7: the operation itself. A disconnect cancels a read, never an effect once begun."""
        operation = passage.operation
        call = Call(
            issuer=self._issuer,
            id=passage.id,
            operation=operation,
            caller=passage.caller,
            cursors=self._cursors,
            progress=passage.request.progress,
            receipt=passage.receipt,
            tainted=passage.session.tainted if passage.session else True,
            depth=passage.request.depth,
            inputs=passage.inputs,
        )
        body = self._run(passage, call)
        if operation.effect == "none":
            return await body
        task = asyncio.get_running_loop().create_task(body)
        self._effects.add(task)
        task.add_done_callback(self._effects.discard)
        return await asyncio.shield(task)

    async def _run(self, passage: Passage, call: Call) -> Result:
        """The operation under its deadline; whatever goes wrong is recorded as the outcome of its decision."""
        outcome = "ok"
        try:
            async with asyncio.timeout(self._timeout_s):
                return await passage.operation.run(passage.arguments, call, self._services.get(passage.row.server))
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except Exception as error:
            told = self._mapped(error, passage)
            outcome = told.code
            raise told from error
        finally:
            if outcome != "ok" or passage.operation.effect != "none":
                self._record_outcome(passage, outcome)

    def _mapped(self, error: Exception, passage: Passage) -> BodyBrokerError:
        """What is told of an exception; the one place where something unexpected is caught."""
        name = passage.operation.name
        if isinstance(error, AskClient) and error.state is not None:
            error.sealed = self._rounds.seal(passage.bound_to, error.state)
        if isinstance(error, BodyBrokerError):
            return error
        if isinstance(error, TimeoutError):
            return DeadlineExceeded(f"{name} took longer than {self._timeout_s:g} s.")
        if isinstance(error, _STORES_LOST):
            log.warning("store_lost", operation=name, call=passage.id, error=type(error).__name__)
            return Unavailable("A store that this call needs is away.", details={"component": "stores"})
        log.error("operation_failed", operation=name, call=passage.id, exc_info=error)
        return InternalError(f"{name} failed inside the hub.", details={"call_id": passage.id})

    def _record_outcome(self, passage: Passage, outcome: str) -> None:
        """The second record. An effect that happened is not told as a failure because its outcome could not be queued."""
        try:
            self._add(passage, "outcome", outcome, (), None)
        except Unavailable:
            log.exception("outcome_not_recorded", operation=passage.operation.name, call=passage.id)

    async def _tell(self, passage: Passage, result: Result) -> Answer:
        """Step 8: what the session now has read is stored before the answer leaves."""
        output = passage.operation.output
        outside = output == "outside" or (output == "as_marked" and result.outside())
        if outside:
            await self._sessions.taint(passage.caller, passage.operation.name)
        return Answer(call_id=passage.id, operation=passage.operation, result=result, outside=outside)

    def _refused(self, passage: Passage, error: BodyBrokerError) -> None:
        """Refusals of every step are on the chain too; an Ask as `asked`."""
        rules = error.details.get("rules")
        kind = "asked" if isinstance(error, ApprovalRequired) else "refusal"
        body = passage.body() if passage.arguments else None
        self._add(passage, kind, error.code, tuple(rules) if isinstance(rules, list) else (), body)

    def _add(
        self,
        passage: Passage,
        kind: Literal["decision", "outcome", "refusal", "asked"],
        verdict: str,
        rules: tuple[str, ...],
        body: bytes | None,
    ) -> Receipt:
        session = passage.session
        return self._auditor.add(
            Record(
                kind=kind,
                action=passage.operation.name,
                server=passage.row.server,
                requester=passage.caller.requester,
                session=passage.caller.session,
                verdict=verdict,
                rules=rules,
                depth=passage.request.depth,
                tainted=bool(session and session.tainted),
                call=passage.id,
                refers_to=passage.receipt if kind == "outcome" else None,
            ),
            body,
        )

    async def _unknown(self, request: Request, caller: Caller, began: float) -> Answer:
        await self._limits.enter(caller)
        try:
            self._auditor.add(
                Record(
                    kind="refusal",
                    action="unknown",
                    server="",
                    requester=caller.requester,
                    session=caller.session,
                    verdict=UnknownTool.code,
                    call=new_id("call"),
                ),
            )
            self.metrics.called("unknown", kind_of(caller), UnknownTool.code, time.perf_counter() - began)
            raise UnknownTool(f"There is no {request.kind} of that name here.")
        finally:
            self._limits.leave(caller)


def _not_configured(setting: str) -> NotConfigured:
    field = Settings.model_fields.get(setting.removeprefix(PREFIX).lower())
    if field is None:
        return NotConfigured(
            f"This version has no backend for this tool; one that has it is configured by {setting}.",
            next_step="Go on without it: nothing that can be set today brings it.",
            details={"setting": setting},
        )
    return NotConfigured(
        f"The backend of this tool is not configured: {setting} is not set.",
        next_step=f"Ask the people who run this hub to set {setting} and restart it: {field.description}",
        details={"setting": setting},
    )


def _approval_required(name: str, decision: Ask) -> ApprovalRequired:
    rules = [r.rule for r in decision.requirements]
    groups = sorted({g for r in decision.requirements for g in r.approvers})
    return ApprovalRequired(
        f"{name} needs an approval by {' and '.join(groups) or 'a person'} (rule {', '.join(rules)}), and this hub cannot ask for one yet.",
        details={"rules": rules, "approvers": groups},
    )
