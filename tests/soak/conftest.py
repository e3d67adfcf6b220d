"""Owns the switch of the long tests: without --soak they are skipped, for they take longer than a suite may."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", default=False, help="run the long tests in full")
