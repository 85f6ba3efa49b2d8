"""Doshii's client against its imitation, over real HTTP."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

from clients.doshii import PAGE_SIZE, Doshii, VenueToken
from clients.replies import Call
from orders.errors import Misconfigured, Refused, StepError, TryLater, Unavailable, Unclear
from sandbox import base
from sandbox.base import FaultRule
from sandbox.doshii import PREFIX, Options, create_app
from tests.unit.clients.conftest import Remote, answer

SIGNED = (
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJsb2NhdGlvblRva2VuIjoibG9jLXRva2VuLTEiLCJ0aW1lc3RhbXAiOjE3MDAwMDAwMDB9."
    "29EaBLg30PDA4qWH_cxx0QvYK98ulcECtY3b2fKGLFw"
)
"""The contract's own test vector (section 2)."""


class Venue:
    """A running imitation, its clock, and clients of it."""

    def __init__(self) -> None:
        self.seconds = 1_770_000_000.0
        self.options = Options(partner_answers_seconds=0.0)
        self.app: Flask = create_app(self.options, lambda: self.seconds)
        self.control = base.control_of(self.app)
        self.url = ""
        self._clients: list[Doshii] = []

    def client(self, *, key: str = "sandbox-vendor-key", ahead: float = 0.0, **token: Any) -> Doshii:
        auth = VenueToken("sandbox", key, "sandbox-location-token", clock=lambda: self.seconds + ahead, **token)
        self._clients.append(Doshii(self.url + PREFIX, auth=auth, timeout=5.0))
        return self._clients[-1]

    def add(self, *orders: dict[str, Any]) -> list[str]:
        return [str(number) for number in self.control.backend.add_orders(orders or [{}])]

    def fail(self, kind: str, **rule: Any) -> None:
        self.control.faults.set([FaultRule(kinds=(kind,), **rule)])

    def order(self, number: str) -> dict[str, Any]:
        return self.control.backend.one_order(number)

    def requests(self, method: str) -> int:
        counts = self.app.test_client().get("/_sandbox/counts").get_json()
        return int(counts["requests"].get(method, 0))

    def close(self) -> None:
        for client in self._clients:
            client.close()


@pytest.fixture
def venue() -> Iterator[Venue]:
    venue = Venue()
    with base.running(venue.app) as url:
        venue.url = url
        yield venue
        venue.close()


@pytest.fixture
def client(venue: Venue) -> Doshii:
    return venue.client()


@pytest.fixture
def bare(remote: Remote) -> Iterator[Doshii]:
    """A client of a remote that answers what the test says."""
    client = Doshii(remote.url, auth=VenueToken("v", "k", "t", clock=lambda: 1_700_000_000.0), timeout=5.0)
    yield client
    client.close()


def error_of(call: Any, *arguments: Any, **named: Any) -> Any:
    with pytest.raises(StepError) as caught:
        call(*arguments, **named)
    return caught.value


def acceptance(document: dict[str, Any], our_id: str) -> dict[str, Any]:
    return {
        "id": our_id,
        "status": "accepted",
        "version": document["version"],
        "items": document["items"],
        "surcounts": document["surcounts"],
    }


# === Credentials ============================================================================================


def test_trap_01_the_token_of_a_venue():
    token = VenueToken("acme", "vendor-key-1", "loc-token-1", clock=lambda: 1_700_000_000.9)
    assert token.headers() == {"vendor": "acme", "Authorization": f"Bearer {SIGNED}"}


def test_trap_01_seconds_not_milliseconds(venue):
    _, claims, _ = VenueToken("v", "k", "loc", clock=lambda: venue.seconds).headers()["Authorization"].split(".")
    assert json.loads(base64.urlsafe_b64decode(claims + "==")) == {"locationToken": "loc", "timestamp": 1_770_000_000}
    assert error_of(venue.client(ahead=1_770_000_000.0 * 999).location).status == 401


def test_every_request_is_signed_anew(venue, client):
    assert client.location() == {"id": "SANDBOX1", "name": "Sandbox SANDBOX1"}
    venue.seconds += 3600
    assert client.location()["id"] == "SANDBOX1"


@pytest.mark.parametrize("ahead", [-599, 599])
def test_clocks_may_differ_by_ten_minutes(venue, ahead):
    assert venue.client(ahead=ahead).location()["id"] == "SANDBOX1"


def test_refused_credentials_are_asked_once_more_and_no_more(venue):
    error = error_of(venue.client(key="wrong").location)
    assert isinstance(error, Misconfigured)
    assert (error.status, venue.requests("GET")) == (401, 2)


def test_rights_that_are_missing(venue, client):
    venue.options.forbidden_locations = ("SANDBOX1",)
    assert isinstance(error_of(client.location), Misconfigured)


def test_the_terminal_is_named_if_there_is_one(venue):
    (number,) = venue.add()
    client = venue.client(terminal="terminal-9")
    answer = client.put_unlinked_order(number, acceptance(client.unlinked_order(number), "SO-1"))
    assert answer["posTerminalId"] == "terminal-9"


@pytest.mark.parametrize("options", [{"vendor": "é"}, {"vendor": "v", "terminal": "a\nb"}])
def test_names_that_no_header_may_have(options):
    token = VenueToken(**{"vendor_key": "s3cret", "location_token": "t", **options})
    error = error_of(token.headers)
    assert isinstance(error, Misconfigured)
    assert "s3cret" not in error.reason


# === Orders =================================================================================================


def test_a_pending_order_is_listed_read_and_accepted(venue, client):
    (number,) = venue.add({"transactions": [{"reference": "pay-1"}]})
    (row,) = client.unlinked_orders()
    assert (row["doshiiId"], row["status"]) == (number, "pending")
    order = client.unlinked_order(number)
    (payment,) = client.unlinked_transactions(number)
    assert payment["status"] == "pending"
    linked = client.put_unlinked_order(number, acceptance(order, "SO-1"))
    assert (linked["id"], linked["status"]) == ("SO-1", "accepted")
    assert linked["version"] != order["version"]
    assert client.unlinked_orders() == []
    assert client.order("SO-1")["doshiiId"] == number


def test_trap_02_the_body_is_bare_before_linking_and_wrapped_after(remote, bare):
    bare.put_unlinked_order("8123", {"status": "cancelled"})
    bare.put_order("SO-1", {"status": "complete"})
    first, second = remote.seen
    assert (first.method, first.target, json.loads(first.body)) == (
        "PUT",
        "/unlinked_orders/8123",
        {"status": "cancelled"},
    )
    assert (second.target, json.loads(second.body)) == ("/orders/SO-1", {"order": {"status": "complete"}})
    assert {first.headers["Content-Type"], second.headers["Content-Type"]} == {"application/json"}
    assert {first.headers["vendor"], second.headers["vendor"]} == {"v"}


def test_a_linked_order_is_completed(venue, client):
    venue.add({"id": "SO-1", "status": "accepted"})
    version = client.order("SO-1")["version"]
    assert client.put_order("SO-1", {"status": "complete", "version": version})["status"] == "complete"


def test_a_payment_is_answered(venue, client):
    (number,) = venue.add({"id": "SO-1", "status": "accepted", "transactions": [{"prepaid": True}]})
    (payment,) = client.transactions("SO-1")
    body = {"status": "waiting", "orderId": "SO-1", "amount": payment["amount"], "version": payment["version"]}
    assert client.put_transaction(payment["id"], body)["status"] == "complete"
    assert venue.order(number)["status"] == "complete"


def test_rejection_codes(client):
    assert {"code": "O1", "description": "Item unitPrice incorrect", "entity": "orders"} in client.rejection_codes()


def test_linked_orders_are_read_to_the_empty_page(venue, client):
    venue.add(*({"id": f"SO-{number}", "status": "accepted"} for number in range(PAGE_SIZE + 2)))
    rows = list(client.orders(updated_from=int(venue.seconds) - 10))
    assert [row["id"] for row in rows] == [f"SO-{number}" for number in range(PAGE_SIZE + 2)]
    assert venue.requests("GET") == 3
    assert list(client.orders(updated_from=int(venue.seconds) + 10)) == []


def test_a_list_that_does_not_page_is_no_endless_one(remote, bare):
    remote.answers = [answer(200, '[{"doshiiId": "1"}]')]
    with pytest.raises(TryLater, match="the same as the one before"):
        list(bare.orders(updated_from=7))
    assert [one.target for one in remote.seen] == [
        "/orders?updatedFrom=7&offset=0&limit=250",
        "/orders?updatedFrom=7&offset=1&limit=250",
    ]


def test_trap_19_ids_are_encoded(remote, bare):
    bare.order("SO/2024 1?")
    bare.unlinked_order("../orders")
    assert [one.target for one in remote.seen] == ["/orders/SO%2F2024%201%3F", "/unlinked_orders/..%2Forders"]


# === What goes wrong ========================================================================================


@pytest.mark.parametrize("form", ["v1", "message", "html", "empty"])
def test_a_stale_version_is_refused_and_changes_nothing(venue, client, form):
    venue.options.error_body = form
    (number,) = venue.add()
    order = client.unlinked_order(number)
    error = error_of(client.put_unlinked_order, number, {**acceptance(order, "SO-1"), "version": "stale"})
    assert isinstance(error, Refused)
    assert error.status == 409
    assert venue.order(number)["status"] == "pending"


@pytest.mark.parametrize(
    ("call", "status"),
    [
        (lambda client: client.unlinked_order("9999"), 404),
        (lambda client: client.order("SO-9"), 404),
        (lambda client: client.put_transaction("9", {}), 404),
    ],
)
def test_what_is_not_there(client, call, status):
    error = error_of(call, client)
    assert isinstance(error, Refused)
    assert error.status == status


def test_the_words_of_doshii_are_kept(venue, client):
    (number,) = venue.add()
    body = {"status": "cancelled", "version": client.unlinked_order(number)["version"], "rejectionCode": "ZZ"}
    assert "rejectionCode ZZ is unknown" in error_of(client.put_unlinked_order, number, body).reason


def test_a_limit_is_waited_out(venue, client):
    venue.options.requests_per_second = 1
    client.location()
    error = error_of(client.location)
    assert isinstance(error, Unavailable)
    assert (error.status, error.after) == (429, 1.0)


@pytest.mark.parametrize(("kind", "took_effect"), [("500_after", True), ("lost_answer", True), ("500_before", False)])
def test_a_write_without_an_answer_is_unclear(venue, client, kind, took_effect):
    (number,) = venue.add()
    order = client.unlinked_order(number)
    venue.fail(kind, method="PUT")
    assert isinstance(error_of(client.put_unlinked_order, number, acceptance(order, "SO-1")), Unclear)
    assert (venue.order(number)["status"] == "accepted") == took_effect


@pytest.mark.parametrize("body", ["{}", "null", '"x"'])
def test_a_list_that_is_none(remote, bare, body):
    remote.answers = [answer(200, body)]
    assert isinstance(error_of(bare.unlinked_orders), TryLater)


def test_credentials_are_in_no_message(remote, bare):
    remote.answers = [lambda handler: answer(400, json.dumps({"message": handler.headers["Authorization"]}))(handler)]
    error = error_of(bare.location)
    assert "eyJ" not in error.reason
    assert "Bearer ***" in error.reason


@pytest.mark.parametrize(("timeout", "longest"), [(60.0, 180.0), (20.0, 60.0), (150.0, 180.0), (200.0, 200.0)])
def test_answers_to_payments_may_take_longer(timeout, longest):
    client = Doshii("https://doshii.example.com", auth=VenueToken("v", "k", "t"), timeout=timeout)
    assert client.patience(Call("PUT", "/transactions/1354", write=True)) == longest
    assert client.patience(Call("PUT", "/orders/SO-1", write=True)) == timeout
    assert client.patience(Call("GET", "/orders/SO-1/transactions")) == timeout
    client.close()


def test_a_payment_is_waited_for(venue):
    number, *_ = venue.add({"id": "SO-1", "status": "accepted", "transactions": [{"reference": "pay-1"}]})
    (payment,) = venue.client().transactions("SO-1")
    venue.fail("slow", method="PUT", slow_seconds=0.5)
    client = Doshii(
        venue.url + PREFIX,
        auth=VenueToken("sandbox", "sandbox-vendor-key", "sandbox-location-token", clock=lambda: venue.seconds),
        timeout=0.3,
    )
    body = {"status": "waiting", "version": payment["version"], "amount": payment["amount"]}
    assert client.put_transaction(payment["id"], body)["status"] == "complete"
    client.close()
    assert venue.order(number)["transactions"][0]["status"] == "complete"
