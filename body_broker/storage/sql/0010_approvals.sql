-- Approvals: what people were asked, what they said, what they are shown. What is done after a yes is work with the same id.

CREATE TABLE approval (
    id text PRIMARY KEY CHECK (id ~ '^apr_[A-Za-z0-9_-]{20,80}$'),
    ordinal bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    digest text NOT NULL CHECK (digest ~ '^[0-9a-f]{64}$'),  -- of tool, definition, arguments, requester, rules that fired
    tool text NOT NULL,
    server text NOT NULL,
    definition text NOT NULL,                 -- digest of the tool's definition as it was asked for
    arguments text NOT NULL,                  -- canonical JSON, as text: replayed to the byte
    chain text[] NOT NULL CHECK (cardinality(chain) > 0),
    asker text NOT NULL,
    requester text NOT NULL,                  -- the chain as text
    sessions text[] NOT NULL,                 -- the call's, then those above it
    tokens text[] NOT NULL DEFAULT '{}',      -- ids of the tokens it came with: one that is revoked gets nothing done
    tainted boolean NOT NULL,
    depth integer NOT NULL,
    history text[] NOT NULL,
    roles jsonb NOT NULL DEFAULT '{}',        -- of the chain's people, as it was asked: what votes are decided with
    facts text[] NOT NULL DEFAULT '{}',       -- what the hub had found out about the call
    requirements jsonb NOT NULL,              -- one for each rule that fired, with the rule's digest
    effect text NOT NULL CHECK (effect IN ('none', 'repeatable', 'once')),
    destructive boolean NOT NULL,
    headline text NOT NULL,                   -- verb and target in words
    preview text,                             -- what it would do, found out when it was asked
    basis text,                               -- what the preview was made of: it must still be so when it is done
    reason text,                              -- the agent's own words; in no digest
    earlier text REFERENCES approval ON DELETE SET NULL,  -- the one before for the same digest
    notify boolean NOT NULL,                  -- whether notices go out for it
    state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'approved', 'denied', 'expired', 'cancelled')),
    decided_by text,
    why text,                                 -- a denial's reason, or why it was cancelled
    outcome text CHECK (outcome IN ('done', 'failed', 'unknown', 'expired', 'cancelled')),  -- of its work, after a yes
    recorded text,                            -- the outcome that stands on the audit
    receipt_writer text NOT NULL,             -- where it stands on the audit
    receipt_sequence bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL,
    decided_at timestamptz,
    ended_at timestamptz,                     -- when nothing more will come of it
    delivered_at timestamptz,                 -- when its requester was told how it ended, or it was too old to tell
    CONSTRAINT approval_decided CHECK ((state = 'pending') = (decided_at IS NULL)),
    CONSTRAINT approval_outcome CHECK (outcome IS NULL OR state = 'approved'),
    CONSTRAINT approval_ended CHECK (state NOT IN ('denied', 'expired', 'cancelled') OR ended_at IS NOT NULL),
    CONSTRAINT approval_pending_not_ended CHECK (state <> 'pending' OR ended_at IS NULL)
);
-- One call has at most one approval whose end its requester has not seen: who repeats the call joins it.
CREATE UNIQUE INDEX approval_open ON approval (digest) WHERE delivered_at IS NULL;
CREATE INDEX approval_pending ON approval (expires_at) WHERE state = 'pending';
CREATE INDEX approval_asked ON approval (asker, ordinal DESC);
CREATE INDEX approval_by_digest ON approval (digest, ordinal DESC);
CREATE INDEX approval_burden ON approval (requester, expires_at) WHERE state IN ('pending', 'denied', 'cancelled');
CREATE INDEX approval_underway ON approval (ordinal) WHERE state = 'approved' AND outcome IS NULL;
CREATE INDEX approval_notified ON approval (ended_at) WHERE notify;
CREATE INDEX approval_unrecorded ON approval (ordinal) WHERE outcome IS DISTINCT FROM recorded;
CREATE INDEX approval_unsettled ON approval (ordinal) WHERE outcome = 'unknown';
CREATE INDEX approval_totals ON approval (state, outcome);  -- what the metrics count

CREATE TABLE approval_vote (
    approval_id text NOT NULL REFERENCES approval ON DELETE CASCADE,
    voter text NOT NULL CHECK (voter ~ '^person:[a-z0-9][a-z0-9._-]{0,62}$'),
    verdict text NOT NULL CHECK (verdict IN ('approve', 'deny')),
    via text NOT NULL CHECK (via IN ('slack', 'mfa', 'local')),
    factor text CHECK (factor IN ('totp', 'passkey')),
    groups text[] NOT NULL,                   -- the voter's approver groups at that moment
    reason text,
    evidence jsonb NOT NULL,                  -- a Slack message, or a passkey's signature over the digest
    receipt_writer text NOT NULL,
    receipt_sequence bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (approval_id, voter),
    CONSTRAINT approval_vote_factor CHECK (via = 'slack' OR factor IS NOT NULL)
);

-- Where an approval is shown to people. A click counts only on the very message that stands here.
CREATE TABLE approval_notice (
    approval_id text PRIMARY KEY REFERENCES approval ON DELETE CASCADE,
    team text,
    channel text,
    message text,                             -- Slack's ts; NULL until Slack has confirmed it
    shown text,                               -- what it shows: the state, or the outcome
    look text,                                -- digest of the very message: what looks the same is not sent again
    mentioned boolean NOT NULL DEFAULT false, -- whether the groups were called; noted before they are, so never twice
    form text CHECK (form IN ('inside', 'thread', 'page')),  -- where its arguments are, since it was posted
    parts integer NOT NULL DEFAULT 0,         -- of the arguments already in its thread
    shown_at timestamptz,
    failures integer NOT NULL DEFAULT 0,      -- since it last went well
    failed_at timestamptz,
    failure text                              -- Slack's own error code, or ours; never an exception's text
);
CREATE UNIQUE INDEX approval_notice_message ON approval_notice (team, channel, message);
CREATE INDEX approval_notice_failed ON approval_notice (failed_at) WHERE failures > 0;

-- Second factors. A factor counts from the moment somebody already enrolled has confirmed it (the first: at set-up).
CREATE TABLE factor (
    id text PRIMARY KEY,
    person text NOT NULL CHECK (person ~ '^person:[a-z0-9][a-z0-9._-]{0,62}$'),
    kind text NOT NULL CHECK (kind IN ('totp', 'passkey')),
    label text NOT NULL,
    sealed bytea NOT NULL,                    -- AES-256-GCM under a key derived from the root key, bound to id, person and who confirmed it
    credential bytea UNIQUE,                  -- a passkey's credential id
    sign_count bigint NOT NULL DEFAULT 0,
    last_step bigint NOT NULL DEFAULT 0,      -- the newest TOTP step that was used: none counts twice
    created_at timestamptz NOT NULL DEFAULT now(),
    confirmed_at timestamptz,
    confirmed_by text,
    revoked_at timestamptz,
    revoked_by text,
    expires_at timestamptz,                   -- of a throw-away factor, which is never more than minutes old
    CHECK ((kind = 'passkey') = (credential IS NOT NULL)),
    CHECK ((confirmed_at IS NULL) = (confirmed_by IS NULL)),
    CHECK ((revoked_at IS NULL) = (revoked_by IS NULL))
);
CREATE INDEX factor_of ON factor (person) WHERE revoked_at IS NULL;

-- Wrong codes are counted for each person; after a few nothing is looked at for a while.
CREATE TABLE factor_guard (
    person text PRIMARY KEY,
    failures integer NOT NULL DEFAULT 0,
    locked_until timestamptz
);

-- Logins of people to the hub's pages, and what these were asked to sign; hashes only.
CREATE TABLE page_login (
    id bytea PRIMARY KEY,                     -- SHA-256 of the cookie
    person text NOT NULL,
    how text NOT NULL CHECK (how IN ('passkey', 'totp', 'oidc')),
    factor text REFERENCES factor ON DELETE CASCADE,  -- what it was made with: it ends with that
    began_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    CHECK ((how = 'oidc') = (factor IS NULL))
);
CREATE INDEX page_login_of ON page_login (factor);
CREATE INDEX page_login_expiring ON page_login (expires_at);
CREATE TABLE page_challenge (
    id bytea PRIMARY KEY,                     -- SHA-256 of what the browser holds
    purpose text NOT NULL CHECK (purpose IN ('enroll', 'used')),  -- nothing that a stranger could fill
    person text,
    body jsonb NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX page_challenge_expiring ON page_challenge (expires_at);

-- People who come with tokens of an OIDC issuer. A name is one account's, the first one's that came under it, until an operator
-- revokes the principal.
CREATE TABLE oidc_account (
    person text PRIMARY KEY CHECK (person ~ '^person:[a-z0-9][a-z0-9._-]{0,62}$'),
    issuer text NOT NULL,
    subject text NOT NULL,
    began_at timestamptz NOT NULL DEFAULT now()
);
-- Their logins, and the roles that the newest token of each named: what stands for a person when no token is there.
CREATE TABLE oidc_login (
    session text PRIMARY KEY CHECK (session ~ '^oidc_[A-Za-z0-9_-]{20,80}$'),
    person text NOT NULL,
    roles text[] NOT NULL,
    naming integer NOT NULL,                  -- how its tokens name it: 2 by sid, 1 by auth_time, 0 not at all
    issued_at timestamptz NOT NULL,           -- of the newest token
    expires_at timestamptz NOT NULL,          -- of the one that lives longest
    began_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    ended_by text
);
CREATE INDEX oidc_login_of ON oidc_login (person, issued_at DESC);
CREATE TRIGGER oidc_login_began AFTER INSERT ON oidc_login FOR EACH ROW EXECUTE FUNCTION identity_changed();
CREATE TRIGGER oidc_login_moved AFTER UPDATE ON oidc_login FOR EACH ROW
    WHEN (NEW.roles IS DISTINCT FROM OLD.roles OR NEW.ended_at IS DISTINCT FROM OLD.ended_at
          OR NEW.person IS DISTINCT FROM OLD.person) EXECUTE FUNCTION identity_changed();

-- Changes of the studio's systems (approve_change): drafts, and what was done, once for each approval.
CREATE TABLE admin_change (
    id text PRIMARY KEY CHECK (id ~ '^chg_'),
    key text UNIQUE,                          -- the approval under which it was made; a draft has none
    kind text NOT NULL,
    target text NOT NULL,
    params jsonb NOT NULL,
    requester text NOT NULL,
    asker text NOT NULL,
    state text NOT NULL CHECK (state IN ('draft', 'executing', 'done', 'failed')),
    diff text NOT NULL,
    basis text NOT NULL,
    outcome jsonb,                            -- what was found when it was verified
    receipt_writer text,
    receipt_sequence bigint,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    ended_at timestamptz
);
CREATE INDEX admin_change_asked ON admin_change (asker, created_at DESC);
CREATE INDEX admin_change_drafts ON admin_change (expires_at) WHERE state = 'draft';

-- What was done under a key, such as an approval's id, with what it gave: the same key is the same effect (work/keyed.py).
CREATE TABLE keyed_effect (
    key text PRIMARY KEY,
    result jsonb,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX keyed_effect_at ON keyed_effect (at);

-- An engine that is paused decides nothing and takes no epoch; what is queued waits.
ALTER TABLE world_engine ADD COLUMN paused_at timestamptz, ADD COLUMN paused_by text;

-- The repeatable effect that work has begun: from here on it is brought to its end. It is not cancelled, does not expire, and where
-- nobody can say whether it happened, it has not failed but is unknown.
ALTER TABLE work ADD COLUMN begun text;

-- How the work of an approval ends is how the approval ends; whoever waits for it is told at once.
CREATE FUNCTION approval_work_moved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE approval SET
        outcome = CASE NEW.state WHEN 'succeeded' THEN 'done' WHEN 'failed' THEN 'failed' WHEN 'unknown' THEN 'unknown'
                                 WHEN 'expired' THEN 'expired' WHEN 'cancelled' THEN 'cancelled' END,
        ended_at = CASE WHEN NEW.state IN ('succeeded', 'failed', 'expired', 'cancelled') THEN clock_timestamp() END
    WHERE id = NEW.id AND state = 'approved';
    PERFORM pg_notify('approval', NEW.id);
    RETURN NULL;
END $$;
CREATE TRIGGER approval_work_moved AFTER UPDATE OF state ON work FOR EACH ROW
    WHEN (NEW.kind = 'approved_call' AND NEW.state IS DISTINCT FROM OLD.state) EXECUTE FUNCTION approval_work_moved();

-- The outbox: what changed is told to whoever waits, and a notice for it is due, in the same transaction.
CREATE FUNCTION approval_notice_due(approval text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO work (id, kind, owner, origin, input, state, priority, run_at, limit_key, limit_max, attempts_max)
    VALUES ('job_' || replace(gen_random_uuid()::text, '-', ''), 'approval_notice', 'service:body-broker',
            '{"chain": ["service:body-broker"], "session": "approvals", "tainted": false, "depth": 0, "receipt": null}',
            jsonb_build_object('approval', approval), 'queued', 0, clock_timestamp(), 'notice ' || approval, 1, 8);
    PERFORM pg_notify('work', 'ready approval_notice');
END $$;
CREATE FUNCTION approval_moved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' OR (NEW.state, NEW.outcome) IS DISTINCT FROM (OLD.state, OLD.outcome) THEN
        PERFORM pg_notify('approval', NEW.id);
        IF NEW.notify THEN
            PERFORM approval_notice_due(NEW.id);
        END IF;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER approval_moved AFTER INSERT OR UPDATE OF state, outcome ON approval FOR EACH ROW EXECUTE FUNCTION approval_moved();

-- A vote that does not decide changes what is shown too; one that does has moved the approval when the transaction ends.
CREATE FUNCTION approval_voted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM approval_notice_due(id) FROM approval WHERE id = NEW.approval_id AND notify AND state = 'pending';
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER approval_voted AFTER INSERT ON approval_vote DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION approval_voted();
