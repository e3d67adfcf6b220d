"""Owns the probe operations: one per row of the matrix and per modifier, so that every rule can be checked and tried
before, and whether or not, a server brings an operation it speaks of. Nothing ever calls them.
"""

from __future__ import annotations

from policies.arguments import Attribute
from policies.catalogue import (
    GROUPS,
    MODIFIERS,
    UNCLASSIFIED_GROUP,
    UNCLASSIFIED_MODIFIERS,
    Catalogue,
    Entry,
)

SERVER = "probe"
APPROVE_CHANGE = "probe:approve_change"
UNCLASSIFIED = "probe:unclassified"
ACCEPT_UPSTREAM = "accept_upstream_definition"
"""The one tool of the hub's own that a rule names; where a catalogue has it, it is no probe."""

# Kinds of approve_change, as forbids.cedar and roles.cedar know them.
WRITE_KINDS = ("config", "ingest", "world_patch")
OTHER_KINDS = ("delete_lore", "world_remove", "pause", "resume", "deploy", "redeploy")


def probe_of(group: str, *modifiers: str) -> str:
    """The name of the probe of this group with these modifiers; no tool can have a name with a colon."""
    return "+".join([f"probe:{group}", *sorted(modifiers)])


def _probe(group: str, *modifiers: str) -> Entry:
    attributes = (Attribute(("fresh",), "Bool", required=True),) if group == "state_read" else ()
    return Entry(probe_of(group, *modifiers), SERVER, group, frozenset(modifiers), attributes)


PROBES = (
    *(_probe(group) for group in GROUPS),
    *(_probe("own", modifier) for modifier in MODIFIERS),
    _probe("security_scan", "long_running"),
    _probe("queued", "destructive"),
    Entry(UNCLASSIFIED, SERVER, UNCLASSIFIED_GROUP, UNCLASSIFIED_MODIFIERS),
    Entry(
        APPROVE_CHANGE,
        SERVER,
        "admin_change",
        attributes=(Attribute(("change_request", "kind"), "String", required=True),),
    ),
    Entry(ACCEPT_UPSTREAM, SERVER, "admin_change"),
)


def with_probes(catalogue: Catalogue) -> Catalogue:
    """The catalogue and those probes it does not hold yet."""
    return catalogue.with_entries(probe for probe in PROBES if probe.name not in catalogue.entries)
