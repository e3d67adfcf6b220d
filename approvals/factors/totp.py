"""Owns time-based codes (RFC 6238): a new secret, and the step a code belongs to. What was used already is the store's to know."""

from __future__ import annotations

import hmac

from pyotp import random_base32
from pyotp.totp import TOTP

from body_broker.errors import BadInput

STEP_S = 30
DIGITS = 6
_ISSUER = "Body Broker"


def new_secret() -> str:
    """160 random bits, as authenticator apps take them."""
    return random_base32()


def uri_of(secret: str, person: str) -> str:
    """The `otpauth://` URI that an app reads from a QR code."""
    return TOTP(secret).provisioning_uri(name=person.partition(":")[2], issuer_name=_ISSUER)


def parse_code(text: str) -> str:
    """The six digits of what somebody typed; blanks are fine.

    Raises:
        BadInput: It is no code at all, so it counts as no attempt.
    """
    code = "".join(text.split())
    if len(code) != DIGITS or not (code.isascii() and code.isdigit()):
        raise BadInput(f"A code has {DIGITS} digits.", next_step="Type the one your authenticator app shows now.")
    return code


def step_of(secret: str, code: str, now: float) -> int | None:
    """The step this code is of, one before or after now at most; None where it is wrong."""
    totp = TOTP(secret)
    present = int(now) // STEP_S
    found = None
    for step in (present - 1, present, present + 1):  # all three, whichever fits: how long it takes tells nothing
        if hmac.compare_digest(totp.generate_otp(step), code):
            found = step
    return found


def code_at(secret: str, now: float) -> str:
    """The code of this moment."""
    return TOTP(secret).generate_otp(int(now) // STEP_S)
