"""Owns money as numbers: billionths of a US dollar, what tokens cost, what a cap is. Costs are rounded up and caps down."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from tiers.catalogue import Price
from tiers.model import Tier, Usage

A_DOLLAR = 1_000_000_000
_PER_TOKEN = 1_000
"""Dollars for a million tokens are so many billionths for one."""
_MOST = 10**15
"""A million dollars: no cap and no request is more."""
_TOKENS_MOST = 10**9
_CENT, _SHOWN = Decimal("0.01"), Decimal("0.0001")


@dataclass(frozen=True, slots=True)
class Reservation:
    """Money set aside.

    Attributes:
        amount: Billionths of a US dollar.
    """

    id: str
    tier: Tier
    tenant: str
    price: Price
    amount: int


@dataclass(frozen=True, slots=True)
class Figure:
    """What one asker, or everybody (`*`), has taken of a tier's money in a day, in US dollars, and the tokens."""

    tier: str
    asker: str
    reserved_usd: Decimal
    spent_usd: Decimal
    requests: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Standing:
    """How an asker stands in a tier today, in billionths of a US dollar; None where nobody has asked lately.

    Attributes:
        everybody_left: Of everybody's cap. It is never told as a number: it is what others spent.
        day_left: Until the caps begin anew.
    """

    tier: Tier
    asker: str
    tier_cap: int
    asker_cap: int
    everybody_left: int | None = None
    asker_left: int | None = None
    day_left: timedelta | None = None

    @property
    def is_out(self) -> bool:
        """Whether nothing is left, as far as is known."""
        left = (self.tier_cap, self.asker_cap, self.everybody_left, self.asker_left)
        return any(amount is not None and amount <= 0 for amount in left)

    def words(self) -> str:
        """Which cap it is, how much of it is spent, and when it begins anew, for the asker alone."""
        if self.tier_cap == 0:
            return (
                f"The {self.tier} tier has no cap for money, so nothing that costs is asked there: "
                "set caps.tier_day and caps.asker_day in models.toml."
            )
        if self.asker_cap == 0:
            return f"{self.asker} may spend nothing in the {self.tier} tier."
        cap = f"{in_dollars(self.asker_cap)} a day in the {self.tier} tier"
        anew = f"at 00:00 UTC{_in_time(self.day_left)}"
        if self.asker_left is None:
            return f"{self.asker} may spend {cap}; the next begins {anew}."
        mine = f"{self.asker} has spent or set aside {in_dollars(self.asker_cap - self.asker_left)} of {cap}"
        if self.everybody_left is None or self.everybody_left >= self.asker_left:
            return f"{mine}; it begins anew {anew}."
        if self.everybody_left > 0:
            return f"{mine}, and less than the rest is left of everybody's cap there; both begin anew {anew}."
        return f"{mine}, but everybody's cap there is used up; both begin anew {anew}."


def in_dollars(billionths: int) -> str:
    """For people, rounded up: what was spent is never told as nothing."""
    dollars = (Decimal(billionths) / A_DOLLAR).quantize(_SHOWN, ROUND_CEILING)
    return f"${dollars:.2f}" if dollars == dollars.quantize(_CENT, ROUND_FLOOR) else f"${dollars:.4f}"


def _in_time(left: timedelta | None) -> str:
    if left is None:
        return ""
    minutes = -(-int(left.total_seconds()) // 60)
    return f", in {minutes // 60} h {minutes % 60} min" if minutes >= 60 else f", in {minutes} min"  # noqa: PLR2004  # an hour


def cost_of(price: Price, usage: Usage) -> int:
    """What tokens cost, in billionths of a dollar, rounded up; cached ones are among those of the prompt."""
    prompt, completion = tokens_of(usage.prompt), tokens_of(usage.completion)
    cached = min(tokens_of(usage.cached), prompt)
    dollars = price.prompt * (prompt - cached) + price.cached * cached + price.completion * completion
    return min(int((dollars * _PER_TOKEN).to_integral_value(ROUND_CEILING)), _MOST)


def tokens_of(number: int) -> int:
    """As an engine tells them, which may be anything."""
    return max(0, min(number, _TOKENS_MOST))


def cap_of(dollars: Decimal | None) -> int:
    """Billionths, rounded down; nothing where there is no number, or none above zero."""
    if dollars is None or not dollars.is_finite() or dollars <= 0:
        return 0
    return min(int((dollars * A_DOLLAR).to_integral_value(ROUND_FLOOR)), _MOST)
