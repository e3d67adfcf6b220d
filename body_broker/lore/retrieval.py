"""Owns the one door to lore for the rooms above: search, context for a prompt, documents, and what changes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from body_broker.calls import Json
from body_broker.errors import BadInput, Conflict
from body_broker.lore import context, documents, reading, standing
from body_broker.lore.documents import Effect
from body_broker.lore.importing import Announce, Importing, announce_nothing
from body_broker.lore.index import EVERYTHING, Filter, Follower, Hit, SearchIndex
from body_broker.lore.model import (
    QUERY_CHARACTERS_MAX,
    SHARED,
    Context,
    DocumentPart,
    IndexSummary,
    Page,
    Passage,
    Source,
    document_uri,
    persona_index,
    shown,
)
from body_broker.lore.postings import PostgresIndex
from body_broker.lore.ranking import CANDIDATES, Asked, By, Embed, Ranked, Ranking, embed_nothing
from body_broker.storage.postgres import Connection, Pool
from body_broker.text import clean, digest
from body_broker.work import keyed

PASSAGES_MAX = 50
DEPTH_MAX = CANDIDATES
"""Passages that pages reach; whoever needs more asks another question."""
PART_CHARACTERS_MAX = 20_000
_NO_WORDS = "The query holds no word to search for: only signs, or words such as 'the' and 'who'."
_NO_VECTORS = "Nothing can be searched by meaning now: search by words instead."
_TRIES = 3  # between finding and reading, a document may have become another rev


class Lore:
    """Lore as agents meet it.

    Args:
        pool: Where lore lies.
        index: What finds it; the embedded one where none is given.
        announce: Told the resource of each document that changed.
        copy: An index that holds copies, asked before `index`.
        embed: Makes a query's vector; without it words alone find passages.
        followers: What goes after each change of the lore.
    """

    def __init__(
        self,
        pool: Pool,
        index: PostgresIndex | None = None,
        announce: Announce = announce_nothing,
        *,
        copy: SearchIndex | None = None,
        embed: Embed = embed_nothing,
        followers: Sequence[Follower] = (),
    ) -> None:
        self._pool = pool
        self._index = index or PostgresIndex(pool)
        self._announce = announce
        self._followers = tuple(followers)
        self._ranking = Ranking(self._index, copy, embed)
        self._numbers: dict[str, int] = {}
        self.importing = Importing(pool, self._index, announce, self._followers)

    async def index_for(self, persona: str | None) -> str:
        """The persona's own index where it holds something, else the shared one.

        Raises:
            BadInput: No persona can have that name.
        """
        if persona is None:
            return SHARED
        name = persona_index(persona)
        found = await self._pool.fetchval(
            "SELECT true FROM lore_document d JOIN lore_index i ON i.id = d.index_id"
            " WHERE i.name = $1 AND d.rev IS NOT NULL LIMIT 1",
            name,
        )
        return name if found else SHARED

    async def search(
        self,
        index: str,
        query: str,
        *,
        limit: int,
        after: Json = None,
        per_document: bool = False,
        where: Filter = EVERYTHING,
        by: By = "both",
    ) -> Page:
        """Passages that answer the query, the best first.

        Args:
            index: As `index_for` gives it.
            query: Cut at 2000 characters.
            limit: Passages on a page, 1 to 50.
            after: `Page.after` of the page before, for the same question.
            per_document: Only the best passage of each document.
            where: Which documents may be found.
            by: Words, meaning, or both fused.

        Raises:
            BadInput: `after` belongs to another question.
            Conflict: What answers now ranks otherwise than what answered the page before.
        """
        limit = max(1, min(limit, PASSAGES_MAX))
        words = clean(query)[:QUERY_CHARACTERS_MAX]
        asked = digest([index, words, per_document, by, asdict(where)])
        offset = _offset(after, asked)
        number = await self._number(index)
        if number is None:
            return Page([], reason=f"There is no lore in {shown(index)} yet.")
        question = Asked(number, words, by, per_document, where)
        ranked, hits, found = Ranked(), list[Hit](), list[Passage]()
        for _ in range(_TRIES):
            ranked = await self._ranking.rank(question)
            hits = ranked.hits
            if ranked.copied:
                live = await self._index.live(number, {hit.rev for hit in hits}, where)
                hits = [hit for hit in hits if hit.rev in live]
            found = await reading.passages(self._pool, hits[offset : offset + limit])
            if len(hits) == len(ranked.hits) and len(found) == len(hits[offset : offset + limit]):
                break
        reached = min(offset + limit, DEPTH_MAX)
        if after is not None and after.get("ranked") != sorted(ranked.by):
            raise Conflict(
                "The search is answered in another way than the page before was: pages would not fit together.",
                next_step="Leave the cursor out to begin anew.",
            )
        more = len(hits) > reached and reached < DEPTH_MAX
        state = {"offset": reached, "asked": asked, "ranked": sorted(ranked.by)} if more else None
        reason = None if found or offset else _why_nothing(ranked, question, index)
        return Page(found, state, sorted(ranked.missing), reason)

    async def retrieve_context(
        self, index: str, topic: str, *, limit: int, token_budget: int, where: Filter = EVERYTHING
    ) -> Context:
        """What there is to know of a topic, in at most `limit` passages that fit the budget together and do not repeat each other.

        Passages that follow each other in a document are merged into one; every citation is exact for what it stands beside.
        """
        page = await self.search(index, topic, limit=min(PASSAGES_MAX, 4 * limit), where=where)
        spans = context.fill(page.passages, limit=limit, token_budget=token_budget)
        texts = await reading.spans(self._pool, [(s.best.doc_id, s.start, s.end) for s in spans])
        passages = [_spanning(span, text) for span, text in zip(spans, texts, strict=True) if text]
        return Context(passages, sum(context.tokens(p.content) for p in passages), page.unavailable, page.reason)

    async def get_document(
        self, document_id: str, *, start: int = 0, end: int | None = None, characters_max: int = PART_CHARACTERS_MAX
    ) -> DocumentPart:
        """Characters `start` to `end` of a document, at most `characters_max` of them.

        Raises:
            NotFound: There is no such document, or no import of it is done yet.
            BadInput: `end` lies before `start`.
        """
        if end is not None and end <= start:
            raise BadInput("end must lie after start.")
        count = characters_max if end is None else min(end - start, characters_max)
        return await reading.part(self._pool, document_id, start, count)

    async def list_indices(self, *, limit: int = 50, after: str | None = None) -> tuple[list[IndexSummary], str | None]:
        """Indices that hold something, and where the next page goes on."""
        found = await reading.indices(self._pool, after or "", limit + 1)
        return [summary for _, summary in found[:limit]], found[limit - 1][0] if len(found) > limit else None

    async def delete_document(
        self,
        document_id: str,
        effect: Effect,
        *,
        key: str | None = None,
        rev: int | None = None,
        source: Source | None = None,
    ) -> bool:
        """Whether it was there; False where it had been deleted before. Under a key it is always what it was the first time.

        Args:
            document_id: The document.
            effect: Who does it.
            key: Under which it is done once.
            rev: The text that is to go; None is whatever is there.
            source: Whether it was canon when that text was read; None where that does not matter.

        Raises:
            NotFound: There never was such a document.
            Conflict: It has another text than that or is being given one, or it became canon since.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            deleted: bool = await keyed.once(
                connection, key, lambda: self.delete_within(connection, document_id, effect, rev=rev, source=source)
            )
        if deleted:
            await self.announce(document_id)
        return deleted

    async def delete_within(
        self,
        connection: Connection,
        document_id: str,
        effect: Effect,
        *,
        rev: int | None = None,
        source: Source | None = None,
    ) -> bool:
        """The same in the caller's transaction, after which readers are told by `announce`."""
        index_id = await documents.index_of(connection, document_id)
        if rev is not None:
            await standing.require_rev(connection, document_id, rev, source)
        revs = await documents.delete(connection, document_id, effect)
        await self._index.drop(connection, revs)
        if index_id is not None:
            for follower in self._followers:
                await follower.changed(connection, index_id, [], revs)
        return bool(revs)

    async def announce(self, document_id: str) -> None:
        """Tell listeners that a document is another one now, or gone."""
        await self._announce(document_uri(document_id))

    async def approve(self, document_id: str, effect: Effect, *, rev: int | None = None) -> int:
        """Take an outside document into the canon: what a person does, never an agent by itself. The rev of its text.

        Args:
            document_id: The document.
            effect: Who does it.
            rev: The text that was read; None is whatever is there.

        Raises:
            NotFound: There is no document from outside by that id.
            Conflict: It has another text than that, or one is being brought in that nobody has read.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            current = await self.approve_within(connection, document_id, effect, rev=rev)
        await self.announce(document_id)
        return current

    async def approve_within(
        self, connection: Connection, document_id: str, effect: Effect, *, rev: int | None = None
    ) -> int:
        """The same in the caller's transaction, after which readers are told by `announce`."""
        index_id, current = await documents.approve(connection, document_id, effect, rev=rev)
        for follower in self._followers:
            await follower.changed(connection, index_id, [current], [])
        return current

    async def _number(self, index: str) -> int | None:
        # An index is never deleted, so a number once read stays true.
        if index not in self._numbers:
            found = await documents.index_id(self._pool, index)
            if found is None:
                return None
            self._numbers[index] = found
        return self._numbers[index]


def _why_nothing(ranked: Ranked, asked: Asked, index: str) -> str:
    if asked.by == "meaning" and "vectors" in ranked.missing:
        return _NO_VECTORS
    if ranked.wordless:
        return _NO_WORDS
    filtered = "" if asked.where.everything else " that these filters let through"
    if "vectors" in ranked.missing:
        return f"Nothing in {shown(index)}{filtered} has a word of the query."
    return f"Nothing in {shown(index)}{filtered} answers that."


def _offset(after: Json, asked: str) -> int:
    if after is None:
        return 0
    if after["asked"] != asked:
        raise BadInput("The cursor belongs to another query.", next_step="Leave the cursor out to begin this one.")
    return int(after["offset"])


def _spanning(span: context.Span, text: str) -> Passage:
    return span.best.model_copy(update={"start": span.start, "end": span.end, "content": text})
