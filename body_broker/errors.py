"""Owns the one hierarchy of errors and what each says on the wire; knows no protocol and never repeats another exception's text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

Detail = str | int | float | bool | list[str] | None


class BodyBrokerError(Exception):
    """An expected failure that a caller may be told about.

    The message is written by us, for the caller: what happened. It never holds the text of another exception, a secret or a
    path; the cause stays in `__cause__` for the log.

    Args:
        message: What happened, one sentence.
        next_step: What the caller can do, where the class's own advice is too general.
        retry_after_s: Seconds after which the same call may succeed.
        details: Facts a program can use (rule names, field names, limits), all of our own making.
    """

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False
    http_status: ClassVar[int] = 500
    advice: ClassVar[str] = "Tell the people who run this hub the call id; the log has the cause."

    def __init__(
        self,
        message: str,
        *,
        next_step: str | None = None,
        retry_after_s: float | None = None,
        details: Mapping[str, Detail] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step or self.advice
        self.retry_after_s = retry_after_s
        self.details: dict[str, Detail] = dict(details or {})


class InternalError(BodyBrokerError):
    """A fault of ours; the caller learns only that it happened."""


class Unauthenticated(BodyBrokerError):
    """No identity, or one that does not hold."""

    code = "unauthenticated"
    http_status = 401
    advice = "Send a valid token: `body-broker token issue` makes one; over stdio set BODY_BROKER_TOKEN or pass --as."


class Denied(BodyBrokerError):
    """The policy refused; `details["rules"]` names the rules."""

    code = "denied"
    http_status = 403
    advice = (
        "Do not repeat the call. `body-broker policy explain` shows the rule; ask for another role or use another tool."
    )


class ApprovalRequired(BodyBrokerError):
    """The policy would allow the call with an approval, and nobody can be asked for it this way."""

    code = "approval_required"
    http_status = 403
    advice = "Make it as a tool call: only those are put to people."


class ApprovalPending(BodyBrokerError):
    """People were asked and have not decided yet; `details["approval"]` is its id. The call runs by itself after their yes."""

    code = "approval_pending"
    retryable = True
    http_status = 202
    advice = (
        "Go on with something else. Repeat the very same call later, or read get_approval: you join the same request, "
        "and get the result once it is there."
    )


class ApprovalDenied(Denied):
    """A person said no; `details["reason"]` is why, where they said it."""

    code = "approval_denied"
    advice = "A person decided this. Do not ask for the same again; tell whoever you work for, and take the reason into account."


class ApprovalExpired(BodyBrokerError):
    """Nobody decided in time, or nothing ran it in time. That is not a refusal."""

    code = "approval_expired"
    http_status = 410
    advice = "Nobody refused it: if it is still wanted, make the call again, at a time when somebody is there."


class ApprovalCancelled(BodyBrokerError):
    """The request was taken back before it was carried out; `details["reason"]` says by whom or what."""

    code = "approval_cancelled"
    http_status = 409
    advice = "Make the call again if it is still wanted."


class NotFound(BodyBrokerError):
    """Nothing by that name is here for this caller; also what a forbidden reference gets."""

    code = "not_found"
    http_status = 404
    advice = "Check the id, or list what is there."


class UnknownTool(NotFound):
    """No tool, resource or prompt of that name."""

    code = "unknown_tool"
    advice = "Call tools/list for the names you may use."


class BadInput(BodyBrokerError):
    """The arguments do not fit; `details["problems"]` names each place."""

    code = "bad_input"
    http_status = 400
    advice = "Correct the arguments as the input schema says and call again."


class InputRequired(BodyBrokerError):
    """The call needs an answer of its client, and this client cannot be asked; `details["needs"]` names what for."""

    code = "input_required"
    http_status = 400
    advice = "Make the call with a client of MCP 2026-07-28 that declares it can be asked for what `needs` names."


class TooLarge(BadInput):
    """More than the stated limit."""

    code = "too_large"
    http_status = 413
    advice = "Send less at once."


class Conflict(BodyBrokerError):
    """Somebody else changed it first, or it exists with other content."""

    code = "conflict"
    http_status = 409
    advice = "Read the present state and decide again."


class RateLimited(BodyBrokerError):
    """More calls than this principal may make."""

    code = "rate_limited"
    retryable = True
    http_status = 429
    advice = "Wait as long as retry_after_s says, then repeat the call."


class TooBusy(RateLimited):
    """More calls at the same time than this principal may have open."""

    code = "too_busy"
    advice = "Wait for a call of yours to end, then repeat this one."


class Unavailable(BodyBrokerError):
    """Something this call needs is down; `details["component"]` names it."""

    code = "unavailable"
    retryable = True
    http_status = 503
    advice = "Repeat the call later; /readyz says which part is down."


class Draining(Unavailable):
    """This hub is stopping and takes no new calls."""

    code = "draining"
    advice = "Repeat the call: another hub, or this one after its restart, will take it."


class DeadlineExceeded(BodyBrokerError):
    """The call took longer than it may."""

    code = "deadline_exceeded"
    retryable = True
    http_status = 504
    advice = "Repeat with a smaller request, or start it as a job where the tool offers one."


class OutcomeUnknown(BodyBrokerError):
    """An effect that must not be repeated may or may not have happened; `details["effect"]` names it."""

    code = "outcome_unknown"
    advice = "Do not repeat it: a person finds out whether it happened and settles it."


class NotConfigured(BodyBrokerError):
    """The backend of this tool is not set up; `details["setting"]` names the setting."""

    code = "not_configured"
    http_status = 501
    advice = "Ask the people who run this hub to configure it."


class MisdirectedRequest(BodyBrokerError):
    """The Host or Origin header is not one this hub answers to."""

    code = "misdirected_request"
    http_status = 421
    advice = (
        "Use a listed host, or have the operator add it to BODY_BROKER_ALLOWED_HOSTS or set BODY_BROKER_PUBLIC_URL."
    )


class Relayed(BodyBrokerError):
    """What went wrong where the call really ran, told again as it was told there.

    Args:
        body: The wire body that `WireError.body` made.
    """

    code = "relayed"

    def __init__(self, body: Mapping[str, Detail]) -> None:
        known = ("code", "message", "retryable", "next_step", "retry_after_s")
        wait = body.get("retry_after_s")
        super().__init__(
            str(body.get("message", "The call failed.")),
            next_step=str(body["next_step"]) if body.get("next_step") else None,
            retry_after_s=float(wait) if isinstance(wait, int | float) else None,
            details={name: value for name, value in body.items() if name not in known},
        )
        self.told_code = str(body.get("code", "internal"))
        self.told_retryable = body.get("retryable") is True


class StartError(BodyBrokerError):
    """The process cannot start as configured; never sent to a client."""

    code = "start"
    advice = "Correct what the message names and start again."


class SettingsError(StartError):
    """A setting is unknown, missing or malformed."""

    code = "settings"


class PolicyError(StartError):
    """The policies cannot be loaded; nothing is served under a policy that was not understood."""

    code = "policy"


class SchemaTooNew(StartError):
    """The database was migrated by a newer version of this program."""

    code = "schema_too_new"
    advice = "Upgrade body-broker to the version that wrote the database, or point it at another database."


class StoreStartError(StartError):
    """The embedded stores did not start."""

    code = "stores"


@dataclass(frozen=True, slots=True)
class WireError:
    """What a client is told of an error: the same facts over MCP, HTTP and the terminal."""

    code: str
    message: str
    retryable: bool
    next_step: str
    retry_after_s: float | None
    details: dict[str, Detail]
    http_status: int

    def body(self) -> dict[str, object]:
        """The JSON form: code, message, retryable, next_step, and what else is known."""
        found: dict[str, object] = {
            "code": self.code,
            "message": self.message,
            "retryable": self.retryable,
            "next_step": self.next_step,
        }
        if self.retry_after_s is not None:
            found["retry_after_s"] = round(self.retry_after_s, 3)
        return found | self.details

    def text(self) -> str:
        """One line for people and models."""
        return f"{self.code}: {self.message} {self.next_step}"


def on_the_wire(error: BaseException) -> WireError:
    """The one wire map: an error of ours as it is, anything else as `internal` without a word of its text."""
    if not isinstance(error, BodyBrokerError):
        error = InternalError("The hub failed while answering.")
    relayed = isinstance(error, Relayed)
    return WireError(
        code=error.told_code if relayed else error.code,
        message=error.message,
        retryable=error.told_retryable if relayed else error.retryable,
        next_step=error.next_step,
        retry_after_s=error.retry_after_s,
        details=error.details,
        http_status=error.http_status,
    )
