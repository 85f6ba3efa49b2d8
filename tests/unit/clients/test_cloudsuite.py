"""CloudSuite's client against its imitation, over real HTTP."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from itertools import islice
from typing import Any

import pytest
from flask import Flask

from clients.base import OAuthClientCredentials, StaticToken
from clients.cloudsuite import CloudSuite
from orders.errors import Misconfigured, Refused, StepError, TryLater, Unavailable, Unclear
from sandbox import base
from sandbox.base import FaultRule
from sandbox.cloudsuite import TOKEN_PATH, Options, create_app
from tests.unit.clients.conftest import Remote, answer

DESADV = """<?xml version="1.0" encoding="UTF-8"?>
<Desadv><DesadvHeader><DesadvNumber>{number}</DesadvNumber><DesadvDate>2026-03-04</DesadvDate>
<PlannedDeliveryDate>2026-03-04</PlannedDeliveryDate><TransportDetails><TransportModeCode/>
<MeansOfTransport><Identification/></MeansOfTransport></TransportDetails></DesadvHeader>
<DesadvDetail><Packaging><LineItems><Item><ItemNum>{line}</ItemNum><OrderNum>SO-1</OrderNum>
<QuantityValue>2</QuantityValue><SellerItemID>124_STUK</SellerItemID></Item></LineItems></Packaging></DesadvDetail>
</Desadv>"""
OFFLINE = {
    "key": "A/1 b?c#d:ü",
    "erp_order_number": "SO-9",
    "state": "processing",
    "order_date": "2026-03-04",
    "currency": "EUR",
    "webshop": 1,
    "customer": 1324,
    "user": 1260,
    "shipment_address": 1695,
    "invoice_address": 1652,
    "order_lines": [
        {
            "product": {"key": "124_STUK", "origin": "sandbox"},
            "description": "Safety gloves",
            "type": "line",
            "quantity": Decimal("2.5"),
            "erp_line_number": 10,
            "unit_price": Decimal("4.95"),
        }
    ],
}


class Shop:
    """A running imitation, its clock, and clients of it."""

    def __init__(self) -> None:
        self.seconds = 1_770_000_000.0
        self.options = Options()
        self.app: Flask = create_app(self.options, lambda: self.seconds)
        self.control = base.control_of(self.app)
        self.url = ""
        self._clients: list[CloudSuite] = []

    def client(self, **options: Any) -> CloudSuite:
        options = {"auth": self.oauth(), "timeout": 5.0, **options}
        self._clients.append(CloudSuite(self.url, **options))
        return self._clients[-1]

    def oauth(self, secret: str = "sandbox-secret") -> OAuthClientCredentials:
        return OAuthClientCredentials(self.url + TOKEN_PATH, "sandbox", secret, scope="openid")

    def add(self, *orders: dict[str, Any]) -> list[Any]:
        return self.control.backend.add_orders(orders or [{}])

    def fail(self, kind: str, **rule: Any) -> None:
        """Every call but those for tokens fails so."""
        self.control.faults.set([FaultRule(kinds=(kind,), path_contains="/api/", **rule)])

    def state(self, order_id: int) -> str:
        return str(self.control.backend.one_order(str(order_id))["state"])

    def requests(self, method: str) -> int:
        answer = self.app.test_client().get("/_sandbox/counts")
        return int(answer.get_json()["requests"].get(method, 0))

    def close(self) -> None:
        for client in self._clients:
            client.close()


@pytest.fixture
def shop() -> Iterator[Shop]:
    shop = Shop()
    with base.running(shop.app) as shop.url:
        yield shop
        shop.close()


def error_of(call: Any, *arguments: Any, **named: Any) -> Any:
    with pytest.raises(StepError) as caught:
        call(*arguments, **named)
    return caught.value


# -- reads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("foreign", [False, True])
def test_the_list_is_read_to_its_end_from_our_host_only(shop, foreign):
    shop.options.page_max, shop.options.foreign_next = 3, foreign
    ids = shop.add(*({} for _ in range(7)), {"state": "done"})
    pages = list(shop.client().orders(state="confirmed"))
    assert [len(page.rows) for page in pages] == [3, 3, 1]
    assert {page.count for page in pages} == {7}
    assert [row["id"] for page in pages for row in page.rows] == ids[:7]
    assert shop.requests("GET") == 3


def test_a_page_is_read_when_it_is_asked_for(shop):
    shop.options.page_max = 1
    shop.add({}, {}, {})
    assert len(list(islice(shop.client().orders(webshop=None), 2))) == 2
    assert shop.requests("GET") == 2


def test_the_limit_is_always_sent_and_the_filters_on_every_page(remote):
    page = {"count": 2, "next": "https://evil.example/api/order/?offset=100&cursor=", "results": [{"id": 1}]}
    remote.answers = [answer(200, json.dumps(page)), answer(200, json.dumps({**page, "next": None}))]
    client = CloudSuite(remote.url, auth=StaticToken("Authorization", "Token x"))
    list(client.orders(state="confirmed", confirm_date__gte="2026-03-04T12:00:00"))
    client.close()
    first = "/api/order/?limit=100&state=confirmed&confirm_date__gte=2026-03-04T12%3A00%3A00"
    assert [one.target for one in remote.seen] == [first, first + "&offset=100&cursor="]


@pytest.mark.parametrize(
    ("page", "pages_before"),
    [
        ({"count": 2, "next": "?offset=1", "results": [{}]}, 2),
        ({"count": 2, "next": "?limit=100", "results": [{}]}, 1),
        ({"count": 2, "next": "?offset=1", "results": []}, 0),
        ({"count": 2, "next": None, "results": None}, 0),
        ({"next": None, "results": []}, 0),
        ({}, 0),
    ],
)
def test_a_list_that_never_ends_or_is_none(remote: Remote, page, pages_before):
    remote.answers = [answer(200, json.dumps(page))]
    client = CloudSuite(remote.url, auth=StaticToken("Authorization", "Token x"))
    pages = client.orders()
    for _ in range(pages_before):
        next(pages)
    error = error_of(next, pages)
    client.close()
    assert type(error) is TryLater
    assert error.reason.startswith("GET /api/order/: ")


def test_orders_of_a_reference(shop):
    first, twin, _ = shop.add({"reference": "CS 6&7"}, {"twin": True, "webshop": 2}, {"reference": "CS8"})
    client = shop.client()
    assert [row["id"] for row in client.find_by_reference("CS 6&7")] == [first, twin]
    assert [row["id"] for row in client.find_by_reference("CS 6&7", webshop=2)] == [twin]
    assert client.find_by_reference("CS") == []


def test_rows_of_another_reference_do_not_count(remote: Remote):
    rows = [{"id": 1, "reference": "CS1"}, {"id": 2, "reference": "CS2"}]
    remote.answers = [answer(200, json.dumps({"count": 2, "next": None, "results": rows}))]
    client = CloudSuite(remote.url, auth=StaticToken("Authorization", "Token x"))
    assert client.find_by_reference("CS2") == rows[1:]
    client.close()


def test_one_order_with_decimals(shop):
    [order_id] = shop.add({"paid_amount": 24.2})
    document = shop.client().order(str(order_id))
    assert (document["id"], document["paid_amount"]) == (order_id, Decimal("24.2"))
    line = document["order_lines"][0]
    assert (line["quantity"], line["unit_price"]) == (Decimal("2.0"), Decimal("4.95"))


def test_an_order_that_is_not_there(shop):
    error = error_of(shop.client().order, 99)
    assert type(error) is Refused
    assert (str(error), error.status) == ("GET /api/order/99/: 404 Not found.", 404)


# -- writes -----------------------------------------------------------------------------------------------------------


def test_patch(shop):
    [order_id] = shop.add()
    assert shop.client().patch_order(order_id, state="processing", erp_order_number="SO-1")["state"] == "processing"
    assert shop.state(order_id) == "processing"


def test_a_bad_value_is_refused_in_the_shops_words(shop):
    [order_id] = shop.add()
    error = error_of(shop.client().patch_order, order_id, state="cancelled")
    assert type(error) is Refused
    assert str(error) == f'PATCH /api/order/{order_id}/: 400 state: "cancelled" is not a valid choice.'


def test_what_was_read_can_be_put_back(shop):
    [order_id] = shop.add(
        {"state": "processing", "order_lines": [{"description": "Seed", "quantity": 1.125, "unit_price": 0.1}]}
    )
    client = shop.client()
    before = client.order(order_id)
    before["order_lines"][0]["erp_line_number"] = 10
    client.put_order(order_id, before)
    after = client.order(order_id)
    assert {**after, "modified_date": None} == {**before, "modified_date": None}


def test_a_put_that_creates_is_no_success(shop):
    [order_id] = shop.add()
    client = shop.client()
    error = error_of(client.put_order, 4711, client.order(order_id) | {"reference": "CS4711"})
    assert type(error) is Refused
    assert error.status == 201
    assert "made a new one" in error.reason


def test_an_offline_order_is_made_once_and_found_by_its_key(shop):
    client = shop.client()
    made = client.post_order(OFFLINE)
    assert client.order_by_key("A/1 b?c#d:ü") == made
    assert made["order_lines"][0]["quantity"] == Decimal("2.5")
    again = error_of(client.post_order, OFFLINE)
    assert (type(again), again.status) == (Refused, 400)
    assert again.reason.startswith("POST /api/order/: 400 key: ")


@pytest.mark.parametrize("as_bytes", [True, False])
def test_a_delivery_message(shop, as_bytes):
    [order_id] = shop.add({"erp_order_number": "SO-1", "order_lines": [{"quantity": 2.0, "erp_line_number": 10}]})
    xml = DESADV.format(number="D-1", line=10)
    client = shop.client()

    def deliver(text: str) -> None:
        client.post_delivery(text.encode() if as_bytes else text, shop=1, user=10)

    deliver(xml)
    assert client.order(order_id)["shipment_state"] == "sent"
    twice = error_of(deliver, xml)
    assert (type(twice), twice.status) == (Refused, 400)
    assert twice.reason.startswith("POST /proxy/des_adv_xml/delivery/: 400 ")
    assert "D-1" in twice.reason
    unknown = error_of(deliver, DESADV.format(number="D-2", line=11))
    assert (type(unknown), unknown.status) == (Refused, 400)


# -- what goes wrong: section 8 ---------------------------------------------------------------------------------------


FAULTS = [
    # fault, error of a read, error of a write, status, whether the write took effect
    ("500_before", TryLater, Unclear, 500, False),
    ("500_after", TryLater, Unclear, 500, True),
    ("html_502", TryLater, Unclear, 502, False),
    ("lost_request", TryLater, Unclear, None, False),
    ("lost_answer", TryLater, Unclear, None, True),
    ("slow", TryLater, Unclear, None, True),
    ("429", Unavailable, Unavailable, 429, False),
]


@pytest.mark.parametrize(("fault", "reading", "writing", "status", "done"), FAULTS)
def test_faults(shop, fault, reading, writing, status, done):
    [order_id] = shop.add()
    client = shop.client(timeout=0.5)
    client.order(order_id)
    shop.fail(fault, slow_seconds=1.0, retry_after=7)
    errors = [error_of(client.order, order_id), error_of(client.patch_order, order_id, state="processing")]
    assert [type(error) for error in errors] == [reading, writing]
    assert [error.status for error in errors] == [status, status]
    assert [error.after for error in errors] == [7.0 if fault == "429" else None] * 2
    assert shop.state(order_id) == ("processing" if done else "confirmed")
    assert (shop.requests("GET"), shop.requests("PATCH")) == (2, 1)


def test_a_rate_limit(shop):
    shop.options.rate_per_minute = 1
    [order_id] = shop.add()
    client = shop.client()
    client.order(order_id)
    error = error_of(client.order, order_id)
    assert type(error) is Unavailable
    assert 0 < (error.after or 0) <= 61


@pytest.mark.parametrize("method", ["PATCH", "PUT", "POST"])
def test_a_write_without_the_slash_is_refused_and_not_followed(shop, method):
    [order_id] = shop.add()
    error = error_of(shop.client().request, method, f"/api/order/{order_id}", document={"state": "processing"})
    assert (type(error), error.status) == (Refused, 301)
    assert shop.state(order_id) == "confirmed"
    assert shop.requests("GET") == 0


@pytest.mark.parametrize(("method", "path", "status"), [("PUT", "/api/order/", 405), ("POST", "/api/order/", 415)])
def test_a_wrong_verb_or_type(shop, method, path, status):
    error = error_of(shop.client().request, method, path, content=b"x", content_type="text/plain")
    assert (type(error), error.status) == (Refused, status)


# -- credentials ------------------------------------------------------------------------------------------------------


def test_a_token_that_ends_in_the_middle_is_renewed(shop):
    [order_id] = shop.add()
    client = shop.client()
    client.order(order_id)
    shop.seconds += 301
    assert client.patch_order(order_id, state="processing")["state"] == "processing"
    assert (shop.requests("POST"), shop.requests("PATCH")) == (2, 2)


def test_eight_threads_with_one_ended_token_renew_it_once(shop):
    [order_id] = shop.add()
    together = threading.Barrier(8)
    waited = threading.local()

    def pace() -> None:
        """All eight have taken the old token before the first of them sends it."""
        if crowded and not getattr(waited, "once", False):
            waited.once = True
            together.wait(10)

    crowded = False
    client = shop.client(pace=pace, pool_size=8)
    client.order(order_id)
    shop.seconds += 301
    crowded = True
    with ThreadPoolExecutor(8) as pool:
        documents = list(pool.map(lambda _: client.order(order_id), range(8)))
    assert [document["id"] for document in documents] == [order_id] * 8
    assert shop.requests("GET") == 1 + 8 + 8
    assert shop.requests("POST") == 2


def test_a_wrong_secret_is_a_wrong_setting(shop):
    error = error_of(shop.client(auth=shop.oauth("wr0ng")).order, 1)
    assert type(error) is Misconfigured
    assert error.status == 401
    assert "unauthorized_client; Invalid client or Invalid client credentials" in error.reason
    assert "wr0ng" not in error.reason
    assert shop.requests("GET") == 0


def test_tokens_that_are_all_refused_are_a_wrong_setting(shop):
    shop.options.token_lifetime = 0
    error = error_of(shop.client().order, 1)
    assert (type(error), error.status) == (Misconfigured, 401)
    assert shop.requests("GET") == 2


def test_the_old_scheme(shop):
    shop.options.auth = "token"
    [order_id] = shop.add()
    good, bad = (StaticToken("Authorization", f"Token {token}") for token in ("sandbox-token", "other"))
    assert shop.client(auth=good).order(order_id)["id"] == order_id
    assert type(error_of(shop.client(auth=bad).order, order_id)) is Misconfigured
    shop.options.allowed_addresses = ()
    error = error_of(shop.client(auth=good).order, order_id)
    assert (type(error), error.status) == (Misconfigured, 403)
    assert error.reason.endswith("403 You do not have permission to perform this action.")


def test_asking_for_a_token_is_no_write_and_takes_no_turn(shop):
    [order_id] = shop.add()
    events: list[str] = []
    client = shop.client(pace=lambda: events.append("pace"), before_write=lambda: events.append("fence"))
    client.order(order_id)
    assert events == ["pace"]
    client.patch_order(order_id, state="processing")
    assert events == ["pace", "pace", "fence"]
