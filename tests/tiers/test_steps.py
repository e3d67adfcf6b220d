"""Steps down that an answer tells: in the order in which they happened, what was never needed left out, what has no address last."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from body_broker.errors import Unavailable
from tests.tiers.routing import ASKER, Routing, catalogue_of
from tests.tiers.test_router import Answers, Fell
from tiers.model import Fallback, InferenceRequest, InferenceResult, Tier
from tiers.router import Decision
from tiers.steps import steps_down

CHAIN = ("gold", "gold-small", "silver", "silver-small", "openai")
REFUSED, CUT, OPEN, ABSENT = "refused", "cut", "open", "not_configured"


@pytest.mark.parametrize(
    ("skipped", "met", "answered", "told"),
    [
        ({"silver": OPEN}, {"gold": REFUSED, "gold-small": CUT}, None, "gold gold-small silver"),
        ({"gold": OPEN, "silver": OPEN}, {"gold-small": CUT}, None, "gold gold-small silver"),
        ({"gold": ABSENT, "silver": OPEN}, {"gold-small": CUT}, None, "gold-small silver gold"),
        ({"gold-small": ABSENT, "silver-small": ABSENT}, {"gold": CUT}, "silver", "gold gold-small"),
        ({"silver": OPEN, "openai": "budget"}, {"gold": CUT}, "gold-small", "gold"),
        ({"silver": OPEN, "openai": "budget"}, {}, "gold", ""),
        ({"silver-small": OPEN}, {"openai": CUT, "silver": CUT}, None, "silver-small openai silver"),
    ],
    ids=["asked-first", "passed-over-first", "absent-last", "absent-behind", "not-needed", "none", "by-worth"],
)
def test_steps_are_told_as_they_were_gone(
    skipped: dict[str, str], met: dict[str, str], answered: str | None, told: str
) -> None:
    asked = [[Fallback(engine, why) for engine, why in each.items()] for each in (skipped, met)]

    found = steps_down(CHAIN, *asked, answered=answered)

    assert [step.engine for step in found] == told.split()


@given(st.permutations(CHAIN), st.integers(0, 5), st.sampled_from((None, *CHAIN)), st.sampled_from((ABSENT, OPEN)))
def test_whoever_was_asked_is_told_once_and_in_that_order(
    engines: list[str], asked: int, answered: str | None, why: str
) -> None:
    met = [Fallback(engine, CUT) for engine in engines[:asked]]
    skipped = [Fallback(engine, why) for engine in engines[asked:] if engine != answered]

    found = steps_down(CHAIN, skipped, met, answered=answered)

    assert [step for step in found if step.reason == CUT] == met
    assert len(set(found)) == len(found)
    if answered is None:
        assert set(found) == {*met, *skipped}


class Unanswered(Answers):
    """A tier without a model's answer: what stands in for it, or an error."""

    def __init__(self, *, fails: bool) -> None:
        super().__init__()
        self.fails = fails

    async def execute(self, request: InferenceRequest, decision: Decision, **more: Any) -> InferenceResult:
        found = await super().execute(request, decision, **more)
        if self.fails:
            raise Unavailable("It broke off.")
        return replace(found, fallbacks=decision.steps(()))


@pytest.mark.parametrize("fails", [False, True])
async def test_whoever_was_passed_over_is_counted_where_nobody_answered(*, fails: bool) -> None:
    counts, silver = Fell(), Unanswered(fails=fails)
    spent_out = frozenset({Tier.CLOUD})
    routing = Routing(catalogue_of("openai"), {Tier.SILVER: silver}, spent_out=lambda _: spent_out, counts=counts)

    with suppress(Unavailable):
        await routing.router.execute(InferenceRequest(prompt="Who rows?"), asker=ASKER)

    assert counts.fell == [("silver", "budget"), ("silver", "budget")]
