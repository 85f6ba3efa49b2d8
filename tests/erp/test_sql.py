"""What is special to staging tables: the order in which events become visible, bad rows, locks, rights, lost answers,
and the page for the ERP's developer.
"""

import json
import re
import socket
import sqlite3
import threading
import uuid
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pymysql
import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from databases.connect import open_database, transaction, write_lock
from erp.port import KINDS, OutcomeUnknown, Rejected, Stage, open_erp
from erp.sql_errors import translated
from erp.sql_events import MOST_WATCHED, WATCH_SECONDS, Cursor, Gap
from erp.sql_tables import metadata, order_number
from orders.errors import Misconfigured, TryLater, Unavailable
from tests.erp.conftest import SqlSide, make_order, opened_side

REF = "cloudsuite:default:1001"
DATABASES = ("sqlite", "postgresql", "mysql")
SERVERS = ("postgresql", "mysql")


@pytest.fixture(params=DATABASES)
def side(request, tmp_path):
    yield from opened_side(request, tmp_path, request.param)


@pytest.fixture(params=SERVERS)
def server(request, tmp_path):
    """Only databases that many connections write at once."""
    yield from opened_side(request, tmp_path, request.param)


@pytest.fixture(params=["postgresql"])
def postgresql(request, tmp_path):
    yield from opened_side(request, tmp_path, request.param)


@pytest.fixture(params=["sqlite"])
def sqlite(request, tmp_path):
    yield from opened_side(request, tmp_path, request.param)


def write(connection, reference: str) -> None:
    connection.exec_driver_sql(
        f"INSERT INTO erp_event (external_reference, kind, data) VALUES ('{reference}', 'completed', '{{}}')"
    )


def write_as(side: SqlSide, number: int, reference: str = REF) -> None:
    """An event with an id of the test's choice, to have it appear when the test wants."""
    side.run(
        "INSERT INTO erp_event (id, external_reference, kind, data) VALUES (:id, :reference, 'completed', '{}')",
        id=number,
        reference=reference,
    )


def ids(events) -> list[int]:
    return [int(event.id) for event in events]


def noticed(cursor: str, seconds_ago: float) -> str:
    """The same cursor, had it noticed its gaps so long ago."""
    data = json.loads(cursor)
    data["gaps"] = [[first, last, at - seconds_ago] for first, last, at in data["gaps"]]
    return json.dumps(data)


# --- The feed: nothing is skipped -----------------------------------------------------------------------------------


def test_a_slow_transaction_is_not_skipped(server):
    erp = server.open()
    with server.engine.connect() as slow, server.engine.connect() as fast:
        slow.exec_driver_sql("BEGIN")
        write(slow, "cloudsuite:default:slow")
        write(fast, "cloudsuite:default:fast")
        told, cursor = erp.events(None, 10)
        assert [event.reference for event in told] == ["cloudsuite:default:fast"]
        assert erp.events(cursor, 10)[0] == []
        slow.exec_driver_sql("COMMIT")
    told, cursor = erp.events(cursor, 10)
    assert [event.reference for event in told] == ["cloudsuite:default:slow"]
    assert json.loads(cursor)["gaps"] == []
    assert erp.events(cursor, 10) == ([], cursor)


def test_an_id_that_was_rolled_back_stops_nothing(server):
    erp = server.open()
    with server.engine.connect() as connection:
        connection.exec_driver_sql("BEGIN")
        write(connection, "cloudsuite:default:never")
        connection.exec_driver_sql("ROLLBACK")
        write(connection, REF)
    told, cursor = erp.events(None, 10)
    assert [event.reference for event in told] == [REF]
    assert len(json.loads(cursor)["gaps"]) == 1
    assert erp.events(cursor, 10) == ([], cursor)
    _, cursor = erp.events(noticed(cursor, WATCH_SECONDS + 5), 10)
    assert json.loads(cursor)["gaps"] == []


def test_what_appears_in_a_gap_comes_out_once(side):
    erp = side.open()
    for number in (3, 9):
        write_as(side, number)
    told, cursor = erp.events(None, 10)
    assert ids(told) == [3, 9]
    for number in (5, 1, 12):
        write_as(side, number)
    told, cursor = erp.events(cursor, 10)
    assert ids(told) == [1, 5, 12]
    gaps = [(first, last) for first, last, _ in json.loads(cursor)["gaps"]]
    assert gaps == [(2, 2), (4, 4), (6, 8), (10, 11)]


def test_a_gap_is_looked_into_once_more_when_its_time_is_up(side):
    # As after a night without us: an hour is long over, but nobody has looked.
    erp = side.open()
    write_as(side, 3)
    _, cursor = erp.events(None, 10)
    write_as(side, 2)
    told, cursor = erp.events(noticed(cursor, WATCH_SECONDS + 5), 10)
    assert ids(told) == [2]
    assert json.loads(cursor)["gaps"] == []


def test_a_gap_is_kept_while_a_full_page_hides_a_part_of_it(side):
    erp = side.open()
    write_as(side, 9)
    _, cursor = erp.events(None, 10)
    for number in (2, 4, 6, 20):
        write_as(side, number)
    told, cursor = erp.events(noticed(cursor, WATCH_SECONDS + 5), 2)
    assert ids(told) == [2, 4]
    told, cursor = erp.events(cursor, 2)
    assert ids(told) == [6, 20]


def test_a_sequence_set_forward_costs_a_bounded_watch(side):
    erp = side.open()
    write_as(side, 1)
    write_as(side, 2_000_000_000)
    told, cursor = erp.events(None, 10)
    assert ids(told) == [1, 2_000_000_000]
    [[first, last, _]] = json.loads(cursor)["gaps"]
    assert (last, last - first + 1) == (1_999_999_999, MOST_WATCHED)
    write_as(side, last)
    assert ids(erp.events(cursor, 10)[0]) == [last]


def test_every_failure_of_the_erp_is_watched(side):
    erp = side.open()
    for number in range(2, 40, 2):
        write_as(side, number)
    told, cursor = erp.events(None, 100)
    assert len(told) == 19
    assert Cursor.parse(cursor).watched == list(range(1, 39, 2))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=st.lists(st.one_of(st.integers(1, 24), st.sampled_from([-1, -2, -5])), max_size=60))
def test_every_event_comes_out_whatever_the_order(sqlite, plan):
    """Numbers become visible in this order; a negative number reads a page of that size."""
    sqlite.run("DELETE FROM erp_event")
    erp, cursor, told, written = sqlite.open(), None, [], set()
    for number in [*plan, -100]:
        if number < 0:
            page, cursor = erp.events(cursor, -number)
            assert len(page) <= -number
            told += ids(page)
        elif number not in written:
            write_as(sqlite, number)
            written.add(number)
    assert sorted(told) == sorted(written)
    erp.close()


def test_cursor_arithmetic():
    cursor = Cursor().after([2, 3, 7], 100.0)
    assert cursor == Cursor(7, (Gap(1, 1, 100.0), Gap(4, 6, 100.0)))
    assert cursor.without([5]).gaps == (Gap(1, 1, 100.0), Gap(4, 4, 100.0), Gap(6, 6, 100.0))
    assert cursor.without([4, 5, 6]).gaps == (Gap(1, 1, 100.0),)
    assert cursor.at(100.0 + WATCH_SECONDS - 1) == cursor
    assert cursor.at(100.0 + WATCH_SECONDS).gaps == ()
    assert Cursor.parse(str(cursor)) == cursor
    assert json.loads(str(cursor)) == {"high": 7, "gaps": [[1, 1, 100.0], [4, 6, 100.0]]}


def test_too_many_gaps_drop_the_oldest():
    cursor = Cursor().after(range(2, 2 * MOST_WATCHED + 4, 2), 1.0)
    assert len(cursor.watched) == MOST_WATCHED
    assert cursor.watched[-1] == 2 * MOST_WATCHED + 1
    assert cursor.watched[0] == 3


@pytest.mark.parametrize("text", ["", "7", "[]", "{}", '{"high": 1}', '{"high": 1, "gaps": [[1]]}'])
def test_a_cursor_that_is_none(text):
    with pytest.raises(ValueError, match="not a cursor"):
        Cursor.parse(text)


# --- The feed: what an ERP writes wrongly ---------------------------------------------------------------------------

BAD = [
    (REF, "completed", "not json", "not JSON"),
    (REF, "completed", "", "not JSON"),
    (REF, "completed", "[1]", "not a JSON object"),
    (REF, "completed", "null", "not a JSON object"),
    (REF, "completed", "[" * 100_000, "not JSON"),
    (REF, "shipped", '{"lines": {"a": NaN}}', "NaN"),
    (REF, "shipped", '{"lines": {"a": "two"}}', "quantity of line a"),
    (REF, "shipped", '{"lines": [1]}', "lines is not an object"),
    (REF, "shipped", '{"tracking": ["3S1"]}', "tracking is not a text"),
    (REF, "numbered", "{}", "order_number is missing"),
    (REF, "numbered", '{"order_number": " "}', "order_number is missing"),
    (REF, "numbered", '{"order_number": "SO-1", "lines": {"a": 1.5}}', "number of line a"),
    (REF, "stored", '{"items": "S-1"}', "items is not a list"),
    (REF, "stored", '{"locations": {"S-1": 4}}', "locations"),
    (REF, "exploded", '{"how": "loudly"}', "unknown kind 'exploded'"),
    (REF, "Numbered", '{"order_number": "SO-1"}', "unknown kind 'Numbered'"),
    ("SO-77", "completed", "{}", "external_reference is not"),
    ("", "", "", "external_reference is not"),
]


def test_bad_rows_come_out_and_stop_nothing(side):
    erp = side.open()
    for reference, kind, data, _ in BAD:
        side.run(
            "INSERT INTO erp_event (external_reference, kind, data) VALUES (:reference, :kind, :data)",
            reference=reference,
            kind=kind,
            data=data,
        )
    side.tell(REF, "completed")
    events, cursor = erp.events(None, 100)
    assert [(event.reference, event.kind) for event in events[:-1]] == [(row[0], row[1]) for row in BAD]
    for event, (_, _, data, problem) in zip(events, BAD, strict=False):
        assert problem in event.error
        assert event.data.get("_data", data) == data
    assert events[14].data["how"] == "loudly"
    assert (events[-1].kind, events[-1].error) == ("completed", None)
    assert erp.events(cursor, 100)[0] == []


def test_find_is_not_misled_by_bad_rows(side):
    erp = side.open()
    erp.put(REF, make_order(), stage=Stage.CONFIRMED)
    side.tell(REF, "numbered", {"order_number": "SO-1", "lines": {"a": 1}})
    for data in ("{}", "nonsense", '{"order_number": ["SO-2"]}'):
        side.run(
            "INSERT INTO erp_event (external_reference, kind, data) VALUES (:ref, 'numbered', :data)",
            ref=REF,
            data=data,
        )
    assert erp.find(REF).number == "SO-1"
    assert erp.find(REF).lines == {"a": 1}


@pytest.mark.parametrize(
    ("created_at", "at"),
    [
        ("'2026-01-31 12:00:00'", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("'2026-01-31T12:00:00+02:00'", datetime(2026, 1, 31, 10, tzinfo=UTC)),
        ("'2026-01-31'", datetime(2026, 1, 31, tzinfo=UTC)),
        ("'yesterday'", None),
        ("''", None),
        ("1769860800", None),
        ("x'fffe'", None),
    ],
)
def test_sqlite_keeps_any_time_and_we_read_what_we_can(sqlite, created_at, at):
    sqlite.run(
        "INSERT INTO erp_event (external_reference, kind, data, created_at)"
        f" VALUES ('{REF}', 'completed', '{{}}', {created_at})"
    )
    [event], _ = sqlite.open().events(None, 10)
    if at is None:
        assert "created_at" in event.error
        assert event.at.year >= 2026
    else:
        assert (event.at, event.error) == (at, None)


def test_sqlite_keeps_latin_1_and_we_show_it(sqlite):
    values = "CAST(x'634ffc' AS TEXT), CAST(x'73fc' AS TEXT), CAST(x'7b22726561736f6e223a22fc227d' AS TEXT)"
    sqlite.run(f"INSERT INTO erp_event (external_reference, kind, data) VALUES ({values})")
    sqlite.tell(REF, "completed")
    events, _ = sqlite.open().events(None, 10)
    assert [event.kind for event in events] == ["s\ufffd", "completed"]
    assert "not JSON" in events[0].error


# --- put: one transaction, the ERP's own rules ----------------------------------------------------------------------


def test_the_columns_are_filled(side):
    order = make_order()
    side.open().put("doshii:north:88:b", order, stage=Stage.DRAFT)
    [row] = side.run("SELECT * FROM erp_order")
    row = dict(row)
    document = json.loads(row.pop("document"))
    assert document == order.to_json()
    assert json.loads(row.pop("ship_to")) == document["ship_to"]
    assert str(row.pop("total")) in ("26.00", "26.000000")
    assert str(row.pop("requested_at")).startswith("2026-03-01 09:30:00")
    assert row.pop("created_at") == row.pop("updated_at")
    assert row == {
        "external_reference": "doshii:north:88:b",
        "system": "doshii",
        "account": "north",
        "external_id": "88:b",
        "reference": "CS6",
        "stage": "draft",
        "customer_name": "Ann Example",
        "customer_email": "ann@example.com",
        "customer_phone": "+31 20 000 0000",
        "currency": "EUR",
        "notes": "Ring twice",
        "order_number": None,
        "asked_after": None,
        "taken_at": None,
    }


def test_a_line_that_is_refused_takes_the_order_with_it(side):
    erp = side.open()
    order = make_order()
    twice = order.with_lines((order.lines[0], *order.lines))
    with pytest.raises(Rejected):
        erp.put(REF, twice, stage=Stage.CONFIRMED)
    assert side.orders() == []
    assert side.run("SELECT * FROM erp_order_line") == []


def test_a_unique_constraint_of_the_erps_is_a_refusal_and_not_a_repeat(side):
    side.script("CREATE UNIQUE INDEX my_rule ON erp_order (reference)")
    erp = side.open()
    erp.put(REF, make_order(), stage=Stage.CONFIRMED)
    with pytest.raises(Rejected, match=r"my_rule|reference"):
        erp.put("cloudsuite:default:1002", make_order(), stage=Stage.CONFIRMED)
    assert len(side.orders()) == 1
    assert erp.put(REF, make_order(), stage=Stage.CONFIRMED).stage is Stage.PENDING


def test_a_check_that_refuses_a_change_is_a_refusal(side):
    erp = side.open()
    erp.put(REF, make_order(), stage=Stage.CONFIRMED)
    side.script(
        {
            "sqlite": "CREATE TRIGGER late BEFORE UPDATE ON erp_order BEGIN SELECT RAISE(ABORT, 'Too late'); END",
            "postgresql": "CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'Too late' USING ERRCODE = 'ERP01'; END $$;"
            " CREATE TRIGGER late BEFORE UPDATE ON erp_order FOR EACH ROW EXECUTE FUNCTION late()",
            "mysql": "CREATE TRIGGER late BEFORE UPDATE ON erp_order FOR EACH ROW"
            " SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'Too late', MYSQL_ERRNO = 5001",
        }[side.engine.dialect.name]
    )
    with pytest.raises(Rejected) as caught:
        erp.cancel(REF)
    assert caught.value.text == "Too late"
    assert erp.find(REF).stage is Stage.PENDING


def test_a_trigger_on_lines_sees_their_order(postgresql):
    # One statement writes both: a foreign key or trigger of the ERP's must not notice.
    postgresql.script(
        "ALTER TABLE erp_order_line ADD FOREIGN KEY (external_reference) REFERENCES erp_order;"
        "CREATE FUNCTION sees() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF NOT EXISTS (SELECT 1 FROM erp_order o WHERE o.external_reference = NEW.external_reference) THEN"
        " RAISE EXCEPTION 'a line without an order'; END IF; RETURN NEW; END $$;"
        "CREATE TRIGGER sees BEFORE INSERT ON erp_order_line FOR EACH ROW EXECUTE FUNCTION sees()"
    )
    postgresql.open().put(REF, make_order(), stage=Stage.CONFIRMED)
    assert set(postgresql.lines(REF)) == {"a", "b"}


def test_a_row_the_database_drops_in_silence_is_a_refusal(postgresql):
    postgresql.script(
        "CREATE FUNCTION drops() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;"
        "CREATE TRIGGER drops BEFORE INSERT ON erp_order FOR EACH ROW EXECUTE FUNCTION drops()"
    )
    with pytest.raises(Rejected, match="without giving a reason"):
        postgresql.open().put(REF, make_order(), stage=Stage.CONFIRMED)


@pytest.mark.parametrize("field", ["reference", "currency"])
def test_a_text_too_long_for_its_column_is_refused_and_not_cut(server, field):
    with pytest.raises(Rejected):
        server.open().put(REF, make_order(**{field: "x" * 500}), stage=Stage.CONFIRMED)
    assert server.orders() == []


def test_a_changed_row_is_new_to_the_erp_again(side):
    erp = side.open()

    def takes() -> list[str]:
        rows = side.run("SELECT stage FROM erp_order WHERE taken_at IS NULL")
        side.run("UPDATE erp_order SET taken_at = CURRENT_TIMESTAMP")
        return [row["stage"] for row in rows]

    erp.put(REF, make_order(), stage=Stage.DRAFT)
    assert takes() == ["draft"]
    erp.put(REF, make_order(), stage=Stage.DRAFT)
    assert takes() == []
    erp.put(REF, make_order(), stage=Stage.CONFIRMED)
    assert takes() == ["confirmed"]
    erp.put(REF, make_order(), stage=Stage.CONFIRMED)
    assert takes() == []
    side.tell(REF, "refused", {"reason": "no"})
    erp.put(REF, make_order(), stage=Stage.CONFIRMED)
    assert takes() == ["confirmed"]
    erp.put(REF, make_order(), stage=Stage.CONFIRMED)
    assert takes() == []
    erp.cancel(REF)
    assert takes() == ["cancelled"]
    erp.cancel(REF)
    assert takes() == []


# --- numbering=ours -------------------------------------------------------------------------------------------------


def test_we_number_when_asked_to(side):
    erp = side.open("?numbering=ours")
    assert erp.capabilities.number_at == "create"
    order = make_order()
    order = order.with_lines(tuple(reversed(order.lines)))
    put = erp.put(REF, order, stage=Stage.CONFIRMED)

    assert (put.stage, put.number, put.lines) == (Stage.CONFIRMED, "CLOUDSUITE-1001", {"a": 10, "b": 20})
    assert erp.find(REF) == put == erp.put(REF, order, stage=Stage.CONFIRMED)
    assert side.run("SELECT order_number FROM erp_order") == [{"order_number": "CLOUDSUITE-1001"}]
    lines = side.run("SELECT line_key, line_number FROM erp_order_line ORDER BY line_number")
    assert [tuple(line.values()) for line in lines] == [("a", 10), ("b", 20)]
    assert erp.events(None, 10)[0] == []


def test_orders_put_before_we_numbered_get_a_number(side):
    side.open().put(REF, make_order(), stage=Stage.CONFIRMED)
    erp = side.open("?numbering=ours")
    put = erp.put(REF, make_order(), stage=Stage.CONFIRMED)
    assert (put.stage, put.number, put.lines) == (Stage.CONFIRMED, "CLOUDSUITE-1001", {"a": 10, "b": 20})
    assert erp.find(REF) == put


def test_a_number_of_the_erps_counts_before_ours(side):
    side.open().put(REF, make_order(), stage=Stage.CONFIRMED)
    side.tell(REF, "numbered", {"order_number": "SO-1", "lines": {"a": 1, "b": 2}})
    put = side.open("?numbering=ours").put(REF, make_order(), stage=Stage.CONFIRMED)
    assert (put.number, put.lines) == ("SO-1", {"a": 1, "b": 2})


_parts = st.text("ab-~.:/", min_size=1, max_size=4)


@given(one=st.tuples(_parts, _parts), two=st.tuples(_parts, _parts))
def test_no_two_references_have_one_number(one, two):
    references = [f"doshii:{account.replace(':', '_')}:{external_id}" for account, external_id in (one, two)]
    assert (order_number(references[0]) == order_number(references[1])) == (references[0] == references[1])


def test_numbers_are_readable():
    assert order_number("cloudsuite:default:1001") == "CLOUDSUITE-1001"
    assert order_number("doshii:north:88") == "DOSHII.north-88"
    assert order_number("doshii:north-1:88") == "DOSHII.north~11-88"


def test_an_unknown_numbering_is_told(tmp_path):
    with pytest.raises(ValueError, match="numbering=mine"):
        open_erp(f"sqlite:///{tmp_path / 'erp.db'}?numbering=mine")


# --- Set-up ---------------------------------------------------------------------------------------------------------


def test_prepare_adds_what_an_older_version_did_not_have(side):
    for statement in (
        "DROP INDEX ix_erp_order_taken_at_created_at" + (" ON erp_order" if "mysql" in side.url else ""),
        "ALTER TABLE erp_order DROP COLUMN taken_at",
        "ALTER TABLE erp_order DROP COLUMN asked_after",
    ):
        side.script(statement)
    erp = side.open()
    assert "taken_at" in erp.probe().text or "asked_after" in erp.probe().text
    erp.prepare()
    assert erp.probe().ok
    indexes = sqlalchemy.inspect(side.engine).get_indexes("erp_order")
    assert "ix_erp_order_taken_at_created_at" in {index["name"] for index in indexes}


def test_the_indexes_an_erp_needs_are_used(sqlite):
    erp_job = "SELECT * FROM erp_order WHERE taken_at IS NULL ORDER BY created_at"
    queries = {
        erp_job: "ix_erp_order_taken_at_created_at",
        "SELECT * FROM erp_order WHERE stage = 'confirmed' ORDER BY created_at": "ix_erp_order_stage_created_at",
        "SELECT * FROM erp_event WHERE external_reference = 'x'": "ix_erp_event_external_reference",
    }
    for query, index in queries.items():
        plan = " ".join(row["detail"] for row in sqlite.run(f"EXPLAIN QUERY PLAN {query}"))
        assert index in plan
        assert "TEMP B-TREE" not in plan


def test_health_names_no_password(postgresql):
    secret = postgresql.engine.url.set(username="ann", password="s3cret")
    erp = open_erp(secret.render_as_string(hide_password=False))
    health = erp.probe()
    assert "s3cret" not in health.text + health.advice
    erp.close()


def test_rights_that_are_missing_are_a_mistake_in_the_set_up(postgresql):
    role = f"orderfleet_test_{uuid.uuid4().hex}"
    postgresql.script(f"CREATE ROLE {role}; GRANT SELECT ON erp_order, erp_order_line, erp_event TO {role}")
    try:
        erp = postgresql.open(f"?options=-c role={role}")
        assert erp.find(REF) is None
        with pytest.raises(Misconfigured, match="permission denied"):
            erp.put(REF, make_order(), stage=Stage.CONFIRMED)
        assert not erp.probe().ok
        assert "permission denied" in erp.probe().text
        postgresql.script(f"GRANT INSERT, UPDATE ON erp_order TO {role}")
        postgresql.script(f"GRANT INSERT, UPDATE, DELETE ON erp_order_line TO {role}")
        assert erp.probe().ok, erp.probe()
        assert erp.put(REF, make_order(), stage=Stage.CONFIRMED).stage is Stage.PENDING
    finally:
        postgresql.script(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_database_or_user_that_is_not_there_is_a_mistake_in_the_set_up(server):
    for change in ({"database": "orderfleet_test_none"}, {"username": f"none_{uuid.uuid4().hex}", "password": "x"}):
        erp = open_erp(server.engine.url.set(**change).render_as_string(hide_password=False))
        with pytest.raises(Misconfigured):
            erp.find(REF)
        erp.close()


def test_a_file_that_is_no_database_is_a_mistake_in_the_set_up(tmp_path):
    path = tmp_path / "erp.db"
    path.write_text("This is a letter and no database. " * 100)
    erp = open_erp(f"sqlite:///{path}")
    with pytest.raises(Misconfigured, match="not a database"):
        erp.find(REF)
    erp.close()


# --- Locks, and answers that are lost -------------------------------------------------------------------------------


def test_a_lock_of_the_erps_means_later(server):
    limits = {
        "postgresql": "?options=-c lock_timeout=50ms",
        "mysql": "?init_command=SET SESSION innodb_lock_wait_timeout=1",
    }
    erp = server.open(limits[server.engine.dialect.name])
    erp.put(REF, make_order(), stage=Stage.DRAFT)
    with transaction(server.engine) as job:
        job.exec_driver_sql("SELECT * FROM erp_order FOR UPDATE")
        with pytest.raises(TryLater) as caught:
            erp.put(REF, make_order(), stage=Stage.CONFIRMED)
        assert not isinstance(caught.value, OutcomeUnknown)
        with pytest.raises(TryLater):
            erp.cancel(REF)
    assert erp.put(REF, make_order(), stage=Stage.CONFIRMED).stage is Stage.PENDING


def test_a_locked_file_means_later(sqlite):
    impatient = create_engine(sqlite.engine.url, connect_args={"timeout": 0}, poolclass=NullPool)
    with (
        transaction(sqlite.engine),
        impatient.connect() as connection,
        pytest.raises(TryLater, match="locked"),
        translated(impatient),
    ):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def test_the_ledgers_file_is_written_under_the_ledgers_lock(sqlite):
    # The embedded default: both write one file, and their threads queue in one line.
    ledger = open_database(sqlite.url)
    erp = sqlite.open("?numbering=ours")
    done = threading.Event()

    def put() -> None:
        erp.put(REF, make_order(), stage=Stage.CONFIRMED)
        done.set()

    with write_lock(ledger):
        thread = threading.Thread(target=put)
        thread.start()
        assert not done.wait(0.2)
    thread.join(10)
    assert done.is_set()
    ledger.dispose()


class Wire:
    """A TCP proxy that can swallow the answer to one request and hang up."""

    def __init__(self, host: str, port: int) -> None:
        self._there = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.swallow: bytes | None = None
        self.swallowed = 0
        self._mute = False
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._there) as server:
            answers = threading.Thread(target=self._pump_answers, args=(server, client), daemon=True)
            answers.start()
            try:
                while data := client.recv(65536):
                    if self.swallow is not None and self.swallow in data:
                        self.swallow, self._mute = None, True
                    server.sendall(data)
            except OSError:
                return
            finally:
                for end in (client, server):
                    end.close()

    def _pump_answers(self, server: socket.socket, client: socket.socket) -> None:
        try:
            while data := server.recv(65536):
                if self._mute:  # the server has answered, so it has done its work
                    self._mute = False
                    self.swallowed += 1
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(data)
        except OSError:
            return


@contextmanager
def wired(side: SqlSide):
    """An adapter that talks to the server over a wire."""
    url = side.engine.url
    wire = Wire(url.host or "127.0.0.1", url.port or {"postgresql": 5432, "mysql": 3306}[side.engine.dialect.name])
    erp = open_erp(url.set(host="127.0.0.1", port=wire.port).render_as_string(hide_password=False))
    try:
        yield wire, erp
    finally:
        erp.close()
        wire.close()


COMMITTING = {"postgresql": b"WITH fresh", "mysql": b"COMMIT"}


def test_a_put_whose_answer_is_lost_is_unknown_and_may_be_repeated(server):
    with wired(server) as (wire, erp):
        erp.find(REF)
        wire.swallow = COMMITTING[server.engine.dialect.name]
        with pytest.raises(OutcomeUnknown):
            erp.put(REF, make_order(), stage=Stage.CONFIRMED)
        assert wire.swallowed == 1
        assert len(server.orders()) == 1
        assert erp.put(REF, make_order(), stage=Stage.CONFIRMED).stage is Stage.PENDING
        assert len(server.orders()) == 1


def test_a_cancel_whose_answer_is_lost_is_unknown(server):
    with wired(server) as (wire, erp):
        erp.put(REF, make_order(), stage=Stage.CONFIRMED)
        wire.swallow = b"UPDATE erp_order"
        with pytest.raises(OutcomeUnknown):
            erp.cancel(REF)
        assert wire.swallowed == 1
        assert erp.cancel(REF).stage is Stage.CANCELLED


def test_a_connection_lost_before_the_commit_did_nothing(server):
    with wired(server) as (wire, erp):
        erp.put(REF, make_order(), stage=Stage.DRAFT)
        wire.swallow = b"FOR UPDATE"
        with pytest.raises(Unavailable):
            erp.put(REF, make_order(), stage=Stage.CONFIRMED)
        assert wire.swallowed == 1
        assert erp.find(REF).stage is Stage.DRAFT
        assert erp.put(REF, make_order(), stage=Stage.CONFIRMED).stage is Stage.PENDING


def test_a_read_whose_answer_is_lost_did_nothing(server):
    with wired(server) as (wire, erp):
        erp.find(REF)
        wire.swallow = b"erp_event"
        with pytest.raises(Unavailable):
            erp.events(None, 10)
        assert erp.events(None, 10)[0] == []


# --- docs/erp-sql.md: every example is run as it stands -------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "erp-sql.md"


def examples(section: str, database: str) -> list[str]:
    """The SQL blocks of a section that are for this database."""
    [body] = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^```sql ?(\w*)\n(.*?)^```$", body, re.MULTILINE | re.DOTALL)
    return [sql for name, sql in blocks if name in ("", database)]


def run_example(side: SqlSide, section: str) -> list[list]:
    """Run a section's examples as the ERP's developer would; the rows of each SELECT."""
    found = examples(section, side.engine.dialect.name)
    assert found, f"no example in {section}"
    return [rows for sql in found for rows in RUN[side.engine.dialect.name](side, sql)]


def _run_sqlite(side: SqlSide, sql: str) -> list[list]:
    answers: list = []
    with closing(sqlite3.connect(str(side.engine.url.database), isolation_level=None)) as connection:
        statement = ""
        for line in sql.splitlines(keepends=True):
            statement += line
            if sqlite3.complete_statement(statement):
                cursor = connection.execute(statement)
                if cursor.description:
                    answers.append(cursor.fetchall())
                statement = ""
    assert not statement.strip()
    return answers


def _run_postgresql(side: SqlSide, sql: str) -> list[list]:
    answers: list = []
    with side.engine.connect() as connection:
        cursor = connection.connection.cursor()
        cursor.execute(sql)
        while True:
            if cursor.description:
                answers.append(cursor.fetchall())
            if not cursor.nextset():
                break
    return answers


def _run_mysql(side: SqlSide, sql: str) -> list[list]:
    url = side.engine.url
    connection = pymysql.connect(
        host=url.host,
        port=url.port or 3306,
        user=url.username,
        password=url.password or "",
        database=url.database,
        autocommit=True,
    )
    answers: list = []
    with connection, connection.cursor() as cursor:
        for statement in _mysql_statements(sql):
            cursor.execute(statement)
            if cursor.description:
                answers.append(list(cursor.fetchall()))
    return answers


def _mysql_statements(sql: str) -> list[str]:
    """Split as the mysql client does."""
    statements, statement, delimiter = [], "", ";"
    for line in sql.splitlines():
        if line.startswith("DELIMITER "):
            delimiter = line.removeprefix("DELIMITER ")
            continue
        statement += line + "\n"
        if line.rstrip().endswith(delimiter):
            statements.append(statement.rstrip().removesuffix(delimiter))
            statement = ""
    assert not statement.strip()
    return statements


RUN = {"sqlite": _run_sqlite, "postgresql": _run_postgresql, "mysql": _run_mysql}


def told(erp) -> list[tuple]:
    events, _ = erp.events(None, 100)
    assert [event.error for event in events] == [None] * len(events)
    return [(event.reference.rpartition(":")[2], event.kind, event.data) for event in events]


def test_the_page_a_day_of_an_erp(side):
    erp = side.open()
    for number in (1001, 1002, 1003, 1004):
        erp.put(f"cloudsuite:default:{number}", make_order(), stage=Stage.CONFIRMED)
    erp.put("doshii:default:88", make_order(), stage=Stage.DRAFT)

    new, lines = run_example(side, "What is new")
    assert new[0][0] == "cloudsuite:default:1001"
    assert {row[1] for row in new} == {"confirmed", "draft"}
    assert [row[0] for row in lines] == ["a", "b"]

    taken = run_example(side, "Take one order and number it")
    assert taken[-1][0][0] == "cloudsuite:default:1001"
    assert erp.find("cloudsuite:default:1001").number == "SO-1001"
    assert erp.find("cloudsuite:default:1001").lines == {"a": 10, "b": 20}

    run_example(side, "Number everything that is new, without a program")
    numbers = {number: erp.find(f"cloudsuite:default:{number}").number for number in range(1001, 1005)}
    assert numbers == {number: f"SO-{number}" for number in range(1001, 1005)}
    assert erp.find("cloudsuite:default:1004").lines == {"a": 10, "b": 20}
    assert erp.find("doshii:default:88").number is None
    [new] = run_example(side, "What is new")[:1]
    assert [row[0] for row in new] == ["doshii:default:88"]

    before = len(told(erp))
    run_example(side, "Refuse, ship, complete")
    assert told(erp)[before:] == [
        ("1003", "refused", {"reason": "Customer 4711 is blocked"}),
        ("1001", "shipped", {"lines": {"a": "1.5"}, "carrier": "PostNL", "tracking": "3S1"}),
        ("1001", "shipped", {"lines": {"a": "0.5", "b": "1"}, "tracking": "3S2"}),
        ("1002", "shipped", {}),
        ("1002", "completed", {}),
    ]
    assert erp.find("cloudsuite:default:1003").stage is Stage.REFUSED
    assert erp.find("cloudsuite:default:1002").stage is Stage.CLOSED

    erp.cancel("cloudsuite:default:1004")
    before = len(told(erp))
    run_example(side, "Cancel")
    assert told(erp)[before:] == [("1004", "cancelled", {})]
    run_example(side, "Cancel")
    assert len(told(erp)) == before + 1

    assert run_example(side, "If you may not even write `taken_at`") == [[]]
    erp.put("cloudsuite:default:1003", make_order(), stage=Stage.CONFIRMED)
    assert run_example(side, "If you may not even write `taken_at`") == [[("cloudsuite:default:1003",)]]
    [new] = run_example(side, "What is new")[:1]
    assert [row[0] for row in new] == ["cloudsuite:default:1003", "doshii:default:88"]


def test_the_page_own_rules(side):
    run_example(side, "Let your own rules refuse an order")
    erp = side.open()
    order = make_order()
    erp.put(REF, order, stage=Stage.CONFIRMED)
    unknown = order.with_lines((order.lines[0], replace(order.lines[1], product="SKU-3")))
    with pytest.raises(Rejected, match=r"Product SKU-3 is not in the catalogue|A product is not") as caught:
        erp.put("cloudsuite:default:1002", unknown, stage=Stage.CONFIRMED)
    assert caught.value.text.endswith("is not in the catalogue")
    assert [row["reference"] for row in side.orders()] == [REF]


def test_the_page_names_every_column_and_kind():
    page = PAGE.read_text()
    missing = [
        f"{table.name}.{column.name}"
        for table in metadata.sorted_tables
        for column in table.c
        if f"`{column.name}`" not in page
    ]
    assert missing == []
    assert [kind for kind in KINDS if f"`{kind}`" not in page] == []
