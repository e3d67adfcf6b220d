"""Owns what a test may need that is not on every machine: where each is, and whether its absence skips or fails."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

PROJECT = Path(__file__).parents[1]


def data_dir() -> Path:
    """Where the test collections and novels are (BODY_BROKER_TEST_DATA)."""
    return Path(os.environ.get("BODY_BROKER_TEST_DATA") or PROJECT.parent / "shared" / "data")  # noqa: TID251  # tests' own


def _data() -> str | None:
    return None if data_dir().is_dir() else f"no test data at {data_dir()} (BODY_BROKER_TEST_DATA)"


# Each says why it is absent, or None where it is there.
COMPONENTS: dict[str, Callable[[], str | None]] = {"data": _data}


def missing(component: str, reason: str) -> NoReturn:
    """Skip the test with its reason; fail it where BODY_BROKER_REQUIRE names the component, or `all`."""
    required = {name.strip() for name in os.environ.get("BODY_BROKER_REQUIRE", "").split(",")}  # noqa: TID251  # tests' own
    if required & {component, "all"}:
        pytest.fail(f"{component} is required here: {reason}", pytrace=False)
    pytest.skip(f"{component}: {reason}")


def need(component: str) -> None:
    """Go on only where the component is there."""
    if component not in COMPONENTS:
        pytest.fail(f"{component} is no component; tests/components.py knows {sorted(COMPONENTS)}", pytrace=False)
    if reason := COMPONENTS[component]():
        missing(component, reason)
