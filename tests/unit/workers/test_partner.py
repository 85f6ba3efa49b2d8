"""How the partner's door is built from settings, and that it needs no broker."""

import io
import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import literal, update

from databases.clock import later
from ledger import queries
from ledger.inbound import Door
from ledger.models import inbound_images
from tasks.base import Visit
from webhooks.partner_access import User
from workers.settings import WrongSettings, read_settings
from workers.systems.partner import WIRING
from workers.web import create_app

ROOT = Path(__file__).resolve().parents[3]
ONE = {
    "PARTNER_INBOUND_TOKENS": "fixed=token==acme, other=bolt",
    "PARTNER_INBOUND_USERS": "ann:se:cr=et=acme",
    "PARTNER_STORES": "st-1=Store One,st-2=Store Two",
    "PARTNER_ITEMS": "501=Wardrobe, 502=Bed",
}
NO_BROKER = {"BROKER_URL": "redis://127.0.0.1:1/0"}


def wrong(environment: dict[str, str]) -> list[str]:
    """Each problem, as far as its first colon and beyond."""
    with pytest.raises(WrongSettings) as caught:
        read_settings(environment)
    return caught.value.problems


def test_what_is_read():
    (account,) = read_settings(ONE | {"PARTNER_SLOTS_CLOSED": "2026-12-25, 2026-12-26"}).accounts
    assert (account.system, account.name, account.url) == ("partner", "default", "")
    options = account.options
    assert options["tokens"] == {"fixed=token=": "acme", "other": "bolt"}
    assert options["users"] == [User("ann", "se:cr=et", "acme")]
    assert options["stores"] == {"st-1": "Store One", "st-2": "Store Two"}
    assert options["items"] == {501: "Wardrobe", 502: "Bed"}
    assert options["zone"] == ZoneInfo("Asia/Nicosia")
    assert options["closed"] == {date(2026, 12, 25), date(2026, 12, 26)}


def test_either_of_tokens_and_users_will_do():
    for left_out in ("PARTNER_INBOUND_TOKENS", "PARTNER_INBOUND_USERS"):
        environment = {name: value for name, value in ONE.items() if name != left_out}
        assert len(read_settings(environment).accounts) == 1
    assert read_settings({"PARTNER_STORES": "st-1=Store One"}).accounts == ()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("PARTNER_INBOUND_TOKENS", "only-a-token"),
        ("PARTNER_INBOUND_TOKENS", "token=" + "x" * 65),
        ("PARTNER_INBOUND_USERS", "login=acme"),
        ("PARTNER_INBOUND_USERS", ":secret=acme"),
        ("PARTNER_INBOUND_USERS", "ann:one=acme,ann:two=acme"),
        ("PARTNER_STORES", "st-1"),
        ("PARTNER_STORES", ""),
        ("PARTNER_STORES", "x" * 191 + "=Store"),
        ("PARTNER_ITEMS", "wardrobe=Wardrobe"),
        ("PARTNER_ITEMS", ""),
        ("PARTNER_ITEMS", "9" * 19 + "=Wardrobe"),
        ("PARTNER_TIMEZONE", "Cyprus"),
        ("PARTNER_TIMEZONE", "Nowhere/Land"),
        ("PARTNER_SLOTS_CLOSED", "25.12.2026"),
    ],
)
def test_a_problem_begins_with_its_setting_and_shows_no_secret(setting: str, value: str):
    if value == "Cyprus":
        value = "Asia/Cyprus"
    (problem,) = wrong(ONE | {setting: value})
    assert problem.startswith(f"{setting}: ")
    assert "secret" not in problem
    assert "only-a-token" not in problem


def test_accounts_have_their_own(ledger_url: str):
    environment = ONE | NO_BROKER | {"PARTNER_ACCOUNTS": "north,south", "DATABASE_URL": ledger_url}
    with pytest.raises(WrongSettings) as caught:
        create_app(read_settings(environment))
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "PARTNER_INBOUND_TOKENS",
        "PARTNER_INBOUND_USERS",
    ]
    del environment["PARTNER_INBOUND_TOKENS"], environment["PARTNER_INBOUND_USERS"]
    environment |= {"PARTNER_NORTH_INBOUND_TOKENS": "n=acme", "PARTNER_SOUTH_INBOUND_TOKENS": "s=acme"}
    app = create_app(read_settings(environment))
    client = app.test_client()
    for token in ("n", "s"):
        assert client.get("/partner/item/list", headers={"token": token}).status_code == 200
    close(app)


@pytest.fixture
def app(ledger_url: str) -> Iterator[Flask]:
    """The web process as it is set up, and no broker."""
    made = create_app(read_settings(ONE | NO_BROKER | {"DATABASE_URL": ledger_url}))
    yield made
    close(made)


def close(app: Flask) -> None:
    app.extensions["bell"].stop()
    app.extensions["ledger"].close()


def ordered(client: FlaskClient, token: str) -> int:
    headers = {"token": token}
    upload = {"file": (io.BytesIO(b"\x89PNG\r\n\x1a\n"), "r.png")}
    answer = client.post("/partner/image/upload", headers=headers, data=upload)
    assert answer.json is not None
    order = json.loads((ROOT / "tests" / "payloads" / "partner" / "order.json").read_text())
    order["image_uuids"] = [answer.json["data"][0]["id"]]
    slots = client.get("/partner/masters/slots?store_id=st-1").json
    assert slots is not None
    order["datetime"] = {"date": sorted(slots["data"])[2], "timeslot": "0712"}
    created = client.post("/partner/order/create", headers=headers, json=order)
    assert created.json is not None
    assert created.status_code == 200, created.json
    number: int = created.json["data"]["_id"]
    return number


def test_orders_are_taken_while_the_broker_is_away(app: Flask):
    client = app.test_client()
    assert [ordered(client, token) for token in ("fixed=token=", "other", "other")] == [0, 1, 2]
    rows = queries.listing(app.extensions["ledger"], queries.Filter(system="partner"))
    assert [(row["external_id"], row["state"], row["step"]) for row in rows] == [
        ("0", "ready", "erp.order"),
        ("1", "ready", "erp.order"),
        ("2", "ready", "erp.order"),
    ]


def test_the_document_is_where_the_design_says(app: Flask):
    client = app.test_client()
    assert client.get("/docs/openapi.json").status_code == 200
    assert client.get("/docs/").status_code == 200
    missing = client.get("/nothing")
    assert (missing.status_code, missing.json) == (404, {"error": "Not Found"})


def test_the_poll_forgets_old_images(app: Flask):
    ledger = app.extensions["ledger"]
    door = Door(ledger, "partner")
    image = door.add_image("acme", "image/png", b"")
    with ledger.statement() as connection:
        connection.execute(update(inbound_images).values(created_at=later(literal(-8 * 86400.0))))
    (settings,) = read_settings(ONE).accounts
    assert WIRING.system.poll is not None
    WIRING.system.poll(Visit(ledger, WIRING.build(settings)))
    assert door.image("acme", image) is None


def test_every_answer_is_in_the_metrics(app: Flask):
    client = app.test_client()
    ordered(client, "other")
    assert client.get("/partner/order/list", headers={"token": "guess"}).status_code == 401
    lines = client.get("/metrics").text.splitlines()
    counted = {line.rpartition(" ")[0] for line in lines if line.startswith("orderfleet_webhooks_total")}
    assert {f'orderfleet_webhooks_total{{status="{status}",system="partner"}}' for status in ("200", "401")} <= counted
