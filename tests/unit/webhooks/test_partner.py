"""The partner's door over HTTP: what is checked in which order, every envelope, one order for however many requests."""

import io
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import structlog
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.test import TestResponse

from ledger import queries
from ledger.connection import Ledger
from ledger.inbound import Door, request_of
from orders.outcomes import Planned
from webhooks.partner import blueprint
from webhooks.partner_access import Access, Meters, Shop, User, Visitor

PAYLOADS = Path(__file__).resolve().parents[2] / "payloads" / "partner"
ZONE = ZoneInfo("Asia/Nicosia")
NOON = datetime(2024, 2, 14, 12, tzinfo=ZONE)
TOKEN = {"token": "fixed-token"}
JPEG, PNG = b"\xff\xd8\xff\xe0 receipt", b"\x89PNG\r\n\x1a\n receipt"
WEBP = b"RIFF\x08\x00\n\x00WEBP receipt"
PLAN = (Planned("erp.order"),)

Json = dict[str, Any]


class DoorAt(Door):
    """A door whose clock stands still."""

    def __init__(self, ledger: Ledger, now: datetime = NOON) -> None:
        super().__init__(ledger, "partner")
        self.moment = now

    def now(self) -> datetime:
        return self.moment


SHOP = Shop(
    account="default",
    tokens={"fixed-token": "acme", "other-token": "bolt"},
    users=[User("ann", "secret", "acme"), User("bob", "sécret", "bolt")],
    stores={"st-1": "Store One", "st-2": "Store Two"},
    items={501: "Wardrobe", 502: "Bed", 503: "Bedside table"},
    zone=ZONE,
    plan=PLAN,
)


class Place:
    """A door with an application before it."""

    def __init__(self, ledger: Ledger, *, shops: tuple[Shop, ...] = (SHOP,), rate: float = 1e6) -> None:
        self.ledger = ledger
        self.door = DoorAt(ledger)
        self.rung: list[int] = []
        self.app = Flask("test", static_folder=None)
        meters = Meters(rate, clock=lambda: 0.0)
        self.app.register_blueprint(blueprint(shops, self.door, self.rung.extend, away=SQLAlchemyError, meters=meters))
        self.client: FlaskClient = self.app.test_client()

    def image(self, token: str = "fixed-token", content: bytes = PNG) -> str:
        answer = self.client.post(
            "/partner/image/upload", headers={"token": token}, data={"receipt": (io.BytesIO(content), "r.png")}
        )
        image_id: str = good(answer)[0]["id"]
        return image_id

    def document(self, **more: Any) -> Json:
        """A request with an image of its own."""
        document: Json = json.loads((PAYLOADS / "order.json").read_text())
        return document | {"image_uuids": [self.image()]} | more

    def create(self, document: Any, *, key: str | None = None, token: str = "fixed-token") -> TestResponse:
        headers = {"token": token} | ({} if key is None else {"Idempotency-Key": key})
        return self.app.test_client().post("/partner/order/create", json=document, headers=headers)

    def get(self, path: str, token: str = "fixed-token") -> TestResponse:
        return self.client.get(f"/partner/{path}", headers={"token": token})


@pytest.fixture
def place(migrated_sqlite: Path, tmp_path: Path) -> Iterator[Place]:
    shutil.copy(migrated_sqlite, tmp_path / "ledger.db")
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    yield Place(ledger)
    ledger.close()


@pytest.fixture
def anywhere(ledger_url: str) -> Iterator[Place]:
    """The same on each database."""
    ledger = Ledger(ledger_url)
    yield Place(ledger)
    ledger.close()


def good(answer: TestResponse) -> Any:
    """The data of an answer that is right."""
    assert answer.status_code == 200, answer.text
    assert answer.json is not None
    assert answer.json.keys() == {"status", "statusCode", "data"}
    assert (answer.json["status"], answer.json["statusCode"]) == ("ok", 200)
    return answer.json["data"]


def failed(answer: TestResponse, status: int, name: str, type_: str) -> Any:
    """The data of an answer that is wrong, whose envelope is as it should be."""
    assert answer.status_code == status, answer.text
    assert answer.json is not None
    assert answer.json.keys() == {"name", "message", "code", "type", "statusCode", "status", "data"}
    assert (answer.json["name"], answer.json["type"], answer.json["status"]) == (name, type_, "error")
    assert answer.json["code"] == answer.json["statusCode"] == status
    return answer.json["data"]


def problems(answer: TestResponse) -> list[tuple[str, str]]:
    """(field, type) of everything that a 422 tells."""
    data = failed(answer, 422, "ValidationError", "VALIDATION_ERROR")
    assert all(problem.keys() == {"type", "field", "message"} for problem in data)
    return [(problem["field"], problem["type"]) for problem in data]


def orders(place: Place) -> int:
    return len(queries.listing(place.ledger, queries.Filter(system="partner")))


# -- an order ---------------------------------------------------------------------------------------------------------


def test_an_order_is_in_the_ledger_when_it_is_answered(anywhere: Place):
    document = anywhere.document()
    data = good(anywhere.create(document))
    assert data.keys() == {"_id", "title", "_status", "_substatus", "partner", "partner_details", "created_at"}
    assert data["partner_details"] == {"instock": True, "store_id": "st-1", "store_title": "Store One"}
    assert (data["title"], data["partner"]) == ("Store One #0", "acme")
    assert (data["_status"], data["_substatus"]) == ("open", "open")
    assert datetime.strptime(data["created_at"], "%Y-%m-%dT%H:%M:%S.%fZ")  # noqa: DTZ007 - the Z is checked
    (row,) = queries.find_order(anywhere.ledger, "partner:default:0")
    assert (row["step"], row["reference"], row["facts"]) == ("erp.order", "Store One #0", {"partner": "acme"})
    kept = queries.document(anywhere.ledger, row["id"])
    assert kept is not None
    assert kept["customer"]["phone"] == "+35799000001"
    assert kept["requested_at"] == "2024-02-14T10:00:00+00:00"
    assert anywhere.rung == [row["id"]]


def test_the_body_is_kept_as_it_came(place: Place):
    document = place.document(campaign={"code": "spring"})
    raw = json.dumps(document, indent=3)
    answer = place.client.post(
        "/partner/order/create", data=raw, headers=TOKEN | {"Content-Type": "application/json; charset=utf-8"}
    )
    good(answer)
    assert request_of(place.ledger, place.rung[0]) == raw


def test_trap_01_the_first_order_is_0_and_can_be_read(place: Place):
    assert good(place.create(place.document()))["_id"] == 0
    assert good(place.get("order/0"))["_id"] == 0
    assert good(place.create(place.document()))["_id"] == 1
    assert [row["_id"] for row in good(place.get("order/list"))] == [1, 0]


def test_trap_03_an_image_must_be_there_and_be_named_by_its_id(place: Place):
    upload = {"receipt": (io.BytesIO(PNG), "r.png")}
    (image,) = good(place.client.post("/partner/image/upload", headers=TOKEN, data=upload))
    document = place.document()

    def named(value: Any) -> list[tuple[str, str]]:
        return problems(place.create(document | {"image_uuids": value}))

    assert named([image["url"]]) == [("image_uuids[0]", "notFound")]
    assert named([image]) == [("image_uuids[0]", "string")]
    assert named([[image["id"]]]) == [("image_uuids[0]", "string")]
    assert named(["0" * 24]) == [("image_uuids[0]", "notFound")]
    assert named([place.image("other-token")]) == [("image_uuids[0]", "notFound")]
    good(place.create(document | {"image_uuids": [image["id"]]}))


def test_trap_07_a_creation_is_a_200_and_the_two_statuses_differ(place: Place):
    answer = place.create(place.document())
    assert answer.status_code == 200
    assert answer.json is not None
    assert (answer.json["status"], answer.json["data"]["_status"]) == ("ok", "open")


def test_trap_12_unknown_items_and_stores_are_told_together(place: Place):
    document = place.document()
    document["partner_details"]["store_id"] = "st-9"
    document["partner_details"]["items"][1]["id"] = 9999
    assert problems(place.create(document)) == [
        ("partner_details.items[1].id", "notFound"),
        ("partner_details.store_id", "notFound"),
    ]


def test_without_stock_slots_do_not_matter(place: Place):
    place.door.moment = NOON.replace(hour=23)
    document = place.document(datetime={"date": "2024-02-14", "timeslot": "0712"})
    assert problems(place.create(document)) == [("datetime[0].timeslot", "slotUnavailable")]
    document["partner_details"]["instock"] = False
    assert good(place.create(document))["_substatus"] == "not_in_stock"


def test_the_first_free_wish_is_what_the_erp_is_asked_for(place: Place):
    place.door.moment = NOON.replace(hour=17)
    good(place.create(place.document()))
    kept = queries.document(place.ledger, place.rung[0])
    assert kept is not None
    assert kept["requested_at"] == "2024-02-15T05:00:00+00:00"


# -- the order of checks ----------------------------------------------------------------------------------------------


def test_checks_go_from_the_token_to_the_slot(place: Place):
    wrong = place.document(image_uuids=["nowhere"])
    wrong["customer"] = None
    late = date(2024, 2, 14)
    place.door.moment = NOON.replace(hour=23)
    assert place.create("{", token="unknown").status_code == 401
    assert problems(place.client.post("/partner/order/create", data=b"{", headers=TOKEN | JSON_TYPE)) == [
        ("body", "object")
    ]
    assert problems(place.create(wrong)) == [("customer", "required")]
    wrong["customer"] = {"phone_number": "+35799000001", "first_name": "Ann", "last_name": "Test"}
    assert problems(place.create(wrong)) == [("image_uuids[0]", "notFound")]
    first = place.document(datetime=[{"date": f"{late + timedelta(days=1)}", "timeslot": "0712"}])
    good(place.create(first))
    other = first | {"datetime": [{"date": f"{late}", "timeslot": "0712"}]}
    assert problems(place.create(other)) == [("image_uuids", "imageReused")]
    other["image_uuids"] = [place.image()]
    assert problems(place.create(other)) == [("datetime[0].timeslot", "slotUnavailable")]


JSON_TYPE = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"order"',
        b"null",
        b"\xff\xfe{}",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": ' + b"[" * 30000 + b"]" * 30000 + b"}",
    ],
    ids=lambda body: repr(body[:12]),
)
def test_a_body_that_is_no_json_object(place: Place, body: bytes):
    assert problems(place.client.post("/partner/order/create", data=body, headers=TOKEN | JSON_TYPE))[0][0] in (
        "body",
        "customer",
    )
    assert orders(place) == 0


def test_a_body_of_64_kib_and_more(place: Place):
    document = place.document()
    padding = 65536 - len(json.dumps(document | {"padding": ""}))
    body = json.dumps(document | {"padding": "x" * padding})
    assert len(body) == 65536
    larger = place.client.post("/partner/order/create", data=body + " ", headers=TOKEN | JSON_TYPE)
    assert failed(larger, 413, "PayloadTooLargeError", "PAYLOAD_TOO_LARGE") is None
    good(place.client.post("/partner/order/create", data=body, headers=TOKEN | JSON_TYPE))


@pytest.mark.parametrize("mimetype", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
@pytest.mark.parametrize("path", ["order/create", "auth/authorize"])
def test_a_body_of_another_type(place: Place, path: str, mimetype: str):
    answer = place.client.post(f"/partner/{path}", data=b"{}", headers=TOKEN | {"Content-Type": mimetype})
    assert failed(answer, 415, "UnsupportedMediaTypeError", "UNSUPPORTED_MEDIA_TYPE") is None


# -- the same again ---------------------------------------------------------------------------------------------------


def test_trap_11_a_blind_retry_gets_the_first_answer(place: Place):
    document = place.document()
    first = place.create(document)
    assert place.create(document).json == first.json
    renamed = document | {"customer": document["customer"] | {"last_name": "Tést", "phone_number": "+35799000001"}}
    assert place.create(renamed).json == first.json
    elsewhere = document | {"partner_details": document["partner_details"] | {"store_id": "st-2"}}
    assert problems(place.create(elsewhere)) == [("image_uuids", "imageReused")]
    assert problems(place.create(document | {"datetime": document["datetime"][:1]})) == [("image_uuids", "imageReused")]
    assert (orders(place), len(place.rung)) == (1, 1)


def test_a_key_gets_the_first_answer_again(place: Place):
    document = place.document()
    first = place.create(document, key="k-1")
    assert place.create(document, key="k-1").json == first.json
    assert place.create(dict(reversed(document.items())), key="k-1").json == first.json
    other = place.document()
    assert problems(place.create(other, key="k-1")) == [("Idempotency-Key", "keyReused")]
    assert good(place.create(other, key="k-2"))["_id"] == 1
    assert orders(place) == 2


@pytest.mark.parametrize(("key", "type_"), [("", "stringEmpty"), ("k" * 256, "stringMax")])
def test_a_key_that_cannot_be_one(place: Place, key: str, type_: str):
    assert problems(place.create(place.document(payment_method=1), key=key)) == [
        ("Idempotency-Key", type_),
        ("payment_method", "enumValue"),
    ]


def test_only_good_answers_are_repeated(place: Place):
    document = place.document()
    assert problems(place.create(document | {"payment_method": "card"}, key="k-1")) == [("payment_method", "enumValue")]
    assert good(place.create(document, key="k-1"))["_id"] == 0


@pytest.mark.parametrize("key", [None, "k-1"])
def test_what_was_accepted_stays_so_when_only_time_or_settings_have_moved_on(place: Place, key: str | None):
    document = place.document()
    first = place.create(document, key=key)
    for later in (timedelta(days=1, hours=6), timedelta(days=20)):  # the slots are over; the days are
        place.door.moment = NOON + later
        assert place.create(document, key=key).json == first.json
        assert place.create(document | {"x": 1}, key=key).status_code == 422
    place.door.moment = NOON
    emptied = Place(place.ledger, shops=(Shop("default", SHOP.tokens, [], {}, {}, ZONE, PLAN),))
    assert emptied.create(document, key=key).json == first.json


def test_a_repeated_request_whose_slot_is_gone_by_now(place: Place):
    document = place.document(datetime={"date": "2024-02-14", "timeslot": "1217"})
    first = place.create(document)
    place.door.moment = NOON.replace(hour=23)
    alike = document | {"customer": document["customer"] | {"first_name": "Anne"}}
    assert place.create(alike).json == first.json


def test_a_possible_double_is_accepted_and_flagged(place: Place):
    first = place.document()
    good(place.create(first))
    assert good(place.create(first | {"image_uuids": [place.image()]}))["_id"] == 1
    (row,) = queries.find_order(place.ledger, "partner:1")
    assert len(row["facts"]["flags"]) == 1


def test_trap_11_concurrent_doubles_get_one_answer(anywhere: Place):
    documents = [anywhere.document() for _ in range(3)]
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(anywhere.create, documents * 4))
    assert {answer.status_code for answer in found} == {200}
    for number in range(3):
        assert len({good(answer)["_id"] for answer in found[number::3]}) == 1
    assert sorted({good(answer)["_id"] for answer in found}) == [0, 1, 2]
    assert (orders(anywhere), len(anywhere.rung)) == (3, 3)


def test_concurrent_requests_with_one_key(anywhere: Place):
    document = anywhere.document()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(partial(anywhere.create, key="k-1"), [document] * 8))
    for answer in found:
        if answer.status_code != 200:
            failed(answer, 409, "ConflictError", "IN_PROGRESS")
            assert answer.headers["Retry-After"] == "2"
    assert {good(answer)["_id"] for answer in found if answer.status_code == 200} == {0}
    assert good(anywhere.create(document, key="k-1"))["_id"] == 0
    assert (orders(anywhere), len(anywhere.rung)) == (1, 1)


# -- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("content", "mimetype"), [(JPEG, "image/jpeg"), (PNG, "image/png"), (WEBP, "image/webp")])
@pytest.mark.parametrize("part", ["file", "receipt", "x[]"])
def test_an_image_by_any_part_name_is_kept_as_it_is(place: Place, content: bytes, mimetype: str, part: str):
    answer = place.client.post(
        "/partner/image/upload", headers=TOKEN, data={part: (io.BytesIO(content), "r.txt", "text/plain")}
    )
    (image,) = good(answer)
    assert image["mimetype"] == mimetype
    assert len(image["id"]) == 24
    assert int(image["id"], 16) >= 0
    assert image["url"].endswith(f"/partner/image/{image['id']}")
    back = place.client.get(image["url"], headers=TOKEN)
    assert (back.data, back.mimetype) == (content, mimetype)
    assert back.headers["Cache-Control"] == "private, no-store"


def test_trap_13_an_image_is_its_senders_alone(place: Place):
    image = place.image()
    assert place.get(f"image/{image}", token="").status_code == 401
    failed(place.get(f"image/{image}", token="other-token"), 404, "NotFoundError", "NOT_FOUND")
    failed(place.get("image/nothing"), 404, "NotFoundError", "NOT_FOUND")


def test_trap_13_no_log_line_tells_of_an_image_or_a_token(place: Place):
    with structlog.testing.capture_logs() as lines:
        image = place.image()
        good(place.create(place.document(image_uuids=[image])))
        problems(place.create(place.document(image_uuids=[image], datetime={"date": "2024-02-20", "timeslot": "0712"})))
    assert image not in str(lines)
    assert "fixed-token" not in str(lines)


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"%PDF-1.7", b"\xff\xd8", b"RIFF1234WAVE", b"<svg/>"])
def test_a_file_that_is_no_such_image(place: Place, content: bytes):
    answer = place.client.post("/partner/image/upload", headers=TOKEN, data={"f": (io.BytesIO(content), "a.png")})
    failed(answer, 415, "UnsupportedMediaTypeError", "UNSUPPORTED_MEDIA_TYPE")


def test_an_upload_that_is_no_upload(place: Place):
    post = partial(place.client.post, "/partner/image/upload", headers=TOKEN)
    failed(post(json={"file": "x"}), 415, "UnsupportedMediaTypeError", "UNSUPPORTED_MEDIA_TYPE")
    failed(post(data=PNG, content_type="image/png"), 415, "UnsupportedMediaTypeError", "UNSUPPORTED_MEDIA_TYPE")
    assert problems(post(data={"file": "no file"}, content_type="multipart/form-data")) == [("file", "required")]
    assert problems(post(data=b"nothing", content_type="multipart/form-data")) == [("file", "required")]
    two = {"a": (io.BytesIO(PNG), "a.png"), "b": (io.BytesIO(PNG), "b.png")}
    assert problems(post(data=two)) == [("file", "arrayMax")]


@pytest.mark.parametrize(("more", "status"), [(0, 200), (1, 413), (1 << 20, 413)])
def test_10_mib_and_more(place: Place, more: int, status: int):
    begin = b'--edge\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n\r\n'
    body = begin + PNG.ljust((10 << 20) + more, b"\0") + b"\r\n--edge--\r\n"
    answer = place.client.post(
        "/partner/image/upload",
        headers=TOKEN,
        input_stream=io.BytesIO(body),
        content_length=len(body),
        content_type="multipart/form-data; boundary=edge",
    )
    assert answer.status_code == status
    if status == 413:
        failed(answer, 413, "PayloadTooLargeError", "PAYLOAD_TOO_LARGE")


# -- who comes in -----------------------------------------------------------------------------------------------------

PROTECTED = [
    ("POST", "image/upload"),
    ("GET", "image/x"),
    ("GET", "item/list"),
    ("GET", "item/find"),
    ("POST", "order/create"),
    ("GET", "order/list"),
    ("GET", "order/0"),
]


@pytest.mark.parametrize(("method", "path"), PROTECTED)
@pytest.mark.parametrize("headers", [{}, {"token": ""}, {"token": "unknown"}, {"token": "töken"}])
def test_without_a_known_token(place: Place, method: str, path: str, headers: dict[str, str]):
    answer = place.client.open(f"/partner/{path}", method=method, headers=headers)
    assert answer.status_code == 401
    assert answer.json == {
        "name": "UnAuthorizedError",
        "message": "Unauthorized",
        "code": 401,
        "type": "NO_RIGHTS",
        "statusCode": 401,
        "status": "error",
        "data": None,
    }


def test_trap_08_the_header_is_token_and_nothing_else(place: Place):
    for header, value in {
        "Authorization": "fixed-token",
        "X-Token": "fixed-token",
        "token": "Bearer fixed-token",
    }.items():
        assert place.client.get("/partner/order/list", headers={header: value}).status_code == 401
    assert place.client.get("/partner/order/list?token=fixed-token").status_code == 401
    good(place.client.get("/partner/order/list", headers={"Token": "fixed-token"}))


def log_in(place: Place, login: str = "ann", password: str = "secret") -> TestResponse:
    return place.client.post("/partner/auth/authorize", json={"login": login, "password": password})


def test_a_login_gives_a_token(anywhere: Place):
    data = good(log_in(anywhere))
    assert data["user"] == {
        "_id": 0,
        "name": "ann",
        "partner": "acme",
        "stores": [
            {"store_id": "st-1", "store_title": "Store One"},
            {"store_id": "st-2", "store_title": "Store Two"},
        ],
    }
    assert good(anywhere.create(anywhere.document(), token=data["token"]))["partner"] == "acme"
    assert good(anywhere.get("order/list", good(log_in(anywhere, "bob", "sécret"))["token"])) == []


@pytest.mark.parametrize(
    ("login", "password"), [("ann", "sécret"), ("bob", "secret"), ("eve", "secret"), ("ann\0secret", ""), ("", "")]
)
def test_a_wrong_login(place: Place, login: str, password: str):
    failed(log_in(place, login, password), 401, "UnAuthorizedError", "NO_RIGHTS")


def test_a_login_that_cannot_be_read(place: Place):
    assert problems(place.client.post("/partner/auth/authorize", json={"login": 1})) == [
        ("login", "string"),
        ("password", "required"),
    ]
    assert problems(place.client.post("/partner/auth/authorize", json=[])) == [("body", "object")]
    assert log_in(place, "\ud800", "\udfff").status_code == 401


def test_the_sixth_login_ends_the_first(place: Place):
    tokens = [good(log_in(place))["token"] for _ in range(6)]
    assert [place.get("order/list", token).status_code for token in tokens] == [401, 200, 200, 200, 200, 200]


def test_another_password_ends_every_token(place: Place):
    token = good(log_in(place))["token"]

    def visitor(*users: User) -> Visitor | None:
        return Access([Shop("default", {}, users, {}, {}, ZONE, PLAN)], place.door).visitor(token)

    assert visitor(User("ann", "secret", "acme")) is not None
    assert visitor(User("ann", "changed", "acme")) is None
    assert visitor(User("bob", "secret", "acme")) is None
    assert visitor() is None


def test_no_token_is_kept_or_shown(place: Place):
    token = good(log_in(place))["token"]
    with place.ledger.reading() as connection:
        kept = connection.exec_driver_sql("SELECT * FROM inbound_tokens").all()
    assert len(kept) == 1
    assert token not in str(kept)
    visitor = Access([SHOP], place.door).visitor("fixed-token")
    assert "meter" not in repr(visitor)


def test_partners_see_their_own_orders_only(place: Place):
    good(place.create(place.document()))
    assert good(place.get("order/list", "other-token")) == []
    failed(place.get("order/0", "other-token"), 404, "NotFoundError", "NOT_FOUND")


def test_two_accounts(place: Place):
    north = Shop("north", {"n": "acme"}, [], {"n-1": "North"}, {1: "Shelf"}, ZoneInfo("UTC"), PLAN)
    both = Place(place.ledger, shops=(SHOP, north))
    assert [row["id"] for row in good(both.get("item/list", "n"))] == [1]
    document = both.document(image_uuids=[both.image("n")])
    document["partner_details"] |= {"store_id": "n-1", "items": [{"id": 1, "count": 1, "assembly": True}]}
    assert good(both.create(document, token="n"))["title"] == "North #0"
    (row,) = queries.find_order(place.ledger, "partner:north:0")
    assert row["account"] == "north"
    assert problems(both.get("masters/slots?store_id=n-9")) == [("store_id", "notFound")]
    good(both.get("masters/slots?store_id=n-1"))


def test_ten_requests_a_second_of_each_token(place: Place):
    slow = Place(place.ledger, rate=10)
    assert [slow.get("item/list").status_code for _ in range(11)] == [200] * 10 + [429]
    answer = slow.get("nothing/here")
    failed(answer, 404, "NotFoundError", "NOT_FOUND")
    refused = slow.create({})
    failed(refused, 429, "TooManyRequestsError", "RATE_LIMIT")
    assert refused.headers["Retry-After"] == "1"
    good(slow.get("item/list", "other-token"))
    assert slow.get("item/list", "unknown").status_code == 401
    assert [log_in(slow, "ann", "guess").status_code for _ in range(11)] == [401] * 10 + [429]
    assert log_in(slow, "bob", "guess").status_code == 401


def test_a_meter_fills_again():
    moment = [100.0]
    meters = Meters(10, clock=lambda: moment[0])
    assert [meters.wait("a") for _ in range(12)] == [0] * 10 + [1, 1]
    moment[0] += 0.1
    assert [meters.wait("a") for _ in range(2)] == [0, 1]
    moment[0] += 60
    assert [meters.wait("a") for _ in range(11)] == [0] * 10 + [1]
    assert sum(meters.wait(f"other {number}") for number in range(5000)) == 0


# -- catalogue and slots ----------------------------------------------------------------------------------------------


def test_items(place: Place):
    rows = good(place.get("item/list?store_id=st-1"))
    assert rows[0] == {"id": 501, "name": "Wardrobe", "delivery": True, "assembly": True}
    assert [row["id"] for row in good(place.get("item/list"))] == [501, 502, 503]
    assert [row["id"] for row in good(place.get("item/list?limit=1&skip=1"))] == [502]
    assert good(place.get("item/list?skip=3")) == []
    assert problems(place.get("item/list?store_id=st-9")) == [("store_id", "notFound")]


def test_items_by_a_part_of_their_name(place: Place):
    assert [row["id"] for row in good(place.get("item/find?store_id=st-1&name=BED"))] == [502, 503]
    assert good(place.get("item/find?name=sofa")) == []
    assert problems(place.get("item/find")) == [("name", "required")]
    assert problems(place.get("item/find?name=bed&store_id=st-9")) == [("store_id", "notFound")]
    many = Shop("default", SHOP.tokens, [], {}, {number: f"Item {number}" for number in range(60)}, ZONE, PLAN)
    assert len(good(Place(place.ledger, shops=(many,)).get("item/find?name=item"))) == 50


def test_trap_10_slots_are_open_to_anyone_and_go_by_the_stores_day(place: Place):
    def slots() -> dict[str, dict[str, bool]]:
        found: dict[str, dict[str, bool]] = good(place.client.get("/partner/masters/slots?store_id=st-1"))
        return found

    assert slots()["2024-02-14"] == {"0712": False, "1217": True, "1721": True}
    assert len(slots()) == 31
    place.door.moment = datetime(2024, 2, 14, 22, 30, tzinfo=ZoneInfo("UTC"))  # half past midnight in the store
    assert min(slots()) == "2024-02-15"
    assert max(slots()) == "2024-03-16"
    document = place.document(datetime=[{"date": "2024-02-14", "timeslot": "1721"}])
    assert problems(place.create(document)) == [("datetime[0].date", "dateRange")]
    good(place.create(document | {"datetime": [{"date": "2024-03-16", "timeslot": "1721"}]}))
    before = slots()
    good(place.create(place.document(datetime=[{"date": "2024-02-15", "timeslot": "0712"}])))
    assert slots() == before


def test_slots_need_a_store(place: Place):
    assert problems(place.client.get("/partner/masters/slots")) == [("store_id", "required")]
    assert problems(place.client.get("/partner/masters/slots?store_id=st-9")) == [("store_id", "notFound")]


def test_closed_days(place: Place):
    closed = Shop(
        "default",
        SHOP.tokens,
        [],
        SHOP.stores,
        SHOP.items,
        ZONE,
        PLAN,
        frozenset([date(2024, 2, 14), date(2024, 2, 15)]),
    )
    shut = Place(place.ledger, shops=(closed,))
    days = good(shut.get("masters/slots?store_id=st-1"))
    assert days["2024-02-15"] == {"0712": False, "1217": False, "1721": False}
    assert days["2024-02-16"]["0712"] is True
    assert problems(shut.create(shut.document())) == [("datetime[0].timeslot", "slotUnavailable")]


# -- lists ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def stocked(place: Place) -> Place:
    """25 orders: those with an even number of the second store, one by another customer."""
    for number in range(25):
        document = place.document()
        document["partner_details"]["store_id"] = "st-1" if number % 2 else "st-2"
        document["partner_details"]["instock"] = number != 5
        document["customer"]["last_name"] = "Ünlike" if number == 7 else "Test"
        good(place.create(document))
    return place


def ids(place: Place, query: str) -> list[int]:
    return [row["_id"] for row in good(place.get(f"order/list?{query}"))]


def test_trap_09_lists_are_of_20_unless_asked(stocked: Place):
    assert ids(stocked, "") == list(range(24, 4, -1))
    assert ids(stocked, "limit=50") == list(range(24, -1, -1))
    assert ids(stocked, "limit=10&skip=20") == [4, 3, 2, 1, 0]
    assert ids(stocked, "skip=25") == []


def test_filters_in_brackets_or_as_json(stocked: Place):
    assert ids(stocked, "limit=3&filter[store_ids][0]=st-1") == [23, 21, 19]
    assert ids(stocked, "limit=3&filter[store_ids][0]=st-1&filter[store_ids][1]=st-2") == [24, 23, 22]
    assert ids(stocked, "filter[query]=%C3%BCnlike") == [7]
    assert ids(stocked, "filter[query]=17") == [17]
    assert ids(stocked, "filter[query]=%232") == [24, 23, 22, 21, 20, 2]
    assert ids(stocked, "filter[filter][0]=not_in_stock") == [5]
    assert ids(stocked, "filter[filter][]=done") == []
    assert ids(stocked, "limit=2&skip=1&filter[filter]=open&filter[query]=store+two") == [22, 20]
    assert ids(stocked, 'filter={"filter":["not_in_stock"],"store_ids":["st-1"],"query":"ANN"}') == [5]
    assert len(ids(stocked, "filter={}&limit=100")) == 25
    assert len(ids(stocked, "filter[other]=1&limit=100")) == 25


@pytest.mark.parametrize(
    ("query", "field", "type_"),
    [
        ("limit=0", "limit", "numberMin"),
        ("limit=101", "limit", "numberMax"),
        ("limit=", "limit", "number"),
        ("limit=ten", "limit", "number"),
        ("limit=1.0", "limit", "number"),
        ("skip=-1", "skip", "number"),
        ("skip=99999999999999999999", "skip", "number"),
        ("filter=[]", "filter", "object"),
        ("filter={", "filter", "object"),
        ("filter=open", "filter", "object"),
        ('filter={"query":1}', "filter.query", "string"),
        ('filter={"store_ids":"st-1"}', "filter.store_ids", "array"),
        ('filter={"filter":["open",null]}', "filter.filter[1]", "string"),
    ],
)
def test_a_list_that_cannot_be_had(place: Place, query: str, field: str, type_: str):
    assert problems(place.get(f"order/list?{query}")) == [(field, type_)]


@pytest.mark.parametrize("query", ["filter[query]=%00", 'filter={"query":"\\u0000"}', 'filter={"query":"\\ud800"}'])
def test_a_search_for_what_cannot_be_written(anywhere: Place, query: str):
    assert ids(anywhere, query) == []


def test_an_order_that_is_not_there(place: Place):
    for path in ("order/0", "order/99999999999999999999", "order/-1", "order/zero", "order/0/", "order/1.0"):
        failed(place.get(path), 404, "NotFoundError", "NOT_FOUND")


# -- everything else --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
@pytest.mark.parametrize(
    "path", ["", "/", "/order", "/order/cost", "/order/list/", "/nothing/at/all", "/image/upload/x"]
)
def test_paths_that_are_not_there(place: Place, method: str, path: str):
    failed(place.client.open(f"/partner{path}", method=method), 404, "NotFoundError", "NOT_FOUND")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "order/create", "POST"),
        ("PUT", "order/list", "GET"),
        ("DELETE", "order/0", "GET"),
        ("GET", "auth/authorize", "POST"),
        ("TRACE", "masters/slots", "GET"),
    ],
)
def test_methods_that_are_not_there(place: Place, method: str, path: str, allowed: str):
    answer = place.client.open(f"/partner/{path}", method=method)
    failed(answer, 405, "MethodNotAllowedError", "METHOD_NOT_ALLOWED")
    assert allowed in answer.headers["Allow"].split(", ")
    assert method not in answer.headers["Allow"].split(", ")


def test_other_paths_are_answered_as_before(place: Place):
    for path in ("/", "/partnership", "/docs2"):
        answer = place.client.get(path)
        assert (answer.status_code, answer.is_json) == (404, False)


@pytest.mark.parametrize("url", ["sqlite:///{folder}/empty.db", "postgresql://nobody@127.0.0.1:1/nothing"])
def test_the_ledger_away(tmp_path: Path, url: str):
    ledger = Ledger(url.format(folder=tmp_path))
    place = Place(ledger)
    document = json.loads((PAYLOADS / "order.json").read_text())
    calls: list[Callable[[], TestResponse]] = [
        partial(place.create, document),
        partial(place.get, "order/list"),
        partial(place.get, "order/0"),
        partial(place.get, "item/list", "somebody's"),
        partial(log_in, place),
        partial(place.client.post, "/partner/image/upload", headers=TOKEN, data={"f": (io.BytesIO(PNG), "a.png")}),
    ]
    for call in calls:
        answer = call()
        assert failed(answer, 503, "ServiceError", "INTERNAL") is None
        assert answer.headers["Retry-After"] == "2"
    assert place.rung == []
    ledger.close()


def test_our_own_bug_is_an_envelope_too(place: Place):
    broken = Place(place.ledger, shops=(Shop("default", SHOP.tokens, [], SHOP.stores, SHOP.items, None, PLAN),))  # type: ignore[arg-type]
    broken.door.moment = None  # type: ignore[assignment]
    broken.app.config["PROPAGATE_EXCEPTIONS"] = False
    assert failed(broken.create(place.document()), 500, "ServiceError", "INTERNAL") is None


# -- the document -----------------------------------------------------------------------------------------------------


def test_the_document_and_its_page(place: Place):
    answer = place.client.get("/docs/openapi.json")
    assert answer.json is not None
    operations = {
        f"{method} {path}" for path, about in answer.json["paths"].items() for method in about if method != "parameters"
    }
    assert operations == {
        "post /partner/auth/authorize",
        "post /partner/image/upload",
        "get /partner/image/{image_id}",
        "get /partner/item/list",
        "get /partner/item/find",
        "get /partner/masters/slots",
        "post /partner/order/create",
        "get /partner/order/list",
        "get /partner/order/{number}",
    }
    assert place.client.get("/docs").headers["Location"].endswith("/docs/")
    page = place.client.get("/docs/")
    assert "/docs/openapi.json" in page.text
    assert "//" not in page.text.replace("//User", "").replace("// ", "").replace("http://localhost/docs", "")
    with place.client.get("/docs/swagger-ui-bundle.js") as script:
        assert len(script.data) > 100_000
