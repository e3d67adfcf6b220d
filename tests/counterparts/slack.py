"""Owns a Slack workspace on loopback: Web API, signed interactions and Socket Mode, with Slack's limits, errors and times.

It is proved by an official slack-bolt app (tests/approvals/slack/test_counterpart.py). People are the test: they click, and read.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import aiohttp
from aiohttp import WSMsgType, web

from tests.counterparts.slack_limits import Json, Refused, check_message, check_view, escaped

ACK_S = 3.0
TICKET_S = 30.0
SOCKETS_MAX = 10
CHANGES_A_MINUTE = 50
TRIGGER_S = 3.0
_SCOPES = ("chat:write", "channels:read", "groups:read", "users:read", "usergroups:read")


@dataclass
class Message:
    """One message of a channel, as it stands now.

    Attributes:
        history: The blocks it has had, the present ones last.
    """

    channel: str
    ts: str
    user: str
    text: str
    blocks: list[Json]
    thread: str | None = None
    history: list[list[Json]] = field(default_factory=list[list[Json]])
    flags: Json = field(default_factory=dict[str, Any])

    def buttons(self) -> dict[str, Json]:
        """What can be clicked on it, by action id."""
        rows = [block["elements"] for block in self.blocks if block["type"] == "actions"]
        return {button["action_id"]: button for row in rows for button in row}

    def words(self) -> str:
        """Everything that it shows."""
        return json.dumps(self.blocks, ensure_ascii=False)


@dataclass(frozen=True)
class Ack:
    """What the app answered to an interaction: an HTTP status (200 for an ack over a socket, 0 for none) and a body."""

    status: int
    body: Json | None = None


@dataclass
class Workspace:
    """A workspace with one app in it.

    Attributes:
        request_url: Where interactions go that no socket takes.
        post_every_s: New messages of a channel come no faster; None for no such limit.
        broken: By method, or `link` for the handshakes of sockets: what is answered in its place, so often.
        links: The ticket of every handshake that came.
    """

    team: str = "T0TEST001"
    app: str = "A0TEST001"
    bot: str = "U0BOT0001"
    token: str = "xoxb-test-token"
    app_token: str = "xapp-test-token"
    signing_secret: str = "a-signing-secret"
    scopes: tuple[str, ...] = _SCOPES
    url: str = ""
    request_url: str | None = None
    post_every_s: float | None = None
    users: dict[str, Json] = field(default_factory=dict[str, Json])
    channels: dict[str, Json] = field(default_factory=dict[str, Json])
    messages: list[Message] = field(default_factory=list[Message])
    told: list[Json] = field(default_factory=list[Json])
    views: list[Json] = field(default_factory=list[Json])
    calls: list[str] = field(default_factory=list[str])
    broken: dict[str, list[tuple[int, Json, dict[str, str]]]] = field(
        default_factory=dict[str, list[tuple[int, Json, dict[str, str]]]]
    )
    before_answer: Callable[[str], Awaitable[None]] | None = None
    sockets: list[web.WebSocketResponse] = field(default_factory=list[web.WebSocketResponse])
    tickets: dict[str, float] = field(default_factory=dict[str, float])
    links: list[str] = field(default_factory=list[str])
    groups: list[str] = field(default_factory=list[str])
    _acks: dict[str, asyncio.Future[Json | None]] = field(default_factory=dict[str, "asyncio.Future[Json | None]"])
    _triggers: dict[str, float] = field(default_factory=dict[str, float])
    _changed_at: list[float] = field(default_factory=list[float])
    _posted_at: dict[str, float] = field(default_factory=dict[str, float])
    _last_ts: int = 1_790_000_000_000_000

    def add_user(self, user: str, *, name: str = "somebody", deleted: bool = False, is_bot: bool = False) -> str:
        self.users[user] = {"id": user, "team_id": self.team, "name": name, "deleted": deleted, "is_bot": is_bot}
        return user

    def add_channel(self, channel: str, *members: str, archived: bool = False) -> str:
        found = {"id": channel, "name": channel.lower(), "is_archived": archived, "members": [self.bot, *members]}
        self.channels[channel] = found
        return channel

    def in_channel(self, channel: str, *, threads: bool = False) -> list[Message]:
        """The messages of a channel, the oldest first."""
        return [m for m in self.messages if m.channel == channel and (threads or m.thread is None)]

    def in_thread(self, ts: str) -> list[Message]:
        return [m for m in self.messages if m.thread == ts]

    def copy(self, message: Message, *, channel: str | None = None) -> Message:
        """The same blocks in another message: what a copy, a forward or a second post would be."""
        found = Message(channel or message.channel, self._next_ts(), self.bot, message.text, list(message.blocks))
        self.messages.append(found)
        return found

    async def click(self, user: str, message: Message, action: str) -> Ack:
        """Somebody clicks a button that is there, and confirms."""
        button = message.buttons().get(action)
        assert button is not None, f"there is no button {action} on {message.words()}"
        return await self.deliver(self.click_payload(user, message, button))

    def click_payload(self, user: str, message: Message, button: Json) -> Json:
        """What Slack sends of a click."""
        action = {name: button[name] for name in ("type", "action_id", "text", "value", "style") if name in button}
        return {
            "type": "block_actions",
            "user": {"id": user, "username": "x", "name": "x", "team_id": self.team},
            "api_app_id": self.app,
            "token": "deprecated",
            "container": {
                "type": "message",
                "message_ts": message.ts,
                "channel_id": message.channel,
                "is_ephemeral": False,
            },
            "trigger_id": self.trigger(),
            "team": {"id": self.team, "domain": "test"},
            "enterprise": None,
            "is_enterprise_install": False,
            "channel": {"id": message.channel, "name": "x"},
            "message": {"type": "message", "user": message.user, "ts": message.ts, "blocks": escaped(message.blocks)},
            "state": {"values": {}},
            "response_url": f"{self.url}response",
            "actions": [action | {"block_id": "b", "action_ts": self._next_ts()}],
        }

    async def submit(self, user: str, view: Json, value: str | None) -> Ack:
        """Somebody fills the only input of a modal and submits it."""
        block = next(block for block in view["blocks"] if block["type"] == "input")
        assert value or block.get("optional"), "Slack itself asks for it"
        answer = {"type": "plain_text_input", "value": value}
        found = view | {
            "id": "V0TEST001",
            "team_id": self.team,
            "state": {"values": {block["block_id"]: {block["element"]["action_id"]: answer}}},
            "hash": "1.x",
        }
        return await self.deliver(
            {
                "type": "view_submission",
                "team": {"id": self.team, "domain": "test"},
                "user": {"id": user, "username": "x", "name": "x", "team_id": self.team},
                "api_app_id": self.app,
                "token": "deprecated",
                "trigger_id": self.trigger(),
                "view": found,
                "response_urls": [],
                "is_enterprise_install": False,
                "enterprise": None,
            }
        )

    def trigger(self) -> str:
        found = f"{secrets.token_hex(6)}.{secrets.token_hex(6)}"
        self._triggers[found] = time.monotonic()
        return found

    async def deliver(self, payload: Json) -> Ack:
        """Send an interaction as Slack does: over one of the sockets, else signed to the request URL; it waits three seconds."""
        if live := [socket for socket in self.sockets if not socket.closed]:
            return await self._over_socket(live[-1], payload)
        assert self.request_url is not None, "the app has neither a socket nor a request URL"
        body = self.body_of(payload)
        return await self.send(body, self.signed(body))

    def body_of(self, payload: Json) -> bytes:
        return urlencode({"payload": json.dumps(payload)}).encode()

    def signed(self, body: bytes, *, at: float | str | None = None, secret: str | None = None) -> dict[str, str]:
        """The headers that Slack sends with a body."""
        stamp = str(int(time.time()) if at is None else at)  # noqa: TID251  # Slack's clock
        mac = hmac.new((secret or self.signing_secret).encode(), f"v0:{stamp}:".encode() + body, hashlib.sha256)
        return {
            "Content-Type": "application/x-www-form-urlencoded",
            "X-Slack-Request-Timestamp": stamp,
            "X-Slack-Signature": f"v0={mac.hexdigest()}",
        }

    async def send(self, body: bytes, headers: dict[str, str]) -> Ack:
        assert self.request_url is not None
        timeout = aiohttp.ClientTimeout(total=ACK_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.post(self.request_url, data=body, headers=headers) as answer,
            ):
                text = await answer.text()
                is_json = answer.content_type == "application/json" or text.startswith("{")
                return Ack(answer.status, json.loads(text) if text and is_json else None)
        except TimeoutError:
            return Ack(0)

    async def disconnect(self, reason: str = "refresh_requested") -> None:
        """End every socket as Slack does when it wants clients to come again."""
        for socket in [socket for socket in self.sockets if not socket.closed]:
            await socket.send_json({"type": "disconnect", "reason": reason})

    async def _over_socket(self, socket: web.WebSocketResponse, payload: Json) -> Ack:
        envelope = secrets.token_hex(16)
        done: asyncio.Future[Json | None] = asyncio.get_running_loop().create_future()
        self._acks[envelope] = done
        await socket.send_json(
            {"envelope_id": envelope, "type": "interactive", "payload": payload, "accepts_response_payload": True}
        )
        try:
            return Ack(200, await asyncio.wait_for(done, ACK_S))
        except TimeoutError:
            return Ack(0)
        finally:
            del self._acks[envelope]

    def _next_ts(self) -> str:
        self._last_ts += 100
        return f"{self._last_ts // 1_000_000}.{self._last_ts % 1_000_000:06d}"

    async def api(self, request: web.Request) -> web.Response:
        """One call of the Web API."""
        method = request.match_info["method"]
        self.calls.append(method)
        if self.before_answer is not None:
            await self.before_answer(method)
        headers = {"X-OAuth-Scopes": ",".join(self.scopes)}
        if left := self.broken.get(method):
            status, body, more = left.pop(0)
            return web.json_response(body, status=status, headers=headers | more)
        try:
            given = await _arguments(request)
            self._authorize(method, request, given)
            answer = await self._answer(method, given)
        except _TooFast as error:
            wait = {"Retry-After": str(error.wait_s)}
            return web.json_response({"ok": False, "error": "ratelimited"}, status=429, headers=headers | wait)
        except Refused as error:
            body: Json = {"ok": False, "error": error.word, "response_metadata": {"messages": [error.why]}}
            return web.json_response(body, headers=headers)
        return web.json_response({"ok": True, **answer}, headers=headers)

    def _authorize(self, method: str, request: web.Request, given: Json) -> None:
        sent = request.headers.get("Authorization", "").removeprefix("Bearer ") or given.get("token", "")
        if not sent:
            raise Refused("not_authed", "no token")
        if sent not in {self.token, self.app_token}:
            raise Refused("invalid_auth", "another token")
        if (sent == self.app_token) != (method == "apps.connections.open"):
            raise Refused("not_allowed_token_type", "the other token")
        needed = _NEEDS.get(method, ())
        if needed and not set(needed) & set(self.scopes):
            raise Refused("missing_scope", f"needs {needed}")

    async def _answer(self, method: str, given: Json) -> Json:
        known = _METHODS.get(method)
        if known is None:
            raise Refused("unknown_method", method)
        return known(self, given)

    def auth_test(self, _given: Json) -> Json:
        return {
            "url": "https://test.slack.com/",
            "team": "Test",
            "user": "app",
            "team_id": self.team,
            "user_id": self.bot,
            "bot_id": "B0TEST001",
            "is_enterprise_install": False,
        }

    def _channel(self, given: Json) -> Json:
        found = self.channels.get(given.get("channel", ""))
        if found is None:
            raise Refused("channel_not_found", "no such channel")
        return found

    def _may_write(self, given: Json) -> str:
        found = self._channel(given)
        if found["is_archived"]:
            raise Refused("is_archived", "an archived channel")
        if self.bot not in found["members"]:
            raise Refused("not_in_channel", "the app is not in it")
        return found["id"]

    def post_message(self, given: Json) -> Json:
        channel = self._may_write(given)
        check_message(given.get("text"), given.get("blocks") or [])
        self._pace(channel)
        flags = {name: given.get(name) for name in ("unfurl_links", "unfurl_media", "parse", "mrkdwn", "link_names")}
        blocks: list[Json] = given.get("blocks") or []
        text, thread = given.get("text", ""), given.get("thread_ts")
        if not any((m.channel, m.ts) == (channel, thread) for m in self.messages):
            thread = None  # what was meant for a thread that is gone lands in the channel
        message = Message(channel, self._next_ts(), self.bot, text, blocks, thread, [blocks], flags)
        self.messages.append(message)
        said = {"text": text, "ts": message.ts, "blocks": escaped(blocks)} | ({"thread_ts": thread} if thread else {})
        return {"channel": channel, "ts": message.ts, "message": said}

    def _pace(self, channel: str) -> None:
        if self.post_every_s is None:
            return
        now, last = time.monotonic(), self._posted_at.get(channel, float("-inf"))
        if now - last < self.post_every_s * 0.9:
            raise _TooFast(1)
        self._posted_at[channel] = now

    def update_message(self, given: Json) -> Json:
        channel = self._may_write(given)
        found = next((m for m in self.messages if (m.channel, m.ts) == (channel, given.get("ts"))), None)
        if found is None:
            raise Refused("message_not_found", "no such message")
        if found.user != self.bot:
            raise Refused("cant_update_message", "somebody else's message")
        self._changed_at = [at for at in self._changed_at if time.monotonic() - at < 60]
        if len(self._changed_at) >= CHANGES_A_MINUTE:
            raise _TooFast(1 + int(60 - (time.monotonic() - self._changed_at[0])))
        self._changed_at.append(time.monotonic())
        check_message(given.get("text"), given.get("blocks") or [])
        found.text, found.blocks = given.get("text", ""), given.get("blocks") or []
        found.history.append(found.blocks)
        return {"channel": channel, "ts": found.ts, "text": found.text}

    def post_ephemeral(self, given: Json) -> Json:
        channel = self._may_write(given)
        if given.get("user") not in self.channels[channel]["members"]:
            raise Refused("user_not_in_channel", "nobody there to read it")
        check_message(given.get("text"), given.get("blocks") or [])
        self.told.append(given)
        return {"message_ts": self._next_ts()}

    def open_view(self, given: Json) -> Json:
        trigger = given.get("trigger_id", "")
        if trigger not in self._triggers:
            raise Refused("invalid_trigger_id" if "." not in trigger else "exchanged_trigger_id", "used, or never made")
        if time.monotonic() - self._triggers.pop(trigger) > TRIGGER_S:
            raise Refused("expired_trigger_id", "three seconds are over")
        view = given["view"]
        check_view(json.loads(view) if isinstance(view, str) else view)
        self.views.append(json.loads(view) if isinstance(view, str) else view)
        return {"view": self.views[-1] | {"id": "V0TEST001"}}

    def open_connection(self, _given: Json) -> Json:
        ticket = secrets.token_hex(8)
        self.tickets[ticket] = time.monotonic()
        return {"url": f"{self.url.replace('http', 'ws', 1).removesuffix('api/')}link?ticket={ticket}"}

    def channel_info(self, given: Json) -> Json:
        found = self._channel(given)
        return {"channel": found | {"is_member": self.bot in found["members"]}}

    def list_members(self, given: Json) -> Json:
        members, start = self._channel(given)["members"], int(given.get("cursor") or 0)
        end = start + min(int(given.get("limit") or 100), 1000)
        return {
            "members": members[start:end],
            "response_metadata": {"next_cursor": str(end) if end < len(members) else ""},
        }

    def user_info(self, given: Json) -> Json:
        if given.get("user") not in self.users:
            raise Refused("user_not_found", "nobody")
        return {"user": self.users[given["user"]]}

    def list_groups(self, _given: Json) -> Json:
        return {"usergroups": [{"id": each} for each in self.groups]}

    async def link(self, request: web.Request) -> web.StreamResponse:
        """A Socket Mode connection; its ticket is good once, and soon."""
        self.links.append(request.query.get("ticket", ""))
        made_at = self.tickets.pop(self.links[-1], float("-inf"))
        if left := self.broken.get("link"):
            status, body, more = left.pop(0)
            return web.json_response(body, status=status, headers=more)
        if time.monotonic() - made_at > TICKET_S:
            return web.Response(status=401)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        if len([each for each in self.sockets if not each.closed]) >= SOCKETS_MAX:
            await socket.send_json({"type": "disconnect", "reason": "too_many_websockets"})
            await socket.close()
            return socket
        self.sockets.append(socket)
        await socket.send_json(
            {"type": "hello", "num_connections": len(self.sockets), "connection_info": {"app_id": self.app}}
        )
        async for message in socket:
            if message.type == WSMsgType.TEXT:
                said = json.loads(message.data)
                done = self._acks.get(said.get("envelope_id", ""))
                if done is not None and not done.done():
                    done.set_result(said.get("payload") or None)
        return socket


class _TooFast(Exception):
    def __init__(self, wait_s: int) -> None:
        super().__init__(f"{wait_s} s")
        self.wait_s = wait_s


async def _arguments(request: web.Request) -> Json:
    if request.content_type == "application/json":
        return await request.json()
    found: Json = {**request.query, **{name: str(value) for name, value in (await request.post()).items()}}
    for name in ("blocks", "view"):
        if isinstance(found.get(name), str):
            found[name] = json.loads(found[name])
    return found


_NEEDS: dict[str, tuple[str, ...]] = {
    "chat.postMessage": ("chat:write",),
    "chat.update": ("chat:write",),
    "chat.postEphemeral": ("chat:write",),
    "conversations.info": ("channels:read", "groups:read"),
    "conversations.members": ("channels:read", "groups:read"),
    "users.info": ("users:read",),
    "usergroups.list": ("usergroups:read",),
}
_METHODS: dict[str, Callable[[Workspace, Json], Json]] = {
    "auth.test": Workspace.auth_test,
    "chat.postMessage": Workspace.post_message,
    "chat.update": Workspace.update_message,
    "chat.postEphemeral": Workspace.post_ephemeral,
    "views.open": Workspace.open_view,
    "apps.connections.open": Workspace.open_connection,
    "conversations.info": Workspace.channel_info,
    "conversations.members": Workspace.list_members,
    "users.info": Workspace.user_info,
    "usergroups.list": Workspace.list_groups,
}


@asynccontextmanager
async def workspace(**more: Any) -> AsyncGenerator[Workspace]:  # fields of Workspace
    """A workspace on a free port."""
    found = Workspace(**more)
    app = web.Application()
    app.router.add_route("*", "/api/{method}", found.api)
    app.router.add_get("/link", found.link)
    runner = web.AppRunner(app, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    found.url = f"http://{host}:{port}/api/"
    try:
        yield found
    finally:
        for socket in found.sockets:
            await socket.close()
        await runner.cleanup()
