"""Owns the words of lore: indices, passages with their citations, documents, and what an import is given and answers."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from body_broker.calls import Json
from body_broker.errors import BadInput

SHARED = "shared"
_PERSONA_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")

Source = Literal["canon", "outside"]
Missing = Literal["vectors", "vectors_incomplete", "copy", "copy_behind"]
"""Parts of a search that were not available: no query vector, passages without one yet, the index that holds copies, its latest."""
Format = Literal["text", "markdown"]

DOCUMENT_BYTES_MAX = 8 * 1024 * 1024
"""UTF-8 bytes of one document."""
IMPORT_BYTES_MAX = 64 * 1024 * 1024
"""UTF-8 bytes of all documents of one import."""
IMPORT_DOCUMENTS_MAX = 20_000
KNOWLEDGE_BYTES_MAX = 4 * 1024
SPOILER_LEVEL_MAX = 100
TITLE_CHARACTERS_MAX = 200
QUERY_CHARACTERS_MAX = 2_000


def persona_index(persona: str) -> str:
    """The name of a persona's own index.

    Raises:
        BadInput: The name is not one a persona may have.
    """
    name = persona.strip().lower()
    if name == SHARED or not _PERSONA_NAME.fullmatch(name):
        raise BadInput(
            "A persona's name is 1 to 64 of a-z, 0-9, - and _, starts with a letter or digit, and is not 'shared'."
        )
    return f"persona:{name}"


def shown(index: str) -> str:
    """An index as agents see it: lore-shared, lore-osric."""
    return f"lore-{index.removeprefix('persona:')}"


def index_named(text: str) -> str:
    """The index that somebody means: shared, persona:osric, or as shown, lore-shared and lore-osric.

    Raises:
        BadInput: No index can have that name.
    """
    name = text.strip().removeprefix("lore-")
    return SHARED if name == SHARED else persona_index(name.removeprefix("persona:"))


def document_uri(document_id: str) -> str:
    """The resource of a document."""
    return f"lore://doc/{document_id}"


class _Told(BaseModel):
    """What agents are told: closed and frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Citation(_Told):
    """Where a text stands: characters start to end of the document, end excluded, and its chapter or section."""

    doc_id: str
    title: str
    heading: str
    start: int
    end: int
    source: Source

    def label(self) -> str:
        """One line for people: title, chapter, where."""
        where = " › ".join(part for part in (self.title, self.heading) if part)
        mark = "" if self.source == "canon" else ", outside"
        return f"{where} [{self.doc_id} {self.start}-{self.end}{mark}]"


class Passage(Citation):
    """A text and its citation; content is exactly the document's characters start to end. Scores compare within one answer."""

    content: str
    score: float


@dataclass(frozen=True, slots=True)
class Page:
    """Passages from the best on.

    Attributes:
        passages: The best first.
        after: State for the next page; None at the end.
        unavailable: Parts of the search that could not run.
        reason: Why there is nothing, where that needs saying.
    """

    passages: list[Passage]
    after: Json = None
    unavailable: list[Missing] = field(default_factory=list[Missing])
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """Texts that fit a budget together, none of them twice.

    Attributes:
        passages: The best first.
        tokens: Their size as estimated.
        unavailable: Parts of the search that could not run.
        reason: Why there is nothing, where that needs saying.
    """

    passages: list[Passage]
    tokens: int
    unavailable: list[Missing]
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class DocumentPart:
    """Part of a document, and what the whole is."""

    doc_id: str
    index: str
    title: str
    source: Source
    rev: int
    characters: int
    start: int
    content: str

    @property
    def end(self) -> int:
        """Where the part ends, excluded."""
        return self.start + len(self.content)


class IndexSummary(_Told):
    """An index and how much is in it."""

    name: str
    documents: int
    passages: int
    outside: int = Field(description="How many of its documents are not canon.")


@dataclass(frozen=True, slots=True)
class Draft:
    """A document as somebody brings it, cleaned and within limits; made by `intake` only.

    Attributes:
        origin: What a later import of the same document is known by: a file's name, a tool's title.
        title: One line.
        body: The text as it is stored; every offset counts its characters.
        form: How headings are marked.
        knowledge: Its metadata: `spoiler_level` and `known_by` say whom it may be told, everything else can be searched by.
    """

    origin: str
    title: str
    body: str
    form: Format
    knowledge: dict[str, Json] = field(default_factory=dict[str, Json])


class Taken(_Told):
    """What became of one document brought."""

    doc_id: str
    title: str
    status: Literal["accepted", "unchanged"]


@dataclass(frozen=True, slots=True)
class Intake:
    """What became of an import's documents; there is no job where nothing changed."""

    job_id: str | None
    documents: list[Taken]


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did: documents written, left as they were, and passages that can be found now."""

    job_id: str | None
    documents: int
    unchanged: int
    passages: int
