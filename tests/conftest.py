"""Owns what every test may ask for: real stores started as the product starts them, and the watch for blocking calls."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import asyncpg
import pytest
from blockbuster import BlockBuster, blockbuster_ctx

from body_broker.storage import embedded
from body_broker.storage.migrations import migrate
from body_broker.storage.postgres import Pool, open_pool
from body_broker.storage.redis import Redis, open_redis
from body_broker.telemetry import configure_logging
from tests.components import data_dir, need, scratch_dir
from tests.scheduling import pytest_xdist_make_scheduler
from tests.waiting import wait_until_sync
from tests.watchdog import (
    pytest_addoption,
    pytest_configure,
    pytest_exception_interact,
    pytest_runtest_protocol,
    pytest_unconfigure,
)

__all__ = [  # hooks
    "pytest_addoption",
    "pytest_configure",
    "pytest_exception_interact",
    "pytest_runtest_protocol",
    "pytest_unconfigure",
    "pytest_xdist_make_scheduler",
]

OURS = ["body_broker", "policies", "approvals", "tiers", "mcp_servers"]
_STORES = "body-broker-tests-"
_numbers = itertools.count()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def no_blocking_calls() -> Iterator[BlockBuster]:
    """A call of ours that blocks the event loop raises."""
    with blockbuster_ctx(OURS) as found:
        for function in found.functions.values():
            # asyncpg looks for ~/.pgpass once a connection.
            function.can_block_in("asyncpg/connect_utils.py", {"_parse_connect_dsn_and_args"})
            # A bug's traceback is read from the source files when it is logged.
            function.can_block_in("linecache.py", {"checkcache", "updatecache", "getlines"})
        yield found


@pytest.fixture(scope="session", autouse=True)
def logging_as_served() -> None:
    configure_logging("warning")


@pytest.fixture(autouse=True)
def required_components(request: pytest.FixtureRequest) -> None:
    for marker in request.node.iter_markers("requires"):
        for component in marker.args:
            need(component)


@pytest.fixture
def test_data() -> Path:
    """The folder of test collections and novels."""
    need("data")
    return data_dir()


@pytest.fixture(scope="session")
def store_urls() -> Iterator[embedded.StoreUrls]:
    """Embedded stores for all tests of this process, gone when they are over."""
    _sweep()
    data = Path(tempfile.mkdtemp(prefix=_STORES, dir=scratch_dir()))
    yield embedded.start(data)
    embedded.release(data)
    wait_until_sync(lambda: embedded.status(data).keeper_pid is None, "the keeper ends")
    shutil.rmtree(data, ignore_errors=True)  # another session's sweep may be at it


def _sweep() -> None:
    """Remove what sessions left that were killed: stores that had a user once, and have none now."""
    for left in scratch_dir().glob(f"{_STORES}*"):
        stores = left / "stores"
        with suppress(FileNotFoundError, PermissionError, BlockingIOError), (stores / "users.lock").open("rb") as users:
            if (stores / "servers.lock").exists():
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)


@pytest.fixture(scope="session")
def template_database(store_urls: embedded.StoreUrls) -> str:
    """The name of a migrated database that every test's is copied from; made anew in each session."""
    name = "template_for_tests"
    asyncio.run(_run(store_urls.database_url, f"CREATE DATABASE {name}"))
    asyncio.run(_migrate(_url_of(store_urls, name)))
    return name


@pytest.fixture
def database_url(store_urls: embedded.StoreUrls, template_database: str) -> Iterator[str]:
    """A migrated database of the test's own."""
    with new_database(store_urls, template_database) as url:
        yield url


@contextmanager
def new_database(store_urls: embedded.StoreUrls, template_database: str) -> Generator[str]:
    """A migrated database, for as long as it is used."""
    name = f"test_{next(_numbers)}"
    asyncio.run(_run(store_urls.database_url, f"CREATE DATABASE {name} TEMPLATE {template_database}"))
    yield _url_of(store_urls, name)
    asyncio.run(_run(store_urls.database_url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    async with open_pool(database_url) as found:
        yield found


@pytest.fixture
def redis_url(store_urls: embedded.StoreUrls) -> str:
    """A Valkey that holds nothing."""
    asyncio.run(_flush(store_urls.redis_url))
    return store_urls.redis_url


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with open_redis(redis_url) as found:
        yield found


def _url_of(urls: embedded.StoreUrls, database: str) -> str:
    return urls.database_url.replace("/postgres?", f"/{database}?")


async def _run(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def _migrate(url: str) -> None:
    async with open_pool(url) as found:
        await migrate(found)


async def _flush(url: str) -> None:
    async with open_redis(url) as found:
        await found.flushall()  # pyright: ignore[reportUnknownMemberType]  # redis-py's hints
