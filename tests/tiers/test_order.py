"""Who of a tier is asked before whom: servers that keep the two queues apart, smaller models, and who rests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.tiers.routing import Routing, asked, catalogue_of, skipped
from tiers.model import InferenceRequest

PROSE = "The door opens."


def test_two_servers_may_keep_the_two_queues_apart(tmp_path: Path) -> None:
    toml = """
    [engines.gold]
    background = 0
    [engines.gold-background]
    tier = "gold"
    dialect = "trtllm"
    url = "http://127.0.0.1:9"
    concurrency = 0
    background = 32
    """
    routing = Routing(catalogue_of("gold", toml=toml, folder=tmp_path))
    soon = InferenceRequest(prompt=PROSE, sla="real-time", max_tokens=8)
    whenever = InferenceRequest(prompt=PROSE, sla="real-time", max_tokens=8, priority="background")

    at_once, later = (routing.router.decide(each, remaining_s=1) for each in (soon, whenever))

    assert asked(at_once) == ["gold"]
    assert skipped(at_once)["gold-background"] == "only_background"
    assert asked(later) == ["gold-background"]
    assert skipped(later)["gold"] == "no_background"


def test_a_smaller_engine_is_asked_after_every_larger_one_wherever_it_stands_in_the_files(tmp_path: Path) -> None:
    toml = """
    [engines.gold-realtime]
    tier = "gold"
    dialect = "trtllm"
    url = "http://127.0.0.1:9"
    background = 0
    [engines.gold-background]
    tier = "gold"
    dialect = "trtllm"
    url = "http://127.0.0.1:9"
    concurrency = 0
    """
    routing = Routing(catalogue_of("gold-small", "silver", toml=toml, folder=tmp_path))
    soon = InferenceRequest(prompt=PROSE, sla="real-time", max_tokens=8)

    assert asked(routing.router.decide(soon, remaining_s=1)) == ["gold-realtime", "gold-small", "silver"]
    whenever = routing.router.decide(replace(soon, priority="background"), remaining_s=1)
    assert asked(whenever) == ["gold-background", "gold-small", "silver"]


def test_a_decision_knows_when_the_first_of_those_that_rest_is_tried_again() -> None:
    routing = Routing(catalogue_of("silver"))
    routing.fails("silver")
    decision = routing.router.decide(InferenceRequest(prompt=PROSE), remaining_s=15)

    rest_s = decision.rest_s(decision.skipped)
    assert rest_s is not None
    assert 0 < rest_s <= routing.engines["silver"].spec.breaker_s
    assert decision.rest_s(()) is None
