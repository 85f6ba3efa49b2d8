"""Rows that several of the writes make: of a plan, of the timeline, of the audit."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Integer, Row, String, bindparam, delete, insert, null, update
from sqlalchemy.dialects import postgresql, sqlite

from databases.clock import now
from databases.types import UTC
from ledger.connection import Ledger
from ledger.models import attempts, audit, orders, steps
from orders.lanes import lane_of
from orders.outcomes import Planned
from orders.states import FINISHED, State

AnyRow = Row[*tuple[Any, ...]]
FINAL = [state.value for state in FINISHED]
"""What `orders.state` holds of an order that is finished."""


def upsert(ledger: Ledger, table: Any) -> Any:
    """An INSERT that can be told what to do on a conflict, of the database that the ledger is in."""
    return postgresql.insert(table) if ledger.postgresql else sqlite.insert(table)


# -- plan -------------------------------------------------------------------------------------------------------------


def plan_rows(order_id: int, start: int, plan: Iterable[Planned]) -> list[dict[str, Any]]:
    """The rows of a plan, or of the part of it that begins at position `start`."""
    return [
        {
            "order_id": order_id,
            "position": start + offset,
            "name": planned.name,
            "awaits": planned.awaits,
            "recheck": None if planned.recheck is None else max(1, round(planned.recheck)),
            "data": json.dumps(planned.data),
        }
        for offset, planned in enumerate(plan)
    ]


def write_rest(connection: Connection, order_id: int, start: int, rest: Sequence[Planned]) -> None:
    """Replace an order's plan from position `start` on."""
    connection.execute(delete(steps).where(steps.c.order_id == order_id, steps.c.position >= start))
    if rest:
        connection.execute(insert(steps), plan_rows(order_id, start, rest))


def replan(connection: Connection, row: AnyRow, at: int, rest: Sequence[Planned], ending: State) -> str:
    """Let an order that no worker holds go on at position `at` with `rest`, and finish in `ending`: its new state."""
    write_rest(connection, row.id, at, rest)
    first = rest[0] if rest else None
    state = State.READY if first else ending
    connection.execute(
        update(orders)
        .where(orders.c.id == row.id)
        .values(
            state=state,
            position=at,
            step=first.name if first else None,
            lane=lane_of(row.system, row.account, first.name if first else None),
            awaits=first.awaits if first else None,
            wake_at=now() if first else null(),
            tries=0,
            failures=0,
            crashes=0,
            ending=ending,
            interrupt=null(),
            error=null(),
            version=orders.c.version + 1,
            updated_at=now(),
        )
    )
    return state.value


# -- timeline ---------------------------------------------------------------------------------------------------------


def attempt_values() -> dict[str, Any]:
    """The columns of an entry, but its order, and the parameters that fill them."""
    return {
        "position": bindparam("at", type_=Integer),
        "step": bindparam("name", type_=String),
        "number": bindparam("number", type_=Integer),
        "outcome": bindparam("outcome", type_=String),
        "detail": bindparam("detail", type_=String),
        "status": bindparam("status", type_=Integer),
        "worker": bindparam("by", type_=String),
        "started_at": bindparam("started_at", type_=UTC),
        "finished_at": now(),
    }


NOTE = insert(attempts).values(order_id=bindparam("order"), **attempt_values())
"""Writes an entry: what `told_of` returns, or a worker's try with its order."""


def told_of(row: AnyRow, outcome: str, reason: str) -> dict[str, Any]:
    """An entry of the timeline that no worker's try made."""
    return {
        "order": row.id,
        "at": row.position,
        "name": row.step or "",
        "number": row.tries,
        "outcome": outcome,
        "detail": reason,
        "status": None,
        "by": row.worker,
        "started_at": row.claimed_at,
    }


# -- audit ------------------------------------------------------------------------------------------------------------


def write_audit_on(connection: Connection, who: str, action: str, order_id: int | None, detail: str) -> None:
    """Note who did what, as a part of the caller's transaction on `connection`."""
    connection.execute(insert(audit).values(at=now(), who=who, action=action, order_id=order_id, detail=detail))
