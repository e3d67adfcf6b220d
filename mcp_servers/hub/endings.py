"""Owns what an approval that was not carried out is told as: who or what ended it, each with its own code and next step."""

from __future__ import annotations

from typing import cast

from approvals.model import Approval
from approvals.store import SERVICE
from body_broker.calls import Json
from body_broker.errors import (
    ApprovalCancelled,
    ApprovalDenied,
    ApprovalExpired,
    BodyBrokerError,
    OutcomeUnknown,
    Relayed,
)


def ended(approval: Approval) -> BodyBrokerError:
    """The error that tells how an approval ended, where it was not done; its code says who or what ended it."""
    told: dict[str, str | None] = {"approval": approval.id}
    match approval.standing:
        case "denied":
            why = f" They say: {approval.why}" if approval.why else " They gave no reason."
            return ApprovalDenied(
                f"A person refused {approval.tool}.{why}",
                details=told | {"reason": approval.why, "decided_by": approval.decided_by},
            )
        case "expired":
            said = "was not decided in time: nobody answered"
            if approval.state == "approved":
                said = "was approved, but nothing ran it in time"
            elif any(vote.verdict == "approve" for vote in approval.votes):
                said = "did not get every yes that it needs in time"
            return ApprovalExpired(f"{approval.tool} {said}. That is not a refusal.", details=told)
        case "cancelled":
            why = f": {approval.why}" if approval.why else "."
            if approval.state == "cancelled" and approval.decided_by == SERVICE:
                return ApprovalCancelled(
                    f"The request for {approval.tool} was ended before people decided{why}",
                    next_step="Make the call again if it is still wanted: it is then asked for as it is now.",
                    details=told | {"reason": approval.why},
                )
            return ApprovalCancelled(
                f"The request for {approval.tool} was taken back{why}", details=told | {"reason": approval.why}
            )
        case "failed":
            body: Json = approval.error or {}
            return Relayed(cast("dict[str, Json]", body) | told)
        case _:
            return OutcomeUnknown(
                f"{approval.tool} was approved and begun, and whether it was done is not known: a person must settle it.",
                details=told | {"effect": approval.tool},
            )


def found_by(approval: Approval) -> str:
    """`, as person:anna found`, where it was a person who said that it was done; else nothing."""
    finding: Json = approval.finding
    if not finding or finding.get("verdict") != "succeeded":
        return ""
    return f", as {finding.get('by')} found"
