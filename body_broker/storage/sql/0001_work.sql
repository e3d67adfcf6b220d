-- Durable work (body_broker/work): one row is one promise, work_step what became of its recorded effects.
CREATE TABLE work (
    id               text PRIMARY KEY CHECK (length(id) BETWEEN 1 AND 100),
    ordinal          bigint GENERATED ALWAYS AS IDENTITY UNIQUE,  -- ids are unguessable; this one orders pages
    kind             text NOT NULL CHECK (length(kind) BETWEEN 1 AND 100),
    owner            text NOT NULL CHECK (length(owner) BETWEEN 1 AND 300),
    origin           jsonb NOT NULL,
    input            jsonb NOT NULL,
    state            text NOT NULL CHECK (state IN ('waiting', 'queued', 'running', 'unknown',
                                                    'succeeded', 'failed', 'cancelled', 'expired')),
    priority         integer NOT NULL,
    run_at           timestamptz NOT NULL,
    expires_at       timestamptz,
    unique_key       text CHECK (length(unique_key) BETWEEN 1 AND 300),
    limit_key        text CHECK (length(limit_key) BETWEEN 1 AND 300),
    limit_max        integer NOT NULL CHECK (limit_max >= 1),
    attempts         integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    attempts_max     integer NOT NULL CHECK (attempts_max >= 1),
    token            bigint NOT NULL DEFAULT 0,  -- the fence: raised by every claim, named by every write of a run
    worker           text,
    lease_until      timestamptz,
    cancel_requested boolean NOT NULL DEFAULT false,
    open_effect      text,
    progress         jsonb,
    result           jsonb,
    error            jsonb,
    verdicts         jsonb NOT NULL DEFAULT '[]',
    created_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at       timestamptz,
    finished_at      timestamptz,
    UNIQUE (owner, unique_key),
    -- An effect that may have happened is never queued again and never called done: a person settles it.
    CONSTRAINT work_open_effect CHECK (open_effect IS NULL OR state IN ('running', 'unknown')),
    CONSTRAINT work_unknown CHECK (state <> 'unknown' OR open_effect IS NOT NULL),
    CONSTRAINT work_leased_while_running CHECK ((state = 'running') = (lease_until IS NOT NULL)),
    CONSTRAINT work_finished CHECK ((state IN ('succeeded', 'failed', 'cancelled', 'expired')) = (finished_at IS NOT NULL)),
    CONSTRAINT work_result CHECK (result IS NULL OR state = 'succeeded')
);

CREATE INDEX work_ready ON work (priority DESC, run_at, ordinal) WHERE state = 'queued';
CREATE INDEX work_due ON work (run_at) WHERE state = 'queued';
CREATE INDEX work_leased ON work (lease_until) WHERE state = 'running';
CREATE INDEX work_limited ON work (limit_key) WHERE state = 'running';
CREATE INDEX work_expiring ON work (expires_at) WHERE state IN ('waiting', 'queued') AND expires_at IS NOT NULL;
CREATE INDEX work_unsettled ON work (ordinal) WHERE state = 'unknown';
CREATE INDEX work_owned ON work (owner, ordinal DESC);
CREATE INDEX work_ended ON work (finished_at) WHERE finished_at IS NOT NULL;

CREATE TABLE work_step (
    work    text NOT NULL REFERENCES work ON DELETE CASCADE,
    name    text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    outcome jsonb NOT NULL,
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (work, name)
);

-- A claim is one call, so that a worker paused in the middle of it cannot keep the lock. The lock makes the count under each
-- limit_key true: every statement of a volatile function sees what was committed before that statement began.
CREATE FUNCTION work_claim(kinds text[], claimant text, lease interval) RETURNS SETOF work
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('work_claim'));
    RETURN QUERY
    UPDATE work SET state = 'running', token = token + 1, attempts = attempts + 1, worker = claimant, error = NULL,
        lease_until = clock_timestamp() + lease, started_at = coalesce(started_at, clock_timestamp())
    WHERE id = (
        SELECT ready.id FROM work AS ready
        WHERE ready.state = 'queued' AND ready.run_at <= clock_timestamp() AND ready.kind = ANY (kinds)
          AND (ready.expires_at IS NULL OR ready.expires_at > clock_timestamp())
          AND (ready.limit_key IS NULL OR ready.limit_max > (
                SELECT count(*) FROM work AS busy
                WHERE busy.limit_key = ready.limit_key AND busy.state = 'running'))
        ORDER BY ready.priority DESC, ready.run_at, ready.ordinal
        FOR UPDATE SKIP LOCKED LIMIT 1)
    RETURNING *;
END $$;
