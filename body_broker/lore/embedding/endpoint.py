"""Owns asking an OpenAI-compatible embeddings API: POST {base}/embeddings. What goes wrong is told in our words, never in its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import aiohttp
import orjson

from body_broker.lore.embedding.parts import parts_of
from body_broker.lore.embedding.words import BadVectors, ModelAway, Numbers, Text

ROOMS_CHARACTERS = (2_400, 800, 250)
"""How long a text it is given may be: a whole passage; shorter ones where it finds that too long."""
ANSWER_BYTES_MAX = 64 * 1024 * 1024
_TOO_LONG = frozenset({400, 413, 422})
_NOT_NOW = frozenset({429, 503})
_PAUSE_S, _PAUSE_MAX_S = 1.0, 10.0
_CHECK = "Check BODY_BROKER_EMBEDDINGS, its model and its key, and that it answers."


class _TooLong(BadVectors):
    """Refused as it is; shorter texts may be taken."""


class Endpoint:
    """The maker over one API.

    Args:
        url: Its base URL.
        model: As it calls the model.
        key: Sent with each request to this URL; no redirect is followed.
        timeout_s: How long one request may take.
        pause_max_s: How long it may ask to be left alone before the one retry.
    """

    at_once = 32

    def __init__(
        self, url: str, model: str, *, key: str | None, timeout_s: float, pause_max_s: float = _PAUSE_MAX_S
    ) -> None:
        self._url, self._model, self._key = f"{url}/embeddings", model, key
        self._timeout_s, self._pause_max_s = timeout_s, pause_max_s
        self._session: aiohttp.ClientSession | None = None

    async def query(self, text: str) -> Sequence[Numbers]:
        """One vector; nobody who searches is made to wait for a retry."""
        for room in ROOMS_CHARACTERS:
            try:
                return await self._post([text[:room]], tries=1)
            except _TooLong:
                if room == ROOMS_CHARACTERS[-1]:
                    raise
        raise AssertionError("the last room returns or raises")

    async def passages(self, texts: Sequence[Text]) -> list[Sequence[Numbers]]:
        """The vectors of each passage; of shorter parts where it finds them too long. No request holds more than `at_once` texts."""
        for room in ROOMS_CHARACTERS:
            parts = [parts_of(text, _characters, room) for text in texts]
            flat = [part for several in parts for part in several]
            try:
                vectors = iter(
                    [
                        vector
                        for start in range(0, len(flat), self.at_once)
                        for vector in await self._post(flat[start : start + self.at_once], tries=2)
                    ]
                )
            except _TooLong:
                if room == ROOMS_CHARACTERS[-1]:
                    raise
            else:
                return [[next(vectors) for _ in several] for several in parts]
        raise AssertionError("the last room returns or raises")

    async def close(self) -> None:
        """Close its connections."""
        if self._session is not None:
            await self._session.close()

    async def _post(self, texts: Sequence[str], *, tries: int) -> Sequence[Numbers]:
        """A vector of each text, in order."""
        status, pause_s, body = await self._ask(texts)
        if status in _NOT_NOW and tries > 1:
            await asyncio.sleep(min(pause_s, self._pause_max_s))
            status, pause_s, body = await self._ask(texts)
        if status in _NOT_NOW:
            raise ModelAway(
                f"The embeddings API has no room for more now (HTTP {status}).", retry_after_s=min(pause_s, 300.0)
            )
        if status in _TOO_LONG:
            raise _TooLong(f"The embeddings API refuses the texts (HTTP {status}).", next_step=_CHECK)
        if status != 200:  # noqa: PLR2004  # HTTP's OK
            what = "redirects, which is not followed" if 300 <= status < 400 else "fails"  # noqa: PLR2004  # HTTP's
            raise ModelAway(f"The embeddings API {what} (HTTP {status}).", next_step=_CHECK)
        return _vectors(await asyncio.to_thread(_parsed, body), len(texts))

    async def _ask(self, texts: Sequence[str]) -> tuple[int, float, bytes]:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._timeout_s))
        headers = {"content-type": "application/json"}
        if self._key is not None:
            headers["authorization"] = f"Bearer {self._key}"
        asked = orjson.dumps({"model": self._model, "input": list(texts), "encoding_format": "float"})
        try:
            async with self._session.post(self._url, data=asked, headers=headers, allow_redirects=False) as answer:
                body = bytearray()
                async for piece in answer.content.iter_chunked(64 * 1024):
                    body += piece
                    if len(body) > ANSWER_BYTES_MAX:
                        raise BadVectors("The embeddings API's answer has no end.", next_step=_CHECK)
                return answer.status, _pause_s(answer.headers.get("retry-after")), bytes(body)
        except TimeoutError as error:
            raise ModelAway(
                f"The embeddings API did not answer within {self._timeout_s:g} s.",
                next_step="See that it is up, or raise BODY_BROKER_EMBEDDINGS_TIMEOUT_S.",
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ModelAway("The embeddings API cannot be reached.", next_step=_CHECK) from error


def _characters(texts: Sequence[str]) -> list[int]:
    return [len(text) for text in texts]


def _pause_s(said: str | None) -> float:
    """Seconds it asks for; a second where it names none, or a date."""
    with contextlib.suppress(TypeError, ValueError):
        return max(0.0, float(said or ""))
    return _PAUSE_S


def _parsed(body: bytes) -> Any:  # whatever it answered
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadVectors(
            "The embeddings API's answer is no JSON: this is no embeddings API.", next_step=_CHECK
        ) from error


def _vectors(answer: Any, count: int) -> Sequence[Numbers]:  # whatever it answered
    try:
        by_place = {entry["index"]: list[float](entry["embedding"]) for entry in answer["data"]}
    except (TypeError, KeyError, ValueError) as error:
        raise BadVectors("The embeddings API's answer holds no list of embeddings.", next_step=_CHECK) from error
    if len(answer["data"]) != count or set(by_place) != set(range(count)):
        raise BadVectors(
            f"The embeddings API gave {len(answer['data'])} vectors for {count} texts, or for other texts."
        )
    return [by_place[place] for place in range(count)]
