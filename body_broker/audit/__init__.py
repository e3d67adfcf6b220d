"""The audit: a MAC'd chain per writer process, checkpoints over all chains, an anchor outside the database, and the verifier."""
