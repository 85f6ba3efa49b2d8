"""What a database's error means for the order at hand, by each database's own codes.

Whatever is not known to be a passing trouble or a mistake in the set-up is the ERP refusing this order: its
constraints, its triggers, its own error codes. The database's words are kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from erp.port import OutcomeUnknown, Rejected
from orders.errors import Misconfigured, StepError, TryLater, Unavailable

MEND = "check user, password and rights in ERP_URL, and that `orderfleet migrate` has made the staging tables"

# PostgreSQL's SQLSTATEs; two letters stand for a whole class.
_POSTGRESQL: dict[str, type[StepError]] = {
    "08": Unavailable,  # connection
    "25006": Unavailable,  # read-only: a standby, until the connection is led to the new primary
    "25P03": TryLater,  # we were frozen in the middle of a transaction (databases.connect), which was rolled back
    "28": Misconfigured,  # password
    "3D": Misconfigured,  # no such database
    "3F": Misconfigured,  # no such schema
    "40": TryLater,  # serialization failure, deadlock
    "42": Misconfigured,  # no such table or column, no right to it
    "53": Unavailable,  # too many connections, disk full
    "55P03": TryLater,  # lock not available
    "57014": TryLater,  # cancelled by statement_timeout
    "57P": Unavailable,  # shutting down, starting up
    "58": Unavailable,  # the operating system
    "XX": TryLater,  # internal
}
# A connection refused by PostgreSQL has no SQLSTATE in libpq, only words.
_POSTGRESQL_WORDS = ("authentication failed", "pg_hba.conf", "no password supplied", "permission denied")

_MYSQL: dict[int, type[StepError]] = {
    **dict.fromkeys((1040, 1053, 1129, 1203, 1226), Unavailable),  # connections: too many, blocked; shutting down
    **dict.fromkeys((1021, 1030, 1114, 1290, 1792, 1836), Unavailable),  # disk full, engine, read-only
    **dict.fromkeys((2002, 2003, 2006, 2013, 2055, 0), Unavailable),  # no connection
    **dict.fromkeys((1044, 1045, 1049, 1130, 1142, 1143, 1227, 1698), Misconfigured),  # rights, no such database
    **dict.fromkeys((1054, 1146, 1356, 1370), Misconfigured),  # no such column or table, broken view, no right
    **dict.fromkeys((1020, 1205, 1213, 1317, 1969, 3024), TryLater),  # changed, lock, deadlock, interrupted, timed out
}

_SQLITE: dict[str, type[StepError]] = {
    **dict.fromkeys(("BUSY", "LOCKED", "INTERRUPT", "SCHEMA"), TryLater),
    **dict.fromkeys(("CANTOPEN", "IOERR", "FULL", "NOMEM", "PROTOCOL"), Unavailable),
    **dict.fromkeys(("READONLY", "PERM", "AUTH", "NOTADB", "CORRUPT", "FORMAT"), Misconfigured),
}
_SQLITE_WORDS = ("no such ", "has no column named")


@contextmanager
def translated(engine: Engine, *, commits_itself: bool = False) -> Iterator[None]:
    """Turn the database's errors into ours, for reads and writes alike.

    An answer is lost only where a connection breaks during a COMMIT, or during a writing statement outside of
    a transaction (`commits_itself`); when it breaks earlier, the database has forgotten the transaction.
    """
    try:
        yield
    except DBAPIError as error:
        raise _step_error(engine, error, commits_itself) from error
    except PoolTimeout as error:
        raise TryLater("every connection to the ERP's database is in use") from error
    except UnicodeEncodeError as error:
        raise Rejected("the order has a character that is none (half a surrogate pair)", code="text") from error


def _step_error(engine: Engine, error: DBAPIError, commits_itself: bool) -> StepError:
    if error.connection_invalidated and (commits_itself or error.statement == "COMMIT"):
        return OutcomeUnknown(f"the connection to the ERP's database broke: {_first_line(error)}")
    if engine.dialect.name == "postgresql":
        return _postgresql(error)
    if engine.dialect.name == "sqlite":
        return _sqlite(error)
    return _mysql(error)


def _postgresql(error: DBAPIError) -> StepError:
    orig: Any = error.orig
    state: str | None = getattr(orig, "sqlstate", None)
    if state is None:
        return _postgresql_without_state(error)
    kind = _POSTGRESQL.get(state) or _POSTGRESQL.get(state[:3]) or _POSTGRESQL.get(state[:2])
    words = ": ".join(part for part in (orig.diag.message_primary, orig.diag.message_detail) if part)
    if kind is None:
        return Rejected(words, code=state, field=orig.diag.column_name or orig.diag.constraint_name)
    return kind(_advised(kind, words))


def _postgresql_without_state(error: DBAPIError) -> StepError:
    words = _first_line(error)
    if type(error.orig).__name__ == "DataError":  # refused by the driver: a NUL in a text
        return Rejected(words, code="text")
    if any(part in str(error.orig) for part in _POSTGRESQL_WORDS) or _is_missing_database(str(error.orig)):
        return Misconfigured(words)
    return Unavailable(words)


def _is_missing_database(words: str) -> bool:
    return "does not exist" in words and ("database " in words or "role " in words)


def _mysql(error: DBAPIError) -> StepError:
    args: tuple[Any, ...] = getattr(error.orig, "args", ())
    code, words = args if len(args) == 2 else (0, "")
    words = str(words) or _first_line(error)
    kind = _MYSQL.get(code)
    return Rejected(words, code=str(code)) if kind is None else kind(_advised(kind, words))


def _sqlite(error: DBAPIError) -> StepError:
    words = _first_line(error)
    name = getattr(error.orig, "sqlite_errorname", "SQLITE_ERROR").removeprefix("SQLITE_")
    kind = _SQLITE.get(name.partition("_")[0])
    if kind is None and name == "ERROR":
        kind = Misconfigured if any(part in words for part in _SQLITE_WORDS) else TryLater
    return Rejected(words, code=name) if kind is None else kind(_advised(kind, words))


def _advised(kind: type[StepError], words: str) -> str:
    return f"{words} ({MEND})" if kind is Misconfigured else words


def _first_line(error: DBAPIError) -> str:
    return next(iter(str(error.orig).strip().splitlines()), type(error.orig).__name__)
