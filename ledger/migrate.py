"""Bring the ledger's tables up to date with Alembic; safe to call from several processes at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from ledger.connection import Ledger

_LOCK = 0x0F1EE7  # PostgreSQL advisory lock: one migration at a time, whoever starts it


def migrate(ledger: Ledger) -> None:
    """Run all pending migrations."""
    with _one_at_a_time(ledger) as connection:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def pending(ledger: Ledger) -> bool:
    """Whether the tables are older than this code."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    with ledger.reading() as connection:
        return MigrationContext.configure(connection).get_current_revision() != head


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    return config


@contextmanager
def _one_at_a_time(ledger: Ledger) -> Iterator[Connection]:
    with ledger.transaction() as connection:  # on SQLite, BEGIN IMMEDIATE is the lock
        if ledger.postgresql:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
        yield connection
