"""Owns the tests of Socket Mode where Slack fails: a ticket is used once, one process listens, another takes over, no secret is logged."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from approvals.slack.socket import listening
from body_broker.calls import Json
from body_broker.settings import load_settings
from body_broker.storage.postgres import Pool
from mcp_servers.hub.cli.status import approvals_line, slack_line
from mcp_servers.hub.metrics import Metrics
from tests.approvals.conftest import MakeDesk
from tests.approvals.scene import subject
from tests.counterparts.slack import Workspace
from tests.waiting import wait_until


class Taker:
    async def in_time(self, payload: Json) -> tuple[bool, Json]:
        del payload
        return True, None

    async def drain(self) -> None: ...


def live(slack: Workspace) -> int:
    return len([socket for socket in slack.sockets if not socket.closed])


PING_S = 2.0
"""A pong is waited for half as long: a connection must not be lost because this machine stands still for a moment."""
AWAY: tuple[int, dict[str, Any], dict[str, str]] = (503, {}, {})


async def test_after_a_failed_handshake_a_new_ticket_is_asked_for(
    slack: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    slack.broken["link"] = [AWAY, AWAY]
    async with listening(slack.app_token, slack.url, Taker(), ping_s=PING_S):
        await wait_until(lambda: live(slack) == 1, "it is connected in the end")
    assert len(set(slack.links)) == len(slack.links) == 3
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith("aiohttp.access")]
    assert not [said for said in ours if "ticket=" in said or any(each in said for each in slack.links)]
    assert len([said for said in ours if "slack_socket_lost" in said]) == 2


async def test_a_refresh_whose_handshake_fails_does_not_leave_the_hub_deaf(slack: Workspace) -> None:
    async with listening(slack.app_token, slack.url, Taker(), ping_s=PING_S):
        await wait_until(lambda: live(slack) == 1, "it is connected")
        slack.broken["link"] = [AWAY]
        await slack.disconnect()
        await wait_until(lambda: len(slack.links) == 3 and live(slack) == 1, "it is connected again")


async def test_one_process_listens_another_takes_over_and_status_says_so(
    slack: Workspace, pool: Pool, database_url: str
) -> None:
    settings = load_settings({}, slack_bot_token=slack.token, slack_app_token=slack.app_token)
    shared: dict[str, Any] = {"pool": pool, "database_url": database_url, "ping_s": PING_S}

    async def connected() -> bool:
        return (await slack_line(pool, settings)).startswith("connected since")

    async with listening(slack.app_token, slack.url, Taker(), **shared):
        async with listening(slack.app_token, slack.url, Taker(), **shared):
            await wait_until(connected, "one is connected")
            assert live(slack) == 1
        await wait_until(connected, "one is connected still")
        await wait_until(lambda: live(slack) == 1, "exactly one")
        slack.broken["apps.connections.open"] = [(503, {}, {})] * 500
        await slack.sockets[-1].close()
        tries = "NOT CONNECTED: a hub tries"

        async def lost() -> bool:
            return (await slack_line(pool, settings)).startswith(tries)

        await wait_until(lost, "it is told that Slack is not reached")
    assert await slack_line(pool, settings) == "NOT CONNECTED: no hub that listens for clicks runs"
    assert await slack_line(pool, load_settings({})) == "not set up: docs/approvals.md"


async def test_requests_that_nobody_shows_are_seen_after_a_minute(make_desk: MakeDesk) -> None:
    desk, metrics = make_desk(notify=True), Metrics()
    await desk.ask(subject(desk.policy, "ingest"))
    assert "were not shown" not in await approvals_line(desk.pool)
    await desk.pool.execute("UPDATE approval SET created_at = created_at - interval '61 seconds'")
    assert "1 wait for people and were not shown in Slack for a minute" in await approvals_line(desk.pool)
    await metrics.read(desk.pool)
    assert "body_broker_approval_notices_unseen 1.0" in metrics.text()
    assert "body_broker_slack_connected 0.0" in metrics.text()
