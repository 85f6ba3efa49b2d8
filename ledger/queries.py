"""Every read of the ledger, named. None of those the running fleet repeats grows with the ledger."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Column, ColumnElement, Row, Select, and_, func, literal, or_, select

from databases.clock import later, now
from ledger.connection import Ledger
from ledger.leases import WORKER_LEASE
from ledger.models import (
    DUE,
    OVERDUE,
    attempts,
    audit,
    cursors,
    documents,
    events,
    gates,
    in_state,
    orders,
    signals,
    steps,
    workers,
)
from orders.states import FINISHED, IN_FLIGHT, NEEDS_A_PERSON, State

Rows = list[dict[str, Any]]


def in_flight(ledger: Ledger, system: str, lane: str | None = None) -> int:
    """How many orders of a system (or of one lane of it) are in the broker or in a worker: at most the window."""
    wanted = select(func.count()).where(orders.c.system == system, in_state(IN_FLIGHT))
    if lane is not None:
        wanted = wanted.where(orders.c.lane == lane)
    with ledger.reading() as connection:
        return connection.execute(wanted).scalar_one()


@dataclass(frozen=True, slots=True)
class Held:
    """A running order as the sweep sees it."""

    id: int
    fence: int
    worker: str | None


def orphans(ledger: Ledger) -> list[Held]:
    """Running orders whose worker gave no sign of life within its lease, or whose claim is older than any step."""
    alive = select(workers.c.name).where(
        workers.c.name == orders.c.worker, workers.c.seen_at > later(literal(-WORKER_LEASE))
    )
    wanted = select(orders.c.id, orders.c.fence, orders.c.worker).where(
        orders.c.state == State.RUNNING, or_(~alive.exists(), orders.c.wake_at <= now())
    )
    with ledger.reading() as connection:
        return [Held(*row) for row in connection.execute(wanted)]


def held_by(ledger: Ledger, worker: str) -> list[Held]:
    """Orders that the ledger says this worker holds since more than two seconds."""
    wanted = select(orders.c.id, orders.c.fence, orders.c.worker).where(
        orders.c.state == State.RUNNING, orders.c.worker == worker, orders.c.claimed_at < later(literal(-2.0))
    )
    with ledger.reading() as connection:
        return [Held(*row) for row in connection.execute(wanted)]


def overdue(ledger: Ledger, system: str, lane: str, limit: int = 500) -> dict[str, list[int]]:
    """Orders of a lane whose time has come in a state that only the sweep moves, by state."""
    wanted = (
        select(orders.c.id, orders.c.state)
        .where(
            orders.c.system == system,
            orders.c.lane == lane,
            orders.c.wake_at <= now(),
            in_state(OVERDUE),
        )
        .order_by(orders.c.wake_at)
        .limit(limit)
    )
    found: dict[str, list[int]] = {}
    with ledger.reading() as connection:
        for order_id, state in connection.execute(wanted):
            found.setdefault(state, []).append(order_id)
    return found


def interrupted(ledger: Ledger) -> list[int]:
    """Orders with an interrupt that no running step holds back."""
    with ledger.reading() as connection:
        wanted = select(orders.c.id).where(orders.c.interrupt.is_not(None), orders.c.state != State.RUNNING)
        return list(connection.execute(wanted).scalars())


@dataclass(frozen=True, slots=True)
class Gate:
    """A remote in trouble: whether it is closed (else one order at a time is let through), since when, and why.

    `seconds`: how long it stays closed from the moment of the reading."""

    lane: str
    closed: bool
    closures: int
    since: datetime | None
    reason: str | None
    seconds: float = 0.0


def closed_gates(ledger: Ledger) -> dict[str, Gate]:
    """All remotes in trouble, by lane."""
    wanted = select(
        gates.c.lane,
        gates.c.closed_until,
        now().label("now"),
        gates.c.closures,
        gates.c.since,
        gates.c.reason,
    ).where(gates.c.closures > 0)
    with ledger.reading() as connection:
        return {row.lane: _gate(row) for row in connection.execute(wanted)}


def _gate(row: Row[*tuple[Any, ...]]) -> Gate:
    seconds = (row.closed_until - row.now).total_seconds() if row.closed_until is not None else 0.0
    return Gate(row.lane, seconds > 0, row.closures, row.since, row.reason, max(seconds, 0.0))


def position_of(ledger: Ledger, order_id: int) -> tuple[int, str | None, str] | None:
    """(position, step, state) of an order."""
    with ledger.reading() as connection:
        row = connection.execute(
            select(orders.c.position, orders.c.step, orders.c.state).where(orders.c.id == order_id)
        ).one_or_none()
    return None if row is None else (row.position, row.step, row.state)


def document(ledger: Ledger, order_id: int) -> dict[str, Any] | None:
    """The canonical order as JSON, if it has been fetched."""
    with ledger.reading() as connection:
        text = connection.execute(
            select(documents.c.document).where(documents.c.order_id == order_id)
        ).scalar_one_or_none()
    return None if text is None else json.loads(text)


@dataclass(frozen=True, slots=True)
class Told:
    """One signal as it came: `source` names it for ever."""

    source: str
    data: dict[str, Any]
    at: datetime


def signals_of(ledger: Ledger, order_id: int, name: str) -> list[Told]:
    """Every signal of this name that came for an order, oldest first."""
    wanted = (
        select(signals.c.source, signals.c.data, signals.c.received_at)
        .where(signals.c.order_id == order_id, signals.c.name == name)
        .order_by(signals.c.id)
    )
    with ledger.reading() as connection:
        return [Told(row.source, json.loads(row.data), row.received_at) for row in connection.execute(wanted)]


def has_tried(ledger: Ledger, order_id: int, step: str) -> bool:
    """Whether we ever began this step of an order and recorded how it ended."""
    wanted = select(attempts.c.id).where(attempts.c.order_id == order_id, attempts.c.step == step).limit(1)
    with ledger.reading() as connection:
        return connection.execute(wanted).one_or_none() is not None


def count_live_workers(ledger: Ledger) -> int:
    """How many workers gave a sign of life within their lease."""
    with ledger.reading() as connection:
        wanted = select(func.count()).select_from(workers).where(workers.c.seen_at > later(literal(-WORKER_LEASE)))
        return connection.execute(wanted).scalar_one()


def unowned_events(ledger: Ledger, system: str, limit: int) -> Rows:
    """The newest odd events of `system` that name an order: `id`, `dedupe_key`, `kind`, `external_id`, `body`."""
    wanted = (
        select(events.c.id, events.c.dedupe_key, events.c.kind, events.c.external_id, events.c.body)
        .where(events.c.problem.is_not(None), events.c.system == system, events.c.external_id.is_not(None))
        .order_by(events.c.id.desc())
        .limit(limit)
    )
    with ledger.reading() as connection:
        return [row._asdict() for row in connection.execute(wanted)]


def among(ledger: Ledger, order_ids: list[int], state: State) -> set[int]:
    """Those of these orders that are in this state."""
    wanted = select(orders.c.id).where(orders.c.id.in_(order_ids), orders.c.state == state)
    with ledger.reading() as connection:
        return set(connection.execute(wanted).scalars())


@dataclass(frozen=True, slots=True)
class Known:
    """An order as the ledger has it, for who must compare it with the remote one."""

    id: int
    system: str
    account: str
    external_id: str
    reference: str | None
    state: str
    step: str | None
    awaits: str | None
    ending: str
    facts: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Whether nothing of it is to be done any more."""
        return self.state in _FINISHED

    @property
    def cancelling(self) -> bool:
        """Whether it is cancelled, or on its way there."""
        return self.state == State.CANCELLED or self.ending == State.CANCELLED


_FINISHED = [state.value for state in FINISHED]
_KNOWN = (
    orders.c.id,
    orders.c.system,
    orders.c.account,
    orders.c.external_id,
    orders.c.reference,
    orders.c.state,
    orders.c.step,
    orders.c.awaits,
    orders.c.ending,
    orders.c.facts,
)


def _known(row: Row[*tuple[Any, ...]]) -> Known:
    return Known(**{**row._asdict(), "facts": json.loads(row.facts)})


def known_orders(ledger: Ledger, system: str, account: str, external_ids: Sequence[str]) -> list[Known]:
    """Those of these orders that the ledger has."""
    wanted = select(*_KNOWN).where(
        orders.c.system == system, orders.c.account == account, orders.c.external_id.in_(external_ids)
    )
    with ledger.reading() as connection:
        return [_known(row) for row in connection.execute(wanted)]


def unfinished(ledger: Ledger, system: str, account: str, limit: int | None = None) -> list[Known]:
    """Orders of an account that are not done, cancelled or ignored, the longest untouched first."""
    wanted = (
        select(*_KNOWN)
        .where(
            orders.c.system == system,
            orders.c.account == account,
            in_state([state for state in State if state not in FINISHED]),
        )
        .order_by(orders.c.updated_at)
        .limit(limit)
    )
    with ledger.reading() as connection:
        return [_known(row) for row in connection.execute(wanted)]


def unread_news(ledger: Ledger, system: str, account: str, limit: int) -> dict[str, list[int]]:
    """Ids of the events that say something new of a known order, by its external id, oldest first."""
    wanted = (
        select(events.c.id, events.c.external_id)
        .where(events.c.system == system, events.c.account == account, events.c.news_at <= later(literal(0.0)))
        .order_by(events.c.news_at)
        .limit(limit)
    )
    news: dict[str, list[int]] = {}
    with ledger.reading() as connection:
        for row in connection.execute(wanted):
            news.setdefault(row.external_id, []).append(row.id)
    return news


def event_bodies(ledger: Ledger, system: str, account: str, external_id: str, limit: int = 50) -> list[str]:
    """The bodies of an order's events, newest first."""
    wanted = (
        select(events.c.body)
        .where(events.c.system == system, events.c.account == account, events.c.external_id == external_id)
        .order_by(events.c.id.desc())
        .limit(limit)
    )
    with ledger.reading() as connection:
        return list(connection.execute(wanted).scalars())


def problems_of(ledger: Ledger, system: str, account: str, external_id: str) -> list[str]:
    """What a person was to see of an order's events, the newest event's first."""
    wanted = (
        select(events.c.problem)
        .where(
            events.c.system == system,
            events.c.account == account,
            events.c.external_id == external_id,
            events.c.problem.is_not(None),
        )
        .order_by(events.c.id.desc())
    )
    with ledger.reading() as connection:
        return [str(problem) for problem in connection.execute(wanted).scalars()]


def cursor(ledger: Ledger, name: str) -> str | None:
    """How far a feed or poll has been read."""
    with ledger.reading() as connection:
        return connection.execute(select(cursors.c.value).where(cursors.c.name == name)).scalar_one_or_none()


def order_ids(ledger: Ledger, system: str, account: str, external_ids: list[str]) -> dict[str, int]:
    """Ledger ids by external id, of those that are known."""
    wanted = select(orders.c.external_id, orders.c.id).where(
        orders.c.system == system, orders.c.account == account, orders.c.external_id.in_(external_ids)
    )
    with ledger.reading() as connection:
        return {row.external_id: row.id for row in connection.execute(wanted)}


def database_now(ledger: Ledger) -> datetime:
    """The database's clock."""
    with ledger.reading() as connection:
        moment: datetime = connection.execute(select(now().label("now"))).scalar_one()
    return moment


# -- for people -------------------------------------------------------------------------------------------------------

LISTED = (
    orders.c.id,
    orders.c.system,
    orders.c.account,
    orders.c.external_id,
    orders.c.reference,
    orders.c.state,
    orders.c.position,
    orders.c.step,
    orders.c.awaits,
    orders.c.error,
    orders.c.tries,
    orders.c.failures,
    orders.c.facts,
    orders.c.wake_at,
    orders.c.created_at,
    orders.c.updated_at,
    orders.c.version,
    orders.c.ending,
)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which orders a person means. `search` is part of the external id, the reference or the error."""

    system: str | None = None
    account: str | None = None
    states: tuple[str, ...] = ()
    step: str | None = None
    error: str | None = None
    since: datetime | None = None
    search: str | None = None
    limit: int | None = None
    newest_first: bool = False


def _matching(wanted: Select[Any], chosen: Filter) -> Select[Any]:
    conditions = []
    if chosen.system:
        conditions.append(orders.c.system == chosen.system)
    if chosen.account:
        conditions.append(orders.c.account == chosen.account)
    if chosen.states:
        conditions.append(orders.c.state.in_(chosen.states))
    if chosen.step:
        conditions.append(orders.c.step == chosen.step)
    if chosen.error:
        conditions.append(orders.c.error.icontains(chosen.error, autoescape=True))
    if chosen.since:
        conditions.append(orders.c.updated_at >= chosen.since)
    if chosen.search:
        conditions.append(
            or_(
                orders.c.external_id.icontains(chosen.search, autoescape=True),
                orders.c.reference.icontains(chosen.search, autoescape=True),
                orders.c.error.icontains(chosen.search, autoescape=True),
            )
        )
    return wanted.where(and_(*conditions)) if conditions else wanted


def listing(ledger: Ledger, chosen: Filter) -> Rows:
    """The orders a person means, as rows of `LISTED`."""
    wanted = _matching(select(*LISTED), chosen)
    wanted = wanted.order_by(orders.c.id.desc() if chosen.newest_first else orders.c.id).limit(chosen.limit)
    with ledger.reading() as connection:
        return [_row(row) for row in connection.execute(wanted)]


def _row(row: Row[*tuple[Any, ...]]) -> dict[str, Any]:
    values = row._asdict()
    if "facts" in values:
        values["facts"] = json.loads(values["facts"])
    return values


def find_order(ledger: Ledger, name: str) -> Rows:
    """The orders that `ORDER` may mean: a ledger id, or `system[:account]:external-id`; if there is none, those that
    have it as their reference."""
    parts = name.split(":")
    if len(parts) > 1:
        return _called(ledger, parts, orders.c.external_id) or _called(ledger, parts, orders.c.reference)
    # More digits than an id can have would be an error of PostgreSQL's.
    return _found(ledger, orders.c.id == int(name)) if name.isdecimal() and len(name) < 19 else []


def _called(ledger: Ledger, parts: Sequence[str], column: Column[Any]) -> Rows:
    named = column == ":".join(parts[1:])
    if len(parts) > 2:
        named = or_(named, and_(orders.c.account == parts[1], column == ":".join(parts[2:])))
    return _found(ledger, and_(orders.c.system == parts[0], named))


def _found(ledger: Ledger, condition: ColumnElement[bool]) -> Rows:
    with ledger.reading() as connection:
        return [_row(row) for row in connection.execute(select(*LISTED).where(condition).order_by(orders.c.id))]


def plan_of(ledger: Ledger, order_id: int) -> Rows:
    """The plan's steps, in order."""
    with ledger.reading() as connection:
        wanted = select(steps).where(steps.c.order_id == order_id).order_by(steps.c.position)
        return [row._asdict() for row in connection.execute(wanted)]


@dataclass(frozen=True, slots=True)
class Ended:
    """How the last try of a step ended."""

    outcome: str
    detail: str | None
    at: datetime


def last_tries(ledger: Ledger, order_id: int) -> dict[tuple[int, str], Ended]:
    """How the last try of each step ended, by its position and name."""
    wanted = (
        select(attempts.c.position, attempts.c.step, attempts.c.outcome, attempts.c.detail, attempts.c.finished_at)
        .where(attempts.c.order_id == order_id)
        .order_by(attempts.c.id)
    )
    with ledger.reading() as connection:
        return {(row.position, row.step): Ended(*row[2:]) for row in connection.execute(wanted)}


def signalled(ledger: Ledger, order_id: int) -> frozenset[str]:
    """The names of the signals that have come, as far as no step has used them up."""
    with ledger.reading() as connection:
        names = connection.execute(select(orders.c.signalled).where(orders.c.id == order_id)).scalar_one()
    return frozenset(name for name in names.split("|") if name)


def timeline(ledger: Ledger, order_id: int) -> Rows:
    """Everything that happened to an order, oldest first: `{"at", "kind", "what", "detail"}` and more by kind."""
    with ledger.reading() as connection:
        tried = connection.execute(select(attempts).where(attempts.c.order_id == order_id).order_by(attempts.c.id))
        happened: Rows = [
            {"at": row.finished_at, "kind": "attempt", "what": row.step, **row._asdict()} for row in tried
        ]
        came = connection.execute(select(signals).where(signals.c.order_id == order_id).order_by(signals.c.id))
        happened += [
            {"at": row.received_at, "kind": "signal", "what": row.name, "detail": row.source, **row._asdict()}
            for row in came
        ]
        said = connection.execute(select(audit).where(audit.c.order_id == order_id).order_by(audit.c.id))
        happened += [{"kind": "audit", "what": row.action, **row._asdict()} for row in said]
        about = connection.execute(
            select(
                events.c.id,
                events.c.kind.label("event"),
                events.c.received_at,
                events.c.dedupe_key,
                events.c.problem,
            )
            .join(
                orders,
                and_(
                    orders.c.system == events.c.system,
                    orders.c.account == events.c.account,
                    orders.c.external_id == events.c.external_id,
                ),
            )
            .where(orders.c.id == order_id)
            .order_by(events.c.id)
        )
        happened += [
            {
                "at": row.received_at,
                "kind": "event",
                "what": row.event,
                "detail": row.problem or row.dedupe_key,
            }
            for row in about
        ]
    return sorted(happened, key=lambda entry: (entry["at"], entry["kind"] != "event"))


def counts(ledger: Ledger) -> Rows:
    """How many orders there are per system and state: for people and metrics, not for the hot path."""
    wanted = select(orders.c.system, orders.c.state, func.count().label("orders")).group_by(
        orders.c.system, orders.c.state
    )
    with ledger.reading() as connection:
        return [row._asdict() for row in connection.execute(wanted)]


def how_many(ledger: Ledger, states: tuple[str, ...]) -> int:
    """How many orders are in these states; cheap for states that few orders are in."""
    with ledger.reading() as connection:
        return connection.execute(select(func.count()).where(orders.c.state.in_(states))).scalar_one()


def unfinished_counts(ledger: Ledger) -> dict[tuple[str, str], int]:
    """How many orders there are per (system, state), of those that are not finished: grows with the backlog only."""
    wanted = (
        select(orders.c.system, orders.c.state, func.count())
        .where(orders.c.state.in_([state for state in State if state not in FINISHED]))
        .group_by(orders.c.system, orders.c.state)
    )
    with ledger.reading() as connection:
        return {(system, state): number for system, state, number in connection.execute(wanted)}


def newest_id(ledger: Ledger) -> int:
    """The highest ledger id of an order; 0 when there is none."""
    with ledger.reading() as connection:
        return connection.execute(select(func.max(orders.c.id))).scalar_one() or 0


def known_between(ledger: Ledger, after: int, upto: int) -> dict[str, int]:
    """How many orders per system have an id above `after`, up to `upto`.

    Both bounds, because SQLite walks a whole index, in the order of its groups, for a range that is open."""
    wanted = (
        select(orders.c.system, func.count()).where(orders.c.id > after, orders.c.id <= upto).group_by(orders.c.system)
    )
    with ledger.reading() as connection:
        return {system: number for system, number in connection.execute(wanted)}


def oldest_waiting(ledger: Ledger) -> datetime | None:
    """When the oldest order that could go right now became due."""
    wanted = select(func.min(orders.c.wake_at)).where(in_state(DUE), orders.c.wake_at <= now())
    with ledger.reading() as connection:
        return connection.execute(wanted).scalar_one_or_none()


def stopped(ledger: Ledger, limit: int) -> Rows:
    """The orders that stopped last and need a person."""
    return listing(ledger, Filter(states=tuple(NEEDS_A_PERSON), limit=limit, newest_first=True))


def odd_events(ledger: Ledger, limit: int | None = None) -> Rows:
    """Events that nothing could be done with, or that contradict another."""
    wanted = (
        select(
            events.c.id,
            events.c.system,
            events.c.account,
            events.c.kind,
            events.c.external_id,
            events.c.problem,
            events.c.body,
            events.c.received_at,
        )
        .where(events.c.problem.is_not(None))
        .order_by(events.c.id)
        .limit(limit)
    )
    with ledger.reading() as connection:
        return [row._asdict() for row in connection.execute(wanted)]


def live_workers(ledger: Ledger) -> Rows:
    """Workers that gave a sign of life within their lease."""
    wanted = select(workers).where(workers.c.seen_at > later(literal(-WORKER_LEASE))).order_by(workers.c.name)
    with ledger.reading() as connection:
        return [row._asdict() for row in connection.execute(wanted)]
