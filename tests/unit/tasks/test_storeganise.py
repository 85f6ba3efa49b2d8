"""Storeganise's steps on the real ledger, against its imitation and the staging tables. The traps are those of section
11 of contracts/storeganise.md."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from flask import request
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from ledger import by_hand, intake, intents, queries, records, sending, signals
from ledger.models import events
from ledger.records import Claim
from orders.arrival import Arrival
from orders.errors import Misconfigured, Refused, TryLater, Unclear
from orders.outcomes import Planned
from sandbox.storeganise import ARCHIVE_BOX, BICYCLE, ELSEWHERE, SOFA, STANDARD_BOX, UNKNOWN_PRODUCT, WARDROBE_BOX
from tasks.base import PREVIEWS, Effect, Job, Visit
from tests.flows.harness import a_remote
from tests.unit.tasks.conftest import Driver
from workers import operators

BOXES = ("order_start", "items_pickEmptyBoxes", "items_deliver", "items_collect", "items_store")
BULKY = ("order_start", "items_collect", "items_store")
SIGNALS = dict(zip(BOXES, ("approved", "picked", "delivered", "collected", "stored"), strict=True))
COMMANDS = {
    "items_pickEmptyBoxes": "valetOrder_add",
    "items_deliver": "valetOrder_deliver",
    "items_collect": "valetOrder_collect",
    "items_store": "valetOrder_store",
}
AUTO = {"STOREGANISE_AUTO_APPROVE": "yes"}


class Warehouse(Driver):
    """Orders are named by their id at Storeganise; `tell` is what the ERP tells of the warehouse."""

    @property
    def backend(self) -> Any:
        return self.remote.control.backend

    def there(self, order_id: str) -> Any:
        """The order as the imitation keeps it, for what no person can do."""
        return self.backend._tenant.orders[order_id]

    def item(self, sid: str) -> Any:
        return self.backend._tenant.items[sid]

    def add(self, *, boxes: int | list[dict[str, Any]] = 2, **specification: Any) -> str:
        """One order, taken in by nobody yet: of so many boxes, or of these, unless it is of another kind."""
        if isinstance(boxes, int):
            boxes = [{"itemTypeId": STANDARD_BOX, "quantity": boxes}]
        if specification.get("kind") != "bulky":
            specification["boxes"] = boxes
        [order_id] = self.backend.add_orders([specification])
        return str(order_id)

    def take_in(self, **specification: Any) -> str:
        """The same, polled, and as far as it goes by itself."""
        order_id = self.add(**specification)
        self.poll()
        self.go(erp=False)
        return order_id

    def sids(self, order_id: str) -> list[str]:
        return [item["sid"] for item in self.remote.order(order_id)["items"]]

    def data(self, order_id: str, step: str) -> dict[str, Any]:
        """What the warehouse tells when all of a step is done."""
        sids = self.sids(order_id)
        if step == "order_start":
            return {}
        return {"items": sids} | ({"locations": dict.fromkeys(sids, "S1")} if step == "items_store" else {})

    def happens(self, order_id: str, step: str, *, hold: tuple[str, ...] = ()) -> None:
        """The warehouse does all that a step asks for, and the fleet what follows."""
        self.tell(order_id, SIGNALS[step], **self.data(order_id, step))
        self.go(erp=False, hold=hold)

    def stand_before(self, step: str, **specification: Any) -> str:
        """A new order that waits for this step's signal."""
        order_id = self.take_in(**specification)
        for earlier in BOXES[: BOXES.index(step)]:
            if f"storeganise.{earlier}" in self.plan(order_id):
                self.happens(order_id, earlier)
        assert self.order(order_id)["step"] == f"storeganise.{step}"
        return order_id

    def finish(self, order_id: str, steps: tuple[str, ...] = BOXES) -> None:
        for step in steps:
            self.happens(order_id, step)

    def plan(self, order_id: str) -> list[str]:
        return [row["name"] for row in queries.plan_of(self.ledger, self.order(order_id)["id"])]

    def error(self, order_id: str) -> str:
        return str(self.order(order_id)["error"])

    def items(self, order_id: str, name: str) -> list[Any]:
        """A field of each of the order's items."""
        return [item[name] for item in self.remote.order(order_id)["items"]]

    def odd_events(self) -> list[str]:
        return [row["problem"] for row in queries.odd_events(self.ledger)]

    def job(self, order_id: str, position: int | None = None) -> Job:
        """What a preview or a command is handed."""
        row = self.order(order_id)
        plan = queries.plan_of(self.ledger, row["id"])
        at = min(row["position"], len(plan) - 1) if position is None else position
        planned = tuple(Planned(one["name"], one["awaits"], data=json.loads(one["data"])) for one in plan)
        return Job(
            self.ledger,
            Claim(
                id=row["id"],
                system="storeganise",
                account="default",
                external_id=order_id,
                reference=row["reference"],
                position=at,
                step=planned[at].name,
                fence=0,
                tries=1,
                failures=0,
                crashes=0,
                signal_seq=0,
                claimed_at=queries.database_now(self.ledger),
                plan=planned,
                facts=row["facts"],
            ),
        )

    def foresee(self, order_id: str) -> tuple[Effect, str]:
        """What a replay would do where the order stands."""
        job = self.job(order_id)
        told = PREVIEWS[job.claim.step](job, self.account)
        return told.effect, told.text

    @property
    def account(self) -> Any:
        return self.fleet.accounts["storeganise", "default"]


@contextmanager
def a_warehouse(url: str, options: dict[str, Any] | None = None, **environment: str) -> Iterator[Warehouse]:
    with a_remote("storeganise", **(options or {})) as remote:
        driver = Warehouse(remote, environment, url)
        try:
            yield driver
        finally:
            driver.close()


Open = Callable[..., Warehouse]


@pytest.fixture
def warehouse_with(sqlite_url: str) -> Iterator[Open]:
    """`warehouse_with({"items_partial": True}, STOREGANISE_AUTO_APPROVE="yes")`, once a test."""
    with ExitStack() as stack:
        yield lambda options=None, **environment: stack.enter_context(a_warehouse(sqlite_url, options, **environment))


@pytest.fixture
def warehouse(warehouse_with: Open) -> Warehouse:
    return warehouse_with()


def exactly_once(driver: Warehouse, order_id: str, steps: tuple[str, ...] = BOXES) -> None:
    """Each step was completed once, each item had each command once, and there is one invoice."""
    effects = driver.effects(order_id)
    count = len(driver.sids(order_id))
    assert {step: effects[f"step:{step}:completed"] for step in steps} == dict.fromkeys(steps, 1)
    commands = {COMMANDS[step]: count for step in steps if step in COMMANDS}
    assert {name: effects[f"item:{name}"] for name in commands} == commands
    assert effects["invoice"] == 1
    assert driver.backend.effects.repeated_keys() == {}


# === From end to end ========================================================================================


@pytest.fixture
def warehouse_on_both(ledger_url: str) -> Iterator[Warehouse]:
    with a_warehouse(ledger_url) as driver:
        yield driver


def test_from_the_poll_to_the_shelf(warehouse_on_both):
    driver = warehouse_on_both
    order_id = driver.take_in(boxes=3)
    driver.finish(order_id)
    assert driver.attempts(order_id) == [
        ("storeganise.fetch", "done"),
        ("erp.order", "done"),
        *((f"storeganise.{step}", "done") for step in BOXES),
    ]
    row = driver.order(order_id)
    remote = driver.remote.order(order_id)
    assert (row["state"], row["reference"]) == ("done", remote["sid"])
    assert remote["state"] == "completed"
    assert {(item["state"], item["location"]) for item in remote["items"]} == {("stored", "S1")}
    exactly_once(driver, order_id)


def test_what_the_erp_gets(warehouse):
    boxes = [{"itemTypeId": STANDARD_BOX, "quantity": 2}, {"itemTypeId": WARDROBE_BOX, "quantity": 1}]
    order_id = warehouse.take_in(boxes=boxes, date="2026-12-01", timeslot="1300-1500")
    [row] = warehouse.in_erp(order_id)
    assert (row["stage"], row["reference"]) == ("confirmed", warehouse.remote.order(order_id)["sid"])
    assert row["notes"] == "time slot 1300-1500"
    lines = [(line["line_key"], line["product"], line["quantity"]) for line in warehouse.erp_lines(order_id)]
    assert [(key, product) for key, product, _ in lines] == [
        (f"box:{STANDARD_BOX}", STANDARD_BOX),
        (f"box:{WARDROBE_BOX}", WARDROBE_BOX),
    ]
    assert [Decimal(str(quantity)) for *_, quantity in lines] == [2, 1]


def test_polling_again_changes_nothing(warehouse):
    order_id = warehouse.stand_before("items_deliver")
    warehouse.poll()
    before = warehouse.order(order_id), warehouse.attempts(order_id), warehouse.remote.order(order_id)
    for _ in range(3):
        warehouse.poll()
        warehouse.go(erp=False)
    assert (warehouse.order(order_id), warehouse.attempts(order_id), warehouse.remote.order(order_id)) == before


def test_a_refusal_of_the_erp_parks_the_order_before_it_is_started(warehouse):
    order_id = warehouse.take_in(boxes=[{"itemTypeId": UNKNOWN_PRODUCT, "quantity": 1}])
    warehouse.go()
    assert warehouse.state(order_id) == "parked"
    assert UNKNOWN_PRODUCT in warehouse.error(order_id)
    assert not warehouse.effects(order_id)


# === The traps ==============================================================================================


@pytest.mark.parametrize("step", BOXES)
def test_trap_01_both_halves_of_each_step_and_the_command_first(warehouse, step):
    order_id = warehouse.stand_before(step)
    warehouse.happens(order_id, step)
    kinds = [effect.kinds[0] for effect in warehouse.backend.effects.of(order_id)]
    writes = [kind for kind in kinds if kind.startswith(("valetOrder_", "complete_step"))]
    command = [COMMANDS[step]] if step in COMMANDS else []
    assert writes[-1 - len(command) :] == [*command, "complete_step"]


@pytest.mark.parametrize("step", BOXES)
def test_trap_01_a_worker_that_dies_after_both_halves_makes_neither_again(warehouse, step):
    order_id = warehouse.stand_before(step)
    warehouse.tell(order_id, SIGNALS[step], **warehouse.data(order_id, step))
    sending.take_ready_orders(warehouse.ledger, [warehouse.order(order_id)["id"]])
    warehouse.dies_at(order_id)
    before = warehouse.effects(order_id)
    warehouse.go_on(1)
    assert warehouse.attempts(order_id)[-1] == (f"storeganise.{step}", "skipped")
    assert warehouse.effects(order_id) == before
    for later in BOXES[BOXES.index(step) + 1 :]:
        warehouse.happens(order_id, later)
    assert warehouse.state(order_id) == "done"
    exactly_once(warehouse, order_id)


@pytest.mark.parametrize("step", list(COMMANDS))
def test_trap_01_a_command_whose_completion_is_still_missing_is_not_given_again(warehouse, step):
    """As after a worker that died between the two."""
    order_id = warehouse.stand_before(step)
    location = "S1" if step == "items_store" else None
    warehouse.account.client.command_items(COMMANDS[step], warehouse.sids(order_id), order_id, location)
    warehouse.happens(order_id, step)
    assert warehouse.attempts(order_id)[-1] == (f"storeganise.{step}", "done")
    assert warehouse.effects(order_id)[COMMANDS[step]] == 1
    assert warehouse.effects(order_id)[f"step:{step}:completed"] == 1


@pytest.mark.parametrize("fault", ["lost_answer", "500_before", "html_502"])
@pytest.mark.parametrize(
    ("step", "path"), [*((step, "/steps/") for step in BOXES), *((step, "/items") for step in COMMANDS)]
)
def test_trap_01_whatever_becomes_of_an_answer_each_effect_is_there_once(warehouse, step, path, fault):
    order_id = warehouse.stand_before(step)
    warehouse.remote.faults({"kinds": (fault,), "method": "PUT", "path_contains": path, "times": 1})
    warehouse.happens(order_id, step)
    assert warehouse.attempts(order_id)[-1] == (f"storeganise.{step}", "retry")
    warehouse.go_on(1)
    for later in BOXES[BOXES.index(step) + 1 :]:
        warehouse.happens(order_id, later)
    assert warehouse.state(order_id) == "done"
    exactly_once(warehouse, order_id)


RESOLVE = (Planned("storeganise.resolve"),)
PLAN = (Planned("storeganise.fetch"), Planned("erp.order"))


def hear(
    driver: Warehouse,
    external_id: str,
    key: str = "hook:1",
    *,
    kind: str = "job.valetOrder.created",
    plan: tuple[Planned, ...] = RESOLVE,
) -> None:
    """What a webhook has taken in; unless it is told otherwise, one that names only a job."""
    arrival = Arrival("default", external_id, key, kind, json.dumps({"key": key}), plan, news=True)
    intake.take_in(driver.ledger, "storeganise", [arrival])


def test_trap_02_a_job_is_resolved_to_its_order(warehouse):
    order_id = warehouse.add()
    entry = f"job:{warehouse.remote.order(order_id)['jobId']}"
    hear(warehouse, entry)
    warehouse.go(erp=False)
    assert warehouse.order(order_id)["step"] == "storeganise.order_start"
    assert warehouse.state(entry) == "ignored"
    assert warehouse.error(entry) == f"only stands for order {order_id}, whose job it is"
    assert len(warehouse.in_erp(order_id)) == 1
    assert not warehouse.in_erp(entry)


def test_trap_02_a_further_event_of_the_job_is_news_of_its_order(warehouse):
    order_id = warehouse.take_in()
    entry = f"job:{warehouse.remote.order(order_id)['jobId']}"
    hear(warehouse, entry)
    warehouse.go(erp=False)
    warehouse.read_news()
    warehouse.remote.edit(order_id, state="cancelled")
    hear(warehouse, entry, "hook:2")
    warehouse.read_news()
    warehouse.read_news()
    warehouse.go(erp=False)
    assert warehouse.state(order_id) == "cancelled"
    assert [row["stage"] for row in warehouse.in_erp(order_id)] == ["cancelled"]


@pytest.mark.parametrize("fault", ["500_before", "429"])
def test_trap_02_a_job_that_cannot_be_read_now_is_read_later(warehouse, fault):
    order_id = warehouse.add()
    hear(warehouse, f"job:{warehouse.remote.order(order_id)['jobId']}")
    warehouse.remote.faults({"kinds": (fault,), "path_contains": "/jobs/", "times": 1})
    warehouse.go(erp=False)
    warehouse.go_on(2)
    assert warehouse.order(order_id)["step"] == "storeganise.order_start"


def test_trap_02_with_a_wrong_key_no_job_is_given_up(warehouse):
    order_id = warehouse.add()
    hear(warehouse, f"job:{warehouse.remote.order(order_id)['jobId']}")
    warehouse.backend.options.api_key = "changed"
    warehouse.go(erp=False)
    warehouse.backend.options.api_key = "sandbox-key"
    warehouse.go_on(2)
    assert warehouse.order(order_id)["step"] == "storeganise.order_start"


def test_trap_02_two_events_of_a_job_before_it_is_seen_to(warehouse):
    order_id = warehouse.add()
    entry = f"job:{warehouse.remote.order(order_id)['jobId']}"
    for number in range(2):
        hear(warehouse, entry, f"hook:{number}")
        warehouse.read_news()
    assert known(warehouse) == {entry}
    warehouse.go(erp=False)
    assert known(warehouse) == {entry, order_id}


def test_trap_02_where_jobs_cannot_be_read_the_list_is_searched(warehouse):
    for _ in range(3):
        warehouse.add()
    order_id = warehouse.add()
    job_id = warehouse.remote.order(order_id)["jobId"]
    warehouse.backend._tenant.jobs.clear()
    hear(warehouse, f"job:{job_id}")
    warehouse.go(erp=False)
    assert [row["external_id"] for row in queries.listing(warehouse.ledger, queries.Filter())] == [
        f"job:{job_id}",
        order_id,
    ]


def test_trap_02_a_job_of_nobody_stops_nobody(warehouse):
    for _ in range(60):
        warehouse.add()
    hear(warehouse, "job:65a0")
    warehouse.go(erp=False)
    assert warehouse.state("job:65a0") == "ignored"
    assert "the poll will bring it" in warehouse.error("job:65a0")


def test_trap_03_nothing_is_started_before_it_is_approved(warehouse):
    order_id = warehouse.take_in()
    warehouse.poll()
    warehouse.go_on()
    assert (warehouse.state(order_id), warehouse.order(order_id)["awaits"]) == ("waiting", "approved")
    assert not warehouse.effects(order_id)
    warehouse.happens(order_id, "order_start")
    assert warehouse.effects(order_id)["invoice"] == 1


def test_trap_03_unless_that_is_set(warehouse_with):
    driver = warehouse_with(**AUTO)
    order_id = driver.take_in()
    assert driver.order(order_id)["awaits"] == "picked"
    assert driver.effects(order_id)["invoice"] == 1


@pytest.mark.parametrize("step", list(COMMANDS))
def test_trap_04_ready_is_not_done(warehouse, step):
    order_id = warehouse.stand_before(step)
    before = warehouse.effects(order_id)
    warehouse.poll()
    warehouse.go_on()
    assert (warehouse.state(order_id), warehouse.order(order_id)["awaits"]) == ("waiting", SIGNALS[step])
    assert warehouse.effects(order_id) == before


def test_trap_05_a_box_that_is_on_the_order_already_is_not_added_again(warehouse):
    order_id = warehouse.stand_before("items_pickEmptyBoxes", boxes=3)
    first, *rest = warehouse.sids(order_id)
    warehouse.account.client.command_items("valetOrder_add", [first], order_id)
    warehouse.happens(order_id, "items_pickEmptyBoxes")
    added = [
        json.loads(effect.raw)["itemSids"]
        for effect in warehouse.backend.effects.of(order_id)
        if effect.kinds[0] == "valetOrder_add"
    ]
    assert added == [[first], rest]
    assert warehouse.order(order_id)["awaits"] == "delivered"


def test_trap_05_a_refusal_because_somebody_was_faster_is_no_failure(warehouse):
    """Staff add one of the boxes between our look at the items and our command."""
    order_id = warehouse.stand_before("items_pickEmptyBoxes")
    first, second = warehouse.sids(order_id)
    client = warehouse.account.client
    warehouse.remote.when(
        "GET", lambda: client.command_items("valetOrder_add", [first, second], order_id), path="/admin/items"
    )
    warehouse.happens(order_id, "items_pickEmptyBoxes")
    assert warehouse.attempts(order_id)[-1] == ("storeganise.items_pickEmptyBoxes", "done")
    assert warehouse.effects(order_id)["valetOrder_add"] == 1


def test_trap_06_a_bulky_order_has_fewer_steps(warehouse):
    order_id = warehouse.take_in(kind="bulky", items=[SOFA, BICYCLE])
    assert warehouse.plan(order_id) == ["storeganise.fetch", "erp.order", *(f"storeganise.{step}" for step in BULKY)]
    assert [line["product"] for line in warehouse.erp_lines(order_id)] == [SOFA, BICYCLE]
    warehouse.finish(order_id, BULKY)
    assert warehouse.state(order_id) == "done"
    exactly_once(warehouse, order_id, BULKY)


def test_trap_06_boxes_and_something_bulky_on_one_order(warehouse):
    order_id = warehouse.take_in(kind="boxes", boxes=[{"itemTypeId": ARCHIVE_BOX, "quantity": 1}], items=[SOFA])
    sofa = warehouse.sids(order_id)[1]
    assert [line["line_key"] for line in warehouse.erp_lines(order_id)] == [f"box:{ARCHIVE_BOX}", f"item:{sofa}"]
    warehouse.finish(order_id)
    assert warehouse.state(order_id) == "done"
    effects = warehouse.effects(order_id)
    assert (effects["item:valetOrder_add"], effects["item:valetOrder_collect"]) == (1, 2)


@pytest.mark.parametrize(
    ("unknown", "steps"),
    [
        ("products_pick", ("order_start", "products_pick", *BOXES[1:])),
        ("items_inspect", (*BOXES[:4], "items_inspect", *BOXES[4:])),
    ],
)
def test_trap_06_a_step_of_an_unknown_type_is_for_staff(warehouse, unknown, steps):
    order_id = warehouse.take_in(steps=list(steps))
    for step in BOXES[: steps.index(unknown)]:
        warehouse.happens(order_id, step)
    assert warehouse.state(order_id) == "parked"
    page = f"{warehouse.remote.url}/admin/valet-orders/{order_id}"
    assert warehouse.error(order_id) == (
        f"the step {unknown} is done by staff: complete it at {page}, and the order goes on by itself"
    )
    assert warehouse.foresee(order_id) == (Effect.CALL, f"would stop: staff have not completed {unknown} yet")
    warehouse.remote.edit(order_id, complete_step=unknown)
    warehouse.poll()
    warehouse.worker.sweep.run()
    warehouse.go(erp=False)
    assert ("storeganise.other", "skipped") in warehouse.attempts(order_id)
    for step in BOXES[steps.index(unknown) :]:
        warehouse.happens(order_id, step)
    assert warehouse.state(order_id) == "done"
    exactly_once(warehouse, order_id)


def test_trap_06_the_steps_may_come_as_the_job_itself(warehouse_with):
    driver = warehouse_with({"job_as_list": True})
    order_id = driver.take_in()
    driver.finish(order_id)
    assert driver.state(order_id) == "done"


def test_trap_07_an_order_without_steps_is_not_done(warehouse):
    order_id = warehouse.add()
    document = warehouse.there(order_id)
    steps, document.steps = document.steps, []
    warehouse.poll()
    warehouse.go(erp=False)
    assert warehouse.state(order_id) == "parked"
    assert warehouse.error(order_id) == "the order is created, and its job shows no steps"
    document.steps = steps
    warehouse.go_on(1)
    assert warehouse.order(order_id)["awaits"] == "approved"


def test_trap_07_a_submitted_order_without_steps_waits_for_its_creation(warehouse):
    order_id = warehouse.add(state="submitted")
    document = warehouse.there(order_id)
    steps, document.steps = document.steps, []
    warehouse.poll()
    warehouse.go(erp=False)
    assert warehouse.state(order_id) == "waiting"
    document.steps = steps
    warehouse.remote.edit(order_id, state="created")
    warehouse.poll()
    warehouse.worker.sweep.run()
    warehouse.go(erp=False)
    assert warehouse.order(order_id)["awaits"] == "approved"


def test_trap_10_two_messages_of_one_order_pick_its_boxes_once(warehouse):
    order_id = warehouse.stand_before("items_pickEmptyBoxes")
    warehouse.tell(order_id, "picked", **warehouse.data(order_id, "items_pickEmptyBoxes"))
    message = warehouse.worker.queue.pop()
    [ending] = warehouse.worker.run(message)
    assert ending.kind == "done"
    assert warehouse.worker.run(message) == []
    assert warehouse.effects(order_id)["valetOrder_add"] == 1


def test_trap_11_our_own_writes_come_back_and_change_nothing(warehouse):
    order_id = warehouse.take_in()
    for step in BOXES:
        warehouse.happens(order_id, step)
        warehouse.poll()
        warehouse.go_on(1)
    told = queries.timeline(warehouse.ledger, warehouse.order(order_id)["id"])
    signals = [row["what"] for row in told if row["kind"] == "signal"]
    assert [name for name in signals if name != "numbered"] == list(SIGNALS.values())
    assert warehouse.state(order_id) == "done"
    assert len(warehouse.attempts(order_id)) == 7
    assert warehouse.odd_events() == []
    exactly_once(warehouse, order_id)


def test_trap_12_a_command_that_did_a_part_is_given_again_for_the_rest(warehouse_with):
    """One of two boxes is still on another order when the command comes, though it was free when we looked."""
    driver = warehouse_with({"items_partial": True})
    order_id = driver.stand_before("items_pickEmptyBoxes")
    first, second = driver.sids(order_id)
    driver.remote.when("GET", lambda: setattr(driver.item(first), "state", "in_repair"), path="/admin/items")
    driver.happens(order_id, "items_pickEmptyBoxes")
    assert driver.attempts(order_id)[-1] == ("storeganise.items_pickEmptyBoxes", "retry")
    assert driver.error(order_id) == f"picked, and does not read so: {first}"
    assert [driver.item(sid).order for sid in (first, second)] == [None, order_id]
    assert driver.effects(order_id)["complete_step"] == 1
    driver.item(first).state = "unassigned"
    driver.go_on(1)
    assert driver.order(order_id)["awaits"] == "delivered"
    assert driver.effects(order_id)["item:valetOrder_add"] == 2


def test_trap_13_one_call_for_each_shelf(warehouse):
    order_id = warehouse.stand_before("items_store", boxes=4)
    shelves = dict(zip(warehouse.sids(order_id), ("S1", "S2", "S1", "S3"), strict=True))
    warehouse.tell(order_id, "stored", items=list(shelves), locations=shelves)
    warehouse.go(erp=False)
    assert warehouse.state(order_id) == "done"
    assert warehouse.effects(order_id)["valetOrder_store"] == 3
    assert dict(zip(warehouse.sids(order_id), warehouse.items(order_id, "location"), strict=True)) == shelves


def test_trap_13_an_item_without_a_shelf_is_not_stored_anywhere(warehouse):
    order_id = warehouse.stand_before("items_store")
    first, second = warehouse.sids(order_id)
    warehouse.tell(order_id, "stored", items=[first, second], locations={first: "S1"})
    warehouse.go(erp=False)
    assert warehouse.state(order_id) == "parked"
    assert warehouse.error(order_id).startswith(f"stored, but {second}: has no location: ")
    assert not warehouse.effects(order_id)["valetOrder_store"]
    warehouse.tell(order_id, "stored", locations={second: "S2"})
    warehouse.go_on(1)
    assert warehouse.state(order_id) == "done"
    assert warehouse.items(order_id, "location") == ["S1", "S2"]


def test_trap_13_an_unknown_shelf_is_refused_in_their_words(warehouse):
    order_id = warehouse.stand_before("items_store", boxes=1)
    [sid] = warehouse.sids(order_id)
    warehouse.tell(order_id, "stored", locations={sid: "X9"})
    warehouse.go(erp=False)
    assert "No such location: X9." in warehouse.error(order_id)
    warehouse.tell(order_id, "stored", locations={sid: "S9"})
    warehouse.go_on(1)
    assert warehouse.state(order_id) == "done"
    assert warehouse.items(order_id, "location") == ["S9"]


def test_trap_13_what_staff_put_elsewhere_is_not_moved(warehouse):
    order_id = warehouse.stand_before("items_store", boxes=1)
    [sid] = warehouse.sids(order_id)
    warehouse.account.client.command_items("valetOrder_store", [sid], order_id, "S2")
    warehouse.tell(order_id, "stored", locations={sid: "S1"})
    warehouse.go(erp=False)
    assert warehouse.error(order_id) == f"stored, but {sid}: is stored at S2 in Storeganise, and the warehouse says S1"
    warehouse.tell(order_id, "stored", locations={sid: "S2"})
    warehouse.go_on(1)
    assert warehouse.state(order_id) == "done"


def test_trap_14_what_is_true_is_read_whatever_the_events_say(warehouse):
    """`completed` came first of all, and late: the order stands at its start."""
    order_id = warehouse.add()
    plan = (Planned("storeganise.fetch"), Planned("erp.order"))
    for number, kind in enumerate(("completed", "cancelled", "started")):
        key, kind = f"hook:{number}", f"job.valetOrder.{kind}"
        intake.take_in(warehouse.ledger, "storeganise", [Arrival("default", order_id, key, kind, key, plan, news=True)])
        warehouse.read_news()
    warehouse.go(erp=False)
    warehouse.read_news()
    assert (warehouse.state(order_id), warehouse.order(order_id)["awaits"]) == ("waiting", "approved")


def test_trap_15_a_box_on_another_order_stops_the_pick(warehouse):
    order_id = warehouse.stand_before("items_pickEmptyBoxes", box_elsewhere=True)
    first, _ = warehouse.sids(order_id)
    warehouse.happens(order_id, "items_pickEmptyBoxes")
    assert warehouse.state(order_id) == "parked"
    assert warehouse.error(order_id) == f"picked, but {first}: is on another order, {ELSEWHERE}"
    assert not warehouse.effects(order_id)["valetOrder_add"]
    warehouse.remote.edit(order_id, items={"1": {"valetOrderId": None, "ownerId": None}})
    warehouse.poll()
    warehouse.worker.sweep.run()
    warehouse.go(erp=False)
    assert warehouse.order(order_id)["awaits"] == "delivered"


def test_trap_15_a_wrong_box_is_taken_back_and_the_right_one_picked(warehouse):
    order_id = warehouse.stand_before("items_pickEmptyBoxes", box_elsewhere=True)
    other = warehouse.add()
    wrong, right = warehouse.sids(order_id)
    spare = warehouse.sids(other)[0]
    warehouse.happens(order_id, "items_pickEmptyBoxes")
    assert warehouse.state(order_id) == "parked"
    warehouse.tell(order_id, "picked", items=[spare], wrong=[wrong])
    warehouse.go_on(1)
    assert warehouse.order(order_id)["awaits"] == "delivered"
    assert [warehouse.item(sid).order for sid in (wrong, right, spare)] == [ELSEWHERE, order_id, order_id]


@pytest.mark.parametrize("surplus", ["another type", "one too many", "unknown"])
def test_trap_15_a_box_that_nobody_asked_for_stops_the_pick(warehouse, surplus):
    order_id = warehouse.stand_before("items_pickEmptyBoxes", boxes=2)
    sids = warehouse.sids(order_id)
    kind = {"another type": WARDROBE_BOX, "one too many": STANDARD_BOX, "unknown": STANDARD_BOX}[surplus]
    extra = warehouse.sids(warehouse.add(boxes=[{"itemTypeId": kind, "quantity": 1}]))[0]
    told = {"another type": [sids[0], extra], "one too many": [*sids, extra], "unknown": [sids[0], "V-0"]}[surplus]
    warehouse.tell(order_id, "picked", items=told)
    warehouse.go(erp=False)
    words = {
        "another type": f"1 of item type {WARDROBE_BOX}, and the order asks for 0",
        "one too many": f"3 of item type {STANDARD_BOX}, and the order asks for 2",
        "unknown": "V-0: there is no such item",
    }[surplus]
    assert warehouse.state(order_id) == "parked"
    assert words in warehouse.error(order_id)
    assert not warehouse.effects(order_id)["valetOrder_add"]


CHARGE = {"title": "Late fee", "amount": Decimal("12.5"), "quantity": 2}


def command(driver: Warehouse, order_id: str, name: str, data: dict[str, Any]) -> tuple[str, str]:
    """Ask, then do, as the command line has it; what was said."""
    row = driver.order(order_id)
    doing = operators.Doing(driver.fleet, row, name, driver.fleet.systems["storeganise"].commands[name], data, "ann")
    return doing.ask(), doing.run()


def titles(driver: Warehouse, order_id: str) -> list[str]:
    return [charge["title"] for charge in driver.remote.order(order_id)["charges"]]


def test_trap_16_a_charge_is_added_once_however_often_it_is_ordered(warehouse):
    order_id = warehouse.take_in(charges=[{"title": "Tape", "amount": 2.35, "quantity": 1}])
    asked, done = command(warehouse, order_id, "charge", CHARGE)
    assert asked == "adds a charge to the 1 there are: 2 x 12.5, Late fee"
    assert done.startswith("charged 2 x 12.5: Late fee [of-")
    asked, done = command(warehouse, order_id, "charge", CHARGE | {"amount": Decimal("12.50")})
    assert asked.startswith("this charge is there already")
    assert done.startswith("the charge is there already")
    assert warehouse.effects(order_id)["charge"] == 1
    tape, fee = warehouse.remote.order(order_id)["charges"]
    assert tape == {"title": "Tape", "amount": 2.35, "quantity": 1}
    assert (fee["title"][:10], fee["amount"], fee["quantity"]) == ("Late fee [", 12.5, 2)
    command(warehouse, order_id, "charge", CHARGE | {"key": "second"})
    assert warehouse.effects(order_id)["charge"] == 2


@pytest.mark.parametrize("fault", ["lost_answer", "500_after"])
def test_trap_16_a_charge_whose_answer_was_lost_is_not_added_twice(warehouse, fault):
    order_id = warehouse.take_in()
    warehouse.remote.faults({"kinds": (fault,), "method": "PUT", "times": 1})
    with pytest.raises(Unclear):
        command(warehouse, order_id, "charge", CHARGE)
    assert command(warehouse, order_id, "charge", CHARGE)[1].startswith("the charge is there already")
    assert warehouse.effects(order_id)["charge"] == 1


def test_trap_16_a_server_that_appends_charges_is_found_out(warehouse_with):
    driver = warehouse_with({"charges_append": True})
    order_id = driver.take_in(charges=[{"title": "Tape", "amount": 2.5, "quantity": 1}])
    with pytest.raises(Refused, match="other charges changed with it: put them right at http") as caught:
        command(driver, order_id, "charge", CHARGE)
    assert order_id in caught.value.reason
    assert command(driver, order_id, "charge", CHARGE)[1].startswith("the charge is there already")


@pytest.mark.parametrize(("name", "data"), [("charge", CHARGE | {"key": "second"}), ("edit", {"date": "2027-12-24"})])
def test_trap_16_one_command_at_a_time_writes_to_an_order(warehouse, name, data):
    """The other one comes between the read and the write of the first, whose list of charges knows nothing of it."""
    order_id, other = warehouse.take_in(), warehouse.take_in()
    run = warehouse.fleet.systems["storeganise"].commands[name].run
    refused: list[str] = []

    def meanwhile() -> None:
        with pytest.raises(TryLater) as caught:
            run(warehouse.job(order_id), warehouse.account, data)
        refused.append(caught.value.reason)
        run(warehouse.job(other), warehouse.account, data)

    warehouse.remote.when("GET", meanwhile, path=f"/valet-orders/{order_id}")
    command_runs(warehouse, order_id, "charge", CHARGE)
    [reason] = refused
    assert reason.startswith("another charge or edit of this order is under way")
    assert warehouse.effects(order_id)["put_order"] == 1
    command_runs(warehouse, order_id, name, data)
    assert warehouse.effects(order_id)["put_order"] == 2
    assert len(titles(warehouse, order_id)) == (2 if name == "charge" else 1)


def test_trap_16_a_command_that_died_holds_nobody_up_for_long(warehouse_on_both):
    warehouse = warehouse_on_both
    order_id = warehouse.take_in()
    with pytest.raises(TryLater, match="under way"), a_dead_command(warehouse, order_id):
        command_runs(warehouse, order_id, "charge", CHARGE)
    warehouse.ticks_are_due()
    command_runs(warehouse, order_id, "charge", CHARGE)
    assert warehouse.effects(order_id)["charge"] == 1


def test_trap_16_a_command_that_was_held_up_for_too_long_writes_nothing(warehouse):
    """Another one had the order meanwhile."""
    order_id = warehouse.take_in()

    def meanwhile() -> None:
        warehouse.ticks_are_due()
        command_runs(warehouse, order_id, "charge", CHARGE | {"key": "second"})

    warehouse.remote.when("GET", meanwhile, path=f"/valet-orders/{order_id}")
    with pytest.raises(TryLater, match="nothing was written"):
        command_runs(warehouse, order_id, "charge", CHARGE)
    assert warehouse.effects(order_id)["charge"] == 1


def test_trap_16_a_command_that_fails_holds_nobody_up(warehouse):
    order_id = warehouse.take_in()
    warehouse.remote.faults({"kinds": ("500_before",), "method": "PUT", "times": 1})
    with pytest.raises(Unclear):
        command_runs(warehouse, order_id, "charge", CHARGE)
    command_runs(warehouse, order_id, "charge", CHARGE)
    assert warehouse.effects(order_id)["charge"] == 1


def command_runs(driver: Warehouse, order_id: str, name: str, data: dict[str, Any]) -> str:
    commands = driver.fleet.systems["storeganise"].commands
    return str(commands[name].run(driver.job(order_id), driver.account, data))


@contextmanager
def a_dead_command(driver: Warehouse, order_id: str) -> Iterator[None]:
    """One that was killed between its read and its write."""
    with intents.alone(driver.ledger, f"storeganise.edit:{driver.order(order_id)['id']}", 60.0) as held:
        assert held is not None
        yield


@pytest.mark.parametrize(("name", "data"), [("charge", CHARGE), ("edit", {"date": "2026-12-24"})])
@pytest.mark.parametrize("end", ["completed", "cancelled"])
def test_trap_16_nothing_is_edited_after_the_end(warehouse, name, data, end):
    order_id = warehouse.take_in()
    if end == "completed":
        warehouse.finish(order_id)
    else:
        warehouse.remote.edit(order_id, state="cancelled")
    before = warehouse.effects(order_id)
    with pytest.raises(Refused, match=f"the order is {end}: it cannot be edited any more"):
        command(warehouse, order_id, name, data)
    assert warehouse.effects(order_id) == before


def test_trap_17_without_events_the_poll_finds_every_order(warehouse_with):
    driver = warehouse_with({"addon_state": "paused", "page_max": 30})
    ids = {driver.add() for _ in range(45)}
    driver.poll()
    late = driver.add()
    driver.poll()
    known = {row["external_id"] for row in queries.listing(driver.ledger, queries.Filter())}
    assert known == ids | {late}


def test_trap_18_our_reference_goes_into_no_field_of_theirs(warehouse):
    order_id = warehouse.take_in(customFields={"notes": "Third floor, no lift"})
    warehouse.finish(order_id)
    remote = warehouse.remote.order(order_id)
    assert remote["customFields"] == {"notes": "Third floor, no lift"}
    assert not warehouse.effects(order_id)["put_order"]
    assert warehouse.order(order_id)["reference"] == remote["sid"]


def test_trap_18_a_custom_field_must_be_defined_first(warehouse):
    order_id = warehouse.take_in()
    with pytest.raises(Refused, match="Not defined as custom fields: unheardOf"):
        command(warehouse, order_id, "edit", {"customFields": {"unheardOf": "SO-1"}})
    assert command(warehouse, order_id, "edit", {"customFields": {"erpNumber": "SO-1"}}) == (
        "sets customFields.erpNumber to 'SO-1', which is None",
        "set customFields.erpNumber",
    )


# === Parts ==================================================================================================


def test_two_boxes_now_and_one_later(warehouse):
    order_id = warehouse.stand_before("items_deliver", boxes=3)
    first, second, third = warehouse.sids(order_id)
    warehouse.tell(order_id, "delivered", items=[first, second])
    warehouse.go(erp=False)
    assert (warehouse.state(order_id), warehouse.order(order_id)["awaits"]) == ("waiting", "delivered")
    assert warehouse.attempts(order_id)[-1] == ("storeganise.items_deliver", "partly")
    assert warehouse.items(order_id, "state") == ["with_customer", "with_customer", "transit_to_customer"]
    warehouse.tell(order_id, "delivered", items=[third])
    warehouse.go(erp=False)
    assert warehouse.order(order_id)["awaits"] == "collected"
    assert warehouse.effects(order_id)["item:valetOrder_deliver"] == 3


@pytest.mark.parametrize("step", list(COMMANDS))
def test_each_item_by_itself(warehouse, step):
    order_id = warehouse.stand_before(step, boxes=3)
    for place, sid in enumerate(warehouse.sids(order_id), 1):
        warehouse.tell(order_id, SIGNALS[step], items=[sid], locations={sid: f"S{place}"})
        warehouse.go(erp=False)
    for later in BOXES[BOXES.index(step) + 1 :]:
        warehouse.happens(order_id, later)
    assert warehouse.state(order_id) == "done"
    exactly_once(warehouse, order_id)


def test_the_rest_that_staff_deliver_in_the_admin_ui_is_noticed(warehouse):
    order_id = warehouse.stand_before("items_deliver")
    first, second = warehouse.sids(order_id)
    warehouse.tell(order_id, "delivered", items=[first])
    warehouse.go(erp=False)
    warehouse.account.client.command_items("valetOrder_deliver", [second], order_id)
    warehouse.poll()
    warehouse.worker.sweep.run()
    warehouse.go(erp=False)
    assert warehouse.order(order_id)["awaits"] == "collected"


@pytest.mark.parametrize("last", [{"kept": True}, {"last": True}])
def test_the_customer_keeps_a_box(warehouse, last):
    order_id = warehouse.stand_before("items_collect", boxes=3)
    first, second, kept = warehouse.sids(order_id)
    warehouse.tell(order_id, "collected", items=[first])
    warehouse.go(erp=False)
    assert warehouse.order(order_id)["awaits"] == "collected"
    word = {"last": True} if "last" in last else {"kept": [kept]}
    warehouse.tell(order_id, "collected", items=[second], **word)
    warehouse.go(erp=False)
    assert warehouse.order(order_id)["awaits"] == "stored"
    warehouse.tell(order_id, "stored", locations={first: "S1", second: "S2"})
    warehouse.go(erp=False)
    assert warehouse.state(order_id) == "done"
    assert warehouse.items(order_id, "state") == ["stored", "stored", "with_customer"]


def test_the_last_word_may_come_by_itself(warehouse):
    order_id = warehouse.stand_before("items_collect")
    for data in ({"items": warehouse.sids(order_id)[:1]}, {"last": True}):
        warehouse.tell(order_id, "collected", **data)
        warehouse.go(erp=False)
    assert warehouse.order(order_id)["awaits"] == "stored"
    assert warehouse.items(order_id, "state") == ["transit_to_warehouse", "with_customer"]


@pytest.mark.parametrize("step", ["items_deliver", "items_collect"])
def test_a_signal_without_items_means_all_of_them(warehouse, step):
    order_id = warehouse.stand_before(step, boxes=3)
    warehouse.tell(order_id, SIGNALS[step])
    warehouse.go(erp=False)
    assert warehouse.effects(order_id)[f"step:{step}:completed"] == 1
    assert warehouse.effects(order_id)[f"item:{COMMANDS[step]}"] == 3


@pytest.mark.parametrize("step", list(COMMANDS))
def test_a_signal_with_an_empty_list_means_none_of_them(warehouse, step):
    order_id = warehouse.stand_before(step)
    before = warehouse.effects(order_id)
    warehouse.tell(order_id, SIGNALS[step], items=[])
    warehouse.go(erp=False)
    assert (warehouse.state(order_id), warehouse.order(order_id)["awaits"]) == ("waiting", SIGNALS[step])
    assert warehouse.effects(order_id) == before


def test_a_signal_must_name_the_boxes_that_were_picked(warehouse):
    order_id = warehouse.stand_before("items_pickEmptyBoxes")
    warehouse.tell(order_id, "picked")
    warehouse.go(erp=False)
    assert warehouse.error(order_id) == 'picked, but the signal names no boxes: signal it with {"items": ["<box>"]}'
    warehouse.happens(order_id, "items_pickEmptyBoxes")
    warehouse.go_on(1)
    assert warehouse.order(order_id)["awaits"] == "delivered"


def test_a_box_that_is_not_on_the_order_is_not_delivered(warehouse):
    order_id = warehouse.stand_before("items_deliver", boxes=1)
    stranger = warehouse.sids(warehouse.add())[0]
    warehouse.tell(order_id, "delivered", items=[*warehouse.sids(order_id), stranger])
    warehouse.go(erp=False)
    assert warehouse.error(order_id) == f"delivered, but {stranger}: is not on this order"
    assert not warehouse.effects(order_id)["valetOrder_deliver"]


def test_what_belongs_to_another_customer_is_not_collected(warehouse):
    order_id = warehouse.stand_before("items_collect", boxes=1)
    stranger = warehouse.sids(warehouse.add(kind="bulky", items=[SOFA]))[0]
    warehouse.tell(order_id, "collected", items=[*warehouse.sids(order_id), stranger])
    warehouse.go(erp=False)
    assert warehouse.error(order_id) == f"collected, but {stranger}: belongs to another customer"
    assert not warehouse.effects(order_id)["valetOrder_collect"]


def test_signals_that_come_before_their_step(warehouse):
    order_id = warehouse.take_in()
    for step in reversed(BOXES):
        warehouse.tell(order_id, SIGNALS[step], **warehouse.data(order_id, step))
    warehouse.go(erp=False)
    assert warehouse.state(order_id) == "done"
    exactly_once(warehouse, order_id)


# === Staff and customers ====================================================================================


@pytest.mark.parametrize("step", BOXES)
def test_a_step_that_staff_complete_counts_as_done(warehouse, step):
    order_id = warehouse.stand_before(step)
    warehouse.remote.edit(order_id, complete_step=step)
    warehouse.poll()
    warehouse.go(erp=False)
    assert warehouse.attempts(order_id)[-1] == (f"storeganise.{step}", "skipped")
    for later in BOXES[BOXES.index(step) + 1 :]:
        warehouse.happens(order_id, later)
    assert warehouse.state(order_id) == "done"
    assert warehouse.remote.order(order_id)["state"] == "completed"


def test_staff_complete_everything_between_two_polls(warehouse):
    order_id = warehouse.take_in()
    for step in BOXES:
        warehouse.remote.edit(order_id, complete_step=step)
    warehouse.poll()
    warehouse.go(erp=False)
    assert warehouse.state(order_id) == "done"
    assert [outcome for _, outcome in warehouse.attempts(order_id)] == ["done", "done", *["skipped"] * 5]
    assert warehouse.odd_events() == []


@pytest.mark.parametrize("items", ["transit_to_customer", "with_customer"])
def test_a_step_that_staff_completed_and_that_is_open_again_waits_for_the_warehouse(warehouse, items):
    """That staff completed it is no word of where the boxes are."""
    order_id = warehouse.stand_before("items_deliver")
    warehouse.remote.edit(order_id, complete_step="items_deliver")
    warehouse.poll()
    _, _, deliver, collect, _ = warehouse.there(order_id).steps
    deliver.state, collect.state = "ready", "pending"
    for sid in warehouse.sids(order_id):
        warehouse.item(sid).state = items
    warehouse.go(erp=False)
    assert (warehouse.state(order_id), warehouse.order(order_id)["awaits"]) == ("waiting", "delivered")
    assert warehouse.effects(order_id)["complete_step"] == 2
    warehouse.happens(order_id, "items_deliver")
    assert warehouse.order(order_id)["awaits"] == "collected"


def test_steps_completed_before_the_order_is_read_are_passed_over(warehouse):
    order_id = warehouse.add()
    for step in BOXES[:2]:
        warehouse.remote.edit(order_id, complete_step=step)
    warehouse.poll()
    warehouse.go(erp=False)
    assert warehouse.order(order_id)["awaits"] == "delivered"
    assert warehouse.attempts(order_id)[2:] == [(f"storeganise.{step}", "skipped") for step in BOXES[:2]]


@pytest.mark.parametrize("step", BOXES)
def test_staff_are_faster_between_our_read_and_our_write(warehouse, step):
    order_id = warehouse.stand_before(step)
    backend = warehouse.backend
    backend.interpositions.add(order=order_id, after="GET", patch={"complete_step": step})
    warehouse.happens(order_id, step)
    warehouse.go_on(1)
    for later in BOXES[BOXES.index(step) + 1 :]:
        warehouse.happens(order_id, later)
    assert warehouse.state(order_id) == "done"
    assert warehouse.effects(order_id)[f"step:{step}:completed"] == 1
    assert warehouse.effects(order_id)["invoice"] == 1


@pytest.mark.parametrize("step", [None, *BOXES])
def test_cancelled_there_is_cancelled_in_the_erp(warehouse, step):
    order_id = warehouse.stand_before(step) if step else warehouse.take_in()
    warehouse.remote.edit(order_id, state="cancelled")
    warehouse.poll()
    warehouse.go(erp=False)
    assert warehouse.state(order_id) == "cancelled"
    assert [row["stage"] for row in warehouse.in_erp(order_id)] == ["cancelled"]
    assert warehouse.odd_events() == []


@pytest.mark.parametrize("step", BOXES)
def test_cancelled_between_our_read_and_our_write(warehouse, step):
    order_id = warehouse.stand_before(step)
    backend = warehouse.backend
    backend.interpositions.add(order=order_id, after="GET", patch={"state": "cancelled"})
    before = warehouse.effects(order_id)
    warehouse.happens(order_id, step)
    assert warehouse.state(order_id) == "cancelled"
    assert [row["stage"] for row in warehouse.in_erp(order_id)] == ["cancelled"]
    assert warehouse.effects(order_id) == before


def test_cancelled_before_it_was_read_never_reaches_the_erp(warehouse):
    order_id = warehouse.add()
    warehouse.poll()
    warehouse.remote.edit(order_id, state="cancelled")
    warehouse.go(erp=False)
    assert warehouse.state(order_id) == "cancelled"
    assert not warehouse.in_erp(order_id)


def test_cancelled_there_when_it_was_never_ours_is_nothing(warehouse):
    order_id = warehouse.add()
    for step in BOXES:
        warehouse.remote.edit(order_id, complete_step=step)
    hear(warehouse, f"job:{warehouse.remote.order(order_id)['jobId']}", kind="job.valetOrder.completed")
    warehouse.go(erp=False)
    assert warehouse.state(order_id) == "ignored"
    warehouse.remote.edit(order_id, state="cancelled")
    warehouse.poll()
    assert (warehouse.state(order_id), warehouse.odd_events()) == ("ignored", [])


def test_cancelled_there_though_it_is_done_here_is_shown(warehouse):
    order_id = warehouse.take_in()
    warehouse.finish(order_id)
    warehouse.remote.edit(order_id, state="cancelled")
    warehouse.poll()
    number = warehouse.order(order_id)["id"]
    assert warehouse.odd_events() == [f"cancelled in Storeganise, though order {number} is done here"]
    assert warehouse.state(order_id) == "done"


def test_a_step_that_is_added_after_the_end_is_shown(warehouse):
    order_id = warehouse.take_in()
    warehouse.finish(order_id)
    order = warehouse.there(order_id)
    order.steps[-1].state = "ready"
    warehouse.remote.edit(order_id, customFields={"notes": "bell"})
    warehouse.poll()
    [told] = warehouse.odd_events()
    number = warehouse.order(order_id)["id"]
    assert told == (
        f"stands at items_store in Storeganise, though order {number} is done here: "
        f"`orderfleet replay {number} --from storeganise.fetch` takes it up"
    )
    warehouse.replay(order_id, position=0)
    warehouse.go(erp=False)
    assert warehouse.order(order_id)["step"] == "storeganise.items_store"


def test_what_changes_there_after_the_erp_was_told_is_shown_once(warehouse):
    order_id = warehouse.take_in(boxes=2, date="2026-12-01", timeslot="1300-1500")
    number = warehouse.order(order_id)["id"]
    asked, done = command(warehouse, order_id, "edit", {"date": "2027-12-24", "customFields": {"notes": "bell"}})
    assert asked.endswith("; the ERP keeps the old date")
    assert done == "set date, customFields.notes; the ERP keeps the old date: change it there"
    warehouse.there(order_id).boxes[0]["quantity"] = 3
    warehouse.remote.edit(order_id, timeslot="0800-1000")
    for _ in range(3):
        warehouse.poll()
        warehouse.go_on(1)
    assert warehouse.odd_events() == [
        f"changed in Storeganise, and the ERP keeps what it was told of order {number}: "
        f"box:{STANDARD_BOX} is 3, and was 2; the day is 2027-12-24, and was 2026-12-01; "
        "time slot 0800-1000, and was time slot 1300-1500: put it right in the ERP"
    ]
    warehouse.remote.edit(order_id, customFields={"notes": "knock"})
    warehouse.poll()
    assert len(warehouse.odd_events()) == 1
    warehouse.remote.edit(order_id, timeslot="1300-1500")
    warehouse.poll()
    assert "the day is 2027-12-24" in warehouse.odd_events()[1]
    assert "time slot" not in warehouse.odd_events()[1]


def test_what_is_changed_back_there_is_shown_too(warehouse):
    """Somebody may have put it right in the ERP meanwhile."""
    order_id = warehouse.take_in(timeslot="1300-1500")
    number = warehouse.order(order_id)["id"]
    for timeslot in ("0800-1000", "1300-1500", "0800-1000"):
        for _ in range(2):
            warehouse.remote.edit(order_id, timeslot=timeslot)
            warehouse.poll()
    first, back, again = warehouse.odd_events()
    assert first == again
    assert back == f"changed back in Storeganise: it reads as the ERP was told of order {number}"


def test_what_changes_there_before_the_erp_has_taken_it_is_to_be_read_again(warehouse):
    order_id = warehouse.take_in(boxes=[{"itemTypeId": UNKNOWN_PRODUCT, "quantity": 1}])
    warehouse.go()
    number = warehouse.order(order_id)["id"]
    warehouse.there(order_id).boxes[0]["itemTypeId"] = STANDARD_BOX
    warehouse.remote.edit(order_id, customFields={"notes": "of a type that there is"})
    for _ in range(2):
        warehouse.poll()
    assert warehouse.state(order_id) == "parked"
    assert warehouse.odd_events() == [
        f"changed in Storeganise since order {number} was read: "
        f"box:{UNKNOWN_PRODUCT} is 0, and was 1; box:{STANDARD_BOX} is 1, and was 0: "
        f"`orderfleet replay {number} --from storeganise.fetch` reads it again before the ERP gets it"
    ]


@pytest.mark.parametrize("change", ["more", "fewer"])
def test_what_else_the_customer_gives_is_shown(warehouse, change):
    order_id = warehouse.take_in(kind="bulky", items=[SOFA, BICYCLE])
    first = warehouse.sids(order_id)[0]
    extra = warehouse.sids(warehouse.add(kind="bulky", items=[SOFA]))[0]
    sid, order = (extra, order_id) if change == "more" else (first, None)
    warehouse.remote.edit(order_id, items={sid: {"valetOrderId": order}})
    warehouse.poll()
    [told] = warehouse.odd_events()
    assert f"item:{sid} is {1 if change == 'more' else 0}, and was {0 if change == 'more' else 1}: put" in told


def test_picked_boxes_are_no_change_of_the_order(warehouse):
    order_id = warehouse.stand_before("items_collect")
    warehouse.poll()
    warehouse.there(order_id).boxes = []
    warehouse.remote.edit(order_id, timeslot="0800-1000")
    warehouse.poll()
    [told] = warehouse.odd_events()
    assert f"box:{STANDARD_BOX} is 0, and was 2; time slot 0800-1000" in told
    assert "item:" not in told


def test_a_step_that_is_put_in_meanwhile_is_for_staff_and_the_plan_follows(warehouse):
    order_id = warehouse.stand_before("items_deliver")
    order = warehouse.there(order_id)
    added = type(order.steps[0])("65a0000000000000000000dd", "products_pick")
    order.steps.insert(3, added)
    warehouse.happens(order_id, "items_deliver")
    assert warehouse.state(order_id) == "parked"
    assert warehouse.plan(order_id)[-3:] == [
        "storeganise.other",
        "storeganise.items_collect",
        "storeganise.items_store",
    ]
    warehouse.remote.edit(order_id, complete_step="products_pick")
    warehouse.go_on(1)
    assert warehouse.order(order_id)["awaits"] == "collected"


@pytest.mark.parametrize("step", ["items_deliver", "items_store"])
def test_a_step_that_is_put_in_meanwhile_is_planned_also_when_staff_complete_ours(warehouse, step):
    order_id = warehouse.stand_before(step)
    order = warehouse.there(order_id)
    added = type(order.steps[0])("65a0000000000000000000dd", "products_pick")
    order.steps.insert(BOXES.index(step) + 1, added)
    warehouse.remote.edit(order_id, complete_step=step)
    warehouse.poll()
    warehouse.go(erp=False)
    assert warehouse.state(order_id) == "parked"
    assert "the step products_pick is done by staff" in warehouse.error(order_id)
    warehouse.remote.edit(order_id, complete_step="products_pick")
    warehouse.go_on(1)
    for later in BOXES[BOXES.index(step) + 1 :]:
        warehouse.happens(order_id, later)
    assert warehouse.state(order_id) == "done"
    assert warehouse.remote.order(order_id)["state"] == "completed"


def test_a_step_that_is_open_again_is_not_left_open_when_staff_complete_the_last(warehouse):
    order_id = warehouse.stand_before("items_store")
    *_, collect, store = warehouse.there(order_id).steps
    collect.state, store.state = "ready", "completed"
    warehouse.remote.edit(order_id, timeslot="0800-1000")
    warehouse.poll()
    warehouse.go(erp=False)
    assert warehouse.attempts(order_id)[-2:] == [
        ("storeganise.items_store", "skipped"),
        ("storeganise.items_collect", "done"),
    ]
    assert warehouse.remote.order(order_id)["state"] == "completed"


def test_a_step_that_is_put_in_before_ours_stops_it(warehouse):
    order_id = warehouse.stand_before("items_deliver")
    order = warehouse.there(order_id)
    order.steps.insert(2, type(order.steps[0])("65a0000000000000000000dd", "products_pick", "ready"))
    warehouse.happens(order_id, "items_deliver")
    told = "the order stands at products_pick, which comes before items_deliver: complete it there"
    assert warehouse.error(order_id) == told
    order.steps[2].state = "completed"
    warehouse.go_on(1)
    assert warehouse.order(order_id)["awaits"] == "collected"


def test_a_step_that_is_gone(warehouse):
    order_id = warehouse.stand_before("items_deliver")
    order = warehouse.there(order_id)
    del order.steps[2]
    order.steps[2].state = "ready"
    warehouse.happens(order_id, "items_deliver")
    assert "has no step items_deliver any more: replay it from storeganise.fetch" in warehouse.error(order_id)
    warehouse.replay(order_id, position=0)
    warehouse.go(erp=False)
    assert warehouse.order(order_id)["awaits"] == "collected"
    assert len(warehouse.in_erp(order_id)) == 1


def test_completed_before_we_ever_saw_it(warehouse):
    order_id = warehouse.add()
    for step in BOXES:
        warehouse.remote.edit(order_id, complete_step=step)
    warehouse.poll()
    assert queries.listing(warehouse.ledger, queries.Filter()) == []
    plan = (Planned("storeganise.fetch"), Planned("erp.order"))
    intake.take_in(warehouse.ledger, "storeganise", [Arrival("default", order_id, "hook:1", "x", "{}", plan)])
    warehouse.go(erp=False)
    assert (warehouse.state(order_id), warehouse.error(order_id)) == ("ignored", "is completed already, and not by us")
    assert not warehouse.in_erp(order_id)
    warehouse.poll()
    assert warehouse.odd_events() == []


def test_what_is_being_read_is_reviewed_later(warehouse):
    """Else a step that staff complete between the read and its record would be waited for."""
    order_id = warehouse.add()
    warehouse.poll()
    row = warehouse.order(order_id)
    assert records.claim(warehouse.ledger, row["id"], 0, "storeganise.fetch", "w1") is not None
    warehouse.remote.edit(order_id, timeslot="0800-1000")
    warehouse.poll()
    [known] = queries.known_orders(warehouse.ledger, "storeganise", "default", [order_id])
    review = warehouse.fleet.systems["storeganise"].review
    assert review is not None
    with pytest.raises(TryLater, match="a worker is at it"):
        review(Visit(warehouse.ledger, warehouse.account), known)


def test_news_that_comes_while_an_order_is_read_wakes_it_afterwards(warehouse):
    """It was submitted when we read it, and is created before that is written down."""
    order_id = warehouse.add(state="submitted")
    document = warehouse.there(order_id)
    steps, document.steps = document.steps, []
    warehouse.poll()

    def created() -> None:
        document.steps = steps
        warehouse.remote.edit(order_id, state="created")
        warehouse.poll()

    warehouse.remote.when("GET", created, path=f"/valet-orders/{order_id}")
    warehouse.go(erp=False)
    assert warehouse.state(order_id) == "waiting"
    news_is_due(warehouse)
    warehouse.worker.sweep.run()
    warehouse.go(erp=False)
    assert warehouse.order(order_id)["awaits"] == "approved"


def test_news_that_comes_while_a_step_runs_wakes_it_when_it_has_stopped(warehouse_on_both):
    """The wrong box is freed after we looked at it, and before the order is parked."""
    warehouse = warehouse_on_both
    order_id = warehouse.stand_before("items_pickEmptyBoxes", box_elsewhere=True)

    def freed() -> None:
        warehouse.remote.edit(order_id, items={"1": {"valetOrderId": None, "ownerId": None}})
        warehouse.poll()

    warehouse.remote.when("GET", freed, path="/admin/items")
    warehouse.happens(order_id, "items_pickEmptyBoxes")
    assert warehouse.state(order_id) == "parked"
    news_is_due(warehouse)
    warehouse.worker.sweep.run()
    warehouse.go(erp=False)
    assert warehouse.order(order_id)["awaits"] == "delivered"


def news_is_due(driver: Warehouse) -> None:
    """News that was put off is read now; nothing else becomes due."""
    driver.news_gets_old()
    driver.read_news()


@pytest.mark.parametrize("kind", ["row", *(f"job.valetOrder.{kind}" for kind in ("submitted", "created")), "job"])
def test_completed_after_it_came_in_and_before_it_was_read_is_shown(warehouse, kind):
    order_id = warehouse.add()
    if kind == "row":
        warehouse.poll()
    elif kind == "job":
        hear(warehouse, f"job:{warehouse.remote.order(order_id)['jobId']}")
        warehouse.go(erp=False, hold=["storeganise.fetch"])
    else:
        hear(warehouse, order_id, kind=kind, plan=PLAN)
    for step in BOXES:
        warehouse.remote.edit(order_id, complete_step=step)
    warehouse.go_on(1)
    number = warehouse.order(order_id)["id"]
    assert warehouse.state(order_id) == "ignored"
    assert warehouse.odd_events() == [
        f"order {number} was open when it came in, and completed in Storeganise before it was read: it is not in the "
        f"ERP. `orderfleet replay {number} --from storeganise.fetch` puts it there"
    ]
    warehouse.replay(order_id, position=0)
    warehouse.go(erp=False)
    assert warehouse.state(order_id) == "done"
    assert len(warehouse.in_erp(order_id)) == 1
    assert not warehouse.effects(order_id)["put_order"]


def test_an_order_that_was_none_of_ours_and_is_set_open_again_there_is_shown(warehouse):
    order_id = warehouse.add()
    for step in BOXES:
        warehouse.remote.edit(order_id, complete_step=step)
    hear(warehouse, order_id, kind="job.valetOrder.completed", plan=PLAN)
    warehouse.go(erp=False)
    assert (warehouse.state(order_id), warehouse.odd_events()) == ("ignored", [])
    warehouse.there(order_id).steps[-1].state = "ready"
    warehouse.remote.edit(order_id, timeslot="0800-1000")
    warehouse.poll()
    number = warehouse.order(order_id)["id"]
    assert warehouse.odd_events() == [
        f"stands at items_store in Storeganise, though order {number} is ignored here: "
        f"`orderfleet replay {number} --from storeganise.fetch` takes it up"
    ]


def test_a_cancelled_order_that_is_set_open_again_there_is_shown(warehouse):
    order_id = warehouse.take_in()
    warehouse.remote.edit(order_id, state="cancelled")
    warehouse.poll()
    warehouse.go(erp=False)
    warehouse.remote.edit(order_id, state="created")
    warehouse.poll()
    number = warehouse.order(order_id)["id"]
    assert warehouse.odd_events() == [
        f"stands at order_start in Storeganise, though order {number} is cancelled here, and stays so: see to it there"
    ]


# === Cancelled here =========================================================================================


def test_the_erp_cancels_and_a_person_cancels_there(warehouse):
    order_id = warehouse.take_in()
    warehouse.tell(order_id, "cancelled")
    warehouse.go(erp=False)
    page = f"{warehouse.remote.url}/admin/valet-orders/{order_id}"
    assert warehouse.state(order_id) == "parked"
    assert warehouse.error(order_id) == (
        f"cancelled here, but not in Storeganise, where it stands at order_start: cancel it at {page}, or "
        f"`orderfleet replay {warehouse.order(order_id)['id']} --acknowledge` leaves it as it is there"
    )
    assert warehouse.foresee(order_id)[1].startswith("would stop: where it stands at order_start")
    warehouse.go_on(1)
    assert warehouse.state(order_id) == "parked"
    warehouse.remote.edit(order_id, state="cancelled")
    assert warehouse.foresee(order_id) == (Effect.SKIP, "is cancelled in Storeganise already")
    warehouse.poll()
    warehouse.worker.sweep.run()
    warehouse.go(erp=False)
    assert warehouse.state(order_id) == "cancelled"
    assert warehouse.attempts(order_id)[-1] == ("storeganise.cancel", "skipped")
    assert not warehouse.effects(order_id)


def test_news_of_an_order_that_is_being_cancelled_wakes_nothing_else(warehouse):
    order_id = warehouse.stand_before("items_deliver")
    warehouse.tell(order_id, "cancelled")
    warehouse.go(erp=False)
    warehouse.remote.edit(order_id, complete_step="items_deliver")
    warehouse.poll()
    warehouse.worker.sweep.run()
    warehouse.go(erp=False)
    assert (warehouse.state(order_id), warehouse.order(order_id)["step"]) == ("parked", "storeganise.cancel")
    assert "where it stands at items_collect" in warehouse.error(order_id)


def test_an_operator_cancels_an_order_that_is_completed_there(warehouse):
    """Nobody can cancel it any more: it ends here, and a person sees that the two do not agree."""
    order_id = warehouse.stand_before("items_store")
    cancelled_here(warehouse, order_id)
    warehouse.remote.edit(order_id, complete_step="items_store")
    warehouse.go(erp=False)
    told = "is completed in Storeganise, it cannot be cancelled any more"
    row = warehouse.order(order_id)
    assert (row["state"], row["facts"]["flags"]) == ("cancelled", [told])
    assert warehouse.attempts(order_id)[-1] == ("storeganise.cancel", "skipped")
    assert [row["stage"] for row in warehouse.in_erp(order_id)] == ["cancelled"]
    assert warehouse.odd_events() == [f"{told}, though order {row['id']} is cancelled here"]
    warehouse.poll()
    assert len(warehouse.odd_events()) == 1


def test_completed_there_while_the_cancellation_waits_for_a_person(warehouse):
    order_id = warehouse.stand_before("items_store")
    cancelled_here(warehouse, order_id)
    warehouse.go(erp=False)
    assert warehouse.state(order_id) == "parked"
    warehouse.remote.edit(order_id, complete_step="items_store")
    assert warehouse.foresee(order_id) == (
        Effect.SKIP,
        "is completed in Storeganise, it cannot be cancelled any more",
    )
    warehouse.go_on(1)
    assert warehouse.state(order_id) == "cancelled"
    assert len(warehouse.odd_events()) == 1


def test_a_person_says_that_a_started_order_is_left_as_it_is_there(warehouse):
    """Once an order is started the UI cancels it no more (5.1)."""
    order_id = warehouse.stand_before("items_deliver")
    cancelled_here(warehouse, order_id)
    warehouse.go(erp=False)
    row = warehouse.order(order_id)
    assert f"`orderfleet replay {row['id']} --acknowledge` leaves it as it is there" in warehouse.error(order_id)
    warehouse.replay(order_id)
    warehouse.go(erp=False)
    assert warehouse.state(order_id) == "parked"
    row = warehouse.order(order_id)
    by_hand.replay(warehouse.ledger, row["id"], row["version"], None, "ann", acknowledged=True)
    warehouse.go(erp=False)
    row = warehouse.order(order_id)
    told = "is left as it is in Storeganise, as a person says"
    assert (row["state"], row["facts"]["flags"]) == ("cancelled", [told])
    assert warehouse.attempts(order_id)[-1] == ("storeganise.cancel", "skipped")
    warehouse.remote.edit(order_id, complete_step="items_deliver")
    warehouse.poll()
    assert warehouse.odd_events() == []


def cancelled_here(driver: Warehouse, order_id: str) -> None:
    operators.cancel(driver.ledger, driver.order(order_id), driver.fleet.systems["storeganise"], "ann")


# === The poll ===============================================================================================


def cursor(driver: Warehouse) -> dict[str, Any]:
    return dict(json.loads(queries.cursor(driver.ledger, "storeganise.poll:default") or "{}"))


def set_back(driver: Warehouse, name: str, **ago: float) -> None:
    """The poll's cursor as it was some time ago."""
    kept = cursor(driver)
    then = datetime.fromisoformat(kept[name]) - timedelta(**ago)
    signals.move_cursor(driver.ledger, "storeganise.poll:default", json.dumps(kept | {name: then.isoformat()}))


def stamp(driver: Warehouse, **ahead: float) -> str:
    at = queries.database_now(driver.ledger) + timedelta(**ahead)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def updated(driver: Warehouse, order_id: str, at: str) -> None:
    driver.there(order_id).updated = at


def known(driver: Warehouse) -> set[str]:
    return {row["external_id"] for row in queries.listing(driver.ledger, queries.Filter())}


@pytest.mark.parametrize(("minutes", "found"), [(-9, True), (-11, False)])
def test_the_poll_overlaps_by_ten_minutes(warehouse, minutes, found):
    warehouse.take_in()
    late = warehouse.add()
    updated(warehouse, late, stamp(warehouse, minutes=minutes))
    warehouse.poll()
    assert (late in known(warehouse)) is found


def test_once_a_day_it_goes_back_by_a_week(warehouse):
    warehouse.take_in()
    late = warehouse.add()
    updated(warehouse, late, stamp(warehouse, days=-6))
    warehouse.poll()
    assert late not in known(warehouse)
    set_back(warehouse, "round_at", hours=21)
    warehouse.poll()
    assert late in known(warehouse)


def test_once_a_day_every_unfinished_order_is_read_again(warehouse):
    """Staff complete a step, no event comes, and the list does not show it."""
    order_id = warehouse.stand_before("items_deliver")
    warehouse.poll()
    before = warehouse.remote.order(order_id)["updated"]
    warehouse.remote.edit(order_id, complete_step="items_deliver")
    updated(warehouse, order_id, before)
    warehouse.poll()
    assert warehouse.state(order_id) == "waiting"
    set_back(warehouse, "round_at", hours=21)
    warehouse.poll()
    warehouse.go(erp=False)
    assert warehouse.order(order_id)["awaits"] == "collected"


def test_the_daily_round_is_written_in_parts_and_goes_on_where_it_was_cut_off(warehouse):
    for _ in range(230):
        warehouse.add()
    warehouse.poll()
    assert list(rounds(warehouse).values()) == [1] * 230
    set_back(warehouse, "round_at", hours=21)
    with warehouse.ledger.statement() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER killed BEFORE INSERT ON events WHEN NEW.kind = 'round' AND "
            "(SELECT count(*) FROM events WHERE kind = 'round') >= 380 BEGIN SELECT RAISE(ABORT, 'killed'); END"
        )
    before = cursor(warehouse)
    with pytest.raises(DBAPIError, match="killed"):
        warehouse.poll()
    assert cursor(warehouse) == before
    assert Counter(rounds(warehouse).values()) == {2: 100, 1: 130}
    with warehouse.ledger.statement() as connection:
        connection.exec_driver_sql("DROP TRIGGER killed")
    warehouse.poll()
    assert list(rounds(warehouse).values()) == [2] * 230
    set_back(warehouse, "round_at", hours=21)
    warehouse.poll()
    assert list(rounds(warehouse).values()) == [3] * 230


def rounds(driver: Warehouse) -> Counter[str]:
    """How often each order was to be read again because its day had come."""
    with driver.ledger.reading() as connection:
        return Counter(connection.execute(select(events.c.external_id).where(events.c.kind == "round")).scalars())


def test_a_clock_that_is_fast_hides_no_order(warehouse):
    fast = warehouse.add()
    updated(warehouse, fast, stamp(warehouse, days=3))
    warehouse.poll()
    later = warehouse.add()
    warehouse.poll()
    assert known(warehouse) == {fast, later}


def test_the_first_poll_takes_in_all_that_is_open(warehouse):
    old, done, gone = warehouse.add(), warehouse.add(), warehouse.add(state="cancelled")
    for step in BOXES:
        warehouse.remote.edit(done, complete_step=step)
    for order_id in (old, done, gone):
        updated(warehouse, order_id, stamp(warehouse, days=-400))
    warehouse.poll()
    assert known(warehouse) == {old}


def test_a_clock_that_is_slow_hides_no_order_after_an_empty_poll(warehouse):
    warehouse.poll()
    assert "newest" not in cursor(warehouse)
    slow = warehouse.add()
    updated(warehouse, slow, stamp(warehouse, hours=-1))
    warehouse.poll()
    assert known(warehouse) == {slow}


def test_a_poll_that_fails_moves_nothing(warehouse):
    warehouse.take_in()
    before = cursor(warehouse)
    warehouse.remote.faults({"kinds": ("html_502",)})
    warehouse.ticks_are_due()
    assert warehouse.worker.ticks.poll("storeganise", "default") != "done"
    assert cursor(warehouse) == before


def test_rows_without_a_time_are_taken_in_too(warehouse):
    order_id = warehouse.add()
    updated(warehouse, order_id, "soon")
    warehouse.poll()
    assert known(warehouse) == {order_id}
    assert cursor(warehouse)["newest"] == cursor(warehouse)["round_at"]


# === What goes wrong ========================================================================================


@pytest.mark.parametrize("step", ["fetch", *BOXES])
def test_a_wrong_key_delays_orders_and_counts_nothing_against_them(warehouse, step):
    order_id = warehouse.add() if step == "fetch" else warehouse.stand_before(step)
    if step == "fetch":
        warehouse.poll()
    warehouse.backend.options.api_key = "changed"
    if step != "fetch":
        warehouse.tell(order_id, SIGNALS[step], **warehouse.data(order_id, step))
    warehouse.go(erp=False)
    assert warehouse.attempts(order_id)[-1] == (f"storeganise.{step}", "unavailable")
    assert warehouse.order(order_id)["failures"] == 0
    warehouse.backend.options.api_key = "sandbox-key"
    warehouse.go_on(2)
    assert warehouse.attempts(order_id)[-1][1] == "done"


def test_an_order_that_is_gone_is_parked_and_looked_at_again(warehouse):
    order_id = warehouse.stand_before("items_deliver")
    orders = warehouse.backend._tenant.orders
    gone = orders.pop(order_id)
    warehouse.tell(order_id, "delivered")
    warehouse.go(erp=False)
    assert warehouse.state(order_id) == "parked"
    assert "404 No such order." in warehouse.error(order_id)
    orders[order_id] = gone
    warehouse.go_on(1)
    assert warehouse.order(order_id)["awaits"] == "collected"


def test_an_order_without_boxes_and_items_is_parked(warehouse):
    order_id = warehouse.take_in(boxes=[], items=[])
    assert warehouse.error(order_id) == "the order asks for no boxes and has no items"
    assert not warehouse.in_erp(order_id)


def test_a_refused_completion_is_parked_with_their_words(warehouse):
    order_id = warehouse.stand_before("items_deliver")
    warehouse.there(order_id).state = "completed"  # though its steps say otherwise
    for sid in warehouse.sids(order_id):
        warehouse.item(sid).state = "with_customer"
    warehouse.happens(order_id, "items_deliver")
    assert warehouse.state(order_id) == "parked"
    assert "400 The order is completed.; code: order_closed" in warehouse.error(order_id)
    warehouse.there(order_id).state = "started"
    warehouse.go_on(1)
    assert warehouse.order(order_id)["awaits"] == "collected"


def test_a_completion_that_does_not_last_stops_the_next_step(warehouse):
    order_id = warehouse.stand_before("order_start")
    first, second = warehouse.there(order_id).steps[:2]

    def undo() -> None:
        first.state, second.state = "ready", "pending"

    warehouse.remote.when("PUT", undo, path="/steps/")
    warehouse.happens(order_id, "order_start")
    warehouse.happens(order_id, "items_pickEmptyBoxes")
    told = "the order stands at order_start, which comes before items_pickEmptyBoxes: complete it there"
    assert warehouse.error(order_id) == told


def hide_items(driver: Warehouse, order_id: str) -> None:
    """From now on the server takes no notice of `include=items`."""

    def hide(response: Any) -> Any:
        if request.path.endswith(f"/valet-orders/{order_id}") and request.method == "GET":
            document = response.get_json()
            document.pop("items", None)
            response.set_data(json.dumps(document))
        return response

    driver.remote.app.after_request_funcs.setdefault(None, []).append(hide)


@pytest.mark.parametrize("steps", [BOXES, BULKY])
def test_a_server_that_lists_no_items_of_an_order(warehouse, steps):
    """`include=items` is an assumption of the contract: the items told of are then looked for by their sids."""
    kind: dict[str, Any] = {"kind": "bulky", "items": [SOFA, SOFA]} if steps == BULKY else {"boxes": 2}
    order_id = warehouse.take_in(**kind)
    hide_items(warehouse, order_id)
    warehouse.happens(order_id, "order_start")
    for step in steps[1:]:
        for sid in warehouse.sids(order_id):
            warehouse.tell(order_id, SIGNALS[step], items=[sid], locations={sid: "S1"}, last=step == "items_collect")
        warehouse.go(erp=False)
    assert warehouse.state(order_id) == "done"
    exactly_once(warehouse, order_id, steps)


@pytest.mark.parametrize("data", [{}, {"items": []}])
def test_what_is_on_an_order_must_be_known_before_its_step_is_completed(warehouse, data):
    """Staff picked the boxes, the server lists no items of an order, and the signal names none (trap 1)."""
    order_id = warehouse.stand_before("items_pickEmptyBoxes")
    warehouse.remote.edit(order_id, complete_step="items_pickEmptyBoxes")
    warehouse.poll()
    warehouse.go(erp=False)
    sids = warehouse.sids(order_id)
    hide_items(warehouse, order_id)
    puts: list[str] = []
    warehouse.remote.when("PUT", lambda: puts.append("completed"), path="/steps/")
    warehouse.tell(order_id, "delivered", **data)
    warehouse.go(erp=False)
    told = 'delivered, but no item of the order is known: signal it with {"items": [...]}'
    assert (warehouse.state(order_id), warehouse.error(order_id)) == ("parked", told)
    assert not puts
    warehouse.tell(order_id, "delivered", items=sids)
    warehouse.go_on(1)
    assert warehouse.order(order_id)["awaits"] == "collected"
    assert warehouse.effects(order_id)["item:valetOrder_deliver"] == 2


# === Previews, commands, probe ==============================================================================


def test_what_a_replay_would_do(warehouse):
    order_id = warehouse.take_in()
    assert warehouse.foresee(order_id) == (
        Effect.IRREVERSIBLE,
        "confirms the order, makes its invoice, and it can no longer be cancelled",
    )
    warehouse.happens(order_id, "order_start")
    first, second = warehouse.sids(order_id)
    warehouse.tell(order_id, "picked", items=[first, second])
    assert warehouse.foresee(order_id) == (
        Effect.CALL,
        f"valetOrder_add for {first}, {second}; completes items_pickEmptyBoxes once every item is picked",
    )
    before = warehouse.effects(order_id)
    warehouse.account.client.command_items("valetOrder_add", [first, second], order_id)
    assert warehouse.foresee(order_id)[1].startswith("no command, all items are done; completes")
    warehouse.remote.edit(order_id, complete_step="items_pickEmptyBoxes")
    assert warehouse.foresee(order_id) == (Effect.SKIP, "is completed already")
    assert warehouse.effects(order_id)["complete_step"] == before["complete_step"]


@pytest.mark.parametrize("step", list(COMMANDS))
def test_a_preview_says_what_would_stop(warehouse, step):
    order_id = warehouse.stand_before(step)
    warehouse.tell(order_id, SIGNALS[step], items=["V-0"], locations={"V-0": "S1"})
    assert warehouse.foresee(order_id) == (
        Effect.CALL,
        f"would stop: {SIGNALS[step]}, but V-0: there is no such item",
    )


@pytest.mark.parametrize("step", BOXES)
def test_a_preview_of_a_cancelled_order(warehouse, step):
    order_id = warehouse.stand_before(step)
    warehouse.remote.edit(order_id, state="cancelled")
    assert warehouse.foresee(order_id) == (Effect.SKIP, "is cancelled in Storeganise: its plan ends here")


def test_a_preview_of_steps_that_come_later_and_of_reading(warehouse):
    order_id = warehouse.take_in()
    later = warehouse.job(order_id, 3)
    assert PREVIEWS[later.claim.step](later, warehouse.account).text == (
        "would stop: the order stands at order_start, which comes before items_pickEmptyBoxes: complete it there"
    )
    first = warehouse.job(order_id, 0)
    assert PREVIEWS[first.claim.step](first, warehouse.account).text == (
        "reads the order again, which is created and stands at order_start, and plans anew"
    )
    hear(warehouse, "job:x")
    assert warehouse.foresee("job:x") == (Effect.CALL, "looks for the order of this job")


def test_an_edit(warehouse):
    order_id = warehouse.take_in(date="2026-12-01")
    data = {"date": "2026-12-02", "customFields": {"notes": "Bitte bei Müller klingeln"}}
    asked, done = command(warehouse, order_id, "edit", data)
    assert asked == (
        "sets date to '2026-12-02', which is '2026-12-01'; "
        "sets customFields.notes to 'Bitte bei Müller klingeln', which is None; the ERP keeps the old date"
    )
    assert done == "set date, customFields.notes; the ERP keeps the old date: change it there"
    assert warehouse.remote.order(order_id)["date"] == "2026-12-02"
    assert command(warehouse, order_id, "edit", data) == (
        "the order reads so already, nothing would be done",
        "the order reads so already",
    )
    assert warehouse.effects(order_id)["put_order"] == 1


@pytest.mark.parametrize(("name", "data"), [("charge", CHARGE), ("edit", {"timeslot": "0800-1000"})])
def test_a_write_that_does_not_read_back_is_said(warehouse, name, data):
    order_id = warehouse.take_in(timeslot="1000-1200")
    order = warehouse.there(order_id)

    def undo() -> None:
        order.charges, order.timeslot = [], "1000-1200"

    warehouse.remote.when("PUT", undo)
    with pytest.raises(TryLater, match="and does not read so"):
        command(warehouse, order_id, name, data)


def test_the_probe(warehouse):
    system = warehouse.fleet.systems["storeganise"]
    assert system.probe is not None
    assert system.probe(warehouse.account) == "valet orders can be read"
    warehouse.add()
    assert system.probe(warehouse.account) == "valet orders can be read"
    warehouse.backend.options.api_key = "changed"
    with pytest.raises(Misconfigured):
        system.probe(warehouse.account)
