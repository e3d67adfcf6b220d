"""Pins: the first sight is trusted, whatever differs later is withheld until it is accepted, in every process alike."""

from __future__ import annotations

import asyncio

import pytest

from body_broker.errors import Conflict
from body_broker.storage.postgres import Pool
from mcp_servers.upstreams.model import Definition
from mcp_servers.upstreams.pins import Pins

pytestmark = pytest.mark.anyio


def tool(name: str = "echo", description: str = "says it again") -> Definition:
    return Definition("tool", name, {"name": name, "description": description})


async def states(pins: Pins) -> dict[str, str]:
    return {pin.name: pin.state for pin in (await pins.read()).get("ex", ())}


async def test_two_hubs_that_look_first_pin_once(pool: Pool) -> None:
    pins = Pins(pool)

    found = await asyncio.gather(*(pins.saw("ex", [tool()], {}) for _ in range(4)))

    assert sorted(each.first for each in found) == [False, False, False, True]
    assert await states(pins) == {"echo": "pinned"}


async def test_what_differs_is_withheld_and_pinned_again_when_it_is_as_it_was(pool: Pool) -> None:
    pins = Pins(pool)
    await pins.saw("ex", [tool(), tool("old")], {})

    seen = await pins.saw("ex", [tool(description="\x00other"), tool("renamed")], {})
    assert {pin.name: pin.state for pin in seen.withheld} == {"echo": "changed", "old": "gone", "renamed": "new"}
    assert (await pins.read())["ex"][0].accepted == tool()

    await pins.saw("ex", [tool(), tool("old")], {})
    assert await states(pins) == {"echo": "pinned", "old": "pinned", "renamed": "gone"}


async def test_what_comes_back_as_another_is_not_served(pool: Pool) -> None:
    pins = Pins(pool)
    await pins.saw("ex", [tool()], {})
    await pins.saw("ex", [], {})
    await pins.saw("ex", [tool(description="other")], {})

    assert await states(pins) == {"echo": "changed"}


async def test_an_upstream_with_nothing_at_first_sight_had_its_first_sight(pool: Pool) -> None:
    pins = Pins(pool)
    await pins.saw("ex", [], {})
    await pins.saw("ex", [tool()], {})

    assert await states(pins) == {"echo": "new"}


async def test_only_what_it_says_now_can_be_accepted(pool: Pool) -> None:
    pins, other = Pins(pool), tool(description="other")
    await pins.saw("ex", [tool()], {})
    await pins.saw("ex", [other], {})
    await pins.saw("ex", [tool(description="a third")], {})

    with pytest.raises(Conflict):
        await pins.accept("ex", "tool", "echo", other.digest, "apr_1")
    await pins.saw("ex", [other], {})
    await pins.accept("ex", "tool", "echo", other.digest, "apr_1")
    await pins.accept("ex", "tool", "echo", other.digest, "apr_1")

    assert (await pins.read())["ex"][0].accepted == other


async def to_ask(pins: Pins, again_s: float = 3_600) -> list[str]:
    return [each.pin.name for each in await pins.to_ask("ex", again_s=again_s)]


async def test_people_are_asked_about_one_definition_and_again_only_where_nobody_answered(pool: Pool) -> None:
    pins, other = Pins(pool), tool(description="other")
    await pins.saw("ex", [tool()], {})
    await pins.saw("ex", [other], {})
    assert await to_ask(pins) == ["echo"]
    await pins.asked("ex", "tool", "echo", other.digest, "apr_1")
    await pins.saw("ex", [tool()], {})
    assert await to_ask(pins) == []
    await pins.saw("ex", [other], {})
    assert await to_ask(pins) == []
    assert await to_ask(pins, again_s=0) == ["echo"]

    await pins.saw("ex", [tool(description="a third")], {})
    assert await to_ask(pins) == ["echo"]


async def test_what_was_accepted_once_and_left_again_is_asked_for_anew(pool: Pool) -> None:
    pins, other = Pins(pool), tool(description="other")
    await pins.saw("ex", [tool()], {})
    await pins.saw("ex", [other], {})
    await pins.asked("ex", "tool", "echo", other.digest, "apr_1")
    await pins.accept("ex", "tool", "echo", other.digest, "apr_1")
    await pins.saw("ex", [tool(description="a third")], {})
    await pins.accept("ex", "tool", "echo", tool(description="a third").digest, "apr_2")
    await pins.saw("ex", [other], {})

    assert await to_ask(pins) == ["echo"]
