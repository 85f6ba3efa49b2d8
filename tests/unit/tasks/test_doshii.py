"""Doshii's steps, poll and news against its imitation: each effect once, whatever happens when."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from flask import Response, request
from sqlalchemy import delete, select, update

from ledger import queries, rows
from ledger.models import documents, events, orders, signals
from orders.errors import Misconfigured, Refused
from orders.states import State
from tasks.base import Effect, Preview
from tasks.doshii import SYSTEM, probe
from tasks.doshii_order import PLAN
from tests.flows.harness import a_remote, a_web, wait_for
from tests.unit.tasks.conftest import LONG_AGO, Driver
from workers import operators
from workers.settings import WrongSettings, read_settings
from workers.systems.doshii import WIRING

NOBODY = "redis://127.0.0.1:1/0"
PIZZA = {"posId": "pep_pizza", "name": "Pepperoni Pizza", "quantity": 2, "unitPrice": "1100"}
COLA = {"posId": "cola", "name": "Cola", "quantity": 1, "unitPrice": "450"}
CAKE = {"name": "Birthday cake", "quantity": "1", "unitPrice": "3500"}
PREPAID = {"reference": "pay-1"}
LATER = {"prepaid": False, "method": "eftpos"}

ACCEPTED = "status:pending->accepted"
COMPLETE = "status:accepted->complete"
REJECTED = "status:pending->cancelled"
CANCELLED = "status:accepted->cancelled"
PAID = "payment_captured"
STATUSES = (ACCEPTED, COMPLETE, REJECTED, CANCELLED)


class Venue(Driver):
    """A worker, the imitation, the ERP, and the fleet's web server, to which the imitation sends its events."""

    def add(self, **spec: Any) -> str:
        """An order of the partner's, of which nobody has heard yet."""
        (number,) = self.remote.control.backend.add_orders([{"items": [PIZZA], "quiet": True, **spec}])
        return str(number)

    def take_in(self, **spec: Any) -> str:
        """The same, and polled."""
        number = self.add(**spec)
        self.poll()
        return number

    def go(self, *, hold: Collection[str] = (), ships: bool = False, erp: bool = True) -> None:
        """As `Driver.go`; messages that were held are given up for lost, so that the next `go` sends new ones."""
        super().go(hold=hold, ships=ships, erp=erp)
        if hold:
            with self.ledger.transaction() as connection:
                queued = orders.c.state == "queued"
                connection.execute(update(orders).where(queued).values(state="ready", wake_at=LONG_AGO))

    def up_to(self, step: str, **spec: Any) -> str:
        """A new order that stands before `step`, which has not run."""
        number = self.take_in(**spec)
        self.go(hold={step})
        assert self.order(number)["step"] == step
        return number

    def open(self, **spec: Any) -> str:
        """A new order that the ERP has confirmed and not shipped."""
        number = self.take_in(**spec)
        self.go()
        assert (self.state(number), self.order(number)["awaits"]) == ("waiting", "completed|shipped")
        return number

    def done(self, **spec: Any) -> str:
        number = self.take_in(**spec)
        self.go(ships=True)
        assert self.state(number) == "done"
        return number

    def edit(self, number: str, **patch: Any) -> None:
        """The partner changes the order; its events arrive, and are read."""
        self.remote.edit(number, **patch)
        self.hear()

    def hear(self) -> None:
        """Until every event has arrived, and news are read."""
        wait_for(self.remote.app.extensions["doshii"].post.quiet, "the events arrive", 10)
        self.read_news()

    def between(self, number: str, **patch: Any) -> None:
        """The partner changes the order just after our next read of it."""
        self.remote.control.backend.interpositions.add(number, "GET", patch)

    def statuses(self, number: str) -> dict[str, int]:
        """How often the order's status changed, from what to what."""
        effects = self.effects(number)
        return {kind: effects[kind] for kind in STATUSES if effects[kind]}

    def writes(self, number: str) -> dict[str, int]:
        """What reached the imitation of us, by its name."""
        effects = self.effects(number)
        names = ("put_unlinked", "put_order", "put_transaction", "created")
        return {name: effects[name] for name in names if effects[name]}

    def stage(self, number: str) -> str | None:
        """Where the ERP's order stands; None if it never had one."""
        rows = self.in_erp(number)
        return str(rows[0]["stage"]) if rows else None

    def there(self, number: str) -> dict[str, Any]:
        return self.remote.order(number)

    def payment(self, number: str) -> str:
        """The status of the order's only payment."""
        (payment,) = self.there(number)["transactions"]
        return str(payment["status"])

    def error(self, number: str) -> str:
        return str(self.order(number)["error"])

    def flags(self, number: str) -> list[str]:
        return list(self.order(number)["facts"].get("flags", []))

    def problems(self) -> list[str]:
        """What a person should see of the events."""
        with self.ledger.reading() as connection:
            return list(connection.execute(select(events.c.problem).where(events.c.problem.is_not(None))).scalars())

    def foresee(self, number: str, step: str) -> Preview:
        """What a replay from `step` would do there first."""
        foreseen = operators.foresee(self.fleet, self.order(number), step)
        assert foreseen.refusal is None, foreseen.refusal
        return foreseen.steps[0][1]

    def command(self, number: str, name: str, **data: Any) -> tuple[str, str]:
        """What an operator's command says that it would do, and has done."""
        doing = operators.Doing(self.fleet, self.order(number), name, SYSTEM.commands[name], data, "ann")
        return doing.ask(), doing.run()

    @property
    def account(self) -> Any:
        return self.fleet.accounts["doshii", "default"]


@contextmanager
def a_venue(url: str, options: dict[str, Any] | None = None, **environment: str) -> Iterator[Venue]:
    with a_remote("doshii", **{"partner_answers_seconds": 0.0, **(options or {})}) as remote:
        venue = Venue(remote, {"BROKER_URL": NOBODY, **environment}, url)
        try:
            with a_web(venue.settings) as web:
                remote.point_at(web)
                yield venue
        finally:
            venue.close()


@pytest.fixture
def venue(sqlite_url: str) -> Iterator[Venue]:
    with a_venue(sqlite_url) as venue:
        yield venue


@pytest.fixture
def venue_with(sqlite_url: str) -> Iterator[Callable[..., Venue]]:
    """`venue_with(DOSHII_OPEN_ITEM_PRODUCT="misc")`; `options` are the imitation's knobs. One a test."""
    opened: list[Any] = []

    def open_venue(options: dict[str, Any] | None = None, **environment: str) -> Venue:
        opened.append(a_venue(sqlite_url, options, **environment))
        venue: Venue = opened[-1].__enter__()
        return venue

    yield open_venue
    for one in opened:
        one.__exit__(None, None, None)


@pytest.fixture
def venue_on_both(ledger_url: str) -> Iterator[Venue]:
    """On SQLite, then on PostgreSQL."""
    with a_venue(ledger_url) as venue:
        yield venue


# === The plain way ==========================================================================================


def test_from_pending_to_complete(venue_on_both):
    venue = venue_on_both
    number = venue.done(type="pickup", notes="No onion")
    assert venue.statuses(number) == {ACCEPTED: 1, COMPLETE: 1}
    assert venue.writes(number) == {"put_unlinked": 1, "put_order": 1}
    assert [step for step, _ in venue.attempts(number)] == [planned.name for planned in PLAN]
    (row,) = venue.in_erp(number)
    assert (row["stage"], row["currency"], row["total"]) == ("confirmed", "AUD", 22)
    assert row["notes"] == "pickup\nNo onion"
    assert [line["product"] for line in venue.erp_lines(number)] == ["pep_pizza"]
    assert venue.there(number)["id"] == "SO-1"
    assert venue.order(number)["reference"] == number


def test_the_order_is_accepted_before_the_erp_confirms_it(venue):
    number = venue.up_to("doshii.accept")
    assert (venue.stage(number), venue.there(number)["status"]) == ("draft", "pending")
    venue.go(hold={"erp.order"})
    assert (venue.stage(number), venue.there(number)["status"]) == ("draft", "accepted")
    venue.go()
    assert venue.stage(number) == "confirmed"


def test_it_is_complete_when_everything_has_left(venue):
    number = venue.open(items=[PIZZA, COLA])
    pizza, cola = [line["line_key"] for line in venue.erp_lines(number)]
    venue.tell(number, "shipped", lines={pizza: "2"})
    venue.worker.work()
    assert venue.there(number)["status"] == "accepted"
    venue.tell(number, "shipped", lines={cola: "1"})
    venue.worker.work()
    assert venue.there(number)["status"] == "complete"
    assert venue.statuses(number) == {ACCEPTED: 1, COMPLETE: 1}


def test_what_the_erp_calls_completed_is_complete(venue):
    number = venue.open()
    venue.tell(number, "completed")
    venue.worker.work()
    assert (venue.state(number), venue.there(number)["status"]) == ("done", "complete")


def test_the_poll_and_the_events_tell_of_the_same_order(venue):
    (number,) = venue.remote.control.backend.add_orders([{"items": [PIZZA]}])
    venue.hear()
    venue.poll()
    venue.go(ships=True)
    venue.poll()
    venue.hear()
    venue.go_on()
    assert venue.state(number) == "done"
    assert venue.statuses(number) == {ACCEPTED: 1, COMPLETE: 1}
    assert [row["external_id"] for row in queries.listing(venue.ledger, queries.Filter())] == [number]


# === What a remote may be like: every switch of the contract's open questions ===============================


@pytest.mark.parametrize(
    "options",
    [
        {"answer_with_doshii_id": True},
        {"hide_doshii_id": True},
        {"linked_visible_via_unlinked": True},
        {"linked_put_status": 409},
        {"echo_events": True},
        {"lean_events": True},
        {"preprocess": True},
        {"envelope": "event"},
        {"quantities": "string"},
        {"quantities": "decimal"},
        {"money": "number"},
        {"money": "mixed"},
        {"auto_complete_seconds": None},
        {"strict_types": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("payment", [PREPAID, LATER], ids=["prepaid", "later"])
def test_every_kind_of_doshii(venue_with, options, payment):
    venue = venue_with(options)
    items = [{**PIZZA, "surcounts": [{"name": "Fee", "value": 100, "amount": 100}]}, COLA]
    (number,) = venue.remote.control.backend.add_orders([{"items": items, "transactions": [payment]}])
    venue.hear()
    venue.go(ships=True)
    venue.hear()
    venue.go_on()
    assert venue.state(number) == "done", venue.error(number)
    assert venue.statuses(number) == {ACCEPTED: 1, COMPLETE: 1}
    assert venue.payment(number) == "complete"
    assert venue.effects(number)[PAID] == 1
    assert str(venue.in_erp(number)[0]["total"]) == "27.50"
    assert venue.flags(number) == []
    assert venue.problems() == []


@pytest.mark.parametrize("form", ["v1", "message", "html", "empty"])
def test_errors_in_any_form_are_told_by_their_status(venue_with, form):
    venue = venue_with({"error_body": form})
    number = venue.up_to("doshii.accept")
    venue.between(number, notes="Extra napkins")
    venue.go(ships=True)
    assert venue.statuses(number) == {ACCEPTED: 1, COMPLETE: 1}
    assert venue.in_erp(number)[0]["notes"] == "pickup\nExtra napkins"


# === Once each, whatever is lost ============================================================================

WRITING = ("doshii.accept", "doshii.payments", "doshii.complete")


@pytest.mark.parametrize("step", [planned.name for planned in PLAN] + ["doshii.payments"])
def test_a_worker_dies_between_effect_and_record(venue_with, step):
    venue = venue_with({"auto_complete_seconds": None})
    number = venue.take_in(transactions=[PREPAID])
    venue.go(hold={step})
    if step == "doshii.complete":
        venue.tell(number, "completed")
    venue.dies_at(number)
    venue.go_on(ships=True)
    assert venue.state(number) == "done", venue.error(number)
    assert venue.statuses(number) == {ACCEPTED: 1, COMPLETE: 1}
    assert venue.effects(number)[PAID] == 1
    assert venue.writes(number) == {"put_unlinked": 1, "put_order": 1, "put_transaction": 1}
    assert len(venue.in_erp(number)) == 1


@pytest.mark.parametrize("kind", ["lost_answer", "500_after", "lost_request", "500_before", "html_502", "429"])
def test_answers_of_writes_are_lost(venue_with, kind):
    venue = venue_with({"auto_complete_seconds": None})
    numbers = [venue.add(transactions=[PREPAID]) for _ in range(2)]
    venue.remote.faults({"kinds": (kind,), "method": "PUT", "rate": 0.6, "seed": 5, "times": 4})
    venue.poll()
    venue.go()
    venue.go_on(8, ships=True)
    for number in numbers:
        assert venue.state(number) == "done", venue.error(number)
        assert venue.statuses(number) == {ACCEPTED: 1, COMPLETE: 1}
        assert venue.writes(number) == {"put_unlinked": 1, "put_order": 1, "put_transaction": 1}


@pytest.mark.parametrize("kind", ["lost_answer", "500_after", "lost_request"])
def test_answers_of_rejections_are_lost(venue, kind):
    number = venue.take_in(items=[{**PIZZA, "posId": "UNKNOWN-PRODUCT"}], transactions=[PREPAID])
    venue.remote.faults({"kinds": (kind,), "method": "PUT", "times": 2})
    venue.go()
    venue.go_on(5)
    assert (venue.state(number), venue.stage(number)) == ("cancelled", "cancelled")
    assert venue.statuses(number) == {REJECTED: 1}
    assert venue.effects(number)["transaction:pending->rejected"] == 1


def test_a_replay_from_the_start_makes_no_second_effect(venue_with):
    venue = venue_with({"auto_complete_seconds": None})
    number = venue.done(transactions=[PREPAID])
    before = venue.effects(number)
    venue.replay(number, position=0)
    venue.go_on(ships=True)
    assert venue.state(number) == "done"
    assert venue.effects(number) == before


# === Versions: read again, decide again =====================================================================


def test_changed_between_read_and_accept(venue):
    """The ERP's draft follows the partner, and what is accepted is what the ERP has."""
    number = venue.up_to("doshii.accept")
    venue.between(number, items=[PIZZA, COLA])
    venue.go(ships=True)
    assert venue.state(number) == "done"
    assert [line["product"] for line in venue.erp_lines(number)] == ["pep_pizza", "cola"]
    assert str(venue.in_erp(number)[0]["total"]) == "26.50"
    assert [item["posId"] for item in venue.there(number)["items"]] == ["pep_pizza", "cola"]
    assert venue.statuses(number) == {ACCEPTED: 1, COMPLETE: 1}


def test_changed_while_it_waits_for_its_number(venue):
    number = venue.take_in()
    venue.go(erp=False)
    assert venue.order(number)["awaits"] == "numbered"
    venue.edit(number, items=[COLA])
    venue.go(ships=True)
    assert [line["product"] for line in venue.erp_lines(number)] == ["cola"]
    assert venue.statuses(number) == {ACCEPTED: 1, COMPLETE: 1}


def test_cancelled_between_read_and_accept(venue):
    number = venue.up_to("doshii.accept")
    venue.between(number, status="cancelled")
    venue.go()
    assert (venue.state(number), venue.stage(number)) == ("cancelled", "cancelled")
    assert venue.statuses(number) == {}


def test_changed_between_read_and_complete(venue):
    number = venue.open()
    venue.tell(number, "completed")
    venue.between(number, notes="Ring twice")
    venue.between(number, notes="Ring thrice")
    venue.go()
    assert venue.state(number) == "done"
    assert venue.there(number)["notes"] == "Ring thrice"
    assert venue.statuses(number) == {ACCEPTED: 1, COMPLETE: 1}


def test_cancelled_between_read_and_complete(venue):
    number = venue.open()
    venue.tell(number, "shipped")
    venue.between(number, status="cancelled")
    venue.go()
    assert (venue.state(number), venue.stage(number)) == ("cancelled", "cancelled")
    assert COMPLETE not in venue.statuses(number)


def test_completed_by_doshii_between_read_and_complete(venue):
    number = venue.open()
    venue.tell(number, "shipped")
    venue.between(number, status="complete")
    venue.go()
    assert venue.state(number) == "done"
    assert venue.attempts(number)[-1] == ("doshii.complete", "skipped")
    assert venue.writes(number) == {"put_unlinked": 1}


def test_a_partner_who_changes_it_again_and_again_is_met_in_the_end(venue):
    number = venue.open()
    venue.tell(number, "shipped")
    for word in "abcdefg":
        venue.between(number, notes=word)
    venue.go()
    assert venue.attempts(number)[-1] == ("doshii.complete", "retry")
    assert "changed 3 times" in venue.error(number)
    venue.go_on(5)
    assert venue.state(number) == "done"
    assert venue.statuses(number) == {ACCEPTED: 1, COMPLETE: 1}


def test_an_id_that_another_order_has_is_a_persons_matter(venue):
    venue.add(id="SO-1", status="accepted")
    number = venue.take_in()
    venue.go()
    assert venue.state(number) == "parked"
    assert "SO-1 belongs to another order" in venue.error(number)
    assert venue.there(number)["status"] == "pending"


def test_a_conflict_is_not_answered_with_the_same_body(venue):
    """One request that is turned down while nothing changes, and no second: errors may cost the credentials."""
    venue.add(id="SO-1", status="accepted")
    number = venue.up_to("doshii.accept")
    before = venue.remote.app.test_client().get("/_sandbox/counts").get_json()["requests"].get("PUT", 0)
    venue.go()
    after = venue.remote.app.test_client().get("/_sandbox/counts").get_json()["requests"]["PUT"]
    assert (venue.state(number), after - before) == ("parked", 1)


# === The partner cancels ====================================================================================

MOMENTS = ("doshii.fetch", "erp.draft", "doshii.accept", "doshii.payments", "erp.order", "doshii.follow")


@pytest.mark.parametrize("how", ["told", "lost, and polled", "lost"])
@pytest.mark.parametrize("step", MOMENTS)
def test_cancelled_before_each_step(venue_with, step, how):
    """Lost: neither event nor poll; the steps themselves find it, the last of them when it is looked at again."""
    venue = venue_with({"auto_complete_seconds": None})
    number = venue.take_in(transactions=[LATER])
    venue.go(hold={step})
    before = venue.stage(number)
    venue.remote.edit(number, status="cancelled", quiet=how != "told")
    if how == "told":
        venue.hear()
    elif how == "lost, and polled":
        venue.poll()
    venue.go()
    venue.go_on(2)
    assert venue.state(number) == "cancelled", venue.error(number)
    assert venue.stage(number) in (("cancelled",) if before else (None, "cancelled"))
    assert COMPLETE not in venue.statuses(number)


@pytest.mark.parametrize("status", ["venue_cancelled", "rejected"])
def test_all_that_means_cancelled(venue, status):
    number = venue.open()
    venue.edit(number, status=status)
    venue.go()
    assert (venue.state(number), venue.stage(number)) == ("cancelled", "cancelled")


@pytest.mark.parametrize("how", ["told", "polled", "looked at again"])
def test_cancelled_while_it_waits_for_the_goods(venue, how):
    number = venue.open()
    venue.remote.edit(number, status="cancelled", quiet=how != "told")
    if how == "told":
        venue.hear()
    elif how == "polled":
        venue.poll()
    else:
        venue.go_on(1)
    venue.go()
    assert (venue.state(number), venue.stage(number)) == ("cancelled", "cancelled")
    assert venue.statuses(number) == {ACCEPTED: 1}


@pytest.mark.parametrize("how", ["told", "polled"])
def test_cancelled_while_it_waits_for_its_number(venue, how):
    number = venue.take_in()
    venue.go(erp=False)
    venue.remote.edit(number, status="cancelled", quiet=how == "polled")
    if how == "told":
        venue.hear()
    else:
        venue.poll()
    venue.go()
    assert (venue.state(number), venue.stage(number)) == ("cancelled", "cancelled")
    assert venue.statuses(number) == {}


def test_cancelled_while_it_is_parked(venue):
    number = venue.take_in(items=[CAKE])
    venue.go()
    assert venue.state(number) == "parked"
    venue.edit(number, status="cancelled")
    venue.go()
    assert venue.state(number) == "cancelled"


def test_cancelled_while_a_worker_holds_it(venue):
    """The event comes between the accept and its record."""
    number = venue.up_to("doshii.accept")
    venue.remote.when("PUT", lambda: venue.edit(number, status="cancelled"), "/unlinked_orders/")
    venue.go()
    assert (venue.state(number), venue.stage(number)) == ("cancelled", "cancelled")
    assert venue.statuses(number) == {ACCEPTED: 1}


def test_cancelled_though_done_is_shown(venue):
    number = venue.done(items=[PIZZA])
    venue.edit(number, status="cancelled")
    assert venue.problems() == ["cancelled at Doshii, though it is done here"]
    assert venue.state(number) == "done"


def test_an_order_that_is_gone_stops(venue):
    number = venue.up_to("doshii.accept")
    venue.remote.edit(number, id="X-1", status="accepted", quiet=True)
    venue.go()
    assert venue.state(number) == "parked"
    assert "under the id X-1" in venue.error(number)


# === The ERP, or an operator, cancels or refuses ============================================================


@pytest.mark.parametrize("step", ["doshii.accept", "doshii.payments", "erp.order", "doshii.follow", "doshii.complete"])
def test_the_erp_cancels(venue_with, step):
    venue = venue_with({"auto_complete_seconds": None})
    number = venue.take_in(transactions=[{**LATER, "amount": "1000"}, {**LATER, "amount": "1200"}])
    venue.go(hold={step})
    venue.tell(number, "cancelled")
    venue.go()
    assert venue.state(number) == "cancelled", venue.error(number)
    accepted = step != "doshii.accept"
    assert venue.statuses(number) == ({ACCEPTED: 1, CANCELLED: 1} if accepted else {REJECTED: 1})
    order = venue.there(number)
    assert order["status"] == "cancelled"
    assert (order["rejectionCode"], order["rejectionReason"]) == ("O13", "cancelled by the venue")
    assert "pending" not in {payment["status"] for payment in order["transactions"]}
    paid = step in ("erp.order", "doshii.follow", "doshii.complete")
    assert venue.effects(number)["transaction:pending->rejected"] == (0 if paid else 2)
    assert bool(venue.flags(number)) == paid


def test_an_operator_cancels(venue):
    number = venue.open()
    operators.cancel(venue.ledger, venue.order(number), SYSTEM, "ann")
    venue.go()
    assert (venue.state(number), venue.stage(number)) == ("cancelled", "cancelled")
    assert venue.statuses(number) == {ACCEPTED: 1, CANCELLED: 1}


def test_cancelled_though_paid_is_shown(venue_with):
    """Rejecting is for payments that wait: money that was taken is a matter of people."""
    venue = venue_with({"auto_complete_seconds": None})
    number = venue.open(transactions=[{**PREPAID, "amount": "2000"}, {**LATER, "amount": "200"}])
    operators.cancel(venue.ledger, venue.order(number), SYSTEM, "ann")
    venue.go()
    assert (venue.state(number), venue.there(number)["status"]) == ("cancelled", "cancelled")
    first, second = (payment["id"] for payment in venue.there(number)["transactions"])
    told = f"payment {first} of 20.00 is complete, payment {second} of 2.00 is complete"
    assert venue.problems() == [f"{told}, though the order is cancelled: settle it with the partner"]
    assert venue.flags(number) == [
        "prepaid are 20.00, and the order's total is 22.00",
        f"{told}, though the order is cancelled: settle it with the partner",
    ]


def test_cancelled_though_paid_is_shown_once(venue_with):
    venue = venue_with({"auto_complete_seconds": None})
    number = venue.open(transactions=[PREPAID])
    venue.edit(number, transactions=[{**LATER, "amount": "100"}], quiet=True)
    operators.cancel(venue.ledger, venue.order(number), SYSTEM, "ann")
    venue.remote.faults({"kinds": ("lost_answer",), "method": "PUT", "times": 2})
    venue.go()
    venue.go_on(4)
    assert venue.state(number) == "cancelled", venue.error(number)
    (problem,) = venue.problems()
    assert problem.endswith("of 22.00 is complete, though the order is cancelled: settle it with the partner")
    assert venue.flags(number) == [problem]


def test_what_is_complete_there_cannot_be_cancelled_there(venue):
    number = venue.open(transactions=[PREPAID])
    assert venue.there(number)["status"] == "complete"
    venue.tell(number, "cancelled")
    venue.go()
    assert venue.state(number) == "parked"
    assert "Doshii has the order as complete" in venue.error(number)


def test_the_erp_refuses_at_once(venue):
    number = venue.take_in(items=[{**PIZZA, "quantity": "0.0000001"}], transactions=[PREPAID])
    venue.go()
    assert (venue.state(number), venue.stage(number)) == ("cancelled", None)
    assert venue.statuses(number) == {REJECTED: 1}
    assert "decimal places" in venue.there(number)["rejectionReason"]


def test_the_erp_refuses_its_draft_of_an_accepted_order(venue):
    number = venue.up_to("doshii.payments", transactions=[PREPAID])
    venue.tell(number, "refused", reason="no credit")
    venue.go()
    assert (venue.state(number), venue.payment(number)) == ("cancelled", "rejected")
    assert venue.statuses(number) == {ACCEPTED: 1, CANCELLED: 1}
    assert "no credit" in venue.there(number)["rejectionReason"]


def test_an_order_that_the_erp_will_not_confirm_is_a_persons_matter(venue):
    number = venue.open()
    venue.tell(number, "refused", reason="no credit")
    venue.go()
    assert (venue.state(number), venue.there(number)["status"]) == ("parked", "accepted")
    assert "no credit" in venue.error(number)
    operators.cancel(venue.ledger, venue.order(number), SYSTEM, "ann")
    venue.go()
    assert (venue.state(number), venue.there(number)["status"]) == ("cancelled", "cancelled")


@pytest.mark.parametrize(("code", "sent"), [("O2", "O2"), (None, "O13")])
def test_the_code_of_a_rejection(venue_with, code, sent):
    venue = venue_with(**({"DOSHII_REJECTION_CODE": code} if code else {}))
    number = venue.take_in(items=[{**PIZZA, "posId": "UNKNOWN-PRODUCT"}])
    venue.go()
    order = venue.there(number)
    assert (order["rejectionCode"], order["rejectionReason"]) == (
        sent,
        "the ERP refuses the order: Unknown product UNKNOWN-PRODUCT",
    )


def test_a_code_that_doshii_does_not_know_is_a_persons_matter(venue_with):
    venue = venue_with(DOSHII_REJECTION_CODE="ZZ")
    number = venue.take_in(items=[{**PIZZA, "posId": "UNKNOWN-PRODUCT"}])
    venue.go()
    assert venue.state(number) == "parked"
    assert "rejectionCode ZZ is unknown" in venue.error(number)


def test_trap_12_a_rejected_order_takes_its_payments_along(venue):
    number = venue.take_in(items=[{**PIZZA, "posId": "UNKNOWN-PRODUCT"}], transactions=[PREPAID, LATER, PREPAID])
    venue.go()
    assert venue.state(number) == "cancelled"
    assert {payment["status"] for payment in venue.there(number)["transactions"]} == {"rejected"}
    assert venue.effects(number)["transaction:pending->rejected"] == 3
    assert venue.effects(number)[PAID] == 0
    assert {payment["rejectionCode"] for payment in venue.there(number)["transactions"]} == {"POSISE"}


# === Payments ===============================================================================================


def test_payments_go_ahead_before_the_erp_confirms(venue):
    number = venue.up_to("erp.order", transactions=[PREPAID])
    assert (venue.payment(number), venue.stage(number)) == ("complete", "draft")


def test_no_payment_is_taken_before_the_order_is_accepted(venue):
    number = venue.up_to("doshii.accept", transactions=[PREPAID])
    assert venue.payment(number) == "pending"


@pytest.mark.parametrize("how", ["told", "lost"])
def test_a_payment_that_comes_late(venue, how):
    number = venue.open()
    venue.remote.edit(number, transactions=[PREPAID], quiet=how == "lost")
    if how == "told":
        venue.hear()
        venue.go_on(1)
        assert venue.payment(number) == "complete"
    venue.tell(number, "completed")
    venue.go()
    assert (venue.state(number), venue.payment(number)) == ("done", "complete")
    assert venue.effects(number)["transaction:pending->waiting"] == 1


def put_off(venue: Venue) -> None:
    """News that was put off is read once more; no recheck becomes due by it."""
    venue.news_gets_old()
    venue.read_news()
    venue.worker.sweep.run()
    venue.go()


def test_a_payment_that_comes_while_the_order_is_looked_at(venue):
    """Just after the step has read the payments: when it has ended the order is looked at again, and soon."""
    number = venue.up_to("doshii.follow")
    paid = {"transactions": [PREPAID]}
    venue.remote.when("GET", lambda: venue.edit(number, **paid), "/transactions")
    venue.go()
    assert venue.payment(number) == "pending"
    put_off(venue)
    assert (venue.state(number), venue.payment(number)) == ("waiting", "complete")
    assert venue.problems() == []


def test_a_payment_that_comes_while_the_order_is_completed(venue):
    number = venue.open()
    venue.tell(number, "completed")
    venue.remote.when("PUT", lambda: venue.edit(number, transactions=[PREPAID]), "/orders/")
    venue.go()
    assert (venue.state(number), venue.payment(number)) == ("done", "pending")
    put_off(venue)
    (problem,) = venue.problems()
    assert problem.endswith("of 22.00: asked for at Doshii, though the order is done here")


@pytest.mark.parametrize("before", ["doshii.fetch", "doshii.accept", "erp.order"])
def test_a_payment_that_comes_before_its_time_waits_for_it(venue, before):
    number = venue.up_to(before)
    venue.edit(number, transactions=[PREPAID])
    venue.go()
    assert venue.payment(number) == "complete"
    assert venue.effects(number)[PAID] == 1


def test_several_payments_each_once(venue):
    number = venue.open(transactions=[{**PREPAID, "amount": "1000"}, {**LATER, "amount": "1200"}])
    assert {payment["status"] for payment in venue.there(number)["transactions"]} == {"complete"}
    assert venue.effects(number)["transaction:pending->waiting"] == 2
    assert venue.attempts(number).count(("doshii.payments", "partly")) == 1


def test_a_payment_changed_between_read_and_answer(venue):
    number = venue.up_to("doshii.payments", transactions=[{**PREPAID, "amount": "2000"}])
    (payment,) = venue.there(number)["transactions"]
    venue.between(number, transactions=[{"id": payment["id"], "amount": "2200"}])
    venue.go()
    (payment,) = venue.there(number)["transactions"]
    assert (payment["status"], payment["amount"]) == ("complete", "2200")


def test_a_payment_that_the_partner_could_not_take(venue):
    number = venue.done(transactions=[{**LATER, "answers": "rejected"}])
    assert venue.payment(number) == "rejected"
    assert venue.statuses(number) == {ACCEPTED: 1, COMPLETE: 1}


def test_paid_twice_stops_for_a_person_and_the_food_is_made(venue_with):
    venue = venue_with({"auto_complete_seconds": None})
    number = venue.take_in(transactions=[PREPAID, PREPAID])
    venue.go()
    assert (venue.state(number), venue.stage(number)) == ("parked", "confirmed")
    first, second = venue.there(number)["transactions"]
    assert (first["status"], second["status"]) == ("complete", "pending")
    assert f"payment {second['id']} of 22.00" in venue.error(number)
    assert "more than is due" in venue.error(number)


def test_no_more_is_taken_than_is_due(venue_with):
    venue = venue_with({"auto_complete_seconds": None})
    number = venue.take_in(transactions=[{**LATER, "amount": "2000"}, {**LATER, "amount": "9900"}])
    venue.go()
    first, second = venue.there(number)["transactions"]
    assert (first["status"], second["status"]) == ("complete", "pending")
    assert (venue.state(number), venue.stage(number)) == ("parked", "confirmed")
    assert f"payment {second['id']} of 99.00: more than is due" in venue.error(number)


def test_a_tip_may_be_more_than_is_due(venue_with):
    venue = venue_with({"auto_complete_seconds": None})
    number = venue.open(transactions=[{**LATER, "amount": "2500", "tip": "300"}])
    assert venue.payment(number) == "complete"
    assert venue.flags(number) == []


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [("refuse-payment", "rejected", "rejected"), ("accept-payment", "complete", "went ahead with")],
)
def test_a_person_answers_a_payment(venue_with, command, status, said):
    venue = venue_with({"auto_complete_seconds": None})
    number = venue.take_in(transactions=[PREPAID, PREPAID])
    venue.go()
    second = venue.there(number)["transactions"][1]
    asked, told = venue.command(number, command)
    assert f"payment {second['id']} of 22.00" in asked
    assert told == f"{said} payment {second['id']} of 22.00"
    assert venue.there(number)["transactions"][1]["status"] == status
    venue.go_on(ships=True)
    assert venue.state(number) == "done", venue.error(number)
    with pytest.raises(Refused, match="there is none"):
        venue.command(number, command)


def test_money_goes_back_only_if_a_person_says_so(venue):
    number = venue.open()
    venue.edit(number, transactions=[{**LATER, "amount": "-500"}])
    venue.go_on(1)
    assert venue.state(number) == "parked"
    assert "of -5.00" in venue.error(number)
    assert venue.payment(number) == "pending"
    venue.command(number, "refuse-payment", reason="nothing was wrong")
    venue.go_on(2, ships=True)
    assert (venue.state(number), venue.payment(number)) == ("done", "rejected")


def test_of_several_payments_one_must_be_named(venue_with):
    venue = venue_with({"auto_complete_seconds": None})
    number = venue.take_in(transactions=[PREPAID, PREPAID, PREPAID])
    venue.go()
    with pytest.raises(Refused, match="name one of the payments that wait"):
        venue.command(number, "refuse-payment")
    third = venue.there(number)["transactions"][2]["id"]
    venue.command(number, "refuse-payment", id=third)
    assert [one["status"] for one in venue.there(number)["transactions"]] == ["complete", "pending", "rejected"]


def test_a_refund_of_a_done_order_is_shown(venue):
    number = venue.done()
    venue.edit(number, transactions=[{**LATER, "amount": "-500"}])
    (problem,) = venue.problems()
    assert problem.endswith("of -5.00: asked for at Doshii, though the order is done here")


def test_prepaid_and_total_differ(venue):
    number = venue.open(transactions=[{**PREPAID, "amount": "2000"}])
    assert venue.flags(number) == ["prepaid are 20.00, and the order's total is 22.00"]


# === Appended items =========================================================================================


def appended(number: str, venue: Venue) -> list[tuple[str, str]]:
    return [(item["posId"], item["status"]) for item in venue.there(number)["unapprovedItems"]]


def products(number: str, venue: Venue) -> list[str]:
    return [line["product"] for line in venue.erp_lines(number)]


@pytest.mark.parametrize("step", ["doshii.fetch", "erp.draft", "doshii.accept"])
def test_appended_before_the_accept_is_taken_over(venue, step):
    number = venue.up_to(step)
    venue.edit(number, unapprovedItems=[COLA])
    venue.go(ships=True)
    assert venue.state(number) == "done", venue.error(number)
    assert products(number, venue) == ["pep_pizza", "cola"]
    assert [item["posId"] for item in venue.there(number)["items"]] == ["pep_pizza", "cola"]
    assert appended(number, venue) == []
    assert venue.effects(number)["items_approved"] == 1
    assert str(venue.in_erp(number)[0]["total"]) == "26.50"


def test_appended_before_the_erp_confirms_is_taken_over(venue):
    number = venue.up_to("erp.order")
    venue.edit(number, unapprovedItems=[COLA])
    venue.go(ships=True)
    assert venue.state(number) == "done", venue.error(number)
    assert products(number, venue) == ["pep_pizza", "cola"]
    assert venue.effects(number)["items_approved"] == 1
    assert venue.statuses(number) == {ACCEPTED: 1, COMPLETE: 1}
    assert [outcome for step, outcome in venue.attempts(number) if step == "erp.order"] == ["replanned", "done"]


def test_appended_while_the_erp_confirms_is_a_persons_matter(venue):
    """The worker confirms while the news is read: what the ERP has by then is not taken in anew."""
    number = venue.up_to("erp.order")
    venue.remote.when("GET", venue.worker.work, "/orders/SO-1")
    venue.edit(number, unapprovedItems=[COLA], notes="Ring twice")
    venue.go()
    assert (venue.stage(number), venue.there(number)["status"]) == ("confirmed", "accepted")
    assert "replanned" not in {outcome for _, outcome in venue.attempts(number)}
    venue.go_on(1)
    assert (venue.state(number), venue.order(number)["step"]) == ("parked", "doshii.follow")
    assert "appended 1 x Cola after the ERP confirmed" in venue.error(number)
    assert venue.statuses(number) == {ACCEPTED: 1}


def test_the_worker_dies_between_approval_and_record(venue):
    number = venue.take_in(unapprovedItems=[COLA])
    venue.go(hold={"doshii.approve"})
    assert venue.order(number)["step"] == "doshii.approve"
    venue.dies_at(number)
    venue.go_on(ships=True)
    assert venue.state(number) == "done", venue.error(number)
    assert venue.effects(number)["items_approved"] == 1
    assert products(number, venue) == ["pep_pizza", "cola"]


def test_appended_and_withdrawn_before_the_approval(venue):
    number = venue.take_in(unapprovedItems=[COLA])
    venue.go(hold={"doshii.approve"})
    assert products(number, venue) == ["pep_pizza", "cola"]
    venue.edit(number, unapprovedItems=[])
    venue.go(ships=True)
    assert venue.state(number) == "done", venue.error(number)
    assert products(number, venue) == ["pep_pizza"]
    assert venue.effects(number)["items_approved"] == 0


def test_appended_once_more_before_the_approval(venue):
    number = venue.take_in(unapprovedItems=[COLA])
    venue.go(hold={"doshii.approve"})
    waiting = venue.there(number)["unapprovedItems"]
    venue.between(number, unapprovedItems=[*waiting, {**COLA, "posId": "soup"}])
    venue.go(ships=True)
    assert venue.state(number) == "done", venue.error(number)
    assert products(number, venue) == ["pep_pizza", "cola", "soup"]
    assert venue.effects(number)["items_approved"] == 1


def test_appended_before_the_approval_and_nothing_to_book_it_on(venue):
    """What the draft has not is not approved, and neither is what came with it."""
    number = venue.take_in(unapprovedItems=[COLA])
    venue.go(hold={"doshii.approve"})
    waiting = venue.there(number)["unapprovedItems"]
    venue.edit(number, unapprovedItems=[*waiting, CAKE])
    venue.go()
    assert (venue.state(number), venue.order(number)["step"]) == ("parked", "doshii.follow")
    assert products(number, venue) == ["pep_pizza"]
    assert [item["posId"] for item in venue.there(number)["items"]] == ["pep_pizza"]
    assert venue.effects(number)["items_approved"] == 0


def test_cancelled_before_the_approval(venue):
    number = venue.take_in(unapprovedItems=[COLA])
    venue.go(hold={"doshii.approve"})
    venue.remote.edit(number, status="cancelled", quiet=True)
    venue.go()
    assert (venue.state(number), venue.stage(number)) == ("cancelled", "cancelled")
    assert venue.effects(number)["items_approved"] == 0


@pytest.mark.parametrize("how", ["told", "polled"])
def test_appended_after_the_erp_confirmed_is_parked(venue, how):
    number = venue.open()
    venue.remote.edit(number, unapprovedItems=[COLA], quiet=how == "polled")
    if how == "told":
        venue.hear()
    else:
        venue.poll()
    venue.worker.sweep.run()
    venue.go()
    assert venue.state(number) == "parked"
    assert "appended 1 x Cola after the ERP confirmed" in venue.error(number)
    assert products(number, venue) == ["pep_pizza"]


@pytest.mark.parametrize(
    ("command", "items", "left"),
    [("approve-items", ["pep_pizza", "cola"], []), ("decline-items", ["pep_pizza"], [("cola", "cancelled")])],
)
def test_a_person_answers_appended_items(venue, command, items, left):
    number = venue.open()
    venue.edit(number, unapprovedItems=[COLA])
    venue.go_on(1)
    asked, told = venue.command(number, command)
    assert "1 x Cola" in asked
    assert "1 x Cola" in told
    assert [item["posId"] for item in venue.there(number)["items"]] == items
    assert appended(number, venue) == left
    with pytest.raises(Refused, match="no items of this order wait"):
        venue.command(number, command)
    venue.go_on(ships=True)
    assert venue.state(number) == "done", venue.error(number)
    assert bool(venue.flags(number)) == (command == "approve-items")


def test_a_person_approves_the_price_that_was_shown(venue):
    number = venue.open()
    venue.edit(number, unapprovedItems=[COLA])
    command = SYSTEM.commands["approve-items"]
    doing = operators.Doing(venue.fleet, venue.order(number), "approve-items", command, {}, "ann")
    assert doing.ask() == "approve 1 x Cola for 4.50: the ERP must have it"
    (waiting,) = venue.there(number)["unapprovedItems"]
    dear = {"unitPrice": "900", "totalBeforeSurcounts": "900", "totalAfterSurcounts": "900"}
    venue.edit(number, unapprovedItems=[{**waiting, **dear}])
    with pytest.raises(operators.NotPossible, match=r"1 x Cola for 9\.00"):
        doing.run()
    assert venue.effects(number)["items_approved"] == 0


def test_withdrawn_after_it_was_parked_goes_on(venue):
    number = venue.open()
    venue.edit(number, unapprovedItems=[COLA])
    venue.go_on(1)
    assert venue.state(number) == "parked"
    venue.edit(number, unapprovedItems=[])
    venue.go_on(2, ships=True)
    assert venue.state(number) == "done", venue.error(number)


def test_appended_items_that_the_erp_refuses_do_not_take_the_order_along(venue):
    number = venue.take_in(unapprovedItems=[{**COLA, "quantity": "0.0000001"}])
    venue.go()
    assert (venue.state(number), venue.there(number)["status"]) == ("parked", "accepted")
    assert "decimal places" in venue.error(number)
    venue.command(number, "decline-items")
    venue.replay(number, position=0)
    venue.go_on(ships=True)
    assert venue.state(number) == "done", venue.error(number)
    assert products(number, venue) == ["pep_pizza"]


def test_appended_open_items_without_a_product_for_them(venue):
    number = venue.take_in(unapprovedItems=[CAKE])
    venue.go()
    assert (venue.state(number), venue.stage(number)) == ("parked", "confirmed")
    venue.command(number, "approve-items")
    venue.go_on(ships=True)
    assert venue.state(number) == "done", venue.error(number)


def test_items_that_nobody_answered_before_doshii_completed_the_order(venue):
    number = venue.open()
    venue.edit(number, unapprovedItems=[COLA], transactions=[PREPAID], quiet=True)
    venue.go_on(2)
    assert venue.there(number)["status"] == "complete"
    assert venue.flags(number) == ["appended at Doshii, and never answered: 1 x Cola"]
    venue.go_on(ships=True)
    assert venue.state(number) == "done"


def test_items_changed_after_the_erp_confirmed_are_flagged(venue):
    number = venue.open()
    item = venue.there(number)["items"][0]
    venue.edit(number, items=[{**item, "quantity": 3}])
    venue.go_on(ships=True)
    assert venue.state(number) == "done"
    assert venue.flags(number) == [
        "changed at Doshii after the ERP confirmed it: 2 x Pepperoni Pizza is now 3 x Pepperoni Pizza"
    ]


def test_whatever_is_changed_after_the_erp_confirmed_is_flagged_once(venue):
    def size(name: str) -> dict[str, Any]:
        return {"options": [{"name": "Size", "variants": [{"name": name, "price": "0"}]}]}

    number = venue.open(items=[{**PIZZA, **size("Large")}])
    (item,) = venue.there(number)["items"]
    cheap = {"unitPrice": "900", "totalBeforeSurcounts": "1800", "totalAfterSurcounts": "1800"}
    later = {"requiredAt": "2099-12-31T18:30:00.000Z", "notes": "NUT ALLERGY"}
    venue.edit(number, items=[{**item, **size("Small"), **cheap}], **later)
    venue.go_on(3)
    flags = [
        "2 x Pepperoni Pizza, Size: Large is now 2 x Pepperoni Pizza, Size: Small",
        "2 x Pepperoni Pizza, Size: Small is now 9.00 each, 18.00 in all, and was 11.00 each, 22.00 in all",
        "it is wanted at 2099-12-31 18:30 UTC, and was as soon as possible",
        "its notes are now 'pickup; NUT ALLERGY', and were 'pickup'",
    ]
    assert venue.flags(number) == [f"changed at Doshii after the ERP confirmed it: {flag}" for flag in flags]
    assert venue.state(number) == "waiting"


def test_the_price_of_an_appended_item_changed_before_the_approval(venue):
    """What is approved is what the ERP has, to the cent."""
    number = venue.take_in(unapprovedItems=[COLA])
    venue.go(hold={"doshii.approve"})
    (waiting,) = venue.there(number)["unapprovedItems"]
    dear = {"unitPrice": "900", "totalBeforeSurcounts": "900", "totalAfterSurcounts": "900"}
    venue.edit(number, unapprovedItems=[{**waiting, **dear}])
    venue.go(ships=True)
    assert venue.state(number) == "done", venue.error(number)
    assert str(venue.in_erp(number)[0]["total"]) == "31.00"
    assert venue.effects(number)["items_approved"] == 1
    assert venue.flags(number) == []


# === What the ERP has confirmed, and the partner has changed, goes on when a person has seen to it ==========


def acknowledge(venue: Venue, number: str) -> None:
    """What the words and the runbook advise: `orderfleet replay ORDER --acknowledge`."""
    assert (venue.state(number), venue.stage(number)) == ("parked", "confirmed")
    assert "the ERP has this order already, with another" in venue.error(number)
    assert "`orderfleet replay ORDER --acknowledge`" in venue.error(number)
    operators.replay(venue.ledger, operators.foresee(venue.fleet, venue.order(number)), "ann", acknowledged=True)
    venue.go_on(2, ships=True)
    assert venue.state(number) == "done", venue.error(number)
    assert venue.statuses(number) == {ACCEPTED: 1, COMPLETE: 1}
    assert venue.stage(number) == "confirmed"


def replay_from_fetch(venue: Venue, number: str) -> None:
    operators.replay(venue.ledger, operators.foresee(venue.fleet, venue.order(number), "doshii.fetch"), "ann")
    venue.go()


def test_replayed_after_a_change(venue):
    number = venue.open()
    venue.edit(number, notes="Ring twice")
    venue.go_on(1)
    replay_from_fetch(venue, number)
    acknowledge(venue, number)


def test_replayed_after_appended_items_were_approved(venue):
    number = venue.open()
    venue.edit(number, unapprovedItems=[COLA])
    venue.go_on(1)
    venue.command(number, "approve-items")
    venue.go_on(1)
    replay_from_fetch(venue, number)
    acknowledge(venue, number)
    assert [item["posId"] for item in venue.there(number)["items"]] == ["pep_pizza", "cola"]


def test_replayed_while_appended_items_wait(venue):
    """The person who has seen to the ERP has the items approved by it."""
    number = venue.open()
    venue.edit(number, unapprovedItems=[COLA])
    venue.go_on(1)
    replay_from_fetch(venue, number)
    acknowledge(venue, number)
    assert [item["posId"] for item in venue.there(number)["items"]] == ["pep_pizza", "cola"]
    assert venue.effects(number)["items_approved"] == 1


def test_released_as_the_runbook_says_after_an_older_ledger_was_restored(venue):
    number = venue.open()
    venue.edit(number, notes="Ring twice")
    with venue.ledger.transaction() as connection:  # as it was before the order was fetched
        row = connection.execute(select(orders)).one()
        connection.execute(delete(signals))
        connection.execute(delete(documents))
        connection.execute(update(orders).values(facts="{}", signalled=""))
        rows.replan(connection, row, 0, PLAN, State.DONE)
    venue.go()
    assert "release the order to go on with it under that id" in venue.error(number)
    operators.release(venue.ledger, venue.order(number), SYSTEM, "ann")
    venue.go()
    acknowledge(venue, number)


# === Late, doubled, lost and disordered news (7.5) ==========================================================


def send(venue: Venue, event: str, **data: Any) -> None:
    """An event as the imitation sends it, true or not."""
    answer = venue.remote.app.test_client().post("/_sandbox/events", json={"event": event, "data": data})
    assert answer.status_code == 201
    venue.hear()


def test_created_again_changes_nothing(venue):
    number = venue.up_to("doshii.accept")
    for _ in range(3):
        send(venue, "order_created", id=number, status="pending")
    venue.go(ships=True)
    send(venue, "order_created", id=number, status="pending")
    venue.go_on()
    assert venue.state(number) == "done"
    assert venue.statuses(number) == {ACCEPTED: 1, COMPLETE: 1}
    assert venue.problems() == []


def test_cancelled_before_it_is_known(venue):
    number = venue.add()
    venue.remote.edit(number, status="cancelled", quiet=True)
    send(venue, "order_updated", id=number, status="cancelled")
    venue.go()
    send(venue, "order_created", id=number, status="pending")
    venue.go()
    assert (venue.state(number), venue.stage(number)) == ("cancelled", None)


def test_the_fetched_status_wins_over_the_events(venue):
    number = venue.open()
    send(venue, "order_updated", id=number, status="cancelled", posRef="SO-1")
    venue.go_on(1)
    assert (venue.state(number), venue.stage(number)) == ("waiting", "confirmed")


def test_created_for_an_order_that_somebody_else_accepted(venue):
    number = venue.add(id="X-99", status="accepted")
    send(venue, "order_created", id=number, status="pending")
    venue.go()
    assert (venue.state(number), venue.stage(number)) == ("parked", None)
    assert "accepted under the id X-99, which we did not give it" in venue.error(number)


def test_a_person_may_adopt_what_is_linked_already(venue):
    number = venue.add(id="X-99", status="accepted")
    send(venue, "order_created", id=number, status="pending")
    venue.go()
    operators.release(venue.ledger, venue.order(number), SYSTEM, "ann")
    venue.go(ships=True)
    assert (venue.state(number), venue.stage(number)) == ("done", "confirmed")
    assert venue.statuses(number) == {COMPLETE: 1}
    assert venue.there(number)["id"] == "X-99"


def test_what_was_adopted_and_refused_by_the_erp_is_cancelled_there(venue):
    number = venue.add(id="X-99", status="accepted", items=[{**PIZZA, "posId": "UNKNOWN-PRODUCT"}])
    send(venue, "order_created", id=number, status="pending")
    venue.go()
    operators.release(venue.ledger, venue.order(number), SYSTEM, "ann")
    venue.go()
    order = venue.there(number)
    assert (venue.state(number), order["status"], order["id"]) == ("cancelled", "cancelled", "X-99")
    assert "Unknown product UNKNOWN-PRODUCT" in order["rejectionReason"]
    assert venue.statuses(number) == {CANCELLED: 1}


def test_complete_before_it_is_known(venue):
    number = venue.add(id="X-99", status="complete")
    send(venue, "order_created", id=number, status="pending")
    venue.go()
    assert (venue.state(number), venue.stage(number)) == ("ignored", None)


def test_news_of_an_order_made_at_the_till_make_none(venue):
    number = venue.add(id="TILL-1", status="accepted")
    send(venue, "order_updated", id=number, status="accepted", posRef="TILL-1")
    venue.poll()
    assert queries.listing(venue.ledger, queries.Filter()) == []


def test_an_order_that_is_gone_for_a_moment_is_taken_in(venue):
    number = venue.take_in()
    gone = breaks(venue, f"/unlinked_orders/{number}", 404)
    venue.go()
    assert venue.state(number) == "retrying"
    gone.clear()
    venue.go_on(1, ships=True)
    assert venue.state(number) == "done", venue.error(number)


def test_an_order_that_is_gone_for_longer_is_looked_for_again(venue):
    number = venue.take_in()
    gone = breaks(venue, f"/unlinked_orders/{number}", 404)
    venue.go()
    venue.go_on(4)
    assert (venue.state(number), venue.stage(number)) == ("parked", None)
    assert f"Doshii has no order {number}" in venue.error(number)
    gone.clear()
    venue.go_on(2, ships=True)
    assert venue.state(number) == "done", venue.error(number)


def test_an_order_that_is_gone_for_a_moment_is_cancelled_there_all_the_same(venue):
    number = venue.up_to("doshii.accept")
    gone = breaks(venue, f"/unlinked_orders/{number}", 404)
    operators.cancel(venue.ledger, venue.order(number), SYSTEM, "ann")
    venue.go()
    assert venue.state(number) == "retrying"
    gone.clear()
    venue.go_on()
    assert (venue.state(number), venue.there(number)["status"]) == ("cancelled", "cancelled")


def test_an_order_that_is_gone_is_shown_and_can_be_cancelled(venue):
    number = venue.open()
    store = venue.remote.app.extensions["doshii"].store
    store.orders.pop(number)
    store.linked.clear()
    store._by_update.clear()
    send(venue, "order_updated", id=number, posRef="SO-1")
    assert venue.problems() == [f"Doshii has no order {number}, neither unlinked nor linked"]
    operators.cancel(venue.ledger, venue.order(number), SYSTEM, "ann")
    venue.go()
    venue.go_on(4)  # it is looked for a few times: a 404 may pass
    assert (venue.state(number), venue.stage(number)) == ("cancelled", "cancelled")


def test_an_order_whose_id_moved_is_found_by_its_own_number(venue):
    """What trap 6 may mean: Doshii keeps it under another id than ours."""
    number = venue.open()
    venue.remote.edit(number, id=number, quiet=True)
    venue.go_on(1)
    venue.tell(number, "completed")
    venue.go()
    assert (venue.state(number), venue.there(number)["status"]) == ("done", "complete")
    assert venue.writes(number) == {"put_unlinked": 1, "put_order": 1}


def test_it_is_found_among_others(venue):
    number = venue.open()
    for other in ("TILL-1", "TILL-2"):
        venue.add(id=other, status="accepted")
    venue.remote.edit(number, id="MOVED", quiet=True)
    assert venue.foresee(number, "doshii.follow").text == "there is nothing new"


def test_a_linked_order_that_cannot_be_read(venue):
    """The poll goes on, and a person sees what Doshii said."""
    number = venue.open()
    venue.remote.edit(number, notes="Ring twice", quiet=True)

    def no_reading() -> Response | None:
        return Response(status=400) if request.path.endswith("/orders/SO-1") else None

    venue.remote.app.before_request_funcs.setdefault(None, []).append(no_reading)
    venue.poll()
    (problem,) = venue.problems()
    assert problem.startswith("GET /orders/SO-1: 400")
    assert queries.cursor(venue.ledger, "doshii.poll:default") is not None


def breaks(venue: Venue, path: str, status: int) -> list[bool]:
    """Doshii cannot show what is at this path, as long as the list is not emptied."""
    broken = [True]

    def no_reading() -> Response | None:
        here = broken and request.method == "GET" and request.path.endswith(path)
        return Response(status=status) if here else None

    venue.remote.app.before_request_funcs.setdefault(None, []).append(no_reading)
    return broken


def test_an_order_that_cannot_be_read_hides_no_other(venue):
    """It is read when that is possible again, however long it takes."""
    broken, other = venue.open(), venue.open()
    venue.remote.edit(broken, unapprovedItems=[COLA], quiet=True)
    venue.remote.edit(other, status="cancelled", quiet=True)
    still = breaks(venue, "/orders/SO-1", 500)
    for _ in range(3):
        venue.poll()
    venue.go()
    assert venue.state(other) == "cancelled"
    assert (venue.state(broken), venue.problems()) == ("waiting", [])
    still.clear()
    put_off(venue)
    assert "appended 1 x Cola" in venue.error(broken)


def test_a_status_that_nobody_knows_is_shown_once_and_hides_no_other(venue):
    linked = venue.open()
    odd, number = venue.add(), venue.add(items=[COLA])
    store = venue.remote.app.extensions["doshii"].store
    store.orders[odd].status = "on_hold"
    store.orders[linked].status = "on_hold"
    for _ in range(3):
        venue.poll()
    assert set(queries.order_ids(venue.ledger, "doshii", "default", [odd, number])) == {number}
    assert venue.state(linked) == "waiting"
    assert sorted(venue.problems()) == sorted(
        f"a row of Doshii's orders cannot be read: status: 'on_hold' is not a known status ({one})"
        for one in (f"order {odd}", f"order {linked}")
    )


@pytest.mark.parametrize("ahead", [0, 5, 10])
def test_clocks_may_differ_by_ten_minutes(venue, ahead):
    """Ours is ahead: what Doshii has just changed looks old."""
    number = venue.open()
    venue.poll()
    venue.remote.edit(number, status="cancelled", quiet=True)
    store = venue.remote.app.extensions["doshii"].store
    store.orders[number].updated -= 60 * ahead
    venue.poll()
    venue.go()
    assert (venue.state(number), venue.stage(number)) == ("cancelled", "cancelled")


def test_what_the_poll_sees_again_is_not_read_again(venue):
    """Rows show up for as long as clocks may differ; only what changed since the last poll is worth a look."""
    numbers = [venue.open() for _ in range(3)]
    store = venue.remote.app.extensions["doshii"].store
    for number in numbers:
        store.orders[number].updated -= 300

    def reads() -> int:
        counts = venue.remote.app.test_client().get("/_sandbox/counts").get_json()
        return int(counts["requests"].get("GET", 0))

    venue.poll()
    before = reads()
    venue.poll()
    assert reads() - before <= 5  # the lists, each to its empty page


def test_our_own_writes_are_no_news_to_the_poll(venue):
    number = venue.open()
    venue.poll()
    venue.poll()
    kinds = [row["kind"] for row in queries.timeline(venue.ledger, venue.order(number)["id"])]
    assert kinds.count("event") <= 1
    venue.edit(number, notes="Ring twice", quiet=True)
    venue.poll()
    venue.poll()
    with venue.ledger.reading() as connection:
        keys = list(connection.execute(select(events.c.dedupe_key).order_by(events.c.id)).scalars())
    version = venue.there(number)["version"]
    assert keys == [f"unlinked:{number}", f"linked:{number}@{version}"]


def test_the_poll_goes_on_where_it_was(venue):
    venue.poll()
    kept = queries.cursor(venue.ledger, "doshii.poll:default")
    venue.poll()
    again = queries.cursor(venue.ledger, "doshii.poll:default")
    assert kept is not None
    assert again is not None
    assert int(kept) <= int(again)


# === Traps of the contract ==================================================================================


def test_trap_03_money_as_text_or_number_adds_up_alike(venue_with):
    for money in ("string", "number", "mixed"):
        venue = venue_with({"money": money})
        number = venue.done(items=[{**PIZZA, "surcounts": [{"name": "Fee", "value": "100"}]}])
        assert str(venue.in_erp(number)[0]["total"]) == "23.00"
        assert venue.flags(number) == []


def test_trap_06_the_id_that_we_sent_stays_ours(venue_with):
    venue = venue_with({"answer_with_doshii_id": True})
    number = venue.done()
    assert venue.order(number)["facts"]["pos_id"] == "SO-1"
    assert venue.there(number)["id"] == "SO-1"
    assert venue.statuses(number) == {ACCEPTED: 1, COMPLETE: 1}


def test_trap_07_after_linking_it_is_found_under_our_id(venue):
    number = venue.open()
    venue.edit(number, notes="Ring twice")  # the event's id is Doshii's
    venue.go_on(1)
    assert ("doshii.follow", "done") in venue.attempts(number)[-2:]
    assert venue.state(number) == "waiting"


def test_trap_09_only_items_are_booked(venue):
    number = venue.up_to("doshii.accept", unapprovedItems=[COLA])
    assert products(number, venue) == ["pep_pizza"]
    assert str(venue.in_erp(number)[0]["total"]) == "22.00"


@pytest.mark.parametrize("product", [None, "misc"])
def test_trap_10_an_open_item_needs_a_product(venue_with, product):
    venue = venue_with(**({"DOSHII_OPEN_ITEM_PRODUCT": product} if product else {}))
    number = venue.take_in(items=[PIZZA, CAKE])
    venue.go(ships=True)
    if product:
        assert venue.state(number) == "done"
        assert products(number, venue) == ["pep_pizza", "misc"]
    else:
        assert (venue.state(number), venue.stage(number)) == ("parked", None)
        assert "Birthday cake: ordered without a POS id" in venue.error(number)
        assert "DOSHII_OPEN_ITEM_PRODUCT" in venue.error(number)


def test_trap_13_nothing_is_written_under_an_id_that_is_not_linked(venue):
    """Whatever happens, no second order comes into being at Doshii."""
    number = venue.open()
    venue.tell(number, "completed")
    venue.remote.edit(number, id=None, status="pending", quiet=True)
    venue.go()
    assert venue.state(number) == "parked"
    assert len(venue.remote.all_orders()) == 1
    assert "created" not in venue.writes(number)


def test_trap_13_nor_by_a_persons_command(venue):
    number = venue.up_to("doshii.accept", transactions=[PREPAID], unapprovedItems=[COLA])
    with pytest.raises(Refused, match="no payment is taken"):
        venue.command(number, "accept-payment")
    venue.remote.edit(number, status="accepted", quiet=True)  # as no Doshii should show it: accepted, and not linked
    with pytest.raises(Refused, match="nothing is written"):
        venue.command(number, "approve-items")
    assert venue.writes(number) == {}


def test_trap_15_an_event_is_answered_while_doshii_is_down(venue):
    number = venue.add()
    venue.remote.faults({"kinds": ("500_before",)})
    send(venue, "order_created", id=number, status="pending")
    (delivery,) = venue.remote.app.extensions["doshii"].post.deliveries()
    assert delivery.statuses == [200]
    assert (venue.state(number) in ("ready", "queued"), venue.attempts(number)) == (True, [])


def test_trap_17_an_order_for_later_is_accepted_now(venue):
    number = venue.open(requiredAt="2099-12-31T18:30:00.000Z")
    (row,) = venue.in_erp(number)
    assert row["requested_at"].isoformat() == "2099-12-31T18:30:00+00:00"
    assert venue.statuses(number) == {ACCEPTED: 1}


@pytest.mark.parametrize("consumer", [None, {}, {"name": "A. Buyer"}])
def test_trap_18_a_table_needs_no_consumer(venue, consumer):
    number = venue.done(type="dinein", consumer=consumer, checkin={"id": "3", "tableNames": ["4"], "covers": "2"})
    assert venue.in_erp(number)[0]["notes"] == "dinein at 4 for 2"


def test_trap_19_ids_keep_to_what_a_path_can_hold(venue):
    number = venue.take_in()
    venue.go(erp=False)
    venue.tell(number, "numbered", order_number="SO/2024/0001", lines={})
    venue.tell(number, "completed")
    venue.go(erp=False)
    assert (venue.state(number), venue.there(number)["id"]) == ("done", "SO-2024-0001")


def test_trap_20_the_list_holds_orders_in_other_states(venue):
    cancelled = venue.add(status="cancelled")
    pending = venue.take_in()
    ids = queries.order_ids(venue.ledger, "doshii", "default", [cancelled, pending])
    assert set(ids) == {pending}


# === What operators see =====================================================================================


def test_previews_of_a_new_order(venue):
    number = venue.up_to("doshii.accept", transactions=[PREPAID])
    assert venue.foresee(number, "doshii.fetch") == Preview(Effect.CALL, "reads the order again: pending")
    assert venue.foresee(number, "doshii.accept") == Preview(Effect.CALL, "accepts the order as SO-1")
    venue.go(hold={"doshii.payments"})
    foreseen = venue.foresee(number, "doshii.payments")
    assert (foreseen.effect, foreseen.text.partition(" of ")[2]) == (Effect.CALL, "22.00")


def test_previews_of_a_done_order(venue):
    number = venue.done(transactions=[PREPAID], unapprovedItems=[COLA])
    for step, text in {
        "doshii.accept": "is accepted already, as SO-1",
        "doshii.approve": "no items wait for approval",
        "doshii.payments": "no payment waits for us",
        "doshii.follow": "there is nothing new",
        "doshii.complete": "is complete already",
    }.items():
        assert venue.foresee(number, step) == Preview(Effect.SKIP, text)


def test_previews_of_what_waits(venue):
    number = venue.open()
    assert venue.foresee(number, "doshii.complete").text == "waits for completed or shipped first"
    venue.remote.edit(number, unapprovedItems=[COLA], transactions=[{**PREPAID, "amount": "100"}], quiet=True)
    assert venue.foresee(number, "doshii.follow").text.startswith("goes ahead with payment")
    venue.go_on(1)
    assert venue.foresee(number, "doshii.follow").text.startswith("would stop: the partner appended 1 x Cola")


def test_previews_of_the_end(venue):
    number = venue.open()
    venue.tell(number, "shipped", lines={venue.erp_lines(number)[0]["line_key"]: "1"})
    venue.go(hold={"doshii.complete"})
    assert venue.foresee(number, "doshii.complete").text == "waits until everything is shipped"
    venue.tell(number, "completed")
    venue.go(hold={"doshii.complete"})
    assert venue.foresee(number, "doshii.complete").text == "completes the order"


def test_previews_of_a_cancelled_order(venue):
    number = venue.open(transactions=[{**LATER, "amount": "100"}], unapprovedItems=[COLA])
    venue.tell(number, "completed")
    venue.worker.queue.clear()
    venue.go(hold={"doshii.complete"})
    venue.remote.edit(number, status="cancelled", quiet=True)
    for step in ("doshii.accept", "doshii.approve", "doshii.payments", "doshii.follow", "doshii.complete"):
        assert "its plan ends here" in venue.foresee(number, step).text


def test_previews_of_a_rejection(venue_with):
    venue = venue_with(DOSHII_REJECTION_CODE="ZZ")
    number = venue.take_in(items=[{**PIZZA, "posId": "UNKNOWN-PRODUCT"}], transactions=[PREPAID])
    venue.go()
    assert venue.foresee(number, "doshii.reject") == Preview(Effect.CALL, "cancels the order at Doshii, for good")
    venue.remote.edit(number, status="rejected", quiet=True)
    assert venue.foresee(number, "doshii.reject") == Preview(Effect.CALL, "rejects 1 payments")
    (payment,) = venue.there(number)["transactions"]
    venue.remote.edit(number, transactions=[{"id": payment["id"], "status": "cancelled"}], quiet=True)
    assert venue.foresee(number, "doshii.reject") == Preview(Effect.SKIP, "is rejected already")
    venue.remote.edit(number, status="complete", quiet=True)
    assert venue.foresee(number, "doshii.reject").text == "would stop: Doshii has the order as complete"
    venue.remote.edit(number, id="X-1", status="accepted", quiet=True)
    assert "not ours: left alone" in venue.foresee(number, "doshii.reject").text
    venue.replay(number)
    venue.go()
    assert (venue.state(number), venue.there(number)["status"]) == ("cancelled", "accepted")


def test_a_preview_of_an_order_that_somebody_else_accepted(venue):
    number = venue.up_to("doshii.accept")
    venue.remote.edit(number, id="X-1", status="accepted", quiet=True)
    assert venue.foresee(number, "doshii.accept").text == "would stop: Doshii has the order under the id X-1"


def test_the_probe_proves_the_credentials_and_the_venue(venue_with):
    venue = venue_with()
    assert probe(venue.account) == "Sandbox SANDBOX1 (SANDBOX1)"


def test_the_probe_tells_two_venues_apart(venue_with):
    venue = venue_with(DOSHII_LOCATION_ID="OTHER")
    with pytest.raises(Misconfigured, match="SANDBOX1, and DOSHII_LOCATION_ID is OTHER"):
        probe(venue.account)


def test_wrong_credentials_hold_the_orders_back(venue):
    number = venue.take_in()
    venue.remote.control.backend.options.vendor_key = "another"
    venue.go()
    assert venue.state(number) == "retrying"
    venue.remote.control.backend.options.vendor_key = "sandbox-vendor-key"
    venue.go_on(3, ships=True)
    assert venue.state(number) == "done"


# === Settings ===============================================================================================

SET = {
    "DOSHII_URL": "https://doshii.example.com/pos/v3",
    "DOSHII_VENDOR": "acme",
    "DOSHII_VENDOR_KEY": "key",
    "DOSHII_LOCATION_TOKEN": "token",
}


def test_what_must_be_set_is_asked_for_by_name():
    with pytest.raises(WrongSettings) as caught:
        read_settings({"DOSHII_URL": SET["DOSHII_URL"], "DOSHII_WEBHOOK_KEY": "erp", "DOSHII_CURRENCY": "dollars"})
    names = sorted(problem.partition(":")[0] for problem in caught.value.problems)
    assert names == [
        "DOSHII_CURRENCY",
        "DOSHII_LOCATION_TOKEN",
        "DOSHII_VENDOR",
        "DOSHII_VENDOR_KEY",
        "DOSHII_WEBHOOK_TOKEN",
    ]


@pytest.mark.parametrize(("environment", "seconds"), [({}, 60.0), ({"DOSHII_TIMEOUT": "20"}, 20.0)])
def test_an_answer_is_waited_for_as_long_as_doshiis_own_client_does(environment, seconds):
    (account,) = read_settings(SET | environment).accounts
    assert account.timeout == seconds


def test_venues_side_by_side_and_one_without_a_webhook():
    accounts = {"DOSHII_ACCOUNTS": "north,south", "DOSHII_NORTH_WEBHOOK_TOKEN": "t0ken", "DOSHII_CURRENCY": "nzd"}
    settings = read_settings(SET | accounts)
    assert [account.options["currency"] for account in settings.accounts] == ["NZD", "NZD"]
    assert WIRING.receiver is not None
    receiver = WIRING.receiver(settings.accounts)
    assert list(receiver.accounts()) == ["north"]
    assert receiver.proves("north", {"Authorization": "Bearer t0ken"}, b"")
