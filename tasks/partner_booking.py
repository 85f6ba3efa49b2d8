"""Partner: one crew for one order. Contract: contracts/partner.md, section 4.

A create has no key, and nothing in its answer says for whom it was: sent twice, it sends two crews (trap 11). So what
is about to be sent is committed before, one order of an account at a time; and as long as that stands in the ledger,
nothing is sent again before the service's list has been looked at.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from clients.partner import Invalid, Partner
from ledger import inbound, intents, queries
from orders.errors import InDoubt, Misconfigured, Refused, StepError, Unavailable, Unclear
from orders.outcomes import Again, Done, Outcome, skipped
from schemas import partner_booking as schema
from schemas.partner_booking import Booking, Request, Wish
from tasks.base import Account, Command, Job, Preview, already, irreversible, preview, step

MOST_ATTEMPTS = 3
"""Creates without an answer, each followed by looks that found nothing, before a person must act."""
LOOKS = 3
SKEW = timedelta(seconds=120)
"""How far the service's clock and ours may be apart."""
STEPS = ("partner.book", "erp.cancel", "partner.cancel")
"""Where an order stands that holds the turn."""


@dataclass(frozen=True, slots=True)
class Options:
    """The settings of one account. `items` and `stores`: what ours are called at the service, where that differs.
    `timeout`: that of its client, in seconds. `look_seconds`: between two looks at the list. `seen`: items that the
    service has, by store, as far as this process has read of them."""

    items: Mapping[int, int] = field(default_factory=dict)
    stores: Mapping[str, str] = field(default_factory=dict)
    zone: ZoneInfo = field(default_factory=lambda: ZoneInfo("Asia/Nicosia"))
    timeout: float = 20.0
    look_seconds: float = 90.0
    seen: dict[str, set[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Intent:
    """A create that is about to be sent, or was. It is among the order's facts until it is known what became of it.

    `above`: the greatest `_id` that was in the list. `since` and `until`: when it was sent, and when its answer should
    have come; ISO 8601. `look_at`: not to be looked for earlier. `looks`: so many found nothing."""

    above: int
    digest: str
    store_id: str
    instock: bool
    slot: str | None
    flags: list[str]
    since: str
    until: str
    look_at: str
    looks: int = 0

    def may_be(self, booking: Booking) -> bool:
        """Whether that is what came of it, as far as a booking tells."""
        since, until = datetime.fromisoformat(self.since) - SKEW, datetime.fromisoformat(self.until) + SKEW
        return booking.number > self.above and schema.may_be(
            booking, store_id=self.store_id, instock=self.instock, since=since, until=until
        )


def intent_of(facts: Mapping[str, Any]) -> Intent | None:
    """The create of which it is not known what became."""
    kept = facts.get("intent")
    return None if kept is None else Intent(**kept)


def client_of(account: Account) -> Partner:
    """Raises `Misconfigured` for an account at which nothing can be booked any more."""
    if not isinstance(account.client, Partner):
        raise Misconfigured("PARTNER_URL is not set any more, but orders are still to be booked there")
    return account.client


# -- the step ---------------------------------------------------------------------------------------------------------


@step("partner.book")
def book(job: Job, account: Account) -> Outcome:
    """Exactly one crew for the order."""
    number = bound_to(job)
    if number is not None:
        return _booked(job, number, None)
    intent = intent_of(job.facts)
    if intent is None:
        return _attempt(job, account)
    found = look(job, account, intent)
    if isinstance(found, Again):
        return found
    if found is not None:
        return _booked(job, found.number, found)
    withdraw(job, unanswered=job.facts.get("unanswered", 0) + 1)
    return _attempt(job, account)


def bound_to(job: Job) -> int | None:
    """The booking that is this order's."""
    claim = job.claim
    results = intents.results_of(job.ledger, claim.system, claim.account, claim.external_id)
    return int(results[0]) if results else None


def _attempt(job: Job, account: Account) -> Outcome:
    """Send one create, if it is this order's turn."""
    if job.facts.get("unanswered", 0) >= MOST_ATTEMPTS:
        withdraw(job, unanswered=0)
        raise Refused(f"{MOST_ATTEMPTS} times no answer came and no booking was made: replay it when the service works")
    if not intents.take_turn(job.ledger, job.claim, STEPS):
        return Again(intents.TURN, "another order of this account is being booked", after=intents.LONGEST_TURN)
    try:
        request, wish = _request(job, account)
        _declare(job, account, request, wish)
    except StepError:
        intents.end_turn(job.ledger, job.claim)
        raise
    try:
        answer = client_of(account).create_order(request.body)
    except Invalid as refusal:
        withdraw(job)
        return _slot_lost(job, refusal, wish)
    except (Refused, Unavailable) as error:
        if not _may_have_arrived(error):
            withdraw(job)
        raise
    booking = _readable(answer)
    return _booked(job, booking.number, booking)


def _declare(job: Job, account: Account, request: Request, wish: Wish | None) -> None:
    """Commit what is about to be sent. Raises `Fenced`, or what reading the list raises."""
    above = max((booking.number for booking in _newest(account)), default=-1)
    timeout = timedelta(seconds=account.options.timeout)
    now = queries.database_now(job.ledger)
    intent = Intent(
        above=above,
        digest=request.digest,
        store_id=request.store_id,
        instock=request.body["partner_details"]["instock"],
        slot=None if wish is None else str(wish),
        flags=list(request.flags),
        since=now.isoformat(),
        until=(now + timeout).isoformat(),
        look_at=(now + 3 * timeout).isoformat(),
    )
    intents.keep_facts(job.ledger, job.claim, {"intent": asdict(intent)})


def withdraw(job: Job, **facts: Any) -> None:
    """It is known that nothing came of it: the next order may go."""
    intents.keep_facts(job.ledger, job.claim, {"intent": None, **facts})
    intents.end_turn(job.ledger, job.claim)


def _may_have_arrived(error: Refused | Unavailable) -> bool:
    """Whether an error may have come after the work: 429 and 503, which are no refusals (section 4, 5). A connection
    that was never made is clear, and so is a refusal of what was sent, or of who sent it."""
    return isinstance(error, Unavailable) and not isinstance(error, Misconfigured) and error.status is not None


def _slot_lost(job: Job, refusal: Invalid, wish: Wish | None) -> Outcome:
    """Somebody was faster: the next slot that the order asks for. Raises any other refusal."""
    slot = [field for field, _ in refusal.problems if field.startswith("datetime")]
    if wish is None or not slot:
        raise refusal
    lost = [*job.facts.get("lost", []), str(wish)]
    return Again("slot", f"{wish} is taken by now", {"lost": lost}, more=True)


def _readable(answer: Any) -> Booking:
    """A crew is booked, whatever the answer looks like. Raises `Unclear`."""
    try:
        return schema.parse_booking(answer)
    except Refused as refusal:
        raise Unclear(refusal.reason) from None


def _booked(job: Job, number: int, booking: Booking | None) -> Outcome:
    """The booking is this order's from now on, and no other's."""
    claim, intent = job.claim, intent_of(job.facts)
    owner = intents.bind(job.ledger, claim.system, claim.account, claim.external_id, str(number))
    if owner != claim.external_id:
        raise InDoubt(f"the service answers with booking {number}, which is that of order {owner}")
    intents.end_turn(job.ledger, claim)
    facts: dict[str, Any] = {"booking_id": number, "intent": None}
    if booking is not None:
        facts |= {"status": booking.status, "substatus": booking.substatus}
    if intent is not None:
        facts |= {"slot": intent.slot, **job.flagged(*intent.flags)}
    if intent is None and booking is None:
        return skipped(f"is booked as {number}", facts=facts)
    return Done(detail=f"booked as {number}", facts=facts)


# -- what is to be booked ---------------------------------------------------------------------------------------------


def _request(job: Job, account: Account) -> tuple[Request, Wish | None]:
    """What to send, and for which slot: None when no slot is taken, because the goods are not there yet.

    Raises `Refused` for what a person must see to first."""
    document = _document(job)
    options: Options = account.options
    images = list(job.facts.get("images", {}).values())
    _check_items(account, document)
    wanted = schema.wishes(document, job.order, options.zone)
    wish = _free(job, account, document, wanted) if schema.is_in_stock(document) else None
    request = schema.to_request(
        document,
        wanted if wish is None else [wish],
        images=images,
        mark=job.erp_reference,
        items=options.items,
        stores=options.stores,
    )
    if wish not in (None, wanted[0]):
        request = replace(request, flags=(*request.flags, f"{wanted[0]} was taken: booked for {wish}"))
    return request, wish


def _document(job: Job) -> dict[str, Any]:
    raw = inbound.request_of(job.ledger, job.claim.id)
    if raw is None:
        raise Refused("it did not come in at our door: nobody knows what is to be booked")
    return schema.read_order(raw)


def _check_items(account: Account, document: dict[str, Any]) -> None:
    """An id is translated by the setting, or is the service's own; never by its name (trap 12)."""
    options: Options = account.options
    store = schema.store_of(document, options.stores)
    seen = options.seen.setdefault(store, set())
    missing = schema.unmapped_items(document, options.items) - seen
    if not missing:
        return
    for rows in client_of(account).items(store):
        seen |= schema.item_ids_in(rows)
        if missing <= seen:
            return
    missing -= seen
    ids = ", ".join(map(str, sorted(missing)))
    raise Refused(f"the service has no item {ids}: say in PARTNER_ITEM_MAP what it is called there, then replay")


def _free(job: Job, account: Account, document: dict[str, Any], wanted: list[Wish]) -> Wish:
    """The dearest slot that is free. To read that reserves nothing (trap 10). Raises `Refused`."""
    slots = client_of(account).slots(schema.store_of(document, account.options.stores))
    lost = job.facts.get("lost", [])
    for wish in wanted:
        if wish.is_free(slots) and str(wish) not in lost:
            return wish
    intents.keep_facts(job.ledger, job.claim, {"lost": []})
    raise Refused(f"none of the slots is free any more: {', '.join(map(str, wanted))}; the customer must choose anew")


# -- was it booked? ---------------------------------------------------------------------------------------------------


def look(job: Job, account: Account, intent: Intent) -> Again | Booking | None:
    """Find out what became of a create (section 4.1): the booking, None for none, or another look later.

    Raises `InDoubt` where the list cannot tell, unless a person has said that there is none."""
    if not intents.holds_turn(job.ledger, job.claim):
        _doubt(job, account, intent, "others may have been booked since")
        return None
    early = (datetime.fromisoformat(intent.look_at) - queries.database_now(job.ledger)).total_seconds()
    if early > 0:
        return Again("answer", "the answer to the booking was lost: it is looked for in a while", after=early)
    candidates = _candidates(job, account, intent)
    certain = [booking for booking in candidates if _shows(job, booking)]
    if len(certain or candidates) > 1:
        _doubt(job, account, intent, "there are several that may be it")
        return None
    if candidates:
        return (certain or candidates)[0]
    return _none_yet(job, account, intent)


def _none_yet(job: Job, account: Account, intent: Intent) -> Again | None:
    looks = intent.looks + 1
    if looks == LOOKS:
        return None
    after = account.options.look_seconds
    then = queries.database_now(job.ledger) + timedelta(seconds=after)
    facts = {"intent": asdict(replace(intent, looks=looks, look_at=then.isoformat()))}
    return Again("answer", f"look {looks} of {LOOKS}: no booking that may be it", facts, after=after)


def _doubt(job: Job, account: Account, intent: Intent, why: str) -> None:
    """Raises `InDoubt`, naming what it may be, unless a person has said that it is none of those."""
    if job.acknowledged:
        return
    candidates = ", ".join(str(booking.number) for booking in _candidates(job, account, intent)) or "none in the list"
    order = job.claim.id
    raise InDoubt(
        f"a booking was sent at {intent.since[:19]} and not answered, and {why}: {candidates}. If it is one of these: "
        f"`orderfleet do {order} bind --data '{{\"booking\": NUMBER}}'`, then `orderfleet replay {order} --done`. "
        f"If it is none: `orderfleet replay {order} --acknowledge` books a crew"
    )


def _candidates(job: Job, account: Account, intent: Intent) -> list[Booking]:
    """Bookings since then that may be it, and are no other order's."""
    found = [
        booking for booking in _since(account, intent) if intent.may_be(booking) and not _is_anothers(job, booking)
    ]
    bound = intents.owners(job.ledger, job.claim.system, job.claim.account, [str(booking.number) for booking in found])
    return [booking for booking in found if str(booking.number) not in bound]


def _shows(job: Job, booking: Booking) -> bool:
    """Whether the service shows the mark that we put there; most will not."""
    return booking.details is not None and schema.marked(job.erp_reference) in booking.details


def _is_anothers(job: Job, booking: Booking) -> bool:
    """Whether it shows the mark of another order."""
    return booking.details is not None and f"[{job.claim.system}:" in booking.details and not _shows(job, booking)


def _newest(account: Account) -> list[Booking]:
    """The first page of the list."""
    return [schema.parse_booking(row) for row in next(client_of(account).orders())]


def _since(account: Account, intent: Intent) -> Iterator[Booking]:
    """The store's bookings, the newest first, down to what was there before."""
    for rows in client_of(account).orders(store_id=intent.store_id):
        bookings = [schema.parse_booking(row) for row in rows]
        yield from bookings
        if all(booking.number <= intent.above for booking in bookings):
            return


# -- what a person may do ---------------------------------------------------------------------------------------------


@preview("partner.book")
def foresee_book(job: Job, account: Account) -> Preview:
    number = bound_to(job)
    if number is not None:
        return already(f"is booked as {number}")
    if intent_of(job.facts) is not None:
        return irreversible("a booking may have been made: looks for it, and books a crew if it finds none")
    return irreversible("books a crew, which nobody but the partner can call off")


def ask_bind(job: Job, account: Account, data: dict[str, Any]) -> str:
    """See `Command`."""
    booking = schema.parse_booking(client_of(account).order(_number(data)))
    known = bound_to(job)
    if known is not None:
        raise Refused(f"the order is booked as {known} already")
    return f"makes booking {booking.number} ({booking.title or 'no title'}; {booking}) this order's, for ever"


def run_bind(job: Job, account: Account, data: dict[str, Any]) -> str:
    """See `Command`."""
    ask_bind(job, account, data)
    claim, number = job.claim, _number(data)
    owner = intents.bind(job.ledger, claim.system, claim.account, claim.external_id, str(number))
    if owner != claim.external_id:
        raise Refused(f"booking {number} is that of order {owner}")
    return f"booking {number} is this order's: replay it (--done if it is in doubt), and it goes on"


def _number(data: dict[str, Any]) -> int:
    number = data.get("booking")
    if type(number) is not int or number < 0:
        raise Refused("say which: --data '{\"booking\": 17}'")
    return number


BIND = Command("say which of the service's bookings is this order's: {\"booking\": 17}", ask_bind, run_bind)
