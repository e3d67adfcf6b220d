"""Owns queries' vectors: each is made once, however many ask for it at a time, and kept while there is room."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from body_broker.lore.embedding.making import Makers
from body_broker.lore.embedding.models import Model, Serving
from body_broker.lore.embedding.vectors import checked
from body_broker.lore.embedding.words import BadVectors, Maker, ModelAway, Vector
from body_broker.lore.index import QueryVector

KEPT_BYTES_MAX = 4 * 1024 * 1024
_ENTRY_BYTES = 400
"""What an entry takes beside its text and its vector."""
_AWAY_S = 5.0
"""How long nobody waits for a model that did not answer."""

_Key = tuple[int, str]


class Queries:
    """Makes the vectors of queries by the model that serves.

    Args:
        makers: What makes them.
        serving: Which model serves.
        kept_bytes_max: What the kept ones may take.
    """

    def __init__(self, makers: Makers, serving: Serving, kept_bytes_max: int = KEPT_BYTES_MAX) -> None:
        self._makers, self._serving, self._room = makers, serving, kept_bytes_max
        self._kept: OrderedDict[_Key, Vector] = OrderedDict()
        self._taken = 0
        self._under_way: dict[_Key, asyncio.Task[Vector]] = {}
        self._away_until: dict[int, float] = {}

    async def embed(self, text: str) -> QueryVector | None:
        """The query's vector; None where no model serves that can be asked here.

        Raises:
            ModelAway: The model cannot be asked now, or gives what cannot be used.
        """
        if self._makers.off or not text.strip():
            return None  # an API refuses nothing at all, and nothing is near to it
        model = await self._serving.model()
        maker = model and self._makers.of(model)
        if model is None or maker is None:
            return None
        key = (model.id, text)
        vector = self._kept.get(key)
        # One that was kept before the model's size was known may be of another.
        if vector is not None and model.dimensions in {None, len(vector)}:
            self._kept.move_to_end(key)
        else:
            vector = await self._made(key, model, maker)
        return QueryVector(model.id, vector)

    async def close(self) -> None:
        """Give up what is under way."""
        under_way = list(self._under_way.values())
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)

    async def _made(self, key: _Key, model: Model, maker: Maker) -> Vector:
        task = self._under_way.get(key)
        if task is None:
            if asyncio.get_running_loop().time() < self._away_until.get(model.id, 0.0):
                raise ModelAway("The model that makes the vectors did not answer a moment ago.")
            task = asyncio.create_task(self._make(key, model, maker), name="query vector")
            self._under_way[key] = task
            task.add_done_callback(_look)
        return await asyncio.shield(task)  # whoever asked may go; the others still wait

    async def _make(self, key: _Key, model: Model, maker: Maker) -> Vector:
        try:
            given = await maker.query(key[1])
            (vector,) = checked(given, count=1, dimensions=model.dimensions)
        except BadVectors:
            raise  # this text's fault, as far as is known: others are asked
        except ModelAway:
            self._away_until[model.id] = asyncio.get_running_loop().time() + _AWAY_S
            raise
        finally:
            del self._under_way[key]
        self._keep(key, vector)
        return vector

    def _keep(self, key: _Key, vector: Vector) -> None:
        if (before := self._kept.pop(key, None)) is not None:
            self._taken -= _size(key, before)
        self._kept[key] = vector
        self._taken += _size(key, vector)
        while self._taken > self._room:
            self._taken -= _size(*self._kept.popitem(last=False))


def _look(task: asyncio.Task[Vector]) -> None:
    """Take note of its failure: whoever asked for it may be gone."""
    if not task.cancelled():
        task.exception()


def _size(key: _Key, vector: Vector) -> int:
    return _ENTRY_BYTES + 4 * len(key[1]) + vector.itemsize * len(vector)
