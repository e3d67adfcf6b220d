"""Owns the proof of reads from the record: as it is this moment, and how it became so."""

from __future__ import annotations

import pytest

from body_broker.errors import NotFound
from body_broker.world import reading
from tests.body_broker.world.conftest import Bench, Engine
from tests.body_broker.world.scene import entities, proposal


async def play(bench: Bench, engine: Engine) -> None:
    """A few changes, in an order."""
    async with engine():
        for asked in (
            proposal("ben", "move", {"to": "chapel"}, expect_version=1),
            proposal("mara", "heal", {"by": 1}),
            proposal("mara", "heal", {"by": 2}),
            proposal("hills", "set_weather", {"weather": "rain"}, expect_version=1),
        ):
            await bench.submit(asked)
            await bench.decided()


async def test_what_is_read_is_as_it_is_and_says_from_where(bench: Bench, engine: Engine) -> None:
    await play(bench, engine)
    mara, reached = await reading.entity(bench.pool, "mara")

    assert mara.version == 3
    assert (reached.pos, reached.age_ms, reached.source) == (len(entities()) + 4, 0, "database")
    with pytest.raises(NotFound, match="nobody"):
        await reading.entity(bench.pool, "nobody")
    assert [each.id for each in (await reading.entities(bench.pool, ["mara", "nobody"]))[0]] == ["mara"]


async def test_a_region_is_read_with_what_is_in_it(bench: Bench, engine: Engine) -> None:
    await play(bench, engine)

    found, _ = await reading.region(bench.pool, "hills")
    assert [each.id for each in found] == ["hills", "ben", "chapel"]
    assert len((await reading.region(bench.pool, "harbour", limit=3))[0]) == 3
    for no_region in ("nowhere", "mara"):
        with pytest.raises(NotFound):
            await reading.region(bench.pool, no_region)


async def test_events_are_read_on_from_a_position_and_by_what_they_are_about(bench: Bench, engine: Engine) -> None:
    start = len(entities())
    await play(bench, engine)

    first = await reading.events(bench.pool, after_pos=start, limit=3)
    rest = await reading.events(bench.pool, after_pos=first[-1].pos, limit=3)
    assert [event.pos for event in [*first, *rest]] == list(range(start + 1, start + 5))
    assert [e.type for e in await reading.events(bench.pool, after_pos=start, entity_id="mara")] == ["healed"] * 2
    assert [e.entity_id for e in await reading.events(bench.pool, after_pos=start, types=["moved"])] == ["ben"]
    in_hills = await reading.events(bench.pool, after_pos=start, region="hills")
    assert [e.entity_id for e in in_hills] == ["ben", "hills"]


async def test_a_history_has_every_version_of_one_entity(bench: Bench, engine: Engine) -> None:
    await play(bench, engine)

    assert [event.version for event in await reading.history(bench.pool, "mara")] == [1, 2, 3]
    assert [event.version for event in await reading.history(bench.pool, "mara", from_version=2, limit=1)] == [2]
