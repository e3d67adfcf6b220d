"""Answers that are given again: exactly the same request, of the same tenant, whole answers only, made once where many ask at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from body_broker.storage.redis import Redis
from tests.tiers.clock import Clock, settle
from tests.waiting import wait_until
from tiers import cache
from tiers.cache import KEPT_S, ResponseCache, key_of
from tiers.counts import Counts
from tiers.deadline import Deadline
from tiers.model import (
    Fallback,
    InferenceRequest,
    InferenceResult,
    Message,
    Tier,
    ToolCall,
    ToolOffer,
    ToolUse,
    Usage,
)

ANNA, BEN = "person:anna", "person:ben"
REQUEST = InferenceRequest(prompt="Who guards the ferry?")
ANSWER = InferenceResult(
    text="Old Wren, since the flood.",
    tier=Tier.CLOUD,
    engine="openai",
    model="gpt-5-mini",
    source="model",
    outside=True,
    reason="cloud",
    fallbacks=(Fallback("azure", "open"),),
    usage=Usage(40, 8),
    cost_usd=0.002,
    ttft_s=0.4,
    seconds=0.9,
)


class Asked(Counts):
    """Counts how often the cache was asked, and how often an answer was made."""

    def __init__(self) -> None:
        self.hits: Counter[bool] = Counter()
        self.told: list[tuple[str, str]] = []
        self.made = 0

    def cached(self, cache: str, *, hit: bool) -> None:
        assert cache == "cloud"
        self.hits[hit] += 1

    def answered(self, tier: str, source: str, seconds: float) -> None:
        assert seconds >= 0
        self.told.append((tier, source))

    def makes(self, answer: InferenceResult) -> Callable[[], Any]:
        async def make() -> InferenceResult:
            self.made += 1
            return answer

        return make


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def answers(redis: Redis, asked: Asked) -> ResponseCache:
    return ResponseCache(redis, asked)


def key(request: InferenceRequest = REQUEST, tenant: str = ANNA, **given: Any) -> str | None:
    return key_of(tenant, request, request.conversation(), **given)


def soon() -> Deadline:
    return Deadline.after(60)


async def test_the_same_request_is_answered_again_and_costs_nothing(
    answers: ResponseCache, asked: Asked, redis: Redis
) -> None:
    first = await answers.answer(key(), asked.makes(ANSWER), deadline=soon())
    await answers.settled()
    elsewhere = ResponseCache(redis, asked)
    again = await elsewhere.answer(key(), asked.makes(ANSWER), deadline=soon())

    assert first == ANSWER
    assert (again.text, again.source, again.outside, again.engine) == (ANSWER.text, "cached", True, "openai")
    assert (again.cost_usd, again.usage, again.ttft_s, again.fallbacks) == (0.0, Usage(), None, ())
    assert (asked.made, dict(asked.hits), asked.told) == (1, {False: 1, True: 1}, [("cloud", "cached")])


async def test_an_answer_is_forgotten_after_a_day(answers: ResponseCache, asked: Asked, redis: Redis) -> None:
    await answers.answer(key(), asked.makes(ANSWER), deadline=soon())
    await answers.settled()

    assert KEPT_S - 60 < await redis.ttl(f"tier:answer:{key()}") <= KEPT_S == 86_400


OTHERS = (
    replace(REQUEST, prompt="Who guards the ferry"),
    replace(REQUEST, max_tokens=127),
    replace(REQUEST, temperature=0.7),
    replace(REQUEST, seed=1),
    replace(REQUEST, stop=("\n",)),
    replace(REQUEST, persona="wren"),
    replace(REQUEST, npc_id="npc_1"),
    replace(REQUEST, model="openai"),
    replace(REQUEST, role="expert"),
    replace(REQUEST, schema={"type": "object"}),
    replace(REQUEST, choices=("yes", "no")),
    replace(REQUEST, requires_expert_reasoning=True),
)


def test_whatever_shapes_an_answer_is_in_its_key() -> None:
    keys = [key(), key(tenant=BEN), key(salt="other models"), *(key(each) for each in OTHERS)]

    assert len(set(keys)) == len(keys)
    assert key_of(ANNA, REQUEST, (Message(role="system", content="You are Wren."), *REQUEST.conversation())) not in keys


def test_what_only_says_how_soon_or_how_dear_is_not() -> None:
    hurried = replace(REQUEST, sla="real-time", latency_budget_ms=5.0, cost_sensitivity="low", cost_ceiling=1.0)

    assert key(hurried) == key() == key(replace(REQUEST, priority="background"))
    one, other = ({"type": "object", "required": ["a"]}, {"required": ["a"], "type": "object"})
    assert key(replace(REQUEST, schema=one)) == key(replace(REQUEST, schema=other))


@given(st.lists(st.text(), min_size=1, max_size=3), st.lists(st.text(), min_size=1, max_size=3))
def test_no_two_conversations_share_a_key(one: list[str], other: list[str]) -> None:
    keys = [key_of(ANNA, REQUEST, [Message(role="user", content=text) for text in texts]) for texts in (one, other)]

    assert (keys[0] == keys[1]) is (one == other)


@pytest.mark.parametrize(
    "never",
    [
        replace(REQUEST, tools=("search_lore",)),
        replace(REQUEST, offers=(ToolOffer("buy", "Buys.", {}),)),
        replace(REQUEST, prompt="half a \ud83d pair"),
        replace(REQUEST, seed=2**70),
    ],
    ids=["tools", "offers", "surrogate", "number"],
)
async def test_what_must_not_be_given_again_has_no_key(
    never: InferenceRequest, answers: ResponseCache, asked: Asked
) -> None:
    assert key(never) is None

    for _ in range(2):
        assert await answers.answer(key(never), asked.makes(ANSWER), deadline=soon()) == ANSWER
    assert (asked.made, dict(asked.hits)) == (2, {})


@pytest.mark.parametrize(
    "poor",
    [
        {"source": "template"},
        {"source": "policy"},
        {"source": "cached"},
        {"finish": "deadline"},
        {"finish": "tools", "tool_calls": (ToolCall("1", "buy", "{}"),)},
        {"tools": (ToolUse("search_lore", "ok", 0.1),)},
        {"text": ""},
        {"text": "x" * cache.BYTES_MAX},
    ],
    ids=["template", "policy", "cached", "cut", "calls", "tools", "empty", "huge"],
)
async def test_what_is_no_whole_answer_of_a_model_is_not_kept(
    poor: dict[str, Any], answers: ResponseCache, asked: Asked
) -> None:
    made = replace(ANSWER, **poor)

    for _ in range(2):
        assert await answers.answer(key(), asked.makes(made), deadline=soon()) == made
    assert asked.made == 2


async def test_what_a_stopgap_said_is_given_to_those_who_wait_for_it_and_not_kept(
    answers: ResponseCache, asked: Asked
) -> None:
    go, stopgap = asyncio.Event(), replace(ANSWER, source="smaller")

    async def make() -> InferenceResult:
        asked.made += 1
        await go.wait()
        return stopgap

    waiting = [asyncio.create_task(answers.answer(key(), make, deadline=soon())) for _ in range(3)]
    await wait_until(lambda: asked.made, "one asks")
    await settle()
    go.set()
    found = await asyncio.gather(*waiting)
    assert ({each.text for each in found}, asked.made) == ({ANSWER.text}, 1)

    again = await answers.answer(key(), asked.makes(ANSWER), deadline=soon())
    assert (again.source, asked.made) == ("model", 2), "the model that was meant is asked once it is there again"


@asynccontextmanager
async def dumb() -> AsyncGenerator[Redis]:
    """A Redis that takes whatever it is told, and says nothing."""
    held = asyncio.Event()

    async def hold(_reader: object, writer: asyncio.StreamWriter) -> None:
        await held.wait()
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    async with server, Redis(port=server.sockets[0].getsockname()[1], socket_timeout=None) as silent:
        yield silent
        held.set()


async def test_a_store_that_does_not_answer_takes_nobody_past_the_deadline(
    asked: Asked, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_PATIENCE_S", 3_600.0)
    async with dumb() as silent:
        answers = ResponseCache(silent, asked)
        asking = asyncio.create_task(answers.answer(key(), asked.makes(ANSWER), deadline=Deadline.after(60)))
        await settle()
        await clock.pass_by(59)
        assert not asking.done()
        await clock.pass_by(2)
        assert await asking == ANSWER
        await clock.pass_by(3_600)
        await answers.settled()


async def test_a_finished_answer_waits_for_no_store_and_is_given_again_while_it_is_being_kept(
    asked: Asked, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_PATIENCE_S", 60.0)
    go = asyncio.Event()

    async def make() -> InferenceResult:
        await go.wait()
        return ANSWER

    async with dumb() as silent:
        answers = ResponseCache(silent, asked)
        asking = asyncio.create_task(answers.answer(key(), make, deadline=Deadline.after(600)))
        await settle()
        await clock.pass_by(61)  # it was not read either
        go.set()
        await settle()
        assert asking.done(), "no time has passed since it was made"
        again = await answers.answer(key(), asked.makes(ANSWER), deadline=soon())
        assert (again.source, asked.made) == ("cached", 0)

        settling = asyncio.create_task(answers.settled())
        await settle()
        assert not settling.done()
        await clock.pass_by(61)
        await settling
        assert asked.hits == {False: 1, True: 1}


class Slow:
    """Makes answers when told to."""

    def __init__(self) -> None:
        self.go, self.under_way, self.made = asyncio.Event(), 0, 0

    async def __call__(self) -> InferenceResult:
        self.under_way += 1
        try:
            await self.go.wait()
        finally:
            self.under_way -= 1
        self.made += 1
        return ANSWER


async def test_of_sixteen_at_once_one_asks_and_all_are_answered(answers: ResponseCache, asked: Asked) -> None:
    slow = Slow()
    tasks = [asyncio.create_task(answers.answer(key(), slow, deadline=soon())) for _ in range(16)]
    await wait_until(lambda: slow.under_way, "one asks")
    await settle()
    slow.go.set()

    found = await asyncio.gather(*tasks)

    assert slow.made == 1
    assert Counter(each.source for each in found) == {"model": 1, "cached": 15}
    assert {each.text for each in found} == {ANSWER.text}
    assert sum(each.cost_usd or 0 for each in found) == ANSWER.cost_usd
    assert dict(asked.hits) == {False: 1, True: 15}


async def test_tenants_do_not_wait_for_each_other(answers: ResponseCache) -> None:
    slow = Slow()
    tasks = [asyncio.create_task(answers.answer(key(tenant=who), slow, deadline=soon())) for who in (ANNA, BEN)]

    await wait_until(lambda: slow.under_way == 2, "both ask")
    slow.go.set()
    assert [each.source for each in await asyncio.gather(*tasks)] == ["model", "model"]


async def test_where_the_one_who_asks_leaves_the_next_asks(answers: ResponseCache) -> None:
    slow = Slow()
    first, *others = [asyncio.create_task(answers.answer(key(), slow, deadline=soon())) for _ in range(4)]
    await wait_until(lambda: slow.under_way, "one asks")
    await settle()

    first.cancel()
    await wait_until(lambda: first.done() and slow.under_way, "another asks")
    await settle()
    assert slow.under_way == 1
    slow.go.set()

    found = await asyncio.gather(*others)
    assert (slow.made, Counter(each.source for each in found)) == (1, {"model": 1, "cached": 2})


async def test_an_error_is_told_to_who_asked_and_the_others_ask_themselves(answers: ResponseCache) -> None:
    go = asyncio.Event()

    async def fail() -> InferenceResult:
        await go.wait()
        raise ValueError

    slow = Slow()
    slow.go.set()
    first = asyncio.create_task(answers.answer(key(), fail, deadline=soon()))
    await settle()
    other = asyncio.create_task(answers.answer(key(), slow, deadline=soon()))
    await settle()
    go.set()

    with pytest.raises(ValueError, match=r"^$"):
        await first
    assert (await other).source == "model"


async def test_where_one_who_asks_fails_the_next_asks_and_not_all_at_once(answers: ResponseCache) -> None:
    under_way, most, go = 0, 0, asyncio.Event()

    async def fail() -> InferenceResult:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await go.wait()
        await settle()
        under_way -= 1
        raise ValueError

    tasks = [asyncio.create_task(answers.answer(key(), fail, deadline=soon())) for _ in range(8)]
    await wait_until(lambda: under_way, "one asks")
    await settle()
    go.set()

    found = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(each) for each in found] == [ValueError] * 8
    assert most == 1


async def test_anothers_answer_is_not_waited_for_past_the_deadline(answers: ResponseCache, clock: Clock) -> None:
    slow, mine = Slow(), Slow()
    mine.go.set()
    first = asyncio.create_task(answers.answer(key(), slow, deadline=Deadline.after(600)))
    await wait_until(lambda: slow.under_way, "one asks")
    other = asyncio.create_task(answers.answer(key(), mine, deadline=soon()))
    await settle()

    clock.move(61)

    assert (await other).source == "model"
    slow.go.set()
    await first


async def test_without_redis_everything_is_answered_and_nothing_kept(asked: Asked) -> None:
    gone = Redis(host="127.0.0.1", port=1)
    answers = ResponseCache(gone, asked)

    for _ in range(2):
        assert await answers.answer(key(), asked.makes(ANSWER), deadline=soon()) == ANSWER
        await answers.settled()
    assert asked.made == 2
    await gone.aclose()


@pytest.mark.parametrize("strange", [b"", b"[]", b"{}", b'["x"]', b"\xff", b'["a", "nowhere", 1, 2, 3, 4, 5, 6]'])
async def test_what_somebody_else_left_in_redis_is_no_answer(
    answers: ResponseCache, asked: Asked, redis: Redis, strange: bytes
) -> None:
    await redis.set(f"tier:answer:{key()}", strange)

    assert await answers.answer(key(), asked.makes(ANSWER), deadline=soon()) == ANSWER
