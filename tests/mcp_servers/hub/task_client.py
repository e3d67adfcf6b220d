"""A program that calls one tool with fastmcp's client and its tasks, as a user's own would: `python -m ... http URL TOKEN TOOL ARGUMENTS`.

In a process of its own: importing fastmcp_tasks changes every fastmcp client of the process. Prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import fastmcp
import fastmcp_tasks
from fastmcp.client.transports import StdioTransport, StreamableHttpTransport
from fastmcp.exceptions import ToolError

HUB = str(Path(sys.executable).with_name("body-broker"))


async def main(kind: str, where: str, who: str, tool: str, arguments: str) -> None:
    assert fastmcp_tasks.__version__
    if kind == "http":
        client = fastmcp.Client(StreamableHttpTransport(where, auth=who))
    else:
        command = ["serve", "--stdio", "--data-dir", where, "--as", who]
        client = fastmcp.Client(StdioTransport(HUB, command, keep_alive=False))
    async with client:
        try:
            result = await client.call_tool(tool, json.loads(arguments))
            print(json.dumps({"result": result.structured_content, "meta": result.meta}))
        except ToolError as error:
            print(json.dumps({"error": str(error)}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
