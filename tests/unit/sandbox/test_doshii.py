"""The imitation of Doshii against its contract: what a POS sees when it does right, and when it does not."""

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
import requests
from flask import Flask, request
from werkzeug.test import TestResponse

from sandbox import base
from sandbox.doshii import PREFIX, Options, create_app, fleet_settings, invent, point_at

START = 1_700_000_000.0
ITEM = {"posId": "pep_pizza", "name": "Pepperoni Pizza", "quantity": "2", "unitPrice": "1100"}
COLA = {"posId": "cola", "name": "Cola", "quantity": 1, "unitPrice": "450"}


def jwt(claims: dict[str, Any], key: str, algorithm: str = "HS256") -> str:
    parts = [json.dumps(part, separators=(",", ":")).encode() for part in ({"alg": algorithm, "typ": "JWT"}, claims)]
    head = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    signature = hmac.new(key.encode(), head, hashlib.sha256).digest()
    return b".".join((head, base64.urlsafe_b64encode(signature).rstrip(b"="))).decode()


class Pos:
    """A point of sale that talks to an imitation of its own; time stands still until a test lets it pass."""

    def __init__(self, **options: Any) -> None:
        self.now = START
        self.options = Options(**options)
        self.app = create_app(self.options, clock=lambda: self.now)
        self.doshii = self.app.extensions["doshii"]
        self.location_token = next(iter(self.options.locations))

    def headers(self, **claims: Any) -> dict[str, str]:
        claims = {"locationToken": self.location_token, "timestamp": int(self.now), **claims}
        return {"vendor": self.options.vendor, "Authorization": f"Bearer {jwt(claims, self.options.vendor_key)}"}

    def call(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> TestResponse:
        headers = self.headers() if headers is None else headers
        return self.app.test_client().open(PREFIX + path, method=method, json=body, headers=headers)

    def get(self, path: str) -> Any:
        answer = self.call("GET", path)
        assert answer.status_code == 200, answer.text
        return answer.json

    def add(self, **spec: Any) -> str:
        [number] = self.doshii.add_orders([{"items": [ITEM], **spec}])
        return number

    def edit(self, number: str, **patch: Any) -> None:
        self.doshii.edit_order(number, patch)

    def decide(self, number: str, **values: Any) -> TestResponse:
        """E3 with what was just read; `None` leaves a field out."""
        order = self.get(f"/unlinked_orders/{number}")
        echoed = {name: order[name] for name in ("version", "items", "surcounts")}
        body = {"status": "accepted", "id": f"SO-{number}", **echoed, **values}
        return self.call("PUT", f"/unlinked_orders/{number}", {k: v for k, v in body.items() if v is not None})

    def reject(self, number: str, **values: Any) -> TestResponse:
        empty = {"id": None, "items": None, "surcounts": None}
        return self.decide(number, **{"status": "cancelled", **empty, "rejectionCode": "O2", **values})

    def accepted(self, **spec: Any) -> str:
        """A new order's POS id, accepted."""
        number = self.add(**spec)
        assert self.decide(number).status_code == 200
        return f"SO-{number}"

    def update(self, pos_id: str, **values: Any) -> TestResponse:
        """E8 with the current version."""
        version = self.get(f"/orders/{pos_id}")["version"]
        return self.call("PUT", f"/orders/{pos_id}", {"order": {"version": version, **values}})

    def answer_payment(self, number: str, **values: Any) -> TestResponse:
        """E11 with the current version."""
        version = self.get(f"/transactions/{number}")["version"]
        return self.call("PUT", f"/transactions/{number}", {"version": version, **values})

    def kinds(self, order: object | None = None) -> list[tuple[str, ...]]:
        return [effect.kinds for effect in self.doshii.effects.of(order)]

    def told(self) -> list[tuple[str, dict[str, Any]]]:
        """Events sent so far, whether or not they arrived: name and data."""
        documents = [json.loads(delivery.body) for delivery in self.doshii.post.deliveries()]
        return [(document.get("type") or document["event"], document["data"]) for document in documents]

    def names(self) -> list[str]:
        return [name for name, _ in self.told()]

    def listen(self, web: str = "http://127.0.0.1:9") -> None:
        """Have events sent where nobody listens: `told` sees them."""
        point_at(self.app, web)


@pytest.fixture
def made() -> Iterator[Callable[..., Pos]]:
    """Makes imitations; their post is stopped afterwards."""
    all_made: list[Pos] = []

    def make(**options: Any) -> Pos:
        all_made.append(Pos(**options))
        return all_made[-1]

    yield make
    for pos in all_made:
        pos.doshii.post.stop()


@pytest.fixture
def pos(made) -> Pos:
    return made()


def refusal(answer: TestResponse) -> tuple[int, str]:
    document = answer.get_json()
    return answer.status_code, document["message"]


# Credentials (section 2)


def test_trap_01_a_token_is_the_location_token_and_seconds_signed_with_the_vendor_key(made):
    vector = (
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJsb2NhdGlvblRva2VuIjoibG9jLXRva2VuLTEiLCJ0aW1lc3RhbXAiOjE3MDAwMDAwMDB9"
        ".29EaBLg30PDA4qWH_cxx0QvYK98ulcECtY3b2fKGLFw"
    )
    pos = made(vendor="v", vendor_key="vendor-key-1", locations={"loc-token-1": "L1"})
    answer = pos.call("GET", "/location", headers={"vendor": "v", "Authorization": f"Bearer {vector}"})
    assert (answer.status_code, answer.json["id"]) == (200, "L1")


@pytest.mark.parametrize(
    "claims",
    [
        {"timestamp": int(START * 1000)},
        {"timestamp": START + 0.5},
        {"timestamp": str(int(START))},
        {"timestamp": int(START) - 601},
        {"timestamp": int(START) + 601},
        {"timestamp": None},
        {"locationToken": "other"},
        {"locationToken": None},
    ],
)
def test_trap_01_tokens_that_are_refused(pos, claims):
    assert pos.call("GET", "/orders", headers=pos.headers(**claims)).status_code == 401


@pytest.mark.parametrize("seconds", [-600, 600])
def test_a_clock_may_be_off_by_ten_minutes_and_more_claims_are_ignored(pos, seconds):
    headers = pos.headers(timestamp=int(START) + seconds, iat=1, exp=2)
    assert pos.call("GET", "/orders", headers=headers).status_code == 200


def test_trap_01_other_keys_algorithms_and_forms_are_refused(pos):
    good = {"locationToken": pos.location_token, "timestamp": int(START)}
    tokens = [jwt(good, "other"), jwt(good, pos.options.vendor_key, "none"), pos.options.vendor_key, "a.b.c", ""]
    for token in tokens:
        headers = {"vendor": pos.options.vendor, "Authorization": f"Bearer {token}"}
        assert pos.call("GET", "/unlinked_orders", headers=headers).status_code == 401
    assert pos.call("GET", "/orders", headers={**pos.headers(), "vendor": "other"}).status_code == 401
    assert pos.call("GET", "/orders", headers={"vendor": pos.options.vendor}).status_code == 401


def test_credentials_come_before_everything_else(pos):
    answer = pos.call("PUT", "/nowhere", {}, headers={})
    assert refusal(answer) == (401, "Unknown vendor")
    assert answer.json["statusCode"] == answer.json["status"] == 401
    assert (answer.json["name"], answer.json["Unauthorized"]) == ("Unauthorized", True)


def test_a_location_without_the_right(pos):
    pos.options.forbidden_locations = tuple(pos.options.locations.values())
    assert pos.call("GET", "/orders").status_code == 403


def test_two_locations_do_not_see_one_another(made):
    pos = made(locations={"north-token": "NORTH", "south-token": "SOUTH"})
    north, south = pos.add(), pos.add(locationId="SOUTH")
    assert [row["doshiiId"] for row in pos.get("/unlinked_orders")] == [north]
    assert pos.call("GET", f"/unlinked_orders/{south}").status_code == 404
    pos.decide(north, id="SO-1")
    pos.location_token = "south-token"
    assert pos.decide(south, id="SO-1").status_code == 200
    assert pos.get("/orders/SO-1")["doshiiId"] == south


def test_the_rate_limit_is_per_location_and_off_by_default(made):
    pos = made(locations={"a": "A", "b": "B"}, requests_per_second=2)
    answers = [pos.call("GET", "/orders") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].headers["Retry-After"] == "1"
    assert pos.call("GET", "/orders", headers=pos.headers(locationToken="b")).status_code == 200
    pos.now += 1
    assert pos.call("GET", "/orders").status_code == 200


@pytest.mark.parametrize(
    ("form", "body"),
    [("message", '{"message":"Not found"}'), ("empty", ""), ("html", "<html><body><h1>Not Found</h1></body></html>")],
)
def test_other_bodies_of_errors(pos, form, body):
    pos.options.error_body = form
    answer = pos.call("GET", "/orders/none")
    assert (answer.status_code, answer.text) == (404, body)


# Reading (sections 3.1, 3.2, 3.5)


def test_an_unlinked_order_in_the_list_and_in_full(pos):
    number = pos.add(surcounts=[{"name": "Promo", "type": "percentage", "amount": "-10", "value": -220}])
    uri = f"{pos.options.uri_base}/unlinked_orders/{number}"
    assert pos.get("/unlinked_orders") == [{"doshiiId": number, "status": "pending", "uri": uri}]
    order = pos.get(f"/unlinked_orders/{number}")
    assert (order["doshiiId"], order["id"], order["status"], order["uri"]) == (number, None, "pending", uri)
    assert (order["locationId"], order["createdAt"]) == ("SANDBOX1", "2023-11-14T22:13:20.000Z")
    assert order["transactionsUri"] == f"{uri}/transactions"
    assert order["surcounts"] == [{"name": "Promo", "type": "percentage", "amount": "-10", "value": "-220"}]
    assert not {"rejectionCode", "rejectionReason", "posTerminalId"} & order.keys()


def test_trap_11_lines_add_up_as_the_contract_computes_them(pos):
    """2 x (1100 + 200) + 100; a percentage counts with its value."""
    extra = {"posId": "x", "name": "Extra", "variants": [{"posId": "v", "name": "Pepperoni", "price": 200}]}
    fee = {"name": "Fee", "type": "absolute", "amount": "100", "value": 100}
    promo = {"name": "Promo", "type": "percentage", "amount": "-10", "value": "-270"}
    number = pos.add(items=[{**ITEM, "options": [extra], "surcounts": [fee]}], surcounts=[promo])
    [item] = pos.get(f"/unlinked_orders/{number}")["items"]
    assert (item["totalBeforeSurcounts"], item["totalAfterSurcounts"]) == ("2600", "2700")
    assert pos.doshii.one_order(number)["total"] == 2430


def test_exclusive_taxes_count_and_inclusive_ones_do_not(pos):
    taxes = [
        {"name": "GST", "type": "percentage", "taxType": kind, "value": "220"} for kind in ("exclusive", "inclusive")
    ]
    assert pos.doshii.one_order(pos.add(taxes=taxes))["total"] == 2420


def test_trap_03_and_04_money_and_quantities_in_other_forms(pos):
    number = pos.add(transactions=[{"tip": 150}], surcounts=[{"name": "Fee", "value": "10", "amount": "10"}])
    forms = []
    for quantities, money in (("integer", "string"), ("string", "number"), ("decimal", "mixed")):
        pos.options.quantities, pos.options.money = quantities, money
        order = pos.get(f"/unlinked_orders/{number}")
        [payment] = pos.get(f"/unlinked_orders/{number}/transactions")
        item = order["items"][0]
        forms.append((item["quantity"], item["unitPrice"], order["surcounts"][0]["value"], payment["tip"]))
    assert forms == [(2, "1100", "10", "150"), ("2", 1100, 10, 150), ("2.00", "1100", 10, 150)]


@pytest.mark.parametrize("field", ["unitPrice", "totalAfterSurcounts"])
@pytest.mark.parametrize("value", [11.5, "11.50", "", True])
def test_trap_03_fractions_of_cents_are_refused(pos, field, value):
    number = pos.add()
    status, message = refusal(pos.decide(number, items=[{**ITEM, field: value}]))
    assert (status, message[:5]) == (400, "items")
    assert pos.get(f"/unlinked_orders/{number}")["status"] == "pending"


def test_trap_10_an_open_item_has_no_pos_id(pos):
    number = pos.add(items=[{"name": "Cake", "quantity": "1", "unitPrice": "3500"}])
    [item] = pos.get(f"/unlinked_orders/{number}")["items"]
    assert "posId" not in item
    assert pos.decide(number).status_code == 200


def test_the_unlinked_list_is_oldest_first_and_keeps_cancelled_ones_for_a_day(pos):
    first, second = pos.add(), pos.add()
    pos.edit(first, status="cancelled")
    assert [(row["doshiiId"], row["status"]) for row in pos.get("/unlinked_orders")] == [
        (first, "cancelled"),
        (second, "pending"),
    ]
    pos.now += 24 * 3600 + 1
    assert [row["doshiiId"] for row in pos.get("/unlinked_orders")] == [second]
    assert pos.get(f"/unlinked_orders/{first}")["status"] == "cancelled"


def test_trap_20_linked_orders_come_in_pages_of_mixed_statuses(pos):
    ids = []
    for _ in range(3):
        ids.append(pos.accepted())
        pos.now += 10
    pos.add()
    pos.update(ids[1], status="complete")

    def listed(query: str) -> list[str]:
        return [row["id"] for row in pos.get(f"/orders?{query}")]

    assert pos.get("/orders")[0].keys() == {"id", "doshiiId", "status", "uri"}
    assert listed("") == ids
    assert listed("order=desc&limit=2") == [ids[2], ids[1]]
    assert (listed("offset=2"), listed("offset=3")) == ([ids[2]], [])
    assert listed("status=accepted,cancelled") == [ids[0], ids[2]]
    assert listed(f"updatedFrom={int(START) + 20}") == [ids[1], ids[2]]
    assert listed(f"updatedTo={int(START) + 19}") == [ids[0]]
    assert listed(f"from={int(START) + 5}&to={int(START) + 15}") == [ids[1]]
    assert pos.call("GET", "/orders?limit=many").status_code == pos.call("GET", "/orders?status=new").status_code == 400


def test_pages_have_fifty_rows_and_at_most_250(pos):
    pos.doshii.add_orders([{"id": f"SO-{n}", "status": "accepted", "quiet": True} for n in range(260)])
    assert [len(pos.get(f"/orders?{query}")) for query in ("", "limit=251", "offset=250")] == [50, 250, 10]


def test_rejection_codes_under_both_spellings(pos):
    codes = pos.get("/rejection_codes")
    assert codes == pos.get("/rejection-codes")
    assert pos.get("/rejection_codes/O1") == {
        "code": "O1",
        "description": "Item unitPrice incorrect",
        "entity": "orders",
    }
    assert {"O10", "O13", "MAR3", "POSSIE", "POSISE", "P7", "CH05"} <= {entry["code"] for entry in codes}
    assert "O11" not in {entry["code"] for entry in codes}
    assert pos.call("GET", "/rejection_codes/O11").status_code == 404
    pos.options.rejection_texts = {"O1": "Something else"}
    assert pos.get("/rejection-codes/O1")["description"] == "Something else"


def test_trap_08_17_and_18_addresses_later_orders_and_orders_of_nobody(pos):
    address = {"line1": "1 High St", "line2": "Level 6", "city": "Melbourne", "postalCode": "3000", "country": "AU"}
    consumer = {"name": "A", "email": "a@example.com", "address": address}
    number = pos.add(type="delivery", consumer=consumer, requiredAt="2099-12-31T18:30:00.000Z")
    order = pos.get(f"/unlinked_orders/{number}")
    assert (order["consumer"], order["requiredAt"]) == (consumer, "2099-12-31T18:30:00.000Z")
    assert pos.decide(number, type="delivery").status_code == 200
    nobodys = pos.accepted(type="dinein", checkinId="3", checkin={"id": "3", "tableNames": ["Table 4"]})
    order = pos.get(f"/orders/{nobodys}")
    assert (order["consumer"], order["checkin"]["tableNames"]) == (None, ["Table 4"])
    assert pos.get(f"/orders/{nobodys}/consumer") == {}


# E3


def test_accepting_links_the_order(pos):
    number = pos.add()
    before = pos.get(f"/unlinked_orders/{number}")
    answer = pos.decide(number, id="SO-1")
    assert answer.status_code == 200
    order = answer.json
    assert (order["id"], order["status"], order["doshiiId"]) == ("SO-1", "accepted", number)
    assert order["uri"] == f"{pos.options.uri_base}/orders/SO-1"
    assert order["version"] != before["version"]
    assert order["items"] == before["items"]
    assert pos.get("/orders/SO-1") == order
    assert pos.get("/unlinked_orders") == []
    assert pos.kinds(number) == [("put_unlinked", "status:pending->accepted", "linked")]


def test_trap_07_a_linked_order_is_no_more_among_the_unlinked(pos):
    number = pos.add(transactions=[{}])
    version = pos.get(f"/unlinked_orders/{number}")["version"]
    pos.decide(number, id="SO-1")
    again = {"id": "SO-1", "status": "accepted", "version": version, "items": [], "surcounts": []}
    for method, path, body in (
        ("GET", f"/unlinked_orders/{number}", None),
        ("GET", f"/unlinked_orders/{number}/transactions", None),
        ("PUT", f"/unlinked_orders/{number}", again),
        ("GET", f"/orders/{number}", None),
    ):
        assert pos.call(method, path, body).status_code == 404
    pos.options.linked_visible_via_unlinked = True
    assert pos.get(f"/unlinked_orders/{number}")["id"] == "SO-1"
    pos.options.linked_put_status = 409
    assert pos.call("PUT", f"/unlinked_orders/{number}", again).status_code == 409
    assert len(pos.kinds(number)) == 1


def test_rejecting(pos):
    number = pos.add(transactions=[{}])
    answer = pos.reject(number, rejectionReason="Sold out: pep_pizza")
    assert answer.status_code == 200
    order = pos.get(f"/unlinked_orders/{number}")
    assert (order["status"], order["id"]) == ("cancelled", None)
    assert (order["rejectionCode"], order["rejectionReason"]) == ("O2", "Sold out: pep_pizza")
    [kinds] = pos.kinds(number)
    assert kinds[:2] == ("put_unlinked", "status:pending->cancelled")
    assert kinds[-1] == "rejected"
    assert refusal(pos.reject(number)) == (400, "Not possible from cancelled to cancelled")


def test_trap_12_the_payments_of_a_rejected_order_stay_pending(pos):
    number = pos.add(transactions=[{}])
    pos.reject(number)
    [payment] = pos.get(f"/unlinked_orders/{number}/transactions")
    assert payment["status"] == "pending"
    assert pos.answer_payment(payment["id"], status="rejected", rejectionCode="P1").status_code == 200
    assert pos.kinds(number)[-1] == ("put_transaction", "transaction:pending->rejected")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"status": None}, "status must be one of accepted, cancelled"),
        ({"status": "rejected"}, "status must be one of accepted, cancelled"),
        ({"status": "complete"}, "status must be one of accepted, cancelled"),
        ({"version": None}, "version is required"),
        ({"id": None}, "id is required"),
        ({"id": 17}, "id: a string is needed"),
        ({"items": None}, "items is required"),
        ({"surcounts": None}, "surcounts is required"),
        ({"rejectionCode": "O1"}, "rejectionCode and rejectionReason go with a rejection only"),
        ({"rejectionReason": "No"}, "rejectionCode and rejectionReason go with a rejection only"),
        ({"items": [{**ITEM, "quantity": 0}]}, "items: 0 is not a quantity"),
        ({"requiredAt": "tomorrow"}, "requiredAt: Invalid isoformat string: 'tomorrow'"),
        ({"manuallyProcessed": "yes"}, "manuallyProcessed: true or false is needed"),
        ({"type": "delivery"}, "consumer is required for a delivery"),
        (
            {"unapprovedItems": [{**COLA, "status": "accepted"}]},
            "unapprovedItems: the status of an unapproved item is pending, cancelled or voided",
        ),
    ],
)
def test_bodies_that_cannot_accept(pos, values, message):
    number = pos.add()
    before = pos.get(f"/unlinked_orders/{number}")
    assert refusal(pos.decide(number, **values)) == (400, message)
    assert pos.get(f"/unlinked_orders/{number}") == before
    assert pos.kinds() == []


@pytest.mark.parametrize("code", ["O11", "P1", "CH01", "o1"])
def test_codes_that_are_not_for_orders(pos, code):
    assert refusal(pos.reject(pos.add(), rejectionCode=code)) == (400, f"rejectionCode {code} is unknown")


def test_trap_02_the_body_of_e3_is_bare_and_that_of_e8_is_wrapped(pos):
    number = pos.add()
    order = pos.get(f"/unlinked_orders/{number}")
    body = {"id": "SO-1", "status": "accepted", **{name: order[name] for name in ("version", "items", "surcounts")}}
    assert pos.call("PUT", f"/unlinked_orders/{number}", {"order": body}).status_code == 400
    accepted = pos.call("PUT", f"/unlinked_orders/{number}", body)
    bare = {"status": "complete", "version": accepted.json["version"]}
    assert refusal(pos.call("PUT", "/orders/SO-1", bare)) == (400, "order is required")
    assert pos.call("PUT", "/orders/SO-1", {"order": bare}).json["status"] == "complete"


def test_a_body_must_be_a_json_object_and_say_so(pos):
    path = f"{PREFIX}/unlinked_orders/{pos.add()}"
    client, headers = pos.app.test_client(), pos.headers()
    for data, kind in (("{}", "text/plain"), ("{", "application/json"), ("[]", "application/json")):
        assert client.put(path, data=data, content_type=kind, headers=headers).status_code == 400


def test_the_order_of_checks(pos):
    """401, 404, 400 for the body, 409, 400 for the transition."""
    number = pos.add()
    pos.edit(number, status="cancelled")
    current = pos.get(f"/unlinked_orders/{number}")["version"]
    body: dict[str, Any] = {}
    assert pos.call("PUT", f"/unlinked_orders/{number}", body, headers={}).status_code == 401
    assert pos.call("PUT", "/unlinked_orders/999", body).status_code == 404
    body = {"status": "accepted", "id": "SO-1", "version": "old", "items": []}
    assert pos.call("PUT", f"/unlinked_orders/{number}", body).status_code == 400
    body["surcounts"] = []
    assert pos.call("PUT", f"/unlinked_orders/{number}", body).status_code == 409
    body["version"] = current
    assert refusal(pos.call("PUT", f"/unlinked_orders/{number}", body))[0] == 400


def test_every_change_makes_a_new_opaque_version_and_the_old_one_gets_409(pos):
    number = pos.add()
    versions = [pos.get(f"/unlinked_orders/{number}")["version"]]
    for note in "abc":
        pos.edit(number, notes=note)
        versions.append(pos.get(f"/unlinked_orders/{number}")["version"])
    assert len(set(versions)) == 4
    assert {len(version) for version in versions} == {9, 11, 40}
    assert pos.decide(number, version=versions[-2]).status_code == 409
    assert pos.decide(number).status_code == 200


def test_an_id_of_another_order_is_a_conflict_that_names_it(pos):
    first, second = pos.add(), pos.add()
    pos.decide(first, id="SO-1")
    status, message = refusal(pos.decide(second, id="SO-1"))
    assert (status, "SO-1" in message) == (409, True)
    assert pos.get(f"/unlinked_orders/{second}")["status"] == "pending"
    assert pos.get("/orders/SO-1")["doshiiId"] == first


def test_trap_06_the_answer_has_our_id_or_with_the_quirk_doshiis(pos):
    assert pos.decide(pos.add(), id="SO-1").json["id"] == "SO-1"
    pos.options.answer_with_doshii_id = True
    number = pos.add()
    order = pos.decide(number, id="SO-2").json
    assert (order["id"], order["uri"]) == (number, f"{pos.options.uri_base}/orders/{number}")
    assert pos.get("/orders/SO-2")["id"] == "SO-2"
    assert pos.call("GET", f"/orders/{number}").status_code == 404


def test_the_legacy_rejected_and_the_hidden_doshii_id(pos):
    pos.options.legacy_rejected_alias = pos.options.hide_doshii_id = True
    number = pos.add()
    order = pos.reject(number, status="rejected").json
    assert order["status"] == "rejected"
    assert "doshiiId" not in order
    assert pos.get("/unlinked_orders")[0]["doshiiId"] == number


def test_items_are_replaced_and_get_a_uuid_if_they_have_none(pos):
    number = pos.add()
    [old] = pos.get(f"/unlinked_orders/{number}")["items"]
    kept, new = pos.decide(number, items=[{**old, "name": "Renamed"}, COLA]).json["items"]
    assert (kept["uuid"], kept["name"]) == (old["uuid"], "Renamed")
    assert new["uuid"]
    assert new["uuid"] != old["uuid"]
    assert pos.kinds(number) == [("put_unlinked", "status:pending->accepted", "items", "linked")]


def test_a_terminal_id_comes_back(pos):
    number = pos.add()
    order = pos.get(f"/unlinked_orders/{number}")
    body = {"id": "SO-1", "status": "accepted", **{name: order[name] for name in ("version", "items", "surcounts")}}
    headers = {**pos.headers(), "doshii-terminal-id": "t1"}
    assert pos.call("PUT", f"/unlinked_orders/{number}", body, headers).json["posTerminalId"] == "t1"


def test_types_beyond_the_three_pass_unless_strict(pos):
    assert pos.decide(pos.add(), type="catering").json["type"] == "catering"
    pos.options.strict_types = True
    assert pos.decide(pos.add(), type="catering").status_code == 400


# E8


def test_completing(pos):
    pos_id = pos.accepted()
    order = pos.update(pos_id, status="complete", mealPhase="FULFILLED").json
    assert (order["status"], order["mealPhase"]) == ("complete", "FULFILLED")
    number = pos_id.removeprefix("SO-")
    assert pos.kinds(number)[1] == ("put_order", "status:accepted->complete", "mealPhase:FULFILLED")
    for status in ("complete", "cancelled", "accepted"):
        assert pos.update(pos_id, status=status).status_code == 400
    assert pos.update(pos_id, notes="too late").status_code == 400


def test_updating_keeps_what_it_does_not_name(pos):
    pos_id = pos.accepted(notes="No onion")
    before = pos.get(f"/orders/{pos_id}")
    after = pos.update(pos_id, status="accepted", phase="preparing", RejectionReason="ignored").json
    assert (after["items"], after["notes"], after["phase"]) == (before["items"], "No onion", "preparing")
    body = {"consumer": {"name": "A"}, "order": {"version": after["version"]}}
    assert pos.call("PUT", f"/orders/{pos_id}", body).json["consumer"] == {"name": "A"}
    assert pos.get(f"/orders/{pos_id}/consumer") == {"name": "A"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"version": None}, "version is required"),
        ({"status": "done"}, "status done is unknown"),
        ({"mealPhase": "eaten"}, "mealPhase: 'eaten' is not a meal phase"),
        ({"status": "complete", "rejectionCode": "O1"}, "rejectionCode and rejectionReason go with a rejection only"),
        ({"status": "pending"}, "Not possible from accepted to pending"),
        ({"status": "venue_cancelled"}, "Not possible from accepted to venue_cancelled"),
    ],
)
def test_updates_that_are_refused(pos, values, message):
    assert refusal(pos.update(pos.accepted(), **values)) == (400, message)


def test_a_stale_update_is_a_conflict(pos):
    pos_id = pos.accepted()
    assert pos.update(pos_id, version="old", status="complete").status_code == 409


def test_cancelling_an_accepted_order(pos):
    pos_id = pos.accepted()
    order = pos.update(pos_id, status="cancelled", rejectionCode="O13", rejectionReason="No").json
    assert (order["status"], order["rejectionReason"]) == ("cancelled", "No")


def test_without_the_diagram_everything_goes(pos):
    pos.options.strict_transitions = False
    pos_id = pos.accepted()
    assert pos.update(pos_id, status="complete").json["status"] == "complete"
    assert pos.update(pos_id, status="accepted").json["status"] == "accepted"


def test_trap_13_an_update_before_linking_makes_a_second_order(pos):
    number = pos.add()
    answer = pos.call("PUT", "/orders/SO-1", {"order": {"status": "accepted", "items": [ITEM], "surcounts": []}})
    assert answer.status_code == 201
    assert answer.json["doshiiId"] != number
    assert pos.get(f"/unlinked_orders/{number}")["status"] == "pending"
    assert pos.kinds(answer.json["doshiiId"]) == [("put_order", "created")]
    assert pos.decide(number, id="SO-1").status_code == 409


def test_trap_19_a_pos_id_with_a_slash_works_encoded_only(pos):
    number = pos.add()
    odd = "SO/2024/0001 ä"
    pos.decide(number, id=odd)
    encoded = quote(odd, safe="")
    assert pos.get(f"/orders/{encoded}")["id"] == odd
    assert pos.get(f"/orders/{encoded}")["uri"].endswith(f"/orders/{encoded}")
    assert pos.get(f"/orders/{encoded}/transactions") == []
    assert pos.call("GET", f"/orders/{quote(odd)}").status_code == 404


# Appended items


def test_trap_09_appended_items_wait_apart_until_they_are_approved(pos):
    pos.listen()
    pos_id = pos.accepted()
    number = pos_id.removeprefix("SO-")
    pos.edit(number, unapprovedItems=[COLA])
    order = pos.get(f"/orders/{pos_id}")
    [waiting] = order["unapprovedItems"]
    assert (waiting["name"], waiting["status"], len(order["items"])) == ("Cola", "pending", 1)
    after = pos.update(pos_id, items=[*order["items"], waiting], surcounts=[]).json
    assert (len(after["items"]), after["unapprovedItems"]) == (2, [])
    assert "status" not in after["items"][1]
    assert "items_approved" in pos.kinds(number)[-1]
    assert pos.names() == ["order_created", "item_created"]


def test_items_that_are_withdrawn(pos):
    pos.listen()
    number = pos.add(unapprovedItems=[COLA])
    pos.edit(number, unapprovedItems=[])
    assert pos.told()[-1] == (
        "item_updated",
        {"id": number, "status": "pending", "uri": f"{pos.options.uri_base}/unlinked_orders/{number}"},
    )


# Payments (section 3.6)


def test_a_prepaid_payment_is_complete_at_once_and_covers_the_order(pos):
    pos.listen()
    number = pos.add(transactions=[{"reference": "p1"}])
    [payment] = pos.get(f"/unlinked_orders/{number}/transactions")
    assert (payment["status"], payment["amount"], payment["orderId"]) == ("pending", "2200", None)
    refused = pos.answer_payment(payment["id"], status="waiting")
    assert refusal(refused) == (400, "Not possible before the order is accepted")
    pos.decide(number, id="SO-1")
    assert pos.answer_payment(payment["id"], status="waiting", orderId="SO-2").status_code == 400
    answer = pos.answer_payment(payment["id"], status="waiting", orderId="SO-1", amount="2200").json
    assert (answer["status"], answer["orderId"]) == ("complete", "SO-1")
    assert pos.answer_payment(payment["id"], status="waiting").status_code == 400
    assert pos.get("/orders/SO-1")["status"] == "complete"
    assert pos.kinds(number)[1:] == [
        ("put_transaction", "transaction:pending->waiting", "transaction:waiting->complete", "payment_captured"),
        ("auto", "status:accepted->complete"),
    ]
    assert pos.names() == ["order_created", "transaction_created", "order_updated"]


def test_a_payment_that_is_not_prepaid_is_answered_by_its_partner_later(pos):
    pos.listen()
    pos.options.auto_complete_seconds = None
    specs = [{"prepaid": False, "amount": 1000}, {"prepaid": False, "amount": 1200, "answers": "rejected"}]
    pos_id = pos.accepted(transactions=specs)
    payments = pos.get(f"/orders/{pos_id}/transactions")
    for payment in payments:
        assert pos.answer_payment(payment["id"], status="waiting").json["status"] == "waiting"
    pos.now += 0.9
    assert pos.get(f"/transactions/{payments[0]['id']}")["status"] == "waiting"
    pos.now += 0.2
    assert [payment["status"] for payment in pos.get(f"/orders/{pos_id}/transactions")] == ["complete", "rejected"]
    assert pos.names()[-2:] == ["transaction_updated", "transaction_updated"]
    assert pos.doshii.effects.per_order()["payment_captured"] == {pos_id.removeprefix("SO-"): 1}
    assert pos.get(f"/orders/{pos_id}")["status"] == "accepted"


def test_a_payment_has_a_version_of_its_own(pos):
    pos_id = pos.accepted(transactions=[{"amount": 100}])
    before = pos.get(f"/orders/{pos_id}")["version"]
    [payment] = pos.get(f"/orders/{pos_id}/transactions")
    body = {"status": "waiting", "version": payment["version"]}
    assert pos.call("PUT", f"/transactions/{payment['id']}", body).status_code == 200
    assert pos.call("PUT", f"/transactions/{payment['id']}", body).status_code == 409
    assert pos.get(f"/orders/{pos_id}")["version"] == before


@pytest.mark.parametrize(
    "values",
    [
        {"status": "complete"},
        {"status": "paid"},
        {"status": None},
        {"version": None},
        {"rejectionCode": "P1"},
        {"amount": "1.5"},
        {"status": "rejected", "rejectionCode": "O1"},
    ],
)
def test_answers_to_a_payment_that_are_refused(pos, values):
    pos_id = pos.accepted(transactions=[{}])
    [payment] = pos.get(f"/orders/{pos_id}/transactions")
    assert pos.answer_payment(payment["id"], **{"status": "waiting", **values}).status_code == 400
    assert pos.get(f"/transactions/{payment['id']}") == payment


def test_a_payment_at_the_pos_sent_twice_is_two_payments(pos):
    pos.options.auto_complete_seconds = None
    pos_id = pos.accepted()
    body = {"orderId": pos_id, "amount": "2200", "method": "cash", "reference": "r1"}
    answers = [pos.call("POST", "/transactions", body), pos.call("POST", f"/orders/{pos_id}/transactions", body)]
    assert [(answer.status_code, answer.json["status"]) for answer in answers] == [(201, "complete")] * 2
    assert len(pos.get(f"/orders/{pos_id}/transactions")) == 2
    number = pos_id.removeprefix("SO-")
    assert pos.doshii.effects.per_order()["payment_recorded"] == {number: 2}
    assert pos.doshii.effects.repeated_keys() == {"post_transaction": {"r1": 2}}


def test_payments_that_cannot_be_made(pos):
    pos_id = pos.accepted()
    for path, body, status in (
        ("/transactions", {"orderId": "none", "amount": "1"}, 404),
        ("/transactions", {"orderId": pos_id}, 400),
        ("/transactions", {"amount": "1", "method": "shells"}, 400),
        ("/transactions", {"orderId": pos_id, "amount": "1", "status": "requested"}, 400),
        ("/transactions", {"amount": "1", "status": "requested"}, 201),
    ):
        assert pos.call("POST", path, body).status_code == status


def test_who_cancels_does_not_pay(pos):
    pos.listen()
    number = pos.add(transactions=[{}])
    pos.edit(number, status="cancelled")
    [payment] = pos.get(f"/unlinked_orders/{number}/transactions")
    assert payment["status"] == "cancelled"
    assert pos.names() == ["order_created", "transaction_created", "order_updated", "transaction_updated"]


def test_logs_tell_who_did_what(pos):
    pos_id = pos.accepted(transactions=[{}])
    [payment] = pos.get(f"/orders/{pos_id}/transactions")
    entries = pos.get(f"/orders/{pos_id}/logs")
    assert [(entry["by"], entry["action"]) for entry in entries] == [
        ("partner", "created"),
        ("pos", "status:pending->accepted"),
    ]
    assert len(pos.get(f"/transactions/{payment['id']}/logs")) == 1
    assert len(pos.get(f"/unlinked_orders/{pos.add()}/logs")) == 1


# What happens by itself


def test_the_venues_timer_completes(pos):
    pos.listen()
    pos.options.venue_timer_seconds = 60
    pos_id = pos.accepted()
    pos.now += 61
    order = pos.get(f"/orders/{pos_id}")
    assert order["status"] == "complete"
    assert pos.told()[-1] == (
        "order_updated",
        {"id": order["doshiiId"], "status": "complete", "posRef": pos_id, "uri": order["uri"]},
    )


def test_a_life_goes_on_from_its_specification(pos):
    pos.options.auto_complete_seconds = None
    number = pos.add(
        appends=[COLA],
        appends_after_seconds=1,
        pays=[{"amount": 100}],
        pays_after_seconds=2,
        cancels_after_seconds=3,
        cancels_as="venue_cancelled",
    )
    seen = []
    for _ in range(4):
        order = pos.doshii.one_order(number)
        seen.append((order["status"], len(order["unapprovedItems"]), len(order["transactions"])))
        pos.now += 1
    assert seen == [("pending", 0, 0), ("pending", 1, 0), ("pending", 1, 1), ("venue_cancelled", 1, 1)]


def test_nobody_cancels_what_is_complete(pos):
    pos_id = pos.accepted(cancels_after_seconds=5)
    pos.update(pos_id, status="complete")
    pos.now += 6
    assert pos.get(f"/orders/{pos_id}")["status"] == "complete"


def test_a_cancellation_may_need_the_venues_consent(pos):
    pos.options.cancel_needs_consent = True
    pos_id = pos.accepted()
    number = pos_id.removeprefix("SO-")
    pos.edit(number, status="cancelled")
    assert pos.get(f"/orders/{pos_id}")["status"] == "accepted"
    assert "asked to cancel" in {entry["action"] for entry in pos.get(f"/orders/{pos_id}/logs")}
    assert pos.update(pos_id, status="cancelled").json["status"] == "cancelled"


def test_a_person_interferes_between_read_and_write(pos):
    number = pos.add()
    order = pos.get(f"/unlinked_orders/{number}")
    pos.doshii.interpositions.add(number, "GET", {"status": "cancelled"})
    assert pos.decide(number).status_code == 409
    assert pos.get(f"/unlinked_orders/{number}")["status"] == "cancelled"
    assert order["status"] == "pending"


def test_persons_must_know_the_fields(pos):
    number = pos.add()
    taken = pos.accepted()
    before = pos.doshii.one_order(number)
    for patch in (
        {"colour": "red"},
        {"status": "lost"},
        {"items": [{"unitPrice": 1.5}]},
        {"id": taken},
        {"transactions": [{"status": "lost"}]},
    ):
        with pytest.raises(ValueError, match=r"field|status|items|taken"):
            pos.edit(number, **patch)
    assert pos.doshii.one_order(number) == before
    with pytest.raises(KeyError):
        pos.edit("999", notes="x")
    with pytest.raises(ValueError, match="taken"):
        pos.add(doshiiId=number)


# Events (section 7)


class Fleet:
    """A receiver: notes what arrives and answers as told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, Any, str | None]] = []
        self.answers: list[int] = []
        self.echo = True
        self.app = Flask("fleet")
        self.app.add_url_rule("/<path:path>", "take", self._take, methods=["GET", "POST"])
        self.url = ""

    def _take(self, path: str) -> tuple[dict[str, Any], int]:
        document = request.get_json(silent=True)
        self.seen.append((request.method, path, document, request.headers.get("Authorization")))
        verify = request.args.get("verify") or (document or {}).get("data", {}).get("verify")
        return {"verify": verify} if verify and self.echo else {}, self.answers.pop(0) if self.answers else 200


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    receiver = Fleet()
    with base.running(receiver.app) as receiver.url:
        yield receiver


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        threading.Event().wait(0.01)


def test_trap_14_events_arrive_with_their_documented_names_and_basic_credentials(pos, fleet):
    pos.options.webhook_token = "s3cret"
    point_at(pos.app, fleet.url)
    number = pos.add()
    until(lambda: len(fleet.seen) == 1)
    [(method, path, document, authorization)] = fleet.seen
    assert (method, path, authorization) == ("POST", "webhooks/doshii/default", "Basic ZXJwOnMzY3JldA==")
    assert document == {
        "type": "order_created",
        "data": {
            "id": number,
            "status": "pending",
            "app": {"id": 123, "name": "Ordering App"},
            "uri": f"{pos.options.uri_base}/unlinked_orders/{number}",
        },
    }


def test_trap_07_and_16_an_event_about_a_linked_order(pos):
    pos.listen()
    pos_id = pos.accepted()
    number = pos_id.removeprefix("SO-")
    pos.edit(number, status="cancelled")
    name, data = pos.told()[-1]
    assert (name, data["id"], data["posRef"], data["status"]) == ("order_updated", number, pos_id, "cancelled")
    assert data["uri"].endswith(f"/orders/{pos_id}")
    assert "locationId" not in data
    pos.options.lean_events = True
    pos.edit(number, notes="x")
    assert pos.told()[-1] == ("order_updated", {"id": number})


def test_events_about_payments_name_the_order_twice(pos):
    pos.listen()
    pos.options.auto_complete_seconds = None
    pos_id = pos.accepted(transactions=[{}])
    number = pos_id.removeprefix("SO-")
    created = dict(pos.told())["transaction_created"]
    assert (created["orderId"], created["posRef"], created["status"]) == (number, None, "pending")
    pos.edit(number, transactions=[{"id": created["id"], "status": "cancelled", "verifyData": {"code": "1"}}])
    name, updated = pos.told()[-1]
    assert (name, updated["posRef"], updated["verifyData"]) == ("transaction_updated", pos_id, {"code": "1"})
    assert "verifyData" not in pos.get(f"/transactions/{created['id']}")


def test_our_own_writes_are_not_told_unless_they_are_switched_on(pos):
    pos.listen()
    pos_id = pos.accepted(quiet=True)
    assert pos.names() == []
    pos.options.echo_events = True
    pos.update(pos_id, phase="preparing")
    assert pos.names() == ["order_updated"]


def test_a_failed_accept_is_followed_by_the_order_again(pos):
    pos.listen()
    number = pos.add(quiet=True)
    pos.decide(number, version="old")
    pos.decide(number, items=None)
    assert pos.names() == ["order_created", "order_created"]
    pos.options.repeat_created = False
    pos.decide(number, version="old")
    pos.options.repeat_created = True
    pos.edit(number, status="cancelled", quiet=True)
    pos.decide(number, version="old")
    assert pos.names() == ["order_created", "order_created"]


def test_any_event_on_request_in_either_envelope(pos):
    pos.listen()
    client = pos.app.test_client()
    for envelope in ("documented", "type", "event"):
        pos.options.envelope = envelope
        for event in ("health_check", "booking_created"):
            answer = client.post("/_sandbox/events", json={"event": event, "data": {"ping": 1}})
            assert answer.status_code == 201
    bodies = [json.loads(entry["body"]) for entry in client.get("/_sandbox/deliveries").json]
    names = [next(iter(body.keys() - {"data"})) for body in bodies]
    assert names == ["event", "type", "type", "type", "event", "event"]


def test_preprocessing_asks_first_and_takes_one_kind_of_answer(pos):
    pos.listen()
    pos.options.preprocess = True
    number = pos.add()
    assert pos.names() == ["order_preprocess", "order_created"]
    data = pos.told()[0][1]
    assert (data["status"], data["appId"], data["order"]["doshiiId"]) == ("pending", 123, number)
    path = f"/unlinked_orders/preprocess/{data['id']}"
    assert pos.call("PUT", path, {"status": "accepted"}).status_code == 400
    assert pos.call("PUT", path, {"status": "complete", "posAdjusted": False}).status_code == 200
    assert pos.call("PUT", "/unlinked_orders/preprocess/none", {"status": "complete"}).status_code == 404
    assert pos.kinds(number) == [("put_preprocess", "preprocess:complete")]


@pytest.mark.parametrize("bad", [500, 302, 404])
def test_a_delivery_is_repeated_on_a_schedule_until_a_2xx(made, fleet, bad):
    pos = made(time_factor=0.0001)
    fleet.answers = [bad, bad]
    point_at(pos.app, fleet.url)
    number = pos.add()
    until(lambda: len(fleet.seen) == 3)
    until(pos.doshii.post.quiet)
    [delivery] = pos.doshii.post.deliveries(number)
    assert (delivery.statuses, delivery.lost) == ([bad, bad, 200], False)


def test_after_ten_retries_an_event_is_dropped(made, fleet):
    pos = made(time_factor=0.00001)
    fleet.answers = [503] * 11
    point_at(pos.app, fleet.url)
    pos.add()
    until(lambda: pos.doshii.post.deliveries()[0].lost)
    assert len(fleet.seen) == 11


# Subscriptions (E13)


def subscribe(pos: Pos, fleet: Fleet, path: str = "/webhooks/SANDBOX1", **values: Any) -> TestResponse:
    """E13 POST; `None` leaves a field empty."""
    body = {"event": "order_created", "webhookUrl": f"{fleet.url}/hook", "authenticationKey": "erp"}
    return pos.call("POST", path, {**body, "authenticationToken": "s3cret", **values})


def test_a_subscription_is_verified_kept_shown_and_deleted(pos, fleet):
    answer = subscribe(pos, fleet)
    assert answer.status_code == 201
    shown = answer.get_json()
    assert (shown["event"], shown["authenticationEnabled"]) == ("order_created", True)
    [(method, _, document, authorization)] = fleet.seen
    assert (method, document["event"], authorization) == ("POST", "webhook_verification", "Basic ZXJwOnMzY3JldA==")
    assert "s3cret" not in answer.text
    assert pos.get("/webhooks/SANDBOX1/order_created") == shown
    number = pos.add()
    until(lambda: len(fleet.seen) == 2)
    assert fleet.seen[1][2]["data"]["id"] == number
    pos.edit(number, notes="not subscribed to")
    assert subscribe(pos, fleet).status_code == 409
    assert pos.call("DELETE", "/webhooks/SANDBOX1/order_created").status_code == 204
    assert pos.call("DELETE", "/webhooks/SANDBOX1/order_created").status_code == 404
    assert pos.call("GET", "/webhooks/SANDBOX1/order_created").status_code == 404
    assert pos.names() == ["order_created"]
    assert pos.kinds("") == [("post_webhook", "subscribed"), ("delete_webhook", "unsubscribed")]


def test_a_receiver_that_does_not_answer_well_gets_no_subscription(pos, fleet):
    fleet.answers, fleet.echo = [500], False
    for expected in (400, 201):
        assert subscribe(pos, fleet, event=None).status_code == expected
    assert pos.call("DELETE", "/webhooks/SANDBOX1").status_code == 204
    pos.options.verification, pos.options.verification_method = "echoed", "GET"
    assert subscribe(pos, fleet).status_code == 400
    fleet.echo = True
    assert subscribe(pos, fleet).status_code == 201
    assert fleet.seen[-1][0] == "GET"
    assert subscribe(pos, fleet, event="item_created", webhookUrl="http://127.0.0.1:9/").status_code == 400


@pytest.mark.parametrize(
    ("credentials", "expected"),
    [
        ({"authenticationKey": None, "authenticationToken": "t"}, "Bearer t"),
        ({"authenticationKey": None, "authenticationToken": None}, None),
    ],
)
def test_the_forms_of_credentials(pos, fleet, credentials, expected):
    answer = subscribe(pos, fleet, **credentials)
    assert answer.get_json()["authenticationEnabled"] is (expected is not None)
    assert fleet.seen[0][3] == expected


def test_who_may_subscribe_where(made, fleet):
    pos = made(locations={"a": "A", "b": "B"}, verification="off")
    vendor = {"vendor": pos.options.vendor}
    raw = {**vendor, "Authorization": f"Bearer {pos.options.vendor_key}"}
    claims = {"vendor": pos.options.vendor, "timestamp": int(START)}
    signed = {**vendor, "Authorization": f"Bearer {jwt(claims, pos.options.vendor_key)}"}
    body = {"webhookUrl": f"{fleet.url}/hook"}
    assert pos.call("POST", "/webhooks", body, raw).json["uri"].endswith("/webhooks/all/all")
    assert pos.call("POST", "/webhooks/all", body, signed).status_code == 409
    assert pos.call("POST", "/webhooks/B", body).status_code == 403
    assert pos.call("POST", "/webhooks/none", body).status_code == 404
    assert pos.call("POST", "/webhooks/A", {**body, "event": "no_such"}).status_code == 400
    assert pos.call("GET", "/orders", None, raw).status_code == 401
    pos.add(locationId="B")
    until(lambda: len(fleet.seen) == 1)
    assert pos.call("DELETE", "/webhooks", None, signed).status_code == 204


# Being started


def test_trap_19_a_fleet_reaches_it_over_a_socket_with_its_settings(fleet):
    app = create_app()
    doshii = app.extensions["doshii"]
    with base.running(app) as url, requests.Session() as session:
        settings = fleet_settings(url)
        point_at(app, fleet.url, account="north")
        doshii.add_orders([{"id": "SO/1", "status": "accepted"}])
        claims = {"locationToken": settings["DOSHII_LOCATION_TOKEN"], "timestamp": int(time.time())}
        session.headers["Authorization"] = f"Bearer {jwt(claims, settings['DOSHII_VENDOR_KEY'])}"
        session.headers["vendor"] = settings["DOSHII_VENDOR"]
        assert session.get(f"{settings['DOSHII_URL']}/location").json()["id"] == settings["DOSHII_LOCATION_ID"]
        assert session.get(f"{settings['DOSHII_URL']}/orders/SO%2F1").json()["id"] == "SO/1"
        assert session.get(f"{settings['DOSHII_URL']}/orders/SO/1").status_code == 404
        until(lambda: len(fleet.seen) == 1)
    doshii.post.stop()
    credentials = f"{settings['DOSHII_WEBHOOK_KEY']}:{settings['DOSHII_WEBHOOK_TOKEN']}"
    assert fleet.seen[0][1] == "webhooks/doshii/north"
    assert fleet.seen[0][3] == f"Basic {base64.b64encode(credentials.encode()).decode()}"


def test_the_settings_for_a_fleet():
    settings = fleet_settings("http://127.0.0.1:8100")
    assert settings["DOSHII_URL"] == "http://127.0.0.1:8100/pos/v3"
    assert settings.keys() == {
        *("DOSHII_URL", "DOSHII_VENDOR", "DOSHII_VENDOR_KEY", "DOSHII_LOCATION_TOKEN", "DOSHII_LOCATION_ID"),
        *("DOSHII_WEBHOOK_KEY", "DOSHII_WEBHOOK_TOKEN", "DOSHII_POLL_SECONDS"),
    }


def test_invented_orders_are_the_same_for_a_seed_and_can_be_added(pos):
    orders = list(invent(300, 7))
    assert orders == list(invent(300, 7))
    assert orders != list(invent(300, 8))
    assert len(pos.doshii.add_orders(orders)) == 300
    shown = pos.doshii.all_orders()
    assert {order["type"] for order in shown} >= {"pickup", "delivery", "dinein", "catering"}
    assert 100 < sum(bool(order["transactions"]) for order in shown) < 200
    assert "UNKNOWN-PRODUCT" in json.dumps(shown)


def test_plain_orders_have_nothing_odd_about_them(pos):
    orders = list(invent(300, 7, plain=True))
    numbers = pos.doshii.add_orders(orders)
    before = pos.doshii.all_orders()
    pos.now += 3600
    assert pos.doshii.all_orders() == before
    for number in numbers[:50]:
        assert pos.decide(number).status_code == 200


def test_the_control_endpoints_know_the_orders(pos):
    client = pos.app.test_client()
    assert client.post("/_sandbox/orders", json={"count": 2, "seed": 1, "plain": True}).json == {
        "ids": ["8001", "8002"]
    }
    assert client.patch("/_sandbox/orders/8001", json={"status": "cancelled"}).json["status"] == "cancelled"
    rows = client.get("/_sandbox/orders?fields=doshiiId,status").json
    assert rows == [{"doshiiId": "8001", "status": "cancelled"}, {"doshiiId": "8002", "status": "pending"}]
    assert client.patch("/_sandbox/orders/9", json={}).status_code == 404
