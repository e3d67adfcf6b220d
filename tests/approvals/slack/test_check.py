"""Owns the tests of setting Slack up: the manifest, what `slack check` finds and says, and the click on its test card."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from approvals.people import NOBODY, People, Person
from approvals.slack.checking import Finding, findings
from approvals.slack.client import open_api
from approvals.slack.manifest import SCOPES, manifest
from body_broker.settings import Settings, load_settings
from tests.approvals.scene import APPROVERS
from tests.approvals.slack.conftest import ANNA, BEN, CHANNEL, CLEO, EVE, OTHER, SAM, Studio
from tests.components import PROJECT
from tests.counterparts.slack import Workspace, workspace
from tests.waiting import wait_until

HUB = str(Path(sys.executable).parent / "body-broker")


@pytest.fixture
def transport() -> str:
    return "http"


async def found(slack: Workspace, settings: Settings, people: People) -> list[Finding]:
    assert settings.slack_bot_token is not None
    async with open_api(settings.slack_bot_token.get_secret_value(), slack.url) as api:
        return [each async for each in findings(api, settings, people)]


def settings_of(settings_of_slack: dict[str, Any], **more: Any) -> Settings:
    given: dict[str, Any] = settings_of_slack | {"public_url": "https://hub.example"} | more
    return load_settings({}, **given)


def wrong(found: list[Finding]) -> list[str]:
    assert all(each.next_step for each in found if not each.ok), "whoever is told what is wrong is told what to do"
    return [f"{each.name}: {each.said}" for each in found if not each.ok]


async def test_a_set_up_that_is_right_is_told_line_by_line(
    slack: Workspace, settings_of_slack: dict[str, Any], people: People
) -> None:
    told = await found(slack, settings_of(settings_of_slack), people)
    assert wrong(told) == []
    assert [each.name for each in told] == ["token", *["scope"] * 4, "clicks", "channel", *["approver"] * 5]
    assert told[0].said == "U0BOT0001 in workspace Test (T0TEST001)"
    assert "person:anna (sre) is U0ANNA00, somebody" in [each.said for each in told]


async def test_a_token_that_does_not_hold_is_the_only_thing_told(
    slack: Workspace, settings_of_slack: dict[str, Any], people: People
) -> None:
    told = await found(slack, settings_of(settings_of_slack, slack_bot_token="xoxb-other"), people)
    assert wrong(told) == ["token: Slack says invalid_auth"]


async def test_a_slack_that_is_away_is_told(settings_of_slack: dict[str, Any], people: People) -> None:
    async with workspace() as gone:
        settings = settings_of(settings_of_slack)
    assert wrong(await found(gone, settings, people)) == ["token: Slack cannot be reached"]


async def test_missing_scopes_are_told_each_with_what_it_is_for(
    slack: Workspace, settings_of_slack: dict[str, Any]
) -> None:
    slack.scopes = ("channels:read",)
    told = await found(slack, settings_of(settings_of_slack), NOBODY)
    assert wrong(told)[:2] == [
        "scope: chat:write is missing: post and change messages",
        "scope: users:read is missing: see that approvers' ids are people",
    ]


async def test_channels_that_do_not_work_are_told(
    slack: Workspace, settings_of_slack: dict[str, Any], people: People
) -> None:
    slack.channels[CHANNEL]["members"].remove(slack.bot)
    slack.channels[OTHER]["is_archived"] = True
    groups = {"sre": OTHER, "security": "C0NOWHERE"}
    told = await found(slack, settings_of(settings_of_slack), People(people.persons, groups, {}))
    assert wrong(told)[:3] == [
        "channel: the app is not in #c0asked01 (C0ASKED01)",
        "channel: #c0other01 (C0OTHER01) is archived",
        "channel: C0NOWHERE: Slack says channel_not_found",
    ]
    assert wrong(await found(slack, settings_of(settings_of_slack, slack_channel=None), people))[0] == (
        "channel: no channel is set"
    )


async def test_approvers_who_could_not_approve_are_told(slack: Workspace, settings_of_slack: dict[str, Any]) -> None:
    sre = frozenset({"sre"})
    slack.users[BEN]["deleted"] = True
    slack.users[CLEO]["is_bot"] = True
    slack.channels[CHANNEL]["members"].remove(SAM)
    persons = {
        "person:anna": Person(groups=sre, slack=ANNA),
        "person:ben": Person(groups=sre, slack=BEN),
        "person:cleo": Person(groups=sre, slack=CLEO),
        "person:dan": Person(groups=sre, slack="U0NOBODY"),
        "person:nora": Person(slack=EVE),
        "person:page": Person(groups=sre),
        "person:sam": Person(groups=sre, slack=SAM),
    }
    told = await found(slack, settings_of(settings_of_slack), People(persons, {}, {}))
    assert wrong(told) == [
        "approver: person:ben, U0BEN000 is deactivated",
        "approver: person:cleo, U0CLEO00 is a bot",
        "approver: person:dan, U0NOBODY: Slack says user_not_found",
        "approver: person:sam, U0SAM000 is not in C0ASKED01, where they are asked",
    ]
    assert "person:page (sre) has no Slack id: they decide on the page only" in [each.said for each in told]
    assert wrong(await found(slack, settings_of(settings_of_slack), NOBODY)) == ["approvers: the file names nobody"]


async def test_accounts_groups_and_channels_of_other_workspaces_are_told(
    slack: Workspace, settings_of_slack: dict[str, Any]
) -> None:
    slack.users[ANNA]["team_id"] = "T0OTHERCO"
    slack.channels[CHANNEL]["is_ext_shared"] = True
    slack.groups.append("S0ONCALL")
    people = People(
        {"person:anna": Person(groups=frozenset({"sre"}), slack=ANNA)}, {}, {"sre": "S0ONCALL", "security": "S0TYPO00"}
    )
    told = await found(slack, settings_of(settings_of_slack), people)
    assert wrong(told) == [
        "group: security is called as S0TYPO00, which is no user group of this workspace",
        "approver: person:anna, U0ANNA00 belongs to another workspace (T0OTHERCO)",
    ]
    assert any("SHARED with another workspace" in each.said for each in told)


async def test_a_transport_that_cannot_work_is_told(
    slack: Workspace, settings_of_slack: dict[str, Any], people: People
) -> None:
    del settings_of_slack["slack_signing_secret"]
    assert wrong(await found(slack, settings_of(settings_of_slack), people)) == ["clicks: nothing is set for them"]
    bad = settings_of(settings_of_slack, slack_app_token="xapp-other")
    assert wrong(await found(slack, bad, people)) == ["clicks: Socket Mode: Slack says invalid_auth"]
    inside = settings_of(settings_of_slack, slack_signing_secret="x", public_url=None)
    assert wrong(await found(slack, inside, people)) == ["clicks: they come over signed HTTP to nowhere"]


def test_the_manifest_asks_for_what_the_check_looks_for_and_lies_in_the_docs() -> None:
    socket, http = yaml.safe_load(manifest()), yaml.safe_load(manifest("https://hub.example/"))
    scopes = set(socket["oauth_config"]["scopes"]["bot"])
    assert all(scopes & enough for enough in SCOPES.values())
    assert socket["settings"]["socket_mode_enabled"] is True
    assert socket["settings"]["interactivity"] == {"is_enabled": True}
    assert http["settings"]["socket_mode_enabled"] is False
    assert http["settings"]["interactivity"]["request_url"] == "https://hub.example/slack/interactions"
    assert (PROJECT / "docs" / "slack-manifest.yaml").read_text("utf-8") == manifest()


@asynccontextmanager
async def checking(
    studio: Studio, data_dir: Path, redis_url: str, *more: str
) -> AsyncGenerator[asyncio.subprocess.Process]:
    """`slack check` as a program, beside the processes that serve this database."""
    (data_dir / "approvers.toml").write_text(APPROVERS, encoding="utf-8")
    slack = studio.slack
    env = {
        "DATA_DIR": str(data_dir),
        "DATABASE_URL": studio.database_url,
        "REDIS_URL": redis_url,
        "SECRET_KEY": "k" * 32,
        "SLACK_BOT_TOKEN": slack.token,
        "SLACK_CHANNEL": CHANNEL,
        "SLACK_API_URL": slack.url,
        "PUBLIC_URL": "https://hub.example",
    }
    env |= {"SLACK_APP_TOKEN": slack.app_token} if slack.sockets else {"SLACK_SIGNING_SECRET": slack.signing_secret}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BODY_BROKER_")}  # noqa: TID251  # tests' own
    process = await asyncio.create_subprocess_exec(
        *(HUB, "slack", "check", *more),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=inherited | {f"BODY_BROKER_{name}": value for name, value in env.items()},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("transport", ["http", "socket"], indirect=True)
async def test_the_terminal_hears_the_click_on_the_test_card_whoever_slack_sent_it_to(
    studio: Studio, tmp_path: Path, redis_url: str
) -> None:
    async with checking(studio, tmp_path, redis_url) as process:
        await wait_until(lambda: studio.slack.in_channel(CHANNEL), "the test card is there", timeout_s=90)
        (card,) = studio.slack.in_channel(CHANNEL)
        del studio.slack.sockets[1:]  # Slack sends a click to any one connection: here to the hub's, not the command's
        assert (await studio.slack.click(ANNA, card, "check")).status == 200
        out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert "clicked by U0ANNA00, person:anna" in out.decode().splitlines()[-1]
    assert "clicked by U0ANNA00" in card.words()
    assert card.buttons() == {}


async def test_the_terminal_says_when_no_click_came(studio: Studio, tmp_path: Path, redis_url: str) -> None:
    async with checking(studio, tmp_path, redis_url, "--wait", "1") as process:
        out, _ = await process.communicate()
    assert process.returncode == 1
    assert "FAILED  card      no click arrived" in out.decode()
    assert "a hub must be serving" in out.decode()
    assert "Nobody clicked in time." in studio.slack.in_channel(CHANNEL)[0].words()
