"""Owns vLLM's dialect: Chat Completions with structured outputs, priority (lower first) and cache salts (facts/tiers.md §2)."""

from __future__ import annotations

from body_broker.calls import Json
from tiers.wire.base import Ask
from tiers.wire.openai import OpenAi, offered, sampled, schema_format

_URGENT, _LEAST = 0, 100


class Vllm(OpenAi):
    """vLLM's OpenAI-compatible server. What it does not know it ignores without a word, so nothing of another dialect is sent."""

    health_path = "/health"

    def fields(self, ask: Ask) -> dict[str, Json]:
        """The body's fields; priority counts only under `--scheduling-policy priority` and is ignored otherwise."""
        found = super().fields(ask) | {"priority": round(_URGENT + (1 - ask.urgency) * _LEAST)}
        if ask.cache_salt:
            found["cache_salt"] = ask.cache_salt
        if ask.offers:  # arguments follow the schema only where it is strict
            found["tools"] = [offered(offer, strict=True) for offer in ask.offers]
        return found

    def limits(self, ask: Ask) -> dict[str, Json]:
        """How much it may write."""
        return {"max_tokens": ask.max_tokens}

    def sampling(self, ask: Ask) -> dict[str, Json]:
        """How it draws its words."""
        return sampled(ask)

    def grammar(self, ask: Ask) -> dict[str, Json]:
        """What the answer must obey."""
        if ask.choices:
            return {"structured_outputs": {"choice": list(ask.choices)}}
        if ask.regex is not None:
            return {"structured_outputs": {"regex": ask.regex}}
        return {"response_format": schema_format(ask.schema)} if ask.schema is not None else {}
