"""Storeganise's webhooks at the web server, with the real ledger behind it. The traps are those of section 11 of
contracts/storeganise.md."""

import base64
import hashlib
import hmac
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from ledger import queries
from ledger.connection import Ledger
from ledger.models import events
from sandbox import storeganise as sandbox
from tests.flows.harness import Remote, a_remote, a_web, wait_for
from workers.settings import read_settings
from workers.web import create_app

PAYLOADS = Path(__file__).parents[2] / "payloads" / "storeganise"
ORDER, JOB = "65a0000000000000000000a1", "65a0000000000000000000b1"
SECRET = "köln-secret"


def payload(name: str) -> bytes:
    return (PAYLOADS / f"{name}.json").read_bytes()


def event(kind: str = "job.valetOrder.created", data: Any = None, **fields: Any) -> bytes:
    document = {"id": "e1", "type": kind, "data": {"valetOrderId": ORDER} if data is None else data, **fields}
    return json.dumps({name: value for name, value in document.items() if value != "left out"}).encode()


def signed(raw: bytes, secret: str = SECRET) -> str:
    """Written from the contract (8.2), not with our own function."""
    return base64.b64encode(hmac.new(secret.encode(), raw, hashlib.sha256).digest()).decode()


class Receiving:
    """The web server for two accounts, the second of which has no secret, and a look into its ledger."""

    def __init__(self, database: str) -> None:
        settings = read_settings(
            {
                "DATABASE_URL": database,
                "BROKER_URL": "redis://127.0.0.1:1/0",
                "STOREGANISE_ACCOUNTS": "default,quiet",
                "STOREGANISE_URL": "http://127.0.0.1:9",
                "STOREGANISE_API_KEY": "key",
                "STOREGANISE_DEFAULT_WEBHOOK_SECRET": SECRET,
            }
        )
        self.app = create_app(settings)
        self.ledger: Ledger = self.app.extensions["ledger"]

    def post(self, raw: bytes, signature: str | None = None, account: str = "default", **options: Any) -> Any:
        headers = {"sg-signature": signed(raw) if signature is None else signature}
        options = {"content_type": "application/json;charset=UTF-8"} | options
        client = self.app.test_client()
        return client.post(f"/webhooks/storeganise/{account}", data=raw, headers=headers, **options)

    def events(self) -> list[tuple[str, str, str | None, str | None]]:
        wanted = select(events.c.dedupe_key, events.c.kind, events.c.external_id, events.c.problem)
        with self.ledger.reading() as connection:
            return [tuple(row) for row in connection.execute(wanted.order_by(events.c.id))]

    def orders(self) -> list[tuple[str, str, str]]:
        rows = queries.listing(self.ledger, queries.Filter())
        return [(row["external_id"], row["state"], row["step"]) for row in rows]

    def news(self) -> dict[str, int]:
        unread = queries.unread_news(self.ledger, "storeganise", "default", 100)
        return {external_id: len(ids) for external_id, ids in unread.items()}

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


def test_an_event_makes_its_order_and_is_answered_with_200(web):
    answer = web.post(payload("event_started"))
    assert (answer.status_code, answer.json) == (200, {"status": "ok"})
    assert web.events() == [("hook:65a0000000000000000000f1", "job.valetOrder.started", ORDER, None)]
    assert web.orders() == [(ORDER, "ready", "storeganise.fetch")]


def test_the_body_is_kept_as_it_came(web):
    web.post(payload("event_started"))
    with web.ledger.reading() as connection:
        assert connection.execute(select(events.c.body)).scalar_one() == payload("event_started").decode()


def test_a_second_event_is_news_of_the_order(web):
    web.post(payload("event_started"))
    assert web.news() == {}
    web.post(event("items.updated", {"itemIds": ["x"], "valetOrderId": ORDER}))
    assert web.news() == {ORDER: 1}
    assert len(web.orders()) == 1


def test_a_double_changes_nothing_and_is_acknowledged(web):
    for _ in range(3):
        assert web.post(event()).status_code == 200
    assert len(web.events()) == len(web.orders()) == 1
    assert web.news() == {}


def test_an_id_that_comes_with_another_body_is_shown(web):
    web.post(event())
    web.post(event("job.valetOrder.cancelled"))
    assert [row[3] for row in web.events()] == ["2 different bodies came under the key hook:e1"] * 2


def test_without_an_id_the_body_names_the_event(web):
    raw = event(id="left out")
    for _ in range(2):
        assert web.post(raw).status_code == 200
    web.post(event("items.updated", id="left out"))
    assert [row[0] for row in web.events()] == [
        f"hook:sha256:{hashlib.sha256(body).hexdigest()}" for body in (raw, event("items.updated", id="left out"))
    ]


# === Who is believed ========================================================================================


def test_trap_09_the_signature_is_over_the_bytes_as_they_came(web):
    document = json.loads(payload("event_started")) | {"amount": 1.0, "note": "Παρακαλώ"}
    spellings = [
        json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode(),
        json.dumps(document, indent=2).encode(),
        json.dumps(document).replace("1.0", "1.00").encode(),
    ]
    for place, raw in enumerate(spellings):
        raw = raw.replace(b"65a0000000000000000000f1", f"event-{place}".encode())
        assert web.post(raw).status_code == 200
    assert len(web.events()) == 3


@pytest.mark.parametrize(
    "signature",
    [
        "",
        "x",
        signed(event(), "another secret"),
        signed(event(id="e2")),
        signed(event()).rstrip("="),
        hmac.new(SECRET.encode(), event(), hashlib.sha256).hexdigest(),
        "ä" * 44,
    ],
)
def test_a_wrong_signature_stores_nothing(web, signature):
    assert web.post(event(), signature).status_code == 401
    assert web.events() == web.orders() == []


def test_without_a_secret_nobody_is_believed(web):
    for secret in ("", SECRET, "None"):
        assert web.post(event(), signed(event(), secret), account="quiet").status_code == 401
    assert web.post(event(), account="nobody").status_code == 404
    assert web.events() == []


def test_the_imitation_signs_as_we_read(web):
    raw = event()
    assert web.post(raw, sandbox.signature(SECRET, raw)).status_code == 200


# === What it says ===========================================================================================


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        event("left out"),
        event(data=[]),
        event(data="x"),
        json.dumps({"type": "job.valetOrder.created"}).encode(),
        json.dumps({"type": 7, "data": {}}).encode(),
        event(data={"valetOrderId": {"a": 1}}),
        event(data={"valetOrderId": True}),
        event(data={"valetOrderId": 4.5}),
        event(data={"valetOrderId": "x" * 191}),
        event("x" * 65),
        event(id="x" * 191),
    ],
)
def test_what_cannot_be_read_stores_nothing(web, raw):
    assert web.post(raw).status_code == 400
    assert web.events() == web.orders() == []


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("invoice.created", {"invoiceId": "i1"}),
        ("user.updated", {"userId": "u1"}),
        ("items.updated", {"itemIds": ["x"]}),
        ("items.updated", {"itemIds": ["x"], "jobId": JOB}),
        ("job.unit_moveIn.created", {"jobId": JOB}),
        ("job.valetOrder.created", {}),
        ("job.valetOrder.created", {"valetOrderId": "", "jobId": None}),
    ],
)
def test_a_useless_event_is_kept_and_acknowledged(web, kind, data):
    assert web.post(event(kind, data)).status_code == 200
    assert [row[1:] for row in web.events()] == [(kind, None, None)]
    assert web.orders() == []


def test_an_unknown_event_of_a_valet_order_is_news_all_the_same(web):
    web.post(event())
    assert web.post(event("job.valetOrder.somethingNew", id="e2")).status_code == 200
    assert web.news() == {ORDER: 1}


@pytest.mark.parametrize(
    ("data", "order"),
    [
        ({"valetOrderId": 4711}, "4711"),
        ({"valetOrderId": ORDER, "jobId": 4712}, ORDER),
        ({"valetOrderId": ORDER, "jobId": {"a": 1}}, ORDER),
        ({"jobId": 4712}, "job:4712"),
    ],
)
def test_ids_may_be_whole_numbers_as_everywhere(web, data, order):
    assert web.post(event(data=data)).status_code == 200
    assert [row[0] for row in web.orders()] == [order]


def test_items_alone_make_no_order(web):
    assert web.post(event("items.updated")).status_code == 200
    assert web.orders() == []
    assert web.news() == {}


def test_trap_02_with_a_job_only_an_entry_stands_for_the_order(web):
    assert web.post(payload("event_job_only")).status_code == 200
    assert web.orders() == [(f"job:{JOB}", "ready", "storeganise.resolve")]
    web.post(event(data={"jobId": JOB, "id": "x"}, id="e2"))
    assert web.news() == {f"job:{JOB}": 1}


def test_trap_14_events_out_of_order_and_late_say_only_which_order_to_read(web):
    for number, kind in enumerate(("completed", "cancelled", "started", "created", "submitted")):
        assert web.post(event(f"job.valetOrder.{kind}", id=f"e{number}")).status_code == 200
    assert web.orders() == [(ORDER, "ready", "storeganise.fetch")]
    assert web.news() == {ORDER: 4}


def test_trap_10_nobody_is_called_before_the_answer(web):
    """Nobody listens at the account's address, nor at the broker's."""
    assert web.post(event()).status_code == 200
    assert web.orders() == [(ORDER, "ready", "storeganise.fetch")]


# === Against the imitation ==================================================================================


@pytest.fixture
def remote() -> Iterator[Remote]:
    with a_remote("storeganise", time_factor=0.001) as opened:
        yield opened


def test_what_the_imitation_sends_is_taken_once(remote, migrated_sqlite, tmp_path):
    path = tmp_path / "ledger.db"
    shutil.copy(migrated_sqlite, path)
    remote.control.backend.options.change({"webhook_doubled": 0.5, "webhook_wrongly_signed": 0.2})
    environment = {"DATABASE_URL": f"sqlite:///{path}", "BROKER_URL": "redis://127.0.0.1:1/0"}
    ledger = Ledger(environment["DATABASE_URL"])
    with a_web(read_settings(remote.settings() | environment)) as url:
        remote.point_at(url)
        ids = remote.add(20)
        post = remote.control.backend.webhooks.post
        wait_for(post.quiet, "all is delivered")
    delivered = [one for one in post.deliveries() if 200 in one.statuses]
    refused = [one for one in post.deliveries() if 200 not in one.statuses]
    kept = {row["external_id"] for row in queries.listing(ledger, queries.Filter())}
    with ledger.reading() as connection:
        stored = connection.execute(select(events.c.dedupe_key)).scalars().all()
    ledger.close()
    assert len(stored) == len(set(stored)) == len(delivered)
    assert kept == {one.order for one in delivered}
    assert kept <= set(ids)
    assert {status for one in refused for status in one.statuses} == {401}
