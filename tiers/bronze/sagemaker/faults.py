"""Owns what AWS' refusals mean: one word of tiers/faults.py, and whether it is certain that nothing was done. Imports botocore."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from botocore.exceptions import (  # pyright: ignore[reportMissingTypeStubs] - it has none
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    ProxyConnectionError,
    SSLError,
)
from botocore.parsers import ResponseParserError  # pyright: ignore[reportMissingTypeStubs] - the same

from body_broker.text import clean
from tiers.faults import EngineFault, Reason

_BY_CODE: Mapping[str, Reason] = {
    "AccessDenied": "unauthorised",
    "AccessDeniedException": "unauthorised",
    "ExpiredToken": "unauthorised",
    "ExpiredTokenException": "unauthorised",
    "IncompleteSignature": "unauthorised",
    "InvalidAccessKeyId": "unauthorised",
    "InvalidClientTokenId": "unauthorised",
    "InvalidSignatureException": "unauthorised",
    "MissingAuthenticationToken": "unauthorised",
    "RequestExpired": "unauthorised",
    "SignatureDoesNotMatch": "unauthorised",
    "UnrecognizedClientException": "unauthorised",
    "RequestLimitExceeded": "rate_limited",
    "SlowDown": "rate_limited",
    "Throttling": "rate_limited",
    "ThrottledException": "rate_limited",
    "ThrottlingException": "rate_limited",
    "TooManyRequestsException": "rate_limited",
    "ServiceUnavailable": "overloaded",
    "ServiceUnavailableException": "overloaded",
}
_BY_STATUS: Mapping[int, Reason] = {401: "unauthorised", 403: "unauthorised", 429: "rate_limited", 503: "overloaded"}
_REFUSED_UNASKED = frozenset({"ServiceUnavailable", "ServiceUnavailableException"})
STALE = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
"""Words of an `AwsFault` after which those credentials may hold that are found anew."""
_WORD_MAX = 64
_NO_OBJECT = frozenset({"NoSuchKey", "404"})
"""Not NoSuchBucket, and not a server's 404 for a key that it does not know."""
_CLIENT, _SERVER, _TIMED_OUT = 400, 500, 408


class AwsFault(EngineFault):
    """AWS did not do what was asked.

    Args:
        reason: In one word.
        certain: Whether nothing was done for sure; else it may have been.
        word: AWS' own name of it, or boto3's: for logs.
    """

    def __init__(self, reason: Reason, *, certain: bool, word: str = "") -> None:
        super().__init__(reason)
        self.certain, self.word = certain, word


def fault_of(error: Exception) -> AwsFault:
    """What an error of boto3's means. Only AWS' own refusal, or that nothing was sent, is certain."""
    if isinstance(error, AwsFault):
        return error
    if isinstance(error, ClientError):
        return _refusal(error)
    word = type(error).__name__
    if isinstance(error, EndpointConnectionError | ConnectTimeoutError | ProxyConnectionError):
        return AwsFault("unreachable", certain=True, word=word)
    if isinstance(error, HTTPClientError | SSLError | ResponseParserError):  # sent, and then
        return AwsFault("reset", certain=False, word=word)
    if isinstance(
        error, BotoCoreError
    ):  # before anything is sent: no credentials, no region, a value that its model refuses
        unknown = "Credential" in word or "Token" in word
        return AwsFault("unauthorised" if unknown else "rejected", certain=True, word=word)
    return AwsFault("failed", certain=False, word=word)


def is_missing(error: Exception) -> bool:
    """Whether S3 says that there is no such object."""
    return isinstance(error, ClientError) and _code(error) in _NO_OBJECT


def _refusal(error: ClientError) -> AwsFault:
    code, status = _code(error), _status(error)
    reason = _BY_CODE.get(code) or _BY_STATUS.get(status, "rejected" if _CLIENT <= status < _SERVER else "failed")
    certain = (_CLIENT <= status < _SERVER and status != _TIMED_OUT) or code in _REFUSED_UNASKED
    return AwsFault(reason, certain=certain, word=clean(code, limit=_WORD_MAX))


def _code(error: Any) -> str:  # botocore has no types
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: Any) -> int:  # the same
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
