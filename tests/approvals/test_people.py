"""approvers.toml: who may say yes, and what in the file stops the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from approvals.people import NOBODY, People, load_people
from body_broker.errors import SettingsError

GOOD = """
[people.anna]
name = "Anna"
groups = ["sre", "admin"]
slack = "U012AB3CD"
oidc = "auth0|anna"

[people."person:ben"]
groups = ["sre"]

[people.gast]

[slack.channels]
sre = "C0123456789"

[slack.mentions]
sre = "S0123456789"
"""


def people_of(tmp_path: Path, text: str) -> People:
    file = tmp_path / "approvers.toml"
    file.write_text(text, encoding="utf-8")
    return load_people(file)


def test_people_are_known_by_name_slack_and_subject(tmp_path: Path) -> None:
    found = people_of(tmp_path, GOOD)
    assert found.groups_of("person:anna") == {"sre", "admin"}
    assert (found.by_slack("U012AB3CD"), found.by_oidc("auth0|anna")) == ("person:anna", "person:anna")
    assert (found.by_slack("U999"), found.by_oidc("anna")) == (None, None)
    assert found.in_groups(frozenset({"sre"})) == {"person:anna", "person:ben"}
    assert (found.name_of("person:anna"), found.name_of("person:ben"), found.name_of("person:x")) == (
        "Anna",
        "ben",
        "x",
    )
    assert (found.channels, found.mentions) == ({"sre": "C0123456789"}, {"sre": "S0123456789"})


def test_who_is_named_without_a_group_is_known_and_has_no_say(tmp_path: Path) -> None:
    found = people_of(tmp_path, GOOD)
    assert "person:gast" in found.persons
    assert found.groups_of("person:gast") == found.groups_of("person:nobody") == frozenset()


def test_without_a_file_there_is_nobody() -> None:
    assert NOBODY.in_groups(frozenset({"sre"})) == frozenset()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("people = 3", "people"),
        ("[people.anna]\nrole = 'admin'", "role"),
        ("[people.anna]\ngroups = ['SRE!']", "groups"),
        ("[people.anna]\nslack = '@anna'", "slack"),
        ("[people.'tier:silver']", "spelled like person:anna"),
        ("[people.'An na']", "spelled like person:anna"),
        ("[people.anna]\n[people.'person:anna']", "twice"),
        ("[people.a]\nslack = 'U012AB3CD'\n[people.b]\nslack = 'U012AB3CD'", "share one slack id"),
        ("[people.a]\noidc = 'x'\n[people.b]\noidc = 'x'", "share one oidc id"),
        ("[slack.channels]\nsre = '#sre'", "channels"),
        ("[people", "TOML"),
    ],
    ids=[
        "shape",
        "unknown-key",
        "group",
        "slack",
        "tier",
        "name",
        "twice",
        "shared-slack",
        "shared-oidc",
        "channel",
        "toml",
    ],
)
def test_what_does_not_fit_stops_the_start_and_says_what(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as fault:
        people_of(tmp_path, text)
    assert "approvers.toml" in fault.value.message
    assert str(tmp_path) not in fault.value.message


def test_a_file_that_is_missing_or_no_text_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load_people(tmp_path / "approvers.toml")
    (tmp_path / "approvers.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="cannot be read"):
        load_people(tmp_path / "approvers.toml")
