"""Bounds of world files: what a check calls sound a load takes, and nothing in a file keeps either busy or fills memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from body_broker.errors import TooLarge
from body_broker.lore import make_draft
from body_broker.lore.model import DOCUMENT_BYTES_MAX, IMPORT_BYTES_MAX
from body_broker.text import canonical_json
from body_broker.world.files import model
from body_broker.world.files.checking import examine
from body_broker.world.files.model import FORMAT


def write(folder: Path, lore: list[dict[str, Any]]) -> Path:
    file = folder / "world.json"
    file.write_text(json.dumps({"format": FORMAT, "lore": lore}))
    return file


def test_the_greatest_and_the_least_number_of_64_bits_are_taken(tmp_path: Path) -> None:
    metadata = {"most": 2**64 - 1, "least": -(2**63)}

    world, problems = examine(write(tmp_path, [{"id": "a", "title": "A", "text": "x", "metadata": metadata}]))

    assert problems == []
    assert json.loads(canonical_json(world.lore[0].knowledge())) == metadata


def test_a_name_twice_in_a_large_object_is_found_like_in_a_small_one(tmp_path: Path) -> None:
    names = [f'"n{n}": 1' for n in range(200_000)]
    file = tmp_path / "world.json"
    file.write_text("{" + ", ".join([*names, names[-1]]) + "}")

    assert examine(file)[1] == ["world.json: has 'n199999' twice in one object"]  # two loops would take an hour


def test_the_bounds_of_texts_are_those_that_the_lore_has() -> None:
    assert (model.LORE_TEXT_MAX, model.LORE_TEXTS_MAX) == (DOCUMENT_BYTES_MAX, IMPORT_BYTES_MAX)


@pytest.mark.parametrize(
    ("name", "text", "fits"),
    [
        ("text", "é" * 50, True),
        ("text", "é" * 51, False),
        ("text", "\u0958" * 17, False),  # 51 bytes, and 102 when composed
        ("text", "e\u0301" * 50, True),  # 150 bytes, and 100 when composed
        ("file", "é" * 50, True),
        ("file", "\u0958" * 17, False),
    ],
    ids=["as long", "longer", "longer composed", "shorter composed", "file as long", "file longer composed"],
)
def test_a_text_is_sound_exactly_where_the_lore_takes_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    text: str,
    fits: bool,  # noqa: FBT001 - a table's column
) -> None:
    monkeypatch.setattr("body_broker.world.files.reading.LORE_TEXT_MAX", 100)
    monkeypatch.setattr("body_broker.lore.intake.DOCUMENT_BYTES_MAX", 100)
    (tmp_path / "a.md").write_text(text, "utf-8")

    world, problems = examine(write(tmp_path, [{"id": "a", "title": "A", name: {"text": text, "file": "a.md"}[name]}]))

    assert problems == ([] if fits else ["lore[0]: has more than 100 bytes of text"])
    if fits:
        assert make_draft("a", "A", world.lore[0].text or "").body
    else:
        with pytest.raises(TooLarge):
            make_draft("a", "A", text)


def test_texts_are_bounded_in_all_and_reading_ends_at_the_first_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("body_broker.world.files.reading.LORE_TEXTS_MAX", 2_500)
    (tmp_path / "a.md").write_text("x" * 1_000)
    entries: list[dict[str, Any]] = [{"id": str(n), "title": "A", "file": "a.md"} for n in range(4)]

    assert examine(write(tmp_path, entries[:2]))[1] == []
    world, problems = examine(write(tmp_path, [{"id": "t", "title": "T", "text": "y" * 500}, *entries]))

    assert [entry.id for entry in world.lore] == ["t", "0", "1"]
    (problem,) = problems
    assert problem.startswith("lore[3]: with it the texts of this world have more than")


def test_a_file_that_many_entries_name_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    really: Any = Path.open

    def noted(self: Path, *how: Any, **more: Any) -> Any:
        opened.append(self.name)
        return really(self, *how, **more)

    (tmp_path / "a.md").write_text("Hob")
    (tmp_path / "blank.md").write_text(" ")
    names = ["a.md", "./a.md", "blank.md"] * 50
    file = write(tmp_path, [{"id": str(n), "title": "A", "file": name} for n, name in enumerate(names)])
    monkeypatch.setattr(Path, "open", noted)

    world, problems = examine(file)

    assert (len(world.lore), len(problems)) == (100, 50)
    assert sorted(opened) == ["a.md", "blank.md", "world.json"]
