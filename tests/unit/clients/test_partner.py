"""The partner service's client against its imitation, over real HTTP, and against answers that no imitation gives. The
numbers of the traps, and the sections, are those of contracts/partner.md."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.parser import BytesParser
from typing import Any

import pytest
from flask import request

from clients.base import StaticToken
from clients.partner import PATHS, Invalid, Login, Pace, Partner
from orders.errors import Misconfigured, Refused, StepError, TryLater, Unavailable, Unclear
from sandbox import base
from sandbox.base import FaultRule
from sandbox.partner import Options, create_app, service_of
from sandbox.partner_shop import receipt
from tests.unit.clients.conftest import Answer, Remote, answer

GOOD = {"status": "ok", "statusCode": 200}
BOOKING = {"_id": 0, "_status": "open", "_substatus": "open"}


class Service:
    """A running imitation, and clients of it."""

    def __init__(self, **options: Any) -> None:
        self.options = Options(**{"step_seconds": None, "rate_per_second": None, **options})
        self.app = create_app(self.options)
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.app.before_request_funcs.setdefault(None, []).append(self._note)
        self.url = ""
        self.clients: list[Partner] = []

    def _note(self) -> None:
        self.asked.append((request.method, request.full_path.rstrip("?"), dict(request.headers)))

    def client(self, password: str = "sandbox-password", **options: Any) -> Partner:
        login = Login(self.url, "sandbox", password, timeout=5.0)
        self.clients.append(Partner(self.url, **{"auth": login, "timeout": 5.0, **options}))
        return self.clients[-1]

    def paths(self) -> list[str]:
        return [path.partition("?")[0] for _, path, _ in self.asked]

    def fail(self, kind: str, path: str, **rule: Any) -> None:
        base.control_of(self.app).faults.set([FaultRule(kinds=(kind,), path_contains=path, **rule)])


@pytest.fixture
def service_with() -> Iterator[Callable[..., Service]]:
    opened: list[tuple[Service, base.Server]] = []

    def start(**options: Any) -> Service:
        service = Service(**options)
        server = base.serve(service.app)
        service.url = server.url
        opened.append((service, server))
        return service

    yield start
    for service, server in opened:
        for client in service.clients:
            client.close()
        server.stop()


@pytest.fixture
def service(service_with: Callable[..., Service]) -> Service:
    return service_with()


@pytest.fixture
def ask(remote: Remote) -> Iterator[Callable[..., Partner]]:
    """A client of a remote that answers what the test says: `ask(answer, ...)`."""
    made: list[Partner] = []

    def make(*answers: Answer, **options: Any) -> Partner:
        remote.answers = list(answers)
        made.append(Partner(remote.url, **{"auth": StaticToken("token", "s3cret-token"), "timeout": 5.0, **options}))
        return made[-1]

    yield make
    for client in made:
        client.close()


def told(data: Any, **envelope: Any) -> Answer:
    return answer(200, json.dumps({**GOOD, "data": data, **envelope}))


def failed(status: int, http: int | None = None, **envelope: Any) -> Answer:
    document = {"name": "SomeError", "message": "Something", "code": status, "type": "SOME", "statusCode": status}
    return answer(http or status, json.dumps({**document, "status": "error", "data": None, **envelope}))


def body(image: str, **parts: Any) -> dict[str, Any]:
    day = (datetime.now(UTC).date() + timedelta(days=2)).isoformat()
    return {
        "customer": {"phone_number": "+35799000001", "first_name": "Ann", "last_name": "Test"},
        "payment_method": "cash",
        "datetime": [{"date": day, "timeslot": "0712"}],
        "image_uuids": [image],
        "partner_details": {
            "store_id": "st-1",
            "instock": True,
            "delivery_type": "to_pavement",
            "items": [{"id": 501, "count": 1, "delivery": False, "assembly": True}],
        },
        **parts,
    }


# -- the whole way ----------------------------------------------------------------------------------------------------


def test_a_crew_is_booked_and_found_again(service: Service):
    client = service.client()
    (image,) = client.upload_image(receipt("x"), "image/png")
    assert len(image["id"]) == 24
    booking = client.create_order(body(image["id"]))
    assert booking["_id"] == 0
    assert client.order(0)["_id"] == 0
    assert [row["_id"] for row in next(client.orders())] == [0]
    assert client.slots("st-1")[body("x")["datetime"][0]["date"]]["0712"] is True
    assert {"id": 501, "name": "Wardrobe", "delivery": True, "assembly": True} in next(client.items("st-1"))


def test_trap_03_an_image_goes_as_one_file(remote: Remote, ask: Callable[..., Partner]):
    client = ask(told([{"id": "65c25a2bb95cb9c9f8561dbf", "url": "https://x", "mimetype": "image/webp"}]))
    client.upload_image(b"\x00\r\n--\xff", "image/jpeg")
    (seen,) = remote.seen
    message = BytesParser().parsebytes(b"Content-Type: " + seen.headers["Content-Type"].encode() + b"\n\n" + seen.body)
    parts: Any = message.get_payload()
    (part,) = parts
    assert part.get_filename() == "receipt.jpeg"
    assert part.get_content_type() == "image/jpeg"
    assert b"\r\n\r\n\x00\r\n--\xff\r\n--" in seen.body


# -- credentials ------------------------------------------------------------------------------------------------------


def test_trap_08_the_header_is_token_without_a_scheme(service: Service):
    next(service.client().orders())
    (_, login, first), (_, _, headers) = service.asked
    assert login == PATHS["authorize"]
    assert "Token" not in first
    assert headers["Token"]
    assert " " not in headers["Token"]
    assert "Authorization" not in headers


def test_one_login_serves_all_threads(service: Service):
    client = service.client()
    together = threading.Barrier(6)

    def read(_: int) -> int:
        together.wait(10)
        return len(next(client.orders()))

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(read, range(6))) == [0] * 6
    assert service.paths().count(PATHS["authorize"]) == 1


@pytest.mark.parametrize("hidden", [False, True], ids=["http", "envelope"])
def test_a_refused_token_is_renewed_once_and_the_call_repeated_once(service_with: Callable[..., Service], hidden: bool):
    service = service_with(errors_as_200=hidden, unauthorized={"list": 1})
    assert next(service.client().orders()) == []
    assert service.paths() == [PATHS["authorize"], PATHS["list"]] * 2


def test_a_token_that_is_refused_twice_is_a_matter_of_rights(service_with: Callable[..., Service]):
    service = service_with(unauthorized={"list": 9})
    with pytest.raises(Misconfigured) as raised:
        next(service.client().orders())
    assert raised.value.status == 401
    assert service.paths().count(PATHS["list"]) == 2


def test_wrong_credentials_are_named_without_the_password(service: Service):
    with pytest.raises(Misconfigured) as raised:
        next(service.client("wr0ng").orders())
    assert raised.value.status == 401
    assert "POST /auth/authorize: 401" in raised.value.reason
    assert "wr0ng" not in raised.value.reason


@pytest.mark.parametrize(
    ("sent", "after"),
    [
        (failed(500), None),
        (failed(503, http=200), None),
        (answer(429, "{}", Retry_After="7"), 7.0),
        (answer(200, "<html>"), None),
        (told({"token": ""}), None),
        (told({"token": 7}), None),
        (told(None), None),
    ],
    ids=["500", "503 as 200", "429", "html", "empty", "number", "null"],
)
def test_a_login_that_fails_says_nothing_of_the_call_it_was_for(remote: Remote, sent: Answer, after: float | None):
    """A status would read as an answer to that."""
    remote.answers = [sent]
    with pytest.raises(Unavailable) as raised:
        Login(remote.url, "sandbox", "p4ssword").fetch()
    assert not isinstance(raised.value, Misconfigured)
    assert raised.value.status is None
    assert raised.value.after == after


def test_a_login_that_nobody_answers(remote: Remote):
    with pytest.raises(Unavailable) as raised:
        Login("http://127.0.0.1:1", "sandbox", "p4ssword").fetch()
    assert "refused" in raised.value.reason


def test_a_password_that_is_echoed_is_blotted_out(remote: Remote):
    remote.answers = [failed(400, message="no such password: p4ssword")]
    with pytest.raises(Misconfigured) as raised:
        Login(remote.url, "sandbox", "p4ssword").fetch()
    assert "no such password: ***" in raised.value.reason
    assert "p4ssword" not in raised.value.reason


# -- what counts as good ----------------------------------------------------------------------------------------------


def test_trap_07_a_creation_is_200_and_ok_in_the_envelope_is_not_the_order(ask: Callable[..., Partner]):
    assert ask(told({**BOOKING, "_status": "in_work"})).create_order({}) == {**BOOKING, "_status": "in_work"}


@pytest.mark.parametrize(
    "sent",
    [
        answer(200, json.dumps(BOOKING)),
        told(BOOKING, status="error"),
        told(BOOKING, status="error", statusCode=200),
        told(BOOKING, statusCode=201),
        told(BOOKING, statusCode="200"),
        told([BOOKING]),
        told(None),
        answer(200, "[]"),
        answer(200, "<html>maintenance</html>"),
        answer(200, ""),
        answer(204, ""),
        failed(500),
        failed(500, http=200),
        failed(409),
        answer(502, "<html><h1>Bad gateway</h1></html>"),
        answer(408, ""),
    ],
)
def test_whatever_is_neither_good_nor_a_refusal_is_unclear(ask: Callable[..., Partner], sent: Answer):
    with pytest.raises(Unclear):
        ask(sent).create_order({})
    with pytest.raises(TryLater) as raised:
        ask(sent).order(0)
    assert not isinstance(raised.value, Unclear)


@pytest.mark.parametrize("kind", ["500_after", "lost_answer", "lost_request", "html_502"])
def test_a_create_without_an_answer_is_unclear(service: Service, kind: str):
    client = service.client()
    (image,) = client.upload_image(receipt("x"), "image/png")
    service.fail(kind, PATHS["create"])
    with pytest.raises(Unclear):
        client.create_order(body(image["id"]))
    assert len(service_of(service.app).all_bookings()) == (kind in ("500_after", "lost_answer"))


@pytest.mark.parametrize(("status", "hidden"), [(429, False), (503, False), (429, True)])
def test_too_much_and_away_have_a_status(ask: Callable[..., Partner], status: int, hidden: bool):
    """By which the step knows that the call was sent."""
    body = json.dumps({"status": "error", "statusCode": status, "message": "Slow down"})
    with pytest.raises(Unavailable) as raised:
        ask(answer(200 if hidden else status, body, Retry_After="3")).create_order({})
    assert (raised.value.status, raised.value.after) == (status, 3.0)


@pytest.mark.parametrize("status", [400, 404, 405, 413, 415])
def test_a_refusal_has_the_services_words(ask: Callable[..., Partner], status: int):
    with pytest.raises(Refused) as raised:
        ask(failed(status)).create_order({})
    assert raised.value.reason == f"POST /order/create: {status} Something"
    assert raised.value.status == status
    assert not isinstance(raised.value, Invalid)


# -- 422 --------------------------------------------------------------------------------------------------------------

PHONE = {"type": "stringPattern", "field": "customer.phone_number", "message": "'+35799000001' is bad", "actual": "+3"}
SLOT = {"type": "slotUnavailable", "field": "datetime[0].timeslot", "message": "taken"}


@pytest.mark.parametrize(
    ("data", "problems", "said"),
    [
        (
            [PHONE, SLOT],
            [("customer.phone_number", "stringPattern"), ("datetime[0].timeslot", "slotUnavailable")],
            "customer.phone_number stringPattern, datetime[0].timeslot slotUnavailable",
        ),
        ({"datetime[0].timeslot": "slotUnavailable"}, [("datetime[0].timeslot", "slotUnavailable")], None),
        ({"zip": ["required", "string"]}, [("zip", "required"), ("zip", "string")], "zip required, zip string"),
        ([{"field": "zip"}], [("zip", "")], "zip"),
        (None, [], "Something"),
        ([], [], "Something"),
        ({}, [], "Something"),
        (["zip"], [], "Something"),
        ([{"path": "zip", "reason": "x"}], [], "Something"),
        ("zip", [], "Something"),
        ([{"type": {}, "field": ["zip"]}], [], "Something"),
        ({"address.zip": {"deeper": "x"}}, [("address.zip", "")], "address.zip"),
    ],
)
def test_every_shape_of_a_422_is_read(
    ask: Callable[..., Partner], data: Any, problems: list[tuple[str, str]], said: str | None
):
    with pytest.raises(Invalid) as raised:
        ask(failed(422, data=data)).create_order({})
    assert list(raised.value.problems) == problems
    if said is not None:
        assert raised.value.reason == f"POST /order/create: 422 {said}"


@pytest.mark.parametrize(
    "envelope",
    [
        {"message": "https://images.example.com/1.webp of +357 99 000001 is no receipt"},
        {"data": [{"field": "Ann Test, 1 Sample Street", "type": "x", "message": "Ann Test"}]},
        {"data": [{"field": "zip", "type": "https://images.example.com/1.webp"}]},
        {"data": {"https://images.example.com/1.webp": "notFound"}},
    ],
)
def test_trap_13_no_receipt_and_no_person_is_in_our_words(ask: Callable[..., Partner], envelope: dict[str, Any]):
    with pytest.raises(Invalid) as raised:
        ask(failed(422, **envelope)).create_order({})
    for secret in ("example.com", "99 000001", "Ann", "Street"):
        assert secret not in raised.value.reason


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 429, 500, 502, 503])
@pytest.mark.parametrize("hidden", [False, True])
def test_trap_13_whatever_the_status(ask: Callable[..., Partner], status: int, hidden: bool):
    words = "35799000001: cannot store https://images.example.com/receipt-ann.webp for +357 99 000001"
    body = json.dumps({"status": "error", "statusCode": status, "message": words})
    with pytest.raises(StepError) as raised:
        ask(answer(200 if hidden else status, body)).create_order({})
    assert raised.value.reason.startswith(f"POST /order/create: {status} ")
    assert raised.value.reason.endswith("…: cannot store … for …")
    assert str(raised.value) == raised.value.reason


def test_trap_13_what_is_no_envelope(ask: Callable[..., Partner]):
    page = "<html><h1>No room for https://images.example.com/receipt-ann.webp of 35799000001</h1></html>"
    for status in (200, 404, 500):
        with pytest.raises(StepError) as raised:
            ask(answer(status, page)).create_order({})
        assert "No room for … of …" in raised.value.reason


def test_a_422_that_is_no_envelope(ask: Callable[..., Partner]):
    with pytest.raises(Invalid) as raised:
        ask(answer(422, "<html><title>Unprocessable</title></html>")).create_order({})
    assert raised.value.reason == "POST /order/create: 422 Unprocessable"


# -- lists ------------------------------------------------------------------------------------------------------------


def test_trap_09_the_limit_is_always_sent(service_with: Callable[..., Service]):
    service = service_with(limit_default=10, page_overlap=3)
    client = service.client()
    (image,) = client.upload_image(receipt("x"), "image/png")
    for _ in range(120):
        client.create_order(body(image["id"]))
    numbers = [row["_id"] for rows in client.orders() for row in rows]
    assert numbers == list(range(119, -1, -1)), "the newest first, and none twice"
    lists = [path for _, path, _ in service.asked if path.startswith(PATHS["list"])]
    assert all("limit=50" in path and "skip=" in path and "filter" not in path for path in lists)


def test_a_page_that_comes_again_and_again_is_no_list(ask: Callable[..., Partner]):
    """The server does not know `skip`."""
    pages = ask(told([{**BOOKING, "_id": number} for number in range(50)])).orders()
    assert len(next(pages)) == 50
    with pytest.raises(TryLater, match="one that was read"):
        next(pages)


def test_a_row_whose_number_is_none_stops_no_list(ask: Callable[..., Partner]):
    rows = [{**BOOKING, "_id": {"$oid": "1"}}, BOOKING]
    assert next(ask(told(rows)).orders()) == rows


@pytest.mark.parametrize("data", [[1], ["x", {}], {}])
def test_what_is_no_list_of_objects(ask: Callable[..., Partner], data: Any):
    with pytest.raises(TryLater):
        next(ask(told(data)).orders())


# -- pace and paths ---------------------------------------------------------------------------------------------------


def test_paths_sit_in_one_table(remote: Remote, ask: Callable[..., Partner]):
    client = ask(told(BOOKING), paths={"order": "/v2/order?id={id}", "create": "/v2/create"})
    client.create_order({})
    client.order(0)
    assert [seen.target for seen in remote.seen] == ["/v2/create", "/v2/order?id=0"]


def test_calls_that_would_wait_too_long_are_not_made():
    pace = Pace(per_second=0.1)
    pace()
    with pytest.raises(Unavailable) as raised:
        pace()
    assert raised.value.status is None
    assert raised.value.after is not None
    assert 5.0 < raised.value.after <= 10.0
