"""Whether a remote may be called, and when next: the gates of the lanes."""

from sqlalchemy import func, literal, null, or_, select, update

from databases.clock import later, now
from ledger.connection import Ledger
from ledger.models import gates
from ledger.rows import upsert


def close_gate(ledger: Ledger, lane: str, seconds: float, reason: str) -> bool:
    """Leave a remote alone for so many seconds. True when it was open: one alert, not one per order."""
    with ledger.transaction() as connection:
        was_open = (
            connection.execute(select(gates.c.lane).where(gates.c.lane == lane, gates.c.closures > 0)).one_or_none()
            is None
        )
        connection.execute(
            upsert(ledger, gates)
            .values(lane=lane, closed_until=later(literal(seconds)), closures=1, since=now(), reason=reason)
            .on_conflict_do_update(
                index_elements=["lane"],
                set_={
                    "closed_until": later(literal(seconds)),
                    "closures": gates.c.closures + 1,
                    "since": func.coalesce(gates.c.since, now()),
                    "reason": reason,
                },
                where=or_(gates.c.closed_until.is_(None), gates.c.closed_until <= now()),
            )
        )
    return was_open


def open_gate(ledger: Ledger, lane: str) -> bool:
    """The remote answers again. True when it was closed until now.

    A call that left before the gate closed proves nothing: the time that the remote asked for is kept."""
    with ledger.statement() as connection:
        row = connection.execute(
            update(gates)
            .where(
                gates.c.lane == lane,
                gates.c.closures > 0,
                or_(gates.c.closed_until.is_(None), gates.c.closed_until <= now()),
            )
            .values(closed_until=null(), closures=0, since=null(), reason=null())
            .returning(gates.c.lane)
        ).one_or_none()
    return row is not None


def take_call(ledger: Ledger, lane: str, interval: float, longest: float) -> float:
    """Reserve the lane's next call, one every `interval` seconds for all workers together.

    Returns the seconds to wait before it may leave; more than `longest` means that nothing was reserved."""
    with ledger.transaction() as connection:
        connection.execute(upsert(ledger, gates).values(lane=lane).on_conflict_do_nothing())
        row = connection.execute(
            select(gates.c.next_call_at, now().label("now")).where(gates.c.lane == lane).with_for_update()
        ).one()
        wait = max(0.0, (row.next_call_at - row.now).total_seconds()) if row.next_call_at else 0.0
        if wait <= longest:
            connection.execute(
                update(gates).where(gates.c.lane == lane).values(next_call_at=later(literal(wait + interval)))
            )
    return wait
