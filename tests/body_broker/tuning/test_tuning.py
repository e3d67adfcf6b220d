from __future__ import annotations

import asyncio

import pytest

from body_broker.calls import Json, Receipt
from body_broker.errors import BadInput, Conflict, NotFound, TooLarge
from body_broker.storage.postgres import Pool
from body_broker.tuning import Tuning

KEY = "spawn.night.rate"


@pytest.fixture
def tuning(pool: Pool) -> Tuning:
    return Tuning(pool)


@pytest.mark.parametrize(
    "value", [1.5, 0, -3, "night", True, None, [1, {"a": [None]}], {"zone": {"rating": 3}}, 10**15]
)
async def test_what_was_set_is_what_is_read(tuning: Tuning, value: Json) -> None:
    await tuning.set(KEY, value, by="operator:ann")

    found = await tuning.get(KEY)

    assert (found.key, found.value, found.version) == (KEY, value, 1)
    assert type(found.value) is type(value)


async def test_history_says_who_set_what_and_why_the_latest_first(tuning: Tuning, pool: Pool) -> None:
    await tuning.set(KEY, 1, by="operator:ann", why="a start")
    await tuning.set(KEY, 2, by="operator:bo", why="too few\x07 at night", receipt=Receipt("w", 5))

    past = await tuning.history(KEY)

    assert [(r.version, r.value, r.by, r.why) for r in past] == [
        (2, 2, "operator:bo", "too few at night"),
        (1, 1, "operator:ann", "a start"),
    ]
    assert past[0].at >= past[1].at
    assert [r.version for r in await tuning.history(KEY, before=2)] == [1]
    assert await pool.fetchval("SELECT receipt_sequence FROM config_history WHERE version = 2") == 5
    with pytest.raises(NotFound):
        await tuning.history("spawn.day.rate")


async def test_setting_what_is_there_makes_no_version(tuning: Tuning) -> None:
    await tuning.set(KEY, {"a": 1}, by="operator:ann")

    assert (await tuning.set(KEY, {"a": 1}, by="operator:ann")).version == 1
    assert (await tuning.set(KEY, {"a": True}, by="operator:ann")).version == 2, "true is not 1"


async def test_a_change_of_something_read_earlier_is_refused(tuning: Tuning) -> None:
    await tuning.set(KEY, 1, by="operator:ann", expect_version=0)
    await tuning.set(KEY, 2, by="operator:ann", expect_version=1)

    for expected in (0, 1, 3):
        with pytest.raises(Conflict, match="has version 2"):
            await tuning.set(KEY, 3, by="operator:bo", expect_version=expected)
    assert (await tuning.get(KEY)).value == 2


async def test_of_many_that_change_one_version_exactly_one_succeeds(tuning: Tuning) -> None:
    tries = [tuning.set(KEY, n, by=f"operator:{n}", expect_version=0) for n in range(8)]

    done = await asyncio.gather(*tries, return_exceptions=True)

    assert sum(isinstance(result, Conflict) for result in done) == 7
    assert len(await tuning.history(KEY)) == 1


async def test_values_must_fit_the_schema_of_their_key(tuning: Tuning) -> None:
    schema: dict[str, Json] = {"type": "object", "properties": {"rate": {"type": "number", "minimum": 0}}}
    await tuning.set(KEY, {"rate": 1}, by="operator:ann", schema=schema)

    with pytest.raises(BadInput, match=r"rate fails minimum"):
        await tuning.set(KEY, {"rate": -1}, by="operator:ann")
    with pytest.raises(BadInput, match="the value fails type"):
        await tuning.set(KEY, 3, by="operator:ann")
    assert (await tuning.set(KEY, {"rate": 2}, by="operator:ann")).schema == schema
    assert (await tuning.set(KEY, 3, by="operator:ann", schema={})).schema is None


@pytest.mark.parametrize("schema", [{"type": "nonsense"}, {"$ref": "http://127.0.0.1:1/schema"}])
async def test_a_schema_that_is_none_or_reaches_out_is_refused(tuning: Tuning, schema: dict[str, Json]) -> None:
    with pytest.raises(BadInput):
        await tuning.set(KEY, 1, by="operator:ann", schema=schema)


@pytest.mark.parametrize(
    "key", ["", "spawn", "Spawn.rate", "spawn..rate", ".rate", "spawn.rate.", "1a.b", "a.b c", "a." + "b" * 200]
)
async def test_a_key_that_is_not_namespaced_is_refused(tuning: Tuning, key: str) -> None:
    with pytest.raises(BadInput):
        await tuning.set(key, 1, by="operator:ann")


@pytest.mark.parametrize(
    "key", ["hub.port", "policy.rule", "db.password", "slack.api_key", "a.b.credentials", "x.aws_secret_key"]
)
async def test_settings_and_secrets_have_no_place_here(tuning: Tuning, key: str) -> None:
    with pytest.raises(BadInput, match="not kept here"):
        await tuning.set(key, "x", by="operator:ann")


async def test_what_is_no_clean_bounded_json_is_refused(tuning: Tuning) -> None:
    for value in ({"a": "x\u202e"}, {"b\x00": 1}, ["\x07"], {1: 2}, object(), [float("nan")], float("inf")):
        with pytest.raises(BadInput):
            await tuning.set(KEY, value, by="operator:ann")
    with pytest.raises(TooLarge):
        await tuning.set(KEY, "x" * 65_600, by="operator:ann")
    with pytest.raises(NotFound):
        await tuning.get(KEY)


async def test_figures_are_listed_by_prefix_page_by_page(tuning: Tuning) -> None:
    for key in ("spawn.night.rate", "spawn.day.rate", "spawner.x", "zone.quay.rating", "spawn.night.cap"):
        await tuning.set(key, key, by="operator:ann")

    seen: list[str] = []
    after = None
    while True:
        page = await tuning.list("spawn.", limit=2, after=after)
        seen += [figure.key for figure in page.items]
        if (after := page.after) is None:
            break

    assert seen == ["spawn.day.rate", "spawn.night.cap", "spawn.night.rate"]
    assert len((await tuning.list()).items) == 5
    assert (await tuning.list("spawn_")).items == [], "a prefix is no pattern"
