"""What Doshii's events prove, say, and are answered."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from orders.arrival import Arrival
from orders.outcomes import Planned
from sandbox import base
from sandbox import doshii as sandbox
from tests.flows.harness import wait_for
from webhooks.base import blueprint
from webhooks.doshii import Credentials, Doshii

PLAN = (Planned("doshii.fetch"),)
EVENTS = json.loads((Path(__file__).parents[2] / "payloads" / "doshii" / "events.json").read_text())
BASIC = {"Authorization": "Basic ZXJwOnMzY3JldA=="}
BEARER = {"Authorization": "Bearer t0ken"}


class Receiving:
    """The receiver behind a web server, and what was kept of what it was sent."""

    def __init__(self) -> None:
        self.seconds = 1_770_000_000.0
        self.kept: list[Arrival] = []
        self.statuses: list[int] = []
        credentials = {"north": Credentials("erp", "s3cret"), "south": Credentials(None, "t0ken")}
        receiver = Doshii(credentials, PLAN, lambda: self.seconds)
        self.app = Flask("test")
        self.app.register_blueprint(
            blueprint(
                receiver,
                lambda system, arrivals: self.kept.extend(arrivals),
                lambda system, status: self.statuses.append(status),
            )
        )

    def post(self, document: Any, account: str = "north", headers: Any = None) -> Any:
        headers = BASIC if headers is None else headers
        return self.app.test_client().post(f"/webhooks/doshii/{account}", json=document, headers=headers)

    def get(self, query: str = "", headers: Any = None) -> Any:
        headers = BASIC if headers is None else headers
        return self.app.test_client().get(f"/webhooks/doshii/north{query}", headers=headers)


@pytest.fixture
def receiving() -> Receiving:
    return Receiving()


def event(name: str) -> dict[str, Any]:
    (found,) = [one for one in EVENTS if name in (one.get("type"), one.get("event"))]
    return dict(found)


# === Who sent it ============================================================================================


def test_the_credentials_that_were_registered(receiving):
    assert receiving.post(event("order_created")).status_code == 200
    assert receiving.post(event("order_created"), "south", BEARER).status_code == 200
    assert [arrival.account for arrival in receiving.kept] == ["north", "south"]


@pytest.mark.parametrize("header", ["basic ZXJwOnMzY3JldA==", " Basic  ZXJwOnMzY3JldA== "])
def test_schemes_are_written_in_any_way(receiving, header):
    assert receiving.post(event("order_created"), headers={"Authorization": header}).status_code == 200


def test_a_token_alone_may_come_as_it_is(receiving):
    assert receiving.post(event("order_created"), "south", {"Authorization": "t0ken"}).status_code == 200


@pytest.mark.parametrize(
    ("account", "header"),
    [
        ("north", None),
        ("north", ""),
        ("north", "Basic"),
        ("north", "Basic ZXJwOndyb25n"),
        ("north", "Bearer ZXJwOnMzY3JldA=="),
        ("north", "Bearer s3cret"),
        ("north", "s3cret"),
        ("north", "ZXJwOnMzY3JldA=="),
        ("north", "Bearer t0ken"),
        ("north", "Basic é"),
        ("south", "Bearer "),
        ("south", "Bearer"),
        ("south", "Basic t0ken"),
        ("south", "Basic " + base64.b64encode(b":t0ken").decode()),
        ("south", "Basic ZXJwOnMzY3JldA=="),
    ],
)
def test_anybody_else_is_turned_away(receiving, account, header):
    headers = {} if header is None else {"Authorization": header}
    assert receiving.post(event("order_created"), account, headers).status_code == 401
    assert receiving.kept == []
    assert receiving.statuses == [401]


def test_a_location_that_is_none_of_ours(receiving):
    assert receiving.post(event("order_created"), "west").status_code == 404


# === What it says ===========================================================================================


def test_a_new_order_is_named_by_doshiis_id_and_brings_its_plan(receiving):
    assert receiving.post(event("order_created")).get_json() == {"status": "ok"}
    (arrival,) = receiving.kept
    assert (arrival.account, arrival.external_id, arrival.kind) == ("north", "8123", "order_created")
    assert (arrival.plan, arrival.news, arrival.due) == (PLAN, True, False)
    assert json.loads(arrival.body) == event("order_created")


@pytest.mark.parametrize(
    ("name", "order", "planned"),
    [
        ("order_created", "8123", True),
        ("order_updated", "8123", True),
        ("item_updated", "3", False),
        ("transaction_created", "12345", False),
        ("order_preprocess", None, False),
        ("app_subscribed", None, False),
    ],
)
def test_which_order_an_event_is_about(receiving, name, order, planned):
    """One that is linked makes none: it is ours already, or was made at the till."""
    assert receiving.post(event(name)).status_code == 200
    (arrival,) = receiving.kept
    assert (arrival.external_id, arrival.kind) == (order, name)
    assert (bool(arrival.plan), arrival.news) == (planned, order is not None)


def test_trap_07_the_id_of_an_event_is_doshiis_even_when_linked(receiving):
    receiving.post(event("item_updated"))
    assert receiving.kept[0].external_id == "3"


@pytest.mark.parametrize("place", ["type", "event"])
def test_trap_14_the_name_is_in_type_or_in_event(receiving, place):
    receiving.post({place: "order_created", "data": {"id": "8123"}})
    assert (receiving.kept[0].kind, receiving.kept[0].external_id) == ("order_created", "8123")


def test_trap_14_ids_may_be_numbers(receiving):
    receiving.post({"type": "order_created", "data": {"id": 8123}})
    receiving.post({"type": "transaction_updated", "data": {"id": 1, "orderId": 8123}})
    assert [arrival.external_id for arrival in receiving.kept] == ["8123", "8123"]


@pytest.mark.parametrize("order", [None, True, "", "..", "a/b", "a b", {"id": 1}, 1.5, "x" * 191, "\0"])
def test_ids_that_are_none_name_no_order(receiving, order):
    assert receiving.post({"type": "order_created", "data": {"id": order}}).status_code == 200
    (arrival,) = receiving.kept
    assert (arrival.external_id, arrival.plan, arrival.news) == (None, (), False)


@pytest.mark.parametrize(
    "document",
    [
        {"type": "booking_created", "data": {"id": "1"}},
        {"event": "loyalty_checkin_created"},
        {"type": "x" * 500, "data": {}},
        {"type": 7, "data": []},
        {},
    ],
)
def test_events_that_are_of_no_use_are_kept_and_acknowledged(receiving, document):
    assert receiving.post(document).status_code == 200
    (arrival,) = receiving.kept
    assert (arrival.external_id, arrival.plan) == (None, ())
    assert len(arrival.kind) <= 64
    assert len(arrival.dedupe_key) <= 190


@pytest.mark.parametrize("document", [[], "x", 1])
def test_what_is_no_event(receiving, document):
    assert receiving.post(document).status_code == 400
    assert receiving.kept == []


def test_trap_16_the_location_is_in_the_address(receiving):
    """The same body for two locations is two events."""
    receiving.post(event("order_created"), "north")
    receiving.post(event("order_created"), "south", BEARER)
    assert [(arrival.account, arrival.external_id) for arrival in receiving.kept] == [
        ("north", "8123"),
        ("south", "8123"),
    ]


def test_a_double_is_known_by_its_key_for_some_seconds(receiving):
    """After that it may be another fact in the same words: a second item that was appended."""
    for seconds in (0.0, 1.0, 60.0):
        receiving.seconds = 1_770_000_000.0 + seconds
        receiving.post(event("item_updated"))
    first, double, later = [arrival.dedupe_key for arrival in receiving.kept]
    assert first == double
    assert first != later


def test_other_bodies_have_other_keys(receiving):
    receiving.post(event("order_created"))
    receiving.post({**event("order_created"), "seen": 1})
    first, second = receiving.kept
    assert first.dedupe_key != second.dedupe_key


# === What is answered at once ===============================================================================


def test_a_health_check_gets_its_pong(receiving):
    answer = receiving.post(event("health_check"))
    assert answer.get_json() == {"doshii": {"pong": 1539153305184, "version": "orderfleet"}}
    assert receiving.kept == []


@pytest.mark.parametrize(
    "document",
    [
        {"event": "webhook_verification", "data": {"verify": "abc"}},
        {"verify": "abc"},
        {"type": "something", "data": {"verify": "abc"}},
    ],
)
def test_a_verification_is_echoed(receiving, document):
    assert receiving.post(document).get_json() == {"verify": "abc"}
    assert receiving.kept == []


def test_a_verification_by_get(receiving):
    assert receiving.get("?verify=abc").get_json() == {"verify": "abc"}
    assert receiving.get().status_code == 200
    assert receiving.get("?verify=abc", headers={}).status_code == 401
    assert receiving.kept == []


@pytest.fixture
def doshii() -> Iterator[Flask]:
    app = sandbox.create_app(sandbox.Options(verification="echoed"))
    yield app
    app.extensions["doshii"].post.stop()


@pytest.mark.parametrize("method", ["POST", "GET"])
@pytest.mark.parametrize("registered", [{"authenticationKey": "erp", "authenticationToken": "s3cret"}])
def test_it_can_be_registered_at_doshii(receiving, doshii, method, registered):
    doshii.extensions["doshii"].options.verification_method = method
    with base.running(receiving.app) as ours:
        answer = doshii.test_client().post(
            f"{sandbox.PREFIX}/webhooks/SANDBOX1",
            json={"webhookUrl": f"{ours}/webhooks/doshii/north", **registered},
            headers={"vendor": "sandbox", "Authorization": "Bearer sandbox-vendor-key"},
        )
        assert answer.status_code == 201, answer.get_json()
        (number,) = base.control_of(doshii).backend.add_orders([{}])
        wait_for(lambda: receiving.kept, "the event arrives", 10)
    assert (receiving.kept[0].kind, receiving.kept[0].external_id) == ("order_created", str(number))
