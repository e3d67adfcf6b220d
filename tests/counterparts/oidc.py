"""Owns an OpenID Connect issuer over HTTP: discovery, keys that rotate, authorization code with PKCE enforced, registration."""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlencode

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa_key
from jwt.algorithms import get_default_algorithms

Claims = dict[str, Any]
REALM = "/realms/studio"
CODE_S = 60


@dataclass(frozen=True)
class Key:
    """A signing key and the only algorithm it is published for; `says` whether its JWK names it."""

    kid: str
    algorithm: str
    private: Any
    says: bool = True

    def jwk(self) -> Claims:
        public = get_default_algorithms()[self.algorithm].to_jwk(self.private.public_key(), as_dict=True)
        public.pop("key_ops", None)
        return dict(public) | {"kid": self.kid, "use": "sig"} | ({"alg": self.algorithm} if self.says else {})


def new_key(algorithm: str = "RS256", *, says: bool = True) -> Key:
    """A key of the kind that the algorithm needs."""
    kid = f"kid-{secrets.token_hex(4)}"
    if algorithm == "EdDSA":
        return Key(kid, algorithm, Ed25519PrivateKey.generate(), says)
    if algorithm == "ES256":
        return Key(kid, algorithm, generate_ec_key(SECP256R1()), says)
    return Key(kid, algorithm, generate_rsa_key(65537, 2048), says)


@dataclass
class _Code:
    client: str
    redirect_uri: str
    challenge: str
    nonce: str | None
    resource: str | None
    scope: str
    account: Claims
    made_at: float


@dataclass
class Client:
    """A registered client."""

    redirect_uris: list[str]
    secret: str | None = None


@dataclass
class OidcIssuer:
    """The issuer, and what it saw.

    Attributes:
        url: Its identifier.
        key: What it signs with.
        published: What its JWKS lists, as it stands there.
        account: Whoever sits at the browser: claims of both tokens, `sub` among them.
        clients: By id.
        audience: The `aud` of access tokens where the client names no resource.
        asked: The path of each request.
        refuses: The error that its authorization endpoint answers with, if any.
        refuses_codes: The same of its token endpoint.
        broken: Answers everything with this status, or body, in place of the truth.
        spoil: Changes the claims of an id token before it is signed.
        document: Changes the discovery document.
        clock: Unix seconds.
    """

    url: str = ""
    key: Key = field(default_factory=new_key)
    published: list[Claims] = field(default_factory=list[Claims])
    account: Claims = field(default_factory=lambda: {"sub": "anna", "sid": "sso-1"})
    clients: dict[str, Client] = field(default_factory=dict[str, Client])
    audience: str = "hub"
    asked: list[str] = field(default_factory=list[str])
    refuses: str | None = None
    refuses_codes: str | None = None
    broken: web.Response | None = None
    spoil: Callable[[Claims], Claims] = dict
    document: Claims = field(default_factory=dict[str, Any])
    clock: Callable[[], float] = time.time  # noqa: TID251  # an issuer has a clock of its own
    _codes: dict[str, _Code] = field(default_factory=dict[str, _Code])

    def __post_init__(self) -> None:
        self.published = self.published or [self.key.jwk()]

    def rotate(self, key: Key | None = None, *, keep: bool = True) -> Key:
        """Sign with a new key from now on; the old one stays published, or is withdrawn."""
        self.key = key or new_key()
        self.published = [*(self.published if keep else []), self.key.jwk()]
        return self.key

    def claims(self, **more: Any) -> Claims:
        """The claims of an access token of the account, with others beside or in place of them; None takes one away."""
        now = int(self.clock())
        base: Claims = {"iss": self.url, "aud": self.audience, "iat": now, "exp": now + 600}
        return {name: value for name, value in (base | self.account | more).items() if value is not None}

    def token(self, header: Mapping[str, Any] | None = None, **more: Any) -> str:
        """An access token."""
        return self.sign(self.claims(**more), **(header or {}))

    def sign(self, claims: Claims, **header: Any) -> str:
        return jwt.encode(
            claims,
            self.key.private,
            algorithm=self.key.algorithm,
            headers={"kid": self.key.kid, "typ": "at+jwt"} | header,
        )

    async def discover(self, _request: web.Request) -> web.StreamResponse:
        return web.json_response(
            {
                "issuer": self.url,
                "jwks_uri": f"{self.url}/keys",
                "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token",
                "registration_endpoint": f"{self.url}/register",
                "response_types_supported": ["code"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["RS256"],
                "code_challenge_methods_supported": ["S256"],
                "token_endpoint_auth_methods_supported": ["client_secret_basic", "none"],
                "authorization_response_iss_parameter_supported": True,
                "scopes_supported": ["openid", "offline_access", "everything"],
            }
            | self.document
        )

    async def keys(self, _request: web.Request) -> web.StreamResponse:
        return web.json_response({"keys": self.published})

    async def move(self, _request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound(f"{self.url}/keys")

    async def register(self, request: web.Request) -> web.StreamResponse:
        wanted = await request.json()
        name = f"client-{len(self.clients) + 1}"
        self.clients[name] = Client(wanted["redirect_uris"])
        return web.json_response(wanted | {"client_id": name, "token_endpoint_auth_method": "none"}, status=201)

    async def authorize(self, request: web.Request) -> web.StreamResponse:
        """As if the account had logged in and agreed. What does not fit is never redirected anywhere."""
        asked = request.query
        client = self.clients.get(asked.get("client_id", ""))
        if client is None or asked.get("redirect_uri") not in client.redirect_uris:
            return web.Response(status=400, text="unknown client or redirect URI")
        answer: dict[str, str] = {"iss": self.url}
        if "state" in asked:
            answer["state"] = asked["state"]
        if self.refuses:
            answer |= {"error": self.refuses, "error_description": "<b>words of the issuer</b>"}
        elif (
            asked.get("response_type") != "code"
            or "openid" not in asked.get("scope", "").split()
            or asked.get("code_challenge_method") != "S256"
            or len(asked.get("code_challenge", "")) != 43
        ):
            answer["error"] = "invalid_request"
        else:
            answer["code"] = code = secrets.token_urlsafe(24)
            self._codes[code] = _Code(
                client=asked["client_id"],
                redirect_uri=asked["redirect_uri"],
                challenge=asked["code_challenge"],
                nonce=asked.get("nonce"),
                resource=asked.get("resource"),
                scope=asked["scope"],
                account=dict(self.account),
                made_at=self.clock(),
            )
        raise web.HTTPFound(f"{asked['redirect_uri']}?{urlencode(answer)}")

    async def redeem(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        if self.refuses_codes:
            return _error(self.refuses_codes)
        client_id, secret = str(form.get("client_id", "")), None
        kind, _, basic = request.headers.get("authorization", "").partition(" ")
        if kind == "Basic":
            client_id, secret = (unquote(part) for part in base64.b64decode(basic).decode().split(":", 1))
        client = self.clients.get(client_id)
        if client is None or client.secret != secret:
            return _error("invalid_client", 401)
        code = self._codes.pop(str(form.get("code")), None)
        if code is None or self.clock() > code.made_at + CODE_S or form.get("grant_type") != "authorization_code":
            return _error("invalid_grant")
        proof = base64.urlsafe_b64encode(hashlib.sha256(str(form.get("code_verifier")).encode()).digest())
        if (code.client, code.redirect_uri, code.challenge) != (
            client_id,
            form.get("redirect_uri"),
            proof.rstrip(b"=").decode(),
        ):
            return _error("invalid_grant")
        now = int(self.clock())
        access = self.claims(**code.account, aud=code.resource or self.audience, azp=client_id)
        ident = {"iss": self.url, "aud": client_id, "iat": now, "exp": now + 300, **code.account, "at_hash": "x"}
        if code.nonce is not None:
            ident["nonce"] = code.nonce
        return web.json_response(
            {
                "access_token": self.sign(access),
                "id_token": self.sign(self.spoil(ident), typ="JWT"),
                "token_type": "Bearer",
                "expires_in": 600,
            }
        )

    @web.middleware
    async def watch(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.asked.append(request.path)
        if self.broken is not None:
            return web.Response(status=self.broken.status, body=self.broken.body, headers=self.broken.headers)
        return await handler(request)


def _error(code: str, status: int = 400) -> web.Response:
    return web.json_response({"error": code, "error_description": "<b>words of the issuer</b>"}, status=status)


@asynccontextmanager
async def oidc_issuer(**more: Any) -> AsyncGenerator[OidcIssuer]:  # fields of OidcIssuer
    """An issuer on a free port."""
    issuer = OidcIssuer(**more)
    app = web.Application(middlewares=[issuer.watch])
    app.router.add_get(f"{REALM}/.well-known/openid-configuration", issuer.discover)
    app.router.add_get(f"{REALM}/keys", issuer.keys)
    app.router.add_get(f"{REALM}/moved", issuer.move)
    app.router.add_get(f"{REALM}/authorize", issuer.authorize)
    app.router.add_post(f"{REALM}/token", issuer.redeem)
    app.router.add_post(f"{REALM}/register", issuer.register)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    issuer.url = f"http://{host}:{port}{REALM}"
    try:
        yield issuer
    finally:
        await runner.cleanup()
