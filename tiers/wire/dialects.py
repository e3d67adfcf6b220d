"""Owns which dialects there are, by the names that models.toml has for them."""

from __future__ import annotations

from collections.abc import Mapping

from tiers.catalogue import DialectName
from tiers.wire.anthropic import Anthropic
from tiers.wire.azure import Azure
from tiers.wire.base import Dialect
from tiers.wire.openai import OpenAi
from tiers.wire.trtllm import TrtLlm
from tiers.wire.vllm import Vllm

_DIALECTS: Mapping[DialectName, Dialect] = {
    "vllm": Vllm(),
    "trtllm": TrtLlm(),
    "openai": OpenAi(),
    "azure": Azure(),
    "anthropic": Anthropic(),
    "sagemaker": Vllm(),  # what its containers speak; it is asked through AWS (tiers.bronze.sagemaker), never over HTTP from here
}


def dialect_of(name: DialectName) -> Dialect:
    """The dialect of this name; all are stateless."""
    return _DIALECTS[name]
