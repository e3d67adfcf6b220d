-- The audit: one MAC'd chain per writer process, checkpoints over all chains, and the bodies that retention may empty.
-- The chain alone is evidence: every column here except audit_body is covered by a MAC (body_broker/audit/chain.py).

-- Registered under a lock, numbered without a gap: a whole writer that disappears leaves a hole.
CREATE TABLE audit_writer (
    writer text COLLATE "C" PRIMARY KEY,
    number bigint NOT NULL UNIQUE CHECK (number > 0),
    key_id text NOT NULL
);

-- The primary key is what makes a retry after an unknown commit harmless, and what an effect's transaction refers to:
-- (decision_writer, decision_seq) REFERENCES audit_record (writer, seq).
CREATE TABLE audit_record (
    writer text COLLATE "C" NOT NULL,
    seq    bigint NOT NULL CHECK (seq > 0),
    mac    bytea NOT NULL,
    body   text NOT NULL,
    -- Derived from the MAC'd body, so that it cannot be changed beside it.
    at     double precision GENERATED ALWAYS AS (((body::jsonb) ->> 'at')::double precision) STORED,
    PRIMARY KEY (writer, seq)
);
CREATE INDEX audit_record_newest ON audit_record (at DESC);

-- The arguments; the record holds their SHA-256. No foreign key: rows come and go without the chain's leave.
CREATE TABLE audit_body (
    writer  text COLLATE "C" NOT NULL,
    seq     bigint NOT NULL,
    content bytea NOT NULL,
    kept_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (writer, seq)
);
CREATE INDEX audit_body_oldest ON audit_body (kept_at);

-- A chain of its own: each row's body lists the heads of every writer that may have moved.
CREATE TABLE audit_checkpoint (
    number bigint PRIMARY KEY CHECK (number > 0),
    mac    bytea NOT NULL,
    body   text NOT NULL
);
