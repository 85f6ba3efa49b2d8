"""An order is stopped from outside: cancelled, refused by the ERP, or put into a person's hands."""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, null, select, update

from databases.clock import now
from ledger.connection import Ledger
from ledger.models import orders, signals, steps
from ledger.rows import FINAL, NOTE, AnyRow, replan, told_of, write_audit_on
from orders.lanes import lane_of
from orders.outcomes import Planned
from orders.states import State


def interrupt(
    ledger: Ledger, order_id: int, reason: str, rest: Sequence[Planned], ending: State, *, who: str | None = None
) -> str | None:
    """Stop what has not run of an order's plan and do `rest` instead, then finish in `ending`.

    An order a worker holds is marked, and interrupted when its step has ended. Returns the new state; None when the
    order is finished already or on its way to `ending`. Audited when a person (`who`) wants it."""
    with ledger.transaction() as connection:
        row = connection.execute(select(orders).where(orders.c.id == order_id).with_for_update()).one_or_none()
        if row is None or row.state in FINAL or row.ending != State.DONE:
            return None
        if who is not None:
            write_audit_on(connection, who, ending.value, order_id, reason)
        if row.state == State.RUNNING:
            wish = json.dumps({"reason": reason, "rest": [[p.name, p.awaits, p.data] for p in rest], "ending": ending})
            connection.execute(
                update(orders)
                .where(orders.c.id == order_id)
                .values(interrupt=wish, version=orders.c.version + 1, updated_at=now())
            )
            return str(row.state)
        return _go_to_rest(connection, row, reason, rest, ending)


def apply_interrupt(ledger: Ledger, order_id: int) -> str | None:
    """Carry out the interrupt that waited for the order's step to end."""
    with ledger.transaction() as connection:
        row = connection.execute(select(orders).where(orders.c.id == order_id).with_for_update()).one()
        if row.interrupt is None or row.state == State.RUNNING:
            return None
        wish = json.loads(row.interrupt)
        if row.state in FINAL:
            connection.execute(update(orders).where(orders.c.id == order_id).values(interrupt=null()))
            return str(row.state)
        if wish["ending"] == State.PARKED:
            return _stop_at_erp(connection, row, wish["reason"])
        rest = [Planned(name, awaits, data=data) for name, awaits, data in wish["rest"]]
        return _go_to_rest(connection, row, wish["reason"], rest, State(wish["ending"]))


def _go_to_rest(connection: Connection, row: AnyRow, reason: str, rest: Sequence[Planned], ending: State) -> str:
    """Replace what has not run of the plan by `rest`, and finish in `ending`."""
    state = replan(connection, row, row.position, rest, ending)
    outcome = "replanned" if ending == State.DONE else ending.value  # its step is not done, only left
    connection.execute(NOTE, told_of(row, outcome, reason))
    return state


def stop_for_a_person(ledger: Ledger, order_id: int, source: str, reason: str) -> bool:
    """Park an order because of what `source` told, once: after a replay the same telling does not stop it again.

    An order a worker holds is parked when its step has ended. False: it was told before, or the order is finished."""
    with ledger.transaction() as connection:
        row = connection.execute(select(orders).where(orders.c.id == order_id).with_for_update()).one()
        told = select(signals.c.id).where(signals.c.order_id == order_id, signals.c.source == source)
        if row.state in FINAL or connection.execute(told).one_or_none() is not None:
            return False
        if row.state == State.RUNNING:
            wish = {"reason": reason, "rest": None, "ending": State.PARKED}
            connection.execute(update(orders).where(orders.c.id == order_id).values(interrupt=json.dumps(wish)))
            return True
        _stop_at_erp(connection, row, reason)
    return True


def refusal_plan(data: dict[str, Any], reason: str) -> tuple[Planned, ...]:
    """What takes the place of the plan when the ERP refuses what a step with this `data` put there; empty: a person
    must act."""
    told = data.get("when_refused")
    return () if told is None else (Planned(told, data={"reason": reason}), Planned("erp.cancel"))


def _stop_at_erp(connection: Connection, row: AnyRow, reason: str) -> str:
    """The ERP refuses: tell the remote so where the plan provides for it, else park at the step that put the order
    into the ERP, so that a replay puts it there again."""
    put = connection.execute(
        select(steps)
        .where(
            steps.c.order_id == row.id,
            steps.c.position <= row.position,
            steps.c.name.in_(["erp.order", "erp.draft"]),
        )
        .order_by(steps.c.position.desc())
        .limit(1)
    ).one_or_none()
    rest = refusal_plan(json.loads(put.data), reason) if put is not None else ()
    if rest and row.ending == State.DONE:
        return _go_to_rest(connection, row, reason, rest, State.CANCELLED)
    at = (
        {}
        if put is None
        else {
            "position": put.position,
            "step": put.name,
            "awaits": put.awaits,
            "lane": lane_of(row.system, row.account, put.name),
        }
    )
    connection.execute(
        update(orders)
        .where(orders.c.id == row.id)
        .values(
            **at,
            tries=1,
            state=State.PARKED,
            error=reason,
            wake_at=null(),
            interrupt=null(),
            version=orders.c.version + 1,
            updated_at=now(),
        )
    )
    connection.execute(NOTE, told_of(row, State.PARKED.value, reason))
    return State.PARKED.value
