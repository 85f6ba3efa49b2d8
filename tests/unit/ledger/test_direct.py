"""What goes to a driver without SQLAlchemy fails as SQLAlchemy would have it fail."""

import sqlite3

import pytest
from sqlalchemy import bindparam, literal_column, select, text
from sqlalchemy.exc import DataError, OperationalError

from ledger import records
from ledger.connection import Ledger
from ledger.direct import Direct
from orders.outcomes import Done
from orders.states import State

DIVIDED = Direct(select(literal_column("6") / bindparam("by", 1)), ["quotient"])


ON_POSTGRESQL = pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
ON_SQLITE = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)


def end_all_connections(ledger: Ledger) -> None:
    """As a restart of the server does; ours here is the one that says so."""
    with ledger.reading() as connection:
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
        connection.execute(text(f"{others} AND pid <> pg_backend_pid()"))


@ON_POSTGRESQL
def test_the_row_has_names(ledger):
    with ledger.statement() as connection:
        assert DIVIDED.one_or_none(connection, {"by": 3}).quotient == 2


@ON_POSTGRESQL
def test_what_the_database_refuses_is_sqlalchemys_error(ledger):
    with ledger.statement() as connection, pytest.raises(DataError, match="division by zero"):
        DIVIDED.one_or_none(connection, {"by": 0})


@ON_POSTGRESQL
def test_after_a_lost_connection_the_whole_pool_is_new(ledger, order):
    watcher = Ledger(ledger.engine.url.render_as_string(hide_password=False))
    with ledger.statement(), ledger.statement(), ledger.statement():
        pass  # three connections, now in the pool
    claim = records.claim(ledger, order, 0, "acme.fetch", "w1")
    assert claim is not None
    end_all_connections(watcher)
    with pytest.raises(OperationalError) as lost:
        records.done(ledger, claim, Done(), State.READY)
    assert lost.value.connection_invalidated
    again = records.done(ledger, claim, Done(), State.READY)
    assert again is not None
    assert again.state == State.READY
    watcher.close()


@ON_SQLITE
def test_on_sqlite_a_record_is_whole_or_not_there(ledger, order):
    claim = records.claim(ledger, order, 0, "acme.fetch", "w1")
    assert claim is not None
    assert claim.claimed_at.tzinfo is not None
    with ledger.transaction() as connection:
        connection.execute(text("ALTER TABLE attempts RENAME TO hidden"))
    with pytest.raises(OperationalError, match="attempts"):
        records.done(ledger, claim, Done(), State.READY)
    with ledger.transaction() as connection:
        assert connection.execute(text("SELECT position, state FROM orders")).one() == (0, "running")
        connection.execute(text("ALTER TABLE hidden RENAME TO attempts"))
    assert records.done(ledger, claim, Done(), State.READY) is not None
    with ledger.reading() as connection:
        assert connection.execute(text("SELECT count(*) FROM attempts")).scalar_one() == 1
        started = connection.execute(text("SELECT started_at FROM attempts")).scalar_one()
    assert started == claim.claimed_at.strftime("%Y-%m-%d %H:%M:%S.%f")


@ON_SQLITE
def test_on_sqlite_a_lock_that_lasts_is_sqlalchemys_error(ledger, order):
    claim = records.claim(ledger, order, 0, "acme.fetch", "w1")
    assert claim is not None
    with ledger.reading() as connection:
        connection.connection.driver_connection.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(ledger.engine.url.database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(OperationalError, match="locked"):
            records.done(ledger, claim, Done(), State.READY)
    finally:
        other.close()
    assert records.done(ledger, claim, Done(), State.READY) is not None
