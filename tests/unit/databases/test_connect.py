"""Connections that many processes share a server with."""

from collections.abc import Callable

import pytest
from sqlalchemy import Engine

from databases.connect import open_database, statement, transaction
from erp.sql_errors import translated
from orders.errors import TryLater, Unavailable


@pytest.fixture(params=["postgresql", "mysql"])
def url(request) -> str:
    return request.getfixturevalue(f"{request.param}_url")


def freeze_and_go_on(frozen: Engine, meanwhile: Callable[[], None]) -> None:
    """Stop between two statements of a transaction, for as long as `meanwhile` takes."""
    with transaction(frozen) as connection:
        connection.exec_driver_sql("UPDATE box SET content = 1")
        meanwhile()
        connection.exec_driver_sql("UPDATE box SET content = 2")


def test_a_process_that_is_frozen_in_a_transaction_holds_up_others_for_seconds_only(url):
    frozen, awake = open_database(url), open_database(url)
    got_through = []

    def waits_for_the_lock() -> None:
        with statement(awake) as connection:
            connection.exec_driver_sql("UPDATE box SET content = content + 10")
        got_through.append(True)

    try:
        with statement(awake) as connection:
            connection.exec_driver_sql("CREATE TABLE box (content INTEGER)")
            connection.exec_driver_sql("INSERT INTO box VALUES (0)")
        with pytest.raises((TryLater, Unavailable)), translated(frozen):
            freeze_and_go_on(frozen, waits_for_the_lock)
        assert got_through
        for engine in (awake, frozen):  # what was frozen is well again as soon as it wakes up
            with statement(engine) as connection:
                assert connection.exec_driver_sql("SELECT content FROM box").scalar_one() == 10
    finally:
        frozen.dispose()
        awake.dispose()
