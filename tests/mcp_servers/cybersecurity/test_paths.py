"""What a caller's repo_path may mean: a registered repository or a folder in one, whatever is tried instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from body_broker.errors import NotFound
from mcp_servers.cybersecurity.paths import Repository, Target, is_name, locate, target_of

A = Repository("a", Path("/roots/a"))
INNER = Repository("inner", Path("/roots/a/vendored"))
B = Repository("b", Path("/roots/b"))
KNOWN = (A, INNER, B)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("a", Target(A)),
        ("/roots/a", Target(A)),
        ("/roots/a/", Target(A)),
        ("/roots/./a", Target(A)),
        ("a/src/core", Target(A, "src/core")),
        ("/roots/a/src with a blank/ü", Target(A, "src with a blank/ü")),
        ("/roots/a/vendored/x", Target(INNER, "x")),
    ],
)
def test_names_roots_and_folders_in_roots_are_understood(said: str, meant: Target) -> None:
    assert target_of(said, KNOWN) == meant


@pytest.mark.parametrize(
    "said",
    [
        "",
        "/",
        "c",
        "A",
        "-a",
        "--config=http://x",
        "-/a",
        "/-a",
        "/roots",
        "/roots/ab",
        "/roots/a/../b",
        "a/../../etc",
        "..",
        "a/..",
        "/roots/a%2f..%2f..%2fetc",
        "a%2fsrc",
        "/roots/a\x00",
        "a\n",
        "a\\src",
        "file:///roots/a",
        "https://host/roots/a",
        "~",
        "$HOME",
        "/etc/passwd",
        "/proc/self/root/roots/a",
        "/roots/a/" + "x" * 1_000,
    ],
)
def test_everything_else_gets_one_and_the_same_refusal(said: str) -> None:
    with pytest.raises(NotFound) as refused:
        target_of(said, KNOWN)
    with pytest.raises(NotFound) as other:
        target_of("nobody", KNOWN)
    assert (refused.value.message, refused.value.next_step) == (other.value.message, other.value.next_step)
    assert said == "" or said not in refused.value.message


@pytest.mark.parametrize("name", ["", "-x", ".x", "a b", "a/b", "a%2f", "ü", "x" * 101, "a\n"])
def test_what_is_no_name_is_not_taken_for_one(name: str) -> None:
    assert not is_name(name)


def test_a_folder_is_found_and_a_link_is_followed_nowhere(tmp_path: Path) -> None:
    root = tmp_path.resolve() / "repo"
    (root / "src").mkdir(parents=True)
    (root / "file").write_text("x")
    (tmp_path / "secret").mkdir()
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "around").symlink_to(root / "src")
    repository = Repository("repo", root)

    assert locate(Target(repository)) == root
    assert locate(Target(repository, "src")) == root / "src"
    for path in ("out", "around", "file", "gone", "out/x", "../secret"):
        with pytest.raises(NotFound):
            locate(Target(repository, path))


def test_a_root_that_became_a_link_is_not_the_root_that_was_registered(tmp_path: Path) -> None:
    root = tmp_path.resolve() / "repo"
    (tmp_path / "elsewhere").mkdir()
    root.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(NotFound):
        locate(Target(Repository("repo", root)))
