"""Owns which place a setting means: a directory, or a bucket of S3 with what its keys begin with."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from body_broker.errors import SettingsError
from body_broker.storage.objects.directory import DirectoryObjects
from body_broker.storage.objects.model import Objects
from body_broker.storage.objects.traced import traced

_S3 = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?P<prefix>(/[A-Za-z0-9!_.*'()=-]+)*)/?")


@asynccontextmanager
async def open_objects(
    where: str | Path,
    *,
    endpoint_url: str | None = None,
    region: str | None = None,
    setting: str = "BODY_BROKER_RESULTS",
) -> AsyncGenerator[Objects]:
    """The objects of a place, until the way out. S3 is not asked anything yet; a directory is made.

    Args:
        where: A directory, or s3://bucket/prefix. Credentials are those that boto3 finds.
        endpoint_url: Another S3 than Amazon's.
        region: Of the bucket; None is what boto3 finds.
        setting: What names it, for messages.

    Raises:
        SettingsError: It is neither.
        NotConfigured: The directory cannot be made.
        Unavailable: Its disk fails, or is full.
    """
    given = str(where)
    if "://" not in given:
        if endpoint_url is not None:
            raise SettingsError(
                f"{setting}_ENDPOINT_URL is set, and {setting} names no bucket.",
                next_step=f"Set {setting} to s3://BUCKET/PREFIX, or remove {setting}_ENDPOINT_URL.",
            )
        directory = DirectoryObjects(Path(given), setting=setting)
        await directory.open()
        yield traced(directory, "directory")
        return
    named = _S3.fullmatch(given)
    if named is None or any(set(part) == {"."} for part in named["prefix"].split("/")):
        raise SettingsError(
            f"{setting} is neither a directory nor a bucket of S3.",
            next_step="Set it to a directory, or to s3://BUCKET or s3://BUCKET/PREFIX.",
        )
    opened = await asyncio.to_thread(_s3, named["bucket"], named["prefix"].strip("/"), endpoint_url, region, setting)
    try:
        yield traced(opened, "aws.s3")
    finally:
        opened.close()


def _s3(bucket: str, prefix: str, endpoint_url: str | None, region: str | None, setting: str) -> Any:  # S3Objects
    from body_broker.storage.objects.s3 import S3Objects  # noqa: PLC0415 - imports boto3, 0.4 s and 30 MB

    return S3Objects(bucket, prefix, endpoint_url=endpoint_url, region=region, setting=setting)
