"""Runs in mcpsafe's environment: its own command, with the parts of it that PARTS names and no others (its --modules only hides results).

It sends a server behind a login no more than one request a second, so as not to meet its limits; ours has none here: it need not wait.
"""

# ruff: noqa: ANN001, ANN202, PLR0917
# Another environment's libraries:
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import os
import sys

from mcpsafe import runner
from mcpsafe.cli import cli
from mcpsafe.tests._helpers import RateLimiter

_wanted = os.environ.pop("PARTS")  # noqa: TID251  # this program's own
_whole = runner.ScanRunner._run_module


async def _at_once(self):
    pass


async def _part(self, module_name, coro, progress, task_id, exclude_test_ids=None):
    if _wanted == "all" or module_name.split()[0].split("-")[0] in _wanted.split(","):
        return await _whole(self, module_name, coro, progress, task_id, exclude_test_ids)
    coro.close()
    progress.update(task_id, completed=1)
    return []


RateLimiter.acquire = _at_once
runner.ScanRunner._run_module = _part
sys.exit(cli())
