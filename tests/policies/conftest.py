from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from policies.catalogue import Catalogue
from policies.engine import Policy
from policies.probes import with_probes
from tests.policies.rooms import WIDE, WORLD

Studio = Callable[..., Policy]


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    return with_probes(Catalogue.of([WORLD])).with_entries(WIDE)


@pytest.fixture(scope="session")
def policy(catalogue: Catalogue) -> Policy:
    return Policy.load(catalogue)


@pytest.fixture
def studio(tmp_path: Path, catalogue: Catalogue) -> Studio:
    """Loads our policies and a studio's own, given as files by name."""

    def load(text: str = "", **files: str) -> Policy:
        for name, content in {"studio": text, **files}.items():
            if content:
                (tmp_path / f"{name}.cedar").write_text(content, encoding="utf-8")
        return Policy.load(catalogue, tmp_path)

    return load
