"""Whoever follows jobs hears of their moves again once a server that stood still goes on."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

from body_broker.errors import Unavailable
from body_broker.storage.postgres import Pool
from body_broker.work import moves
from body_broker.work.moves import Moves
from tests.waiting import wait_until

_LISTENS = (
    "SELECT pid FROM pg_stat_activity WHERE application_name = 'body-broker moves' AND datname = current_database()"
)


async def test_a_server_that_stood_still_is_listened_to_again(
    pool: Pool, database_url: str, monkeypatch: pytest.MonkeyPatch, logs: list[dict[str, Any]]
) -> None:
    monkeypatch.setattr(moves, "_ALIVE_EVERY_S", 0.05)
    monkeypatch.setattr(moves, "_TIMEOUT_S", 0.5)
    heard = Moves(database_url)
    try:
        async with heard.following(["job_x"]):
            pid: int = await pool.fetchval(_LISTENS)
        os.kill(pid, signal.SIGSTOP)
        try:
            await wait_until(lambda: [each for each in logs if each["event"] == "moves_not_listening"], "it is noticed")
        finally:
            os.kill(pid, signal.SIGCONT)

        async def listens() -> bool:
            try:
                async with asyncio.timeout(5), heard.following(["job_x"]):
                    return True
            except Unavailable:
                return False

        await wait_until(listens, "it is listened to again", timeout_s=20)
    finally:
        await heard.close()
