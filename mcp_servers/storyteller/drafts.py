"""Owns the shapes of the tools that have something written: what each takes and answers, and how an answer reads as text."""

from __future__ import annotations

from typing import Annotated, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from body_broker.calls import Arguments, Json, Result
from body_broker.work.model import State

PARTS_MAX = 50
Kind = Literal["scene", "dialogue", "quest", "description"]
Constraint = Annotated[str, Field(min_length=1, max_length=300)]


class GenerateNarrative(Arguments):
    """What to write."""

    prompt: Annotated[str, Field(min_length=1, max_length=8_000, pattern=r"\S")]
    kind: Kind = "scene"
    constraints: Annotated[list[Constraint], Field(max_length=20, description="What must hold of it.")] = Field(
        default=[]
    )


class GenerateStoryArc(Arguments):
    """A theme, and how many parts."""

    theme: Annotated[str, Field(min_length=1, max_length=2_000, pattern=r"\S")]
    length: Annotated[int, Field(ge=1, le=PARTS_MAX, description="Parts.")]


class Draft(Result):
    """The job that writes it; `result` is there where it is told as a task."""

    job_id: str
    status: State = "queued"
    result: Json = None

    def handle(self) -> str | None:
        """The job."""
        return None if self.result is not None else self.job_id

    def text(self) -> str:
        """One line."""
        if self.result is not None:
            return orjson.dumps(self.result).decode()
        return f"It is queued as {self.job_id}: get_job has it once it has succeeded."


class GetStoryArc(Arguments):
    """The job that writes it."""

    job_id: Annotated[str, Field(min_length=1, max_length=80)]
    start: Annotated[int, Field(ge=1, le=PARTS_MAX, description="The first part to show.")] = 1


class ArcPart(BaseModel):
    """One part."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    text: str


class StoryArc(Result):
    """Parts that are written so far, from the one that was asked for."""

    job_id: str
    status: State
    parts: list[ArcPart]
    written: int
    of: int = Field(description="Parts in all.")
    consistent: bool | None = Field(default=None, description="With canon; null where that is not known, or not yet.")
    truncated: bool = Field(default=False, description="Whether a text was cut where it grew too long.")
    reason: str | None = Field(default=None, description="Why it goes no further, where it failed.")
    from_outside: bool

    def since(self, start: int) -> StoryArc:
        """The same from this part on, counted from 1."""
        return self.model_copy(update={"parts": self.parts[start - 1 :]})

    def outside(self) -> bool:
        """Whether text from outside may have gone into a part."""
        return self.from_outside

    def text(self) -> str:
        """How far it is, then every part under its title."""
        head = f"{self.written} of {self.of} parts, {self.status}" + (f": {self.reason}" if self.reason else ".")
        return "\n\n".join([head, *(f"## {part.title}\n\n{part.text}" for part in self.parts)])
