"""The storyteller's tools over a served hub, by the official client: answers, roles, marking, bad input, limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from mcp import Client

from body_broker.calls import Arguments, Call, Result, Room, Tool
from body_broker.settings import Settings
from body_broker.storage.postgres import Pool
from mcp_servers.hub.rooms import ROOMS
from mcp_servers.hub.runtime import open_runtime
from mcp_servers.hub.serve import Address, listening
from mcp_servers.storyteller.models import AddFact, RetireFact
from mcp_servers.storyteller.server import add_fact, retire_fact
from mcp_servers.storyteller.services import Services
from tests.mcp_servers.hub.conftest import Hub, error_of
from tests.mcp_servers.hub.fixture_room import Seen
from tests.mcp_servers.storyteller.conftest import bring, put_world

READS: dict[str, dict[str, Any]] = {
    "retrieve_lore": {"topic": "the mill"},
    "check_consistency": {"narrative": "Mara opened the door."},
    "get_entity_facts": {"entity": "mara"},
    "get_quest": {"id": "clock"},
    "get_plot_graph": {"graph_id": "ledger"},
    "list_available_quests": {"player_id": "anna"},
    "explain_locked": {"node_id": "bell", "player_id": "anna"},
    "validate_plot_graph": {"graph_id": "ledger"},
}
WRITES: dict[str, dict[str, Any]] = {
    "add_fact": {"subject": "ivo", "predicate": "age", "object": 40, "reason": "he said so"},
    "retire_fact": {"fact_id": "f_age"},
}
BRONZE: dict[str, dict[str, Any]] = {
    "generate_narrative": {"prompt": "A storm at the mill."},
    "generate_story_arc": {"theme": "debt", "length": 3},
    "get_story_arc": {"job_id": "job_x"},
}


async def tell(client: Client, name: str, **arguments: Any) -> Any:
    answer = await client.call_tool(name, arguments)
    assert not answer.is_error, answer
    return answer.structured_content


async def is_tainted(client: Client) -> bool:
    return (await tell(client, "whoami"))["tainted"]


async def test_a_topic_is_answered_with_passages_and_citations_beside_them(hub: Hub) -> None:
    async with hub.client("tier:silver") as silver:
        found = await tell(silver, "retrieve_lore", topic="Who grinds at the mill?", context={})

        assert found["passages"] == ["Coldharbour Mill grinds bone by night. Old Jessop Wray keeps its books."]
        (citation,) = found["citations"]
        assert (citation["title"], citation["start"], citation["end"], citation["source"]) == (
            "The Mill",
            0,
            71,
            "canon",
        )
        assert found["facts"] == []
        assert not await is_tainted(silver)


async def test_a_context_enriches_the_question_and_adds_the_npcs_facts(hub: Hub) -> None:
    await bring(hub, "The Fen", "Eels sleep in the Fen until Mara Thorne whistles.")
    async with hub.client("tier:silver") as silver:
        plain = await tell(silver, "retrieve_lore", topic="herons")
        found = await tell(
            silver, "retrieve_lore", topic="herons", context={"npc": "mara", "mood": ["wet", 3]}, as_of=5.0
        )
        known = await tell(silver, "retrieve_lore", topic="x", context={"npc": "mara"}, known_to="osric")

    assert plain["passages"] == []
    assert found["passages"] == ["Eels sleep in the Fen until Mara Thorne whistles."]
    assert {fact["id"] for fact in found["facts"]} == {"f_age", "f_eyes", "f_home_then"}
    assert {fact["id"] for fact in known["facts"]} == {"f_age", "f_home"}


async def test_outside_lore_is_marked_and_taints_whoever_reads_it(hub: Hub) -> None:
    await bring(hub, "Rumour", "They whisper that the heron pays in teeth.", canon=False)
    async with hub.client("tier:silver") as silver:
        found = await tell(silver, "retrieve_lore", topic="heron")
        assert [citation["source"] for citation in found["citations"]] == ["outside"]
        assert await is_tainted(silver)


async def test_a_contradiction_is_named_with_its_place_and_its_source(hub: Hub) -> None:
    text = "The rain fell. Mara Thorne is thirty-six years old. Osric Vance opened the door."
    async with hub.client("tier:silver") as silver:
        answer = await silver.call_tool("check_consistency", {"narrative": text})
        then = await tell(silver, "check_consistency", narrative="Osric Vance opened the door.", scope={"at": 3.0})
        assert not await is_tainted(silver)

    told = answer.structured_content
    assert told is not None
    assert (told["consistent"], told["verdict"]) == (False, "fail")
    assert [(v["code"], v["severity"], v["claim"]) for v in told["violations"]] == [
        ("functional_fact", "error", "Mara Thorne is thirty-six years old"),
        ("dead_actor", "error", "Osric Vance opened"),
    ]
    for violation in told["violations"]:
        start, end = violation["span"]
        assert text[start:end] == violation["claim"]
    assert told["violations"][0]["conflicts_with"] == {"source": "lore:mara", "text": "Mara Thorne: age = 34"}
    assert told["coverage"]["sentences"] == 3
    assert "Not consistent (2 of 3 sentences understood)" in answer.content[0].text  # type: ignore[union-attr]
    assert then["consistent"] is True


async def test_only_a_text_that_was_wholly_understood_is_called_consistent(hub: Hub) -> None:
    async with hub.client("tier:silver") as silver:
        yes = await tell(silver, "check_consistency", narrative="Mara opened the door. Mara is thirty-four years old.")
        unsure = await tell(silver, "check_consistency", narrative="Mara opened the door. The heron paid in teeth.")
        nothing = await tell(silver, "check_consistency", narrative="— … —")

    assert (yes["consistent"], yes["verdict"], yes["coverage"]["understood"]) == (True, "pass", 2)
    assert (unsure["consistent"], unsure["verdict"]) == (None, "unsure")
    assert unsure["coverage"] == {
        "sentences": 2,
        "understood": 1,
        "lore_not_understood": 0,
        "reasons": {"words": 1},
        "not_understood": [{"span": [22, 46], "reason": "words"}],
    }
    assert nothing["consistent"] is None


async def test_the_callers_own_lore_is_canon_for_the_call(hub: Hub) -> None:
    lore: dict[str, Any] = {
        "Brask": {"age": 50, "home": "Gallowmere", "status": "alive"},
        "Wend": "Wend has grey eyes.",
    }
    async with hub.client("tier:silver") as silver:
        without = await tell(silver, "check_consistency", narrative="Brask walked to the window.")
        known = await tell(silver, "check_consistency", narrative="Brask walked to the window.", existing_lore=lore)
        wrong = await tell(
            silver, "check_consistency", narrative="Brask is forty years old. Wend has green eyes.", existing_lore=lore
        )

    assert [v["code"] for v in without["violations"]] == ["unknown_entity"]
    assert known["consistent"] is True
    assert [v["conflicts_with"] for v in wrong["violations"]] == [
        {"source": "existing_lore: Brask", "text": "Brask: age = 50"},
        {"source": "existing_lore: Wend", "text": "Wend has grey eyes"},
    ]


async def test_a_name_that_only_canons_lore_has_is_known(hub: Hub) -> None:
    await bring(hub, "Rumour", "They say Tolliver Grimm drowned.", canon=False)
    async with hub.client("tier:silver") as silver:
        known = await tell(silver, "check_consistency", narrative="Jessop Wray opened the door.")
        rumoured = await tell(silver, "check_consistency", narrative="Tolliver Grimm opened the door.")

    assert known["violations"] == []
    assert [v["code"] for v in rumoured["violations"]] == ["unknown_entity"]


async def test_quests_are_held_against_what_a_player_or_the_caller_says_is_done(hub: Hub) -> None:
    text = "Mara finished The Drowned Clock."
    async with hub.client("tier:silver") as silver:
        assert (await tell(silver, "check_consistency", narrative=text))["violations"] == []
        done = await tell(silver, "check_consistency", narrative=text, scope={"player_id": "anna"})
        assert done["violations"] == []
        none = await tell(silver, "check_consistency", narrative=text, scope={"done": []})
        assert [v["code"] for v in none["violations"]] == ["quest_precondition"]
        unfit: list[dict[str, Any]] = [{"player_id": "nobody"}, {"player_id": "anna", "done": []}]
        for scope in unfit:
            assert error_of(await silver.call_tool("check_consistency", {"narrative": text, "scope": scope}))


async def test_facts_are_read_by_id_or_name_at_a_moment_and_page_by_page(hub: Hub) -> None:
    async with hub.client("tier:silver") as silver, hub.client("tier:bronze") as bronze:
        now = await tell(silver, "get_entity_facts", entity="Mara Thorne")
        then = await tell(silver, "get_entity_facts", entity="mara", as_of=1.0, known_to="osric")
        first = await tell(silver, "get_entity_facts", entity="mara", limit=2)
        rest = await tell(silver, "get_entity_facts", entity="mara", limit=2, cursor=first["next_cursor"])
        stolen = await bronze.call_tool("get_entity_facts", {"entity": "mara", "cursor": first["next_cursor"]})
        nobody = await silver.call_tool("get_entity_facts", {"entity": "Nobody"})

    assert (now["entity"], now["name"]) == ("mara", "Mara Thorne")
    assert {fact["id"] for fact in now["items"]} == {"f_age", "f_eyes", "f_home"}
    assert {fact["id"] for fact in then["items"]} == {"f_age", "f_home_then"}
    assert [fact["id"] for fact in first["items"] + rest["items"]] == ["f_age", "f_eyes", "f_home"]
    assert rest["next_cursor"] is None
    assert error_of(stolen)["code"] == "bad_input"
    assert error_of(nobody)["code"] == "not_found"


async def test_plots_are_read_whole_in_part_and_node_by_node(hub: Hub) -> None:
    async with hub.client("tier:silver") as silver:
        whole = await tell(silver, "get_plot_graph", graph_id="ledger", limit=2)
        rest = await tell(silver, "get_plot_graph", graph_id="ledger", limit=2, cursor=whole["next_cursor"])
        part = await tell(silver, "get_plot_graph", graph_id="ledger", start="clock", depth=1)
        quest = await tell(silver, "get_quest", id="clock")
        for name, arguments in (
            ("get_plot_graph", {"graph_id": "nothing"}),
            ("get_plot_graph", {"graph_id": "ledger", "start": "nothing"}),
            ("get_plot_graph", {"graph_id": "ledger", "cursor": whole["next_cursor"], "start": "clock"}),
            ("get_quest", {"id": "nothing"}),
        ):
            assert error_of(await silver.call_tool(name, arguments))["next_step"]

    assert [node["id"] for node in whole["nodes"] + rest["nodes"]] == ["audit", "clock", "bell"]
    assert rest["next_cursor"] is None
    assert whole["edges"][0] == {"src": "audit", "dst": "clock", "kind": "next", "label": ""}
    assert [node["id"] for node in part["nodes"]] == ["clock", "bell"]
    assert (quest["graph_id"], quest["after"], quest["before"], quest["state"]) == (
        "ledger",
        ["audit"],
        ["bell"],
        "locked",
    )
    assert quest["node"]["requires"] == {"all": [{"node": "audit"}, {"item": "bone_key"}]}
    assert quest["node"]["effects"] == [{"flag": "bell_rung", "value": True}]


async def test_what_a_player_may_take_on_and_what_is_in_the_way(hub: Hub) -> None:
    async with hub.client("tier:silver") as silver:
        open_now = await tell(silver, "list_available_quests", player_id="anna")
        bell = await tell(silver, "explain_locked", node_id="bell", player_id="anna")
        clock = await tell(silver, "explain_locked", node_id="clock", player_id="anna")
        audit = await tell(silver, "explain_locked", node_id="audit", player_id="anna")
        nobody = await silver.call_tool("list_available_quests", {"player_id": "mara"})

    assert [quest["id"] for quest in open_now["items"]] == ["clock"]
    assert bell["locks"] == [
        {"kind": "missing", "what": "node clock"},
        {"kind": "missing", "what": "flag bell_rung = True"},
    ]
    assert (clock["locked"], audit["locks"][0]["kind"]) == (False, "done")
    assert error_of(nobody)["code"] == "not_found"


async def test_a_sound_graph_is_valid(hub: Hub) -> None:
    async with hub.client("tier:silver") as silver:
        assert await tell(silver, "validate_plot_graph", graph_id="ledger") == {
            "graph_id": "ledger",
            "version": 1,
            "valid": True,
            "faults": [],
            "omitted": 0,
        }


@pytest.mark.parametrize("principal", ["tier:gold", "tier:silver", "tier:bronze", "service:game", "person:anna"])
async def test_reads_are_for_all_but_gold_and_writes_for_nobody_without_an_approval(hub: Hub, principal: str) -> None:
    roles = ("designer",) if principal.startswith("person:") else ()
    async with hub.client(principal, *roles) as client:
        listed = {tool.name for tool in (await client.list_tools()).tools}
        for name, arguments in READS.items():
            answer = await client.call_tool(name, arguments)
            assert (name in listed) is (principal != "tier:gold")
            assert answer.is_error is (principal == "tier:gold"), (name, answer)
        for name, arguments in WRITES.items():
            code = error_of(await client.call_tool(name, arguments))["code"]
            asks = principal in {"tier:bronze", "person:anna"}
            assert code == ("approval_pending" if asks else "denied")


async def test_calls_that_need_bronze_are_absent_and_name_the_setting(hub: Hub) -> None:
    async with hub.client("tier:bronze") as bronze, hub.client("tier:silver") as silver:
        listed = {tool.name for tool in (await bronze.list_tools()).tools}
        for name, arguments in BRONZE.items():
            assert name not in listed
            error = error_of(await bronze.call_tool(name, arguments))
            assert (error["code"], error["setting"]) == ("not_configured", "BODY_BROKER_BRONZE_URL")
        assert error_of(await silver.call_tool("generate_narrative", BRONZE["generate_narrative"]))["code"] == "denied"


UNFIT: list[tuple[str, dict[str, Any]]] = [
    ("retrieve_lore", {"topic": ""}),
    ("retrieve_lore", {"topic": "x", "k": 21}),
    ("retrieve_lore", {"topic": "x", "context": {str(n): n for n in range(17)}}),
    ("retrieve_lore", {"topic": "x", "context": {"persona": "../etc"}}),
    ("retrieve_lore", {"topic": "x", "entities": ["Nobody At All"]}),
    ("check_consistency", {"narrative": ""}),
    ("check_consistency", {"narrative": "x" * 100_001}),
    ("check_consistency", {"narrative": "x", "level": "judge"}),
    ("check_consistency", {"narrative": "x", "scope": {"at": "now"}}),
    ("check_consistency", {"narrative": "x", "scope": {"where": 1}}),
    ("get_entity_facts", {"entity": "mara", "limit": 101}),
    ("get_entity_facts", {"entity": "mara", "cursor": "forged"}),
    ("get_plot_graph", {"graph_id": "ledger", "depth": -1}),
    ("generate_story_arc", {"theme": "x", "length": 0}),
]


async def test_arguments_that_do_not_fit_are_refused(hub: Hub) -> None:
    async with hub.client("tier:bronze") as bronze:
        for name, arguments in UNFIT:
            error = error_of(await bronze.call_tool(name, arguments))
            assert error["code"] in {"bad_input", "not_found"}, (name, arguments)


class Write(Arguments):
    """What an approved call would run."""

    given: dict[str, Any]


class Written(Result):
    """What came of it."""

    said: dict[str, Any]


async def fx_write_canon(arguments: Write, call: Call, handed: dict[str, Services]) -> Written:
    """Runs a row's function with a call of the gate's own making: nobody can approve the row itself yet."""
    given, services = arguments.given, handed["storyteller"]
    if "fact_id" in given:
        done: Result = await retire_fact(RetireFact.model_validate(given), call, services)
    else:
        done = await add_fact(AddFact.model_validate(given), call, services)
    return Written(said=done.model_dump(mode="json"))


FIXTURE = Room(
    name="writes",
    title="Writes",
    description="Writes as if approved.",
    tools=(
        Tool(
            name="fx_write_canon",
            group="own",
            run=fx_write_canon,
            title="Write",
            description="Writes as if approved.",
            effect="repeatable",
        ),
    ),
)


async def test_an_approved_fact_counts_at_once_and_stands_beside_its_decision(
    pool: Pool, settings_for: Callable[..., Settings], redis: object
) -> None:
    _ = redis  # flushed before the test
    await put_world(pool)
    handed: dict[str, Services] = {}
    rooms = (*ROOMS, FIXTURE)
    async with (
        open_runtime(settings_for(tools="all"), rooms, extra_services={"writes": handed}) as runtime,
        listening(runtime, Address("127.0.0.1", 0)) as served,
    ):
        hub = Hub(served.url, runtime, Seen(), served.front)
        handed["storyteller"] = runtime.services.storyteller
        async with hub.client("person:anna") as anna, hub.client("tier:silver") as silver:
            await _write_and_see(anna, silver)

    rows = await pool.fetch(
        "SELECT c.change, c.by FROM canon_change c JOIN audit_record a"
        " ON a.writer = c.receipt_writer AND a.seq = c.receipt_sequence ORDER BY c.version"
    )
    assert [tuple(row) for row in rows] == [("fact_added", "person:anna"), ("fact_retired", "person:anna")]


async def _write_and_see(anna: Client, silver: Client) -> None:
    text = {"narrative": "Ivo Sark is forty years old."}
    fact = {"subject": "ivo", "predicate": "age", "object": 41}
    assert (await tell(silver, "check_consistency", **text))["consistent"] is True
    added = (await tell(anna, "fx_write_canon", given=fact))["said"]
    again = (await tell(anna, "fx_write_canon", given=fact))["said"]
    assert (await tell(silver, "check_consistency", **text))["consistent"] is False
    other = await anna.call_tool("fx_write_canon", {"given": fact | {"object": 42}})
    by_name = await anna.call_tool("fx_write_canon", {"given": fact | {"subject": "Ivo Sark", "object": 43}})
    gone = (await tell(anna, "fx_write_canon", given={"fact_id": added["fact_id"]}))["said"]
    assert (await tell(silver, "check_consistency", **text))["consistent"] is True
    for bad in (fact | {"valid_from": 2.0, "valid_to": 1.0}, fact | {"predicate": "nothing"}):
        assert error_of(await anna.call_tool("fx_write_canon", {"given": bad}))["code"] == "bad_input"
    assert (added["created"], again) == (True, added | {"created": False})
    assert error_of(other)["code"] == error_of(by_name)["code"] == "conflict"
    assert gone == {"fact_id": added["fact_id"], "retired": True}
