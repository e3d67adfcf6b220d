"""Owns the end of a test that does not end: its process says where it is and is over, so that the others run.

pytest-timeout raises an exception in the test, which a task of the test may take for its own; and as soon as a test has failed, it and
pytest's faulthandler let go of it for a debugger's sake, so that a clean-up that hangs would hang for ever.
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Generator

import pytest

_GRACE_S = 120.0
_CLEAN_UP_S = 300.0
_STDERR = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("watchdog_grace_s", "how long after its time-out a test's process is ended", default=str(_GRACE_S))
    parser.addini("watchdog_clean_up_s", "how long a test that failed may clean up", default=str(_CLEAN_UP_S))


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_STDERR] = os.dup(2)  # the one outside, for nothing is captured at this moment


def pytest_unconfigure(config: pytest.Config) -> None:
    os.close(config.stash[_STDERR])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    _arm(item, _timeout_of(item) + float(item.config.getini("watchdog_grace_s")))
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(trylast=True)
def pytest_exception_interact(node: pytest.Item | pytest.Collector) -> None:
    if isinstance(node, pytest.Item):
        _arm(node, float(node.config.getini("watchdog_clean_up_s")))


def _timeout_of(item: pytest.Item) -> float:
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0] if marker is not None else item.config.getini("timeout"))


def _arm(item: pytest.Item, seconds: float) -> None:
    faulthandler.dump_traceback_later(seconds, exit=True, file=item.config.stash[_STDERR])
