"""The web process: health, metrics, and whatever receives webhooks. Answers from what it can reach; decides nothing."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from typing import Any

import structlog
from flask import Blueprint, Flask, Response, jsonify
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger
from kombu import Connection
from prometheus_client import CollectorRegistry, Counter, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import HTTPException, MethodNotAllowed

import webhooks.base
from ledger import intake, queries
from ledger.connection import Ledger
from ledger.migrate import pending
from orders.arrival import Arrival
from tasks.dispatch import BrokerAway
from webhooks.base import NotKept
from workers.bell import Bell, build_bell
from workers.celery import broker_errors
from workers.pace import Paced
from workers.settings import Settings, read_settings, with_broker
from workers.systems import SYSTEMS
from workers.systems.base import Inbound, Wiring
from workers.tally import FINISHED, Backlog, Tally

THREADS = 16
READY_SECONDS = 2.0
"""How long a check may take before what it checks counts as away."""
STOP_SECONDS = 5
"""How long requests that are being answered may take when the process stops."""

log = structlog.get_logger(__name__)


def create_app(
    settings: Settings, receivers: Iterable[Blueprint] = (), systems: Mapping[str, Wiring] = SYSTEMS
) -> Flask:
    """The WSGI application; connects to nothing before the first request.

    Every system of `systems` that is switched on and pushes is answered; `receivers`: what else is."""
    app = Flask("orderfleet", static_folder=None)
    ledger = Ledger(settings.database_url, pool_size=THREADS + 2)
    checks = [Check("database", lambda: _database(ledger)), Check("broker", lambda: _broker(settings.broker_url))]
    registry = _registry(ledger)
    app.add_url_rule("/healthz", view_func=healthz)
    app.add_url_rule("/readyz", "readyz", lambda: readyz(checks))
    app.add_url_rule("/metrics", "metrics", lambda: Response(generate_latest(registry), mimetype=CONTENT_TYPE_LATEST))
    app.extensions["ledger"] = ledger
    app.extensions["bell"] = bell = build_bell(settings, ledger)
    counted = Counter(
        "orderfleet_webhooks", "Webhooks by the status of our answer.", ["system", "status"], registry=registry
    )
    for blueprint in (*receivers, *_blueprints(settings, systems, ledger, bell, counted)):
        app.register_blueprint(blueprint)
    app.register_error_handler(HTTPException, _in_json)
    return app


def _blueprints(
    settings: Settings, systems: Mapping[str, Wiring], ledger: Ledger, bell: Bell, counted: Counter
) -> Iterator[Blueprint]:
    """What answers for the systems that are switched on."""

    def count(system: str, status: int) -> None:
        counted.labels(system, status).inc()

    for name in settings.systems:
        accounts = [account for account in settings.accounts if account.system == name]
        wiring = systems[name]
        if wiring.receiver is not None:
            yield webhooks.base.blueprint(wiring.receiver(accounts), keeper(ledger, bell), count)
        if wiring.blueprint is not None:
            yield _counted(wiring.blueprint(Inbound(accounts, ledger, bell.ring)), name, count)


def _counted(blueprint: Blueprint, system: str, count: webhooks.base.Count) -> Blueprint:
    """With every answer in the metrics, like those to webhooks."""

    def after(response: Response) -> Response:
        count(system, response.status_code)
        return response

    blueprint.after_request(after)
    return blueprint


def keeper(ledger: Ledger, bell: Bell) -> webhooks.base.Keep:
    """Commits what came in, and has it seen to."""

    def keep(system: str, arrivals: Sequence[Arrival]) -> None:
        try:
            taken = intake.take_in(ledger, system, arrivals)
        except SQLAlchemyError as error:
            raise NotKept(f"the ledger did not take it: {str(error)[:300]}") from error
        bell.ring(system, taken.new)
        bell.news(system, taken.news)

    return keep


def _in_json(error: HTTPException) -> Response:
    """Errors as JSON, like every other answer; no detail of what went wrong."""
    answer = jsonify({"error": error.name})
    answer.status_code = error.code or 500
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        answer.headers["Allow"] = ", ".join(error.valid_methods)
    return answer


def healthz() -> Response:
    """Whether this process answers: 200 as long as it does."""
    return jsonify({"status": "ok"})


# -- ready ------------------------------------------------------------------------------------------------------------


class Check:
    """Something this process needs. `look` returns what is wrong in words, or None; it may hang."""

    def __init__(self, name: str, look: Callable[[], str | None]) -> None:
        self.name = name
        self._look = look
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"check-{name}")
        self._running: Future[str | None] | None = None

    def begin(self) -> "Future[str | None]":
        """A look in a thread of its own, or the one that still hangs: never a second beside it."""
        if self._running is None or self._running.done():
            self._running = self._pool.submit(self._look)
        return self._running


def readyz(checks: list[Check]) -> tuple[Response, int]:
    """Whether this process can do its work: 200, or 503. `{"status", "checks": {name: "ok" or what is wrong}}`"""
    looks = {check.name: check.begin() for check in checks}
    told = {name: _told(look) for name, look in looks.items()}
    ready = set(told.values()) == {"ok"}
    return jsonify({"status": "ok" if ready else "not ready", "checks": told}), 200 if ready else 503


def _told(look: "Future[str | None]") -> str:
    try:
        return look.result(READY_SECONDS) or "ok"
    except Late:
        return f"does not answer within {READY_SECONDS:g} s"


def _database(ledger: Ledger) -> str | None:
    try:
        return "its tables are older than this code: run `orderfleet migrate`" if pending(ledger) else None
    except SQLAlchemyError as error:
        return _away("database", error)


def _broker(url: str | None) -> str | None:
    if url is None:
        return "BROKER_URL is not set"
    try:
        with broker_errors(), Connection(url, connect_timeout=READY_SECONDS, transport_options=_SHORT) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=READY_SECONDS)
    except BrokerAway as error:
        return _away("broker", error)
    return None


_SHORT = {"socket_timeout": READY_SECONDS, "socket_connect_timeout": READY_SECONDS, "retry_on_timeout": False}


def _away(name: str, error: Exception) -> str:
    # Whoever asks may be a stranger: hosts and users are for the log only.
    log.warning(f"the {name} cannot be used", action="check_failed", check=name, error=str(error)[:300])
    return f"cannot be used ({type(error).__name__}); this process's log says why"


# -- metrics ----------------------------------------------------------------------------------------------------------


class LedgerCollector(Collector):
    """What the ledger says, read when somebody asks, no more often than its size allows."""

    def __init__(self, ledger: Ledger) -> None:
        self._tally = Tally(ledger)
        self._backlog = Paced(self._tally.read)
        self._ledger = ledger

    def describe(self) -> list[Metric]:
        """Nothing: registering must not read the ledger."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metrics; only `orderfleet_ledger_up 0` when the ledger is away."""
        up = GaugeMetricFamily("orderfleet_ledger_up", "Whether the ledger could be read (1) or not (0).")
        try:
            metrics = [*_orders(self._backlog.value()), *_fleet(self._ledger)]
        except SQLAlchemyError as error:
            log.warning("no metrics from the ledger", action="metrics_failed", error=str(error)[:300])
            metrics = []
        up.add_metric([], 1.0 if metrics else 0.0)
        yield up
        yield from metrics


def _orders(backlog: Backlog) -> Iterator[Metric]:
    orders = GaugeMetricFamily(
        "orderfleet_orders",
        f"Orders in the ledger by state; `{FINISHED}`: done, cancelled or ignored.",
        labels=["system", "state"],
    )
    for (system, state), number in sorted(backlog.orders.items()):
        orders.add_metric([system, state], number)
    yield orders
    yield GaugeMetricFamily(
        "orderfleet_oldest_waiting_seconds",
        "How long the order that could go now and waits longest has been due.",
        value=backlog.oldest_seconds,
    )


def _fleet(ledger: Ledger) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "orderfleet_live_workers",
        "Workers that gave a sign of life within their lease.",
        value=len(queries.live_workers(ledger)),
    )
    closed = GaugeMetricFamily(
        "orderfleet_lane_closed",
        "Remotes in trouble: 1 while nothing is sent to them, 0 while they are tried.",
        labels=["lane"],
    )
    for gate in queries.closed_gates(ledger).values():
        closed.add_metric([gate.lane], float(gate.closed))
    yield closed


def _registry(ledger: Ledger) -> CollectorRegistry:
    registry = CollectorRegistry()  # not the global one: Celery and Flower put theirs there
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    registry.register(LedgerCollector(ledger))
    return registry


# -- serving ----------------------------------------------------------------------------------------------------------


class _Log(Logger):  # type: ignore[misc]  # gunicorn has no types
    """Gunicorn's messages go where ours go, in the same form."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        self.error_log.handlers[:] = []
        self.error_log.propagate = True


class _Server(BaseApplication):  # type: ignore[misc]
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        host = (
            f"[{self._settings.webhooks.host}]" if ":" in self._settings.webhooks.host else self._settings.webhooks.host
        )
        for name, value in {
            "bind": f"{host}:{self._settings.webhooks.port}",
            "worker_class": "gthread",
            "workers": 1,
            "threads": THREADS,
            "graceful_timeout": STOP_SECONDS,
            "timeout": 60,
            "keepalive": 15,
            "accesslog": None,
            "logger_class": _Log,
            "proc_name": "orderfleet webhooks",
            "control_socket_disable": True,
        }.items():
            if name in self.cfg.settings:  # gunicorn 25 and later only: control_socket_disable
                self.cfg.set(name, value)

    def load(self) -> Flask:
        """Called in the child, after the fork: every connection is the child's own."""
        return create_app(self._settings)


def run_webhooks(settings: Settings) -> None:
    """Serve until told to stop: SIGTERM lets requests that are being answered finish."""
    _Server(settings).run()


def app() -> Flask:
    """For a WSGI server of one's own: `gunicorn 'workers.web:app()'`."""
    return create_app(with_broker(read_settings()))
