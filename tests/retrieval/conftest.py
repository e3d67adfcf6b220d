"""Owns the collections that all tests of retrieval share: brought in once, because embedding them takes minutes."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from body_broker.settings import Settings
from body_broker.storage.embedded import StoreUrls
from mcp_servers.rag.services import Services
from tests.components import data_dir, need, scratch_dir
from tests.conftest import new_database
from tests.opensearch_node import Node
from tests.retrieval.library import bring, copied, library

SECRET = "a-secret-key-of-the-tests-0123456789"


@pytest.fixture(scope="session")
def collections_url(
    store_urls: StoreUrls, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A database that holds both collections, with their vectors."""
    need("data")
    need("weights")
    with new_database(store_urls, template_database) as url:
        asyncio.run(_bring(url, data_dir(), tmp_path_factory.mktemp("collections")))
        yield url


async def _bring(url: str, data: Path, folder: Path) -> None:
    async with library(settings_of(url)) as services:
        await bring(services, data, folder)


def settings_of(url: str, **more: object) -> Settings:
    return Settings.model_validate({"database_url": url, "secret_key": SECRET, **more})


@pytest.fixture(scope="session")
def node_url() -> Iterator[str]:
    """A real OpenSearch node."""
    need("opensearch")
    folder = Path(tempfile.mkdtemp(prefix="retrieval-node-", dir=scratch_dir()))
    node = Node(folder)
    try:
        yield node.start()
    finally:
        node.stop()
        shutil.rmtree(folder)


@pytest.fixture(params=["postgresql", "opensearch"])
def index(request: pytest.FixtureRequest) -> str:
    """What answers."""
    return request.param


@pytest.fixture
async def collected(collections_url: str, index: str, request: pytest.FixtureRequest) -> AsyncIterator[Services]:
    """Lore over both collections, on the embedded index and on a copy in OpenSearch."""
    more: dict[str, object] = {}
    if index == "opensearch":
        more = {"opensearch_url": request.getfixturevalue("node_url"), "opensearch_engine": "lucene"}
    async with library(settings_of(collections_url, **more)) as services:
        if more:
            await copied(services.pool)
        yield services
