"""Runs in the environment of cisco-ai-mcp-scanner: its YARA analyser over all that a hub lists and tells, and its checks of the protocol; JSON out."""

# ruff: noqa: ANN001, E402
# Another environment's libraries:
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import asyncio
import json
import os
import sys
from types import ModuleType

# No model is asked. Its library for that takes three seconds to be imported, and asks the network meanwhile.
sys.modules["litellm"] = ModuleType("litellm")
vars(sys.modules["litellm"])["acompletion"] = None

from mcpscanner import AnalyzerEnum, Auth, Config, Scanner
from mcpscanner.core.analyzers.protocol_analyzer import ProtocolAnalyzer


def _told(kind: str, name: str, found) -> list[dict[str, str]]:
    if found.status != "completed":
        return [{"kind": kind, "name": name, "finding": found.status}]
    return [{"kind": kind, "name": name, "finding": each.threat_category} for each in found.findings]


async def _scan(url: str, token: str) -> dict[str, object]:
    scanner, auth, by = Scanner(Config()), Auth.bearer(token), [AnalyzerEnum.YARA]
    tools = await scanner.scan_remote_server_tools(url, auth=auth, analyzers=by)
    prompts = await scanner.scan_remote_server_prompts(url, auth=auth, analyzers=by)
    types = ["application/json", "text/plain", "text/markdown"]
    resources = await scanner.scan_remote_server_resources(url, auth=auth, analyzers=by, allowed_mime_types=types)
    about = await scanner.scan_remote_server_instructions(url, auth=auth, analyzers=by)
    found = [row for each in tools for row in _told("tool", each.tool_name, each)]
    found += [row for each in prompts for row in _told("prompt", each.prompt_name, each)]
    found += [row for each in resources for row in _told("resource", each.resource_uri, each)]
    found += _told("instructions", "hub", about)
    spoken = await ProtocolAnalyzer(timeout=30).analyze(url)
    found += [
        {"kind": "protocol", "name": each.details["check_id"], "finding": each.threat_category} for each in spoken
    ]
    counts = {"tools": len(tools), "prompts": len(prompts), "resources": len(resources)}
    return {"findings": found, "counts": counts}


if __name__ == "__main__":
    told = asyncio.run(_scan(sys.argv[1], os.environ["HUB_TOKEN"]))  # noqa: TID251  # this program's own
    sys.stdout.write("\nREPORT " + json.dumps(told) + "\n")
