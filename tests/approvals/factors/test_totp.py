"""Codes: right ones count once, wrong ones lock, and neither waits for a clock but the test's."""

from __future__ import annotations

import asyncio

import pytest

from approvals.factors.guard import ATTEMPTS, LOCKED_S
from approvals.factors.totp import STEP_S, code_at, new_secret, step_of, uri_of
from body_broker.errors import BadInput, Denied, RateLimited
from tests.approvals.factors.conftest import ANNA, BOSS, Installation

pytestmark = pytest.mark.anyio


def wrong(secret: str, now: float) -> str:
    """A code that fits no step near now."""
    near = {code_at(secret, now + each * STEP_S) for each in range(-3, 4)}
    return next(code for number in range(10) if (code := f"{number:06}") not in near)


def test_a_code_is_the_one_that_rfc_6238_says() -> None:
    # Its appendix B, the secret "12345678901234567890" with SHA-1, cut to six digits.
    secret = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"

    assert [code_at(secret, at) for at in (59, 1111111109, 20000000000)] == ["287082", "081804", "353130"]


def test_an_app_is_told_whose_secret_it_is() -> None:
    secret = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"

    assert uri_of(secret, ANNA) == f"otpauth://totp/Body%20Broker:anna?secret={secret}&issuer=Body%20Broker"


@pytest.mark.parametrize(("off", "fits"), [(-2, False), (-1, True), (0, True), (1, True), (2, False)])
def test_a_phone_may_be_one_step_off_and_no_more(off: int, fits: bool) -> None:  # noqa: FBT001 - a parameter of the case
    secret, now = new_secret(), 3000.0

    assert step_of(secret, code_at(secret, now + off * STEP_S), now) == (100 + off if fits else None)


async def test_a_right_code_proves_the_person_once(installed: Installation) -> None:
    _, secret = await installed.enrol_totp(BOSS)
    code = code_at(secret, installed.clock())

    proof = await installed.factors.check_totp(BOSS, f" {code[:3]} {code[3:]} ")

    assert (proof.person, proof.factor) == (BOSS, "totp")
    with pytest.raises(Denied, match="used already"):
        await installed.factors.check_totp(BOSS, code)


async def test_the_code_that_enrolled_a_factor_proves_nothing_later(installed: Installation) -> None:
    _, secret = await installed.enrol_totp(BOSS)
    installed.clock.pass_s(-STEP_S)

    with pytest.raises(Denied, match="used already"):
        await installed.factors.check_totp(BOSS, code_at(secret, installed.clock()))


async def test_of_one_code_used_many_times_at_once_one_counts(installed: Installation) -> None:
    _, secret = await installed.enrol_totp(BOSS)
    code = code_at(secret, installed.clock())

    tried = [installed.factors.check_totp(BOSS, code) for _ in range(ATTEMPTS)]
    found = await asyncio.gather(*tried, return_exceptions=True)

    assert sum(not isinstance(each, BaseException) for each in found) == 1


async def test_an_older_code_does_not_count_after_a_newer_one(installed: Installation) -> None:
    _, secret = await installed.enrol_totp(BOSS)
    await installed.factors.check_totp(BOSS, code_at(secret, installed.clock() + STEP_S))

    with pytest.raises(Denied, match="used already"):
        await installed.factors.check_totp(BOSS, code_at(secret, installed.clock()))


async def test_five_wrong_codes_lock_the_person_and_a_right_one_is_not_looked_at(installed: Installation) -> None:
    _, secret = await installed.enrol_totp(BOSS)
    for _ in range(ATTEMPTS):
        with pytest.raises(Denied, match="wrong"):
            await installed.factors.check_totp(BOSS, wrong(secret, installed.clock()))

    with pytest.raises(RateLimited, match="Too many wrong codes for person:boss") as locked:
        await installed.factors.check_totp(BOSS, code_at(secret, installed.clock()))
    assert locked.value.retry_after_s == pytest.approx(LOCKED_S)

    installed.clock.pass_s(LOCKED_S + 1)
    await installed.prove(BOSS, secret)


async def test_each_lock_is_longer_than_the_one_before_and_a_right_code_ends_that(installed: Installation) -> None:
    _, secret = await installed.enrol_totp(BOSS)
    lasted: list[float] = []
    for _ in range(6):
        for _ in range(ATTEMPTS):
            with pytest.raises(Denied):
                await installed.factors.check_totp(BOSS, wrong(secret, installed.clock()))
        with pytest.raises(RateLimited) as locked:
            await installed.factors.check_totp(BOSS, "000000")
        assert locked.value.retry_after_s is not None
        lasted.append(locked.value.retry_after_s)
        installed.clock.pass_s(locked.value.retry_after_s + 1)

    assert lasted == pytest.approx([300, 600, 1200, 2400, 3600, 3600])
    await installed.prove(BOSS, secret)
    assert await installed.pool.fetchval("SELECT count(*) FROM factor_guard") == 0


async def test_a_thousand_guesses_at_once_are_five_guesses(installed: Installation) -> None:
    _, secret = await installed.enrol_totp(BOSS)
    code = wrong(secret, installed.clock())

    found = await asyncio.gather(*[installed.factors.check_totp(BOSS, code) for _ in range(60)], return_exceptions=True)

    assert sum(isinstance(each, Denied) for each in found) == ATTEMPTS
    assert sum(isinstance(each, RateLimited) for each in found) == 60 - ATTEMPTS


async def test_one_person_s_wrong_codes_lock_nobody_else(installed: Installation) -> None:
    anna = await installed.confirmed_totp(ANNA)
    for _ in range(ATTEMPTS + 1):
        with pytest.raises((Denied, RateLimited)):
            await installed.factors.check_totp(BOSS, "000000")

    await installed.prove(ANNA, anna)


@pytest.mark.parametrize("typed", ["", "12345", "1234567", "12345a", "１２３４５６"])
async def test_what_is_no_code_is_refused_and_counts_as_no_attempt(installed: Installation, typed: str) -> None:
    await installed.enrol_totp(BOSS)

    with pytest.raises(BadInput):
        await installed.factors.check_totp(BOSS, typed)

    assert await installed.pool.fetchval("SELECT count(*) FROM factor_guard") == 0


async def test_a_wrong_code_stands_on_the_audit_without_the_code(installed: Installation) -> None:
    _, secret = await installed.enrol_totp(BOSS)
    code = wrong(secret, installed.clock())
    with pytest.raises(Denied):
        await installed.factors.check_totp(BOSS, code)

    [record] = await installed.recorded("second factor")

    assert (record.kind, record.requester, record.verdict, record.details) == (
        "refusal", BOSS, "deny", {"why": "wrong code"},
    )  # fmt: skip
