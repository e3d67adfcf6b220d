"""Owns what people are told of a scan before they say yes: which repository, which part of it, by which scanners."""

from __future__ import annotations

from body_broker.calls import Caller, Preview
from body_broker.text import quoted
from mcp_servers.cybersecurity import store
from mcp_servers.cybersecurity.findings import SCANNERS
from mcp_servers.cybersecurity.models import ScanCodebase
from mcp_servers.cybersecurity.paths import target_of
from mcp_servers.cybersecurity.services import Services


async def foresee_scan(arguments: ScanCodebase, _caller: Caller, services: Services) -> Preview:
    """A scan that would be begun; nothing of the repository is run or changed.

    Raises:
        NotFound: No such repository is registered.
    """
    target = target_of(arguments.repo_path, await store.repositories(services.pool))
    name = quoted(target.repository.name)
    where = f"the folder {quoted(target.path)} of the repository {name}" if target.path else f"the repository {name}"
    chosen = SCANNERS if arguments.scanners is None else [each for each in SCANNERS if each in arguments.scanners]
    known = await store.registered(services.pool)
    latest = next((each for each in known if each.repository.name == target.repository.name), None)
    before = (
        f"Scanned last at {latest.at}: {latest.verdict}." if latest and latest.at else "It was never scanned whole."
    )
    return Preview(
        headline=f"Scan {where}",
        text=f"By {', '.join(chosen)}, over a copy; nothing in it is run. {before}",
    )
