"""What comes in is written down: events with the orders they make, what nobody can do anything with, and news."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, func, insert, literal, null, select, text, update

from databases.clock import later, now
from ledger.connection import Ledger
from ledger.direct import Direct
from ledger.leases import RESEND_AFTER
from ledger.models import events, orders, steps
from ledger.rows import FINAL, NOTE, AnyRow, plan_rows, replan, told_of, upsert
from orders.arrival import Arrival
from orders.lanes import lane_of
from orders.outcomes import Planned
from orders.states import State


@dataclass(frozen=True, slots=True)
class TakenIn:
    """What `take_in` found: ids of new orders, how many events were new, events that contradict a known one, and the
    accounts of which known orders have news."""

    new: tuple[int, ...] = ()
    events: int = 0
    conflicts: int = 0
    news: frozenset[str] = frozenset()


def take_in(ledger: Ledger, system: str, arrivals: Sequence[Arrival]) -> TakenIn:
    """Write events, orders and plans, in one commit. Doubles change nothing; a known order with news is looked at
    again at once if it was waiting to be."""
    if not arrivals:
        return TakenIn()
    if ledger.postgresql and len(arrivals) == 1 and not arrivals[0].due:
        return _take_in_one(ledger, system, arrivals[0])
    with ledger.transaction() as connection:
        return take_in_on(connection, ledger, system, arrivals)


def take_in_on(connection: Connection, ledger: Ledger, system: str, arrivals: Sequence[Arrival]) -> TakenIn:
    """`take_in` as a part of the caller's transaction on `connection`."""
    fresh = _insert_events(connection, ledger, system, arrivals)
    if not fresh:
        return TakenIn()
    new = _insert_orders(connection, ledger, system, fresh)
    known = [arrival for arrival in fresh if (arrival.account, arrival.external_id) not in new]
    conflicts = _mark_conflicts(connection, system, known)
    news = frozenset(arrival.account for arrival in known if _look_again(connection, system, arrival))
    return TakenIn(tuple(new.values()), len(fresh), conflicts, news)


_TAKE_IN_ONE = Direct(
    text(
        """
        WITH known AS (
            SELECT id FROM orders WHERE system = :system AND external_id = :external_id AND account = :account
        ), event AS (
            INSERT INTO events
                (system, account, dedupe_key, body_hash, kind, external_id, body, received_at, news_at)
            VALUES
                (:system, :account, :dedupe_key, :body_hash, :kind, :external_id, :body, now(),
                 CASE WHEN CAST(:news AS boolean) AND EXISTS (SELECT 1 FROM known) THEN now() END)
            ON CONFLICT DO NOTHING RETURNING id
        ), made AS (
            INSERT INTO orders
                (system, account, external_id, reference, state, position, step, lane, awaits,
                 created_at, updated_at, wake_at)
            SELECT :system, :account, :external_id, :reference, :state, 0, :step, :lane, :awaits, now(), now(), now()
            FROM event WHERE CAST(:makes AS boolean) AND NOT EXISTS (SELECT 1 FROM known)
            ON CONFLICT DO NOTHING RETURNING id
        ), planned AS (
            INSERT INTO steps (order_id, position, name, awaits, recheck, data)
            SELECT made.id, one.position, one.name, one.awaits, one.recheck, one.data
            FROM made, json_to_recordset(CAST(:plan AS json))
                AS one(position smallint, name text, awaits text, recheck integer, data text)
        )
        SELECT (SELECT count(*) FROM event) AS events, (SELECT id FROM made) AS made
        """
    ),
    ["events", "made"],
)


def _take_in_one(ledger: Ledger, system: str, arrival: Arrival) -> TakenIn:
    """As `take_in`, for one event on PostgreSQL: in one round trip if it is a double or makes an order, as nearly all
    webhooks do. One of a known order is marked as news by it, so that what follows may be cut off; not for what is
    `due`, which nobody would think of again."""
    with ledger.statement() as connection:
        row = _TAKE_IN_ONE.one_or_none(connection, _as_values(system, arrival))
    if row.made is not None or row.events == 0:
        return TakenIn((row.made,) if row.made is not None else (), row.events)
    with ledger.transaction() as connection:
        conflicts = _mark_conflicts(connection, system, [arrival])
        news = _look_again(connection, system, arrival)
    return TakenIn((), 1, conflicts, frozenset({arrival.account} if news else ()))


def _as_values(system: str, arrival: Arrival) -> dict[str, Any]:
    makes = bool(arrival.plan) and arrival.external_id is not None
    first = arrival.plan[0] if makes else Planned("")
    return {
        "system": system,
        "account": arrival.account,
        "dedupe_key": arrival.dedupe_key,
        "body_hash": _body_hash(arrival.body),
        "kind": arrival.kind,
        "external_id": arrival.external_id,
        "body": arrival.body,
        "news": arrival.news,
        "makes": makes,
        "reference": arrival.reference,
        "state": _first_state(first),
        "step": first.name,
        "lane": lane_of(system, arrival.account, first.name),
        "awaits": first.awaits,
        "plan": json.dumps(plan_rows(0, 0, arrival.plan)),
    }


def _first_state(first: Planned) -> str:
    return State.READY.value if first.awaits is None else State.WAITING.value


def _body_hash(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()


def _insert_events(connection: Connection, ledger: Ledger, system: str, arrivals: Sequence[Arrival]) -> list[Arrival]:
    by_key = {(a.account, a.dedupe_key, _body_hash(a.body)): a for a in arrivals}
    rows = [
        {
            "system": system,
            "account": account,
            "dedupe_key": key,
            "body_hash": body_hash,
            "kind": a.kind,
            "external_id": a.external_id,
            "body": a.body,
        }
        for (account, key, body_hash), a in by_key.items()
    ]
    statement = (
        upsert(ledger, events)
        .values(received_at=now())
        .on_conflict_do_nothing()
        .returning(events.c.account, events.c.dedupe_key, events.c.body_hash)
    )
    return [by_key[tuple(row)] for row in connection.execute(statement, rows)]


def _insert_orders(
    connection: Connection, ledger: Ledger, system: str, arrivals: Iterable[Arrival]
) -> dict[tuple[str, str], int]:
    first: dict[tuple[str, str], Arrival] = {}
    for arrival in arrivals:
        if arrival.plan and arrival.external_id is not None:
            first.setdefault((arrival.account, arrival.external_id), arrival)
    if not first:
        return {}
    statement = (
        upsert(ledger, orders)
        .values(created_at=now(), updated_at=now(), wake_at=now())
        .on_conflict_do_nothing()
        .returning(orders.c.account, orders.c.external_id, orders.c.id)
    )
    rows = [
        {
            "system": system,
            "account": account,
            "external_id": external_id,
            "reference": a.reference,
            "state": _first_state(a.plan[0]),
            "position": 0,
            "step": a.plan[0].name,
            "lane": lane_of(system, account, a.plan[0].name),
            "awaits": a.plan[0].awaits,
        }
        for (account, external_id), a in first.items()
    ]
    new = {(account, external_id): id_ for account, external_id, id_ in connection.execute(statement, rows)}
    if new:
        plans = [row for key, id_ in new.items() for row in plan_rows(id_, 0, first[key].plan)]
        connection.execute(insert(steps), plans)
    return new


def _mark_conflicts(connection: Connection, system: str, known: Sequence[Arrival]) -> int:
    """The same dedupe key with another body: kept aside and shown, not swallowed."""
    marked = 0
    for arrival in known:
        same_key = and_(
            events.c.system == system,
            events.c.account == arrival.account,
            events.c.dedupe_key == arrival.dedupe_key,
        )
        bodies = connection.execute(select(func.count()).where(same_key)).scalar_one()
        if bodies > 1:
            problem = f"{bodies} different bodies came under the key {arrival.dedupe_key}"
            connection.execute(update(events).where(same_key, events.c.problem.is_(None)).values(problem=problem))
            marked += 1
    return marked


def _look_again(connection: Connection, system: str, arrival: Arrival) -> bool:
    """Let a known order go on where the event says so; True when a worker is to read it again."""
    row = connection.execute(
        select(orders)
        .where(
            orders.c.system == system,
            orders.c.account == arrival.account,
            orders.c.external_id == arrival.external_id,
        )
        .with_for_update()
    ).one_or_none()
    if row is None:
        return False
    if arrival.news:
        connection.execute(update(events).where(*_same_event(system, arrival)).values(news_at=now()))
    if row.state in (State.WAITING, State.PARKED) and row.wake_at is not None:
        connection.execute(update(orders).where(orders.c.id == row.id).values(wake_at=now()))
    elif arrival.due and row.state == State.IGNORED:
        replan(connection, row, 0, arrival.plan, State.DONE)
        connection.execute(NOTE, told_of(row, "reopened", f"{arrival.kind}: it is to be done after all"))
    elif arrival.due and row.state in FINAL:
        _show_set_back(connection, system, arrival, row)
    return arrival.news


def _same_event(system: str, arrival: Arrival) -> tuple[Any, ...]:
    return (
        events.c.system == system,
        events.c.account == arrival.account,
        events.c.dedupe_key == arrival.dedupe_key,
        events.c.body_hash == _body_hash(arrival.body),
    )


def _show_set_back(connection: Connection, system: str, arrival: Arrival, row: AnyRow) -> None:
    again = "enter it as a new order" if row.state == State.CANCELLED else "replay it"
    problem = f"{arrival.kind} came for order {row.id}, which is {row.state} here: {again} if it is to be done again"
    connection.execute(
        update(events)
        .where(
            events.c.system == system,
            events.c.account == arrival.account,
            events.c.dedupe_key == arrival.dedupe_key,
            events.c.problem.is_(None),
        )
        .values(problem=problem)
    )


# -- odd events -------------------------------------------------------------------------------------------------------


def keep_odd_event(
    ledger: Ledger,
    system: str,
    account: str,
    dedupe_key: str,
    kind: str,
    body: str,
    problem: str,
    external_id: str | None = None,
    *,
    connection: Connection | None = None,
) -> bool:
    """Keep an event that nothing can be done with, so that a person sees it. False: it was kept before.

    `external_id`: whose it will be, should that become known. `connection`: of the transaction it is a part of."""
    with ledger.statement() if connection is None else nullcontext(connection) as current:
        row = current.execute(
            upsert(ledger, events)
            .values(
                system=system,
                account=account,
                dedupe_key=dedupe_key,
                body_hash=_body_hash(body),
                kind=kind,
                external_id=external_id,
                body=body,
                problem=problem,
                received_at=now(),
            )
            .on_conflict_do_nothing()
            .returning(events.c.id)
        ).one_or_none()
    return row is not None


def settle_events(ledger: Ledger, event_ids: Sequence[int]) -> None:
    """Events that were odd have found their order: nobody needs to look at them any more."""
    with ledger.statement() as connection:
        connection.execute(update(events).where(events.c.id.in_(event_ids)).values(problem=null()))


# -- news -------------------------------------------------------------------------------------------------------------


def settle_news(ledger: Ledger, event_ids: Sequence[int], problem: str | None = None) -> None:
    """The order of these events was read again; `problem`: what a person should see of it."""
    values = {"news_at": null()} | ({"problem": problem} if problem is not None else {})
    with ledger.statement() as connection:
        connection.execute(update(events).where(events.c.id.in_(event_ids)).values(**values))


def put_off_news(ledger: Ledger, event_ids: Sequence[int], seconds: float) -> None:
    """The order of these events could not be read: again in so many seconds."""
    with ledger.statement() as connection:
        connection.execute(
            update(events)
            .where(events.c.id.in_(event_ids), events.c.news_at.is_not(None))
            .values(news_at=later(literal(seconds)))
        )


def wake(ledger: Ledger, order_id: int) -> None:
    """There is news of an order that would look again by itself at some time: now. What came while a worker held it
    has not woken it."""
    with ledger.statement() as connection:
        connection.execute(
            update(orders)
            .where(
                orders.c.id == order_id,
                orders.c.state.in_([State.WAITING, State.PARKED]),
                orders.c.wake_at > now(),
            )
            .values(wake_at=now())
        )


def overdue_news(ledger: Ledger) -> list[tuple[str, str]]:
    """(system, account) of which news lie unread though a worker should have been told; told of once, for a while."""
    with ledger.statement() as connection:
        found = connection.execute(
            update(events)
            .where(events.c.news_at <= later(literal(-RESEND_AFTER)))
            .values(news_at=now())
            .returning(events.c.system, events.c.account)
        )
        return sorted({(system, account) for system, account in found})
