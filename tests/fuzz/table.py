"""Owns the tools' classes once more, copied by hand from DESIGN.md §4 and the seeds: what the policy decides is compared with these."""

from __future__ import annotations

from tests.policies.oracle import Operation

_JOBS = frozenset({"long_running", "spend"})
_ROWS: dict[tuple[str, frozenset[str]], str] = {
    (
        "own",
        frozenset(),
    ): "whoami get_job list_jobs cancel_job get_approval cancel_approval list_my_approvals get_story_arc",
    ("draft", frozenset({"spend"})): "generate talk_to_npc",
    ("draft", _JOBS): "submit_job submit_jobs generate_narrative generate_story_arc",
    ("draft", frozenset()): "propose_change",
    (
        "retrieval",
        frozenset(),
    ): "retrieve_lore check_consistency get_entity_facts get_quest get_plot_graph list_available_quests explain_locked"
    " validate_plot_graph search_lore vector_search retrieve_context get_document list_indices",
    ("config_read", frozenset()): "get_config list_config",
    ("write", frozenset()): "add_fact retire_fact ingest_documents reindex",
    ("write", frozenset({"destructive"})): "delete_document",
    ("security_scan", frozenset({"long_running"})): "scan_codebase",
    (
        "security_read",
        frozenset(),
    ): "list_findings get_finding get_scan list_repositories scanner_status",
    ("security_read", _JOBS): "audit_with_ai",
    ("admin_read", frozenset()): "query_aws_resource get_aws_identity list_aws_resource_types",
    ("admin_read", _JOBS): "generate_admin_report",
    ("admin_change", frozenset()): "approve_change",
    (
        "state_read",
        frozenset(),
    ): "get_npc_state get_world_state find_entities get_npc_states get_player_state get_events get_entity_history get_intent"
    " get_predictions get_engine_status get_change_status wait_for_change",
    ("queued", frozenset()): "queue_state_change queue_state_changes cancel_state_change",
    ("intent", frozenset()): "submit_intent",
}
TOOLS = {
    name: Operation(name, group, modifiers) for (group, modifiers), names in _ROWS.items() for name in names.split()
}
LATER = {"accept_upstream_definition"}
"""Tools that only the hub itself calls."""
