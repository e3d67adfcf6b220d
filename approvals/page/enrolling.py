"""Owns enrolling a passkey by a one-time link: the link is the leave to, and whoever confirms it says that it counts."""

from __future__ import annotations

from approvals.factors import FactorInfo
from approvals.page.markup import Html, tag
from approvals.page.messages import PageAnswer, cookie, set_cookie
from approvals.page.shell import hidden, note, passkey_says
from approvals.page.visits import Office, Visit

_LABEL = "passkey"
_SHOWN_S = 600


async def show_enrolment(office: Office, visit: Visit, token: str) -> PageAnswer:
    """What the link is for; NotFound where it was used, is too old, or never was."""
    invitation = await office.factors.invited(token)
    who = office.people.name_of(invitation.person)
    first = (
        "This is the first second factor of this installation: it counts at once, and confirms all later ones."
        if invitation.first
        else "It counts once an approver, or another factor of yours, has confirmed it."
    )
    button = tag(
        "button",
        "Make a passkey",
        type="button",
        class_="wide",
        data_passkey=f"/enroll/{token}/options",
        data_answer=f"/enroll/{token}",
        data_creates=True,
        data_says="says",
    )
    form = tag(
        "form",
        tag("label", "What is it called? ", tag("span", "such as: phone, blue key", class_="soft"), for_="label"),
        tag("input", type="text", id="label", name="label", value=_LABEL, maxlength=60, required=True),
        hidden("csrf", visit.token),
        tag("p", button),
        class_="needs-script",
    )
    box = tag(
        "div",
        tag("h1", "Enrol a passkey"),
        tag("p", "For ", tag("strong", f"{who} ({invitation.person})"), "."),
        note(first),
        form,
        note("Making a passkey needs JavaScript, and a browser that has passkeys.", "wait needs-no-script"),
        passkey_says("says"),
        class_="box",
    )
    return visit.show(office, "Enrol a passkey", box, narrow=True)


async def offer_enrolment(office: Office, _visit: Visit, token: str) -> PageAnswer:
    """What the browser is asked to make."""
    return PageAnswer.of_json(await office.factors.begin_passkey(token))


async def enrol(office: Office, visit: Visit, token: str) -> PageAnswer:
    """Keep the passkey that the browser made; the link is used up."""
    label = visit.request.text("label", 60) or _LABEL
    info = await office.factors.finish_passkey(token, visit.answer_of_browser(), label=label)
    # In a cookie, not in the address: a link that somebody sends must not show an id of theirs.
    made = set_cookie(visit.request, "enrolled", f"{info.person}|{info.id}", ttl_s=_SHOWN_S)
    counts = "counts" if info.standing == "counts" else "waits"
    return PageAnswer.of_json({"next": f"/enrolled?{counts}", "factor": info.id, "standing": info.standing}, 200, made)


async def show_enrolled(office: Office, visit: Visit) -> PageAnswer:
    """That it is done, and what is next."""
    info = await _just_made(office, visit)
    counts = info.standing == "counts" if info else "counts" in visit.request.query
    text = (
        "Your passkey counts. Log in with it to approve."
        if counts
        else "Your passkey is kept, and counts once an approver has confirmed it: they find it under “Enrolments to confirm”."
    )
    box = tag(
        "div",
        tag("h1", "Enrolled"),
        note(text, "yes" if counts else "wait", role="status"),
        *_made(office, info),
        tag(
            "p", tag("a", "Log in" if visit.login is None else "To your approvals", href="/approvals", class_="button")
        ),
        class_="box",
    )
    return visit.show(office, "Enrolled", box, narrow=True)


async def _just_made(office: Office, visit: Visit) -> FactorInfo | None:
    """The factor that this browser has just enrolled."""
    person, _, factor = cookie(visit.request, "enrolled").partition("|")
    return next((each for each in await office.factors.of(person) if each.id == factor), None) if factor else None


def _made(office: Office, info: FactorInfo | None) -> list[Html]:
    if info is None:
        return []
    whose = f"Of {office.people.name_of(info.person)} ({info.person}), “{info.label}”. Its id: "
    asked = "Tell it to whoever confirms it, and not through an agent: they compare it with what they see."
    waits = [tag("p", asked, class_="soft")] if info.standing == "waiting" else []
    return [tag("p", whose, tag("span", info.id, class_="print")), *waits]
