"""Owns what one audit record says and its JSON form: always clean text, always bounded, written once and never parsed to be hashed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import orjson

from body_broker.calls import Receipt
from body_broker.errors import Conflict, Detail
from body_broker.text import clean

Kind = Literal["opened", "decision", "outcome", "refusal", "asked", "approval", "operator", "closed"]
RECORD_BYTES_MAX = 16 * 1024
_TEXT_MAX = 500
_ITEMS_MAX = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One thing that happened, as it stands on the chain; the arguments themselves lie beside it.

    Attributes:
        kind: opened and closed frame a writer's chain and are written by the auditor alone; approval is a vote, or what became of a request.
        at: Unix seconds; None until the auditor's clock fills it in.
        action: The operation's or command's name.
        server: The room it belongs to.
        requester: The identity chain as text, `person:anna>tier:silver`, or `operator:NAME`.
        session: The login's or conversation's id.
        verdict: allow, deny, ask, or how it ended.
        rules: Names of the rules that fired.
        digest: SHA-256 of the body in hex; None until the auditor computes it, and where there is no body.
        depth: How many calls deep.
        tainted: Whether the session had read text from outside.
        call: The call's id.
        refers_to: The decision that an outcome belongs to.
        details: A few more facts of our own making.
    """

    kind: Kind
    at: float | None = None
    action: str | None = None
    server: str | None = None
    requester: str | None = None
    session: str | None = None
    verdict: str | None = None
    rules: tuple[str, ...] = ()
    digest: str | None = None
    depth: int = 0
    tainted: bool = False
    call: str | None = None
    refers_to: Receipt | None = None
    details: Mapping[str, Detail] = field(default_factory=dict[str, Detail])


def encode(record: Record, sequence: int, at: float, digest: str | None) -> bytes:
    """The record as JSON, what the MAC covers. Text that is unclean or too long is cut, never refused."""
    # Built in one go and not filtered: most calls pay for this.
    fields: dict[str, Any] = {
        "seq": sequence,
        "at": at,
        "kind": record.kind,
        "action": record.action,
        "server": record.server,
        "requester": record.requester,
        "session": record.session,
        "call": record.call,
        "verdict": record.verdict,
        "rules": record.rules,
        "digest": digest,
    }
    if record.depth:
        fields["depth"] = record.depth
    if record.tainted:
        fields["tainted"] = True
    if record.refers_to is not None:
        fields["refers_to"] = (record.refers_to.writer, record.refers_to.sequence)
    if record.details:
        fields["details"] = dict(record.details)
    try:
        body = orjson.dumps(fields)
    except orjson.JSONEncodeError:  # a lone surrogate, a huge integer: recorded all the same
        return orjson.dumps(_tidy(fields))
    # Printable ASCII without an escape is what nearly every record is; only the others pay for a closer look.
    if len(body) <= RECORD_BYTES_MAX and body.isascii() and b"\\" not in body and b"\x7f" not in body:
        return body
    return orjson.dumps(_tidy(fields))


def decode(body: str) -> Record:
    """The record that `encode` wrote.

    Raises:
        Conflict: The body is not such a record; nobody but a tamperer writes another.
    """
    try:
        fields: dict[str, Any] = orjson.loads(body)
        refers_to = fields.get("refers_to")
        return Record(
            kind=fields["kind"],
            at=fields["at"],
            action=fields.get("action"),
            server=fields.get("server"),
            requester=fields.get("requester"),
            session=fields.get("session"),
            verdict=fields.get("verdict"),
            rules=tuple(fields.get("rules", ())),
            digest=fields.get("digest"),
            depth=fields.get("depth", 0),
            tainted=fields.get("tainted", False),
            call=fields.get("call"),
            refers_to=Receipt(*refers_to) if refers_to else None,
            details=fields.get("details", {}),
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise Conflict(
            "A record of the audit is not one that this program wrote.",
            next_step="Run `body-broker audit verify`; it names the record.",
        ) from error


def fact(body: str, name: str) -> Any:  # any JSON value
    """One fact of a body that may have been tampered with; None where it is not there."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return cast("dict[str, Any]", fields).get(name) if isinstance(fields, dict) else None


def _tidy(value: object) -> Any:
    """The value as JSON that orjson takes, clean and bounded, whatever it was."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else f"an integer of {value.bit_length()} bits"
    if isinstance(value, dict):
        items = list(cast("dict[object, object]", value).items())[:_ITEMS_MAX]
        return {_line(str(name)): _tidy(item) for name, item in items}
    if isinstance(value, list | tuple):
        return [_tidy(item) for item in cast("list[object]", value)[:_ITEMS_MAX]]
    return _line(str(value))


def _line(text: str) -> str:
    # One line each: a record is shown line by line, and no caller's text may look like another record.
    return clean(text, limit=_TEXT_MAX).replace("\n", " ").replace("\t", " ")
