"""Orders are counted without reading the whole ledger every time, and slow reads are repeated less often."""

from collections.abc import Iterator

import pytest
from sqlalchemy import event, update

from ledger import intake
from ledger.connection import Ledger
from ledger.models import orders
from orders.arrival import Arrival
from orders.outcomes import Planned
from orders.states import State
from workers.pace import Paced
from workers.tally import FINISHED, Tally

PLAN = (Planned("acme.fetch"),)


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    opened = Ledger(ledger_url)
    yield opened
    opened.close()


def arrive(ledger: Ledger, *external_ids: str, system: str = "acme") -> list[int]:
    rows = [Arrival("default", name, f"row:{name}", "row", "{}", PLAN, None) for name in external_ids]
    return list(intake.take_in(ledger, system, rows).new)


def move(ledger: Ledger, order: int, state: State) -> None:
    with ledger.transaction() as connection:
        connection.execute(update(orders).where(orders.c.id == order).values(state=state, wake_at=None))


def test_finished_orders_are_those_that_are_not_unfinished(ledger):
    tally = Tally(ledger)
    assert tally.read().orders == {}
    done, cancelled, parked, _ = arrive(ledger, "1", "2", "3", "4")
    arrive(ledger, "1", system="other")
    move(ledger, done, State.DONE)
    move(ledger, cancelled, State.CANCELLED)
    move(ledger, parked, State.PARKED)
    backlog = tally.read()
    assert backlog.orders == {
        ("acme", "ready"): 1,
        ("acme", "parked"): 1,
        ("acme", FINISHED): 2,
        ("other", "ready"): 1,
        ("other", FINISHED): 0,
    }
    assert backlog.number(None, "ready") == 2
    assert backlog.systems == ["acme", "other"]


def test_what_came_a_minute_ago_is_counted_only_once_more(ledger):
    now = [0.0]
    tally = Tally(ledger, clock=lambda: now[0])
    arrive(ledger, "1", "2")
    read: list[tuple[int, int]] = []

    @event.listens_for(ledger.engine, "before_cursor_execute")
    def note(connection, cursor, statement, parameters, context, many):
        values = list(parameters.values()) if isinstance(parameters, dict) else list(parameters)
        if "orders.id >" in statement:
            read.append((values[0], values[1]))

    for second in (0.0, 30.0, 60.0):
        now[0] = second
        assert tally.read().number("acme", "ready") == 2
    new = arrive(ledger, "3")[0]
    move(ledger, new, State.DONE)
    now[0] = 120.0
    assert tally.read().orders == {("acme", "ready"): 2, ("acme", FINISHED): 1}
    old = new - 1
    assert read == [(0, old), (0, old), (0, old), (old, old), (old, old), (old, new)]


def test_the_oldest_waiting_order_ages(ledger):
    arrive(ledger, "1")
    tally = Tally(ledger)
    first = tally.read().oldest_seconds
    while tally.read().oldest_seconds <= first:
        pass
    assert tally.read().oldest_seconds < 60


def test_slow_reads_are_repeated_less_often():
    now = [0.0]
    reads = []

    def read() -> int:
        now[0] += 0.5
        reads.append(now[0])
        return len(reads)

    paced = Paced(read, at_least=1.0, share=0.05, clock=lambda: now[0])
    assert paced.value() == 1
    now[0] = 10.4
    assert paced.value() == 1
    now[0] = 10.5
    assert paced.value() == 2


def test_quick_reads_are_repeated_once_a_while():
    now = [0.0]
    values = iter(range(10))
    paced = Paced(lambda: next(values), at_least=1.0, clock=lambda: now[0])
    assert [paced.value(), paced.value()] == [0, 0]
    now[0] = 1.0
    assert paced.value() == 1


def test_a_read_that_fails_is_tried_again_at_once():
    tries: list[int] = []

    def read() -> int:
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("away")
        return len(tries)

    paced = Paced(read)
    with pytest.raises(ValueError, match="away"):
        paced.value()
    assert paced.value() == 2
