"""What the five imitations share: faults on request, a log of effects, control endpoints, a quick server.

A sandbox is a Flask application. Its own file supplies a `Backend`; `install` adds the control endpoints and
the faults; `serve`, `running` and `serve_forever` put it on a port. What is under `/_sandbox/` serves tests
and the sandbox command, answers JSON, asks for no credentials and never fails on purpose:

  GET    effects[?order=ID]   every write that took effect, oldest first
  GET    counts[?kind=KIND]   effects per kind, and which orders had one more than once
  POST   faults               a rule, or a list of rules (`FaultRule`); DELETE forgets them
  GET    orders[?fields=a,b]  all orders with everything we know; `orders/ID` one of them
  POST   orders               overrides of one order, {"orders": [..]}, or {"count": n, "overrides": {..}}
  PATCH  orders/ID            a person edits the order, or its payment arrives
  POST   arrivals             {"per_second": x, "total": n} keeps orders coming; GET shows, DELETE stops
  POST   interpose            {"order": ID, "after": "GET", "patch": {..}} edits an order once it was read
  GET    options              the knobs of `Options`; PATCH turns them while running
"""

import hashlib
import json
import random
import socket
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from io import BytesIO
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from flask import Blueprint, Flask, Response, request
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler
from werkzeug.test import run_wsgi_app

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Json = dict[str, Any]

CONTROL = "/_sandbox/"
FAULT_KINDS = ("500_before", "500_after", "lost_request", "lost_answer", "429", "html_502", "slow")
"""`slow`, `500_after` and `lost_answer` do the work; `slow` then answers late. The others do none."""

_ANY_ORDER = ""
_EXTENSION = "sandbox"


def json_response(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`document` as a compact JSON answer."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return Response(text, status, headers, mimetype="application/json")


@dataclass(kw_only=True)
class Options:
    """Knobs of every sandbox. They may be turned while it runs (`PATCH /_sandbox/options`)."""

    latency_seconds: float = 0.0
    """Added to every answer outside the control endpoints."""
    rate_per_minute: int | None = None
    """More requests than this in any 60 seconds get 429; the system's own file asks `Throttle`."""

    def change(self, document: Json) -> None:
        """Set the named knobs. Raises `ValueError` for a name that does not exist."""
        _refuse_unknown(document, self)
        for name, value in document.items():
            setattr(self, name, value)


def _refuse_unknown(document: Any, kind: Any) -> None:
    if not isinstance(document, dict):
        raise ValueError("a JSON object is needed")
    if unknown := set(document) - {known.name for known in fields(kind)}:
        raise ValueError(f"unknown: {', '.join(sorted(unknown))}")


class Throttle:
    """A sliding window of one minute over `Options.rate_per_minute`."""

    def __init__(self, options: Options, clock: Callable[[], float] = time.monotonic) -> None:
        self._options = options
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: deque[float] = deque()

    def wait(self) -> int | None:
        """`None` when the request may pass, else the whole seconds after which it may be repeated."""
        limit = self._options.rate_per_minute
        if limit is None:
            return None
        with self._lock:
            now = self._clock()
            while self._seen and self._seen[0] <= now - 60:
                self._seen.popleft()
            if len(self._seen) < limit:
                self._seen.append(now)
                return None
            oldest = self._seen[0] if self._seen else now
            return int(oldest + 60 - now) + 1


# Faults


@dataclass(kw_only=True)
class FaultRule:
    """Which requests misbehave (`rate` of those that match, drawn with `seed`), how, and how many at most."""

    rate: float = 1.0
    kinds: tuple[str, ...] = FAULT_KINDS
    seed: int = 0
    slow_seconds: float = 1.0
    retry_after: int = 1
    path_contains: str = ""
    method: str | None = None
    times: int | None = None
    dice: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.kinds = tuple(self.kinds)
        if unknown := set(self.kinds) - set(FAULT_KINDS):
            raise ValueError(f"unknown kinds of fault: {', '.join(sorted(unknown))}")
        self.dice = random.Random(self.seed)

    def strikes(self, method: str, path: str) -> bool:
        """Whether this request is to misbehave; draws from the dice only for requests that match."""
        if self.times == 0 or self.path_contains not in path or self.method not in (None, method):
            return False
        if self.dice.random() >= self.rate:
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass(frozen=True)
class Fault:
    """One request's misfortune."""

    kind: str
    slow_seconds: float
    retry_after: int


class Faults:
    """Decides, for all threads together, which requests misbehave. The first rule that strikes wins."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[FaultRule] = []
        self._injected: Counter[str] = Counter()

    def set(self, rules: Iterable[FaultRule]) -> None:
        """Replace all rules."""
        with self._lock:
            self._rules = list(rules)

    def draw(self, method: str, path: str) -> Fault | None:
        """The fault for this request, or `None`."""
        with self._lock:
            for rule in self._rules:
                if rule.strikes(method, path):
                    kind = rule.dice.choice(rule.kinds)
                    self._injected[kind] += 1
                    return Fault(kind, rule.slow_seconds, rule.retry_after)
        return None

    def injected(self) -> dict[str, int]:
        """How many faults of each kind there have been."""
        with self._lock:
            return dict(self._injected)


class _Misbehaving:
    """The WSGI application between the server and a sandbox: lets requests through, late, or in vain."""

    def __init__(self, app: "WSGIApplication", options: Options, faults: Faults) -> None:
        self._app = app
        self._options = options
        self._faults = faults
        self._lock = threading.Lock()
        self.requests: Counter[str] = Counter()

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path.startswith(CONTROL):
            return self._app(environ, start_response)
        method = environ["REQUEST_METHOD"]
        with self._lock:
            self.requests[method] += 1
        if self._options.latency_seconds:
            time.sleep(self._options.latency_seconds)
        fault = self._faults.draw(method, path)
        if fault is None:
            return self._app(environ, start_response)
        return self._misbehave(fault, environ)(environ, start_response)

    def _misbehave(self, fault: Fault, environ: "WSGIEnvironment") -> "WSGIApplication":
        if fault.kind in ("500_after", "lost_answer", "slow"):
            answer = Response.from_app(self._app, environ, buffered=True)
            if fault.kind == "slow":
                time.sleep(fault.slow_seconds)
                return answer
        if fault.kind in ("lost_answer", "lost_request"):
            _hang_up(environ)
        if fault.kind == "429":
            detail = {"detail": "Injected: too many requests."}
            return json_response(detail, 429, {"Retry-After": str(fault.retry_after)})
        if fault.kind == "html_502":
            return Response("<html><body><h1>502 Bad Gateway</h1></body></html>", 502, mimetype="text/html")
        return json_response({"detail": "Injected: internal error."}, 500)


def _hang_up(environ: "WSGIEnvironment") -> NoReturn:
    """Close the connection without an answer. Mounted in a session there is none: the error itself tells."""
    connection = environ.get("werkzeug.socket")
    if connection is not None:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
    raise ConnectionAbortedError("injected: connection closed without an answer")


# Effects


@dataclass(frozen=True, slots=True)
class Effect:
    """One write that took effect. `kinds` begins with the write's name, then says what it changed."""

    sequence: int
    at: float
    method: str
    path: str
    order: str
    kinds: tuple[str, ...]
    raw: bytes
    key: str | None

    def as_json(self) -> Json:
        """For `GET /_sandbox/effects`: the body parsed if it is JSON, as text if not, and its SHA-256."""
        try:
            body = json.loads(self.raw)
        except ValueError:
            body = self.raw.decode(errors="replace")
        digest = hashlib.sha256(self.raw).hexdigest()
        document = {name: getattr(self, name) for name in ("sequence", "at", "method", "path", "order", "kinds", "key")}
        return {**document, "body": body, "digest": digest}


class EffectLog:
    """Every write that took effect, in order. What was refused or failed before its work is not in it."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._all: list[Effect] = []
        self._known_kinds: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._by_order: defaultdict[str, list[Effect]] = defaultdict(list)

    def record(
        self,
        method: str,
        path: str,
        order: object,
        kinds: tuple[str, ...],
        raw: bytes,
        key: str | None = None,
    ) -> None:
        """Append one effect. `key` is what must not repeat within an order, as a delivery number."""
        with self._lock:
            kinds = self._known_kinds.setdefault(kinds, kinds)  # one tuple for 100,000 orders
            effect = Effect(len(self._all), self._clock(), method, path, str(order), kinds, raw, key)
            self._all.append(effect)
            self._by_order[effect.order].append(effect)

    def of(self, order: object | None = None) -> list[Effect]:
        """The effects on one order, or all of them; oldest first."""
        with self._lock:
            return list(self._all if order is None else self._by_order.get(str(order), ()))

    def per_order(self) -> dict[str, Counter[str]]:
        """Kind to order to number of effects."""
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for effect in self.of():
            for kind in effect.kinds:
                counts[kind][effect.order] += 1
        return dict(counts)

    def repeated_keys(self) -> dict[str, dict[str, int]]:
        """Write's name to key to number, for keys that one order has seen more than once."""
        counts = Counter((effect.kinds[0], effect.key, effect.order) for effect in self.of() if effect.key)
        repeated: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for (kind, key, _), number in counts.items():
            if key and number > 1:
                repeated[kind][key] = number
        return dict(repeated)


class Interpositions:
    """Edits that a person makes just after somebody else's request for the same order was answered."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[tuple[str, str], list[Json]] = {}

    def add(self, order: object | None, after: str, patch: Json, times: int = 1) -> None:
        """`patch` the order, or the first to come, after its next `times` requests with method `after`."""
        key = (after.upper(), _ANY_ORDER if order is None else str(order))
        with self._lock:
            self._waiting.setdefault(key, []).extend([patch] * times)

    def take(self, method: str, order: object) -> Json | None:
        """The edit that is due now, if there is one; it will not be handed out again."""
        if not self._waiting:
            return None
        with self._lock:
            for key in ((method, str(order)), (method, _ANY_ORDER)):
                if patches := self._waiting.get(key):
                    patch = patches.pop(0)
                    if not patches:
                        del self._waiting[key]
                    return patch
        return None


# Control


class Backend(Protocol):
    """What a system's own file supplies. Order ids are text here, whatever they are in the system."""

    @property
    def options(self) -> Options: ...

    @property
    def effects(self) -> EffectLog: ...

    @property
    def interpositions(self) -> Interpositions: ...

    def invent(self, count: int | None, seed: int, plain: bool) -> Iterator[Json]:
        """Specifications for `add_orders`; endless without `count`. `plain`: no odd ones among them."""

    def add_orders(self, specifications: Iterable[Json]) -> list[Any]:
        """Create orders from overrides of the defaults; their ids. Raises `ValueError`."""

    def all_orders(self) -> Iterable[Json]:
        """Every order with everything known about it, the hidden parts too."""

    def one_order(self, order_id: str) -> Json:
        """One of them. Raises `KeyError`."""

    def edit_order(self, order_id: str, patch: Json) -> None:
        """A person's edit: any field, no rules. Raises `KeyError`, `ValueError`."""


class Arrivals:
    """Adds invented orders at a steady rate from a thread of its own."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._status: Json = {"per_second": 0.0, "total": None, "added": 0}

    def start(
        self,
        per_second: float,
        total: int | None = None,
        seed: int = 0,
        plain: bool = False,
        overrides: Json | None = None,
    ) -> None:
        """Replace what is arriving now. Without `total` it goes on until `stop`."""
        if per_second <= 0:
            raise ValueError("per_second must be above 0")
        self.stop()
        self._stop = threading.Event()
        self._status = {"per_second": per_second, "total": total, "added": 0}
        stream = ({**order, **(overrides or {})} for order in self._backend.invent(total, seed, plain))
        self._thread = threading.Thread(
            target=self._run, args=(self._stop, self._status, stream), name="arrivals", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """No more orders; returns when none is on its way."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def status(self) -> Json:
        """`{"per_second", "total", "added", "running"}`, and `error` if the overrides were wrong."""
        return {**self._status, "running": self._thread is not None and self._thread.is_alive()}

    def _run(self, stop: threading.Event, status: Json, stream: Iterator[Json]) -> None:
        started = time.monotonic()
        pause = min(max(1 / status["per_second"], 0.02), 0.5)
        try:
            while status["added"] != status["total"] and not stop.wait(pause):
                due = int((time.monotonic() - started) * status["per_second"]) - status["added"]
                status["added"] += len(self._backend.add_orders(islice(stream, due)))
        except ValueError as error:  # wrong overrides: nobody else is there to be told
            status["error"] = str(error)


class Control:
    """The endpoints under `/_sandbox/`, and the same things for tests in this process."""

    def __init__(self, app: Flask, backend: Backend) -> None:
        self.backend = backend
        self.faults = Faults()
        self.arrivals = Arrivals(backend)
        self._gate = _Misbehaving(app.wsgi_app, backend.options, self.faults)
        app.wsgi_app = self._gate  # type: ignore[method-assign] # the way Flask documents for WSGI middleware
        app.register_blueprint(self._blueprint())

    def _blueprint(self) -> Blueprint:
        routes = Blueprint("sandbox", __name__, url_prefix=CONTROL.rstrip("/"))
        for method, rule, view in (
            ("GET", "/effects", self._effects),
            ("GET", "/counts", self._counts),
            ("POST", "/faults", self._set_faults),
            ("DELETE", "/faults", self._clear_faults),
            ("GET", "/orders", self._all_orders),
            ("POST", "/orders", self._add_orders),
            ("GET", "/orders/<path:order_id>", self._one_order),
            ("PATCH", "/orders/<path:order_id>", self._edit_order),
            ("GET", "/arrivals", self._arrivals),
            ("POST", "/arrivals", self._start_arrivals),
            ("DELETE", "/arrivals", self._stop_arrivals),
            ("POST", "/interpose", self._interpose),
            ("GET", "/options", self._options),
            ("PATCH", "/options", self._change_options),
        ):
            routes.add_url_rule(rule, view.__name__, view, methods=[method])
        for kind in (ValueError, TypeError):
            routes.register_error_handler(kind, lambda error: json_response({"error": str(error)}, 400))
        routes.register_error_handler(KeyError, lambda error: json_response({"error": f"no such order: {error}"}, 404))
        return routes

    def _effects(self) -> Response:
        return json_response([effect.as_json() for effect in self.backend.effects.of(request.args.get("order"))])

    def _counts(self) -> Response:
        per_order = self.backend.effects.per_order()
        document: Json = {
            "total": {kind: counts.total() for kind, counts in per_order.items()},
            "orders": {kind: len(counts) for kind, counts in per_order.items()},
            "max_per_order": {kind: max(counts.values()) for kind, counts in per_order.items()},
            "more_than_once": {
                kind: {order: number for order, number in counts.items() if number > 1}
                for kind, counts in per_order.items()
            },
            "repeated_keys": self.backend.effects.repeated_keys(),
            "requests": dict(self._gate.requests),
            "faults": self.faults.injected(),
        }
        if kind := request.args.get("kind"):
            document["per_order"] = per_order.get(kind, {})
        return json_response(document)

    def _set_faults(self) -> Response:
        document = _body()
        rules = document if isinstance(document, list) else [document]
        self.faults.set([FaultRule(**rule) for rule in rules])
        return json_response({"rules": len(rules)})

    def _clear_faults(self) -> Response:
        self.faults.set([])
        return json_response({"rules": 0})

    def _all_orders(self) -> Response:
        orders = self.backend.all_orders()
        if wanted := request.args.get("fields"):
            names = wanted.split(",")
            return json_response([{name: order.get(name) for name in names} for order in orders])
        return json_response(list(orders))

    def _add_orders(self) -> Response:
        return json_response({"ids": self.backend.add_orders(self._specifications(_body()))}, 201)

    def _specifications(self, document: Json) -> Iterable[Json]:
        if "orders" in document:
            return list(document["orders"])
        if "count" not in document:
            return [document]
        invented = self.backend.invent(int(document["count"]), document.get("seed", 0), document.get("plain", False))
        overrides = document.get("overrides", {})
        return ({**order, **overrides} for order in invented)

    def _one_order(self, order_id: str) -> Response:
        return json_response(self.backend.one_order(order_id))

    def _edit_order(self, order_id: str) -> Response:
        self.backend.edit_order(order_id, _body())
        return json_response(self.backend.one_order(order_id))

    def _arrivals(self) -> Response:
        return json_response(self.arrivals.status())

    def _start_arrivals(self) -> Response:
        self.arrivals.start(**_body())
        return json_response(self.arrivals.status(), 201)

    def _stop_arrivals(self) -> Response:
        self.arrivals.stop()
        return json_response(self.arrivals.status())

    def _interpose(self) -> Response:
        self.backend.interpositions.add(**{"order": None, **_body()})
        return json_response({}, 201)

    def _options(self) -> Response:
        return json_response(asdict(self.backend.options))

    def _change_options(self) -> Response:
        self.backend.options.change(_body())
        return json_response(asdict(self.backend.options))


def _body() -> Any:
    document = json.loads(request.get_data() or b"{}")
    if not isinstance(document, dict | list):
        raise ValueError("a JSON object is needed")
    return document


def install(app: Flask, backend: Backend) -> Control:
    """Give `app` its control endpoints and its faults; once, when the system's own routes are there."""
    app.extensions[_EXTENSION] = Control(app, backend)
    return control_of(app)


def control_of(app: Flask) -> Control:
    """What `install` made, for tests in the same process."""
    control: Control = app.extensions[_EXTENSION]
    return control


# Server


class _Handler(WSGIRequestHandler):
    """Answers with one packet and keeps the connection open.

    Werkzeug's own handler closes every connection, and before that looks 10 ms for left-over input: no way to
    measure a fleet with. We read the whole body first, so there is nothing left over.
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def run_wsgi(self) -> None:
        """Answer one request; http.server has parsed its head."""
        environ = self.make_environ()
        environ["wsgi.input"] = BytesIO(self._read_body(environ))
        try:
            answer, status, headers = run_wsgi_app(self.server.app, environ, buffered=True)
        except ConnectionError:
            self.close_connection = True  # a lost answer: the socket is shut down already
            return
        self._send(status, list(headers), b"".join(answer))

    def _read_body(self, environ: "WSGIEnvironment") -> bytes:
        if environ.get("wsgi.input_terminated"):
            return bytes(environ["wsgi.input"].read())  # chunked: Werkzeug puts the chunks together
        return self.rfile.read(int(environ.get("CONTENT_LENGTH") or 0))

    def _send(self, status: str, headers: list[tuple[str, str]], body: bytes) -> None:
        names = {name.lower() for name, _ in headers}
        if "content-length" not in names:
            headers.append(("Content-Length", str(len(body))))
        if self.close_connection:
            headers.append(("Connection", "close"))
        lines = [f"HTTP/1.1 {status}", f"Date: {self.date_time_string()}"]
        lines += [f"{name}: {value}" for name, value in headers]
        self.wfile.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)


class _ConnectionServer(ThreadedWSGIServer):
    """One thread per connection, and a list of them: a stopped server must not go on answering."""

    def __init__(self, host: str, port: int, app: "WSGIApplication") -> None:
        self._connections: set[socket.socket] = set()
        self._guard = threading.Lock()
        super().__init__(host, port, app, _Handler)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection until it ends."""
        with self._guard:
            self._connections.add(request)
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._guard:
                self._connections.discard(request)

    def hang_up(self, *, patience: float = 5.0) -> None:
        """End all connections, and wait a while for what is at work on a request."""
        with self._guard:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        until = time.monotonic() + patience
        while self._connections and time.monotonic() < until:
            time.sleep(0.01)


class Server:
    """A sandbox on a port, served from a background thread."""

    def __init__(self, app: Flask, host: str = "127.0.0.1", port: int = 0) -> None:
        """Binds at once; `port` 0 takes a free one."""
        self._app = app
        self._server = _ConnectionServer(host, port, app)
        self.host = host
        self.port: int = self._server.port
        self.url = f"http://{host}:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, name=self.url, daemon=True
        )

    def start(self) -> None:
        """Begin to answer; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Stop arrivals, stop listening and end all connections."""
        if _EXTENSION in self._app.extensions:
            control_of(self._app).arrivals.stop()
        self._server.shutdown()
        self._thread.join()
        self._server.hang_up()


def serve(app: Flask, host: str = "127.0.0.1", port: int = 0) -> Server:
    """A started `Server`; the caller stops it."""
    server = Server(app, host, port)
    server.start()
    return server


@contextmanager
def running(app: Flask, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """The base URL, without a slash at its end, of `app` served for the length of a `with` block."""
    server = serve(app, host, port)
    try:
        yield server.url
    finally:
        server.stop()


def serve_forever(app: Flask, host: str, port: int, stop: threading.Event) -> None:
    """Serve until `stop` is set: the blocking form, for a process of its own."""
    with running(app, host, port):
        stop.wait()
