"""Completions through the gate: who may use a prompt or resource may complete its arguments, and nobody else; text from outside taints."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from mcp.shared.exceptions import MCPError
from mcp_types import PromptReference, ResourceTemplateReference

from mcp_servers.hub.completing import _completion  # pyright: ignore[reportPrivateUsage]  # what it keeps is what is tested
from mcp_servers.hub.rooms import ROOMS
from mcp_servers.hub.wire import OUTSIDE_META
from tests.mcp_servers.hub.conftest import Hub, OpenHub, error_of
from tests.mcp_servers.hub.test_gate import audited

GREET = PromptReference(name="fx_greet")
NOTE, SECRET = (ResourceTemplateReference(uri=f"fx://{kind}/{{id}}") for kind in ("note", "secret"))


def typed(text: str, argument: str = "id") -> dict[str, str]:
    return {"name": argument, "value": text}


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_arguments_of_prompts_and_of_resource_templates_are_completed(hub: Hub, mode: str) -> None:
    async with hub.client("tier:silver", mode=mode) as client:
        assert client.server_capabilities.completions is not None
        prompt = await client.complete(GREET, typed("Os"))
        template = await client.complete(NOTE, typed("H"))
        written_out = await client.complete(ResourceTemplateReference(uri="fx://note/7"), typed("H"))
    assert prompt.completion.values == ["Osric", "Osmund"]
    assert prompt.completion.has_more is False
    assert template.completion.values == written_out.completion.values == ["Hale"]


async def test_a_completion_stands_on_the_audit_under_the_name_of_what_it_completes(hub: Hub) -> None:
    async with hub.client("tier:silver") as client:
        await client.complete(GREET, typed("Os"), {"tone": "cold"})
    (record,) = await audited(hub, "fx_greet")
    assert (record["kind"], record["verdict"]) == ("decision", "allow")
    bodies = await hub.runtime.stores.pool.fetch("SELECT convert_from(content, 'UTF8') AS body FROM audit_body")
    assert [row["body"] for row in bodies] == ['{"completing":"id","id":"Os","tone":"cold"}']


async def test_who_may_not_use_a_resource_learns_nothing_from_its_completions(hub: Hub) -> None:
    async with hub.client("tier:silver") as client:
        with pytest.raises(MCPError, match="denied: fx_secret is not allowed here by rule default-deny:admin_read"):
            await client.complete(SECRET, typed("Os"))
    assert hub.seen.calls == []
    (record,) = await audited(hub, "fx_secret")
    assert (record["kind"], record["verdict"]) == ("refusal", "denied")


async def test_a_rule_about_an_argument_holds_for_completions_that_are_given_it(
    open_hub: OpenHub, tmp_path: Path
) -> None:
    (tmp_path / "studio.cedar").write_text(
        '@id("no-cold-greetings") forbid (principal, action == Hub::Action::"fx_greet", resource)'
        ' when { context.arguments has tone && context.arguments.tone == "cold" };'
        '@id("only-warmth") forbid (principal, action == Hub::Action::"fx_greet", resource)'
        ' when { context.arguments has tone && context.arguments.tone == "warm" };'
    )
    async with open_hub(policies_dir=tmp_path) as hub, hub.client("tier:silver") as client:
        with pytest.raises(MCPError, match="no-cold-greetings"):
            await client.complete(GREET, typed("Os"), {"tone": "cold"})
        with pytest.raises(MCPError, match="no-cold-greetings"):
            await client.complete(GREET, typed("cold", "tone"))
        with pytest.raises(MCPError, match="only-warmth"):  # what the prompt itself would fill in
            await client.complete(GREET, typed("Os"))
        assert (await client.complete(GREET, typed("Os"), {"tone": "dry"})).completion.values == ["Osric", "Osmund"]
        assert hub.seen.calls == ["fx_greet Os"]


async def test_suggestions_from_outside_are_marked_and_taint_the_session(hub: Hub) -> None:
    async with hub.client("person:anna", "engineer") as client:
        ours = await client.complete(GREET, typed("Os"))
        assert ours.meta is None or OUTSIDE_META not in ours.meta
        assert not (await client.call_tool("fx_external", {})).is_error
        theirs = await client.complete(GREET, typed("Os"), {"tone": "rumour"})
        assert theirs.meta is not None
        assert theirs.meta[OUTSIDE_META] is True
        assert error_of(await client.call_tool("fx_external", {}))["code"] == "approval_pending"


async def test_at_most_a_hundred_suggestions_are_shown(hub: Hub) -> None:
    async with hub.client("tier:silver") as client:
        found = (await client.complete(GREET, typed("many"))).completion
    assert found.values == [f"many {n}" for n in range(100)]
    assert found.has_more is True


async def test_an_argument_that_nothing_completes_has_no_suggestions(hub: Hub) -> None:
    async with hub.client("tier:silver") as client:
        assert (await client.complete(GREET, typed("w", "tone"))).completion.values == []
    assert hub.seen.calls == []


@pytest.mark.parametrize(
    ("ref", "argument", "given", "said"),
    [
        (PromptReference(name="no_such"), typed("x"), {}, "unknown_tool: There is no prompt of that name"),
        (ResourceTemplateReference(uri="fx://nowhere/{id}"), typed("x"), {}, "unknown_tool"),
        (GREET, typed("x", "colour"), {}, "bad_input: .*colour"),
        (GREET, typed("x"), {"colour": "red"}, "bad_input: .*colour"),
        (GREET, typed("x"), {"tone": "longer than ten"}, "bad_input: .*tone"),
        (GREET, typed("x"), {"completing": "tone"}, "bad_input: .*completing"),
        (GREET, typed("x" * 1_001), {}, "bad_input: .*id"),
    ],
)
async def test_a_completion_of_what_is_not_there_is_refused(
    hub: Hub, ref: PromptReference, argument: dict[str, str], given: dict[str, str], said: str
) -> None:
    async with hub.client("tier:silver") as client:
        with pytest.raises(MCPError, match=said):
            await client.complete(ref, argument, given)
    assert hub.seen.calls == []


async def test_names_of_arguments_that_are_not_there_are_not_kept(hub: Hub) -> None:
    async with hub.client("tier:silver") as client:
        await client.complete(GREET, typed("O"))
        kept = _completion.cache_info().currsize
        for n in range(5):
            with pytest.raises(MCPError, match="bad_input"):
                await client.complete(GREET, typed("x", f"{n}" * 100_000))
    assert _completion.cache_info().currsize == kept


async def test_completions_count_against_the_rate(open_hub: OpenHub, redis: object) -> None:
    _ = redis  # flushed
    async with open_hub(rate_per_s=2) as hub, hub.client("tier:silver") as client:
        answers = await asyncio.gather(*(client.complete(GREET, typed("Os")) for _ in range(8)), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, MCPError)]
    assert 1 <= len(hub.seen.calls) < 8
    assert len(refused) == 8 - len(hub.seen.calls)
    assert all("rate_limited" in str(error) for error in refused)


async def test_invisible_characters_are_gone_before_a_completer_reads_them(hub: Hub) -> None:
    async with hub.client("tier:silver") as client:
        assert (await client.complete(GREET, typed("O\u202es\u200b"))).completion.values == ["Osric", "Osmund"]
    assert hub.seen.calls == ["fx_greet Os"]


def test_every_completer_completes_an_argument_that_is_there() -> None:
    rows = [row for room in ROOMS for row in (*room.resources, *room.prompts)]
    assert sum(len(row.completes) for row in rows) >= 5
    for row in rows:
        assert set(row.completes) <= set(row.arguments.model_fields), row.name
