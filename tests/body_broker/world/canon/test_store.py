"""Canon in PostgreSQL: loads that replace, facts that calls add and retire, and that the same again changes nothing."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import ValidationError

from body_broker.calls import Receipt
from body_broker.errors import BadInput, Conflict, NotFound
from body_broker.storage.postgres import Pool
from body_broker.world.canon.model import Canon, Fact, PlotEdge, PlotGraph, PlotNode, Predicate, Requires
from body_broker.world.canon.predicates import STANDARD
from body_broker.world.canon.store import Effect, Loaded, add_fact, read_canon, read_facts, replace_canon, retire_fact

AGE, STATUS, HATES = STANDARD["age"], STANDARD["status"], Predicate(name="hates", functional=False, meaning="Hates.")
PREDICATES = (AGE, STATUS, HATES)
OSRIC_DEAD = Fact(subject="osric", predicate="status", object="dead", valid_from=12.5, source="lore: The Ferry")
MARA_AGE = Fact(subject="mara", predicate="age", object=34, source="operator:anna", known_by=("osric",))
ANNA = Effect("person:anna", Receipt("w1", 7))


def graph(graph_id: str = "ledger", *, title: str = "The Ledger", last: str = "end") -> PlotGraph:
    needs = {
        "all": [{"node": f"{graph_id}.start"}, {"any": [{"flag": "paid"}, {"item": "key"}]}],
        "none": [{"node": "x"}],
    }
    return PlotGraph(
        id=graph_id,
        title=title,
        nodes=(
            PlotNode(id=f"{graph_id}.start", kind="quest", title="Start", effects=[{"flag": "paid", "value": True}]),  # type: ignore[arg-type]
            PlotNode(
                id=f"{graph_id}.{last}",
                kind="ending",
                title="End",
                requires=Requires.model_validate(needs),
                story_time=3.5,
            ),
        ),
        edges=(PlotEdge(src=f"{graph_id}.start", dst=f"{graph_id}.{last}", kind="choice", label="Pay"),),
    )


async def load(pool: Pool, facts: tuple[Fact, ...], plots: tuple[PlotGraph, ...] = ()) -> Loaded:
    async with pool.acquire() as connection, connection.transaction():
        return await replace_canon(connection, PREDICATES, facts, plots, "operator:anna")


async def add(pool: Pool, fact: Fact) -> tuple[str, bool]:
    async with pool.acquire() as connection, connection.transaction():
        return await add_fact(connection, fact, ANNA)


async def retire(pool: Pool, fact_id: str) -> bool:
    async with pool.acquire() as connection, connection.transaction():
        return await retire_fact(connection, fact_id, ANNA)


async def test_what_is_loaded_is_read_back_as_it_was(pool: Pool) -> None:
    done = await load(pool, (OSRIC_DEAD, MARA_AGE), (graph(), graph("other")))

    there = await read_canon(pool)

    assert done == Loaded(predicates=3, facts=2, plots=2)
    assert isinstance(there, Canon)
    assert set(there.predicates) == set(PREDICATES)
    assert [fact.model_copy(update={"id": ""}) for fact in there.facts] == [MARA_AGE, OSRIC_DEAD]
    assert [PlotGraph.model_validate(found.model_dump(exclude={"version"})) for found in there.plots] == [
        graph(),
        graph("other"),
    ]
    assert (there.version, [found.version for found in there.plots]) == (1, [1, 1])


async def test_the_same_load_again_changes_nothing(pool: Pool) -> None:
    await load(pool, (OSRIC_DEAD, MARA_AGE), (graph(),))
    before = await pool.fetch("SELECT id, at FROM fact ORDER BY id")

    again = await load(pool, (MARA_AGE, OSRIC_DEAD), (graph(),))

    assert again == Loaded()
    assert not again.changed
    assert await pool.fetch("SELECT id, at FROM fact ORDER BY id") == before
    assert (await read_canon(pool)).version == 1


async def test_a_load_retires_what_it_lacks_and_keeps_what_calls_added(pool: Pool) -> None:
    await load(pool, (OSRIC_DEAD, MARA_AGE), (graph(), graph("other")))
    added, new = await add(pool, Fact(subject="mara", predicate="hates", object="rain", source="person:anna"))

    done = await load(pool, (OSRIC_DEAD,), (graph(title="The Red Ledger", last="close"),))

    there = await read_canon(pool)
    assert new
    assert done == Loaded(facts_retired=1, plots=1, plots_removed=1)
    assert {fact.key for fact in there.facts} == {OSRIC_DEAD.key, added}
    assert [(found.id, found.title, found.version) for found in there.plots] == [("ledger", "The Red Ledger", 2)]
    assert [node.id for node in there.plots[0].nodes] == ["ledger.start", "ledger.close"]
    assert await load(pool, (OSRIC_DEAD, MARA_AGE), ()) == Loaded(facts=1, plots_removed=1)
    assert MARA_AGE.key in {fact.key for fact in (await read_canon(pool)).facts}


async def test_a_fact_is_added_once_and_stands_beside_its_decision(pool: Pool) -> None:
    await load(pool, ())
    fact = Fact(subject="mara", predicate="age", object=34, source="person:anna")

    assert await add(pool, fact) == (fact.key, True)
    assert await add(pool, fact) == (fact.key, False)

    changes = await pool.fetch(
        "SELECT change, fact_id, by, receipt_writer, receipt_sequence FROM canon_change ORDER BY version"
    )
    assert [tuple(row) for row in changes] == [
        ("loaded", None, "operator:anna", None, None),
        ("fact_added", fact.key, "person:anna", "w1", 7),
    ]


async def test_a_second_value_of_a_functional_predicate_is_refused_unless_its_time_is_another(pool: Pool) -> None:
    await load(pool, (Fact(subject="mara", predicate="age", object=33, valid_to=10.0, source="lore"),))

    with pytest.raises(Conflict) as refused:
        await add(pool, Fact(subject="mara", predicate="age", object=34, source="lore"))
    assert refused.value.details["fact"]
    _, new = await add(pool, Fact(subject="mara", predicate="age", object=34, valid_from=10.0, source="lore"))
    assert new
    for thing in ("rain", "snow"):
        assert (await add(pool, Fact(subject="mara", predicate="hates", object=thing, source="lore")))[1]
    with pytest.raises(BadInput):
        await add(pool, Fact(subject="mara", predicate="loves", object="rain", source="lore"))


async def test_two_who_add_contradicting_facts_at_once_do_not_both_succeed(pool: Pool) -> None:
    await load(pool, ())
    facts = [Fact(subject="mara", predicate="age", object=age, source="lore") for age in range(30, 36)]

    done = await asyncio.gather(*(add(pool, fact) for fact in facts), return_exceptions=True)

    assert sum(isinstance(each, tuple) for each in done) == 1
    assert sum(isinstance(each, Conflict) for each in done) == len(facts) - 1
    assert len(await read_facts(pool, {"mara"})) == 1


async def test_a_retired_fact_is_no_longer_canon(pool: Pool) -> None:
    await load(pool, (OSRIC_DEAD,))

    assert await retire(pool, OSRIC_DEAD.key)
    assert not await retire(pool, OSRIC_DEAD.key)
    with pytest.raises(NotFound):
        await retire(pool, "fact_nobody")

    assert (await read_canon(pool)).facts == ()
    assert (await add(pool, OSRIC_DEAD)) == (OSRIC_DEAD.key, True)
    assert len((await read_canon(pool)).facts) == 1


async def test_a_fact_holds_in_its_time_and_open_ones_now() -> None:
    assert not OSRIC_DEAD.holds_at(12.0)
    assert OSRIC_DEAD.holds_at(12.5)
    assert OSRIC_DEAD.holds_at(None)
    ended = Fact(subject="mara", predicate="home", object="quay", valid_from=1.0, valid_to=2.0, source="lore")
    assert [ended.holds_at(moment) for moment in (0.5, 1.0, 1.5, 2.0, None)] == [False, True, True, False, False]


@pytest.mark.parametrize(
    "said",
    [
        {"subject": "mara", "predicate": "age", "object": float("nan"), "source": "lore"},
        {"subject": "mara", "predicate": "age", "object": [1], "source": "lore"},
        {"subject": "mara", "predicate": "Age", "object": 1, "source": "lore"},
        {"subject": "", "predicate": "age", "object": 1, "source": "lore"},
        {"subject": "mara", "predicate": "age", "object": 1, "source": "lore", "valid_from": 2.0, "valid_to": 2.0},
    ],
)
async def test_a_fact_that_is_none_is_refused(said: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Fact.model_validate(said)


async def test_requirements_are_closed_and_bounded_in_depth() -> None:
    deep: dict[str, object] = {"node": "a"}
    for _ in range(5):
        deep = {"all": [deep]}
    unfit: list[dict[str, object]] = [deep, {"all": [{"node": "a", "flag": "b"}]}, {"some": []}, {"all": [{}, "a"]}]
    for needs in unfit:
        with pytest.raises(ValidationError):
            Requires.model_validate(needs)
    with pytest.raises(ValidationError):
        Predicate(name="x", functional=True, meaning="x", says=("{subject} only",))
