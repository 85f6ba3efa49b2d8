"""TastyIgniter's orders in memory: what happens to them, how a profile shows them, what is posted of them; no HTTP.

Section numbers are those of `contracts/tastyigniter.md`.
"""

import copy
import hashlib
import heapq
import hmac
import json
import secrets
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from decimal import Decimal
from itertools import count as counting
from typing import Any
from zoneinfo import ZoneInfo

from sandbox import base
from sandbox.base import Json
from sandbox.posting import Post, PostOptions

PROFILES = ("P1", "P1b", "P2", "P3")
RECEIVED, CANCELED = 1, 9
SPARE_MENUS = ({"menu_id": 77, "name": "Rice", "quantity": 2, "price": 12},)
SPARE_TOTALS = (
    {"code": "delivery", "title": "Delivery", "priority": 1, "is_summable": True},
    {"code": "subtotal", "title": "Sub Total"},
    {"code": "total", "title": "Order Total", "priority": 127},
)
"""In the order in which a checkout stores them: sorting by priority moves the first two (section 3.4)."""


def _status(ident: int, name: str, mails: bool, kind: str = "order") -> Json:
    return {
        "status_id": ident,
        "status_name": name,
        "status_comment": None,
        "notify_customer": mails,
        "status_for": kind,
        "status_color": "#686663",
    }


_STATUSES = (
    _status(1, "Received", True),
    _status(2, "Pending", True),
    _status(3, "Preparation", True),
    _status(4, "Delivery", False),
    _status(5, "Completed", False),
    _status(6, "Confirmed", False, "reservation"),
    _status(7, "Canceled", False, "reservation"),
    _status(8, "Pending", True, "reservation"),
    _status(9, "Canceled", False),
)


@dataclass(kw_only=True)
class Options(PostOptions):
    """The knobs of section 9 that are not faults of `sandbox.base`."""

    profile: str = "P1"
    token: str = "1|" + "sandbox-" * 10
    """A member of staff's, with the ability `*`."""
    tokens: dict[str, Json] = field(default_factory=dict)
    """More of them: text to fields of `Access`, as `{"staff": false, "user_id": 7}`."""
    users: dict[str, Json] = field(default_factory=dict)
    """For `POST /api/token`: address to `password`, `active`, and fields of `Access`."""
    webhook_secret: str = "sandbox-secret16"
    """Of the subscriptions `point_at` makes. Empty: they are not signed."""
    signature_header: str = "TI-Signature"
    """`Signature` where nobody ever saved the settings page (section 7)."""
    signature: str = "right"
    """`right`, `wrong` or `none`."""
    automation_rule: str = ""
    """The code of an automation rule, which posts every new status to the same addresses, unsigned (section 7)."""
    zone: str = "Europe/London"
    currency: str = "GBP"
    statuses: list[Json] = field(default_factory=lambda: [dict(status) for status in _STATUSES])
    """The catalogue of section 4; shops change theirs."""
    totals: str = "auto"
    """`auto`: as section 3.4 says, an object when sorting moved a row; in P1 and P1b an array. `array`, `object`."""
    total_as: str = "number"
    """`string`: `order_total` as text with four decimals."""
    debug: bool = True
    """Error bodies carry `debug`, the default of the real thing (section 6)."""
    demands_names: bool = False
    """A PATCH without first_name, last_name and order_type gets 422, as in early 2021 (section 3.5)."""
    mail_down: bool = False
    """No mail leaves, and the request that wanted to send one ends in a 500 after its work."""
    switched_off: tuple[str, ...] = ()
    """Actions on orders that the site switched off: index, show, store, update, destroy."""
    switched_off_as: str = "empty"
    """`empty` (404 and `{}`), `html` (404 and a page) or `405`."""
    repeated_rows: int = 0
    """From page 2 on a page begins with so many of the last rows of the page before, again."""

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise ValueError(f"profile: one of {', '.join(PROFILES)}")


# Orders as the server keeps them


@dataclass(slots=True)
class Order:
    """One row of the orders table: instants in seconds since 1970, `order_date` and `order_time` in the site's zone."""

    id: int
    created_at: float
    updated_at: float
    order_date: str
    order_time: str
    first_name: str = "Ann"
    last_name: str = "Test"
    email: str = "ann@example.com"
    telephone: str = "+35799000001"
    customer_id: int | None = None
    location_id: int | None = 1
    address_id: int | None = None
    comment: str | None = ""
    notify: bool | None = None
    order_type: str = "collection"
    order_time_is_asap: bool = True
    processed: bool | None = False
    total_items: int = 0
    order_total: float | None = 0
    payment: str = "cod"
    invoice_date: float | None = None
    status_id: int | None = None
    status_updated_at: float | None = None
    assignee_id: int | None = None
    assignee_group_id: int | None = None
    assignee_updated_at: float | None = None
    delivery_comment: str | None = None
    address: Json | None = None
    menus: list[Json] = field(default_factory=list)
    totals: list[Json] = field(default_factory=list)
    history: list[Json] = field(default_factory=list)
    mails: list[int] = field(default_factory=list)
    deleted: bool = False


_LISTS = {"order_menus", "order_totals"}
_NO_COLUMNS = {"menus", "totals", "history", "mails", "deleted"}
_SETTABLE = {known.name for known in fields(Order)} - _NO_COLUMNS | _LISTS
_STAMPS = ("invoice_date", "status_updated_at", "assignee_updated_at")
_CALLED_OTHERWISE = {"id", "created_at", "updated_at", "notify", "address", *_STAMPS}
_COLUMNS = [known.name for known in fields(Order) if known.name not in _NO_COLUMNS | _CALLED_OTHERWISE]
"""What every profile shows as it is stored."""
STALE = ("status_updated_at", "order_total", "total_items")
"""Columns that a PATCH answers as they were: changed behind the loaded object (section 3.2)."""
_ASSIGNED = {"assignee_id", "assignee_group_id"}


def _number(value: Decimal) -> float:
    """As PHP writes it: no decimals where there are none, four at most."""
    return int(value) if value == value.to_integral_value() else float(round(value, 4))


def _decimal(value: Any) -> Decimal:
    return Decimal(str(value or 0))


def _recalculate(order: Order) -> None:
    """Section 3.4: the lines and whatever is summable, never below 0."""
    order.total_items = sum(menu["quantity"] for menu in order.menus)
    lines = sum((_decimal(menu["subtotal"]) for menu in order.menus), Decimal())
    others = sum((_decimal(total["value"]) for total in order.totals if total["is_summable"]), Decimal())
    order.order_total = _number(max(lines + others, Decimal()))
    for total in order.totals:
        if total["code"] in ("subtotal", "total"):
            total["value"] = _number(lines) if total["code"] == "subtotal" else order.order_total


# How they are shown (sections 3.2 to 3.4, 8)


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else _utc(datetime.fromtimestamp(seconds, UTC))


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Shown:
    """Orders as documents, in the form of each profile."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def status(self, ident: int | None) -> Json | None:
        """The catalogue's row, if there is one."""
        return next((row for row in self._options.statuses if row["status_id"] == ident), None)

    def flat(self, order: Order) -> Json:
        """The order of P1 and P1b."""
        zone = ZoneInfo(self._options.zone)
        document = {"order_id": order.id, **self._common(order)}
        for name in ("order_time_is_asap", "delivery_comment"):
            del document[name]
        for name, seconds in (("date_added", order.created_at), ("date_modified", order.updated_at)):
            document[name] = datetime.fromtimestamp(seconds, zone).strftime("%Y-%m-%d %H:%M:%S")
        return {
            **document,
            "order_date": f"{order.order_date} 00:00:00",
            "notify": order.notify,
            "order_totals": self.totals(order, flat=True),
        }

    def patched(self, order: Order) -> Json:
        """What a PATCH answers in P1: twelve fields (section 3.2)."""
        names = (
            "customer_id",
            "location_id",
            "address_id",
            "first_name",
            "last_name",
            "notify",
            "order_type",
            "processed",
            "comment",
            "payment",
            "status_id",
        )
        return {"order_id": order.id, **{name: getattr(order, name) for name in names}}

    def attributes(self, order: Order) -> Json:
        """The order of P2 and P3, and of webhooks; without its id, lines and totals."""
        zone = ZoneInfo(self._options.zone)
        day = date.fromisoformat(order.order_date)
        due = datetime.combine(day, time_of_day.fromisoformat(order.order_time), zone)
        status = self.status(order.status_id)
        address = order.address
        return {
            **self._common(order),
            "order_date": _utc(datetime.combine(day, time_of_day(), zone)),
            "order_date_time": _utc(due),
            "currency": self._options.currency,
            "status_name": status and status["status_name"],
            "created_at": _iso(order.created_at),
            "updated_at": _iso(order.updated_at),
            "customer_name": f"{order.first_name} {order.last_name}",
            "order_type_name": {"delivery": "Delivery", "collection": "Pick-up"}.get(order.order_type),
            "formatted_address": address and ", ".join(str(part) for part in address.values() if part),
        }

    def resource(self, order: Order) -> Json:
        """The whole attributes of P2 and P3."""
        return {**self.attributes(order), "order_totals": self.totals(order), "order_menus": order.menus}

    def totals(self, order: Order, *, flat: bool = False) -> Any:
        """Sorted rows under their old keys: to JSON an array only where the keys count up from 0."""
        rows = sorted(enumerate(order.totals), key=lambda keyed: keyed[1]["priority"])
        moved = [key for key, _ in rows] != list(range(len(rows)))
        if self._options.totals == "object" or (self._options.totals == "auto" and moved and not flat):
            return {str(key): row for key, row in rows}
        return [row for _, row in rows]

    def history_row(self, row: Json) -> Json:
        """One row of the status history, without its id, with the names that only the API adds (section 4)."""
        status = self.status(row["status_id"])
        staff = None if row["user_id"] is None else "Sam Staff"
        shown = {**row, "status_name": status and status["status_name"], "staff_name": staff}
        del shown["id"]
        return shown

    def _common(self, order: Order) -> Json:
        document = {name: getattr(order, name) for name in _COLUMNS}
        if order.order_total is not None and self._options.total_as == "string":
            document["order_total"] = f"{order.order_total:.4f}"
        return {
            **document,
            **{name: _iso(getattr(order, name)) for name in _STAMPS},
            "invoice_prefix": f"INV-{datetime.fromtimestamp(order.created_at, UTC).year}-00",
            "ip_address": "192.0.2.10",
            "hash": hashlib.md5(str(order.id).encode(), usedforsecurity=False).hexdigest(),
            "user_agent": "sandbox",
        }


def everything(order: Order) -> Json:
    """All that is known of it, a copy."""
    names = [known.name for known in fields(Order) if known.name not in ("menus", "totals")]
    document = {name: copy.deepcopy(getattr(order, name)) for name in names}
    return {**document, "order_menus": copy.deepcopy(order.menus), "order_totals": copy.deepcopy(order.totals)}


# What happens to orders, whoever does it


@dataclass(frozen=True, slots=True)
class Hand:
    """Who acts: `user_id` goes into the history; the rest is the request, if it is done through the API."""

    user_id: int | None
    method: str = ""
    path: str = ""
    raw: bytes = b""

    @property
    def api(self) -> bool:
        """Through the API, not in the storefront or the admin pages."""
        return bool(self.method)


CUSTOMER = Hand(None)
STAFF = Hand(1)


class Hooks:
    """The subscriptions of section 7, and what is posted to them."""

    def __init__(self, options: Options, shown: Shown) -> None:
        self.subscriptions: dict[int, Json] = {}
        self.post = Post(options, waits=(10, 100), timeout=3.0)
        self._options = options
        self._shown = shown
        self._ids = counting(1)

    def subscribe(self, values: Json) -> Json:
        """A new one; without a secret it gets one. A second one for the same address is one more, not the same."""
        config = {"verify_ssl": True, **(values.get("config_data") or {})}
        if config.get("secret_key") is None:
            config["secret_key"] = secrets.token_hex(8)
        subscription = {"is_active": True, **values, "config_data": config, "id": next(self._ids)}
        self.subscriptions[subscription["id"]] = subscription
        return subscription

    def tell(self, action: str, order: Order, hand: Hand, row: Json | None = None) -> None:
        """Queue one event for every subscription to orders. What it says is true now, not when it arrives."""
        subscribed = [one for one in self.subscriptions.values() if one["is_active"] and "order" in one["events"]]
        if not subscribed:
            return
        raw = _php_json(self._document(action, order, hand, row))
        for one in subscribed:
            headers = {"Content-Type": "application/json", **self._signature(raw, one["config_data"]["secret_key"])}
            self.post.send(one["url"], raw, headers, order.id)
            if row is not None and self._options.automation_rule:
                mail = _php_json({"action": self._options.automation_rule, **_mail_data(order)})
                self.post.send(one["url"], mail, {"Content-Type": "application/json"}, order.id)

    def _document(self, action: str, order: Order, hand: Hand, row: Json | None) -> Json:
        shown: Json = {"order_id": order.id, **self._shown.attributes(order)}
        if action == "placed":
            shown["order_time"] = order.order_time[:5]  # still in memory, not read from the database (section 3.2)
        if not hand.api:  # requests through the API hide what is nested (section 7)
            shown["location"] = {"location_id": order.location_id, "location_name": "Sandbox"}
            shown["status"] = self._shown.status(order.status_id)
        document = {
            "action": action,
            "order": shown,
            "order_menus": order.menus,
            "order_totals": self._shown.totals(order),
        }
        if row is not None:
            history = {"status_history_id": row["id"], **row}
            del history["id"]
            document["status_history"] = history
        return document

    def _signature(self, raw: bytes, secret: str) -> dict[str, str]:
        if self._options.signature == "none" or not secret:
            return {}
        key = secret if self._options.signature == "right" else f"not {secret}"
        return {self._options.signature_header: hmac.new(key.encode(), raw, hashlib.sha256).hexdigest()}


def _php_json(document: Json) -> bytes:
    """As PHP writes it by default: `/` and everything beyond ASCII escaped."""
    return json.dumps(document, separators=(",", ":")).replace("/", "\\/").encode()


def _mail_data(order: Order) -> Json:
    day = date.fromisoformat(order.order_date).strftime("%d %b %Y")
    return {"order_number": str(order.id), "order_total": f"\u00a3{order.order_total or 0:.2f}", "order_date": day}


class MailDown(Exception):
    """The mail could not be sent; everything before it is done."""


class Shop:
    """All orders in memory, and the rules. Callers hold `lock` while they use it."""

    def __init__(
        self, options: Options, clock: Callable[[], float], effects: base.EffectLog, shown: Shown, hooks: Hooks
    ) -> None:
        self.lock = threading.RLock()
        self.orders: dict[int, Order] = {}
        self.gone: dict[int, Order] = {}
        self._options = options
        self._clock = clock
        self._effects = effects
        self._shown = shown
        self._hooks = hooks
        self._next_id = 1
        self._ids = {name: counting(1) for name in ("menu", "total", "history", "later")}
        self._later: list[tuple[float, int, int, Json]] = []

    # Who does what

    def check_out(self, specification: Json) -> Order:
        """A customer's order from overrides of the defaults; placed unless `processed` is false.

        `later`: pairs of seconds and an edit, as of `edit`. Raises `ValueError`."""
        values = dict(specification)
        later = _checked(values.pop("later", []))
        processed = values.pop("processed", True)
        status = values.pop("status_id", RECEIVED if processed else None)
        order = self._insert(values)
        if processed:
            self._place(order, RECEIVED if status else None)
        else:
            order.processed = processed
        if not status or not processed:
            order.status_id = status
        elif status != RECEIVED:
            self._set_status(order, status, STAFF)
        self._do_later(order, later)
        return order

    def create(self, values: Json, hand: Hand) -> Order:
        """An order through the API: `created`, and its status gets a row; never `placed` (section 7)."""
        values = dict(values)
        status, comment = values.pop("status_id", None), values.pop("status_comment", None)
        order = self._insert(values)
        self._note(order, ("post", "created"), hand)
        order.status_id = status
        self._hooks.tell("created", order, hand)
        if status is not None:
            self._add_history(order, status, hand, comment)
        return order

    def patch(self, order: Order, values: Json, hand: Hand, *, history: bool) -> None:
        """A PATCH: columns, lines and totals, and with `history` a new row for the status, changed or not."""
        values = dict(values)
        comment = values.pop("status_comment", None)
        kinds = ["patch", *self._lists_kinds(order, values)]
        if "status_id" in values:
            kinds += [f"status:{order.status_id}->{values['status_id']}", f"status_id:{values['status_id']}"]
        changed = self._set(order, values)
        self._note(order, (*kinds, *sorted(changed - {"status_id"})), hand)
        if changed:
            self._hooks.tell("updated", order, hand)
        if "status_id" in values and history:
            self._add_history(order, values["status_id"], hand, comment)

    def edit(self, order: Order, patch: Json) -> None:
        """A person's edit, in the admin pages or the storefront, with the events of section 7. Raises `ValueError`.

        Any column, `order_menus`, `order_totals`; `processed` true finishes a checkout; `deleted`; `later`."""
        values = dict(patch)
        later, deleted = _checked(values.pop("later", [])), values.pop("deleted", False)
        _refuse_unknown(values, _SETTABLE - {"id"})
        if values.get("processed") and not order.processed:
            del values["processed"]
            self._place(order, values.pop("status_id", RECEIVED))
        if "status_id" in values:
            self._set_status(order, values.pop("status_id"), STAFF)
        self._lists_kinds(order, values)
        changed = self._set(order, values)
        if changed & _ASSIGNED:
            order.assignee_updated_at = self._clock()
            self._hooks.tell("assigned", order, STAFF)
        if changed - _ASSIGNED:
            self._hooks.tell("updated", order, STAFF)
        self._do_later(order, later)
        if deleted:
            self.delete(order, STAFF)

    def delete(self, order: Order, hand: Hand) -> None:
        """For good."""
        del self.orders[order.id]
        self.gone[order.id] = order
        order.deleted = True
        if hand.api:
            self._note(order, ("delete",), hand)
        self._hooks.tell("deleted", order, hand)

    def settle(self) -> None:
        """What was to happen by now, in its order; an order that is gone has no later."""
        while self._later and self._later[0][0] <= self._clock():
            _, _, ident, patch = heapq.heappop(self._later)
            if ident in self.orders:
                self.edit(self.orders[ident], patch)

    # The parts

    def _insert(self, values: Json) -> Order:
        _refuse_unknown(values, _SETTABLE)
        ident = values.get("id") or self._next_id
        if ident in self.orders or ident in self.gone:
            raise ValueError(f"order {ident} exists")
        now = self._clock()
        columns = {name: value for name, value in values.items() if name not in _LISTS}
        defaults = {"created_at": now, "updated_at": now, **self._due(columns.get("order_time"))}
        order = Order(**{**defaults, **columns, "id": ident})
        order.menus = [self._menu(order, row) for row in values.get("order_menus", SPARE_MENUS)]
        order.totals = [self._total(order, row) for row in values.get("order_totals", SPARE_TOTALS)]
        _recalculate(order)
        for name in ("order_total", "total_items"):
            if name in values:
                setattr(order, name, values[name])
        self._next_id = max(self._next_id, ident + 1)
        self.orders[ident] = order
        return order

    def _due(self, chosen: str | None) -> Json:
        """In 45 minutes; or the next time the clock shows the time that was chosen."""
        now = datetime.fromtimestamp(self._clock(), ZoneInfo(self._options.zone))
        due = now + timedelta(minutes=45)
        shown = chosen or due.strftime("%H:%M:00")
        day = due.date() if chosen is None else now.date() + timedelta(days=shown <= now.strftime("%H:%M:%S"))
        return {"order_date": day.isoformat(), "order_time": shown}

    def _menu(self, order: Order, row: Json) -> Json:
        quantity, price = row.get("quantity", 1), row.get("price", 0)
        defaults = {"menu_id": 77, "name": "Rice", "comment": None, "option_values": "opaque", "menu_options": []}
        own = {"order_menu_id": next(self._ids["menu"]), "order_id": order.id}
        subtotal = _number(_decimal(quantity) * _decimal(price))
        return {**own, **defaults, "quantity": quantity, "price": price, "subtotal": subtotal, **row, **own}

    def _total(self, order: Order, row: Json) -> Json:
        own = {"order_total_id": next(self._ids["total"]), "order_id": order.id}
        return {"title": row["code"].title(), "value": 0, "priority": 0, "is_summable": False, **row, **own}

    def _lists_kinds(self, order: Order, values: Json) -> list[str]:
        """Take lines and totals out of `values` and store them (section 5): all lines anew, totals by their code."""
        kinds = sorted(_LISTS & values.keys())
        if "order_menus" in kinds:
            order.menus = [self._menu(order, row) for row in values.pop("order_menus")]
        if "order_totals" in kinds:
            known = {total["code"]: total for total in order.totals}
            for row in values.pop("order_totals"):
                if row["code"] in known:
                    own = {name: known[row["code"]][name] for name in ("order_total_id", "order_id")}
                    known[row["code"]].update({**row, **own})
                else:
                    order.totals.append(self._total(order, row))
        if kinds:
            _recalculate(order)
        return kinds

    def _set(self, order: Order, values: Json) -> set[str]:
        """Store columns; the names of those that are other than before."""
        changed = {name for name, value in values.items() if getattr(order, name) != value}
        for name in changed:
            setattr(order, name, values[name])
        if changed:
            order.updated_at = values.get("updated_at", self._clock())
        return changed

    def _place(self, order: Order, status_id: int | None) -> None:
        """The end of a checkout: `status_added` comes before `placed`, and before `processed` (section 7)."""
        if status_id is not None:
            self._set_status(order, status_id, CUSTOMER)
        order.processed = True
        order.invoice_date = order.updated_at = self._clock()
        self._hooks.tell("placed", order, CUSTOMER)

    def _set_status(self, order: Order, status_id: int | None, hand: Hand) -> None:
        """Not through the API: the column is saved silently (section 7)."""
        self._set(order, {"status_id": status_id})
        if status_id:
            self._add_history(order, status_id, hand, None)

    def _add_history(self, order: Order, status_id: int, hand: Hand, comment: str | None) -> None:
        """A row, its event, and the customer's mail; nothing for an id that the catalogue does not know (section 4)."""
        status = self._shown.status(status_id)
        if status is None:
            return
        row = {
            "id": next(self._ids["history"]),
            "object_id": order.id,
            "object_type": "orders",
            "status_id": status_id,
            "user_id": hand.user_id,
            "notify": bool(status["notify_customer"]),
            "comment": comment,
            "created_at": _iso(self._clock()),
            "updated_at": _iso(self._clock()),
        }
        order.history.append(row)
        self._note(order, (f"history:{status_id}",), hand)
        self._hooks.tell("status_added", order, hand, row)  # with the stamp of the status before (section 7)
        order.status_updated_at = self._clock()
        if row["notify"]:
            self._mail(order, status_id, hand)

    def _mail(self, order: Order, status_id: int, hand: Hand) -> None:
        if not self._options.mail_down:
            order.mails.append(status_id)
            self._note(order, (f"mail:{status_id}",), hand)
        elif hand.api:
            raise MailDown

    def _note(self, order: Order, kinds: tuple[str, ...], hand: Hand) -> None:
        self._effects.record(hand.method, hand.path, order.id, kinds, hand.raw)

    def _do_later(self, order: Order, later: Iterable[tuple[float, Json]]) -> None:
        for seconds, patch in later:
            heapq.heappush(self._later, (self._clock() + seconds, next(self._ids["later"]), order.id, patch))


def _refuse_unknown(values: Json, settable: set[str]) -> None:
    if unknown := values.keys() - settable:
        raise ValueError(f"not a field to set: {', '.join(sorted(unknown))}")


def _checked(later: Iterable[tuple[float, Json]]) -> list[tuple[float, Json]]:
    """A mistake is told at once, not when the edit is due and nobody listens."""
    checked = [(float(seconds), patch) for seconds, patch in later]
    for _, patch in checked:
        _refuse_unknown(patch, _SETTABLE - {"id"} | {"deleted", "later"})
    return checked
