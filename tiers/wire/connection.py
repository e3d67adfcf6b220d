"""Owns the connections to one engine: its address, its headers, and bodies that have an end."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

import aiohttp

from body_broker.tracing import carry
from tiers.catalogue import EngineSpec
from tiers.deadline import Deadline
from tiers.faults import EngineFault
from tiers.wire.base import Dialect, Prepared

OK = 200
_BODY_BYTES_MAX = 4 * 1024 * 1024
_TOKEN_BYTES = 1_024
"""More than a frame of any dialect has around one token."""
_FAULT_BYTES_MAX = 64 * 1024
_BODY_AT_ONCE = 512 * 1024
_KEEP_ALIVE_S: Mapping[str, float] = {"vllm": 4.0, "trtllm": 4.0}
"""Less than the five seconds after which their server closes an idle connection: nobody's request meets a closed one."""
_KEEP_ALIVE_CLOUD_S = 30.0
_REFUSAL_S = 0.5


class Connection:
    """HTTP to one engine, in its dialect.

    Args:
        spec: Its URL is set; what its dialect's paths begin with may stand at the end of it or not.
        dialect: How it is spoken to.
    """

    def __init__(self, spec: EngineSpec, dialect: Dialect) -> None:
        assert spec.url is not None, "an engine without an address is not made"
        self._spec, self._dialect = spec, dialect
        self._url = _base(spec.url, dialect.models_path)
        self._headers = {
            "content-type": "application/json",
            "accept-encoding": "identity",  # whatever packs a stream holds its tokens back
            **dialect.authorised(spec.key),
        }
        self._session: aiohttp.ClientSession | None = None

    def asked(self, prepared: Prepared) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """The answer to a request, whatever its status; no redirect is followed. Leaving early closes the connection at once."""
        headers = dict(self._headers)
        carry(headers)
        body = prepared.body if len(prepared.body) < _BODY_AT_ONCE else io.BytesIO(prepared.body)  # written in parts
        return self._opened().post(self._url + prepared.path, data=body, headers=headers, allow_redirects=False)

    async def get(self, path: str, deadline: Deadline) -> tuple[int, bytes]:
        """Status and body.

        Raises:
            EngineFault: It is not there, or says nothing in time.
        """
        try:
            async with (
                deadline.scope(),
                self._opened().get(self._url + path, headers=self._headers, allow_redirects=False) as response,
            ):
                return response.status, await bounded(response, _BODY_BYTES_MAX)
        except TimeoutError as error:
            raise EngineFault("silent") from error
        except aiohttp.ClientConnectorError as error:
            raise not_connected(error) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise EngineFault("reset") from error

    async def refusal(self, response: aiohttp.ClientResponse, deadline: Deadline) -> EngineFault:
        """What a status other than 200 means; of its words as much as comes at once."""
        body = bytearray()
        with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError):
            async with deadline.within(_REFUSAL_S).scope():
                async for piece in response.content.iter_any():
                    body += piece
                    if len(body) > _FAULT_BYTES_MAX:
                        break
        headers = {name.lower(): value for name, value in response.headers.items()}
        return self._dialect.fault(response.status, headers, bytes(body))

    async def close(self) -> None:
        """Close all."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            keep_s = _KEEP_ALIVE_S.get(self._spec.dialect, _KEEP_ALIVE_CLOUD_S)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=keep_s),
                timeout=aiohttp.ClientTimeout(total=None),
                cookie_jar=aiohttp.DummyCookieJar(),  # no request knows of another
            )
        return self._session


def not_connected(error: aiohttp.ClientConnectorError) -> EngineFault:
    """Whether somebody was there to say no, or nobody could be reached."""
    return EngineFault("refused" if isinstance(error.os_error, ConnectionRefusedError) else "unreachable")


def answer_bytes_max(max_tokens: int) -> int:
    """More than an answer of so many tokens has on the wire: whoever sends more does not come to an end."""
    return _BODY_BYTES_MAX + max_tokens * _TOKEN_BYTES


async def bounded(response: aiohttp.ClientResponse, bytes_max: int) -> bytes:
    """A body.

    Raises:
        EngineFault: `malformed`, where it has no end.
    """
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > bytes_max:
            raise EngineFault("malformed")
    return bytes(body)


def _base(url: str, models_path: str) -> str:
    """The address without what the paths begin with, however much of it was given: /v1, and /openai before it for Azure."""
    prefix = models_path.removesuffix("/models")
    found = url.rstrip("/").removesuffix(prefix)
    return found.removesuffix(prefix.removesuffix("/v1")).rstrip("/")
