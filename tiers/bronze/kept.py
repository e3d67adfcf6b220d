"""Owns the forms of a result: as its run records it, as its object, as it is cached, and as readers get it. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

import asyncpg
import orjson

from body_broker.calls import Json
from body_broker.text import canonical_json
from body_broker.work.model import decode
from tiers.bronze.model import Finished, Shaped

_FORMAT = 1
"""Of objects; another layout has another number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What came of a job, as it is kept.

    Attributes:
        body: What get_job tells.
        outside: Whether text from outside went into it: who reads it is tainted.
        object: The key of its object, which has its text for people too.
        sha256: Of the object's bytes.
        bytes: Of the object.
        document: Its document in the lore, where it is searched.
        created_at: When it was published, by the database's clock, UTC.
    """

    job: str
    owner: str
    kind: str
    title: str
    body: Json
    outside: bool
    object: str
    sha256: str
    bytes: int
    document: str | None
    created_at: datetime

    @classmethod
    def of(cls, row: asyncpg.Record) -> Self:
        """From its row; the body is None where only the object has it."""
        found: dict[str, Any] = dict(row)
        return cls(**{**found, "body": decode(row["body"])})


def key_of(kind: str, job: str) -> str:
    """The key of a job's object."""
    return f"{kind}/{job}.json"


def made_of(finished: Finished, shaped: Shaped) -> Json:
    """The result as its run records it: body, text for people, and whether it is searched."""
    made: dict[str, Json] = {
        "engines": list(finished.engines),
        "models": list(finished.models),
        "tools": [{"name": use.name, "outcome": use.outcome} for use in finished.tools],
        "prompt_tokens": finished.usage.prompt,
        "completion_tokens": finished.usage.completion,
        "cost_usd": finished.cost_usd,
        "maybe_spent": finished.maybe_spent,
        "fallbacks": [{"engine": each.engine, "reason": each.reason} for each in finished.fallbacks],
        "truncated": finished.truncated,
        "outside": finished.outside,
    }
    return {"body": {**shaped.body, "made": made}, "text": shaped.text, "searched": shaped.searched}


def object_of(finished: Finished, made: Json) -> bytes:
    """The object's bytes: the same for the same record, whenever they are made."""
    return canonical_json(
        {
            "format": _FORMAT,
            "job": finished.job,
            "owner": finished.owner,
            "kind": finished.assignment.kind,
            "title": finished.assignment.title,
            "body": made["body"],
            "text": made["text"],
        }
    )


def opened(stored: bytes, kept: Kept) -> dict[str, Json] | None:
    """What an object says; None where it is not the one that was put."""
    if hashlib.sha256(stored).hexdigest() != kept.sha256:
        return None
    return orjson.loads(stored)


def kept_of(finished: Finished, made: Json, put: Json, written: Json) -> Kept:
    """A result that was just published, from what its run recorded of putting and writing it."""
    return Kept(
        job=finished.job,
        owner=finished.owner,
        kind=finished.assignment.kind,
        title=finished.assignment.title,
        body=made["body"],
        outside=made["body"]["made"]["outside"],
        document=written["document"],
        created_at=datetime.fromisoformat(written["created_at"]),
        **put,
    )


def cached(kept: Kept) -> bytes:
    """A result as it is cached."""
    return orjson.dumps(kept)


def remembered(said: bytes | str, job: str) -> Kept | None:
    """A result from the cache; None where another version of this program has put it there."""
    try:
        found: dict[str, Any] = orjson.loads(said)
        found["created_at"] = datetime.fromisoformat(found["created_at"])
        kept = Kept(**found)
    except (ValueError, TypeError, KeyError):
        return None
    return kept if kept.job == job else None
