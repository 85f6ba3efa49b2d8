"""What goes to psycopg without SQLAlchemy fails as SQLAlchemy would have it fail."""

import pytest
from sqlalchemy import bindparam, literal_column, select, text
from sqlalchemy.exc import DataError, OperationalError

from ledger import records
from ledger.connection import Ledger
from ledger.direct import Direct
from orders.outcomes import Done
from orders.states import State

DIVIDED = Direct(select(literal_column("6") / bindparam("by", 1)), ["quotient"])


pytestmark = pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)


def end_all_connections(ledger: Ledger) -> None:
    """As a restart of the server does; ours here is the one that says so."""
    with ledger.reading() as connection:
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
        connection.execute(text(f"{others} AND pid <> pg_backend_pid()"))


def test_the_row_has_names(ledger):
    with ledger.statement() as connection:
        assert DIVIDED.one_or_none(connection, {"by": 3}).quotient == 2


def test_what_the_database_refuses_is_sqlalchemys_error(ledger):
    with ledger.statement() as connection, pytest.raises(DataError, match="division by zero"):
        DIVIDED.one_or_none(connection, {"by": 0})


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
