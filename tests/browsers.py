"""Owns the browser of the tests: headless Chromium with an authenticator of its own, as a person has one in their phone."""

from __future__ import annotations

import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast

from playwright.async_api import Browser, BrowserContext, Page, async_playwright

CHROMIUM = shutil.which("chromium")
PHONE, LAPTOP = (390, 844), (1280, 800)
PATIENCE_MS = 120_000
"""For what a browser does: a busy machine takes many times as long as an idle one."""
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
)
_AUTHENTICATOR = {
    "protocol": "ctap2",
    "transport": "internal",
    "hasResidentKey": True,
    "hasUserVerification": True,
    "isUserVerified": True,
    "automaticPresenceSimulation": True,
}


@asynccontextmanager
async def open_browser() -> AsyncGenerator[Browser]:
    """A browser, ended on the way out."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(_FLAGS), timeout=PATIENCE_MS)
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def open_page(browser: Browser, size: tuple[int, int] = LAPTOP, **more: Any) -> AsyncGenerator[Page]:
    """A page of a person of its own: no cookie is shared with another."""
    context: BrowserContext = await browser.new_context(
        viewport={"width": size[0], "height": size[1]}, locale="en-GB", timezone_id="UTC", **more
    )
    context.set_default_timeout(PATIENCE_MS)
    try:
        yield await context.new_page()
    finally:
        await context.close()


async def give_authenticator(page: Page) -> None:
    """A passkey device in this page's browser; it verifies its person by itself."""
    devtools = await page.context.new_cdp_session(page)
    send = cast("Any", devtools).send  # playwright's hints do not say what a dict holds
    await send("WebAuthn.enable")
    await send("WebAuthn.addVirtualAuthenticator", {"options": _AUTHENTICATOR})
