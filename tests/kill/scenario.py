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
    async with product.open(READER, WRITER):
        await promises.bring()  # so that there is something to search
        await promises.imports_end()
        async with traffic.flowing():
            for number in range(1, rounds + 1):
                await harness.round()
                await promises.require_imports()
                if number % _VERIFY_EVERY == 0:
                    await _verify(product, harness, running=2)
        lacking = await promises.require_records(harness.rounds)
        await promises.require_found_through_the_door()
        await product.stop()
        await _verify(product, harness, running=0)
    assert promises.codes <= {"unavailable"}, promises.codes
    print(
        f"{len(promises.imports)} imports, {len(promises.reads)} reads and {len(promises.cancelled)} effects acknowledged and kept; "
        f"killed hubs lack the records of {lacking} last reads"
    )
    return harness


async def _verify(product: Product, harness: Harness, *, running: int) -> None:
    """`audit verify` finds no breach, and says of every chain that it has no end which a kill or a running program left open."""
    said = await product.run("audit", "verify")
    open_ended = sum("has no closing record" in line for line in said.splitlines())
    killed = sum(r.victim in {"hub", "worker"} for r in harness.rounds)
    assert said.splitlines()[-1].startswith("intact"), said
    assert open_ended == killed + running, said
    print("  audit verify: " + said.splitlines()[-1])
