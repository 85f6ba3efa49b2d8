"""TastyIgniter's documents: what is read of them in each profile, times, money, statuses, events. The numbers of the
traps are those of the table in docs/systems/tastyigniter.md; the sections those of contracts/tastyigniter.md."""

import copy
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orders.errors import Misconfigured, Refused
from orders.model import Order
from schemas.tastyigniter import (
    Statuses,
    due,
    listed,
    minor_unit,
    moved,
    overran,
    parse_event,
    parse_order,
    posted,
    rows_among,
    says_deleted,
    slim,
    stamp,
    to_order,
    was_open,
    with_what_events_told,
)

PAYLOADS = Path(__file__).parents[2] / "payloads" / "tastyigniter"
LONDON = ZoneInfo("Europe/London")
NICOSIA = ZoneInfo("Asia/Nicosia")


def payload(name: str) -> Any:
    return json.loads((PAYLOADS / f"{name}.json").read_text(), parse_float=Decimal)


def raw(name: str) -> bytes:
    return (PAYLOADS / f"{name}.json").read_bytes()


def read(document: Any) -> Any:
    return parse_order(document)


def p1(**fields: Any) -> dict[str, Any]:
    return {**payload("p1"), **fields}


def p3(**attributes: Any) -> dict[str, Any]:
    document: dict[str, Any] = copy.deepcopy(payload("p3"))
    document["data"]["attributes"] |= attributes
    return document


def converted(document: Any, **options: Any) -> Any:
    return to_order(read(document), **{"zone": LONDON, "currency": "EUR", **options})


def total(code: str, value: Any, priority: int = 1, *, summable: bool = False) -> dict[str, Any]:
    return {"code": code, "title": code.title(), "value": value, "priority": priority, "is_summable": summable}


def dish(ident: int, **fields: Any) -> dict[str, Any]:
    return {"order_menu_id": ident, "menu_id": 77, "name": "Rice", "quantity": 1, "price": 5, "subtotal": 5, **fields}


# === The profiles ===========================================================================================


@pytest.mark.parametrize("name", ["p1", "p1b"])
def test_trap_01_the_flat_profiles(name):
    remote = read(payload(name))
    assert (remote.id, remote.flat, remote.status_id, remote.processed) == (7, True, 3, True)
    assert (remote.order_total, remote.currency, remote.lines, remote.history) == (Decimal("15.0449"), None, (), ())
    assert (remote.created_at, remote.comment) == ("2020-05-24 12:58:43", None)


def test_trap_01_the_resource_profiles():
    remote = read(payload("p3"))
    assert (remote.id, remote.flat, remote.status_id, remote.asap) == (7, False, 1, True)
    assert (remote.order_total, remote.currency, remote.created_at) == (24, "GBP", "2025-06-05T11:13:19.000000Z")
    (line,) = remote.lines
    assert (line.id, line.menu_id, line.name, line.quantity, line.price, line.total) == (5, 77, "Rice", 2, 12, 24)
    assert [(row.id, row.status_id) for row in remote.history] == [(31, 1)]


def test_trap_01_an_order_in_a_list_of_one_as_the_vendors_pages_print_it():
    document = p3()
    assert read({"data": [document["data"]]}).id == 7


@pytest.mark.parametrize(
    "document", [{}, [], None, "x", {"data": None}, {"data": []}, {"order_id": "x"}, {"order_id": 1.5}]
)
def test_what_is_no_order_is_refused(document):
    with pytest.raises(Refused, match="TastyIgniter's order cannot be read"):
        read(document)


def test_a_refusal_names_the_fields_and_not_their_values():
    with pytest.raises(Refused) as caught:
        read(p3(order_total="ann@example.com", order_menus=[dish(1, quantity=None)]))
    assert "order_total" in caught.value.reason
    assert "order_menus 1 quantity" in caught.value.reason
    assert "ann@example.com" not in caught.value.reason


def test_two_lines_of_one_id_are_refused():
    with pytest.raises(Refused, match="more than one line has the id 5"):
        read(p3(order_menus=[dish(5), dish(5)]))


def test_the_history_is_sorted_by_id():
    document = p3()
    rows = [{"type": "status_history", "id": str(ident), "attributes": {"status_id": ident}} for ident in (9, 10, 2)]
    document["included"] = [*rows, {"type": "customer", "id": "1", "attributes": {}}]
    assert [row.id for row in read(document).history] == [2, 9, 10]


def test_a_row_of_a_list_that_cannot_be_read_keeps_its_id():
    assert listed({"type": "orders", "id": "8", "attributes": {"order_total": "x"}}) == ("8", None)
    assert listed(p1()) == ("7", read(p1()))
    with pytest.raises(Refused, match="no id"):
        listed({"type": "orders", "attributes": {}})


# === Totals and lines =======================================================================================


@pytest.mark.parametrize("form", [list, lambda rows: {str(9 - n): row for n, row in enumerate(rows)}])
def test_trap_09_totals_are_an_array_or_an_object_and_sorted_by_priority(form):
    rows = [total("total", 24, 127), total("subtotal", "24.0000", 0), total("delivery", None, 1, summable=True)]
    remote = read(p3(order_totals=form(rows)))
    assert [(row.code, row.value) for row in remote.totals] == [("subtotal", 24), ("delivery", 0), ("total", 24)]


@pytest.mark.parametrize("nothing", [[], {}, None])
def test_trap_10_a_dish_without_options(nothing):
    (line,) = converted(p3(order_menus=[dish(5, menu_options=nothing)], order_total=5)).order.lines
    assert line.description == "Rice"


def test_trap_10_options_are_words_and_the_subtotal_is_final():
    options = {
        "Size": [{"order_option_name": "Large", "order_option_price": 2, "quantity": 1}],
        "Extra": [{"order_option_name": "Cheese", "order_option_price": 1.25, "quantity": 2}],
    }
    row = dish(5, quantity=3, price=12, subtotal=99, comment="no salt", menu_options=options)
    order = converted(p3(order_menus=[row], order_total=99)).order
    (line,) = order.lines
    assert (line.unit_price, line.quantity, line.total) == (12, 3, 99)
    assert line.description == "Rice; Size: Large; Extra: 2 x Cheese; no salt"


def test_lines_are_the_dishes_and_what_is_added_to_them():
    rows = [
        total("subtotal", 10, 0),
        total("delivery", Decimal("2.5"), 1, summable=True),
        total("coupon", Decimal("-1.5"), 2, summable=True),
        total("coupon", Decimal("-0.25"), 3, summable=True),
        total("tip", 0, 4, summable=True),
        total("tax", 3, 5),
        total("total", Decimal("10.75"), 9),
    ]
    found = converted(p3(order_menus=[dish(5), dish(6)], order_totals=rows, order_total=10.75))
    assert [(line.key, line.position, line.product, line.kind, line.total) for line in found.order.lines] == [
        ("5", 1, "77", "line", 5),
        ("6", 2, "77", "line", 5),
        ("delivery", 3, None, "delivery", Decimal("2.50")),
        ("coupon", 4, None, "coupon", Decimal("-1.50")),
        ("coupon-2", 5, None, "coupon", Decimal("-0.25")),
    ]
    assert found.flags == []


def test_trap_11_amounts_that_do_not_add_up_are_flagged_and_never_computed_anew():
    found = converted(p3(order_total=999))
    assert found.order.total == 999
    assert found.flags == ["dishes and totals add up to 24.0000, the order says 999.0000: its own total counts"]


def test_trap_11_the_sum_is_never_below_nothing():
    rows = [total("coupon", -30, summable=True)]
    assert converted(p3(order_totals=rows, order_total=0)).flags == []


def test_trap_31_an_order_without_dishes_is_one_line():
    order = converted(p1(), whole="CATERING").order
    (line,) = order.lines
    assert (line.key, line.product, line.quantity, line.unit_price, line.total) == (
        "order",
        "CATERING",
        1,
        Decimal("15.04"),
        Decimal("15.04"),
    )
    assert (order.total, order.currency, order.reference) == (Decimal("15.04"), "EUR", "7")


def test_trap_31_lines_and_totals_beside_the_order_of_a_webhook_are_its_dishes():
    event = parse_event(raw("webhook_placed"))
    bare = read(p1(order_total=24, order_totals=[]))
    remote: Any = with_what_events_told(
        bare, [parse_event(raw("webhook_status_added")).body, event.body, "[]", '{"order": 1}']
    )
    assert [(line.id, line.name, line.total) for line in remote.lines] == [(5, "Rice", 24)]
    assert [row.code for row in remote.totals] == ["subtotal", "delivery", "total"]
    assert converted(p1()).order.lines[0].key == "order"


def test_trap_20_a_site_says_that_an_order_was_deleted():
    deleted = json.dumps({"action": "deleted", "order": {"order_id": 7}})
    assert says_deleted(["[]", json.dumps(p3(), default=str), deleted])
    assert not says_deleted([json.dumps(p3(), default=str), parse_event(raw("webhook_placed")).body])
    assert not says_deleted([])


def test_the_newest_telling_of_the_dishes_counts():
    def told(at, name):
        order = {"order_id": 7, "updated_at": at}
        return json.dumps({"action": "updated", "order": order, "order_menus": [dish(5, name=name)]})

    older, newer = told("2025-06-05T12:00:00.000000Z", "Rice"), told("2025-06-05T12:00:01.000000Z", "Soup")
    for bodies in ([older, newer], [newer, older]):
        assert [line.name for line in with_what_events_told(read(p1()), bodies).lines] == ["Soup"]
    own = read(p3())
    assert with_what_events_told(own, [newer]) == own


def test_trap_31_where_a_delivery_is_taken_to_is_told_by_the_newest_event_that_says_it():
    def told(at, **fields):
        return json.dumps({"action": "updated", "order": {"order_id": 7, "updated_at": at, **fields}})

    older = told("2025-06-05T12:00:00.000000Z", formatted_address="1 Example Street", delivery_comment="ring twice")
    newer = told("2025-06-05T12:00:01.000000Z", formatted_address="2 Example Street")
    remote = with_what_events_told(read(p1()), [older, newer])
    assert (remote.formatted_address, remote.delivery_comment) == ("2 Example Street", "ring twice")
    own = with_what_events_told(read(p1(formatted_address="3 Example Street")), [older, newer])
    assert own.formatted_address == "3 Example Street"


EVENT_OF_A_DELETION = json.dumps({"action": "deleted", "order": {"order_id": 7}})


def test_trap_20_the_rows_of_lists_among_what_is_kept_of_an_order():
    flat, resource = json.dumps(p1(), default=str), json.dumps(payload("p3")["data"], default=str)
    rows = rows_among([EVENT_OF_A_DELETION, parse_event(raw("webhook_placed")).body, resource, "{}", "[]", flat])
    assert [(row["order_id"], row["location_id"]) for row in rows] == [("7", 1), (7, 1)]


@pytest.mark.parametrize(
    ("shown", "is_open"),
    [
        ([], False),
        ([{"order_id": 7, "status_id": 5}, {"order_id": 7, "status_id": "9"}], False),
        ([{"order_id": 7, "status_id": 5}, {"order_id": 7, "status_id": 1}], True),
        ([{"order_id": 7, "status_id": None}], True),
        ([{"id": "7", "attributes": {"status_id": 2}}], True),
        ([{"action": "updated", "order": {"order_id": 7, "status_id": 3}}], True),
        ([{"action": "updated", "order": {"order_id": 7}}, {}, []], False),
    ],
)
def test_whether_what_is_kept_shows_the_order_before_it_was_finished(shown, is_open):
    assert was_open([json.dumps(one) for one in shown], Statuses()) is is_open


def test_an_event_whose_order_cannot_be_read_is_passed_over():
    odd = json.dumps({"order": {"order_id": 7}, "order_menus": [dish(5, quantity="x")]})
    assert with_what_events_told(read(p1()), [odd]).lines == ()


# === Time ===================================================================================================


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2020-05-24 12:58:43", datetime(2020, 5, 24, 11, 58, 43, tzinfo=UTC)),
        ("2020-05-24T11:58:43.000000Z", datetime(2020, 5, 24, 11, 58, 43, tzinfo=UTC)),
        ("2020-01-24 12:58:43", datetime(2020, 1, 24, 12, 58, 43, tzinfo=UTC)),
        (None, None),
        ("soon", None),
    ],
)
def test_trap_12_naive_stamps_are_the_sites_and_those_with_z_are_utc(text, instant):
    assert stamp(text, LONDON) == instant


def test_trap_12_when_a_flat_order_is_due():
    assert due(read(p1()), LONDON) == (datetime(2020, 5, 24, 12, 13, tzinfo=UTC), [])
    assert due(read(p1()), NICOSIA) == (datetime(2020, 5, 24, 10, 13, tzinfo=UTC), [])


def test_trap_12_only_the_object_description_of_the_seed_has_a_naive_order_date_time():
    document = p1(order_date=None, order_time=None, order_date_time="2020-05-24 13:13:00")
    assert due(read(document), LONDON)[0] == datetime(2020, 5, 24, 12, 13, tzinfo=UTC)


def test_trap_12_the_date_is_never_cut_off_order_date():
    """It is the local midnight, shifted to UTC: 4 June, 23:00Z means 5 June."""
    assert due(read(p3()), LONDON) == (datetime(2025, 6, 5, 12, 26, tzinfo=UTC), [])
    assert due(read(p3(order_date_time=None)), LONDON)[0] == datetime(2025, 6, 5, 12, 26, tzinfo=UTC)


def test_trap_12_shortly_after_midnight():
    document = p3(order_time="00:10:00", order_date_time="2025-06-04T23:10:00.000000Z")
    assert due(read(document), LONDON) == (datetime(2025, 6, 4, 23, 10, tzinfo=UTC), [])


@pytest.mark.parametrize("shown", ["13:26", "13:26:00", "13:26:59", None, "noon"])
def test_trap_13_the_order_time_of_a_webhook_is_shorter(shown):
    assert due(read(p3(order_time=shown)), LONDON)[1] == []


def test_trap_13_a_wrong_zone_is_found_out_and_stops_the_order():
    with pytest.raises(Refused, match="TASTYIGNITER_TIMEZONE") as caught:
        due(read(p3()), NICOSIA)
    assert "15:26 in Asia/Nicosia, but order_time says 13:26" in caught.value.reason
    assert caught.value.recheck


def test_without_times_it_is_due_at_no_time():
    assert due(read(p1(order_time=None)), LONDON) == (None, [])


@pytest.mark.parametrize(
    ("day", "shown", "instant", "words"),
    [
        ("2026-10-25", "01:30:00", datetime(2026, 10, 25, 0, 30, tzinfo=UTC), "comes twice"),
        ("2026-03-29", "01:30:00", datetime(2026, 3, 29, 1, 30, tzinfo=UTC), "does not exist"),
    ],
)
def test_trap_14_at_a_clock_change_the_first_reading_counts_and_a_person_knows(day, shown, instant, words):
    at, flags = due(read(p1(order_date=f"{day} 00:00:00", order_time=shown)), LONDON)
    assert at == instant
    assert len(flags) == 1
    assert words in flags[0]
    assert "Europe/London" in flags[0]


@pytest.mark.parametrize(
    ("instant", "shown"),
    [
        ("2026-10-25T00:30:00.000000Z", "01:30:00"),
        ("2026-10-25T01:30:00.000000Z", "01:30:00"),
        ("2026-03-29T01:30:00.000000Z", "01:30:00"),
    ],
)
def test_trap_14_an_odd_hour_is_no_proof_of_a_wrong_zone(instant, shown):
    at, flags = due(read(p3(order_time=shown, order_date_time=instant)), LONDON)
    assert at == datetime.fromisoformat(instant)
    assert len(flags) == 1


@given(st.datetimes(*map(datetime.fromisoformat, ("2019-01-01", "2030-01-01"))), st.sampled_from([LONDON, NICOSIA]))
def test_both_forms_of_a_time_are_the_same_instant(moment, zone):
    moment = moment.replace(second=0, microsecond=0)
    instant = moment.replace(tzinfo=zone).astimezone(UTC)
    flat = p1(order_date=f"{moment:%Y-%m-%d} 00:00:00", order_time=f"{moment:%H:%M:%S}")
    midnight = moment.replace(hour=0, minute=0, tzinfo=zone).astimezone(UTC)
    stamps = {"order_date": midnight.isoformat(), "order_date_time": instant.isoformat().replace("+00:00", "Z")}
    now = p3(order_time=f"{moment:%H:%M:%S}", **stamps)
    assert due(read(flat), zone)[0] == due(read(now), zone)[0] == instant


# === Money ==================================================================================================


@pytest.mark.parametrize("told", [Decimal("15.0449"), "15.0449", "15.04490000", Decimal("15.04494")])
def test_trap_15_amounts_are_read_exactly_and_posted_in_minor_units(told):
    document = p1(order_total=told)
    assert read(document).order_total == Decimal("15.0449")
    found = converted(document)
    assert found.order.total == Decimal("15.04")
    assert found.rounding == {"total": "0.0049"}


@pytest.mark.parametrize(
    ("exact", "currency", "amount"),
    [
        ("15.0449", "EUR", "15.04"),
        ("15.0450", "EUR", "15.05"),
        ("-1.0050", "EUR", "-1.01"),
        ("15.5", "JPY", "16"),
        ("1.2345", "KWD", "1.235"),
        ("0", "EUR", "0.00"),
    ],
)
def test_trap_15_halves_are_rounded_up(exact, currency, amount):
    assert str(posted(Decimal(exact), currency)) == amount
    assert minor_unit(currency) <= 1


def test_trap_15_what_was_rounded_off_is_kept_for_each_line():
    rows = [total("delivery", "1.0049", summable=True)]
    found = converted(p3(order_menus=[dish(5, subtotal="3.3333")], order_totals=rows, order_total="4.3382"))
    assert [line.total for line in found.order.lines] == [Decimal("3.33"), Decimal("1.00")]
    assert found.rounding == {"5": "0.0033", "delivery": "0.0049", "total": "-0.0018"}
    assert found.flags == []


def test_trap_15_no_amount_is_the_row_that_repeats_it_or_nothing():
    assert converted(p3(order_total=None)).order.total == 24
    found = converted(p3(order_total=None, order_totals=[]))
    assert found.order.total is None
    assert found.flags == ["the order says no total"]
    assert converted(p1(order_total=None)).order.lines[0].unit_price is None


def test_trap_16_a_flat_order_has_the_currency_that_is_set():
    assert converted(p1(), currency="CHF").order.currency == "CHF"
    assert converted(p3(), currency="CHF").order.currency == "GBP"
    with pytest.raises(Misconfigured, match="TASTYIGNITER_CURRENCY"):
        converted(p1(), currency=None)


# === The order in our words =================================================================================


def test_the_customer_the_address_and_the_notes():
    document = p3(
        order_type="delivery",
        customer_id=3,
        address_id=9,
        formatted_address="1 Example Street, Sampletown",
        comment="No onions",
        delivery_comment="Ring twice",
    )
    order = converted(document).order
    assert (order.customer.name, order.customer.email, order.customer.remote_id) == ("Ann Test", "ann@example.com", "3")
    assert (order.ship_to.street, order.ship_to.remote_id) == ("1 Example Street, Sampletown", "9")
    assert order.notes == "delivery, as soon as possible, payment: cod\nNo onions\nDelivery: Ring twice"
    assert Order.from_json(order.to_json()) == order


def test_a_collected_order_goes_nowhere():
    order = converted(p1(address_id=4)).order
    assert (order.ship_to.street, order.ship_to.remote_id) == (None, None)
    assert order.requested_at == datetime(2020, 5, 24, 12, 13, tzinfo=UTC)


def test_a_dish_that_left_the_menu_is_known_by_its_name():
    assert converted(p3(order_menus=[dish(5, menu_id=None)], order_total=5)).order.lines[0].product == "Rice"


def test_trap_30_addresses_and_browsers_are_not_kept():
    text = json.dumps(slim({"data": [p3()], "more": p1()}), default=str)
    assert "192.0.2.10" not in text
    assert "user_agent" not in text
    assert "0123456789abcdef" in text


# === Statuses ===============================================================================================


@pytest.mark.parametrize(
    ("status", "processed", "placed"),
    [(1, True, True), (1, None, False), (1, False, False), (0, True, False), (None, True, False), (None, None, False)],
)
def test_trap_17_placed_is_a_status_and_processed(status, processed, placed):
    assert read(p1(status_id=status, processed=processed)).placed is placed


@pytest.mark.parametrize("target", [3, 5, 9])
@pytest.mark.parametrize("status", [None, 1, 2, 3, 4, 5, 9])
def test_trap_19_only_ahead(status, target):
    ahead = {3: (None, 1, 2), 5: (None, 1, 2, 3, 4), 9: (None, 1, 2, 3, 4)}[target]
    assert Statuses().forward(status, target) is (status in ahead)


def test_trap_18_a_status_of_the_shops_own_is_not_guessed():
    with pytest.raises(Refused, match="status 11 is one of the shop's own") as caught:
        Statuses().forward(11, 3)
    assert caught.value.recheck
    assert Statuses().forward(11, 5)
    assert Statuses().forward(11, 9)


def test_trap_18_the_shops_own_statuses_by_id():
    own = Statuses(preparing=12, completed=14, canceled=19)
    assert [own.forward(status, 12) for status in (1, 2, 3, 4, 12, 14, 19)] == [True, True, False, False, *3 * [False]]
    assert own.forward(5, 14)
    assert own.final(19)
    assert not own.final(9)
    assert Statuses(preparing=4).forward(3, 4)


def history(*rows: tuple[int, int, str | None, str | None]) -> Any:
    document = p3()
    document["included"] = [
        {"type": "status_history", "id": ident, "attributes": {"status_id": status, "comment": words, "created_at": at}}
        for ident, status, words, at in rows
    ]
    return read(document)


SINCE = datetime(2025, 6, 5, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("rows", "done"),
    [
        ([(1, 1, None, "2025-06-05T12:00:00Z"), (2, 3, None, "2025-06-05T12:00:01Z")], True),
        ([(2, 3, None, "2025-06-05T11:59:01Z")], True),
        ([(2, 3, None, "2025-06-05T11:58:59Z")], False),
        ([(2, 3, None, None)], False),
        ([(2, 3, None, "2025-06-05T12:00:01Z"), (3, 2, None, "2025-06-05T12:00:02Z")], False),
        ([(2, 3, "ERP order SO-1", "2024-01-01T00:00:00Z"), (3, 2, None, "2025-06-05T12:00:02Z")], True),
        ([(2, 5, "ERP order SO-1", "2025-06-05T12:00:01Z")], False),
        ([], False),
    ],
)
def test_trap_04_what_the_history_tells_of_a_write_without_an_answer(rows, done):
    assert moved(history(*rows), 3, "ERP order SO-1", SINCE) is done


OURS = "ERP order SO-1"
AFTER, BEFORE = "2025-06-05T12:00:00.000000Z", "2025-06-05T10:00:00.000000Z"


@pytest.mark.parametrize(
    ("rows", "target", "below"),
    [
        ([(1, 1, None, None), (2, 9, None, None), (3, 3, None, None)], 3, 9),
        ([(2, 5, None, None), (3, 3, None, None)], 3, 5),
        ([(2, 5, None, None), (3, 9, None, None)], 9, 5),
        ([(2, 5, OURS, None), (3, 9, OURS, None)], 9, None),
        ([(2, 9, None, None), (3, 9, None, None)], 9, None),
        ([(2, 9, None, None), (3, 1, None, None), (4, 3, None, None)], 3, None),
        ([(2, 9, None, None), (3, 3, None, None), (4, 4, None, None)], 3, None),
        ([(4, 3, None, None)], 3, None),
        ([], 3, None),
    ],
)
def test_trap_33_a_row_on_top_of_one_that_nothing_leaves(rows, target, below):
    assert overran(history(*rows), target, Statuses(), OURS, None) == below


@pytest.mark.parametrize(
    ("row", "comment", "below"),
    [
        ((3, 3, OURS, None), OURS, 9),
        ((3, 3, None, AFTER), OURS, None),
        ((3, 3, None, AFTER), None, 9),
        ((3, 3, None, BEFORE), None, None),
        ((3, 3, None, None), None, None),
    ],
)
def test_trap_33_in_a_later_try_it_must_be_ours(row, comment, below):
    assert overran(history((2, 9, None, None), row), 3, Statuses(), comment, SINCE) == below


# === Events =================================================================================================


def test_an_event():
    event = parse_event(raw("webhook_status_added"))
    assert (event.action, event.subject, event.order_id, event.history_id) == ("status_added", "order", 7, 32)


def test_trap_15_amounts_of_events_never_pass_through_a_float():
    exact = b'{"action":"updated","order":{"order_id":7,"order_total":99999999999.1234,"ip_address":"192.0.2.10"}}'
    event = parse_event(exact)
    assert json.loads(event.body)["order"] == {"order_id": 7, "order_total": "99999999999.1234"}
    assert parse_event(b'{"action":"updated","order":{"order_id":7,"x":1e999999999999999999999}}').order_id == 7


def test_trap_27_the_mail_data_of_an_automation_rule_is_no_event():
    with pytest.raises(Refused, match="the event cannot be read"):
        parse_event(raw("automation_rule"))


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"action": "placed"},
        {"action": "placed", "order": []},
        {"action": "placed", "order": {}},
        {"action": "placed", "order": {"order_id": 0}},
        {"action": "placed", "order": {"order_id": "seven"}},
        {"action": "paid", "order": {"order_id": 7}},
        {"order": {"order_id": 7}},
    ],
)
def test_what_is_no_event_is_refused(document):
    with pytest.raises(Refused):
        parse_event(json.dumps(document).encode())


def test_events_about_something_else_are_known_and_nothing_of_them_is_kept():
    event = parse_event(raw("webhook_customer"))
    assert (event.action, event.subject, event.order_id) == ("created", "customer", None)
    assert "ann@example.com" not in event.body
