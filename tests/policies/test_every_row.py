"""Every row we serve, for any principal: what it promises, by its group, modifiers and annotations, opens its own gate only."""

from __future__ import annotations

import pytest

from body_broker.calls import Tool
from mcp_servers.hub.listing import annotations_of
from mcp_servers.hub.rooms import ROOMS
from policies.catalogue import GROUPS, MODIFIERS, Catalogue, Entry
from policies.engine import Policy
from policies.probes import with_probes
from policies.proofs import proves_denied

CATALOGUE = Catalogue.of(ROOMS)
ENTRIES = list(CATALOGUE.entries.values())
POLICY = Policy.load(with_probes(CATALOGUE))
GATED = {"write", "admin_change", "destructive"}
TAINT_GATED = GATED | {"queued", "security_scan", "external"}


def marks(entry: Entry) -> set[str]:
    return {entry.group, *entry.modifiers}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_whoever_calls_a_gated_row_needs_an_approval_and_who_calls_another_does_not(entry: Entry) -> None:
    """Nothing is known of principal, roles, arguments, depth or facts."""
    assert proves_denied(POLICY, entry.name) == bool(marks(entry) & GATED)
    assert proves_denied(POLICY, entry.name, tainted=True) == bool(marks(entry) & TAINT_GATED)


def test_a_row_that_is_classified_anew_is_behind_the_gate_of_its_new_class() -> None:
    """Each row's arguments in every group with every modifier: no row is let through for what else it is."""
    kinds = {entry.attributes: entry for entry in ENTRIES}.values()
    anew = [
        Entry(
            f"{entry.name}:{group}:{modifier}",
            entry.server,
            group,
            frozenset({modifier} if modifier else ()),
            entry.attributes,
        )
        for entry in kinds
        for group in GROUPS
        for modifier in (None, *MODIFIERS)
    ]
    policy = Policy.load(with_probes(CATALOGUE).with_entries(anew))
    for entry in anew:
        assert proves_denied(policy, entry.name) == bool(marks(entry) & GATED), entry.name
        assert proves_denied(policy, entry.name, tainted=True) == bool(marks(entry) & TAINT_GATED), entry.name


TOOLS = [tool for room in ROOMS for tool in room.tools]


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_what_a_row_tells_clients_of_itself_is_what_its_gate_holds(tool: Tool) -> None:
    hints = annotations_of(tool)
    entry = CATALOGUE.entries[tool.name]
    if hints.destructive_hint:
        assert proves_denied(POLICY, tool.name)
    if hints.read_only_hint:
        assert not marks(entry) & (TAINT_GATED - {"external"})
    if marks(entry) & {"destructive", "admin_change"}:
        assert hints.destructive_hint
    assert hints.idempotent_hint == (tool.effect != "once")
    if "external" in marks(entry):
        assert hints.open_world_hint
    if marks(entry) & {"write", "queued", "admin_change", "destructive", "intent"}:
        assert not hints.read_only_hint
