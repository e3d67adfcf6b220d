"""Owns what tests of deciding share: who approves, people with factors that count, and their next codes."""

from __future__ import annotations

import time
from pathlib import Path

from approvals.factors.totp import STEP_S, code_at
from mcp_servers.hub.runtime import Runtime
from tests.mcp_servers.hub.conftest import SECRET

APPROVERS = """
[people.boss]
name = "The boss"
groups = ["sre"]
[people.sam]
groups = ["security"]
[people.anna]
"""


def environment_of(database_url: str, redis_url: str, folder: Path) -> dict[str, str]:
    """What a command needs to stand on the test's own stores, with a file of approvers."""
    file = folder / "approvers.toml"
    file.write_text(APPROVERS, "utf-8")
    return {
        "BODY_BROKER_DATABASE_URL": database_url,
        "BODY_BROKER_REDIS_URL": redis_url,
        "BODY_BROKER_SECRET_KEY": SECRET,
        "BODY_BROKER_DATA_DIR": str(folder / "data"),
        "BODY_BROKER_EMBEDDINGS": "off",
        "BODY_BROKER_APPROVERS": str(file),
    }


def next_code(secret: str, later: int = 1) -> str:
    """The code of so many steps later; the hub's own clock is the machine's.

    That of the next step is good already, and for a minute more, in which a command comes to read it on a slow machine.
    """
    return code_at(secret, _now() + later * STEP_S)


class Enrolment:
    """People of a hub who enrol apps and vouch for each other; every code of theirs is unused afterwards."""

    def __init__(self, runtime: Runtime) -> None:
        self._factors, self._pool = runtime.approvals.factors, runtime.stores.pool
        self._secrets: dict[str, str] = {}

    async def enrol(self, person: str, *, confirmed: bool = True) -> tuple[str, str]:
        """Secret and id of a new app; the first one's person vouches for all later ones."""
        invite = await self._factors.invite(person, by="operator:tester")
        offer = await self._factors.begin_totp(invite.token)
        info = await self._factors.finish_totp(invite.token, next_code(offer.secret))
        self._secrets.setdefault(person, offer.secret)
        if info.standing == "waiting" and confirmed:
            voucher, secret = next(iter(self._secrets.items()))
            await self._factors.confirm(info.id, by=await self._factors.check_totp(voucher, next_code(secret)))
        # As if it had been long ago: the tests do not wait half a minute for the next code.
        await self._pool.execute("UPDATE factor SET last_step = 0")
        return offer.secret, info.id


def _now() -> float:
    return time.time()  # noqa: TID251 - commands and hubs read the same clock
