"""Facts from outside for one order, and how far each feed of them has been read."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, select, update

from databases.clock import now
from ledger.connection import Ledger
from ledger.models import cursors, orders, signals
from ledger.rows import upsert, write_audit_on
from orders.outcomes import alternatives
from orders.states import State


@dataclass(frozen=True, slots=True)
class Signal:
    """A fact from outside for one order. `source` names where it came from, once: a double is not a second signal."""

    order_id: int
    name: str
    source: str
    data: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def is_signalled(signalled: str, awaits: str) -> bool:
    """Whether a signal of this name, or of one of its alternatives, has come, by the `signalled` column."""
    return any(f"|{name}|" in f"|{signalled}" for name in alternatives(awaits))


def insert_signals(
    connection: Connection, ledger: Ledger, rows: Iterable[tuple[int, str, str, dict[str, Any]]]
) -> list[Any]:
    """Write signals (order, name, source, data); returns order, name and source of those that were not there."""
    values = [
        {"order_id": order_id, "name": name, "source": source, "data": json.dumps(data)}
        for order_id, name, source, data in rows
    ]
    statement = (
        upsert(ledger, signals)
        .values(received_at=now())
        .on_conflict_do_nothing()
        .returning(signals.c.order_id, signals.c.name, signals.c.source)
    )
    return [tuple(row) for row in connection.execute(statement, values)]


def signal(
    ledger: Ledger, arrived: Sequence[Signal], cursor: tuple[str, str] | None = None, *, who: str | None = None
) -> list[int]:
    """Write signals and wake the orders that waited for them, in one commit (with the feed's cursor, if given).

    Returns the ids of orders that are ready now. Audited when a person (`who`) gives them."""
    woken: list[int] = []
    with ledger.transaction() as connection:
        rows = [(s.order_id, s.name, s.source, s.data) for s in arrived]
        fresh = set(insert_signals(connection, ledger, rows)) if rows else set()
        for one in sorted(arrived, key=lambda s: s.order_id):
            if (one.order_id, one.name, one.source) in fresh:
                fresh.discard((one.order_id, one.name, one.source))
                woken += _wake_waiting(connection, one)
                if who is not None:
                    write_audit_on(connection, who, "signal", one.order_id, f"{one.name} {json.dumps(one.data)}")
        if cursor is not None:
            _write_cursor(connection, ledger, *cursor)
    return woken


def _wake_waiting(connection: Connection, one: Signal) -> list[int]:
    row = connection.execute(
        select(orders.c.facts, orders.c.signalled, orders.c.state, orders.c.awaits)
        .where(orders.c.id == one.order_id)
        .with_for_update()
    ).one()
    values: dict[str, Any] = {
        "signal_seq": orders.c.signal_seq + 1,
        "version": orders.c.version + 1,
        "updated_at": now(),
    }
    if not is_signalled(row.signalled, one.name):
        values["signalled"] = f"{row.signalled}{one.name}|"
    if one.facts:
        values["facts"] = json.dumps(json.loads(row.facts) | one.facts)
    wakes = row.state == State.WAITING and one.name in alternatives(row.awaits)
    if wakes:
        values |= {"state": State.READY, "wake_at": now()}
    connection.execute(update(orders).where(orders.c.id == one.order_id).values(**values))
    return [one.order_id] if wakes else []


def _write_cursor(connection: Connection, ledger: Ledger, name: str, value: str) -> None:
    connection.execute(
        upsert(ledger, cursors)
        .values(name=name, value=value, updated_at=now())
        .on_conflict_do_update(index_elements=["name"], set_={"value": value, "updated_at": now()})
    )


def move_cursor(ledger: Ledger, name: str, value: str) -> None:
    """Remember how far a feed or poll has been read."""
    with ledger.statement() as connection:
        _write_cursor(connection, ledger, name, value)
