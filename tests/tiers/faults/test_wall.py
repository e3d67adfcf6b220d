"""The FaultWall itself: a client that leaves ends its request, and nobody has to read about it."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from tests.counterparts.faultwall.wall import Reply
from tests.tiers.asking import Asking, ask
from tests.tiers.clock import Clock, settle
from tests.waiting import wait_until
from tiers.deadline import Deadline
from tiers.faults import EngineFault


async def test_a_client_that_leaves_while_it_is_written_to_ends_its_request_quietly(
    asking: Asking, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    asking.wall.say("vllm", Reply(pieces=("one", " two", " three"), gap_s=10))
    task = asyncio.create_task(asking.engine("vllm").run(ask(), Deadline.after(1_000)))
    await wait_until(lambda: asking.wall.inside["vllm"], "it is answering")
    await settle()
    clock.move(11)
    for _ in range(2):  # its next piece is due now, and it has not been told yet that nobody is there
        await asyncio.sleep(0)
    cast("asyncio.Transport", asking.wall.seen[0].connection).abort()

    with pytest.raises(EngineFault):
        await task
    await wait_until(lambda: asking.wall.left["vllm"], "it has ended")
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []
