"""What a person has an order do: replay, skip, release; and the audit, which says who did what."""

import json
from typing import Any

from sqlalchemy import Connection, Select, literal, null, select, update

from databases.clock import later, now
from ledger.connection import Ledger
from ledger.models import orders, steps
from ledger.rows import FINAL, NOTE, AnyRow, told_of, write_audit_on
from ledger.signals import is_signalled
from orders.lanes import lane_of
from orders.states import State


class MovedOn(Exception):
    """The order has changed since it was looked at."""


def replay(
    ledger: Ledger, order_id: int, version: int, position: int | None, who: str, *, acknowledged: bool = False
) -> None:
    """Let an order go again from `position` (or where it stands), as it was at `version`; audited.

    From here on its steps look before they write. `acknowledged`: a step in doubt may make its effect (again), see
    `tasks.base.Job`. Raises `MovedOn` when the order is no longer as the preview showed it."""
    with ledger.transaction() as connection:
        row = _as_previewed(connection, order_id, version)
        at = row.position if position is None else position
        step = connection.execute(select(steps).where(steps.c.order_id == order_id, steps.c.position == at)).one()
        tries = max(row.tries, 1)
        facts = json.loads(row.facts) | {"replayed": True}
        if acknowledged:
            facts["acknowledged"] = [at, step.name, tries + 1]
        ending = State.DONE if row.ending == State.IGNORED else row.ending
        begun = at == row.position and _has_begun(row, step)
        _stand_at(connection, row, step, at_once=begun, tries=tries, facts=json.dumps(facts), ending=ending)
        write_audit_on(
            connection, who, "replay", order_id, f"from {step.name}{', acknowledged' if acknowledged else ''}"
        )


def _as_previewed(connection: Connection, order_id: int, version: int) -> AnyRow:
    row = connection.execute(select(orders).where(orders.c.id == order_id).with_for_update()).one()
    if row.version != version or row.state in (State.RUNNING, State.QUEUED):
        raise MovedOn(f"order {order_id} has moved on since the preview: look again")
    return row


def _has_begun(row: AnyRow, step: AnyRow) -> bool:
    """Whether the step where an order stands has run. What it waited for has come then, though the order may wait for
    it once more: for the rest of it."""
    looks_again = row.state == State.WAITING and row.wake_at is not None and step.recheck is None
    return looks_again or row.state in (State.PARKED, State.IN_DOUBT, State.RETRYING)


def _stand_at(
    connection: Connection, row: AnyRow, step: AnyRow, *, tries: int, at_once: bool = False, **values: Any
) -> State:
    """Put an order that nobody holds before a step of its plan: it goes at once, or waits for the step's signal."""
    waits = not at_once and step.awaits is not None and not is_signalled(row.signalled, step.awaits)
    state = State.WAITING if waits else State.READY
    asleep = null() if step.recheck is None else later(literal(float(step.recheck)))
    connection.execute(
        update(orders)
        .where(orders.c.id == row.id)
        .values(
            state=state,
            position=step.position,
            step=step.name,
            lane=lane_of(row.system, row.account, step.name),
            awaits=step.awaits,
            tries=tries,
            failures=0,
            crashes=0,
            wake_at=asleep if waits else now(),
            error=null(),
            version=orders.c.version + 1,
            updated_at=now(),
            **values,
        )
    )
    return state


def skip(ledger: Ledger, order_id: int, version: int, who: str) -> None:
    """A person says that the effect in doubt did happen: the order goes on behind that step; audited.

    Raises `MovedOn` when the order is not in doubt any more, or not as it was at `version`."""
    with ledger.transaction() as connection:
        row = _as_previewed(connection, order_id, version)
        if row.state != State.IN_DOUBT:
            raise MovedOn(f"order {order_id} is not in doubt: it is {row.state}")
        following = connection.execute(
            select(steps).where(steps.c.order_id == order_id, steps.c.position == row.position + 1)
        ).one_or_none()
        facts = json.dumps(json.loads(row.facts) | {"replayed": True})
        if following is None:
            _finish(connection, row)
        else:
            _stand_at(connection, row, following, tries=0, facts=facts)
        connection.execute(NOTE, told_of(row, "skipped", f"{who} says that it did happen"))
        write_audit_on(connection, who, "skip", order_id, f"{row.step} did happen")


def _finish(connection: Connection, row: AnyRow) -> None:
    connection.execute(
        update(orders)
        .where(orders.c.id == row.id)
        .values(
            state=row.ending,
            position=row.position + 1,
            step=null(),
            lane=lane_of(row.system, row.account, None),
            awaits=null(),
            tries=0,
            failures=0,
            crashes=0,
            wake_at=null(),
            error=null(),
            version=orders.c.version + 1,
            updated_at=now(),
        )
    )


def release(ledger: Ledger, order_id: int, gate: str, who: str) -> str | None:
    """Let an order pass its payment gate (the step `gate`), now and later: the fact `released`; audited once.

    One that stands at the gate, or waits behind it for `paid`, goes through it again at once. Returns the order's
    state; None when it is finished."""
    with ledger.transaction() as connection:
        row = connection.execute(select(orders).where(orders.c.id == order_id).with_for_update()).one()
        if row.state in FINAL or row.ending != State.DONE:
            return None
        facts = json.loads(row.facts)
        known = "released" in facts
        at = connection.execute(_gate_of(row, gate)).one_or_none()
        state = str(row.state)
        if at is not None:
            state = _stand_at(connection, row, at, tries=1, facts=json.dumps(facts | {"released": True})).value
        elif not known:
            values = {"facts": json.dumps(facts | {"released": True}), "version": orders.c.version + 1}
            connection.execute(update(orders).where(orders.c.id == order_id).values(**values))
        if at is not None or not known:
            write_audit_on(connection, who, "release", order_id, f"stood at {row.step}: {row.error or row.state}")
        return state


def _gate_of(row: AnyRow, gate: str) -> Select[Any]:
    """The gate, if it is what holds the order."""
    position = {State.PARKED: row.position, State.WAITING: row.position - 1}.get(row.state, -1)
    if row.state == State.WAITING and row.awaits != "paid":
        position = -1
    return select(steps).where(steps.c.order_id == row.id, steps.c.position == position, steps.c.name == gate)


def write_audit(ledger: Ledger, who: str, action: str, order_id: int | None, detail: str) -> None:
    """Note who did what."""
    with ledger.statement() as connection:
        write_audit_on(connection, who, action, order_id, detail)
