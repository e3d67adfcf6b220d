"""Tokens of an OIDC issuer: every one that must not pass, what is asked of the issuer and when, keys that come and go."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import get_default_algorithms

from body_broker.errors import Unavailable
from body_broker.storage.postgres import Pool
from mcp_servers.hub.identity import Identities
from mcp_servers.hub.oidc.issuer import ASKED_AGAIN_S, TRUSTED_S
from mcp_servers.hub.signing import SigningKey, SigningKeys
from mcp_servers.hub.tokens import Tokens
from tests.counterparts.oidc import Key, OidcIssuer, new_key
from tests.mcp_servers.hub.clocks import Clock
from tests.mcp_servers.hub.issuers import (
    AUDIENCE,
    SECRETS,
    OpenHub,
    clock,
    hub,
    is_refused,
    issuer,
    monotonic,
    open_hub,
    refusal,
    tokens,
)
from tests.waiting import wait_until

__all__ = ["clock", "hub", "issuer", "monotonic", "open_hub", "tokens"]  # fixtures


@pytest.fixture
async def own_key(pool: Pool) -> SigningKey:
    return await SigningKeys(pool, SECRETS.derive("signing-keys")).ensure()


async def test_a_token_stands_for_its_person_with_its_own_roles_and_none_of_the_table(
    hub: Identities, issuer: OidcIssuer, tokens: Tokens, clock: Clock
) -> None:
    await tokens.issue("person:anna", ttl_s=600, roles=["admin"])

    caller = await hub.authenticate(issuer.token(roles=["engineer", "sre", "world-builder"]))

    assert (caller.chain, caller.roles) == (("person:anna",), {"person:anna": frozenset({"engineer", "sre"})})
    assert caller.expires_at == int(clock.now) + 600
    assert caller.session.startswith("oidc_")


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "RS512", "ES256", "EdDSA"])
@pytest.mark.parametrize("says", [True, False], ids=["named", "unnamed"])
async def test_every_asymmetric_algorithm_of_the_issuer_s_keys_is_taken(
    hub: Identities, issuer: OidcIssuer, algorithm: str, *, says: bool
) -> None:
    issuer.rotate(new_key(algorithm, says=says))

    assert (await hub.authenticate(issuer.token())).asker == "person:anna"


@pytest.mark.parametrize("typ", ["JWT", "jwt", "at+jwt", "application/at+jwt", None])
async def test_tokens_of_either_type_are_taken(hub: Identities, issuer: OidcIssuer, typ: str | None) -> None:
    assert await hub.authenticate(issuer.token({"typ": typ}))


async def test_one_audience_of_several_is_enough(hub: Identities, issuer: OidcIssuer) -> None:
    assert await hub.authenticate(issuer.token(aud=["account", AUDIENCE]))


def unsigned(issuer: OidcIssuer) -> str:
    return jwt.encode(issuer.claims(), None, algorithm="none", headers={"kid": issuer.key.kid})  # pyright: ignore[reportArgumentType]  # hostile


def with_the_public_key_as_secret(issuer: OidcIssuer) -> str:
    public = issuer.key.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    body = f"{_part({'alg': 'HS256', 'typ': 'JWT', 'kid': issuer.key.kid})}.{_part(issuer.claims())}"
    return f"{body}.{_b64(hmac.digest(public, body.encode(), 'sha256'))}"


def by_a_key_nobody_published(issuer: OidcIssuer) -> str:
    return OidcIssuer(url=issuer.url, audience=AUDIENCE, clock=issuer.clock).token()


def by_another_key_under_its_name(issuer: OidcIssuer) -> str:
    stranger = Key(issuer.key.kid, "RS256", new_key().private)
    return OidcIssuer(url=issuer.url, key=stranger, audience=AUDIENCE, clock=issuer.clock).token()


def by_its_key_in_an_algorithm_it_is_not_for(issuer: OidcIssuer) -> str:
    return jwt.encode(issuer.claims(), issuer.key.private, algorithm="PS256", headers={"kid": issuer.key.kid})


def without_a_key_name(issuer: OidcIssuer) -> str:
    return jwt.encode(issuer.claims(), issuer.key.private, algorithm="RS256")


def with_a_changed_payload(issuer: OidcIssuer) -> str:
    header, _, signature = issuer.token().split(".")
    return f"{header}.{_part(issuer.claims(sub='boss'))}.{signature}"


@pytest.mark.parametrize(
    "forge",
    [
        unsigned,
        with_the_public_key_as_secret,
        by_a_key_nobody_published,
        by_another_key_under_its_name,
        by_its_key_in_an_algorithm_it_is_not_for,
        without_a_key_name,
        with_a_changed_payload,
    ],
)
async def test_a_forged_token_is_not_signed_by_a_key_of_its_issuer(
    hub: Identities, issuer: OidcIssuer, forge: Callable[[OidcIssuer], str]
) -> None:
    assert await refusal(hub, forge(issuer)) == "The token is not signed by a key of its issuer."


@pytest.mark.parametrize("forge", [unsigned, with_the_public_key_as_secret, without_a_key_name])
async def test_the_issuer_is_not_even_asked_about_what_it_cannot_have_signed(
    hub: Identities, issuer: OidcIssuer, forge: Callable[[OidcIssuer], str]
) -> None:
    await refusal(hub, forge(issuer))

    assert issuer.asked == []


async def test_keys_that_are_symmetric_private_short_or_for_encryption_check_nothing(
    hub: Identities, issuer: OidcIssuer
) -> None:
    good = issuer.key.jwk()
    private: dict[str, Any] = get_default_algorithms()["RS256"].to_jwk(issuer.key.private, as_dict=True)
    issuer.published = [
        {"kty": "oct", "kid": good["kid"], "k": _b64(b"k" * 32)},
        private | {"kid": good["kid"]},
        good | {"use": "enc"},
        good | {"alg": "HS256"},
        good | {"kid": 7},
    ]

    assert await refusal(hub, issuer.token()) == "The token is not signed by a key of its issuer."


async def test_neither_issuer_s_keys_sign_for_the_other(
    hub: Identities, issuer: OidcIssuer, own_key: SigningKey, tokens: Tokens
) -> None:
    ours = (await tokens.issue("person:anna", ttl_s=60)).token
    ours_in_its_name = jwt.encode(
        issuer.claims(), own_key.private, algorithm="EdDSA", headers={"kid": own_key.kid, "typ": "JWT"}
    )
    its_in_ours = issuer.sign(jwt.decode(ours, options={"verify_signature": False}), kid=own_key.kid)

    assert await hub.authenticate(ours)
    assert await refusal(hub, ours_in_its_name) == "The token is not signed by a key of its issuer."
    assert await refusal(hub, its_in_ours) == "The token is not signed by this hub."


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"aud": "https://other.example/mcp"}, "The token is meant for another audience."),
        ({"aud": []}, "The token is meant for another audience."),
        ({"aud": None}, "The token's claims are missing or malformed: aud."),
        ({"exp": None}, "The token's claims are missing or malformed: exp."),
        ({"iat": None}, "The token's claims are missing or malformed: iat."),
        ({"sub": None}, "The token's claims are missing or malformed: sub."),
        ({"sub": ""}, "The token's claims are missing or malformed: sub."),
        ({"exp": True}, "The token's claims are missing or malformed: exp."),
        ({"exp": 0}, "The token has expired."),
        ({"act": {"sub": "robot"}}, "The token says that somebody acts for the person; only this hub says who does."),
        ({"cnf": {"jkt": "x"}}, "The token is bound to a key, which this hub cannot check."),
        ({"at_hash": "x"}, "This is not an access token."),
        ({"typ": "Refresh"}, "This is not an access token."),
        ({"azp": "anna"}, "The token is a program's, not a person's."),
        ({"idtyp": "app"}, "The token is a program's, not a person's."),
    ],
)
async def test_a_signed_token_that_is_not_a_person_s_for_this_hub_is_refused(
    hub: Identities, issuer: OidcIssuer, claims: dict[str, Any], message: str
) -> None:
    assert await refusal(hub, issuer.token(**claims)) == message


@pytest.mark.parametrize(
    ("name", "ahead_s", "message"),
    [
        ("exp", 0, "The token has expired."),
        ("nbf", 1, "The token is not valid yet."),
        ("iat", 6, "The token is not valid yet."),
    ],
)
async def test_times_are_held_to_the_second(
    hub: Identities, issuer: OidcIssuer, clock: Clock, *, name: str, ahead_s: int, message: str
) -> None:
    clock.now = float(int(clock.now))

    assert await refusal(hub, issuer.sign(issuer.claims() | {name: int(clock.now) + ahead_s})) == message


async def test_another_issuer_s_token_is_not_ours_even_where_its_key_is_known(
    hub: Identities, issuer: OidcIssuer
) -> None:
    assert await refusal(hub, issuer.token(iss=f"{issuer.url}/")) == "The token was issued by another issuer."
    assert await refusal(hub, issuer.token(iss="body-broker")) == "The token is not signed by this hub."


@pytest.mark.parametrize("typ", ["logout+jwt", "dpop+jwt", 7])
async def test_other_types_of_tokens_open_nothing(hub: Identities, issuer: OidcIssuer, typ: Any) -> None:
    assert await refusal(hub, issuer.token({"typ": typ})) in {
        "The token is of a type that opens nothing here.",
        "The token is malformed.",
    }


async def test_a_remembered_token_asks_nobody_and_still_expires(
    hub: Identities, issuer: OidcIssuer, clock: Clock
) -> None:
    token = issuer.token()
    first = await hub.authenticate(token)
    asked = list(issuer.asked)
    issuer.broken = web.Response(status=503)

    assert await hub.authenticate(token) is first, "remembered like a token of ours"
    assert (await hub.authenticate(issuer.token(jti="other"))).asker == "person:anna", "its key is known"
    assert issuer.asked == asked
    clock.pass_s(601)
    assert await refusal(hub, token) == "The token has expired."


async def test_a_new_key_is_fetched_once_and_unknown_ones_are_not_asked_for_again_and_again(
    hub: Identities, issuer: OidcIssuer, monotonic: Clock
) -> None:
    await hub.authenticate(issuer.token())
    issuer.rotate()
    assert await refusal(hub, issuer.token()) == "The token is not signed by a key of its issuer."
    monotonic.pass_s(ASKED_AGAIN_S)
    assert await hub.authenticate(issuer.token())
    asked = len(issuer.asked)
    for _ in range(20):
        await refusal(hub, by_a_key_nobody_published(issuer))

    assert len(issuer.asked) == asked


async def test_a_withdrawn_key_lets_nobody_in_any_more_remembered_or_not(
    hub: Identities, issuer: OidcIssuer, monotonic: Clock
) -> None:
    stolen = issuer.token()
    await hub.authenticate(stolen)
    issuer.rotate(keep=False)
    monotonic.pass_s(ASKED_AGAIN_S)
    await hub.authenticate(issuer.token())

    assert await refusal(hub, stolen) == "The token is not signed by a key of its issuer."


async def test_keys_are_read_again_beside_the_calls_and_a_failure_ends_nothing(
    hub: Identities, issuer: OidcIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcp_servers.hub.oidc.issuer.ASKED_EVERY_S", 0.02)
    stolen = issuer.token()
    await hub.authenticate(stolen)
    issuer.broken = web.Response(status=503)
    asked = len(issuer.asked)
    await wait_until(lambda: len(issuer.asked) > asked + 2, "it goes on asking")
    issuer.broken = None
    issuer.rotate(keep=False)

    await wait_until(lambda: is_refused(hub, stolen), "the withdrawal is seen")


async def test_keys_are_not_trusted_for_ever_while_the_issuer_is_away(
    hub: Identities, issuer: OidcIssuer, tokens: Tokens, monotonic: Clock, clock: Clock
) -> None:
    token = issuer.token(exp=int(clock.now) + 90_000)
    await hub.authenticate(token)
    issuer.broken = web.Response(status=503)
    monotonic.pass_s(TRUSTED_S)
    assert await hub.authenticate(token), "an hour is still trusted"

    monotonic.pass_s(1)
    with pytest.raises(Unavailable) as refused:
        await hub.authenticate(token)
    assert refused.value.details == {"component": "oidc"}
    assert await hub.authenticate((await tokens.issue("person:anna", ttl_s=60)).token), "ours need no issuer"

    issuer.broken = None
    monotonic.pass_s(ASKED_AGAIN_S)
    assert await hub.authenticate(token)


ANSWERS = {
    "an error": web.Response(status=500),
    "no JSON": web.Response(body=b"<html>"),
    "a list": web.Response(body=b"[]"),
    "an empty object": web.Response(body=b"{}"),
    "without an end": web.Response(body=b"[" + b" " * 2_000_000),
}


@pytest.mark.parametrize("answer", list(ANSWERS))
async def test_an_issuer_that_answers_nonsense_is_unavailable_and_nobody_gets_in(
    hub: Identities, issuer: OidcIssuer, answer: str
) -> None:
    issuer.broken = ANSWERS[answer]

    with pytest.raises(Unavailable) as refused:
        await hub.authenticate(issuer.token())
    assert refused.value.details == {"component": "oidc"}


@pytest.mark.parametrize("changed", [{"issuer": "https://evil.example"}, {"jwks_uri": "http://evil.example/keys"}])
async def test_a_discovery_document_of_another_issuer_or_with_keys_in_the_clear_is_not_followed(
    hub: Identities, issuer: OidcIssuer, changed: dict[str, str]
) -> None:
    issuer.document = changed

    with pytest.raises(Unavailable):
        await hub.authenticate(issuer.token())


async def test_a_redirect_is_not_followed(hub: Identities, issuer: OidcIssuer) -> None:
    issuer.document = {"jwks_uri": f"{issuer.url}/moved"}

    with pytest.raises(Unavailable):
        await hub.authenticate(issuer.token())


async def test_with_a_jwks_url_discovery_is_not_asked(open_hub: OpenHub, issuer: OidcIssuer) -> None:
    async with open_hub(oidc_jwks_url=f"{issuer.url}/keys", oidc_audience="another") as hub:
        assert await hub.authenticate(issuer.token(aud="another"))
        assert await refusal(hub, issuer.token()) == "The token is meant for another audience."

    assert [path.rpartition("/")[2] for path in issuer.asked] == ["keys"]


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _part(value: dict[str, Any]) -> str:
    return _b64(json.dumps(value).encode())
