"""Owns the pictures of the approval page in the docs: a real call on a throw-away hub, seen by a real browser.

Run `python -m tests.tools.approval_pictures`; needs chromium.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from playwright.async_api import Page

from body_broker.settings import Settings, load_settings
from mcp_servers.hub.runtime import Runtime, open_runtime
from mcp_servers.hub.serve import Address, listening
from tests.browsers import LAPTOP, PHONE, give_authenticator, open_browser, open_page
from tests.components import scratch_dir
from tests.waiting import wait_until

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
APPROVERS = """
[people.anna]
name = "Anna Ek"
groups = ["sre", "admin"]

[people.ben]
name = "Ben Oduya"
groups = ["designer"]
"""
CHANGE = {"kind": "config", "target": "flags.night_market", "params": {"value": True}}
REASON = "The autumn event opens at 18:00, and the market is part of it."


async def main() -> None:
    """Make every picture anew."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="body-broker-pictures-", dir=scratch_dir()))
    approvers = folder / "approvers.toml"
    approvers.write_text(APPROVERS, "utf-8")
    try:
        await _take(load_settings({}, data_dir=folder, embeddings="off", approvers=approvers, approval_wait_s=60))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _take(settings: Settings) -> None:
    async with (
        open_runtime(settings) as runtime,
        listening(runtime, Address("127.0.0.1", 0)) as hub,
        open_browser() as browser,
        asking(runtime, hub.url) as call,
        open_page(browser, LAPTOP, device_scale_factor=2) as page,
    ):
        base = hub.url.removesuffix("/mcp").replace("127.0.0.1", "localhost")
        await _come_in(runtime, page, base)
        waiting = await wait_until(lambda: runtime.approvals.desk.everything(standings=["pending"]), "people are asked")
        where = f"{base}/approve/{waiting[0].id}"
        await page.goto(where)
        await page.screenshot(path=PICTURES / "approval-page.png", full_page=True)
        await page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
        await page.emulate_media(color_scheme="dark")
        await page.screenshot(path=PICTURES / "approval-page-phone.png", full_page=True)
        await page.get_by_role("button", name="Approve with my passkey").click()
        await call
        await page.get_by_text("Done", exact=True).wait_for()
        await page.screenshot(path=PICTURES / "approval-page-done.png")


@asynccontextmanager
async def asking(runtime: Runtime, url: str) -> AsyncGenerator[asyncio.Task[object]]:
    """An agent that makes the call of the pictures, and waits."""
    token = (await runtime.tokens.issue("tier:bronze", roles=(), ttl_s=600)).token
    async with (
        httpx2.AsyncClient(headers={"authorization": f"Bearer {token}"}, timeout=90) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        yield asyncio.create_task(client.call_tool("approve_change", {"change_request": CHANGE, "reason": REASON}))


async def _come_in(runtime: Runtime, page: Page, base: str) -> None:
    """A passkey for anna in this browser, and a login with it."""
    invite = await runtime.approvals.factors.invite("person:anna", by="operator:pictures")
    await page.goto(f"{base}/enroll/{invite.token}")
    await give_authenticator(page)
    await page.get_by_role("button", name="Make a passkey").click()
    await page.get_by_role("heading", name="Enrolled").wait_for()
    await page.goto(f"{base}/login")
    await page.get_by_role("button", name="Log in with a passkey").click()
    await page.wait_for_url(f"{base}/approvals")


if __name__ == "__main__":
    asyncio.run(main())
