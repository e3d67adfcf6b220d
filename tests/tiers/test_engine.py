"""One engine of ours before a counterpart: what comes in pieces, what is timed out and blamed, what a client that leaves frees."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.counterparts.faultwall.replies import DIALECTS, TEXT
from tests.counterparts.faultwall.wall import DialectName, Fault, Reply, Tool
from tests.tiers.asking import LONG_S, LORE, MOOD, Asking, Ear, ask
from tests.tiers.clock import Clock, settle
from tests.waiting import wait_until
from tiers.deadline import Deadline
from tiers.engine import Engine, Hear
from tiers.faults import EngineFault, Reason
from tiers.model import Usage
from tiers.wire.base import Completion, Piece

FAR_S = 10_000.0


def running(
    engine: Engine, hear: Hear | None = None, *, within_s: float = FAR_S, partial: bool = False, **more: Any
) -> asyncio.Task[Completion]:
    return asyncio.create_task(engine.run(ask(**more), Deadline.after(within_s), hear, partial=partial))


async def reason_of(task: asyncio.Task[Completion]) -> Reason:
    with pytest.raises(EngineFault) as told:
        await task
    return told.value.reason


async def asked_at(asking: Asking, dialect: DialectName, count: int = 1) -> None:
    """Until so many are being answered, and everything has come to rest."""
    await wait_until(lambda: asking.wall.inside[dialect] == count, f"{count} at the counterpart")
    await settle()


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_is_heard_counted_and_measured(asking: Asking, dialect: DialectName, stream: bool) -> None:  # noqa: FBT001  # pytest's
    engine, ear = asking.engine(dialect), Ear()
    asking.wall.say(dialect, Reply(text=TEXT, usage=(20, 17, 8), whole=not stream))

    found = await engine.run(ask(), Deadline.after(FAR_S), ear)

    assert (found.text, found.finish, found.usage, found.counted) == (TEXT, "stop", Usage(20, 17, 8), True)
    assert ear.text == TEXT
    assert (len(ear.pieces) > 5) is stream
    assert engine.ttft_s is not None
    assert (engine.gap_s is not None) is stream
    assert asking.counts.firsts[dialect] == 1
    assert asking.counts.gaps[dialect] == len(ear.pieces) - 1
    assert (engine.in_flight, engine.breaker.state) == (0, "closed")


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_bytes_in_any_pieces_with_comments_and_other_line_ends_read_the_same(
    asking: Asking, dialect: DialectName
) -> None:
    engine = asking.engine(dialect)
    odd = Reply(text="Fähre ⛴ um vier", calls=(Tool("search_lore", {"query": "⛴"}),), comments=True)
    for reply in (
        Reply(**_of(odd, bytes_each=1)),
        Reply(**_of(odd, ends="\r\n", bytes_each=3)),
        Reply(**_of(odd, ends="\r")),
    ):
        asking.wall.say(dialect, reply)
        found = await engine.run(ask(offers=(LORE,)), Deadline.after(FAR_S))
        assert (found.text, found.finish, len(found.calls)) == ("Fähre ⛴ um vier", "tools", 1)


def _of(reply: Reply, **more: Any) -> dict[str, Any]:
    return {name: getattr(reply, name) for name in Reply.__slots__} | more


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_tools_and_schemas_are_forced_in_every_dialect(asking: Asking, dialect: DialectName) -> None:
    engine = asking.engine(dialect)

    called = await engine.run(ask(offers=(LORE,), tool_choice="search_lore"), Deadline.after(FAR_S))
    formed = await engine.run(ask(schema=MOOD), Deadline.after(FAR_S))

    assert (called.finish, called.calls[0].arguments) == ("tools", '{"query": "x"}')
    assert formed.text == '{"mood": "calm"}'


async def test_several_answers_use_one_connection(asking: Asking) -> None:
    engine = asking.engine("vllm")
    for _ in range(5):
        await engine.run(ask(), Deadline.after(FAR_S))
    await reason_of(running(engine, model="nobody"))
    await engine.run(ask(), Deadline.after(FAR_S))

    assert len({seen.connection for seen in asking.wall.asked("vllm")}) == 1


@pytest.mark.parametrize("fault", ["silent", "slow_first"])
async def test_an_engine_is_silent_at_its_limit_and_not_before_whatever_signs_of_life_it_gives(
    asking: Asking, clock: Clock, fault: Fault
) -> None:
    engine = asking.engine("vllm", clock)
    asking.wall.fault("vllm", fault)
    task = running(engine, Ear())
    await asked_at(asking, "vllm")

    await clock.pass_by(LONG_S - 5)
    assert not task.done()
    await clock.pass_by(5)

    assert await reason_of(task) == "silent"
    await wait_until(lambda: asking.wall.left["vllm"] == 1, "the connection is closed")


async def test_a_first_token_within_its_limit_is_an_answer_however_late(asking: Asking, clock: Clock) -> None:
    engine = asking.engine("vllm", clock)
    asking.wall.fault("vllm", "slow_first", first_after_s=LONG_S - 10)
    task = running(engine)
    await asked_at(asking, "vllm")
    await clock.pass_by(LONG_S - 5)

    assert (await task).text == TEXT
    assert engine.ttft_s == pytest.approx(LONG_S - 10, abs=5)


async def test_a_stream_that_stalls_is_given_up_at_its_limit_and_the_reader_has_its_pieces(
    asking: Asking, clock: Clock
) -> None:
    engine, ear = asking.engine("vllm", clock, stall_s=30), Ear()
    asking.wall.fault("vllm", "stall")
    task = running(engine, ear)
    await wait_until(lambda: ear.pieces, "half of it")
    await settle()
    await clock.pass_by(25)
    assert not task.done()
    await clock.pass_by(6)

    assert await reason_of(task) == "stalled"
    assert TEXT.startswith(ear.text)


async def test_a_slow_reader_is_not_the_engines_fault(asking: Asking, clock: Clock) -> None:
    engine = asking.engine("vllm", clock, stall_s=5, ttft_s=5)
    gate, heard = asyncio.Event(), list[Piece]()

    async def hear(piece: Piece) -> None:
        heard.append(piece)
        if len(heard) == 2:
            await gate.wait()

    task = running(engine, hear)
    await wait_until(lambda: len(heard) == 2, "it reads slowly")
    await clock.pass_by(9)
    gate.set()

    assert (await task).text == TEXT
    assert engine.breaker.state == "closed"


@pytest.mark.parametrize("error", [ConnectionResetError(), TimeoutError(), ValueError(), RuntimeError()])
async def test_what_goes_wrong_with_whoever_listens_is_told_as_it_is_and_not_held_against_the_engine(
    asking: Asking, error: Exception
) -> None:
    engine = asking.engine("vllm", failure_threshold=1)

    async def hear(_piece: Piece) -> None:
        raise error

    with pytest.raises(type(error)) as told:
        await engine.run(ask(), Deadline.after(FAR_S), hear)
    assert told.value is error
    with pytest.raises(type(error)):
        await engine.run(ask(), Deadline.after(FAR_S), enough=lambda _text: (_ for _ in ()).throw(error))

    assert engine.breaker.state == "closed"
    assert engine.in_flight == 0


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("fault", ["silent", "stall"])
async def test_a_client_that_leaves_frees_the_engines_slot_at_once(
    asking: Asking, dialect: DialectName, fault: Fault
) -> None:
    engine, ear = asking.engine(dialect), Ear()
    asking.wall.fault(dialect, fault)
    task = running(engine, ear)
    await asked_at(asking, dialect)
    if fault == "stall":
        await wait_until(lambda: ear.pieces, "half of it")

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (engine.in_flight, engine.breaker.state) == (0, "closed")
    await settle()  # no time is needed for it

    assert (asking.wall.inside[dialect], asking.wall.left[dialect]) == (0, 1)


async def test_at_the_deadline_what_is_there_is_an_answer_only_where_that_was_asked_for(
    asking: Asking, clock: Clock
) -> None:
    engine = asking.engine("vllm", clock)
    asking.wall.fault("vllm", "stall")
    whole, part = running(engine, within_s=30), running(engine, within_s=30, partial=True)
    await asked_at(asking, "vllm", 2)
    await clock.pass_by(31)

    assert await reason_of(whole) == "deadline"
    found = await part
    assert (found.finish, found.counted) == ("deadline", False)
    assert found.text
    assert found.text != TEXT
    assert TEXT.startswith(found.text)
    assert found.usage.completion > 0
    assert engine.breaker.state == "closed"


async def test_half_a_call_is_no_answer_at_the_deadline_either(asking: Asking, clock: Clock) -> None:
    engine = asking.engine("vllm", clock)
    asking.wall.say("vllm", Reply(text="Let me see", calls=(Tool("search_lore", {"query": "x"}),), gap_s=9))
    task = running(engine, within_s=40, partial=True)
    await asked_at(asking, "vllm")
    await clock.pass_by(41)

    assert await reason_of(task) == "deadline"


async def test_a_slow_drip_ends_at_the_deadline_and_is_never_an_answer(asking: Asking, clock: Clock) -> None:
    engine = asking.engine("vllm", clock, stall_s=10)
    asking.wall.fault("vllm", "slow_drip", gap_s=5)
    task = running(engine, within_s=100)
    await asked_at(asking, "vllm")
    await clock.pass_by(95)
    assert not task.done()
    await clock.pass_by(10)

    assert await reason_of(task) == "deadline"
    assert engine.breaker.state == "closed"


async def test_an_answer_that_is_enough_ends_there_and_frees_the_engine(asking: Asking) -> None:
    engine = asking.engine("vllm")
    asking.wall.fault("vllm", "slow_drip", gap_s=0.001)

    found = await engine.run(ask(), Deadline.after(FAR_S), enough=lambda text: text.count("drip") >= 3)

    assert (found.finish, found.text, found.counted) == ("grammar", " drip drip drip", False)
    await wait_until(lambda: asking.wall.left["vllm"] == 1, "the counterpart is free")


async def test_only_so_many_are_asked_at_once_and_what_may_wait_has_a_queue_of_its_own(asking: Asking) -> None:
    engine = asking.engine("vllm", concurrency=2, background=1)
    asking.wall.fault("vllm", "silent")
    tasks = [running(engine, urgency=u) for u in (0.5, 0.5, 0.5, 0.1, 0.1)]
    await asked_at(asking, "vllm", 3)

    assert (engine.in_flight, engine.lane.waiting, engine.background.waiting) == (3, 1, 1)
    assert (engine.lane.waiting, engine.background.waiting) == (1, 1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (engine.in_flight, asking.counts.queued) == (0, 0)


async def test_five_failures_in_a_row_close_an_engine_for_a_minute_and_one_trial_opens_it(
    asking: Asking, clock: Clock
) -> None:
    engine = asking.engine("vllm", clock)
    asking.wall.fault("vllm", "unavailable")
    for _ in range(4):
        assert await reason_of(running(engine)) == "overloaded"
    asking.wall.fault("vllm", None)
    await running(engine)
    asking.wall.fault("vllm", "unavailable")
    for _ in range(5):
        assert await reason_of(running(engine)) == "overloaded"
    assert await reason_of(running(engine)) == "open"
    assert len(asking.wall.asked("vllm")) == 10, "an open one is not asked"

    clock.move(59)
    assert await reason_of(running(engine)) == "open"
    clock.move(2)
    asking.wall.fault("vllm", "silent")
    trial = running(engine)
    await asked_at(asking, "vllm")
    assert await reason_of(running(engine)) == "open", "one trial at a time"
    trial.cancel()
    await asyncio.gather(trial, return_exceptions=True)
    asking.wall.fault("vllm", None)

    assert (await running(engine)).text == TEXT
    assert engine.breaker.state == "closed"


async def test_whoever_waits_for_an_engine_that_fails_meanwhile_does_not_wait_for_its_silence_too(
    asking: Asking, clock: Clock
) -> None:
    engine = asking.engine("vllm", clock, concurrency=1, failure_threshold=1)
    asking.wall.fault("vllm", "silent")
    first = running(engine)
    await asked_at(asking, "vllm")
    others = [running(engine) for _ in range(3)]
    await settle()
    await clock.pass_by(LONG_S + 1)

    assert await reason_of(first) == "silent"
    assert [await reason_of(other) for other in others] == ["open"] * 3
    assert len(asking.wall.asked("vllm")) == 1


async def test_an_engine_that_says_when_to_come_again_is_left_alone_for_so_long(asking: Asking, clock: Clock) -> None:
    engine = asking.engine("openai", clock)
    asking.wall.fault("openai", "rate_limited_for")
    assert await reason_of(running(engine)) == "rate_limited"
    asking.wall.fault("openai", None)
    clock.move(29)
    assert await reason_of(running(engine)) == "open"
    clock.move(2)

    assert (await running(engine)).text == TEXT


async def test_an_answer_that_was_begun_before_does_not_open_an_engine_that_asked_for_rest(
    asking: Asking, clock: Clock
) -> None:
    engine = asking.engine("openai", clock)
    asking.wall.fault("openai", "slow_first", first_after_s=5)
    early = running(engine)
    await asked_at(asking, "openai")
    asking.wall.fault("openai", "rate_limited_for")
    assert await reason_of(running(engine)) == "rate_limited"
    await clock.pass_by(6)
    assert (await early).text == TEXT

    assert await reason_of(running(engine)) == "open"
    clock.move(30)
    asking.wall.fault("openai", None)
    assert (await running(engine)).text == TEXT


async def test_a_failure_that_comes_late_does_not_shorten_what_was_asked_for(asking: Asking, clock: Clock) -> None:
    engine = asking.engine("openai", clock, ttft_s=5, failure_threshold=1, breaker_s=1)
    asking.wall.fault("openai", "silent")
    late = running(engine)
    await asked_at(asking, "openai")
    asking.wall.fault("openai", "rate_limited_for")
    assert await reason_of(running(engine)) == "rate_limited"
    await clock.pass_by(6)
    assert await reason_of(late) == "silent"
    clock.move(20)

    assert await reason_of(running(engine)) == "open"


async def test_an_empty_purse_closes_an_engine_for_five_minutes(asking: Asking, clock: Clock) -> None:
    engine = asking.engine("anthropic", clock)
    asking.wall.fault("anthropic", "budget")
    assert await reason_of(running(engine)) == "budget"
    asking.wall.fault("anthropic", None)
    clock.move(295)
    assert await reason_of(running(engine)) == "open"
    clock.move(10)

    assert (await running(engine)).text == TEXT


async def test_an_engine_that_outlasts_one_deadline_after_another_is_silent_even_below_its_limit(
    asking: Asking, clock: Clock
) -> None:
    engine = asking.engine("trtllm", clock, failure_threshold=2)
    engine.ttft_s = 1.0
    asking.wall.fault("trtllm", "silent")
    for seconds, state in ((5, "closed"), (5, "closed"), (5, "closed"), (20, "closed"), (20, "open")):
        task = running(engine, within_s=seconds)
        await asked_at(asking, "trtllm")
        await clock.pass_by(seconds + 1)
        assert await reason_of(task) == "deadline"
        assert engine.breaker.state == state


async def test_the_only_model_that_is_served_is_found_once(asking: Asking) -> None:
    engine = asking.engine("vllm", model=None)
    assert await engine.model() == "wall"
    asking.wall.models = ("other",)
    asking.wall.fault("vllm", "too_long")
    assert await reason_of(running(engine)) == "too_long"
    asking.wall.fault("vllm", None)
    assert await engine.model() == "wall", "a request that does not fit says nothing of the model"
    assert await reason_of(running(engine, model="gone")) == "rejected"

    assert await engine.model() == "other", "it was restarted with another model"
    asking.wall.models = ("a", "b")
    with pytest.raises(EngineFault) as told:
        await asking.engine("vllm", model=None).model()
    assert told.value.reason == "rejected"
    assert await asking.engine("vllm", model=None, adapter="osric").model() == "osric"


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_probe_says_whether_it_serves_and_why_not(asking: Asking, dialect: DialectName) -> None:
    engine = asking.engine(dialect)
    assert (await engine.probe()).up
    asking.wall.healthy = False
    assert (await engine.probe()).detail == "overloaded"
    asking.wall.healthy = True
    if dialect not in {"vllm", "trtllm"}:
        assert (await asking.engine(dialect, key="wrong").probe()).detail == "unauthorised"
    await asking.wall.refuse(dialect)
    found = await engine.probe()

    assert (found.up, found.detail) == (False, "refused")


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
async def test_addresses_may_be_written_with_or_without_what_the_paths_begin_with(
    asking: Asking, dialect: DialectName, ending: str
) -> None:
    url = asking.wall.url[dialect] + (f"/openai{ending}" if dialect == "azure" and ending else ending)

    assert (await running(asking.engine(dialect, url=url))).text == TEXT


async def test_a_prompt_of_megabytes_goes_over_in_parts(asking: Asking) -> None:
    text = "Once upon a time. " * 100_000

    assert (await running(asking.engine("vllm"), text=text)).text == TEXT
    assert asking.wall.asked("vllm")[0].body["messages"][0]["content"] == text


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("huge_line", "malformed"),
        ("page", "malformed"),
        ("redirect", "failed"),
        ("slow_error", "overloaded"),
        ("error_at_once", None),
        ("too_long", "too_long"),
        ("unauthorised", "unauthorised"),
    ],
)
async def test_odd_answers_are_faults_and_each_is_known(
    asking: Asking,
    dialect: DialectName,
    fault: Fault,
    reason: Reason | None,
    stream: bool,  # noqa: FBT001  # pytest's
) -> None:
    asking.wall.fault(dialect, fault, whole=not stream)
    found = await reason_of(running(asking.engine(dialect)))

    assert found == (reason or ("overloaded" if dialect == "anthropic" and stream else "failed"))


async def test_what_comes_after_the_end_of_an_answer_is_not_waited_for(asking: Asking, clock: Clock) -> None:
    # The dialect's end is there, and the connection's is not.
    asking.wall.say("vllm", Reply(text="Aye", lingers=True))
    task = running(asking.engine("vllm", clock))
    await asked_at(asking, "vllm")
    await clock.pass_by(1)

    assert (await task).text == "Aye"
