"""Owns trtllm-serve's dialect: closed requests, priority from 0 to 1 (higher first), grammars in the response format."""

from __future__ import annotations

import re

from body_broker.calls import Json
from tiers.wire.base import Ask
from tiers.wire.openai import OpenAi, sampled

_SPECIAL = re.compile(r"[\\^$.|?*+(){}\[\]]")


class TrtLlm(OpenAi):
    """TensorRT-LLM's server. A field that it does not know is a 400, so only what it names is sent (facts/tiers.md §2)."""

    health_path = "/health"

    def fields(self, ask: Ask) -> dict[str, Json]:
        """The body's fields; priority counts only under `waiting_queue_policy: priority`."""
        found = super().fields(ask) | {"priority": ask.urgency}
        if ask.cache_salt:
            found["cache_salt"] = ask.cache_salt
        return found

    def sampling(self, ask: Ask) -> dict[str, Json]:
        """How it draws its words."""
        return sampled(ask)

    def grammar(self, ask: Ask) -> dict[str, Json]:
        """What the answer must obey."""
        if ask.choices:
            return {"response_format": {"type": "regex", "regex": f"({'|'.join(map(_literal, ask.choices))})"}}
        if ask.regex is not None:
            return {"response_format": {"type": "regex", "regex": ask.regex}}
        if ask.schema is not None:
            return {"response_format": {"type": "json", "schema": dict(ask.schema)}}
        return {}


def _literal(text: str) -> str:
    """A text as a regular expression; grammars know fewer escapes than Python writes."""
    return _SPECIAL.sub(r"\\\g<0>", text)
