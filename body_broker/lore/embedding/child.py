"""Owns the process that makes vectors in bulk, beside the hub: texts in and vectors out over pipes. Ends with its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import BinaryIO

import orjson

from body_broker.lore.embedding.minilm import PIECES_MAX, MiniLM
from body_broker.lore.embedding.parts import parts_of
from body_broker.lore.embedding.words import ModelAway, Text

ROOM_PIECES = PIECES_MAX - 6
"""Without the two marks around every text, and what counting sentence by sentence may be off by."""
_NICE = 19
_THREADS_MAX = 4
"""As many batches as the passages that come together make."""
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Answer until stdin ends; the arguments are the model's folder and the parent's process id."""
    folder, parent = Path(sys.argv[1]), int(sys.argv[2])
    threads = min(os.cpu_count() or 1, _THREADS_MAX)
    _die_with(parent)
    # A terminal's Ctrl-C is for the parent. No session of its own: the kernel would weigh it as much as the hub's, nice or not.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_NICE)
    asked, answers = sys.stdin.buffer, sys.stdout.buffer
    try:
        model = MiniLM(folder, threads)
    except ModelAway as error:
        _send(answers, orjson.dumps({"refused": error.message, "next_step": error.next_step}))
        return
    while (request := _read(asked)) is not None:
        texts = [Text(*text) for text in orjson.loads(request)]
        parts = [parts_of(text, model.pieces, ROOM_PIECES) for text in texts]
        vectors = model.encode([part for several in parts for part in several])
        _send(answers, orjson.dumps({"parts": [len(several) for several in parts]}))
        _send(answers, vectors.tobytes())


def _die_with(parent: int) -> None:
    # Linux only; elsewhere the end of stdin is what it hears, after the batch it is in.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os.kill(os.getpid(), signal.SIGKILL)


def _read(pipe: BinaryIO) -> bytes | None:
    size = pipe.read(4)
    return pipe.read(int.from_bytes(size, "big")) if size else None


def _send(pipe: BinaryIO, body: bytes) -> None:
    pipe.write(len(body).to_bytes(4, "big") + body)
    pipe.flush()
