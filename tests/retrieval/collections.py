"""Owns the two collections that retrieval is measured on: Cranfield, and thirty questions of ours to two novels."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

NOVELS_FILES = ("frankenstein.txt", "dracula.txt")


@dataclass(frozen=True)
class Question:
    """A question, the characters of its novel that answer it, and whether it shares a stemmed word with them."""

    id: str
    novel: str
    question: str
    start: int
    end: int
    shares_word: bool

    def answered_by(self, start: int, end: int) -> bool:
        """Whether a passage holds at least half of the characters that answer it."""
        return min(end, self.end) - max(start, self.start) >= (self.end - self.start) / 2


def questions() -> list[Question]:
    """Written and committed before any retrieval was tuned."""
    return [Question(**found) for found in json.loads(Path(__file__).with_name("questions.json").read_text("utf-8"))]


@dataclass(frozen=True)
class Cranfield:
    """Abstracts by number as (title, text), queries by number, and the numbers relevant to each query (binary: code > 0)."""

    documents: dict[int, tuple[str, str]]
    queries: dict[int, str]
    relevant: dict[int, set[int]]


def cranfield(folder: Path) -> Cranfield:
    """The collection as the Glasgow IR group published it; two of its 1,400 documents are empty and left out."""
    documents: dict[int, tuple[str, str]] = {}
    parts = re.split(r"^\.I \d+\n", (folder / "cran.all.1400").read_text("utf-8"), flags=re.MULTILINE)[1:]
    for number, part in enumerate(parts, 1):
        head, _, body = part.partition("\n.W\n")
        title = head.removeprefix(".T\n").partition("\n.A\n")[0]
        if body.strip():
            documents[number] = (" ".join(title.split()), body.strip())
    asked = re.split(r"^\.I \d+\n", (folder / "cran.qry").read_text("utf-8"), flags=re.MULTILINE)[1:]
    # Judgements count queries in the order of the file, not by their .I.
    queries = {number: part.partition(".W\n")[2].strip() for number, part in enumerate(asked, 1)}
    relevant: dict[int, set[int]] = {}
    for line in (folder / "cranqrel").read_text("utf-8").splitlines():
        query, document, code = map(int, line.split()[:3])
        if code > 0:
            relevant.setdefault(query, set()).add(document)
    return Cranfield(documents, queries, relevant)
