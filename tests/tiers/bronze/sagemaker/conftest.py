"""Owns what the tests of the endpoint's backend share: an AWS on loopback, an endpoint in it, and jobs that ask it."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore import loaders  # pyright: ignore[reportMissingTypeStubs] - it has none

from body_broker.storage.postgres import Pool
from tests.counterparts.aws import Cloud, running
from tests.counterparts.sagemaker import Container, SageMakerAsyncEmulator, container, emulator
from tests.tiers.bronze.sagemaker.studio import Studio, studio


@pytest.fixture(scope="session")
def aws_server() -> Iterator[Cloud]:
    with running() as found:
        yield found


@pytest.fixture(scope="session", autouse=True)
def models_read_once() -> Iterator[None]:
    """Each client of a test is a process of its own to boto3, and would read AWS' models anew: 0.4 s."""
    untyped: Any = loaders
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("botocore.session.create_loader", functools.cache(untyped.create_loader))
        yield


@pytest.fixture
def cloud(aws_server: Cloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cloud]:
    """An AWS account of the test's own, and its credentials where boto3 finds them: no others, and no machine of Amazon's around it."""
    import os  # noqa: PLC0415 - the environment is this fixture's business

    for name in [name for name in os.environ if name.startswith("AWS_")]:  # noqa: TID251
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")
    aws_server.begin()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", aws_server.root[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", aws_server.root[1])
    yield aws_server
    aws_server.relax()


@pytest.fixture
async def model() -> AsyncIterator[Container]:
    async with container() as found:
        yield found


@pytest.fixture
async def sagemaker(cloud: Cloud) -> AsyncIterator[SageMakerAsyncEmulator]:
    async with emulator(cloud) as found:
        yield found


@pytest.fixture
async def experts(
    pool: Pool, database_url: str, cloud: Cloud, sagemaker: SageMakerAsyncEmulator, model: Container
) -> AsyncIterator[Studio]:
    """An endpoint that serves the model, and jobs that ask it."""
    async with studio(pool, database_url, cloud, sagemaker, model) as found:
        yield found
