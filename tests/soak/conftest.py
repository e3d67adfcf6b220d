"""Owns the switch of the long tests: without --soak they are skipped, for they take longer than a suite may."""

from __future__ import annotations

import faulthandler

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", default=False, help="run the long tests in full")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Hours are what these may take, not the minutes after which any other test's process is ended; each has a time-out of its own."""
    faulthandler.cancel_dump_traceback_later()
