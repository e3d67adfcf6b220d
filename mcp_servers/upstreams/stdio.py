"""Owns an upstream that is a program: started without a shell in an environment of its own, spoken to over pipes, killed with all it started."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import mcp_types as t
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from fastmcp.client.transports.base import ClientTransport, TransportOptions
from mcp import ClientSession
from mcp.shared.message import SessionMessage
from pydantic import ValidationError

from body_broker.background import running
from body_broker.errors import NotConfigured, Unavailable
from body_broker.telemetry import get_logger
from body_broker.text import clean
from mcp_servers.upstreams.auth import Credentials, variable
from mcp_servers.upstreams.model import Upstream
from mcp_servers.upstreams.session import OPTIONS, bare
from mcp_servers.upstreams.wire import ANSWER_BYTES_MAX

log = get_logger(__name__)

_LANG = "C.UTF-8"
_READ = 65_536
_COMPLAINTS_BYTES = 4_096
_GRACE_S = 1.0
_REAP_S = 5.0
_ID = re.compile(rb'"id"\s*:\s*(\d{1,15}|"[^"\\]{1,100}")')

_Incoming = SessionMessage | Exception


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What is started.

    Attributes:
        command: The program, as a path, and its arguments.
        environment: All that its environment holds.
        folder: Where it runs.
        secrets: Values that nobody is shown though it says them.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    secrets: tuple[str, ...]


async def program_of(upstream: Upstream, credentials: Credentials, folder: Path, path: str) -> Program:
    """The program of an upstream, ready to be started.

    Args:
        upstream: One with a command.
        credentials: Have the values of its `secret_env`.
        folder: Its own; made where it is not, for this user alone.
        path: Where programs are looked for.

    Raises:
        NotConfigured: A secret is missing.
        Unavailable: The program or its folder is not there.
    """
    values: dict[str, str] = {}
    for name in upstream.secret_env:
        value = await credentials.get(variable(name))
        if value is None:
            raise NotConfigured(
                f"The upstream server {upstream.name} has no value for {name} yet.",
                next_step=f"Have an operator give it: `body-broker upstream token {upstream.name} --env {name}`.",
                details={"upstream": upstream.name},
            )
        values[name] = value
    environment = {"PATH": path, "HOME": str(folder), "LANG": _LANG, **upstream.env, **values}
    found = await asyncio.to_thread(_place, upstream, folder, environment["PATH"])
    if found is None:
        raise Unavailable(
            f"The program of the upstream server {upstream.name}, or the folder where it runs, is not there.",
            next_step="Tell the people who run this hub: its command must be on the hub's PATH.",
            details={"component": f"upstream {upstream.name}"},
        )
    program, where = found
    return Program(
        command=(program, *upstream.command[1:]),
        environment=environment,
        folder=where,
        secrets=tuple(value for value in values.values() if value),
    )


def _place(upstream: Upstream, folder: Path, path: str) -> tuple[str, Path] | None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    where = Path(upstream.folder) if upstream.folder is not None else folder
    name = upstream.command[0]
    program = shutil.which(name if "/" not in name else str(where / name), path=path)
    return (program, where) if program is not None and where.is_dir() else None


class ChildTransport(ClientTransport):
    """A program as the client library connects to it: once.

    Args:
        name: Of the upstream.
        program: What is started.
        on_end: Called when it does not speak any more.
    """

    def __init__(self, name: str, program: Program, on_end: Callable[[], None]) -> None:
        self._name, self._program, self._on_end = name, program, on_end
        self._complaints = b""

    def complaints(self) -> str:
        """The end of what it wrote to stderr, cleaned, without its secrets."""
        text = self._complaints.decode(errors="replace")
        for secret in self._program.secrets:
            text = text.replace(secret, "***")
        return clean(text)

    @asynccontextmanager
    async def connect_session(
        self,
        *,
        transport_options: TransportOptions | None = None,
        **session_kwargs: Any,  # the library's own
    ) -> AsyncGenerator[ClientSession]:
        """Start it, and a session with it; on the way out it is ended with all that it started.

        Raises:
            OSError: It cannot be started.
        """
        options = transport_options or OPTIONS
        process = await asyncio.create_subprocess_exec(
            *self._program.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self._program.folder,
            env=dict(self._program.environment),
            start_new_session=True,
        )
        into_session, incoming = anyio.create_memory_object_stream[_Incoming](0)
        outgoing, from_session = anyio.create_memory_object_stream[SessionMessage](0)
        try:
            async with (
                running(self._read(process, into_session), name=f"upstream-{self._name}-stdout"),
                running(self._write(process, from_session, into_session), name=f"upstream-{self._name}-stdin"),
                running(self._listen(process), name=f"upstream-{self._name}-stderr"),
                options.session_class(incoming, outgoing, **bare(session_kwargs)) as session,
            ):
                yield session
        finally:
            await asyncio.shield(asyncio.ensure_future(_ended(process)))
            for stream in (into_session, incoming, outgoing, from_session):
                stream.close()

    async def _read(self, process: asyncio.subprocess.Process, into_session: MemoryObjectSendStream[_Incoming]) -> None:
        assert process.stdout is not None
        lines = _Lines()
        try:
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, ConnectionError):
                while chunk := await process.stdout.read(_READ):
                    for line in lines.of(chunk):
                        if not line.lstrip().startswith(b"{"):
                            continue  # a banner; the protocol forbids it, and many programs have one
                        message = _message(line)
                        if message is None:
                            log.warning("upstream_line_not_understood", upstream=self._name)
                            return  # whose answer it was nobody knows
                        await into_session.send(message)
        finally:
            into_session.close()  # whoever waits for an answer learns that none comes
            self._on_end()

    async def _write(
        self,
        process: asyncio.subprocess.Process,
        from_session: MemoryObjectReceiveStream[SessionMessage],
        into_session: MemoryObjectSendStream[_Incoming],
    ) -> None:
        assert process.stdin is not None
        try:
            async for said in from_session:
                line = said.message.model_dump_json(by_alias=True, exclude_unset=True)
                process.stdin.write(line.encode() + b"\n")
                await process.stdin.drain()
        except (ConnectionError, RuntimeError):
            into_session.close()
            self._on_end()

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        with suppress(ConnectionError):
            while chunk := await process.stderr.read(_READ):
                self._complaints = (self._complaints + chunk)[-_COMPLAINTS_BYTES:]


class _Lines:
    """Cuts what comes into lines; of one that is larger than is taken only its ends are kept."""

    _HEAD, _TAIL = 512, 256

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def of(self, chunk: bytes) -> list[bytes]:
        """The lines that this chunk ends."""
        *ended, rest = chunk.split(b"\n")
        found: list[bytes] = []
        for part in ended:
            self._add(part)
            found.append(self._taken())
        self._add(rest)
        return found

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        self._parts.append(part)
        if self._size > ANSWER_BYTES_MAX:
            whole = b"".join(self._parts)
            self._parts = [whole[: self._HEAD], whole[self._HEAD :][-self._TAIL :]]

    def _taken(self) -> bytes:
        line = b"".join(self._parts) if self._size <= ANSWER_BYTES_MAX else _too_large(*self._parts)
        self._parts, self._size = [], 0
        return line


def _too_large(head: bytes, tail: bytes) -> bytes:
    """In place of an answer that is larger than is taken: that it is. Whose it was stands near its beginning or its end."""
    found = _ID.search(head) or _ID.search(tail)
    if found is None:
        return b"{"
    error = {"code": t.PARSE_ERROR, "message": "too large"}
    return json.dumps({"jsonrpc": "2.0", "id": json.loads(found[1]), "error": error}).encode()


def _message(line: bytes) -> SessionMessage | None:
    try:
        return SessionMessage(t.jsonrpc_message_adapter.validate_json(line, by_name=False))
    except (ValidationError, ValueError):
        return None


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Return once it and its group are gone: asked by the end of its stdin, then told, then killed."""
    assert process.stdin is not None
    process.stdin.close()
    if not await _exits(process, _GRACE_S):
        _signal(process, signal.SIGTERM)
        await _exits(process, _GRACE_S)
    _signal(process, signal.SIGKILL)  # what it started and left behind too
    await _exits(process, _REAP_S)


async def _exits(process: asyncio.subprocess.Process, within_s: float) -> bool:
    # Its exit alone, not the end of its pipes: what it started may hold them.
    deadline = asyncio.get_running_loop().time() + within_s
    while process.returncode is None:
        if asyncio.get_running_loop().time() >= deadline:
            return False
        await asyncio.sleep(0.01)
    return True


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
