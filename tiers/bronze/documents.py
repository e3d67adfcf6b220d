"""Owns results of jobs as documents of the lore: in an index of their own, never canon, found by search_lore(persona="expert-results")."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from body_broker.lore import Effect, Lore, make_draft
from body_broker.lore.documents import content_hash
from body_broker.lore.model import SPOILER_LEVEL_MAX, Draft, persona_index
from body_broker.storage.postgres import Connection
from body_broker.work.model import Origin
from tiers.bronze.model import JobKind

PERSONA = "expert-results"
"""Whose lore they are. What is asked without a persona, or with another, never finds them."""
_INDEX = persona_index(PERSONA)
_NOT_CANON = "SELECT true FROM lore_document WHERE id = $1 AND NOT canon FOR UPDATE"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A document ready to be written: what it says, and the hash of that."""

    hashed: str
    draft: Draft


class Documents:
    """Writes results into the lore and takes them out again, in the caller's transaction.

    Args:
        lore: Where they lie. Its import job cuts them afterwards, and tells whatever goes after the lore.
    """

    def __init__(self, lore: Lore) -> None:
        self._lore = lore

    async def prepare(self, job: str, kind: JobKind, title: str, text: str) -> Prepared | None:
        """A result as a document; None where it has no text to be found by. Before the transaction: long texts take a while."""
        if not text.strip() or not title.strip():
            return None
        # With its job among its fields it is never the same document as another job's, whose end would take it along.
        return await asyncio.to_thread(_prepared, job, kind, title, text)

    async def write(self, connection: Connection, prepared: Prepared, origin: Origin) -> str:
        """The document's id. It is found once its import has run, which is begun with this transaction.

        Args:
            connection: In the transaction that publishes the result.
            prepared: What `prepare` gave.
            origin: Of the job.
        """
        intake = await self._lore.importing.take_within(
            connection, [(prepared.hashed, prepared.draft)], index=_INDEX, canon=False, origin=origin
        )
        return intake.documents[0].doc_id

    async def drop(self, connection: Connection, document_id: str, effect: Effect) -> bool:
        """Whether a document was taken out: one that people made canon since is theirs, and stays.

        Args:
            connection: In the transaction that forgets the result; `announce` tells readers after it.
            document_id: The document.
            effect: Who forgets it.
        """
        if not await connection.fetchval(_NOT_CANON, document_id):
            return False
        return await self._lore.delete_within(connection, document_id, effect)

    async def announce(self, document_id: str) -> None:
        """Tell listeners that a document is gone."""
        await self._lore.announce(document_id)


def _prepared(job: str, kind: JobKind, title: str, text: str) -> Prepared:
    # Nobody knows what of the lore that the model read is in it: who asks for nothing spoilt is not told of it.
    known = {"job": job, "made_as": kind, "spoiler_level": SPOILER_LEVEL_MAX}
    draft = make_draft(f"{PERSONA}/{job}", title, text, "markdown", known)
    return Prepared(content_hash(draft), draft)
