from __future__ import annotations

import pytest

from body_broker.lore.opensearch.breaker import FAILURES_MAX, PAUSE_MAX_S, PAUSE_S, Breaker
from body_broker.lore.opensearch.faults import CopyAway


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def is_open(breaker: Breaker) -> bool:
    try:
        breaker.admit()
    except CopyAway:
        return True
    return False


def test_failures_in_a_row_open_it_and_one_success_between_them_does_not(clock: Clock) -> None:
    breaker = Breaker(clock)
    for _ in range(FAILURES_MAX - 1):
        breaker.failed(slow=False)
    breaker.succeeded()
    for _ in range(FAILURES_MAX - 1):
        breaker.failed(slow=False)
    assert not is_open(breaker)

    breaker.failed(slow=False)

    assert is_open(breaker)


def test_a_slow_answer_opens_it_at_once(clock: Clock) -> None:
    breaker = Breaker(clock)

    breaker.failed(slow=True)

    assert is_open(breaker)


def test_after_a_pause_one_search_tries_it_and_the_others_do_not_wait(clock: Clock) -> None:
    breaker = Breaker(clock)
    breaker.failed(slow=True)
    clock.now = PAUSE_S

    assert not is_open(breaker)
    assert is_open(breaker)

    breaker.succeeded()
    assert not is_open(breaker)


def test_each_failed_try_doubles_the_pause_up_to_a_bound(clock: Clock) -> None:
    breaker = Breaker(clock)
    breaker.failed(slow=True)
    pauses: list[float] = []
    for _ in range(8):
        began = clock.now
        while is_open(breaker):
            clock.now += PAUSE_S
        pauses.append(clock.now - began)
        breaker.failed(slow=False)

    assert pauses[:4] == [PAUSE_S, 2 * PAUSE_S, 4 * PAUSE_S, 8 * PAUSE_S]
    assert pauses[-1] == PAUSE_MAX_S
