"""Owns the change that brings documents into the canon: new ones, or one that is there as text from outside and was read."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from body_broker.calls import Json
from body_broker.errors import BadInput, Conflict, NotFound, TooLarge
from body_broker.lore import standing
from body_broker.lore.documents import Effect
from body_broker.lore.intake import make_draft
from body_broker.lore.model import KNOWLEDGE_BYTES_MAX, TITLE_CHARACTERS_MAX, Draft, Format, index_named, shown
from body_broker.lore.standing import Standing
from body_broker.storage.postgres import Connection, Executor
from body_broker.text import digest, quoted, shortened
from body_broker.work import queue
from body_broker.work.model import FINAL
from mcp_servers.admin.changes.kind import TEXT_MAX, Foreseen, Found, Kind, Maker, Params, Plan, Reach
from mcp_servers.admin.changes.showing import brief, difference, prefixed

WAIT_S = 20.0
"""How long the answer waits for the index; the import goes on after it."""
_LOOK_EVERY_S = 0.1
_EACH_MAX = 4_000
_TITLED_MAX = 100
"""Documents of the canon that have one of the titles: more are not compared."""


class Document(Params):
    """A document of the studio's own."""

    title: Annotated[str, Field(min_length=1, max_length=200)]
    text: Annotated[str, Field(min_length=1, max_length=1_000_000)]
    format: Format = "text"
    metadata: Annotated[dict[str, Json] | None, Field(max_length=32)] = None


class Ingest(Params):
    """Documents for an index; none where the target is a document that is there."""

    documents: Annotated[list[Document] | None, Field(min_length=1, max_length=20)] = None


async def _plan(reach: Reach, target: str, params: Ingest) -> Plan:
    if target.startswith("doc_"):
        if params.documents is not None:
            raise BadInput(
                "A document that is there is taken into the canon as it is: leave `documents` out.",
                next_step="To bring new ones give an index as target, such as shared or persona:osric.",
                details={"problems": ["params.documents: not with a document as target"]},
            )
        return await _approving(reach, target)
    if params.documents is None:
        raise BadInput(
            "params.documents is missing: an index as target takes documents.",
            next_step="Give documents, each with title and text; or as target the id of a document that is there.",
            details={"problems": ["params.documents: Field required"]},
        )
    return await _bringing(reach, index_named(target), params.documents)


@dataclass(frozen=True, slots=True)
class _Bringing:
    """New documents."""

    reach: Reach
    index: str
    hashed: Sequence[tuple[str, Draft]]
    there: Mapping[str, Standing]
    titled: Sequence[Standing]
    foreseen: Foreseen

    async def write(self, connection: Connection, maker: Maker) -> Json:
        """Store them with the job that indexes them, where they replace what was foreseen."""
        intake = await self.reach.lore.importing.take_within(
            connection, self.hashed, index=self.index, canon=True, origin=maker.origin
        )
        # Taking them has locked what they replace.
        origins = [draft.origin for _, draft in self.hashed]
        now = await standing.of_origins(connection, self.index, origins, canon=True)
        # What was just taken is itself a newer text that is coming.
        same = {origin: replace(each, newer=False) for origin, each in now.items()} == self.there
        if not same or await _titled(connection, self.index, self.hashed) != self.titled:
            raise Conflict("A document of the same title has another text by now.")
        await standing.require_none_coming(connection, self.index, origins, but=intake.job_id or "")
        taken = zip(intake.documents, self.hashed, strict=True)
        return {"job": intake.job_id, "documents": {one.doc_id: hashed for one, (hashed, _) in taken}}


async def _bringing(reach: Reach, index: str, documents: Sequence[Document]) -> Plan:
    drafts = await asyncio.to_thread(_drafts, documents)
    hashed = await reach.lore.importing.hashed(drafts)
    origins = [draft.origin for draft in drafts]
    await standing.require_none_coming(reach.pool, index, origins)
    there = await standing.of_origins(reach.pool, index, origins, canon=True)
    titled = await _titled(reach.pool, index, hashed)
    new = [draft for h, draft in hashed if draft.origin not in there or there[draft.origin].content_hash != h]
    if not new:
        raise Conflict("The canon has these documents already.", next_step="Nothing is to be done: nobody was asked.")
    shown_index = shown(index)
    facts = [_about(draft, there.get(draft.origin), titled) for draft in new]
    if len(new) < len(drafts):
        facts.append(f"{len(drafts) - len(new)} more are in the canon as they are.")
    about = _whole("\n\n".join(facts))
    texts = "\n\n".join([await _texts(reach, draft, there.get(draft.origin)) for draft in new])
    count = f"{len(new)} documents" if len(new) > 1 else f"the document {quoted(new[0].title)}"
    foreseen = Foreseen(
        headline=f"Take {count} into the canon of {shown_index}",
        diff=f"{about}\n\n{shortened(texts, max(TEXT_MAX - len(about), _EACH_MAX))}",
        basis=digest(
            [sorted([each, there[each].rev] for each in there), [[each.document_id, each.rev] for each in titled]]
        ),
    )
    return _Bringing(reach, index, hashed, there, titled, foreseen)


async def _titled(connection: Executor, index: str, hashed: Sequence[tuple[str, Draft]]) -> list[Standing]:
    """What the canon has under the same titles, beside what would be replaced."""
    origins = {draft.origin for _, draft in hashed}
    titles = [draft.title for _, draft in hashed]
    found = await standing.canon_titled(connection, index, titles, limit=_TITLED_MAX)
    return [replace(each, newer=False) for each in found if each.origin not in origins]


def _whole(facts: str) -> str:
    """What is said of documents beside their texts: all of it is shown, or nobody is asked."""
    if len(facts) > TEXT_MAX:
        raise TooLarge(
            f"What these documents say beside their texts has more than {TEXT_MAX} characters to show.",
            next_step="Bring fewer of them at once.",
        )
    return facts


def _drafts(documents: Sequence[Document]) -> list[Draft]:
    return [make_draft(each.title, each.title, each.text, each.format, each.metadata) for each in documents]


def _about(draft: Draft, there: Standing | None, titled: Sequence[Standing]) -> str:
    """What a document says beside its text, before and after: its metadata say whom it may be told."""
    what = "new" if there is None else f"replaces {there.document_id}"
    lines = [f"{what}: {quoted(draft.title, limit=TITLE_CHARACTERS_MAX)}, {len(draft.body)} characters"]
    lines += [
        f"beside {each.document_id}, which the canon has under this title from {quoted(each.origin)}"
        for each in titled
        if each.title == draft.title
    ]
    before = {} if there is None else _facts(there.title, there.form, there.knowledge)
    after = _facts(draft.title, draft.form, draft.knowledge)
    for name in [*after, *(each for each in before if each not in after)]:
        if before.get(name) == after.get(name):
            lines.append(f"  {name}: {after[name]}")
            continue
        lines += [f"{sign} {name}: {facts[name]}" for sign, facts in (("-", before), ("+", after)) if name in facts]
    return "\n".join(lines)


def _facts(title: str, form: Format, knowledge: Mapping[str, Json]) -> dict[str, str]:
    """Title, format and metadata, each on a line that it cannot leave."""
    told = {_line(name): _line(value) for name, value in sorted(knowledge.items())}
    return {"title": _line(title), "format": form} | {f"metadata {name}": value for name, value in told.items()}


def _line(value: Json) -> str:
    return brief(value, limit=2 * KNOWLEDGE_BYTES_MAX)


async def _texts(reach: Reach, draft: Draft, there: Standing | None) -> str:
    about = f"text of {quoted(draft.title)}"
    if there is None:
        return f"{about}\n{prefixed('+', draft.body, limit=_EACH_MAX)}"
    part = await reach.lore.get_document(there.document_id, characters_max=TEXT_MAX)
    if part.characters > part.end:
        return f"{about}, in place of {part.characters} characters\n{prefixed('+', draft.body, limit=_EACH_MAX)}"
    return f"{about}\n{await difference(part.content, draft.body, limit=_EACH_MAX) or 'as it is'}"


@dataclass(frozen=True, slots=True)
class _Approving:
    """A document from outside that becomes canon as it is."""

    reach: Reach
    document_id: str
    rev: int
    foreseen: Foreseen

    async def write(self, connection: Connection, maker: Maker) -> Json:
        """Take the text that was read into the canon."""
        await self.reach.lore.approve_within(
            connection, self.document_id, Effect(maker.requester, maker.receipt), rev=self.rev
        )
        return {"document": self.document_id, "rev": self.rev}


async def _approving(reach: Reach, document_id: str) -> Plan:
    part = await reach.lore.get_document(document_id, characters_max=TEXT_MAX)
    await standing.require_approvable(reach.pool, document_id)
    there = await standing.of_document(reach.pool, document_id)
    if there is None or there.rev != part.rev:
        raise Conflict("The document has another text by now.", next_step="Ask again: people are shown that one.")
    if part.end < part.characters:
        raise TooLarge(
            f"The document has {part.characters} characters; a text from outside is approved only where all of it is shown,"
            f" and {TEXT_MAX} are.",
            next_step=f"An operator who has read all of it runs `body-broker lore approve {part.doc_id}`.",
        )
    about = f"{part.doc_id} in {part.index}, {part.characters} characters, revision {part.rev}"
    facts = "\n".join(f"+ {name}: {value}" for name, value in _facts(there.title, there.form, there.knowledge).items())
    foreseen = Foreseen(
        headline=f"Take the document {part.doc_id} into the canon",  # its title may be anybody's words
        diff=f"{about}: text from outside becomes canon\n{facts}\ntext\n{prefixed('+', part.content)}",
        basis=f"revision {part.rev}",
        outside=True,
    )
    return _Approving(reach, document_id, part.rev, foreseen)


async def _read_back(reach: Reach, _target: str, remembered: Json) -> Found:
    if "document" in remembered:
        return await _is_canon(reach, remembered["document"], remembered["rev"])
    state = await _ended(reach, remembered["job"]) if remembered["job"] else None
    if state is not None and state not in FINAL:
        text = f"The documents are stored, and {remembered['job']} is indexing them: get_job says when they are found."
        return Found(state="executing", text=text)
    if state not in {None, "succeeded"}:
        return Found(state="failed", text=f"The import {remembered['job']} was {state}.")
    wanted: dict[str, str] = remembered["documents"]
    hashes = await standing.hashes_of_canon(reach.pool, list(wanted))
    same = sum(hashes.get(document_id) == hashed for document_id, hashed in wanted.items())
    ids = ", ".join(sorted(wanted))
    if same == len(wanted):
        return Found(state="done", text=f"The canon has {ids} with the texts that were approved.")
    text = (
        f"Of {ids} the canon has {same} of {len(wanted)} with the texts that were approved: others were changed since."
    )
    return Found(state="done" if state is not None else "failed", text=text)


async def _ended(reach: Reach, job_id: str) -> str:
    """How the job stands once it has ended, or after a while."""
    clock = asyncio.get_running_loop()
    until = clock.time() + WAIT_S
    while True:
        job = await queue.get(reach.pool, job_id, owner=None)
        if job.state in FINAL or clock.time() >= until:
            return job.state
        await asyncio.sleep(_LOOK_EVERY_S)


async def _is_canon(reach: Reach, document_id: str, rev: int) -> Found:
    await reach.lore.announce(document_id)
    try:
        part = await reach.lore.get_document(document_id, characters_max=1)
    except NotFound:
        return Found(state="done", text=f"{document_id} became canon; it was deleted since.")
    if part.source == "canon":
        since = "" if part.rev == rev else f"; it has revision {part.rev} since"
        return Found(state="done", text=f"{document_id} is canon with revision {rev}{since}.")
    return Found(state="failed", text=f"{document_id} is not canon.")


KIND = Kind(
    name="ingest",
    reads="get_document",
    params=Ingest,
    takes=(
        "target: an index (shared, persona:NAME) and params.documents, each with title, text, format (text or markdown),"
        " metadata; or target: the id of a document from outside, without params"
    ),
    plan=_plan,
    read_back=_read_back,
    lasting=True,
)
