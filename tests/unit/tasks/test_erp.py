"""The steps that talk to the ERP, and the feed, on the staging tables."""

import json
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import insert

from databases.clock import now
from erp.port import ErpOrder, Stage
from erp.sql_tables import erp_event
from ledger import by_hand, queries, records, signals
from ledger.connection import Ledger
from orders.model import Line, Order
from orders.outcomes import Done, Planned
from orders.states import State
from tasks import erp as erp_steps
from tasks.base import Job, System
from tasks.erp import read_events
from tests.unit.tasks.conftest import Worker, reference

DOCUMENT = Order(reference="R-1", currency="EUR", lines=()).to_json()
NUMBERED = {"order_number": "SO-1", "lines": {}}


def write(ledger: Ledger, name: str, kind: str, **data: Any) -> None:
    """The ERP tells something; nobody reads it yet."""
    values = {"external_reference": name, "kind": kind, "data": json.dumps(data), "created_at": now()}
    with ledger.transaction() as connection:
        connection.execute(insert(erp_event).values(values))


def problems(ledger: Ledger) -> list[str]:
    return [str(row["problem"]) for row in queries.odd_events(ledger)]


class TestOrder:
    def test_numbers_that_come_at_once_need_no_feed(self, driver_with, sqlite_url):
        driver = driver_with(ERP_URL=f"{sqlite_url}?numbering=ours")
        number = driver.take_in()
        driver.go(erp=False)
        assert driver.order(number)["awaits"] == "shipped"
        assert driver.shop.order(number)["erp_order_number"] == driver.in_erp(number)[0]["order_number"]
        assert [line["erp_line_number"] for line in driver.shop.order(number)["order_lines"]] == [10, 20]
        assert len(queries.signals_of(driver.ledger, driver.order(number)["id"], "numbered")) == 1

    def test_a_number_that_comes_before_the_record_is_not_missed(self, driver):
        number = driver.take_in()
        driver.go(hold=["erp.order"], erp=False)
        driver.dies_at(number)
        driver.erp.step()
        driver.feed()
        driver.worker.sweep.run()
        driver.go(erp=False)
        assert driver.order(number)["awaits"] == "shipped"

    def test_another_document_for_a_confirmed_order_needs_a_person(self, driver):
        number = driver.take_in()
        driver.go()
        lines = driver.shop.order(number)["order_lines"]
        driver.shop.edit(number, order_lines=[{"id": line["id"], "quantity": 9.0} for line in lines])
        driver.replay(number, position=0)
        driver.go()
        assert driver.state(number) == "parked"
        assert "another lines" in driver.order(number)["error"]
        assert [float(line["quantity"]) for line in driver.erp_lines(number)] == [2.0, 3.0]

    def test_a_replay_finds_the_order_there(self, driver):
        number = driver.shipped()
        before = driver.in_erp(number), driver.shop.order(number)
        driver.replay(number, position=0)
        driver.go(ships=True)
        assert driver.state(number) == "done"
        assert (driver.in_erp(number), driver.shop.order(number)) == before

    def test_doubles_in_the_erp_are_named(self, acme):
        class Doubling:
            """An ERP without a constraint, somebody's second entry in it."""

            def find(self, name: str) -> ErpOrder:
                return ErpOrder(name, Stage.CONFIRMED, "SO-1", duplicates=("SO-2", "SO-3"))

        (order,) = acme.take_in(1, plan=(Planned("erp.order"),))
        records.let_go(acme.ledger, order, acme.claim(order).fence)
        Worker(replace(acme.fleet, erp=Doubling())).work()
        assert acme.state(1) == "parked"
        assert acme.order(1)["error"] == "the ERP holds this order 3 times: SO-2, SO-3"

    def test_what_nobody_has_read_is_our_own_fault(self, acme):
        acme.take_in(1, plan=(Planned("erp.order"),))
        acme.worker().work()
        assert acme.state(1) == "retrying"
        assert "has not been fetched" in acme.order(1)["error"]


class TestDraft:
    def test_a_draft_becomes_the_order(self, acme):
        acme.step("acme.fetch", lambda job, partner: Done(document=DOCUMENT))
        acme.take_in(1, plan=(Planned("acme.fetch"), Planned("erp.draft"), Planned("erp.order", awaits="accepted")))
        worker = acme.worker()
        worker.work()
        found = acme.fleet.erp.find("acme:north:1")
        assert found is not None
        assert found.stage is Stage.DRAFT
        signals.signal(acme.ledger, [signals.Signal(acme.order(1)["id"], "accepted", "test")])
        worker.work()
        found = acme.fleet.erp.find("acme:north:1")
        assert found is not None
        assert found.stage is Stage.PENDING
        assert acme.state(1) == "done"


class TestCancel:
    def test_what_the_erp_never_had_is_skipped(self, acme):
        acme.take_in(1, plan=(Planned("erp.cancel"),))
        acme.worker().work()
        assert acme.attempts(1) == [("erp.cancel", "skipped")]

    def test_a_completed_order_is_not_taken_back(self, driver):
        number = driver.take_in()
        driver.go()
        driver.tell(number, "completed")
        driver.shop.edit(number, state="cancel")
        driver.poll()
        driver.go()
        assert driver.state(number) == "parked"
        assert driver.order(number)["error"] == "the ERP did not cancel the order: it stands at closed"


class TestFeed:
    def test_a_page_that_is_full_is_not_the_last(self, driver, monkeypatch):
        monkeypatch.setattr(erp_steps, "PAGE", 2)
        monkeypatch.setattr("tasks.ticks.PAGE", 2)
        numbers = [driver.add() for _ in range(5)]
        driver.poll()
        driver.go(erp=False)
        driver.erp.step()
        driver.feed()
        driver.worker.work()
        assert {driver.order(number)["awaits"] for number in numbers} == {"shipped"}

    def test_an_event_read_twice_is_one_signal(self, driver_on_both):
        driver = driver_on_both
        number = driver.take_in()
        driver.go()
        key = driver.erp_lines(number)[0]["line_key"]
        driver.tell(number, "shipped", lines={key: "2"})
        before = driver.order(number)
        with driver.ledger.transaction() as connection:
            connection.exec_driver_sql("DELETE FROM cursors WHERE name = 'erp.events'")
        driver.feed()
        order = before["id"]
        assert [len(queries.signals_of(driver.ledger, order, name)) for name in ("numbered", "shipped")] == [1, 1]
        driver.go()
        assert driver.state(number) == "waiting"

    def test_the_cursor_moves_only_with_what_was_read(self, driver):
        number = driver.take_in()
        driver.go(erp=False)
        driver.erp.step()
        with driver.ledger.transaction() as connection:
            connection.exec_driver_sql(
                "CREATE TRIGGER full_disk BEFORE INSERT ON signals BEGIN SELECT RAISE(ABORT, 'disk full'); END"
            )
        before = queries.cursor(driver.ledger, "erp.events")
        with pytest.raises(Exception, match="disk full"):
            erp_steps.read_events(driver.ledger, driver.fleet.erp, dict(driver.fleet.systems))
        assert queries.cursor(driver.ledger, "erp.events") == before
        with driver.ledger.transaction() as connection:
            connection.exec_driver_sql("DROP TRIGGER full_disk")
        driver.go()
        assert driver.order(number)["awaits"] == "shipped"

    @pytest.mark.parametrize(
        ("name", "problem"),
        [
            ("cloudsuite:default:999", "no order is known by cloudsuite:default:999"),
            ("other:default:1", "no order is known by other:default:1"),
            ("SO-1", "external_reference is not system:account:external-id"),
            ("", "external_reference is not system:account:external-id"),
        ],
    )
    def test_an_event_of_nobodys_order_is_kept_and_shown_once(self, driver, name, problem):
        write(driver.ledger, name, "shipped")
        driver.feed()
        with driver.ledger.transaction() as connection:
            connection.exec_driver_sql("DELETE FROM cursors WHERE name = 'erp.events'")
        driver.feed()
        assert problems(driver.ledger) == [problem]

    def test_an_unreadable_event_is_kept_and_the_next_is_read(self, driver):
        number = driver.take_in()
        driver.go(erp=False)
        write(driver.ledger, reference(number), "numbered", lines="none")
        write(driver.ledger, reference(number), "shipped")
        driver.feed()
        assert len(problems(driver.ledger)) == 1
        order = driver.order(number)["id"]
        assert len(queries.signals_of(driver.ledger, order, "shipped")) == 1
        assert not queries.signals_of(driver.ledger, order, "numbered")

    def test_a_refusal_while_a_worker_is_at_it_parks_the_order_afterwards(self, driver):
        number = driver.take_in()
        driver.go(hold=["cloudsuite.state"], erp=False)
        row = driver.order(number)
        claim = records.claim(driver.ledger, row["id"], row["position"], row["step"], "w1")
        assert claim is not None
        driver.tell(number, "refused", reason="no credit")
        assert driver.state(number) == "running"
        driver.worker.runner.run(claim, lambda position, step: State.RUNNING)
        assert (driver.state(number), driver.order(number)["step"]) == ("parked", "erp.order")
        assert driver.order(number)["error"] == "the ERP refuses the order: no credit"

    @pytest.mark.parametrize(("kind", "data"), [("cancelled", {}), ("refused", {"reason": "no credit"})])
    def test_what_it_does_not_want_though_it_is_done_here_is_shown_once(self, driver, kind, data):
        number = driver.shipped()
        order = driver.order(number)["id"]
        driver.tell(number, kind, **data)
        assert driver.state(number) == "done"
        assert problems(driver.ledger) == [f"the ERP {kind} order {order}, which is done here: see to it by hand"]

    def test_a_cancellation_of_a_system_that_is_switched_off_ends_the_order_all_the_same(self, acme):
        (order,) = acme.take_in(1, plan=(Planned("acme.fetch", awaits="never"),))
        write(acme.ledger, "acme:north:1", "cancelled")
        erp_steps.read_events(acme.ledger, acme.fleet.erp, {})
        assert acme.state(1) == "cancelled"
        assert queries.signals_of(acme.ledger, order, "cancelled")

    def test_what_became_ready_goes_at_once(self, driver):
        number = driver.take_in()
        driver.go(erp=False)
        driver.erp.step()
        driver.feed()
        assert driver.state(number) == "queued"
        assert [run.order_id for run in driver.worker.queue] == [driver.order(number)["id"]]


class TestRefusalOfADraft:
    """Where the plan says whom to tell, nobody needs to act."""

    PLAN = (
        Planned("acme.fetch"),
        Planned("erp.draft", data={"when_refused": "acme.reject"}),
        Planned("acme.accept", awaits="numbered"),
        Planned("erp.order"),
    )

    quantity = 1

    def remote(self) -> dict[str, Any]:
        return Order("R-1", "EUR", (Line("a", 1, "UNKNOWN-PRODUCT", Decimal(self.quantity)),)).to_json()

    def make(self, acme, told):
        acme.step("acme.fetch", lambda job, account: Done(document=self.remote()))
        acme.step("acme.reject", lambda job, account: told.append(job.data["reason"]) or Done())
        acme.step("acme.accept", lambda job, account: Done())
        acme.take_in("7", plan=self.PLAN)

    def test_by_an_event(self, acme_on_both):
        told: list[str] = []
        self.make(acme_on_both, told)
        worker = acme_on_both.worker()
        worker.work()
        assert acme_on_both.order("7")["awaits"] == "numbered"
        write(acme_on_both.ledger, "acme:north:7", "refused", reason="Unknown product")
        read_events(acme_on_both.ledger, acme_on_both.fleet.erp, {"acme": System("acme")})
        worker.work()
        assert told == ["the ERP refuses the order: Unknown product"]
        assert acme_on_both.state("7") == State.CANCELLED
        assert ("erp.cancel", "done") in acme_on_both.attempts("7")

    def test_at_once(self, acme):
        with acme.ledger.transaction() as connection:
            connection.exec_driver_sql(
                "CREATE TRIGGER no_such_goods BEFORE INSERT ON erp_order_line "
                "BEGIN SELECT RAISE(ABORT, 'no such goods'); END"
            )
        told: list[str] = []
        self.make(acme, told)
        acme.worker().work()
        assert len(told) == 1
        assert "no such goods" in told[0]
        assert acme.state("7") == State.CANCELLED

    def changed(self, acme, told):
        """Confirmed in the ERP, then read anew: it has changed in its own system."""
        self.make(acme, told)
        worker = acme.worker()
        worker.work()
        write(acme.ledger, "acme:north:7", "numbered", order_number="SO-1", lines={"a": 10})
        read_events(acme.ledger, acme.fleet.erp, {"acme": System("acme")})
        worker.work()
        assert acme.state("7") == State.DONE
        self.quantity = 9
        self.replay(acme, worker, 0)
        return worker

    def replay(self, acme, worker, position=None, **how):
        row = acme.order("7")
        by_hand.replay(acme.ledger, row["id"], row["version"], position, "ann", **how)
        worker.work()

    def test_that_it_has_changed_since_is_no_refusal(self, acme):
        told: list[str] = []
        self.changed(acme, told)
        assert told == []
        assert (acme.state("7"), acme.order("7")["step"]) == ("parked", "erp.draft")
        assert "another lines" in acme.order("7")["error"]
        found = acme.fleet.erp.find("acme:north:7")
        assert found is not None
        assert found.stage is Stage.CONFIRMED

    def test_a_person_who_has_changed_it_there_lets_it_go_on(self, acme):
        told: list[str] = []
        worker = self.changed(acme, told)
        assert "--acknowledge" in acme.order("7")["error"]
        self.replay(acme, worker, acknowledged=True)
        assert (acme.state("7"), told) == ("done", [])
        assert acme.attempts("7")[-1] == ("erp.order", "skipped")
        self.replay(acme, worker, 0)
        assert (acme.state("7"), told) == ("done", [])
        with acme.ledger.reading() as connection:
            assert connection.exec_driver_sql("SELECT quantity FROM erp_order_line").scalars().all() == ["1"]

    def test_but_not_with_what_has_changed_after_that(self, acme):
        worker = self.changed(acme, [])
        self.replay(acme, worker, acknowledged=True)
        self.quantity = 10
        self.replay(acme, worker, 0)
        assert (acme.state("7"), acme.order("7")["step"]) == ("parked", "erp.draft")

    def test_after_the_draft_was_accepted_a_person_must_act(self, acme):
        told: list[str] = []
        self.make(acme, told)
        worker = acme.worker()
        worker.work()
        write(acme.ledger, "acme:north:7", "numbered", order_number="SO-1", lines={"a": 10})
        read_events(acme.ledger, acme.fleet.erp, {"acme": System("acme")})
        worker.work(hold=["erp.order"])
        assert acme.order("7")["step"] == "erp.order"
        write(acme.ledger, "acme:north:7", "refused", reason="credit limit")
        read_events(acme.ledger, acme.fleet.erp, {"acme": System("acme")})
        assert acme.state("7") == State.PARKED
        assert told == []


def test_a_job_reads_the_order_once(acme):
    acme.step("acme.fetch", lambda job, partner: Done(document=DOCUMENT))
    (order,) = acme.take_in(1, plan=(Planned("acme.fetch"), Planned("acme.next")))
    acme.worker().work(hold=["acme.next"])
    job = Job(acme.ledger, acme.claim(order))
    assert job.order.reference == "R-1"
    assert job.order is job.order


def test_line_ids_that_our_own_put_changed_are_no_other_order(driver):
    """Contract 7: a PUT may give lines new ids. The ERP knows them by the first ones, and a replay finds them there."""
    number = driver.shipped()
    lines = driver.shop.order(number)["order_lines"]
    driver.shop.edit(number, order_lines=[{**line, "id": 0} for line in lines])
    renamed = driver.shop.order(number)["order_lines"]
    assert {line["id"] for line in renamed}.isdisjoint(line["id"] for line in lines)
    driver.replay(number, position=0)
    driver.go(ships=True)
    assert driver.state(number) == "done"
    assert len(driver.in_erp(number)) == 1


class TestEventsBeforeTheirOrder:
    def test_the_shipment_of_an_order_that_the_erp_made_itself_comes_before_the_poll(self, driver_with):
        driver = driver_with(CLOUDSUITE_OFFLINE="ship")
        number = driver.add(offline=True, state="processing", payment_status="account")
        write(driver.ledger, reference(number), "shipped")
        driver.feed()
        assert problems(driver.ledger) == [f"no order is known by {reference(number)}"]
        driver.poll()
        driver.go(ships=True)
        assert driver.state(number) == "done"
        assert driver.shop.order(number)["shipment_state"] == "sent"
        assert problems(driver.ledger) == []
        assert len(queries.signals_of(driver.ledger, driver.order(number)["id"], "shipped")) == 1

    def test_what_left_though_it_was_cancelled_is_shown(self, driver):
        number = driver.take_in()
        driver.go()
        driver.shop.edit(number, state="cancel")
        driver.poll()
        driver.go()
        assert driver.state(number) == "cancelled"
        write(driver.ledger, reference(number), "shipped")
        driver.feed()
        order = driver.order(number)["id"]
        assert problems(driver.ledger) == [f"the ERP shipped order {order}, which is cancelled here: see to it by hand"]
