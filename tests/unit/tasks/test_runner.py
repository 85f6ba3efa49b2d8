"""How a step can end, and what the ledger then says: with steps of a made-up system."""

import threading
from typing import Any

import pytest
from sqlalchemy import update
from structlog.testing import capture_logs

from ledger import interrupts, leases, queries, records, remotes, signals, upkeep
from ledger.models import orders
from orders import backoff
from orders.errors import Fenced, InDoubt, Misconfigured, Refused, TryLater, Unavailable, Unclear
from orders.model import Order
from orders.outcomes import Again, Done, Ended, Planned, skipped
from orders.states import State
from tasks.base import Job, StepFunction
from tasks.gates import MOST_FAULTS
from tasks.runner import Ending, Runner
from tests.unit.tasks.conftest import Acme, Worker

ONE = (Planned("acme.one"),)
TWO = (Planned("acme.one"), Planned("acme.two"))
DOCUMENT = Order(reference="R-1", currency="EUR", lines=()).to_json()


def raising(*errors: Exception) -> StepFunction:
    """A step that fails in these ways, one try after another (the last for ever)."""
    left = list(errors)

    def function(job: Job, partner: Any) -> Done:
        raise left.pop(0) if len(left) > 1 else left[0]

    return function


def run(acme: Acme, function: StepFunction, plan: tuple[Planned, ...] = ONE) -> tuple[Worker, Ending]:
    """An order through its first step, whose function is this one."""
    acme.step("acme.one", function)
    acme.take_in(1, plan=plan)
    worker = acme.worker()
    (ending, *_) = worker.work(hold=["acme.two"])
    return worker, ending


def gate(acme: Acme, lane: str = "acme:north") -> queries.Gate | None:
    return queries.closed_gates(acme.ledger).get(lane)


def alerts(logs: Any) -> list[str]:
    return [entry["lane"] for entry in logs if entry.get("action") == "gate_closed"]


class TestGood:
    def test_done(self, acme_on_both):
        acme = acme_on_both
        worker, ending = run(acme, lambda job, partner: Done(detail=f"told {partner.client}", facts={"a": 1}), TWO)
        assert (ending.kind, ending.reason, ending.good) == ("done", "told north", True)
        row = acme.order(1)
        assert (row["step"], row["tries"], row["facts"]) == ("acme.two", 0, {"a": 1})
        assert acme.attempts(1) == [("acme.one", "done")]
        assert not worker.runner.holds(row["id"])

    def test_skipped(self, acme):
        _, ending = run(acme, lambda job, partner: skipped("is there already"))
        assert (ending.kind, ending.good) == ("skipped", True)
        assert (acme.state(1), acme.attempts(1)) == ("done", [("acme.one", "skipped")])

    def test_in_parts(self, acme):
        acme.step("acme.two", lambda job, partner: Done())
        plan = (Planned("acme.one", awaits="told"), Planned("acme.two"))
        (order,) = acme.take_in(1, plan=plan)
        outcomes = [Again("told", "half"), Done("all")]
        acme.step("acme.one", lambda job, partner: outcomes.pop(0))
        worker = acme.worker()
        for source in ("first", "second"):
            assert acme.state(1) == "waiting"
            signals.signal(acme.ledger, [signals.Signal(order, "told", source)])
            worker.work()
        assert acme.attempts(1) == [("acme.one", "partly"), ("acme.one", "done"), ("acme.two", "done")]

    def test_ended_for_want_of_anything_to_do(self, acme):
        _, ending = run(acme, lambda job, partner: Ended("another shop's"), TWO)
        assert (ending.kind, ending.good) == ("ended", True)
        assert (acme.state(1), acme.attempts(1)) == ("ignored", [("acme.one", "ignored")])

    def test_ended_by_a_cancellation_takes_back(self, acme):
        run(acme, lambda job, partner: Ended("cancelled there", cancelled=True), TWO)
        assert acme.state(1) == "cancelled"
        assert acme.attempts(1) == [("acme.one", "cancelled"), ("erp.cancel", "skipped")]

    def test_the_next_step_is_claimed_with_the_record(self, acme):
        acme.step("acme.one", lambda job, partner: Done())
        acme.step("acme.two", lambda job, partner: Done())
        acme.take_in(1, plan=TWO)
        worker = acme.worker()
        endings = worker.work()
        assert [ending.state for ending in endings] == ["running", "done"]
        assert acme.state(1) == "done"

    def test_an_interrupt_stops_between_two_fused_steps(self, acme):
        def interrupted(job: Job, partner: Any) -> Done:
            rest = (Planned("erp.cancel"),)
            interrupts.interrupt(acme.ledger, job.claim.id, "cancelled there", rest, State.CANCELLED)
            return Done()

        acme.step("acme.one", interrupted)
        acme.step("acme.two", lambda job, partner: Done())
        acme.take_in(1, plan=TWO)
        acme.worker().work()
        assert acme.state(1) == "cancelled"
        assert "acme.two" not in [step for step, outcome in acme.attempts(1) if outcome == "done"]


class TestTryLater:
    def test_it_counts_and_comes_back(self, acme_on_both):
        acme = acme_on_both
        seen: list[tuple[int, bool]] = []

        def twice(job: Job, partner: Any) -> Done:
            seen.append((job.claim.failures, job.look))
            if len(seen) == 1:
                raise TryLater("not yet", status=404)
            return Done()

        worker, ending = run(acme, twice)
        assert (ending.kind, ending.reason, ending.good) == ("retry", "not yet", False)
        row = acme.order(1)
        assert (row["state"], row["failures"], row["error"]) == ("retrying", 1, "not yet")
        assert not worker.work()  # it is not due yet
        acme.time_passes()
        worker.work()
        assert (acme.state(1), seen) == ("done", [(0, False), (1, True)])

    def test_after_so_many_failures_it_is_given_up(self, acme):
        worker, _ = run(acme, raising(TryLater("not there", status=404)))
        for number in range(2, backoff.MOST_FAILURES + 1):
            assert acme.order(1)["failures"] == number - 1
            acme.time_passes()
            worker.work()
        row = acme.order(1)
        assert row["state"] == "parked"
        assert row["error"] == f"gave up after {backoff.MOST_FAILURES} tries: not there"
        assert len(acme.attempts(1)) == backoff.MOST_FAILURES
        assert row["wake_at"] is None

    def test_the_remotes_retry_after_wins(self, acme):
        run(acme, raising(TryLater("later", after=500.0, status=404)))
        waits = acme.order(1)["wake_at"] - queries.database_now(acme.ledger)
        assert 480 < waits.total_seconds() <= 500

    def test_success_forgets_the_failures(self, acme):
        outcomes = [TryLater("not yet", status=404), TryLater("not yet", status=404), None]

        def third_time(job: Job, partner: Any) -> Done:
            error = outcomes.pop(0)
            if error is not None:
                raise error
            return Done()

        acme.step("acme.two", raising(TryLater("nor here", status=404)))
        worker, _ = run(acme, third_time, TWO)
        for failures, step in ((2, "acme.one"), (1, "acme.two")):
            acme.time_passes()
            worker.work()
            assert (acme.order(1)["failures"], acme.order(1)["step"]) == (failures, step)


class TestRemoteAsAWhole:
    @pytest.mark.parametrize(
        "error",
        [
            Unavailable("no route"),
            Unavailable("429 slow down", after=7.0, status=429),
            Misconfigured("401 who are you", status=401),
            Misconfigured("403 not you", status=403),
        ],
    )
    def test_nothing_is_counted_and_the_lane_is_closed_with_one_alert(self, acme, error):
        acme.step("acme.one", raising(error))
        acme.take_in(*range(6), plan=ONE)
        worker = acme.worker()
        with capture_logs() as logs:
            worker.work()
        assert alerts(logs) == ["acme:north"]
        closed = gate(acme)
        assert closed is not None
        assert (closed.closed, closed.closures, closed.reason) == (True, 1, error.reason)
        for name in range(6):
            row = acme.order(name)
            assert (row["failures"], row["state"]) == (0, "retrying" if row["error"] else row["state"])
            assert {outcome for _, outcome in acme.attempts(name)} <= {"unavailable"}

    def test_the_other_lanes_go_on(self, acme):
        def north_is_down(job: Job, partner: Any) -> Done:
            if partner.name == "north":
                raise Unavailable("down")
            return Done()

        acme.step("acme.one", north_is_down)
        acme.take_in(1, plan=ONE)
        acme.take_in(2, account="south", plan=ONE)
        worker = acme.worker()
        worker.work()
        assert [acme.state(1), acme.state(2)] == ["retrying", "done"]

    def test_the_erps_trouble_is_the_erps_lane(self, acme):
        acme.step("erp.one", raising(Unavailable("the ERP is down")))
        acme.step("acme.one", lambda job, partner: Done())
        acme.take_in(1, plan=(Planned("erp.one"),))
        acme.take_in(2, plan=ONE)
        acme.worker().work()
        assert gate(acme, "erp") is not None
        assert [acme.state(1), acme.state(2)] == ["retrying", "done"]

    def test_a_closed_lane_is_not_called(self, acme):
        calls: list[int] = []

        def down(job: Job, partner: Any) -> Done:
            calls.append(job.claim.id)
            raise Unavailable("down", after=60.0)

        acme.step("acme.one", down)
        acme.take_in(*range(4), plan=ONE)
        worker = acme.worker(window=4)
        worker.dispatcher.fill()
        assert len(worker.queue) == 4  # sent before anybody knew
        worker.work()
        assert len(calls) == 1
        assert [acme.order(name)["failures"] for name in range(4)] == [0, 0, 0, 0]

    @pytest.mark.parametrize("half_open", [False, True])
    def test_nobody_goes_on_into_a_lane_in_trouble(self, acme, half_open):
        calls: list[int] = []

        def into_trouble(job: Job, partner: Any) -> Done:
            remotes.close_gate(acme.ledger, "acme:north", 60.0, "down")
            if half_open:
                acme.time_passes()
            worker.gates.refresh()
            return Done()

        def two(job: Job, partner: Any) -> Done:
            calls.append(job.claim.id)
            return Done()

        acme.step("erp.one", into_trouble)
        acme.step("acme.two", two)
        acme.take_in(1, plan=(Planned("erp.one"), Planned("acme.two")))
        worker = acme.worker()
        worker.dispatcher.fill()
        (ending,) = worker.run(worker.queue.popleft())
        assert (ending.state, ending.next, calls) == ("ready", None, [])
        worker.work()
        assert (acme.state(1), len(calls)) == (("done", 1) if half_open else ("ready", 0))

    def test_when_it_answers_again_everything_goes(self, acme):
        down = [True]

        def sometimes(job: Job, partner: Any) -> Done:
            if down[0]:
                raise Unavailable("down")
            return Done()

        acme.step("acme.one", sometimes)
        acme.take_in(*range(5), plan=ONE)
        worker = acme.worker()
        worker.work()
        down[0] = False
        for _ in range(3):
            acme.time_passes()
            worker.sweep.run()
            worker.work()
        assert [acme.state(name) for name in range(5)] == ["done"] * 5
        assert gate(acme) is None

    def test_faults_in_a_row_are_the_remotes_and_no_longer_the_orders(self, acme):
        acme.step("acme.one", raising(TryLater("500 oops", status=500)))
        acme.take_in(*range(MOST_FAULTS + 3), plan=ONE)
        worker = acme.worker(window=MOST_FAULTS + 3)
        with capture_logs() as logs:
            worker.work()
        assert alerts(logs) == ["acme:north"]
        failures = [acme.order(name)["failures"] for name in range(MOST_FAULTS + 3)]
        assert sorted(failures, reverse=True) == [1] * (MOST_FAULTS - 1) + [0] * 4
        for _ in range(5):  # a night long
            acme.time_passes()
            worker.gates.refresh()
            worker.work()
        assert [acme.order(name)["failures"] for name in range(MOST_FAULTS + 3)] == failures

    def test_an_answer_in_between_starts_the_count_anew(self, acme):
        faults = [TryLater("500", status=500)] * (MOST_FAULTS - 1)
        outcomes: list[Exception | None] = [*faults, None, *faults]

        def next_one(job: Job, partner: Any) -> Done:
            error = outcomes.pop(0)
            if error is not None:
                raise error
            return Done()

        acme.step("acme.one", next_one)
        acme.take_in(*range(len(outcomes)), plan=ONE)
        acme.worker(window=20).work()
        assert gate(acme) is None

    @pytest.mark.parametrize("error", [TryLater("conflict", status=409), TryLater("not there yet", status=200)])
    def test_an_answer_that_is_about_the_order_is_no_fault(self, acme, error):
        acme.step("acme.one", raising(error))
        acme.take_in(*range(MOST_FAULTS + 3), plan=ONE)
        worker = acme.worker(window=MOST_FAULTS + 3)
        worker.dispatcher.fill()
        for message in list(worker.queue):  # each once: a retry may be due at once
            worker.run(message)
        assert gate(acme) is None
        assert {acme.order(name)["failures"] for name in range(MOST_FAULTS + 3)} == {1}

    @pytest.mark.parametrize("error", [Refused("no such product", status=400), TryLater("conflict", status=409)])
    def test_a_refusal_is_an_answer_and_opens_the_gate(self, acme, error):
        worker, _ = run(acme, raising(Unavailable("down"), error))
        acme.time_passes()
        worker.gates.refresh()
        half_open = gate(acme)
        assert half_open is not None
        assert not half_open.closed
        worker.work()
        assert gate(acme) is None


class TestStopped:
    def test_refused_is_parked_with_the_remotes_words(self, acme):
        _, ending = run(acme, raising(Refused("400 no such product", status=400)))
        row = acme.order(1)
        assert (ending.kind, row["state"], row["error"]) == ("parked", "parked", "400 no such product")
        assert row["wake_at"] is None
        (tried,) = [entry for entry in queries.timeline(acme.ledger, row["id"]) if entry["kind"] == "attempt"]
        assert (tried["outcome"], tried["status"], tried["detail"]) == ("parked", 400, "400 no such product")

    def test_one_that_may_mend_itself_is_looked_at_again(self, acme):
        seen: list[bool] = []

        def later_paid(job: Job, partner: Any) -> Done:
            seen.append(job.look)
            if len(seen) == 1:
                raise Refused("unpaid", recheck=3600.0)
            return Done()

        worker, _ = run(acme, later_paid)
        worker.sweep.run()
        worker.work()
        assert acme.state(1) == "parked"
        acme.time_passes()
        worker.sweep.run()
        worker.work()
        assert (acme.state(1), seen) == ("done", [False, True])

    def test_in_doubt_stops_and_asks(self, acme):
        worker, ending = run(acme, raising(InDoubt("the booking may exist")))
        assert (ending.kind, acme.state(1)) == ("in_doubt", "in_doubt")
        for _ in range(3):
            acme.time_passes()
            worker.sweep.run()
            worker.work()
        assert acme.attempts(1) == [("acme.one", "in_doubt")]

    def test_our_own_fault_is_tried_a_few_times_and_then_parked_with_its_name(self, acme):
        worker, ending = run(acme, raising(KeyError("erp_number")))
        assert ending.kind == "retry"
        assert ending.reason.startswith("a fault in orderfleet: KeyError: 'erp_number' (function, line ")
        for _ in range(backoff.MOST_BUGS):
            acme.time_passes()
            worker.work()
        row = acme.order(1)
        assert row["state"] == "parked"
        assert row["error"].startswith(f"gave up after {backoff.MOST_BUGS} tries: a fault in orderfleet: KeyError")
        assert len(acme.attempts(1)) == backoff.MOST_BUGS
        assert gate(acme) is None

    def test_an_account_that_is_no_longer_configured_is_named(self, acme):
        acme.step("acme.one", lambda job, partner: Done())
        (order,) = acme.take_in(1, account="west", plan=ONE)
        worker = acme.worker()
        worker.runner.run(acme.claim(order), lambda position, step: State.READY)
        assert "west" in acme.order(1)["error"]

    def test_unclear_is_counted_and_looked_at(self, acme):
        looks: list[bool] = []

        def lost(job: Job, partner: Any) -> Done:
            looks.append(job.look)
            if len(looks) == 1:
                raise Unclear("no answer")
            return Done()

        worker, _ = run(acme, lost)
        acme.time_passes()
        worker.work()
        assert looks == [False, True]


class TestFenced:
    @pytest.mark.parametrize(
        "function",
        [
            lambda job, partner: Done(facts={"late": True}, raw="{}", document=DOCUMENT, signals=("numbered",)),
            lambda job, partner: Done(),
            lambda job, partner: Ended("late", cancelled=True),
            lambda job, partner: Again("told", "late"),
            raising(TryLater("late", status=404)),
            raising(Unavailable("late")),
            raising(Refused("late")),
            raising(InDoubt("late")),
            raising(ValueError("late")),
        ],
    )
    def test_who_lost_the_claim_writes_nothing(self, acme_on_both, function):
        acme = acme_on_both
        successor: list[records.Claim] = []

        def slow(job: Job, partner: Any) -> Any:
            state = upkeep.take_over(acme.ledger, job.claim.id, job.claim.fence, park_at=9, reason="slow")
            assert state == "ready"
            successor.append(acme.claim(job.claim.id, "w2"))
            return function(job, partner)

        _, ending = run(acme, slow, TWO)
        assert (ending.kind, ending.next, ending.good) == ("fenced", None, False)
        row = acme.order(1)
        assert (row["state"], row["step"], row["facts"], row["failures"]) == ("running", "acme.one", {}, 0)
        assert acme.attempts(1) == [("acme.one", "lost")]
        assert not queries.signals_of(acme.ledger, row["id"], "numbered")
        assert queries.document(acme.ledger, row["id"]) is None
        assert records.done(acme.ledger, successor[0], Done(), State.READY) is not None

    def test_who_lost_its_lease_neither_calls_nor_records(self, acme):
        worker, ending = run(acme, raising(Fenced("no sign of life")))
        assert ending.kind == "fenced"
        assert not acme.attempts(1)
        assert not worker.runner.holds(acme.order(1)["id"])

    def test_a_write_needs_a_lease(self, driver):
        number = driver.take_in()
        driver.go(hold=["cloudsuite.state"], erp=False)
        row = driver.order(number)
        claim = records.claim(driver.ledger, row["id"], row["position"], row["step"], "w1")
        driver.worker.pulse._last -= leases.WORKER_LEASE
        ending = driver.worker.runner.run(claim, lambda position, step: State.READY)
        assert ending.kind == "fenced"
        assert not driver.effects(number)
        assert driver.state(number) == "running"


def test_a_record_is_insisted_on_while_the_ledger_is_away(acme_on_postgresql):
    acme = acme_on_postgresql

    def cut_off(job: Job, partner: Any) -> Done:
        with acme.ledger.statement() as connection:
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            connection.connection.driver_connection.close()
        return Done()

    with capture_logs() as logs:
        _, ending = run(acme, cut_off)
    assert ending.kind == "done"
    assert acme.attempts(1) == [("acme.one", "done")]
    assert "ledger_away" in {entry.get("action") for entry in logs}


class TestQuarantine:
    def held(self, acme: Acme) -> tuple[Runner, records.Claim]:
        (order,) = acme.take_in(1, plan=ONE)
        return acme.worker().runner, acme.claim(order)

    def test_its_process_was_killed_a_third_time(self, acme):
        runner, claim = self.held(acme)
        with acme.ledger.transaction() as connection:
            connection.execute(update(orders).values(crashes=backoff.MOST_CRASHES - 1))
        ending = runner.quarantined(claim, killed_by=9)
        assert (ending.kind, acme.state(1)) == ("parked", "parked")
        assert "killed by signal 9" in acme.order(1)["error"]

    @pytest.mark.parametrize("taken_on", [False, True])
    def test_a_first_kill_makes_it_ready_again(self, acme, taken_on):
        runner, claim = self.held(acme)
        if taken_on:
            assert records.take_on(acme.ledger, claim.id, claim.fence, "child") is not None
        assert runner.quarantined(claim, killed_by=11).kind == "retry"
        assert (acme.state(1), acme.column(1, "crashes")) == ("ready", 1)

    def test_a_process_that_could_not_begin_gives_it_back(self, acme):
        runner, claim = self.held(acme)
        ending = runner.quarantined(claim, killed_by=None)
        assert (ending.state, acme.state(1), acme.column(1, "crashes")) == ("ready", "ready", 0)


def test_a_slow_lane_leaves_threads_for_the_others(acme, monkeypatch):
    monkeypatch.setattr("tasks.bulkhead.SLOW", -1.0)  # whatever is at work counts as slow
    acme.step("acme.one", lambda job, partner: Done())
    (order,) = acme.take_in(1, plan=ONE)
    worker = acme.worker()
    at_work = threading.Barrier(7)
    release = threading.Event()

    def occupy() -> None:
        worker.gates.bulkhead.enter("acme:north")
        at_work.wait(10)
        release.wait(10)
        worker.gates.bulkhead.leave("acme:north")

    threads = [threading.Thread(target=occupy) for _ in range(6)]
    for thread in threads:
        thread.start()
    at_work.wait(10)
    ending = worker.runner.run(acme.claim(order), lambda position, step: State.READY)
    release.set()
    for thread in threads:
        thread.join()
    assert (ending.kind, acme.state(1), acme.attempts(1)) == ("busy", "ready", [])
    assert not worker.runner.holds(order)
    acme.time_passes()
    worker.work()
    assert acme.state(1) == "done"


def test_a_step_that_only_a_newer_worker_knows_is_left_to_it(acme):
    acme.step("acme.first", lambda job, account: Done())
    (order,) = acme.take_in("1", plan=(Planned("acme.first"), Planned("acme.invented_tomorrow")))
    acme.worker().work()
    row = acme.order("1")
    assert (row["id"], row["state"], row["step"], row["failures"]) == (order, "retrying", "acme.invented_tomorrow", 0)
    assert "a newer one will" in row["error"]
