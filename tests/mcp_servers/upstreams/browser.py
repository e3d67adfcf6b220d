"""Owns a person who opens the page of a login in a browser, and allows it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx2


def opened(pages: list[str]) -> Callable[[str], None]:
    """Shows a page to this person.

    Args:
        pages: What the browser shows in the end is added.
    """
    tasks: list[asyncio.Future[None]] = []

    async def browse(url: str) -> None:
        async with httpx2.AsyncClient(follow_redirects=True) as browser:
            found = await browser.get(url)
        pages.append(found.text)

    def show(url: str) -> None:
        tasks.append(asyncio.ensure_future(browse(url)))

    return show
