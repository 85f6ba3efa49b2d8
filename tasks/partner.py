"""Partner: orders that came in at our door, and the crews booked for them elsewhere. Contract: contracts/partner.md.

To book a crew is in `tasks.partner_booking`.
"""

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from ledger import inbound, intake, intents, interrupts, queries, signals
from ledger.queries import Known
from ledger.signals import Signal
from orders.errors import Refused
from orders.outcomes import Again, Done, Outcome, Planned, skipped
from orders.states import State
from schemas import partner_booking as schema
from schemas.partner_booking import Booking
from tasks.base import Account, Job, Preview, System, Visit, already, call, irreversible, preview, step
from tasks.partner_booking import (
    BIND,
    STEPS,
    Doubt,
    Intent,
    bound_to,
    client_of,
    heard,
    intent_of,
    look,
    read_booking,
    read_row,
    unanswered,
    withdraw,
)

READ_AGAIN = 900.0
"""Seconds after which a booking is read even if the list shows nothing new of it."""
MOST_PAGES = 10
"""Pages of the list that a poll reads: bookings further down are only read by themselves, from time to time."""
TROUBLED = 60.0
"""Seconds after which a booking is read again whose payment is in trouble: most heal by themselves."""


def plan(*, outgoing: bool) -> tuple[Planned, ...]:
    """What is done with an order; `outgoing`: crews are booked for it elsewhere, once the ERP has accepted it: nobody
    but the partner can call one off."""
    book = (Planned("partner.upload", "numbered"), Planned("partner.book"), Planned("partner.track"))
    return (Planned("erp.order"), *(book if outgoing else ()))


# -- the poll ---------------------------------------------------------------------------------------------------------


def poll(visit: Visit) -> None:
    """Forget what is kept for a while only; and read the list of bookings, whose changes nobody tells us (section 7).

    One request tells of 50 bookings: to ask for each of them alone would soon be more than the service allows."""
    inbound.purge(visit.ledger, "partner")
    if visit.account.client is None:
        return
    intents.wake_if_free(visit.ledger, "partner", visit.account.name, STEPS)
    unfinished = queries.unfinished(visit.ledger, "partner", visit.account.name)
    for known in unfinished:
        if _is_refused_after_all(known):
            _name_what_stands(visit, known)
    tracked = {known.facts["booking_id"]: known for known in unfinished if _is_tracked(known)}
    moved = [_moved(tracked[one.number], one) for one in _changed(visit, tracked)] if tracked else []
    if moved:
        signals.signal(visit.ledger, moved)


def _is_refused_after_all(known: Known) -> bool:
    return known.step == "erp.order" and known.state == State.PARKED and known.facts.get("booking_id") is not None


def _name_what_stands(visit: Visit, known: Known) -> None:
    """The ERP does not know that a crew is on its way for what it refuses: say so where its words are shown."""
    reason, number = queries.find_order(visit.ledger, str(known.id))[0]["error"] or "", known.facts["booking_id"]
    stands = f"Booking {number} stands"
    if stands not in reason:
        words = (
            f"{reason}. {stands}: if the order is not to be, ring the partner up to call it off, then "
            f"`orderfleet cancel {known.id}`"
        )
        interrupts.stop_for_a_person(visit.ledger, known.id, f"booking:{number}", words)


def _is_tracked(known: Known) -> bool:
    return known.step == "partner.track" and known.facts.get("booking_id") is not None


def _changed(visit: Visit, tracked: dict[int, Known]) -> list[Booking]:
    """Bookings that have moved since we saw them; the newest come first, so the oldest of ours ends the search."""
    changed = []
    for rows in islice(client_of(visit.account).orders(), MOST_PAGES):
        bookings = list(_readable(visit, rows))
        changed += [one for one in bookings if one.number in tracked and _differs(tracked[one.number].facts, one)]
        if bookings and all(one.number < min(tracked) for one in bookings):
            break
    return changed


def _readable(visit: Visit, rows: list[dict[str, Any]]) -> Iterator[Booking]:
    for row in rows:
        booking = read_row(row)
        if booking is None:
            _keep_odd(visit, row)
        else:
            yield booking


def _keep_odd(visit: Visit, row: dict[str, Any]) -> None:
    """A row that cannot be read stops nobody; a person sees it, once."""
    number = schema.number_in(row)
    name = "a booking without a number" if number is None else f"booking {number}"
    intake.keep_odd_event(
        visit.ledger,
        "partner",
        visit.account.name,
        f"unreadable:{number}",
        "booking",
        json.dumps({"_id": number}),
        f"{name} in the list of the partner service cannot be read: its changes are not seen",
    )


def _differs(facts: dict[str, Any], booking: Booking) -> bool:
    return (facts.get("status"), facts.get("substatus")) != (booking.status, booking.substatus)


def _moved(known: Known, booking: Booking) -> Signal:
    """Told once for each move: it may come to the same place again."""
    source = f"list:{known.facts.get('moves', 0)}:{booking.status}:{booking.substatus}"
    return Signal(known.id, "moved", source[:190])


# -- the steps --------------------------------------------------------------------------------------------------------


@step("partner.upload")
def upload(job: Job, account: Account) -> Outcome:
    """The order's images, one a time; an id that is lost is a harmless orphan (section 4.1), and none is used for
    another order (trap 13)."""
    images = inbound.images_of(job.ledger, job.claim.id)
    if not images:
        raise Refused("the order has no image, and without one no crew can be booked")
    there: dict[str, str] = job.facts.get("images", {})
    missing = [image for image in images if image.id not in there]
    if not missing:
        return skipped("the images are there already")
    entries = client_of(account).upload_image(missing[0].content, missing[0].mimetype)
    facts = {"images": {**there, missing[0].id: schema.parse_image(entries)}}
    detail = f"image {len(images) - len(missing) + 1} of {len(images)}"
    return Again("image", detail, facts, more=True) if missing[1:] else Done(detail=detail, facts=facts)


@step("partner.track")
def track(job: Job, account: Account) -> Outcome:
    """Follow the booking until it is done: the poll tells when it has moved."""
    booking = read_booking(account, _booking_id(job))
    learnt = _learnt(job, booking)
    if booking.done:
        return Done(detail=str(booking), facts=learnt)
    if booking.trouble:
        intents.keep_facts(job.ledger, job.claim, learnt)
        raise Refused(f"booking {booking.number} is {booking}: {_WHO_ACTS[_trouble(booking)]}", recheck=TROUBLED)
    return Again("moved", str(booking), learnt, after=READ_AGAIN)


_WHO_ACTS = {
    "payment_error": "the customer's payment failed",
    "payment_requires_action": "the customer must confirm the payment",
    "fee_error": "the crew's fee failed",
    "fee_requires_action": "the crew must confirm the fee",
    "": "money does not move, somebody must act",
}


def _trouble(booking: Booking) -> str:
    return booking.substatus if booking.substatus in _WHO_ACTS else ""


def _booking_id(job: Job) -> int:
    number = job.facts.get("booking_id")
    number = bound_to(job) if number is None else number  # 0 is one, too (trap 1)
    if number is None:
        raise Refused(
            "no booking is known to be this order's: `orderfleet do "
            f"{job.claim.id} bind --data '{{\"booking\": NUMBER}}'`, then replay it"
        )
    return int(number)


def _learnt(job: Job, booking: Booking) -> dict[str, Any]:
    """Facts: where it stands, and what a person should see of that."""
    facts = {"booking_id": booking.number, "status": booking.status, "substatus": booking.substatus, "intent": None}
    if _differs(job.facts, booking):
        facts["moves"] = job.facts.get("moves", 0) + 1
    return facts | job.flagged(*_odd(job.facts.get("status"), booking))


def _odd(before: str | None, booking: Booking) -> list[str]:
    """An unknown word is kept as it is and never taken for the end; a step back is no refusal (section 3)."""
    ranks, odd = schema.RANKS, []
    if booking.status not in ranks:
        odd.append(f"the booking's status {booking.status!r} is not a known one")
    if booking.substatus not in schema.SUBSTATUSES:
        odd.append(f"the booking's substatus {booking.substatus!r} is not a known one")
    if ranks.get(booking.status, 9) < ranks.get(before or "", -1):
        odd.append(f"the booking went back from {before} to {booking.status}")
    if booking.done and booking.trouble:
        odd.append(f"the booking is done, though {booking.substatus}")
    return odd


@step("partner.cancel")
def cancel(job: Job, account: Account) -> Outcome:
    """The service has no call for it: a person must ring up the partner, if a crew is booked, or may be."""
    number, called_off = bound_to(job), heard(job)
    if number is not None and called_off:
        return Done(detail=f"a person has seen to it that booking {number} is called off")
    intent = intent_of(job.facts)
    if number is None and intent is not None:
        found = look(job, account, intent)
        if isinstance(found, Again):
            return found
        if isinstance(found, Doubt) and called_off:
            withdraw(job)
            return Done(
                detail=f"a person has seen to it that no crew comes; what it might have been: {found.candidates}"
            )
        if isinstance(found, Doubt):
            raise _may_stand(job, intent, found)
        number = _found(job, found)
    if number is None:
        return skipped("no crew is booked")
    # Acknowledged or not: what was found only now is not what a person has called off.
    raise Refused(
        f"cancelled here, but booking {number} stands, and the partner's service has no call to cancel one: ring the "
        f"partner up to call it off, then `orderfleet replay {job.claim.id} --acknowledge` says that it is done"
    )


def _may_stand(job: Job, intent: Intent, doubt: Doubt) -> Refused:
    """Nobody needs to say which booking it is, if any: it is to be called off. So this is no doubt that could be
    answered with `--done`, by which nobody would be rung up."""
    return Refused(
        f"cancelled here, but a crew may be booked: {unanswered(intent, doubt)}; what it may be: {doubt.candidates}. "
        "The partner's service has no call to cancel one: ring the partner up to call off what was booked for this "
        f"order, if anything, then `orderfleet replay {job.claim.id} --acknowledge` says that it is done. No crew is "
        "booked by that"
    )


def _found(job: Job, found: Booking | None) -> int | None:
    if found is not None:
        intents.bind(job.ledger, "partner", job.claim.account, job.claim.external_id, str(found.number))
    withdraw(job)
    return None if found is None else found.number


# -- what a replay would do -------------------------------------------------------------------------------------------


@preview("partner.upload")
def foresee_upload(job: Job, account: Account) -> Preview:
    images = [image.id for image in inbound.images_of(job.ledger, job.claim.id)]
    missing = len(set(images) - set(job.facts.get("images", {})))
    return call(f"uploads {missing} of {len(images)} images") if missing else already("the images are there already")


@preview("partner.track")
def foresee_track(job: Job, account: Account) -> Preview:
    return call(f"reads the booking again: {read_booking(account, _booking_id(job))}")


@preview("partner.cancel")
def foresee_cancel(job: Job, account: Account) -> Preview:
    number = bound_to(job)
    if number is not None:
        return irreversible(f"takes your word that the partner has called off booking {number}")
    if intent_of(job.facts) is not None:
        return call("looks if a crew was booked")
    return already("no crew is booked")


def probe(account: Account) -> str:
    """Prove address and credentials with a login and one read."""
    if account.client is None:
        return "orders come in; nothing is booked elsewhere (PARTNER_URL is not set)"
    return f"{len(next(client_of(account).orders()))} bookings on the first page"


SYSTEM = System(
    name="partner",
    poll=poll,
    tell_cancelled=(Planned("partner.cancel"),),
    probe=probe,
    commands={"bind": BIND},
)
