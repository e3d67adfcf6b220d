-- Vectors of the lore's passages, the models that made them, and the copy that an OpenSearch holds.
-- The extension is pgvector; the embedded PostgreSQL has it.

CREATE EXTENSION IF NOT EXISTS vector;

-- One model serves queries; at most one other is being built to take its place.
CREATE TABLE lore_model (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,  -- names weights or an endpoint's model; never a key
    url text,                   -- of an endpoint; null where the weights lie on this machine
    dimensions integer,         -- null until its first vector is stored
    state text NOT NULL CHECK (state IN ('building', 'serving')),
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX lore_model_state ON lore_model (state);

-- A passage that is longer than its model reads has several, numbered by `part`; the nearest of them counts.
CREATE TABLE lore_vector (
    rev bigint NOT NULL,
    ordinal integer NOT NULL,
    model_id integer NOT NULL REFERENCES lore_model ON DELETE CASCADE,
    part smallint NOT NULL,
    index_id integer NOT NULL,
    embedding vector NOT NULL,
    PRIMARY KEY (rev, ordinal, model_id, part),
    FOREIGN KEY (rev, ordinal) REFERENCES lore_chunk ON DELETE CASCADE
);
CREATE INDEX lore_vector_index ON lore_vector (model_id, index_id);

-- Where the copy in OpenSearch lies: the generation that is searched, and one that may be filling to take its place.
CREATE TABLE lore_copy (
    generation text PRIMARY KEY,  -- the name of the OpenSearch index
    model_id integer,             -- whose vectors it holds; null is words alone
    state text NOT NULL CHECK (state IN ('filling', 'serving', 'lost')),
    created_at timestamptz NOT NULL DEFAULT now()
);

-- What a generation does not show yet: revs to add or to drop. No row, and the copy is what the lore tables are.
CREATE TABLE lore_copy_due (
    generation text NOT NULL REFERENCES lore_copy ON DELETE CASCADE,
    rev bigint NOT NULL,
    index_id integer NOT NULL,
    since timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (generation, rev)
);
CREATE INDEX lore_copy_due_index ON lore_copy_due (generation, index_id);

-- What changed since a moment is asked by people.
CREATE INDEX lore_effect_at ON lore_effect (at);

-- Whether somebody may be told of a document: its spoiler_level within a limit, and known_by naming them where there is one.
-- What is there but no such value is hidden from whoever asks with a limit.
CREATE FUNCTION lore_may_tell(knowledge jsonb, spoiler_max integer, known_to text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (spoiler_max IS NULL OR CASE
            WHEN NOT knowledge ? 'spoiler_level' THEN true
            WHEN jsonb_typeof(knowledge -> 'spoiler_level') = 'number' THEN (knowledge ->> 'spoiler_level')::numeric <= spoiler_max
            ELSE false END)
        AND (known_to IS NULL OR NOT knowledge ? 'known_by' OR knowledge -> 'known_by' ? known_to);
