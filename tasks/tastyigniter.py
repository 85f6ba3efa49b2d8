"""TastyIgniter: restaurant orders from the checkout to the ERP and back. Contract: contracts/tastyigniter.md, whose
sections are named here.

A status that is written may be a mail to the customer (5): every step reads before it writes, and what it wrote.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from clients.tastyigniter import Absent, Invalid
from ledger import intake, interrupts, queries, signals
from ledger.connection import Ledger
from ledger.queries import Known
from ledger.signals import Signal
from orders.arrival import Arrival
from orders.errors import Misconfigured, Refused, TryLater
from orders.outcomes import Again, Done, Ended, Outcome, Planned, skipped
from orders.states import State
from schemas import tastyigniter as schema
from schemas.tastyigniter import LOOK_AGAIN, RemoteOrder, Statuses
from tasks.base import Account, Command, Job, Preview, System, Visit, already, call, preview, step
from tasks.shipped import all_shipped

FRESH = timedelta(days=1)
"""How old an order may be when the fleet first looks: older ones were seen to without it."""
SKEW = timedelta(seconds=60)
"""How far the site's clock may be from ours."""
UNPLACED_FOR = timedelta(days=3)
"""How long a checkout that is not finished is looked at again; a webhook brings it back later, too."""
MOST_UNPLACED = 5
MOST_REREAD = 15
"""Orders read by their id in one visit: a site allows 60 requests a minute (6)."""
MOST_LOOKED_AT = 1000
MOST_EVENTS = 200
READ_FAILED = 200
"""The status of a `TryLater` that is no fault of the remote: it answered, but what we wrote is not there."""
_NAMES = frozenset(("first_name", "last_name", "order_type"))


@dataclass(frozen=True, slots=True)
class Options:
    """The settings of one account. `currency`: of a site that does not say its own. `product`: stands for an order of
    which nobody told the dishes, after `lines_seconds` of waiting for a webhook that does, if `webhooks` come."""

    zone: ZoneInfo
    currency: str | None = None
    statuses: Statuses = field(default_factory=Statuses)
    product: str = "ORDER"
    webhooks: bool = False
    lines_seconds: int = 120


PLAN = (Planned("tastyigniter.fetch"),)
_REST = (
    Planned("erp.order"),
    Planned("tastyigniter.preparing", awaits="numbered"),
    Planned("tastyigniter.completed", awaits="completed|shipped"),
)
_TAKE_BACK = (Planned("erp.cancel"),)
_CANCELED = Ended("canceled in TastyIgniter", cancelled=True)
_MOVES = ("tastyigniter.preparing", "tastyigniter.completed")


# -- the poll ---------------------------------------------------------------------------------------------------------


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


def _kept(ledger: Ledger, account: Account) -> Kept:
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
    kept = _kept(visit.ledger, visit.account)
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
        dedupe_key=f"{'again' if due else 'row'}:{row.id}:{_digest(body)}",
        kind="row" if remote is None else f"row.{remote.status_id}",
        body=body,
        plan=PLAN if makes_order else (),
        reference=row.id,
        due=due,
        news=not due,
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:40]


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
            _show(visit.ledger, visit.account, order_id, refusal.reason)
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


def _document(account: Account, order_id: str, *, history: bool = False) -> tuple[dict[str, Any], RemoteOrder]:
    document: dict[str, Any] = account.client.order(order_id, history=history)
    return document, schema.parse_order(document)


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
            _show(visit.ledger, visit.account, one.external_id, problem)


def _show(ledger: Ledger, account: Account, order_id: str, problem: str) -> None:
    """Once, that a person sees it."""
    key = f"seen:{order_id}:{_digest(problem)}"
    intake.keep_odd_event(ledger, "tastyigniter", account.name, key, "seen", "{}", problem, order_id)


# -- news of a known order --------------------------------------------------------------------------------------------


def review(visit: Visit, known: Known) -> str | None:
    """Read one known order again: cancelled, deleted, changed, or placed after all."""
    if known.cancelling and not known.finished:
        return None
    asked_at = queries.database_now(visit.ledger)
    try:
        document, remote = _document(visit.account, known.external_id)
    except Absent as absent:
        _review_absent(visit, known, absent)
        return None
    if known.finished:
        return _review_finished(visit, known, Row(known.external_id, document, remote))
    if remote.status_id == visit.account.options.statuses.canceled:
        look = Planned("tastyigniter.cancel", data={"seen": asked_at.isoformat()})  # a step may be writing just now
        rest = (*_TAKE_BACK, look)
        interrupts.interrupt(visit.ledger, known.id, _CANCELED.reason, rest, State.CANCELLED)
        return None
    return _changed_total(visit, known, remote)


def _review_absent(visit: Visit, known: Known, absent: Absent) -> None:
    """Finished orders may be tidied away. Raises `Refused` where nobody can tell whether it was deleted."""
    if known.finished:
        return
    _check_deleted(visit.ledger, visit.account, known.external_id, known.facts, absent)
    interrupts.interrupt(visit.ledger, known.id, "deleted in TastyIgniter", _TAKE_BACK, State.CANCELLED)


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
        return _reopened(remote)
    return None


def _reopened(remote: RemoteOrder) -> str:
    return f"it is cancelled here and in the ERP, but stands at status {remote.status_id} in TastyIgniter"


def _changed_total(visit: Visit, known: Known, remote: RemoteOrder) -> str | None:
    """What the ERP was told is not told anew by itself: a person decides."""
    told, now = known.facts.get("total"), _total_text(remote)
    if told is None or now == told:
        return None
    sentence = (
        f"its total was {told} when it was read for the ERP, and is {now} in TastyIgniter: change it in the ERP by hand"
    )
    flags = list(dict.fromkeys([*known.facts.get("flags", []), sentence]))
    source = f"total:{remote.updated_at}:{now}"
    signals.signal(visit.ledger, [Signal(known.id, "changed", source, {}, {"total": now, "flags": flags})])
    return sentence


def _total_text(remote: RemoteOrder) -> str:
    total = schema.total_of(remote)
    return "nothing" if total is None else f"{total:f}"


# -- deleted, or out of sight -----------------------------------------------------------------------------------------


def _check_deleted(ledger: Ledger, account: Account, order_id: str, facts: dict[str, Any], absent: Absent) -> None:
    """Raises `Refused` unless the order is gone for good: a token that sees other locations gets the same answer (2).

    It is, if the site said so itself, or if the token sees others of the order's location."""
    told = _told_of(ledger, account, order_id)
    if schema.says_deleted(told):
        return
    places = [facts["location"]] if "location" in facts else [row.get("location_id") for row in schema.rows_among(told)]
    if places and _sees(account, places[0]):
        return
    raise Refused(
        f"{absent.reason}: deleted, or its location is out of the token's sight; if it was deleted, cancel it with "
        "`orderfleet cancel`, else let the token's user see the location",
        status=404,
        recheck=LOOK_AGAIN,
    )


def _sees(account: Account, location: int | None) -> bool:
    """Whether the token sees orders of this location; of none: whether it sees any. A filter may be ignored."""
    page: list[dict[str, Any]] = next(account.client.newest_orders(location=location), [])
    found = [remote for document in page for _, remote in (schema.listed(document),) if remote is not None]
    return any(location is None or remote.location_id == location for remote in found)


def _told_of(ledger: Ledger, account: Account, order_id: str) -> list[str]:
    """What webhooks and lists said of an order, newest first."""
    return queries.event_bodies(ledger, "tastyigniter", account.name, order_id, MOST_EVENTS)


def _gone(job: Job, account: Account, absent: Absent) -> Ended:
    """The end of an order that a step does not find. One of which nobody but an event told, and which never reached
    the ERP, is no loss. Raises `Refused`."""
    try:
        _check_deleted(job.ledger, account, job.external_id, job.facts, absent)
    except Refused:
        if job.has_tried("erp.order") or schema.rows_among(_told_of(job.ledger, account, job.external_id)):
            raise
        return Ended("it is not there, or out of this token's sight, as orders of other locations are")
    return Ended("deleted in TastyIgniter", cancelled=True)


# -- the steps --------------------------------------------------------------------------------------------------------


@step("tastyigniter.fetch")
def fetch(job: Job, account: Account) -> Outcome:
    """Read the order, and decide whether it is one for us."""
    try:
        document, remote = _document(account, job.external_id)
    except Absent as absent:
        return _gone(job, account, absent)
    over = _not_for_us(job, account, remote)
    if over is not None:
        return over
    if not remote.lines:
        remote = schema.with_what_events_told(remote, _told_of(job.ledger, account, job.external_id))
    return _wait_for_lines(job, account, remote) or _fetched(job, account, document, remote)


def _not_for_us(job: Job, account: Account, remote: RemoteOrder) -> Ended | Again | None:
    """Why the order is none of the ERP's; what the ERP had once, it keeps, unless it was cancelled."""
    begun = job.has_tried("erp.order")
    statuses: Statuses = account.options.statuses
    if not begun and "replayed" not in job.facts and (early := _before_us(job, account, remote)) is not None:
        return Ended(f"{early}: `orderfleet replay --from tastyigniter.fetch` if the ERP is to have it")
    if remote.status_id == statuses.canceled:
        return _CANCELED
    if not begun and not remote.placed:
        return _wait_for_checkout(job, account)
    return None


def _wait_for_checkout(job: Job, account: Account) -> Ended | Again:
    """The first event of an order comes a moment before it is placed (7). Later the poll, which has seen by then that
    the checkout is not finished, and every webhook bring it back."""
    after = _left(job, "checkout_until", 3 * account.poll_seconds)
    if after is None:
        return Ended("the checkout is not finished")
    seconds, facts = after
    return Again("placed", "the checkout is not finished yet", facts, after=min(seconds, account.poll_seconds))


def _left(job: Job, name: str, seconds: float) -> tuple[float, dict[str, str]] | None:
    """What is left of a wait that begins when it is first asked for, and the facts that remember that; None: over."""
    now = queries.database_now(job.ledger)
    kept = job.facts.get(name)
    until = now + timedelta(seconds=seconds) if kept is None else datetime.fromisoformat(kept)
    return None if now >= until else ((until - now).total_seconds(), {name: until.isoformat()})


def _before_us(job: Job, account: Account, remote: RemoteOrder) -> str | None:
    kept = _kept(job.ledger, account)
    zone: ZoneInfo = account.options.zone
    statuses: Statuses = account.options.statuses
    created = schema.stamp(remote.created_at, zone)
    if kept.is_old(remote, zone):
        return f"ordered at {created:%Y-%m-%d %H:%M}Z, long before the fleet began"
    began = datetime.fromisoformat(kept.began) - SKEW
    if not statuses.final(remote.status_id) or created is None or created >= began:
        return None
    # It may have waited here while the restaurant finished it.
    was_open = schema.was_open(_told_of(job.ledger, account, job.external_id), statuses)
    return None if was_open else "finished before the fleet began"


def _wait_for_lines(job: Job, account: Account, remote: RemoteOrder) -> Again | None:
    """A site of 2020 tells the dishes in webhooks only (1): a poll may have been quicker than they."""
    options: Options = account.options
    if remote.lines or not options.webhooks:
        return None
    after = _left(job, "lines_until", options.lines_seconds)
    if after is None:
        return None
    seconds, facts = after
    return Again("lines", "waits for the webhook that tells its dishes", facts, after=seconds)


def _fetched(job: Job, account: Account, document: dict[str, Any], remote: RemoteOrder) -> Done:
    options: Options = account.options
    # The site's currency of today may not be the order's: the first one that we saw counts (8).
    frozen = replace(remote, currency=job.facts.get("currency") or remote.currency)
    converted = schema.to_order(frozen, zone=options.zone, currency=options.currency, whole=options.product)
    waited = not remote.lines and options.webhooks and options.lines_seconds > 0
    flags = [*converted.flags, *(["nobody told its dishes in time: one line stands for them"] if waited else [])]
    facts = {
        "currency": converted.order.currency,
        "total": _total_text(remote),
        "location": remote.location_id,
        **({"rounding": converted.rounding} if converted.rounding else {}),
        **(job.flagged(*flags) if flags else {}),
    }
    lines = f"{len(converted.order.lines)} lines" if remote.lines else "one line stands for its dishes"
    return Done(
        detail=f"status {remote.status_id}, {lines}",
        facts=facts,
        rest=_REST,
        raw=json.dumps(schema.slim(document), default=str),
        document=converted.order.to_json(),
        reference=converted.order.reference,
    )


@step("tastyigniter.preparing")
def preparing(job: Job, account: Account) -> Outcome:
    """The ERP has the order: the kitchen may begin."""
    return _move(job, account, account.options.statuses.preparing)


@step("tastyigniter.completed")
def completed(job: Job, account: Account) -> Outcome:
    """Everything is shipped."""
    if not all_shipped(job):
        return Again("completed|shipped", "not everything is shipped yet")
    return _move(job, account, account.options.statuses.completed)


def _move(job: Job, account: Account, target: int) -> Outcome:
    """One step ahead, once; never back. There is no conditional update (5), so read, write, and read again."""
    statuses: Statuses = account.options.statuses
    try:
        remote = _read(job, account, history=job.look)
        if remote.status_id == statuses.canceled:
            return _CANCELED
        over = _wrote_over(job, account, remote, target, _since(job)) if job.look else None
        if over is not None:
            return over
        reached = _reached_before(job, remote, statuses, target)
        if reached is not None:
            return skipped(reached)
        _write(job, account, remote, target)
        return _written(job, account, remote, target)
    except Absent as absent:
        return _gone(job, account, absent)


def _reached_before(job: Job, remote: RemoteOrder, statuses: Statuses, target: int) -> str | None:
    """Why the status is not to be written; None where it is. Raises `Refused` where nobody can tell."""
    if remote.status_id == target:
        return f"is {target} already"
    if job.look and schema.moved(remote, target, _comment(job, remote), _since(job)):
        return f"was set to {target} before, and is {remote.status_id} now"
    return None if statuses.forward(remote.status_id, target) else f"is {remote.status_id} already"


def _since(job: Job) -> datetime:
    """No try of this step was before this: when the last step before it ended."""
    tries = queries.last_tries(job.ledger, job.claim.id)
    ended = [last.at for (position, _), last in tries.items() if position < job.claim.position]
    return max(ended, default=job.claim.claimed_at - FRESH)


def _comment(job: Job, remote: RemoteOrder) -> str | None:
    """Marks a row of the history as ours, where there is one."""
    number = job.facts.get("erp_number")
    return None if remote.flat or number is None else f"ERP order {number}"


def _write(job: Job, account: Account, remote: RemoteOrder, target: int) -> None:
    """Only the status (3.5). Releases of early 2021 demand names, too: those just read."""
    comment = _comment(job, remote)
    try:
        account.client.set_status(job.external_id, target, comment)
    except Invalid as invalid:
        if invalid.fields != _NAMES:
            raise
        names = {"first_name": remote.first_name, "last_name": remote.last_name, "order_type": remote.order_type}
        account.client.set_status(job.external_id, target, comment, **names)


def _written(job: Job, account: Account, before: RemoteOrder, target: int) -> Outcome:
    """What the order says now: the answer to the write is stale (3.2)."""
    statuses: Statuses = account.options.statuses
    after = _read(job, account, history=True)
    over = _wrote_over(job, account, after, target, None)
    if over is not None:
        return over
    if after.status_id == statuses.canceled != target:
        return _CANCELED
    if after.status_id == before.status_id:
        raise TryLater(f"after the PATCH, the order is still {after.status_id}", status=READ_FAILED)
    return Done(detail=f"status {target}")


def _wrote_over(
    job: Job, account: Account, remote: RemoteOrder, target: int, since: datetime | None
) -> Ended | Done | None:
    """What becomes of an order whose status we wrote in the very moment in which somebody finished it: what they say
    counts. None: nobody did. `since` as in `schema.overran`."""
    statuses: Statuses = account.options.statuses
    below = schema.overran(remote, target, statuses, _comment(job, remote), since)
    if below is None:
        return None
    moment = f"at the moment in which it was set to {target}"
    if below == statuses.canceled:
        rest = (Planned("tastyigniter.cancel", data={"overran": target}),)
        return Ended(f"canceled in TastyIgniter {moment}", cancelled=True, rest=rest)
    sentence = f"it was completed in TastyIgniter {moment}: set right there by hand what it is to stand at"
    _show(job.ledger, account, job.external_id, sentence)
    return Done(detail=f"status {target}, on top of {below}", facts=job.flagged(sentence))


def _read(job: Job, account: Account, *, history: bool = False) -> RemoteOrder:
    return _document(account, job.external_id, history=history)[1]


@step("tastyigniter.cancel")
def cancel(job: Job, account: Account) -> Outcome:
    """The ERP or an operator cancelled: the restaurant learns of it, unless the order is completed. Or the staff did,
    and we wrote on top of it: in the data, `overran` is what we wrote, `seen` is when we saw it canceled."""
    statuses: Statuses = account.options.statuses
    try:
        remote = _read(job, account, history=job.look or "seen" in job.data)
        if remote.status_id == statuses.canceled:
            over = _wrote_over(job, account, remote, statuses.canceled, _since(job)) if job.look else None
            return over or skipped("is canceled already")
        if _was_reopened(job, remote, statuses):
            _show(job.ledger, account, job.external_id, _reopened(remote))
            return skipped(_reopened_since(remote))
        if remote.status_id == statuses.completed and not _is_ours(job, statuses):
            raise Refused(_completed_there(job, statuses))
        _write(job, account, remote, statuses.canceled)
        return _written(job, account, remote, statuses.canceled)
    except Absent as absent:
        return _told_to_nobody(job, account, absent)


def _reopened_since(remote: RemoteOrder) -> str:
    return f"was canceled before, and is {remote.status_id} now"


def _was_reopened(job: Job, remote: RemoteOrder, statuses: Statuses) -> bool:
    """Whether a person has it stand where it does though it was canceled: by us, or by the staff, as we saw."""
    if job.look and schema.moved(remote, statuses.canceled, _comment(job, remote), _since(job)):
        return True
    if "seen" not in job.data:
        return False
    seen = datetime.fromisoformat(job.data["seen"])
    if remote.flat:  # there is no history to ask
        ours = dict(zip((statuses.preparing, statuses.completed), _MOVES, strict=True)).get(remote.status_id or 0)
        return ours is None or not _has_ended_since(job, seen, ours)
    return schema.overran(remote, remote.status_id, statuses, _comment(job, remote), seen) != statuses.canceled


def _has_ended_since(job: Job, moment: datetime, *steps: str) -> bool:
    """Whether a try of one of these steps, that did not find it canceled, ended after `moment`."""
    told = queries.timeline(job.ledger, job.claim.id)
    tries = (one for one in told if one["kind"] == "attempt" and one["detail"] != _CANCELED.reason)
    return any(one["what"] in steps and one["at"] >= moment for one in tries)


def _is_ours(job: Job, statuses: Statuses) -> bool:
    """Whether it was us who set it to completed, on top of a cancellation."""
    return "seen" in job.data or job.data.get("overran") == statuses.completed


def _completed_there(job: Job, statuses: Statuses) -> str:
    if "overran" in job.data:
        return (
            "it was canceled in TastyIgniter, and is completed there by now; the ERP still has it: set it to "
            f"{statuses.canceled} there and replay it, or see to it in the ERP by hand"
        )
    return "cancelled in the ERP, but completed in TastyIgniter: nothing leaves that status without a person"


def _told_to_nobody(job: Job, account: Account, absent: Absent) -> Outcome:
    """The restaurant cannot be told. Nobody needs to be, if it was deleted, or if it was canceled there and nothing
    written since. Else it waits to be seen again, unless a person, who cancels or replays it, is told so. Raises
    `Refused`."""
    if "seen" in job.data and not _has_ended_since(job, datetime.fromisoformat(job.data["seen"]), *_MOVES):
        return skipped("is not to be seen; it was canceled there")
    try:
        _check_deleted(job.ledger, account, job.external_id, job.facts, absent)
    except Refused:
        words = f"{absent.reason}: deleted, or its location is out of the token's sight"
        if not _by_a_person(job):
            raise Refused(
                f"{words}; if it was deleted, `orderfleet replay` has it end here, else let the token's user see the "
                "location: then the restaurant is told",
                status=404,
                recheck=LOOK_AGAIN,
            ) from None
        _show(job.ledger, account, job.external_id, f"cancelled, but the restaurant was not told: {words}")
        return skipped("is deleted, or out of the token's sight: told to nobody")
    return skipped("is deleted in TastyIgniter")


def _by_a_person(job: Job) -> bool:
    """An operator's cancellation goes to the ERP first, the ERP's own only to the restaurant."""
    before = job.claim.plan[job.claim.position - 1].name if job.claim.position else None
    return "replayed" in job.facts or (before == "erp.cancel" and not job.data)


# -- what a replay would do -------------------------------------------------------------------------------------------


@preview("tastyigniter.fetch")
def foresee_fetch(job: Job, account: Account) -> Preview:
    try:
        remote = _read(job, account)
    except Absent:
        return call("reads the order again, which is deleted, or out of the token's sight")
    return call(f"reads the order again: status {remote.status_id}{'' if remote.placed else ', checkout not finished'}")


@preview("tastyigniter.preparing")
def foresee_preparing(job: Job, account: Account) -> Preview:
    return _foresee(job, account, account.options.statuses.preparing)


@preview("tastyigniter.completed")
def foresee_completed(job: Job, account: Account) -> Preview:
    if not all_shipped(job):
        return call("waits until everything is shipped")
    return _foresee(job, account, account.options.statuses.completed)


def _foresee(job: Job, account: Account, target: int) -> Preview:
    statuses: Statuses = account.options.statuses
    try:
        remote = _read(job, account, history=True)
    except Absent:
        return already("is deleted, or out of the token's sight: its plan ends here, or a person must act")
    if remote.status_id == statuses.canceled:
        return already("is canceled in TastyIgniter: its plan ends here")
    if schema.overran(remote, target, statuses, _comment(job, remote), _since(job)) == statuses.canceled:
        return call("was canceled in TastyIgniter: its plan ends here")
    reached = _reached_before(job, remote, statuses, target)
    return already(reached) if reached else call(f"sets the status to {target}, of which the customer may get a mail")


@preview("tastyigniter.cancel")
def foresee_cancel(job: Job, account: Account) -> Preview:
    statuses: Statuses = account.options.statuses
    try:
        remote = _read(job, account, history=True)
    except Absent:
        return already("is deleted, or out of the token's sight: nobody is told there, or a person must act")
    if remote.status_id == statuses.canceled:
        return already("is canceled already")
    if _was_reopened(job, remote, statuses):
        return already(_reopened_since(remote))
    if remote.status_id == statuses.completed and not _is_ours(job, statuses):
        return call("would stop: it is completed in TastyIgniter")
    return call(f"sets the status to {statuses.canceled}")


# -- what operators may do besides ------------------------------------------------------------------------------------


def _ask_delete(job: Job, account: Account, data: dict[str, Any]) -> str:
    _no_data(data)
    try:
        remote = _read(job, account)
    except Absent as absent:
        return f"nothing would be done: {absent.reason}"
    stands = queries.position_of(job.ledger, job.claim.id)
    goes_on = stands is not None and stands[2] not in (State.DONE, State.CANCELLED, State.IGNORED)
    then = "; it is not finished here, so the ERP's order will be cancelled" if goes_on else ""
    return (
        f"deletes order {remote.id} (status {remote.status_id}, total {_total_text(remote)}) in TastyIgniter for good, "
        f"with its history: it cannot be brought back{then}"
    )


def _run_delete(job: Job, account: Account, data: dict[str, Any]) -> str:
    """Read first and afterwards: an answer that got lost, or came from a site that does not delete, tells nothing."""
    _no_data(data)
    if not _is_there(job, account):
        return "it was not there any more"
    try:
        account.client.delete_order(job.external_id)
    except Absent:
        _tell_deleted(job, account)
        return "it was not there any more"
    except TryLater:
        if _is_there(job, account):
            raise
    if _is_there(job, account):
        raise TryLater("the site said yes, but the order is still there", status=READ_FAILED)
    _tell_deleted(job, account)
    return f"order {job.external_id} is deleted in TastyIgniter"


def _tell_deleted(job: Job, account: Account) -> None:
    """Nobody else may tell it, and from the answers it is not to be seen: others are out of sight just so (2)."""
    order_id = job.external_id
    body = json.dumps({"action": "deleted", "order": {"order_id": int(order_id)}})
    told = Arrival(account.name, order_id, f"deleted:{order_id}", "deleted", body, (), order_id, news=True)
    intake.take_in(job.ledger, "tastyigniter", [told])


def _is_there(job: Job, account: Account) -> bool:
    try:
        account.client.order(job.external_id)
    except Absent:
        return False
    return True


def _no_data(data: dict[str, Any]) -> None:
    if data:
        raise Refused("delete takes no --data")


def probe(account: Account) -> str:
    """Prove address, token and its rights, and look whether the statuses exist. Raises `Misconfigured`."""
    account.client.token_user()
    page: list[dict[str, Any]] = next(account.client.newest_orders(pageLimit=1), [])
    newest = schema.listed(page[0])[1] if page else None
    if newest is not None and newest.currency is None and account.options.currency is None:
        raise Misconfigured("orders name no currency there: set TASTYIGNITER_CURRENCY, such as EUR")
    try:
        rows = account.client.statuses()
    except (Misconfigured, Refused):
        return "the token reads orders; the statuses were not looked at, for which it needs `status:*`"
    return f"the token reads orders; {_checked(account.options.statuses, rows)}"


def _checked(statuses: Statuses, rows: list[dict[str, Any]]) -> str:
    of_orders = {str(row.get("status_id")) for row in rows if row.get("status_for", "order") == "order"}
    for name in ("preparing", "completed", "canceled"):
        if str(getattr(statuses, name)) not in of_orders:
            raise Misconfigured(
                f"TASTYIGNITER_STATUS_{name.upper()} is {getattr(statuses, name)}, which is no status of orders there"
            )
    return f"the statuses {statuses.preparing}, {statuses.completed} and {statuses.canceled} exist"


SYSTEM = System(
    name="tastyigniter",
    poll=poll,
    review=review,
    tell_cancelled=(Planned("tastyigniter.cancel"),),
    probe=probe,
    commands={"delete": Command("Delete the order in TastyIgniter, for good.", _ask_delete, _run_delete)},
)
