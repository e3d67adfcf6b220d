"""Owns the calls into cedarpy: rules and a schema compiled once, principals as Cedar knows them, one question at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, cast

import cedarpy

from body_broker.calls import Json
from policies.catalogue import Entry
from policies.decision import Approval, Identity
from policies.rules import Rule

_TYPES: Mapping[str, str] = {"tier": "Hub::Tier", "person": "Hub::Person", "service": "Hub::Service"}
_ANYBODY = "*"  # stands for everyone of a kind whom no policy names


class Verdict(NamedTuple):
    """What Cedar says of one identity: the rules that decided; `error` where it could not say, which is no."""

    allowed: bool
    rules: tuple[str, ...]
    error: bool = False


@dataclass(frozen=True, eq=False)
class Principal:
    """All identities that no policy can tell apart; one object a kind, so it may be compared by identity.

    Attributes:
        uid: What Cedar calls it.
        entities: Its entity with the roles it is in.
    """

    uid: dict[str, str]
    entities: cedarpy.Entities

    @property
    def text(self) -> str:
        """The uid in Cedar's syntax, which partial evaluation wants."""
        return uid_text(self.uid["type"], self.uid["id"])


class Principals:
    """Identities as Cedar principals, one for each kind: tier, role set, or a person or service that a policy names."""

    def __init__(self, schema: cedarpy.Schema, named: Iterable[tuple[str, str]]) -> None:
        self._schema = schema
        self._named = frozenset(named)
        self._kinds: dict[tuple[str, str, frozenset[str]], Principal] = {}
        self.nobody = entities_of([], schema)

    def find(self, identity: Identity) -> Principal | None:
        """The principal of an identity; None where the schema knows no such tier, role or kind of identity."""
        kind, _, name = identity.principal.partition(":")
        type_name = _TYPES.get(kind)
        if type_name is None or not name:
            return None
        told_apart = kind == "tier" or (type_name, name) in self._named
        key = (type_name, name if told_apart else _ANYBODY, identity.roles)
        if (found := self._kinds.get(key)) is None and (found := self._make(*key)) is not None:
            self._kinds[key] = found  # bounded: the schema refuses what is not one of a few tiers and roles
        return found

    def _make(self, type_name: str, name: str, roles: frozenset[str]) -> Principal | None:
        uid = {"type": type_name, "id": name}
        parents = [{"type": "Hub::Role", "id": role} for role in sorted(roles)]
        try:
            return Principal(uid, entities_of([{"uid": uid, "attrs": {}, "parents": parents}], self._schema))
        except ValueError:
            return None


class RuleSet:
    """Rules compiled once, when first asked; what Cedar reports of them is their @id."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._bodies = {rule.id: rule.body for rule in rules}

    @cached_property
    def _policies(self) -> cedarpy.PolicySet:
        return cedarpy.PolicySet.from_json_str(
            json.dumps({"staticPolicies": self._bodies, "templates": {}, "templateLinks": []})
        )

    def ask(self, principal: Principal, entry: Entry, context: str, schema: cedarpy.Schema) -> Verdict:
        """Cedar's verdict, the request checked against the schema.

        An erroring forbid is skipped by Cedar and would leave an Allow: any error is a no.
        """
        request = {
            "principal": principal.uid,
            "action": {"type": "Hub::Action", "id": entry.name},
            "resource": {"type": "Hub::Server", "id": entry.server},
            "context": context,
        }
        result = cedarpy.is_authorized(  # pyright: ignore[reportUnknownMemberType]  # cedarpy says plain dict
            request, self._policies, principal.entities, schema
        )
        error = bool(result.diagnostics.errors) or result.decision == cedarpy.Decision.NoDecision
        allowed = result.decision == cedarpy.Decision.Allow and not error
        return Verdict(allowed, tuple(sorted(result.diagnostics.reasons)), error)

    def foresee(
        self,
        principal: Principal | None,
        entry: Entry,
        context: Mapping[str, Json],
        nobody: cedarpy.Entities | None = None,
    ) -> cedarpy.Decision:
        """What partial evaluation already knows; NoDecision where it hangs on something unknown. Never decides a call.

        Args:
            principal: Who; None for anybody at all.
            entry: The operation.
            context: What is known of the context; `unknown(...)` stands for the rest.
            nobody: The schema's entities without any principal, for where there is none.
        """
        request: dict[str, Json] = {
            "action": uid_text("Hub::Action", entry.name),
            "resource": uid_text("Hub::Server", entry.server),
            "context": json.dumps(dict(context)),
        }
        if principal is not None:
            request["principal"] = principal.text
        entities = principal.entities if principal else nobody
        assert entities is not None, "without a principal say which entities there are"
        result = cedarpy.is_authorized_partial(  # pyright: ignore[reportUnknownMemberType]  # cedarpy says plain dict
            request, self._policies, entities
        )
        return cedarpy.Decision.Deny if result.diagnostics.errors else result.decision


def entities_of(entities: Sequence[Json], schema: cedarpy.Schema) -> cedarpy.Entities:
    """These entities and the schema's actions, without which every action is in no group and all is denied.

    Raises:
        ValueError: One does not fit the schema.
    """
    text = json.dumps(entities)
    return cedarpy.Entities.from_json_str(text, schema)  # pyright: ignore[reportUnknownMemberType]  # cedarpy says plain dict


def validate(text: str, schema: cedarpy.Schema) -> tuple[str | None, list[str]]:
    """The @id of the first policy that does not fit the schema, and what the validator says of each that does not."""
    result = cedarpy.validate_policies(text, schema)  # pyright: ignore[reportUnknownMemberType]  # cedarpy says plain dict
    names = cast("dict[str, str]", result.id_annotations_by_policy_id)  # pyright: ignore[reportUnknownMemberType]  # cedarpy says plain dict
    named = [names[error.policy_id] for error in result.errors if error.policy_id in names]
    problems = [error.error for error in result.errors]
    return next(iter(named), None), problems if not result.validation_passed else []


def unknown(name: str) -> Json:
    """A value that partial evaluation does not know."""
    return {"__extn": {"fn": "unknown", "arg": name}}


def uid_text(type_name: str, name: str) -> str:
    """An entity's uid in Cedar's syntax."""
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'{type_name}::"{quoted}"'


def anything(**known: Json) -> dict[str, Json]:
    """A context of which only this is known; the approval is absent unless given."""
    rest = ("arguments", "facts", "tainted", "depth", "history")
    return {name: unknown(name) for name in rest} | known


def approval_json(approval: Approval, *, alone: bool) -> dict[str, Json]:
    """An approval as the context carries it; the asker's own yes counts only where the asker is a person who calls alone."""
    return {
        "via": sorted(approval.via),
        "count": approval.count,
        "groups": sorted(approval.groups),
        "own": approval.own and alone,
    }
