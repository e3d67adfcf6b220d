"""Names found by what was typed of them: the canon first, the beginning before the middle, and no sign has a meaning of its own."""

from __future__ import annotations

from body_broker.lore import make_draft, names
from body_broker.lore.documents import Effect
from body_broker.lore.names import Name
from tests.body_broker.lore.conftest import Bench, text

QUAY = "# Ashmere Quay\n\n## The Lantern Keeper\n\nShe lights them.\n\n## Osric\n\n" + "He rows. " * 300


async def test_titles_and_headings_are_found_the_canon_s_first_then_what_begins_with_it(bench: Bench) -> None:
    await bench.bring(make_draft("quay.md", "Ashmere", QUAY, "markdown"), text("The Osric Song", "La."))
    await bench.bring(text("Osric lies", "They say."), text("Osric", "They say."), canon=False)

    assert await names.subjects(bench.pool, "shared", "oSR", limit=10) == [
        Name("Osric", canon=True),
        Name("The Osric Song", canon=True),
        Name("Osric lies", canon=False),
    ]
    # For less than two letters no passage is looked at: titles alone.
    assert [name.text for name in await names.subjects(bench.pool, "shared", "", limit=2)] == [
        "Ashmere",
        "The Osric Song",
    ]
    assert await names.subjects(bench.pool, "persona:osric", "", limit=10) == []


async def test_signs_of_patterns_mean_only_themselves(bench: Bench) -> None:
    await bench.bring(text("100% true_story", "x"), text("1000 trueXstory", "y"))
    for typed in ("%", "_", "0% t"):
        assert [n.text for n in await names.subjects(bench.pool, "shared", typed, limit=10)] == ["100% true_story"]


async def test_personas_are_those_with_lore_of_their_own(bench: Bench) -> None:
    (only,) = await bench.bring(text("A", "a"), index="persona:osmund")
    await bench.bring(text("A", "a"), index="persona:osric")
    await bench.bring(text("A", "a"), index="persona:hale")
    await bench.lore.delete_document(only, _effect())
    assert await names.personas(bench.pool, "Os", limit=10) == ["osric"]
    assert await names.personas(bench.pool, "", limit=10) == ["hale", "osric"]
    assert await names.personas(bench.pool, "s", limit=10) == []


async def test_documents_are_found_by_id_and_by_title(bench: Bench) -> None:
    quay, ferry = await bench.bring(text("Ashmere Quay", "a"), text("The Ferry", "b"))
    assert await names.documents(bench.pool, ferry[:12], limit=10) == [ferry]
    assert await names.documents(bench.pool, "quay", limit=10) == [quay]
    assert await names.documents(bench.pool, "doc_", limit=10) == [quay, ferry]
    assert await names.documents(bench.pool, "doc_", limit=1) == [quay]


def _effect() -> Effect:
    return Effect("person:ann", None)
