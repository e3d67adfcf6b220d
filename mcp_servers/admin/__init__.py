"""The admin server: read-only queries of the studio's AWS account."""
