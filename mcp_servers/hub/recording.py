"""Owns what the audit is told of a call: its decision, its refusal, its outcome."""

from __future__ import annotations

from typing import Literal

import orjson

from body_broker.audit.auditor import Auditor
from body_broker.audit.record import Record
from body_broker.calls import Caller, Json, Receipt
from body_broker.errors import BodyBrokerError, Unavailable, UnknownTool
from body_broker.telemetry import get_logger
from body_broker.text import new_id
from body_broker.tracing import span
from mcp_servers.hub.passage import Passage

log = get_logger(__name__)


class Recorder:
    """Writes the gate's records."""

    def __init__(self, auditor: Auditor) -> None:
        self._auditor = auditor

    async def decided(self, passage: Passage, *, durable: bool, again: bool = False) -> None:
        """The decision to run a call; with `durable` it is committed when this returns, `again` is one taken before its first attempt."""
        passage.receipt = self._add(passage, "decision", "allow", body=passage.body(), again=again)
        if durable:
            with span("hub.record"):  # the chain's own writer commits it, together with what others decided meanwhile
                await self._auditor.durable(passage.receipt)

    def refused(self, passage: Passage, error: BodyBrokerError) -> None:
        """Refusals of every step are on the chain too."""
        rules = error.details.get("rules")
        body = passage.body() if passage.arguments else None
        self._add(passage, "refusal", error.code, rules=tuple(rules) if isinstance(rules, list) else (), body=body)

    def ended(self, passage: Passage, outcome: str, *, words: bool = False) -> None:
        """The second record; with `words` the agent's own ones beside it. What happened is not told as a failure because its outcome could not be queued."""
        # What people were asked lies with their request; the words of this call, which may differ, with its own end.
        body = orjson.dumps({"@reason": passage.reason}) if words and passage.reason is not None else None
        try:
            self._add(passage, "outcome", outcome, body=body)
        except Unavailable:
            log.exception("outcome_not_recorded", operation=passage.operation.name, call=passage.id)

    def unknown(self, caller: Caller) -> None:
        """A call of something that is not here."""
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

    def _add(
        self,
        passage: Passage,
        kind: Literal["decision", "outcome", "refusal"],
        verdict: str,
        *,
        rules: tuple[str, ...] = (),
        body: bytes | None = None,
        again: bool = False,
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
                details=_details(passage, again=again),
            ),
            body,
        )


def _details(passage: Passage, *, again: bool) -> dict[str, Json]:
    if passage.approval is not None:
        return {"approval": passage.approval.id} | ({"again": True} if again else {})
    return {} if passage.key is None else {"key": passage.key}
