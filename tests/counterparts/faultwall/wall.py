"""Owns the FaultWall: one server a dialect on loopback, as strict as the real one, which answers and fails as it is told.

    async with fault_wall() as wall:
        wall.say("vllm", Reply(text="Aye."), Reply(fault="cut"), Reply(calls=(Tool("search_lore", {"query": "ferry"}),)))
        ... a request to wall.url["vllm"] with the model MODEL and the key KEY ...
        wall.asked("vllm")[0].body

Nothing scripted: a forced tool is called, a schema or choice is obeyed, else TEXT is said. `wall.always[...]` stays, `wall.answers[...]` decides from
the request; `wall.fault("vllm", "silent")` is for every request from now on, the model's name `wall-silent` for one; `await wall.refuse("vllm")`
closes the port, `await wall.accept("vllm")` opens it. `wall.inside` are requests being answered, `wall.left` those whose client went away.
It runs on the test's own loop: with virtual time its waits are the test's. `python -m tests.counterparts.faultwall.wall` serves one by itself.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

from aiohttp import web

from tests.counterparts.faultwall.answers import Event, error_event, events, whole
from tests.counterparts.faultwall.replies import (
    DIALECTS,
    LASTING_S,
    DialectName,
    Fault,
    Json,
    Reply,
    Tool,
    forced,
    replaced,
    rows,
    table,
)
from tests.counterparts.faultwall.strict import (
    CHAT_PATHS,
    KEY,
    MODEL,
    Refusal,
    ignored,
    of_fault,
    refusal,
    told,
    unauthorised,
)

__all__ = ["DIALECTS", "KEY", "MODEL", "DialectName", "Fault", "FaultWall", "Reply", "Seen", "Tool", "fault_wall"]

_BODY_MAX = 64 * 1024 * 1024
_PARTIAL = frozenset({"stall", "cut", "malformed", "error_inside", "filtered"})
_HUGE = 10 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that came: to whom, what it said, the fields that the dialect ignores, and the connection it came on."""

    dialect: DialectName
    body: Json
    headers: dict[str, str]
    ignored: frozenset[str]
    connection: object = None


@dataclass
class FaultWall:
    """Servers, what they are to say, and what they saw.

    Attributes:
        url: By dialect, without /v1.
        answers: Decides from a request what is said.
        always: What is said where nothing else is scripted.
        seen: Every request that was well formed, in order.
        inside, peak: Requests being answered now, and the most there were at once.
        done, left: Answered to the end; and those whose client went away before.
        left_at: When each of those was seen to be gone, by time.perf_counter.
        refused: Requests that the dialect does not take, with why.
        models: What /v1/models lists.
        context_tokens: How much each holds, where vLLM's list says it.
        healthy: Whether /health says so.
    """

    url: dict[DialectName, str] = field(default_factory=dict[DialectName, str])
    answers: dict[DialectName, Callable[[Seen], Reply]] = field(
        default_factory=dict[DialectName, Callable[[Seen], Reply]]
    )
    always: dict[DialectName, Reply] = field(default_factory=dict[DialectName, Reply])
    seen: list[Seen] = field(default_factory=list[Seen])
    inside: Counter[str] = field(default_factory=Counter[str])
    peak: Counter[str] = field(default_factory=Counter[str])
    done: Counter[str] = field(default_factory=Counter[str])
    left: Counter[str] = field(default_factory=Counter[str])
    left_at: list[float] = field(default_factory=list[float])
    refused: list[tuple[DialectName, Refusal]] = field(default_factory=list[tuple[DialectName, Refusal]])
    models: tuple[str, ...] = (MODEL,)
    context_tokens: int | None = None
    healthy: bool = True
    _script: dict[str, deque[Reply]] = field(default_factory=dict[str, deque[Reply]])
    _runners: dict[str, web.AppRunner] = field(default_factory=dict[str, web.AppRunner])

    def say(self, dialect: DialectName, *replies: Reply) -> None:
        """What the next requests get, one each."""
        self._script.setdefault(dialect, deque()).extend(replies)

    def fault(self, dialect: DialectName, fault: Fault | None, **more: float) -> None:
        """What goes wrong with each request from now on; None lets all be well again."""
        if fault is None:
            self.always.pop(dialect, None)
        else:
            self.always[dialect] = replaced(Reply(fault=fault), **more)

    def asked(self, dialect: DialectName) -> list[Seen]:
        """The requests that one of them saw."""
        return [seen for seen in self.seen if seen.dialect == dialect]

    async def refuse(self, dialect: DialectName) -> None:
        """Close its port, and every connection to it."""
        await self._runners.pop(dialect).cleanup()

    async def accept(self, dialect: DialectName) -> None:
        """Open its port, the same as before if there was one."""
        port = int(self.url[dialect].rsplit(":", 1)[1]) if dialect in self.url else 0
        runner = web.AppRunner(
            self._app(dialect),
            handler_cancellation=True,
            keepalive_timeout=LASTING_S,
            access_log=None,
            shutdown_timeout=0.02,
        )
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
        self._runners[dialect] = runner
        self.url[dialect] = f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def close(self) -> None:
        """Close all."""
        for dialect in list(self._runners):
            await self.refuse(cast("DialectName", dialect))

    def _app(self, dialect: DialectName) -> web.Application:
        async def chat(request: web.Request) -> web.StreamResponse:
            return await self._chat(dialect, request)

        async def listed(request: web.Request) -> web.Response:
            return self._listed(dialect, _lowered(request))

        async def health(_request: web.Request) -> web.Response:
            return web.Response(status=200 if self.healthy else 503)

        app = web.Application(client_max_size=_BODY_MAX)
        path = CHAT_PATHS[dialect]
        app.router.add_post(path, chat)
        app.router.add_get(f"{path[: path.index('/v1')]}/v1/models", listed)
        if dialect in {"vllm", "trtllm"}:
            app.router.add_get("/health", health)
        return app

    def _listed(self, dialect: DialectName, headers: dict[str, str]) -> web.Response:
        denied = unauthorised(dialect, headers)
        if denied is None and dialect == "anthropic" and "anthropic-version" not in headers:
            denied = Refusal(400, "anthropic-version: header is required", "invalid_request_error")
        if denied is not None:
            return _denied(dialect, denied)
        if not self.healthy:
            return web.Response(status=503)
        kind: Json = (
            {"type": "model"} if dialect == "anthropic" else {"object": "model", "created": 1, "owned_by": "wall"}
        )
        if dialect == "vllm" and self.context_tokens is not None:
            kind["max_model_len"] = self.context_tokens
        return web.json_response({"object": "list", "data": [{"id": name, **kind} for name in self.models]})

    async def _chat(self, dialect: DialectName, request: web.Request) -> web.StreamResponse:
        body, headers = json.loads(await request.read()), _lowered(request)
        denied = refusal(dialect, headers, body)
        if denied is not None:
            self.refused.append((dialect, denied))
            return _denied(dialect, denied)
        seen = Seen(dialect, body, headers, ignored(dialect, body), request.transport)
        self.seen.append(seen)
        self.inside[dialect] += 1
        self.peak[dialect] = max(self.peak[dialect], self.inside[dialect])
        try:
            answer = await _Answering(seen, self._reply(seen), request).run()
        except asyncio.CancelledError:
            self._gone(dialect)
            raise
        except ConnectionError:  # nobody is there to be answered, which is no fault to be told of
            self._gone(dialect)
            return web.Response()
        else:
            self.done[dialect] += 1
            return answer
        finally:
            self.inside[dialect] -= 1

    def _gone(self, dialect: DialectName) -> None:
        self.left[dialect] += 1
        self.left_at.append(time.perf_counter())

    def _reply(self, seen: Seen) -> Reply:
        script = self._script.get(seen.dialect)
        if script:
            reply = script.popleft()
        elif seen.dialect in self.answers:
            reply = self.answers[seen.dialect](seen)
        else:
            reply = self.always.get(seen.dialect, Reply())
        named = str(seen.body["model"]).removeprefix(MODEL).removeprefix("-")
        if named and reply.fault is None:
            reply = replaced(reply, fault=named.replace("-", "_"))
        return forced(seen.body, reply) if reply.text is None and reply.pieces is None and not reply.calls else reply


class _Answering:
    """One answer to one request."""

    def __init__(self, seen: Seen, reply: Reply, request: web.Request) -> None:
        self._seen, self._request = seen, request
        self._dialect: DialectName = seen.dialect
        self._body = seen.body
        self._reply = _spoilt(reply, seen)

    async def run(self) -> web.StreamResponse:
        fault = self._reply.fault
        if fault == "silent":
            await asyncio.sleep(LASTING_S)
        if fault == "reset":
            return self._cut(reset=True)
        if fault == "slow_error":
            return await self._slow_error()
        if (instead := self._instead(fault)) is not None:
            return instead
        return await (self._stream() if self._body.get("stream") and not self._reply.whole else self._at_once())

    def _instead(self, fault: Fault | None) -> web.Response | None:
        if fault == "page":
            return web.Response(text="<html><body>Welcome to the proxy</body></html>", content_type="text/html")
        if fault == "redirect":
            return web.Response(status=307, headers={"Location": f"{self._request.path}/elsewhere"})
        denied = of_fault(self._dialect, fault or "")
        return None if denied is None else _denied(self._dialect, denied)

    async def _at_once(self) -> web.StreamResponse:
        reply = self._reply
        await asyncio.sleep(LASTING_S if reply.fault in {"stall", "slow_drip"} else reply.first_after_s)
        if reply.fault == "error_inside":
            return _denied(self._dialect, Refusal(500, "Internal"))
        text = json.dumps(whole(self._dialect, reply, self._body), ensure_ascii=False)
        if reply.fault not in {"malformed", "cut", "no_end"}:
            return web.Response(text=text, content_type="application/json")
        half = text[: len(text) // 2]
        if reply.fault == "malformed":
            return web.Response(text=half, content_type="application/json")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = len(text.encode())
        await response.prepare(self._request)
        await response.write(half.encode())
        return self._cut()

    async def _stream(self) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
        )
        await response.prepare(self._request)
        reply, planned = self._reply, events(self._dialect, self._reply, self._body)
        tokens = [place for place, event in enumerate(planned) if event.token]
        half = tokens[len(tokens) // 2] if tokens else len(planned) - 1
        if reply.fault == "slow_first":
            await self._signs_of_life(response, reply.first_after_s or LASTING_S)
        elif reply.first_after_s:
            await asyncio.sleep(reply.first_after_s)
        for place, event in enumerate(planned):
            if (
                place == half
                and reply.fault in _PARTIAL
                and (ended := await self._break(response, planned)) is not None
            ):
                return ended
            if event.closing and reply.fault in {"no_end", "no_done"} and not self._kept(event):
                continue
            if reply.comments:
                await self._write(response, f": keep-alive{reply.ends}{reply.ends}".encode())
            await self._write(response, event.written(reply.ends))
            if reply.gap_s and event.token:
                await asyncio.sleep(reply.gap_s)
        if reply.lingers:
            await asyncio.sleep(LASTING_S)
        await response.write_eof()
        return response

    def _kept(self, event: Event) -> bool:
        return self._reply.fault == "no_done" and event.data != "[DONE]" and "message_stop" not in event.data

    async def _break(self, response: web.StreamResponse, planned: Sequence[Event]) -> web.StreamResponse | None:
        """What goes wrong in the middle; None where the rest follows all the same."""
        match self._reply.fault:
            case "stall":
                await asyncio.sleep(LASTING_S)
            case "cut":
                return self._cut()
            case "malformed":
                broken = planned[-3].written(self._reply.ends)
                await self._write(response, broken.replace(b"}", b"", 1) if b"}" in broken else b"data: {\n\n")
            case "error_inside":
                await self._write(response, error_event(self._dialect).written(self._reply.ends))
                await response.write_eof()
                return response
            case _:
                pass
        return None

    async def _signs_of_life(self, response: web.StreamResponse, seconds: float) -> None:
        """The head of the answer and pings, but no token, for so long."""
        head = [
            event for event in events(self._dialect, self._reply, self._body) if not event.token and not event.closing
        ][:2]
        for event in head:
            if self._dialect != "anthropic" or '"content_block' not in event.data:
                await self._write(response, event.written())
        each = min(seconds, 1.0)
        waited = 0.0
        while waited < seconds:
            await asyncio.sleep(each)
            waited += each
            await self._write(response, b": ping\n\n")

    async def _write(self, response: web.StreamResponse, data: bytes) -> None:
        each = self._reply.bytes_each or len(data)
        for start in range(0, len(data), each):
            await response.write(data[start : start + each])
            if self._reply.bytes_each:
                await asyncio.sleep(0)

    async def _slow_error(self) -> web.StreamResponse:
        response = web.StreamResponse(status=503, headers={"Content-Type": "application/json"})
        await response.prepare(self._request)
        await response.write(b'{"error": {"mess')
        await asyncio.sleep(LASTING_S)
        return response

    def _cut(self, *, reset: bool = False) -> web.StreamResponse:
        transport = self._request.transport
        if transport is not None:
            if reset:
                linger = struct.pack("ii", 1, 0)
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            transport.abort()
        return web.Response()


def _spoilt(reply: Reply, seen: Seen) -> Reply:
    """The reply with the faults that lie in what it says, not in how it comes."""
    name = reply.calls[0].name if reply.calls else _first_tool(seen.body)
    nothing: Json = {"text": "", "pieces": (), "calls": ()}
    changes: dict[Fault | None, Json] = {
        "empty": nothing,
        "wrong_schema": nothing | {"pieces": ('{"weather": "fog",', ' "tide": [1, 2, 3]}')},
        "bad_arguments": nothing | {"calls": (Tool(name, '{"query": "the ferry", '),)},
        "slow_drip": nothing | {"pieces": (" drip",) * 10_000, "gap_s": reply.gap_s or 1.0},
        "filtered": {"finish": "content_filter"},
        "error_at_once": nothing | {"fault": "error_inside"},
    }
    if reply.fault == "huge_line":
        return replaced(reply, **nothing | {"pieces": ("x" * _HUGE,)})
    return replaced(reply, **changes.get(reply.fault, {}))


def _first_tool(body: Json) -> str:
    tool = table((rows(body.get("tools")) or [{"name": "nothing"}])[0])
    return str((table(tool.get("function")) or tool)["name"])


def _denied(dialect: DialectName, denied: Refusal) -> web.Response:
    return web.json_response(told(dialect, denied), status=denied.status, headers=dict(denied.headers))


def _lowered(request: web.Request) -> dict[str, str]:
    return {name.lower(): value for name, value in request.headers.items()}


@asynccontextmanager
async def fault_wall(*dialects: DialectName) -> AsyncGenerator[FaultWall]:
    """Servers of these dialects, or of all, on free ports."""
    wall = FaultWall()
    try:
        for dialect in dialects or DIALECTS:
            await wall.accept(dialect)
        yield wall
    finally:
        await wall.close()


async def _serve() -> None:
    async with fault_wall() as wall:
        print(json.dumps({"urls": wall.url, "key": KEY, "model": MODEL, "faults": f"{MODEL}-silent, ..."}), flush=True)
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(_serve())
