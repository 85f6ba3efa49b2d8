"""The statements of every step on PostgreSQL: compiled once, and handed to psycopg as they are.

SQLAlchemy's way to execute them costs as much CPU time again as psycopg's own, 0.1 ms for each step (bench/,
docs/performance.md). Everything else goes through SQLAlchemy.
"""

from collections import namedtuple
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import psycopg
from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import psycopg as dialect
from sqlalchemy.exc import DBAPIError

_DIALECT = dialect.dialect()  # type: ignore[no-untyped-call]


class Direct:
    """A statement that returns no row or one, with columns called `names`."""

    def __init__(self, statement: Any, names: Sequence[str]) -> None:
        compiled = statement.compile(dialect=_DIALECT)
        self._text = str(compiled)
        self._fixed = {
            name: value.value if isinstance(value, Enum) else value for name, value in compiled.params.items()
        }
        self._row = namedtuple("Row", names)  # type: ignore[misc]  # the names are the columns'

    def one_or_none(self, connection: Connection, values: Mapping[str, Any]) -> Any:
        """The row, or None. Raises the errors that SQLAlchemy would, and gives up connections as it would."""
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
