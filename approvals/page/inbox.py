"""Owns the inbox: what waits for me, whose new factor waits for my word, and what I decided or asked for lately."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from approvals.cards import Card
from approvals.factors import FactorInfo
from approvals.model import Approval, Factor
from approvals.page.card_view import badge, countdown, moment
from approvals.page.entering import code_field
from approvals.page.markup import Html, tag
from approvals.page.messages import PageAnswer
from approvals.page.shell import alert, hidden, note, passkey_says
from approvals.page.visits import Office, Visit, no_challenge, prove
from body_broker.calls import Caller
from body_broker.errors import BodyBrokerError, NotFound, on_the_wire

_LATELY = 10
_KINDS: dict[Factor, str] = {"totp": "authenticator app", "passkey": "passkey"}


async def show_inbox(office: Office, visit: Visit, error: BodyBrokerError | None = None) -> PageAnswer:
    """Everything that concerns this person."""
    waiting = await office.desk.waiting_for(visit.person)
    shown = {each.id for each in waiting}
    lately = [each for each in await _lately(office, visit.person) if each.id not in shown]
    done = "confirmed" in visit.request.query and error is None
    nothing = tag("div", tag("p", "Nothing waits for you."), class_="box soft")
    return visit.show(
        office,
        "Approvals",
        tag("h1", "Approvals"),
        alert(error),
        note("Confirmed: it counts from now on.", "yes", role="status") if done else None,
        tag("h2", "Waiting for you"),
        _list(office, visit, waiting) if waiting else nothing,
        await _enrolments(office, visit),
        tag("h2", "Lately") if lately else None,
        _list(office, visit, lately) if lately else None,
        status=200 if error is None else on_the_wire(error).http_status,
    )


async def _lately(office: Office, person: str) -> list[Approval]:
    rows = await office.pool.fetch(
        "SELECT approval_id FROM approval_vote WHERE voter = $1 ORDER BY at DESC LIMIT $2::int", person, _LATELY
    )
    found = {row["approval_id"]: await office.desk.get(row["approval_id"]) for row in rows}
    own = Caller(chain=(person,), roles={}, session="pages")
    found |= {each.id: each for each in await office.desk.list_mine(own, limit=_LATELY)}
    return sorted(found.values(), key=lambda each: each.ordinal, reverse=True)[:_LATELY]


def _list(office: Office, visit: Visit, approvals: Sequence[Approval]) -> Html:
    return tag("ul", [_line(Card.of(each, office.people, None, visit.now), visit) for each in approvals], class_="list")


def _line(card: Card, visit: Visit) -> Html:
    parts = [
        badge(card.standing),
        tag("span", f"asked by {card.requester}", *(f", for {name}" for name in card.on_behalf_of)),
        tag("span", "expires in ", countdown(card.expires_at, visit.now)) if card.is_open else moment(card.created_at),
        tag("span", "takes something away", class_="badge no") if card.destructive and card.is_open else None,
    ]
    return tag(
        "li",
        tag(
            "a",
            tag("span", card.headline, class_="title"),
            tag("span", [part for part in parts if part is not None], class_="line"),
            class_="item",
            href=f"/approve/{card.id}",
        ),
    )


async def _enrolments(office: Office, visit: Visit) -> Html | None:
    """Factors that this person may let count: everybody's for an approver, else their own."""
    mine = await office.factors.of(visit.person)
    kinds: set[Factor] = {each.kind for each in mine if each.standing == "counts"}
    every = await office.factors.everybody() if office.people.groups_of(visit.person) else mine
    waiting = [each for each in every if each.standing == "waiting"]
    if not waiting or not kinds:
        return None
    items = [tag("li", _enrolment(office, visit, each, kinds)) for each in waiting]
    return tag("div", tag("h2", "Enrolments to confirm"), tag("ul", items, class_="list"))


def _enrolment(office: Office, visit: Visit, info: FactorInfo, kinds: set[Factor]) -> Html:
    who = f"{office.people.name_of(info.person)} ({info.person})"
    says = f"says-{info.id}"
    button = tag(
        "button",
        "Confirm with my passkey",
        type="button",
        class_="needs-script",
        data_passkey="/approvals/confirm/options",
        data_answer="/approvals/confirm",
        data_says=says,
    )
    code = [code_field(f"code-{info.id}"), tag("p", tag("button", "Confirm with my code"))]
    return tag(
        "form",
        tag("span", f"{who}: {_KINDS[info.kind]} “{info.label}”", class_="title"),
        tag("p", "Its id: ", tag("span", info.id, class_="print")),
        tag(
            "p",
            *("Enrolled ", moment(info.created_at), ". Ask them yourself, and not through an agent,"),
            " whether this is the id they were shown.",
            class_="soft small",
        ),
        hidden("csrf", visit.token),
        hidden("factor", info.id),
        passkey_says(says),
        code if "totp" in kinds else None,
        button if "passkey" in kinds else None,
        method="post",
        action="/approvals/confirm",
        class_="plain",
    )


async def offer_confirmation(office: Office, visit: Visit) -> PageAnswer:
    """What this person's passkey signs to let a factor count."""
    factor, challenge = visit.request.text("factor", 60), secrets.token_bytes(32)
    options = await office.factors.passkey_options(visit.person, challenge)
    body = {"challenge": challenge.hex(), "factor": factor}
    await office.logins.challenge(visit.held, body, person=visit.person)
    return PageAnswer.of_json(options)


async def confirm(office: Office, visit: Visit) -> PageAnswer:
    """Let a factor count, on this person's own factor."""
    factor = visit.request.text("factor", 60)
    challenge = None
    if visit.request.is_json:
        kept = await office.logins.take_challenge(visit.held)
        if kept is None or kept["factor"] != factor:
            raise no_challenge()
        challenge = bytes.fromhex(str(kept["challenge"]))
    try:
        if not office.people.groups_of(visit.person) and all(
            each.id != factor for each in await office.factors.of(visit.person)
        ):
            raise NotFound("There is no such enrolment.")
        await office.factors.confirm(factor, by=await prove(office, visit, challenge))
    except BodyBrokerError as error:
        if visit.request.is_json:
            raise
        return await show_inbox(office, visit, error)
    if visit.request.is_json:
        return PageAnswer.of_json({"next": "/approvals?confirmed"})
    return PageAnswer.redirect("/approvals?confirmed")
