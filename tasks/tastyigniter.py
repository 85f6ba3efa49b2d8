"""TastyIgniter: restaurant orders from the checkout to the ERP and back. Contract: contracts/tastyigniter.md, whose
sections are named here.

A status that is written may be a mail to the customer (5): every step reads before it writes, and what it wrote.
"""

import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from clients.tastyigniter import Absent, Invalid
from ledger import intake, queries
from orders.arrival import Arrival
from orders.errors import READ_FAILED, Misconfigured, Refused, TryLater
from orders.outcomes import Again, Done, Ended, Outcome, Planned, skipped
from orders.states import State
from schemas import tastyigniter as schema
from schemas.tastyigniter import LOOK_AGAIN, RemoteOrder, Statuses
from tasks.base import Account, Command, Job, Preview, System, already, call, preview, step
from tasks.shipped import all_shipped
from tasks.tastyigniter_order import (
    CANCELED,
    Options,
    check_deleted,
    read_order,
    show,
    told_of,
    total_text,
)
from tasks.tastyigniter_poll import FRESH, kept_by_poll, poll, reopened, review

SKEW = timedelta(seconds=60)
"""How far the site's clock may be from ours."""
_NAMES = frozenset(("first_name", "last_name", "order_type"))
_REST = (
    Planned("erp.order"),
    Planned("tastyigniter.preparing", awaits="numbered"),
    Planned("tastyigniter.completed", awaits="completed|shipped"),
)
_MOVES = ("tastyigniter.preparing", "tastyigniter.completed")


def _gone(job: Job, account: Account, absent: Absent) -> Ended:
    """The end of an order that a step does not find. One of which nobody but an event told, and which never reached
    the ERP, is no loss. Raises `Refused`."""
    try:
        check_deleted(job.ledger, account, job.external_id, job.facts, absent)
    except Refused:
        if job.has_tried("erp.order") or schema.rows_among(told_of(job.ledger, account, job.external_id)):
            raise
        return Ended("it is not there, or out of this token's sight, as orders of other locations are")
    return Ended("deleted in TastyIgniter", cancelled=True)


# -- the steps --------------------------------------------------------------------------------------------------------


@step("tastyigniter.fetch")
def fetch(job: Job, account: Account) -> Outcome:
    """Read the order, and decide whether it is one for us."""
    try:
        document, remote = read_order(account, job.external_id)
    except Absent as absent:
        return _gone(job, account, absent)
    over = _not_for_us(job, account, remote)
    if over is not None:
        return over
    if not remote.lines:
        remote = schema.with_what_events_told(remote, told_of(job.ledger, account, job.external_id))
    return _wait_for_lines(job, account, remote) or _fetched(job, account, document, remote)


def _not_for_us(job: Job, account: Account, remote: RemoteOrder) -> Ended | Again | None:
    """Why the order is none of the ERP's; what the ERP had once, it keeps, unless it was cancelled."""
    begun = job.has_tried("erp.order")
    statuses: Statuses = account.options.statuses
    if not begun and "replayed" not in job.facts and (early := _before_us(job, account, remote)) is not None:
        return Ended(f"{early}: `orderfleet replay --from tastyigniter.fetch` if the ERP is to have it")
    if remote.status_id == statuses.canceled:
        return CANCELED
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
    kept = kept_by_poll(job.ledger, account)
    zone: ZoneInfo = account.options.zone
    statuses: Statuses = account.options.statuses
    created = schema.stamp(remote.created_at, zone)
    if kept.is_old(remote, zone):
        return f"ordered at {created:%Y-%m-%d %H:%M}Z, long before the fleet began"
    began = datetime.fromisoformat(kept.began) - SKEW
    if not statuses.final(remote.status_id) or created is None or created >= began:
        return None
    # It may have waited here while the restaurant finished it.
    was_open = schema.was_open(told_of(job.ledger, account, job.external_id), statuses)
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
        "total": total_text(remote),
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
            return CANCELED
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
        return CANCELED
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
    show(job.ledger, account, job.external_id, sentence)
    return Done(detail=f"status {target}, on top of {below}", facts=job.flagged(sentence))


def _read(job: Job, account: Account, *, history: bool = False) -> RemoteOrder:
    return read_order(account, job.external_id, history=history)[1]


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
            show(job.ledger, account, job.external_id, reopened(remote))
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
    tries = (one for one in told if one["kind"] == "attempt" and one["detail"] != CANCELED.reason)
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
        check_deleted(job.ledger, account, job.external_id, job.facts, absent)
    except Refused:
        words = f"{absent.reason}: deleted, or its location is out of the token's sight"
        if not _by_a_person(job):
            raise Refused(
                f"{words}; if it was deleted, `orderfleet replay` has it end here, else let the token's user see the "
                "location: then the restaurant is told",
                status=404,
                recheck=LOOK_AGAIN,
            ) from None
        show(job.ledger, account, job.external_id, f"cancelled, but the restaurant was not told: {words}")
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
        f"deletes order {remote.id} (status {remote.status_id}, total {total_text(remote)}) in TastyIgniter for good, "
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
