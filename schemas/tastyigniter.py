"""TastyIgniter's JSON and what it means. Contract: contracts/tastyigniter.md, whose sections are named here.

Documents are as the client parsed them: floats as `Decimal`. All four profiles of section 1 are read by one rule.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any
from zoneinfo import ZoneInfo

from marshmallow import ValidationError, fields, validate

from orders.errors import Misconfigured, Refused
from orders.model import Address, Customer, Line, Order
from schemas.base import Amount, Document, Whole, load, moment

Json = dict[str, Any]

ACTIONS = ("placed", "created", "updated", "status_added", "assigned", "deleted")
"""What a webhook says of an order (7)."""
OTHER_EVENTS = ("category", "customer", "menu", "reservation", "table")
"""Of what else a subscription may tell."""

LOOK_AGAIN = 3600.0
"""Seconds after which what a person should put right is looked at again by itself; news has it looked at sooner."""

_PLACES = Decimal("0.0001")
_NOT_KEPT = frozenset(("ip_address", "user_agent"))
"""Personal data that nobody here needs (3.2)."""


# -- what an order says -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RemoteLine:
    """One dish (3.3). `total` is final: whether option prices are inside `price` is not stated."""

    id: int
    menu_id: int | None
    name: str
    quantity: Decimal
    price: Decimal | None
    total: Decimal | None
    comment: str | None
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Total:
    """One row of the totals (3.4). `summable`: it is added to the sum of the lines."""

    code: str
    title: str
    value: Decimal
    priority: int
    summable: bool


@dataclass(frozen=True, slots=True)
class StatusRow:
    """One row of the status history."""

    id: int
    status_id: int | None
    comment: str | None
    created_at: str | None


@dataclass(frozen=True, slots=True)
class RemoteOrder:
    """What we rely on of an order as TastyIgniter shows it. Stamps are texts: `stamp` reads them.

    `flat`: of the profiles of 2020, which have neither lines nor a history. `status_id` 0 and null are None.
    `order_total` has four places at most."""

    id: int
    flat: bool
    status_id: int | None
    processed: bool | None
    order_type: str | None
    order_date: str | None
    order_time: str | None
    order_date_time: str | None
    asap: bool | None
    first_name: str | None
    last_name: str | None
    email: str | None
    telephone: str | None
    customer_id: int | None
    location_id: int | None
    address_id: int | None
    formatted_address: str | None
    comment: str | None
    delivery_comment: str | None
    payment: str | None
    currency: str | None
    order_total: Decimal | None
    created_at: str | None
    updated_at: str | None
    lines: tuple[RemoteLine, ...] = ()
    totals: tuple[Total, ...] = ()
    history: tuple[StatusRow, ...] = ()

    @property
    def placed(self) -> bool:
        """Whether the checkout is finished (4)."""
        return self.status_id is not None and self.processed is True


class _Money(Amount):
    """Number, numeric text or null; four places are kept (8)."""

    def _validated(self, value: Any) -> Decimal:
        return super()._validated(value).quantize(_PLACES, ROUND_HALF_UP)


class _Text(fields.String):
    """A text; an empty one is None."""

    def _deserialize(self, value: Any, *rest: Any, **more: Any) -> Any:
        return super()._deserialize(value, *rest, **more) or None


def _text() -> _Text:
    return _Text(load_default=None, allow_none=True)


def _whole() -> Whole:
    return Whole(load_default=None, allow_none=True)


def _money() -> _Money:
    return _Money(load_default=None, allow_none=True)


class _Line(Document):
    id = Whole(required=True, data_key="order_menu_id")
    menu_id = _whole()
    name = fields.String(load_default="", allow_none=True)
    quantity = Amount(required=True)
    price = _money()
    total = _Money(load_default=None, allow_none=True, data_key="subtotal")
    comment = _text()
    options = fields.Raw(load_default=None, allow_none=True, data_key="menu_options")


class _Total(Document):
    code = fields.String(required=True)
    title = fields.String(load_default="", allow_none=True)
    value = _Money(load_default=Decimal(0), allow_none=True)
    priority = Whole(load_default=0, allow_none=True)
    summable = fields.Boolean(load_default=False, allow_none=True, data_key="is_summable")


class _StatusRow(Document):
    id = Whole(required=True)
    status_id = _whole()
    comment = _text()
    created_at = _text()


def _each_its_own_id(lines: list[Json]) -> None:
    doubles = [str(line_id) for line_id, count in Counter(line["id"] for line in lines).items() if count > 1]
    if doubles:
        raise ValidationError(f"more than one line has the id {', '.join(doubles)}")


class _Order(Document):
    id = Whole(required=True, data_key="order_id")
    status_id = _whole()
    processed = fields.Boolean(load_default=None, allow_none=True)
    order_type = _text()
    order_date = _text()
    order_time = _text()
    order_date_time = _text()
    asap = fields.Boolean(load_default=None, allow_none=True, data_key="order_time_is_asap")
    first_name = _text()
    last_name = _text()
    email = _text()
    telephone = _text()
    customer_id = _whole()
    location_id = _whole()
    address_id = _whole()
    formatted_address = _text()
    comment = _text()
    delivery_comment = _text()
    payment = _text()
    currency = _text()
    order_total = _money()
    created_at = _text()
    updated_at = _text()
    date_added = _text()
    date_modified = _text()
    lines = fields.List(fields.Nested(_Line), load_default=[], data_key="order_menus", validate=_each_its_own_id)
    totals = fields.List(fields.Nested(_Total), load_default=[], data_key="order_totals")
    history = fields.List(fields.Nested(_StatusRow), load_default=[], data_key="status_history")


_ORDER = _Order()


def parse_order(document: Any) -> RemoteOrder:
    """One order in whatever profile (1). Raises `Refused` naming every field that is missing or wrong."""
    order = unwrapped(document)
    lists = {"order_menus": _rows(order.get("order_menus")), "order_totals": _rows(order.get("order_totals"))}
    lists["status_history"] = _rows(order.get("status_history"))
    values = load(_ORDER, {**order, **lists}, "TastyIgniter's order")
    added, modified = values.pop("date_added"), values.pop("date_modified")
    values["created_at"], values["updated_at"] = values["created_at"] or added, values["updated_at"] or modified
    values["status_id"] = values["status_id"] or None
    values["lines"] = tuple(_remote_line(line) for line in values["lines"])
    values["totals"] = _totals(values["totals"])
    values["history"] = tuple(sorted((StatusRow(**row) for row in values["history"]), key=lambda row: row.id))
    return RemoteOrder(flat=added is not None or modified is not None, **values)


def unwrapped(document: Any) -> Json:
    """The fields of one order, its id and its history among them, out of any profile's wrapping (1)."""
    inner = document.get("data", document) if isinstance(document, dict) else document
    if isinstance(inner, list) and len(inner) == 1:  # so printed in the vendor's pages
        inner = inner[0]
    if not isinstance(inner, dict):
        raise Refused("TastyIgniter's order cannot be read: what came is not an order")
    if not isinstance(inner.get("attributes"), dict):
        return inner
    order = {**inner["attributes"], "order_id": inner.get("id")}
    history = [row for row in _rows(document.get("included")) if row.get("type") == "status_history"]
    rows = [{**_object(row.get("attributes")), "id": row.get("id")} for row in history]
    return {**order, "status_history": rows} if rows else order


def slim(document: Any) -> Any:
    """The document without the personal data that nobody here needs."""
    if isinstance(document, dict):
        return {name: slim(value) for name, value in document.items() if name not in _NOT_KEPT}
    return [slim(one) for one in document] if isinstance(document, list) else document


def listed(row: Json) -> tuple[str, RemoteOrder | None]:
    """The id of a row of a list, and what it says; None where that cannot be read. Raises `Refused` without an id."""
    order_id = str(unwrapped(row).get("order_id") or "")
    if not order_id.isdecimal():
        raise Refused("a row of TastyIgniter's list has no id")
    try:
        return order_id, parse_order(row)
    except Refused:
        return order_id, None


def _object(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _rows(value: Any) -> list[Any]:
    """A list; of an object its values: rows that were sorted keep their old keys (3.4)."""
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _remote_line(values: Json) -> RemoteLine:
    return RemoteLine(**{**values, "name": values["name"] or "", "options": tuple(_options(values["options"]))})


def _options(groups: Any) -> Iterator[str]:
    """What was chosen with a dish, for people. `[]` when there is nothing (3.3)."""
    for group, chosen in _object(groups).items():
        for one in _rows(chosen):
            option = _object(one)
            amount = f"{option['quantity']} x " if option.get("quantity") not in (None, 1, "1") else ""
            yield f"{group}: {amount}{option.get('order_option_name') or '?'}"


def _totals(rows: list[Json]) -> tuple[Total, ...]:
    filled = [
        Total(row["code"], row["title"] or "", row["value"] or Decimal(0), row["priority"] or 0, bool(row["summable"]))
        for row in rows
    ]
    return tuple(sorted(filled, key=lambda row: row.priority))


# -- statuses ---------------------------------------------------------------------------------------------------------

_FLOW = (1, 2, 3, 4, 5)
_PREPARATION = 3


@dataclass(frozen=True, slots=True)
class Statuses:
    """The ids of the statuses that we write (4). Names mean nothing: two of them occur twice."""

    preparing: int = 3
    completed: int = 5
    canceled: int = 9

    def final(self, status: int | None) -> bool:
        """Whether nothing leaves this status without a person."""
        return status in (self.completed, self.canceled)

    def forward(self, status: int | None, target: int) -> bool:
        """Whether going from `status` to `target` is a step ahead. Raises `Refused` where nobody can tell: shops add
        statuses of their own."""
        if status == target or self.final(status):
            return False
        if self.final(target) or status is None:
            return True
        place = target if target in _FLOW else _PREPARATION
        if status not in _FLOW:
            raise Refused(
                f"status {status} is one of the shop's own: whether {target} would be a step back cannot be told; "
                f"set {target} or a later status in TastyIgniter, or TASTYIGNITER_STATUS_PREPARING={status}",
                recheck=LOOK_AGAIN,
            )
        return status < place


def moved(remote: RemoteOrder, target: int, comment: str | None, since: datetime) -> bool:
    """Whether the history shows that `target` was set already, though the order may say otherwise by now (5): by us,
    to judge by our comment, or by the newest row, if it was written after `since`."""
    if comment is not None and any(row.status_id == target and row.comment == comment for row in remote.history):
        return True
    newest = remote.history[-1] if remote.history else None
    return newest is not None and newest.status_id == target and _is_after(newest, since)


def overran(
    remote: RemoteOrder, target: int | None, statuses: Statuses, comment: str | None, since: datetime | None
) -> int | None:
    """The final status on top of which our write of `target`, the newest row, came, which nobody could have seen
    before; None: none. `since`: who wrote the row must be told, by our comment, or without one by its time; None: we
    have just done it."""
    if len(remote.history) < 2:
        return None
    below, newest = remote.history[-2:]
    if newest.status_id != target or below.status_id == target or not statuses.final(below.status_id):
        return None
    if comment is not None and below.comment == comment:  # ours, too
        return None
    ours = since is None or (newest.comment == comment if comment is not None else _is_after(newest, since))
    return below.status_id if ours else None


def _is_after(row: StatusRow, since: datetime) -> bool:
    at = _aware(row.created_at)
    return at is not None and at >= since - timedelta(seconds=60)


# -- time -------------------------------------------------------------------------------------------------------------


def stamp(text: str | None, zone: ZoneInfo) -> datetime | None:
    """A stamp in UTC: with Z it is, naive ones are the site's (8). None for none, or for one that is no stamp."""
    at = moment(text, zone)
    return None if at is None else at.astimezone(UTC)


def _aware(text: str | None) -> datetime | None:
    """A stamp that says its zone."""
    at = stamp(text, ZoneInfo("UTC"))
    return at if at is not None and text is not None and datetime.fromisoformat(text).tzinfo is not None else None


def due(remote: RemoteOrder, zone: ZoneInfo) -> tuple[datetime | None, list[str]]:
    """When the order is to be ready, in UTC, and what a person should know of that (8).

    Raises `Refused` where the order's own two times do not agree: the time zone is set wrong."""
    at = _aware(remote.order_date_time)
    if at is not None:
        local = at.astimezone(zone)
        shown = _time(remote.order_time)
        return at, [] if shown is None else _agreeing(at, datetime.combine(local.date(), shown), zone)
    naive = _local(remote, zone)
    return (None, []) if naive is None else (naive.replace(tzinfo=zone).astimezone(UTC), _odd_hour(naive, zone))


def _local(remote: RemoteOrder, zone: ZoneInfo) -> datetime | None:
    """Date and time on the site's clock. An `order_date` with Z is the local midnight, shifted: never cut it."""
    day, shown = _day(remote.order_date, zone), _time(remote.order_time)
    if day is not None and shown is not None:
        return datetime.combine(day, shown)
    whole = stamp(remote.order_date_time, zone)
    return None if whole is None else whole.astimezone(zone).replace(tzinfo=None)


def _day(text: str | None, zone: ZoneInfo) -> date | None:
    at = stamp(text, zone)
    return None if at is None else at.astimezone(zone).date()


def _time(text: str | None) -> time | None:
    """`HH:MM:SS`, or `HH:MM` in the webhook `placed` (3.2)."""
    try:
        return None if text is None else time.fromisoformat(text)
    except ValueError:
        return None


def _agreeing(at: datetime, naive: datetime, zone: ZoneInfo) -> list[str]:
    readings = [naive.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1)]
    if all(reading.replace(second=0, microsecond=0) != at.replace(second=0, microsecond=0) for reading in readings):
        raise Refused(
            f"order_date_time is {at.astimezone(zone):%H:%M} in {zone.key}, but order_time says {naive:%H:%M}: "
            "TASTYIGNITER_TIMEZONE is not the site's time zone",
            recheck=LOOK_AGAIN,
        )
    return _odd_hour(naive, zone)


def _odd_hour(naive: datetime, zone: ZoneInfo) -> list[str]:
    """An hour that the clock shows twice or never when it is changed: the first reading counts, and a person knows."""
    first, second = (naive.replace(tzinfo=zone, fold=fold) for fold in (0, 1))
    if first.utcoffset() == second.utcoffset():
        return []
    twice = first.astimezone(UTC) < second.astimezone(UTC)
    how_often = "comes twice" if twice else "does not exist"
    return [f"{naive:%Y-%m-%d %H:%M} {how_often} in {zone.key}, because the clock is changed: check when it is due"]


# -- money ------------------------------------------------------------------------------------------------------------

_NO_MINOR = frozenset(
    ("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "VND", "VUV", "XAF", "XOF", "XPF")
)
_THREE_PLACES = frozenset(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"))


def minor_unit(currency: str) -> Decimal:
    """The smallest amount of a currency (ISO 4217)."""
    if currency in _NO_MINOR:
        return Decimal(1)
    return Decimal("0.001") if currency in _THREE_PLACES else Decimal("0.01")


def posted(amount: Decimal, currency: str) -> Decimal:
    """What the ERP is told of an amount: rounded half up, away from zero (8)."""
    return amount.quantize(minor_unit(currency), ROUND_HALF_UP)


# -- the order in our words --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Converted:
    """`flags`: what a person should know. `rounding`: what was rounded off, by line key or `total`, as text."""

    order: Order
    flags: list[str]
    rounding: dict[str, str]


def to_order(remote: RemoteOrder, *, zone: ZoneInfo, currency: str | None, whole: str = "ORDER") -> Converted:
    """The order in our words. `currency` counts where the order names none, `whole` is the product of an order whose
    dishes nobody told.

    Amounts that do not add up are flagged, and never computed anew: the vendor's own example does not add up (3.4).
    Raises `Misconfigured` without a currency, `Refused` as `due`."""
    money = (remote.currency or currency or "").upper()
    if not money:
        raise Misconfigured("the order names no currency: set TASTYIGNITER_CURRENCY, such as EUR")
    at, flags = due(remote, zone)
    lines = _lines(remote, money) or (_whole_order(remote, whole, money),)
    total = total_of(remote)
    order = Order(
        reference=str(remote.id),
        currency=money,
        lines=lines,
        customer=_customer(remote),
        ship_to=_ship_to(remote),
        total=None if total is None else posted(total, money),
        requested_at=at,
        notes=_notes(remote),
    )
    return Converted(order, [*flags, *_sums(remote, total)], _rounding(remote, order, total))


def total_of(remote: RemoteOrder) -> Decimal | None:
    """The order's own amount, else the row that repeats it."""
    if remote.order_total is not None:
        return remote.order_total
    return next((row.value for row in remote.totals if row.code == "total"), None)


def _lines(remote: RemoteOrder, currency: str) -> tuple[Line, ...]:
    """The dishes, then what else is added to their sum: delivery, a coupon, a tip."""
    if not remote.lines:
        return ()
    dishes = [_dish(line, place, currency) for place, line in enumerate(remote.lines, 1)]
    others = enumerate(_added(remote).items(), len(dishes) + 1)
    return (*dishes, *(_other(row, key, place, currency) for place, (key, row) in others))


def _added(remote: RemoteOrder) -> dict[str, Total]:
    """The totals that are lines to us, by a key of their own though a code may come twice."""
    counts: Counter[str] = Counter()
    added = {}
    for row in remote.totals:
        if row.summable and row.value:
            counts[row.code] += 1
            added[row.code if counts[row.code] == 1 else f"{row.code}-{counts[row.code]}"] = row
    return added


def _dish(line: RemoteLine, position: int, currency: str) -> Line:
    words = [line.name, *line.options, line.comment or ""]
    return Line(
        key=str(line.id),
        position=position,
        product=str(line.menu_id) if line.menu_id else line.name or None,
        quantity=line.quantity,
        description="; ".join(word for word in words if word),
        unit_price=line.price,
        total=None if line.total is None else posted(line.total, currency),
    )


def _other(row: Total, key: str, position: int, currency: str) -> Line:
    value = posted(row.value, currency)
    return Line(
        key=key,
        position=position,
        product=None,
        quantity=Decimal(1),
        description=row.title or row.code,
        unit_price=value,
        total=value,
        kind=row.code,
    )


def _whole_order(remote: RemoteOrder, product: str, currency: str) -> Line:
    total = total_of(remote)
    price = None if total is None else posted(total, currency)
    return Line("order", 1, product, Decimal(1), f"Order {remote.id}", unit_price=price, total=price)


def _customer(remote: RemoteOrder) -> Customer:
    name = " ".join(part for part in (remote.first_name, remote.last_name) if part)
    return Customer(
        name=name or None,
        email=remote.email,
        phone=remote.telephone,
        remote_id=None if remote.customer_id is None else str(remote.customer_id),
    )


def _ship_to(remote: RemoteOrder) -> Address:
    """Only where something is taken to: the API's one line, or nothing but its id."""
    if remote.order_type == "collection":
        return Address()
    return Address(
        street=remote.formatted_address,
        remote_id=None if remote.address_id is None else str(remote.address_id),
    )


def _notes(remote: RemoteOrder) -> str:
    when = "as soon as possible" if remote.asap else ""
    paid = f"payment: {remote.payment}" if remote.payment else ""
    first = ", ".join(word for word in (remote.order_type or "", when, paid) if word)
    delivery = f"Delivery: {remote.delivery_comment}" if remote.delivery_comment else ""
    return "\n".join(part for part in (first, remote.comment or "", delivery) if part)


def _sums(remote: RemoteOrder, total: Decimal | None) -> list[str]:
    if total is None:
        return ["the order says no total"]
    if not remote.lines or any(line.total is None for line in remote.lines):
        return []
    dishes = sum((line.total or Decimal(0) for line in remote.lines), Decimal(0))
    reckoned = max(dishes + sum((row.value for row in remote.totals if row.summable), Decimal(0)), Decimal(0))
    if reckoned == total:
        return []
    return [f"dishes and totals add up to {reckoned:f}, the order says {total:f}: its own total counts"]


def _rounding(remote: RemoteOrder, order: Order, total: Decimal | None) -> dict[str, str]:
    exact = {str(line.id): line.total for line in remote.lines} | {"total": total}
    if remote.lines:
        exact |= {key: row.value for key, row in _added(remote).items()}
    told = {line.key: line.total for line in order.lines} | {"total": order.total}
    cut = {key: amount - (told.get(key) or Decimal(0)) for key, amount in exact.items() if amount is not None}
    return {key: f"{off.normalize():f}" for key, off in cut.items() if off}


# -- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Event:
    """One delivery of a webhook (7). `order_id` is None when it is about something else. `fields` is the order's part,
    `body` what is to be kept."""

    action: str
    subject: str
    order_id: int | None
    fields: Json
    history_id: int | None
    body: str


class _Event(Document):
    action = fields.String(required=True, validate=validate.OneOf(ACTIONS, error="is none of an order"))
    order = fields.Dict(required=True)
    status_history = fields.Dict(load_default={}, allow_none=True)


class _Named(Document):
    order_id = Whole(required=True, validate=validate.Range(min=1))


class _HistoryNamed(Document):
    status_history_id = _whole()


_EVENT, _NAMED, _HISTORY_NAMED = _Event(), _Named(), _HistoryNamed()


def parse_event(raw: bytes) -> Event:
    """Raises `Refused` for what is not an event of the extension, such as the flat mail data of an automation rule,
    and `ValueError` for what is not JSON."""
    document = json.loads(raw, parse_float=str)  # never through a binary float
    other = _of_something_else(document)
    if other is not None:
        return other
    values = load(_EVENT, document, "the event")
    named = load(_NAMED, values["order"], "the event's order")
    history = load(_HISTORY_NAMED, values["status_history"] or {}, "the event's status_history")
    body = json.dumps(slim(document))
    return Event(values["action"], "order", named["order_id"], values["order"], history["status_history_id"], body)


def _of_something_else(document: Any) -> Event | None:
    """What we have no use for is known, and nothing of it kept: it tells of people."""
    subjects = [name for name in OTHER_EVENTS if isinstance(_object(document).get(name), dict)]
    if not subjects or "order" in document or not isinstance(document.get("action"), str):
        return None
    action = document["action"][:32]
    kept = json.dumps({"action": action, "about": subjects[0]})
    return Event(action, subjects[0], None, {}, None, kept)


def with_what_events_told(remote: RemoteOrder, bodies: Sequence[str]) -> RemoteOrder:
    """The order with what it does not say itself, of the newest event that does: its dishes, and where a delivery is
    taken to. Sites of 2020 tell neither (1).

    `bodies` are `Event.body`s and rows of lists, in any order. What cannot be read is passed over."""
    told = sorted((one for one in map(_told, bodies) if one is not None), key=lambda one: one.updated_at or "")
    for one in reversed(told):
        if one.lines and not remote.lines:
            remote = replace(remote, lines=one.lines, totals=remote.totals or one.totals)
        remote = replace(
            remote,
            formatted_address=remote.formatted_address or one.formatted_address,
            delivery_comment=remote.delivery_comment or one.delivery_comment,
        )
    return remote


def says_deleted(bodies: Sequence[str]) -> bool:
    """Whether one of these `Event.body`s and rows of lists says that the order was deleted."""
    return any(_object(json.loads(body)).get("action") == "deleted" for body in bodies)


def rows_among(bodies: Sequence[str]) -> list[Json]:
    """What lists said of the order, unwrapped, without the events: in the order of `bodies`."""
    rows = [body for body in bodies if "action" not in _object(json.loads(body))]
    return [shown for shown in map(_says, rows) if "order_id" in shown]


def was_open(bodies: Sequence[str], statuses: Statuses) -> bool:
    """Whether one of these `Event.body`s and rows of lists shows the order before it was completed or canceled."""
    final = (str(statuses.completed), str(statuses.canceled))
    return any("status_id" in shown and str(shown["status_id"]) not in final for shown in map(_says, bodies))


def _says(body: str) -> Json:
    """The fields of the order in an event, or in a row of a list."""
    document = _object(json.loads(body))
    return _object(document["order"]) if "order" in document else unwrapped(document)


def _told(body: str) -> RemoteOrder | None:
    """The order of an event, with its lines and totals, which are beside it (7)."""
    document = json.loads(body)
    order = document.get("order") if isinstance(document, dict) else None
    if not isinstance(order, dict):
        return None
    beside = {name: document[name] for name in ("order_menus", "order_totals") if name in document}
    try:
        return parse_order({**order, **beside})
    except Refused:
        return None
