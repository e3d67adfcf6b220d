"""Owns every request to OpenSearch: its address, credentials, deadlines, and what its refusals mean. The one user of opensearchpy."""

from __future__ import annotations

import asyncio
import logging
import ssl
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit

import orjson
from opensearchpy import AsyncHttpConnection, AsyncOpenSearch
from opensearchpy.exceptions import ConnectionError as NotConnected
from opensearchpy.exceptions import ConnectionTimeout, OpenSearchException, TransportError

from body_broker.calls import Json
from body_broker.lore.opensearch import faults
from body_broker.lore.opensearch.breaker import Breaker
from body_broker.settings import Settings
from body_broker.storage.traced import request
from body_broker.telemetry import get_logger

if TYPE_CHECKING:
    from body_broker.lore.opensearch.signing import Signer

log = get_logger(__name__)
# It logs requests, with bodies on debug; what went wrong is logged here, without.
logging.getLogger("opensearch").setLevel(logging.CRITICAL)

SEND_TIMEOUT_S = 60.0
_CONNECTIONS_MAX = 16


class Client:
    """One shared client of one OpenSearch. Only what every service has is asked: no `GET /`, no refresh, no ids of ours, no *_by_query.

    Args:
        settings: The address with its user, the service, the region, and how long a search may take.
        breaker: Keeps searches from waiting for what is down.
    """

    def __init__(self, settings: Settings, breaker: Breaker) -> None:
        assert settings.opensearch_url is not None, "opened only where it is set"
        self._search_timeout_s = settings.opensearch_timeout_s
        self._breaker = breaker
        url = urlsplit(settings.opensearch_url.get_secret_value())
        self._signer = _signer(settings)
        secure = url.scheme == "https"
        self._client = AsyncOpenSearch(
            hosts=[
                {
                    "host": url.hostname,
                    "port": url.port or (443 if secure else 80),
                    "use_ssl": secure,
                    "url_prefix": url.path.strip("/"),
                }
            ],
            connection_class=AsyncHttpConnection,
            http_auth=self._signer,
            headers=_authorization(url),
            ssl_context=ssl.create_default_context() if secure else None,
            maxsize=_CONNECTIONS_MAX,
            max_retries=0,
            http_compress=False,
        )

    async def close(self) -> None:
        """End its connections."""
        await self._client.close()

    async def search(self, index: str, body: Json) -> list[Json]:
        """The hits of a query, within the time a search may take.

        Raises:
            CopyAway: It cannot answer, or not wholly.
        """
        self._breaker.admit()
        try:
            async with asyncio.timeout(self._search_timeout_s):
                found = await self._request("POST", f"/{index}/_search", body, self._search_timeout_s)
        except faults.CopyGone:
            self._breaker.succeeded()
            raise
        except TimeoutError as error:
            self._breaker.failed(slow=True)
            raise faults.too_slow() from error
        except faults.CopyAway as away:
            self._breaker.failed(slow=isinstance(away.__cause__, ConnectionTimeout))
            raise
        self._breaker.succeeded()
        hits: list[Json] = _whole(found)["hits"]["hits"]
        return hits

    async def look(self, index: str, body: Json) -> Json:
        """The whole answer of a query that nobody waits for.

        Raises:
            CopyAway: It cannot answer, or not wholly.
        """
        return _whole(await self._request("POST", f"/{index}/_search", body, SEND_TIMEOUT_S))

    async def bulk(self, index: str, lines: Sequence[bytes]) -> None:
        """Add and delete; what is to be deleted and is not there is no fault.

        Raises:
            CopyAway: Some of it was not done; which is not known.
        """
        answer = await self._request("POST", f"/{index}/_bulk", b"\n".join(lines) + b"\n", SEND_TIMEOUT_S)
        if not answer["errors"]:
            return
        for item in answer["items"]:
            ((action, done),) = item.items()
            if "error" in done and not (action == "delete" and done["status"] == faults.NOT_FOUND):
                log.warning("opensearch_refused_an_item", status=done["status"], kind=_kind(done["error"]))
                raise faults.refused(done["status"], _kind(done["error"]))

    async def mapping(self, index: str) -> Json:
        """The mapping of an index.

        Raises:
            CopyGone: There is none.
            CopyAway: It cannot answer.
        """
        answer = await self._request("GET", f"/{index}/_mapping", None, SEND_TIMEOUT_S)
        return answer[index]["mappings"] if index in answer else {}

    async def create(self, index: str, definition: Json) -> None:
        """Make an index; one that is there already is left as it is.

        Raises:
            CopyAway: It cannot be made.
        """
        try:
            await self._request("PUT", f"/{index}", definition, SEND_TIMEOUT_S)
        except faults.CopyAway as away:
            if _kind_of(away.__cause__) != "resource_already_exists_exception":
                raise

    async def delete(self, index: str) -> None:
        """Delete an index, if it is there.

        Raises:
            CopyAway: It cannot be deleted.
        """
        try:
            await self._request("DELETE", f"/{index}", None, SEND_TIMEOUT_S)
        except faults.CopyGone:
            return

    async def _request(self, method: str, path: str, body: Json | bytes, timeout_s: float) -> Json:
        if self._signer is not None:
            await self._signer.renew()
        data = body if body is None or isinstance(body, bytes) else orjson.dumps(body)
        headers = {"content-type": "application/x-ndjson" if path.endswith("_bulk") else "application/json"}
        try:
            with request(method, path):
                return await self._client.transport.perform_request(
                    method, path, body=data, headers=headers, timeout=timeout_s
                )
        except ConnectionTimeout as error:
            raise faults.too_slow() from error
        except NotConnected as error:
            raise faults.unreachable() from error
        except TransportError as error:
            if error.status_code != faults.NOT_FOUND:
                log.warning("opensearch_refused", status=error.status_code, kind=_kind_of(error))
            raise faults.refused(int(error.status_code), _kind_of(error)) from error
        except (OpenSearchException, OSError, ValueError) as error:
            raise faults.refused(0, "") from error


def _authorization(url: SplitResult) -> dict[str, str]:
    """The user of a URL as a header: opensearch-py would use what aiohttp is about to drop."""
    if not url.username:
        return {}
    userinfo = f"{unquote(url.username)}:{unquote(url.password or '')}"
    return {"authorization": f"Basic {b64encode(userinfo.encode()).decode()}"}


def _signer(settings: Settings) -> Signer | None:
    if settings.opensearch_service == "plain":
        return None
    from body_broker.lore.opensearch.signing import Signer  # noqa: PLC0415 - imports boto3

    assert settings.opensearch_region is not None, "checked where settings are loaded"
    return Signer(settings.opensearch_service, settings.opensearch_region)


def _whole(answer: Json) -> Json:
    """An answer of every shard; one that lacks some would look like an index that lacks passages."""
    shards = answer["_shards"]
    if answer["timed_out"] or shards["failed"] or shards["successful"] < shards["total"]:
        raise faults.CopyAway("OpenSearch answered without all of its shards.")
    return answer


def _kind(error: Json) -> str:
    return str(error.get("type", ""))[:100] if isinstance(error, Mapping) else ""  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType] - JSON


def _kind_of(error: BaseException | None) -> str:
    info: Json = error.info if isinstance(error, TransportError) else None
    return _kind(info.get("error")) if isinstance(info, Mapping) else ""  # pyright: ignore[reportUnknownMemberType] - JSON
