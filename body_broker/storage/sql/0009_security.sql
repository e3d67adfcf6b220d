-- Security: repositories that may be scanned, their scans, and what these found.

CREATE TABLE repository (
    name text PRIMARY KEY CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$'),
    root text NOT NULL UNIQUE,                -- an absolute path on the machine that scans
    skips text[] NOT NULL DEFAULT '{}',       -- names of folders that its operator leaves out of scans
    by text NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE scan (
    id text PRIMARY KEY,
    ordinal bigint GENERATED ALWAYS AS IDENTITY,
    repository text NOT NULL REFERENCES repository ON DELETE CASCADE,
    path text NOT NULL,                       -- below the root; '' is all of it
    job_id text,                              -- the durable work that ran it
    requester text NOT NULL,
    revision text NOT NULL,                   -- digest of what was scanned
    verdict text NOT NULL CHECK (verdict IN ('findings', 'no_findings', 'inconclusive')),
    complete boolean NOT NULL,                -- nothing was missed: what later scans are held against
    report jsonb NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX scan_repository ON scan (repository, path, ordinal DESC);

CREATE TABLE finding (
    id text PRIMARY KEY,
    scan_id text NOT NULL REFERENCES scan ON DELETE CASCADE,
    ordinal integer NOT NULL,                 -- the gravest first, what is fixed last
    fingerprint text NOT NULL,
    rule text NOT NULL,
    category text NOT NULL,
    severity text NOT NULL,
    status text NOT NULL CHECK (status IN ('new', 'existing', 'fixed')),
    path text NOT NULL,
    line integer NOT NULL,
    body jsonb NOT NULL,                      -- no secret is in it: what may be one was masked before
    UNIQUE (scan_id, ordinal)
);
CREATE INDEX finding_fingerprint ON finding (fingerprint);
