"""An installation's factors on the test's own database, with a clock that only the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from approvals.factors import FactorInfo, Factors, Proof, RelyingParty, TotpOffer
from approvals.factors.totp import code_at
from approvals.people import People, Person
from body_broker.audit.auditor import Auditor, open_auditor
from body_broker.audit.record import Record
from body_broker.audit.trail import tail
from body_broker.storage.postgres import Pool
from tests.approvals.factors.authenticator import Authenticator
from tests.mcp_servers.hub.clocks import Clock, wall_clock

KEY = bytes(range(32))
BOSS, ANNA, MALLORY = "person:boss", "person:anna", "person:mallory"
PEOPLE = People({BOSS: Person(groups=frozenset({"sre"})), ANNA: Person()}, {}, {})


@dataclass
class Installation:
    """Factors, and what a test does with them again and again."""

    pool: Pool
    auditor: Auditor
    clock: Clock = field(default_factory=wall_clock)
    rp: RelyingParty = field(default_factory=lambda: RelyingParty.at("http://localhost:8080"))

    @property
    def factors(self) -> Factors:
        return self.factors_with(KEY)

    def factors_with(self, key: bytes, *, throw_aways: bool = False) -> Factors:
        return Factors(
            pool=self.pool,
            auditor=self.auditor,
            key=key,
            people=PEOPLE,
            rp=lambda: self.rp,
            clock=self.clock,
            throw_aways=throw_aways,
        )

    async def enrol_totp(self, person: str) -> tuple[FactorInfo, str]:
        """A factor and its secret; the code it took is used up, and the next one is due."""
        invite = await self.factors.invite(person, by="operator:tester")
        offer: TotpOffer = await self.factors.begin_totp(invite.token)
        info = await self.factors.finish_totp(invite.token, code_at(offer.secret, self.clock()))
        self.clock.pass_s(30)
        return info, offer.secret

    async def enrol_passkey(self, person: str, device: Authenticator) -> FactorInfo:
        invite = await self.factors.invite(person, by="operator:tester")
        options = await self.factors.begin_passkey(invite.token)
        return await self.factors.finish_passkey(invite.token, device.create(options))

    async def prove(self, person: str, secret: str) -> Proof:
        """A proof by the present code; the next one is due then."""
        found = await self.factors.check_totp(person, code_at(secret, self.clock()))
        self.clock.pass_s(30)
        return found

    async def confirmed_totp(self, person: str) -> str:
        """The secret of a factor that counts, of somebody who is not the first."""
        _, boss = await self.enrol_totp(BOSS)
        info, secret = await self.enrol_totp(person)
        await self.factors.confirm(info.id, by=await self.prove(BOSS, boss))
        return secret

    async def recorded(self, action: str) -> list[Record]:
        return [entry.record for entry in await tail(self.pool, action=action)]


@pytest.fixture
async def installed(pool: Pool) -> AsyncIterator[Installation]:
    async with open_auditor(pool, KEY) as auditor:
        yield Installation(pool, auditor)
