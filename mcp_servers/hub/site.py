"""Owns people's pages on our listeners: carries a browser's request to approvals/page and its answer back, and Slack's clicks to theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import parse_qsl, quote

from starlette.types import Receive, Scope, Send

from approvals.page.messages import BODY_BYTES_MAX, PageAnswer, PageRequest
from approvals.page.pages import Pages
from approvals.slack.words import PATH as SLACK_PATH
from body_broker.errors import TooLarge
from body_broker.settings import Settings

# Slack sends the whole message along with a click.
SLACK_BYTES_MAX = 1024 * 1024
SlackDoor = Callable[[bytes, Mapping[str, str]], Awaitable[tuple[int, bytes]]]
"""`async (raw body, headers) -> (status, body)`: checks the signature itself."""
_BODY_S = 15.0
"""How long a form may take to arrive."""
_NUMERIC_LOOPBACK = ("127.0.0.1", "[::1]")


class Site:
    """What a listener serves to people's browsers, without a bearer token: the pages know people by their own login.

    Args:
        pages: The pages.
        settings: The public URL, and whether we speak TLS.
        slack: Where Slack's signed clicks go; None where they come over Socket Mode or not at all.
    """

    def __init__(self, pages: Pages, settings: Settings, slack: SlackDoor | None = None) -> None:
        self._pages, self._slack = pages, slack
        self._public = settings.public_url
        self._tls, self._behind_proxy = settings.tls_certificate is not None, settings.behind_proxy

    @property
    def paths(self) -> frozenset[str]:
        """Every path served here; {} stands for one segment."""
        return self._pages.paths | {SLACK_PATH} if self._slack else self._pages.paths

    def takes(self, path: str) -> bool:
        """Whether a path is one of these."""
        return self._pages.takes(path) or (self._slack is not None and path == SLACK_PATH)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, whose Host and Origin were checked.

        Raises:
            TooLarge: Its body is.
        """
        head = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        if self._slack is not None and scope["path"] == SLACK_PATH:
            body = await _body(receive, send, SLACK_BYTES_MAX)
            if body is None:
                return
            await _send(send, await self._clicked(self._slack, scope["method"], body, head))
            return
        host, query = head.get("host", ""), scope["query_string"].decode("latin-1")
        base = self._base(host)
        if scope["method"] in {"GET", "HEAD"} and not self._public and _name_of(host) in _NUMERIC_LOOPBACK:
            # Browsers make no passkeys on an address in numbers.
            asked = f"{_raw_path(scope)}{'?' if query else ''}{query}"
            where = base + quote(asked, safe="/?&=%+:;,@!$'()*~", encoding="latin-1")
            await _send(send, PageAnswer(status=307, headers=(("location", where),)))
            return
        body = await _body(receive, send, BODY_BYTES_MAX) if scope["method"] == "POST" else b""
        if body is None:
            return
        request = PageRequest(
            method="GET" if scope["method"] == "HEAD" else scope["method"],
            path=scope["path"],
            base=base,
            query=_pairs(query),
            cookies=_cookies(head.get("cookie", "")),
            headers=head,
            body=body,
        )
        await _send(send, await self._pages.answer(request))

    def _base(self, host: str) -> str:
        if self._public:
            return self._public
        name = _name_of(host)
        if name in _NUMERIC_LOOPBACK:
            host = f"localhost{host[len(name) :]}"
        # A proxy in front speaks TLS to everybody but this machine.
        secure = self._tls or (self._behind_proxy and _name_of(host) != "localhost")
        return f"{'https' if secure else 'http'}://{host.lower()}"

    async def _clicked(self, slack: SlackDoor, method: str, body: bytes, head: Mapping[str, str]) -> PageAnswer:
        if method != "POST":
            return PageAnswer.of_json({}, 405)
        status, told = await slack(body, head)
        kind = "application/json" if told.startswith(b"{") else "text/plain; charset=utf-8"
        return PageAnswer(status=status, body=told, content_type=kind)


async def _body(receive: Receive, send: Send, bytes_max: int) -> bytes | None:
    """The whole body; None where it broke off or did not come in time: half a form is nobody's word."""
    try:
        async with asyncio.timeout(_BODY_S):
            return await _read(receive, bytes_max)
    except TimeoutError:
        late = PageAnswer.of_json(
            {"message": "The rest of the request did not come in time."}, 408, ("connection", "close")
        )
        await _send(send, late)
        return None


async def _read(receive: Receive, bytes_max: int) -> bytes | None:
    parts: list[bytes] = []
    length = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part: bytes = message.get("body", b"")
        length += len(part)
        if length > bytes_max:
            raise TooLarge(f"The request is larger than {bytes_max} bytes.", details={"limit": bytes_max})
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


async def _send(send: Send, answer: PageAnswer) -> None:
    headers = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in answer.all_headers()]
    headers.append((b"content-length", b"%d" % len(answer.body)))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


def _name_of(host: str) -> str:
    return (host if host.endswith("]") else host.rpartition(":")[0] or host).lower()


def _raw_path(scope: Scope) -> str:
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return "/" + raw.partition(b"?")[0].decode("latin-1").lstrip("/")


def _pairs(query: str) -> dict[str, str]:
    try:
        return dict(parse_qsl(query, keep_blank_values=True, max_num_fields=40))
    except ValueError:
        return {}


def _cookies(header: str) -> dict[str, str]:
    pairs = (part.strip().partition("=") for part in header.split(";"))
    return {name: value for name, equals, value in pairs if equals}
