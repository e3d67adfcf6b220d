"""The pages in a real browser against a served hub: enrol a passkey, log in, approve and deny; the call runs or is refused."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fido2.utils import websafe_decode
from playwright.async_api import Browser, Page, expect

from approvals.factors import vote_challenge
from approvals.factors.totp import code_at
from approvals.model import Approval
from body_broker.calls import Caller
from mcp_servers.hub.worker import working
from tests.browsers import LAPTOP, PATIENCE_MS, PHONE, give_authenticator, open_browser, open_page
from tests.components import scratch_dir
from tests.mcp_servers.hub.clocks import wall_clock
from tests.mcp_servers.hub.conftest import Hub, OpenHub, error_of
from tests.mcp_servers.hub.deciding import next_code
from tests.waiting import wait_until

pytestmark = pytest.mark.requires("chromium")
expect.set_options(timeout=PATIENCE_MS)

# Text whose contrast with what is behind it is under 4.5 to 1 (WCAG AA).
FAINT = """() => {
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => { const [r, g, b] = c.map((v) => ((v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
                         return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = parts(getComputedStyle(e).backgroundColor);
                          if (c.length < 4 || c[3] === 1) return c.slice(0, 3); } return [255, 255, 255]; };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()) || !e.checkVisibility()) continue;
    const [a, b] = [light(parts(getComputedStyle(e).color).slice(0, 3)), light(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${e.tagName} ${e.className} ${ratio.toFixed(2)}`);
  }
  return found;
}"""
# Fields without a label, and buttons and links without a name.
UNNAMED = """() => [
  ...[...document.querySelectorAll('input:not([type=hidden]), textarea')].filter((f) => !f.labels.length),
  ...[...document.querySelectorAll('button, a')].filter((b) => !b.textContent.trim()),
].map((e) => e.outerHTML)"""

APPROVERS = """
[people.anna]
name = "Anna Ek"
groups = ["sre"]

[people.ben]
groups = ["sre"]
"""


@pytest.fixture
async def browser() -> AsyncGenerator[Browser]:
    async with open_browser() as found:
        yield found


@pytest.fixture
def approvers(tmp_path: Path) -> Path:
    file = tmp_path / "people.toml"
    file.write_text(APPROVERS, "utf-8")
    return file


@pytest.fixture
async def hub(open_hub: OpenHub, redis: object, approvers: Path) -> AsyncGenerator[Hub]:
    _ = redis  # flushed before the test
    async with open_hub(approvers=approvers, approval_wait_s=280) as found, working(found.runtime):
        yield found


@pytest.fixture
async def own_hub(open_hub: OpenHub, approvers: Path) -> AsyncGenerator[Hub]:
    """A hub with its own stores, where a name and a code are a login."""
    folder = Path(tempfile.mkdtemp(prefix="body-broker-pages-", dir=scratch_dir()))
    own = {"database_url": None, "redis_url": None, "secret_key": None, "data_dir": folder}
    async with open_hub(approvers=approvers, approval_wait_s=280, **own) as found:
        yield found
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def at_localhost(hub: Hub, path: str) -> str:
    return hub.base.replace("127.0.0.1", "localhost") + path


async def enrol(hub: Hub, page: Page, person: str) -> None:
    """A passkey by the one-time link, as a person makes it."""
    invite = await hub.runtime.approvals.factors.invite(person, by="operator:test")
    await page.goto(at_localhost(hub, f"/enroll/{invite.token}"))
    await page.get_by_role("button", name="Make a passkey").click()
    await expect(page.get_by_role("heading", name="Enrolled")).to_be_visible()


async def log_in(hub: Hub, page: Page, path: str = "/approvals") -> None:
    await page.goto(at_localhost(hub, path))
    await page.get_by_role("button", name="Log in with a passkey").click()
    await page.wait_for_url(at_localhost(hub, path))


@asynccontextmanager
async def asking(hub: Hub, text: str, principal: str = "tier:bronze", *roles: str) -> AsyncGenerator[asyncio.Task[Any]]:
    """A call that waits for people."""
    async with hub.client(principal, *roles) as client:
        arguments = {"text": text, "reason": "The patch is due."}
        yield asyncio.create_task(client.call_tool("fx_write", arguments))


async def asked_for(hub: Hub) -> Approval:
    async def one() -> list[Approval]:
        return await hub.runtime.approvals.desk.everything(standings=["pending"])

    return (await wait_until(one, "people are asked"))[0]


async def with_passkey(hub: Hub, page: Page) -> None:
    await page.goto(at_localhost(hub, "/login"))
    await give_authenticator(page)
    await enrol(hub, page, "person:anna")


async def test_a_passkey_is_enrolled_by_its_link_logs_in_and_approves_and_the_call_runs(
    hub: Hub, browser: Browser
) -> None:
    async with open_page(browser) as page, asking(hub, "patch the gate") as call:
        await with_passkey(hub, page)
        approval = await asked_for(hub)
        await log_in(hub, page)
        await page.get_by_role("link", name="fx_write").click()
        await expect(page.get_by_text(approval.fingerprint)).to_be_visible()
        await page.get_by_role("button", name="Approve with my passkey").click()
        assert (await call).structured_content["said"] == "patch the gate"
        # The page notices by itself what became of it.
        await expect(page.get_by_text("Done", exact=True)).to_be_visible()
        await expect(page.get_by_role("button", name="Approve with my passkey")).to_have_count(0)
    voted = (await hub.runtime.approvals.desk.get(approval.id)).votes[0]
    assert (voted.voter, voted.via, voted.factor) == ("person:anna", "mfa", "passkey")


async def test_who_has_a_passkey_and_a_code_confirms_and_signs_with_the_passkey_which_is_kept_as_evidence(
    hub: Hub, browser: Browser
) -> None:
    factors = hub.runtime.approvals.factors
    async with open_page(browser) as page, asking(hub, "patch the gate") as call:
        await with_passkey(hub, page)
        invite = await factors.invite("person:anna", by="operator:test")
        secret = (await factors.begin_totp(invite.token)).secret
        await factors.finish_totp(invite.token, code_at(secret, wall_clock()()))
        await log_in(hub, page)
        await page.get_by_role("button", name="Confirm with my passkey").click()
        await expect(page.get_by_text("it counts from now on")).to_be_visible()
        approval = await asked_for(hub)
        await page.goto(at_localhost(hub, f"/approve/{approval.id}"))
        await expect(page.get_by_role("button", name="Approve with my code")).to_be_visible()
        await page.get_by_role("button", name="Approve with my passkey").click()
        await call
    kept: str = await hub.runtime.stores.pool.fetchval("SELECT evidence::text FROM approval_vote")
    evidence = json.loads(kept)
    told = json.loads(websafe_decode(evidence["client_data"]))
    assert websafe_decode(told["challenge"]) == vote_challenge(approval.id, approval.digest, "approve")
    assert told["origin"] == at_localhost(hub, "")
    assert {"signature", "authenticator_data", "public_key"} <= evidence.keys()


async def test_a_denial_s_reason_reaches_whoever_asked(hub: Hub, browser: Browser) -> None:
    async with open_page(browser) as page, asking(hub, "open the vault") as call:
        await with_passkey(hub, page)
        approval = await asked_for(hub)
        await log_in(hub, page, f"/approve/{approval.id}")
        await page.get_by_label("Reason").fill("Not before <b>Monday</b>.")
        await page.get_by_role("button", name="Deny with my passkey").click()
        error = error_of(await call)
        assert (error["code"], error["reason"]) == ("approval_denied", "Not before <b>Monday</b>.")
        await expect(page.get_by_text("Denied by Anna Ek")).to_be_visible()
        await expect(page.get_by_text("Not before <b>Monday</b>.").first).to_be_visible()
    assert hub.seen.calls == []


async def test_without_javascript_a_code_logs_in_and_approves_and_a_form_denies(own_hub: Hub, browser: Browser) -> None:
    factors, pool = own_hub.runtime.approvals.factors, own_hub.runtime.stores.pool
    invite = await factors.invite("person:anna", by="operator:test")
    secret = (await factors.begin_totp(invite.token)).secret
    await factors.finish_totp(invite.token, next_code(secret))

    async def code() -> str:
        """One that is good, as if the one before had been used a minute ago."""
        await pool.execute("UPDATE factor SET last_step = 0")
        return next_code(secret)

    async with open_page(browser, java_script_enabled=False) as page, asking(own_hub, "one") as call:
        approval = await asked_for(own_hub)
        await page.goto(own_hub.base + f"/approve/{approval.id}")  # by the address in numbers
        await page.get_by_label("Name").fill("anna")
        await page.get_by_label("Code").fill(await code())
        await page.get_by_role("button", name="Log in with a code").click()
        await expect(page.get_by_text(approval.fingerprint)).to_be_visible()
        assert page.url == at_localhost(own_hub, f"/approve/{approval.id}")
        approve = page.locator("form").filter(has=page.get_by_role("button", name="Approve with my code"))
        await approve.get_by_label("Code").fill(await code())
        await page.get_by_role("button", name="Approve with my code").click()
        assert (await call).structured_content["said"] == "one"
        async with asking(own_hub, "two") as denied:
            second = await asked_for(own_hub)
            await page.goto(at_localhost(own_hub, f"/approve/{second.id}"))
            deny = page.locator("form").filter(has=page.get_by_label("Reason"))
            await deny.get_by_label("Reason").fill("One is enough.")
            await deny.get_by_label("Code").fill(await code())
            await page.get_by_role("button", name="Deny with my code").click()
            assert error_of(await denied)["reason"] == "One is enough."


async def test_a_link_on_another_site_finds_who_is_logged_in(hub: Hub, browser: Browser) -> None:
    """A strict cookie does not come along with a link of Slack's; the page asks for itself once more."""
    async with open_page(browser) as page:
        await with_passkey(hub, page)
        await log_in(hub, page)
        # 127.0.0.1 is another site than localhost, and its answer is no page of ours that a script could be on.
        await page.goto(f"{hub.base}/healthz")
        await page.evaluate("url => { location.href = url }", at_localhost(hub, "/approvals"))
        await expect(page.get_by_role("heading", name="Approvals")).to_be_visible()


async def test_every_page_fits_a_phone_and_a_laptop_and_can_be_read_by_day_and_by_night(
    hub: Hub, browser: Browser
) -> None:
    long = "x" * 900 + "\n".join(f"line {n} of what it would say" for n in range(80)) + " the very end"
    async with open_page(browser) as page, asking(hub, long) as call:
        await with_passkey(hub, page)
        approval = await asked_for(hub)
        paths = ("/login", "/enrolled", "/enroll/nothing", "/approvals", f"/approve/{approval.id}")
        for path in paths:
            if path == "/approvals":
                await log_in(hub, page)
            await page.goto(at_localhost(hub, path))
            for (width, height), scheme in itertools.product((PHONE, LAPTOP), ("light", "dark")):
                await page.set_viewport_size({"width": width, "height": height})
                await page.emulate_media(color_scheme=scheme)
                where = f"{path} {width} {scheme}"
                assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), where
                assert await page.evaluate(FAINT) == [], where
                assert await page.evaluate(UNNAMED) == [], where
        hidden = "(() => { const e = document.querySelector('#arguments'); return e.scrollHeight - e.clientHeight })()"
        assert await page.evaluate(hidden) <= 0, "nothing of it stands below an edge"
        whole = await page.locator("#arguments").text_content()
        assert whole is not None
        assert "line 79 of what it would say the very end" in whole
        await hub.runtime.approvals.desk.cancel(approval.id, caller=Caller(("tier:bronze",), {}, "s"))
        await call


async def test_nothing_is_fetched_from_elsewhere_and_no_script_stands_in_a_page(hub: Hub, browser: Browser) -> None:
    async with open_page(browser) as page, asking(hub, "<script>alert(1)</script><img src=x onerror=alert(2)>") as call:
        asked: list[str] = []
        faults: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        page.on("dialog", lambda dialog: faults.append(dialog.message))
        await with_passkey(hub, page)
        approval = await asked_for(hub)
        await log_in(hub, page, f"/approve/{approval.id}")
        await expect(page.get_by_text("<img src=x onerror=alert(2)>").first).to_be_visible()
        assert await page.locator("script:not([src])").count() == 0
        assert all(url.startswith(at_localhost(hub, "/")) for url in asked), asked
        assert faults == []
        await hub.runtime.approvals.desk.cancel(approval.id, caller=Caller(("tier:bronze",), {}, "s"))
        await call
