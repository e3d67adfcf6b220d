"""Owns the server's side of WebAuthn, on fido2: what a browser is asked, and whether its answer holds. No store, no clock."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from fido2 import cbor
from fido2.cose import UnsupportedKey
from fido2.server import Fido2Server
from fido2.utils import websafe_encode
from fido2.webauthn import (
    AttestedCredentialData,
    AuthenticationResponse,
    PublicKeyCredentialDescriptor,
    PublicKeyCredentialRpEntity,
    PublicKeyCredentialType,
    PublicKeyCredentialUserEntity,
    RegistrationResponse,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)

from approvals.factors.model import Credential, RelyingParty
from body_broker.calls import Json
from body_broker.errors import BadInput, Denied
from body_broker.telemetry import get_logger

log = get_logger(__name__)

_REQUIRED = UserVerificationRequirement.REQUIRED
# What fido2 raises for bytes and shapes that no authenticator sends.
_MALFORMED = (
    *(ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError),
    *(struct.error, AssertionError, UnsupportedAlgorithm),
)


@dataclass(frozen=True, slots=True)
class Assertion:
    """A signature that held.

    Attributes:
        sign_count: The authenticator's counter; 0 where it keeps none.
        evidence: The signature, what it covers, and the key.
    """

    sign_count: int
    evidence: Mapping[str, Json]


class Passkeys:
    """WebAuthn at one relying party.

    Args:
        rp: Where the pages are.
    """

    def __init__(self, rp: RelyingParty) -> None:
        self._rp = rp
        # fido2's own check of origins takes every port and subdomain; ours is one origin.
        self._server = Fido2Server(
            PublicKeyCredentialRpEntity(id=rp.id, name=rp.name), verify_origin=lambda origin: origin == rp.origin
        )

    def creation_options(self, person: str, existing: Sequence[bytes], challenge: bytes) -> dict[str, Json]:
        """What `navigator.credentials.create` is given, as JSON."""
        name = person.partition(":")[2]
        options, _ = self._server.register_begin(  # pyright: ignore[reportUnknownMemberType]  # fido2 leaves a parameter untyped
            # Not the name itself: authenticators show it to anybody who holds them.
            PublicKeyCredentialUserEntity(id=hashlib.sha256(person.encode()).digest(), name=name, display_name=name),
            _descriptors(existing),
            resident_key_requirement=ResidentKeyRequirement.REQUIRED,
            user_verification=_REQUIRED,
            challenge=challenge,
        )
        return dict(options)

    def created(self, challenge: bytes, answer: Mapping[str, Json]) -> tuple[Credential, int]:
        """The passkey that a browser made, and its counter.

        Raises:
            BadInput: The answer is not one to this question, from this origin, with the person verified.
        """
        try:
            response = RegistrationResponse.from_dict(answer)
            found = self._server.register_complete(_state(challenge), response)  # pyright: ignore[reportUnknownMemberType]  # fido2 leaves a parameter untyped
            crossed = response.response.client_data.cross_origin
            data = found.credential_data
            usable = data is not None and not isinstance(data.public_key, UnsupportedKey)
        except _MALFORMED as error:
            log.info("passkey_not_enrolled", why=repr(error)[:200])
            raise _not_enrolled() from error
        if crossed or data is None or not usable:
            raise _not_enrolled()
        return Credential(id=data.credential_id, data=bytes(data), rp=self._rp.id), found.counter

    def request_options(self, allowed: Sequence[bytes] | None, challenge: bytes) -> dict[str, Json]:
        """What `navigator.credentials.get` is given, as JSON.

        Args:
            allowed: Ids of the passkeys that may answer; None asks for any that was made here.
            challenge: What is signed.
        """
        options, _ = self._server.authenticate_begin(  # pyright: ignore[reportUnknownMemberType]  # fido2 leaves a parameter untyped
            None if allowed is None else _descriptors(allowed), user_verification=_REQUIRED, challenge=challenge
        )
        return dict(options)

    @staticmethod
    def credential_id(answer: Mapping[str, Json]) -> bytes:
        """The passkey that an answer says it is from.

        Raises:
            BadInput: It is no answer of a browser.
        """
        try:
            return AuthenticationResponse.from_dict(answer).raw_id
        except _MALFORMED as error:
            raise BadInput("That is not an answer of a passkey.", next_step="Reload the page and try again.") from error

    def asserted(self, challenge: bytes, credential: Credential, answer: Mapping[str, Json]) -> Assertion:
        """The assertion, once everything about it holds: type, origin, challenge, relying party, presence, person, signature.

        Raises:
            Denied: Something does not; which is in the log alone.
        """
        try:
            response = AuthenticationResponse.from_dict(answer)
            told, signed = response.response.client_data, response.response.authenticator_data
            known = AttestedCredentialData(credential.data)
            self._server.authenticate_complete(_state(challenge), [known], response)  # pyright: ignore[reportUnknownMemberType]  # fido2 leaves a parameter untyped
            key = cbor.encode(dict(known.public_key))
        except _MALFORMED as error:
            log.info("passkey_refused", why=repr(error)[:200])
            raise _refused() from error
        if told.cross_origin:
            raise _refused()
        return Assertion(
            signed.counter,
            {
                "client_data": websafe_encode(told),
                "authenticator_data": websafe_encode(signed),
                "signature": websafe_encode(response.response.signature),
                "public_key": websafe_encode(key),
            },
        )


def _state(challenge: bytes) -> dict[str, Any]:
    return {"challenge": websafe_encode(challenge), "user_verification": _REQUIRED}


def _descriptors(ids: Sequence[bytes]) -> list[PublicKeyCredentialDescriptor]:
    return [PublicKeyCredentialDescriptor(type=PublicKeyCredentialType.PUBLIC_KEY, id=each) for each in ids]


def _not_enrolled() -> BadInput:
    return BadInput(
        "The browser's answer does not fit what it was asked, so no passkey was enrolled.",
        next_step="Begin again with a new link, in a browser that can verify you (PIN, fingerprint, face).",
    )


def _refused() -> Denied:
    return Denied(
        "The passkey's signature does not fit what was asked.",
        next_step="Reload the page and use a passkey that is enrolled here.",
    )
