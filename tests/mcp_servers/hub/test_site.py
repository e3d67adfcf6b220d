"""People's pages on a hub's own listener: no token, but Host, Origin and sizes; Slack's clicks; where a browser must be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

import httpx2
import pytest
from starlette.types import Message

from approvals.page.pages import PATHS
from approvals.slack.words import PATH as SLACK_PATH
from mcp_servers.hub import site
from mcp_servers.hub.site import SLACK_BYTES_MAX
from tests.mcp_servers.hub.conftest import Hub, OpenHub


@pytest.fixture
async def http() -> AsyncGenerator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(timeout=60) as found:
        yield found


def filled(path: str) -> str:
    return path.replace("{}", "apr_nothing-of-this-name-is-here")


async def test_every_page_is_served_without_a_token_and_tells_a_stranger_nothing(
    hub: Hub, http: httpx2.AsyncClient
) -> None:
    base = hub.base.replace("127.0.0.1", "localhost")
    for path in sorted(PATHS):
        for verb in ("GET", "POST", "PUT", "DELETE"):
            answer = await http.request(verb, base + filled(path))
            # To the login, or a page that says no; a form without its token is refused.
            assert answer.status_code in {200, 303, 401, 403, 404, 405, 501}, (verb, path)
            assert "www-authenticate" not in answer.headers
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            if answer.status_code == 200:
                assert path in {"/login", "/enrolled"}, (verb, path)


async def test_host_and_origin_are_checked_for_pages_too(hub: Hub, http: httpx2.AsyncClient) -> None:
    for path in sorted(PATHS):
        url = hub.base + filled(path)
        assert (await http.get(url, headers={"host": "evil.example"})).status_code == 421
        assert (await http.post(url, headers={"origin": "https://evil.example"})).status_code == 403


async def test_the_address_in_numbers_leads_to_localhost_and_keeps_path_and_query(
    hub: Hub, http: httpx2.AsyncClient
) -> None:
    there = hub.base.replace("127.0.0.1", "localhost")
    for path in ("/login?next=/approvals", "/approve/apr_%2e%2e//x", "/approvals"):
        answer = await http.get(hub.base + path)
        if answer.status_code == 307:
            assert answer.headers["location"] == there + path
    assert (await http.get(hub.base + "/login?next=/approvals")).status_code == 307
    assert (await http.get(hub.base + "/healthz")).status_code == 200


async def test_a_path_cannot_lead_a_browser_away(hub: Hub, http: httpx2.AsyncClient) -> None:
    for path in ("//evil.example/approvals", "/%0d%0aset-cookie:x=1/approvals", "/approve/..%2f..%2fx"):
        answer = await http.get(hub.base + path)
        where = answer.headers.get("location", "")
        assert where == "" or where.startswith(hub.base.replace("127.0.0.1", "localhost") + "/"), (path, where)


async def test_a_body_that_is_too_large_is_refused(hub: Hub, http: httpx2.AsyncClient) -> None:
    base = hub.base.replace("127.0.0.1", "localhost")
    answer = await http.post(f"{base}/login/totp", content=b"a=" + b"x" * 70_000)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


async def test_at_a_public_url_forms_come_from_there_alone(open_hub: OpenHub, redis: object) -> None:
    _ = redis
    public = "https://hub.studio.example"
    async with (
        open_hub(public_url=public) as hub,
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app=hub.front), base_url=public, timeout=60) as http,
    ):
        shown = await http.get("/login")
        cookie = shown.headers["set-cookie"]
        assert cookie.startswith("__Host-bb_visit=")
        assert cookie.endswith("; Secure")
        form = {"csrf": shown.text.partition('data-token="')[2].partition('"')[0]}
        right = await http.post("/login/options", headers={"origin": public}, json=form)
        assert right.status_code == 200
        assert right.json()["publicKey"]["rpId"] == "hub.studio.example"
        for origin in ("http://hub.studio.example", "http://localhost:8080", "https://hub.studio.example:444"):
            wrong = await http.post("/login/options", headers={"origin": origin}, json=form)
            assert wrong.status_code == 403, origin


async def test_slack_s_clicks_need_slack_s_signature_and_nothing_else(open_hub: OpenHub, redis: object) -> None:
    _ = redis
    slack = {
        "slack_bot_token": "xoxb-1-of-the-tests",
        "slack_signing_secret": "a-signing-secret-of-the-tests",
        "slack_channel": "C0123456789",
        "slack_api_url": "http://127.0.0.1:9/api/",
    }
    async with open_hub(**slack) as hub, httpx2.AsyncClient(timeout=60) as http:
        assert hub.front.site is not None
        assert hub.front.site.paths == PATHS | {SLACK_PATH}
        assert (await http.post(hub.base + SLACK_PATH, content=b"payload={}")).status_code == 401
        assert (await http.get(hub.base + SLACK_PATH)).status_code == 405
        large = await http.post(hub.base + SLACK_PATH, content=b"x" * (SLACK_BYTES_MAX + 1))
        assert large.status_code == 413


async def test_without_a_signing_secret_there_is_no_door_for_clicks(hub: Hub, http: httpx2.AsyncClient) -> None:
    assert (await http.post(hub.base + SLACK_PATH, content=b"payload={}")).status_code == 401
    token = await hub.token("person:anna", "sre")
    answer = await http.post(hub.base + SLACK_PATH, headers={"authorization": f"Bearer {token}"})
    assert answer.status_code == 404


async def _half_a_form(hub: Hub, then: Callable[[], Awaitable[Message]]) -> list[Message]:
    """What is sent back to somebody of whose form only the beginning came."""
    left: list[Message] = [{"type": "http.request", "body": b"name=anna&co", "more_body": True}]
    told: list[Message] = []

    async def receive() -> Message:
        return left.pop() if left else await then()

    async def send(message: Message) -> None:
        told.append(message)

    head = {
        b"host": b"localhost",
        b"origin": b"http://localhost",
        b"content-type": b"application/x-www-form-urlencoded",
    }
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/login/totp",
        "query_string": b"",
        "headers": list(head.items()),
    }
    await hub.front(scope, receive, send)
    return told


async def test_a_form_that_breaks_off_is_nobody_s_word(hub: Hub) -> None:
    async def gone() -> Message:
        return {"type": "http.disconnect"}

    assert await _half_a_form(hub, gone) == []


async def test_a_form_that_does_not_arrive_is_not_waited_for(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(site, "_BODY_S", 0.01)
    start = (await _half_a_form(hub, never))[0]
    assert start["status"] == 408
    assert (b"connection", b"close") in start["headers"]


async def test_what_stands_in_a_path_stays_in_it(hub: Hub) -> None:
    told: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        told.append(message)

    raw = b"/login\r\nx-evil: 1"
    scope = {"type": "http", "method": "GET", "path": "/login", "raw_path": raw, "query_string": b"a=\xe9\r\n"}
    await hub.front(scope | {"headers": [(b"host", b"127.0.0.1:8080")]}, receive, send)
    where = dict(told[0]["headers"])[b"location"]
    assert where == b"http://localhost:8080/login%0D%0Ax-evil:%201?a=%E9%0D%0A"
