"""Owns what people are told of a change of the lore before they say yes: which documents, how large, what they replace."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from body_broker.calls import Caller, Preview
from body_broker.lore import standing
from body_broker.lore.importing import nothing_there
from body_broker.lore.intake import make_draft
from body_broker.lore.model import SHARED, Draft, Source, index_named, persona_index, shown
from body_broker.text import quoted
from mcp_servers.rag.models import DeleteDocument, IngestDocuments, NewDocument, Reindex
from mcp_servers.rag.services import Services

_EXCERPT = 1_000
_INDICES = 200


async def foresee_ingest(arguments: IngestDocuments, _caller: Caller, services: Services) -> Preview:
    """Documents that would come in as text from outside.

    Raises:
        BadInput: One is no document, or two have one title.
        TooLarge: They are more than one import may bring.
    """
    drafts = await asyncio.to_thread(drafts_of, arguments.documents)
    await services.lore.importing.hashed(drafts)
    index = SHARED if arguments.persona is None else persona_index(arguments.persona)
    there = await standing.of_origins(services.pool, index, [draft.origin for draft in drafts], canon=False)
    lines = [f"{'replaces' if each.origin in there else 'new'}: {_sized(each)}" for each in drafts]
    count = f"{len(drafts)} documents" if len(drafts) > 1 else f"the document {quoted(drafts[0].title)}"
    return Preview(
        headline=f"Take {count} into {shown(index)} as text from outside",
        text="\n".join(["They are found as text from outside, not as canon.", *lines]),
    )


def drafts_of(documents: Sequence[NewDocument]) -> list[Draft]:
    """Documents as they may be stored; blocking.

    Raises:
        BadInput: One is no document.
    """
    return [make_draft(new.title, new.title, new.text, new.format, new.metadata) for new in documents]


async def foresee_delete(arguments: DeleteDocument, _caller: Caller, services: Services) -> Preview:
    """A document that would be gone for good, by its beginning.

    Raises:
        NotFound: There is none by that id.
        Conflict: A newer text of it is being brought in.
    """
    part = await services.lore.get_document(arguments.id, characters_max=_EXCERPT)
    there = await standing.of_document(services.pool, part.doc_id)
    if there is not None and there.newer:
        raise standing.newer_coming()
    more = "" if part.end >= part.characters else f"\n[{part.characters - part.end} more characters]"
    about = f"{quoted(part.title)}, {part.source} in {part.index}, {part.characters} characters, revision {part.rev}"
    return Preview(
        headline=f"Delete the document {part.doc_id} for good",  # its title may be anybody's words
        text=f"{about}. It begins:\n{part.content}{more}",
        basis=f"{part.rev} {part.source}",
    )


def text_of(basis: str) -> tuple[int, Source]:
    """The text that people saw of a document: its rev, and whether it was canon."""
    rev, _, source = basis.partition(" ")
    return int(rev), "canon" if source == "canon" else "outside"


async def foresee_reindex(arguments: Reindex, _caller: Caller, services: Services) -> Preview:
    """An index that would be cut and indexed anew.

    Raises:
        NotFound: It holds no document.
    """
    name = shown(index_named(arguments.index))
    found, _ = await services.lore.list_indices(limit=_INDICES)
    index = next((each for each in found if each.name == name), None)
    if index is None:
        if len(found) < _INDICES:
            raise nothing_there()
        return Preview(headline=f"Index {quoted(name)} anew")
    text = (
        f"{index.documents} documents, {index.passages} passages; readers see the old state of each until it is done."
    )
    return Preview(headline=f"Index {quoted(name)} anew", text=text)


def _sized(draft: Draft) -> str:
    return f"{quoted(draft.title)}, {len(draft.body)} characters, {draft.form}"
