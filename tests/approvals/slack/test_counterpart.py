"""Owns the proof that our Slack is like Slack: an official slack-bolt app works against it, over HTTP and over Socket Mode."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from aiohttp import web
from slack_bolt.adapter.socket_mode.async_handler import AsyncSocketModeHandler
from slack_bolt.async_app import AsyncApp, AsyncBoltRequest
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient

from tests.counterparts.slack import Workspace, workspace
from tests.waiting import wait_until

CHANNEL, USER = "C0TEST001", "U0ANNA00"
BUTTON = {"type": "button", "action_id": "go", "text": {"type": "plain_text", "text": "Go"}, "value": "x"}
BLOCKS: list[dict[str, Any]] = [
    {"type": "section", "text": {"type": "plain_text", "text": "Shall I?"}},
    {"type": "actions", "elements": [BUTTON]},
]
MODAL: dict[str, Any] = {
    "type": "modal",
    "callback_id": "why",
    "title": {"type": "plain_text", "text": "Why"},
    "submit": {"type": "plain_text", "text": "Send"},
    "blocks": [
        {
            "type": "input",
            "block_id": "reason",
            "label": {"type": "plain_text", "text": "Why?"},
            "element": {"type": "plain_text_input", "action_id": "text"},
        }
    ],
}


def make_app(slack: Workspace) -> tuple[Any, list[str]]:  # AsyncApp, whose decorators have no hints
    """A bolt app: a button opens a modal and answers in private, the modal changes the message."""
    client = AsyncWebClient(token=slack.token, base_url=slack.url)
    app: Any = AsyncApp(signing_secret=slack.signing_secret, client=client, token=slack.token)
    heard: list[str] = []

    async def on_go(ack: Any, body: Any, client: Any) -> None:  # what bolt passes in
        await ack()
        heard.append(body["actions"][0]["value"])
        await client.views_open(trigger_id=body["trigger_id"], view=MODAL)
        await client.chat_postEphemeral(channel=body["channel"]["id"], user=body["user"]["id"], text="heard")

    async def on_why(ack: Any, view: Any, client: Any) -> None:  # what bolt passes in
        said = view["state"]["values"]["reason"]["text"]["value"]
        if said == "no":
            await ack(response_action="errors", errors={"reason": "Say more."})
            return
        await ack()
        heard.append(said)
        last = slack.in_channel(CHANNEL)[-1]
        await client.chat_update(channel=last.channel, ts=last.ts, text=f"Because {said}")

    app.action("go")(on_go)
    app.view("why")(on_why)
    return app, heard


async def use(slack: Workspace, app: Any, heard: list[str]) -> None:
    """What a person does with that app."""
    await app.client.chat_postMessage(channel=CHANNEL, text="Shall I?", blocks=BLOCKS)
    (message,) = slack.in_channel(CHANNEL)
    assert (await slack.click(USER, message, "go")).status == 200
    await wait_until(lambda: slack.told, "the app answers in private")
    assert slack.told[0]["user"] == USER
    refused = await slack.submit(USER, slack.views[-1], "no")
    assert refused.status == 200
    assert refused.body is not None
    assert refused.body["errors"] == {"reason": "Say more."}
    assert (await slack.submit(USER, slack.views[-1], "it is Monday")).status == 200
    await wait_until(lambda: message.text == "Because it is Monday", "the message is changed")
    assert heard == ["x", "it is Monday"]


@pytest.fixture
async def slack() -> AsyncGenerator[Workspace]:
    async with workspace() as found:
        found.add_user(USER)
        found.add_channel(CHANNEL, USER)
        yield found


@asynccontextmanager
async def served(app: Any) -> AsyncGenerator[str]:
    async def answer(request: web.Request) -> web.Response:
        body = await request.text()
        asked = AsyncBoltRequest(body=body, headers=dict(request.headers))
        answer = await app.async_dispatch(asked)
        return web.Response(status=answer.status, text=answer.body, content_type="application/json")

    site = web.Application()
    site.router.add_post("/slack/events", answer)
    runner = web.AppRunner(site)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/slack/events"
    await runner.cleanup()


async def test_an_official_bolt_app_works_against_it_over_signed_http(slack: Workspace) -> None:
    app, heard = make_app(slack)
    async with served(app) as slack.request_url:
        await use(slack, app, heard)
        body = slack.body_of(slack.click_payload(USER, slack.in_channel(CHANNEL)[0], BUTTON))
        assert (await slack.send(body, slack.signed(body, secret="another"))).status == 401
        assert (await slack.send(body, slack.signed(body, at=int(time.time()) - 301))).status == 401  # noqa: TID251


async def test_an_official_bolt_app_works_against_it_over_socket_mode_and_comes_again(slack: Workspace) -> None:
    app, heard = make_app(slack)
    handler: Any = AsyncSocketModeHandler(app, slack.app_token, ping_interval=0.5)
    await handler.connect_async()
    await wait_until(lambda: slack.sockets, "it is connected")
    await use(slack, app, heard)
    await slack.disconnect()
    await wait_until(lambda: len(slack.sockets) == 2 and not slack.sockets[1].closed, "it comes again")
    message = slack.in_channel(CHANNEL)[0]
    message.blocks = BLOCKS
    assert (await slack.click(USER, message, "go")).status == 200
    await wait_until(lambda: heard[-1] == "x", "the click on the new connection arrives")
    await handler.close_async()
    await asyncio.sleep(0)


REFUSALS: list[tuple[str, str, dict[str, Any]]] = [
    ("channel_not_found", "chat_postMessage", {"channel": "C0NOWHERE", "text": "x"}),
    ("not_in_channel", "chat_postMessage", {"channel": "C0OTHER01", "text": "x"}),
    ("invalid_blocks", "chat_postMessage", {"channel": CHANNEL, "text": "x", "blocks": BLOCKS[:1] * 51}),
    (
        "invalid_blocks",
        "chat_postMessage",
        {
            "channel": CHANNEL,
            "text": "x",
            "blocks": [{"type": "section", "text": {"type": "plain_text", "text": "x" * 3001}}],
        },
    ),
    (
        "invalid_blocks",
        "chat_postMessage",
        {
            "channel": CHANNEL,
            "text": "x",
            "blocks": [{"type": "header", "text": {"type": "plain_text", "text": "x" * 151}}],
        },
    ),
    (
        "invalid_blocks",
        "chat_postMessage",
        {
            "channel": CHANNEL,
            "text": "x",
            "blocks": [{"type": "actions", "elements": [BUTTON | {"value": "x" * 2001}]}],
        },
    ),
    (
        "msg_blocks_too_long",
        "chat_postMessage",
        {
            "channel": CHANNEL,
            "text": "x",
            "blocks": [{"type": "section", "text": {"type": "plain_text", "text": "x" * 2900}}] * 5,
        },
    ),
    ("message_not_found", "chat_update", {"channel": CHANNEL, "ts": "1.2", "text": "x"}),
    ("user_not_in_channel", "chat_postEphemeral", {"channel": CHANNEL, "user": "U0NOBODY", "text": "x"}),
    ("exchanged_trigger_id", "views_open", {"trigger_id": "1.2", "view": MODAL}),
    ("user_not_found", "users_info", {"user": "U0NOBODY"}),
    ("not_allowed_token_type", "apps_connections_open", {"app_token": "xoxb-test-token"}),
]


@pytest.mark.parametrize(
    ("word", "method", "given"), REFUSALS, ids=[f"{i}-{word}" for i, (word, _, _) in enumerate(REFUSALS)]
)
async def test_it_refuses_what_slack_refuses_with_slacks_word(
    slack: Workspace, word: str, method: str, given: dict[str, Any]
) -> None:
    slack.add_channel("C0OTHER01")
    slack.channels["C0OTHER01"]["members"] = []
    client: Any = AsyncWebClient(token=slack.token, base_url=slack.url)
    with pytest.raises(SlackApiError) as raised:
        await getattr(client, method)(**given)
    assert cast("Any", raised.value).response["error"] == word


async def test_it_refuses_another_token_what_is_not_in_scope_and_what_comes_too_fast(slack: Workspace) -> None:
    async def word(client: Any, **given: Any) -> str:
        with pytest.raises(SlackApiError) as raised:
            await client.chat_postMessage(channel=CHANNEL, text="x", **given)
        return cast("Any", raised.value).response["error"]

    assert await word(AsyncWebClient(token="xoxb-other", base_url=slack.url)) == "invalid_auth"
    client: Any = AsyncWebClient(token=slack.token, base_url=slack.url)
    slack.post_every_s = 60
    await client.chat_postMessage(channel=CHANNEL, text="x")
    assert await word(client) == "ratelimited"
    slack.scopes = ("users:read",)
    assert await word(client) == "missing_scope"
