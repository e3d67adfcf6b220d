"""Owns all-MiniLM-L6-v2 in numpy: word pieces, the encoder's six layers, the mean over a text's pieces. Blocks; imported on first use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from body_broker.lore.embedding.weights import Array, Weights

PIECES_MAX = 256
"""What the model was trained to read; the rest of a longer text is not looked at."""
DIMENSIONS = 384
_LAYERS, _HEADS = 6, 12
_AT_ONCE_PIECES = 1_024
"""Pieces that go through the layers together: enough for BLAS, and few enough for the caches."""
_ROWS = 64
_EPSILON = np.float32(1e-12)
_FAR = np.float32(-1e9)

Norm = tuple[Array, Array]
Dense = tuple[Array, Array]


class MiniLM:
    """The model over its files; safe to use from several threads.

    Args:
        folder: With model.safetensors and tokenizer.json.
        threads: How many batches of one `encode` are made at a time.

    Raises:
        ModelAway: The weights are not those we know.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self._threads = threads
        self._weights = Weights(folder / "model.safetensors")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._words = self._weights["embeddings.word_embeddings.weight"]
        self._places = self._weights["embeddings.position_embeddings.weight"]
        self._kind = self._weights["embeddings.token_type_embeddings.weight"][0]
        self._norm = self._pair("embeddings.LayerNorm")
        self._layers = [_Layer(self, f"encoder.layer.{number}.") for number in range(_LAYERS)]

    def pieces(self, texts: Sequence[str]) -> list[int]:
        """How many word pieces each text has."""
        return [len(found.ids) for found in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode(self, texts: Sequence[str]) -> Array:
        """A normalised vector of each text, in their order; batching changes none of them."""
        ids = [_within(found.ids) for found in self._tokenizer.encode_batch_fast(list(texts))]
        vectors = np.empty((len(ids), DIMENSIONS), np.float32)

        def make(batch: Sequence[int]) -> None:
            vectors[batch] = self._forward([ids[at] for at in batch])

        batches = _batches([len(found) for found in ids])
        if self._threads == 1:
            for batch in batches:
                make(batch)
            return vectors
        # Whole batches side by side, each on one core: BLAS's own threads wait for each other, and stand still where something
        # else has one of the cores (two loaded cores, 25 s: 0 passages; with one thread 144; so 192).
        with ThreadPoolExecutor(self._threads) as pool:
            for _ in pool.map(make, batches):
                pass
        return vectors

    def _pair(self, name: str) -> tuple[Array, Array]:
        return self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]

    def _forward(self, batch: Sequence[Sequence[int]]) -> Array:
        length = max(map(len, batch))
        padded = np.zeros((len(batch), length), np.int64)
        there = np.zeros((len(batch), length), np.float32)
        for row, ids in enumerate(batch):
            padded[row, : len(ids)] = ids
            there[row, : len(ids)] = 1
        x = _normalised(self._words[padded] + (self._places[:length] + self._kind), self._norm)
        away = ((1 - there) * _FAR)[:, None, None, :]
        for layer in self._layers:
            x = layer(x, away)
        mean = np.einsum("bsd,bs->bd", x, there) / there.sum(1, keepdims=True)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)


class _Layer:
    """One encoder layer: attention, then two dense layers, each added to what came in and normalised."""

    def __init__(self, model: MiniLM, prefix: str) -> None:
        pair = model._pair  # noqa: SLF001  # part of it  # pyright: ignore[reportPrivateUsage]
        self._query, self._key, self._value = (pair(f"{prefix}attention.self.{n}") for n in ("query", "key", "value"))
        self._out, self._out_norm = pair(f"{prefix}attention.output.dense"), pair(f"{prefix}attention.output.LayerNorm")
        self._wide, self._back = pair(f"{prefix}intermediate.dense"), pair(f"{prefix}output.dense")
        self._norm = pair(f"{prefix}output.LayerNorm")

    def __call__(self, x: Array, away: Array) -> Array:
        batch, length, width = x.shape
        flat = x.reshape(-1, width)

        def heads(dense: Dense) -> Array:
            return _dense(flat, dense).reshape(batch, length, _HEADS, -1).transpose(0, 2, 1, 3)

        query, key, value = heads(self._query), heads(self._key), heads(self._value)
        weights = query @ key.swapaxes(-1, -2)
        weights *= np.float32(query.shape[-1] ** -0.5)
        weights += away
        weights -= weights.max(-1, keepdims=True)
        np.exp(weights, out=weights)
        weights /= weights.sum(-1, keepdims=True)
        attended = (weights @ value).transpose(0, 2, 1, 3).reshape(-1, width)
        flat = _normalised(flat + _dense(attended, self._out), self._out_norm)
        wide = _dense(flat, self._wide)
        for start in range(0, len(wide), _ROWS):  # in pieces that stay in the cache
            _gelu(wide[start : start + _ROWS])
        return _normalised(flat + _dense(wide, self._back), self._norm).reshape(batch, length, width)


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Which texts go together: those of like length, the longest first."""
    order = sorted(range(len(lengths)), key=lambda at: lengths[at])
    while order:
        size = max(1, _AT_ONCE_PIECES // lengths[order[-1]])
        yield order[-size:]
        del order[-size:]


def _within(ids: Sequence[int]) -> Sequence[int]:
    """The first pieces, and the mark that ends every text."""
    return ids if len(ids) <= PIECES_MAX else [*ids[: PIECES_MAX - 1], ids[-1]]


def _dense(x: Array, dense: Dense) -> Array:
    y = x @ dense[0].T  # BLAS reads the view as it lies in the file
    y += dense[1]
    return y


def _normalised(x: Array, norm: Norm) -> Array:
    x = x - x.mean(-1, keepdims=True)
    spread = np.einsum("...i,...i->...", x, x)[..., None] / np.float32(x.shape[-1])
    x /= np.sqrt(spread + _EPSILON)
    x *= norm[0]
    x += norm[1]
    return x


def _gelu(x: Array) -> None:
    """In place: x times the normal distribution's Φ(x), by Abramowitz and Stegun 7.1.26 (off by 1.5e-7 at most)."""
    z = np.abs(x)
    z *= np.float32(0.7071067811865476)
    t = 1 / (1 + np.float32(0.3275911) * z)
    series = np.float32(1.061405429) * t
    for term in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series += np.float32(term)
        series *= t
    z *= z
    np.negative(z, out=z)
    np.exp(z, out=z)
    series *= z
    x *= np.float32(0.5) * (1 + np.sign(x) * (1 - series))
