"""Owns the change that deletes a document of the lore for good, with everything it is found by."""

from __future__ import annotations

from dataclasses import dataclass

from body_broker.calls import Json
from body_broker.errors import Conflict, NotFound
from body_broker.lore import standing
from body_broker.lore.documents import Effect
from body_broker.lore.model import Source
from body_broker.storage.postgres import Connection
from body_broker.text import quoted
from mcp_servers.admin.changes.kind import TEXT_MAX, Foreseen, Found, Kind, Maker, NoParams, Plan, Reach
from mcp_servers.admin.changes.showing import prefixed


@dataclass(frozen=True, slots=True)
class _Deleting:
    """A document with the text that was read."""

    reach: Reach
    document_id: str
    rev: int
    source: Source
    foreseen: Foreseen

    async def write(self, connection: Connection, maker: Maker) -> Json:
        """Delete it, where it has that text and is canon, or not, as it was."""
        effect = Effect(maker.requester, maker.receipt)
        if not await self.reach.lore.delete_within(
            connection, self.document_id, effect, rev=self.rev, source=self.source
        ):
            raise Conflict("Somebody deleted the document meanwhile.", next_step="Nothing is left to do.")
        return {"document": self.document_id}


async def _plan(reach: Reach, target: str, _params: NoParams) -> Plan:
    part = await reach.lore.get_document(target, characters_max=TEXT_MAX)
    there = await standing.of_document(reach.pool, part.doc_id)
    if there is not None and there.newer:
        raise standing.newer_coming()
    more = f"\n[{part.characters - part.end} more characters go too]" if part.end < part.characters else ""
    about = f"{quoted(part.title)}, {part.source} in {part.index}, {part.characters} characters, revision {part.rev}"
    foreseen = Foreseen(
        headline=f"Delete the document {part.doc_id} for good",
        diff=f"{about}\n{prefixed('-', part.content, limit=TEXT_MAX)}{more}",
        basis=f"revision {part.rev} {part.source}",
        outside=part.source == "outside",
    )
    return _Deleting(reach, part.doc_id, part.rev, part.source, foreseen)


async def _read_back(reach: Reach, _target: str, remembered: Json) -> Found:
    document_id = remembered["document"]
    await reach.lore.announce(document_id)
    try:
        await reach.lore.get_document(document_id, characters_max=1)
    except NotFound:
        return Found(state="done", text=f"{document_id} is gone: it can no longer be read.")
    return Found(state="failed", text=f"{document_id} is still there.")


KIND = Kind(
    name="delete_lore",
    reads="get_document",
    params=NoParams,
    takes="target: the document's id (search_lore says it); no params",
    plan=_plan,
    read_back=_read_back,
)
