"""Owns who calls: a token checked once and remembered by its hash, or a local process's word on embedded stores."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import ValidationError

from body_broker.calls import Caller
from body_broker.errors import Unauthenticated
from body_broker.settings import Settings
from body_broker.storage.postgres import Pool
from mcp_servers.hub.claims import Claims
from mcp_servers.hub.directory import OLD_AFTER_S, Directory, Known, open_directory
from mcp_servers.hub.principals import check_principal
from mcp_servers.hub.signing import ALGORITHM
from mcp_servers.hub.tokens import LOCAL_PREFIX

TOKEN_CHARACTERS_MAX = 8192
REMEMBERED_MAX = 4096
# The issuer's clock may be this far ahead of ours; it concerns `iat` alone, never `nbf` or `exp`.
ISSUED_AHEAD_S = 5.0

_JWS = jwt.PyJWS()


class Identities:
    """Checks tokens; made by `open_identities`."""

    def __init__(
        self,
        directory: Directory,
        settings: Settings,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._directory, self._settings, self._clock, self._monotonic = directory, settings, clock, monotonic
        self._known = directory.known
        self._remembered: OrderedDict[bytes, Caller] = OrderedDict()
        self._local: dict[str, Caller] = {}
        self._place: Path | None = None

    async def authenticate(self, token: str | None) -> Caller:
        """Who the token stands for, with the roles of now; about a microsecond for a token seen before.

        Raises:
            Unauthenticated: The token is missing, malformed, not ours, expired, not yet valid, for somebody else or revoked;
                the message says which and never repeats it.
            Unavailable: What was revoked has not been known for 5 s; nobody is let in on old knowledge.
        """
        if not token:
            raise Unauthenticated("The call carries no token.")
        if len(token) > TOKEN_CHARACTERS_MAX or not token.isascii():
            raise _malformed()
        await self._be_current()
        fingerprint = hashlib.sha256(token.encode()).digest()
        caller = self._remembered.get(fingerprint)
        if caller is None:
            caller = await self._check(token)
            self._remembered[fingerprint] = caller
            if len(self._remembered) > REMEMBERED_MAX:
                self._remembered.popitem(last=False)
            return caller
        if caller.expires_at is not None and self._clock() >= caller.expires_at:
            raise _expired()
        self._remembered.move_to_end(fingerprint)
        return caller

    async def local(self, principal: str, *, over: Literal["stdio", "cli"] = "stdio") -> Caller:
        """The caller of `--as`, with the roles of now; ask for every call. Its session is the data dir and the principal.

        Args:
            principal: Over stdio a person; the command line may also be a tier or a service.
            over: Which local process asks.

        Raises:
            BadInput: It is spelled in no known way.
            Unauthenticated: This hub's stores are not its own, or stdio was to be somebody other than a person.
            Unavailable: What was revoked has not been known for 5 s.
        """
        if not self._settings.embedded:
            raise Unauthenticated(
                "--as works only on a hub with its own embedded stores.",
                next_step="Use a token: `body-broker token issue` makes one; pass it in BODY_BROKER_TOKEN.",
            )
        check_principal(principal)
        if over == "stdio" and not principal.startswith("person:"):
            raise Unauthenticated(
                "Over stdio --as names a person.",
                next_step="Pass --as person:NAME, or give a tier or service its token in BODY_BROKER_TOKEN.",
            )
        if self._place is None:
            self._place = await asyncio.to_thread(self._settings.data_dir.resolve)
        await self._be_current()
        caller = self._local.get(principal)
        if caller is None:
            session = hashlib.sha256(f"{self._place}\0{principal}".encode()).hexdigest()[:40]
            roles = _roles(principal, self._known)
            caller = self._local[principal] = Caller((principal,), roles, f"{LOCAL_PREFIX}_{session}")
        return caller

    async def _be_current(self) -> None:
        if self._monotonic() - self._directory.asked_at > OLD_AFTER_S:
            await self._directory.refresh()
        if self._known is not self._directory.known:
            self._known = self._directory.known
            self._remembered.clear()
            self._local.clear()

    async def _check(self, token: str) -> Caller:
        key = await self._key(token)
        try:
            payload = _JWS.decode(token, key, algorithms=[ALGORITHM])
            claims = Claims.model_validate_json(payload)
        except jwt.InvalidSignatureError as error:
            raise _not_ours() from error
        except jwt.PyJWTError as error:
            raise _malformed() from error
        except ValidationError as error:
            names = sorted({str(e["loc"][0]) for e in error.errors(include_input=False) if e["loc"]})
            raise Unauthenticated(
                f"The token's claims are missing or malformed: {', '.join(names) or 'all of them'}."
            ) from error
        if not claims.well_formed():
            raise _malformed()
        # A token not seen before may be younger than our picture: its roles were perhaps written a moment ago.
        await self._directory.refresh()
        await self._be_current()
        self._check_holds(claims)
        return Caller(
            chain=(claims.sub, *[a.sub for a in claims.actors()]),
            roles=_roles(claims.sub, self._known),
            session=claims.sid,
            conversation_of=claims.asker.sid if claims.asker else None,
            ancestors=tuple(claims.asker.above) if claims.asker else (),
            expires_at=claims.exp,
            token_id=claims.jti,
        )

    async def _key(self, token: str) -> Ed25519PublicKey:
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError as error:
            raise _malformed() from error
        kid = header.get("kid")
        if header.get("alg") != ALGORITHM or not isinstance(kid, str):
            raise _not_ours()
        if kid not in self._known.keys:
            await self._directory.refresh()  # perhaps it was made a moment ago
            await self._be_current()
        key = self._known.keys.get(kid)
        if key is None:
            raise _not_ours()
        return key

    def _check_holds(self, claims: Claims) -> None:
        now = self._clock()
        if claims.iss != self._settings.token_issuer:
            raise Unauthenticated("The token was issued by another issuer.")
        if claims.aud != self._settings.token_audience:
            raise Unauthenticated("The token is meant for another audience.")
        if claims.exp <= now:
            raise _expired()
        if (claims.nbf is not None and claims.nbf > now) or claims.iat > now + ISSUED_AHEAD_S:
            raise Unauthenticated("The token is not valid yet.")
        if not self._known.revoked.isdisjoint(claims.ids()):
            raise Unauthenticated("The token was revoked.")


@asynccontextmanager
async def open_identities(
    pool: Pool,
    settings: Settings,
    *,
    clock: Callable[[], float] = time.time,  # noqa: TID251 - the parameter's default
    monotonic: Callable[[], float] = time.monotonic,
) -> AsyncGenerator[Identities]:
    """Identities that follow the database until the way out.

    Args:
        pool: The database; one connection of it is kept for listening.
        settings: Issuer, audience, and whether `--as` may be.
        clock: Unix seconds, for what tokens say of time.
        monotonic: Seconds, for how old our knowledge is.

    Raises:
        Unavailable: The database does not answer.
    """
    async with open_directory(pool, monotonic) as directory:
        yield Identities(directory, settings, clock, monotonic)


def _roles(principal: str, known: Known) -> dict[str, frozenset[str]]:
    roles = known.roles.get(principal)
    return {principal: roles} if roles else {}


def _malformed() -> Unauthenticated:
    return Unauthenticated("The token is malformed.")


def _not_ours() -> Unauthenticated:
    return Unauthenticated("The token is not signed by this hub.")


def _expired() -> Unauthenticated:
    return Unauthenticated("The token has expired.")
