"""TastyIgniter's imitation against its contract: what is expected here was typed from that, not from the imitation."""

import hashlib
import hmac
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pytest
from flask import Flask, Response, request
from werkzeug.test import TestResponse

from sandbox import base
from sandbox.tastyigniter import UNKNOWN_PRODUCT, Options, create_app, fleet_settings, invent, point_at, site_of

NOON = 1_782_903_600.0  # 2026-07-01 11:00 UTC: summer, so noon in London
FLAT = ("P1", "P1b")
JSONAPI = ("P2", "P3")
ALL = FLAT + JSONAPI


def _words(text: str) -> list[str]:
    return sorted(text.split())


SEED_FIELDS = _words("""
    order_id customer_id location_id address_id first_name last_name email telephone notify order_type order_time
    order_date processed total_items order_total comment payment invoice_prefix invoice_date status_id
    status_updated_at assignee_id assignee_group_id assignee_updated_at ip_address hash user_agent date_added
    date_modified order_totals
""")
SEED_PATCHED = _words("""
    order_id customer_id location_id address_id first_name last_name notify order_type processed comment payment
    status_id
""")
P3_FIELDS = _words("""
    customer_id location_id address_id first_name last_name email telephone comment payment order_type order_time
    order_date order_date_time order_time_is_asap processed total_items order_total currency status_id status_name
    status_updated_at assignee_id assignee_group_id assignee_updated_at invoice_prefix invoice_date hash created_at
    updated_at customer_name order_type_name formatted_address delivery_comment order_totals order_menus ip_address
    user_agent
""")


class Site:
    """An imitation in this process, its clock, and a caller with the token of the staff."""

    def __init__(self, profile: str = "P1", **options: Any) -> None:
        self.seconds = NOON
        self.options = Options(profile=profile, **{"time_factor": 0.001, **options})
        self.app = create_app(self.options, lambda: self.seconds)
        self.site = site_of(self.app)
        self.token = self.options.token
        self._web = self.app.test_client()

    def call(self, method: str, path: str, body: Any = None, token: str | None = None, **query: Any) -> TestResponse:
        headers = {"Authorization": f"Bearer {token or self.token}"}
        return self._web.open(f"/api/{path}", method=method, json=body, headers=headers, query_string=query)

    def get(self, path: str, **query: Any) -> Any:
        answer = self.call("GET", path, **query)
        assert answer.status_code == 200, answer.text
        return answer.get_json()

    def patch(self, ident: int, body: dict[str, Any]) -> TestResponse:
        return self.call("PATCH", f"orders/{ident}", body)

    def add(self, *orders: dict[str, Any]) -> list[int]:
        return self.site.add_orders(orders or [{}])

    def order(self, ident: int, **query: Any) -> dict[str, Any]:
        """What the API shows of it, out of any wrapping."""
        document = self.get(f"orders/{ident}", **query)
        document = document.get("data", document)
        return dict(document.get("attributes", document))

    def stored(self, ident: int) -> dict[str, Any]:
        return self.site.one_order(str(ident))

    def listed(self, **query: Any) -> list[int]:
        return [int(row.get("order_id") or row["id"]) for row in self.get("orders", **query)["data"]]

    def edit(self, ident: int, **patch: Any) -> None:
        self.site.edit_order(str(ident), patch)

    def effects(self, ident: int) -> Counter[str]:
        return Counter(kind for effect in self.site.effects.of(ident) for kind in effect.kinds)

    def control(self, method: str, path: str, body: Any = None) -> Any:
        return self._web.open(f"/_sandbox/{path}", method=method, json=body).get_json()


@dataclass
class Receiver:
    """Where webhooks go: answers with `statuses`, the last of them for ever."""

    url: str = ""
    statuses: list[int] = field(default_factory=lambda: [200])
    seen: list[tuple[dict[str, str], bytes, str]] = field(default_factory=list)

    def take(self) -> Response:
        self.seen.append((dict(request.headers), request.get_data(), request.path))
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return Response(status=status, headers={"Location": "/elsewhere"} if status == 302 else {})

    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(raw) for _, raw, _ in self.seen]

    def actions(self) -> list[str]:
        return [body["action"] for body in self.bodies()]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    app = Flask("receiver")
    app.add_url_rule("/<path:_>", "take", lambda _: receiver.take(), methods=["POST", "GET"])
    with base.running(app) as url:
        receiver.url = url
        yield receiver


@pytest.fixture
def watched(receiver: Receiver) -> Iterator[Callable[..., Site]]:
    """Sites that post to the receiver."""
    sites = []

    def make(profile: str = "P1", **options: Any) -> Site:
        site = Site(profile, **options)
        point_at(site.app, receiver.url)
        sites.append(site)
        return site

    yield make
    for site in sites:
        site.site.hooks.post.stop()


def eventually(told: Callable[[], Any]) -> Any:
    """What `told` returns once it is true."""
    for _ in range(1000):
        if result := told():
            return result
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def sent(site: Site, ident: int | None = None) -> list[dict[str, Any]]:
    """The bodies that were posted, in the order in which they were queued."""
    return [json.loads(delivery.body) for delivery in site.site.hooks.post.deliveries(ident)]


def actions(site: Site, ident: int | None = None) -> list[str]:
    return [body["action"] for body in sent(site, ident)]


# Section 1: the profiles


def test_the_seed_s_order_is_flat_and_without_lines():
    site = Site("P1")
    [ident] = site.add({"order_totals": []})
    order = site.get(f"orders/{ident}")
    assert sorted(order) == SEED_FIELDS
    assert order["order_id"] == ident
    assert order["order_totals"] == []
    assert (order["order_date"], order["order_time"]) == ("2026-07-01 00:00:00", "12:45:00")
    assert (order["date_added"], order["invoice_date"]) == ("2026-07-01 12:00:00", "2026-07-01T11:00:00.000000Z")


def test_the_flat_order_may_come_wrapped():
    site = Site("P1b")
    [ident] = site.add()
    assert sorted(site.get(f"orders/{ident}")["data"]) == SEED_FIELDS


@pytest.mark.parametrize("profile", JSONAPI)
def test_a_jsonapi_order_has_its_id_outside_and_its_lines_inside(profile):
    site = Site(profile)
    [ident] = site.add()
    data = site.get(f"orders/{ident}")["data"]
    assert (data["type"], data["id"]) == ("orders", str(ident))
    assert sorted(data["attributes"]) == P3_FIELDS
    assert sorted(data["attributes"]["order_menus"][0]) == _words(
        "order_menu_id order_id menu_id name quantity price subtotal comment option_values menu_options"
    )


def test_only_the_older_lists_say_how_many_there_are():
    pages = {}
    for profile in ALL:
        site = Site(profile)
        site.add({}, {}, {})
        pages[profile] = site.get("orders", pageLimit=2, page=2)
    assert set(pages["P3"]) == {"data"}
    assert pages["P2"]["meta"]["pagination"]["total"] == 3
    for profile in FLAT:
        assert pages[profile]["meta"] == {"current_page": 2, "last_page": 2, "per_page": 2, "total": 3}
        assert pages[profile]["links"]["next"] is None
    assert all(len(page["data"]) == 1 for page in pages.values())


@pytest.mark.parametrize(
    ("profile", "status", "body"),
    [("P1", 200, {"id": 1, "object": "order", "deleted": True}), ("P2", 204, None), ("P3", 204, None)],
)
def test_a_delete_is_for_good(profile, status, body):
    site = Site(profile)
    site.add()
    answer = site.call("DELETE", "orders/1")
    assert (answer.status_code, answer.get_json(silent=True)) == (status, body)
    assert site.call("DELETE", "orders/1").status_code == 404
    assert site.call("GET", "orders/1").status_code == 404
    assert site.effects(1)["delete"] == 1
    assert site.stored(1)["deleted"]


def test_the_2020_code_answers_a_delete_with_the_order():
    site = Site("P1b")
    site.add()
    assert site.call("DELETE", "orders/1").get_json()["data"]["order_id"] == 1


# Section 2: tokens


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Basic x", "Bearer "])
def test_without_a_token_nothing_is_told(header):
    site = Site("P3")
    headers = {"Authorization": header} if header else {}
    answer = site.app.test_client().get("/api/orders", headers=headers)
    assert (answer.status_code, answer.get_json()) == (401, {"message": "Unauthenticated."})


@pytest.mark.parametrize(
    ("profile", "abilities", "read", "write"),
    [
        ("P1", ["orders:read"], 200, 403),
        ("P1", ["orders:read", "orders:write"], 200, 200),
        ("P1", ["orders:*"], 200, 200),
        ("P3", ["orders:read", "orders:write"], 403, 403),
        ("P3", ["orders:*"], 200, 200),
        ("P3", ["*"], 200, 200),
    ],
)
def test_abilities_are_read_and_write_in_the_seed_and_a_star_in_the_code(profile, abilities, read, write):
    site = Site(profile, tokens={"2|t": {"abilities": abilities}})
    site.add()
    assert site.call("GET", "orders/1", token="2|t").status_code == read
    assert site.call("PATCH", "orders/1", {"status_id": 3}, token="2|t").status_code == write
    assert site.call("GET", "orders", token="2|t").status_code == read


def test_a_customer_sees_his_own_orders_and_changes_none():
    site = Site("P3", tokens={"2|t": {"staff": False, "user_id": 7}})
    site.add({"customer_id": 7}, {"customer_id": 8}, {})
    site.token = "2|t"
    assert site.listed() == [1]
    assert site.call("GET", "orders/2").status_code == 404
    for method in ("PATCH", "DELETE"):
        answer = site.call(method, "orders/1", {})
        assert (answer.status_code, answer.get_json()["status_code"]) == (403, 403)
    assert site.call("GET", "status").status_code == 403


def test_staff_of_one_location_miss_the_others_orders_without_an_error():
    site = Site("P3", tokens={"2|t": {"locations": [2]}})
    site.add({"location_id": 1}, {"location_id": 2}, {"location_id": None})
    site.token = "2|t"
    assert site.listed() == [2, 3]
    assert site.patch(1, {"status_id": 3}).status_code == 404


def test_tokens_are_issued_and_an_older_one_stays_good():
    users = {
        "sam@example.com": {"password": "pw", "user_id": 4},
        "off@example.com": {"password": "pw", "active": False},
    }
    site = Site("P3", users=users)
    good = {"email": "sam@example.com", "password": "pw", "device_name": "fleet", "is_admin": 1}
    answers = [site.call("POST", "token", good) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    first, second = (answer.get_json()["token"] for answer in answers)
    assert first != second
    for token in (first, second):
        shown = site.call("GET", "token/user", token=token).get_json()
        assert (shown["status_code"], shown["user"]["user_id"]) == (200, 4)
    for wrong in ({"password": "no"}, {"email": "off@example.com"}, {"is_admin": 0}):
        answer = site.call("POST", "token", {**good, **wrong})
        assert (answer.status_code, list(answer.get_json()["errors"])) == (422, ["email"])
    assert "device_name" in site.call("POST", "token", {**good, "device_name": "x" * 256}).get_json()["errors"]


@pytest.mark.parametrize(("profile", "status"), [("P2", 422), ("P3", 201)])
def test_before_december_2025_an_ability_had_no_colon(profile, status):
    site = Site(profile, users={"sam@example.com": {"password": "pw"}})
    body = {"email": "sam@example.com", "password": "pw", "device_name": "x", "is_admin": 1, "abilities": ["orders:*"]}
    assert site.call("POST", "token", body).status_code == status


# Section 3.1: lists


@pytest.mark.parametrize("profile", ALL)
def test_pages_in_order_of_id_give_every_order_once(profile):
    site = Site(profile)
    site.add(*[{}] * 25)
    pages = [site.listed(sort="order_id asc", pageLimit=10, page=page) for page in (1, 2, 3, 4)]
    assert [len(page) for page in pages] == [10, 10, 5, 0]
    assert [ident for page in pages for ident in page] == list(range(1, 26))
    assert len(site.listed()) == 20


def test_lists_are_sorted_by_what_is_known_and_the_rest_is_ignored():
    site = Site("P3")
    site.add({"created_at": NOON + 5}, {"created_at": NOON - 5}, {})
    assert site.listed(sort="order_id desc") == [3, 2, 1]
    assert site.listed(sort="created_at asc") == [2, 3, 1]
    assert site.listed(sort="created_at desc") == [1, 3, 2]
    for unknown in ("updated_at desc", "date_added desc", "nonsense"):
        assert site.listed(sort=unknown) == [1, 2, 3]
    site.options.profile = "P1"
    assert site.listed(sort="date_added asc") == [2, 3, 1]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"customer": 7}, [2]),
        ({"location": 2}, [2, 3]),
        ({"status": 9}, [3]),
        ({"search": "bo@"}, [3]),
        ({"search": "BILLIE"}, [2]),
        ({"location": 2, "status": 1}, [2]),
    ],
)
def test_lists_are_filtered(query, found):
    site = Site("P3")
    site.add(
        {},
        {"customer_id": 7, "location_id": 2, "first_name": "Billie"},
        {"location_id": 2, "status_id": 9, "email": "bo@example.com"},
    )
    assert site.listed(**query) == found


def test_rows_may_come_twice_and_pages_may_shift():
    site = Site("P3", repeated_rows=1)
    site.add(*[{}] * 4)
    assert site.listed(pageLimit=2, page=2) == [2, 3, 4]
    site.options.repeated_rows = 0
    site.control("POST", "interpose", {"after": "LIST", "patch": {"add": [{}], "delete": [1]}})
    assert site.listed(pageLimit=2, sort="order_id desc") == [4, 3]
    assert site.listed(pageLimit=2, sort="order_id desc", page=2) == [3, 2]
    assert site.listed() == [2, 3, 4, 5]


def test_included_history_comes_in_no_order():
    site = Site("P3")
    site.add({"status_id": 3})
    document = site.get("orders/1", include="status_history,status")
    rows = [one for one in document["included"] if one["type"] == "status_history"]
    assert [row["id"] for row in rows] == ["2", "1"]
    assert {row["id"] for row in document["data"]["relationships"]["status_history"]["data"]} == {"1", "2"}
    assert sorted(rows[0]["attributes"]) == _words(
        "object_id object_type status_id user_id notify comment created_at updated_at status_name staff_name"
    )
    assert (rows[0]["attributes"]["status_name"], rows[0]["attributes"]["staff_name"]) == ("Preparation", "Sam Staff")
    assert "included" not in site.get("orders/1")


@pytest.mark.parametrize(("order", "include"), [({"processed": False}, "status"), ({"location_id": None}, "location")])
def test_including_what_is_null_fails(order, include):
    site = Site("P3")
    site.add(order)
    answer = site.call("GET", "orders/1", include=include)
    assert (answer.status_code, answer.get_json()["status_code"]) == (500, 500)
    assert set(answer.get_json()["debug"]) == {"file", "line", "trace"}
    assert site.order(1, include="status_history,customer,address")


# Sections 3.2 to 3.4, 8: fields, totals, times, money


def test_a_jsonapi_day_is_local_midnight_in_utc():
    site = Site("P3")
    site.add({"order_date": "2025-06-05", "order_time": "13:26:00"})
    order = site.order(1)
    assert order["order_date"] == "2025-06-04T23:00:00.000000Z"
    assert order["order_date_time"] == "2025-06-05T12:26:00.000000Z"
    assert (order["order_time"], order["currency"]) == ("13:26:00", "GBP")


@pytest.mark.parametrize(
    ("local", "instant"),
    [
        (("2026-10-25", "01:30:00"), "2026-10-25T00:30:00.000000Z"),  # shown twice: the first
        (("2026-03-29", "01:30:00"), "2026-03-29T01:30:00.000000Z"),  # skipped
        (("2026-01-15", "00:10:00"), "2026-01-15T00:10:00.000000Z"),
    ],
)
def test_clock_changes_and_midnight(local, instant):
    site = Site("P3")
    site.add({"order_date": local[0], "order_time": local[1]})
    assert site.order(1)["order_date_time"] == instant


def test_a_time_that_is_over_means_tomorrow():
    site = Site("P1")
    site.add({"order_time": "00:10:00"}, {"order_time": "23:50:00"})
    assert [site.order(ident)["order_date"][:10] for ident in (1, 2)] == ["2026-07-02", "2026-07-01"]


def test_the_zone_of_local_stamps_is_the_site_s():
    site = Site("P1", zone="America/Vancouver")
    site.add()
    assert site.order(1)["date_added"] == "2026-07-01 04:00:00"


@pytest.mark.parametrize(
    ("profile", "knob", "kind"),
    [
        ("P3", "auto", dict),
        ("P3", "array", list),
        ("P1", "auto", list),
        ("P1", "object", dict),
    ],
)
def test_totals_are_an_array_or_an_object(profile, knob, kind):
    site = Site(profile, totals=knob)
    site.add()
    totals = site.order(1)["order_totals"]
    assert isinstance(totals, kind)
    rows = totals if kind is list else list(totals.values())
    assert [row["code"] for row in rows] == ["subtotal", "delivery", "total"]
    if (profile, knob) == ("P3", "auto"):
        assert list(totals) == ["1", "0", "2"]


def test_totals_that_need_no_sorting_stay_an_array():
    site = Site("P3")
    site.add({"order_totals": [{"code": "subtotal"}, {"code": "total", "priority": 127}]})
    assert [row["code"] for row in site.order(1)["order_totals"]] == ["subtotal", "total"]


def test_options_are_an_array_when_there_are_none_and_an_object_else():
    site = Site("P3")
    options = {"Size": [{"order_option_name": "Large"}]}
    site.add({"order_menus": [{"menu_id": 1}, {"menu_id": 2, "menu_options": options}]})
    assert [menu["menu_options"] for menu in site.order(1)["order_menus"]] == [[], options]


def test_the_total_is_lines_and_what_is_summable_but_may_be_stored_otherwise():
    site = Site("P1")
    menus = [{"menu_id": 1, "quantity": 3, "price": 5.0149, "subtotal": 15.0449}]
    fee = {"code": "delivery", "value": 2.5, "is_summable": True}
    site.add(
        {"order_menus": menus, "order_totals": [fee, {"code": "total"}]},
        {"order_menus": menus, "order_totals": [{"code": "coupon", "value": -99, "is_summable": True}]},
        {"order_menus": menus, "order_totals": [], "order_total": 1},
        {"order_total": None},
    )
    assert [site.order(ident)["order_total"] for ident in (1, 2, 3, 4)] == [17.5449, 0, 1, None]
    assert site.order(1)["total_items"] == 3
    text = site.call("GET", "orders/1").text
    assert json.loads(text, parse_float=Decimal)["order_total"] == Decimal("17.5449")
    site.options.total_as = "string"
    assert site.order(1)["order_total"] == "17.5449"


# Section 3.5, 5: writes


def test_a_patch_of_2020_answers_twelve_fields_and_writes_the_column_only():
    site = Site("P1")
    site.add()
    for _ in range(2):
        answer = site.patch(1, {"order_type": "delivery", "status_id": 4})
        assert answer.status_code == 200
        assert sorted(answer.get_json()) == SEED_PATCHED
        assert (answer.get_json()["status_id"], answer.get_json()["order_type"]) == (4, "delivery")
    assert [row["status_id"] for row in site.stored(1)["history"]] == [1]
    assert site.effects(1) == {
        "history:1": 1,
        "mail:1": 1,
        "patch": 2,
        "status:1->4": 1,
        "status:4->4": 1,
        "status_id:4": 2,
        "order_type": 1,
    }


@pytest.mark.parametrize("profile", JSONAPI)
def test_a_status_written_twice_is_two_rows_and_two_mails(profile):
    site = Site(profile)
    site.add()
    site.seconds += 60
    for _ in range(2):
        assert site.patch(1, {"status_id": 3, "status_comment": "SO-1"}).status_code == 200
    assert site.effects(1)["mail:3"] == site.effects(1)["history:3"] == 2
    rows = site.stored(1)["history"]
    assert [row["status_id"] for row in rows] == [1, 3, 3]
    assert (rows[1]["comment"], rows[1]["created_at"], rows[1]["user_id"]) == ("SO-1", "2026-07-01T11:01:00.000000Z", 1)
    assert site.control("GET", "counts")["more_than_once"]["mail:3"] == {"1": 2}


@pytest.mark.parametrize(("status", "mails"), [(1, 2), (2, 1), (3, 1), (4, 0), (5, 0), (6, 0), (7, 0), (8, 1), (9, 0)])
def test_any_status_follows_any_other_and_some_of_them_mail(status, mails):
    site = Site("P3")
    site.add()
    assert site.patch(1, {"status_id": status}).status_code == 200
    assert site.stored(1)["mails"].count(status) == mails
    assert site.order(1)["status_id"] == status


def test_an_unknown_status_is_stored_without_history_or_name():
    site = Site("P3")
    site.add()
    assert site.patch(1, {"status_id": 77}).status_code == 200
    order = site.order(1)
    assert (order["status_id"], order["status_name"]) == (77, None)
    assert len(site.stored(1)["history"]) == 1


def test_the_answer_to_a_patch_is_stale():
    site = Site("P3")
    site.add()
    site.seconds += 60
    answer = site.patch(1, {"status_id": 3}).get_json()["data"]["attributes"]
    assert (answer["status_id"], answer["status_updated_at"]) == (3, "2026-07-01T11:00:00.000000Z")
    assert site.order(1)["status_updated_at"] == "2026-07-01T11:01:00.000000Z"
    answer = site.patch(1, {"order_menus": [{"menu_id": 1, "price": 7}]}).get_json()["data"]["attributes"]
    assert (answer["order_total"], site.order(1)["order_total"]) == (24, 7)


def test_the_seed_s_own_example_is_refused_today():
    site = Site("P3")
    site.add()
    for address in ({}, {"address": {"address_1": "x"}}, {"address": "x"}):
        answer = site.patch(1, {"order_type": "delivery", "status_id": 4, **address})
        assert (answer.status_code, list(answer.get_json()["errors"])) == (422, ["address.address_1"])
    assert site.stored(1)["status_id"] == 1
    address = {"address_1": "1 Example Street"}
    assert site.patch(1, {"order_type": "delivery", "address": address}).status_code == 200


@pytest.mark.parametrize(
    ("field_name", "value"),
    [
        ("first_name", ""),
        ("first_name", "x" * 49),
        ("last_name", 7),
        ("email", "nobody"),
        ("email", "a" * 90 + "@example.com"),
        ("comment", "x" * 501),
        ("order_type", "by air!"),
        ("status_id", "ready"),
        ("status_id", True),
        ("status_id", None),
        ("order_date", "soon"),
        ("order_time", "25:00"),
        ("order_totals", [{}]),
        ("order_menus", {"0": {}}),
    ],
)
def test_a_wrong_field_is_named_and_nothing_is_stored(field_name, value):
    site = Site("P3")
    site.add()
    before = site.stored(1)
    answer = site.patch(1, {"assignee_id": 3, field_name: value})
    assert answer.status_code == 422
    assert list(answer.get_json()["errors"]) == [field_name]
    assert answer.get_json()["status_code"] == 422
    assert site.stored(1) == before
    assert "patch" not in site.effects(1)


def test_what_is_protected_or_wrapped_is_ignored():
    site = Site("P3")
    site.add()
    before = site.stored(1)
    wrapped = {"data": {"type": "orders", "attributes": {"status_id": 9}}}
    computed = {"order_date_time": "2030-01-01 10:00:00", "order_total": 1, "hash": "x", "total_items": 9, "id": 5}
    assert site.patch(1, {**computed, **wrapped}).status_code == 200
    assert site.stored(1) == before


def test_the_time_of_an_order_is_one_field_in_the_seed_and_two_today():
    for profile, body in (
        ("P1", {"order_date_time": "2026-07-03 18:30:00"}),
        ("P3", {"order_date": "2026-07-03", "order_time": "18:30"}),
    ):
        site = Site(profile)
        site.add()
        assert site.patch(1, body).status_code == 200
        assert (site.stored(1)["order_date"], site.stored(1)["order_time"]) == ("2026-07-03", "18:30:00")


def test_early_2021_demanded_the_names_again():
    site = Site("P2", demands_names=True)
    site.add()
    answer = site.patch(1, {"status_id": 3})
    assert answer.status_code == 422
    assert set(answer.get_json()["errors"]) == {"first_name", "last_name", "order_type"}
    names = {"first_name": "Ann", "last_name": "Test", "order_type": "collection"}
    assert site.patch(1, {"status_id": 3, **names}).status_code == 200


def test_lines_are_made_anew_and_totals_found_by_their_code():
    site = Site("P3")
    site.add()
    before = site.stored(1)
    menus = [{"menu_id": 77, "quantity": 2, "price": 12}]
    for _ in range(2):
        assert (
            site.patch(1, {"order_menus": menus, "order_totals": [{"code": "delivery", "value": 3}]}).status_code == 200
        )
    after = site.stored(1)
    assert after["order_menus"][0]["order_menu_id"] > before["order_menus"][0]["order_menu_id"] + 1
    ids = [[total["order_total_id"] for total in order["order_totals"]] for order in (before, after)]
    assert ids[0] == ids[1]
    assert after["order_total"] == 27


def test_an_order_created_twice_is_two_orders():
    site = Site("P3")
    body = {"first_name": "Ann", "last_name": "Test", "order_type": "collection", "status_id": 1, "processed": True}
    answers = [site.call("POST", "orders", body) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert [answer.get_json()["data"]["id"] for answer in answers] == ["1", "2"]
    assert site.effects(2)["created"] == 1
    assert set(site.call("POST", "orders", {}).get_json()["errors"]) == {"first_name", "last_name", "order_type"}


def test_put_is_the_same_as_patch():
    site = Site("P3")
    site.add()
    assert site.call("PUT", "orders/1", {"status_id": 3}).status_code == 200
    assert site.effects(1)["history:3"] == 1


# Section 4: the catalogue


def test_names_of_statuses_occur_twice():
    site = Site("P3")
    rows = site.get("status")["data"]
    names = {int(row["id"]): row["attributes"]["status_name"] for row in rows}
    assert list(names) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert names[2] == names[8] == "Pending"
    assert names[7] == names[9] == "Canceled"
    orders = [int(row["id"]) for row in rows if row["attributes"]["status_for"] == "order"]
    assert orders == [1, 2, 3, 4, 5, 9]
    assert site.call("GET", "status", token="nobody's").status_code == 401


# Section 6: errors


def test_errors_have_their_keys_in_another_order_in_2020_and_debug_by_default():
    new, old = Site("P3"), Site("P1")
    answers = [json.loads(site.call("GET", "orders/5").text) for site in (new, old)]
    assert list(answers[0]) == ["message", "status_code", "debug"]
    assert list(answers[1]) == ["status_code", "message", "debug"]
    new.options.debug = False
    assert list(json.loads(new.call("GET", "orders/x").text)) == ["message", "status_code"]


@pytest.mark.parametrize(
    ("how", "status", "kind"),
    [("empty", 404, "application/json"), ("html", 404, "text/html"), ("405", 405, "text/html")],
)
def test_an_action_that_is_switched_off_looks_like_a_missing_order(how, status, kind):
    site = Site("P3", switched_off=("show",), switched_off_as=how)
    site.add()
    answer = site.call("GET", "orders/1")
    assert (answer.status_code, answer.mimetype) == (status, kind)
    assert site.listed() == [1]


def test_an_unknown_address_is_a_page():
    site = Site("P3")
    assert site.call("GET", "nothing").mimetype == "text/html"
    assert site.call("DELETE", "orders").status_code == 405


def test_more_than_so_many_requests_a_minute_have_to_wait():
    site = Site("P3", rate_per_minute=2)
    assert [site.call("GET", "orders").status_code for _ in range(3)] == [200, 200, 429]
    answer = site.call("GET", "orders")
    assert answer.headers["Retry-After"] == "61"
    assert answer.headers["X-RateLimit-Limit"] == "2"
    assert list(answer.get_json()) == ["message"]
    site.seconds += 61
    assert site.call("GET", "orders").status_code == 200


def test_a_mail_that_cannot_be_sent_is_a_500_after_the_work():
    site = Site("P3", mail_down=True)
    site.add()
    answer = site.patch(1, {"status_id": 3})
    assert (answer.status_code, answer.get_json()["status_code"]) == (500, 500)
    assert site.order(1)["status_id"] == 3
    assert site.effects(1)["history:3"] == 1
    assert site.stored(1)["mails"] == []


@pytest.mark.parametrize("kind", ["500_after", "lost_answer"])
def test_an_answer_may_be_lost_after_the_work(kind):
    site = Site("P3")
    site.add()
    site.control("POST", "faults", {"kinds": [kind], "times": 1, "method": "PATCH"})
    try:
        assert site.patch(1, {"status_id": 3}).status_code == 500
    except ConnectionAbortedError:
        assert kind == "lost_answer"
    assert site.effects(1)["mail:3"] == 1
    assert site.patch(1, {"status_id": 5}).status_code == 200


# Section 7: webhooks


def test_a_checkout_tells_of_its_status_before_it_is_placed(watched, receiver):
    site = watched()
    site.add({"comment": "café"})
    assert actions(site) == ["status_added", "placed"]
    added, placed = sent(site)
    assert (added["order"]["processed"], placed["order"]["processed"]) == (False, True)
    assert added["order"]["status_updated_at"] is None
    assert added["status_history"] == {
        "status_history_id": 1,
        "object_id": 1,
        "object_type": "orders",
        "status_id": 1,
        "user_id": None,
        "notify": True,
        "comment": None,
        "created_at": "2026-07-01T11:00:00.000000Z",
        "updated_at": "2026-07-01T11:00:00.000000Z",
    }
    assert (added["order"]["order_time"], placed["order"]["order_time"]) == ("12:45:00", "12:45")
    assert eventually(lambda: sorted(receiver.actions()) == ["placed", "status_added"])
    assert {path for _, _, path in receiver.seen} == {"/webhooks/tastyigniter/default"}


def test_webhooks_show_lines_and_totals_beside_the_order_in_every_profile(watched):
    site = watched("P1")
    site.add()
    placed = sent(site)[1]
    assert set(placed) == {"action", "order", "order_menus", "order_totals"}
    assert placed["order_menus"][0]["name"] == "Rice"
    assert list(placed["order_totals"]) == ["1", "0", "2"]
    order = placed["order"]
    assert not {"order_menus", "order_totals"} & set(order)
    assert order["order_id"] == 1
    assert order["order_date"] == "2026-06-30T23:00:00.000000Z"
    assert isinstance(order["location"], dict)


def test_bodies_are_signed_as_they_are_written(watched, receiver):
    site = watched()
    site.add({"comment": "1/2 café"})
    eventually(lambda: len(receiver.seen) == 2)
    for headers, raw, _ in receiver.seen:
        assert rb"1\/2 caf\u00e9" in raw
        assert headers["Content-Type"] == "application/json"
        assert headers["Ti-Signature"] == hmac.new(b"sandbox-secret16", raw, hashlib.sha256).hexdigest()


@pytest.mark.parametrize("options", [{"signature": "none"}, {"webhook_secret": ""}])
def test_an_empty_secret_leaves_the_body_unsigned(watched, receiver, options):
    watched(**options).add()
    eventually(lambda: receiver.seen)
    assert not any("signature" in name.lower() for name in receiver.seen[0][0])


def test_signatures_may_be_wrong_or_elsewhere(watched, receiver):
    watched(signature="wrong", signature_header="Signature").add()
    headers, raw, _ = eventually(lambda: receiver.seen)[0]
    assert len(headers["Signature"]) == 64
    assert headers["Signature"] != hmac.new(b"sandbox-secret16", raw, hashlib.sha256).hexdigest()


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ({"status_id": 3}, ["status_added"]),
        ({"assignee_id": 4}, ["assigned"]),
        ({"comment": "Ring twice"}, ["updated"]),
        ({"status_id": 9, "comment": "sorry"}, ["status_added", "updated"]),
        ({"status_id": 77}, []),
        ({"comment": ""}, []),
        ({"deleted": True}, ["deleted"]),
    ],
)
def test_what_the_staff_does_is_told(watched, what, expected):
    site = watched("P3")
    site.add()
    site.edit(1, **what)
    assert actions(site)[2:] == expected


@pytest.mark.parametrize(
    ("profile", "body", "expected"),
    [
        ("P3", {"status_id": 3}, ["updated", "status_added"]),
        ("P3", {"status_id": 1}, ["status_added"]),
        ("P3", {"status_id": 77}, ["updated"]),
        ("P3", {"assignee_id": 4}, ["updated"]),
        ("P3", {"first_name": "Ann"}, []),
        ("P1", {"status_id": 3}, ["updated"]),
        ("P1", {"status_id": 1}, []),
    ],
)
def test_what_the_api_does_is_told_otherwise(watched, profile, body, expected):
    site = watched(profile)
    site.add()
    assert site.patch(1, body).status_code == 200
    assert actions(site)[2:] == expected
    assert all("location" not in body["order"] for body in sent(site)[2:])


def test_an_order_from_the_api_is_created_and_never_placed(watched):
    site = watched("P3")
    body = {"first_name": "Ann", "last_name": "Test", "order_type": "collection", "status_id": 1, "processed": True}
    site.call("POST", "orders", body)
    site.call("DELETE", "orders/1")
    assert actions(site) == ["created", "status_added", "deleted"]


def test_a_status_event_carries_the_stamp_of_the_status_before(watched):
    site = watched("P3")
    site.add()
    site.seconds += 60
    site.patch(1, {"status_id": 3})
    event = sent(site)[-1]
    assert event["status_history"]["created_at"] == "2026-07-01T11:01:00.000000Z"
    assert event["order"]["status_updated_at"] == "2026-07-01T11:00:00.000000Z"


@pytest.mark.parametrize(("statuses", "tries"), [([500], 3), ([302], 3), ([500, 204], 2), ([201], 1)])
def test_three_tries_of_the_same_bytes_and_then_it_is_lost(watched, receiver, statuses, tries):
    receiver.statuses = statuses
    site = watched()
    site.add({"processed": False})
    site.edit(1, assignee_id=4)
    eventually(site.site.hooks.post.quiet)
    assert len(receiver.seen) == tries
    assert len({raw for _, raw, _ in receiver.seen}) == 1
    [delivery] = site.control("GET", "deliveries?order=1")
    assert delivery["lost"] == (tries == 3)


def test_an_automation_rule_posts_something_else_unsigned(watched, receiver):
    site = watched("P3", automation_rule="order_status_update")
    site.add()
    eventually(lambda: len(receiver.seen) == 3)
    [(headers, raw, _)] = [seen for seen in receiver.seen if b'"order_status_update"' in seen[1]]
    assert "order" not in json.loads(raw)
    assert not any("signature" in name.lower() for name in headers)


def test_a_second_subscription_doubles_every_event(watched):
    site = watched("P3")
    point_at(site.app, "http://127.0.0.1:9/")
    [known] = [one for one in site.get("webhooks")["data"] if ":9/" not in one["attributes"]["url"]]
    body = {"name": "again", "url": known["attributes"]["url"], "events": ["order"]}
    answer = site.call("POST", "webhooks", {**body, "config_data": {"secret_key": ""}})
    assert answer.status_code == 201
    assert len(answer.get_json()["data"]["attributes"]["config_data"]["secret_key"]) == 16
    site.add()
    urls = Counter(delivery.url for delivery in site.site.hooks.post.deliveries())
    assert urls[known["attributes"]["url"]] == 4
    ident = answer.get_json()["data"]["id"]
    assert site.call("PATCH", f"webhooks/{ident}", {"is_active": False}).status_code == 200
    site.add()
    assert len(site.site.hooks.post.deliveries(2)) == 4
    assert site.call("DELETE", f"webhooks/{ident}").status_code == 204
    assert site.call("DELETE", f"webhooks/{ident}").status_code == 404
    assert set(site.call("POST", "webhooks", {"events": ["x"]}).get_json()["errors"]) == {"name", "url", "events"}
    assert site.site.effects.per_order()["webhook:created"].total() == 1


def test_pointing_twice_at_one_fleet_is_pointing_once(watched, receiver):
    site = watched()
    point_at(site.app, receiver.url)
    point_at(site.app, receiver.url, "north")
    urls = [one["url"] for one in site.site.hooks.subscriptions.values()]
    assert urls == [f"{receiver.url}/webhooks/tastyigniter/{account}" for account in ("default", "north")]


# A life of its own


def test_a_checkout_takes_a_moment(watched):
    site = watched("P3")
    site.add({"processed": False, "later": [[2, {"processed": True}], [5, {"status_id": 9}]]})
    order = site.order(1)
    assert (order["status_id"], order["processed"], order["invoice_date"]) == (None, False, None)
    assert actions(site) == []
    site.seconds += 2
    order = site.order(1)
    assert (order["status_id"], order["processed"]) == (1, True)
    assert actions(site) == ["status_added", "placed"]
    site.seconds += 4
    assert site.stored(1)["status_id"] == 9
    assert site.effects(1) == {"history:1": 1, "mail:1": 1, "history:9": 1}


def test_what_was_to_happen_to_a_deleted_order_does_not():
    site = Site()
    site.add({"later": [[1, {"deleted": True}], [2, {"status_id": 9}]]})
    site.seconds += 3
    assert site.stored(1)["status_id"] == 1
    with pytest.raises(KeyError):
        site.edit(1, status_id=3)


@pytest.mark.parametrize("wrong", [{"colour": "red"}, {"later": [[1, {"colour": "red"}]]}, {"id": 1}])
def test_a_mistaken_order_is_refused_and_not_there(wrong):
    site = Site()
    site.add()
    with pytest.raises(ValueError, match=r"colour|exists"):
        site.add(wrong)
    assert len(list(site.site.all_orders())) == 1
    with pytest.raises(ValueError, match="colour"):
        site.edit(1, colour="red")


@pytest.mark.parametrize("status", [None, 0])
def test_an_order_may_be_paid_and_have_no_status(status):
    site = Site("P3")
    site.add({"status_id": status})
    order = site.order(1)
    assert (order["processed"], order["status_id"], order["status_name"]) == (True, status, None)


def test_somebody_interposes_an_edit_once_the_order_was_read():
    site = Site("P3")
    site.add()
    site.control("POST", "interpose", {"order": 1, "after": "GET", "patch": {"status_id": 9}})
    assert [site.order(1)["status_id"] for _ in range(2)] == [1, 9]


def test_invented_orders_are_the_same_for_a_seed_and_valid():
    first, second = (list(invent(300, 4)) for _ in range(2))
    assert first == second
    assert first != list(invent(300, 5))
    site = Site("P3")
    site.add(*first)
    site.seconds += 30
    orders = {order["id"]: order for order in site.site.all_orders()}
    assert len(orders) == 300
    normal = [o for o in orders.values() if o["processed"] and o["status_id"] == 1 and not o["deleted"]]
    assert 250 <= len(normal) < 300
    assert any(not order["processed"] for order in orders.values())
    assert any(order["deleted"] for order in orders.values())
    assert any(order["status_id"] == 9 for order in orders.values())
    names = {menu["name"] for order in orders.values() for menu in order["order_menus"]}
    assert UNKNOWN_PRODUCT in names
    assert all(isinstance(menu["menu_id"], int) for order in orders.values() for menu in order["order_menus"])


def test_plain_orders_are_placed_at_once_and_add_up():
    site = Site("P3")
    site.add(*invent(50, 1, plain=True))
    for order in site.site.all_orders():
        assert (order["processed"], order["status_id"]) == (True, 1)
        summable = [total["value"] for total in order["order_totals"] if total["is_summable"]]
        parts = [*summable, *(menu["subtotal"] for menu in order["order_menus"])]
        assert sum(Decimal(str(part)) for part in parts) == Decimal(str(order["order_total"]))


def test_a_fleet_is_told_where_to_go_and_with_what():
    site = Site()
    settings = fleet_settings("http://127.0.0.1:7")
    assert settings["TASTYIGNITER_URL"] == "http://127.0.0.1:7/api"
    assert settings["TASTYIGNITER_TIMEZONE"] == "Europe/London"
    assert settings["TASTYIGNITER_CURRENCY"] == "GBP"
    assert settings["TASTYIGNITER_WEBHOOK_SECRET"] == "sandbox-secret16"
    assert 2 <= float(settings["TASTYIGNITER_POLL_SECONDS"]) <= 3
    assert site.call("GET", "token/user", token=settings["TASTYIGNITER_TOKEN"]).status_code == 200


def test_a_profile_must_be_known():
    with pytest.raises(ValueError, match="P1b"):
        Options(profile="P4")


def test_the_control_endpoints_play_the_people():
    site = Site("P3")
    assert site.control("POST", "orders", {"count": 3, "plain": True}) == {"ids": [1, 2, 3]}
    assert site.control("PATCH", "orders/2", {"status_id": 9})["status_id"] == 9
    assert site.control("PATCH", "orders/3", {"deleted": True})["deleted"]
    assert [order["status_id"] for order in site.control("GET", "orders?fields=status_id")] == [1, 9, 1]
    assert site.control("PATCH", "options", {"profile": "P1"})["profile"] == "P1"
    assert site.get("orders/1")["order_id"] == 1
