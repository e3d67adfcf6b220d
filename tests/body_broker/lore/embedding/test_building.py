from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from body_broker.lore.documents import Effect
from body_broker.lore.embedding import building
from body_broker.lore.embedding.words import ModelAway
from body_broker.lore.importing import REINDEX
from body_broker.work import queue
from tests.body_broker.lore.conftest import OPERATOR
from tests.body_broker.lore.embedding.conftest import Noting, Open, Studio, by, long_text, text, texts
from tests.counterparts.embeddings_api import EmbeddingsApi, answer_with
from tests.waiting import wait_until

FERRY = text("Osric Vane", "The ferryman takes no coin from the drowned. He rows them over before dawn.")
BELL = text("The Bell", "It tolls when a debt is paid in full, and the whole quay falls silent.")


async def test_an_import_is_found_by_words_at_once_and_by_meaning_once_the_job_has_run(
    studio: Studio, api: EmbeddingsApi
) -> None:
    api.sense = True
    await studio.bring(FERRY, BELL)

    words = await studio.search("ferryman coin")
    assert [p.title for p in words.passages] == ["Osric Vane"]
    assert words.unavailable == ["vectors_incomplete"]
    (job,) = await studio.jobs("queued")
    assert job.owner == "service:lore"

    await studio.embed_all()

    meaning = await studio.search("boatman who carries the dead without payment", by="meaning")
    assert [p.title for p in meaning.passages] == ["Osric Vane", "The Bell"]
    assert meaning.unavailable == []
    (job,) = await studio.jobs("succeeded")
    assert job.progress == {"done": 2, "total": 2, "message": "2 of 2 passages have their vector"}


async def test_what_is_embedded_is_title_heading_and_text(studio: Studio, api: EmbeddingsApi) -> None:
    await studio.bring(text("Ashmere", "Chapter 1\n\nThe quay sinks an inch a year."))
    await studio.embed_all()

    assert api.texts == ["Ashmere\nChapter 1\nChapter 1\n\nThe quay sinks an inch a year."]


async def test_many_imports_leave_one_job_behind(studio: Studio) -> None:
    for draft in texts([f"The lantern of pier {n} went out." for n in range(12)]):
        await studio.bring(draft)

    assert len(await studio.jobs()) == 1


async def test_imports_that_commit_at_once_leave_one_job_behind(studio: Studio) -> None:
    await asyncio.gather(*(_enqueue(studio) for _ in range(8)))

    assert len(await studio.jobs()) == 1


async def _enqueue(studio: Studio) -> None:
    async with studio.pool.acquire() as connection, connection.transaction():
        await building.enqueue(connection)


async def test_a_change_that_commits_after_a_runs_last_look_is_not_missed(studio: Studio) -> None:
    """The change relies on a job that is queued; that one may not be claimed, look, and end before the change commits."""
    await studio.bring(FERRY)
    taken = await studio.lore.importing.take([BELL], index="shared", canon=True, origin=OPERATOR)
    async with studio.pool.acquire() as connection:
        change = connection.transaction()
        await change.start()
        await building.enqueue(connection)
        await connection.execute("UPDATE lore_document SET canon = canon")
        async with studio.working(poll_s=0.05):
            done = await wait_until(
                lambda: _import_ended(studio, taken.job_id), "the worker works, and found that import"
            )
            assert done
            assert [job.state for job in await studio.jobs()][-1] == "queued", "it waits for whoever relied on it"
            await change.commit()
            await wait_until(lambda: _ended(studio), "its vectors are made")
    assert len(await studio.vectors()) == 2


async def _import_ended(studio: Studio, job_id: str | None) -> bool:
    assert job_id is not None
    # The import cannot commit either: the change holds its document. That it runs shows that the worker looks for work.
    return (await queue.get(studio.pool, job_id, owner=None)).state in {"running", "succeeded"}


async def _ended(studio: Studio) -> bool:
    return not await studio.jobs("queued", "running") and len(await studio.vectors()) == 2


async def test_a_change_while_the_job_runs_is_followed_by_the_next(studio: Studio, api: EmbeddingsApi) -> None:
    await studio.bring(FERRY)
    asked, go = asyncio.Event(), asyncio.Event()

    async def wait(_texts: list[str]) -> None:
        asked.set()
        await go.wait()

    api.misbehave = wait
    async with studio.working():
        await asked.wait()
        taken = await studio.lore.importing.take([BELL], index="shared", canon=True, origin=OPERATOR)
        assert taken.job_id is not None
        await wait_until(lambda: _import_ended(studio, taken.job_id), "the import begins beside it")
        await wait_until(lambda: _queued_behind(studio), "its change enqueued the next run")
        go.set()
        await wait_until(lambda: _ended(studio), "both have their vectors")


async def _queued_behind(studio: Studio) -> bool:
    return [job.state for job in await studio.jobs()] == ["queued", "running"]


async def test_only_one_runs_at_a_time_over_all_workers(studio: Studio, api: EmbeddingsApi) -> None:
    await studio.bring(*texts([f"The lantern of pier {n} went out." for n in range(100)]))
    open_at_once, most = 0, 0

    async def count(_texts: list[str]) -> None:
        nonlocal open_at_once, most
        open_at_once += 1
        most = max(most, open_at_once)
        if len(api.asked) == 1:
            await _enqueue(studio)  # the next, which the other worker may not begin
            await wait_until(lambda: _both_looked(studio), "both workers have looked for work since")
        open_at_once -= 1

    api.misbehave = count
    async with studio.working(), studio.working(name="other"):
        await wait_until(lambda: _passages_made(studio), "all is made", timeout_s=60)
    assert most == 1
    assert len(api.texts) == len(set(api.texts)), "nothing was embedded twice"


async def _both_looked(studio: Studio) -> bool:
    """A piece of other work, which waits for a free worker, has been done."""
    await queue.enqueue(studio.pool, "work.purge", {}, origin=OPERATOR, unique_key="look", priority=-100)
    return await studio.sql("SELECT true FROM work WHERE unique_key = 'look' AND state = 'succeeded'")


async def _passages_made(studio: Studio) -> bool:
    now = await studio.embedding.standing()
    return now.models[0][1] == now.passages > 0


async def test_a_cancelled_job_stops_and_what_it_did_stays(studio: Studio, api: EmbeddingsApi) -> None:
    await studio.bring(*texts([f"The lantern of pier {n} went out." for n in range(40)]))
    asked, go = asyncio.Event(), asyncio.Event()

    async def second_waits(_texts: list[str]) -> None:
        if len(api.asked) == 2:
            asked.set()
            await go.wait()

    api.misbehave = second_waits
    async with studio.working():
        await asked.wait()
        (job,) = await studio.jobs("running")
        await queue.cancel(studio.pool, job.id, owner="service:lore")
        await wait_until(lambda: studio.jobs("cancelled"), "it is cancelled")
    go.set()
    assert len(await studio.vectors()) == 32  # the first batch

    await studio.bring(BELL)  # the next change heals
    api.misbehave = None
    await studio.embed_all()
    assert len(await studio.vectors()) == 41


async def test_an_import_does_not_wait_behind_the_vectors(studio: Studio, api: EmbeddingsApi) -> None:
    await studio.bring(*texts([f"The lantern of pier {n} went out." for n in range(70)]))
    order: list[str] = []
    taken: list[str | None] = []

    async def import_meanwhile(_texts: list[str]) -> None:
        if not taken:
            brought = await studio.lore.importing.take([BELL], index="shared", canon=True, origin=OPERATOR)
            taken.append(brought.job_id)
        order.append(await studio.sql("SELECT state FROM work WHERE id = $1", taken[0]))

    api.misbehave = import_meanwhile
    async with studio.working(concurrency=1):
        await wait_until(lambda: _count_is(studio, 71), "all is made", timeout_s=60)
    assert order[0] == "queued"
    assert set(order[1:]) == {"succeeded"}, "the batch after the first one came after the import"


async def _count_is(studio: Studio, count: int) -> bool:
    return len(await studio.vectors()) == count


async def test_a_stopping_worker_hands_the_job_back_and_the_next_goes_on(studio: Studio, api: EmbeddingsApi) -> None:
    await studio.bring(*texts([f"The lantern of pier {n} went out." for n in range(40)]))
    asked, go = asyncio.Event(), asyncio.Event()

    async def second_waits(_texts: list[str]) -> None:
        if len(api.asked) == 2:
            asked.set()
            await go.wait()

    api.misbehave = second_waits
    async with studio.working():
        await asked.wait()
    go.set()
    (job,) = await studio.jobs()
    assert (job.state, job.attempts) == ("queued", 0)

    api.misbehave = None
    await studio.embed_all()
    assert len(await studio.vectors()) == 40


async def test_a_document_that_goes_while_it_is_embedded_leaves_nothing(studio: Studio, api: EmbeddingsApi) -> None:
    ferry, _ = await studio.bring(FERRY, BELL)

    async def delete_meanwhile(_texts: list[str]) -> None:
        if len(api.asked) == 1:
            await studio.lore.delete_document(ferry, Effect("operator:ann", None))

    api.misbehave = delete_meanwhile
    await studio.embed_all()

    assert [p.title for p in (await studio.search("who rows the dead", by="meaning")).passages] == ["The Bell"]
    assert len(await studio.vectors()) == 1


async def test_a_changed_document_keeps_the_vectors_of_passages_that_did_not_change(
    studio: Studio, api: EmbeddingsApi
) -> None:
    chapters = [f"Chapter {n}\n\n{long_text(1, f'lantern{n}')}" for n in range(1, 6)]
    await studio.bring(text("The Quay", "\n\n".join(chapters)))
    await studio.embed_all()
    assert len(api.texts) == 5

    chapters[2] = chapters[2].replace("burns", "smokes")
    await studio.bring(text("The Quay", "\n\n".join(chapters)))

    assert len(await studio.vectors()) == 4, "before any job ran"
    await studio.embed_all()
    assert len(api.texts) == 6
    assert "smokes" in api.texts[-1]


async def test_a_changed_title_changes_every_vector(studio: Studio, api: EmbeddingsApi) -> None:
    first, other = FERRY, text("Osric Vane", FERRY.body)
    await studio.bring(first)
    await studio.embed_all()
    renamed = type(other)(first.origin, "The Boatman", first.body, first.form)
    await studio.bring(renamed)
    await studio.embed_all()

    assert [asked.partition("\n")[0] for asked in api.texts] == ["Osric Vane", "The Boatman"]


async def test_a_reindex_embeds_nothing_anew(studio: Studio, api: EmbeddingsApi) -> None:
    await studio.bring(FERRY, BELL)
    await studio.embed_all()
    asked = len(api.asked)

    await studio.lore.importing.reindex("shared", OPERATOR)
    await studio.work_off(studio.lore.importing.handlers(), lambda: studio.over(REINDEX))
    await studio.embed_all()

    assert len(api.asked) == asked
    assert len(await studio.vectors()) == 2


async def test_followers_are_told_of_a_rev_once_all_of_it_has_vectors(open_studio: Open, api: EmbeddingsApi) -> None:
    other = Noting()
    async with open_studio(followers=(other,), **by(api)) as studio:
        await studio.bring(text("The Quay", long_text(40)), BELL)
        quay, bell = await studio.pool.fetch("SELECT rev FROM lore_document ORDER BY rev")
        assert other.whole == []
        seen: list[list[int]] = []

        async def note(_texts: list[str]) -> None:
            seen.append(list(other.whole))

        api.misbehave = note
        await studio.embed_all()

    assert seen[:2] == [[], []], "not after its first batch"
    assert other.whole == [quay["rev"], bell["rev"]]
    assert other.gone == []


async def test_a_failing_model_is_asked_again_and_says_what_to_do(studio: Studio, api: EmbeddingsApi) -> None:
    await studio.bring(FERRY)

    async def fail(_texts: list[str]) -> web.Response:
        return web.Response(status=500)

    api.misbehave = fail
    async with studio.working():
        (job,) = await wait_until(lambda: _tried(studio), "it was tried more than once")
        assert job.error["message"] == "The embeddings API fails (HTTP 500)."
        assert "BODY_BROKER_EMBEDDINGS" in job.error["next_step"]
        page = await studio.search("ferryman")
        assert ([p.title for p in page.passages], page.unavailable) == (["Osric Vane"], ["vectors"])
        api.misbehave = None
        await wait_until(lambda: _count_is(studio, 1), "it heals")


async def _tried(studio: Studio) -> list[queue.WorkSummary]:
    return [job for job in await studio.jobs() if job.attempts > 1 and job.error]


async def test_nothing_of_a_wrong_answer_is_stored(studio: Studio, api: EmbeddingsApi) -> None:
    await studio.bring(FERRY, BELL)

    async def too_short(texts: list[str]) -> web.Response:
        vectors = await api.vectors(texts)
        return answer_with([vector[: 10 + at] if len(texts) > 1 else [] for at, vector in enumerate(vectors)])

    api.misbehave = too_short
    async with studio.working():
        (job,) = await wait_until(lambda: _tried(studio), "it was tried more than once")
    assert job.error["message"] == "The model gave a vector of 0 numbers; 0 were expected."
    assert await studio.vectors() == []


async def test_a_passage_that_the_model_refuses_keeps_no_other_from_its_vector(
    studio: Studio, api: EmbeddingsApi
) -> None:
    await studio.bring(*texts([f"The lantern of pier {n} went out." for n in range(40)]))
    await studio.bring(text("Odd", "A poisonous passage."), text("Late", "The last lantern."))

    async def refuse(given: list[str]) -> web.Response | None:
        return web.Response(status=400) if any("poisonous" in each for each in given) else None

    api.misbehave = refuse
    await studio.embed_all()

    assert len(await studio.vectors()) == 41
    (job,) = await studio.jobs("succeeded")
    assert job.attempts == 1
    page = await studio.search("odd passage")
    assert "Odd" in {passage.title for passage in page.passages}
    assert page.unavailable == ["vectors_incomplete"]
    async with studio.working():
        with pytest.raises(ModelAway, match="1 passages have no vector: the model refuses them"):
            await studio.embedding.all_made()


async def test_no_request_holds_more_texts_than_an_api_takes(studio: Studio, api: EmbeddingsApi) -> None:
    await studio.bring(text("The Quay", long_text(12, "lantern")), text("The Ferry", long_text(12, "oar")))

    async def refuse(given: list[str]) -> web.Response | None:
        return web.Response(status=413) if len(given) > 32 or any(len(each) > 900 for each in given) else None

    api.misbehave = refuse
    await studio.embed_all()

    assert await studio.sql("SELECT count(*) FROM lore_vector WHERE part > 0")
    assert max(map(len, api.asked)) <= 32
    assert not await studio.sql(
        "SELECT count(*) FROM lore_chunk c WHERE NOT EXISTS ("
        "SELECT FROM lore_vector v WHERE v.rev = c.rev AND v.ordinal = c.ordinal)"
    )


async def test_a_document_that_repeats_itself_a_thousand_times_is_brought_again(studio: Studio) -> None:
    chapter = f"Chapter 1\n\n{long_text(1, 'lantern')}\n\n"
    await studio.bring(text("Log", chapter * 1_600))
    await studio.pool.execute(
        "INSERT INTO lore_vector (rev, ordinal, model_id, part, index_id, embedding)"
        " SELECT c.rev, c.ordinal, m.id, 0, d.index_id, array_fill(0.05::real, ARRAY[384])::vector"
        " FROM lore_model m, lore_document d JOIN lore_chunk c ON c.rev = d.rev"
    )
    before = len(await studio.vectors())
    assert before > 1_000

    await studio.bring(text("Log", f"{chapter * 1_600}It is new."))  # within the statement's time

    assert len(await studio.vectors()) >= before - 2


async def test_a_model_that_changes_its_size_in_the_middle_is_found_out(studio: Studio, api: EmbeddingsApi) -> None:
    await studio.bring(*texts([f"The lantern of pier {n} went out." for n in range(40)]))

    async def shorter_later(given: list[str]) -> web.Response | None:
        return answer_with([[0.6, 0.8]] * len(given)) if len(api.asked) > 1 else None

    api.misbehave = shorter_later
    async with studio.working():
        (job,) = await wait_until(lambda: _tried(studio), "it was tried more than once")
    assert job.error["message"] == "The model gave a vector of 2 numbers; 384 were expected."
    assert len(await studio.vectors()) == 32
    assert await studio.sql("SELECT count(DISTINCT vector_dims(embedding)) FROM lore_vector") == 1


async def test_a_job_that_gave_up_is_shown_and_the_next_start_begins_it_again(
    open_studio: Open, api: EmbeddingsApi
) -> None:
    async with open_studio(**by(api)) as studio:
        await studio.bring(FERRY)
        await studio.pool.execute("UPDATE work SET attempts_max = 1 WHERE kind = 'lore_vectors'")

        async def fail(_texts: list[str]) -> web.Response:
            return web.Response(status=401)

        api.misbehave = fail
        async with studio.working():
            await wait_until(lambda: studio.jobs("failed"), "it gives up")
        now = await studio.embedding.standing()
        assert [(job.kind, job.state) for job in now.jobs] == [("lore_vectors", "failed")]
    api.misbehave = None
    async with open_studio(**by(api)) as studio:
        await studio.embed_all()
        assert len(await studio.vectors()) == 1
        assert (await studio.embedding.standing()).jobs == []
