"""The ledger's handle: one engine, handed to every read in `queries` and to every write."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine

from databases.connect import open_database, statement, transaction


class Ledger:
    """The ledger database at `url`. Nothing is connected before the first use."""

    def __init__(self, url: str, *, pool_size: int = 20) -> None:
        self.engine: Engine = open_database(url, pool_size=pool_size)
        self.postgresql = self.engine.dialect.name == "postgresql"

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for reads; each statement sees what is committed when it runs."""
        with self.engine.connect() as connection:
            yield connection

    @contextmanager
    def statement(self) -> Iterator[Connection]:
        """A connection for single writing statements, each its own transaction."""
        with statement(self.engine) as connection:
            yield connection

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A write transaction over several statements."""
        with transaction(self.engine) as connection:
            yield connection

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()
