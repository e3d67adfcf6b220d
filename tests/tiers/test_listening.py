"""What is read of an engine and who hears it: a slow listener is not the engine's slowness, none holds its place, no answer is endless."""

from __future__ import annotations

import asyncio

import pytest

from body_broker.errors import Unavailable
from tests.counterparts.faultwall.replies import DIALECTS
from tests.counterparts.faultwall.wall import DialectName, Reply
from tests.tiers.asking import Asking, Tally, ask
from tests.tiers.clock import Clock, settle
from tests.waiting import wait_until
from tiers.counts import Counts
from tiers.deadline import Deadline
from tiers.engine import Engine
from tiers.faults import EngineFault
from tiers.lanes import Lane
from tiers.wire.base import Piece

FAR_S = 10_000.0


class Gaps(Counts):
    """Remembers how long engines took between two tokens."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def token_gap(self, tier: str, engine: str, seconds: float) -> None:
        del tier, engine
        self.seen.append(seconds)


async def test_the_time_of_whoever_listens_is_not_the_engine_s(asking: Asking, clock: Clock) -> None:
    gaps = Gaps()
    engine = Engine(asking.engine("vllm").spec, gaps, clock=clock)
    asking.wall.say("vllm", Reply(pieces=("a", " b", " c", " d")))

    async def hear(_piece: Piece) -> None:
        clock.move(8)
        await asyncio.sleep(0)

    found = await engine.run(ask(), Deadline.after(FAR_S), hear)
    await engine.close()

    assert (found.text, len(gaps.seen)) == ("a b c d", 3)
    assert engine.gap_s is not None
    assert engine.lane.service_s is not None
    assert max(*gaps.seen, engine.gap_s, engine.lane.service_s) < 8, "four pieces took 32 s to be heard"
    assert found.seconds >= 32, "who asked waited for it all the same"


async def test_what_is_no_work_of_the_engine_s_is_no_part_of_how_long_it_takes(clock: Clock) -> None:
    lane = Lane("test", width=1, queue_max=1, counts=Tally())

    async def stay_for(away_s: float, fault: EngineFault | None = None) -> None:
        async with lane.entered(Deadline.after(FAR_S)) as stay:
            clock.move(100)
            stay.away_s += away_s
            if fault is not None:
                raise fault

    await stay_for(95)
    assert lane.service_s == pytest.approx(5, abs=3)
    with pytest.raises(EngineFault):
        await stay_for(99, EngineFault("cut"))
    assert lane.service_s == pytest.approx(5, abs=3)


@pytest.mark.parametrize("stream", [True, False])
async def test_who_takes_nothing_does_not_keep_an_engine_from_others(
    asking: Asking,
    clock: Clock,
    stream: bool,  # noqa: FBT001  # pytest's
) -> None:
    engine = asking.engine("vllm", clock, concurrency=1)
    never, heard = asyncio.Event(), list[Piece]()

    async def hear(piece: Piece) -> None:
        heard.append(piece)
        await never.wait()

    asking.wall.say("vllm", Reply(text="Aye, at dusk.", whole=not stream))
    task = asyncio.create_task(engine.run(ask(), Deadline.after(FAR_S), hear))
    await wait_until(lambda: heard, "the first piece")
    await clock.pass_by(9)
    assert engine.in_flight == 1
    await clock.pass_by(2)

    with pytest.raises(Unavailable):
        await task
    assert (engine.in_flight, engine.breaker.state, len(heard)) == (0, "closed", 1)


async def test_a_stall_long_before_the_deadline_is_no_answer_even_where_part_of_one_would_be(
    asking: Asking, clock: Clock
) -> None:
    engine = asking.engine("vllm", clock, stall_s=10)
    asking.wall.fault("vllm", "stall")
    task = asyncio.create_task(engine.run(ask(), Deadline.after(100), partial=True))
    await wait_until(lambda: asking.wall.inside["vllm"], "it is asked")
    await settle()
    await clock.pass_by(11)

    with pytest.raises(EngineFault) as told:
        await task
    assert told.value.reason == "stalled"


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_long_answer_is_whole_and_one_that_never_ends_is_none(
    asking: Asking, dialect: DialectName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tiers.wire.connection._BODY_BYTES_MAX", 16_384)
    engine = asking.engine(dialect)
    asking.wall.say(dialect, Reply(pieces=(" word",) * 400, comments=True))
    found = await engine.run(ask(max_tokens=400), Deadline.after(FAR_S))
    assert found.text == " word" * 400

    asking.wall.fault(dialect, "slow_drip", gap_s=1e-9)
    with pytest.raises(EngineFault) as told:
        await engine.run(ask(max_tokens=8), Deadline.after(FAR_S))
    assert told.value.reason == "malformed"
