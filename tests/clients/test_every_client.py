"""Every client does the main jobs against a served hub, over HTTP and stdio, in both revisions; what one cannot do stands in jobs.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients import jobs
from tests.clients.conftest import Met, OpenDoor
from tests.clients.doors import Studio
from tests.clients.drivers import NEW, Kind, driven

pytestmark = pytest.mark.requires("npm")
every = pytest.mark.parametrize("kind", jobs.CLIENTS, ids=str, scope="module")
stdio = [kind for kind in jobs.CLIENTS if (kind.transport, kind.revision) == ("stdio", NEW)]


@every
async def test_a_client_speaks_its_revision_and_is_shown_tools_that_any_model_provider_takes(
    met: Met, kind: Kind
) -> None:
    client, _ = met
    assert await client.negotiated() == kind.revision
    assert {"whoami", "search_lore", "get_job"} <= await client.tools()


@every
async def test_a_client_finds_lore_with_its_citation(met: Met, kind: Kind) -> None:
    _ = kind
    await jobs.finds_lore_with_its_citation(*met)


@every
async def test_a_client_reads_which_rule_refused_it(met: Met, kind: Kind) -> None:
    _ = kind
    await jobs.is_refused_by_a_rule_that_is_named(*met)


@every
async def test_a_client_follows_a_job(met: Met, kind: Kind) -> None:
    _ = kind
    await jobs.follows_a_job(*met)


@every
async def test_a_client_reads_a_resource_and_fills_a_prompt(met: Met, kind: Kind) -> None:
    _ = kind
    await jobs.reads_a_resource_and_fills_a_prompt(*met)


@every
async def test_a_client_completes_a_prompt_s_argument(met: Met, kind: Kind) -> None:
    await jobs.completes_a_prompt_s_argument(*met, kind)


@every
async def test_a_client_hears_of_a_document_that_changed(met: Met, kind: Kind) -> None:
    await jobs.hears_of_a_change(*met, kind)


@every
async def test_a_client_hears_the_progress_of_its_call_and_its_cancelled_call_ends(
    open_door: OpenDoor, kind: Kind, tmp_path: Path
) -> None:
    async with open_door() as door:
        await jobs.hears_progress_and_cancels(lambda: driven(kind, door, tmp_path), door, kind)


@pytest.mark.parametrize("kind", stdio, ids=str, scope="module")
async def test_over_stdio_a_token_does_as_well_as_a_name(studio: Studio, kind: Kind, tmp_path: Path) -> None:
    async with studio.door(by_token=True) as door, driven(kind, door, tmp_path) as client:
        said = await client.call("whoami", {})
        assert (said.data["chain"], said.data["roles"]) == (["person:anna"], {"person:anna": ["engineer"]})
        assert said.data["expires_at"] is not None
