"""Owns requests to the issuer: bounded in time and size, redirects not followed, nothing of its answers repeated in an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import aiohttp
import orjson

from mcp_servers.hub.oidc.issuer import away

ANSWER_BYTES_MAX = 1024 * 1024
TIMEOUT_S = 5.0


class Wire:
    """One session with the issuer's hosts, begun with the first request.

    Args:
        timeout_s: How long one request may take.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def get(self, url: str) -> dict[str, Any]:
        """The JSON object at a URL.

        Raises:
            Unavailable: It did not come, or is no JSON object.
        """
        status, body = await self._ask("GET", url, None, {})
        if status != 200:  # noqa: PLR2004  # HTTP's OK
            raise away(f"The OIDC issuer answers HTTP {status}.")
        return body

    async def post(self, url: str, form: Mapping[str, str], headers: Mapping[str, str]) -> dict[str, Any]:
        """The JSON object that answers a form, an OAuth error among them.

        Raises:
            Unavailable: It did not come, or is no JSON object.
        """
        status, body = await self._ask("POST", url, form, headers)
        if status not in {200, 400, 401}:
            raise away(f"The OIDC issuer answers HTTP {status}.")
        return body if status == 200 else {"error": body.get("error")}  # noqa: PLR2004  # HTTP's OK

    async def close(self) -> None:
        """Close its connections."""
        if self._session is not None:
            await self._session.close()

    async def _ask(
        self, verb: str, url: str, form: Mapping[str, str] | None, headers: Mapping[str, str]
    ) -> tuple[int, dict[str, Any]]:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self._timeout_s), cookie_jar=aiohttp.DummyCookieJar()
            )
        asked = {"accept": "application/json", **headers}
        body = bytearray()
        try:
            async with self._session.request(verb, url, data=form, headers=asked, allow_redirects=False) as answer:
                async for piece in answer.content.iter_chunked(64 * 1024):
                    body += piece
                    if len(body) > ANSWER_BYTES_MAX:
                        raise away("The OIDC issuer's answer has no end.")
                status = answer.status
        except TimeoutError as error:
            raise away(f"The OIDC issuer did not answer within {self._timeout_s:g} s.") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise away("The OIDC issuer cannot be reached.") from error
        return status, _parsed(bytes(body), status)


def _parsed(body: bytes, status: int) -> dict[str, Any]:
    try:
        found: object = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise away(f"The OIDC issuer answers HTTP {status} without JSON.") from error
    if not isinstance(found, dict):
        raise away(f"The OIDC issuer answers HTTP {status} with no JSON object.")
    return cast("dict[str, Any]", found)
