"""The rows of changes and reports: decided by policy first, by the kind of change; what waits for a backend is absent."""

from __future__ import annotations

from typing import Any

import pytest

from body_broker.calls import Tool
from mcp_servers.admin.models import KINDS
from mcp_servers.admin.server import ROOM
from mcp_servers.hub.listing import tool_definition
from mcp_servers.hub.rooms import ROOMS
from policies.catalogue import Catalogue
from policies.decision import Allow, Ask, Decision, Deny, Identity, Question
from policies.engine import Policy
from tests.mcp_servers.hub.conftest import Hub, OpenHub, error_of

CHANGE = {"kind": "config", "target": "spawn.night.rate", "params": {"value": 2}}
WAITING = {"generate_admin_report"}
WRITES = ("config", "ingest", "world_patch")


@pytest.fixture(scope="session")
def policy() -> Policy:
    return Policy.load(Catalogue.of(ROOMS))


def decide(policy: Policy, who: Identity, action: str = "approve_change", **change: Any) -> Decision:
    arguments = {"change_request": CHANGE | change}
    return policy.decide(Question(action, (who,), arguments, False, 0, frozenset()))  # noqa: FBT003 - not tainted


def person(role: str) -> Identity:
    return Identity("person:anna", frozenset({role}))


def test_approve_change_is_decided_by_the_kind_of_change(policy: Policy) -> None:
    bronze = Identity("tier:bronze")
    for kind in KINDS:
        asks = [person("sre"), person("admin"), bronze]
        writers = [person(role) for role in ("designer", "engineer", "security")]
        assert all(isinstance(decide(policy, who, kind=kind), Ask) for who in asks), kind
        expected = Ask if kind in WRITES else Deny
        assert all(isinstance(decide(policy, who, kind=kind), expected) for who in writers), kind
        two = "destruction-by-agents-needs-two" in decide(policy, bronze, kind=kind).rules
        assert two is (kind in {"delete_lore", "world_remove", "redeploy"}), kind
    for who in (Identity("tier:gold"), Identity("tier:silver"), Identity("service:game")):
        assert isinstance(decide(policy, who), Deny)


def test_an_unknown_kind_of_change_is_denied_by_its_rule_to_everybody(policy: Policy) -> None:
    for who in (person("admin"), person("sre"), Identity("tier:bronze")):
        decision = decide(policy, who, kind="format_disk")
        assert isinstance(decision, Deny)
        assert "unknown-kind-of-change" in decision.rules


def test_a_proposal_is_a_draft(policy: Policy) -> None:
    assert isinstance(decide(policy, person("designer"), "propose_change", kind="deploy"), Allow)
    assert isinstance(decide(policy, Identity("tier:silver"), "propose_change"), Deny)


CALLS: list[tuple[str, dict[str, Any], str]] = [
    ("generate_admin_report", {}, "BODY_BROKER_BRONZE_URL"),
    (
        "generate_admin_report",
        {"metrics": {"uptime": 99.9}, "report": "costs", "period": "month"},
        "BODY_BROKER_BRONZE_URL",
    ),
]


async def test_what_waits_for_a_backend_is_absent_and_a_call_names_the_setting(
    open_hub: OpenHub, redis: object
) -> None:
    _ = redis  # flushed before the test
    async with open_hub(tools="all") as hub, hub.client("person:anna", "sre") as anna:
        assert not WAITING & {tool.name for tool in (await anna.list_tools()).tools}
        for name, arguments, setting in CALLS:
            refused = error_of(await anna.call_tool(name, arguments))
            assert (refused["code"], refused["setting"]) == ("not_configured", setting), name
            assert setting in refused["message"]
        await _others_are_refused(hub)


async def _others_are_refused(hub: Hub) -> None:
    async with hub.client("tier:silver") as silver:
        for name, arguments, _ in CALLS:
            assert error_of(await silver.call_tool(name, arguments))["code"] == "denied"
    async with hub.client("person:emil", "designer") as designer:
        refused = error_of(await designer.call_tool("approve_change", {"change_request": CHANGE | {"kind": "nothing"}}))
        assert refused["code"] == "denied"
        wrong = error_of(await designer.call_tool("approve_change", {"change_request": {"kind": "config"}}))
        assert wrong["code"] == "bad_input"


def test_the_schemas_of_what_waits_are_final() -> None:
    rows: dict[str, Tool] = {tool.name: tool for tool in ROOM.tools}
    change = rows["approve_change"].arguments.model_json_schema()["$defs"]["ChangeRequest"]
    assert change["properties"]["kind"]["enum"] == [*KINDS]
    assert set(change["properties"]) == {"kind", "target", "params"}
    assert rows["propose_change"].arguments.model_json_schema()["$defs"]["ChangeRequest"] == change
    assert set(rows["approve_change"].result.model_fields) == {"approved", "state", "change_id", "verified"}
    assert set(rows["generate_admin_report"].arguments.model_fields) == {"metrics", "report", "period"}
    assert set(rows["generate_admin_report"].result.model_fields) == {"job_id", "status", "result"}


@pytest.mark.parametrize("tool", ROOM.tools, ids=lambda tool: tool.name)
def test_a_definition_costs_few_tokens(tool: Tool) -> None:
    shown = tool_definition(tool)
    spent = len(shown.model_dump_json(by_alias=True, exclude_none=True, exclude={"title", "annotations"}))

    assert spent <= 1_050, spent
