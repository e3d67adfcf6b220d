"""Second factors of people: TOTP and passkeys, how they are enrolled, kept and checked."""
