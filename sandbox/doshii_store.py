"""What Doshii knows, and its rules: orders, payments, webhooks; no HTTP. Sections: `contracts/doshii.md`."""

import base64
import copy
import hashlib
import heapq
import json
import threading
import uuid
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count as counting
from urllib.parse import quote

from sandbox import base
from sandbox.base import Json
from sandbox.doshii_documents import (
    ORDER_DEFAULTS,
    SPARE_ITEM,
    TRANSACTION,
    TRANSACTION_DEFAULTS,
    TYPES,
    WRITABLE,
    Problem,
    cents,
    check_code,
    check_method,
    clean,
    order_total,
    partners_values,
    required,
    stamp,
    text,
    written,
)
from sandbox.posting import Post, PostOptions

PREFIX = "/pos/v3"
ALL = "all"
STATUSES = ("pending", "accepted", "rejected", "cancelled", "venue_cancelled", "complete")
TERMINAL = ("rejected", "cancelled", "venue_cancelled", "complete")
UNLINKED_KEPT_SECONDS = 24 * 3600
"""So long a cancelled order stays among the unlinked ones (section 3.1)."""


@dataclass(kw_only=True)
class Options(PostOptions):
    """Credentials, and the switches for what is not public (section 10)."""

    vendor: str = "sandbox"
    vendor_key: str = "sandbox-vendor-key"
    locations: dict[str, str] = field(default_factory=lambda: {"sandbox-location-token": "SANDBOX1"})
    """Location token to location id. Orders belong to the first one unless they say otherwise."""
    forbidden_locations: tuple[str, ...] = ()
    """Ids of locations whose tokens are valid but get 403."""
    token_lifetime: float = 600.0
    """Seconds on either side of a token's `timestamp`."""
    requests_per_second: int | None = None
    """Of one location; more get 429 (section 8: 10 where it is on)."""
    webhook_key: str = "erp"
    webhook_token: str = "sandbox-webhook-token"
    """What `point_at` has webhooks sent with."""
    token_only_header: str = "Bearer {token}"
    """The form of `Authorization` for a subscription that has a token and no key."""
    verification: str = "answered"
    """Of a new subscription: `answered` wants a 2xx, `echoed` the random value back, too, `off` asks nothing."""
    verification_method: str = "POST"
    """`GET` asks with `?verify=` and no body."""
    envelope: str = "documented"
    """Where an event's name is: as each article shows it, or always in `type`, or always in `event`."""
    lean_events: bool = False
    """Events about orders carry the `id` only."""
    echo_events: bool = False
    """The POS's own writes are told to it, too."""
    repeat_created: bool = True
    """An accept that failed is followed by `order_created` again, while the order is pending (section 7.5)."""
    preprocess: bool = False
    """A new order is announced by `order_preprocess` first."""
    uri_base: str = f"https://doshii.example.com{PREFIX}"
    """The beginning of every `uri`. Another host than ours: nobody is to follow them (section 7.2)."""
    linked_visible_via_unlinked: bool = False
    """E2 and E4 still answer for a linked order."""
    linked_put_status: int = 404
    """What E3 answers for a linked order: 404 or 409."""
    legacy_rejected_alias: bool = False
    """E3 takes `rejected` as the SDK of 2017 sends it."""
    answer_with_doshii_id: bool = False
    """E3 answers Doshii's number as `id`, as the seed's example does (trap 6)."""
    hide_doshii_id: bool = False
    """Full orders come without `doshiiId`; the seed does not list it."""
    strict_transitions: bool = True
    """A status change outside the diagram of section 4 gets 400."""
    strict_types: bool = False
    """A write with a `type` beyond the three gets 400."""
    cancel_needs_consent: bool = False
    """An accepted order that its partner cancels stays accepted until the POS cancels it; only the log tells."""
    quantities: str = "integer"
    """How quantities are written: `integer`, `string` ("2") or `decimal` ("2.00")."""
    money: str = "string"
    """`string`, `number`, or `mixed`: `value`, `price` and `tip` as numbers (trap 3)."""
    error_body: str = "v1"
    """The body of an error: `v1`, `message`, `html` or `empty` (section 8)."""
    rejection_texts: dict[str, str] = field(default_factory=dict)
    """Other descriptions for rejection codes than the assumed ones."""
    partner_answers_seconds: float = 1.0
    """So long a partner needs to take or refuse a payment that is not prepaid."""
    auto_complete_seconds: float | None = 0.0
    """So long after its payments cover an accepted order Doshii completes it; `None`: never."""
    venue_timer_seconds: float | None = None
    """So long after accepting it Doshii completes an order whatever was paid."""


@dataclass(slots=True)
class Order:
    """One order. `document` is what is shown of it as it is; times in seconds since 1970."""

    doshii_id: str
    location: str
    status: str
    document: Json
    created: float
    updated: float
    pos_id: str | None = None
    version: str = ""
    changes: int = 0
    uuids: int = 0
    transactions: list["Transaction"] = field(default_factory=list)
    log: list[Json] = field(default_factory=list)


@dataclass(slots=True)
class Transaction:
    """One payment. `answers` is what its partner will say unless it is prepaid."""

    id: str
    location: str
    order: Order | None
    status: str
    document: Json
    created: float
    updated: float
    answers: str = "complete"
    version: str = ""
    changes: int = 0
    log: list[Json] = field(default_factory=list)


@dataclass(slots=True)
class Subscription:
    """Where the events of a location (or `all`) go."""

    location: str
    event: str
    url: str
    key: str
    token: str
    created: float
    updated: float
    latency: int = 0

    def headers(self, options: Options) -> dict[str, str]:
        """Of a delivery (section 7.2)."""
        headers = {"Content-Type": "application/json"}
        if self.key and self.token:
            credentials = base64.b64encode(f"{self.key}:{self.token}".encode()).decode()
            headers["Authorization"] = f"Basic {credentials}"
        elif self.token:
            headers["Authorization"] = options.token_only_header.format(token=self.token)
        return headers


EVENTS = (
    *("order_created", "order_updated", "item_created", "item_updated", "transaction_created", "transaction_updated"),
    *("order_preprocess", "health_check", "app_subscribed", "booking_created", "booking_updated", "checkin_created"),
    *("checkin_updated", "checkin_deleted", "card_activate", "card_enquiry", "loyalty_checkin_created"),
    "loyalty_checkin_deleted",
)
_NAMED_IN_EVENT = ("health_check", "app_subscribed", "order_preprocess")
_APP: Json = {"id": 123, "name": "Ordering App"}

_POS_MOVES = frozenset(
    (
        ("pending", "accepted"),
        ("pending", "cancelled"),
        ("pending", "rejected"),
        ("accepted", "accepted"),
        ("accepted", "complete"),
        ("accepted", "cancelled"),
    )
)
"""What the POS may do to an order's status (section 4); `rejected` gets so far only with the legacy switch."""
_TRANSACTION_STATUSES = ("requested", "pending", "waiting", "complete", "rejected", "cancelled")
_TRANSACTION_MOVES = frozenset((("pending", "waiting"), ("pending", "rejected")))

Kinds = tuple[str, ...]


_LIFE = (
    *("transactions", "quiet", "appends", "appends_after_seconds", "pays", "pays_after_seconds"),
    *("cancels_after_seconds", "cancels_as"),
)


def _payment_status(status: str) -> str:
    if status not in _TRANSACTION_STATUSES:
        raise ValueError(f"no status of a transaction: {status}")
    return status


class Store:
    """Everything that Doshii knows, and its rules; no HTTP. Callers hold `lock` while they use it.

    Rules raise `Problem` and then have changed nothing. Those for a write of the POS return the kinds of its effect,
    without the write's own name; what Doshii or a partner does later goes to the effect log from here, as `auto`.
    """

    def __init__(self, options: Options, clock: Callable[[], float], effects: base.EffectLog) -> None:
        self.lock = threading.RLock()
        self.post = Post(options, waits=[60.0 * (2**n - 1) for n in range(1, 11)], timeout=10.0)
        self.orders: dict[str, Order] = {}
        self.linked: dict[tuple[str, str], Order] = {}
        self.transactions: dict[str, Transaction] = {}
        self.subscriptions: dict[tuple[str, str], Subscription] = {}
        self.preprocessings: dict[str, Json] = {}
        self._options = options
        self._clock = clock
        self._effects = effects
        self._unlinked: defaultdict[str, dict[str, Order]] = defaultdict(dict)
        self._by_update: defaultdict[str, OrderedDict[str, Order]] = defaultdict(OrderedDict)
        self._next_order = 8001
        self._next_transaction = 1301
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = counting()

    # What happens by itself

    def settle(self) -> None:
        """Let happen what is due by now."""
        while self._due and self._due[0][0] <= self._clock():
            heapq.heappop(self._due)[2]()

    @property
    def something_is_due(self) -> bool:
        """Whether anything will still happen by itself, now or later."""
        return bool(self._due)

    def later(self, seconds: float | None, action: Callable[[], None]) -> None:
        """Do `action` after so many seconds; at once for 0, never for `None`."""
        if seconds is None:
            return
        if seconds <= 0:
            action()
        else:
            heapq.heappush(self._due, (self._clock() + seconds, next(self._numbers), action))

    def _auto(self, order: Order | None, *kinds: str, key: str | None = None) -> None:
        self._effects.record("AUTO", "", order.doshii_id if order else "", ("auto", *kinds), b"", key)

    # Reading

    def unlinked(self, location: str) -> list[Order]:
        """Never-linked orders, oldest first (E1)."""
        orders = self._unlinked[location]
        oldest = self._clock() - UNLINKED_KEPT_SECONDS
        for order in [order for order in orders.values() if order.status in TERMINAL and order.updated < oldest]:
            del orders[order.doshii_id]
        return list(orders.values())

    def linked_since(self, location: str, since: float) -> list[Order]:
        """Linked orders changed since then, by creation. Looks at no older ones, however many there are."""
        found = []
        for order in reversed(self._by_update[location].values()):
            if order.updated < since:
                break
            found.append(order)
        return sorted(found, key=lambda order: (order.created, int(order.doshii_id)))

    def shown(self, order: Order) -> Json:
        """The Order object (section 3.2)."""
        uri = self.uri(order)
        document = {
            "doshiiId": order.doshii_id,
            "id": order.pos_id,
            "status": order.status,
            **self._written(order.document),
            "locationId": order.location,
            "version": order.version,
            "createdAt": stamp(order.created),
            "updatedAt": stamp(order.updated),
            "uri": uri,
            "transactionsUri": f"{uri}/transactions",
        }
        if self._options.hide_doshii_id:
            del document["doshiiId"]
        return document

    def _written(self, document: Json) -> Json:
        return dict(written(document, self._options.quantities, self._options.money))

    def uri(self, order: Order) -> str:
        """Under `orders` once it is linked."""
        if order.pos_id is None:
            return f"{self._options.uri_base}/unlinked_orders/{order.doshii_id}"
        return f"{self._options.uri_base}/orders/{quote(order.pos_id, safe='')}"

    def shown_transaction(self, payment: Transaction) -> Json:
        """The Transaction object (section 3.6). Its `orderId` is our POS id, `null` before there is one."""
        document = {name: value for name, value in payment.document.items() if name != "verifyData"}
        return {
            "id": payment.id,
            "orderId": payment.order.pos_id if payment.order else None,
            **self._written(document),
            "status": payment.status,
            "version": payment.version,
            "createdAt": stamp(payment.created),
            "updatedAt": stamp(payment.updated),
            "uri": f"{self._options.uri_base}/transactions/{payment.id}",
        }

    # Telling

    def tell(self, location: str, event: str, data: Json, order: object = "") -> None:
        """Send an event to the location's subscriptions and to the global ones; `all` as location: to everybody."""
        named = self._options.envelope
        if named == "documented":
            named = "event" if event in _NAMED_IN_EVENT else "type"
        body = json.dumps({named: event, "data": data}, separators=(",", ":")).encode()
        for subscription in self.subscriptions.values():
            here = location == ALL or subscription.location in (location, ALL)
            if here and subscription.event in (event, ALL):
                self.post.send(subscription.url, body, subscription.headers(self._options), order)

    def tell_order(self, order: Order, event: str) -> None:
        """`order_created`, `order_updated`, `item_created` or `item_updated` (section 7.4)."""
        data: Json = {"id": order.doshii_id}
        if not self._options.lean_events:
            data["status"] = order.status
            if event == "order_created":
                data["app"] = _APP
            if order.pos_id is not None:
                data["posRef"] = order.pos_id
            data["uri"] = self.uri(order)
        self.tell(order.location, event, data, order.doshii_id)

    def tell_transaction(self, payment: Transaction, event: str) -> None:
        """`transaction_created` or `transaction_updated`; here `orderId` is Doshii's (section 3.6)."""
        order = payment.order
        data = {
            "id": payment.id,
            "orderId": order.doshii_id if order else None,
            "status": payment.status,
            "posRef": order.pos_id if order else None,
            "app": {"id": 27, "name": "Payment App"},
            "uri": f"{self._options.uri_base}/transactions/{payment.id}",
        }
        if event == "transaction_updated" and "verifyData" in payment.document:
            data["verifyData"] = payment.document["verifyData"]
        self.tell(payment.location, event, data, order.doshii_id if order else "")

    # Changing

    def _stamped(self, thing: Order | Transaction, by: str, action: str) -> None:
        """A new version; opaque, of lengths that have been seen."""
        thing.changes += 1
        name = thing.doshii_id if isinstance(thing, Order) else f"t{thing.id}"
        digest = hashlib.sha1(f"{name}/{thing.changes}".encode()).hexdigest()
        thing.version = digest[: (9, 11, 40)[thing.changes % 3]]
        thing.updated = self._clock()
        thing.log.append({"by": by, "action": action, "createdAt": stamp(thing.updated)})
        if isinstance(thing, Order) and thing.pos_id is not None:
            self._by_update[thing.location][thing.doshii_id] = thing
            self._by_update[thing.location].move_to_end(thing.doshii_id)

    def _file(self, order: Order, pos_id: str | None) -> None:
        """Put the order where its POS id belongs; `None`: among the unlinked ones."""
        if order.pos_id is not None:
            del self.linked[order.location, order.pos_id]
            del self._by_update[order.location][order.doshii_id]
        order.pos_id = pos_id
        if pos_id is None:
            self._unlinked[order.location][order.doshii_id] = order
        else:
            self._unlinked[order.location].pop(order.doshii_id, None)
            self.linked[order.location, pos_id] = order
            self._by_update[order.location][order.doshii_id] = order

    def _identified(self, order: Order, products: list[Json]) -> list[Json]:
        """Products with a uuid each: the one they have, or a new one."""
        for product in products:
            if not product.get("uuid"):
                order.uuids += 1
                product["uuid"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"doshii/{order.doshii_id}/{order.uuids}"))
        return products

    def _set(self, order: Order, values: Json) -> Kinds:
        """Write cleaned fields; what changed. Items that are approved now are unapproved no more."""
        before = copy.copy(order.document)
        for name, value in values.items():
            products = name in ("items", "unapprovedItems")
            order.document[name] = self._identified(order, value) if products else value
        approved = {item["uuid"] for item in order.document["items"]}
        waiting = order.document["unapprovedItems"]
        order.document["unapprovedItems"] = [item for item in waiting if item["uuid"] not in approved]
        changed = [name for name in order.document if order.document[name] != before.get(name)]
        kinds = [f"{name}:{order.document[name]}" if name in ("phase", "mealPhase") else name for name in changed]
        if any(item["uuid"] in approved for item in before["unapprovedItems"]):
            kinds.append("items_approved")
        return tuple(kinds)

    def _move(self, order: Order, status: str) -> Kinds:
        """Another status; the version is the caller's."""
        before, order.status = order.status, status
        if status == "accepted" and before != status:
            self.later(self._options.venue_timer_seconds, partial(self._complete, order))
        return () if before == status else (f"status:{before}->{status}",)

    def _complete(self, order: Order) -> None:
        """Doshii closes the order, if that is still to be done."""
        if order.status == "accepted":
            kinds = self._move(order, "complete")
            self._stamped(order, "doshii", "completed")
            self._auto(order, *kinds)
            self.tell_order(order, "order_updated")

    def complete_if_paid(self, order: Order | None) -> None:
        """Doshii closes an accepted order that its payments cover; after the answer to the write that made it so."""
        if order is None or order.status != "accepted":
            return
        paid = [cents(payment.document["amount"]) for payment in order.transactions if payment.status == "complete"]
        if paid and sum(paid) >= order_total(order.document):
            self.later(self._options.auto_complete_seconds, partial(self._complete, order))

    # What partners and persons do

    def add(self, spec: Json) -> Order:
        """A new order. Raises `ValueError`; see `Doshii.add_orders`."""
        values = dict(spec)
        life = {name: values.pop(name) for name in _LIFE if name in values}
        number = str(values.pop("doshiiId", None) or self._next_order)
        if number in self.orders or not number.isdigit():
            raise ValueError(f"doshiiId {number} is taken, or no number")
        location = values.pop("locationId", None) or next(iter(self._options.locations.values()))
        status = values.pop("status", "pending")
        pos_id = values.pop("id", None)
        self._check_edit(location, status, pos_id)
        cleaned = partners_values({"items": [SPARE_ITEM], **values})
        now = self._clock()
        order = Order(number, location, status, copy.deepcopy(ORDER_DEFAULTS), now, now)
        self._next_order = max(self._next_order, int(number)) + 1
        self.orders[number] = order
        self._file(order, pos_id)
        self._set(order, cleaned)
        self._stamped(order, "partner", "created")
        self._begin_life(order, life)
        return order

    def _begin_life(self, order: Order, life: Json) -> None:
        payments = [self.add_transaction(order.location, order, spec) for spec in life.get("transactions", ())]
        if self._options.preprocess:
            self._ask_before(order)
        if not life.get("quiet"):
            self.tell_order(order, "order_created")
            for payment in payments:
                self.tell_transaction(payment, "transaction_created")
        if "appends" in life:
            self.later(life.get("appends_after_seconds", 0), partial(self._append, order, life["appends"]))
        if "pays" in life:
            self.later(life.get("pays_after_seconds", 0), partial(self._pay, order, life["pays"]))
        if "cancels_after_seconds" in life:
            cancel = {"status": life.get("cancels_as", "cancelled")}
            self.later(life["cancels_after_seconds"], partial(self._leave, order, cancel))

    def _ask_before(self, order: Order) -> None:
        number = str(uuid.uuid5(uuid.NAMESPACE_URL, f"doshii/preprocess/{order.doshii_id}"))
        self.preprocessings[number] = {"location": order.location, "order": order.doshii_id, "answer": None}
        data = {"id": number, "status": "pending", "appId": _APP["id"], "order": self.shown(order)}
        self.tell(order.location, "order_preprocess", data, order.doshii_id)

    def _append(self, order: Order, products: list[Json]) -> None:
        if order.status not in TERMINAL:
            self.edit(order, {"unapprovedItems": [*order.document["unapprovedItems"], *products]})

    def _pay(self, order: Order, specs: list[Json]) -> None:
        if order.status not in TERMINAL:
            self.edit(order, {"transactions": specs})

    def _leave(self, order: Order, patch: Json) -> None:
        if order.status not in TERMINAL:
            self.edit(order, patch)

    def edit(self, order: Order, patch: Json) -> None:
        """Somebody over there changes the order, and Doshii says so. Raises `ValueError`; see `Doshii.edit_order`."""
        values = dict(patch)
        quiet = values.pop("quiet", False)
        payments = values.pop("transactions", ())
        status = values.pop("status", order.status)
        pos_id = values.pop("id", order.pos_id)
        self._check_edit(order.location, status, pos_id if pos_id != order.pos_id else None)
        cleaned = partners_values(values)
        if self._asks_consent(order, status):
            status = order.status
        before = order.status
        known = {item["uuid"] for item in order.document["unapprovedItems"]}
        if pos_id != order.pos_id:
            self._file(order, pos_id)
        kinds = (*self._set(order, cleaned), *self._move(order, status))
        if patch.keys() - {"quiet", "transactions"}:
            self._stamped(order, "partner", ", ".join(kinds) or "touched")
            for event in () if quiet else self._news(order, patch, known):
                self.tell_order(order, event)
        self._edit_transactions(order, payments, quiet)
        if f"status:{before}->cancelled" in kinds:
            self._cancel_payments(order, quiet)

    def _check_edit(self, location: str, status: str, pos_id: str | None) -> None:
        if status not in STATUSES or location not in self._options.locations.values():
            raise ValueError(f"no status of an order, or no location: {status}, {location}")
        if (location, pos_id) in self.linked:
            raise ValueError(f"id {pos_id} is taken")

    def _asks_consent(self, order: Order, status: str) -> bool:
        if not (self._options.cancel_needs_consent and order.status == "accepted" and status == "cancelled"):
            return False
        order.log.append({"by": "partner", "action": "asked to cancel", "createdAt": stamp(self._clock())})
        return True

    def _news(self, order: Order, patch: Json, known: set[str]) -> Iterator[str]:
        if "unapprovedItems" in patch:
            new = any(item["uuid"] not in known for item in order.document["unapprovedItems"])
            yield "item_created" if new else "item_updated"
        if patch.keys() - {"quiet", "transactions", "unapprovedItems"}:
            yield "order_updated"

    def _edit_transactions(self, order: Order, specs: Iterable[Json], quiet: bool) -> None:
        for spec in specs:
            payment = self.transactions.get(str(spec.get("id")))
            event = "transaction_updated" if payment else "transaction_created"
            if payment is None:
                payment = self.add_transaction(order.location, order, spec)
            else:
                self._change_payment(payment, spec)
            if not quiet:
                self.tell_transaction(payment, event)
            self.complete_if_paid(order)

    def _change_payment(self, payment: Transaction, spec: Json) -> None:
        payment.document.update(partners_values(spec, TRANSACTION, ("id", "status", "answers")))
        payment.status = _payment_status(spec.get("status", payment.status))
        payment.answers = spec.get("answers", payment.answers)
        self._stamped(payment, "partner", payment.status)

    def _cancel_payments(self, order: Order, quiet: bool) -> None:
        """Who cancels an order does not pay for it."""
        for payment in order.transactions:
            if payment.status in ("pending", "waiting"):
                self._edit_transactions(order, [{"id": payment.id, "status": "cancelled"}], quiet)

    def add_transaction(self, location: str, order: Order | None, spec: Json) -> Transaction:
        """A payment; without `amount` for the order's total. Raises `ValueError`."""
        values = dict(spec)
        number = str(values.pop("id", None) or self._next_transaction)
        self._next_transaction = max(self._next_transaction, int(number)) + 1
        status, answers = _payment_status(values.pop("status", "pending")), values.pop("answers", "complete")
        amount = {"amount": str(order_total(order.document))} if order else {}
        document = {**TRANSACTION_DEFAULTS, **amount, **partners_values(values, TRANSACTION)}
        now = self._clock()
        payment = Transaction(number, location, order, status, document, now, now, answers)
        self.transactions[number] = payment
        if order is not None:
            order.transactions.append(payment)
        self._stamped(payment, "partner", status)
        return payment

    # What the POS does with orders

    def link(self, order: Order, body: Json, terminal: str | None) -> Kinds:
        """E3: accept under our id, or reject."""
        status = body.get("status")
        allowed = ("accepted", "cancelled") + (("rejected",) if self._options.legacy_rejected_alias else ())
        if status not in allowed:
            raise Problem(400, f"status must be one of {', '.join(allowed)}")
        values = self._read_writes(body, rejects=status != "accepted")
        values.pop("mealPhase", None)
        required(body, "version", *(("id", "items", "surcounts") if status == "accepted" else ()))
        pos_id = clean(body, {"id": text}).get("id") if status == "accepted" else None
        self._check_consumer(values, order.document)
        self._check_version(order, body)
        if pos_id is not None and (order.location, pos_id) in self.linked:
            raise Problem(409, f"Order id {pos_id} belongs to another order")
        self._check_move(order, status)
        if pos_id is not None:
            self._file(order, pos_id)
        kinds = self._written_by_pos(order, values, status, terminal)
        return (*kinds, "linked" if pos_id is not None else "rejected")

    def put(self, location: str, pos_id: str, body: Json, terminal: str | None) -> tuple[Order, Kinds]:
        """E8: create or update an order by our id."""
        inner = body.get("order")
        if not isinstance(inner, dict):
            raise Problem(400, "order is required")
        if "consumer" in body:
            inner = {"consumer": body["consumer"], **inner}
        status = inner.get("status")
        if status is not None and status not in STATUSES:
            raise Problem(400, f"status {status} is unknown")
        values = self._read_writes(inner, rejects=status == "cancelled")
        order = self.linked.get((location, pos_id))
        self._check_consumer(values, order.document if order else {})
        if order is None:
            return self._made_by_pos(location, pos_id, values, status or "accepted", terminal), ("created",)
        required(inner, "version")
        self._check_version(order, inner)
        self._check_move(order, status or order.status)
        kinds = self._written_by_pos(order, values, status or order.status, terminal)
        return order, kinds

    def _made_by_pos(self, location: str, pos_id: str, values: Json, status: str, terminal: str | None) -> Order:
        now = self._clock()
        number = str(self._next_order)
        self._next_order += 1
        order = Order(number, location, status, copy.deepcopy(ORDER_DEFAULTS), now, now)
        self.orders[number] = order
        self._file(order, pos_id)
        self._written_by_pos(order, values, status, terminal)
        return order

    def _written_by_pos(self, order: Order, values: Json, status: str, terminal: str | None) -> Kinds:
        if terminal is not None:
            values["posTerminalId"] = terminal
        kinds = (*self._move(order, status), *self._set(order, values))
        self._stamped(order, "pos", ", ".join(kinds) or "touched")
        return kinds

    def _read_writes(self, body: Json, *, rejects: bool) -> Json:
        values = clean(body, WRITABLE)
        check_code(values, "orders", rejects)
        if self._options.strict_types and values.get("type") not in (None, *TYPES):
            raise Problem(400, f"type {values['type']} is unknown")
        return values

    def _check_consumer(self, values: Json, document: Json) -> None:
        if values.get("type") == "delivery" and not values.get("consumer", document.get("consumer")):
            raise Problem(400, "consumer is required for a delivery")

    def _check_version(self, thing: Order | Transaction, body: Json) -> None:
        if body["version"] != thing.version:
            raise Problem(409, f"Version {body['version']} is not the current one")

    def _check_move(self, order: Order, status: str) -> None:
        if self._options.strict_transitions and (order.status, status) not in _POS_MOVES:
            raise Problem(400, f"Not possible from {order.status} to {status}")

    def remind(self, order: Order, body: Json) -> None:
        """After an accept that failed: the order is offered again."""
        if self._options.repeat_created and body.get("status") == "accepted" and order.status == "pending":
            self.tell_order(order, "order_created")

    # What the POS does with payments

    def pay(self, location: str, order: Order | None, body: Json) -> tuple[Transaction, Kinds]:
        """E10: a payment made at the POS, or asked for. Sent twice it is two payments."""
        required(body, "amount")
        values = clean(body, TRANSACTION)
        status = body.get("status", "complete")
        if status != "complete" and (status != "requested" or order is not None):
            raise Problem(400, f"A new transaction cannot be {status}")
        check_method(values)
        values.setdefault("partnerInitiated", False)
        payment = self.add_transaction(location, order, {"prepaid": False, **values, "status": status})
        return payment, (f"transaction:{status}", *(("payment_recorded",) if status == "complete" else ()))

    def answer_payment(self, payment: Transaction, body: Json) -> Kinds:
        """E11: go ahead (`waiting`), or no (`rejected`)."""
        required(body, "status", "version")
        status = body["status"]
        if status not in _TRANSACTION_STATUSES:
            raise Problem(400, f"status {status} is unknown")
        values = clean(body, TRANSACTION)
        check_method(values)
        check_code(values, "transactions", status == "rejected")
        self._check_version(payment, body)
        self._check_payment_move(payment, status, body.get("orderId"))
        payment.document.update(values)
        kinds = [f"transaction:{payment.status}->{status}"]
        payment.status = status
        if status == "waiting" and payment.document["prepaid"]:
            payment.status = "complete"
            kinds += ["transaction:waiting->complete", "payment_captured"]
        self._stamped(payment, "pos", ", ".join(kinds))
        if payment.status == "waiting":
            self.later(self._options.partner_answers_seconds, partial(self._answered, payment))
        return tuple(kinds)

    def _check_payment_move(self, payment: Transaction, status: str, order_id: object) -> None:
        pos_id = payment.order.pos_id if payment.order else None
        if order_id is not None and order_id != pos_id:
            raise Problem(400, f"orderId {order_id} is not the order of this transaction")
        if (payment.status, status) not in _TRANSACTION_MOVES:
            raise Problem(400, f"Not possible from {payment.status} to {status}")
        if status == "waiting" and (payment.order is None or payment.order.status not in ("accepted", "complete")):
            raise Problem(400, "Not possible before the order is accepted")

    def _answered(self, payment: Transaction) -> None:
        """The partner has taken the money, or could not."""
        if payment.status != "waiting":
            return
        payment.status = payment.answers
        self._stamped(payment, "partner", payment.status)
        taken = ("payment_captured",) if payment.status == "complete" else ()
        self._auto(payment.order, f"transaction:waiting->{payment.status}", *taken, key=payment.id)
        self.tell_transaction(payment, "transaction_updated")
        self.complete_if_paid(payment.order)
