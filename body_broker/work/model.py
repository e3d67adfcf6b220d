"""Owns the words of durable work: its states, where it came from, what a reader is shown, and the JSON it may carry."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import orjson

from body_broker.calls import Call, Json, Receipt
from body_broker.errors import BadInput, Conflict, TooLarge

State = Literal["waiting", "queued", "running", "unknown", "succeeded", "failed", "cancelled", "expired"]
FINAL: frozenset[State] = frozenset({"succeeded", "failed", "cancelled", "expired"})
"""States that nothing leaves. `unknown` is not among them: a person settles it."""

Verdict = Literal["succeeded", "failed", "again"]
"""What a person found out about an unknown effect: it happened, it did not and the work is dropped, or is done again."""

CHANNEL = "work"
"""The NOTIFY channel; payloads are `ready KIND` and `cancel ID`."""
JSON_BYTES_MAX = 4 * 1024 * 1024
# A NUL that is escaped in JSON, and not a backslash that happens to stand before u0000: jsonb holds no NUL.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


class LeaseLost(Conflict):
    """This run no longer owns its work: somebody else took it over. Whatever it still does leaves no trace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where work came from: what later calls made on its behalf are decided on.

    Attributes:
        chain: Principals, the asker first; the asker owns the work.
        session: The session of the call that asked for it.
        tainted: Whether that session had read text from outside.
        depth: How many calls deep the call was that asked for it.
        receipt: The decision's place on the audit; an effect's transaction stores it.
        sessions: The call's session, then those above it; empty where no call asked for it, and in work older than this was kept.
        tokens: Ids of the tokens that the call came with: one that is revoked gets nothing more done.
        trace: Where in its trace the call was, where it was in one: its work goes on there. It decides nothing.
    """

    chain: tuple[str, ...]
    session: str
    tainted: bool = False
    depth: int = 0
    receipt: Receipt | None = None
    sessions: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    trace: str | None = None

    @classmethod
    def of(cls, call: Call) -> Origin:
        """The origin of work that this call asks for."""
        caller = call.caller
        return cls(
            chain=caller.chain,
            session=caller.session,
            tainted=call.tainted,
            depth=call.depth,
            receipt=call.receipt,
            sessions=caller.sessions,
            tokens=tuple(each for each in (caller.token_id, caller.asker_token_id) if each is not None),
        )

    @property
    def asker(self) -> str:
        """Who asked, and so owns the work."""
        return self.chain[0]

    def body(self) -> Json:
        """The JSON form."""
        receipt = self.receipt and {"writer": self.receipt.writer, "sequence": self.receipt.sequence}
        traced = {} if self.trace is None else {"trace": self.trace}
        return traced | {
            "chain": list(self.chain),
            "session": self.session,
            "tainted": self.tainted,
            "depth": self.depth,
            "receipt": receipt,
            "sessions": list(self.sessions),
            "tokens": list(self.tokens),
        }

    @classmethod
    def parse(cls, text: str) -> Origin:
        """The origin from its stored JSON."""
        body = orjson.loads(text)
        receipt = body["receipt"]
        return cls(
            chain=tuple(body["chain"]),
            session=body["session"],
            tainted=body["tainted"],
            depth=body["depth"],
            receipt=receipt and Receipt(**receipt),
            sessions=tuple(body.get("sessions", ())),
            tokens=tuple(body.get("tokens", ())),
            trace=body.get("trace"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkSummary:
    """One piece of work without what it was given and what it gave; times are the database's, in UTC.

    Attributes:
        run_at: It starts no earlier.
        expires_at: It starts no later; None is never.
        attempts: Runs begun; a run handed back by a stopping worker does not count.
        cancel_requested: Its owner wants it stopped; a running one may still be on its way.
        waits_for: What parked work waits for, or waited for when it was cancelled or expired: the key of its `Park`. None for all other
            work, also for what waits for its `release`.
        open_effect: The effect that may or may not have happened, while running or unknown.
        progress: `done`, `total` and `message`, as last reported.
        error: The wire body of what last went wrong: code, message, retryable, next_step. Never an exception's text.
        verdicts: How people settled it when it was unknown: by, verdict, note, effect, at.
    """

    id: str
    ordinal: int
    kind: str
    owner: str
    origin: Origin
    state: State
    priority: int
    run_at: datetime
    expires_at: datetime | None
    attempts: int
    attempts_max: int
    cancel_requested: bool
    open_effect: str | None
    waits_for: str | None
    progress: Json
    error: Json
    verdicts: list[Json]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkItem(WorkSummary):
    """One piece of work, whole."""

    input: Json
    result: Json


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a listing; `before` is where the next one goes on, None at the end."""

    items: list[WorkSummary]
    before: int | None


def encode(value: Json, what: str) -> str:
    """The JSON text of a value that PostgreSQL can hold.

    Args:
        value: Any JSON value.
        what: What it is, for the message.

    Raises:
        BadInput: It is not JSON, or holds a NUL character.
        TooLarge: It is longer than 4 MiB.
    """
    try:
        text = orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        raise BadInput(f"The {what} of the work is not JSON.") from error
    if len(text) > JSON_BYTES_MAX:
        raise TooLarge(
            f"The {what} of the work has {len(text)} bytes; {JSON_BYTES_MAX} are the limit.",
            next_step="Keep what is large in a store of its own and name it here.",
        )
    if _NUL.search(text):
        raise BadInput(f"The {what} of the work holds a NUL character.")
    return text.decode()


def decode(text: str | None) -> Json:
    """The JSON value of stored text; None for NULL."""
    return None if text is None else orjson.loads(text)
