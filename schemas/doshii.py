"""Doshii's JSON and what it means. Contract: contracts/doshii.md, whose sections and traps are named here.

Money is whole cents here, in texts or numbers there (trap 3); `Order` has it in major units. Totals are the partner's:
they are booked as they are, and what does not add up is said, never corrected (section 3.2, Arithmetic).
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from marshmallow import fields, validate

from orders.errors import Refused
from orders.model import Address, Customer, Line, Order
from schemas.base import Amount, Document, Whole, load

Json = dict[str, Any]

STATUSES = ("pending", "accepted", "rejected", "cancelled", "venue_cancelled", "complete")
CANCELLED = frozenset(("rejected", "cancelled", "venue_cancelled"))
_PAYMENT_STATUSES = ("requested", "pending", "waiting", "complete", "rejected", "cancelled")
_AGREED = frozenset(("waiting", "complete"))


# -- what a list says -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a list of orders (3.1, 3.5). `pos_id`: our id, once the order is linked."""

    doshii_id: str
    status: str
    pos_id: str | None


class _Id(fields.String):
    """An id as text; some come as numbers (trap 14)."""

    def _deserialize(self, value: Any, *rest: Any, **options: Any) -> str:
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return super()._deserialize(value, *rest, **options) or ""


def _status(known: Sequence[str]) -> fields.String:
    return fields.String(required=True, validate=validate.OneOf(known, error="{input!r:.40} is not a known status"))


class _Row(Document):
    doshii_id = _Id(data_key="doshiiId", required=True)
    status = _status(STATUSES)
    pos_id = _Id(data_key="id", load_default=None, allow_none=True)


_ROW = _Row()


def parse_row(row: Any) -> Row:
    """A row. Raises `Refused` naming every field that is missing or wrong."""
    values = load(_ROW, row, "a row of Doshii's orders")
    return Row(**{**values, "pos_id": values["pos_id"] or None})


def id_of_row(row: Any) -> str | None:
    """Doshii's id of an order in a row, be the rest of it readable or not."""
    number = row.get("doshiiId") if isinstance(row, dict) else None
    return str(number)[:64] if isinstance(number, int | str) else None


# -- what an order says -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Variant:
    """A chosen variant of an option: `price` in cents for each one of the product."""

    option: str
    name: str
    price: int


@dataclass(frozen=True, slots=True)
class Included:
    """What a bundle contains; its price is in the bundle's already."""

    name: str
    quantity: Decimal
    variants: tuple[Variant, ...]


@dataclass(frozen=True, slots=True)
class Surcount:
    """A surcharge, or a discount (below 0); `value` in cents (trap 11)."""

    pos_id: str | None
    name: str
    value: int


@dataclass(frozen=True, slots=True)
class Tax:
    """`exclusive`: it comes on top of the totals. `value` in cents."""

    pos_id: str | None
    name: str
    exclusive: bool
    value: int


@dataclass(frozen=True, slots=True)
class Product:
    """One item. `pos_id` None: an open item (trap 10). `before`, `after`: the line's cents without and with its
    surcounts, as the partner says. `status`: of an unapproved item."""

    uuid: str | None
    pos_id: str | None
    name: str
    description: str
    quantity: Decimal
    unit_price: int | None
    before: int | None
    after: int | None
    bundle: bool
    included: tuple[Included, ...]
    variants: tuple[Variant, ...]
    surcounts: tuple[Surcount, ...]
    taxes: tuple[Tax, ...]
    status: str | None

    @property
    def words(self) -> str:
        """For people: `2 x Pepperoni Pizza`."""
        return f"{_plain(self.quantity)} x {self.name or self.pos_id or 'an item without a name'}"

    @property
    def priced(self) -> str:
        """The same with what it costs: `2 x Pepperoni Pizza for 22.00`."""
        price = _major(_after(self))
        return f"{self.words} for {'an unknown price' if price is None else price}"


@dataclass(frozen=True, slots=True)
class RemoteOrder:
    """What we rely on of an order as Doshii shows it. `doshii_id` may be missing from an order (3.2)."""

    doshii_id: str | None
    pos_id: str | None
    status: str
    type: str | None
    notes: str | None
    required_at: datetime | None
    items: tuple[Product, ...]
    unapproved: tuple[Product, ...]
    surcounts: tuple[Surcount, ...]
    taxes: tuple[Tax, ...]
    customer: Customer
    address: Address
    address_notes: str | None
    tables: tuple[str, ...]
    covers: str | None
    version: str

    @property
    def pending(self) -> tuple[Product, ...]:
        """Items that the partner has appended and nobody has answered."""
        return tuple(item for item in self.unapproved if item.status == "pending")


def _text() -> fields.String:
    return fields.String(load_default=None, allow_none=True)


def _id() -> _Id:
    return _Id(load_default=None, allow_none=True)


_MOST_CENTS = validate.Range(-(10**13), 10**13)


def _cents(name: str | None = None, *, required: bool = False) -> Whole:
    if required:
        return Whole(data_key=name, required=True, validate=_MOST_CENTS)
    return Whole(data_key=name, load_default=None, allow_none=True, validate=_MOST_CENTS)


def _many(schema: type[Document], name: str | None = None) -> fields.List[Any]:
    return fields.List(fields.Nested(schema), data_key=name, load_default=None, allow_none=True)


def _quantity() -> Amount:
    return Amount(load_default=Decimal(1), validate=validate.Range(min=0, min_inclusive=False))


class _Variant(Document):
    name = _text()
    price = _cents()


class _Option(Document):
    name = _text()
    variants = _many(_Variant)


class _Included(Document):
    name = _text()
    quantity = _quantity()
    options = _many(_Option)


class _Surcount(Document):
    pos_id = _Id(data_key="posId", load_default=None, allow_none=True)
    name = _text()
    value = _cents(required=True)


class _Tax(_Surcount):
    kind = fields.String(data_key="taxType", load_default=None, allow_none=True)


class _Product(Document):
    uuid = _id()
    pos_id = _Id(data_key="posId", load_default=None, allow_none=True)
    name = _text()
    description = _text()
    quantity = _quantity()
    unit_price = _cents("unitPrice")
    before = _cents("totalBeforeSurcounts")
    after = _cents("totalAfterSurcounts")
    kind = fields.String(data_key="type", load_default=None, allow_none=True)
    included = _many(_Included, "includedItems")
    options = _many(_Option)
    surcounts = _many(_Surcount)
    taxes = _many(_Tax)
    status = _text()


class _Address(Document):
    line1 = _text()
    line2 = _text()
    city = _text()
    state = _text()
    postal_code = _Id(data_key="postalCode", load_default=None, allow_none=True)
    country = _text()
    notes = _text()


class _Consumer(Document):
    name = _text()
    phone = _id()
    email = _text()
    address = fields.Nested(_Address, load_default=None, allow_none=True)


class _Checkin(Document):
    tables = fields.Raw(data_key="tableNames", load_default=None, allow_none=True)
    covers = _id()


class _Order(Document):
    doshii_id = _Id(data_key="doshiiId", load_default=None, allow_none=True)
    pos_id = _Id(data_key="id", load_default=None, allow_none=True)
    status = _status(STATUSES)
    type = _text()
    notes = _text()
    required_at = fields.AwareDateTime(
        data_key="requiredAt", load_default=None, allow_none=True, default_timezone=UTC, format="iso"
    )
    items = fields.List(fields.Nested(_Product), required=True)
    unapproved = _many(_Product, "unapprovedItems")
    surcounts = _many(_Surcount)
    taxes = _many(_Tax)
    consumer = fields.Nested(_Consumer, load_default=None, allow_none=True)
    checkin = fields.Nested(_Checkin, load_default=None, allow_none=True)
    version = fields.String(required=True)


_ORDER = _Order()


def parse_order(document: Any) -> RemoteOrder:
    """The Order object (3.2). Raises `Refused` naming every field that is missing or wrong."""
    values = load(_ORDER, document, "Doshii's order")
    consumer = values.pop("consumer") or {}
    checkin = values.pop("checkin") or {}
    address = consumer.get("address") or {}
    return RemoteOrder(
        **{
            **values,
            "doshii_id": values["doshii_id"] or None,
            "pos_id": values["pos_id"] or None,
            "items": _products(values["items"]),
            "unapproved": _products(values["unapproved"]),
            "surcounts": _surcounts(values["surcounts"]),
            "taxes": _taxes(values["taxes"]),
        },
        customer=Customer(
            name=consumer.get("name") or None, email=consumer.get("email") or None, phone=consumer.get("phone") or None
        ),
        address=_address(address),
        address_notes=address.get("notes") or None,
        tables=_tables(checkin.get("tables")),
        covers=checkin.get("covers") or None,
    )


def _products(rows: list[Json] | None) -> tuple[Product, ...]:
    return tuple(_product(row) for row in rows or ())


def _product(row: Json) -> Product:
    return Product(
        uuid=row["uuid"] or None,
        pos_id=row["pos_id"] or None,
        name=row["name"] or "",
        description=row["description"] or "",
        quantity=row["quantity"],
        unit_price=row["unit_price"],
        before=row["before"],
        after=row["after"],
        bundle=row["kind"] == "bundle",
        included=tuple(
            Included(one["name"] or "", one["quantity"], _variants(one["options"])) for one in row["included"] or ()
        ),
        variants=_variants(row["options"]),
        surcounts=_surcounts(row["surcounts"]),
        taxes=_taxes(row["taxes"]),
        status=row["status"],
    )


def _variants(options: list[Json] | None) -> tuple[Variant, ...]:
    return tuple(
        Variant(option["name"] or "", variant["name"] or "", variant["price"] or 0)
        for option in options or ()
        for variant in option["variants"] or ()
    )


def _surcounts(rows: list[Json] | None) -> tuple[Surcount, ...]:
    return tuple(Surcount(row["pos_id"] or None, row["name"] or "", row["value"]) for row in rows or ())


def _taxes(rows: list[Json] | None) -> tuple[Tax, ...]:
    return tuple(
        Tax(row["pos_id"] or None, row["name"] or "", row["kind"] == "exclusive", row["value"]) for row in rows or ()
    )


def _address(values: Json) -> Address:
    street = ", ".join(line for name in ("line1", "line2") if (line := values.get(name)))
    return Address(
        street=street or None,
        postal_code=values.get("postal_code") or None,
        city=values.get("city") or None,
        region=values.get("state") or None,
        country=values.get("country") or None,
    )


def _tables(names: Any) -> tuple[str, ...]:
    """An array, although it is documented as a text (3.2)."""
    named = names if isinstance(names, list) else [names]
    return tuple(name for name in named if isinstance(name, str) and name)


# -- the order in our words -------------------------------------------------------------------------------------------


def to_order(remote: RemoteOrder, *, currency: str, open_item: str | None, pending: bool = False) -> Order:
    """The order in our words. A line's key is the item's `uuid`; items alone are booked (trap 9), and with `pending`
    those that wait for approval as well. `open_item`: the product of items without a POS id (trap 10).

    Surcounts of the order and taxes that come on top are lines of the kinds `surcount` and `tax`, so that lines add
    up to the total. Raises `Refused` for an order without items, and for open items if there is no product for them."""
    items = remote.items + (remote.pending if pending else ())
    if not items:
        raise Refused("the order has no items")
    _check_open_items(items, open_item)
    keys = _keys(items)
    lines = [_line(item, key, place, open_item) for place, (item, key) in enumerate(zip(items, keys, strict=True), 1)]
    lines += _extra_lines(remote, items, len(lines) + 1)
    return Order(
        reference=remote.doshii_id,
        currency=currency,
        lines=tuple(lines),
        customer=remote.customer,
        ship_to=remote.address,
        total=_major(total(remote, items)),
        requested_at=remote.required_at,
        notes=_notes(remote),
    )


def _check_open_items(items: Sequence[Product], open_item: str | None) -> None:
    names = [item.name or f"item {place}" for place, item in enumerate(items, 1) if item.pos_id is None]
    if names and open_item is None:
        raise Refused(
            f"{', '.join(names)}: ordered without a POS id, and DOSHII_OPEN_ITEM_PRODUCT, the product to book such "
            "items on, is not set"
        )


def _keys(items: Sequence[Product]) -> list[str]:
    """The uuid, where there is one and only one item has it."""
    counts = Counter(item.uuid for item in items)
    return [
        item.uuid if item.uuid is not None and counts[item.uuid] == 1 else f"item-{place}"
        for place, item in enumerate(items, 1)
    ]


def _line(item: Product, key: str, position: int, open_item: str | None) -> Line:
    return Line(
        key=key,
        position=position,
        product=item.pos_id or open_item,
        quantity=item.quantity,
        description=_description(item),
        unit_price=_major(_each(item)),
        total=_major(_after(item)),
    )


def _description(item: Product) -> str:
    """What the kitchen needs: `Lunch deal (small), Extra: Cheese; with 1 x Cola (Size: Large)`."""
    named = f"{item.name} ({item.description})" if item.name and item.description else item.name or item.description
    text = ", ".join([named, *_chosen(item.variants)] if named else _chosen(item.variants))
    inside = [_inside(one) for one in item.included]
    return f"{text}; with {', '.join(inside)}" if inside else text


def _inside(one: Included) -> str:
    chosen = ", ".join(_chosen(one.variants))
    return f"{_plain(one.quantity)} x {one.name}" + (f" ({chosen})" if chosen else "")


def _chosen(variants: Iterable[Variant]) -> list[str]:
    return [f"{variant.option}: {variant.name}" if variant.option else variant.name for variant in variants]


def _extra_lines(remote: RemoteOrder, items: Iterable[Product], position: int) -> list[Line]:
    taxes = [tax for tax in (*remote.taxes, *(tax for item in items for tax in item.taxes)) if tax.exclusive]
    extras: list[tuple[str, Surcount | Tax]] = [("surcount", one) for one in remote.surcounts]
    extras += [("tax", one) for one in taxes]
    counts: Counter[str] = Counter()
    lines = []
    for place, (kind, one) in enumerate(extras, position):
        counts[kind] += 1
        value = _major(one.value)
        key = f"{kind}-{counts[kind]}"
        lines.append(
            Line(key, place, one.pos_id, Decimal(1), one.name or kind, unit_price=value, total=value, kind=kind)
        )
    return lines


_DELIVERY = "Delivery: "


def _notes(remote: RemoteOrder) -> str | None:
    table = [f"at {', '.join(remote.tables)}"] if remote.tables else []
    covers = [f"for {remote.covers}"] if remote.covers else []
    how = " ".join([remote.type or "", *table, *covers]).strip()
    delivery = [f"{_DELIVERY}{remote.address_notes}"] if remote.address_notes else []
    return "\n".join(part for part in (how, remote.notes, *delivery) if part) or None


# -- arithmetic (3.2) -------------------------------------------------------------------------------------------------


def total(remote: RemoteOrder, items: Sequence[Product] | None = None) -> int | None:
    """Cents of the whole order: lines after surcounts, the order's surcounts, taxes on top. None: a price is missing.

    `items`: others than the order's own."""
    items = remote.items if items is None else items
    lines = [_after(item) for item in items]
    if any(line is None for line in lines):
        return None
    taxes = (*remote.taxes, *(tax for item in items for tax in item.taxes))
    return (
        sum(line for line in lines if line is not None)
        + sum(one.value for one in remote.surcounts)
        + sum(tax.value for tax in taxes if tax.exclusive)
    )


def _each(item: Product) -> int | None:
    return None if item.unit_price is None else item.unit_price + sum(variant.price for variant in item.variants)


def _computed(item: Product, each: int | None) -> int | None:
    if each is None:
        return None
    return int((item.quantity * each).quantize(Decimal(1), ROUND_HALF_UP))


def _after(item: Product) -> int | None:
    """The line's total: as the partner says; computed only if he says nothing."""
    if item.after is not None:
        return item.after
    before = item.before if item.before is not None else _computed(item, _each(item))
    return None if before is None else before + sum(one.value for one in item.surcounts)


def mismatches(remote: RemoteOrder) -> list[str]:
    """What the partner's totals do not add up to, in words."""
    return [words for place, item in enumerate(remote.items, 1) for words in _line_mismatches(item, place)]


def _line_mismatches(item: Product, place: int) -> Iterator[str]:
    name = f"item {place} ({item.name})"
    each = _each(item)
    if item.before is not None and each is not None:
        inside = sum(int(one.quantity * variant.price) for one in item.included for variant in one.variants)
        # Whether what is chosen inside a bundle costs extra is nowhere said: both are taken for right.
        right = {_computed(item, each), _computed(item, each + inside)}
        if item.before not in right:
            yield (
                f"{name}: {_plain(item.quantity)} x {_major(each)} make {_major(_computed(item, each))}, "
                f"and its total is {_major(item.before)}"
            )
    if item.before is not None and item.after is not None:
        sums = item.before + sum(one.value for one in item.surcounts)
        if sums != item.after:
            yield f"{name}: with its surcounts it makes {_major(sums)}, and its total is {_major(item.after)}"


def payment_mismatch(remote: RemoteOrder, payments: Sequence["Payment"]) -> list[str]:
    """What was paid before and is not the order's total, in words."""
    prepaid = [one for one in payments if one.prepaid and one.status in ("pending", *_AGREED)]
    due = total(remote)
    paid = sum(one.amount for one in prepaid)
    if not prepaid or due is None or due in (paid, sum(one.for_goods for one in prepaid)):
        return []
    return [f"prepaid are {_major(paid)}, and the order's total is {_major(due)}"]


def changes(before: Order, after: Order) -> list[str]:
    """How two readings of an order differ, in words."""
    old, new = ({line.key: line for line in order.lines} for order in (before, after))
    words = [f"{_words(old[key])} is gone" for key in old if key not in new]
    words += [f"{_words(new[key])} is new" for key in new if key not in old]
    words += [one for key in old if key in new for one in _line_changes(old[key], new[key])]
    return words + list(_other_changes(before, after))


def _line_changes(old: Line, new: Line) -> Iterator[str]:
    if _words(old) != _words(new):
        yield f"{_words(old)} is now {_words(new)}"
    if old.product != new.product and old.description == new.description:
        yield f"{_words(new)} is now {new.product}, and was {old.product}"
    # Of another quantity the total is another, too.
    if old.unit_price != new.unit_price or (old.quantity == new.quantity and old.total != new.total):
        yield f"{_words(new)} is now {_price(new)}, and was {_price(old)}"


def _price(line: Line) -> str:
    return "without a price" if line.unit_price is None else f"{line.unit_price} each, {line.total} in all"


def _other_changes(before: Order, after: Order) -> Iterator[str]:
    if before.requested_at != after.requested_at:
        yield f"it is wanted {_when(after.requested_at)}, and was {_when(before.requested_at)}"
    # A linked order may come without its consumer (3.2): that says nothing.
    silent = after.ship_to == Address() and after.customer == Customer()
    old, new = (_one_line(order.notes, delivery=not silent) for order in (before, after))
    if old != new:
        yield f"its notes are now {new!r}, and were {old!r}"
    if before.ship_to != after.ship_to and after.ship_to != Address():
        yield f"it goes to {_place(after.ship_to)}, and went to {_place(before.ship_to)}"
    if before.customer != after.customer and after.customer != Customer():
        yield f"it is for {_person(after.customer)}, and was for {_person(before.customer)}"


def _when(moment: datetime | None) -> str:
    return "as soon as possible" if moment is None else f"at {moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _one_line(notes: str | None, *, delivery: bool) -> str:
    lines = (notes or "").splitlines()
    return "; ".join(line for line in lines if delivery or not line.startswith(_DELIVERY))


def _place(address: Address) -> str:
    parts = (address.street, address.postal_code, address.city, address.region, address.country)
    return ", ".join(part for part in parts if part) or "nowhere"


def _person(customer: Customer) -> str:
    return ", ".join(part for part in (customer.name, customer.phone, customer.email) if part) or "nobody"


def _words(line: Line) -> str:
    return f"{_plain(line.quantity)} x {line.description or line.product}"


def _plain(number: Decimal) -> str:
    return format(number.normalize(), "f")


def _major(cents: int | None) -> Decimal | None:
    return None if cents is None else Decimal(cents).scaleb(-2)


# -- payments (3.6) ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Payment:
    """A transaction. `amount` in cents; below 0 it pays something back. `tip`: cents for the staff."""

    id: str
    status: str
    amount: int
    prepaid: bool
    version: str
    tip: int = 0

    @property
    def for_goods(self) -> int:
        """What of the amount is surely for the order: whether a tip is in it or comes on top is nowhere said."""
        return self.amount - self.tip

    @property
    def words(self) -> str:
        """For people."""
        return f"payment {self.id} of {_major(self.amount)}"


class _Payment(Document):
    id = _Id(required=True)
    status = _status(_PAYMENT_STATUSES)
    amount = _cents(required=True)
    prepaid = fields.Boolean(load_default=False, allow_none=True)
    version = fields.String(required=True)
    tip = _cents()


_PAYMENT = _Payment()


def parse_payments(documents: Iterable[Any]) -> tuple[Payment, ...]:
    """The transactions of an order. Raises `Refused` naming every field that is missing or wrong."""
    loaded = (load(_PAYMENT, document, "a transaction of Doshii") for document in documents)
    return tuple(
        Payment(**{**values, "prepaid": bool(values["prepaid"]), "tip": max(values["tip"] or 0, 0)})
        for values in loaded
    )


def pending_payments(payments: Iterable[Payment]) -> list[Payment]:
    """Those that wait for our answer."""
    return [one for one in payments if one.status == "pending"]


def agreeable(payments: Sequence[Payment], due: int | None) -> Payment | None:
    """The next payment to agree to: one that pays something, and with those agreed to already no more than is `due`
    (cents; None: not known) and its tip. The rest is for a person: money would go back, or too much be taken."""
    waiting = [one for one in pending_payments(payments) if one.amount > 0]
    if due is None:
        return next(iter(waiting), None)
    agreed = [one for one in payments if one.status in _AGREED]
    if sum(one.amount for one in agreed) >= due:
        return None
    left = due - sum(one.for_goods for one in agreed)
    return next((one for one in waiting if one.for_goods <= left), None)


def taken(payments: Iterable[Payment]) -> str:
    """The payments of which money is taken, or being taken, in words; none of it if all has gone back."""
    agreed = [one for one in payments if one.status in _AGREED]
    if sum(one.amount for one in agreed) <= 0:
        return ""
    return ", ".join(f"{one.words} is {one.status}" for one in agreed)


# -- bodies of what we write ------------------------------------------------------------------------------------------
# Here an order is the raw document, just read and once `parse_order` has taken it: what we do not understand of its
# items goes back as it came.

_NUMBERS = frozenset(
    ("quantity", "unitPrice", "totalBeforeSurcounts", "totalAfterSurcounts", "price", "amount", "value", "min", "max")
)


def pos_id(erp_number: str) -> str:
    """Our id of an order: the ERP's number, of which other characters than letters, digits, dot, underscore and
    hyphen become hyphens (trap 19). Raises `Refused` if nothing is left that can stand in a path."""
    text = re.sub(r"[^A-Za-z0-9._-]", "-", erp_number.strip())
    if text.strip(".") == "":
        raise Refused(f"the ERP's number {erp_number!r} cannot be an order id at Doshii")
    return text


def acceptance(document: Json, our_id: str) -> Json:
    """E3: link under our id, and accept what was read (3.3)."""
    return {"id": our_id, "status": "accepted", **_echo(document)}


def rejection(document: Json, code: str | None, reason: str) -> Json:
    """E3 and E8: cancelled by us, with a code if there is one, and always with words (3.7)."""
    named = {} if code is None else {"rejectionCode": code}
    return {"status": "cancelled", "version": document["version"], **named, "rejectionReason": reason}


def completion(document: Json) -> Json:
    """E8: finished (3.4)."""
    return {"status": "complete", **_echo(document)}


def approval(document: Json) -> Json:
    """E8: every item that waits for approval is one of the order's (7.4)."""
    waiting, others = _by_status(document)
    approved = [{name: value for name, value in item.items() if name != "status"} for item in waiting]
    items = [_wire(item) for item in (*document["items"], *approved)]
    return {
        "status": document["status"],
        **_echo(document),
        "items": items,
        "unapprovedItems": [_wire(item) for item in others],
    }


def refusal_of_items(document: Json) -> Json:
    """E8: every item that waits for approval is cancelled."""
    waiting, others = _by_status(document)
    refused = [_wire({**item, "status": "cancelled"}) for item in waiting]
    return {
        "status": document["status"],
        **_echo(document),
        "unapprovedItems": [*(_wire(item) for item in others), *refused],
    }


def _by_status(document: Json) -> tuple[list[Json], list[Json]]:
    items: list[Json] = document.get("unapprovedItems") or []
    waiting = [item for item in items if item.get("status") == "pending"]
    return waiting, [item for item in items if item.get("status") != "pending"]


def _echo(document: Json) -> Json:
    """The version and the items as they were read, uuids and all."""
    body: Json = {
        "version": document["version"],
        "items": [_wire(item) for item in document["items"]],
        "surcounts": [_wire(one) for one in document.get("surcounts") or ()],
    }
    if document.get("unapprovedItems"):
        body["unapprovedItems"] = [_wire(item) for item in document["unapprovedItems"]]
    return body


def _wire(value: Any, name: str = "") -> Any:
    """As the request tables want it: numbers as text, nothing instead of null."""
    if isinstance(value, dict):
        return {key: _wire(inner, key) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_wire(inner) for inner in value]
    if name in _NUMBERS and isinstance(value, int | Decimal) and not isinstance(value, bool):
        return _plain(Decimal(value))
    return value


def go_ahead(payment: Payment, our_id: str) -> Json:
    """E11: we agree to this payment (3.6)."""
    return {"status": "waiting", "orderId": our_id, "amount": str(payment.amount), "version": payment.version}


def no_payment(payment: Payment, code: str | None, reason: str) -> Json:
    """E11: we do not."""
    named = {} if code is None else {"rejectionCode": code}
    return {"status": "rejected", "version": payment.version, **named, "rejectionReason": reason}


class _Code(Document):
    code = _Id(required=True)
    description = fields.String(load_default="", allow_none=True)
    entity = fields.String(load_default=None, allow_none=True)


_CODE = _Code()
_SPELLINGS = ("POSISE", "POSSIE")


def rejection_code(codes: Iterable[Any], entity: str) -> str | None:
    """The code of the list (3.7) that says least: one for other reasons, one for an error at the POS, or any.

    `entity`: `orders` or `transactions`. What codes mean is not public: who knows sets `DOSHII_REJECTION_CODE`."""
    loaded = [load(_CODE, code, "a rejection code of Doshii") for code in codes]
    fitting = [one for one in loaded if one["entity"] == entity]
    others = [one["code"] for one in fitting if re.search(r"\bother\b", one["description"] or "", re.IGNORECASE)]
    faults = [one["code"] for one in fitting if one["code"] in _SPELLINGS]
    return next(iter([*others, *faults, *(one["code"] for one in fitting)]), None)


def is_ours(remote: RemoteOrder, doshii_id: str, line_keys: Collection[str]) -> bool:
    """Whether an order that was read under our id is the one that Doshii knows as `doshii_id`; where Doshii does not
    say, by the items it shares with ours (`line_keys`, section 6)."""
    if remote.doshii_id is not None:
        return remote.doshii_id == doshii_id
    return any(key in line_keys for key in _keys(remote.items))
