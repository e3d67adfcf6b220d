"""Owns how principals and roles are spelled: `tier:silver`, `person:anna`, `service:game`, and the five roles of people."""

from __future__ import annotations

import re
from collections.abc import Collection

from body_broker.errors import BadInput

TIERS = frozenset({"gold", "silver", "bronze"})
ROLES = frozenset({"designer", "engineer", "sre", "security", "admin"})
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_SESSION = re.compile(r"[A-Za-z0-9_-]{8,128}")
_CALL_KEY = re.compile(r"job_[A-Za-z0-9_-]{8,90} [A-Za-z0-9._-]{1,60}")


def is_principal(text: str) -> bool:
    """Whether this is a principal's exact spelling."""
    kind, _, name = text.partition(":")
    if kind == "tier":
        return name in TIERS
    return kind in {"person", "service"} and _NAME.fullmatch(name) is not None


def is_tier(text: str) -> bool:
    """Whether this is a tier, the only kind of principal that acts for another."""
    return is_principal(text) and text.startswith("tier:")


def is_session(text: str) -> bool:
    """Whether this can be a session's id: 8 to 128 letters, digits, `_` and `-`."""
    return _SESSION.fullmatch(text) is not None


def is_call_key(text: str) -> bool:
    """Whether this can be the key of a job's call: the job's id, a space, and which of its calls it is. No approval's id is one."""
    return _CALL_KEY.fullmatch(text) is not None


def check_principal(text: str) -> str:
    """The principal itself.

    Raises:
        BadInput: It is spelled in no known way.
    """
    if not is_principal(text):
        raise BadInput(
            "This is not a principal.",
            next_step="Write tier:gold, tier:silver, tier:bronze, person:NAME or service:NAME; a name has 1 to 63 of a-z 0-9 . _ - and begins with a letter or digit.",
        )
    return text


def check_roles(principal: str, roles: Collection[str]) -> frozenset[str]:
    """The roles as a set.

    Raises:
        BadInput: A role is unknown, or roles are given to a tier or a service.
    """
    unknown = sorted(set(roles) - ROLES)
    if unknown:
        raise BadInput("There is no such role.", next_step=f"The roles are {', '.join(sorted(ROLES))}.")
    if roles and not principal.startswith("person:"):
        raise BadInput("Only people have roles.", next_step="Leave the roles out, or issue the token to a person.")
    return frozenset(roles)
