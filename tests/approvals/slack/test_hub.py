"""Owns the tests of Slack on a whole hub: an agent's call waits, a person clicks, the call runs and the agent has its result."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mcp_servers.hub.worker import working
from tests.approvals.scene import APPROVERS
from tests.approvals.slack.conftest import ANNA, CHANNEL
from tests.counterparts.slack import Message, Workspace
from tests.mcp_servers.hub.conftest import Hub, OpenHub, open_hub, settings_for
from tests.waiting import wait_until

__all__ = ["open_hub", "settings_for"]

CHANGE = {"kind": "config", "target": "flags.night_market", "params": {"value": True}}


@asynccontextmanager
async def hub_with_slack(open_hub: OpenHub, settings: dict[str, Any], tmp_path: Path) -> AsyncGenerator[Hub]:
    file = tmp_path / "approvers.toml"
    file.write_text(APPROVERS, encoding="utf-8")
    async with open_hub(approvers=file, approval_wait_s=60, **settings) as hub, working(hub.runtime):
        yield hub


async def asked(hub: Hub, slack: Workspace) -> Message:
    noted = "SELECT count(*) = 1 FROM approval_notice WHERE shown IS NOT NULL"
    await wait_until(lambda: hub.runtime.stores.pool.fetchval(noted), "people are asked")
    (message,) = slack.in_channel(CHANNEL)
    return message


async def test_a_call_of_an_agent_is_approved_by_a_click_and_runs(
    open_hub: OpenHub, slack: Workspace, settings_of_slack: dict[str, Any], transport: str, tmp_path: Path
) -> None:
    async with hub_with_slack(open_hub, settings_of_slack, tmp_path) as hub, hub.client("tier:bronze") as agent:
        if transport == "http":
            slack.request_url = f"{hub.base}/slack/interactions"
        else:
            await wait_until(lambda: slack.sockets, "the hub is connected")
        given = {"change_request": CHANGE, "reason": "the event opens at six"}
        call = asyncio.create_task(agent.call_tool("approve_change", given))
        message = await asked(hub, slack)
        assert "the event opens at six" in message.words()
        assert "night_market" in message.words()
        assert (await slack.click(ANNA, message, "approve")).status == 200
        result = await call
        await wait_until(lambda: "Done at" in message.words(), "the message is the record")
    assert result.is_error is False
    assert result.structured_content is not None
    assert result.structured_content["state"] == "done"


async def test_a_denial_s_reason_reaches_the_agent(
    open_hub: OpenHub, slack: Workspace, settings_of_slack: dict[str, Any], transport: str, tmp_path: Path
) -> None:
    async with hub_with_slack(open_hub, settings_of_slack, tmp_path) as hub, hub.client("tier:bronze") as agent:
        slack.request_url = f"{hub.base}/slack/interactions"
        if transport == "socket":
            await wait_until(lambda: slack.sockets, "the hub is connected")
        call = asyncio.create_task(agent.call_tool("approve_change", {"change_request": CHANGE}))
        message = await asked(hub, slack)
        await slack.click(ANNA, message, "deny")
        await slack.submit(ANNA, slack.views[0], "not before the patch")
        result = await call
    assert result.is_error is True
    assert "not before the patch" in str(result.content)


@pytest.mark.parametrize("transport", ["http"], indirect=True)
async def test_the_request_url_takes_what_slack_signed_and_nothing_else(
    open_hub: OpenHub, slack: Workspace, settings_of_slack: dict[str, Any], tmp_path: Path
) -> None:
    async with hub_with_slack(open_hub, settings_of_slack, tmp_path) as hub:
        slack.request_url = f"{hub.base}/slack/interactions"
        body = slack.body_of({"type": "block_actions"})
        assert (await slack.send(body, slack.signed(body, secret="guessed"))).status == 401
        assert (await slack.send(body, {})).status == 401


@pytest.mark.parametrize("transport", ["socket"], indirect=True)
async def test_a_hub_without_a_signing_secret_has_no_request_url(
    open_hub: OpenHub, slack: Workspace, settings_of_slack: dict[str, Any], tmp_path: Path
) -> None:
    async with hub_with_slack(open_hub, settings_of_slack, tmp_path) as hub:
        slack.request_url = f"{hub.base}/slack/interactions"
        body = slack.body_of({"type": "block_actions"})
        assert (await slack.send(body, slack.signed(body))).status in {401, 404}
