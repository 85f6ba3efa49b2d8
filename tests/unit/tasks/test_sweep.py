"""What stands still is moved: lost messages, dead workers, rechecks, interrupts."""

import pytest
from sqlalchemy import literal, update

from databases.clock import later
from ledger import interrupts, leases, queries, records, remotes, upkeep
from ledger.models import orders, workers
from orders import backoff
from orders.outcomes import Done, Planned
from orders.states import State
from tasks.dispatch import BrokerAway
from tests.unit.tasks.conftest import Acme

ONE = (Planned("acme.one"),)


def is_silent(acme: Acme, worker: str) -> None:
    """This worker gave its last sign of life longer ago than its lease lasts."""
    with acme.ledger.transaction() as connection:
        long_ago = later(literal(-leases.WORKER_LEASE - 1.0))
        connection.execute(update(workers).where(workers.c.name == worker).values(seen_at=long_ago))


class TestDeadWorkers:
    def test_what_a_silent_worker_held_is_taken_over_and_looks_first(self, acme_on_both):
        acme = acme_on_both
        looks: list[bool] = []

        def one(job, partner):
            looks.append(job.look)
            return Done()

        acme.step("acme.one", one)
        (order,) = acme.take_in(1, plan=ONE)
        acme.worker("w2")
        worker = acme.worker()
        acme.claim(order, "w2")
        worker.sweep.run()
        assert acme.state(1) == "running"  # it shows life
        is_silent(acme, "w2")
        acme.time_passes()
        worker.sweep.run()
        worker.work()
        assert acme.attempts(1) == [("acme.one", "lost"), ("acme.one", "done")]
        assert looks == [True]
        (lost, _) = [entry for entry in queries.timeline(acme.ledger, order) if entry["kind"] == "attempt"]
        assert lost["detail"] == "worker w2 gave no sign of life"

    def test_a_claim_older_than_any_step_is_taken_back_from_the_living(self, acme):
        (order,) = acme.take_in(1, plan=ONE)
        acme.worker("w2")
        acme.claim(order, "w2")
        with acme.ledger.transaction() as connection:
            connection.execute(update(orders).values(wake_at=later(literal(-1.0))))
        acme.worker().sweep.run()
        assert acme.state(1) == "ready"

    def test_an_order_that_outlives_every_worker_is_parked(self, acme):
        (order,) = acme.take_in(1, plan=ONE)
        worker = acme.worker()
        for _ in range(backoff.MOST_LOST):
            assert acme.state(1) != "parked"
            acme.time_passes()
            assert records.claim(acme.ledger, order, 0, "acme.one", "dead") is not None
            worker.sweep.run()
        assert acme.state(1) == "parked"
        assert f"{backoff.MOST_LOST} workers in a row were lost" in acme.order(1)["error"]


class TestOwnLeftOvers:
    def left_over(self, acme: Acme) -> int:
        """The ledger says that w1 holds the order since a while."""
        (order,) = acme.take_in(1, plan=ONE)
        acme.claim(order, "w1")
        with acme.ledger.transaction() as connection:
            connection.execute(update(orders).values(claimed_at=later(literal(-3.0))))
        return order

    def test_a_claim_that_no_thread_works_on_is_given_back(self, acme):
        worker = acme.worker()
        self.left_over(acme)
        worker.sweep.run()
        assert acme.state(1) == "ready"
        assert not queries.held_by(acme.ledger, "w1")

    def test_one_that_a_thread_works_on_is_not(self, acme):
        worker = acme.worker()
        held = []

        def one(job, partner):
            with acme.ledger.transaction() as connection:
                connection.execute(update(orders).values(claimed_at=later(literal(-3.0))))
            worker.sweep.run()
            held.append(acme.state(1))
            return Done()

        acme.step("acme.one", one)
        acme.take_in(1, plan=ONE)
        worker.work()
        assert (held, acme.state(1)) == (["running"], "done")


class TestLostMessages:
    def test_a_message_that_never_came_is_sent_again(self, acme_on_both):
        acme = acme_on_both
        acme.step("acme.one", lambda job, partner: Done())
        acme.take_in(*range(3), plan=ONE)
        worker = acme.worker()
        worker.dispatcher.fill()
        worker.queue.clear()  # the broker was flushed
        worker.sweep.run()
        assert worker.work() == []  # nobody misses them yet
        acme.time_passes()
        worker.sweep.run()
        worker.work()
        assert [acme.attempts(number) for number in range(3)] == [[("acme.one", "done")]] * 3

    def test_a_long_queue_explains_the_delay(self, acme):
        acme.take_in(*range(4), plan=ONE)
        worker = acme.worker(window=4)
        worker.dispatcher.fill()
        acme.time_passes()
        worker.sweep.run()
        assert {acme.state(number) for number in range(4)} == {"queued"}
        assert queries.overdue(acme.ledger, "acme", "acme:north") == {}

    def test_a_double_of_a_message_does_no_harm(self, acme):
        acme.step("acme.one", lambda job, partner: Done())
        acme.take_in(1, plan=ONE)
        worker = acme.worker()
        worker.dispatcher.fill()
        acme.time_passes()
        worker.sweep.run()
        worker.dispatcher.fill()
        assert len(worker.queue) == 2
        worker.work()
        assert acme.attempts(1) == [("acme.one", "done")]


class TestBrokerAway:
    def test_the_next_turn_goes_on(self, acme):
        acme.step("acme.one", lambda job, partner: Done())
        acme.take_in(1, plan=ONE)
        worker = acme.worker()
        worker.dispatcher.fill()
        worker.queue.clear()
        acme.time_passes()
        worker.broker_away = True
        with pytest.raises(BrokerAway):
            worker.sweep.run()
        acme.time_passes()
        with pytest.raises(BrokerAway):  # it is its turn again, and it does not wait for itself
            worker.sweep.run()
        worker.broker_away = False
        acme.time_passes()
        worker.sweep.run()
        worker.work()
        assert acme.state(1) == "done"

    def test_another_worker_may_have_the_next_turn(self, acme):
        acme.take_in(1, plan=ONE)
        first, second = acme.worker("w1"), acme.worker("w2")
        first.dispatcher.fill()
        acme.time_passes()
        first.broker_away = True
        with pytest.raises(BrokerAway):
            first.sweep.run()
        acme.time_passes()
        second.sweep.run()
        assert acme.state(1) == "ready"

    def test_a_holder_whose_end_was_lost_takes_its_own_turn_again(self, acme):
        acme.worker("w1")
        other = acme.worker("w2")
        assert upkeep.take_tick(acme.ledger, "sweep", 1.0, "w1")  # and its connection is gone
        acme.time_passes()
        assert not upkeep.take_tick(acme.ledger, "sweep", 1.0, "w2")
        assert upkeep.take_tick(acme.ledger, "sweep", 1.0, "w1")
        is_silent(acme, "w1")
        acme.time_passes()
        assert upkeep.take_tick(acme.ledger, "sweep", 1.0, other.pulse.worker)


class TestTurns:
    def test_one_worker_sweeps_and_the_others_give_back_theirs(self, acme):
        acme.take_in(1, plan=ONE)
        first, second = acme.worker("w1"), acme.worker("w2")
        first.sweep.run()
        first.dispatcher.fill()
        first.queue.clear()
        with acme.ledger.transaction() as connection:
            connection.execute(update(orders).values(wake_at=later(literal(-1.0))))
        second.sweep.run()  # it is not time for another turn yet
        assert acme.state(1) == "queued"
        acme.time_passes()
        second.sweep.run()
        assert acme.state(1) == "ready"

    def test_every_turn_learns_which_remotes_are_closed(self, acme):
        worker = acme.worker()
        remotes.close_gate(acme.ledger, "acme:north", 60.0, "down")
        assert worker.gates.closed("acme:north") is None
        worker.sweep.run()
        assert worker.gates.closed("acme:north") == "down"

    def test_interrupts_that_nobody_applied(self, acme):
        (order,) = acme.take_in(1, plan=ONE)
        claim = acme.claim(order)
        interrupts.interrupt(acme.ledger, order, "cancelled there", (), State.CANCELLED)
        records.park(acme.ledger, claim, "no such product", 400)  # and the worker is killed here
        acme.worker().sweep.run()
        assert acme.state(1) == "cancelled"

    def test_a_waiting_order_is_looked_at_by_the_step_before(self, acme):
        calls: list[int] = []

        def one(job, partner):
            calls.append(job.claim.position)
            return Done()

        acme.step("acme.one", one)
        acme.take_in(1, plan=(*ONE, Planned("acme.two", awaits="paid", recheck=60.0)))
        worker = acme.worker()
        worker.work()
        worker.sweep.run()
        worker.work()
        assert calls == [0]
        acme.time_passes()
        worker.sweep.run()
        worker.work()
        assert (calls, acme.state(1)) == ([0, 0], "waiting")

    def test_suspects_go_alone(self, acme):
        numbers = acme.take_in(*range(3), plan=ONE)
        worker = acme.worker()
        for order in numbers:
            for crash in range(2):
                claim = acme.claim(order, f"dead{crash}")
                upkeep.take_over(acme.ledger, order, claim.fence, park_at=9, reason="died")
        for _ in range(3):
            worker.sweep.run()
            acme.ticks_are_due()
        assert [run.order_id for run in worker.queue] == [numbers[0]]
