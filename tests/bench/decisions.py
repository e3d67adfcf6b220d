"""The policy decision, all in: a memo hit, and Cedar asked anew each time."""

from __future__ import annotations

import time

from body_broker.settings import load_settings
from mcp_servers.hub.runtime import load_policy
from policies.decision import Identity, Question
from policies.engine import Policy

TIMES = 5_000


def measure() -> str:
    """The table as Markdown."""
    policy = load_policy(load_settings({}))
    silver = (Identity("tier:silver"),)

    def question(depth: int) -> Question:
        return Question("search_lore", silver, {"query": "x"}, tainted=False, depth=depth, history=frozenset())

    same = question(0)
    hit = sorted(_timed(policy, same) for _ in range(TIMES))
    # A depth that was never asked before is a decision that cannot be remembered.
    miss = sorted(_timed(policy, question(-i - 1)) for i in range(TIMES))
    rows = [("remembered", hit), ("Cedar asked anew", miss)]
    lines = ["| decision | p50 µs | p99 µs |", "| --- | --- | --- |"]
    lines += [f"| {name} | {t[len(t) // 2] / 1e3:.1f} | {t[len(t) * 99 // 100] / 1e3:.1f} |" for name, t in rows]
    return "\n".join(lines)


def _timed(policy: Policy, question: Question) -> int:
    began = time.perf_counter_ns()
    policy.decide(question)
    return time.perf_counter_ns() - began
