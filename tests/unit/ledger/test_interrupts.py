"""Whoever stops an order, and whenever: a cancellation is never lost, and what comes too late is told."""

import pytest

from ledger import by_hand, intake, interrupts, queries, records, sending
from ledger.connection import Ledger
from ledger.records import Claim
from orders.arrival import Arrival
from orders.outcomes import Done, Planned
from orders.states import State

TAKE_BACK = (Planned("erp.cancel"), Planned("acme.cancel"))


def claim(ledger: Ledger, order: int) -> Claim:
    sending.take_ready_orders(ledger, [order])
    row = shown(ledger, order)
    claimed = records.claim(ledger, order, row["position"], row["step"], "w1")
    assert claimed is not None
    return claimed


def shown(ledger: Ledger, order: int) -> dict:
    return queries.find_order(ledger, str(order))[0]


def at(ledger: Ledger, order: int, steps: int) -> Claim:
    """Held before the step behind so many."""
    for _ in range(steps):
        records.done(ledger, claim(ledger, order), Done(signals=("numbered",)), State.READY)
    return claim(ledger, order)


def cancel(ledger: Ledger, order: int) -> str | None:
    return interrupts.interrupt(ledger, order, "cancelled by ann", TAKE_BACK, State.CANCELLED, who="ann")


def refuse(ledger: Ledger, order: int, source: str = "erp:7") -> bool:
    return interrupts.stop_for_a_person(ledger, order, source, "the ERP refuses the order: no such product")


def ended(ledger: Ledger, held: Claim) -> dict:
    """How the order stands when the step that was held has ended, and what waited for that is carried out."""
    records.done(ledger, held, Done(), State.READY)
    interrupts.apply_interrupt(ledger, held.id)
    return shown(ledger, held.id)


def names(ledger: Ledger, order: int) -> list[str]:
    return [step["name"] for step in queries.plan_of(ledger, order)]


def problems(ledger: Ledger) -> list[str]:
    return [row["problem"] for row in queries.odd_events(ledger)]


def handed_over(ledger: Ledger) -> int:
    """A finished order of which nothing was left to do once the ERP had it."""
    arrival = Arrival("default", "2", "row:2", "row", "{}", (Planned("erp.order"),), "R-2")
    (order,) = intake.take_in(ledger, "acme", [arrival]).new
    records.done(ledger, claim(ledger, order), Done(), State.READY)
    assert shown(ledger, order)["state"] == "done"
    return order


class TestACancellationAndARefusal:
    @pytest.mark.parametrize("first", ["cancel", "refuse"])
    def test_while_a_step_runs_the_cancellation_counts(self, ledger, order, first):
        held = at(ledger, order, 2)
        one, other = (cancel, refuse) if first == "cancel" else (refuse, cancel)
        assert one(ledger, order)
        other(ledger, order)
        row = ended(ledger, held)
        assert (row["state"], row["step"], row["ending"]) == ("ready", "erp.cancel", "cancelled")

    def test_a_cancellation_is_not_replaced_by_a_new_plan_or_another_cancellation(self, ledger, order):
        held = at(ledger, order, 1)
        assert cancel(ledger, order) == "running"
        assert interrupts.interrupt(ledger, order, "anew", (Planned("acme.fetch"),), State.DONE) is None
        assert interrupts.interrupt(ledger, order, "gone", (Planned("acme.gone"),), State.CANCELLED) is None
        assert ended(ledger, held)["step"] == "erp.cancel"

    def test_that_the_erp_refuses_what_is_being_cancelled_is_no_news(self, ledger, order):
        records.let_go(ledger, order, at(ledger, order, 2).fence)
        cancel(ledger, order)
        records.done(ledger, claim(ledger, order), Done(), State.READY)
        records.park(ledger, claim(ledger, order), "cancel it at their page", None, recheck=3600.0)
        before = shown(ledger, order)
        assert refuse(ledger, order) is False
        assert shown(ledger, order) == before
        assert before["step"] == "acme.cancel"
        assert before["wake_at"] is not None


class TestTooLate:
    def test_a_cancellation_during_the_last_step_is_shown(self, ledger, order):
        held = at(ledger, order, 3)
        assert cancel(ledger, order) == "running"
        assert ended(ledger, held)["state"] == "done"
        assert problems(ledger) == [f"cancelled by ann, but order {order} was done by then: see to it by hand"]
        assert "late" in [row["what"] for row in queries.timeline(ledger, order) if row["kind"] == "event"]

    def test_so_is_a_refusal(self, ledger, order):
        held = at(ledger, order, 3)
        assert refuse(ledger, order)
        assert ended(ledger, held)["state"] == "done"
        assert problems(ledger) == [
            f"the ERP refuses the order: no such product, but order {order} was done by then: see to it by hand"
        ]

    def test_a_finished_order_is_stopped_by_nobody(self, ledger, order):
        records.done(ledger, at(ledger, order, 3), Done(), State.READY)
        assert cancel(ledger, order) is None
        assert refuse(ledger, order) is False
        assert shown(ledger, order)["state"] == "done"


class TestNothingWasLeftToDoOnceTheErpHadIt:
    """So the ERP looks at the order when it is done here."""

    def test_a_refusal_parks_it_and_a_replay_puts_it_there_again(self, ledger):
        order = handed_over(ledger)
        assert refuse(ledger, order)
        row = shown(ledger, order)
        assert (row["state"], row["step"]) == ("parked", "erp.order")
        by_hand.replay(ledger, order, row["version"], None, "ann")
        assert claim(ledger, order).step == "erp.order"

    def test_a_cancellation_takes_it_back(self, ledger):
        order = handed_over(ledger)
        assert cancel(ledger, order) == "ready"
        assert (claim(ledger, order).step, names(ledger, order)) == ("erp.cancel", ["erp.order", *_names(TAKE_BACK)])

    @pytest.mark.parametrize("what", [cancel, refuse])
    def test_also_when_it_comes_while_the_step_runs(self, ledger, what):
        arrival = Arrival("default", "2", "row:2", "row", "{}", (Planned("erp.order"),), "R-2")
        (order,) = intake.take_in(ledger, "acme", [arrival]).new
        held = claim(ledger, order)
        assert what(ledger, order)
        row = ended(ledger, held)
        assert (row["state"], row["step"]) == (("ready", "erp.cancel") if what is cancel else ("parked", "erp.order"))
        assert problems(ledger) == []


def _names(plan: tuple[Planned, ...]) -> list[str]:
    return [planned.name for planned in plan]


class TestOnlyWhereItStands:
    ANEW = (Planned("acme.fetch"),)

    def again(self, ledger: Ledger, order: int, *states: State) -> str | None:
        return interrupts.interrupt(ledger, order, "anew", self.ANEW, State.DONE, only=("erp.order", states))

    def test_elsewhere_nothing_happens(self, ledger, order):
        assert self.again(ledger, order, State.READY) is None
        assert names(ledger, order)[1:] != []

    def test_nor_in_another_state(self, ledger, order):
        held = at(ledger, order, 1)
        assert self.again(ledger, order, State.READY, State.RETRYING) is None
        assert ended(ledger, held)["step"] == "acme.number"

    def test_there_it_does(self, ledger, order):
        records.let_go(ledger, order, at(ledger, order, 1).fence)
        assert self.again(ledger, order, State.READY) == "ready"
        assert shown(ledger, order)["step"] == "acme.fetch"
