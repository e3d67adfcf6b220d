"""Roles of models.toml: the engines that they mean, and the tools that they work with."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.tiers.routing import ALL, ASKER, Routing, asked, catalogue_of
from tiers.deadline import Deadline
from tiers.model import Asker, InferenceRequest, InferenceResult, Listener, Tier
from tiers.router import Decision, Serves

CHRONICLER = """
[roles.chronicler]
tier = "cloud"
model = "shared"
backups = ["openai", "claude-sonnet-4-6"]
tools = ["storyteller"]

[engines.openai]
model = "shared"
[engines.openai.price]
prompt = "1"
completion = "1"

[engines.silver]
model = "shared"
"""


class Remembers(Serves):
    """A tier that remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[InferenceRequest] = []

    async def execute(
        self,
        request: InferenceRequest,
        decision: Decision,
        *,
        asker: Asker,  # noqa: ARG002 - the protocol's
        deadline: Deadline,  # noqa: ARG002 - as above
        listener: Listener | None,  # noqa: ARG002 - as above
    ) -> InferenceResult:
        self.requests.append(request)
        return InferenceResult(text="aye", tier=decision.tier, engine=None, model=None, source="template")


def test_a_role_takes_engines_of_its_own_tier_alone_and_each_once(tmp_path: Path) -> None:
    router = Routing(catalogue_of(*ALL, toml=CHRONICLER, folder=tmp_path)).router

    decision = router.decide(InferenceRequest(prompt="Aye?", role="chronicler"), remaining_s=15)

    assert asked(decision) == ["openai", "anthropic-large"]


async def test_a_role_brings_its_tools_where_a_request_says_nothing_of_tools(tmp_path: Path) -> None:
    cloud = Remembers()
    catalogue = await asyncio.to_thread(catalogue_of, *ALL, toml=CHRONICLER, folder=tmp_path)
    router = Routing(catalogue, {Tier.CLOUD: cloud}).router

    for tools in (None, (), ("search_lore",)):
        await router.execute(InferenceRequest(prompt="Aye?", role="chronicler", tools=tools), asker=ASKER)
    await router.execute(InferenceRequest(prompt="Aye?", model="cloud"), asker=ASKER)

    assert [request.tools for request in cloud.requests] == [("storyteller",), (), ("search_lore",), None]


def test_an_engine_that_calls_no_tools_is_not_asked_for_a_role_that_has_some(tmp_path: Path) -> None:
    toml = f"{CHRONICLER}\n[engines.anthropic-large]\ncan_tools = false\n"
    router = Routing(catalogue_of(*ALL, toml=toml, folder=tmp_path)).router

    decision = router.decide(InferenceRequest(prompt="Aye?", role="chronicler"), remaining_s=15)

    assert asked(decision) == ["openai"]
