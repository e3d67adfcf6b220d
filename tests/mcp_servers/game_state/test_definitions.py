"""What the game_state server's tools cost whoever is shown them, and that each says when to use it and when not."""

from __future__ import annotations

import orjson
import pytest

from body_broker.calls import Tool
from body_broker.world.model import EXPIRES_IN_MS
from mcp_servers.game_state.proposals import BatchedChange, QueueStateChange
from mcp_servers.game_state.server import ROOM
from mcp_servers.hub.listing import tool_definition

CHARACTERS_MAX = 720
# What has many arguments: the parts of a change and of a search, the fields of events.
WIDER = {
    "find_entities": 1_000,
    "get_events": 920,
    "queue_state_change": 1_350,
    "queue_state_changes": 1_270,
    "submit_intent": 970,
}
CORE = {"get_npc_state", "get_world_state", "find_entities", "queue_state_change", "get_change_status"}


@pytest.mark.parametrize("tool", ROOM.tools, ids=lambda tool: tool.name)
def test_a_definition_costs_few_characters(tool: Tool) -> None:
    definition = tool_definition(tool).model_dump(by_alias=True, mode="json", exclude_none=True)
    assert len(orjson.dumps(definition)) <= WIDER.get(tool.name, CHARACTERS_MAX)


def test_the_core_is_the_contract_s_calls_and_what_makes_them_usable() -> None:
    assert {tool.name for tool in ROOM.tools if tool.profile == "core"} == CORE


def test_every_description_is_two_short_sentences_or_so() -> None:
    for tool in ROOM.tools:
        assert 40 <= len(tool.description) <= 200, tool.name


def test_what_a_change_may_say_beside_itself_is_what_a_batched_one_says_within() -> None:
    beside = set(QueueStateChange.model_fields) - {"change", "dry_run", "player_id", "reason"}
    assert beside == set(BatchedChange.model_fields) - {"entity_id", "op", "payload"}
    assert QueueStateChange.model_fields["expires_in_ms"].default == EXPIRES_IN_MS
