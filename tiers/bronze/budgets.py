"""Owns the budget of one job: what is left of it before each question, and the refusal that says which part is used up, and by what."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from body_broker.errors import TooLarge
from body_broker.work.run import Run
from tiers.bronze.calls import Spent
from tiers.bronze.model import Budget, Question
from tiers.model import BYTES_A_TOKEN, prompt_bytes

_ANSWER_MIN = 256
"""Tokens that an answer must have room for, where the job wants as many: a shorter one is cut before it says anything."""


class BudgetUsedUp(TooLarge):
    """A job has used up a part of its budget; trying again begins where it ended."""

    advice = "Submit the job again with more of what its `budget` ran out of, or ask for less."


@dataclass(frozen=True, slots=True)
class Left:
    """What one more question may use.

    Attributes:
        tokens: Of its prompt and its answer.
        usd: None without a limit of its own.
    """

    tokens: int
    usd: float | None


def until_of(run: Run, budget: Budget) -> datetime:
    """When the job's time is over, UTC; where a person had it done again, that is counted from now."""
    return run.work.expires_at or datetime.now(UTC) + timedelta(seconds=budget.seconds)


def check_time(budget: Budget, until: datetime) -> None:
    """Raise BudgetUsedUp where the job's time is over."""
    if datetime.now(UTC) >= until:
        raise _used_up("seconds", f"{budget.seconds:.0f} seconds", "all of them have passed")


def still_left(question: Question, spent: Spent) -> Question:
    """The question with what is left for it once more was asked for the job.

    Raises:
        BudgetUsedUp: As `left_of` does.
    """
    assignment = question.assignment
    left = left_of(
        assignment.budget,
        spent,
        prompt_size=prompt_bytes(question.messages, question.offers, assignment.schema),
        max_tokens=assignment.max_tokens,
        until=question.until,
    )
    return replace(question, tokens_left=left.tokens, usd_left=left.usd)


def left_of(budget: Budget, spent: Spent, *, prompt_size: int, max_tokens: int, until: datetime) -> Left:
    """What is left for a question.

    Args:
        budget: Of the job.
        spent: What its askings have used.
        prompt_size: Bytes of the question.
        max_tokens: What its answer may have.
        until: When its time is over.

    Raises:
        BudgetUsedUp: Its time is over, or too few tokens are left to ask it.
    """
    check_time(budget, until)
    used = spent.usage.prompt + spent.usage.completion
    left = budget.tokens - used
    needed = int(prompt_size / BYTES_A_TOKEN) + min(max_tokens, _ANSWER_MIN)
    if left < needed:
        raise _used_up(
            "tokens", f"{budget.tokens} tokens", f"{used} were used, and the next question needs about {needed}"
        )
    # Where nobody knows what was spent, nothing that costs may follow.
    usd = None if budget.usd is None else 0.0 if spent.unpriced else max(0.0, budget.usd - spent.cost_usd)
    return Left(left, usd)


def too_dear(budget: Budget, spent: Spent) -> BudgetUsedUp:
    """The refusal where every engine that could be asked costs more than is left."""
    unknown = ", and for some of it nobody can say what it cost" if spent.unpriced else ""
    return _used_up(
        "usd", f"${budget.usd:g}", f"${spent.cost_usd:.4f} were spent{unknown}, and the next question may cost more"
    )


def _used_up(part: str, whole: str, used: str) -> BudgetUsedUp:
    return BudgetUsedUp(f"The job's budget of {whole} is used up: {used}.", details={"budget": part})
