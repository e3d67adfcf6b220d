"""Owns how the hub shows itself to an upstream: its secrets sealed in PostgreSQL, a token, a grant of OAuth that is renewed once for all."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol, cast
from urllib.parse import quote

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from body_broker.errors import NotConfigured, Unavailable
from body_broker.storage.postgres import LOST, Pool
from body_broker.text import canonical_json
from mcp_servers.upstreams.model import Upstream
from mcp_servers.upstreams.wire import bare_client, bounded_body

TOKEN, GRANT = "token", "oauth"
_LEASE = "oauth lease"
_LEASE_S = 20.0
_POLL_S = 0.1
_EARLY_S = 30.0  # a token that ends so soon is not shown any more
_NONCE_BYTES = 12
_OK, _REFUSED = 200, frozenset({400, 401, 403})

_GET = """
SELECT sealed, extract(epoch FROM clock_timestamp() - changed_at)::float8 AS age_s FROM upstream_secret
WHERE upstream = $1 AND name = $2
"""
_PUT = """
INSERT INTO upstream_secret (upstream, name, sealed) VALUES ($1, $2, $3)
ON CONFLICT (upstream, name) DO UPDATE SET sealed = excluded.sealed, changed_at = clock_timestamp()
"""
_DROP = "DELETE FROM upstream_secret WHERE upstream = $1 AND name = $2"
_NAMES = "SELECT name FROM upstream_secret WHERE upstream = $1 ORDER BY name"
_TAKE = """
INSERT INTO upstream_secret (upstream, name, sealed) VALUES ($1, $2, $3)
ON CONFLICT (upstream, name) DO UPDATE SET sealed = excluded.sealed, changed_at = clock_timestamp()
  WHERE upstream_secret.changed_at < clock_timestamp() - make_interval(secs => $4::float8)
RETURNING true
"""
_GIVE_BACK = "DELETE FROM upstream_secret WHERE upstream = $1 AND name = $2 AND sealed = $3"

Method = Literal["none", "client_secret_basic", "client_secret_post"]


def variable(name: str) -> str:
    """The name under which the value of a `secret_env` variable is kept."""
    return f"env:{name}"


class Credentials:
    """The secrets of one upstream, each sealed for its upstream and its name: moved to another row it does not open.

    Args:
        pool: The database.
        key: 32 bytes, derived for `upstreams` from the root key.
        upstream: Its name.
    """

    def __init__(self, pool: Pool, key: bytes, upstream: str) -> None:
        self._pool, self._seal, self.upstream = pool, AESGCM(key), upstream

    async def get(self, name: str) -> str | None:
        """A secret; None where there is none.

        Raises:
            NotConfigured: It was sealed under another root key, or changed.
            Unavailable: The database is away.
        """
        found = await self.aged(name)
        return found[0] if found is not None else None

    async def aged(self, name: str) -> tuple[str, float] | None:
        """A secret, and how many seconds ago it was put there; raises as `get`."""
        try:
            row = await self._pool.fetchrow(_GET, self.upstream, name)
        except LOST as error:
            raise _store_away() from error
        if row is None:
            return None
        sealed = row["sealed"]
        try:
            text = self._seal.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], self._place(name)).decode()
        except (InvalidTag, ValueError) as error:
            raise NotConfigured(
                f"A secret of the upstream server {self.upstream} cannot be opened with this root key.",
                next_step=f"Have an operator give it again: `body-broker upstream token {self.upstream}`, or login.",
                details={"upstream": self.upstream},
            ) from error
        return text, row["age_s"]

    async def put(self, name: str, text: str) -> None:
        """Keep a secret; every process has it from its next request on."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        await self._pool.execute(
            _PUT, self.upstream, name, nonce + self._seal.encrypt(nonce, text.encode(), self._place(name))
        )

    async def drop(self, name: str) -> None:
        """Forget a secret."""
        await self._pool.execute(_DROP, self.upstream, name)

    async def names(self) -> frozenset[str]:
        """The names of what is kept; `variable(name)` of an environment variable."""
        return frozenset(row["name"] for row in await self._pool.fetch(_NAMES, self.upstream)) - {_LEASE}

    async def take(self, holder: bytes) -> bool:
        """Whether this holder alone renews the grant now; a holder that died is not waited for long."""
        return bool(await self._pool.fetchval(_TAKE, self.upstream, _LEASE, holder, _LEASE_S))

    async def give_back(self, holder: bytes) -> None:
        """It does not any more."""
        await self._pool.execute(_GIVE_BACK, self.upstream, _LEASE, holder)

    def _place(self, name: str) -> bytes:
        return canonical_json([self.upstream, name])


class Shown(Protocol):
    """What is shown with each request."""

    async def token(self) -> str | None:
        """A bearer token; None shows nothing.

        Raises:
            BodyBrokerError: There is none, and one is needed.
        """
        ...

    async def another(self, refused: str) -> str:
        """A token in place of one that was refused.

        Raises:
            BodyBrokerError: There is none.
        """
        ...


def shown_to(upstream: Upstream, credentials: Credentials, clock: Callable[[], float]) -> Shown | None:
    """How the hub shows itself to this upstream; None where it does not."""
    if upstream.auth == "token":
        return BearerToken(credentials)
    return GrantedToken(credentials, clock=clock) if upstream.auth == "oauth" else None


class BearerToken:
    """A token that an operator gave; read again where it is refused, since it may have been given anew.

    Args:
        credentials: Where it is kept.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._known: str | None = None

    async def token(self) -> str | None:
        """As `Shown`."""
        if self._known is None:
            self._known = await self._credentials.get(TOKEN)
        if self._known is None:
            raise self._missing("has no token yet")
        return self._known

    async def another(self, refused: str) -> str:
        """As `Shown`."""
        self._known = None
        found = await self.token()
        if found is None or found == refused:
            raise self._missing("refuses the hub's token")
        return found

    def _missing(self, what: str) -> NotConfigured:
        name = self._credentials.upstream
        return NotConfigured(
            f"The upstream server {name} {what}.",
            next_step=f"Have an operator give one: `body-broker upstream token {name}`.",
            details={"upstream": name},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a login gave, and all that renewing it takes: nothing is discovered while the hub serves.

    Attributes:
        lives_s: How long the token holds from when it was kept; None where nobody said.
        endpoint: Where it is renewed.
    """

    access: str
    refresh: str | None
    lives_s: float | None
    endpoint: str
    client_id: str
    client_secret: str | None
    method: Method
    resource: str | None
    scope: str | None = None

    def written(self) -> str:
        """As it is kept."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Grant:
        """What `written` wrote."""
        return cls(**json.loads(text))


class GrantedToken:
    """The token of a login, renewed before it ends or where it is refused: by one process, for all.

    Args:
        credentials: Where the grant is kept.
        clock: Seconds.
    """

    def __init__(self, credentials: Credentials, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._credentials, self._clock = credentials, clock
        self._known: Grant | None = None
        self._ends_at = math.inf
        self._renewing: asyncio.Task[Grant] | None = None

    async def token(self) -> str | None:
        """As `Shown`."""
        grant = self._known or await self._kept()
        if self._clock() > self._ends_at - _EARLY_S and grant.refresh is not None:
            grant = await self._renewed(grant)
        return grant.access

    async def another(self, refused: str) -> str:
        """As `Shown`."""
        grant = await self._kept()
        if grant.access == refused:
            grant = await self._renewed(grant)
        return grant.access

    async def _kept(self) -> Grant:
        found = await self._credentials.aged(GRANT)
        if found is None:
            raise self.login("has not been logged in to")
        text, age_s = found
        grant = self._known = Grant.read(text)
        self._ends_at = math.inf if grant.lives_s is None else self._clock() + grant.lives_s - age_s
        return grant

    async def _renewed(self, old: Grant) -> Grant:
        """One at a time, and to its end though nobody waits any more: half of it would leave a token that is used up."""
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._renew(old), name=f"renew-{self._credentials.upstream}")
            self._renewing.add_done_callback(_heard)
        return await asyncio.shield(self._renewing)

    async def _renew(self, old: Grant) -> Grant:
        holder = secrets.token_bytes(16)
        try:
            async with asyncio.timeout(2 * _LEASE_S):
                while not await self._credentials.take(holder):  # noqa: ASYNC110 - another process renews it
                    await asyncio.sleep(_POLL_S)
                try:
                    grant = await self._kept()
                    if grant.access == old.access:
                        await self._credentials.put(GRANT, (await self._asked(grant)).written())
                        grant = await self._kept()
                    return grant
                finally:
                    await self._credentials.give_back(holder)
        except TimeoutError as error:
            raise _no_renewal(self._credentials.upstream) from error
        except LOST as error:
            raise _store_away() from error

    async def _asked(self, grant: Grant) -> Grant:
        if grant.refresh is None:
            raise self.login("refuses the hub's login")
        form = {"grant_type": "refresh_token", "refresh_token": grant.refresh, "client_id": grant.client_id}
        heads = {"accept": "application/json"}
        if grant.resource is not None:
            form["resource"] = grant.resource
        if grant.method == "client_secret_post" and grant.client_secret is not None:
            form["client_secret"] = grant.client_secret
        elif grant.method == "client_secret_basic" and grant.client_secret is not None:
            pair = f"{quote(grant.client_id, safe='')}:{quote(grant.client_secret, safe='')}"
            heads["authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        try:
            async with (
                await bare_client(grant.endpoint) as client,
                client.stream("POST", grant.endpoint, data=form, headers=heads) as response,
            ):
                status, body = response.status_code, await bounded_body(response)
            if status not in _REFUSED:
                return _renewed(grant, status, json.loads(body))
        except Exception as error:  # whatever the library or what it says raises
            raise _no_renewal(self._credentials.upstream) from error
        raise self.login("does not renew the hub's login")

    def login(self, what: str) -> NotConfigured:
        """Why a person has to log in."""
        name = self._credentials.upstream
        return NotConfigured(
            f"The upstream server {name} {what}.",
            next_step=f"Have an operator log in: `body-broker upstream login {name}`.",
            details={"upstream": name},
        )


def _renewed(grant: Grant, status: int, said: Any) -> Grant:  # what a token endpoint answers
    told = cast("dict[str, Any]", said)
    access, refresh, lives = told["access_token"], told.get("refresh_token"), told.get("expires_in")
    if (
        status != _OK
        or not isinstance(access, str)
        or not access
        or str(told.get("token_type", "bearer")).lower() != "bearer"
    ):
        raise ValueError("no bearer token")
    return replace(
        grant,
        access=access,
        refresh=refresh if isinstance(refresh, str) and refresh else grant.refresh,
        lives_s=float(lives) if isinstance(lives, int | float) else None,
    )


def _no_renewal(name: str) -> Unavailable:
    return Unavailable(
        f"The login to the upstream server {name} cannot be renewed now.", details={"component": f"upstream {name}"}
    )


def _store_away() -> Unavailable:
    return Unavailable("PostgreSQL is away, which keeps the secrets of servers.", details={"component": "postgres"})


def _heard(task: asyncio.Task[Grant]) -> None:
    if not task.cancelled():
        task.exception()  # who waits is told; nobody may
