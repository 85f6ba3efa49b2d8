"""What must be committed around an effect that cannot be repeated: whose turn it is, what is about to be done, and
whose the result is.

A turn is a row of `ticks`, held by an order instead of a worker: it survives whoever works on the order. A result is an
event, whose unique key makes it one order's for ever.
"""

import json
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite

from databases.clock import later, now
from ledger import intake
from ledger.connection import Ledger
from ledger.models import AWAITS_TURN, events, orders, ticks
from ledger.records import Claim
from ledger.rows import upsert
from orders.arrival import Arrival
from orders.errors import Fenced
from orders.lanes import lane_of
from orders.states import FINISHED, NEEDS_A_PERSON, State

TURN = "turn"
"""What an order waits for whose turn it is not; no longer than `LONGEST_TURN` seconds, should nobody tell it: a
thousand that ask again and again would do nothing else."""
LONGEST_TURN = 3600.0

_BOUND = "bound:"
_AT_REST = (*FINISHED, *NEEDS_A_PERSON)


# -- turns ------------------------------------------------------------------------------------------------------------


def take_turn(ledger: Ledger, held: Claim, steps: Collection[str]) -> bool:
    """Whether it is this order's turn at its account: it was nobody's, or this order's already. If not, the order is
    to wait for the signal `TURN`.

    The order keeps it until `end_turn`, however often its step is repeated, or until it stands still: at none of
    `steps` any more, finished, or waiting for a person, who must not hold up all others."""
    name, mine = _turn(held), str(held.id)
    insert_ = postgresql.insert if ledger.postgresql else sqlite.insert
    with ledger.transaction() as connection:
        connection.execute(insert_(ticks).values(name=name, next_at=now()).on_conflict_do_nothing())
        holder = _holder(connection, name)
        if holder not in (None, mine) and _goes_on(connection, str(holder), steps):
            return False
        connection.execute(update(ticks).where(ticks.c.name == name).values(holder=mine))
    return True


def holds_turn(ledger: Ledger, held: Claim) -> bool:
    """Whether the turn is still this order's, and no other order had it meanwhile."""
    with ledger.transaction() as connection:
        return _holder(connection, _turn(held)) == str(held.id)


def end_turn(ledger: Ledger, held: Claim) -> None:
    """The next one, please: one order that waits goes at once. Nothing happens if it is not this order's turn."""
    with ledger.transaction() as connection:
        mine = (ticks.c.name == _turn(held), ticks.c.holder == str(held.id))
        ended = connection.execute(update(ticks).where(*mine).values(holder=None))
        if ended.rowcount == 1:
            connection.execute(_WAKE_NEXT, {"of": held.system, "on": lane_of(held.system, held.account, held.step)})


def wake_if_free(ledger: Ledger, system: str, account: str, steps: Collection[str]) -> None:
    """To be called from time to time: one order that waits goes if the turn's holder stands still (see `take_turn`),
    or is nobody, as when the one that was woken last never came."""
    with ledger.transaction() as connection:
        holder = _holder(connection, f"{system}.turn:{account}")
        if holder is None or not _goes_on(connection, holder, steps):
            connection.execute(_WAKE_NEXT, {"of": system, "on": lane_of(system, account, None)})


def _turn(held: Claim) -> str:
    return f"{held.system}.turn:{held.account}"


def _holder(connection: Connection, name: str) -> str | None:
    """Under the row's lock: who decides by it must not be overtaken."""
    return connection.execute(select(ticks.c.holder).where(ticks.c.name == name).with_for_update()).scalar_one_or_none()


def _goes_on(connection: Connection, holder: str, steps: Collection[str]) -> bool:
    under_way = select(func.count()).where(
        orders.c.id == int(holder), orders.c.step.in_(steps), orders.c.state.not_in(_AT_REST)
    )
    return bool(connection.execute(under_way).scalar_one())


_NEXT = (
    select(orders.c.id)
    .where(
        orders.c.system == bindparam("of"),
        orders.c.lane == bindparam("on"),
        AWAITS_TURN,  # the index
    )
    .order_by(orders.c.wake_at)
    .limit(1)
    .with_for_update(skip_locked=True)
)
_WAKE_NEXT = (
    update(orders)
    .where(orders.c.id.in_(_NEXT.scalar_subquery()))
    .values(state=State.READY, wake_at=now(), version=orders.c.version + 1, updated_at=now())
)


@contextmanager
def alone(ledger: Ledger, name: str, seconds: float) -> Iterator[Callable[[], bool] | None]:
    """Do what only one process at a time may do: a turn that nobody waits for, held by whoever entered, who may be a
    person's command that no sweep knows of. It is over after so many seconds, should its holder have died.

    What is yielded says, right before the write, whether it is this holder's still, and for so many seconds more; it is
    None if somebody else is at it."""
    mine = uuid.uuid4().hex
    yours = (ticks.c.name == name, ticks.c.holder == mine)

    def still_alone() -> bool:
        with ledger.statement() as connection:
            kept = connection.execute(update(ticks).where(*yours).values(next_at=later(literal(seconds))))
        return kept.rowcount == 1

    taken = _take_alone(ledger, name, mine, seconds)
    try:
        yield still_alone if taken else None
    finally:
        with ledger.statement() as connection:
            connection.execute(delete(ticks).where(*yours))


def _take_alone(ledger: Ledger, name: str, holder: str, seconds: float) -> bool:
    until = {"next_at": later(literal(seconds)), "holder": holder}
    with ledger.statement() as connection:
        row = connection.execute(
            upsert(ledger, ticks)
            .values(name=name, **until)
            .on_conflict_do_update(index_elements=["name"], set_=until, where=ticks.c.next_at <= now())
            .returning(ticks.c.name)
        ).one_or_none()
    return row is not None


# -- facts in the middle of a step ------------------------------------------------------------------------------------


def keep_facts(ledger: Ledger, held: Claim, facts: dict[str, Any]) -> None:
    """Merge `facts` into what is known of the order, now and not when its step ends. Raises `Fenced` when the claim is
    lost: what was to follow must not be done."""
    mine = (orders.c.id == held.id, orders.c.fence == held.fence, orders.c.state == State.RUNNING)
    with ledger.transaction() as connection:
        known = connection.execute(select(orders.c.facts).where(*mine).with_for_update()).scalar_one_or_none()
        if known is None:
            raise Fenced(f"order {held.id} is held by another")
        connection.execute(
            update(orders).where(orders.c.id == held.id).values(facts=json.dumps(json.loads(known) | facts))
        )
    held.facts.update(facts)


# -- results ----------------------------------------------------------------------------------------------------------


def bind(ledger: Ledger, system: str, account: str, external_id: str, result: str) -> str:
    """Make the remote's `result` (its id there) this order's, unless it is another's: the external id of the order
    whose it is. However many try at once, it is one order's."""
    # The body says nothing of the order: it is part of the key that must not be there twice.
    arrival = Arrival(account, external_id, f"{_BOUND}{result}", "bound", json.dumps({"id": result}), plan=())
    intake.take_in(ledger, system, [arrival])
    return owners(ledger, system, account, [result])[result]


def owners(ledger: Ledger, system: str, account: str, results: Collection[str]) -> dict[str, str]:
    """Those of these results that are some order's, with that order's external id."""
    wanted = select(events.c.dedupe_key, events.c.external_id).where(
        events.c.system == system,
        events.c.account == account,
        events.c.dedupe_key.in_([f"{_BOUND}{result}" for result in results]),
    )
    with ledger.reading() as connection:
        return {key.removeprefix(_BOUND): owner for key, owner in connection.execute(wanted)}


def results_of(ledger: Ledger, system: str, account: str, external_id: str) -> list[str]:
    """What is bound to an order, the first first."""
    wanted = (
        select(events.c.dedupe_key)
        .where(
            events.c.system == system,
            events.c.account == account,
            events.c.external_id == external_id,
            events.c.kind == "bound",
        )
        .order_by(events.c.id)
    )
    with ledger.reading() as connection:
        return [key.removeprefix(_BOUND) for key in connection.execute(wanted).scalars()]
