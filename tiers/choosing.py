"""Owns answers that are one of several lines: what a model is held to, when no more text is needed, which line a text stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import orjson

from body_broker.calls import Json
from body_broker.errors import BadInput
from tiers.catalogue import DialectName
from tiers.model import Finish, Listener, Told

GRAMMARS: frozenset[DialectName] = frozenset({"vllm", "trtllm"})
"""Dialects that hold an answer to one of several lines; others are given them as JSON Schema."""
SCHEMA_TOKENS = 32
"""What a choice needs as JSON, beside its line."""
_BYTES_AT_LEAST = 3
"""Fewer than a token of a choice has on average, so that none is cut for want of tokens: more of them are set aside than by BYTES_A_TOKEN."""


@dataclass(frozen=True, slots=True)
class Options:
    """What may be answered: each line as the model writes it, and the answer that it stands for."""

    lines: Mapping[str, str]

    def chosen(self, text: str, finish: Finish) -> str | None:
        """The answer that a model's text stands for; None where it stands for none, or was cut before that was clear.

        A grammar allows nothing but these lines: as soon as only one can follow, it is decided, also where the text ends early.
        """
        said = text.strip()
        found = said if finish == "stop" else self._only(said)
        if found not in self.lines and said.startswith("{"):
            found = _in_json(said)
        return self.lines.get(found)

    def decided(self, text: str) -> bool:
        """Whether no more text is needed: one line is left, or none is."""
        said = text.strip()
        return bool(said) and not said.startswith("{") and len(self._left(said)) <= 1

    def json_tokens(self) -> int:
        """The most tokens that a choice has as JSON."""
        return SCHEMA_TOKENS + max(len(line.encode()) for line in self.lines) // _BYTES_AT_LEAST

    def _only(self, said: str) -> str:
        left = self._left(said)
        return left[0] if said and len(left) == 1 else ""

    def _left(self, said: str) -> list[str]:
        return [line for line in self.lines if line.startswith(said)]

    def schema(self) -> dict[str, Json]:
        """The same as JSON Schema, for engines that know no shorter grammar."""
        return {
            "type": "object",
            "properties": {"choice": {"type": "string", "enum": list(self.lines)}},
            "required": ["choice"],
            "additionalProperties": False,
        }


def options_among(choices: Sequence[str]) -> Options:
    """The asker's own choices, each standing for itself.

    Raises:
        BadInput: One is empty.
    """
    if not all(choice.strip() for choice in choices):
        raise BadInput("A choice is empty.", details={"problems": ["choices: one is empty"]})
    return Options({choice.strip(): choice for choice in choices})


class Quiet:
    """Tells a listener how it goes, and keeps pieces back that stand for something else."""

    restarts = True

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    async def __call__(self, told: Told) -> None:
        """Hear one thing."""
        if told.kind not in {"text", "restart"}:
            await self._listener(told)


def _in_json(said: str) -> str:
    try:
        found = orjson.loads(said)
    except orjson.JSONDecodeError:
        return ""
    return str(cast("dict[str, object]", found).get("choice", "")) if isinstance(found, dict) else ""
