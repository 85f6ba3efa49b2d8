"""Bookings at the partner service: what we send, made of an order that came in at our door, and what is answered.
Contract: contracts/partner.md, sections 2 to 4, whose traps are named here by number.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from marshmallow import fields, validate

from orders.errors import Refused
from orders.model import Order
from schemas.base import Document, load, moment
from schemas.partner import SLOTS
from schemas.partner_fields import in_array

Json = dict[str, Any]

RANKS = {"open": 0, "in_work": 1, "completed": 2, "done": 3}
"""`_status`, in the order in which they come (section 3)."""
SUBSTATUSES = frozenset(
    (
        "open",
        "awaiting_master_request",
        "awaiting_master_accept",
        "not_in_stock",
        "in_stock_awaiting_date",
        "in_work",
        "completed",
        "awaiting_payment",
        "payment_hold",
        "payment_requires_action",
        "payment_error",
        "payment_captured",
        "awaiting_fee",
        "fee_hold",
        "fee_error",
        "fee_requires_action",
        "fee_captured",
    )
)
"""The ones that are known; the public list is cut, so there are more (section 3)."""
MOST_DETAILS = 2000
_GAPS = re.compile(r"[^0-9+]")


# -- what is answered -------------------------------------------------------------------------------------------------


class Number(fields.Integer):
    """A whole number of JSON's, and nothing that could be made one."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.make_error("invalid")
        return value


class StoreSchema(Document):
    store_id = fields.String(allow_none=True, load_default=None)
    instock = fields.Raw(allow_none=True, load_default=None)


class AddressSchema(Document):
    details = fields.Raw(allow_none=True, load_default=None)


class BookingSchema(Document):
    """A booking, as a create, a list and a read answer it (section 2.2); `_id` may be 0 (trap 1)."""

    number = Number(required=True, data_key="_id", validate=validate.Range(min=0))
    status = fields.String(required=True, data_key="_status")
    substatus = fields.String(allow_none=True, load_default=None, data_key="_substatus")
    title = fields.Raw(allow_none=True, load_default=None)
    created_at = fields.Raw(allow_none=True, load_default=None)
    store = fields.Nested(StoreSchema, allow_none=True, load_default=None, data_key="partner_details")
    address = fields.Nested(AddressSchema, allow_none=True, load_default=None)


class ImageSchema(Document):
    # Not the url, which would be taken for an id (trap 3).
    id = fields.String(required=True, validate=validate.Regexp(r"[A-Za-z0-9_-]+\Z", error="is not an id"))


@dataclass(frozen=True, slots=True)
class Booking:
    """One booking. What a service need not tell is None; `details` is the address's free text."""

    number: int
    status: str
    substatus: str
    title: str | None = None
    store_id: str | None = None
    instock: bool | None = None
    created_at: datetime | None = None
    details: str | None = None

    @property
    def done(self) -> bool:
        """Nothing else is final (section 3)."""
        return self.status == "done"

    @property
    def trouble(self) -> bool:
        """Whether money does not move unless somebody acts; `_status` alone hides it (trap 2)."""
        return self.substatus.endswith(("_error", "_requires_action"))

    def __str__(self) -> str:
        return self.status if self.substatus in ("", self.status) else f"{self.status}, {self.substatus}"


_BOOKING = BookingSchema()
_IMAGE = ImageSchema()


def parse_booking(document: Any) -> Booking:
    """A booking. Raises `Refused` when it cannot be read."""
    values = load(_BOOKING, document, "the booking")
    store = values["store"] or {"store_id": None, "instock": None}
    address = values["address"] or {"details": None}
    return Booking(
        number=values["number"],
        status=values["status"],
        substatus=values["substatus"] or "",
        title=_text(values["title"]),
        store_id=store["store_id"],
        instock=store["instock"] if isinstance(store["instock"], bool) else None,
        created_at=moment(values["created_at"]),
        details=_text(address["details"]),
    )


def number_in(row: Json) -> int | None:
    """The `_id` of a row, be the rest of it readable or not; None when that cannot be read either."""
    number = row.get("_id")
    return number if type(number) is int and number >= 0 else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def parse_image(entries: Sequence[Any]) -> str:
    """The id of an uploaded image. Raises `Refused` when it cannot be read."""
    if len(entries) != 1:
        raise Refused(f"the upload was answered with {len(entries)} images")
    image: str = load(_IMAGE, entries[0], "the uploaded image")["id"]
    return image


def item_ids_in(rows: Sequence[Json]) -> set[int]:
    """The ids in a page of the service's items."""
    return {row["id"] for row in rows if type(row.get("id")) is int}


# -- what we send -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wish:
    """A day and one of its slots, as the order has them: both are texts, and the store's own time (traps 4, 10)."""

    date: str
    timeslot: str

    def to_json(self) -> Json:
        return {"date": self.date, "timeslot": self.timeslot}

    def __str__(self) -> str:
        return f"{self.date} {self.timeslot}"

    def is_free(self, slots: Json) -> bool:
        """Whether a reply about free slots says so; what is missing is not free (section 2.4)."""
        day = slots.get(self.date)
        return isinstance(day, dict) and day.get(self.timeslot) is True

    def begins(self, zone: ZoneInfo) -> datetime:
        """When the slot begins."""
        return datetime.combine(date.fromisoformat(self.date), SLOTS[self.timeslot][0], zone).astimezone(UTC)


def wishes(document: Json, order: Order, zone: ZoneInfo) -> list[Wish]:
    """What the order asks for, dearest first: what was chosen at our door, and told the ERP, then the others."""
    wanted = [Wish(pair["date"], pair["timeslot"]) for pair in in_array(document["datetime"])]
    chosen = [wish for wish in wanted if wish.begins(zone) == order.requested_at]
    return list(dict.fromkeys([*chosen, *wanted]))


@dataclass(frozen=True, slots=True)
class Request:
    """A booking to be made, and what a person should see of it."""

    body: Json
    flags: tuple[str, ...] = ()

    @property
    def store_id(self) -> str:
        """The service's name of the store."""
        store: str = self.body["partner_details"]["store_id"]
        return store

    @property
    def digest(self) -> str:
        """Equal for equal bodies."""
        text = json.dumps(self.body, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


def read_order(raw: str) -> Json:
    """An order as it came in at our door, which has checked it; numbers as they were written."""
    document: Json = json.loads(raw, parse_float=Decimal)
    return document


def is_in_stock(document: Json) -> bool:
    """Whether the goods of an order are there: without them the work has no date yet, and no slot is taken."""
    instock: bool = document["partner_details"]["instock"]
    return instock


def store_of(document: Json, stores: Mapping[str, str]) -> str:
    """The service's name of an order's store. `stores`: those that are called otherwise there."""
    store: str = document["partner_details"]["store_id"]
    return stores.get(store, store)


def unmapped_items(document: Json, items: Mapping[int, int]) -> set[int]:
    """The ids in an order that no setting translates (trap 12)."""
    return {int(item["id"]) for item in document["partner_details"]["items"]} - set(items)


def to_request(
    document: Json,
    wanted: Sequence[Wish],
    *,
    images: Sequence[str],
    mark: str,
    items: Mapping[int, int],
    stores: Mapping[str, str],
) -> Request:
    """The body of a create (section 2.1). All that has a default is sent all the same (trap 6).

    `images` are the service's ids (trap 3). `mark` is our own name of the order, for which there is no field: it goes
    where only people read. `items` and `stores`: what ours are called there."""
    customer, details = document["customer"], document["partner_details"]
    phone, last_name = _GAPS.sub("", customer["phone_number"]), customer["last_name"].strip()
    phone = "+" + phone[2:] if phone.startswith("00") else phone
    body = {
        "customer": {
            "phone_number": phone,
            "first_name": customer["first_name"].strip(),
            "last_name": last_name or "-",
        },
        "payment_method": document["payment_method"],
        "datetime": [wish.to_json() for wish in wanted],
        "image_uuids": list(images),
        "partner_details": {
            "store_id": store_of(document, stores),
            "instock": details["instock"],
            "delivery_type": details.get("delivery_type", "to_pavement"),
            "items": [_item(item, items) for item in details["items"]],
        },
    }
    if document.get("address") is not None:
        body["address"] = _address(document["address"], mark)
    return Request(body, tuple(_flags(phone, last_name)))


def _item(item: Json, items: Mapping[int, int]) -> Json:
    number = int(item["id"])
    flags = {flag: item.get(flag, False) for flag in ("delivery", "assembly")}
    return {"id": items.get(number, number), "count": int(item["count"]), **flags}


def _address(address: Json, mark: str) -> Json:
    """The mark comes last, and whole."""
    room = MOST_DETAILS - len(marked(mark)) - 1
    return {
        "address": address["address"],
        "coordinates": {name: address["coordinates"][name] for name in ("lat", "lon")},
        "details": f"{address['details'][:room]} {marked(mark)}".strip(),
        "zip": address["zip"],
    }


def marked(mark: str) -> str:
    """How a mark is written, so that `partner:default:1` is not found in `partner:default:17`."""
    return f"[{mark}]"


def _flags(phone: str, last_name: str) -> Iterator[str]:
    if not phone.startswith("+"):
        yield "the telephone number has no country code: the crew may not get through"
    if not last_name:
        yield "there is no last name: a hyphen was sent"


# -- whose a booking is -----------------------------------------------------------------------------------------------


def is_alike(booking: Booking, *, store_id: str, instock: bool) -> bool:
    """Whether a booking is of the kind that was asked for. What a service does not tell of it speaks for it: only what
    is told can clear it."""
    return booking.store_id in (None, store_id) and booking.instock in (None, instock)


def may_be(booking: Booking, *, store_id: str, instock: bool, since: datetime, until: datetime) -> bool:
    """Whether a booking may be the one that was asked for between these times (section 4.1)."""
    alike = is_alike(booking, store_id=store_id, instock=instock)
    return alike and (booking.created_at is None or since <= booking.created_at <= until)
