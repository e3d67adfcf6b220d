"""The pages over a real desk and real factors, with a browser that is nothing but a jar of cookies; no HTTP."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode

import orjson
import pytest

from approvals.desk import Desk
from approvals.factors import FactorInfo, Factors, RelyingParty
from approvals.factors.totp import code_at
from approvals.model import Approval
from approvals.page.logins import Logins
from approvals.page.messages import PageAnswer, PageRequest
from approvals.page.pages import Pages
from approvals.page.visits import Office, OidcLogin
from approvals.people import People
from body_broker.audit.auditor import Auditor
from body_broker.storage.postgres import Pool
from policies.engine import Policy
from tests.approvals.factors.authenticator import Authenticator
from tests.approvals.scene import subject
from tests.mcp_servers.hub.clocks import Clock, wall_clock

BASE = "http://localhost:8080"
KEY = bytes(range(32))


@dataclass
class Browser:
    """One person's browser at the pages: it keeps cookies, reads the form token, and sends forms as a page would."""

    pages: Pages
    base: str = BASE
    origin: str | None = BASE
    cookies: dict[str, str] = field(default_factory=dict[str, str])
    token: str = ""

    async def get(self, path: str, **headers: str) -> PageAnswer:
        where, _, query = path.partition("?")
        pairs = dict(parse_qsl(query, keep_blank_values=True))
        return await self._send("GET", where, query=pairs, headers=headers)

    async def form(self, path: str, **fields: str) -> PageAnswer:
        """What a form without a script sends."""
        body = urlencode({"csrf": self.token} | fields).encode()
        return await self._send("POST", path, body=body, kind="application/x-www-form-urlencoded")

    async def script(self, path: str, **fields: Any) -> PageAnswer:
        """What our script sends."""
        return await self._send("POST", path, body=orjson.dumps({"csrf": self.token} | fields), kind="application/json")

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes = b"",
        kind: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> PageAnswer:
        sent = {"content-type": kind} | dict(headers or {})
        if self.origin is not None and method == "POST":
            sent["origin"] = self.origin
        request = PageRequest(
            method=method,
            path=path,
            base=self.base,
            query=query or {},
            cookies=dict(self.cookies),
            headers=sent,
            body=body,
        )
        answer = await self.pages.answer(request)
        for name, value in answer.headers:
            if name == "set-cookie":
                key, _, rest = value.partition("=")
                kept = rest.partition(";")[0]
                self.cookies.pop(key, None)
                if kept:
                    self.cookies[key] = kept
        if found := re.search(rb'data-token="([0-9a-f]*)"', answer.body):
            self.token = found[1].decode()
        return answer

    def copy(self) -> Browser:
        return Browser(self.pages, self.base, self.origin, dict(self.cookies), self.token)


def json_of(answer: PageAnswer) -> dict[str, Any]:
    return orjson.loads(answer.body)


def header(answer: PageAnswer, name: str) -> str:
    return dict(answer.headers)[name]


@dataclass
class Studio:
    """A hub's pages, and what a test does there again and again."""

    pool: Pool
    desk: Desk
    factors: Factors
    policy: Policy
    people: People
    auditor: Auditor
    clock: Clock
    secrets: dict[str, str] = field(default_factory=dict[str, str])

    def pages(self, *, code_login: bool = True, oidc: OidcLogin | None = None) -> Pages:
        office = Office(
            desk=self.desk,
            factors=self.factors,
            people=self.people,
            logins=Logins(self.pool, KEY),
            auditor=self.auditor,
            pool=self.pool,
            code_login=code_login,
            oidc=oidc,
        )
        return Pages(office)

    def browser(self, **given: Any) -> Browser:
        return Browser(self.pages(**given))

    async def ask(self, tool: str = "ingest", chain: tuple[str, ...] = ("tier:bronze",), **values: Any) -> Approval:
        return (await self.desk.ask(subject(self.policy, tool, chain, **values))).approval

    async def enrol(self, name: str) -> str:
        """A TOTP factor that counts; its secret."""
        person = f"person:{name}"
        invite = await self.factors.invite(person, by="operator:tester")
        offer = await self.factors.begin_totp(invite.token)
        info = await self.factors.finish_totp(invite.token, code_at(offer.secret, self.clock()))
        self.clock.pass_s(30)
        self.secrets[name] = offer.secret
        if info.standing == "waiting":
            proof = await self.factors.check_totp("person:anna", self.code("anna"))
            self.clock.pass_s(30)
            await self.factors.confirm(info.id, by=proof)
        return offer.secret

    async def enrol_device(self, name: str) -> tuple[FactorInfo, Authenticator]:
        """A passkey in software; it counts if it is the first."""
        device = Authenticator()
        invite = await self.factors.invite(f"person:{name}", by="operator:tester")
        options = await self.factors.begin_passkey(invite.token)
        return await self.factors.finish_passkey(invite.token, device.create(options)), device

    def code(self, name: str) -> str:
        """The code of now; it counts once."""
        return code_at(self.secrets[name], self.clock())

    async def logged_in(self, name: str, **given: Any) -> Browser:
        """A browser of somebody who has come in by a code; the next code is due."""
        if name not in self.secrets:
            await self.enrol(name)
        browser = self.browser(**given)
        await browser.get("/login")
        answer = await browser.form("/login/totp", name=name, code=self.code(name))
        assert answer.status == 303, answer.body
        self.clock.pass_s(30)
        await browser.get("/approvals")
        return browser

    async def said(self, approval: Approval) -> str:
        """How it stands now."""
        return (await self.desk.get(approval.id)).standing


@pytest.fixture
def studio(pool: Pool, make_desk: Callable[..., Desk], policy: Policy, people: People, auditor: Auditor) -> Studio:
    clock = wall_clock()
    factors = Factors(pool=pool, auditor=auditor, key=KEY, people=people, rp=lambda: RelyingParty.at(BASE), clock=clock)
    return Studio(pool, make_desk(), factors, policy, people, auditor, clock)
