"""Owns the registered table of operations: what a change may ask for, by name, and how its payload is checked at the door."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from body_broker.errors import BadInput, TooLarge
from body_broker.text import canonical_json, clean
from body_broker.world import acting, handling, plotting, shaping
from body_broker.world.model import PAYLOAD_BYTES_MAX, Kind
from body_broker.world.operation import Op

OPERATIONS: Mapping[str, Op] = {
    op.name: op for op in sorted((*acting.OPS, *handling.OPS, *plotting.OPS, *shaping.OPS), key=lambda op: op.name)
}
"""Every operation by its name; an unknown one is refused at the door."""


def operation(name: str) -> Op:
    """The operation of this name.

    Raises:
        BadInput: There is none.
    """
    if name not in OPERATIONS:
        raise BadInput(
            f"{clean(name, limit=40)!r} is no operation of the world.", next_step=f"Use one of {', '.join(OPERATIONS)}."
        )
    return OPERATIONS[name]


def check_payload(op: Op, kind: Kind | None, payload: Mapping[str, Any]) -> dict[str, Any]:
    """The payload as it is queued: checked, with its text cleaned.

    Args:
        op: The operation.
        kind: Of the entity; None where it is not there yet.
        payload: As it came.

    Raises:
        BadInput: It does not fit; every place is named in `details["problems"]`.
        TooLarge: It is longer than 16 KiB.
    """
    try:
        size = len(canonical_json(payload))
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(f"The payload of {op.name} is not JSON.") from error
    if size > PAYLOAD_BYTES_MAX:
        raise TooLarge(f"The payload of {op.name} has {size} bytes; {PAYLOAD_BYTES_MAX} are the limit.")
    try:
        parsed = op.parse(payload)
        problems = shaping.problems_of_payload(kind, parsed)
    except ValidationError as error:
        parsed, problems = None, [_problem(found) for found in error.errors(include_url=False, include_input=False)]
    if parsed is None or problems:
        raise BadInput(
            f"The payload does not fit {op.name}: {problems[0]}.",
            next_step=f"{op.does} Correct the places that `problems` names.",
            details={"problems": problems, "op": op.name},
        )
    return shaping.settled(kind, parsed).model_dump(mode="json", exclude_unset=True)


def schema_of_operations() -> dict[str, Any]:
    """The table as JSON: what each operation does, for which kinds, whether it commutes, and its payload's JSON Schema."""
    return {
        op.name: {
            "does": op.does,
            "kinds": sorted(op.kinds),
            "commutative": op.commutative,
            "needs_version": op.needs_version,
            "payload": op.payload.model_json_schema(),
        }
        for op in OPERATIONS.values()
    }


def _problem(found: Any) -> str:  # pydantic's ErrorDetails
    return f"{'.'.join(['payload', *(clean(str(part), limit=40) for part in found['loc'])])}: {found['msg']}"
