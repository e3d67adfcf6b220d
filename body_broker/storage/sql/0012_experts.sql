-- Work that waits for something without holding a worker, and the experts' jobs: what models were asked for them, what came of it.

-- `waits_for` names what parked work waits for, and stays where it is cancelled or expires meanwhile; `wake_at` is when it looks again in
-- any case.
ALTER TABLE work ADD COLUMN waits_for text CHECK (length(waits_for) BETWEEN 1 AND 200);
ALTER TABLE work ADD COLUMN wake_at timestamptz;
ALTER TABLE work ADD CONSTRAINT work_parked CHECK (
    state = 'waiting' OR (wake_at IS NULL AND (waits_for IS NULL OR state IN ('cancelled', 'expired'))));
CREATE INDEX work_parked ON work (waits_for) WHERE state = 'waiting' AND waits_for IS NOT NULL;
CREATE INDEX work_waking ON work (wake_at) WHERE state = 'waiting' AND wake_at IS NOT NULL;

-- Whether what parked work waits for has come: an approval of which nothing more will come, or that is gone. All other keys are woken by
-- name.
CREATE FUNCTION work_is_over(key text) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT starts_with(key, 'apr_') AND NOT EXISTS (SELECT FROM approval WHERE id = key
        AND state NOT IN ('denied', 'expired', 'cancelled') AND (outcome IS NULL OR outcome = 'unknown'))
$$;

-- Lets whatever waits for this go on, before what was asked for later. Who parks and who wakes meet at one lock, so that no waking is lost
-- between looking and lying down.
CREATE FUNCTION work_wake(key text) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    woken integer;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('parked ' || key, 0));
    WITH moved AS (
        UPDATE work SET state = 'queued', run_at = created_at, waits_for = NULL, wake_at = NULL
        WHERE state = 'waiting' AND waits_for = key RETURNING kind)
    SELECT count(pg_notify('work', 'ready ' || kind)) INTO woken FROM moved;
    RETURN woken;
END $$;

-- Lays a run's work down until its key is over; work that somebody wants stopped is cancelled instead. NULL where the run owns it no more.
-- Lying down is no attempt.
CREATE FUNCTION work_park(p_work text, p_token bigint, p_key text, p_wake_in_s float8, p_message text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    parked work;
    is_over boolean;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('parked ' || p_key, 0));
    is_over := work_is_over(p_key);  -- a statement of its own: it sees whatever was committed before the lock was had
    UPDATE work SET lease_until = NULL, attempts = attempts - 1, run_at = created_at,
        progress = CASE WHEN p_message IS NULL THEN progress
                        ELSE coalesce(progress, '{"done": 0, "total": null}') || jsonb_build_object('message', p_message) END,
        state = CASE WHEN cancel_requested AND begun IS NULL THEN 'cancelled' WHEN is_over THEN 'queued' ELSE 'waiting' END,
        finished_at = CASE WHEN cancel_requested AND begun IS NULL THEN clock_timestamp() END,
        waits_for = CASE WHEN NOT is_over THEN p_key END,
        wake_at = CASE WHEN NOT is_over AND NOT (cancel_requested AND begun IS NULL)
                       THEN clock_timestamp() + make_interval(secs => p_wake_in_s) END
    WHERE id = p_work AND token = p_token AND state = 'running' RETURNING * INTO parked;
    IF parked.state = 'queued' THEN
        PERFORM pg_notify('work', 'ready ' || parked.kind);
    END IF;
    RETURN parked.id;
END $$;

CREATE FUNCTION approval_over() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF work_is_over(NEW.id) THEN
        PERFORM work_wake(NEW.id);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER approval_over AFTER UPDATE OF state, outcome ON approval FOR EACH ROW EXECUTE FUNCTION approval_over();

-- Whoever listens to a job hears that it moved, and looks. Not told: the hub's own work, and calls that people allowed, whose approvals are.
CREATE FUNCTION work_moved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('work_moved', NEW.id);
    RETURN NULL;
END $$;
CREATE TRIGGER work_moved AFTER UPDATE OF state, progress, waits_for ON work FOR EACH ROW
    WHEN (NEW.owner <> 'service:body-broker' AND NEW.kind <> 'approved_call'
          AND (NEW.state, NEW.progress, NEW.waits_for) IS DISTINCT FROM (OLD.state, OLD.progress, OLD.waits_for))
    EXECUTE FUNCTION work_moved();

-- How much work under a limit one owner has open. Those who ask at the same moment ask one after the other, until their transactions end.
CREATE INDEX work_open ON work (limit_key, owner) WHERE state IN ('waiting', 'queued', 'running') AND limit_key IS NOT NULL;
CREATE FUNCTION work_open(p_limit_key text, p_owner text) RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('open ' || p_limit_key || ' ' || p_owner, 0));
    RETURN (SELECT count(*) FROM work
        WHERE limit_key = p_limit_key AND owner = p_owner AND state IN ('waiting', 'queued', 'running'));
END $$;

-- What models were asked for a job. The row stands before the question leaves: whoever takes the job over sees that it may have been asked.
CREATE TABLE expert_call (
    job text NOT NULL REFERENCES work ON DELETE CASCADE,
    turn integer NOT NULL CHECK (turn >= 1),          -- the how manieth question of the job
    attempt integer NOT NULL CHECK (attempt >= 1),    -- the how manieth asking of it
    engine text NOT NULL,
    model text,
    state text NOT NULL CHECK (state IN ('invoking', 'invoked', 'answered', 'failed', 'lost')),
    reason text,                                      -- a word of tiers/faults.py, where it failed or was lost
    output text,                                      -- where an asynchronous endpoint writes its answer, and its failure
    failure text,
    reservation text,                                 -- the money set aside for it
    maybe_spent boolean NOT NULL DEFAULT false,       -- nobody can say whether it was run, or what it cost
    cost bigint,                                      -- billionths of a US dollar; NULL where nobody knows
    prompt_tokens bigint,
    completion_tokens bigint,
    begun_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    due_at timestamptz NOT NULL,                      -- until then an answer may still come, and it is not asked again
    ended_at timestamptz,
    PRIMARY KEY (job, turn, attempt),
    CONSTRAINT expert_call_ended CHECK ((state IN ('answered', 'failed', 'lost')) = (ended_at IS NOT NULL))
);
CREATE INDEX expert_call_output ON expert_call (output) WHERE output IS NOT NULL;

-- What came of jobs, longer than the work itself is kept.
CREATE TABLE expert_result (
    job text PRIMARY KEY,
    owner text NOT NULL,
    kind text NOT NULL,
    title text NOT NULL,
    body jsonb NOT NULL,                              -- what get_job tells
    outside boolean NOT NULL,
    object text NOT NULL,                             -- its key in the studio's bucket or directory
    sha256 text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    bytes bigint NOT NULL,
    document text,                                    -- its document in the lore, where it is searched
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX expert_result_of ON expert_result (owner, created_at DESC);
CREATE INDEX expert_result_age ON expert_result (created_at);
