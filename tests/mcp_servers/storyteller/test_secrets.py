"""Who is told what: aliases known to few, facts and nodes above a spoiler level."""

from __future__ import annotations

import pytest

from body_broker.lore import make_draft
from body_broker.storage.postgres import Pool
from body_broker.work.model import Origin
from body_broker.world.canon import store
from body_broker.world.canon.model import Fact
from tests.mcp_servers.hub.conftest import Hub, error_of
from tests.mcp_servers.storyteller.conftest import GRAPH
from tests.mcp_servers.storyteller.test_tools import tell

SECRETS = (
    Fact(id="f_alias", subject="osric", predicate="alias", object="The Gentleman", source="x", known_by=("mara",)),
    Fact(id="f_home_osric", subject="osric", predicate="home", object="row", source="lore:deep"),
    Fact(id="f_age_osric", subject="osric", predicate="age", object=70, source="lore:shallow"),
    Fact(id="f_job_osric", subject="osric", predicate="occupation", object="miller", source="lore:nowhere"),
    Fact(id="f_hair_osric", subject="osric", predicate="hair_colour", object="grey", source="operator:ann"),
    Fact(id="f_eyes_osric", subject="osric", predicate="eye_colour", object="grey", source="x", known_by=("ivo",)),
)


@pytest.fixture
async def secret(hub: Hub, pool: Pool) -> Hub:
    async with pool.acquire() as connection, connection.transaction():
        for fact in SECRETS:
            await store.add_fact(connection, fact, store.Effect("operator:ann"))
    lore = hub.runtime.services.rag
    taken = await lore.lore.importing.take(
        [
            make_draft("world/deep", "Deep", "Osric lives in the row.", "text", {"spoiler_level": 9}),
            make_draft("world/shallow", "Shallow", "Osric is seventy.", "text", {"spoiler_level": 2}),
        ],
        index="shared",
        canon=True,
        origin=Origin(chain=("operator:ann",), session="operator:ann"),
    )
    await lore.follow(taken)
    return hub


async def test_an_alias_is_only_for_those_who_know_whose_it_is(secret: Hub) -> None:
    async with secret.client("tier:silver") as silver:
        mara = await tell(silver, "get_entity_facts", entity="The Gentleman", known_to="mara")
        ivo = await silver.call_tool("get_entity_facts", {"entity": "The Gentleman", "known_to": "ivo"})
        asked = {"topic": "row", "entities": ["The Gentleman"], "known_to": "ivo"}
        lore = await silver.call_tool("retrieve_lore", asked)

    assert mara["entity"] == "osric"
    assert error_of(ivo)["code"] == error_of(lore)["code"] == "not_found"
    assert "osric" not in f"{ivo} {lore}"


async def test_a_spoiler_level_limits_facts_by_their_document_and_by_who_knows_them(secret: Hub) -> None:
    async with secret.client("tier:silver") as silver:
        told = {
            level: {f["id"] for f in (await tell(silver, "retrieve_lore", **asked))["facts"]}
            for level in (None, 0, 5, 9)
            for asked in ({"topic": "row", "entities": ["osric"], "spoiler_max": level},)
        }

    assert told[None] == {fact.id for fact in SECRETS} | {"f_dead"}
    assert told[0] == {"f_hair_osric"}
    assert told[5] == {"f_hair_osric", "f_age_osric"}
    assert told[9] == {"f_hair_osric", "f_age_osric", "f_home_osric"}


async def test_nodes_above_a_spoiler_level_are_as_if_they_were_not_there(hub: Hub, pool: Pool) -> None:
    nodes = [node.model_copy(update={"spoiler_level": 10 * n}) for n, node in enumerate(GRAPH.nodes)]
    graph = GRAPH.model_copy(update={"nodes": tuple(nodes)})
    async with pool.acquire() as connection, connection.transaction():
        canon = await store.read_canon(connection)
        await store.replace_canon(connection, canon.predicates, canon.facts, (graph,), "operator:ann")
    async with hub.client("tier:silver") as silver:
        part = await tell(silver, "get_plot_graph", graph_id="ledger", spoiler_max=10)
        clock = await tell(silver, "get_quest", id="clock", spoiler_max=10)
        hidden = await silver.call_tool("get_quest", {"id": "bell", "spoiler_max": 19})
        whole = await tell(silver, "get_quest", id="clock")
        begun = await silver.call_tool("get_plot_graph", {"graph_id": "ledger", "start": "bell", "spoiler_max": 0})

    assert [node["id"] for node in part["nodes"]] == ["audit", "clock"]
    assert [(edge["src"], edge["dst"]) for edge in part["edges"]] == [("audit", "clock")]
    assert (clock["before"], whole["before"], clock["after"]) == ([], ["bell"], ["audit"])
    assert error_of(hidden)["code"] == "not_found"
    assert error_of(begun)["code"] == "bad_input"
