"""The partner contract as we offer it: what a partner may send, and what it means. Contract: contracts/partner.md,
section 5, whose sections are named here.

`read_order` finds everything that is wrong with a request. Its fields are in `schemas/partner_fields.py`, what we
answer is in `schemas/partner_answers.py`.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from marshmallow import ValidationError, validates_schema

from orders.model import Address, Customer, Line, Order
from schemas.partner_fields import (
    DAYS_AHEAD,
    Array,
    Choice,
    Day,
    ItemId,
    Number,
    Part,
    Phone,
    Problem,
    QueryNumber,
    Text,
    Texts,
    Truth,
    Whole,
    Wrong,
    day_of,
    element,
    in_array,
    nested,
    read,
)

Json = dict[str, Any]

SLOTS = {"0712": (time(7), time(12)), "1217": (time(12), time(17)), "1721": (time(17), time(21))}
"""Each slot's hours, in the store's own time (2.4)."""
PAYMENTS = ("stripe", "cash")
DELIVERIES = ("to_pavement", "to_door_by_lift", "to_door_by_stairs")
LONGEST_KEY = 255
MOST_LISTED = 100


# -- requests ---------------------------------------------------------------------------------------------------------


class CustomerSchema(Part):
    phone_number = Phone(required=True)
    first_name = Text(1, 100, trim=True, required=True)
    last_name = Text(1, 100, trim=True, required=True)


class WishSchema(Part):
    date = Day(required=True)
    timeslot = Choice(tuple(SLOTS), required=True)


class CoordinatesSchema(Part):
    lat = Number(-90, 90, required=True)
    lon = Number(-180, 180, required=True)

    @validates_schema
    def somewhere(self, data: Json, **more: Any) -> None:
        """0, 0 is in the sea: it stands for "not known"."""
        if data["lat"] == 0 and data["lon"] == 0:
            raise ValidationError("number", "lat")


class AddressSchema(Part):
    address = Text(1, 500, required=True)
    coordinates = nested(CoordinatesSchema, required=True)
    details = Text(0, 2000, required=True)
    zip = Text(1, 20, required=True)


class ItemSchema(Part):
    id = ItemId(required=True)
    count = Whole(1, 999, required=True)
    delivery = Truth(load_default=False, error_messages={"null": "boolean"})
    assembly = Truth(load_default=False, error_messages={"null": "boolean"})


class DetailsSchema(Part):
    store_id = Text(required=True)
    instock = Truth(required=True)
    delivery_type = Choice(DELIVERIES, load_default=DELIVERIES[0], error_messages={"null": "enumValue"})
    items = Array(element(ItemSchema), 200, required=True)

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def some_service(self, data: Json, original_data: Any, **more: Any) -> None:
        """Something is to be delivered or assembled; not judged while the flags cannot be read."""
        flags = [flag for item in _items(original_data) for flag in _flags(item)]
        if flags and all(flag is False for flag in flags):
            raise ValidationError("noService", "items")


class OrderSchema(Part):
    """A request to take an order (2.1)."""

    customer = nested(CustomerSchema, required=True)
    payment_method = Choice(PAYMENTS, required=True)
    datetime = Array(element(WishSchema), 10, wrap=True, required=True)
    address = nested(
        AddressSchema,
        allow_none=True,
        load_default=None,
        metadata={"description": "Required when any item is to be delivered."},
    )
    image_uuids = Array(Text(error_messages={"null": "string"}), 10, distinct=True, required=True)
    partner_details = nested(DetailsSchema, required=True)

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def where_to(self, data: Json, original_data: Any, **more: Any) -> None:
        """What is delivered needs an address."""
        if not isinstance(original_data, dict) or original_data.get("address") is not None:
            return
        if any(True in _flags(item)[:1] for item in _items(original_data.get("partner_details"))):
            raise ValidationError("required", "address")


def _items(details: Any) -> list[Any]:
    items = details.get("items") if isinstance(details, dict) else None
    return items if isinstance(items, list) else []


def _flags(item: Any) -> list[Any]:
    """Whether an item is to be delivered, and assembled; None for what cannot be read."""
    if not isinstance(item, dict):
        return [None]
    flags = [item.get("delivery", False), item.get("assembly", False)]
    return [flag if isinstance(flag, bool) else None for flag in flags]


class LoginSchema(Part):
    login = Text(required=True)
    password = Text(required=True)


class StoreQuery(Part):
    store_id = Text(required=True)


class ItemQuery(Part):
    store_id = Text()
    limit = QueryNumber(1, MOST_LISTED, load_default=MOST_LISTED)
    skip = QueryNumber(0, load_default=0)


class ItemSearch(Part):
    store_id = Text()
    name = Text(required=True)


class FilterSchema(Part):
    """What a list of orders is narrowed to."""

    query = Text(load_default="")
    store_ids = Texts(load_default=list)
    filter = Texts(load_default=list, metadata={"description": "Values of `_status` or `_substatus`."})


def read_filter(document: Any) -> Json:
    """A filter's `query`, `store_ids` and `filter`, and whether anything at all can be `findable` by it: nothing is
    kept under a text that cannot be written. Raises `Wrong`."""
    values = read(FilterSchema(), document)
    stores = [store for store in values["store_ids"] if store == readable(store)]
    findable = values["query"] == readable(values["query"]) and bool(stores) == bool(values["store_ids"])
    return {**values, "store_ids": stores, "findable": findable}


class OrderQuery(Part):
    limit = QueryNumber(1, MOST_LISTED, load_default=20)
    skip = QueryNumber(0, load_default=0)


# -- an order ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wish:
    """A day and one of its slots, in the store's own time."""

    day: date
    slot: str

    def __str__(self) -> str:
        begin, end = SLOTS[self.slot]
        return f"{self.day} {begin:%H:%M}-{end:%H:%M}"


@dataclass(frozen=True, slots=True)
class Item:
    """So many of an item, to be delivered, assembled, or both."""

    id: int
    count: int
    delivery: bool
    assembly: bool


@dataclass(frozen=True, slots=True)
class Place:
    """Where it is to be done."""

    address: str
    lat: float
    lon: float
    details: str
    zip: str


@dataclass(frozen=True, slots=True)
class OrderRequest:
    """A readable request. `wishes`: at least one, the dearest first. `place` None: at the store."""

    phone: str
    first_name: str
    last_name: str
    payment: str
    wishes: tuple[Wish, ...]
    place: Place | None
    images: tuple[str, ...]
    store_id: str
    instock: bool
    delivery_type: str
    items: tuple[Item, ...]


_SCHEMA = OrderSchema()


def read_order(document: Any, today: date, key: str | None = None) -> OrderRequest:
    """A request to take an order. Raises `Wrong` with everything that breaks a field's rule. `today` is the store's,
    `key` the `Idempotency-Key`."""
    problems = [*_key_problems(key), *_range_problems(document, today)]
    try:
        values = read(_SCHEMA, document)
    except Wrong as wrong:
        raise Wrong([*wrong.problems, *problems]) from None
    if problems:
        raise Wrong(problems)
    return _order_request(values)


def _key_problems(key: str | None) -> Iterator[Problem]:
    if key is None:
        return
    if not key:
        yield Problem("Idempotency-Key", "stringEmpty")
    elif len(key) > LONGEST_KEY:
        yield Problem("Idempotency-Key", "stringMax")
    elif not key.isprintable():
        yield Problem("Idempotency-Key", "stringPattern")


def _range_problems(document: Any, today: date) -> Iterator[Problem]:
    """Dates that are none of the days in question; what is no date at all is the schema's to tell."""
    wishes = in_array(document.get("datetime")) if isinstance(document, dict) else None
    for place, wish in enumerate(wishes if isinstance(wishes, list) else []):
        day = day_of(wish.get("date")) if isinstance(wish, dict) else None
        if day is not None and not today <= day <= today + timedelta(days=DAYS_AHEAD):
            yield Problem(f"datetime[{place}].date", "dateRange")


def _order_request(values: Json) -> OrderRequest:
    customer, details, address = values["customer"], values["partner_details"], values["address"]
    place = None
    if address is not None:
        place = Place(address["address"], **address["coordinates"], details=address["details"], zip=address["zip"])
    return OrderRequest(
        phone=customer["phone_number"],
        first_name=customer["first_name"],
        last_name=customer["last_name"],
        payment=values["payment_method"],
        wishes=tuple(Wish(wish["date"], wish["timeslot"]) for wish in values["datetime"]),
        place=place,
        images=tuple(values["image_uuids"]),
        store_id=details["store_id"],
        instock=details["instock"],
        delivery_type=details["delivery_type"],
        items=tuple(Item(**item) for item in details["items"]),
    )


def check_references(
    request: OrderRequest, *, stores: Collection[str], items: Collection[int], images: Collection[str]
) -> None:
    """Whether everything that the request names is there. Raises `Wrong`."""
    problems = [] if request.store_id in stores else [Problem("partner_details.store_id", "notFound")]
    problems += [
        Problem(f"partner_details.items[{place}].id", "notFound")
        for place, item in enumerate(request.items)
        if item.id not in items
    ]
    problems += [
        Problem(f"image_uuids[{place}]", "notFound")
        for place, image in enumerate(request.images)
        if image not in images
    ]
    if problems:
        raise Wrong(problems)


# -- slots ------------------------------------------------------------------------------------------------------------


def is_free(wish: Wish, now: datetime, closed: Collection[date]) -> bool:
    """Whether a slot is neither over nor on a closed day. `now` is in the store's zone."""
    over = datetime.combine(wish.day, SLOTS[wish.slot][1], now.tzinfo) <= now
    return not over and wish.day not in closed and wish.day <= now.date() + timedelta(days=DAYS_AHEAD)


def calendar(now: datetime, closed: Collection[date]) -> dict[str, dict[str, bool]]:
    """The slots from today to `DAYS_AHEAD` days ahead (2.4). `now` is in the store's zone."""
    days = [now.date() + timedelta(days=ahead) for ahead in range(DAYS_AHEAD + 1)]
    return {day.isoformat(): {slot: is_free(Wish(day, slot), now, closed) for slot in SLOTS} for day in days}


def first_free(request: OrderRequest, now: datetime, closed: Collection[date]) -> Wish | None:
    """The first wish whose slot is free, if any is; without stock the work has no date yet, and the first one will do.

    `now` is in the store's zone."""
    return next((wish for wish in request.wishes if not request.instock or is_free(wish, now, closed)), None)


# -- what it means ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prints:
    """Digests by which a request is known again: of all of it; of what a blind retry has in common with it (5.2); and
    of all but its images."""

    same: str
    content: str
    likeness: str


def prints(document: Any, request: OrderRequest) -> Prints:
    """The digests of a request. `document` is its JSON."""
    values = asdict(request)
    likeness = {name: value for name, value in values.items() if name != "images"}
    content = {name: values[name] for name in ("store_id", "phone", "items", "wishes")}
    return Prints(same_print(document), _digest(content), _digest(likeness))


def same_print(document: Any) -> str:
    """The digest by which the very same request is known, however it is laid out."""
    return _digest(document)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def to_order(
    request: OrderRequest,
    wish: Wish,
    *,
    title: str,
    partner: str,
    stores: Mapping[str, str],
    items: Mapping[int, str],
    zone: ZoneInfo,
) -> Order:
    """The request in our words: a line's key is its place in the list, since an item may be there twice.

    The contract has no prices and no currency. What only people understand is in the notes."""
    begin = datetime.combine(wish.day, SLOTS[wish.slot][0], zone)
    name = readable(f"{request.first_name} {request.last_name}")
    place = request.place
    return Order(
        reference=title,
        currency=None,
        lines=tuple(_line(item, position, items) for position, item in enumerate(request.items, 1)),
        customer=Customer(name=name, phone=request.phone),
        ship_to=Address(name=name)
        if place is None
        else Address(name=name, street=readable(place.address), postal_code=readable(place.zip)),
        requested_at=begin.astimezone(UTC),
        notes="\n".join(_notes(request, wish, partner, stores)),
    )


def _line(item: Item, position: int, items: Mapping[int, str]) -> Line:
    wanted = [word for word, flag in (("delivery", item.delivery), ("assembly", item.assembly)) if flag]
    return Line(
        key=str(position),
        position=position,
        product=str(item.id),
        quantity=Decimal(item.count),
        description=f"{items[item.id]} ({' and '.join(wanted) or 'neither delivery nor assembly'})",
    )


def _notes(request: OrderRequest, wish: Wish, partner: str, stores: Mapping[str, str]) -> Iterator[str]:
    yield f"Partner: {partner}, {stores[request.store_id]} ({request.store_id})"
    stock = "in stock" if request.instock else "not in stock yet"
    yield f"Payment: {request.payment}; {stock}"
    if any(item.delivery for item in request.items):
        yield f"Delivery: {request.delivery_type}"
    others = [str(other) for other in request.wishes if other != wish]
    yield f"Wanted: {wish}" + (f"; else {', '.join(others)}" if others else "")
    if request.place is not None:
        yield f"At: {request.place.lat}, {request.place.lon}"
        if request.place.details:
            yield f"Address details: {readable(request.place.details)}"


def readable(text: str) -> str:
    """A text as databases take it: JSON can say a NUL and half a character, they cannot."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def search_text(request: OrderRequest) -> str:
    """What the order can be found by (2.3), in lower case: names, digits of the telephone number, address details."""
    name = f"{request.first_name} {request.last_name}"
    details = request.place.details if request.place is not None else ""
    return readable("\n".join((name, request.phone.removeprefix("+"), details))).casefold()
