"""What every place for objects holds to: whole or nothing, the last put stands, and what is no key is refused."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from body_broker.errors import InternalError, NotFound, TooLarge
from body_broker.storage.objects import Objects, check
from body_broker.storage.objects.model import OBJECT_BYTES_MAX

if TYPE_CHECKING:
    from tests.body_broker.storage.objects.conftest import Open


async def test_what_was_put_is_read_again_also_by_who_opens_the_place_later(opened: Open) -> None:
    async with opened() as first:
        await first.put("narrative/job_1.json", b"one")
        await first.put("narrative/job_2.json", "zwei: ü\0".encode())
        await first.put("top", b"")

    async with opened() as later:
        assert await later.get("narrative/job_1.json") == b"one"
        assert await later.get("narrative/job_2.json") == "zwei: ü\0".encode()
        assert await later.get("top") == b""
        assert [await later.head(key) for key in ("narrative/job_1.json", "top")] == [3, 0]


async def test_the_last_put_stands_and_is_whole(objects: Objects) -> None:
    bodies = [bytes([n]) * (200_000 + n) for n in range(8)]

    await asyncio.gather(*(objects.put("a/b", body) for body in bodies))
    seen = [await objects.get("a/b")]
    await objects.put("a/b", b"last")

    assert seen[0] in bodies
    assert (await objects.get("a/b"), await objects.head("a/b")) == (b"last", 4)


async def test_what_is_not_there_is_not_found_and_may_be_dropped_again(objects: Objects) -> None:
    await objects.put("a/b", b"x")

    await objects.drop("a/b")
    await objects.drop("a/b")
    await objects.drop("never/was")

    for key in ("a/b", "never/was", "a"):
        assert await objects.head(key) is None
        with pytest.raises(NotFound):
            await objects.get(key)


@pytest.mark.parametrize(
    "key",
    ["", "/", "/etc/passwd", "../x", "a/../x", "a//b", "a/", ".hidden", "a/.b", "a/b\n", "a\\b", "ä", "a b", "a" * 513],
)
async def test_what_is_no_key_is_refused(objects: Objects, key: str) -> None:
    for asked in (objects.put(key, b"x"), objects.get(key), objects.head(key), objects.drop(key)):
        with pytest.raises(InternalError):
            await asked


async def test_the_longest_key_is_taken(objects: Objects) -> None:
    key = "/".join(["k" * 100, "l" * 100, "m" * 200])

    await objects.put(key, b"x")

    assert await objects.get(key) == b"x"


async def test_what_is_too_large_is_not_put(objects: Objects) -> None:
    with pytest.raises(TooLarge):
        await objects.put("large", bytes(OBJECT_BYTES_MAX + 1))

    assert await objects.head("large") is None


async def test_a_place_that_works_passes_the_checks_of_many_at_once(objects: Objects) -> None:
    await asyncio.gather(*(check(objects) for _ in range(4)))
