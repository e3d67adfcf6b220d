"""Owns the catalogue: every kind of thing in AWS that can be queried, each read-only, and the IAM policy that is all of it."""

from __future__ import annotations

from difflib import get_close_matches

from body_broker.calls import Json
from body_broker.errors import BadInput
from mcp_servers.admin.catalogue.account import ACCOUNT
from mcp_servers.admin.catalogue.computing import COMPUTING
from mcp_servers.admin.catalogue.row import Row

ROWS = tuple(sorted((*COMPUTING, *ACCOUNT), key=lambda row: row.name))

SERVICES = tuple(dict.fromkeys(row.service for row in ROWS))


def row_of(service: str, resource: str) -> Row:
    """The row of that name.

    Raises:
        BadInput: There is none; it names those that come near.
    """
    if row := next((row for row in ROWS if (row.service, row.resource) == (service, resource)), None):
        return row
    here = rows_of(service)
    raise BadInput(
        f"Of {service} this hub can query: {', '.join(row.resource for row in here)}.",
        next_step="Call again with one of these.",
        details={"problems": ["resource: not in the catalogue"], "nearest": [row.name for row in here]},
    )


def rows_of(service: str | None) -> tuple[Row, ...]:
    """The rows of a service, or all.

    Raises:
        BadInput: The catalogue has no such service; it names those that come near.
    """
    found = tuple(row for row in ROWS if service in (None, row.service))
    if found or service is None:
        return found
    near = get_close_matches(service, SERVICES, n=3, cutoff=0.4)
    raise BadInput(
        f"The catalogue has no such service; it has {', '.join(SERVICES)}.",
        next_step=f"Nearest: {', '.join(near)}." if near else "Call again with one of these.",
        details={"problems": ["service: not in the catalogue"], "nearest": near},
    )


def actions() -> list[str]:
    """Every IAM action that the catalogue needs."""
    return sorted({operation.action for row in ROWS for operation in row.operations()})


def iam_policy() -> dict[str, Json]:
    """The IAM policy that allows the catalogue and nothing else; also what each session is narrowed to."""
    return {
        "Version": "2012-10-17",
        "Statement": [{"Sid": "BodyBrokerReads", "Effect": "Allow", "Action": actions(), "Resource": "*"}],
    }
