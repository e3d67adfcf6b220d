"""Owns money as numbers: billionths of a US dollar, what tokens cost, what a cap is. Costs are rounded up and caps down."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from tiers.catalogue import Price
from tiers.model import Tier, Usage

A_DOLLAR = 1_000_000_000
_PER_TOKEN = 1_000
"""Dollars for a million tokens are so many billionths for one."""
_MOST = 10**15
"""A million dollars: no cap and no request is more."""
_TOKENS_MOST = 10**9


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
