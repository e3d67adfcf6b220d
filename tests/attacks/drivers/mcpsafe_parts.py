"""Runs in mcpsafe's environment: its own command, with the parts of it that argv names and no others (its --modules only hides results)."""

# ruff: noqa: ANN001, ANN202, PLR0917
# Another environment's libraries:
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import os
import sys

from mcpsafe import runner
from mcpsafe.cli import cli

_wanted = set(os.environ.pop("PARTS").split(","))  # noqa: TID251  # this program's own
_whole = runner.ScanRunner._run_module


async def _part(self, module_name, coro, progress, task_id, exclude_test_ids=None):
    if module_name.split()[0].split("-")[0] in _wanted:
        return await _whole(self, module_name, coro, progress, task_id, exclude_test_ids)
    coro.close()
    progress.update(task_id, completed=1)
    return []


runner.ScanRunner._run_module = _part
sys.exit(cli())
