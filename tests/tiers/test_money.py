"""How an asker stands is said to them alone: which cap it is, how much of it is spent, when it begins anew, and nothing of what others spent."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from body_broker.errors import Denied
from body_broker.storage.postgres import Pool
from tests.tiers.routing import ASKER, Routing, catalogue_of
from tests.tiers.test_cost import ANNA, BEN, PAID, caps, refusal, reserve
from tests.tiers.test_router import Answers
from tiers.cost import CostLedger
from tiers.counts import Counts
from tiers.model import InferenceRequest, InferenceResult, Tier
from tiers.money import A_DOLLAR, Standing, in_dollars
from tiers.router import Decision, ModelRouter
from tiers.unanswered import OverBudget

IN_TIME = timedelta(hours=5, minutes=11, seconds=1)
STANDS = Standing(Tier.CLOUD, ANNA, 10 * A_DOLLAR, 2 * A_DOLLAR, 7 * A_DOLLAR, 2 * A_DOLLAR, IN_TIME)
ANEW = "at 00:00 UTC, in 5 h 12 min"


@pytest.mark.parametrize(
    ("stands", "said"),
    [
        ({}, f"has spent or set aside $0.00 of $2.00 a day in the cloud tier; it begins anew {ANEW}."),
        ({"asker_left": 1}, f"set aside $2.00 of $2.00 a day in the cloud tier; it begins anew {ANEW}."),
        ({"asker_left": 0}, "has spent or set aside $2.00 of $2.00"),
        ({"everybody_left": 0, "asker_left": 0}, "has spent or set aside $2.00 of $2.00"),
        ({"everybody_left": 1}, f"and less than the rest is left of everybody's cap there; both begin anew {ANEW}."),
        ({"everybody_left": 0}, f"but everybody's cap there is used up; both begin anew {ANEW}."),
        ({"asker_left": None}, f"may spend $2.00 a day in the cloud tier; the next begins {ANEW}."),
        ({"day_left": timedelta(seconds=59)}, "it begins anew at 00:00 UTC, in 1 min."),
        ({"day_left": None}, "it begins anew at 00:00 UTC."),
        ({"asker_cap": 0}, "person:anna may spend nothing in the cloud tier."),
        (
            {"tier_cap": 0},
            "The cloud tier has no cap for money, so nothing that costs is asked there: set caps.tier_day and",
        ),
    ],
)
def test_the_cap_that_keeps_somebody_from_spending_is_said(stands: dict[str, int | None], said: str) -> None:
    words = replace(STANDS, **stands).words()

    assert words.endswith(said) or said in words
    assert "$7" not in words, "what others spent"


@pytest.mark.parametrize(("billionths", "said"), [(0, "$0.00"), (1, "$0.0001"), (A_DOLLAR // 8, "$0.1250")])
def test_what_was_spent_is_never_told_as_nothing(billionths: int, said: str) -> None:
    assert in_dollars(billionths) == said


async def test_who_is_kept_by_everybody_s_cap_learns_nothing_of_what_others_spent(pool: Pool) -> None:
    ledger = CostLedger(pool, caps(tier="0.3137", asker="2", ben="7"), Counts(), engines=(PAID,))
    await reserve(ledger, BEN)
    assert await refusal(ledger, ANNA) == "budget"

    anna, ben = ledger.words(ANNA), ledger.words(BEN)

    assert anna.startswith("person:anna has spent or set aside $0.00 of $2.00 a day in the cloud tier, and less than")
    assert ben.startswith("person:ben has spent or set aside $0.20 of $7.00 a day")
    for figure in ("ben", "0.31", "0.11", "0.2", "7.00"):
        assert figure not in anna


async def test_a_day_that_is_spent_is_told_with_when_the_next_begins(pool: Pool) -> None:
    ledger = CostLedger(pool, caps(asker="0.2"), Counts(), engines=(PAID,))
    await reserve(ledger)

    words = ledger.words(ANNA)

    assert words.startswith("person:anna has spent or set aside $0.20 of $0.20 a day in the cloud tier; it begins anew")
    assert "at 00:00 UTC, in " in words


class Kept(Answers):
    """A tier that money kept from asking anybody: a fixed text, or an error."""

    def __init__(self, *, fails: bool) -> None:
        super().__init__()
        self.fails = fails

    async def execute(self, request: InferenceRequest, decision: Decision, **more: object) -> InferenceResult:
        found = await super().execute(request, decision, **more)  # pyright: ignore[reportArgumentType]  # handed on
        if self.fails:
            raise OverBudget("No model answered.", details={"engines": ["openai: budget"]})
        return replace(found, fallbacks=decision.steps(()), note="No model answered.")


def standing(silver: Answers) -> ModelRouter:
    return ModelRouter(
        catalogue_of("openai"),
        Routing(catalogue_of("openai")).engines,
        {Tier.SILVER: silver},
        spent_out=lambda _: frozenset({Tier.CLOUD}),
        money=lambda tenant: f"{tenant} has spent it.",
    )


async def test_an_answer_that_money_kept_from_being_a_model_s_says_how_its_asker_stands() -> None:
    asked = InferenceRequest(prompt="Who rows?")

    found = await standing(Kept(fails=False)).execute(asked, asker=ASKER)
    assert found.note == "No model answered. person:anna has spent it."
    with pytest.raises(Denied) as refused:
        await standing(Kept(fails=True)).execute(asked, asker=ASKER)
    assert refused.value.message == "No model answered. person:anna has spent it."
    assert refused.value.details == {"engines": ["openai: budget"]}


async def test_who_wants_nothing_to_cost_is_told_of_no_cap() -> None:
    asked = InferenceRequest(prompt="Who rows?", cost_sensitivity="high")

    assert (await standing(Kept(fails=False)).execute(asked, asker=ASKER)).note == "No model answered."


async def test_nothing_is_said_where_nothing_costs(pool: Pool) -> None:
    assert CostLedger(pool, caps(), Counts(), engines=()).words(ANNA) == ""


async def test_money_is_said_of_each_tier_that_has_none_left(pool: Pool) -> None:
    silver = replace(PAID, name="other", tier=Tier.SILVER)
    ledger = CostLedger(pool, caps(poor="0"), Counts(), engines=(PAID, silver))

    assert ledger.words("person:poor") == (
        "person:poor may spend nothing in the cloud tier. The silver tier has no cap for money, so nothing that costs is asked there: "
        "set caps.tier_day and caps.asker_day in models.toml."
    )
