"""An AWS that is slow or never answers: a call ends, its page is cut, and neither the other calls nor the process wait for it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from body_broker.errors import Draining, Unavailable
from body_broker.threads import Threads
from mcp_servers.admin import catalogue
from mcp_servers.admin.asking import ask, identify
from mcp_servers.admin.query import START, Deadline, Position, Query, Who
from mcp_servers.admin.reading import Reader
from mcp_servers.admin.roles import Grant
from tests.mcp_servers.hub.conftest import OpenHub
from tests.tools.project import ROOT
from tests.waiting import wait_until

GRANT = Grant("person:anna", "arn:aws:iam::123456789012:role/reader")
CLUSTERS = catalogue.row_of("eks", "clusters")
PLAN = CLUSTERS.plan(None, date(2026, 11, 21))


class Slow:
    """EKS with ten clusters, where each call takes a second of this clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls = 0

    def list_clusters(self, **_asked: object) -> Any:
        self._pass()
        return {"clusters": [f"c{n}" for n in range(10)]}

    def describe_cluster(self, name: str) -> Any:
        self._pass()
        return {"cluster": {"name": name}}

    def reader(self, *, seconds: float) -> Reader:
        return Reader(self, CLUSTERS, GRANT, Deadline(self.now + seconds, clock=lambda: self.now))

    def _pass(self) -> None:
        self.now += 1
        self.calls += 1


def test_a_page_ends_where_time_ends_and_the_next_one_goes_on_there() -> None:
    slow = Slow()

    first = slow.reader(seconds=4).read(PLAN, start=START, limit=10)
    assert slow.calls == 4
    assert first.after is not None
    assert first.after == Position(None, 3)
    rest = slow.reader(seconds=60).read(PLAN, start=first.after, limit=10)

    assert [item["id"] for item in first.items + rest.items] == [f"c{n}" for n in range(10)]
    assert first.names == ("c0", "c1", "c2")
    assert rest.after is None


def test_without_time_for_one_thing_aws_is_said_to_be_slow() -> None:
    slow = Slow()
    for seconds, calls in ((0, 0), (1, 1)):
        slow.calls = 0
        with pytest.raises(Unavailable, match="too slowly") as raised:
            slow.reader(seconds=seconds).read(PLAN, start=START, limit=10)
        assert slow.calls == calls
        assert raised.value.details["component"] == "aws"
    with pytest.raises(Unavailable, match="too slowly"):
        slow.reader(seconds=0).read(CLUSTERS.plan("c1", date(2026, 11, 21)), start=START, limit=10)


def test_a_call_whose_time_went_by_before_it_began_assumes_no_role() -> None:
    asked: list[Grant] = []

    class Cloud:
        """AWS as far as roles are assumed."""

        def region(self, *_asked: object, **_more: object) -> str:
            return "eu-central-1"

        def session(self, grant: Grant, _who: Who) -> None:
            asked.append(grant)

    cloud: Any = Cloud()
    who = Who(("person:anna",), "query_aws_resource")
    query = Query(row=CLUSTERS, plan=PLAN, region=None, limit=1)

    for call in (lambda: ask(cloud, query, GRANT, who, Deadline(0)), lambda: identify(cloud, GRANT, who, Deadline(0))):
        with pytest.raises(Unavailable, match="too slowly"):
            call()
    assert asked == []


async def test_a_call_that_was_given_up_keeps_its_place_until_its_thread_ends() -> None:
    threads = Threads(1)
    begun, answered = threading.Event(), threading.Event()

    def hang() -> str:
        begun.set()
        answered.wait(30)
        return "late"

    first = asyncio.create_task(threads.run(hang))
    await wait_until(begun.is_set, "the thread has begun")
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    second = asyncio.create_task(threads.run(lambda: "mine"))
    await asyncio.wait([second], timeout=0.05)
    assert not second.done()

    answered.set()
    assert await second == "mine"
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)


async def test_once_closed_nobody_is_asked_for_those_who_wait() -> None:
    threads = Threads(1)
    answered = threading.Event()
    asked: list[str] = []
    first = asyncio.create_task(threads.run(answered.wait, 30))
    second = asyncio.create_task(threads.run(asked.append, "x"))
    await asyncio.sleep(0)

    threads.close()
    answered.set()

    assert await first is True
    with pytest.raises(Draining):
        await second
    assert asked == []


HANGS = """
import asyncio, threading
from body_broker.threads import Threads

async def main():
    threads = Threads(2)
    call = asyncio.create_task(threads.run(threading.Event().wait))
    await asyncio.wait([call], timeout=0.1)
    call.cancel()
    threads.close()

asyncio.run(main())
print("ended")
"""


def test_a_process_ends_though_aws_never_answers() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGS], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )  # it would wait for ever

    assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")


async def test_a_hub_that_has_ended_asks_aws_nothing(open_hub: OpenHub, redis: object, roles_file: Path) -> None:
    _ = redis  # flushed before the test
    async with open_hub(aws_roles=roles_file) as hub:
        admin = hub.runtime.services.admin
    call: Any = SimpleNamespace(
        caller=SimpleNamespace(chain=("tier:bronze",), roles={}), operation=SimpleNamespace(name="get_aws_identity")
    )

    with pytest.raises(Draining):
        await admin.identity(call)
