"""Owns the picture of the Slack card in the docs: a real request of a throw-away hub, drawn from its blocks the way Slack draws them.

Run `python -m tests.tools.slack_picture`; needs chromium. Slack itself draws the same blocks a little otherwise on each device.
"""

from __future__ import annotations

import asyncio
import html
import shutil
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from body_broker.settings import Settings
from mcp_servers.hub.runtime import Runtime, open_runtime
from mcp_servers.hub.serve import Address, listening
from tests.browsers import open_browser, open_page
from tests.components import scratch_dir
from tests.counterparts.slack import Message, Workspace, workspace
from tests.tools.approval_pictures import PICTURES, asking
from tests.waiting import wait_until

FILE = PICTURES / "slack-card.png"
CHANNEL, ANNA = "C0APPROVAL", "U0ANNA00"
APPROVERS = """
[people.anna]
name = "Anna Ek"
groups = ["sre", "admin"]
slack = "U0ANNA00"
"""
_STYLE = """
body { margin: 0; padding: 18px 22px; background: #fff; font: 15px/1.46 "Lato", "Noto Sans", "DejaVu Sans", sans-serif; color: #1d1c1d; }
.channel { font-weight: 900; font-size: 17px; padding-bottom: 10px; border-bottom: 1px solid #ddd; margin-bottom: 14px; }
.both { display: grid; grid-template-columns: 1fr 1fr; gap: 34px; } .when { color: #616061; font-size: 13px; margin-bottom: 10px; }
.message { display: grid; grid-template-columns: 36px 1fr; gap: 10px; margin-bottom: 22px; }
.icon { width: 36px; height: 36px; border-radius: 6px; background: #2b2440; color: #fff; font: 900 15px/36px sans-serif; text-align: center; }
.from b { font-weight: 900; } .from span { color: #616061; font-size: 12px; margin-left: 6px; }
.from i { font: 700 10px/1 sans-serif; background: #eee; color: #616061; padding: 2px 4px; border-radius: 2px; margin-left: 5px; }
h1 { font-size: 18px; line-height: 1.3; font-weight: 900; margin: 4px 0 8px; }
p { margin: 4px 0 8px; white-space: pre-wrap; overflow-wrap: anywhere; }
.fields { display: grid; grid-template-columns: 1fr 1fr; gap: 8px 18px; margin: 6px 0 10px; } .fields p { margin: 0; }
pre { margin: 4px 0 8px; padding: 8px; border: 1px solid #ddd; border-radius: 4px; background: #f8f8f8;
      font: 12px/1.5 "DejaVu Sans Mono", monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.context { color: #616061; font-size: 12.5px; margin: 2px 0 8px; }
button { font: 700 14px/1 inherit; padding: 9px 13px; margin: 2px 8px 4px 0; border-radius: 4px; border: 1px solid #bbb; background: #fff; color: #1d1c1d; }
button.primary { background: #007a5a; border-color: #007a5a; color: #fff; } button.danger { background: #e01e5a; border-color: #e01e5a; color: #fff; }
"""


def drawn(blocks: list[dict[str, Any]]) -> str:
    """Blocks as HTML."""
    return "".join(_DRAW[block["type"]](block) for block in blocks)


def _text(text: dict[str, Any]) -> str:
    assert text["type"] == "plain_text", "nothing else is sent"
    return html.escape(text["text"])


def _section(block: dict[str, Any]) -> str:
    fields = "".join(f"<p>{_text(field)}</p>" for field in block.get("fields", []))
    return (f"<p>{_text(block['text'])}</p>" if "text" in block else "") + (
        f"<div class='fields'>{fields}</div>" if fields else ""
    )


def _rich_text(block: dict[str, Any]) -> str:
    tags = {"rich_text_preformatted": "pre", "rich_text_section": "p"}
    return "".join(f"<{tags[e['type']]}>{_inner(e)}</{tags[e['type']]}>" for e in block["elements"])


def _inner(element: dict[str, Any]) -> str:
    return "".join(html.escape(str(part.get("text") or part.get("fallback"))) for part in element["elements"])


def _actions(block: dict[str, Any]) -> str:
    buttons = [f"<button class='{each.get('style', '')}'>{_text(each['text'])}</button>" for each in block["elements"]]
    return "".join(buttons)


def _header(block: dict[str, Any]) -> str:
    return f"<h1>{_text(block['text'])}</h1>"


def _context(block: dict[str, Any]) -> str:
    return "".join(f"<div class='context'>{_text(each)}</div>" for each in block["elements"])


_DRAW: dict[str, Callable[[dict[str, Any]], str]] = {
    "header": _header,
    "section": _section,
    "rich_text": _rich_text,
    "context": _context,
    "actions": _actions,
}


def page_of(messages: list[tuple[str, list[dict[str, Any]]]]) -> str:
    """A channel with these messages side by side, each with when it looks so."""
    shown = "".join(
        f"<div><div class='when'>{html.escape(when)}</div><div class='message'><div class='icon'>BB</div><div>"
        "<div class='from'><b>Body Broker</b><i>APP</i>"
        f"<span>{datetime.now(UTC):%H:%M}</span></div>{drawn(blocks)}</div></div></div>"
        for when, blocks in messages
    )
    return f"<meta charset='utf-8'><style>{_STYLE}</style><div class='channel'># approvals</div><div class='both'>{shown}</div>"


async def main(file: Path = FILE) -> None:
    """Make the picture anew: the request, and below it the record that the same message becomes."""
    folder = Path(tempfile.mkdtemp(prefix="body-broker-picture-", dir=scratch_dir()))
    approvers = folder / "approvers.toml"
    approvers.write_text(APPROVERS, "utf-8")
    try:
        async with workspace() as slack:
            slack.add_channel(CHANNEL, slack.add_user(ANNA))
            settings = Settings.model_validate(
                {
                    "data_dir": folder,
                    "embeddings": "off",
                    "approvers": approvers,
                    "approval_wait_s": 60,
                    "slack_bot_token": slack.token,
                    "slack_app_token": slack.app_token,
                    "slack_channel": CHANNEL,
                    "slack_api_url": slack.url,
                }
            )
            async with (
                open_runtime(settings) as runtime,
                listening(runtime, Address("127.0.0.1", 0)) as hub,
                asking(runtime, hub.url) as call,
            ):
                message = await _decided(slack, runtime, call)
            await _take(page_of([("asked", message.history[0]), ("the same message, decided", message.blocks)]), file)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _decided(slack: Workspace, runtime: Runtime, call: asyncio.Task[object]) -> Message:
    """The message of the request, once somebody has approved it and it has run."""
    noted = "SELECT count(*) = 1 FROM approval_notice WHERE shown IS NOT NULL"
    await wait_until(lambda: runtime.stores.pool.fetchval(noted), "people are asked")
    await wait_until(lambda: slack.sockets, "the hub is connected")
    (message,) = slack.in_channel(CHANNEL)
    await slack.click(ANNA, message, "approve")
    await call
    await wait_until(lambda: "Done at" in message.words(), "the message is the record")
    return message


async def _take(page_html: str, file: Path) -> None:
    async with open_browser() as browser, open_page(browser, (1060, 600)) as page:
        await page.set_content(page_html)
        await page.screenshot(path=file, full_page=True)


if __name__ == "__main__":
    asyncio.run(main())
