"""The method for gold's latency runs from end to end; a counterpart's figures are nobody's latency and are not looked at."""

from __future__ import annotations

from tests.bench.gold_latency import TOKENS, Wanted, run
from tests.counterparts.faultwall.wall import KEY, MODEL, Reply, fault_wall


def wanted(url: str, **more: object) -> Wanted:
    fields: dict[str, object] = {
        "url": url,
        "dialect": "trtllm",
        "model": MODEL,
        "key": KEY,
        "npcs": "1,3",
        "seconds": 0.05,
        "weights": "none: a counterpart",
        "weights_gb": 6.2,
    }
    return Wanted(**(fields | more))


async def test_it_asks_as_many_at_once_as_there_are_npcs_and_tells_its_conditions() -> None:
    async with fault_wall("trtllm") as wall:
        wall.always["trtllm"] = Reply(text="one two three four five six seven eight", first_after_s=0.005)
        report, answered = await run(wanted(wall.url["trtllm"]))
    assert answered
    assert wall.peak["trtllm"] == 3
    bodies = [seen.body for seen in wall.seen]
    assert {body["max_completion_tokens"] for body in bodies} == {TOKENS}
    assert len({body["messages"][0]["content"] for body in bodies}) == 1, "all share one prefix"
    assert len({body["messages"][1]["content"] for body in bodies}) > 1
    assert wall.refused == []
    for told in (
        "weights: none: a counterpart",
        "GPU here",
        "aiohttp",
        "tokens an answer, a piece",
        "| 1 |",
        "| 3 |",
        "TB/s",
        "8.0, 1.00",
    ):
        assert told in report


async def test_a_server_that_fails_gives_no_figures() -> None:
    async with fault_wall("trtllm") as wall:
        wall.fault("trtllm", "unavailable")
        report, answered = await run(wanted(wall.url["trtllm"], npcs="1"))
    assert not answered
    assert "overloaded" in report
