"""Owns one visit: a request, who sends it, and the proof that a form is ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from approvals.desk import Desk
from approvals.factors import Factors, Proof
from approvals.page.logins import Login, Logins, form_is_ours, form_token
from approvals.page.markup import Html
from approvals.page.messages import PageAnswer, PageRequest, cookie
from approvals.page.shell import page
from approvals.people import People
from body_broker.audit.auditor import Auditor
from body_broker.calls import Json
from body_broker.errors import BadInput, Denied, Unauthenticated
from body_broker.storage.postgres import Pool


class OidcLogin(Protocol):
    """A login at the OpenID Connect issuer; the hub brings it where one is configured."""

    async def begin(self, base_url: str | None = None) -> tuple[str, Mapping[str, Json]]:
        """Where the browser goes, and what is to be kept for its way back to the pages at this URL."""
        ...

    async def finish(self, query: Mapping[str, str], kept: Mapping[str, Json]) -> str:
        """Who came back, `person:anna`; raises Unauthenticated or Denied."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Office:
    """What the pages work with.

    Attributes:
        code_login: Whether a name and a code are enough to log in; on a hub with its own stores.
        oidc: The login at an issuer; None where none is configured.
        oidc_off: Whether there is an issuer, and no client id with which people could log in there.
    """

    desk: Desk
    factors: Factors
    people: People
    logins: Logins
    auditor: Auditor
    pool: Pool
    code_login: bool
    oidc: OidcLogin | None = None
    oidc_off: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One request and who sends it.

    Attributes:
        login: None where nobody is logged in, or no longer.
        held: The secret of this browser: of its login, else of its visit.
        now: When.
    """

    request: PageRequest
    login: Login | None
    held: str
    now: datetime

    @property
    def token(self) -> str:
        """The token of this browser's forms."""
        return form_token(self.held) if self.held else ""

    @property
    def person(self) -> str:
        """Who is logged in.

        Raises:
            Unauthenticated: Nobody is.
        """
        if self.login is None:
            raise Unauthenticated(
                "You are not logged in, or no longer.", next_step="Log in and try again; nothing was decided."
            )
        return self.login.person

    def check_form(self) -> None:
        """Return where this was sent by a form or script of ours, in this browser.

        Raises:
            Denied: It was not.
        """
        if self.request.headers.get("origin") != self.request.base:
            raise Denied(
                "This form was not sent by a page of this hub.",
                next_step=f"Open the page at {self.request.base} and try again.",
            )
        held = [cookie(self.request, "login"), cookie(self.request, "visit")]
        token = self.request.text("csrf")
        if not any(form_is_ours(each, token) for each in held):
            raise Denied("This form is too old, or not yours.", next_step="Reload the page and try again.")

    def show(
        self, office: Office, title: str, *content: Html | None, narrow: bool = False, status: int = 200
    ) -> PageAnswer:
        """A page for this browser."""
        name = office.people.name_of(self.login.person) if self.login else ""
        body = page(title, *content, login=self.login, token=self.token, name=name, narrow=narrow)
        return PageAnswer(status=status, body=body)

    def answer_of_browser(self) -> Mapping[str, Json]:
        """What `navigator.credentials` gave.

        Raises:
            BadInput: Nothing that could be it.
        """
        found = self.request.fields.get("answer")
        if not isinstance(found, dict):
            raise BadInput("The answer of the passkey is missing.", next_step="Reload the page and try again.")
        return found  # pyright: ignore[reportUnknownVariableType] - a JSON object


async def prove(office: Office, visit: Visit, challenge: bytes | None) -> Proof:
    """The second factor that came with this form: a passkey's answer to the challenge, else a code.

    Raises:
        BadInput, Denied, RateLimited: It does not hold.
    """
    if visit.request.is_json:
        if challenge is None:
            raise no_challenge()
        return await office.factors.check_passkey(visit.person, challenge, visit.answer_of_browser())
    return await office.factors.check_totp(visit.person, visit.request.text("code", 20))


def no_challenge() -> Denied:
    """What was to be signed is not known any more."""
    return Denied("That took too long, or was done already.", next_step="Reload the page and try again.")
