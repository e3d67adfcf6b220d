"""Owns coming in and leaving: a passkey, a name and a code, or the issuer's word; and the end of a login."""

from __future__ import annotations

import re
import secrets

from approvals.page.logins import CHALLENGE_TTL_S, LOGIN_TTL_S, PLAIN_LOGIN_TTL_S, How
from approvals.page.markup import Html, tag
from approvals.page.messages import PageAnswer, cookie, set_cookie
from approvals.page.shell import alert, hidden, passkey_says
from approvals.page.visits import Office, OidcLogin, Visit, no_challenge
from body_broker.audit.record import Record
from body_broker.calls import Json
from body_broker.errors import (
    BadInput,
    BodyBrokerError,
    Denied,
    NotConfigured,
    RateLimited,
    Unauthenticated,
    on_the_wire,
)

_OIDC_OFF = "Login with your organisation is off here: BODY_BROKER_OIDC_CLIENT_ID is not set."
_WRONG_NEXT = "A code counts once: wait for the next one. After five wrong ones none is looked at for 5 minutes or more; a passkey is not locked."
_NAME = re.compile(r"person:[a-z0-9][a-z0-9._-]{0,62}")


async def show_login(office: Office, visit: Visit, error: BodyBrokerError | None = None) -> PageAnswer:
    """The login page; whoever is logged in goes on."""
    if visit.login is not None and error is None:
        return PageAnswer.redirect(visit.request.next_path)
    parts: list[Html | None] = [
        tag("h1", "Log in"),
        tag("p", "Who you are is decided here, never by a link.", class_="soft"),
        alert(error),
        _oidc_part(visit) if office.oidc else None,
        tag("p", _OIDC_OFF, class_="soft") if office.oidc_off else None,
        _passkey_part(visit),
        _code_part(visit) if office.code_login else None,
    ]
    status = 200 if error is None else on_the_wire(error).http_status
    return visit.show(office, "Log in", tag("div", parts, class_="box"), narrow=True, status=status)


def _oidc_part(visit: Visit) -> Html:
    path = f"/login/oidc?next={visit.request.next_path}"
    return tag("p", tag("a", "Log in with your organisation", href=path, class_="button wide"))


def _passkey_part(visit: Visit) -> Html:
    button = tag(
        "button",
        "Log in with a passkey",
        type="button",
        class_="wide",
        data_passkey="/login/options",
        data_answer="/login/passkey",
        data_says="passkey-says",
    )
    form = tag("form", hidden("next", visit.request.next_path), button, class_="needs-script")
    says = passkey_says("passkey-says")
    without = tag("p", "A passkey needs JavaScript; a code does not.", class_="needs-no-script soft")
    return tag("div", form, without, says)


def _code_part(visit: Visit) -> Html:
    return tag(
        "form",
        tag("p", "or with a code", class_="or"),
        hidden("csrf", visit.token),
        hidden("next", visit.request.next_path),
        tag("label", "Name", for_="name"),
        tag(
            "input",
            type="text",
            id="name",
            name="name",
            required=True,
            autocomplete="username",
            autocapitalize="none",
            spellcheck="false",
            maxlength=70,
        ),
        code_field("code"),
        tag("p", tag("button", "Log in with a code", class_="wide")),
        method="post",
        action="/login/totp",
    )


def code_field(name: str) -> Html:
    """The field for a code of an authenticator app."""
    return tag(
        "div",
        tag("label", "Code ", tag("span", "from your authenticator app", class_="soft"), for_=name),
        tag(
            "input",
            type="text",
            class_="code",
            id=name,
            name="code",
            required=True,
            inputmode="numeric",
            autocomplete="one-time-code",
            pattern="[0-9 ]{6,7}",
            title="Six digits",
            maxlength=7,
        ),
    )


async def offer_passkey(office: Office, visit: Visit) -> PageAnswer:
    """What any passkey of this hub may sign to log in."""
    held, challenge = _visit_held(visit), secrets.token_bytes(32)
    options = await office.factors.passkey_options(None, challenge)
    sealed = office.logins.sealed("login", held, {"challenge": challenge.hex()}, visit.now.timestamp())
    return PageAnswer.of_json(options, 200, set_cookie(visit.request, "asked", sealed, ttl_s=CHALLENGE_TTL_S))


async def log_in_by_passkey(office: Office, visit: Visit) -> PageAnswer:
    """The person whose passkey signed the challenge of this browser."""
    sealed = cookie(visit.request, "asked")
    kept = office.logins.opened("login", _visit_held(visit), sealed, visit.now.timestamp())
    if kept is None:
        raise no_challenge()
    answer = visit.answer_of_browser()
    proof = await office.factors.check_passkey(None, bytes.fromhex(kept["body"]["challenge"]), answer)
    if not await office.logins.use(kept):
        raise no_challenge()
    headers = await _begin(office, visit, proof.person, "passkey", proof.factor_id)
    gone = set_cookie(visit.request, "asked", "", ttl_s=0)
    return PageAnswer.of_json({"next": visit.request.next_path}, 200, *headers, gone)


async def log_in_by_code(office: Office, visit: Visit) -> PageAnswer:
    """The person of that name, who has the code of now; only on a hub with its own stores."""
    if not office.code_login:
        raise NotConfigured(
            "This hub takes no codes for a login.", next_step="Use a passkey, or log in with your organisation."
        )
    name = visit.request.text("name", 80)
    person = name if name.startswith("person:") else f"person:{name.lower()}"
    wrong = Denied("That name and code do not go together.", next_step=_WRONG_NEXT)
    if not _NAME.fullmatch(person):
        return await show_login(office, visit, wrong)
    try:
        proof = await office.factors.check_totp(person, visit.request.text("code", 20))
    except (Denied, BadInput, RateLimited):
        # Unknown name, no app enrolled, wrong code, used code, locked: a stranger learns none of it.
        return await show_login(office, visit, wrong)
    except BodyBrokerError as error:
        return await show_login(office, visit, error)
    return PageAnswer.redirect(
        visit.request.next_path, *await _begin(office, visit, proof.person, "totp", proof.factor_id)
    )


async def go_to_issuer(office: Office, visit: Visit) -> PageAnswer:
    """To the issuer; what is needed on the way back is kept by this browser, sealed."""
    oidc = _oidc(office)
    url, kept = await oidc.begin(visit.request.base)
    body: dict[str, Json] = {"kept": dict(kept), "next": visit.request.next_path}
    sealed = office.logins.sealed("oidc", "", body, visit.now.timestamp())
    return PageAnswer.redirect(url, set_cookie(visit.request, "oidc", sealed, ttl_s=CHALLENGE_TTL_S, same_site="Lax"))


async def come_from_issuer(office: Office, visit: Visit) -> PageAnswer:
    """Back from the issuer, once: who it says this is."""
    oidc = _oidc(office)
    found = office.logins.opened("oidc", "", cookie(visit.request, "oidc"), visit.now.timestamp())
    try:
        if found is None:
            raise no_challenge()
        person = await oidc.finish(visit.request.query, found["body"]["kept"])
        if not await office.logins.use(found):
            raise no_challenge()
    except BodyBrokerError as error:
        return await show_login(office, visit, error)
    headers = await _begin(office, visit, person, "oidc", same_site="Lax")
    gone = set_cookie(visit.request, "oidc", "", ttl_s=0, same_site="Lax")
    return PageAnswer.redirect(str(found["body"]["next"]), *headers, gone)


async def log_out(office: Office, visit: Visit) -> PageAnswer:
    """End this login."""
    await office.logins.end(cookie(visit.request, "login"))
    return PageAnswer.redirect("/login", set_cookie(visit.request, "login", "", ttl_s=0))


async def _begin(
    office: Office, visit: Visit, person: str, how: How, factor: str | None = None, *, same_site: str = "Strict"
) -> tuple[tuple[str, str], ...]:
    """A new login in place of the one there was; a cookie that somebody else may have planted never becomes one."""
    await office.logins.end(cookie(visit.request, "login"))
    record = Record(kind="approval", action="page login", requester=person, verdict="allow", details={"how": how})
    await office.auditor.durable(office.auditor.add(record))
    ttl_s = LOGIN_TTL_S if visit.request.is_secure else PLAIN_LOGIN_TTL_S
    held = await office.logins.begin(person, how, factor, ttl_s=ttl_s)
    return (
        set_cookie(visit.request, "login", held, ttl_s=ttl_s, same_site=same_site),
        set_cookie(visit.request, "visit", "", ttl_s=0, same_site="Lax"),
    )


def _visit_held(visit: Visit) -> str:
    held = cookie(visit.request, "visit")
    if not held:
        raise Unauthenticated("This browser keeps no cookies for this page.", next_step="Allow them and reload.")
    return held


def _oidc(office: Office) -> OidcLogin:
    if office.oidc is None:
        raise NotConfigured("No OpenID Connect issuer is configured.", details={"setting": "BODY_BROKER_OIDC_ISSUER"})
    return office.oidc
