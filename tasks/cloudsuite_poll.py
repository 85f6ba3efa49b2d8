"""What comes in from CloudSuite: the poll, and the review of known orders whose row has changed. Contract:
contracts/cloudsuite.md, whose traps are named here."""

import hashlib
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from ledger import intake, interrupts, queries, signals
from ledger.queries import Known
from orders.arrival import Arrival
from orders.errors import READ_FAILED, StepError, TryLater, Unavailable
from orders.model import Order
from orders.outcomes import Planned
from orders.states import State
from schemas import cloudsuite as schema
from tasks.base import Account, Visit
from tasks.cloudsuite_order import CANCELLED, CHANGED, PLAN, Options, show, show_if_out

OVERLAP = timedelta(days=2)
FULL_PASS = timedelta(hours=20)
AHEAD = timedelta(days=1)
"""How far the shop's naive clock may be ahead of ours, which is in UTC: a date beyond that is none to go by."""


def poll(visit: Visit) -> None:
    """Take in every confirmed order, then the cancellations of known ones.

    All pages are read before any order is taken in: taking the first ones on would shrink the list under the
    paging, and skip rows (trap 4). `state=confirmed` is the queue; the date is a lower bound with two days' overlap,
    in the server's own naive time (traps 5, 9), and left out at least once a day. Where a page cannot be read the
    rows before it are taken in all the same, and the next visit begins where this one did."""
    name = f"cloudsuite.poll:{visit.account.name}"
    today = queries.database_now(visit.ledger)
    kept = _kept(queries.cursor(visit.ledger, name), today)
    full = "full_at" not in kept or today - datetime.fromisoformat(kept["full_at"]) > FULL_PASS
    bound = {} if full or "newest" not in kept else {"confirm_date__gte": _minus_overlap(kept["newest"])}
    rows, failure = _read_lists(visit, _wanted(visit.account, bound))
    intake.take_in(visit.ledger, "cloudsuite", [_arrival(visit.account, row) for row in rows])
    if "newest" in kept and not isinstance(failure, Unavailable):
        since = _minus_overlap(kept["newest"])
        cancelled, unread = _read_lists(visit, [{"state": "cancel", "modified_date__gte": since}])
        _take_cancellations(visit, cancelled)
        rows, failure = rows + cancelled, failure or unread
    if failure is not None:
        raise failure
    newest = max([_stamp(row.get("modified_date")) for row in rows] + [kept.get("newest", "")])
    if newest:
        kept["newest"] = min(newest, _latest(today))
    if full:
        kept["full_at"] = today.isoformat()
    signals.move_cursor(visit.ledger, name, json.dumps(kept))


def _kept(text: str | None, today: datetime) -> dict[str, str]:
    """What the last visit remembered."""
    kept: dict[str, str] = json.loads(text or "{}")
    return kept | {"newest": min(kept["newest"], _latest(today))} if "newest" in kept else kept


def _latest(today: datetime) -> str:
    """The latest date that is believed, as a naive text: one far ahead would hide all that comes before it."""
    return (today.astimezone(UTC).replace(tzinfo=None) + AHEAD).isoformat(timespec="microseconds")


def _stamp(value: Any) -> str:
    """A row's date in a form that can be compared; empty if it is none."""
    try:
        return datetime.fromisoformat(value).replace(tzinfo=None).isoformat(timespec="microseconds")
    except (TypeError, ValueError):
        return ""


def _minus_overlap(naive: str) -> str:
    return (datetime.fromisoformat(naive) - OVERLAP).strftime("%Y-%m-%dT%H:%M:%S")


def _wanted(account: Account, bound: dict[str, str]) -> list[dict[str, Any]]:
    """The filters of the lists that orders come in by."""
    options: Options = account.options
    wanted: dict[str, Any] = {"state": "confirmed", **bound}
    if options.webshop is not None:
        wanted["webshop"] = options.webshop
    if options.offline == "ignore":
        return [wanted | {"offline": "false"}]
    return [wanted, wanted | {"state": "processing", "offline": "true"}]


def _read_lists(visit: Visit, lists: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], StepError | None]:
    """The rows of these lists as far as they can be read, and what was in the way of the others."""
    rows: list[dict[str, Any]] = []
    failure: StepError | None = None
    for wanted in lists:
        try:
            for row in _rows(visit, wanted):
                rows.append(row)
        except Unavailable as error:
            return rows, failure or error
        except StepError as error:
            failure = failure or error
    return rows, failure


def _rows(visit: Visit, wanted: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """List rows in the wanted state: a filter that the server does not know returns every order (trap 7)."""
    for page in visit.account.client.orders(**wanted):
        for row in page.rows:
            if isinstance(row, dict) and row.get("state") != wanted["state"]:
                continue
            if _names_an_order(row):
                yield row
            else:
                _keep_odd_row(visit, row)


def _names_an_order(row: Any) -> bool:
    return isinstance(row, dict) and re.fullmatch("[0-9]{1,18}", str(row.get("id"))) is not None


def _keep_odd_row(visit: Visit, row: Any) -> None:
    body = json.dumps(row, default=str, sort_keys=True)
    key = f"odd:{hashlib.sha256(body.encode()).hexdigest()[:40]}"
    problem = "a row of the list of orders has no id: if it is an order, it does not come in"
    intake.keep_odd_event(visit.ledger, "cloudsuite", visit.account.name, key, "row.odd", body, problem)


def _arrival(account: Account, row: dict[str, Any], name: str = "row") -> Arrival:
    confirmed = row.get("state") == "confirmed"
    return Arrival(
        account=account.name,
        external_id=str(row["id"]),
        dedupe_key=f"{name}:{row['id']}:{row.get('state')}:{row.get('modified_date')}",
        kind=f"row.{row.get('state')}",
        body=json.dumps(row, default=str, sort_keys=True),
        plan=PLAN,
        reference=row.get("reference"),
        due=confirmed,
        news=confirmed and name == "row",
    )


def _take_cancellations(visit: Visit, rows: list[dict[str, Any]]) -> None:
    ids = [str(row["id"]) for row in rows]
    for order in queries.known_orders(visit.ledger, "cloudsuite", visit.account.name, ids):
        stopped = interrupts.interrupt(
            visit.ledger, order.id, CANCELLED.reason, (Planned("erp.cancel"),), State.CANCELLED
        )
        if stopped is not None:
            show_if_out(visit.ledger, order.account, order.id, order.external_id)
        elif order.state == State.DONE:
            problem = "cancelled in the webshop, but done here: nothing was taken back, decide with the customer"
            show(visit.ledger, order.account, "cancelled", problem, order.external_id)


# -- news of a known order --------------------------------------------------------------------------------------------

_NOT_BEGUN = (State.READY, State.QUEUED, State.RETRYING)


def review(visit: Visit, known: Known) -> str | None:
    """A confirmed order's row has changed. Before the ERP has the order it is read anew; after that a person is told of
    what was changed, or set back."""
    if known.state == State.RUNNING:
        raise TryLater("a worker is at it, and may have read the order before this came", status=READ_FAILED)
    if known.finished:
        return _review_finished(visit, known)
    if known.cancelling or known.step == "cloudsuite.state":  # which looks for itself
        return None
    if known.step == "erp.order" and known.state in _NOT_BEGUN:
        reason = "changed in the webshop before the ERP took it: read again"
        at = ("erp.order", _NOT_BEGUN)
        if interrupts.interrupt(visit.ledger, known.id, reason, PLAN, State.DONE, only=at) is None:
            raise TryLater("the order went on meanwhile", status=READ_FAILED)
        return None
    if known.step in ("cloudsuite.fetch", "erp.order"):
        intake.wake(visit.ledger, known.id)
        return None
    return _review_handed_over(visit, known)


def _review_finished(visit: Visit, known: Known) -> str | None:
    document = visit.account.client.order(known.external_id)
    if schema.parse_order(document).state != "confirmed":
        return None
    if known.state == State.IGNORED:
        row = {name: document.get(name) for name in ("id", "reference", "state", "modified_date")}
        intake.take_in(visit.ledger, "cloudsuite", [_arrival(visit.account, row, "again")])
        return None
    again = "enter it as a new order" if known.state == State.CANCELLED else "replay it"
    return f"row.confirmed came for order {known.id}, which is {known.state} here: {again} if it is to be done again"


def _review_handed_over(visit: Visit, known: Known) -> str | None:
    remote = schema.parse_order(visit.account.client.order(known.external_id))
    words = []
    if remote.state == "confirmed":
        words.append("set back to confirmed in the webshop while the ERP has it: set it to processing there")
    told = queries.document(visit.ledger, known.id)
    changes = schema.changes(Order.from_json(told), schema.to_order(remote)) if told is not None else []
    if changes:
        words.append(f"{CHANGED} ({'; '.join(changes)}): change it in the ERP by hand, or take it back in the shop")
    return "; ".join(words) or None
