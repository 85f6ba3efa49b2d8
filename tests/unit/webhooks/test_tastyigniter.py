"""TastyIgniter's webhooks, through the web server: who is believed, what is kept, what names an event. The numbers of
the traps are those of the table in docs/systems/tastyigniter.md."""

import copy
import hashlib
import hmac
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select

from ledger import queries
from ledger.connection import Ledger
from ledger.models import events
from workers.settings import read_settings
from workers.web import create_app

PAYLOADS = Path(__file__).parents[2] / "payloads" / "tastyigniter"
SETTINGS = {
    "BROKER_URL": "redis://127.0.0.1:1/0",
    "TASTYIGNITER_ACCOUNTS": "north,south,silent",
    "TASTYIGNITER_URL": "https://shop.example.test/api",
    "TASTYIGNITER_TOKEN": "1|made-up",
    "TASTYIGNITER_TIMEZONE": "Europe/London",
    "TASTYIGNITER_NORTH_WEBHOOK_SECRET": "north-secret",
    "TASTYIGNITER_SOUTH_WEBHOOK_SECRET": "south-secret",
    "TASTYIGNITER_SOUTH_WEBHOOK_HEADER": "X-Shop-Signature",
}


def raw(name: str) -> bytes:
    return (PAYLOADS / f"{name}.json").read_bytes()


def document(name: str) -> Any:
    return json.loads(raw(name))


def signature(body: bytes, secret: str = "north-secret") -> str:
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


class Receiving:
    """The fleet's web server, and a look into its ledger."""

    def __init__(self, database: str) -> None:
        self.app = create_app(read_settings(SETTINGS | {"DATABASE_URL": database}))
        self.client: FlaskClient = self.app.test_client()
        self.ledger: Ledger = self.app.extensions["ledger"]

    def post(
        self, body: Any, headers: dict[str, str] | None = None, account: str = "north", kind: str = "application/json"
    ) -> int:
        """The status of the answer; signed as north's, if nothing else is said."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"TI-Signature": signature(data)} if headers is None else headers
        answer = self.client.post(f"/webhooks/tastyigniter/{account}", data=data, headers=headers, content_type=kind)
        return answer.status_code

    def kept(self) -> list[dict[str, Any]]:
        with self.ledger.reading() as connection:
            return [dict(row) for row in connection.execute(select(events).order_by(events.c.id)).mappings()]

    def keys(self) -> list[str]:
        return [row["dedupe_key"] for row in self.kept()]

    def orders(self) -> list[tuple[str, str, str]]:
        rows = queries.listing(self.ledger, queries.Filter())
        return sorted((row["account"], row["external_id"], row["step"]) for row in rows)

    def close(self) -> None:
        self.app.extensions["bell"].stop()
        self.ledger.close()


@pytest.fixture
def web(migrated_sqlite: Path, tmp_path: Path) -> Iterator[Receiving]:
    path = tmp_path / "ledger.db"
    shutil.copy(migrated_sqlite, path)
    opened = Receiving(f"sqlite:///{path}")
    yield opened
    opened.close()


# === The signature ==========================================================================================


@pytest.mark.parametrize("header", ["TI-Signature", "Signature", "ti-signature"])
def test_trap_24_either_header_is_believed(web, header):
    body = raw("webhook_placed")
    assert web.post(body, {header: signature(body)}) == 200
    assert web.orders() == [("north", "7", "tastyigniter.fetch")]


def test_trap_24_a_header_that_is_set_is_the_only_one(web):
    body = raw("webhook_placed")
    good = signature(body, "south-secret")
    assert web.post(body, {"TI-Signature": good}, "south") == 401
    assert web.post(body, {"X-Shop-Signature": good}, "south") == 200
    assert web.post(body, {"X-Shop-Signature": signature(body)}, "south") == 401


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"TI-Signature": ""},
        {"TI-Signature": "0" * 64},
        {"TI-Signature": "nonsense \xe9"},
        {"TI-Signature": signature(raw("webhook_placed"), "south-secret")},
        {"TI-Signature": signature(raw("webhook_placed")).upper()},
        {"TI-Signature": signature(raw("webhook_placed") + b" ")},
        {"X-Shop-Signature": signature(raw("webhook_placed"))},
    ],
)
def test_trap_24_who_does_not_know_the_secret_is_refused_and_nothing_kept(web, headers):
    assert web.post(raw("webhook_placed"), headers) == 401
    assert web.kept() == []


def test_trap_24_the_raw_bytes_are_signed_and_not_what_they_mean(web):
    as_php_writes = json.dumps({**document("webhook_placed"), "note": "a/b é"}).replace("/", "\\/").encode()
    assert web.post(as_php_writes) == 200
    written_anew = json.dumps(json.loads(as_php_writes)).encode()
    assert web.post(written_anew, {"TI-Signature": signature(as_php_writes)}) == 401


def test_an_account_without_a_secret_takes_nothing(web):
    body = raw("webhook_placed")
    assert web.post(body, {"TI-Signature": signature(body, "")}, "silent") == 404
    assert web.post(body, account="nobody") == 404


# === What an event is =======================================================================================


def test_trap_27_automation_rules_are_rejected_signed_or_not(web):
    body = raw("automation_rule")
    assert web.post(body, {}) == 401
    assert web.post(body) == 400
    assert web.kept() == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b"\xff", b'{"action":"placed","order":{"order_id":-1}}'])
def test_what_cannot_be_read_is_a_400(web, body):
    assert web.post(body) == 400
    assert web.kept() == []


def test_the_type_and_the_size(web):
    assert web.post(raw("webhook_placed"), kind="text/plain") == 415
    assert web.post(b" " * (1 << 21)) == 413


def test_events_about_something_else_are_acknowledged_and_make_no_order(web):
    assert web.post(raw("webhook_customer")) == 200
    (event,) = web.kept()
    assert (event["kind"], event["external_id"]) == ("webhook.customer.created", None)
    assert "ann@example.com" not in event["body"]
    assert web.orders() == []


def test_trap_30_addresses_and_browsers_are_not_kept(web):
    assert "192.0.2.10" in raw("webhook_placed").decode()
    web.post(raw("webhook_placed"))
    (event,) = web.kept()
    assert "192.0.2.10" not in event["body"]
    assert "user_agent" not in event["body"]
    assert json.loads(event["body"])["order"]["email"] == "ann@example.com"


def test_a_deleted_order_that_nobody_knew_stays_unknown(web):
    assert web.post({"action": "deleted", "order": {"order_id": 7}}) == 200
    assert web.orders() == []
    assert [row["kind"] for row in web.kept()] == ["webhook.deleted"]


# === Which event is which ===================================================================================


def test_trap_25_the_same_delivery_again_is_no_second_event(web):
    for name in ("webhook_placed", "webhook_status_added"):
        for _ in range(3):
            assert web.post(raw(name)) == 200
    assert web.keys() == ["placed:7", "status_added:32"]
    assert web.orders() == [("north", "7", "tastyigniter.fetch")]


def test_trap_25_placed_is_named_by_its_order_and_a_row_of_the_history_by_its_own_id(web):
    placed, added = document("webhook_placed"), document("webhook_status_added")
    other = copy.deepcopy(added)
    other["status_history"]["status_history_id"] = 33
    placed["order"]["order_id"] = 8
    for body in (added, other, placed):
        assert web.post(body) == 200
    assert web.keys() == ["status_added:32", "status_added:33", "placed:8"]


def assigned(**fields: Any) -> dict[str, Any]:
    order = {"order_id": 7, "assignee_id": 2, "assignee_group_id": None, "assignee_updated_at": "2025-06-05T12:00:00Z"}
    return {"action": "assigned", "order": {**order, **fields}}


def test_trap_25_an_assignment_is_named_by_whom_and_when(web):
    others = ({"assignee_id": 3}, {"assignee_group_id": 1}, {"assignee_updated_at": "2025-06-05T12:00:01Z"})
    for fields in ({}, {}, *others):
        assert web.post(assigned(**fields)) == 200
    assert len(set(web.keys())) == 4
    assert len(web.kept()) == 4


@pytest.mark.parametrize("action", ["created", "updated", "deleted"])
def test_trap_25_the_others_are_named_by_their_bytes(web, action):
    first, second = ({"action": action, "order": {"order_id": 7, "comment": words}} for words in ("a", "b"))
    for body in (first, second, first):
        assert web.post(body) == 200
    expected = [hashlib.sha256(json.dumps(body).encode()).hexdigest() for body in (first, second)]
    assert web.keys() == [f"order.{action}:{digest}" for digest in expected]


def test_trap_25_a_row_without_an_id_is_named_by_its_bytes(web):
    assert web.post({"action": "status_added", "order": {"order_id": 7}, "status_history": None}) == 200
    assert web.keys()[0].startswith("order.status_added:")


def test_trap_25_another_body_under_the_same_name_is_shown(web):
    placed = document("webhook_placed")
    web.post(placed)
    placed["order"]["comment"] = "another"
    web.post(placed)
    assert {row["problem"] for row in web.kept()} == {"2 different bodies came under the key placed:7"}


def test_two_accounts_do_not_share_events(web):
    body = raw("webhook_placed")
    web.post(body)
    web.post(body, {"X-Shop-Signature": signature(body, "south-secret")}, "south")
    assert [order[:2] for order in web.orders()] == [("north", "7"), ("south", "7")]
