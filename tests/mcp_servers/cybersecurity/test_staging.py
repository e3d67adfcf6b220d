"""The copy that scanners see: regular files alone, in bounds, counted where left out, gone afterwards whatever happens."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from body_broker.errors import Unavailable
from mcp_servers.cybersecurity.staging import Bounds, staged, sweep
from tests.mcp_servers.cybersecurity.repositories import write
from tests.waiting import wait_until_sync


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    return tmp_path / "staging"


def copied(source: Path) -> dict[str, bytes]:
    return {str(f.relative_to(source)): f.read_bytes() for f in sorted(source.rglob("*")) if f.is_file()}


def test_regular_files_are_copied_and_the_copy_is_private_and_gone_afterwards(tmp_path: Path, staging: Path) -> None:
    repo = write(tmp_path / "repo", {"a.py": "1", "sub/b.py": "2", "sub/empty/c": ""})

    with staged(repo, "", staging) as stage:
        assert copied(stage.source) == {"a.py": b"1", "sub/b.py": b"2", "sub/empty/c": b""}
        assert (stage.files, stage.bytes, dict(stage.skipped), stage.cut) == (3, 2, {}, False)
        assert stage.source.parent.stat().st_mode & 0o777 == 0o700
        assert (stage.source / "a.py").stat().st_mode & 0o777 == 0o600
        place = stage.source.parent
    assert not place.exists()


def test_links_out_pipes_sockets_and_the_git_folder_are_left_out_and_counted(tmp_path: Path, staging: Path) -> None:
    git: dict[str, str | bytes] = {
        ".git/HEAD": "ref: x",
        ".git/objects/x": "",
        ".git/config": "[core]\nfsmonitor=./x\n",
    }
    repo = write(tmp_path / "repo", {"a.py": "1", **git})
    write(tmp_path, {"outside.py": "secret", "folder/x.py": "secret"})
    (repo / "link.py").symlink_to(tmp_path / "outside.py")
    (repo / "up.py").symlink_to("../outside.py")
    (repo / "linked").symlink_to(tmp_path / "folder")
    (repo / "dangling").symlink_to("nowhere")
    os.mkfifo(repo / "pipe")
    with socket.socket(socket.AF_UNIX) as door:
        here = Path.cwd()
        os.chdir(repo)
        door.bind("socket")
        os.chdir(here)
        with staged(repo, "", staging) as stage:
            assert copied(stage.source) == {"a.py": b"1"}
            assert dict(stage.skipped) == {"git": 1, "link": 4, "special": 2}
            assert not stage.cut


def test_a_folder_called_git_that_git_did_not_make_is_copied_under_another_name(tmp_path: Path, staging: Path) -> None:
    files: dict[str, str | bytes] = {
        "lib/.git/HEAD": "",
        "lib/.git/objects/x": "",
        "lib/.git/e.py": "1",
        "sub/.git": "gitdir: ../x",
    }
    at_root: dict[str, str | bytes] = {".git/e.py": "1"}
    for name, there in (("below", files), ("root", at_root)):
        with staged(write(tmp_path / name, there), "", staging) as stage:
            assert {stage.original(path) for path in copied(stage.source)} == set(there)
            assert not list(stage.source.rglob(".git"))
            assert dict(stage.skipped) == {}


def test_a_link_to_a_file_of_the_repository_is_that_file_under_the_link_s_name(tmp_path: Path, staging: Path) -> None:
    repo = write(tmp_path / "repo", {"payload.txt": "evil", "sub/x": ""})
    (repo / "app.py").symlink_to("payload.txt")
    (repo / "sub" / "two.py").symlink_to("../one.py")
    (repo / "one.py").symlink_to("folder/../../payload.txt")
    (repo / "folder").symlink_to("sub/deep")
    (repo / "sub" / "deep").mkdir()
    (repo / "whole.py").symlink_to(repo / "payload.txt")

    with staged(repo, "", staging) as stage:
        there = copied(stage.source)
        assert {name for name, content in there.items() if content == b"evil"} == {
            *("payload.txt", "app.py", "one.py", "sub/two.py", "whole.py")
        }
        assert (dict(stage.skipped), stage.cut) == ({"link": 1}, False)
    with staged(repo, "sub", staging) as stage:
        assert copied(stage.source)["two.py"] == b"evil"


def test_links_that_lead_in_a_ring_make_the_copy_incomplete(tmp_path: Path, staging: Path) -> None:
    repo = write(tmp_path / "repo", {"a": ""})
    (repo / "b.py").symlink_to("c.py")
    (repo / "c.py").symlink_to("b.py")
    with staged(repo, "", staging) as stage:
        assert (dict(stage.skipped), stage.cut) == ({"link_not_followed": 2}, True)


def test_two_names_that_would_be_one_keep_their_endings(tmp_path: Path, staging: Path) -> None:
    repo = write(tmp_path / "repo", {"e\n.py": "evil"})
    with staged(repo, "", staging) as stage:
        (plain,) = copied(stage.source)
    for decoy in (plain, f"1~{plain}"):
        write(repo, {decoy: "x"})

    with staged(repo, "", staging) as stage:
        there = copied(stage.source)
        assert sorted(there.values()) == [b"evil", b"x", b"x"]
        assert all(name.endswith(".py") for name in there)
        assert sorted(stage.original(name) for name in there) == sorted(["e\\u000a.py", plain, f"1~{plain}"])


def test_names_too_long_for_a_copy_are_cut_and_paths_too_long_for_a_scanner_are_counted(
    tmp_path: Path, staging: Path
) -> None:
    repo = write(tmp_path / "repo", {"a.py": "1", "\x01" + "\N{GRINNING FACE}" * 61 + ".py": "2"})
    at = os.open(repo, os.O_RDONLY)
    for _ in range(18):
        os.mkdir("d" * 240, dir_fd=at)
        at, above = os.open("d" * 240, os.O_RDONLY, dir_fd=at), at
        os.close(above)
    os.close(at)

    with staged(repo, "", staging) as stage:
        assert sorted(copied(stage.source).values()) == [b"1", b"2"]
        assert (dict(stage.skipped), stage.cut) == ({"too_deep": 1}, True)


def test_every_scanner_counts_lines_alike_for_there_is_one_kind_of_line_end(tmp_path: Path, staging: Path) -> None:
    repo = write(tmp_path / "repo", {"a.py": b"a\rb\r\nc\n", "wide.txt": "é\r\nb".encode("utf-16"), "l.py": b"\xe9\r"})
    with staged(repo, "", staging) as stage:
        assert copied(stage.source) == {"a.py": b"a\nb\nc\n", "wide.txt": "é\nb".encode(), "l.py": b"\xe9\n"}


def test_no_byte_makes_code_a_binary_and_binaries_are_counted(tmp_path: Path, staging: Path) -> None:
    noise = bytes(range(256)) * 8
    repo = write(
        tmp_path / "repo",
        {"a.conf": b"x" * 50 + b"\0", "b.js": b"\0" * 50 + b"x", "c": b"#!/bin/sh\0\0", "p.png": noise},
    )
    with staged(repo, "", staging) as stage:
        assert copied(stage.source) == {"a.conf": b"x" * 50 + b" ", "b.js": b" " * 50 + b"x", "c": b"#!/bin/sh  "}
        assert (dict(stage.skipped), stage.cut) == ({"binary": 1}, False)


@pytest.mark.parametrize(
    ("line", "cut"),
    [
        *((line, True) for line in ("# coding: utf-7", "#!x\n# -*- coding: rot13 -*-", "# vim: fileencoding=nonsense")),
        *(
            (line, False)
            for line in (
                "# coding: utf-8",
                "# -*- coding: latin-1 -*-",
                "#\n#\n# coding: utf-7",
                "# coding: utf-8-unix",
            )
        ),
    ],
)
def test_python_in_an_encoding_that_scanners_do_not_read_makes_the_copy_incomplete(
    tmp_path: Path, staging: Path, line: str, *, cut: bool
) -> None:
    with staged(write(tmp_path / "repo", {"a.py": f"{line}\nx\n", "b.txt": "# coding: utf-7"}), "", staging) as stage:
        assert (stage.cut, stage.skipped["odd_coding"], stage.files) == (cut, int(cut), 2)


def test_folders_count_as_files(tmp_path: Path, staging: Path) -> None:
    repo = write(tmp_path / "repo", {f"d{number}/.keep": "" for number in range(9)})
    with staged(repo, "", staging, bounds=Bounds(files=3)) as stage:
        assert len(list(stage.source.rglob("*"))) == 3
        assert stage.cut


def test_the_hub_s_own_data_dir_is_left_out_wherever_it_lies(tmp_path: Path) -> None:
    repo = write(tmp_path / "repo", {"a.py": "1", "data/secret.key": "x"})
    (repo / "key.py").symlink_to("data/secret.key")
    with staged(repo, "", repo / "data" / "staging", own=repo / "data") as stage:
        assert copied(stage.source) == {"a.py": b"1"}
        assert dict(stage.skipped) == {"own_data": 1, "link": 1}


def test_what_tells_scanners_what_not_to_see_is_a_file_like_any_other(tmp_path: Path, staging: Path) -> None:
    names = (".semgrepignore", ".gitignore", ".gitleaksignore", ".gitleaks.toml", "gitleaks.toml", ".secrets.baseline")
    repo = write(tmp_path / "repo", dict.fromkeys((*names, ".GitLeaks.toml"), "*"))

    with staged(repo, "", staging) as stage:
        there = copied(stage.source)
        assert len(there) == 7
        assert not {name.lower() for name in there} & set(names)
        assert {stage.original(name) for name in there} == {*names, ".GitLeaks.toml"}


def test_names_that_cannot_be_printed_stay_apart_and_are_told_escaped(tmp_path: Path, staging: Path) -> None:
    repo = write(tmp_path / "repo", {})
    for raw in (b"na\xefve.py", b"na\xeeve.py", b"line\nbreak.py", "\u202egnp.py".encode(), b"-o", b"back\\slash.py"):
        Path(os.fsdecode(os.fsencode(repo) + b"/" + raw)).write_text("x")

    with staged(repo, "", staging) as stage:
        there = copied(stage.source)
        told = {stage.original(name) for name in there}
        assert told == {
            "na\\xefve.py",
            "na\\xeeve.py",
            "line\\u000abreak.py",
            "\\u202egnp.py",
            "-o",
            "back\\slash.py",
        }
        assert all(name.isprintable() for name in there)
        assert all(name.endswith(".py") for name in there if name != "-o")


@pytest.mark.parametrize(
    ("bounds", "skipped", "left"),
    [
        (Bounds(files=2), {"too_many_files": 2}, 2),
        (Bounds(bytes=25), {"too_much": 2}, 2),
        (Bounds(file_bytes=9), {"too_large": 4}, 0),
        (Bounds(depth=1), {"too_deep": 1}, 3),
    ],
)
def test_what_is_over_a_bound_is_left_out_counted_and_makes_the_copy_incomplete(
    tmp_path: Path, staging: Path, bounds: Bounds, skipped: dict[str, int], left: int
) -> None:
    repo = write(tmp_path / "repo", dict.fromkeys(("a", "b", "c", "d/e/f"), "0123456789"))

    with staged(repo, "", staging, bounds=bounds) as stage:
        assert (dict(stage.skipped), stage.files, stage.cut) == (skipped, left, True)


def test_folders_that_the_operator_names_are_left_out_at_any_depth(tmp_path: Path, staging: Path) -> None:
    repo = write(tmp_path / "repo", {"node_modules/x.js": "", "web/node_modules/y.js": "", "web/z.js": "", "x": ""})

    with staged(repo, "", staging, skips=["node_modules", "x"]) as stage:
        assert set(copied(stage.source)) == {"web/z.js", "x"}
        assert (dict(stage.skipped), stage.cut) == ({"asked": 2}, False)


def test_a_part_is_copied_under_the_paths_of_the_whole(tmp_path: Path, staging: Path) -> None:
    repo = write(tmp_path / "repo", {"a.py": "", "sub/deep/b.py": "x"})

    with staged(repo, "sub/deep", staging) as stage:
        (name,) = copied(stage.source)
        assert stage.original(name) == "sub/deep/b.py"


def test_no_part_of_the_path_may_be_a_link(tmp_path: Path, staging: Path) -> None:
    repo = write(tmp_path / "repo", {"real/sub/x": ""})
    (repo / "linked").symlink_to(repo / "real")

    with pytest.raises(Unavailable), staged(repo, "linked/sub", staging):
        pass
    assert list(staging.glob("scan-*")) == []


def test_the_revision_is_of_names_and_contents(tmp_path: Path, staging: Path) -> None:
    def revision(files: dict[str, str | bytes], name: str) -> str:
        with staged(write(tmp_path / name, files), "", staging) as stage:
            return stage.revision

    one = revision({"a": "1", "b": "2"}, "one")
    assert revision({"b": "2", "a": "1"}, "same") == one
    assert len({one, revision({"a": "2", "b": "1"}, "two"), revision({"a": "1", "c": "2"}, "three")}) == 3


def test_a_copy_that_is_stopped_is_gone(tmp_path: Path, staging: Path) -> None:
    repo = write(tmp_path / "repo", {"a": "1"})

    with pytest.raises(InterruptedError), staged(repo, "", staging, stopped=lambda: True):
        pass
    assert list(staging.glob("scan-*")) == []


def test_the_copy_of_a_killed_process_is_swept_and_that_of_a_living_one_stays(tmp_path: Path, staging: Path) -> None:
    repo = write(tmp_path / "repo", {"a": "1"})
    holds = f"""
import time
from pathlib import Path
from mcp_servers.cybersecurity.staging import staged
with staged(Path({str(repo)!r}), "", Path({str(staging)!r})):
    time.sleep(600)
"""
    with staged(repo, "", staging) as ours:
        other = subprocess.Popen([sys.executable, "-c", holds])
        wait_until_sync(lambda: len(list(staging.glob("scan-*/source/a"))) == 2, "the other process has its copy")
        assert sweep(staging) == 0
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert sweep(staging) == 1
        assert ours.source.exists()
    assert sweep(staging) == 0
