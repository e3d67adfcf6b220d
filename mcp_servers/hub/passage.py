"""Owns one request on its way through the gate: its row, its one normalised dict of arguments, and what each step found."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import orjson
from pydantic import ValidationError

from approvals.model import REASON_MAX, Approval, arguments_text
from body_broker.calls import Arguments, Caller, Json, Operation, Receipt
from body_broker.errors import BadInput, Conflict
from body_broker.inputs import NO_INPUTS, Inputs
from body_broker.text import clean, digest, new_id
from mcp_servers.hub.completing import completion_of
from mcp_servers.hub.guard import clean_arguments
from mcp_servers.hub.requests import Request
from mcp_servers.hub.rounds import Rounds
from mcp_servers.hub.sessions import SessionState


class Row(NamedTuple):
    """One served operation and what the gate must know of its classification."""

    operation: Operation
    server: str
    group: str
    taint_gated: bool
    reasoned: bool = False
    """Whether its callers may say why, to the people who are asked."""
    asked: bool = False
    """Whether people may be asked for it: then its client may be shown where they decide."""


@dataclass(slots=True)
class Passage:
    """One request on its way through the gate; each step adds what it found."""

    request: Request
    id: str
    began: float
    caller: Caller
    row: Row
    arguments: Arguments | None = None
    values: dict[str, Json] = field(default_factory=dict[str, Json])
    session: SessionState | None = None
    receipt: Receipt | None = None
    inputs: Inputs = NO_INPUTS
    reason: str | None = None
    approval: Approval | None = None
    """The approval under which it runs, not one that it waits for."""
    counted: bool = True
    """Whether it counts among its asker's open calls; one that waits for people does not."""

    @classmethod
    def replayed(cls, approval: Approval, caller: Caller, row: Row) -> Passage:
        """An approved call, its session as it was when it was asked for."""
        request = Request(
            name=approval.tool, kind="tool", arguments=approval.values(), caller=caller, depth=approval.depth
        )
        passage = cls(request, new_id("call"), time.perf_counter(), caller, row, approval=approval)
        passage.session = SessionState(approval.tainted, approval.history, approval.tainted_by)
        return passage

    def check_replayed(self, approval: Approval) -> None:
        """Return where the arguments are read as they were when people saw them.

        Raises:
            Conflict: They are not.
        """
        if arguments_text(self.values) != approval.arguments:
            raise Conflict(
                "The approved arguments would be read otherwise now than when people saw them.",
                next_step="Make the call again: people see it as it is now.",
            )

    @property
    def operation(self) -> Operation:
        """What is to be run."""
        return self.row.operation

    @property
    def key(self) -> str | None:
        """Under what it is the same call when it is made again: its approval, or the key of the token that was minted for it.

        What a call makes on its way is another one.
        """
        if self.approval is not None:
            return self.approval.id
        return self.caller.call_key if self.request.depth == self.caller.depth else None

    @property
    def bound_to(self) -> str:
        """What the state between two rounds is bound to: who calls what with which arguments."""
        return f"{self.caller.requester} {self.operation.kind} {self.operation.name} {digest(self.values)}"

    def body(self) -> bytes:
        """What the audit keeps of it: the arguments, and beside them what else the client said."""
        said: dict[str, Json] = {"@answers": self.inputs.answers} if self.inputs.answers else {}
        if self.reason is not None:
            said["@reason"] = self.reason
        return orjson.dumps(self.values | said if said else self.values, option=orjson.OPT_SORT_KEYS)

    def check(self, rounds: Rounds) -> None:
        """Steps 2 and 3: one normalised dict is checked, decided, hashed, run and audited.

        Raises:
            BadInput: The arguments do not fit.
            TooLarge: They are more than arguments may be.
        """
        if self.request.completing is not None:
            self.row = self.row._replace(operation=completion_of(self.operation, self.request.completing))
        raw = self.request.arguments
        if self.row.reasoned and isinstance(raw, dict) and "reason" in raw:
            raw, self.reason = _apart(cast("dict[str, Json]", raw))
        self.values = clean_arguments(raw)
        _check_exact(self.operation.arguments.exact, raw, self.values)
        try:
            self.arguments = self.operation.arguments.model_validate(self.values)
        except ValidationError as error:
            problems = [
                f"{'.'.join(map(str, p['loc'])) or 'arguments'}: {p['msg'].removeprefix('Value error, ')}"
                for p in error.errors(include_input=False, include_url=False)
            ]
            raise BadInput(
                f"The arguments do not fit {self.operation.name}: {'; '.join(problems[:5])}.",
                details={"problems": problems[:20]},
            ) from error
        self.values = self.arguments.model_dump(mode="json")
        if (self.operation.asks or self.row.asked) and self.request.sent is not None:
            self.inputs = rounds.read(self.bound_to, self.request.sent)


def caller_of(approval: Approval) -> Caller:
    """Who asked for it, as they stood then: for a call that has begun, which nobody decides again."""
    return Caller.of_sessions(approval.chain, approval.roles, approval.sessions)


def _check_exact(names: frozenset[str], raw: Json, cleaned: dict[str, Json]) -> None:
    given = cast("dict[str, Json]", raw or {})
    changed = sorted(name for name in names if cleaned.get(name) != given.get(name))
    if changed:
        raise BadInput(
            f"Invisible characters are in {', '.join(changed)}.",
            details={"problems": [f"{name}: invisible characters" for name in changed]},
        )


def _apart(raw: dict[str, Json]) -> tuple[dict[str, Json], str | None]:
    """The arguments without the agent's own words to approvers, and those: they are no part of what is decided or approved."""
    words = raw["reason"]
    if words is not None and (not isinstance(words, str) or len(words) > REASON_MAX):
        raise BadInput(
            f"The reason must be text of at most {REASON_MAX} characters.",
            details={"problems": ["reason: too long, or no text"]},
        )
    return {name: value for name, value in raw.items() if name != "reason"}, clean(words or "").strip() or None
