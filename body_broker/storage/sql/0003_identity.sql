-- Identity: signing keys, logins and their tokens, roles, and the witnesses of sessions. Owner: mcp_servers/hub.

CREATE TABLE signing_key (
  kid text PRIMARY KEY,
  public_key bytea NOT NULL CHECK (octet_length(public_key) = 32),
  private_sealed bytea NOT NULL, -- AES-256-GCM under a key derived from the root key, bound to kid
  created_at timestamptz NOT NULL DEFAULT now(),
  retired_at timestamptz,
  verifies_until timestamptz,
  CHECK ((retired_at IS NULL) = (verifies_until IS NULL))
);
CREATE UNIQUE INDEX signing_key_one_signs ON signing_key ((true)) WHERE retired_at IS NULL;

-- A login is the session of every token of one principal, until it is ended.
CREATE TABLE login (
  sid text PRIMARY KEY,
  principal text NOT NULL CHECK (principal ~ '^((tier:(gold|silver|bronze))|((person|service):[a-z0-9][a-z0-9._-]{0,62}))$'),
  began_at timestamptz NOT NULL DEFAULT now(),
  ended_at timestamptz,
  ended_by text
);
CREATE UNIQUE INDEX login_one_lives ON login (principal) WHERE ended_at IS NULL;

-- What was issued; never the token itself. Minted conversation tokens are short and leave no row.
CREATE TABLE login_token (
  jti text PRIMARY KEY,
  sid text NOT NULL REFERENCES login,
  kid text NOT NULL REFERENCES signing_key,
  issued_at timestamptz NOT NULL,
  expires_at timestamptz NOT NULL,
  revoked_at timestamptz,
  revoked_by text
);
CREATE INDEX login_token_by_login ON login_token (sid, expires_at);
CREATE INDEX login_token_by_key ON login_token (kid, expires_at);

CREATE TABLE principal_role (
  principal text NOT NULL CHECK (principal ~ '^person:[a-z0-9][a-z0-9._-]{0,62}$'),
  role text NOT NULL CHECK (role IN ('designer', 'engineer', 'sre', 'security', 'admin')),
  granted_at timestamptz NOT NULL DEFAULT now(),
  granted_by text NOT NULL,
  PRIMARY KEY (principal, role)
);

-- Every hub follows this number: it moves, in the same transaction, with whatever decides who a token stands for.
CREATE TABLE identity_version (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  version bigint NOT NULL
);
INSERT INTO identity_version (version) VALUES (1);

CREATE FUNCTION identity_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE identity_version SET version = version + 1;
  PERFORM pg_notify('identity_changed', '');
  RETURN NULL;
END
$$;
CREATE TRIGGER signing_key_changed AFTER INSERT OR UPDATE OR DELETE ON signing_key
  FOR EACH STATEMENT EXECUTE FUNCTION identity_changed();
CREATE TRIGGER login_ended AFTER UPDATE ON login FOR EACH STATEMENT EXECUTE FUNCTION identity_changed();
CREATE TRIGGER login_token_revoked AFTER UPDATE ON login_token FOR EACH STATEMENT EXECUTE FUNCTION identity_changed();
CREATE TRIGGER principal_role_changed AFTER INSERT OR UPDATE OR DELETE ON principal_role
  FOR EACH STATEMENT EXECUTE FUNCTION identity_changed();

-- A session's witness: written at its first call, durable where the state in Redis is not. The nonce says which state in
-- Redis is the one this row saw begin; any other is a state that was lost and begun anew.
CREATE TABLE session_witness (
  session text PRIMARY KEY,
  requester text NOT NULL,
  nonce text NOT NULL,
  did text[] NOT NULL DEFAULT '{}',
  began_at timestamptz NOT NULL DEFAULT now(),
  tainted_at timestamptz,
  tainted_by text,
  clearing text, -- an operator is clearing the taint; a new taint takes the mark away
  cleared_at timestamptz,
  cleared_by text
);
