"""The rag server: lore search and configuration look-ups for agents. Owns the tools' wording; the work is body_broker.lore's."""

from __future__ import annotations

import asyncio

import orjson

from body_broker.calls import Call, Resource, ResourceText, Room, Tool
from body_broker.errors import Conflict
from body_broker.lore.documents import Effect
from body_broker.lore.model import SHARED, Citation, index_named, persona_index
from body_broker.lore.ranking import By
from body_broker.work.model import Origin
from mcp_servers.rag.foreseeing import drafts_of, foresee_delete, foresee_ingest, foresee_reindex, text_of
from mcp_servers.rag.models import (
    ConfigEntry,
    ConfigItem,
    ConfigPage,
    ContextPassages,
    Deleted,
    DeleteDocument,
    DocumentText,
    DocumentUri,
    GetConfig,
    GetDocument,
    Indices,
    IngestDocuments,
    Ingested,
    JobStarted,
    ListConfig,
    ListIndices,
    LorePage,
    Reindex,
    RetrieveContext,
    SearchLore,
    VectorSearch,
    filter_of,
)
from mcp_servers.rag.prompts import PROMPTS, complete_document
from mcp_servers.rag.services import Services

_RESOURCE_CHARACTERS_MAX = 200_000
_LISTED_VALUE_BYTES_MAX = 1_000


async def search_lore(arguments: SearchLore, call: Call, services: Services) -> LorePage:
    """Passages that answer a query; the index is `lore-{persona}` where it exists, else `lore-shared` (seed 001, RAG)."""
    return await _search(arguments, call, services, by="both")


async def vector_search(arguments: VectorSearch, call: Call, services: Services) -> LorePage:
    """Passages near a query in meaning, whatever their words."""
    return await _search(arguments, call, services, by="meaning")


async def _search(arguments: SearchLore, call: Call, services: Services, *, by: By) -> LorePage:
    lore = services.lore
    page = await lore.search(
        await lore.index_for(arguments.persona),
        arguments.query,
        limit=arguments.k,
        after=call.open_cursor(arguments.cursor),
        where=filter_of(arguments.filters),
        by=by,
    )
    return LorePage(
        items=page.passages,
        next_cursor=call.seal_cursor(page.after),
        unavailable=page.unavailable,
        reason=page.reason,
    )


async def retrieve_context(arguments: RetrieveContext, _call: Call, services: Services) -> ContextPassages:
    """What a prompt about a topic should hold, within a budget (seed 001, RAG)."""
    lore = services.lore
    found = await lore.retrieve_context(
        await lore.index_for(arguments.persona),
        arguments.topic,
        limit=arguments.limit,
        token_budget=arguments.token_budget,
        where=filter_of(arguments.filters),
    )
    return ContextPassages(
        passages=[passage.content for passage in found.passages],
        citations=[Citation(**passage.model_dump(exclude={"content", "score"})) for passage in found.passages],
        tokens=found.tokens,
        unavailable=found.unavailable,
        reason=found.reason,
    )


async def get_document(arguments: GetDocument, _call: Call, services: Services) -> DocumentText:
    """Part of a document's text."""
    part = await services.lore.get_document(arguments.id, start=arguments.start, end=arguments.end)
    return DocumentText(
        doc_id=part.doc_id,
        title=part.title,
        index=part.index,
        source=part.source,
        rev=part.rev,
        characters=part.characters,
        start=part.start,
        end=part.end,
        content=part.content,
        next_start=part.end if part.end < part.characters else None,
    )


async def list_indices(arguments: ListIndices, call: Call, services: Services) -> Indices:
    """Which lore there is."""
    items, after = await services.lore.list_indices(limit=arguments.limit, after=call.open_cursor(arguments.cursor))
    return Indices(items=items, next_cursor=call.seal_cursor(after))


async def get_config(arguments: GetConfig, _call: Call, services: Services) -> ConfigEntry:
    """One of the studio's figures."""
    figure = await services.tuning.get(arguments.key)
    return ConfigEntry(key=figure.key, value=figure.value, version=figure.version)


async def list_config(arguments: ListConfig, call: Call, services: Services) -> ConfigPage:
    """The studio's figures under a prefix."""
    page = await services.tuning.list(arguments.prefix, limit=arguments.limit, after=call.open_cursor(arguments.cursor))
    items: list[ConfigItem] = []
    for figure in page.items:
        long = len(orjson.dumps(figure.value)) > _LISTED_VALUE_BYTES_MAX
        items.append(
            ConfigItem(key=figure.key, version=figure.version, value=None if long else figure.value, omitted=long)
        )
    return ConfigPage(items=items, next_cursor=call.seal_cursor(page.after))


async def ingest_documents(arguments: IngestDocuments, call: Call, services: Services) -> Ingested:
    """Take documents in as outside text; whatever an agent brings is no canon until a person says so (DESIGN.md §2)."""
    drafts = await asyncio.to_thread(drafts_of, arguments.documents)
    index = SHARED if arguments.persona is None else persona_index(arguments.persona)
    taken = await services.lore.importing.take(drafts, index=index, canon=False, origin=Origin.of(call), key=call.key)
    return Ingested(job_id=taken.job_id, documents=taken.documents)


async def delete_document(arguments: DeleteDocument, call: Call, services: Services) -> Deleted:
    """Delete a document with everything it is found by."""
    if call.approval is not None and call.basis is None:
        raise Conflict("Nobody saw which text would be deleted.", next_step="Make the call again: people see it then.")
    effect = Effect(call.caller.requester, call.receipt)
    rev, source = (None, None) if call.basis is None else text_of(call.basis)
    gone = await services.lore.delete_document(arguments.id, effect, key=call.key, rev=rev, source=source)
    return Deleted(doc_id=arguments.id, deleted=gone)


async def reindex(arguments: Reindex, call: Call, services: Services) -> JobStarted:
    """Cut and index an index's documents anew."""
    return JobStarted(
        job_id=await services.lore.importing.reindex(index_named(arguments.index), Origin.of(call), key=call.key),
    )


async def read_document(arguments: DocumentUri, _call: Call, services: Services) -> ResourceText:
    """A document as a resource: its text, up to a limit."""
    part = await services.lore.get_document(arguments.id, characters_max=_RESOURCE_CHARACTERS_MAX)
    cut = f"\n\n[Cut at {part.end} of {part.characters} characters: get_document reads on.]"
    return ResourceText(
        content=part.content + (cut if part.end < part.characters else ""), from_outside=part.source == "outside"
    )


ROOM = Room(
    name="rag",
    title="Lore and figures",
    description="The game's lore, found with citations, and the studio's tuning figures.",
    tools=(
        Tool(
            name="search_lore",
            group="retrieval",
            run=search_lore,
            title="Search lore",
            description=(
                "Passages of the game's lore that answer a question, with citations. Use it before writing anything canonical;"
                " not for live state."
            ),
            output="as_marked",  # each passage says whether its document is canon
        ),
        Tool(
            name="vector_search",
            group="retrieval",
            run=vector_search,
            title="Search lore by meaning",
            description="Find passages near a text in meaning alone, whatever their words. Rarely better than search_lore, which does both.",
            output="as_marked",
            profile="all",
        ),
        Tool(
            name="retrieve_context",
            group="retrieval",
            run=retrieve_context,
            title="Retrieve context",
            description=(
                "What the lore says of a topic, without repetition and within a token budget, to put into a prompt."
                " For one answer use search_lore."
            ),
            output="as_marked",
        ),
        Tool(
            name="get_document",
            group="retrieval",
            run=get_document,
            title="Get a document",
            description="The text around a citation, or a document part by part. To find where something stands use search_lore.",
            output="as_marked",
        ),
        Tool(
            name="list_indices",
            group="retrieval",
            run=list_indices,
            title="List lore indices",
            description="Which lore there is: the shared index and each persona's. Not needed before a search.",
            profile="all",
        ),
        Tool(
            name="get_config",
            group="config_read",
            run=get_config,
            title="Get a figure",
            description="Read one tuning figure of the game by its key: spawn rates, zone ratings, feature flags. Not the hub's settings.",
        ),
        Tool(
            name="list_config",
            group="config_read",
            run=list_config,
            title="List figures",
            description="List tuning figures by prefix when you do not know the key.",
        ),
        Tool(
            name="ingest_documents",
            group="write",
            run=ingest_documents,
            foresees=foresee_ingest,
            title="Ingest documents",
            description=(
                "Add documents to the lore, or replace those of the same title. They count as outside text until a person takes"
                " them into the canon. Answers with a job. Not for facts about live state."
            ),
            effect="repeatable",
        ),
        Tool(
            name="delete_document",
            group="write",
            modifiers=frozenset({"destructive"}),
            run=delete_document,
            foresees=foresee_delete,
            title="Delete a document",
            description="Delete a document from the lore for good. To correct one, ingest it again under its title.",
            effect="repeatable",
        ),
        Tool(
            name="reindex",
            group="write",
            run=reindex,
            foresees=foresee_reindex,
            title="Reindex lore",
            description="Index a lore index anew, after an upgrade that says so. Never needed after an import. Answers with a job.",
            effect="repeatable",
        ),
    ),
    resources=(
        Resource(
            name="lore_document",
            group="retrieval",
            run=read_document,
            title="Lore document",
            description="The text of a lore document.",
            uri="lore://doc/{id}",
            completes={"id": complete_document},
            output="as_marked",
        ),
    ),
    prompts=PROMPTS,
)
