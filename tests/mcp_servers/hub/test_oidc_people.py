"""Who an OIDC token means: one person for one account, its own roles, a session that nothing narrows, until it is revoked."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from approvals.page.logins import Logins as Pages
from body_broker.errors import BadInput, NotFound, SettingsError, Unauthenticated
from body_broker.settings import load_settings
from body_broker.storage.postgres import Pool, open_pool
from mcp_servers.hub.cli.backup import _settle  # pyright: ignore[reportPrivateUsage]  # what a restore does last
from mcp_servers.hub.cli.tokens import token
from mcp_servers.hub.identity import Identities
from mcp_servers.hub.oidc.logins import Logins
from mcp_servers.hub.tokens import Tokens
from tests.counterparts.oidc import OidcIssuer
from tests.mcp_servers.hub.clocks import Clock
from tests.mcp_servers.hub.issuers import OpenHub, clock, hub, is_refused, issuer, monotonic, open_hub, refusal, tokens
from tests.waiting import wait_until

__all__ = ["clock", "hub", "issuer", "monotonic", "open_hub", "tokens"]  # fixtures

APPROVERS = """
[people.anna]
groups = ["sre"]
oidc = "00u-anna"
[people.ben]
oidc = "ben@studio.example"
[people.cleo]
groups = ["sre"]
"""


async def test_approvers_toml_decides_first(open_hub: OpenHub, issuer: OidcIssuer) -> None:
    async with open_hub(APPROVERS) as hub:
        assert (await hub.authenticate(issuer.token(sub="00u-anna"))).asker == "person:anna"
        assert (await hub.authenticate(issuer.token(sub="cleo"))).asker == "person:cleo"
        assert (await hub.authenticate(issuer.token(sub="dora.x"))).asker == "person:dora.x"


@pytest.mark.parametrize("sub", ["Anna", "anna@studio.example", "a b", "ännä", "anna\n", "person:anna", "x" * 64])
async def test_what_is_not_spelled_as_a_name_is_nobody(hub: Identities, issuer: OidcIssuer, sub: str) -> None:
    assert await refusal(hub, issuer.token(sub=sub)) == "What the token's claim 'sub' says is no person's name here."


async def test_a_name_that_approvers_toml_gives_to_an_account_is_no_other_s(
    open_hub: OpenHub, issuer: OidcIssuer
) -> None:
    async with open_hub(APPROVERS) as hub:
        assert "another account" in await refusal(hub, issuer.token(sub="anna"))


async def test_two_accounts_never_become_one_person_until_an_operator_lets_the_first_go(
    open_hub: OpenHub, issuer: OidcIssuer, tokens: Tokens
) -> None:
    async with open_hub(oidc_person_claim="preferred_username") as hub:
        first = issuer.token(sub="1", preferred_username="anna", sid="s1")
        second = issuer.token(sub="2", preferred_username="anna", sid="s2")
        assert (await hub.authenticate(first)).asker == "person:anna"
        assert "another account" in await refusal(hub, second)

        await tokens.revoke(principal="person:anna")

        await wait_until(lambda: is_refused(hub, first), "the revocation arrives")
        assert (await hub.authenticate(second)).asker == "person:anna"
        assert await is_refused(hub, first)


async def test_an_account_that_is_renamed_keeps_its_session_and_its_old_name_to_itself(
    open_hub: OpenHub, issuer: OidcIssuer
) -> None:
    async with open_hub(oidc_person_claim="preferred_username") as hub:
        before = await hub.authenticate(issuer.token(sub="1", preferred_username="anna"))
        after = await hub.authenticate(issuer.token(sub="1", preferred_username="anna-b"))
        assert (before.asker, after.asker) == ("person:anna", "person:anna-b")
        assert before.session == after.session
        assert "another account" in await refusal(hub, issuer.token(sub="2", preferred_username="anna"))


@pytest.mark.parametrize("verified", [None, False, "true", 1])
async def test_an_email_counts_only_where_the_issuer_verified_it(
    open_hub: OpenHub, issuer: OidcIssuer, verified: Any
) -> None:
    async with open_hub(APPROVERS, oidc_person_claim="email") as hub:
        mail: dict[str, Any] = {"sub": "7", "email": "ben@studio.example"}
        assert "verified" in await refusal(hub, issuer.token(**mail, email_verified=verified))
        assert (await hub.authenticate(issuer.token(**mail, email_verified=True))).asker == "person:ben"


async def test_a_token_without_the_person_claim_says_which(open_hub: OpenHub, issuer: OidcIssuer) -> None:
    async with open_hub(oidc_person_claim="upn") as hub:
        assert await refusal(hub, issuer.token()) == "The token has no claim 'upn' that names a person."
        assert "'upn'" in await refusal(hub, issuer.token(upn=["anna"]))


@pytest.mark.parametrize(
    ("claim", "value", "roles"),
    [
        ("roles", ["sre", "Admin", "root", 7, None], {"sre"}),
        ("roles", "designer  engineer other", {"designer", "engineer"}),
        ("roles", {"sre": True}, set[str]()),
        ("roles", None, set[str]()),
        ("realm_access.roles", ["security"], {"security"}),
        ("https://studio.example/roles", ["admin"], {"admin"}),
    ],
)
async def test_only_names_of_our_roles_count_wherever_the_claim_lies(
    open_hub: OpenHub, issuer: OidcIssuer, *, claim: str, value: Any, roles: set[str]
) -> None:
    claims: dict[str, Any] = (
        {claim: value} if "://" in claim or "." not in claim else {"realm_access": {"roles": value}}
    )
    async with open_hub(oidc_roles_claim=claim) as hub:
        caller = await hub.authenticate(issuer.token(**claims))
        assert caller.roles == ({"person:anna": frozenset(roles)} if roles else {})


async def test_a_session_is_the_login_at_the_issuer_and_a_new_token_changes_nothing(
    hub: Identities, issuer: OidcIssuer, clock: Clock
) -> None:
    async def session(**claims: Any) -> str:
        clock.pass_s(1)
        return (await hub.authenticate(issuer.token(**claims))).session

    assert await session(sid="a") == await session(sid="a", jti="2", auth_time=5)
    different = [await session(sid="a", auth_time=5), await session(sid="b", auth_time=5)]
    ben, eve = {"sub": "ben", "sid": None}, {"sub": "eve", "sid": None}
    assert await session(**ben, auth_time=5) == await session(**ben, auth_time=5, jti="2")
    different += [await session(**ben, auth_time=5), await session(**ben, auth_time=6)]
    assert await session(**eve, nonce="1") == await session(**eve, nonce="2", iat=int(clock.now) - 100)
    different += [await session(**eve), await session(sub="sam", sid="a")]
    assert len(set(different)) == 6


async def test_a_token_that_names_its_login_otherwise_sheds_no_taint(hub: Identities, issuer: OidcIssuer) -> None:
    otherwise = "The token names its login in another way than other tokens of this account do."
    await hub.authenticate(issuer.token(sub="anna", sid="s1", auth_time=5))
    assert await refusal(hub, issuer.token(sub="anna", sid=None, auth_time=5)) == otherwise
    assert await refusal(hub, issuer.token(sub="anna", sid=None)) == otherwise
    await hub.authenticate(issuer.token(sub="ben", sid=None))
    assert await refusal(hub, issuer.token(sub="ben", sid="s1")) == otherwise, "while tokens of the other kind live"


async def test_a_login_that_was_revoked_stays_revoked_for_every_token_of_it(
    hub: Identities, issuer: OidcIssuer, tokens: Tokens, clock: Clock
) -> None:
    token, other = issuer.token(sid="a"), issuer.token(sid="b")
    session = (await hub.authenticate(token)).session
    assert await hub.authenticate(other)

    await tokens.revoke(jti=session)

    await wait_until(lambda: is_refused(hub, token), "the revocation arrives")
    clock.pass_s(60)
    assert await refusal(hub, issuer.token(sid="a")) == "The login was revoked."
    assert await hub.authenticate(other), "another login of hers goes on"
    with pytest.raises(NotFound):
        await tokens.revoke(jti="oidc_0000000000000000000000000000")


async def test_where_the_issuer_names_no_login_only_tokens_of_before_are_revoked_and_the_session_is_new(
    hub: Identities, issuer: OidcIssuer, tokens: Tokens, clock: Clock
) -> None:
    token = issuer.token(sid=None)
    session = (await hub.authenticate(token)).session

    await tokens.revoke(principal="person:anna")

    await wait_until(lambda: is_refused(hub, token), "the revocation arrives")
    assert await refusal(hub, issuer.token(sid=None, iat=int(clock.now) - 5)) == "The login was revoked."
    clock.now = datetime.now(UTC).timestamp() + 2
    later = await hub.authenticate(issuer.token(sid=None))
    assert later.session != session
    assert (await hub.authenticate(issuer.token(sid=None, jti="2"))).session == later.session


async def test_a_conversation_carries_the_roles_of_its_asker_s_newest_token_and_ends_with_the_login(
    hub: Identities, issuer: OidcIssuer, tokens: Tokens, clock: Clock
) -> None:
    await tokens.issue("person:anna", ttl_s=60, roles=["admin"])
    anna = await hub.authenticate(issuer.token(roles=["designer"]))
    minted = await tokens.mint(anna, "tier:silver", "cnv_12345678", 60)
    assert (await hub.authenticate(minted)).roles == {"person:anna": frozenset({"designer"})}

    clock.pass_s(1)
    await hub.authenticate(issuer.token(roles=["security"]))

    async def moved() -> bool:
        return (await hub.authenticate(minted)).roles == {"person:anna": frozenset({"security"})}

    await wait_until(moved, "the roles of the newest token arrive")
    assert (
        await hub.authenticate(await tokens.mint(await hub.authenticate(minted), "tier:bronze", "cnv_abcdefgh", 60))
    ).roles
    await tokens.revoke(jti=anna.session)
    await wait_until(lambda: is_refused(hub, minted), "the revocation arrives")


async def test_an_older_token_takes_back_nothing_that_a_newer_one_said(
    hub: Identities, issuer: OidcIssuer, clock: Clock
) -> None:
    old = issuer.token(roles=["admin"])
    clock.pass_s(1)
    anna = await hub.authenticate(issuer.token(roles=["designer"]))
    assert (await hub.authenticate(old)).roles == {"person:anna": frozenset({"admin"})}, "until it ends"

    assert await hub.roles_of("person:anna", [anna.session]) == {"designer"}


async def test_roles_without_a_token_are_those_of_the_newest_and_nobody_s_after_a_revocation(
    hub: Identities, issuer: OidcIssuer, tokens: Tokens, clock: Clock
) -> None:
    ours = await tokens.issue("person:anna", ttl_s=60, roles=["admin"])
    anna = await hub.authenticate(issuer.token(sid="a", roles=["sre"]))
    clock.pass_s(1)
    await hub.authenticate(issuer.token(sid="b", roles=[]))

    assert await hub.roles_of("person:anna", ["cnv_12345678", anna.session]) == set()
    assert await hub.roles_of("person:anna", [ours.sid]) == {"admin"}, "a login of ours has the table's"
    with pytest.raises(Unauthenticated):
        await hub.roles_of("person:ben", [anna.session])
    await tokens.revoke(jti=anna.session)
    with pytest.raises(Unauthenticated):
        await hub.roles_of("person:anna", ["cnv_12345678", anna.session])


async def test_a_principal_can_be_revoked_who_never_had_a_token_of_ours(
    hub: Identities, issuer: OidcIssuer, tokens: Tokens, pool: Pool
) -> None:
    token = issuer.token()
    await hub.authenticate(token)
    await Pages(pool, bytes(32)).begin("person:anna", "oidc")

    await tokens.revoke(principal="person:anna")

    await wait_until(lambda: is_refused(hub, token), "the revocation arrives")
    assert await pool.fetchval("SELECT count(*) FROM page_login") == 0, "her login to the pages ends too"
    with pytest.raises(NotFound):
        await tokens.revoke(principal="person:anna")


async def test_logins_are_on_record_without_a_word_of_the_token(
    hub: Identities, issuer: OidcIssuer, pool: Pool
) -> None:
    token = issuer.token(sid="secret-sid", roles=["sre"])
    await hub.authenticate(token)

    kept = str([dict(row) for row in await pool.fetch("SELECT * FROM oidc_login")])

    assert "person:anna" in kept
    assert [(login.person, login.roles, login.ended) for login in await Logins(pool).newest()] == [
        ("person:anna", ("sre",), False)
    ]
    assert "secret-sid" not in kept
    assert not any(part in kept for part in token.split("."))


async def test_no_conversation_can_be_named_like_a_login(hub: Identities, issuer: OidcIssuer, tokens: Tokens) -> None:
    anna = await hub.authenticate(issuer.token())
    with pytest.raises(BadInput):
        await tokens.mint(anna, "tier:silver", anna.session, 60)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({}, "BODY_BROKER_PUBLIC_URL"),
        ({"OIDC_ISSUER": "http://id.studio.example"}, "BODY_BROKER_OIDC_ISSUER"),
        ({"OIDC_JWKS_URL": "http://id.studio.example/keys"}, "BODY_BROKER_OIDC_JWKS_URL"),
        (
            {"PUBLIC_URL": "https://hub.example", "TOKEN_ISSUER": "https://id.studio.example"},
            "BODY_BROKER_TOKEN_ISSUER",
        ),
    ],
)
def test_settings_that_could_not_be_trusted_stop_the_start(more: dict[str, str], named: str) -> None:
    values = {"OIDC_ISSUER": "https://id.studio.example"} | more
    with pytest.raises(SettingsError, match=named):
        load_settings({f"BODY_BROKER_{name}": value for name, value in values.items()})


@pytest.mark.parametrize("keep_tokens", [False, True])
async def test_a_restore_taints_every_login_and_ends_it_like_our_tokens(
    hub: Identities, issuer: OidcIssuer, pool: Pool, *, keep_tokens: bool
) -> None:
    token = issuer.token(sid="a")
    session = (await hub.authenticate(token)).session

    await _settle(pool, keep_tokens=keep_tokens)

    assert await pool.fetchval("SELECT tainted_by FROM session_witness WHERE session = $1", session) == "restore"
    if keep_tokens:
        assert await hub.authenticate(token)
    else:
        await wait_until(lambda: is_refused(hub, token), "the end arrives")


def test_operators_see_the_logins_that_they_can_end(database_url: str, redis_url: str, tmp_path: Path) -> None:
    async def begin() -> None:
        async with open_pool(database_url) as pool:
            await pool.execute(
                "INSERT INTO oidc_login (session, person, roles, issued_at, expires_at, naming) "
                "VALUES ($1, 'person:anna', '{sre}', to_timestamp(0), now(), 2)",
                f"oidc_{'a' * 40}",
            )

    asyncio.run(begin())
    stores = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "SECRET_KEY": "s" * 40, "DATA_DIR": str(tmp_path)}

    shown = CliRunner().invoke(token, ["logins"], env={f"BODY_BROKER_{name}": value for name, value in stores.items()})

    assert shown.output.split() == (f"oidc_{'a' * 40} person:anna alive newest token 1970-01-01 00:00:00 sre".split())
