"""Owns hubs that believe an OIDC issuer, for the tests: fixtures, and how a refusal reads."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from body_broker.errors import Unauthenticated
from body_broker.settings import Settings
from body_broker.storage.postgres import Pool, open_pool
from mcp_servers.hub.identity import Identities, open_identities
from mcp_servers.hub.secrets import Secrets
from mcp_servers.hub.tokens import Tokens
from tests.counterparts.oidc import OidcIssuer, oidc_issuer
from tests.mcp_servers.hub.clocks import Clock, wall_clock

SECRETS = Secrets(b"r" * 32)
HUB = "https://hub.studio.example"
AUDIENCE = f"{HUB}/mcp"
OpenHub = Callable[..., AbstractAsyncContextManager[Identities]]


@pytest.fixture
def clock() -> Clock:
    return wall_clock()


@pytest.fixture
def monotonic() -> Clock:
    return Clock()


@pytest.fixture
async def issuer(clock: Clock) -> AsyncGenerator[OidcIssuer]:
    async with oidc_issuer(audience=AUDIENCE, clock=clock) as found:
        yield found


@pytest.fixture
def open_hub(database_url: str, issuer: OidcIssuer, clock: Clock, monotonic: Clock, tmp_path: Path) -> OpenHub:
    @asynccontextmanager
    async def make(approvers: str = "", **more: Any) -> AsyncGenerator[Identities]:
        (tmp_path / "approvers.toml").write_text(approvers)
        values = {"data_dir": tmp_path, "public_url": HUB, "oidc_issuer": issuer.url} | more
        async with (
            open_pool(database_url) as own_pool,
            open_identities(own_pool, Settings.model_validate(values), clock=clock, monotonic=monotonic) as found,
        ):
            yield found

    return make


@pytest.fixture
async def hub(open_hub: OpenHub) -> AsyncGenerator[Identities]:
    async with open_hub() as found:
        yield found


@pytest.fixture
def tokens(pool: Pool, clock: Clock, tmp_path: Path) -> Tokens:
    return Tokens(pool, Settings.model_validate({"data_dir": tmp_path}), SECRETS, clock=clock)


async def refusal(hub: Identities, token: str) -> str:
    with pytest.raises(Unauthenticated) as refused:
        await hub.authenticate(token)
    assert not any(part in str(refused.value) for part in token.split(".") if len(part) > 8), "the token is repeated"
    assert refused.value.next_step
    return refused.value.message


async def is_refused(hub: Identities, token: str) -> bool:
    """Whether the token opens nothing now."""
    try:
        await hub.authenticate(token)
    except Unauthenticated:
        return True
    return False
