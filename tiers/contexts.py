"""Owns whether a request fits what engines hold: what they say themselves where nobody said it, and the refusal of what fits nowhere."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from body_broker.errors import TooLarge
from tiers.deadline import Deadline
from tiers.engine import Engine
from tiers.faults import EngineFault
from tiers.model import BYTES_A_TOKEN, InferenceRequest, request_bytes


async def learned(engines: Iterable[Engine], deadline: Deadline) -> bool:
    """Whether one of these engines says now that it holds another number of tokens than was believed.

    Only those are asked of whose model models.toml says nothing, each once; one that cannot be asked changes nothing.
    """
    changed = False
    for engine in engines:
        with suppress(EngineFault):
            changed = await engine.learn_context(deadline) or changed
    return changed


def too_large(request: InferenceRequest, engines: Iterable[Engine]) -> TooLarge:
    """The refusal of what none of these engines holds."""
    most, tokens = max(engine.context_tokens for engine in engines), int(request_bytes(request) / BYTES_A_TOKEN)
    return TooLarge(
        f"The prompt is about {tokens} tokens long, and {request.max_tokens} are to be written: "
        f"the engines for it hold {most} together.",
        next_step="Send a shorter prompt or fewer tools, ask for fewer max_tokens, or name a model that holds more. Where an engine holds"
        " more than that, context_tokens in models.toml says so (BODY_BROKER_MODELS).",
        details={"context_tokens": most, "prompt_tokens": tokens, "max_tokens": request.max_tokens},
    )
