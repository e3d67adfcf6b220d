"""Passkeys: the person verified, this origin, this challenge, a counter that grows; and a signature that a later reader can check."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

import pytest
from fido2 import cbor
from fido2.cose import CoseKey
from fido2.utils import websafe_decode

from approvals.factors import RelyingParty, vote_challenge
from body_broker.errors import BadInput, Conflict, Denied, NotConfigured
from tests.approvals.factors.authenticator import PRESENT, VERIFIED, Authenticator
from tests.approvals.factors.conftest import ANNA, BOSS, Installation

pytestmark = pytest.mark.anyio
CHALLENGE = vote_challenge("apr_1", "d" * 64, "approve")
PLACES = {
    "http://localhost:8080": ("localhost", "http://localhost:8080"),
    "https://Hub.Studio.example/": ("hub.studio.example", "https://hub.studio.example"),
    "https://hub.studio.example:443": ("hub.studio.example", "https://hub.studio.example"),
    "https://hub.studio.example:8443/x": ("hub.studio.example", "https://hub.studio.example:8443"),
}


@pytest.mark.parametrize("url", PLACES)
def test_passkeys_belong_to_a_host_name_and_one_origin(url: str) -> None:
    found = RelyingParty.at(url)

    assert (found.id, found.origin) == PLACES[url]


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8080", "http://[::1]:8080", "https://10.0.0.1", "http://hub.studio.example", "nonsense"]
)
def test_where_browsers_make_no_passkeys_is_said(url: str) -> None:
    with pytest.raises(NotConfigured, match="localhost or at an HTTPS name"):
        RelyingParty.at(url)


async def test_a_passkey_signs_one_challenge_and_its_signature_is_kept(installed: Installation) -> None:
    device = Authenticator()
    info = await installed.enrol_passkey(BOSS, device)
    options = await installed.factors.passkey_options(BOSS, CHALLENGE)
    assert options["publicKey"]["userVerification"] == "required"
    assert websafe_decode(options["publicKey"]["challenge"]) == CHALLENGE
    assert [websafe_decode(each["id"]) for each in options["publicKey"]["allowCredentials"]] == [device.id]
    device.count = 1

    proof = await installed.factors.check_passkey(BOSS, CHALLENGE, device.get(CHALLENGE))

    assert (proof.person, proof.factor, proof.factor_id) == (BOSS, "passkey", info.id)
    kept = {name: websafe_decode(text) for name, text in proof.evidence.items() if name != "factor"}
    assert websafe_decode(json.loads(kept["client_data"])["challenge"]) == CHALLENGE
    public: Any = cbor.decode(kept["public_key"])  # pyright: ignore[reportUnknownMemberType]  # fido2's hints
    CoseKey.parse(public).verify(
        kept["authenticator_data"] + hashlib.sha256(kept["client_data"]).digest(), kept["signature"]
    )


async def test_a_login_without_a_name_is_whoever_the_passkey_is_of(installed: Installation) -> None:
    device = Authenticator()
    await installed.enrol_passkey(BOSS, device)
    options = await installed.factors.passkey_options(None, CHALLENGE)
    assert "allowCredentials" not in options["publicKey"]

    assert (await installed.factors.check_passkey(None, CHALLENGE, device.get(CHALLENGE))).person == BOSS


async def test_another_challenge_verdict_or_call_has_another_signature(installed: Installation) -> None:
    device = Authenticator()
    await installed.enrol_passkey(BOSS, device)
    others = {
        vote_challenge("apr_2", "d" * 64, "approve"),
        vote_challenge("apr_1", "e" * 64, "approve"),
        vote_challenge("apr_1", "d" * 64, "deny"),
    }

    assert len(others | {CHALLENGE}) == 4
    for other in others:
        with pytest.raises(Denied, match="does not fit"):
            await installed.factors.check_passkey(BOSS, CHALLENGE, device.get(other))


@pytest.mark.parametrize(
    "lie",
    [
        {"origin": "http://localhost:9999"},
        {"origin": "https://evil.example"},
        {"origin": "http://evil.localhost:8080"},
        {"rp": "evil.example"},
        {"flags": PRESENT},
        {"flags": VERIFIED},
        {"cross_origin": True},
    ],
    ids=str,
)
async def test_what_does_not_fit_is_neither_a_login_nor_an_enrolment(
    installed: Installation, lie: dict[str, Any]
) -> None:
    device = Authenticator()
    await installed.enrol_passkey(BOSS, device)
    for name, value in lie.items():
        setattr(device, name, value)

    with pytest.raises(Denied):
        await installed.factors.check_passkey(BOSS, CHALLENGE, device.get(CHALLENGE))
    with pytest.raises(BadInput):
        await installed.enrol_passkey(BOSS, Authenticator(**lie))


async def test_a_signature_by_another_key_does_not_count(installed: Installation) -> None:
    device = Authenticator()
    await installed.enrol_passkey(BOSS, device)
    device.key = Authenticator().key

    with pytest.raises(Denied):
        await installed.factors.check_passkey(BOSS, CHALLENGE, device.get(CHALLENGE))


async def test_one_person_s_passkey_is_not_another_s(installed: Installation) -> None:
    boss, anna = Authenticator(), Authenticator()
    await installed.enrol_passkey(BOSS, boss)
    info = await installed.enrol_passkey(ANNA, anna)
    proof = await installed.factors.check_passkey(BOSS, CHALLENGE, boss.get(CHALLENGE))
    await installed.factors.confirm(info.id, by=proof)

    with pytest.raises(Denied, match="not enrolled here for that"):
        await installed.factors.check_passkey(ANNA, CHALLENGE, boss.get(CHALLENGE))


async def test_a_passkey_that_waits_or_was_revoked_logs_nobody_in(installed: Installation) -> None:
    boss, anna = Authenticator(), Authenticator()
    first = await installed.enrol_passkey(BOSS, boss)
    await installed.enrol_passkey(ANNA, anna)
    with pytest.raises(Denied):
        await installed.factors.check_passkey(None, CHALLENGE, anna.get(CHALLENGE))
    with pytest.raises(Denied, match="no passkey"):
        await installed.factors.passkey_options(ANNA, CHALLENGE)
    await installed.factors.revoke(
        first.id, by=await installed.factors.check_passkey(BOSS, CHALLENGE, boss.get(CHALLENGE))
    )

    with pytest.raises(Denied):
        await installed.factors.check_passkey(None, CHALLENGE, boss.get(CHALLENGE))


async def test_a_counter_that_does_not_grow_is_a_copy(installed: Installation) -> None:
    device = Authenticator(count=5)
    await installed.enrol_passkey(BOSS, device)
    device.count = 6
    answer = device.get(CHALLENGE)
    await installed.factors.check_passkey(BOSS, CHALLENGE, answer)

    with pytest.raises(Denied, match="copied"):
        await installed.factors.check_passkey(BOSS, CHALLENGE, answer)
    device.count = 0
    with pytest.raises(Denied, match="copied"):
        await installed.factors.check_passkey(BOSS, CHALLENGE, device.get(CHALLENGE))
    [refusal, _] = await installed.recorded("second factor")
    assert refusal.details == {"why": "counter"}


async def test_a_passkey_without_a_counter_may_be_used_again(installed: Installation) -> None:
    device = Authenticator()
    await installed.enrol_passkey(BOSS, device)

    for _ in range(2):
        await installed.factors.check_passkey(BOSS, CHALLENGE, device.get(CHALLENGE))


async def test_a_passkey_of_another_address_does_not_count_here(installed: Installation) -> None:
    device = Authenticator()
    await installed.enrol_passkey(BOSS, device)
    installed.rp = RelyingParty.at("https://hub.studio.example")

    with pytest.raises(Denied, match="no passkey enrolled that counts here"):
        await installed.factors.passkey_options(BOSS, CHALLENGE)
    with pytest.raises(Denied, match="another address"):
        await installed.factors.check_passkey(BOSS, CHALLENGE, device.get(CHALLENGE))


async def test_a_device_is_enrolled_once(installed: Installation) -> None:
    device = Authenticator()
    await installed.enrol_passkey(BOSS, device)

    with pytest.raises(Conflict, match="enrolled already"):
        await installed.enrol_passkey(ANNA, device)


async def test_an_answer_to_an_older_enrolment_enrols_nothing(installed: Installation) -> None:
    invite = await installed.factors.invite(BOSS, by="operator:tester")
    older = await installed.factors.begin_passkey(invite.token)
    await installed.factors.begin_passkey(invite.token)

    with pytest.raises(BadInput, match="no passkey was enrolled"):
        await installed.factors.finish_passkey(invite.token, Authenticator().create(older))


def _broken(answer: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{}, {"id": 3}, {"rawId": None, "response": []}, {"id": "x" * 9, "rawId": "!" * 9}]
    for name in answer["response"]:
        for value in ("", "AAAA", None, 7, {"a": 1}, "9" * 5000):
            bad = copy.deepcopy(answer)
            bad["response"][name] = value
            found.append(bad)
    return found


async def test_an_answer_of_no_browser_is_refused_and_nothing_breaks(installed: Installation) -> None:
    device = Authenticator()
    await installed.enrol_passkey(BOSS, device)
    for answer in _broken(device.get(CHALLENGE)):
        with pytest.raises((BadInput, Denied)):
            await installed.factors.check_passkey(BOSS, CHALLENGE, answer)
    invite = await installed.factors.invite(BOSS, by="operator:tester")
    options = await installed.factors.begin_passkey(invite.token)
    for answer in _broken(Authenticator().create(options)):
        with pytest.raises(BadInput):
            await installed.factors.finish_passkey(invite.token, answer)
