"""Logging in by an OIDC issuer: a client that finds it from a 401 by itself, and a person at the hub's pages."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import httpx2
import pytest
from aiohttp import web
from mcp import Client
from mcp.client.auth import OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import AuthorizationCodeResult, OAuthClientInformationFull, OAuthClientMetadata, OAuthToken
from pydantic import AnyUrl

from body_broker.errors import BodyBrokerError, Denied, Unauthenticated, Unavailable
from mcp_servers.hub.identity import Identities
from mcp_servers.hub.oidc.login import OidcLogin
from mcp_servers.hub.runtime import open_runtime
from mcp_servers.hub.serve import Address, listening
from tests.counterparts.oidc import Client as Registered
from tests.counterparts.oidc import OidcIssuer, oidc_issuer
from tests.mcp_servers.hub.issuers import HUB, OpenHub, clock, issuer, monotonic, open_hub
from tests.ports import free_port

__all__ = ["clock", "issuer", "monotonic", "open_hub"]  # fixtures

BACK = "http://127.0.0.1:7777/callback"
CALLBACK = f"{HUB}/login/oidc/callback"


class Kept:
    """Where the SDK's client keeps what it was given."""

    tokens: OAuthToken | None = None
    client: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


async def visit(url: str) -> dict[str, str]:
    """As a browser whose person is logged in at the issuer: what it brings back to the redirect URI."""
    async with httpx2.AsyncClient(timeout=60) as browser:
        answer = await browser.get(url)
    assert answer.status_code == 302, answer.text
    return dict(parse_qsl(urlsplit(answer.headers["location"]).query))


@pytest.fixture
async def served(settings_for: Any, redis: object) -> AsyncGenerator[tuple[str, OidcIssuer]]:
    """The URL of a hub over HTTP, and the issuer it believes."""
    _ = redis
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    async with (
        oidc_issuer(account={"sub": "anna", "sid": "sso-1", "roles": ["engineer"]}) as issuer,
        open_runtime(settings_for(public_url=f"{base}/", oidc_issuer=issuer.url, oidc_client_id="pages")) as runtime,
        listening(runtime, Address("127.0.0.1", port)),
    ):
        yield base, issuer


async def test_the_sdk_s_client_goes_from_a_401_to_a_tool_call_by_itself(served: tuple[str, OidcIssuer]) -> None:
    base, issuer = served
    came: list[dict[str, str]] = []
    kept = Kept()

    async def send_browser(url: str) -> None:
        came.append(await visit(url))

    async def wait_for_browser() -> AuthorizationCodeResult:
        return AuthorizationCodeResult(code=came[-1]["code"], state=came[-1]["state"], iss=came[-1]["iss"])

    wanted = OAuthClientMetadata(
        redirect_uris=[AnyUrl(BACK)], client_name="test", token_endpoint_auth_method="none"
    )  # no secret
    login = OAuthClientProvider(f"{base}/mcp", wanted, kept, send_browser, wait_for_browser)
    async with (
        httpx2.AsyncClient(auth=login, timeout=60) as http,
        Client(streamable_http_client(f"{base}/mcp", http_client=http)) as client,
    ):
        told: Any = (await client.call_tool("whoami", {})).structured_content

    assert told["chain"] == ["person:anna"]
    assert told["roles"] == {"person:anna": ["engineer"]}
    assert len(came) == 1, "one login for everything"
    assert kept.tokens is not None
    assert "everything" not in (kept.tokens.scope or "")
    async with httpx2.AsyncClient(timeout=60) as http:
        again = await http.post(f"{base}/mcp", headers={"authorization": f"Bearer {kept.tokens.access_token}x"})
    assert again.status_code == 401
    assert issuer.asked.count("/realms/studio/keys") == 1


async def test_metadata_is_at_both_places_and_the_401_points_there(served: tuple[str, OidcIssuer]) -> None:
    base, issuer = served
    well_known = f"{base}/.well-known/oauth-protected-resource"
    async with httpx2.AsyncClient(timeout=60) as http:
        refused = await http.post(f"{base}/mcp", json={})
        told = [(await http.get(url)).json() for url in (well_known, f"{well_known}/mcp")]
        elsewhere = await http.get(f"{well_known}/other")
        evil = await http.get(f"{well_known}/mcp", headers={"host": "evil.example"})

    assert refused.headers["www-authenticate"] == (
        f'Bearer realm="body-broker", error="invalid_token", resource_metadata="{well_known}/mcp"'
    )
    assert (
        told[0]
        == told[1]
        == {
            "resource": f"{base}/mcp",
            "resource_name": "body-broker",
            "authorization_servers": [issuer.url],
            "scopes_supported": ["openid"],
            "bearer_methods_supported": ["header"],
        }
    )
    assert (elsewhere.status_code, evil.status_code) == (401, 421)


async def test_without_an_issuer_there_is_no_metadata_and_the_401_is_as_ever(settings_for: Any, redis: object) -> None:
    _ = redis
    async with (
        open_runtime(settings_for()) as runtime,
        listening(runtime, Address("127.0.0.1", 0)) as hub,
        httpx2.AsyncClient(timeout=60) as http,
    ):
        token = (await runtime.tokens.issue("person:anna", ttl_s=60)).token
        base = hub.url.removesuffix("/mcp")
        refused = await http.post(hub.url, json={})
        for place in ("", "/mcp"):
            url = f"{base}/.well-known/oauth-protected-resource{place}"
            assert (await http.get(url)).status_code == 401
            assert (await http.get(url, headers={"authorization": f"Bearer {token}"})).status_code == 404

    assert refused.headers["www-authenticate"] == 'Bearer realm="body-broker", error="invalid_token"'


async def test_an_issuer_that_is_down_is_told_as_503(served: tuple[str, OidcIssuer]) -> None:
    base, issuer = served
    issuer.broken = web.Response(status=502)
    async with httpx2.AsyncClient(timeout=60) as http:
        answer = await http.post(f"{base}/mcp", headers={"authorization": f"Bearer {issuer.token()}"})

    assert answer.status_code == 503
    assert answer.json()["error"]["component"] == "oidc"


@pytest.fixture
async def pages(open_hub: OpenHub, issuer: OidcIssuer) -> AsyncGenerator[Identities]:
    issuer.clients["pages"] = Registered([CALLBACK], "a secret: with +signs/")
    async with open_hub(
        oidc_client_id="pages", oidc_client_secret="a secret: with +signs/", oidc_scopes="openid profile"
    ) as found:
        yield found


def login_of(pages: Identities) -> OidcLogin:
    assert pages.oidc is not None
    assert pages.oidc.login is not None
    return pages.oidc.login


async def test_a_person_logs_in_at_the_issuer_and_is_who_it_says(pages: Identities) -> None:
    url, kept = await login_of(pages).begin()

    assert await login_of(pages).finish(await visit(url), kept) == "person:anna"


async def test_what_is_kept_and_what_is_seen_give_away_nothing_alone(pages: Identities) -> None:
    url, kept = await login_of(pages).begin("http://localhost:8080/")
    asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}

    assert asked["redirect_uri"] == "http://localhost:8080/login/oidc/callback"
    assert asked["scope"] == "openid profile"
    assert (asked["response_type"], asked["code_challenge_method"]) == ("code", "S256")
    assert not {asked["state"], asked["nonce"]} & {str(value) for value in kept.values()}
    assert kept["state"] == hashlib.sha256(asked["state"].encode()).hexdigest()


async def refusal(pages: Identities, query: dict[str, str], kept: Any) -> BodyBrokerError:
    with pytest.raises(BodyBrokerError) as refused:
        await login_of(pages).finish(query, kept)
    assert "words of the issuer" not in str(refused.value)
    return refused.value


async def test_an_answer_to_another_login_is_refused_before_anything_is_sent(
    pages: Identities, issuer: OidcIssuer
) -> None:
    url, kept = await login_of(pages).begin()
    other, _ = await login_of(pages).begin()
    mine, foreign = await visit(url), await visit(other)
    asked = len(issuer.asked)

    for query in (foreign, {"code": mine["code"]}, mine | {"state": ""}):
        assert isinstance(await refusal(pages, query, kept), Unauthenticated)
    for iss in ("https://evil.example", ""):
        assert "another issuer" in (await refusal(pages, mine | {"iss": iss}, kept)).message
    without = {name: value for name, value in mine.items() if name != "iss"}
    assert "another issuer" in (await refusal(pages, without, kept)).message
    assert len(issuer.asked) == asked


async def test_a_code_of_another_login_is_worth_nothing(pages: Identities) -> None:
    url, kept = await login_of(pages).begin()
    other, _ = await login_of(pages).begin()
    mine, stolen = await visit(url), await visit(other)

    told = await refusal(pages, mine | {"code": stolen["code"]}, kept)

    assert isinstance(told, Denied)
    assert told.message == "The issuer does not accept the code: it is old, used, or another's."


async def test_a_code_is_worth_something_once(pages: Identities) -> None:
    url, kept = await login_of(pages).begin()
    query = await visit(url)
    await login_of(pages).finish(query, kept)

    assert isinstance(await refusal(pages, query, kept), Denied)


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("access_denied", Denied, "The issuer says that access was denied."),
        ("temporarily_unavailable", Unavailable, "The issuer says that it is busy."),
        ("made_up", Denied, "The issuer did not log anybody in, and gave no reason that is known here."),
    ],
)
async def test_what_the_issuer_refuses_is_told_in_our_words(
    pages: Identities, issuer: OidcIssuer, *, code: str, kind: type[BodyBrokerError], message: str
) -> None:
    issuer.refuses = code
    url, kept = await login_of(pages).begin()
    query = await visit(url)
    issuer.refuses, issuer.refuses_codes = None, code
    later, kept_later = await login_of(pages).begin()

    for told in (await refusal(pages, query, kept), await refusal(pages, await visit(later), kept_later)):
        assert isinstance(told, kind)
        assert told.message == message


SPOILT: dict[str, tuple[dict[str, Any], str]] = {
    "nonce": ({"nonce": "another"}, "The id token belongs to another login."),
    "no nonce": ({"nonce": None}, "The id token belongs to another login."),
    "audience": ({"aud": "another"}, "The token is meant for another audience."),
    "party": ({"aud": ["pages", "another"]}, "The id token was made for another client."),
    "azp": ({"azp": "another"}, "The id token was made for another client."),
    "issuer": ({"iss": "https://evil.example"}, "The token was issued by another issuer."),
    "expired": ({"exp": 1}, "The token has expired."),
    "name": ({"sub": "Nobody Here"}, "What the token's claim 'sub' says is no person's name here."),
}


@pytest.mark.parametrize("what", list(SPOILT))
async def test_an_id_token_that_does_not_hold_logs_nobody_in(pages: Identities, issuer: OidcIssuer, what: str) -> None:
    changed, message = SPOILT[what]
    issuer.spoil = lambda claims: {name: value for name, value in (claims | changed).items() if value is not None}
    url, kept = await login_of(pages).begin()

    assert (await refusal(pages, await visit(url), kept)).message == message


async def test_an_id_token_signed_by_a_stranger_logs_nobody_in(pages: Identities, issuer: OidcIssuer) -> None:
    url, kept = await login_of(pages).begin()
    issuer.key = OidcIssuer().key

    assert isinstance(await refusal(pages, await visit(url), kept), Unauthenticated)


async def test_the_page_and_the_bearer_token_mean_the_same_account(pages: Identities, issuer: OidcIssuer) -> None:
    await pages.authenticate(issuer.token(sub="anna"))
    issuer.account = {"sub": "anna"}
    url, kept = await login_of(pages).begin()
    assert await login_of(pages).finish(await visit(url), kept) == "person:anna"


async def test_an_issuer_that_is_down_begins_no_login(pages: Identities, issuer: OidcIssuer) -> None:
    issuer.broken = web.Response(status=500)

    with pytest.raises(Unavailable):
        await login_of(pages).begin()


async def test_endpoints_in_the_clear_are_not_used(pages: Identities, issuer: OidcIssuer) -> None:
    issuer.document = {"token_endpoint": "http://id.studio.example/token"}

    with pytest.raises(Unavailable):
        await login_of(pages).begin()


async def test_without_a_client_id_nobody_logs_in_that_way(open_hub: OpenHub) -> None:
    async with open_hub() as hub:
        assert hub.oidc is not None
        assert hub.oidc.login is None


async def test_the_page_s_login_goes_to_the_issuer_and_back_to_where_one_wanted_to_go(
    served: tuple[str, OidcIssuer],
) -> None:
    base, issuer = served
    issuer.clients["pages"] = Registered([f"{base}/login/oidc/callback"])
    async with httpx2.AsyncClient(base_url=base, timeout=60) as browser:
        page = await browser.get("/login", params={"next": "/approvals?x=1"})
        assert "Log in with your organisation" in page.text
        sent = await browser.get("/login/oidc", params={"next": "/approvals"})
        query = await visit(sent.headers["location"])
        async with httpx2.AsyncClient(base_url=base, timeout=60) as elsewhere:
            stolen = await elsewhere.get("/login/oidc/callback", params=query)
            assert stolen.status_code == 403, "another browser's answer"
            assert (await elsewhere.get("/approvals")).status_code == 303, "to the login"
        back = await browser.get("/login/oidc/callback", params=query)
        assert (back.status_code, back.headers["location"]) == (303, "/approvals")
        inbox = await browser.get("/approvals")
        again = await browser.get("/login/oidc/callback", params=query)

    assert inbox.status_code == 200
    assert "anna" in inbox.text
    assert again.status_code in {302, 303, 403}, "once: whoever is logged in already goes on"


async def test_the_page_says_that_a_client_id_is_missing(settings_for: Any, redis: object, issuer: OidcIssuer) -> None:
    _ = redis
    port = free_port()
    async with (
        open_runtime(settings_for(public_url=f"http://127.0.0.1:{port}", oidc_issuer=issuer.url)) as runtime,
        listening(runtime, Address("127.0.0.1", port)),
        httpx2.AsyncClient(timeout=60) as http,
    ):
        page = await http.get(f"http://127.0.0.1:{port}/login")

    assert "BODY_BROKER_OIDC_CLIENT_ID is not set" in page.text
    assert "/login/oidc" not in page.text
