"""Owns the matrix of DESIGN.md §4 and its modifiers, read off the policies: each cell is what they decide for a probe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from body_broker.calls import Json
from policies.catalogue import MODIFIERS, Catalogue
from policies.decision import Allow, Ask, Decision, Identity, Question
from policies.engine import Policy
from policies.probes import APPROVE_CHANGE, OTHER_KINDS, WRITE_KINDS, probe_of, with_probes
from policies.rules import OPTIONAL_DIR
from policies.schema import ROLES, TIERS

COLUMNS: Mapping[str, Identity] = {
    **{tier: Identity(f"tier:{tier}") for tier in TIERS},
    "service (game server)": Identity("service:game"),
    **{role: Identity("person:somebody", frozenset({role})) for role in ROLES},
}
_WITHIN_BUDGET = frozenset({"within_budget"})


class _Case(NamedTuple):
    probe: str
    condition: str | None = None  # what a cell says where only the cases of this condition pass
    arguments: Mapping[str, Json] = {}
    facts: frozenset[str] = _WITHIN_BUDGET


@dataclass(frozen=True, slots=True)
class _Row:
    label: str
    cases: tuple[_Case, ...] = field(default=())


def _plain(group: str, tools: str) -> _Row:
    return _Row(f"{group}: {tools}", (_Case(probe_of(group)),))


def _changes(kinds: Iterable[str]) -> tuple[_Case, ...]:
    return tuple(_Case(APPROVE_CHANGE, arguments={"change_request": {"kind": kind}}) for kind in kinds)


def _fact(probe: str, condition: str, fact: str) -> tuple[_Case, ...]:
    return (_Case(probe, condition, facts=_WITHIN_BUDGET | {fact}), _Case(probe))


_STATE_READ = probe_of("state_read")
_ROWS = (
    _plain(
        "own",
        "whoami, get_job, list_jobs, cancel_job, list_my_approvals, get_approval, cancel_approval, get_story_arc",
    ),
    _Row(
        "state_read: game_state's reads, get_predictions, get_intent",
        (
            _Case(_STATE_READ, "`fresh=false` only", {"fresh": False}),
            _Case(_STATE_READ, None, {"fresh": True}),
        ),
    ),
    _plain("retrieval", "rag's reads, retrieve_lore, check_consistency, plot and fact reads"),
    _plain("config_read", "get_config, list_config"),
    _plain("security_read", "findings, scans, SBOM, audit_with_ai (+ spend, long_running)"),
    _plain(
        "admin_read",
        "query_aws_resource, get_aws_identity, costs, metrics, generate_admin_report (+ spend, long_running)",
    ),
    _Row(
        "security_scan: scan_codebase (+ long_running)",
        _fact(probe_of("security_scan", "long_running"), "registered repositories", "registered_repository"),
    ),
    _plain(
        "draft",
        "propose_change, generate, talk_to_npc (+ spend), generate_narrative, generate_story_arc, "
        "submit_job (+ spend, long_running), own drafts",
    ),
    _Row("intent: submit_intent", _fact(probe_of("intent"), "its own NPCs", "own_npc")),
    _plain("queued", "queue_state_change(s), cancel_state_change"),
    _Row(
        "write: ingest_documents, reindex, canon facts and plots, suppressions; "
        "approve_change of kinds config, ingest, world patch",
        (_Case(probe_of("write")), *_changes(WRITE_KINDS)),
    ),
    _Row(
        "admin_change: approve_change of the other kinds, pauses, deployments",
        (_Case(probe_of("admin_change")), *_changes(OTHER_KINDS)),
    ),
)


def matrix_markdown(catalogue: Catalogue | None = None, extra_dir: Path | None = None) -> str:
    """The matrix as a Markdown table: A allow, ? ask, - deny, for a session without taint.

    Args:
        catalogue: Operations that a studio's own files speak of.
        extra_dir: A studio's own files; without them the cells also say what our opt-in files would change.

    Raises:
        PolicyError: The policies cannot be loaded.
    """
    known = with_probes(catalogue or Catalogue(()))
    policy = Policy.load(known, extra_dir)
    optional = None if extra_dir else Policy.load(known, OPTIONAL_DIR)
    rows = [[row.label, *(_cell(policy, optional, who, row) for who in COLUMNS.values())] for row in _ROWS]
    return _table(["granting group: its tools", *COLUMNS], rows)


def modifiers_markdown() -> str:
    """The modifiers and whom they stop, as a Markdown table, read off the policies by an operation all may call.

    Raises:
        PolicyError: The policies cannot be loaded.
    """
    policy = Policy.load(with_probes(Catalogue(())))
    return _table(["modifier", "forbids"], [[modifier, _forbidden(policy, modifier)] for modifier in MODIFIERS])


def _cell(policy: Policy, optional: Policy | None, who: Identity, row: _Row) -> str:
    plain = _symbols(policy, who, row)
    if optional is None or (opted := _symbols(optional, who, row)) == plain:
        return plain
    return f"{plain}; {opted} by an opt-in file"


def _symbols(policy: Policy, who: Identity, row: _Row) -> str:
    found = [(_symbol(policy.decide(_question(case, who))), case.condition) for case in row.cases]
    if len({symbol for symbol, _ in found}) == 1:
        return found[0][0]
    passing = [f"{symbol}, {condition or 'some'}" for symbol, condition in found if symbol != "-"]
    return "; ".join(dict.fromkeys(passing))


def _question(case: _Case, who: Identity, *, tainted: bool = False) -> Question:
    return Question(case.probe, (who,), case.arguments, tainted, 0, frozenset(), case.facts)


def _symbol(decision: Decision) -> str:
    return "A" if isinstance(decision, Allow) else "?" if isinstance(decision, Ask) else "-"


def _forbidden(policy: Policy, modifier: str) -> str:
    """In words: who is denied, who must ask, and what taint, an empty budget and agents add to that."""
    case = _Case(probe_of("own", modifier))
    decisions = {name: policy.decide(_question(case, who)) for name, who in COLUMNS.items()}
    broke = {policy.decide(_question(case._replace(facts=frozenset()), who)) for who in COLUMNS.values()}
    tainted = [policy.decide(_question(case, who, tainted=True)) for who in COLUMNS.values()]
    parts = [_who(name for name, decision in decisions.items() if _symbol(decision) == "-")]
    if "A" in map(_symbol, decisions.values()) and {_symbol(decision) for decision in broke} == {"-"}:
        parts.append("everybody else beyond their budget")
    asked = [name for name, decision in decisions.items() if isinstance(decision, Ask)]
    if asked:
        parts.append(f"{_who(asked)} without approval")
    if len(asked) < len(COLUMNS) and all(isinstance(decision, Ask) for decision in tainted):
        parts.append("anyone tainted without approval")
    two = {name for name, decision in decisions.items() if isinstance(decision, Ask) and _quorum(decision) == 2}  # noqa: PLR2004 - two people, as the words below say
    if two and two == {name for name, who in COLUMNS.items() if not who.is_person}:
        parts.append("two people where an agent asks")
    return "; ".join(filter(None, parts))


def _quorum(ask: Ask) -> int:
    return max(requirement.quorum for requirement in ask.requirements)


def _who(names: Iterable[str]) -> str:
    found = [name.partition(" ")[0] for name in names]
    return "everybody" if len(found) == len(COLUMNS) else ", ".join(found)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
