"""Every write to the ledger, named. Each function is one transaction; its conditions are in the statements."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Connection,
    Float,
    Integer,
    Row,
    Select,
    String,
    Update,
    and_,
    bindparam,
    case,
    cast,
    delete,
    func,
    insert,
    literal,
    literal_column,
    null,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from databases.clock import later, now
from databases.types import UTC
from ledger.connection import Ledger
from ledger.direct import Direct, DirectSqlite, both_or_neither
from ledger.models import (
    DUE,
    SUSPECT,
    attempts,
    audit,
    cursors,
    documents,
    events,
    gates,
    in_state,
    is_suspect,
    orders,
    signals,
    steps,
    ticks,
    workers,
)
from orders.arrival import Arrival
from orders.lanes import lane_of
from orders.outcomes import Done, Planned, alternatives
from orders.states import FINISHED, IN_FLIGHT, State

STEP_LIMIT = 600.0  # seconds after which a claim is taken back even from a worker that looks alive
RESEND_AFTER = 5.0  # seconds after which a queued order's message is looked for
WORKER_LEASE = 6.0  # seconds without a sign of life after which a worker's orders are taken over

AnyRow = Row[*tuple[Any, ...]]

_FINAL = [state.value for state in FINISHED]


# -- intake -----------------------------------------------------------------------------------------------------------


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
    if ledger.postgresql and len(arrivals) == 1:
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
    webhooks do. One of a known order is marked as news by it, so that what follows may be cut off."""
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
        "plan": json.dumps(_plan_rows(0, 0, arrival.plan)),
    }


def _first_state(first: Planned) -> str:
    return State.READY.value if first.awaits is None else State.WAITING.value


def _upsert(ledger: Ledger, table: Any) -> Any:
    return postgresql.insert(table) if ledger.postgresql else sqlite.insert(table)


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
        _upsert(ledger, events)
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
        _upsert(ledger, orders)
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
        plans = [row for key, id_ in new.items() for row in _plan_rows(id_, 0, first[key].plan)]
        connection.execute(insert(steps), plans)
    return new


def _plan_rows(order_id: int, start: int, plan: Iterable[Planned]) -> list[dict[str, Any]]:
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
        _replan(connection, row, 0, arrival.plan, State.DONE)
        connection.execute(_NOTE, _told(row, "reopened", f"{arrival.kind}: it is to be done after all"))
    elif arrival.due and row.state in _FINAL:
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
    problem = f"{arrival.kind} came for order {row.id}, which is {row.state} here: replay it if it is to be done again"
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


# -- dispatch ---------------------------------------------------------------------------------------------------------


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


# -- claim and record -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Claim:
    """One worker's right to run one step of one order, until the worker's lease or `fence` is lost."""

    id: int
    system: str
    account: str
    external_id: str
    reference: str | None
    position: int
    step: str
    fence: int
    tries: int
    failures: int
    crashes: int
    signal_seq: int
    claimed_at: datetime
    plan: tuple[Planned, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    worker: str = ""

    @property
    def data(self) -> dict[str, Any]:
        """What the plan says about this step alone."""
        return self.plan[self.position].data

    @property
    def following(self) -> Planned | None:
        """The step after this one."""
        return self.plan[self.position + 1] if self.position + 1 < len(self.plan) else None


_CLAIMED = (
    orders.c.id,
    orders.c.system,
    orders.c.account,
    orders.c.external_id,
    orders.c.reference,
    orders.c.position,
    orders.c.step,
    orders.c.fence,
    orders.c.tries,
    orders.c.failures,
    orders.c.crashes,
    orders.c.signal_seq,
    orders.c.claimed_at,
    orders.c.facts,
)
_PLAN = {
    True: literal_column(
        "(SELECT json_agg(json_build_array(s.name, s.awaits, s.recheck, s.data) ORDER BY s.position)::text "
        "FROM steps s WHERE s.order_id = orders.id)",
        String,
    ).label("plan"),
    False: literal_column(
        "(SELECT json_group_array(json_array(s.name, s.awaits, s.recheck, s.data)) "
        "FROM (SELECT * FROM steps WHERE order_id = orders.id ORDER BY position) s)",
        String,
    ).label("plan"),
}


def _claim_statement(postgresql_: bool) -> Update:
    return (
        update(orders)
        .where(
            orders.c.id == bindparam("order"),
            orders.c.position == bindparam("at"),
            orders.c.step == bindparam("name"),
            or_(
                orders.c.state == State.QUEUED,
                and_(
                    or_(orders.c.state == State.READY, orders.c.state == State.RETRYING),
                    orders.c.wake_at <= now(),
                ),
            ),
            orders.c.interrupt.is_(None),
        )
        .values(
            state=State.RUNNING,
            worker=bindparam("by"),
            fence=orders.c.fence + 1,
            tries=orders.c.tries + 1,
            claimed_at=now(),
            wake_at=later(literal(STEP_LIMIT)),
            version=orders.c.version + 1,
            updated_at=now(),
        )
        .returning(*_CLAIMED, _PLAN[postgresql_])
    )


_CLAIM_NAMES = [column.name for column in (*_CLAIMED, _PLAN[True])]
_CLAIM = {
    True: Direct(_claim_statement(True), _CLAIM_NAMES),
    False: DirectSqlite(_claim_statement(False), _CLAIM_NAMES, times=["claimed_at"]),
}


def claim(ledger: Ledger, order_id: int, position: int, step: str, worker: str) -> Claim | None:
    """Take the order for this step, or None: it is done, held by another, waits, or has moved on."""
    values = {"order": order_id, "at": position, "name": step, "by": worker}
    with ledger.statement() as connection:
        row = _CLAIM[ledger.postgresql].one_or_none(connection, values)
    return None if row is None else _as_claim(row, worker)


def take_on(ledger: Ledger, order_id: int, fence: int, worker: str) -> Claim | None:
    """Take a claim from the process that holds it and handed it over; None when it has lost it meanwhile."""
    with ledger.statement() as connection:
        row = connection.execute(
            update(orders)
            .where(orders.c.id == order_id, orders.c.fence == fence, orders.c.state == State.RUNNING)
            .values(worker=worker, fence=orders.c.fence + 1, claimed_at=now(), wake_at=later(literal(STEP_LIMIT)))
            .returning(*_CLAIMED, _PLAN[ledger.postgresql])
        ).one_or_none()
    return None if row is None else _as_claim(row, worker)


def _as_claim(row: AnyRow, worker: str) -> Claim:
    values = row._asdict()
    plan = tuple(
        Planned(name, awaits, recheck, json.loads(data) if data != "{}" else {})
        for name, awaits, recheck, data in json.loads(values.pop("plan"))
    )
    return Claim(**{**values, "facts": json.loads(values["facts"])}, plan=plan, worker=worker)


@dataclass(frozen=True, slots=True)
class Recorded:
    """Where the order stands after a record: its new state and, if this worker holds on to it, the next claim."""

    state: str
    next: Claim | None = None
    interrupt: str | None = None


def is_signalled(signalled: str, awaits: str) -> bool:
    """Whether a signal of this name, or of one of its alternatives, has come, by the `signalled` column."""
    return any(f"|{name}|" in f"|{signalled}" for name in alternatives(awaits))


def _signalled_sql(name: Any) -> Any:
    return (literal("|") + orders.c.signalled).like(literal("%|") + name + literal("|%"))


def _held_where() -> tuple[Any, ...]:
    return (
        orders.c.id == bindparam("order"),
        orders.c.position == bindparam("at"),
        orders.c.fence == bindparam("held_fence"),
        orders.c.state == State.RUNNING,
    )


def _advance(kind: str, state_if_free: State) -> Update:
    """The order's UPDATE when a step is done. `kind`: 'last' (no further step), 'free' (the next may run) or
    'gated' (the next waits for a signal). `state_if_free`: RUNNING (this worker goes on), QUEUED (Celery sends the
    rest of the chain) or READY (dispatch sends)."""
    running = state_if_free is State.RUNNING
    free: Any = literal(state_if_free.value)
    if running:
        free = case((orders.c.interrupt.is_(None), free), else_=literal(State.READY.value))
    wake: dict[str, Any] = {
        State.RUNNING: later(literal(STEP_LIMIT)),
        State.QUEUED: later(literal(RESEND_AFTER)),
        State.READY: now(),
    }
    values: dict[str, Any] = {
        "fence": orders.c.fence + 1,
        "tries": 1 if running and kind != "last" else 0,
        "failures": 0,
        "crashes": 0,
        "error": null(),
        "version": orders.c.version + 1,
        "updated_at": now(),
        "claimed_at": now(),
        "position": orders.c.position + 1,
        "step": bindparam("next_step", type_=String),
        "lane": bindparam("next_lane", type_=String),
        "awaits": bindparam("next_awaits", type_=String),
    }
    if kind == "last":
        values |= {"state": orders.c.ending, "wake_at": null(), "worker": null()}
    elif kind == "free":
        values |= {"state": free, "wake_at": wake[state_if_free]}
        if not running:
            values["worker"] = null()
    else:
        come = or_(*(_signalled_sql(bindparam(name, type_=String)) for name in ("or_first", "or_else")))
        recheck = cast(bindparam("recheck", type_=Float), Float)
        values |= {
            "state": case((come, free), else_=literal(State.WAITING.value)),
            "wake_at": case((come, wake[state_if_free]), (recheck.is_not(None), later(recheck)), else_=null()),
            "tries": case((come, literal(values["tries"])), else_=literal(0)),
        }
    return update(orders).where(*_held_where()).values(**values)


_MOVED = (
    orders.c.id,
    orders.c.state,
    orders.c.fence,
    orders.c.signal_seq,
    orders.c.claimed_at,
    orders.c.interrupt,
)


def _attempt_values() -> dict[str, Any]:
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


def _advance_in_one(moving: Update) -> Any:
    """PostgreSQL does both writes in one statement: one round trip, no BEGIN and no COMMIT of its own."""
    moved = moving.returning(*_MOVED).cte("moved")
    values = _attempt_values()
    noted = insert(attempts).from_select(["order_id", *values], select(moved.c.id, *values.values())).cte("noted")
    return select(moved).add_cte(noted)


_KINDS = [(kind, state) for kind in ("last", "free", "gated") for state in (State.RUNNING, State.QUEUED, State.READY)]
_ADVANCE = {key: _advance(*key).returning(*_MOVED) for key in _KINDS}
_NOTE = insert(attempts).values(order_id=bindparam("order"), **_attempt_values())
_MOVED_NAMES = [column.name for column in _MOVED]
_ADVANCE_IN_ONE = {key: Direct(_advance_in_one(_advance(*key)), _MOVED_NAMES) for key in _KINDS}
_ADVANCE_SQLITE = {key: DirectSqlite(_ADVANCE[key], _MOVED_NAMES, times=["claimed_at"]) for key in _KINDS}
_NOTE_SQLITE = DirectSqlite(_NOTE)


def done(ledger: Ledger, held: Claim, outcome: Done, then: State) -> Recorded | None:
    """Record that the step is done and move on, in one commit; None when the claim was lost meanwhile.

    `then` is what becomes of the order if its next step may run: RUNNING keeps it claimed by this worker."""
    if _is_lean(outcome):
        return _moved_on(held, *_advance_lean(ledger, held, outcome, then))
    with ledger.transaction() as connection:
        held = _learn(connection, ledger, held, outcome)
        key, values = _advance_values(held, outcome, then)
        row = connection.execute(_ADVANCE[key], values).one_or_none()
        if row is not None:
            connection.execute(_NOTE, values)
    return _moved_on(held, row, values)


def _is_lean(outcome: Done) -> bool:
    return (
        outcome.facts is None
        and not outcome.signals
        and outcome.rest is None
        and outcome.raw is None
        and outcome.document is None
        and outcome.reference is None
    )


def _advance_values(held: Claim, outcome: Done, then: State) -> tuple[tuple[str, State], dict[str, Any]]:
    following = held.following
    kind = "last" if following is None else "free" if following.awaits is None else "gated"
    values = {
        "order": held.id,
        "at": held.position,
        "held_fence": held.fence,
        "next_step": following.name if following else None,
        "next_lane": lane_of(held.system, held.account, following.name if following else None),
        "next_awaits": following.awaits if following else None,
        **_attempt(held, "skipped" if outcome.skipped else "done", outcome.detail),
    }
    if following is not None and following.awaits is not None:
        values["or_first"], *_, values["or_else"] = 2 * alternatives(following.awaits)[:2]
        values["recheck"] = following.recheck
    return (kind, then), values


def _attempt(held: Claim, outcome: str, detail: str, status: int | None = None) -> dict[str, Any]:
    return {
        "name": held.step,
        "number": held.tries,
        "outcome": outcome,
        "detail": detail or None,
        "status": status,
        "by": held.worker,
        "started_at": held.claimed_at,
    }


def _advance_lean(ledger: Ledger, held: Claim, outcome: Done, then: State) -> tuple[AnyRow | None, dict[str, Any]]:
    key, values = _advance_values(held, outcome, then)
    if ledger.postgresql:
        with ledger.statement() as connection:
            return _ADVANCE_IN_ONE[key].one_or_none(connection, values), values
    with ledger.statement() as connection:
        return both_or_neither(connection, _ADVANCE_SQLITE[key], _NOTE_SQLITE, values), values


def _moved_on(held: Claim, row: AnyRow | None, values: dict[str, Any]) -> Recorded | None:
    if row is None:
        return None
    if row.state != State.RUNNING:
        return Recorded(row.state, interrupt=row.interrupt)
    following = replace(
        held,
        position=held.position + 1,
        step=values["next_step"],
        fence=row.fence,
        tries=1,
        failures=0,
        crashes=0,
        signal_seq=row.signal_seq,
        claimed_at=row.claimed_at,
    )
    return Recorded(row.state, following, row.interrupt)


def _learn(connection: Connection, ledger: Ledger, held: Claim, outcome: Done) -> Claim:
    """Write what the step learnt besides being done, under the order's row lock; a lost claim changes nothing."""
    row = connection.execute(
        select(orders.c.facts, orders.c.signalled)
        .where(orders.c.id == held.id, orders.c.fence == held.fence, orders.c.state == State.RUNNING)
        .with_for_update()
    ).one_or_none()
    if row is None:
        return held
    facts = json.loads(row.facts) | (outcome.facts or {})
    values: dict[str, Any] = {"facts": json.dumps(facts)}
    fresh = [name for name in outcome.signals if not is_signalled(row.signalled, name)]
    if fresh:
        values["signalled"] = row.signalled + "".join(f"{name}|" for name in fresh)
        _insert_signals(connection, ledger, [(held.id, name, f"step:{held.step}", {}) for name in fresh])
    if outcome.reference is not None:
        values["reference"] = outcome.reference
    connection.execute(update(orders).where(orders.c.id == held.id).values(**values))
    if outcome.raw is not None or outcome.document is not None:
        _keep_document(connection, ledger, held.id, outcome.raw, outcome.document)
    plan = held.plan
    if outcome.rest is not None:
        plan = _replace_rest(connection, held, outcome.rest)
    return replace(held, facts=facts, plan=plan, reference=outcome.reference or held.reference)


def _keep_document(
    connection: Connection, ledger: Ledger, order_id: int, raw: str | None, document: dict[str, Any] | None
) -> None:
    values = {"raw": raw} if raw is not None else {}
    if document is not None:
        values["document"] = json.dumps(document)
    connection.execute(
        _upsert(ledger, documents)
        .values(order_id=order_id, updated_at=now(), **values)
        .on_conflict_do_update(index_elements=["order_id"], set_={**values, "updated_at": now()})
    )


def _replace_rest(connection: Connection, held: Claim, rest: tuple[Planned, ...]) -> tuple[Planned, ...]:
    if held.plan[held.position + 1 :] == rest:
        return held.plan
    _write_rest(connection, held.id, held.position + 1, rest)
    return held.plan[: held.position + 1] + rest


def _write_rest(connection: Connection, order_id: int, start: int, rest: Sequence[Planned]) -> None:
    connection.execute(delete(steps).where(steps.c.order_id == order_id, steps.c.position >= start))
    if rest:
        connection.execute(insert(steps), _plan_rows(order_id, start, rest))


def _put_down(ledger: Ledger, held: Claim, values: dict[str, Any], attempt: dict[str, Any]) -> Recorded | None:
    """End a claim without moving on: the order's new values and the attempt, in one commit."""
    with ledger.transaction() as connection:
        row = connection.execute(
            update(orders)
            .where(*_held_where())
            .values(
                worker=null(),
                fence=orders.c.fence + 1,
                version=orders.c.version + 1,
                updated_at=now(),
                **values,
            )
            .returning(orders.c.state, orders.c.interrupt),
            {"order": held.id, "at": held.position, "held_fence": held.fence},
        ).one_or_none()
        if row is None:
            return None
        connection.execute(_NOTE, {"order": held.id, "at": held.position, **attempt})
    return Recorded(row.state, interrupt=row.interrupt)


def retry(ledger: Ledger, held: Claim, reason: str, seconds: float, status: int | None) -> Recorded | None:
    """The try failed and counts; the next is due after so many seconds."""
    values = {
        "state": State.RETRYING,
        "failures": orders.c.failures + 1,
        "error": reason,
        "wake_at": later(literal(seconds)),
    }
    return _put_down(ledger, held, values, _attempt(held, "retry", reason, status))


def postpone(ledger: Ledger, held: Claim, reason: str, seconds: float, status: int | None) -> Recorded | None:
    """The remote takes nobody's calls: the order waits, and nothing is counted against it."""
    values = {"state": State.RETRYING, "error": reason, "wake_at": later(literal(seconds))}
    return _put_down(ledger, held, values, _attempt(held, "unavailable", reason, status))


def park(
    ledger: Ledger,
    held: Claim,
    reason: str,
    status: int | None,
    *,
    state: State = State.PARKED,
    recheck: float | None = None,
) -> Recorded | None:
    """A person must act. With `recheck`, the step is tried again by itself after so many seconds as well."""
    values = {
        "state": state,
        "error": reason,
        "wake_at": null() if recheck is None else later(literal(recheck)),
    }
    return _put_down(ledger, held, values, _attempt(held, state.value, reason, status))


def wait_again(
    ledger: Ledger,
    held: Claim,
    awaits: str,
    detail: str,
    facts: dict[str, Any] | None,
    *,
    more: bool,
    after: float | None = None,
) -> Recorded | None:
    """The step has done a part: it goes on at once (`more`), or at the next `awaits`, at the latest in so many seconds
    (`after`); a signal that came since the claim counts."""
    with ledger.transaction() as connection:
        row = connection.execute(
            select(orders.c.facts, orders.c.signalled, orders.c.signal_seq)
            .where(orders.c.id == held.id)
            .with_for_update()
        ).one()
        goes_on = more or row.signal_seq != held.signal_seq
        moved = connection.execute(
            update(orders)
            .where(*_held_where())
            .values(
                state=State.READY if goes_on else State.WAITING,
                awaits=awaits,
                signalled=row.signalled if goes_on else _forgotten(row.signalled, awaits),
                facts=json.dumps(json.loads(row.facts) | (facts or {})),
                wake_at=now() if goes_on else null() if after is None else later(literal(after)),
                worker=null(),
                fence=orders.c.fence + 1,
                tries=0,
                failures=0,
                crashes=0,
                error=null(),
                version=orders.c.version + 1,
                updated_at=now(),
            )
            .returning(orders.c.state, orders.c.interrupt),
            {"order": held.id, "at": held.position, "held_fence": held.fence},
        ).one_or_none()
        if moved is None:
            return None
        told = _attempt(held, "partly", detail or f"waits for {awaits}")
        connection.execute(_NOTE, {"order": held.id, "at": held.position, **told})
    return Recorded(moved.state, interrupt=moved.interrupt)


def _forgotten(signalled: str, awaits: str) -> str:
    """Without the names in `awaits`: they must come anew."""
    gone = alternatives(awaits)
    return "".join(f"{name}|" for name in signalled.split("|") if name and name not in gone)


def end(
    ledger: Ledger, held: Claim, reason: str, ending: State, rest: tuple[Planned, ...], **learnt: Any
) -> Recorded | None:
    """The remote order needs nothing more of its plan: go to `rest` (what takes back) and finish in `ending`."""
    with ledger.transaction() as connection:
        owned = connection.execute(
            update(orders).where(*_held_where()).values(ending=ending).returning(orders.c.id),
            {"order": held.id, "at": held.position, "held_fence": held.fence},
        ).one_or_none()
        if owned is None:
            return None
        held = _learn(connection, ledger, held, Done(rest=rest, **learnt))
        key, values = _advance_values(held, Done(detail=reason), State.READY)
        row = connection.execute(_ADVANCE[key], values | {"outcome": ending.value}).one()
        connection.execute(_NOTE, values | {"outcome": ending.value})
        if ending is State.IGNORED:  # nothing runs any more that would say why
            connection.execute(update(orders).where(orders.c.id == held.id).values(error=reason))
    return _moved_on(held, row, values)


# -- signals, interrupts and what people order ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Signal:
    """A fact from outside for one order. `source` names where it came from, once: a double is not a second signal."""

    order_id: int
    name: str
    source: str
    data: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def _insert_signals(
    connection: Connection, ledger: Ledger, rows: Iterable[tuple[int, str, str, dict[str, Any]]]
) -> list[Any]:
    values = [
        {"order_id": order_id, "name": name, "source": source, "data": json.dumps(data)}
        for order_id, name, source, data in rows
    ]
    statement = (
        _upsert(ledger, signals)
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
        fresh = set(_insert_signals(connection, ledger, rows)) if rows else set()
        for one in sorted(arrived, key=lambda s: s.order_id):
            if (one.order_id, one.name, one.source) in fresh:
                fresh.discard((one.order_id, one.name, one.source))
                woken += _wake_waiting(connection, one)
                if who is not None:
                    _write_audit(connection, who, "signal", one.order_id, f"{one.name} {json.dumps(one.data)}")
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
        _upsert(ledger, cursors)
        .values(name=name, value=value, updated_at=now())
        .on_conflict_do_update(index_elements=["name"], set_={"value": value, "updated_at": now()})
    )


def move_cursor(ledger: Ledger, name: str, value: str) -> None:
    """Remember how far a feed or poll has been read."""
    with ledger.statement() as connection:
        _write_cursor(connection, ledger, name, value)


def keep_odd_event(
    ledger: Ledger,
    system: str,
    account: str,
    dedupe_key: str,
    kind: str,
    body: str,
    problem: str,
    external_id: str | None = None,
) -> bool:
    """Keep an event that nothing can be done with, so that a person sees it. False: it was kept before.

    `external_id`: whose it will be, should that become known."""
    with ledger.statement() as connection:
        row = connection.execute(
            _upsert(ledger, events)
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


def settle_events(ledger: Ledger, event_ids: Sequence[int]) -> None:
    """Events that were odd have found their order: nobody needs to look at them any more."""
    with ledger.statement() as connection:
        connection.execute(update(events).where(events.c.id.in_(event_ids)).values(problem=null()))


def interrupt(
    ledger: Ledger, order_id: int, reason: str, rest: Sequence[Planned], ending: State, *, who: str | None = None
) -> str | None:
    """Stop what has not run of an order's plan and do `rest` instead, then finish in `ending`.

    An order a worker holds is marked, and interrupted when its step has ended. Returns the new state; None when the
    order is finished already or on its way to `ending`. Audited when a person (`who`) wants it."""
    with ledger.transaction() as connection:
        row = connection.execute(select(orders).where(orders.c.id == order_id).with_for_update()).one_or_none()
        if row is None or row.state in _FINAL or row.ending != State.DONE:
            return None
        if who is not None:
            _write_audit(connection, who, ending.value, order_id, reason)
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
        if row.state in _FINAL:
            connection.execute(update(orders).where(orders.c.id == order_id).values(interrupt=null()))
            return str(row.state)
        if wish["ending"] == State.PARKED:
            return _stop_at_erp(connection, row, wish["reason"])
        rest = [Planned(name, awaits, data=data) for name, awaits, data in wish["rest"]]
        return _go_to_rest(connection, row, wish["reason"], rest, State(wish["ending"]))


def _go_to_rest(connection: Connection, row: AnyRow, reason: str, rest: Sequence[Planned], ending: State) -> str:
    """Replace what has not run of the plan by `rest`, and finish in `ending`."""
    state = _replan(connection, row, row.position, rest, ending)
    connection.execute(_NOTE, _told(row, ending.value, reason))
    return state


def _replan(connection: Connection, row: AnyRow, at: int, rest: Sequence[Planned], ending: State) -> str:
    _write_rest(connection, row.id, at, rest)
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


def _told(row: AnyRow, outcome: str, reason: str) -> dict[str, Any]:
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


def stop_for_a_person(ledger: Ledger, order_id: int, source: str, reason: str) -> bool:
    """Park an order because of what `source` told, once: after a replay the same telling does not stop it again.

    An order a worker holds is parked when its step has ended. False: it was told before, or the order is finished."""
    with ledger.transaction() as connection:
        row = connection.execute(select(orders).where(orders.c.id == order_id).with_for_update()).one()
        told = select(signals.c.id).where(signals.c.order_id == order_id, signals.c.source == source)
        if row.state in _FINAL or connection.execute(told).one_or_none() is not None:
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
    connection.execute(_NOTE, _told(row, State.PARKED.value, reason))
    return State.PARKED.value


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
            facts["acknowledged"] = [at, tries + 1]
        ending = State.DONE if row.ending == State.IGNORED else row.ending
        _stand_at(connection, row, step, tries=tries, facts=json.dumps(facts), ending=ending)
        _write_audit(connection, who, "replay", order_id, f"from {step.name}{', acknowledged' if acknowledged else ''}")


def _as_previewed(connection: Connection, order_id: int, version: int) -> AnyRow:
    row = connection.execute(select(orders).where(orders.c.id == order_id).with_for_update()).one()
    if row.version != version or row.state in (State.RUNNING, State.QUEUED):
        raise MovedOn(f"order {order_id} has moved on since the preview: look again")
    return row


def _stand_at(connection: Connection, row: AnyRow, step: AnyRow, *, tries: int, **values: Any) -> State:
    """Put an order that nobody holds before a step of its plan: it goes at once, or waits for the step's signal."""
    waits = step.awaits is not None and not is_signalled(row.signalled, step.awaits)
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
        connection.execute(_NOTE, _told(row, "skipped", f"{who} says that it did happen"))
        _write_audit(connection, who, "skip", order_id, f"{row.step} did happen")


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
        if row.state in _FINAL or row.ending != State.DONE:
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
            _write_audit(connection, who, "release", order_id, f"stood at {row.step}: {row.error or row.state}")
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
        _write_audit(connection, who, action, order_id, detail)


def _write_audit(connection: Connection, who: str, action: str, order_id: int | None, detail: str) -> None:
    connection.execute(insert(audit).values(at=now(), who=who, action=action, order_id=order_id, detail=detail))


# -- sweep ------------------------------------------------------------------------------------------------------------


def beat(ledger: Ledger, worker: str) -> None:
    """A worker's sign of life."""
    with ledger.statement() as connection:
        connection.execute(
            _upsert(ledger, workers)
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
        connection.execute(_NOTE, _told(row, "lost", reason))
        return state.value


def let_go(ledger: Ledger, order_id: int, fence: int, *, seconds: float = 0.0) -> None:
    """Give back an order that this worker claimed and does not work on; it is ready again after so many seconds."""
    with ledger.statement() as connection:
        connection.execute(
            update(orders)
            .where(orders.c.id == order_id, orders.c.fence == fence, orders.c.state == State.RUNNING)
            .values(
                state=State.READY,
                fence=orders.c.fence + 1,
                worker=null(),
                wake_at=later(literal(seconds)),
                version=orders.c.version + 1,
                updated_at=now(),
            )
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
            _upsert(ledger, ticks)
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


def close_gate(ledger: Ledger, lane: str, seconds: float, reason: str) -> bool:
    """Leave a remote alone for so many seconds. True when it was open: one alert, not one per order."""
    with ledger.transaction() as connection:
        was_open = (
            connection.execute(select(gates.c.lane).where(gates.c.lane == lane, gates.c.closures > 0)).one_or_none()
            is None
        )
        connection.execute(
            _upsert(ledger, gates)
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
        connection.execute(_upsert(ledger, gates).values(lane=lane).on_conflict_do_nothing())
        row = connection.execute(
            select(gates.c.next_call_at, now().label("now")).where(gates.c.lane == lane).with_for_update()
        ).one()
        wait = max(0.0, (row.next_call_at - row.now).total_seconds()) if row.next_call_at else 0.0
        if wait <= longest:
            connection.execute(
                update(gates).where(gates.c.lane == lane).values(next_call_at=later(literal(wait + interval)))
            )
    return wait
