"""One breaker per remote, agreed on through the ledger."""

import pytest
from structlog.testing import capture_logs

from ledger import queries, remotes
from orders.errors import Misconfigured, Refused, TryLater, Unavailable
from tasks.bulkhead import Bulkhead
from tasks.gates import MOST_FAULTS, Gates
from tests.unit.tasks.conftest import Acme

LANE = "acme:north"
FAULT = TryLater("500", status=500)


def gates_of(acme: Acme) -> Gates:
    """What another worker knows."""
    gates = Gates(acme.ledger, Bulkhead(8))
    gates.refresh()
    return gates


def seconds_closed(acme: Acme) -> float:
    """How much longer the lane is closed."""
    with acme.ledger.reading() as connection:
        until = connection.exec_driver_sql("SELECT closed_until FROM gates").scalar_one()
    now = queries.database_now(acme.ledger)
    text = until if isinstance(until, str) else until.isoformat()
    return float((type(now).fromisoformat(f"{text}+00:00" if "+" not in text else text) - now).total_seconds())


def test_all_workers_learn_of_it_and_one_alerts(acme_on_both):
    acme = acme_on_both
    first, second = gates_of(acme), gates_of(acme)
    with capture_logs() as logs:
        assert first.failed(LANE, Unavailable("down"))
        assert second.failed(LANE, Unavailable("down"))
    assert [entry["action"] for entry in logs] == ["gate_closed"]
    assert [gates.closed(LANE) for gates in (first, second, gates_of(acme))] == ["down"] * 3
    assert first.room(LANE, 16) == 0
    assert first.closed("acme:south") is None


def test_it_does_not_open_while_the_remotes_retry_after_runs(acme_on_both):
    acme = acme_on_both
    gates = gates_of(acme)
    gates.failed(LANE, Unavailable("429", after=60.0, status=429))
    gates.answered(LANE)  # a call that left before the remote had enough
    assert gates.closed(LANE) == "429"
    assert not remotes.open_gate(acme.ledger, LANE)
    assert gates_of(acme).closed(LANE) == "429"
    assert 50 < seconds_closed(acme) <= 60


def test_after_its_time_one_may_try_and_success_opens_it(acme):
    gates, other = gates_of(acme), gates_of(acme)
    gates.failed(LANE, Unavailable("down"))
    acme.time_passes()
    gates.refresh()
    other.refresh()
    assert (gates.closed(LANE), gates.room(LANE, 16), gates.half_open(LANE)) == (None, 1, True)
    with capture_logs() as logs:
        gates.answered(LANE)
        other.answered(LANE)
    assert [entry["action"] for entry in logs] == ["gate_opened"]
    assert (gates.room(LANE, 16), gates_of(acme).room(LANE, 16)) == (16, 16)


def test_a_try_that_fails_closes_it_for_longer(acme):
    gates = gates_of(acme)
    waits = []
    for _ in range(4):
        gates.failed(LANE, Unavailable("down"))
        waits.append(seconds_closed(acme))
        acme.time_passes()
        gates.refresh()
    assert waits == sorted(waits)
    assert waits[0] <= 2
    assert waits[3] >= 11


def test_several_failures_at_once_are_one_closure(acme):
    gates = gates_of(acme)
    for _ in range(5):
        gates.failed(LANE, Unavailable("down"))
    assert queries.closed_gates(acme.ledger)[LANE].closures == 1


def test_a_half_open_lane_closes_at_its_first_fault(acme):
    gates = gates_of(acme)
    gates.failed(LANE, Unavailable("down"))
    acme.time_passes()
    gates.refresh()
    assert gates.failed(LANE, FAULT)
    assert gates.closed(LANE) == "500"


def test_faults_in_a_row(acme):
    gates = gates_of(acme)
    assert [gates.failed(LANE, FAULT) for _ in range(MOST_FAULTS)] == [False] * (MOST_FAULTS - 1) + [True]
    assert gates.failed(LANE, FAULT)


def test_no_answer_is_a_fault(acme):
    gates = gates_of(acme)
    assert [gates.failed(LANE, TryLater("no answer")) for _ in range(MOST_FAULTS)][-1]


@pytest.mark.parametrize("answer", [None, Refused("400", status=400), TryLater("409", status=409)])
def test_an_answer_forgets_the_faults(acme, answer):
    gates = gates_of(acme)
    for _ in range(3):
        for _ in range(MOST_FAULTS - 1):
            assert not gates.failed(LANE, FAULT)
        if answer is None:
            gates.answered(LANE)
        else:
            assert not gates.failed(LANE, answer)
    assert gates.closed(LANE) is None


def test_faults_of_other_lanes_do_not_add_up(acme):
    gates = gates_of(acme)
    for _ in range(MOST_FAULTS - 1):
        assert not gates.failed(LANE, FAULT)
        assert not gates.failed("acme:south", FAULT)


def test_refused_credentials_close_it_at_once(acme):
    gates = gates_of(acme)
    assert gates.failed(LANE, Misconfigured("401 who are you", status=401))
    assert gates.closed(LANE) == "401 who are you"
