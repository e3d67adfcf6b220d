"""`--as`: the word of a local process, on a hub's own stores only, with the roles of the table."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from body_broker.calls import Caller
from body_broker.errors import BadInput, Unauthenticated
from body_broker.settings import Settings
from body_broker.storage.postgres import Pool
from mcp_servers.hub.identity import Identities, open_identities
from mcp_servers.hub.secrets import Secrets
from mcp_servers.hub.tokens import Tokens
from tests.waiting import wait_until

SETTINGS = Settings.model_validate({"data_dir": Path("/nowhere")})
SHARED = Settings.model_validate({"database_url": "postgresql://elsewhere/hub", "secret_key": "k" * 32})


@pytest.fixture
def tokens(pool: Pool) -> Tokens:
    return Tokens(pool, SETTINGS, Secrets(b"r" * 32))


@pytest.fixture
async def hub(pool: Pool) -> AsyncGenerator[Identities]:
    async with open_identities(pool, SETTINGS) as found:
        yield found


async def test_as_is_a_session_of_the_data_dir_and_the_principal(pool: Pool, tokens: Tokens, tmp_path: Path) -> None:
    await tokens.set_roles("person:anna", ["sre"], by="operator:ops")

    async def found(place: Path, principal: str) -> Caller:
        async with open_identities(pool, Settings.model_validate({"data_dir": place})) as hub:
            return await hub.local(principal, over="cli")

    anna = await found(tmp_path / "a", "person:anna")

    assert (anna.chain, anna.roles, anna.token_id, anna.expires_at) == (
        ("person:anna",),
        {"person:anna": frozenset({"sre"})},
        None,
        None,
    )
    assert await found(tmp_path / "a", "person:anna") == anna, "a restart changes nothing"
    assert len({anna.session, *[(await found(tmp_path / d, p)).session for d, p in _OTHERS]}) == 4


_OTHERS = [("b", "person:anna"), ("a", "person:ben"), ("a", "tier:silver")]


async def test_as_sees_a_role_that_is_given_while_the_process_runs(hub: Identities, tokens: Tokens) -> None:
    assert (await hub.local("person:anna")).roles == {}
    await tokens.set_roles("person:anna", ["sre"], by="operator:ops")

    async def arrived() -> bool:
        return (await hub.local("person:anna")).roles == {"person:anna": frozenset({"sre"})}

    await wait_until(arrived, "the role arrives")


async def test_as_is_refused_where_the_stores_are_shared_and_over_stdio_to_all_but_people(
    pool: Pool, hub: Identities
) -> None:
    async with open_identities(pool, SHARED) as shared:
        with pytest.raises(Unauthenticated, match="embedded") as refused:
            await shared.local("person:anna", over="cli")
        assert "token issue" in refused.value.next_step
    for principal in ("tier:silver", "service:game"):
        assert await hub.local(principal, over="cli")
        with pytest.raises(Unauthenticated, match="names a person"):
            await hub.local(principal, over="stdio")
    with pytest.raises(BadInput):
        await hub.local("person:Anna")
