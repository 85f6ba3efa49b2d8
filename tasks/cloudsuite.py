"""CloudSuite: webshop orders from `confirmed` to the ERP and back. Contract: contracts/cloudsuite.md."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from clients.cloudsuite import CloudSuite
from ledger import intake, interrupts, queries, signals
from ledger.queries import Told
from orders.arrival import Arrival
from orders.errors import Refused, TryLater
from orders.model import Order
from orders.outcomes import Again, Done, Ended, Outcome, Planned, skipped
from orders.states import State
from schemas import cloudsuite as schema
from schemas.cloudsuite import Payment, RemoteOrder
from tasks.base import Account, Job, Preview, System, Visit, already, call, irreversible, preview, step
from tasks.shipped import covers, shipped_quantities

OVERLAP = timedelta(days=2)
FULL_PASS = timedelta(hours=20)
LOOK_AGAIN = 3600.0
"""Seconds after which an order that a person should look at is read again by itself: payments do arrive late."""
READ_FAILED = 200
"""The status of a `TryLater` that is no fault of the remote: it answered, but what we wrote is not there yet."""


@dataclass(frozen=True, slots=True)
class Options:
    """The settings of one account. `webshop`: only orders of this shop. `payment_none`: 'hold' or 'process'.
    `delivery`: 'shipment_state', 'desadv' or 'done'. `offline`: 'ignore' or 'ship'. `shop` and `user` are the
    tenant's numbers for DESADV."""

    webshop: int | None = None
    payment_none: str = "hold"
    delivery: str = "shipment_state"
    offline: str = "ignore"
    shop: int | None = None
    user: int | None = None


_SHIPMENT = Planned("cloudsuite.shipment", awaits="shipped")
_REST = (
    Planned("erp.order"),
    Planned("cloudsuite.state"),
    Planned("cloudsuite.erp_order_number", awaits="numbered"),
    Planned("cloudsuite.lines", awaits="numbered"),
    _SHIPMENT,
)
PLAN = (Planned("cloudsuite.fetch"), *_REST)


# -- the poll ---------------------------------------------------------------------------------------------------------


def poll(visit: Visit) -> None:
    """Take in every confirmed order, then the cancellations of known ones.

    All pages are read before any order is taken in: taking the first ones on would shrink the list under the
    paging, and skip rows (trap 4). `state=confirmed` is the queue; the date is a lower bound with two days' overlap,
    in the server's own naive time (traps 5, 9), and left out at least once a day."""
    name = f"cloudsuite.poll:{visit.account.name}"
    kept = json.loads(queries.cursor(visit.ledger, name) or "{}")
    today = queries.database_now(visit.ledger)
    full = "full_at" not in kept or today - datetime.fromisoformat(kept["full_at"]) > FULL_PASS
    bound = {} if full or "newest" not in kept else {"confirm_date__gte": _minus_overlap(kept["newest"])}
    rows = _read_all(visit.account, bound)
    intake.take_in(visit.ledger, "cloudsuite", [_arrival(visit.account, row) for row in rows])
    if "newest" in kept:
        rows += _take_cancellations(visit, _minus_overlap(kept["newest"]))
    newest = max([row["modified_date"] for row in rows if row.get("modified_date")] + [kept.get("newest", "")])
    if newest:
        kept["newest"] = newest
    if full:
        kept["full_at"] = today.isoformat()
    signals.move_cursor(visit.ledger, name, json.dumps(kept))


def _minus_overlap(naive: str) -> str:
    return (datetime.fromisoformat(naive) - OVERLAP).strftime("%Y-%m-%dT%H:%M:%S")


def _read_all(account: Account, bound: dict[str, str]) -> list[dict[str, Any]]:
    options: Options = account.options
    wanted: dict[str, Any] = {"state": "confirmed", **bound}
    if options.webshop is not None:
        wanted["webshop"] = options.webshop
    if options.offline == "ignore":
        return list(_rows(account.client, wanted | {"offline": "false"}))
    offline = _rows(account.client, wanted | {"state": "processing", "offline": "true"})
    return list(_rows(account.client, wanted)) + list(offline)


def _rows(client: CloudSuite, wanted: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """List rows in the wanted state: a filter that the server does not know returns every order (trap 7)."""
    for page in client.orders(**wanted):
        yield from (row for row in page.rows if row.get("state") == wanted["state"])


def _arrival(account: Account, row: dict[str, Any]) -> Arrival:
    return Arrival(
        account=account.name,
        external_id=str(row["id"]),
        dedupe_key=f"row:{row['id']}:{row.get('state')}:{row.get('modified_date')}",
        kind=f"row.{row.get('state')}",
        body=json.dumps(row, default=str, sort_keys=True),
        plan=PLAN,
        reference=row.get("reference"),
        due=row.get("state") == "confirmed",
    )


def _take_cancellations(visit: Visit, since: str) -> list[dict[str, Any]]:
    rows = list(_rows(visit.account.client, {"state": "cancel", "modified_date__gte": since}))
    known = queries.order_ids(visit.ledger, "cloudsuite", visit.account.name, [str(row["id"]) for row in rows])
    for order_id in known.values():
        interrupts.interrupt(
            visit.ledger, order_id, "cancelled in the webshop", (Planned("erp.cancel"),), State.CANCELLED
        )
    return rows


# -- the steps --------------------------------------------------------------------------------------------------------


@step("cloudsuite.fetch")
def fetch(job: Job, account: Account) -> Outcome:
    """Read the order, and decide by its payment whether it may go on."""
    document = account.client.order(job.external_id)
    remote = schema.parse_order(document)
    options: Options = account.options
    if options.webshop is not None and remote.webshop != options.webshop:
        return Ended(f"belongs to webshop {remote.webshop}", reference=remote.reference)
    if remote.offline:
        return _offline(remote, options, document)
    moved = _moved_on(job, remote)
    if moved is not None:
        return moved
    return _pay_gate(job, account, remote, document)


def _offline(remote: RemoteOrder, options: Options, document: dict[str, Any]) -> Outcome:
    """The ERP made this order itself: importing it would echo it back (trap 8)."""
    if options.offline == "ignore":
        return Ended("an offline order: the ERP made it", reference=remote.reference)
    if remote.shipment_state == "sent":
        return Ended("an offline order, already sent", reference=remote.reference)
    order = schema.to_order(remote)
    return Done(
        detail="an offline order: only its shipment is told",
        rest=(_SHIPMENT,),
        raw=_text(document),
        document=order.to_json(),
        reference=remote.reference,
    )


def _moved_on(job: Job, remote: RemoteOrder) -> Outcome | None:
    if remote.state == "cancel":
        return Ended("cancelled in the webshop", cancelled=True, reference=remote.reference)
    if remote.state in ("draft", "quotation"):
        raise Refused(f"the order went back to {remote.state} in the webshop", recheck=LOOK_AGAIN)
    if remote.state != "confirmed" and not job.has_tried("cloudsuite.state"):
        return Ended(f"is {remote.state} already, and not by us", reference=remote.reference)
    return None


def _pay_gate(job: Job, account: Account, remote: RemoteOrder, document: dict[str, Any]) -> Outcome:
    payment = schema.gate(remote.payment_status, account.options.payment_none)
    held = 0
    rest = _REST
    if payment is not Payment.PROCESS and not job.facts.get("released"):
        if payment is not Payment.HOLD:
            raise Refused(_why_not(remote), recheck=LOOK_AGAIN)
        held = int(job.facts.get("held", 0)) + 1
        again = account.poll_seconds * 2 ** min(held - 1, 3)
        rest = (Planned("erp.order", awaits="paid", recheck=again), *_REST[1:])
    return Done(
        detail=f"payment {remote.payment_status}",
        facts={"held": held} if held else None,
        rest=rest,
        raw=_text(document),
        document=_document(job, remote),
        reference=remote.reference,
    )


def _document(job: Job, remote: RemoteOrder) -> dict[str, Any] | None:
    """The canonical order; none if our own PUT gave its lines new ids and changed nothing else: the ERP knows them by
    the first ones."""
    order = schema.to_order(remote)
    known = job.has_tried("cloudsuite.lines") and _but_for_keys(order) == _but_for_keys(job.order)
    return None if known else order.to_json()


def _but_for_keys(order: Order) -> Order:
    return order.with_lines(tuple(replace(line, key=str(line.position)) for line in order.lines))


def _why_not(remote: RemoteOrder) -> str:
    status = remote.payment_status
    if status == "closed_canceled":
        return "the payment was cancelled (closed_canceled): not processed; release it to process it all the same"
    if status == "none":
        return "no payment (none), and CLOUDSUITE_PAYMENT_NONE is hold: release it to process it"
    return f"payment status {status!r} is not a known one: release the order to process it"


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, default=str)


def _read(job: Job, account: Account) -> tuple[dict[str, Any], RemoteOrder]:
    document: dict[str, Any] = account.client.order(job.external_id)
    return document, schema.parse_order(document)


_CANCELLED = Ended("cancelled in the webshop", cancelled=True)


@step("cloudsuite.state")
def state(job: Job, account: Account) -> Outcome:
    """`confirmed` becomes `processing`; there is no conditional update, so read first (trap 18)."""
    _, remote = _read(job, account)
    if remote.state == "cancel":
        return _CANCELLED
    if remote.state in ("processing", "done"):
        return skipped(f"is {remote.state} already")
    if remote.state != "confirmed":
        raise Refused(f"the order went back to {remote.state} in the webshop after the ERP took it")
    account.client.patch_order(job.external_id, state="processing")
    return Done(detail="processing")


@step("cloudsuite.erp_order_number")
def erp_order_number(job: Job, account: Account) -> Outcome:
    """The ERP's order number; one that somebody else wrote is never overwritten."""
    number = job.facts["erp_number"]
    _, remote = _read(job, account)
    if remote.state == "cancel":
        return _CANCELLED
    if remote.erp_order_number == number:
        return skipped(f"{number} is there already")
    if remote.erp_order_number:
        raise Refused(f"the order carries ERP number {remote.erp_order_number}, ours is {number}: somebody wrote it")
    account.client.patch_order(job.external_id, erp_order_number=number)
    return Done(detail=number)


@step("cloudsuite.lines")
def lines(job: Job, account: Account) -> Outcome:
    """The ERP's line numbers: the whole order is put back as just read, in its current state (traps 1, 2, 3)."""
    numbers = _line_numbers(job)
    before, remote = _read(job, account)
    if remote.state == "cancel":
        return _CANCELLED
    if not schema.lines_differ(before, numbers):
        return skipped("the line numbers are there already")
    account.client.put_order(job.external_id, schema.replacement(before, job.facts["erp_number"], numbers))
    after, _ = _read(job, account)
    missing = schema.lines_differ(after, numbers)
    if missing:
        raise TryLater(f"after the PUT, the order reads otherwise: {'; '.join(missing)}", status=READ_FAILED)
    lost = schema.same_content(before, after)
    if lost:
        raise Refused(f"the PUT changed more than the line numbers: {'; '.join(lost)}")
    return Done(detail=f"{len(numbers)} line numbers")


def _line_numbers(job: Job) -> dict[str, int]:
    try:
        return {key: int(number) for key, number in job.facts["erp_lines"].items()}
    except ValueError:
        raise Refused(f"the ERP's line numbers are not whole numbers: {job.facts['erp_lines']}") from None


@step("cloudsuite.shipment")
def shipment(job: Job, account: Account) -> Outcome:
    """Tell the shop what was shipped, in the one way that is set (trap 10)."""
    _, remote = _read(job, account)
    if remote.state == "cancel":
        return _CANCELLED
    if account.options.delivery == "desadv" and not remote.offline:
        return _deliver(job, account, remote)
    if not covers(job.order, job.signals("shipped")):
        return Again("shipped", "not everything is shipped yet")
    if account.options.delivery == "done" and not remote.offline:
        return _set_done(job, account, remote)
    if remote.shipment_state == "sent":
        return skipped("is sent already")
    account.client.patch_order(job.external_id, shipment_state="sent")
    return Done(detail="sent")


def _set_done(job: Job, account: Account, remote: RemoteOrder) -> Outcome:
    if remote.state == "done":
        return skipped("is done already")
    account.client.patch_order(job.external_id, state="done")
    return Done(detail="done")


def _deliver(job: Job, account: Account, remote: RemoteOrder) -> Outcome:
    """One delivery message a run, numbered after the ERP's own event, so that a repeat is the same message."""
    told = job.signals("shipped")
    sent = list(job.facts.get("deliveries", []))
    unsent = [one for one in told if one.source not in sent]
    if unsent:
        _send_delivery(job, account, remote, told[: told.index(unsent[0]) + 1])
        sent.append(unsent[0].source)
    facts = {"deliveries": sent}
    if len(unsent) > 1 or not covers(job.order, told):
        return Again("shipped", f"delivery {len(sent)} told", facts, more=len(unsent) > 1)
    return Done(detail=f"delivery {len(sent)} told, all shipped", facts=facts)


def _send_delivery(job: Job, account: Account, remote: RemoteOrder, told: list[Told]) -> None:
    """The last of `told`. There is no call to read deliveries back: after an unclear answer the same message goes
    again, and only then "duplicate" means that it had arrived (contract 7)."""
    one = told[-1]
    before = shipped_quantities(job.order, told[:-1])
    quantities = {
        key: total - before.get(key, Decimal(0)) for key, total in shipped_quantities(job.order, told).items()
    }
    goods = {line.key for line in job.order.lines if line.product is not None}
    quantities = {key: quantity for key, quantity in quantities.items() if quantity and key in goods}
    if not quantities:
        return  # freight alone: there is nothing to tell
    message = schema.desadv(
        number=f"{job.external_id}-{one.source.replace(':', '-')}",
        date=one.at.date(),
        order_number=job.facts["erp_number"],
        lines=job.order.lines,
        line_numbers=_line_numbers(job),
        quantities=quantities,
        carrier=one.data.get("carrier") or "",
        tracking=one.data.get("tracking") or "",
        customer=remote.customer,
    )
    try:
        account.client.post_delivery(message, shop=account.options.shop, user=account.options.user)
    except Refused as refusal:
        if not (job.look and _says_duplicate(refusal)):
            raise


def _says_duplicate(refusal: Refused) -> bool:
    words = refusal.reason.lower()
    return refusal.status == 400 and any(word in words for word in ("duplicate", "unique", "already"))


@step("cloudsuite.cancel")
def cancel(job: Job, account: Account) -> Outcome:
    """The ERP or an operator cancelled: the shop learns of it, unless the goods are out or the order is done."""
    _, remote = _read(job, account)
    if remote.state == "cancel":
        return skipped("is cancelled already")
    if remote.state == "done" or remote.shipment_state == "sent":
        raise Refused(f"cancelled in the ERP, but the webshop has it as {remote.shipment_state or remote.state}")
    account.client.patch_order(job.external_id, state="cancel")
    return Done(detail="cancelled in the webshop")


# -- what a replay would do -------------------------------------------------------------------------------------------

_ENDS = already("is cancelled in the webshop: its plan ends here")


@preview("cloudsuite.fetch")
def foresee_fetch(job: Job, account: Account) -> Preview:
    _, remote = _read(job, account)
    return call(f"reads the order again: {remote.state}, payment {remote.payment_status}")


@preview("cloudsuite.state")
def foresee_state(job: Job, account: Account) -> Preview:
    _, remote = _read(job, account)
    if remote.state == "cancel":
        return _ENDS
    if remote.state in ("processing", "done"):
        return already(f"is {remote.state} already")
    return call("sets the state to processing")


@preview("cloudsuite.erp_order_number")
def foresee_erp_order_number(job: Job, account: Account) -> Preview:
    number = job.facts["erp_number"]
    _, remote = _read(job, account)
    if remote.state == "cancel":
        return _ENDS
    if remote.erp_order_number == number:
        return already(f"{number} is there already")
    if remote.erp_order_number:
        return call(f"would stop: the order carries ERP number {remote.erp_order_number}, ours is {number}")
    return call(f"writes the ERP number {number}")


@preview("cloudsuite.lines")
def foresee_lines(job: Job, account: Account) -> Preview:
    document, remote = _read(job, account)
    if remote.state == "cancel":
        return _ENDS
    if not schema.lines_differ(document, _line_numbers(job)):
        return already("the line numbers are there already")
    return call("writes the ERP's line numbers (PUT of the order as it is then)")


@preview("cloudsuite.shipment")
def foresee_shipment(job: Job, account: Account) -> Preview:
    _, remote = _read(job, account)
    options: Options = account.options
    if remote.state == "cancel":
        return _ENDS
    if options.delivery == "desadv" and not remote.offline:
        sent = job.facts.get("deliveries", [])
        unsent = [one for one in job.signals("shipped") if one.source not in sent]
        return irreversible(f"sends {len(unsent)} delivery messages") if unsent else already("every delivery is told")
    if options.delivery == "done" and not remote.offline:
        return already("is done already") if remote.state == "done" else call("sets the state to done")
    return already("is sent already") if remote.shipment_state == "sent" else call("sets the shipment to sent")


@preview("cloudsuite.cancel")
def foresee_cancel(job: Job, account: Account) -> Preview:
    _, remote = _read(job, account)
    return already("is cancelled already") if remote.state == "cancel" else call("cancels the order in the webshop")


def probe(account: Account) -> str:
    """Prove address and credentials with one read."""
    page = next(iter(account.client.orders(state="confirmed", limit=1)))
    return f"{page.count} confirmed orders"


SYSTEM = System(
    name="cloudsuite",
    poll=poll,
    tell_cancelled=(Planned("cloudsuite.cancel"),),
    probe=probe,
    gate="cloudsuite.fetch",
)
