"""An imitation of Storeganise's valet orders, written from `contracts/storeganise.md` and the seed.

Section numbers in this file are those of the contract. What it marks [assumed] is what happens here; the knobs of its
section 10 are fields of `Options` and of an order's specification, or requests to the control endpoints of
`sandbox.base`. One control endpoint is added: `GET /_sandbox/deliveries[?order=ID]`, the webhooks and what became of
them.
"""

import base64
import hashlib
import heapq
import hmac
import json
import random
import secrets
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import count as counting
from typing import Any

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from sandbox import base
from sandbox.base import Json, json_response
from sandbox.posting import Post, PostOptions

ADMIN = "/api/v1/admin"
WEBHOOK_PATH = "/webhooks/storeganise/"
RETRY_WAITS = (60.0, 300.0)
"""Seconds before the second and the third try of a delivery (section 8.3)."""
PATIENCE_SECONDS = 2.0
"""The shorter of the two deadlines for an answer (section 8.3)."""
UNKNOWN_PRODUCT = "UNKNOWN-PRODUCT"
"""An item type that the sandbox ERP refuses."""
ELSEWHERE = "00000000000000000000e15e"
"""The order, none of ours, that has the first box of an order specified with `box_elsewhere`."""

STANDARD_BOX = "5f0000000000000000000001"
WARDROBE_BOX = "5f0000000000000000000002"
ARCHIVE_BOX = "5f0000000000000000000003"
SOFA = "5f0000000000000000000011"
BICYCLE = "5f0000000000000000000012"
MATTRESS = "5f0000000000000000000013"

BOX_STEPS = ("order_start", "items_pickEmptyBoxes", "items_deliver", "items_collect", "items_store")
BULKY_STEPS = ("order_start", "items_collect", "items_store")
PRODUCT_STEPS = ("order_start", "products_pick", *BOX_STEPS[1:])


@dataclass(kw_only=True)
class Options(PostOptions):
    """The knobs of section 10 that are neither faults nor those of every sender of webhooks."""

    api_key: str = "sandbox-key"
    role: str = "admin"
    """`admin` and `manager` may write, `api` only reads (section 2)."""
    steps: dict[str, Sequence[str]] = field(
        default_factory=lambda: {"boxes": BOX_STEPS, "bulky": BULKY_STEPS, "products": PRODUCT_STEPS}
    )
    """The job's steps by kind of order."""
    items_partial: bool = False
    """An item command does what it can and answers 200 (section 3.4, trap 12)."""
    charges_append: bool = False
    """Charges sent are added to those that are there, which bills twice (trap 16)."""
    job_as_list: bool = False
    """`job` is the list of steps itself (section 3.1)."""
    list_in: str | None = None
    """Lists come in an object, under this name: `data`, `results` or `items` (section 3.2)."""
    page_size: int = 100
    page_max: int = 1000
    custom_fields: Sequence[str] = ("erpNumber", "notes")
    """The codes that are defined (section 3.5)."""
    locations: Sequence[str] = tuple(f"S{number}" for number in range(1, 10))
    webhook_secret: str = "sandbox-secret"
    webhook_data: str = "both"
    """What `data` names: `both` ids, or only the `job` (section 8.1)."""
    webhook_id: bool = True
    """Whether deliveries carry an `id` (section 8.2)."""
    webhook_wrongly_signed: float = 0.0
    """The share of deliveries that carry somebody else's signature."""
    webhook_disabled_after: int | None = None
    """No deliveries any more after so many in a row that were given up."""
    addon_id: str | None = None
    """Deliveries are those of an add-on: they carry `addonId` and `apiUrl`."""
    addon_state: str = "enabled"
    """`paused`: events are lost. `disabled`: the add-on's own key is refused too (section 8.3)."""
    api_url: str = "https://sandbox.storeganise.example.test/api"


def new_id() -> str:
    """24 hexadecimal digits, never the same: not even after a restart, because a fleet remembers."""
    return f"{int(time.time()):08x}{secrets.token_hex(8)}"


def _stamp(moment: datetime) -> str:
    """As Storeganise writes a time: in UTC, with milliseconds."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# Orders and items as the server keeps them


@dataclass(slots=True)
class Item:
    """A box, or something bulky. `order`: the one it is on."""

    id: str
    sid: str
    item_type: str
    state: str = "unassigned"
    owner: str | None = None
    order: str | None = None
    location: str | None = None

    def as_json(self) -> Json:
        """The item object of section 3.6."""
        return {
            "id": self.id,
            "sid": self.sid,
            "state": self.state,
            "itemTypeId": self.item_type,
            "ownerId": self.owner,
            "valetOrderId": self.order,
            "location": self.location,
        }


@dataclass(slots=True)
class Step:
    """One step of an order's job: `pending`, `ready` or `completed`."""

    id: str
    type: str
    state: str = "pending"


@dataclass(slots=True)
class Order:
    """One valet order (section 3.1) and its job."""

    id: str
    sid: str
    job: str
    owner: str
    date: str
    timeslot: str
    created: str
    updated: str
    steps: list[Step]
    kind: str = "boxes"
    state: str = "created"
    boxes: list[Json] = field(default_factory=list)
    charges: list[Json] = field(default_factory=list)
    custom_fields: Json = field(default_factory=dict)

    @property
    def closed(self) -> bool:
        """Nothing more happens to it."""
        return self.state in ("completed", "cancelled")

    def active(self) -> Step | None:
        """The first step that is not completed."""
        return next((step for step in self.steps if step.state != "completed"), None)


class ApiError(Exception):
    """An answer that is an error (section 9)."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers or {}

    def response(self) -> Response:
        """The answer itself."""
        document = {"error": {"message": str(self), "code": self.code}}
        return json_response(document, self.status, self.headers)


def _invalid(message: str) -> ApiError:
    return ApiError(400, "validation_error", message)


def _missing(what: str) -> ApiError:
    return ApiError(404, f"{what}_not_found", f"No such {what}.")


# The rules of sections 3.3, 3.4 and 5.3


@dataclass(frozen=True)
class Command:
    """An item command: during which step, on which items, and the state they are in afterwards."""

    step: str
    fits: Callable[[Item, Order], bool]
    after: str


COMMANDS = {
    "valetOrder_add": Command(
        "items_pickEmptyBoxes",
        lambda item, order: item.state == "unassigned" and item.order is None,
        "unassigned",
    ),
    "valetOrder_deliver": Command(
        "items_deliver",
        lambda item, order: item.state == "transit_to_customer" and item.order == order.id,
        "with_customer",
    ),
    "valetOrder_collect": Command(
        "items_collect",
        lambda item, order: item.state == "with_customer" and item.owner == order.owner,
        "transit_to_warehouse",
    ),
    "valetOrder_store": Command(
        "items_store",
        lambda item, order: item.state == "transit_to_warehouse" and item.order == order.id,
        "stored",
    ),
}


def _all_picked(order: Order, items: list[Item]) -> bool:
    requested: Counter[str] = Counter()
    for box in order.boxes:
        requested[box["itemTypeId"]] += box["quantity"]
    return Counter(item.item_type for item in items if item.state == "unassigned") == requested


REQUIREMENTS: dict[str, Callable[[Order, list[Item]], bool]] = {
    "items_pickEmptyBoxes": _all_picked,
    "items_deliver": lambda order, items: all(item.state == "with_customer" for item in items),
    "items_collect": lambda order, items: any(item.state == "transit_to_warehouse" for item in items),
    "items_store": lambda order, items: all(item.state != "transit_to_warehouse" for item in items),
}
"""What must be true of the order's items before its step is completed; other types require nothing."""


@dataclass(frozen=True)
class Write:
    """Who writes what, for the effect log. Staff write in the admin UI."""

    method: str
    path: str
    raw: bytes = b""


Tell = Callable[[str, Order, Sequence[Item]], None]
"""Sends an event: its type, and which order and items it is about."""


class Tenant:
    """All orders and items of one account in memory, and their rules. Callers hold `lock` while they use it."""

    def __init__(self, options: Options, effects: base.EffectLog, clock: Callable[[], float], tell: Tell) -> None:
        self.lock = threading.RLock()
        self.orders: dict[str, Order] = {}
        self.jobs: dict[str, Order] = {}
        self.tasks: dict[str, Json] = {}
        self.items: dict[str, Item] = {}
        self._options = options
        self._effects = effects
        self._clock = clock
        self._tell = tell
        self._numbers = counting(1001)
        self._by_sid: dict[str, Order] = {}
        self._laid_out: dict[str, list[Item]] = {}
        """By order: the boxes that the warehouse has put ready, or what the customer has at home."""
        self._on_order: defaultdict[str, dict[str, Item]] = defaultdict(dict)
        """By order, then sid: what is on it."""
        self._life: list[tuple[float, int, Order, Json]] = []
        self._life_numbers = counting()

    def stamp(self) -> str:
        """Now."""
        return _stamp(datetime.fromtimestamp(self._clock(), UTC))

    def find(self, key: str) -> Order:
        """An order by its id or its sid, for those who play a person. Raises `KeyError`."""
        return self.orders.get(key) or self._by_sid[key]

    def items_of(self, order: Order) -> list[Item]:
        """The items that are on the order."""
        return list(self._on_order[order.id].values())

    def boxes_for(self, order: Order) -> list[Item]:
        """What was laid out for the order, and what else is on it."""
        return list({item.sid: item for item in (*self._laid_out[order.id], *self.items_of(order))}.values())

    def _move(self, item: Item, order: str | None) -> None:
        if item.order is not None:
            del self._on_order[item.order][item.sid]
        item.order = order
        if order is not None:
            self._on_order[order][item.sid] = item

    # A customer books

    def book(self, specification: Json) -> Order:
        """A new order, the boxes laid out for it in the warehouse, and what will happen to it. Raises `ValueError`."""
        known = dict(specification)
        later = known.pop("later", [])
        elsewhere = known.pop("box_elsewhere", False)
        order, own = self._read_booking(known)
        self._lay_out(order, own)
        if elsewhere:
            self._move(self._laid_out[order.id][0], ELSEWHERE)
        self.orders[order.id] = self.jobs[order.job] = self._by_sid[order.sid] = order
        for event in later:
            self._expect(order, self._clock() + event["after"], event["patch"])
        self._tell("job.valetOrder.submitted", order, ())
        if order.state == "created":
            self._tell("job.valetOrder.created", order, ())
        return order

    def _read_booking(self, known: Json) -> tuple[Order, list[str]]:
        """The order, and the types of the customer's own items on it."""
        own = known.pop("items", None)
        boxes = known.pop("boxes", None)
        kind = known.pop("kind", "bulky" if own and not boxes else "boxes")
        if own is None:
            own = [SOFA] if kind == "bulky" else []
        if boxes is None:
            boxes = [] if kind == "bulky" else [{"itemTypeId": STANDARD_BOX, "quantity": 2}]
        types = known.pop("steps", None) or self._options.steps.get(kind)
        if not types:
            raise ValueError(f"no steps for orders of the kind {kind}")
        sid = known.pop("sid", None) or next(
            free for number in self._numbers if (free := f"V-{number}") not in self._by_sid
        )
        if sid in self._by_sid:
            raise ValueError(f"order {sid} exists")
        now = self.stamp()
        order = Order(
            id=new_id(),
            sid=sid,
            job=new_id(),
            owner=known.pop("ownerId", None) or new_id(),
            date=known.pop("date", None) or (date.fromisoformat(now[:10]) + timedelta(days=2)).isoformat(),
            timeslot=known.pop("timeslot", "1000-1200"),
            created=now,
            updated=now,
            steps=[Step(new_id(), step) for step in types],
            kind=kind,
            state=known.pop("state", "created"),
            boxes=boxes,
            charges=list(known.pop("charges", [])),
            custom_fields=dict(known.pop("customFields", {})),
        )
        if known:
            raise ValueError(f"not a field to set: {', '.join(sorted(known))}")
        if order.state not in ("submitted", "created", "cancelled"):
            raise ValueError(f"a new order cannot be {order.state}: complete its steps")
        order.steps[0].state = "ready"
        return order, own

    def _lay_out(self, order: Order, own: list[str]) -> None:
        """`<sid>-1` and so on: empty boxes in the warehouse, then what the customer has at home."""
        boxes = [box["itemTypeId"] for box in order.boxes for _ in range(box["quantity"])]
        laid_out = self._laid_out[order.id] = []
        for number, item_type in enumerate([*boxes, *own], start=1):
            item = Item(new_id(), f"{order.sid}-{number}", item_type)
            if number > len(boxes):
                item.state, item.owner = "with_customer", order.owner
                self._move(item, order.id)
            self.items[item.sid] = item
            laid_out.append(item)

    # Steps

    def step_of(self, order: Order, step_id: str) -> Step:
        """Raises `ApiError` 404: also for the step of another order."""
        step = next((step for step in order.steps if step.id == step_id), None)
        if step is None:
            raise _missing("step")
        return step

    def complete(self, order: Order, step: Step, write: Write) -> None:
        """Section 3.3. Raises `ApiError` 400."""
        if step.state == "completed":
            raise ApiError(400, "step_already_completed", "The step is completed already.")
        if order.closed:
            raise ApiError(400, "order_closed", f"The order is {order.state}.")
        if step.state != "ready":
            raise ApiError(400, "step_not_ready", "An earlier step is not completed yet.")
        items = self.items_of(order)
        if step.type in REQUIREMENTS and not REQUIREMENTS[step.type](order, items):
            raise ApiError(400, "step_requirements_not_met", "The items of this step are not done yet.")
        step.state = "completed"
        self._after_step(order, step, items, write)

    def _after_step(self, order: Order, step: Step, items: list[Item], write: Write) -> None:
        name = "staff_complete_step" if write.method == "STAFF" else "complete_step"
        kinds = [name, f"step:{step.type}:completed"]
        events = []
        if step.type == "order_start":
            kinds.append(f"state:{order.state}->started")
            order.state = "started"
            events.append("job.valetOrder.started")
        if step.type == "items_pickEmptyBoxes":
            for item in items:
                item.state = "transit_to_customer" if item.state == "unassigned" else item.state
            events.append("items.updated")
        following = order.active()
        if following is not None:
            following.state = "ready"
        else:
            kinds.append(f"state:{order.state}->completed")
            order.state = "completed"
            events.append("job.valetOrder.completed")
        self._changed(order, write, tuple(kinds))
        if step.type == "order_start":
            self._record(order, write, ("invoice",), order.sid)
        for event in events:
            self._tell(event, order, items if event == "items.updated" else ())

    # Items

    def command(self, name: str, sids: list[str], order: Order, location: str | None, write: Write) -> list[Item]:
        """Section 3.4: the items that were changed. Raises `ApiError` 400, 404."""
        command = COMMANDS[name]
        active = order.active()
        if order.closed:
            raise ApiError(400, "order_closed", f"The order is {order.state}.")
        if active is None or active.type != command.step:
            raise ApiError(400, "step_not_ready", f"The step {command.step} is not ready.")
        found = [item for sid in dict.fromkeys(sids) if (item := self._item(sid)) is not None]
        good = [item for item in found if self._fits(command, item, order)]
        for item in good:
            item.state, item.owner, item.location = command.after, order.owner, location
            self._move(item, order.id)
        if good:
            self._changed(order, write, (name,))
            for item in good:
                self._record(order, write, (f"item:{name}",), item.sid)
            self._tell("items.updated", order, good)
        return good

    def _item(self, sid: str) -> Item | None:
        item = self.items.get(sid)
        if item is None and not self._options.items_partial:
            raise _missing("item")
        return item

    def _fits(self, command: Command, item: Item, order: Order) -> bool:
        if command.fits(item, order):
            return True
        if self._options.items_partial:
            return False
        raise ApiError(400, "item_wrong_state", f"Item {item.sid} is {item.state}.")

    # Data and charges

    def edit_data(self, order: Order, values: Json, write: Write) -> None:
        """Section 3.5, with cleaned values. Raises `ApiError` 400."""
        if order.closed:
            raise ApiError(400, "order_closed", f"The order is {order.state}.")
        kinds = []
        for name in ("date", "timeslot"):
            if values.get(name, getattr(order, name)) != getattr(order, name):
                kinds.append(name)
                setattr(order, name, values[name])
        for code, value in values.get("customFields", {}).items():
            if order.custom_fields.get(code) != value:
                kinds.append(f"customFields:{code}")
                order.custom_fields[code] = value
        added: list[str] = []
        if "charges" in values:
            before = order.charges
            order.charges = [*before, *values["charges"]] if self._options.charges_append else values["charges"]
            added = _added_titles(before, order.charges)
            kinds.append("charges")
        self._changed(order, write, ("put_order", *kinds))
        for title in added:
            self._record(order, write, ("charge",), title)

    def add_task(self, order: Order | None, document: Json, write: Write) -> Json:
        """`POST /jobs` (section 3.6): a task for an operator, one more each time."""
        task = {"id": new_id(), "type": "task", "state": "created", **document}
        self.tasks[task["id"]] = task
        self._effects.record(write.method, write.path, order.id if order else "", ("task",), write.raw)
        return task

    def _changed(self, order: Order, write: Write, kinds: tuple[str, ...]) -> None:
        order.updated = self.stamp()
        self._record(order, write, kinds)

    def _record(self, order: Order, write: Write, kinds: tuple[str, ...], key: str | None = None) -> None:
        self._effects.record(write.method, write.path, order.id, kinds, write.raw, key)

    # People

    def edit(self, order: Order, patch: Json) -> None:
        """What a person does at the other end: see `Storeganise.edit_order`. Raises `KeyError`, `ValueError`."""
        if unknown := patch.keys() - {"state", "complete_step", "items", *_EDITABLE}:
            raise ValueError(f"not a field to set: {', '.join(sorted(unknown))}")
        for name in patch.keys() & {"date", "timeslot", "charges"}:
            setattr(order, name, patch[name])
        order.custom_fields |= patch.get("customFields", {})
        if "items" in patch:
            self._edit_items(order, patch["items"])
        if "complete_step" in patch:
            self._work(order, patch["complete_step"])
        if "state" in patch:
            self._edit_state(order, patch["state"])
        order.updated = self.stamp()

    def _edit_state(self, order: Order, state: str) -> None:
        if state not in ("submitted", "created", "started", "completed", "cancelled"):
            raise ValueError(f"unknown state: {state}")
        if state != order.state:
            order.state = state
            self._tell(f"job.valetOrder.{state}", order, ())

    def _edit_items(self, order: Order, patches: Json) -> None:
        for sid, patch in patches.items():
            if unknown := patch.keys() - {"state", "ownerId", "valetOrderId", "location"}:
                raise ValueError(f"not a field of an item to set: {', '.join(sorted(unknown))}")
            item = self.items[f"{order.sid}-{sid}" if sid.isdigit() else sid]
            self._move(item, patch.get("valetOrderId", item.order))
            item.state = patch.get("state", item.state)
            item.owner = patch.get("ownerId", item.owner)
            item.location = patch.get("location", item.location)
            self._tell("items.updated", order, [item])

    def _work(self, order: Order, step_type: str) -> None:
        """Staff do what the step asks for, with the items that are laid out or on the order, and complete it."""
        step = order.active()
        if step is None or step.type != step_type:
            raise ValueError(f"the step {step_type} is not ready")
        write = Write("STAFF", f"/admin/valet-orders/{order.id}")
        try:
            for name, command in COMMANDS.items():
                sids = [item.sid for item in self.boxes_for(order) if command.fits(item, order)]
                if command.step == step_type and sids:
                    location = self._options.locations[0] if name == "valetOrder_store" else None
                    self.command(name, sids, order, location, write)
            self.complete(order, step, write)
        except ApiError as error:
            raise ValueError(str(error)) from None

    # What happens by itself

    def _expect(self, order: Order, when: float, patch: Json) -> None:
        heapq.heappush(self._life, (when, next(self._life_numbers), order, patch))

    def settle(self) -> None:
        """Everything that people have done by now. Staff wait for their step; nobody cancels a started order."""
        while self._life and self._life[0][0] <= self._clock():
            _, _, order, patch = heapq.heappop(self._life)
            step = next((step for step in order.steps if step.type == patch.get("complete_step")), None)
            if order.closed or (patch.get("state") == "cancelled" and order.state == "started"):
                continue
            if step is not None and step.state == "pending":
                self._expect(order, self._clock() + 1.0, patch)
                continue
            with suppress(ValueError):  # somebody else was faster
                self.edit(order, patch)


def _added_titles(before: list[Json], after: list[Json]) -> list[str]:
    """The titles of the charges that are new, or there more often than before."""
    old = Counter(json.dumps(charge, sort_keys=True) for charge in before)
    new = Counter(json.dumps(charge, sort_keys=True) for charge in after)
    return [json.loads(charge)["title"] for charge in (new - old).elements()]


# Webhooks (section 8)


def signature(secret: str, raw: bytes) -> str:
    """The header `sg-signature` for a body."""
    return base64.b64encode(hmac.new(secret.encode(), raw, hashlib.sha256).digest()).decode()


class Webhooks:
    """Sends events to one address, once it is known."""

    def __init__(self, options: Options, clock: Callable[[], float]) -> None:
        self.url: str | None = None
        self.post = Post(options, waits=RETRY_WAITS, good=lambda status: status == 200, timeout=PATIENCE_SECONDS)
        self._options = options
        self._clock = clock
        self._dice = random.Random(options.webhook_seed)
        self._disabled = False

    def tell(self, kind: str, order: Order, items: Sequence[Item]) -> None:
        """Send an event; returns at once. While nobody listens, or the add-on is not enabled, it is lost."""
        if self.url is None or self._options.addon_state != "enabled" or self._is_disabled():
            return
        data: Json = {"itemIds": [item.id for item in items]} if items else {}
        data["jobId"] = order.job
        if self._options.webhook_data == "both":
            data["valetOrderId"] = order.id
        raw = json.dumps(self._body(kind, data), ensure_ascii=False, separators=(",", ":")).encode()
        wrong = self._dice.random() < self._options.webhook_wrongly_signed
        secret = "somebody else's" if wrong else self._options.webhook_secret
        headers = {"Content-Type": "application/json;charset=UTF-8", "sg-signature": signature(secret, raw)}
        self.post.send(self.url, raw, headers, order.id)

    def _body(self, kind: str, data: Json) -> Json:
        created = _stamp(datetime.fromtimestamp(self._clock(), UTC))
        body: Json = {"id": new_id()} if self._options.webhook_id else {}
        body |= {"created": created, "type": kind, "data": data}
        body["businessCode"] = "lagerhaus-köln"
        if self._options.addon_id is not None:
            body |= {"apiUrl": self._options.api_url, "addonId": self._options.addon_id}
        return body

    def _is_disabled(self) -> bool:
        limit = self._options.webhook_disabled_after
        if limit is not None and not self._disabled:
            ended = [one for one in self.post.deliveries() if one.lost or 200 in one.statuses]
            self._disabled = len(ended) >= limit and all(one.lost for one in ended[-limit:])
        return self._disabled

    def deliveries(self, order: str | None) -> list[Json]:
        """What was sent. `alert_mail`: the tries were used up, and the account's owner was told so."""
        return [{**one.as_json(), "alert_mail": one.lost and bool(one.statuses)} for one in self.post.deliveries(order)]


# What callers send


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _invalid(f"{name} must be a text.")
    return value


def _day(value: Any, name: str) -> str:
    try:
        return date.fromisoformat(_text(value, name)).isoformat()
    except ValueError:
        raise _invalid(f"{name} must be YYYY-MM-DD.") from None


def _object(value: Any, name: str) -> Json:
    if not isinstance(value, dict):
        raise _invalid(f"{name} must be an object.")
    return value


def _charges(value: Any, name: str) -> list[Json]:
    if not isinstance(value, list):
        raise _invalid(f"{name} must be a list.")
    cleaned = []
    for entry in value:
        charge = {"quantity": 1, **_object(entry, name)}
        if charge.keys() != {"title", "amount", "quantity"}:
            raise _invalid(f"{name} have a title, an amount and a quantity.")
        _text(charge["title"], "title")
        for number in ("amount", "quantity"):
            if isinstance(charge[number], bool) or not isinstance(charge[number], int | float):
                raise _invalid(f"{number} must be a number.")
        cleaned.append(charge)
    return cleaned


def _sids(value: Any) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(sid, str) for sid in value):
        raise _invalid("itemSids must be a list of texts, and not empty.")
    return value


_EDITABLE: dict[str, Callable[[Any, str], Any]] = {
    "date": _day,
    "timeslot": _text,
    "charges": _charges,
    "customFields": _object,
}


def _whole(name: str, default: int, least: int) -> int:
    text = request.args.get(name, str(default))
    if not text.isdigit() or int(text) < least:
        raise _invalid(f"{name} must be a whole number, at least {least}.")
    return int(text)


def _stamp_given(name: str) -> str:
    """A time of the query as `_stamp` writes it; empty without one."""
    text = request.args.get(name)
    if not text:
        return ""
    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        given = None
    if given is None or given.tzinfo is None:
        raise _invalid(f"{name} must be a time in UTC: 2024-01-01T00:00:00.000Z.")
    return _stamp(given)


def _json_body() -> Json:
    try:
        body = json.loads(request.get_data())
    except ValueError:
        raise _invalid("The body is not JSON.") from None
    return _object(body, "The body")


# The application


class Storeganise:
    """The backend: every call of the contract, on one `Tenant`."""

    def __init__(self, options: Options, clock: Callable[[], float] = time.time) -> None:
        self.options = options
        self.effects = base.EffectLog(clock)
        self.interpositions = base.Interpositions()
        self.webhooks = Webhooks(options, clock)
        self._throttle = base.Throttle(options)
        self._tenant = Tenant(options, self.effects, clock, self.webhooks.tell)

    # The control endpoints' side

    def invent(self, count: int | None, seed: int, plain: bool) -> Iterator[Json]:
        """See the function of the same name."""
        return invent(count, seed, plain=plain)

    def add_orders(self, specifications: Iterable[Json]) -> list[str]:
        """Book orders; their ids. Each may say: `sid`, `kind` (of `Options.steps`), `steps` (types), `state`,
        `ownerId`, `date`, `timeslot`, `boxes`, `items` (the types of what the customer has at home), `charges`,
        `customFields`, `box_elsewhere` (the first box is on another order) and `later`: a list of {"after":
        seconds, "patch": as for `edit_order`}. Raises `ValueError`."""
        ids = []
        for specification in specifications:
            with self._tenant.lock:
                ids.append(self._tenant.book(specification).id)
        return ids

    def all_orders(self) -> Iterator[Json]:
        """Every order with its job, items and custom fields. Each is true for itself; not a snapshot of all."""
        with self._tenant.lock:
            self._tenant.settle()
            orders = list(self._tenant.orders.values())
        return (self._everything(order) for order in orders)

    def one_order(self, order_id: str) -> Json:
        """One of them, by its id or its sid. Raises `KeyError`."""
        with self._tenant.lock:
            self._tenant.settle()
            return self._everything(self._tenant.find(order_id))

    def edit_order(self, order_id: str, patch: Json) -> None:
        """A person edits an order, named by its id or its sid: `state` ("cancelled" and so on), `complete_step` (staff
        do the work of the step of this type and complete it), `items` ({sid, or its last number: {field: value}}),
        `date`, `timeslot`, `charges`, `customFields`. The events go out. Raises `KeyError`, `ValueError`."""
        with self._tenant.lock:
            self._tenant.edit(self._tenant.find(order_id), patch)

    def _everything(self, order: Order) -> Json:
        with self._tenant.lock:
            document = self._document(order, {"job", "customFields"})
            items = [item.as_json() for item in self._tenant.boxes_for(order)]
        return {**document, "kind": order.kind, "items": items}

    def deliveries(self) -> Response:
        """`GET /_sandbox/deliveries[?order=ID]`."""
        return json_response(self.webhooks.deliveries(request.args.get("order")))

    # Before every call

    def admit(self) -> None:
        """Credentials, the role and the rate limit (sections 2 and 9), in this order."""
        with self._tenant.lock:
            self._tenant.settle()
        if not request.path.startswith(ADMIN + "/"):
            return
        self._authenticate()
        if request.method != "GET" and self.options.role not in ("admin", "manager"):
            raise ApiError(403, "forbidden", "The key may not write.")
        if (seconds := self._throttle.wait()) is not None:
            raise ApiError(429, "too_many_requests", "Too many requests.", {"Retry-After": str(seconds)})

    def _authenticate(self) -> None:
        scheme, _, credential = request.headers.get("Authorization", "").partition(" ")
        expected = {"ApiKey": self.options.api_key}
        if self.options.addon_id is not None:
            expected["Addon"] = f"{self.options.addon_id}|{self.options.api_key}"
        if scheme not in expected or not hmac.compare_digest(credential.encode(), expected[scheme].encode()):
            raise ApiError(401, "unauthorized", "The key is missing or wrong.")
        if scheme == "Addon" and self.options.addon_state == "disabled":
            raise ApiError(403, "forbidden", "The add-on is disabled.")

    # Valet orders

    def read_order(self, order_id: str) -> Response:
        """`GET /valet-orders/{orderId}` (section 3.1)."""
        with self._tenant.lock:
            order = self._order(order_id)
            return self._answer(order, self._document(order, _included()))

    def list_orders(self) -> Response:
        """`GET /valet-orders` (sections 3.2 and 4)."""
        state, since = request.args.get("state"), _stamp_given("updatedAfter")
        with self._tenant.lock:
            orders = [
                order
                for order in self._tenant.orders.values()
                if order.updated >= since and state in (None, "", order.state)
            ]
            orders.sort(key=lambda order: (order.updated, order.id))
            return self._list([self._document(order, _included()) for order in self._page(orders)])

    def complete_step(self, order_id: str, step_id: str) -> Response:
        """`PUT /valet-orders/{orderId}/steps/{stepId}` (section 3.3)."""
        body = _json_body()
        with self._tenant.lock:
            order = self._order(order_id)
            step = self._tenant.step_of(order, step_id)
            if body.get("state") != "completed":
                raise _invalid('state must be "completed".')
            self._tenant.complete(order, step, _write())
            return self._answer(order, self._document(order, set()))

    def put_order(self, order_id: str) -> Response:
        """`PUT /valet-orders/{orderId}` (section 3.5): only what was sent changes."""
        body = _json_body()
        with self._tenant.lock:
            order = self._order(order_id)
            if unknown := body.keys() - _EDITABLE.keys():
                raise _invalid(f"Not editable: {', '.join(sorted(unknown))}.")
            values = {name: _EDITABLE[name](value, name) for name, value in body.items()}
            if unknown := values.get("customFields", {}).keys() - set(self.options.custom_fields):
                raise _invalid(f"Not defined as custom fields: {', '.join(sorted(unknown))}.")
            self._tenant.edit_data(order, values, _write())
            return self._answer(order, self._document(order, {"customFields"}))

    # Items

    def command_items(self) -> Response:
        """`PUT /items` (section 3.4)."""
        body = _json_body()
        name, sids = body.get("command"), _sids(body.get("itemSids"))
        if not isinstance(name, str) or name not in COMMANDS:
            raise ApiError(400, "unknown_command", f"Unknown command: {name}.")
        data = _object(body.get("data"), "data")
        order_id = _text(data.get("valetOrderId"), "data.valetOrderId")
        location = self._location(data) if name == "valetOrder_store" else None
        with self._tenant.lock:
            order = self._order(order_id)
            items = self._tenant.command(name, sids, order, location, _write())
            return self._answer(order, [item.as_json() for item in items])

    def _location(self, data: Json) -> str:
        location = _text(data.get("location"), "data.location")
        if location not in self.options.locations:
            raise ApiError(400, "unknown_location", f"No such location: {location}.")
        return location

    def list_items(self) -> Response:
        """`GET /items?sids=a,b` (section 3.6); those that do not exist are left out."""
        wanted = request.args.get("sids")
        with self._tenant.lock:
            items = self._tenant.items
            known = [items[sid] for sid in wanted.split(",") if sid in items] if wanted else list(items.values())
            return self._list([item.as_json() for item in self._page(known)])

    def read_item(self, sid: str) -> Response:
        """`GET /items/{sid}` (section 3.6)."""
        with self._tenant.lock:
            if sid not in self._tenant.items:
                raise _missing("item")
            return json_response(self._tenant.items[sid].as_json())

    # Jobs and the add-on

    def read_job(self, job_id: str) -> Response:
        """`GET /jobs/{jobId}` (section 3.6)."""
        with self._tenant.lock:
            if task := self._tenant.tasks.get(job_id):
                return json_response(task)
            order = self._tenant.jobs.get(job_id)
            if order is None:
                raise _missing("job")
            job = {**self._job(order), "state": order.state, "ownerId": order.owner, "valetOrderId": order.id}
            return json_response(job)

    def add_job(self) -> Response:
        """`POST /jobs` (section 3.6): a task, each time a new one."""
        body = _json_body()
        if body.get("type") != "task":
            raise _invalid('type must be "task".')
        data = _object(body.get("data"), "data")
        _text(data.get("title"), "data.title")
        with self._tenant.lock:
            order = None
            if data.get("targetType") == "valetOrder":
                order = self._order(_text(data.get("targetId"), "data.targetId"))
            document = {"ownerId": body.get("ownerId"), "data": data}
            return json_response(self._tenant.add_task(order, document, _write()))

    def read_addon(self, addon_id: str) -> Response:
        """`GET /addons/{addonId}` (section 3.6)."""
        if addon_id != self.options.addon_id:
            raise _missing("addon")
        return json_response({"id": addon_id, "state": self.options.addon_state, "customFields": {}})

    # Answers

    def _order(self, order_id: str) -> Order:
        order = self._tenant.orders.get(order_id)
        if order is None:
            raise _missing("order")
        return order

    def _document(self, order: Order, include: set[str]) -> Json:
        document: Json = {
            "id": order.id,
            "sid": order.sid,
            "state": order.state,
            "ownerId": order.owner,
            "jobId": order.job,
            "date": order.date,
            "timeslot": order.timeslot,
            "boxes": order.boxes,
            "charges": order.charges,
            "created": order.created,
            "updated": order.updated,
        }
        if "job" in include:
            job = self._job(order)
            document["job"] = job["steps"] if self.options.job_as_list else job
        if "items" in include:
            names = ("id", "sid", "state", "location")
            items = [item.as_json() for item in self._tenant.items_of(order)]
            document["items"] = [{name: item[name] for name in names} for item in items]
        if "customFields" in include:
            document["customFields"] = order.custom_fields
        return document

    def _job(self, order: Order) -> Json:
        return {"id": order.job, "type": "valetOrder", "steps": [asdict(step) for step in order.steps]}

    def _page(self, rows: list[Any]) -> list[Any]:
        limit = min(_whole("limit", self.options.page_size, 1), self.options.page_max)
        offset = _whole("offset", 0, 0)
        return rows[offset : offset + limit]

    def _list(self, rows: list[Json]) -> Response:
        return json_response({self.options.list_in: rows} if self.options.list_in else rows)

    def _answer(self, order: Order, document: Any) -> Response:
        """The answer as it is now; just after it, somebody may edit the order."""
        answer = json_response(document)
        if patch := self.interpositions.take(request.method, order.id):
            with suppress(ValueError):  # a person cannot do twice what is done
                self._tenant.edit(order, patch)
        return answer


def _included() -> set[str]:
    return set(request.args.get("include", "").split(","))


def _write() -> Write:
    return Write(request.method, request.path, request.get_data())


_EXTENSION = "sandbox.storeganise"


def create_app(options: Options | None = None, clock: Callable[[], float] = time.time) -> Flask:
    """The imitation as a WSGI application; `clock` gives seconds since 1970. `point_at` tells where events go."""
    tenant = Storeganise(options or Options(), clock)
    app = Flask("sandbox.storeganise", static_folder=None)
    for method, rule, view in (
        ("GET", f"{ADMIN}/valet-orders", tenant.list_orders),
        ("GET", f"{ADMIN}/valet-orders/<order_id>", tenant.read_order),
        ("PUT", f"{ADMIN}/valet-orders/<order_id>", tenant.put_order),
        ("PUT", f"{ADMIN}/valet-orders/<order_id>/steps/<step_id>", tenant.complete_step),
        ("GET", f"{ADMIN}/items", tenant.list_items),
        ("PUT", f"{ADMIN}/items", tenant.command_items),
        ("GET", f"{ADMIN}/items/<sid>", tenant.read_item),
        ("GET", f"{ADMIN}/jobs/<job_id>", tenant.read_job),
        ("POST", f"{ADMIN}/jobs", tenant.add_job),
        ("GET", f"{ADMIN}/addons/<addon_id>", tenant.read_addon),
        ("GET", f"{base.CONTROL}deliveries", tenant.deliveries),
    ):
        app.add_url_rule(rule, view.__name__, view, methods=[method])
    app.before_request(tenant.admit)
    app.register_error_handler(ApiError, ApiError.response)
    app.register_error_handler(HTTPException, _http_error)
    app.extensions[_EXTENSION] = tenant
    base.install(app, tenant)
    return app


def _http_error(error: HTTPException) -> Response:
    """Wrong address or verb (section 9)."""
    document = {"error": {"message": error.description or error.name, "code": error.name.lower().replace(" ", "_")}}
    return json_response(document, error.code or 500)


def backend_of(app: Flask) -> Storeganise:
    """What `create_app` made, for tests in the same process."""
    backend: Storeganise = app.extensions[_EXTENSION]
    return backend


def point_at(app: Flask, web: str, account: str = "default") -> None:
    """From now on deliver events to the fleet whose web server is at `web`, to its `account`."""
    backend_of(app).webhooks.url = f"{web}{WEBHOOK_PATH}{account}"


def fleet_settings(url: str) -> dict[str, str]:
    """The environment that points a fleet at this imitation at `url`."""
    known = Options()
    return {
        "STOREGANISE_URL": url,
        "STOREGANISE_API_KEY": known.api_key,
        "STOREGANISE_WEBHOOK_SECRET": known.webhook_secret,
        "STOREGANISE_AUTO_APPROVE": "no",
        "STOREGANISE_POLL_SECONDS": "3",
    }


# Invented orders

_NOTES = ("Bitte bei Müller klingeln", "Third floor, no lift", "Παρακαλώ τηλεφωνήστε", "Zufahrt über den Hof")
_TIMESLOTS = ("0800-1000", "1000-1200", "1300-1500", "1600-1800")


def invent(count: int | None, seed: int, *, plain: bool = False) -> Iterator[Json]:
    """Specifications for `Storeganise.add_orders`, always the same for a seed; endless without `count`.

    Three in four ask for empty boxes, the others are bulky. About one in ten is odd, not if `plain`: the customer
    cancels soon, the ERP does not know a box, products or an unknown step are for staff to do, staff are faster than
    the fleet, or a box is on another order until somebody frees it.
    """
    dice = random.Random(seed)
    for _ in counting() if count is None else range(count):
        odd = dice.random() < 0.1
        order = _boxes(dice) if odd or dice.random() < 0.75 else _bulky(dice)
        oddity = dice.choice(_ODDITIES)(dice, order) if odd else {}
        yield order if plain else {**order, **oddity}


def _boxes(dice: random.Random) -> Json:
    types = dice.sample((STANDARD_BOX, WARDROBE_BOX, ARCHIVE_BOX), dice.choice((1, 1, 2)))
    return {**_visit(dice), "boxes": [{"itemTypeId": kind, "quantity": dice.randint(1, 3)} for kind in types]}


def _bulky(dice: random.Random) -> Json:
    items = [dice.choice((SOFA, BICYCLE, MATTRESS)) for _ in range(dice.randint(1, 3))]
    return {**_visit(dice), "kind": "bulky", "items": items}


def _visit(dice: random.Random) -> Json:
    fields = {"notes": dice.choice(_NOTES)} if dice.random() < 0.3 else {}
    return {"ownerId": f"{dice.getrandbits(96):024x}", "timeslot": dice.choice(_TIMESLOTS), "customFields": fields}


def _cancelled(dice: random.Random, order: Json) -> Json:
    return {"later": [{"after": dice.uniform(0.5, 6), "patch": {"state": "cancelled"}}]}


def _unknown_box(dice: random.Random, order: Json) -> Json:
    return {"boxes": [*order["boxes"], {"itemTypeId": UNKNOWN_PRODUCT, "quantity": 1}]}


def _products(dice: random.Random, order: Json) -> Json:
    charge = {"title": "Packing tape", "amount": 2.5, "quantity": dice.randint(1, 4)}
    return {"kind": "products", "charges": [charge], "later": [_staff(dice, "products_pick")]}


def _unknown_step(dice: random.Random, order: Json) -> Json:
    steps = (*BOX_STEPS[:4], "items_inspect", *BOX_STEPS[4:])
    return {"steps": list(steps), "later": [_staff(dice, "items_inspect")]}


def _busy_staff(dice: random.Random, order: Json) -> Json:
    return {"later": [_staff(dice, dice.choice(BOX_STEPS))]}


def _staff(dice: random.Random, step: str) -> Json:
    return {"after": dice.uniform(2, 8), "patch": {"complete_step": step}}


def _box_elsewhere(dice: random.Random, order: Json) -> Json:
    freed = {"items": {"1": {"valetOrderId": None, "ownerId": None}}}
    return {"box_elsewhere": True, "later": [{"after": dice.uniform(15, 30), "patch": freed}]}


_ODDITIES: tuple[Callable[[random.Random, Json], Json], ...] = (
    _cancelled,
    _cancelled,
    _unknown_box,
    _products,
    _unknown_step,
    _busy_staff,
    _busy_staff,
    _box_elsewhere,
)
