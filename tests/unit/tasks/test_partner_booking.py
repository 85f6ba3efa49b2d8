"""Partner's steps on the real ledger, against the imitation of the service and the staging tables: one crew for one
order, whatever becomes of the answer. The numbers of the traps, and the sections, are those of contracts/partner.md."""

import json
import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, jsonify, request
from sqlalchemy import literal, select, update

from clients.base import StaticToken
from clients.partner import Login, Partner
from databases.clock import later
from ledger import by_hand, intake, intents, queries, records, sending
from ledger.models import inbound_images, orders, workers
from orders.arrival import Arrival
from orders.errors import Fenced, Misconfigured, Refused, StepError
from orders.outcomes import Planned
from sandbox.base import FaultRule
from sandbox.partner import Options, fleet_settings, service_of
from sandbox.partner_shop import receipt
from tasks.base import STEPS, Effect, Job
from tasks.partner import SYSTEM, plan
from tests.flows.harness import a_remote
from tests.unit.tasks.conftest import Driver
from workers import operators
from workers.settings import WrongSettings, read_settings
from workers.systems.base import Inbound
from workers.systems.partner import WIRING

CHAIN = [("erp.order", "done"), ("partner.upload", "done"), ("partner.book", "done"), ("partner.track", "partly")]
TOKEN = {"token": "sandbox-inbound-token"}
QUIET = {"step_seconds": None, "trouble_share": 0.0, "rate_per_second": None}
PARTS: dict[str, Any] = {
    "customer": {"phone_number": "+357 99 (000) 00-1", "first_name": "Ann", "last_name": "Test"},
    "payment_method": "stripe",
    "address": {
        "address": "1 Sample Street",
        "coordinates": {"lat": 34.70187, "lon": 33.04853},
        "details": "2nd floor",
        "zip": "0403",
    },
}
DETAILS: dict[str, Any] = {
    "store_id": "st-1",
    "instock": True,
    "items": [{"id": "501", "count": 2, "delivery": True}, {"id": 502, "count": 1, "assembly": True}],
}


class Bookings(Driver):
    """Orders are named by the `_id` that our door gave them; bookings by the service's."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.service = service_of(self.remote.app)
        app = Flask("door")
        assert WIRING.blueprint is not None
        app.register_blueprint(WIRING.blueprint(Inbound(self.settings.accounts, self.ledger, lambda *_: None)))
        self.door: Any = app.test_client()

    # -- orders come in

    def image(self) -> str:
        """Upload one at our door; its id there."""
        self.pictures = getattr(self, "pictures", 0) + 1
        data = {"file": (BytesIO(receipt(f"receipt {self.pictures}")), "receipt.png", "image/png")}
        return str(self.door.post("/partner/image/upload", headers=TOKEN, data=data).json["data"][0]["id"])

    def days(self) -> list[str]:
        """The days that our door offers, from today."""
        store = next(iter(self.settings.accounts[0].options["stores"]))
        return sorted(self.door.get(f"/partner/masters/slots?store_id={store}").json["data"])

    def free(self, count: int = 1) -> list[dict[str, str]]:
        """A slot of each of the next days."""
        return [{"date": day, "timeslot": "0712"} for day in self.days()[1 : count + 1]]

    def add(self, *, images: int = 1, details: dict[str, Any] | None = None, **parts: Any) -> int:
        """An order comes in; what `parts` gives as None is left out."""
        body = {
            **PARTS,
            "datetime": self.free(),
            "image_uuids": [self.image() for _ in range(images)],
            "partner_details": {**DETAILS, **(details or {})},
            **parts,
        }
        body = {name: value for name, value in body.items() if value is not None}
        answer = self.door.post("/partner/order/create", headers=TOKEN, json=body)
        assert answer.status_code == 200, answer.json
        return int(answer.json["data"]["_id"])

    def stand_before(self, step: str, **parts: Any) -> int:
        """A new order that has come as far as `step`, which could run, and has not."""
        number = self.add(**parts)
        self.go(hold=[step])
        assert self.order(number)["step"] == step
        self.resume(number)
        return number

    def resume(self, number: int) -> None:
        """The message of a step that was held is lost: the order may go again at once."""
        self.time_passes()
        sending.resend(self.ledger, [self.order(number)["id"]], lost=True)

    # -- and go out

    @property
    def client(self) -> Any:
        return self.fleet.accounts["partner", "default"].client

    def requests(self, method: str) -> int:
        answer = self.remote.app.test_client().get("/_sandbox/counts").get_json()
        return int(answer["requests"].get(method, 0))

    def crews(self) -> list[dict[str, Any]]:
        return self.service.all_bookings()

    def facts(self, number: int) -> dict[str, Any]:
        return dict(self.order(number)["facts"])

    def fail(self, kind: str, path: str, **rule: Any) -> None:
        self.remote.control.faults.set([FaultRule(kinds=(kind,), path_contains=path, **rule)])

    def write(self, number: object, **values: Any) -> None:
        with self.ledger.statement() as connection:
            connection.execute(update(orders).where(orders.c.external_id == str(number)).values(**values))

    def look(self) -> None:
        """Answers are long overdue: the next look at the list is due, and done."""
        for row in queries.listing(self.ledger, queries.Filter()):
            if row["facts"].get("intent"):
                intent = row["facts"]["intent"] | {"look_at": "2020-01-01T00:00:00+00:00"}
                self.write(row["external_id"], facts=json.dumps(row["facts"] | {"intent": intent}))
        self.go_on(1)

    def try_in(self, number: int) -> None:
        """Another worker tries the order's current step, and is gone before it records how that ended."""
        with pytest.raises(StepError):
            self.dies_at(number)

    def talk_to(self, client: Any) -> None:
        """From now on the fleet calls the service by this client."""
        accounts: Any = self.fleet.accounts
        accounts["partner", "default"] = replace(accounts["partner", "default"], client=client)

    def others_book(self, mark: str = "", **parts: Any) -> int:
        """Another user of the account at the service books a crew like ours."""
        image = self.client.upload_image(receipt("theirs"), "image/png")[0]["id"]
        details = {**DETAILS, "delivery_type": "to_pavement", **parts}
        address = PARTS["address"] | {"details": mark}
        body = {**PARTS, "address": address, "datetime": self.free(), "image_uuids": [image]}
        return int(self.client.create_order({**body, "partner_details": details})["_id"])

    def cancel(self, number: int, *, hold: Collection[str] = ()) -> None:
        """An operator cancels the order."""
        operators.cancel(self.ledger, self.order(number), self.fleet.systems["partner"], "ann")
        self.go(hold=hold)

    def doing(self, number: int, data: dict[str, Any]) -> operators.Doing:
        command = operators.commands_of(self.fleet.systems["partner"])["bind"]
        return operators.Doing(self.fleet, self.order(number), "bind", command, data, "ann")

    def foreseen(self, number: int, start: str | None = None) -> operators.Foreseen:
        return operators.foresee(self.fleet, self.order(number), start)

    def again(self, number: int, start: str | None = None, *, acknowledged: bool = True) -> None:
        """An operator replays the order."""
        foreseen = self.foreseen(number, start)
        operators.replay(self.ledger, foreseen, "ann", acknowledged=acknowledged)

    def it_did_happen(self, number: int) -> None:
        """An operator says so of the effect in doubt."""
        foreseen = operators.foresee(self.fleet, self.order(number), happened=True)
        operators.replay(self.ledger, foreseen, "ann", happened=True)

    def doors_row(self, number: int) -> dict[str, Any]:
        """The order, as our partner may see it."""
        return dict(self.door.get(f"/partner/order/{number}", headers=TOKEN).json["data"])


@pytest.fixture
def bookings_with(sqlite_url: str) -> Iterator[Callable[..., Bookings]]:
    """`bookings_with({"lose_slots": 1}, PARTNER_ITEM_MAP="501=502")`: knobs of the imitation, and settings."""
    with ExitStack() as opened:

        def open_driver(options: dict[str, Any] | None = None, **environment: str) -> Bookings:
            remote = opened.enter_context(a_remote("partner", **{**QUIET, **(options or {})}))
            settings = {"PARTNER_RATE": "1000", "PARTNER_TIMEOUT": "2", **environment}
            driver = Bookings(remote, settings, sqlite_url)
            opened.callback(driver.close)
            return driver

        yield open_driver


@pytest.fixture
def bookings(bookings_with: Callable[..., Bookings]) -> Bookings:
    return bookings_with()


class Retelling(Partner):
    """A service whose list is not as the contract has it: `retold` makes it of all the rows, the newest first."""

    retold: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]

    def orders(self) -> Iterator[list[dict[str, Any]]]:
        rows = self.retold([row for page in super().orders() for row in page])
        for place in range(0, max(len(rows), 1), 50):
            yield rows[place : place + 50]


@pytest.fixture
def retelling(bookings: Bookings) -> Iterator[Retelling]:
    """The fleet calls the service by this client."""
    client = Retelling(bookings.remote.url, auth=Login(bookings.remote.url, "sandbox", "sandbox-password"))
    client.retold = lambda rows: rows
    own = bookings.client
    bookings.talk_to(client)
    yield client
    bookings.talk_to(own)
    client.close()


def test_crews_are_booked_only_where_an_account_is_configured_for_it():
    assert [one.name for one in plan(outgoing=False)] == ["erp.order"]
    assert [one.name for one in plan(outgoing=True)] == [name for name, _ in CHAIN]


def test_an_order_becomes_one_booking_and_is_followed_to_its_end(bookings: Bookings):
    number = bookings.add()
    bookings.go()
    assert bookings.attempts(number) == CHAIN
    assert bookings.state(number) == "waiting"
    (crew,) = bookings.crews()
    assert bookings.facts(number)["booking_id"] == crew["_id"] == 0
    assert bookings.doors_row(number)["_substatus"] == "open"
    for _ in range(7):
        bookings.remote.edit(0, advance=1)
        bookings.poll()
        bookings.go()
        assert bookings.doors_row(number)["_substatus"] == bookings.crews()[0]["_substatus"]
    assert bookings.crews()[0]["_substatus"] == "payment_captured"
    assert bookings.state(number) == "done"
    assert bookings.doors_row(number)["_status"] == "done"
    assert "flags" not in bookings.facts(number) or bookings.facts(number)["flags"] == []
    assert len(bookings.crews()) == 1


def test_what_is_sent_is_the_order_as_the_contract_writes_it(bookings: Bookings):
    (slot,) = bookings.free()
    bookings.add(datetime=slot)
    bookings.go()
    (effect,) = [one for one in bookings.remote.control.backend.effects.of() if "crew" in one.kinds]
    images = [one.order for one in bookings.remote.control.backend.effects.of() if "upload" in one.kinds]
    assert json.loads(effect.raw) == {
        "customer": {"phone_number": "+35799000001", "first_name": "Ann", "last_name": "Test"},
        "payment_method": "stripe",
        "datetime": [slot],
        "address": PARTS["address"] | {"details": "2nd floor [partner:default:0]"},
        "image_uuids": images,
        "partner_details": {
            "store_id": "st-1",
            "instock": True,
            "delivery_type": "to_pavement",
            "items": [
                {"id": 501, "count": 2, "delivery": True, "assembly": False},
                {"id": 502, "count": 1, "delivery": False, "assembly": True},
            ],
        },
    }


# -- images -----------------------------------------------------------------------------------------------------------


def test_trap_03_every_image_is_there_before_the_booking_by_its_id(bookings: Bookings):
    number = bookings.add(images=3)
    bookings.go()
    assert bookings.attempts(number)[1:5] == [("partner.upload", "partly")] * 2 + [
        ("partner.upload", "done"),
        ("partner.book", "done"),
    ]
    uploads = [one.order for one in bookings.remote.control.backend.effects.of() if "upload" in one.kinds]
    assert bookings.crews()[0]["order"]["image_uuids"] == uploads
    assert len(uploads) == 3
    assert bookings.foreseen(number, "partner.upload").steps[0][1].effect is Effect.SKIP
    bookings.again(number, "partner.upload")
    bookings.go()
    assert bookings.remote.effects()["upload"] == 3


def test_trap_13_an_image_whose_answer_was_lost_is_sent_again_and_none_serves_two_orders(bookings: Bookings):
    first = bookings.add()
    bookings.fail("500_after", "/image/upload", times=1)
    bookings.go()
    assert bookings.attempts(first)[1] == ("partner.upload", "retry")
    second = bookings.add()
    bookings.go_on(2)
    used = [crew["order"]["image_uuids"] for crew in bookings.crews()]
    assert len(used) == len({image for images in used for image in images}) == 2
    assert bookings.remote.effects()["upload"] == 3
    assert {bookings.facts(one)["booking_id"] for one in (first, second)} == {0, 1}


def test_trap_13_no_word_of_ours_has_the_address_of_a_receipt(bookings: Bookings):
    number = bookings.add()
    bookings.go()
    told = queries.timeline(bookings.ledger, bookings.order(number)["id"])
    assert "images.example.com" not in json.dumps([told, bookings.order(number)], default=str)


def test_an_image_that_the_service_refuses_stops_the_order(bookings: Bookings):
    number = bookings.add()
    with bookings.ledger.statement() as connection:
        connection.execute(update(inbound_images).values(content=b"no image"))
    bookings.go()
    assert bookings.state(number) == "parked"
    assert "415" in bookings.order(number)["error"]


def test_images_that_the_service_has_forgotten_are_uploaded_anew(bookings: Bookings):
    """It keeps those of no booking for some days only: our own door does so, too."""
    number = bookings.stand_before("partner.book", images=2)
    bookings.service._images.clear()
    bookings.go()
    assert bookings.state(number) == "parked"
    assert "422 image_uuids[0] notFound" in bookings.order(number)["error"]
    assert f"orderfleet replay {bookings.order(number)['id']} --from partner.upload" in bookings.order(number)["error"]
    bookings.again(number)
    bookings.go()
    assert "--from partner.upload" in bookings.order(number)["error"]
    bookings.again(number, "partner.upload")
    bookings.go()
    assert bookings.facts(number)["booking_id"] == 0
    assert bookings.remote.effects()["upload"] == 4
    assert len(bookings.crews()) == 1


def test_an_order_without_an_image_cannot_be_booked(bookings: Bookings):
    number = bookings.add()
    with bookings.ledger.statement() as connection:
        connection.execute(update(inbound_images).values(number=None))
    bookings.go()
    assert bookings.state(number) == "parked"
    assert "no image" in bookings.order(number)["error"]


# -- one crew for one order -------------------------------------------------------------------------------------------


def test_trap_01_the_first_booking_has_the_number_0(bookings: Bookings):
    number = bookings.add()
    bookings.go()
    assert bookings.facts(number)["booking_id"] == 0
    foreseen = bookings.foreseen(number, "partner.book")
    assert [one.effect for _, one in foreseen.steps] == [Effect.SKIP, Effect.CALL]
    bookings.again(number, "partner.book", acknowledged=False)
    bookings.go()
    assert bookings.attempts(number)[-2:] == [("partner.book", "skipped"), ("partner.track", "partly")]
    assert len(bookings.crews()) == 1


@pytest.mark.parametrize("kind", ["lost_answer", "500_after"])
def test_trap_11_a_booking_that_was_made_without_an_answer_is_found_in_the_list(bookings: Bookings, kind: str):
    number = bookings.add()
    bookings.fail(kind, "/order/create", times=1)
    bookings.go()
    assert ("partner.book", "retry") in bookings.attempts(number)
    assert bookings.facts(number)["intent"]["above"] == -1
    bookings.go_on(2)
    assert bookings.attempts(number)[-1] == ("partner.book", "partly"), "not before twice the timeout"
    assert len(bookings.crews()) == 1
    bookings.look()
    assert bookings.facts(number)["booking_id"] == 0
    assert bookings.facts(number)["intent"] is None
    assert bookings.order(number)["step"] == "partner.track"
    assert len(bookings.crews()) == 1


@pytest.mark.parametrize("kind", ["500_before", "lost_request", "html_502", "429"])
def test_trap_11_only_three_looks_that_find_nothing_have_it_sent_again(bookings: Bookings, kind: str):
    number = bookings.add()
    bookings.fail(kind, "/order/create", times=1)
    bookings.go()
    bookings.go_on(1)
    for _ in range(2):
        bookings.look()
        assert bookings.facts(number)["intent"] is not None
        assert bookings.crews() == []
    bookings.look()
    assert bookings.facts(number)["booking_id"] == 0
    assert len(bookings.crews()) == 1


def test_trap_11_a_worker_that_died_after_the_create_has_booked_a_crew(bookings: Bookings):
    """It is dead before it hears of it: as good as a lost answer, and it holds the turn."""
    number = bookings.stand_before("partner.book")
    bookings.fail("lost_answer", "/order/create", times=1)
    bookings.try_in(number)
    bookings.worker.sweep.run()
    bookings.go()
    assert bookings.facts(number)["intent"] is not None
    assert len(bookings.crews()) == 1
    bookings.look()
    assert bookings.facts(number)["booking_id"] == 0
    assert len(bookings.crews()) == 1


def test_trap_11_a_worker_that_died_after_the_answer_has_bound_it(bookings: Bookings):
    number = bookings.stand_before("partner.book")
    bookings.dies_at(number)
    bookings.worker.sweep.run()
    bookings.go()
    assert bookings.facts(number)["booking_id"] == 0
    assert bookings.order(number)["step"] == "partner.track"
    assert len(bookings.crews()) == 1


class Unreachable(Partner):
    """A service that answers every call, but is not there when a crew is to be booked."""

    nobody: Partner

    def create_order(self, document: dict[str, Any]) -> dict[str, Any]:
        return self.nobody.create_order(document)


def test_a_refused_connection_is_no_doubt(bookings: Bookings):
    """Nothing was sent: it goes at once when the service is there again."""
    client = bookings.client
    gone = Unreachable(bookings.remote.url, auth=Login(bookings.remote.url, "sandbox", "sandbox-password"))
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        gone.nobody = Partner(f"http://127.0.0.1:{nobody.getsockname()[1]}", auth=StaticToken("token", "x"))
        number = bookings.stand_before("partner.book")
        bookings.talk_to(gone)
        bookings.go()
    gone.nobody.close()
    gone.close()
    assert bookings.attempts(number)[-1] == ("partner.book", "unavailable")
    assert "cannot connect" in bookings.order(number)["error"]
    assert bookings.facts(number)["intent"] is None
    bookings.talk_to(client)
    bookings.go_on(1)
    assert bookings.facts(number)["booking_id"] == 0
    assert len(bookings.crews()) == 1


def test_after_three_creates_without_a_trace_a_person_must_act(bookings: Bookings):
    number = bookings.add()
    bookings.fail("500_before", "/order/create", times=3)
    bookings.go()
    for _ in range(15):
        bookings.look()
    assert bookings.state(number) == "parked"
    assert "3 times no answer came" in bookings.order(number)["error"]
    assert bookings.attempts(number).count(("partner.book", "retry")) == 3
    assert bookings.crews() == []
    bookings.again(number)
    bookings.go()
    assert bookings.facts(number)["booking_id"] == 0
    assert len(bookings.crews()) == 1


def test_others_wait_while_it_is_not_known_what_became_of_a_create(bookings: Bookings):
    """Else a booking of theirs could be taken for it."""
    first = bookings.add()
    bookings.fail("500_before", "/order/create", times=1)
    bookings.go()
    second = bookings.add()
    bookings.go()
    bookings.go_on(4)
    assert bookings.order(second)["awaits"] == "turn"
    assert bookings.crews() == []
    for _ in range(3):
        bookings.look()
    bookings.go_on(2)
    assert {bookings.facts(one)["booking_id"] for one in (first, second)} == {0, 1}
    assert len(bookings.crews()) == 2


def test_an_order_waits_for_its_turn_without_a_try_every_half_minute(bookings: Bookings):
    """10,000 of them would do nothing else. Should nobody give the turn back, the poll sees that."""
    first = bookings.add()
    bookings.fail("500_before", "/order/create", times=1)
    bookings.go()
    second = bookings.add()
    bookings.go()
    assert bookings.order(second)["awaits"] == "turn"
    waits = bookings.column(second, "wake_at") - queries.database_now(bookings.ledger)
    assert waits > timedelta(minutes=30)
    bookings.poll()
    assert bookings.state(second) == "waiting"
    bookings.write(first, state="parked", wake_at=None)
    bookings.poll()
    bookings.go()
    assert bookings.facts(second)["booking_id"] == 0


def in_doubt(bookings: Bookings) -> int:
    """An order of whose create nobody knows what became: another user of the account has booked the same."""
    number = bookings.stand_before("partner.book")
    bookings.fail("lost_answer", "/order/create", times=1)
    bookings.go()
    bookings.others_book()
    bookings.go_on(1)
    bookings.look()
    assert bookings.state(number) == "in_doubt"
    return number


def test_trap_11_of_two_bookings_that_may_be_it_none_is_taken(bookings: Bookings):
    number = in_doubt(bookings)
    assert "there are several that may be it: 1, 0." in bookings.order(number)["error"]
    assert len(bookings.crews()) == 2
    foreseen = bookings.foreseen(number)
    assert foreseen.must_acknowledge
    # Others go on meanwhile, and a replay without a person's word stops again.
    other = bookings.add()
    bookings.go()
    assert bookings.facts(other)["booking_id"] == 2
    by_hand.replay(bookings.ledger, foreseen.order["id"], bookings.order(number)["version"], None, "ann")
    bookings.go()
    assert bookings.state(number) == "in_doubt"
    assert "others may have been booked since: 1, 0." in bookings.order(number)["error"]
    assert len(bookings.crews()) == 3


def test_a_person_binds_the_booking_that_was_in_doubt(bookings: Bookings):
    number = in_doubt(bookings)
    other = bookings.add()
    bookings.go()
    with pytest.raises(Refused, match="say which"):
        bookings.doing(number, {"booking": True}).ask()
    assert "Store One #0" in bookings.doing(number, {"booking": 0}).ask()
    with pytest.raises(Refused, match=f"that of order {other}"):
        bookings.doing(number, {"booking": 2}).run()
    assert "is this order's" in bookings.doing(number, {"booking": 0}).run()
    with pytest.raises(Refused, match="booked as 0 already"):
        bookings.doing(number, {"booking": 1}).ask()
    bookings.it_did_happen(number)
    bookings.go()
    assert bookings.facts(number)["booking_id"] == 0
    assert bookings.order(number)["step"] == "partner.track"
    assert bookings.facts(number)["intent"] is None
    assert len(bookings.crews()) == 3


def test_a_booking_is_bound_where_bookings_cannot_be_read_one_by_one(bookings_with: Callable[..., Bookings]):
    bookings = bookings_with({"order_by_id": False})
    number = in_doubt(bookings)
    assert "Store One #0" in bookings.doing(number, {"booking": 0}).ask()
    assert "is this order's" in bookings.doing(number, {"booking": 0}).run()
    with pytest.raises(Refused, match="does not know booking 7"):
        bookings.doing(in_doubt(bookings), {"booking": 7}).ask()


def test_a_person_says_that_none_of_them_is_it(bookings: Bookings):
    number = in_doubt(bookings)
    bookings.again(number)
    bookings.go()
    assert bookings.facts(number)["booking_id"] == 2
    assert len(bookings.crews()) == 3


def test_what_a_person_said_counts_for_one_create_only(bookings: Bookings):
    """The one that follows is lost again, and again others book: that is another doubt."""
    number = in_doubt(bookings)
    bookings.fail("500_after", "/order/create", times=1)
    bookings.again(number)
    bookings.go()
    bookings.others_book()
    assert len(bookings.crews()) == 4
    bookings.go_on(1)
    bookings.fail("500_before", "/order/list", times=1)
    for _ in range(3):
        bookings.look()
    assert bookings.state(number) == "in_doubt"
    assert len(bookings.crews()) == 4


def test_a_person_says_so_after_others_were_booked(bookings: Bookings):
    number = in_doubt(bookings)
    other = bookings.add()
    bookings.go()
    bookings.again(number)
    bookings.go()
    assert {bookings.facts(one)["booking_id"] for one in (other, number)} == {2, 3}


def test_a_person_says_that_it_did_happen_and_not_which_it_is(bookings: Bookings):
    number = in_doubt(bookings)
    bookings.it_did_happen(number)
    bookings.go()
    assert bookings.state(number) == "parked"
    assert "bind" in bookings.order(number)["error"]
    bookings.doing(number, {"booking": 1}).run()
    bookings.again(number)
    bookings.go()
    assert bookings.facts(number)["booking_id"] == 1
    assert bookings.state(number) == "waiting"


@pytest.mark.parametrize("others", [{"store_id": "st-2"}, {"instock": False}], ids=["store", "stock"])
def test_a_booking_of_another_kind_is_not_taken_for_it(bookings: Bookings, others: dict[str, Any]):
    number = bookings.stand_before("partner.book")
    bookings.fail("500_before", "/order/create", times=1)
    bookings.go()
    bookings.others_book(**others)
    bookings.go_on(1)
    for _ in range(3):
        bookings.look()
    assert bookings.facts(number)["booking_id"] == 1


@pytest.mark.parametrize(
    "told",
    [
        lambda now: now + timedelta(minutes=4),
        lambda now: now - timedelta(minutes=4),
        lambda now: (now + timedelta(hours=2)).replace(tzinfo=None),
    ],
    ids=["fast clock", "slow clock", "local time"],
)
def test_the_services_clock_does_not_clear_a_booking(bookings: Bookings, told: Callable[[datetime], datetime]):
    """It is new, of the same store, and nobody's: that it was made at another time only makes it doubtful."""
    number = bookings.stand_before("partner.book")
    bookings.fail("lost_answer", "/order/create", times=1)
    bookings.go()
    bookings.remote.edit(0, created_at=told(datetime.now(UTC)).isoformat())
    bookings.go_on(1)
    for _ in range(3):
        bookings.look()
    assert bookings.state(number) == "in_doubt"
    assert "0. If it is one of these" in bookings.order(number)["error"]
    assert len(bookings.crews()) == 1


def test_no_filter_of_the_service_says_that_nothing_was_booked(bookings: Bookings):
    """It understands filters in its own way: nothing passes."""

    def filtered() -> Any:
        if any(name.startswith("filter") for name in request.args):
            return jsonify({"status": "ok", "statusCode": 200, "data": []})
        return None

    bookings.remote.app.before_request_funcs.setdefault(None, []).append(filtered)
    number = bookings.stand_before("partner.book")
    bookings.fail("lost_answer", "/order/create", times=1)
    bookings.go()
    bookings.go_on(1)
    for _ in range(3):
        bookings.look()
    assert bookings.facts(number)["booking_id"] == 0
    assert len(bookings.crews()) == 1


@pytest.mark.parametrize("others", [1, 55])
def test_a_list_whose_newest_do_not_come_first_says_nothing(bookings: Bookings, retelling: Retelling, others: int):
    """What is on its first page is not the newest: neither before the create nor after it."""
    for _ in range(others):
        bookings.others_book()
    retelling.retold = lambda rows: rows[::-1]
    number = bookings.stand_before("partner.book")
    bookings.fail("lost_answer", "/order/create", times=1)
    bookings.go()
    bookings.go_on(1)
    for _ in range(3):
        bookings.look()
    assert bookings.state(number) == "in_doubt"
    assert "does not begin with the newest" in bookings.order(number)["error"]
    assert len(bookings.crews()) == others + 1


ODD_ROWS = [{"_id": 99, "_status": None}, {"_id": 99, "_status": "open", "partner_details": {"store_id": 7}}]


@pytest.mark.parametrize("odd", [*ODD_ROWS, {"_id": "x", "_status": "open"}], ids=["status", "store", "id"])
def test_a_row_that_cannot_be_read_stops_nobody_elses_order(bookings: Bookings, retelling: Retelling, odd: Any):
    retelling.retold = lambda rows: [odd, *rows]
    numbers = [bookings.add(), bookings.add()]
    bookings.go()
    bookings.go_on(2)
    assert {bookings.facts(number)["booking_id"] for number in numbers} == {0, 1}
    bookings.remote.edit(0, _substatus="fee_captured")
    for _ in range(2):
        bookings.poll()
        bookings.go()
    done = next(number for number in numbers if bookings.facts(number)["booking_id"] == 0)
    assert bookings.state(done) == "done"
    (event,) = queries.odd_events(bookings.ledger)
    assert "cannot be read" in event["problem"]


@pytest.mark.parametrize("odd", [*ODD_ROWS, {"_status": "open"}], ids=["status", "store", "id"])
def test_a_new_row_that_cannot_be_read_may_be_the_booking(bookings: Bookings, retelling: Retelling, odd: Any):
    number = bookings.stand_before("partner.book")
    bookings.fail("500_before", "/order/create", times=1)
    bookings.go()
    retelling.retold = lambda rows: [odd, *rows]
    bookings.go_on(1)
    for _ in range(3):
        bookings.look()
    assert bookings.state(number) == "in_doubt"
    assert bookings.crews() == []


@pytest.mark.parametrize("why", ["it was there before", "it is another order's"])
def test_a_booking_that_cannot_be_it_is_not_taken_for_it(bookings: Bookings, why: str):
    number = bookings.stand_before("partner.book")
    if why == "it was there before":
        bookings.others_book()
    bookings.fail("500_before", "/order/create", times=1)
    bookings.go()
    if why == "it is another order's":
        bookings.others_book()
        assert intents.bind(bookings.ledger, "partner", "default", "77", "0") == "77"
    bookings.go_on(1)
    for _ in range(3):
        bookings.look()
    assert bookings.facts(number)["booking_id"] == 1


class Telling(Partner):
    """A service whose list shows addresses."""

    addresses: Callable[[], dict[int, Any]]

    def orders(self) -> Iterator[list[dict[str, Any]]]:
        for rows in super().orders():
            yield [row | {"address": self.addresses()[row["_id"]]} for row in rows]


def test_where_the_list_shows_our_mark_there_is_no_doubt(bookings: Bookings):
    telling = Telling(bookings.remote.url, auth=Login(bookings.remote.url, "sandbox", "sandbox-password"))
    telling.addresses = lambda: {crew["_id"]: crew["order"]["address"] for crew in bookings.crews()}
    bookings.talk_to(telling)
    number = bookings.stand_before("partner.book")
    bookings.fail("lost_answer", "/order/create", times=1)
    bookings.go()
    bookings.others_book()
    bookings.others_book(mark="[partner:default:99]")
    bookings.go_on(1)
    bookings.look()
    telling.close()
    assert bookings.facts(number)["booking_id"] == 0


def test_a_booking_that_is_another_orders_is_in_doubt(bookings: Bookings):
    """The service gives a number twice."""
    number = bookings.stand_before("partner.book")
    assert intents.bind(bookings.ledger, "partner", "default", "77", "0") == "77"
    bookings.go()
    assert bookings.state(number) == "in_doubt"
    assert "that of order 77" in bookings.order(number)["error"]


class Meanwhile(Partner):
    """A service that takes its time to book a crew: `happens` while it does."""

    happens: Callable[[], None]

    def create_order(self, document: dict[str, Any]) -> dict[str, Any]:
        self.happens()
        return super().create_order(document)


@pytest.fixture
def meanwhile(bookings: Bookings) -> Iterator[Meanwhile]:
    client = Meanwhile(bookings.remote.url, auth=Login(bookings.remote.url, "sandbox", "sandbox-password"))
    own = bookings.client
    yield client
    bookings.talk_to(own)
    client.close()


def test_no_booking_is_bound_while_one_is_being_made(bookings: Bookings, meanwhile: Meanwhile):
    number = bookings.stand_before("partner.book")
    bookings.others_book()
    said: list[str] = []

    def bind() -> None:
        with pytest.raises(Refused) as refused:
            bookings.doing(number, {"booking": 0}).run()
        said.append(refused.value.reason)

    meanwhile.happens = bind
    bookings.talk_to(meanwhile)
    bookings.go()
    assert said == ["the order is running: look again in a moment"]
    assert bookings.facts(number)["booking_id"] == 1


def test_a_booking_is_bound_in_a_ledger_that_comes_from_a_backup(bookings: Bookings):
    """No worker is alive that could be at work on the order."""
    number = bookings.stand_before("partner.book")
    bookings.others_book()
    row = bookings.order(number)
    assert records.claim(bookings.ledger, row["id"], row["position"], row["step"], "dead") is not None
    with pytest.raises(Refused, match="is running"):
        bookings.doing(number, {"booking": 0}).run()
    with bookings.ledger.statement() as connection:
        connection.execute(update(workers).values(seen_at=later(literal(-60.0))))
    assert "is this order's" in bookings.doing(number, {"booking": 0}).run()


def test_a_booking_that_is_bound_while_another_is_made_is_in_doubt(bookings: Bookings, meanwhile: Meanwhile):
    """The command looked before the create began, and bound after it."""
    number = bookings.stand_before("partner.book")
    bookings.others_book()

    def bind() -> None:
        intents.bind(bookings.ledger, "partner", "default", str(number), "0")

    meanwhile.happens = bind
    bookings.talk_to(meanwhile)
    bookings.go()
    assert bookings.state(number) == "in_doubt"
    assert "call off booking 1" in bookings.order(number)["error"]
    other = bookings.add()
    bookings.go()
    assert bookings.facts(other)["booking_id"] == 2
    bookings.it_did_happen(number)
    bookings.go()
    assert bookings.facts(number)["booking_id"] == 0
    assert bookings.order(number)["step"] == "partner.track"
    assert len(bookings.crews()) == 3


def test_an_answer_that_cannot_be_read_is_an_unclear_one(bookings: Bookings):
    number = bookings.stand_before("partner.book")
    scrambled = Scrambled(bookings.remote.url, auth=Login(bookings.remote.url, "sandbox", "sandbox-password"))
    client = bookings.client
    bookings.talk_to(scrambled)
    bookings.go()
    assert ("partner.book", "retry") in bookings.attempts(number)
    bookings.talk_to(client)
    scrambled.close()
    bookings.go_on(1)
    bookings.look()
    assert bookings.facts(number)["booking_id"] == 0
    assert len(bookings.crews()) == 1


class Scrambled(Partner):
    """A service whose answer to a create is not as the contract says."""

    def create_order(self, document: dict[str, Any]) -> dict[str, Any]:
        return {**super().create_order(document), "_id": "zero"}


def test_a_claim_that_is_lost_sends_nothing(bookings: Bookings):
    """Another worker has the order by now: what was about to be sent was never committed."""
    number = bookings.stand_before("partner.book")
    row = bookings.order(number)
    claim = records.claim(bookings.ledger, row["id"], row["position"], "partner.book", "late")
    assert claim is not None
    records.let_go(bookings.ledger, claim.id, claim.fence)
    with pytest.raises(Fenced):
        STEPS["partner.book"](Job(bookings.ledger, claim), bookings.fleet.partner_of(claim))
    assert bookings.crews() == []


def test_a_list_that_cannot_be_read_holds_nobody_up(bookings: Bookings):
    """What was there before is not known: nothing is sent, and the next order may go."""
    number = bookings.stand_before("partner.book")
    bookings.fail("500_before", "/order/list", times=1)
    bookings.try_in(number)
    assert bookings.facts(number).get("intent") is None
    other = bookings.add()
    bookings.go()
    assert bookings.facts(other)["booking_id"] == 0
    assert len(bookings.crews()) == 1


# -- what stops a booking ---------------------------------------------------------------------------------------------


def test_a_slot_that_is_lost_between_read_and_create_gives_way_to_the_next(bookings_with: Callable[..., Bookings]):
    bookings = bookings_with({"lose_slots": 1})
    wanted = bookings.free(3)
    number = bookings.add(datetime=wanted)
    bookings.go()
    (crew,) = bookings.crews()
    assert crew["order"]["datetime"] == [wanted[1]]
    assert bookings.facts(number)["slot"] == f"{wanted[1]['date']} 0712"
    (flag,) = bookings.facts(number)["flags"]
    assert flag == f"{wanted[0]['date']} 0712 was taken: booked for {wanted[1]['date']} 0712"


def test_when_all_slots_are_lost_the_customer_must_choose_anew(bookings_with: Callable[..., Bookings]):
    bookings = bookings_with({"lose_slots": 2})
    number = bookings.add(datetime=bookings.free(2))
    bookings.go()
    assert bookings.state(number) == "parked"
    assert "none of the slots is free any more" in bookings.order(number)["error"]
    assert bookings.facts(number)["lost"] == []
    assert bookings.crews() == []


class Hopeful(Partner):
    """A service that calls every slot free and then refuses it."""

    def slots(self, store_id: str) -> dict[str, Any]:
        return {day: dict.fromkeys(slots, True) for day, slots in super().slots(store_id).items()}


def test_a_slot_that_was_refused_is_not_asked_for_again(bookings_with: Callable[..., Bookings]):
    bookings = bookings_with({"slot_capacity": 0})
    hopeful = Hopeful(bookings.remote.url, auth=Login(bookings.remote.url, "sandbox", "sandbox-password"))
    client = bookings.client
    bookings.talk_to(hopeful)
    number = bookings.add(datetime=bookings.free(2))
    bookings.go()
    hopeful.close()
    bookings.talk_to(client)
    assert bookings.state(number) == "parked"
    assert "none of the slots is free any more" in bookings.order(number)["error"]
    assert bookings.attempts(number).count(("partner.book", "partly")) == 2


def test_trap_10_a_slot_that_is_not_free_is_not_asked_for(bookings_with: Callable[..., Bookings]):
    bookings = bookings_with()
    wanted = bookings.free(2)
    bookings.service.options.slot_calendar = {f"st-1/{wanted[0]['date']}/0712": 0}
    bookings.add(datetime=wanted)
    bookings.go()
    assert bookings.crews()[0]["order"]["datetime"] == [wanted[1]]


def test_the_slot_that_the_erp_was_told_is_the_dearest(bookings_with: Callable[..., Bookings]):
    days = bookings_with().free(2)
    bookings = bookings_with(PARTNER_SLOTS_CLOSED=days[0]["date"])
    bookings.add(datetime=days)
    bookings.go()
    assert bookings.crews()[0]["order"]["datetime"] == [days[1]]


def test_an_order_that_did_not_come_in_at_our_door(bookings: Bookings):
    arrival = Arrival("default", "77", "row:77", "row", "{}", (Planned("partner.book"),))
    intake.take_in(bookings.ledger, "partner", [arrival])
    bookings.go()
    assert "nobody knows what is to be booked" in bookings.order(77)["error"]


def test_without_stock_all_wishes_go_and_no_slot_is_taken(bookings: Bookings):
    wanted = bookings.free(2)
    number = bookings.add(datetime=wanted, details={"instock": False})
    bookings.go()
    (crew,) = bookings.crews()
    assert crew["order"]["datetime"] == wanted
    assert crew["slot"] is None
    assert bookings.facts(number)["substatus"] == "not_in_stock"


def test_what_is_assembled_at_the_store_has_no_address(bookings: Bookings):
    number = bookings.add(address=None, details={"items": [{"id": 501, "count": 1, "assembly": True}]})
    bookings.go()
    assert "address" not in bookings.crews()[0]["order"]
    assert bookings.facts(number)["booking_id"] == 0


OURS = {"PARTNER_ITEMS": "9=Wardrobe,501=Something else", "PARTNER_STORES": "north=Store North"}


def test_trap_12_an_item_that_nobody_mapped_is_not_guessed_by_its_name(bookings_with: Callable[..., Bookings]):
    bookings = bookings_with(**OURS, PARTNER_STORE_MAP="north=st-1")
    details = {"store_id": "north", "items": [{"id": 9, "count": 1, "delivery": True}]}
    number = bookings.add(datetime={"date": bookings.days()[1], "timeslot": "0712"}, details=details)
    bookings.go()
    assert bookings.state(number) == "parked"
    assert "no item 9: say in PARTNER_ITEM_MAP" in bookings.order(number)["error"]
    assert bookings.crews() == []


def test_trap_12_items_and_stores_go_by_the_settings(bookings_with: Callable[..., Bookings]):
    bookings = bookings_with(**OURS, PARTNER_ITEM_MAP="9=501,501=502", PARTNER_STORE_MAP="north=st-2")
    items = [{"id": 9, "count": 1, "delivery": True}, {"id": 501, "count": 1, "delivery": True}]
    slot = {"date": bookings.days()[1], "timeslot": "0712"}
    bookings.add(datetime=slot, details={"store_id": "north", "items": items})
    bookings.go()
    details = bookings.crews()[0]["order"]["partner_details"]
    assert [item["id"] for item in details["items"]] == [501, 502]
    assert details["store_id"] == "st-2"


def test_a_store_that_the_service_does_not_know_stops_the_order_with_its_words(bookings_with: Callable[..., Bookings]):
    bookings = bookings_with(PARTNER_STORES="north=Store North", PARTNER_ITEM_MAP="501=501,502=502")
    slot = {"date": bookings.days()[1], "timeslot": "0712"}
    number = bookings.add(datetime=slot, details={"store_id": "north", "instock": False})
    bookings.go()
    assert bookings.state(number) == "parked"
    assert bookings.order(number)["error"] == "POST /order/create: 422 partner_details.store_id notFound"
    assert bookings.facts(number)["intent"] is None
    other = bookings.add(datetime=slot, details={"store_id": "north"})
    bookings.go()
    assert "422 store_id notFound" in bookings.order(other)["error"]


@pytest.mark.parametrize("shape", ["list", "null", "object"])
def test_every_shape_of_a_422_is_read(bookings_with: Callable[..., Bookings], shape: str):
    bookings = bookings_with({"error_data": shape, "errors_as_200": shape == "list", "lose_slots": 1})
    number = bookings.add(datetime=bookings.free(2))
    bookings.go()
    if shape == "null":
        assert bookings.order(number)["error"] == "POST /order/create: 422 Validation failed"
    else:
        assert bookings.facts(number)["booking_id"] == 0
    assert len(bookings.crews()) == (shape != "null")


class Finicky(Partner):
    """A service that refuses the slot, and the telephone number, too."""

    def create_order(self, document: dict[str, Any]) -> dict[str, Any]:
        customer = {**document["customer"], "phone_number": "none"}
        pair = {"date": "2020-01-01", "timeslot": "0712"}
        return super().create_order({**document, "customer": customer, "datetime": [pair]})


def test_a_slot_is_not_all_that_is_refused(bookings: Bookings):
    finicky = Finicky(bookings.remote.url, auth=Login(bookings.remote.url, "sandbox", "sandbox-password"))
    client = bookings.client
    number = bookings.stand_before("partner.book", datetime=bookings.free(2))
    bookings.talk_to(finicky)
    bookings.go()
    bookings.talk_to(client)
    finicky.close()
    assert bookings.state(number) == "parked"
    assert "customer.phone_number stringPattern" in bookings.order(number)["error"]
    assert "datetime[0].date dateRange" in bookings.order(number)["error"]


def test_a_token_that_dies_in_the_middle_is_renewed_once(bookings_with: Callable[..., Bookings]):
    bookings = bookings_with({"unauthorized": {"create": 1, "upload": 1}, "token_calls": 2})
    number = bookings.add()
    bookings.go()
    assert bookings.attempts(number) == CHAIN
    assert len(bookings.crews()) == 1


def test_refused_credentials_stop_the_account_and_lose_nothing(bookings_with: Callable[..., Bookings]):
    bookings = bookings_with(PARTNER_PASSWORD="not-it")
    number = bookings.add()
    bookings.go()
    assert bookings.attempts(number)[-1] == ("partner.upload", "unavailable")
    assert "401" in bookings.order(number)["error"]
    assert "not-it" not in bookings.order(number)["error"]
    with pytest.raises(Misconfigured, match="401"):
        SYSTEM.probe(bookings.fleet.accounts["partner", "default"])  # type: ignore[misc]  # this system has a probe


# -- tracking ---------------------------------------------------------------------------------------------------------


def test_trap_02_payment_trouble_reaches_a_person_and_heals(bookings: Bookings):
    number = bookings.add()
    bookings.go()
    bookings.remote.edit(0, _substatus="payment_error")
    bookings.poll()
    bookings.go()
    assert bookings.state(number) == "parked"
    assert bookings.order(number)["error"] == ("booking 0 is completed, payment_error: the customer's payment failed")
    assert bookings.doors_row(number)["_substatus"] == "payment_error"
    assert number in [int(row["external_id"]) for row in queries.stopped(bookings.ledger, 10)]
    bookings.go_on(1)
    assert bookings.state(number) == "parked"
    bookings.remote.edit(0, _substatus="payment_captured")
    bookings.go_on(1)
    assert bookings.state(number) == "done"


def test_an_unknown_substatus_is_kept_shown_and_not_final(bookings: Bookings):
    number = bookings.add()
    bookings.go()
    bookings.remote.edit(0, _substatus="crew_on_strike")
    bookings.poll()
    bookings.go()
    bookings.remote.edit(0, _status="finished")
    bookings.poll()
    bookings.go()
    assert bookings.state(number) == "waiting"
    assert bookings.doors_row(number)["_substatus"] == "crew_on_strike"
    assert bookings.facts(number)["flags"] == [
        "the booking's substatus 'crew_on_strike' is not a known one",
        "the booking's status 'finished' is not a known one",
    ]


def test_trouble_of_an_unknown_kind_is_trouble(bookings: Bookings):
    number = bookings.add()
    bookings.go()
    bookings.remote.edit(0, _substatus="tax_error", _status="completed")
    bookings.poll()
    bookings.go()
    assert bookings.state(number) == "parked"
    assert "somebody must act" in bookings.order(number)["error"]


def test_a_step_back_is_recorded_and_flagged_and_one_that_comes_twice_is_seen_twice(bookings: Bookings):
    number = bookings.add()
    bookings.go()
    for substatus in ("in_work", "open", "in_work", "open"):
        bookings.remote.edit(0, _substatus=substatus)
        bookings.poll()
        bookings.go()
        assert bookings.facts(number)["status"] == substatus
    assert bookings.facts(number)["flags"] == ["the booking went back from in_work to open"]
    assert bookings.facts(number)["moves"] == 4


def test_done_in_spite_of_trouble_is_flagged(bookings: Bookings):
    number = bookings.add()
    bookings.go()
    bookings.remote.edit(0, _substatus="fee_error", _status="done")
    bookings.poll()
    bookings.go()
    assert bookings.state(number) == "done"
    assert bookings.facts(number)["flags"] == ["the booking is done, though fee_error"]


def test_where_bookings_cannot_be_read_one_by_one_the_list_tells(bookings_with: Callable[..., Bookings]):
    bookings = bookings_with({"order_by_id": False})
    first, second = bookings.add(), bookings.add()
    bookings.go()
    bookings.go_on(2)
    assert {bookings.facts(one)["booking_id"] for one in (first, second)} == {0, 1}
    bookings.remote.edit(0, _substatus="fee_captured")
    bookings.poll()
    bookings.go()
    done = next(one for one in (first, second) if bookings.facts(one)["booking_id"] == 0)
    assert bookings.state(done) == "done"


def test_a_booking_that_the_service_has_forgotten(bookings: Bookings):
    number = bookings.stand_before("partner.book")
    intents.bind(bookings.ledger, "partner", "default", str(number), "5")
    bookings.go()
    assert bookings.state(number) == "parked"
    assert "does not know booking 5 any more" in bookings.order(number)["error"]
    assert bookings.crews() == []
    bookings.others_book()
    bookings.again(number)
    bookings.go()
    assert "does not know booking 5 any more" in bookings.order(number)["error"]


def test_a_read_that_is_refused_stops_the_order(bookings: Bookings):
    number = bookings.stand_before("partner.track")
    client = bookings.client
    bookings.talk_to(Partner(bookings.remote.url, auth=client._auth, paths={"order": "/item/list?order={id}"}))
    bookings.go()
    assert bookings.order(number)["error"] == "GET /item/list?order=0: 422 store_id required"
    bookings.client.close()
    bookings.talk_to(client)
    bookings.again(number)
    bookings.go()
    assert bookings.state(number) == "waiting"


def test_a_booking_is_read_again_even_if_no_poll_tells_of_it(bookings: Bookings):
    number = bookings.add()
    bookings.go()
    bookings.remote.edit(0, _substatus="payment_captured")
    bookings.go_on(1)
    assert bookings.state(number) == "done"


def test_a_poll_reads_the_list_once_for_all_and_no_further_than_needed(bookings: Bookings):
    for _ in range(60):
        bookings.service.all_bookings()
        bookings.others_book()
    numbers = [bookings.add() for _ in range(2)]
    bookings.go()
    bookings.go_on(2)
    assert all(bookings.facts(number)["booking_id"] >= 60 for number in numbers)
    before = bookings.requests("GET")
    bookings.poll()
    assert bookings.requests("GET") == before + 2


class Busy(Partner):
    """An account whose list has no end: others book all the time."""

    read = 0

    def orders(self) -> Iterator[list[dict[str, Any]]]:
        for first in range(10**6, 0, -50):
            self.read += 1
            yield [{"_id": first - place, "_status": "open"} for place in range(50)]


def test_an_old_booking_does_not_have_each_poll_read_all_that_are_newer(bookings: Bookings):
    number = bookings.add()
    bookings.go()
    busy, client = Busy(bookings.remote.url, auth=StaticToken("token", "x")), bookings.client
    bookings.talk_to(busy)
    bookings.poll()
    bookings.talk_to(client)
    assert busy.read == 10
    assert bookings.column(number, "wake_at") is not None, "it is read by itself from time to time"


# -- cancelling -------------------------------------------------------------------------------------------------------


def test_before_a_booking_there_is_nothing_to_call_off(bookings: Bookings):
    number = bookings.stand_before("partner.book")
    bookings.cancel(number, hold=["partner.cancel"])
    bookings.resume(number)
    assert bookings.foreseen(number).steps[0][1].text == "no crew is booked"
    bookings.go()
    assert bookings.state(number) == "cancelled"
    assert bookings.attempts(number)[-1] == ("partner.cancel", "skipped")
    assert bookings.crews() == []


def test_a_booking_is_called_off_by_a_person(bookings: Bookings):
    number = bookings.add()
    bookings.go()
    bookings.tell(number, "cancelled")
    bookings.go()
    assert bookings.state(number) == "parked"
    assert "booking 0 stands" in bookings.order(number)["error"]
    assert bookings.foreseen(number).must_acknowledge
    bookings.again(number)
    bookings.go()
    assert bookings.state(number) == "cancelled"
    assert bookings.doors_row(number)["_status"] == "open"


@pytest.mark.parametrize("made", [True, False])
def test_cancelled_while_it_is_not_known_if_a_crew_is_booked(bookings: Bookings, made: bool):
    number = bookings.add()
    bookings.fail("500_after" if made else "500_before", "/order/create", times=1)
    bookings.go()
    bookings.cancel(number)
    assert bookings.foreseen(number).steps[-1][1].text == "looks if a crew was booked"
    for _ in range(4):
        bookings.look()
    assert bookings.state(number) == ("parked" if made else "cancelled")
    assert ("booking 0 stands" in (bookings.order(number)["error"] or "")) is made
    assert len(bookings.crews()) == made
    # The turn is free again.
    other = bookings.add()
    bookings.go()
    assert bookings.facts(other)["booking_id"] == made


def test_cancelled_while_in_doubt_a_person_rings_the_partner_up(bookings: Bookings):
    """It is called off, whichever it is: nobody needs to say which, and none is booked."""
    number = in_doubt(bookings)
    bookings.cancel(number)
    assert bookings.state(number) == "parked"
    said = bookings.order(number)["error"]
    assert "what it may be: 1, 0." in said
    assert "ring the partner up" in said
    assert "--acknowledge" in said
    assert "--done" not in said
    with pytest.raises(operators.NotPossible, match="not in doubt"):
        bookings.it_did_happen(number)
    bookings.again(number)
    bookings.go()
    assert bookings.state(number) == "cancelled"
    assert bookings.attempts(number)[-1] == ("partner.cancel", "done")
    assert bookings.facts(number)["intent"] is None
    assert len(bookings.crews()) == 2


def test_a_booking_found_only_now_is_not_what_a_person_has_called_off(bookings: Bookings):
    number = in_doubt(bookings)
    bookings.cancel(number)
    assert intents.bind(bookings.ledger, "partner", "default", "77", "1") == "77"
    bookings.again(number)
    bookings.go()
    assert bookings.state(number) == "parked"
    assert "booking 0 stands" in bookings.order(number)["error"]
    bookings.again(number)
    bookings.go()
    assert bookings.state(number) == "cancelled"


def test_a_booking_that_is_bound_after_the_cancelling_stands(bookings: Bookings):
    number = in_doubt(bookings)
    bookings.cancel(number)
    bookings.doing(number, {"booking": 0}).run()
    bookings.again(number, acknowledged=True)
    bookings.go()
    assert bookings.state(number) == "cancelled"
    assert "booking 0 is called off" in str(queries.timeline(bookings.ledger, bookings.order(number)["id"]))


# -- the ERP ----------------------------------------------------------------------------------------------------------


def test_nothing_is_booked_before_the_erp_has_taken_the_order(bookings: Bookings):
    number = bookings.add()
    bookings.go(erp=False)
    assert (bookings.order(number)["step"], bookings.order(number)["awaits"]) == ("partner.upload", "numbered")
    bookings.tell(number, "refused", reason="unknown customer")
    bookings.go(erp=False)
    assert bookings.state(number) == "parked"
    assert bookings.remote.effects()["upload"] == 0
    assert bookings.crews() == []


def test_a_refusal_that_comes_after_the_booking_names_it(bookings: Bookings):
    number = bookings.add()
    bookings.go()
    bookings.tell(number, "refused", reason="over the limit")
    bookings.go()
    for _ in range(2):
        bookings.poll()
    row = bookings.order(number)
    assert (row["state"], row["step"]) == ("parked", "erp.order")
    assert row["error"] == (
        "the ERP refuses the order: over the limit. Booking 0 stands: if the order is not to be, ring the partner up "
        f"to call it off, then `orderfleet cancel {row['id']}`"
    )
    told = queries.timeline(bookings.ledger, row["id"])
    assert len([one for one in told if "Booking 0 stands" in str(one)]) == 1
    bookings.go_on(1)
    assert bookings.state(number) == "parked"


# -- settings, and what else there is ---------------------------------------------------------------------------------


def test_what_is_kept_for_a_while_only_is_forgotten_by_the_poll(bookings_with: Callable[..., Bookings]):
    bookings = bookings_with(PARTNER_URL="")
    account = bookings.fleet.accounts["partner", "default"]
    assert account.client is None
    assert SYSTEM.probe is not None
    assert "nothing is booked" in SYSTEM.probe(account)
    number = bookings.add()
    bookings.image()
    with bookings.ledger.statement() as connection:
        connection.execute(update(inbound_images).values(created_at=later(literal(-8 * 86400.0))))
    bookings.poll()
    bookings.go()
    with bookings.ledger.reading() as connection:
        left = connection.execute(select(inbound_images.c.number)).scalars().all()
    assert left == [number]
    assert bookings.attempts(number) == [("erp.order", "done")]
    assert bookings.state(number) == "done"


def test_an_order_that_only_came_in_is_seen_when_the_erp_refuses_it(bookings_with: Callable[..., Bookings]):
    bookings = bookings_with(PARTNER_URL="")
    refused, cancelled = bookings.add(), bookings.add()
    bookings.go()
    assert bookings.state(refused) == bookings.state(cancelled) == "done"
    bookings.tell(refused, "refused", reason="over the limit")
    bookings.tell(cancelled, "cancelled")
    bookings.go()
    assert [int(row["external_id"]) for row in queries.stopped(bookings.ledger, 10)] == [refused]
    assert bookings.order(refused)["error"] == "the ERP refuses the order: over the limit"
    told = bookings.doors_row(cancelled)
    assert (told["_status"], told["_substatus"]) == ("open", "cancelled")


def test_an_account_that_is_gone_keeps_its_orders(bookings: Bookings):
    number = bookings.stand_before("partner.book")
    client = bookings.client
    bookings.talk_to(None)
    bookings.go()
    assert "PARTNER_URL is not set any more" in bookings.order(number)["error"]
    bookings.talk_to(client)
    bookings.go_on(1)
    assert bookings.facts(number)["booking_id"] == 0


def test_every_step_is_foreseen(bookings: Bookings):
    number = bookings.stand_before("partner.upload", images=2)
    texts = [one.text for _, one in bookings.foreseen(number).steps]
    assert texts[0] == "uploads 2 of 2 images"
    assert texts[1].startswith("books a crew")
    bookings.fail("500_after", "/order/create", times=1)
    bookings.go()
    (step, seen), *_ = bookings.foreseen(number).steps
    assert (step, seen.effect) == ("partner.book", Effect.IRREVERSIBLE)
    assert "may have been made" in seen.text
    bookings.go_on(1)
    bookings.look()
    assert bookings.foreseen(number).steps[0][1].text == "reads the booking again: open"


def test_the_probe_logs_in_and_reads(bookings: Bookings):
    assert SYSTEM.probe is not None
    assert SYSTEM.probe(bookings.fleet.accounts["partner", "default"]) == "0 bookings on the first page"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"PARTNER_LOGIN": ""}, "PARTNER_LOGIN: set it"),
        ({"PARTNER_PASSWORD": ""}, "PARTNER_PASSWORD: set it"),
        ({"PARTNER_ITEM_MAP": "501"}, "PARTNER_ITEM_MAP: its part 1"),
        ({"PARTNER_ITEM_MAP": "501=wardrobe"}, "PARTNER_ITEM_MAP: an id is not a whole number"),
        ({"PARTNER_STORE_MAP": "st-1"}, "PARTNER_STORE_MAP: its part 1"),
        ({"PARTNER_PATHS": "book=/order"}, "PARTNER_PATHS: 'book' is none of"),
        ({"PARTNER_PATHS": "create=order"}, "PARTNER_PATHS: 'order' is not a path"),
        ({"PARTNER_PATHS": "order=/order"}, "PARTNER_PATHS: '/order' is not a path like /order/{id}"),
        ({"PARTNER_LOOK_SECONDS": "soon"}, "PARTNER_LOOK_SECONDS"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, wrong: dict[str, str], said: str):
    settings = fleet_settings("http://127.0.0.1:1") | {"ORDERFLEET_HOME": str(tmp_path)} | wrong
    with pytest.raises(WrongSettings) as raised:
        read_settings(settings)
    (problem,) = raised.value.problems
    assert problem.startswith(said)


def test_paths_may_be_set(bookings_with: Callable[..., Bookings]):
    paths = {"create": "/v2/bookings", "order": "/v2/bookings/<ident>"}
    table = Options().paths | paths
    bookings = bookings_with({"paths": table}, PARTNER_PATHS="create=/v2/bookings,order=/v2/bookings/{id}")
    number = bookings.add()
    bookings.go()
    assert bookings.attempts(number) == CHAIN
