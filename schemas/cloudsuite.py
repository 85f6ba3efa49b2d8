"""CloudSuite's JSON and XML, and what they mean. Contract: contracts/cloudsuite.md, whose sections are named here.

Documents are as the client parsed them: floats as `Decimal`. Floats and numeric strings are read all the same (3.2).
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import Any
from xml.etree import ElementTree

from marshmallow import ValidationError, fields, validate

from orders.errors import Refused
from orders.model import Address, Customer, Line, Order
from schemas.base import Amount, Document, Whole, load

Json = dict[str, Any]

STATES = ("draft", "quotation", "confirmed", "processing", "done", "cancel")


# -- what an order says -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RemoteLine:
    """One line. `id` may change when the order is put back (7)."""

    id: int
    product: str | None
    product_origin: str | None
    description: str
    kind: str
    quantity: Decimal
    unit_price: Decimal | None
    erp_line_number: int | None


@dataclass(frozen=True, slots=True)
class RemoteOrder:
    """What we rely on of an order as CloudSuite shows it.

    `state` is one of `STATES`; `payment_status` whatever it says, for `gate` to judge. `customer` and
    `shipment_address` are ids."""

    id: int
    reference: str | None
    key: str | None
    state: str
    payment_status: str | None
    shipment_state: str | None
    erp_order_number: str | None
    webshop: int
    offline: bool
    customer: int | None
    shipment_address: int | None
    currency: str | None
    description: str | None
    requested_delivery_date: date | None
    lines: tuple[RemoteLine, ...]


class _Product(Document):
    key = fields.String(load_default=None, allow_none=True)
    origin = fields.String(load_default=None, allow_none=True)


class _Line(Document):
    id = Whole(required=True)
    product = fields.Nested(_Product, load_default=None, allow_none=True)
    description = fields.String(load_default="", allow_none=True)
    kind = fields.String(data_key="type", load_default="line")
    quantity = Amount(required=True)
    unit_price = Amount(load_default=None, allow_none=True)
    erp_line_number = Whole(load_default=None, allow_none=True)


def _each_its_own_id(lines: list[Json]) -> None:
    doubles = [str(line_id) for line_id, count in Counter(line["id"] for line in lines).items() if count > 1]
    if doubles:
        raise ValidationError(f"more than one line has the id {', '.join(doubles)}")


class _Order(Document):
    id = Whole(required=True)
    reference = fields.String(load_default=None, allow_none=True)
    key = fields.String(load_default=None, allow_none=True)
    state = fields.String(required=True, validate=validate.OneOf(STATES, error="{input!r:.40} is not a known state"))
    payment_status = fields.String(load_default=None, allow_none=True)
    shipment_state = fields.String(load_default=None, allow_none=True)
    erp_order_number = fields.String(load_default=None, allow_none=True)
    webshop = Whole(required=True)  # an order without one would be taken for another shop's, and dropped
    offline = fields.Boolean(load_default=False, allow_none=True)
    customer = Whole(load_default=None, allow_none=True)
    shipment_address = Whole(load_default=None, allow_none=True)
    currency = fields.String(load_default=None, allow_none=True)
    description = fields.String(load_default=None, allow_none=True)
    requested_delivery_date = fields.Date(load_default=None, allow_none=True)
    lines = fields.List(fields.Nested(_Line), data_key="order_lines", required=True, validate=_each_its_own_id)


_ORDER = _Order()


def parse_order(document: Any) -> RemoteOrder:
    """The detail object (3.2). Raises `Refused` naming every field that is missing or wrong."""
    values = load(_ORDER, document, "CloudSuite's order")
    lines = tuple(_remote_line(line) for line in values.pop("lines"))
    return RemoteOrder(**{**values, "offline": bool(values["offline"])}, lines=lines)


def _remote_line(values: Json) -> RemoteLine:
    product = values.pop("product") or {"key": None, "origin": None}
    return RemoteLine(
        **{**values, "description": values["description"] or ""},
        product=product["key"] or None,
        product_origin=product["origin"] or None,
    )


class Payment(Enum):
    """What the payment allows. STOP: it needs a person, or a payment that comes later."""

    PROCESS = "process"
    HOLD = "hold"
    STOP = "stop"


_PAYMENTS = {
    "closed_success": Payment.PROCESS,
    "paid": Payment.PROCESS,
    "account": Payment.PROCESS,
    "started": Payment.HOLD,
    "closed_canceled": Payment.STOP,
}


def gate(payment_status: str | None, payment_none: str) -> Payment:
    """Whether an order of this payment status goes on (5.2). `payment_none`: 'hold' or 'process', for 'none'."""
    if payment_status == "none" and payment_none == "process":
        return Payment.PROCESS
    return _PAYMENTS.get(payment_status or "", Payment.STOP)


def to_order(remote: RemoteOrder) -> Order:
    """The order in our words; a line's key is its id of now. Raises `Refused` for an order without lines.

    `total` is None: the API has none, prices are without tax, and `paid_amount` is with it, or null."""
    if not remote.lines:
        raise Refused("the order has no lines")
    return Order(
        reference=remote.reference,
        currency=remote.currency,
        lines=tuple(_line(line, position) for position, line in enumerate(remote.lines, 1)),
        customer=Customer(remote_id=_id_text(remote.customer)),
        ship_to=Address(remote_id=_id_text(remote.shipment_address)),
        requested_at=_midnight(remote.requested_delivery_date),
        notes=remote.description or None,
    )


def _line(line: RemoteLine, position: int) -> Line:
    return Line(
        key=str(line.id),
        position=position,
        product=line.product,
        quantity=line.quantity,
        description=line.description,
        product_origin=line.product_origin,
        unit_price=line.unit_price,
        total=None if line.unit_price is None else line.quantity * line.unit_price,
        kind=line.kind,
    )


def _id_text(number: int | None) -> str | None:
    return None if number is None else str(number)


def _midnight(day: date | None) -> datetime | None:
    return None if day is None else datetime.combine(day, time(), UTC)


_PARTS = {
    "reference": "the reference",
    "currency": "the currency",
    "customer": "the customer",
    "ship_to": "the delivery address",
    "requested_at": "the date it is wanted",
    "notes": "the notes",
}
_LINE_PARTS = {"product": "product", "product_origin": "product", "description": "description", "kind": "type"}


def changes(known: Order, now: Order) -> list[str]:
    """What of an order is not as it was known, in words; nothing: an empty list. Values are shown of amounts alone.

    A line is known by its key, or else by what it says: our own PUT may give lines new ids (7)."""
    words = [f"{name} changed" for part, name in _PARTS.items() if getattr(known, part) != getattr(now, part)]
    left = {line.key: line for line in now.lines}
    missing = []
    for line in known.lines:
        same = left.pop(line.key, None)
        if same is None:
            missing.append(line)
        else:
            words += [f"line {line.key}: {text}" for text in _line_changes(line, same)]
    for line in missing:
        twin = next((key for key, other in left.items() if _but_for_key(other) == _but_for_key(line)), None)
        if twin is None:
            words.append(f"line {line.key} is gone")
        else:
            del left[twin]
    return words + [f"line {key} is new" for key in left]


def _but_for_key(line: Line) -> Line:
    return replace(line, key="", position=0)


def _line_changes(known: Line, now: Line) -> list[str]:
    amounts = [name for name in ("quantity", "unit_price") if getattr(known, name) != getattr(now, name)]
    words = [f"{name} was {getattr(known, name)} and is {getattr(now, name)}" for name in amounts]
    others = [name for part, name in _LINE_PARTS.items() if getattr(known, part) != getattr(now, part)]
    return words + [f"{name} changed" for name in dict.fromkeys(others)]


def with_first_keys(order: Order, remote: RemoteOrder, numbers: Mapping[str, int]) -> Order:
    """`order`, just made of `remote`, with the keys that the ERP knows its lines by.

    `numbers`: the ERP's line numbers by those keys. A line that a PUT of ours gave a new id has its number still."""
    there = {line.key for line in order.lines}
    lost = {number: key for key, number in numbers.items() if key not in there}
    first = {
        str(line.id): lost.pop(line.erp_line_number)
        for line in remote.lines
        if line.erp_line_number in lost and str(line.id) not in numbers
    }
    return order.with_lines(tuple(replace(line, key=first.get(line.key, line.key)) for line in order.lines))


# -- the ERP's numbers, put back into the order -----------------------------------------------------------------------
# Here an order is the raw document, once `parse_order` has taken it: a PUT must carry what we do not understand, too.

_SERVER_OWNED = frozenset(("id", "payment_status", "offline", "create_date", "modified_date", "confirm_date"))
_FIELDS = (
    "reference",
    "key",
    "state",
    "shipment_state",
    "customer_order_number",
    "order_date",
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
_LINE_FIELDS = ("product", "description", "type", "quantity", "unit_price")
_AMOUNTS = frozenset(("quantity", "unit_price", "paid_amount"))
_SAYABLE = frozenset(("state", "shipment_state", "quantity", "unit_price"))
"""Fields whose values a message may show; descriptions and the buyer's own numbers tell of people."""

_Numbers = Mapping[str, int | None]
"""ERP line numbers by line key, as they are in an order."""


def lines_differ(document: Json, numbers: Mapping[str, int]) -> list[str]:
    """What of `numbers` (line key to ERP line number) is not in the order yet, or not for one line alone: in words.

    A line that is gone counts as numbered if another one, which is none of ours, has its number: a PUT may give lines
    new ids (7)."""
    there = _numbers_there(document)
    words = [f"line {key} is no longer there" for key in _gone(there, numbers)]
    words += [
        f"line {key} has {_number_words(there[key])}, and not {number}"
        for key, number in numbers.items()
        if key in there and there[key] != number
    ]
    return words + _ambiguous(there, numbers)


def replacement(document: Json, erp_order_number: str, numbers: Mapping[str, int]) -> Json:
    """The body of the PUT (3.4) that sets these numbers and changes nothing else (traps 1 and 2).

    `document` must have been read just now: its state, every field and every line go back, the unknown ones, too,
    since a PUT empties what it does not name. Left out are what the server owns, and empty texts, which mean the same
    unnamed and which a server may refuse.

    Raises `Refused` where somebody else set another number, where two lines would have one (trap 11), and where a
    line is gone."""
    there = _numbers_there(document)
    _refuse_overwriting(document.get("erp_order_number"), erp_order_number, there, numbers)
    if gone := _gone(there, numbers):
        raise Refused(
            f"the ERP numbered lines that are no longer in the order: {', '.join(gone)}; replay from cloudsuite.fetch"
        )
    will_be = {**there, **{key: number for key, number in numbers.items() if key in there}}
    if ambiguous := _ambiguous(will_be, numbers):
        raise Refused(f"deliveries could not be told apart: {'; '.join(ambiguous)}")
    body = _filled({name: value for name, value in document.items() if name not in _SERVER_OWNED})
    lines = [_filled({**line, "erp_line_number": will_be[_key(line)]}) for line in document["order_lines"]]
    return {**body, "erp_order_number": erp_order_number, "order_lines": lines}


def _refuse_overwriting(old: str | None, new: str, there: _Numbers, numbers: Mapping[str, int]) -> None:
    if old and old != new:
        raise Refused(f"the order carries ERP number {old}, ours is {new}: somebody wrote it")
    taken = [
        f"line {key} has {_number_words(there[key])}, ours is {number}"
        for key, number in numbers.items()
        if there.get(key) not in (None, number)
    ]
    if taken:
        raise Refused(f"{'; '.join(taken)}: somebody wrote it")


def _gone(there: _Numbers, numbers: Mapping[str, int]) -> list[str]:
    """Keys that are neither there nor, to judge by the number, there under a new id."""
    others = {number for key, number in there.items() if key not in numbers}
    return [key for key, number in numbers.items() if key not in there and number not in others]


def _ambiguous(there: _Numbers, numbers: Mapping[str, int]) -> list[str]:
    counts = Counter(there.values())
    wanted = sorted(set(numbers.values()))
    return [f"{counts[number]} lines have ERP line number {number}" for number in wanted if counts[number] > 1]


def _filled(values: Json) -> Json:
    return {name: value for name, value in values.items() if value != ""}


def _numbers_there(document: Json) -> _Numbers:
    return {_key(line): _erp_line_number(line) for line in document["order_lines"]}


def _key(line: Json) -> str:
    return str(int(line["id"]))


def _erp_line_number(line: Json) -> int | None:
    number = line.get("erp_line_number")
    return None if number is None else int(number)


def _number_words(number: int | None) -> str:
    return "no ERP line number" if number is None else f"ERP line number {number}"


# -- what a PUT did besides -------------------------------------------------------------------------------------------


def same_content(before: Json, after: Json) -> list[str]:
    """What differs between two reads of an order besides the ERP's numbers it got, in words; nothing: an empty list.

    The server's own fields may move, and so may unknown ones (they may be computed), but none may be emptied. A state
    or a shipment state that differs is told, whoever moved it: our PUT may have undone a person's change in between,
    or the other way round. Lines that got a new id are known by their content (7)."""
    words = [_field_words(name, before, after) for name in _changed(before, after, _FIELDS, "order_lines")]
    if before.get("erp_order_number") and before["erp_order_number"] != after.get("erp_order_number"):
        words.append("the ERP order number changed")
    pairs, gone, new = _pair(before["order_lines"], after["order_lines"])
    for old, line in pairs:
        words += [f"line {_key(old)}: {text}" for text in _line_differences(old, line)]
    words += [f"line {_key(line)} is gone" for line in gone]
    return words + [f"line {_key(line)} is new" for line in new]


def _changed(before: Json, after: Json, compared: tuple[str, ...], *elsewhere: str) -> list[str]:
    """Names of the fields whose value differs, and of unknown ones that are emptied."""
    numbers = ("erp_order_number", "erp_line_number")
    unknown = [name for name in before if name not in (*compared, *_SERVER_OWNED, *numbers, *elsewhere)]
    emptied = [name for name in unknown if before[name] and not after.get(name)]
    return [name for name in compared if _value(before, name) != _value(after, name)] + emptied


def _value(document: Json, name: str) -> Any:
    """A field for comparing: 2, 2.0 and "2.0000" are one amount; null, no text and no field are all nothing."""
    value = document.get(name)
    if value is None or value == "":
        return None
    if name == "product":
        return value.get("key"), value.get("origin")
    return _amount(value) if name in _AMOUNTS else value


def _amount(value: Any) -> Any:
    try:
        return Decimal(str(value))
    except InvalidOperation:  # what was paid is carried, not relied on: it may be any text
        return value


def _field_words(name: str, before: Json, after: Json) -> str:
    if name in _SAYABLE:
        return f"{name} was {before.get(name)} and is {after.get(name)}"
    return f"{name} changed" if after.get(name) else f"{name} was emptied"


def _line_differences(before: Json, after: Json) -> Iterator[str]:
    for name in _changed(before, after, _LINE_FIELDS):
        yield _field_words(name, before, after)
    number = _erp_line_number(before)
    if number is not None and number != _erp_line_number(after):
        yield f"had ERP line number {number}, and has {_number_words(_erp_line_number(after))}"


def _pair(before: list[Json], after: list[Json]) -> tuple[list[tuple[Json, Json]], list[Json], list[Json]]:
    """Lines of both reads that are one, by id or else by content; those only there before; those only there after."""
    left = {_key(line): line for line in after}
    pairs = [(line, left.pop(_key(line))) for line in before if _key(line) in left]
    known = {_key(line) for line, _ in pairs}
    gone = []
    # Equal lines are told apart by the number they had, so those that had one choose first.
    for line in sorted(before, key=lambda line: _erp_line_number(line) is None):
        if _key(line) in known:
            continue
        twins = [key for key, other in left.items() if _content(other) == _content(line)]
        if twins:
            best = max(twins, key=lambda key: _erp_line_number(left[key]) == _erp_line_number(line))
            pairs.append((line, left.pop(best)))
        else:
            gone.append(line)
    return pairs, gone, list(left.values())


def _content(line: Json) -> tuple[Any, ...]:
    return tuple(_value(line, name) for name in _LINE_FIELDS)


# -- the delivery message ---------------------------------------------------------------------------------------------

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_PLACES = Decimal("0.0001")
_MOST = Decimal(10) ** 8


def desadv(
    *,
    number: str,
    date: date,
    order_number: str,
    lines: Iterable[Line],
    line_numbers: Mapping[str, int],
    quantities: Mapping[str, Decimal],
    carrier: str,
    tracking: str,
    customer: int | None,
) -> bytes:
    """The delivery message `number` (3.6), in UTF-8: the same bytes for the same arguments, so it may be sent again.

    `lines` are the order's; `line_numbers` and `quantities` go by line key, quantities being what this delivery
    brings. Lines without a product, such as freight, are not told.

    Raises `Refused` when nothing is left to tell, or when something cannot be told as it is: a line we do not know or
    that has no ERP number, a quantity that is no decimal(12,4) above 0, a character that XML has not."""
    root = ElementTree.Element("Desadv")
    header = ElementTree.SubElement(root, "DesadvHeader")
    _add(header, "DesadvNumber", number)
    _add(header, "DesadvDate", date.isoformat())
    _add(header, "PlannedDeliveryDate", date.isoformat())
    transport = ElementTree.SubElement(header, "TransportDetails")
    _add(transport, "TransportModeCode", carrier)
    _add(ElementTree.SubElement(transport, "MeansOfTransport"), "Identification", tracking)
    detail = ElementTree.SubElement(root, "DesadvDetail")
    items = ElementTree.SubElement(ElementTree.SubElement(detail, "Packaging"), "LineItems")
    for line in _delivered(lines, quantities):
        item = ElementTree.SubElement(items, "Item")
        _add(item, "ItemNum", _item_number(line, line_numbers))
        _add(item, "OrderNum", order_number)
        _add(item, "QuantityValue", _quantity_text(line, quantities[line.key]))
        _add(item, "SellerItemID", line.product or "")
    party = ElementTree.SubElement(ElementTree.SubElement(root, "DesadvParty"), "BuyerParty")
    _add(party, "PartyID", "" if customer is None else str(customer))
    message: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return message


def _add(parent: ElementTree.Element, name: str, text: str) -> None:
    if _NOT_XML.search(text):
        raise Refused(f"the delivery's {name} has a character that XML has not")
    ElementTree.SubElement(parent, name).text = text


def _delivered(lines: Iterable[Line], quantities: Mapping[str, Decimal]) -> list[Line]:
    """Goods of this delivery, in the order's own order."""
    known = {line.key: line for line in sorted(lines, key=lambda line: line.position)}
    unknown = [key for key in quantities if key not in known]
    if unknown:
        raise Refused(f"the delivery has lines that the order has not: {', '.join(unknown)}")
    delivered = [line for key, line in known.items() if key in quantities and line.product is not None]
    if not delivered:
        raise Refused("the delivery has no goods: there is nothing to tell")
    return delivered


def _item_number(line: Line, line_numbers: Mapping[str, int]) -> str:
    if line.key not in line_numbers:
        raise Refused(f"line {line.key} is delivered, and the ERP gave it no line number")
    return str(line_numbers[line.key])


def _quantity_text(line: Line, quantity: Decimal) -> str:
    """Always four places, so that 2 and 2.0 make the same message."""
    if not (quantity.is_finite() and 0 < quantity < _MOST):
        raise Refused(f"line {line.key}: {quantity} delivered is not above 0 and below {_MOST}")
    if quantity % _PLACES:
        raise Refused(f"line {line.key}: {quantity} has more than the 4 decimals that a delivery message has")
    return f"{quantity:.4f}"
