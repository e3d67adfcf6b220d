"""The rag server's rows through the gate, as silver and as others; what writes is tested as far as a hub without approvals lets it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from body_broker.calls import Arguments, Call, Caller, PromptText, ResourceText, Result, Room, Tool
from body_broker.errors import ApprovalPending, BadInput, Denied, NotFound
from body_broker.lore import make_draft
from body_broker.lore.model import Draft, Intake
from body_broker.settings import Settings
from body_broker.work.model import Origin
from mcp_servers.hub.requests import Answer, Request
from mcp_servers.hub.rooms import ROOMS
from mcp_servers.hub.runtime import Runtime, open_runtime
from mcp_servers.hub.wire import tool_result
from mcp_servers.hub.worker import working
from mcp_servers.rag.models import DeleteDocument, IngestDocuments, Reindex
from mcp_servers.rag.server import delete_document, ingest_documents, reindex
from mcp_servers.rag.services import Services

SILVER = Caller(chain=("tier:silver",), roles={}, session="s-silver")
ANNA = Caller(chain=("person:anna",), roles={"person:anna": frozenset({"engineer"})}, session="s-anna")


WRITES = {
    "ingest": (IngestDocuments, ingest_documents),
    "delete": (DeleteDocument, delete_document),
    "reindex": (Reindex, reindex),
}


class Write(Arguments):
    """What an approved call would run."""

    write: str
    given: dict[str, Any]


class Written(Result):
    """What came of it."""

    said: Any


async def fx_write_lore(arguments: Write, call: Call, handed: dict[str, Services]) -> Written:
    """Runs a row's function with a call of the gate's own making: nobody can approve the row itself yet."""
    model, run = WRITES[arguments.write]
    done: Result = await run(model.model_validate(arguments.given), call, handed["rag"])  # pyright: ignore[reportArgumentType] - each with its own model
    assert done.text() is None or isinstance(done.text(), str)
    return Written(said=done.model_dump(mode="json"))


FIXTURE = Room(
    name="fixture",
    title="Fixture",
    description="Writes as if approved.",
    tools=(
        Tool(
            name="fx_write_lore",
            group="own",
            run=fx_write_lore,
            title="Write",
            description="Writes as if approved.",
            effect="repeatable",
        ),
    ),
)


@pytest.fixture
async def hub(
    database_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Runtime]:
    """A hub's parts with a worker, on the test's own stores."""
    monkeypatch.setattr("mcp_servers.hub.limits._TIMEOUT_S", 60.0)  # a busy machine may not run Valkey for a second
    settings = Settings.model_validate(
        {"database_url": database_url, "redis_url": redis_url, "secret_key": "k" * 40, "data_dir": tmp_path}
        | {"embeddings": "off", "tools": "all", "approval_wait_s": 0.05}  # tests of their own have vectors
    )
    handed: dict[str, Services] = {}
    extra: dict[str, object] = {"fixture": handed}
    async with open_runtime(settings, (*ROOMS, FIXTURE), extra_services=extra) as runtime, working(runtime):
        handed["rag"] = runtime.services.rag
        yield runtime


async def ask(
    hub: Runtime, name: str, arguments: dict[str, Any], *, caller: Caller = SILVER, kind: Any = "tool"
) -> Answer:
    return await hub.gate.run(Request(name=name, kind=kind, arguments=arguments, caller=caller))


async def tell(hub: Runtime, name: str, arguments: dict[str, Any], *, caller: Caller = SILVER) -> Any:
    """The structured result, as it goes over the wire."""
    return tool_result(await ask(hub, name, arguments, caller=caller))["structuredContent"]


async def bring(hub: Runtime, *drafts: Draft, index: str = "shared", canon: bool = True) -> list[str]:
    origin = Origin(chain=("operator:ann",), session="operator:ann")
    taken = await hub.services.rag.lore.importing.take(drafts, index=index, canon=canon, origin=origin)
    await hub.services.rag.follow(taken)
    return [document.doc_id for document in taken.documents]


def text(title: str, body: str) -> Draft:
    return make_draft(f"{title}.txt", title, body)


async def test_search_answers_with_cited_content(hub: Runtime) -> None:
    body = "Osric keeps a lantern for each of the drowned. He never says goodbye."
    (doc_id,) = await bring(hub, text("The Ferryman", body))

    found = await tell(hub, "search_lore", {"query": "who keeps lanterns?", "k": 1})

    # The seeds' contract: [r["content"] for r in results].
    assert [r["content"] for r in found["items"]] == [body]
    assert found["items"][0] | {"score": 0} == {
        "doc_id": doc_id,
        "title": "The Ferryman",
        "heading": "",
        "start": 0,
        "end": len(body),
        "source": "canon",
        "content": body,
        "score": 0,
    }
    assert (found["next_cursor"], found["unavailable"], found["reason"]) == (None, ["vectors"], None)


async def test_every_answer_reads_as_text_with_its_citations(hub: Runtime) -> None:
    (doc_id,) = await bring(hub, text("The Ferryman", "Osric keeps a lantern."))

    for name, arguments in (("search_lore", {"query": "lantern"}), ("retrieve_context", {"topic": "lantern"})):
        said = tool_result(await ask(hub, name, arguments))["content"][0]["text"]
        assert f"The Ferryman [{doc_id} 0-22]\nOsric keeps a lantern." in said
        assert "search by meaning is unavailable" in said


async def test_only_outside_passages_make_an_answer_outside(hub: Runtime) -> None:
    await bring(hub, text("Canon", "The lantern is red."))
    (hearsay,) = await bring(hub, text("Hearsay", "They say the bell is cracked."), canon=False)

    assert not (await ask(hub, "search_lore", {"query": "lantern"})).outside
    assert not (await ask(hub, "retrieve_context", {"topic": "lantern"})).outside
    assert (await ask(hub, "search_lore", {"query": "lantern bell"})).outside
    assert (await ask(hub, "retrieve_context", {"topic": "bell"})).outside
    assert (await ask(hub, "get_document", {"id": hearsay})).outside
    assert (await ask(hub, "lore_document", {"id": hearsay}, kind="resource")).outside
    assert (await ask(hub, "brief_on", {"subject": "the bell"}, kind="prompt")).outside


async def test_filters_narrow_search_and_context_to_whom_it_may_be_told(hub: Runtime) -> None:
    known: dict[str, dict[str, Any]] = {
        "Plain": {"tags": ["sea"], "region": "north"},
        "Late": {"spoiler_level": 4, "region": "north"},
        "Secret": {"known_by": ["mira"]},
    }
    await bring(
        hub, *[make_draft(f"{name}.txt", name, f"A lantern, {name}.", "text", meta) for name, meta in known.items()]
    )

    async def titles(name: str, **filters: Any) -> set[str]:
        key = "query" if name == "search_lore" else "topic"
        told = await tell(hub, name, {key: "lantern", "filters": filters})
        return {found["title"] for found in told["items" if name == "search_lore" else "citations"]}

    for name in ("search_lore", "retrieve_context"):
        assert await titles(name, spoiler_max=3) == {"Plain", "Secret"}
        assert await titles(name, spoiler_max=3, known_to="osric") == {"Plain"}
        assert await titles(name, fields={"region": "north"}) == {"Plain", "Late"}
        assert await titles(name, fields={"tags": "sea"}) == {"Plain"}
        assert await titles(name, source="outside") == set()


async def test_a_cursor_belongs_to_its_filters(hub: Runtime) -> None:
    await bring(hub, *[text(f"Lantern {n}", f"A lantern, {n}.") for n in range(4)])
    first = await tell(hub, "search_lore", {"query": "lantern", "k": 2, "filters": {"source": "canon"}})

    with pytest.raises(BadInput):
        await tell(hub, "search_lore", {"query": "lantern", "k": 2, "cursor": first["next_cursor"]})


async def test_pages_follow_their_cursor_and_a_cursor_serves_its_owner_only(hub: Runtime) -> None:
    await bring(hub, *(text(f"Step {n}", f"A lantern on step {n}.") for n in range(5)))

    seen: list[str] = []
    cursor = None
    while not seen or cursor:
        page = await tell(hub, "search_lore", {"query": "lantern", "k": 2, "cursor": cursor})
        seen += [item["title"] for item in page["items"]]
        cursor = page["next_cursor"] or None
        if cursor:
            with pytest.raises(BadInput):
                await ask(hub, "search_lore", {"query": "lantern", "k": 2, "cursor": cursor}, caller=ANNA)
            with pytest.raises(BadInput):
                await ask(hub, "search_lore", {"query": "step", "k": 2, "cursor": cursor})

    assert sorted(seen) == [f"Step {n}" for n in range(5)]


async def test_a_persona_is_answered_from_its_own_lore(hub: Runtime) -> None:
    await bring(hub, text("Quay", "The lantern is red."))
    await bring(hub, text("Osric", "My lantern is blue."), index="persona:osric")

    def titles(page: Any) -> list[str]:
        return [item["title"] for item in page["items"]]

    assert titles(await tell(hub, "search_lore", {"query": "lantern", "persona": "osric"})) == ["Osric"]
    assert titles(await tell(hub, "search_lore", {"query": "lantern", "persona": "hale"})) == ["Quay"]
    context = await tell(hub, "retrieve_context", {"topic": "lantern", "persona": "osric"})
    assert context["passages"] == ["My lantern is blue."]
    assert [c["title"] for c in context["citations"]] == ["Osric"]
    assert (await tell(hub, "list_indices", {}))["items"] == [
        {"name": "lore-osric", "documents": 1, "passages": 1, "outside": 0},
        {"name": "lore-shared", "documents": 1, "passages": 1, "outside": 0},
    ]


async def test_a_document_is_read_around_a_citation_and_as_a_resource(hub: Runtime) -> None:
    body = "".join(f"{n:06d} " for n in range(40_000))
    (doc_id,) = await bring(hub, text("Numbers", body))

    part = await tell(hub, "get_document", {"id": doc_id, "start": 700, "end": 1_400})
    first = await tell(hub, "get_document", {"id": doc_id})
    whole = (await ask(hub, "lore_document", {"id": doc_id}, kind="resource")).result

    assert part["content"] == body[700:1_400]
    assert (first["next_start"], first["characters"]) == (20_000, len(body))
    assert isinstance(whole, ResourceText)
    assert whole.content.startswith(body[:200_000])
    assert whole.content.endswith("[Cut at 200000 of 280000 characters: get_document reads on.]")
    with pytest.raises(NotFound):
        await ask(hub, "get_document", {"id": "doc_nobody"})


async def test_a_briefing_holds_cited_passages_or_says_that_there_are_none(hub: Runtime) -> None:
    await bring(hub, text("The Ferryman", "Osric keeps a lantern for each of the drowned."))

    found = (await ask(hub, "brief_on", {"subject": "Osric"}, kind="prompt")).result
    nothing = (await ask(hub, "brief_on", {"subject": "Zelda"}, kind="prompt")).result

    assert isinstance(found, PromptText)
    assert isinstance(nothing, PromptText)
    assert "[1] The Ferryman [doc_" in found.content
    assert "no passage about it" in nothing.content


async def test_figures_are_looked_up(hub: Runtime) -> None:
    for key, value in (("spawn.night.rate", 1.5), ("spawn.table", ["wolf"] * 400), ("zone.quay.rating", "M")):
        await hub.services.rag.tuning.set(key, value, by="operator:ann")

    assert await tell(hub, "get_config", {"key": "spawn.night.rate"}) == {
        "key": "spawn.night.rate",
        "value": 1.5,
        "version": 1,
    }
    page = await tell(hub, "list_config", {"prefix": "spawn.", "limit": 1})
    rest = await tell(hub, "list_config", {"prefix": "spawn.", "limit": 1, "cursor": page["next_cursor"]})
    assert page["items"] == [{"key": "spawn.night.rate", "version": 1, "value": 1.5, "omitted": False}]
    assert rest == {
        "items": [{"key": "spawn.table", "version": 1, "value": None, "omitted": True}],
        "next_cursor": None,
    }
    with pytest.raises(NotFound):
        await ask(hub, "get_config", {"key": "spawn.day.rate"})


@pytest.mark.parametrize(
    ("name", "arguments", "answer"),
    [
        (
            "ingest_documents",
            {"documents": [{"title": "x", "text": "The ferry never sank."}], "reason": "I concluded it"},
            ApprovalPending,
        ),
        # Nobody is asked for what could only fail.
        ("delete_document", {"id": "doc_x"}, NotFound),
        ("reindex", {}, NotFound),
    ],
)
async def test_writes_are_refused_to_silver_and_need_an_approval_of_others(
    hub: Runtime, name: str, arguments: dict[str, Any], answer: type[Exception]
) -> None:
    with pytest.raises(Denied) as denied:
        await ask(hub, name, arguments)
    assert denied.value.details["rules"]
    with pytest.raises(answer):
        await ask(hub, name, arguments, caller=ANNA)


async def write(hub: Runtime, name: str, given: dict[str, Any]) -> Any:
    return (await tell(hub, "fx_write_lore", {"write": name, "given": given}, caller=ANNA))["said"]


async def test_what_an_agent_ingests_is_outside_and_found_once_its_job_is_done(hub: Runtime) -> None:
    given = {
        "documents": [{"title": "Notes", "text": "# Osric\n\nThe ferry never sank.", "format": "markdown"}],
    }

    taken = await write(hub, "ingest", given)
    job = await hub.services.rag.follow(Intake(taken["job_id"], []))
    again = await write(hub, "ingest", given)

    (item,) = (await tell(hub, "search_lore", {"query": "ferry"}))["items"]
    assert (item["title"], item["heading"], item["source"]) == ("Notes", "Osric", "outside")
    assert [d["status"] for d in taken["documents"]] == ["accepted"]
    assert (again["job_id"], again["documents"][0]) == (None, taken["documents"][0] | {"status": "unchanged"})
    assert job.documents == 1
    assert (await tell(hub, "get_job", {"id": taken["job_id"]}, caller=ANNA))["state"] == "succeeded"


async def test_an_agents_changes_stand_beside_the_audit_record_that_allowed_them(hub: Runtime) -> None:
    taken = await write(hub, "ingest", {"documents": [{"title": "Notes", "text": "The ferry."}], "persona": "osric"})
    await hub.services.rag.follow(Intake(taken["job_id"], []))
    job_id = (await write(hub, "reindex", {"index": "lore-osric"}))["job_id"]
    await hub.services.rag.follow(Intake(job_id, []))
    doc_id = taken["documents"][0]["doc_id"]
    assert await write(hub, "delete", {"id": doc_id}) == {"doc_id": doc_id, "deleted": True}
    assert await write(hub, "delete", {"id": doc_id}) == {"doc_id": doc_id, "deleted": False}

    rows = await hub.stores.pool.fetch(
        "SELECT e.effect, e.by, a.body FROM lore_effect e"
        " JOIN audit_record a ON a.writer = e.receipt_writer AND a.seq = e.receipt_sequence ORDER BY e.id"
    )

    assert [(row["effect"], row["by"]) for row in rows] == [
        ("imported", "person:anna"),
        ("imported", "person:anna"),
        ("deleted", "person:anna"),
    ]
    assert {json.loads(row["body"])["action"] for row in rows} == {"fx_write_lore"}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("search_lore", {"query": ""}),
        ("search_lore", {"query": "x" * 2_001}),
        ("search_lore", {"query": "lantern " * 12_500}),
        ("search_lore", {"query": "x", "filters": {"spoiler_max": 101}}),
        ("search_lore", {"query": "x", "filters": {"colour": "red"}}),
        ("search_lore", {"query": "x", "filters": {"fields": {"a": [1]}}}),
        ("search_lore", {"query": "x", "k": 51}),
        ("search_lore", {"query": "x", "k": "3"}),
        ("search_lore", {"query": "x", "index": "shared"}),
        ("search_lore", {"query": "x", "persona": "../shared"}),
        ("search_lore", {"query": "x", "cursor": "forged"}),
        ("retrieve_context", {"topic": "x", "token_budget": 50}),
        ("get_document", {"id": "doc_x", "start": -1}),
        ("list_config", {"limit": 0}),
    ],
)
async def test_arguments_that_do_not_fit_are_refused(hub: Runtime, name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        await ask(hub, name, arguments)


async def test_an_operator_imports_files_and_sees_how_far_it_is(hub: Runtime, tmp_path: Path) -> None:
    (tmp_path / "lore").mkdir()
    for n in range(3):
        (tmp_path / "lore" / f"{n}.md").write_text(f"# Step {n}\n\n" + f"A lantern on step {n}. " * 200)
    seen: list[tuple[float, float | None]] = []

    async def progress(done: float, total: float | None = None, message: str | None = None) -> None:
        assert message
        seen.append((done, total))

    done = await hub.services.rag.import_paths(
        [tmp_path / "lore"], index="lore-osric", by="operator:ann", progress=progress
    )
    again = await hub.services.rag.import_paths([tmp_path / "lore"], index="persona:osric", by="operator:ann")

    assert (done.documents, done.unchanged) == (3, 0)
    assert seen[-1] == (done.passages, done.passages)
    assert (again.job_id, again.documents, again.unchanged) == (None, 0, 3)
