"""An imitation of both ends of the partner API, written from `contracts/partner.md` and the seed.

`Service` is the delivery company at which our fleet books crews (sections 1 to 3): a create that comes twice sends two
crews. `partner_shop.Sender` is a shop that sends its own orders to our door (section 5), once `point_at` was called.

The control endpoints of `sandbox.base` know both: `orders` lists what the shop sent (ids "S1", "S2" ...), `bookings`
all creates of the service; `orders/ID` reads and edits one of either (a booking's id is its `_id`). The effects are
the service's. Section numbers are those of the contract. What it marks [assumed] is what happens here.
"""

import hashlib
import json
import random
import re
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

from flask import Flask, Response, request
from werkzeug.exceptions import MethodNotAllowed, NotFound

from sandbox import base, partner_shop
from sandbox.base import Json, json_response
from sandbox.partner_shop import CATALOGUE, DELIVERY_TYPES, FLAGS, TIMESLOTS, Sender, ShopOptions

DAYS_AHEAD = 30
BODY_MOST = 64 << 10
IMAGE_MOST = 10 << 20

_PATHS = {
    "authorize": "/auth/authorize",
    "list": "/order/list",
    "create": "/order/create",
    "order": "/order/<ident>",
    "cost": "/order/cost",
    "slots": "/masters/slots",
    "upload": "/image/upload",
    "items": "/item/list",
    "find": "/item/find",
}
_OPEN = ("authorize", "slots")
"""Calls that need no token (section 1)."""


@dataclass(kw_only=True)
class Options(ShopOptions):
    """The knobs of section 9 that are not faults. A timeout or a 500 after the work, and HTML, are faults."""

    login: str = "sandbox"
    password: str = "sandbox-password"
    partner: str = "sample-fleet"
    stores: dict[str, str] = field(default_factory=lambda: {"st-1": "Store One", "st-2": "Store Two"})
    zone: str = "Asia/Nicosia"
    """Of all stores: dates and timeslots are local."""
    paths: dict[str, str] = field(default_factory=lambda: dict(_PATHS))
    """The path table (section 2); read once, by `create_app`."""
    datetime_shape: str = "both"
    """`both`, or `array`: a single object is refused."""
    error_data: str = "list"
    """`data` of a 422: `list`, `null` or `object`."""
    errors_as_200: bool = False
    """Errors come with HTTP 200: only the envelope tells."""
    limit_default: int = 20
    """Of the order list: the documents say 10 here and 20 there."""
    query_works: bool = True
    order_by_id: bool = True
    token_calls: int | None = None
    """A token dies after so many calls."""
    tokens_alive: int = 5
    """The oldest dies when one more is given out."""
    unauthorized: dict[str, int] = field(default_factory=dict)
    """By name of the path table: so many of the next calls find their token revoked."""
    rate_per_second: int | None = 10
    """Per token."""
    slot_capacity: int = 1000
    """Crews per store, date and timeslot; a create takes one."""
    slot_calendar: dict[str, int] = field(default_factory=dict)
    """Other capacities: "2024-02-14/0712" for all stores, "st-1/2024-02-14/0712" for one."""
    lose_slots: int = 0
    """So many of the next creates find that others have just taken the slots they name."""
    page_overlap: int = 0
    """Pages after the first begin so many rows early, as when orders came between two reads."""
    step_seconds: float | None = 1.0
    """About so long after the last one a booking takes its next step by itself; `None`: only by control."""
    trouble_share: float = 0.1
    """Of the bookings: their payment, or fee, fails before it works."""
    seed: int = 0


# The status model (section 3)

STATUSES = ("open", "in_work", "completed", "done")
STATUS_OF = {
    "open": "open",
    "awaiting_master_request": "open",
    "awaiting_master_accept": "open",
    "not_in_stock": "open",
    "in_stock_awaiting_date": "open",
    "in_work": "in_work",
    "completed": "completed",
    "awaiting_payment": "completed",
    "payment_hold": "completed",
    "payment_requires_action": "completed",
    "payment_error": "completed",
    "payment_captured": "done",
    "awaiting_fee": "completed",
    "fee_hold": "completed",
    "fee_error": "completed",
    "fee_requires_action": "completed",
    "fee_captured": "done",
}
_NEXT = {
    "not_in_stock": "in_stock_awaiting_date",
    "in_stock_awaiting_date": "awaiting_master_request",
    "open": "awaiting_master_request",
    "awaiting_master_request": "awaiting_master_accept",
    "awaiting_master_accept": "in_work",
    "in_work": "completed",
    **{
        f"{money}_{now}": f"{money}_{then}"
        for money in ("payment", "fee")
        for now, then in (("error", "hold"), ("requires_action", "hold"), ("hold", "captured"))
    },
}


def next_substatus(substatus: str, payment_method: str, trouble: bool) -> str | None:
    """Where a booking goes from here; `None` from the last one and from words that are not known.

    `trouble`: its payment, or fee, fails first."""
    money = "payment" if payment_method == "stripe" else "fee"
    if substatus == "completed":
        return f"awaiting_{money}"
    if substatus in ("awaiting_payment", "awaiting_fee"):
        return f"{substatus.removeprefix('awaiting_')}_{'error' if trouble else 'hold'}"
    return _NEXT.get(substatus)


# Errors (section 6)

_NAMES = {
    401: ("UnAuthorizedError", "NO_RIGHTS", "Unauthorized"),
    404: ("NotFoundError", "NOT_FOUND", "Not found"),
    413: ("PayloadTooLargeError", "PAYLOAD_TOO_LARGE", "Payload too large"),
    415: ("UnsupportedMediaTypeError", "UNSUPPORTED_MEDIA_TYPE", "Unsupported media type"),
    422: ("ValidationError", "VALIDATION_ERROR", "Validation failed"),
    429: ("TooManyRequestsError", "RATE_LIMIT", "Too many requests"),
}

Wrong = tuple[str, str]
"""Field and type of one error."""


class ApiError(Exception):
    """An answer that is an error; `wrong` makes the `data` of a 422."""

    def __init__(self, status: int, wrong: Iterable[Wrong] = (), retry_after: int | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.wrong = sorted(wrong)
        self.retry_after = retry_after

    def response(self, options: Options) -> Response:
        """The answer itself."""
        name, kind, message = _NAMES[self.status]
        document = {"name": name, "message": message, "code": self.status, "type": kind, "statusCode": self.status}
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        status = 200 if options.errors_as_200 else self.status
        return json_response({**document, "status": "error", "data": self._data(options.error_data)}, status, headers)

    def _data(self, shape: str) -> Any:
        if not self.wrong or shape == "null":
            return None
        if shape == "object":
            return dict(self.wrong)
        return [{"type": kind, "field": name, "message": f"{name}: {kind}"} for name, kind in self.wrong]


# The rules of a new order (section 5)

Rule = Callable[[Any], str | None]
"""The type of error that a value is, or `None`."""


def _object(value: Any) -> str | None:
    return None if isinstance(value, dict) else "object"


def _boolean(value: Any) -> str | None:
    return None if isinstance(value, bool) else "boolean"


def _text(least: int = 0, most: int | None = None) -> Rule:
    def rule(value: Any) -> str | None:
        if not isinstance(value, str):
            return "string"
        length = len(value.strip())
        if length < least:
            return "stringEmpty"
        return "stringMax" if most is not None and length > most else None

    return rule


def _phone(value: Any) -> str | None:
    if not isinstance(value, str):
        return "string"
    return None if re.fullmatch(r"\+?[0-9]{7,15}", re.sub(r"[ ()-]", "", value)) else "stringPattern"


def _one_of(*choices: str) -> Rule:
    return lambda value: None if isinstance(value, str) and value in choices else "enumValue"


def _number(least: float, most: float, kinds: Any = int | float) -> Rule:
    def rule(value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, kinds) or value != value:
            return "number"
        if value < least:
            return "numberMin"
        return "numberMax" if value > most else None

    return rule


def _item_id(value: Any) -> str | None:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value):
        return None
    return None if isinstance(value, int) and not isinstance(value, bool) else "number"


def _array(least: int, most: int, unique: bool = False) -> Rule:
    def rule(value: Any) -> str | None:
        if not isinstance(value, list):
            return "array"
        if len(value) < least:
            return "arrayMin"
        if len(value) > most:
            return "arrayMax"
        texts = [each for each in value if isinstance(each, str)]
        return "arrayUnique" if unique and len(set(texts)) < len(texts) else None

    return rule


def _day(first: date) -> Rule:
    def rule(value: Any) -> str | None:
        if not isinstance(value, str) or not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
            return "date"
        try:
            day = date.fromisoformat(value)
        except ValueError:
            return "date"
        return None if first <= day <= first + timedelta(DAYS_AHEAD) else "dateRange"

    return rule


class _Found(list[Wrong]):
    """The errors so far."""

    def value(self, name: str, value: Any, rule: Rule) -> Any:
        """`value` if it keeps the rule, else `None`."""
        if kind := rule(value):
            self.append((name, kind))
            return None
        return value

    def member(self, place: Json, prefix: str, name: str, rule: Rule) -> Any:
        """A required member: one that is null is missing."""
        if place.get(name) is None:
            self.append((prefix + name, "required"))
            return None
        return self.value(prefix + name, place[name], rule)


def order_errors(body: Json, today: date, *, only_array: bool = False) -> list[Wrong]:
    """What the field rules say to a new order: all errors together."""
    found = _Found()
    customer = found.member(body, "", "customer", _object)
    if customer is not None:
        found.member(customer, "customer.", "phone_number", _phone)
        for name in ("first_name", "last_name"):
            found.member(customer, "customer.", name, _text(1, 100))
    found.member(body, "", "payment_method", _one_of("stripe", "cash"))
    _check_datetime(found, body, today, only_array)
    for place, image in enumerate(found.member(body, "", "image_uuids", _array(1, 10, unique=True)) or ()):
        found.value(f"image_uuids[{place}]", image, _text())
    details = found.member(body, "", "partner_details", _object)
    delivered = details is not None and _check_details(found, details)
    if delivered or body.get("address") is not None:
        _check_address(found, body)
    return found


def _check_datetime(found: _Found, body: Json, today: date, only_array: bool) -> None:
    if not only_array and isinstance(body.get("datetime"), dict):
        body = {"datetime": [body["datetime"]]}
    for place, pair in enumerate(found.member(body, "", "datetime", _array(1, 10)) or ()):
        name = f"datetime[{place}]"
        if found.value(name, pair, _object) is not None:
            found.member(pair, f"{name}.", "date", _day(today))
            found.member(pair, f"{name}.", "timeslot", _one_of(*TIMESLOTS))


def _check_details(found: _Found, details: Json) -> bool:
    """Whether anything is to be delivered."""
    prefix = "partner_details."
    found.member(details, prefix, "store_id", _text())
    found.member(details, prefix, "instock", _boolean)
    items = found.member(details, prefix, "items", _array(1, 200))
    return _check_items(found, items or [], details, prefix)


def _check_items(found: _Found, items: list[Any], details: Json, prefix: str) -> bool:
    for place, item in enumerate(items):
        name = f"{prefix}items[{place}]"
        if found.value(name, item, _object) is None:
            continue
        found.member(item, f"{name}.", "id", _item_id)
        found.member(item, f"{name}.", "count", _number(1, 999, int))
        for flag in ("delivery", "assembly"):
            found.value(f"{name}.{flag}", item.get(flag, False), _boolean)
    flagged = {flag for item in items if isinstance(item, dict) for flag in FLAGS if item.get(flag) is True}
    if items and not flagged:
        found.append((f"{prefix}items", "noService"))
    if "delivery" in flagged:
        found.value(f"{prefix}delivery_type", details.get("delivery_type", "to_pavement"), _one_of(*DELIVERY_TYPES))
    return "delivery" in flagged


def _check_address(found: _Found, body: Json) -> None:
    address = found.member(body, "", "address", _object)
    if address is None:
        return
    found.member(address, "address.", "address", _text(1, 500))
    found.member(address, "address.", "zip", _text(1, 20))
    found.member(address, "address.", "details", _text(0, 2000))
    point = found.member(address, "address.", "coordinates", _object)
    if point is not None:
        lat = found.member(point, "address.coordinates.", "lat", _number(-90, 90))
        lon = found.member(point, "address.coordinates.", "lon", _number(-180, 180))
        if lat == 0 and lon == 0:
            found.append(("address.coordinates.lat", "number"))


def read_order(body: Json) -> Json:
    """A body that keeps the rules, with its defaults and one way to write things."""
    details = body["partner_details"]
    items = [
        {**item, "id": int(item["id"]), **{flag: item.get(flag, False) for flag in FLAGS}} for item in details["items"]
    ]
    pairs = body["datetime"] if isinstance(body["datetime"], list) else [body["datetime"]]
    details = {"delivery_type": "to_pavement", **details, "items": items}
    return {**body, "datetime": pairs, "partner_details": details}


# What the service keeps


@dataclass(slots=True)
class Booking:
    """One create that took effect: a crew is on its way."""

    number: int
    title: str
    substatus: str
    status: str
    partner: str
    store_title: str
    created_at: str
    order: Json
    """As `read_order` gives it."""
    slot: str | None
    """Store, date and timeslot that it took, with slashes between them."""
    fingerprint: str
    """Equal for bodies that differ in nothing but their images."""
    moved: float
    pace: float
    trouble: bool

    def element(self) -> Json:
        """What answers show (section 2.2)."""
        details = self.order["partner_details"]
        return {
            "_id": self.number,
            "title": self.title,
            "_status": self.status,
            "_substatus": self.substatus,
            "partner": self.partner,
            "partner_details": {
                "instock": details["instock"],
                "store_id": details["store_id"],
                "store_title": self.store_title,
            },
            "created_at": self.created_at,
        }

    def everything(self) -> Json:
        """For the control endpoints."""
        return {**self.element(), "order": self.order, "slot": self.slot, "fingerprint": self.fingerprint}

    def matches(self, text: str) -> bool:
        """Whether a search for `text` finds it (section 2.3)."""
        customer, address = self.order["customer"], self.order.get("address") or {}
        places = [self.title, customer["first_name"], customer["last_name"], address.get("details", "")]
        digits = re.sub(r"[ ()+-]", "", text)
        return (
            text == str(self.number)
            or any(text.casefold() in place.casefold() for place in places)
            or (digits.isdecimal() and digits in re.sub(r"\D", "", customer["phone_number"]))
        )


def fingerprint(body: Json) -> str:
    """See `Booking.fingerprint`."""
    rest = {name: value for name, value in body.items() if name != "image_uuids"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:16]


class Calendar:
    """Who is free when. Callers hold the service's lock."""

    def __init__(self, options: Options, clock: Callable[[], float]) -> None:
        self._options = options
        self._clock = clock
        self._taken: dict[str, int] = {}

    def now(self) -> datetime:
        """The stores' local time."""
        return datetime.fromtimestamp(self._clock(), ZoneInfo(self._options.zone))

    def free(self, store: str, day: str, timeslot: str) -> bool:
        """Whether a crew is free then, and then is not over."""
        over = datetime.fromisoformat(day).replace(hour=TIMESLOTS[timeslot], tzinfo=ZoneInfo(self._options.zone))
        slot = f"{store}/{day}/{timeslot}"
        return over > self.now() and self._taken.get(slot, 0) < self._capacity(slot)

    def _capacity(self, slot: str) -> int:
        known = self._options.slot_calendar
        return known.get(slot, known.get(slot.partition("/")[2], self._options.slot_capacity))

    def shown(self, store: str) -> Json:
        """Section 2.4, its keys in the order of the documents' sample."""
        days = [(self.now().date() + timedelta(ahead)).isoformat() for ahead in range(DAYS_AHEAD + 1)]
        return {day: {name: self.free(store, day, name) for name in ("1217", "1721", "0712")} for day in days}

    def take(self, store: str, pairs: Iterable[Json]) -> str | None:
        """Take the first of `pairs` that is free: the slot, or `None`."""
        for pair in pairs:
            if self.free(store, pair["date"], pair["timeslot"]):
                slot = f"{store}/{pair['date']}/{pair['timeslot']}"
                self._taken[slot] = self._taken.get(slot, 0) + 1
                return slot
        return None

    def fill(self, store: str, pairs: Iterable[Json]) -> None:
        """Others take all that is left of `pairs`."""
        for pair in pairs:
            slot = f"{store}/{pair['date']}/{pair['timeslot']}"
            self._taken[slot] = max(self._taken.get(slot, 0), self._capacity(slot))


class Bookings:
    """All bookings, by `_id`, and how they move on. Callers hold the service's lock."""

    def __init__(self, options: Options, effects: base.EffectLog, clock: Callable[[], float]) -> None:
        self.all: list[Booking] = []
        self._options = options
        self._effects = effects
        self._clock = clock
        self._unfinished: dict[int, Booking] = {}

    def add(self, order: Json, slot: str | None, print_: str) -> Booking:
        """A new one; `_id` counts up from 0."""
        number, details = len(self.all), order["partner_details"]
        title = self._options.stores[details["store_id"]]
        now = self._clock()
        stamp = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds")
        dice = random.Random(f"{self._options.seed}/{number}")
        booking = Booking(
            number=number,
            title=f"{title} #{number}",
            substatus="open" if details["instock"] else "not_in_stock",
            status="open",
            partner=self._options.partner,
            store_title=title,
            created_at=stamp.replace("+00:00", "Z"),
            order=order,
            slot=slot,
            fingerprint=print_,
            moved=now,
            pace=dice.uniform(0.7, 1.3),
            trouble=dice.random() < self._options.trouble_share,
        )
        self.all.append(booking)
        self._unfinished[number] = booking
        return booking

    def settle(self) -> None:
        """Let bookings take the steps that are due by now."""
        seconds = self._options.step_seconds
        if seconds is None:
            return
        for booking in list(self._unfinished.values()):
            wait = seconds * booking.pace
            while booking.number in self._unfinished and booking.moved + wait <= self._clock():
                moved = booking.moved + wait
                if not self.advance(booking):
                    break
                booking.moved = moved

    def advance(self, booking: Booking) -> bool:
        """One step on; `False` when there is none."""
        following = next_substatus(booking.substatus, booking.order["payment_method"], booking.trouble)
        if following is None:
            return False
        self.move(booking, following)
        return True

    def move(self, booking: Booking, substatus: str, status: str | None = None) -> None:
        """Anywhere, also back. `status` follows a substatus that is known, else it stays."""
        booking.moved = self._clock()
        before = booking.substatus
        booking.substatus = substatus
        booking.status = status or STATUS_OF.get(substatus, booking.status)
        if substatus.endswith("_captured") and substatus != before:
            self._effects.record("LIFE", "", booking.number, (substatus,), b"")
        if booking.status == "done":
            self._unfinished.pop(booking.number, None)
        else:
            self._unfinished[booking.number] = booking

    def listed(self, query: str, stores: Iterable[str], statuses: Iterable[str]) -> list[Booking]:
        """Newest first; an empty filter passes all."""
        stores, statuses = set(stores), set(statuses)
        found = [
            booking
            for booking in self.all
            if (not stores or booking.order["partner_details"]["store_id"] in stores)
            and (not statuses or booking.status in statuses)
            and (not query or booking.matches(query))
        ]
        return sorted(found, key=lambda booking: (booking.created_at, booking.number), reverse=True)


@dataclass(slots=True)
class _Token:
    calls: int = 0
    recent: deque[float] = field(default_factory=deque)


# The service


class Service:
    """The backend: every call of section 2, and the control endpoints' side of both ends."""

    def __init__(self, options: Options, clock: Callable[[], float] = time.time) -> None:
        self.options = options
        self.effects = base.EffectLog(clock)
        self.interpositions = base.Interpositions()
        self.sender = Sender(options)
        self._clock = clock
        self._lock = threading.RLock()
        self._throttle = base.Throttle(options)
        self._calendar = Calendar(options, clock)
        self._bookings = Bookings(options, self.effects, clock)
        self._tokens: OrderedDict[str, _Token] = OrderedDict()
        self._images: set[str] = set()

    # The control endpoints' side

    def invent(self, count: int | None, seed: int, plain: bool) -> Iterator[Json]:
        """See `partner_shop.invent`."""
        return partner_shop.invent(count, seed, plain=plain)

    def add_orders(self, specifications: Iterable[Json]) -> list[str]:
        """Orders for the shop to send: see `partner_shop.DEFAULT_ORDER`. Raises `ValueError`."""
        return [self.sender.add(specification) for specification in specifications]

    def all_orders(self) -> Iterator[Json]:
        """What the shop sends or has sent, with every answer."""
        return iter(self.sender.all())

    def one_order(self, order_id: str) -> Json:
        """One of the shop's orders, or a booking by its `_id`. Raises `KeyError`."""
        if order_id.startswith("S"):
            return self.sender.one(order_id)
        with self._lock:
            self._bookings.settle()
            return self._booking(order_id).everything()

    def edit_order(self, order_id: str, patch: Json) -> None:
        """A booking: `_substatus` (its status follows), `_status`, `created_at`, or `advance` by so many steps. The
        shop's order: `send_again` so many times. Raises `KeyError`, `ValueError`."""
        if order_id.startswith("S"):
            partner_shop.refuse_unknown(patch, {"send_again"})
            self.sender.send_again(order_id, int(patch["send_again"]))
            return
        partner_shop.refuse_unknown(patch, {"_status", "_substatus", "created_at", "advance"})
        with self._lock:
            booking = self._booking(order_id)
            booking.created_at = patch.get("created_at", booking.created_at)
            if patch.keys() & {"_status", "_substatus"}:
                self._bookings.move(booking, patch.get("_substatus", booking.substatus), patch.get("_status"))
            for _ in range(patch.get("advance", 0)):
                self._bookings.advance(booking)

    def _booking(self, order_id: str) -> Booking:
        if not re.fullmatch(r"[0-9]{1,9}", order_id) or int(order_id) >= len(self._bookings.all):
            raise KeyError(order_id)
        return self._bookings.all[int(order_id)]

    def all_bookings(self) -> list[Json]:
        """Every create that took effect, oldest first."""
        with self._lock:
            self._bookings.settle()
            return [booking.everything() for booking in self._bookings.all]

    # Every call

    def answer(self, name: str, **arguments: str) -> Response:
        """Check what comes first with every call, do it, and put the answer in its envelope."""
        try:
            with self._lock:
                self._bookings.settle()
                if name not in _OPEN:
                    self._authenticate(name)
                elif (seconds := self._throttle.wait()) is not None:
                    raise ApiError(429, retry_after=seconds)
                data = getattr(self, f"_{name}")(**arguments)
        except ApiError as error:
            return error.response(self.options)
        return json_response({"status": "ok", "statusCode": 200, "data": data})

    def _authenticate(self, name: str) -> None:
        given = request.headers.get("token", "")
        token = self._tokens.get(given)
        if token is None:
            raise ApiError(401)
        if (left := self.options.unauthorized.get(name, 0)) > 0:
            self.options.unauthorized[name] = left - 1
            del self._tokens[given]
            raise ApiError(401)
        token.calls += 1
        if self.options.token_calls is not None and token.calls > self.options.token_calls:
            del self._tokens[given]
            raise ApiError(401)
        seconds = self._throttle.wait()
        if seconds is None and self._is_too_fast(token):
            seconds = 1
        if seconds is not None:
            raise ApiError(429, retry_after=seconds)

    def _is_too_fast(self, token: _Token) -> bool:
        limit = self.options.rate_per_second
        now = self._clock()
        while token.recent and token.recent[0] <= now - 1:
            token.recent.popleft()
        if limit is not None and len(token.recent) >= limit:
            return True
        token.recent.append(now)
        return False

    # The calls, by their names in the path table

    def _authorize(self) -> Json:
        body = _json_body()
        found = _Found()
        given = [found.member(body, "", name, _text()) for name in ("login", "password")]
        if found:
            raise ApiError(422, found)
        if given != [self.options.login, self.options.password]:
            raise ApiError(401)
        token = secrets.token_urlsafe(24)
        self._tokens[token] = _Token()
        while len(self._tokens) > self.options.tokens_alive:
            self._tokens.popitem(last=False)
        stores = [{"store_id": store, "store_title": title} for store, title in self.options.stores.items()]
        user = {"_id": 1, "name": self.options.login, "partner": self.options.partner, "stores": stores}
        return {"token": token, "user": user}

    def _upload(self) -> list[Json]:
        if request.mimetype != "multipart/form-data":
            raise ApiError(415)
        files = [file for _, file in request.files.items(multi=True)]
        if len(files) != 1:
            raise ApiError(422, [("file", "arrayMax" if files else "required")])
        with closing(files[0]) as file:
            raw = file.read()
        if len(raw) > IMAGE_MOST:
            raise ApiError(413)
        if not _is_image(raw):
            raise ApiError(415)
        ident = secrets.token_hex(12)
        self._images.add(ident)
        digest = hashlib.sha256(raw).hexdigest()
        facts = json.dumps({"id": ident, "sha256": digest, "size": len(raw)})
        self.effects.record("POST", request.path, ident, ("upload",), facts.encode(), digest)
        return [{"id": ident, "url": f"https://images.example.com/{ident}.webp", "mimetype": "image/webp"}]

    def _create(self) -> Json:
        body = _json_body()
        only_array = self.options.datetime_shape == "array"
        if found := order_errors(body, self._calendar.now().date(), only_array=only_array):
            raise ApiError(422, found)
        order = read_order(body)
        if found := self._unknown(order):
            raise ApiError(422, found)
        booking = self._bookings.add(order, self._slot(order), fingerprint(body))
        kinds = ("booking", "crew")
        self.effects.record("POST", request.path, booking.number, kinds, request.get_data(), booking.fingerprint)
        return self._shown(booking)

    def _unknown(self, order: Json) -> list[Wrong]:
        """The reference rules of section 5."""
        details = order["partner_details"]
        found = _Found()
        if details["store_id"] not in self.options.stores:
            found.append(("partner_details.store_id", "notFound"))
        found += _unknown_items(details["items"], "partner_details.")
        found += [
            (f"image_uuids[{place}]", "notFound")
            for place, image in enumerate(order["image_uuids"])
            if image not in self._images
        ]
        return found

    def _slot(self, order: Json) -> str | None:
        """Take one; nothing is taken before the goods are there."""
        store, pairs = order["partner_details"]["store_id"], order["datetime"]
        if not order["partner_details"]["instock"]:
            return None
        if self.options.lose_slots > 0:
            self.options.lose_slots -= 1
            self._calendar.fill(store, pairs)
        slot = self._calendar.take(store, pairs)
        if slot is None:
            raise ApiError(422, [("datetime[0].timeslot", "slotUnavailable")])
        return slot

    def _shown(self, booking: Booking) -> Json:
        element = booking.element()
        if patch := self.interpositions.take(request.method, booking.number):
            self.edit_order(str(booking.number), patch)
        return element

    def _order(self, ident: str) -> Json:
        if not self.options.order_by_id:
            raise ApiError(404)
        try:
            return self._shown(self._booking(ident))
        except KeyError:
            raise ApiError(404) from None

    def _list(self) -> list[Json]:
        limit, skip = _page(self.options.limit_default)
        wanted = _filter()
        query = wanted.get("query", "") if self.options.query_works else ""
        rows = self._bookings.listed(query, wanted.get("store_ids", ()), wanted.get("filter", ()))
        if skip:
            skip = max(skip - self.options.page_overlap, 0)
        return [booking.element() for booking in rows[skip : skip + limit]]

    def _slots(self) -> Json:
        return self._calendar.shown(self._store())

    def _items(self) -> list[Json]:
        self._store()
        limit, skip = _page(50)
        return list(CATALOGUE[skip : skip + limit])

    def _find(self) -> list[Json]:
        self._store()
        part = request.args.get("name", "").casefold()
        return [item for item in CATALOGUE if part in item["name"].casefold()][:50]

    def _store(self) -> str:
        store = request.args.get("store_id", "")
        if store not in self.options.stores:
            raise ApiError(422, [("store_id", "notFound" if store else "required")])
        return store

    def _cost(self) -> Json:
        body = _json_body()
        found = _Found()
        for name in ("store_id", "zip"):
            found.member(body, "", name, _text(1))
        found.member(body, "", "delivery_type", _one_of(*DELIVERY_TYPES))
        items = found.member(body, "", "items", _array(1, 200)) or []
        _check_items(found, items, {}, "")
        if not found and body["store_id"] not in self.options.stores:
            found.append(("store_id", "notFound"))
        found = found or _Found(_unknown_items(items, ""))
        if found:
            raise ApiError(422, found)
        return cost(items)


def _unknown_items(items: list[Json], prefix: str) -> list[Wrong]:
    known = {item["id"] for item in CATALOGUE}
    return [
        (f"{prefix}items[{place}].id", "notFound") for place, item in enumerate(items) if int(item["id"]) not in known
    ]


def cost(items: list[Json]) -> Json:
    """Section 2.5, in cents, at made-up prices."""
    value = {"value_items": 0, "value_work": 0, "value_delivery": 0}
    for item in items:
        delivery, assembly = (item.get(flag, False) for flag in FLAGS)
        name = "value_items" if delivery and assembly else "value_work" if assembly else "value_delivery"
        value[name] += item["count"] * (1500 * delivery + 2500 * assembly)
    fee = 500 if sum(value.values()) < 4000 else 0
    return {**value, "value_small_order_fee": fee, "total": sum(value.values()) + fee}


def _is_image(raw: bytes) -> bool:
    return raw.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or (raw[:4] == b"RIFF" and raw[8:12] == b"WEBP")


def _json_body() -> Json:
    raw = request.get_data()
    if len(raw) > BODY_MOST:
        raise ApiError(413)
    if request.mimetype != "application/json":
        raise ApiError(415)
    try:
        body = json.loads(raw)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ApiError(422, [("body", "object")])
    return body


def _page(default: int) -> tuple[int, int]:
    """`limit` and `skip` of the query. Raises `ApiError` 422."""
    values, found = [], []
    for name, usual, least in (("limit", default, 1), ("skip", 0, 0)):
        text = request.args.get(name, str(usual))
        if not re.fullmatch(r"[0-9]{1,9}", text):
            found.append((name, "number"))
        elif int(text) < least:
            found.append((name, "numberMin"))
        else:
            values.append(int(text))
    if found:
        raise ApiError(422, found)
    return values[0], values[1]


def _filter() -> Json:
    """The filter of a list, in brackets or as one JSON text (section 2.3). Raises `ApiError` 422."""
    try:
        given = json.loads(request.args.get("filter", "{}"))
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise ApiError(422, [("filter", "object")])
    for key, text in request.args.items(multi=True):
        if key == "filter[query]":
            given["query"] = text
        elif part := re.fullmatch(r"filter\[(store_ids|filter)\]\[\d*\]", key):
            given.setdefault(part[1], []).append(text)
    found = _Found()
    found.value("filter.query", given.get("query", ""), _text())
    for name in ("store_ids", "filter"):
        for place, value in enumerate(found.value(f"filter.{name}", given.get(name, []), _array(0, 100)) or ()):
            found.value(f"filter.{name}[{place}]", value, _text())
    if found:
        raise ApiError(422, found)
    return given


# The application


def create_app(options: Options | None = None, clock: Callable[[], float] = time.time) -> Flask:
    """The imitation as a WSGI application; `clock` gives seconds since 1970."""
    options = options or Options()
    service = Service(options, clock)
    app = Flask("sandbox.partner", static_folder=None)
    for name, path in options.paths.items():
        method = "POST" if name in ("authorize", "create", "cost", "upload") else "GET"
        app.add_url_rule(path, name, partial(service.answer, name), methods=[method])
    app.add_url_rule(f"{base.CONTROL}bookings", "bookings", lambda: json_response(service.all_bookings()))
    for missing in (NotFound, MethodNotAllowed):
        app.register_error_handler(missing, lambda _: ApiError(404).response(options))
    base.install(app, service)
    return app


def service_of(app: Flask) -> Service:
    """The backend of an application that `create_app` made, for tests in the same process."""
    backend = base.control_of(app).backend
    if not isinstance(backend, Service):
        raise TypeError("not a partner")
    return backend


WEIGHT = 0.25
"""Of the orders that others get. Crews are booked one after the other, and after a lost answer all wait until it is
known what became of it: with more they would pile up."""


def fleet_settings(url: str) -> dict[str, str]:
    """The environment that points a fleet at this imitation, which listens at `url`."""
    known = Options()
    return {
        "PARTNER_URL": url,
        "PARTNER_LOGIN": known.login,
        "PARTNER_PASSWORD": known.password,
        "PARTNER_INBOUND_TOKENS": f"{known.inbound_token}={known.inbound_partner}",
        "PARTNER_INBOUND_USERS": f"{known.inbound_login}:{known.inbound_password}={known.inbound_partner}",
        "PARTNER_STORES": ",".join(f"{store}={title}" for store, title in known.stores.items()),
        "PARTNER_ITEMS": ",".join(f"{item['id']}={item['name']}" for item in CATALOGUE),
        "PARTNER_POLL_SECONDS": "2",
        "PARTNER_TIMEOUT": "5",
        "PARTNER_LOOK_SECONDS": "3",
    }


def point_at(app: Flask, web: str, account: str = "default") -> None:
    """Send the shop's orders to the fleet at `web`. Which account they reach is a matter of the credentials."""
    service_of(app).sender.point_at(web)
