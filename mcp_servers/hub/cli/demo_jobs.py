"""Owns the demo's job: a designer gives an expert model work of minutes, and reads what came of it; or is told what is missing."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from mcp_servers.hub.cli.demo_round import DemoFailed, Seat, say, seated
from mcp_servers.hub.runtime import Runtime
from tiers.model import Tier

_PROMPT = "The ferryman finds a lantern that he did not light."
_GIVEN = {"prompt": _PROMPT, "kind": "scene", "constraints": ["Osric Vane says nothing."]}
_LOOK_EVERY_S, _PATIENCE_S = 0.2, 300.0
_SHOWN = 300
_OVER = frozenset({"succeeded", "failed", "unknown", "cancelled", "expired"})


async def go_work(runtime: Runtime, url: str) -> None:
    """A text is asked for, written by a worker, held against canon, kept, and found again.

    Raises:
        DemoFailed: It was refused, or did not come to an end.
    """
    catalogue = runtime.inferring.catalogue
    chain = {Tier.BRONZE, *catalogue.after(Tier.BRONZE)}
    async with seated(url, runtime.tokens, "person:demo-dora", "designer") as designer:
        if not any(spec.url is not None and spec.tier in chain for spec in catalogue.engines.values()):
            error = await designer.refused("generate_narrative", _GIVEN, "not_configured")
            say("work", f"generate_narrative, a job for an expert model: {error['next_step']}", "yellow")
            return
        began = time.monotonic()
        taken = await designer.ask("generate_narrative", _GIVEN)
        say("work", f"{designer.who} asks for a scene and gets {taken['job_id']} at once")
        _tell(await _ended(designer, taken["job_id"]), time.monotonic() - began)


async def _ended(designer: Seat, job_id: str) -> dict[str, Any]:
    until = time.monotonic() + _PATIENCE_S
    while True:
        job = await designer.ask("get_job", {"id": job_id})
        if job["state"] in _OVER:
            return job
        if time.monotonic() > until:
            raise DemoFailed(f"{job_id} is still {job['state']}: {job['progress']}")
        await asyncio.sleep(_LOOK_EVERY_S)


def _tell(job: dict[str, Any], seconds: float) -> None:
    if job["state"] != "succeeded":  # the demo is no test of somebody's engine
        say("work", f"the job {job['state']}: {job['error']['message']} {job['error']['next_step']}", "yellow")
        return
    found = job["result"]
    text = " ".join(found["text"].split())
    canon = {True: "agrees with canon", False: "does not agree with canon"}.get(found["consistent"], "cannot be judged")
    say("scene", text if len(text) <= _SHOWN else f"{text[:_SHOWN]} …")
    say(
        "checked",
        f"it {canon}; by {', '.join(found['made']['engines'])} in {seconds:.1f} s, outside canon until a person says else",
    )
