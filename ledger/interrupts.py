"""An order is stopped from outside: cancelled, refused by the ERP, or put into a person's hands."""

import json
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, null, select, update

from databases.clock import now
from ledger.connection import Ledger
from ledger.intake import keep_odd_event
from ledger.models import orders, signals, steps
from ledger.rows import FINAL, NOTE, AnyRow, replan, told_of, write_audit_on
from orders.lanes import lane_of
from orders.outcomes import Planned
from orders.states import State

_HANDED_OVER = ("erp.order", "erp.draft")


def interrupt(
    ledger: Ledger,
    order_id: int,
    reason: str,
    rest: Sequence[Planned],
    ending: State,
    *,
    who: str | None = None,
    only: tuple[str, Collection[State]] | None = None,
) -> str | None:
    """Stop what has not run of an order's plan and do `rest` instead, then finish in `ending`.

    An order a worker holds is marked, and interrupted when its step has ended. `only`: a step, and the states in which
    the order must stand before it. Returns the new state; None when the order stands elsewhere, is finished already or
    on its way to being cancelled. Audited when a person (`who`) wants it."""
    with ledger.transaction() as connection:
        row = connection.execute(select(orders).where(orders.c.id == order_id).with_for_update()).one_or_none()
        if row is None or row.ending != State.DONE or _wishes_a_cancellation(row) or _is_over(connection, row):
            return None
        if only is not None and (row.step != only[0] or row.state not in only[1]):
            return None
        if who is not None:
            write_audit_on(connection, who, ending.value, order_id, reason)
        if row.state == State.RUNNING:
            plan = [[planned.name, planned.awaits, planned.data] for planned in rest]
            _wish(connection, order_id, {"reason": reason, "rest": plan, "ending": ending})
            return str(row.state)
        return _go_to_rest(connection, row, reason, rest, ending)


def _is_over(connection: Connection, row: AnyRow) -> bool:
    """Whether nothing can stop the order any more. One of which nothing was left to do once it was handed to the ERP is
    not: the ERP has looked at it only afterwards."""
    if row.state not in FINAL:
        return False
    last = select(steps.c.name).where(steps.c.order_id == row.id).order_by(steps.c.position.desc()).limit(1)
    return row.state != State.DONE or connection.execute(last).scalar_one_or_none() not in _HANDED_OVER


def _wishes_a_cancellation(row: AnyRow) -> bool:
    return row.interrupt is not None and json.loads(row.interrupt)["ending"] == State.CANCELLED


def _wish(connection: Connection, order_id: int, wish: dict[str, Any]) -> None:
    """Note what is to be done when the step that a worker is at has ended."""
    values = {"interrupt": json.dumps(wish), "version": orders.c.version + 1, "updated_at": now()}
    connection.execute(update(orders).where(orders.c.id == order_id).values(values))


def apply_interrupt(ledger: Ledger, order_id: int) -> str | None:
    """Carry out the interrupt that waited for the order's step to end. If that was the last one a person is told: see
    `intake.keep_odd_event`."""
    with ledger.transaction() as connection:
        row = connection.execute(select(orders).where(orders.c.id == order_id).with_for_update()).one()
        if row.interrupt is None or row.state == State.RUNNING:
            return None
        wish = json.loads(row.interrupt)
        if row.state in FINAL and (wish["ending"] == State.DONE or _is_over(connection, row)):
            return _came_too_late(connection, ledger, row, wish["reason"])
        if wish["ending"] == State.PARKED:
            return _stop_at_erp(connection, row, wish["reason"])
        rest = [Planned(name, awaits, data=data) for name, awaits, data in wish["rest"]]
        return _go_to_rest(connection, row, wish["reason"], rest, State(wish["ending"]))


def _came_too_late(connection: Connection, ledger: Ledger, row: AnyRow, reason: str) -> str:
    connection.execute(update(orders).where(orders.c.id == row.id).values(interrupt=null()))
    if row.state == State.DONE:
        problem = f"{reason}, but order {row.id} was done by then: see to it by hand"
        key = f"late:{row.id}:{row.version}"
        where = row.system, row.account
        keep_odd_event(ledger, *where, key, "late", "{}", problem, row.external_id, connection=connection)
    return str(row.state)


def _go_to_rest(connection: Connection, row: AnyRow, reason: str, rest: Sequence[Planned], ending: State) -> str:
    """Replace what has not run of the plan by `rest`, and finish in `ending`."""
    state = replan(connection, row, row.position, rest, ending)
    outcome = "replanned" if ending == State.DONE else ending.value  # its step is not done, only left
    connection.execute(NOTE, told_of(row, outcome, reason))
    return state


def stop_for_a_person(ledger: Ledger, order_id: int, source: str, reason: str) -> bool:
    """Park an order because of what `source` told, once: after a replay the same telling does not stop it again.

    An order a worker holds is parked when its step has ended. False: it was told before, or the order is finished, or
    on its way to being cancelled, whoever refuses it."""
    with ledger.transaction() as connection:
        row = connection.execute(select(orders).where(orders.c.id == order_id).with_for_update()).one()
        told = select(signals.c.id).where(signals.c.order_id == order_id, signals.c.source == source)
        if row.ending != State.DONE or _wishes_a_cancellation(row) or _is_over(connection, row):
            return False
        if connection.execute(told).one_or_none() is not None:
            return False
        if row.state == State.RUNNING:
            _wish(connection, order_id, {"reason": reason, "rest": None, "ending": State.PARKED})
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
            steps.c.name.in_(_HANDED_OVER),
        )
        .order_by(steps.c.position.desc())
        .limit(1)
    ).one_or_none()
    rest = refusal_plan(json.loads(put.data), reason) if put is not None else ()
    if rest:
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
