"""Owns the words of second factors: what is enrolled, what proves a person, where passkeys belong, and what a vote's passkey signs."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal
from urllib.parse import urlsplit

import orjson

from approvals.model import Factor, Verdict
from body_broker.calls import Json
from body_broker.errors import NotConfigured

INVITE_S = 600
"""How long an enrolment may take from its first step to its last."""
LABEL_MAX = 60
FactorStanding = Literal["counts", "waiting", "revoked", "expired"]
_VOTE = b"hub.approval.vote.v1\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorInfo:
    """One enrolled factor, without its secret.

    Attributes:
        standing: Whether it counts; `waiting` until somebody already enrolled has confirmed it.
        confirmed_by: Who did; for the first of the installation whoever enrolled it.
        expires_at: Of a throw-away factor, when it stops counting.
    """

    id: str
    person: str
    kind: Factor
    label: str
    standing: FactorStanding
    created_at: datetime
    confirmed_by: str | None
    revoked_by: str | None
    expires_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """That a person has just used a factor that counts; made by `Factors` alone.

    Attributes:
        factor: Its kind.
        factor_id: Which one.
        evidence: What a later reader may check: of a passkey the signature, its key and what was signed. No secret.
    """

    person: str
    factor: Factor
    factor_id: str
    evidence: Mapping[str, Json] = field(default_factory=dict[str, Json])


@dataclass(frozen=True, slots=True, kw_only=True)
class Invite:
    """Leave to enrol one factor for one person, once.

    Attributes:
        token: Shown once, kept as a hash.
        first: Whether it would be the installation's first, which needs nobody's word.
    """

    token: str = field(repr=False)
    person: str
    first: bool
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """What an invite's token stands for, for whoever holds it.

    Attributes:
        first: Whether nobody is enrolled yet.
        by_approver: Whether the person was an approver when it was given out as the first; nobody else may be the first.
    """

    person: str
    first: bool
    by_approver: bool
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TotpOffer:
    """A new TOTP secret, shown once to the person it is for."""

    uri: str = field(repr=False)
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A passkey as it is kept.

    Attributes:
        data: Its id and public key, in WebAuthn's own form.
        rp: The relying party's id it was made for.
    """

    id: bytes
    data: bytes
    rp: str

    def pack(self) -> bytes:
        """The form that is sealed."""
        return orjson.dumps({"id": self.id.hex(), "data": self.data.hex(), "rp": self.rp})

    @classmethod
    def unpack(cls, packed: bytes) -> Credential:
        """What `pack` made."""
        found = orjson.loads(packed)
        return cls(id=bytes.fromhex(found["id"]), data=bytes.fromhex(found["data"]), rp=found["rp"])


@dataclass(frozen=True, slots=True)
class RelyingParty:
    """Where passkeys belong: a host name and the one origin of the hub's pages.

    Attributes:
        id: `localhost`, or the host of the public URL.
        origin: Scheme, host and port, as browsers write it.
        name: What authenticators show.
    """

    id: str
    origin: str
    name: str = "Body Broker"

    @classmethod
    def at(cls, url: str) -> RelyingParty:
        """The relying party of pages at this URL.

        Raises:
            NotConfigured: Browsers make no passkeys there: it is an address, or not HTTPS on another host than localhost.
        """
        parts = urlsplit(url)
        host = (parts.hostname or "").lower()
        if not host or _is_address(host) or (parts.scheme != "https" and host != "localhost"):
            raise NotConfigured(
                "Passkeys work on localhost or at an HTTPS name, and these pages are at neither.",
                next_step="Open them on http://localhost:PORT, or set BODY_BROKER_PUBLIC_URL to the HTTPS URL of this hub.",
                details={"setting": "BODY_BROKER_PUBLIC_URL"},
            )
        default = {"https": 443, "http": 80}[parts.scheme]
        port = "" if parts.port in {None, default} else f":{parts.port}"
        return cls(host, f"{parts.scheme}://{host}{port}")


def vote_challenge(approval: str, digest: str, verdict: Verdict) -> bytes:
    """What a passkey signs to vote: 32 bytes over the approval, the call's digest and the word said."""
    return hashlib.sha256(_VOTE + f"{approval}\0{digest}\0{verdict}".encode()).digest()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
