"""What `orderfleet doctor` looks at: one `Check` each, with what to do when it is not good. Changes nothing."""

import platform
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

from kombu import Connection
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from ledger import migrate, queries
from ledger.connection import Ledger
from ledger.leases import STEP_LIMIT
from orders.errors import Misconfigured, StepError
from orders.states import NEEDS_A_PERSON
from tasks.base import Account, Fleet
from workers.celery import VISIBILITY_SECONDS, broker_errors
from workers.settings import AccountSettings, Settings, WrongSettings, with_broker

CALLS_A_STEP = 4
"""The most calls that one step makes, one after another."""
BROKER_SECONDS = 3

_LOCAL = ("127.0.0.1", "::1", "localhost", None, "")


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    RED = "red"


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, what was found, and what to do about it."""

    name: str
    level: Level
    text: str
    advice: str = ""


def _ok(name: str, text: str) -> Check:
    return Check(name, Level.OK, text)


def _warning(name: str, text: str, advice: str) -> Check:
    return Check(name, Level.WARNING, text, advice)


def _red(name: str, text: str, advice: str) -> Check:
    return Check(name, Level.RED, text, advice)


def wrong_settings(wrong: WrongSettings) -> list[Check]:
    """A red line for each wrong setting; nothing else can be looked at then."""
    return [_red("settings", problem, "set it and look again") for problem in wrong.problems]


def examine(settings: Settings, fleet: Fleet) -> list[Check]:
    """Look at everything. Whatever goes wrong becomes a line; nothing is raised."""
    found = [_settings(settings), *_ledger(fleet.ledger)]
    # Only then the others, side by side: a new SQLite file is locked while its first connection sets it up.
    with ThreadPoolExecutor(max_workers=8) as pool:
        accounts = [(account, fleet.accounts[account.system, account.name]) for account in settings.accounts]
        outside = [
            pool.submit(_guarded, "broker", lambda: _broker(settings)),
            pool.submit(_guarded, "erp", lambda: [_erp(fleet)]),
            *(pool.submit(_probe_account, one, account, fleet) for one, account in accounts),
        ]
        found += [check for future in outside for check in future.result()]
    if not any(check.name == "ledger" and check.level is Level.RED for check in found):
        found += _guarded("orders", lambda: _orders(fleet.ledger))
    return found


def _guarded(name: str, look: Callable[[], list[Check]]) -> list[Check]:
    try:
        return look()
    except Exception as error:  # whatever it is, the other checks are still wanted
        return [_red(name, f"{type(error).__name__}: {_first_line(error)}", "report it, with this line")]


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:300]


def _settings(settings: Settings) -> Check:
    text = f"home {settings.home}, Python {platform.python_version()}"
    if not settings.accounts:
        return _warning("settings", f"{text}; no system is switched on", "set <SYSTEM>_URL, such as CLOUDSUITE_URL")
    return _ok("settings", f"{text}; systems: {', '.join(settings.systems)}")


# -- ledger and broker ------------------------------------------------------------------------------------------------


def _ledger(ledger: Ledger) -> list[Check]:
    kind = "PostgreSQL" if ledger.postgresql else "SQLite"
    try:
        with ledger.reading() as connection:
            version = ".".join(str(part) for part in connection.dialect.server_version_info or ())
        pending = migrate.pending(ledger)
    except SQLAlchemyError as error:
        where = ledger.engine.url.render_as_string(hide_password=True)
        cause = getattr(error, "orig", None) or error
        return [_red("ledger", f"{where}: {_first_line(cause)}", "start the database, or mend DATABASE_URL")]
    if pending:
        return [_red("ledger", f"{kind} {version}: its tables are not those of this version", "run orderfleet migrate")]
    return [_ok("ledger", f"{kind} {version}")]


def _broker(settings: Settings) -> list[Check]:
    try:
        url = with_broker(settings).broker_url or ""
    except WrongSettings:
        advice = "start orderfleet up, which brings one, or set BROKER_URL"
        return [_warning("broker", "none is set and none runs here", advice)]
    where = Connection(url).as_uri()  # without the password
    try:
        with broker_errors(), Connection(url, connect_timeout=BROKER_SECONDS) as connection:
            connection.ensure_connection(max_retries=1, timeout=BROKER_SECONDS)
            policy = _eviction_policy(connection)
    except Exception as error:  # kombu's transports raise what their libraries raise, also for a wrong password
        return [_red("broker", f"{where}: {_first_line(error)}", "start the broker, or mend BROKER_URL")]
    return [_ok("broker", where), *_dangers(settings, url, policy)]


def _eviction_policy(connection: Any) -> str | None:
    """What a Redis does when its memory is full; None for other brokers."""
    if connection.transport.driver_type != "redis":
        return None
    policy: str | None = connection.default_channel.client.info("memory").get("maxmemory_policy")
    return policy


def _dangers(settings: Settings, url: str, policy: str | None) -> Iterable[Check]:
    if policy not in (None, "noeviction"):
        advice = "set maxmemory-policy noeviction in Redis"
        yield _warning("broker", f"Redis drops messages when its memory is full ({policy})", advice)
    sqlite = make_url(settings.database_url).get_backend_name() == "sqlite"
    if sqlite and urlsplit(url).hostname not in _LOCAL:
        advice = "use PostgreSQL (DATABASE_URL) as soon as a second machine takes part"
        yield _warning("broker", "is on another machine, but the ledger is a SQLite file on this one", advice)
    if VISIBILITY_SECONDS <= STEP_LIMIT:
        yield _warning(
            "broker", "hands out a message again while its step may still run", "report it: a wrong constant"
        )


# -- the other side ---------------------------------------------------------------------------------------------------


def _erp(fleet: Fleet) -> Check:
    health = fleet.erp.probe()
    return _ok("erp", health.text) if health.ok else _red("erp", health.text, health.advice)


def _probe_account(settings: AccountSettings, account: Account, fleet: Fleet) -> list[Check]:
    name = f"{settings.system}:{settings.name}"
    return [*_guarded(name, lambda: [_probe(name, account, fleet)]), *_slow(name, settings)]


def _probe(name: str, account: Account, fleet: Fleet) -> Check:
    probe = fleet.systems[account.system].probe
    if probe is None:
        return _ok(name, "makes no calls of its own")
    prefix = account.system.upper()
    try:
        return _ok(name, probe(account))
    except Misconfigured as error:
        return _red(name, error.reason, f"check the credentials in {prefix}_...; orders wait until then")
    except StepError as error:
        return _red(name, error.reason, f"check {prefix}_URL and the network; orders wait until then")


def _slow(name: str, settings: AccountSettings) -> Iterable[Check]:
    if settings.timeout * CALLS_A_STEP > STEP_LIMIT:
        text = f"a step may take longer than {STEP_LIMIT:.0f} seconds, after which it is taken over"
        yield _warning(name, text, f"set {settings.system.upper()}_TIMEOUT to {STEP_LIMIT / CALLS_A_STEP:.0f} at most")


# -- orders -----------------------------------------------------------------------------------------------------------


def _orders(ledger: Ledger) -> list[Check]:
    return [_workers(ledger), *_gates(ledger), _stopped(ledger), *_odd(ledger)]


def _workers(ledger: Ledger) -> Check:
    alive = queries.live_workers(ledger)
    if alive:
        return _ok("workers", f"{len(alive)} at work: {', '.join(worker['name'] for worker in alive)}")
    if queries.oldest_waiting(ledger) is None:
        return _warning("workers", "none runs, and no order is due", "start orderfleet up or orderfleet worker")
    return _red("workers", "none runs, and orders are due", "start orderfleet up or orderfleet worker")


def _gates(ledger: Ledger) -> list[Check]:
    return [
        _warning(
            f"lane {gate.lane}",
            f"is left alone since {gate.since:%Y-%m-%d %H:%M}Z: {gate.reason}",
            "mend the cause; it is tried again by itself",
        )
        for gate in queries.closed_gates(ledger).values()
    ]


def _stopped(ledger: Ledger) -> Check:
    stopped = queries.how_many(ledger, tuple(NEEDS_A_PERSON))
    if not stopped:
        return _ok("orders", "none waits for a person")
    return _warning("orders", f"{stopped} wait for a person", "see orderfleet failed")


def _odd(ledger: Ledger) -> list[Check]:
    if not queries.odd_events(ledger, 1):
        return []
    return [_warning("events", "some could not be used, or contradict another", "see orderfleet events")]
