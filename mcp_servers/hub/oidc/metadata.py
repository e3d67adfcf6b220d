"""Owns how a client finds the issuer by itself: protected resource metadata (RFC 9728), and the 401 that points at it."""

from __future__ import annotations

import orjson

from body_broker.calls import Caller
from body_broker.settings import Settings
from mcp_servers.hub.front import CHALLENGE, Page, Route
from mcp_servers.hub.oidc.checking import resource_of

WELL_KNOWN = "/.well-known/oauth-protected-resource"
PATHS = (WELL_KNOWN, f"{WELL_KNOWN}/mcp")


def metadata_routes(settings: Settings) -> dict[str, Route]:
    """The metadata at its two places; without an issuer there is none."""
    if settings.oidc_issuer is None:
        return {}
    body = orjson.dumps(
        {
            "resource": resource_of(settings),
            "resource_name": "body-broker",
            "authorization_servers": [settings.oidc_issuer],
            "scopes_supported": settings.oidc_scopes.split(),
            "bearer_methods_supported": ["header"],
        }
    )

    async def answer(_caller: Caller | None) -> Page:
        return Page(200, body)

    return dict.fromkeys(PATHS, Route(answer, needs_identity=False))


def challenge_of(settings: Settings) -> bytes:
    """The WWW-Authenticate of a 401."""
    if settings.oidc_issuer is None:
        return CHALLENGE
    where = f"{settings.public_url or ''}{PATHS[1]}"
    return CHALLENGE + f', resource_metadata="{where}"'.encode("latin-1")
