from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_servers.admin import redaction
from mcp_servers.admin.redaction import REDACTED, TEXT_MAX, item, redact, shown, tags

# In pieces, so that no scanner takes them for real ones; each is its own form.
SECRETS = [
    "AKIA" + "IOSFODNN7EXAMPLE",
    "ASIA" + "Y34FZKBOKMUTVV7A",
    "wJalrXUtnFEMI/K7MDENG" + "/bPxRfiCYEXAMPLEKEY",
    "ghp_" + "16C7e42F292c6912E7710c838347Ae178B4a",
    "github_pat_" + "11ABCDEFG0aBcDeFgHiJkL",
    "xoxb-" + "2444333222111-abcdefghijkl",
    "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc",
    "sk-proj-" + "abcdefghijklmnop1234",
    "AIza" + "SyDaGmWKa4JsXZ-HjGw7ISLn_3namBGewQe",
    "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w",
    "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEowIBAAKCAQEA\n-----END RSA PRIVATE KEY-----",
    "postgres://app:" + "hunter2@db.internal:5432/app",
    "redis://:" + "hunter2@cache:6379",
    "https://b.s3.amazonaws.com/k?X-Amz-Algorithm=AWS4&X-Amz-Signature=" + "abc123",
    "https://x.blob.core.windows.net/c?sv=1&sig=" + "abc%3D",
    "password=" + "hunter2",
    "DB_PASSWORD: " + "hunter2",
    '"api_key": "' + 'zzzz"',
    "AccountKey=" + "abcd==",
    "Authorization: Bearer " + "abcdefghijklmnop",
    "hf_" + "abcdefghijklmnopqr",
    "AbC1" * 14,
    "DB_PASS=" + "hunter2",
    "app.pass: " + "hunter2",
    "SSH_KEY=" + "abcdefgh",
    "creds: " + "hunter2",
    "mysql --password " + "hunter2x",
    "--db-pass=" + "hunter2x",
    "https://hooks.slack.com/services/T0000/B0000/" + "A1b2C3d4E5f6",
    "https://discord.com/api/webhooks/123456/" + "abcDEF_ghi",
    "xapp-1-" + "A0000-123-abcdefabcdef",
    "ya29." + "A0ARrdaM-abcdefghijklmnop",
    "HTTPS://b.s3.amazonaws.com/k?X-Amz-Signature=" + "abc12345",
    "_AKIA" + "IOSFODNN7EXAMPLE",
    "keyAKIA" + "IOSFODNN7EXAMPLE",
    "_ghp_" + "16C7e42F292c6912E7710c838347Ae178B4a",
]
HARMLESS = [
    "i-0abcdef1234567890",
    "arn:aws:iam::123456789012:role/body-broker-reads",
    "arn:aws:ecs:eu-central-1:123456789012:task-definition/npc:7",
    "truth.c9akciq32.eu-central-1.rds.amazonaws.com",
    "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
    "my-load-balancer-1234567890.eu-central-1.elb.amazonaws.com",
    "Amazon Elastic Compute Cloud - Compute",
    "ml.g5.12xlarge at 10.0.0.0/16, sg-0123456789abcdef0",
    "token-service-production",
    "https://studio.example/runbook?page=3",
    "HTTPS://studio.example/runbook?page=3",
    "https://slack.com/archives/C0123456",
    "battle_pass: active, season.pass=four",
    "compass: north, bypass=true, passenger: 300",
    "pass_rate: 0.98, tests_passed: 120, a pass: 400 Hz",
    "ssh_key_name=anna-laptop, keyboard: german, monkey=brown",
    "a sacred: grove, credit=300",
    "MAKIAS and the task-runner-of-production-1",
    "started with --pass-through all --verbose",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("around", ["{}", "before {} after", "x={}"])
def test_a_secret_is_known_by_its_form_wherever_it_stands(secret: str, around: str) -> None:
    told = redact(around.format(secret))

    assert REDACTED in told
    assert secret[-8:] not in told
    assert secret[8:20] not in told


@pytest.mark.parametrize("text", HARMLESS)
def test_names_and_addresses_stay_as_they_are(text: str) -> None:
    assert redact(text) == text


def test_a_secret_with_unseen_characters_in_it_is_still_one() -> None:
    assert redact("AKIA\u200bIOSFODNN7\u202eEXAMPLE") == REDACTED


def test_a_secret_at_the_cut_is_not_cut_in_half_and_let_through() -> None:
    told = redact("a " * 125 + "AKIA" + "IOSFODNN7EXAMPLE")

    assert len(told) <= TEXT_MAX
    assert "AKIA" not in told


@given(st.text(max_size=600))
def test_no_text_leaves_longer_or_with_characters_nobody_sees(text: str) -> None:
    told = redact(text)

    assert len(told) <= TEXT_MAX
    assert "\n" not in told
    assert told == redact(told) or REDACTED in told


@pytest.mark.parametrize(
    "text", ["a", "a://", "eyJ", "password", "A1b", "https://", "a@:/", "-----BEGIN ", "--", "_pass", "--pass "]
)
def test_a_text_made_to_keep_a_pattern_busy_is_answered_like_any_other(text: str) -> None:
    assert len(redact(text * 50_000)) <= TEXT_MAX  # an unbounded pattern would still be at it tomorrow


@pytest.mark.parametrize(
    "name",
    [
        "DB_PASSWORD",
        "ApiKey",
        "api-key",
        "secret",
        "Auth Token",
        "ConnectionString",
        "private_key",
        "pwd",
        "DSN",
        "DB_PASS",
        "db-pass",
        "pass",
        "dbPass",
        "SSH_KEY",
        "encryption-key",
        "master_key",
        "MasterKey",
        "creds",
        "db_creds",
    ],
)
def test_a_tag_named_like_a_secret_hides_its_value_in_either_form_of_tags(name: str) -> None:
    value = "plain"

    assert tags([{"Key": name, "Value": value}]) == {name: REDACTED}
    assert tags([{"key": name, "value": value}]) == {name: REDACTED}
    assert tags({name: value}) == {name: REDACTED}
    assert tags({"team": value}) == {"team": value}
    assert tags(None) == {}


@pytest.mark.parametrize(
    "name",
    [
        "battle-pass",
        "season_pass",
        "battlePass",
        "compass",
        "Bypass",
        "passenger",
        "pass-rate",
        "passed",
        "sacred",
        "credit",
        "ssh-key-name",
        "keyboard",
        "monkey",
        "encrypted",
        "master-branch",
        "Name",
    ],
)
def test_a_tag_named_only_a_little_like_a_secret_is_shown(name: str) -> None:
    assert tags({name: "plain"}) == {name: "plain"}


def test_a_secret_in_a_tags_name_is_hidden_too() -> None:
    assert tags({"AKIA" + "IOSFODNN7EXAMPLE": "x"}) == {REDACTED: "x"}


def test_many_tags_and_long_lists_are_cut_and_said_to_be() -> None:
    many: Any = tags({f"t{n:02}": "x" for n in range(20)})

    assert many["…"] == "8 more"
    assert len(many) == redaction.TAGS_MAX + 1
    assert shown(list(range(100)))[-1] == "and 60 more"


def test_a_thing_is_shown_without_what_is_empty_and_with_times_as_text() -> None:
    at = datetime(2026, 11, 21, 3, 4, 5, tzinfo=UTC)

    assert item(
        {"id": "x", "at": at, "none": None, "list": [], "public": False, "count": 0, "deep": {"a": None}}, None
    ) == {
        "id": "x",
        "at": "2026-11-21T03:04:05Z",
        "public": False,
        "count": 0,
    }
