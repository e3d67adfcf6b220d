from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from body_broker.lore.embedding.parts import TEXT
from body_broker.work.model import WorkSummary
from tests.body_broker.lore.embedding.conftest import Open, Studio, by, text, texts
from tests.counterparts.embeddings_api import EmbeddingsApi, embeddings_api
from tests.waiting import wait_until

FERRY = text("Osric Vane", "The ferryman takes no coin from the drowned.")
LANTERNS = texts([f"The lantern of pier {n} went out." for n in range(70)])


@pytest.fixture
async def other() -> AsyncIterator[EmbeddingsApi]:
    """Another server, with another model of the same size."""
    async with embeddings_api(model="another", sense=False) as found:
        yield found


def name(api: EmbeddingsApi) -> str:
    return f"{api.model} at {api.url}, text {TEXT}"


async def found(
    studio: Studio, query: str = "Text 7\n\nThe lantern of pier 7 went out."
) -> tuple[list[str], list[str]]:
    """Titles by meaning, the best first, and what was missing. The passage's own text as query: its vector is the same."""
    page = await studio.search(query, by="meaning")
    return [p.title for p in page.passages][:1], list(page.unavailable)


async def test_the_first_model_serves_from_its_first_vector_on(studio: Studio, api: EmbeddingsApi) -> None:
    assert await studio.models() == {"serving": name(api)}
    await studio.bring(*LANTERNS)
    asked, go = asyncio.Event(), asyncio.Event()

    async def second_waits(given: list[str]) -> None:
        if len(given) > 1 and len(api.asked) > 1:
            asked.set()
            await go.wait()

    api.misbehave = second_waits
    async with studio.working():
        await asked.wait()
        assert await found(studio) == (["Text 7"], ["vectors_incomplete"])
        go.set()
        await wait_until(lambda: _all_made(studio), "all is made")
    assert await found(studio) == (["Text 7"], [])


async def _all_made(studio: Studio) -> bool:
    now = await studio.embedding.standing()
    return now.models[-1][1] == now.passages and "building" not in await studio.models()


async def test_the_old_model_serves_while_the_new_one_is_built(
    open_studio: Open, api: EmbeddingsApi, other: EmbeddingsApi
) -> None:
    async with open_studio(**by(api)) as studio:
        await studio.bring(*LANTERNS)
        await studio.embed_all()
        assert await found(studio) == (["Text 7"], [])

    asked, go = asyncio.Event(), asyncio.Event()

    async def second_waits(given: list[str]) -> None:
        if len(given) > 1 and len(other.asked) > 1:
            asked.set()
            await go.wait()

    other.misbehave = second_waits
    async with open_studio(**by(other)) as studio, studio.working():
        assert await studio.models() == {"serving": name(api), "building": name(other)}
        await asked.wait()
        assert await found(studio, "Text 9\n\nThe lantern of pier 9 went out.") == (["Text 9"], [])
        old = await studio.sql("SELECT id FROM lore_model WHERE state = 'serving'")
        assert studio.told.models == []
        go.set()
        await wait_until(lambda: _all_made(studio), "the new one serves")

        assert await studio.models() == {"serving": name(other)}
        new = await studio.sql("SELECT id FROM lore_model")
        assert studio.told.models == [new]
        assert {model for model, _, _ in await studio.vectors()} == {new} != {old}
        await wait_until(lambda: _answers(studio), "this process knows", timeout_s=60)
        assert name(other).startswith("another at http")


async def test_what_is_imported_while_a_model_is_built_is_found_by_the_one_that_serves(
    open_studio: Open, api: EmbeddingsApi, other: EmbeddingsApi
) -> None:
    async with open_studio(**by(api)) as studio:
        await studio.bring(*LANTERNS)
        await studio.embed_all()
    asked, go = asyncio.Event(), asyncio.Event()

    async def third_waits(_texts: list[str]) -> None:
        if len(other.asked) == 3:
            asked.set()
            await go.wait()

    async with open_studio(**by(other)) as studio:
        await studio.bring(FERRY)
        other.misbehave = third_waits
        async with studio.working():
            await asked.wait()
            query = "Osric Vane\n\nThe ferryman takes no coin from the drowned."
            assert await found(studio, query) == (["Osric Vane"], [])
            assert studio.told.whole == [await studio.sql("SELECT max(rev) FROM lore_document")]
            go.set()
            await wait_until(lambda: _all_made(studio), "the new one serves")
        assert len(await studio.vectors()) == 71


async def _answers(studio: Studio) -> bool:
    return await found(studio) == (["Text 7"], [])


async def test_a_half_built_model_goes_when_a_third_one_is_wanted(
    open_studio: Open, api: EmbeddingsApi, other: EmbeddingsApi
) -> None:
    async with open_studio(**by(api)) as studio:
        await studio.bring(*LANTERNS)
        await studio.embed_all()
    await _build_half(open_studio, other)
    async with open_studio(**by(api)) as studio, embeddings_api(model="third", sense=False) as third:
        assert await studio.models() == {"serving": name(api)}, "A again: B is gone"
        assert len(await studio.vectors()) == 70

        await _build_half(open_studio, other)
        async with open_studio(**by(third)) as last:
            assert await last.models() == {"serving": name(api), "building": name(third)}
            assert {model for model, _, _ in await last.vectors()} == {
                await last.sql("SELECT id FROM lore_model WHERE state = 'serving'")
            }
            await last.embed_all()
            assert await last.models() == {"serving": name(third)}
            assert len(await last.vectors()) == len(set(await last.vectors())) == 70


async def _build_half(open_studio: Open, api: EmbeddingsApi) -> None:
    """A first batch by this model, whose process then ends."""
    asked, go = asyncio.Event(), asyncio.Event()
    api.asked.clear()

    async def second_waits(_texts: list[str]) -> None:
        if len(api.asked) > 1:
            asked.set()
            await go.wait()

    api.misbehave = second_waits
    async with open_studio(**by(api)) as studio, studio.working():
        await asked.wait()
        building = await studio.sql("SELECT id FROM lore_model WHERE state = 'building'")
        assert sum(model == building for model, _, _ in await studio.vectors()) == 32
    go.set()


async def test_a_half_built_model_goes_on_where_it_stood(
    open_studio: Open, api: EmbeddingsApi, other: EmbeddingsApi
) -> None:
    async with open_studio(**by(api)) as studio:
        await studio.bring(*LANTERNS)
        await studio.embed_all()
    await _build_half(open_studio, other)
    other.asked.clear()
    other.misbehave = None
    async with open_studio(**by(other)) as studio:
        await studio.embed_all()
        assert await studio.models() == {"serving": name(other)}
    assert len(other.texts) == 70 - 32


async def test_a_batch_of_a_model_that_is_wanted_no_more_is_thrown_away(
    open_studio: Open, api: EmbeddingsApi, other: EmbeddingsApi
) -> None:
    async with open_studio(**by(api)) as studio:
        await studio.bring(*LANTERNS)
        await studio.embed_all()
        asked, go = asyncio.Event(), asyncio.Event()

        async def first_waits(_texts: list[str]) -> None:
            asked.set()
            await go.wait()

        other.misbehave = first_waits
        async with open_studio(**by(other)) as new, new.working():
            await asked.wait()
            async with open_studio(**by(api)):  # the latest start wins
                go.set()
                await wait_until(lambda: _idle(new), "the job has ended")
        assert await studio.models() == {"serving": name(api)}
        assert len(await studio.vectors()) == 70


async def _idle(studio: Studio) -> bool:
    return not await studio.jobs("queued", "running")


async def test_of_two_processes_with_different_settings_the_latest_start_wins_and_they_settle(
    open_studio: Open, api: EmbeddingsApi, other: EmbeddingsApi
) -> None:
    async with open_studio(**by(api)) as old, open_studio(**by(other)) as new:
        await old.bring(*LANTERNS)
        async with old.working(name="old"), new.working(name="new"):
            await wait_until(lambda: _all_made(new), "the new one serves", timeout_s=90)
        assert await old.models() == {"serving": name(other)}, "nothing had been built of the old one"
        assert {job.state for job in await old.jobs()} <= {"succeeded"}
        # The old process serves on: it asks the new one's model, which needs no key here.
        await wait_until(lambda: _answers(old), "the old process knows", timeout_s=60)


async def test_a_worker_that_cannot_ask_the_wanted_model_leaves_it_to_others(
    open_studio: Open, api: EmbeddingsApi
) -> None:
    async with open_studio(**by(api)) as studio, open_studio(replace=False, embeddings="local") as local:
        await studio.bring(FERRY)
        await studio.pool.execute("UPDATE lore_model SET url = NULL, name = 'weights of somebody else, text 1'")
        async with local.working():
            (job,) = await wait_until(lambda: _refused(local), "it tried")
    assert job.error["message"].startswith("The model that is wanted cannot be asked from here")
    assert job.state in {"queued", "running"}
    assert await studio.vectors() == []


async def _refused(studio: Studio) -> list[WorkSummary]:
    return [job for job in await studio.jobs() if job.error]


async def test_where_the_old_model_cannot_be_asked_any_more_the_answer_says_so_until_the_switch(
    open_studio: Open, other: EmbeddingsApi
) -> None:
    async with embeddings_api(sense=False) as gone, open_studio(**by(gone)) as studio:
        await studio.bring(*LANTERNS)
        await studio.embed_all()
    async with open_studio(**by(other)) as studio:
        page = await studio.search("lantern pier 7")
        assert (page.unavailable, page.passages[0].title) == (["vectors"], "Text 7")
        await studio.embed_all()
        await wait_until(lambda: _answers(studio), "the switch", timeout_s=60)


async def test_off_embeds_nothing_and_forgets_nothing(open_studio: Open, api: EmbeddingsApi) -> None:
    async with open_studio(**by(api)) as studio:
        await studio.bring(FERRY)
        await studio.embed_all()
        before = await studio.vectors()
    api.asked.clear()
    async with open_studio(embeddings="off") as studio:
        await studio.bring(*LANTERNS[:3])
        page = await studio.search("ferryman")
        assert page.unavailable == ["vectors"]
        assert await studio.vectors() == before
        assert studio.embedding.handlers() == {}
        assert studio.embedding.lacks == "BODY_BROKER_EMBEDDINGS is off"
    assert api.asked == []
    async with open_studio(**by(api)) as studio:
        await studio.embed_all()
        assert len(await studio.vectors()) == 4


async def test_off_from_the_start_leaves_no_work(open_studio: Open) -> None:
    async with open_studio(embeddings="off") as studio:
        await studio.bring(FERRY)
        assert await studio.models() == {}
        assert await studio.jobs() == []


async def test_a_command_leaves_what_another_process_wants(
    open_studio: Open, api: EmbeddingsApi, other: EmbeddingsApi
) -> None:
    async with open_studio(replace=False, **by(api)) as studio:
        assert await studio.models() == {"serving": name(api)}, "where none was wanted, it says"
        await studio.bring(FERRY)
        await studio.embed_all()
    async with open_studio(replace=False, **by(other)) as studio:
        assert await studio.models() == {"serving": name(api)}


async def test_a_model_of_another_size_under_the_same_name_stores_nothing(studio: Studio) -> None:
    await studio.bring(FERRY)
    await studio.embed_all()
    await studio.pool.execute("UPDATE lore_model SET dimensions = 768")
    await studio.bring(*LANTERNS[:2])

    async with studio.working():
        (job,) = await wait_until(lambda: _refused(studio), "it tried")
    assert "a vector of 384 numbers; 768 were expected" in str(job.error)
    assert len(await studio.vectors()) == 1
    await wait_until(lambda: _says_vectors(studio), "this process knows the model's size", timeout_s=60)


async def _says_vectors(studio: Studio) -> bool:
    page = await studio.search("ferryman in a boat that nobody asked for before")
    return page.unavailable == ["vectors"] and bool(page.passages)
