"""Owns what an approval that was not carried out is told as: who or what ended it, each with its own code and next step."""

from __future__ import annotations

from typing import cast

from approvals.model import Approval
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
            late = approval.decided_by is not None and any(vote.verdict == "approve" for vote in approval.votes)
            said = "was approved, but nothing ran it in time" if late else "was not decided in time: nobody answered"
            return ApprovalExpired(f"{approval.tool} {said}. That is not a refusal.", details=told)
        case "cancelled":
            why = f": {approval.why}" if approval.why else "."
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
