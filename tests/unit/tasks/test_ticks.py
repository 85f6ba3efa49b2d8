"""Beat's ticks: doubled, late and failed ones do no harm."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from ledger import intake, queries, remotes
from orders.arrival import Arrival
from orders.errors import Refused, TryLater, Unavailable
from orders.outcomes import Planned
from tasks.base import System, Visit
from tests.unit.tasks.conftest import Acme, Worker

PLAN = (Planned("acme.one"),)


def polled_by(acme: Acme, poll: Callable[[Visit], None], *names: str) -> list[Worker]:
    """Workers whose system is polled like this."""
    acme.fleet = replace(acme.fleet, systems={"acme": System("acme", poll=poll)})
    return [acme.worker(name) for name in names or ("w1",)]


def takes_in(visit: Visit) -> None:
    intake.take_in(visit.ledger, "acme", [Arrival(visit.account.name, "1", "row:1", "row", "{}", PLAN)])


def test_what_a_poll_takes_in_is_sent_at_once(acme_on_both):
    (worker,) = polled_by(acme_on_both, takes_in)
    assert worker.ticks.poll("acme", "north") == "done"
    assert (acme_on_both.state(1), len(worker.queue)) == ("queued", 1)


def test_a_double_does_nothing_before_its_time(acme):
    visits: list[str] = []
    first, second = polled_by(acme, lambda visit: visits.append(visit.account.name), "w1", "w2")
    told = [worker.ticks.poll("acme", "north") for worker in (first, second, first)]
    assert told == ["done", "not yet, or another worker is at it", "not yet, or another worker is at it"]
    assert first.ticks.poll("acme", "south") == "done"
    acme.ticks_are_due()
    assert second.ticks.poll("acme", "north") == "done"
    assert visits == ["north", "south", "north"]


def test_one_worker_at_a_time_however_long_it_takes(acme):
    began, end = threading.Event(), threading.Event()

    def slow(visit: Visit) -> None:
        began.set()
        assert end.wait(10)

    first, second = polled_by(acme, slow, "w1", "w2")
    with ThreadPoolExecutor(1) as pool:
        at_work = pool.submit(first.ticks.poll, "acme", "north")
        assert began.wait(10)
        acme.ticks_are_due()
        assert second.ticks.poll("acme", "north") == "not yet, or another worker is at it"
        end.set()
        assert at_work.result(10) == "done"
    acme.ticks_are_due()
    assert second.ticks.poll("acme", "north") == "done"


def test_one_thread_at_a_time_in_one_worker(acme):
    began, end = threading.Event(), threading.Event()

    def slow(visit: Visit) -> None:
        began.set()
        assert end.wait(10)

    (worker,) = polled_by(acme, slow)
    with ThreadPoolExecutor(1) as pool:
        at_work = pool.submit(worker.ticks.poll, "acme", "north")
        assert began.wait(10)
        acme.ticks_are_due()  # the ledger would let its holder have it again
        assert worker.ticks.poll("acme", "north") == "another thread is at it"
        assert worker.ticks.feed() == "done"  # another tick is another matter
        end.set()
        assert at_work.result(10) == "done"
    acme.ticks_are_due()
    assert worker.ticks.poll("acme", "north") == "done"


@pytest.mark.parametrize("error", [ValueError("our own fault"), Unavailable("down"), Refused("400", status=400)])
def test_a_tick_that_failed_can_be_done_again(acme, error):
    errors = [error]

    def once(visit: Visit) -> None:
        if errors:
            raise errors.pop()

    first, second = polled_by(acme, once, "w1", "w2")
    if isinstance(error, ValueError):
        with pytest.raises(ValueError, match="our own fault"):
            first.ticks.poll("acme", "north")
    else:
        assert first.ticks.poll("acme", "north") == f"not done: {error}"
    acme.time_passes()
    second.gates.refresh()
    assert second.ticks.poll("acme", "north") == "done"


def test_a_poll_that_fails_closes_the_lane_and_a_closed_lane_is_not_polled(acme):
    visits: list[str] = []

    def down(visit: Visit) -> None:
        visits.append(visit.account.name)
        if len(visits) == 1:
            raise Unavailable("down", after=60.0)

    (worker,) = polled_by(acme, down)
    assert worker.ticks.poll("acme", "north") == "not done: down"
    acme.ticks_are_due()
    assert worker.ticks.poll("acme", "north") == "not done: down"
    assert visits == ["north"]
    acme.time_passes()
    worker.gates.refresh()
    assert worker.ticks.poll("acme", "north") == "done"
    assert not queries.closed_gates(acme.ledger)


def test_one_fault_of_a_poll_closes_nothing(acme):
    def fails(visit: Visit) -> None:
        raise TryLater("500", status=500)

    (worker,) = polled_by(acme, fails)
    assert worker.ticks.poll("acme", "north") == "not done: 500"
    assert not queries.closed_gates(acme.ledger)


@pytest.mark.parametrize(("system", "account"), [("acme", "west"), ("other", "north")])
def test_what_is_not_configured_here_is_said(acme, system, account):
    (worker,) = polled_by(acme, takes_in)
    assert worker.ticks.poll(system, account) == f"{system} has no account {account} to poll here"


def test_a_system_that_only_pushes_has_no_poll(acme):
    assert "no account north" in acme.worker().ticks.poll("acme", "north")


def test_the_feed_is_left_alone_while_the_erp_is_down(acme):
    worker = acme.worker()
    remotes.close_gate(acme.ledger, "erp", 60.0, "the ERP is down")
    worker.gates.refresh()
    assert worker.ticks.feed() == "not done: the ERP is down"


def test_the_broker_may_be_away(acme):
    (worker,) = polled_by(acme, takes_in)
    worker.broker_away = True
    assert worker.ticks.poll("acme", "north") == "done"
    assert acme.state(1) == "ready"
