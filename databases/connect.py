"""Engines tuned the same way everywhere, and the one way to open a transaction.

Engines run in autocommit: a single statement is its own transaction and costs one round trip. Several statements
belong together only inside `transaction`.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError

_DRIVERS = {
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
    "sqlite": "sqlite",
}
IDLE_SECONDS = 5
"""How long a transaction may wait for its next statement. A process that is frozen in the middle of one (its machine
paused, swapped out) keeps row locks, and with them everybody who wants those rows: the server ends its session."""
_sqlite_locks: dict[str, threading.RLock] = {}
_sqlite_locks_guard = threading.Lock()


def database_url(text: str) -> URL:
    """`text` as a URL with the driver we ship. Raises `ValueError` for a database we do not speak."""
    url = make_url(text)
    backend = url.get_backend_name()
    if backend not in _DRIVERS:
        raise ValueError(f"{backend}:// is not supported: use postgresql://, mysql:// or sqlite:///")
    return url if "+" in url.drivername else url.set(drivername=_DRIVERS[backend])


def open_database(text: str, *, pool_size: int = 20) -> Engine:
    """An engine in autocommit for `text`; nothing is connected yet."""
    url = database_url(text)
    backend = url.get_backend_name()
    engine = create_engine(
        url,
        isolation_level="AUTOCOMMIT",
        skip_autocommit_rollback=True,
        pool_size=pool_size,
        max_overflow=pool_size,
        connect_args=_connect_args(backend),
        hide_parameters=True,  # they are of people, and errors go to the logs
    )
    if backend == "sqlite":
        _tune_sqlite(engine, url)
    else:
        _limit_idle_transactions(engine)
    return engine


def _connect_args(backend: str) -> dict[str, Any]:
    if backend == "postgresql":
        # A dead server must show as an error within seconds, not hang a worker for ever.
        return {
            "connect_timeout": 5,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
        }
    if backend in ("mysql", "mariadb"):
        return {"connect_timeout": 5, "read_timeout": 30, "write_timeout": 30}
    return {"timeout": 30, "check_same_thread": False}


def _tune_sqlite(engine: Engine, url: URL) -> None:
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout = 30000")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")  # in WAL, NORMAL may lose commits when the power fails
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()


def _limit_idle_transactions(engine: Engine) -> None:
    """See `IDLE_SECONDS`. MySQL itself has no such limit, MariaDB does."""

    @event.listens_for(engine, "connect")
    def _limit(connection: Any, record: Any) -> None:
        if engine.dialect.name == "postgresql":
            wanted = f"SET idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'"
        elif "MariaDB" in connection.get_server_info():
            wanted = f"SET SESSION idle_transaction_timeout = {IDLE_SECONDS}"
        else:
            return
        with connection.cursor() as cursor:
            cursor.execute(wanted)
        connection.commit()


def write_lock(engine: Engine) -> Any:
    """SQLite has one writer: threads of one process queue here, fairly, instead of in its busy handler's sleeps."""
    if engine.dialect.name != "sqlite":
        return nullcontext()
    with _sqlite_locks_guard:
        return _sqlite_locks.setdefault(str(engine.url.database), threading.RLock())


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """A write transaction: committed at the end, rolled back on any error."""
    with write_lock(engine), engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if engine.dialect.name == "sqlite" else "BEGIN")
        try:
            yield connection
        except BaseException:  # whatever ends this, the pooled connection must not keep its transaction
            _roll_back(connection)
            raise
        connection.exec_driver_sql("COMMIT")


def _roll_back(connection: Connection) -> None:
    if connection.invalidated:
        return
    try:
        connection.exec_driver_sql("ROLLBACK")
    except DBAPIError:
        connection.invalidate()  # the server forgets an unfinished transaction with its connection


@contextmanager
def statement(engine: Engine) -> Iterator[Connection]:
    """A connection for single writing statements, each its own transaction."""
    with write_lock(engine), engine.connect() as connection:
        yield connection
