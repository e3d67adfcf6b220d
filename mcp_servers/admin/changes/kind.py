"""Owns the words of changes: what a kind is, what is foreseen of one change, what was found when it was verified, and by whom it is made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict

from body_broker.calls import Json, Receipt
from body_broker.lore import Lore
from body_broker.storage.postgres import Connection, Pool
from body_broker.tuning import Tuning
from body_broker.work.model import Origin
from body_broker.world.map import WorldMap

TEXT_MAX = 20_000
"""Characters of a diff; the arguments, which are shown whole, hold what is new in full."""


class Params(BaseModel):
    """Base of each kind's params: strict, closed, frozen."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class NoParams(Params):
    """Nothing more to say than the target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreseen:
    """What one change would do.

    Attributes:
        headline: Verb and target in words, one line.
        diff: What would be gone (-) and what would come (+).
        basis: Of the state it was made from: another state has another one.
        outside: The diff repeats text that came from outside.
    """

    headline: str
    diff: str
    basis: str
    outside: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What reading back found.

    Attributes:
        state: done, executing where it goes on, failed where it did not come about.
        text: What is so now, in a sentence.
    """

    state: Literal["done", "executing", "failed"]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Maker:
    """By whom a change is made, and under which approval.

    Attributes:
        requester: Who asked, as text.
        origin: The same as work knows it.
        key: The approval.
        receipt: The decision's place on the audit.
        tainted: Text from outside had been read before it was asked for.
    """

    requester: str
    origin: Origin
    key: str
    receipt: Receipt | None
    tainted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What changes change."""

    pool: Pool
    lore: Lore
    tuning: Tuning
    world: WorldMap


class Plan(Protocol):
    """One change, looked at before it is made; nothing has happened."""

    @property
    def foreseen(self) -> Foreseen:
        """What it would do."""
        ...

    async def write(self, connection: Connection, maker: Maker, /) -> Json:
        """Make it in the caller's transaction; what is remembered of it, for reading back.

        Raises:
            Conflict: The state is no longer the one that was foreseen.
        """
        ...


# Any: each kind's own params, which the table pairs with the functions that take them.
Foresee = Callable[[Reach, str, Any], Awaitable[Plan]]
"""`async (reach, target, params) -> plan`; raises BadInput, NotFound or Conflict where the change could only fail."""
ReadBack = Callable[[Reach, str, Json], Awaitable[Found]]
"""`async (reach, target, what was remembered) -> found`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of change.

    Attributes:
        name: As change_request.kind has it.
        params: What it takes beside its target.
        reads: The operation that shows what a change of it would take away: whoever may not read that may draft none.
        takes: The params in words, for whoever got them wrong.
        plan: Looks at one.
        read_back: Verifies one that was made.
        lasting: What is written only begins it: reading back says when it is done.
    """

    name: str
    params: type[Params]
    reads: str
    takes: str
    plan: Foresee
    read_back: ReadBack
    lasting: bool = False
