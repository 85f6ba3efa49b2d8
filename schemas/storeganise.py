"""Storeganise's JSON, and what it means. Contract: contracts/storeganise.md, whose sections are named here.

Most of it is published nowhere, so reading is tolerant: of a step only what says "completed" is, of an order only what
says "cancelled" is, and where an order stands its steps say.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

from marshmallow import RAISE, fields, validate

from orders.errors import Refused
from orders.model import Customer, Line, Order
from orders.outcomes import Planned
from schemas.base import Amount, Document, Whole, load

Json = dict[str, Any]

PLAN = (Planned("storeganise.fetch"), Planned("erp.order"))
"""Of an order that nobody has read yet; its job's own steps follow."""
RESOLVE = (Planned("storeganise.resolve"),)
"""Of an entry that stands for an order of which only the job is known (trap 2)."""
OF_JOB = "job:"
"""The external id of such an entry begins with this, and the job's id follows."""

COMPLETED = "completed"
_CANCELLED = ("cancelled", "canceled")  # the contract's spelling is an assumption
CLOSED = (COMPLETED, *_CANCELLED)
"""States of an order to which nothing more happens (5.1)."""

START = "order_start"
PICK = "items_pickEmptyBoxes"
DELIVER = "items_deliver"
COLLECT = "items_collect"
STORE = "items_store"
SIGNALS = {START: "approved", PICK: "picked", DELIVER: "delivered", COLLECT: "collected", STORE: "stored"}
"""What must have happened before a step of this type may be completed (trap 4); types not named here are unknown."""
COMMANDS = {
    PICK: "valetOrder_add",
    DELIVER: "valetOrder_deliver",
    COLLECT: "valetOrder_collect",
    STORE: "valetOrder_store",
}
"""What is said of the items before the step is completed (5.2)."""

WITH_CUSTOMER = "with_customer"
TO_WAREHOUSE = "transit_to_warehouse"
STORED = "stored"


# -- orders -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RemoteStep:
    """One step of an order's job."""

    id: str
    type: str
    completed: bool


@dataclass(frozen=True, slots=True)
class RemoteOrder:
    """What we rely on of an order. `sid` is what people call it by; `boxes`: how many empty ones of each item type are
    asked for. `steps` is empty when the answer had none: nothing follows from that (trap 7). `items`: what is on it,
    without types and owners; None when the answer did not say."""

    id: str
    sid: str | None
    state: str | None
    owner: str | None
    job: str | None
    steps: tuple[RemoteStep, ...]
    boxes: dict[str, int]
    day: date | None
    timeslot: str | None
    items: tuple["Item", ...] | None = None

    @property
    def cancelled(self) -> bool:
        return self.state in _CANCELLED

    @property
    def completed(self) -> bool:
        return all(step.completed for step in self.steps) if self.steps else self.state == COMPLETED

    @property
    def open(self) -> tuple[RemoteStep, ...]:
        """The steps that are still to be completed; the first of them is the one to act on."""
        return tuple(step for step in self.steps if not step.completed)

    def step(self, step_id: str, step_type: str) -> RemoteStep | None:
        """The step of that id; else, should the job have been made anew, the only one of that type."""
        alike = [step for step in self.steps if step.type == step_type]
        known = next((step for step in self.steps if step.id == step_id), None)
        return known or (alike[0] if len(alike) == 1 else None)


class _Text(fields.String):
    """A text; a whole number counts as one: ids and short numbers are in no published sample."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        return super()._deserialize(value, attr, data, **kwargs)


class _Step(Document):
    id = _Text(required=True, validate=validate.Length(min=1))
    type = fields.String(required=True, validate=validate.Length(min=1, max=100))
    state = fields.String(load_default=None, allow_none=True)


class _Box(Document):
    item_type = _Text(data_key="itemTypeId", required=True)
    quantity = Whole(required=True, validate=validate.Range(min=0))


class _Order(Document):
    id = _Text(required=True)
    sid = _Text(load_default=None, allow_none=True)
    state = fields.String(load_default=None, allow_none=True)
    owner = _Text(data_key="ownerId", load_default=None, allow_none=True)
    job = _Text(data_key="jobId", load_default=None, allow_none=True)
    steps = fields.List(fields.Nested(_Step), load_default=list)
    boxes = fields.List(fields.Nested(_Box), load_default=list, allow_none=True)
    day = fields.String(data_key="date", load_default=None, allow_none=True)
    timeslot = fields.String(load_default=None, allow_none=True)


_ORDER = _Order()


def parse_order(document: Any) -> RemoteOrder:
    """An order, read with its job (3.1). Raises `Refused` naming every field that is missing or wrong."""
    if isinstance(document, dict):
        document = {**document, "steps": _steps_in(document.get("job"))}
    values = load(_ORDER, document, "Storeganise's order")
    boxes: Counter[str] = Counter()
    for box in values.pop("boxes") or ():
        boxes[box["item_type"]] += box["quantity"]
    steps = tuple(RemoteStep(one["id"], one["type"], one["state"] == COMPLETED) for one in values.pop("steps"))
    wanted = {kind: quantity for kind, quantity in boxes.items() if quantity}
    items = _items_on(values["id"], document.get("items"))
    return RemoteOrder(**{**values, "day": _day(values["day"])}, steps=steps, boxes=wanted, items=items)


def _steps_in(job: Any) -> Any:
    """The job has the steps, or is the list of them."""
    steps = job.get("steps") if isinstance(job, dict) else job
    return [] if steps is None else steps


def _day(text: str | None) -> date | None:
    try:
        return date.fromisoformat((text or "")[:10])
    except ValueError:  # it is told to the ERP, and nothing depends on it
        return None


# -- items ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Item:
    """A box, or something bulky. `order`: the id of the order it is on."""

    sid: str
    state: str | None
    type: str | None
    owner: str | None
    order: str | None
    location: str | None


class _Item(Document):
    sid = _Text(required=True)
    state = fields.String(load_default=None, allow_none=True)
    type = _Text(data_key="itemTypeId", load_default=None, allow_none=True)
    owner = _Text(data_key="ownerId", load_default=None, allow_none=True)
    order = _Text(data_key="valetOrderId", load_default=None, allow_none=True)
    location = _Text(load_default=None, allow_none=True)


_ITEM = _Item()


def digest(text: str) -> str:
    """A short name for a long text."""
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def parse_items(rows: Iterable[Any]) -> dict[str, Item]:
    """Items (3.6) by their sid. Raises `Refused` for one without."""
    items = (Item(**load(_ITEM, row, "an item of Storeganise's")) for row in rows)
    return {item.sid: item for item in items}


def _items_on(order_id: str, rows: Any) -> tuple[Item, ...] | None:
    if not isinstance(rows, list):
        return None
    return tuple(replace(item, order=order_id) for item in parse_items(rows).values())


def not_asked_for(boxes: Mapping[str, int], items: Iterable[Item]) -> list[str]:
    """Which of the items picked for an order that wants `boxes` it did not ask for, in words."""
    found: dict[str, list[str]] = {}
    for item in items:
        found.setdefault(item.type or "", []).append(item.sid)
    if "" in found:  # no type is shown: the server itself compares
        return []
    return [
        f"{', '.join(sids)}: {len(sids)} of item type {kind}, and the order asks for {boxes.get(kind, 0)}"
        for kind, sids in found.items()
        if len(sids) > boxes.get(kind, 0)
    ]


# -- the order in our words -------------------------------------------------------------------------------------------


def to_order(remote: RemoteOrder, items: Iterable[Item]) -> Order:
    """The order for the ERP: a line for each item type of which empty boxes are asked for, and one for each of `items`
    of another type, which are not boxes picked meanwhile but what the customer has at home (5.2). Raises `Refused`
    when it has neither.

    There are no prices: the invoice is Storeganise's. The day is kept as midnight UTC, the time slot as a note."""
    lines = _lines(remote, items)
    if not lines:
        raise Refused("the order asks for no boxes and has no items")
    return Order(
        reference=remote.sid,
        currency=None,
        lines=lines,
        customer=Customer(remote_id=remote.owner),
        requested_at=_requested_at(remote),
        notes=_notes(remote),
    )


def _lines(remote: RemoteOrder, items: Iterable[Item]) -> tuple[Line, ...]:
    lines: list[tuple[str, str | None, int, str]] = [
        (f"box:{kind}", kind, quantity, "empty boxes") for kind, quantity in remote.boxes.items()
    ]
    at_home = [item for item in items if not lines or item.type not in (None, *remote.boxes)]
    lines += [(f"{_ITEM_LINE}{item.sid}", item.type, 1, item.sid) for item in at_home]
    return tuple(
        Line(key=key, position=position, product=product, quantity=Decimal(quantity), description=description)
        for position, (key, product, quantity, description) in enumerate(lines, 1)
    )


_ITEM_LINE = "item:"


def _requested_at(remote: RemoteOrder) -> datetime | None:
    return None if remote.day is None else datetime.combine(remote.day, time(), UTC)


def _notes(remote: RemoteOrder) -> str | None:
    return f"time slot {remote.timeslot}" if remote.timeslot else None


def changed(told: Order, remote: RemoteOrder, items: Iterable[Item] | None) -> list[str]:
    """What of an order reads otherwise by now than the ERP was `told`, in words. `items`: what is on it, with types;
    None if that is not known."""
    was = {line.key: line.quantity for line in told.lines}
    # A box of a type that was asked for once is no belonging of the customer's when it is asked for no more.
    boxes = {line.product for line in told.lines if not line.key.startswith(_ITEM_LINE)}
    lines = _lines(remote, items or ())
    reads = {one.key: one.quantity for one in lines if not (one.key.startswith(_ITEM_LINE) and one.product in boxes)}
    keys = [key for key in dict.fromkeys([*was, *reads]) if items is not None or not key.startswith(_ITEM_LINE)]
    pairs: list[tuple[str, object, object]] = [(f"{key} is", reads.get(key, 0), was.get(key, 0)) for key in keys]
    days = [at.date().isoformat() if at is not None else "none" for at in (_requested_at(remote), told.requested_at)]
    pairs.append(("the day is", days[0], days[1]))
    words = [f"{what} {now}, and was {before}" for what, now, before in pairs if now != before]
    slot = _notes(remote)
    return words if slot == told.notes else [*words, f"{slot or 'no time slot'}, and was {told.notes or 'none'}"]


# -- what an operator adds or changes (3.5) ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Charge:
    """A charge to be added. `marker` is in its title and tells it from every other one of the order's, so that a
    repeat finds it (trap 16)."""

    title: str
    amount: Decimal
    quantity: int
    marker: str

    def as_json(self) -> Json:
        return {"title": f"{self.title} [{self.marker}]", "amount": self.amount, "quantity": self.quantity}


class _Charge(Document):
    class Meta:
        unknown = RAISE

    title = fields.String(required=True, validate=validate.Length(min=1, max=200))
    amount = Amount(required=True)
    quantity = Whole(load_default=1, validate=validate.Range(min=1))
    key = _Text(load_default="")


_CHARGE = _Charge()


def parse_charge(order_id: str, data: Any) -> Charge:
    """`{"title", "amount", "quantity" (1), "key"}` from an operator. The same data is the same charge, however often it
    comes: `key` tells two that are alike apart. Raises `Refused` in words."""
    values = load(_CHARGE, data, "the charge")
    title, amount, quantity = values["title"].strip(), values["amount"], values["quantity"]
    if not title or not amount:
        raise Refused("the charge needs a title, and an amount other than 0")
    same = "|".join((order_id, title, str(amount.normalize()), str(quantity), values["key"]))
    return Charge(title, amount, quantity, f"of-{hashlib.sha256(same.encode()).hexdigest()[:10]}")


def charges_of(document: Json) -> list[Any]:
    """The charges of an order just read. Raises `Refused` when it shows none: the list is replaced whole, and what we
    do not see would be lost."""
    charges = document.get("charges")
    if not isinstance(charges, list):
        raise Refused("the order shows no list of charges, which a new one would replace: add it in the admin UI")
    return charges


def count_charge(charges: Sequence[Any], charge: Charge) -> int:
    """How often this charge is there."""
    return sum(charge.marker in str(one.get("title")) for one in charges if isinstance(one, dict))


def other_charges(charges: Sequence[Any], charge: Charge) -> Counter[str]:
    """The charges but for this one, to be compared."""
    others = (one for one in charges if not (isinstance(one, dict) and charge.marker in str(one.get("title"))))
    return Counter(json.dumps(_plain(one), sort_keys=True, default=str) for one in others)


def _plain(value: Any) -> Any:
    """Numbers as they count: 5, 5.0 and 5.00 are one amount."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return str(Decimal(str(value)).normalize())
    return value


TOLD_TO_THE_ERP = ("boxes", "date", "timeslot")
"""Fields that `to_order` makes use of and that may be edited."""

_NOT_TO_EDIT = {
    "charges": "that is the command `charge`",
    "id": "that is never changed",
    "items": "items are moved by the job's steps",
    "job": "its steps are completed one after another",
    "jobId": "that is never changed",
    "sid": "that is never changed",
    "state": "that follows from the job's steps",
}


def check_edit(data: Json) -> None:
    """Raises `Refused` for what no edit may touch, and for an edit of nothing."""
    if not data:
        raise Refused('say what to change: {"date": "2026-12-01"}, or {"customFields": {"code": "value"}}')
    if forbidden := [f"{name}: {why}" for name, why in _NOT_TO_EDIT.items() if name in data]:
        raise Refused(f"cannot be edited: {'; '.join(forbidden)}")
    if "customFields" in data and not isinstance(data["customFields"], dict):
        raise Refused('customFields: give an object, as {"code": "value"}')


def edited(document: Json, data: Json) -> dict[str, tuple[Any, Any]]:
    """What `data` would change in the order: (is now, is wanted) by field; custom fields merge by code."""
    now = {name: document.get(name) for name in data if name != "customFields"}
    wanted = {name: value for name, value in data.items() if name != "customFields"}
    custom = document.get("customFields") or {}
    for code, value in data.get("customFields", {}).items():
        now[f"customFields.{code}"], wanted[f"customFields.{code}"] = custom.get(code), value
    return {name: (now[name], value) for name, value in wanted.items() if _plain(now[name]) != _plain(value)}
