"""What is committed around an effect that cannot be repeated, on both databases."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import event, update

from ledger import intake, intents, queries, records
from ledger.connection import Ledger
from ledger.models import orders
from ledger.records import Claim
from orders.arrival import Arrival
from orders.errors import Fenced
from orders.outcomes import Planned
from orders.states import State

PLAN = (Planned("acme.book"), Planned("acme.track"))
STEPS = ("acme.book",)


@pytest.fixture
def take_in(ledger: Ledger) -> Callable[..., int]:
    """The ledger's id of a new order, which stands before its booking."""

    def make(name: str, account: str = "default") -> int:
        return intake.take_in(ledger, "acme", [Arrival(account, name, f"row:{name}", "row", "{}", PLAN)]).new[0]

    return make


def stand(ledger: Ledger, order: int, **values: Any) -> None:
    with ledger.statement() as connection:
        connection.execute(update(orders).where(orders.c.id == order).values(**values))


def claimed(ledger: Ledger, order: int) -> Claim:
    claim = records.claim(ledger, order, 0, "acme.book", "w1")
    assert claim is not None
    return claim


# -- turns ------------------------------------------------------------------------------------------------------------


def waits(ledger: Ledger, order: int, seconds: float = 20.0) -> None:
    """The order is told that it is not its turn, and waits."""
    assert not intents.take_turn(ledger, claimed(ledger, order), STEPS)
    claim = records.take_on(ledger, order, 1, "w1")
    assert claim is not None
    assert records.wait_again(ledger, claim, intents.TURN, "waits", None, more=False, after=seconds)


def test_a_turn_is_one_orders_until_it_ends_it(ledger: Ledger, take_in: Callable[..., int]):
    first, second = claimed(ledger, take_in("1")), claimed(ledger, take_in("2"))
    elsewhere = claimed(ledger, take_in("3", "other"))
    assert intents.take_turn(ledger, first, STEPS)
    assert intents.take_turn(ledger, first, STEPS), "its own already: a worker died meanwhile"
    assert not intents.take_turn(ledger, second, STEPS)
    assert intents.take_turn(ledger, elsewhere, STEPS), "another account"
    intents.end_turn(ledger, second)
    assert intents.holds_turn(ledger, first)
    intents.end_turn(ledger, first)
    assert not intents.holds_turn(ledger, first)
    assert intents.take_turn(ledger, second, STEPS)


@pytest.mark.parametrize("state", [State.READY, State.QUEUED, State.RUNNING, State.RETRYING, State.WAITING])
def test_an_order_that_goes_on_keeps_its_turn(ledger: Ledger, take_in: Callable[..., int], state: State):
    first, second = claimed(ledger, take_in("1")), claimed(ledger, take_in("2"))
    assert intents.take_turn(ledger, first, STEPS)
    stand(ledger, first.id, state=state)
    assert not intents.take_turn(ledger, second, STEPS)


@pytest.mark.parametrize(
    "values",
    [{"state": State.PARKED}, {"state": State.IN_DOUBT}, {"state": State.CANCELLED}, {"step": "acme.track"}],
    ids=["parked", "in doubt", "cancelled", "another step"],
)
def test_an_order_that_stands_still_loses_it_and_learns_that(
    ledger: Ledger, take_in: Callable[..., int], values: dict[str, Any]
):
    first, second = claimed(ledger, take_in("1")), claimed(ledger, take_in("2"))
    assert intents.take_turn(ledger, first, STEPS)
    stand(ledger, first.id, **values)
    assert intents.holds_turn(ledger, first), "nobody has come yet"
    assert intents.take_turn(ledger, second, STEPS)
    intents.end_turn(ledger, second)
    assert not intents.holds_turn(ledger, first)


def test_of_many_at_once_one_has_the_turn(ledger: Ledger, take_in: Callable[..., int]):
    claims = [claimed(ledger, take_in(str(number))) for number in range(6)]
    together = threading.Barrier(len(claims))

    def ask(claim: Claim) -> bool:
        together.wait(10)
        return intents.take_turn(ledger, claim, STEPS)

    with ThreadPoolExecutor(len(claims)) as pool:
        assert sorted(pool.map(ask, claims)) == [False] * 5 + [True]


def test_the_end_of_a_turn_wakes_one_that_waits_for_it(ledger: Ledger, take_in: Callable[..., int]):
    first = claimed(ledger, take_in("1"))
    assert intents.take_turn(ledger, first, STEPS)
    later, sooner, elsewhere, otherwise = take_in("2"), take_in("3"), take_in("4", "other"), take_in("5")
    waits(ledger, later, 25.0)
    waits(ledger, sooner, 20.0)
    stand(ledger, elsewhere, state=State.WAITING, awaits=intents.TURN)
    stand(ledger, otherwise, state=State.WAITING, awaits="numbered")
    intents.end_turn(ledger, claimed(ledger, take_in("6")))
    states = [queries.position_of(ledger, order) for order in (sooner, later, elsewhere, otherwise)]
    assert {state for _, _, state in filter(None, states)} == {"waiting"}, "it was not that order's turn"
    intents.end_turn(ledger, first)
    states = [queries.position_of(ledger, order) for order in (sooner, later, elsewhere, otherwise)]
    assert [state for _, _, state in filter(None, states)] == ["ready", "waiting", "waiting", "waiting"]
    assert intents.take_turn(ledger, claimed(ledger, sooner), STEPS)


@pytest.mark.parametrize(("state", "woken"), [(State.WAITING, "waiting"), (State.IN_DOUBT, "ready")])
def test_a_turn_whose_holder_stands_still_is_found(
    ledger: Ledger, take_in: Callable[..., int], state: State, woken: str
):
    first, second, third = claimed(ledger, take_in("1")), take_in("2"), take_in("3")
    assert intents.take_turn(ledger, first, STEPS)
    waits(ledger, second, 3000.0)
    waits(ledger, third, 3500.0)
    stand(ledger, first.id, state=state)
    intents.wake_if_free(ledger, "acme", "other", STEPS)
    intents.wake_if_free(ledger, "acme", "default", STEPS)
    states = [queries.position_of(ledger, order) for order in (second, third)]
    assert [state for _, _, state in filter(None, states)] == [woken, "waiting"]


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_who_is_next_is_found_however_many_wait_for_something_else(ledger: Ledger, take_in: Callable[..., int]):
    first = claimed(ledger, take_in("1"))
    assert intents.take_turn(ledger, first, STEPS)
    made: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, text: str, values: Any, *_: Any) -> None:
        if text.startswith("UPDATE orders"):
            made.append((text, values))

    event.listen(ledger.engine, "before_cursor_execute", note)
    intents.end_turn(ledger, first)
    event.remove(ledger.engine, "before_cursor_execute", note)
    ((text, values),) = made
    with ledger.reading() as connection:
        plan = " ".join(row.detail for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values))
    assert "ix_orders_turn (system=? AND lane=?)" in plan
    assert "TEMP B-TREE" not in plan


# -- facts ------------------------------------------------------------------------------------------------------------


def test_facts_are_there_before_the_step_ends(ledger: Ledger, take_in: Callable[..., int]):
    claim = claimed(ledger, take_in("1"))
    intents.keep_facts(ledger, claim, {"intent": {"above": -1}})
    intents.keep_facts(ledger, claim, {"seen": 1})
    (row,) = queries.find_order(ledger, str(claim.id))
    assert row["facts"] == claim.facts == {"intent": {"above": -1}, "seen": 1}
    assert row["state"] == "running"


def test_who_has_lost_the_claim_keeps_nothing(ledger: Ledger, take_in: Callable[..., int]):
    claim = claimed(ledger, take_in("1"))
    records.let_go(ledger, claim.id, claim.fence)
    with pytest.raises(Fenced):
        intents.keep_facts(ledger, claim, {"intent": 1})
    successor = claimed(ledger, claim.id)
    with pytest.raises(Fenced):
        intents.keep_facts(ledger, claim, {"intent": 1})
    assert queries.find_order(ledger, str(claim.id))[0]["facts"] == successor.facts == {}
    assert claim.facts == {}


# -- results ----------------------------------------------------------------------------------------------------------


def test_a_result_is_one_orders_for_ever(ledger: Ledger, take_in: Callable[..., int]):
    take_in("1")
    take_in("2")
    assert intents.results_of(ledger, "acme", "default", "1") == []
    assert intents.bind(ledger, "acme", "default", "1", "0") == "1"
    assert intents.bind(ledger, "acme", "default", "1", "0") == "1"
    assert intents.bind(ledger, "acme", "default", "2", "0") == "1"
    assert intents.bind(ledger, "acme", "other", "2", "0") == "2"
    assert intents.bind(ledger, "acme", "default", "2", "7") == "2"
    assert intents.owners(ledger, "acme", "default", ["0", "7", "8"]) == {"0": "1", "7": "2"}
    assert intents.owners(ledger, "acme", "default", []) == {}
    assert intents.results_of(ledger, "acme", "default", "1") == ["0"]
    assert intents.results_of(ledger, "acme", "default", "2") == ["7"]


def test_of_many_who_bind_one_result_at_once_one_has_it(ledger: Ledger, take_in: Callable[..., int]):
    names = [str(number) for number in range(6)]
    for name in names:
        take_in(name)
    together = threading.Barrier(len(names))

    def bind(name: str) -> str:
        together.wait(10)
        return intents.bind(ledger, "acme", "default", name, "0")

    with ThreadPoolExecutor(len(names)) as pool:
        assert len(set(pool.map(bind, names))) == 1


def test_to_bind_moves_no_order_and_shows_in_its_timeline(ledger: Ledger, take_in: Callable[..., int]):
    order = take_in("1")
    before = queries.find_order(ledger, str(order))[0]
    intents.bind(ledger, "acme", "default", "1", "0")
    assert queries.find_order(ledger, str(order))[0] == before
    assert queries.odd_events(ledger) == []
    (event,) = [row for row in queries.timeline(ledger, order) if row["what"] == "bound"]
    assert event["detail"] == "bound:0"
