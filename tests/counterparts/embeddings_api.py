"""Owns a server that speaks the OpenAI embeddings API with the vectors of MiniLM, and misbehaves where a test tells it to."""

from __future__ import annotations

import asyncio
import functools
import os
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from body_broker.lore.embedding.local import find_weights
from tests.components import need

os.putenv("OPENBLAS_NUM_THREADS", "1")  # as the hub loads it, whatever else is run on this machine

from body_broker.lore.embedding.minilm import MiniLM  # after the line above

Misbehave = Callable[[list[str]], Awaitable[web.StreamResponse | None]]


@functools.cache
def minilm() -> MiniLM:
    """The model, loaded once in this process."""
    need("weights")
    folder = find_weights()
    assert folder is not None
    return MiniLM(folder)


@dataclass
class EmbeddingsApi:
    """A server, and what it saw.

    Attributes:
        url: Its base URL.
        model: The only one it serves.
        key: What it asks for, if anything.
        asked: The texts of each request.
        keys: The authorization of each request.
        misbehave: Answers in its place, or None to let it.
        sense: Whether the vectors are MiniLM's; else they are drawn by chance from the text, which costs nothing.
    """

    model: str = "minilm"
    key: str | None = None
    url: str = ""
    asked: list[list[str]] = field(default_factory=list[list[str]])
    keys: list[str | None] = field(default_factory=list[str | None])
    misbehave: Misbehave | None = None
    sense: bool = True

    @property
    def texts(self) -> list[str]:
        """Every text that was asked for."""
        return [text for texts in self.asked for text in texts]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        texts: list[str] = body["input"]
        self.asked.append(texts)
        self.keys.append(request.headers.get("authorization"))
        if self.misbehave is not None and (instead := await self.misbehave(texts)) is not None:
            return instead
        if self.key is not None and self.keys[-1] != f"Bearer {self.key}":
            return web.json_response({"error": {"message": "no such key"}}, status=401)
        if body["model"] != self.model or body["encoding_format"] != "float":
            return web.json_response({"error": {"message": "no such model"}}, status=404)
        return answer_with(await self.vectors(texts))

    async def vectors(self, texts: list[str]) -> list[list[float]]:
        if self.sense:
            return await asyncio.to_thread(_encode, texts)
        draws = [random.Random(f"{self.model} {text}") for text in texts]  # noqa: S311  # repeatable, nothing secret
        return [[draw.gauss() for _ in range(384)] for draw in draws]


def _encode(texts: list[str]) -> list[list[float]]:
    return minilm().encode(texts).tolist()


def answer_with(vectors: list[list[float]]) -> web.Response:
    """An answer with these vectors, the last one first: their places are what counts."""
    data: list[dict[str, Any]] = [
        {"object": "embedding", "index": place, "embedding": vector} for place, vector in enumerate(vectors)
    ]
    return web.json_response({"object": "list", "data": data[::-1], "model": "minilm", "usage": {}})


@asynccontextmanager
async def embeddings_api(**more: Any) -> AsyncGenerator[EmbeddingsApi]:  # fields of EmbeddingsApi
    """A server on a free port."""
    api = EmbeddingsApi(**more)
    app = web.Application()
    app.router.add_post("/v1/embeddings", api.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    api.url = f"http://{host}:{port}/v1"
    try:
        yield api
    finally:
        await runner.cleanup()
