"""What the setting may be, and what is said of what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from body_broker.errors import SettingsError
from body_broker.storage.objects import open_objects


@pytest.mark.parametrize(
    "where",
    [
        "s3://",
        "s3://ab",
        "s3://Bucket",
        "s3://bucket//x",
        "s3://bucket/../x",
        "s3://bucket/a b",
        "s3://bucket/a?b",
        "gs://bucket",
        "https://bucket.s3.amazonaws.com/x",
        "s3://user:secret@bucket",
    ],
)
async def test_what_is_neither_directory_nor_bucket_is_refused_without_repeating_it(where: str) -> None:
    with pytest.raises(SettingsError, match="BODY_BROKER_RESULTS is neither") as caught:
        async with open_objects(where):
            pass

    assert "s3://BUCKET" in caught.value.next_step
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    "where", ["s3://bucket", "s3://bucket/", "s3://my.bucket-1/results", "s3://bucket/a/b=c/d.e_f/"]
)
async def test_a_bucket_is_opened_without_being_asked_anything(where: str) -> None:
    async with open_objects(where, endpoint_url="http://127.0.0.1:9"):
        pass


async def test_an_endpoint_without_a_bucket_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="names no bucket"):
        async with open_objects(tmp_path, endpoint_url="http://127.0.0.1:9"):
            pass
