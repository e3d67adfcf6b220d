from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from body_broker.lore.embedding.child import ROOM_PIECES
from body_broker.lore.embedding.minilm import PIECES_MAX
from body_broker.lore.embedding.parts import parts_of
from body_broker.lore.embedding.weights import Weights
from body_broker.lore.embedding.words import ModelAway, Text
from tests.components import PROJECT
from tests.counterparts.embeddings_api import minilm

pytestmark = pytest.mark.requires("weights")

# The first components as ../shared/prototypes/storage/npbert.py gives them, which is equal to torch to 1.7e-7.
REFERENCE = {
    "The ferryman takes no coin from the drowned.": "0.061637 0.133336 -0.001833 -0.015444 0.008473 -0.080894 -0.003541 -0.070589",
    "A man is eating food.": "0.033242 0.004406 -0.006277 0.048379 -0.138702 -0.033617 0.101128 -0.054385",
    "The girl is carrying a baby.": "-0.036309 -0.035654 -0.027223 0.03832 0.070778 -0.016579 0.061681 0.054438",
    "That is a very happy person": "-0.002483 0.091517 0.048386 -0.057212 -0.066388 -0.036143 0.108256 0.001932",
}
WORDS = [
    "grave",
    "ash",
    "candle",
    "bone",
    "whisper",
    "corridor",
    "surgeon",
    "ledger",
    "moth",
    "salt",
    "chapel",
    "lantern",
    "rat",
    "teeth",
    "cellar",
    "rain",
    "velvet",
]


def sentence(chance: random.Random, words: int) -> str:
    return " ".join(chance.choices(WORDS, k=words))


def test_vectors_are_those_of_the_reference() -> None:
    found = minilm().encode(list(REFERENCE))[:, :8]

    expected = np.array([[float(number) for number in line.split()] for line in REFERENCE.values()])
    assert np.abs(found - expected).max() < 1e-5


def test_similarities_are_the_published_ones() -> None:
    # The model's page: one sentence against three; and the first example of sentence-transformers' documentation.
    one, *three = minilm().encode(
        ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
    )
    weather = minilm().encode(["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."])

    assert [float(one @ other) for other in three] == pytest.approx([0.695, 0.943, 0.257], abs=5e-4)
    assert (weather @ weather.T)[np.triu_indices(3, 1)] == pytest.approx([0.6660, 0.1046, 0.1411], abs=5e-5)


def test_neither_batching_nor_padding_nor_order_changes_a_vector() -> None:
    chance = random.Random(4)  # noqa: S311  # repeatable, nothing secret
    texts = ["", *(sentence(chance, chance.randint(1, 320)) for _ in range(24)), "Ünïcödé 船", "船" * 300]

    together = minilm().encode(texts)
    alone = np.vstack([minilm().encode([text]) for text in texts])

    assert np.abs(together - alone).max() < 1e-5
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(len(texts)), abs=1e-5)


def test_nothing_is_read_beyond_what_the_model_was_trained_on() -> None:
    chance = random.Random(4)  # noqa: S311  # repeatable, nothing secret
    long = sentence(chance, 400)
    assert minilm().pieces([long])[0] > PIECES_MAX

    one, other = minilm().encode([f"{long} and a dragon", f"{long} and a whale"])

    assert np.abs(one - other).max() < 1e-6


def test_a_part_of_a_passage_is_read_whole() -> None:
    chance = random.Random(11)  # noqa: S311  # repeatable, nothing secret
    sentences = " ".join(f"{sentence(chance, chance.randint(3, 40)).capitalize()}." for _ in range(60))
    for content in (sentences, "船が港に入る。" * 200, "x1y2 " * 350, sentence(chance, 300)):
        parts = parts_of(Text("The Tallyman", "Chapter 1", content), minilm().pieces, ROOM_PIECES)

        assert len(parts) > 1
        assert max(minilm().pieces(parts)) <= PIECES_MAX - 2


def test_other_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")

    with pytest.raises(ModelAway, match="are not those of all-MiniLM-L6-v2"):
        Weights(tmp_path / "model.safetensors")


def test_weights_are_not_copied() -> None:
    weights = minilm()._weights  # pyright: ignore[reportPrivateUsage]  # it is what this is about

    assert not weights["embeddings.word_embeddings.weight"].flags.owndata
    assert not weights["encoder.layer.0.output.dense.weight"].flags.writeable


def test_opening_the_vectors_loads_neither_numpy_nor_the_model() -> None:
    ask = (
        "import asyncio, sys; from pathlib import Path; from body_broker.settings import Settings;"
        "from body_broker.lore.embedding import Embedding; from body_broker.lore.embedding.making import Makers;"
        "from body_broker.lore.embedding.local import find_weights;"
        "makers = Makers(Settings(), find_weights()); assert makers.wanted; Embedding(None, makers, ());"
        "print(*sys.modules)"
    )

    said = subprocess.run([sys.executable, "-c", ask], cwd=PROJECT, capture_output=True, text=True, check=True)

    assert set(said.stdout.split()) & {"numpy", "tokenizers", "aiohttp"} == set()
