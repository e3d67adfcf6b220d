"""Owns lore that changes all the time, and what a search of it must answer at each moment, whatever has just been killed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from body_broker.lore import Effect, Lore, make_draft
from body_broker.lore.chunks import cut
from body_broker.lore.model import Draft
from body_broker.lore.opensearch import Ledger
from body_broker.storage.postgres import open_pool
from body_broker.work.model import Origin
from tests.kill.harness import PATIENCE_S
from tests.kill.product import Product
from tests.waiting import end_all, wait_until

READER = "tier:silver"
_ORIGIN = Origin(chain=("person:anna",), session="tests")
_DOCUMENTS_MAX = 30
_ENDED = "SELECT state FROM work WHERE id = $1"


@dataclass(eq=False)
class Shown:
    """A document, and the word that every passage of its present text has and nothing else.

    Attributes:
        title: Its name, the same for each of its texts.
        mark: The word; None once it is deleted.
        draft: Its text.
        changing: Whether a change of it is under way, so that nothing can be said of it.
        changes: How many were.
    """

    title: str
    doc_id: str = ""
    mark: str | None = None
    draft: Draft | None = None
    changing: bool = True
    changes: int = 0


@dataclass
class Shelf:
    """Documents that are added, replaced and deleted one after the other, and a reader who checks every answer.

    Attributes:
        answers: How many answers were checked, by what they said was unavailable.
    """

    product: Product
    chance: random.Random
    documents: list[Shown] = field(default_factory=list[Shown])
    gone: list[str] = field(default_factory=list[str])
    answers: dict[str, int] = field(default_factory=dict[str, int])
    changed: int = 0
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    @asynccontextmanager
    async def in_use(self) -> AsyncGenerator[None]:
        """Changed and read until the way out; a wrong answer is raised there."""
        tasks = [asyncio.create_task(self._change_always()), asyncio.create_task(self._read_always())]
        try:
            yield
        finally:
            faults = await end_all(tasks)
        for fault in faults:
            raise fault

    async def add(self) -> None:
        """A new document."""
        document = Shown(f"title{next(self._numbers):05}x")
        self.documents.append(document)
        await self._write(document)

    async def _change_always(self) -> None:
        while True:
            there = [each for each in self.documents if each.mark is not None]
            choice = self.chance.random()
            if not there or (choice < 0.5 and len(there) < _DOCUMENTS_MAX):
                await self.add()
            elif choice < 0.75:
                await self._write(self.chance.choice(there))
            else:
                await self._delete(self.chance.choice(there))
            self.changed += 1

    async def _write(self, document: Shown) -> None:
        mark = f"mark{next(self._numbers):05}x"
        body = "\n\n".join(f"The keeper of {mark} counts. " * 40 for _ in range(self.chance.randint(1, 4)))
        draft = make_draft(document.title, document.title, body)
        with self._changing(document):
            async with open_pool(self.product.database_url, connections_max=2) as pool:
                taken = await Lore(pool).importing.take([draft], index="shared", canon=True, origin=_ORIGIN)
            await wait_until(lambda: self._ended(taken.job_id), "an import ends", timeout_s=2 * PATIENCE_S)
            if document.mark is not None:
                self.gone.append(document.mark)
            document.doc_id, document.mark, document.draft = taken.documents[0].doc_id, mark, draft

    async def _delete(self, document: Shown) -> None:
        assert document.mark is not None
        with self._changing(document):
            # What a process that knows no OpenSearch does; it has to wait where the harness holds the ledger.
            while True:
                async with open_pool(self.product.database_url, connections_max=2) as pool:
                    lore = Lore(pool, followers=(Ledger(),))
                    with contextlib.suppress(asyncpg.QueryCanceledError):
                        assert await lore.delete_document(document.doc_id, Effect("operator:ann", None))
                        break
            self.gone.append(document.mark)
            document.mark = document.draft = None

    @contextlib.contextmanager
    def _changing(self, document: Shown) -> Generator[None]:
        document.changing = True
        document.changes += 1
        yield
        document.changing = False

    async def _ended(self, job_id: str | None) -> bool:
        row = (await self.product.sql(_ENDED, job_id))[0]
        assert row["state"] in {"queued", "running", "succeeded"}, row
        return row["state"] == "succeeded"

    async def _read_always(self) -> None:
        while True:
            await self.read()
            await asyncio.sleep(0)

    async def read(self) -> None:
        """One search, and whether its answer is right."""
        known = [each for each in self.documents if not each.changing]
        if self.gone and (not known or self.chance.random() < 0.3):
            await self.require_nothing(self.chance.choice(self.gone))
        elif known:
            await self.require_all(self.chance.choice(known))

    async def require_nothing(self, mark: str) -> None:
        """A word of a text that is gone finds nothing."""
        answer = await self._search(mark)
        assert answer is None or answer["items"] == [], (mark, answer)

    async def require_all(self, document: Shown) -> None:
        """Exactly the passages of its present text; fewer only where the answer says that the copy is behind."""
        changes, mark, draft = document.changes, document.mark, document.draft
        if mark is None or draft is None:
            return
        answer = await self._search(mark)
        if answer is None or document.changing or document.changes != changes:
            return
        found = {(item["start"], item["end"], item["content"]) for item in answer["items"]}
        whole = {(c.start, c.end, draft.body[c.start : c.end]) for c in cut(draft.body)}
        assert found <= whole, (mark, found - whole)
        assert len(found) == len(answer["items"]), "a passage was found twice"
        assert found == whole or "copy_behind" in answer["unavailable"], (mark, answer["unavailable"], whole - found)

    async def _search(self, mark: str) -> dict[str, Any] | None:
        answer = await self.product.call(READER, "search_lore", {"query": mark, "k": 50})
        if answer is None or answer.code is not None:
            assert answer is None or answer.code == "unavailable", answer
            await self.product.serves()
            return None
        said = ", ".join(answer.result["unavailable"]) or "nothing"
        self.answers[said] = self.answers.get(said, 0) + 1
        return answer.result
