"""Personas by name."""

from __future__ import annotations

import pytest

from body_broker.errors import BadInput
from tiers.silver.personas import persona_named

pytestmark = pytest.mark.anyio


async def test_player_support_is_a_persona() -> None:
    assert "player" in (await persona_named("support")).system


async def test_an_unknown_persona_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(BadInput) as caught:
        await persona_named("pirate\x00")
    assert caught.value.message == "There is no persona pirate."
    assert "storyteller" in caught.value.next_step
