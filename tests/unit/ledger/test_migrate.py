"""The migrations make the tables that the models describe, from any number of processes at once."""

from concurrent.futures import ThreadPoolExecutor

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from ledger.connection import Ledger
from ledger.migrate import NEWEST, SCRIPTS, migrate, pending
from ledger.models import metadata


def test_the_migrated_tables_are_the_models(empty_database_url):
    ledger = Ledger(empty_database_url)
    assert pending(ledger)
    migrate(ledger)
    assert not pending(ledger)
    with ledger.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    ledger.close()


def test_the_newest_migration_is_the_one_that_is_asked_for():
    assert ScriptDirectory(str(SCRIPTS)).get_current_head() == NEWEST


def test_the_tables_of_another_version_are_not_ours(ledger):
    with ledger.transaction() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert pending(ledger)


def test_four_at_once(empty_database_url):
    def run(_: int) -> bool:
        ledger = Ledger(empty_database_url)
        migrate(ledger)
        ledger.close()
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(4)))
