"""Owns signing requests to Amazon's services: SigV4 with the credentials that boto3 finds. Imported where one is configured."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import boto3  # pyright: ignore[reportMissingTypeStubs] - it has none
from opensearchpy import AWSV4SignerAsyncAuth

from body_broker.lore.opensearch.faults import CopyAway

SERVICES = {"managed": "es", "serverless": "aoss"}


class Signer:
    """Signs requests; credentials are found and renewed in a thread, because both may ask the network.

    Args:
        service: managed or serverless.
        region: The AWS region.
    """

    def __init__(self, service: str, region: str) -> None:
        self._service, self._region = SERVICES[service], region
        self._session: Any = None  # boto3 has no types
        self._frozen: Any = None

    async def renew(self) -> None:
        """Have credentials that are valid now; called before each request.

        Raises:
            CopyAway: None can be found.
        """
        try:
            self._frozen = await asyncio.to_thread(self._find)
        except Exception as error:  # boto3's sources raise errors of many libraries
            raise _no_credentials() from error
        if self._frozen is None:
            raise _no_credentials()

    def __call__(
        self, method: str, url: str, body: str | bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """The headers of a request, signed; what opensearch-py calls."""
        signer: Any = AWSV4SignerAsyncAuth(self._frozen, self._region, self._service)
        signed: dict[str, str] = signer(method=method, url=url, body=body, headers=dict(headers or {}))
        return signed

    def _find(self) -> Any:  # botocore's
        if self._session is None:
            self._session = boto3.Session()
        source: Any = self._session.get_credentials()  # which it keeps
        return source and source.get_frozen_credentials()


def _no_credentials() -> CopyAway:
    return CopyAway(
        "There are no AWS credentials to sign requests to OpenSearch with.",
        next_step="Give this process a role, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
    )
