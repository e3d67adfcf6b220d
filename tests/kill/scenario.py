"""Owns the whole run: a product under traffic, rounds of kills, and after them every promise looked up; for short and for long."""

from __future__ import annotations

import random
from pathlib import Path

from tests.kill.harness import Harness
from tests.kill.product import Product
from tests.kill.promises import READER, WRITER, Promises
from tests.kill.steps import Steps
from tests.kill.traffic import Traffic

_VERIFY_EVERY = 5


async def survive(data_dir: Path, log_dir: Path, *, seed: int, rounds: int) -> Harness:
    """The harness after so many rounds in which nothing acknowledged was lost; fails at the first broken promise."""
    chance = random.Random(seed)  # noqa: S311  # repeatable, nothing secret
    product = Product(data_dir, log_dir)
    promises = Promises(product, chance)
    traffic = Traffic(product, promises)

    async def ready() -> None:
        await product.ready()
        await promises.imports_end()

    harness = Harness(product.victims(), Steps(product, traffic, promises, chance).all(), ready, seed)
    async with product.open(READER, WRITER), traffic.flowing():
        for number in range(1, rounds + 1):
            await harness.round()
            await promises.require_imports()
            if number % _VERIFY_EVERY == 0 or number == rounds:
                print("  " + await _verified(product, harness))
        async with traffic.still():
            lacking_s = await promises.require_records(harness.rounds)
            await promises.require_found_through_the_door()
    assert promises.codes <= {"unavailable"}, promises.codes
    print(
        f"{len(promises.imports)} imports, {len(promises.reads)} reads and {len(promises.cancelled)} effects acknowledged and kept; "
        f"a killed hub lacked at most the last {lacking_s * 1000:.0f} ms of its reads"
    )
    return harness


async def _verified(product: Product, harness: Harness) -> str:
    """The verdict of `audit verify`: no breach, and a note for every chain that a kill left without its end."""
    said = await product.run("audit", "verify")
    unclosed = sum("has no closing record" in line for line in said.splitlines())
    killed = sum(r.victim in {"hub", "worker"} for r in harness.rounds)
    assert "BREACH" not in said, said
    assert unclosed >= killed, said
    return said.splitlines()[-1]
