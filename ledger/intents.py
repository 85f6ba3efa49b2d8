"""What must be committed around an effect that cannot be repeated: whose turn it is, what is about to be done, and
whose the result is.

A turn is a row of `ticks`, held by an order instead of a worker: it survives whoever works on the order. A result is an
event, whose unique key makes it one order's for ever.
"""

import json
from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from databases.clock import now
from ledger import records
from ledger.connection import Ledger
from ledger.models import events, orders, ticks
from ledger.records import Claim
from orders.arrival import Arrival
from orders.errors import Fenced
from orders.states import FINISHED, NEEDS_A_PERSON, State

_BOUND = "bound:"
_AT_REST = (*FINISHED, *NEEDS_A_PERSON)


# -- turns ------------------------------------------------------------------------------------------------------------


def take_turn(ledger: Ledger, name: str, order_id: int, steps: Collection[str]) -> bool:
    """Whether the turn called `name` is this order's now: it was free, or it was its own already.

    The order holds it until `end_turn`, however often its step is repeated, or until it stands still: at none of
    `steps` any more, finished, or waiting for a person, who must not hold up all others."""
    insert_ = postgresql.insert if ledger.postgresql else sqlite.insert
    with ledger.transaction() as connection:
        connection.execute(insert_(ticks).values(name=name, next_at=now()).on_conflict_do_nothing())
        holder = _holder(connection, name)
        if holder not in (None, str(order_id)) and _goes_on(connection, str(holder), steps):
            return False
        connection.execute(update(ticks).where(ticks.c.name == name).values(holder=str(order_id)))
    return True


def holds_turn(ledger: Ledger, name: str, order_id: int) -> bool:
    """Whether the turn is still this order's, and no other order had it meanwhile."""
    with ledger.transaction() as connection:
        return _holder(connection, name) == str(order_id)


def end_turn(ledger: Ledger, name: str, order_id: int) -> None:
    """The next one, please; nothing happens if it is not this order's turn."""
    with ledger.statement() as connection:
        connection.execute(
            update(ticks).where(ticks.c.name == name, ticks.c.holder == str(order_id)).values(holder=None)
        )


def _holder(connection: Connection, name: str) -> str | None:
    """Under the row's lock: who decides by it must not be overtaken."""
    return connection.execute(select(ticks.c.holder).where(ticks.c.name == name).with_for_update()).scalar_one_or_none()


def _goes_on(connection: Connection, holder: str, steps: Collection[str]) -> bool:
    under_way = select(func.count()).where(
        orders.c.id == int(holder), orders.c.step.in_(steps), orders.c.state.not_in(_AT_REST)
    )
    return bool(connection.execute(under_way).scalar_one())


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
    records.take_in(ledger, system, [arrival])
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
