"""What is due is taken to be sent, and is sent again when its message is lost."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, literal, select, update

from databases.clock import later, now
from ledger.connection import Ledger
from ledger.leases import RESEND_AFTER
from ledger.models import DUE, SUSPECT, in_state, is_suspect, orders, steps
from ledger.rows import AnyRow
from ledger.signals import is_signalled
from orders.states import IN_FLIGHT, State


@dataclass(frozen=True, slots=True)
class ToSend:
    """An order that was just marked as queued, with the steps that may go now: (position, name), in order."""

    order_id: int
    links: tuple[tuple[int, str], ...]


def take_ready(ledger: Ledger, system: str, lane: str, limit: int) -> list[ToSend]:
    """Mark up to `limit` due orders of a lane as queued, oldest due first, and say what to send for each."""
    due = (
        select(orders.c.id)
        .where(
            orders.c.system == system,
            orders.c.lane == lane,
            orders.c.wake_at <= now(),
            in_state(DUE),
            orders.c.crashes < SUSPECT,
        )
        .order_by(orders.c.wake_at)
        .limit(limit)
    )
    return _queue(ledger, due)


def take_ready_orders(ledger: Ledger, order_ids: Sequence[int]) -> list[ToSend]:
    """The same for given orders, as far as they may go."""
    due = select(orders.c.id).where(
        orders.c.id.in_(order_ids),
        orders.c.wake_at <= now(),
        in_state(DUE),
        orders.c.crashes < SUSPECT,
    )
    return _queue(ledger, due)


def take_suspect(ledger: Ledger, system: str, lane: str) -> list[ToSend]:
    """One order that two workers died on, and only if no other such order is under way: alone, it can only take
    itself down."""
    other = orders.alias("other")
    under_way = select(other.c.id).where(in_state(IN_FLIGHT, other), is_suspect(other))
    due = (
        select(orders.c.id)
        .where(
            orders.c.system == system,
            orders.c.lane == lane,
            orders.c.wake_at <= now(),
            in_state(DUE),
            is_suspect(),
            ~under_way.exists(),
        )
        .order_by(orders.c.wake_at)
        .limit(1)
    )
    return _queue(ledger, due)


def _queue(ledger: Ledger, due: Select[Any]) -> list[ToSend]:
    with ledger.transaction() as connection:
        taken = connection.execute(
            update(orders)
            .where(orders.c.id.in_(due.with_for_update(skip_locked=True).scalar_subquery()))
            .values(
                state=State.QUEUED,
                wake_at=later(literal(RESEND_AFTER)),
                version=orders.c.version + 1,
                updated_at=now(),
            )
            .returning(orders.c.id, orders.c.position, orders.c.signalled)
        ).all()
        return _with_links(connection, taken)


def _with_links(connection: Connection, taken: Sequence[AnyRow]) -> list[ToSend]:
    if not taken:
        return []
    plans: dict[int, list[AnyRow]] = {}
    wanted = (
        select(steps.c.order_id, steps.c.position, steps.c.name, steps.c.awaits)
        .where(steps.c.order_id.in_([row.id for row in taken]))
        .order_by(steps.c.order_id, steps.c.position)
    )
    for step in connection.execute(wanted):
        plans.setdefault(step.order_id, []).append(step)
    return [ToSend(row.id, _may_go(plans[row.id], row.position, row.signalled)) for row in sorted(taken)]


def _may_go(plan: Iterable[AnyRow], position: int, signalled: str) -> tuple[tuple[int, str], ...]:
    """From the current step to the first later one that still waits for its signal. The current one may go: the order
    is due, if only because its time has come (`Again.after`)."""
    links: list[tuple[int, str]] = []
    for step in plan:
        if step.position < position:
            continue
        if step.position > position and step.awaits is not None and not is_signalled(signalled, step.awaits):
            break
        links.append((step.position, step.name))
    return tuple(links)


def not_sent(ledger: Ledger, order_ids: Sequence[int]) -> None:
    """The broker did not take the messages: the orders are ready again, at once."""
    with ledger.statement() as connection:
        connection.execute(
            update(orders)
            .where(orders.c.id.in_(order_ids), orders.c.state == State.QUEUED)
            .values(state=State.READY, wake_at=now(), updated_at=now())
        )


def resend(ledger: Ledger, order_ids: Sequence[int], *, lost: bool) -> None:
    """Queued orders whose message is overdue: `lost` makes them ready to be sent again, else they get more time."""
    values: dict[str, Any] = (
        {"state": State.READY, "wake_at": now()} if lost else {"wake_at": later(literal(RESEND_AFTER))}
    )
    with ledger.statement() as connection:
        connection.execute(
            update(orders)
            .where(orders.c.id.in_(order_ids), orders.c.state == State.QUEUED, orders.c.wake_at <= now())
            .values(**values)
        )
