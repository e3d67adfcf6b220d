from __future__ import annotations

import ast
from itertools import permutations

import pytest

from policies.decision import Identity
from policies.engine import Policy
from policies.matrix import matrix_markdown, modifiers_markdown
from tests.policies.oracle import IDENTITIES, OPERATIONS, oracle, outcome, person, questions
from tests.tools.project import ROOT

# DESIGN.md §4, copied by hand.
MATRIX = """\
| granting group: its tools | gold | silver | bronze | service (game server) | designer | engineer | sre | security | admin |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| own: whoami, get_job, list_jobs, cancel_job, list_my_approvals, get_approval, cancel_approval, get_story_arc | A | A | A | A | A | A | A | A | A |
| state_read: game_state's reads, get_predictions, get_intent | A, `fresh=false` only | A | A | A | A | A | A | - | A |
| retrieval: rag's reads, retrieve_lore, check_consistency, plot and fact reads | - | A | A | A | A | A | A | A | A |
| config_read: get_config, list_config | - | A | A | A | A | A | A | - | A |
| security_read: findings, scans, SBOM, audit_with_ai (+ spend, long_running) | - | A | A | - | - | A | A | A | A |
| admin_read: query_aws_resource, get_aws_identity, costs, metrics, generate_admin_report (+ spend, long_running) | - | - | A | - | - | - | A | - | A |
| security_scan: scan_codebase (+ long_running) | - | - | ? | - | - | A, registered repositories | - | A | A |
| draft: propose_change, generate, talk_to_npc (+ spend), generate_narrative, generate_story_arc, submit_job (+ spend, long_running), own drafts | - | - | A | A | A | A | A | A | A |
| intent: submit_intent | A, its own NPCs | - | - | - | - | - | - | - | - |
| queued: queue_state_change(s), cancel_state_change | - | -; A by an opt-in file | A | A | ? | ? | ? | - | ? |
| write: ingest_documents, reindex, canon facts and plots, suppressions; approve_change of kinds config, ingest, world patch | - | - | ? | - | ? | ? | ? | ? | ? |
| admin_change: approve_change of the other kinds, pauses, deployments | - | - | ? | - | - | - | ? | - | ? |
"""

MODIFIERS = """\
| modifier | forbids |
| --- | --- |
| long_running | gold, silver, service |
| spend | gold, silver; everybody else beyond their budget |
| destructive | everybody without approval; two people where an agent asks |
| external | bronze without approval; anyone tainted without approval |
"""

CHAINS = [
    *permutations([person("designer"), Identity("tier:silver")]),
    (person("sre"), Identity("tier:bronze")),
    (person("security"), Identity("tier:bronze")),
    (Identity("service:game"), Identity("tier:gold")),
    (Identity("service:game"), Identity("tier:bronze")),
    (person("admin"), Identity("person:bob", frozenset({"admin"}))),
    (person("engineer"), Identity("service:game"), Identity("tier:bronze")),
]


def test_the_generated_matrix_is_the_designs() -> None:
    assert matrix_markdown() == MATRIX


def test_the_generated_modifiers_are_the_designs() -> None:
    assert modifiers_markdown() == MODIFIERS


@pytest.mark.parametrize("identity", IDENTITIES, ids=lambda who: ":".join([who.principal, *sorted(who.roles)]))
def test_every_decision_is_the_oracles(policy: Policy, identity: Identity) -> None:
    wrong = [asked for asked in questions((identity,)) if outcome(policy.decide(asked)) != oracle(asked)]
    assert wrong == []


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: ">".join(who.principal for who in chain))
def test_a_chain_gets_what_the_strictest_of_its_identities_gets(policy: Policy, chain: tuple[Identity, ...]) -> None:
    wrong = [asked for asked in questions(chain) if outcome(policy.decide(asked)) != oracle(asked)]
    assert wrong == []


def test_the_oracle_asks_about_every_kind_of_outcome() -> None:
    found = {oracle(asked)[0] for identity in IDENTITIES for asked in questions((identity,))}
    assert found == {"Allow", "Ask", "Deny"}
    assert len({operation.name for operation in OPERATIONS}) == len(OPERATIONS)


def test_the_oracle_shares_nothing_with_what_it_judges_but_the_words() -> None:
    source = (ROOT / "tests/policies/oracle.py").read_text("utf-8")
    nodes = list(ast.walk(ast.parse(source)))
    assert not [name for node in nodes if isinstance(node, ast.Import) for name in node.names if "." in name.name]
    froms = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert froms <= {"__future__", "collections.abc", "itertools", "typing", "policies.decision"}
