-- Tuning: the studio's own key/value figures (spawn rates, zone ratings, feature flags). Never the hub's settings or secrets.

CREATE TABLE config (
    key text PRIMARY KEY CHECK (key ~ '^[a-z][a-z0-9_]*(\.[a-z0-9_]+)+$' AND length(key) <= 200),
    value jsonb NOT NULL,
    schema jsonb,
    version bigint NOT NULL CHECK (version >= 1)
);

CREATE TABLE config_history (
    key text NOT NULL,
    version bigint NOT NULL,
    value jsonb NOT NULL,
    schema jsonb,
    by text NOT NULL,
    why text NOT NULL,
    receipt_writer text,
    receipt_sequence bigint,
    at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (key, version)
);
