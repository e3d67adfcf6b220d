"""Owns the config table: namespaced keys, JSON values under an optional JSON Schema, versions and history."""

from __future__ import annotations

import asyncio
import math
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import asyncpg
import orjson

from body_broker.calls import Json, Receipt
from body_broker.errors import BadInput, Conflict, NotFound, TooLarge
from body_broker.storage.postgres import Connection, Executor, Pool
from body_broker.text import canonical_json, clean, is_clean

KEY_CHARACTERS_MAX = 200
VALUE_BYTES_MAX = 64 * 1024
LIMIT_MAX = 200
_KEY = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)+")
# The hub's own settings have their place (docs/settings.md), and agents read this table: no secret belongs here.
_NOT_HERE = frozenset({"hub", "body_broker", "policy", "approvals"})
_SECRETS = re.compile(r"(^|[._])(password|passwd|credentials?|api_key|private_key|secret_key|access_key|access_token)$")

_READ = "SELECT key, value::text, schema::text, version FROM config WHERE key = $1"
_LIST = """
SELECT key, value::text, schema::text, version FROM config
WHERE starts_with(key, $1) AND key COLLATE "C" > $2 ORDER BY key COLLATE "C" LIMIT $3::integer
"""
_WRITE = """
INSERT INTO config (key, value, schema, version) VALUES ($1, $2::text::jsonb, $3::text::jsonb, $4::bigint)
ON CONFLICT (key) DO UPDATE SET value = excluded.value, schema = excluded.schema, version = excluded.version
"""
_REMEMBER = """
INSERT INTO config_history (key, version, value, schema, by, why, receipt_writer, receipt_sequence)
VALUES ($1, $2::bigint, $3::text::jsonb, $4::text::jsonb, $5, $6, $7, $8::bigint)
"""
_HISTORY = """
SELECT version, value::text, by, why, at FROM config_history
WHERE key = $1 AND ($2::bigint IS NULL OR version < $2) ORDER BY version DESC LIMIT $3::integer
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """One key as it is now; `schema` is the JSON Schema that its values must fit, if it has one."""

    key: str
    value: Json
    version: int
    schema: dict[str, Json] | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """Part of a listing, in the order of keys; `after` is where the next one goes on."""

    items: list[Figure]
    after: str | None


@dataclass(frozen=True, slots=True)
class Revision:
    """What a key was set to, by whom, when and why."""

    version: int
    value: Json
    by: str
    why: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Wanted:
    """A value that fits, as `Tuning.fit` found it.

    Attributes:
        text: The value as JSON.
        schema: What it and all later ones must fit.
        form: The schema as JSON.
        present: The figure as it was when this was found; None where there was none.
        keeps_schema: The schema is the one there was, and must still be.
    """

    key: str
    value: Json
    text: str
    schema: dict[str, Json] | None
    form: str | None
    present: Figure | None
    keeps_schema: bool


class Tuning:
    """The studio's figures: agents read them, operators set them."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def get(self, key: str) -> Figure:
        """The figure under a key.

        Raises:
            NotFound: Nothing is set under it.
        """
        found = await _read(self._pool, key)
        if found is None:
            raise NotFound(
                f"Nothing is set under {clean(key, limit=80)}.", next_step="list_config says which keys there are."
            )
        return found

    async def list(self, prefix: str = "", *, limit: int = 50, after: str | None = None) -> Figures:
        """Figures whose key starts with the prefix.

        Args:
            prefix: Such as `spawn.`; empty for all.
            limit: At most this many, 1 to 200.
            after: `Figures.after` of the page before.
        """
        limit = max(1, min(limit, LIMIT_MAX))
        rows = await self._pool.fetch(_LIST, prefix, after or "", limit + 1)
        items = [_figure(row) for row in rows[:limit]]
        return Figures(items, items[-1].key if len(rows) > limit else None)

    async def set(
        self,
        key: str,
        value: Json,
        *,
        by: str,
        why: str = "",
        expect_version: int | None = None,
        schema: dict[str, Json] | None = None,
        receipt: Receipt | None = None,
    ) -> Figure:
        """The figure as it is now; a value that it already has changes nothing and makes no version.

        Args:
            key: At least two parts, such as `spawn.night.rate`.
            value: Any JSON value that fits the key's schema, up to 64 KiB.
            by: A principal, such as `operator:anna`.
            why: For the history.
            expect_version: The version it was read at; 0 for a key that must be new; None overwrites.
            schema: A JSON Schema for this and all later values; None keeps the one there is, {} takes any value.
            receipt: The decision's place on the audit, stored with the change.

        Raises:
            BadInput: The key, the value or the schema does not fit.
            TooLarge: The value or the schema has too many bytes.
            Conflict: It has another version than expected, or its schema was changed at the same time.
        """
        wanted = await self.fit(key, value, schema=schema)
        async with self._pool.acquire() as connection, connection.transaction():
            return await self.set_within(
                connection, wanted, by=by, why=why, expect_version=expect_version, receipt=receipt
            )

    async def fit(self, key: str, value: Json, *, schema: dict[str, Json] | None = None) -> Wanted:
        """What is to be set, held to the schema, and the figure as it is now.

        Raises:
            BadInput: The key, the value or the schema does not fit.
            TooLarge: The value or the schema has too many bytes.
        """
        _check_key(key)
        text = _encoded(value, "value")
        read = await _read(self._pool, key)
        kept = (read.schema if read else None) if schema is None else schema or None
        if kept is not None:
            await asyncio.to_thread(_fit, value, kept, key)
        form = None if kept is None else _encoded(kept, "schema")
        return Wanted(key, value, text, kept, form, present=read, keeps_schema=schema is None)

    async def set_within(
        self,
        connection: Connection,
        wanted: Wanted,
        *,
        by: str,
        why: str = "",
        expect_version: int | None = None,
        receipt: Receipt | None = None,
    ) -> Figure:
        """The same as `set`, of what `fit` gave, in the caller's transaction.

        Raises:
            Conflict: It has another version than expected, or its schema was changed since.
        """
        key = wanted.key
        # Whoever sets the same key waits here, also where there is none yet.
        await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('config ' || $1, 0))", key)
        present = await _read(connection, key)
        version = present.version if present else 0
        if expect_version not in (None, version):
            raise Conflict(f"{key} has version {version}, not {expect_version}.", details={"version": version})
        # As JSON: in Python true is 1, and false is 0.
        kept = canonical_json(present.schema if present else None)
        if wanted.keeps_schema and kept != canonical_json(wanted.schema):
            raise Conflict(f"Somebody changed the schema of {key} just now.")
        if present and canonical_json([present.value, present.schema]) == canonical_json([wanted.value, wanted.schema]):
            return present
        await connection.execute(_WRITE, key, wanted.text, wanted.form, version + 1)
        given = (receipt and receipt.writer, receipt and receipt.sequence)
        reason = clean(why, limit=500).strip()
        await connection.execute(_REMEMBER, key, version + 1, wanted.text, wanted.form, by, reason, *given)
        return Figure(key, wanted.value, version + 1, wanted.schema)

    async def history(self, key: str, *, limit: int = 50, before: int | None = None) -> list[Revision]:
        """What a key was set to, the latest first, from versions below `before` on.

        Raises:
            NotFound: Nothing was ever set under it.
        """
        rows = await self._pool.fetch(_HISTORY, key, before, max(1, min(limit, LIMIT_MAX)))
        if not rows and before is None:
            raise NotFound(f"Nothing was ever set under {clean(key, limit=80)}.")
        return [Revision(r["version"], orjson.loads(r["value"]), r["by"], r["why"], r["at"]) for r in rows]


async def _read(connection: Executor, key: str) -> Figure | None:
    row = await connection.fetchrow(_READ, key)
    return None if row is None else _figure(row)


def _figure(row: asyncpg.Record) -> Figure:
    schema = row["schema"]
    return Figure(
        row["key"], orjson.loads(row["value"]), row["version"], None if schema is None else orjson.loads(schema)
    )


def _check_key(key: str) -> None:
    if len(key) > KEY_CHARACTERS_MAX or not _KEY.fullmatch(key):
        raise BadInput(
            f"A key has at least two parts of a-z, 0-9 and _, joined by dots, and at most {KEY_CHARACTERS_MAX} characters.",
            next_step="Such as spawn.night.rate.",
        )
    if key.partition(".")[0] in _NOT_HERE or _SECRETS.search(key):
        raise BadInput(
            "The hub's own settings and secrets are not kept here: agents read these figures.",
            next_step="docs/settings.md says where the hub's settings are.",
        )


def _encoded(value: Json, what: str) -> str:
    try:
        text = orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        raise BadInput(f"The {what} is not JSON.") from error
    if len(text) > VALUE_BYTES_MAX:
        raise TooLarge(f"The {what} has {len(text)} bytes; {VALUE_BYTES_MAX} are the limit.")
    if not _sound(value):
        raise BadInput(f"The {what} holds invisible characters, or a number that is not finite.")
    return text.decode()


def _sound(value: Json) -> bool:
    if isinstance(value, str):
        return is_clean(value)
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(is_clean(name) and _sound(item) for name, item in cast("dict[str, Any]", value).items())
    return not isinstance(value, list | tuple) or all(map(_sound, cast("list[Any]", value)))


def _fit(value: Json, schema: dict[str, Json], key: str) -> None:
    from jsonschema import Draft202012Validator  # noqa: PLC0415  # 80 ms and file reads, for those who set figures only
    from jsonschema.exceptions import SchemaError, ValidationError  # noqa: PLC0415  # the same

    if "$ref" in orjson.dumps(schema).decode():
        raise BadInput("A schema may not refer to another ($ref).")
    try:
        Draft202012Validator.check_schema(schema)
        Draft202012Validator(schema).validate(value)  # pyright: ignore[reportUnknownMemberType] - its stubs leave a parameter open
    except SchemaError as error:
        raise BadInput("The schema is not a JSON Schema (draft 2020-12).") from error
    except ValidationError as error:
        where = ".".join(map(str, error.absolute_path)) or "the value"
        raise BadInput(
            f"The value does not fit {key}'s schema: {where} fails {error.validator}.",
            next_step="`body-broker config get` shows the schema.",
        ) from error
