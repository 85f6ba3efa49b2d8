"""An imitation of TastyIgniter's orders API and of its order webhooks, from `contracts/tastyigniter.md` and the seed.

This is the HTTP side; the state and its rules are in `tastyigniter_shop`. Section numbers are those of the contract.
What it marks [assumed] or (inferred) is what happens here; the knobs of its section 9 are fields of `Options`, or
requests to the control endpoints.

Which profile (section 1, `Options.profile`) shows an order's lines and totals where:

  P1, P1b   flat; `order_totals`, and no lines anywhere in the API; lists, which the seed does not show, as in P1b
  P2, P3    JSON:API; `order_menus` and `order_totals` among the attributes
  webhooks  in every profile the P3 form; `order_menus` and `order_totals` beside `order`, not in it

Effects: `patch` with `status:1->3` and `status_id:3`, `post`, `delete`; `history:3` for each row of the history, and
`mail:3` for each mail to the customer, whoever caused them. In P1 and P1b a PATCH writes the column and no more: there
it makes no history, no `status_added` and no mail (section 5). A checkout and the staff do so in every profile.

Beside the control endpoints of `sandbox.base`:

  GET    deliveries[?order=ID]  the webhooks and what became of each
  POST   orders                 also `later`: [[seconds, edit], ..], as a checkout that takes a moment
  PATCH  orders/ID              a person's edit; `processed` true ends a checkout, `deleted` true deletes
  POST   interpose              {"after": "LIST", "patch": {"add": [..], "delete": [ids]}} while somebody pages

What happens by itself happens at the next request, or when the next order arrives.
"""

import copy
import json
import random
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from datetime import time as time_of_day
from itertools import count as counting
from typing import Any, NoReturn

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from sandbox import base
from sandbox.base import Json, json_response
from sandbox.tastyigniter_shop import (
    CANCELED,
    SPARE_TOTALS,
    STAFF,
    STALE,
    Hand,
    Hooks,
    MailDown,
    Options,
    Order,
    Shop,
    Shown,
    everything,
)

__all__ = ["UNKNOWN_PRODUCT", "Options", "create_app", "fleet_settings", "invent", "point_at", "site_of"]

EVENT_CODES = ("category", "customer", "menu", "order", "reservation", "table")
UNKNOWN_PRODUCT = "UNKNOWN-PRODUCT"
"""The name of a dish that the sandbox ERP refuses. Its `menu_id`, like all of them an integer, is 999."""


@dataclass(frozen=True, slots=True)
class Access:
    """What a token may do (section 2). Without `staff` it is the customer `user_id`'s."""

    user_id: int = 1
    staff: bool = True
    abilities: tuple[str, ...] = ("*",)
    locations: tuple[int, ...] = ()

    def may(self, wanted: Iterable[str]) -> bool:
        """Whether one of these abilities, or `*`, is among the token's."""
        return not {"*", *wanted}.isdisjoint(self.abilities)

    def sees(self, order: "Order") -> bool:
        """A customer his own; staff tied to locations those, and orders of none."""
        if not self.staff:
            return order.customer_id == self.user_id
        return not self.locations or order.location_id is None or order.location_id in self.locations


# What callers send (sections 3.5, 6)


class ApiError(Exception):
    """An answer that is an error: `errors` by field for a 422, and `coded` where the body repeats the status."""

    def __init__(
        self, status: int, message: str, errors: Mapping[str, str] | None = None, *, coded: bool = True
    ) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.errors = {name: [text] for name, text in (errors or {}).items()}
        self.coded = coded
        self.headers: dict[str, str] = {}


def _invalid(errors: Mapping[str, str]) -> NoReturn:
    raise ApiError(422, "The given data was invalid.", errors)


def _no_order() -> ApiError:
    return ApiError(404, "No query results for model [Order] [999]")


Cleaner = Callable[[Any], Any]
"""Returns the value to store; raises `ValueError` with the words for the 422, after the field's name."""


def _text(least: int = 0, most: int = 10_000) -> Cleaner:
    def clean(value: Any) -> str:
        if not isinstance(value, str) or not least <= len(value) <= most:
            raise ValueError(f"must be text of {least} to {most} characters.")
        return value

    return clean


def _matching(pattern: str, words: str, most: int = 10_000) -> Cleaner:
    def clean(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value) or len(value) > most:
            raise ValueError(words)
        return value

    return clean


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str) or not re.fullmatch(r"-?\d+", str(value)):
        raise ValueError("must be an integer.")
    return int(value)


def _boolean(value: Any) -> bool:
    if value not in (True, False, "0", "1"):
        raise ValueError("must be true or false.")
    return value in (True, "1")


def _moment(form: str, words: str, part: type[datetime] | type[time_of_day] = datetime) -> Cleaner:
    def clean(value: Any) -> str:
        try:
            return part.fromisoformat(value).strftime(form)
        except (TypeError, ValueError):
            raise ValueError(f"is not a valid {words}.") from None

    return clean


def _rows_with(key: str) -> Cleaner:
    def clean(value: Any) -> list[Json]:
        if not isinstance(value, list) or not all(isinstance(row, dict) and key in row for row in value):
            raise ValueError(f"must be an array of objects with {key}.")
        return value

    return clean


def _or_null(clean: Cleaner) -> Cleaner:
    return lambda value: None if value is None else clean(value)


_EMAIL = _matching(r"[^@\s]+@[^@\s]+", "must be a valid email address of 96 characters at most.", 96)
_KNOWN_TYPE = _matching("delivery|collection", "is invalid.")
_IN_2020: dict[str, Cleaner] = {
    "first_name": _text(),
    "last_name": _text(),
    "email": _text(),
    "telephone": _text(),
    "notify": _or_null(_boolean),
    "order_type": _KNOWN_TYPE,
    "order_date_time": _moment("%Y-%m-%d %H:%M:%S", "date and time"),
    "status_id": _integer,
    "assignee_id": _or_null(_integer),
    "assignee_group_id": _or_null(_integer),
}
"""What the seed lets a PATCH change, but for the two stamps. Everything else is ignored, here and there."""
_TODAY: dict[str, Cleaner] = {
    "first_name": _text(1, 48),
    "last_name": _text(1, 48),
    "email": _EMAIL,
    "telephone": _text(),
    "comment": _or_null(_text(0, 500)),
    "order_type": _matching(r"[\w-]+", "may only contain letters, numbers, dashes and underscores."),
    "order_date": _moment("%Y-%m-%d", "date"),
    "order_time": _moment("%H:%M:%S", "time", time_of_day),
    "payment": _text(),
    "processed": _boolean,
    "customer_id": _or_null(_integer),
    "location_id": _or_null(_integer),
    "status_id": _integer,
    "status_comment": _or_null(_text()),
    "assignee_id": _or_null(_integer),
    "assignee_group_id": _or_null(_integer),
    "order_menus": _rows_with("menu_id"),
    "order_totals": _rows_with("code"),
}
_NAMES_DEMANDED = ("first_name", "last_name", "order_type")


def _clean(body: Json, cleaners: Mapping[str, Cleaner], required: Iterable[str] = ()) -> Json:
    """The known fields of `body`, cleaned. Raises `ApiError` 422 naming every bad or missing one."""
    errors = {name: f"The {name} field is required." for name in required if body.get(name) in (None, "")}
    cleaned: Json = {}
    for name in cleaners.keys() & body.keys() - errors.keys():
        try:
            cleaned[name] = cleaners[name](body[name])
        except ValueError as error:
            errors[name] = f"The {name} {error}"
    if cleaners is _TODAY and cleaned.get("order_type") == "delivery":
        errors |= _address_errors(body)
    if errors:
        _invalid(errors)
    return cleaned


def _address_errors(body: Json) -> dict[str, str]:
    street = body["address"].get("address_1") if isinstance(body.get("address"), dict) else None
    if isinstance(street, str) and 3 <= len(street) <= 128:
        return {}
    return {"address.address_1": "The address.address_1 field is required and takes 3 to 128 characters."}


def _body() -> Json:
    """The JSON object sent. Laravel takes anything else for an empty one."""
    try:
        body = json.loads(request.get_data())
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


# The application


class TastyIgniter:
    """The backend: every call of the contract, on one `Shop`."""

    def __init__(self, options: Options, clock: Callable[[], float] = time.time) -> None:
        self.options = options
        self.effects = base.EffectLog(clock)
        self.interpositions = base.Interpositions()
        self._clock = clock
        self._shown = Shown(options)
        self.hooks = Hooks(options, self._shown)
        self.guards: dict[str, _Guard] = {}
        """What each call asks of a token, by the name of its method; `create_app` fills it."""
        self._shop = Shop(options, clock, self.effects, self._shown, self.hooks)
        self._issued: dict[str, Access] = {}
        self._throttles: dict[int, base.Throttle] = {}

    # The control endpoints' side

    def invent(self, count: int | None, seed: int, plain: bool) -> Iterator[Json]:
        """See the function of the same name."""
        return invent(count, seed, plain=plain)

    def add_orders(self, specifications: Iterable[Json]) -> list[int]:
        """Customers order: see `Shop.check_out`. Raises `ValueError`."""
        with self._shop.lock:
            self._shop.settle()
        added = []
        for specification in specifications:
            with self._shop.lock:
                added.append(self._shop.check_out(specification).id)
        return added

    def all_orders(self) -> Iterator[Json]:
        """Every order, the deleted ones too, with everything known about it."""
        with self._shop.lock:
            self._shop.settle()
            orders = {**self._shop.orders, **self._shop.gone}
            return iter([everything(orders[ident]) for ident in sorted(orders)])

    def one_order(self, order_id: str) -> Json:
        """One of them. Raises `KeyError`."""
        with self._shop.lock:
            self._shop.settle()
            ident = int(order_id)
            return everything(self._shop.gone.get(ident) or self._shop.orders[ident])

    def edit_order(self, order_id: str, patch: Json) -> None:
        """See `Shop.edit`. Raises `KeyError`, also for a deleted order, and `ValueError`."""
        with self._shop.lock:
            self._shop.settle()
            self._shop.edit(self._shop.orders[int(order_id)], patch)

    def subscribe(self, url: str) -> None:
        """Post the events of orders to `url`, unless that is done already."""
        with self._shop.lock:
            if all(one["url"] != url for one in self.hooks.subscriptions.values()):
                config = {"secret_key": self.options.webhook_secret}
                self.hooks.subscribe({"name": "fleet", "url": url, "events": ["order"], "config_data": config})

    def deliveries(self) -> Response:
        """`GET /_sandbox/deliveries[?order=ID]`: the webhooks and what became of each."""
        return json_response([one.as_json() for one in self.hooks.post.deliveries(request.args.get("order"))])

    # Before every call (sections 2, 6)

    def admit(self) -> None:
        """What is due happens; then token, rate limit, switched off actions, ability and kind of token."""
        if not request.path.startswith("/api/"):
            return
        with self._shop.lock:
            self._shop.settle()
        guard = self.guards.get(request.endpoint or "")
        if guard is None:
            return
        access = self._authenticate()
        self._check_rate(access)
        if guard.action in self.options.switched_off:
            raise _SwitchedOff
        if guard.ability and not access.may(self._accepted(guard)):
            raise ApiError(403, "Invalid ability provided.")
        if guard.staff and not access.staff:
            raise ApiError(403, "Restricted to staff tokens.")
        g.access = access

    def _accepted(self, guard: "_Guard") -> tuple[str, ...]:
        """The seed's abilities are for reading and writing; the code of today checks one only (section 2)."""
        if self._flat():
            return f"{guard.ability}:*", f"{guard.ability}:{'read' if request.method == 'GET' else 'write'}"
        return (f"{guard.ability}:*",)

    def _authenticate(self) -> Access:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme == "Bearer":
            if secrets.compare_digest(token.encode(), self.options.token.encode()):
                return Access()
            if token in self.options.tokens:
                return _access(self.options.tokens[token])
            if token in self._issued:
                return self._issued[token]
        raise ApiError(401, "Unauthenticated.", coded=False)

    def _check_rate(self, access: Access) -> None:
        throttle = self._throttles.setdefault(access.user_id, base.Throttle(self.options, self._clock))
        if (seconds := throttle.wait()) is not None:
            error = ApiError(429, "Too Many Attempts.", coded=False)
            limit = str(self.options.rate_per_minute)
            error.headers = {"Retry-After": str(seconds), "X-RateLimit-Limit": limit, "X-RateLimit-Remaining": "0"}
            raise error

    # Answers

    def _flat(self) -> bool:
        return self.options.profile in ("P1", "P1b")

    def _order(self, order: Order, status: int = 200) -> Response:
        if self._flat():
            flat = self._shown.flat(order)
            return json_response({"data": flat} if self.options.profile == "P1b" else flat, status)
        document = {"data": self._order_resource(order)}
        included = self._include([order], [document["data"]])
        return json_response({**document, "included": included} if included else document, status)

    def _order_resource(self, order: Order) -> Json:
        return {"type": "orders", "id": str(order.id), "attributes": self._shown.resource(order)}

    def _include(self, orders: list[Order], resources: list[Json]) -> list[Json]:
        """What `include` asks for: relationships on the resources, and the objects for `included`."""
        names = [name for name in request.args.get("include", "").split(",") if name in _INCLUDES]
        included: dict[tuple[str, str], Json] = {}
        for order, resource in zip(orders, resources, strict=True):
            for name in names:
                found = self._related(order, name)
                links: Any = [{"type": one["type"], "id": one["id"]} for one in found]
                if name != "status_history":
                    links = links[0] if links else None
                resource.setdefault("relationships", {})[name] = {"data": links}
                included |= {(one["type"], one["id"]): one for one in found}
        return list(included.values())

    def _related(self, order: Order, name: str) -> list[Json]:
        if name == "status_history":
            shuffled = order.history[1:] + order.history[:1]  # no order is promised (section 4)
            return [_jsonapi(name, row["id"], self._shown.history_row(row)) for row in shuffled]
        if name == "status":
            status = self._shown.status(order.status_id)
            return [_jsonapi(name, order.status_id, status)] if status else _built_from_null(name)
        ident = getattr(order, _INCLUDES[name])
        if not ident:
            return _built_from_null(name) if name == "location" else []
        return [_jsonapi(name, ident, {"name": f"{name} {ident}"})]

    # Tokens

    def issue_token(self) -> Response:
        """`POST /api/token`; a second call gives another token, and the first stays good."""
        body = _body()
        _clean(body, {}, ("email", "password", "device_name"))
        user = self.options.users.get(str(body["email"]), {})
        abilities = body.get("abilities", ["*"])
        if errors := {**self._credential_errors(user, body), **self._ability_errors(abilities)}:
            _invalid(errors)
        own = {name: value for name, value in user.items() if name not in ("password", "active")}
        with self._shop.lock:
            token = f"{len(self._issued) + 100}|{secrets.token_hex(40)}"
            self._issued[token] = _access({**own, "abilities": abilities})
        self.effects.record("POST", request.path, "", ("token",), b"")
        return json_response({"status_code": 201, "token": token}, 201)

    def _credential_errors(self, user: Json, body: Json) -> dict[str, str]:
        is_kind = user.get("staff", True) == (body.get("is_admin") in (1, "1", True))
        if len(str(body["device_name"])) > 255:
            return {"device_name": "The device_name may not be greater than 255 characters."}
        if user.get("password") != body["password"] or not user.get("active", True) or not is_kind:
            return {"email": "The provided credentials are incorrect."}
        return {}

    def _ability_errors(self, abilities: Any) -> dict[str, str]:
        """Before December 2025 a colon was an error, so that `*` was the only ability of use (section 2)."""
        colon = isinstance(abilities, list) and any(":" in str(one) for one in abilities)
        if isinstance(abilities, list) and (self.options.profile == "P3" or not colon):
            return {}
        return {"abilities": "The abilities format is invalid."}

    def show_user(self) -> Response:
        """`GET /api/token/user`."""
        user = {"user_id": g.access.user_id, "name": "Sam Staff" if g.access.staff else "Ann Test"}
        return json_response({"status_code": 200, "user": user})

    # Orders

    def list_orders(self) -> Response:
        """`GET /api/orders` (section 3.1)."""
        limit = _counted("pageLimit", 20)
        page = _counted("page", 1)
        with self._shop.lock:
            orders = self._listed()
            start = (page - 1) * limit
            again = min(self.options.repeated_rows, start)
            rows = orders[start - again : start + limit] if start < len(orders) else []
            answer = self._page(rows, page, limit, len(orders))
            if patch := self.interpositions.take("LIST", "list"):
                self._interpose_in_list(patch)
            return answer

    def _listed(self) -> list[Order]:
        orders = [order for order in self._shop.orders.values() if g.access.sees(order) and _is_asked_for(order)]
        name, _, direction = request.args.get("sort", "").partition(" ")
        by_time = name in ("created_at", "date_added") and name in self._sortable()
        down = name in self._sortable() and direction == "desc"
        return sorted(orders, key=lambda order: (order.created_at if by_time else 0, order.id), reverse=down)

    def _sortable(self) -> tuple[str, ...]:
        """Any other name is ignored silently; the stamp was renamed between the profiles (sections 3.1, 3.2)."""
        if self._flat():
            return "order_id", "date_added"
        return ("order_id", "created_at", "date_added")[: 2 if self.options.profile == "P3" else 3]

    def _page(self, rows: list[Order], page: int, limit: int, total: int) -> Response:
        if self._flat():
            document: Json = {"data": [self._shown.flat(order) for order in rows]}
        else:
            resources = [self._order_resource(order) for order in rows]
            included = self._include(rows, resources)
            document = {"data": resources, "included": included} if included else {"data": resources}
        if self.options.profile != "P3":
            document |= _paging(page, limit, total, len(rows), nested=not self._flat())
        return json_response(document)

    def _interpose_in_list(self, patch: Json) -> None:
        """`POST /_sandbox/interpose` with `after` LIST: `{"add": [..], "delete": [ids]}` while somebody pages."""
        for specification in patch.get("add", ()):
            self._shop.check_out(specification)
        for ident in patch.get("delete", ()):
            self._shop.delete(self._shop.orders[ident], STAFF)

    def read_order(self, ident: str) -> Response:
        """`GET /api/orders/{id}` (section 3.2)."""
        with self._shop.lock:
            order = self._found(ident)
            answer = self._order(order)
            self._interpose(order)
            return answer

    def post_order(self) -> Response:
        """`POST /api/orders`: nothing tells a second call from a second order (section 5)."""
        values = _clean(_body(), _TODAY, _NAMES_DEMANDED)
        if not g.access.staff:
            values["customer_id"] = g.access.user_id
        with self._shop.lock:
            return self._order(self._shop.create(values, self._hand()), 201)

    def patch_order(self, ident: str) -> Response:
        """`PATCH /api/orders/{id}` (section 3.5), and PUT, which is the same."""
        body = _body()
        required = _NAMES_DEMANDED if self.options.demands_names else ()
        values = _clean(body, _IN_2020) if self._flat() else _clean(body, _TODAY, required)
        if stamp := values.pop("order_date_time", None):
            values["order_date"], values["order_time"] = stamp.split(" ")
        with self._shop.lock:
            order = self._found(ident)
            before = copy.copy(order)
            self._shop.patch(order, values, self._hand(), history=not self._flat())
            answer = self._patched(order, before)
            self._interpose(order)
            return answer

    def _patched(self, order: Order, before: Order) -> Response:
        """Twelve fields in P1; else the order, stale where it was changed behind the loaded object (section 3.2)."""
        if self.options.profile == "P1":
            return json_response(self._shown.patched(order))
        shown = copy.copy(order)
        for name in STALE:
            setattr(shown, name, getattr(before, name))
        return self._order(shown)

    def delete_order(self, ident: str) -> Response:
        """`DELETE /api/orders/{id}` (section 1)."""
        with self._shop.lock:
            order = self._found(ident)
            self._shop.delete(order, self._hand())
            if self.options.profile == "P1":
                return json_response({"id": order.id, "object": "order", "deleted": True})
            return self._order(order) if self._flat() else Response(status=204)

    def _hand(self) -> Hand:
        user_id = g.access.user_id if g.access.staff else None
        return Hand(user_id, request.method, request.path, request.get_data())

    def _found(self, ident: str) -> Order:
        order = self._shop.orders.get(int(ident)) if ident.isdecimal() else None
        if order is None or not g.access.sees(order):
            raise _no_order()
        return order

    def _interpose(self, order: Order) -> None:
        if patch := self.interpositions.take(request.method, order.id):
            self._shop.edit(order, patch)

    # The catalogue and the subscriptions

    def list_statuses(self) -> Response:
        """`GET /api/status` (section 4)."""
        if self._flat():
            return json_response({"data": self.options.statuses})
        return json_response({"data": [_jsonapi("statuses", row["status_id"], row) for row in self.options.statuses]})

    def list_webhooks(self) -> Response:
        """`GET /api/webhooks`."""
        known = self.hooks.subscriptions.values()
        if self._flat():
            return json_response({"data": list(known)})
        return json_response({"data": [_jsonapi("webhooks", one["id"], one) for one in known]})

    def post_webhook(self) -> Response:
        """`POST /api/webhooks`."""
        values = _clean(_body(), _SUBSCRIPTION, ("name", "url"))
        with self._shop.lock:
            subscription = self.hooks.subscribe({"events": [], **values})
        return self._subscription("created", subscription, 201)

    def patch_webhook(self, ident: int) -> Response:
        """`PATCH /api/webhooks/{id}`."""
        values = _clean(_body(), _SUBSCRIPTION)
        with self._shop.lock:
            subscription = self._known_webhook(ident)
            config = {**subscription["config_data"], **(values.pop("config_data", None) or {})}
            subscription.update(values, config_data=config)
        return self._subscription("changed", subscription)

    def delete_webhook(self, ident: int) -> Response:
        """`DELETE /api/webhooks/{id}`."""
        with self._shop.lock:
            subscription = self._known_webhook(ident)
            del self.hooks.subscriptions[ident]
        self._subscription("deleted", subscription)
        return Response(status=204)

    def _known_webhook(self, ident: int) -> Json:
        if ident not in self.hooks.subscriptions:
            raise ApiError(404, "No query results for model [Outgoing] [999]")
        return self.hooks.subscriptions[ident]

    def _subscription(self, done: str, subscription: Json, status: int = 200) -> Response:
        self.effects.record(request.method, request.path, "", (f"webhook:{done}",), request.get_data())
        data = subscription if self._flat() else _jsonapi("webhooks", subscription["id"], subscription)
        return json_response(data if self.options.profile == "P1" else {"data": data}, status)

    # Errors (section 6)

    def show_error(self, error: ApiError) -> Response:
        """The body in today's order of keys, or in that of 2020."""
        if not error.coded:
            return json_response({"message": error.message}, error.status, error.headers)
        document: Json = {"message": error.message}
        if error.errors:
            document["errors"] = error.errors
        document["status_code"] = error.status
        if self._flat():
            document = {"status_code": document.pop("status_code"), **document}
        if self.options.debug:
            document["debug"] = {"file": "app/Sandbox.php", "line": 1, "trace": ["#0 {main}"]}
        return json_response(document, error.status, error.headers)

    def show_switched_off(self, _: Exception) -> Response:
        """A site may answer in any of these ways."""
        if self.options.switched_off_as == "empty":
            return json_response({}, 404)
        return _page(405 if self.options.switched_off_as == "405" else 404)


class _SwitchedOff(Exception):
    """The site does not offer this action."""


_INCLUDES = {
    "payment_method": "payment",
    **{name: f"{name}_id" for name in ("customer", "location", "address", "assignee", "assignee_group", "status")},
    "status_history": "",
}
"""What `include` knows, and the column that names it."""


@dataclass(frozen=True, slots=True)
class _Guard:
    """What a call asks of a token: an ability, and whether it must be staff's. `action`: what a site can switch off."""

    ability: str = ""
    staff: bool = True
    action: str = ""


def _events(value: Any) -> list[str]:
    if not isinstance(value, list) or not set(value) <= set(EVENT_CODES):
        raise ValueError(f"must be some of {', '.join(EVENT_CODES)}.")
    return value


def _configuration(value: Any) -> Json:
    if not isinstance(value, dict):
        raise ValueError("must be an array.")
    return {name: value[name] for name in ("secret_key", "verify_ssl") if value.get(name) not in (None, "")}


_SUBSCRIPTION: dict[str, Cleaner] = {
    "name": _text(2, 128),
    "is_active": _boolean,
    "url": _matching(r"https?://\S+", "must be a URL."),
    "config_data": _configuration,
    "events": _events,
}


def _access(values: Json) -> Access:
    lists: Json = {name: tuple(values[name]) for name in ("abilities", "locations") if name in values}
    return Access(**{**values, **lists})


def _jsonapi(kind: str, ident: object, attributes: Json) -> Json:
    return {"type": kind, "id": str(ident), "attributes": attributes}


def _built_from_null(name: str) -> NoReturn:
    raise ApiError(500, f"Attempt to read property on null: include {name}")


def _counted(name: str, default: int) -> int:
    text = request.args.get(name, "")
    return int(text) if text.isdecimal() and int(text) > 0 else default


def _is_asked_for(order: Order) -> bool:
    """The filters of section 3.1."""
    for name in ("customer", "location", "status"):
        if (wanted := request.args.get(name)) and wanted != str(getattr(order, f"{name}_id")):
            return False
    searched = (order.id, order.first_name, order.last_name, order.email, order.telephone)
    wanted = request.args.get("search", "").lower()
    return any(wanted in str(text).lower() for text in searched)


def _paging(page: int, limit: int, total: int, rows: int, *, nested: bool) -> Json:
    """`links` and `meta` of Laravel (flat profiles), or of fractal (P2)."""
    last = max(-(-total // limit), 1)

    def address(number: int) -> str | None:
        return f"{request.base_url}?page={number}" if 1 <= number <= last else None

    links = {"first": address(1), "last": address(last), "prev": address(page - 1), "next": address(page + 1)}
    if nested:
        counts = {"total": total, "count": rows, "per_page": limit, "current_page": page, "total_pages": last}
        present = {name: link for name, link in links.items() if link}
        return {"meta": {"pagination": counts}, "links": {"self": address(page), **present}}
    return {"links": links, "meta": {"current_page": page, "last_page": last, "per_page": limit, "total": total}}


def _page(status: int) -> Response:
    """The framework's own, for people."""
    title = {404: "Not Found", 405: "Method Not Allowed"}.get(status, "Error")
    return Response(
        f"<!DOCTYPE html><html><title>{title}</title><h1>{status}</h1></html>", status, mimetype="text/html"
    )


def create_app(options: Options | None = None, clock: Callable[[], float] = time.time) -> Flask:
    """The imitation as a WSGI application, its API under `/api`; `clock` gives seconds since 1970."""
    site = TastyIgniter(options or Options(), clock)
    app = Flask("sandbox.tastyigniter", static_folder=None)
    for methods, rule, view, guard in (
        ("POST", "/api/token", site.issue_token, None),
        ("GET", "/api/token/user", site.show_user, _Guard(staff=False)),
        ("GET", "/api/orders", site.list_orders, _Guard("orders", False, "index")),
        ("POST", "/api/orders", site.post_order, _Guard("orders", False, "store")),
        ("GET", "/api/orders/<ident>", site.read_order, _Guard("orders", False, "show")),
        ("PATCH PUT", "/api/orders/<ident>", site.patch_order, _Guard("orders", True, "update")),
        ("DELETE", "/api/orders/<ident>", site.delete_order, _Guard("orders", True, "destroy")),
        ("GET", "/api/status", site.list_statuses, _Guard("status")),
        ("GET", "/api/webhooks", site.list_webhooks, _Guard("webhooks")),
        ("POST", "/api/webhooks", site.post_webhook, _Guard("webhooks")),
        ("PATCH PUT", "/api/webhooks/<int:ident>", site.patch_webhook, _Guard("webhooks")),
        ("DELETE", "/api/webhooks/<int:ident>", site.delete_webhook, _Guard("webhooks")),
        ("GET", f"{base.CONTROL}deliveries", site.deliveries, None),
    ):
        app.add_url_rule(rule, view.__name__, view, methods=methods.split())
        if guard is not None:
            site.guards[view.__name__] = guard
    app.before_request(site.admit)
    app.register_error_handler(ApiError, site.show_error)
    app.register_error_handler(_SwitchedOff, site.show_switched_off)
    app.register_error_handler(
        MailDown, lambda _: site.show_error(ApiError(500, "Connection could not be established."))
    )
    app.register_error_handler(HTTPException, lambda error: _page(error.code or 500))
    base.install(app, site)
    return app


def fleet_settings(url: str) -> dict[str, str]:
    """The environment that points a fleet at this imitation at `url`."""
    known = Options()
    return {
        "TASTYIGNITER_URL": f"{url}/api",
        "TASTYIGNITER_TOKEN": known.token,
        "TASTYIGNITER_WEBHOOK_SECRET": known.webhook_secret,
        "TASTYIGNITER_TIMEZONE": known.zone,
        "TASTYIGNITER_CURRENCY": known.currency,
        "TASTYIGNITER_POLL_SECONDS": "2",
    }


def point_at(app: Flask, web: str, account: str = "default") -> None:
    """Deliver the events of orders to the fleet whose web server is at `web`."""
    site_of(app).subscribe(f"{web.rstrip('/')}/webhooks/tastyigniter/{account}")


def site_of(app: Flask) -> TastyIgniter:
    """The backend, for tests in the same process."""
    site = base.control_of(app).backend
    assert isinstance(site, TastyIgniter)
    return site


# Invented orders

_MENU = (
    (11, "Tomato soup", 5.5),
    (12, "Mushroom risotto", 12.95),
    (13, "Fish and chips", 14.5),
    (14, "Vegetable curry", 11.75),
    (15, "Margherita", 10.25),
    (16, "Caesar salad", 9.8),
    (17, "Apple pie", 6.2),
    (18, "Sparkling water", 2.75),
)
_OPTIONS = (("Size", "Large", 2.0), ("Sauce", "Chilli", 0.0), ("Extra", "Cheese", 1.25))
_NAMES = (("Alex", "Test"), ("Billie", "Sample"), ("Charlie", "Demo"), ("Dana", "Trial"), ("Eli", "Example"))


def invent(count: int | None, seed: int, *, plain: bool = False) -> Iterator[Json]:
    """Specifications for `TastyIgniter.add_orders`, always the same for a seed; endless without `count`.

    Most are placed after a moment in the checkout; if `plain` all, and at once. A few are abandoned there, cancelled or
    deleted by the staff, for a time that is hard to read, with totals that do not add up, or `UNKNOWN_PRODUCT`."""
    dice = random.Random(seed)
    for number in counting(1) if count is None else range(1, count + 1):
        order = _ordinary(dice, number)
        yield order if plain else {**order, **_oddity(dice, order)}


def _ordinary(dice: random.Random, number: int) -> Json:
    first, last = dice.choice(_NAMES)
    delivery = dice.random() < 0.5
    street = {"address_1": f"{dice.randint(1, 99)} Example Street", "city": "Sampletown", "postcode": "SA1 1AA"}
    charge = dice.choice((1.5, 2.5, 3.95)) if delivery else 0
    totals: list[Json] = [{**SPARE_TOTALS[0], "value": charge}, *SPARE_TOTALS[1:]]
    if dice.random() < 0.15:
        totals.append({"code": "coupon", "title": "Coupon", "value": -1.5, "priority": 2, "is_summable": True})
    return {
        "first_name": first,
        "last_name": last,
        "email": f"{first}.{last}@example.com".lower(),
        "telephone": f"+357990{number % 100000:05d}",
        "customer_id": dice.randint(1, 50) if dice.random() < 0.6 else None,
        "order_type": "delivery" if delivery else "collection",
        "address_id": number if delivery else None,
        "address": street if delivery else None,
        "comment": "No onions, please." if dice.random() < 0.1 else "",
        "order_menus": [_dish(dice) for _ in range(dice.randint(1, 4))],
        "order_totals": totals,
    }


def _dish(dice: random.Random) -> Json:
    ident, name, price = dice.choice(_MENU)
    quantity = dice.randint(1, 3)
    dish = {"menu_id": ident, "name": name, "quantity": quantity, "price": price}
    if dice.random() > 0.3:
        return dish
    group, value, more = dice.choice(_OPTIONS)
    option = {
        "order_option_id": dice.randint(100, 999),
        "order_option_name": value,
        "order_option_price": more,
        "quantity": 1,
        "menu_option_id": 1,
        "menu_option_value_id": 1,
        "order_option_category": group,
    }
    return {**dish, "menu_options": {group: [option]}, "subtotal": round(quantity * (price + more), 2)}


def _oddity(dice: random.Random, order: Json) -> Json:
    """A moment in the checkout for most; about one order of ten is odd."""
    seconds = round(dice.uniform(0.5, 2), 2)
    checkout: Json = {"processed": False, "later": [[seconds, {"processed": True}]]}
    unknown = {**order["order_menus"][0], "menu_id": 999, "name": UNKNOWN_PRODUCT}
    oddities: list[Json] = [
        checkout,
        {"processed": False},
        {"later": [[seconds * 3, {"status_id": CANCELED}]]},
        {"later": [[seconds * 3, {"deleted": True}]]},
        {"order_menus": [unknown, *order["order_menus"][1:]]},
        {"order_time": "00:10:00", "order_time_is_asap": False},
        {"order_date": "2027-10-31", "order_time": "01:30:00", "order_time_is_asap": False},
        {"order_total": 999},
    ]
    return dice.choices(oddities, (90, 2, 2, 1, 1, 2, 1, 1))[0]
