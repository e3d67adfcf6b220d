"""Owns the spans of stores: which verb went to which table, and how long it took; never a statement, a key or a value."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import asyncpg
import redis.asyncio as aioredis

from body_broker.tracing import Span, store

POSTGRESQL, REDIS, OPENSEARCH = "postgresql", "redis", "opensearch"
"""`db.system.name`; Valkey and Dragonfly speak as Redis does, and are told as it."""

# Statements are constants of ours with $1 for what is in them; a WITH is told by what it writes, not by its last SELECT.
_WRITES = re.compile(
    r"\b(INSERT)\s+INTO\s+([a-z_][a-z0-9_]*)|(?<!FOR )(?<!KEY )(?<!DO )\b(UPDATE)\s+([a-z_][a-z0-9_]*)|\b(DELETE)\s+FROM\s+([a-z_][a-z0-9_]*)"
)
_READS = re.compile(r"\bFROM\s+([a-z_][a-z0-9_]*)")
_READERS = frozenset({"SELECT", "WITH"})
_WRITERS = frozenset({"INSERT", "UPDATE", "DELETE", "WITH"})
_NAME = re.compile(r"[A-Z]{2,20}")


@lru_cache(maxsize=1_024)
def summary(statement: str) -> tuple[str, str]:
    """The verb of a statement and the first table that it is about, "" where there is none."""
    first = _NAME.match(statement.lstrip().upper())
    verb = first[0] if first else "OTHER"
    if verb in _WRITERS and (found := _WRITES.search(statement)) is not None:
        verb, table = (part for part in found.groups() if part is not None)
        return verb, table
    if verb in _READERS:
        found = _READS.search(statement)
        return "SELECT", found[1] if found else ""
    return verb, ""


def _told(statement: str) -> Span:
    return store(POSTGRESQL, *summary(statement))


class TracedConnection(asyncpg.Connection):  # generic in its stubs only
    """asyncpg's connection with a span for each statement, opened where something is recorded."""

    async def execute(self, query: str, *args: object, **options: Any) -> str:
        """As asyncpg has it; so have the others."""
        with _told(query):
            return await super().execute(query, *args, **options)

    async def executemany(self, command: str, args: Iterable[Any], **options: Any) -> None:
        """As asyncpg has it."""
        with _told(command):
            await super().executemany(command, args, **options)

    async def copy_records_to_table(self, table_name: str, **options: Any) -> Any:
        """As asyncpg has it."""
        with store(POSTGRESQL, "COPY", table_name):
            return await super().copy_records_to_table(table_name, **options)

    async def fetch(self, query: str, *args: object, **options: Any) -> Any:
        """As asyncpg has it."""
        with _told(query):
            return await super().fetch(query, *args, **options)

    async def fetchrow(self, query: str, *args: object, **options: Any) -> Any:
        """As asyncpg has it."""
        with _told(query):
            return await super().fetchrow(query, *args, **options)

    async def fetchval(self, query: str, *args: object, **options: Any) -> Any:
        """As asyncpg has it."""
        with _told(query):
            return await super().fetchval(query, *args, **options)


class TracedRedis(aioredis.Redis):
    """redis-py's client with a span for each command, opened where something is recorded."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """As redis-py has it."""
        with store(REDIS, str(args[0])):
            return await super().execute_command(*args, **options)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # redis-py's hints


def request(method: str, path: str) -> Span:
    """A request to OpenSearch: its operation is the last part of its path, or what the method does to an index.

    Args:
        method: Of HTTP.
        path: Such as `/lore/_search`.
    """
    parts = path.strip("/").split("/")
    operation = parts[-1].removeprefix("_") if parts[-1].startswith("_") else _INDEX.get(method, method.lower())
    return store(OPENSEARCH, operation, parts[0] if not parts[0].startswith("_") else "")


_INDEX: Mapping[str, str] = {"PUT": "create", "DELETE": "delete"}
