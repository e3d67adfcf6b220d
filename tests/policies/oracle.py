"""The matrix of DESIGN.md §4 once more, written by hand as plain Python that knows nothing of Cedar or of our engine."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

from policies.decision import Allow, Approval, Ask, Decision, Identity, Question

READS = {"own", "state_read", "retrieval", "config_read"}
MAY = {
    "gold": {"own", "state_read", "intent"},
    "silver": READS | {"security_read"},
    "bronze": READS | {"security_read", "admin_read", "security_scan", "draft", "queued", "write", "admin_change"},
    "service": READS | {"draft", "queued"},
    "hub": {"admin_change"},
    "designer": READS | {"draft", "queued", "write", "admin_change"},
    "engineer": READS | {"security_read", "security_scan", "draft", "queued", "write", "admin_change"},
    "sre": READS | {"security_read", "admin_read", "draft", "queued", "write", "admin_change"},
    "security": {"own", "retrieval", "security_read", "security_scan", "draft", "write", "admin_change"},
    "admin": READS | {"security_read", "admin_read", "security_scan", "draft", "queued", "write", "admin_change"},
    "nobody": {"own"},
}
KINDS_THAT_ARE_WRITES = {"config", "ingest", "world_patch"}
KINDS = KINDS_THAT_ARE_WRITES | {"delete_lore", "world_remove", "pause", "resume", "deploy", "redeploy"}
KINDS_THAT_DESTROY = {"delete_lore", "world_remove", "redeploy"}
TAINT_GATES = {"queued", "security_scan", "write", "admin_change", "external", "destructive"}

SRE = frozenset({"sre", "admin"})
SECURITY = frozenset({"security"})


class Operation(NamedTuple):
    name: str
    group: str
    modifiers: frozenset[str] = frozenset()


class Gate(NamedTuple):
    """What a rule wants: the groups one of which must approve, how many, and whether the asker's own yes will do."""

    groups: frozenset[str]
    quorum: int
    own: bool


OPERATIONS = (
    *(
        Operation(f"probe:{group}", group)
        for group in (
            "own", "state_read", "retrieval", "config_read", "security_read", "admin_read", "security_scan", "draft",
            "intent", "queued", "write", "admin_change",
        )
    ),
    *(
        Operation(f"wide:{group}", group)
        for group in (
            "own", "state_read", "retrieval", "config_read", "security_read", "admin_read", "security_scan", "draft",
            "intent", "queued", "write", "admin_change",
        )
    ),
    *(
        Operation(f"probe:own+{modifier}", "own", frozenset({modifier}))
        for modifier in ("long_running", "spend", "destructive", "external")
    ),
    Operation("probe:security_scan+long_running", "security_scan", frozenset({"long_running"})),
    Operation("probe:queued+destructive", "queued", frozenset({"destructive"})),
    Operation("probe:unclassified", "write", frozenset({"destructive", "external"})),
    Operation("probe:approve_change", "admin_change"),
    Operation("accept_upstream_definition", "admin_change"),
)  # fmt: skip
BY_NAME = {operation.name: operation for operation in OPERATIONS}


def person(*roles: str) -> Identity:
    return Identity("person:anna", frozenset(roles))


def call(
    action: str,
    *chain: Identity,
    tainted: bool = False,
    depth: int = 0,
    history: frozenset[str] = frozenset(),
    **arguments: Any,
) -> Question:
    return Question(action, chain, arguments, tainted, depth, history, ALL_FACTS)


ALL_FACTS = frozenset({"own_npc", "registered_repository", "within_budget"})
IDENTITIES = (
    Identity("tier:gold"),
    Identity("tier:silver"),
    Identity("tier:bronze"),
    Identity("service:game"),
    Identity("service:hub"),
    person(),
    *(person(role) for role in ("designer", "engineer", "sre", "security", "admin")),
    person("engineer", "security"),
)


def columns(identity: Identity) -> set[str]:
    kind, _, name = identity.principal.partition(":")
    if kind == "person":
        return set(identity.roles) or {"nobody"}
    if identity.principal == "service:hub":
        return {"service", "hub"}
    return {name if kind == "tier" else "service"}


def permitted(question: Question, operation: Operation, column: str) -> bool:
    if operation.group not in MAY[column] or (column == "hub" and operation.name != "accept_upstream_definition"):
        return False
    if column == "gold" and operation.group == "state_read":
        return question.arguments.get("fresh") is False
    if operation.group == "intent":
        return "own_npc" in question.facts
    if column == "engineer" and operation.group == "security_scan":
        return "registered_repository" in question.facts
    if column in {"designer", "engineer", "security"} and operation.group == "admin_change":
        return kind_of(question) in KINDS_THAT_ARE_WRITES
    return True


def kind_of(question: Question) -> str | None:
    request: Any = question.arguments.get("change_request") or {}
    return request.get("kind")


def refused(question: Question, operation: Operation, identity: Identity) -> bool:
    who = columns(identity)
    return (
        not any(permitted(question, operation, column) for column in who)
        or ("long_running" in operation.modifiers and bool(who & {"gold", "silver", "service"}))
        or (
            "spend" in operation.modifiers and (bool(who & {"gold", "silver"}) or "within_budget" not in question.facts)
        )
        or question.depth > 8
        or (operation.group == "admin_change" and kind_of(question) not in KINDS | {None})
    )


def gates(question: Question, operation: Operation, identity: Identity) -> dict[str, Gate]:
    is_person = identity.principal.startswith("person:")
    marks = {operation.group, *operation.modifiers}
    found: dict[str, Gate] = {}
    if is_person and operation.group == "queued":
        found["people-queue-with-approval"] = Gate(SRE, 1, own=True)
    if operation.group == "write":
        found["writes-need-approval"] = Gate(SRE, 1, own=True)
    if operation.group == "admin_change":
        found["admin-changes-need-approval"] = Gate(SRE, 1, own=True)
    if identity.principal.startswith("tier:") and operation.group == "security_scan":
        found["scans-by-tiers-need-approval"] = Gate(SECURITY, 1, own=False)
    if "destructive" in marks:
        found["destruction-needs-approval"] = Gate(SRE, 1, own=True)
    destroys = "destructive" in marks or (operation.group == "admin_change" and kind_of(question) in KINDS_THAT_DESTROY)
    if destroys and not is_person:
        found["destruction-by-agents-needs-two"] = Gate(SRE, 2, own=False)
    if identity.principal == "tier:bronze" and "external" in marks:
        found["external-by-bronze-needs-approval"] = Gate(SECURITY | {"admin"}, 1, own=False)
    if question.tainted and marks & TAINT_GATES:
        found["tainted-needs-approval"] = Gate(SRE | SECURITY, 1, own=True)
    return found


def satisfied(gate: Gate, approval: Approval | None, *, alone: bool) -> bool:
    if approval is None:
        return False
    if gate.own and approval.own and alone:
        return True
    via = {"slack", "mfa", "local"} if gate.own else {"slack", "mfa"}
    return bool(approval.groups & gate.groups and approval.count >= gate.quorum and approval.via & via)


def oracle(question: Question, operation: Operation | None = None) -> tuple[str, frozenset[str]]:
    """What must come out: the decision's name, and for an Ask the rules that ask."""
    operation = operation or BY_NAME[question.action]
    alone = len(question.identities) == 1 and question.identities[0].principal.startswith("person:")
    asking: set[str] = set()
    for identity in question.identities:
        if refused(question, operation, identity):
            return "Deny", frozenset()
        for rule, gate in gates(question, operation, identity).items():
            if not satisfied(gate, question.approval, alone=alone):
                asking.add(rule)
    return ("Ask", frozenset(asking)) if asking else ("Allow", frozenset())


def outcome(decision: Decision) -> tuple[str, frozenset[str]]:
    """A decision in the oracle's words."""
    if isinstance(decision, Ask):
        return "Ask", frozenset(decision.rules)
    return ("Allow" if isinstance(decision, Allow) else "Deny"), frozenset()


def approval(via: str, count: int, *groups: str, own: bool = False) -> Approval:
    return Approval(frozenset({via}), count, frozenset(groups), own)


FACTS = (frozenset[str](), ALL_FACTS, *(ALL_FACTS - {fact} for fact in sorted(ALL_FACTS)))
APPROVALS = (
    None,
    approval("slack", 1, "sre"),
    approval("mfa", 1, "admin"),
    approval("mfa", 2, "sre"),
    approval("slack", 2, "admin"),
    approval("slack", 1, "security"),
    approval("mfa", 1, "security"),
    approval("slack", 2, "security", "sre"),
    approval("mfa", 2, "security", "admin"),
    approval("local", 2, "security", "sre", "admin"),
    approval("local", 1, "sre"),
    approval("local", 1, "admin"),
    approval("local", 1, "security"),
    Approval(frozenset(), 2, frozenset({"security", "sre", "admin"})),  # through no channel at all
    approval("slack", 3, "designer"),
    approval("mfa", 0, own=True),
)


def arguments_of(operation: Operation) -> list[dict[str, Any]]:
    if operation.name == "probe:approve_change":
        return [{"change_request": {"kind": kind}} for kind in [*sorted(KINDS), "anything_else"]]
    if operation.name.startswith("wide:"):
        kinds = [{"change_request": {"kind": kind}} for kind in ("config", "redeploy", "anything_else")]
        return [{}, {"fresh": False}, {"fresh": True}, *kinds, {"fresh": None, "change_request": None}]
    if operation.group == "state_read":
        return [{"fresh": False}, {"fresh": True}]
    return [{}]


def questions(chain: tuple[Identity, ...]) -> Iterator[Question]:
    """Every operation with every argument that matters, in circumstances that tell all rules apart."""
    circumstances = {
        *product((False, True), (0,), (ALL_FACTS,), APPROVALS),
        *product((False,), (0,), FACTS, (None,)),
        *product((False,), (7, 8, 9), (ALL_FACTS,), (None,)),
    }
    plain = {(False, 0, facts, None) for facts in FACTS}
    for operation in OPERATIONS:
        ordered = sorted(plain if operation.name.startswith("wide:") else circumstances, key=repr)
        for arguments, (tainted, depth, facts, given) in product(arguments_of(operation), ordered):
            yield Question(operation.name, chain, arguments, tainted, depth, frozenset(), facts, given)
