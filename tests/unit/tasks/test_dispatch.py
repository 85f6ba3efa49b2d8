"""A bounded window of orders in flight, shared fairly, and nothing for a remote in trouble."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from ledger import intake, queries, remotes, sending, upkeep
from orders.arrival import Arrival
from orders.outcomes import Done, Planned
from tasks.dispatch import Dispatcher
from tests.unit.tasks.conftest import Acme, Worker

ONE = (Planned("acme.one"),)


def sent(acme: Acme, worker: Worker) -> Counter[str]:
    """How many messages there are for each account."""
    accounts = {row["id"]: row["account"] for row in queries.listing(acme.ledger, queries.Filter())}
    return Counter(accounts[run.order_id] for run in worker.queue)


def half_open(acme: Acme, worker: Worker, lane: str = "acme:north") -> None:
    """The lane was closed, and its time is over."""
    remotes.close_gate(acme.ledger, lane, 60.0, "down")
    acme.time_passes()
    worker.gates.refresh()


class TestWindow:
    def test_no_more_than_the_window_is_in_flight(self, acme_on_both):
        acme = acme_on_both
        acme.step("acme.one", lambda job, partner: Done())
        acme.take_in(*range(30), plan=ONE)
        worker = acme.worker(window=8)
        assert [worker.dispatcher.fill(), worker.dispatcher.fill()] == [8, 0]
        assert (len(worker.queue), queries.in_flight(acme.ledger, "acme")) == (8, 8)
        for _ in range(3):
            worker.run(worker.queue.popleft())
        assert worker.dispatcher.fill() == 3
        worker.work()
        assert [acme.state(number) for number in range(30)] == ["done"] * 30

    def test_each_system_has_its_own(self, acme):
        worker = acme.worker(window=4)
        taken: list[str] = []
        lanes = (("acme", "acme:north"), ("other", "other:north"))
        dispatcher = Dispatcher(acme.ledger, worker.gates, lanes, lambda system, run: taken.append(system), window=4)
        for system in ("acme", "other"):
            rows = [Arrival("north", str(n), f"row:{n}", "row", "{}", ONE) for n in range(10)]
            intake.take_in(acme.ledger, system, rows)
        assert dispatcher.fill() == 8
        assert Counter(taken) == {"acme": 4, "other": 4}

    def test_calls_at_once_in_one_process_are_one(self, acme):
        acme.take_in(*range(100), plan=ONE)
        worker = acme.worker(window=10)
        barrier = threading.Barrier(8)

        def fill(_: int) -> int:
            barrier.wait(10)
            return worker.dispatcher.fill()

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(fill, range(8))) == 10
        assert len({run.order_id for run in worker.queue}) == 10

    def test_a_run_ends_before_a_step_that_waits(self, acme):
        plan = (Planned("acme.one"), Planned("acme.two"), Planned("acme.three", awaits="told"))
        acme.take_in(1, plan=plan)
        worker = acme.worker()
        worker.dispatcher.fill()
        assert [run.links for run in worker.queue] == [((0, "acme.one"), (1, "acme.two"))]

    def test_what_is_due_first_goes_first(self, acme):
        first = acme.take_in(1, plan=ONE)
        second = acme.take_in(2, plan=ONE)
        worker = acme.worker(window=1)
        worker.dispatcher.fill()
        assert ([run.order_id for run in worker.queue], second != first) == (first, True)


class TestFairness:
    def test_a_backlog_does_not_starve_another_lane(self, acme):
        acme.take_in(*range(500), plan=ONE)
        acme.take_in(*range(500, 504), account="south", plan=ONE)
        worker = acme.worker(window=16)
        worker.dispatcher.fill()
        assert sent(acme, worker) == {"north": 12, "south": 4}

    def test_shares_are_equal_while_both_have_a_backlog(self, acme):
        acme.step("acme.one", lambda job, partner: Done())
        acme.take_in(*range(60), plan=ONE)
        acme.take_in(*range(100, 160), account="south", plan=ONE)
        acme.take_in(*range(200, 260), account="north", plan=(Planned("erp.one"),))
        worker = acme.worker(window=9)
        worker.dispatcher.fill()
        lanes = Counter(run.links[0][1] for run in worker.queue)
        assert lanes == {"acme.one": 6, "erp.one": 3}
        assert sent(acme, worker)["south"] == 3

    def test_with_room_for_one_each_lane_has_its_turn(self, acme):
        acme.step("acme.one", lambda job, partner: Done())
        acme.take_in(*range(40), plan=ONE)
        acme.take_in(*range(100, 140), account="south", plan=ONE)
        worker = acme.worker(window=1)
        went: Counter[str] = Counter()
        for _ in range(30):
            worker.dispatcher.fill()
            went += sent(acme, worker)
            worker.run(worker.queue.popleft())
        assert min(went["north"], went["south"]) >= 10

    def test_what_one_lane_does_not_need_the_other_gets(self, acme):
        acme.step("acme.one", lambda job, partner: Done())
        acme.take_in(*range(40), plan=ONE)
        worker = acme.worker(window=12)
        for _ in range(3):  # whichever lane has the first turn
            assert worker.dispatcher.fill() == 12
            while worker.queue:
                worker.run(worker.queue.popleft())


class TestTrouble:
    def test_a_closed_lane_gets_nothing(self, acme):
        acme.take_in(*range(20), plan=ONE)
        acme.take_in(*range(20, 24), account="south", plan=ONE)
        worker = acme.worker(window=16)
        remotes.close_gate(acme.ledger, "acme:north", 60.0, "down")
        worker.gates.refresh()
        worker.dispatcher.fill()
        assert sent(acme, worker) == {"south": 4}
        assert acme.state(1) == "ready"

    def test_a_half_open_lane_gets_one_order(self, acme):
        acme.take_in(*range(20), plan=ONE)
        acme.take_in(*range(20, 24), account="south", plan=ONE)
        worker = acme.worker(window=16)
        half_open(acme, worker)
        worker.dispatcher.fill()
        assert sent(acme, worker) == {"north": 1, "south": 4}

    @pytest.mark.parametrize("window", [1, 2, 3])
    def test_and_no_second_one_as_long_as_that_is_under_way(self, acme, window):
        acme.take_in(*range(20), plan=ONE)
        worker = acme.worker(window=window)
        half_open(acme, worker)
        for _ in range(5):
            worker.dispatcher.fill()
        assert sent(acme, worker) == {"north": 1}

    def test_a_crowded_lane_gets_what_it_has_threads_for(self, acme, monkeypatch):
        monkeypatch.setattr("tasks.bulkhead.SLOW", -1.0)  # whatever is at work counts as slow
        acme.take_in(*range(20), plan=ONE)
        worker = acme.worker(window=16)
        crowd = worker.gates.bulkhead
        crowd._most = 2
        with ThreadPoolExecutor(1) as pool:
            pool.submit(crowd.enter, "acme:north").result()
        assert crowd.enter("acme:north")
        assert not crowd.enter("acme:north")
        worker.dispatcher.fill()
        assert not worker.queue
        crowd.leave("acme:north")
        worker.dispatcher.fill()
        assert sent(acme, worker) == {"north": 1}


class TestBrokerAway:
    def test_the_orders_are_ready_again_and_nothing_is_lost(self, acme_on_both):
        acme = acme_on_both
        acme.step("acme.one", lambda job, partner: Done())
        acme.take_in(*range(10), plan=ONE)
        worker = acme.worker(window=6)
        worker.broker_away = True
        assert worker.dispatcher.fill() == 0
        assert {acme.state(number) for number in range(10)} == {"ready"}
        assert queries.in_flight(acme.ledger, "acme") == 0
        worker.broker_away = False
        worker.work()
        assert [acme.attempts(number) for number in range(10)] == [[("acme.one", "done")]] * 10

    def test_what_was_sent_before_it_went_away_stays_sent(self, acme):
        acme.take_in(*range(6), plan=ONE)
        worker = acme.worker(window=6)

        class TwoMore:
            """The broker goes away after two messages."""

            def append(self, run: sending.ToSend) -> None:
                messages.append(run)
                worker.broker_away = len(messages) == 2

        messages: list[sending.ToSend] = []
        worker.queue = TwoMore()
        assert worker.dispatcher.fill() == 2
        states = Counter(acme.state(number) for number in range(6))
        assert states == {"queued": 2, "ready": 4}


class TestSendNow:
    def test_it_respects_the_window(self, acme):
        orders = acme.take_in(*range(10), plan=ONE)
        worker = acme.worker(window=4)
        assert worker.dispatcher.send_now("acme", orders) == 4
        assert worker.dispatcher.send_now("acme", orders) == 0
        assert queries.in_flight(acme.ledger, "acme") == 4
        assert [run.order_id for run in worker.queue] == orders[:4]

    def test_what_cannot_go_is_left_alone(self, acme):
        (waiting,) = acme.take_in(1, plan=(Planned("acme.one", awaits="told"),))
        (held,) = acme.take_in(2, plan=ONE)
        acme.claim(held)
        worker = acme.worker()
        assert worker.dispatcher.send_now("acme", [waiting, held, 999]) == 0
        assert (acme.state(1), acme.state(2)) == ("waiting", "running")

    def test_the_broker_may_be_away(self, acme):
        orders = acme.take_in(*range(3), plan=ONE)
        worker = acme.worker()
        worker.broker_away = True
        assert worker.dispatcher.send_now("acme", orders) == 0
        assert {acme.state(number) for number in range(3)} == {"ready"}

    @pytest.mark.parametrize("half", [True, False])
    @pytest.mark.parametrize("lane", ["acme:north", "erp"])
    def test_while_a_remote_is_in_trouble_all_wait_for_their_turn(self, acme, lane, half):
        orders = acme.take_in(*range(5), plan=ONE)
        worker = acme.worker()
        remotes.close_gate(acme.ledger, lane, 60.0, "down")
        worker.gates.refresh()
        if half:
            half_open(acme, worker, lane)
        assert worker.dispatcher.send_now("acme", orders) == 0
        worker.dispatcher.fill()
        assert len(worker.queue) == {"acme:north": int(half), "erp": 5}[lane]


class TestSuspects:
    def test_one_at_a_time_and_only_by_the_sweep(self, acme):
        orders = acme.take_in(*range(3), plan=ONE)
        worker = acme.worker()
        for order in orders:
            for crash in range(2):
                claim = acme.claim(order, f"dead{crash}")
                assert upkeep.take_over(acme.ledger, order, claim.fence, park_at=9, reason="died") == "ready"
        assert worker.dispatcher.fill() == 0
        assert [worker.dispatcher.send_suspect(), worker.dispatcher.send_suspect()] == [1, 0]
        assert [run.order_id for run in worker.queue] == [orders[0]]
        remotes.close_gate(acme.ledger, "acme:north", 60.0, "down")
        worker.gates.refresh()
        assert worker.dispatcher.send_suspect() == 0
