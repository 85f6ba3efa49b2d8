"""Bookings at the partner service: what is sent, and what is answered. The numbers of the traps, and the sections, are
those of contracts/partner.md."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from orders.errors import Refused
from orders.model import Order
from schemas import partner_booking as schema
from schemas.partner_booking import Booking, Wish

PAYLOADS = Path(__file__).resolve().parents[2] / "payloads" / "partner"
ANSWERS = json.loads((PAYLOADS / "booking_answers.json").read_text())
NICOSIA = ZoneInfo("Asia/Nicosia")
CREATED = datetime(2024, 1, 22, 13, 31, 7, 908000, tzinfo=UTC)


def document(name: str = "order") -> dict[str, Any]:
    return schema.read_order((PAYLOADS / f"{name}.json").read_text())


def request_of(document: dict[str, Any], **more: Any) -> schema.Request:
    wanted = schema.wishes(document, an_order(), NICOSIA)
    options: dict[str, Any] = {"images": ["a" * 24], "mark": "partner:default:1", "items": {}, "stores": {}}
    return schema.to_request(document, wanted, **(options | more))


def an_order(requested_at: datetime | None = None) -> Order:
    return Order(reference=None, currency=None, lines=(), requested_at=requested_at)


# -- what is sent -----------------------------------------------------------------------------------------------------


def test_an_order_as_the_contract_writes_it():
    assert request_of(document()).body == {
        "customer": {"phone_number": "+35799000001", "first_name": "Ann", "last_name": "Test"},
        "payment_method": "cash",
        "datetime": [{"date": "2024-02-14", "timeslot": "1217"}, {"date": "2024-02-15", "timeslot": "0712"}],
        "address": {
            "address": "1 Sample Street",
            "coordinates": {"lat": Decimal("34.70187"), "lon": Decimal("33.04853")},
            "details": "ref A-1001, 2nd floor [partner:default:1]",
            "zip": "0403",
        },
        "image_uuids": ["a" * 24],
        "partner_details": {
            "store_id": "st-1",
            "instock": True,
            "delivery_type": "to_door_by_lift",
            "items": [
                {"id": 501, "count": 2, "delivery": True, "assembly": True},
                {"id": 502, "count": 1, "delivery": False, "assembly": True},
                {"id": 501, "count": 1, "delivery": True, "assembly": False},
            ],
        },
    }


def test_trap_04_a_timeslot_is_a_text_with_its_zero():
    assert [wish["timeslot"] for wish in request_of(document()).body["datetime"]] == ["1217", "0712"]


def test_trap_05_a_single_wish_is_sent_as_an_array():
    assert request_of(document("order_at_store")).body["datetime"] == [{"date": "2024-02-20", "timeslot": "1721"}]


def test_trap_06_what_has_a_default_is_sent():
    details = request_of(document("order_at_store")).body["partner_details"]
    assert details["delivery_type"] == "to_pavement"
    assert details["items"] == [{"id": 502, "count": 1, "delivery": False, "assembly": True}]


def test_what_is_done_at_the_store_has_no_address():
    assert "address" not in request_of(document("order_at_store")).body
    assert "address" not in request_of({**document(), "address": None}).body


def test_trap_12_items_and_stores_are_translated_by_the_settings_alone():
    sent = request_of(document(), items={501: 9001}, stores={"st-1": "7"})
    assert [item["id"] for item in sent.body["partner_details"]["items"]] == [9001, 502, 9001]
    assert sent.store_id == "7"
    assert schema.unmapped_items(document(), {501: 9001}) == {502}
    assert schema.store_of(document(), {}) == "st-1"


@pytest.mark.parametrize(
    ("phone", "sent", "flagged"),
    [
        ("+1 (604) 376-2674", "+16043762674", False),
        ("0035799000001", "+35799000001", False),
        ("99000001", "99000001", True),
    ],
)
def test_a_telephone_number_is_made_plain_and_none_is_guessed(phone: str, sent: str, flagged: bool):
    order = document()
    order["customer"]["phone_number"] = phone
    request = request_of(order)
    assert request.body["customer"]["phone_number"] == sent
    assert any("country code" in flag for flag in request.flags) is flagged


def test_an_empty_last_name_becomes_a_hyphen_and_is_flagged():
    order = document()
    order["customer"]["last_name"] = "  "
    request = request_of(order)
    assert request.body["customer"]["last_name"] == "-"
    assert request.flags == ("there is no last name: a hyphen was sent",)


def test_our_mark_is_whole_however_much_the_customer_wrote():
    order = document()
    order["address"]["details"] = "x" * 2000
    details = request_of(order).body["address"]["details"]
    assert len(details) == 2000
    assert details.endswith("x [partner:default:1]")
    order["address"]["details"] = ""
    assert request_of(order).body["address"]["details"] == "[partner:default:1]"


def test_equal_bodies_have_equal_digests():
    assert request_of(document()).digest == request_of(document()).digest
    assert request_of(document()).digest != request_of(document(), images=["b" * 24]).digest


# -- wishes -----------------------------------------------------------------------------------------------------------


def test_trap_10_the_wish_that_the_erp_was_told_is_found_in_the_stores_own_time():
    """0712 begins at 07:00 in Nicosia, which is 05:00 in UTC; near midnight the days differ, too."""
    chosen = an_order(datetime(2024, 2, 15, 5, 0, tzinfo=UTC))
    assert [str(wish) for wish in schema.wishes(document(), chosen, NICOSIA)] == ["2024-02-15 0712", "2024-02-14 1217"]
    far = ZoneInfo("Pacific/Kiritimati")
    chosen = an_order(datetime(2024, 2, 14, 17, 0, tzinfo=UTC))
    assert str(schema.wishes(document(), chosen, far)[0]) == "2024-02-15 0712"


def test_without_a_choice_the_wishes_stay_as_they_are_each_once():
    order = document()
    order["datetime"] = order["datetime"] * 2
    assert [str(wish) for wish in schema.wishes(order, an_order(), NICOSIA)] == ["2024-02-14 1217", "2024-02-15 0712"]


@pytest.mark.parametrize(
    ("wish", "free"),
    [
        (Wish("2024-02-14", "1217"), True),
        (Wish("2024-02-14", "1721"), False),
        (Wish("2024-02-15", "1217"), False),
        (Wish("2024-02-16", "0712"), False),
        (Wish("2024-02-17", "0712"), False),
    ],
)
def test_what_the_slots_do_not_say_is_not_free(wish: Wish, free: bool):
    assert wish.is_free(ANSWERS["slots"]) is free


# -- what is answered -------------------------------------------------------------------------------------------------


def test_trap_01_a_booking_may_have_the_number_0():
    assert schema.parse_booking(ANSWERS["created"]) == Booking(
        number=0,
        status="open",
        substatus="open",
        title="Store One #0",
        store_id="st-1",
        instock=True,
        created_at=CREATED,
    )


def test_a_booking_of_which_little_is_told():
    assert schema.parse_booking(ANSWERS["bare"]) == Booking(number=17, status="completed", substatus="")


def test_what_is_told_otherwise_than_expected_counts_as_not_told():
    booking = schema.parse_booking(ANSWERS["telling"])
    assert booking == Booking(18, "completed", "payment_error", details="Blue gate [partner:default:17]")
    assert booking.trouble


@pytest.mark.parametrize(
    "wrong",
    [{"_id": None}, {"_id": "0"}, {"_id": True}, {"_id": 0.5}, {"_id": -1}, {"_status": None}, {"_status": 1}],
)
def test_a_booking_that_cannot_be_read(wrong: dict[str, Any]):
    with pytest.raises(Refused, match="the booking cannot be read"):
        schema.parse_booking(ANSWERS["created"] | wrong)


@pytest.mark.parametrize("wrong", [None, [], "x", {}])
def test_what_is_no_booking(wrong: Any):
    with pytest.raises(Refused):
        schema.parse_booking(wrong)


@pytest.mark.parametrize(
    ("status", "substatus", "done", "trouble"),
    [
        ("open", "open", False, False),
        ("completed", "payment_hold", False, False),
        ("completed", "payment_error", False, True),
        ("completed", "payment_requires_action", False, True),
        ("completed", "fee_error", False, True),
        ("completed", "fee_requires_action", False, True),
        ("completed", "tax_error", False, True),
        ("completed", "completed", False, False),
        ("done", "payment_captured", True, False),
        ("DONE", "payment_captured", False, False),
    ],
)
def test_trap_02_the_pair_decides(status: str, substatus: str, done: bool, trouble: bool):
    booking = Booking(1, status, substatus)
    assert (booking.done, booking.trouble) == (done, trouble)


def test_a_booking_in_words():
    assert [str(Booking(1, *pair)) for pair in (("open", "open"), ("open", ""), ("done", "fee_captured"))] == [
        "open",
        "open",
        "done, fee_captured",
    ]


def test_trap_03_an_image_is_known_by_its_id():
    assert schema.parse_image(ANSWERS["image"]) == "65c25a2bb95cb9c9f8561dbf"


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        ANSWERS["image"] * 2,
        [None],
        [[]],
        [{"url": "https://images.example.com/1.webp"}],
        [{"id": "https://images.example.com/1.webp"}],
        [{"id": ""}],
        [{"id": 7}],
    ],
)
def test_trap_03_nothing_else_is_taken_for_an_image(wrong: Any):
    with pytest.raises(Refused) as raised:
        schema.parse_image(wrong)
    assert "example.com" not in raised.value.reason


def test_ids_in_a_page_of_items():
    assert schema.item_ids_in([{"id": 501}, {"id": "502"}, {"id": True}, {}]) == {501}


# -- whose it is ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "may"),
    [
        ({}, True),
        ({"store_id": "st-2"}, False),
        ({"instock": False}, False),
        ({"created_at": CREATED - timedelta(hours=1)}, False),
        ({"created_at": CREATED + timedelta(hours=1)}, False),
        ({"store_id": None, "instock": None, "created_at": None}, True),
    ],
)
def test_only_what_is_told_of_a_booking_clears_it(change: dict[str, Any], may: bool):
    booking = replace(schema.parse_booking(ANSWERS["created"]), **change)
    minute = timedelta(minutes=1)
    wanted: dict[str, Any] = {"store_id": "st-1", "instock": True, "since": CREATED - minute, "until": CREATED + minute}
    assert schema.may_be(booking, **wanted) is may


@pytest.mark.parametrize(
    ("row", "number"),
    [
        ({"_id": 0}, 0),
        ({"_id": 7, "_status": None}, 7),
        ({"_id": True}, None),
        ({"_id": -1}, None),
        ({"_id": "7"}, None),
        ({}, None),
    ],
)
def test_trap_01_the_number_of_a_row_is_read_whatever_the_rest_is(row: dict[str, Any], number: int | None):
    assert schema.number_in(row) == number
