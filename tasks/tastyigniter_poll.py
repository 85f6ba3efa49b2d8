"""What comes in from TastyIgniter: the poll, and the review of known orders of which there is news. Contract:
contracts/tastyigniter.md, whose sections are named here."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from clients.tastyigniter import Absent
from ledger import intake, interrupts, queries, signals
from ledger.connection import Ledger
from ledger.queries import Known
from ledger.signals import Signal
from orders.arrival import Arrival
from orders.errors import Refused, TryLater
from orders.outcomes import Planned
from orders.states import State
from schemas import tastyigniter as schema
from schemas.tastyigniter import RemoteOrder
from tasks.base import Account, Visit
from tasks.tastyigniter_order import CANCELED, PLAN, TAKE_BACK, check_deleted, digest, read_order, show, total_text

FRESH = timedelta(days=1)
"""How old an order may be when the fleet first looks: older ones were seen to without it."""
UNPLACED_FOR = timedelta(days=3)
"""How long a checkout that is not finished is looked at again; a webhook brings it back later, too."""
MOST_UNPLACED = 5
MOST_REREAD = 15
"""Orders read by their id in one visit: a site allows 60 requests a minute (6)."""
MOST_LOOKED_AT = 1000


@dataclass(slots=True)
class Kept:
    """What a poll remembers. `began`: when the first one was. `newest` and `before`: the highest id that the last visit
    saw, and the one before it. `unplaced`: checkouts that were not finished, and since when we know them. `reread`: the
    ledger's id of the last order that was read by its id."""

    began: str
    newest: int = 0
    before: int = 0
    unplaced: dict[str, str] = field(default_factory=dict)
    reread: int = 0

    def is_old(self, remote: RemoteOrder, zone: ZoneInfo) -> bool:
        """Whether the order was somebody else's business before there was a fleet."""
        created = schema.stamp(remote.created_at, zone)
        return created is not None and created < datetime.fromisoformat(self.began) - FRESH


def _cursor(account: Account) -> str:
    return f"tastyigniter.poll:{account.name}"


def kept_by_poll(ledger: Ledger, account: Account) -> Kept:
    """What the last visit remembered."""
    text = queries.cursor(ledger, _cursor(account))
    return Kept(queries.database_now(ledger).isoformat()) if text is None else Kept(**json.loads(text))


def _keep(visit: Visit, kept: Kept) -> None:
    signals.move_cursor(visit.ledger, _cursor(visit.account), json.dumps(asdict(kept)))


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the list; `remote` is None where it cannot be read: the order's own step will say why."""

    id: str
    document: dict[str, Any]
    remote: RemoteOrder | None


def poll(visit: Visit) -> None:
    """Take in what is new or has changed on the list's newest pages, then read by their id unfinished checkouts and
    orders that are not on them (3.1).

    There is no "changed since" (3.1). Every page down to an order that two visits have seen is read before any is taken
    in: a poll that was cut off leaves no gap, and a row that a deletion moved under the paging is on the next one."""
    kept = kept_by_poll(visit.ledger, visit.account)
    rows = _newest(visit.account, kept)
    intake.take_in(visit.ledger, "tastyigniter", [_arrival(visit.account, row) for row in rows])
    kept.before, kept.newest = kept.newest, max([kept.newest, *(int(row.id) for row in rows)])
    _note_unplaced(visit, kept, rows)
    _keep(visit, kept)
    try:
        _look_at_unplaced(visit, kept, rows)
        _read_unfinished(visit, kept, {row.id for row in rows})
    finally:
        _keep(visit, kept)


def _newest(account: Account, kept: Kept) -> list[Row]:
    zone: ZoneInfo = account.options.zone
    rows: list[Row] = []
    for page in account.client.newest_orders():
        found = [
            Row(order_id, document, remote) for document in page for order_id, remote in (schema.listed(document),)
        ]
        rows += found
        if _reached(found, kept, zone):
            break
    return [row for row in rows if row.remote is None or not kept.is_old(row.remote, zone)]


def _reached(page: list[Row], kept: Kept, zone: ZoneInfo) -> bool:
    """Whether older pages hold nothing new. A site that does not know our sort may show the newest ones last (3.1)."""
    ids = [int(row.id) for row in page]
    if ids != sorted(ids, reverse=True):
        return False
    return ids[-1] <= kept.before or any(row.remote is not None and kept.is_old(row.remote, zone) for row in page)


def _arrival(account: Account, row: Row, *, due: bool = False) -> Arrival:
    """What a row says is kept once for each change of it. An unfinished checkout makes no order yet. `due`: the order
    was ignored, and is to be done after all."""
    body = json.dumps(schema.slim(row.document), default=str, sort_keys=True)
    remote = row.remote
    makes_order = remote is None or (remote.placed and remote.status_id != account.options.statuses.canceled)
    return Arrival(
        account=account.name,
        external_id=row.id,
        dedupe_key=f"{'again' if due else 'row'}:{row.id}:{digest(body)}",
        kind="row" if remote is None else f"row.{remote.status_id}",
        body=body,
        plan=PLAN if makes_order else (),
        reference=row.id,
        due=due,
        news=not due,
    )


def _note_unplaced(visit: Visit, kept: Kept, rows: Iterable[Row]) -> None:
    """Checkouts may be finished after newer orders have pushed them off the pages that are read."""
    now = queries.database_now(visit.ledger)
    for row in rows:
        if row.remote is not None and not row.remote.placed:
            kept.unplaced.setdefault(row.id, now.isoformat())


def _look_at_unplaced(visit: Visit, kept: Kept, rows: Iterable[Row]) -> None:
    """Take up what is placed by now. It stays noted until its own step has found it placed, too: that step may just
    have read it as unfinished."""
    shown = {row.id: row for row in rows if row.id in kept.unplaced}
    shown |= _read_unplaced(visit, kept, [key for key in kept.unplaced if key not in shown][:MOST_UNPLACED])
    placed = [row for row in shown.values() if row.remote is None or row.remote.placed]
    known = queries.known_orders(visit.ledger, "tastyigniter", visit.account.name, [row.id for row in placed])
    orders = {one.external_id: one for one in known}
    for row in placed:
        order = orders.get(row.id)
        if order is not None and order.state != State.IGNORED and order.step != "tastyigniter.fetch":
            del kept.unplaced[row.id]
        else:
            ignored = order is not None and order.state == State.IGNORED
            intake.take_in(visit.ledger, "tastyigniter", [_arrival(visit.account, row, due=ignored)])
    _forget_unplaced(
        visit, kept, [row.id for row in shown.values() if row.remote is not None and not row.remote.placed]
    )


def _read_unplaced(visit: Visit, kept: Kept, order_ids: list[str]) -> dict[str, Row]:
    """Those that can be read. Where several cannot, the orders of which we know more have their turn."""
    found: dict[str, Row] = {}
    failed = 0
    for order_id in order_ids:
        kept.unplaced[order_id] = kept.unplaced.pop(order_id)  # the next visit begins with others
        try:
            document = visit.account.client.order(order_id)
            found[order_id] = Row(order_id, document, schema.listed(document)[1])
        except Absent:  # deleted, or out of sight for a while
            _forget_unplaced(visit, kept, [order_id])
        except Refused as refusal:
            show(visit.ledger, visit.account, order_id, refusal.reason)
        except TryLater:
            failed += 1
            if failed > 1:
                break
    return found


def _forget_unplaced(visit: Visit, kept: Kept, looked_at: Iterable[str]) -> None:
    """Those of these, which are not placed as we have just seen, that we know for long enough."""
    before = queries.database_now(visit.ledger) - UNPLACED_FOR
    for order_id in looked_at:
        if datetime.fromisoformat(kept.unplaced[order_id]) <= before:
            del kept.unplaced[order_id]


def _read_unfinished(visit: Visit, kept: Kept, read: set[str]) -> None:
    """Some in each visit, one after another: what was changed, cancelled or deleted while no webhook told."""
    known = queries.unfinished(visit.ledger, "tastyigniter", visit.account.name, MOST_LOOKED_AT)
    waiting = sorted(
        (one for one in known if one.external_id not in read and one.step != "tastyigniter.fetch"),
        key=lambda one: (one.id <= kept.reread, one.id),
    )
    failed = 0
    for one in waiting[:MOST_REREAD]:
        kept.reread = one.id
        try:
            problem = review(visit, one)
        except Refused as refusal:
            problem = refusal.reason
        except TryLater:
            failed += 1
            if failed > 1:  # one may be its own trouble, two are the site's
                raise
            continue
        if problem is not None:
            show(visit.ledger, visit.account, one.external_id, problem)


# -- news of a known order --------------------------------------------------------------------------------------------


def review(visit: Visit, known: Known) -> str | None:
    """Read one known order again: cancelled, deleted, changed, or placed after all."""
    if known.cancelling and not known.finished:
        return None
    asked_at = queries.database_now(visit.ledger)
    try:
        document, remote = read_order(visit.account, known.external_id)
    except Absent as absent:
        _review_absent(visit, known, absent)
        return None
    if known.finished:
        return _review_finished(visit, known, Row(known.external_id, document, remote))
    if remote.status_id == visit.account.options.statuses.canceled:
        look = Planned("tastyigniter.cancel", data={"seen": asked_at.isoformat()})  # a step may be writing just now
        rest = (*TAKE_BACK, look)
        interrupts.interrupt(visit.ledger, known.id, CANCELED.reason, rest, State.CANCELLED)
        return None
    return _changed_total(visit, known, remote)


def _review_absent(visit: Visit, known: Known, absent: Absent) -> None:
    """Finished orders may be tidied away. Raises `Refused` where nobody can tell whether it was deleted."""
    if known.finished:
        return
    check_deleted(visit.ledger, visit.account, known.external_id, known.facts, absent)
    interrupts.interrupt(visit.ledger, known.id, "deleted in TastyIgniter", TAKE_BACK, State.CANCELLED)


def _review_finished(visit: Visit, known: Known, row: Row) -> str | None:
    remote = row.remote
    if remote is None or not remote.placed:
        return None
    canceled = remote.status_id == visit.account.options.statuses.canceled
    if known.state == State.IGNORED and not canceled:
        intake.take_in(visit.ledger, "tastyigniter", [_arrival(visit.account, row, due=True)])
    elif known.state == State.DONE and canceled:
        return "it is canceled in TastyIgniter, but done here: take it back in the ERP by hand"
    elif known.state == State.CANCELLED and not canceled:
        return reopened(remote)
    return None


def reopened(remote: RemoteOrder) -> str:
    """What a person is told of an order that was taken back, and is wanted again."""
    return f"it is cancelled here and in the ERP, but stands at status {remote.status_id} in TastyIgniter"


def _changed_total(visit: Visit, known: Known, remote: RemoteOrder) -> str | None:
    """What the ERP was told is not told anew by itself: a person decides."""
    told, now = known.facts.get("total"), total_text(remote)
    if told is None or now == told:
        return None
    sentence = (
        f"its total was {told} when it was read for the ERP, and is {now} in TastyIgniter: change it in the ERP by hand"
    )
    flags = list(dict.fromkeys([*known.facts.get("flags", []), sentence]))
    source = f"total:{remote.updated_at}:{now}"
    signals.signal(visit.ledger, [Signal(known.id, "changed", source, {}, {"total": now, "flags": flags})])
    return sentence
