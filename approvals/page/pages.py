"""Owns the routes of the pages: which page a request is for, who may see it, and what it gets when something is wrong."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from urllib.parse import quote

from approvals.page import deciding, enrolling, entering, inbox
from approvals.page.logins import LOGIN_TTL_S, PLAIN_LOGIN_TTL_S, new_secret
from approvals.page.markup import tag
from approvals.page.messages import PageAnswer, PageRequest, cookie, set_cookie
from approvals.page.shell import failure, page, said, static
from approvals.page.visits import Office, Visit
from body_broker.errors import BodyBrokerError, NotFound, Unauthenticated, on_the_wire
from body_broker.telemetry import get_logger

log = get_logger(__name__)

# `async (office, visit, *segments in braces) -> answer`
Handler = Callable[..., Awaitable[PageAnswer]]


@dataclass(frozen=True, slots=True)
class _Route:
    path: str
    handlers: Mapping[str, Handler]
    needs_login: bool = True

    def match(self, path: str) -> tuple[str, ...] | None:
        """The segments in braces; None where the path is another."""
        ours, theirs = self.path.split("/"), path.split("/")
        if len(ours) != len(theirs):
            return None
        if any(a != b and (a != "{}" or not b) for a, b in zip(ours, theirs, strict=True)):
            return None
        return tuple(b for a, b in zip(ours, theirs, strict=True) if a == "{}")


# What an id looks like, before anything else is done with it.
_IDS = {
    "/approve/": re.compile(r"apr_[A-Za-z0-9_-]{20,80}"),
    "/enroll/": re.compile(r"[A-Za-z0-9_-]{10,200}"),
}
_ROUTES = (
    _Route("/login", {"GET": entering.show_login}, needs_login=False),
    _Route("/login/options", {"POST": entering.offer_passkey}, needs_login=False),
    _Route("/login/passkey", {"POST": entering.log_in_by_passkey}, needs_login=False),
    _Route("/login/totp", {"POST": entering.log_in_by_code}, needs_login=False),
    _Route("/login/oidc", {"GET": entering.go_to_issuer}, needs_login=False),
    _Route("/login/oidc/callback", {"GET": entering.come_from_issuer}, needs_login=False),
    _Route("/logout", {"POST": entering.log_out}, needs_login=False),
    _Route("/approvals", {"GET": inbox.show_inbox}),
    _Route("/approvals/confirm/options", {"POST": inbox.offer_confirmation}),
    _Route("/approvals/confirm", {"POST": inbox.confirm}),
    _Route("/approve/{}", {"GET": deciding.show_approval, "POST": deciding.vote}),
    _Route("/approve/{}/options", {"POST": deciding.offer_vote}),
    _Route("/approve/{}/standing", {"GET": deciding.show_standing}),
    _Route("/enroll/{}", {"GET": enrolling.show_enrolment, "POST": enrolling.enrol}, needs_login=False),
    _Route("/enroll/{}/options", {"POST": enrolling.offer_enrolment}, needs_login=False),
    _Route("/enrolled", {"GET": enrolling.show_enrolled}, needs_login=False),
)
_STATIC = "/static/{}"
PATHS = frozenset({route.path for route in _ROUTES} | {_STATIC})


class Pages:
    """The pages of one hub.

    Args:
        office: What they work with.
        clock: Unix seconds, for what is shown and what browsers keep sealed; all else goes by the database's.
    """

    paths = PATHS

    def __init__(
        self,
        office: Office,
        *,
        clock: Callable[[], float] = time.time,  # noqa: TID251 - the parameter's default
    ) -> None:
        self._office, self._clock = office, clock

    def takes(self, path: str) -> bool:
        """Whether this is the path of a page."""
        return path.startswith("/static/") or _find(path) is not None

    async def answer(self, request: PageRequest) -> PageAnswer:
        """The answer to one request, whatever is wrong with it."""
        if request.path.startswith("/static/"):
            return static(request.path.removeprefix("/static/")) or _no_page()
        found = _find(request.path)
        if found is None or not _are_ids(*found):
            return _no_page()
        route, segments = found
        handler = route.handlers.get(request.method)
        if handler is None:
            return failure("Not here", "This page does not take that.", 405)
        visit = await self._visit(request)
        try:
            return await self._answer(visit, route, handler, segments)
        except BodyBrokerError as error:
            return _told(visit, error)
        except Exception as error:
            log.exception("page_failed", path=route.path)
            return _told(visit, error)

    async def _visit(self, request: PageRequest) -> Visit:
        held = cookie(request, "login")
        login = await self._office.logins.find(held)
        return Visit(
            request=request,
            login=login,
            held=held if login else cookie(request, "visit"),
            now=datetime.fromtimestamp(self._clock(), UTC),
        )

    async def _answer(self, visit: Visit, route: _Route, handler: Handler, segments: tuple[str, ...]) -> PageAnswer:
        if visit.request.method == "POST":
            visit.check_form()
        if route.needs_login and visit.login is None:
            return _to_login(visit)
        if visit.request.method == "POST" or visit.held:
            return await handler(self._office, visit, *segments)
        # A first visit: the secret that its forms will be known by. Lax, because an issuer sends people back from another site.
        held = new_secret()
        answer = await handler(self._office, replace(visit, held=held), *segments)
        ttl_s = LOGIN_TTL_S if visit.request.is_secure else PLAIN_LOGIN_TTL_S
        header = set_cookie(visit.request, "visit", held, ttl_s=ttl_s, same_site="Lax")
        return replace(answer, headers=(*answer.headers, header))


def _find(path: str) -> tuple[_Route, tuple[str, ...]] | None:
    for route in _ROUTES:
        if (segments := route.match(path)) is not None:
            return route, segments
    return None


def _are_ids(route: _Route, segments: tuple[str, ...]) -> bool:
    pattern = next((found for start, found in _IDS.items() if route.path.startswith(start)), None)
    return pattern is None or all(pattern.fullmatch(each) for each in segments)


def _to_login(visit: Visit) -> PageAnswer:
    request = visit.request
    if request.method == "POST" or request.path.endswith("/standing"):
        error = Unauthenticated(
            "You are not logged in, or no longer.", next_step="Log in and try again; nothing was decided."
        )
        return _told(visit, error)
    if request.headers.get("sec-fetch-site") == "cross-site":
        # A strict cookie does not come along with a link from another site, but does when the page is asked for again.
        link = tag("p", tag("a", "Continue", href=request.path))
        return PageAnswer(body=page("One moment", link, narrow=True, again=request.path))
    return PageAnswer.redirect(f"/login?next={quote(request.path)}")


def _told(visit: Visit, error: BaseException) -> PageAnswer:
    told = on_the_wire(error)
    if visit.request.is_json or visit.request.path.endswith("/standing"):
        return PageAnswer.of_json(told.body() | {"message": said(told)}, told.http_status)
    if isinstance(error, Unauthenticated):
        box = tag(
            "div",
            tag("h1", "Log in first"),
            tag("p", said(told)),
            tag("p", tag("a", "Log in", href=f"/login?next={quote(visit.request.path)}", class_="button")),
            class_="box",
        )
        return PageAnswer(status=told.http_status, body=page("Log in first", box, token=visit.token, narrow=True))
    title = "Nothing here" if isinstance(error, NotFound) else "That did not work"
    return failure(title, said(told), told.http_status, visit.login, visit.token)


def _no_page() -> PageAnswer:
    return failure("Nothing here", "There is no such page.", 404)
