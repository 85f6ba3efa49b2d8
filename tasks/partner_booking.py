"""Partner: one crew for one order. Contract: contracts/partner.md, section 4.

A create has no key, and nothing in its answer says for whom it was: sent twice, it sends two crews (trap 11). So what
is about to be sent is committed before, one order of an account at a time; and as long as that stands in the ledger,
nothing is sent again before the service's list has been looked at.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from clients.partner import Invalid, Partner
from ledger import inbound, intents, queries
from orders.errors import InDoubt, Misconfigured, Refused, StepError, Unavailable, Unclear
from orders.outcomes import Again, Done, Outcome, skipped
from orders.states import IN_FLIGHT
from schemas import partner_booking as schema
from schemas.partner_booking import Booking, Request, Wish
from tasks.base import Account, Command, Job, Preview, already, irreversible, preview, step

MOST_ATTEMPTS = 3
"""Creates without an answer, each followed by looks that found nothing, before a person must act."""
LOOKS = 3
GONE = 3600.0
"""Seconds after which a booking that is not there is looked for again."""
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
        return schema.may_be(booking, store_id=self.store_id, instock=self.instock, since=since, until=until)

    def is_alike(self, booking: Booking) -> bool:
        """The same, whatever the service's clock says: it may be wrong, or mean another zone."""
        return schema.is_alike(booking, store_id=self.store_id, instock=self.instock)


@dataclass(frozen=True, slots=True)
class Doubt:
    """The list does not tell what became of a create: `why`, and which bookings it may be, in words."""

    why: str
    candidates: str


def intent_of(facts: Mapping[str, Any]) -> Intent | None:
    """The create of which it is not known what became."""
    kept = facts.get("intent")
    return None if kept is None else Intent(**kept)


def client_of(account: Account) -> Partner:
    """Raises `Misconfigured` for an account at which nothing can be booked any more."""
    if not isinstance(account.client, Partner):
        raise Misconfigured("PARTNER_URL is not set any more, but orders are still to be booked there")
    return account.client


def read_booking(account: Account, number: int) -> Booking:
    """One booking; from the list, where the service does not give them one by one (section 2.3). Raises `Refused`."""
    client = client_of(account)
    try:
        return schema.parse_booking(client.order(number))
    except Refused as refusal:
        if refusal.status != 404:
            raise
    for rows in client.orders():
        found = {schema.number_in(row): row for row in rows}
        if number in found:
            return schema.parse_booking(found[number])
        if max((one for one in found if one is not None), default=number) < number:
            break
    raise Refused(f"the service does not know booking {number} any more: ask the partner", recheck=GONE)


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
    none_of_them = heard(job)
    found = look(job, account, intent)
    if isinstance(found, Again):
        return found
    if isinstance(found, Booking):
        return _booked(job, found.number, found)
    if found is not None and not none_of_them:
        raise _in_doubt(job, intent, found)
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
        return _invalid(job, refusal, wish)
    except (Refused, Unavailable) as error:
        if not _may_have_arrived(error):
            withdraw(job)
        raise
    booking = _readable(answer)
    return _booked(job, booking.number, booking)


def _declare(job: Job, account: Account, request: Request, wish: Wish | None) -> None:
    """Commit what is about to be sent. Raises `Fenced`, or what reading the list raises."""
    above = max(_newest(account), default=-1)
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


def heard(job: Job) -> bool:
    """Whether a person let this try make the effect in doubt (see `Job.acknowledged`). It is used up by that: it names
    the try by its number, which a later one, and another doubt, may have again."""
    said = job.acknowledged
    if job.facts.get("acknowledged") is not None:
        intents.keep_facts(job.ledger, job.claim, {"acknowledged": None})
    return said


def withdraw(job: Job, **facts: Any) -> None:
    """It is known that nothing came of it, or a person has said so: the next order may go."""
    intents.keep_facts(job.ledger, job.claim, {"intent": None, **facts})
    intents.end_turn(job.ledger, job.claim)


def _may_have_arrived(error: Refused | Unavailable) -> bool:
    """Whether an error may have come after the work: 429 and 503, which are no refusals (section 4, 5). A connection
    that was never made is clear, and so is a refusal of what was sent, or of who sent it."""
    return isinstance(error, Unavailable) and not isinstance(error, Misconfigured) and error.status is not None


def _invalid(job: Job, refusal: Invalid, wish: Wish | None) -> Outcome:
    """Somebody was faster, and it is nothing but the slot: the next one that the order asks for. Raises any other
    refusal; images that the service does not know any more are forgotten here, too."""
    fields = [field for field, _ in refusal.problems]
    if any(field.startswith("image_uuids") for field in fields):
        withdraw(job, images={})
        raise Refused(f"{refusal.reason}. {_upload_anew(job)}", status=refusal.status)
    withdraw(job)
    if wish is None or not fields or not all(field.startswith("datetime") for field in fields):
        raise refusal
    lost = [*job.facts.get("lost", []), str(wish)]
    return Again("slot", f"{wish} is taken by now", {"lost": lost}, more=True)


def _upload_anew(job: Job) -> str:
    return f"`orderfleet replay {job.claim.id} --from partner.upload` uploads the images anew"


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
    first = bound_to(job)
    if first != number:
        withdraw(job, booking_id=first)
        raise InDoubt(
            f"a crew was booked as {number}, but meanwhile a person had bound booking {first} to the order: ring the "
            f"partner up to call off booking {number}, then `orderfleet replay {claim.id} --done`"
        )
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
    if not images:
        raise Refused(f"the service does not know the images any more. {_upload_anew(job)}")
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


def look(job: Job, account: Account, intent: Intent) -> Again | Booking | Doubt | None:
    """Find out what became of a create (section 4.1): the booking, None for none, another look later, or that the list
    cannot tell."""
    if not intents.holds_turn(job.ledger, job.claim):
        return Doubt("others may have been booked since", _Seen.of(job, account, intent).names())
    early = (datetime.fromisoformat(intent.look_at) - queries.database_now(job.ledger)).total_seconds()
    if early > 0:
        return Again("answer", "the answer to the booking was lost: it is looked for in a while", after=early)
    seen = _Seen.of(job, account, intent)
    certain = [booking for booking in seen.bookings if _shows(job, booking)]
    if len(certain) == 1:
        return certain[0]
    why = seen.why_doubtful(intent)
    if why is not None:
        return Doubt(why, seen.names())
    return seen.bookings[0] if seen.bookings else _none_yet(job, account, intent)


def _none_yet(job: Job, account: Account, intent: Intent) -> Again | None:
    looks = intent.looks + 1
    if looks == LOOKS:
        return None
    after = account.options.look_seconds
    then = queries.database_now(job.ledger) + timedelta(seconds=after)
    facts = {"intent": asdict(replace(intent, looks=looks, look_at=then.isoformat()))}
    return Again("answer", f"look {looks} of {LOOKS}: no booking that may be it", facts, after=after)


def _in_doubt(job: Job, intent: Intent, doubt: Doubt) -> InDoubt:
    order = job.claim.id
    return InDoubt(
        f"{unanswered(intent, doubt)}: {doubt.candidates}. If it is one of these: "
        f"`orderfleet do {order} bind --data '{{\"booking\": NUMBER}}'`, then `orderfleet replay {order} --done`. "
        f"If it is none: `orderfleet replay {order} --acknowledge` books a crew"
    )


def unanswered(intent: Intent, doubt: Doubt) -> str:
    """What happened, in words."""
    return f"a booking was sent at {intent.since[:19]} and not answered, and {doubt.why}"


@dataclass(slots=True)
class _Seen:
    """What the list shows of the time since a create: `bookings` that are of its kind and no other order's, new rows
    that cannot be read (their numbers), and whether the newest came first, without which new ones may be further
    down."""

    bookings: list[Booking]
    unreadable: list[int | None]
    newest_first: bool

    @classmethod
    def of(cls, job: Job, account: Account, intent: Intent) -> "_Seen":
        """Read the list down to what was there before. Without a filter: how one travels is assumed (section 2.3), and
        a service that takes it for another one would say that there is nothing."""
        parsed, unreadable, past = [], [], False
        for rows in client_of(account).orders():
            for row in rows:
                booking, number = read_row(row), schema.number_in(row)
                past = past or (number is not None and number <= intent.above)
                if booking is not None:
                    parsed.append(booking)
                elif number > intent.above if number is not None else not past:
                    unreadable.append(number)
            if past:
                break
        new = [
            booking
            for booking in parsed
            if booking.number > intent.above and intent.is_alike(booking) and not _is_anothers(job, booking)
        ]
        numbers = [str(number) for number in (*(booking.number for booking in new), *unreadable)]
        bound = intents.owners(job.ledger, job.claim.system, job.claim.account, numbers)
        return cls(
            [booking for booking in new if str(booking.number) not in bound],
            [number for number in unreadable if str(number) not in bound],
            _is_newest_first(parsed),
        )

    def why_doubtful(self, intent: Intent) -> str | None:
        """Why it cannot be told by this what became of the create; None if it can."""
        if not self.newest_first:
            return "the service's list does not begin with the newest"
        if self.unreadable:
            return "the list has new bookings that cannot be read"
        if len(self.bookings) > 1:
            return "there are several that may be it"
        if self.bookings and not intent.may_be(self.bookings[0]):
            return "by the service's clock the only one that may be it was made at another time"
        return None

    def names(self) -> str:
        """The numbers of what it may be."""
        odd = ["one without a number" if number is None else str(number) for number in self.unreadable]
        return ", ".join([*(str(booking.number) for booking in self.bookings), *odd]) or "none in the list"


def _is_newest_first(bookings: list[Booking]) -> bool:
    """By their times or by their numbers: two at once may have those in another order, and clocks are put back."""
    numbers = [booking.number for booking in bookings]
    times = [booking.created_at for booking in bookings if booking.created_at is not None]
    by_time = len(times) == len(bookings) and times == sorted(times, reverse=True)
    return by_time or numbers == sorted(numbers, reverse=True)


def read_row(row: dict[str, Any]) -> Booking | None:
    """One row of the list; None for one that cannot be read: it may be anybody's, and must not stop the others."""
    try:
        return schema.parse_booking(row)
    except Refused:
        return None


def _shows(job: Job, booking: Booking) -> bool:
    """Whether the service shows the mark that we put there; most will not."""
    return booking.details is not None and schema.marked(job.erp_reference) in booking.details


def _is_anothers(job: Job, booking: Booking) -> bool:
    """Whether it shows the mark of another order."""
    return booking.details is not None and f"[{job.claim.system}:" in booking.details and not _shows(job, booking)


def _newest(account: Account) -> list[int]:
    """The numbers on the first page of the list."""
    numbers = [schema.number_in(row) for row in next(client_of(account).orders())]
    return [number for number in numbers if number is not None]


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
    booking = read_booking(account, _number(data))
    known = bound_to(job)
    if known is not None:
        raise Refused(f"the order is booked as {known} already")
    _, _, state = queries.position_of(job.ledger, job.claim.id) or (0, None, "gone")
    if state in IN_FLIGHT and queries.count_live_workers(job.ledger):  # none: the ledger comes from a backup
        raise Refused(f"the order is {state}: look again in a moment")
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
