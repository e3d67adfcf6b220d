"""Owns the proof that `lore reindex` may be killed and begun again, and what operators are told of the copy."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from tests.counterparts.slow_line import slow_line
from tests.kill.copying import settings_of, settled_with
from tests.kill.product import Product
from tests.kill.shelf import READER, Shelf
from tests.opensearch_node import Node
from tests.waiting import wait_until


@pytest.mark.requires("java", "opensearch")
@pytest.mark.timeout(300)
async def test_a_reindex_whose_command_was_killed_is_begun_again_and_ends_with_one_whole_copy(tmp_path: Path) -> None:
    (tmp_path / "opensearch").mkdir()
    node = Node(tmp_path / "opensearch")
    await asyncio.to_thread(node.start)
    try:
        async with slow_line(node.url) as line:
            product = Product(tmp_path / "data", tmp_path, settings_of(line))
            shelf = Shelf(product, random.Random(1))  # noqa: S311  # repeatable, nothing secret
            async with product.open(READER):
                for _ in range(3):
                    await shelf.add()
                await settled_with(product, node)
                old = (await product.sql("SELECT generation FROM lore_copy"))[0]["generation"]

                line.hold("PUT ")
                killed = product.begin("lore", "reindex")
                await wait_until(lambda: line.held, "a new generation is begun", timeout_s=60)
                killed.kill()
                line.let_go()
                assert (await product.run("lore", "reindex")).splitlines()[
                    -1
                ] == "OpenSearch holds a new copy of 3 documents."

                await settled_with(product, node)
                new = (await product.sql("SELECT generation FROM lore_copy"))[0]["generation"]
                assert new != old
                said = await product.run("lore", "status")
                assert f"copy        {new} (serving): " in said
                assert "0 documents due" in said
                await product.stop()
    finally:
        await asyncio.to_thread(node.stop)
