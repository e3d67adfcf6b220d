"""Owns the frame around every page: head, top line, messages, and the files that the browser gets beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.resources import files

from approvals.page.logins import Login
from approvals.page.markup import Html, document, tag
from approvals.page.messages import PageAnswer
from body_broker.errors import BodyBrokerError, WireError, on_the_wire

_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
# Read when the hub starts: three small files.
_FILES: Mapping[str, bytes] = {
    name: files("approvals.page").joinpath("static", name).read_bytes() for name in ("page.css", "page.js", "mark.svg")
}
_VERSION = hashlib.sha256(b"\0".join(_FILES.values())).hexdigest()[:12]


def static(name: str) -> PageAnswer | None:
    """One of our files; None where there is none of this name."""
    found = _FILES.get(name)
    if found is None:
        return None
    return PageAnswer(body=found, content_type=_TYPES[name.rpartition(".")[2]], lasting=True)


def page(
    title: str,
    *content: Html | None,
    login: Login | None = None,
    token: str = "",
    name: str = "",
    narrow: bool = False,
    again: str | None = None,
) -> bytes:
    """A whole page.

    Args:
        title: Of the window.
        content: What stands in it.
        login: Who is logged in, for the top line.
        token: The form token of this browser.
        name: How the person is called.
        narrow: A column as narrow as a form.
        again: A path that the browser goes to by itself, at once.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="robots", content="noindex"),
        tag("meta", http_equiv="refresh", content=f"0; url={again}") if again else None,
        tag("title", f"{title} · Body Broker"),
        tag("link", rel="icon", href=_address("mark.svg"), type="image/svg+xml"),
        tag("link", rel="stylesheet", href=_address("page.css")),
        tag("script", src=_address("page.js"), defer=True),
    )
    body = tag(
        "body",
        tag("a", "To the content", class_="skip", href="#content"),
        _top(login, token, name),
        tag("main", tag("div", content, class_="narrow") if narrow else content, id="content"),
        data_token=token,
    )
    return document(tag("html", head, body, lang="en"))


def _address(name: str) -> str:
    return f"/static/{name}?v={_VERSION}"


def _top(login: Login | None, token: str, name: str) -> Html:
    mark = tag("img", src=_address("mark.svg"), alt="", width=26, height=26)
    brand = tag("a", mark, tag("span", "Body Broker"), class_="brand", href="/approvals")
    if login is None:
        return tag("header", brand, class_="top")
    leave = tag(
        "form", hidden("csrf", token), tag("button", "Log out", class_="quiet"), method="post", action="/logout"
    )
    return tag("header", brand, tag("span", name or login.person, class_="who"), leave, class_="top")


def hidden(name: str, value: str) -> Html:
    """A field that is not seen."""
    return tag("input", type="hidden", name=name, value=value)


def note(text: str | Html, kind: str = "", **attributes: str | bool) -> Html:
    """A line that stands out; `kind` is yes, no, wait or nothing."""
    return tag("p", text, class_=f"note {kind}".strip(), **attributes)


def passkey_says(name: str) -> Html:
    """Where the script says what went wrong with a passkey."""
    return tag("p", id=name, class_="note no", role="alert", tabindex=-1, hidden=True)


def alert(error: BodyBrokerError | None) -> Html | None:
    """What went wrong, and what to do."""
    if error is None:
        return None
    told = on_the_wire(error)
    return note(said(told), "no", role="alert")


def said(told: WireError) -> str:
    """An error as people read it."""
    wait = f" Try again in {max(1, round(told.retry_after_s))} seconds." if told.retry_after_s else ""
    return f"{told.message} {told.next_step}{wait}"


def failure(title: str, text: str, status: int, login: Login | None = None, token: str = "") -> PageAnswer:
    """A page that says only that something did not work."""
    back = tag("p", tag("a", "To your approvals", href="/approvals"))
    box = tag("div", tag("h1", title), tag("p", text), back, class_="box")
    return PageAnswer(status=status, body=page(title, box, login=login, token=token, narrow=True))
