"""The other end of the partner API: a shop that sends its orders to our door (`contracts/partner.md`, section 5).

Each order is sent at least once, and again with the same body when nothing was heard: a shop like that is why there are
rules for doubles.
"""

import heapq
import math
import random
import struct
import threading
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count as counting
from typing import Any

import requests

from sandbox import base
from sandbox.base import Json

UNKNOWN_PRODUCT = 599
"""The one item in the catalogue that the sandbox ERP does not know."""
CATALOGUE: tuple[Json, ...] = (
    {"id": 501, "name": "Wardrobe", "delivery": True, "assembly": True},
    {"id": 502, "name": "Bed frame", "delivery": True, "assembly": True},
    {"id": 503, "name": "Bookcase", "delivery": True, "assembly": True},
    {"id": 504, "name": "Mattress", "delivery": True, "assembly": False},
    {"id": 505, "name": "Desk", "delivery": True, "assembly": True},
    {"id": 506, "name": "Floor lamp", "delivery": True, "assembly": False},
    {"id": 507, "name": "Wall unit", "delivery": True, "assembly": True},
    {"id": UNKNOWN_PRODUCT, "name": "Unknown to the ERP", "delivery": True, "assembly": True},
)

FLAGS = ("delivery", "assembly")
DELIVERY_TYPES = ("to_pavement", "to_door_by_lift", "to_door_by_stairs")
TIMESLOTS = {"0712": 12, "1217": 17, "1721": 21}
"""Name to the hour, local to the store, at which it is over (section 2.4)."""


@dataclass(kw_only=True)
class ShopOptions(base.Options):
    """The knobs of the shop."""

    inbound_token: str = "sandbox-inbound-token"
    inbound_login: str = "sandbox-shop"
    inbound_password: str = "sandbox-shop-password"
    inbound_partner: str = "sample-shop"
    retry_seconds: float = 0.3
    """The shop's first wait after an answer that is neither 200 nor 422; it doubles up to 16 times this."""
    remember_seconds: float = 5.0
    """How long the shop goes by the slots and items that it has read."""
    patience_seconds: float = 15.0
    """How long the shop waits for an answer."""


DEFAULT_ORDER: Json = {
    "customer": {"phone_number": "+35799000001", "first_name": "Ann", "last_name": "Test"},
    "payment_method": "cash",
    "datetime": [{"day": 1, "timeslot": "0712"}],
    "address": {
        "address": "1 Sample Street",
        "coordinates": {"lat": 34.70187, "lon": 33.04853},
        "details": "",
        "zip": "4003",
    },
    "partner_details": {
        "store_id": "st-1",
        "instock": True,
        "delivery_type": "to_pavement",
        "items": [{"id": 501, "count": 2, "delivery": True, "assembly": True}],
    },
    "images": 1,
    "login": False,
    "key": False,
    "repeat": "none",
}
"""What `add_orders` overrides. The first five go out as they are; only that a `day`, counted from today, becomes the
`date` of a slot that is free. `images`: so many receipts are uploaded. `login`: with login and password instead of the
fixed token. `key`: with an Idempotency-Key. `repeat`: one of `REPEATS`."""

REPEATS = ("none", "lost", "twins", "again")
"""The same body once more: after an answer that was not waited for; at the same time; some time after an answer."""

_OWN = ("images", "login", "key", "repeat")
_SENDERS = 4


@dataclass(slots=True)
class SentOrder:
    """One order of the shop. `body` is set when it is sent first, and never changes again."""

    id: str
    specification: Json
    key: str | None
    repeat: str
    images: list[str] = field(default_factory=list)
    body: Json | None = None
    answers: list[Json] = field(default_factory=list)
    """`{"status": 200, "_id": 0, "body": {...}}`, or `{"status": None}` for none; of the create alone."""
    tries: int = 0
    more: int = 1
    """How many times it is still to be sent and answered."""
    queued: bool = False
    """Waiting for its turn, or under way."""

    def everything(self) -> Json:
        """For the control endpoints. `state`: waiting, accepted or refused."""
        statuses = [answer["status"] for answer in self.answers]
        state = "accepted" if 200 in statuses else "refused" if 422 in statuses else "waiting"
        return {
            "id": self.id,
            "state": state,
            "ids": sorted({answer["_id"] for answer in self.answers if "_id" in answer}),
            "key": self.key,
            "specification": self.specification,
            "body": self.body,
            "answers": list(self.answers),
        }


def refuse_unknown(values: Json, known: Iterable[str]) -> None:
    """Raises `ValueError` that names what is not known."""
    if unknown := values.keys() - set(known):
        raise ValueError(f"not a field to set: {', '.join(sorted(unknown))}")


class _Later(Exception):
    """This try came to nothing; the next one after so many seconds, or after the usual wait."""

    def __init__(self, seconds: float | None = None) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Sender:
    """Sends orders from threads of its own, each until it was answered with 200 or 422."""

    def __init__(self, options: ShopOptions) -> None:
        self._options = options
        self._wake = threading.Condition()
        self._web: str | None = None
        self._orders: dict[str, SentOrder] = {}
        self._numbers = counting(1)
        self._queue: list[tuple[float, int, SentOrder]] = []
        self._threads: list[threading.Thread] = []
        self._stopped = False
        self._token: str | None = None
        self._read: dict[str, tuple[float, Any]] = {}

    def add(self, specification: Json) -> str:
        """Send one more order, once we know where; its id. Raises `ValueError`."""
        refuse_unknown(specification, DEFAULT_ORDER)
        full = {**DEFAULT_ORDER, **specification}
        if full["repeat"] not in REPEATS:
            raise ValueError(f"repeat is one of {', '.join(REPEATS)}")
        with self._wake:
            ident = f"S{next(self._numbers)}"
            order = SentOrder(ident, full, str(uuid.uuid4()) if full["key"] else None, full["repeat"])
            order.more += order.repeat == "again"
            self._orders[ident] = order
            self._put(order, 0.0)
        return ident

    def point_at(self, web: str) -> None:
        """From now on orders go to the fleet whose web server is there."""
        with self._wake:
            if self._web != f"{web}/partner":
                self._web = f"{web}/partner"
                self._token = None
                self._read.clear()
            for number in range(len(self._threads), _SENDERS):
                thread = threading.Thread(target=self._run, name=f"shop-{number}", daemon=True)
                self._threads.append(thread)
                thread.start()

    def stop(self) -> None:
        """Send nothing any more; returns when nothing is under way."""
        with self._wake:
            self._stopped = True
            self._wake.notify_all()
        for thread in self._threads:
            thread.join()

    def all(self) -> list[Json]:
        """Every order, oldest first."""
        with self._wake:
            return [order.everything() for order in self._orders.values()]

    def one(self, ident: str) -> Json:
        """One of them. Raises `KeyError`."""
        with self._wake:
            return self._orders[ident].everything()

    def send_again(self, ident: str, times: int) -> None:
        """The same body, so many times more. Raises `KeyError`."""
        with self._wake:
            order = self._orders[ident]
            order.more += times
            if not order.queued:
                self._put(order, 0.0)

    def _put(self, order: SentOrder, seconds: float) -> None:
        order.queued = True
        heapq.heappush(self._queue, (time.monotonic() + seconds, next(self._numbers), order))
        self._wake.notify()

    def _run(self) -> None:
        with requests.Session() as session:
            session.trust_env = False
            while (order := self._next()) is not None:
                wait = self._try(session, order)
                with self._wake:
                    order.queued = False
                    if order.more > 0:
                        self._put(order, wait)

    def _next(self) -> SentOrder | None:
        with self._wake:
            while not self._stopped:
                pause = self._queue[0][0] - time.monotonic() if self._queue else None
                if pause is not None and pause <= 0:
                    return heapq.heappop(self._queue)[2]
                self._wake.wait(pause)
            return None

    def _try(self, session: requests.Session, order: SentOrder) -> float:
        """One go at what is left to do; after how many seconds the next one may follow."""
        usual: float = self._options.retry_seconds * 2 ** min(order.tries, 4)
        order.tries += 1
        try:
            if order.body is None:
                order.body = self._compose(session, order)
            self._send(session, order)
        except _Later as later:
            return usual if later.seconds is None else later.seconds
        except (LookupError, TypeError):
            return usual  # a good answer, but not in the shape of the contract
        with self._wake:
            order.tries = 0
            order.more -= 1
        return self._options.retry_seconds

    def _compose(self, session: requests.Session, order: SentOrder) -> Json:
        """The flow of section 2.5: items, slots, receipts, and then the body."""
        specification = order.specification
        store = specification["partner_details"]["store_id"]
        self._remembered(session, order, f"/item/list?store_id={store}&limit=50&skip=0")
        slots = self._remembered(session, order, f"/masters/slots?store_id={store}")
        while len(order.images) < specification["images"]:
            files = {"file": ("receipt.png", receipt(f"{order.id} {uuid.uuid4()}"), "image/png")}
            document = self._document(self._call(session, order, "POST", "/image/upload", files=files))
            order.images.append(document["data"][0]["id"])
        wanted = specification["datetime"]
        pairs = [_choose(slots, pair) for pair in (wanted if isinstance(wanted, list) else [wanted])]
        body = {name: value for name, value in specification.items() if name not in _OWN and value is not None}
        return {**body, "datetime": pairs if isinstance(wanted, list) else pairs[0], "image_uuids": order.images}

    def _remembered(self, session: requests.Session, order: SentOrder, path: str) -> Any:
        """A read of something that all orders need; a refusal is no reason not to send the order."""
        at, data = self._read.get(path, (-math.inf, None))
        if time.monotonic() - at > self._options.remember_seconds:
            reply = self._call(session, order, "GET", path)
            data = self._document(reply)["data"] if reply.status_code != 422 else {}
            self._read[path] = (time.monotonic(), data)
        return data

    def _send(self, session: requests.Session, order: SentOrder) -> None:
        """The create. Raises `_Later` if it was not answered for good."""
        if order.answers or order.repeat != "twins":
            self._create(session, order)
            return
        with ThreadPoolExecutor(2) as pool:
            for twin in [pool.submit(self._create_alone, order) for _ in range(2)]:
                twin.result()

    def _create_alone(self, order: SentOrder) -> None:
        with requests.Session() as session:
            session.trust_env = False
            self._create(session, order)

    def _create(self, session: requests.Session, order: SentOrder) -> None:
        deaf = order.repeat == "lost" and not order.answers
        patience = 0.001 if deaf else self._options.patience_seconds
        headers = {"Idempotency-Key": order.key} if order.key else {}
        answer: Json = {"status": None}
        try:
            reply = self._call(session, order, "POST", "/order/create", patience, json=order.body, headers=headers)
            if deaf:  # it was quicker than our patience
                raise _Later
            answer["status"] = reply.status_code
            answer["body"] = document = self._document(reply)
            if reply.status_code == 200:
                answer["_id"] = document["data"]["_id"]
        finally:
            with self._wake:
                order.answers.append(answer)

    def _call(
        self,
        session: requests.Session,
        order: SentOrder,
        method: str,
        path: str,
        patience: float | None = None,
        *,
        headers: dict[str, str] | None = None,
        **content: Any,
    ) -> requests.Response:
        """Any answer. Raises `_Later` when there is none."""
        sent = {"token": self._credential(session, order), **(headers or {})}
        wait = (5, patience or self._options.patience_seconds)
        try:
            return session.request(
                method, f"{self._web}{path}", headers=sent, timeout=wait, allow_redirects=False, **content
            )
        except (requests.RequestException, OSError):
            raise _Later from None

    def _document(self, reply: requests.Response) -> Json:
        """What a 200 or 422 says. Raises `_Later` for all else."""
        if reply.status_code == 401:
            self._token = None
        if reply.status_code not in (200, 422):
            after = reply.headers.get("Retry-After", "")
            raise _Later(float(after) if after.isdecimal() else None)
        try:
            document: Json = reply.json()
        except ValueError:
            raise _Later from None
        return document

    def _credential(self, session: requests.Session, order: SentOrder) -> str:
        if not order.specification["login"]:
            return self._options.inbound_token
        token = self._token
        if token is None:
            account = {"login": self._options.inbound_login, "password": self._options.inbound_password}
            try:
                reply = session.post(
                    f"{self._web}/auth/authorize", json=account, timeout=self._options.patience_seconds
                )
                token = str(reply.json()["data"]["token"])
            except (requests.RequestException, OSError, LookupError, TypeError, ValueError):
                raise _Later from None
            self._token = token
        return token


def _choose(slots: Json, pair: Json) -> Json:
    """`pair` with a date for its `day`: there or later, where it is free."""
    if "day" not in pair:
        return pair
    rest = {name: value for name, value in pair.items() if name != "day"}
    days = sorted(slots)[pair["day"] :]
    day = next((day for day in days if slots[day].get(pair["timeslot"])), None)
    return {"date": day or "1970-01-01", **rest}


def receipt(text: str) -> bytes:
    """A small PNG with `text` in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    note = b"Comment\x00" + text.encode("latin-1", "replace")
    parts = (
        chunk(b"IHDR", head),
        chunk(b"tEXt", note),
        chunk(b"IDAT", zlib.compress(b"\x00\xff")),
        chunk(b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# Invented orders

_FIRST_NAMES = ("Alex", "Billie", "Charlie", "Dana", "Eli", "Frankie", "Gerrie", "Hanne")
_PLACES = (
    (34.70187, 33.04853, "4003"),
    (34.6841, 33.0379, "3036"),
    (34.7071, 33.0226, "3101"),
    (35.1725, 33.3650, "0101"),
)


def invent(count: int | None, seed: int, *, plain: bool = False) -> Iterator[Json]:
    """Specifications for `add_orders`, always the same for a seed; endless without `count`.

    Some come twice: blindly, at the same time, or late. About one in ten is odd: not in stock, assembled at the store,
    written as the rules just allow, or refused by them or by the ERP. If `plain` the same orders without all that."""
    for number in counting() if count is None else range(count):
        dice = random.Random(f"{seed}/{number}")
        order = _ordinary(dice)
        if not plain:
            order["repeat"] = dice.choices(REPEATS, (85, 5, 5, 5))[0]
            order |= _oddity(dice, order)
        yield order


def _ordinary(dice: random.Random) -> Json:
    lat, lon, code = dice.choice(_PLACES)
    point = {"lat": round(lat + dice.uniform(-0.01, 0.01), 5), "lon": round(lon + dice.uniform(-0.01, 0.01), 5)}
    first, phone = dice.choice(_FIRST_NAMES), f"+357990{dice.randint(0, 99999):05}"
    slots = [{"day": dice.randint(1, 20), "timeslot": dice.choice(tuple(TIMESLOTS))} for _ in range(dice.randint(1, 2))]
    return {
        "customer": {"phone_number": phone, "first_name": first, "last_name": "Sample"},
        "payment_method": dice.choice(("stripe", "cash")),
        "datetime": slots,
        "address": {
            "address": f"{dice.randint(1, 99)} Sample Street",
            "coordinates": point,
            "details": dice.choice(("", "Second floor", "Blue gate, ring twice")),
            "zip": code,
        },
        "partner_details": {
            "store_id": dice.choice(("st-1", "st-1", "st-2")),
            "instock": True,
            "delivery_type": dice.choice(DELIVERY_TYPES),
            "items": [_invented_item(dice) for _ in range(dice.randint(1, 4))],
        },
        "images": dice.choice((1, 1, 1, 2)),
        "login": dice.random() < 0.5,
        "key": dice.random() < 0.4,
    }


def _invented_item(dice: random.Random) -> Json:
    item = dice.choice([item for item in CATALOGUE if item["id"] != UNKNOWN_PRODUCT])
    assembly = item["assembly"] and dice.random() < 0.6
    return {"id": item["id"], "count": dice.choice((1, 1, 1, 2, 4)), "delivery": True, "assembly": assembly}


def _oddity(dice: random.Random, order: Json) -> Json:
    """What to change in about one order of ten."""
    details, customer = order["partner_details"], order["customer"]
    items = details["items"]
    first = items[0]
    bare = {name: value for name, value in details.items() if name != "delivery_type"}
    oddities: list[Json] = [
        {},
        {"partner_details": {**details, "instock": False}},
        {"address": None, "partner_details": {**bare, "items": [{"id": 501, "count": 1, "assembly": True}]}},
        {"datetime": order["datetime"][0], "partner_details": {**bare, "items": [{**first, "id": str(first["id"])}]}},
        {"partner_details": {**details, "items": [*items, {**first, "assembly": not first["assembly"]}]}},
        {"customer": {**customer, "phone_number": "+357 (99) 000-001"}},
        {"customer": {**customer, "phone_number": "unknown"}},
        {"partner_details": {**details, "items": [{**first, "id": 999}]}},
        {"partner_details": {**details, "items": [{**first, "id": UNKNOWN_PRODUCT}]}},
    ]
    return dice.choices(oddities, (90, 2, 2, 1, 1, 1, 1, 1, 1))[0]
