"""Owns what arguments may look like before anything reads them: bounded, finite, without invisible characters."""

from __future__ import annotations

import math

from body_broker.calls import Json
from body_broker.errors import BadInput, TooLarge
from body_broker.text import clean, is_clean

DEPTH_MAX = 16
VALUES_MAX = 20_000
CHARACTERS_MAX = 3_000_000
INTEGER_MAX = 2**63 - 1
"""What JSON can be written with again for the audit, and what PostgreSQL's bigint holds."""


def clean_arguments(raw: Json) -> dict[str, Json]:
    """A copy of the raw arguments with every string free of control and direction-changing characters.

    What comes back is the one dict that is then validated, decided on, hashed, run and audited (DESIGN.md §2, steps 2-3).

    Raises:
        BadInput: Not an object, a number that is not finite or too large, or a key with invisible characters.
        TooLarge: Deeper, longer or more than the limits above.
    """
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise BadInput("The arguments must be a JSON object.")
    return _Cleaner().object(raw, 1)  # pyright: ignore[reportUnknownArgumentType] - keys are checked inside


class _Cleaner:
    """One walk over the arguments, with what is left of its budget."""

    def __init__(self) -> None:
        self.values = VALUES_MAX
        self.characters = CHARACTERS_MAX

    def object(self, found: dict[Json, Json], depth: int) -> dict[str, Json]:
        """A cleaned object."""
        if depth > DEPTH_MAX:
            raise TooLarge(f"The arguments are nested deeper than {DEPTH_MAX} levels.", details={"limit": DEPTH_MAX})
        kept: dict[str, Json] = {}
        for key, item in found.items():
            if not isinstance(key, str) or not is_clean(key):
                raise BadInput("An argument's name holds invisible characters.")
            self.characters -= len(key)
            kept[key] = self.value(item, depth)
        return kept

    def value(self, found: Json, depth: int) -> Json:
        """A cleaned value of any kind."""
        self.values -= 1
        if self.values < 0:
            raise TooLarge(f"The arguments hold more than {VALUES_MAX} values.", details={"limit": VALUES_MAX})
        if isinstance(found, str):
            self.characters -= len(found)
            if self.characters < 0:
                raise TooLarge(
                    f"The arguments hold more than {CHARACTERS_MAX} characters.", details={"limit": CHARACTERS_MAX}
                )
            return clean(found)
        if isinstance(found, float) and not math.isfinite(found):
            raise BadInput("A number in the arguments is not finite.")
        if isinstance(found, int) and not -INTEGER_MAX <= found <= INTEGER_MAX:
            raise BadInput("A whole number in the arguments has more than 63 bits.")
        if isinstance(found, dict):
            return self.object(found, depth + 1)  # pyright: ignore[reportUnknownArgumentType] - keys are checked inside
        if isinstance(found, list):
            if depth >= DEPTH_MAX:
                raise TooLarge(
                    f"The arguments are nested deeper than {DEPTH_MAX} levels.", details={"limit": DEPTH_MAX}
                )
            return [self.value(item, depth + 1) for item in found]  # pyright: ignore[reportUnknownVariableType] - any JSON
        return found
