"""Owns records of a hub as the tests of reports have them: written straight into the tables that facts are counted in."""

from __future__ import annotations

from body_broker.storage.postgres import Pool

SECRET = "do not tell: the crown of Ashmere"
"""What stands in contents everywhere, and in no fact."""
PERSON = "person:quiet"
"""Who asked for all of it, and stands in no fact either."""

_WORK = """
INSERT INTO work (id, kind, owner, origin, input, state, priority, run_at, limit_max, attempts_max, created_at, started_at, finished_at,
                  result, error)
VALUES ($1, $2, $6, '{"chain": [], "session": "s", "tainted": false, "depth": 0, "receipt": null}', to_jsonb($7::text), $3, 0, now(), 1, 1, now() - make_interval(days => $4::integer),
    now() - make_interval(days => $4::integer),
    CASE WHEN $3 <> 'queued' THEN now() - make_interval(days => $4::integer) + make_interval(secs => $5::float8) END,
    CASE WHEN $3 = 'succeeded' THEN to_jsonb($7::text) END, to_jsonb($7::text))
"""
_APPROVAL = """
INSERT INTO approval (id, digest, tool, server, definition, arguments, chain, asker, requester, sessions, tainted, depth, history,
    requirements, effect, destructive, headline, notify, state, outcome, receipt_writer, receipt_sequence, created_at, expires_at,
    decided_at, ended_at)
VALUES ('apr_' || lpad($1::integer::text, 24, '0'), lpad($1::integer::text, 64, '0'), 'approve_change', 'admin', 'd', $5, ARRAY[$6::text], $6, $6, ARRAY['s'],
    false, 0, ARRAY[]::text[], '[]', 'repeatable', false, $5, false, $2, $3, 'w', 1, now() - interval '1 hour',
    now() + interval '1 hour', CASE WHEN $2 <> 'pending' THEN now() - interval '1 hour' + make_interval(secs => $4::float8) END,
    CASE WHEN $2 <> 'pending' THEN now() END)
"""
_SPEND = """
INSERT INTO spend_day (day, tier, asker, spent, requests, prompt_tokens, completion_tokens)
SELECT (now() AT TIME ZONE 'UTC')::date - $2::integer, $1, unnest(ARRAY['*', $5::text]), $3, 4, $4, 50
"""
_AUDITED = """
INSERT INTO audit_record (writer, seq, mac, body) VALUES ('w', $1::bigint, '', jsonb_build_object(
    'at', extract(epoch FROM now() - make_interval(days => $4::integer)), 'kind', $2::text, 'verdict', $3::text,
    'requester', $5::text, 'details', $6::text)::text)
"""
_CHANGE = """
INSERT INTO admin_change (id, kind, target, params, requester, asker, state, diff, basis)
VALUES ('chg_' || $1::integer::text, $2, $4, to_jsonb($4::text), $5, $5, $3, $4, '')
"""
_ASKED = """
INSERT INTO expert_call (job, turn, attempt, engine, state, maybe_spent, cost, begun_at, due_at, ended_at)
VALUES ('job_3', $1::integer, 1, 'bronze', $2, $3, $4::bigint, now() - interval '1 minute', now(), now())
"""


async def keep_records(pool: Pool) -> None:
    """A studio's week: a few of everything, some of it too old to count for a week."""
    work = [
        ("job_1", "scan", "succeeded", 0, 10.0),
        ("job_2", "scan", "succeeded", 1, 20.0),
        ("job_3", "expert", "failed", 2, 5.0),
        ("job_4", "nobodys", "queued", 0, 0.0),
        ("job_5", "scan", "succeeded", 9, 999.0),
    ]
    async with pool.acquire() as connection, connection.transaction():
        await connection.executemany(_WORK, [(*row, PERSON, SECRET) for row in work])
        await connection.executemany(
            _ASKED, [(1, "answered", False, 250_000_000), (2, "lost", True, None), (3, "failed", False, 0)]
        )
        approvals = [(1, "approved", "done", 30.0), (2, "denied", None, 60.0), (3, "pending", None, 0.0)]
        await connection.executemany(_APPROVAL, [(*row, SECRET, PERSON) for row in approvals])
        spent = [("cloud", 0, 1_500_000_000, 1_000), ("cloud", 3, 500_000_000, 200), ("bronze", 0, 0, 7)]
        await connection.executemany(_SPEND, [(*row, PERSON) for row in [*spent, ("cloud", 20, 9_000_000_000, 9)]])
        records = [(1, "decision", "allow", 0), (2, "decision", "allow", 1), (3, "decision", "deny", 0)]
        await connection.executemany(
            _AUDITED, [(*row, PERSON, SECRET) for row in [*records, (4, "decision", "deny", 10)]]
        )
        changes = [(1, "config", "done"), (2, "config", "failed"), (3, "config", "draft")]
        await connection.executemany(_CHANGE, [(*row, SECRET, PERSON) for row in changes])
        await connection.execute(
            "INSERT INTO repository (name, root, by) VALUES ('game', '/game', $1), ('site', '/site', $1)", PERSON
        )
        await connection.executemany(
            "INSERT INTO scan (id, repository, path, requester, revision, verdict, complete, report, at)"
            " VALUES ($1, 'game', '', $3, '', 'findings', $2, '{}', now())",
            [("scn_old", True, PERSON), ("scn_new", False, PERSON)],
        )
        findings = [("scn_old", 1, "high", "new"), ("scn_new", 1, "high", "existing"), ("scn_new", 2, "low", "new")]
        await connection.executemany(
            "INSERT INTO finding (id, scan_id, ordinal, fingerprint, rule, category, severity, status, path, line, body)"
            " VALUES ($1 || $2::integer::text, $1, $2::integer, '', $5, 'sast', $3, $4, $5, 1, to_jsonb($5::text))",
            [(*row, SECRET) for row in [*findings, ("scn_new", 3, "high", "fixed")]],
        )
