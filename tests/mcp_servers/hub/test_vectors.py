"""Search by meaning as clients and operators meet it: through a served hub, and on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from body_broker.lore import make_draft
from body_broker.work.model import Origin
from mcp_servers.hub.worker import working
from tests.mcp_servers.hub.conftest import Hub, OpenHub
from tests.mcp_servers.hub.test_cli import data_dir, ok
from tests.mcp_servers.hub.test_clients import HUB, run
from tests.waiting import wait_until

__all__ = ["data_dir"]  # a fixture

pytestmark = pytest.mark.requires("weights")

OPERATOR = Origin(chain=("operator:ann",), session="operator:ann")
FERRY = make_draft("ferry.txt", "Osric Vane", "The ferryman takes no coin from the drowned. He rows them before dawn.")
BELL = make_draft("bell.txt", "The Bell", "It tolls when a debt is paid in full, and the whole quay falls silent.")
QUESTION = "Which boatman carries dead people over the river?"


async def test_silver_finds_by_words_and_meaning_what_an_import_brought(open_hub: OpenHub, redis: object) -> None:
    _ = redis  # flushed before the test
    async with open_hub(embeddings="local", tools="all") as hub, hub.client("tier:silver") as silver:
        await hub.runtime.services.rag.lore.importing.take([FERRY, BELL], index="shared", canon=True, origin=OPERATOR)
        async with working(hub.runtime):
            await wait_until(lambda: _vectors(hub, 2), "the vectors are made", timeout_s=60)

        for tool in ("search_lore", "vector_search"):
            found = await _search(silver, tool, query=QUESTION)
            assert [item["title"] for item in found["items"]] == ["Osric Vane", "The Bell"]
            assert found["unavailable"] == []


async def test_a_hub_whose_vectors_are_away_answers_by_words_and_says_so(open_hub: OpenHub, redis: object) -> None:
    _ = redis  # flushed before the test
    nowhere = {"embeddings": "http://127.0.0.1:1/v1", "embeddings_model": "minilm"}
    async with open_hub(**nowhere) as hub, hub.client("tier:silver") as silver:
        await hub.runtime.services.rag.lore.importing.take([FERRY, BELL], index="shared", canon=True, origin=OPERATOR)
        async with working(hub.runtime):
            await wait_until(lambda: _documents(hub, 2), "the import is done")

            found = await _search(silver, "search_lore", query="ferryman")
            assert [item["title"] for item in found["items"]] == ["Osric Vane"]
            assert found["unavailable"] == ["vectors"]


async def _search(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:  # a tool's arguments
    answer = await client.call_tool(tool, arguments)
    assert not answer.is_error, answer
    assert answer.structured_content is not None
    return answer.structured_content


async def _vectors(hub: Hub, count: int) -> bool:
    return await hub.runtime.stores.pool.fetchval("SELECT count(*) FROM lore_vector") == count


async def _documents(hub: Hub, count: int) -> bool:
    return await hub.runtime.stores.pool.fetchval("SELECT count(*) FROM lore_document WHERE rev IS NOT NULL") == count


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    """Two files to import."""
    for draft in (FERRY, BELL):
        (tmp_path / draft.origin).write_text(draft.body, "utf-8")
    return [str(tmp_path / FERRY.origin), str(tmp_path / BELL.origin)]


async def test_an_import_waits_for_its_vectors_only_where_it_is_told_to(data_dir: Path, texts: list[str]) -> None:
    at = ("--data-dir", str(data_dir))
    code, out, err = await run(HUB, "lore", "import", texts[0], *at)
    assert (code, out) == (0, "1 documents imported, 1 passages.\n"), err
    assert err == "1 of 1 passages get their vectors while a hub or worker runs; words find them now.\n"
    shown = (await ok("lore", "status", data_dir=data_dir)).splitlines()
    assert shown[:2] == ["documents   1", "passages    1"]
    assert shown[2].startswith("serving     all-MiniLM-L6-v2 ")
    assert shown[2].endswith(": 0 of 1 passages")
    assert shown[3].endswith(" lore_vectors: queued")

    code, out, err = await run(HUB, "lore", "import", "--wait", *texts, *at)
    assert (code, out) == (0, "1 documents imported, 1 passages, 1 were there already.\n"), err
    assert err == "Every passage is found by meaning too.\n"
    shown = (await ok("lore", "status", data_dir=data_dir)).splitlines()
    assert shown[2].endswith(": 2 of 2 passages")
    assert len(shown) == 3


async def test_who_waits_for_a_model_that_does_not_answer_is_told_what_to_do(data_dir: Path, texts: list[str]) -> None:
    nowhere = {"BODY_BROKER_EMBEDDINGS": "http://127.0.0.1:1/v1", "BODY_BROKER_EMBEDDINGS_MODEL": "minilm"}
    code, out, err = await run(HUB, "lore", "import", "--wait", texts[0], "--data-dir", str(data_dir), **nowhere)
    assert (code, out) == (1, "")
    assert "The vectors wait: The embeddings API cannot be reached.\nCheck BODY_BROKER_EMBEDDINGS" in err
    shown = await ok("lore", "status", data_dir=data_dir, **nowhere)
    assert "lore_vectors: queued" in shown
    assert "The embeddings API cannot be reached." in shown


async def test_without_vectors_it_is_said_that_there_are_none(data_dir: Path, texts: list[str]) -> None:
    off = {"BODY_BROKER_EMBEDDINGS": "off"}
    _, _, err = await run(HUB, "lore", "import", texts[0], "--data-dir", str(data_dir), **off)
    assert err == "Found by words alone: BODY_BROKER_EMBEDDINGS is off.\n"
    code, _, err = await run(HUB, "lore", "import", "--wait", texts[1], "--data-dir", str(data_dir), **off)
    assert code == 1
    assert "There are no vectors to wait for: BODY_BROKER_EMBEDDINGS is off." in err
    assert "none are made here: BODY_BROKER_EMBEDDINGS is off" in await ok("lore", "status", data_dir=data_dir, **off)
