"""The database's clock in SQL: leases and "now" never come from a worker's own clock."""

from typing import Any

from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import ColumnElement
from sqlalchemy.sql.expression import FunctionElement

from databases.types import UTC


class now(FunctionElement[Any]):  # noqa: N801 - reads as the SQL function it is
    """The database's current time."""

    type = UTC()
    inherit_cache = True


class later(FunctionElement[Any]):  # noqa: N801 - reads as the SQL function it is
    """The database's current time plus so many seconds: `later(literal(2.5))`."""

    type = UTC()
    inherit_cache = True

    def __init__(self, seconds: ColumnElement[float]) -> None:
        super().__init__(seconds)


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: Any, **kw: Any) -> str:
    return "now()"


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: Any, **kw: Any) -> str:
    # %f has milliseconds; SQLAlchemy reads the fraction as microseconds, so it must have six digits.
    return "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')"


@compiles(now, "mysql")
@compiles(now, "mariadb")
def _now_mysql(element: now, compiler: Any, **kw: Any) -> str:
    return "utc_timestamp(6)"


@compiles(later, "postgresql")
def _later_postgresql(element: later, compiler: Any, **kw: Any) -> str:
    return f"(now() + make_interval(secs => {compiler.process(element.clauses, **kw)}))"


@compiles(later, "sqlite")
def _later_sqlite(element: later, compiler: Any, **kw: Any) -> str:
    seconds = compiler.process(element.clauses, **kw)
    return f"(strftime('%Y-%m-%d %H:%M:%f', 'now', ({seconds}) || ' seconds') || '000')"
