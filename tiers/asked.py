"""Owns how a request to an engine is told in OpenTelemetry's conventions for GenAI: one span of a client, one count; never a word of it."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Self

from body_broker.text import clean
from body_broker.tracing import Span, Value, span
from tiers.catalogue import DialectName, EngineSpec
from tiers.counts import Counts
from tiers.faults import EngineFault
from tiers.model import Usage
from tiers.wire.base import Ask, Completion

OPERATION = "chat"
PROVIDERS: dict[DialectName, str] = {"azure": "azure.ai.openai", "sagemaker": "aws.sagemaker"}
"""`gen_ai.provider.name` of dialects that are called otherwise there; the others' is their own."""
_MODEL_MAX = 100


class Asked:
    """One request to an engine, for `with`.

    Args:
        spec: The engine's.
        ask: What it is asked.
        counts: Counts it.
    """

    def __init__(self, spec: EngineSpec, ask: Ask, counts: Counts) -> None:
        self._provider, self._model = PROVIDERS.get(spec.dialect, spec.dialect), clean(ask.model, limit=_MODEL_MAX)
        self._counts, self._began, self._usage = counts, 0.0, Usage()
        about: dict[str, Value] = {
            "gen_ai.operation.name": OPERATION,
            "gen_ai.provider.name": self._provider,
            "gen_ai.request.model": self._model,
            "gen_ai.request.max_tokens": ask.max_tokens,
        }
        self._span: Span = span(f"{OPERATION} {self._model}", about, kind="client")

    def whole(self, found: Completion) -> Completion:
        """The answer that came, noted."""
        self._usage = found.usage
        self._span.note(
            {
                "gen_ai.usage.input_tokens": found.usage.prompt,
                "gen_ai.usage.output_tokens": found.usage.completion,
                "gen_ai.response.finish_reasons": [found.finish],
                "gen_ai.response.time_to_first_chunk": found.ttft_s,
            }
        )
        return found

    def __enter__(self) -> Self:
        self._span.__enter__()
        self._began = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        fault = _word(error)
        if isinstance(error, EngineFault):
            self._span.fault(error.reason)
        self._span.__exit__(kind, error, traceback)
        self._counts.asked(
            OPERATION, self._provider, self._model, time.perf_counter() - self._began, self._usage, fault=fault
        )


def _word(error: BaseException | None) -> str:
    if error is None:
        return ""
    if isinstance(error, EngineFault):
        return error.reason
    return "cancelled" if isinstance(error, asyncio.CancelledError) else "_OTHER"
