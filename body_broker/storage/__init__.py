"""Stores: PostgreSQL with its migrations, Redis, and the embedded servers that stand in for both."""
