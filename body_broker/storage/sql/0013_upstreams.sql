-- Other people's MCP servers: what they were when they were first seen, and what they say now; and the secrets they are shown.

-- One row for each that was ever looked at: with it there was a first sight, and whatever appears later is withheld.
CREATE TABLE upstream (
    name text PRIMARY KEY CHECK (name ~ '^[a-z][a-z0-9_]{0,30}$'),
    first_seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    looked_at timestamptz NOT NULL DEFAULT clock_timestamp(),   -- the last time that it told what it offers
    failed_at timestamptz,                                      -- the last time that it did not
    failure text,                                               -- in words of ours
    told jsonb NOT NULL DEFAULT '{}'                            -- its protocol revision and what it calls itself
);

CREATE TABLE upstream_pin (
    upstream text NOT NULL REFERENCES upstream ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind IN ('tool', 'prompt', 'resource', 'template')),
    name text NOT NULL,                                         -- as the upstream has it
    state text NOT NULL CHECK (state IN ('pinned', 'changed', 'new', 'gone')),
    accepted json,                                              -- the definition that is served: json keeps what came, \u0000 too
    accepted_digest text CHECK (accepted_digest ~ '^[0-9a-f]{64}$'),
    accepted_at timestamptz,
    accepted_by text,                                           -- 'first sight', an approval, or an operator
    seen json,                                                  -- what it says now, where that is another one
    seen_digest text CHECK (seen_digest ~ '^[0-9a-f]{64}$'),
    seen_at timestamptz,
    PRIMARY KEY (upstream, kind, name),
    CONSTRAINT upstream_pin_accepted CHECK ((accepted IS NULL) = (accepted_digest IS NULL) AND (accepted IS NULL) = (accepted_at IS NULL)),
    CONSTRAINT upstream_pin_seen CHECK ((seen IS NULL) = (seen_digest IS NULL)),
    CONSTRAINT upstream_pin_state CHECK (CASE state
        WHEN 'pinned' THEN accepted IS NOT NULL AND seen IS NULL
        WHEN 'changed' THEN accepted IS NOT NULL AND seen IS NOT NULL
        WHEN 'new' THEN accepted IS NULL AND seen IS NOT NULL
        ELSE seen IS NULL END)
);

-- What people were asked about: each definition for itself, so that a no is remembered however a server alternates.
CREATE TABLE upstream_asked (
    upstream text NOT NULL,
    kind text NOT NULL,
    name text NOT NULL,
    digest text NOT NULL CHECK (digest ~ '^[0-9a-f]{64}$'),
    asked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    approval text,                                              -- by which; NULL where nobody could be asked
    refused_at timestamptz,                                     -- a person said no: nobody is asked for it again
    PRIMARY KEY (upstream, kind, name, digest),
    FOREIGN KEY (upstream, kind, name) REFERENCES upstream_pin ON DELETE CASCADE
);

-- What the hub shows to upstreams: tokens, what OAuth gave, values of environment variables. Sealed under a key derived from the root key.
CREATE TABLE upstream_secret (
    upstream text NOT NULL CHECK (upstream ~ '^[a-z][a-z0-9_]{0,30}$'),
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 100),
    sealed bytea NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (upstream, name)
);

-- Every hub and worker serves what is pinned, a moment after it was. Whoever hears of it reads all pins anew.
CREATE FUNCTION upstreams_moved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('upstreams', 'upstreams');
    RETURN NULL;
END $$;
CREATE TRIGGER upstreams_moved AFTER INSERT OR UPDATE OF state, accepted_digest OR DELETE ON upstream_pin
    FOR EACH STATEMENT EXECUTE FUNCTION upstreams_moved();
