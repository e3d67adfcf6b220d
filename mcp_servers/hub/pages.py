"""Owns the HTTP routes beside /mcp: the probes, which tell only up or down, /metrics, which goes through the gate, people's pages."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import orjson

from approvals.page.logins import Logins
from approvals.page.pages import Pages
from approvals.page.visits import Office
from body_broker.audit.auditor import Auditor
from body_broker.calls import Caller, ResourceText
from body_broker.errors import Unavailable
from body_broker.storage.postgres import LOST as POSTGRES_LOST
from body_broker.storage.postgres import Pool
from body_broker.storage.redis import LOST as REDIS_LOST
from body_broker.storage.redis import Redis
from mcp_servers.hub.front import Page, Route
from mcp_servers.hub.protocol import Protocol
from mcp_servers.hub.requests import Request
from mcp_servers.hub.runtime import Runtime
from mcp_servers.hub.site import Site

_PROBE_S = 2.0


def routes(protocol: Protocol, pool: Pool, redis: Redis, auditor: Auditor) -> dict[str, Route]:
    """Every plain route by path. tests/mcp_servers/hub/test_entries.py walks them and knows each by name."""

    async def healthz(_caller: Caller | None) -> Page:
        return Page(200, b'{"status":"alive"}')

    async def readyz(_caller: Caller | None) -> Page:
        down = [name for name, up in await _stores_up(pool, redis) if not up]
        try:
            auditor.check()
        except Unavailable:
            down.append("audit")
        if protocol.draining:
            down.append("draining")
        return Page(503 if down else 200, orjson.dumps({"ready": not down, "down": down}))

    async def metrics(caller: Caller | None) -> Page:
        answer = await protocol.gate.run(Request(name="hub_metrics", kind="resource", arguments={}, caller=caller))
        assert isinstance(answer.result, ResourceText)
        return Page(200, answer.result.content.encode(), b"text/plain; version=0.0.4; charset=utf-8")

    return {
        "/healthz": Route(healthz, needs_identity=False),
        "/readyz": Route(readyz, needs_identity=False),
        "/metrics": Route(metrics),
    }


def make_site(runtime: Runtime) -> Site:
    """People's pages over an open runtime."""
    approvals, pool, oidc = runtime.approvals, runtime.stores.pool, runtime.identities.oidc
    office = Office(
        desk=approvals.desk,
        factors=approvals.factors,
        people=approvals.people,
        logins=Logins(pool, runtime.secrets.derive("page-logins")),
        auditor=runtime.auditor,
        pool=pool,
        code_login=runtime.settings.embedded,
        oidc=oidc.login if oidc else None,
        oidc_off=oidc is not None and oidc.login is None,
    )
    return Site(Pages(office), runtime.settings, approvals.slack.http if approvals.slack else None)


async def _stores_up(pool: Pool, redis: Redis) -> list[tuple[str, bool]]:
    async def postgres() -> None:
        await pool.fetchval("SELECT 1", timeout=_PROBE_S)

    async def valkey() -> None:
        await redis.execute_command("PING")  # pyright: ignore[reportUnknownMemberType] - redis-py's own types

    return [
        ("postgres", await _answers(postgres, POSTGRES_LOST)),
        ("redis", await _answers(valkey, REDIS_LOST)),
    ]


async def _answers(probe: Callable[[], Awaitable[None]], lost: tuple[type[BaseException], ...]) -> bool:
    try:
        async with asyncio.timeout(_PROBE_S):
            await probe()
    except lost:
        return False
    return True
