"""Owns which paid engine is asked first: the role it is meant for, whether it can be in time, then its price and how slow it was lately."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tiers.chain import Candidate, most_usd
from tiers.model import BYTES_A_TOKEN, InferenceRequest, Sensitivity, Tier, request_bytes

EXPERT = "expert"
_ROLES: Mapping[str, str] = {"npc": "dialogue", "storyteller": "dialogue", "support": "support"}
"""By persona."""
_PLAIN = "plain"
SECOND_USD: Mapping[Sensitivity, float] = {"low": 0.01, "normal": 0.0005, "high": 0.0}
"""What a second sooner is worth, by how sensitive a request is to cost."""


def role_of(request: InferenceRequest) -> str:
    """The role that a request needs an engine for, as models.toml names them."""
    return EXPERT if request.requires_expert_reasoning else _ROLES.get(request.persona or "", _PLAIN)


def by_worth(
    candidates: Sequence[Candidate], request: InferenceRequest, *, remaining_s: float
) -> tuple[Candidate, ...]:
    """The candidates, those of the cloud among themselves the most worth asking first; all others stay where they are, before them.

    One that never answered counts as fast: so it is tried, and measured.
    """
    ours = [each for each in candidates if each.tier is not Tier.CLOUD]
    paid = [each for each in candidates if each.tier is Tier.CLOUD]
    if len(paid) <= 1:
        return tuple(candidates)
    role, tokens = role_of(request), int(request_bytes(request) / BYTES_A_TOKEN)

    def worth(candidate: Candidate) -> tuple[bool, bool, float]:
        engine = candidate.engine
        lane = engine.background if request.priority == "background" else engine.lane
        eta_s = engine.eta_s(request.max_tokens, lane)
        price = engine.spec.price
        usd = 0.0 if price is None else most_usd(price, tokens, request.max_tokens)
        return role not in engine.spec.roles, eta_s > remaining_s, usd + eta_s * SECOND_USD[request.cost_sensitivity]

    return (*ours, *sorted(paid, key=worth))
