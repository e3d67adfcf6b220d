"""Owns the inference tiers of one process: read at the start, opened when somebody first asks them, MCP clients of this very hub."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from body_broker.calls import Call, Caller
from body_broker.errors import Unavailable
from body_broker.settings import Settings
from body_broker.storage.stores import Stores
from mcp_servers.hub.secrets import Secrets
from mcp_servers.hub.sessions import Sessions
from mcp_servers.hub.tokens import Tokens
from tiers.catalogue import Catalogue, DialectName, EngineSpec, Given
from tiers.counts import Counts
from tiers.hubtools import actor_of
from tiers.model import BUDGET_S, Asker, Sla, Tier
from tiers.reading import read_catalogue

if TYPE_CHECKING:
    from mcp_servers.hub.inner_door import InnerDoor
    from tiers.bronze.tier import HubCalls
    from tiers.opening import Tiers

CONVERSATION_PREFIX = "cnv"
SAGEMAKER = "sagemaker://"
"""What the address of an endpoint begins with, which is a name and no URL."""
_MARGIN_S, _MARGIN_SHARE = 2.0, 0.25
"""How long before its call an answer ends at the latest, and at most this part of the call: what came of it is still to be told."""
_LEAST_MS = 1.0


class Inferring:
    """The tiers of one process; made by `open_inferring`.

    Attributes:
        catalogue: Engines, roles, prices and caps as models.toml and the settings say.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        stores: Stores,
        *,
        tokens: Tokens,
        sessions: Sessions,
        counts: Counts,
        key: bytes,
        call_timeout_s: float,
    ) -> None:
        self.catalogue, self.counts = catalogue, counts
        self._longest_s = call_timeout_s - min(_MARGIN_S, call_timeout_s * _MARGIN_SHARE)
        self._stores, self._tokens, self._sessions, self._key = stores, tokens, sessions, key
        self._door: Callable[[], InnerDoor] | None = None
        self._calls: HubCalls | None = None
        self._tiers: Tiers | None = None
        self._opening, self._open, self._closed = asyncio.Lock(), AsyncExitStack(), False

    def reaches(self, door: Callable[[], InnerDoor], calls: HubCalls | None = None) -> None:
        """How tiers reach this hub, as MCP clients of their own and as whoever asks them; told once, when there is a gate.

        Without `calls` nobody gets jobs here.
        """
        self._door, self._calls = door, calls

    async def tiers(self) -> Tiers:
        """The tiers, opened now if nobody has asked before.

        Raises:
            Unavailable: This process is stopping.
        """
        if self._tiers is None:
            async with self._opening:
                if self._closed or self._door is None:
                    raise Unavailable("The tiers of this hub are not open.", details={"component": "tiers"})
                if self._tiers is None:
                    self._tiers = await self._open_tiers(self._door())
        return self._tiers

    @property
    def is_open(self) -> bool:
        """Whether somebody has asked for the tiers, or the start has."""
        return self._tiers is not None

    def context_tokens(self, spec: EngineSpec) -> int | None:
        """How much an engine holds, as it or models.toml says; None where its model is not known yet."""
        engine = None if self._tiers is None else self._tiers.engines.get(spec.name)
        if engine is None or engine.asks_context:
            return spec.context_tokens if spec.context_known else None
        return engine.context_tokens

    async def prepare(self) -> None:
        """Open the tiers where an engine has an address, so that nobody's deadline pays for what is loaded first."""
        if any(spec.url is not None for spec in self.catalogue.engines.values()):
            await (await self.tiers()).tools.ready()

    async def _open_tiers(self, door: InnerDoor) -> Tiers:
        # A second's worth of libraries, in a thread: whoever else is being served waits for none of it.
        opening = await asyncio.to_thread(_opener)
        async with AsyncExitStack() as stack:  # whoever fails or leaves half-way leaves nothing open
            await stack.enter_async_context(door.serving())
            tiers = await stack.enter_async_context(
                opening(
                    self.catalogue,
                    pool=self._stores.pool,
                    redis=self._stores.redis,
                    counts=self.counts,
                    connect=door.client,
                    post=door.post,
                    mint=self._tokens.mint,
                    calls=self._calls,
                )
            )
            self._open = stack.pop_all()
        return tiers

    async def close(self) -> None:
        """End what was opened: conversations under way are cancelled by their callers first."""
        async with self._opening:
            self._closed, self._tiers = True, None
            await self._open.aclose()

    def conversation(self, caller: Caller, *about: str) -> str:
        """The id, and session, of a conversation of this caller's about these things: the same on every hub, and unguessable."""
        said = "\0".join((caller.session, caller.requester, *about)).encode()
        return f"{CONVERSATION_PREFIX}_{hmac.new(self._key, said, hashlib.sha256).hexdigest()[:40]}"

    def budget_ms(self, sla: Sla, asked_ms: float | None, *, began: float) -> float:
        """How long the whole answer may take: as asked for, or as its sla usually gets, and less than is left of the call.

        Args:
            sla: Of the request.
            asked_ms: Its latency_budget_ms.
            began: When the call began, by the loop's clock.
        """
        wanted_ms = BUDGET_S[sla] * 1_000 if asked_ms is None else asked_ms
        left_s = self._longest_s - (asyncio.get_running_loop().time() - began)
        return max(_LEAST_MS, min(wanted_ms, left_s * 1_000))

    async def begin(self, call: Call, conversation: str, *, heard_outside: str | None = None) -> Asker:
        """For whom a tier works in this call, with what the conversation and its asker have read.

        Args:
            call: The call that the gate let in.
            conversation: Its id.
            heard_outside: What brings text from outside into it now, such as a player's words; the taint is stored before this
                returns, and stays in this conversation.

        Raises:
            Unavailable: A store is down.
        """
        caller = replace(
            call.caller, depth=call.depth, call_key=None
        )  # a token minted for them is one deeper than this call
        asker = await self.act(caller, conversation, Tier.SILVER, heard_outside=heard_outside)
        return replace(asker, tainted=asker.tainted or call.tainted)

    async def act(self, caller: Caller, conversation: str, tier: Tier, *, heard_outside: str | None = None) -> Asker:
        """For whom a tier works in a conversation, with what the conversation and its asker have read.

        Args:
            caller: Who asked.
            conversation: Its id.
            tier: Who acts for them.
            heard_outside: As `begin` has it.

        Raises:
            Unavailable: A store is down.
        """
        above = caller.sessions
        acting = Caller(
            chain=(*caller.chain, actor_of(tier)),
            roles=caller.roles,
            session=conversation,
            conversation_of=above[0],
            ancestors=above[1:],
        )
        if heard_outside is not None:
            await self._sessions.taint(acting, heard_outside)
        state = await self._sessions.enter(acting, fresh=True)
        return Asker(caller=caller, conversation=conversation, tainted=state.tainted)


def _opener() -> Callable[..., AbstractAsyncContextManager[Tiers]]:
    from tiers.opening import open_tiers  # noqa: PLC0415  # aiohttp and what else engines need, where tiers are asked

    return open_tiers


def given_by(settings: Settings) -> Given:
    """What the settings say of engines: addresses, keys, models and dialects, by the names that models.toml has for them."""
    urls: dict[str, str | None] = {
        "gold": settings.gold_url,
        "silver": settings.silver_url,
        "bronze": settings.bronze_url,
        "sagemaker": settings.sagemaker_endpoint and f"{SAGEMAKER}{settings.sagemaker_endpoint}",
        "openai": settings.openai_url if settings.openai_api_key else None,
        "azure": settings.azure_openai_url if settings.azure_openai_api_key else None,
        "anthropic": settings.anthropic_url if settings.anthropic_api_key else None,
    }
    keys = {
        "gold": settings.gold_api_key,
        "silver": settings.silver_api_key,
        "bronze": settings.bronze_api_key,
        "openai": settings.openai_api_key,
        "azure": settings.azure_openai_api_key,
        "anthropic": settings.anthropic_api_key,
    }
    models: Mapping[str, str | None] = {"silver": settings.silver_model, "bronze": settings.bronze_model}
    dialects: Mapping[str, DialectName | None] = {"silver": settings.silver_dialect, "bronze": settings.bronze_dialect}
    return Given(
        file=settings.models,
        urls={name: url for name, url in urls.items() if url},
        keys={name: key.get_secret_value() for name, key in keys.items() if key},
        models={name: model for name, model in models.items() if model},
        dialects={name: dialect for name, dialect in dialects.items() if dialect},
    )


@asynccontextmanager
async def open_inferring(
    settings: Settings, stores: Stores, secrets: Secrets, *, tokens: Tokens, sessions: Sessions, counts: Counts
) -> AsyncGenerator[Inferring]:
    """The tiers of this process; closed on the way out, where nobody closed them before.

    Raises:
        SettingsError: models.toml does not fit.
    """
    catalogue = await asyncio.to_thread(read_catalogue, given_by(settings))
    inferring = Inferring(
        catalogue,
        stores,
        tokens=tokens,
        sessions=sessions,
        counts=counts,
        key=secrets.derive("conversations"),
        call_timeout_s=settings.call_timeout_s,
    )
    try:
        yield inferring
    finally:
        await inferring.close()
