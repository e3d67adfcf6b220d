from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from body_broker.errors import BadInput, BodyBrokerError, NotFound, TooLarge
from body_broker.lore import make_draft, read_paths
from body_broker.lore.model import DOCUMENT_BYTES_MAX
from body_broker.text import is_clean


def write(folder: Path, name: str, content: bytes | str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def refusal(*paths: Path) -> BodyBrokerError:
    with pytest.raises(BodyBrokerError) as caught:
        read_paths(paths)
    assert all(str(path.parent) not in caught.value.message for path in paths), "no path is told"
    return caught.value


def test_a_text_file_is_stored_as_it_is_under_its_name(tmp_path: Path) -> None:
    (draft,) = read_paths([write(tmp_path, "the_drowned-charter.txt", "Nobody rows.\n")])

    assert (draft.origin, draft.title, draft.body, draft.form) == (
        "the_drowned-charter.txt",
        "The drowned charter",
        "Nobody rows.\n",
        "text",
    )


def test_a_markdown_file_has_the_title_of_its_first_heading(tmp_path: Path) -> None:
    (draft,) = read_paths([write(tmp_path, "quay.md", "# Ashmere Quay\n\nThe harbour.")])

    assert (draft.title, draft.form) == ("Ashmere Quay", "markdown")


def test_a_given_title_wins_and_fits_one_document_only(tmp_path: Path) -> None:
    one, two = write(tmp_path, "a.txt", "One."), write(tmp_path, "b.txt", "Two.")

    assert read_paths([one], title="The  first\n").pop().title == "The first"
    with pytest.raises(BadInput, match="more than one document"):
        read_paths([one, two], title="Both")


def test_line_ends_marks_and_invisible_characters_are_normalised_before_offsets_count(tmp_path: Path) -> None:
    (draft,) = read_paths([write(tmp_path, "a.txt", "\ufeffOne\r\ntwo\rthr\u200bee\x07 cafe\u0301\n".encode())])

    assert draft.body == "One\ntwo\nthree café\n"


@given(st.text(min_size=1, max_size=200))
def test_whatever_is_stored_is_clean_and_stays_as_it_is_when_stored_again(body: str) -> None:
    try:
        first = make_draft("a", "A", body)
    except BadInput:
        return
    assert is_clean(first.body)
    assert make_draft("a", "A", first.body).body == first.body


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "a.txt holds no text"),
        (b" \n\t\n", "a.txt holds no text"),
        (b"PK\x03\x04\x00\x00text", "a.txt is binary"),
        (b"caf\xe9", r"a.txt is not UTF-8 text \(byte 3\)"),
        ("Sixteen".encode("utf-16"), r"a.txt is not UTF-8 text \(byte 0\)"),
    ],
)
def test_what_is_no_text_is_refused_by_name(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        read_paths([write(tmp_path, "a.txt", content)])


def test_a_fifty_megabyte_file_is_refused_by_name_without_being_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "huge.txt"
    with file.open("wb") as open_file:
        open_file.truncate(50 * 1024 * 1024)

    error = refusal(file)

    assert isinstance(error, TooLarge)
    assert error.message.startswith("huge.txt has more than 8 MiB")


def test_a_document_may_have_exactly_its_limit() -> None:
    assert make_draft("a", "A", "x" * DOCUMENT_BYTES_MAX)
    with pytest.raises(TooLarge):
        make_draft("a", "A", "x" * (DOCUMENT_BYTES_MAX - 1) + "é")


def test_other_kinds_missing_files_and_what_is_no_file_are_refused_by_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")

    assert "picture.png is not a kind of file" in refusal(write(tmp_path, "picture.png", "x")).message
    assert "pipe.txt is not a file" in refusal(tmp_path / "pipe.txt").message
    assert isinstance(refusal(tmp_path / "gone.txt"), NotFound)
    assert "no file" in refusal(tmp_path / "empty").message


def test_a_folder_is_read_whole_in_order_without_links_and_hidden_files(tmp_path: Path) -> None:
    write(tmp_path, "lore/b.txt", "Second.")
    write(tmp_path, "lore/a/z.md", "Third, deeper.")
    write(tmp_path, "lore/.hidden.txt", "No.")
    write(tmp_path, "lore/.git/x.txt", "No.")
    (tmp_path / "lore" / "link.txt").symlink_to(write(tmp_path, "elsewhere.txt", "No."))

    assert [draft.origin for draft in read_paths([tmp_path / "lore"])] == ["b.txt", "a/z.md"]


def test_one_bad_file_in_a_folder_refuses_all_of_it(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "Good.")
    write(tmp_path, "b.txt", b"\xff\xfe")

    assert "b.txt" in refusal(tmp_path).message


def test_json_lines_give_a_document_a_line_and_keep_the_other_fields(tmp_path: Path) -> None:
    file = write(tmp_path, "l.jsonl", '{"title":"A","text":"One.","spoiler":2}\n\n{"title":"A","id":7,"text":"Two."}\n')

    first, second = read_paths([file])

    assert (first.origin, first.title, first.body, first.knowledge) == ("l.jsonl#A", "A", "One.", {"spoiler": 2})
    assert (second.origin, second.knowledge) == ("l.jsonl#7", {})


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{not json", "is not JSON"),
        ('["A", "B"]', "is not a JSON object"),
        ('{"title":"A"}', "needs a title and a text"),
        ('{"title":"A","text":3}', "needs a title and a text"),
        ('{"title":"A","text":"  "}', "holds no text"),
        ('{"title":"A","text":"x","id":[1]}', "id that is neither"),
        ('{"title":"First","text":"x"}', "has the title or id of line 1"),
        ('{"title":"A","text":"\\ud800"}', "is not JSON"),
        ('{"title":"A","text":"x","notes":"' + "n" * 5_000 + '"}', "more than 4096 bytes"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    file = write(tmp_path, "l.jsonl", '{"title":"First","text":"Good."}\n\n' + line)

    message = refusal(file).message

    assert "l.jsonl line 3" in message
    assert says in message


@pytest.mark.parametrize(
    "known",
    [
        {"spoiler_level": "high"},
        {"spoiler_level": -1},
        {"spoiler_level": True},
        {"known_by": "mira"},
        {"known_by": [1]},
        {"known_by": []},
    ],
)
def test_whom_it_may_be_told_must_be_readable(known: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=r"spoiler_level|known_by"):
        make_draft("a.txt", "A", "Text.", "text", known)


def test_metadata_is_cleaned_like_any_text_and_a_hidden_name_is_refused() -> None:
    draft = make_draft(
        "a.txt", "A", "Text.", "text", {"region": "no\0rth\u202e", "tags": ["s\0ea"], "more": {"x": "\0"}}
    )

    assert draft.knowledge == {"region": "north", "tags": ["sea"], "more": {"x": ""}}
    with pytest.raises(BadInput):
        make_draft("a.txt", "A", "Text.", "text", {"re\u202egion": 1})


def test_metadata_of_an_import_stands_behind_a_documents_own(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"title": "A", "text": "Text.", "region": "north"}', "utf-8")

    (draft,) = read_paths([tmp_path / "a.jsonl"], metadata={"region": "south", "spoiler_level": 3})

    assert draft.knowledge == {"region": "north", "spoiler_level": 3}
