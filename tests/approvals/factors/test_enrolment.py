"""Enrolment: the first needs nobody, no other counts unless somebody who counts says so, and what ended never counts again."""

from __future__ import annotations

import asyncio

import pytest

from approvals.factors.model import INVITE_S
from approvals.factors.totp import code_at
from body_broker.errors import BadInput, Conflict, Denied, NotFound
from tests.approvals.factors.authenticator import Authenticator
from tests.approvals.factors.conftest import ANNA, BOSS, KEY, MALLORY, Installation
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio
OPERATOR = "operator:tester"


async def test_the_first_factor_of_an_installation_counts_at_once(installed: Installation) -> None:
    assert not await installed.factors.begun()

    info, secret = await installed.enrol_totp(BOSS)

    assert (info.standing, info.confirmed_by) == ("counts", BOSS)
    assert await installed.factors.begun()
    await installed.prove(BOSS, secret)


async def test_the_first_factor_must_be_an_approver_s(installed: Installation) -> None:
    with pytest.raises(Conflict, match="no approver group"):
        await installed.factors.invite(MALLORY, by=OPERATOR)


async def test_a_later_factor_counts_only_once_an_approver_has_confirmed_it(installed: Installation) -> None:
    _, boss = await installed.enrol_totp(BOSS)
    info, anna = await installed.enrol_totp(ANNA)
    assert info.standing == "waiting"
    with pytest.raises(Denied, match="that counts"):
        await installed.prove(ANNA, anna)

    confirmed = await installed.factors.confirm(info.id, by=await installed.prove(BOSS, boss))

    assert (confirmed.standing, confirmed.confirmed_by) == ("counts", BOSS)
    await installed.prove(ANNA, anna)


async def test_a_person_s_own_earlier_factor_confirms_their_next(installed: Installation) -> None:
    anna = await installed.confirmed_totp(ANNA)
    device = Authenticator()
    info = await installed.enrol_passkey(ANNA, device)

    confirmed = await installed.factors.confirm(info.id, by=await installed.prove(ANNA, anna))

    assert confirmed.standing == "counts"


async def test_who_is_no_approver_confirms_nobody_else_s_factor(installed: Installation) -> None:
    anna = await installed.confirmed_totp(ANNA)
    info, _ = await installed.enrol_totp(MALLORY)

    with pytest.raises(Denied, match="person:anna is no approver"):
        await installed.factors.confirm(info.id, by=await installed.prove(ANNA, anna))


async def test_a_factor_is_confirmed_once(installed: Installation) -> None:
    _, boss = await installed.enrol_totp(BOSS)
    info, _ = await installed.enrol_totp(ANNA)
    await installed.factors.confirm(info.id, by=await installed.prove(BOSS, boss))

    with pytest.raises(Conflict, match="counts already"):
        await installed.factors.confirm(info.id, by=await installed.prove(BOSS, boss))


async def test_an_enrolment_is_used_once_and_for_ten_minutes(installed: Installation) -> None:
    invite = await installed.factors.invite(BOSS, by=OPERATOR)
    offer = await installed.factors.begin_totp(invite.token)
    assert await installed.factors.begin_totp(invite.token) == offer
    installed.clock.pass_s(INVITE_S + 1)
    with pytest.raises(NotFound, match="ten minutes"):
        await installed.factors.finish_totp(invite.token, code_at(offer.secret, installed.clock()))
    installed.clock.pass_s(-INVITE_S)

    await installed.factors.finish_totp(invite.token, code_at(offer.secret, installed.clock()))

    with pytest.raises(NotFound):
        await installed.factors.invited(invite.token)


async def test_a_first_enrolment_waits_for_another_one_that_is_being_kept_and_is_then_not_the_first(
    installed: Installation,
) -> None:
    invite = await installed.factors.invite(BOSS, by=OPERATOR)
    offer = await installed.factors.begin_totp(invite.token)
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    async with installed.pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1::bigint)", 0x66616374)
        await connection.execute(
            "INSERT INTO factor (id, person, kind, label, sealed, confirmed_at, confirmed_by)"
            " VALUES ('fac_other', $1, 'totp', 'x', '', now(), $1)",
            ANNA,
        )
        finishing = asyncio.create_task(
            installed.factors.finish_totp(invite.token, code_at(offer.secret, installed.clock()))
        )

        async def waits_or_is_done() -> bool:
            return finishing.done() or await installed.pool.fetchval(waiting) > 0

        await wait_until(waits_or_is_done, "the second enrolment waits")

    with pytest.raises(Conflict, match="Somebody else has enrolled the first factor meanwhile"):
        await finishing
    assert [f.id for f in await installed.factors.everybody()] == ["fac_other"]


async def test_an_invite_given_out_as_the_first_does_not_count_once_it_is_not(installed: Installation) -> None:
    early = await installed.factors.invite(BOSS, by=OPERATOR)
    assert early.first
    await installed.enrol_totp(BOSS)
    offer = await installed.factors.begin_totp(early.token)

    info = await installed.factors.finish_totp(early.token, code_at(offer.secret, installed.clock()))

    assert info.standing == "waiting"


async def test_a_wrong_first_code_enrols_nothing_and_may_be_typed_again(installed: Installation) -> None:
    invite = await installed.factors.invite(BOSS, by=OPERATOR)
    offer = await installed.factors.begin_totp(invite.token)
    code = code_at(offer.secret, installed.clock())

    with pytest.raises(BadInput, match="does not fit"):
        await installed.factors.finish_totp(invite.token, f"{(int(code) + 1) % 1_000_000:06}")

    assert (await installed.factors.finish_totp(invite.token, code)).standing == "counts"


async def test_a_revoked_factor_never_counts_again_and_its_secret_is_gone(installed: Installation) -> None:
    info, secret = await installed.enrol_totp(BOSS)

    revoked = await installed.factors.revoke(info.id, by=await installed.prove(BOSS, secret))

    assert (revoked.standing, revoked.revoked_by) == ("revoked", BOSS)
    with pytest.raises(Denied):
        await installed.prove(BOSS, secret)
    assert await installed.pool.fetchval("SELECT sealed FROM factor") == b""


async def test_a_factor_that_counts_ends_on_no_operator_s_word(installed: Installation) -> None:
    info, secret = await installed.enrol_totp(BOSS)

    with pytest.raises(Denied, match="only on the word of somebody enrolled"):
        await installed.factors.revoke(info.id, by=OPERATOR)

    await installed.prove(BOSS, secret)


async def test_a_factor_that_waits_ends_on_an_operator_s_word(installed: Installation) -> None:
    await installed.enrol_totp(BOSS)
    info, _ = await installed.enrol_totp(MALLORY)

    assert (await installed.factors.revoke(info.id, by=OPERATOR)).standing == "revoked"


async def test_an_approver_ends_the_factor_of_somebody_who_lost_it(installed: Installation) -> None:
    _, boss = await installed.enrol_totp(BOSS)
    info, anna = await installed.enrol_totp(ANNA)
    await installed.factors.confirm(info.id, by=await installed.prove(BOSS, boss))

    await installed.factors.revoke(info.id, by=await installed.prove(BOSS, boss))

    with pytest.raises(Denied):
        await installed.prove(ANNA, anna)


async def test_a_throw_away_factor_counts_for_its_own_alone_until_its_time_is_up(installed: Installation) -> None:
    own = installed.factors_with(KEY, throw_aways=True)
    info, secret = await own.throw_away(BOSS, ttl_s=120, by=OPERATOR)
    with pytest.raises(Denied, match="enrolled that counts"):
        await installed.prove(BOSS, secret)
    assert not await own.begun()
    await own.check_totp(BOSS, code_at(secret, installed.clock()))
    installed.clock.pass_s(120)

    with pytest.raises(Denied):
        await own.check_totp(BOSS, code_at(secret, installed.clock()))
    assert [f.standing for f in await installed.factors.of(BOSS)] == ["expired"]
    assert (await installed.factors.revoke(info.id, by=OPERATOR)).standing == "revoked"
    assert not await installed.factors.begun()


async def test_beside_a_throw_away_factor_only_an_approver_is_the_first(installed: Installation) -> None:
    await installed.factors.throw_away(MALLORY, ttl_s=120, by=OPERATOR)
    with pytest.raises(Conflict, match="no approver group"):
        await installed.factors.invite(MALLORY, by=OPERATOR)
    info, _ = await installed.enrol_totp(BOSS)
    assert info.standing == "counts"


async def test_who_was_invited_beside_somebody_does_not_become_the_first_when_they_are_gone(
    installed: Installation,
) -> None:
    first, boss = await installed.enrol_totp(BOSS)
    invite = await installed.factors.invite(MALLORY, by=OPERATOR)
    offer = await installed.factors.begin_totp(invite.token)
    await installed.factors.revoke(first.id, by=await installed.prove(BOSS, boss))

    with pytest.raises(Conflict, match="no approver group"):
        await installed.factors.finish_totp(invite.token, code_at(offer.secret, installed.clock()))
    assert not await installed.factors.begun()


async def test_no_throw_away_factor_is_made_where_somebody_is_enrolled(installed: Installation) -> None:
    await installed.enrol_totp(BOSS)

    with pytest.raises(Conflict):
        await installed.factors.throw_away(MALLORY, ttl_s=120, by=OPERATOR)


async def test_a_factor_moved_to_another_person_in_the_database_counts_for_nobody(installed: Installation) -> None:
    anna = await installed.confirmed_totp(ANNA)
    await installed.pool.execute("UPDATE factor SET person = $1 WHERE person = $2", MALLORY, ANNA)

    with pytest.raises(Denied, match="that counts"):
        await installed.prove(MALLORY, anna)


async def test_a_factor_confirmed_in_the_database_alone_counts_for_nobody(installed: Installation) -> None:
    await installed.enrol_totp(BOSS)
    _, mallory = await installed.enrol_totp(MALLORY)
    await installed.pool.execute(
        "UPDATE factor SET confirmed_at = now(), confirmed_by = $1 WHERE person = $2", BOSS, MALLORY
    )

    with pytest.raises(Denied, match="that counts"):
        await installed.prove(MALLORY, mallory)


async def test_another_root_key_opens_no_factor(installed: Installation) -> None:
    _, secret = await installed.enrol_totp(BOSS)

    with pytest.raises(Denied, match="that counts"):
        await installed.factors_with(bytes(32)).check_totp(BOSS, code_at(secret, installed.clock()))


async def test_no_table_holds_a_secret_that_can_be_read(installed: Installation) -> None:
    invite = await installed.factors.invite(BOSS, by=OPERATOR)
    offer = await installed.factors.begin_totp(invite.token)
    kept = await installed.pool.fetchval("SELECT string_agg(p::text, '') FROM page_challenge p")
    await installed.factors.finish_totp(invite.token, code_at(offer.secret, installed.clock()))

    kept += await installed.pool.fetchval("SELECT string_agg(f::text, '') FROM factor f")
    kept += await installed.pool.fetchval("SELECT string_agg(r.body, '') FROM audit_record r")

    for secret in (offer.secret, offer.secret.encode().hex(), invite.token, invite.token.encode().hex()):
        assert secret not in kept
    assert offer.secret not in repr(offer)
    assert invite.token not in repr(invite)


async def test_each_step_stands_on_the_audit(installed: Installation) -> None:
    _, boss = await installed.enrol_totp(BOSS)
    info, _ = await installed.enrol_totp(ANNA)
    await installed.factors.confirm(info.id, by=await installed.prove(BOSS, boss))
    await installed.factors.revoke(info.id, by=await installed.prove(BOSS, boss))

    begun = await installed.recorded("mfa enroll")
    assert [(r.kind, r.requester, r.details["person"], r.details["first"]) for r in begun] == [
        ("operator", OPERATOR, ANNA, False),
        ("operator", OPERATOR, BOSS, True),
    ]
    for action in ("mfa confirm", "mfa revoke"):
        [record] = await installed.recorded(action)
        assert (record.kind, record.requester, record.details["factor"]) == ("approval", BOSS, info.id)


async def test_nobody_has_more_than_ten_factors(installed: Installation) -> None:
    for _ in range(10):
        await installed.enrol_totp(BOSS)

    with pytest.raises(Conflict, match="10 factors"):
        await installed.factors.invite(BOSS, by=OPERATOR)
