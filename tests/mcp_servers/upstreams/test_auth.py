"""How the hub shows itself to upstreams: secrets stay sealed, tokens go where they belong, a login is shared and renewed once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest

from body_broker.errors import NotConfigured, Unavailable
from body_broker.storage.postgres import Pool
from mcp_servers.upstreams.auth import GRANT, TOKEN, Credentials, Grant, GrantedToken
from mcp_servers.upstreams.later import Answer, LaterLink
from mcp_servers.upstreams.login import login
from mcp_servers.upstreams.model import Auth, Upstream
from tests.counterparts.upstream import HOSTILE, Saying, Served, serving
from tests.mcp_servers.upstreams.browser import opened
from tests.ports import free_port
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio

KEY = bytes(range(32))


async def quiet(done: float, total: float | None = None, message: str | None = None) -> None:
    del done, total, message


async def echoed(link: LaterLink) -> Answer:
    return await link.call("echo", {"message": "hello"}, progress=quiet, meta={}, effect="once")


@asynccontextmanager
async def linked(pool: Pool, url: str, tmp_path: Path, auth: Auth = "token") -> AsyncGenerator[LaterLink]:
    upstream, credentials = Upstream(name="ex", url=url, auth=auth, timeout_s=10.0), Credentials(pool, KEY, "ex")
    link = LaterLink(upstream, credentials, tmp_path)
    try:
        yield link
    finally:
        await link.close()


async def test_a_secret_is_sealed_for_its_place_and_its_key(pool: Pool) -> None:
    mine = Credentials(pool, KEY, "ex")
    await mine.put(TOKEN, "very-secret")
    await mine.put("env:A", "another")
    assert await mine.get(TOKEN) == "very-secret"
    assert await mine.names() == {TOKEN, "env:A"}
    assert b"very-secret" not in await pool.fetchval("SELECT sealed FROM upstream_secret WHERE name = 'token'")

    await pool.execute(
        "INSERT INTO upstream_secret SELECT 'other', name, sealed FROM upstream_secret WHERE name = 'token'"
    )
    await pool.execute(
        "UPDATE upstream_secret SET sealed = (SELECT sealed FROM upstream_secret WHERE name = 'env:A') WHERE name = 'token' AND upstream = 'ex'"
    )
    for wrong in (Credentials(pool, KEY, "other"), mine, Credentials(pool, bytes(32), "ex")):
        with pytest.raises(NotConfigured):
            await wrong.get(TOKEN)

    await mine.drop(TOKEN)
    assert await mine.get(TOKEN) is None


async def test_a_token_is_shown_and_taken_anew_where_it_is_refused(pool: Pool, tmp_path: Path) -> None:
    saying, credentials = Saying(tokens={"one"}), Credentials(pool, KEY, "ex")
    async with serving(saying) as served, linked(pool, served.url, tmp_path) as link:
        with pytest.raises(NotConfigured, match="has no token yet") as found:
            await echoed(link)
        assert "body-broker upstream token ex" in found.value.next_step
        assert saying.headers == []  # nothing is asked without it

        await credentials.put(TOKEN, "one")
        await echoed(link)

        saying.tokens = {"two"}
        with pytest.raises(NotConfigured, match="refuses the hub's token"):
            await echoed(link)
        await credentials.put(TOKEN, "two")
        await echoed(link)

    assert {shown for _, shown in saying.headers} == {"Bearer one", "Bearer two"}


@pytest.mark.parametrize("as_json", [False, True])
async def test_one_that_lets_nobody_in_is_not_configured(pool: Pool, tmp_path: Path, *, as_json: bool) -> None:
    async with (
        serving(Saying(tokens=set()), as_json=as_json) as served,
        linked(pool, served.url, tmp_path, "none") as link,
    ):
        with pytest.raises(NotConfigured) as found:
            await echoed(link)
    assert HOSTILE not in str(found.value)


async def test_a_token_goes_to_no_other_origin(pool: Pool, tmp_path: Path) -> None:
    await Credentials(pool, KEY, "ex").put(TOKEN, "one")
    other, saying = Saying(), Saying(tokens={"one"})
    async with serving(other) as elsewhere, serving(saying) as served, linked(pool, served.url, tmp_path) as link:
        await echoed(link)
        saying.redirect = elsewhere.url
        with pytest.raises(Unavailable):
            await echoed(link)

    assert ("/mcp", "Bearer one") in saying.headers
    assert other.headers == []


async def logged_in(pool: Pool, served: Served) -> Credentials:
    credentials = Credentials(pool, KEY, "ex")
    pages: list[str] = []
    await login(Upstream(name="ex", url=served.url, auth="oauth"), credentials, show=opened(pages))
    await wait_until(lambda: pages, "the person is told")
    assert "logged in" in pages[0]
    return credentials


async def test_a_login_serves_every_process(pool: Pool, tmp_path: Path) -> None:
    async with serving(Saying(), oauth=True) as served:
        async with linked(pool, served.url, tmp_path, "oauth") as link:
            with pytest.raises(NotConfigured, match="has not been logged in to") as found:
                await echoed(link)
            assert "body-broker upstream login ex" in found.value.next_step
            await logged_in(pool, served)
            await echoed(link)
        async with linked(pool, served.url, tmp_path, "oauth") as other:
            await echoed(other)

    assert served.oauth is not None
    kept = await pool.fetchval("SELECT sealed FROM upstream_secret WHERE name = 'oauth'")
    assert not [token for token in served.oauth.access_tokens if token.encode() in kept]


async def renewals(served: Served, run: Callable[[], Awaitable[Any]]) -> int:
    before = [path for path, _ in served.saying.headers].count("/token")
    await run()
    return [path for path, _ in served.saying.headers].count("/token") - before


async def test_a_token_that_is_refused_is_renewed_once_for_all(pool: Pool, tmp_path: Path) -> None:
    async with (
        serving(Saying(), oauth=True) as served,
        linked(pool, served.url, tmp_path, "oauth") as one,
        linked(pool, served.url, tmp_path, "oauth") as two,
    ):
        assert served.oauth is not None
        credentials = await logged_in(pool, served)
        await asyncio.gather(echoed(one), echoed(two))
        served.oauth.access_tokens.clear()

        count = await renewals(served, lambda: asyncio.gather(*(echoed(link) for link in (one, two) * 4)))

        assert count == 1
        assert await credentials.names() == {GRANT}

        served.oauth.access_tokens.clear()
        served.oauth.refresh_tokens.clear()
        with pytest.raises(NotConfigured, match="does not renew the hub's login"):
            await echoed(one)
        await logged_in(pool, served)
        await echoed(one)


async def test_a_token_that_ends_is_renewed_before_it_does(pool: Pool) -> None:
    now = 0.0
    async with serving(Saying(), oauth=True) as served:
        credentials = await logged_in(pool, served)
        shown = GrantedToken(credentials, clock=lambda: now)
        first = await shown.token()
        now = 3_000.0
        assert await shown.token() == first
        now = 3_590.0
        assert await renewals(served, shown.token) == 1
        assert await shown.token() != first
        assert await renewals(served, shown.token) == 0


async def test_what_a_process_left_half_way_is_taken_over(pool: Pool) -> None:
    async with serving(Saying(), oauth=True) as served:
        credentials = await logged_in(pool, served)
        assert await credentials.take(b"one that was killed")
        assert not await credentials.take(b"another")
        await pool.execute(
            "UPDATE upstream_secret SET changed_at = changed_at - interval '21 seconds' WHERE name = 'oauth lease'"
        )
        shown = GrantedToken(credentials)
        first = await shown.token()
        assert first is not None
        assert await shown.another(first) != first


async def test_one_that_cannot_be_asked_for_a_renewal_is_unavailable(pool: Pool) -> None:
    credentials = Credentials(pool, KEY, "ex")
    grant = Grant(
        access="a",
        refresh="r",
        lives_s=None,
        endpoint=f"http://127.0.0.1:{free_port()}/token",
        client_id="c",
        client_secret=None,
        method="none",
        resource=None,
    )
    await credentials.put(GRANT, grant.written())
    with pytest.raises(Unavailable):
        await GrantedToken(credentials).another("a")


async def test_an_answer_of_another_state_is_no_answer(pool: Pool) -> None:
    credentials, statuses = Credentials(pool, KEY, "ex"), list[int]()
    pages: list[str] = []
    allow = opened(pages)
    attempts: list[asyncio.Task[None]] = []

    async def attack(url: str) -> None:
        callback = parse_qs(urlsplit(url).query)["redirect_uri"][0]
        async with httpx2.AsyncClient() as browser:
            for query in ("?code=evil&state=guessed", "?code=evil", "/../x?code=evil&state=x"):
                statuses.append((await browser.get(callback + query)).status_code)
        allow(url)

    async with serving(Saying(), oauth=True) as served:
        await login(
            Upstream(name="ex", url=served.url, auth="oauth"),
            credentials,
            show=lambda url: attempts.append(asyncio.ensure_future(attack(url))),
        )

    assert statuses == [400, 400, 400]
    assert await credentials.names() == {GRANT}


async def test_a_login_that_is_not_allowed_or_not_asked_for_keeps_nothing(pool: Pool) -> None:
    credentials = Credentials(pool, KEY, "ex")

    async def refuse(url: str) -> None:
        asked = parse_qs(urlsplit(url).query)
        answer = f"{asked['redirect_uri'][0]}?error=access_denied&state={asked['state'][0]}"
        async with httpx2.AsyncClient() as browser:
            await browser.get(answer)

    tasks: list[asyncio.Task[None]] = []
    async with serving(Saying(), oauth=True) as served, serving(Saying()) as open_to_all:
        with pytest.raises(NotConfigured, match="not allowed"):
            await login(
                Upstream(name="ex", url=served.url, auth="oauth"),
                credentials,
                show=lambda url: tasks.append(asyncio.ensure_future(refuse(url))),
            )
        with pytest.raises(NotConfigured, match="asked for no login"):
            await login(Upstream(name="ex", url=open_to_all.url, auth="oauth"), credentials, show=lambda _: None)
        with pytest.raises(Unavailable):
            await login(Upstream(name="ex", url=served.url, auth="oauth"), credentials, show=lambda _: None, wait_s=0.5)

    assert await credentials.names() == frozenset()
