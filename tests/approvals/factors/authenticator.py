"""Owns a passkey in software, for tests: it answers as a browser with an authenticator would, or as one that lies."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from fido2 import cbor
from fido2.cose import ES256
from fido2.utils import websafe_decode, websafe_encode

PRESENT, VERIFIED, ATTESTED = 0x01, 0x04, 0x40


@dataclass
class Authenticator:
    """One key pair; `origin` and `rp` are where its browser says it is."""

    origin: str = "http://localhost:8080"
    rp: str = "localhost"
    flags: int = PRESENT | VERIFIED
    count: int = 0
    cross_origin: bool = False
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    id: bytes = field(default_factory=lambda: os.urandom(16))

    def create(self, options: dict[str, Any]) -> dict[str, Any]:
        """The answer to `navigator.credentials.create`."""
        told = self._client("webauthn.create", websafe_decode(options["publicKey"]["challenge"]))
        public = cbor.encode(dict(ES256.from_cryptography_key(self.key.public_key())))
        data = self._data(ATTESTED) + bytes(16) + struct.pack(">H", len(self.id)) + self.id + public
        attested = cbor.encode({"fmt": "none", "attStmt": {}, "authData": data})
        return self._answer({"clientDataJSON": told, "attestationObject": attested})

    def get(self, challenge: bytes) -> dict[str, Any]:
        """The answer to `navigator.credentials.get`."""
        told, data = self._client("webauthn.get", challenge), self._data()
        signature = self.key.sign(data + hashlib.sha256(told).digest(), ec.ECDSA(hashes.SHA256()))
        return self._answer({"clientDataJSON": told, "authenticatorData": data, "signature": signature})

    def _client(self, kind: str, challenge: bytes) -> bytes:
        told = {
            "type": kind,
            "challenge": websafe_encode(challenge),
            "origin": self.origin,
            "crossOrigin": self.cross_origin,
        }
        return json.dumps(told).encode()

    def _data(self, more: int = 0) -> bytes:
        return hashlib.sha256(self.rp.encode()).digest() + bytes([self.flags | more]) + struct.pack(">I", self.count)

    def _answer(self, response: dict[str, bytes]) -> dict[str, Any]:
        written = {name: websafe_encode(value) for name, value in response.items()}
        return {
            "id": websafe_encode(self.id),
            "rawId": websafe_encode(self.id),
            "type": "public-key",
            "response": written,
        }
