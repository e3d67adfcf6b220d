"""Owns the words of making vectors: what is embedded of a passage, a vector, who makes them, and how that fails."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from body_broker.errors import Unavailable

if TYPE_CHECKING:
    Vector = array[float]  # generic in its stubs only
else:
    Vector = array
"""float32, L2-normalised."""
Numbers = Sequence[float]
"""A vector as a model gave it: nothing is known of it yet."""

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of model.safetensors: sentence-transformers/all-MiniLM-L6-v2, revision 1110a243."""


class ModelAway(Unavailable):
    """The model that makes the vectors cannot be asked now."""

    advice = "`body-broker lore status` says which model makes the vectors; see that it answers."


class BadVectors(ModelAway):
    """What the model gave cannot be used; nothing of it was stored."""


@dataclass(frozen=True, slots=True)
class Text:
    """A passage as it is embedded: its document's title, its heading, and its text."""

    title: str
    heading: str
    content: str


class Maker(Protocol):
    """Makes vectors by one model. What it gives is not believed: `vectors.checked` looks at all of it.

    Attributes:
        at_once: Passages that it is given together.
    """

    at_once: int

    async def query(self, text: str) -> Sequence[Numbers]:
        """One vector, of a query.

        Raises:
            ModelAway: It cannot be asked now.
        """
        ...

    async def passages(self, texts: Sequence[Text]) -> list[Sequence[Numbers]]:
        """The vectors of each passage, one for each of its parts.

        Raises:
            ModelAway: It cannot be asked now.
        """
        ...

    async def close(self) -> None:
        """End what it holds open."""
        ...
