"""What a partner may send: every rule of the contract's section 5 with its error type, and what a request means."""

import copy
import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from orders.inbound import Listed
from orders.model import Address, Customer, Line
from orders.states import State
from schemas import partner as schema
from schemas import partner_answers as answers
from schemas.partner import Item, Wish
from schemas.partner_fields import Problem, Wrong

PAYLOADS = Path(__file__).resolve().parents[2] / "payloads" / "partner"
TODAY = date(2024, 2, 14)
ZONE = ZoneInfo("Asia/Nicosia")
NOON = datetime(2024, 2, 14, 12, tzinfo=ZONE)
STORES = {"st-1": "Store One", "st-2": "Store Two"}
ITEMS = {501: "Wardrobe", 502: "Bed"}

Json = dict[str, Any]


def payload(name: str) -> Json:
    loaded: Json = json.loads((PAYLOADS / f"{name}.json").read_text())
    return loaded


def changed(path: str, value: Any) -> Json:
    """The sample order with one value changed, or gone if it is `...`. `path`: its keys, with dots between."""
    document = payload("order")
    *above, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    there: Any = document
    for part in above:
        there = there[part]
    if value is ...:
        del there[last]
    else:
        there[last] = value
    return document


def problems(document: Any, key: str | None = None) -> list[tuple[str, str]]:
    """(field, type) of everything that is wrong, as it is told."""
    try:
        schema.read_order(document, TODAY, key)
    except Wrong as wrong:
        return [(problem.field, problem.type) for problem in wrong.problems]
    return []


ITEM = {"id": 501, "count": 1, "delivery": True}
WISH = {"date": "2024-02-14", "timeslot": "1217"}

RULES: list[tuple[str, Any, str, str]] = [
    # what is changed, to what; the field that is told, and the type
    ("customer", ..., "customer", "required"),
    ("customer", None, "customer", "required"),
    ("customer", "Ann", "customer", "object"),
    ("customer", [], "customer", "object"),
    ("customer.phone_number", ..., "customer.phone_number", "required"),
    ("customer.phone_number", None, "customer.phone_number", "required"),
    ("customer.phone_number", 35799000001, "customer.phone_number", "string"),
    ("customer.phone_number", "", "customer.phone_number", "stringPattern"),
    ("customer.phone_number", "123456", "customer.phone_number", "stringPattern"),
    ("customer.phone_number", "1234567890123456", "customer.phone_number", "stringPattern"),
    ("customer.phone_number", "+357.99.000.001", "customer.phone_number", "stringPattern"),
    ("customer.phone_number", "99000001\n", "customer.phone_number", "stringPattern"),
    ("customer.phone_number", "++35799000001", "customer.phone_number", "stringPattern"),
    ("customer.phone_number", "\u0663" * 8, "customer.phone_number", "stringPattern"),
    ("customer.first_name", ..., "customer.first_name", "required"),
    ("customer.first_name", 1, "customer.first_name", "string"),
    ("customer.first_name", "", "customer.first_name", "stringEmpty"),
    ("customer.first_name", " \t ", "customer.first_name", "stringEmpty"),
    ("customer.first_name", "x" * 101, "customer.first_name", "stringMax"),
    ("customer.last_name", ..., "customer.last_name", "required"),
    ("customer.last_name", True, "customer.last_name", "string"),
    ("customer.last_name", " ", "customer.last_name", "stringEmpty"),
    ("customer.last_name", "x" * 101, "customer.last_name", "stringMax"),
    ("payment_method", ..., "payment_method", "required"),
    ("payment_method", None, "payment_method", "required"),
    ("payment_method", "Cash", "payment_method", "enumValue"),
    ("payment_method", 1, "payment_method", "enumValue"),
    ("datetime", ..., "datetime", "required"),
    ("datetime", None, "datetime", "required"),
    ("datetime", "2024-02-14", "datetime", "array"),
    ("datetime", [], "datetime", "arrayMin"),
    ("datetime", [WISH] * 11, "datetime", "arrayMax"),
    ("datetime", [None], "datetime[0]", "object"),
    ("datetime", [WISH, "2024-02-14"], "datetime[1]", "object"),
    ("datetime.1.date", ..., "datetime[1].date", "required"),
    ("datetime.1.date", None, "datetime[1].date", "required"),
    ("datetime.1.date", 20240214, "datetime[1].date", "date"),
    ("datetime.1.date", "14.02.2024", "datetime[1].date", "date"),
    ("datetime.1.date", "20240214", "datetime[1].date", "date"),
    ("datetime.1.date", "2024-W07-3", "datetime[1].date", "date"),
    ("datetime.1.date", "2023-02-29", "datetime[1].date", "date"),
    ("datetime.1.date", "2024-02-14\n", "datetime[1].date", "date"),
    ("datetime.1.date", "2024-02-14T12:00:00Z", "datetime[1].date", "date"),
    ("datetime.1.date", "2024-02-13", "datetime[1].date", "dateRange"),
    ("datetime.1.date", "2024-03-16", "datetime[1].date", "dateRange"),
    ("datetime.1.date", "9999-12-31", "datetime[1].date", "dateRange"),
    ("datetime.0.timeslot", ..., "datetime[0].timeslot", "required"),
    ("datetime.0.timeslot", None, "datetime[0].timeslot", "required"),
    ("datetime.0.timeslot", "0812", "datetime[0].timeslot", "enumValue"),
    ("datetime.0.timeslot", 1217, "datetime[0].timeslot", "enumValue"),
    ("address", ..., "address", "required"),
    ("address", None, "address", "required"),
    ("address", "1 Sample Street", "address", "object"),
    ("address.address", ..., "address.address", "required"),
    ("address.address", 1, "address.address", "string"),
    ("address.address", "", "address.address", "stringEmpty"),
    ("address.address", "x" * 501, "address.address", "stringMax"),
    ("address.zip", ..., "address.zip", "required"),
    ("address.zip", 403, "address.zip", "string"),
    ("address.zip", "", "address.zip", "stringEmpty"),
    ("address.zip", "0" * 21, "address.zip", "stringMax"),
    ("address.details", ..., "address.details", "required"),
    ("address.details", None, "address.details", "required"),
    ("address.details", [], "address.details", "string"),
    ("address.details", "x" * 2001, "address.details", "stringMax"),
    ("address.coordinates", ..., "address.coordinates", "required"),
    ("address.coordinates", "34.7,33.0", "address.coordinates", "object"),
    ("address.coordinates", {"lat": 0, "lon": 0.0}, "address.coordinates.lat", "number"),
    ("address.coordinates.lat", ..., "address.coordinates.lat", "required"),
    ("address.coordinates.lat", None, "address.coordinates.lat", "required"),
    ("address.coordinates.lat", "34.7", "address.coordinates.lat", "number"),
    ("address.coordinates.lat", True, "address.coordinates.lat", "number"),
    ("address.coordinates.lat", -90.01, "address.coordinates.lat", "numberMin"),
    ("address.coordinates.lat", 90.01, "address.coordinates.lat", "numberMax"),
    ("address.coordinates.lon", ..., "address.coordinates.lon", "required"),
    ("address.coordinates.lon", False, "address.coordinates.lon", "number"),
    ("address.coordinates.lon", -181, "address.coordinates.lon", "numberMin"),
    ("address.coordinates.lon", 10**400, "address.coordinates.lon", "numberMax"),
    ("image_uuids", ..., "image_uuids", "required"),
    ("image_uuids", None, "image_uuids", "required"),
    ("image_uuids", "65c25a2bb95cb9c9f8561dbf", "image_uuids", "array"),
    ("image_uuids", {}, "image_uuids", "array"),
    ("image_uuids", [], "image_uuids", "arrayMin"),
    ("image_uuids", [f"{number}" for number in range(11)], "image_uuids", "arrayMax"),
    ("image_uuids", ["a", "b", "a"], "image_uuids", "arrayUnique"),
    ("image_uuids", ["a", 1], "image_uuids[1]", "string"),
    ("image_uuids", [None], "image_uuids[0]", "string"),
    ("partner_details", ..., "partner_details", "required"),
    ("partner_details", [], "partner_details", "object"),
    ("partner_details.store_id", ..., "partner_details.store_id", "required"),
    ("partner_details.store_id", 1, "partner_details.store_id", "string"),
    ("partner_details.instock", ..., "partner_details.instock", "required"),
    ("partner_details.instock", None, "partner_details.instock", "required"),
    ("partner_details.instock", "true", "partner_details.instock", "boolean"),
    ("partner_details.instock", 1, "partner_details.instock", "boolean"),
    ("partner_details.delivery_type", None, "partner_details.delivery_type", "enumValue"),
    ("partner_details.delivery_type", "to_roof", "partner_details.delivery_type", "enumValue"),
    ("partner_details.delivery_type", 1, "partner_details.delivery_type", "enumValue"),
    ("partner_details.items", ..., "partner_details.items", "required"),
    ("partner_details.items", ITEM, "partner_details.items", "array"),
    ("partner_details.items", [], "partner_details.items", "arrayMin"),
    ("partner_details.items", [ITEM] * 201, "partner_details.items", "arrayMax"),
    ("partner_details.items", [ITEM, 501], "partner_details.items[1]", "object"),
    ("partner_details.items.0.id", ..., "partner_details.items[0].id", "required"),
    ("partner_details.items.0.id", None, "partner_details.items[0].id", "required"),
    ("partner_details.items.0.id", "wardrobe", "partner_details.items[0].id", "number"),
    ("partner_details.items.0.id", "-1", "partner_details.items[0].id", "number"),
    ("partner_details.items.0.id", "\u0665\u0660\u0661", "partner_details.items[0].id", "number"),
    ("partner_details.items.0.id", "9" * 5000, "partner_details.items[0].id", "number"),
    ("partner_details.items.0.id", 501.5, "partner_details.items[0].id", "number"),
    ("partner_details.items.0.id", True, "partner_details.items[0].id", "number"),
    ("partner_details.items.0.count", ..., "partner_details.items[0].count", "required"),
    ("partner_details.items.0.count", "2", "partner_details.items[0].count", "number"),
    ("partner_details.items.0.count", 1.5, "partner_details.items[0].count", "number"),
    ("partner_details.items.0.count", float("inf"), "partner_details.items[0].count", "number"),
    ("partner_details.items.0.count", 0, "partner_details.items[0].count", "numberMin"),
    ("partner_details.items.0.count", 1000, "partner_details.items[0].count", "numberMax"),
    ("partner_details.items.0.delivery", None, "partner_details.items[0].delivery", "boolean"),
    ("partner_details.items.0.delivery", "yes", "partner_details.items[0].delivery", "boolean"),
    ("partner_details.items.0.assembly", 0, "partner_details.items[0].assembly", "boolean"),
    ("partner_details.items", [{"id": 501, "count": 1}], "partner_details.items", "noService"),
]


def test_the_samples_are_right():
    assert problems(payload("order")) == []
    assert problems(payload("order_at_store")) == []


@pytest.mark.parametrize(
    ("path", "value", "field", "type_"), RULES, ids=[f"{r[0]}-{r[3]}-{n}" for n, r in enumerate(RULES)]
)
def test_a_rule(path: str, value: Any, field: str, type_: str):
    assert problems(changed(path, value)) == [(field, type_)]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("customer.phone_number", "1234567"),
        ("customer.phone_number", "123456789012345"),
        ("customer.first_name", "x" * 100),
        ("customer.first_name", " " + "x" * 100 + " "),
        ("payment_method", "stripe"),
        ("datetime", [WISH] * 10),
        ("datetime.1.date", "2024-03-15"),
        ("address.address", "x" * 500),
        ("address.zip", "0" * 20),
        ("address.details", ""),
        ("address.details", "x" * 2000),
        ("address.coordinates", {"lat": 0, "lon": 33}),
        ("address.coordinates", {"lat": -90, "lon": 180}),
        ("image_uuids", [f"{number}" for number in range(10)]),
        ("partner_details.items", [ITEM] * 200),
        ("partner_details.items.0.count", 999),
        ("partner_details.items.0.count", 2.0),
        ("partner_details.items.0.delivery", ...),
    ],
)
def test_just_right(path: str, value: Any):
    assert problems(changed(path, value)) == []


@pytest.mark.parametrize("body", [None, [], "order", 1, True])
def test_a_body_that_is_no_object(body: Any):
    assert problems(body) == [("body", "object")]


def test_all_problems_are_told_together_sorted_by_field_then_type():
    document = payload("order")
    document["customer"]["phone_number"] = "1"
    document["datetime"] = [{"date": "2024-02-01", "timeslot": 712}] * 11
    document["image_uuids"] = ["a", "a", 1, *"bcdefghi"]
    document["partner_details"]["items"] = [{"id": "x", "count": 0}, {"id": 501, "count": 1000, "delivery": False}]
    del document["address"]
    found = problems(document, key="k" * 256)
    assert found == sorted(found)
    assert set(found) >= {
        ("Idempotency-Key", "stringMax"),
        ("customer.phone_number", "stringPattern"),
        ("datetime", "arrayMax"),
        ("datetime[0].date", "dateRange"),
        ("datetime[10].date", "dateRange"),
        ("datetime[0].timeslot", "enumValue"),
        ("image_uuids", "arrayMax"),
        ("image_uuids", "arrayUnique"),
        ("image_uuids[2]", "string"),
        ("partner_details.items", "noService"),
        ("partner_details.items[0].count", "numberMin"),
        ("partner_details.items[0].id", "number"),
        ("partner_details.items[1].count", "numberMax"),
    }


def test_a_missing_address_is_told_with_the_rest():
    document = changed("address", ...)
    document["partner_details"]["items"][0]["count"] = 0
    assert problems(document) == [("address", "required"), ("partner_details.items[0].count", "numberMin")]


def test_flags_that_cannot_be_read_are_not_judged_twice():
    document = changed("partner_details.items", [{"id": 501, "count": 1, "delivery": "yes"}])
    assert problems(document) == [("partner_details.items[0].delivery", "boolean")]


@pytest.mark.parametrize(
    ("key", "type_"), [("", "stringEmpty"), ("k" * 256, "stringMax"), ("a\tb", "stringPattern"), ("k" * 255, None)]
)
def test_the_idempotency_key(key: str, type_: str | None):
    assert problems(payload("order"), key) == ([] if type_ is None else [("Idempotency-Key", type_)])


def test_a_problem_in_the_contracts_words():
    told = Problem("customer.phone_number", "required").to_json()
    assert told == {
        "type": "required",
        "field": "customer.phone_number",
        "message": "customer.phone_number is required",
    }


# -- traps ------------------------------------------------------------------------------------------------------------


def test_trap_04_a_timeslot_is_a_text():
    assert problems(changed("datetime.0.timeslot", 712)) == [("datetime[0].timeslot", "enumValue")]
    assert problems(changed("datetime.0.timeslot", "712")) == [("datetime[0].timeslot", "enumValue")]
    assert problems(changed("datetime.0.timeslot", "0712")) == []


def test_trap_05_one_wish_need_not_be_in_an_array():
    single = schema.read_order(changed("datetime", WISH), TODAY)
    assert single.wishes == schema.read_order(changed("datetime", [WISH]), TODAY).wishes
    assert problems(changed("datetime", {"date": "2024-02-13", "timeslot": 712})) == [
        ("datetime[0].date", "dateRange"),
        ("datetime[0].timeslot", "enumValue"),
    ]


def test_trap_06_what_has_a_default_may_be_absent():
    request = schema.read_order(payload("order_at_store"), TODAY)
    assert request.delivery_type == "to_pavement"
    assert request.items == (Item(502, 1, delivery=False, assembly=True),)
    assert request.place is None


# -- what it means ----------------------------------------------------------------------------------------------------


def read(document: Json) -> schema.OrderRequest:
    return schema.read_order(document, TODAY)


def test_a_request_in_our_words():
    request = read(payload("order"))
    order = schema.to_order(
        request, request.wishes[1], title="Store One #0", partner="acme", stores=STORES, items=ITEMS, zone=ZONE
    )
    assert order.reference == "Store One #0"
    assert order.customer == Customer(name="Ann Test", phone="+35799000001")
    assert order.ship_to == Address(name="Ann Test", street="1 Sample Street", postal_code="0403")
    assert order.lines == (
        Line("1", 1, "501", Decimal(2), "Wardrobe (delivery and assembly)"),
        Line("2", 2, "502", Decimal(1), "Bed (assembly)"),
        Line("3", 3, "501", Decimal(1), "Wardrobe (delivery)"),
    )
    assert order.requested_at == datetime(2024, 2, 15, 5, tzinfo=UTC)
    assert (order.currency, order.total) == (None, None)
    assert order.notes == (
        "Partner: acme, Store One (st-1)\n"
        "Payment: cash; in stock\n"
        "Delivery: to_door_by_lift\n"
        "Wanted: 2024-02-15 07:00-12:00; else 2024-02-14 12:00-17:00\n"
        "At: 34.70187, 33.04853\n"
        "Address details: ref A-1001, 2nd floor"
    )


def test_work_at_the_store_has_no_address():
    request = read(payload("order_at_store"))
    order = schema.to_order(
        request, request.wishes[0], title="Store Two #1", partner="acme", stores=STORES, items=ITEMS, zone=ZONE
    )
    assert order.ship_to == Address(name="Ben Test")
    assert order.notes == (
        "Partner: acme, Store Two (st-2)\nPayment: stripe; not in stock yet\nWanted: 2024-02-20 17:00-21:00"
    )


def test_characters_that_databases_do_not_take():
    document = payload("order")
    document["customer"]["first_name"] = "A\0nn\ud800"
    document["address"]["details"] = "\udfff\0"
    request = read(document)
    order = schema.to_order(
        request, request.wishes[0], title="t", partner="acme", stores=STORES, items=ITEMS, zone=ZONE
    )
    assert order.customer.name == "Ann? Test"
    for text in (order.customer.name, order.notes, schema.search_text(request)):
        assert text is not None
        assert "\0" not in text.encode().decode()


def test_what_an_order_is_found_by():
    assert schema.search_text(read(payload("order"))) == "ann test\n35799000001\nref a-1001, 2nd floor"


def changes(document: Json, change: Callable[[Json], None]) -> Json:
    other = copy.deepcopy(document)
    change(other)
    return other


def test_the_digests_that_know_a_request_again():
    document = payload("order")
    base = schema.prints(document, read(document))

    def digests(change: Callable[[Json], None]) -> tuple[bool, bool, bool]:
        other = changes(document, change)
        found = schema.prints(other, read(other))
        return found.same == base.same, found.content == base.content, found.likeness == base.likeness

    assert digests(lambda d: d.update(dict(reversed(d.items())))) == (True, True, True)
    assert digests(lambda d: d.update(image_uuids=["other"])) == (False, True, True)
    assert digests(lambda d: d["customer"].update(first_name="Bea")) == (False, True, False)
    assert digests(lambda d: d["customer"].update(phone_number="+35799000001")) == (False, True, True)
    assert digests(lambda d: d["customer"].update(phone_number="+35799000002")) == (False, False, False)
    assert digests(lambda d: d["partner_details"].update(store_id="st-2")) == (False, False, False)
    assert digests(lambda d: d["datetime"].pop()) == (False, False, False)
    assert digests(lambda d: d["partner_details"]["items"].pop()) == (False, False, False)


def test_references_are_told_together():
    document = payload("order")
    document["partner_details"]["items"][1]["id"] = "999"
    request = read(document)
    with pytest.raises(Wrong) as caught:
        schema.check_references(request, stores={"st-9"}, items=ITEMS, images=set())
    assert caught.value.problems == [
        Problem("image_uuids[0]", "notFound"),
        Problem("partner_details.items[1].id", "notFound"),
        Problem("partner_details.store_id", "notFound"),
    ]
    schema.check_references(request, stores=STORES, items={501, 999}, images=set(request.images))


# -- slots ------------------------------------------------------------------------------------------------------------


def test_the_calendar_is_sorted_and_has_31_days():
    days = schema.calendar(NOON, frozenset([date(2024, 2, 15)]))
    assert list(days) == sorted(days)
    assert (min(days), max(days), len(days)) == ("2024-02-14", "2024-03-15", 31)
    assert days["2024-02-14"] == {"0712": False, "1217": True, "1721": True}
    assert days["2024-02-15"] == {"0712": False, "1217": False, "1721": False}
    assert list(days["2024-02-16"].items()) == [("0712", True), ("1217", True), ("1721", True)]


def test_the_first_free_wish_wins():
    request = read(payload("order"))
    assert schema.first_free(request, NOON, frozenset()) == Wish(date(2024, 2, 14), "1217")
    assert schema.first_free(request, NOON + timedelta(hours=5), frozenset()) == Wish(date(2024, 2, 15), "0712")
    assert schema.first_free(request, NOON + timedelta(days=1), frozenset()) is None
    assert schema.first_free(request, NOON, frozenset([date(2024, 2, 14), date(2024, 2, 15)])) is None


def test_without_stock_no_slot_is_looked_for():
    request = read(payload("order_at_store"))
    assert schema.first_free(request, NOON, frozenset([date(2024, 2, 20)])) == Wish(date(2024, 2, 20), "1721")


# -- answers ----------------------------------------------------------------------------------------------------------


def test_trap_01_the_first_order_is_0():
    at = datetime(2024, 1, 22, 15, 31, 7, 908_765, tzinfo=ZoneInfo("Asia/Nicosia"))
    assert answers.order_answer(read(payload("order")), 0, at, "acme", "Store One") == {
        "_id": 0,
        "title": "Store One #0",
        "_status": "open",
        "_substatus": "open",
        "partner": "acme",
        "partner_details": {"instock": True, "store_id": "st-1", "store_title": "Store One"},
        "created_at": "2024-01-22T13:31:07.908Z",
    }


def test_without_stock_it_begins_elsewhere():
    answer = answers.order_answer(read(payload("order_at_store")), 1, NOON, "acme", "Store Two")
    assert (answer["_status"], answer["_substatus"]) == ("open", "not_in_stock")


@pytest.mark.parametrize(
    ("state", "signals", "facts", "shown"),
    [
        (State.READY, (), {}, ("open", "not_in_stock")),
        (State.PARKED, (), {}, ("open", "not_in_stock")),
        (State.DONE, ("numbered",), {}, ("open", "not_in_stock")),
        (State.DONE, ("numbered", "shipped"), {}, ("in_work", "in_work")),
        (State.DONE, ("shipped", "completed"), {}, ("done", "completed")),
        (State.CANCELLED, ("completed",), {}, ("open", "cancelled")),
        (State.IGNORED, (), {}, ("open", "cancelled")),
        (State.WAITING, ("completed",), {"status": "in_work"}, ("in_work", "in_work")),
    ],
)
def test_where_an_order_stands(state: State, signals: tuple[str, ...], facts: Json, shown: tuple[str, str]):
    answer = answers.order_answer(read(payload("order_at_store")), 1, NOON, "acme", "Store Two")
    row = answers.order_row(Listed(1, answer, state, frozenset(signals), facts))
    assert (row["_status"], row["_substatus"]) == shown
    assert row.keys() == answer.keys()


def test_trap_02_a_booking_is_shown_with_both_its_words():
    answer = answers.order_answer(read(payload("order")), 1, NOON, "acme", "Store One")
    facts = {"status": "completed", "substatus": "payment_error"}
    row = answers.order_row(Listed(1, answer, State.RUNNING, frozenset(), facts))
    assert (row["_status"], row["_substatus"]) == ("completed", "payment_error")
