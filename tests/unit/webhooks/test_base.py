"""What holds for the webhooks of every system: who is answered how, what is kept, and that nothing else is."""

import hmac
import json
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select, text

from ledger import queries
from ledger.connection import Ledger
from ledger.models import events
from orders.arrival import Arrival
from orders.outcomes import Planned
from tasks.base import Account, System, Visit
from webhooks.base import Reading, Receiver, Unreadable
from workers.reading import AccountSettings
from workers.settings import Settings, read_settings
from workers.systems.base import Wiring
from workers.web import create_app

PLAN = (Planned("acme.fetch"),)
NOBODY = "redis://127.0.0.1:1/0"
SECRET = {"X-Secret": "s3cret"}


class AcmeReceiver(Receiver):
    name = "acme"
    most_bytes = 2000

    def accounts(self) -> Collection[str]:
        return ("north", "south")

    def proves(self, account: str, headers: Mapping[str, str], raw: bytes) -> bool:
        return hmac.compare_digest(headers.get("x-secret", "").encode(), b"s3cret")

    def read(self, account: str, document: Any, raw: bytes) -> Reading:
        if not isinstance(document, dict) or "id" not in document:
            raise Unreadable("no id")
        plan = PLAN if document.get("order", True) else ()
        number, kind = str(document["id"]), document.get("kind", "hook")
        arrival = Arrival(account, number, f"hook:{number}", kind, raw.decode(), plan, news=True)
        return Reading((arrival,), {"got": document["id"]})


def settings_for(database: str, broker: str | None) -> Settings:
    environment = {"DATABASE_URL": database} | ({"BROKER_URL": broker} if broker else {})
    accounts = tuple(
        AccountSettings("acme", name, "http://127.0.0.1:9", poll_seconds=60.0, timeout=1.0, rate=None)
        for name in ("north", "south")
    )
    return replace(read_settings(environment), accounts=accounts)


def review(visit: Visit, known: queries.Known) -> None:
    return None


WIRING = Wiring(
    System("acme", review=review),
    60.0,
    read=lambda reader: {},
    build=lambda settings, **common: Account("acme", settings.name, None),
    receiver=lambda accounts: AcmeReceiver(),
)


class Receiving:
    """A web server with one made-up system, and a look into its ledger."""

    def __init__(self, database: str, broker: str | None = NOBODY) -> None:
        self.app = create_app(settings_for(database, broker), systems={"acme": WIRING})
        self.client: FlaskClient = self.app.test_client()
        self.ledger: Ledger = self.app.extensions["ledger"]

    def post(self, document: Any, account: str = "north", headers: Any = None, **options: Any) -> Any:
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        options = {"content_type": "application/json"} | options
        return self.client.post(f"/webhooks/acme/{account}", data=data, headers=headers or SECRET, **options)

    def kept(self) -> list[str]:
        with self.ledger.reading() as connection:
            return list(connection.execute(select(events.c.dedupe_key).order_by(events.c.id)).scalars())

    def orders(self) -> list[tuple[str, str]]:
        rows = queries.listing(self.ledger, queries.Filter())
        return sorted((row["account"], row["external_id"]) for row in rows)

    def states(self) -> list[str]:
        return [row["state"] for row in queries.listing(self.ledger, queries.Filter())]

    def counted(self, status: int) -> float:
        name = f'orderfleet_webhooks_total{{status="{status}",system="acme"}}'
        lines = self.client.get("/metrics").text.splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), 0.0)

    def close(self) -> None:
        self.app.extensions["bell"].stop()
        self.ledger.close()


@pytest.fixture
def web(ledger_url: str) -> Iterator[Receiving]:
    """On each database; nobody answers at the broker's address."""
    opened = Receiving(ledger_url)
    yield opened
    opened.close()


def test_an_event_is_committed_before_it_is_acknowledged_though_the_broker_is_down(web):
    answer = web.post({"id": 7})
    assert (answer.status_code, answer.json) == (200, {"got": 7})
    assert web.kept() == ["hook:7"]
    assert web.orders() == [("north", "7")]
    assert web.counted(200) == 1


def test_a_double_is_acknowledged_and_changes_nothing(web):
    first = web.post({"id": 7})
    again = web.post({"id": 7})
    assert (again.status_code, again.json) == (first.status_code, first.json)
    assert web.kept() == ["hook:7"]
    assert web.orders() == [("north", "7")]


def test_doubles_at_the_same_time_are_one(web):
    start = threading.Barrier(8)
    statuses: list[int] = []

    def send() -> None:
        client = web.app.test_client()
        start.wait()
        answer = client.post("/webhooks/acme/north", data=b'{"id": 7}', headers=SECRET, content_type="application/json")
        statuses.append(answer.status_code)

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 8
    assert web.kept() == ["hook:7"]
    assert web.orders() == [("north", "7")]


def test_the_same_key_with_another_body_is_kept_and_shown(web):
    web.post({"id": 7})
    assert web.post({"id": 7, "more": "x"}).status_code == 200
    assert web.kept() == ["hook:7", "hook:7"]
    assert [row["problem"] for row in queries.odd_events(web.ledger)] == [
        "2 different bodies came under the key hook:7"
    ] * 2


def test_a_useless_event_is_kept_and_makes_no_order(web):
    assert web.post({"id": 7, "order": False}).status_code == 200
    assert web.kept() == ["hook:7"]
    assert web.orders() == []


REFUSED: dict[str, tuple[int, dict[str, Any]]] = {
    "unknown account": (404, {"account": "west"}),
    "no credentials": (401, {"headers": {"X-Nothing": "1"}}),
    "wrong credentials": (401, {"headers": {"X-Secret": "guess"}}),
    "not JSON by its type": (415, {"content_type": "text/plain"}),
    "no type": (415, {"content_type": ""}),
    "broken JSON": (400, {"document": b'{"id": 7'}),
    "not text": (400, {"document": b'\xff\xfe{"id": 7}'}),
    "nested too deep": (400, {"document": b"[" * 1900}),
    "not an event": (400, {"document": b"[]"}),
    "too large": (413, {"document": b'{"id": 7, "x": "' + b"x" * 3000 + b'"}'}),
    "an id no text can hold": (400, {"document": {"id": "7\x00"}}),
    "an id with half a character": (400, {"document": b'{"id": "7\\ud800"}'}),
    "a kind no text can hold": (400, {"document": {"id": 7, "kind": "made\x00"}}),
    "a kind with half a character": (400, {"document": b'{"id": 7, "kind": "made\\ud800"}'}),
    "an id too long to be kept": (400, {"document": {"id": "7" * 191}}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_not_kept_and_says_nothing(web, name):
    status, change = REFUSED[name]
    answer = web.post(**{"document": {"id": 7}, **change})
    assert answer.status_code == status
    assert answer.json is not None
    assert set(answer.json) == {"error"}
    assert len(answer.json["error"]) < 60
    assert web.kept() == []
    assert web.counted(status) == 1


def test_a_type_with_a_charset_is_json(web):
    assert web.post({"id": 7}, content_type="application/json;charset=UTF-8").status_code == 200


def test_the_size_is_bounded_without_a_length_too(web):
    body = b'{"id": 7, "x": "' + b"x" * 3000 + b'"}'
    answer = web.client.post(
        "/webhooks/acme/north",
        input_stream=BytesIO(body),
        headers=SECRET,
        content_type="application/json",
        environ_overrides={"wsgi.input_terminated": True, "CONTENT_LENGTH": ""},
    )
    assert answer.status_code == 413
    assert web.kept() == []


def test_who_is_not_proven_learns_nothing_about_their_body(web):
    answer = web.post(b"no json", headers={"X-Secret": "guess"}, content_type="text/plain")
    assert answer.status_code == 401


@pytest.mark.parametrize(("method", "status"), [("get", 405), ("put", 405)])
def test_other_methods(web, method, status):
    answer = getattr(web.client, method)("/webhooks/acme/north", headers=SECRET)
    assert answer.status_code == status
    assert answer.json == {"error": "Method Not Allowed"}
    assert "POST" in answer.headers["Allow"]


def test_what_cannot_be_committed_is_to_be_sent_again(web):
    with web.ledger.transaction() as connection:
        connection.execute(text("ALTER TABLE events RENAME TO gone"))
    assert web.post({"id": 7}).status_code == 503
    with web.ledger.transaction() as connection:
        connection.execute(text("ALTER TABLE gone RENAME TO events"))
    assert web.orders() == []
    assert web.post({"id": 7}).status_code == 200
    assert web.orders() == [("north", "7")]


def test_a_system_that_is_not_switched_on_has_no_url(web):
    assert web.client.post("/webhooks/doshii/default", data=b"{}", content_type="application/json").status_code == 404
