"""Doshii's documents: what is read of them, whether they add up, and what is written back."""

import copy
import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orders.errors import Refused
from orders.model import Address, Customer, Line, Order
from sandbox import doshii as sandbox
from schemas.doshii import (
    CANCELLED,
    STATUSES,
    Payment,
    RemoteOrder,
    acceptance,
    agreeable,
    approval,
    changes,
    completion,
    go_ahead,
    is_ours,
    mismatches,
    no_payment,
    parse_order,
    parse_payments,
    parse_row,
    payment_mismatch,
    pending_payments,
    pos_id,
    refusal_of_items,
    rejection,
    rejection_code,
    taken,
    to_order,
    total,
)

PAYLOADS = Path(__file__).parents[2] / "payloads" / "doshii"
PIZZA = "5d1f6c1e-0c1b-4b52-9a41-6b6b0f0e7a01"


def payload(name: str) -> Any:
    return json.loads((PAYLOADS / f"{name}.json").read_text(), parse_float=Decimal)


def changed(document: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**copy.deepcopy(document), **fields}


def unlinked(**fields: Any) -> dict[str, Any]:
    return changed(payload("unlinked"), **fields)


def with_item(**fields: Any) -> dict[str, Any]:
    """The example with other fields in its only item."""
    document = unlinked(surcounts=[])
    document["items"][0] |= fields
    return document


def ours(document: dict[str, Any], *, open_item: str | None = None, pending: bool = False) -> Order:
    return to_order(parse_order(document), currency="AUD", open_item=open_item, pending=pending)


def lines(document: dict[str, Any], **options: Any) -> list[tuple[str | None, Decimal, Decimal | None, Decimal | None]]:
    return [(line.product, line.quantity, line.unit_price, line.total) for line in ours(document, **options).lines]


# === Reading ================================================================================================


def test_the_example_of_the_contract():
    remote = parse_order(payload("unlinked"))
    assert (remote.doshii_id, remote.pos_id, remote.status, remote.version) == ("8123", None, "pending", "uhhgbh4FE")
    assert (remote.type, remote.notes, remote.required_at) == ("pickup", "No onion", None)
    assert remote.customer == Customer("A. Buyer", "buyer@example.com", "+35799000001")
    assert remote.address == Address(
        street="1 High St", postal_code="3000", city="Melbourne", region="VIC", country="AU"
    )
    assert remote.pending == ()


def test_trap_05_the_seeds_response_once_it_is_mended():
    remote = parse_order(payload("linked"))
    assert (remote.doshii_id, remote.pos_id, remote.status) == (None, "1634", "accepted")
    assert [item.words for item in remote.pending] == ["1 x Coke"]
    assert remote.address.street == "1 High St, Level 6"


def test_trap_08_consumer_and_address_are_objects_or_nothing():
    nothings: list[Any] = [None, {}, {"address": None}, {"address": {}, "email": None}]
    for consumer in nothings:
        remote = parse_order(unlinked(consumer=consumer))
        assert (remote.customer, remote.address) == (Customer(), Address())
    assert parse_order(unlinked(consumer={"name": "A. Buyer"})).customer == Customer(name="A. Buyer")
    document = unlinked()
    del document["consumer"]
    assert parse_order(document).customer == Customer()


def test_trap_08_the_mail_address_has_its_name():
    assert parse_order(payload("linked")).customer.email == "buyer@example.com"


def test_what_is_left_out_is_nothing():
    bare = {"status": "pending", "items": [{"posId": "x"}], "version": "v"}
    remote = parse_order(bare)
    (item,) = remote.items
    assert (item.uuid, item.quantity, item.unit_price, item.after, item.variants) == (None, Decimal(1), None, None, ())
    assert (remote.doshii_id, remote.unapproved, remote.surcounts, remote.taxes) == (None, (), (), ())
    order = ours(bare)
    assert (order.total, order.notes, order.lines[0].key, order.lines[0].total) == (None, None, "item-1", None)


def test_nulls_are_nothing_too():
    nothing = dict.fromkeys(("name", "description", "tags", "type", "includedItems", "options", "surcounts", "taxes"))
    document = with_item(**nothing)
    document |= {"unapprovedItems": None, "surcounts": None, "taxes": None, "checkin": None, "type": None}
    assert parse_order(document).items[0].surcounts == ()


def test_unknown_fields_may_come():
    assert parse_order(unlinked(lastAction={"by": [1]}, delivery=None)).version == "uhhgbh4FE"


@pytest.mark.parametrize("status", STATUSES)
def test_every_status(status):
    assert parse_order(unlinked(status=status)).status == status


def test_what_counts_as_cancelled():
    assert set(STATUSES) - CANCELLED == {"pending", "accepted", "complete"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"status": "on_hold"}, "status: 'on_hold' is not a known status"),
        ({"status": None}, "status: Field may not be null"),
        ({"version": None}, "version: Field may not be null"),
        ({"items": None}, "items: Field may not be null"),
        ({"items": [{"quantity": "two"}]}, "items 1 quantity: Not a valid number"),
        ({"items": [{"quantity": 0}]}, "items 1 quantity: Must be greater than 0"),
        ({"items": [{"quantity": "-1"}]}, "items 1 quantity: Must be greater than 0"),
        ({"surcounts": [{"value": None}]}, "surcounts 1 value: Field may not be null"),
        ({"requiredAt": "soon"}, "requiredAt: Not a valid datetime"),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(fields, words):
    with pytest.raises(Refused, match="Doshii's order cannot be read") as caught:
        parse_order(unlinked(**fields))
    assert words in caught.value.reason


@pytest.mark.parametrize("value", ["1100", 1100, Decimal("1100"), Decimal("1100.0"), "-1100", -1100, "0", 0])
def test_trap_03_cents_are_texts_or_numbers(value):
    item = parse_order(with_item(unitPrice=value)).items[0]
    assert item.unit_price == int(Decimal(value))


@pytest.mark.parametrize("value", ["11.00", Decimal("1100.5"), "1e3", "", "eleven", True, [], "9" * 20])
def test_trap_03_fractions_of_a_cent_are_refused(value):
    for name in ("unitPrice", "totalBeforeSurcounts", "totalAfterSurcounts"):
        with pytest.raises(Refused, match=f"items 1 {name}"):
            parse_order(with_item(**{name: value}))
    with pytest.raises(Refused, match="surcounts 1 value"):
        parse_order(unlinked(surcounts=[{"value": value}]))


@pytest.mark.parametrize("value", ["2", 2, Decimal(2), "2.0", Decimal("2.00")])
def test_trap_04_quantities_are_texts_or_numbers(value):
    remote = parse_order(with_item(quantity=value))
    assert remote.items[0].quantity == 2
    assert mismatches(remote) == []


def test_trap_04_quantities_may_be_decimal():
    document = with_item(quantity="0.5", unitPrice="333", options=[], surcounts=[])
    document["items"][0] |= {"totalBeforeSurcounts": "167", "totalAfterSurcounts": "167"}
    assert lines(document) == [("pep_pizza", Decimal("0.5"), Decimal("3.33"), Decimal("1.67"))]
    assert mismatches(parse_order(document)) == []


def test_rows_of_lists():
    row = parse_row({"doshiiId": 7, "status": "pending", "uri": "x"})
    assert (row.doshii_id, row.status, row.pos_id) == ("7", "pending", None)
    assert parse_row({"doshiiId": "7", "status": "accepted", "id": "SO-1"}).pos_id == "SO-1"
    with pytest.raises(Refused, match="a row of Doshii's orders cannot be read: doshiiId"):
        parse_row({"status": "pending"})


# === The order in our words =================================================================================


def test_the_order_of_the_contract_in_our_words():
    assert ours(payload("unlinked")) == Order(
        reference="8123",
        currency="AUD",
        lines=(
            Line(
                PIZZA,
                1,
                "pep_pizza",
                Decimal(2),
                "Pepperoni Pizza (House base), Extra: Pepperoni",
                unit_price=Decimal("13.00"),
                total=Decimal("27.00"),
            ),
            Line("surcount-1", 2, None, Decimal(1), "Promo", None, Decimal("-2.70"), Decimal("-2.70"), "surcount"),
        ),
        customer=Customer("A. Buyer", "buyer@example.com", "+35799000001"),
        ship_to=Address(street="1 High St", postal_code="3000", city="Melbourne", region="VIC", country="AU"),
        total=Decimal("24.30"),
        notes="pickup\nNo onion\nDelivery: Leave at back door",
    )


def test_trap_09_what_is_not_approved_is_not_booked():
    assert [line.product for line in ours(payload("linked")).lines] == ["lol12"]
    assert [line.product for line in ours(payload("linked"), pending=True).lines] == ["lol12", "rwqed1"]
    document = payload("linked")
    document["unapprovedItems"][0]["status"] = "voided"
    assert [line.product for line in ours(document, pending=True).lines] == ["lol12"]


def test_pending_items_cost_what_they_would():
    order = ours(payload("linked"), pending=True)
    assert (order.total, order.lines[1].total) == (Decimal("15.50"), Decimal("4.50"))


def test_trap_10_open_items_are_booked_on_a_product_for_them():
    document = with_item(posId=None)
    assert ours(document, open_item="misc").lines[0].product == "misc"
    with pytest.raises(Refused, match="Pepperoni Pizza: ordered without a POS id"):
        ours(document)
    with pytest.raises(Refused, match="item 1: ordered without"):
        ours(with_item(posId=None, name=None))


def test_an_order_without_items():
    with pytest.raises(Refused, match="no items"):
        ours(unlinked(items=[]))


def test_trap_11_a_percentage_counts_by_its_value():
    document = unlinked(surcounts=[{"name": "Promo", "type": "percentage", "amount": "-10", "value": "-270"}])
    assert ours(document).total == Decimal("24.30")
    document = with_item(surcounts=[{"name": "Service", "type": "percentage", "amount": "10", "value": 260}])
    document["items"][0]["totalAfterSurcounts"] = "2860"
    assert ours(document).total == Decimal("28.60")
    assert mismatches(parse_order(document)) == []


def test_trap_11_a_fee_is_for_the_line_a_variant_for_each():
    assert mismatches(parse_order(payload("unlinked"))) == []
    assert total(parse_order(unlinked(surcounts=[]))) == 2 * (1100 + 200) + 100


def test_trap_17_an_order_for_later():
    order = ours(unlinked(requiredAt="2024-05-01T19:30:00.000Z"))
    assert order.requested_at == datetime(2024, 5, 1, 19, 30, tzinfo=UTC)
    assert ours(unlinked(requiredAt="2024-05-01T19:30:00")).requested_at == order.requested_at


def test_what_a_waiter_needs():
    checkin = {"id": "3", "tableNames": ["4", "5"], "covers": "2"}
    assert ours(unlinked(type="dinein", checkin=checkin, notes=None, consumer=None)).notes == "dinein at 4, 5 for 2"
    assert (
        ours(unlinked(type=None, checkin={"tableNames": "7", "covers": 3}, consumer={})).notes == "at 7 for 3\nNo onion"
    )
    assert ours(unlinked(type="catering", checkin={"tableNames": 7}, notes="", consumer={})).notes == "catering"


def test_what_is_in_a_bundle_is_said_and_not_booked_again():
    inside = {
        "name": "Cola",
        "posId": "cola",
        "quantity": "2",
        "unitPrice": "450",
        "options": [{"name": "Size", "variants": [{"name": "Large", "price": "50"}]}],
    }
    document = with_item(type="bundle", includedItems=[inside, {"name": "Fries"}])
    (line,) = ours(document).lines
    assert line.description.endswith("Extra: Pepperoni; with 2 x Cola (Size: Large), 1 x Fries")
    assert line.total == Decimal("27.00")


def test_a_nameless_item_with_a_choice():
    document = with_item(name=None, description=None, options=[{"variants": [{"name": "Hot"}]}])
    assert ours(document).lines[0].description == "Hot"


def test_items_keep_their_keys_even_if_uuids_are_missing_or_double():
    item = payload("unlinked")["items"][0]
    keys = [
        line.key for line in ours(unlinked(items=[item, item, {**item, "uuid": None}, {**item, "uuid": "u"}])).lines
    ]
    assert keys == ["item-1", "item-2", "item-3", "u", "surcount-1"]


def test_taxes_that_come_on_top_are_lines():
    gst = {"name": "GST", "posId": "gst", "type": "percentage", "amount": "10", "value": 243}
    document = unlinked(taxes=[{**gst, "taxType": "exclusive"}, {**gst, "taxType": "inclusive"}])
    document["items"][0]["taxes"] = [{**gst, "taxType": "exclusive", "value": "7"}]
    order = ours(document)
    assert [(line.key, line.kind, line.product, line.total) for line in order.lines[2:]] == [
        ("tax-1", "tax", "gst", Decimal("2.43")),
        ("tax-2", "tax", "gst", Decimal("0.07")),
    ]
    assert order.total == Decimal("26.80")
    assert sum(line.total or 0 for line in order.lines) == order.total


def test_a_total_that_is_missing_is_computed():
    document = with_item()
    del document["items"][0]["totalAfterSurcounts"]
    assert ours(document).total == Decimal("27.00")
    del document["items"][0]["totalBeforeSurcounts"]
    assert ours(document).total == Decimal("27.00")
    del document["items"][0]["unitPrice"]
    assert ours(document).total is None


# === Does it add up? ========================================================================================


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, []),
        (
            {"totalBeforeSurcounts": "2200", "totalAfterSurcounts": "2300"},
            ["item 1 (Pepperoni Pizza): 2 x 13.00 make 26.00, and its total is 22.00"],
        ),
        (
            {"totalAfterSurcounts": "2800"},
            ["item 1 (Pepperoni Pizza): with its surcounts it makes 27.00, and its total is 28.00"],
        ),
        ({"totalBeforeSurcounts": None}, []),
        ({"totalAfterSurcounts": None}, []),
        ({"unitPrice": None}, []),
    ],
)
def test_totals_that_do_not_add_up_are_said_and_booked_as_they_are(fields, words):
    document = with_item(**fields)
    assert mismatches(parse_order(document)) == words
    if fields.get("totalAfterSurcounts"):
        assert ours(document).total == Decimal(fields["totalAfterSurcounts"]) / 100


@pytest.mark.parametrize(("before", "words"), [("2600", 0), ("2800", 0), ("2700", 1)])
def test_choices_in_a_bundle_may_cost_extra_or_not(before, words):
    inside = {"name": "Cola", "options": [{"name": "Size", "variants": [{"name": "Large", "price": 100}]}]}
    document = with_item(type="bundle", includedItems=[inside], totalBeforeSurcounts=before, totalAfterSurcounts=None)
    assert len(mismatches(parse_order(document))) == words


def paid(amount: int, status: str = "pending", *, prepaid: bool = True, number: str = "1", tip: int = 0) -> Payment:
    return Payment(number, status, amount, prepaid, "v1", tip)


@pytest.mark.parametrize(
    ("payments", "words"),
    [
        ([], []),
        ([paid(2430)], []),
        ([paid(1430), paid(1000)], []),
        ([paid(2400), paid(30, "cancelled")], ["prepaid are 24.00, and the order's total is 24.30"]),
        ([paid(2000, prepaid=False)], []),
        ([paid(2730, tip=300)], []),
        ([paid(2430, tip=300)], []),
    ],
)
def test_prepaid_is_compared_with_the_total(payments, words):
    assert payment_mismatch(parse_order(payload("unlinked")), payments) == words


def test_without_a_total_there_is_nothing_to_compare():
    document = with_item(unitPrice=None, totalBeforeSurcounts=None, totalAfterSurcounts=None)
    assert payment_mismatch(parse_order(document), [paid(1)]) == []


_NUMBERS = count(1)
_MONEY = st.integers(-5000, 20000)


@st.composite
def _item(draw: Any) -> dict[str, Any]:
    variants = draw(st.lists(st.integers(0, 500), max_size=3))
    surcounts = draw(st.lists(_MONEY, max_size=2))
    quantity, price = draw(st.integers(1, 20)), draw(st.integers(0, 20000))
    before = quantity * (price + sum(variants))
    as_wanted = draw(st.sampled_from((str, int)))
    return {
        "uuid": f"u{next(_NUMBERS)}",
        "posId": "x",
        "name": "X",
        "quantity": draw(st.sampled_from((str, int, Decimal)))(quantity),
        "unitPrice": as_wanted(price),
        "totalBeforeSurcounts": as_wanted(before),
        "totalAfterSurcounts": as_wanted(before + sum(surcounts)),
        "options": [{"name": "O", "variants": [{"name": "V", "price": as_wanted(one)} for one in variants]}],
        "surcounts": [{"name": "S", "value": as_wanted(one)} for one in surcounts],
    }


@given(items=st.lists(_item(), min_size=1, max_size=4), surcounts=st.lists(_MONEY, max_size=3), tax=_MONEY)
def test_lines_always_add_up_to_the_total(items, surcounts, tax):
    document = {
        "status": "pending",
        "version": "v",
        "items": items,
        "surcounts": [{"name": "S", "value": one} for one in surcounts],
        "taxes": [{"name": "T", "taxType": "exclusive", "value": tax}],
    }
    order = ours(document)
    assert sum((line.total or Decimal(0) for line in order.lines), Decimal(0)) == order.total
    assert order.total == Decimal(sum(int(item["totalAfterSurcounts"]) for item in items) + sum(surcounts) + tax) / 100
    assert mismatches(parse_order(document)) == []
    assert Order.from_json(order.to_json()) == order


def test_invented_orders_are_read_and_add_up():
    """The imitation was written by another hand: what it makes up is taken as it is, and its totals are ours."""
    backend = sandbox.create_app().extensions["doshii"]
    specifications = [{**one, "quiet": True} for one in backend.invent(300, 5, False)]
    for number in backend.add_orders(specifications):
        document = json.loads(json.dumps(backend.one_order(number)), parse_float=Decimal)
        remote = parse_order(document)
        assert mismatches(remote) == []
        assert total(remote) == document["total"]
        assert to_order(remote, currency="AUD", open_item="misc").total == Decimal(document["total"]) / 100


# === Changes ================================================================================================


def order_of(*rows: tuple[str, str, int]) -> Order:
    listed = tuple(Line(key, 1, product, Decimal(quantity), product) for key, product, quantity in rows)
    return Order("1", "AUD", listed)


def test_changes_in_words():
    before = order_of(("a", "pizza", 1), ("b", "cola", 1), ("c", "cake", 1))
    assert changes(before, before) == []
    after = order_of(("a", "pizza", 1), ("b", "cola", 2), ("d", "soup", 1))
    assert changes(before, after) == ["1 x cake is gone", "1 x soup is new", "1 x cola is now 2 x cola"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"surcounts": []}, ["1 x Promo is gone"]),
        (
            {"notes": "NUT ALLERGY"},
            [
                "its notes are now 'pickup; NUT ALLERGY; Delivery: Leave at back door', "
                "and were 'pickup; No onion; Delivery: Leave at back door'"
            ],
        ),
        (
            {"requiredAt": "2099-12-31T20:30:00.000+02:00"},
            ["it is wanted at 2099-12-31 18:30 UTC, and was as soon as possible"],
        ),
        ({"consumer": None}, []),
    ],
)
def test_changes_of_more_than_goods_in_words(change, words):
    assert changes(ours(payload("unlinked")), ours(unlinked(**change))) == words


def test_another_address_or_customer_in_words():
    consumer = payload("unlinked")["consumer"]
    moved = {**consumer, "phone": "1", "address": {**consumer["address"], "line1": "2 Low St"}}
    assert changes(ours(payload("unlinked")), ours(unlinked(consumer=moved))) == [
        "it goes to 2 Low St, 3000, Melbourne, VIC, AU, and went to 1 High St, 3000, Melbourne, VIC, AU",
        "it is for A. Buyer, 1, buyer@example.com, and was for A. Buyer, +35799000001, buyer@example.com",
    ]


def test_another_price_or_product_in_words():
    before = ours(with_item())
    name = "2 x Pepperoni Pizza (House base), Extra: Pepperoni"
    assert changes(before, ours(with_item(totalAfterSurcounts="1"))) == [
        f"{name} is now 13.00 each, 0.01 in all, and was 13.00 each, 27.00 in all"
    ]
    assert changes(before, ours(with_item(posId="fat_pizza"))) == [f"{name} is now fat_pizza, and was pep_pizza"]


# === Payments ===============================================================================================


def test_a_transaction():
    (payment,) = parse_payments([payload("transaction")])
    assert payment == Payment("1354", "pending", 2430, True, "k3Jd82hfU")
    assert payment.words == "payment 1354 of 24.30"
    (as_numbers,) = parse_payments([{**payload("transaction"), "id": 1354, "amount": 2430, "prepaid": None}])
    assert as_numbers == replace(payment, prepaid=False)


@pytest.mark.parametrize(("tip", "cents"), [("300", 300), (300, 300), (None, 0), (-1, 0)])
def test_the_tip_of_a_transaction(tip, cents):
    (payment,) = parse_payments([{**payload("transaction"), "tip": tip}])
    assert (payment.amount, payment.tip) == (2430, cents)


def test_payments_of_which_money_is_taken():
    assert taken([paid(1000, "complete"), paid(200, "waiting", number="2"), paid(5), paid(6, "rejected")]) == (
        "payment 1 of 10.00 is complete, payment 2 of 2.00 is waiting"
    )
    assert taken([paid(1000, "complete"), paid(-1000, "complete")]) == ""


@pytest.mark.parametrize("fields", [{"status": "lost"}, {"amount": None}, {"amount": "1.5"}, {"version": None}])
def test_transactions_that_cannot_be_read(fields):
    with pytest.raises(Refused, match="a transaction of Doshii cannot be read"):
        parse_payments([{**payload("transaction"), **fields}])


@pytest.mark.parametrize(
    ("payments", "due", "next_one"),
    [
        ([], 2430, None),
        ([paid(2430, number="a")], 2430, "a"),
        ([paid(2430, "complete"), paid(10, number="b")], 2430, None),
        ([paid(2430, "waiting"), paid(10, number="b")], 2430, None),
        ([paid(2430, "rejected"), paid(2430, number="b")], 2430, "b"),
        ([paid(1000, "complete"), paid(1430, number="b")], 2430, "b"),
        ([paid(-500, number="a")], 2430, None),
        ([paid(-500, number="a"), paid(100, number="b")], 2430, "b"),
        ([paid(100, number="a")], None, "a"),
        ([paid(100, "complete"), paid(100, number="b")], None, "b"),
        ([paid(100, number="a")], 0, None),
        ([paid(2431, number="a")], 2430, None),
        ([paid(2000, "complete"), paid(9900, number="a")], 2430, None),
        ([paid(2000, "complete"), paid(9900, number="a"), paid(430, number="b")], 2430, "b"),
        ([paid(2730, number="a", tip=300)], 2430, "a"),
        ([paid(2430, number="a", tip=300)], 2430, "a"),
        ([paid(2430, "complete", tip=300), paid(300, number="b")], 2430, None),
        ([paid(1100, "complete", tip=100), paid(1430, number="b")], 2430, "b"),
        ([paid(2731, number="a", tip=300)], 2430, None),
        ([paid(2430, "requested")], 2430, None),
    ],
)
def test_which_payment_is_agreed_to_next(payments, due, next_one):
    found = agreeable(payments, due)
    assert (found.id if found else None) == next_one


def test_pending_payments():
    assert [one.id for one in pending_payments([paid(1, "waiting"), paid(1, number="b")])] == ["b"]


def test_bodies_of_payments():
    payment = paid(2430, number="1354")
    assert go_ahead(payment, "SO-1") == {"status": "waiting", "orderId": "SO-1", "amount": "2430", "version": "v1"}
    assert no_payment(payment, None, "why") == {"status": "rejected", "version": "v1", "rejectionReason": "why"}
    assert no_payment(payment, "P1", "why")["rejectionCode"] == "P1"


# === What is written back ===================================================================================


def test_the_seeds_own_request():
    """What we send of the order that the seed accepts is what the seed sends."""
    document = {**payload("linking"), "id": None, "status": "pending"}
    assert acceptance(document, "AB123") == payload("linking")


def test_what_goes_back_is_what_came_as_text():
    document = unlinked(unknown={"x": 1})
    document["items"][0] |= {"unknown": {"x": 1}, "description": None, "tags": ["hot"]}
    body = acceptance(document, "SO-1")
    assert set(body) == {"id", "status", "version", "items", "surcounts"}
    (item,) = body["items"]
    assert (item["uuid"], item["quantity"], item["unknown"], item["tags"]) == (PIZZA, "2", {"x": 1}, ["hot"])
    assert "description" not in item
    assert body["surcounts"] == document["surcounts"]
    assert "null" not in json.dumps(body)


@pytest.mark.parametrize(("quantity", "text"), [(2, "2"), ("2", "2"), (Decimal("2.50"), "2.5"), (Decimal(100), "100")])
def test_quantities_go_back_as_text(quantity, text):
    assert completion(with_item(quantity=quantity))["items"][0]["quantity"] == text


def test_unapproved_items_go_back_only_if_there_are_any():
    assert "unapprovedItems" not in completion(payload("unlinked"))
    (item,) = completion(payload("linked"))["unapprovedItems"]
    assert (item["uuid"], item["status"], item["quantity"]) == ("32f342f3-f34f23f34f34-f3432g23g32", "pending", "1")


def test_a_rejection_always_has_words():
    assert rejection(payload("unlinked"), None, "Sold out") == {
        "status": "cancelled",
        "version": "uhhgbh4FE",
        "rejectionReason": "Sold out",
    }
    assert rejection(payload("unlinked"), "O2", "Sold out")["rejectionCode"] == "O2"


def test_items_are_approved_by_moving_them():
    document = payload("linked")
    voided = {"uuid": "v", "name": "Old", "status": "voided"}
    document["unapprovedItems"].append(voided)
    body = approval(document)
    assert (body["status"], body["version"]) == ("accepted", "iwgjr2NJ014")
    assert [item["name"] for item in body["items"]] == ["Toasted Sourdough Bread & Eggs", "Coke"]
    assert all("status" not in item for item in body["items"])
    assert body["unapprovedItems"] == [voided]


def test_items_are_declined_where_they_are():
    body = refusal_of_items(payload("linked"))
    assert [item["name"] for item in body["items"]] == ["Toasted Sourdough Bread & Eggs"]
    assert [item["status"] for item in body["unapprovedItems"]] == ["cancelled"]


@pytest.mark.parametrize(
    ("number", "expected"),
    [("SO-1", "SO-1"), ("SO/2024/0001", "SO-2024-0001"), (" 17 ", "17"), ("A_b.9", "A_b.9"), ("ä", "-")],
)
def test_trap_19_our_ids_hold_no_odd_characters(number, expected):
    assert pos_id(number) == expected


@pytest.mark.parametrize("number", ["", ".", "..", " "])
def test_trap_19_a_number_that_is_no_id(number):
    with pytest.raises(Refused, match="cannot be an order id"):
        pos_id(number)


@pytest.mark.parametrize(
    ("drop", "entity", "code"),
    [
        ((), "orders", "O13"),
        (("O13",), "orders", "POSSIE"),
        (("O13", "POSSIE"), "orders", "O1"),
        ((), "transactions", "POSISE"),
        (("POSISE",), "transactions", "P1"),
        ((), "rewards", None),
    ],
)
def test_the_code_that_says_least(drop, entity, code):
    codes = [one for one in payload("rejection_codes") if one["code"] not in drop]
    assert rejection_code(codes, entity) == code


def test_codes_without_words():
    assert rejection_code([{"code": "O1", "entity": "orders", "description": None}], "orders") == "O1"


def read(**fields: Any) -> RemoteOrder:
    return parse_order(unlinked(**fields))


def test_an_order_under_our_id_is_ours_if_doshii_says_so():
    assert is_ours(read(), "8123", [])
    assert not is_ours(read(), "8124", [PIZZA])


def test_an_order_that_does_not_say_is_known_by_its_items():
    assert is_ours(read(doshiiId=None), "8123", [PIZZA])
    assert not is_ours(read(doshiiId=None), "8123", ["another"])
