"""Owns what is sent to the container and read from it: vLLM's chat form, whole instead of as a stream (POST /invocations)."""

from __future__ import annotations

import re

import orjson

from tiers.answers import Answer
from tiers.bronze.sagemaker.client import ANSWER_BYTES_MAX
from tiers.faults import EngineFault
from tiers.wire.base import Ask, Completion
from tiers.wire.openai import fault_of
from tiers.wire.vllm import Vllm

_TOLD_STATUS = re.compile(rb"server error \(([45][0-9]{2})\)", re.IGNORECASE)
"""SageMaker's own words around what a container answered, as its documentation has them."""
_TOLD_MAX = 8_000
_DIALECT = Vllm()


def question_of(ask: Ask) -> bytes:
    """The body of an invocation.

    Raises:
        EngineFault: `cannot`, where the container lacks what the request needs.
    """
    fields = _DIALECT.fields(ask) | {"stream": False}
    fields.pop("stream_options", None)
    if not ask.model:  # then it is the one that the container serves
        fields.pop("model")
    return orjson.dumps(fields)


def completion_of(body: bytes, ask: Ask, seconds: float) -> Completion:
    """The answer that an object holds.

    Args:
        body: The object.
        ask: What was asked.
        seconds: How long it took, from the asking to its being read.

    Raises:
        EngineFault: It holds none.
    """
    if len(body) > ANSWER_BYTES_MAX:
        raise EngineFault("malformed")
    reader, answer = _DIALECT.reader(), Answer()
    answer.take(reader.whole(body), seconds)
    answer.ended = reader.ended
    return answer.whole(ask, 0.0, seconds)


def failure_of(body: bytes) -> EngineFault:
    """What a failure's object means. It may repeat the prompt, so it is searched for a status and for that alone which costs nobody."""
    told = body[:_TOLD_MAX]
    status = _TOLD_STATUS.search(told)
    words = orjson.dumps({"error": told.decode("utf-8", "replace")})
    return fault_of(int(status[1]) if status else 500, {}, words)
