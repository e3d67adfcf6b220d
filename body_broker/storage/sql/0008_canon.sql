-- Canon as structure: facts with their time and source, the predicates they use, and graphs of plots.

-- The one row that whoever writes canon locks; readers know by its version whether what they remember is still so.
CREATE TABLE canon (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    version bigint NOT NULL DEFAULT 0
);
INSERT INTO canon DEFAULT VALUES;

CREATE TABLE canon_change (
    version bigint PRIMARY KEY,
    change text NOT NULL CHECK (change IN ('loaded', 'fact_added', 'fact_retired')),
    fact_id text,                             -- null: a load, which is of many
    by text NOT NULL,
    receipt_writer text,
    receipt_sequence bigint,
    at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE predicate (
    name text PRIMARY KEY CHECK (name ~ '^[a-z][a-z0-9_]{0,63}$'),
    functional boolean NOT NULL,              -- one value at a time: two are a contradiction
    meaning text NOT NULL,
    says text[] NOT NULL DEFAULT '{}'         -- how a text says it, with {subject} and {object}
);

CREATE TABLE fact (
    id text PRIMARY KEY,
    subject text NOT NULL,                    -- an entity's id, or a name
    predicate text NOT NULL REFERENCES predicate,
    object jsonb NOT NULL,                    -- a scalar; an entity is named by its id
    valid_from double precision,              -- story time; null is always
    valid_to double precision,                -- excluded
    known_by text[],                          -- null: known to all
    source text NOT NULL,                     -- a lore document, a plot node, an operator
    loaded boolean NOT NULL,                  -- from a world file: another load without it retires it
    retired_at timestamptz,
    by text NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    CHECK (valid_from IS NULL OR valid_to IS NULL OR valid_from < valid_to)
);
CREATE INDEX fact_subject ON fact (subject, predicate) WHERE retired_at IS NULL;

CREATE TABLE plot_graph (
    id text PRIMARY KEY CHECK (id ~ '^[a-z0-9][a-z0-9_.-]{0,79}$'),
    title text NOT NULL,
    version bigint NOT NULL CHECK (version >= 1),
    by text NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);

-- Ids of nodes are one name space over all graphs; a quest's is that of the entity that says how far it is.
CREATE TABLE plot_node (
    id text PRIMARY KEY CHECK (id ~ '^[a-z0-9][a-z0-9_.-]{0,79}$'),
    graph_id text NOT NULL REFERENCES plot_graph ON DELETE CASCADE,
    ordinal integer NOT NULL,                 -- as the file has them
    kind text NOT NULL CHECK (kind IN ('quest', 'stage', 'beat', 'ending')),
    title text NOT NULL,
    summary text NOT NULL,
    requires jsonb NOT NULL,                  -- all, any, none over nodes, flags, facts and items
    effects jsonb NOT NULL,
    exclusive_group text,
    story_time double precision,
    spoiler_level integer NOT NULL DEFAULT 0,
    UNIQUE (graph_id, id)
);

CREATE TABLE plot_edge (
    graph_id text NOT NULL,
    src text NOT NULL,
    dst text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('next', 'choice')),
    label text NOT NULL DEFAULT '',
    PRIMARY KEY (graph_id, src, dst),
    FOREIGN KEY (graph_id, src) REFERENCES plot_node (graph_id, id) ON DELETE CASCADE,
    FOREIGN KEY (graph_id, dst) REFERENCES plot_node (graph_id, id) ON DELETE CASCADE
);
