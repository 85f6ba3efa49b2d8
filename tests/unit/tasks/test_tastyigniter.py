"""TastyIgniter's steps on the real ledger, against its imitation and the staging tables. The numbers of the traps are
those of the table in docs/systems/tastyigniter.md; the sections those of contracts/tastyigniter.md."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from flask import Response, request
from sqlalchemy import select, update
from werkzeug.datastructures import ImmutableMultiDict

from ledger import intake, queries, records, sending, signals
from ledger.models import documents, events, orders
from ledger.records import Claim
from orders.arrival import Arrival
from orders.errors import Misconfigured, Refused, TryLater
from orders.outcomes import Planned
from orders.states import State
from sandbox.base import FaultRule
from sandbox.tastyigniter import site_of
from tasks.base import PREVIEWS, Effect, Job, Visit
from tasks.tastyigniter_poll import Kept
from tests.flows.harness import a_remote, a_web, wait_for
from tests.unit.tasks.conftest import Driver
from workers import operators
from workers.settings import WrongSettings, read_settings

PROFILES = ("P1", "P1b", "P2", "P3")
CHAIN = [
    ("tastyigniter.fetch", "done"),
    ("erp.order", "done"),
    ("tastyigniter.preparing", "done"),
    ("tastyigniter.completed", "done"),
]
STEPS = tuple(step for step, _ in CHAIN)
NO_WAIT = {"TASTYIGNITER_LINES_SECONDS": "0"}
CURSOR = "tastyigniter.poll:default"


class Restaurant(Driver):
    """Orders are named by their id at TastyIgniter."""

    def add(self, count: int = 1, **specification: Any) -> Any:
        """A placed order, or several, taken in by nobody yet."""
        numbers = self.remote.control.backend.add_orders([dict(specification) for _ in range(count)])
        return int(numbers[0]) if count == 1 else [int(number) for number in numbers]

    def take_in(self, **specification: Any) -> int:
        """The same, and polled."""
        number = int(self.add(**specification))
        self.poll()
        return number

    def stand_before(self, step: str, **specification: Any) -> int:
        """A new order that has come as far as `step`, which could run, and has not."""
        number = self.take_in(**specification)
        self.go(hold=[step])
        if step == "tastyigniter.completed":
            self.tell(number, "shipped")
            self.go(hold=[step])
        assert self.order(number)["step"] == step
        self.resume(number)
        return number

    def resume(self, number: int) -> None:
        """The message of a step that was held is lost: the order may go again at once."""
        self.time_passes()
        sending.resend(self.ledger, [self.order(number)["id"]], lost=True)

    def finished(self, **specification: Any) -> int:
        number = self.take_in(**specification)
        self.go(ships=True)
        assert self.state(number) == "done"
        return number

    def status(self, number: int) -> int:
        return int(self.remote.order(number)["status_id"])

    def moves(self, number: int) -> list[str]:
        """Our status writes, in their order."""
        effects = self.remote.control.backend.effects.of(number)
        return [kind for effect in effects for kind in effect.kinds if kind.startswith("status:")]

    def mails(self, number: int) -> list[int]:
        return list(self.remote.order(number)["mails"])

    def requests(self, method: str) -> int:
        answer = self.remote.app.test_client().get("/_sandbox/counts").get_json()
        return int(answer["requests"].get(method, 0))

    def fail(self, kind: str, method: str | None = None, **rule: Any) -> None:
        self.remote.control.faults.set([FaultRule(kinds=(kind,), method=method, **rule)])

    def interpose(self, after: str, number: int | None, **patch: Any) -> None:
        """Somebody edits the order, just after the next such request for it was answered."""
        self.remote.control.backend.interpositions.add("list" if number is None else number, after, patch)

    def problems(self) -> list[str]:
        return [row["problem"] for row in queries.odd_events(self.ledger)]

    def kept(self) -> Kept:
        return Kept(**json.loads(queries.cursor(self.ledger, CURSOR) or "{}"))

    def keep(self, **values: Any) -> None:
        """Change what the poll remembers."""
        known = json.loads(queries.cursor(self.ledger, CURSOR) or "{}")
        signals.move_cursor(self.ledger, CURSOR, json.dumps(known | values))

    def visit(self) -> Visit:
        return Visit(self.ledger, self.fleet.accounts["tastyigniter", "default"])

    def foreseen(self, number: int, step: str) -> Any:
        """What a replay from a step would do, of that step."""
        row = self.order(number)
        plan = queries.plan_of(self.ledger, row["id"])
        place = next(one["position"] for one in plan if one["name"] == step)
        claim: Claim = operators._as_if_claimed(row, plan, place)
        return PREVIEWS[step](Job(self.ledger, claim), self.visit().account)

    def doing(self, number: int, data: dict[str, Any] | None = None) -> operators.Doing:
        """The delete command of an operator."""
        command = self.fleet.systems["tastyigniter"].commands["delete"]
        return operators.Doing(self.fleet, self.order(number), "delete", command, data or {}, "ann")


@contextmanager
def a_restaurant(url: str, options: dict[str, Any], environment: dict[str, str]) -> Iterator[Restaurant]:
    with a_remote("tastyigniter", **options) as remote:
        driver = Restaurant(remote, environment, url)
        try:
            yield driver
        finally:
            driver.close()


@pytest.fixture
def open_restaurant(sqlite_url: str) -> Iterator[Callable[..., Restaurant]]:
    """`open_restaurant(profile="P3", TASTYIGNITER_STATUS_PREPARING="4")`: knobs of the imitation, and settings."""
    with ExitStack() as stack:

        def open_one(**options: Any) -> Restaurant:
            environment = {name: options.pop(name) for name in list(options) if name.isupper()}
            return stack.enter_context(a_restaurant(sqlite_url, {"profile": "P3", **options}, NO_WAIT | environment))

        yield open_one


@pytest.fixture(params=["P1", "P3"])
def restaurant(request: pytest.FixtureRequest, open_restaurant: Callable[..., Restaurant]) -> Restaurant:
    """In the profile of the seed, then in today's."""
    return open_restaurant(profile=request.param)


@pytest.fixture
def today(open_restaurant: Callable[..., Restaurant]) -> Restaurant:
    return open_restaurant()


@pytest.fixture
def with_webhooks(open_restaurant: Callable[..., Restaurant]) -> Iterator[Callable[..., Restaurant]]:
    """The same with the fleet's web server, to which the site delivers."""
    with ExitStack() as stack:

        def open_one(**options: Any) -> Restaurant:
            driver = open_restaurant(**options)
            driver.remote.point_at(stack.enter_context(a_web(driver.settings)))
            return driver

        yield open_one


def listed(driver: Restaurant) -> set[int]:
    """The orders that the ledger knows."""
    return {int(row["external_id"]) for row in queries.listing(driver.ledger, queries.Filter())}


def delivered(driver: Restaurant) -> None:
    """Everything that the site posts has arrived, and what it told of known orders is read."""
    wait_for(site_of(driver.remote.app).hooks.post.quiet, "the webhooks are delivered", 10)
    driver.read_news()


@contextmanager
def out_of_sight(driver: Restaurant) -> Iterator[None]:
    """Meanwhile the token sees orders of another location only."""
    driver.add(location_id=2)
    driver.remote.control.backend.options.change({"tokens": {"2|south": {"locations": [2]}}})
    auth = driver.visit().account.client._auth
    mine, auth._headers = auth._headers, {"Authorization": "Bearer 2|south"}
    yield
    auth._headers = mine


def just_before(driver: Restaurant, method: str, act: Callable[[], None]) -> None:
    """Once, when the site gets such a request, and before it does anything."""
    waiting = [act]

    def once() -> None:
        if request.method == method and waiting:
            waiting.pop()()

    driver.remote.app.before_request_funcs.setdefault(None, []).append(once)


def hours_ago(driver: Restaurant, hours: float) -> float:
    return queries.database_now(driver.ledger).timestamp() - hours * 3600


# === The flow ===============================================================================================


@pytest.mark.parametrize("profile", PROFILES)
def test_trap_01_from_the_poll_to_completed_in_every_profile(open_restaurant, profile):
    driver = open_restaurant(profile=profile)
    number = driver.finished()
    assert driver.attempts(number) == CHAIN
    assert driver.moves(number) == ["status:1->3", "status:3->5"]
    assert [row["stage"] for row in driver.in_erp(number)] == ["confirmed"]
    assert driver.order(number)["reference"] == str(number)
    # In the profiles of 2020 a PATCH sends no mail.
    assert driver.mails(number) == ([1] if profile.startswith("P1") else [1, 3])


def test_on_both_databases(ledger_url):
    with a_restaurant(ledger_url, {"profile": "P3"}, NO_WAIT) as driver:
        assert driver.attempts(driver.finished()) == CHAIN


def test_polling_again_changes_nothing(restaurant):
    number = restaurant.finished()
    before = restaurant.attempts(number), restaurant.moves(number), restaurant.status(number)
    for _ in range(3):
        restaurant.poll()
        restaurant.go(ships=True)
    assert (restaurant.attempts(number), restaurant.moves(number), restaurant.status(number)) == before
    assert restaurant.problems() == []


def test_the_erp_has_dishes_and_charges(today):
    totals = [
        {"code": "delivery", "value": 2.5, "priority": 1, "is_summable": True},
        {"code": "subtotal", "priority": 0},
        {"code": "total", "priority": 127},
    ]
    number = today.take_in(order_totals=totals)
    today.go()
    lines = [(row["product"], row["quantity"], row["line_total"]) for row in today.erp_lines(number)]
    assert lines == [("77", 2, 24), (None, 1, Decimal("2.50"))]
    (row,) = today.in_erp(number)
    assert (row["total"], row["currency"], row["customer_name"]) == (Decimal("26.50"), "GBP", "Ann Test")


def test_it_is_completed_when_everything_is_shipped(today):
    number = today.take_in(order_menus=[{"menu_id": 1, "quantity": 2, "price": 3}, {"menu_id": 2, "quantity": 1}])
    today.go()
    first, second = (row["line_key"] for row in today.erp_lines(number))
    today.tell(number, "shipped", lines={first: "2"})
    today.go()
    assert (today.state(number), today.status(number)) == ("waiting", 3)
    today.tell(number, "shipped", lines={second: "1"})
    today.go()
    assert (today.state(number), today.status(number)) == ("done", 5)


def test_completed_is_as_good_as_shipped(restaurant):
    number = restaurant.take_in()
    restaurant.go()
    restaurant.tell(number, "completed")
    restaurant.go()
    assert (restaurant.state(number), restaurant.status(number)) == ("done", 5)


def test_the_kitchen_begins_when_the_erp_has_a_number(restaurant):
    number = restaurant.take_in()
    restaurant.go(erp=False)
    order = restaurant.order(number)
    assert (order["state"], order["step"], order["awaits"]) == ("waiting", "tastyigniter.preparing", "numbered")
    assert restaurant.status(number) == 1


# === Writes =================================================================================================


@pytest.mark.parametrize("step", ["tastyigniter.preparing", "tastyigniter.completed"])
def test_trap_03_a_status_that_is_there_is_not_written(restaurant, step):
    number = restaurant.stand_before(step)
    restaurant.remote.edit(number, status_id={"tastyigniter.preparing": 3, "tastyigniter.completed": 5}[step])
    before = restaurant.moves(number), restaurant.mails(number)
    restaurant.go()
    assert restaurant.attempts(number)[-1] == (step, "skipped")
    assert (restaurant.moves(number), restaurant.mails(number)) == before


@pytest.mark.parametrize("step", STEPS)
def test_trap_03_a_worker_dies_after_its_effect_and_before_its_record(restaurant, step):
    number = restaurant.take_in()
    if step != STEPS[0]:
        restaurant.go(hold=[step], ships=True)
    else:
        restaurant.worker.dispatcher.fill()
    assert restaurant.order(number)["step"] == step
    sending.take_ready_orders(restaurant.ledger, [restaurant.order(number)["id"]])
    restaurant.dies_at(number)
    restaurant.worker.queue.clear()
    restaurant.go_on(ships=True)
    assert restaurant.state(number) == "done"
    assert restaurant.moves(number) == ["status:1->3", "status:3->5"]
    assert restaurant.mails(number).count(3) <= 1
    assert len(restaurant.in_erp(number)) == 1


@pytest.mark.parametrize("kind", ["lost_answer", "500_after", "slow"])
@pytest.mark.parametrize("profile", ["P1", "P3"])
def test_trap_04_an_answer_that_is_lost_after_the_work(open_restaurant, profile, kind):
    driver = open_restaurant(profile=profile, TASTYIGNITER_TIMEOUT="0.3")
    driver.fail(kind, "PATCH", times=2, slow_seconds=0.6)
    number = driver.take_in()
    driver.go(ships=True)
    driver.go_on(ships=True)
    assert driver.state(number) == "done"
    assert driver.moves(number) == ["status:1->3", "status:3->5"]
    assert driver.mails(number).count(3) == (profile == "P3")


def test_trap_04_a_mail_that_could_not_be_sent_is_no_reason_to_write_again(today):
    number = today.stand_before("tastyigniter.preparing")
    today.remote.control.backend.options.change({"mail_down": True})
    today.go()
    assert ("tastyigniter.preparing", "retry") in today.attempts(number)
    today.remote.control.backend.options.change({"mail_down": False})
    today.go_on()
    assert today.moves(number) == ["status:1->3"]
    assert today.attempts(number)[-1] == ("tastyigniter.preparing", "skipped")


def test_trap_04_our_own_row_is_known_by_its_comment_though_a_person_set_it_back(today):
    number = today.stand_before("tastyigniter.preparing")
    today.fail("lost_answer", "PATCH", times=1)
    today.interpose("PATCH", number, status_id=2)
    today.go()
    today.go_on(1)
    tries = [outcome for step, outcome in today.attempts(number) if step == "tastyigniter.preparing"]
    assert (tries, today.status(number)) == (["retry", "skipped"], 2)
    assert today.moves(number) == ["status:1->3"]
    rows = today.remote.order(number)["history"]
    assert [row["comment"] for row in rows if row["status_id"] == 3] == ["ERP order SO-1"]


def test_trap_05_what_a_write_answers_is_not_the_order(today):
    """It says 3, but a person has set the order back since: the order is read."""
    number = today.stand_before("tastyigniter.preparing")
    today.interpose("PATCH", number, status_id=1)
    today.go()
    today.go_on(1)
    told = queries.timeline(today.ledger, today.order(number)["id"])
    tries = [(row["outcome"], row["detail"]) for row in told if row["what"] == "tastyigniter.preparing"]
    assert tries[0] == ("retry", "after the PATCH, the order is still 1")
    assert [outcome for outcome, _ in tries] == ["retry", "skipped"]
    assert today.moves(number) == ["status:1->3"]


def test_trap_02_a_delivery_is_moved_by_its_status_alone(today):
    number = today.finished(order_type="delivery", address={"address_1": "1 Example Street"})
    assert today.moves(number) == ["status:1->3", "status:3->5"]
    bodies = [json.loads(one.raw) for one in today.remote.control.backend.effects.of(number) if one.method == "PATCH"]
    assert bodies[0] == {"status_id": 3, "status_comment": "ERP order SO-1"}


def test_trap_02_a_site_of_2020_gets_no_comment(open_restaurant):
    driver = open_restaurant(profile="P1")
    number = driver.finished()
    bodies = [json.loads(one.raw) for one in driver.remote.control.backend.effects.of(number) if one.method == "PATCH"]
    assert bodies == [{"status_id": 3}, {"status_id": 5}]


def test_trap_23_a_release_that_demands_names_gets_those_just_read(open_restaurant):
    driver = open_restaurant(profile="P2", demands_names=True)
    number = driver.finished(first_name="Billie", last_name="Sample")
    assert driver.moves(number) == ["status:1->3", "status:3->5"]
    assert driver.mails(number).count(3) == 1
    order = driver.remote.order(number)
    assert (order["first_name"], order["last_name"], order["order_type"]) == ("Billie", "Sample", "collection")


def test_trap_23_another_422_is_a_persons_business(open_restaurant):
    """Repeated with its names, a delivery lacks its address: not a third time."""
    driver = open_restaurant(profile="P3", demands_names=True)
    number = driver.take_in(order_type="delivery")
    driver.go()
    assert driver.state(number) == "parked"
    assert "address.address_1" in driver.order(number)["error"]
    assert driver.requests("PATCH") == 2


def answers(driver: Restaurant, method: str, status: int, body: str, path: str = "") -> None:
    """The site answers so, and does nothing."""

    def answer() -> Any:
        asked = request.method == method and request.path.endswith(path)
        return Response(body, status, mimetype="application/json") if asked else None

    driver.remote.app.before_request_funcs.setdefault(None, []).append(answer)


def test_trap_23_a_422_about_something_else_is_not_repeated(today):
    number = today.stand_before("tastyigniter.preparing")
    answers(today, "PATCH", 422, '{"message": "no", "errors": {"first_name": ["no"], "comment": ["too long"]}}')
    today.go()
    assert today.state(number) == "parked"
    assert "comment: too long" in today.order(number)["error"]
    assert today.requests("PATCH") == 1


MOVES = {"tastyigniter.preparing": 3, "tastyigniter.completed": 5}


@pytest.mark.parametrize("answer", ["kept", "lost", "429 afterwards", "worker dead"])
@pytest.mark.parametrize(("step", "target"), MOVES.items())
def test_trap_33_a_cancellation_in_the_moment_of_our_write_is_not_undone(today, step, target, answer):
    number = today.stand_before(step)
    before = today.moves(number)
    today.interpose("GET", number, status_id=9)
    if answer == "lost":
        today.fail("lost_answer", "PATCH", times=1)
    elif answer == "429 afterwards":
        just_before(today, "PATCH", lambda: today.fail("429", "GET", retry_after=1, times=1))
    elif answer == "worker dead":
        sending.take_ready_orders(today.ledger, [today.order(number)["id"]])
        today.dies_at(number)
        today.worker.queue.clear()
    today.go()
    today.go_on()
    assert today.state(number) == "cancelled"
    assert today.status(number) == 9
    assert today.moves(number) == [*before, f"status:9->{target}", f"status:{target}->9"]
    assert [row["stage"] for row in today.in_erp(number)] == ["cancelled"]
    assert today.problems() == []


@pytest.mark.parametrize("step", MOVES)
def test_trap_33_a_cancellation_just_after_our_write_is_seen(restaurant, step):
    number = restaurant.stand_before(step)
    restaurant.interpose("PATCH", number, status_id=9)
    restaurant.go()
    assert (restaurant.state(number), restaurant.status(number)) == ("cancelled", 9)
    assert [row["stage"] for row in restaurant.in_erp(number)] == ["cancelled"]


@pytest.mark.parametrize("lost", [False, True], ids=["answer kept", "answer lost"])
def test_trap_33_a_cancellation_of_which_we_learn_while_the_step_writes_on_top_of_it(restaurant, lost):
    """There is no history on a site of 2020, but we know what we saw, and that our step ended afterwards."""
    number = restaurant.stand_before("tastyigniter.preparing")

    def cancel_it() -> None:
        restaurant.remote.edit(number, status_id=9)
        restaurant.poll()
        assert restaurant.column(number, "interrupt")
        if lost:
            restaurant.fail("lost_answer", "PATCH", times=1)

    just_before(restaurant, "PATCH", cancel_it)
    restaurant.go()
    restaurant.go_on()
    assert restaurant.moves(number) == ["status:9->3", "status:3->9"]
    assert (restaurant.state(number), restaurant.status(number)) == ("cancelled", 9)
    assert [row["stage"] for row in restaurant.in_erp(number)] == ["cancelled"]
    assert restaurant.problems() == []


@pytest.mark.parametrize("status", [1, 3, 5])
def test_trap_33_what_a_person_opens_again_while_it_is_taken_back_stays_so_and_is_shown(restaurant, status):
    number = restaurant.take_in()
    restaurant.go()
    restaurant.remote.edit(number, status_id=9)
    restaurant.poll()
    restaurant.remote.edit(number, status_id=status)
    restaurant.go()
    assert (restaurant.state(number), restaurant.status(number)) == ("cancelled", status)
    assert restaurant.moves(number) == ["status:1->3"]
    words = f"it is cancelled here and in the ERP, but stands at status {status} in TastyIgniter"
    assert restaurant.problems() == [words]


def test_trap_33_what_the_staff_completes_after_our_write_over_their_cancellation_stops_with_true_words(today):
    number = today.stand_before("tastyigniter.preparing")
    today.interpose("GET", number, status_id=9)
    today.go(hold=["tastyigniter.cancel"])
    today.remote.edit(number, status_id=5)
    today.go_on(1)
    assert today.state(number) == "parked"
    assert today.order(number)["error"].startswith("it was canceled in TastyIgniter, and is completed there by now")
    assert [row["stage"] for row in today.in_erp(number)] == ["confirmed"]


@pytest.mark.parametrize("lost", [False, True], ids=["answer kept", "answer lost"])
@pytest.mark.parametrize("ours", [3, 9])
def test_trap_33_what_the_staff_completed_in_the_moment_of_our_write_is_shown(today, ours, lost):
    number = today.stand_before("tastyigniter.preparing")
    if ours == 9:
        today.go()
        today.tell(number, "cancelled")
    today.interpose("GET", number, status_id=5)
    if lost:
        today.fail("lost_answer", "PATCH", times=1)
    today.go()
    today.go_on(1)
    assert today.moves(number)[-1] == f"status:5->{ours}"
    (problem,) = today.problems()
    assert problem.startswith(f"it was completed in TastyIgniter at the moment in which it was set to {ours}")
    assert today.order(number)["facts"]["flags"] == [problem]
    assert today.state(number) == {3: "waiting", 9: "cancelled"}[ours]


# === Statuses ===============================================================================================


@pytest.mark.parametrize(("status", "moves"), [(2, ["status:2->3"]), (4, []), (5, [])])
def test_trap_19_never_a_step_back(restaurant, status, moves):
    number = restaurant.stand_before("tastyigniter.preparing")
    restaurant.remote.edit(number, status_id=status)
    restaurant.go()
    assert restaurant.moves(number) == moves
    restaurant.tell(number, "shipped")
    restaurant.go()
    assert (restaurant.state(number), restaurant.status(number)) == ("done", 5)


def test_trap_19_what_the_staff_completed_stays_so_and_reaches_the_erp(restaurant):
    restaurant.poll()
    number = restaurant.take_in(status_id=5)
    restaurant.go(ships=True)
    assert restaurant.state(number) == "done"
    assert restaurant.moves(number) == []
    assert len(restaurant.in_erp(number)) == 1


def test_trap_18_a_status_of_the_shops_own_waits_for_a_person_and_news_wakes_it(open_restaurant):
    status = {"status_id": 11, "status_name": "Ringing back", "notify_customer": False, "status_for": "order"}
    driver = open_restaurant()
    driver.remote.control.backend.options.change(
        {"statuses": [*driver.remote.control.backend.options.statuses, status]}
    )
    number = driver.stand_before("tastyigniter.preparing")
    driver.remote.edit(number, status_id=11)
    driver.go()
    assert driver.state(number) == "parked"
    assert "status 11 is one of the shop's own" in driver.order(number)["error"]
    driver.remote.edit(number, status_id=2)
    driver.poll()
    driver.worker.sweep.run()
    driver.go()
    assert driver.moves(number) == ["status:2->3"]


def test_trap_18_statuses_are_mapped_by_id(open_restaurant):
    own = {"PREPARING": "4", "COMPLETED": "12", "CANCELED": "13"}
    driver = open_restaurant(**{f"TASTYIGNITER_STATUS_{name}": ident for name, ident in own.items()})
    assert driver.moves(driver.finished()) == ["status:1->4", "status:4->12"]
    canceled = driver.take_in()
    driver.go()
    driver.remote.edit(canceled, status_id=13)
    driver.poll()
    driver.go()
    assert driver.state(canceled) == "cancelled"


# === Cancelled and deleted ==================================================================================

AWAY = [{"status_id": 9}, {"deleted": True}]


@pytest.mark.parametrize("patch", AWAY, ids=["cancelled", "deleted"])
@pytest.mark.parametrize("step", STEPS)
def test_cancelled_or_deleted_at_any_moment_ends_cancelled(restaurant, step, patch):
    restaurant.add()  # another one of the location: what the token sees
    number = restaurant.take_in()
    restaurant.go(hold=[step])
    restaurant.resume(number)
    restaurant.remote.edit(number, **patch)
    restaurant.poll()
    restaurant.go()
    assert restaurant.state(number) == "cancelled"
    assert [row["stage"] for row in restaurant.in_erp(number)] in ([], ["cancelled"])
    assert "status:9->3" not in restaurant.moves(number)


@pytest.mark.parametrize("patch", AWAY, ids=["cancelled", "deleted"])
def test_a_step_that_finds_it_cancelled_or_deleted_ends_it(restaurant, patch):
    """No poll and no webhook told."""
    restaurant.add()
    number = restaurant.stand_before("tastyigniter.completed")
    restaurant.remote.edit(number, **patch)
    restaurant.go()
    assert restaurant.state(number) == "cancelled"
    assert [row["stage"] for row in restaurant.in_erp(number)] == ["cancelled"]


@pytest.mark.parametrize("patch", AWAY, ids=["cancelled", "deleted"])
def test_a_parked_order_is_cancelled_too(restaurant, patch):
    restaurant.add()
    number = restaurant.take_in()
    restaurant.go(erp=False)
    restaurant.tell(number, "refused", reason="no such dish")
    assert restaurant.state(number) == "parked"
    restaurant.remote.edit(number, **patch)
    restaurant.poll()
    restaurant.go()
    assert restaurant.state(number) == "cancelled"


def test_cancelled_before_we_ever_read_it(restaurant):
    number = restaurant.take_in()
    restaurant.remote.edit(number, status_id=9)
    restaurant.go()
    assert restaurant.state(number) == "cancelled"
    assert restaurant.in_erp(number) == []


@pytest.mark.parametrize("step", ["tastyigniter.preparing", "tastyigniter.completed"])
def test_the_erp_cancels_and_the_restaurant_learns_of_it_once(restaurant, step):
    number = restaurant.take_in()
    restaurant.go()
    restaurant.tell(number, "cancelled")
    restaurant.go_on()
    assert (restaurant.state(number), restaurant.status(number)) == ("cancelled", 9)
    assert restaurant.moves(number) == ["status:1->3", "status:3->9"]
    restaurant.poll()
    restaurant.go_on()
    assert restaurant.moves(number) == ["status:1->3", "status:3->9"]
    assert restaurant.problems() == []


@pytest.mark.parametrize("lost", [True, False], ids=["answer lost", "worker dead"])
def test_trap_04_status_9_is_written_once(restaurant, lost):
    number = restaurant.take_in()
    restaurant.go()
    operators.cancel(restaurant.ledger, restaurant.order(number), restaurant.fleet.systems["tastyigniter"], "ann")
    restaurant.go(hold=["tastyigniter.cancel"])
    if lost:
        restaurant.fail("lost_answer", "PATCH", times=1)
        restaurant.go()
    else:
        sending.take_ready_orders(restaurant.ledger, [restaurant.order(number)["id"]])
        restaurant.dies_at(number)
        restaurant.worker.queue.clear()
    restaurant.go_on()
    assert restaurant.state(number) == "cancelled"
    assert restaurant.moves(number)[-1] == "status:3->9"
    assert restaurant.moves(number).count("status:3->9") == 1
    assert "status:9->9" not in restaurant.moves(number)


def test_trap_04_a_person_who_opens_it_again_after_our_9_is_not_overruled(today):
    number = today.take_in()
    today.go()
    today.tell(number, "cancelled")
    today.fail("lost_answer", "PATCH", times=1)
    today.interpose("PATCH", number, status_id=3)
    today.go()
    today.go_on(1)
    assert today.moves(number) == ["status:1->3", "status:3->9"]
    assert (today.state(number), today.status(number)) == ("cancelled", 3)
    assert today.problems() == ["it is cancelled here and in the ERP, but stands at status 3 in TastyIgniter"]


@pytest.mark.parametrize(
    ("patch", "state", "words"),
    [
        ({"status_id": 9}, "cancelled", None),
        ({"deleted": True}, "cancelled", None),
        ({"status_id": 5}, "parked", "completed in TastyIgniter"),
    ],
)
def test_the_erp_cancels_what_is_over_already(restaurant, patch, state, words):
    restaurant.add()  # another one of the location: what the token sees
    number = restaurant.take_in()
    restaurant.go()
    restaurant.tell(number, "cancelled")
    restaurant.remote.edit(number, **patch)
    restaurant.go()
    assert restaurant.state(number) == state
    assert restaurant.moves(number) == ["status:1->3"]
    if words is not None:
        assert words in restaurant.order(number)["error"]


def test_it_is_deleted_while_status_9_is_written(today):
    today.add()
    number = today.take_in()
    today.go()
    today.tell(number, "cancelled")
    today.interpose("GET", number, deleted=True)
    today.go()
    assert today.state(number) == "cancelled"


def test_what_is_canceled_after_it_was_done_is_shown(restaurant):
    number = restaurant.finished()
    restaurant.remote.edit(number, status_id=9)
    restaurant.poll()
    assert restaurant.problems() == ["it is canceled in TastyIgniter, but done here: take it back in the ERP by hand"]
    assert restaurant.state(number) == "done"


def test_finished_orders_may_be_tidied_away(restaurant):
    number = restaurant.finished()
    restaurant.remote.edit(number, deleted=True)
    restaurant.poll()
    assert restaurant.problems() == []


def test_that_they_were_is_no_news(with_webhooks):
    driver = with_webhooks()
    number = driver.finished()
    driver.remote.edit(number, deleted=True)
    delivered(driver)
    driver.go()
    assert (driver.state(number), driver.problems()) == ("done", [])


def test_what_is_set_back_after_it_was_cancelled_is_shown(restaurant):
    number = restaurant.take_in()
    restaurant.go()
    restaurant.remote.edit(number, status_id=9)
    restaurant.poll()
    restaurant.go()
    restaurant.remote.edit(number, status_id=1)
    restaurant.poll()
    assert restaurant.state(number) == "cancelled"
    assert restaurant.problems() == ["it is cancelled here and in the ERP, but stands at status 1 in TastyIgniter"]


def test_a_total_that_changed_is_shown_once_and_told_to_nobody(today):
    number = today.take_in()
    today.go()
    today.remote.edit(number, order_menus=[{"menu_id": 77, "name": "Rice", "quantity": 3, "price": 12}])
    for _ in range(3):
        today.poll()
        today.go()
    assert len(today.problems()) == 1
    assert "was 24.0000 when it was read for the ERP, and is 36.0000" in today.problems()[0]
    assert today.order(number)["facts"]["flags"] == today.problems()
    assert [row["total"] for row in today.in_erp(number)] == [24]
    today.tell(number, "shipped")
    today.go()
    assert today.state(number) == "done"


# === Deleted, or out of sight ===============================================================================


def test_trap_20_an_order_that_the_token_no_longer_sees_is_not_cancelled(today):
    number = today.stand_before("tastyigniter.completed", location_id=1)
    today.add(location_id=2)
    today.remote.control.backend.options.change({"tokens": {"2|south": {"locations": [2]}}})
    client = today.visit().account.client
    today.remote.control.backend.options.change({"token": "9|renewed"})
    client._auth._headers = {"Authorization": "Bearer 2|south"}
    today.go()
    assert today.state(number) == "parked"
    assert "out of the token's sight" in today.order(number)["error"]
    assert [row["stage"] for row in today.in_erp(number)] == ["confirmed"]
    today.poll()
    today.go()
    assert today.state(number) == "parked"
    client._auth._headers = {"Authorization": "Bearer 9|renewed"}
    today.go_on()
    assert (today.state(number), today.status(number)) == ("done", 5)


def test_trap_20_an_order_that_the_poll_has_seen_is_not_ignored_because_it_is_out_of_sight(today):
    number = today.take_in()
    with out_of_sight(today):
        today.go()
        assert today.state(number) == "parked"
        assert "out of the token's sight" in today.order(number)["error"]
    today.go_on(ships=True)
    assert today.state(number) == "done"
    assert len(today.in_erp(number)) == 1


def test_trap_20_a_restaurant_that_cannot_be_told_of_a_cancellation_is_told_when_it_is_in_sight_again(today):
    number = today.take_in()
    today.go()
    with out_of_sight(today):
        today.tell(number, "cancelled")
        today.go()
        assert today.state(number) == "parked"
        assert "out of the token's sight" in today.order(number)["error"]
    today.go_on()
    assert (today.state(number), today.status(number)) == ("cancelled", 9)


def cannot_be_told(driver: Restaurant, number: int) -> bool:
    (problem,) = driver.problems()
    return driver.state(number) == "cancelled" and problem.startswith("cancelled, but the restaurant was not told: ")


def test_trap_20_an_operators_own_cancellation_does_not_wait_for_it(today):
    number = today.take_in()
    today.go()
    with out_of_sight(today):
        operators.cancel(today.ledger, today.order(number), today.fleet.systems["tastyigniter"], "ann")
        today.go()
    assert cannot_be_told(today, number)
    assert [row["stage"] for row in today.in_erp(number)] == ["cancelled"]


def test_trap_20_a_replay_says_that_it_need_not_be_told(today):
    number = today.take_in()
    today.go()
    today.remote.edit(number, deleted=True)
    today.tell(number, "cancelled")
    today.go_on()
    assert today.state(number) == "parked"
    assert "`orderfleet replay`" in today.order(number)["error"]
    today.replay(number)
    today.go()
    assert cannot_be_told(today, number)


def test_trap_20_what_the_staff_canceled_need_not_be_told_to_them(today):
    number = today.take_in()
    today.go()
    today.remote.edit(number, status_id=9)
    today.poll()
    with out_of_sight(today):
        today.go()
    assert (today.state(number), today.problems()) == ("cancelled", [])


def test_trap_20_the_last_order_of_a_location_is_gone_if_the_site_says_so(with_webhooks):
    driver = with_webhooks()
    number = driver.take_in()
    driver.go()
    driver.remote.edit(number, deleted=True)
    delivered(driver)
    driver.go()
    assert driver.state(number) == "cancelled"
    assert [row["stage"] for row in driver.in_erp(number)] == ["cancelled"]


def test_trap_20_without_proof_a_person_must_say(today):
    number = today.take_in()
    today.go()
    today.remote.edit(number, deleted=True)
    today.poll()
    assert today.state(number) == "waiting"
    assert len(today.problems()) == 1
    assert "if it was deleted, cancel it with `orderfleet cancel`" in today.problems()[0]
    today.poll()
    assert len(today.problems()) == 1


def test_trap_20_orders_of_no_location_are_in_everybodys_sight(today):
    today.add()
    number = today.take_in(location_id=None)
    today.go()
    today.remote.edit(number, deleted=True)
    today.poll()
    today.go()
    assert today.state(number) == "cancelled"


def test_trap_20_an_event_about_an_order_of_another_location_is_ignored(with_webhooks):
    driver = with_webhooks(tokens={"2|south": {"locations": [2]}}, TASTYIGNITER_TOKEN="2|south")
    number = driver.add(location_id=1)
    delivered(driver)
    driver.go()
    assert driver.state(number) == "ignored"
    assert "out of this token's sight" in driver.order(number)["error"]


@pytest.mark.parametrize("form", ["html", "empty", "405"])
def test_trap_20_a_page_that_says_404_is_not_a_deleted_order(restaurant, form):
    number = restaurant.stand_before("tastyigniter.completed")
    options = {"switched_off": ("show",), "switched_off_as": form}
    restaurant.remote.control.backend.options.change(options)
    restaurant.go()
    assert restaurant.state(number) in ("ready", "retrying")
    assert "must allow the action" in restaurant.order(number)["error"]
    assert [row["stage"] for row in restaurant.in_erp(number)] == ["confirmed"]
    restaurant.remote.control.backend.options.change({"switched_off": ()})
    restaurant.go_on()
    assert (restaurant.state(number), restaurant.status(number)) == ("done", 5)


def test_trap_20_changes_that_are_switched_off_stop_the_order_and_not_the_others(today):
    today.remote.control.backend.options.change({"switched_off": ("update",)})
    number = today.take_in()
    today.go()
    assert today.state(number) == "parked"
    other = today.take_in()
    today.go()
    assert len(today.in_erp(other)) == 1


# === Checkouts that are not finished ========================================================================


@pytest.mark.parametrize(
    "unfinished", [{"processed": False}, {"processed": None}, {"processed": True, "status_id": None}]
)
def test_trap_17_an_unfinished_checkout_makes_no_order(restaurant, unfinished):
    number = restaurant.take_in(**unfinished)
    restaurant.go()
    assert number not in listed(restaurant)
    assert restaurant.kept().unplaced.keys() == {str(number)}


def test_trap_17_a_poll_finds_it_placed(restaurant):
    number = restaurant.take_in(processed=False)
    restaurant.remote.edit(number, processed=True)
    restaurant.poll()
    restaurant.go(ships=True)
    assert restaurant.state(number) == "done"
    restaurant.poll()
    assert restaurant.kept().unplaced == {}


def test_trap_17_though_newer_orders_have_pushed_it_off_the_page(restaurant):
    number = restaurant.take_in(processed=False)
    restaurant.add(120, processed=False)
    restaurant.poll()
    restaurant.poll()
    restaurant.remote.edit(number, processed=True)
    for _ in range(30):
        restaurant.poll()
    restaurant.go(ships=True)
    assert restaurant.state(number) == "done"


def test_trap_17_a_webhook_finds_it_placed(with_webhooks):
    driver = with_webhooks()
    number = driver.take_in(processed=False)
    driver.remote.edit(number, processed=True)
    delivered(driver)
    driver.go(ships=True)
    assert driver.state(number) == "done"


def early_hint(driver: Restaurant, number: int) -> None:
    """An event of an order whose checkout is not finished, as `status_added` may be."""
    key, plan = f"status_added:{number}", (Planned("tastyigniter.fetch"),)
    hint = Arrival("default", str(number), key, "webhook.status_added", "{}", plan, news=True)
    intake.take_in(driver.ledger, "tastyigniter", [hint])
    driver.go()


def test_trap_17_the_first_event_may_come_before_the_order_is_placed(restaurant):
    number = restaurant.add(processed=False)
    early_hint(restaurant, number)
    assert (restaurant.state(number), restaurant.order(number)["awaits"]) == ("waiting", "placed")
    restaurant.remote.edit(number, processed=True)
    restaurant.go_on(ships=True)
    assert restaurant.state(number) == "done"


def abandoned(driver: Restaurant) -> int:
    """An order that was ignored, because its checkout was not finished in time; the poll has seen that."""
    number = int(driver.add(processed=False))
    early_hint(driver, number)
    driver.poll()
    row = driver.order(number)
    facts = row["facts"] | {"checkout_until": queries.database_now(driver.ledger).isoformat()}
    with driver.ledger.transaction() as connection:
        connection.execute(update(orders).where(orders.c.id == row["id"]).values(facts=json.dumps(facts)))
    driver.go_on(1)
    assert driver.state(number) == "ignored"
    return number


def test_trap_17_an_ignored_order_is_taken_up_by_the_poll(restaurant):
    number = abandoned(restaurant)
    restaurant.remote.edit(number, processed=True)
    restaurant.poll()
    restaurant.go(ships=True)
    assert restaurant.state(number) == "done"


def test_trap_17_though_it_was_placed_while_its_step_was_about_to_ignore_it(restaurant):
    """What the list says of it is known already, so nothing of it is news: it is noted, and looked at again."""
    number = int(restaurant.add(processed=False))
    restaurant.poll()
    restaurant.remote.edit(number, processed=True)
    restaurant.poll()
    restaurant.keep(unplaced={str(number): restaurant.kept().began})
    row = restaurant.order(number)
    claim = claimed(restaurant, number)
    records.end(restaurant.ledger, claim, "the checkout is not finished", State.IGNORED, ())
    restaurant.worker.queue.clear()
    assert restaurant.state(number) == "ignored"
    restaurant.poll()
    restaurant.go(ships=True)
    assert (restaurant.state(number), restaurant.order(number)["id"]) == ("done", row["id"])


def claimed(driver: Restaurant, number: int) -> Claim:
    row = driver.order(number)
    claim = records.claim(driver.ledger, row["id"], row["position"], row["step"], "w1")
    assert claim is not None
    return claim


def test_trap_17_an_ignored_order_that_is_still_unfinished_stays_so(restaurant):
    number = abandoned(restaurant)
    restaurant.remote.edit(number, comment="not yet")
    restaurant.poll()
    restaurant.go()
    assert restaurant.state(number) == "ignored"


def test_trap_17_an_ignored_order_is_taken_up_by_a_webhook(with_webhooks):
    driver = with_webhooks()
    number = abandoned(driver)
    driver.remote.edit(number, processed=True)
    delivered(driver)
    driver.go(ships=True)
    assert driver.state(number) == "done"


def test_trap_17_abandoned_checkouts_are_forgotten_after_some_days(restaurant):
    number = restaurant.take_in(processed=False)
    long_ago = queries.database_now(restaurant.ledger) - timedelta(days=4)
    restaurant.keep(unplaced={"999": long_ago.isoformat(), str(number): long_ago.isoformat()})
    restaurant.poll()
    assert "999" not in restaurant.kept().unplaced


def off_the_page(driver: Restaurant, *numbers: int, days: float = 0) -> None:
    """These checkouts are noted since so many days, and newer orders have pushed them off the page that is read."""
    driver.add(110, processed=False)
    for _ in range(3):
        driver.poll()
    since = queries.database_now(driver.ledger) - timedelta(days=days)
    driver.keep(unplaced={str(number): since.isoformat() for number in numbers})


@pytest.mark.parametrize("bad", [1, 2])
def test_trap_17_checkouts_that_cannot_be_read_do_not_hide_orders(restaurant, bad):
    checkouts = [restaurant.add(processed=False) for _ in range(bad)]
    number = restaurant.take_in()
    restaurant.go()
    off_the_page(restaurant, *checkouts, days=4)
    restaurant.remote.edit(number, status_id=9)
    rules = [FaultRule(kinds=("500_before",), method="GET", path_contains=f"/orders/{one}") for one in checkouts]
    restaurant.remote.control.faults.set(rules)
    restaurant.poll()
    restaurant.go()
    assert restaurant.state(number) == "cancelled"
    # They are not forgotten before somebody has seen that they are not placed.
    assert restaurant.kept().unplaced.keys() >= {str(one) for one in checkouts}
    restaurant.remote.control.faults.set([])
    restaurant.keep(unplaced={str(one): restaurant.kept().unplaced[str(one)] for one in checkouts})
    restaurant.poll()
    assert restaurant.kept().unplaced.keys().isdisjoint(str(one) for one in checkouts)


def test_trap_17_what_is_placed_but_cannot_be_understood_stops_and_is_not_forgotten(today):
    number = today.take_in(processed=False)
    off_the_page(today, number)
    today.remote.edit(number, processed=True, telephone=7)
    today.poll()
    today.go()
    assert today.state(number) == "parked"
    assert "telephone: Not a valid string" in today.order(number)["error"]


def test_trap_17_a_checkout_is_looked_at_once_more_before_it_is_forgotten(restaurant):
    number = restaurant.take_in(processed=False)
    off_the_page(restaurant, number, days=4)
    restaurant.remote.edit(number, processed=True)
    restaurant.poll()
    restaurant.go(ships=True)
    assert restaurant.state(number) == "done"


def test_trap_17_a_checkout_that_is_refused_is_shown(today):
    number = today.take_in(processed=False)
    off_the_page(today, number)
    answers(today, "GET", 409, '{"message": "no"}', path=f"/orders/{number}")
    today.poll()
    assert any("409" in problem for problem in today.problems())


def test_trap_17_a_checkout_that_was_deleted_is_forgotten_in_the_end(restaurant):
    restaurant.poll()
    long_ago = queries.database_now(restaurant.ledger) - timedelta(days=4)
    restaurant.keep(unplaced={"998": restaurant.kept().began, "999": long_ago.isoformat()})
    restaurant.poll()
    assert restaurant.kept().unplaced.keys() == {"998"}


def test_trap_20_a_checkout_that_is_out_of_sight_for_a_moment_is_not_forgotten(today):
    number = today.take_in(processed=False)
    off_the_page(today, number)
    with out_of_sight(today):
        today.poll()
    today.remote.edit(number, processed=True)
    for _ in range(30):
        today.poll()
    today.go(ships=True)
    assert today.state(number) == "done"


# === The poll ===============================================================================================


def test_trap_28_a_poll_finds_what_webhooks_lost(with_webhooks):
    driver = with_webhooks(webhook_lost=1.0)
    number = driver.add()
    delivered(driver)
    assert queries.listing(driver.ledger, queries.Filter()) == []
    driver.poll()
    driver.go(ships=True)
    assert driver.state(number) == "done"


def test_trap_28_changes_of_orders_that_newer_ones_pushed_off_the_page_are_found_one_after_another(restaurant):
    numbers = restaurant.add(20)
    restaurant.poll()
    restaurant.go()
    restaurant.add(110, processed=False)
    for _ in range(3):
        restaurant.poll()
    for number in numbers:
        restaurant.remote.edit(number, status_id=9)
    before = restaurant.requests("GET")
    restaurant.poll()
    # one page, five checkouts, fifteen orders, and the two that tell nothing of themselves
    assert restaurant.requests("GET") - before <= 1 + 5 + 15
    restaurant.poll()
    restaurant.go()
    assert {restaurant.state(number) for number in numbers} == {"cancelled"}


def test_one_order_that_cannot_be_read_does_not_hide_the_others(restaurant):
    first, second = restaurant.add(2)
    restaurant.poll()
    restaurant.go()
    restaurant.add(110, processed=False)
    for _ in range(3):
        restaurant.poll()
    restaurant.keep(reread=0, unplaced={})
    restaurant.remote.edit(second, status_id=9)
    restaurant.fail("500_before", "GET", path_contains=f"/orders/{first}")
    restaurant.poll()
    restaurant.go()
    assert restaurant.state(second) == "cancelled"


def test_when_several_cannot_be_read_the_site_is_left_alone_and_the_next_visit_begins_with_others(restaurant):
    numbers = restaurant.add(3)
    restaurant.poll()
    restaurant.go()
    restaurant.add(110, processed=False)
    for _ in range(3):
        restaurant.poll()
    restaurant.keep(reread=0, unplaced={})
    restaurant.remote.edit(numbers[2], status_id=9)
    restaurant.fail("500_before", "GET", times=2, path_contains="/orders/")
    restaurant.ticks_are_due()
    assert restaurant.worker.ticks.poll("tastyigniter", "default").startswith("not done")
    assert restaurant.kept().reread == restaurant.order(numbers[1])["id"]
    restaurant.poll()
    restaurant.go()
    assert restaurant.state(numbers[2]) == "cancelled"


def test_an_order_that_cannot_be_understood_stops_alone(today):
    odd = today.add(telephone=7)
    number = today.take_in()
    today.go(ships=True)
    assert (today.state(odd), today.state(number)) == ("parked", "done")
    assert "telephone: Not a valid string" in today.order(odd)["error"]


def test_trap_06_a_site_that_does_not_know_our_sort_hides_nothing(today):
    def without_sort() -> None:
        request.args = ImmutableMultiDict((key, value) for key, value in request.args.items() if key != "sort")

    today.remote.app.before_request_funcs.setdefault(None, []).append(without_sort)
    numbers = today.add(210)
    for _ in range(2):
        today.poll()
    number = today.add()
    today.poll()
    assert listed(today) == {*numbers, number}


def test_trap_07_a_row_that_moved_under_the_paging_is_found_by_the_next_visit(today):
    numbers = today.add(250)
    today.interpose("LIST", None, add=[])
    today.interpose("LIST", None, delete=[numbers[-1]])
    today.poll()
    assert set(numbers) - listed(today) == {numbers[49]}
    today.poll()
    assert set(numbers) <= listed(today)


def test_trap_07_a_poll_that_was_cut_off_leaves_no_gap(today):
    today.poll()
    numbers = today.add(150)
    today.fail("500_before", "GET", path_contains="/orders")
    today.ticks_are_due()
    assert today.worker.ticks.poll("tastyigniter", "default").startswith("not done")
    today.remote.control.faults.set([])
    today.poll()
    assert len(queries.listing(today.ledger, queries.Filter())) == len(numbers)


def test_old_orders_are_not_taken_in_when_the_fleet_begins(restaurant):
    yesterday = queries.database_now(restaurant.ledger).timestamp() - 2 * 86400
    old = restaurant.add(created_at=yesterday, updated_at=yesterday)
    earlier = queries.database_now(restaurant.ledger).timestamp() - 3600
    done = restaurant.add(status_id=5, created_at=earlier, updated_at=earlier)
    number = restaurant.take_in()
    restaurant.go(ships=True)
    assert restaurant.state(number) == "done"
    assert restaurant.state(done) == "ignored"
    assert restaurant.order(done)["error"].startswith("finished before the fleet began")
    assert old not in listed(restaurant)


def test_what_was_open_when_it_was_taken_in_reaches_the_erp_though_the_kitchen_is_quicker(restaurant):
    earlier = hours_ago(restaurant, 1)
    number = restaurant.take_in(created_at=earlier, updated_at=earlier)
    restaurant.remote.edit(number, status_id=5)
    restaurant.go(ships=True)
    assert restaurant.state(number) == "done"
    assert len(restaurant.in_erp(number)) == 1


def test_trap_13_though_it_was_completed_before_the_time_zone_was_mended(open_restaurant):
    driver = open_restaurant(TASTYIGNITER_TIMEZONE="Asia/Nicosia")
    earlier = hours_ago(driver, 1)
    number = driver.take_in(created_at=earlier, updated_at=earlier)
    driver.go()
    assert driver.state(number) == "parked"
    driver.remote.edit(number, status_id=5)
    driver.remote.control.backend.options.change({"zone": "Asia/Nicosia"})
    driver.go_on(ships=True)
    assert driver.state(number) == "done"
    assert len(driver.in_erp(number)) == 1


def test_what_a_webhook_showed_open_is_no_business_of_before_the_fleet(with_webhooks):
    driver = with_webhooks()
    earlier = hours_ago(driver, 1)
    number = driver.add(created_at=earlier, updated_at=earlier)
    delivered(driver)
    driver.remote.edit(number, status_id=5)
    driver.go(ships=True)
    assert driver.state(number) == "done"
    assert len(driver.in_erp(number)) == 1


def test_an_old_order_of_which_there_is_an_event_is_none_of_ours_unless_a_person_says_so(restaurant):
    old_time = queries.database_now(restaurant.ledger).timestamp() - 3 * 86400
    number = restaurant.add(created_at=old_time, updated_at=old_time)
    restaurant.poll()
    early_hint(restaurant, number)
    assert restaurant.state(number) == "ignored"
    assert "long before the fleet began" in restaurant.order(number)["error"]
    restaurant.replay(number, position=0)
    restaurant.go(ships=True)
    assert restaurant.state(number) == "done"


def test_a_steady_site_costs_one_request_a_visit(restaurant):
    restaurant.finished()
    restaurant.poll()
    before = restaurant.requests("GET")
    restaurant.poll()
    assert restaurant.requests("GET") == before + 1


# === Webhooks ===============================================================================================


def test_trap_26_events_that_are_late_doubled_and_out_of_order_are_hints(with_webhooks):
    driver = with_webhooks(webhook_doubled=0.5, webhook_late_seconds=0.05, webhook_seed=3)
    numbers = driver.add(5)
    for _ in range(4):
        delivered(driver)
        driver.go(ships=True)
    assert {driver.state(number) for number in numbers} == {"done"}
    for number in numbers:
        assert driver.moves(number) == ["status:1->3", "status:3->5"]
        assert driver.mails(number) == [1, 3]
    assert driver.problems() == []


def test_trap_26_an_old_event_of_a_finished_order_does_nothing(with_webhooks):
    driver = with_webhooks()
    number = driver.finished()
    delivered(driver)
    kept = driver.attempts(number)
    for delivery in site_of(driver.remote.app).hooks.post.deliveries(number):
        site_of(driver.remote.app).hooks.post.send(delivery.url, delivery.body, delivery.headers, number)
    delivered(driver)
    driver.go()
    assert driver.attempts(number) == kept
    assert driver.problems() == []


def test_a_cancellation_arrives_by_webhook(with_webhooks):
    driver = with_webhooks()
    number = driver.take_in()
    driver.go()
    driver.remote.edit(number, status_id=9)
    delivered(driver)
    driver.go()
    assert driver.state(number) == "cancelled"


def test_trap_31_the_dishes_of_a_flat_order_come_from_its_webhook(with_webhooks):
    driver = with_webhooks(profile="P1", TASTYIGNITER_LINES_SECONDS="30")
    number = driver.add(order_menus=[{"menu_id": 12, "name": "Soup", "quantity": 2, "price": 5.5}])
    delivered(driver)
    driver.go(ships=True)
    assert driver.state(number) == "done"
    assert [(row["product"], row["quantity"]) for row in driver.erp_lines(number)] == [("12", 2)]


def test_trap_31_where_it_is_taken_to_comes_from_its_webhook_too(with_webhooks):
    driver = with_webhooks(profile="P1", TASTYIGNITER_LINES_SECONDS="30")
    address = {"address_1": "1 Example Street", "city": "Paphos"}
    number = driver.add(order_type="delivery", address=address, address_id=4, delivery_comment="ring twice")
    delivered(driver)
    driver.go()
    (row,) = driver.in_erp(number)
    assert json.loads(row["ship_to"])["street"] == "1 Example Street, Paphos"
    assert "Delivery: ring twice" in row["notes"]


def test_trap_31_a_poll_that_was_quicker_waits_for_the_webhook(open_restaurant):
    driver = open_restaurant(profile="P1", TASTYIGNITER_LINES_SECONDS="30")
    number = driver.take_in(order_menus=[{"menu_id": 12, "name": "Soup", "quantity": 2, "price": 5.5}])
    driver.go()
    assert (driver.state(number), driver.order(number)["awaits"]) == ("waiting", "lines")
    with a_web(driver.settings) as web:
        driver.remote.point_at(web)
        driver.remote.edit(number, comment="quickly, please")
        delivered(driver)
    driver.worker.sweep.run()
    driver.go(ships=True)
    assert driver.state(number) == "done"
    assert [row["product"] for row in driver.erp_lines(number)] == ["12"]


def test_trap_31_not_for_ever(open_restaurant):
    driver = open_restaurant(profile="P1", TASTYIGNITER_LINES_SECONDS="1", TASTYIGNITER_ORDER_PRODUCT="CATERING")
    number = driver.take_in()
    driver.go()
    assert driver.state(number) == "waiting"

    def through() -> bool:
        driver.go_on(1, ships=True)
        return driver.state(number) == "done"

    wait_for(through, "it goes on without dishes", 10)
    assert [row["product"] for row in driver.erp_lines(number)] == ["CATERING"]
    assert driver.order(number)["facts"]["flags"] == ["nobody told its dishes in time: one line stands for them"]


def test_trap_31_without_webhooks_nobody_waits(open_restaurant):
    driver = open_restaurant(profile="P1", TASTYIGNITER_LINES_SECONDS="30", TASTYIGNITER_WEBHOOK_SECRET="")
    number = driver.take_in()
    driver.go()
    assert [row["product"] for row in driver.erp_lines(number)] == ["ORDER"]
    assert "flags" not in driver.order(number)["facts"]


# === What is read ===========================================================================================


def test_trap_13_a_wrong_time_zone_stops_orders_until_it_is_right(open_restaurant):
    driver = open_restaurant(TASTYIGNITER_TIMEZONE="Asia/Nicosia")
    number = driver.take_in()
    driver.go()
    assert driver.state(number) == "parked"
    assert "TASTYIGNITER_TIMEZONE is not the site's time zone" in driver.order(number)["error"]
    assert driver.in_erp(number) == []
    driver.remote.control.backend.options.change({"zone": "Asia/Nicosia"})
    driver.go_on()
    assert len(driver.in_erp(number)) == 1


def test_trap_14_an_hour_that_comes_twice_is_flagged_on_the_order(restaurant):
    number = restaurant.take_in(order_date="2027-10-31", order_time="01:30:00")
    restaurant.go()
    (flag,) = restaurant.order(number)["facts"]["flags"]
    assert "comes twice in Europe/London" in flag
    assert [row["requested_at"].isoformat() for row in restaurant.in_erp(number)] == ["2027-10-31T00:30:00+00:00"]


def test_trap_11_amounts_that_do_not_add_up_are_flagged_on_the_order(today):
    number = today.take_in(order_total=999)
    today.go(ships=True)
    assert today.state(number) == "done"
    assert "add up to 24.0000, the order says 999.0000" in today.order(number)["facts"]["flags"][0]


@pytest.mark.parametrize("form", ["number", "string"])
def test_trap_15_what_is_rounded_off_is_kept(open_restaurant, form):
    driver = open_restaurant(profile="P1", total_as=form)
    number = driver.take_in(order_total=15.0449)
    driver.go()
    assert driver.order(number)["facts"]["rounding"] == {"total": "0.0049"}
    assert [row["total"] for row in driver.in_erp(number)] == [Decimal("15.04")]


def test_trap_16_the_currency_is_the_first_one_that_was_seen(today):
    number = today.take_in()
    today.go()
    today.remote.control.backend.options.change({"currency": "EUR"})
    today.replay(number, position=0)
    today.go()
    assert today.order(number)["facts"]["currency"] == "GBP"
    document: Any = queries.document(today.ledger, today.order(number)["id"])
    assert document["currency"] == "GBP"


def test_trap_16_a_flat_site_needs_a_currency(open_restaurant):
    driver = open_restaurant(profile="P1", TASTYIGNITER_CURRENCY="")
    number = driver.take_in()
    driver.go()
    assert driver.state(number) in ("ready", "retrying")
    assert "TASTYIGNITER_CURRENCY" in driver.order(number)["error"]


def test_trap_30_addresses_and_browsers_are_not_kept(restaurant):
    number = restaurant.take_in()
    restaurant.go()
    with restaurant.ledger.reading() as connection:
        bodies = list(connection.execute(select(events.c.body)).scalars())
        raw = connection.execute(select(documents.c.raw)).scalar_one()
    assert restaurant.in_erp(number)
    for text in (*bodies, raw):
        assert "user_agent" not in text
        assert "ip_address" not in text


def test_trap_32_too_many_requests_burn_no_attempt(restaurant):
    number = restaurant.stand_before("tastyigniter.preparing")
    restaurant.fail("429", retry_after=1, times=2)
    restaurant.go()
    restaurant.go_on()
    assert restaurant.status(number) == 3
    outcomes = {outcome for step, outcome in restaurant.attempts(number) if step == "tastyigniter.preparing"}
    assert outcomes == {"unavailable", "done"}
    assert restaurant.moves(number) == ["status:1->3"]


# === Previews, commands, probe ==============================================================================


def test_what_a_replay_would_do(today):
    number = today.stand_before("tastyigniter.preparing")
    assert today.foreseen(number, "tastyigniter.fetch").text == "reads the order again: status 1"
    preview = today.foreseen(number, "tastyigniter.preparing")
    assert (preview.effect, preview.text) == (
        Effect.CALL,
        "sets the status to 3, of which the customer may get a mail",
    )
    assert today.foreseen(number, "tastyigniter.completed").text == "waits until everything is shipped"
    today.go()
    assert today.foreseen(number, "tastyigniter.preparing").effect is Effect.SKIP
    today.tell(number, "shipped")
    assert today.foreseen(number, "tastyigniter.completed").text.startswith("sets the status to 5")
    today.remote.edit(number, status_id=9)
    assert today.foreseen(number, "tastyigniter.completed").text.startswith("is canceled in TastyIgniter")
    today.remote.edit(number, deleted=True)
    assert "deleted" in today.foreseen(number, "tastyigniter.fetch").text
    assert "deleted" in today.foreseen(number, "tastyigniter.completed").text


@pytest.mark.parametrize(
    ("patch", "text"),
    [
        ({}, "sets the status to 9"),
        ({"status_id": 5}, "would stop: it is completed in TastyIgniter"),
        ({"status_id": 9}, "is canceled already"),
        ({"deleted": True}, "is deleted, or out of the token's sight: nobody is told there, or a person must act"),
    ],
)
def test_what_cancelling_would_do(today, patch, text):
    number = today.take_in()
    today.go()
    today.tell(number, "cancelled")
    today.go(hold=["tastyigniter.cancel"])
    today.remote.edit(number, **patch)
    assert today.foreseen(number, "tastyigniter.cancel").text == text


def test_what_a_replay_would_do_after_a_cancellation_was_overwritten(today):
    number = today.stand_before("tastyigniter.preparing")
    today.interpose("GET", number, status_id=9)
    today.fail("lost_answer", "PATCH", times=1)
    today.go()
    assert today.foreseen(number, "tastyigniter.preparing").text == "was canceled in TastyIgniter: its plan ends here"


def test_what_cancelling_would_do_to_an_order_that_was_opened_again(today):
    number = today.take_in()
    today.go()
    today.tell(number, "cancelled")
    today.fail("lost_answer", "PATCH", times=1)
    today.interpose("PATCH", number, status_id=3)
    today.go()
    assert today.foreseen(number, "tastyigniter.cancel").text == "was canceled before, and is 3 now"


def test_a_preview_of_an_unfinished_checkout(today):
    number = today.add(processed=False)
    early_hint(today, number)
    assert today.foreseen(number, "tastyigniter.fetch").text.endswith("checkout not finished")


@pytest.mark.parametrize("profile", PROFILES)
def test_trap_29_an_operator_deletes_an_order(open_restaurant, profile):
    driver = open_restaurant(profile=profile)
    driver.add()
    number = driver.take_in()
    driver.go()
    doing = driver.doing(number)
    asked = doing.ask()
    assert "for good" in asked
    assert "the ERP's order will be cancelled" in asked
    assert driver.remote.order(number)["deleted"] is False
    assert doing.run() == f"order {number} is deleted in TastyIgniter"
    assert driver.effects(number)["delete"] == 1
    assert driver.doing(number).run() == "it was not there any more"
    assert driver.doing(number).ask().startswith("nothing would be done")
    driver.poll()
    driver.go()
    assert driver.state(number) == "cancelled"


def test_trap_29_the_last_order_of_a_location_is_cancelled_in_the_erp_too(restaurant):
    """No webhook tells, and nothing else of the location is to be seen."""
    number = restaurant.take_in()
    restaurant.go()
    assert "the ERP's order will be cancelled" in restaurant.doing(number).ask()
    restaurant.doing(number).run()
    restaurant.poll()
    restaurant.go()
    assert restaurant.state(number) == "cancelled"
    assert [row["stage"] for row in restaurant.in_erp(number)] == ["cancelled"]


def test_a_finished_order_that_is_deleted_leaves_the_erp_alone(today):
    number = today.finished()
    assert "ERP" not in today.doing(number).ask()
    today.doing(number).run()
    today.poll()
    today.go()
    assert today.state(number) == "done"


def test_trap_29_a_delete_without_an_answer_is_looked_for(today):
    number = today.finished()
    today.fail("lost_answer", "DELETE", times=1)
    assert today.doing(number).run() == f"order {number} is deleted in TastyIgniter"
    assert today.effects(number)["delete"] == 1


def test_trap_29_a_delete_that_did_not_arrive_is_told(today):
    number = today.finished()
    today.fail("lost_request", "DELETE", times=1)
    with pytest.raises(TryLater):
        today.doing(number).run()
    assert today.remote.order(number)["deleted"] is False


def test_trap_29_somebody_else_deletes_it_meanwhile(today):
    number = today.finished()
    today.interpose("GET", number, deleted=True)
    assert today.doing(number).run() == "it was not there any more"


def test_trap_29_a_site_that_only_says_it_deleted(today):
    number = today.finished()
    answers(today, "DELETE", 200, '{"id": 1, "object": "order", "deleted": true}')
    with pytest.raises(TryLater, match="still there"):
        today.doing(number).run()


def test_delete_takes_no_data(today):
    number = today.finished()
    for act in (today.doing(number, {"x": 1}).ask, today.doing(number, {"x": 1}).run):
        with pytest.raises(Refused, match="no --data"):
            act()


def probe(driver: Restaurant) -> str:
    ask = driver.fleet.systems["tastyigniter"].probe
    assert ask is not None
    return ask(driver.visit().account)


def test_trap_21_the_probe_proves_the_token_and_looks_at_the_statuses(restaurant):
    restaurant.add()
    assert probe(restaurant) == "the token reads orders; the statuses 3, 5 and 9 exist"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"TASTYIGNITER_TOKEN": "9|wrong"}, "401"),
        ({"tokens": {"2|o": {"abilities": ["orders:read"]}}, "TASTYIGNITER_TOKEN": "2|o"}, "`orders:*`"),
        ({"TASTYIGNITER_STATUS_PREPARING": "6"}, "TASTYIGNITER_STATUS_PREPARING is 6, which is no status of orders"),
        ({"TASTYIGNITER_STATUS_CANCELED": "77"}, "TASTYIGNITER_STATUS_CANCELED is 77"),
        ({"profile": "P1", "TASTYIGNITER_CURRENCY": ""}, "TASTYIGNITER_CURRENCY"),
    ],
)
def test_trap_21_what_the_probe_finds(open_restaurant, options, words):
    driver = open_restaurant(**options)
    driver.add()
    with pytest.raises(Misconfigured) as caught:
        probe(driver)
    assert words in caught.value.reason


def test_trap_21_a_token_for_orders_alone_cannot_look_at_the_statuses(open_restaurant):
    driver = open_restaurant(tokens={"2|o": {"abilities": ["orders:*"]}}, TASTYIGNITER_TOKEN="2|o")
    assert "`status:*`" in probe(driver)


# === Settings ===============================================================================================

NEEDED = {
    "TASTYIGNITER_URL": "https://shop.example.test/api/",
    "TASTYIGNITER_TOKEN": "1|made-up",
    "TASTYIGNITER_TIMEZONE": "Europe/London",
}


def options_of(**environment: str) -> Any:
    (account,) = read_settings(NEEDED | environment).accounts
    return account


def test_trap_13_what_is_needed():
    account = options_of()
    assert (account.url, account.poll_seconds) == ("https://shop.example.test/api", 60)
    statuses = account.options["statuses"]
    assert (statuses.preparing, statuses.completed, statuses.canceled) == (3, 5, 9)
    assert (account.options["product"], account.options["lines_seconds"]) == ("ORDER", 120)
    with pytest.raises(WrongSettings) as caught:
        read_settings({"TASTYIGNITER_URL": "https://shop.example.test/api"})
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "TASTYIGNITER_TIMEZONE",
        "TASTYIGNITER_TOKEN",
    ]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("TIMEZONE", "London", "is not a time zone"),
        ("CURRENCY", "pounds", "is not a currency"),
        ("WEBHOOK_HEADER", "my header", "is not the name of a header"),
        ("STATUS_PREPARING", "soon", "is not a whole number"),
        ("STATUS_PREPARING", "5", "a status id of its own"),
        ("LINES_SECONDS", "-1", "is not a whole number"),
    ],
)
def test_what_is_wrong_is_told_by_name(name, value, words):
    with pytest.raises(WrongSettings) as caught:
        options_of(**{f"TASTYIGNITER_{name}": value})
    (problem,) = caught.value.problems
    assert problem.startswith(f"TASTYIGNITER_{name}")
    assert words in problem


def test_a_currency_in_small_letters():
    assert options_of(TASTYIGNITER_CURRENCY="eur").options["currency"] == "EUR"
