"""Doshii: a partner's order from `pending` to the ERP and back to `complete`. Contract: contracts/doshii.md.

Every step reads the order before it writes, and writes with the version it read: a 409 means that somebody was faster,
and that the step reads and decides again (section 5). An answer that was lost is found by that same read (section 6).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ledger import intake
from orders.errors import Misconfigured, Refused, TryLater
from orders.model import Order
from orders.outcomes import Again, Done, Ended, Outcome, Planned, skipped
from schemas import doshii as schema
from schemas.doshii import Payment, RemoteOrder
from tasks.base import Account, Command, Job, Preview, System, already, call, preview, step
from tasks.doshii_order import (
    ACCEPT,
    DRAFT,
    FOLLOW,
    FOLLOW_AGAIN,
    LOOK_AGAIN,
    PLAN,
    Finder,
    Found,
    Gone,
    Json,
    Options,
    as_text,
    goods,
    pending_items,
    to_order,
)
from tasks.doshii_poll import poll, review
from tasks.shipped import all_shipped

CONFLICTS = 3
"""How often a step reads and decides again at once (section 5)."""
_TURNED_DOWN = (400, 404, 409)
_GONE = 3
"""How often an order is looked for at short notice before it is taken to be gone."""
_TAKE_OVER = (Planned("erp.draft"), Planned("doshii.approve"))
"""For appended items, before the ERP order is confirmed. If the ERP refuses them, the order itself stands."""


def _of(job: Job, account: Account) -> Finder:
    return Finder(job.ledger, account.client, job.claim.id, job.external_id, job.facts)


def _deciding(read: Callable[[], Found], act: Callable[[Found], Outcome]) -> Outcome:
    """Read, decide, write; and again if the write is turned down and the order has changed: never the old body with
    another version (section 5). Raises what the write raised if nothing has changed."""
    before, refusal = None, None
    for _ in range(CONFLICTS):
        found = read()
        if refusal is not None and found == before:
            raise refusal
        try:
            return act(found)
        except Refused as turned_down:
            if turned_down.status not in _TURNED_DOWN:
                raise
            before, refusal = found, turned_down
    raise TryLater(f"the order changed {CONFLICTS} times while we decided", status=409)


def _cancelled(found: Found) -> Ended:
    return Ended(f"{found.remote.status} at Doshii", cancelled=True)


def _after(job: Job) -> tuple[Planned, ...]:
    return job.claim.plan[job.claim.position + 1 :]


# -- the steps --------------------------------------------------------------------------------------------------------


@step("doshii.fetch")
def fetch(job: Job, account: Account) -> Outcome:
    """Read the order and its payments; is it still to be done, and by us?"""
    finder = _of(job, account)
    found = _found_at_last(job, finder)
    if found.cancelled:
        return _cancelled(found)
    if not _by_us(job, finder, found):
        if found.remote.status == "complete":
            return Ended("is complete already, and not by us", reference=job.external_id)
        raise Refused(
            f"Doshii has the order as {found.remote.status} under the id {found.pos_id}, which we did not give it: "
            "release the order to go on with it under that id"
        )
    flags = [*schema.mismatches(found.remote), *schema.payment_mismatch(found.remote, found.payments)]
    return Done(
        detail=f"{found.remote.status}, {len(found.remote.items)} items",
        facts=job.flagged(*flags) if flags else None,
        rest=_rest(found),
        raw=as_text(found.document),
        document=to_order(account, found.remote).to_json(),
        reference=job.external_id,
    )


def _found_at_last(job: Job, finder: Finder) -> Found:
    """The order may be gone for a moment only: somebody told us of it."""
    try:
        return finder.find_with_payments()
    except Gone as gone:
        _look_again_soon(job, gone)
        raise Refused(gone.reason, recheck=LOOK_AGAIN) from None


def _look_again_soon(job: Job, gone: Gone) -> None:
    """Raises `TryLater` the first times: a 404 may pass."""
    if job.claim.failures < _GONE:
        raise TryLater(gone.reason, status=404) from None


def _by_us(job: Job, finder: Finder, found: Found) -> bool:
    """Whether the order is still unlinked, or linked by ourselves, or a person says that we go on all the same."""
    return found.pos_id is None or _is_our_id(finder, found) or bool(job.facts.get("released"))


def _is_our_id(finder: Finder, found: Found) -> bool:
    # An answer may name Doshii's own number where ours is meant (trap 6).
    return found.pos_id in (finder.our_id, finder.external_id)


def _rest(found: Found) -> tuple[Planned, ...]:
    payments = (Planned("doshii.payments"),) if schema.pending_payments(found.payments) else ()
    return (DRAFT, ACCEPT, *payments, Planned("erp.order"), *FOLLOW)


@step("doshii.accept")
def accept(job: Job, account: Account) -> Outcome:
    """Link the order under the ERP's number and accept it, in one write."""
    finder = _of(job, account)
    return _deciding(finder.find, partial(_accept, job, account, finder))


def _accept(job: Job, account: Account, finder: Finder, found: Found) -> Outcome:
    if found.cancelled:
        return _cancelled(found)
    if found.pos_id is not None:
        return _linked(job, account, finder, found)
    if to_order(account, found.remote) != job.order:
        return skipped("the partner changed the order meanwhile: it is taken in anew", rest=PLAN)
    our_id = schema.pos_id(job.facts["erp_number"])
    answer = account.client.put_unlinked_order(job.external_id, schema.acceptance(found.document, our_id))
    return _accepted(job, account, found, f"accepted as {our_id}", our_id, answer)


def _linked(job: Job, account: Account, finder: Finder, found: Found) -> Outcome:
    if not _by_us(job, finder, found):
        raise Refused(
            f"Doshii has the order under the id {found.pos_id}, ours is {finder.our_id}: somebody else accepted it"
        )
    done = _accepted(job, account, found, f"is accepted already, as {found.pos_id}", found.pos_id, found.document)
    return replace(done, skipped=True)


def _accepted(job: Job, account: Account, found: Found, detail: str, our_id: str | None, answer: Json) -> Done:
    """From here on the order has our id: no other write may be made under it before this is recorded (trap 13)."""
    done = Done(detail, facts={"pos_id": our_id, "version": answer.get("version")})
    wanted = _with_pending(account, found.remote)
    if wanted is None:
        return done
    return replace(done, document=wanted.to_json(), rest=(*_TAKE_OVER, *_after(job)))


def _with_pending(account: Account, remote: RemoteOrder) -> Order | None:
    """The order with the items that were appended; None if there are none, or none that can be booked: those are left
    to `doshii.follow`, where a person sees them."""
    if not remote.pending or remote.status == "complete":
        return None
    try:
        return to_order(account, remote, pending=True)
    except Refused:
        return None


@step("doshii.approve")
def approve(job: Job, account: Account) -> Outcome:
    """Appended items, which the ERP's draft has by now, become items of the order (7.4)."""
    return _deciding(_of(job, account).find, partial(_approve, job, account))


def _approve(job: Job, account: Account, found: Found) -> Outcome:
    if found.cancelled:
        return _cancelled(found)
    with_pending = _with_pending(account, found.remote)
    wanted = with_pending or to_order(account, found.remote)
    # What Doshii calls the order may be missing once it is linked (3.2).
    if replace(job.order, reference=None) != replace(wanted, reference=None):
        again = (*_TAKE_OVER, *_after(job))
        return skipped("they changed again: taken over anew", document=wanted.to_json(), rest=again)
    if with_pending is None:
        return skipped("no items wait for approval that the draft has")
    answer = _put_linked(account, found, schema.approval(found.document))
    return Done(f"approved {pending_items(found)}", facts={"version": answer.get("version")})


def _put_linked(account: Account, found: Found, body: Json) -> Json:
    """E8, on an order that was just read under this id: it would make a second order of one that is not linked."""
    if found.pos_id is None:
        raise Refused("Doshii shows the order as not linked, though it was accepted: nothing is written")
    answer: Json = account.client.put_order(found.pos_id, body)
    return answer


@step("doshii.payments")
def payments(job: Job, account: Account) -> Outcome:
    """Go ahead with the payments that came with the order, one a run."""
    return _deciding(_of(job, account).find_with_payments, partial(_pay, job, account))


def _pay(job: Job, account: Account, found: Found) -> Outcome:
    if found.cancelled:
        return _cancelled(found)
    payment = schema.agreeable(found.payments, schema.total(found.remote))
    if payment is None:
        return skipped("no payment waits for us")
    _agree(account, found, payment)
    told = f"went ahead with {payment.words}"
    return Again("payment", told, more=True) if schema.pending_payments(found.payments)[1:] else Done(told)


def _agree(account: Account, found: Found, payment: Payment) -> None:
    if found.pos_id is None:
        raise Refused("Doshii shows the order as not linked, though it was accepted: no payment is taken")
    account.client.put_transaction(payment.id, schema.go_ahead(payment, found.pos_id))


@step("doshii.follow")
def follow(job: Job, account: Account) -> Outcome:
    """See to what came while the order is open: late payments, one a run, and items appended too late."""
    return _deciding(_of(job, account).find_with_payments, partial(_follow, job, account))


def _follow(job: Job, account: Account, found: Found) -> Outcome:
    if found.cancelled:
        return _cancelled(found)
    payment = schema.agreeable(found.payments, schema.total(found.remote))
    if payment is not None:
        _agree(account, found, payment)
        return Again("payment", f"went ahead with {payment.words}", more=True)
    if odd := _odd(found):
        raise Refused(odd, recheck=LOOK_AGAIN)
    changed = schema.changes(job.order, goods(account, found.remote))
    flags = [f"changed at Doshii after the ERP confirmed it: {words}" for words in changed]
    flags += [f"appended at Doshii, and never answered: {pending_items(found)}"] if found.remote.pending else []
    # The changes may name people, and details are logged.
    detail = "changed since the ERP confirmed it: see its flags" if changed else "nothing new"
    return Done(detail, facts=job.flagged(*flags) if flags else None)


def _odd(found: Found) -> str:
    """What only a person can answer, in words."""
    words = []
    if found.remote.pending and found.remote.status == "accepted":
        words.append(
            f"the partner appended {pending_items(found)} after the ERP confirmed the order: add it there and "
            "`orderfleet do ORDER approve-items`, or `orderfleet do ORDER decline-items`"
        )
    if waiting := ", ".join(one.words for one in schema.pending_payments(found.payments)):
        words.append(
            f"{waiting}: more than is due, or money that is to go back: `orderfleet do ORDER accept-payment` or "
            "`orderfleet do ORDER refuse-payment`"
        )
    return "; ".join(words)


@step("doshii.complete")
def complete(job: Job, account: Account) -> Outcome:
    """Everything has left: the order is complete, if Doshii has not said so already."""
    if not all_shipped(job):
        return Again("completed|shipped", "not everything is shipped yet", after=FOLLOW_AGAIN)
    return _deciding(_of(job, account).find_with_payments, partial(_complete, account))


def _complete(account: Account, found: Found) -> Outcome:
    if found.cancelled:
        return _cancelled(found)
    if found.remote.status == "complete":
        return skipped("is complete already")
    if found.remote.pending or schema.pending_payments(found.payments):
        return skipped("there is news of it: that first", rest=FOLLOW)
    _put_linked(account, found, schema.completion(found.document))
    return Done("complete")


@step("doshii.reject")
def reject(job: Job, account: Account) -> Outcome:
    """The ERP refused, or it or an operator cancelled: the order is cancelled at Doshii, then each open payment is
    rejected (trap 12), one write a run. Money that was taken is a matter of people, and shown to them."""
    finder = _of(job, account)
    try:
        return _deciding(finder.find_with_payments, partial(_reject, job, account, finder))
    except Gone as gone:
        _look_again_soon(job, gone)
        return skipped(gone.reason)


def _reject(job: Job, account: Account, finder: Finder, found: Found) -> Outcome:
    reason = _reason(job)
    if not _by_us(job, finder, found):
        return skipped(f"Doshii has it under the id {found.pos_id}, which is not ours: left alone")
    if found.remote.status == "complete":
        raise Refused(f"Doshii has the order as complete: it cannot be cancelled there any more ({reason})")
    if not found.cancelled:
        _cancel_there(account, finder, found, reason)
        told = f"cancelled at Doshii: {reason}"
        more = schema.pending_payments(found.payments)
        return Again("payment", told, more=True) if more else _with_money(job, account, found, Done(told))
    pending = schema.pending_payments(found.payments)
    if not pending:
        return _with_money(job, account, found, skipped(f"is {found.remote.status} already"))
    code = _code(account, "transactions")
    account.client.put_transaction(pending[0].id, schema.no_payment(pending[0], code, reason))
    told = f"rejected {pending[0].words}"
    return Again("payment", told, more=True) if pending[1:] else _with_money(job, account, found, Done(told))


def _with_money(job: Job, account: Account, found: Found, done: Done) -> Done:
    """The same; if money was taken, a person sees it. Nobody is told twice: what was kept before is kept once."""
    taken = schema.taken(found.payments)
    if not taken:
        return done
    told = f"{taken}, though the order is cancelled: settle it with the partner"
    body = as_text({"doshiiId": job.external_id, "problem": told})
    key = f"paid:{job.external_id}"
    intake.keep_odd_event(job.ledger, "doshii", account.name, key, "paid", body, told, job.external_id)
    return replace(done, facts=job.flagged(told))


def _reason(job: Job) -> str:
    return str(job.data.get("reason") or "cancelled by the venue")


def _cancel_there(account: Account, finder: Finder, found: Found, reason: str) -> None:
    body = schema.rejection(found.document, _code(account, "orders"), reason)
    if found.pos_id is None:
        account.client.put_unlinked_order(finder.external_id, body)
    else:
        _put_linked(account, found, body)


def _code(account: Account, entity: str) -> str | None:
    """What codes mean is not public (3.7): the one that is set, else the one of Doshii's list that says least."""
    options: Options = account.options
    if entity == "orders" and options.rejection_code is not None:
        return options.rejection_code
    return schema.rejection_code(account.client.rejection_codes(), entity)


# -- what a person decides --------------------------------------------------------------------------------------------


def _items_to_answer(job: Job, account: Account) -> Found:
    found = _of(job, account).find()
    if not found.remote.pending or found.remote.status != "accepted":
        raise Refused("no items of this order wait for approval")
    return found


def _payment_to_answer(job: Job, account: Account, data: Json) -> tuple[Found, Payment]:
    found = _of(job, account).find_with_payments()
    waiting = schema.pending_payments(found.payments)
    named = [one for one in waiting if data.get("id") in (None, one.id)]
    if len(named) != 1:
        raise Refused(
            f'name one of the payments that wait, as --data \'{{"id": "..."}}\': '
            f"{', '.join(one.words for one in waiting) or 'there is none'}"
        )
    return found, named[0]


def _ask_approve(job: Job, account: Account, data: Json) -> str:
    items = ", ".join(item.priced for item in _items_to_answer(job, account).remote.pending)
    return f"approve {items}: the ERP must have it"


def _run_approve(job: Job, account: Account, data: Json) -> str:
    found = _items_to_answer(job, account)
    _put_linked(account, found, schema.approval(found.document))
    return f"approved {pending_items(found)}"


def _ask_decline(job: Job, account: Account, data: Json) -> str:
    return f"tell the partner that {pending_items(_items_to_answer(job, account))} will not come"


def _run_decline(job: Job, account: Account, data: Json) -> str:
    found = _items_to_answer(job, account)
    _put_linked(account, found, schema.refusal_of_items(found.document))
    return f"declined {pending_items(found)}"


def _ask_accept_payment(job: Job, account: Account, data: Json) -> str:
    return f"go ahead with {_payment_to_answer(job, account, data)[1].words}: money moves"


def _run_accept_payment(job: Job, account: Account, data: Json) -> str:
    found, payment = _payment_to_answer(job, account, data)
    _agree(account, found, payment)
    return f"went ahead with {payment.words}"


def _ask_refuse_payment(job: Job, account: Account, data: Json) -> str:
    return f"reject {_payment_to_answer(job, account, data)[1].words}"


def _run_refuse_payment(job: Job, account: Account, data: Json) -> str:
    _, payment = _payment_to_answer(job, account, data)
    reason = str(data.get("reason") or "rejected by the venue")
    account.client.put_transaction(payment.id, schema.no_payment(payment, _code(account, "transactions"), reason))
    return f"rejected {payment.words}"


_COMMANDS = {
    "approve-items": Command("approve the items that the partner appended", _ask_approve, _run_approve),
    "decline-items": Command("decline the items that the partner appended", _ask_decline, _run_decline),
    "accept-payment": Command("go ahead with a payment that waits", _ask_accept_payment, _run_accept_payment),
    "refuse-payment": Command("reject a payment that waits", _ask_refuse_payment, _run_refuse_payment),
}


# -- what a replay would do -------------------------------------------------------------------------------------------


def _ends(found: Found) -> Preview:
    return already(f"is {found.remote.status} at Doshii: its plan ends here")


@preview("doshii.fetch")
def foresee_fetch(job: Job, account: Account) -> Preview:
    return call(f"reads the order again: {_of(job, account).find().remote.status}")


@preview("doshii.accept")
def foresee_accept(job: Job, account: Account) -> Preview:
    finder = _of(job, account)
    found = finder.find()
    if found.cancelled:
        return _ends(found)
    if found.pos_id is None:
        return call(f"accepts the order as {finder.our_id or 'the number that the ERP will give'}")
    if not _by_us(job, finder, found):
        return call(f"would stop: Doshii has the order under the id {found.pos_id}")
    return already(f"is accepted already, as {found.pos_id}")


@preview("doshii.approve")
def foresee_approve(job: Job, account: Account) -> Preview:
    found = _of(job, account).find()
    if found.cancelled:
        return _ends(found)
    return call(f"approves {pending_items(found)}") if found.remote.pending else already("no items wait for approval")


@preview("doshii.payments")
def foresee_payments(job: Job, account: Account) -> Preview:
    found = _of(job, account).find_with_payments()
    if found.cancelled:
        return _ends(found)
    payment = schema.agreeable(found.payments, schema.total(found.remote))
    return already("no payment waits for us") if payment is None else call(f"goes ahead with {payment.words}")


@preview("doshii.follow")
def foresee_follow(job: Job, account: Account) -> Preview:
    found = _of(job, account).find_with_payments()
    if found.cancelled:
        return _ends(found)
    payment = schema.agreeable(found.payments, schema.total(found.remote))
    if payment is not None:
        return call(f"goes ahead with {payment.words}")
    odd = _odd(found)
    return call(f"would stop: {odd}") if odd else already("there is nothing new")


@preview("doshii.complete")
def foresee_complete(job: Job, account: Account) -> Preview:
    found = _of(job, account).find()
    if found.cancelled:
        return _ends(found)
    if found.remote.status == "complete":
        return already("is complete already")
    return call("completes the order") if all_shipped(job) else call("waits until everything is shipped")


@preview("doshii.reject")
def foresee_reject(job: Job, account: Account) -> Preview:
    finder = _of(job, account)
    found = finder.find_with_payments()
    if not _by_us(job, finder, found):
        return already(f"Doshii has it under the id {found.pos_id}, which is not ours: left alone")
    if found.remote.status == "complete":
        return call("would stop: Doshii has the order as complete")
    if not found.cancelled:
        return call("cancels the order at Doshii, for good")
    pending = len(schema.pending_payments(found.payments))
    return call(f"rejects {pending} payments") if pending else already(f"is {found.remote.status} already")


def probe(account: Account) -> str:
    """Prove address and credentials with one read, and that they are those of the venue that is named."""
    options: Options = account.options
    location = account.client.location()
    if options.location not in (None, location.get("id")):
        raise Misconfigured(
            f"the location token is one of {location.get('id')}, and DOSHII_LOCATION_ID is {options.location}"
        )
    return f"{location.get('name') or 'the venue'} ({location.get('id')})"


SYSTEM = System(
    name="doshii",
    poll=poll,
    review=review,
    tell_cancelled=(Planned("doshii.reject"),),
    probe=probe,
    gate="doshii.fetch",
    commands=_COMMANDS,
)
