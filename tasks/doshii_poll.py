"""What comes in from Doshii: the poll, and the review of known orders of which there is news. Contract:
contracts/doshii.md."""

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from ledger import intake, interrupts, queries, signals
from ledger.queries import Known
from orders.arrival import Arrival
from orders.errors import Refused, TryLater
from orders.outcomes import Planned
from orders.states import State
from schemas import doshii as schema
from schemas.doshii import CANCELLED
from tasks.base import Visit
from tasks.doshii_order import PLAN, Finder, Found, as_text, pending_items

OVERLAP = timedelta(minutes=12)
"""How far a poll of linked orders looks back behind the last one: clocks may differ by ten minutes, and rows shift
while paging."""
LATELY = timedelta(minutes=2)
"""How far it looks back for orders to be read again: of what is older it believes the row, which has a status only."""
FIRST_LOOK = timedelta(days=1)


def poll(visit: Visit) -> None:
    """Take in every unlinked order that is pending, and have read again what changed of known ones (section 7.3).

    This is what finds events that were lost: it runs at start and every minute."""
    rows = _readable(visit, visit.account.client.unlinked_orders())
    intake.take_in(visit.ledger, "doshii", list(_unlinked_arrivals(visit, rows)))
    _poll_linked(visit)


def _readable(visit: Visit, documents: Iterable[Any]) -> list[schema.Row]:
    """Rows, each order's last one. One that cannot be read is a person's matter, and hides no other."""
    rows = {}
    for document in documents:
        try:
            row = schema.parse_row(document)
        except Refused as refusal:
            _keep_odd_row(visit, document, refusal.reason)
        else:
            rows[row.doshii_id] = row
    return list(rows.values())


def _keep_odd_row(visit: Visit, document: Any, reason: str) -> None:
    number = schema.id_of_row(document)
    body = as_text({"doshiiId": number, "problem": reason})  # no more of it: what changes from poll to poll is no news
    problem = f"{reason} (order {number})"
    intake.keep_odd_event(visit.ledger, "doshii", visit.account.name, f"row:{number}", "poll", body, problem)


def _unlinked_arrivals(visit: Visit, rows: list[schema.Row]) -> Iterator[Arrival]:
    """The list holds orders in other states, too (trap 20): those are news of orders that we know."""
    known = _known(visit, [row for row in rows if row.status in CANCELLED])
    for row in rows:
        if row.status == "pending":
            yield _arrival(visit, row, f"unlinked:{row.doshii_id}", PLAN)
        elif row.doshii_id in known and not known[row.doshii_id].finished:
            yield _arrival(visit, row, f"unlinked:{row.doshii_id}:{row.status}")


def _poll_linked(visit: Visit) -> None:
    name = f"doshii.poll:{visit.account.name}"
    began = queries.database_now(visit.ledger)
    kept = queries.cursor(visit.ledger, name)
    last = began - FIRST_LOOK if kept is None else datetime.fromtimestamp(int(kept), UTC)
    rows = _readable(visit, visit.account.client.orders(updated_from=int((last - OVERLAP).timestamp())))
    known = _known(visit, rows)  # the others were made at the till, or are another's: orders come in unlinked only
    rows = [row for row in rows if row.doshii_id in known]
    intake.take_in(visit.ledger, "doshii", [_news(visit, row) for row in rows if _is_cancelled(row, known)])
    still_open = [row for row in rows if row.status == "accepted" and not known[row.doshii_id].finished]
    if still_open:
        lately = int((last - LATELY).timestamp())
        intake.take_in(visit.ledger, "doshii", list(_changed(visit, still_open, known, lately, began)))
    signals.move_cursor(visit.ledger, name, str(int(began.timestamp())))


def _is_cancelled(row: schema.Row, known: dict[str, Known]) -> bool:
    return row.status in CANCELLED and not known[row.doshii_id].cancelling


def _news(visit: Visit, row: schema.Row) -> Arrival:
    return _arrival(visit, row, f"linked:{row.doshii_id}:{row.status}")


def _changed(
    visit: Visit, rows: list[schema.Row], known: dict[str, Known], lately: int, began: datetime
) -> Iterator[Arrival]:
    """News of the orders among `rows` that have changed since then (epoch seconds), not by ourselves."""
    changed = {schema.id_of_row(row) for row in visit.account.client.orders(updated_from=lately)}
    for row in rows:
        if row.doshii_id in changed:
            order = known[row.doshii_id]
            version = _version_of(visit, order, began)
            if version != order.facts.get("version"):
                yield _arrival(visit, row, f"linked:{row.doshii_id}@{version}")


def _version_of(visit: Visit, order: Known, began: datetime) -> str:
    """Rows carry none (section 5). Where it cannot be read the review says what is wrong, or goes on trying: that it
    is to look must be news each time."""
    try:
        return _of_known(visit, order).find().remote.version
    except Refused:
        return "unreadable"
    except TryLater:
        return f"unreadable:{began:%Y-%m-%dT%H:%M}"


def _known(visit: Visit, rows: list[schema.Row]) -> dict[str, Known]:
    ids = [row.doshii_id for row in rows]
    found = (
        order
        for at in range(0, len(ids), 500)
        for order in queries.known_orders(visit.ledger, "doshii", visit.account.name, ids[at : at + 500])
    )
    return {order.external_id: order for order in found}


def _arrival(visit: Visit, row: schema.Row, key: str, plan: tuple[Planned, ...] = ()) -> Arrival:
    body = json.dumps({"doshiiId": row.doshii_id, "status": row.status})
    return Arrival(visit.account.name, row.doshii_id, key, "poll", body, plan, row.doshii_id, news=not plan)


def _of_known(visit: Visit, order: Known) -> Finder:
    return Finder(visit.ledger, visit.account.client, order.id, order.external_id, order.facts)


def review(visit: Visit, order: Known) -> str | None:
    """What came of a known order at Doshii. Its steps read it themselves: late payments and appended items are seen to
    by `doshii.follow`, which is woken, or told of later if it, or what ends the order, is running: it may have read
    already. A cancellation must not wait for them, nor must items that the ERP can still take: its draft is not
    confirmed yet."""
    finder = _of_known(visit, order)
    if order.finished:
        return _too_late(order, finder.find_with_payments())
    found = finder.find()
    if found.cancelled:
        reason = f"{found.remote.status} at Doshii"
        interrupts.interrupt(visit.ledger, order.id, reason, (Planned("erp.cancel"),), State.CANCELLED)
    elif found.remote.pending and order.step == "erp.order" and order.state in _NOT_BEGUN:
        reason = f"the partner appended {pending_items(found)}: taken in anew"
        at = ("erp.order", _NOT_BEGUN)
        if interrupts.interrupt(visit.ledger, order.id, reason, PLAN, State.DONE, only=at) is None:
            raise TryLater("the order went on while we read it")
    elif order.state == State.RUNNING and order.step in _LAST_STEPS:
        raise TryLater(f"{order.step} is running, and may have read the order before this came")
    else:
        intake.wake(visit.ledger, order.id)
    return None


_NOT_BEGUN = (State.READY, State.QUEUED, State.RETRYING)
_LAST_STEPS = ("doshii.follow", "doshii.complete")


def _too_late(order: Known, found: Found) -> str | None:
    if found.cancelled and order.state == State.DONE:
        return f"{found.remote.status} at Doshii, though it is done here"
    pending = ", ".join(one.words for one in schema.pending_payments(found.payments))
    if pending and order.state != State.IGNORED:
        return f"{pending}: asked for at Doshii, though the order is {order.state} here"
    return None
