"""Owns the rows of models: which one serves queries, and which one is being built to take its place.

A process that serves or works says once, when it starts, which model its settings name: the latest start wins, and nothing says it
again. So two processes with different settings settle on one of them, and whoever cannot make that one's vectors leaves its job to
those who can. A model that is wanted no more before it was built goes with its vectors; every vector names its model by a number
that is never used again, so nothing of two models is ever compared.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass

from body_broker.lore.embedding.parts import TEXT
from body_broker.lore.index import Follower
from body_broker.storage.postgres import Connection, Executor, Pool

_NAME = re.compile(r"(?P<called>.+), text \d+")
_FRESH_S = 0.5
"""How long a process may not know that another model serves. Its queries then find no vector: nothing is ever compared wrongly."""
_COLUMNS = "id, name, url, dimensions, state"
_LOCK = "SELECT pg_advisory_xact_lock(hashtext('lore_model'))"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model as settings name it.

    Attributes:
        called: Its weights, or an endpoint's name for it.
        url: The endpoint's; None where the weights lie on this machine.
    """

    called: str
    url: str | None = None

    @property
    def name(self) -> str:
        """What tells its vectors from any other's: endpoint, model, and what of a passage is embedded."""
        return f"{self.called}{f' at {self.url}' if self.url else ''}, text {TEXT}"


@dataclass(frozen=True, slots=True)
class Model:
    """A row of lore_model; `dimensions` is None until its first vector is stored."""

    id: int
    name: str
    url: str | None
    dimensions: int | None
    state: str

    @property
    def called(self) -> str:
        """As `Wanted.called`, whatever of a passage was embedded when it was built: a query is embedded as it is."""
        found = _NAME.fullmatch(self.name)
        called = found["called"] if found else self.name
        return called.removesuffix(f" at {self.url}") if self.url else called


async def models(connection: Executor) -> list[Model]:
    """The model that serves, then the one that is being built; what there is of them."""
    rows = await connection.fetch(f"SELECT {_COLUMNS} FROM lore_model ORDER BY state DESC")  # noqa: S608  # a constant
    return [Model(**dict(row)) for row in rows]


async def want(pool: Pool, wanted: Wanted, *, replace: bool) -> None:
    """Say which model the settings name: it serves where none does, else it is to be built.

    Args:
        pool: Where lore lies.
        wanted: The model.
        replace: False leaves whatever another process wants.
    """
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(_LOCK)
        found = {model.state: model for model in await models(connection)}
        serving, building = found.get("serving"), found.get("building")
        if serving is not None and not replace:
            return
        if building is not None and building.name != wanted.name:
            await _forget(connection, building)
        if serving is not None and serving.name != wanted.name and serving.dimensions is None:
            await _forget(connection, serving)  # it never had a vector, so there is nothing to serve meanwhile
            serving = None
        if serving is None:
            await connection.execute("DELETE FROM lore_model WHERE name = $1", wanted.name)
            await _add(connection, wanted, "serving")
        elif serving.name != wanted.name and (building is None or building.name != wanted.name):
            await _add(connection, wanted, "building")


async def switch(connection: Connection, model: Model, followers: Sequence[Follower]) -> bool:
    """Whether the model that was being built serves from this transaction on; the one before goes with its vectors.

    Args:
        connection: In the transaction.
        model: It has every vector.
        followers: Told of it.
    """
    await connection.execute(_LOCK)
    if all(model.id != found.id for found in await models(connection)):
        return False
    await connection.execute("DELETE FROM lore_model WHERE state = 'serving'")
    await connection.execute("UPDATE lore_model SET state = 'serving' WHERE id = $1::integer", model.id)
    for follower in followers:
        await follower.serving(connection, model.id)
    return True


async def _add(connection: Connection, wanted: Wanted, state: str) -> None:
    await connection.execute(
        "INSERT INTO lore_model (name, url, state) VALUES ($1, $2, $3)", wanted.name, wanted.url, state
    )


async def _forget(connection: Connection, model: Model) -> None:
    await connection.execute("DELETE FROM lore_model WHERE id = $1::integer", model.id)


class Serving:
    """Which model serves, as a process knows it: read again after half a second, so that a query costs no round trip.

    Args:
        pool: Where lore lies.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._model: Model | None = None
        self._read_at = float("-inf")

    async def model(self) -> Model | None:
        """The model; None where none ever was wanted."""
        now = asyncio.get_running_loop().time()
        if now - self._read_at > _FRESH_S:
            found = await models(self._pool)
            self._model = next((model for model in found if model.state == "serving"), None)
            self._read_at = now
        return self._model
