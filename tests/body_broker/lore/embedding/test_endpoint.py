from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from body_broker.errors import SettingsError
from body_broker.lore.embedding.endpoint import ROOMS_CHARACTERS, Endpoint
from body_broker.lore.embedding.making import Makers
from body_broker.lore.embedding.models import Model
from body_broker.lore.embedding.words import BadVectors, ModelAway, Text
from body_broker.settings import Settings, load_settings
from tests.counterparts.embeddings_api import EmbeddingsApi, Misbehave, answer_with, embeddings_api

KEY = "sk-quite-secret"
FERRY = Text("Osric Vane", "", "The ferryman takes no coin from the drowned.")

pytestmark = pytest.mark.requires("weights")


@pytest.fixture
async def endpoint(api: EmbeddingsApi) -> AsyncIterator[Endpoint]:
    found = Endpoint(api.url, api.model, key=KEY, timeout_s=20, pause_max_s=0.01)
    yield found
    await found.close()


def answering(status: int, body: str = "", **headers: str) -> Misbehave:
    async def answer(_texts: list[str]) -> web.Response:
        return web.Response(status=status, text=body, headers=headers, content_type="text/html")

    return answer


def once(first: Misbehave) -> Misbehave:
    waiting = [first]

    async def answer(texts: list[str]) -> web.StreamResponse | None:
        return await waiting.pop()(texts) if waiting else None

    return answer


async def test_vectors_come_in_the_order_of_the_texts(endpoint: Endpoint, api: EmbeddingsApi) -> None:
    names = [Text(f"Title {n}", "", "x") for n in range(7)]

    found = await endpoint.passages(names)

    expected = await api.vectors([f"{text.title}\n\nx" for text in names])
    assert [vectors[0] for vectors in found] == [pytest.approx(vector, abs=1e-6) for vector in expected]
    assert api.keys == [f"Bearer {KEY}"]


@pytest.mark.parametrize("status", [429, 503])
async def test_a_busy_server_is_asked_once_more_after_a_bounded_pause(
    endpoint: Endpoint, api: EmbeddingsApi, status: int
) -> None:
    busy = answering(status, **{"Retry-After": "86400"})
    api.misbehave = once(busy)
    assert len(await endpoint.passages([FERRY])) == 1

    api.asked.clear()
    api.misbehave = busy
    with pytest.raises(ModelAway, match=f"has no room for more now .HTTP {status}") as told:
        await endpoint.passages([FERRY])
    assert len(api.asked) == 2
    assert told.value.retry_after_s == 300

    api.asked.clear()
    with pytest.raises(ModelAway):
        await endpoint.query("ferryman")
    assert len(api.asked) == 1, "nobody who searches waits for a second try"


@pytest.mark.parametrize(
    ("misbehave", "what"),
    [
        (answering(401), "fails .HTTP 401"),
        (answering(302, Location="http://127.0.0.1:1/v1/embeddings"), "redirects, which is not followed .HTTP 302"),
        (answering(200, "<html>Welcome</html>"), "is no JSON"),
        (answering(200, '{"data": "nothing"}'), "holds no list of embeddings"),
        (answering(200, '{"data": [{"index": 0}]}'), "holds no list of embeddings"),
        (answering(200, '{"data": []}'), "gave 0 vectors for 1 texts"),
        (answering(200, '{"data": [{"index": 3, "embedding": [1.0]}]}'), "or for other texts"),
        (answering(200, "[" * 5_000), "is no JSON"),
    ],
)
async def test_an_answer_that_is_none_is_told_in_our_words(
    endpoint: Endpoint, api: EmbeddingsApi, misbehave: Misbehave, what: str
) -> None:
    api.misbehave = misbehave

    with pytest.raises(ModelAway, match=what) as told:
        await endpoint.passages([FERRY])
    assert "BODY_BROKER_EMBEDDINGS" in told.value.next_step or isinstance(told.value, BadVectors)


async def test_a_server_that_does_not_answer_or_is_not_there_is_away(api: EmbeddingsApi) -> None:
    go = asyncio.Event()

    async def later(_texts: list[str]) -> None:
        await go.wait()

    api.misbehave = later
    slow = Endpoint(api.url, api.model, key=None, timeout_s=0.05)
    nowhere = Endpoint("http://127.0.0.1:1/v1", api.model, key=None, timeout_s=60)
    try:
        with pytest.raises(ModelAway, match=r"did not answer within 0\.05 s"):
            await slow.query("ferryman")
        with pytest.raises(ModelAway, match="cannot be reached"):
            await nowhere.query("ferryman")
    finally:
        go.set()
        await slow.close()
        await nowhere.close()


async def test_passages_that_a_model_finds_too_long_are_cut(endpoint: Endpoint, api: EmbeddingsApi) -> None:
    async def only_short(texts: list[str]) -> web.Response | None:
        return web.Response(status=400) if max(map(len, texts)) > 300 else None

    api.misbehave = only_short
    long = Text("The Quay", "Chapter 1", " ".join(f"The lantern of pier {n} went out." for n in range(40)))

    short, several = await endpoint.passages([FERRY, long])
    assert (len(short), len(several)) == (1, len(api.asked[-1]) - 1)
    assert len(several) > 4
    (query,) = await endpoint.query("who rows the drowned over? " * 70)
    assert len(query) == 384
    api.misbehave = answering(400)
    with pytest.raises(BadVectors, match="refuses the texts"):
        await endpoint.passages([FERRY])
    assert len(api.asked[-3:]) == len(ROOMS_CHARACTERS)


async def test_the_key_is_in_no_error_and_no_log(
    endpoint: Endpoint, api: EmbeddingsApi, caplog: pytest.LogCaptureFixture
) -> None:
    api.key = "another"
    with caplog.at_level(logging.DEBUG), pytest.raises(ModelAway) as told:
        await endpoint.query("ferryman")

    shown = "".join(
        [caplog.text, told.value.message, told.value.next_step, repr(told.value), repr(told.value.__cause__)]
    )
    assert KEY not in shown


def settings(url: str, **more: Any) -> Settings:
    return Settings.model_validate({"embeddings": url, "embeddings_model": "minilm", **more})


@pytest.mark.parametrize(
    "url",
    [
        "https://studio.example/v1?key=secret",
        "https://studio.example:port/v1",
        "https:///v1",
    ],
)
def test_a_url_that_is_more_than_a_place_stops_the_start(url: str) -> None:
    with pytest.raises(SettingsError) as told:
        Makers(settings(url), None)
    assert "secret" not in told.value.message


def test_a_url_with_a_password_is_no_setting() -> None:
    with pytest.raises(SettingsError) as told:
        load_settings({"BODY_BROKER_EMBEDDINGS": "https://ann:secret@studio.example/v1"}, None)
    assert "secret" not in told.value.message


@pytest.mark.parametrize(
    ("url", "usable"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://localhost:8000/v1", True),
        ("https://studio.example/v1", True),
        ("http://studio.example/v1", False),
        ("http://localhost.studio.example/v1", False),
        ("http://10.0.0.7/v1", False),
    ],
)
def test_a_key_travels_in_the_clear_on_this_machine_only(url: str, usable: bool) -> None:  # noqa: FBT001  # a table's column
    Makers(settings(url), None)
    if usable:
        Makers(settings(url, embeddings_api_key=KEY), None)
    else:
        with pytest.raises(SettingsError, match="in the clear"):
            Makers(settings(url, embeddings_api_key=KEY), None)


async def test_the_key_goes_to_its_own_origin_only() -> None:
    async with embeddings_api() as ours, embeddings_api() as others:
        makers = Makers(settings(ours.url, embeddings_api_key=KEY), None)
        for number, api in enumerate((ours, others)):
            maker = makers.of(Model(number, f"minilm at {api.url}, text 1", api.url, None, "serving"))
            assert maker is not None
            await maker.query("ferryman")
        await makers.close()

    assert (ours.keys, others.keys) == ([f"Bearer {KEY}"], [None])


async def test_a_redirect_carries_the_key_nowhere() -> None:
    async with embeddings_api() as ours, embeddings_api() as others:
        ours.misbehave = answering(307, Location=f"{others.url}/embeddings")
        endpoint = Endpoint(ours.url, "minilm", key=KEY, timeout_s=60)
        with pytest.raises(ModelAway, match="redirects"):
            await endpoint.query("ferryman")
        await endpoint.close()
    assert others.asked == []


async def test_an_answer_without_end_is_not_read_to_it(
    endpoint: Endpoint, api: EmbeddingsApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("body_broker.lore.embedding.endpoint.ANSWER_BYTES_MAX", 100_000)

    async def long(_texts: list[str]) -> web.Response:
        return answer_with([[0.5] * 384] * 200)

    api.misbehave = long
    with pytest.raises(BadVectors, match="has no end"):
        await endpoint.query("ferryman")
