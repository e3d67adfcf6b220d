"""Owns how each client is driven: the same few words over the official SDK, fastmcp and the npm inspector's command line."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import fastmcp
import httpx2
import mcp
from fastmcp.client.transports import StdioTransport, StreamableHttpTransport
from mcp.client.session import ClientSession
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.client.subscriptions import ListenNotSupportedError, Subscription, listen
from mcp.server.subscriptions import ResourceUpdated
from mcp.shared.dispatcher import ProgressFnT
from mcp.shared.exceptions import MCPError
from mcp_types import (
    ContentBlock,
    EmptyResult,
    PromptReference,
    SubscribeRequest,
    SubscribeRequestParams,
    TextContent,
    TextResourceContents,
)

from tests.clients.doors import Door
from tests.components import PROJECT
from tests.npm_modules import npm_modules

NEW, OLD = "2026-07-28", "2025-11-25"

Name = Literal["sdk", "fastmcp", "inspector"]


@dataclass(frozen=True)
class Kind:
    """A client, the revision of the protocol it speaks, and the transport."""

    name: Name
    revision: str
    transport: Literal["http", "stdio"]

    def __str__(self) -> str:
        return f"{self.name}-{self.transport}-{self.revision}"


@dataclass(frozen=True)
class Said:
    """What a call was answered: the text a model reads, the structured result, and whether it is an error."""

    text: str
    data: dict[str, Any]  # a tool's own
    error: bool


class Refused(Exception):
    """The client told its user that this does not go; the text is what the user reads."""


class Driver(Protocol):
    """A client at work.

    Attributes:
        follows_tasks: A call that people are asked about goes on, for this client, until they have decided.
    """

    follows_tasks: bool

    async def negotiated(self) -> str: ...
    async def tools(self) -> set[str]: ...
    async def call(self, tool: str, arguments: Mapping[str, Any], heard: ProgressFnT | None = None) -> Said: ...
    async def read(self, uri: str) -> str: ...
    async def fill(self, prompt: str, arguments: Mapping[str, str]) -> str: ...
    async def complete(self, prompt: str, argument: str, typed: str) -> list[str]: ...
    def listening(self, uri: str) -> AbstractAsyncContextManager[Callable[[], Awaitable[str]]]: ...


@asynccontextmanager
async def driven(kind: Kind, door: Door, home: Path) -> AsyncGenerator[Driver]:
    """The client, connected.

    Args:
        kind: Which.
        door: Where to.
        home: A folder for what the client keeps.
    """
    mode = "legacy" if kind.revision == OLD else "auto"
    if kind.name == "inspector":
        yield await Inspector.made_for(kind, door, home)
    elif kind.name == "sdk":
        async with _sdk_client(door, mode) as client:
            yield Sdk(client)
    else:
        async with _fastmcp_client(door, mode) as client:
            yield FastMcp(client)


@asynccontextmanager
async def _sdk_client(door: Door, mode: str) -> AsyncGenerator[mcp.Client]:
    if door.command:
        program, *arguments = door.command
        server = StdioServerParameters(command=program, args=arguments, env=door.environment(), cwd=PROJECT)
        async with mcp.Client(server, mode=mode) as client:
            yield client
        return
    async with (
        httpx2.AsyncClient(headers={"authorization": f"Bearer {door.token}"}, timeout=60) as http,
        mcp.Client(streamable_http_client(door.url, http_client=http), mode=mode) as client,
    ):
        yield client


def _fastmcp_client(door: Door, mode: str) -> fastmcp.Client[Any]:
    if door.command:
        program, *arguments = door.command
        transport = StdioTransport(program, arguments, env=door.environment(), cwd=str(PROJECT), keep_alive=False)
        return fastmcp.Client(transport, mode=mode)
    return fastmcp.Client(StreamableHttpTransport(door.url, auth=door.token), mode=mode)


class Sdk:
    """The official SDK's client."""

    follows_tasks = False

    def __init__(self, client: mcp.Client) -> None:
        self._client = client

    async def negotiated(self) -> str:
        return self._client.protocol_version

    async def tools(self) -> set[str]:
        return {tool.name for tool in (await self._client.list_tools()).tools}

    async def call(self, tool: str, arguments: Mapping[str, Any], heard: ProgressFnT | None = None) -> Said:
        found = await self._client.call_tool(tool, dict(arguments), progress_callback=heard)
        return Said(_text(found.content), found.structured_content or {}, bool(found.is_error))

    async def read(self, uri: str) -> str:
        with refusals():
            return _read((await self._client.read_resource(uri)).contents)

    async def fill(self, prompt: str, arguments: Mapping[str, str]) -> str:
        with refusals():
            return _text([m.content for m in (await self._client.get_prompt(prompt, dict(arguments))).messages])

    async def complete(self, prompt: str, argument: str, typed: str) -> list[str]:
        with refusals():
            found = await self._client.complete(PromptReference(name=prompt), {"name": argument, "value": typed})
            return found.completion.values

    @asynccontextmanager
    async def listening(self, uri: str) -> AsyncGenerator[Callable[[], Awaitable[str]]]:
        with refusals():
            if self._client.protocol_version == OLD:
                await _subscribe(self._client.session, uri)
            async with self._client.listen(resource_subscriptions=[uri]) as events:
                yield lambda: _next_uri(events)


class FastMcp:
    """fastmcp's client; it has no word for listening, but its session is the SDK's."""

    follows_tasks = False

    def __init__(self, client: fastmcp.Client[Any]) -> None:
        self._client = client

    async def negotiated(self) -> str:
        return self._client.protocol_version or ""

    async def tools(self) -> set[str]:
        return {tool.name for tool in await self._client.list_tools()}

    async def call(self, tool: str, arguments: Mapping[str, Any], heard: ProgressFnT | None = None) -> Said:
        found = await self._client.call_tool(tool, dict(arguments), progress_handler=heard, raise_on_error=False)
        return Said(_text(found.content), found.structured_content or {}, found.is_error)

    async def read(self, uri: str) -> str:
        with refusals():
            return _read(await self._client.read_resource(uri))

    async def fill(self, prompt: str, arguments: Mapping[str, str]) -> str:
        with refusals():
            return _text([m.content for m in (await self._client.get_prompt(prompt, dict(arguments))).messages])

    async def complete(self, prompt: str, argument: str, typed: str) -> list[str]:
        with refusals():
            found = await self._client.complete(PromptReference(name=prompt), {"name": argument, "value": typed})
            return found.values

    @asynccontextmanager
    async def listening(self, uri: str) -> AsyncGenerator[Callable[[], Awaitable[str]]]:
        with refusals():
            if self._client.protocol_version == OLD:
                await _subscribe(self._client.session, uri)
            async with listen(self._client.session, resource_subscriptions=[uri]) as events:
                yield lambda: _next_uri(events)


class Inspector:
    """The npm inspector's command line: each request is a program of its own, which connects, asks and ends."""

    def __init__(self, program: Sequence[str], target: Sequence[str], home: Path, *, follows_tasks: bool) -> None:
        self._program, self._target, self._home, self.follows_tasks = program, target, home, follows_tasks

    @classmethod
    async def made_for(cls, kind: Kind, door: Door, home: Path) -> Inspector:
        """It, told where the hub is and which revision to speak."""
        npm = await asyncio.to_thread(npm_modules)
        era = ["--protocol-era", "legacy" if kind.revision == OLD else "modern", "--transport", kind.transport]
        target = ["--server-url", door.url, "--header", f"Authorization: Bearer {door.token}"]
        if door.command:
            given = [word for name, value in door.environment().items() for word in ("-e", f"{name}={value}")]
            target = ["--cwd", str(PROJECT), *given, "--", *door.command]
        return cls(
            [npm.node, npm.inspector, "--cli", "--format", "json", *era],
            target,
            home,
            follows_tasks=kind.revision != OLD,
        )

    async def negotiated(self) -> str:
        return (await self.ask("initialize"))["protocolVersion"]

    async def tools(self) -> set[str]:
        """By --strict, which fails where a schema is one that some model provider would not take."""
        return {tool["name"] for tool in (await self.ask("tools/list", "--strict"))["tools"]}

    async def call(self, tool: str, arguments: Mapping[str, Any], heard: ProgressFnT | None = None) -> Said:
        _ = heard  # it prints the result alone
        found = await self.ask("tools/call", "--tool-name", tool, "--tool-args-json", json.dumps(arguments))
        text = "".join(part["text"] for part in found["content"])
        return Said(text, found["structuredContent"], found.get("isError", False))

    async def read(self, uri: str) -> str:
        return "".join(part["text"] for part in (await self.ask("resources/read", "--uri", uri))["contents"])

    async def fill(self, prompt: str, arguments: Mapping[str, str]) -> str:
        pairs = [f"{name}={value}" for name, value in arguments.items()]
        found = await self.ask("prompts/get", "--prompt-name", prompt, "--prompt-args", *pairs)
        return "".join(message["content"]["text"] for message in found["messages"])

    async def complete(self, prompt: str, argument: str, typed: str) -> list[str]:
        _ = prompt, argument, typed  # no option takes them
        return (await self.ask("prompts/complete"))["completion"]["values"]

    @asynccontextmanager
    async def listening(self, uri: str) -> AsyncGenerator[Callable[[], Awaitable[str]]]:
        await self.ask("resources/subscribe", "--uri", uri)
        raise AssertionError("it can listen now: drive it")
        yield

    async def ask(self, method: str, *options: str) -> dict[str, Any]:
        """The result of one request; who cancels it interrupts the program, as Ctrl-C does."""
        process = await asyncio.create_subprocess_exec(
            *self._program,
            *("--method", method, *options),
            *self._target,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": "/usr/bin:/bin", "HOME": str(self._home)},
        )
        try:
            out, err = await process.communicate()
        except asyncio.CancelledError:
            process.send_signal(signal.SIGINT)
            await process.communicate()
            raise
        if out and process.returncode in {0, _TOOL_ERROR}:
            found: dict[str, Any] = json.loads(out)["result"]
            return found
        raise Refused(err.decode())


_TOOL_ERROR = 5
"""How the inspector ends where a tool's result is an error."""


@contextmanager
def refusals() -> Generator[None]:
    """What the libraries raise, as what a user is told."""
    try:
        yield
    except (MCPError, ListenNotSupportedError) as error:
        raise Refused(str(error)) from error


async def _subscribe(session: ClientSession, uri: str) -> None:
    """What a client of 2025-11-25 has in place of listening."""
    await session.send_request(SubscribeRequest(params=SubscribeRequestParams(uri=uri)), EmptyResult)


async def _next_uri(events: Subscription) -> str:
    event = await anext(aiter(events))
    assert isinstance(event, ResourceUpdated)
    return str(event.uri)


def _text(content: Sequence[ContentBlock]) -> str:
    return "".join(part.text for part in content if isinstance(part, TextContent))


def _read(contents: Sequence[object]) -> str:
    return "".join(part.text for part in contents if isinstance(part, TextResourceContents))
