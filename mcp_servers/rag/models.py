"""Owns the shapes of the rag server's tools: what each takes and answers, and how an answer reads as text."""

from __future__ import annotations

from typing import Annotated

import orjson
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from body_broker.calls import Arguments, Json, Result
from body_broker.lore.index import EVERYTHING, Filter
from body_broker.lore.model import Citation, Format, IndexSummary, Missing, Passage, Source, Taken

Words = Annotated[str, Field(min_length=1, max_length=2_000)]
Persona = Annotated[
    str | None,
    Field(max_length=64, description="Whose own lore; else the shared."),
]
Cursor = Annotated[str | None, Field(max_length=1_024)]
DocumentId = Annotated[str, Field(min_length=1, max_length=80)]
_SAID: dict[Missing, str] = {
    "vectors": "found by words alone, search by meaning is unavailable",
    "vectors_incomplete": "some passages cannot be found by meaning yet",
    "copy": "the search index is away, the database answered",
    "copy_behind": "the search index lacks the latest changes",
}


def said(unavailable: list[Missing]) -> list[str]:
    """What was not available, in words; nothing where everything was."""
    return [f"({'; '.join(_SAID[part] for part in unavailable).capitalize()}.)"] if unavailable else []


class Filters(BaseModel):
    """Which documents may be found."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    source: Source | None = None
    document: Annotated[str | None, Field(max_length=80)] = None
    spoiler_max: Annotated[int | None, Field(ge=0, le=100)] = None
    known_to: Annotated[str | None, Field(max_length=80)] = None
    fields: Annotated[
        dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=200)] | int | float | bool] | None,
        Field(max_length=8, description="Values of the documents' metadata."),
        WithJsonSchema({"type": "object"}),
    ] = None

    def filter(self) -> Filter:
        """As the lore takes it."""
        return Filter(
            source=self.source,
            documents=() if self.document is None else (self.document,),
            spoiler_max=self.spoiler_max,
            known_to=self.known_to,
            fields=self.fields or {},
        )


Where = Annotated[Filters | None, Field(description="Narrow it to some documents.")]


def filter_of(filters: Filters | None) -> Filter:
    """The filter somebody gave, or everything."""
    return filters.filter() if filters else EVERYTHING


class SearchLore(Arguments):
    """A question to the lore."""

    query: Words
    persona: Persona = None
    k: Annotated[int, Field(ge=1, le=50)] = 8
    filters: Where = None
    cursor: Cursor = None


class VectorSearch(SearchLore):
    """A question to the lore, by meaning alone."""


class LorePage(Result):
    """Passages that answer a query, the best first."""

    items: list[Passage]
    next_cursor: str | None = None
    unavailable: list[Missing] = Field(default_factory=list[Missing])
    reason: str | None = None

    def outside(self) -> bool:
        """Whether a passage is not canon."""
        return any(item.source == "outside" for item in self.items)

    def text(self) -> str:
        """Each passage under its citation."""
        parts = [f"{n}. {item.label()}\n{item.content}" for n, item in enumerate(self.items, 1)]
        more = ["More with next_cursor."] if self.next_cursor else []
        reason = [self.reason] if self.reason else []
        return "\n\n".join([*parts, *more, *reason, *said(self.unavailable)])


class RetrieveContext(Arguments):
    """A topic to write or decide about."""

    topic: Words
    limit: Annotated[int, Field(ge=1, le=20)] = 5
    token_budget: Annotated[int, Field(ge=100, le=20_000, description="Tokens of all passages together.")] = 2_000
    persona: Persona = None
    filters: Where = None


class ContextPassages(Result):
    """Passages that fit the budget together; citations[n] belongs to passages[n]."""

    passages: list[str]
    citations: list[Citation]
    tokens: int
    unavailable: list[Missing] = Field(default_factory=list[Missing])
    reason: str | None = None

    def outside(self) -> bool:
        """Whether a passage is not canon."""
        return any(citation.source == "outside" for citation in self.citations)

    def text(self) -> str:
        """Each passage under its citation."""
        pairs = zip(self.citations, self.passages, strict=True)
        parts = [f"[{n}] {citation.label()}\n{content}" for n, (citation, content) in enumerate(pairs, 1)]
        reason = [self.reason] if self.reason else []
        return "\n\n".join([*parts, *reason, *said(self.unavailable)])


class GetDocument(Arguments):
    """Part of a document."""

    id: DocumentId
    start: Annotated[int, Field(ge=0, le=100_000_000)] = 0
    end: Annotated[int | None, Field(ge=1, le=100_000_000, description="Excluded; 20,000 characters at most.")] = None


class DocumentText(Result):
    """Characters start to end of a document."""

    doc_id: str
    title: str
    index: str
    source: Source
    rev: int
    characters: int
    start: int
    end: int
    content: str
    next_start: int | None = None

    def outside(self) -> bool:
        """Whether it is not canon."""
        return self.source == "outside"

    def text(self) -> str:
        """The text, and how to read on."""
        more = (
            ""
            if self.next_start is None
            else f"\n\n[{self.characters} characters; read on with start={self.next_start}.]"
        )
        return f"{self.title} [{self.doc_id} {self.start}-{self.end}, {self.source}, revision {self.rev}]\n{self.content}{more}"


class ListIndices(Arguments):
    """A page of indices."""

    limit: Annotated[int, Field(ge=1, le=100)] = 50
    cursor: Cursor = None


class Indices(Result):
    """Which lore there is."""

    items: list[IndexSummary]
    next_cursor: str | None = None

    def text(self) -> str:
        """One line each."""
        lines = [f"{i.name}: {i.documents} documents, {i.passages} passages" for i in self.items]
        return "\n".join(lines) or "There is no lore yet."


class GetConfig(Arguments):
    """One key."""

    key: Annotated[str, Field(min_length=1, max_length=200, description="Such as spawn.night.rate.")]


class ConfigEntry(Result):
    """What is set under a key."""

    key: str
    value: Json
    version: int

    def text(self) -> str:
        """One line."""
        return f"{self.key} = {orjson.dumps(self.value).decode()} (version {self.version})"


class ListConfig(Arguments):
    """Keys under a prefix."""

    prefix: Annotated[str, Field(max_length=200, description="Such as spawn. for spawn.night.rate and its like.")] = ""
    limit: Annotated[int, Field(ge=1, le=100)] = 50
    cursor: Cursor = None


class ConfigItem(BaseModel):
    """A key in a listing; a long value is left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    version: int
    value: Json = None
    omitted: bool = Field(default=False, description="The value is long: get_config has it.")


class ConfigPage(Result):
    """Keys in their order."""

    items: list[ConfigItem]
    next_cursor: str | None = None

    def text(self) -> str:
        """One line each."""
        lines = [f"{i.key} = {'…' if i.omitted else orjson.dumps(i.value).decode()}" for i in self.items]
        return "\n".join(lines) or "Nothing is set there."


class NewDocument(BaseModel):
    """A document to import."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    title: Annotated[str, Field(min_length=1, max_length=200, description="A document of the same title is replaced.")]
    text: Annotated[str, Field(min_length=1, max_length=1_000_000)]
    format: Format = "text"
    metadata: Annotated[
        dict[str, Json] | None,
        Field(
            max_length=32, description="Such as spoiler_level (0-100), known_by (names), region; search filters by it."
        ),
    ] = None


class IngestDocuments(Arguments):
    """Documents to import."""

    documents: Annotated[list[NewDocument], Field(min_length=1, max_length=100)]
    persona: Annotated[
        str | None, Field(max_length=64, description="Into this persona's own lore, else the shared.")
    ] = None


class Ingested(Result):
    """What became of each document, and the job that imports what is new."""

    job_id: str | None
    documents: list[Taken]

    def text(self) -> str:
        """One line."""
        new = sum(document.status == "accepted" for document in self.documents)
        if self.job_id is None:
            return f"Nothing changed: all {len(self.documents)} documents are there already."
        return f"{new} of {len(self.documents)} documents are being imported: get_job {self.job_id} says when they are found."


class DeleteDocument(Arguments):
    """A document to delete."""

    id: DocumentId


class Deleted(Result):
    """That it is gone."""

    doc_id: str
    deleted: bool = Field(description="False where it was gone before.")


class Reindex(Arguments):
    """An index to cut and index anew."""

    index: Annotated[str, Field(min_length=1, max_length=80, description="As list_indices names it.")] = "lore-shared"


class JobStarted(Result):
    """A job that has been taken."""

    job_id: str

    def text(self) -> str:
        """One line."""
        return f"Started: get_job {self.job_id} says how far it is."


class DocumentUri(Arguments):
    """The document a resource URI names."""

    id: DocumentId
