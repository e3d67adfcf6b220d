"""PostgreSQL or Redis is away for 30 s, cut off or silent: every call is answered in its bounds, and all is well 10 s after."""

from __future__ import annotations

import time

import pytest

from tests.counterparts.line import Line, State
from tests.degradation.conftest import Asked, asked, lines, open_hub, settings_for, world
from tests.waiting import wait_until

__all__ = ["asked", "lines", "open_hub", "settings_for", "world"]  # fixtures

_AWAY_S, _BACK_S = 30.0, 10.0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("state", ["cut", "silent"])
@pytest.mark.parametrize("store", ["postgresql", "redis"])
async def test_half_a_minute_without_a_store_is_over_ten_seconds_after_it(
    asked: Asked, lines: tuple[Line, Line], request: pytest.FixtureRequest, *, store: str, state: State
) -> None:
    if not request.config.getoption("--soak"):
        pytest.skip("it takes a minute: poe soak")
    line, column = (lines[0], 1) if store == "postgresql" else (lines[1], 2)
    began = time.monotonic()
    line.become(state)
    await wait_until(lambda: asked.is_as(column), "it is as the page says", 180)
    while time.monotonic() - began < _AWAY_S:
        await asked.require(column)
    line.become("open")
    mended = time.monotonic()
    await wait_until(asked.is_whole, "everything is answered again")
    took = time.monotonic() - mended
    print(f"{store}, {state}: whole again after {took:.1f} s")
    assert took < _BACK_S
