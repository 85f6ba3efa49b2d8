"""Staging tables in a database: we write orders, the ERP's own job reads them and writes events back.

The tables are in `sql_tables`; docs/erp-sql.md tells the ERP's developer how to use them.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from sqlalchemy import (
    URL,
    BindParameter,
    Connection,
    Engine,
    LargeBinary,
    Table,
    bindparam,
    cast,
    delete,
    exists,
    insert,
    inspect,
    make_url,
    select,
    text,
    type_coerce,
    update,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.schema import CreateColumn
from sqlalchemy.types import NullType

from databases.clock import now
from databases.connect import open_database, statement, transaction
from erp.port import Capabilities, ErpEvent, ErpOrder, Health, Rejected, Stage
from erp.sql_errors import MEND, translated
from erp.sql_events import Cursor, as_text, read_data, read_event
from erp.sql_tables import erp_event, erp_order, erp_order_line, line_numbers, line_rows, metadata, order_row
from orders.errors import Misconfigured, StepError
from orders.model import Order

Row = dict[str, Any]

# Nobody's lock may hold a worker for longer than this; for SQLite, databases.connect has the limit.
_POSTGRESQL_LIMITS = "-c lock_timeout=10s -c statement_timeout=30s"
# Strict: a text too long for its column is an error, and not cut without a word.
_MYSQL_LIMITS = "SET SESSION innodb_lock_wait_timeout = 10, sql_mode = CONCAT(@@sql_mode, ',STRICT_ALL_TABLES')"

_TIMES = {"created_at": now(), "updated_at": now()}
_OTHERS = ("asked_after", "taken_at", *_TIMES)
_ORDER_COLUMNS = [column.name for column in erp_order.c if column.name not in _OTHERS]
_LINE_COLUMNS = [column.name for column in erp_order_line.c]

# Only our own key may be taken already. Any other unique constraint is the ERP's own: a refusal.
_ORDER_SQLITE = sqlite.insert(erp_order).on_conflict_do_nothing(index_elements=["external_reference"]).values(_TIMES)
_ORDER_MYSQL = insert(erp_order).values(_TIMES)
_LINES = insert(erp_order_line)

# One statement is one round trip and one transaction.
_ORDER_AND_LINES_POSTGRESQL = f"""
WITH fresh AS (
  INSERT INTO erp_order ({", ".join(_ORDER_COLUMNS)}, created_at, updated_at)
  VALUES ({", ".join(f"%({name})s" for name in _ORDER_COLUMNS)}, now(), now())
  ON CONFLICT (external_reference) DO NOTHING
  RETURNING external_reference
), lines AS (
  INSERT INTO erp_order_line ({", ".join(_LINE_COLUMNS)})
  SELECT {", ".join(f"line.{name}" for name in _LINE_COLUMNS)}
  FROM fresh CROSS JOIN json_to_recordset(%(lines)s::json) AS line (
    external_reference text, line_key text, position integer, product text, product_origin text,
    description text, quantity numeric, unit_price numeric, line_total numeric, line_number integer
  )
)
SELECT count(*) FROM fresh
"""  # noqa: S608 - the names of our own columns

_THIS_ORDER = erp_order.c.external_reference == bindparam("of")
_THESE_LINES = erp_order_line.c.external_reference == bindparam("of")
_STORED = select(erp_order.c.stage, erp_order.c.order_number, erp_order.c.asked_after).where(_THIS_ORDER)
_LOCKED = _STORED.add_columns(erp_order.c.document).with_for_update()
_LINE_NUMBERS = select(erp_order_line.c.line_key, erp_order_line.c.line_number).where(_THESE_LINES)
_CHANGE = update(erp_order).where(_THIS_ORDER).values(updated_at=now(), taken_at=None)
_DROP_LINES = delete(erp_order_line).where(_THESE_LINES)
_COMPLETED = exists().where(erp_event.c.external_reference == bindparam("of"), erp_event.c.kind == "completed")
_CANCEL = _CHANGE.where(erp_order.c.stage != Stage.CANCELLED.value, ~_COMPLETED).values(stage=Stage.CANCELLED.value)
_CLOCK = select(now())

# Of several processes that start at once, one makes the tables. SQLite's transaction is such a lock already.
_LOCK_NAME = "CONCAT('orderfleet.', MD5(DATABASE()))"
_ALONE = {
    "postgresql": ("SELECT pg_advisory_xact_lock(hashtext('orderfleet.erp'))", None),
    **dict.fromkeys(("mysql", "mariadb"), (f"SELECT GET_LOCK({_LOCK_NAME}, 30)", f"SELECT RELEASE_LOCK({_LOCK_NAME})")),
}

_NO_ROW = text("1 = 0")
_PROBES = (
    insert(erp_order).from_select(
        [column.name for column in erp_order.c], select(erp_order).where(_NO_ROW), include_defaults=False
    ),
    update(erp_order).where(_NO_ROW).values(taken_at=None),
    insert(erp_order_line).from_select(_LINE_COLUMNS, select(erp_order_line).where(_NO_ROW)),
    delete(erp_order_line).where(_NO_ROW),
    select(erp_event).where(_NO_ROW),
)


class SqlErp:
    """The adapter. `url` may carry `numbering=ours`: then `put` numbers orders at once and for good, the ERP
    takes our numbers from the tables, and no `numbered` event is written by anybody. Raises `ValueError` for
    a URL it cannot read.
    """

    def __init__(self, url: str, *, pool_size: int = 20) -> None:
        parsed = make_url(url)
        numbering = parsed.query.get("numbering", "theirs")
        if numbering not in ("ours", "theirs"):
            raise ValueError(f"numbering={numbering} is not known: use numbering=ours, or leave it out")
        self._ours = numbering == "ours"
        self._engine = open_database(_limited(parsed.difference_update_query(["numbering"])), pool_size=pool_size)
        self._event = _event_columns(self._engine)
        self._answers = select(*self._event[:4]).where(
            erp_event.c.external_reference == bindparam("of"),
            erp_event.c.kind.in_(("numbered", "refused", "cancelled", "completed")),
        )

    @property
    def capabilities(self) -> Capabilities:
        """The primary key keeps references unique, so an unanswered call may be repeated at once."""
        return Capabilities(
            unique_ref="database",
            number_at="create" if self._ours else "later",
            cancel_after_confirm=True,
            tracking=True,
            settle=0.0,
        )

    def find(self, reference: str) -> ErpOrder | None:
        """See `Erp.find`: two reads by key, three for an order that we numbered."""
        with translated(self._engine), self._engine.connect() as connection:
            stored = self._stored(connection, reference)
        return None if stored is None else stored.as_order()

    def put(self, reference: str, order: Order, *, stage: Stage) -> ErpOrder:
        """See `Erp.put`: for a new order one transaction, and on PostgreSQL one round trip."""
        if stage not in (Stage.DRAFT, Stage.CONFIRMED):
            raise ValueError(f"an order is put as draft or confirmed, not as {stage}")
        numbers = line_numbers(order.lines) if self._ours else {}
        row = order_row(reference, order, stage, numbered=self._ours)
        lines = line_rows(reference, order.lines, numbers)
        if self._insert(row, lines):
            return _Stored(reference, stage, row["order_number"], numbers).as_order()
        with translated(self._engine), transaction(self._engine) as connection:
            return self._go_on(connection, order, row, lines)

    def cancel(self, reference: str) -> ErpOrder | None:
        """See `Erp.cancel`. An order that the ERP has completed stays as it is."""
        with translated(self._engine, commits_itself=True), statement(self._engine) as connection:
            connection.execute(_CANCEL, {"of": reference})
        return self.find(reference)

    def events(self, cursor: str | None, limit: int) -> tuple[list[ErpEvent], str]:
        """See `Erp.events`. Raises `ValueError` for a cursor that is not ours."""
        position = Cursor.parse(cursor)
        late: list[Any] = []
        new: list[Any] = []
        with translated(self._engine), self._engine.connect() as connection:
            # The clock first: a gap is given up only if it was looked into after its time.
            clock = connection.execute(_CLOCK).scalar_one()
            if position.gaps:
                late = self._rows(connection, erp_event.c.id.in_(_literal(position.watched)), limit)
            if len(late) < limit:
                position = position.without(row[0] for row in late).at(clock.timestamp())
                new = self._rows(connection, erp_event.c.id > position.high, limit - len(late))
                position = position.after((row[0] for row in new), clock.timestamp())
            else:
                position = position.without(row[0] for row in late)
        return [read_event(row, clock) for row in (*late, *new)], str(position)

    def probe(self) -> Health:
        """See `Erp.probe`: runs every kind of statement this adapter uses, on no row."""
        try:
            with translated(self._engine), transaction(self._engine) as connection:
                for nothing in _PROBES:
                    connection.execute(nothing)
        except Misconfigured as error:
            return Health(False, error.reason.removesuffix(f" ({MEND})"), MEND)
        except StepError as error:
            return Health(False, error.reason, "see that the ERP's database runs and can be reached from here")
        return Health(True, f"the staging tables in {_place(self._engine.url)} can be read and written")

    def prepare(self) -> None:
        """See `Erp.prepare`: makes the tables, columns and indexes that are missing, and changes no other."""
        with translated(self._engine):
            _create(self._engine)

    def close(self) -> None:
        """See `Erp.close`."""
        self._engine.dispose()

    def _insert(self, row: Row, lines: list[Row]) -> bool:
        """Whether the order was new; nothing has changed if it was not."""
        put_new = _PUT_NEW[self._engine.dialect.name]
        with translated(self._engine, commits_itself=put_new is _put_new_postgresql):
            return put_new(self._engine, row, lines)

    def _go_on(self, connection: Connection, order: Order, row: Row, lines: list[Row]) -> ErpOrder:
        """Bring the order that is there to where `row` is; nothing is written if it is there already."""
        stored = self._stored(connection, row["external_reference"], lock=True)
        if stored is None:
            raise Rejected("the ERP's database took the order away without giving a reason", code="dropped")
        different = _differences(order, stored.document)
        _check_may_go_on(stored.as_order().stage, different)
        wanted = stored.moved_on(row, lines)
        if different or wanted != stored:
            connection.execute(_CHANGE, {**row, **wanted.own_columns(), "of": wanted.reference})
        if different or wanted.number != stored.number:
            connection.execute(_DROP_LINES, {"of": wanted.reference})
            _insert_lines(connection, lines)
        return wanted.as_order()

    def _stored(self, connection: Connection, reference: str, *, lock: bool = False) -> "_Stored | None":
        """The order in the tables, with what the ERP said of it; with its document if it is locked."""
        row = connection.execute(_LOCKED if lock else _STORED, {"of": reference}).mappings().one_or_none()
        if row is None:
            return None
        answers = _answers(sorted(connection.execute(self._answers, {"of": reference}).all()))
        numbered = row["order_number"] is not None
        lines = connection.execute(_LINE_NUMBERS, {"of": reference}).all() if numbered else ()
        return _Stored(
            reference,
            row["stage"],
            row["order_number"],
            {key: number for key, number in lines if number is not None},
            row["asked_after"],
            answers,
            row.get("document", "{}"),
        )

    def _rows(self, connection: Connection, condition: Any, limit: int) -> list[Any]:
        found = select(*self._event).where(condition).order_by(erp_event.c.id).limit(limit)
        return list(connection.execute(found).all())


@dataclass(frozen=True, slots=True)
class _Answers:
    """What the ERP's events say of one order. `refused_by`: the event of a refusal, if the last word."""

    number: str | None = None
    lines: dict[str, int] = field(default_factory=dict)
    refusal: str | None = None
    refused_by: int = 0
    ended: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _Stored:
    """An order in the tables. `number` and `lines` are those that we gave it, if we number."""

    reference: str
    stage: str
    number: str | None = None
    lines: dict[str, int] = field(default_factory=dict)
    asked_after: int | None = None
    answers: _Answers = field(default_factory=_Answers)
    document: str = "{}"

    @property
    def refused(self) -> bool:
        return self.answers.refused_by > (self.asked_after or 0)

    def as_order(self) -> ErpOrder:
        """Where the order stands; the ERP's numbers count before ours."""
        return ErpOrder(
            self.reference,
            self._stage(),
            self.answers.number or self.number,
            {**self.lines, **self.answers.lines},
            self.answers.refusal if self.refused else None,
        )

    def _stage(self) -> Stage:
        if self.stage == Stage.CANCELLED or "cancelled" in self.answers.ended:
            return Stage.CANCELLED
        if "completed" in self.answers.ended:
            return Stage.CLOSED
        if self.refused:
            return Stage.REFUSED
        if self.stage == Stage.DRAFT:
            return Stage.DRAFT
        return Stage.CONFIRMED if self.answers.number or self.number else Stage.PENDING

    def moved_on(self, row: Row, lines: list[Row]) -> "_Stored":
        """This order after a put of `row`: never a draft again, numbered if it was not, refusals answered."""
        wanted = replace(self, asked_after=self.answers.refused_by) if self.refused else self
        if self.stage == Stage.DRAFT:
            wanted = replace(wanted, stage=row["stage"])
        if self.answers.number or self.number or row["order_number"] is None:
            return wanted
        numbers = {line["line_key"]: line["line_number"] for line in lines}
        return replace(wanted, number=row["order_number"], lines=numbers)

    def own_columns(self) -> Row:
        """What `moved_on` decides, as columns."""
        return {"stage": self.stage, "order_number": self.number, "asked_after": self.asked_after}


def _answers(rows: Iterable[Any]) -> _Answers:
    """The events of one order, ascending, added up. What cannot be read is for the feed to show."""
    told = _Answers()
    for number, _, kind, raw in rows:
        kind = as_text(kind)
        data, problem = read_data(kind, raw)
        if kind in ("cancelled", "completed"):
            told = replace(told, ended=told.ended | {kind})
        elif problem:
            continue
        elif kind == "numbered":
            told = replace(told, number=data["order_number"], lines=data["lines"], refusal=None, refused_by=0)
        elif kind == "refused":
            told = replace(told, refusal=data["reason"], refused_by=number)
    return told


def _differences(order: Order, document: str) -> list[str]:
    """The parts in which `order` is not what is stored."""
    stored = Order.from_json(json.loads(document))
    return [part.name for part in fields(order) if getattr(order, part.name) != getattr(stored, part.name)]


def _check_may_go_on(stage: Stage, different: list[str]) -> None:
    if stage is Stage.CANCELLED:
        raise Rejected("the order was cancelled and cannot be put again", code="cancelled")
    if different and stage not in (Stage.DRAFT, Stage.REFUSED):
        # The ERP may be working on what it has: to change it now could ship the wrong goods, and so could
        # silence.
        raise Rejected(
            f"the ERP has this order already, with another {', '.join(different)}: change it there by hand, then "
            "`orderfleet replay ORDER --acknowledge` goes on without handing it over again",
            code="different",
            field=different[0],
        )


def _put_new_postgresql(engine: Engine, row: Row, lines: list[Row]) -> bool:
    with engine.connect() as connection:
        values = {**row, "lines": json.dumps(lines, default=str)}
        return bool(connection.exec_driver_sql(_ORDER_AND_LINES_POSTGRESQL, values).scalar_one())


def _put_new_sqlite(engine: Engine, row: Row, lines: list[Row]) -> bool:
    with transaction(engine) as connection:
        new = connection.execute(_ORDER_SQLITE, row).rowcount == 1
        if new:
            _insert_lines(connection, lines)
    return new


def _put_new_mysql(engine: Engine, row: Row, lines: list[Row]) -> bool:
    # No INSERT IGNORE: it would swallow every other error, too.
    try:
        with transaction(engine) as connection:
            connection.execute(_ORDER_MYSQL, row)
            _insert_lines(connection, lines)
    except IntegrityError as error:
        if _is_order_key_taken(error):
            return False
        raise
    return True


_PUT_NEW = {
    "postgresql": _put_new_postgresql,
    "sqlite": _put_new_sqlite,
    "mysql": _put_new_mysql,
    "mariadb": _put_new_mysql,
}


def _is_order_key_taken(error: IntegrityError) -> bool:
    code, words = getattr(error.orig, "args", (0, ""))[:2]
    # MySQL says 'erp_order.PRIMARY', MariaDB 'PRIMARY', for whichever table.
    return code == 1062 and words.endswith("PRIMARY'") and "INTO erp_order " in (error.statement or "")


def _insert_lines(connection: Connection, lines: list[Row]) -> None:
    if lines:
        connection.execute(_LINES, lines)


def _event_columns(engine: Engine) -> list[Any]:
    """An event's columns as they are: SQLite keeps whatever an ERP writes, even what is no text or time."""
    columns = [type_coerce(column, NullType()) for column in erp_event.c]
    if engine.dialect.name != "sqlite":
        return columns
    return [columns[0], *(cast(column, LargeBinary) for column in columns[1:])]


def _literal(ids: list[int]) -> BindParameter[Any]:
    # Thousands of numbers, written into the statement: databases limit how many parameters one may have.
    return bindparam("ids", ids, expanding=True, literal_execute=True)


def _create(engine: Engine) -> None:
    take, give_back = _ALONE.get(engine.dialect.name, (None, None))
    with transaction(engine) as connection:
        if take:
            connection.exec_driver_sql(take)
        try:
            metadata.create_all(connection)
            for table in metadata.sorted_tables:
                _complete(connection, table)
        finally:
            if give_back:
                connection.exec_driver_sql(give_back)


def _complete(connection: Connection, table: Table) -> None:
    there = {column["name"] for column in inspect(connection).get_columns(table.name)}
    for column in table.c:
        if column.name not in there:
            words = CreateColumn(column).compile(dialect=connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {words}")
    for index in table.indexes:
        index.create(connection, checkfirst=True)


def _limited(url: URL) -> str:
    backend = url.get_backend_name()
    if backend in ("postgresql", "postgres"):
        url = url.update_query_dict({"options": url.query.get("options", _POSTGRESQL_LIMITS)})
    elif backend in ("mysql", "mariadb"):
        url = url.update_query_dict({"init_command": url.query.get("init_command", _MYSQL_LIMITS)})
    return url.render_as_string(hide_password=False)


def _place(url: URL) -> str:
    place = URL.create(url.get_backend_name(), host=url.host, port=url.port, database=url.database)
    return place.render_as_string()
