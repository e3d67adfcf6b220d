"""Owns what can go wrong with AWS, as callers are told: never a word of AWS' own, no ARN, no address. Imports botocore: only aws.py uses it."""

from __future__ import annotations

from typing import Any

from botocore import exceptions as botocore  # pyright: ignore[reportMissingTypeStubs] - it has none

from body_broker.errors import (
    BadInput,
    BodyBrokerError,
    Denied,
    InternalError,
    NotConfigured,
    NotFound,
    RateLimited,
    Unavailable,
)
from mcp_servers.admin.roles import SETTING, Grant

_WAIT_S = 10.0
_HTTP_FORBIDDEN, _HTTP_SERVER_ERROR = 403, 500
_DENIED = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "AuthorizationError",
        "AuthorizationErrorException",
        "NotAuthorized",
        "NotAuthorizedException",
        "UnauthorizedOperation",
    }
)
_STALE = frozenset(
    {
        "AuthFailure",
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "InvalidToken",
        "MissingAuthenticationToken",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
_THROTTLED = frozenset(
    {
        "BandwidthLimitExceeded",
        "LimitExceededException",
        "PriorRequestNotComplete",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "TooManyRequestsException",
        "TransactionInProgressException",
    }
)
_NO_REGION = frozenset({"OptInRequired", "RegionDisabledException", "SubscriptionRequiredException"})
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
    botocore.RefreshWithMFAUnsupportedError,
)
_STEPS = (
    "Ask the people who run this hub to give its process AWS credentials (a role of its machine, or AWS_ACCESS_KEY_ID and"
    " AWS_SECRET_ACCESS_KEY, or AWS_PROFILE) that may assume the roles of its roles file, then restart it: docs/aws.md."
)


def code_of(error: Exception) -> str:
    """AWS' own word for an error; it decides and is never repeated."""
    response: Any = getattr(error, "response", None) or {}
    code = str(response.get("Error", {}).get("Code", ""))
    return code.removeprefix("Client.").partition(":")[0].rpartition("#")[2]


def is_stale(error: Exception) -> bool:
    """Whether the credentials themselves were refused, so that new ones may help."""
    return code_of(error) in _STALE


def no_credentials() -> NotConfigured:
    """The hub's process has none."""
    return NotConfigured(
        "This hub has no AWS credentials of its own.", next_step=_STEPS, details={"setting": "AWS credentials"}
    )


def told_of_assuming(error: Exception, grant: Grant) -> BodyBrokerError:
    """Why nobody could take on a principal's role."""
    if isinstance(error, _NO_CREDENTIALS):
        return no_credentials()
    if code_of(error) in _DENIED:
        return NotConfigured(
            f"This hub may not assume the AWS role of {grant.principal}, or the role is not there.",
            next_step=(
                "Ask the people who run this hub: the hub's own credentials need sts:AssumeRole, sts:TagSession and"
                " sts:SetSourceIdentity on the role, and the role's trust policy must name them (docs/aws.md)."
            ),
            details={"setting": SETTING, "principal": grant.principal, "iam_action": "sts:AssumeRole"},
        )
    if is_stale(error):
        return NotConfigured(
            "AWS does not accept this hub's own credentials.", next_step=_STEPS, details={"setting": "AWS credentials"}
        )
    return told(error, action="sts:AssumeRole", grant=grant)


def told(error: Exception, *, action: str, grant: Grant) -> BodyBrokerError:
    """What a failed query means.

    Args:
        error: What botocore raised.
        action: The IAM action that was needed.
        grant: Whose role asked.
    """
    if isinstance(error, BodyBrokerError):
        return error
    if isinstance(error, _NO_CREDENTIALS):
        return no_credentials()
    if isinstance(error, botocore.ParamValidationError):
        return _unfit()
    if isinstance(error, botocore.ClientError):
        return _answered(error, action, grant)
    if isinstance(error, botocore.HTTPClientError | botocore.ConnectionError | botocore.ResponseStreamingError):
        return Unavailable(
            "AWS cannot be reached from this hub, or did not answer in time.",
            next_step="Repeat the call later; if it stays so, the people who run this hub check the region, its way out and BODY_BROKER_AWS_ENDPOINT_URL.",
            details={"component": "aws"},
        )
    return InternalError("The hub failed while asking AWS.")


def _answered(error: Exception, action: str, grant: Grant) -> BodyBrokerError:
    code = code_of(error)
    status: int = getattr(error, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _THROTTLED:
        return RateLimited("AWS takes no more calls of this kind for now.", retry_after_s=_WAIT_S)
    if code in _STALE:
        return Unavailable(
            f"AWS does not accept the session of {grant.principal}'s role.",
            next_step="Repeat the call: a new session is made. If it stays so, the clock of the hub's machine may be wrong.",
            details={"component": "aws"},
        )
    # Whatever else is forbidden is a permission that lacks, by whichever of its many names.
    if code in _DENIED or (status == _HTTP_FORBIDDEN and code not in _NO_REGION):
        return Denied(
            f"The AWS role of {grant.principal} may not {action}.",
            next_step=(
                f"Do not repeat the call. Ask the people who run this hub to allow {action} in that role's IAM policy"
                " (docs/aws.md has it whole)."
            ),
            details={"iam_action": action, "principal": grant.principal},
        )
    return _refused(code) if 0 < status < _HTTP_SERVER_ERROR else _failed()


def _refused(code: str) -> BodyBrokerError:
    if code in _NO_REGION:
        return BadInput(
            "The AWS account does not use that region or service.",
            next_step="Leave the region out, or name another.",
            details={"problems": ["region: not enabled in this account"]},
        )
    if code.startswith("NoSuch") or "NotFound" in code or "DoesNotExist" in code:
        return absent()
    return _unfit()


def _failed() -> Unavailable:
    return Unavailable("AWS failed while answering.", details={"component": "aws"})


def slow() -> Unavailable:
    """A call of ours has taken as long as it may."""
    return Unavailable(
        "AWS answers too slowly for one call.",
        next_step="Repeat the call with a smaller limit, or with the identifier of one thing.",
        details={"component": "aws"},
    )


def absent() -> NotFound:
    """AWS knows nothing by that identifier."""
    return NotFound(
        "AWS has nothing by that identifier in this account and region.",
        next_step="Leave the identifier out to list what is there, or name another region.",
    )


def _unfit() -> BadInput:
    return BadInput(
        "AWS does not take that identifier for this kind of thing, or the cursor is too old.",
        next_step="Leave identifier and cursor out to list what is there; list_aws_resource_types says what an identifier is.",
        details={"problems": ["identifier or cursor: refused by AWS"]},
    )
