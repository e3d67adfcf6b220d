"""Owns what the audit and the metrics are told of approvals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import orjson

from approvals.model import Approval, Standing, Subject, arguments_text
from body_broker.audit.auditor import Auditor
from body_broker.audit.record import Record
from body_broker.calls import Receipt
from body_broker.errors import BodyBrokerError, Detail


class Counts(Protocol):
    """What is counted of approvals; the hub's metrics are one."""

    def approval_asked(self, *, joined: bool) -> None:
        """People were asked, or a call joined a request that is open."""
        ...

    def approval_ended(self, outcome: Standing, waited_s: float) -> None:
        """People decided, or nobody did: approved, denied, expired or cancelled, so long after it was asked for."""
        ...


class Uncounted:
    """Where nobody counts: in commands that live for one line."""

    def approval_asked(self, *, joined: bool) -> None:
        """Nothing."""

    def approval_ended(self, outcome: Standing, waited_s: float) -> None:
        """Nothing."""


class Recorder:
    """Writes approvals onto the audit of this process; what it returns from is durable."""

    def __init__(self, auditor: Auditor) -> None:
        self._auditor = auditor

    async def asked(self, subject: Subject, approval_id: str, call: str | None) -> Receipt:
        """People are about to be asked; the arguments lie beside the record.

        Raises:
            Unavailable: The audit does not take it, and nobody may be asked.
        """
        receipt = self._auditor.add(
            Record(
                kind="asked",
                action=subject.tool,
                server=subject.server,
                requester=subject.requester,
                session=subject.sessions[0],
                verdict="ask",
                rules=tuple(each.rule for each in subject.requirements),
                depth=subject.depth,
                tainted=subject.tainted,
                call=call,
                details={"approval": approval_id, "fingerprint": subject.digest[:16]},
            ),
            arguments_text(subject.arguments).encode(),
        )
        await self._auditor.durable(receipt)
        return receipt

    async def moved(
        self,
        approval: Approval,
        verdict: str,
        *,
        by: str,
        said: str | None = None,
        details: Mapping[str, Detail] | None = None,
    ) -> Receipt:
        """An approval is about to be moved.

        Args:
            approval: Which.
            verdict: What becomes of it.
            by: Who moves it.
            said: Their words; they lie beside the record, where they can be erased.
            details: A few more facts.

        Raises:
            Unavailable: The audit does not take it, and it may not be moved.
        """
        receipt = self._add(approval, verdict, by, said, details or {})
        await self._auditor.durable(receipt)
        return receipt

    async def refused(
        self,
        approval: Approval | None,
        approval_id: str,
        error: BodyBrokerError,
        *,
        by: str,
        details: Mapping[str, Detail],
    ) -> None:
        """A vote was not counted, or nothing settled.

        Raises:
            Unavailable: The audit does not take it.
        """
        details = {**details, "code": error.code, "why": error.message}
        if approval is not None:
            receipt = self._add(approval, "refused", by, None, details)
        else:
            told = {"approval": approval_id, **details}
            receipt = self._auditor.add(Record(kind="approval", requester=by, verdict="refused", details=told))
        await self._auditor.durable(receipt)

    def _add(
        self, approval: Approval, verdict: str, by: str, said: str | None, details: Mapping[str, Detail]
    ) -> Receipt:
        return self._auditor.add(
            Record(
                kind="approval",
                action=approval.tool,
                server=approval.server,
                requester=by,
                verdict=verdict,
                rules=approval.rules,
                depth=approval.depth,
                tainted=approval.tainted,
                refers_to=approval.receipt,
                details={
                    "approval": approval.id,
                    "fingerprint": approval.fingerprint,
                    "asked_by": approval.requester,
                    **details,
                },
            ),
            orjson.dumps({"said": said}) if said else None,
        )
