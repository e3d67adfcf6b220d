"""Owns the policy files: finding them, and what one must be before Cedar may see it. Every fault names its file and rule."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import cedarpy

from body_broker.calls import Json
from body_broker.errors import PolicyError
from body_broker.text import clean, digest
from policies.catalogue import GROUPS
from policies.decision import Requirement
from policies.reads import Reads, actions_named, read_by

SHIPPED_DIR = Path(__file__).parent
OPTIONAL_DIR = SHIPPED_DIR / "optional"
CHANNELS = ("slack", "mfa", "local")
POLICY_ERROR = "policy-error"
UNKNOWN_ACTION = "unknown-action"
NO_IDENTITY = "no-identity"

_RESERVED = (POLICY_ERROR, UNKNOWN_ACTION, NO_IDENTITY)
_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_TTL = re.compile(r"([1-9]\d{0,4})([smh])")
_SECONDS: Mapping[str, int] = {"s": 1, "m": 60, "h": 3600}
_TTL_DEFAULT = "15m"
_ROUTES = frozenset({"approvers", "quorum", "ttl"})


@dataclass(frozen=True, slots=True)
class Source:
    """One policy file."""

    file: str
    text: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One policy.

    Attributes:
        id: Its @id.
        file: The name of its file.
        permits: Whether it permits; else it forbids.
        body: Its Cedar JSON form.
        actions: The actions and groups its action scope names; empty where that is open.
        reads: What it looks at.
        requirement: What its annotations ask of people, where it carries @approval.
    """

    id: str
    file: str
    permits: bool
    body: Json
    actions: frozenset[str]
    reads: Reads
    requirement: Requirement | None


def fault(file: str, rule: str | None, what: str, problems: Iterable[str] = ()) -> PolicyError:
    """The error that stops the start: `what` is a clause about the rule, or about the file where no rule is known."""
    place = f"{file}: the rule {clean(rule, limit=64)}" if rule else file
    found = [clean(problem, limit=400) for problem in problems]
    return PolicyError(
        f"{place} {what}.",
        next_step="Correct the file; `body-broker policy check` says whether it loads.",
        details={"file": file, "rule": rule, **({"problems": found} if found else {})},
    )


def sources(extra_dir: Path | None) -> list[Source]:
    """Our policy files, then a studio's own.

    Raises:
        PolicyError: The studio's directory is missing or holds no policy, or a file is not text.
    """
    files = sorted(SHIPPED_DIR.glob("*.cedar"))
    if extra_dir is not None:
        if not (extra := sorted(extra_dir.glob("*.cedar"))):
            raise PolicyError(
                "The directory of the studio's own policies is missing or holds no .cedar file.",
                next_step="Correct BODY_BROKER_POLICIES_DIR, or unset it.",
            )
        files += extra
    return [_source(file) for file in files]


def _source(file: Path) -> Source:
    try:
        return Source(file.name, file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise fault(file.name, None, "cannot be read as UTF-8 text") from error


def parse(source: Source) -> list[Rule]:
    """The rules of a file.

    Raises:
        PolicyError: The file is not Cedar, or a rule breaks one of ours: an @id, permits that name granting groups only,
            approvals as forbids with complete annotations.
    """
    try:
        parsed = json.loads(cedarpy.policies_to_json_str(source.text))
    except ValueError as error:
        rule, line = _where(source.text)
        raise fault(source.file, rule, f"is not Cedar, at or after line {line}") from error
    if parsed["templates"]:
        raise fault(source.file, None, "holds a template (?principal, ?resource), which nothing would link")
    return [_rule(source.file, body) for body in parsed["staticPolicies"].values()]


def _where(text: str) -> tuple[str | None, int]:
    """The @id and the first line of the first policy that does not parse: what stands before it does."""
    good = 0
    for match in re.finditer(";", text):
        try:
            cedarpy.policies_to_json_str(text[: match.end()])
        except ValueError:
            continue
        good = match.end()
    rest = text[good:]
    named = re.search(r'@id\("([^"\n]*)"\)', rest.partition(";")[0])
    return named and named.group(1), text.count("\n", 0, good + len(rest) - len(rest.lstrip())) + 1


def _rule(file: str, body: Json) -> Rule:
    annotations = cast("dict[str, str]", body.get("annotations", {}))
    name = annotations.get("id") or ""
    if not _ID.fullmatch(name) or name in _RESERVED:
        raise fault(file, name or None, "needs an @id of small letters, digits, - and _ that is its own")
    reads = read_by(body)
    if reads.whole:
        raise fault(file, name, "uses the whole context or all arguments at once; name the attributes it reads")
    permits, actions = body["effect"] == "permit", frozenset(actions_named(body))
    if permits:
        _check_permit(file, name, actions, reads, annotations)
    requirement = _requirement(file, name, body, annotations)
    if not permits and (requirement is not None) != ("approval" in reads.context):
        raise fault(file, name, "must read context.approval and carry @approval, or neither: else nobody can be asked")
    return Rule(name, file, permits, body, actions, reads, requirement)


def _check_permit(file: str, name: str, actions: frozenset[str], reads: Reads, annotations: Mapping[str, str]) -> None:
    if not actions or not actions <= set(GROUPS):
        what = "is a permit and must name granting groups as its actions; narrow it with `when { action == ... }`"
        raise fault(file, name, what)
    if "approval" in reads.context or "approval" in annotations:
        raise fault(file, name, "is a permit, and an approval belongs to a forbid: write forbid ... unless { ... }")


def _requirement(file: str, name: str, body: Json, annotations: dict[str, str]) -> Requirement | None:
    via, approvers = _list(annotations.get("approval")), _list(annotations.get("approvers"))
    if "approval" not in annotations:
        if _ROUTES & annotations.keys():
            raise fault(file, name, "has @approvers, @quorum or @ttl without @approval")
        return None
    if not via or not set(via) <= set(CHANNELS):
        raise fault(file, name, f"has an @approval that is not a list of {', '.join(CHANNELS)}")
    if not approvers:
        raise fault(file, name, "has @approval without @approvers")
    quorum, ttl = annotations.get("quorum", "1"), _TTL.fullmatch(annotations.get("ttl", _TTL_DEFAULT))
    if not re.fullmatch(r"[1-9]", quorum):
        raise fault(file, name, "has a @quorum that is not a number from 1 to 9")
    if ttl is None:
        raise fault(file, name, "has a @ttl that is not like 90s, 15m or 1h")
    return Requirement(
        rule=name,
        via=via,
        approvers=approvers,
        quorum=int(quorum),
        ttl_s=int(ttl[1]) * _SECONDS[ttl[2]],
        own="mfa" in via and "quorum" not in annotations,
        rule_digest=digest(body),
    )


def _list(text: str | None) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in (text or "").split(","))))
