"""The file that joins servers of others: what it says is read whole, what does not fit is named all at once, and the command writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from body_broker.errors import Conflict, NotFound, SettingsError
from body_broker.settings import load_settings
from mcp_servers.upstreams.model import Classified, Upstream
from mcp_servers.upstreams.reading import read_upstreams, upstreams_of
from mcp_servers.upstreams.writing import add_section, remove_section

WHOLE = """
[everything]
command = ["npx", "-y", "@modelcontextprotocol/server-everything"]
env = { LEVEL = "quiet" }
secret_env = ["EVERYTHING_KEY"]
folder = "/srv/everything"
concurrency = 2
timeout_s = 5

[everything.tools.echo]
group = "retrieval"

[everything.tools."get-sum"]
group = "write"
modifiers = ["external"]
effect = "repeatable"

[everything.resources."demo://doc/{name}"]
group = "retrieval"

[tracker]
url = "https://tracker.studio.example/mcp"
auth = "oauth"
recheck_s = 0
"""


def file_of(folder: Path, text: str) -> Path:
    file = folder / "upstreams.toml"
    file.write_text(text, "utf-8")
    return file


def problems(folder: Path, text: str, *taken: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        read_upstreams(file_of(folder, text), taken=taken)
    found = caught.value.details["problems"]
    assert isinstance(found, list)
    return found


def test_everything_that_a_section_says_is_read(tmp_path: Path) -> None:
    everything, tracker = read_upstreams(file_of(tmp_path, WHOLE))

    assert everything.command == ("npx", "-y", "@modelcontextprotocol/server-everything")
    assert (everything.env, everything.secret_env) == ({"LEVEL": "quiet"}, ("EVERYTHING_KEY",))
    assert (everything.folder, everything.concurrency, everything.timeout_s) == ("/srv/everything", 2, 5)
    assert (tracker.url, tracker.auth, tracker.recheck_s) == ("https://tracker.studio.example/mcp", "oauth", 0)


def test_what_is_not_classified_is_unclassified_and_what_reads_has_no_effect(tmp_path: Path) -> None:
    everything = read_upstreams(file_of(tmp_path, WHOLE))[0]

    assert everything.classified("tool", "echo") == Classified(group="retrieval", effect="none")
    assert everything.classified("tool", "get-sum") == Classified(
        group="write", modifiers=frozenset({"external"}), effect="repeatable"
    )
    assert everything.classified("template", "demo://doc/{name}").group == "retrieval"
    assert everything.classified("prompt", "echo") == Classified(group=None, effect="once")


def test_every_problem_is_named_at_once_and_no_value_is_repeated(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        """
        [one]
        url = "http://elsewhere.example/mcp-s3cr3t"
        colour = "red"
        [Two]
        command = ["x"]
        [three]
        [three.tools.a]
        group = "retrieval"
        effect = "once"
        [three.tools.b]
        group = "admin"
        modifiers = ["loud"]
        """,
    )

    assert [each.split(":")[0] for each in found] == [
        "Two",
        "one.url",
        "one.colour",
        "three.tools.a",
        "three.tools.b.group",
        "three.tools.b.modifiers",
    ]
    assert "s3cr3t" not in " ".join(found)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ('command = ["x"]\nurl = "https://x.example/"', "say either command or url"),
        ("", "say either command or url"),
        ('url = "http://10.0.0.7/mcp"', "plain http is for this machine alone"),
        ('url = "http://localhost.evil.example/mcp"', "plain http is for this machine alone"),
        ('url = "https://anna:pw@x.example/mcp"', "no user and no password"),
        ('url = "file:///etc/passwd"', "must be an http or https URL"),
        ('command = ["x"]\nauth = "oauth"', "auth goes with a url"),
        ('url = "https://x.example/"\nenv = { A = "b" }', "go with a command"),
        ('command = ["x"]\nenv = { GITHUB_TOKEN = "abc" }', "secret_env"),
        ('command = ["x"]\nenv = { LEVEL = "ghp_0123456789abcdef" }', "secret_env"),
        ('command = ["x"]\nenv = { DB = "postgres://anna:pw@db/x" }', "secret_env"),
        ('command = ["x"]\nenv = { A = "b" }\nsecret_env = ["A"]', "stands in env and in secret_env"),
        ('command = ["x"]\ntools.a = { effect = "none" }', "goes with a group that reads"),
        ('command = ["x"]\nconcurrency = 0', "greater than or equal to 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, section: str, said: str) -> None:
    found = problems(tmp_path, f"[one]\n{section}\n")

    assert len(found) == 1
    assert said in found[0]


@pytest.mark.parametrize("url", ["http://127.0.0.1:3000/mcp", "http://[::1]:3000/mcp", "http://localhost/mcp"])
def test_this_machine_is_reached_by_plain_http(tmp_path: Path, url: str) -> None:
    assert read_upstreams(file_of(tmp_path, f'[one]\nurl = "{url}"\n'))[0].url == url


@pytest.mark.parametrize("name", ["rag", "search", "search_lore"])
def test_a_name_by_which_theirs_could_pass_for_ours_is_refused(tmp_path: Path, name: str) -> None:
    found = problems(tmp_path, f'[{name}]\ncommand = ["x"]\n', "rag", "search_lore")

    assert found == [f"{name}: the hub has names of its own that begin so"]


def test_two_servers_whose_tools_could_have_one_name_are_refused(tmp_path: Path) -> None:
    found = problems(tmp_path, '[a]\ncommand = ["x"]\n[a_b]\ncommand = ["x"]\n')

    assert found == ["a: a_b begins with it, so their tools could have the same names"]


def test_a_file_that_is_no_toml_says_where_and_repeats_nothing(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"not TOML \(at line 2") as caught:
        read_upstreams(file_of(tmp_path, '[one]\nurl = "s3cr3t\n'))

    assert "s3cr3t" not in caught.value.message


def test_the_data_dirs_own_file_is_read_where_none_is_named(tmp_path: Path) -> None:
    assert upstreams_of(load_settings({}, data_dir=tmp_path)) == ()

    file_of(tmp_path, '[one]\ncommand = ["x"]\n')

    assert [each.name for each in upstreams_of(load_settings({}, data_dir=tmp_path))] == ["one"]
    with pytest.raises(SettingsError, match="cannot be read"):
        upstreams_of(load_settings({}, data_dir=tmp_path, upstreams=tmp_path / "elsewhere.toml"))


def test_what_the_command_adds_is_read_back_as_it_was_said(tmp_path: Path) -> None:
    file = tmp_path / "new" / "upstreams.toml"
    told = Upstream(name="odd", command=("a b", 'q"\\', "é"), env={"A": 'x"y'}, secret_env=("K",), folder="/x y")
    there = Upstream(name="there", url="https://x.example/mcp", auth="token")

    add_section(file, told)
    add_section(file, there)

    assert read_upstreams(file) == (told, there)


def test_a_section_is_added_once_and_only_where_the_file_fits(tmp_path: Path) -> None:
    file = file_of(tmp_path, WHOLE)

    with pytest.raises(Conflict):
        add_section(file, Upstream(name="tracker", command=("x",)))
    with pytest.raises(SettingsError):
        add_section(file, Upstream(name="far", url="http://far.example/"))

    assert file.read_text("utf-8") == WHOLE
    assert [each.name for each in tmp_path.iterdir()] == ["upstreams.toml"]


def test_a_removed_server_goes_with_all_that_is_said_of_it_and_the_rest_stays(tmp_path: Path) -> None:
    file = file_of(tmp_path, f"# kept\n{WHOLE}")

    remove_section(file, "everything")

    assert [each.name for each in read_upstreams(file)] == ["tracker"]
    assert file.read_text("utf-8").startswith("# kept\n")
    with pytest.raises(NotFound):
        remove_section(file, "everything")


def test_a_server_written_in_a_form_of_its_own_is_left_to_a_person(tmp_path: Path) -> None:
    text = 'one = { command = ["x"] }\n[two]\ncommand = ["y"]\n'
    file = file_of(tmp_path, text)

    with pytest.raises(Conflict, match="form of its own"):
        remove_section(file, "one")

    assert file.read_text("utf-8") == text
