"""Owns the product as the kills find it: its programs on embedded stores, its doors, its command line, its database."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx2

from body_broker.storage import embedded
from body_broker.storage.embedded.layout import Layout
from body_broker.storage.postgres import LOST
from tests.kill.harness import PATIENCE_S, PROGRAM, Program, Victim
from tests.waiting import wait_until

SETTINGS = {
    "BODY_BROKER_WORKER_CONCURRENCY": "1",  # so that of two imports each worker has one
    "BODY_BROKER_AUDIT_ANCHOR_EVERY_S": "0.2",  # so that kills meet it
    "BODY_BROKER_RATE_PER_S": "100000",  # the clients call as fast as they can
    "BODY_BROKER_EMBEDDINGS": "off",  # rounds of their own have vectors
}
_SERVING = re.compile(r"^Serving on (http\S+/mcp)$", re.MULTILINE)
_LET_LAPSE = (
    "UPDATE work SET lease_until = clock_timestamp() WHERE state = 'running' AND split_part(worker, ':', 2) = $1"
)
_VERSION = "2026-07-28"
HUBS = ("hub", "second")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call was told: an error's code, or None and the structured result."""

    code: str | None
    result: dict[str, Any]  # a tool's own


class Product:
    """The product on one data directory.

    Args:
        data_dir: Its own.
        log_dir: Where the programs' output goes, and what they are to import.
        settings: More of their settings, by the variables.
        program: What the programs are started by, if it is not `body-broker` itself.
        runs: Which programs run: `hub` and `second` are hubs, `worker`, `engine`.
    """

    def __init__(
        self,
        data_dir: Path,
        log_dir: Path,
        settings: Mapping[str, str] | None = None,
        program: Sequence[str] = (PROGRAM,),
        runs: Sequence[str] = ("hub", "worker"),
    ) -> None:
        self.data_dir, self._program_of, self._runs = data_dir, program, runs
        self._settings = {**SETTINGS, **(settings or {})}
        self.database_url = ""
        self._urls: dict[str, str] = {}
        self._turns = itertools.cycle([name for name in runs if name in HUBS])
        self.log_dir = log_dir
        self._programs: dict[str, Program] = {}
        self._commands: list[Program] = []
        self._http = httpx2.AsyncClient(timeout=PATIENCE_S)
        self._tokens: dict[str, str] = {}
        self._numbers = itertools.count()

    async def status(self) -> embedded.EmbeddedStatus:
        """The stores' processes."""
        return await asyncio.to_thread(embedded.status, self.data_dir)

    @property
    def url(self) -> str:
        """Where the hub serves."""
        return self._urls["hub"]

    async def start(self, name: str) -> None:
        """Start one of the programs; returns once it serves, works or stands by."""
        if name in HUBS:
            hub = self._start(name, "serve", "--http", ":0")
            self._urls[name] = await hub.says(lambda said: (m := _SERVING.search(said)) and m[1], f"the {name} serves")
        elif name == "worker":
            worker = self._start(name, "worker")
            await worker.says(lambda said: "Working." in said or None, "the worker works")
        else:
            engine = self._start(name, "engine")
            await engine.says(lambda said: "epoch" in said or "Waiting" in said or None, "the engine stands by")

    def pid(self, name: str) -> int | None:
        """The process of one of the programs."""
        program = self._programs.get(name)
        return program and program.pid

    def victims(self) -> list[Victim]:
        """What dies: the programs, which an operator's supervisor starts again, and the stores, which nobody does."""
        return [
            *(self._victim(name) for name in self._runs),
            Victim("keeper", lambda: embedded.status(self.data_dir).keeper_pid),
            Victim("postgres", lambda: embedded.status(self.data_dir).postgres_pid),
            Victim("valkey", lambda: embedded.status(self.data_dir).valkey_pid),
        ]

    def _victim(self, name: str) -> Victim:
        return Victim(name, lambda: self.pid(name), lambda: self._restart(name))

    async def ready(self) -> None:
        """Return once every hub says that it is ready; no program may have died that was not killed."""

        async def is_ready() -> bool:
            self.require_alive()
            return all([await self._is_ready(url) for url in self._urls.values()])

        await wait_until(is_ready, "the hub is ready", timeout_s=PATIENCE_S)

    async def serves(self) -> None:
        """The same for a client, who knows nothing of processes and waits as long as it takes."""

        async def any_is_ready() -> bool:
            return any([await self._is_ready(url) for url in self._urls.values()])

        await wait_until(any_is_ready, "a client is served again", timeout_s=2 * PATIENCE_S)

    def require_alive(self) -> None:
        """Fail with what it said where one of them is dead."""
        for name, program in self._programs.items():
            assert program.pid is not None, f"the {name} died with a store:\n{program.said()[-4000:]}"

    def begin(self, *arguments: str) -> Program:
        """A command, running."""
        number = next(self._numbers)
        self._commands.append(self._program(f"command-{number}", arguments))
        return self._commands[-1]

    async def run(self, *arguments: str) -> str:
        """What a command says; fails where its exit status is not 0."""
        program = self.begin(*arguments)
        status = await program.ended()
        assert status == 0, f"{arguments} ended with {status}:\n{program.said()}"
        return program.said()

    async def call(self, principal: str, tool: str, arguments: dict[str, Any]) -> Answer | None:
        """One tools/call over HTTP, to the hubs in turn; None where the connection broke, or nobody was there."""
        headers = {
            "authorization": f"Bearer {self._tokens[principal]}",
            "accept": "application/json, text/event-stream",
            "mcp-protocol-version": _VERSION,
            "mcp-method": "tools/call",
            "mcp-name": tool,
        }
        meta: dict[str, Any] = {
            "io.modelcontextprotocol/protocolVersion": _VERSION,
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        params: dict[str, Any] = {"name": tool, "arguments": arguments, "_meta": meta}
        body: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        try:
            answer = await self._http.post(self._urls[next(self._turns)], headers=headers, json=body)
        except httpx2.TransportError:
            return None
        told = answer.json()
        refused = "result" not in told or told["result"].get("isError", False)
        content = told["result"]["structuredContent"] if "result" in told else told
        return Answer(content["error"]["code"] if refused else None, content)

    async def sql(self, query: str, *values: object) -> list[asyncpg.Record]:
        """Rows, from a connection of its own; a database that is just starting again is waited for."""

        found: list[asyncpg.Record] = []

        async def answers() -> bool:
            try:
                connection = await asyncpg.connect(self.database_url, timeout=PATIENCE_S)
                try:
                    found[:] = await connection.fetch(query, *values)
                finally:
                    await connection.close()
            except LOST:
                return False
            return True

        await wait_until(answers, "the database answers", timeout_s=PATIENCE_S)
        return found

    async def stop(self) -> None:
        """SIGTERM for all programs, which end by themselves and well."""
        for program in self._programs.values():
            await program.stop()

    @asynccontextmanager
    async def open(self, *principals: str) -> AsyncGenerator[None]:
        """The programs running, with a token for each principal; nothing of it is left on the way out."""
        try:
            self.database_url = (await asyncio.to_thread(Layout, self.data_dir)).urls.database_url
            for name in self._runs:
                await self.start(name)
            for principal in principals:
                kind, _, name = principal.partition(":")
                said = await self.run("token", "issue", f"--{kind}", name)
                self._tokens[principal] = said.split()[0]
            yield
        finally:
            await self._http.aclose()
            for program in (*self._programs.values(), *self._commands):
                program.kill()
            await wait_until(self._is_over, "the keeper ends", PATIENCE_S)

    async def _is_over(self) -> bool:
        return (await self.status()).keeper_pid is None

    async def _is_ready(self, url: str) -> bool:
        try:
            return (await self._http.get(url.removesuffix("mcp") + "readyz")).status_code == 200
        except httpx2.TransportError:
            return False

    async def _restart(self, name: str) -> None:
        # Its lease may end now: on a loaded machine a short one would end for the living too, and nobody waits for a long one.
        await self.sql(_LET_LAPSE, str(self._programs[name].process.pid))
        await self.start(name)

    def _start(self, name: str, *arguments: str) -> Program:
        if former := self._programs.get(name):
            former.kill()  # dead already: its parent takes note
        self._programs[name] = self._program(name, arguments)
        return self._programs[name]

    def _program(self, name: str, arguments: tuple[str, ...]) -> Program:
        command = [*arguments, "--data-dir", str(self.data_dir)]
        return Program(command, self.log_dir / f"{name}.log", self._settings, self._program_of)
