"""Worlds loaded into a real database: all or nothing, the same again changes nothing, and what the file lacks stays."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from body_broker.errors import Conflict
from body_broker.storage import embedded
from body_broker.storage.postgres import Pool, open_pool
from body_broker.world import epochs, reading
from body_broker.world.canon import store
from body_broker.world.canon.model import Fact
from body_broker.world.epochs import Superseded
from body_broker.world.files import exporting, loading
from body_broker.world.files.checking import STARTER, World, open_world
from body_broker.world.files.loading import Loaded, difference
from body_broker.world.model import Effect, Entity, Proposal, Queued
from body_broker.world.patching import merged
from body_broker.world.recorder import append
from tests.body_broker.world.conftest import Bench, Engine
from tests.body_broker.world.files.test_checking import SMALL, changed
from tests.conftest import new_database
from tests.waiting import wait_until

Load = Callable[..., Awaitable[Loaded]]
Parse = Callable[[object], Awaitable[World]]


@pytest.fixture
def parse(tmp_path: Path) -> Parse:
    def to_world(content: object) -> World:
        file = tmp_path / "world.json"
        file.write_text(json.dumps(content), "utf-8")
        return open_world(file)

    async def off_the_loop(content: object) -> World:
        return await asyncio.to_thread(to_world, content)

    return off_the_loop


@pytest.fixture
def load(pool: Pool, parse: Parse) -> Load:
    async def of(content: object, *, prune: bool = False) -> Loaded:
        return await loading.load(pool, await parse(content), by="operator:tests", prune=prune)

    return of


@pytest.fixture
def other_database(store_urls: embedded.StoreUrls, template_database: str) -> Iterator[str]:
    with new_database(store_urls, template_database) as url:
        yield url


async def whole(pool: Pool) -> dict[str, Entity]:
    """The world, of which versions are the numbers of events, and positions have no gaps."""
    await Bench(pool).require_whole()
    return (await reading.world(pool)).entities


async def test_a_load_makes_the_world_of_the_file_and_says_what_it_did(pool: Pool, load: Load) -> None:
    done = await load(SMALL)

    assert (done.created, done.changed, done.unchanged, done.removed, done.epoch) == (8, 0, 0, 0, 1)
    there = await whole(pool)
    assert {entity.version for entity in there.values()} == {1}
    assert there["hob"].region == "marsh"
    assert there["hob"].data["inventory"] == ["tin"]
    assert "last_said" not in there["hob"].data, "what is nothing is not kept, as in an event"
    assert dict(done.entities) == there, "what is published is what is recorded"
    canon = await store.read_canon(pool)
    assert (len(canon.predicates), len(canon.facts), len(canon.plots)) == (3, 4, 1)


async def test_the_same_again_changes_nothing_and_leaves_whoever_arbitrates_alone(pool: Pool, load: Load) -> None:
    await load(SMALL)
    before = await whole(pool), await store.read_canon(pool)
    held = await epochs.acquire(pool, name="tests", lease_s=60)
    assert held is not None

    again = await load(SMALL)

    assert (again.created, again.changed, again.unchanged, again.epoch, again.canon.changed) == (0, 0, 8, None, False)
    assert (await whole(pool), await store.read_canon(pool)) == before
    async with pool.acquire() as connection, connection.transaction():
        assert (await epochs.fenced(connection, held.number)).number == held.number


async def test_a_changed_file_changes_what_it_states_and_nothing_else(pool: Pool, load: Load) -> None:
    await load(SMALL)
    await in_play(pool, "hob", {"mood": "afraid", "health": 40, "memories": [{"text": "A cart."}]})

    done = await load(changed(entities={"npcs": [SMALL["entities"]["npcs"][0] | {"mood": "calm"}]}))

    hob = (await whole(pool))["hob"]
    assert (done.changed, done.created, done.unchanged) == (1, 0, 7)
    assert (hob.version, hob.data["mood"], hob.data["health"]) == (3, "calm", 40)
    assert hob.data["memories"] == [{"text": "A cart."}]
    events = await reading.history(pool, "hob")
    assert (events[-1].type, events[-1].patch, events[-1].change_id) == ("loaded", {"mood": "calm"}, None)


async def test_a_null_takes_a_field_away_and_a_map_is_replaced_whole(pool: Pool, load: Load) -> None:
    await load(SMALL)
    await in_play(pool, "carters", {"stance": {"carters": 5}})
    hob = SMALL["entities"]["npcs"][0] | {"faction": None}

    await load(changed(entities={"npcs": [hob]}))

    there = await whole(pool)
    assert "faction" not in there["hob"].data
    assert there["carters"].data["stance"] == {}


async def test_a_load_takes_an_epoch_and_who_held_one_before_writes_nothing(pool: Pool, load: Load) -> None:
    held = await epochs.acquire(pool, name="tests", lease_s=60)
    assert held is not None

    done = await load(SMALL)

    assert done.epoch == held.number + 1
    async with pool.acquire() as connection, connection.transaction():
        with pytest.raises(Superseded):
            await epochs.fenced(connection, held.number)
    assert {event.epoch for event in done.events} == {done.epoch}
    assert await epochs.acquire(pool, name="other", lease_s=1), "nobody holds the load's own epoch"


async def test_without_prune_nothing_goes_and_with_it_what_the_file_lacks(pool: Pool, load: Load) -> None:
    await load(SMALL)
    await add_fact(pool, Fact(subject="Mrs. Oake", predicate="friend", object="hob", source="a call"))
    less = changed(entities={"quests": []}, facts=SMALL["facts"][2:3], plots=[])

    kept = await load(less)
    assert (kept.removed, kept.canon.changed) == (0, False)
    pruned = await load(less, prune=True)

    assert (pruned.removed, pruned.canon.facts_retired, pruned.canon.plots_removed) == (1, 3, 1)
    assert (await whole(pool))["look"].removed
    canon = await store.read_canon(pool)
    assert {fact.source for fact in canon.facts} == {"lore:hob", "a call"}, "what somebody added in a call stays"
    assert not (await load(less, prune=True)).events


async def test_what_was_removed_stays_gone_and_the_load_says_so(load: Load) -> None:
    await load(SMALL)
    await load(changed(entities={"quests": []}), prune=True)

    done = await load(SMALL)

    assert (done.gone, done.created, done.unchanged, done.epoch) == (["look"], 0, 7, None)


async def test_an_id_of_another_kind_is_refused_and_nothing_is_written(pool: Pool, load: Load) -> None:
    await load(SMALL)
    before = await whole(pool), await store.read_canon(pool)
    other = changed(
        entities={"flags": [*SMALL["entities"]["flags"], {"id": "new", "value": 1}], "quests": [], "items": SMALL["entities"]["items"] + [{"id": "look", "name": "Look"}]},
        plots=[],
    )  # fmt: skip

    with pytest.raises(Conflict, match="'look' is of kind quest in this world and of kind item in the file"):
        await load(other)

    assert (await whole(pool), await store.read_canon(pool)) == before


async def test_a_fact_that_contradicts_one_that_stays_is_refused_and_nothing_is_written(pool: Pool, load: Load) -> None:
    await load(SMALL)
    before = await whole(pool), await store.read_canon(pool)
    older = [{"subject": "hob", "predicate": "age", "object": 50, "valid_from": 10.0, "source": "lore:hob"}]

    with pytest.raises(Conflict, match="The file contradicts what is canon") as raised:
        await load(changed(entities={"flags": [{"id": "found", "value": True}]}, facts=older))

    assert len(raised.value.details["problems"]) == 1  # pyright: ignore[reportArgumentType] - a list
    assert (await whole(pool), await store.read_canon(pool)) == before
    await load(changed(facts=older), prune=True)


async def test_a_fact_with_an_id_is_changed_by_a_later_file(pool: Pool, load: Load) -> None:
    def aged(age: int) -> dict[str, Any]:
        return changed(facts=[{"id": "hob.age", "subject": "hob", "predicate": "age", "object": age, "source": "x"}])

    await load(aged(37))
    await load(aged(38))

    assert [(fact.id, fact.object) for fact in await store.read_facts(pool)] == [("hob.age", 38)]


async def test_text_from_outside_in_an_exported_world_stays_marked(load: Load) -> None:
    hob = SMALL["entities"]["npcs"][0] | {"memories": [{"text": "Obey me.", "by": "a player", "outside": True}]}

    done = await load(changed(entities={"npcs": [hob]}))

    assert {event.entity_id for event in done.events if event.outside} == {"hob"}
    assert not (await load(changed(entities={"npcs": [hob]}))).events, "a partly stated memory is the same again"


async def test_an_exported_world_loaded_elsewhere_is_the_same_world(
    pool: Pool, tmp_path: Path, other_database: str
) -> None:
    await loading.load(pool, await asyncio.to_thread(open_world, STARTER), by="operator:tests")
    await in_play(pool, "pell", {"place": "charter_hall", "mood": "puzzled"})
    await in_play(
        pool, "osric_vane", {"memories": [{"text": "Mind the water.", "by": "ann", "outside": True, "tick": 1}]}
    )
    await remove(pool, "tin_of_money")
    await add_fact(pool, Fact(subject="pell", predicate="alias", object="the late Pell", source="a call"))
    now, canon = await exporting.snapshot(pool)
    file = tmp_path / "export.json"
    content = exporting.written(now.entities, canon, [])
    await asyncio.to_thread(exporting.write_file, file, content, force=False)
    exported = await asyncio.to_thread(open_world, file)

    async with open_pool(other_database) as other:
        done = await loading.load(other, exported, by="operator:tests")
        there, known = await exporting.snapshot(other)
        again = await loading.load(other, exported, by="operator:tests", prune=True)

    assert done.created == len(now.entities) == 117
    assert {name: seen(entity) for name, entity in there.entities.items()} == {
        name: seen(entity) for name, entity in now.entities.items()
    }
    assert (known.predicates, known.facts) == (canon.predicates, canon.facts)
    assert [g.model_copy(update={"version": 1}) for g in known.plots] == list(canon.plots)
    assert (again.events, again.canon.changed) == ([], False)
    assert there.entities["tin_of_money"].removed
    with pytest.raises(Conflict, match="is there already"):
        await asyncio.to_thread(exporting.write_file, file, {}, force=False)


async def test_a_load_while_an_engine_arbitrates_loses_no_change_and_the_engine_goes_on(
    pool: Pool, engine: Engine, parse: Parse
) -> None:
    bench = Bench(pool)
    await loading.load(pool, await parse(SMALL), by="operator:tests")
    async with engine() as arbiter:
        await wait_until(lambda: arbiter.epoch, "the engine arbitrates")
        began = arbiter.epoch
        assert began is not None
        queued: list[Queued] = []
        for round_ in range(5):
            hob = SMALL["entities"]["npcs"][0] | {"mood": f"mood-{round_}"}
            for n in range(20):
                queued += await bench.submit(
                    Proposal(
                        entity_id="hob", op="append_memory", payload={"text": f"{round_} {n}"}, key=f"{round_} {n}"
                    )
                )
            done = await loading.load(pool, await parse(changed(entities={"npcs": [hob]})), by="operator:tests")
            assert done.changed == 1
        await bench.decided()
        await wait_until(lambda: (arbiter.epoch or 0) > began, "the engine goes on under a new epoch")
    assert await bench.states(queued) == ["applied"] * 100
    there = await whole(pool)
    assert there["hob"].version == 1 + 5 + 100, "each load and each change is one version"
    assert there["hob"].data["mood"] == "mood-4"


def seen(entity: Entity) -> tuple[object, ...]:
    """An entity without how often it changed and when; of what is gone, that it is."""
    return entity.kind, entity.region, entity.removed, dict(entity.data)


async def in_play(pool: Pool, entity_id: str, fields: Mapping[str, Any]) -> None:
    """Let the game change fields of an entity."""
    await _write(pool, entity_id, fields, removed=False)


async def remove(pool: Pool, entity_id: str) -> None:
    await _write(pool, entity_id, {}, removed=True)


async def _write(pool: Pool, entity_id: str, fields: Mapping[str, Any], *, removed: bool) -> None:
    async with pool.acquire() as connection, connection.transaction():
        held = await epochs.begin_anew(connection)
        there = (await reading.world_now(connection)).entities
        effect = Effect(entity_id=entity_id, type="played", patch=dict(fields), removed=removed)
        await append(connection, [effect], there, held)


async def add_fact(pool: Pool, fact: Fact) -> None:
    async with pool.acquire() as connection, connection.transaction():
        await store.add_fact(connection, fact, store.Effect("person:tests"))


@pytest.mark.parametrize(
    ("now", "wanted", "patch"),
    [
        ({}, {}, {}),
        ({"a": 1}, {"a": 1}, {}),
        ({"a": 1}, {"a": True}, {"a": True}),
        ({"a": 1}, {"a": None}, {"a": None}),
        ({}, {"a": None}, {}),
        ({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}}, {"a": {"x": None, "y": 3}}),
        ({"a": {"x": 1}}, {"a": {}}, {"a": {"x": None}}),
        ({"a": [1, 2]}, {"a": [2, 1]}, {"a": [2, 1]}),
        ({"a": {"x": 1}}, {"a": 5, "b": {"c": None}}, {"a": 5, "b": {"c": None}}),
    ],
)
def test_a_difference_is_the_patch_that_makes_it_so(
    now: dict[str, Any], wanted: dict[str, Any], patch: dict[str, Any]
) -> None:
    assert difference(now, wanted) == patch
    after = merged(now, patch)
    assert {name: after.get(name) for name in wanted} == {name: merged({}, wanted).get(name) for name in wanted}
