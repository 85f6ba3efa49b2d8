"""The imitation of the partner API against its contract: the service that books crews, and the shop at our door."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from io import BytesIO
from itertools import count, islice
from typing import Any

import pytest
import requests
from flask import Flask, Response, request
from werkzeug.test import TestResponse

from sandbox import base, partner, partner_shop
from sandbox.partner import Options

JPEG = b"\xff\xd8\xff\xe0 a receipt"
NOON = datetime(2024, 2, 10, 10, tzinfo=UTC).timestamp()
"""12:00 of a Saturday in the stores' zone."""
TOMORROW = "2024-02-11"


@dataclass
class Account:
    """Somebody with an account at the service, in a session without a socket."""

    options: Options = field(default_factory=lambda: Options(step_seconds=None, rate_per_second=None))
    seconds: float = NOON
    token: str | None = None

    def __post_init__(self) -> None:
        self.app = partner.create_app(self.options, lambda: self.seconds)
        self.client = self.app.test_client()
        self.control = base.control_of(self.app)
        self.service = partner.service_of(self.app)

    def call(self, method: str, path: str, **arguments: Any) -> TestResponse:
        headers = {"token": self.token or self.login(), **arguments.pop("headers", {})}
        return self.client.open(path, method=method, headers=headers, **arguments)

    def login(self) -> str:
        body = {"login": self.options.login, "password": self.options.password}
        self.token = data(self.client.post("/auth/authorize", json=body))["token"]
        return self.token

    def upload(self, raw: bytes = JPEG) -> str:
        answer = self.call("POST", "/image/upload", data={"any": (BytesIO(raw), "receipt.jpg")})
        return data(answer)[0]["id"]

    def body(self, **overrides: Any) -> dict[str, Any]:
        """A good create, with an image of its own, and `{"a.b": value}` put in its place (DROP: taken out)."""
        body = {
            "customer": {"phone_number": "+35799000001", "first_name": "Ann", "last_name": "Test"},
            "payment_method": "stripe",
            "datetime": [{"date": TOMORROW, "timeslot": "0712"}],
            "address": {
                "address": "1 Sample Street",
                "coordinates": {"lat": 34.70187, "lon": 33.04853},
                "details": "ref A-1001",
                "zip": "0403",
            },
            "image_uuids": [self.upload()],
            "partner_details": {
                "store_id": "st-1",
                "instock": True,
                "delivery_type": "to_pavement",
                "items": [{"id": 501, "count": 2, "delivery": True, "assembly": True}],
            },
        }
        return {**body, **overrides}

    def create(self, **overrides: Any) -> TestResponse:
        return self.call("POST", "/order/create", json=self.body(**overrides))

    def book(self, **overrides: Any) -> int:
        return data(self.create(**overrides))["_id"]

    def pair(self, number: int) -> tuple[str, str]:
        shown = data(self.call("GET", f"/order/{number}"))
        return shown["_status"], shown["_substatus"]

    def kinds(self) -> Counter[str]:
        return Counter(kind for effect in self.service.effects.of() for kind in effect.kinds)


@pytest.fixture
def account() -> Account:
    return Account()


def data(answer: TestResponse) -> Any:
    """What is in a good envelope."""
    assert answer.status_code == 200
    document = answer.get_json()
    assert (document["status"], document["statusCode"]) == ("ok", 200)
    return document["data"]


def wrong(answer: TestResponse) -> list[tuple[str, str]]:
    """Field and type of each error of a 422."""
    assert answer.status_code == 422
    return [(error["field"], error["type"]) for error in answer.get_json()["data"]]


def details(**overrides: Any) -> dict[str, Any]:
    items = [{"id": 501, "count": 1, "delivery": True, "assembly": False}]
    return {"store_id": "st-1", "instock": True, "delivery_type": "to_pavement", "items": items, **overrides}


def items(**overrides: Any) -> dict[str, Any]:
    return details(items=[{"id": 501, "count": 1, "delivery": True, **overrides}])


def address(**overrides: Any) -> dict[str, Any]:
    known = {"address": "1 Sample Street", "coordinates": {"lat": 34.7, "lon": 33.0}, "details": "", "zip": "0403"}
    return {**known, **overrides}


def customer(**overrides: Any) -> dict[str, Any]:
    return {"phone_number": "+35799000001", "first_name": "Ann", "last_name": "Test", **overrides}


# Envelopes, login and tokens


def test_a_login_gives_a_token_and_the_profile(account: Account):
    known = data(account.client.post("/auth/authorize", json={"login": "sandbox", "password": "sandbox-password"}))
    assert set(known) == {"token", "user"}
    assert known["user"]["stores"][0] == {"store_id": "st-1", "store_title": "Store One"}


def test_401_in_the_words_of_the_documents(account: Account):
    expected = {
        "name": "UnAuthorizedError",
        "message": "Unauthorized",
        "code": 401,
        "type": "NO_RIGHTS",
        "statusCode": 401,
        "status": "error",
        "data": None,
    }
    wrong_password = account.client.post("/auth/authorize", json={"login": "sandbox", "password": "other"})
    unknown_token = account.client.post("/order/create", json={}, headers={"token": "other"})
    for answer in (wrong_password, unknown_token, account.client.get("/order/list")):
        assert (answer.status_code, answer.get_json()) == (401, expected)


def test_a_login_without_a_password(account: Account):
    assert wrong(account.client.post("/auth/authorize", json={"login": "sandbox"})) == [("password", "required")]


def test_trap_08_the_header_is_called_token_and_has_no_scheme(account: Account):
    token = account.login()
    for headers in ({"Authorization": f"Bearer {token}"}, {"token": f"Bearer {token}"}, {"Authorization": token}):
        assert account.client.get("/order/list", headers=headers).status_code == 401
    assert account.client.get("/order/list", headers={"token": token}).status_code == 200


def test_only_login_and_slots_are_open(account: Account):
    assert account.client.get("/masters/slots?store_id=st-1").status_code == 200
    for method, path in (
        ("GET", "/order/list"),
        ("GET", "/order/0"),
        ("GET", "/item/list?store_id=st-1"),
        ("GET", "/item/find?store_id=st-1"),
        ("POST", "/order/create"),
        ("POST", "/order/cost"),
        ("POST", "/image/upload"),
    ):
        assert account.client.open(path, method=method).status_code == 401


def test_two_tokens_live_side_by_side_and_of_six_the_oldest_dies(account: Account):
    tokens = [account.login() for _ in range(6)]
    answers = [account.client.get("/order/list", headers={"token": token}).status_code for token in tokens]
    assert answers == [401, 200, 200, 200, 200, 200]


def test_a_token_that_dies_after_some_calls(account: Account):
    account.options.token_calls = 2
    account.login()
    assert [account.call("GET", "/order/list").status_code for _ in range(3)] == [200, 200, 401]
    account.login()
    assert account.call("GET", "/order/list").status_code == 200


def test_a_401_in_the_middle_books_nothing(account: Account):
    body = account.body()
    account.options.unauthorized["create"] = 1
    assert account.call("POST", "/order/create", json=body).status_code == 401
    assert account.call("GET", "/order/list").status_code == 401
    account.login()
    assert account.call("POST", "/order/create", json=body).status_code == 200
    assert account.kinds()["booking"] == 1


def test_more_than_ten_calls_a_second_with_one_token_are_too_many():
    account = Account(Options(step_seconds=None))
    account.login()
    assert [account.call("GET", "/order/list").status_code for _ in range(11)] == [200] * 10 + [429]
    refused = account.call("GET", "/order/list")
    assert refused.headers["Retry-After"] == "1"
    assert (refused.get_json()["name"], refused.get_json()["type"]) == ("TooManyRequestsError", "RATE_LIMIT")
    account.seconds += 1
    assert account.call("GET", "/order/list").status_code == 200
    other = account.login()
    assert [account.call("GET", "/order/list").status_code for _ in range(10)] == [200] * 10
    assert account.client.get("/order/list", headers={"token": other}).status_code == 429


def test_a_limit_for_all_together():
    account = Account(Options(step_seconds=None, rate_per_minute=2))
    assert account.client.get("/masters/slots?store_id=st-1").status_code == 200
    account.login()
    answers = [account.call("GET", "/order/list"), account.client.get("/masters/slots?store_id=st-1")]
    assert [(answer.status_code, answer.get_json()["type"]) for answer in answers] == [(429, "RATE_LIMIT")] * 2


def test_unknown_paths_and_verbs_have_the_envelope(account: Account):
    for method, path in (
        ("GET", "/elsewhere"),
        ("DELETE", "/order/list"),
        ("GET", "/order/create"),
        ("GET", "/order/7"),
    ):
        answer = account.call(method, path)
        assert (answer.status_code, answer.get_json()["type"]) == (404, "NOT_FOUND")


def test_paths_come_from_one_table():
    account = Account(Options(paths={**Options().paths, "create": "/v2/orders"}, step_seconds=None))
    assert data(account.call("POST", "/v2/orders", json=account.body()))["_id"] == 0
    assert account.call("POST", "/order/create", json=account.body()).status_code == 404


def test_an_error_may_come_as_200(account: Account):
    account.options.errors_as_200 = True
    answer = account.call("GET", "/order/7")
    assert (answer.status_code, answer.get_json()["status"], answer.get_json()["statusCode"]) == (200, "error", 404)


# Create


def test_trap_01_the_first_id_is_0(account: Account):
    assert [account.book(), account.book()] == [0, 1]
    assert data(account.call("GET", "/order/0"))["title"] == "Store One #0"


def test_trap_07_a_creation_is_a_200_and_has_two_kinds_of_status(account: Account):
    answer = account.create()
    assert answer.status_code == 200
    assert answer.get_json() == {
        "status": "ok",
        "statusCode": 200,
        "data": {
            "_id": 0,
            "title": "Store One #0",
            "_status": "open",
            "_substatus": "open",
            "partner": "sample-fleet",
            "partner_details": {"instock": True, "store_id": "st-1", "store_title": "Store One"},
            "created_at": "2024-02-10T10:00:00.000Z",
        },
    }


def test_goods_that_are_not_there_yet(account: Account):
    number = account.book(partner_details=details(instock=False))
    assert account.pair(number) == ("open", "not_in_stock")


def test_trap_11_a_blind_retry_sends_two_crews(account: Account):
    body = account.body()
    numbers = [data(account.call("POST", "/order/create", json=body))["_id"] for _ in range(2)]
    assert numbers == [0, 1]
    assert account.kinds()["crew"] == 2
    bookings = account.client.get("/_sandbox/bookings").get_json()
    assert [booking["_id"] for booking in bookings] == [0, 1]
    assert len({booking["fingerprint"] for booking in bookings}) == 1


def test_an_effect_says_what_was_booked(account: Account):
    account.book()
    [upload, booking] = account.service.effects.of()
    assert upload.kinds == ("upload",)
    assert json.loads(booking.raw)["image_uuids"] == [upload.order]
    assert (booking.order, booking.kinds) == ("0", ("booking", "crew"))
    assert booking.key == account.service.all_bookings()[0]["fingerprint"]


@pytest.mark.parametrize("kind", ["lost_answer", "500_after"])
def test_an_unclear_create_has_its_crew(account: Account, kind: str):
    body = account.body()
    account.control.faults.set([base.FaultRule(kinds=(kind,), path_contains="create", times=1)])
    try:
        assert account.call("POST", "/order/create", json=body).status_code == 500
    except ConnectionError:
        assert kind == "lost_answer"
    assert account.kinds()["crew"] == 1
    assert [row["_id"] for row in data(account.call("GET", "/order/list"))] == [0]


def test_all_field_errors_come_together_sorted(account: Account):
    body = {"customer": {"first_name": " ", "last_name": "x" * 101}, "datetime": [], "partner_details": {"items": [{}]}}
    assert wrong(account.call("POST", "/order/create", json=body)) == [
        ("customer.first_name", "stringEmpty"),
        ("customer.last_name", "stringMax"),
        ("customer.phone_number", "required"),
        ("datetime", "arrayMin"),
        ("image_uuids", "required"),
        ("partner_details.instock", "required"),
        ("partner_details.items", "noService"),
        ("partner_details.items[0].count", "required"),
        ("partner_details.items[0].id", "required"),
        ("partner_details.store_id", "required"),
        ("payment_method", "required"),
    ]
    assert account.kinds()["booking"] == 0


RULES: list[tuple[dict[str, Any], str, str]] = [
    ({"customer": None}, "customer", "required"),
    ({"customer": "Ann"}, "customer", "object"),
    ({"customer": customer(phone_number=35799000001)}, "customer.phone_number", "string"),
    ({"customer": customer(phone_number="unknown")}, "customer.phone_number", "stringPattern"),
    ({"customer": customer(phone_number="123456")}, "customer.phone_number", "stringPattern"),
    ({"customer": customer(last_name="")}, "customer.last_name", "stringEmpty"),
    ({"customer": customer(last_name=7)}, "customer.last_name", "string"),
    ({"payment_method": "card"}, "payment_method", "enumValue"),
    ({"datetime": "tomorrow"}, "datetime", "array"),
    ({"datetime": [{"date": TOMORROW, "timeslot": "0712"}] * 11}, "datetime", "arrayMax"),
    ({"datetime": [7]}, "datetime[0]", "object"),
    ({"datetime": [{"date": "2024-02-30", "timeslot": "0712"}]}, "datetime[0].date", "date"),
    ({"datetime": [{"date": "20240211", "timeslot": "0712"}]}, "datetime[0].date", "date"),
    ({"datetime": [{"date": "2024-02-09", "timeslot": "0712"}]}, "datetime[0].date", "dateRange"),
    ({"datetime": [{"date": "2024-03-12", "timeslot": "0712"}]}, "datetime[0].date", "dateRange"),
    ({"datetime": [{"date": TOMORROW}]}, "datetime[0].timeslot", "required"),
    ({"datetime": [{"date": TOMORROW, "timeslot": "712"}]}, "datetime[0].timeslot", "enumValue"),
    ({"address": None}, "address", "required"),
    ({"address": "1 Sample Street"}, "address", "object"),
    ({"address": address(address="")}, "address.address", "stringEmpty"),
    ({"address": address(zip=4003)}, "address.zip", "string"),
    ({"address": address(zip="1" * 21)}, "address.zip", "stringMax"),
    ({"address": address(details=None)}, "address.details", "required"),
    ({"address": address(coordinates="34.7, 33.0")}, "address.coordinates", "object"),
    ({"address": address(coordinates={"lat": True, "lon": 33})}, "address.coordinates.lat", "number"),
    ({"address": address(coordinates={"lat": -90.5, "lon": 33})}, "address.coordinates.lat", "numberMin"),
    ({"address": address(coordinates={"lat": 34, "lon": 181})}, "address.coordinates.lon", "numberMax"),
    ({"address": address(coordinates={"lat": 0, "lon": 0.0})}, "address.coordinates.lat", "number"),
    ({"image_uuids": []}, "image_uuids", "arrayMin"),
    ({"image_uuids": ["a", "a"]}, "image_uuids", "arrayUnique"),
    ({"image_uuids": [7]}, "image_uuids[0]", "string"),
    ({"image_uuids": ["65c25a2bb95cb9c9f8561dbf"]}, "image_uuids[0]", "notFound"),
    ({"partner_details": details(store_id="st-9")}, "partner_details.store_id", "notFound"),
    ({"partner_details": details(instock="true")}, "partner_details.instock", "boolean"),
    ({"partner_details": details(delivery_type=None)}, "partner_details.delivery_type", "enumValue"),
    ({"partner_details": details(items=[])}, "partner_details.items", "arrayMin"),
    ({"partner_details": details(items=[*details()["items"], 501])}, "partner_details.items[1]", "object"),
    ({"partner_details": items(id="A7")}, "partner_details.items[0].id", "number"),
    ({"partner_details": items(id=501.0)}, "partner_details.items[0].id", "number"),
    ({"partner_details": items(count=0)}, "partner_details.items[0].count", "numberMin"),
    ({"partner_details": items(count=1000)}, "partner_details.items[0].count", "numberMax"),
    ({"partner_details": items(count="1")}, "partner_details.items[0].count", "number"),
    ({"partner_details": items(assembly=1)}, "partner_details.items[0].assembly", "boolean"),
    ({"partner_details": items(delivery=False)}, "partner_details.items", "noService"),
]


@pytest.mark.parametrize(("overrides", "name", "kind"), RULES, ids=[f"{name}-{kind}" for _, name, kind in RULES])
def test_a_field_rule(account: Account, overrides: dict[str, Any], name: str, kind: str):
    assert wrong(account.create(**overrides)) == [(name, kind)]
    assert account.kinds()["booking"] == 0


@pytest.mark.parametrize(
    "overrides",
    [
        {"customer": customer(phone_number="+357 (99) 000-001")},
        {"address": address(details="")},
        {"address": None, "partner_details": items(delivery=False, assembly=True)},
        {"partner_details": {**items(delivery=False, assembly=True), "delivery_type": "by_air"}},
        {"partner_details": items(id="501")},
        {"partner_details": details(items=[{"id": 501, "count": 1, flag: True} for flag in ("delivery", "assembly")])},
        {"unknown": "key"},
    ],
    ids=["phone", "details", "at the store", "no delivery", "id as text", "item twice", "unknown key"],
)
def test_what_the_rules_just_allow(account: Account, overrides: dict[str, Any]):
    assert account.book(**overrides) == 0


def test_trap_03_an_image_is_named_by_its_id_and_was_uploaded_before(account: Account):
    [image] = data(account.call("POST", "/image/upload", data={"any": (BytesIO(JPEG), "receipt.jpg")}))
    assert set(image) == {"id", "url", "mimetype"}
    assert len(image["id"]) == 24
    assert image["mimetype"] == "image/webp"
    assert wrong(account.create(image_uuids=[image["url"]])) == [("image_uuids[0]", "notFound")]
    assert wrong(account.create(image_uuids=[[image]])) == [("image_uuids[0]", "string")]
    assert wrong(account.create(image_uuids=[image])) == [("image_uuids[0]", "string")]
    assert account.book(image_uuids=[image["id"]]) == 0


def test_trap_04_a_timeslot_is_text_with_its_zero(account: Account):
    for value in (712, "712", 1217):
        answer = account.create(datetime=[{"date": TOMORROW, "timeslot": value}])
        assert wrong(answer) == [("datetime[0].timeslot", "enumValue")]


def test_trap_05_datetime_is_an_array_or_an_object(account: Account):
    pair = {"date": TOMORROW, "timeslot": "1217"}
    assert account.book(datetime=pair) == 0
    assert account.service.all_bookings()[0]["order"]["datetime"] == [pair]
    account.options.datetime_shape = "array"
    assert wrong(account.create(datetime=pair)) == [("datetime", "array")]
    assert account.book(datetime=[pair]) == 1


def test_trap_06_what_has_a_default_may_be_absent(account: Account):
    lean = {"store_id": "st-1", "instock": True, "items": [{"id": 501, "count": 1, "delivery": True}]}
    account.book(partner_details=lean)
    known = account.service.all_bookings()[0]["order"]["partner_details"]
    assert known["delivery_type"] == "to_pavement"
    assert known["items"] == [{"id": 501, "count": 1, "delivery": True, "assembly": False}]


def test_trap_12_an_item_that_is_not_in_the_catalogue(account: Account):
    assert wrong(account.create(partner_details=items(id=7))) == [("partner_details.items[0].id", "notFound")]


def test_the_checks_come_in_their_order(account: Account):
    taken = {"date": TOMORROW, "timeslot": "0712"}
    account.options.slot_calendar[f"{TOMORROW}/0712"] = 0
    assert account.client.post("/order/create", data="{").status_code == 401
    for raw in ("{", "[]", '"text"'):
        answer = account.call("POST", "/order/create", data=raw, content_type="application/json")
        assert wrong(answer) == [("body", "object")]
    unknown = {"partner_details": details(store_id="st-9"), "datetime": [taken]}
    assert wrong(account.create(**unknown, payment_method="card")) == [("payment_method", "enumValue")]
    assert wrong(account.create(**unknown)) == [("partner_details.store_id", "notFound")]
    assert wrong(account.create(datetime=[taken])) == [("datetime[0].timeslot", "slotUnavailable")]


def test_bodies_of_the_wrong_type_and_size(account: Account):
    assert account.call("POST", "/order/create", data="{}", content_type="text/plain").status_code == 415
    answer = account.create(note="x" * (64 << 10))
    assert (answer.status_code, answer.get_json()["name"]) == (413, "PayloadTooLargeError")


@pytest.mark.parametrize("shape", ["null", "object"])
def test_the_data_of_a_422_may_have_other_shapes(account: Account, shape: str):
    account.options.error_data = shape
    answer = account.create(payment_method="card")
    assert answer.status_code == 422
    assert answer.get_json()["message"] == "Validation failed"
    assert answer.get_json()["data"] == {"null": None, "object": {"payment_method": "enumValue"}}[shape]


# Slots


def test_trap_10_reading_slots_reserves_nothing(account: Account):
    account.options.slot_capacity = 1
    for _ in range(2):
        shown = data(account.call("GET", "/masters/slots?store_id=st-1"))
        assert shown[TOMORROW] == {"1217": True, "1721": True, "0712": True}
    assert len(shown) == 31
    account.book()
    assert data(account.call("GET", "/masters/slots?store_id=st-1"))[TOMORROW]["0712"] is False
    assert data(account.call("GET", "/masters/slots?store_id=st-2"))[TOMORROW]["0712"] is True
    assert wrong(account.create()) == [("datetime[0].timeslot", "slotUnavailable")]


def test_trap_10_dates_are_local_to_the_store(account: Account):
    account.seconds = datetime(2024, 2, 10, 22, 30, tzinfo=UTC).timestamp()  # 00:30 of the 11th there
    shown = data(account.call("GET", "/masters/slots?store_id=st-1"))
    assert min(shown) == "2024-02-11"
    yesterday = {"date": "2024-02-10", "timeslot": "1721"}
    assert wrong(account.create(datetime=[yesterday])) == [("datetime[0].date", "dateRange")]
    assert account.book(datetime=[{"date": "2024-02-11", "timeslot": "0712"}]) == 0


def test_a_slot_that_is_over_is_not_free(account: Account):
    today = data(account.call("GET", "/masters/slots?store_id=st-1"))["2024-02-10"]
    assert today == {"1217": True, "1721": True, "0712": False}
    over = {"date": "2024-02-10", "timeslot": "0712"}
    assert wrong(account.create(datetime=[over])) == [("datetime[0].timeslot", "slotUnavailable")]


def test_the_first_free_preference_wins(account: Account):
    account.options.slot_calendar[f"st-1/{TOMORROW}/0712"] = 0
    account.book(datetime=[{"date": TOMORROW, "timeslot": slot} for slot in ("0712", "1721", "1217")])
    assert account.service.all_bookings()[0]["slot"] == f"st-1/{TOMORROW}/1721"


def test_nothing_is_taken_before_the_goods_are_there(account: Account):
    account.options.slot_calendar[f"{TOMORROW}/0712"] = 0
    assert account.book(partner_details=details(instock=False)) == 0
    assert account.service.all_bookings()[0]["slot"] is None


def test_a_slot_is_lost_between_read_and_create(account: Account):
    account.options.lose_slots = 1
    assert wrong(account.create()) == [("datetime[0].timeslot", "slotUnavailable")]
    assert data(account.call("GET", "/masters/slots?store_id=st-1"))[TOMORROW]["0712"] is False
    assert account.book(datetime=[{"date": TOMORROW, "timeslot": "1217"}]) == 0


def test_slots_and_items_need_a_known_store(account: Account):
    for path in ("/masters/slots", "/item/list", "/item/find"):
        assert wrong(account.call("GET", path)) == [("store_id", "required")]
        assert wrong(account.call("GET", f"{path}?store_id=st-9")) == [("store_id", "notFound")]


# Items, cost, images


def test_items_are_listed_and_found(account: Account):
    rows = data(account.call("GET", "/item/list?store_id=st-1&limit=2&skip=1"))
    assert [row["id"] for row in rows] == [502, 503]
    found = data(account.call("GET", "/item/find?store_id=st-1&name=WARD"))
    assert found == [{"id": 501, "name": "Wardrobe", "delivery": True, "assembly": True}]


def test_the_cost_adds_up_and_books_nothing(account: Account):
    lines = [
        {"id": 501, "count": 2, "delivery": True, "assembly": True},
        {"id": 502, "count": 1, "assembly": True},
        {"id": 504, "count": 1, "delivery": True},
    ]
    wanted = {"store_id": "st-1", "zip": "0403", "delivery_type": "to_pavement", "items": lines}
    answer = data(account.call("POST", "/order/cost", json=wanted))
    assert answer == {
        "value_items": 8000,
        "value_work": 2500,
        "value_delivery": 1500,
        "value_small_order_fee": 0,
        "total": 12000,
    }
    small = data(account.call("POST", "/order/cost", json={**wanted, "items": lines[2:]}))
    assert (small["value_small_order_fee"], small["total"]) == (500, 2000)
    assert account.kinds() == {}


def test_the_cost_has_rules_too(account: Account):
    assert wrong(account.call("POST", "/order/cost", json={})) == [
        ("delivery_type", "required"),
        ("items", "required"),
        ("store_id", "required"),
        ("zip", "required"),
    ]
    unknown = {"store_id": "st-9", "zip": "0403", "delivery_type": "to_pavement"}
    answer = account.call("POST", "/order/cost", json={**unknown, "items": [{"id": 501, "count": 1, "delivery": True}]})
    assert wrong(answer) == [("store_id", "notFound")]
    answer = account.call(
        "POST", "/order/cost", json={**unknown, "store_id": "st-1", "items": [{"id": 7, "count": 1, "delivery": True}]}
    )
    assert wrong(answer) == [("items[0].id", "notFound")]


@pytest.mark.parametrize(
    "raw", [JPEG, b"RIFF\x00\x00\x00\x00WEBP", partner_shop.receipt("é")], ids=["jpeg", "webp", "png"]
)
def test_the_same_image_twice_has_two_ids(account: Account, raw: bytes):
    assert account.upload(raw) != account.upload(raw)
    assert account.kinds() == {"upload": 2}


def test_what_is_not_an_image(account: Account):
    def upload(**arguments: Any) -> TestResponse:
        return account.call("POST", "/image/upload", **arguments)

    assert upload(json={}).status_code == 415
    assert upload(data={"file": (BytesIO(b"GIF89a"), "a.gif")}).status_code == 415
    large = requests.Request("POST", "http://127.0.0.1/", files={"file": JPEG + bytes(10 << 20)}).prepare()
    assert upload(data=large.body, content_type=large.headers["Content-Type"]).status_code == 413
    assert wrong(upload(data={"a": "text"}, content_type="multipart/form-data")) == [("file", "required")]
    two = {"a": (BytesIO(JPEG), "a.jpg"), "b": (BytesIO(JPEG), "b.jpg")}
    assert wrong(upload(data=two)) == [("file", "arrayMax")]
    assert account.kinds() == {}


# The order list


def ids(answer: TestResponse) -> list[int]:
    return [row["_id"] for row in data(answer)]


@pytest.mark.parametrize("default", [10, 20])
def test_trap_09_the_limit_has_no_sure_default(account: Account, default: int):
    account.options.limit_default = default
    for _ in range(21):
        account.book()
    assert ids(account.call("GET", "/order/list")) == list(range(20, 20 - default, -1))
    assert len(ids(account.call("GET", "/order/list?limit=50"))) == 21


def test_the_list_is_newest_first_and_paged(account: Account):
    for _ in range(3):
        account.book()
    account.service.edit_order("0", {"created_at": "2024-02-10T11:00:00.000Z"})
    assert ids(account.call("GET", "/order/list?limit=2")) == [0, 2]
    assert ids(account.call("GET", "/order/list?limit=2&skip=2")) == [1]
    account.options.page_overlap = 1
    assert ids(account.call("GET", "/order/list?limit=2&skip=2")) == [2, 1]


def test_wrong_pages_are_refused(account: Account):
    assert wrong(account.call("GET", "/order/list?limit=0&skip=x")) == [("limit", "numberMin"), ("skip", "number")]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, [1, 0]),
        ({"store_ids": ["st-2"]}, [1]),
        ({"filter": ["in_work", "done"]}, [0]),
        ({"filter": ["open"], "store_ids": ["st-1"]}, []),
        ({"query": "store two"}, [1]),
        ({"query": "ANN"}, [0]),
        ({"query": "+357 99 000 002"}, [1]),
        ({"query": "gate"}, [1]),
        ({"query": "1"}, [1, 0]),
        ({"query": "nobody"}, []),
    ],
    ids=json.dumps,
)
def test_filters_in_brackets_and_as_json(account: Account, wanted: dict[str, Any], found: list[int]):
    account.book()
    account.book(
        customer=customer(phone_number="+35799000002", first_name="Billie"),
        address=address(details="Blue gate"),
        partner_details=details(store_id="st-2"),
    )
    account.service.edit_order("0", {"_substatus": "in_work"})
    brackets: dict[str, str] = {}
    for name, value in wanted.items():
        one = (
            {f"filter[{name}]": value} if name == "query" else {f"filter[{name}][{n}]": v for n, v in enumerate(value)}
        )
        brackets |= one
    assert ids(account.call("GET", "/order/list", query_string=brackets)) == found
    assert ids(account.call("GET", "/order/list", query_string={"filter": json.dumps(wanted)})) == found


def test_a_filter_in_no_shape_is_refused(account: Account):
    assert wrong(account.call("GET", "/order/list?filter=x")) == [("filter", "object")]
    assert wrong(account.call("GET", "/order/list?filter=[]")) == [("filter", "object")]
    answer = account.call("GET", "/order/list", query_string={"filter": '{"store_ids": [7], "query": 7}'})
    assert wrong(answer) == [("filter.query", "string"), ("filter.store_ids[0]", "string")]


def test_search_and_order_by_id_may_be_missing(account: Account):
    account.book()
    account.options.query_works = False
    assert ids(account.call("GET", "/order/list?filter[query]=nobody")) == [0]
    account.options.order_by_id = False
    assert account.call("GET", "/order/0").status_code == 404


# How bookings go on

CARD = ["open", "awaiting_master_request", "awaiting_master_accept", "in_work", "completed", "awaiting_payment"]


def path(account: Account, number: int) -> list[str]:
    """All substatuses of a booking from here."""
    seen = [account.pair(number)[1]]
    while True:
        account.service.edit_order(str(number), {"advance": 1})
        if (now := account.pair(number)[1]) == seen[-1]:
            return seen
        seen.append(now)


def test_the_path_of_a_booking(account: Account):
    account.options.trouble_share = 0
    assert path(account, account.book()) == [*CARD, "payment_hold", "payment_captured"]
    cash = account.book(payment_method="cash")
    assert path(account, cash) == [*CARD[:-1], "awaiting_fee", "fee_hold", "fee_captured"]
    late = account.book(partner_details=details(instock=False))
    assert path(account, late) == [
        "not_in_stock",
        "in_stock_awaiting_date",
        *CARD[1:],
        "payment_hold",
        "payment_captured",
    ]
    assert {account.pair(number)[0] for number in range(3)} == {"done"}
    assert account.kinds() == {"upload": 3, "booking": 3, "crew": 3, "payment_captured": 2, "fee_captured": 1}


def test_trap_02_the_status_hides_payment_trouble(account: Account):
    account.options.trouble_share = 1
    number = account.book()
    for _ in range(6):
        account.service.edit_order(str(number), {"advance": 1})
    assert account.pair(number) == ("completed", "payment_error")
    assert path(account, number) == ["payment_error", "payment_hold", "payment_captured"]
    assert account.kinds()["payment_captured"] == 1


def test_every_substatus_has_its_status():
    assert set(partner.STATUS_OF.values()) == set(partner.STATUSES)
    for substatus, status in partner.STATUS_OF.items():
        following = partner.next_substatus(substatus, "stripe", False)
        assert (following is None) == (status == "done")


def test_a_person_may_set_any_status(account: Account):
    number = account.book()
    answer = account.client.patch(f"/_sandbox/orders/{number}", json={"_substatus": "payment_error"})
    assert (answer.get_json()["_status"], answer.get_json()["_substatus"]) == ("completed", "payment_error")
    account.service.edit_order(str(number), {"_substatus": "in_work"})
    assert account.pair(number) == ("in_work", "in_work")
    account.service.edit_order(str(number), {"_substatus": "polishing"})
    assert account.pair(number) == ("in_work", "polishing")
    assert path(account, number) == ["polishing"]
    account.service.edit_order(str(number), {"_status": "done"})
    assert account.pair(number) == ("done", "polishing")
    account.options.step_seconds = 1
    account.service.edit_order(str(number), {"_status": "done", "_substatus": "in_work"})
    account.seconds += 1000
    assert account.pair(number) == ("done", "in_work")
    with pytest.raises(ValueError, match="colour"):
        account.service.edit_order(str(number), {"colour": "red"})
    for unknown in ("7", "x"):
        with pytest.raises(KeyError):
            account.service.edit_order(unknown, {"advance": 1})


def test_a_person_interposes_after_a_read(account: Account):
    account.control.backend.interpositions.add(None, "POST", {"_substatus": "in_work"})
    account.control.backend.interpositions.add(0, "GET", {"advance": 1})
    assert data(account.create())["_substatus"] == "open"
    assert account.pair(0) == ("in_work", "in_work")
    assert account.pair(0) == ("completed", "completed")


def test_bookings_go_on_by_themselves_and_alike_for_a_seed():
    accounts = [Account(Options(rate_per_second=None, step_seconds=10, trouble_share=0.5)) for _ in range(2)]
    seen: list[list[tuple[str, str]]] = [[], []]
    for account, pairs in zip(accounts, seen, strict=True):
        for _ in range(4):
            account.book()
        for _ in range(12):
            account.seconds += 10
            pairs.extend(account.pair(number) for number in range(4))
    assert seen[0] == seen[1]
    assert len(set(seen[0])) > 5
    assert {("completed", "payment_error"), ("done", "payment_captured")} <= set(seen[0])
    assert set(seen[0][-4:]) == {("done", "payment_captured")}
    assert accounts[0].kinds()["payment_captured"] == 4


def test_after_a_long_pause_every_step_was_taken_once():
    account = Account(Options(rate_per_second=None, step_seconds=10))
    account.book()
    account.seconds += 1000
    assert account.pair(0) == ("done", "payment_captured")
    assert account.kinds()["payment_captured"] == 1


def test_a_word_that_nobody_knows_stays():
    account = Account(Options(rate_per_second=None, step_seconds=10))
    account.book()
    account.service.edit_order("0", {"_substatus": "polishing"})
    account.seconds += 1000
    assert account.pair(0) == ("open", "polishing")
    account.service.edit_order("0", {"_substatus": "in_work"})
    account.seconds += 1000
    assert account.pair(0) == ("done", "payment_captured")


# The shop at our door


class Door:
    """A fleet's partner endpoint as section 5.1 has it: one `_id` for a set of images, whatever comes how often."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.statuses: list[tuple[str, int]] = []
        """Path and status of the next answers that are to be bad; the work is done when it is 500."""
        self.calls: list[tuple[str, int]] = []
        self.creates: list[tuple[dict[str, Any], str | None, str]] = []
        """Body, key and token of each create."""
        self.orders: dict[str, int] = {}
        self.tokens = {"sandbox-inbound-token"}
        self.numbers = count()
        self.app = Flask("door")
        self.app.add_url_rule("/partner/<path:path>", view_func=self.answer, methods=["GET", "POST"])

    def answer(self, path: str) -> Response:
        with self.lock:
            status, document = self._answer(path)
            self.calls.append((path, status))
        headers = {"Retry-After": "0"} if status in (409, 429) else {}
        return base.json_response({"status": "ok", "statusCode": status, "data": document}, status, headers)

    def _answer(self, path: str) -> tuple[int, Any]:
        planned = next((plan for plan in self.statuses if plan[0] == path), None)
        if planned:
            self.statuses.remove(planned)
            if planned[1] != 500:
                return planned[1], None
        if path == "auth/authorize":
            return self._log_in()
        if path != "masters/slots" and request.headers.get("token") not in self.tokens:
            return 401, None
        work: dict[str, Callable[[], Any]] = {
            "image/upload": lambda: [{"id": f"{next(self.numbers):024x}"}],
            "item/list": lambda: [],
            "masters/slots": self._slots,
            "order/create": self._create,
        }
        document = work[path]()
        return (planned[1] if planned else 422 if document is None else 200), document

    def _log_in(self) -> tuple[int, Any]:
        if request.get_json() != {"login": "sandbox-shop", "password": "sandbox-shop-password"}:
            return 401, None
        self.tokens.add(token := f"token-{next(self.numbers)}")
        return 200, {"token": token, "user": {}}

    def _slots(self) -> Any:
        first = datetime(2024, 2, 10, tzinfo=UTC)
        days = [(first + timedelta(ahead)).date().isoformat() for ahead in range(31)]
        return {day: {"1721": True, "0712": day != TOMORROW, "1217": True} for day in days}

    def _create(self) -> Any:
        body = request.get_json()
        self.creates.append((body, request.headers.get("Idempotency-Key"), request.headers["token"]))
        if body["customer"]["phone_number"] == "unknown":
            return None
        return {"_id": self.orders.setdefault(json.dumps(body["image_uuids"]), len(self.orders))}


@dataclass
class Shop:
    """The imitation's shop, and the door at which it knocks."""

    door: Door
    app: Flask
    web: str
    service: partner.Service

    def sent(self, number: int = 1, **specification: Any) -> list[dict[str, Any]]:
        """Add orders, and wait until all were answered for good."""
        names = self.service.add_orders([specification] * number)
        partner.point_at(self.app, self.web)
        assert wait(lambda: all(self.service.one_order(name)["state"] != "waiting" for name in names))
        return [self.service.one_order(name) for name in names]


def wait(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


@pytest.fixture
def shop() -> Iterator[Shop]:
    door = Door()
    app = partner.create_app(Options(retry_seconds=0.02, remember_seconds=0))
    service = partner.service_of(app)
    with base.running(door.app) as web:
        yield Shop(door, app, web, service)
        service.sender.stop()


def test_an_order_goes_the_way_of_the_documents(shop: Shop):
    [order] = shop.sent(key=True)
    assert [path for path, _ in shop.door.calls] == ["item/list", "masters/slots", "image/upload", "order/create"]
    [(body, key, token)] = shop.door.creates
    assert token == "sandbox-inbound-token"
    assert key == order["key"] is not None
    assert body == order["body"]
    assert set(body) == {"customer", "payment_method", "datetime", "address", "image_uuids", "partner_details"}
    assert (order["state"], order["ids"]) == ("accepted", [0])
    assert [(answer["status"], answer["_id"]) for answer in order["answers"]] == [(200, 0)]


def test_orders_wait_until_we_say_where_to(shop: Shop):
    shop.service.add_orders([{}, {}])
    assert [order["state"] for order in shop.service.all_orders()] == ["waiting", "waiting"]
    shop.sent()
    assert wait(lambda: all(order["state"] == "accepted" for order in shop.service.all_orders()))
    assert sorted(number for order in shop.service.all_orders() for number in order["ids"]) == [0, 1, 2]


def test_a_day_becomes_the_date_of_a_free_slot(shop: Shop):
    [order] = shop.sent(datetime=[{"day": 1, "timeslot": "0712"}, {"day": 1, "timeslot": "1217"}])
    assert [pair["date"] for pair in order["body"]["datetime"]] == ["2024-02-12", TOMORROW]
    [order] = shop.sent(datetime={"date": "2024-02-20", "timeslot": "0712"})
    assert order["body"]["datetime"] == {"date": "2024-02-20", "timeslot": "0712"}


def test_it_logs_in_and_does_so_again_when_its_token_has_died(shop: Shop):
    shop.sent(login=True)
    shop.door.tokens = set()
    shop.door.statuses = [("auth/authorize", 503)]
    shop.sent(login=True)
    logins = [status for path, status in shop.door.calls if path == "auth/authorize"]
    assert logins == [200, 503, 200]
    assert [token[:6] for _, _, token in shop.door.creates] == ["token-", "token-"]


@pytest.mark.parametrize("status", [401, 404, 409, 429, 500, 503])
def test_what_is_neither_200_nor_422_is_sent_again_unchanged(shop: Shop, status: int):
    shop.door.statuses = [("order/create", status)] * 2
    [order] = shop.sent()
    assert [answer["status"] for answer in order["answers"]] == [status, status, 200]
    assert all(body == order["body"] for body, _, _ in shop.door.creates)
    assert Counter(path for path, _ in shop.door.calls)["masters/slots"] == 1
    assert order["ids"] == [0]
    assert len(shop.door.orders) == 1


def test_a_failed_upload_is_made_good(shop: Shop):
    shop.door.statuses = [("image/upload", 503), ("masters/slots", 503)]
    [order] = shop.sent(images=2)
    assert len(order["body"]["image_uuids"]) == 2
    assert [answer["status"] for answer in order["answers"]] == [200]


def test_a_refused_order_is_not_sent_again(shop: Shop):
    [order] = shop.sent(customer=customer(phone_number="unknown"))
    assert (order["state"], order["ids"]) == ("refused", [])
    assert [answer["status"] for answer in order["answers"]] == [422]


def test_a_door_that_opens_late(shop: Shop):
    door = Door()
    with base.running(Flask("gone")) as nowhere:
        pass
    [name] = shop.service.add_orders([{}])
    partner.point_at(shop.app, nowhere)
    with base.running(door.app) as web:
        partner.point_at(shop.app, web)
        assert wait(lambda: shop.service.one_order(name)["state"] == "accepted")


@pytest.mark.parametrize("key", [True, False])
@pytest.mark.parametrize("repeat", ["lost", "twins", "again"])
def test_doubles_are_the_same_body(shop: Shop, repeat: str, key: bool):
    [order] = shop.sent(repeat=repeat, key=key)
    assert wait(lambda: len(shop.door.creates) == 2)
    assert len({json.dumps(body) for body, _, _ in shop.door.creates}) == 1
    assert {name for _, name, _ in shop.door.creates} == {order["key"]}
    assert (order["key"] is not None) == key
    assert order["ids"] == [0]
    if repeat == "lost":
        assert [answer["status"] for answer in order["answers"]] == [None, 200]


def test_a_person_sends_it_again(shop: Shop):
    [order] = shop.sent()
    shop.service.edit_order(order["id"], {"send_again": 2})
    assert wait(lambda: len(shop.service.one_order(order["id"])["answers"]) == 3)
    assert shop.service.one_order(order["id"])["ids"] == [0]
    with pytest.raises(ValueError, match="colour"):
        shop.service.edit_order(order["id"], {"colour": "red"})


def test_an_answer_out_of_shape_does_not_stop_the_shop(shop: Shop):
    left = [base.json_response({}), base.json_response([]), Response("no JSON")]
    app = Flask("shapeless")
    app.add_url_rule("/partner/<path:path>", view_func=lambda path: left.pop() if left else Response("", 503))
    [name] = shop.service.add_orders([{}])
    with base.running(app) as shapeless:
        partner.point_at(shop.app, shapeless)
        assert wait(lambda: not left)
    assert shop.service.one_order(name)["state"] == "waiting"
    partner.point_at(shop.app, shop.web)
    assert wait(lambda: shop.service.one_order(name)["state"] == "accepted")


def test_wrong_specifications_are_refused(shop: Shop):
    with pytest.raises(ValueError, match="colour"):
        shop.service.add_orders([{"colour": "red"}])
    with pytest.raises(ValueError, match="repeat"):
        shop.service.add_orders([{"repeat": "often"}])
    with pytest.raises(KeyError):
        shop.service.one_order("S7")


# Invented orders


def test_invented_orders_are_the_same_for_a_seed():
    first, second = (list(partner_shop.invent(50, 7)) for _ in range(2))
    assert first == second
    assert first != list(partner_shop.invent(50, 8))
    assert len(list(islice(partner_shop.invent(None, 7), 60))) == 60


def test_plain_ones_come_once_and_are_all_accepted(account: Account):
    for order in partner_shop.invent(60, 1, plain=True):
        assert order.get("repeat", "none") == "none"
        assert not wrong_of(account, order)


def odd_ones(number: int, seed: int) -> list[dict[str, Any]]:
    """Those that differ from the plain order in their place by more than how often they come."""
    pairs = zip(partner_shop.invent(number, seed, plain=True), partner_shop.invent(number, seed), strict=True)
    return [order for plain, order in pairs if {**order, "repeat": None} != {**plain, "repeat": None}]


def test_about_one_in_ten_is_odd():
    assert 140 < len(odd_ones(2000, 3)) < 260
    assert {order["repeat"] for order in partner_shop.invent(2000, 3)} == set(partner_shop.REPEATS)


def test_the_odd_ones_meet_both_kinds_of_answer(account: Account):
    answers = Counter(bool(wrong_of(account, order)) for order in odd_ones(600, 3))
    assert answers[True] >= 5
    assert answers[False] >= 5


def wrong_of(account: Account, order: dict[str, Any]) -> list[tuple[str, str]]:
    """What the service itself would say to an order of the shop."""
    pairs = order["datetime"] if isinstance(order["datetime"], list) else [order["datetime"]]
    dated = [{"date": TOMORROW, "timeslot": pair["timeslot"]} for pair in pairs]
    names = ("customer", "payment_method", "address", "partner_details")
    answer = account.create(**{name: order[name] for name in names}, datetime=dated)
    return wrong(answer) if answer.status_code == 422 else []


def test_arrivals_keep_coming_from_the_control_endpoint(shop: Shop):
    partner.point_at(shop.app, shop.web)
    client = shop.app.test_client()
    client.post("/_sandbox/arrivals", json={"per_second": 100, "total": 20, "seed": 5, "plain": True})
    assert wait(lambda: [o["state"] for o in client.get("/_sandbox/orders").get_json()] == ["accepted"] * 20)
    numbers = [order["ids"] for order in client.get("/_sandbox/orders").get_json()]
    assert sorted(numbers) == [[number] for number in range(20)]


def test_the_settings_point_a_fleet_at_it(account: Account):
    settings = partner.fleet_settings("http://127.0.0.1:9")
    assert settings["PARTNER_URL"] == "http://127.0.0.1:9"
    assert settings["PARTNER_INBOUND_TOKENS"] == "sandbox-inbound-token=sample-shop"
    assert settings["PARTNER_INBOUND_USERS"] == "sandbox-shop:sandbox-shop-password=sample-shop"
    assert settings["PARTNER_STORES"] == "st-1=Store One,st-2=Store Two"
    login = {"login": settings["PARTNER_LOGIN"], "password": settings["PARTNER_PASSWORD"]}
    assert account.client.post("/auth/authorize", json=login).status_code == 200
    listed = data(account.call("GET", "/item/list?store_id=st-1&limit=50"))
    assert settings["PARTNER_ITEMS"] == ",".join(f"{item['id']}={item['name']}" for item in listed)


def test_the_receipt_reaches_a_server_as_one_file():
    app = partner.create_app(Options(step_seconds=None))
    with base.running(app) as url:
        login = requests.post(
            f"{url}/auth/authorize", json={"login": "sandbox", "password": "sandbox-password"}, timeout=10
        )
        files = {"receipt": ("a.png", partner_shop.receipt("a"), "image/png")}
        headers = {"token": login.json()["data"]["token"]}
        answer = requests.post(f"{url}/image/upload", files=files, headers=headers, timeout=10)
    assert answer.json()["statusCode"] == 200
