from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from body_broker.lore.embedding import Embedding
from body_broker.lore.embedding.local import NAME
from body_broker.lore.embedding.making import Makers
from body_broker.lore.embedding.models import Serving, Wanted
from body_broker.lore.embedding.queries import Queries
from body_broker.lore.embedding.words import ModelAway
from body_broker.settings import Settings
from tests.body_broker.lore.embedding.conftest import Open, Studio, by
from tests.counterparts.embeddings_api import EmbeddingsApi, answer_with
from tests.waiting import wait_until


async def test_a_query_is_embedded_once(studio: Studio, api: EmbeddingsApi) -> None:
    first = await studio.embedding.embed("who rows the dead")
    again = await studio.embedding.embed("who rows the dead")
    other = await studio.embedding.embed("who rows the living")

    assert first == again != other
    assert api.texts == ["who rows the dead", "who rows the living"]


async def test_equal_queries_under_way_are_one(studio: Studio, api: EmbeddingsApi) -> None:
    go = asyncio.Event()

    async def wait(_texts: list[str]) -> None:
        await go.wait()

    api.misbehave = wait
    asking = [asyncio.create_task(studio.embedding.embed("who rows the dead")) for _ in range(20)]
    await wait_until(lambda: api.asked, "the first one asks")
    asking[0].cancel()  # who asked first may go; the others still get theirs
    go.set()
    found = await asyncio.gather(*asking, return_exceptions=True)

    assert isinstance(found[0], asyncio.CancelledError)
    assert [vector == found[1] for vector in found[1:]] == [True] * 19
    assert len(api.asked) == 1


async def test_what_is_kept_is_bounded_in_bytes_and_the_longest_unused_goes_first(
    open_studio: Open, api: EmbeddingsApi
) -> None:
    async with open_studio(**by(api)) as studio:
        makers = Makers(Settings.model_validate(by(api)), None)
        queries = Queries(makers, Serving(studio.pool), kept_bytes_max=10_000)  # five of these
        for number in range(8):
            await queries.embed(f"query {number}")
            await queries.embed("query 0")
        asked = len(api.asked)
        for number in (7, 6, 5, 0):
            await queries.embed(f"query {number}")
        assert len(api.asked) == asked, "the latest, and the one that is asked again and again, are kept"
        await queries.embed("query 1")
        assert len(api.asked) == asked + 1
        await queries.close()
        await makers.close()


async def test_a_model_that_did_not_answer_is_not_waited_for_by_everybody(
    studio: Studio, api: EmbeddingsApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("body_broker.lore.embedding.queries._AWAY_S", 600.0)  # a moment, however slow this machine is

    async def fail(_texts: list[str]) -> web.Response:
        return web.Response(status=500)

    api.misbehave = fail
    with pytest.raises(ModelAway, match="HTTP 500"):
        await studio.embedding.embed("who rows the dead")
    for number in range(5):
        with pytest.raises(ModelAway, match="did not answer a moment ago"):
            await studio.embedding.embed(f"another query {number}")
    assert len(api.asked) == 1


async def test_a_text_that_the_model_refuses_is_no_reason_to_ask_it_nothing_else(
    studio: Studio, api: EmbeddingsApi
) -> None:
    async def refuse(given: list[str]) -> web.Response | None:
        return web.Response(status=400) if "odd" in given[0] else None

    api.misbehave = refuse
    with pytest.raises(ModelAway, match="refuses"):
        await studio.embedding.embed("an odd text")

    assert await studio.embedding.embed("who rows the dead") is not None
    assert await studio.embedding.embed(" ") is None


@pytest.mark.parametrize(
    ("vector", "what"),
    [
        ([0.5, "x", 0.5], "something else than numbers"),
        ([0.0] * 384, "a vector of zeros"),
        ([1e400, 0.5], "not finite"),
        ([], "a vector of 0 numbers"),
        ([0.1] * 20_000, "a vector of 20000 numbers"),
    ],
)
async def test_a_query_is_never_searched_by_a_vector_that_is_none(
    studio: Studio, api: EmbeddingsApi, vector: list[float], what: str
) -> None:
    async def wrong(_texts: list[str]) -> web.Response:
        if vector[:1] == [1e400]:
            body = '{"data": [{"index": 0, "embedding": [1e400, 0.5]}]}'
            return web.Response(text=body, content_type="application/json")
        return answer_with([vector])

    api.misbehave = wrong
    with pytest.raises(ModelAway, match=f"({what})|is no JSON"):
        await studio.embedding.embed("who rows the dead")


async def test_vectors_are_of_length_one(studio: Studio, api: EmbeddingsApi) -> None:
    async def long(_texts: list[str]) -> web.Response:
        return answer_with([[3.0, 4.0]])

    api.misbehave = long
    found = await studio.embedding.embed("who rows the dead")

    assert found is not None
    assert list(found.values) == pytest.approx([0.6, 0.8])


async def test_without_a_model_there_is_no_vector(open_studio: Open) -> None:
    async with open_studio(embeddings="off") as studio:
        assert await studio.embedding.embed("who rows the dead") is None


async def test_without_weights_on_this_machine_there_is_none_either(studio: Studio) -> None:
    await studio.pool.execute(
        "UPDATE lore_model SET url = NULL, name = $1", Wanted(NAME).name
    )  # another process has them
    bare = Embedding(studio.pool, Makers(Settings.model_validate({}), None), ())

    assert await bare.embed("who rows the dead") is None
    assert bare.handlers() == {}
    assert bare.lacks == "the weights of all-MiniLM-L6-v2 are not installed (group embeddings)"
    await bare.close()
