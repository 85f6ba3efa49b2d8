"""A slow remote never gets the last threads; a fast one may have them all."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tasks.bulkhead import CROWDED_FOR, SLOW, Bulkhead


class Clock:
    """Seconds, turned by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def elsewhere(call: Callable[[str], bool | None], lane: str, times: int = 1) -> list[bool | None]:
    """The same call from other threads, a new one each time."""
    results: list[bool | None] = []
    for _ in range(times):
        pool = ThreadPoolExecutor(1)
        _kept.append(pool)  # as long as a thread lives, nobody else gets its ident
        results.append(pool.submit(call, lane).result())
    return results


_kept: list[ThreadPoolExecutor] = []


@pytest.fixture(autouse=True)
def _threads_end():
    yield
    for pool in _kept:
        pool.shutdown()
    _kept.clear()


def test_a_fast_remote_may_use_every_thread(clock):
    bulkhead = Bulkhead(8, clock)
    assert all(elsewhere(bulkhead.enter, "a", 8))


def test_a_slow_one_leaves_a_quarter(clock):
    bulkhead = Bulkhead(8, clock)
    assert all(elsewhere(bulkhead.enter, "a", 6))
    clock.now += SLOW + 0.1
    assert elsewhere(bulkhead.enter, "a") == [False]
    assert elsewhere(bulkhead.enter, "b", 2) == [True, True]


def test_exactly_at_the_limit_it_is_not_slow_yet(clock):
    bulkhead = Bulkhead(8, clock)
    elsewhere(bulkhead.enter, "a", 6)
    clock.now += SLOW
    assert elsewhere(bulkhead.enter, "a") == [True]


def test_it_is_the_slowest_call_that_counts(clock):
    bulkhead = Bulkhead(8, clock)
    assert elsewhere(bulkhead.enter, "a") == [True]
    clock.now += SLOW + 0.1
    assert all(elsewhere(bulkhead.enter, "a", 5))
    assert elsewhere(bulkhead.enter, "a") == [False]


def test_who_leaves_makes_room(clock):
    bulkhead = Bulkhead(4, clock)
    assert bulkhead.enter("a")
    assert elsewhere(bulkhead.enter, "a", 2) == [True, True]
    clock.now += SLOW + 0.1
    assert elsewhere(bulkhead.enter, "a") == [False]
    bulkhead.leave("a")
    assert elsewhere(bulkhead.enter, "a") == [True]


def test_to_leave_without_having_entered_does_no_harm(clock):
    bulkhead = Bulkhead(4, clock)
    bulkhead.leave("a")
    assert bulkhead.enter("a")


@pytest.mark.parametrize(("threads", "most"), [(1, 1), (2, 1), (4, 3), (8, 6), (16, 12)])
def test_the_share_of_a_slow_remote(clock, threads, most):
    bulkhead = Bulkhead(threads, clock)
    assert all(elsewhere(bulkhead.enter, "a", most))
    clock.now += SLOW + 0.1
    assert elsewhere(bulkhead.enter, "a") == [False]


def test_a_crowded_lane_is_sent_no_more_than_it_has_threads_for(clock):
    bulkhead = Bulkhead(8, clock)
    assert bulkhead.room("a", 32) == 32
    elsewhere(bulkhead.enter, "a", 6)
    clock.now += SLOW + 0.1
    assert bulkhead.room("a", 32) == 32  # nobody was turned away so far
    assert elsewhere(bulkhead.enter, "a") == [False]
    assert (bulkhead.room("a", 32), bulkhead.room("b", 32)) == (0, 32)
    bulkhead.leave("a")
    clock.now += CROWDED_FOR
    assert bulkhead.room("a", 32) == 0
    clock.now += 0.1
    assert bulkhead.room("a", 32) == 32
