"""Owns the real vLLM that the tests of this folder share, and how one of its engines is made."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.components import need
from tests.vllm.server import CALLS, VllmServer
from tiers.catalogue import EngineSpec
from tiers.counts import Counts
from tiers.engine import Engine
from tiers.model import Tier


@pytest.fixture(scope="session")
def vllm_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A vLLM that serves for the whole session."""
    need("vllm")
    server = VllmServer(tmp_path_factory.mktemp("vllm"), CALLS)
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
async def engine(vllm_url: str) -> AsyncIterator[Engine]:
    """Our engine on it."""
    spec = EngineSpec(name="silver", tier=Tier.SILVER, dialect="vllm", url=vllm_url, ttft_s=30, stall_s=30)
    found = Engine(spec, Counts())
    yield found
    await found.close()
