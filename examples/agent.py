"""An agent's loop over the hub with the official SDK: call a tool, read a refusal as information, go on or stop.

The choosing is scripted here where a model would choose; what matters is how each kind of answer is handled. Against a hub:

    body-broker serve --http :0                      # prints its URL
    body-broker token issue --tier silver            # prints a token
    python examples/agent.py URL TOKEN "Who rows the ferry?"
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, TextContent

TRIES_MAX = 3


@dataclass(frozen=True)
class Step:
    """One tool call the agent wants to make, and why."""

    why: str
    tool: str
    arguments: dict[str, Any]


def plan(question: str) -> Iterator[Step]:
    """What a model would decide turn by turn: look it up, read more, then try something silver may not do."""
    yield Step("find passages", "search_lore", {"query": question, "k": 3})
    yield Step("gather context for a prompt", "retrieve_context", {"topic": question, "limit": 3})
    yield Step(
        "store what I concluded",
        "ingest_documents",
        {"documents": [{"title": "My notes", "text": "The ferry never sank."}]},
    )
    yield Step("check who I am", "whoami", {})


def error_of(result: CallToolResult) -> dict[str, Any]:
    """The hub's error: code, message, next_step, and what else it says."""
    content: Any = result.structured_content or {}
    return content.get("error", {"code": "unknown", "message": text_of(result), "retryable": False})


def text_of(result: CallToolResult) -> str:
    """The result's text for the model's context."""
    return "\n".join(block.text for block in result.content if isinstance(block, TextContent))


async def perform(client: Client, step: Step) -> str:
    """Make one call; wait and repeat only where the hub says that it may help."""
    for _ in range(TRIES_MAX):
        result = await client.call_tool(step.tool, step.arguments)
        if not result.is_error:
            return text_of(result)
        error = error_of(result)
        if not error.get("retryable"):
            # A refusal is an answer: the model reads which rule refused and what it can do instead.
            return f"refused: {error['message']} {error.get('next_step', '')}"
        await asyncio.sleep(float(error.get("retry_after_s", 0.5)))
    return "given up: the hub stayed busy"


async def main(url: str, token: str, question: str) -> int:
    """Run the plan and print what the agent would read; 0 when every step was answered."""
    headers = {"authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        offered = {tool.name for tool in (await client.list_tools()).tools}
        print(f"offered: {', '.join(sorted(offered))}")
        for step in plan(question):
            # A tool that is not offered is not tried twice; here once, to show the refusal.
            mark = "" if step.tool in offered else " (not offered)"
            print(f"\n> {step.why}: {step.tool}{mark}\n{(await perform(client, step))[:600]}")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:4])))
