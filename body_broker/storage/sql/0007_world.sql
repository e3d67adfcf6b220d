-- The world: versioned entities, the changes that an engine decides, events in the order of their positions, and who arbitrates.

-- The one row that whoever writes the world locks. `epoch` is the fencing token: a write that names another one changes nothing.
CREATE TABLE world_engine (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    epoch bigint NOT NULL DEFAULT 0,
    engine text,                              -- who holds the epoch
    external boolean NOT NULL DEFAULT false,  -- it speaks docs/engine-protocol.md
    lease_until timestamptz,
    tick bigint NOT NULL DEFAULT 0,
    tick_hz double precision,
    last_pos bigint NOT NULL DEFAULT 0        -- of the latest event: without gaps, in the order of commits
);
INSERT INTO world_engine DEFAULT VALUES;

-- `version` is the number of its events. Ids are one name space over all kinds.
CREATE TABLE world_entity (
    id text PRIMARY KEY CHECK (id ~ '^[a-z0-9][a-z0-9_.-]{0,79}$'),
    kind text NOT NULL,
    region text,                              -- the id of a region
    version bigint NOT NULL CHECK (version >= 1),
    removed boolean NOT NULL DEFAULT false,
    data jsonb NOT NULL,
    outside text[] NOT NULL DEFAULT '{}',     -- the fields of data that hold text from outside
    tick bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX world_entity_region ON world_entity (region, kind) WHERE NOT removed;

CREATE TABLE world_change (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id text NOT NULL UNIQUE,
    actor text NOT NULL,                      -- the requester: the identity chain without its session
    key text NOT NULL,                        -- idempotency key
    digest text NOT NULL,                     -- of what was asked: the same key with something else is a conflict
    batch text,                               -- changes that are decided together, all or nothing
    entity_id text NOT NULL,
    op text NOT NULL,
    payload jsonb NOT NULL,
    expect_version bigint,
    rank smallint NOT NULL,                   -- 2 a player's input, 1 the game server, 0 everybody else
    priority smallint NOT NULL,
    causation text,                           -- the change or event that caused it
    depth smallint NOT NULL,
    signature text NOT NULL,                  -- of entity, operation and payload
    ancestry text[] NOT NULL,                 -- the signatures of its causes: a change that is among its own causes is refused
    tainted boolean NOT NULL,
    origin jsonb NOT NULL,
    queued_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL,
    sent_epoch bigint,                        -- an external engine of this epoch has been told of it
    state text NOT NULL DEFAULT 'queued'
        CHECK (state IN ('queued', 'applied', 'conflict', 'rejected', 'expired', 'cancelled')),
    rule text,                                -- why it was not applied
    current_version bigint,                   -- the entity's, where another one was expected
    observed jsonb,                           -- what the engine saw it do: entities, versions
    epoch bigint,
    tick bigint,
    decided_at timestamptz,
    UNIQUE (actor, key)
);
CREATE INDEX world_change_next ON world_change (rank DESC, priority DESC, seq) WHERE state = 'queued';
CREATE INDEX world_change_open ON world_change (actor) WHERE state = 'queued';
CREATE INDEX world_change_batch ON world_change (batch) WHERE state = 'queued' AND batch IS NOT NULL;
CREATE INDEX world_change_decided ON world_change (decided_at) WHERE state <> 'queued';
CREATE INDEX world_change_entity ON world_change (entity_id, seq);

CREATE TABLE world_event (
    pos bigint PRIMARY KEY,
    entity_id text NOT NULL REFERENCES world_entity,
    version bigint NOT NULL,
    kind text NOT NULL,
    region text,
    type text NOT NULL,
    patch jsonb NOT NULL,                     -- what changed, as a JSON merge patch (RFC 7396)
    change_id text,                           -- null: an operator's load, or what the engine did by itself
    causation text,
    epoch bigint NOT NULL,
    tick bigint NOT NULL,
    outside boolean NOT NULL,                 -- it carries text that came from outside
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    removed boolean NOT NULL DEFAULT false,
    UNIQUE (entity_id, version)
);
CREATE INDEX world_event_change ON world_event (change_id) WHERE change_id IS NOT NULL;
CREATE INDEX world_event_region ON world_event (region, pos);
