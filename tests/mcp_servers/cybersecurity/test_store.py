"""Repositories as they are registered: once, under one name, and gone with their scans."""

from __future__ import annotations

from pathlib import Path

import pytest

from body_broker.errors import BadInput, Conflict, NotFound
from body_broker.storage.postgres import Pool
from mcp_servers.cybersecurity import store
from mcp_servers.cybersecurity.paths import Repository

GAME = Repository("game", Path("/roots/game"), ("node_modules",))


async def test_the_same_again_changes_nothing(pool: Pool) -> None:
    assert await store.add_repository(pool, GAME, by="operator:ann")
    assert not await store.add_repository(pool, GAME, by="operator:ann")
    assert await store.repositories(pool) == [GAME]


@pytest.mark.parametrize(
    "other",
    [
        Repository("other", GAME.root, GAME.skips),
        Repository("game", Path("/roots/other"), GAME.skips),
        Repository("game", GAME.root, ()),
    ],
)
async def test_a_name_or_a_root_that_is_taken_is_a_conflict(pool: Pool, other: Repository) -> None:
    await store.add_repository(pool, GAME, by="operator:ann")
    with pytest.raises(Conflict, match="game is /roots/game"):
        await store.add_repository(pool, other, by="operator:ann")


async def test_a_name_that_nobody_could_say_is_refused(pool: Pool) -> None:
    for name in ("-x", "a/b", "", "a b"):
        with pytest.raises(BadInput):
            await store.add_repository(pool, Repository(name, Path("/roots/x")), by="operator:ann")


async def test_what_is_not_registered_cannot_be_removed(pool: Pool) -> None:
    await store.add_repository(pool, GAME, by="operator:ann")
    assert await store.remove_repository(pool, "game") == 0
    with pytest.raises(NotFound):
        await store.remove_repository(pool, "game")
