"""Owns the Cedar schema: what policies may say, made from the catalogue; policies/hub.cedarschema is its checked-in copy."""

from __future__ import annotations

import json
from collections.abc import Set as AbstractSet

from policies.arguments import Attribute
from policies.catalogue import GROUPS, MODIFIERS, Catalogue, Entry
from policies.decision import FACTS

TIERS = ("gold", "silver", "bronze")
ROLES = ("designer", "engineer", "sre", "security", "admin")

_HEAD = """\
// Generated from the operations' input schemas by `poe regen`; do not edit.
// An operation is an action in its one granting group and its modifiers. Arguments: strings, integers, booleans and lists of
// strings; a nested one is written "change.op", to depth 3; one that may be null is optional; nothing else is visible.
"""


def emit(catalogue: Catalogue, keep: AbstractSet[str] | None = None) -> str:
    """The schema as Cedar text, the same for the same catalogue.

    Args:
        catalogue: The operations.
        keep: Names of the arguments to declare; None declares all. What decides a call declares only what policies read.
    """
    lines = [
        "namespace Hub {",
        f"  entity Tier enum [{_names(TIERS)}];",
        f"  entity Role enum [{_names(ROLES)}];",
        "  entity Person in [Role];",
        "  entity Service;",
        "  entity Server;",
        "",
        "  type Approval = { via: Set<String>, count: Long, groups: Set<String>, own: Bool };",
        f"  type Facts = {{ {', '.join(f'{fact}: Bool' for fact in FACTS)} }};",
        "",
        f"  action {_names(GROUPS)};",
        f"  action {_names(MODIFIERS)};",
    ]
    for entry in catalogue.entries.values():
        lines += ["", *_action(entry, keep)]
    return "\n".join([_HEAD.rstrip(), *lines, "}", ""])


def _action(entry: Entry, keep: AbstractSet[str] | None) -> list[str]:
    shown = [attribute for attribute in entry.attributes if keep is None or attribute.name in keep]
    arguments = ", ".join(_attribute(attribute) for attribute in shown)
    return [
        f"  action {_names([entry.name])} in [{_names([entry.group, *sorted(entry.modifiers)])}] appliesTo {{",
        "    principal: [Tier, Person, Service],",
        "    resource: [Server],",
        "    context: {",
        f"      arguments: {{ {arguments} }},".replace("{  }", "{}"),
        "      approval?: Approval, facts: Facts, tainted: Bool, depth: Long, history: Set<String>,",
        "    },",
        "  };",
    ]


def _attribute(attribute: Attribute) -> str:
    return f"{_names([attribute.name])}{'' if attribute.required else '?'}: {attribute.type}"


def _names(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(json.dumps(name) for name in names)
