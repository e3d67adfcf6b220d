from __future__ import annotations

import cedarpy

from mcp_servers.hub.rooms import ROOMS
from policies.catalogue import GROUPS, MODIFIERS, Catalogue
from policies.probes import with_probes
from policies.rules import SHIPPED_DIR
from policies.schema import emit
from tests.policies.rooms import WORLD

READ_STATE = """\
  action "read_state" in ["state_read"] appliesTo {
    principal: [Tier, Person, Service],
    resource: [Server],
    context: {
      arguments: { "deep.deepest.bottom"?: String, "deep.level"?: Long, "fields": Set<String>, "fresh": Bool, "limit": Long, "npc_id": String, "region"?: String, "tags"?: Set<String> },
      approval?: Approval, facts: Facts, tainted: Bool, depth: Long, history: Set<String>,
    },
  };
"""


def test_the_schema_is_cedar_and_has_an_action_for_each_group_modifier_and_operation() -> None:
    text = emit(Catalogue.of([WORLD]))
    schema = str(cedarpy.Schema.from_str(text))
    for name in (*GROUPS, *MODIFIERS, "read_state", "page", "greeting"):
        assert f'action "{name}"' in schema or f"action {name}" in schema


def test_an_operation_is_an_action_in_its_group_with_its_visible_arguments() -> None:
    assert READ_STATE in emit(Catalogue.of([WORLD]))


def test_an_operation_is_in_its_modifiers_too() -> None:
    assert 'action "remove_document" in ["write", "destructive"]' in emit(Catalogue.of([WORLD]))


def test_the_schema_does_not_hang_on_the_order_of_rooms_and_rows() -> None:
    turned = Catalogue(reversed(list(Catalogue.of([WORLD]).entries.values())))
    assert emit(turned) == emit(Catalogue.of([WORLD]))


def test_a_narrowed_schema_declares_only_the_arguments_that_are_kept() -> None:
    text = emit(with_probes(Catalogue.of([WORLD])), keep={"fresh"})
    assert 'arguments: { "fresh": Bool }' in text
    assert "npc_id" not in text


def test_the_checked_in_schema_is_that_of_our_rooms() -> None:
    checked_in = (SHIPPED_DIR / "hub.cedarschema").read_text(encoding="utf-8")
    assert checked_in == emit(Catalogue.of(ROOMS)), "run `poe regen`"
