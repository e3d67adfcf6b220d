"""Owns which tests run in one process where several run: those of one file, and those that share a costly program."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
from xdist.remote import Producer  # pyright: ignore[reportMissingTypeStubs]  # it has none
from xdist.scheduler import LoadScopeScheduling  # pyright: ignore[reportMissingTypeStubs]  # the same
from xdist.workermanage import WorkerController  # pyright: ignore[reportMissingTypeStubs]  # the same

COSTLY = ("npm", "opensearch", "vllm")
_NEEDS = re.compile(r"mark\.requires\(([^)]*)\)")


class Together(LoadScopeScheduling):
    """Sends what belongs together to one process.

    xdist's own `xdist_group` does it by changing the names of tests, which pytest 9.2 no longer lets it (pytest-xdist, issue 1386): it then
    groups nothing and does not say so, and every costly program is started by each process.
    """

    def _split_scope(self, nodeid: str) -> str:
        return group_of(self.config.rootpath, nodeid.partition("::")[0])

    def remove_node(self, node: WorkerController) -> str | None:
        """The test whose process ended with it. It is over: xdist's own way gives it to the next process, which ends with it too."""
        for unit in self.assigned_work[node].values():
            for test, is_over in unit.items():
                if not is_over:
                    unit[test] = True
                    super().remove_node(node)
                    return test
        return super().remove_node(node)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Together | None:
    """Ours, for `--dist loadgroup`."""
    return Together(config, log) if config.getoption("dist") == "loadgroup" else None


@functools.cache
def group_of(root: Path, file: str) -> str:
    """What a file's tests share with those of others: the first costly program that it or its folder's conftest needs, else the file."""
    places = [root / file, (root / file).with_name("conftest.py")]
    given = " ".join(found for place in places if place.is_file() for found in _NEEDS.findall(place.read_text("utf-8")))
    return next((program for program in COSTLY if f'"{program}"' in given), file)
