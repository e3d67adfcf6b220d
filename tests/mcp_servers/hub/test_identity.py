"""Who calls: every kind of token that must not pass, and how fast a revocation, a role, a new key reaches every hub."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from body_broker.calls import Caller
from body_broker.errors import Unauthenticated, Unavailable
from body_broker.settings import Settings
from body_broker.storage.postgres import Pool, open_pool
from mcp_servers.hub.directory import OLD_AFTER_S
from mcp_servers.hub.identity import REMEMBERED_MAX, Identities, open_identities
from mcp_servers.hub.secrets import Secrets
from mcp_servers.hub.signing import SigningKey, SigningKeys
from mcp_servers.hub.tokens import Tokens
from tests.body_broker.audit.wire import wire_to
from tests.mcp_servers.hub.clocks import Clock, wall_clock
from tests.waiting import wait_until

SECRETS = Secrets(b"r" * 32)
SETTINGS = Settings.model_validate({"data_dir": Path("/nowhere")})

Claims = dict[str, Any]
OpenHub = Callable[[], AbstractAsyncContextManager[Identities]]


@pytest.fixture
def clock() -> Clock:
    return wall_clock()


@pytest.fixture
def monotonic() -> Clock:
    return Clock()


@pytest.fixture
def tokens(pool: Pool, clock: Clock) -> Tokens:
    return Tokens(pool, SETTINGS, SECRETS, clock=clock)


@pytest.fixture
def open_hub(database_url: str, clock: Clock, monotonic: Clock) -> OpenHub:
    """Another hub on the same database, with connections of its own."""

    @asynccontextmanager
    async def make() -> AsyncGenerator[Identities]:
        async with (
            open_pool(database_url) as own_pool,
            open_identities(own_pool, SETTINGS, clock=clock, monotonic=monotonic) as found,
        ):
            yield found

    return make


@pytest.fixture
async def hub(open_hub: OpenHub, key: SigningKey) -> AsyncGenerator[Identities]:
    _ = key  # the hub knows it from its start
    async with open_hub() as found:
        yield found


@pytest.fixture
async def key(pool: Pool) -> SigningKey:
    return await SigningKeys(pool, SECRETS.derive("signing-keys")).ensure()


@pytest.fixture
def claims(clock: Clock) -> Claims:
    """Claims that pass, for a test to spoil."""
    now = int(clock.now)
    return {
        "iss": "body-broker",
        "aud": "body-broker",
        "sub": "person:anna",
        "jti": "tok_12345678",
        "sid": "ses_12345678",
        "iat": now,
        "exp": now + 600,
    }


def signed(claims: Claims, key: SigningKey, **header: Any) -> str:
    return jwt.encode(claims, key.private, algorithm="EdDSA", headers={"kid": key.kid} | header)


async def refusal(hub: Identities, token: str | None) -> str:
    with pytest.raises(Unauthenticated) as refused:
        await hub.authenticate(token)
    if token:
        parts = [part for part in token.split(".") if len(part) > 8]
        assert not any(part in str(refused.value) for part in parts), "the token is repeated"
    assert refused.value.next_step
    return refused.value.message


async def test_a_token_stands_for_its_principal_with_the_roles_of_the_table(hub: Identities, tokens: Tokens) -> None:
    issued = await tokens.issue("person:anna", ttl_s=600, roles=["engineer"])
    await wait_until(lambda: _roles(hub, issued.token, "person:anna"), "the role arrives")

    assert await hub.authenticate(issued.token) == Caller(
        chain=("person:anna",),
        roles={"person:anna": frozenset({"engineer"})},
        session=issued.sid,
        expires_at=issued.expires_at,
        token_id=issued.jti,
    )


async def test_claims_of_the_fixture_pass_so_that_what_is_spoilt_below_is_what_is_refused(
    hub: Identities, claims: Claims, key: SigningKey
) -> None:
    assert (await hub.authenticate(signed(claims, key))).session == "ses_12345678"


async def test_a_call_without_a_token_is_told_so(hub: Identities) -> None:
    assert await refusal(hub, None) == await refusal(hub, "") == "The call carries no token."


@pytest.mark.parametrize(
    "text",
    ["x", "a.b", "a.b.c", "..", "e30.e30.", "Bearer x.y.z", "é.é.é", "\udc80.x.y", "a" * 8193, "\0" * 50, "=.=.="],
)
async def test_what_is_no_token_is_malformed(hub: Identities, text: str) -> None:
    assert await refusal(hub, text) in {"The token is malformed.", "The token is not signed by this hub."}


async def test_a_token_longer_than_its_bound_is_refused_unread(
    hub: Identities, claims: Claims, key: SigningKey
) -> None:
    assert await refusal(hub, signed(claims | {"more": "x" * 8192}, key)) == "The token is malformed."


def unsigned(claims: Claims, key: SigningKey) -> str:
    return jwt.encode(claims, None, algorithm="none", headers={"kid": key.kid})  # pyright: ignore[reportArgumentType]  # hostile


def with_the_public_key_as_secret(claims: Claims, key: SigningKey) -> str:
    header = _part({"alg": "HS256", "typ": "JWT", "kid": key.kid})
    body = f"{header}.{_part(claims)}"
    return f"{body}.{_b64(hmac.digest(key.private.public_key().public_bytes_raw(), body.encode(), 'sha256'))}"


def by_another_key_under_our_name(claims: Claims, key: SigningKey) -> str:
    return signed(claims, SigningKey(key.kid, Ed25519PrivateKey.generate()))


def by_a_key_nobody_knows(claims: Claims, key: SigningKey) -> str:
    return signed(claims, SigningKey("key_unknown", key.private))


def without_a_key_name(claims: Claims, key: SigningKey) -> str:
    return jwt.encode(claims, key.private, algorithm="EdDSA")


def by_rsa(claims: Claims, key: SigningKey) -> str:
    return jwt.encode(claims, generate_private_key(65537, 2048), algorithm="RS256", headers={"kid": key.kid})


def with_a_changed_payload(claims: Claims, key: SigningKey) -> str:
    header, _, signature = signed(claims, key).split(".")
    return f"{header}.{_part(claims | {'sub': 'person:boss'})}.{signature}"


def with_a_changed_signature(claims: Claims, key: SigningKey) -> str:
    body, _, signature = signed(claims, key).rpartition(".")
    return f"{body}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}"


def without_a_signature(claims: Claims, key: SigningKey) -> str:
    return signed(claims, key).rpartition(".")[0] + "."


@pytest.mark.parametrize(
    "forge",
    [
        unsigned,
        with_the_public_key_as_secret,
        by_another_key_under_our_name,
        by_a_key_nobody_knows,
        without_a_key_name,
        by_rsa,
        with_a_changed_payload,
        with_a_changed_signature,
        without_a_signature,
    ],
)
async def test_a_forged_token_is_not_signed_by_this_hub(
    hub: Identities, claims: Claims, key: SigningKey, forge: Callable[[Claims, SigningKey], str]
) -> None:
    assert await refusal(hub, forge(claims, key)) == "The token is not signed by this hub."


async def test_a_header_with_critical_extensions_is_refused(hub: Identities, claims: Claims, key: SigningKey) -> None:
    assert await refusal(hub, signed(claims, key, crit=["exp"])) == "The token is malformed."


@pytest.mark.parametrize("name", ["iss", "aud", "sub", "jti", "sid", "iat", "exp"])
async def test_a_token_without_a_required_claim_is_refused_by_its_name(
    hub: Identities, claims: Claims, key: SigningKey, name: str
) -> None:
    del claims[name]

    assert name in await refusal(hub, signed(claims, key))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("exp", -1, "The token has expired."),
        ("exp", 0, "The token has expired."),
        ("nbf", 1, "The token is not valid yet."),
        ("iat", 6, "The token is not valid yet."),
    ],
)
async def test_times_are_held_to_the_second(
    hub: Identities, claims: Claims, key: SigningKey, clock: Clock, *, name: str, value: int, message: str
) -> None:
    clock.now = float(int(clock.now))

    assert await refusal(hub, signed(claims | {name: int(clock.now) + value}, key)) == message


async def test_an_issuer_whose_clock_is_a_little_ahead_is_believed(
    hub: Identities, claims: Claims, key: SigningKey, clock: Clock
) -> None:
    assert await hub.authenticate(signed(claims | {"iat": int(clock.now) + 4, "nbf": int(clock.now)}, key))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("iss", "somebody", "The token was issued by another issuer."),
        ("aud", "another-hub", "The token is meant for another audience."),
        *[("aud", ["body-broker", "x"], "The token's claims are missing or malformed: aud.")],
        *[("exp", value, "The token's claims are missing or malformed: exp.") for value in ("never", True, 1e300, -5)],
        *[("sid", value, "The token is malformed.") for value in ("", "short", "a b c d e f", "x" * 129)],
        *[("jti", "", "The token is malformed.")],
        *[("sub", value, "The token is malformed.") for value in ("anna", "tier:platinum", "person:", "operator:x")],
        ("sub", 7, "The token's claims are missing or malformed: sub."),
        # An actor without an asker's session, an asker's session without an actor, an actor that is no tier.
        ("act", {"sub": "tier:silver", "sid": "ses_87654321"}, "The token is malformed."),
        ("asker", {"sid": "ses_87654321", "jti": None, "above": []}, "The token is malformed."),
        # Only a conversation's token is for one call.
        ("key", "job_3q2xAbCdEfGh 1.1", "The token is malformed."),
        ("key", 7, "The token's claims are missing or malformed: key."),
    ],
)
async def test_claims_that_do_not_fit_are_refused(
    hub: Identities, claims: Claims, key: SigningKey, *, name: str, value: Any, message: str
) -> None:
    assert await refusal(hub, signed(claims | {name: value}, key)) == message


async def test_only_tiers_act_and_at_most_three(hub: Identities, claims: Claims, key: SigningKey) -> None:
    def chain(*actors: str) -> Claims:
        act: Claims | None = None
        for actor in actors:
            act = {"sub": actor, "sid": "ses_87654321"} | ({"act": act} if act else {})
        return claims | {"act": act, "asker": {"sid": "ses_abcdefgh", "jti": None, "above": []}}

    three = await hub.authenticate(signed(chain("tier:gold", "tier:silver", "tier:bronze"), key))

    assert three.chain == ("person:anna", "tier:gold", "tier:silver", "tier:bronze")
    assert await refusal(hub, signed(chain(*["tier:silver"] * 4), key)) == "The token is malformed."
    assert await refusal(hub, signed(chain("person:ben"), key)) == "The token is malformed."
    assert await refusal(hub, signed(chain("tier:gold") | {"key": "apr_12345678"}, key)) == "The token is malformed."
    one_call = signed(chain("tier:gold") | {"key": "job_3q2xAbCdEfGh 1.1"}, key)
    assert (await hub.authenticate(one_call)).call_key == "job_3q2xAbCdEfGh 1.1"


async def test_a_token_remembered_still_expires(hub: Identities, tokens: Tokens, clock: Clock) -> None:
    issued = await tokens.issue("person:anna", ttl_s=60)
    await hub.authenticate(issued.token)
    clock.pass_s(60)

    assert await refusal(hub, issued.token) == "The token has expired."


async def test_a_conversation_s_token_stands_for_the_whole_chain(hub: Identities, tokens: Tokens) -> None:
    anna = await hub.authenticate((await tokens.issue("person:anna", ttl_s=600, roles=["designer"])).token)
    silver = await hub.authenticate(await tokens.mint(anna, "tier:silver", "cnv_12345678", 60))
    bronze = await hub.authenticate(await tokens.mint(silver, "tier:bronze", "cnv_abcdefgh", 60))

    assert (silver.chain, silver.session) == (("person:anna", "tier:silver"), "cnv_12345678")
    assert (silver.conversation_of, silver.ancestors) == (anna.session, ())
    assert (bronze.chain, bronze.session) == (("person:anna", "tier:silver", "tier:bronze"), "cnv_abcdefgh")
    assert (bronze.conversation_of, bronze.ancestors) == ("cnv_12345678", (anna.session,))
    assert bronze.asker == "person:anna"


async def test_tokens_of_a_retired_key_hold_and_those_of_the_new_one_too(hub: Identities, tokens: Tokens) -> None:
    old = await tokens.issue("person:anna", ttl_s=600)
    await tokens.rotate()
    new = await tokens.issue("person:anna", ttl_s=600)

    assert (await hub.authenticate(old.token)).session == (await hub.authenticate(new.token)).session


async def test_a_key_is_forgotten_once_its_last_token_has_expired(
    open_hub: OpenHub, tokens: Tokens, pool: Pool
) -> None:
    issued = await tokens.issue("person:anna", ttl_s=600)
    await tokens.rotate()
    await pool.execute("UPDATE signing_key SET verifies_until = now() WHERE retired_at IS NOT NULL")

    async with open_hub() as hub:
        assert await refusal(hub, issued.token) == "The token is not signed by this hub."


async def test_a_token_signed_by_a_key_made_a_moment_ago_passes_at_once(
    pool: Pool, clock: Clock, monotonic: Clock, tokens: Tokens
) -> None:
    async with open_identities(pool, SETTINGS, clock=clock, monotonic=monotonic) as hub:
        monotonic.pass_s(0.001)
        assert (await hub.authenticate((await tokens.issue("tier:gold", ttl_s=60)).token)).asker == "tier:gold"


async def test_a_revoked_token_dies_in_every_hub_and_its_sibling_lives(open_hub: OpenHub, tokens: Tokens) -> None:
    one, two = await tokens.issue("person:anna", ttl_s=600), await tokens.issue("person:anna", ttl_s=600)
    async with open_hub() as first, open_hub() as second:
        minted = await tokens.mint(await first.authenticate(one.token), "tier:silver", "cnv_12345678", 60)
        for hub in (first, second):
            assert await hub.authenticate(one.token)
            assert await hub.authenticate(minted)

        await tokens.revoke(jti=one.jti)

        for hub in (first, second):
            await wait_until(lambda hub=hub: _is_refused(hub, one.token), "the revocation arrives")
            assert await refusal(hub, one.token) == "The token was revoked."
            assert await refusal(hub, minted) == "The token was revoked."
            assert (await hub.authenticate(two.token)).session == one.sid


@pytest.mark.parametrize("principal", ["person:anna", "tier:silver"])
async def test_revoking_a_principal_ends_its_tokens_and_every_conversation_it_takes_part_in(
    open_hub: OpenHub, tokens: Tokens, principal: str
) -> None:
    anna, silver = await tokens.issue("person:anna", ttl_s=600), await tokens.issue("tier:silver", ttl_s=600)
    async with open_hub() as hub:
        asker = await hub.authenticate(anna.token)
        inner = await hub.authenticate(await tokens.mint(asker, "tier:silver", "cnv_12345678", 60))
        own = anna.token if principal == "person:anna" else silver.token
        doomed = [own, await tokens.mint(inner, "tier:bronze", "cnv_abcdefgh", 60)]
        other = await tokens.mint(asker, "tier:gold", "cnv_87654321", 60)

        await tokens.revoke(principal=principal)

        await wait_until(lambda: _is_refused(hub, own), "the revocation arrives")
        for token in doomed:
            assert await refusal(hub, token) == "The token was revoked."
        assert await _is_refused(hub, other) is (principal == "person:anna")
        assert (await hub.authenticate((await tokens.issue(principal, ttl_s=60)).token)).session not in {
            anna.sid,
            silver.sid,
        }


async def test_a_revocation_arrives_without_notifications_too(
    pool: Pool, tokens: Tokens, clock: Clock, monotonic: Clock
) -> None:
    await pool.execute(
        "CREATE OR REPLACE FUNCTION identity_changed() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN UPDATE identity_version SET version = version + 1; RETURN NULL; END $$"
    )
    async with open_identities(pool, SETTINGS, clock=clock, monotonic=monotonic) as hub:
        for _ in range(2):  # the first may be seen by the hub's first reading, the second only by a poll
            issued = await tokens.issue("person:anna", ttl_s=600)
            await hub.authenticate(issued.token)
            await tokens.revoke(jti=issued.jti)

            await wait_until(lambda t=issued.token: _is_refused(hub, t), "a poll sees it", timeout_s=OLD_AFTER_S)


async def test_a_role_taken_away_is_gone_from_tokens_that_were_issued_with_it(hub: Identities, tokens: Tokens) -> None:
    issued = await tokens.issue("person:anna", ttl_s=600, roles=["admin"])
    await wait_until(lambda: _roles(hub, issued.token, "person:anna"), "the role arrives")

    await tokens.set_roles("person:anna", [], by="operator:ops")

    async def gone() -> bool:
        return not await _roles(hub, issued.token, "person:anna")

    await wait_until(gone, "the role is gone")


async def test_nobody_is_let_in_when_revocations_have_not_been_known_for_five_seconds(
    database_url: str, tokens: Tokens, clock: Clock, monotonic: Clock
) -> None:
    issued = await tokens.issue("person:anna", ttl_s=600)
    async with (
        wire_to(database_url) as (wire, url),
        open_pool(url) as away,
        open_identities(away, SETTINGS, clock=clock, monotonic=monotonic) as hub,
    ):
        await hub.authenticate(issued.token)
        wire.cut()
        monotonic.pass_s(OLD_AFTER_S)
        assert await hub.authenticate(issued.token), "five seconds old is still known"

        monotonic.pass_s(0.001)
        with pytest.raises(Unavailable) as refused:
            await hub.authenticate(issued.token)
        with pytest.raises(Unavailable):
            await hub.local("person:anna")
        assert refused.value.details == {"component": "postgres"}

        await tokens.revoke(jti=issued.jti)
        wire.mend()
        monotonic.pass_s(0.001)
        await wait_until(lambda: _is_refused(hub, issued.token), "the hub asks again and learns of the revocation")


async def test_calls_that_wait_for_an_absent_database_share_the_asking(
    database_url: str, tokens: Tokens, monotonic: Clock
) -> None:
    issued = await tokens.issue("person:anna", ttl_s=600)
    async with (
        wire_to(database_url) as (wire, url),
        open_pool(url) as away,
        open_identities(away, SETTINGS, monotonic=monotonic) as hub,
    ):
        wire.cut()
        monotonic.pass_s(OLD_AFTER_S + 1)

        directory = hub._directory  # pyright: ignore[reportPrivateUsage]  # how often it asks is the point
        before = directory._asks  # pyright: ignore[reportPrivateUsage]
        found = await asyncio.gather(*[hub.authenticate(issued.token) for _ in range(50)], return_exceptions=True)

        assert {type(f) for f in found} == {Unavailable}
        assert directory._asks - before <= 5  # pyright: ignore[reportPrivateUsage]


async def test_a_hub_does_not_start_on_a_database_that_does_not_answer(database_url: str) -> None:
    async with wire_to(database_url) as (wire, url), open_pool(url) as away:
        wire.cut()
        with pytest.raises(Unavailable):
            async with open_identities(away, SETTINGS):
                pass


async def test_what_is_remembered_is_bounded(
    pool: Pool, key: SigningKey, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert REMEMBERED_MAX == 4096
    monkeypatch.setattr("mcp_servers.hub.identity.REMEMBERED_MAX", 3)
    async with open_identities(pool, SETTINGS) as hub:
        for n in range(10):
            await hub.authenticate(signed(claims | {"jti": f"tok_{n:08}"}, key))

        assert len(hub._remembered) == 3  # pyright: ignore[reportPrivateUsage]  # the bound is the point


async def _roles(hub: Identities, token: str, principal: str) -> frozenset[str]:
    return (await hub.authenticate(token)).roles.get(principal, frozenset())


async def _is_refused(hub: Identities, token: str) -> bool:
    try:
        await hub.authenticate(token)
    except Unauthenticated:
        return True
    except Unavailable:
        return False
    return False


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _part(value: Claims) -> str:
    return _b64(json.dumps(value).encode())
