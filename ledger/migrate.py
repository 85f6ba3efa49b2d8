"""Bring the ledger's tables up to date with Alembic; safe to call from several processes at once.

Alembic is imported only to migrate: each command and each process asks whether something is pending, and Alembic's
import with the reading of its scripts was a fifth of their start.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, inspect, text

from ledger.connection import Ledger

NEWEST = "0004"
"""The last migration in `migrations/versions`."""

SCRIPTS = Path(__file__).with_name("migrations")
_LOCK = 0x0F1EE7  # PostgreSQL advisory lock: one migration at a time, whoever starts it


def migrate(ledger: Ledger) -> None:
    """Run all pending migrations."""
    from alembic import command
    from alembic.config import Config

    with _one_at_a_time(ledger) as connection:
        config = Config()
        config.set_main_option("script_location", str(SCRIPTS))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def pending(ledger: Ledger) -> bool:
    """Whether the tables are not those of this code."""
    with ledger.reading() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return True
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none() != NEWEST


@contextmanager
def _one_at_a_time(ledger: Ledger) -> Iterator[Connection]:
    with ledger.transaction() as connection:  # on SQLite, BEGIN IMMEDIATE is the lock
        if ledger.postgresql:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
        yield connection
