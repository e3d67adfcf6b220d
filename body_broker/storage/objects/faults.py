"""Owns what can go wrong with S3, as it is told: never a word of its own, no key, no address. Imports botocore: only s3.py uses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from botocore import exceptions as botocore  # pyright: ignore[reportMissingTypeStubs] - it has none

from body_broker.errors import BodyBrokerError, InternalError, NotConfigured, Unavailable

_HTTP_FORBIDDEN, _HTTP_CONFLICT, _HTTP_SERVER_ERROR = 403, 409, 500
_WAIT_S = 10.0
_ABSENT = frozenset({"NoSuchKey", "NotFound", "404"})
_THROTTLED = frozenset({"SlowDown", "RequestLimitExceeded", "Throttling", "ThrottlingException", "TooManyRequests"})
# The first is versitygw's.
_STALE = frozenset(
    {
        "XAdminUserNotFound",
        "ExpiredToken",
        "TokenRefreshRequired",
        "InvalidToken",
        "InvalidAccessKeyId",
        "InvalidSecurity",
    }
)
_UNSIGNED = frozenset({"SignatureDoesNotMatch", "MissingSecurityHeader", "InvalidTokenId"})
_NO_CREDENTIALS = (
    botocore.NoCredentialsError,
    botocore.PartialCredentialsError,
    botocore.CredentialRetrievalError,
    botocore.ProfileNotFound,
    botocore.ConfigNotFound,
    botocore.ConfigParseError,
    botocore.InvalidConfigError,
    botocore.TokenRetrievalError,
    botocore.SSOError,
    botocore.MetadataRetrievalError,
)
_GIVE = (
    "Give this process a role, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, as boto3 finds them;"
    " what is in its environment is read at its start."
)
_ALLOW = (
    "Allow s3:PutObject, s3:GetObject and s3:DeleteObject on its objects and s3:ListBucket on the bucket (without that S3 says"
    " `denied` of what is not there); where a key of KMS encrypts it, kms:GenerateDataKey and kms:Decrypt too."
)


@dataclass(frozen=True, slots=True)
class _Words:
    """What is said: `wrong` is how the place is set up, and else it is away for now. `{}` is the setting, `{way}` how it is reached."""

    message: str
    step: str
    wrong: bool = True


_NOBODY = _Words("This hub has no AWS credentials for the bucket of {}.", _GIVE)
_DENIED = _Words("The bucket of {} does not let this hub use s3:{action}.", _ALLOW)
_NO_BUCKET = _Words("The bucket of {} is not there.", "Make it, or name another in the setting.")
_ELSEWHERE = _Words(
    "The bucket of {} is in another region, or at another address.",
    "Set BODY_BROKER_AWS_REGION to its region; with a server of your own check {}_ENDPOINT_URL.",
)
_REFUSED = _Words("The bucket of {} refused the request.", "Check that it takes plain objects; the log has more.")
_CONFLICT = _Words("Other requests were in the way of this one in the bucket of {}.", "Try again later.", wrong=False)
_FAILED = _Words("S3 failed while answering for the bucket of {}.", "Try again later.", wrong=False)
# The first that fits.
_RAISED: tuple[tuple[tuple[type[Exception], ...], _Words], ...] = (
    (_NO_CREDENTIALS, _NOBODY),
    ((RecursionError,), _ELSEWHERE),  # botocore follows redirections to find the region, without an end
    (
        (ValueError, botocore.InvalidRegionError, botocore.NoRegionError),
        _Words(
            "S3 cannot be asked as {} is set up: an address or a region is none.",
            "Check {}_ENDPOINT_URL, AWS_REGION and what boto3 finds in its files.",
        ),
    ),
    (
        (botocore.SSLError,),
        _Words(
            "The certificate of the server of {} is not trusted.",
            "Name its certificate authority in AWS_CA_BUNDLE, or use a certificate that this machine trusts.",
            wrong=False,
        ),
    ),
    (
        (botocore.HTTPClientError, botocore.ConnectionError, botocore.ResponseStreamingError),
        _Words("The bucket of {} cannot be reached, or did not answer in time.", "Check {way}.", wrong=False),
    ),
    (
        (botocore.BotoCoreError, OSError),
        _Words("The bucket of {} broke off while answering.", "Try again later.", wrong=False),
    ),
)
_SAID: tuple[tuple[frozenset[str], _Words], ...] = (
    (_STALE, _Words("The credentials for the bucket of {} have expired, or nobody knows them.", _GIVE)),
    (_UNSIGNED, _Words("The secret key for the bucket of {} is another one.", _GIVE)),
    (
        frozenset({"RequestTimeTooSkewed"}),
        _Words(
            "The clock of this machine is wrong, so that the bucket of {} refuses it.", "Set the clock.", wrong=False
        ),
    ),
    (frozenset({"NoSuchBucket"}) | _ABSENT, _NO_BUCKET),
    (
        frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"}),
        _ELSEWHERE,
    ),
    (
        frozenset({"InvalidObjectState"}),
        _Words(
            "A rule of the bucket of {} moved the object to an archive.",
            "Restore it there; keep archives out of the rules for what is still read.",
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Place:
    """A bucket as messages name it.

    Attributes:
        setting: What names it.
        own: Whether it is on another server than Amazon's.
    """

    setting: str
    own: bool


def code_of(error: BaseException) -> str:
    """The server's own word for an error; it decides and is never repeated."""
    response: Any = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def is_absent(error: BaseException) -> bool:
    """Whether it says only that nothing is under the key."""
    return isinstance(error, botocore.ClientError) and code_of(error) in _ABSENT


def is_conflict(error: BaseException) -> bool:
    """Whether another request was in the way, so that the same may be asked again: S3's own servers say so, and versitygw where it
    removes a folder that became empty just then.
    """
    return _status_of(error) == _HTTP_CONFLICT


def is_stale(error: BaseException) -> bool:
    """Whether the credentials were refused, so that those that are found anew may hold."""
    return code_of(error) in _STALE | _UNSIGNED or isinstance(error, _NO_CREDENTIALS)


def no_credentials(place: Place) -> BodyBrokerError:
    """This process has none."""
    return _told(_NOBODY, place)


def told(error: Exception, *, action: str, place: Place) -> BodyBrokerError:
    """What a failed request to S3 means.

    Args:
        error: What botocore raised, or an error of ours, which stays.
        action: What was asked, as IAM names it, without `s3:`.
        place: The bucket.
    """
    if isinstance(error, BodyBrokerError):
        return error
    if isinstance(error, botocore.ClientError):
        return _answered(error, action, place)
    words = next((words for kinds, words in _RAISED if isinstance(error, kinds)), None)
    return InternalError("The hub failed while asking S3.") if words is None else _told(words, place)


def _answered(error: Exception, action: str, place: Place) -> BodyBrokerError:
    code = code_of(error)
    status = _status_of(error)
    if code in _THROTTLED:
        return Unavailable(
            "S3 takes no more requests for now.", retry_after_s=_WAIT_S, details={"component": "objects"}
        )
    words = next((words for codes, words in _SAID if code in codes), None)
    if words is None:
        # Whatever else is forbidden is a permission that lacks, by whichever of its many names.
        denied = status == _HTTP_FORBIDDEN or code == "AccessDenied" or code.startswith("KMS.")
        words = (
            _DENIED
            if denied
            else _CONFLICT
            if is_conflict(error)
            else _REFUSED
            if 0 < status < _HTTP_SERVER_ERROR
            else _FAILED
        )
    return _told(words, place, action)


def _status_of(error: BaseException) -> int:
    response: Any = getattr(error, "response", None) or {}
    return response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _told(words: _Words, place: Place, action: str = "") -> BodyBrokerError:
    way = f"{place.setting}_ENDPOINT_URL" if place.own else "this machine's way to Amazon S3"
    message, step = (said.format(place.setting, action=action, way=way) for said in (words.message, words.step))
    if words.wrong:
        return NotConfigured(message, next_step=step, details={"setting": place.setting})
    return Unavailable(message, next_step=step, details={"component": "objects"})
