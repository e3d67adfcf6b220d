-- Lore: documents with their text (the truth), the chunks it is cut into, and the embedded search index over them.
-- A rev is drawn from one sequence over all documents; a document's current rev is what readers see. An import writes the
-- text first (in the transaction that enqueues its job), then chunks and postings batch by batch, and last moves `rev`.

CREATE TABLE lore_index (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE CHECK (name = 'shared' OR name ~ '^persona:[a-z0-9][a-z0-9_-]{0,63}$'),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE lore_document (
    id text PRIMARY KEY,
    index_id integer NOT NULL REFERENCES lore_index,
    source text NOT NULL,
    canon boolean NOT NULL,
    rev bigint UNIQUE,  -- null until its first import is committed: nobody sees it before
    created_at timestamptz NOT NULL DEFAULT now(),
    -- An outside document never replaces a canon one of the same name.
    UNIQUE (index_id, source, canon)
);

CREATE TABLE lore_edition (
    rev bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    document_id text NOT NULL REFERENCES lore_document ON DELETE CASCADE,
    title text NOT NULL,
    format text NOT NULL CHECK (format IN ('text', 'markdown')),
    characters integer NOT NULL,
    content_hash text NOT NULL,
    knowledge jsonb NOT NULL DEFAULT '{}',  -- spoiler and knowledge limits: kept, not yet read
    job_id text,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX lore_edition_document ON lore_edition (document_id);
CREATE INDEX lore_edition_hash ON lore_edition (content_hash);

-- The text in pages of 10,000 characters (the last one shorter): a part of a long text is read without the whole.
CREATE TABLE lore_page (
    rev bigint NOT NULL REFERENCES lore_edition ON DELETE CASCADE,
    page integer NOT NULL,
    content text NOT NULL,
    PRIMARY KEY (rev, page)
);

CREATE TABLE lore_chunk (
    rev bigint NOT NULL REFERENCES lore_edition ON DELETE CASCADE,
    ordinal integer NOT NULL,
    char_start integer NOT NULL,
    char_end integer NOT NULL,
    heading text NOT NULL,
    content text NOT NULL,  -- the text from char_start to char_end, exactly
    PRIMARY KEY (rev, ordinal),
    CHECK (0 <= char_start AND char_start < char_end)
);

-- What changed the lore, and the record of the audit under which it did.
CREATE TABLE lore_effect (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    effect text NOT NULL CHECK (effect IN ('imported', 'deleted', 'approved')),
    document_id text NOT NULL,
    rev bigint,
    by text NOT NULL,
    receipt_writer text,
    receipt_sequence bigint,
    at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX lore_effect_document ON lore_effect (document_id);

-- Words as the index knows them: punctuation folded to blanks, then PostgreSQL's English stemmer and stop words.
CREATE FUNCTION lore_words(body text) RETURNS tsvector
    LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
    RETURN to_tsvector('english'::regconfig, regexp_replace(body, '[^[:alnum:]]+', ' ', 'g'));

CREATE TABLE lore_posting (
    index_id integer NOT NULL,
    lexeme text NOT NULL,
    rev bigint NOT NULL,
    ordinal integer NOT NULL,
    tf integer NOT NULL,
    words integer NOT NULL,  -- length of the whole chunk, in words that are no stop words
    PRIMARY KEY (index_id, lexeme, rev, ordinal)
);
CREATE INDEX lore_posting_rev ON lore_posting (rev);

-- Sums that BM25 needs, so that no query counts chunks.
CREATE TABLE lore_posting_total (
    rev bigint PRIMARY KEY,
    index_id integer NOT NULL,
    chunks bigint NOT NULL,
    words bigint NOT NULL
);
CREATE INDEX lore_posting_total_index ON lore_posting_total (index_id);
