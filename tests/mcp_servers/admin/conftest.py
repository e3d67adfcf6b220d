from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore import loaders  # pyright: ignore[reportMissingTypeStubs] - it has none

from mcp_servers.admin import catalogue
from tests.counterparts.aws import REGION, Cloud, running
from tests.mcp_servers.hub.conftest import Hub, OpenHub, open_hub, settings_for

__all__ = ["open_hub", "settings_for"]


@pytest.fixture(scope="session")
def aws_server() -> Iterator[Cloud]:
    with running() as found:
        yield found


@pytest.fixture(scope="session", autouse=True)
def models_read_once() -> Iterator[None]:
    """Each hub of a test is a process of its own to boto3, and would read AWS' models anew: 0.4 s."""
    untyped: Any = loaders
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("botocore.session.create_loader", functools.cache(untyped.create_loader))
        yield


@pytest.fixture
def cloud(aws_server: Cloud) -> Iterator[Cloud]:
    """An AWS account of the test's own: `reader` may all of the catalogue, `almost` what the test says."""
    aws_server.begin()
    aws_server.role("reader", catalogue.actions())
    aws_server.role("almost", [])
    yield aws_server
    aws_server.relax()


@pytest.fixture(autouse=True)
def own_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No AWS credentials but those that a test gives, and no machine of Amazon's around it."""
    import os  # noqa: PLC0415 - the environment is this fixture's business

    for name in [name for name in os.environ if name.startswith("AWS_")]:  # noqa: TID251
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture
def roles_file(tmp_path: Path) -> Path:
    """anna and who is sre read everything; bob what his role may; bronze as anna."""
    file = tmp_path / "aws.toml"
    arn = "arn:aws:iam::123456789012:role"
    file.write_text(
        f'[principals]\n"tier:bronze" = "{arn}/reader"\n"person:bob" = "{arn}/almost"\n'
        f'[roles]\nsre = {{ arn = "{arn}/reader", external_id = "studio-7" }}\n'
    )
    return file


@pytest.fixture
async def hub(
    open_hub: OpenHub, redis: object, cloud: Cloud, roles_file: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[Hub]:
    """A served hub whose AWS is the test's, with permissions enforced once the test says so."""
    _ = redis  # flushed before the test
    key, secret = cloud.hub
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    async with open_hub(aws_roles=roles_file, aws_region=REGION, aws_endpoint_url=cloud.url, tools="all") as found:
        yield found
