"""Owns logging in to an upstream: a person opens the page it names, and what comes back to this machine becomes the hub's grant."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import cast, get_args
from urllib.parse import parse_qs, urljoin, urlsplit

from mcp.client.auth import OAuthClientProvider
from mcp.shared.auth import AuthorizationCodeResult, OAuthClientInformationFull, OAuthClientMetadata, OAuthToken
from pydantic import AnyUrl

from body_broker.calls import Json
from body_broker.errors import BodyBrokerError, NotConfigured, Unavailable
from mcp_servers.upstreams.auth import GRANT, Credentials, Grant, Method
from mcp_servers.upstreams.model import Upstream
from mcp_servers.upstreams.wire import careful_client, is_here

WAIT_S = 300.0
_REVISION = "2026-07-28"
_HEAD_BYTES_MAX = 16_384
_HEAD_WAIT_S = 5.0
_PATH = "/callback"
_DONE = "The hub is logged in. You can close this page."
_UNKNOWN = "This is no answer to a login that runs here."


class _Kept:
    """The library's storage, for one login."""

    def __init__(self, client: OAuthClientInformationFull | None) -> None:
        self.tokens: OAuthToken | None = None
        self.client = client

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


async def login(
    upstream: Upstream,
    credentials: Credentials,
    *,
    show: Callable[[str], None],
    port: int = 0,
    client_id: str | None = None,
    client_secret: str | None = None,
    wait_s: float = WAIT_S,
) -> None:
    """Log in: the person who is shown the page allows it there; the grant is kept, and renewed from then on.

    Args:
        upstream: One whose auth is oauth.
        credentials: Keep the grant.
        show: Shows the address of the page.
        port: Where the page sends the answer, on this machine; 0 is any.
        client_id: Where the server knows this hub already; else it registers.
        client_secret: With it.
        wait_s: How long the person may take.

    Raises:
        NotConfigured: The server asks for no login, or the person did not allow it.
        Unavailable: It did not come to an end.
    """
    assert upstream.url is not None
    try:
        async with asyncio.timeout(wait_s), _listening(port) as callback:
            metadata = OAuthClientMetadata(
                redirect_uris=[AnyUrl(callback.url)],
                client_name="Body Broker",
                token_endpoint_auth_method="none" if client_secret is None else "client_secret_basic",
            )
            kept = _Kept(_known(metadata, client_id, client_secret))

            async def redirect(url: str) -> None:
                callback.expect(_page(url, upstream))
                show(url)

            provider = OAuthClientProvider(upstream.url, metadata, kept, redirect, callback.answered)
            await _asked(upstream.url, provider)
            grant = _grant(provider, kept, upstream)
    except BodyBrokerError:
        raise
    except Exception as error:  # whatever the library raises; its text may be the server's
        raise Unavailable(
            f"The login to the upstream server {upstream.name} did not come to an end.",
            next_step="Try again; if it goes on, ask the people who run that server whether it lets clients register.",
            details={"component": f"upstream {upstream.name}"},
        ) from error
    await credentials.put(GRANT, grant.written())


async def _asked(url: str, provider: OAuthClientProvider) -> None:
    """One request that changes nothing, so that it asks who we are."""
    heads = {
        "accept": "application/json, text/event-stream",
        "mcp-protocol-version": _REVISION,
        "mcp-method": "server/discover",
    }
    body: dict[str, Json] = {"jsonrpc": "2.0", "id": 1, "method": "server/discover", "params": {}}
    async with (
        await careful_client(url) as client,
        client.stream("POST", url, json=body, headers=heads, auth=provider),
    ):
        pass  # what it answers to the request itself does not matter


def _known(
    metadata: OAuthClientMetadata, client_id: str | None, client_secret: str | None
) -> OAuthClientInformationFull | None:
    if client_id is None:
        return None
    return OAuthClientInformationFull(
        client_id=client_id,
        client_secret=client_secret,
        redirect_uris=metadata.redirect_uris,
        token_endpoint_auth_method=metadata.token_endpoint_auth_method,
    )


def _page(url: str, upstream: Upstream) -> str:
    """The state that the page's answer will have.

    Raises:
        NotConfigured: It is a page that nobody should open.
    """
    parts = urlsplit(url)
    here = parts.scheme == "http" and is_here(url) and is_here(upstream.url or "")
    states = parse_qs(parts.query).get("state", [])
    if not (parts.scheme == "https" or here) or parts.username is not None or len(states) != 1:
        raise NotConfigured(
            f"The upstream server {upstream.name} names a page for the login that is no https page.",
            next_step="Tell the people who run that server.",
            details={"upstream": upstream.name},
        )
    return states[0]


def _grant(provider: OAuthClientProvider, kept: _Kept, upstream: Upstream) -> Grant:
    context = provider.context
    if kept.tokens is None or kept.client is None:
        raise NotConfigured(
            f"The upstream server {upstream.name} asked for no login.",
            next_step='Take auth = "none", or auth = "token" where it wants a token.',
            details={"upstream": upstream.name},
        )
    known = context.oauth_metadata
    endpoint = str(known.token_endpoint) if known is not None else urljoin(upstream.url or "", "/token")
    method = kept.client.token_endpoint_auth_method or "none"
    return Grant(
        access=kept.tokens.access_token,
        refresh=kept.tokens.refresh_token,
        lives_s=kept.tokens.expires_in,
        endpoint=endpoint,
        client_id=kept.client.client_id or "",
        client_secret=kept.client.client_secret,
        method=cast("Method", method) if method in get_args(Method) else "none",
        resource=context.get_resource_url() if context.should_include_resource_param(_REVISION) else None,
        scope=kept.tokens.scope,
    )


class _Callback:
    """Waits for the page's answer; what has another state is none."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._state: str | None = None
        self._answer: asyncio.Future[AuthorizationCodeResult] = asyncio.get_running_loop().create_future()

    def expect(self, state: str) -> None:
        """The state that the answer has."""
        self._state = state

    async def answered(self) -> AuthorizationCodeResult:
        """The answer.

        Raises:
            NotConfigured: It says no.
        """
        return await self._answer

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a browser."""
        with suppress(ConnectionError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(_HEAD_WAIT_S):
                head = await reader.readuntil(b"\r\n\r\n")
            good = self._took(head.split(b"\r\n", 1)[0].decode("ascii", errors="replace"))
            status, text = ("200 OK", _DONE) if good else ("400 Bad Request", _UNKNOWN)
            writer.write(
                f"HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {len(text)}\r\n"
                f"cache-control: no-store\r\nreferrer-policy: no-referrer\r\nconnection: close\r\n\r\n{text}".encode()
            )
            await writer.drain()
        writer.close()

    def _took(self, line: str) -> bool:
        parts = line.split(" ")
        if len(parts) != 3 or parts[0] != "GET" or self._state is None or self._answer.done():  # noqa: PLR2004 - method, target, version
            return False
        target = urlsplit(parts[1])
        said = {name: values[0] for name, values in parse_qs(target.query).items()}
        if target.path != _PATH or not secrets.compare_digest(said.get("state", "").encode(), self._state.encode()):
            return False
        if "code" not in said:
            self._answer.set_exception(
                NotConfigured("The login was not allowed.", next_step="Log in again, and allow it.")
            )
            return True
        self._answer.set_result(AuthorizationCodeResult(code=said["code"], state=said["state"], iss=said.get("iss")))
        return True


@asynccontextmanager
async def _listening(port: int) -> AsyncGenerator[_Callback]:
    callback: _Callback | None = None

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert callback is not None
        await callback.carry(reader, writer)

    server = await asyncio.start_server(carry, "127.0.0.1", port, limit=_HEAD_BYTES_MAX)
    callback = _Callback(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{_PATH}")
    async with server:
        yield callback
