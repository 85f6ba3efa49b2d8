"""CloudSuite: webshop orders from `confirmed` to the ERP and back. Contract: contracts/cloudsuite.md."""

import json
import re
from dataclasses import replace
from decimal import Decimal
from typing import Any

from ledger import intents, queries
from ledger.queries import Told
from orders.errors import READ_FAILED, Refused, TryLater, Unclear
from orders.model import Order
from orders.outcomes import Again, Done, Ended, Outcome, Planned, skipped
from orders.states import State
from schemas import cloudsuite as schema
from schemas.cloudsuite import Payment, RemoteOrder
from tasks.base import Account, Job, Preview, System, already, call, irreversible, preview, step
from tasks.cloudsuite_order import CANCELLED, CHANGED, REST, SHIPMENT, Options, show, show_if_out
from tasks.cloudsuite_poll import poll, review
from tasks.shipped import covers, shipped_quantities

LOOK_AGAIN = 3600.0
"""Seconds after which an order that a person should look at is read again by itself: payments do arrive late."""
LINES_LATE = 86400.0
"""Seconds after which an order whose line numbers nobody told is looked at again by itself; a replay looks at once."""


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
    if remote.state == "cancel":
        show_if_out(job.ledger, account.name, job.claim.id, job.external_id)
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
        rest=(SHIPMENT,),
        raw=_text(document),
        document=order.to_json(),
        reference=remote.reference,
    )


_BACK = ("draft", "quotation")


def _moved_on(job: Job, remote: RemoteOrder) -> Outcome | None:
    if remote.state == "cancel":
        return Ended("cancelled in the webshop", cancelled=True, reference=remote.reference)
    if remote.state in _BACK:
        raise Refused(f"the order went back to {remote.state} in the webshop", recheck=LOOK_AGAIN)
    if remote.state != "confirmed" and not job.has_tried("cloudsuite.state") and not _may_be_in_erp(job):
        return Ended(f"is {remote.state} already, and not by us", reference=remote.reference)
    return None


def _may_be_in_erp(job: Job) -> bool:
    """Whether the ERP was handed the order and did not refuse it, before it was read again."""
    tries = queries.last_tries(job.ledger, job.claim.id)
    return any(name == "erp.order" and last.outcome != State.PARKED for (_, name), last in tries.items())


def _pay_gate(job: Job, account: Account, remote: RemoteOrder, document: dict[str, Any]) -> Outcome:
    payment = schema.gate(remote.payment_status, account.options.payment_none)
    held = 0
    rest = REST
    if payment is not Payment.PROCESS and not job.facts.get("released"):
        if payment is not Payment.HOLD:
            raise Refused(_why_not(remote), recheck=LOOK_AGAIN)
        held = int(job.facts.get("held", 0)) + 1
        again = account.poll_seconds * 2 ** min(held - 1, 3)
        rest = (Planned("erp.order", awaits="paid", recheck=again), *REST[1:])
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
    if not job.has_tried("cloudsuite.lines"):
        return order.to_json()
    if not schema.changes(job.order, order):
        return None
    return schema.with_first_keys(order, remote, _told_numbers(job)).to_json()


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


def _cancelled(job: Job, account: Account) -> Ended:
    show_if_out(job.ledger, account.name, job.claim.id, job.external_id)
    return CANCELLED


def _check_unchanged(job: Job, remote: RemoteOrder) -> None:
    """What ships is what the ERP has. Raises `Refused` if the shop shows something else by now."""
    changes = schema.changes(job.order, schema.to_order(remote))
    if changes:
        raise Refused(
            f"{CHANGED} ({'; '.join(changes)}): take it back there and replay; or `orderfleet replay {job.claim.id} "
            "--from cloudsuite.fetch`, which stops at erp.order until it is changed in the ERP by hand, too"
        )


@step("cloudsuite.state")
def state(job: Job, account: Account) -> Outcome:
    """`confirmed` becomes `processing`; there is no conditional update, so read first (trap 18)."""
    _, remote = _read(job, account)
    if remote.state == "cancel":
        return _cancelled(job, account)
    if remote.state in _BACK:
        raise Refused(f"the order went back to {remote.state} in the webshop after the ERP took it")
    _check_unchanged(job, remote)
    if remote.state in ("processing", "done"):
        return skipped(f"is {remote.state} already")
    account.client.patch_order(job.external_id, state="processing")
    return Done(detail="processing")


@step("cloudsuite.erp_order_number")
def erp_order_number(job: Job, account: Account) -> Outcome:
    """The ERP's order number; one that somebody else wrote is never overwritten."""
    number = job.facts["erp_number"]
    _, remote = _read(job, account)
    if remote.state == "cancel":
        return _cancelled(job, account)
    if remote.erp_order_number == number:
        return skipped(f"{number} is there already")
    if remote.erp_order_number:
        raise Refused(f"the order carries ERP number {remote.erp_order_number}, ours is {number}: somebody wrote it")
    account.client.patch_order(job.external_id, erp_order_number=number)
    return Done(detail=number)


@step("cloudsuite.lines")
def lines(job: Job, account: Account) -> Outcome:
    """The ERP's line numbers: the whole order is put back as just read, in its current state (traps 1, 2, 3)."""
    before, remote = _read(job, account)
    if remote.state == "cancel":
        return _cancelled(job, account)
    _check_unchanged(job, remote)
    unnumbered = _unnumbered(job)
    if unnumbered and not job.signals("shipped"):
        facts = {"numbered_late": True}
        return Again("numbered|shipped", _unnumbered_words(unnumbered), facts, after=LINES_LATE)
    if unnumbered and account.options.delivery == "desadv":
        raise Refused(f"{_unnumbered_words(unnumbered)}, which a delivery message needs", recheck=LOOK_AGAIN)
    numbers = _line_numbers(job)
    # What `Again` waited for anew counts as come: a replay waits for it before the step in front of this one.
    come = ("numbered",) if "numbered_late" in job.facts else ()
    if not schema.lines_differ(before, numbers):
        return skipped("there is no line number to write" if unnumbered else _NUMBERED, signals=come)
    _put_numbers(job, account, before, numbers)
    return Done(detail=f"{len(numbers)} line numbers", signals=come)


_NUMBERED = "the line numbers are there already"


def _unnumbered(job: Job) -> list[str]:
    """Goods of which the ERP told no line number, or not yet."""
    numbers = _line_numbers(job)
    return [line.key for line in _goods(job.order).lines if line.key not in numbers]


def _unnumbered_words(keys: list[str]) -> str:
    return f"the ERP told no line number of line {', '.join(keys)}"


def _put_numbers(job: Job, account: Account, before: dict[str, Any], numbers: dict[str, int]) -> None:
    account.client.put_order(job.external_id, schema.replacement(before, job.facts["erp_number"], numbers))
    after, _ = _read(job, account)
    missing = schema.lines_differ(after, numbers)
    if missing:
        raise TryLater(f"after the PUT, the order reads otherwise: {'; '.join(missing)}", status=READ_FAILED)
    lost = schema.same_content(before, after)
    if lost:
        raise Refused(f"the PUT changed more than the line numbers: {'; '.join(lost)}")


def _told_numbers(job: Job) -> dict[str, int]:
    """Every line number that the ERP told, by the key of its line."""
    told: dict[str, Any] = job.facts.get("erp_lines", {})
    try:
        return {key: int(number) for key, number in told.items()}
    except ValueError:
        raise Refused(f"the ERP's line numbers are not whole numbers: {told}") from None


def _line_numbers(job: Job) -> dict[str, int]:
    """Those of the lines that are in the order: one may have been taken out of it since."""
    keys = {line.key for line in job.order.lines}
    return {key: number for key, number in _told_numbers(job).items() if key in keys}


def _goods(order: Order) -> Order:
    """The order without what nobody ships, such as freight, whatever its type (3.2)."""
    return order.with_lines(tuple(line for line in order.lines if line.product is not None))


@step("cloudsuite.shipment")
def shipment(job: Job, account: Account) -> Outcome:
    """Tell the shop what was shipped, in the one way that is set (trap 10)."""
    _, remote = _read(job, account)
    if remote.state == "cancel":
        return _cancelled(job, account)
    told = _shipments(job)
    _show_changes(job, account, remote)
    if account.options.delivery == "desadv" and not remote.offline:
        return _deliver(job, account, remote, told)
    if not covers(_goods(job.order), told):
        return Again("shipped", "not everything is shipped yet")
    if account.options.delivery == "done" and not remote.offline:
        return _set_done(job, account, remote)
    if remote.shipment_state == "sent":
        return skipped("is sent already")
    account.client.patch_order(job.external_id, shipment_state="sent")
    return Done(detail="sent")


def _show_changes(job: Job, account: Account, remote: RemoteOrder) -> None:
    """What left has left, and the shop is to learn of it, whatever it says by now."""
    changes = [] if remote.offline else schema.changes(job.order, schema.to_order(remote))
    if changes:
        problem = f"{CHANGED} ({'; '.join(changes)}), and it ships as the ERP has it: see to it with the customer"
        show(job.ledger, account.name, "changed", problem, job.external_id)


def _shipments(job: Job) -> list[Told]:
    """What the ERP told, without lines that are not the order's, once a person has seen to them. Raises `Refused` for
    others: nobody can tell what they stand for."""
    told = job.signals("shipped")
    odd = _odd_shipments(job, told)
    if odd and not job.acknowledged:
        raise Refused(_odd_words(job, odd))
    if odd:
        seen_to = [*job.facts.get("odd_shipments", []), *(one.source for one in odd)]
        intents.keep_facts(job.ledger, job.claim, {"odd_shipments": seen_to})
    return _of_the_order(job, told)


def _odd_shipments(job: Job, told: list[Told]) -> list[Told]:
    """Those that name lines the order has not, and that no person has seen to."""
    seen_to = job.facts.get("odd_shipments", [])
    return [one for one in told if one.source not in seen_to and _unknown_keys(job, one)]


def _unknown_keys(job: Job, one: Told) -> list[str]:
    keys = {line.key for line in job.order.lines}
    return [key for key in one.data.get("lines") or {} if key not in keys]


def _odd_words(job: Job, odd: list[Told]) -> str:
    unknown = dict.fromkeys(key for one in odd for key in _unknown_keys(job, one))
    return (
        f"the ERP shipped lines that the order has not: {', '.join(unknown)}; its lines are "
        f"{', '.join(line.key for line in job.order.lines)} (`line_key`, see docs/erp-sql.md). Have the ERP tell the "
        f"shipment by these; then `orderfleet replay {job.claim.id} --acknowledge` leaves the unknown ones out"
    )


def _of_the_order(job: Job, told: list[Told]) -> list[Told]:
    found = []
    for one in told:
        unknown = _unknown_keys(job, one)
        known = {key: value for key, value in (one.data.get("lines") or {}).items() if key not in unknown}
        if not unknown:
            found.append(one)
        elif known:  # without any line it would mean everything
            found.append(replace(one, data={**one.data, "lines": known}))
    return found


def _set_done(job: Job, account: Account, remote: RemoteOrder) -> Outcome:
    if remote.state == "done":
        return skipped("is done already")
    account.client.patch_order(job.external_id, state="done")
    return Done(detail="done")


def _deliver(job: Job, account: Account, remote: RemoteOrder, told: list[Told]) -> Outcome:
    """One delivery message a run, numbered after the ERP's own event, so that a repeat is the same message."""
    sent = list(job.facts.get("deliveries", []))
    unsent = [one for one in told if one.source not in sent]
    if unsent:
        _send_delivery(job, account, remote, told[: told.index(unsent[0]) + 1])
        sent.append(unsent[0].source)
    facts = {"deliveries": sent}
    if len(unsent) > 1 or not covers(_goods(job.order), told):
        return Again("shipped", f"delivery {len(sent)} told", facts, more=len(unsent) > 1)
    return Done(detail=f"delivery {len(sent)} told, all shipped", facts=facts)


def _send_delivery(job: Job, account: Account, remote: RemoteOrder, told: list[Told]) -> None:
    """The last of `told`. There is no call to read deliveries back: after an unclear answer the same message goes
    again, and only then "duplicate" means that it had arrived (7)."""
    one = told[-1]
    before = shipped_quantities(job.order, told[:-1])
    quantities = {
        key: total - before.get(key, Decimal(0)) for key, total in shipped_quantities(job.order, told).items()
    }
    goods = {line.key for line in _goods(job.order).lines}
    quantities = {key: quantity for key, quantity in quantities.items() if quantity and key in goods}
    if not quantities:
        return  # freight alone: there is nothing to tell
    number = f"{job.external_id}-{one.source.replace(':', '-')}"
    message = schema.desadv(
        number=number,
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
    except Unclear:
        intents.keep_facts(job.ledger, job.claim, {"unanswered": number})
        raise
    except Refused as refusal:
        if not _says_duplicate(refusal, number):
            raise
        _check_ours(job, number, refusal)


def _says_duplicate(refusal: Refused, number: str) -> bool:
    words = refusal.reason.lower()
    named = re.search(rf"(?<![\w-]){re.escape(number.lower())}(?![\w-])", words)
    said = re.search("duplicate|unique|already (exists|used)", words)
    return refusal.status == 400 and named is not None and said is not None


def _check_ours(job: Job, number: str, refusal: Refused) -> None:
    """The shop has a delivery of this number. Raises `Refused` unless a try of ours may have sent it, or a person who
    was asked says that it is told."""
    tries = _tries_of_this_delivery(job)
    if job.facts.get("unanswered") == number or any(one["outcome"] == "lost" for one in tries):
        return
    question = f"the shop has a delivery {number} already, and no try of ours can have sent it"
    if job.acknowledged and tries and str(tries[-1]["detail"]).startswith(question):
        return
    raise Refused(
        f"{question}: look there what it holds. If what left is told, or has been by hand: `orderfleet replay "
        f"{job.claim.id} --acknowledge` counts it as told ({refusal.reason})",
        status=refusal.status,
    )


def _tries_of_this_delivery(job: Job) -> list[dict[str, Any]]:
    """What was recorded of this step since it told the delivery before."""
    told: list[dict[str, Any]] = []
    for entry in queries.timeline(job.ledger, job.claim.id):
        if entry["kind"] == "attempt" and entry["step"] == job.claim.step:
            told = [] if entry["outcome"] in ("partly", "done", "skipped") else [*told, entry]
    return told


@step("cloudsuite.cancel")
def cancel(job: Job, account: Account) -> Outcome:
    """The ERP or an operator cancelled: the shop learns of it, unless the goods are out or the order is done: then a
    person cancels it there, or says that it stays as it is."""
    _, remote = _read(job, account)
    if remote.state == "cancel":
        return skipped("is cancelled already")
    if _is_over(remote):
        stands = f"cancelled in the ERP, but the webshop has it as {remote.shipment_state or remote.state}"
        if job.acknowledged:
            return skipped(f"{stands}: left as it is", facts=job.flagged(stands))
        raise Refused(
            f"{stands}: cancel it there, or `orderfleet replay {job.claim.id} --acknowledge` leaves it as it is",
            recheck=LOOK_AGAIN,
        )
    account.client.patch_order(job.external_id, state="cancel")
    return Done(detail="cancelled in the webshop")


def _is_over(remote: RemoteOrder) -> bool:
    return remote.state == "done" or remote.shipment_state == "sent"


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
    if remote.state in _BACK:
        return call(f"would stop: the order went back to {remote.state} in the webshop")
    if words := _change_words(job, remote):
        return call(words)
    if remote.state in ("processing", "done"):
        return already(f"is {remote.state} already")
    return call("sets the state to processing")


def _change_words(job: Job, remote: RemoteOrder) -> str | None:
    if job.read_anew:
        return None
    changes = schema.changes(job.order, schema.to_order(remote))
    return f"would stop: {CHANGED} ({'; '.join(changes)})" if changes else None


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
    if words := _change_words(job, remote):
        return call(words)
    if (unnumbered := _unnumbered(job)) and not job.signals("shipped"):
        return call(f"waits for the ERP to number line {', '.join(unnumbered)}, or to ship")
    if unnumbered and account.options.delivery == "desadv":
        return call(f"would stop: {_unnumbered_words(unnumbered)}")
    if not schema.lines_differ(document, _line_numbers(job)):
        return already(_NUMBERED)
    return call("writes the ERP's line numbers (PUT of the order as it is then)")


@preview("cloudsuite.shipment")
def foresee_shipment(job: Job, account: Account) -> Preview:
    _, remote = _read(job, account)
    options: Options = account.options
    if remote.state == "cancel":
        return _ENDS
    told = job.signals("shipped")
    if odd := _odd_shipments(job, told):
        return call(f"would stop: {_odd_words(job, odd)}")
    if options.delivery == "desadv" and not remote.offline:
        sent = job.facts.get("deliveries", [])
        unsent = [one for one in _of_the_order(job, told) if one.source not in sent]
        return irreversible(f"sends {len(unsent)} delivery messages") if unsent else already("every delivery is told")
    if options.delivery == "done" and not remote.offline:
        return already("is done already") if remote.state == "done" else call("sets the state to done")
    return already("is sent already") if remote.shipment_state == "sent" else call("sets the shipment to sent")


@preview("cloudsuite.cancel")
def foresee_cancel(job: Job, account: Account) -> Preview:
    _, remote = _read(job, account)
    if remote.state == "cancel":
        return already("is cancelled already")
    if _is_over(remote):
        return irreversible(f"leaves it in the webshop as it is, {remote.shipment_state or remote.state}")
    return call("cancels the order in the webshop")


def probe(account: Account) -> str:
    """Prove address and credentials with one read."""
    page = next(iter(account.client.orders(state="confirmed", limit=1)))
    return f"{page.count} confirmed orders"


SYSTEM = System(
    name="cloudsuite",
    poll=poll,
    review=review,
    tell_cancelled=(Planned("cloudsuite.cancel"),),
    probe=probe,
    gate="cloudsuite.fetch",
)
