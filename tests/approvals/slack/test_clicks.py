"""Owns the tests of clicks: over both transports the right person on the right message counts, and nobody and nothing else."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from approvals.slack import clicks
from approvals.slack.client import open_api
from approvals.slack.opening import open_slack
from approvals.slack.socket import listening
from body_broker.settings import load_settings
from tests.approvals.conftest import MakeDesk
from tests.approvals.scene import no, past_its_time
from tests.approvals.slack.conftest import ANNA, BEN, CHANNEL, EVE, OTHER, STRANGER, Studio
from tests.counterparts.slack import Ack, Json, Message, Workspace, workspace
from tests.waiting import wait_until

http_only = pytest.mark.parametrize("transport", ["http"], indirect=True)


async def told(studio: Studio) -> str:
    """What one person was told in private."""
    await wait_until(lambda: studio.slack.told, "somebody is told")
    return studio.slack.told[-1]["text"]


def approve_button(message: Message) -> Json:
    return message.buttons()["approve"]


async def test_a_click_approves_and_the_same_message_becomes_the_record(studio: Studio) -> None:
    approval, message = await studio.ask_and_see()
    assert set(message.buttons()) == {"approve", "deny", "page"}
    assert (await studio.slack.click(ANNA, message, "approve")).status == 200
    await studio.becomes(message, "Done at")
    assert studio.effects == [approval.id]
    assert set(message.buttons()) == {"page"}
    assert "Approved by Anna (person:anna)" in message.words()
    assert len(studio.slack.in_channel(CHANNEL)) == 1
    (vote,) = (await studio.desk.get(approval.id)).votes
    assert (vote.voter, vote.via, vote.factor) == ("person:anna", "slack", None)


async def test_the_vote_is_there_when_the_click_is_acknowledged(studio: Studio) -> None:
    studio.hold.clear()
    approval, message = await studio.ask_and_see()
    assert await studio.slack.click(ANNA, message, "approve") == Ack(200)
    assert await studio.votes(approval) == 1


async def test_a_denial_asks_why_and_the_reason_reaches_the_approval(studio: Studio) -> None:
    approval, message = await studio.ask_and_see()
    assert (await studio.slack.click(BEN, message, "deny")).status == 200
    (view,) = studio.slack.views
    assert approval.fingerprint in str(view)
    assert (await studio.slack.submit(BEN, view, "not on a Friday")).status == 200
    found = await studio.desk.get(approval.id)
    assert (found.standing, found.decided_by, found.why) == ("denied", "person:ben", "not on a Friday")
    await studio.becomes(message, "Denied by person:ben")
    assert "not on a Friday" in message.words()
    assert set(message.buttons()) == {"page"}


async def test_a_denial_needs_no_reason(studio: Studio) -> None:
    approval, message = await studio.ask_and_see()
    await studio.slack.click(BEN, message, "deny")
    assert (await studio.slack.submit(BEN, studio.slack.views[0], None)).status == 200
    assert (await studio.desk.get(approval.id)).standing == "denied"


async def test_a_window_that_slack_does_not_open_is_told(studio: Studio) -> None:
    approval, message = await studio.ask_and_see()
    studio.slack.broken["views.open"] = [(200, {"ok": False, "error": "expired_trigger_id"}, {})]
    assert (await studio.slack.click(BEN, message, "deny")).status == 200
    assert "Click Deny again" in await told(studio)
    assert (await studio.desk.get(approval.id)).standing == "pending"


async def test_a_request_that_is_decided_opens_no_window(studio: Studio) -> None:
    approval, message = await studio.ask_and_see()
    button = message.buttons()["deny"]
    await no(studio.desk, approval)
    await studio.slack.deliver(studio.slack.click_payload(BEN, message, button))
    assert "it is denied" in await told(studio)
    assert studio.slack.views == []


async def test_who_may_not_deny_is_told_so_in_the_modal(studio: Studio) -> None:
    approval, message = await studio.ask_and_see()
    await studio.slack.click(BEN, message, "deny")
    answer = await studio.slack.submit(EVE, studio.slack.views[0], "because")
    assert answer.status == 200
    assert answer.body is not None
    assert "in none of these groups" in answer.body["errors"]["reason"]
    assert await studio.votes(approval) == 0


async def test_somebody_outside_the_group_does_not_count_and_is_told(studio: Studio) -> None:
    approval, message = await studio.ask_and_see()
    assert (await studio.slack.click(EVE, message, "approve")).status == 200
    assert "Not counted. This needs somebody of admin, sre" in await told(studio)
    assert studio.slack.told[-1]["user"] == EVE
    assert await studio.votes(approval) == 0


async def test_a_slack_account_that_the_file_does_not_name_does_not_count(studio: Studio) -> None:
    approval, message = await studio.ask_and_see()
    await studio.slack.click(STRANGER, message, "approve")
    assert "stands for nobody" in await told(studio)
    await studio.slack.click(STRANGER, message, "deny")
    assert studio.slack.views == []
    assert await studio.votes(approval) == 0


async def test_a_requester_does_not_approve_their_own_call_by_slack(studio: Studio) -> None:
    approval, message = await studio.ask_and_see(chain=("person:anna",))
    await studio.slack.click(ANNA, message, "approve")
    assert "your own request" in await told(studio)
    assert (await studio.desk.get(approval.id)).standing == "pending"


async def test_a_person_does_not_approve_what_an_agent_asks_on_their_behalf(studio: Studio) -> None:
    approval, message = await studio.ask_and_see(chain=("person:anna", "tier:bronze"))
    await studio.slack.click(ANNA, message, "approve")
    assert "on your behalf" in await told(studio)
    assert await studio.votes(approval) == 0


async def test_one_person_has_one_vote_however_often_they_click(studio: Studio) -> None:
    approval, message = await studio.ask_and_see("remove")
    await studio.slack.click(ANNA, message, "approve")
    await studio.becomes(message, "1 of 2")
    await studio.slack.click(ANNA, message, "approve")
    assert "already said yes" in await told(studio)
    assert await studio.votes(approval) == 1
    await studio.slack.click(BEN, message, "approve")
    await studio.becomes(message, "Done at")


async def test_a_click_after_its_time_does_not_count(studio: Studio) -> None:
    approval, message = await studio.ask_and_see()
    await past_its_time(studio.pool, approval.id)
    assert (await studio.slack.click(ANNA, message, "approve")).status == 200
    assert "expired" in await told(studio)
    assert await studio.votes(approval) == 0
    await studio.becomes(message, "nobody decided in time")


async def test_a_click_on_a_copy_of_the_message_does_not_count(studio: Studio) -> None:
    approval, message = await studio.ask_and_see()
    for copy in (studio.slack.copy(message), studio.slack.copy(message, channel=OTHER)):
        await studio.slack.click(ANNA, copy, "approve")
        assert "not the one that counts" in await told(studio)
        studio.slack.told.clear()
        await studio.slack.click(ANNA, copy, "deny")
        await told(studio)
        studio.slack.told.clear()
    assert studio.slack.views == []
    assert await studio.votes(approval) == 0


async def test_a_click_before_the_message_is_noted_is_told_to_come_again(studio: Studio) -> None:
    approval, message = await studio.ask_and_see()
    await studio.pool.execute("UPDATE approval_notice SET message = NULL")
    await studio.slack.click(ANNA, message, "approve")
    assert "Click again in a moment" in await told(studio)
    assert await studio.votes(approval) == 0


@pytest.mark.parametrize("place", ["team", "channel", "message"])
async def test_a_click_from_another_workspace_channel_or_message_does_not_count(studio: Studio, place: str) -> None:
    approval, message = await studio.ask_and_see()
    payload = studio.slack.click_payload(ANNA, message, approve_button(message))
    payload[place] |= {"team": {"id": "T0OTHER01"}, "channel": {"id": OTHER}, "message": {"ts": "1.000100"}}[place]
    assert (await studio.slack.deliver(payload)).status == 200
    assert "not the one that counts" in await told(studio)
    assert await studio.votes(approval) == 0


async def test_a_member_of_another_workspace_does_not_count(studio: Studio) -> None:
    approval, message = await studio.ask_and_see()
    payload = studio.slack.click_payload(ANNA, message, approve_button(message))
    payload["user"]["team_id"] = "T0OTHER01"
    await studio.slack.deliver(payload)
    assert "belongs to another workspace (T0OTHER01)" in await told(studio)
    assert await studio.votes(approval) == 0


async def test_a_button_of_another_request_or_call_does_not_count(studio: Studio) -> None:
    first, message = await studio.ask_and_see()
    second, other = await studio.ask_and_see(count=2)
    button = approve_button(message)
    for value in (approve_button(other)["value"], f'["{first.id}","{second.digest}"]', "[]", "nonsense"):
        payload = studio.slack.click_payload(ANNA, message, button | {"value": value})
        assert (await studio.slack.deliver(payload)).status == 200
        await told(studio)
        studio.slack.told.clear()
    assert await studio.votes(first) + await studio.votes(second) == 0


async def test_the_link_to_the_page_is_acknowledged_and_does_nothing(studio: Studio) -> None:
    approval, message = await studio.ask_and_see()
    assert message.buttons()["page"]["url"] == f"http://localhost:8484/approve/{approval.id}"
    assert (await studio.slack.click(STRANGER, message, "page")).status == 200
    assert studio.slack.told == []


async def test_a_vote_that_takes_long_is_not_acknowledged_and_is_not_lost(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clicks, "ANSWER_S", 0.05)
    monkeypatch.setattr("tests.counterparts.slack.ACK_S", 1.0)
    approval, message = await studio.ask_and_see()
    async with studio.pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT 1 FROM approval WHERE id = $1 FOR UPDATE", approval.id)
        assert (await studio.slack.click(ANNA, message, "approve")).status in {0, 503}
    await studio.becomes(message, "Approved by Anna")


@http_only
async def test_a_replayed_click_does_nothing_more(studio: Studio) -> None:
    approval, message = await studio.ask_and_see()
    body = studio.slack.body_of(studio.slack.click_payload(ANNA, message, approve_button(message)))
    headers = studio.slack.signed(body)
    assert (await studio.slack.send(body, headers)).status == 200
    await studio.becomes(message, "Done at")
    assert (await studio.slack.send(body, headers)).status == 200
    assert "already" in await told(studio)
    assert await studio.votes(approval) == 1
    assert studio.effects == [approval.id]


def _stamp(offset_s: int) -> str:
    return str(int(time.time()) + offset_s)  # noqa: TID251  # Slack's clock


@http_only
@pytest.mark.parametrize(
    "forgery",
    [
        "another secret",
        "old",
        "from the future",
        "altered",
        "garbage timestamp",
        "endless timestamp",
        "no timestamp",
        "no signature",
        "signature that is no text",
        "body that is no text",
    ],
)
async def test_what_slack_did_not_sign_just_now_is_401(studio: Studio, forgery: str) -> None:
    approval, message = await studio.ask_and_see()
    body = studio.slack.body_of(studio.slack.click_payload(ANNA, message, approve_button(message)))
    headers = studio.slack.signed(body)
    if forgery == "another secret":
        headers = studio.slack.signed(body, secret="guessed")
    elif forgery == "old":
        headers = studio.slack.signed(body, at=_stamp(-301))
    elif forgery == "from the future":
        headers = studio.slack.signed(body, at=_stamp(303))
    elif forgery == "altered":
        body = body.replace(b"approve", b"approvf")
    elif forgery == "garbage timestamp":
        headers = studio.slack.signed(body, at="soon")
    elif forgery == "endless timestamp":
        headers = studio.slack.signed(body, at="9" * 309)
    elif forgery == "no timestamp":
        del headers["X-Slack-Request-Timestamp"]
    elif forgery == "no signature":
        del headers["X-Slack-Signature"]
    elif forgery == "signature that is no text":
        headers["X-Slack-Signature"] = "v0=ü"
    else:
        body += b"\xff\xfe"
    assert (await studio.slack.send(body, headers)).status == 401
    assert await studio.votes(approval) == 0


@http_only
async def test_a_body_without_a_payload_is_400(studio: Studio) -> None:
    for body in (b"", b"payload=", b"payload=%7B", b"x=1"):
        assert (await studio.slack.send(body, studio.slack.signed(body))).status == 400


@http_only
async def test_headers_count_in_any_case(studio: Studio) -> None:
    _, message = await studio.ask_and_see()
    body = studio.slack.body_of(studio.slack.click_payload(ANNA, message, approve_button(message)))
    headers = {name.lower(): value for name, value in studio.slack.signed(body).items()}
    assert studio.app.http is not None
    assert await studio.app.http(body, headers) == (200, b"")


@pytest.mark.parametrize("transport", ["socket"], indirect=True)
async def test_a_socket_that_slack_ends_comes_again(studio: Studio) -> None:
    _, message = await studio.ask_and_see()
    await studio.slack.disconnect()
    await wait_until(lambda: len(studio.slack.sockets) == 2, "another connection is there")
    await studio.slack.click(ANNA, message, "approve")
    await studio.becomes(message, "Done at")


async def test_a_connection_is_made_once_slack_is_there_and_again_when_it_breaks(
    slack: Workspace, make_desk: MakeDesk
) -> None:
    desk = make_desk()
    slack.broken["apps.connections.open"] = [(503, {}, {}), (200, {"ok": False, "error": "internal_error"}, {})]
    async with open_api(slack.token, slack.url) as api:
        taking = clicks.Clicks(pool=desk.pool, desk=desk, people=desk.people, slack=api, now=lambda: datetime.now(UTC))
        async with listening(slack.app_token, slack.url, taking, ping_s=2.0):
            await wait_until(lambda: slack.sockets, "it is connected in the end")
            await slack.sockets[0].close()
            await wait_until(lambda: len(slack.sockets) == 2, "it is connected again")


async def test_a_process_starts_and_ends_though_slack_is_away(make_desk: MakeDesk) -> None:
    async with workspace() as gone:
        url = gone.url
    desk = make_desk()
    away = open_slack(
        load_settings({}, slack_bot_token="xoxb-1", slack_app_token="xapp-1", slack_api_url=url),
        pool=desk.pool,
        desk=desk,
        people=desk.people,
        pages=lambda: None,
        failed=lambda: None,
        listen=True,
    )
    async with away as found:
        assert found is not None
