"""Owns the main jobs that people's clients do, each as one check over any driver, and what a client gets where it cannot do one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Literal
from uuid import uuid4

import pytest

from body_broker.lore.model import document_uri
from tests.clients.doors import Door
from tests.clients.drivers import NEW, OLD, Driver, Kind, Refused
from tests.clients.rows import STEPS

FERRY = "Osric keeps a lantern for each of the drowned."
TITLE = "The Ferryman"

CLIENTS = [
    Kind(name, revision, transport)
    for name in ("sdk", "fastmcp", "inspector")
    for transport in ("http", "stdio")
    for revision in (NEW, OLD)
]

Connect = Callable[[], AbstractAsyncContextManager[Driver]]
Job = Literal["progress", "cancel", "complete", "listen"]
_UNSUPPORTED: dict[Job, str] = {"complete": "prompts/complete", "listen": "resources/subscribe"}


@dataclass(frozen=True)
class Instead:
    """What a client gets in place of a job: the words that its user reads ("" where nothing is refused), and why it is so."""

    said: str
    why: str


_NO_OPTION = "its command line has no such method"
_NO_SUBSCRIBING = Instead(
    "Method not found", "2025-11-25 subscribes for a session, and this hub keeps none: any hub must be able to answer"
)
_INSTEAD: dict[tuple[Job, str, str, str], Instead] = {
    **{
        (job, "inspector", transport, revision): Instead(f"Unsupported method: {method}", _NO_OPTION)
        for job, method in _UNSUPPORTED.items()
        for transport in ("http", "stdio")
        for revision in (NEW, OLD)
    },
    **{
        ("progress", "inspector", transport, revision): Instead("", "its command line prints the result alone")
        for transport in ("http", "stdio")
        for revision in (NEW, OLD)
    },
    **{
        ("listen", name, transport, OLD): _NO_SUBSCRIBING
        for name in ("sdk", "fastmcp")
        for transport in ("http", "stdio")
    },
    **{
        ("cancel", name, "http", OLD): Instead(
            "",
            "it sends a notification, which a hub without sessions cannot tie to a call: the call ends when the client leaves",
        )
        for name in ("sdk", "fastmcp")
    },
}


def instead(job: Job, kind: Kind) -> Instead | None:
    """What this client gets in place of the job; None where it does it."""
    return _INSTEAD.get((job, kind.name, kind.transport, kind.revision))


def refusing(job: Job, kind: Kind) -> AbstractContextManager[object]:
    """Around a job: where the table says that the client is refused, it must be, in those words."""
    found = instead(job, kind)
    return pytest.raises(Refused, match=found.said) if found else contextlib.nullcontext()


async def finds_lore_with_its_citation(client: Driver, door: Door) -> None:
    doc_id, _ = await door.bring(TITLE, FERRY)
    said = await client.call("search_lore", {"query": "who keeps lanterns for the drowned?", "k": 1})
    assert not said.error
    assert f"{TITLE} [{doc_id} 0-{len(FERRY)}]\n{FERRY}" in said.text
    (item,) = said.data["items"]
    assert (item["doc_id"], item["start"], item["end"], item["content"]) == (doc_id, 0, len(FERRY), FERRY)


async def is_refused_by_a_rule_that_is_named(client: Driver, door: Door) -> None:
    known = await door.audited("hub_metrics", "refusal", "denied")
    # One that follows tasks would wait with the request; tests/mcp_servers/hub/test_tasks.py has one that does.
    if not client.follows_tasks:
        said = await client.call("ingest_documents", {"documents": [{"title": "x", "text": "The ferry never sank."}]})
        assert said.error
        assert "approval_pending: People were asked for ingest_documents" in said.text
        assert said.data["error"]["rules"] == ["writes-need-approval"]
    with pytest.raises(Refused, match="denied: hub_metrics is not allowed here by rule default-deny:admin_read"):
        await client.read("hub://metrics")
    await door.comes_on_the_audit("hub_metrics", "refusal", "denied", than=known)


async def follows_a_job(client: Driver, door: Door) -> None:
    _, job_id = await door.bring(f"Log {uuid4()}", f"The ferry sailed. {uuid4()}")
    said = await client.call("get_job", {"id": job_id})
    assert (said.data["state"], said.data["result"]["documents"]) == ("succeeded", 1)
    assert (said.data["progress"]["done"], said.data["progress"]["total"]) == (1, 1)
    assert job_id is not None
    assert job_id in said.text
    missing = await client.call("get_job", {"id": "job_of_somebody_else"})
    assert missing.error
    assert missing.text.startswith("not_found: ")


async def reads_a_resource_and_fills_a_prompt(client: Driver, door: Door) -> None:
    doc_id, _ = await door.bring(TITLE, FERRY)
    assert await client.read(document_uri(doc_id)) == FERRY
    said = await client.fill("brief_on", {"subject": "Osric"})
    assert "Brief me on Osric" in said
    assert f"{TITLE} [{doc_id} 0-{len(FERRY)}]\n{FERRY}" in said
    with pytest.raises(Refused, match=r"bad_input: .*subject"):
        await client.fill("brief_on", {"persona": "osric"})


async def completes_a_prompt_s_argument(client: Driver, door: Door, kind: Kind) -> None:
    await door.bring(TITLE, FERRY)
    with refusing("complete", kind):
        assert await client.complete("brief_on", "subject", "the f") == [TITLE]
    with refusing("complete", kind):
        assert await client.complete("what_changed", "since", "30") == ["30 days"]


async def hears_progress_and_cancels(connect: Connect, door: Door, kind: Kind) -> None:
    """A client that hears how far a call is, then tells another to stop, then leaves: at the latest then the call has ended."""
    heard: list[tuple[float, float | None, str | None]] = []
    began, ended = ("cl_linger", "decision", "allow"), ("cl_linger", "outcome", "cancelled")
    known = await door.audited(*began), await door.audited(*ended)

    async def listen(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, total, message))

    async with connect() as client:
        said = await client.call("cl_count", {}, listen)
        assert said.data == {"steps": STEPS}
        steps = [(step, STEPS, f"step {step}") for step in range(1, STEPS + 1)]
        assert heard == ([] if instead("progress", kind) else steps)

        calling = asyncio.create_task(client.call("cl_linger", {}, listen))
        await door.comes_on_the_audit(*began, than=known[0])
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        if instead("cancel", kind):
            assert not (await client.call("whoami", {})).error
            assert await door.audited(*ended) == known[1]
        else:
            await door.comes_on_the_audit(*ended, than=known[1])
    await door.comes_on_the_audit(*ended, than=known[1])


async def hears_of_a_change(client: Driver, door: Door, kind: Kind) -> None:
    title, told = f"Log {uuid4()}", f"The ferry sank. {uuid4()}"
    doc_id, _ = await door.bring(title, "The ferry sailed.")
    uri = document_uri(doc_id)
    with refusing("listen", kind):
        async with client.listening(uri) as next_uri:
            await door.bring(title, told)
            async with asyncio.timeout(60):
                assert await next_uri() == uri
            assert await client.read(uri) == told
