"""The circuit breaker: the source documents' five failures and sixty seconds, and what they forgot."""

from __future__ import annotations

import pytest

from tiers.breaker import CircuitBreakerOpen, Entry, TierCircuitBreaker


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def entered(breaker: TierCircuitBreaker) -> Entry:
    entry = breaker.enter()
    assert entry is not None
    return entry


def fail(breaker: TierCircuitBreaker, times: int = 1, *, for_s: float | None = None) -> None:
    for _ in range(times):
        breaker.failed(entered(breaker), for_s=for_s)


def opened(clock: Clock) -> TierCircuitBreaker:
    breaker = TierCircuitBreaker(clock=clock)
    fail(breaker, 5)
    return breaker


def test_five_failures_in_a_row_open_it_for_a_minute() -> None:
    clock = Clock()
    breaker = TierCircuitBreaker(clock=clock)
    fail(breaker, 4)
    assert (breaker.state, breaker.allows()) == ("closed", True)

    fail(breaker)

    assert (breaker.state, breaker.allows(), breaker.enter()) == ("open", False, None)
    clock.now += 59.9
    assert breaker.enter() is None
    clock.now += 0.2
    assert breaker.state == "half-open"


def test_a_success_begins_the_count_anew() -> None:
    breaker = TierCircuitBreaker(clock=Clock())
    for _ in range(10):
        fail(breaker, 4)
        breaker.succeeded(entered(breaker))

    assert breaker.state == "closed"


def test_half_open_lets_one_trial_in_and_nobody_beside_it() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 61

    assert breaker.allows()
    assert breaker.enter() is not None
    assert not breaker.allows()
    assert breaker.enter() is None


def test_a_trial_that_succeeds_closes_it_and_one_that_fails_opens_it_for_another_minute() -> None:
    clock = Clock()
    good, bad = opened(clock), opened(clock)
    clock.now += 61

    good.succeeded(entered(good))
    fail(bad)

    assert good.state == "closed"
    assert bad.state == "open"
    clock.now += 61
    assert bad.enter() is not None


def test_a_trial_whose_client_left_leaves_the_place_to_the_next() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 61

    breaker.left(entered(breaker))

    assert breaker.enter() is not None


def with_a_trial() -> tuple[TierCircuitBreaker, Entry, Entry]:
    """One that is half open, with a request that was begun before, and the trial."""
    clock = Clock()
    breaker = TierCircuitBreaker(clock=clock)
    older = entered(breaker)
    fail(breaker, 5)
    clock.now += 61
    return breaker, older, entered(breaker)


def test_an_older_request_that_is_given_up_lets_no_second_trial_in() -> None:
    breaker, older, _trial = with_a_trial()

    breaker.left(older)

    assert breaker.enter() is None


def test_an_older_request_that_succeeds_does_not_speak_for_the_trial() -> None:
    breaker, older, trial = with_a_trial()

    breaker.succeeded(older)

    assert breaker.state == "half-open"
    assert breaker.enter() is None
    breaker.succeeded(trial)
    assert breaker.state == "closed"


def test_an_older_request_that_fails_lets_no_second_trial_in_and_the_trial_still_closes_it() -> None:
    breaker, older, trial = with_a_trial()

    breaker.failed(older)

    assert breaker.enter() is None
    breaker.succeeded(trial)
    assert breaker.state == "closed"


def test_a_late_failure_never_shortens_a_rest() -> None:
    clock = Clock()
    breaker = TierCircuitBreaker(timeout=1, clock=clock)
    late = entered(breaker)
    fail(breaker, for_s=600)
    clock.now += 10

    breaker.failed(late)

    clock.now += 589
    assert breaker.state == "open"
    clock.now += 2
    assert breaker.state == "half-open"


def test_an_engine_that_asks_to_be_left_alone_is_at_once() -> None:
    clock = Clock()
    breaker = TierCircuitBreaker(clock=clock)

    fail(breaker, for_s=30.0)

    clock.now += 29
    assert breaker.state == "open"
    clock.now += 1
    assert breaker.enter() is not None


def test_it_says_how_long_it_rests_still() -> None:
    clock = Clock()
    breaker = TierCircuitBreaker(failure_threshold=1, timeout=60, clock=clock)
    assert breaker.rest_s == 0

    fail(breaker)

    clock.now += 18
    assert breaker.rest_s == 42
    clock.now += 42
    assert breaker.rest_s == 0


async def test_call_is_the_source_documents_method() -> None:
    breaker = TierCircuitBreaker(failure_threshold=2, timeout=60, clock=Clock())

    async def answer(text: str, *, loud: bool) -> str:
        return text.upper() if loud else text

    async def fail() -> None:
        raise ConnectionResetError

    assert await breaker.call(answer, "aye", loud=True) == "AYE"
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            await breaker.call(fail)
    with pytest.raises(CircuitBreakerOpen) as refused:
        await breaker.call(answer, "aye", loud=False)
    assert refused.value.retryable
