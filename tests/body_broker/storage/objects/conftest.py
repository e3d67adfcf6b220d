"""Owns the places that tests of objects are run on: a folder, moto's S3, and a real S3 server where there is one."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from body_broker.storage.objects import Objects, open_objects
from tests.components import need
from tests.counterparts import aws, s3
from tests.counterparts.s3 import Bucket

_numbers = itertools.count()

Open = Callable[[], AbstractAsyncContextManager[Objects]]


@pytest.fixture(autouse=True)
def own_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Credentials of the test servers, no others, and no machine of Amazon's around."""
    import os  # noqa: PLC0415 - the environment is this fixture's business

    for name in [name for name in os.environ if name.startswith("AWS_")]:  # noqa: TID251
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.SECRET)


@pytest.fixture(scope="session")
def real_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    need("s3")
    with s3.running(tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture(scope="session")
def moto() -> Iterator[aws.Cloud]:
    with aws.running() as found:
        yield found


@pytest.fixture
def bucket(real_s3: str) -> Bucket:
    """A bucket of the real server."""
    return Bucket(real_s3, f"bucket-{next(_numbers)}").make()


@pytest.fixture(params=["folder", "moto", "real"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the same place each time."""
    if request.param == "folder":
        return lambda: open_objects(tmp_path / "results")
    url: str = request.getfixturevalue("real_s3") if request.param == "real" else request.getfixturevalue("moto").url
    made = Bucket(url, f"bucket-{next(_numbers)}").make()
    return lambda: open_objects(f"s3://{made.name}/some/prefix", endpoint_url=url)


@pytest.fixture
async def objects(opened: Open) -> AsyncGenerator[Objects]:
    async with opened() as found:
        yield found


@asynccontextmanager
async def in_bucket(bucket: Bucket, prefix: str = "/results") -> AsyncGenerator[Objects]:
    """The objects of a bucket."""
    async with open_objects(f"s3://{bucket.name}{prefix}", endpoint_url=bucket.url) as found:
        yield found
