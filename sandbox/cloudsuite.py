"""An imitation of CloudSuite's webshop order API, written from `contracts/cloudsuite.md` and the seed.

Section numbers in this file are those of the contract. What it marks [assumed] is what happens here; the
knobs of its section 10 are fields of `Options`, or requests to the control endpoints of `sandbox.base`.
"""

import copy
import heapq
import json
import math
import random
import re
import secrets
import threading
import time
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from itertools import count as counting
from typing import Any
from urllib.parse import urlencode
from xml.etree import ElementTree
from zoneinfo import ZoneInfo

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from sandbox import base
from sandbox.base import Json, json_response

TOKEN_PATH = "/realms/sandbox/protocol/openid-connect/token"
STATES = ("draft", "quotation", "confirmed", "processing", "done", "cancel")
PAYMENT_STATUSES = ("closed_success", "closed_canceled", "started", "paid", "account", "none")
ORIGIN = "sandbox"
UNKNOWN_PRODUCT = "UNKNOWN-PRODUCT"
"""A product key that the sandbox ERP refuses."""


@dataclass(kw_only=True)
class Options(base.Options):
    """The knobs of section 10 that are not faults."""

    auth: str = "bearer"
    """`bearer` (OAuth client credentials) or `token` (the deprecated scheme with its list of addresses)."""
    client_id: str = "sandbox"
    client_secret: str = "sandbox-secret"
    token: str = "sandbox-token"
    token_lifetime: float = 300.0
    """Seconds. Lowering it also shortens the life of tokens given out before; 0 refuses all of them."""
    allowed_addresses: tuple[str, ...] | None = None
    """With `auth="token"`: client addresses that get no 403."""
    put: str = "replace"
    """`replace`: what a PUT leaves out becomes null or its default. `merge`: it is kept (section 3.4)."""
    strict_transitions: bool = False
    page_size: int = 100
    page_max: int = 100
    foreign_next: bool = False
    """`next` and `previous` name another host (trap 16)."""
    zone: str = "UTC"
    """The zone of the timestamps, which carry none (trap 9)."""
    numeric_strings: bool = False
    """Amounts and quantities as strings, which a client must accept (section 3.2)."""
    addresses: dict[str, int] = field(default_factory=lambda: {"sandbox/MAIN": 1695, "sandbox/INVOICE": 1652})
    """The address book: `origin/key` to id (section 3.5)."""


def fleet_settings(url: str) -> dict[str, str]:
    """The environment that points a fleet at an imitation at `url` with the default options."""
    known = Options()
    return {
        "CLOUDSUITE_URL": url,
        "CLOUDSUITE_TOKEN_URL": url + TOKEN_PATH,
        "CLOUDSUITE_CLIENT_ID": known.client_id,
        "CLOUDSUITE_CLIENT_SECRET": known.client_secret,
        "CLOUDSUITE_POLL_SECONDS": "2",
    }


# Orders as the server keeps them


@dataclass(slots=True)
class Line:
    """One order line; `product` is (key, origin). `delivered` is known only from delivery messages."""

    id: int
    product: tuple[str, str] | None
    description: str
    type: str
    quantity: float
    unit_price: float | None
    erp_line_number: int | None
    delivered: Decimal = Decimal(0)


@dataclass(slots=True)
class Order:
    """One order: the detail object's fields (section 3.2), then what no reply shows."""

    id: int
    reference: str
    create_date: str
    modified_date: str
    order_date: str
    confirm_date: str | None = None
    key: str | None = None
    customer_order_number: str | None = None
    erp_order_number: str | None = None
    state: str = "confirmed"
    payment_status: str = "paid"
    shipment_state: str | None = None
    offline: bool = False
    customer: int = 1324
    webshop: int = 1
    user: int | None = 1260
    shipment_address: int = 1695
    invoice_address: int = 1652
    currency: str = "EUR"
    description: str | None = None
    requested_delivery_date: str | None = None
    paid_amount: float | None = None
    lines: list[Line] = field(default_factory=list)
    pays_at: float | None = None
    pays_as: str = "paid"
    deliveries: tuple[str, ...] = ()
    timeline: tuple[Json, ...] = ()


_ROW = (
    "id",
    "reference",
    "customer_order_number",
    "erp_order_number",
    "state",
    "order_date",
    "create_date",
    "modified_date",
)
_DETAIL = (
    *_ROW,
    "key",
    "payment_status",
    "shipment_state",
    "confirm_date",
    "offline",
    "customer",
    "webshop",
    "user",
    "shipment_address",
    "invoice_address",
    "currency",
    "description",
    "requested_delivery_date",
    "paid_amount",
)
_HIDDEN = ("pays_at", "pays_as", "deliveries", "timeline")
_SETTABLE = frozenset((*_DETAIL, *_HIDDEN))


def _row(order: Order) -> Json:
    return {name: getattr(order, name) for name in _ROW}


def _detail(order: Order, numeric_strings: bool = False) -> Json:
    document: Json = {name: getattr(order, name) for name in _DETAIL}
    document["order_lines"] = [_line(line) for line in order.lines]
    if numeric_strings:
        for place in (document, *document["order_lines"]):
            for name in {"quantity", "unit_price", "paid_amount"} & place.keys():
                place[name] = None if place[name] is None else f"{place[name]:.4f}"
    return document


def _line(line: Line) -> Json:
    key_and_origin = line.product
    return {
        "id": line.id,
        "product": {"key": key_and_origin[0], "origin": key_and_origin[1]} if key_and_origin else None,
        "description": line.description,
        "type": line.type,
        "quantity": line.quantity,
        "unit_price": line.unit_price,
        "erp_line_number": line.erp_line_number,
    }


def _everything(order: Order) -> Json:
    document = _detail(order)
    for shown, line in zip(document["order_lines"], order.lines, strict=True):
        shown["delivered"] = str(line.delivered)
    return {**document, **{name: getattr(order, name) for name in _HIDDEN}}


# What callers send


class ApiError(Exception):
    """An answer that is an error (section 8): status and JSON body, or plain text for `/proxy/`."""

    def __init__(self, status: int, body: Json | str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, body)
        self.status = status
        self.body = body
        self.headers = headers or {}

    def response(self) -> Response:
        """The answer itself."""
        if isinstance(self.body, str):
            return Response(self.body, self.status, self.headers, mimetype="text/plain")
        return json_response(self.body, self.status, self.headers)


def _detail_error(status: int, text: str, headers: dict[str, str] | None = None) -> ApiError:
    return ApiError(status, {"detail": text}, headers)


Cleaner = Callable[[Any], Any]
"""Returns the value to store; raises `ValueError` with the words for the 400."""


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("Not a valid string.")
    return value


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("A valid integer is required.")
    try:
        return int(value)
    except ValueError:
        raise ValueError("A valid integer is required.") from None


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("A valid number is required.")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("A valid number is required.")
    return number


def _day(value: Any) -> str:
    try:
        return date.fromisoformat(value).isoformat()
    except (TypeError, ValueError):
        raise ValueError("Date has wrong format. Use one of these formats instead: YYYY-MM-DD.") from None


def _naive_stamp(value: Any) -> str:
    try:
        stamp = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        stamp = None
    if stamp is None or stamp.tzinfo is not None:
        raise ValueError("Enter a valid date/time: YYYY-MM-DDTHH:MM:SS.")
    return stamp.isoformat(timespec="microseconds")


def _boolean(value: Any) -> bool:
    try:
        return {"true": True, "false": False}[str(value).lower()]
    except KeyError:
        raise ValueError("Must be true or false.") from None


def _one_of(choices: tuple[str, ...]) -> Cleaner:
    def clean(value: Any) -> str:
        if value not in choices:
            raise ValueError(f'"{value}" is not a valid choice.')
        return str(value)

    return clean


def _or_null(clean: Cleaner) -> Cleaner:
    return lambda value: None if value is None else clean(value)


def _currency(value: Any) -> str:
    if not re.fullmatch(r"[A-Z]{3}", _text(value)):
        raise ValueError("Not a valid currency.")
    return str(value)


def _product(value: Any) -> tuple[str, str]:
    if not isinstance(value, dict):
        raise ValueError("A product has a key and an origin.")
    return _text(value.get("key")), _text(value.get("origin"))


_WRITABLE: dict[str, Cleaner] = {
    "key": _or_null(_text),
    "customer_order_number": _or_null(_text),
    "erp_order_number": _or_null(_text),
    "state": _one_of(STATES),
    "order_date": _day,
    "shipment_state": _or_null(_one_of(("sent",))),
    "customer": _integer,
    "webshop": _integer,
    "user": _or_null(_integer),
    "shipment_address": _integer,
    "invoice_address": _integer,
    "currency": _currency,
    "description": _or_null(_text),
    "requested_delivery_date": _or_null(_day),
    "paid_amount": _or_null(_number),
}
"""Everything else is read-only, and ignored in a body (section 3.4)."""

_LINE: dict[str, Cleaner] = {
    "product": _or_null(_product),
    "description": _text,
    "type": _text,
    "quantity": _number,
    "unit_price": _or_null(_number),
    "erp_line_number": _or_null(_integer),
}
_LINE_DEFAULTS: Json = {"product": None, "description": "", "unit_price": None, "erp_line_number": None}
_PUT_REQUIRED = ("customer", "state", "currency", "shipment_address", "invoice_address", "webshop")
_POST_REQUIRED = ("erp_order_number", "state", "order_date", "currency", "webshop", "customer", "user")
_POST_LINE: dict[str, Cleaner] = {
    "product": _product,
    "description": _text,
    "type": _one_of(("line",)),
    "quantity": _number,
    "erp_line_number": _integer,
    "unit_price": _number,
}

_REQUIRED = "This field is required."


def _clean(body: Json, cleaners: Mapping[str, Cleaner], required: Iterable[str] = ()) -> Json:
    """The known fields of `body`, cleaned. Raises `ApiError` 400 naming every bad or missing field."""
    errors = {name: [_REQUIRED] for name in required if name not in body}
    cleaned: Json = {}
    for name in cleaners.keys() & body.keys():
        try:
            cleaned[name] = cleaners[name](body[name])
        except ValueError as error:
            errors[name] = [str(error)]
    if errors:
        raise ApiError(400, errors)
    return cleaned


def _clean_lines(entries: Any, cleaners: Mapping[str, Cleaner], required: Iterable[str]) -> list[Json]:
    """Each entry's known fields, and its `id` if it has one. Raises `ApiError` 400."""
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ApiError(400, {"order_lines": ["Expected a list of items, and at least one of them."]})
    cleaned = []
    errors: list[Any] = []
    for entry in entries:
        try:
            cleaned.append({**_clean(entry, cleaners, required), "id": _known_id(entry.get("id"))})
            errors.append({})
        except ApiError as error:
            errors.append(error.body)
    if any(errors):
        raise ApiError(400, {"order_lines": errors})
    return cleaned


def _known_id(value: Any) -> int:
    """A line's id if the entry has one; 0 is nobody's."""
    return value if isinstance(value, int) else 0


# Filters


@dataclass(frozen=True)
class _Filter:
    clean: Cleaner
    passes: Callable[[Order, Any], bool]


def _bound(name: str, lower: bool, days: bool = False) -> _Filter:
    def passes(order: Order, bound: str) -> bool:
        value = getattr(order, name)
        return value is not None and (value >= bound if lower else value <= bound)

    def as_day(value: Any) -> str:
        return _naive_stamp(value)[:10]

    return _Filter(as_day if days else _naive_stamp, passes)


_FILTERS: dict[str, _Filter] = {
    "state": _Filter(_one_of(STATES), lambda order, value: order.state == value),
    "reference": _Filter(_text, lambda order, value: order.reference == value),
    "webshop": _Filter(_integer, lambda order, value: order.webshop == value),
    "offline": _Filter(_boolean, lambda order, value: order.offline is value),
    **{
        f"{name}__{side}": _bound(name, side == "gte", days=name == "order_date")
        for name in ("confirm_date", "create_date", "modified_date", "order_date")
        for side in ("gte", "lte")
    },
}

Filters = tuple[tuple[str, Any], ...]
"""Names and cleaned values, sorted by name."""


def _passes(order: Order, filters: Filters) -> bool:
    return all(_FILTERS[name].passes(order, value) for name, value in filters)


class Store:
    """All orders in memory. Callers hold `lock` while they use it.

    A list under a filter is made once and then kept up to date order by order, so that paging through 100,000
    confirmed orders does not look at all of them for every page, not even while others change them.
    """

    _LISTS_KEPT = 12

    def __init__(self, options: Options, clock: Callable[[], float]) -> None:
        self.lock = threading.RLock()
        self.orders: dict[int, Order] = {}
        self._options = options
        self._clock = clock
        self._next_id = 1001
        self._line_ids = counting(5001)
        self._lists: OrderedDict[Filters, list[int]] = OrderedDict()
        self._found_by: dict[tuple[str, str], list[int]] = {}
        self._payments: list[tuple[float, int]] = []
        self._newest: Order | None = None

    def stamp(self) -> str:
        """Now, as CloudSuite writes it: in the configured zone, without saying so."""
        now = datetime.fromtimestamp(self._clock(), ZoneInfo(self._options.zone))
        return now.replace(tzinfo=None).isoformat(timespec="microseconds")

    def new_line(self, **values: Any) -> Line:
        """A line with a new id."""
        return Line(id=next(self._line_ids), **{**_LINE_DEFAULTS, **values})

    def add(self, values: Json, *, twin: bool = False, pays_after_seconds: float | None = None) -> Order:
        """A new order. `twin` gives it the newest order's reference. Raises `ValueError` for a taken id."""
        number = values.get("id") or self._next_id
        if number in self.orders:
            raise ValueError(f"order {number} exists")
        now = self.stamp()
        defaults = {
            "reference": self._newest.reference if twin and self._newest else f"CS{number}",
            "create_date": now,
            "modified_date": now,
            "order_date": now[:10],
        }
        order = Order(**{**defaults, **values, "id": number})
        if order.confirm_date is None and order.state not in ("draft", "quotation"):
            order.confirm_date = now
        self._next_id = max(self._next_id, number + 1)
        self.orders[number] = self._newest = order
        self.pay_later(order, pays_after_seconds)
        self._file(order)
        return order

    def change(self, order: Order, values: Json, lines: list[Line] | None = None) -> Order:
        """Set fields, and all lines if given; the order as it was before."""
        before = copy.copy(order)
        self._unfile(order)
        for name, value in values.items():
            setattr(order, name, value)
        if lines is not None:
            order.lines = lines
        order.modified_date = values.get("modified_date", self.stamp())
        if order.state == "confirmed" and order.confirm_date is None:
            order.confirm_date = order.modified_date
        self._file(order)
        return before

    def pay_later(self, order: Order, seconds: float | None) -> None:
        """Let `payment_status` turn into `pays_as` after so many seconds (section 5.2)."""
        if seconds is not None:
            order.pays_at = self._clock() + seconds
            heapq.heappush(self._payments, (order.pays_at, order.id))

    def settle_payments(self) -> None:
        """Payments that have arrived by now. Neither `state` nor `confirm_date` moves with them."""
        while self._payments and self._payments[0][0] <= self._clock():
            due, number = heapq.heappop(self._payments)
            order = self.orders[number]
            if order.pays_at == due and order.payment_status == "started":
                self.change(order, {"payment_status": order.pays_as, "pays_at": None})

    def find(self, name: str, value: str) -> list[Order]:
        """Orders by `key`, `reference` or `erp_order_number`, oldest first."""
        return [self.orders[number] for number in sorted(self._found_by.get((name, value), ()))]

    def listed(self, filters: Filters) -> list[int]:
        """Ids in ascending order; not a copy."""
        for name, value in filters:
            if name == "reference":
                return [order.id for order in self.find(name, value) if _passes(order, filters)]
        if filters not in self._lists:
            self._lists[filters] = sorted(n for n, order in self.orders.items() if _passes(order, filters))
        self._lists.move_to_end(filters)
        if len(self._lists) > self._LISTS_KEPT:
            self._lists.popitem(last=False)
        return self._lists[filters]

    def _file(self, order: Order) -> None:
        for entry in self._entries(order):
            self._found_by.setdefault(entry, []).append(order.id)
        for filters, numbers in self._lists.items():
            place = bisect_left(numbers, order.id)
            there = place < len(numbers) and numbers[place] == order.id
            passes = _passes(order, filters)
            if passes and not there:
                insort(numbers, order.id)
            elif there and not passes:
                del numbers[place]

    def _unfile(self, order: Order) -> None:
        for entry in self._entries(order):
            numbers = self._found_by[entry]
            numbers.remove(order.id)
            if not numbers:
                del self._found_by[entry]

    def _entries(self, order: Order) -> Iterator[tuple[str, str]]:
        for name in ("key", "reference", "erp_order_number"):
            value = getattr(order, name)
            if value is not None:
                yield name, value


# What a write changed, for the effect log


def _kinds(write: str, before: Order, after: Order) -> tuple[str, ...]:
    """`write`, then `state:confirmed->processing`, `erp_order_number`, `shipment_state:sent` and so on."""
    kinds = [write]
    for name in _WRITABLE:
        old, new = getattr(before, name), getattr(after, name)
        if old == new:
            continue
        if new is None:
            kinds.append(f"{name}:cleared")
        elif name == "state":
            kinds.append(f"state:{old}->{new}")
        else:
            kinds.append(f"{name}:{new}" if name == "shipment_state" else name)
    return (*kinds, *_line_kinds(before.lines, after.lines))


def _line_kinds(before: list[Line], after: list[Line]) -> Iterator[str]:
    old, new = {line.id: line for line in before}, {line.id: line for line in after}
    if old.keys() - new.keys():
        yield "lines_removed"
    if new.keys() - old.keys():
        yield "lines_added"
    pairs = [(old.get(number), line) for number, line in new.items()]
    if any(line.erp_line_number != (was.erp_line_number if was else None) for was, line in pairs):
        yield "erp_line_number"
    if any(was and _content(was) != _content(line) for was, line in pairs):
        yield "lines_changed"


def _content(line: Line) -> tuple[object, ...]:
    return line.product, line.description, line.type, line.quantity, line.unit_price


# Delivery messages


@dataclass(frozen=True)
class _Delivered:
    line_number: int
    order_number: str
    quantity: Decimal


@dataclass(frozen=True)
class _Desadv:
    number: str
    items: tuple[_Delivered, ...]


def _parse_desadv(raw: bytes) -> _Desadv:
    """Section 3.6. Raises `ApiError` 400, in plain words."""
    try:
        root = ElementTree.fromstring(raw)
    except ElementTree.ParseError as error:
        raise ApiError(400, f"not XML: {error}") from None
    if root.tag != "Desadv":
        raise ApiError(400, "root element must be Desadv")
    number = _xml_text(root, "DesadvHeader/DesadvNumber")
    for path in ("DesadvHeader/DesadvDate", "DesadvHeader/PlannedDeliveryDate"):
        _xml_value(root, path, _day)
    transport = "DesadvHeader/TransportDetails"
    for path in (f"{transport}/TransportModeCode", f"{transport}/MeansOfTransport/Identification"):
        if root.find(path) is None:
            raise ApiError(400, f"missing element: {path}")
    items = root.findall("DesadvDetail/Packaging/LineItems/Item")
    if not items:
        raise ApiError(400, "missing element: DesadvDetail/Packaging/LineItems/Item")
    return _Desadv(number, tuple(_parse_item(item) for item in items))


def _parse_item(item: ElementTree.Element) -> _Delivered:
    _xml_text(item, "SellerItemID")
    return _Delivered(
        _xml_value(item, "ItemNum", _integer),
        _xml_text(item, "OrderNum"),
        _xml_value(item, "QuantityValue", _quantity_12_4),
    )


def _xml_text(parent: ElementTree.Element, path: str) -> str:
    text = (parent.findtext(path) or "").strip()
    if not text:
        raise ApiError(400, f"missing element: {path}")
    return text


def _xml_value(parent: ElementTree.Element, path: str, clean: Cleaner) -> Any:
    try:
        return clean(_xml_text(parent, path))
    except ValueError as error:
        raise ApiError(400, f"{path}: {error}") from None


def _quantity_12_4(text: str) -> Decimal:
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal("NaN")
    if not value.is_finite() or value <= 0 or value >= 10**8 or value != round(value, 4):
        raise ValueError("a decimal(12,4) above 0 is needed")
    return value


# The application


class CloudSuite:
    """The backend: every call of the contract, on one `Store`."""

    def __init__(self, options: Options, clock: Callable[[], float] = time.time) -> None:
        self.options = options
        self.effects = base.EffectLog(clock)
        self.interpositions = base.Interpositions()
        self._clock = clock
        self._throttle = base.Throttle(options)
        self._store = Store(options, clock)
        self._tokens: dict[str, float] = {}
        self._desadv_numbers: set[str] = set()

    # The control endpoints' side

    def invent(self, count: int | None, seed: int, plain: bool) -> Iterator[Json]:
        """See the function of the same name."""
        return invent(count, seed, plain=plain)

    def add_orders(self, specifications: Iterable[Json]) -> list[int]:
        """Create orders: any detail field, `pays_after_seconds`, `pays_as`, `twin`. Raises `ValueError`."""
        return [self._add_order(dict(specification)) for specification in specifications]

    def _add_order(self, values: Json) -> int:
        own = {name: values.pop(name) for name in ("twin", "pays_after_seconds") if name in values}
        lines = values.pop("order_lines", [_SPARE_LINE])
        _refuse_unknown(values, _SETTABLE)
        with self._store.lock:
            order = self._store.add({**values, "lines": self._edited_lines(lines, {})}, **own)
            return order.id

    def all_orders(self) -> Iterator[Json]:
        """Every order with its hidden fields. Each is true for itself; not a snapshot of all."""
        with self._store.lock:
            self._store.settle_payments()
            orders = list(self._store.orders.values())
        return (_everything(order) for order in orders)

    def one_order(self, order_id: str) -> Json:
        """One order with its hidden fields. Raises `KeyError`."""
        with self._store.lock:
            self._store.settle_payments()
            return _everything(self._store.orders[int(order_id)])

    def edit_order(self, order_id: str, patch: Json) -> None:
        """A person's edit of any field but `id`; lines by their `id`. Raises `KeyError`, `ValueError`."""
        values = {name: value for name, value in patch.items() if name != "order_lines"}
        seconds = values.pop("pays_after_seconds", None)
        _refuse_unknown(values, _SETTABLE - {"id"})
        with self._store.lock:
            order = self._store.orders[int(order_id)]
            lines = None
            if "order_lines" in patch:
                lines = self._edited_lines(patch["order_lines"], {line.id: line for line in order.lines})
            self._store.change(order, values, lines)
            self._store.pay_later(order, seconds)

    def _edited_lines(self, entries: Any, known: dict[int, Line]) -> list[Line]:
        try:
            cleaned = _clean_lines(entries, _LINE, ())
        except ApiError as error:
            raise ValueError(json.dumps(error.body)) from None
        return self._lines(cleaned, known, merge=True)

    def _lines(self, entries: list[Json], known: dict[int, Line], *, merge: bool) -> list[Line]:
        """Lines from cleaned entries: a known id stays, with what was delivered; others get a new one."""
        return [self._one_line(dict(entry), known, merge) for entry in entries]

    def _one_line(self, entry: Json, known: dict[int, Line], merge: bool) -> Line:
        old = known.get(entry.pop("id"))
        if old is None:
            return self._store.new_line(**{"type": "line", "quantity": 1.0, **entry})
        line = copy.copy(old)
        for name, value in {**({} if merge else _LINE_DEFAULTS), **entry}.items():
            setattr(line, name, value)
        return line

    # Before every call

    def admit(self) -> Response | None:
        """Redirects, credentials and the rate limit (sections 1, 2, 9), in Django's order."""
        path = request.path
        if not path.startswith(("/api/", "/proxy/")):
            return None
        if request.method in ("POST", "PUT", "PATCH") and not path.endswith("/"):
            query = request.query_string.decode()
            return Response(status=301, headers={"Location": f"{path}/" + (f"?{query}" if query else "")})
        self._authenticate()
        if (seconds := self._throttle.wait()) is not None:
            text = f"Request was throttled. Expected available in {seconds} seconds."
            raise _detail_error(429, text, {"Retry-After": str(seconds)})
        return None

    def _authenticate(self) -> None:
        scheme, _, credential = request.headers.get("Authorization", "").partition(" ")
        expected = {"bearer": "Bearer", "token": "Token"}[self.options.auth]
        challenge = {"WWW-Authenticate": expected}
        if scheme != expected:
            raise _detail_error(401, "Authentication credentials were not provided.", challenge)
        if not self._is_valid(credential):
            raise _detail_error(401, "Invalid token.", challenge)
        allowed = self.options.allowed_addresses
        if expected == "Token" and allowed is not None and request.remote_addr not in allowed:
            raise _detail_error(403, "You do not have permission to perform this action.")

    def _is_valid(self, credential: str) -> bool:
        if self.options.auth == "token":
            return secrets.compare_digest(credential.encode(), self.options.token.encode())
        issued = self._tokens.get(credential)
        return issued is not None and self._clock() < issued + self.options.token_lifetime

    def issue_token(self) -> Response:
        """`POST TOKEN_PATH`: client credentials in the form body (section 2)."""
        form = request.form
        if form.get("grant_type") != "client_credentials":
            return _token_error(400, "unsupported_grant_type", "Unsupported grant_type")
        given = form.get("client_id", ""), form.get("client_secret", "")
        if given != (self.options.client_id, self.options.client_secret):
            return _token_error(401, "unauthorized_client", "Invalid client or Invalid client credentials")
        if "openid" not in form.get("scope", "").split():
            return _token_error(400, "invalid_scope", "Invalid scopes")
        token = secrets.token_urlsafe(24)
        with self._store.lock:
            oldest = self._clock() - self.options.token_lifetime
            self._tokens = {known: issued for known, issued in self._tokens.items() if issued > oldest}
            self._tokens[token] = self._clock()
        lifetime = int(self.options.token_lifetime)
        document = {"access_token": token, "expires_in": lifetime, "token_type": "Bearer", "scope": "openid"}
        return json_response(document)

    # Orders

    def list_orders(self) -> Response:
        """`GET /api/order/` (sections 3.1 and 4)."""
        query = dict(request.args.items(multi=True))
        filters = _read_filters(query)
        limit = min(_page_number(query, "limit", self.options.page_size, 1), self.options.page_max)
        offset = _page_number(query, "offset", 0, 0)
        with self._store.lock:
            self._store.settle_payments()
            numbers = self._store.listed(filters)
            total = len(numbers)
            rows = [_row(self._store.orders[number]) for number in numbers[offset : offset + limit]]
        following = self._page_url(query, limit, offset + limit) if offset + limit < total else None
        previous = self._page_url(query, limit, max(offset - limit, 0)) if offset else None
        return json_response({"count": total, "next": following, "previous": previous, "results": rows})

    def _page_url(self, query: dict[str, str], limit: int, offset: int) -> str:
        pairs = {name: value for name, value in query.items() if name not in ("limit", "offset")}
        pairs["limit"] = str(limit)
        if offset:
            pairs["offset"] = str(offset)
        host = "https://elsewhere.example.com/" if self.options.foreign_next else request.host_url
        return f"{host.rstrip('/')}/api/order/?{urlencode(pairs)}"

    def read_order(self, ident: str) -> Response:
        """`GET /api/order/{id}/` or `ext:<key>` (section 3.2)."""
        with self._store.lock:
            self._store.settle_payments()
            order = self._found(ident)
            return self._answer(order)

    def patch_order(self, ident: str) -> Response:
        """`PATCH /api/order/{id}/` (section 3.3)."""
        body = _json_body()
        if "order_lines" in body:
            raise ApiError(400, {"order_lines": ["Lines cannot be changed with PATCH."]})
        with self._store.lock:
            order = self._found(ident)
            values = _clean(body, _WRITABLE)
            self._check_write(order, values)
            return self._changed("patch", order, values)

    def put_order(self, ident: str) -> Response:
        """`PUT /api/order/{id}/` (section 3.4): replaces or merges, and creates."""
        body = _json_body()
        with self._store.lock:
            order = self._known(ident)
            if order is None:
                return self._create_by_put(ident, body)
            self._check_reference(order, body)
            merge = self.options.put == "merge"
            values = _clean(body, _WRITABLE, () if merge else (*_PUT_REQUIRED, "order_lines"))
            self._check_write(order, values)
            lines = None
            if "order_lines" in body:
                needed = () if merge else ("type", "quantity")
                entries = _clean_lines(body["order_lines"], _LINE, needed)
                lines = self._lines(entries, {line.id: line for line in order.lines}, merge=merge)
            return self._changed("put", order, values if merge else {**self._defaults(), **values}, lines)

    def _create_by_put(self, ident: str, body: Json) -> Response:
        if not ident.isdigit() or int(ident) == 0:
            raise _detail_error(404, "Not found.")
        values = _clean(body, _WRITABLE, (*_PUT_REQUIRED, "order_lines"))
        self._check_key(values)
        lines = self._lines(_clean_lines(body["order_lines"], _LINE, ("type", "quantity")), {}, merge=False)
        created = {**self._defaults(), **values, "id": int(ident), "payment_status": "none", "lines": lines}
        return self._created("put", self._store.add(created))

    def post_order(self) -> Response:
        """`POST /api/order/` (section 3.5): an offline order."""
        body = _json_body()
        for name in ("shipment_address", "invoice_address"):
            if name not in body and f"{name}_key" in body:
                body[name] = self._address_of(body, f"{name}_key")
        required = (*_POST_REQUIRED, "shipment_address", "invoice_address", "order_lines")
        values = _clean(body, _WRITABLE, required)
        entries = _clean_lines(body["order_lines"], _POST_LINE, _POST_LINE)
        with self._store.lock:
            self._check_key(values)
            lines = self._lines(entries, {}, merge=False)
            order = self._store.add({**values, "offline": True, "payment_status": "account", "lines": lines})
            return self._created("post", order)

    def _address_of(self, body: Json, name: str) -> int:
        try:
            key, origin = _product(body[name])
        except ValueError:
            raise ApiError(400, {name: ["An address has a key and an origin."]}) from None
        number = self.options.addresses.get(f"{origin}/{key}")
        if number is None:
            raise ApiError(400, {name: ["Address does not exist."]})
        return number

    def read_address(self, origin: str, key: str) -> Response:
        """`GET /api/origin/{origin}/address/{key}/` (section 3.5)."""
        number = self.options.addresses.get(f"{origin}/{key}")
        if number is None:
            raise _detail_error(404, "Not found.")
        return json_response({"id": number, "origin": origin, "key": key})

    def _defaults(self) -> Json:
        """What a replacing PUT makes of a writable field that it leaves out."""
        optional = _WRITABLE.keys() - {*_PUT_REQUIRED, "order_date"}
        return {**dict.fromkeys(optional), "order_date": self._store.stamp()[:10]}

    def _known(self, ident: str) -> Order | None:
        if ident.startswith("ext:"):
            return next(iter(self._store.find("key", ident.removeprefix("ext:"))), None)
        return self._store.orders.get(int(ident)) if ident.isdigit() else None

    def _found(self, ident: str) -> Order:
        order = self._known(ident)
        if order is None:
            raise _detail_error(404, "Not found.")
        return order

    def _check_reference(self, order: Order, body: Json) -> None:
        if body.get("reference", order.reference) != order.reference:
            raise ApiError(400, {"reference": ["The reference of an order cannot be changed."]})

    def _check_write(self, order: Order, values: Json) -> None:
        if values.get("key") != order.key:
            self._check_key(values)
        if self.options.strict_transitions and "state" in values:
            _check_transition(order.state, values["state"])

    def _check_key(self, values: Json) -> None:
        if values.get("key") is not None and self._store.find("key", values["key"]):
            raise ApiError(400, {"key": ["order with this key already exists."]})

    def _changed(self, write: str, order: Order, values: Json, lines: list[Line] | None = None) -> Response:
        before = self._store.change(order, values, lines)
        self._record(order, _kinds(write, before, order))
        return self._answer(order)

    def _created(self, write: str, order: Order) -> Response:
        self._record(order, (write, "created"))
        return self._answer(order, 201)

    def _record(self, order: Order, kinds: tuple[str, ...], key: str | None = None) -> None:
        self.effects.record(request.method, request.path, order.id, kinds, request.get_data(), key)

    def _answer(self, order: Order, status: int = 200) -> Response:
        answer = json_response(_detail(order, self.options.numeric_strings), status)
        if patch := self.interpositions.take(request.method, order.id):
            self.edit_order(str(order.id), patch)
        return answer

    # The older calls under /proxy/

    def deliver(self) -> Response:
        """`POST /proxy/des_adv_xml/delivery/` (section 3.6). Stores all of a message or nothing."""
        if request.mimetype not in ("application/xml", "text/xml"):
            raise _detail_error(415, f'Unsupported media type "{request.mimetype}" in request.')
        shop = _required_parameter("shop")
        _required_parameter("user")
        message = _parse_desadv(request.get_data())
        with self._store.lock:
            if message.number in self._desadv_numbers:
                raise ApiError(400, f"DesadvNumber {message.number} is not unique")
            found = [(item, self._order_of(item.order_number, shop)) for item in message.items]
            for item, order in found:
                if item.line_number not in {line.erp_line_number for line in order.lines}:
                    raise ApiError(400, f"ItemNum {item.line_number} unknown in order {item.order_number}")
            self._desadv_numbers.add(message.number)
            for item, order in found:
                _deliver(order, item)
            for order in {order.id: order for _, order in found}.values():
                self._note_delivery(order, message.number)
        return Response("OK", mimetype="text/plain")

    def _order_of(self, number: str, shop: int) -> Order:
        orders = self._store.find("erp_order_number", number) or self._store.find("reference", number)
        if not orders:
            raise ApiError(400, f"OrderNum {number} unknown")
        return next((order for order in orders if order.webshop == shop), orders[0])

    def _note_delivery(self, order: Order, number: str) -> None:
        values: Json = {"deliveries": (*order.deliveries, number)}
        if all(line.delivered >= Decimal(str(line.quantity)) for line in order.lines if line.type == "line"):
            values["shipment_state"] = "sent"
        before = self._store.change(order, values)
        self._record(order, _kinds("desadv", before, order), key=number)

    def add_status_text(self) -> Response:
        """`POST /proxy/v1/orderstatus/` (section 3.7): one entry more in the timeline, whatever it says."""
        _required_parameter("shop")
        body = _json_body()
        if "dateTime" not in body:
            raise ApiError(400, {"dateTime": [_REQUIRED]})
        with self._store.lock:
            orders = self._store.find("reference", str(body.get("CloudsuiteOrderId")))
            orders = orders or self._store.find("erp_order_number", str(body.get("orderId")))
            if not orders:
                raise ApiError(400, {"non_field_errors": ["Order does not exist."]})
            self._store.change(orders[0], {"timeline": (*orders[0].timeline, body)})
            self._record(orders[0], ("status_text",))
        return json_response({})


def _refuse_unknown(values: Json, settable: frozenset[str]) -> None:
    if unknown := values.keys() - settable:
        raise ValueError(f"not a field to set: {', '.join(sorted(unknown))}")


def _token_error(status: int, error: str, description: str) -> Response:
    return json_response({"error": error, "error_description": description}, status)


def _check_transition(old: str, new: str) -> None:
    if new == old or (new == "cancel" and old != "done"):
        return
    if old in ("done", "cancel") or STATES.index(new) < STATES.index(old):
        raise ApiError(400, {"state": [f"Not possible from {old} to {new}."]})


def _deliver(order: Order, item: _Delivered) -> None:
    """Add to the first line of that number that is not complete yet; over-delivery goes to the last one."""
    lines = [line for line in order.lines if line.erp_line_number == item.line_number]
    open_lines = [line for line in lines if line.delivered < Decimal(str(line.quantity))]
    (open_lines or lines[-1:])[0].delivered += item.quantity


def _read_filters(query: dict[str, str]) -> Filters:
    """The known filters of a query; unknown and empty ones are ignored. Raises `ApiError` 400."""
    given = {name: value for name, value in query.items() if value}
    cleaned = _clean(given, {name: known.clean for name, known in _FILTERS.items()})
    return tuple(sorted(cleaned.items()))


def _page_number(query: dict[str, str], name: str, default: int, least: int) -> int:
    number = int(_clean(query, {name: _integer}).get(name, default))
    if number < least:
        raise ApiError(400, {name: [f"Ensure this value is greater than or equal to {least}."]})
    return number


def _required_parameter(name: str) -> int:
    if name not in request.args:
        raise ApiError(400, f"missing parameter: {name}")
    try:
        return _integer(request.args[name])
    except ValueError as error:
        raise ApiError(400, f"{name}: {error}") from None


def _json_body() -> Json:
    if request.mimetype != "application/json":
        raise _detail_error(415, f'Unsupported media type "{request.mimetype}" in request.')
    try:
        body = json.loads(request.get_data())
    except ValueError as error:
        raise _detail_error(400, f"JSON parse error - {error}") from None
    if not isinstance(body, dict):
        raise ApiError(400, {"non_field_errors": ["Invalid data. Expected a dictionary."]})
    return body


def create_app(options: Options | None = None, clock: Callable[[], float] = time.time) -> Flask:
    """The imitation as a WSGI application; `clock` gives seconds since 1970. Tokens are at `TOKEN_PATH`."""
    shop = CloudSuite(options or Options(), clock)
    app = Flask("sandbox.cloudsuite", static_folder=None)
    app.url_map.strict_slashes = False  # a read may leave out the slash; `admit` sees to writes
    for method, rule, view in (
        ("POST", TOKEN_PATH, shop.issue_token),
        ("GET", "/api/order/", shop.list_orders),
        ("POST", "/api/order/", shop.post_order),
        ("GET", "/api/order/<path:ident>/", shop.read_order),
        ("PATCH", "/api/order/<path:ident>/", shop.patch_order),
        ("PUT", "/api/order/<path:ident>/", shop.put_order),
        ("GET", "/api/origin/<origin>/address/<path:key>/", shop.read_address),
        ("POST", "/proxy/des_adv_xml/delivery/", shop.deliver),
        ("POST", "/proxy/v1/orderstatus/", shop.add_status_text),
    ):
        app.add_url_rule(rule, view.__name__, view, methods=[method])
    app.before_request(shop.admit)
    app.register_error_handler(ApiError, ApiError.response)
    app.register_error_handler(HTTPException, _http_error)
    base.install(app, shop)
    return app


def _http_error(error: HTTPException) -> Response:
    """Wrong address or verb (section 8)."""
    text = error.description or error.name
    headers = {}
    if isinstance(error, MethodNotAllowed):
        text = f'Method "{request.method}" not allowed.'
        headers["Allow"] = ", ".join(sorted(error.valid_methods or ()))
    if error.code == 404:
        text = "Not found."
    return json_response({"detail": text}, error.code or 500, headers)


# Invented orders

_CATALOGUE = (
    ("124_STUK", "Safety gloves, size 9", 4.95, False),
    ("130_STUK", "Hearing protection", 18.5, False),
    ("142_DOOS", "Cardboard box 40 x 30 x 30", 1.12, False),
    ("155_STUK", "Spirit level 60 cm", 27.4, False),
    ("160_STUK", "Cordless screwdriver", 129.0, False),
    ("171_SET", "Drill bits, set of 13", 22.75, False),
    ("123_KG", "Grass seed", 7.4, True),
    ("180_M", "Cable, per metre", 1.85, True),
    ("185_M2", "Underlay, per square metre", 3.2, True),
    ("190_L", "Wood oil", 14.6, True),
)
"""Key, description, price, and whether fractions of it are sold."""

_NAMES = ("alex", "billie", "charlie", "dana", "eli", "frankie", "gerrie", "hanne")
_SPARE_LINE: Json = {
    "product": {"key": "124_STUK", "origin": ORIGIN},
    "description": "Safety gloves, size 9",
    "quantity": 2.0,
    "unit_price": 4.95,
}


def invent(count: int | None, seed: int, *, plain: bool = False) -> Iterator[Json]:
    """Specifications for `CloudSuite.add_orders`, always the same for a seed; endless without `count`.

    Most are paid or on account. A few wait for their payment, were never paid, are offline, have the
    reference of the order before them in another webshop, or contain `UNKNOWN_PRODUCT`; not if `plain`.
    """
    dice = random.Random(seed)
    for _ in counting() if count is None else range(count):
        order = _ordinary(dice)
        yield order if plain else {**order, **_oddity(dice, order)}


def _ordinary(dice: random.Random) -> Json:
    lines = [_invented_line(dice) for _ in range(dice.randint(2, 5))]
    if dice.random() < 0.25:
        freight = {"product": None, "description": "Freight", "type": "freight", "quantity": 1.0}
        lines.append({**freight, "unit_price": 6.95})
    status = dice.choices(("paid", "closed_success", "account"), (5, 3, 2))[0]
    total = round(sum(line["quantity"] * line["unit_price"] for line in lines) * 1.21, 2)
    name = dice.choice(_NAMES)
    return {
        "customer": dice.randint(1300, 1399),
        "user": dice.randint(1200, 1299),
        "customer_order_number": f"PO-{dice.randint(10000, 99999)}" if dice.random() < 0.4 else None,
        "description": f"Please mail {name}@example.com before delivery" if dice.random() < 0.2 else None,
        "payment_status": status,
        "paid_amount": None if status == "account" else total,
        "order_lines": lines,
    }


def _invented_line(dice: random.Random) -> Json:
    key, description, price, fractions = dice.choice(_CATALOGUE)
    quantity = dice.randint(1, 12) if not fractions or dice.random() < 0.4 else dice.randint(1, 80) / 8
    return {
        "product": {"key": key, "origin": ORIGIN},
        "description": description,
        "quantity": float(quantity),
        "unit_price": price,
    }


def _oddity(dice: random.Random, order: Json) -> Json:
    """What to change in about one order of nine."""
    unpaid = {"paid_amount": None, "payment_status": "started"}
    unknown = {**order["order_lines"][0], "product": {"key": UNKNOWN_PRODUCT, "origin": ORIGIN}}
    oddities: list[Json] = [
        {},
        {**unpaid, "pays_after_seconds": dice.uniform(5, 20)},
        {**unpaid, "payment_status": "closed_canceled"},
        {"offline": True, "state": "processing", "payment_status": "account", "paid_amount": None},
        {"twin": True, "webshop": 2},
        {"order_lines": [unknown, *order["order_lines"][1:]]},
    ]
    return dice.choices(oddities, (89, 4, 2, 2, 2, 1))[0]
