import asyncio, json, sys
from tests.conformance.conftest import Pair
from tests.conformance.suite import _run, _statuses
from pathlib import Path
import pytest
async def test_x(modules, pair: Pair, tmp_path: Path):
    for n in ("tasks-capability-negotiation","tasks-dispatch-and-envelope","tasks-lifecycle","tasks-request-headers","tasks-request-state-removal","tasks-wire-fields","tasks-required-task-error","tasks-mrtr-input","tasks-mrtr-composition","tasks-status-notifications"):
        code, said = await _run(modules, "server", "--url", pair.balancer.url, "--scenario", n, "--spec-version", "2026-07-28", "--force", "-o", str(tmp_path/"o"))
        print(n, code, "")
    for f in (tmp_path/"o").rglob("checks.json"):
        for c in json.loads(f.read_text()):
            if c["status"] != "SUCCESS": print(f.parent.name[:40], c["id"], c["status"], (c.get("errorMessage") or "")[:400])
            else: print("ok", c["id"])
