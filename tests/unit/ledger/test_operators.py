"""What people order is done once, only as it was previewed, and audited in the same commit."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from ledger import by_hand, interrupts, queries, records, sending, signals, upkeep
from ledger.by_hand import MovedOn
from ledger.connection import Ledger
from ledger.models import audit
from ledger.records import Claim
from ledger.signals import Signal
from orders.outcomes import Done, Planned
from orders.states import State
from tasks.base import Job

PAID = (Planned("erp.order", awaits="paid", recheck=60.0), Planned("acme.ship"))


def shown(ledger: Ledger, order: int) -> dict:
    return queries.find_order(ledger, str(order))[0]


def claim(ledger: Ledger, order: int) -> Claim:
    sending.take_ready_orders(ledger, [order])
    row = shown(ledger, order)
    claimed = records.claim(ledger, order, row["position"], row["step"], "w1")
    assert claimed is not None
    return claimed


def park(ledger: Ledger, order: int, state: State = State.PARKED) -> dict:
    records.park(ledger, claim(ledger, order), "no such product", 422, state=state)
    return shown(ledger, order)


def advance(ledger: Ledger, order: int, steps: int) -> None:
    for _ in range(steps):
        records.done(ledger, claim(ledger, order), Done(), State.READY)


def audited(ledger: Ledger) -> list[tuple[str, str, int]]:
    with ledger.reading() as connection:
        wanted = select(audit.c.who, audit.c.action, audit.c.order_id).order_by(audit.c.id)
        return [tuple(row) for row in connection.execute(wanted)]


class TestReplay:
    def test_every_step_behind_it_looks_first(self, ledger, order):
        advance(ledger, order, 1)
        row = park(ledger, order)
        by_hand.replay(ledger, order, row["version"], 0, "ann")
        first = claim(ledger, order)
        assert Job(ledger, first).look
        recorded = records.done(ledger, first, Done(), State.RUNNING)
        assert recorded is not None
        second = recorded.next
        assert second is not None
        assert (second.tries, Job(ledger, second).look) == (1, True)

    def test_a_step_that_waits_for_the_rest_looks_again(self, ledger, order):
        """It ran, as what it waited for had come in part: it must not wait for that alone from now on."""
        advance(ledger, order, 2)
        signals.signal(ledger, [Signal(order, "numbered", "erp:1")])
        records.wait_again(ledger, claim(ledger, order), "numbered", "1 of 2", None, more=False, after=3600.0)
        row = shown(ledger, order)
        assert row["state"] == "waiting"
        by_hand.replay(ledger, order, row["version"], None, "ann")
        assert shown(ledger, order)["state"] == "ready"

    def test_so_does_one_that_stopped_on_such_a_look(self, ledger, order):
        advance(ledger, order, 2)
        signals.signal(ledger, [Signal(order, "numbered", "erp:1")])
        records.wait_again(ledger, claim(ledger, order), "numbered", "1 of 2", None, more=False, after=0.0)
        upkeep.recheck(ledger, order)
        row = park(ledger, order)
        by_hand.replay(ledger, order, row["version"], None, "ann")
        assert claim(ledger, order).step == "acme.number"

    def test_one_that_has_not_begun_waits_on(self, ledger, order):
        advance(ledger, order, 2)
        row = shown(ledger, order)
        by_hand.replay(ledger, order, row["version"], None, "ann")
        assert (shown(ledger, order)["state"], row["awaits"]) == ("waiting", "numbered")

    def test_ten_operators_make_one_replay(self, ledger, order):
        version = park(ledger, order)["version"]
        barrier = threading.Barrier(10)

        def replay(number: int) -> bool:
            barrier.wait()
            try:
                by_hand.replay(ledger, order, version, None, f"operator {number}")
            except MovedOn:
                return False
            return True

        with ThreadPoolExecutor(10) as pool:
            assert sum(pool.map(replay, range(10))) == 1
        assert len(audited(ledger)) == 1

    def test_a_waiting_order_keeps_being_looked_at(self, ledger, order):
        records.done(ledger, claim(ledger, order), Done(rest=PAID), State.READY)
        row = shown(ledger, order)
        assert row["state"] == State.WAITING
        by_hand.replay(ledger, order, row["version"], None, "ann")
        row = shown(ledger, order)
        assert (row["state"], row["awaits"]) == (State.WAITING, "paid")
        assert row["wake_at"] > queries.database_now(ledger)

    def test_an_ignored_order_that_goes_on_after_all_ends_as_done(self, ledger, order):
        records.end(ledger, claim(ledger, order), "not ours", State.IGNORED, ())
        row = shown(ledger, order)
        assert row["state"] == State.IGNORED
        by_hand.replay(ledger, order, row["version"], 0, "ann")
        records.done(ledger, claim(ledger, order), Done(rest=()), State.READY)
        assert shown(ledger, order)["state"] == State.DONE

    def test_the_acknowledgement_is_for_the_next_try_alone(self, ledger, order):
        row = park(ledger, order, State.IN_DOUBT)
        by_hand.replay(ledger, order, row["version"], None, "ann", acknowledged=True)
        held = claim(ledger, order)
        assert Job(ledger, held).acknowledged
        records.retry(ledger, held, "no answer", 0.0, None)
        assert not Job(ledger, claim(ledger, order)).acknowledged

    def test_nor_is_it_for_another_step_that_takes_its_place(self, ledger, order):
        row = park(ledger, order, State.IN_DOUBT)
        by_hand.replay(ledger, order, row["version"], None, "ann", acknowledged=True)
        interrupts.interrupt(ledger, order, "gone", (Planned("erp.cancel"),), State.CANCELLED)
        held = claim(ledger, order)
        assert (held.step, held.position) == ("erp.cancel", row["position"])
        records.retry(ledger, held, "no answer", 0.0, None)
        assert not Job(ledger, claim(ledger, order)).acknowledged

    def test_without_one_a_step_in_doubt_stays_so(self, ledger, order):
        row = park(ledger, order, State.IN_DOUBT)
        by_hand.replay(ledger, order, row["version"], None, "ann")
        assert not Job(ledger, claim(ledger, order)).acknowledged


class TestSkip:
    def test_the_order_goes_on_behind_what_did_happen(self, ledger, order):
        row = park(ledger, order, State.IN_DOUBT)
        by_hand.skip(ledger, order, row["version"], "ann")
        row = shown(ledger, order)
        assert (row["state"], row["step"], row["error"]) == (State.READY, "erp.order", None)
        assert audited(ledger) == [("ann", "skip", order)]

    def test_it_waits_there_for_the_signal_it_needs(self, ledger, order):
        advance(ledger, order, 1)
        row = park(ledger, order, State.IN_DOUBT)
        by_hand.skip(ledger, order, row["version"], "ann")
        assert (shown(ledger, order)["state"], shown(ledger, order)["awaits"]) == (State.WAITING, "numbered")

    def test_behind_the_last_step_the_order_is_done(self, ledger, order):
        signals.signal(ledger, [Signal(order, "numbered", "erp:1")])
        advance(ledger, order, 3)
        row = park(ledger, order, State.IN_DOUBT)
        by_hand.skip(ledger, order, row["version"], "ann")
        row = shown(ledger, order)
        assert (row["state"], row["step"], row["position"], row["wake_at"]) == (State.DONE, None, 4, None)

    def test_only_doubt_is_skipped(self, ledger, order):
        row = park(ledger, order)
        with pytest.raises(MovedOn, match="not in doubt"):
            by_hand.skip(ledger, order, row["version"], "ann")
        assert audited(ledger) == []

    def test_not_what_has_moved_on(self, ledger, order):
        row = park(ledger, order, State.IN_DOUBT)
        with pytest.raises(MovedOn):
            by_hand.skip(ledger, order, row["version"] - 1, "ann")


class TestRelease:
    def test_an_order_that_waits_for_its_payment_is_fetched_again(self, ledger, order):
        records.done(ledger, claim(ledger, order), Done(rest=PAID), State.READY)
        assert by_hand.release(ledger, order, "acme.fetch", "ann") == State.READY
        held = claim(ledger, order)
        assert (held.step, held.facts["released"]) == ("acme.fetch", True)

    def test_an_order_parked_at_the_gate_goes_through_it(self, ledger, order):
        park(ledger, order)
        assert by_hand.release(ledger, order, "acme.fetch", "ann") == State.READY
        assert claim(ledger, order).step == "acme.fetch"

    def test_an_order_that_stands_elsewhere_stays_there(self, ledger, order):
        advance(ledger, order, 1)
        park(ledger, order)
        assert by_hand.release(ledger, order, "acme.fetch", "ann") == State.PARKED
        assert (shown(ledger, order)["step"], shown(ledger, order)["error"]) == ("erp.order", "no such product")

    def test_one_in_a_workers_hands_learns_it_and_keeps_its_claim(self, ledger, order):
        held = claim(ledger, order)
        assert by_hand.release(ledger, order, "acme.fetch", "ann") == State.RUNNING
        recorded = records.done(ledger, held, Done(facts={"held": 1}, rest=PAID), State.READY)
        assert recorded is not None
        assert shown(ledger, order)["facts"] == {"held": 1, "released": True}

    def test_twice_is_once(self, ledger, order):
        by_hand.release(ledger, order, "acme.fetch", "ann")
        version = shown(ledger, order)["version"]
        by_hand.release(ledger, order, "acme.fetch", "bob")
        assert audited(ledger) == [("ann", "release", order)]
        assert shown(ledger, order)["version"] == version

    def test_a_finished_order_is_not_released(self, ledger, order):
        interrupts.interrupt(ledger, order, "gone", (), State.CANCELLED)
        assert by_hand.release(ledger, order, "acme.fetch", "ann") is None


def test_a_cancellation_and_a_signal_say_who(ledger, order):
    signals.signal(ledger, [Signal(order, "shipped", "operator:ann:1")], who="ann")
    interrupts.interrupt(ledger, order, "cancelled by ann", (Planned("erp.cancel"),), State.CANCELLED, who="ann")
    assert audited(ledger) == [("ann", "signal", order), ("ann", "cancelled", order)]
    assert interrupts.interrupt(ledger, order, "again", (Planned("erp.cancel"),), State.CANCELLED, who="bob") is None
    assert len(audited(ledger)) == 2
    assert [entry["who"] for entry in queries.timeline(ledger, order) if entry["kind"] == "audit"] == ["ann", "ann"]


def test_a_name_longer_than_any_id_is_no_order(ledger, order):
    assert queries.find_order(ledger, "9" * 30) == []
