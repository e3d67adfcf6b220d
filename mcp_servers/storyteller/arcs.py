"""Owns reading a story arc: its parts as they are written, and as they were published."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

from body_broker.calls import Json
from body_broker.errors import NotFound
from body_broker.storage.postgres import Pool
from body_broker.work import queue
from body_broker.work.model import State, WorkItem
from mcp_servers.storyteller.drafts import ArcPart, StoryArc
from mcp_servers.storyteller.writing import STORY_ARC, plan_and_parts
from tiers.bronze.kept import Kept
from tiers.bronze.model import Answer, Assignment

_ANSWER = "answer "
"""What the names of a job's recorded steps begin with that are answers of a model."""
_READ = ("tool ", "came ")
"""And of those that are what came of a call of a tool, at once or after people were asked."""


async def read(job_id: str, owner: str, *, pool: Pool, kept: Callable[[str, str], Awaitable[Kept | None]]) -> StoryArc:
    """What of a story of this owner's is written; also while it is written, and when its job is forgotten.

    Raises:
        NotFound: The owner has no job of this id that writes a story arc.
    """
    try:
        item = await queue.get(pool, job_id, owner=owner)
    except NotFound:
        found = await kept(job_id, owner)
        if found is None or found.kind != STORY_ARC:
            raise _not_found() from None
        return _published(job_id, "succeeded", found.body)
    if item.kind != STORY_ARC:
        raise _not_found()
    if item.state == "succeeded" and item.result is not None:
        return _published(job_id, item.state, item.result)
    return await _so_far(item, pool)


def _published(job_id: str, state: State, body: Mapping[str, Any]) -> StoryArc:
    parts = [ArcPart(title=part["title"], text=part["text"]) for part in body["parts"]]
    return StoryArc(
        job_id=job_id,
        status=state,
        parts=parts,
        written=len(parts),
        of=body["of"],
        consistent=body["consistent"],
        truncated=body["made"]["truncated"],
        from_outside=body["made"]["outside"],
    )


async def _so_far(item: WorkItem, pool: Pool) -> StoryArc:
    """The parts that are recorded, whatever became of the job since."""
    assignment = Assignment.parse(item.input)
    answered = await queue.steps(pool, item.id, _ANSWER)
    answers = [Answer.parse(answered[name]) for name in sorted(answered, key=_number)]
    texts = [answer.text for answer in answers if not answer.calls and answer.text.strip()]
    length: int = assignment.about["length"]
    parts = plan_and_parts(texts, length)[1]
    came = [each for prefix in _READ for each in (await queue.steps(pool, item.id, prefix)).values()]
    return StoryArc(
        job_id=item.id,
        status=item.state,
        parts=parts,
        written=len(parts),
        of=length,
        truncated=any(answer.finish == "length" for answer in answers),
        reason=_reason(item),
        from_outside=item.origin.tainted or assignment.outside or any(map(_has_outside, came)),
    )


def _number(name: str) -> int:
    return int(name.removeprefix(_ANSWER))


def _has_outside(called: Json) -> bool:
    """Whether a tool gave text from outside; what says nothing of it may have."""
    return not isinstance(called, dict) or cast("dict[str, Json]", called).get("outside") is not False


def _reason(item: WorkItem) -> str | None:
    said = cast("dict[str, Json] | None", item.error)
    return None if said is None else said.get("message")


def _not_found() -> NotFound:
    return NotFound("You have no story arc of this id.", next_step="list_jobs lists your jobs.")
