"""Owns the tests of notices in Slack: one message that counts, always the present state, and nothing lost when Slack fails."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from approvals import notices, sweeper
from approvals.people import People
from approvals.slack.opening import open_slack
from body_broker.calls import Json
from body_broker.settings import load_settings
from body_broker.work.run import Run
from tests.approvals.conftest import MakeDesk
from tests.approvals.scene import no, past_its_time, voter, yes
from tests.approvals.slack.conftest import ANNA, BEN, CHANNEL, OTHER, POST_EVERY_S, Studio
from tests.counterparts.slack import Workspace
from tests.waiting import wait_until


@pytest.fixture
def transport() -> str:
    return "http"


@pytest.fixture
def people(people: People, request: pytest.FixtureRequest) -> People:
    given: dict[str, dict[str, str]] = getattr(request, "param", {})
    return People(people.persons, given.get("channels", {}), given.get("mentions", {}))


@pytest.fixture
def settings_of_slack(settings_of_slack: dict[str, Any], request: pytest.FixtureRequest) -> dict[str, Any]:
    return settings_of_slack | getattr(request, "param", {})


async def failures(studio: Studio) -> list[tuple[int, str | None]]:
    rows = await studio.pool.fetch("SELECT failures, failure FROM approval_notice")
    return [(row["failures"], row["failure"]) for row in rows]


async def sweep(studio: Studio) -> int:
    """How many notices the sweeper sends again, a minute after they failed."""
    await studio.pool.execute("UPDATE approval_notice SET failed_at = failed_at - interval '1 minute'")
    found: Any = await sweeper.handlers(studio.desk)[sweeper.SWEEP](cast("Run", None))
    return found["notices"]


async def test_a_message_is_posted_so_that_nothing_in_it_unfurls_or_is_parsed(studio: Studio) -> None:
    _, message = await studio.ask_and_see()
    assert message.flags == {
        "unfurl_links": False,
        "unfurl_media": False,
        "parse": "none",
        "mrkdwn": False,
        "link_names": False,
    }


async def test_calls_that_join_a_request_post_nothing_more(studio: Studio) -> None:
    first, _ = await studio.ask_and_see()
    for _ in range(5):
        assert (await studio.ask()).id == first.id
    await studio.settled()
    assert len(studio.slack.in_channel(CHANNEL)) == 1


async def test_a_burst_becomes_one_message_each_and_no_faster_than_slack_takes_them(studio: Studio) -> None:
    studio.slack.post_every_s = POST_EVERY_S
    asked = [await studio.ask(count=number) for number in range(12)]
    await wait_until(lambda: len(studio.slack.in_channel(CHANNEL)) == 12, "every request is in the channel")
    messages = [await studio.message(approval) for approval in asked]
    assert len({message.ts for message in messages}) == 12
    assert all(approval.fingerprint in message.words() for approval, message in zip(asked, messages, strict=True))
    assert studio.failed == []
    await yes(studio.desk, asked[3])
    await studio.becomes(messages[3], "Done at")
    assert len(studio.slack.in_channel(CHANNEL)) == 12


@pytest.mark.parametrize("post_every_s", [600], indirect=True)
async def test_what_waits_for_its_turn_holds_no_worker(studio: Studio) -> None:
    for number in range(3):
        await studio.ask(count=number)
    later = "SELECT count(*) = 2 FROM work WHERE state = 'queued' AND run_at > clock_timestamp() + interval '5 minutes'"
    await wait_until(lambda: studio.pool.fetchval(later), "two wait for their turn")
    idle = "SELECT count(*) = 0 FROM work WHERE state = 'running' AND kind = 'approval_notice'"
    await wait_until(lambda: studio.pool.fetchval(idle), "no notice holds a worker")
    assert len(studio.slack.in_channel(CHANNEL)) == 1


async def test_a_call_that_slack_finds_too_fast_waits_as_long_as_slack_says(studio: Studio) -> None:
    studio.slack.broken["chat.postMessage"] = [(429, {"ok": False, "error": "ratelimited"}, {"Retry-After": "1"})]
    _, message = await studio.ask_and_see()
    waited = "SELECT run_at - created_at >= interval '1 second' FROM work WHERE kind = 'approval_notice'"
    assert await studio.pool.fetchval(waited)
    assert message.buttons()
    assert len(studio.failed) == 1


@pytest.mark.parametrize(
    ("status", "body", "word"),
    [
        (200, {"ok": False, "error": "not_in_channel"}, "not_in_channel"),
        (200, {"ok": False, "error": "invalid_auth"}, "invalid_auth"),
        (200, {"ok": True, "channel": CHANNEL}, "no_ts"),
        (200, {"ok": True, "ts": ""}, "no_channel"),
        (500, {"oh": "no"}, "http_500"),
        (200, {"ok": False, "error": "<script>"}, "http_200"),
    ],
    ids=["not_in_channel", "invalid_auth", "no_ts", "no_channel", "http_500", "no_word"],
)
async def test_a_failure_is_seen_counted_and_tried_again(
    studio: Studio, status: int, body: dict[str, Any], word: str
) -> None:
    studio.slack.broken["chat.postMessage"] = [(status, body, {})] * 50
    await studio.ask()
    await wait_until(lambda: len(studio.failed) >= 3, "three failures are counted")
    ((count, failure),) = await failures(studio)
    assert (count >= 3, failure) == (True, word)
    studio.slack.broken.clear()
    await wait_until(lambda: studio.slack.in_channel(CHANNEL), "it is posted in the end")
    await studio.settled()
    assert await failures(studio) == [(0, None)]


async def test_a_notice_that_failed_for_good_is_due_again_by_the_sweeper(studio: Studio) -> None:
    studio.slack.broken["chat.postMessage"] = [(200, {"ok": False, "error": "fatal_error"}, {})] * 8
    approval = await studio.ask()
    failed = "SELECT count(*) FROM work WHERE kind = 'approval_notice' AND state = 'failed'"
    await wait_until(lambda: studio.pool.fetchval(failed), "the notice has failed for good")
    assert studio.slack.in_channel(CHANNEL) == []
    assert await sweep(studio) == 1
    assert (await studio.message(approval)).buttons()
    await studio.settled()
    assert await sweep(studio) == 0


async def test_a_slack_that_is_away_fails_nothing_but_the_notice(studio: Studio) -> None:
    studio.slack.broken["auth.test"] = [(503, {}, {})] * 2
    approval = await studio.ask()
    await wait_until(lambda: len(studio.failed) == 2, "Slack was not there")
    assert (await studio.message(approval)).buttons()


async def test_a_message_whose_posting_was_not_recorded_is_inert_and_says_so(studio: Studio) -> None:
    approval, first = await studio.ask_and_see()
    await studio.pool.execute("DELETE FROM approval_notice")  # as a kill between post and record leaves it
    assert await sweep(studio) == 1
    second = await studio.message(approval)
    assert second.ts != first.ts
    await studio.slack.click(ANNA, first, "approve")
    await wait_until(lambda: studio.slack.told, "the person is told")
    assert "not the one that counts" in studio.slack.told[0]["text"]
    assert await studio.votes(approval) == 0
    await studio.slack.click(ANNA, second, "approve")
    await studio.becomes(second, "Done at")


async def test_a_message_that_somebody_deleted_is_posted_again_while_people_are_asked(studio: Studio) -> None:
    approval, message = await studio.ask_and_see("remove")
    studio.slack.messages.remove(message)
    await yes(studio.desk, approval)
    await wait_until(lambda: studio.slack.in_channel(CHANNEL), "it is asked again")
    again = await studio.message(approval)
    assert "1 of 2" in again.words()
    await studio.slack.click(BEN, again, "approve")
    await studio.becomes(again, "Done at")


async def test_a_deleted_message_of_something_decided_stays_deleted(studio: Studio) -> None:
    approval, message = await studio.ask_and_see()
    studio.slack.messages.remove(message)
    await no(studio.desk, approval)
    await studio.settled()
    assert studio.slack.in_channel(CHANNEL) == []
    assert await sweep(studio) == 0


async def test_the_message_follows_what_was_decided_elsewhere(studio: Studio) -> None:
    approval, message = await studio.ask_and_see()
    await studio.desk.vote(approval.id, digest=approval.digest, voter=voter("ben", "mfa"), verdict="approve")
    await studio.becomes(message, "Done at")
    assert "Yes: person:ben, by the approval page, with a code" in message.words()


async def test_a_request_that_expires_becomes_a_record_that_says_it_is_no_refusal(studio: Studio) -> None:
    approval, message = await studio.ask_and_see()
    await past_its_time(studio.pool, approval.id)
    await studio.desk.expire(approval.id)
    await studio.becomes(message, "That is not a refusal")
    assert set(message.buttons()) == {"page"}


async def test_a_call_that_takes_long_is_shown_as_running(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_LOOK_AGAIN_S", 0.05)
    studio.hold.clear()
    approval, message = await studio.ask_and_see()
    await yes(studio.desk, approval)
    await studio.becomes(message, "It is running")
    studio.hold.set()
    await studio.becomes(message, "Done at")


async def test_what_was_decided_before_it_was_shown_is_not_posted_any_more(studio: Studio) -> None:
    studio.slack.broken["chat.postMessage"] = [(200, {"ok": False, "error": "fatal_error"}, {})] * 2
    approval = await studio.ask()
    await wait_until(lambda: studio.failed, "it could not be shown")
    await no(studio.desk, approval)
    await studio.settled()
    assert len(studio.slack.in_channel(CHANNEL)) <= 1
    assert await sweep(studio) == 0


async def test_the_same_look_is_not_sent_twice(studio: Studio) -> None:
    approval, message = await studio.ask_and_see()
    await studio.pool.execute("SELECT approval_notice_due($1)", approval.id)
    await studio.settled()
    assert len(message.history) == 1


async def test_long_arguments_stand_whole_in_the_thread_before_there_are_buttons(studio: Studio) -> None:
    value = "".join(f"{number:07}\n" for number in range(2000)) + "the tail"
    approval, message = await studio.ask_and_see(name=value)
    parts = studio.slack.in_thread(message.ts)
    text = "".join(
        block["elements"][0]["elements"][0]["text"]
        for part in parts
        for block in part.blocks
        if block["type"] == "rich_text"
    )
    assert approval.values() == {"name": value}
    assert text.count("\\n") == 2000
    assert text.endswith('the tail"\n}')
    assert f"{len(parts)} parts" in message.words()
    assert "actions" in str(message.blocks)
    assert "'action_id': 'approve'" not in str(message.history[0]), "there were buttons before there were parts"
    assert message.buttons()["approve"]
    await studio.slack.click(ANNA, message, "approve")
    await studio.becomes(message, "Done at")


async def test_parts_that_are_in_the_thread_are_not_posted_again(studio: Studio) -> None:
    studio.slack.broken["chat.postMessage"] = []

    async def fail_second_part(method: str) -> None:
        if method == "chat.postMessage" and len(studio.slack.messages) == 2 and not studio.failed:
            studio.slack.broken[method].append((500, {}, {}))

    studio.slack.before_answer = fail_second_part
    approval = await studio.ask(name="x" * 20_000)
    message = await studio.message(approval)
    await wait_until(lambda: "approve" in message.buttons(), "there are buttons")
    names = [part.blocks[0]["text"]["text"][:11] for part in studio.slack.in_thread(message.ts)]
    assert names == ["Part 1 of 3", "Part 2 of 3", "Part 3 of 3"]
    assert len(studio.failed) == 1


async def test_what_nobody_can_read_in_slack_has_no_buttons_there(studio: Studio) -> None:
    _, message = await studio.ask_and_see(name="x" * 200_000)
    assert set(message.buttons()) == {"page"}
    assert "too long for Slack" in message.words()
    assert studio.slack.in_thread(message.ts) == []


@pytest.mark.parametrize("people", [{"channels": {"security": OTHER}, "mentions": {"sre": "S0ONCALL"}}], indirect=True)
async def test_a_group_is_asked_in_its_own_channel_and_called_once(studio: Studio) -> None:
    _, in_its_own = await studio.ask_and_see("scan")
    assert in_its_own.channel == OTHER
    approval, message = await studio.ask_and_see("remove")
    assert message.channel == CHANNEL
    assert "S0ONCALL" in str(message.history[0])
    studio.slack.messages.remove(message)
    await yes(studio.desk, approval)
    await wait_until(lambda: studio.slack.in_channel(CHANNEL), "it is posted again")
    await studio.settled()
    assert "S0ONCALL" not in studio.slack.in_channel(CHANNEL)[0].words()


@pytest.mark.parametrize("people", [{"mentions": {"sre": "S0ONCALL"}}], indirect=True)
async def test_who_was_not_called_because_slack_refused_is_called_in_the_next_try(studio: Studio) -> None:
    studio.slack.broken["chat.postMessage"] = [(200, {"ok": False, "error": "not_in_channel"}, {})]
    _, message = await studio.ask_and_see()
    assert len(studio.failed) == 1
    assert "S0ONCALL" in str(message.history[0])


@pytest.mark.parametrize("post_every_s", [0.3], indirect=True)
async def test_an_approved_call_begins_at_once_while_long_requests_are_written(studio: Studio) -> None:
    small, _ = await studio.ask_and_see(count=77)
    hold = asyncio.Event()

    async def stop(method: str) -> None:
        if method == "chat.postMessage" and len(studio.slack.messages) >= 5:
            await hold.wait()  # a slow machine is not to get further meanwhile

    studio.slack.before_answer = stop
    for number in range(4):  # as many as the worker runs at once
        await studio.ask(name=f"{number}" + "x" * 150_000)
    await wait_until(lambda: len(studio.slack.messages) >= 5, "parts are being written")
    await yes(studio.desk, small)
    await wait_until(lambda: studio.effects, "the call begins")
    assert len([message for message in studio.slack.messages if message.thread]) < 8
    hold.set()


async def test_however_slow_slack_is_notices_hold_one_place_of_a_worker(studio: Studio) -> None:
    small, _ = await studio.ask_and_see(count=77)
    hold = asyncio.Event()

    async def hang(method: str) -> None:
        if method == "chat.postMessage":
            await hold.wait()

    studio.slack.before_answer = hang
    for number in range(10):
        await studio.ask(count=100 + number)
    await wait_until(lambda: studio.slack.calls.count("chat.postMessage") == 2, "Slack does not answer")
    await yes(studio.desk, small)
    await wait_until(lambda: studio.effects, "the call begins")
    assert studio.slack.calls.count("chat.postMessage") == 2
    hold.set()


async def test_a_record_keeps_the_form_that_was_posted(studio: Studio) -> None:
    counts = iter(range(800, 300, -50))
    approval, message = await studio.ask_and_see(name='say "x" ' * next(counts), headline="Ingest")
    while "All arguments" not in message.words():
        approval, message = await studio.ask_and_see(name='say "x" ' * next(counts), headline="Ingest")
    assert "All arguments" in message.words()
    await no(studio.desk, approval, reason="<&>" * 160)
    await studio.becomes(message, "Denied")
    assert "in the thread" not in message.words()
    assert "All arguments" in message.words() or "stood here while it was open" in message.words()


async def test_a_record_says_how_many_parts_were_written(studio: Studio) -> None:
    approval = await studio.ask(name="x" * 60_000)
    refuse: tuple[int, Json, dict[str, str]] = (500, {}, {})

    async def stop(method: str) -> None:
        if method == "chat.postMessage" and len(studio.slack.messages) == 3:
            studio.slack.broken[method] = [refuse] * 50

    studio.slack.before_answer = stop
    await wait_until(lambda: studio.failed, "the third part fails")
    await no(studio.desk, approval)
    (message,) = studio.slack.in_channel(CHANNEL)
    await studio.becomes(message, "2 of 8 parts")


async def test_what_slack_finds_too_long_goes_into_the_thread_and_then_to_the_page(studio: Studio) -> None:
    too_long: tuple[int, Json, dict[str, str]] = (200, {"ok": False, "error": "msg_blocks_too_long"}, {})
    studio.slack.broken["chat.postMessage"] = [too_long]
    _, message = await studio.ask_and_see()
    assert len(studio.slack.in_thread(message.ts)) == 1
    await wait_until(lambda: "approve" in message.buttons(), "there are buttons")
    studio.slack.broken["chat.postMessage"] = [too_long] * 2
    _, message = await studio.ask_and_see(count=2)
    assert set(message.buttons()) == {"page"}
    assert studio.failed == []


async def test_a_request_whose_message_went_while_its_parts_were_written_is_asked_again(studio: Studio) -> None:
    async def remove(method: str) -> None:
        if method == "chat.postMessage" and len(studio.slack.messages) == 2:
            studio.slack.before_answer = None
            del studio.slack.messages[0]

    studio.slack.before_answer = remove
    approval = await studio.ask(name="x" * 30_000)
    message = await studio.message(approval)
    await wait_until(lambda: "approve" in message.buttons(), "it is asked anew, whole")
    assert (await failures(studio))[0] == (0, None)
    assert len(studio.slack.in_thread(message.ts)) == 4


@pytest.mark.parametrize("settings_of_slack", [{"slack_channel": None}], indirect=True)
async def test_without_a_channel_the_failure_says_so(studio: Studio) -> None:
    await studio.ask()
    await wait_until(lambda: studio.failed, "the failure is counted")
    assert (await failures(studio))[0][1] == "no_channel"


async def test_a_process_without_a_token_has_no_slack(make_desk: MakeDesk, slack: Workspace) -> None:
    desk = make_desk()
    nothing = open_slack(
        load_settings({}),
        pool=desk.pool,
        desk=desk,
        people=desk.people,
        pages=lambda: None,
        failed=lambda: None,
        listen=True,
    )
    async with nothing as found:
        assert found is None
    assert slack.calls == []
