"""Plays the ERP's side of the staging tables: numbers, refuses, ships and cancels what the fleet wrote there.

Plain SQL, as an ERP's own job would use, on SQLite, PostgreSQL and MySQL. It reads `erp_order` (new is what has no
`taken_at`) and `erp_order_line`, writes `erp_event` and `taken_at`, and remembers nothing that these tables do not
tell: one that was killed goes on where it was. Not for `numbering=ours`: this ERP gives numbers of its own.
"""

import json
import logging
import re
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Engine, TextClause, bindparam, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError

Json = dict[str, Any]

log = logging.getLogger(__name__)

_BATCH = 500
"""Orders in one transaction."""

_DRIVERS = {
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
}
_NOW = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f', 'now') || '000'",
    "postgresql": "now()",
    "mysql": "utc_timestamp(6)",
    "mariadb": "utc_timestamp(6)",
}
_WAREHOUSE = ("approved", "picked", "delivered", "collected", "stored")
_SHELVES = 9
_CARRIERS = ("Example Post", "Example Freight", "Example Couriers")


def _of_these(statement: str) -> TextClause:
    return text(statement).bindparams(bindparam("references", expanding=True))


_NEW = text(f"SELECT external_reference FROM erp_order WHERE taken_at IS NULL ORDER BY created_at LIMIT {_BATCH}")
_ORDERS = (
    "SELECT external_reference, stage, asked_after, taken_at IS NULL, reference FROM erp_order"
    " WHERE external_reference IN :references ORDER BY external_reference"
)
_LINES = _of_these(
    "SELECT external_reference, line_key, product, quantity FROM erp_order_line"
    " WHERE external_reference IN :references ORDER BY external_reference, position"
)
_EVENTS = _of_these(
    "SELECT id, external_reference, kind, data FROM erp_event WHERE external_reference IN :references ORDER BY id"
)


@dataclass(frozen=True)
class _Line:
    key: str
    product: str | None
    quantity: Decimal


@dataclass
class _Found:
    """What the tables say about one order. `untaken`: there is something in it that we have not seen."""

    stage: str
    asked_after: int
    untaken: bool
    name: str = ""
    lines: list[_Line] = field(default_factory=list)
    numbered: bool = False
    refused: bool = False
    cancelled: bool = False
    shipments: int = 0
    shipped_whole: bool = False
    shipped: dict[str, Decimal] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)

    def add(self, number: int, kind: str, data: Json) -> None:
        """One event. A refusal counts until a person has the order put again."""
        self.told.add(kind)
        self.numbered |= kind == "numbered"
        self.refused |= kind == "refused" and number > self.asked_after
        self.cancelled |= kind == "cancelled"
        if kind != "shipped":
            return
        self.shipments += 1
        lines = data.get("lines") or {}
        self.shipped_whole |= not lines
        for key, quantity in lines.items():
            self.shipped[key] = self.shipped.get(key, Decimal(0)) + Decimal(str(quantity))

    def boxes(self) -> list[str]:
        """The codes of its boxes: the order's own, counted from 1."""
        return [f"{self.name}-{number}" for number in range(1, int(sum(line.quantity for line in self.lines)) + 1)]

    def remaining(self) -> dict[str, Decimal]:
        """Line key to the quantity still to be shipped."""
        if self.shipped_whole or self.cancelled:
            return {}
        left = {line.key: line.quantity - self.shipped.get(line.key, Decimal(0)) for line in self.lines}
        return {key: quantity for key, quantity in left.items() if quantity > 0}


class SandboxErp:
    """An ERP that needs `ship_after_seconds` from number to shipment and does not know `refuse_products`.

    `step` does all that is due now. About every fourth order leaves in two deliveries. Drafts are numbered or
    refused too, because a restaurant order is accepted on the strength of one; only confirmed ones ship. One
    that is cancelled before anything left is confirmed to be. Orders of the systems in `warehouse` are boxes: instead
    of shipping, each is approved, picked, delivered, collected and stored, one after another, `ship_after_seconds`
    apart. Run one at a time: numbers are counted here.
    """

    def __init__(
        self,
        url: str,
        *,
        ship_after_seconds: float = 3.0,
        refuse_products: Collection[str] = frozenset({"UNKNOWN-PRODUCT", "999", "599"}),
        warehouse: Collection[str] = frozenset({"storeganise"}),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Connects to nothing yet. `clock` measures delays only; times in the tables are the database's."""
        self._engine = _open(url)
        self._ship_after = ship_after_seconds
        self._refuse = frozenset(refuse_products)
        self._warehouse = frozenset(warehouse)
        self._clock = clock
        self._remembers = False
        self._last_number = 0
        self._to_ship: deque[tuple[float, str]] = deque()
        """When, and what: in the order of time, because all wait equally long."""

    def step(self) -> int:
        """Answer new orders and ship what is due; the number of events written. Raises `DBAPIError`."""
        if not self._remembers:
            self._remember()
        written = 0
        while new := self._new():
            written += self._answer(new)
        while due := self._due():
            written += self._ship(due)
        return written

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def _remember(self) -> None:
        """The last number given, and what is still to be shipped: from the events, once, at the start."""
        unshipped: dict[str, None] = {}
        shipped_once: set[str] = set()
        with self._engine.connect() as connection:
            statement = text("SELECT external_reference, kind, data FROM erp_event ORDER BY id")
            for reference, kind, data in connection.execute(statement):
                if kind == "numbered":
                    self._note_number(_decoded(data))
                    unshipped[reference] = None
                elif kind == _WAREHOUSE[-1] or (kind == "shipped" and _was_last(reference, data, shipped_once)):
                    unshipped.pop(reference, None)
                elif kind == "shipped":
                    shipped_once.add(reference)  # perhaps the first of two: `_ship` will look
        self._to_ship.clear()
        for reference in unshipped:
            self._pack(reference)
        self._remembers = True

    def _note_number(self, data: Json) -> None:
        if number := re.fullmatch(r"SO-(\d+)", str(data.get("order_number"))):
            self._last_number = max(self._last_number, int(number[1]))

    def _pack(self, reference: str) -> None:
        self._to_ship.append((self._clock() + self._ship_after, reference))

    def _new(self) -> list[str]:
        with self._engine.connect() as connection:
            return list(connection.execute(_NEW).scalars())

    def _due(self) -> list[str]:
        now = self._clock()
        return [reference for when, reference in islice(self._to_ship, _BATCH) if when <= now]

    def _answer(self, references: list[str]) -> int:
        """Number, refuse or cancel each order, once, whatever an earlier run has done."""
        to_pack: list[str] = []
        answers: list[Json] = []
        with self._writing() as connection:
            found = {name: order for name, order in self._read(connection, references).items() if order.untaken}
            for reference, order in found.items():
                answer = self._reply(reference, order)
                if answer is not None:
                    answers.append(answer)
                if order.stage == "confirmed" and (order.numbered or (answer and answer["kind"] == "numbered")):
                    to_pack.append(reference)
            self._write(connection, answers)
            self._take(connection, list(found))
        for reference in to_pack:
            self._pack(reference)
        return len(answers)

    def _reply(self, reference: str, order: _Found) -> Json | None:
        """The event for an order that is new, or new again; `None` if all is said."""
        if order.stage == "cancelled":
            too_late = order.cancelled or order.shipments
            return None if too_late else _event(reference, "cancelled", {})
        if order.numbered or order.refused:
            return None
        unknown = next((line.product for line in order.lines if line.product in self._refuse), None)
        if unknown is not None:
            return _event(reference, "refused", {"reason": f"Unknown product {unknown}"})
        self._last_number += 1  # for good, even if the transaction fails: a gap is better than a double
        numbers = {line.key: 10 * place for place, line in enumerate(order.lines, start=1)}
        return _event(reference, "numbered", {"order_number": f"SO-{self._last_number}", "lines": numbers})

    def _ship(self, references: list[str]) -> int:
        """Ship orders that are still confirmed, the rest of them if a part has left already."""
        shipments: list[Json] = []
        unfinished: list[str] = []
        with self._writing() as connection:
            for reference, order in self._read(connection, references).items():
                if reference.partition(":")[0] in self._warehouse:
                    moved = _next_move(reference, order)
                    shipments += moved
                    unfinished += [reference] * bool(moved)
                    continue
                remaining = order.remaining()
                if order.stage != "confirmed" or not remaining:
                    continue
                first = _first_delivery(reference, remaining) if order.shipments == 0 else None
                if first:
                    unfinished.append(reference)
                shipments.append(_shipment(reference, order.shipments, first or remaining, bool(first)))
            self._write(connection, shipments)
        for _ in references:
            self._to_ship.popleft()
        for reference in unfinished:
            self._pack(reference)
        return len(shipments)

    def _read(self, connection: Connection, references: list[str]) -> dict[str, _Found]:
        """The orders with their lines and events, locked: nobody cancels one meanwhile."""
        lock = "" if self._engine.dialect.name == "sqlite" else " FOR UPDATE"
        wanted = {"references": references}
        orders = connection.execute(_of_these(_ORDERS + lock), wanted)
        found = {
            reference: _Found(stage, asked_after or 0, bool(untaken), name or "")
            for reference, stage, asked_after, untaken, name in orders
        }
        for reference, key, product, quantity in connection.execute(_LINES, wanted):
            if reference in found:
                found[reference].lines.append(_Line(key, product, Decimal(str(quantity))))
        for number, reference, kind, data in connection.execute(_EVENTS, wanted):
            if reference in found:
                found[reference].add(number, kind, _decoded(data))
        return found

    def _write(self, connection: Connection, events: list[Json]) -> None:
        if not events:
            return
        statement = text(
            "INSERT INTO erp_event (external_reference, kind, data, created_at)"
            f" VALUES (:reference, :kind, :data, {_NOW[self._engine.dialect.name]})"
        )
        connection.execute(statement, events)

    def _take(self, connection: Connection, references: list[str]) -> None:
        if not references:
            return
        now = _NOW[self._engine.dialect.name]
        statement = f"UPDATE erp_order SET taken_at = {now} WHERE external_reference IN :references"
        connection.execute(_of_these(statement), {"references": references})

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A transaction. On SQLite with the write lock from the start: taking it later would not wait."""
        with self._engine.connect() as connection:
            begin = "BEGIN IMMEDIATE" if self._engine.dialect.name == "sqlite" else "BEGIN"
            connection.exec_driver_sql(begin)
            yield connection  # after an error the pool rolls back
            connection.exec_driver_sql("COMMIT")


def _open(url: str) -> Engine:
    parsed = make_url(url)
    if "+" not in parsed.drivername:
        parsed = parsed.set(drivername=_DRIVERS.get(parsed.drivername, parsed.drivername))
    engine = create_engine(parsed, isolation_level="AUTOCOMMIT", pool_size=1, max_overflow=0)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _pragmas(connection: Any, record: Any) -> None:
            connection.execute("PRAGMA busy_timeout = 30000")
            connection.execute("PRAGMA journal_mode = WAL")

    return engine


def _decoded(data: Any) -> Json:
    """A JSON column: text, or parsed by the driver already. What is no object says nothing to us."""
    try:
        document = json.loads(data) if isinstance(data, str | bytes) else data
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _event(reference: str, kind: str, data: Json) -> Json:
    return {"reference": reference, "kind": kind, "data": json.dumps(data)}


def _was_last(reference: str, data: Any, shipped_once: Collection[str]) -> bool:
    return reference in shipped_once or not _decoded(data).get("lines")


def _next_move(reference: str, order: _Found) -> list[Json]:
    """What the warehouse does next with an order's boxes; empty when all is done, or it was cancelled."""
    if order.stage != "confirmed" or order.cancelled:
        return []
    kind = next((kind for kind in _WAREHOUSE if kind not in order.told), None)
    if kind is None:
        return []
    data: Json = {} if kind == "approved" else {"items": order.boxes()}
    if kind == "stored":
        data["locations"] = {box: f"S{number % _SHELVES + 1}" for number, box in enumerate(order.boxes())}
    return [_event(reference, kind, data)]


def _first_delivery(reference: str, quantities: dict[str, Decimal]) -> dict[str, Decimal] | None:
    """The first of two deliveries for about every fourth order, `None` for those that leave at once."""
    if _dice(reference) % 4 or (len(quantities) == 1 and max(quantities.values()) < 2):
        return None
    if len(quantities) == 1:
        return {key: quantity // 2 for key, quantity in quantities.items()}
    return dict(islice(quantities.items(), len(quantities) // 2))


def _shipment(reference: str, earlier: int, quantities: dict[str, Decimal], partial: bool) -> Json:
    dice = _dice(reference)
    data: Json = {"carrier": _CARRIERS[dice % len(_CARRIERS)], "tracking": f"EX{dice:010d}-{earlier + 1}"}
    whole = not partial and earlier == 0
    if not whole or dice % 3:  # the others say nothing of lines, which means everything
        data["lines"] = {key: format(quantity.normalize(), "f") for key, quantity in quantities.items()}
    return _event(reference, "shipped", data)


def _dice(reference: str) -> int:
    """Falls the same way for an order at any time, so that a restart changes nothing."""
    return zlib.crc32(reference.encode())


def run(url: str, stop: threading.Event, *, every_seconds: float = 0.3, ship_after_seconds: float = 3.0) -> None:
    """Step until `stop` is set. Waits for tables that are not there yet and for a database that is away."""
    erp = SandboxErp(url, ship_after_seconds=ship_after_seconds)
    try:
        while not stop.is_set():
            try:
                erp.step()
            except DBAPIError as error:
                log.warning("The sandbox ERP waits for its database: %s", type(error.orig).__name__)
            stop.wait(every_seconds)
    finally:
        erp.close()
