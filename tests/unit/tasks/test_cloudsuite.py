"""CloudSuite's steps on the real ledger, against the shop's imitation and the staging tables. The traps are those of
section 11 of contracts/cloudsuite.md."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from io import BytesIO
from typing import Any
from urllib.parse import parse_qsl, urlencode
from xml.etree import ElementTree

import pytest
from flask import Flask, Response, request

from ledger import by_hand, intake, queries, records, signals
from ledger.signals import Signal
from orders.arrival import Arrival
from orders.outcomes import Done, Ended, Planned
from orders.states import State
from sandbox import cloudsuite
from sandbox.erp import SandboxErp
from schemas import cloudsuite as schema
from tasks.base import STEPS, Effect, Job
from tasks.cloudsuite_order import PLAN
from tests.unit.tasks.conftest import ShopDriver as Driver
from tests.unit.tasks.conftest import a_driver_of
from workers import operators

CHAIN = [
    ("cloudsuite.fetch", "done"),
    ("erp.order", "done"),
    ("cloudsuite.state", "done"),
    ("cloudsuite.erp_order_number", "done"),
    ("cloudsuite.lines", "done"),
    ("cloudsuite.shipment", "done"),
]
DELIVERY = "/proxy/des_adv_xml/delivery/"
DESADV = {"CLOUDSUITE_DELIVERY": "desadv", "CLOUDSUITE_DESADV_SHOP": "1", "CLOUDSUITE_DESADV_USER": "10"}
WRITES = [
    ("cloudsuite.state", {}),
    ("cloudsuite.erp_order_number", {}),
    ("cloudsuite.lines", {}),
    ("cloudsuite.shipment", {}),
    ("cloudsuite.shipment", DESADV),
    ("cloudsuite.shipment", {"CLOUDSUITE_DELIVERY": "done"}),
]
FREIGHT = {"product": None, "description": "Freight", "type": "freight", "quantity": 1.0, "unit_price": 6.95}


def goods(*products: str, quantity: float = 2.0) -> list[dict[str, Any]]:
    return [
        {
            "product": {"key": product, "origin": "sandbox"},
            "description": product.lower(),
            "quantity": quantity,
            "unit_price": 4.95,
        }
        for product in products
    ]


def finish(driver: Driver, number: int) -> None:
    """Number it, ship everything at once, and see it through."""
    driver.go()
    driver.tell(number, "shipped")
    driver.go()


def stand_before(driver: Driver, step: str, **order: Any) -> int:
    """A new order that has come as far as `step`, which has not been run."""
    number = driver.take_in(**order)
    driver.go(hold=[step])
    if step == "cloudsuite.shipment":
        driver.tell(number, "shipped")
        driver.go(hold=[step])
    assert driver.order(number)["step"] == step
    return number


def steady(document: dict[str, Any]) -> dict[str, Any]:
    """An order in the shop without what our flow is there to change."""
    moving = ("state", "erp_order_number", "shipment_state", "modified_date", "deliveries")
    kept = {name: value for name, value in document.items() if name not in moving}
    lines = [{name: line[name] for name in line if name != "erp_line_number"} for line in kept["order_lines"]]
    return {**kept, "order_lines": lines}


def replay(driver: Driver, number: int, start: str | None = None, *, acknowledged: bool = False) -> None:
    """An operator's `orderfleet replay ORDER [--from START] [--acknowledge]`, and what comes of it."""
    one = operators.foresee(driver.fleet, driver.order(number), start)
    operators.replay(driver.ledger, one, "ann", acknowledged=acknowledged)
    driver.go()


def foreseen(driver: Driver, number: int) -> tuple[Effect, str]:
    """What a replay says of the step where the order stands."""
    (_, preview), *_ = operators.foresee(driver.fleet, driver.order(number)).steps
    return preview.effect, preview.text


def problems(driver: Driver, number: int) -> list[str]:
    """What `orderfleet events` shows of an order."""
    return queries.problems_of(driver.ledger, "cloudsuite", "default", str(number))


def with_quantity(driver: Driver, number: int, quantity: float) -> list[dict[str, Any]]:
    """The order's lines for an edit of every quantity."""
    return [{"id": line["id"], "quantity": quantity} for line in driver.shop.order(number)["order_lines"]]


def deliveries(driver: Driver, number: int) -> list[ElementTree.Element]:
    """The delivery messages that the shop took, as XML."""
    effects = driver.shop.control.backend.effects.of(number)
    return [ElementTree.fromstring(effect.raw) for effect in effects if effect.kinds[0] == "desadv"]


def texts(message: ElementTree.Element, tag: str) -> list[str]:
    return [element.text or "" for element in message.iter(tag)]


def test_from_the_poll_to_sent(driver_on_both):
    driver = driver_on_both
    number = driver.take_in()
    finish(driver, number)
    assert driver.attempts(number) == CHAIN
    assert driver.state(number) == "done"
    order = driver.shop.order(number)
    assert (order["state"], order["erp_order_number"], order["shipment_state"]) == ("processing", "SO-1", "sent")
    assert [line["erp_line_number"] for line in order["order_lines"]] == [10, 20]
    assert driver.effects(number) == {"patch": 3, "put": 1}
    assert [row["stage"] for row in driver.in_erp(number)] == ["confirmed"]


def test_polling_again_changes_nothing(driver):
    number = driver.shipped()
    before = driver.order(number), driver.attempts(number), driver.shop.order(number)
    for _ in range(3):
        driver.poll()
        driver.go(ships=True)
    assert (driver.order(number), driver.attempts(number), driver.shop.order(number)) == before


def test_the_merging_server_is_served_as_well(driver_with):
    driver = driver_with({"put": "merge", "strict_transitions": True, "numeric_strings": True})
    number = driver.take_in(order_lines=[*goods("124_STUK"), FREIGHT])
    before = driver.shop.order(number)
    finish(driver, number)
    assert driver.state(number) == "done"
    assert steady(driver.shop.order(number)) == steady(before)


# === The traps ==============================================================================================


def test_trap_01_the_put_does_not_undo_processing(driver):
    number = driver.take_in()
    finish(driver, number)
    changes = [kind for kind in driver.shop.effects(number) if kind.startswith("state:")]
    assert changes == ["state:confirmed->processing"]
    driver.poll()
    driver.go()
    assert driver.effects(number)["put"] == 1


def test_trap_01_the_put_carries_the_state_that_a_person_set(driver):
    number = stand_before(driver, "cloudsuite.lines")
    driver.shop.edit(number, state="done")
    driver.go_on(1)
    assert driver.shop.order(number)["state"] == "done"
    assert driver.attempts(number)[-1] == ("cloudsuite.lines", "done")


def test_trap_02_the_put_loses_nothing(driver):
    number = driver.take_in(
        order_lines=[*goods("124_STUK", "160_STUK"), FREIGHT],
        customer_order_number="PO-1",
        description="Leave it with the neighbours",
        requested_delivery_date="2026-12-01",
        paid_amount=59.9,
        order_date="2026-01-02",
    )
    before = driver.shop.order(number)
    finish(driver, number)
    assert driver.effects(number)["put"] == 1
    assert steady(driver.shop.order(number)) == steady(before)
    assert not {kind for kind in driver.shop.effects(number) if kind.startswith("lines_") or "cleared" in kind}


def test_trap_03_what_is_not_there_is_never_put(driver):
    plan = (Planned("cloudsuite.lines", awaits="numbered"),)
    order = intake.take_in(driver.ledger, "cloudsuite", [Arrival("default", "99", "row:99", "row", "{}", plan)]).new[0]
    facts = {"erp_number": "SO-9", "erp_lines": {"1": 10}}
    signals.signal(driver.ledger, [Signal(order, "numbered", "erp:9", {}, facts)])
    driver.go()
    assert driver.state(99) == "parked"
    assert "404" in driver.order(99)["error"]
    assert not list(driver.shop.control.backend.all_orders())


def test_trap_04_paging_skips_nothing(driver_with, monkeypatch):
    driver = driver_with({"page_max": 4})
    numbers = {driver.add() for _ in range(10)}
    client = driver.fleet.accounts["cloudsuite", "default"].client
    pages = client.orders

    def orders(**filters: Any) -> Iterator[Any]:
        for page in pages(**filters):
            yield page
            driver.worker.work()  # what is known by now leaves the filtered list, before the next page is asked for

    monkeypatch.setattr(client, "orders", orders)
    driver.poll()
    known = {int(row["external_id"]) for row in queries.listing(driver.ledger, queries.Filter())}
    assert known == numbers


def test_trap_05_a_late_payment_is_not_lost_behind_the_watermark(driver):
    late = driver.take_in(payment_status="started", confirm_date="2020-01-01T00:00:00.000000")
    driver.go()
    driver.shipped()
    driver.shop.edit(late, payment_status="paid", modified_date="2020-01-01T00:00:00.000000")
    driver.poll()
    driver.go_on()
    assert driver.order(late)["awaits"] == "shipped"


def known(driver: Driver, *numbers: int) -> list[int]:
    """Those of the orders that have been taken in."""
    ids = queries.order_ids(driver.ledger, "cloudsuite", "default", [str(number) for number in numbers])
    return sorted(int(external_id) for external_id in ids)


def test_trap_05_the_date_overlaps_by_two_days(driver):
    newest = datetime.fromisoformat(driver.shop.order(driver.take_in())["modified_date"])
    late, too_late = (driver.take_in(confirm_date=(newest - timedelta(hours=ago)).isoformat()) for ago in (47, 49))
    assert known(driver, late, too_late) == [late]


def test_trap_05_once_a_day_the_date_is_left_out(driver):
    driver.take_in()
    late = driver.take_in(confirm_date="2020-01-01T00:00:00.000000")
    name = "cloudsuite.poll:default"
    assert known(driver, late) == []
    kept = json.loads(queries.cursor(driver.ledger, name) or "")
    signals.move_cursor(driver.ledger, name, json.dumps(kept | {"full_at": "2026-01-01T00:00:00+00:00"}))
    driver.poll()
    assert known(driver, late) == [late]
    again = json.loads(queries.cursor(driver.ledger, name) or "")
    assert again["full_at"] > "2026-01-01T00:00:00+00:00"


@pytest.mark.parametrize(
    ("status", "none", "ends"),
    [
        ("closed_success", "hold", "in the ERP"),
        ("paid", "hold", "in the ERP"),
        ("account", "hold", "in the ERP"),
        ("started", "hold", "waits"),
        ("closed_canceled", "hold", "parked"),
        ("none", "hold", "parked"),
        ("none", "process", "in the ERP"),
        ("closed_canceled", "process", "parked"),
        ("started", "process", "waits"),
        ("refunded", "process", "parked"),
        (None, "process", "parked"),
    ],
)
def test_trap_06_the_payment_decides_and_it_is_in_the_detail_only(driver_with, status, none, ends):
    driver = driver_with(CLOUDSUITE_PAYMENT_NONE=none)
    number = driver.take_in(payment_status=status)
    driver.go()
    row = driver.order(number)
    shown = {
        ("waiting", "shipped"): "in the ERP",
        ("waiting", "paid"): "waits",
        ("parked", None): "parked",
    }[row["state"], row["awaits"]]
    assert shown == ends
    assert len(driver.in_erp(number)) == (ends == "in the ERP")
    assert bool(driver.effects(number)) == (ends == "in the ERP")
    if ends == "parked":
        assert str(status) in row["error"]


def test_trap_07_one_reference_in_two_webshops_is_two_orders(driver):
    first = driver.add(reference="CS6", webshop=1)
    second = driver.add(reference="CS6", webshop=2)
    driver.poll()
    driver.go(ships=True)
    assert [driver.state(first), driver.state(second)] == ["done", "done"]
    assert [len(driver.in_erp(number)) for number in (first, second)] == [1, 1]
    numbers = {driver.shop.order(number)["erp_order_number"] for number in (first, second)}
    assert numbers == {"SO-1", "SO-2"}


def deaf_shop() -> Flask:
    """It ignores every filter, as a server does with those that it does not know."""
    app = cloudsuite.create_app()
    hearing = app.wsgi_app

    def deaf(environ: Any, start_response: Any) -> Any:
        query = [pair for pair in parse_qsl(environ["QUERY_STRING"]) if pair[0] in ("limit", "offset")]
        return hearing({**environ, "QUERY_STRING": urlencode(query)}, start_response)

    app.wsgi_app = deaf  # type: ignore[method-assign]
    return app


def test_trap_07_an_ignored_filter_brings_in_nothing_foreign(sqlite_url):
    with a_driver_of(deaf_shop(), sqlite_url, CLOUDSUITE_WEBSHOP="1") as driver:
        wanted = driver.add(webshop=1)
        foreign = driver.add(webshop=2)
        for state in ("draft", "quotation", "processing", "done", "cancel"):
            driver.add(state=state)
        driver.poll()
        driver.go()
        driver.poll()
        known = {row["external_id"]: row["state"] for row in queries.listing(driver.ledger, queries.Filter())}
        assert known == {str(wanted): "waiting", str(foreign): "ignored"}
        assert not driver.in_erp(foreign)


def test_trap_08_offline_orders_are_not_echoed_to_the_erp(driver):
    offline = driver.add(offline=True, payment_status="account")
    driver.poll()
    assert not queries.listing(driver.ledger, queries.Filter())
    assert driver.shop.order(offline)["state"] == "confirmed"


def test_trap_08_even_when_the_list_has_them(sqlite_url):
    with a_driver_of(deaf_shop(), sqlite_url) as driver:
        offline = driver.take_in(offline=True, payment_status="account")
        driver.go()
        assert driver.state(offline) == "ignored"
        assert not driver.in_erp(offline)
        assert not driver.effects(offline)


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Pago_Pago"])
def test_trap_09_the_zone_of_the_server_does_not_matter(driver_with, zone):
    driver = driver_with({"zone": zone})
    numbers = [driver.shipped() for _ in range(2)]
    waiting = driver.take_in()
    driver.go()
    driver.shop.edit(waiting, state="cancel")
    driver.poll()
    driver.go()
    assert [driver.state(number) for number in (*numbers, waiting)] == ["done", "done", "cancelled"]
    kept = json.loads(queries.cursor(driver.ledger, "cloudsuite.poll:default") or "")
    assert kept["newest"] == driver.shop.order(waiting)["modified_date"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, {"shipment_state:sent"}),
        ({"CLOUDSUITE_DELIVERY": "done"}, {"state:processing->done"}),
        (DESADV, {"desadv", "shipment_state:sent"}),
    ],
)
def test_trap_10_a_shipment_is_told_in_one_way_only(driver_with, settings, told):
    driver = driver_with(**settings)
    number = stand_before(driver, "cloudsuite.shipment")
    before = driver.shop.effects(number)
    driver.go_on()
    assert driver.state(number) == "done"
    assert {*driver.shop.effects(number) - before} - {"patch"} == told
    assert driver.effects(number) == (
        {"patch": 2, "put": 1, "desadv": 1} if settings is DESADV else {"patch": 3, "put": 1}
    )


def test_trap_11_deliveries_come_after_the_numbers_and_go_by_the_erps(driver_with):
    driver = driver_with(**DESADV)
    number = driver.take_in(order_lines=[*goods("124_STUK", "160_STUK"), FREIGHT])
    driver.go(erp=False)
    driver.tell(number, "shipped")
    driver.go(erp=False)
    assert not deliveries(driver, number)
    driver.go()
    (message,) = deliveries(driver, number)
    assert texts(message, "ItemNum") == ["10", "20"]
    assert texts(message, "OrderNum") == ["SO-1", "SO-1"]
    assert [step for step, _ in driver.attempts(number)][-3:] == [step for step, _ in CHAIN[-3:]]


def test_trap_11_two_lines_of_one_number_are_noticed_here(driver_with):
    driver = driver_with(**DESADV)
    number = driver.take_in()
    driver.go(erp=False)
    keys = [line["line_key"] for line in driver.erp_lines(number)]
    driver.tell(number, "numbered", order_number="SO-7", lines=dict.fromkeys(keys, 10))
    driver.tell(number, "shipped")
    driver.go(erp=False)
    assert driver.state(number) == "parked"
    assert "2 lines have ERP line number 10" in driver.order(number)["error"]
    assert driver.effects(number) == {"patch": 2}


class Listener:
    """A shop that notes what it is asked: (method, path, query, body)."""

    def __init__(self) -> None:
        self.app = cloudsuite.create_app()
        self.heard: list[tuple[str, str, dict[str, str], bytes]] = []
        self.app.before_request_funcs.setdefault(None, []).append(self._note)

    def _note(self) -> None:
        self.heard.append((request.method, request.path, dict(request.args.items()), request.get_data()))

    def bodies(self, method: str, path: str) -> list[bytes]:
        return [body for of, at, _, body in self.heard if (of, at) == (method, path)]

    def queries(self, method: str, path: str) -> list[dict[str, str]]:
        return [query for of, at, query, _ in self.heard if (of, at) == (method, path)]


def answer(app: Flask, method: str, path: str, view: Callable[[], Response | None]) -> None:
    """The shop answers these requests with what `view` makes, if it makes something."""

    def hook() -> Response | None:
        return view() if (request.method, request.path) == (method, path) else None

    app.before_request_funcs.setdefault(None, []).insert(0, hook)


def test_trap_12_each_call_has_its_own_names_for_shop_and_user(sqlite_url):
    shop = Listener()
    with a_driver_of(shop.app, sqlite_url, **DESADV, CLOUDSUITE_WEBSHOP="3") as driver:
        number = driver.take_in(webshop=3)
        finish(driver, number)
        assert driver.state(number) == "done"
    assert shop.queries("POST", DELIVERY) == [{"shop": "1", "user": "10"}]
    lists = shop.queries("GET", "/api/order/")
    assert lists[0]["webshop"] == "3"
    assert not any({"shop", "user"} & query.keys() for query in lists)


def test_trap_13_every_write_has_its_slash(driver_with):
    driver = driver_with(**DESADV)
    number = driver.take_in()
    finish(driver, number)
    effects = driver.shop.control.backend.effects.of(number)
    assert Counter(effect.method for effect in effects) == {"PATCH": 2, "PUT": 1, "POST": 1}
    assert all(effect.path.endswith("/") for effect in effects)


def test_trap_14_killed_after_the_erp_took_it(driver_on_both):
    driver = driver_on_both
    number = stand_before(driver, "erp.order")
    driver.dies_at(number)
    assert driver.shop.order(number)["state"] == "confirmed"
    driver.poll()
    driver.worker.sweep.run()
    finish(driver, number)
    assert driver.state(number) == "done"
    assert ("erp.order", "lost") in driver.attempts(number)
    assert len(driver.in_erp(number)) == 1
    assert driver.shop.order(number)["erp_order_number"] == "SO-1"


def test_trap_15_quantities_are_decimals(driver_with):
    driver = driver_with(**DESADV)
    number = driver.take_in(order_lines=goods("123_KG", quantity=0.3))
    driver.go()
    ((key, quantity),) = [(line["line_key"], line["quantity"]) for line in driver.erp_lines(number)]
    assert Decimal(str(quantity)) == Decimal("0.3")
    for part in ("0.1", "0.1", "0.1"):  # as floats they would add up to more than 0.3
        assert driver.state(number) == "waiting"
        driver.tell(number, "shipped", lines={key: part})
        driver.go()
    assert driver.state(number) == "done"
    assert [texts(message, "QuantityValue") for message in deliveries(driver, number)] == [["0.1000"]] * 3


def test_trap_16_the_next_page_is_asked_of_our_own_host(driver_with):
    driver = driver_with({"foreign_next": True, "page_max": 2})
    numbers = {str(driver.add()) for _ in range(5)}
    driver.poll()  # any other host is out of reach here, and would fail
    assert {row["external_id"] for row in queries.listing(driver.ledger, queries.Filter())} == numbers


def test_trap_17_a_token_that_ends_is_renewed(sqlite_url):
    ahead = [0.0]
    with a_driver_of(cloudsuite.create_app(clock=lambda: time.time() + ahead[0]), sqlite_url) as driver:
        number = stand_before(driver, "cloudsuite.lines")
        ahead[0] = 301.0
        driver.go_on(1)
        driver.tell(number, "shipped")
        driver.go()
        assert driver.attempts(number) == CHAIN


def test_trap_17_the_old_scheme_still_works(driver_with):
    driver = driver_with({"auth": "token"}, CLOUDSUITE_TOKEN="sandbox-token")
    assert driver.state(driver.shipped()) == "done"


def test_trap_18_cancelled_between_the_poll_and_the_write(driver):
    number = stand_before(driver, "cloudsuite.state")
    driver.shop.edit(number, state="cancel")
    driver.go_on(1)
    assert driver.state(number) == "cancelled"
    assert driver.shop.order(number)["state"] == "cancel"
    assert not driver.effects(number)
    assert [row["stage"] for row in driver.in_erp(number)] == ["cancelled"]


# === The poll when things go wrong ==========================================================================


def try_poll(driver: Driver) -> str:
    """A visit that may fail."""
    driver.ticks_are_due()
    return driver.worker.ticks.poll("cloudsuite", "default")


@pytest.mark.parametrize("offline", ["ignore", "ship"])
def test_a_page_that_cannot_be_read_holds_up_none_of_the_others(sqlite_url, offline):
    app = cloudsuite.create_app(cloudsuite.Options(page_max=2))
    broken = [True]
    answer(
        app,
        "GET",
        "/api/order/",
        lambda: Response("", 500) if broken[0] and request.args.get("offset") == "4" else None,
    )
    with a_driver_of(app, sqlite_url, CLOUDSUITE_OFFLINE=offline) as driver:
        numbers = [driver.add() for _ in range(5)]
        assert "500" in try_poll(driver)
        assert known(driver, *numbers) == numbers[:4]
        assert queries.cursor(driver.ledger, "cloudsuite.poll:default") is None
        broken[0] = False
        driver.poll()
        assert known(driver, *numbers) == numbers


def test_a_cancellation_is_seen_though_a_page_of_confirmed_orders_cannot_be_read(sqlite_url):
    app = cloudsuite.create_app()
    broken = [False]
    answer(
        app,
        "GET",
        "/api/order/",
        lambda: Response("", 500) if broken[0] and request.args.get("state") == "confirmed" else None,
    )
    with a_driver_of(app, sqlite_url) as driver:
        number = driver.take_in()
        driver.go()
        driver.shop.edit(number, state="cancel")
        broken[0] = True
        assert "500" in try_poll(driver)
        driver.go()
        assert driver.state(number) == "cancelled"


ODD_ROWS = [
    {"state": "confirmed", "reference": "CS9"},
    {"state": "confirmed", "reference": "CS9", "id": None},
    {"state": "confirmed", "id": {"no": "number"}},
    "no row at all",
]


@pytest.mark.parametrize("row", ODD_ROWS)
def test_a_row_that_is_none_is_kept_once_and_holds_up_nothing(sqlite_url, row):
    app = cloudsuite.create_app()

    def with_row(response: Response) -> Response:
        if request.path == "/api/order/" and request.args["state"] == "confirmed":
            page = json.loads(response.get_data())
            response.set_data(json.dumps({**page, "results": [row, *page["results"]]}))
        return response

    app.after_request_funcs.setdefault(None, []).append(with_row)
    with a_driver_of(app, sqlite_url) as driver:
        number = driver.take_in()
        driver.poll()
        assert known(driver, number) == [number]
        (odd,) = queries.odd_events(driver.ledger)
        assert "no id" in odd["problem"]


@pytest.mark.parametrize("stamp", ["2099-01-01T00:00:00.000000", "soon", 7, "2026-01-01T00:00:00+00:00"])
def test_a_date_that_cannot_be_does_not_blind_the_poll(sqlite_url, stamp):
    app = cloudsuite.create_app()
    odd: list[int] = []

    def with_stamp(response: Response) -> Response:
        if request.path == "/api/order/":
            page = json.loads(response.get_data())
            rows = [{**row, "modified_date": stamp} if row["id"] in odd else row for row in page["results"]]
            response.set_data(json.dumps({**page, "results": rows}))
        return response

    app.after_request_funcs.setdefault(None, []).append(with_stamp)
    with a_driver_of(app, sqlite_url) as driver:
        cancelled, jumped = driver.add(), driver.add()
        odd.append(jumped)
        driver.poll()
        driver.go()
        driver.poll()
        fresh = driver.take_in()
        assert known(driver, jumped, fresh) == [jumped, fresh]
        driver.shop.edit(cancelled, state="cancel")
        driver.poll()
        driver.go()
        assert driver.state(cancelled) == "cancelled"


def test_a_poll_that_was_blinded_sees_again(driver):
    name = "cloudsuite.poll:default"
    driver.take_in()
    kept = json.loads(queries.cursor(driver.ledger, name) or "")
    signals.move_cursor(driver.ledger, name, json.dumps(kept | {"newest": "2099-01-01T00:00:00.000000"}))
    number = driver.take_in()
    assert known(driver, number) == [number]


# === News of known orders ===================================================================================


def run_meanwhile(driver: Driver, number: int, meanwhile: Callable[[], None]) -> None:
    """A worker does the order's step; `meanwhile` happens before it records that the order is nothing for us."""
    row = driver.order(number)
    claim = records.claim(driver.ledger, row["id"], row["position"], row["step"], "w1")
    assert claim is not None
    outcome = STEPS[claim.step](Job(driver.ledger, claim), driver.fleet.partner_of(claim))
    meanwhile()
    assert isinstance(outcome, Ended)
    records.end(driver.ledger, claim, outcome.reason, State.IGNORED, ())


def test_confirmed_while_fetch_was_recording_that_it_is_not(driver_on_both):
    driver = driver_on_both
    number = driver.take_in()
    driver.shop.edit(number, state="processing")

    def meanwhile() -> None:
        driver.shop.edit(number, state="confirmed")
        driver.poll()

    run_meanwhile(driver, number, meanwhile)
    assert driver.state(number) == "ignored"
    driver.news_gets_old()
    driver.read_news()
    driver.go(ships=True)
    assert driver.state(number) == "done"


def test_set_back_to_confirmed_while_the_erp_has_it_is_told(driver_on_both):
    driver = driver_on_both
    number = driver.take_in()
    driver.go()
    driver.shop.edit(number, state="confirmed")
    driver.poll()
    (problem,) = problems(driver, number)
    assert "set back to confirmed" in problem
    driver.tell(number, "shipped")
    driver.go()
    assert driver.state(number) == "done"


def test_edited_while_it_waits_for_its_shipment_is_told(driver):
    number = driver.take_in()
    driver.go()
    driver.shop.edit(number, state="confirmed", order_lines=with_quantity(driver, number, 9.0))
    driver.poll()
    (problem,) = problems(driver, number)
    assert "quantity was 2.0 and is 9.0" in problem


def test_the_row_of_an_order_that_a_step_is_at_is_read_later(driver):
    number = stand_before(driver, "erp.order")
    row = driver.order(number)
    claim = records.claim(driver.ledger, row["id"], row["position"], row["step"], "w1")
    assert claim is not None
    driver.shop.edit(number, order_lines=with_quantity(driver, number, 9.0))
    driver.poll()
    records.postpone(driver.ledger, claim, "the ERP is down", 600.0, None)
    driver.news_gets_old()
    driver.read_news()
    driver.go()
    assert [Decimal(str(line["quantity"])) for line in driver.erp_lines(number)] == [9, 9]


def test_what_the_erp_may_have_is_not_dropped_when_it_is_read_again(driver):
    number = stand_before(driver, "erp.order")
    row = driver.order(number)
    claim = records.claim(driver.ledger, row["id"], row["position"], row["step"], "w1")
    assert claim is not None
    STEPS["erp.order"](Job(driver.ledger, claim), driver.fleet.erp)
    records.retry(driver.ledger, claim, "no answer", 600.0, None)
    driver.shop.edit(number, user=7)
    driver.poll()
    assert driver.order(number)["step"] == "cloudsuite.fetch"
    driver.shop.edit(number, state="processing")
    finish(driver, number)
    assert driver.state(number) == "done"
    assert len(driver.in_erp(number)) == 1


@pytest.mark.parametrize("status", ["started", "closed_canceled"])
def test_a_payment_that_came_while_fetch_was_recording_that_it_has_not(driver, status):
    number = driver.take_in(payment_status=status)
    row = driver.order(number)
    claim = records.claim(driver.ledger, row["id"], row["position"], row["step"], "w1")
    assert claim is not None
    driver.shop.edit(number, payment_status="paid")
    driver.poll()
    if status == "started":
        rest = (Planned("erp.order", awaits="paid", recheck=600.0), *PLAN[2:])
        order = schema.to_order(schema.parse_order(driver.shop.order(number)))
        records.done(driver.ledger, claim, Done(rest=rest, document=order.to_json()), State.READY)
    else:
        records.park(driver.ledger, claim, "not paid", None, recheck=3600.0)
    driver.news_gets_old()
    driver.read_news()
    driver.worker.sweep.run()
    driver.go()
    assert driver.order(number)["awaits"] == "shipped"


@pytest.mark.parametrize(("state", "told"), [("confirmed", 1), ("processing", 0)])
@pytest.mark.parametrize("ending", ["done", "cancelled"])
def test_set_back_while_the_last_step_was_being_recorded(driver, ending, state, told):
    if ending == "done":
        number = stand_before(driver, "cloudsuite.shipment")
    else:
        number = driver.take_in()
        driver.go()
        driver.tell(number, "cancelled")
        driver.go(hold=["cloudsuite.cancel"])
    row = driver.order(number)
    claim = records.claim(driver.ledger, row["id"], row["position"], row["step"], "w1")
    assert claim is not None
    outcome = STEPS[claim.step](Job(driver.ledger, claim), driver.fleet.partner_of(claim))
    driver.shop.edit(number, state="confirmed", shipment_state=None)
    driver.poll()
    driver.shop.edit(number, state=state)
    assert isinstance(outcome, Done)
    records.done(driver.ledger, claim, outcome, State.READY)
    assert driver.state(number) == ending
    driver.news_gets_old()
    driver.read_news()
    assert len(problems(driver, number)) == told


def test_a_poll_that_is_turned_away_keeps_what_it_has_read(sqlite_url):
    app = cloudsuite.create_app(cloudsuite.Options(page_max=1))
    answer(app, "GET", "/api/order/", lambda: Response("", 429) if request.args.get("offset") == "1" else None)
    with a_driver_of(app, sqlite_url) as driver:
        numbers = [driver.add() for _ in range(2)]
        assert "429" in try_poll(driver)
        assert known(driver, *numbers) == numbers[:1]


def test_previews_of_orders_whose_line_numbers_are_missing(driver_with):
    driver = driver_with(**DESADV)
    number = driver.take_in()
    driver.go(erp=False)
    driver.tell(number, "numbered", order_number="SO-7")
    driver.go(erp=False)
    (_, preview), *_ = operators.foresee(driver.fleet, driver.order(number), "cloudsuite.erp_order_number").steps
    assert preview.effect is Effect.CALL
    driver.tell(number, "shipped")
    driver.go(erp=False)
    driver.tell(number, "numbered", order_number="SO-7")
    assert "would stop: the ERP told no line number" in foreseen(driver, number)[1]


def test_rows_that_have_not_changed_cost_no_call(sqlite_url):
    shop = Listener()
    with a_driver_of(shop.app, sqlite_url) as driver:
        number = driver.take_in()
        driver.poll()
        assert not shop.bodies("GET", f"/api/order/{number}/")


# === Payment ================================================================================================


def test_a_payment_that_comes_late_lets_the_order_go_by_itself(driver_on_both):
    driver = driver_on_both
    number = driver.take_in(payment_status="started")
    driver.go_on(2)
    assert driver.order(number)["awaits"] == "paid"
    assert not driver.in_erp(number)
    driver.shop.edit(number, payment_status="closed_success")
    driver.go_on(1)
    assert driver.order(number)["awaits"] == "shipped"
    assert len(driver.in_erp(number)) == 1


def test_the_longer_a_payment_is_awaited_the_less_often_it_is_read(driver_with):
    driver = driver_with(CLOUDSUITE_POLL_SECONDS="60")
    number = driver.take_in(payment_status="started")
    rechecks = []
    for _ in range(6):
        driver.go_on(1)
        rechecks.append(queries.plan_of(driver.ledger, driver.order(number)["id"])[1]["recheck"])
    assert rechecks == [60, 120, 240, 480, 480, 480]


def test_the_poll_that_sees_a_change_has_the_order_read_at_once(driver_with):
    driver = driver_with(CLOUDSUITE_POLL_SECONDS="3600")
    number = driver.take_in(payment_status="started")
    driver.go()
    driver.worker.sweep.run()
    driver.go()
    assert driver.attempts(number) == [("cloudsuite.fetch", "done")]
    driver.shop.edit(number, payment_status="paid")
    driver.poll()
    driver.time_passes()  # the sweep's next turn
    driver.worker.sweep.run()
    driver.go()
    assert driver.order(number)["awaits"] == "shipped"


def test_a_cancelled_payment_says_what_to_do_and_is_looked_at_again(driver):
    number = driver.take_in(payment_status="closed_canceled")
    driver.go()
    row = driver.order(number)
    assert row["state"] == "parked"
    assert "closed_canceled" in row["error"]
    assert "release it" in row["error"]
    driver.shop.edit(number, payment_status="paid")
    driver.go_on(1)
    assert driver.order(number)["awaits"] == "shipped"


@pytest.mark.parametrize("status", ["started", "closed_canceled", "none", "refunded"])
def test_an_operators_release_passes_the_gate(driver, status):
    number = driver.take_in(payment_status=status)
    driver.go()
    by_hand.release(driver.ledger, driver.order(number)["id"], "cloudsuite.fetch", "ann")
    finish(driver, number)
    assert driver.state(number) == "done"
    assert len(driver.in_erp(number)) == 1


# === Offline orders and the webshop's filter ================================================================


def test_offline_orders_get_their_shipment_alone(driver_with):
    driver = driver_with(CLOUDSUITE_OFFLINE="ship")
    number = driver.take_in(offline=True, state="processing", payment_status="account", erp_order_number="SO-77")
    ordinary = driver.take_in()
    driver.go()
    assert driver.order(number)["awaits"] == "shipped"
    assert not driver.in_erp(number)
    driver.tell(number, "shipped")
    finish(driver, ordinary)
    assert [driver.state(number), driver.state(ordinary)] == ["done", "done"]
    assert driver.shop.order(number)["shipment_state"] == "sent"
    assert driver.effects(number) == {"patch": 1}


def test_an_offline_order_that_is_sent_already_needs_nothing(driver_with):
    driver = driver_with(CLOUDSUITE_OFFLINE="ship")
    number = driver.take_in(offline=True, state="processing", shipment_state="sent")
    driver.go()
    assert driver.state(number) == "ignored"


def test_the_other_webshops_orders_are_left_alone(driver_with):
    driver = driver_with(CLOUDSUITE_WEBSHOP="2")
    other, ours = driver.add(webshop=1), driver.add(webshop=2)
    driver.poll()
    assert list(queries.order_ids(driver.ledger, "cloudsuite", "default", [str(other), str(ours)])) == [str(ours)]


# === Deliveries =============================================================================================


def test_partial_deliveries_each_have_their_own_message(driver_with):
    driver = driver_with(**DESADV)
    number = driver.take_in()
    driver.go()
    gloves, driver_ = [line["line_key"] for line in driver.erp_lines(number)]
    driver.tell(number, "shipped", lines={gloves: "1"}, carrier="Example Post", tracking="EX1")
    driver.go()
    assert (driver.state(number), driver.shop.order(number)["shipment_state"]) == ("waiting", None)
    driver.tell(number, "shipped", lines={gloves: "1", driver_: "2"})
    driver.tell(number, "shipped", lines={driver_: "1"})  # two before the worker looks
    driver.go()
    messages = deliveries(driver, number)
    assert [texts(one, "QuantityValue") for one in messages] == [["1.0000"], ["1.0000", "2.0000"], ["1.0000"]]
    assert [texts(one, "ItemNum") for one in messages] == [["10"], ["10", "20"], ["20"]]
    assert [texts(one, "Identification") for one in messages] == [["EX1"], [""], [""]]
    assert (driver.state(number), driver.shop.order(number)["shipment_state"]) == ("done", "sent")


def test_the_number_of_a_delivery_comes_from_the_erps_event(driver_with):
    driver = driver_with(**DESADV)
    number = driver.take_in()
    driver.go()
    key = driver.erp_lines(number)[0]["line_key"]
    driver.tell(number, "shipped", lines={key: "1"})
    driver.tell(number, "shipped")
    driver.go()
    told = queries.signals_of(driver.ledger, driver.order(number)["id"], "shipped")
    expected = [f"{number}-{one.source.replace(':', '-')}" for one in told]
    assert [texts(message, "DesadvNumber") for message in deliveries(driver, number)] == [[name] for name in expected]
    assert len(set(expected)) == 2


def test_after_a_part_everything_means_the_rest(driver_with):
    driver = driver_with(**DESADV)
    number = driver.take_in()
    driver.go()
    gloves, _ = [line["line_key"] for line in driver.erp_lines(number)]
    driver.tell(number, "shipped", lines={gloves: "2"})
    driver.go()
    driver.tell(number, "shipped")
    driver.go()
    assert [texts(message, "ItemNum") for message in deliveries(driver, number)] == [["10"], ["20"]]
    assert driver.state(number) == "done"


@pytest.mark.parametrize("settings", [{}, {"CLOUDSUITE_DELIVERY": "done"}])
def test_without_delivery_messages_a_part_is_not_told(driver_with, settings):
    driver = driver_with(**settings)
    number = driver.take_in()
    driver.go()
    gloves, driver_ = [line["line_key"] for line in driver.erp_lines(number)]
    driver.tell(number, "shipped", lines={gloves: "2"})
    driver.go()
    assert driver.effects(number) == {"patch": 2, "put": 1}
    assert driver.state(number) == "waiting"
    driver.tell(number, "shipped", lines={driver_: "3"})
    driver.go()
    assert driver.effects(number) == {"patch": 3, "put": 1}
    assert driver.state(number) == "done"


MODES = [{}, DESADV, {"CLOUDSUITE_DELIVERY": "done"}]


@pytest.mark.parametrize("settings", MODES)
def test_a_shipment_of_lines_that_are_not_the_orders_needs_a_person(driver_with, settings):
    driver = driver_with(**settings)
    number = driver.take_in()
    driver.go()
    driver.tell(number, "shipped", lines={"10": "2", "20": "3"})  # the ERP's own numbers
    driver.go()
    assert driver.state(number) == "parked"
    error = driver.order(number)["error"]
    assert "10, 20" in error
    assert "docs/erp-sql.md" in error
    assert "10, 20" in foreseen(driver, number)[1]
    assert not deliveries(driver, number)
    keys = [line["line_key"] for line in driver.erp_lines(number)]
    driver.tell(number, "shipped", lines=dict(zip(keys, ("2", "3"), strict=True)))
    replay(driver, number)
    assert driver.state(number) == "parked"
    replay(driver, number, acknowledged=True)
    assert driver.state(number) == "done"
    assert len(deliveries(driver, number)) == (settings is DESADV)


def test_lines_that_a_person_has_seen_to_do_not_stop_the_next_shipment(driver_with):
    driver = driver_with(**DESADV)
    number = driver.take_in()
    driver.go()
    gloves, driver_ = [line["line_key"] for line in driver.erp_lines(number)]
    driver.tell(number, "shipped", lines={"10": "1", gloves: "2"})
    driver.go()
    replay(driver, number, acknowledged=True)
    assert (driver.state(number), len(deliveries(driver, number))) == ("waiting", 1)
    driver.tell(number, "shipped", lines={driver_: "3"})
    driver.go()
    assert driver.state(number) == "done"
    assert [texts(message, "ItemNum") for message in deliveries(driver, number)] == [["10"], ["20"]]


@pytest.mark.parametrize("settings", MODES)
def test_nobody_waits_for_freight_whatever_its_type(driver_with, settings):
    driver = driver_with(**settings)
    number = driver.take_in(order_lines=[*goods("124_STUK"), FREIGHT | {"type": "line"}])
    driver.go()
    gloves, _ = [line["line_key"] for line in driver.erp_lines(number)]
    driver.tell(number, "shipped", lines={gloves: "2"})
    driver.go()
    assert driver.state(number) == "done"


def somebody_sends(driver: Driver, number: int, other: int) -> None:
    """Another program uses the number of the order's next delivery, for a delivery of order `other`."""
    (told,) = queries.signals_of(driver.ledger, driver.order(number)["id"], "shipped")
    message = deliveries(driver, other)[0]
    next(message.iter("DesadvNumber")).text = f"{number}-{told.source.replace(':', '-')}"
    driver.fleet.accounts["cloudsuite", "default"].client.post_delivery(ElementTree.tostring(message), shop=1, user=10)


@pytest.mark.parametrize("tried_before", [False, True])
def test_a_number_that_somebody_else_used_is_no_success(driver_with, tried_before):
    driver = driver_with(**DESADV)
    other = driver.take_in()
    finish(driver, other)
    number = stand_before(driver, "cloudsuite.shipment")
    somebody_sends(driver, number, other)
    if tried_before:  # and did certainly not arrive
        driver.shop.faults({"kinds": ["429"], "method": "POST", "times": 1})
    driver.go_on(2)
    assert driver.state(number) == "parked"
    assert "not unique" in driver.order(number)["error"]
    assert "--acknowledge" in driver.order(number)["error"]
    driver.replay(number)
    driver.go()
    assert driver.state(number) == "parked"
    replay(driver, number, acknowledged=True)
    assert driver.state(number) == "done"
    assert not [message for message in deliveries(driver, number) if texts(message, "OrderNum")[0] == "SO-2"]


def test_an_acknowledgement_before_the_shop_knows_the_number_says_nothing_of_it(driver_with):
    driver = driver_with(**DESADV)
    other = driver.take_in()
    finish(driver, other)
    number = stand_before(driver, "cloudsuite.shipment")
    somebody_sends(driver, number, other)
    driver.time_passes()
    driver.worker.sweep.run()  # its message is lost
    replay(driver, number, acknowledged=True)  # that it may be sent
    assert driver.state(number) == "parked"


def test_a_delivery_that_is_refused_after_an_unanswered_try_is_not_told(sqlite_url):
    app = cloudsuite.create_app()
    with a_driver_of(app, sqlite_url, **DESADV) as driver:
        number = stand_before(driver, "cloudsuite.shipment")
        driver.shop.faults({"kinds": ["lost_request"], "method": "POST", "times": 1})
        driver.go_on(1)
        (told,) = queries.signals_of(driver.ledger, driver.order(number)["id"], "shipped")
        name = f"{number}-{told.source.replace(':', '-')}"
        words = f"delivery {name} rejected: order SO-1 is already closed"
        answer(app, "POST", DELIVERY, lambda: Response(words, 400))
        driver.go_on(1)
        assert driver.state(number) == "parked"
        assert "already closed" in driver.order(number)["error"]


def test_the_second_delivery_is_not_taken_to_be_sent_because_the_first_was_lost(driver_with):
    driver = driver_with(**DESADV)
    other = driver.take_in()
    finish(driver, other)
    number = driver.take_in()
    driver.go()
    gloves, driver_ = [line["line_key"] for line in driver.erp_lines(number)]
    driver.tell(number, "shipped", lines={gloves: "2"})
    driver.dies_at(number)
    driver.worker.sweep.run()
    driver.go()
    assert driver.state(number) == "waiting"
    driver.tell(number, "shipped", lines={driver_: "3"})
    told = queries.signals_of(driver.ledger, driver.order(number)["id"], "shipped")[-1]
    message = deliveries(driver, other)[0]
    next(message.iter("DesadvNumber")).text = f"{number}-{told.source.replace(':', '-')}"
    driver.fleet.accounts["cloudsuite", "default"].client.post_delivery(ElementTree.tostring(message), shop=1, user=10)
    driver.go()
    assert driver.state(number) == "parked"


# === Line numbers that come late, or never ==================================================================


@pytest.mark.parametrize("settings", MODES)
@pytest.mark.parametrize("first", [0, 1])
def test_line_numbers_that_come_late_are_written(driver_with, settings, first):
    driver = driver_with(**settings)
    number = driver.take_in()
    driver.go(erp=False)
    keys = [line["line_key"] for line in driver.erp_lines(number)]
    driver.tell(number, "numbered", order_number="SO-7", lines=dict(zip(keys[:first], [10], strict=False)))
    driver.go(erp=False)
    assert driver.shop.order(number)["erp_order_number"] == "SO-7"
    assert (driver.state(number), driver.order(number)["step"]) == ("waiting", "cloudsuite.lines")
    replay(driver, number)
    assert driver.order(number)["awaits"] == "numbered|shipped"
    driver.tell(number, "numbered", order_number="SO-7", lines=dict(zip(keys, (10, 20), strict=True)))
    driver.go(erp=False)
    assert [line["erp_line_number"] for line in driver.shop.order(number)["order_lines"]] == [10, 20]
    assert driver.order(number)["awaits"] == "shipped"
    replay(driver, number, "cloudsuite.erp_order_number")
    driver.tell(number, "shipped")
    driver.go(erp=False)
    assert driver.state(number) == "done"


@pytest.mark.parametrize("settings", [{}, {"CLOUDSUITE_DELIVERY": "done"}])
@pytest.mark.parametrize("first", [0, 1])
def test_an_erp_that_never_tells_line_numbers_holds_nothing_up(driver_with, settings, first):
    driver = driver_with(**settings)
    number = driver.take_in()
    driver.go(erp=False)
    keys = [line["line_key"] for line in driver.erp_lines(number)]
    driver.tell(number, "numbered", order_number="SO-7", lines=dict(zip(keys[:first], [10], strict=False)))
    driver.go(erp=False)
    driver.tell(number, "shipped")
    driver.go(erp=False)
    assert driver.state(number) == "done"
    wanted = [10, None] if first else [None, None]
    assert [line["erp_line_number"] for line in driver.shop.order(number)["order_lines"]] == wanted


def test_a_delivery_message_needs_the_line_numbers(driver_with):
    driver = driver_with(**DESADV)
    number = driver.take_in()
    driver.go(erp=False)
    keys = [line["line_key"] for line in driver.erp_lines(number)]
    driver.tell(number, "numbered", order_number="SO-7")
    driver.tell(number, "shipped")
    driver.go(erp=False)
    assert driver.state(number) == "parked"
    assert ", ".join(keys) in driver.order(number)["error"]
    driver.tell(number, "numbered", order_number="SO-7", lines=dict(zip(keys, (10, 20), strict=True)))
    driver.go_on(1)
    assert driver.state(number) == "done"
    assert len(deliveries(driver, number)) == 1


def test_freight_needs_no_line_number(driver):
    number = driver.take_in(order_lines=[*goods("124_STUK"), FREIGHT])
    driver.go(erp=False)
    gloves, _ = [line["line_key"] for line in driver.erp_lines(number)]
    driver.tell(number, "numbered", order_number="SO-7", lines={gloves: 10})
    driver.go(erp=False)
    assert driver.order(number)["awaits"] == "shipped"


# === Cancelled in the webshop ===============================================================================


@pytest.mark.parametrize(
    ("before", "in_erp"),
    [
        ("cloudsuite.fetch", []),
        ("erp.order", ["cancelled"]),
        ("cloudsuite.state", ["cancelled"]),
        ("cloudsuite.erp_order_number", ["cancelled"]),
        ("cloudsuite.lines", ["cancelled"]),
        ("cloudsuite.shipment", ["cancelled"]),
    ],
)
@pytest.mark.parametrize("polled", [False, True])
def test_cancelled_before_a_step(driver, before, in_erp, polled):
    number = stand_before(driver, before)
    done = driver.effects(number)
    driver.shop.edit(number, state="cancel")
    if polled:
        driver.poll()
        in_erp = [] if before == "erp.order" else in_erp
    driver.go_on(2)
    driver.poll()
    driver.go_on(1)
    assert driver.state(number) == "cancelled"
    assert driver.shop.order(number)["state"] == "cancel"
    assert driver.effects(number) == done
    assert [row["stage"] for row in driver.in_erp(number)] == in_erp


@pytest.mark.parametrize("waits_for", ["numbered", "shipped"])
def test_cancelled_while_waiting_for_the_erp(driver, waits_for):
    number = driver.take_in()
    driver.go(erp=waits_for == "shipped")
    assert driver.order(number)["awaits"] == waits_for
    driver.shop.edit(number, state="cancel")
    driver.poll()
    driver.go(ships=True)
    assert driver.state(number) == "cancelled"
    assert driver.shop.order(number)["state"] == "cancel"
    assert [row["stage"] for row in driver.in_erp(number)] == ["cancelled"]
    assert ("erp.cancel", "done") in driver.attempts(number)


def test_cancelled_while_a_person_has_to_act(driver):
    number = driver.take_in(order_lines=goods("UNKNOWN-PRODUCT"))
    driver.go()
    driver.shop.edit(number, state="cancel")
    driver.poll()
    driver.go()
    assert driver.state(number) == "cancelled"
    assert [row["stage"] for row in driver.in_erp(number)] == ["cancelled"]


def test_cancelled_while_waiting_for_the_payment(driver):
    number = driver.take_in(payment_status="started")
    driver.go()
    driver.shop.edit(number, state="cancel")
    driver.go_on()
    assert driver.state(number) == "cancelled"
    assert not driver.in_erp(number)


def test_cancelled_between_our_read_and_our_write_of_the_number(driver):
    number = stand_before(driver, "cloudsuite.erp_order_number")
    driver.shop.control.backend.interpositions.add(number, "GET", {"state": "cancel"})
    driver.go_on(1)
    assert driver.state(number) == "cancelled"
    assert driver.shop.order(number)["state"] == "cancel"
    assert [row["stage"] for row in driver.in_erp(number)] == ["cancelled"]
    assert "put" not in driver.effects(number)


def test_cancelled_between_our_read_and_our_write_of_the_state(driver_with):
    # Without `strict_transitions` nobody could tell: there is no conditional update.
    driver = driver_with({"strict_transitions": True})
    number = stand_before(driver, "cloudsuite.state")
    driver.shop.control.backend.interpositions.add(number, "GET", {"state": "cancel"})
    driver.go_on(1)
    driver.poll()
    driver.go_on(1)
    assert driver.state(number) == "cancelled"
    assert driver.shop.order(number)["state"] == "cancel"
    assert [row["stage"] for row in driver.in_erp(number)] == ["cancelled"]


@pytest.mark.parametrize("polled", [False, True])
@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize("settings", [{}, DESADV])
def test_cancelled_when_goods_are_out(driver_with, settings, part, polled):
    driver = driver_with(**settings)
    number = driver.take_in()
    driver.go()
    gloves, _ = [line["line_key"] for line in driver.erp_lines(number)]
    driver.tell(number, "shipped", **({"lines": {gloves: "1"}} if part else {}))
    if part and polled:
        driver.go()  # and what is out was told
    driver.shop.edit(number, state="cancel")
    if polled:
        driver.poll()
    driver.go_on(2)
    driver.poll()
    assert driver.state(number) == "cancelled"
    assert [row["stage"] for row in driver.in_erp(number)] == ["cancelled"]
    (problem,) = problems(driver, number)
    assert "cancelled in the webshop after the ERP shipped" in problem


def test_cancelled_when_it_is_done_is_told_once(driver_on_both):
    driver = driver_on_both
    number = driver.shipped()
    driver.shop.edit(number, state="cancel")
    for _ in range(3):
        driver.poll()
        driver.go()
    assert driver.state(number) == "done"
    (problem,) = problems(driver, number)
    assert "cancelled in the webshop" in problem
    assert "done here" in problem


# === What people at the shop did is not overwritten =========================================================


@pytest.mark.parametrize("step", ["cloudsuite.erp_order_number", "cloudsuite.lines"])
def test_somebody_elses_erp_number_stays(driver, step):
    number = stand_before(driver, step)
    driver.shop.edit(number, erp_order_number="OTHER-1")
    driver.go_on()
    assert driver.state(number) == "parked"
    assert driver.shop.order(number)["erp_order_number"] == "OTHER-1"
    error = driver.order(number)["error"]
    assert "OTHER-1" in error
    assert "SO-1" in error


def test_a_state_that_was_moved_on_stays(driver):
    number = stand_before(driver, "cloudsuite.state")
    driver.shop.edit(number, state="done")
    finish(driver, number)
    driver.go_on()
    assert driver.shop.order(number)["state"] == "done"
    assert ("cloudsuite.state", "skipped") in driver.attempts(number)
    assert driver.state(number) == "done"


def test_an_order_that_somebody_else_processes_is_not_put_into_the_erp(driver):
    number = stand_before(driver, "cloudsuite.fetch")
    driver.shop.edit(number, state="processing")
    driver.go_on()
    assert driver.state(number) == "ignored"
    assert not driver.in_erp(number)


@pytest.mark.parametrize("state", ["draft", "quotation"])
@pytest.mark.parametrize("step", ["cloudsuite.fetch", "cloudsuite.state"])
def test_an_order_that_went_back_needs_a_person(driver, step, state):
    number = stand_before(driver, step)
    driver.shop.edit(number, state=state)
    driver.go_on(1)
    assert driver.state(number) == "parked"
    assert state in driver.order(number)["error"]
    assert not driver.effects(number)


@pytest.mark.parametrize("retried", [False, True])
def test_an_edit_that_comes_before_the_erp_takes_the_order_reaches_the_erp(driver_on_both, retried):
    driver = driver_on_both
    number = stand_before(driver, "erp.order")
    if retried:
        row = driver.order(number)
        claim = records.claim(driver.ledger, row["id"], row["position"], row["step"], "w1")
        assert claim is not None
        records.postpone(driver.ledger, claim, "the ERP is down", 600.0, None)
    driver.shop.edit(number, order_lines=with_quantity(driver, number, 9.0))
    driver.poll()
    finish(driver, number)
    assert [Decimal(str(line["quantity"])) for line in driver.erp_lines(number)] == [9, 9]
    assert driver.state(number) == "done"


def test_a_payment_that_is_cancelled_before_the_erp_takes_the_order_stops_it(driver):
    number = stand_before(driver, "erp.order")
    driver.shop.edit(number, payment_status="closed_canceled")
    driver.poll()
    driver.go_on(1)
    assert driver.state(number) == "parked"
    assert "closed_canceled" in driver.order(number)["error"]
    assert not driver.in_erp(number)


def edited(document: dict[str, Any], what: str) -> dict[str, Any]:
    """A person's edit in the shop."""
    first, second = ({"id": line["id"]} for line in document["order_lines"])
    if what == "quantity":
        return {"order_lines": [{**first, "quantity": 9.0}, second]}
    if what == "new":
        return {"order_lines": [first, second, *goods("124_STUK")]}
    if what == "gone":
        return {"order_lines": [first]}
    return {"description": "Ring twice"}


EDITS = [
    ("quantity", "quantity was 2.0 and is 9.0"),
    ("new", "is new"),
    ("gone", "is gone"),
    ("description", "the notes"),
]


@pytest.mark.parametrize("step", ["cloudsuite.state", "cloudsuite.lines"])
@pytest.mark.parametrize(("what", "words"), EDITS)
def test_what_is_edited_after_the_erp_took_it_stays_and_is_told(driver, step, what, words):
    number = stand_before(driver, step)
    driver.shop.edit(number, **edited(driver.shop.order(number), what))
    before = driver.shop.order(number)
    effects = driver.effects(number)
    driver.go_on(1)
    assert driver.state(number) == "parked"
    error = driver.order(number)["error"]
    assert "changed in the webshop since the ERP took it" in error
    assert words in error
    assert "--from cloudsuite.fetch" in error
    assert (driver.shop.order(number), driver.effects(number)) == (before, effects)


def test_what_the_next_step_sees_for_itself_is_no_news(driver):
    number = stand_before(driver, "cloudsuite.state")
    driver.shop.edit(number, description="Ring twice")
    driver.poll()
    assert problems(driver, number) == []
    driver.go_on(1)
    assert driver.state(number) == "parked"


def test_an_edit_after_a_put_that_nobody_recorded_is_told(driver):
    number = stand_before(driver, "cloudsuite.lines")
    driver.dies_at(number)
    driver.shop.edit(number, order_lines=with_quantity(driver, number, 9.0))
    driver.worker.sweep.run()
    driver.go()
    assert driver.state(number) == "parked"
    assert "quantity was 2.0 and is 9.0" in driver.order(number)["error"]


def test_an_edit_that_is_taken_back_in_the_shop_lets_the_order_go_on(driver):
    number = stand_before(driver, "cloudsuite.lines")
    driver.shop.edit(number, description="Ring twice")
    driver.go_on(1)
    driver.shop.edit(number, description=None)
    replay(driver, number)
    assert driver.order(number)["awaits"] == "shipped"


@pytest.mark.parametrize("settings", [{}, DESADV])
@pytest.mark.parametrize("what", ["quantity", "new", "gone", "description"])
@pytest.mark.parametrize("step", ["cloudsuite.state", "cloudsuite.lines"])
def test_the_way_out_after_an_edit(driver_with, settings, what, step):
    driver = driver_with(**settings)
    number = stand_before(driver, step)
    driver.shop.edit(number, **edited(driver.shop.order(number), what))
    driver.go_on(1)
    replay(driver, number, "cloudsuite.fetch")
    assert (driver.state(number), driver.order(number)["step"]) == ("parked", "erp.order")
    replay(driver, number, acknowledged=True)  # a person has changed the ERP's order by hand
    if what == "new":
        assert driver.order(number)["awaits"] == "numbered|shipped"
        keys = [str(line["id"]) for line in driver.shop.order(number)["order_lines"]]
        driver.tell(number, "numbered", order_number="SO-1", lines=dict(zip(keys, (10, 20, 30), strict=True)))
        driver.go()
    driver.tell(number, "shipped")
    driver.go()
    assert driver.state(number) == "done"
    order = driver.shop.order(number)
    assert (order["state"], order["shipment_state"]) == ("processing", "sent")
    wanted = {"new": [10, 20, 30], "gone": [10]}.get(what, [10, 20])
    assert [line["erp_line_number"] for line in order["order_lines"]] == wanted


@pytest.mark.parametrize("settings", [{}, DESADV])
def test_an_edit_before_the_shipment_holds_nothing_up_and_is_told_once(driver_with, settings):
    driver = driver_with(**settings)
    number = driver.take_in()
    driver.go()
    driver.shop.edit(number, order_lines=with_quantity(driver, number, 9.0))
    gloves, _ = [line["line_key"] for line in driver.erp_lines(number)]
    driver.tell(number, "shipped", lines={gloves: "2"})
    driver.go()
    driver.tell(number, "shipped")
    driver.go()
    assert driver.state(number) == "done"
    (problem,) = problems(driver, number)
    assert "quantity was 2.0 and is 9.0" in problem


def forgetful_shop() -> Flask:
    """Every line that is put gets a new id (contract 7)."""
    app = cloudsuite.create_app()
    remembering = app.wsgi_app

    def forgetful(environ: Any, start_response: Any) -> Any:
        if environ["REQUEST_METHOD"] == "PUT":
            body = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
            for line in body["order_lines"]:
                del line["id"]
            raw = json.dumps(body).encode()
            environ = {**environ, "wsgi.input": BytesIO(raw), "CONTENT_LENGTH": str(len(raw))}
        return remembering(environ, start_response)

    app.wsgi_app = forgetful  # type: ignore[method-assign]  # Flask's own way to put something around an application
    return app


def test_new_line_ids_by_our_own_put_are_no_change(sqlite_url):
    with a_driver_of(forgetful_shop(), sqlite_url, **DESADV) as driver:
        number = stand_before(driver, "cloudsuite.lines")
        keys = {line["line_key"] for line in driver.erp_lines(number)}
        driver.dies_at(number)
        assert not keys & {str(line["id"]) for line in driver.shop.order(number)["order_lines"]}
        driver.worker.sweep.run()
        driver.go()
        replay(driver, number, "cloudsuite.fetch")
        driver.tell(number, "shipped", lines=dict.fromkeys(keys, "3"))
        driver.go()
        assert driver.state(number) == "done"
        assert driver.effects(number) == {"patch": 2, "put": 1, "desadv": 1}


def test_the_way_out_when_our_put_has_given_new_line_ids(sqlite_url):
    with a_driver_of(forgetful_shop(), sqlite_url, **DESADV) as driver:
        number = stand_before(driver, "cloudsuite.lines")
        keys = [line["line_key"] for line in driver.erp_lines(number)]
        driver.dies_at(number)
        driver.shop.edit(number, order_lines=with_quantity(driver, number, 9.0))
        driver.worker.sweep.run()
        driver.go()
        replay(driver, number, "cloudsuite.fetch")
        replay(driver, number, acknowledged=True)
        driver.tell(number, "shipped", lines=dict.fromkeys(keys, "9"))  # the ERP knows the lines by their first ids
        driver.go()
        assert driver.state(number) == "done"
        (message,) = deliveries(driver, number)
        assert texts(message, "ItemNum") == ["10", "20"]


def test_somebody_elses_line_number_stays(driver):
    number = stand_before(driver, "cloudsuite.lines")
    first, second = driver.shop.order(number)["order_lines"]
    driver.shop.edit(number, order_lines=[{"id": first["id"], "erp_line_number": 99}, {"id": second["id"]}])
    driver.go_on(1)
    assert driver.state(number) == "parked"
    assert [line["erp_line_number"] for line in driver.shop.order(number)["order_lines"]] == [99, None]


def test_an_edit_just_after_our_put_is_noticed(driver):
    number = stand_before(driver, "cloudsuite.lines")
    driver.shop.control.backend.interpositions.add(number, "PUT", {"state": "done"})
    driver.go_on(1)
    assert driver.state(number) == "parked"
    assert "state was processing and is done" in driver.order(number)["error"]
    assert driver.shop.order(number)["state"] == "done"


# === The ERP refuses, or cancels ============================================================================


def test_the_erps_refusal_is_shown_in_its_words(driver):
    number = driver.take_in(order_lines=goods("UNKNOWN-PRODUCT"))
    driver.go()
    row = driver.order(number)
    assert (row["state"], row["step"]) == ("parked", "erp.order")
    assert row["error"] == "the ERP refuses the order: Unknown product UNKNOWN-PRODUCT"


def test_corrected_in_the_erp_and_replayed(driver):
    number = driver.take_in(order_lines=goods("UNKNOWN-PRODUCT"))
    driver.go()
    driver.erp.close()
    driver.erp = SandboxErp(str(driver.ledger.engine.url), refuse_products=())
    driver.replay(number)
    finish(driver, number)
    assert driver.state(number) == "done"
    assert len(driver.in_erp(number)) == 1
    assert driver.shop.effects(number)["state:confirmed->processing"] == 1


def test_corrected_in_the_shop_and_replayed_from_the_start(driver):
    number = driver.take_in(order_lines=goods("UNKNOWN-PRODUCT", "124_STUK"))
    driver.go()
    first, second = driver.shop.order(number)["order_lines"]
    driver.shop.edit(number, order_lines=[{"id": first["id"], **goods("160_STUK")[0]}, {"id": second["id"]}])
    driver.replay(number, position=0)
    finish(driver, number)
    assert driver.state(number) == "done"
    assert len(driver.in_erp(number)) == 1
    assert [line["product"] for line in driver.erp_lines(number)] == ["160_STUK", "124_STUK"]
    assert driver.effects(number) == {"patch": 3, "put": 1}


@pytest.mark.parametrize("waits_for", ["numbered", "shipped"])
def test_a_cancellation_in_the_erp_travels_to_the_shop(driver, waits_for):
    number = driver.take_in()
    driver.go(erp=waits_for == "shipped")
    assert driver.order(number)["awaits"] == waits_for
    driver.tell(number, "cancelled")
    driver.go()
    assert driver.state(number) == "cancelled"
    assert driver.shop.order(number)["state"] == "cancel"
    assert driver.effects(number)["patch"] == (3 if waits_for == "shipped" else 2)
    driver.poll()  # our own cancellation comes back
    driver.go()
    assert driver.attempts(number)[-1] == ("cloudsuite.cancel", "done")


def test_goods_that_are_out_are_not_cancelled_in_the_shop(driver):
    number = driver.take_in()
    driver.go()
    driver.shop.edit(number, shipment_state="sent")
    driver.tell(number, "cancelled")
    driver.go()
    assert driver.state(number) == "parked"
    error = driver.order(number)["error"]
    assert "sent" in error
    assert "--acknowledge" in error
    effect, text = foreseen(driver, number)
    assert effect is Effect.IRREVERSIBLE
    assert "sent" in text
    driver.replay(number)
    driver.go()
    assert driver.state(number) == "parked"
    replay(driver, number, acknowledged=True)
    assert driver.state(number) == "cancelled"
    assert "sent" in driver.order(number)["facts"]["flags"][0]
    assert driver.shop.order(number)["state"] == "processing"


@pytest.mark.parametrize("state", ["draft", "quotation"])
def test_the_preview_says_that_an_order_that_went_back_would_stop(driver, state):
    number = stand_before(driver, "cloudsuite.state")
    driver.shop.edit(number, state=state)
    driver.go_on(1)
    assert "would stop" in foreseen(driver, number)[1]


@pytest.mark.parametrize("step", ["cloudsuite.state", "cloudsuite.lines"])
def test_the_preview_says_that_an_edited_order_would_stop(driver, step):
    number = stand_before(driver, step)
    driver.shop.edit(number, description="Ring twice")
    driver.go_on(1)
    assert "would stop: changed in the webshop" in foreseen(driver, number)[1]


# === Killed, and unanswered =================================================================================


@pytest.mark.parametrize(("step", "settings"), WRITES)
def test_killed_between_effect_and_record(driver_with, step, settings):
    driver = driver_with(**settings)
    plain = driver.take_in()
    finish(driver, plain)
    number = stand_before(driver, step)
    driver.dies_at(number)
    driver.worker.sweep.run()
    assert driver.state(number) == "ready"
    driver.go()
    if step != "cloudsuite.shipment":
        driver.tell(number, "shipped")
        driver.go()
    assert driver.state(number) == "done"
    assert (step, "lost") in driver.attempts(number)
    assert driver.shop.effects(number) == driver.shop.effects(plain)
    assert len(driver.in_erp(number)) == 1


def test_killed_while_cancelling(driver):
    numbers = [driver.take_in() for _ in range(2)]
    driver.go()
    in_shop, in_erp = numbers
    driver.tell(in_shop, "cancelled")
    driver.shop.edit(in_erp, state="cancel")
    driver.poll()
    driver.go(hold=["cloudsuite.cancel", "erp.cancel"])
    for number in numbers:
        driver.dies_at(number)
    driver.worker.sweep.run()
    driver.go()
    assert [driver.state(number) for number in numbers] == ["cancelled", "cancelled"]
    assert driver.shop.effects(in_shop)["state:processing->cancel"] == 1
    assert driver.effects(in_shop) == {"patch": 3, "put": 1}
    assert [row["stage"] for row in driver.in_erp(in_erp)] == ["cancelled"]


FAULTS = ("lost_answer", "500_after", "lost_request", "500_before", "html_502", "429")


@pytest.mark.parametrize(("step", "settings"), WRITES)
def test_unanswered(driver_with, step, settings):
    driver = driver_with(**settings)
    plain = driver.take_in()
    finish(driver, plain)
    method = {"cloudsuite.lines": "PUT"}.get(step, "POST" if settings is DESADV else "PATCH")
    for number, kind in enumerate(FAULTS, 1):
        order = stand_before(driver, step)
        driver.shop.faults({"kinds": [kind], "method": method, "times": 1})
        driver.go_on(3)
        if step != "cloudsuite.shipment":
            driver.tell(order, "shipped")
            driver.go()
        assert driver.state(order) == "done", kind
        assert driver.shop.effects(order) == driver.shop.effects(plain), kind
        assert sum(driver.shop.control.faults.injected().values()) == number


def test_a_delivery_sent_again_is_the_same_to_the_byte(sqlite_url):
    shop = Listener()
    with a_driver_of(shop.app, sqlite_url, **DESADV) as driver:
        number = stand_before(driver, "cloudsuite.shipment")
        driver.dies_at(number)
        driver.worker.sweep.run()
        driver.go()
        assert driver.state(number) == "done"
        assert driver.effects(number)["desadv"] == 1
    first, second = shop.bodies("POST", DELIVERY)
    assert first == second


def test_reading_may_fail_as_well(driver):
    number = driver.take_in()
    driver.shop.faults({"kinds": ["lost_answer", "500_before", "html_502", "429"], "method": "GET", "rate": 0.5})
    driver.go_on(12)
    driver.shop.faults()
    driver.go_on(3)
    driver.tell(number, "shipped")
    driver.go()
    assert driver.state(number) == "done"
    assert driver.effects(number) == {"patch": 3, "put": 1}
    assert len(driver.in_erp(number)) == 1
