"""Metrics of approvals: the same on every hub, whoever decided where, and never in the way of the others."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from body_broker.storage.postgres import Pool
from mcp_servers.hub.cli.status import approvals_line
from mcp_servers.hub.metrics import Metrics

_ADD = """
INSERT INTO approval (id, digest, tool, server, definition, arguments, chain, asker, requester, sessions, tainted, depth, history,
    requirements, effect, destructive, headline, notify, state, outcome, receipt_writer, receipt_sequence,
    created_at, expires_at, decided_at, ended_at, delivered_at)
SELECT 'apr_' || md5($1 || $2 || n), md5($1 || n) || md5($2 || n), 'sweep', 'errands', 'd', '{}', '{tier:bronze}', 'tier:bronze', 'tier:bronze',
    '{s}', false, 0, '{}', '[]', 'once', false, 'Sweep', false, $1, nullif($2, ''), 'w', n,
    now(), now() + interval '1 hour', CASE WHEN $1 <> 'pending' THEN now() END, CASE WHEN $1 <> 'pending' THEN now() END, now()
FROM generate_series(1, $3::integer) AS n
"""


async def add(pool: Pool, state: str, outcome: str = "", number: int = 1) -> None:
    await pool.execute(_ADD, state, outcome, number)


async def read(metrics: Metrics, pool: Pool) -> dict[str, float]:
    await metrics.read(pool)
    families = text_string_to_metric_families(metrics.text())
    found = (sample for family in families for sample in family.samples)
    return {f"{s.name}{sorted(s.labels.values())}": s.value for s in found if "approval" in s.name}


async def test_what_waits_and_what_became_of_the_rest_is_told_from_the_database(pool: Pool) -> None:
    await add(pool, "pending", number=3)
    for state, outcome in (
        ("denied", ""),
        ("expired", ""),
        ("approved", ""),
        ("approved", "done"),
        ("approved", "unknown"),
    ):
        await add(pool, state, outcome, 2)
    await pool.execute("UPDATE approval SET expires_at = now() WHERE id = 'apr_' || md5('pending1')")
    found, elsewhere = await read(Metrics(), pool), await read(Metrics(), pool)
    assert found["body_broker_approvals_pending[]"] == 2
    totals = {
        name: found[f"body_broker_approvals_total['{name}']"]
        for name in ("approved", "denied", "expired", "cancelled", "done", "failed", "unknown")
    }
    assert totals == {
        "approved": 6, "denied": 2, "expired": 2, "cancelled": 0, "done": 2, "failed": 0, "unknown": 2,
    }  # fmt: skip
    assert found["body_broker_approval_notices_failed[]"] == 0
    assert {k: v for k, v in found.items() if "created" not in k} == {
        k: v for k, v in elsewhere.items() if "created" not in k
    }


async def test_notices_that_failed_are_told_until_they_get_through(pool: Pool) -> None:
    await add(pool, "pending")
    add_notice = "INSERT INTO approval_notice (approval_id, failures, failed_at, failure) SELECT id, 2, now(), 'not_in_channel' FROM approval"
    await pool.execute(add_notice)
    assert (await read(Metrics(), pool))["body_broker_approval_notices_failed[]"] == 1
    line = await approvals_line(pool)
    assert (
        line
        == "1 pending, 0 unknown, 1 failed notices; the last notice failed with not_in_channel: body-broker slack check"
    )
    await pool.execute("UPDATE approval_notice SET failures = 0")
    assert (await read(Metrics(), pool))["body_broker_approval_notices_failed[]"] == 0


async def test_what_only_a_person_can_settle_is_told_with_the_command_for_it(pool: Pool) -> None:
    await add(pool, "approved", "unknown")
    assert await approvals_line(pool) == (
        "0 pending, 1 unknown, 0 failed notices; body-broker approvals resolve settles what is unknown"
    )


async def test_the_time_to_a_decision_is_counted_for_what_people_decided(pool: Pool) -> None:
    metrics = Metrics()
    metrics.approval_ended("approved", 42.0)
    metrics.approval_ended("denied", 3.0)
    metrics.approval_ended("expired", 900.0)
    found = await read(metrics, pool)
    assert found["body_broker_approval_decision_seconds_count[]"] == 2
    assert found["body_broker_approval_decision_seconds_sum[]"] == 45
    assert found["body_broker_approval_decision_seconds_bucket['60.0']"] == 2
    assert found["body_broker_approval_decision_seconds_bucket['5.0']"] == 1


async def test_nothing_is_claimed_of_approvals_while_the_database_is_away(pool: Pool) -> None:
    metrics = Metrics()
    await add(pool, "pending")
    assert "body_broker_approvals_pending[]" in await read(metrics, pool)
    await pool.close()
    found = await read(metrics, pool)
    assert "body_broker_approvals_pending[]" not in found
    assert "body_broker_approval_decision_seconds_count[]" in found
