from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from body_broker.calls import Call, Caller
from body_broker.errors import BadInput, Unauthenticated
from mcp_servers.hub.requests import Request
from mcp_servers.hub.worker import working
from tests.mcp_servers.hub.conftest import error_of, settings_for
from tests.mcp_servers.hub.conversing import (
    CONVERSATION,
    Converse,
    Conversed,
    OpenScene,
    Scene,
    asker_of,
    open_scene,
    scene,
    signed_in,
)
from tests.mcp_servers.hub.deeds import APPROVERS, pending, say
from tests.waiting import wait_until
from tiers.deadline import Deadline
from tiers.hubtools import Called
from tiers.model import Asker, Tier

__all__ = ["open_scene", "scene", "settings_for"]

ANNA, GAME = "person:anna", "service:game"


async def call(
    scene: Scene, asker: Asker, name: str, tier: Tier = Tier.SILVER, arguments: dict[str, Any] | None = None
) -> Called:
    return await scene.tools.call(asker, tier, name, arguments or {}, deadline=Deadline.after(20))


async def test_a_tool_that_a_tier_calls_is_called_by_the_asker_through_the_tier(scene: Scene) -> None:
    scene.as_silver("tx_deep")

    async with scene.hub.client(ANNA, "engineer") as client:
        said = await scene.converse(client)

    assert said == {"outcome": "ok", "text": f"1 deep, as {ANNA}>tier:silver"}


@pytest.mark.parametrize(
    ("roles", "tier", "tool", "outcome"),
    [
        (("engineer",), Tier.SILVER, "tx_state", "ok"),
        # The asker may not, the tier may.
        (("security",), Tier.SILVER, "tx_state", "denied"),
        ((), Tier.SILVER, "fx_echo", "denied"),
        # The tier may not, the asker may.
        (("sre",), Tier.SILVER, "fx_admin_read", "denied"),
        (("sre",), Tier.BRONZE, "fx_admin_read", "ok"),
        (("engineer",), Tier.GOLD, "fx_echo", "denied"),
        (("engineer",), Tier.SILVER, "fx_draft", "denied"),
        # Neither may.
        (("designer",), Tier.SILVER, "fx_admin_read", "denied"),
        # Cloud engines stand in for silver's.
        (("sre",), Tier.CLOUD, "fx_echo", "ok"),
        (("sre",), Tier.CLOUD, "fx_admin_read", "denied"),
    ],
)
async def test_both_must_be_allowed(scene: Scene, roles: Sequence[str], tier: Tier, tool: str, outcome: str) -> None:
    asker = await asker_of(scene.runtime, ANNA, *roles)

    called = await call(scene, asker, tool, tier)

    assert called.outcome == outcome
    shown = {tool.name for tool in await scene.tools.offered(asker, tier)}
    assert (tool in shown) == (outcome == "ok")
    assert (tool in scene.hub.seen.calls) <= (outcome == "ok")


async def test_an_asker_who_may_not_read_gets_nothing_by_way_of_silver(scene: Scene) -> None:
    scene.as_silver("tx_state")

    async with scene.hub.client(ANNA, "security") as client:
        said = await scene.converse(client)

    assert said["outcome"] == "denied"
    assert "deep, as" not in said["text"]


async def test_a_role_that_is_taken_away_is_gone_from_conversations_under_way(scene: Scene) -> None:
    asker = await asker_of(scene.runtime, ANNA, "engineer")
    assert (await call(scene, asker, "tx_state")).outcome == "ok"

    await scene.runtime.tokens.set_roles(ANNA, ["security"], by="operator:tester")

    async def refused() -> bool:
        return (await call(scene, asker, "tx_state")).outcome == "denied"

    await wait_until(refused, "the role is gone")


@pytest.mark.parametrize("what", ["token", "login", "tier"])
async def test_who_is_revoked_is_answered_nothing_more_in_the_middle_of_a_conversation(scene: Scene, what: str) -> None:
    tokens = scene.runtime.tokens
    outcomes: list[str] = []

    async def do(_given: Converse, begun: Call) -> Conversed:
        asker = await scene.begin(begun)
        outcomes.append((await call(scene, asker, "fx_echo")).outcome)
        if what == "token":
            await tokens.revoke(jti=begun.caller.token_id)
        else:
            await tokens.revoke(principal=ANNA if what == "login" else "tier:silver")

        async def over() -> bool:
            try:
                await call(scene, asker, "fx_echo")
            except Unauthenticated:
                return True
            return False

        await wait_until(over, "nobody is known any more")
        raise Unauthenticated("It is over.")

    scene.plan.do = do
    async with scene.hub.client(ANNA, "engineer") as client:
        result = await client.call_tool("tx_converse", {})

    assert outcomes == ["ok"]
    assert error_of(result)["code"] == "unauthenticated"


async def test_a_tier_whose_login_was_ended_works_again_under_a_new_one(scene: Scene) -> None:
    asker = await asker_of(scene.runtime, ANNA, "engineer")
    await call(scene, asker, "fx_echo")
    await scene.runtime.tokens.revoke(principal="tier:silver")

    async def over() -> bool:
        try:
            await call(scene, asker, "fx_echo")
        except Unauthenticated:
            return True
        return False

    await wait_until(over, "the conversation is over")
    assert (await call(scene, asker, "fx_echo")).outcome == "ok"


async def tainted(scene: Scene, client: Any, *, talk: str, heard: str | None = None) -> bool:
    """Whether a call that silver makes in this conversation is a tainted one."""
    scene.as_silver("fx_echo", talk=talk, heard=heard)
    said = await scene.converse(client)
    found: bool = orjson.loads(said["text"])["tainted"]
    return found


async def test_a_players_hostile_line_taints_its_conversation_and_no_other(scene: Scene) -> None:
    async with scene.hub.client(GAME) as game:
        assert await tainted(scene, game, talk="osric and mira", heard="player_message")
        # The next turn of the same, and another player's with the same NPC, and the game's own calls.
        assert await tainted(scene, game, talk="osric and mira")
        assert not await tainted(scene, game, talk="osric and tom")
        own = await game.call_tool("fx_echo", {})
        assert own.structured_content is not None
        assert own.structured_content["tainted"] is False


async def test_what_a_tool_brings_in_from_outside_taints_its_conversation_and_no_other(scene: Scene) -> None:
    async with scene.hub.client(GAME) as game:
        assert not await tainted(scene, game, talk="a")
        scene.as_silver("fx_outside", talk="a")
        await scene.converse(game)
        assert await tainted(scene, game, talk="a")
        assert not await tainted(scene, game, talk="b")


async def test_whoever_reads_the_answer_of_a_tainted_conversation_has_read_text_from_outside(scene: Scene) -> None:
    async with scene.hub.client(ANNA, "engineer") as anna, scene.hub.client("person:tom", "engineer") as tom:
        before = await anna.call_tool("fx_echo", {})
        scene.as_silver("fx_echo", talk="a", heard="player_message")
        await scene.converse(anna)
        after = await anna.call_tool("fx_external", {})
        other = await tom.call_tool("fx_echo", {})

    assert before.structured_content is not None
    assert before.structured_content["tainted"] is False
    assert error_of(after)["code"] == "approval_pending"
    assert other.structured_content is not None
    assert other.structured_content["tainted"] is False


async def test_a_conversation_has_read_what_its_asker_has(scene: Scene) -> None:
    async with scene.hub.client(ANNA, "engineer") as client:
        assert not await tainted(scene, client, talk="a")
        await client.call_tool("fx_outside", {})
        assert await tainted(scene, client, talk="a")


async def test_an_asker_is_known_as_tainted_when_a_conversation_begins(scene: Scene) -> None:
    found: list[Asker] = []

    async def do(_given: Converse, begun: Call) -> Conversed:
        found.append(await scene.begin(begun))
        return Conversed()

    scene.plan.do = do
    async with scene.hub.client(ANNA, "engineer") as client:
        await client.call_tool("tx_converse", {})
        await client.call_tool("fx_outside", {})
        await client.call_tool("tx_converse", {})

    assert [asker.tainted for asker in found] == [False, True]
    assert {asker.tenant for asker in found} == {ANNA}
    # The same talk of the same login is the same conversation, here and in every other hub.
    assert len({asker.conversation for asker in found}) == 1


async def test_conversations_of_others_and_about_others_have_other_ids(scene: Scene) -> None:
    inferring = scene.runtime.inferring
    anna, tom = [await signed_in(scene.runtime, f"person:{name}", "engineer") for name in ("anna", "tom")]

    ids = [
        inferring.conversation(anna, "osric", "mira"),
        inferring.conversation(anna, "osric", "tom"),
        inferring.conversation(anna, "osricmira"),
        inferring.conversation(tom, "osric", "mira"),
        inferring.conversation(replace(anna, session="ses_another"), "osric", "mira"),
    ]

    assert len(set(ids)) == len(ids)
    assert inferring.conversation(anna, "osric", "mira") == ids[0]


@pytest.mark.parametrize(("depth", "outcome"), [(0, "ok"), (7, "ok"), (8, "denied")])
async def test_what_one_call_causes_by_another_is_deeper_and_ends_somewhere(
    scene: Scene, depth: int, outcome: str
) -> None:
    scene.as_silver("tx_deep")
    anna = await signed_in(scene.runtime, ANNA, "engineer")

    answer = await scene.runtime.gate.run(
        Request(name="tx_converse", kind="tool", arguments={}, caller=anna, depth=depth)
    )

    said = answer.result.model_dump()["said"]
    assert said["outcome"] == outcome
    assert (f"{depth + 1} deep" in said["text"]) == (outcome == "ok")
    assert ("depth-cap" in said["text"]) == (outcome == "denied")


async def test_a_tier_that_asks_a_tier_is_deeper_still_and_nobody_hides_behind_four(scene: Scene) -> None:
    anna = await signed_in(scene.runtime, ANNA, "engineer")
    chains: list[str] = []
    caller = anna
    for number, tier in enumerate((Tier.BRONZE, Tier.BRONZE, Tier.SILVER)):
        asker = Asker(caller=caller, conversation=f"{CONVERSATION}_{number}")
        chains.append((await call(scene, asker, "tx_deep", tier)).text)
        minted = await scene.runtime.tokens.mint(caller, f"tier:{tier}", asker.conversation, 600)
        caller = await scene.runtime.identities.authenticate(minted)

    assert chains == [
        f"1 deep, as {ANNA}>tier:bronze",
        f"2 deep, as {ANNA}>tier:bronze>tier:bronze",
        f"3 deep, as {ANNA}>tier:bronze>tier:bronze>tier:silver",
    ]
    with pytest.raises(BadInput):
        await call(scene, Asker(caller=caller, conversation=f"{CONVERSATION}_4"), "tx_deep")


async def test_a_tiers_calls_use_up_the_rate_of_its_asker(open_scene: OpenScene) -> None:
    async with open_scene(rate_per_s=0.01) as scene:
        anna, tom = [await asker_of(scene.runtime, who, "engineer") for who in (ANNA, "person:tom")]
        assert (await call(scene, anna, "fx_echo")).outcome == "ok"
        assert (await call(scene, anna, "fx_echo")).outcome == "rate_limited"
        assert (await call(scene, tom, "fx_echo")).outcome == "ok"


async def test_whoever_has_every_call_of_theirs_in_a_talk_has_the_tools_of_all_the_talks(open_scene: OpenScene) -> None:
    async with open_scene(concurrency_max=4) as scene:
        scene.plan.together = asyncio.Barrier(4)  # each tool is answered once all are being called
        scene.as_silver("tx_meet", {"about": "met"})
        async with scene.hub.client(ANNA, "engineer") as client:
            said = await asyncio.gather(*(scene.converse(client) for _ in range(4)))

        assert [each["outcome"] for each in said] == ["ok"] * 4


async def test_the_calls_of_an_askers_talks_are_bounded_too(open_scene: OpenScene) -> None:
    async with open_scene(concurrency_max=2) as scene:
        anna, tom = [await asker_of(scene.runtime, who, "engineer") for who in (ANNA, "person:tom")]
        scene.plan.together = asyncio.Barrier(3)
        waiting = [asyncio.create_task(call(scene, anna, "tx_meet")) for _ in range(2)]
        await wait_until(lambda: scene.plan.together.n_waiting == 2, "both are open")

        assert (await call(scene, anna, "fx_echo")).outcome == "too_busy"
        assert (await call(scene, tom, "fx_echo")).outcome == "ok"
        await scene.plan.together.wait()
        assert [(await each).outcome for each in waiting] == ["ok", "ok"]


async def test_a_tiers_write_waits_for_a_person_as_everybodys_and_nothing_waits_for_the_person(
    open_scene: OpenScene, tmp_path: Path
) -> None:
    approvers = tmp_path / "approvers.toml"
    approvers.write_text(APPROVERS, encoding="utf-8")
    async with open_scene(approvers=approvers, approval_wait_s=300) as scene, working(scene.runtime):
        asker = await asker_of(scene.runtime, ANNA, "engineer")

        first = await call(scene, asker, "fx_write", Tier.BRONZE, {"text": "a lamp"})
        asked = scene.hub.seen.calls.copy()
        approval_id, _ = await pending(scene.runtime.stores.pool, "fx_write")
        approval = await scene.runtime.approvals.desk.get(approval_id)
        await say(scene.runtime.approvals.desk, approval_id)
        await wait_until(lambda: scene.hub.seen.calls, "it was done after the yes")

    assert first.outcome == "approval_pending"
    assert asked == []
    assert (approval.chain, approval.depth) == ((ANNA, "tier:bronze"), 1)
    assert scene.hub.seen.calls == ["fx_write"]


async def test_every_call_of_a_tier_is_on_the_audit_with_its_whole_chain(scene: Scene) -> None:
    asker = await asker_of(scene.runtime, ANNA, "security")

    await call(scene, asker, "fx_echo")
    await call(scene, asker, "tx_state")

    async def recorded() -> list[Any]:
        rows = await scene.runtime.stores.pool.fetch("SELECT body FROM audit_record ORDER BY at")
        bodies = [orjson.loads(row["body"]) for row in rows]
        found = [body for body in bodies if body.get("action") in {"fx_echo", "tx_state"}]
        return found if len(found) > 1 else []

    found = await wait_until(recorded, "both are recorded")
    assert {(body["requester"], body["session"], body["depth"]) for body in found} == {
        (f"{ANNA}>tier:silver", CONVERSATION, 1)
    }
    assert {body["action"]: body["verdict"] for body in found} == {"fx_echo": "allow", "tx_state": "denied"}


async def test_many_conversations_go_through_one_client_and_none_is_taken_for_another(scene: Scene) -> None:
    askers = {
        who: Asker(caller=await signed_in(scene.runtime, f"person:{who}", "engineer"), conversation=f"cnv_of_{who}")
        for who in ("anna", "tom", "mira", "osric")
    }

    said = await asyncio.gather(*(call(scene, asker, "tx_deep") for asker in list(askers.values()) * 10))

    assert [called.text for called in said] == [f"1 deep, as person:{who}>tier:silver" for who in askers] * 10


async def test_a_callers_depth_is_part_of_their_token_and_nothing_that_they_can_say(scene: Scene) -> None:
    anna = await signed_in(scene.runtime, ANNA, "engineer")
    deep = Caller(anna.chain, anna.roles, anna.session, token_id=anna.token_id, expires_at=anna.expires_at, depth=8)

    called = await call(scene, Asker(caller=deep, conversation=CONVERSATION), "tx_deep")

    assert called.outcome == "denied"
