"""Owns the generated parts of docs/aws.md: the catalogue as a table, and the IAM policy that is all of it."""

from __future__ import annotations

import json

from mcp_servers.admin import catalogue
from tests.tools.pages import table


def catalogue_table() -> str:
    """The rows, what each shows, what it withholds, and how it was tested."""
    rows = (
        (
            f"`{row.service}` `{row.resource}`",
            f"{row.about}; {row.costs}" if row.costs else row.about,
            row.identifier,
            ", ".join([*row.fields, *(["tags"] if row.tags else [])]),
            row.withheld,
            ", ".join(f"`{operation.action}`" for operation in row.operations()),
            row.checked,
        )
        for row in catalogue.ROWS
    )
    return table(("Service, resource", "What", "`identifier`", "Shown", "Never shown", "Needs", "Tested"), rows)


def iam_policy() -> str:
    """The policy as a block of JSON."""
    return f"```json\n{json.dumps(catalogue.iam_policy(), indent=2)}\n```\n"
