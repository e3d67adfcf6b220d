"""Owns who a token's claims mean: one person, by approvers.toml or by a name spelled like ours, and the roles they carry."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, cast

from approvals.people import People
from body_broker.errors import Unauthenticated
from body_broker.settings import Settings
from mcp_servers.hub.principals import ROLES, is_principal

Claims = Mapping[str, Any]
_VALUE_CHARACTERS_MAX = 255


class Mapper:
    """From claims to a person and roles; the claims were checked before.

    Args:
        settings: Which claims are read.
        people: Whose `oidc` entries come first.
    """

    def __init__(self, settings: Settings, people: People) -> None:
        self._person_claim, self._roles_claim = settings.oidc_person_claim, settings.oidc_roles_claim
        self._people = people

    def person(self, claims: Claims) -> str:
        """The principal.

        The value of the person claim is looked up in approvers.toml; else it must be spelled as a name already. Nothing is
        cut, folded or made to fit, so that two values never become one person.

        Raises:
            Unauthenticated: The claim is missing, not verified, or means nobody.
        """
        claim = self._person_claim
        value = _found(claims, claim)
        if not isinstance(value, str) or not 0 < len(value) <= _VALUE_CHARACTERS_MAX:
            raise Unauthenticated(
                f"The token has no claim {claim!r} that names a person.",
                next_step="Have the issuer put it there, or set BODY_BROKER_OIDC_PERSON_CLAIM to one that it has.",
            )
        if claim == "email" and claims.get("email_verified") is not True:
            raise Unauthenticated(
                "The issuer does not say that the e-mail address is verified, so anybody may have written it.",
                next_step="Set BODY_BROKER_OIDC_PERSON_CLAIM to a claim that people cannot choose, such as sub.",
            )
        if (known := self._people.by_oidc(value)) is not None:
            return known
        name = f"person:{value}"
        if not is_principal(name):
            raise Unauthenticated(
                f"What the token's claim {claim!r} says is no person's name here.",
                next_step="An operator adds the person to approvers.toml with this value as `oidc` (docs/oidc.md).",
            )
        there = self._people.persons.get(name)
        if there is not None and there.oidc is not None:
            raise Unauthenticated("The token names a person of approvers.toml who is known by another account.")
        return name

    def roles(self, claims: Claims) -> frozenset[str]:
        """The roles of ours among those that the token names; names of other systems' roles mean nothing here."""
        value = _found(claims, self._roles_claim)
        named: list[Any] = value.split() if isinstance(value, str) else []
        if isinstance(value, list):
            named = cast("list[Any]", value)
        return frozenset(role for role in named if isinstance(role, str)) & ROLES


def _found(claims: Claims, name: str) -> object:
    """The claim of this very name (some names are URLs), else what a dotted path leads to."""
    return claims[name] if name in claims else functools.reduce(_inside, name.split("."), claims)


def _inside(found: object, part: str) -> object:
    return cast("Claims", found).get(part) if isinstance(found, Mapping) else None
