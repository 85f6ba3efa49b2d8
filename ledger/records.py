"""A worker's hold on an order: its claim to a step, and the record of how the step ended."""

import json
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, String, Update, and_, bindparam, literal, literal_column, null, or_, select, update

from databases.clock import later, now
from ledger.advancing import ADVANCE, ADVANCE_IN_ONE, ADVANCE_SQLITE, NOTE_SQLITE, held_where
from ledger.connection import Ledger
from ledger.direct import Direct, DirectSqlite, both_or_neither
from ledger.leases import STEP_LIMIT
from ledger.models import documents, orders
from ledger.rows import NOTE, AnyRow, upsert, write_rest
from ledger.signals import insert_signals, is_signalled
from orders.lanes import lane_of
from orders.outcomes import Done, Planned, alternatives
from orders.states import State

# -- claim ------------------------------------------------------------------------------------------------------------


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


def _as_claim(row: AnyRow, worker: str) -> Claim:
    values = row._asdict()
    plan = tuple(
        Planned(name, awaits, recheck, json.loads(data) if data != "{}" else {})
        for name, awaits, recheck, data in json.loads(values.pop("plan"))
    )
    return Claim(**{**values, "facts": json.loads(values["facts"])}, plan=plan, worker=worker)


# -- record -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recorded:
    """Where the order stands after a record: its new state and, if this worker holds on to it, the next claim."""

    state: str
    next: Claim | None = None
    interrupt: str | None = None


def done(ledger: Ledger, held: Claim, outcome: Done, then: State) -> Recorded | None:
    """Record that the step is done and move on, in one commit; None when the claim was lost meanwhile.

    `then` is what becomes of the order if its next step may run: RUNNING keeps it claimed by this worker."""
    if _is_lean(outcome):
        return _moved_on(held, *_advance_lean(ledger, held, outcome, then))
    with ledger.transaction() as connection:
        held = _learn(connection, ledger, held, outcome)
        key, values = _advance_values(held, outcome, then)
        row = connection.execute(ADVANCE[key], values).one_or_none()
        if row is not None:
            connection.execute(NOTE, values)
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
            return ADVANCE_IN_ONE[key].one_or_none(connection, values), values
    with ledger.statement() as connection:
        return both_or_neither(connection, ADVANCE_SQLITE[key], NOTE_SQLITE, values), values


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
        insert_signals(connection, ledger, [(held.id, name, f"step:{held.step}", {}) for name in fresh])
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
        upsert(ledger, documents)
        .values(order_id=order_id, updated_at=now(), **values)
        .on_conflict_do_update(index_elements=["order_id"], set_={**values, "updated_at": now()})
    )


def _replace_rest(connection: Connection, held: Claim, rest: tuple[Planned, ...]) -> tuple[Planned, ...]:
    if held.plan[held.position + 1 :] == rest:
        return held.plan
    write_rest(connection, held.id, held.position + 1, rest)
    return held.plan[: held.position + 1] + rest


def _put_down(ledger: Ledger, held: Claim, values: dict[str, Any], attempt: dict[str, Any]) -> Recorded | None:
    """End a claim without moving on: the order's new values and the attempt, in one commit."""
    with ledger.transaction() as connection:
        row = connection.execute(
            update(orders)
            .where(*held_where())
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
        connection.execute(NOTE, {"order": held.id, "at": held.position, **attempt})
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
            .where(*held_where())
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
        connection.execute(NOTE, {"order": held.id, "at": held.position, **told})
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
            update(orders).where(*held_where()).values(ending=ending).returning(orders.c.id),
            {"order": held.id, "at": held.position, "held_fence": held.fence},
        ).one_or_none()
        if owned is None:
            return None
        held = _learn(connection, ledger, held, Done(rest=rest, **learnt))
        key, values = _advance_values(held, Done(detail=reason), State.READY)
        row = connection.execute(ADVANCE[key], values | {"outcome": ending.value}).one()
        connection.execute(NOTE, values | {"outcome": ending.value})
        if ending is State.IGNORED:  # nothing runs any more that would say why
            connection.execute(update(orders).where(orders.c.id == held.id).values(error=reason))
    return _moved_on(held, row, values)
