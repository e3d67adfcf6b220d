-- Security: repositories that may be scanned, their scans, and what these found.

CREATE TABLE repository (
    name text PRIMARY KEY CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$'),
    root text NOT NULL UNIQUE,                -- an absolute path on the machine that scans
    by text NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE scan (
    id text PRIMARY KEY,
    repository text NOT NULL REFERENCES repository,
    path text NOT NULL,                       -- below the root; '' is all of it
    job_id text,                              -- the durable work that runs it
    requester text NOT NULL,
    revision text NOT NULL,                   -- digest of what was scanned
    verdict text NOT NULL CHECK (verdict IN ('findings', 'no_findings', 'inconclusive')),
    report jsonb NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX scan_repository ON scan (repository, at DESC);

CREATE TABLE finding (
    id text PRIMARY KEY,
    scan_id text NOT NULL REFERENCES scan ON DELETE CASCADE,
    ordinal integer NOT NULL,
    fingerprint text NOT NULL,
    rule text NOT NULL,
    category text NOT NULL,
    severity text NOT NULL,
    path text NOT NULL,
    line integer,
    body jsonb NOT NULL,
    UNIQUE (scan_id, ordinal)
);
CREATE INDEX finding_fingerprint ON finding (fingerprint);
