"""Owns the one look at whatever a model gives: so many vectors, of one size, of numbers that have a direction."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

from body_broker.lore.embedding.words import BadVectors, Numbers, Vector

DIMENSIONS_MAX = 16_000
"""What pgvector stores."""


def checked(given: Sequence[Numbers], *, count: int, dimensions: int | None) -> list[Vector]:
    """The vectors, normalised.

    Args:
        given: As a model gave them.
        count: How many it was asked for.
        dimensions: How long each of this model's is; None where none was ever made.

    Raises:
        BadVectors: What is wrong with them.
    """
    if len(given) != count:
        raise BadVectors(f"The model gave {len(given)} vectors for {count} texts.")
    return [_checked(numbers, dimensions or len(given[0])) for numbers in given]


def _checked(numbers: Numbers, dimensions: int) -> Vector:
    if len(numbers) != dimensions or not 0 < dimensions <= DIMENSIONS_MAX:
        raise other_size(len(numbers), dimensions)
    try:
        length = math.hypot(*numbers)
    except (TypeError, OverflowError) as error:
        raise BadVectors("The model gave a vector that holds something else than numbers.") from error
    if not math.isfinite(length):
        raise BadVectors("The model gave a vector with a number that is not finite.")
    if length == 0:
        raise BadVectors("The model gave a vector of zeros, which has no direction.")
    return array("f", (number / length for number in numbers))


def literal(vector: Vector) -> str:
    """The vector as PostgreSQL reads it; nine digits hold a float32 exactly."""
    return f"[{','.join(f'{number:.9g}' for number in vector)}]"


def other_size(found: int, expected: int) -> BadVectors:
    """The error of vectors that cannot be compared with those there are."""
    return BadVectors(
        f"The model gave a vector of {found} numbers; {expected} were expected.",
        next_step="Another model answers under this name: set BODY_BROKER_EMBEDDINGS_MODEL to a name of its own.",
    )
