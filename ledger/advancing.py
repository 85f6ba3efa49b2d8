"""The statements by which an order moves on when a step of it is done, each compiled once."""

from typing import Any

from sqlalchemy import Float, String, Update, bindparam, case, cast, insert, literal, null, or_, select, update

from databases.clock import later, now
from ledger.direct import Direct, DirectSqlite
from ledger.leases import RESEND_AFTER, STEP_LIMIT
from ledger.models import attempts, orders
from ledger.rows import NOTE, attempt_values
from orders.states import State


def held_where() -> tuple[Any, ...]:
    """What must be true of an order for a claim to hold: its parameters are `order`, `at` and `held_fence`."""
    return (
        orders.c.id == bindparam("order"),
        orders.c.position == bindparam("at"),
        orders.c.fence == bindparam("held_fence"),
        orders.c.state == State.RUNNING,
    )


def _signalled_sql(name: Any) -> Any:
    return (literal("|") + orders.c.signalled).like(literal("%|") + name + literal("|%"))


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
    return update(orders).where(*held_where()).values(**values)


_MOVED = (
    orders.c.id,
    orders.c.state,
    orders.c.fence,
    orders.c.signal_seq,
    orders.c.claimed_at,
    orders.c.interrupt,
)


def _advance_in_one(moving: Update) -> Any:
    """PostgreSQL does both writes in one statement: one round trip, no BEGIN and no COMMIT of its own."""
    moved = moving.returning(*_MOVED).cte("moved")
    values = attempt_values()
    noted = insert(attempts).from_select(["order_id", *values], select(moved.c.id, *values.values())).cte("noted")
    return select(moved).add_cte(noted)


_KINDS = [(kind, state) for kind in ("last", "free", "gated") for state in (State.RUNNING, State.QUEUED, State.READY)]
ADVANCE = {key: _advance(*key).returning(*_MOVED) for key in _KINDS}
"""By kind, and by what becomes of the order if its next step may run, see `_advance`."""
_MOVED_NAMES = [column.name for column in _MOVED]
ADVANCE_IN_ONE = {key: Direct(_advance_in_one(_advance(*key)), _MOVED_NAMES) for key in _KINDS}
ADVANCE_SQLITE = {key: DirectSqlite(ADVANCE[key], _MOVED_NAMES, times=["claimed_at"]) for key in _KINDS}
NOTE_SQLITE = DirectSqlite(NOTE)
