"""The promises that the ledger's statements carry, on both databases."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import update

from ledger import by_hand, intake, interrupts, queries, records, remotes, sending, signals, upkeep
from ledger.connection import Ledger
from ledger.models import orders, workers
from ledger.records import Claim
from ledger.signals import Signal
from orders.arrival import Arrival
from orders.outcomes import Done, Planned
from orders.states import State

PLAN = (Planned("acme.fetch"), Planned("erp.order"), Planned("acme.number", awaits="numbered"), Planned("acme.ship"))
CANCEL = (Planned("erp.cancel"),)


def arrival(external_id: str, *, body: str = "{}", key: str | None = None) -> Arrival:
    return Arrival("default", external_id, key or f"row:{external_id}", "row", body, PLAN, f"R-{external_id}")


def shown(ledger: Ledger, order: int) -> dict:
    return queries.find_order(ledger, str(order))[0]


def queue(ledger: Ledger, order: int) -> sending.ToSend:
    (sent,) = sending.take_ready_orders(ledger, [order])
    return sent


def claim(ledger: Ledger, order: int, worker: str = "w1") -> Claim:
    row = shown(ledger, order)
    claimed = records.claim(ledger, order, row["position"], row["step"], worker)
    assert claimed is not None
    return claimed


def advance(ledger: Ledger, order: int, steps: int) -> None:
    """Bring a fresh order `steps` steps on."""
    queue(ledger, order)
    held = claim(ledger, order)
    for _ in range(steps):
        recorded = records.done(ledger, held, Done(), State.RUNNING)
        assert recorded is not None
        if recorded.next is None:
            return
        held = recorded.next
    records.retry(ledger, held, "set aside", 0.0, None)


def go_on(ledger: Ledger, held: Claim, outcome: Done | None = None) -> Claim:
    """Record the claimed step as done, and hold on to the order; the claim on its next step."""
    recorded = records.done(ledger, held, outcome or Done(), State.RUNNING)
    assert recorded is not None
    assert recorded.next is not None
    return recorded.next


def outcomes(ledger: Ledger, order: int) -> list[str]:
    return [row["outcome"] for row in queries.timeline(ledger, order) if row["kind"] == "attempt"]


class TestIntake:
    def test_a_double_changes_nothing(self, ledger):
        first = intake.take_in(ledger, "acme", [arrival("1"), arrival("2")])
        again = intake.take_in(ledger, "acme", [arrival("2"), arrival("1")])
        assert (len(first.new), first.events, again.new, again.events) == (2, 2, (), 0)

    def test_the_same_order_twice_in_one_batch_is_one_order(self, ledger):
        taken = intake.take_in(ledger, "acme", [arrival("1", key="a"), arrival("1", key="b")])
        assert (len(taken.new), taken.events) == (1, 2)

    def test_eight_at_once_make_one_order(self, ledger):
        barrier = threading.Barrier(8)

        def take_in(_: int) -> int:
            barrier.wait()
            return len(intake.take_in(ledger, "acme", [arrival("1")]).new)

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(take_in, range(8))) == 1
        assert len(queries.listing(ledger, queries.Filter())) == 1

    def test_the_same_key_with_another_body_is_kept_and_shown(self, ledger):
        intake.take_in(ledger, "acme", [arrival("1", body='{"total": 1}')])
        taken = intake.take_in(ledger, "acme", [arrival("1", body='{"total": 2}')])
        assert taken.conflicts == 1
        assert {row["body"] for row in queries.odd_events(ledger)} == {'{"total": 1}', '{"total": 2}'}

    def test_the_same_order_number_of_two_accounts_is_two_orders(self, ledger):
        other = Arrival("north", "1", "row:1", "row", "{}", PLAN)
        assert len(intake.take_in(ledger, "acme", [arrival("1"), other]).new) == 2


class TestSetBack:
    """The remote says that an order is still to be done, which ended here."""

    def again(self) -> Arrival:
        return replace(arrival("1", key="row:1:later"), due=True)

    def test_an_ignored_order_is_taken_up_after_all(self, ledger, order):
        queue(ledger, order)
        records.end(ledger, claim(ledger, order), "not ours", State.IGNORED, ())
        intake.take_in(ledger, "acme", [self.again()])
        row = shown(ledger, order)
        assert (row["state"], row["step"], row["position"]) == (State.READY, "acme.fetch", 0)
        assert [step["name"] for step in queries.plan_of(ledger, order)] == [planned.name for planned in PLAN]
        signals.signal(ledger, [Signal(order, "numbered", "erp:1")])
        advance(ledger, order, 4)
        assert shown(ledger, order)["state"] == State.DONE

    def test_a_cancelled_order_stays_cancelled_and_is_shown(self, ledger, order):
        queue(ledger, order)
        records.end(ledger, claim(ledger, order), "cancelled", State.CANCELLED, ())
        intake.take_in(ledger, "acme", [self.again()])
        assert shown(ledger, order)["state"] == State.CANCELLED
        assert "is cancelled here: enter it as a new order" in queries.odd_events(ledger)[0]["problem"]

    def test_who_dies_over_it_has_kept_nothing_and_the_next_poll_takes_it_up(self, ledger, order, monkeypatch):
        queue(ledger, order)
        records.end(ledger, claim(ledger, order), "not ours", State.IGNORED, ())

        def dies(*arguments: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as dying:
            dying.setattr(intake, "_look_again", dies)
            with pytest.raises(KeyboardInterrupt):
                intake.take_in(ledger, "acme", [self.again()])
        intake.take_in(ledger, "acme", [self.again()])
        assert shown(ledger, order)["state"] == State.READY

    def test_news_of_an_order_under_way_change_nothing(self, ledger, order):
        before = shown(ledger, order)
        intake.take_in(ledger, "acme", [self.again()])
        assert shown(ledger, order) == before
        assert queries.odd_events(ledger) == []


class TestDispatch:
    def test_the_run_ends_before_the_first_step_that_waits(self, ledger, order):
        assert queue(ledger, order).links == ((0, "acme.fetch"), (1, "erp.order"))

    def test_a_signal_that_came_early_lengthens_the_run(self, ledger, order):
        signals.signal(ledger, [Signal(order, "numbered", "erp:1")])
        assert len(queue(ledger, order).links) == 4

    def test_it_takes_no_more_than_the_limit_and_each_order_once(self, ledger):
        intake.take_in(ledger, "acme", [arrival(str(number)) for number in range(10)])
        first = sending.take_ready(ledger, "acme", "acme:default", 6)
        second = sending.take_ready(ledger, "acme", "acme:default", 6)
        assert (len(first), len(second)) == (6, 4)
        assert not {one.order_id for one in first} & {one.order_id for one in second}
        assert queries.in_flight(ledger, "acme") == 10

    def test_dispatchers_at_once_never_take_the_same_order(self, ledger):
        intake.take_in(ledger, "acme", [arrival(str(number)) for number in range(40)])
        with ThreadPoolExecutor(4) as pool:
            taken = pool.map(lambda _: sending.take_ready(ledger, "acme", "acme:default", 10), range(4))
        ids = [one.order_id for batch in taken for one in batch]
        assert len(ids) == len(set(ids))

    def test_what_could_not_be_sent_is_ready_again(self, ledger, order):
        queue(ledger, order)
        sending.not_sent(ledger, [order])
        assert queue(ledger, order).order_id == order


class TestClaim:
    def test_one_of_eight_gets_it(self, ledger, order):
        queue(ledger, order)
        with ThreadPoolExecutor(8) as pool:
            claims = list(pool.map(lambda n: records.claim(ledger, order, 0, "acme.fetch", f"w{n}"), range(8)))
        assert sum(one is not None for one in claims) == 1

    @pytest.mark.parametrize(("position", "step"), [(1, "erp.order"), (0, "erp.order"), (1, "acme.fetch")])
    def test_not_for_another_step(self, ledger, order, position, step):
        queue(ledger, order)
        assert records.claim(ledger, order, position, step, "w1") is None

    def test_not_before_a_retry_is_due(self, ledger, order):
        queue(ledger, order)
        records.retry(ledger, claim(ledger, order), "no", 3600, 500)
        assert records.claim(ledger, order, 0, "acme.fetch", "w1") is None

    def test_a_retry_counts_and_then_looks_first(self, ledger, order):
        queue(ledger, order)
        records.retry(ledger, claim(ledger, order), "no", 0, 500)
        again = claim(ledger, order)
        assert (again.tries, again.failures) == (2, 1)

    def test_an_unavailable_remote_burns_no_attempt(self, ledger, order):
        queue(ledger, order)
        records.postpone(ledger, claim(ledger, order), "down", 0, None)
        again = claim(ledger, order)
        assert (again.tries, again.failures) == (2, 0)


class TestRecord:
    def test_recording_and_claiming_the_next_is_one_commit(self, ledger, order):
        queue(ledger, order)
        following = go_on(ledger, claim(ledger, order), Done("read"))
        assert (following.step, following.tries) == ("erp.order", 1)
        assert shown(ledger, order)["state"] == State.RUNNING
        assert outcomes(ledger, order) == ["done"]

    def test_a_lost_claim_records_nothing(self, ledger, order):
        queue(ledger, order)
        held = claim(ledger, order)
        assert upkeep.take_over(ledger, order, held.fence, park_at=3, reason="gone") == State.READY
        assert records.done(ledger, held, Done("late"), State.RUNNING) is None
        assert records.done(ledger, held, Done("late", facts={"a": 1}), State.RUNNING) is None
        assert records.retry(ledger, held, "late", 1, None) is None
        assert records.wait_again(ledger, held, "shipped", "late", None, more=False) is None
        assert records.end(ledger, held, "late", State.CANCELLED, CANCEL) is None
        assert outcomes(ledger, order) == ["lost"]
        assert shown(ledger, order)["facts"] == {}

    def test_a_record_sent_twice_moves_on_once(self, ledger, order):
        queue(ledger, order)
        held = claim(ledger, order)
        assert records.done(ledger, held, Done(), State.READY) is not None
        assert records.done(ledger, held, Done(), State.READY) is None
        assert shown(ledger, order)["step"] == "erp.order"

    def test_the_next_step_waits_for_its_signal(self, ledger, order):
        advance(ledger, order, 2)
        row = shown(ledger, order)
        assert (row["state"], row["step"], row["awaits"]) == (State.WAITING, "acme.number", "numbered")
        assert signals.signal(ledger, [Signal(order, "numbered", "erp:1", {}, {"erp_number": "SO-1"})]) == [order]
        assert shown(ledger, order)["state"] == State.READY
        assert claim(ledger, order).facts == {"erp_number": "SO-1"}

    def test_a_signal_during_the_step_before_is_not_missed(self, ledger, order):
        queue(ledger, order)
        held = go_on(ledger, claim(ledger, order))
        assert signals.signal(ledger, [Signal(order, "numbered", "erp:1")]) == []
        assert go_on(ledger, held).step == "acme.number"

    def test_a_step_may_give_the_signal_itself(self, ledger, order):
        queue(ledger, order)
        held = go_on(ledger, claim(ledger, order))
        following = go_on(ledger, held, Done(facts={"n": 1}, signals=("numbered",)))
        assert (following.step, following.facts) == ("acme.number", {"n": 1})

    def test_the_last_step_finishes_the_order(self, ledger, order):
        signals.signal(ledger, [Signal(order, "numbered", "erp:1")])
        advance(ledger, order, 4)
        row = shown(ledger, order)
        assert (row["state"], row["step"]) == (State.DONE, None)
        assert outcomes(ledger, order) == ["done"] * 4

    def test_a_step_may_replace_the_rest_of_the_plan(self, ledger, order):
        queue(ledger, order)
        rest = (Planned("acme.ship", awaits="shipped"),)
        records.done(ledger, claim(ledger, order), Done(rest=rest), State.RUNNING)
        assert [row["name"] for row in queries.plan_of(ledger, order)] == ["acme.fetch", "acme.ship"]
        assert shown(ledger, order)["awaits"] == "shipped"

    def test_signals_of_the_same_source_are_one(self, ledger, order):
        signals.signal(ledger, [Signal(order, "shipped", "erp:7"), Signal(order, "shipped", "erp:7")])
        signals.signal(ledger, [Signal(order, "shipped", "erp:7")])
        assert len(queries.signals_of(ledger, order, "shipped")) == 1

    def test_a_step_in_parts_waits_for_the_next_signal_and_misses_none(self, ledger, order):
        queue(ledger, order)
        held = claim(ledger, order)
        records.wait_again(ledger, held, "shipped", "1 of 2", {"sent": 1}, more=False)
        assert shown(ledger, order)["state"] == State.WAITING
        assert signals.signal(ledger, [Signal(order, "shipped", "erp:2")]) == [order]
        held = claim(ledger, order)
        signals.signal(ledger, [Signal(order, "shipped", "erp:3")])  # while the step runs
        records.wait_again(ledger, held, "shipped", "2 of 3", {"sent": 2}, more=False)
        row = shown(ledger, order)
        assert (row["state"], row["facts"]) == (State.READY, {"sent": 2})


class TestInterrupt:
    def test_a_waiting_order_stops_at_once(self, ledger, order):
        advance(ledger, order, 2)
        assert interrupts.interrupt(ledger, order, "cancelled", CANCEL, State.CANCELLED) == State.READY
        assert [row["name"] for row in queries.plan_of(ledger, order)][-1] == "erp.cancel"
        queue(ledger, order)
        records.done(ledger, claim(ledger, order), Done(), State.READY)
        assert shown(ledger, order)["state"] == State.CANCELLED

    def test_a_held_order_stops_when_its_step_has_ended(self, ledger, order):
        queue(ledger, order)
        held = claim(ledger, order)
        interrupts.interrupt(ledger, order, "cancelled", CANCEL, State.CANCELLED)
        recorded = records.done(ledger, held, Done(), State.RUNNING)
        assert recorded is not None
        assert recorded.next is None
        assert recorded.interrupt is not None
        assert queries.interrupted(ledger) == [order]
        interrupts.apply_interrupt(ledger, order)
        assert shown(ledger, order)["step"] == "erp.cancel"

    def test_a_finished_order_stays_finished(self, ledger, order):
        signals.signal(ledger, [Signal(order, "numbered", "erp:1")])
        advance(ledger, order, 4)
        assert interrupts.interrupt(ledger, order, "cancelled", CANCEL, State.CANCELLED) is None

    def test_it_happens_once(self, ledger, order):
        interrupts.interrupt(ledger, order, "cancelled", CANCEL, State.CANCELLED)
        assert interrupts.interrupt(ledger, order, "cancelled", CANCEL, State.CANCELLED) is None


class TestRefusal:
    def test_the_order_is_parked_at_the_step_that_put_it_there(self, ledger, order):
        advance(ledger, order, 2)
        assert interrupts.stop_for_a_person(ledger, order, "erp:9", "unknown product")
        row = shown(ledger, order)
        assert (row["state"], row["step"], row["error"]) == (State.PARKED, "erp.order", "unknown product")

    def test_after_a_replay_the_same_telling_does_not_stop_it_again(self, ledger, order):
        advance(ledger, order, 2)
        interrupts.stop_for_a_person(ledger, order, "erp:9", "unknown product")
        signals.signal(ledger, [Signal(order, "refused", "erp:9")])
        by_hand.replay(ledger, order, shown(ledger, order)["version"], None, "ada")
        assert not interrupts.stop_for_a_person(ledger, order, "erp:9", "unknown product")
        assert shown(ledger, order)["state"] == State.READY

    def test_a_held_order_is_parked_when_its_step_has_ended(self, ledger, order):
        queue(ledger, order)
        held = go_on(ledger, claim(ledger, order))
        interrupts.stop_for_a_person(ledger, order, "erp:9", "credit limit")
        records.done(ledger, held, Done(), State.RUNNING)
        interrupts.apply_interrupt(ledger, order)
        assert (shown(ledger, order)["state"], shown(ledger, order)["step"]) == (State.PARKED, "erp.order")


class TestReplay:
    def test_it_refuses_an_order_that_moved_on(self, ledger, order):
        version = shown(ledger, order)["version"]
        queue(ledger, order)
        with pytest.raises(by_hand.MovedOn):
            by_hand.replay(ledger, order, version, None, "ada")

    def test_of_two_operators_one_replays(self, ledger, order):
        queue(ledger, order)
        records.park(ledger, claim(ledger, order), "no", 400)
        version = shown(ledger, order)["version"]

        def replay(who: str) -> bool:
            try:
                by_hand.replay(ledger, order, version, None, who)
            except by_hand.MovedOn:
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(replay, ["ada", "ben"])) == [False, True]

    def test_a_replayed_step_looks_first(self, ledger, order):
        signals.signal(ledger, [Signal(order, "numbered", "erp:1")])
        advance(ledger, order, 4)
        by_hand.replay(ledger, order, shown(ledger, order)["version"], 2, "ada")
        assert claim(ledger, order).tries > 1


class TestTakeover:
    def test_a_silent_workers_order_is_found(self, ledger, order):
        upkeep.beat(ledger, "w1")
        queue(ledger, order)
        held = claim(ledger, order)
        assert queries.orphans(ledger) == []
        with ledger.statement() as connection:
            stale = workers.c.seen_at == queries.database_now(ledger).replace(year=2020)
            connection.execute(update(workers).values(seen_at=stale.right))
        assert [(one.id, one.fence) for one in queries.orphans(ledger)] == [(order, held.fence)]

    def test_the_next_try_looks_first(self, ledger, order):
        queue(ledger, order)
        held = claim(ledger, order)
        upkeep.take_over(ledger, order, held.fence, park_at=3, reason="gone")
        assert claim(ledger, order).tries == 2

    def test_the_third_worker_lost_on_a_step_parks_the_order(self, ledger, order):
        for state in (State.READY, State.READY, State.PARKED):
            if state is State.PARKED:
                (sent,) = sending.take_suspect(ledger, "acme", "acme:default")
                assert sent.order_id == order
            else:
                queue(ledger, order)
            held = claim(ledger, order)
            assert upkeep.take_over(ledger, order, held.fence, park_at=3, reason="gone") == state
        assert "3 workers" in shown(ledger, order)["error"]

    def test_suspects_go_one_at_a_time(self, ledger):
        ids = intake.take_in(ledger, "acme", [arrival("1"), arrival("2")]).new
        with ledger.statement() as connection:
            connection.execute(update(orders).values(crashes=2))
        assert sending.take_ready(ledger, "acme", "acme:default", 10) == []
        assert len(sending.take_suspect(ledger, "acme", "acme:default")) == 1
        assert sending.take_suspect(ledger, "acme", "acme:default") == []
        assert len(ids) == 2


class TestTicks:
    def test_one_worker_does_a_tick_and_not_before_its_time(self, ledger):
        with ThreadPoolExecutor(6) as pool:
            assert sum(pool.map(lambda n: upkeep.take_tick(ledger, "poll", 3600, f"w{n}"), range(6))) == 1

    def test_a_tick_at_work_is_not_done_twice(self, ledger):
        upkeep.beat(ledger, "w1")
        assert upkeep.take_tick(ledger, "poll", 0, "w1")
        assert not upkeep.take_tick(ledger, "poll", 0, "w2")
        upkeep.end_tick(ledger, "poll", "w1")
        assert upkeep.take_tick(ledger, "poll", 0, "w2")

    def test_a_dead_workers_tick_is_taken_over(self, ledger):
        assert upkeep.take_tick(ledger, "poll", 0, "never-seen")
        assert upkeep.take_tick(ledger, "poll", 0, "w2")


class TestGates:
    def test_one_alert_and_longer_closures(self, ledger):
        assert remotes.close_gate(ledger, "erp", 0, "down")
        assert not remotes.close_gate(ledger, "erp", 3600, "still down")
        assert not remotes.close_gate(ledger, "erp", 7200, "counted once while closed")
        gate = queries.closed_gates(ledger)["erp"]
        assert (gate.closed, gate.closures, gate.reason) == (True, 2, "still down")

    def test_a_success_opens_it_but_not_before_the_time_the_remote_asked_for(self, ledger):
        remotes.close_gate(ledger, "erp", 3600, "too many requests")
        assert not remotes.open_gate(ledger, "erp")
        assert queries.closed_gates(ledger)["erp"].closed
        remotes.close_gate(ledger, "shop", 0, "down")
        assert remotes.open_gate(ledger, "shop")
        assert list(queries.closed_gates(ledger)) == ["erp"]

    def test_calls_are_spaced_for_all_workers_together(self, ledger):
        waits = [remotes.take_call(ledger, "erp", 1.0, 2.5) for _ in range(4)]
        assert waits[0] == 0.0
        assert 0.5 < waits[1] <= 1.0
        assert 1.5 < waits[2] <= 2.0
        assert 2.5 < waits[3] <= 3.0  # more than the longest wait: not reserved
        assert remotes.take_call(ledger, "erp", 1.0, 2.5) <= waits[3]
