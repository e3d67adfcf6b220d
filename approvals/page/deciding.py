"""Owns one approval's page: who sees it, what they may do with it and why not more, and their yes or no."""

from __future__ import annotations

from dataclasses import dataclass

from approvals.cards import Card
from approvals.factors import vote_challenge
from approvals.model import Approval, Factor, Verdict, Voter
from approvals.page.card_view import card_view
from approvals.page.entering import code_field
from approvals.page.markup import Html, tag
from approvals.page.messages import PageAnswer
from approvals.page.shell import alert, hidden, note, passkey_says
from approvals.page.visits import Office, Visit, prove
from approvals.voting import check_voter
from body_broker.errors import BadInput, BodyBrokerError, NotFound, on_the_wire

_MOVING = frozenset({"pending", "approved", "executing"})
_REASON_MAX = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Say:
    """What a person may do with an approval here.

    Attributes:
        why_not: Why they cannot say yes; None where they can.
        kinds: The kinds of their factors that count.
        can_deny: Whether they may say no.
        is_own: Whether they asked for it themselves.
    """

    why_not: str | None
    kinds: frozenset[Factor]
    can_deny: bool
    is_own: bool


async def show_approval(
    office: Office, visit: Visit, approval_id: str, error: BodyBrokerError | None = None
) -> PageAnswer:
    """The card, and beneath it what this person may do; NotFound where it does not concern them."""
    approval = await _seen(office, visit, approval_id)
    card = Card.of(approval, office.people, None, visit.now)
    parts: list[Html | None] = [
        tag("p", tag("a", "All approvals", href="/approvals"), class_="small"),
        alert(error),
        note("Somebody has decided meanwhile. Reload the page to see it.", "wait", id="moved", hidden=True),
        card_view(card, visit.now),
    ]
    if card.standing in {"approved", "executing"}:
        parts.append(tag("p", tag("a", "Look again", href=f"/approve/{card.id}"), class_="needs-no-script"))
    if card.standing in {"pending", "approved"} and not await _worker_lives(office):
        until = "" if card.standing == "approved" else "after the yes "
        parts.append(
            note(
                f"No worker runs now: {until}it runs when the hub starts again, unless it has expired by then.", "wait"
            )
        )
    if card.is_open:
        parts.append(_choices(visit, card, await _say(office, visit, approval), _typed(visit, error)))
    marks = {"data_standing": card.standing, "data_ask": f"/approve/{card.id}/standing"}
    shown = tag("div", parts, **(marks if card.standing in _MOVING else {}))
    return visit.show(office, card.headline, shown, status=200 if error is None else on_the_wire(error).http_status)


def _typed(visit: Visit, error: BodyBrokerError | None) -> str:
    """The reason somebody had written before something went wrong."""
    found = visit.request.fields.get("reason", "") if error is not None else ""
    return found if isinstance(found, str) else ""


async def show_standing(office: Office, visit: Visit, approval_id: str) -> PageAnswer:
    """Where it is, for the script that watches."""
    return PageAnswer.of_json({"standing": (await _seen(office, visit, approval_id)).standing})


async def offer_vote(office: Office, visit: Visit, approval_id: str) -> PageAnswer:
    """What this person's passkey signs: this approval, this call, this word."""
    approval = await _seen(office, visit, approval_id)
    challenge = vote_challenge(approval.id, _digest(visit), _verdict(visit))
    return PageAnswer.of_json(await office.factors.passkey_options(visit.person, challenge))


async def vote(office: Office, visit: Visit, approval_id: str) -> PageAnswer:
    """Count this person's yes or no."""
    approval = await _seen(office, visit, approval_id)
    try:
        await _vote(office, visit, approval)
    except BodyBrokerError as error:
        if visit.request.is_json:
            raise
        return await show_approval(office, visit, approval_id, error)
    if visit.request.is_json:
        return PageAnswer.of_json({"next": f"/approve/{approval.id}"})
    return PageAnswer.redirect(f"/approve/{approval.id}")


async def _vote(office: Office, visit: Visit, approval: Approval) -> None:
    verdict, digest, reason = _verdict(visit), _digest(visit), visit.request.text("reason", _REASON_MAX)
    if verdict == "approve" and approval.destructive and visit.request.fields.get("sure") != "yes":
        raise BadInput("This takes something away.", next_step="Tick the box above the button if you mean it.")
    voter = await _voter(office, visit, approval.id, digest, verdict)
    await office.desk.vote(approval.id, digest=digest, voter=voter, verdict=verdict, reason=reason or None)


async def _voter(office: Office, visit: Visit, approval_id: str, digest: str, verdict: Verdict) -> Voter:
    """The person and what they have just proved, for a no as for a yes: a login's cookie may be in other hands."""
    proof = await prove(office, visit, vote_challenge(approval_id, digest, verdict))
    return Voter(person=proof.person, via="mfa", factor=proof.factor, evidence=proof.evidence)


async def _seen(office: Office, visit: Visit, approval_id: str) -> Approval:
    """The approval, where it concerns this person: they asked, it was asked for them, or they are asked."""
    try:
        approval = await office.desk.get(approval_id)
    except NotFound as error:
        raise _nothing() from error
    asked = {group for each in approval.requirements for group in each.approvers}
    if visit.person in approval.chain or not asked.isdisjoint(office.people.groups_of(visit.person)):
        return approval
    raise _nothing()


def _nothing() -> NotFound:
    return NotFound("There is no such approval, or it does not concern you.", next_step="Look at your approvals.")


async def _say(office: Office, visit: Visit, approval: Approval) -> Say:
    factors = await office.factors.of(visit.person)
    kinds: frozenset[Factor] = frozenset(each.kind for each in factors if each.standing == "counts")
    why_not = _refused(office, visit, approval, "approve")
    return Say(
        why_not=why_not or (None if kinds else _NO_FACTOR),
        kinds=kinds,
        is_own=visit.person in approval.chain,
        can_deny=_refused(office, visit, approval, "deny") is None and bool(kinds),
    )


_NO_FACTOR = "A yes needs a second factor, and none of yours counts yet: `body-broker mfa enroll` begins one."


def _refused(office: Office, visit: Visit, approval: Approval, verdict: Verdict) -> str | None:
    # The desk decides again when the vote comes; this only tells beforehand.
    try:
        would = Voter(person=visit.person, via="mfa", factor="passkey")
        check_voter(approval, would, verdict, office.people.groups_of(visit.person))
    except BodyBrokerError as error:
        return f"{error.message} {error.next_step}"
    return None


def _verdict(visit: Visit) -> Verdict:
    found = visit.request.text("verdict", 10)
    if found == "approve":
        return "approve"
    if found == "deny":
        return "deny"
    raise BadInput("The form says neither yes nor no.", next_step="Reload the page and try again.")


def _digest(visit: Visit) -> str:
    return visit.request.text("digest", 64)


def _choices(visit: Visit, card: Card, say: Say, typed: str) -> Html:
    yes = (
        tag("div", tag("h2", "Your yes"), note(say.why_not, id="why-not"), class_="box")
        if say.why_not
        else _yes(visit, card, say)
    )
    return tag("div", yes, _no(visit, card, say, typed) if say.can_deny else None, class_="choices")


def _yes(visit: Visit, card: Card, say: Say) -> Html:
    own = tag("p", "This is your own request: your second factor is what it lacks.", class_="soft")
    sure = tag(
        "label",
        tag("input", type="checkbox", name="sure", value="yes", required=True),
        tag("span", "I mean it: this takes something away."),
        class_="check",
    )
    parts: list[Html | None] = [
        tag("h2", "Say yes"),
        own if say.is_own else tag("p", "Compare the fingerprint with where you were asked.", class_="soft"),
        *_fields(visit, card, "approve"),
        sure if card.destructive else None,
        *_signing(card, say, "yes", "Approve"),
    ]
    return _form(card, parts)


def _no(visit: Visit, card: Card, say: Say, typed: str) -> Html:
    parts: list[Html | None] = [
        tag("h2", "Say no"),
        tag("p", "One no ends it, and the reason is told to whoever asked.", class_="soft"),
        *_fields(visit, card, "deny"),
        tag("label", "Reason", for_="reason"),
        tag("textarea", typed, id="reason", name="reason", maxlength=_REASON_MAX),
        *_signing(card, say, "no", "Deny"),
    ]
    return _form(card, parts)


def _fields(visit: Visit, card: Card, verdict: Verdict) -> list[Html]:
    return [hidden("csrf", visit.token), hidden("digest", card.digest), hidden("verdict", verdict)]


def _signing(card: Card, say: Say, kind: str, word: str) -> list[Html | None]:
    """The ways to give a second factor: a passkey where there are scripts, a code everywhere."""
    says = f"says-{kind}"
    button = tag(
        "p",
        tag(
            "button",
            f"{word} with my passkey",
            type="button",
            class_=f"{kind} main",
            data_passkey=f"/approve/{card.id}/options",
            data_answer=f"/approve/{card.id}",
            data_says=says,
        ),
        class_="needs-script",
    )
    has_both = {"passkey", "totp"} <= say.kinds
    scriptless = tag("p", "A passkey needs JavaScript.", class_="needs-no-script soft")
    return [
        passkey_says(says),
        button if "passkey" in say.kinds else None,
        scriptless if "passkey" in say.kinds else None,
        tag("p", "or", class_="or needs-script") if has_both else None,
        code_field(f"code-{kind}") if "totp" in say.kinds else None,
        tag("p", tag("button", f"{word} with my code", class_=f"{kind} main")) if "totp" in say.kinds else None,
    ]


def _form(card: Card, parts: list[Html | None]) -> Html:
    return tag("form", [p for p in parts if p is not None], method="post", action=f"/approve/{card.id}", class_="box")


async def _worker_lives(office: Office) -> bool:
    # A worker keeps one connection of its own for as long as it lives (body_broker/work/link.py).
    found: bool = await office.pool.fetchval(
        "SELECT EXISTS (SELECT 1 FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE 'body-broker worker %')"
    )
    return found
