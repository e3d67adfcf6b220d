"""Owns the protocol fuzzer: mutated requests over raw sockets, each answered by the specifications or the connection ended."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

from tests.fuzz.mutating import Mutating
from tests.fuzz.sockets import Answer, Wire, connected

LEAKS = (
    "Traceback",
    'File "',
    "Error(",
    "Exception",
    ".py",
    "site-packages",
    "asyncpg",
    "pydantic",
    "NoneType",
    "object at 0x",
    "starlette",
)
"""What no client may read of us."""
_AT_ONCE = 4


@dataclass
class Heard:
    """What came of it."""

    requests: int = 0
    statuses: Counter[int] = field(default_factory=Counter[int])
    codes: Counter[int | None] = field(default_factory=Counter["int | None"])
    ended: int = 0
    faults: list[str] = field(default_factory=list[str])


class WireFuzz:
    """Requests drawn from a seed, against the hub at a URL."""

    def __init__(self, url: str, token: str) -> None:
        self._url, self._token = url, token
        self.heard = Heard()

    async def run(self, requests: int, *, seed: int) -> Heard:
        """So many well-delimited requests, and a quarter as many that are not."""
        async with asyncio.TaskGroup() as group:
            for number in range(_AT_ONCE):
                chance = random.Random(f"{seed} {number}")  # noqa: S311 - a fuzzer's
                mutating = Mutating(urlsplit(self._url).netloc, self._token, chance)
                group.create_task(self._delimited(mutating, requests // _AT_ONCE, chance))
                group.create_task(self._broken(mutating, requests // _AT_ONCE // 4))
        return self.heard

    async def _delimited(self, mutating: Mutating, requests: int, chance: random.Random) -> None:
        done = 0
        while done < requests:
            async with connected(self._url) as wire:
                # Some in one piece, as a pipeline, whose answers come in its order.
                goes_on = True
                for _ in range(20):
                    many = [mutating.request() for _ in range(chance.choice((1, 1, 1, 3)))]
                    await wire.say(b"".join(sent.data for sent in many))
                    done += len(many)
                    for sent in many:
                        goes_on = await self._answered(wire, sent.data, alike=sent.alike)
                        if not goes_on:
                            break
                    if not goes_on:
                        break

    async def _answered(self, wire: Wire, sent: bytes, *, alike: bool) -> bool:
        """Whether the connection goes on."""
        try:
            answer = await self._answer(wire, sent)
        except TimeoutError:
            self.heard.faults.append(f"no answer to {sent[:1500]!r}")
            return False
        self.heard.requests += 1
        if answer is None:
            self.heard.ended += 1
            return False
        self._judge(sent, answer, alike=alike)
        return answer.head.get("connection") != "close"

    async def _answer(self, wire: Wire, sent: bytes) -> Answer | None:
        if sent.startswith((b"HEAD ", b"GET /mcp")):  # no body, and a stream that may go on for ever
            async with asyncio.timeout(60):
                with suppress(asyncio.IncompleteReadError, ConnectionError):
                    head = await wire.reader.readuntil(b"\r\n\r\n")
                    status = int(head.split(b" ")[1])
                    return Answer(status, {"connection": "close"}, b"")
            return None
        return await wire.answer()

    def _judge(self, sent: bytes, answer: Answer, *, alike: bool) -> None:
        heard, text = self.heard, answer.body.decode("utf-8", "replace")
        heard.statuses[answer.status] += 1
        wrong = [f"status {answer.status}"] * (answer.status >= 500)
        wrong += [f"tells {leak}" for leak in LEAKS if leak in text]
        if alike and text and answer.head.get("content-type", "").startswith(("application/json", "text/event-stream")):
            wrong += self._about_message(answer, text)
        heard.faults += [f"{words}: {answer.status} {text[:400]!r} to {sent[:1500]!r}" for words in wrong]

    def _about_message(self, answer: Answer, text: str) -> list[str]:
        lines = (
            [line[5:] for line in text.splitlines() if line.startswith("data:")]
            if text.startswith(("event", "data", ":", "id"))
            else [text]
        )
        for line in filter(str.strip, lines):
            try:
                message: Any = json.loads(line)
            except ValueError:
                return ["its answer is not JSON"]
            error = message.get("error")
            code: Any = cast("dict[str, Any]", error).get("code") if isinstance(error, dict) else None
            self.heard.codes[code if isinstance(code, int) else None] += 1
            if code == -32603:
                return ["internal error"]
            if answer.status == 200 and message.get("jsonrpc") != "2.0":
                return ["its answer is no message"]
        return []

    async def _broken(self, mutating: Mutating, requests: int) -> None:
        """What cannot be delimited is answered or not, but never with an error of ours, and nothing hangs once the client has gone."""
        for _ in range(requests):
            sent = mutating.broken()
            async with connected(self._url) as wire:
                await wire.say(sent)
                wire.writer.write_eof()
                try:
                    async with asyncio.timeout(0.05):
                        data = await wire.reader.read(65536)
                except (TimeoutError, ConnectionError):
                    continue
            self.heard.requests += 1
            if data.startswith(b"HTTP/1.1 5") or b"Traceback" in data:
                self.heard.faults.append(f"{data[:300]!r} to {sent[:1500]!r}")
