"""Owns how these tests run `body-broker` as a person does."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from body_broker.storage import embedded

HUB = Path(sys.executable).with_name("body-broker")


async def command(*words: str | Path, fails: bool = False, env: Mapping[str, str] | None = None) -> str:
    """What the command said, on both of its streams; it must end as is said."""
    process = await asyncio.create_subprocess_exec(
        *(HUB, *words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **(env or {})},  # noqa: TID251 - a child's environment
    )
    try:
        out, _ = await process.communicate()
    except asyncio.CancelledError:
        await process.wait()
        raise
    said = out.decode()
    assert (process.returncode != 0) is fails, said
    return said


async def backed_up(
    data_dir: Path, file: Path, *more: str, fails: bool = False, env: Mapping[str, str] | None = None
) -> str:
    """What `backup` said."""
    return await command("backup", file, "--data-dir", data_dir, *more, fails=fails, env=env)


async def restored(
    file: Path, data_dir: Path, *more: str, fails: bool = False, env: Mapping[str, str] | None = None
) -> str:
    """What `restore` said."""
    return await command("restore", file, "--data-dir", data_dir, *more, fails=fails, env=env)


@asynccontextmanager
async def table_held(data_dir: Path) -> AsyncGenerator[asyncpg.Connection]:
    """A table that somebody has for himself: a dump waits for it, after it has taken its picture of the database."""
    urls = await asyncio.to_thread(embedded.start, data_dir)
    connection = await asyncpg.connect(urls.database_url)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE config IN ACCESS EXCLUSIVE MODE")
            yield connection
    finally:
        await connection.close()
        await asyncio.to_thread(embedded.release, data_dir)


def names_in(folder: Path) -> list[str]:
    """What lies in the folder, hidden files too."""
    return sorted(found.name for found in folder.iterdir())
