"""Two scanners of MCP servers that nobody here wrote, offline, against our hub over HTTP; what they find is what the reviewed file says.

mcpsafe attacks by calls; its parts that only wait or load (fuzzing, regular expressions, memory) are left out: tests/fuzz has ours, and
tests/soak runs them all.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mcp_servers.hub.rooms import ROOMS
from tests.attacks.install import NotInstalled, install
from tests.attacks.test_rows import exists
from tests.components import PROJECT, missing
from tests.mcp_servers.hub.conftest import Hub, OpenHub, open_hub, patient_engines, patient_models, settings_for

__all__ = ["open_hub", "patient_engines", "patient_models", "settings_for"]  # fixtures

_REVIEWED: dict[str, list[dict[str, str]]] = tomllib.loads(
    Path(__file__).with_name("exceptions.toml").read_text("utf-8")
)
_DRIVERS = Path(__file__).with_name("drivers")
_PARTS = "T01,T02,T04,T06,T07,T09,T10,T12,T27"
_TIMEOUT_S = 240


async def _run(scanner: str, *arguments: str, timeout_s: float = _TIMEOUT_S, **env: str) -> str:
    try:
        python = await asyncio.to_thread(install, scanner)
    except NotInstalled as error:
        missing("attackers", str(error))
    process = await asyncio.create_subprocess_exec(
        str(python),
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"PATH": os.defpath, "HOME": "/nonexistent", "NO_COLOR": "1", **env},
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, _ = await process.communicate()
    except BaseException:
        process.kill()
        raise
    return out.decode(errors="replace")


def unreviewed(scanner: str, found: set[str]) -> tuple[set[str], set[str]]:
    """Findings without a row of the reviewed file, and rows without a finding."""
    rows = [row["finding"] for row in _REVIEWED[scanner]]
    without = {each for each in found if not any(re.fullmatch(row, each) for row in rows)}
    stale = {row for row in rows if not any(re.fullmatch(row, each) for each in found)}
    return without, stale


def test_each_exception_has_its_reason_and_a_test_that_is_there() -> None:
    for rows in _REVIEWED.values():
        for row in rows:
            assert row["reason"].strip(), row
            file, _, name = row["test"].partition("::")
            assert exists(row["test"]) if name else (PROJECT / file).is_file(), row["test"]


class Attacked(NamedTuple):
    """What mcpsafe's parts came to: which have results, and what failed, by id."""

    parts: set[str]
    failed: dict[str, str]


async def by_mcpsafe(hub: Hub, folder: Path, parts: str, *more: str, timeout_s: float = _TIMEOUT_S) -> Attacked:
    """What comes of it when it attacks by these parts of its own."""
    token = await hub.token("person:anna", "engineer")
    said = await _run(
        "mcpsafe", str(_DRIVERS / "mcpsafe_parts.py"), "scan", hub.url, "--transport", "http", *more,
        "--header", f"Authorization=Bearer {token}", "--output", "json", "--out-dir", str(folder), timeout_s=timeout_s, PARTS=parts,
    )  # fmt: skip
    (report,) = folder.glob("*.json")  # noqa: ASYNC240  # its scanner has ended
    text = report.read_text("utf-8")
    assert token not in text
    results: list[dict[str, Any]] = json.loads(text)["results"]
    assert len(results) > 300, said
    assert {each["test_id"][:3] for each in results if each["passed"]} >= {"T02", "T04", "T06", "T07"}, said
    return Attacked(
        {each["test_id"][:3] for each in results},
        {each["test_id"]: each["description"] for each in results if not each["passed"]},
    )


async def by_cisco_s(hub: Hub) -> set[str]:
    """What it finds in all that the hub lists and tells."""
    said = await _run(
        "cisco", str(_DRIVERS / "cisco_scan.py"), hub.url, HUB_TOKEN=await hub.token("person:bruno", "engineer")
    )
    assert "REPORT " in said, said[-2000:]
    report = json.loads(said.rpartition("REPORT ")[2])
    assert report["counts"]["tools"] > 20, report
    return {f"{each['kind']}/{each['name']}/{each['finding']}" for each in report["findings"]}


@pytest.mark.timeout(300)
async def test_two_scanners_find_what_the_reviewed_file_says_and_no_more(
    open_hub: OpenHub, redis: object, tmp_path: Path
) -> None:
    _ = redis  # flushed before the test
    # Each is somebody else, at once, and no call is refused for its haste.
    async with open_hub(rooms=ROOMS, rate_per_s=1_000_000) as hub:
        attacked, found = await asyncio.gather(by_mcpsafe(hub, tmp_path, _PARTS, "--no-load"), by_cisco_s(hub))

    without, stale = unreviewed("mcpsafe", set(attacked.failed))
    assert {each: attacked.failed[each] for each in without} == {}
    assert stale == set()
    assert unreviewed("cisco", found) == (set(), set()), found
