"""What a served hub answers while PostgreSQL or Redis is away is what docs/degradation.md says, and it comes back by itself."""

from __future__ import annotations

from tests.counterparts.line import Line
from tests.degradation.conftest import CALLS, Asked, table
from tests.waiting import wait_until


def test_the_page_has_a_row_for_each_call() -> None:
    assert [row for row, *_ in table()] == [*CALLS, "`/readyz`"]


async def test_while_postgresql_is_away_the_map_is_read_for_five_seconds_and_then_nobody_is_let_in(
    asked: Asked, lines: tuple[Line, Line]
) -> None:
    lines[0].become("cut")
    await asked.require(0)
    await wait_until(lambda: asked.is_as(1), "nobody is let in on old knowledge")
    await asked.require(1)
    lines[0].become("open")
    await wait_until(asked.is_whole, "everything is answered again")


async def test_while_redis_is_away_everything_is_refused_in_words(asked: Asked, lines: tuple[Line, Line]) -> None:
    lines[1].become("cut")
    await wait_until(lambda: asked.is_as(2), "what was granted before is used up")
    await asked.require(2)
    lines[1].become("open")
    await wait_until(asked.is_whole, "everything is answered again")
