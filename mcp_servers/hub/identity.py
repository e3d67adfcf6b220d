"""Owns who calls: a token of ours or of the OIDC issuer, checked once and remembered by its hash, or a local process's word."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Literal

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import ValidationError

from body_broker.calls import Caller
from body_broker.errors import Unauthenticated
from body_broker.settings import Settings
from body_broker.storage.postgres import Pool
from mcp_servers.hub.claims import ISSUED_AHEAD_S, Claims
from mcp_servers.hub.directory import OLD_AFTER_S, Directory, Known, open_directory
from mcp_servers.hub.oidc.checking import Oidc, open_oidc
from mcp_servers.hub.oidc.logins import Logins
from mcp_servers.hub.principals import check_principal
from mcp_servers.hub.signing import ALGORITHM
from mcp_servers.hub.tokens import LOCAL_PREFIX

TOKEN_CHARACTERS_MAX = 8192
REMEMBERED_MAX = 4096

_JWS = jwt.PyJWS()


class Identities:
    """Checks tokens; made by `open_identities`.

    Attributes:
        oidc: The people of the OIDC issuer; None without one.
    """

    def __init__(
        self,
        directory: Directory,
        settings: Settings,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        *,
        logins: Logins,
        oidc: Oidc | None,
    ) -> None:
        self._directory, self._settings, self._clock, self._monotonic = directory, settings, clock, monotonic
        self.oidc, self._logins = oidc, logins
        self._known, self._keys_version = directory.known, oidc.issuer.version if oidc else 0
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

    async def roles_of(self, person: str, sessions: Collection[str]) -> frozenset[str]:
        """The roles a person has now for what was begun in these sessions, where no token is at hand.

        For `standing(chain, sessions)`, which runs approved calls: `sessions` are the call's and those above it, the asker's
        login among them. Where that is a login of the OIDC issuer, the roles are those that the newest token of the person
        named (a token's roles are kept when it is seen), and none of the table; else they are the table's.

        Raises:
            Unauthenticated: The login was revoked.
            Unavailable: The database does not answer.
        """
        found = await self._logins.roles_of(person, sessions)
        await self._directory.refresh()
        await self._be_current()
        if not self._known.revoked.isdisjoint(sessions):
            raise _revoked()
        return self._known.roles.get(person, frozenset()) if found is None else found

    async def standing(
        self, chain: Sequence[str], sessions: Sequence[str], since: datetime, tokens: Sequence[str] = ()
    ) -> Caller:
        """Who a request that was made earlier stands for now, with the roles of now.

        Args:
            chain: Its principals, the asker first.
            sessions: The call's session, then those above it.
            since: When it was made: an actor whose login was ended after that acts no more.
            tokens: Ids of the tokens that it came with.

        Raises:
            Unauthenticated: A login that it came from was ended, or a token revoked.
            Unavailable: The database does not answer.
        """
        roles = await self.roles_of(chain[0], sessions)
        if await self._directory.ended(sessions, chain, since, tokens):
            raise _revoked()
        return Caller.of_sessions(chain, {chain[0]: roles} if roles else {}, sessions)

    async def still(self, caller: Caller) -> None:
        """Return where nothing that this caller came with has been revoked since it was checked.

        Raises:
            Unauthenticated: Something was.
            Unavailable: The database does not answer.
        """
        await self._directory.refresh()
        await self._be_current()
        ids = {*caller.sessions, caller.token_id, caller.asker_token_id} - {None}
        if not self._known.revoked.isdisjoint(ids):
            raise _revoked()

    async def _be_current(self) -> None:
        if self._monotonic() - self._directory.asked_at > OLD_AFTER_S:
            await self._directory.refresh()
        if self.oidc is not None:
            self.oidc.issuer.forget_old_keys()
            if self.oidc.issuer.version != self._keys_version:
                self._keys_version = self.oidc.issuer.version
                self._remembered.clear()
        if self._known is not self._directory.known:
            self._known = self._directory.known
            self._remembered.clear()
            self._local.clear()

    async def _check(self, token: str) -> Caller:
        return await (self._check_oidc if self.oidc and self.oidc.decides(token) else self._check_ours)(token)

    async def _check_oidc(self, token: str) -> Caller:
        assert self.oidc is not None
        caller = await self.oidc.check(token)
        await self._directory.refresh()
        await self._be_current()
        if caller.session in self._known.revoked:
            raise _revoked()
        return caller

    async def _check_ours(self, token: str) -> Caller:
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
        # A conversation's asker may have come with a token of the OIDC issuer.
        roles = await self._logins.roles_of(claims.sub, claims.logins())
        # A token not seen before may be younger than our picture: its roles were perhaps written a moment ago.
        await self._directory.refresh()
        await self._be_current()
        self._check_holds(claims)
        return Caller(
            chain=(claims.sub, *[a.sub for a in claims.actors()]),
            roles=_roles(claims.sub, self._known) if roles is None else {claims.sub: roles} if roles else {},
            session=claims.sid,
            conversation_of=claims.asker.sid if claims.asker else None,
            ancestors=tuple(claims.asker.above) if claims.asker else (),
            expires_at=claims.exp,
            token_id=claims.jti,
            asker_token_id=claims.asker.jti if claims.asker else None,
            depth=claims.depth,
            call_key=claims.key,
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
            raise _revoked()


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
        settings: Issuers, audiences, and whether `--as` may be.
        clock: Unix seconds, for what tokens say of time.
        monotonic: Seconds, for how old our knowledge is.

    Raises:
        Unavailable: The database does not answer.
        SettingsError: approvers.toml does not fit, where an OIDC issuer is configured.
    """
    logins, oidc = Logins(pool), None
    async with AsyncExitStack() as stack:
        directory = await stack.enter_async_context(open_directory(pool, monotonic))
        if settings.oidc_issuer is not None:
            oidc = await stack.enter_async_context(open_oidc(settings, logins, clock, monotonic))
        yield Identities(directory, settings, clock, monotonic, logins=logins, oidc=oidc)


def _roles(principal: str, known: Known) -> dict[str, frozenset[str]]:
    roles = known.roles.get(principal)
    return {principal: roles} if roles else {}


def _malformed() -> Unauthenticated:
    return Unauthenticated("The token is malformed.")


def _not_ours() -> Unauthenticated:
    return Unauthenticated("The token is not signed by this hub.")


def _revoked() -> Unauthenticated:
    return Unauthenticated("The token was revoked.")


def _expired() -> Unauthenticated:
    return Unauthenticated("The token has expired.")
