"""What keeps the fleet going: signs of life, orders of lost workers, what waited long enough, and ticks."""

from typing import Any

from sqlalchemy import Select, and_, delete, literal, null, or_, select, update

from databases.clock import later, now
from ledger.connection import Ledger
from ledger.leases import WORKER_LEASE
from ledger.models import orders, steps, ticks, workers
from ledger.rows import NOTE, told_of, upsert
from orders.lanes import lane_of
from orders.states import State


def beat(ledger: Ledger, worker: str) -> None:
    """A worker's sign of life."""
    with ledger.statement() as connection:
        connection.execute(
            upsert(ledger, workers)
            .values(name=worker, started_at=now(), seen_at=now())
            .on_conflict_do_update(index_elements=["name"], set_={"seen_at": now()})
        )


def sign_off(ledger: Ledger, worker: str) -> None:
    """A worker leaves in good order: what it still holds is taken over at once."""
    with ledger.statement() as connection:
        connection.execute(delete(workers).where(workers.c.name == worker))


def take_over(ledger: Ledger, order_id: int, fence: int, *, park_at: int, reason: str) -> str | None:
    """Take a running order from a worker that is gone; its next try looks before it writes. None: it came back.

    The `park_at`-th worker lost on the same step parks the order: it may be what kills them."""
    with ledger.transaction() as connection:
        row = connection.execute(
            select(orders)
            .where(orders.c.id == order_id, orders.c.fence == fence, orders.c.state == State.RUNNING)
            .with_for_update()
        ).one_or_none()
        if row is None:
            return None
        parks = row.crashes + 1 >= park_at
        state = State.PARKED if parks else State.READY
        connection.execute(
            update(orders)
            .where(orders.c.id == order_id)
            .values(
                state=state,
                crashes=orders.c.crashes + 1,
                fence=orders.c.fence + 1,
                worker=null(),
                wake_at=null() if parks else now(),
                error=f"{row.crashes + 1} workers in a row were lost on {row.step}: {reason}" if parks else reason,
                version=orders.c.version + 1,
                updated_at=now(),
            )
        )
        connection.execute(NOTE, told_of(row, "lost", reason))
        return state.value


def recheck(ledger: Ledger, order_id: int) -> None:
    """A waiting or parked order whose time has come: its step runs again, or the one before it if the plan says that
    this one is to be asked (`Planned.recheck`)."""
    with ledger.transaction() as connection:
        row = connection.execute(
            select(orders)
            .where(
                orders.c.id == order_id,
                orders.c.state.in_([State.WAITING, State.PARKED]),
                orders.c.wake_at <= now(),
            )
            .with_for_update()
        ).one_or_none()
        if row is None:
            return
        step = connection.execute(_step_at(order_id, row.position)).one()
        if row.state == State.WAITING and step.recheck is not None and row.position > 0:
            step = connection.execute(_step_at(order_id, row.position - 1)).one()
        connection.execute(
            update(orders)
            .where(orders.c.id == order_id)
            .values(
                state=State.READY,
                position=step.position,
                step=step.name,
                lane=lane_of(row.system, row.account, step.name),
                awaits=step.awaits,
                tries=1,
                wake_at=now(),
                version=orders.c.version + 1,
                updated_at=now(),
            )
        )


def _step_at(order_id: int, position: int) -> Select[Any]:
    return select(steps).where(steps.c.order_id == order_id, steps.c.position == position)


def take_tick(ledger: Ledger, name: str, every: float, worker: str) -> bool:
    """Whether this worker is to do the tick called `name` now: at most one does, every so many seconds.

    It holds the tick until `end_tick`, or until the worker is dead. A holder may take it again: its `end_tick` may
    have been lost with the connection, and only the worker itself knows whether it is still at it."""
    alive = select(workers.c.name).where(
        workers.c.name == ticks.c.holder, workers.c.seen_at > later(literal(-WORKER_LEASE))
    )
    with ledger.statement() as connection:
        row = connection.execute(
            upsert(ledger, ticks)
            .values(name=name, next_at=later(literal(every)), holder=worker)
            .on_conflict_do_update(
                index_elements=["name"],
                set_={"next_at": later(literal(every)), "holder": worker},
                where=and_(
                    ticks.c.next_at <= now(), or_(ticks.c.holder.is_(None), ticks.c.holder == worker, ~alive.exists())
                ),
            )
            .returning(ticks.c.name)
        ).one_or_none()
    return row is not None


def end_tick(ledger: Ledger, name: str, worker: str, *, again_now: bool = False) -> None:
    """The tick's work is over; with `again_now` the next one need not wait for its time."""
    values: dict[str, Any] = {"holder": null()} | ({"next_at": now()} if again_now else {})
    with ledger.statement() as connection:
        connection.execute(update(ticks).where(ticks.c.name == name, ticks.c.holder == worker).values(**values))
