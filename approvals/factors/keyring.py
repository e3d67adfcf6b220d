"""Owns `Factors`, the one door to second factors: check one, enrol one, let one count, end one; each of it on the audit."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from approvals.factors import totp
from approvals.factors.guard import Guard
from approvals.factors.model import (
    LABEL_MAX,
    Credential,
    FactorInfo,
    Invitation,
    Invite,
    Proof,
    RelyingParty,
    TotpOffer,
)
from approvals.factors.store import FactorStore, New
from approvals.model import Factor
from approvals.people import People
from body_broker.audit.auditor import Auditor
from body_broker.audit.record import Record
from body_broker.calls import Json
from body_broker.errors import BadInput, Conflict, Denied, Detail
from body_broker.storage.postgres import Pool
from body_broker.text import clean

if TYPE_CHECKING:
    from approvals.factors.passkeys import Passkeys

_OF_ONE_PERSON_MAX = 10
_CHALLENGE_BYTES = 32


class Factors:
    """Everybody's second factors.

    Args:
        pool: The database.
        auditor: Enrolments, confirmations, ends and wrong answers are recorded there.
        key: 32 bytes under which secrets are sealed.
        people: Who is an approver: only they confirm other people's factors.
        rp: Where passkeys belong now; asked for each passkey, because a port may not be known before.
        clock: Unix seconds.
        throw_aways: Whether throw-away factors prove anything here; only the demo's own do.
    """

    def __init__(
        self,
        *,
        pool: Pool,
        auditor: Auditor,
        key: bytes,
        people: People,
        rp: Callable[[], RelyingParty],
        clock: Callable[[], float] = time.time,  # noqa: TID251 - the parameter's default
        throw_aways: bool = False,
    ) -> None:
        self._auditor, self._people, self._rp, self._clock = auditor, people, rp, clock
        self._store = FactorStore(pool, key, clock, throw_aways=throw_aways)
        self._guard = Guard(pool, clock)

    async def of(self, person: str) -> list[FactorInfo]:
        """The person's factors, those that wait or ended too."""
        return await self._store.infos(person)

    async def everybody(self) -> list[FactorInfo]:
        """All factors there are."""
        return await self._store.infos()

    async def begun(self) -> bool:
        """Whether any lasting factor counts; while none does, the next one enrolled needs nobody's word."""
        return await self._store.anybody()

    # ---- Checking -------------------------------------------------------------------------------------------------------

    async def check_totp(self, person: str, code: str) -> Proof:
        """That the person holds their TOTP secret now; each code counts once.

        Raises:
            BadInput: It is no code at all.
            Denied: The person has none that counts, it is wrong, or was used before.
            RateLimited: Too many wrong ones; nothing is looked at for a while.
        """
        code = totp.parse_code(code)
        held = await self._store.held(person, "totp")
        if not held:
            # Not on the audit: a page may ask this for any name, as often as it likes.
            raise Denied(f"{person} has no authenticator app enrolled that counts.", next_step=_ENROL)
        await self._guard.attempt(person)
        now = self._clock()
        fitting = [(each, step) for each in held if (step := totp.step_of(each.secret.decode(), code, now)) is not None]
        if not fitting:
            raise await self._refusal(person, "wrong code", "That code is wrong.")
        for factor, step in fitting:
            if await self._store.use_step(factor.id, step):
                await self._guard.clear(person)
                return Proof(person=person, factor="totp", factor_id=factor.id, evidence={"factor": factor.id})
        raise await self._refusal(person, "used code", "That code was used already; each counts once.")

    async def passkey_options(self, person: str | None, challenge: bytes) -> dict[str, Json]:
        """What the page gives to `navigator.credentials.get`, as JSON.

        Args:
            person: Whose passkeys may answer; None for a login, where the passkey says who it is.
            challenge: What is signed: `vote_challenge`, or 32 random bytes kept for the login.

        Raises:
            NotConfigured: Browsers use no passkeys where the pages are.
            Denied: The person has no passkey here that counts.
        """
        rp = self._rp()
        passkeys = await _passkeys(rp)
        allowed: list[bytes] | None = None
        if person is not None:
            held = [Credential.unpack(each.secret) for each in await self._store.held(person, "passkey")]
            allowed = [each.id for each in held if each.rp == rp.id]
            if not allowed:
                raise Denied(f"{person} has no passkey enrolled that counts here.", next_step=_ENROL)
        return passkeys.request_options(allowed, challenge)

    async def check_passkey(self, person: str | None, challenge: bytes, answer: Mapping[str, Json]) -> Proof:
        """That this challenge was signed by a passkey with its person verified; the proof says whose it is.

        Args:
            person: Whose it must be; None takes whose it is.
            challenge: As it was given out.
            answer: The browser's credential as JSON.

        Raises:
            BadInput: It is no answer of a browser.
            NotConfigured: Browsers use no passkeys where the pages are.
            Denied: It is not enrolled, somebody else's, does not fit, or its counter did not grow.
        """
        rp = self._rp()
        passkeys = await _passkeys(rp)
        held = await self._store.by_credential(passkeys.credential_id(answer))
        if held is None or (person is not None and held.person != person):
            raise await self._refusal(
                person, "unknown passkey", "This passkey is not enrolled here for that, or does not count."
            )
        credential = Credential.unpack(held.secret)
        if credential.rp != rp.id:
            raise await self._refusal(
                held.person, "other address", "This passkey was made for another address of the hub."
            )
        try:
            signed = passkeys.asserted(challenge, credential, answer)
        except Denied as error:
            raise await self._refusal(held.person, "wrong signature", error.message) from error
        if not await self._store.count_signature(held.id, signed.sign_count):
            raise await self._refusal(
                held.person,
                "counter",
                "This passkey's counter did not grow: it may have been copied, so it does not count.",
            )
        evidence = {"factor": held.id, **signed.evidence}
        return Proof(person=held.person, factor="passkey", factor_id=held.id, evidence=evidence)

    # ---- Enrolling ------------------------------------------------------------------------------------------------------

    async def invite(self, person: str, *, by: str) -> Invite:
        """Leave to enrol one factor within ten minutes; what comes of it counts only once confirmed, unless it is the first.

        Args:
            person: Whose it will be.
            by: Who asks, `operator:ACCOUNT` or the person as the page knows them.

        Raises:
            Conflict: They have too many, or it would be the first and they are no approver, who could confirm the others.
        """
        first = not await self.begun()
        if first and not self._people.groups_of(person):
            raise _no_approver(person)
        kept = [f for f in await self.of(person) if f.standing in {"counts", "waiting"}]
        if len(kept) >= _OF_ONE_PERSON_MAX:
            raise Conflict(
                f"{person} has {len(kept)} factors.",
                next_step="Revoke one: body-broker mfa revoke ID --as person:NAME.",
            )
        await self._record("mfa enroll", by, {"person": person, "first": first})
        token, expires_at = await self._store.invite(person, first=first)
        return Invite(token=token, person=person, first=first, expires_at=expires_at)

    async def invited(self, token: str) -> Invitation:
        """What an invite's token stands for.

        Raises:
            NotFound: It was used, is too old, or never was.
        """
        return (await self._store.invitation(token))[0]

    async def begin_totp(self, token: str) -> TotpOffer:
        """A new secret for the invited person; the same one when asked again.

        Raises:
            NotFound: The token does not hold.
        """
        invitation, body = await self._store.invitation(token)
        secret = body.get("totp")
        if not isinstance(secret, str):
            secret = totp.new_secret()
            await self._store.begin(token, {**body, "totp": secret})
        return TotpOffer(uri=totp.uri_of(secret, invitation.person), secret=secret)

    async def finish_totp(self, token: str, code: str, *, label: str = "authenticator app") -> FactorInfo:
        """The factor, once a first code shows that the app has the secret; that code is used up by it.

        Raises:
            NotFound: The token does not hold.
            BadInput: The code is wrong; the token holds still.
            Conflict: Another became the first meanwhile.
        """
        invitation, body = await self._store.invitation(token)
        secret = body.get("totp")
        if not isinstance(secret, str):
            raise BadInput("No secret was shown for this enrolment yet.", next_step="Begin it first.")
        step = totp.step_of(secret, totp.parse_code(code), self._clock())
        if step is None:
            raise BadInput(
                "That code does not fit the secret shown here.",
                next_step="Check that the clock of your phone is right, and type the code it shows now.",
            )
        new = _new("totp", invitation.person, label, secret.encode(), last_step=step)
        return await self._keep(token, new, invitation)

    async def begin_passkey(self, token: str) -> dict[str, Json]:
        """What the page gives to `navigator.credentials.create`, as JSON.

        Raises:
            NotFound: The token does not hold.
            NotConfigured: Browsers make no passkeys where the pages are.
        """
        rp = self._rp()
        passkeys = await _passkeys(rp)
        invitation, body = await self._store.invitation(token)
        challenge = secrets.token_bytes(_CHALLENGE_BYTES)
        held = await self._store.held(invitation.person, "passkey")
        existing = [Credential.unpack(each.secret).id for each in held]
        await self._store.begin(token, {**body, "challenge": challenge.hex()})
        return passkeys.creation_options(invitation.person, existing, challenge)

    async def finish_passkey(self, token: str, answer: Mapping[str, Json], *, label: str = "passkey") -> FactorInfo:
        """The factor, once the browser's answer fits.

        Raises:
            NotFound: The token does not hold.
            BadInput: The answer does not fit.
            Conflict: It is enrolled already, or another became the first meanwhile.
        """
        rp = self._rp()
        passkeys = await _passkeys(rp)
        invitation, body = await self._store.invitation(token)
        challenge = body.get("challenge")
        if not isinstance(challenge, str):
            raise BadInput("This enrolment was not begun.", next_step="Begin it first.")
        credential, count = passkeys.created(bytes.fromhex(challenge), answer)
        new = _new("passkey", invitation.person, label, credential.pack(), credential=credential.id, sign_count=count)
        return await self._keep(token, new, invitation)

    async def throw_away(self, person: str, *, ttl_s: float, by: str) -> tuple[FactorInfo, str]:
        """A TOTP factor that ends by itself, and its secret; only where nobody is enrolled, and nothing but `throw_aways` takes it.

        Raises:
            Conflict: Somebody is enrolled here.
        """
        secret = totp.new_secret()
        new = _new("totp", person, "throw-away", secret.encode(), expires_at=int(self._clock() + ttl_s))
        await self._record("mfa throw-away", by, {"person": person, "factor": new.id, "seconds": ttl_s})
        await self._store.add(new, confirmed_by=by)
        return await self._store.info(new.id), secret

    # ---- Letting count, ending ------------------------------------------------------------------------------------------

    async def confirm(self, factor: str, *, by: Proof) -> FactorInfo:
        """Let a waiting factor count, on the word of an approver or of its own person, given with a factor that counts.

        Raises:
            NotFound: There is none with this id.
            Conflict: It does not wait.
            Denied: `by` is neither.
        """
        info = await self._store.info(factor)
        self._may_decide(by, info)
        if info.standing != "waiting":
            raise Conflict(f"This factor is not waiting: it {_STANDS[info.standing]}.")
        await self._record("mfa confirm", by.person, {"person": info.person, "factor": factor, "with": by.factor_id})
        await self._store.confirm(factor, by.person)
        return await self._store.info(factor)

    async def revoke(self, factor: str, *, by: Proof | str) -> FactorInfo:
        """End a factor. One that counts needs an approver's or its own person's factor; one that waits an operator's word.

        Args:
            factor: Its id.
            by: A proof, or for what counts nowhere `operator:ACCOUNT`.

        Raises:
            NotFound: There is none with this id.
            Denied: `by` may not.
        """
        info = await self._store.info(factor)
        if isinstance(by, Proof):
            self._may_decide(by, info)
        elif info.standing == "counts" and info.expires_at is None:
            raise Denied(
                "This factor counts, so it ends only on the word of somebody enrolled.",
                next_step="Revoke it --as person:NAME: its own person, or an approver, with a factor of theirs.",
            )
        who = by.person if isinstance(by, Proof) else by
        await self._record("mfa revoke", who, {"person": info.person, "factor": factor})
        await self._store.revoke(factor, who)
        return await self._store.info(factor)

    def _may_decide(self, by: Proof, info: FactorInfo) -> None:
        if by.person != info.person and not self._people.groups_of(by.person):
            raise Denied(
                f"{by.person} is no approver, so they decide about their own factors alone.",
                next_step="Ask somebody who stands in a group of approvers.toml and is enrolled.",
            )

    async def _keep(self, token: str, new: New, invitation: Invitation) -> FactorInfo:
        first = invitation.first
        # Somebody was enrolled when this was begun, and is not any more: it was not asked then who this is.
        if first and not invitation.by_approver and not self._people.groups_of(new.person):
            raise _no_approver(new.person)
        await self._record("mfa enrolled", new.person, {"factor": new.id, "kind": new.kind, "first": first})
        await self._store.spend(token)
        await self._store.add(new, confirmed_by=new.person if first else None)
        return await self._store.info(new.id)

    async def _record(self, action: str, by: str, details: Mapping[str, Detail]) -> None:
        kind = "operator" if by.startswith("operator:") else "approval"
        record = Record(kind=kind, action=action, requester=by, verdict="allow", details=details)
        await self._auditor.durable(self._auditor.add(record))

    async def _refusal(self, person: str | None, why: str, message: str) -> Denied:
        if person is not None:  # an unknown passkey at a login is nobody's
            record = Record(
                kind="refusal", action="second factor", requester=person, verdict="deny", details={"why": why}
            )
            await self._auditor.durable(self._auditor.add(record))
        return Denied(message, next_step=_NEXT.get(why, _ENROL))


_ENROL = "Enrol one with `body-broker mfa enroll`, and have an approver confirm it with `body-broker mfa confirm`."
_NEXT = {
    "wrong code": "Type the code your app shows now; the clocks of phone and hub must agree. Five wrong ones lock for 5 minutes.",
    "used code": "Wait for the next code, at most 30 s.",
    "wrong signature": "Reload the page and use a passkey that is enrolled here.",
}
_STANDS = {"counts": "counts already", "revoked": "was revoked", "expired": "has ended", "waiting": "waits"}


def _no_approver(person: str) -> Conflict:
    return Conflict(
        f"{person} is in no approver group, and the first factor must be an approver's: it confirms all others.",
        next_step="Name them with a group in approvers.toml (docs/approvals.md), or enrol an approver first.",
    )


def _new(kind: Factor, person: str, label: str, secret: bytes, **more: Any) -> New:
    shown = " ".join(clean(label, limit=LABEL_MAX).split()) or kind
    return New(id=f"fac_{secrets.token_hex(6)}", person=person, kind=kind, label=shown, secret=secret, **more)


async def _passkeys(rp: RelyingParty) -> Passkeys:
    # fido2 reads a list of domains when it is imported, so that is done in a thread.
    return (await asyncio.to_thread(_passkeys_class))(rp)


def _passkeys_class() -> type[Passkeys]:
    from approvals.factors.passkeys import Passkeys  # noqa: PLC0415 - fido2: 0.2 s, only for those who use passkeys

    return Passkeys
