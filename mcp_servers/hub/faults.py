"""Owns what is told of an exception inside a call, whatever it was: the one place where something unexpected is caught."""

from __future__ import annotations

from collections.abc import Sequence

from body_broker.calls import Operation
from body_broker.errors import (
    BodyBrokerError,
    Conflict,
    DeadlineExceeded,
    Denied,
    Detail,
    InternalError,
    NotConfigured,
    Unavailable,
)
from body_broker.settings import PREFIX, Settings
from body_broker.storage.postgres import LOST as POSTGRES_LOST
from body_broker.storage.redis import LOST as REDIS_LOST
from body_broker.telemetry import get_logger

log = get_logger(__name__)

STORES_LOST = (*POSTGRES_LOST, *REDIS_LOST)
"""What a store that went away raises."""
NEEDS_BUDGET = "spend-needs-budget"


def mapped(error: Exception, operation: str, call_id: str, timeout_s: float) -> BodyBrokerError:
    """What is told of an exception of this operation: an error of ours as it is, nothing of another's text."""
    if isinstance(error, BodyBrokerError):
        return error
    if isinstance(error, TimeoutError):
        return DeadlineExceeded(f"{operation} took longer than {timeout_s:g} s.")
    if isinstance(error, STORES_LOST):
        return stores_away(error, operation=operation, call=call_id)
    log.error("operation_failed", operation=operation, call=call_id, exc_info=error)
    return InternalError(f"{operation} failed inside the hub.", details={"call_id": call_id})


def stores_away(error: BaseException, **about: str) -> Unavailable:
    """What is told of a store that went away; logged with what it was `about`."""
    log.warning("store_lost", error=type(error).__name__, **about)
    return Unavailable("A store that this call needs is away.", details={"component": "stores"})


def not_known() -> Unavailable:
    """What is told of a call that people would be asked for, while what its session has read cannot be looked up.

    Asked for as tainted, it would be another call than the same one a moment later of a session that is clean: asked for twice, and done twice.
    """
    return Unavailable(
        "What this session has read and done cannot be looked up now, and this call depends on it.",
        details={"component": "stores"},
    )


def denied(rules: Sequence[str], operation: str, asker: str, *, why: str | None = None) -> Denied:
    """The refusal of a call by these rules; `why` says to the asker alone what kept the fact from holding that a rule asked for."""
    details: dict[str, Detail] = {"rules": list(rules)}
    if tuple(rules) == (NEEDS_BUDGET,):
        said = (
            why or f"What {asker}, or everybody in that tier, may spend today is used up; it begins anew at 00:00 UTC."
        )
        return Denied(
            f"{operation} would cost money (rule {NEEDS_BUDGET}). {said}",
            next_step="An engine without a price still answers: name it, such as model=silver, where one is configured."
            " `body-broker status` says what today has cost; the caps are in models.toml ([caps]).",
            details=details,
        )
    return Denied(f"{operation} is not allowed here by rule {', '.join(rules)}.", details=details)


def not_configured(setting: str) -> NotConfigured:
    """The refusal of a call whose backend is not set up."""
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


def require_there(operation: Operation, configured: frozenset[str]) -> None:
    """Return where an operation can be run here at all.

    Raises:
        NotConfigured: The setting that it needs is not among those that are set.
        Conflict: It is withheld until people have looked at what it is now.
    """
    if operation.needs and operation.needs not in configured:
        raise not_configured(operation.needs)
    if operation.withheld is None:
        return
    raise Conflict(
        f"{operation.name} is withheld: {operation.withheld}",
        next_step="Use another tool, or ask the people who run this hub: they are shown the difference and decide.",
        details={"withheld": operation.name},
    )
