"""Owns routers for tests: over models.toml as it is shipped, a studio's own words laid over it, and engines that nobody listens behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from body_broker.calls import Caller
from tiers.catalogue import Catalogue, Given
from tiers.counts import Counts
from tiers.engine import Engine
from tiers.model import Asker, Tier
from tiers.reading import read_catalogue
from tiers.router import Decision, ModelRouter, Serves

ALL = ("gold", "silver", "openai", "azure", "anthropic")
"""The addresses that the settings can have."""
NOWHERE = "http://127.0.0.1:9"

SMALL = """
[engines.gold-small]
url = "http://127.0.0.1:9"
[engines.silver-small]
url = "http://127.0.0.1:9"
"""
ASKER = Asker(caller=Caller(chain=("person:anna",), roles={}, session="ses_1"), conversation="cnv_1")


SHIPPED = read_catalogue(Given())


def catalogue_of(*addresses: str, toml: str | None = None, folder: Path | None = None) -> Catalogue:
    """As the settings with these addresses, and this file of a studio's, make it; how much an engine holds is known of each."""
    found = SHIPPED
    if toml is not None:
        assert folder is not None
        file = folder / "models.toml"
        file.write_text(toml, "utf-8")
        found = read_catalogue(Given(file=file))
    known = {name: replace(spec, context_known=True) for name, spec in found.engines.items()}
    there = {n: replace(s, url=NOWHERE) if s.address in addresses and s.url is None else s for n, s in known.items()}
    return replace(found, engines=there)


class Routing:
    """A router, its engines, and what it decides."""

    def __init__(
        self,
        catalogue: Catalogue,
        tiers: Mapping[Tier, Serves] | None = None,
        *,
        spent_out: Callable[[str], frozenset[Tier]] | None = None,
        counts: Counts | None = None,
    ) -> None:
        specs = catalogue.engines.values()
        self.engines = {spec.name: Engine(spec, Counts()) for spec in specs if spec.url is not None}
        self.router = ModelRouter(catalogue, self.engines, tiers or {}, spent_out=spent_out, counts=counts)

    def measured(self, name: str, *, ttft_s: float, gap_s: float | None = None) -> None:
        """How fast an engine was a moment ago."""
        engine = self.engines[name]
        engine.ttft_s, engine.gap_s = ttft_s, gap_s
        engine.measured_at = asyncio.get_running_loop().time()

    def fails(self, name: str) -> None:
        """An engine whose breaker is open."""
        engine = self.engines[name]
        for _ in range(engine.spec.failure_threshold):
            entry = engine.breaker.enter()
            assert entry is not None, "it is open already"
            engine.breaker.failed(entry)


def asked(decision: Decision) -> list[str]:
    return [candidate.engine.spec.name for candidate in decision.candidates]


def skipped(decision: Decision) -> dict[str, str]:
    return {skip.engine: skip.reason for skip in decision.skipped}
