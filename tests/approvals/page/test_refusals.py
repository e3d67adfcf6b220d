"""What the pages refuse, each with a sentence and without an effect: forms of others, ended logins, others' approvals, old factors."""

from __future__ import annotations

from typing import Any

import pytest
from fido2.utils import websafe_decode

from approvals.factors import vote_challenge
from approvals.model import Approval
from approvals.page.logins import Logins, Purpose
from tests.approvals.factors.authenticator import Authenticator
from tests.approvals.page.conftest import KEY, Browser, Studio, header, json_of
from tests.approvals.scene import past_its_time


def yes(approval: Approval, code: str) -> dict[str, str]:
    return {"digest": approval.digest, "verdict": "approve", "code": code}


@pytest.mark.parametrize("token", ["", "0" * 64, "of another browser"])
async def test_a_form_without_this_browser_s_token_decides_nothing(studio: Studio, token: str) -> None:
    approval, browser = await studio.ask(), await studio.logged_in("anna")
    other = await studio.logged_in("ben")
    browser.token = other.token if token == "of another browser" else token
    answer = await browser.form(f"/approve/{approval.id}", **yes(approval, studio.code("anna")))
    assert (answer.status, b"Reload the page" in answer.body) == (403, True)
    assert await studio.said(approval) == "pending"


@pytest.mark.parametrize(
    "origin", [None, "null", "http://localhost:9999", "http://127.0.0.1:8080", "https://evil.example"]
)
async def test_a_form_of_another_origin_decides_nothing_though_everything_else_is_right(
    studio: Studio, origin: str | None
) -> None:
    approval, browser = await studio.ask(), await studio.logged_in("anna")
    browser.origin = origin
    answer = await browser.form(f"/approve/{approval.id}", **yes(approval, studio.code("anna")))
    assert (answer.status, b"not sent by a page of this hub" in answer.body) == (403, True)
    assert await studio.said(approval) == "pending"


async def test_who_is_not_logged_in_is_sent_to_the_login_and_back(studio: Studio) -> None:
    approval, browser = await studio.ask(), studio.browser()
    answer = await browser.get(f"/approve/{approval.id}")
    assert (answer.status, header(answer, "location")) == (303, f"/login?next=/approve/{approval.id}")
    # Nothing tells a stranger which approvals there are.
    unknown = await browser.get(f"/approve/apr_{'x' * 24}")
    assert (unknown.status, header(unknown, "location")) == (303, f"/login?next=/approve/apr_{'x' * 24}")


async def test_a_form_of_nobody_decides_nothing(studio: Studio) -> None:
    await studio.enrol("anna")
    approval, browser = await studio.ask(), studio.browser()
    await browser.get("/login")
    answer = await browser.form(f"/approve/{approval.id}", **yes(approval, studio.code("anna")))
    assert (answer.status, b"not logged in" in answer.body) == (401, True)
    told = await browser.script(f"/approve/{approval.id}", **yes(approval, studio.code("anna")))
    assert (told.status, json_of(told)["code"]) == (401, "unauthenticated")
    assert await studio.said(approval) == "pending"


async def test_an_ended_login_is_no_login(studio: Studio) -> None:
    approval, browser = await studio.ask(), await studio.logged_in("anna")
    await studio.pool.execute("UPDATE page_login SET expires_at = clock_timestamp() - interval '1 second'")
    answer = await browser.form(f"/approve/{approval.id}", **yes(approval, studio.code("anna")))
    assert (answer.status, b"nothing was decided" in answer.body) == (401, True)
    assert (await browser.get("/approvals")).status == 303
    assert await studio.said(approval) == "pending"


async def test_after_logging_out_a_kept_cookie_is_worth_nothing(studio: Studio) -> None:
    browser = await studio.logged_in("anna")
    kept = browser.copy()
    assert (await browser.form("/logout")).status == 303
    assert (await kept.get("/approvals")).status == 303
    assert await studio.pool.fetchval("SELECT count(*) FROM page_login") == 0


async def test_no_table_holds_what_a_browser_holds(studio: Studio) -> None:
    browser = await studio.logged_in("anna")
    (held,) = browser.cookies.values()
    rows = await studio.pool.fetch("SELECT t::text AS row FROM page_login t")
    assert rows
    assert all(held not in row["row"] and held.encode().hex() not in row["row"] for row in rows)


@pytest.mark.parametrize("who", ["eve", "sam", "nora"])
async def test_an_approval_of_others_looks_like_none_at_all(studio: Studio, who: str) -> None:
    approval = await studio.ask()
    await studio.enrol("anna")
    browser = await studio.logged_in(who)
    answer = await browser.get(f"/approve/{approval.id}")
    unknown = await browser.get(f"/approve/apr_{'x' * 24}")
    assert answer.status == unknown.status == 404
    assert answer.body == unknown.body
    assert approval.headline.encode() not in answer.body
    for path in (f"/approve/{approval.id}", f"/approve/{approval.id}/options"):
        refused = await browser.script(path, **yes(approval, studio.code(who)), answer={})
        assert (refused.status, json_of(refused)["code"]) == (404, "not_found")
    assert (await browser.get(f"/approve/{approval.id}/standing")).status == 404
    assert await studio.said(approval) == "pending"


async def test_a_code_counts_once_over_the_login_and_two_approvals(studio: Studio) -> None:
    first, second = await studio.ask(count=1), await studio.ask(count=2)
    browser = await studio.logged_in("anna")
    code = studio.code("anna")
    assert (await browser.form(f"/approve/{first.id}", **yes(first, code))).status == 303
    answer = await browser.form(f"/approve/{second.id}", **yes(second, code))
    assert (answer.status, b"used already" in answer.body) == (403, True)
    assert [await studio.said(first), await studio.said(second)] == ["approved", "pending"]
    again = studio.browser()
    await again.get("/login")
    assert (await again.form("/login/totp", name="anna", code=code)).status == 403


async def test_a_wrong_code_decides_nothing_and_five_lock(studio: Studio) -> None:
    approval, browser = await studio.ask(), await studio.logged_in("anna")
    right = studio.code("anna")
    wrong = f"{(int(right) + 1) % 1_000_000:06d}"
    statuses = [(await browser.form(f"/approve/{approval.id}", **yes(approval, wrong))).status for _ in range(6)]
    assert statuses == [403, 403, 403, 403, 403, 429]
    answer = await browser.form(f"/approve/{approval.id}", **yes(approval, right))
    assert (answer.status, b"Too many wrong codes" in answer.body) == (429, True)
    assert await studio.said(approval) == "pending"


async def test_the_same_form_sent_twice_counts_once(studio: Studio) -> None:
    approval, browser = await studio.ask("remove", ("tier:bronze",)), await studio.logged_in("anna")
    assert any(each.quorum == 2 for each in approval.requirements), "it wants two people"
    fields = yes(approval, studio.code("anna")) | {"sure": "yes"}
    assert (await browser.form(f"/approve/{approval.id}", **fields)).status == 303
    studio.clock.pass_s(30)
    answer = await browser.form(f"/approve/{approval.id}", **(fields | {"code": studio.code("anna")}))
    assert (answer.status, b"a person has one vote" in answer.body) == (409, True)
    assert len((await studio.desk.get(approval.id)).votes) == 1


async def test_what_takes_something_away_is_asked_twice(studio: Studio) -> None:
    approval, browser = await studio.ask("remove", ("tier:bronze",)), await studio.logged_in("anna")
    answer = await browser.form(f"/approve/{approval.id}", **yes(approval, studio.code("anna")))
    assert (answer.status, b"Tick the box" in answer.body) == (400, True)
    assert (await studio.desk.get(approval.id)).votes == ()


async def test_a_yes_to_another_call_than_was_shown_counts_for_nothing(studio: Studio) -> None:
    approval, other, browser = await studio.ask(), await studio.ask(count=7), await studio.logged_in("anna")
    fields = yes(approval, studio.code("anna")) | {"digest": other.digest}
    answer = await browser.form(f"/approve/{approval.id}", **fields)
    assert (answer.status, b"another call" in answer.body) == (409, True)
    assert await studio.said(approval) == "pending"


async def test_nobody_decides_what_has_expired(studio: Studio) -> None:
    approval, browser = await studio.ask(), await studio.logged_in("anna")
    await past_its_time(studio.pool, approval.id)
    answer = await browser.form(f"/approve/{approval.id}", **yes(approval, studio.code("anna")))
    assert (answer.status, b"has expired" in answer.body) == (409, True)
    shown = await browser.get(f"/approve/{approval.id}")
    assert b"That is not a refusal" in shown.body
    assert b"<button" not in shown.body.partition(b"<main")[2], "nothing is left to press"


async def test_a_tier_s_asker_does_not_decide_what_was_asked_on_their_behalf(studio: Studio) -> None:
    approval = await studio.ask(chain=("person:anna", "tier:bronze"))
    browser = await studio.logged_in("anna")
    shown = await browser.get(f"/approve/{approval.id}")
    assert b"nobody decides their own request" in shown.body
    answer = await browser.form(f"/approve/{approval.id}", **yes(approval, studio.code("anna")))
    assert (answer.status, b"nobody decides their own request" in answer.body) == (403, True)
    assert await studio.said(approval) == "pending"


async def _by_passkey(browser: Browser, approval: Approval, device: Authenticator, challenge: bytes) -> dict[str, Any]:
    answer = await browser.script(
        f"/approve/{approval.id}", digest=approval.digest, verdict="approve", answer=device.get(challenge)
    )
    return {"status": answer.status} | json_of(answer)


async def test_a_signature_over_another_call_or_word_counts_for_nothing(studio: Studio) -> None:
    _, device = await studio.enrol_device("anna")
    approval, other = await studio.ask(), await studio.ask(count=7)
    browser = await _log_in(studio, device)
    for challenge in (
        vote_challenge(other.id, other.digest, "approve"),
        vote_challenge(approval.id, other.digest, "approve"),
        vote_challenge(approval.id, approval.digest, "deny"),
        bytes(32),
    ):
        told = await _by_passkey(browser, approval, device, challenge)
        assert (told["status"], told["code"]) == (403, "denied")
    assert await studio.said(approval) == "pending"


async def test_a_signature_made_at_another_origin_counts_for_nothing(studio: Studio) -> None:
    _, device = await studio.enrol_device("anna")
    approval = await studio.ask()
    browser = await _log_in(studio, device)
    for origin, rp in (("http://localhost:9999", "localhost"), ("https://evil.example", "evil.example")):
        device.origin, device.rp = origin, rp
        told = await _by_passkey(browser, approval, device, vote_challenge(approval.id, approval.digest, "approve"))
        assert (told["status"], told["code"]) == (403, "denied")
    assert await studio.said(approval) == "pending"


async def test_another_person_s_passkey_does_not_sign_for_me(studio: Studio) -> None:
    await studio.enrol("anna")
    info, device = await studio.enrol_device("ben")
    await studio.factors.confirm(info.id, by=await studio.factors.check_totp("person:anna", studio.code("anna")))
    studio.clock.pass_s(30)
    approval, browser = await studio.ask(), await studio.logged_in("anna")
    told = await _by_passkey(browser, approval, device, vote_challenge(approval.id, approval.digest, "approve"))
    assert (told["status"], told["code"]) == (403, "denied")
    assert await studio.said(approval) == "pending"


async def _log_in(studio: Studio, device: Authenticator) -> Browser:
    browser = studio.browser()
    await browser.get("/login")
    options = json_of(await browser.script("/login/options"))
    answer = await browser.script("/login/passkey", answer=device.get(_challenge(options)))
    assert answer.status == 200, answer.body
    await browser.get("/approvals")
    return browser


def _challenge(options: dict[str, Any]) -> bytes:
    return websafe_decode(options["publicKey"]["challenge"])


async def test_a_login_s_challenge_is_for_one_browser_and_one_time(studio: Studio) -> None:
    _, device = await studio.enrol_device("anna")
    victim, thief = studio.browser(), studio.browser()
    await victim.get("/login")
    await thief.get("/login")
    signed = device.get(_challenge(json_of(await victim.script("/login/options"))))
    assert (await thief.script("/login/passkey", answer=signed)).status == 403
    await thief.script("/login/options")
    assert (await thief.script("/login/passkey", answer=signed)).status == 403
    kept = victim.copy()
    assert (await victim.script("/login/passkey", answer=signed)).status == 200
    assert (await kept.script("/login/passkey", answer=signed)).status == 403


async def test_strangers_write_nothing_by_beginning_logins(studio: Studio) -> None:
    await studio.enrol_device("anna")
    browser = studio.browser()
    await browser.get("/login")
    for _ in range(3):
        assert (await browser.script("/login/options")).status == 200
        assert (await browser.get("/login/oidc")).status == 501
    assert await studio.pool.fetchval("SELECT count(*) FROM page_challenge") == 0


async def test_what_a_browser_was_given_to_sign_is_no_other_s_and_ends_after_five_minutes(studio: Studio) -> None:
    logins = Logins(studio.pool, KEY)
    sealed = logins.sealed("login", "mine", {"challenge": "00"}, 1000.0)
    assert logins.opened("login", "mine", sealed, 1299.0) is not None
    assert logins.opened("login", "mine", sealed, 1300.0) is None
    tried: tuple[tuple[Purpose, str, str], ...] = (
        ("oidc", "mine", sealed),
        ("login", "yours", sealed),
        ("login", "mine", sealed[:-4] + "AAA="),
        ("login", "mine", "%%"),
        ("login", "mine", ""),
    )
    for purpose, holder, text in tried:
        assert logins.opened(purpose, holder, text, 1000.0) is None
    other = Logins(studio.pool, bytes(32)).sealed("login", "mine", {}, 1000.0)
    assert logins.opened("login", "mine", other, 1000.0) is None


async def test_a_login_ends_with_the_factor_that_it_was_made_with(studio: Studio) -> None:
    approval, browser = await studio.ask(), await studio.logged_in("anna")
    info, device = await studio.enrol_device("anna")
    await studio.factors.confirm(info.id, by=await studio.factors.check_totp("person:anna", studio.code("anna")))
    studio.clock.pass_s(30)
    other = await _log_in(studio, device)
    (stolen,) = [each.id for each in await studio.factors.of("person:anna") if each.kind == "totp"]
    proof = await studio.factors.check_totp("person:anna", studio.code("anna"))
    await studio.factors.revoke(stolen, by=proof)
    assert await studio.pool.fetchval("SELECT array_agg(how) FROM page_login") == ["passkey"]
    assert (await browser.get("/approvals")).status == 303
    assert (await browser.form(f"/approve/{approval.id}", digest=approval.digest, verdict="deny")).status == 401
    assert (await other.get("/approvals")).status == 200
    assert await studio.said(approval) == "pending"


async def test_a_login_begun_while_its_factor_ended_is_none(studio: Studio) -> None:
    await studio.enrol("anna")
    (info,) = await studio.factors.of("person:anna")
    proof = await studio.factors.check_totp("person:anna", studio.code("anna"))
    await studio.factors.revoke(info.id, by=proof)
    logins = Logins(studio.pool, KEY)
    assert await logins.find(await logins.begin("person:anna", "totp", info.id)) is None


async def test_a_no_without_a_factor_of_its_own_ends_nothing(studio: Studio) -> None:
    """On localhost every port gets the login's cookie: it alone must not decide."""
    approval, browser = await studio.ask(), await studio.logged_in("anna")
    answer = await browser.form(f"/approve/{approval.id}", digest=approval.digest, verdict="deny", reason="x")
    assert (answer.status, b"A code has 6 digits" in answer.body) == (400, True)
    assert await studio.said(approval) == "pending"


async def test_a_login_on_plain_http_is_short(studio: Studio) -> None:
    await studio.logged_in("anna")
    left = "SELECT extract(epoch FROM expires_at - clock_timestamp())::float8 FROM page_login"
    assert 3500 < await studio.pool.fetchval(left) <= 3600


@pytest.mark.parametrize("path", ["/approve/%0d%0aX-Evil: 1", "/approve/\r\nX-Evil: 1", "/approve/\x00", "/enroll/\n"])
async def test_what_is_no_id_is_looked_for_nowhere(studio: Studio, path: str) -> None:
    answer = await studio.browser().get(path)
    assert (answer.status, b"There is no such page" in answer.body) == (404, True)
    assert all("evil" not in value.lower() for _, value in answer.headers)


async def test_a_login_by_code_tells_a_stranger_nothing_about_names(studio: Studio) -> None:
    await studio.enrol("anna")
    browser = studio.browser()
    await browser.get("/login")
    pages = [
        (await browser.form("/login/totp", name=name, code=code)).body
        for name, code in (("anna", "000000"), ("nobody", "000000"), ("ANNA; DROP", "000000"), ("anna", "what"))
    ]
    for name in ("anna", "nobody"):  # locked, or nobody at all
        pages += [(await browser.form("/login/totp", name=name, code="000000")).body for _ in range(6)]
    assert all(b"That name and code do not go together" in page for page in pages)
    assert len(set(pages)) == 1
    statuses = {(await browser.form("/login/totp", name=name, code="000000")).status for name in ("anna", "nobody")}
    assert statuses == {403}
    assert "bb_login_8080" not in browser.cookies


async def test_a_hub_with_other_stores_takes_no_codes_for_a_login(studio: Studio) -> None:
    await studio.enrol("anna")
    browser = studio.browser(code_login=False)
    shown = await browser.get("/login")
    assert b'name="code"' not in shown.body
    assert (await browser.form("/login/totp", name="anna", code=studio.code("anna"))).status == 501


@pytest.mark.parametrize(
    "where", ["https://evil.example/", "//evil.example", "/login", "/approve/../x", "javascript:alert(1)"]
)
async def test_a_login_leads_to_pages_of_ours_alone(studio: Studio, where: str) -> None:
    await studio.enrol("anna")
    browser = studio.browser()
    await browser.get("/login")
    answer = await browser.form("/login/totp", name="anna", code=studio.code("anna"), next=where)
    assert (answer.status, header(answer, "location")) == (303, "/approvals")


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff\xfe", b"a=1&" * 100, b'{"csrf": 1}'])
async def test_a_body_that_is_no_form_is_refused_and_nothing_breaks(studio: Studio, body: bytes) -> None:
    browser = await studio.logged_in("anna")
    for kind in ("application/json", "application/x-www-form-urlencoded"):
        answer = await browser._send("POST", "/logout", body=body, kind=kind)  # pyright: ignore[reportPrivateUsage] - as no page sends it
        assert answer.status in {400, 403}
    assert (await browser.get("/approvals")).status == 200
