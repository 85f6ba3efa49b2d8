"""An imitation of Doshii's POS API v3, written from `contracts/doshii.md` and the seed.

Section and endpoint numbers (E1 to E15) in this file are those of the contract. What it marks [assumed] is what
happens here; what its section 10 leaves open is a field of `Options`. This is the HTTP side: the state and its rules
are in `doshii_store`, the documents in `doshii_documents`. Nothing has a thread but the post: what happens by itself
(a customer cancels, a partner answers) happens at the first request after its time.

Beside the control endpoints of `sandbox.base`:

  GET    /_sandbox/deliveries[?order=ID]   the webhooks sent, and what each try was answered with
  POST   /_sandbox/events                  {"event": .., "data": {..}} sends one to every location that wants it
"""

import base64
import hashlib
import hmac
import json
import random
import re
import secrets
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from itertools import count as counting
from typing import Any, NoReturn

import requests
from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from sandbox import base
from sandbox.base import Json, json_response
from sandbox.doshii_documents import (
    CODES,
    TYPES,
    WRITABLE,
    Problem,
    cents,
    check_code,
    clean,
    clean_product,
    order_total,
    priced,
    stamp,
)
from sandbox.doshii_store import ALL, EVENTS, PREFIX, STATUSES, Kinds, Options, Order, Store, Subscription, Transaction
from sandbox.posting import Post

__all__ = ["PREFIX", "UNKNOWN_PRODUCT", "Options", "create_app", "fleet_settings", "invent", "point_at"]

UNKNOWN_PRODUCT = "UNKNOWN-PRODUCT"
"""A product that the sandbox ERP refuses."""


class Doshii:
    """The backend: every call of the contract, on one `Store`."""

    def __init__(self, options: Options, clock: Callable[[], float] = time.time) -> None:
        self.options = options
        self.effects = base.EffectLog(clock)
        self.interpositions = base.Interpositions()
        self.store = Store(options, clock, self.effects)
        self._clock = clock
        self._throttle = base.Throttle(options)
        self._recent: defaultdict[str, deque[float]] = defaultdict(deque)

    @property
    def post(self) -> Post:
        """The webhooks on their way, and those that were."""
        return self.store.post

    # The control endpoints' side

    def invent(self, count: int | None, seed: int, plain: bool) -> Iterator[Json]:
        """See the function of the same name."""
        return invent(count, seed, plain=plain)

    def add_orders(self, specifications: Iterable[Json]) -> list[str]:
        """Create orders as a partner does, and tell. Their doshiiIds. Raises `ValueError`.

        A specification has fields of the Order object (totals it leaves out are computed, `id` links it at once), and:
        `transactions` (fields of the Transaction object, and `answers`: `complete` or `rejected`); `quiet`: no event;
        `cancels_after_seconds` with `cancels_as`; `appends` (products) with `appends_after_seconds`; `pays`
        (transactions) with `pays_after_seconds`.
        """
        with self.store.lock:
            self.store.settle()
            return [self.store.add(specification).doshii_id for specification in specifications]

    def all_orders(self) -> list[Json]:
        """Every order by doshiiId, with its transactions and its log."""
        with self.store.lock:
            self.store.settle()
            return [self._everything(order) for order in self.store.orders.values()]

    def one_order(self, order_id: str) -> Json:
        """One order by its doshiiId, with its transactions and its log. Raises `KeyError`."""
        with self.store.lock:
            self.store.settle()
            return self._everything(self.store.orders[order_id])

    def _everything(self, order: Order) -> Json:
        payments = [self.store.shown_transaction(payment) for payment in order.transactions]
        hidden = {"doshiiId": order.doshii_id, "transactions": payments, "log": order.log}
        return {**self.store.shown(order), **hidden, "total": order_total(order.document)}

    def edit_order(self, order_id: str, patch: Json) -> None:
        """The partner or somebody at the venue changes the order, by no rules. Raises `KeyError`, `ValueError`.

        `patch` has fields of the Order object, `transactions` (those with a known `id` are changed, others are new)
        and `quiet`. The event that follows: `item_created` or `item_updated` for `unapprovedItems`, `order_updated`
        for all else, `transaction_created` or `transaction_updated`. Who cancels cancels his open payments, too.
        """
        with self.store.lock:
            self.store.settle()
            self.store.edit(self.store.orders[order_id], patch)

    def point_at(self, web: str, account: str, location: str | None) -> None:
        """See the function of the same name."""
        location = location or next(iter(self.options.locations.values()))
        url = f"{web.rstrip('/')}/webhooks/doshii/{account}"
        now = self._clock()
        key, token = self.options.webhook_key, self.options.webhook_token
        with self.store.lock:
            self.store.subscriptions[location, ALL] = Subscription(location, ALL, url, key, token, now, now)

    def deliveries(self) -> Response:
        """`GET /_sandbox/deliveries`."""
        return json_response([delivery.as_json() for delivery in self.post.deliveries(request.args.get("order"))])

    def send_event(self) -> Response:
        """`POST /_sandbox/events`: any event, true or not."""
        document = _json_body()
        with self.store.lock:
            self.store.tell(document.get("location", ALL), document["event"], document.get("data", {}))
        return json_response({}, 201)

    # Before every call

    def admit(self) -> None:
        """Credentials, the rate limit, and paths that are none (sections 2 and 8)."""
        if not request.path.startswith(f"{PREFIX}/"):
            return
        with self.store.lock:
            self.store.settle()
            g.location = self._authenticate()
            self._limit(g.location)
        # Werkzeug decodes %2F before it looks for a rule: only the path as it was sent tells whether an id was encoded.
        sent = request.environ.get("REQUEST_URI", "").partition("?")[0]
        if request.url_rule and sent.startswith("/") and sent.count("/") != request.url_rule.rule.count("/"):
            _not_found()

    def _authenticate(self) -> str:
        """The id of the caller's location; empty for the vendor himself, who may subscribe only."""
        if request.headers.get("vendor") != self.options.vendor:
            raise Problem(401, "Unknown vendor")
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer":
            raise Problem(401, "Bearer token missing")
        for_vendor = request.path.startswith(f"{PREFIX}/webhooks")
        if for_vendor and hmac.compare_digest(token.encode(), self.options.vendor_key.encode()):
            return ""
        claims = _claims(token, self.options.vendor_key)
        self._check_timestamp(claims.get("timestamp"))
        if for_vendor and claims.get("vendor") == self.options.vendor and "locationToken" not in claims:
            return ""
        location = self.options.locations.get(str(claims.get("locationToken")))
        if location is None:
            raise Problem(401, "Unknown location token")
        if location in self.options.forbidden_locations:
            raise Problem(403, "The location does not allow this vendor")
        return location

    def _check_timestamp(self, timestamp: Any) -> None:
        whole = isinstance(timestamp, int) and not isinstance(timestamp, bool)
        if not whole or abs(self._clock() - timestamp) > self.options.token_lifetime:
            raise Problem(401, "Token expired")

    def _limit(self, location: str) -> None:
        wait = self._throttle.wait()
        if (most := self.options.requests_per_second) is not None:
            recent = self._recent[location]
            while recent and recent[0] <= self._clock() - 1:
                recent.popleft()
            if len(recent) >= most:
                wait = wait or 1
            else:
                recent.append(self._clock())
        if wait is not None:
            raise Problem(429, "Too many requests", {"Retry-After": str(wait)})

    # Orders

    def list_unlinked(self) -> Response:
        """E1."""
        with self.store.lock:
            rows = [self._row(order) for order in self.store.unlinked(g.location)]
        return json_response(rows)

    def read_unlinked(self, doshii_id: str) -> Response:
        """E2."""
        with self.store.lock:
            return self._answer(self._unlinked(doshii_id))

    def put_unlinked(self, doshii_id: str) -> Response:
        """E3."""
        with self.store.lock:
            order = self._of_here(doshii_id)
            if order.pos_id is not None:
                raise Problem(self.options.linked_put_status, f"Order {doshii_id} is linked")
            body = _json_body()
            try:
                kinds = self.store.link(order, body, request.headers.get("doshii-terminal-id"))
            except Problem:
                self.store.remind(order, body)
                raise
            self._wrote(order, "put_unlinked", kinds, order.pos_id)
            answer = self._answer(order, doshii_number=self.options.answer_with_doshii_id)
            self.store.complete_if_paid(order)
        return answer

    def list_linked(self) -> Response:
        """E6."""
        statuses = [name for name in request.args.get("status", "").split(",") if name]
        if unknown := set(statuses) - set(STATUSES):
            raise Problem(400, f"status {', '.join(sorted(unknown))} is unknown")
        bounds = {name: _number(name) for name in ("from", "to", "updatedFrom", "updatedTo")}
        offset, limit = _number("offset") or 0, min(_number("limit") or 50, 250)
        with self.store.lock:
            found = self.store.linked_since(g.location, bounds["updatedFrom"] or 0)
            found = [order for order in found if _within(order, bounds) and (not statuses or order.status in statuses)]
            if request.args.get("order") == "desc":
                found.reverse()
            rows = [{"id": order.pos_id, **self._row(order)} for order in found[offset : offset + limit]]
        return json_response(rows)

    def read_linked(self, pos_id: str) -> Response:
        """E7."""
        with self.store.lock:
            return self._answer(self._linked(pos_id))

    def put_linked(self, pos_id: str) -> Response:
        """E8."""
        with self.store.lock:
            terminal = request.headers.get("doshii-terminal-id")
            order, kinds = self.store.put(g.location, pos_id, _json_body(), terminal)
            self._wrote(order, "put_order", kinds)
            answer = self._answer(order, 201 if kinds == ("created",) else 200)
            self.store.complete_if_paid(order)
        return answer

    def read_consumer(self, pos_id: str) -> Response:
        """E9."""
        with self.store.lock:
            return json_response(self._linked(pos_id).document["consumer"] or {})

    def answer_preprocessing(self, number: str) -> Response:
        """E15."""
        with self.store.lock:
            known = self.store.preprocessings.get(number, {})
            if known.get("location") != g.location:
                _not_found()
            body = _json_body()
            if body.get("status") not in ("complete", "rejected"):
                raise Problem(400, "status must be complete or rejected")
            check_code(clean(body, WRITABLE), "orders", body["status"] == "rejected")
            known["answer"] = body
            self._record(known["order"], ("put_preprocess", f"preprocess:{body['status']}"))
        return json_response({"id": number, **body})

    def _row(self, order: Order) -> Json:
        return {"doshiiId": order.doshii_id, "status": order.status, "uri": self.store.uri(order)}

    def _of_here(self, doshii_id: str) -> Order:
        order = self.store.orders.get(doshii_id)
        return order if order is not None and order.location == g.location else _not_found()

    def _unlinked(self, doshii_id: str) -> Order:
        order = self._of_here(doshii_id)
        visible = order.pos_id is None or self.options.linked_visible_via_unlinked
        return order if visible else _not_found()

    def _linked(self, pos_id: str) -> Order:
        return self.store.linked.get((g.location, pos_id)) or _not_found()

    def _answer(self, order: Order, status: int = 200, *, doshii_number: bool = False) -> Response:
        document = self.store.shown(order)
        if doshii_number:
            document |= {"id": order.doshii_id, "uri": f"{self.options.uri_base}/orders/{order.doshii_id}"}
        answer = json_response(document, status)
        if patch := self.interpositions.take(request.method, order.doshii_id):
            self.store.edit(order, patch)
        return answer

    def _wrote(self, order: Order, write: str, kinds: Kinds, key: str | None = None) -> None:
        self._record(order.doshii_id, (write, *kinds), key)
        if self.options.echo_events:
            self.store.tell_order(order, "order_updated")

    def _record(self, order: str, kinds: Kinds, key: str | None = None) -> None:
        self.effects.record(request.method, request.path, order, kinds, request.get_data(), key)

    # Payments and logs

    def list_transactions(self, doshii_id: str | None = None, pos_id: str | None = None) -> Response:
        """E4 and E9."""
        with self.store.lock:
            order = self._unlinked(doshii_id) if doshii_id else self._linked(str(pos_id))
            return json_response([self.store.shown_transaction(payment) for payment in order.transactions])

    def post_transaction(self, pos_id: str | None = None) -> Response:
        """E10."""
        with self.store.lock:
            body = _json_body()
            wanted = pos_id or body.get("orderId")
            order = self._linked(str(wanted)) if wanted is not None else None
            payment, kinds = self.store.pay(g.location, order, body)
            return self._wrote_payment(payment, "post_transaction", kinds, payment.document["reference"], 201)

    def read_transaction(self, number: str) -> Response:
        """E11 GET."""
        with self.store.lock:
            return json_response(self.store.shown_transaction(self._transaction(number)))

    def put_transaction(self, number: str) -> Response:
        """E11 PUT."""
        with self.store.lock:
            payment = self._transaction(number)
            kinds = self.store.answer_payment(payment, _json_body())
            return self._wrote_payment(payment, "put_transaction", kinds, payment.id)

    def _wrote_payment(
        self, payment: Transaction, write: str, kinds: Kinds, key: str | None, status: int = 200
    ) -> Response:
        self._record(payment.order.doshii_id if payment.order else "", (write, *kinds), key)
        if self.options.echo_events:
            self.store.tell_transaction(payment, "transaction_updated")
        answer = json_response(self.store.shown_transaction(payment), status)
        self.store.complete_if_paid(payment.order)
        return answer

    def _transaction(self, number: str) -> Transaction:
        payment = self.store.transactions.get(number)
        return payment if payment is not None and payment.location == g.location else _not_found()

    def read_log(self, doshii_id: str | None = None, pos_id: str | None = None, number: str | None = None) -> Response:
        """E5."""
        with self.store.lock:
            if number:
                return json_response(self._transaction(number).log)
            order = self._unlinked(doshii_id) if doshii_id else self._linked(str(pos_id))
            return json_response(order.log)

    # The rest

    def list_codes(self) -> Response:
        """E12."""
        return json_response([self._code(code) for code in CODES])

    def read_code(self, code: str) -> Response:
        """E12."""
        return json_response(self._code(code)) if code in CODES else _not_found()

    def _code(self, code: str) -> Json:
        entity, text = CODES[code]
        return {"code": code, "description": self.options.rejection_texts.get(code, text), "entity": entity}

    def read_location(self) -> Response:
        """E14."""
        return json_response({"id": g.location, "name": f"Sandbox {g.location}"})

    def subscribe(self, location: str = ALL) -> Response:
        """E13 POST; asks the receiver first (section 7.2)."""
        self._check_location(location)
        body = _json_body()
        event = body.get("event") or ALL
        if event not in (*EVENTS, ALL) or not re.match(r"https?://", str(body.get("webhookUrl"))):
            raise Problem(400, "event or webhookUrl is wrong")
        key, token = body.get("authenticationKey") or "", body.get("authenticationToken") or ""
        now = self._clock()
        wanted = Subscription(location, event, body["webhookUrl"], key, token, now, now)
        with self.store.lock:
            if (location, event) in self.store.subscriptions:
                raise Problem(409, f"There is a webhook for {location}/{event}")
        started = time.monotonic()
        if not self._verified(wanted):
            raise Problem(400, "The webhook did not answer its verification")
        wanted.latency = int((time.monotonic() - started) * 1000)
        with self.store.lock:
            self.store.subscriptions[location, event] = wanted
            self._record("", ("post_webhook", "subscribed"), f"{location}/{event}")
        return json_response(self._shown_subscription(wanted), 201)

    def _verified(self, wanted: Subscription) -> bool:
        if self.options.verification == "off":
            return True
        word = secrets.token_hex(8)
        by_get = self.options.verification_method == "GET"
        document = {"event": "webhook_verification", "data": {"verify": word}}
        try:
            with requests.Session() as session:
                session.trust_env = False
                answer = session.request(
                    self.options.verification_method,
                    wanted.url,
                    params={"verify": word} if by_get else None,
                    data=None if by_get else json.dumps(document),
                    headers=wanted.headers(self.options),
                    timeout=10.0,
                    allow_redirects=False,
                )
            echoed = self.options.verification != "echoed" or answer.json() == {"verify": word}
        except (requests.RequestException, ValueError):
            return False
        return 200 <= answer.status_code < 300 and echoed

    def read_subscription(self, location: str, event: str) -> Response:
        """E13 GET."""
        self._check_location(location)
        with self.store.lock:
            known = self.store.subscriptions.get((location, event)) or _not_found()
            return json_response(self._shown_subscription(known))

    def unsubscribe(self, location: str = ALL, event: str | None = None) -> Response:
        """E13 DELETE; without an event all of the location's."""
        self._check_location(location)
        with self.store.lock:
            known = [key for key in self.store.subscriptions if key[0] == location and event in (None, key[1])]
            if not known:
                _not_found()
            for key in known:
                del self.store.subscriptions[key]
            self._record("", ("delete_webhook", "unsubscribed"))
        return Response(status=204)

    def _check_location(self, location: str) -> None:
        if location != ALL and location not in self.options.locations.values():
            _not_found()
        if location != ALL and g.location not in ("", location):
            raise Problem(403, "Another location's webhooks")

    def _shown_subscription(self, known: Subscription) -> Json:
        return {
            "event": known.event,
            "webhookUrl": known.url,
            "authenticationEnabled": bool(known.token),
            "webhookLatency": known.latency,
            "updatedAt": stamp(known.updated),
            "createdAt": stamp(known.created),
            "uri": f"{self.options.uri_base}/webhooks/{known.location}/{known.event}",
        }

    def refused(self, problem: Problem) -> Response:
        """An error in the form that is switched on."""
        return problem.response(self.options.error_body)

    def http_error(self, error: HTTPException) -> Response:
        """A wrong address or verb: there is no such thing."""
        status = 404 if error.code == 405 else error.code or 500
        return self.refused(Problem(status, HTTPStatus(status).phrase))


def _claims(token: str, key: str) -> Json:
    """The claims of a JWT that `key` signed with HS256 (section 2); none if it is not one."""
    head, _, signature = token.rpartition(".")
    expected = hmac.new(key.encode(), head.encode(), hashlib.sha256).digest()
    try:
        header, claims = (json.loads(_decoded(part)) for part in head.split("."))
        good = header.get("alg") == "HS256" and hmac.compare_digest(_decoded(signature), expected)
        return dict(claims) if good else {}
    except (ValueError, AttributeError, TypeError):
        return {}


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _not_found() -> NoReturn:
    raise Problem(404, "Not found")


def _json_body() -> Json:
    if request.mimetype != "application/json":
        raise Problem(400, "Content-Type must be application/json")
    try:
        body = json.loads(request.get_data())
    except ValueError as error:
        raise Problem(400, f"No JSON: {error}") from None
    if not isinstance(body, dict):
        raise Problem(400, "An object is needed")
    return body


def _number(name: str) -> int | None:
    text = request.args.get(name, "")
    if text and not text.isdigit():
        raise Problem(400, f"{name} must be a whole number")
    return int(text) if text else None


def _within(order: Order, bounds: dict[str, int | None]) -> bool:
    lower, upper, last_update = bounds["from"], bounds["to"], bounds["updatedTo"]
    return (
        (lower is None or order.created >= lower)
        and (upper is None or order.created <= upper)
        and (last_update is None or order.updated <= last_update)
    )


def create_app(options: Options | None = None, clock: Callable[[], float] = time.time) -> Flask:
    """The imitation as a WSGI application, under `PREFIX`; `clock` gives seconds since 1970."""
    doshii = Doshii(options or Options(), clock)
    app = Flask("sandbox.doshii", static_folder=None)
    for method, rule, view in (
        ("GET", "/unlinked_orders", doshii.list_unlinked),
        ("GET", "/unlinked_orders/<doshii_id>", doshii.read_unlinked),
        ("PUT", "/unlinked_orders/<doshii_id>", doshii.put_unlinked),
        ("GET", "/unlinked_orders/<doshii_id>/transactions", doshii.list_transactions),
        ("GET", "/unlinked_orders/<doshii_id>/logs", doshii.read_log),
        ("PUT", "/unlinked_orders/preprocess/<number>", doshii.answer_preprocessing),
        ("GET", "/orders", doshii.list_linked),
        ("GET", "/orders/<path:pos_id>", doshii.read_linked),
        ("PUT", "/orders/<path:pos_id>", doshii.put_linked),
        ("GET", "/orders/<path:pos_id>/logs", doshii.read_log),
        ("GET", "/orders/<path:pos_id>/consumer", doshii.read_consumer),
        ("GET", "/orders/<path:pos_id>/transactions", doshii.list_transactions),
        ("POST", "/orders/<path:pos_id>/transactions", doshii.post_transaction),
        ("POST", "/transactions", doshii.post_transaction),
        ("GET", "/transactions/<number>", doshii.read_transaction),
        ("PUT", "/transactions/<number>", doshii.put_transaction),
        ("GET", "/transactions/<number>/logs", doshii.read_log),
        ("GET", "/rejection_codes", doshii.list_codes),
        ("GET", "/rejection-codes", doshii.list_codes),
        ("GET", "/rejection_codes/<code>", doshii.read_code),
        ("GET", "/rejection-codes/<code>", doshii.read_code),
        ("POST", "/webhooks", doshii.subscribe),
        ("POST", "/webhooks/<location>", doshii.subscribe),
        ("GET", "/webhooks/<location>/<event>", doshii.read_subscription),
        ("DELETE", "/webhooks", doshii.unsubscribe),
        ("DELETE", "/webhooks/<location>", doshii.unsubscribe),
        ("DELETE", "/webhooks/<location>/<event>", doshii.unsubscribe),
        ("GET", "/location", doshii.read_location),
    ):
        app.add_url_rule(PREFIX + rule, view.__name__, view, methods=[method])
    app.add_url_rule(f"{base.CONTROL}deliveries", "deliveries", doshii.deliveries, methods=["GET"])
    app.add_url_rule(f"{base.CONTROL}events", "send_event", doshii.send_event, methods=["POST"])
    app.before_request(doshii.admit)
    app.register_error_handler(Problem, doshii.refused)
    app.register_error_handler(HTTPException, doshii.http_error)
    base.install(app, doshii)
    app.extensions["doshii"] = doshii
    return app


def fleet_settings(url: str) -> dict[str, str]:
    """The environment that points a fleet's account `default` at an imitation with default `Options` at `url`."""
    known = Options()
    token, location = next(iter(known.locations.items()))
    return {
        "DOSHII_URL": f"{url.rstrip('/')}{PREFIX}",
        "DOSHII_VENDOR": known.vendor,
        "DOSHII_VENDOR_KEY": known.vendor_key,
        "DOSHII_LOCATION_TOKEN": token,
        "DOSHII_LOCATION_ID": location,
        "DOSHII_WEBHOOK_KEY": known.webhook_key,
        "DOSHII_WEBHOOK_TOKEN": known.webhook_token,
        "DOSHII_POLL_SECONDS": "2",
    }


def point_at(app: Flask, web: str, account: str = "default", location: str | None = None) -> None:
    """Send all events of a location (the first one) to the fleet whose web server is at `web`, without asking it."""
    doshii: Doshii = app.extensions["doshii"]
    doshii.point_at(web, account, location)


# Invented orders

_MENU = (
    ("pep_pizza", "Pepperoni Pizza", 1450),
    ("toasted_bread", "Toasted Sourdough Bread & Eggs", 1100),
    ("lamb_wrap", "Lamb wrap", 1650),
    ("soup_day", "Soup of the day", 990),
    ("flat_white", "Flat white", 480),
    ("cola", "Cola", 450),
    ("side_salad", "Side salad", 720),
)
_EXTRA: Json = {
    "posId": "extra_toppings",
    "name": "Extra",
    "min": "0",
    "max": "0",
    "variants": [{"posId": "extra_cheese", "name": "Cheese", "price": "200"}],
}
_NAMES = ("Alex", "Billie", "Charlie", "Dana", "Eli", "Frankie")


def invent(count: int | None, seed: int, *, plain: bool = False) -> Iterator[Json]:
    """Specifications for `Doshii.add_orders`, always the same for a seed; endless without `count`.

    Pickups, deliveries and tables, about half of them with a prepaid payment attached. Unless `plain`, about one in
    ten is odd: its customer leaves early or late, it grows, it has an unknown, open or bundled item, and so on.
    """
    dice = random.Random(seed)
    for _ in counting() if count is None else range(count):
        order = _ordinary(dice)
        yield order if plain else {**order, **_oddity(dice, order)}


def _ordinary(dice: random.Random) -> Json:
    items = [_invented_item(dice) for _ in range(dice.randint(1, 4))]
    kind = dice.choices(TYPES, (4, 4, 2))[0]
    name, number = dice.choice(_NAMES), dice.randint(1, 99)
    consumer: Json = {
        "name": f"{name} Buyer",
        "phone": f"+357990000{number:02}",
        "email": f"{name.lower()}@example.com",
    }
    if kind == "delivery":
        street = {"line1": f"{number} High St", "line2": None, "city": "Melbourne", "state": "VIC"}
        consumer["address"] = {**street, "postalCode": "3000", "country": "AU", "notes": ""}
    order: Json = {"type": kind, "items": items, "consumer": consumer}
    if dice.random() < 0.3:
        order["notes"] = dice.choice(("No onion", "Extra napkins", "Ring twice"))
    if dice.random() < 0.2:
        value = -sum(cents(priced(clean_product(item))["totalAfterSurcounts"]) for item in items) // 10
        order["surcounts"] = [{"name": "Promo", "type": "percentage", "amount": "-10", "value": str(value)}]
    if kind == "dinein":
        order["checkinId"] = str(number)
        order["checkin"] = {"id": str(number), "tableNames": [f"Table {number % 20 + 1}"], "covers": "2"}
    if dice.random() < 0.5:
        order["transactions"] = [{"reference": f"pay-{dice.getrandbits(40):010x}"}]
    return order


def _invented_item(dice: random.Random) -> Json:
    pos_id, name, price = dice.choice(_MENU)
    item: Json = {"posId": pos_id, "name": name, "quantity": dice.randint(1, 3), "unitPrice": str(price)}
    if dice.random() < 0.25:
        item["options"] = [_EXTRA]
    if dice.random() < 0.1:
        item["surcounts"] = [{"posId": "fee1", "name": "Fee", "type": "absolute", "amount": "100", "value": "100"}]
    return item


def _oddity(dice: random.Random, order: Json) -> Json:
    """What to change in about one order of ten."""
    first, *rest = order["items"]
    soon, late = dice.uniform(0.2, 2), dice.uniform(3, 8)
    inside = {"name": "Cola", "posId": "cola", "quantity": "1", "unitPrice": "0", "options": []}
    bundle = {
        "posId": "lunch_deal",
        "name": "Lunch deal",
        "unitPrice": 1800,
        "type": "bundle",
        "includedItems": [inside],
    }
    open_item = {"name": "Birthday cake", "quantity": "1", "unitPrice": "3500"}
    cola = {"posId": "cola", "name": "Cola", "quantity": 1, "unitPrice": "450"}
    oddities: list[Json] = [
        {"cancels_after_seconds": soon},
        {"cancels_after_seconds": late},
        {"cancels_after_seconds": late, "cancels_as": "venue_cancelled"},
        {"items": [{**first, "posId": UNKNOWN_PRODUCT}, *rest]},
        {"items": [bundle, *rest]},
        {"items": [first, open_item]},
        {"appends": [cola], "appends_after_seconds": late},
        {"type": "catering"},
        {"type": "dinein", "consumer": None},
        {"requiredAt": "2099-12-31T18:30:00.000Z"},
        {"transactions": [{"prepaid": False, "method": "eftpos", "tip": "150"}]},
        {"transactions": [], "pays": [{"prepaid": False}], "pays_after_seconds": late},
        {"taxes": [{"name": "GST", "type": "percentage", "taxType": "exclusive", "amount": "10", "value": 145}]},
    ]
    return dice.choice(oddities) if dice.random() < 0.1 else {}
