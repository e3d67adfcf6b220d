"""Owns the hub's tools as the tiers see them: what an asker's chain is shown, and calls made in its name."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

from body_broker.background import running
from body_broker.calls import Caller, Json
from body_broker.errors import Unauthenticated, Unavailable
from body_broker.tracing import Value, span
from tiers.counts import Counts
from tiers.deadline import Deadline
from tiers.model import Asker, Tier, ToolOffer

if TYPE_CHECKING:
    from tiers.hubclient import HubClient, Said

Connect = Callable[..., Any]
"""Makes an httpx2.AsyncClient that reaches the hub, given the arguments of one."""
Post = Callable[[Sequence[tuple[bytes, bytes]], bytes], Awaitable[tuple[int, bytes]]]
"""`async (headers, body) -> (status, body)`: takes one HTTP request to the very front that `Connect` reaches."""


class Mint(Protocol):
    """Makes a conversation's token; the hub's, never a route."""

    def __call__(
        self, asker: Caller, actor: str, conversation: str, ttl_s: float, /, *, key: str | None = None
    ) -> Awaitable[str]:
        """The token; with a key it is for that one call."""
        ...


TOKEN_S = 600.0
"""How long a conversation's token lives; it is minted anew before that."""
LISTED_S = 60.0
"""How long it is remembered what a chain is shown, as the hub itself says."""
_RENEW_AT = 0.8
_LIST_S = 10.0
_TOKENS_MAX, _LISTS_MAX = 1_000, 256
_STATUS_CODES = {403: "denied", 404: "not_found", 413: "too_large", 429: "rate_limited"}
_UNAUTHENTICATED = 401
_TOLD: Mapping[str, Value] = {"mcp.method.name": "tools/call", "gen_ai.operation.name": "execute_tool"}


@dataclass(frozen=True, slots=True)
class HubTool(ToolOffer):
    """A tool of the hub's as a model is offered it.

    Attributes:
        read_only: It only reads: its calls may be made side by side.
        repeatable: Made again under the same key (`HubTools.call`), a call of it is the same call; so is every read.
    """

    read_only: bool = False
    repeatable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Called:
    """What came of one call of a tool.

    Attributes:
        text: What the hub said, whole and as it came: whoever shows it to a model bounds and marks it.
        outcome: `ok`, or an error's code: the hub's own, `timeout` or `unavailable`.
        outside: Whether text from outside is in it.
        structured: The result as data; empty where it was none.
    """

    text: str
    outcome: str
    outside: bool = False
    seconds: float = 0.0
    structured: Mapping[str, Json] = field(default_factory=dict[str, Json])


class Refused(Exception):
    """The hub did not answer the call itself: an HTTP status, or a protocol error's code; None where the connection broke."""

    def __init__(self, status: int | None, code: str | None = None) -> None:
        super().__init__(status, code)
        self.status, self.code = status, code


@dataclass(slots=True)
class _Token:
    text: str
    renew_at: float


class HubTools:
    """Calls the hub's tools for conversations; one for a process, made by `opened`.

    Nothing is decided here: every call passes the gate as the chain asker>tier, whose identities must all be allowed.

    Args:
        connect: Reaches the hub.
        mint: Makes a conversation's token.
        counts: Told of every call.
        post: Takes calls there at less expense than the client library; None leaves them to it.
    """

    def __init__(self, connect: Connect, mint: Mint, counts: Counts, post: Post | None = None) -> None:
        self._connect, self._post, self._mint, self._counts = connect, post, mint, counts
        self._client: HubClient | None = None
        self._loading = asyncio.Lock()
        self._tokens: OrderedDict[tuple[object, ...], _Token] = OrderedDict()
        self._lists: OrderedDict[tuple[object, ...], tuple[float, Mapping[str, HubTool]]] = OrderedDict()

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, connect: Connect, mint: Mint, counts: Counts, post: Post | None = None
    ) -> AsyncGenerator[HubTools]:
        """The tools until the way out. What they need is loaded meanwhile; nothing connects before the first use."""
        tools = cls(connect, mint, counts, post)
        try:
            async with running(tools.ready(), name="hub-client-loading"):
                yield tools
        finally:
            if tools._client is not None:
                await tools._client.close()

    async def offered(
        self, asker: Asker, tier: Tier, names: Collection[str] | None = None, *, deadline: Deadline | None = None
    ) -> tuple[HubTool, ...]:
        """The tools that the hub shows this chain, in the hub's order; of `names` those that it is shown, all where None.

        Raises:
            Unauthenticated: The asker's token holds no more.
            Unavailable: The hub does not answer, or not in time.
        """
        shown = await self._shown(asker, tier, deadline or Deadline.after(_LIST_S))
        return tuple(tool for tool in shown.values() if names is None or tool.name in names)

    async def call(
        self,
        asker: Asker,
        tier: Tier,
        name: str,
        arguments: Mapping[str, Json],
        *,
        deadline: Deadline,
        key: str | None = None,
    ) -> Called:
        """What came of one call; an error is an outcome like any other.

        A read is cancelled at the deadline; an effect that has begun goes on. Nothing waits for people here: where they are
        asked, the outcome is `approval_pending`, and the call runs by itself after their yes.

        Args:
            asker: For whom.
            tier: Who calls for them.
            name: One of `offered`.
            arguments: An object.
            deadline: When it must be there.
            key: Names this call of a job, such as `job_... 3.1`: whoever makes it again under its key, after a crash or because nobody
                heard the answer, has a `repeatable` tool do it once and gets what it gave. None for a call that is made once.

        Raises:
            BadInput: It is no key of a job's call.
            Unauthenticated: The asker's token holds no more: the conversation is over.
        """
        now = asyncio.get_running_loop().time
        began = now()
        with span("tier.tool", tool=name, tier=tier) as part:
            try:
                async with deadline.scope():
                    called = await self._call(asker, tier, name, arguments, key)
            except TimeoutError:
                called = Called(text="It did not answer in its time.", outcome="timeout")
            part.note(outcome=called.outcome)
        seconds = now() - began
        self._counts.tool_used(tier, name, called.outcome, seconds)
        return replace(called, seconds=seconds)

    async def _call(
        self, asker: Asker, tier: Tier, name: str, arguments: Mapping[str, Json], key: str | None
    ) -> Called:
        client = await self._loaded()
        token = await (self._token(asker, tier) if key is None else self._minted(asker, tier, key))
        try:
            with span(f"tools/call {name}", {**_TOLD, "gen_ai.tool.name": name}, kind="client"):
                said = await client.call(token, name, arguments)
        except Refused as refused:
            self._check_identity(refused.status, asker, tier)
            code = refused.code or _STATUS_CODES.get(refused.status or 0, "unavailable")
            return Called(text="The hub did not answer.", outcome=code)
        return Called(text=said.text, outcome=_outcome(said), outside=said.outside, structured=said.structured)

    async def _shown(self, asker: Asker, tier: Tier, deadline: Deadline) -> Mapping[str, HubTool]:
        now, caller = asyncio.get_running_loop().time(), asker.caller
        roles = frozenset((principal, roles) for principal, roles in caller.roles.items())
        key = (actor_of(tier), caller.chain, roles)
        kept = self._lists.get(key)
        if kept is not None and now < kept[0]:
            return kept[1]
        try:
            async with deadline.scope():
                found = await self._list(asker, tier)
        except TimeoutError as error:
            raise _unavailable() from error
        self._lists[key] = (now + LISTED_S, found)
        if len(self._lists) > _LISTS_MAX:
            self._lists.popitem(last=False)
        return found

    async def _list(self, asker: Asker, tier: Tier) -> Mapping[str, HubTool]:
        client = await self._loaded()
        try:
            listed = await client.tools(await self._token(asker, tier))
        except Refused as refused:
            self._check_identity(refused.status, asker, tier)
            raise _unavailable() from refused
        return {
            tool.name: HubTool(
                tool.name, tool.description, tool.schema, read_only=tool.read_only, repeatable=tool.repeatable
            )
            for tool in listed
        }

    def _check_identity(self, status: int | None, asker: Asker, tier: Tier) -> None:
        if status == _UNAUTHENTICATED:
            self._tokens.pop(_conversation(asker, tier), None)
            raise Unauthenticated(
                "The token under which this conversation was begun holds no more.",
                next_step="Sign in again, and ask again.",
            )

    async def _token(self, asker: Asker, tier: Tier) -> str:
        now, key = asyncio.get_running_loop().time(), _conversation(asker, tier)
        kept = self._tokens.get(key)
        if kept is None or now >= kept.renew_at:
            text = await self._minted(asker, tier)
            kept = self._tokens[key] = _Token(text, now + TOKEN_S * _RENEW_AT)
            if len(self._tokens) > _TOKENS_MAX:
                self._tokens.popitem(last=False)
        self._tokens.move_to_end(key)
        return kept.text

    async def _minted(self, asker: Asker, tier: Tier, key: str | None = None) -> str:
        return await self._mint(asker.caller, actor_of(tier), asker.conversation, TOKEN_S, key=key)

    async def ready(self) -> None:
        """Load the client's library now, so that nobody's deadline pays for it."""
        await self._loaded()

    async def _loaded(self) -> HubClient:
        """The client, whose library takes a second or more to load, so in a thread."""
        if self._client is None:
            async with self._loading:
                if self._client is None:
                    self._client = (await asyncio.to_thread(_client_type))(self._connect, self._post)
        assert self._client is not None
        return self._client


def _client_type() -> type[HubClient]:
    from tiers.hubclient import HubClient  # noqa: PLC0415  # fastmcp, a second or more, in a thread at first use

    return HubClient


def actor_of(tier: Tier) -> str:
    """The principal as which a tier calls tools. Cloud engines stand in for silver's and have no principal of their own."""
    return f"tier:{Tier.SILVER if tier is Tier.CLOUD else tier}"


def _conversation(asker: Asker, tier: Tier) -> tuple[object, ...]:
    caller = asker.caller
    return (actor_of(tier), asker.conversation, caller.requester, caller.sessions, caller.token_id, caller.depth)


def _outcome(said: Said) -> str:
    if not said.failed:
        return "ok"
    error: Any = said.structured.get("error")
    code = cast("dict[str, Json]", error).get("code") if isinstance(error, dict) else None
    return code if isinstance(code, str) else "internal"


def _unavailable() -> Unavailable:
    return Unavailable("The hub did not say which tools there are.", details={"component": "tools"})
