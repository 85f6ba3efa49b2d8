"""The statements of every step: compiled once, and handed to the database's driver as they are.

SQLAlchemy's way to execute them costs as much CPU time again as psycopg's own, 0.1 ms for each step, and more beside
SQLite (bench/, docs/performance.md). Everything else goes through SQLAlchemy.
"""

import sqlite3
from collections import namedtuple
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import psycopg
from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import psycopg as postgresql
from sqlalchemy.dialects.sqlite import pysqlite
from sqlalchemy.exc import DBAPIError

_POSTGRESQL = postgresql.dialect()  # type: ignore[no-untyped-call]  # its own has no types
_SQLITE = pysqlite.dialect(paramstyle="named")


class Direct:
    """A statement for PostgreSQL that returns no row or one, with columns called `names`."""

    dialect: Any = _POSTGRESQL

    def __init__(self, statement: Any, names: Sequence[str] = ()) -> None:
        compiled = statement.compile(dialect=self.dialect)
        self._text = str(compiled)
        self._fixed = {
            name: value.value if isinstance(value, Enum) else value for name, value in compiled.params.items()
        }
        self._row = namedtuple("Row", names)  # type: ignore[misc]  # the names are the columns'

    def one_or_none(self, connection: Connection, values: Mapping[str, Any]) -> Any:
        """The row, or None. Raises the errors that SQLAlchemy would, and gives up connections as it would."""
        # What SQLAlchemy calls a DBAPI connection is psycopg's own here.
        driver: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
        try:
            row = driver.execute(self._text, {**self._fixed, **values}).fetchone()
        except psycopg.Error as error:
            if driver.closed:
                connection.exec_driver_sql("SELECT 1")  # fails, so that SQLAlchemy sees it and empties its pool
            raise DBAPIError.instance(
                self._text, None, error, psycopg.Error, hide_parameters=True, dialect=connection.dialect
            ) from error
        return None if row is None else self._row(*row)


class DirectSqlite(Direct):
    """The same for SQLite, whose driver knows no times: `databases.types.UTC` keeps them as text."""

    dialect = _SQLITE

    def __init__(self, statement: Any, names: Sequence[str] = (), times: Sequence[str] = ()) -> None:
        """`times`: which of `names` are times."""
        super().__init__(statement, names)
        self._times = frozenset(names.index(name) for name in times)

    def one_or_none(self, connection: Connection, values: Mapping[str, Any]) -> Any:
        """See `Direct`; its own transaction."""
        return _translated(connection, lambda driver: self.execute(driver, values))

    def execute(self, driver: sqlite3.Connection, values: Mapping[str, Any]) -> Any:
        """The row, or None. Raises `sqlite3.Error`."""
        given = {name: _as_text(value) if isinstance(value, datetime) else value for name, value in values.items()}
        row = driver.execute(self._text, {**self._fixed, **given}).fetchone()
        if row is None:
            return None
        read: list[Any] = [_as_time(value) if at in self._times else value for at, value in enumerate(row)]
        return self._row(*read)


def both_or_neither(connection: Connection, first: DirectSqlite, then: DirectSqlite, values: Mapping[str, Any]) -> Any:
    """On SQLite: the row of `first`, and if there is one, `then` in the same commit. Raises what SQLAlchemy would."""

    def run(driver: sqlite3.Connection) -> Any:
        driver.execute("BEGIN IMMEDIATE")
        try:
            row = first.execute(driver, values)
            if row is not None:
                then.execute(driver, values)
            driver.execute("COMMIT")
        except BaseException:  # whatever ends this, the write lock must not stay with the pooled connection
            driver.rollback()
            raise
        return row

    return _translated(connection, run)


def _translated(connection: Connection, run: Any) -> Any:
    try:
        return run(connection.connection.driver_connection)
    except sqlite3.Error as error:
        raise DBAPIError.instance(
            None, None, error, sqlite3.Error, hide_parameters=True, dialect=connection.dialect
        ) from error


def _as_text(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


def _as_time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text).replace(tzinfo=UTC)
