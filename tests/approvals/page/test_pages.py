"""What the pages do for people: come in, see what concerns them, say yes and no, confirm each other's factors; all of it inert."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from fido2.utils import websafe_decode

from approvals.factors import vote_challenge
from approvals.model import Approval
from body_broker.audit.trail import tail
from body_broker.calls import Json
from body_broker.errors import Denied
from tests.approvals.factors.authenticator import Authenticator
from tests.approvals.page.conftest import BASE, Browser, Studio, header, json_of
from tests.approvals.scene import ANNA, BRONZE, no, past_its_time, subject, yes


async def test_a_code_says_yes_and_the_vote_names_page_and_factor(studio: Studio) -> None:
    approval, browser = await studio.ask(), await studio.logged_in("anna")
    shown = (await browser.get(f"/approve/{approval.id}")).body.decode()
    for text in (approval.headline, approval.fingerprint, "tier:bronze", "writes-need-approval", "0 of 1"):
        assert text in shown
    fields = {"digest": approval.digest, "verdict": "approve", "code": studio.code("anna")}
    answer = await browser.form(f"/approve/{approval.id}", **fields)
    assert (answer.status, header(answer, "location")) == (303, f"/approve/{approval.id}")
    found = await studio.desk.get(approval.id)
    assert [(v.voter, v.via, v.factor) for v in found.votes] == [("person:anna", "mfa", "totp")]
    assert found.standing == "approved"
    assert b"Approved by Anna" in (await browser.get(f"/approve/{approval.id}")).body


async def test_a_passkey_says_yes_over_this_very_call(studio: Studio) -> None:
    _, device = await studio.enrol_device("anna")
    approval, browser = await studio.ask(), studio.browser()
    await browser.get("/login")
    options = json_of(await browser.script("/login/options"))
    signed = device.get(websafe_decode(options["publicKey"]["challenge"]))
    told = json_of(await browser.script("/login/passkey", answer=signed, next=f"/approve/{approval.id}"))
    assert told == {"next": f"/approve/{approval.id}"}
    await browser.get(f"/approve/{approval.id}")
    fields = {"digest": approval.digest, "verdict": "approve"}
    asked = json_of(await browser.script(f"/approve/{approval.id}/options", **fields))["publicKey"]
    assert websafe_decode(asked["challenge"]) == vote_challenge(approval.id, approval.digest, "approve")
    assert asked["userVerification"] == "required"
    answer = device.get(websafe_decode(asked["challenge"]))
    assert (await browser.script(f"/approve/{approval.id}", **fields, answer=answer)).status == 200
    assert await studio.said(approval) == "approved"


async def test_a_no_needs_a_code_as_a_yes_does_and_its_reason_is_kept(studio: Studio) -> None:
    approval, browser = await studio.ask(), await studio.logged_in("anna")
    fields = {"digest": approval.digest, "verdict": "deny", "reason": " Not on a Friday. ", "code": studio.code("anna")}
    assert (await browser.form(f"/approve/{approval.id}", **fields)).status == 303
    found = await studio.desk.get(approval.id)
    assert (found.standing, found.why, found.votes[0].factor) == ("denied", "Not on a Friday.", "totp")
    shown = (await browser.get(f"/approve/{approval.id}")).body.decode()
    assert "Denied by Anna" in shown
    assert "Not on a Friday." in shown


async def test_a_no_by_passkey_is_signed_as_a_no(studio: Studio) -> None:
    _, device = await studio.enrol_device("anna")
    approval, browser = await studio.ask(), await _logged_in_by_oidc(studio, "person:anna")
    assert b"Deny with my passkey" in (await browser.get(f"/approve/{approval.id}")).body
    fields = {"digest": approval.digest, "verdict": "deny"}
    asked = json_of(await browser.script(f"/approve/{approval.id}/options", **fields))["publicKey"]
    wrong = device.get(vote_challenge(approval.id, approval.digest, "approve"))
    assert (await browser.script(f"/approve/{approval.id}", **fields, answer=wrong)).status == 403
    answer = device.get(websafe_decode(asked["challenge"]))
    assert (await browser.script(f"/approve/{approval.id}", **fields, answer=answer)).status == 200
    assert await studio.said(approval) == "denied"


async def test_one_s_own_request_is_signed_by_one_s_own_factor(studio: Studio) -> None:
    approval, browser = await studio.ask(chain=ANNA), await studio.logged_in("anna")
    assert approval.headline.encode() in (await browser.get("/approvals")).body
    shown = await browser.get(f"/approve/{approval.id}")
    assert b"your own request: your second factor is what it lacks" in shown.body
    fields = {"digest": approval.digest, "verdict": "approve", "code": studio.code("anna")}
    assert (await browser.form(f"/approve/{approval.id}", **fields)).status == 303
    assert await studio.said(approval) == "approved"


async def _ask_with(studio: Studio, chain: tuple[str, ...], **wants: Any) -> Approval:
    """A call whose rule wants something else than ours do."""
    asked = subject(studio.policy, "ingest", chain)
    (requirement,) = asked.requirements
    return (await studio.desk.ask(replace(asked, requirements=(replace(requirement, **wants),)))).approval


async def test_who_asked_sees_the_request_and_why_they_cannot_decide_it(studio: Studio) -> None:
    approval, browser = await _ask_with(studio, ANNA, own=False), await studio.logged_in("anna")
    shown = await browser.get(f"/approve/{approval.id}")
    assert shown.status == 200
    assert b"the rule wants somebody else" in shown.body
    assert b"Approve with my code" not in shown.body


async def test_what_is_answered_in_slack_alone_says_so(studio: Studio) -> None:
    approval, browser = await _ask_with(studio, BRONZE, via=("slack",)), await studio.logged_in("anna")
    shown = await browser.get(f"/approve/{approval.id}")
    assert b"Decide it in Slack" in shown.body
    assert b"Approve with my code" not in shown.body


async def test_two_people_are_counted_one_by_one(studio: Studio) -> None:
    approval = await studio.ask("remove")
    anna, ben = await studio.logged_in("anna"), await studio.logged_in("ben")
    for browser, name, standing in ((anna, "anna", "pending"), (ben, "ben", "approved")):
        fields = {"digest": approval.digest, "verdict": "approve", "sure": "yes", "code": studio.code(name)}
        assert (await browser.form(f"/approve/{approval.id}", **fields)).status == 303
        assert await studio.said(approval) == standing
    shown = (await anna.get(f"/approve/{approval.id}")).body.decode()
    assert "Yes: Anna (person:anna), by the approval page, with a code" in shown
    assert "Approved by Anna (person:anna), person:ben" in shown


async def test_somebody_without_a_factor_is_told_how_to_get_one(studio: Studio) -> None:
    approval = await studio.ask()
    browser = await _logged_in_by_oidc(studio, "person:ben")
    shown = (await browser.get(f"/approve/{approval.id}")).body
    assert b"body-broker mfa enroll" in shown
    assert b"Deny" not in shown, "the issuer's word is no second factor"
    assert (
        await browser.form(f"/approve/{approval.id}", digest=approval.digest, verdict="deny", code="123456")
    ).status == 403


async def test_the_inbox_has_what_waits_for_me_and_what_i_decided(studio: Studio) -> None:
    browser = await studio.logged_in("anna")
    assert b"Nothing waits for you" in (await browser.get("/approvals")).body
    mine, done, others = (
        await studio.ask(name="for anna"),
        await studio.ask(name="denied"),
        await studio.ask("scan", name="theirs"),
    )
    await no(studio.desk, done)
    shown = (await browser.get("/approvals")).body.decode()
    waiting, _, lately = shown.partition("Lately")
    assert mine.headline in waiting
    assert done.headline in lately
    assert others.headline not in shown
    await past_its_time(studio.pool, mine.id)
    assert "Nothing waits for you" in (await browser.get("/approvals")).body.decode()


async def test_a_new_factor_is_confirmed_from_the_inbox(studio: Studio) -> None:
    browser = await studio.logged_in("anna")
    info, _ = await studio.enrol_device("ben")
    shown = (await browser.get("/approvals")).body.decode()
    assert "Enrolments to confirm" in shown
    assert "ben (person:ben)" in shown
    refused = await browser.form("/approvals/confirm", factor=info.id, code="000000")
    assert (refused.status, b"code is wrong" in refused.body) == (403, True)
    answer = await browser.form("/approvals/confirm", factor=info.id, code=studio.code("anna"))
    assert answer.status == 303
    assert [each.standing for each in await studio.factors.of("person:ben")] == ["counts"]


async def test_a_passkey_confirms_from_the_inbox_the_factor_it_was_asked_about(studio: Studio) -> None:
    _, device = await studio.enrol_device("anna")
    (first, _), (second, _) = await studio.enrol_device("ben"), await studio.enrol_device("cleo")
    browser = studio.browser()
    await browser.get("/login")
    options = json_of(await browser.script("/login/options"))
    await browser.script("/login/passkey", answer=device.get(websafe_decode(options["publicKey"]["challenge"])))
    await browser.get("/approvals")
    for factor, status in ((second.id, 403), (first.id, 403)):
        # Asked about the first, used for another; then once more, used up.
        asked = json_of(await browser.script("/approvals/confirm/options", factor=first.id))["publicKey"]
        signed = device.get(websafe_decode(asked["challenge"]))
        if factor == first.id:
            assert (await browser.script("/approvals/confirm", factor=factor, answer=signed)).status == 200
        assert (await browser.script("/approvals/confirm", factor=factor, answer=signed)).status == status
    standings = [(await studio.factors.of(f"person:{name}"))[0].standing for name in ("ben", "cleo")]
    assert standings == ["counts", "waiting"]


async def test_who_is_no_approver_sees_and_confirms_only_their_own(studio: Studio) -> None:
    await studio.enrol("anna")
    browser = await studio.logged_in("nora")
    info, _ = await studio.enrol_device("ben")
    assert b"Enrolments" not in (await browser.get("/approvals")).body
    answer = await browser.form("/approvals/confirm", factor=info.id, code=studio.code("nora"))
    assert (answer.status, b"no such enrolment" in answer.body) == (404, True)
    assert (await studio.factors.of("person:ben"))[0].standing == "waiting"


async def test_an_enrolment_link_is_good_once_and_says_what_it_is_for(studio: Studio) -> None:
    invite = await studio.factors.invite("person:anna", by="operator:tester")
    browser, device = studio.browser(), Authenticator()
    shown = await browser.get(f"/enroll/{invite.token}")
    assert b"Anna (person:anna)" in shown.body
    assert b"counts at once" in shown.body
    options = json_of(await browser.script(f"/enroll/{invite.token}/options"))
    told = json_of(await browser.script(f"/enroll/{invite.token}", answer=device.create(options), label="my phone"))
    assert (told["next"], told["standing"]) == ("/enrolled?counts", "counts")
    shown = (await browser.get("/enrolled?counts")).body
    assert b"Your passkey counts" in shown
    assert told["factor"].encode() in shown
    assert told["factor"].encode() not in (await studio.browser().get("/enrolled?counts")).body
    for path in (f"/enroll/{invite.token}", "/enroll/never-was-one"):
        assert (await browser.get(path)).status == 404


async def test_whoever_confirms_and_whoever_enrolled_see_the_same_id(studio: Studio) -> None:
    browser = await studio.logged_in("anna")
    invite = await studio.factors.invite("person:ben", by="operator:tester")
    other = studio.browser()
    await other.get(f"/enroll/{invite.token}")
    options = json_of(await other.script(f"/enroll/{invite.token}/options"))
    told = json_of(await other.script(f"/enroll/{invite.token}", answer=Authenticator().create(options)))
    shown = (await other.get(told["next"])).body.decode()
    assert f'<span class="print">{told["factor"]}</span>' in shown
    assert f'<span class="print">{told["factor"]}</span>' in (await browser.get("/approvals")).body.decode()
    # A link that somebody sends shows no id of theirs.
    assert b"fac_" not in (await studio.browser().get("/enrolled?waits=fac_000000000000")).body


async def test_the_page_says_when_nothing_would_run_it(studio: Studio) -> None:
    approval, browser = await studio.ask(), await studio.logged_in("anna")
    waiting = await browser.get(f"/approve/{approval.id}")
    assert b"it runs when the hub starts again, unless it has expired by then" in waiting.body
    await yes(studio.desk, approval, "ben")
    assert b"No worker runs now: it runs when" in (await browser.get(f"/approve/{approval.id}")).body


async def test_pages_keep_to_themselves(studio: Studio) -> None:
    browser = await studio.logged_in("anna")
    for path in ("/login", "/approvals", "/nowhere", "/enroll/x"):
        headers = dict((await browser.get(path)).all_headers())
        assert "script-src 'self';" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert headers["referrer-policy"] == "same-origin"
    shown = (await browser.get("/approvals")).body.decode()
    for name in ("page.css", "page.js", "mark.svg"):
        assert f"/static/{name}?v=" in shown
        assert (await browser.get(f"/static/{name}")).lasting
    for name in ("nothing.js", "../shell.py", "..%2fshell.py", ""):
        assert (await browser.get(f"/static/{name}")).status == 404


@pytest.mark.parametrize(
    ("base", "name", "more"), [(BASE, "bb_login_8080", ""), ("https://hub.example", "__Host-bb_login", "; Secure")]
)
async def test_a_login_s_cookie_is_for_this_hub_and_no_script(studio: Studio, base: str, name: str, more: str) -> None:
    await studio.enrol("anna")
    browser = Browser(studio.pages(), base, base)
    await browser.get("/login")
    answer = await browser.form("/login/totp", name="person:anna", code=studio.code("anna"))
    cookie = next(value for key, value in answer.headers if key == "set-cookie" and "_login" in value)
    assert cookie.startswith(f"{name}=")
    assert cookie.endswith(f"; Path=/; Max-Age={28800 if more else 3600}; HttpOnly; SameSite=Strict{more}")


async def test_a_login_stands_on_the_audit(studio: Studio) -> None:
    await studio.logged_in("anna")
    (found,) = [entry.record for entry in await tail(studio.pool, action="page login")]
    assert (found.requester, found.verdict, dict(found.details)) == ("person:anna", "allow", {"how": "totp"})


async def test_whatever_was_asked_stands_on_the_page_as_text(studio: Studio) -> None:
    hostile = "</pre><script>alert(1)</script><!-- \" ' onclick=x &lt;b&gt;"
    approval = await studio.ask(name=hostile, reason=hostile)
    shown = (await (await studio.logged_in("anna")).get(f"/approve/{approval.id}")).body.decode()
    assert "<script>alert" not in shown
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown


async def test_a_long_argument_is_wholly_there(studio: Studio) -> None:
    approval = await studio.ask(name="word " * 20_000 + "the very end")
    shown = (await (await studio.logged_in("anna")).get(f"/approve/{approval.id}")).body.decode()
    assert "word " * 20_000 + "the very end" in shown


async def test_a_link_from_another_site_is_asked_for_once_more(studio: Studio) -> None:
    approval, browser = await studio.ask(), studio.browser()
    answer = await browser.get(f"/approve/{approval.id}", **{"sec-fetch-site": "cross-site"})
    assert answer.status == 200
    assert f'content="0; url=/approve/{approval.id}"' in answer.body.decode()
    assert (await browser.get(f"/approve/{approval.id}", **{"sec-fetch-site": "same-origin"})).status == 303


class Issuer:
    """An OIDC login as the hub brings it, whose issuer knows one person."""

    def __init__(self, person: str) -> None:
        self.person, self.base_url = person, None

    async def begin(self, base_url: str | None = None) -> tuple[str, Mapping[str, Json]]:
        return f"https://issuer.example/authorize?redirect={base_url}", {"state": "s1"}

    async def finish(self, query: Mapping[str, str], kept: Mapping[str, Json]) -> str:
        if query.get("state") != kept["state"]:
            raise Denied("This is not the answer to the login that was begun here.")
        return self.person


async def _logged_in_by_oidc(studio: Studio, person: str) -> Browser:
    browser = studio.browser(oidc=Issuer(person))
    await browser.get("/login/oidc")
    assert (await browser.get("/login/oidc/callback?state=s1&code=c")).status == 303
    await browser.get("/approvals")
    return browser


async def test_an_issuer_s_word_is_a_login_once_for_the_browser_that_began_it(studio: Studio) -> None:
    approval = await studio.ask()
    pages = studio.pages(oidc=Issuer("person:anna"))
    browser, thief = Browser(pages), Browser(pages)
    shown = await browser.get(f"/login?next=/approve/{approval.id}")
    assert b"Log in with your organisation" in shown.body
    begun = await browser.get(f"/login/oidc?next=/approve/{approval.id}")
    assert header(begun, "location") == f"https://issuer.example/authorize?redirect={BASE}"
    assert (await thief.get("/login/oidc/callback?state=s1&code=c")).status == 403
    kept = browser.copy()
    answer = await browser.get("/login/oidc/callback?state=s1&code=c")
    assert header(answer, "location") == f"/approve/{approval.id}"
    assert any("SameSite=Lax" in value for key, value in answer.headers if "_login" in value and key == "set-cookie")
    assert (await browser.get(f"/approve/{approval.id}")).status == 200
    assert (await kept.get("/login/oidc/callback?state=s1&code=c")).status == 403


async def test_another_answer_than_was_begun_is_no_login(studio: Studio) -> None:
    browser = studio.browser(oidc=Issuer("person:anna"))
    await browser.get("/login/oidc")
    assert (await browser.get("/login/oidc/callback?state=other&code=c")).status == 403
    assert (await browser.get("/approvals")).status == 303
