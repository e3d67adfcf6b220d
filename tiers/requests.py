"""Owns what the numbers of a request may be."""

from __future__ import annotations

import math

from body_broker.errors import BadInput
from tiers.model import InferenceRequest

TOKENS_MAX = 1_000_000
BUDGET_MS_MAX = 600_000
"""Ten minutes: who wants an answer that takes longer is not waiting for it."""
TEMPERATURE_MAX = 2.0


def check(request: InferenceRequest) -> None:
    """Refuse numbers that cannot be meant.

    Raises:
        BadInput: Each is named.
    """
    problems: list[str] = []
    if not 1 <= request.max_tokens <= TOKENS_MAX:
        problems.append(f"max_tokens: from 1 to {TOKENS_MAX}")
    budget_ms = request.latency_budget_ms
    if budget_ms is not None and not 0 < budget_ms <= BUDGET_MS_MAX:
        problems.append(f"latency_budget_ms: more than 0, and at most {BUDGET_MS_MAX}")
    ceiling = request.cost_ceiling
    if ceiling is not None and not 0 <= ceiling < math.inf:
        problems.append("cost_ceiling: 0 or more US dollars")
    warmth = request.temperature
    if warmth is not None and not 0 <= warmth <= TEMPERATURE_MAX:
        problems.append(f"temperature: from 0 to {TEMPERATURE_MAX:.0f}")
    if request.messages and request.prompt is not None:
        problems.append("prompt: there are messages too; give one of the two")
    if not request.messages and not request.prompt:
        problems.append("prompt: missing, and there are no messages either")
    if problems:
        raise BadInput(f"The request does not fit: {'; '.join(problems)}.", details={"problems": problems})
