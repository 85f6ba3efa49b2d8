"""The tables of the comparators, in SQLite or PostgreSQL: what each step recorded, and the ERP's staging table.

The fleet has its own (`ledger/`, `erp/sql_tables.py`); the comparators' are as small as they can be.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Engine,
    Insert,
    Integer,
    MetaData,
    Numeric,
    String,
    Table,
    Text,
    create_engine,
    event,
    func,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite

metadata = MetaData()

step_done = Table(
    "bench_step_done",
    metadata,
    Column("order_id", BigInteger, primary_key=True, autoincrement=False),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("outcome", String(32), nullable=False),
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.current_timestamp()),
)

erp_order = Table(
    "bench_erp_order",
    metadata,
    Column("external_reference", String(320), primary_key=True),
    Column("reference", String(190)),
    Column("stage", String(16), nullable=False),
    Column("currency", String(16)),
    Column("total", Numeric(20, 6, asdecimal=False)),
    Column("document", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.current_timestamp()),
)


def open_store(url: str, *, threads: int = 1) -> Engine:
    """An engine for `url` with a connection for every thread. SQLite is as safe and as patient as the fleet's."""
    engine = create_engine(url, pool_size=max(5, threads))
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _tune_sqlite)
    return engine


def _tune_sqlite(connection: Any, record: Any) -> None:
    connection.execute("PRAGMA busy_timeout = 30000")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")


class Store:
    """The two writes of a step, each its own transaction: the ERP's database is not the one that keeps the record."""

    def __init__(self, url: str, *, threads: int = 1) -> None:
        self._engine = open_store(url, threads=threads)
        self._done = self._insert(step_done)
        self._order = self._insert(erp_order)

    def _insert(self, table: Table) -> Insert:
        if self._engine.dialect.name == "sqlite":
            return sqlite.insert(table).on_conflict_do_nothing()
        return postgresql.insert(table).on_conflict_do_nothing()

    def put_order(self, row: dict[str, Any]) -> None:
        """Hand the order to the ERP, once."""
        with self._engine.begin() as connection:
            connection.execute(self._order, row)

    def record(self, order: int, position: int) -> None:
        """The step at this position of the order is done."""
        with self._engine.begin() as connection:
            connection.execute(self._done, {"order_id": order, "position": position, "outcome": "done"})

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()


class Tally:
    """What the harness reads of a run: how many orders have come to their end, and what was written."""

    def __init__(self, url: str, last_position: int) -> None:
        self._engine = open_store(url)
        metadata.create_all(self._engine)
        self._finished = select(func.count()).select_from(step_done).where(step_done.c.position == last_position)

    def finished(self) -> int:
        """Orders whose last step is recorded."""
        return self._count(self._finished)

    def recorded(self) -> int:
        """Steps recorded."""
        return self._count(select(func.count()).select_from(step_done))

    def erp_orders(self) -> int:
        """Rows in the ERP's staging table."""
        return self._count(select(func.count()).select_from(erp_order))

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def _count(self, query: Any) -> int:
        with self._engine.connect() as connection:
            return int(connection.execute(query).scalar_one())
