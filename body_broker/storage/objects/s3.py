"""Owns objects in a bucket of S3, Amazon's or another's. Imports boto3: opening.py imports this file where a bucket is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import boto3  # pyright: ignore[reportMissingTypeStubs] - it has none
from botocore.config import Config  # pyright: ignore[reportMissingTypeStubs] - nor has it
from botocore.exceptions import IncompleteReadError  # pyright: ignore[reportMissingTypeStubs] - the same
from botocore.session import Session as Botocore  # pyright: ignore[reportMissingTypeStubs] - the same

from body_broker.storage.objects.faults import Place, is_absent, is_conflict, is_stale, no_credentials, told
from body_broker.storage.objects.model import JSON_TYPE, OBJECT_BYTES_MAX, absent, require_key, require_size
from body_broker.threads import Threads

_THREADS = 4
_CONNECT_S = 3
_READ_S = 20
_ATTEMPTS = 3
_METADATA_S = 2


class S3Objects:
    """Objects in one bucket, under keys that begin alike; asked in threads of its own.

    The client is made on first use, and anew where its credentials were refused: a file of credentials may have been renewed.

    Args:
        bucket: Its name.
        prefix: What every key begins with, without slashes around; may be empty.
        endpoint_url: Another S3 than Amazon's.
        region: Of the bucket; None is what boto3 finds.
        setting: What names the place, for messages.
    """

    def __init__(self, bucket: str, prefix: str, *, endpoint_url: str | None, region: str | None, setting: str) -> None:
        self._bucket, self._prefix = bucket, f"{prefix}/" if prefix else ""
        self._endpoint_url, self._region = endpoint_url, region
        self._place = Place(setting, own=endpoint_url is not None)
        self._threads = Threads(_THREADS, name="S3")
        self._client: Any = None  # boto3 has no types

    def close(self) -> None:
        """Ask S3 nothing more; what is on its way is not waited for."""
        self._threads.close()

    async def put(self, key: str, body: bytes, *, content_type: str = JSON_TYPE) -> None:
        """As `Objects.put`."""
        require_size(len(body))
        await self._ask("PutObject", self._put, require_key(key), body, content_type)

    async def get(self, key: str) -> bytes:
        """As `Objects.get`."""
        found: bytes | None = await self._ask("GetObject", self._get, require_key(key))
        if found is None:
            raise absent()
        return found

    async def head(self, key: str) -> int | None:
        """As `Objects.head`."""
        return await self._ask("GetObject", self._head, require_key(key))

    async def drop(self, key: str) -> None:
        """As `Objects.drop`; a bucket that keeps versions keeps the old one as long as its rules say."""
        await self._ask("DeleteObject", self._drop, require_key(key))

    async def _ask(
        self, action: str, function: Callable[..., Any], *arguments: object
    ) -> Any:  # what the function gives
        return await self._threads.run(self._asked, action, function, *arguments)

    # From here on everything blocks, and is called in threads.

    def _asked(self, action: str, function: Callable[..., Any], *arguments: object) -> Any:  # as above
        try:
            client = self._client = self._client or self._made()  # two that are made at once do no harm
            return function(client, *arguments)
        except Exception as error:
            if is_stale(error):
                self._client = None
            raise told(error, action=action, place=self._place) from error

    def _made(self) -> Any:  # boto3 has no types
        session: Any = Botocore()
        # On a machine that is none of Amazon's nobody answers there.
        session.set_config_variable("metadata_service_timeout", _METADATA_S)
        found: Any = boto3.Session(botocore_session=session)
        # A client made without credentials would stay without.
        if found.get_credentials() is None:
            raise no_credentials(self._place)
        own = self._endpoint_url is not None
        # Servers that are not Amazon's know neither a bucket as a host's name nor checksums at the end of a body.
        others: dict[str, Any] = {
            "s3": {"addressing_style": "path"},
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }
        return found.client(
            "s3",
            region_name=self._region or found.region_name or ("us-east-1" if own else None),
            endpoint_url=self._endpoint_url,
            config=Config(
                connect_timeout=_CONNECT_S,
                read_timeout=_READ_S,
                retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
                max_pool_connections=_THREADS,
                signature_version="s3v4",
                **(others if own else {}),
            ),
        )

    def _put(self, client: Any, key: str, body: bytes, content_type: str) -> None:  # boto3's client
        for left in reversed(range(_ATTEMPTS)):  # boto3 asks again after other faults, not after this one
            try:
                client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=body, ContentType=content_type)
            except Exception as error:
                if not (left and is_conflict(error)):
                    raise
            else:
                return

    def _get(self, client: Any, key: str) -> bytes | None:  # boto3's client
        try:
            said = client.get_object(Bucket=self._bucket, Key=self._prefix + key)
        except Exception as error:
            if is_absent(error):
                return None
            raise
        require_size(said["ContentLength"])
        with said["Body"] as body:
            found: bytes = body.read(OBJECT_BYTES_MAX)
        if len(found) != said["ContentLength"]:  # botocore looks only where it reads to the end
            raise IncompleteReadError(actual_bytes=len(found), expected_bytes=said["ContentLength"])
        return found

    def _head(self, client: Any, key: str) -> int | None:  # boto3's client
        try:
            return client.head_object(Bucket=self._bucket, Key=self._prefix + key)["ContentLength"]
        except Exception as error:
            if is_absent(error):
                return None
            raise

    def _drop(self, client: Any, key: str) -> None:  # boto3's client
        client.delete_object(Bucket=self._bucket, Key=self._prefix + key)
