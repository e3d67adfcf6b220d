from __future__ import annotations

from pathlib import Path

import pytest

from body_broker.calls import Caller
from body_broker.errors import NotConfigured, StartError
from mcp_servers.admin.roles import Grant, Roles
from tests.mcp_servers.hub.conftest import OpenHub

ARN = "arn:aws:iam::123456789012:role/"


def caller(*chain: str, **roles: str) -> Caller:
    """A chain; roles by a person's name."""
    held = {f"person:{name}": frozenset(text.split()) for name, text in roles.items()}
    return Caller(chain=chain, roles=held, session="s")


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "roles.toml"
    file.write_text(text)
    return file


@pytest.fixture
def roles(tmp_path: Path) -> Roles:
    text = f"""
        [principals]
        "tier:bronze" = "{ARN}bronze"
        "person:anna" = {{ arn = "{ARN}team/anna", external_id = "studio-7", duration_s = 1800 }}
        "person:far" = "arn:aws:iam::999999999999:role/far"
        [roles]
        sre = "{ARN}sre"
        admin = "{ARN}admin"
        security = "{ARN}sre"
    """
    return Roles.load(written(tmp_path, text))


def arns(roles: Roles, who: Caller) -> list[str]:
    return [grant.arn.removeprefix(ARN) for grant in roles.grants(who)]


def test_a_principal_has_the_role_of_its_own_line_else_that_of_its_role_here(roles: Roles) -> None:
    assert roles.grants(caller("person:anna", anna="sre")) == (
        Grant("person:anna", f"{ARN}team/anna", "studio-7", 1800),
    )
    assert roles.grants(caller("person:bob", bob="sre")) == (Grant("person:bob", f"{ARN}sre", None, 900),)
    assert arns(roles, caller("person:bob", bob="sre security engineer")) == ["sre"]


def test_everybody_in_a_chain_is_asked_for_and_who_acts_comes_last(roles: Roles) -> None:
    assert arns(roles, caller("person:bob", "tier:bronze", bob="admin")) == ["admin", "bronze"]
    assert arns(roles, caller("person:bob", "person:anna", "person:carl", bob="sre", carl="sre")) == [
        "team/anna",
        "sre",
    ]


@pytest.mark.parametrize(
    ("who", "said"),
    [
        (caller("person:bob"), "No AWS role is set for person:bob"),
        (caller("person:bob", bob="designer"), "No AWS role is set for person:bob"),
        (caller("person:bob", "tier:bronze"), "No AWS role is set for person:bob"),
        (caller("person:anna", "tier:silver"), "No AWS role is set for tier:silver"),
        (caller("person:bob", bob="sre admin"), "several roles"),
        (caller("person:far", "tier:bronze"), "different AWS accounts"),
    ],
)
def test_who_has_no_one_role_is_told_what_to_write(roles: Roles, who: Caller, said: str) -> None:
    with pytest.raises(NotConfigured, match=said) as refused:
        roles.grants(who)

    assert "BODY_BROKER_AWS_ROLES" in refused.value.next_step
    assert "arn:" not in f"{refused.value.message}{refused.value.next_step}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it names no role"),
        ("[principals]", "it names no role"),
        ("principals = 3", "principals is no table"),
        (f'[rolls]\nsre = "{ARN}x"', "rolls is neither"),
        (f'[roles]\nsres = "{ARN}x"', '"sres" is no role of this hub'),
        (f'[principals]\n"tier:iron" = "{ARN}x"', '"tier:iron" is no principal'),
        (f'[principals]\nanna = "{ARN}x"', '"anna" is no principal'),
        ('[roles]\nsre = "arn:aws:iam::12:role/x"', "has no ARN of an IAM role"),
        ('[roles]\nsre = "arn:aws:iam::123456789012:user/x"', "has no ARN of an IAM role"),
        ("[roles]\nsre = {}", "has no ARN of an IAM role"),
        ("[roles]\nsre = 3", "neither an ARN nor a table"),
        (f'[roles]\nsre = {{ arn = "{ARN}x", duration = 3 }}', "unknown key duration"),
        (f'[roles]\nsre = {{ arn = "{ARN}x", duration_s = 899 }}', "duration_s that is not from 900 to 3600"),
        (f'[roles]\nsre = {{ arn = "{ARN}x", duration_s = true }}', "duration_s that is not from 900 to 3600"),
        (f'[roles]\nsre = {{ arn = "{ARN}x", external_id = "a b" }}', "external_id that STS would not take"),
        ("[roles]\nsre = ", "it is not TOML (at end of document)"),
        ("[roles]\nsre == 3", "it is not TOML (at line 2, column 6)"),
    ],
)
def test_a_file_that_is_not_understood_stops_the_start(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(StartError) as refused:
        Roles.load(written(tmp_path, text))

    assert said in refused.value.message
    assert str(tmp_path) not in refused.value.message


def test_every_fault_of_a_file_is_named_at_once(tmp_path: Path) -> None:
    text = f'other = 1\n[principals]\nanna = "{ARN}x"\n[roles]\nsre = "x"\nadmin = {{ arn = "{ARN}x", who = 1 }}'

    with pytest.raises(StartError) as refused:
        Roles.load(written(tmp_path, text))

    assert refused.value.details["problems"] == [
        "other is neither [principals] nor [roles]",
        '[principals] "anna" is no principal',
        f'[roles] "sre" has no ARN of an IAM role, such as {ARN}body-broker-reads',
        '[roles] "admin" has the unknown key who',
    ]


def test_a_file_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "roles.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "long.toml").write_bytes(b"#" * 300_000)

    for name, said in (("roles.toml", "UTF-8"), ("long.toml", "longer than"), ("none.toml", "cannot be read")):
        with pytest.raises(StartError, match=said):
            Roles.load(tmp_path / name)


async def test_a_hub_with_a_bad_file_does_not_start(open_hub: OpenHub, tmp_path: Path, redis: object) -> None:
    _ = redis  # flushed before the test
    with pytest.raises(StartError, match="no ARN"):
        async with open_hub(aws_roles=written(tmp_path, '[roles]\nsre = "x"')):
            pass
