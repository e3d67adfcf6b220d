"""Every client over HTTP does its main jobs through a balancer that gives each request to the next of two hubs."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from mcp_servers.hub.rooms import ROOMS
from mcp_servers.hub.worker import working
from tests.clients import jobs
from tests.clients.doors import ANNA, ROLE, Door
from tests.clients.drivers import Kind, driven
from tests.clients.rows import ROOM
from tests.two_hubs.conftest import OpenPair, Pair

pytestmark = [
    pytest.mark.requires("npm"),
    pytest.mark.parametrize("kind", [kind for kind in jobs.CLIENTS if kind.transport == "http"], ids=str),
]


@asynccontextmanager
async def between(open_pair: OpenPair) -> AsyncGenerator[tuple[Pair, Door]]:
    """Two hubs, a worker beside one of them, and the way in through the balancer; both hubs must have been asked."""
    async with open_pair(rooms=(*ROOMS, ROOM)) as pair, working(pair.one.runtime):
        token = await pair.one.token(ANNA, ROLE)
        yield pair, Door(runtime=pair.one.runtime, url=pair.balancer.url, token=token)
        assert all(pair.balancer.served[hub.url] for hub in (pair.one, pair.other))


async def test_each_request_may_go_to_another_hub(open_pair: OpenPair, kind: Kind, tmp_path: Path) -> None:
    async with between(open_pair) as (_, door), driven(kind, door, tmp_path) as client:
        await jobs.finds_lore_with_its_citation(client, door)
        await jobs.is_refused_by_a_rule_that_is_named(client, door)
        await jobs.follows_a_job(client, door)
        await jobs.reads_a_resource_and_fills_a_prompt(client, door)
        await jobs.completes_a_prompt_s_argument(client, door, kind)


async def test_progress_is_heard_and_a_cancelled_call_ends_in_the_hub_that_runs_it(
    open_pair: OpenPair, kind: Kind, tmp_path: Path
) -> None:
    async with between(open_pair) as (_, door):
        await jobs.hears_progress_and_cancels(lambda: driven(kind, door, tmp_path), door, kind)


async def test_a_listener_on_one_hub_hears_of_a_change_that_the_other_made(
    open_pair: OpenPair, kind: Kind, tmp_path: Path
) -> None:
    async with between(open_pair) as (pair, door):
        async with driven(kind, replace(door, url=pair.other.url), tmp_path) as client:
            await jobs.hears_of_a_change(client, door, kind)
        async with driven(kind, door, tmp_path) as client:
            await jobs.hears_of_a_change(client, door, kind)
            await client.call("whoami", {})  # one request more, so that listening now asks the other hub
            await jobs.hears_of_a_change(client, door, kind)
