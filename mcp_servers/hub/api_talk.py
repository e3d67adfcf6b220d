"""Owns POST /npcs/{npc_id}/talk: the tool talk_to_npc over plain HTTP, as server-sent events or one JSON answer."""

from __future__ import annotations

import re
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from body_broker.calls import Caller, Hear
from body_broker.errors import BadInput, BodyBrokerError, WireError, on_the_wire
from mcp_servers.hub.exchange import Events, answer_json, read_json, unless_left
from mcp_servers.hub.gate import Gate
from mcp_servers.hub.requests import Request
from mcp_servers.hub.talking import Talked
from tiers.model import Told

_PATH = re.compile(r"/npcs/([^/]+)/talk")
_PARTS: dict[str, tuple[str, ...]] = {
    "routed": ("tier", "reason"),
    "tool": ("name",),
    "tool_done": ("name", "outcome"),
    "fallback": ("engine", "reason"),
}
"""What the words of an event are, which are all of our own making."""


class TalkApi:
    """The route, behind the gate.

    It streams `routed`, `tool` (is called), `tool_done`, `fallback`, `text`, `restart` (what was told so far is taken back), then `done` with the whole
    result or `error`. Whoever accepts application/json and no events gets the result alone.

    Args:
        gate: Runs the tool.
        bytes_max: Size of one body.
    """

    def __init__(self, gate: Gate, *, bytes_max: int) -> None:
        self._gate, self._bytes_max = gate, bytes_max

    @property
    def paths(self) -> frozenset[str]:
        """Its one path; {} stands for one segment."""
        return frozenset({"/npcs/{}/talk"})

    def takes(self, path: str) -> bool:
        """Whether a path is its."""
        return _PATH.fullmatch(path) is not None

    def told(self, path: str, told: WireError) -> None:
        """Its clients know the hub's own form of errors."""

    async def __call__(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, whose Host, Origin and token were checked.

        Raises:
            BodyBrokerError: Before anything was sent.
            ClientLeft: Nobody is there any more.
        """
        if scope["method"] != "POST":
            wrong = on_the_wire(BadInput("Only POST is answered here.", next_step="Send it as POST.")).body()
            await answer_json(send, {"error": wrong}, status=405, headers={"allow": "POST"})
            return
        found = _PATH.fullmatch(scope["path"])
        assert found is not None, "the path was taken before"
        body = await read_json(receive, bytes_max=self._bytes_max)
        if body.setdefault("npc_id", found[1]) != found[1]:
            raise BadInput("The body names another NPC than the path.", details={"problems": ["npc_id: another"]})
        if _wants_json(scope):
            talked = await unless_left(receive, self._talk(caller, body, None))
            await answer_json(send, talked.model_dump(mode="json"))
            return
        await unless_left(receive, self._stream(caller, body, send))

    async def _stream(self, caller: Caller, body: dict[str, Any], send: Send) -> None:
        telling = _Telling(Events(send))
        async with telling.events.writing():
            try:
                talked = await self._talk(caller, body, telling.hear)
            except BodyBrokerError as error:
                if not telling.events.begun:
                    raise
                telling.put("error", on_the_wire(error).body())
            else:
                telling.end(talked)

    async def _talk(self, caller: Caller, body: dict[str, Any], hear: Hear | None) -> Talked:
        request = Request(
            name="talk_to_npc", kind="tool", arguments=body, caller=caller, hear=hear, restarts=hear is not None
        )
        result = (await self._gate.run(request)).result
        assert isinstance(result, Talked)
        return result


class _Telling:
    """One talk as events."""

    def __init__(self, events: Events) -> None:
        self.events, self._said = events, False

    async def hear(self, said: Told, *, outside: bool) -> None:
        """One thing that happens; the session has its taint already."""
        del outside
        if said.kind in {"text", "restart"}:
            self._said = said.kind == "text"
            self.put(said.kind, {"text" if self._said else "reason": said.text})
            return
        names = _PARTS[said.kind]
        parts = re.split(r": | ", said.text, maxsplit=1)
        self.put(said.kind, dict(zip(names, parts, strict=False)))

    def end(self, talked: Talked) -> None:
        """The rest of it: words that no model made were not told before."""
        if not self._said and talked.says:
            self.put("text", {"text": talked.says})
        self.put("done", talked.model_dump(mode="json"))

    def put(self, name: str, data: dict[str, Any]) -> None:
        """One event."""
        self.events.put(orjson.dumps(data), name.encode())


def _wants_json(scope: Scope) -> bool:
    accepts = b",".join(value for name, value in scope["headers"] if name == b"accept")
    return b"application/json" in accepts and b"text/event-stream" not in accepts
