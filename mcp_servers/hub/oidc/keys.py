"""Owns the issuer's keys as its JWKS writes them: only public, only asymmetric, each for the algorithms it can be meant for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey
Keys = Mapping[tuple[str, str], PublicKey]
"""By key id and algorithm."""

KEYS_MAX = 100
_RSA_BITS_MIN = 2048
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}
ALGORITHMS = frozenset({*_RSA, *_CURVES.values(), "EdDSA"})


def read_keys(jwks: Mapping[str, Any]) -> Keys:
    """The keys of a JWK set that can check a signature; whatever else stands in it is passed over."""
    listed: object = jwks.get("keys")
    found: dict[tuple[str, str], PublicKey] = {}
    for jwk in cast("list[Any]", listed)[:KEYS_MAX] if isinstance(listed, list) else []:
        if isinstance(jwk, dict):
            found |= _read(cast("dict[str, Any]", jwk), found)
    return found


def _read(jwk: dict[str, Any], there: Keys) -> dict[tuple[str, str], PublicKey]:
    kid, algorithms = jwk.get("kid"), _algorithms(jwk)
    if not isinstance(kid, str) or not algorithms or jwk.get("use", "sig") != "sig":
        return {}
    try:
        key = jwt.PyJWK(jwk, algorithms[0]).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return {}
    # A private key that everybody can read proves nothing. The first key of a name keeps it.
    if not isinstance(key, PublicKey) or (isinstance(key, RSAPublicKey) and key.key_size < _RSA_BITS_MIN):
        return {}
    return {(kid, algorithm): key for algorithm in algorithms if (kid, algorithm) not in there}


def _algorithms(jwk: dict[str, Any]) -> tuple[str, ...]:
    """What the key may sign with: what it says, as far as its type can; a type that says nothing, all that the type can."""
    kind, curve = jwk.get("kty"), jwk.get("crv")
    able: tuple[str, ...] = ()
    if kind == "RSA":
        able = _RSA
    elif kind == "EC" and curve in _CURVES:
        able = (_CURVES[curve],)
    elif kind == "OKP" and curve == "Ed25519":
        able = ("EdDSA",)
    said = {"Ed25519": "EdDSA"}.get(str(jwk.get("alg")), jwk.get("alg"))
    return able if said is None else tuple(name for name in able if name == said)
